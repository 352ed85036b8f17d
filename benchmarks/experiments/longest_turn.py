"""The longest turns of a hub's loop, by the CPU time of its thread, while a crowd connects at once.

    PYTHONPATH=$PWD python benchmarks/experiments/longest_turn.py build/bench/loadgen

A task that never waits sees each turn of the loop, from its beginning to the next one's. The time
of other programs is not counted. Each line is one run: with Python's garbage collector,
without, and with what lives before the first connection frozen (`gc.freeze`).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import json
import os
import resource
import subprocess
import time

import uvloop
from own_server import serving

from wsc_fast import Hub, Identity

MOST = 5


async def serve(port: int, collector: str, names: bool) -> None:
    hub = Hub(authenticate=(lambda request: Identity("ann")) if names else None)
    turns: list[float] = [0.0] * MOST  # the longest, as a heap

    @hub.route("/turns")
    def longest(request: object) -> list[float]:
        found = sorted(turns, reverse=True)
        turns[:] = [0.0] * MOST
        return found

    await hub.start("127.0.0.1", port)
    if collector == "off":
        gc.disable()
    if collector == "frozen":
        gc.collect()
        gc.freeze()
    before = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        heapq.heappushpop(turns, now - before)
        before = now


def measure(loadgen: str, connections: int, collector: str, names: bool) -> list[float]:
    """The longest turns, in milliseconds."""
    options = [collector, str(int(names))]
    with serving(__file__, lambda port: [loadgen, "--serve", str(port), *options]) as (_, port):
        url = f"http://127.0.0.1:{port}/turns"
        subprocess.run(["curl", "-sS", url], check=True, capture_output=True)
        core = max(os.sched_getaffinity(0))
        command = ["taskset", "-c", str(core), loadgen, "idle", "--port", str(port)]
        command += ["--connections", str(connections), "--connect-concurrency", str(connections)]
        ran = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, check=True)
        assert json.loads(ran.stdout.partition(b"\n")[2])["ok"]
        found = subprocess.run(["curl", "-sS", url], check=True, capture_output=True)
        return [turn * 1000 for turn in json.loads(found.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loadgen")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--serve", nargs=3, help="be the server; what a round starts")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        port, collector, names = options.serve
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(int(port), collector, names == "1"))
    print("| authenticate | garbage collector | longest turns, ms |")
    print("| --- | --- | --- |")
    for names in (False, True):
        for collector in ("off", "on", "frozen"):
            for _ in range(options.rounds):
                found = measure(options.loadgen, options.connections, collector, names)
                turns = ", ".join(f"{turn:.1f}" for turn in found)
                print(f"| {'plain' if names else 'none'} | {collector} | {turns} |")


if __name__ == "__main__":
    main()
