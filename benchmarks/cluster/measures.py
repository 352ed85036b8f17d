"""The figures of one hub among several: remote messages, publishes, reconnects, memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cluster import scenarios
from benchmarks.cluster.receivers import Receivers, upgraded
from benchmarks.cluster.redis_server import RedisServer
from benchmarks.cluster.storm import AWARE, hello
from benchmarks.gate.run import count
from wsc_fast.bus.redis.commands import Names, command

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEXT = b"x" * 128
FRAME = 4 + len(TEXT)
NAMES = Names(b"wsc:")
Values = list[float]


class NodeProcess:
    """The process of node.py, and the connection of commands to it."""

    def __init__(self, url: str, tree: Path = ROOT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "node.py", url],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the node does not start")
        self.ports: dict[str, int] = json.loads(line)
        self._control = socket.create_connection(("127.0.0.1", self.ports["control"]))
        self._control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def tell(self, *words: object) -> None:
        self._control.sendall("\t".join(map(str, words)).encode())

    def ask(self, *words: object) -> Any:
        self.tell(*words)
        answer = b""
        while not answer.endswith(b"\n"):
            data = self._control.recv(65536)
            if not data:
                raise SystemExit("the node has gone")
            answer += data
        value = json.loads(answer)
        if isinstance(value, str) and value != "ok":
            raise SystemExit(f"the node: {value}")
        return value

    def cpu(self) -> tuple[float, float]:
        user, system = self.ask("cpu")
        return user, system

    def close(self) -> None:
        self._control.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def node_on(server: RedisServer) -> Iterator[NodeProcess]:
    node = NodeProcess(server.url)
    try:
        yield node
    finally:
        node.close()


def envelope(count: int) -> bytes:
    """An envelope of another hub, with so many messages of a plain room."""
    entry = b"- t 0 0 %d\n%b" % (len(TEXT), TEXT)
    return b"wsc1 p another - %d\n%b" % (count, entry * count)


def members(port: int, room: str, count: int) -> Receivers:
    return Receivers([upgraded(port, f"/ws?room={room}")[0] for _ in range(count)])


def when_heard(server: RedisServer, channel: bytes) -> None:
    """Returns once the node has subscribed."""
    while server.ask(b"PUBLISH", channel, b"wsc1 p another - 1\n- t 0 0 0\n") == ":0\r\n":
        pass


# --- a remote message beside a local one ---

# Messages of one turn of the loop, and how many a way has before the next way's turn.
ALONE, STREAM = 1, 32
FLOOD = 512
TURN = {
    ALONE: {1: 600, 100: 200, 1000: 30},
    STREAM: {1: 12_800, 100: 1_600, 1000: 320},
    FLOOD: {1: 40_960, 100: 4_096, 1000: 512},
}


class Remote:
    """One room with members on both hubs of a node, and the ways of messages into it."""

    def __init__(self, server: RedisServer, node: NodeProcess, count: int) -> None:
        self._server, self._node, self._count = server, node, count
        self._room = f"room {count}".replace(" ", "-")
        self._channel = NAMES.channel(self._room)
        self._local = members(node.ports["local"], self._room, count)
        self._remote = members(node.ports["bus"], self._room, count)
        when_heard(server, self._channel)
        self._remote_came(1, 2)

    def _remote_came(self, messages: int, size: int = FRAME) -> None:
        self._remote.receive(messages * size * self._count)

    def local(self, burst: int) -> None:
        self._node.tell("local", burst, self._room)
        self._local.receive(burst * FRAME * self._count)

    def single(self, burst: int) -> None:
        self._server.send(command(b"PUBLISH", self._channel, envelope(1)) * burst)
        self._remote_came(burst)
        self._server.discard(burst)

    def neighbours(self, burst: int) -> None:
        """A hub puts up to 64 messages into an envelope."""
        size = min(burst, 64)
        data = command(b"PUBLISH", self._channel, envelope(size))
        self._server.send(data * (burst // size))
        self._remote_came(burst)
        self._server.discard(burst // size)

    def spent(self, way: Callable[[int], None], burst: int, messages: int) -> tuple[float, float]:
        """CPU microseconds of a message, user and system."""
        before = self._node.cpu()
        for _ in range(messages // burst):
            way(burst)
        after = self._node.cpu()
        return tuple((b - a) * 1e6 / messages for a, b in zip(before, after, strict=True))  # type: ignore[return-value]

    def close(self) -> None:
        self._local.close()
        self._remote.close()


def remote(rounds: int, *, turn: float = 1.0) -> str:
    """CPU of a remote message beside that of a local one."""
    lines = [
        "| room | messages in a turn | way | CPU us a message | user | system | local = 1 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    server = RedisServer()
    try:
        with node_on(server) as node:
            for count in (1, 100, 1000) if turn >= 1 else (1, 100):
                for burst in TURN:
                    lines += _remote_rows(server, node, count, burst, rounds, turn)
    finally:
        server.close()
    return "\n".join(lines)


def _remote_rows(
    server: RedisServer, node: NodeProcess, count: int, burst: int, rounds: int, turn: float
) -> list[str]:
    room = Remote(server, node, count)
    ways = {"local": room.local, "remote": room.single}
    if burst > 1:
        ways["remote, neighbours in envelopes"] = room.neighbours
    messages = max(burst, int(TURN[burst][count] * turn) // burst * burst)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for way in ways.values():
        room.spent(way, burst, burst)
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(room.spent(ways[name], burst, messages))
    room.close()
    return [_remote_row(count, burst, way, found) for way in ways]


def _remote_row(
    count: int, burst: int, way: str, found: dict[str, list[tuple[float, float]]]
) -> str:
    own, base = found[way], found["local"]
    total = [sum(each) for each in own]
    factors = [sum(a) / sum(b) for a, b in zip(own, base, strict=True)]
    # The kernel divides CPU time by samples, so that only sums of many tell.
    user, system = (sum(each[part] for each in own) / len(own) for part in (0, 1))
    return (
        f"| {count:,} | {burst} | {way} | {spread(total)} | {user:.2f} | {system:.2f} "
        f"| {spread(factors)} |"
    )


def spread(values: Sequence[float]) -> str:
    """The median, and the quartiles."""
    ordered = sorted(values)
    if not ordered:
        return "-"
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    return f"{median(ordered):.2f} ({low:.2f} to {high:.2f})"


# --- messages a second into one node ---


def rate(rounds: int, *, turn: float = 1.0) -> str:
    """Messages a second of CPU, from Redis to the socket of one client, beside redis-py's."""
    server = RedisServer()
    burst = FLOOD
    found: dict[str, Values] = {}
    try:
        with node_on(server) as node:
            raw = members(node.ports["local"], "raw", 1)
            node.ask("redis-py", "raw", "raw")
            room = Remote(server, node, 1)

            def by_redis_py(burst: int) -> None:
                server.send(command(b"PUBLISH", b"raw", TEXT) * burst)
                raw.receive(burst * FRAME)
                server.discard(burst)

            ways = {
                "RedisBus, single messages": (room.single, 40),
                "RedisBus, 64 in an envelope": (room.neighbours, 40),
                "redis-py, and `broadcast_to_room` for each": (by_redis_py, 8),
            }
            found = {way: [] for way in ways}
            for way, _ in ways.values():
                room.spent(way, burst, burst)
            for _ in range(rounds):
                for name, (way, bursts) in ways.items():
                    messages = burst * max(1, int(bursts * turn))
                    found[name].append(sum(room.spent(way, burst, messages)))
    finally:
        server.close()
    base = found["redis-py, and `broadcast_to_room` for each"]
    lines = [
        "| way | CPU us a message | a second of CPU | redis-py = 1 |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in found.items():
        factors = [b / a for a, b in zip(values, base, strict=True)]
        lines.append(
            f"| {name} | {spread(values)} | {1e6 / median(values):,.0f} | {spread(factors)} |"
        )
    return "\n".join(lines)


# --- kept publishes ---


def publish(rounds: int, *, turn: float = 1.0) -> str:
    """CPU of a node for a kept publish; the rooms have no members on it."""
    ways: dict[str, tuple[tuple[object, ...], int]] = {
        "`await hub.publish`, one after the other": (("publish", 1), 1_000),
        "`await hub.publish` in 100 tasks": (("publish", 100), 5_000),
        "`await hub.publish` in 1,000 tasks": (("publish", 1000), 20_000),
        "`hub.broadcast_to_room`, without waiting": (("kept",), 10_000),
    }
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    server = RedisServer()
    try:
        with node_on(server) as node:
            for _ in range(rounds + 1):
                for name, ((call, *tasks), count) in ways.items():
                    messages = max(2 * ROOMS, int(count * turn))
                    before, redis = node.cpu(), server_cpu(server)
                    node.ask(call, messages, *tasks)
                    spent = sum(node.cpu()) - sum(before)
                    found[name].append(
                        (spent * 1e6 / messages, (server_cpu(server) - redis) * 1e6 / messages)
                    )
    finally:
        server.close()
    lines = ["| way | CPU us of the node | CPU us of Redis |", "| --- | --- | --- |"]
    for name, values in found.items():
        node_part, redis_part = zip(*values[1:], strict=True)
        lines.append(f"| {name} | {spread(node_part)} | {spread(redis_part)} |")
    return "\n".join(lines)


def server_cpu(server: RedisServer) -> float:
    values = dict(
        line.split(":") for line in server.ask(b"INFO", b"cpu").splitlines() if ":" in line
    )
    return float(values["used_cpu_user"]) + float(values["used_cpu_sys"])


# --- a storm of reconnects ---

CLIENTS, ROOMS, MISSED = 10_000, 100, 20


def storm(rounds: int, *, turn: float = 1.0) -> str:
    """Aware clients that reconnect at once, with 20 missed messages each."""
    lines = [
        "| clients | recovered | seconds, half of them | seconds, all | reads of the bus "
        "| CPU s of the node | of the clients |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    clients = max(ROOMS, int(CLIENTS * turn))
    found = [_storm(clients) for _ in range(max(1, rounds // 3))]
    for each in found:
        lines.append(
            f"| {clients:,} | {each['recovered']:,} | {each['half']:.2f} | {each['all']:.2f} "
            f"| {each['reads']} | {each['node']:.2f} | {each['cpu']:.2f} |"
        )
    return "\n".join(lines)


def _storm(clients: int) -> dict[str, Any]:
    """One storm: a node has clients in all rooms, and is killed; they come to another one."""
    server = RedisServer()
    try:
        with node_on(server) as node:
            positions = _positions(node)
            node.ask("kept", ROOMS * MISSED)
        with node_on(server) as node:
            calls, before = server.calls("evalsha"), sum(node.cpu())
            arguments = [str(node.ports["bus"]), str(clients), json.dumps(positions)]
            process = subprocess.Popen(
                [sys.executable, HERE / "storm.py", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the clients have failed")
            result: dict[str, Any] = json.loads(line)
            result["reads"] = server.calls("evalsha") - calls
            result["node"] = sum(node.cpu()) - before
            counters = node.ask("bus")
            assert counters["recovered"] == result["recovered"] == clients, counters
            process.kill()
            process.wait()
            return result
    finally:
        server.close()


def _positions(node: NodeProcess) -> dict[str, str]:
    """By room, the position of a client that has come for the first time."""
    found = {}
    for number in range(ROOMS):
        room = f"kept-{number}"
        sock, data = upgraded(node.ports["bus"], f"/ws?room={room}", AWARE)
        sock.sendall(hello({}))
        while b'"first":true}' not in data:
            data += sock.recv(4096)
        sock.close()
        found[room] = json.loads(data[data.index(b"{") : data.index(b"}") + 1])["pos"]
    return found


# --- memory ---

IDLE = 10_000


def idle(rounds: int, *, turn: float = 1.0, base: Path | None = None) -> str:
    """Memory of an idle connection, without a bus and with one."""
    count = max(200, int(IDLE * turn))
    ways = {"a hub without a bus": (ROOT, ""), "a hub on a bus": (ROOT, "bus")}
    if base is not None:
        ways["before there was a bus"] = (base, "")
    found: dict[str, Values] = {way: [] for way in ways}
    server = RedisServer()
    try:
        for _ in range(max(1, rounds // 3)):
            for name, (tree, bus) in ways.items():
                found[name].append(_idle(tree, server.url if bus else "", count))
    finally:
        server.close()
    lines = ["| | bytes of an idle connection |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {bytes_of(found[name])} |" for name in ways])


def bytes_of(values: Sequence[float]) -> str:
    return f"{median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _idle(tree: Path, url: str, count: int) -> float:
    process = subprocess.Popen(
        [sys.executable, "-P", HERE / "idle.py", *([url] if url else [])],
        stdout=subprocess.PIPE,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    sockets = [upgraded(port, "/ws")[0] for _ in range(200)]
    before = resident(process.pid)
    sockets += [upgraded(port, "/ws")[0] for _ in range(count)]
    grown = resident(process.pid) - before
    process.kill()
    process.wait()
    for sock in sockets:
        sock.close()
    return grown / count


def resident(pid: int) -> int:
    """VmRSS in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the hub has gone")


# --- instructions ---


def instructions(rounds: int, *, turn: float = 1.0) -> str:
    """Instructions in user space of a message, 32 in a turn, counted by valgrind."""
    names = list(scenarios.SCENARIOS)
    figures = count(names if turn >= 1 else names[:2], program=HERE / "scenarios.py")
    lines = ["| | instructions a message | local = 1 |", "| --- | --- | --- |"]
    for name, value in figures.items():
        local = figures.get("local, " + name.partition(", ")[2])
        lines.append(f"| {name} | {value:,.0f} | {f'{value / local:.2f}' if local else ''} |")
    return "\n".join(lines)
