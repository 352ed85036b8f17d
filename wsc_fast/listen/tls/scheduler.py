"""When TLS handshakes have their turns, so that they leave the loop time for the rest."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

# Seconds that handshakes may have of each turn of the loop, if its other work takes no three times
# as long; beyond, what is read is left for the next turn. One step of one may exceed it.
_LEAST_BUDGET, _MOST_BUDGET = 0.001, 0.004
# Seconds that a step costs besides, where it is the last one: the end of a task, an exception.
_AFTERMATH = 0.00007


class Handshake(Protocol):
    """A handshake under way, as its turns concern it."""

    def wait(self) -> None:
        """Has the loop not report what there is to read, until `step`."""

    def step(self) -> None:
        """Reads once, and has the loop tell of what comes next."""


class HandshakeScheduler:
    """Bounds the part of each turn of the loop that TLS handshakes take.

    Args:
        loop: which turns.
        begin: looks at so many that would begin theirs, and says whether more wait for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[int], bool]) -> None:
        self._loop = loop
        self._begin = begin
        self._waiting: deque[Handshake] = deque()
        self._called = False  # the next turn is taken
        self._used = False  # this one is
        self._began = 0.0
        self._spent = 0.0
        self._budget = _LEAST_BUDGET

    def call(self) -> None:
        """Somebody waits for a turn."""
        self._used = True
        if not self._called:
            self._called = True
            self._began = time.perf_counter()
            self._loop.call_soon(self._turn)

    def read(self, handshake: Handshake) -> None:
        """A handshake under way has something to read, now or in a later turn."""
        self.call()
        if self._spent < self._budget:
            self._step(handshake)
        else:
            handshake.wait()
            self._waiting.append(handshake)

    def _step(self, handshake: Handshake) -> None:
        began = time.perf_counter()
        try:
            handshake.step()
        finally:
            self._spent += time.perf_counter() - began + _AFTERMATH

    def _turn(self) -> None:
        now = time.perf_counter()
        others = now - self._began - self._spent
        self._budget = min(_MOST_BUDGET, max(_LEAST_BUDGET, others / 3))
        self._began, self._spent = now, 0.0
        # One more turn than is used: only of those that follow on each other the time is known.
        self._called = self._used
        if not self._called:
            self._budget = _LEAST_BUDGET
            return
        self._loop.call_soon(self._turn)
        while self._waiting and self._spent < self._budget:
            self._step(self._waiting.popleft())
        most = 1 if self._waiting else int(self._budget / _LEAST_BUDGET)
        began = time.perf_counter()
        self._used = self._begin(most) or bool(self._waiting)
        self._spent += time.perf_counter() - began
