"""Turns of connections that send much, so that they do not hold up the others.

Heavy reads have a budget in each turn of the loop. Once it is spent, a connection that sends much
is not read until its turn comes (`Sink.take_turn`), first come, first served, one of the requests
and one of the clients. A connection that sends little never waits (receiver.pxd).

    spend      a heavy read took so long; beyond the budget its connection has to wait
    has_turn   whether a connection may be heard now
    wait       a connection stops reading, and waits for its turn
    queue      a connection that has stopped already waits for its turn
    run        once in a turn of the loop, before the loop reads: the next few have their turn

Ownership: the queues hold a reference to each connection that waits; `attach` drops them.
"""

cimport cython

from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.outbox cimport Sink


@cython.final
cdef class ReadTurns:
    cdef:
        LoopContext loop_context
        Py_ssize_t heavy_read        # a read of this many bytes is one
        # Deques of Sink, not read until their turn comes: who is no client yet, and the others.
        object requests
        object readers
        bint requests_next
        Py_ssize_t at_once           # how many have a turn in one turn of the loop
        unsigned long long number    # of the turn; who has its turn carries it
        double began
        double budget                # seconds, of this turn
        double least_budget
        double deadline              # when the heavy read under way is to stop
        double spent                 # seconds, of this turn of the loop
        bint crowded
        bint called                  # the loop is to call `run`

    # Sets the bytes of a heavy read, and the least seconds that such reads have in a turn.
    cdef int set(self, Py_ssize_t heavy_read, double budget) except -1
    # Likewise, by whether the hub bounds what its clients may send.
    cdef int set_rated(self, bint rated) except -1
    # Nobody waits any more: the loop is another one.
    cdef int attach(self) except -1
    cdef Py_ssize_t count_waiting(self) except -1
    # Whether the one whose last turn this was may be heard now.
    cdef inline bint has_turn(self, unsigned long long turn) noexcept:
        return not self.crowded or (turn == self.number and self.spent <= self.budget)
    # `more`: there may be more to read of it.
    cdef int spend(self, Sink receiver, double spent, bint more) except -1
    cdef int wait(self, Sink receiver) except -1
    cdef int queue(self, Sink receiver) except -1
    cdef int call(self) except -1
