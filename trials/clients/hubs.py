"""The hubs of a scenario, and their bus: they are killed, and started again."""

from __future__ import annotations

import asyncio
import itertools
import json
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
# Seconds that a publisher waits for an answer: longer than a message waits in a hub for its bus, so
# that none goes out behind its own repetition, when a failover has lost the key of that.
PATIENCE = 8.0
# Seconds that a hub may take to tell a list.
ASKED = 30.0


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

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asking: asyncio.Future[list[Any]] | None = None

    def _heard(self, text: str) -> None:
        line = json.loads(text)
        if line["is"] != "list":
            super()._heard(text)
        elif self._asking is not None and not self._asking.done():
            self._asking.set_result(line["list"])

    async def ask(self, do: str, **fields: Any) -> list[Any]:
        """Has it tell a list; one question at a time."""
        self._asking = asyncio.get_running_loop().create_future()
        self._tell(do, **fields)
        async with asyncio.timeout(ASKED):
            return await self._asking


class Hubs:
    """The hubs of a scenario, which are killed and started again.

    Attributes:
        ports: of all of them; of a hub that is away nobody listens.
        findings: of their processes.
        options: of server.py, for hubs that start from now on.
        ended: how many were killed, and how many ended gently.
    """

    def __init__(self, count: int, bus: str, directory: Path, **options: Any) -> None:
        self.findings = Findings()
        self.ended: Counter[str] = Counter()
        self._doors = [Door("ABCDEF"[number]) for number in range(count)]
        self.ports = [door.port for door in self._doors]
        self._bus = bus
        self._directory = directory
        self.options = options
        self._numbers = itertools.count()
        self._servers: list[Server | None] = [None] * count
        self._logs: list[Path] = []
        self._firsts: dict[str, tuple[str, str]] = {}

    async def start(self, number: int) -> None:
        name = f"{self._doors[number].name}{next(self._numbers)}"
        log = self._directory / f"{name}.log"
        self._logs.append(log)
        self._servers[number] = await Server.start(
            name, self._doors[number], self.findings, set(), log, bus=self._bus, **self.options
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
                    answer = await server.publish(room, text, f"{room}-{text}", PATIENCE)
                    self._firsts.setdefault(room, (answer.position, text))
                    return
            await asyncio.sleep(0.02)

    async def history(self, room: str) -> list[str]:
        """The texts of all messages that the bus has now, from the first one on."""
        position, text = self._firsts[room]
        server = self._servers[0]
        assert server is not None
        return [text, *await server.ask("history", room=room, after=position)]

    async def upgrades(self) -> list[float]:
        """The times at which the first hub, as it is now, let a client in."""
        server = self._servers[0]
        assert server is not None
        return await server.ask("upgrades")

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
