"""How long the hub keeps its event loop from everything else while it broadcasts.

A callback that schedules itself again runs once per turn of the loop; the gap between two runs is
what a ping, a timer or another client would have had to wait. Gaps count from the first message to
the last, so that connecting and disconnecting are not in them. Prints one JSON object when stopped
by SIGTERM.
"""

import asyncio
import json
import signal
from time import perf_counter

import uvloop
from _common import arguments

from wsc_fast import Client, Hub

PORT = arguments().port
hub = Hub()


class Gaps:
    """Gaps between turns; those since the last message are not counted until the next one comes."""

    def __init__(self) -> None:
        self.counted: list[float] = []
        self.since_message: list[float] = []
        self.last = perf_counter()
        self.messages = 0

    def turn(self) -> None:
        now = perf_counter()
        if self.messages:
            self.since_message.append(now - self.last)
        self.last = now
        asyncio.get_running_loop().call_soon(self.turn)

    def message(self) -> None:
        self.messages += 1
        self.counted += self.since_message
        self.since_message.clear()

    def report(self) -> str:
        gaps = sorted(self.counted) or [0.0]
        return json.dumps(
            {
                "messages": self.messages,
                "turns": len(self.counted),
                "p50_ms": gaps[len(gaps) // 2] * 1e3,
                "p99_ms": gaps[len(gaps) * 99 // 100] * 1e3,
                "max_ms": gaps[-1] * 1e3,
            }
        )


gaps = Gaps()


@hub.on_message_received
def broadcast(client: Client, message: str | bytes) -> None:
    gaps.message()
    hub.broadcast(message)


async def main() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await hub.start("127.0.0.1", PORT)
    gaps.turn()
    await stopped.wait()
    print(gaps.report(), flush=True)
    await hub.stop(timeout=1.0)


uvloop.run(main())
