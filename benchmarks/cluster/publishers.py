"""Publishing from a process that has no clients, beside python-socketio's external emitter."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.cluster.beside_peers import INSTALLED, PEERS
from benchmarks.cluster.measures import ROOT, spread
from benchmarks.cluster.redis_server import RedisServer

WAYS = {
    "python-socketio, `RedisManager.emit`": ("socketio", 1.0),
    "Publisher, plain room": ("wsc:plain", 1.0),
    "Publisher, kept room": ("wsc:kept:1", 1.0),
    "Publisher, plain room, batches of 1,000": ("wsc-batch:plain", 10.0),
    "Publisher, kept room, batches of 1,000": ("wsc-batch:kept:1", 10.0),
    "python-socketio, `AsyncRedisManager.emit` in 100 tasks": ("socketio-async", 0.5),
    "AsyncPublisher, plain room, in 100 tasks": ("wsc-async:plain", 2.0),
    "AsyncPublisher, kept room, in 100 tasks": ("wsc-async:kept:1", 2.0),
}
COUNT = 4000


def publishers(rounds: int, *, turn: float = 1.0) -> str:
    """Publishing without a hub."""
    python = INSTALLED / "venv/bin/python"
    ways = {name: way for name, way in WAYS.items() if python.exists() or way[0].startswith("wsc")}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    server = RedisServer()
    try:
        for _ in range(rounds):
            for name, (way, share) in ways.items():
                count = max(1000, int(COUNT * share * turn))
                seconds, cpu = _run(way, server.port, count)
                found[name].append((seconds / count * 1e6, cpu / count * 1e6))
    finally:
        server.close()
    lines = ["| way | us a message | CPU us of the publisher | messages a second |"]
    lines.append("| --- | --- | --- | --- |")
    for name, values in found.items():
        clock, cpu_us = [each[0] for each in values], [each[1] for each in values]
        a_second = 1e6 / sorted(clock)[len(clock) // 2]
        lines.append(f"| {name} | {spread(clock)} | {spread(cpu_us)} | {a_second:,.0f} |")
    return "\n".join(lines)


def _run(way: str, port: int, count: int) -> tuple[float, float]:
    program = sys.executable if way.startswith("wsc") else str(INSTALLED / "venv/bin/python")
    done = subprocess.run(
        [program, PEERS / "publishing.py", way, str(port), str(count)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    seconds, cpu = map(float, done.stdout.split())
    return seconds, cpu
