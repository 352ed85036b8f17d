"""The engine's own transport beside the loop's, by the CPU time of the server: docs/performance.md.

    python benchmarks/experiments/transport.py LOADGEN --rounds 5

LOADGEN is the compiled benchmarks/loadgen.c. Each round starts a server of each kind, one after the
other and in turned order. Prints messages a CPU second of the server, and the memory of an idle
connection; ratios are of the two runs of one round. CPU time is less troubled by other programs
than a rate is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
from statistics import median
from typing import Any

import uvloop
from own_server import serving

from wsc_fast import Hub

WAYS = ("hub", "loop")
ROWS = {
    "echo, window 1": ("echo", "--connections", "100", "--window", "1"),
    "echo, window 16": ("echo", "--connections", "100", "--window", "16"),
    "fan-out to 1,000, window 1": ("fanout", "--connections", "1000", "--window", "1"),
}
IDLE = 5_000


def serve(way: Any, mode: str, port: int) -> None:
    hub = Hub()
    answer = hub.broadcast if mode == "fanout" else None
    hub.on_message_received(
        lambda client, message: answer(message) if answer else client.send(message)
    )

    async def main() -> None:
        await hub.start("127.0.0.1", port, transport=way)
        await asyncio.Event().wait()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    uvloop.run(main())


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(loadgen: str, way: str, row: str) -> float:
    """Messages a CPU second, or the bytes of an idle connection."""
    mode, *options = ROWS.get(row, ("idle", "--connections", str(IDLE)))
    with serving(__file__, lambda port: [loadgen, "--serve", way, mode, str(port)]) as (
        server,
        port,
    ):
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), loadgen, mode]
        command += ["--port", str(port), "--server-pid", str(server.pid), *options]
        before = resident(server.pid)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as load:
            assert load.stdout is not None
            first = load.stdout.readline() if mode == "idle" else ""
            grown = resident(server.pid) - before
            result = json.loads(load.communicate()[0])
        assert result["ok"], (first, result)
        return (
            grown / IDLE if mode == "idle" else result["deliveries"] / result["server_cpu_seconds"]
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loadgen")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=3, help="be the server; what a round starts")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        way, mode, port = options.serve
        serve(way, mode, int(port))
    print("| | hub | loop | hub, of loop |")
    print("| --- | --- | --- | --- |")
    for row in (*ROWS, "bytes of an idle connection"):
        runs: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in WAYS[:: 1 if number % 2 else -1]:
                runs[way].append(measure(options.loadgen, way, row))
        ratios = sorted(own / other for own, other in zip(runs["hub"], runs["loop"], strict=True))
        middle = {way: f"{median(runs[way]):,.0f}" for way in WAYS}
        print(
            f"| {row} | {middle['hub']} | {middle['loop']} "
            f"| {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
