"""Publishes messages without a server, one way or another: `publishing.py WAY REDIS_PORT COUNT`.

Prints the seconds, and the seconds of CPU, of the messages behind the first ones.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

WARM, TASKS, BATCH, PAYLOAD = 100, 100, 1000, "x" * 128
KEEP = {"kept:*": (100, 300.0)}


def blocking(publish: Callable[[int], object], count: int) -> None:
    for number in range(WARM):
        publish(number)
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        publish(number)
    print(time.perf_counter() - began, time.process_time() - cpu)


async def awaiting(publish: Callable[[int], object], count: int) -> None:
    async def some(numbers: range) -> None:
        for number in numbers:
            await publish(number)  # type: ignore[misc]

    async def all_of(total: int) -> None:
        await asyncio.gather(*(some(range(task, total, TASKS)) for task in range(TASKS)))

    await all_of(TASKS)
    began, cpu = time.perf_counter(), time.process_time()
    await all_of(count)
    print(time.perf_counter() - began, time.process_time() - cpu)


def socketio_blocking(port: int, count: int) -> None:
    import socketio

    manager = socketio.RedisManager(f"redis://127.0.0.1:{port}/0", write_only=True)
    blocking(lambda number: manager.emit("message", PAYLOAD, room="r"), count)


def socketio_awaiting(port: int, count: int) -> None:
    import socketio

    manager = socketio.AsyncRedisManager(f"redis://127.0.0.1:{port}/0", write_only=True)
    asyncio.run(awaiting(lambda number: manager.emit("message", PAYLOAD, room="r"), count))


def wsc_blocking(port: int, count: int, room: str) -> None:
    from wsc_fast.publish import Publisher

    with Publisher(f"redis://127.0.0.1:{port}/0", keep=KEEP) as publisher:
        blocking(lambda number: publisher.room(room, PAYLOAD), count)


def wsc_batch(port: int, count: int, room: str) -> None:
    from wsc_fast.publish import Publisher

    with Publisher(f"redis://127.0.0.1:{port}/0", keep=KEEP) as publisher:
        began = cpu = 0.0
        for number in range(1 + count // BATCH):
            with publisher.batch() as batch:
                for _ in range(BATCH):
                    batch.room(room, PAYLOAD)
            if number == 0:
                began, cpu = time.perf_counter(), time.process_time()
        print(time.perf_counter() - began, time.process_time() - cpu)


def wsc_awaiting(port: int, count: int, room: str) -> None:
    from wsc_fast.publish import AsyncPublisher

    async def run() -> None:
        async with AsyncPublisher(f"redis://127.0.0.1:{port}/0", keep=KEEP) as publisher:
            await awaiting(lambda number: publisher.room(room, PAYLOAD), count)

    asyncio.run(run())


def main() -> None:
    way, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if way == "socketio":
        socketio_blocking(port, count)
    elif way == "socketio-async":
        socketio_awaiting(port, count)
    else:
        name, room = way.split(":", 1)
        {"wsc": wsc_blocking, "wsc-batch": wsc_batch, "wsc-async": wsc_awaiting}[name](
            port, count, room
        )


if __name__ == "__main__":
    main()
