"""The commands of the measuring process, which each peer takes on its standard input.

    emit COUNT FIRST    publish so many messages, numbered from FIRST on, to the room `room`
    report              print the numbers of the messages whose publisher was told of an error

A peer prints `ready` once it listens, and `emitted` after each `emit`.
"""

import asyncio
import json
import sys


def text(number):
    return f"{number:08d}".ljust(128, "x")


async def obey(publish, refused=None):
    """Takes commands until the input ends; `publish(text)` is awaited for each message.

    `refused` may be a list into which the peer puts numbers by itself.
    """
    refused = [] if refused is None else refused
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    tasks = set()

    async def one(number):
        try:
            await publish(text(number))
        except Exception:
            refused.append(number)

    while line := (await reader.readline()).split():
        if line[0] == b"report":
            if tasks:
                await asyncio.wait(tasks)
            print(json.dumps(refused), flush=True)
            continue
        count, first = int(line[1]), int(line[2])
        if count == 1:
            # A publisher that waits must not hold up the next message: a server has many.
            task = asyncio.create_task(one(first))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            # At once, as many publishers of a server would.
            await asyncio.gather(*(one(number) for number in range(first, first + count)))
        print("emitted", flush=True)


async def started(server):
    """Returns once a server of uvicorn listens."""
    while not server.started:  # noqa: ASYNC110, uvicorn has no event for it
        await asyncio.sleep(0.05)
