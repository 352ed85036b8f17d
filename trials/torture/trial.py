"""One run of a scenario under way, and the quiet end of its rounds.

In the quiet senders pause, users stay where they are, and everything that was accepted has to
arrive, leave the store once it is acknowledged, and end for its sender.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trials.crowd import Door, Mood
from trials.torture.ledger import Ledger, ranges
from trials.torture.process import Look, Server
from trials.torture.stores import Place
from trials.torture.users import Crowd


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
        if not await self.progress(self.unseen):
            await self._report_missing("late", "did not see", servers)
            await self.reconnect()
            await self.progress(self.unseen)
        if not online:
            await self.reconnect()
        await self.cleared(servers)

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
        everybody = len(self.crowd.members)
        await self.progress(lambda: everybody - len(self.crowd.absent()))

    def unseen(self) -> int:
        """The number of messages that were accepted, and have not been seen."""
        return self.ledger.total(self.ledger.missing)

    async def progress(self, left: Callable[[], int], patience: float = 0.0) -> bool:
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
                text = f"{user} {what} {ranges(names)}; {where}; {history}"
                self.violate(kind, text, len(names))

    async def cleared(self, servers: Collection[Server]) -> None:
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
                who = self.crowd.users[user]
                text = (
                    f"{ranges(names)} lie in the store for {user}, who is {who.where()} and has "
                    f"seen {ranges(names & self.ledger.names_seen[user])} of that; "
                    f"pending in {look.server}: {ranges(look.pending.get(user, ()))}; "
                    f"{who.history()}"
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
        if not await self.progress(lambda: len(self.crowd.absent())):
            for device in self.crowd.absent():
                self.violate("broken", f"{device} cannot connect: {device.history()}")

    async def back_after(self, seconds: float) -> None:
        """The store comes back after so long."""
        await asyncio.sleep(seconds)
        await self.place.back()
        self.event("the store is back")

    async def accepts(self, server: Server, count: int) -> None:
        """Waits for so many more messages to be accepted: a slow machine takes longer."""
        count += server.accepted_since.total()
        await self.progress(lambda: count - server.accepted_since.total())

    async def fill(self, server: Server) -> None:
        """Nobody is there, and messages are sent until the store refuses some for everybody."""
        server.publish()
        wanted = 3 * len(self.crowd.users)
        if not await self.progress(lambda: wanted - server.refused, patience=60.0):
            self.violate("broken", "the disk never got full")
        await self.pause(server)

    async def takes_messages(self, server: Server) -> None:
        """Whether the store takes messages for everybody, though nobody is there."""
        await self.leave()
        server.publish()
        shut = lambda: len(self.crowd.users) - len(server.accepted_since)  # noqa: E731
        if not await self.progress(shut):
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
        await self.progress(self.unseen)
        await self._report_missing("lost", "never saw", servers)
        for server in servers:
            await server.terminate()
        self.ledger.judge()


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
