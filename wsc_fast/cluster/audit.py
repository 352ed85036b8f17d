"""Asks the bus now and then about rooms of which no message tells.

The last message of a room may be missing here, and no later one says so. The bus may have lost
messages that no chain has. Each server of the bus is asked apart from the others, and not while it
owes an answer: one that is away does not keep the others from being asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from wsc_fast.errors import BusError

if TYPE_CHECKING:
    from wsc_fast.cluster.chain import Chain
    from wsc_fast.cluster.rooms import Rooms

# Seconds between two audits.
EVERY = 10.0
# Rooms of one question, at most.
_ROOMS = 500

_Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
# The subject, and the number of the server.
_Question = tuple[str, int]


class Audit:
    """The audits of one hub.

    Args:
        rooms: of the hub.
        spawn: runs a coroutine as a task of the hub.

    Thread-safety: the loop's thread.
    """

    def __init__(self, rooms: Rooms, spawn: _Spawn) -> None:
        self._rooms = rooms
        self._spawn = spawn
        self._last = 0.0
        self._asking: dict[_Question, asyncio.Task[None]] = {}
        self._left_out: set[_Question] = set()

    def soon(self) -> None:
        """Has the next `look` ask: the bus may have lost something."""
        self._last = 0.0

    def look(self, now: float) -> None:
        """Asks if it is time; to be called each second or so.

        Args:
            now: on the loop's clock.
        """
        if now - self._last < EVERY:
            return
        self._last = now
        chains = self._rooms.chains()
        for server in range(self._rooms.servers() if chains else 0):
            self._ask(("chains", server), partial(self._compare, server, chains))
        accepted = self._rooms.accepted
        for server in accepted.servers():
            self._ask(("accepted", server), partial(accepted.check, server, now))

    def forget(self) -> None:
        """The hub has stopped, and has ended its tasks."""
        self._last = 0.0
        self._asking.clear()
        self._left_out.clear()

    def _ask(self, question: _Question, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if question in self._asking:
            self._left_out.add(question)
            return
        task = self._asking[question] = self._spawn(work())
        task.add_done_callback(partial(self._answered, question))

    def _answered(self, question: _Question, task: asyncio.Task[None]) -> None:
        if self._asking.get(question) is not task:
            return  # of the run before
        del self._asking[question]
        if question in self._left_out:
            self._left_out.discard(question)
            self.soon()

    async def _compare(self, server: int, chains: Sequence[Chain]) -> None:
        """Has chains of a server heal that do not have the newest message of their room."""
        for start in range(0, len(chains), _ROOMS):
            few = chains[start : start + _ROOMS]
            some = [each for each in few if each.server == server and each.is_silent]
            if not some:
                await asyncio.sleep(0)
                continue
            before = [chain.last for chain in some]
            try:
                tops = await self._rooms.tops([chain.room for chain in some])
            except OSError:
                return  # every chain heals when the server is back
            except BusError as error:
                self._rooms.not_audited(error)
                return
            for chain, last, top in zip(some, before, tops, strict=True):
                if chain.is_silent and chain.last == last != top:
                    chain.heal()
