"""Whether the peer of a connection is still there; see pings.pxd."""

from cpython.object cimport PyObject
from libc.float cimport DBL_MAX

from wsc_fast._core.clock cimport aged, passed
from wsc_fast._core.closing cimport CONN_ERROR, ClosableConnection
from wsc_fast._core.frames cimport FIN_PONG, encode
from wsc_fast._core.outbox cimport (
    CLOSING,
    NO_MEMORY,
    OPEN,
    RUN_CONTROL,
    outbox_push,
    outbox_trim,
)
from wsc_fast._core.pacing cimport PAUSED_FOR_IDENTITY
from wsc_fast._core.rates cimport RATE_DROP
from wsc_fast._core.receiver cimport CLOSE, PING, PONG

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_now()
    int wsc_progress(int fd, double* since_data, unsigned long long* acked)
    bint wsc_peer_ended(int fd)
    bint wsc_peer_left(int fd)
    bint wsc_was_reset(int fd)

cdef bytes PING_FRAME = b"\x89\x00"
# Conflation keys of control frames, which no application can name: a newer ping or pong replaces
# one that still waits.
cdef object PING_KEY = object()
cdef object PONG_KEY = object()

# Seconds between two looks at a peer that is not read.
cdef double LOOK = 1.0

cdef enum:
    # Bytes of a few pings on the wire, over TLS too. The peer's kernel may have acknowledged these
    # by itself; more than that was read by the peer.
    PING_BYTES = 256
    # Pongs that wait one by one; beyond that a newer one replaces the newest.
    MOST_PONGS = 32


def acknowledged(int descriptor):
    """The bytes that a connection's peer has acknowledged in all (internal).

    Args:
        descriptor: of its socket.

    Returns:
        int: 0 where the kernel does not tell.

    Thread-safety: any thread.
    """
    cdef double since_data = 0
    cdef unsigned long long acked = 0
    return acked if wsc_progress(descriptor, &since_data, &acked) == 0 else 0


cdef class PingedConnection(ClosableConnection):
    """A connection that pings, and answers pings (internal; `Client` is the public class)."""

    def __cinit__(self):
        self.round_trip = -1

    # --- before its identity is known ---

    cdef int hold_back(self) except -1:
        if self.engine.turns.deadline == DBL_MAX or self.is_lost_early():
            # Its stream has ended (`take_rest`, `take_last_turn`): it will never be let in.
            self.input_closed = True
            return 0
        self.engine.over("authentication_input_bytes")
        self.pause_reading(PAUSED_FOR_IDENTITY)
        return self.look_later()

    cdef int look_later(self) except -1:
        if self.arrival.look_slot < 0:
            self.arrival.look_slot = self.engine.deadlines.set(
                self._look, self.engine.loop_context.loop.time() + LOOK
            )
        return 0

    cdef int end_looks(self) except -1:
        if self.arrival is not None and self.arrival.look_slot >= 0:
            self.engine.deadlines.cancel(self._look, self.arrival.look_slot)
            self.arrival.look_slot = -1
        return 0

    def _look(self):
        """Whether it has left, which nobody reads while it is paused (the loop's thread)."""
        if self.arrival is None:
            return
        self.arrival.look_slot = -1
        if not self.reading_paused & PAUSED_FOR_IDENTITY:
            return
        if wsc_was_reset(self.descriptor):  # which not every transport tells of once it was paused
            self.end = CONN_ERROR
            self.abort()
        elif wsc_peer_left(self.descriptor):
            self.input_closed = True  # the rest is read up to its end, and forgotten
            self.deferred_input = None
            self.resume_reading(PAUSED_FOR_IDENTITY)
        else:
            self.look_later()

    # --- control frames ---

    cdef int take_control(self, int opcode, const char* payload, Py_ssize_t size) except -1:
        if opcode == CLOSE:
            return self.take_close(payload, size)
        if opcode == PONG and self.pong_due:
            self.pong_due = False  # the hub has asked for it: no rate bounds it
            self.round_trip = <float>(wsc_now() + passed - self.pinged_at)
            self.engine.round_trips.add(self.round_trip)
        elif (
            self.engine.rates.bounded
            and self.engine.rates.action != RATE_DROP  # a ping is to be answered
            and self.state == OPEN and not self.within_rate(size)
        ):
            return 0
        if opcode == PING:
            # Each is answered, through the outbox; of a flood the latest (RFC 6455 section 5.5.3).
            if self.state < CLOSING:
                return self.push_control(
                    encode(FIN_PONG, payload, size),
                    None if self.box.runs[RUN_CONTROL] < MOST_PONGS else PONG_KEY,
                )
        elif self.transport is not None:
            self.transport.auto_ping_expect_pong = False
        return 0  # of a pong it counts that it came

    cdef int push_control(self, bytes frame, object key) except -1:
        self.engine.fanout.detach_if_batched(self)
        if outbox_push(
            &self.box, &self.engine.fanout.limits, &self.engine.fanout.counters,
            <PyObject*>frame, NULL if key is None else <PyObject*>key, RUN_CONTROL,
        ) == NO_MEMORY:
            raise MemoryError("no memory for an outbox")
        return self.engine.fanout.mark(self)

    cdef int end_timers(self) except -1:
        self.end_looks()
        return ClosableConnection.end_timers(self)

    cdef int ping(self) except -1:
        return self.push_control(PING_FRAME, PING_KEY)

    # --- the heartbeat's look ---

    cdef int check_alive(self, double now) except -1:
        cdef double since_data = 0
        cdef unsigned long long acked = 0
        cdef double idle = now - self.last_seen
        if self.state != OPEN:
            return self.engine.clients.expel(self)  # there was no memory for it when it left
        self.engine.outbox_depth.add_count(self.box.count)
        if self.may_close():
            outbox_trim(&self.box)
        if self.listening or self.is_lost_early():
            self.last_seen = now  # it is we who have not heard all yet
            return 0
        if self.reading_paused:
            self.last_seen = now  # it is we who do not listen
            if self.unfinished is not None:
                self.unfinished.since = now
            if wsc_was_reset(self.descriptor):  # which no read tells of
                self.end = CONN_ERROR
                return self.abort()
            return 0
        if self.secure and (
            self.stream.is_closing() or wsc_peer_ended(self.descriptor)
        ):
            # Not every TLS transport tells of the end of the peer's stream.
            self.end_of_stream()
            return 0
        if (
            self.unfinished is not None
            and now - self.unfinished.since >= self.engine.message_timeout
        ):
            return self.refuse_over("message_timeout", 1008, "a message that takes too long")
        if idle >= self.engine.heartbeat_timeout:
            # A long first frame that still arrives, which on a picows server of the application's
            # picows reads, or a long backlog still being read, is no silence.
            if wsc_progress(self.descriptor, &since_data, &acked) == 0:
                since_data = aged(since_data)
                if since_data < self.engine.heartbeat_timeout and since_data < idle:
                    self.last_seen = now - since_data
                    return 0
                if acked > self.acked + PING_BYTES:
                    self.acked = acked
                    self.last_seen = now
                    return 0
            self.engine.counters.heartbeat_timeouts += 1
            self.begin_close(1001, "heartbeat timeout")
            self.engine.application.connection_lost(
                self, f"heartbeat timeout: nothing came from the client for {idle:.3g} s"
            )
            return 0
        if idle >= self.engine.heartbeat_interval:
            if now - self.pinged_at >= self.engine.heartbeat_interval:
                self.pinged_at = wsc_now() + passed
                self.pong_due = True
                wsc_progress(self.descriptor, &since_data, &self.acked)
                return self.ping()
        return 0
