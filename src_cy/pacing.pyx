"""When a connection is read, and when not; see pacing.pxd."""

from wsc_fast._core.clock cimport passed
from wsc_fast._core.engine cimport Engine
from wsc_fast._core.outbox cimport OPEN
from wsc_fast._core.picows_connection cimport PicowsConnection
from wsc_fast._core.rates cimport RATE_CLOSE, RATE_DROP, new_allowance

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_coarse_now()


cdef class Ending:
    """The end of a connection (internal)."""

    def __cinit__(self):
        self.close_slot = -1
        self.reason = ""


cdef class PacedConnection(PicowsConnection):
    """A connection that is not read at times (internal; `Client` is the public class)."""

    cdef int close_transport(self) except -1:
        return 0

    cdef Ending begin_ending(self):
        if self.ending is None:
            self.ending = Ending.__new__(Ending)
        return self.ending

    cdef object any_transport(self):
        if self.stream is None and self.handshake is not None:
            return self.handshake.transport
        return self.stream

    cdef int pause_reading(self, int reason) except -1:
        if self.stream is not None and self.state <= OPEN and not self.is_lost_early():
            if not self.reading_paused:
                self.stream.pause_reading()
            self.reading_paused |= reason
            self.halted = True  # the rest of this read waits too
        return 0

    cdef int resume_reading(self, int reasons) except -1:
        if self.reading_paused & reasons:
            self.reading_paused &= ~reasons
            self.halted = self.reading_paused & ~PAUSED_FOR_TURN != 0
            if not self.reading_paused:
                if self.deferred_input is not None:
                    # First what was read already, at its turn.
                    self.reading_paused = PAUSED_FOR_TURN
                    self.engine.turns.queue(self)
                elif self.stream is not None:
                    self.stream.resume_reading()
        return 0

    cdef int listened(self) except -1:
        PicowsConnection.listened(self)
        if self.is_lost_early():
            self.engine.turns.queue(self)
        elif self.ended_inside:
            self.ended_inside = False
            if not self.eof_received() and self.stream is not None:
                self.close_transport()
        return 0

    cdef bint within_rate(self, Py_ssize_t size) except -1:
        """Counts a message against the client's rates; whether the message is to be heard."""
        cdef Engine engine = self.engine
        cdef double now = wsc_coarse_now() + passed
        cdef double owed
        cdef str limit
        if self.allowance is None:
            self.allowance = new_allowance(&engine.rates, now)
        owed = self.allowance.count(&engine.rates, size, now)
        if owed <= 0:
            return True
        engine.counters.rate_limited += 1
        limit = self.allowance.limit_met(&engine.rates)
        if engine.rates.action == RATE_CLOSE:
            self.refuse_over(limit, 1008, "too many messages")
            return False
        engine.over(limit)
        if engine.rates.action == RATE_DROP:
            self.allowance.give_back(&engine.rates, size)
            return False
        if self.allowance.timer is None:
            self.pause_reading(PAUSED_FOR_RATE)
            self.allowance.timer = engine.loop_context.call_later(owed, self._rate_passed)
        return True

    cdef bint is_paused(self) noexcept:
        return self.reading_paused != 0

    cdef bint wait_for_turn(self) except -1:
        cdef object stream = self.transport_now()
        if stream is None or self.reading_paused & PAUSED_FOR_TURN:
            return False
        if not self.reading_paused:
            stream.pause_reading()
        self.reading_paused |= PAUSED_FOR_TURN
        return True

    cdef int take_turn(self) except -1:
        cdef object stream
        if self.listening:
            self.interrupted = True  # a loop inside its callback: the end of that comes first
            return 0
        self.turn = self.engine.turns.number
        self.reading_paused &= ~PAUSED_FOR_TURN
        if self.is_lost_early():
            return self.take_last_turn()
        stream = self.transport_now()
        if stream is None and not (self.secure and self.state == OPEN):
            self.deferred_input = None  # it was ended while it waited
        if not self.reading_paused:
            try:
                self.take_deferred_input()
            except BaseException:
                if stream is not None:
                    stream.abort()  # as transports do with a protocol that fails in a read
                raise
        stream = self.transport_now()
        if stream is not None and not self.reading_paused:
            stream.resume_reading()
        return 0

    cdef int take_last_turn(self) except -1:
        """Its transport has gone: what has come of it is heard, and then that it has gone."""
        cdef tuple lost = self.ending.lost_early
        self.halted = False
        self.take_deferred_input()
        if self.deferred_input is not None:
            return self.engine.turns.queue(self)
        self.ending.lost_early = None
        self.connection_lost(lost[0])
        return 0

    cdef object transport_now(self):
        cdef object stream = self.any_transport()
        return None if stream is None or stream.is_closing() else stream

    def _rate_passed(self):
        """The client is read again if it owes nothing any more; else the timer is set once more."""
        cdef Engine engine = self.engine
        cdef double owed
        self.allowance.timer = None
        if self.state != OPEN:
            return
        owed = self.allowance.owed(&engine.rates, wsc_coarse_now() + passed)
        if owed > 0:
            self.allowance.timer = engine.loop_context.call_later(owed, self._rate_passed)
        else:
            self.resume_reading(PAUSED_FOR_RATE)

    cdef int end_timers(self) except -1:
        if self.allowance is not None and self.allowance.timer is not None:
            self.allowance.timer.cancel()
            self.allowance.timer = None
        return 0
