"""Subscribers of server.py: each joins some symbols, and some of them stop reading for a while.

Run it with `python crowd.py --subscribers 10000 --stalled 100 --seconds 20`.
"""

import argparse
import asyncio
import json
import random
import resource
import socket
import statistics
import time

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

SYMBOLS = ("AAL", "BEX", "CORD", "DUNE", "EMBR", "FLUX", "GALE", "HALO", "IRIS", "JADE")
AT_ONCE = 200  # connections that are being made


class Subscriber(WSListener):
    """One connection; it counts quotes, and looks at the age of some."""

    quotes = 0  # of all subscribers
    ages: list[float] = []  # seconds, of a sample since the last report

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def join(self) -> None:
        for number, symbol in enumerate(self.symbols):
            text = json.dumps({"type": "join", "id": f"c-{number}", "room": symbol})
            self.transport.send(WSMsgType.TEXT, text.encode())

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type != WSMsgType.TEXT:
            return
        payload = frame.get_payload_as_bytes()
        if payload.startswith(b'{"symbol"'):
            Subscriber.quotes += 1
            if Subscriber.quotes % 50 == 0:  # to decode all of them would measure this program
                Subscriber.ages.append(time.time() - json.loads(payload)["time"])


async def connect(url: str, count: int, symbols: int) -> list[Subscriber]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def one() -> Subscriber:
        subscriber = Subscriber(random.sample(SYMBOLS, symbols))
        async with limit:
            await ws_connect(lambda: subscriber, url)
        return subscriber

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def stall(subscribers: list[Subscriber], seconds: float) -> None:
    """They stop reading, then read on: the hub keeps the newest quote of each symbol for them."""
    for each in subscribers:
        stream = each.transport.underlying_transport
        # Else the kernel takes quotes for them for a long time.
        stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stream.pause_reading()
    await asyncio.sleep(seconds)
    for each in subscribers:
        each.transport.underlying_transport.resume_reading()


async def report(seconds: float, count: int) -> None:
    for _ in range(int(seconds)):
        before = Subscriber.quotes
        Subscriber.ages = []
        await asyncio.sleep(1.0)
        ages = sorted(Subscriber.ages) or [0.0]
        late = ages[-1]
        print(
            f"{count} subscribers, {Subscriber.quotes - before} quotes/s, "
            f"age {1_000 * statistics.median(ages):.0f} ms, of the oldest {1_000 * late:.0f} ms",
            flush=True,
        )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--subscribers", type=int, default=10_000)
    parser.add_argument("--symbols", type=int, default=2, help="that each joins")
    parser.add_argument("--stalled", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    began = time.perf_counter()
    url = f"ws://127.0.0.1:{given.port}/ws"
    try:
        subscribers = await connect(url, given.subscribers, given.symbols)
    except OSError as error:
        raise SystemExit(f"no server at {url}: {error}") from None
    print(f"{len(subscribers)} connected in {time.perf_counter() - began:.1f} s", flush=True)
    for each in subscribers:
        each.join()
    stalling = asyncio.create_task(stall(subscribers[: given.stalled], given.seconds / 2))
    await report(given.seconds, len(subscribers))
    await stalling
    for each in subscribers:
        each.transport.disconnect()


if __name__ == "__main__":
    uvloop.run(main())
