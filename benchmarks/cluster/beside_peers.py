"""The peers: CPU of a remote message, and messages lost in faults of the bus.

Each peer is a program in peers/, started twice: one process publishes, the other one, the node, has
the clients. Peers that are not installed are left out; `install` puts all of them into a folder of
their own under build/.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.cluster.measures import HERE, ROOT, spread
from benchmarks.cluster.receivers import PATIENCE, upgraded
from benchmarks.cluster.redis_server import RedisServer
from benchmarks.cluster.storm import AWARE, hello, masked

PEERS = HERE / "peers"
INSTALLED = ROOT / "build" / "bench" / "cluster-peers"
SOCKET_IO = "/socket.io/?EIO=4&transport=websocket"


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        program: in peers/, and its arguments behind the ports.
        path: of the upgrade; `{}` in it is the number of the client.
        dialect: of its clients: "plain", "wsc.1" or "socket.io".
    """

    program: tuple[str, ...]
    path: str = "/ws"
    dialect: str = "plain"

    def command(self, port: int, redis_port: int) -> list[str]:
        name, *more = self.program
        ours = sys.executable if name.startswith("wsc") else str(INSTALLED / "venv/bin/python")
        runner = "node" if name.endswith(".mjs") else ours
        # Node looks for its packages beside the program.
        folder = INSTALLED if name.endswith(".mjs") else PEERS
        return [runner, str(folder / name), str(port), str(redis_port), *more]

    def is_installed(self) -> bool:
        if self.program[0].startswith("wsc"):
            return True
        if self.program[0].endswith(".mjs"):
            there = (INSTALLED / "node_modules").exists() and shutil.which("node") is not None
            if there:
                shutil.copy(PEERS / self.program[0], INSTALLED)
            return there
        return (INSTALLED / "venv/bin/python").exists()


ALL = {
    "wsc_fast, plain room": Peer(("wsc_node.py", "plain")),
    "wsc_fast, kept room": Peer(("wsc_node.py", "kept")),
    "wsc_fast, plain room, aware clients": Peer(("wsc_node.py", "plain"), dialect="wsc.1"),
    "wsc_fast, kept room, aware clients": Peer(("wsc_node.py", "kept"), dialect="wsc.1"),
    "Socket.IO, redis-adapter": Peer(("socketio_node.mjs", "adapter"), SOCKET_IO, "socket.io"),
    "Socket.IO, redis-streams-adapter": Peer(
        ("socketio_node.mjs", "streams"), SOCKET_IO, "socket.io"
    ),
    "python-socketio, Redis manager": Peer(("socketio_node.py",), SOCKET_IO, "socket.io"),
    "channels_redis, pub/sub layer": Peer(("channels_node.py",)),
}


def install() -> None:
    """Installs the peers that are named in peers/, by pip and npm."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    python = INSTALLED / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", INSTALLED / "venv"], check=True)
    wanted = PEERS / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], check=True)
    if shutil.which("npm") is not None:
        shutil.copy(PEERS / "package.json", INSTALLED)
        npm = ["npm", "install", "--no-audit", "--no-fund"]
        subprocess.run(npm, cwd=INSTALLED, check=True)


# --- processes ---


class PeerProcess:
    """One process of a peer."""

    def __init__(self, peer: Peer, redis_port: int) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.process = subprocess.Popen(
            peer.command(self.port, redis_port),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=PEERS,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self._line("ready")

    def _line(self, expected: str = "") -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode().strip()
        if not line or expected not in line:
            raise ConnectionError(f"a process of the peer has ended: {line!r}")
        return line

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def emit(self, count: int, first: int) -> None:
        self._say(f"emit {count} {first}")
        self._line("emitted")

    def refused(self) -> set[int]:
        """The messages whose publisher was told of an error."""
        self._say("report")
        return set(json.loads(self._line()))

    def cpu(self) -> float:
        """CPU seconds of all threads."""
        spent = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
        return spent / 1e9

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def processes(peer: Peer, redis_port: int, count: int = 2) -> Iterator[list[PeerProcess]]:
    started: list[PeerProcess] = []
    try:
        for _ in range(count):
            started.append(PeerProcess(peer, redis_port))
        yield started
    finally:
        for each in started:
            each.close()


# --- clients ---


@dataclass
class Heard:
    """One client.

    Attributes:
        events: numbers of messages, and "notice" where it was told that some may be missing.
    """

    sock: socket.socket
    rest: bytes = b""
    events: list[int | str] = field(default_factory=list)


def frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of frames of a server, and the bytes that are left."""
    found, at = [], 0
    while at + 2 <= len(data):
        size, start = data[at + 1] & 127, at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        if start + size > len(data) or start > len(data):
            break
        found.append(data[start : start + size])
        at = start + size
    return found, data[at:]


class Clients:
    """Some clients, which write down what they hear.

    Args:
        peer: whose dialect they speak.
        ports: of the nodes, which have the clients in turn.
        count: of clients.
    """

    def __init__(self, peer: Peer, ports: list[int], count: int) -> None:
        self._peer = peer
        self._poll = select.epoll()
        self.clients: dict[int, Heard] = {}
        self.messages = 0
        for number in range(count):
            self._open(ports[number % len(ports)], number)

    def _open(self, port: int, number: int) -> None:
        dialect = self._peer.dialect
        headers = AWARE if dialect == "wsc.1" else ""
        sock, rest = upgraded(port, self._peer.path.format(number), headers)
        if dialect == "wsc.1":
            sock.sendall(hello({}))
        if dialect == "socket.io":
            sock.sendall(masked(b"40"))
        client = Heard(sock, rest)
        self.clients[sock.fileno()] = client
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def listen(self, seconds: float) -> None:
        """Writes down what comes within this time, at least once."""
        end = time.monotonic() + seconds
        while True:
            for number, _ in self._poll.poll(max(0.0, end - time.monotonic())):
                self._read(self.clients[number])
            if time.monotonic() >= end:
                return

    def receive(self, messages: int) -> int:
        """Returns once so many more have come to all of them together; how many do not come."""
        wanted = self.messages + messages
        while self.messages < wanted:
            ready = self._poll.poll(PATIENCE / 2)
            if not ready:
                break
            for number, _ in ready:
                self._read(self.clients[number])
        return wanted - self.messages

    def _read(self, client: Heard) -> None:
        data = client.sock.recv(1 << 18)
        if not data:
            client.events.append("notice")
            self._poll.unregister(client.sock.fileno())
            client.sock.close()
            return
        payloads, client.rest = frames(client.rest + data)
        for payload in payloads:
            event = self._event(payload)
            if event is not None:
                client.events.append(event)
                self.messages += event != "notice"

    def _event(self, payload: bytes) -> int | str | None:
        if self._peer.dialect == "wsc.1":
            head, _, payload = payload.partition(b"\n")
            if b'"gap"' in head or b'"recovered":false' in head:
                return "notice"
        elif self._peer.dialect == "socket.io":
            if not payload.startswith(b'42["m","'):
                return None
            payload = payload[8:]
        return int(payload[:8]) if len(payload) >= 100 else None

    def close(self) -> None:
        self._poll.close()
        for client in self.clients.values():
            client.sock.close()


def when_joined(publisher: PeerProcess, clients: Clients) -> None:
    """Returns once all clients hear what is published."""
    end = time.monotonic() + PATIENCE
    while True:
        before = clients.messages
        publisher.emit(1, 0)
        clients.listen(0.2)
        if clients.messages - before == len(clients.clients):
            break
        if time.monotonic() > end:
            raise SystemExit("the clients of a peer do not hear")
    for client in clients.clients.values():
        client.events.clear()


# --- CPU ---

BURST = 32


def cpu(rounds: int, *, turn: float = 1.0) -> str:
    """CPU of the node for a remote message, of peers."""
    found: dict[tuple[str, int], list[float]] = {}
    names = [name for name, peer in ALL.items() if peer.is_installed()]
    if turn < 1:
        names = [name for name in names if "aware" not in name]
    for count, bursts in ((1, 40), (100, 10)):
        with ExitStack() as stack:
            ways = {}
            for name in names:
                # A server for each: peers of one name would hear each other.
                server = RedisServer()
                stack.callback(server.close)
                ways[name] = _cpu_way(stack, name, server, count)
            for _ in range(rounds):
                for name, way in ways.items():
                    spent = way(max(1, int(bursts * turn)))
                    found.setdefault((name, count), []).append(spent)
    lines = [
        "| | room of 1, CPU us a message | wsc_fast = 1 | room of 100, CPU us a message "
        "| wsc_fast = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in names:
        cells = []
        for count in (1, 100):
            values, base = found[name, count], found["wsc_fast, plain room", count]
            cells += [spread(values), spread([a / b for a, b in zip(values, base, strict=True)])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cpu_way(
    stack: ExitStack, name: str, server: RedisServer, count: int
) -> Callable[[int], float]:
    peer = ALL[name]
    publisher, node = stack.enter_context(processes(peer, server.port))
    clients = Clients(peer, [node.port], count)
    stack.callback(clients.close)
    when_joined(publisher, clients)

    def way(bursts: int) -> float:
        before = node.cpu()
        for _ in range(bursts):
            publisher.emit(BURST, 0)
            lost = clients.receive(BURST * count)
            if lost:
                print(f"{name}: {lost} messages did not come to {count}", file=sys.stderr)
        return (node.cpu() - before) * 1e6 / (bursts * BURST)

    way(2)
    return way


# --- faults ---

MESSAGES, PAUSE, CLIENTS = 1_000, 0.01, 10
# Seconds for which a client waits for more, at least, after the last message was published.
SILENCE = 8.0


def kills(server: RedisServer, seconds: float) -> None:
    _repeat(seconds, lambda: server.kill_connections("pubsub"))


def all_kills(server: RedisServer, seconds: float) -> None:
    _repeat(seconds, lambda: server.kill_connections("pubsub", "normal"))


def _repeat(seconds: float, action: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action()
        time.sleep(0.1)


def paused(server: RedisServer, seconds: float) -> None:
    time.sleep(seconds * 0.2)
    server.pause(min(2.0, seconds * 0.2))


def restarted(server: RedisServer, seconds: float) -> None:
    time.sleep(seconds * 0.2)
    server.restart()


FAULTS: dict[str, Callable[[RedisServer, float], None]] = {
    "`CLIENT KILL TYPE pubsub` every 100 ms": kills,
    "all connections killed every 100 ms": all_kills,
    "Redis stopped for 2 s": paused,
    "Redis restarted with its data": restarted,
}


def faults(rounds: int, *, turn: float = 1.0) -> str:
    """Messages of peers that are lost in faults of the bus."""
    lines = [
        "| fault | | published | publisher told of an error | deliveries due | missing "
        "| missing without notice | doubled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = [name for name, peer in ALL.items() if peer.is_installed()]
    for fault, action in FAULTS.items():
        for name in names:
            if turn < 1 and (action is not kills or not name.startswith("wsc_fast, kept")):
                continue
            result = _fault(ALL[name], action, max(50, int(MESSAGES * turn)), SILENCE * turn)
            lines.append(f"| {fault} | {name} | {' | '.join(f'{n:,}' for n in result)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _fault(
    peer: Peer, action: Callable[[RedisServer, float], None], messages: int, silence: float
) -> tuple[int, ...]:
    server = RedisServer("--appendonly", "yes")
    try:
        with processes(peer, server.port) as (publisher, node):
            clients = Clients(peer, [node.port], CLIENTS)
            when_joined(publisher, clients)
            failing = Thread(target=action, args=(server, messages * PAUSE))
            failing.start()
            start = time.monotonic()
            published = 0
            while published < messages:
                published += 1
                try:
                    publisher.emit(1, published)
                except (ConnectionError, BrokenPipeError):
                    published -= 1
                    break  # the process has ended
                clients.listen(max(0.0, start + published * PAUSE - time.monotonic()))
            failing.join()
            _until_silent(clients, silence)
            try:
                refused = publisher.refused()
            except (ConnectionError, BrokenPipeError):
                refused = set()
            clients.close()
            return _judge(list(clients.clients.values()), published, refused)
    finally:
        server.close()


def _until_silent(clients: Clients, seconds: float) -> None:
    silent = 0.0
    while silent < seconds:
        before = clients.messages
        clients.listen(0.5)
        silent = 0.0 if clients.messages != before else silent + 0.5


def _judge(clients: Sequence[Heard], published: int, refused: set[int]) -> tuple[int, ...]:
    accepted = set(range(1, published + 1)) - refused
    missing = silent = doubled = 0
    for client in clients:
        numbers = [event for event in client.events if event != "notice"]
        lost = accepted - set(numbers)
        missing += len(lost)
        doubled += len(numbers) - len(set(numbers))
        silent += len(lost - _noticed(client.events, published))
    return published, len(refused), len(accepted) * len(clients), missing, silent, doubled


def _noticed(events: Sequence[Any], published: int) -> set[int]:
    """The numbers between two messages where a notice stood, and those after the last such one."""
    found: set[int] = set()
    last, told = 0, False
    for event in [*events, published + 1]:
        if event == "notice":
            told = True
            continue
        if told:
            found.update(range(last + 1, event))
        last, told = event, False
    return found
