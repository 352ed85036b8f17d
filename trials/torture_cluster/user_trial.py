"""One scenario with users under way: a store and a bus, hubs, users, and the checks of each round.

A round is busy, and then quiet as in trials/torture/trial.py: all that was accepted has to arrive,
to leave the store, and to end for its sender. Then the hubs are examined:

    confirmed, failed, nothing    each hub sends a message to each user that asks to be answered so.
                                  Awaiting it has to end so, and failure handlers hear once of those
                                  that fail or time out
    plain                         each hub says something to each user, and each device hears it
    presence                      some users leave; the hubs have to know who is there

At the end the hubs stop, and no key on the bus may live for ever.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import redis

from trials.crowd import Mood
from trials.torture.stores import Redis
from trials.torture.trial import Trial
from trials.torture_cluster.buses import PREFIX, Relay, relays
from trials.torture_cluster.process import trouble
from trials.torture_cluster.user_ledger import Message, UserLedger
from trials.torture_cluster.user_process import UserNode

HUBS = 3
# Numbers that one life of a hub has for itself, so that none is used twice.
STRIDE = 1_000_000
# Most seconds between two waves of messages to a user, and in which a hub drains.
PAUSE, DRAIN = 0.5, 0.5
# Seconds after which everybody has to know who is there.
EXACT = 12.0
# How an examination ends, and whether failure handlers hear of it.
ENDS = {
    "confirmed": ("confirmed", False),
    "failed": ("AckFailedError", True),
    "nothing": ("AckTimeoutError", True),
    "plain": ("sent", False),
}
# Of so many rounds, one has messages that nobody answers.
SILENT_ROUNDS = 3
# Most seconds for which a key may live, by the beginning of its name.
LIVES = {"offline": 3_600, "t": 86_400, "keep": 86_400, "k": 60}


@dataclass
class UserTrial(Trial):
    """A scenario with users under way.

    Attributes:
        nodes: the hubs, as they are now.
        relays: of each hub to Redis, where `relayed` asks for them.
        faults: how many there were.
        broken: promises that hubs and stores break.
        quick: no long faults.
    """

    place: Redis
    ledger: UserLedger
    relayed: bool = False
    quick: bool = False
    broken: Sequence[str] = ()
    faults: int = 0
    nodes: list[UserNode] = field(default_factory=list)
    relays: list[Relay] = field(default_factory=list)
    lives: int = 0

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Everything runs."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.place)
            if self.relayed:
                self.relays = await stack.enter_async_context(relays(self.place.server, HUBS))
            await stack.enter_async_context(self.crowd)
            stack.push_async_callback(self._kill_all)
            for name in "ABC"[:HUBS]:
                self.door(name)
            self.nodes += await asyncio.gather(*map(self._start, range(HUBS)))
            yield

    @property
    def exact(self) -> float:
        """Seconds after which all is true: less for those who have no patience."""
        return min(EXACT, 4 * self.patience)

    async def _kill_all(self) -> None:
        for node in self.nodes:
            await node.kill()

    async def _start(self, number: int) -> UserNode:
        self.lives += 1
        door = self.crowd.doors[number]
        return await UserNode.start(
            self.relays[number].url if self.relays else self.place.url,
            door.name,
            door,
            self.ledger,
            self.directory / f"{door.name}.log",
            users=len(self.crowd.users),
            first=self.lives * STRIDE,
            pause=PAUSE,
            drain=DRAIN,
            seed=f"{self.seed} {self.lives}",
            faults=",".join(self.broken) or None,
        )

    async def replace(self, number: int, *, gently: bool) -> None:
        """Ends a hub, gently or with kill -9, and starts it again."""
        node = self.nodes[number]
        await (node.terminate() if gently else node.kill())
        if not gently:
            self.ledger.kill()
        self.nodes[number] = await self._start(number)
        self.nodes[number].publish()

    # --- a round ---

    async def play(self, faults: Callable[[UserTrial], Awaitable[int]]) -> None:
        """One round, and its judgement."""
        self.crowd.be(Mood.BUSY)
        for node in self.nodes:
            node.publish()
        self.faults += await faults(self)
        await self.settle(*self.nodes)
        await self._examine("confirmed")
        await self._examine("failed")
        await self._examine("plain")
        if self.round % SILENT_ROUNDS == 1:
            await self._examine("nothing")
            # The messages are acknowledged on the next connections.
            await self.reconnect()
            await self.cleared(self.nodes)
        # It takes some seconds: hubs that were killed count until their leases have ended.
        if not self.quick or self.round == self.rounds:
            await self._judge_presence()

    # --- examinations ---

    async def _examine(self, how: str) -> None:
        known = set(self.ledger.examined)
        for node in self.nodes:
            node.examine(how)

        def answered() -> set[Message]:
            return self.ledger.examined.keys() - known

        asked = len(self.nodes) * len(self.crowd.users)
        if not await self.progress(lambda: asked - len(answered())):
            text = f"of {asked} messages to be {how}, {asked - len(answered())} did not end"
            self.violate("waiting", text, asked - len(answered()))
        end, is_told = ENDS[how]
        self._judge_ends(how, end, answered())
        if is_told:
            await self._judge_reports(how, answered())
        elif how == "plain":
            await self._judge_plain(answered())

    def _judge_ends(self, how: str, end: str, messages: Collection[Message]) -> None:
        wrong = [each for each in messages if self.ledger.examined[each] != end]
        if wrong:
            which = ", ".join(
                f"{_text(each)} in {self.ledger.examined[each]}" for each in wrong[:5]
            )
            self.violate("misled", f"{how}: {which} ended, and not in {end}", len(wrong))

    async def _judge_reports(self, how: str, messages: Collection[Message]) -> None:
        """A message that is told twice is a violation already."""

        def untold() -> list[Message]:
            return [each for each in messages if each not in self.ledger.told]

        if not await self.progress(lambda: len(untold())):
            which = ", ".join(map(_text, untold()[:5]))
            self.violate("told", f"{how}: no failure handler heard of {which}", len(untold()))

    async def _judge_plain(self, messages: Collection[Message]) -> None:
        def unheard() -> list[str]:
            return [
                f"{device}, {'away' if device.door is None else f'at {device.door.name}'}, did not "
                f"hear {_text((user, name))}"
                for user, name in messages
                for device in self.crowd.users[user].devices
                if not self.ledger.has_seen(device, name)
            ]

        if not await self.progress(lambda: len(unheard())):
            missing = unheard()
            self.violate("late", f"plain: {', '.join(missing[:5])}", len(missing))

    # --- presence ---

    async def _judge_presence(self) -> None:
        """Some users leave; then all hubs have to know who is there."""
        users = list(self.crowd.users.values())
        leaving = random.sample(users, random.randint(1, len(users) // 2))
        devices = [device for user in leaving for device in user.devices]
        self.crowd.be(Mood.AWAY, devices)
        await self.progress(lambda: sum(device.door is not None for device in devices))
        deadline = time.monotonic() + self.exact
        while wrong := await self._wrong_presence():
            if time.monotonic() > deadline:
                text = f"after {self.exact:g} s: {'; '.join(wrong[:5])}"
                self.violate("presence", text, len(wrong))
                break
            await asyncio.sleep(0.1)

    async def _wrong_presence(self) -> list[str]:
        wrong = []
        answers = await asyncio.gather(*(node.presence(EXACT) for node in self.nodes))
        present = self.ledger.present()
        for node, answer in zip(self.nodes, answers, strict=True):
            if "trouble" in answer:
                wrong.append(f"{node.name}: {answer['trouble']}")
                continue
            hubs = answer.pop("hubs")
            if len(hubs) != len(self.nodes):
                wrong.append(f"{node.name} knows the hubs {hubs}")
            wrong += [
                f"{node.name}, {room}: {found}, and there are {sorted(present[room])}"
                for room, found in answer.items()
                if set(found) != present[room]
            ]
        return wrong

    # --- the end ---

    async def end(self) -> None:
        """All has been seen; the hubs stop, and leave nothing on the bus that stays."""
        await self.stay()
        await self.cleared(self.nodes)
        await self.finish(*self.nodes)
        wrong: list[str] = []

        async def is_clean() -> bool:
            wrong[:] = await asyncio.to_thread(self._wrong_keys)
            return not wrong

        deadline = time.monotonic() + self.exact
        while not await is_clean():
            if time.monotonic() > deadline:
                self.violate("keys", "; ".join(wrong[:8]), len(wrong))
                break
            await asyncio.sleep(0.1)
        for log in sorted(self.directory.glob("?.log")):
            for text in trouble(log):
                self.violate("broken", f"{log.name}: {text}")

    def _wrong_keys(self) -> list[str]:
        """The keys that live for too long, and the channels that are subscribed; blocks."""
        found = []
        with redis.Redis(port=self.place.server.port, protocol=2) as client:
            for key in client.scan_iter(count=1000):
                name = key.decode()
                kind = name.removeprefix(PREFIX).partition(":")[0]
                life = client.ttl(key)
                if life != -2 and not 0 <= life <= LIVES.get(kind, -1):  # -2: gone meanwhile
                    found.append(f"the key {name} lives for {life} s")
            channels = client.pubsub_channels(f"{PREFIX}*")
        return found + [f"the channel {each.decode()} is subscribed" for each in channels]


def _text(message: Message) -> str:
    user, (sender, number) = message
    return f"{sender} {number} to {user}"
