"""The cost of a fan-out in one build of the package beside others, by turns: docs/performance.md.

    python benchmarks/experiments/fanout_walk.py --clients 1000 --rounds 9 TREE TREE ...

Each TREE is a checkout with its modules built in place, the first one what the others are compared
with. Every round starts a process for each, with all clients in it, over loopback; it times the
call of `hub.broadcast` and the turn of the flush, and says its fastest of many. `--apart` gives
each client an outbox of its own first, so that the walk and the plan go over all of them, as they
do where no batch can be. Prints the medians of the rounds, and ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import time
from statistics import median

from trees import measured

PASSES = 60
TEXT = "x" * 128
REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def measure(clients: int, apart: bool) -> dict[str, float]:
    """Nanoseconds a client: of the broadcast, and of the flush without and with its sends."""
    from wsc_fast import Hub, HubConfig

    hub = Hub(HubConfig(flush_budget=60.0, heartbeat_interval=3600.0, heartbeat_timeout=7200.0))
    await hub.start("127.0.0.1", 0)
    sockets = []
    for number in range(clients):
        sock = socket.create_connection(("127.0.0.1", hub.port))
        sock.sendall(REQUEST)
        sockets.append(sock)
        while hub.get_connected_clients() <= number:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)
    for sock in sockets:
        sock.recv(4096)
        sock.setblocking(False)
    if apart:
        hub._engine.fanout.batch_least = clients + 1
    walks, flushes = [], []
    junk = bytearray(8 << 20)
    for _ in range(PASSES):
        junk[::64] = bytes(len(junk) // 64)  # whatever else a server does between two broadcasts
        sent = hub.get_stats().frames_sent
        start = time.perf_counter_ns()
        hub.broadcast(TEXT)
        walked = time.perf_counter_ns()
        while hub.get_stats().frames_sent < sent + clients:
            hub._engine.fanout.flush()
        flushes.append(time.perf_counter_ns() - walked)
        walks.append(walked - start)
        await asyncio.sleep(0)
        for sock in sockets:
            try:
                while len(sock.recv(65536)) == 65536:
                    pass
            except BlockingIOError:
                pass
    for sock in sockets:
        sock.close()
    os._exit(print(json.dumps([min(walks) / clients, min(flushes) / clients]), flush=True) or 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trees", nargs="*")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--one", action="store_true", help="measure here; what a round starts")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.one:
        import uvloop

        uvloop.run(measure(options.clients, options.apart))
    arguments = ["--one", "--clients", str(options.clients), *["--apart"] * options.apart]
    figures = measured(__file__, arguments, options.trees, options.rounds)
    first = figures[options.trees[0]]
    print("| tree | part | ns a client | of the first | lowest to highest |")
    print("| --- | --- | --- | --- | --- |")
    for tree, runs in figures.items():
        for part, name in enumerate(("broadcast", "flush")):
            ratios = sorted(run[part] / other[part] for run, other in zip(runs, first, strict=True))
            print(
                f"| {tree} | {name} | {median(run[part] for run in runs):,.1f} "
                f"| {median(ratios):.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} |"
            )


if __name__ == "__main__":
    main()
