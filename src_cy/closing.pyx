"""The end of a connection; see closing.pxd."""

from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8

from wsc_fast._core.frames cimport check_close_code, encode_close
from wsc_fast._core.members cimport Room
from wsc_fast._core.outbox cimport (
    CLOSED,
    CLOSING,
    NO_MEMORY,
    OPEN,
    outbox_clear,
    outbox_close,
    outbox_data,
)
from wsc_fast._core.pacing cimport PAUSED_FOR_TURN, Ending, PacedConnection

from wsc_fast.errors import HubStoppedError, ProtocolError, ValidationError

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it


# The reasons of failure that stand for CONN_CLOSED, CONN_ERROR and SEND_TIMEOUT.
cdef tuple REASONS = ("conn_closed", "conn_error", "send_timeout")


cdef class ClosableConnection(PacedConnection):
    """A connection, from the beginning of its close on (internal; `Client` is the public class)."""

    cdef int drop_context(self) except -1:
        return 0

    # --- the close frame ---

    cdef int send_away(self, int code, str reason) except -1:
        if self.state <= OPEN and self.stream is not None:
            return self.begin_close(code, reason)
        return 0

    cdef int take_close(self, const char* payload, Py_ssize_t size) except -1:
        cdef int code = 0
        cdef str reason = ""
        cdef bint sound = True
        self.hear_gathered()
        self.input_closed = True
        self.peer_closed = True
        if self.state >= CLOSING:
            if self.may_close():
                return self.drained()
            return 0
        if size == 1:
            return self.refuse(1002, "a close frame of one byte")
        if size >= 2:
            code = (<unsigned char>payload[0] << 8) | <unsigned char>payload[1]
            try:
                check_close_code(code)
            except ValidationError:
                sound = False
            if not sound:
                return self.refuse(1002, "invalid close code")
            try:
                reason = PyUnicode_DecodeUTF8(payload + 2, size - 2, NULL)
            except UnicodeDecodeError:
                sound = False
            if not sound:
                return self.refuse(1007, "invalid UTF-8 in the close reason")
        self.begin_ending().reason = reason
        self.end_code = code or 1005
        self.engine.count_close(self.end_code, True)
        # The peer's own code comes back, and an empty close for an empty one (section 5.5.1).
        return self.begin_close(code, "")

    cdef int failed(self, object error) except -1:
        self.failing = self.failing or self.input_closed
        self.hear_gathered()
        try:
            self.engine.application.report(self, error)
        finally:
            if self.state <= OPEN:
                self.begin_close(1011, "")
        return 0

    cdef int fail(self, int code, str reason, str limit) except -1:
        """Fails the connection (RFC 6455 section 7.1.7): the peer broke the protocol or a bound."""
        self.hear_gathered()
        if self.state >= CLOSING:
            return 0
        self.failing = True
        self.engine.counters.protocol_errors += 1
        self.begin_close(code, reason)
        self.engine.application.protocol_failed(self, ProtocolError(code, reason, limit))
        return 0

    cdef int begin_close(self, int code, str reason) except -1:
        cdef bytes frame
        if self.state >= CLOSING:
            return 0
        frame = b"\x88\x00" if code == 0 else encode_close(code, reason)
        if not self.end_code:
            self.begin_ending().reason = reason
            self.end_code = code
            self.engine.count_close(code, False)
        try:
            self.leave()
            self.limit_close()
            if outbox_close(&self.box, <PyObject*>frame) == NO_MEMORY:
                return self.abort()
            self.close_queued = True
            self.resume_reading(~PAUSED_FOR_TURN)
            return self.engine.fanout.mark(self)
        except BaseException:
            if self.engine.loop_context.loop.is_closed():
                raise HubStoppedError("the loop of the hub is closed") from None
            self.abort()
            raise

    cdef int limit_close(self) except -1:
        """Begins the time that closing may take, unless it runs already."""
        cdef Ending ending = self.begin_ending()
        if ending.close_slot < 0:
            ending.close_slot = self.engine.deadlines.set(
                self._abort_for_timeout,
                self.engine.loop_context.loop.time() + self.engine.close_timeout,
            )
        return 0

    cdef int leave(self) except -1:
        """CLOSING: out of every set, with nothing more to hear."""
        self.state = CLOSING
        self.leave_sets()
        self.engine.clients.closing.add(self)
        self.unfinished = None
        if self.arrival is not None:
            self.arrival.held = None
        return 0

    cdef int leave_sets(self) except -1:
        if self.memberships is not None:
            # With rooms that were deleted just now, whose end `on_room_left` has not heard of.
            try:
                self.begin_ending().rooms = tuple(
                    [members.id for members in self.memberships if isinstance(members, Room)]
                )
            except MemoryError:
                pass  # nobody hears of them: what matters is that it leaves
        return self.engine.clients.expel(self)

    # --- its sending half gives up ---

    cdef int broken(self, int error) except -1:
        self.end = CONN_ERROR
        return self.abort()

    cdef int too_slow(self, PyObject* frame) except -1:
        cdef unsigned int dropped
        cdef Py_ssize_t nbytes = self.box.nbytes
        cdef list frames = None
        if self.state != OPEN:
            return 0
        if self.engine.fanout.tells_losses():
            frames = outbox_data(&self.box)
        dropped = outbox_clear(&self.box)
        # The message that found no room is one more.
        self.engine.counters.slow_disconnects += 1
        self.engine.counters.dropped_slow += dropped + 1
        self.box.dropped += dropped + 1
        self.begin_close(1013, "slow consumer")
        self.engine.application.too_slow(self, dropped, nbytes)
        if frames is not None:
            self.engine.lose_queued(self, frames, "queue_full")
            self.engine.lose_queued(self, [<bytes>frame], "broadcast_full")
        return 0

    # --- the transport ---

    cdef bint may_close(self) noexcept:
        return self.box.count == 0 and not self.blocked

    cdef int drained(self) except -1:
        """The close frame is with the kernel."""
        if self.stream is None:
            return 0
        if self.peer_closed:
            # The server closes TCP first (RFC 6455 section 7.1.1).
            self.close_transport()
        elif self.failing:
            try:
                if self.stream.can_write_eof():
                    self.stream.write_eof()
                else:
                    self.close_transport()
            except OSError:
                self.stream.abort()  # the peer has reset the connection meanwhile
        return 0

    cdef int close_transport(self) except -1:
        cdef object stream = self.any_transport()
        self.resume_to_close(stream)
        stream.close()
        return 0

    cdef int resume_to_close(self, object stream) except -1:
        """To be called before a transport closes, or is closed."""
        if self.drains:
            # aiofastnet 1.2 hears no answer, nor its end, of a peer whose transport closes while it
            # is paused, and does not resume one that closes.
            stream.resume_reading()
        return 0

    def _abort_for_timeout(self):
        self.ending.close_slot = -1
        self.engine.over("close_timeout")
        self.end = SEND_TIMEOUT
        self.abort()

    cdef int abort(self) except -1:
        """Ends the connection at once; connection_lost follows in a later turn."""
        if self.state < CLOSING:
            self.leave()
        self.engine.fanout.unmark(self)
        if self.stream is not None:
            self.stream.abort()
        return 0

    cdef bint end_of_stream(self) except -1:
        """The peer half-closed; returns whether the transport is to stay open for writing.

        Queued messages still go out, within the close timeout: a close frame that it has sent just
        before is answered, and so is a request by a client that only reads from then on.
        """
        if self.state < CLOSING:
            self.leave()
        self.input_closed = True
        self.peer_closed = True
        self.limit_close()
        # TLS transports close whatever is returned.
        return not self.secure and not self.may_close()

    def connection_lost(self, error):
        """The transport is gone (asyncio.BaseProtocol)."""
        if error is not None and self.end == CONN_CLOSED:
            self.end = CONN_ERROR
        if self.listening or (
            self.deferred_input is not None
            and error is None and self.secure and self.handshake is None
        ):
            # Its received bytes are heard first. TLS may bring its end in the same read, and
            # uvloop's TLS closes though it is paused. The descriptor may be another's by then.
            self.begin_ending().lost_early = (error,)
            self.fd = self.descriptor = -1
            self.engine.fanout.set_blocked(self, True)
            if not self.listening:
                self.engine.turns.queue(self)
            return
        self.deferred_input = None
        if self.handshake is not None:
            self.handshake.lost()
            self.handshake = None
        self.tell_picows_lost(error)
        self.gone()

    def eof_received(self):
        """The peer half-closed (asyncio.BufferedProtocol)."""
        cdef object stream = self.any_transport()
        if self.listening:
            self.ended_inside = True  # what has come of it is heard first
            if stream is not None:
                self.resume_to_close(stream)
            return not self.secure
        if self.secure and self.deferred_input is not None and self.handshake is None:
            if stream is not None:
                self.resume_to_close(stream)
            return False  # what has come of it is heard when its transport has gone
        self.take_rest()
        if stream is not None:
            self.resume_to_close(stream)
        return self.stream is not None and self.end_of_stream()

    cdef int gone(self) except -1:
        cdef unsigned int lost
        cdef list frames = None
        cdef bint broken = self.end_code == 0
        self.engine.fanout.set_blocked(self, False)
        if self.state == CLOSED or self.stream is None:
            return 0
        self.state = CLOSED
        self.input_closed = True
        self.fd = -1
        self.unfinished = None
        if self.arrival is not None:
            self.arrival.held = None
            self.arrival.positions = None
        self.tail = None
        self.context = None
        if broken:
            self.end_code = 1006
            self.engine.count_close(1006, False)
        self.engine.fanout.unmark(self)
        self.engine.clients.closing.discard(self)
        self.engine.connections -= 1
        try:
            if self.engine.fanout.tells_losses() and self.box.count:
                frames = outbox_data(&self.box)
                if self.close_queued:
                    frames.pop()  # the last one is our close frame
            self.leave_sets()
            self.end_timers()
        except BaseException as error:
            self.engine.application.report(self, error)
        lost = outbox_clear(&self.box)
        if lost and self.close_queued:
            lost -= 1
        self.engine.counters.dropped_closed += lost
        self.box.dropped += lost
        self.let_go()
        if frames:
            try:
                self.engine.lose_queued(self, frames, REASONS[self.end])
            except BaseException as error:
                self.engine.application.report(self, error)
        try:
            if broken and self.announced:
                self.engine.application.connection_lost(
                    self, "the connection broke: it ended without a close frame"
                )
            self.engine.admission.disconnected(self, self.announced)
        except BaseException as error:
            self.engine.application.report(self, error)
        self.arrival = None
        return self.drop_context()

    cdef int end_timers(self) except -1:
        if self.ending is not None and self.ending.close_slot >= 0:
            self.engine.deadlines.cancel(self._abort_for_timeout, self.ending.close_slot)
            self.ending.close_slot = -1
        return PacedConnection.end_timers(self)

    cdef int forget(self) except -1:
        cdef unsigned int lost = outbox_clear(&self.box)
        self.engine.counters.dropped_closed += lost
        self.box.dropped += lost
        self.state = CLOSED
        self.input_closed = True
        self.fd = -1
        self.dirty_at = -1
        self.engine.fanout.set_blocked(self, False)
        if self.ending is not None:
            self.ending.close_slot = -1
        if self.allowance is not None:
            self.allowance.timer = None
        return self.let_go()

    cdef int let_go(self) except -1:
        """Undoes by hand what made a cycle, so that nothing waits for the garbage collector."""
        cdef object stream = self.stream
        self.stream = None
        return self.leave_picows(stream)
