"""The gain of keeping freed PendingACKs and UserQueues for reuse: docs/performance.md.

    python benchmarks/experiments/freelist.py --rounds 9 TREE TREE ...

Each TREE is a checkout with its modules built in place, the first one what the others are compared
with: one as it is, one without the lines `@cython.freelist` of src_cy/pending.pyx. Every round
starts a process for each, against the `crowd` of benchmarks/delivery.py, which has to be built by
it before; 1,000 users acknowledge one message at a time. Prints round trips a second, per second of
CPU, and how often Python looked for garbage per 1,000 of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median

from trees import measured

HERE = Path(__file__).resolve().parent
CROWD = HERE.parent.parent / "build" / "bench" / "crowd"
USERS = 1_000


async def measure(seconds: float) -> None:
    """Round trips a second, per CPU second, and collections of each generation per 1,000."""
    from wsc_fast import ACKConfig, ACKMessage, Hub, Identity

    hub = Hub(authenticate=lambda request: Identity(request.query["id"], request.query["id"]))
    hub.enable_ack(ACKConfig(max_pending=1_000_000))
    await hub.start(port=0)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    crowd = await asyncio.create_subprocess_exec(
        *("taskset", "-c", str(cores[-1]), str(CROWD), "ack", str(hub.port), str(USERS)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert crowd.stdout is not None
    assert crowd.stdin is not None
    assert await crowd.stdout.readline() == b"ready\n"
    counting = False
    end = float("inf")

    async def converse(name: str) -> int:
        count = 0
        while time.perf_counter() < end:
            await hub.send_ack_message_to_user(name, ACKMessage(content="x" * 64))
            count += counting
        return count

    tasks = [asyncio.ensure_future(converse(str(number))) for number in range(USERS)]
    await asyncio.sleep(seconds / 2)
    counting = True
    before = [generation["collections"] for generation in gc.get_stats()]
    cpu, start = time.process_time(), time.perf_counter()
    end = start + seconds
    count = sum(await asyncio.gather(*tasks))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    after = [generation["collections"] for generation in gc.get_stats()]
    collections = [(late - early) / count * 1000 for late, early in zip(after, before, strict=True)]
    crowd.stdin.close()
    await crowd.wait()
    await hub.stop()
    print(json.dumps([count / wall, count / cpu, *collections]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trees", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--one", action="store_true", help="measure here; what a round starts")
    options = parser.parse_args()
    if options.one:
        import uvloop

        uvloop.run(measure(options.seconds))
        return
    arguments = ["--one", "--seconds", str(options.seconds)]
    figures = measured(__file__, arguments, options.trees, options.rounds)
    first = figures[options.trees[0]]
    print("| tree | a second | per CPU second | of the first | lowest to highest | collections |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tree, runs in figures.items():
        ratios = sorted(run[1] / other[1] for run, other in zip(runs, first, strict=True))
        rate, per_cpu, *collections = (median(column) for column in zip(*runs, strict=True))
        print(
            f"| {tree} | {rate:,.0f} | {per_cpu:,.0f} | {median(ratios):.3f} "
            f"| {ratios[0]:.3f} to {ratios[-1]:.3f} "
            f"| {', '.join(f'{value:.3f}' for value in collections)} |"
        )


if __name__ == "__main__":
    main()
