"""A hub whose memory is measured, alone in its process.

    python benchmarks/cluster/idle.py [REDIS_URL]

It prints its port. It also runs on a tree from before there was a bus.
"""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop

from wsc_fast import Hub, Identity


async def main(url: str = "") -> None:
    hub = Hub(authenticate=lambda request: Identity(user_id="user"))
    if url:
        from wsc_fast import RedisBus

        hub = Hub(authenticate=lambda request: Identity(user_id="user"), bus=RedisBus(url))
    await hub.start("127.0.0.1", 0)
    print(hub.port, flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(*sys.argv[1:]))
