"""Very many timers at the cost of one: what is due in one hundredth of a second fires together.

Setting and taking back are O(1); the loop has one timer, for the first that is due.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds; a timer fires at most this much late.
TICK = 0.01


class Timers(Generic[T]):
    """Calls `fire(item)` when the time of an item has come.

    Args:
        fire: must not raise. It may also be called for an item that was taken back while others
            of the same slot fired.

    Thread-safety: the loop's thread.
    """

    def __init__(self, fire: Callable[[T], None]) -> None:
        self._fire = fire
        self._slots: dict[int, set[T]] = {}
        self._order: list[int] = []  # a heap of the keys of `_slots`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0  # the slot that `_timer` is set for

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def set(self, item: T, when: float) -> int:
        """Has an item fire at a time of the loop's clock; returns what takes it back."""
        slot = math.ceil(when / TICK)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = items = set()
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._next:
                self._schedule()
        items.add(item)
        return slot

    def cancel(self, item: T, slot: int) -> None:
        items = self._slots.get(slot)
        if items is not None:
            items.discard(item)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._order.clear()

    def _schedule(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._order[0]
        self._timer = self._loop.call_at(self._next * TICK, self._run)

    def _run(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        while self._order and self._order[0] * TICK <= now + TICK / 2:
            for item in self._slots.pop(heapq.heappop(self._order)):
                self._fire(item)
        if self._order and self._timer is None:
            self._schedule()
