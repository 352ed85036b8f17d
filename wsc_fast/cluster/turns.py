"""The work on what a bus has brought, in short turns of the loop.

A bus may bring thousands of messages at once: after a burst, or after a time without it. Each piece
of work is an iterator; each step of it gives one message or settles one client. Steps are done at
once while the turn's budget lasts and the clients' outboxes have room. The others are done in the
next turns, in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic

# Seconds of a turn.
BUDGET = 0.002

Steps = Iterator[None]


class Turns:
    """The work of one hub.

    Args:
        may_give: whether the outboxes have room for another message.
        idle: is called when no work is left.

    Thread-safety: the loop's thread.
    """

    def __init__(self, may_give: Callable[[], bool], idle: Callable[[], object]) -> None:
        self._may_give = may_give
        self._idle = idle
        self._work: deque[Steps] = deque()
        self._until = 0.0  # the end of the turn, on the clock of `monotonic`
        self._next: asyncio.Handle | None = None  # the next turn, where work waits for it

    def __len__(self) -> int:
        """How many pieces of work wait, the one that is being done included."""
        return len(self._work)

    def run(self, steps: Steps) -> None:
        """Does a piece of work behind all that came before: now, if there is time."""
        self._work.append(steps)
        if len(self._work) == 1:
            # All that is done in one turn of the loop shares its budget.
            now = monotonic()
            if now > self._until + BUDGET:
                self._until = now + BUDGET
            self._go_on()

    def forget(self) -> None:
        """Drops all work; the hub has stopped."""
        self._work.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        self._until = monotonic() + BUDGET
        self._go_on()

    def _go_on(self) -> None:
        try:
            while self._work and self._may_go_on():
                self._do(self._work[0])
        finally:
            if not self._work:
                self._idle()
            elif self._next is None:
                self._next = asyncio.get_running_loop().call_soon(self._turn)

    def _may_go_on(self) -> bool:
        return self._may_give() and monotonic() < self._until

    def _do(self, steps: Steps) -> None:
        try:
            for _ in steps:
                if not self._may_go_on():
                    return
        except BaseException:
            self._end(steps)
            raise
        self._end(steps)

    def _end(self, steps: Steps) -> None:
        if self._work and self._work[0] is steps:  # else all was dropped meanwhile
            self._work.popleft()
