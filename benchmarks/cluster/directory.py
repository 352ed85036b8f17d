"""Many users in the directory of a bus: heartbeats, and memory and processor of Redis.

The hubs are simulated: each is a RedisBus that says who is connected to it, without a client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from statistics import median

import uvloop

from benchmarks.cluster.redis_server import RedisServer
from wsc_fast import RedisBus
from wsc_fast.bus.base import EVERYBODY, Change, NodeState, Outgoing
from wsc_fast.testing import eventually

HUBS, USERS = 10, 100_000
# Seconds that are measured. So often a second a user comes to another hub, and leaves the former.
WINDOW, HOPS = 30.0, 1000
# Users that a hub enters in one turn of its loop.
AT_ONCE = 1000


class SimulatedHub:
    """A hub as the bus sees it."""

    def __init__(self, url: str, name: str) -> None:
        self.bus = RedisBus(url)
        self.name = name
        self.users: set[str] = set()

    async def open(self) -> None:
        await self.bus.open(self, self.name)
        await self.bus.lease(lambda: NodeState(len(self.users), False), lambda: 5.0)

    def come(self, users: Sequence[str]) -> None:
        """These users have a client here from now on."""
        self.users |= set(users)
        self.bus.directory([Change(EVERYBODY, user, 1) for user in users])

    def go(self, user: str) -> None:
        """This one has none any more."""
        self.users.discard(user)
        self.bus.directory([Change(EVERYBODY, user, 0)])

    # as bus.base.Handler

    def envelope(self, channel: str, data: bytes) -> bool:
        return True

    def takes_more(self) -> bool:
        return True

    def subscribed(self, channels: Sequence[str], again: bool) -> None: ...
    def word(self, data: bytes) -> None: ...
    def elsewhere(self, users: Sequence[str]) -> None: ...
    def words_missed(self) -> None: ...
    def kept_rooms(self) -> bytes:
        return b"[]"

    def up(self) -> None: ...
    def down(self, error: Exception) -> None: ...
    def not_published(self, outgoing: Outgoing, error: Exception) -> None: ...


def directory(rounds: int, *, turn: float = 1.0) -> str:
    """100,000 users of 10 simulated hubs in the directory: calls, processor and memory of Redis."""
    found = [uvloop.run(_measured(turn)) for _ in range(max(1, rounds // 3))]
    lines = ["| | |", "| --- | --- |"]
    return "\n".join(
        lines
        + [
            f"| {name} | {median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f}) |"
            for name in found[0]
            for values in [[each[name] for each in found]]
        ]
    )


async def _measured(turn: float) -> dict[str, float]:
    count, window = max(1000, int(USERS * turn)), max(3.0, WINDOW * turn)
    server = RedisServer()
    try:
        hubs = [SimulatedHub(server.url, f"hub{number}") for number in range(HUBS)]
        for hub in hubs:
            await hub.open()
        before, cpu = server.memory(), server.cpu()
        for number in range(0, count, AT_ONCE):
            users = [f"user{each}" for each in range(number, min(number + AT_ONCE, count))]
            hubs[number // AT_ONCE % HUBS].come(users)
            await asyncio.sleep(0)
        await eventually(lambda: server.keys() >= count, timeout=60)
        found = {
            "bytes of Redis a user": (server.memory() - before) / count,
            "µs of Redis to enter a user": (server.cpu() - cpu) / count * 1e6,
        }
        calls, share = await _during(server, window, lambda passed: None)
        found["quiet: calls a second, of all hubs"] = calls
        found["quiet: % of a core of Redis"] = share
        hops = _Hops(hubs)
        calls, share = await _during(server, window, hops.hop_until)
        found["hops a second"] = hops.done / window
        found["hops: calls a second, of all hubs"] = calls
        found["hops: % of a core of Redis"] = share
        for hub in hubs:
            await hub.bus.close()
    finally:
        server.close()
    return found


class _Hops:
    """Users that go from one hub to the next, evenly over the time."""

    def __init__(self, hubs: Sequence[SimulatedHub]) -> None:
        self.done = 0
        self._hubs = hubs

    def hop_until(self, passed: float) -> None:
        while self.done < passed * HOPS:
            here = self._hubs[self.done % HUBS]
            there = self._hubs[(self.done + 1) % HUBS]
            user = next(iter(here.users))
            there.come([user])
            here.go(user)
            self.done += 1


async def _during(
    server: RedisServer, window: float, work: Callable[[float], None]
) -> tuple[float, float]:
    """Calls of the directory's script a second, and percents of a core that Redis takes."""
    calls, cpu, began = server.calls("evalsha"), server.cpu(), time.perf_counter()
    while (passed := time.perf_counter() - began) < window:
        work(passed)
        await asyncio.sleep(0.01)
    return (server.calls("evalsha") - calls) / passed, (server.cpu() - cpu) / passed * 100
