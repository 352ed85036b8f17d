"""Turns of connections that send much; see read_turns.pxd."""

from collections import deque

from libc.math cimport INFINITY

from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.outbox cimport CONNECTING, Sink
from wsc_fast._core.read_buffer cimport READ_SMALL

cdef extern from "net.h" nogil:
    double wsc_now()

cdef enum:
    MOST_AT_ONCE = 64
    # A heavy read of a hub that bounds what its clients may send, in bytes; of others READ_SMALL.
    READ_LEAST = 1024
# Seconds that heavy reads may take of one turn of the loop before the others wait for the next: as
# much as everything else took of the last one, within these bounds.
cdef double BUDGET = 0.0003
cdef double BUDGET_MOST = 0.001
# The least of a hub that bounds what its clients may send, and so expects no more of any of them.
cdef double BUDGET_RATED = 0.00015


cdef class ReadTurns:
    """The turns of connections that send much (internal)."""

    def __cinit__(self, LoopContext loop_context not None):
        self.loop_context = loop_context
        self.requests = deque()
        self.readers = deque()
        self.at_once = 1
        self.set_rated(False)
        self.deadline = INFINITY
        self.number = 1

    cdef int set(self, Py_ssize_t heavy_read, double budget) except -1:
        self.heavy_read = heavy_read
        self.least_budget = self.budget = budget
        return 0

    cdef int set_rated(self, bint rated) except -1:
        return self.set(READ_LEAST, BUDGET_RATED) if rated else self.set(READ_SMALL, BUDGET)

    cdef int attach(self) except -1:
        self.requests.clear()
        self.readers.clear()
        self.crowded = self.called = False
        return 0

    cdef Py_ssize_t count_waiting(self) except -1:
        return len(self.requests) + len(self.readers)

    cdef int spend(self, Sink receiver, double spent, bint more) except -1:
        """A heavy read took so long; beyond the budget of this turn its connection has to wait."""
        self.spent += spent
        self.call()
        if self.crowded or self.spent > self.budget:
            self.crowded = True
            if more:
                self.wait(receiver)
        return 0

    cdef int wait(self, Sink receiver) except -1:
        return self.queue(receiver) if receiver.wait_for_turn() else 0

    cdef int queue(self, Sink receiver) except -1:
        if receiver.state == CONNECTING:
            self.requests.append(receiver)
        else:
            self.readers.append(receiver)
        return self.call()

    cdef int call(self) except -1:
        if not self.called and self.loop_context.loop is not None:
            self.loop_context.call_soon(self.run)
            self.called = True
        return 0

    def run(self):
        """Once in a turn of the loop, before it reads: the next few may.

        Thread-safety: the loop's thread.
        """
        cdef double now = wsc_now()
        cdef double others = now - self.began - self.spent
        cdef double began
        cdef Py_ssize_t most
        cdef object queue
        self.called = False
        if self.spent > self.budget:
            self.at_once = max(1, self.at_once // 2)
        elif self.at_once < MOST_AT_ONCE:
            self.at_once += 1
        # Without anybody waiting the loop may have slept since, and so it says nothing.
        self.budget = self.least_budget
        if self.crowded:
            self.budget = min(max(others, self.least_budget), BUDGET_MOST)
        self.began = now
        self.number += 1
        self.spent = 0
        most = min(self.at_once, self.count_waiting())
        try:
            # A connection that waited may have had its turn in a loop inside a callback.
            while most > 0 and self.count_waiting() and self.spent <= self.budget:
                # Requests and clients alternate, so that neither crowd holds up the other.
                self.requests_next = not self.requests_next
                queue = self.requests if self.requests_next else self.readers
                if not queue:
                    queue = self.readers if self.requests_next else self.requests
                most -= 1
                began = wsc_now()
                self.deadline = began + self.budget
                (<Sink>queue.popleft()).take_turn()
                self.spent += wsc_now() - began
        finally:
            # An error of one must not cost the others their turn.
            self.deadline = INFINITY
            self.crowded = self.count_waiting() > 0
            if self.crowded:
                self.call()
