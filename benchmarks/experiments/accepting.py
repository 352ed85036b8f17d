"""The cost of connecting: the engine's own transport beside the loop's: docs/performance.md.

    python benchmarks/experiments/accepting.py LOADGEN --rounds 9

`own` accepts up to 64 connections in a turn of the loop, and reads each at once. `libuv` is the hub
on uvloop's own transports: one connection in a turn of the loop. `bare` is no hub but what uvloop
itself needs: its transports, and a protocol that answers whatever comes with a 101.
LOADGEN is the compiled benchmarks/loadgen.c. Each round starts a server for each way, once for
connections made 64 at a time and once for all at the same moment. Prints connections a second and
how long one waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
from statistics import median
from typing import Any, ClassVar

import uvloop
from own_server import serving

from wsc_fast import Hub
from wsc_fast.upgrade.answers import switching_protocols

WAYS = ("own", "libuv", "bare")


class Bare(asyncio.BufferedProtocol):
    """Of a request it looks at the key alone."""

    open: ClassVar[set[Bare]] = set()
    room = memoryview(bytearray(65536))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.open.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        _, found, rest = bytes(self.room[:nbytes]).partition(b"Sec-WebSocket-Key: ")
        if found:
            self.transport.write(switching_protocols(rest[:24].decode(), {}))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)


def serve(way: str, port: int) -> None:
    async def main() -> None:
        if way == "bare":
            loop = asyncio.get_running_loop()
            server = await loop.create_server(Bare, "127.0.0.1", port, backlog=4096)
            await server.serve_forever()
        hub = Hub()
        await hub.start("127.0.0.1", port, transport="hub" if way == "own" else "loop")
        await asyncio.Event().wait()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def measure(loadgen: str, way: str, connections: int, at_once: int) -> dict[str, float]:
    with serving(__file__, lambda port: [loadgen, "--serve", way, str(port)]) as (server, port):
        core = max(os.sched_getaffinity(0))
        command = ["taskset", "-c", str(core), loadgen, "idle", "--port", str(port)]
        command += ["--connections", str(connections), "--connect-concurrency", str(at_once)]
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        result = json.loads(ran.stdout.partition(b"\n")[2])
        assert result["ok"], result
        with open(f"/proc/{server.pid}/stat") as stat:
            ticks = sum(int(field) for field in stat.read().rpartition(") ")[2].split()[11:13])
        return {
            "rate": result["connections_per_second"],
            "p50": result["connect_us"]["p50"] / 1000,
            "p99": result["connect_us"]["p99"] / 1000,
            "cpu": ticks / os.sysconf("SC_CLK_TCK"),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loadgen")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--serve", nargs=2, help="be the server; what a round starts")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
    print("| at once | way | a second | of libuv | lowest to highest | p50, ms | p99 | CPU, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for at_once in (64, options.connections):
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in WAYS[:: 1 if number % 2 else -1]:
                runs[way].append(measure(options.loadgen, way, options.connections, at_once))
        for way in WAYS:
            pairs = zip(runs[way], runs["libuv"], strict=True)
            ratios = sorted(run["rate"] / other["rate"] for run, other in pairs)
            middle = {key: median(run[key] for run in runs[way]) for key in runs[way][0]}
            print(
                f"| {at_once:,} | {way} | {middle['rate']:,.0f} | {median(ratios):.2f} "
                f"| {ratios[0]:.2f} to {ratios[-1]:.2f} | {middle['p50']:,.1f} "
                f"| {middle['p99']:,.1f} | {middle['cpu']:.2f} |"
            )


if __name__ == "__main__":
    main()
