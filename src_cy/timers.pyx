"""Very many timers at the cost of one; see timers.pxd."""

from contextvars import Context
from heapq import heapify, heappop, heappush
from operator import call

from libc.math cimport ceil, floor

from wsc_fast.errors import ValidationError

cdef extern from *:
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "net.h" nogil:
    double wsc_now()

# Seconds; an item fires at most this much after its time, where the loop is on time.
TICK = 0.01
cdef double SLOT = TICK
# Seconds behind a slot's time from which on the loop came late. The turns of a loop whose callbacks
# do not block are shorter: their work has budgets of a few milliseconds each.
LATE = 0.02
cdef double LATENESS = LATE
# Turns that a late loop has before items fire. The first one reads what lies in the sockets. The
# others let that have its effect: a task goes on that waited for it, or a peer that had connected
# is accepted, its request read, its client made known (two turns on uvloop, four on asyncio).
TURNS = 6
cdef int PATIENCE = TURNS
# Seconds of a turn. A hub has three such sets of timers, which may all have much to do in one turn.
cdef double BUDGET = 0.002
# Connections that may end in one turn. To abort one takes 2 microseconds, but the end of its
# transport, later in the same turn, another 70.
MOST_ENDS = 32
# Times of a loop's clock that are as good as never (30,000 years), and long past.
cdef double FARTHEST = 1e12
cdef long long LONG_PAST = -1
# A heap of so few keys is not worth looking at.
cdef Py_ssize_t FEW_KEYS = 64


cdef class Timers:
    """Calls `fire(item)` when the time of an item has come.

    Args:
        fire: called in a context of its own (contextvars); without it items are callables, which
            are called. Exceptions go to the loop's exception handler, and the other items fire
            all the same.
        budget: seconds of a turn of the loop that firing may take; one item may exceed it.
        most: items of a turn, for items that cause the loop more work than `fire` itself.

    Thread-safety: the loop's thread.
    """

    def __init__(self, fire=call, double budget=BUDGET, Py_ssize_t most=PY_SSIZE_T_MAX):
        self.fire = fire
        self.budget = budget
        self.most = most
        # Not the context of the code that happened to set the first timer.
        self.context = Context()
        self.attach(None)

    def attach(self, loop):
        """Begins anew, without an item, on a loop or on none; a former loop is left alone."""
        self.loop = loop
        # A former loop may go on for a while, in the child of a fork, and make its call.
        self.attachment = object()
        self.timer = None
        self.slots = {}
        self.order = []
        self.called = False
        self.passed = self.slot = LONG_PAST
        self.firing = {}
        self.line = iter(())

    cpdef long long set(self, item, double when) except -1:
        """Has an item fire at a time of the loop's clock; returns what takes it back.

        An item that is set twice fires twice, but for one slot.
        """
        cdef long long slot
        cdef dict items
        if when != when:
            raise ValidationError(f"a timer needs a time of the loop's clock, not {when}")
        slot = <long long>ceil(min(max(when, 0), FARTHEST) / SLOT)
        if slot <= self.passed:
            slot = self.passed + 1
        items = self.slots.get(slot)
        if items is None:
            self.slots[slot] = items = {}
            heappush(self.order, slot)
            if not self.called or slot < self.next:
                self.schedule()
        items[item] = None
        return slot

    cpdef int cancel(self, item, long long slot) except -1:
        """Takes an item back; what `set` returned for it tells where it is."""
        cdef dict items
        if slot == self.slot:
            self.firing.pop(item, None)
            return 0
        items = self.slots.get(slot)
        if items is not None:
            items.pop(item, None)
            if not items:
                del self.slots[slot]
                self.forget_gone()
        return 0

    def clear(self):
        """Takes everything back."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.called = False
        self.slots.clear()
        self.order.clear()
        self.firing.clear()

    cdef int forget_gone(self) except -1:
        """Makes the heap anew once most of its keys are of slots that are gone."""
        if len(self.order) > 2 * len(self.slots) + FEW_KEYS:
            self.order = list(self.slots)
            heapify(self.order)
        return 0

    # --- what the loop calls ---

    cdef int schedule(self) except -1:
        """Has the loop call us when the next item is due; at once where one was left over."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.called = False
        if self.firing:
            self.next = self.passed
            self.timer = self.loop.call_soon(
                self._fire_some, self.attachment, context=self.context
            )
        else:
            while self.order and self.order[0] not in self.slots:
                heappop(self.order)
            if not self.order:
                return 0
            self.next = self.order[0]
            self.timer = self.loop.call_at(
                self.next * SLOT, self._come, self.attachment, context=self.context
            )
        self.called = True
        return 0

    def _come(self, attachment):
        """The time of a slot has come, or is past."""
        cdef double now
        if attachment is not self.attachment:
            return
        now = self.loop.time()
        self.timer = None
        self.called = False
        # Half a slot too early may be the loop's rounding.
        self.passed = <long long>floor(now / SLOT + 0.5)
        if not self.take_next():
            self.schedule()
        elif now > self.slot * SLOT + LATENESS:
            self.next = self.passed
            self.called = True
            self.turns = PATIENCE
            self._wait_turn(attachment)
        else:
            self._fire_some(attachment)

    def _wait_turn(self, attachment):
        # The loop calls in each turn before it reads (uvloop), or before what it has read is taken
        # (asyncio): so one call is no turn yet, and each further one is.
        if attachment is not self.attachment:
            return
        wait = self._wait_turn if self.turns else self._fire_some
        self.turns -= 1
        self.timer = self.loop.call_soon(wait, attachment, context=self.context)

    cdef bint take_next(self) except -1:
        """Makes the first slot that is due the one that fires; False where none is."""
        cdef dict items = None
        while items is None and self.order and self.order[0] <= self.passed:
            self.slot = heappop(self.order)
            items = self.slots.pop(self.slot, None)
        if items is None:
            return False
        self.firing = items
        # The dict tells what is still to fire. Its first key, time and again, would cost a walk
        # over all that were deleted before it.
        self.line = iter(list(items))
        return True

    def _fire_some(self, attachment):
        cdef double until
        cdef Py_ssize_t fired = 0
        cdef bint more = True
        if attachment is not self.attachment:
            return
        until = wsc_now() + self.budget
        self.timer = None
        self.called = True
        self.next = self.passed
        try:
            while more:
                for item in self.line:
                    if item in self.firing:
                        del self.firing[item]
                        fired += 1
                        self.fire(item)
                        if fired >= self.most or wsc_now() >= until:
                            more = False
                            break
                else:
                    more = self.take_next()
        finally:
            if not self.firing:
                self.line = iter(())  # the former one keeps what it has walked over
            # An error of one must not cost the others their turn.
            self.schedule()
