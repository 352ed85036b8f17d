"""The cost of one `hub.send_to_client` for its caller, in nanoseconds.

One hub and one real client in one process. The calls are timed in batches that fit in the client's
outbox; between two batches, outside the timed part, the loop flushes and the client reads. Within a
batch the first call finds an empty outbox, all others one that holds something. The loop around the
call is part of the figure, some 10 ns of it.
"""

import argparse
import asyncio
import json
from itertools import repeat
from statistics import median
from time import perf_counter_ns

import uvloop

from wsc_fast import Client, Hub

BATCH = 256  # of the 1,024 messages that an outbox holds by default
BATCHES = 2_000
WARMUP = 200
PAYLOAD = "x" * 128
FRAME_SIZE = 2 + 2 + len(PAYLOAD)

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def measure() -> list[float]:
    """Nanoseconds per call, one figure per batch."""
    hub = Hub()
    connected: asyncio.Queue[Client] = asyncio.Queue()
    hub.on_client_connected(connected.put_nowait)
    await hub.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    client = await connected.get()

    send, client_id = hub.send_to_client, client.id
    figures = []
    for _ in range(BATCHES):
        start = perf_counter_ns()
        for _ in repeat(None, BATCH):
            send(client_id, PAYLOAD)
        figures.append((perf_counter_ns() - start) / BATCH)
        # All of the batch has come, so the outbox is empty again.
        await reader.readexactly(BATCH * FRAME_SIZE)
    writer.close()
    await hub.stop()
    return sorted(figures[WARMUP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = uvloop.run(measure())
    result = {
        "best_ns": figures[0],
        "median_ns": median(figures),
        "p99_ns": figures[len(figures) * 99 // 100],
        "calls": BATCH * len(figures),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(
            f"send_to_client, {len(PAYLOAD)} bytes to a queued client: {result['median_ns']:.0f} ns"
            f" (best {result['best_ns']:.0f}, p99 {result['p99_ns']:.0f})"
        )


if __name__ == "__main__":
    main()
