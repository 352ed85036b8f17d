"""Very many timers at the cost of one; see timers.pxd."""

import heapq
from contextvars import Context

from libc.math cimport ceil

# Seconds; a timer fires at most this much late.
TICK = 0.01
cdef double SLOT = TICK


cdef class Timers:
    """Calls `fire(item)` when the time of an item has come.

    Args:
        fire: called in a context of its own (contextvars).

    Thread-safety: the loop's thread.
    """

    def __init__(self, fire):
        self.fire = fire
        self.slots = {}
        self.order = []
        # Not that of whoever happened to set the first timer.
        self.context = Context()

    def attach(self, loop):
        self.loop = loop

    cpdef long long set(self, item, double when) except -1:
        """Has an item fire at a time of the loop's clock; returns what takes it back."""
        cdef long long slot = <long long>ceil(when / SLOT)
        cdef dict items = self.slots.get(slot)
        if items is None:
            self.slots[slot] = items = {}
            heapq.heappush(self.order, slot)
            if self.timer is None or slot < self.next:
                self.schedule()
        items[item] = None
        return slot

    cpdef int cancel(self, item, long long slot) except -1:
        cdef dict items = self.slots.get(slot)
        if items is not None:
            items.pop(item, None)
        return 0

    def clear(self):
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.slots.clear()
        self.order.clear()

    cdef int schedule(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
        self.next = self.order[0]
        self.timer = self.loop.call_at(self.next * SLOT, self._run, context=self.context)
        return 0

    def _run(self):
        cdef double now = self.loop.time()
        cdef dict items
        self.timer = None
        try:
            while self.order and self.order[0] * SLOT <= now + SLOT / 2:
                items = self.slots[self.order[0]]
                while items:
                    item = next(iter(items))
                    del items[item]
                    self.fire(item)
                del self.slots[heapq.heappop(self.order)]
        finally:
            # Whatever one of them did, the others get their turn.
            if self.order and self.timer is None:
                self.schedule()
