"""One scenario under way: hubs, the line to them, clients, and what is published meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials.clients.hubs import ROOMS, Hubs, Scenario, hubs
from trials.clients.line import Line, line
from trials.clients.pages import Page
from trials.clients.verdict import End, Findings, ends, judge
from trials.torture_cluster.buses import Bus, ReplicatedBus

# Seconds between two requests of a client.
ASKING = 0.25
# Quicker than by default, so that a client is connected more often than not.
OPTIONS = {
    "minDelay": 50,
    "maxDelay": 1000,
    "stableAfter": 300,
    "connectTimeout": 3000,
    "heartbeatInterval": 2000,
    "heartbeatTimeout": 1000,
}


@dataclass(frozen=True)
class Pace:
    """How fast a scenario goes.

    Attributes:
        messages: to all kept rooms together.
        rate: messages a second.
        life: seconds after which a connection is cut, at least and at most.
        token: seconds that a token lives, at least; twice that at most.
        kill: seconds between two ends of a hub, at most.
        failover: seconds between two failovers, at most.
        failovers: how many there are at most: on a busy machine each takes seconds.
        patience: seconds until something is late.
    """

    messages: int = 10_000
    rate: float = 100.0
    life: tuple[float, float] = (0.2, 5.0)
    token: float = 2.0
    kill: float = 8.0
    failover: float = 15.0
    failovers: int = sys.maxsize
    patience: float = 30.0


@dataclass
class Outcome:
    """The result of a scenario.

    Attributes:
        faults: what was done to the hubs, the bus and the line, counted.
        findings: by the name of the client.
        broken: what went wrong with the hubs.
        seconds: it took.
    """

    faults: Counter[str]
    findings: dict[str, Findings]
    broken: int
    seconds: float


async def play(
    scenario: Scenario,
    pages: Sequence[Page],
    pace: Pace,
    directory: Path,
    seed: int,
    faults: Sequence[str] = (),
) -> Outcome:
    """Plays a scenario to its end.

    Args:
        scenario: which.
        pages: the programs with clients.
        pace: how fast it goes.
        directory: for data and logs.
        seed: of all chance in here and in the clients.
        faults: promises that the hubs break on purpose, see sabotage.py.
    """
    random.seed(seed)
    began = time.monotonic()
    async with hubs(scenario, directory, faults=",".join(faults) or None) as (running, bus):
        async with line(running.ports) as relay:
            url = f"ws://127.0.0.1:{relay.port}/ws"
            for number, page in enumerate(pages):
                await page.follow(url, ROOMS, OPTIONS, seed + number, pace.token)
            await asyncio.gather(*(page.until(_joined, pace.patience) for page in pages))
            done = Counter[str]()
            rooms = await _trouble(relay, running, bus, pages, pace, done)
            await _come_back(relay, pages, pace.patience)
            # In the quiet behind the faults everything has to come: one more message of each room,
            # or a loss that takes its place. Behind such a loss the next message has to come.
            for loss_may_end in (True, False):
                last = {
                    room: await _publish_last(running, room, rooms, loss_may_end) for room in rooms
                }
                if not await _all_end(pages, last, pace.patience):
                    break
            histories = {
                room: [int(text) for text in await running.history(room)] for room in rooms
            }
            for page in pages:
                await page.end()
            done["cuts"] = relay.cuts
            done["lost by the bus"] = sum(rooms.values()) - sum(map(len, histories.values()))
        found = {}
        for page in pages:
            record = await _record(page)
            (directory / f"{page.name}.json").write_text("\n".join(map(json.dumps, record)))
            found[page.name] = judge(record, last, histories, lossless=scenario.lossless)
    done += running.ended
    return Outcome(done, found, running.findings.counts["broken"], time.monotonic() - began)


async def _publish_last(running: Hubs, room: str, rooms: dict[str, int], loss_may_end: bool) -> End:
    """Publishes one message more, which is the end of the room.

    Args:
        loss_may_end: a loss that is told of from now on may take its place.
    """
    rooms[room] += 1
    at = time.time() * 1000 if loss_may_end else math.inf
    await running.publish(room, str(rooms[room]))
    return End(rooms[room], at)


async def _all_end(pages: Sequence[Page], last: Mapping[str, End], patience: float) -> bool:
    """Waits until all clients are at the end of each room; whether they are in time."""
    waiting = [page.until(lambda record: ends(record, last), patience) for page in pages]
    return all(await asyncio.gather(*waiting))


async def _record(page: Page) -> list[list[Any]]:
    """Of a client that was closed, without the entry that says so."""
    record = await page.look()
    return [entry for entry in record if entry[1:] != ["state", "closed", 1000, "called"]]


def _joined(record: Sequence[Sequence[Any]]) -> bool:
    return {room for _, kind, room, *_ in record if kind == "first"} == set(ROOMS)


async def _trouble(
    relay: Line,
    running: Hubs,
    bus: Bus | None,
    pages: Sequence[Page],
    pace: Pace,
    done: Counter[str],
) -> dict[str, int]:
    """Publishes everything amid faults; returns the number of the last message of each room."""
    relay.life = lambda: random.uniform(*pace.life)
    await relay.cut_all()  # connections from before have no end
    for page in pages:
        await page.ask_each(ASKING)
    over = asyncio.Event()
    faults = [asyncio.create_task(_again(over, pace.kill, running.replace_any))]
    if isinstance(bus, ReplicatedBus):

        async def fail_over() -> None:
            await bus.settle()
            await bus.fail_over()
            done["failovers"] += 1

        failing = _again(over, pace.failover, fail_over, pace.failovers)
        faults.append(asyncio.create_task(failing))
    rooms = dict(Counter(ROOMS[number % len(ROOMS)] for number in range(pace.messages)))
    try:
        async with asyncio.timeout(3 * pace.messages / pace.rate + pace.patience):
            await _publish_all(running, rooms, pace.rate / len(rooms))
    finally:
        for page in pages:
            await page.ask_each(0)
        # A fault that has begun comes to its end, so that the hub or the bus is there again.
        over.set()
        await asyncio.gather(*faults)
    return rooms


async def _come_back(relay: Line, pages: Sequence[Page], patience: float) -> None:
    """Cuts all connections a last time, and returns once the clients are in all rooms again."""
    for page in pages:
        await page.keep_token()
    relay.life = None
    before = [_connections(await page.look()) for page in pages]
    await relay.cut_all()
    back = [
        page.until(lambda record, count=count: _is_back(record, count), patience)
        for page, count in zip(pages, before, strict=True)
    ]
    await asyncio.gather(*back)


def _connections(record: Sequence[Sequence[Any]]) -> int:
    return sum(entry[1:3] == ["state", "open"] for entry in record)


def _is_back(record: Sequence[Sequence[Any]], before: int) -> bool:
    """Whether a client is in all rooms on a connection that follows so many."""
    since = max((at for at, entry in enumerate(record) if entry[1] == "state"), default=0)
    joined = {room for _, kind, room, *_ in record[since:] if kind == "joined"}
    return _connections(record) > before and joined == set(ROOMS)


async def _publish_all(running: Hubs, rooms: Mapping[str, int], rate: float) -> None:
    async with asyncio.TaskGroup() as publishing:
        for room, count in rooms.items():
            publishing.create_task(_publish(running, room, count, rate))


async def _publish(running: Hubs, room: str, count: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(1, count + 1):
        await running.publish(room, str(number))
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))


async def _again(
    over: asyncio.Event, most: float, fault: Callable[[], Awaitable[None]], times: int = sys.maxsize
) -> None:
    """Does it so many times, with at most so many seconds between, until all is over."""
    for _ in range(times):
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0.3, 1.0) * most):
                await over.wait()
                return
        await fault()
