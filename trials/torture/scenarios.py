"""The scenarios: what happens to servers and stores while users come and go.

Each takes a Trial and goes through its rounds. A round ends quietly (`Trial.settle`): senders
pause, users stay where they are, and everything that was accepted has to arrive.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trials.crowd import Door, Mood
from trials.torture.ledger import Ledger, ranges
from trials.torture.process import Look, Server
from trials.torture.stores import Place, SmallDisk
from trials.torture.users import Crowd

# Numbers that one life of a sender has for itself, so that none is used twice.
STRIDE = 1_000_000
# A server is killed once it has accepted so many messages.
LEAST_ACCEPTED, MOST_ACCEPTED = 50, 1000
# Rounds after which `full-disk` begins with an empty disk: a database file does not shrink.
DISK_ROUNDS = 5


class Countdown:
    """Notices when something that has to come down to nothing gets no less for too long."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._least = math.inf
        self._since = 0.0  # when it became so little

    def has_stalled(self, left: int) -> bool:
        """Takes how much is left now; whether that has not got less for longer than `patience`."""
        now = time.monotonic()
        if left < self._least:
            self._least, self._since = left, now
        return now - self._since > self._patience


@dataclass
class Trial:
    """One run of a scenario over one store."""

    rounds: int
    place: Place
    crowd: Crowd
    ledger: Ledger
    directory: Path
    seed: str
    # Seconds without any progress after which something is late: an arrival, a deletion, the
    # answer to a sender.
    patience: float
    fault: str | None = None
    first_only: bool = False  # end with the first round that has violations
    round: int = 0
    reported: set[object] = field(default_factory=set)  # the `Look.keys` of what was left
    events: deque[str] = field(default_factory=lambda: deque(maxlen=4))

    async def start(self, sender: str, door: Door, **options: Any) -> Server:
        """A server over the store of this trial."""
        return await Server.start(
            self.place.url,
            sender,
            door,
            self.ledger,
            self.directory / f"{sender}.log",
            within=self.place.within,
            users=len(self.crowd.users),
            seed=f"{self.seed} {self.round}",
            fault=self.fault,
            **options,
        )

    def door(self, name: str, *, shared: bool = False) -> Door:
        """An address that the users go to from now on."""
        door = Door(name, shared=shared)
        self.crowd.doors.append(door)
        return door

    def violate(self, kind: str, text: str, count: int = 1) -> None:
        happened = f"; {', '.join(self.events)}" if self.events else ""
        self.ledger.violate(kind, f"round {self.round}: {text}{happened}", count)

    # --- a round's quiet end ---

    async def settle(self, *servers: Server, online: bool = True) -> None:
        """Everybody stays where he is, and all has to come to its end.

        Args:
            servers: all that run.
            online: whether it has to do so while the users stay connected. Otherwise, what was
                not deleted from the store may wait until they come once more.
        """
        await self.stay()
        await self.pause(*servers)
        if not await self._progress(self.unseen):
            await self._report_missing("late", "did not see", servers)
            await self.reconnect()
            await self._progress(self.unseen)
        if not online:
            await self.reconnect()
        await self._cleared(servers)

    async def pause(self, *servers: Server) -> None:
        """Has the senders pause; each of them has to hear what became of what it sent."""
        answers = await asyncio.gather(*(server.pause(self.patience) for server in servers))
        for server, answer in zip(servers, answers, strict=True):
            if not answer:
                look = await server.look(self.patience)
                text = (
                    f"`accepted` neither returned nor raised within {self.patience:g} s in "
                    f"{server.name}, of {_some(look.accepting)}"
                )
                self.violate("waiting", text, len(look.accepting))

    async def reconnect(self) -> None:
        """Everybody leaves, and comes again."""
        await self.leave()
        await self.stay()

    async def leave(self) -> None:
        """Everybody leaves."""
        self.crowd.be(Mood.AWAY)
        everybody = len(self.crowd.users)
        await self._progress(lambda: everybody - len(self.crowd.absent()))

    def unseen(self) -> int:
        """How many messages were accepted, and have not been seen."""
        return self.ledger.total(self.ledger.missing)

    async def _progress(self, left: Callable[[], int], patience: float = 0.0) -> bool:
        """Waits until nothing is left; False once that does not get less for a while."""
        countdown = Countdown(patience or self.patience)
        while (remaining := left()) > 0:
            if countdown.has_stalled(remaining):
                return False
            await asyncio.sleep(0.02)
            self.crowd.check()
        return True

    async def _report_missing(self, kind: str, what: str, servers: Collection[Server]) -> None:
        looks = [await server.look(self.patience) for server in servers]
        for user, names in self.ledger.missing.items():
            if names:
                where = "; ".join(look.where(user, names) for look in looks) or "no server runs"
                history = self.crowd.users[user].history()
                text = f"{user} {what} {ranges(names)}; {where}; {user}: {history}"
                self.violate(kind, text, len(names))

    async def _cleared(self, servers: Collection[Server]) -> None:
        """All that was acknowledged leaves the store, and all senders hear of it."""
        countdown = Countdown(self.patience)
        while True:
            looks = [await server.look(self.patience) for server in servers]
            for look in looks:
                look.forget(self.reported)
            left = sum(look.left() for look in looks)
            if left == 0:
                return
            if countdown.has_stalled(left):
                break
            await asyncio.sleep(0.05)
        for look in looks:
            self._report_left(look)
            self.reported |= look.keys()

    def _report_left(self, look: Look) -> None:
        if look.trouble:
            self.violate("broken", f"{look.server} cannot read the store: {look.trouble}")
        for user, names in look.stored.items():
            if names:
                door = self.crowd.users[user].door
                where = f"connected to {door.name}" if door is not None else "away"
                text = (
                    f"{ranges(names)} lie in the store for {user}, who is {where} and has seen "
                    f"{ranges(names & self.ledger.names_seen[user])} of that; "
                    f"pending in {look.server}: {ranges(look.pending.get(user, ()))}; "
                    f"{user}: {self.crowd.users[user].history()}"
                )
                self.violate("left", text, len(names))
        if look.awaiting:
            text = (
                f"awaiting the acknowledgement has not ended in {look.server}, of "
                f"{_some(look.awaiting)}, though all has been acknowledged"
            )
            self.violate("waiting", text, len(look.awaiting))

    # --- steps of the scenarios ---

    def each_round(self) -> Iterator[int]:
        """The numbers of the rounds, from 1."""
        while self.round < self.rounds:
            self.round += 1
            yield self.round
            if self.first_only and self.ledger.counts:
                return

    def event(self, text: str) -> None:
        """Notes something that happened to a store, for reports."""
        self.events.append(f"{self.ledger.now()} {text}")

    async def stay(self) -> None:
        """Everybody connects, and stays where he is from now on."""
        self.crowd.be(Mood.CALM)
        if not await self._progress(lambda: len(self.crowd.absent())):
            for user in self.crowd.absent():
                self.violate("broken", f"{user.name} cannot connect: {user.history()}")

    async def back_after(self, seconds: float) -> None:
        """The store comes back after so long."""
        await asyncio.sleep(seconds)
        await self.place.back()
        self.event("the store is back")

    async def accepts(self, server: Server, count: int) -> None:
        """Waits for so many more messages to be accepted: a slow machine takes longer."""
        count += server.accepted_since.total()
        await self._progress(lambda: count - server.accepted_since.total())

    async def fill(self, server: Server) -> None:
        """Nobody is there, and messages are sent until the store refuses some for everybody."""
        server.publish()
        wanted = 3 * len(self.crowd.users)
        if not await self._progress(lambda: wanted - server.refused, patience=60.0):
            self.violate("broken", "the disk never got full")
        await self.pause(server)

    async def takes_messages(self, server: Server) -> None:
        """Whether the store takes messages for everybody, though nobody is there."""
        await self.leave()
        server.publish()
        shut = lambda: len(self.crowd.users) - len(server.accepted_since)  # noqa: E731
        if not await self._progress(shut):
            closed = sorted(set(self.crowd.users) - set(server.accepted_since))
            text = (
                f"{server.name} stores nothing for {_some(closed)}; "
                f"the last of {server.refused} refusals: {server.last_refusal or 'none'}"
            )
            self.violate("closed", text, len(closed))
        await self.pause(server)

    async def finish(self, *servers: Server) -> None:
        """The last look: what has not been seen now is lost."""
        self.crowd.be(Mood.CALM)
        await self._progress(self.unseen)
        await self._report_missing("lost", "never saw", servers)
        for server in servers:
            await server.terminate()
        self.ledger.judge()


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- the scenarios ---


async def killed(trial: Trial) -> None:
    """A server is killed with SIGKILL at a random moment, and the next one starts."""
    door = trial.door("A")
    trial.crowd.be(Mood.BUSY)
    for number in trial.each_round():
        server = await trial.start("A", door, first=number * STRIDE)
        server.publish()
        await trial.accepts(server, random.randint(LEAST_ACCEPTED, MOST_ACCEPTED))
        await server.kill()
    server = await trial.start("A", door)
    await trial.settle(server)
    await trial.finish(server)


async def full_disk(trial: Trial) -> None:
    """Messages fill a small disk; once the users have acknowledged, it takes messages again."""
    assert isinstance(trial.place, SmallDisk)
    door = trial.door("A")
    server: Server | None = None
    for number in trial.each_round():
        await trial.leave()
        if server is not None:
            await random.choice([server.kill, server.terminate])()
        if number % DISK_ROUNDS == 1 and not trial.unseen():
            await trial.place.renew(random.choice([0, 1_000_000, 2_000_000]))
        # The largest go one at a time: more at once for one user leave no room for the others.
        size, wave = random.choice([(0, 8), (200, 8), (2_000, 8), (10_000, 8), (100_000, 1)])
        first = 2 * number * STRIDE
        options = {"size": size, "wave": wave, "pause": 0.005, "retry": 2.0}
        server = await trial.start("A", door, first=first, **options)
        await trial.fill(server)
        if random.random() < 0.5:
            await server.kill()
            server = await trial.start("A", door, first=first + STRIDE, **options)
        trial.crowd.be(Mood.BUSY)
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.settle(server, online=False)
        await trial.takes_messages(server)
        await trial.settle(server, online=False)
    assert server is not None
    await trial.finish(server)


async def late_store(trial: Trial) -> None:
    """The store comes after the server, goes away while users come and go, and comes back."""
    door = trial.door("A")
    server: Server | None = None
    for number in trial.each_round():
        if server is not None:
            await random.choice([server.kill, server.terminate])()
        trial.event(await trial.place.away(at_start=True))
        # Every other round the hub runs first, and the store comes later than the hub waits.
        attach, late = ("after", 1.5) if number % 2 else ("before", random.uniform(0.0, 2.0))
        coming = asyncio.create_task(trial.back_after(late))
        server = await trial.start("A", door, first=number * STRIDE, patience=0.5, attach=attach)
        server.publish()
        trial.crowd.be(Mood.BUSY)
        await coming
        await trial.accepts(server, random.randint(50, 500))
        trial.event(await trial.place.away())
        await trial.back_after(random.uniform(0.2, 1.5))
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.pause(server)
        await trial.takes_messages(server)
        await trial.settle(server, online=False)
    assert server is not None
    await trial.finish(server)


async def two_processes(trial: Trial) -> None:
    """Two servers share a store, both send to all users, and these go from one to the other."""
    doors = [trial.door(name) for name in ("A", "B")]
    servers = [await trial.start(door.name, door) for door in doors]
    for number in trial.each_round():
        if number > 1 and random.random() < 0.25:
            which = random.randrange(2)
            await servers[which].kill()
            door = doors[which]
            servers[which] = await trial.start(door.name, door, first=number * STRIDE)
        trial.crowd.be(Mood.BUSY)
        for server in servers:
            server.publish()
        await trial.accepts(servers[0], random.randint(100, 400))
        # Half of what is sent now goes to users who stay with the other server.
        await trial.stay()
        await trial.accepts(servers[1], random.randint(50, 150))
        await trial.settle(*servers)
    await trial.finish(*servers)


async def rolling_restart(trial: Trial) -> None:
    """Again and again a new server takes over from an old one, which sends until its end."""
    # A socket that both inherit, or two sockets with SO_REUSEPORT: both are usual.
    door = trial.door("the port", shared=not trial.place.url.startswith("redis:"))
    old = await trial.start("A0", door, drain=0.3)
    old.publish()
    for number in trial.each_round():
        trial.crowd.be(Mood.BUSY)
        await trial.accepts(old, random.randint(100, 500))
        new = await trial.start(f"A{number}", door, drain=random.choice([0.0, 0.1, 0.5]))
        new.publish()
        await asyncio.sleep(random.uniform(0.0, 0.5))
        await old.terminate()
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.settle(new)
        new.publish()
        old = new
    await trial.pause(old)
    await trial.finish(old)


@dataclass(frozen=True)
class Scenario:
    """A scenario, and what it takes.

    Attributes:
        play: plays it.
        stores: over which of them.
        users: how many.
        quick: rounds of a quick run.
        store_fails: whether messages may be refused, so that the order of those accepted counts.
    """

    play: Callable[[Trial], Awaitable[None]]
    stores: tuple[str, ...] = ("sqlite", "redis")
    users: int = 8
    quick: int = 2
    store_fails: bool = False


SCENARIOS = {
    "kill": Scenario(killed, users=20, quick=3),
    "full-disk": Scenario(full_disk, stores=("sqlite",), quick=1, store_fails=True),
    "late-store": Scenario(late_store, quick=1, store_fails=True),
    "two-processes": Scenario(two_processes),
    "rolling-restart": Scenario(rolling_restart),
}
