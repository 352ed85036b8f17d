"""The hubs of a scenario, and their bus: they are killed, and started again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.redis_server import PROGRAM
from trials.crowd import Door
from trials.torture_cluster.buses import Bus, ReplicatedBus
from trials.torture_cluster.findings import Findings
from trials.torture_cluster.process import Node, RefusedError, trouble
from trials.torture_cluster.record import Record

ROOMS = ["kept0", "kept1", "kept2"]
# Seconds that a publisher waits for an answer.
PATIENCE = 2.0


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    Attributes:
        title: what it is, in words.
        hubs: how many.
        redis: they share a Redis; else one hub has a file.
        failover: the Redis has a replica, which Sentinel promotes.
        lossless: the bus loses nothing. A hub with a file writes it behind, so that a kill costs
            its newest messages; and so does a replica that lags.
    """

    title: str
    hubs: int = 1
    redis: bool = True
    failover: bool = False
    lossless: bool = True


SCENARIOS = {
    "one": Scenario("one hub with a file", redis=False, lossless=False),
    "three": Scenario("three hubs on one Redis", hubs=3),
    "failover": Scenario("three hubs on a Redis with Sentinel", 3, failover=True, lossless=False),
}


class Server(Node):
    """A hub (server.py)."""

    program = "trials.clients.server"


class Hubs:
    """The hubs of a scenario, which are killed and started again.

    Attributes:
        ports: of all of them; of a hub that is away nobody listens.
        findings: of their processes.
        ended: how many were killed, and how many ended gently.
    """

    def __init__(self, count: int, bus: str, directory: Path, **options: Any) -> None:
        self.findings = Findings()
        self.ended: Counter[str] = Counter()
        self._doors = [Door("ABCDEF"[number]) for number in range(count)]
        self.ports = [door.port for door in self._doors]
        self._bus = bus
        self._directory = directory
        self._options = options
        self._numbers = itertools.count()
        self._servers: list[Server | None] = [None] * count
        self._logs: list[Path] = []

    async def start(self, number: int) -> None:
        name = f"{self._doors[number].name}{next(self._numbers)}"
        log = self._directory / f"{name}.log"
        self._logs.append(log)
        self._servers[number] = await Server.start(
            name, self._doors[number], self.findings, set(), log, bus=self._bus, **self._options
        )

    async def start_all(self) -> None:
        await asyncio.gather(*map(self.start, range(len(self._servers))))

    async def end(self, number: int, *, gently: bool) -> None:
        server, self._servers[number] = self._servers[number], None
        if server is None:
            return
        if gently:
            await server.terminate()
        else:
            await server.kill()

    async def replace_any(self) -> None:
        """Ends a hub, with SIGKILL in two of three cases, and starts it again a moment later."""
        number = random.randrange(len(self._servers))
        gently = random.random() < 1 / 3
        await self.end(number, gently=gently)
        self.ended["ended" if gently else "killed"] += 1
        await asyncio.sleep(random.choice([0, 0.5]))
        await self.start(number)

    async def publish(self, room: str, text: str) -> None:
        """Publishes a message under its own key until some hub has accepted it."""
        while True:
            server = random.choice(self._servers)
            with suppress(RefusedError):
                if server is not None:
                    await server.publish(room, text, f"{room}-{text}", PATIENCE)
                    return
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Ends all of them gently, and looks into their logs."""
        await asyncio.gather(
            *(self.end(number, gently=True) for number in range(len(self._servers)))
        )
        for door in self._doors:
            door.socket.close()
        for log in self._logs:
            for text in trouble(log):
                self.findings.add("broken", f"{log.name}: {text}")


@asynccontextmanager
async def hubs(
    scenario: Scenario, directory: Path, **options: Any
) -> AsyncIterator[tuple[Hubs, Bus | None]]:
    """Runs the hubs of a scenario, and their bus.

    Args:
        scenario: says how many, and over what.
        directory: for data and logs.
        options: further ones of server.py.
    """
    async with AsyncExitStack() as stack:
        bus = None
        if scenario.redis:
            assert PROGRAM is not None
            kind = ReplicatedBus if scenario.failover else Bus
            record = Record(Findings())
            bus = await stack.enter_async_context(kind(directory, PROGRAM, record, ROOMS))
        url = bus.url if bus else str(directory / "kept.db")
        running = Hubs(scenario.hubs, url, directory, **options)
        stack.push_async_callback(running.close)
        await running.start_all()
        yield running, bus
