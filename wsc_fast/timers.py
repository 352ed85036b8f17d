"""Very many timers at the cost of one: what is due in one hundredth of a second fires together.

Setting and taking back are O(1); the loop has one timer, for the first that is due.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from contextvars import Context
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds; a timer fires at most this much late.
TICK = 0.01


class Timers(Generic[T]):
    """Calls `fire(item)` when the time of an item has come.

    Args:
        fire: called in a context of its own (contextvars).

    Thread-safety: the loop's thread.
    """

    def __init__(self, fire: Callable[[T], None]) -> None:
        self._fire = fire
        self._slots: dict[int, dict[T, None]] = {}  # in the order of setting
        self._order: list[int] = []  # a heap of the keys of `_slots`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Not that of whoever happened to set the first timer.
        self._context = Context()
        self._next = 0  # the slot that `_timer` is set for

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def set(self, item: T, when: float) -> int:
        """Has an item fire at a time of the loop's clock; returns what takes it back."""
        slot = math.ceil(when / TICK)
        items = self._slots.get(slot)
        if items is None:
            self._slots[slot] = items = {}
            heapq.heappush(self._order, slot)
            if self._timer is None or slot < self._next:
                self._schedule()
        items[item] = None
        return slot

    def cancel(self, item: T, slot: int) -> None:
        items = self._slots.get(slot)
        if items is not None:
            items.pop(item, None)

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
        self._timer = self._loop.call_at(self._next * TICK, self._run, context=self._context)

    def _run(self) -> None:
        assert self._loop is not None
        self._timer = None
        now = self._loop.time()
        try:
            while self._order and self._order[0] * TICK <= now + TICK / 2:
                items = self._slots[self._order[0]]
                while items:
                    item = next(iter(items))
                    del items[item]
                    self._fire(item)
                del self._slots[heapq.heappop(self._order)]
        finally:
            # Whatever one of them did, the others get their turn.
            if self._order and self._timer is None:
                self._schedule()
