"""Publishing by a task of Celery to clients on three nodes, beside python-socketio's emitter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from benchmarks.cluster.beside_peers import INSTALLED, PEERS, SOCKET_IO, Clients, Peer, processes
from benchmarks.cluster.measures import ROOT, spread
from benchmarks.cluster.receivers import PATIENCE
from benchmarks.cluster.redis_server import RedisServer

# The pause is so long that no peer has a message wait for the one before.
NODES, CLIENTS, MESSAGES, PAUSE = 3, 1_000, 10, 2.0
PLAIN, KEPT = Peer(("wsc_node.py", "plain")), Peer(("wsc_node.py", "kept"))
OF_USERS = Peer(("wsc_node.py", "users"), "/ws?user=u{}")
SOCKETIO = Peer(("socketio_node.py",), SOCKET_IO, "socket.io")
# The nodes, and what the worker does.
WAYS: dict[str, tuple[Peer, str]] = {
    "Publisher, plain room": (PLAIN, "wsc"),
    "Publisher, kept room": (KEPT, "wsc"),
    "Publisher, a batch of 1,000 users": (OF_USERS, "wsc-users"),
    "python-socketio, `RedisManager.emit`": (SOCKETIO, "socketio"),
}


class Timed(Clients):
    """Clients of several nodes, who note how long each message took.

    Attributes:
        milliseconds: of each message at each client.
    """

    def __init__(self, peer: Peer, ports: list[int], count: int) -> None:
        self.milliseconds: list[float] = []
        super().__init__(peer, ports, count)

    def _event(self, payload: bytes) -> int | str | None:
        now = time.monotonic_ns()
        at = payload.find(b"x" * 16) - 20
        if at < 0:
            return None
        self.milliseconds.append((now - int(payload[at : at + 20])) / 1e6)
        return 0


class Way:
    """One way: a server, nodes, clients, and a worker."""

    def __init__(self, stack: ExitStack, peer: Peer, way: str, clients: int) -> None:
        server = RedisServer()
        stack.callback(server.close)
        self._url = f"redis://127.0.0.1:{server.port}/0"
        nodes = stack.enter_context(processes(peer, server.port, NODES))
        stack.enter_context(worker(way, self._url, clients))
        self.clients = Timed(peer, [each.port for each in nodes], clients)
        stack.callback(self.clients.close)
        self._count = clients
        self._when_heard()

    def _when_heard(self) -> None:
        """Returns once the worker is there, and all clients hear it."""
        end = time.monotonic() + PATIENCE
        missing = self._count
        while missing:
            if time.monotonic() > end:
                raise SystemExit(f"{missing} clients do not hear the worker")
            self._send(1)
            missing = self.clients.receive(self._count)
            self.clients.listen(1.0)  # what else is under way

    def _send(self, count: int) -> None:
        from celery import Celery

        with Celery("bench", broker=self._url) as app:
            app.send_task("publish", (count, PAUSE))

    def measure(self, messages: int) -> tuple[float, float, int]:
        """The p50 and p99 in milliseconds, and the messages that are missing."""
        self.clients.milliseconds.clear()
        self._send(messages)
        missing = self.clients.receive(messages * self._count)
        found = sorted(self.clients.milliseconds)
        if not found:
            raise SystemExit("the clients do not hear the worker any more")
        return found[len(found) // 2], found[len(found) * 99 // 100], missing


@contextmanager
def worker(way: str, url: str, users: int) -> Iterator[None]:
    """A worker of Celery."""
    python = sys.executable if way != "socketio" else str(INSTALLED / "venv/bin/python")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR")
    command = [python, "-m", "celery", "-A", "celery_worker", "worker", "--pool=solo", *quiet]
    more = {"WAY": way, "BUS": url, "ROOM": "room", "USERS": str(users), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=PEERS, env=os.environ | more, stdin=subprocess.DEVNULL, stdout=sys.stderr
    )
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def from_celery(rounds: int, *, turn: float = 1.0) -> str:
    """A message from a Celery task to 1,000 clients on three hubs: milliseconds to each client."""
    clients, messages = max(30, int(CLIENTS * turn)), max(2, int(MESSAGES * turn))
    ways = {name: way for name, way in WAYS.items() if way[0].is_installed()}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    with ExitStack() as stack:
        made = {name: Way(stack, *way, clients) for name, way in ways.items()}
        for _ in range(rounds):
            for name, way in made.items():
                found[name].append(way.measure(messages))
    lines = ["| way | p50, ms | p99, ms | missing |", "| --- | --- | --- | --- |"]
    for name, values in found.items():
        middle, late, missing = zip(*values, strict=True)
        lines.append(f"| {name} | {spread(middle)} | {spread(late)} | {sum(missing)} |")
    return "\n".join(lines)
