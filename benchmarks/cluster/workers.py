"""The costs and gains of several processes: `wsc-fast serve --workers N` for several N, in turns.

Each round starts each number of workers anew, once without a bus and once on a Redis of the
benchmark's own, and measures connecting, an echo, messages into rooms whose members are spread over
the workers, and memory. CPU is what the kernel has counted for the threads of the workers, in
nanoseconds. The load has a process of its own on the same cores: believe CPU before rates.

`costs` fits what the capacity model needs (capacity.py) to these figures, by least squares.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.cluster.measures import FRAME, NAMES, ROOT, spread
from benchmarks.cluster.receivers import Receivers, upgraded
from benchmarks.cluster.redis_server import RedisServer
from benchmarks.suite.machine import BUILD, build

HERE = Path(__file__).resolve().parent
NUMBERS = (1, 2, 3, 4)
BURSTS, SIZES = (1, 32), (12, 240)
IDLE, ECHOES, DELIVERIES = 4_000, 60_000, 60_000
COSTS = HERE / "capacity.json"
Figures = dict[str, float]


class Serving:
    """One `wsc-fast serve --workers N`, and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self.watching = psutil.Process(process.pid)
        self.workers = self.watching.children()

    def cpu(self) -> float:
        """CPU seconds of all workers."""
        return sum(
            int((task / "schedstat").read_text().split()[0]) / 1e9
            for worker in self.workers
            for task in Path(f"/proc/{worker.pid}/task").iterdir()
        )

    def memory(self) -> float:
        """MB of the workers; memory that several processes share counts once."""
        return sum(each.memory_full_info().pss for each in self.workers) / 1e6

    def connections(self) -> list[int]:
        """Counts the descriptors of each worker, of which a connection is one."""
        return [each.num_fds() for each in self.workers]


@contextmanager
def serving(
    number: int, redis: RedisServer | None, sock: socket.socket | None = None
) -> Iterator[Serving]:
    """Begins the command; its port is its own unless it is handed a listening socket."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "wsc_fast", "serve", "benchmarks.cluster.workers_app:hub"]
    words += ["--workers", str(number), "--drain", "0"]
    if redis is None:
        words.append("--no-bus")
    else:
        environment["BUS"] = redis.url
    more: dict[str, Any] = {}
    if sock is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words += ["--port", str(port)]
    else:
        port = sock.getsockname()[1]
        given = sock.fileno()
        words = ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *words]
        more = {"pass_fds": [3], "preexec_fn": lambda: os.dup2(given, 3)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=log, **more)
        try:
            while b"workers serve" not in _text(log):
                if process.poll() is not None:
                    raise SystemExit(_text(log).decode())
            yield Serving(process, port)
        finally:
            for each in (*psutil.Process(process.pid).children(), process):
                each.kill()
            process.wait()


def _text(log: Any) -> bytes:
    return os.pread(log.fileno(), 1 << 20, 0)


def load(mode: str, port: int, *options: object) -> dict[str, Any]:
    """One run of loadgen, which ends by itself."""
    words = [BUILD / "loadgen", mode, "--port", port, *options]
    ran = subprocess.run(
        list(map(str, words)), stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    _, _, result = ran.stdout.rpartition(b'{"ready": true}\n')  # said by `idle` before
    return dict(json.loads(result))


def framed(text: str) -> bytes:
    """A masked text frame of a client."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode()


# --- what is measured of one start ---


def connecting(served: Serving, turn: float) -> Figures:
    count = int(IDLE * turn)
    before = served.cpu()
    result = load("idle", served.port, "--connections", count)
    return {
        "connections a second": result["connections_per_second"],
        "CPU us a connection": (served.cpu() - before) * 1e6 / count,
    }


def echoing(served: Serving, turn: float) -> Figures:
    count = int(ECHOES * turn)
    options = ("--connections", 64, "--window", 8, "--warmup", 0, "--messages", count)
    before = served.cpu()
    result = load("echo", served.port, *options)
    return {
        "echoes a second": result["messages_per_second"],
        "CPU us an echo": (served.cpu() - before) * 1e6 / count,
    }


def in_rooms(served: Serving, redis: RedisServer, turn: float) -> Figures:
    """Messages into a room over the bus: of the CPU, of the workers and of Redis."""
    found: Figures = {}
    for size in SIZES:
        room = f"r{size}"
        sockets = [upgraded(served.port, "/ws")[0] for _ in range(size)]
        publisher, _ = upgraded(served.port, "/ws")
        for sock in sockets:
            sock.sendall(framed(f"join {room}") + framed("in"))
        members = Receivers(sockets)
        members.receive(4 * size)
        reached = _subscribed(redis, room, len(served.workers))
        found[f"workers reached, room of {size}"] = reached
        for burst in BURSTS:
            times = max(2, int(DELIVERIES * turn) // size // burst // (1 if burst > 1 else 8))
            with_burst = framed(f"publish {room} {burst}")
            for measured in (False, True):
                before, of_redis = served.cpu(), redis.cpu()
                for _ in range(times if measured else 2):
                    publisher.sendall(with_burst)
                    members.receive(burst * size * FRAME)
            label = f"room of {size}, {burst} in a turn"
            found[f"CPU us, {label}"] = (served.cpu() - before) * 1e6 / times / burst
            found[f"CPU us of Redis, {label}"] = (redis.cpu() - of_redis) * 1e6 / times / burst
        members.close()
        publisher.close()
    return found


def _subscribed(redis: RedisServer, room: str, most: int) -> int:
    """Counts the workers that hear a room: all, or as many as have not changed for a while."""
    found, since = 0, time.monotonic()
    while found < most and (not found or time.monotonic() - since < 0.3):
        answer = redis.ask(b"PUBSUB", b"NUMSUB", NAMES.channel(room))
        count = int(answer.rpartition(":")[2])
        if count != found:
            found, since = count, time.monotonic()
    return found


def start(number: int, turn: float) -> Figures:
    """One start without a bus, and one on Redis."""
    found: Figures = {}
    with serving(number, None) as served:
        found["MB of memory, without a bus"] = served.memory()
        found |= connecting(served, turn)
        found |= echoing(served, turn)
    redis = RedisServer()
    try:
        with serving(number, redis) as served:
            found["MB of memory, on Redis"] = served.memory()
            found |= in_rooms(served, redis, turn)
    finally:
        redis.close()
    return found


# --- the tables ---


def workers(rounds: int, *, turn: float = 1.0) -> str:
    """Several processes: `serve --workers` with 1 to 4 workers."""
    build()
    runs: dict[int, list[Figures]] = {number: [] for number in NUMBERS}
    for number in range(rounds):
        for each in NUMBERS[number % 4 :] + NUMBERS[: number % 4]:
            runs[each].append(start(each, turn))
    (BUILD / "workers.json").write_text(json.dumps(runs))
    lines = ["| | " + " | ".join(f"{number} workers" for number in NUMBERS) + " |"]
    lines.append("| --- |" + " --- |" * len(NUMBERS))
    for name in runs[1][0]:
        cells = [
            _cell([run[name] for run in runs[n]], [run[name] for run in runs[1]]) for n in runs
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    found = costs(runs)
    if turn == 1.0:
        COSTS.write_text(json.dumps(found, indent=4) + "\n")
    lines += ["", "| cost | us |", "| --- | --- |"]
    lines += [f"| {name} | {value:g} |" for name, value in found.items()]
    return "\n".join(lines).replace("1 workers", "1 worker")


def _cell(own: list[float], base: list[float]) -> str:
    ordered = sorted(own)
    quartile = len(ordered) // 4
    low, middle, high = map(_short, (ordered[quartile], median(own), ordered[-1 - quartile]))
    ratio = median(a / b for a, b in zip(own, base, strict=True))
    return f"{middle} ({low} to {high}); {ratio:.2f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def costs(runs: dict[int, list[Figures]]) -> dict[str, float]:
    """The costs that explain the figures best, in microseconds of CPU."""
    found: dict[str, float] = {}
    for burst in BURSTS:
        rows, of_workers, of_redis = [], [], []
        for figures in (each for several in runs.values() for each in several):
            for size in SIZES:
                label = f"room of {size}, {burst} in a turn"
                rows.append((1.0, figures[f"workers reached, room of {size}"], float(size)))
                of_workers.append(figures[f"CPU us, {label}"])
                of_redis.append(figures[f"CPU us of Redis, {label}"])
        names = ("sender", "worker", "recipient")
        for name, value in zip(names, fit(rows, of_workers), strict=True):
            found[f"{name}, {burst} in a turn"] = value
        names = ("Redis", "Redis, subscriber")
        for name, value in zip(names, fit([row[:2] for row in rows], of_redis), strict=True):
            found[f"{name}, {burst} in a turn"] = value
    every = [each for several in runs.values() for each in several]
    found["connection"] = median(each["CPU us a connection"] for each in every)
    found["echo"] = median(each["CPU us an echo"] for each in every)
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The factors, none below 0, whose sums of products come closest, relative to the values.

    By the normal equations, and Gauss's elimination; a factor that would be below 0 is left out.
    """
    places = list(range(len(rows[0])))
    while True:
        scaled = [[row[p] / value for p in places] for row, value in zip(rows, values, strict=True)]
        matrix = [
            [sum(row[a] * row[b] for row in scaled) for b in range(len(places))]
            + [sum(row[a] for row in scaled)]
            for a in range(len(places))
        ]
        for step, pivot in enumerate(matrix):
            for other in matrix:
                if other is not pivot:
                    factor = other[step] / pivot[step]
                    other[:] = [x - factor * y for x, y in zip(other, pivot, strict=True)]
        found = [row[-1] / row[place] for place, row in enumerate(matrix)]
        if min(found) >= 0:
            return [dict(zip(places, found, strict=True)).get(p, 0.0) for p in range(len(rows[0]))]
        del places[found.index(min(found))]


# --- who gets the connections ---


def shares(rounds: int, *, turn: float = 1.0) -> str:
    """The shares of the workers in 1,000 connections."""
    build()
    count = int(1000 * turn)
    runs: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(rounds):
        for number in (2, 4):
            with serving(number, None) as served:
                for pace in PACES:
                    key = ("a socket for each", number, pace)
                    runs[key].append(_shares(served, count, pace))
            with (
                socket.create_server(("127.0.0.1", 0)) as sock,
                serving(number, None, sock) as served,
            ):
                for pace in PACES:
                    runs["one socket for all", number, pace].append(_shares(served, count, pace))
    lines = ["| sockets | workers | connecting | the least, % of an even share | the most |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for (way, number, pace), found in runs.items():
        least, most = zip(*found, strict=True)
        lines.append(f"| {way} | {number} | {pace} | {spread(least)} | {spread(most)} |")
    return "\n".join(lines)


PACES = ("one after the other", "64 at a time")


def _shares(served: Serving, count: int, pace: str) -> tuple[float, float]:
    """The least and the largest share of a worker, in % of an even one."""
    before = served.connections()
    at_once = 64 if pace.startswith("64") else 1
    words = [BUILD / "loadgen", "idle", "--port", served.port, "--connections", count]
    words += ["--connect-concurrency", at_once]
    with subprocess.Popen(
        list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as load:
        assert load.stdout is not None
        if b"ready" not in load.stdout.readline():
            raise SystemExit("not all of the connections were made")
        after = served.connections()
        load.communicate()
    while served.connections() != before:
        time.sleep(0.01)
    got = [b - a for a, b in zip(before, after, strict=True)]
    even = sum(got) / len(got)
    return min(got) / even * 100, max(got) / even * 100
