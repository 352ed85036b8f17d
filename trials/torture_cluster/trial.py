"""One scenario under way: its bus, nodes, clients and publishers, and the checks after each round.

A round is busy, and then quiet. In the quiet the publishers are silent and the clients stay where
they are. Then everybody has to come to the end of each room, one message more has to reach all of
them, and nothing may be left under way. At the end of the scenario all clients leave, and the
rooms, subscriptions and tasks of the nodes have to go with them, and the keys with their time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from trials.crowd import Door, Mood
from trials.torture_cluster.buses import PREFIX, Bus, Relay, ReplicatedBus, relays
from trials.torture_cluster.clients import Crowd
from trials.torture_cluster.findings import Findings
from trials.torture_cluster.process import Look, Node, RefusedError, trouble
from trials.torture_cluster.publishers import Publishers
from trials.torture_cluster.record import Record
from trials.torture_cluster.texts import BRIEF, PLAIN, TTL, kept_rooms

ROOMS = 3
UNAWARE, PUBLISHERS = 3, 5
# Most seconds for which a key may live: the newest position, a history and its slot of time, an
# idempotency key, the kept rooms; leases, hubs and users, since the hubs are there still.
LIVES = {
    "t": 86_400,
    "h": TTL * 1.25,
    "i": 300,
    "keep": 86_400,
    "n": 10,
    "nodes": 86_400,
    "u": 86_400,
    "nu": 86_400,
    "grace": 86_400,
}


@dataclass(frozen=True)
class Setup:
    """The processes of a scenario.

    Attributes:
        nodes, clients: how many.
        replicated: the bus has a replica and a Sentinel.
        relayed: each node has a relay of its own to the bus.
    """

    nodes: int = 3
    clients: int = 12
    replicated: bool = False
    relayed: bool = False


class Rules(Protocol):
    """One kind of rounds: a scenario (scenarios.py)."""

    @property
    def faults(self) -> Callable[[Trial], Awaitable[int]]: ...
    @property
    def lossless(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def pause(self) -> float: ...


class Trial:
    """A scenario under way.

    Attributes:
        findings, record: of all rounds.
        nodes: as they are now.
        round: its number, from 0 on.
        quick: no long faults.
        counts: heals and lookups, of all nodes.
    """

    bus: Bus
    crowd: Crowd
    publishers: Publishers
    relays: list[Relay]
    _usual: Look

    def __init__(
        self,
        setup: Setup,
        directory: Path,
        program: str,
        patience: float,
        faults: Sequence[str] = (),
    ) -> None:
        """Makes nothing yet.

        Args:
            setup: what to begin with.
            directory: for the data of the bus and the logs of the nodes.
            program: of the bus.
            patience: seconds until something is late.
            faults: promises that the nodes break, see sabotage.py.
        """
        self.findings = Findings()
        self.record = Record(self.findings)
        self.nodes: list[Node] = []
        self.round = 0
        self.quick = False
        self.counts: Counter[str] = Counter()
        self._logs: list[Path] = []
        self._directory = directory
        self._program = program
        self._patience = patience
        self._faults = faults
        self._setup = setup
        self._unsaid: set[str] = set()
        self._doors: list[Door] = []
        self._stack = AsyncExitStack()
        self._names = 0
        self.relays = []

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _begin(self) -> None:
        setup = self._setup
        rooms = kept_rooms(ROOMS)
        kind = ReplicatedBus if setup.replicated else Bus
        bus = kind(self._directory, self._program, self.record, rooms)
        self.bus = await self._stack.enter_async_context(bus)
        if setup.relayed:
            self.relays = await self._stack.enter_async_context(relays(bus.server, setup.nodes))
        self._doors = [Door("ABCDEF"[number]) for number in range(setup.nodes)]
        self._stack.push_async_callback(self._kill_all)
        self.nodes += await asyncio.gather(*map(self._start, range(setup.nodes)))
        self._usual = await self.nodes[0].look(self._patience)  # there are no clients yet
        crowd = Crowd(setup.clients, UNAWARE, ROOMS, self.findings)
        self.crowd = await self._stack.enter_async_context(crowd)
        crowd.doors = self._doors
        self.publishers = Publishers(PUBLISHERS, rooms, self.nodes, self.findings)

    async def _kill_all(self) -> None:
        for node in self.nodes:
            await node.kill()

    # --- nodes ---

    async def _start(self, number: int) -> Node:
        self._names += 1
        door = self._doors[number]
        name = f"{door.name}{self._names}"
        log = self._directory / f"{name}.log"
        self._logs.append(log)
        return await Node.start(
            name,
            door,
            self.findings,
            self._unsaid,
            log,
            bus=self.relays[number].url if self.relays else self.bus.url,
            rooms=ROOMS,
            faults=",".join(self._faults) or None,
        )

    async def replace(self, number: int, *, gently: bool) -> None:
        """Ends a node, gently or with kill -9, and starts it again."""
        node = self.nodes[number]
        if gently:
            await node.terminate()
        else:
            await node.kill()
        self._count(node)
        self.nodes[number] = await self._start(number)
        self.nodes[number].chat(True)

    def _count(self, node: Node) -> None:
        """Adds up the counters of a node that has ended."""
        self.counts["heals"] += node.last.cluster.get("heals", 0)
        self.counts["healed"] += node.last.cluster.get("healed", 0)
        self.counts["lookups"] += int(node.last.bus.get("lookups", 0))

    async def fail_over(self) -> None:
        """See ReplicatedBus."""
        assert isinstance(self.bus, ReplicatedBus)
        await self.bus.fail_over()

    # --- a round ---

    async def play(self, scenario: Rules) -> None:
        """One round, and its judgement."""
        self.findings.round = self.round + 1
        self.publishers.use(pause=scenario.pause, size=scenario.size, lossless=scenario.lossless)
        await self.bus.settle()
        self.crowd.be(Mood.BUSY)
        for node in self.nodes:
            node.chat(True)
        self.publishers.start()
        self.counts["faults"] += await scenario.faults(self)
        await self._be_quiet(scenario)
        self.crowd.check()
        self.round += 1

    async def _be_quiet(self, scenario: Rules) -> None:
        for node in self.nodes:
            node.chat(False)
        await self.publishers.stop()
        self.crowd.be(Mood.CALM)
        await self._until("late", "everybody at the end of each room", self._behind)
        await self._until("late", "subscriptions", self._under_way)
        await self._say_one_more()
        await self._until("untold", "each client told of what was lost", self._untold)
        await self.bus.write_down()
        self.publishers.judge(self.record)
        self.crowd.judge(
            self.record,
            self._unsaid,
            lossless=scenario.lossless,
        )
        await self._until("left", "nothing under way", self._under_way)

    async def _behind(self) -> list[str]:
        await self.bus.look_at_tops()
        return self.crowd.behind(self.record)

    async def _untold(self) -> list[str]:
        await self.bus.write_down()
        return self.crowd.untold(self.record, self.publishers.accepted)

    async def _say_one_more(self) -> None:
        rooms = kept_rooms(ROOMS)
        texts = await asyncio.gather(*(self.publishers.publish("last", room) for room in rooms))
        kept = dict(zip(rooms, texts, strict=True))
        plain: set[str] = set()
        for node in self.nodes:
            plain.add(await self._say_one(node))

        async def lacking() -> list[str]:
            return await self._behind() or self.crowd.without(plain, kept)

        await self._until("late", "one more message at all clients", lacking)

    async def _say_one(self, node: Node) -> str:
        self._names += 1
        text = f"{PLAIN} last{self._names} 1"
        node.say(PLAIN, text)
        return text

    async def _until(
        self, kind: str, aim: str, obstacles: Callable[[], Awaitable[Sequence[str]]]
    ) -> None:
        """Waits until there are no obstacles any more; a finding if it takes too long."""
        deadline = time.monotonic() + self._patience
        while found := await obstacles():
            if time.monotonic() > deadline:
                self.findings.add(kind, f"{aim}: {'; '.join(found[:5])} ({len(found)} in all)")
                return
            await asyncio.sleep(0.02)

    async def _looks(self) -> list[Look]:
        return await asyncio.gather(*(node.look(self._patience) for node in self.nodes))

    async def _under_way(self) -> list[str]:
        found = []
        try:
            looks = await self._looks()
        except RefusedError as error:
            return [str(error)]
        for node, look in zip(self.nodes, looks, strict=True):
            if len(look.tasks) > len(self._usual.tasks):
                found.append(f"tasks of {node.name}: {look.tasks}")
            if look.bus["waiting_bytes"]:
                found.append(f"{node.name} has {look.bus['waiting_bytes']} bytes that wait")
        members = sum(look.clients > 0 for look in looks)
        subscribed = await self._subscribed()
        for room in (*kept_rooms(ROOMS), PLAIN):
            # A node follows a room for a moment longer than it has members.
            if not members <= subscribed[room] <= len(self.nodes):
                found.append(f"{subscribed[room]} subscriptions of {room}, {members} with members")
        if subscribed[""] != len(self.nodes):
            found.append(f"{subscribed['']} subscriptions of all rooms")
        return found

    async def _subscribed(self) -> dict[str, int]:
        rooms = [*kept_rooms(ROOMS), PLAIN]
        channels = {f"{PREFIX}c:{{{room}}}": room for room in rooms} | {f"{PREFIX}c:": ""}
        answer = await self.bus.ask("PUBSUB", "NUMSUB", *channels)
        return {
            channels[name.decode()]: number
            for name, number in zip(answer[::2], answer[1::2], strict=True)
        }

    # --- the end ---

    async def end(self) -> None:
        """All clients leave, then the nodes end; nothing may be left of them."""
        self.findings.round = 0
        self.crowd.be(Mood.AWAY)
        await self._until("left", "rooms without members gone", self._left)
        await random.choice(self.nodes).publish(BRIEF, f"{BRIEF} p 0", None, self._patience)
        await self._until("left", "the history of a brief room gone", self._brief)
        for text in await self._keys():
            self.findings.add("left", text)
        for node in self.nodes:
            await node.terminate()
            self._count(node)
        await self._until("left", "no subscription without a node", self._channels)
        for log in self._logs:
            for text in trouble(log):
                self.findings.add("broken", f"{log.name}: {text}")

    async def _left(self) -> list[str]:
        found = [f"{each.name} is connected" for each in self.crowd.members if each.door]
        for node, look in zip(self.nodes, await self._looks(), strict=True):
            if look.rooms:
                found.append(f"rooms of {node.name}: {look.rooms}")
            if len(look.tasks) > len(self._usual.tasks):
                found.append(f"tasks of {node.name}: {look.tasks}")
            if look.bus["subscriptions"] != self._usual.bus["subscriptions"]:
                found.append(f"{node.name} has {look.bus['subscriptions']} subscriptions")
        subscribed = await self._subscribed()
        return found + [f"{room} is subscribed" for room, n in subscribed.items() if room and n]

    async def _brief(self) -> list[str]:
        return ["it is there"] if await self.bus.ask("EXISTS", f"{PREFIX}h:{{{BRIEF}}}") else []

    async def _keys(self) -> list[str]:
        """The keys that nobody knows, or that live for too long."""
        found = []
        for key in await self.bus.ask("KEYS", "*"):
            name = key.decode()
            kind = name.removeprefix(PREFIX).partition(":")[0]
            life = await self.bus.ask("TTL", key)
            known = name.startswith(PREFIX) and 0 <= life <= LIVES.get(kind, -1)
            if not known and life != -2:  # gone meanwhile
                found.append(f"the key {name} lives for {life} s")
        return found

    async def _channels(self) -> list[str]:
        return [each.decode() for each in await self.bus.ask("PUBSUB", "CHANNELS", f"{PREFIX}*")]
