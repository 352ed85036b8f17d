"""One connection, from the accepted upgrade to the end of its transport.

Rules
1.  No callback here raises into the transport: a user's exception is reported, a peer's fault
    closes.
2.  A client leaves every set of the hub before its close frame is queued, and the dirty list
    before its transport is aborted, so that nothing finds it in between.
3.  The application hears of a client once when it is open, and once when its transport is gone,
    and of nothing of it before, between or after that the other rules do not allow.
4.  Every close has one timer, started when it begins and not extended by anything.

States: CONNECTING -> OPEN -> CLOSING -> CLOSED, or from any state straight to CLOSED. In CLOSING
data is neither heard nor sent (RFC 6455 sections 5.5.1 and 7.1); what was queued before the close
still goes out ahead of the close frame.

receiver.pyx takes what a peer's bytes say, fanout.pyx sends frames, picows_connection.pyx has what
concerns picows, and rates.pyx counts what a client sends.

Ownership: a client holds its transport, and the transport holds it, as its protocol, until the
connection is lost; `let_go` undoes by hand what makes a cycle. The engine's sets hold it while it
is open or closing, the queues of turns while it waits there.
"""

import asyncio
from datetime import datetime, timezone
from functools import partial
from time import time as wall_time

from aiofastnet import Transport as AiofastnetTransport
from cpython.contextvars cimport (
    PyContext_Copy,
    PyContext_CopyCurrent,
    PyContext_Enter,
    PyContext_Exit,
)
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.unicode cimport (
    PyUnicode_Contains,
    PyUnicode_DecodeUTF8,
    PyUnicode_GET_LENGTH,
)

from wsc_fast._core.deflate cimport Context
from wsc_fast._core.engine cimport NO_ACK, SETTLED, Engine
from wsc_fast._core.frames cimport (
    FIN_PONG,
    check_close,
    check_close_code,
    encode,
    encode_close,
)
from wsc_fast._core.members cimport Room, rooms_of
from wsc_fast._core.outbox cimport (
    CLOSED,
    CLOSING,
    CONNECTING,
    NO_MEMORY,
    OPEN,
    RUN_CONTROL,
    outbox_clear,
    outbox_close,
    outbox_data,
    outbox_push,
    outbox_trim,
)
from wsc_fast._core.picows_connection cimport PicowsConnection
from wsc_fast._core.rates cimport RATE_CLOSE, RATE_DROP, Allowance, new_allowance
from wsc_fast._core.receiver cimport CLOSE, PING, PONG

from picows import WSListener

from wsc_fast.errors import (
    ClientDisconnectedError,
    HubStoppedError,
    ProtocolError,
    ValidationError,
)

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_coarse_now()
    double wsc_now()
    int wsc_progress(int fd, double* since_data, unsigned long long* acked)
    bint wsc_peer_ended(int fd)
    bint wsc_was_reset(int fd)

cdef extern from "Python.h":
    # Without the check for an exception that `PyContext_Enter` has here.
    int try_to_enter "PyContext_Enter"(PyObject* context)

# The names that a Client has for its transport, and as a listener of picows.
cdef frozenset OF_PROTOCOLS = frozenset([*dir(asyncio.BufferedProtocol), *dir(WSListener)])

cdef bytes PING_FRAME = b"\x89\x00"
# Conflation keys of control frames, which no application can name: a newer ping or pong replaces
# one that still waits.
cdef object PING_KEY = object()
cdef object PONG_KEY = object()
# Each acknowledgement holds this text: a message without it is none, and need not be decoded.
cdef str ACK_MARK = '"message_id"'

cdef enum:
    # Bytes of a few pings on the wire, over TLS too. The peer's kernel may have acknowledged these
    # by itself; more than that was read by the peer.
    PING_BYTES = 256
    # Pongs that wait one by one; beyond that a newer one replaces the newest.
    MOST_PONGS = 32
    # Why the socket is not read.
    PAUSED_FOR_CALLBACKS = 1
    PAUSED_FOR_RATE = 2
    PAUSED_FOR_TURN = 4
    # The longest text that may be an acknowledgement.
    ACK_CHARACTERS = 4096
    # How many messages in a row a client has to be allowed after a refused one (receiver.pxd).
    DOUBTS = 64


def peer_address(stream):
    """The IP address of a connection's peer (internal).

    Args:
        stream: an asyncio transport.

    Returns:
        str: the address; "" where there is none.

    Thread-safety: the loop's thread.
    """
    name = stream.get_extra_info("peername")
    if not name or not isinstance(name, tuple):
        return ""
    address = name[0]
    if address.startswith("::ffff:") and "." in address:
        return address[7:]  # IPv4, as a socket of both families tells it
    # A link-local address comes with its interface from some loops.
    return address.partition("%")[0]


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


cdef bint keeps_input(stream):
    # Whether it decrypts, and may be paused with more at hand than it has handed over.
    return (
        isinstance(stream, AiofastnetTransport)
        and stream.get_extra_info("ssl_object") is not None
    )


cdef class Client(PicowsConnection, asyncio.BufferedProtocol):
    """One live WebSocket connection, as the hub's callbacks get it (go-wsc `Client`).

    Stays valid after the connection has gone: `is_connected()` is then False and `send` raises.
    Thread-safety: methods from any thread; attributes are best read in the loop's thread.
    """

    cdef:
        int descriptor             # of its socket, for looking only; Sink.fd is for writing
        bint secure                # TLS
        long long close_slot       # of `Engine.deadlines`, while CLOSING; else -1
        dict data                  # user_data; None until first used
        object variables           # contextvars.Context of its callbacks; None before the first
        object inbox               # callbacks.Inbox while an async callback of it is due
        list held                  # (message, size) before the identity is known
        unsigned long long messages_in
        unsigned long long bytes_in
        object authenticating      # asyncio.Task while an async authenticate runs
        readonly str remote_address
        readonly str subprotocol
        readonly str device_id     # of its Identity, or None
        object end_code            # int, the close code that ended it; None while it is open
        str end_reason
        str end                    # the reason of failure for what was still queued at the end
        double connected_wall      # seconds since the epoch
        double pinged_at           # on the exact clock
        bint pong_due              # the answer to a ping of ours
        float round_trip           # seconds to that answer, the last time; below 0: not known
        unsigned long long acked   # bytes, at the last look (see check_alive)
        bint announced             # on_client_connected has been called
        bint late_address          # of its peer, known only once its upgrade was accepted
        bint counted               # among the connections of its address (`set_counted`)
        bint peer_closed           # the peer's close frame is in
        bint failing               # we closed because of the peer's fault
        unsigned char reading_paused  # by us, bit by bit for what reason
        unsigned char ended_inside    # its peer's stream has, in a loop inside its callback
        Allowance allowance        # None where no rate has counted anything yet
        object rate_timer          # while reading is paused for that
        bint close_queued          # our close frame went into the outbox
        # Its transport has gone, with this error, before all that had come was heard; or None.
        tuple lost_early
        tuple rooms_at_end         # ids; None while it is open, and of a client that was in none
        object pending             # Identity, or an awaitable for it; None once it was asked for

    def __cinit__(self, Engine engine not None):
        self.close_slot = -1
        self.round_trip = -1
        self.remote_address = ""
        self.end_reason = ""

    # --- what the application sees ---

    @property
    def hub(self):
        """Hub: the hub that it is connected to."""
        return self.engine.hub

    @property
    def close_code(self):
        """int | None: the close code that ended the connection; None while it is open.

        The client's where it closed first, 1005 for a close frame without one; else the hub's; 1006
        when the connection ended without a close frame (RFC 6455 section 7.1.5).
        """
        return self.end_code

    @property
    def close_reason(self):
        """str: the reason that came or went with `close_code`."""
        return self.end_reason

    @property
    def connected_at(self):
        """datetime: when the connection was made, UTC."""
        return datetime.fromtimestamp(self.connected_wall, timezone.utc)

    @property
    def last_activity(self):
        """datetime: when a frame last came from the client, UTC, to a few milliseconds."""
        seen = wall_time() - (wsc_coarse_now() - self.last_seen)
        return datetime.fromtimestamp(seen, timezone.utc)

    @property
    def user_data(self):
        """dict: the application's own data on this client; made on first use."""
        if self.data is None:
            self.data = {}
        return self.data

    @property
    def queued_messages(self):
        """int: frames that wait to be sent to it."""
        if self.engine.fanout.in_batch(self) and not self.detached:
            return len(self.engine.fanout.batch_frames)
        return self.box.count

    @property
    def queued_bytes(self):
        """int: bytes of these frames, headers included."""
        if self.engine.fanout.in_batch(self) and not self.detached:
            return self.engine.fanout.batch_bytes
        return self.box.nbytes

    @property
    def dropped_messages(self):
        """int: messages for this client that were dropped, whatever the reason."""
        return self.box.dropped

    @property
    def rooms(self):
        """tuple[str, ...]: the rooms it is in; once it is closing, those it was in until then."""
        return tuple(rooms_of(self)) if self.state <= OPEN else self.rooms_at_end or ()

    def is_connected(self):
        """Whether messages can be sent to it and come from it.

        Returns:
            bool: False from the moment that either side began to close.

        Thread-safety: any thread. Source: go-wsc `IsConnected`.
        """
        return self.state == OPEN

    def stats(self):
        """A snapshot of the counters of this client.

        Returns:
            ClientStats: also of a client that has gone.

        Thread-safety: any thread.
        """
        cdef long long frames = self.frames_sent
        cdef long long sent = self.bytes_out
        self.engine.clients.add_sent(self, &frames, &sent)
        return self.engine.client_stats(
            self, self.messages_in, self.bytes_in, frames, sent, self.box.conflated,
            self.round_trip, self.connected_wall,
        )

    def send(self, message, *, key=None):
        """Queues a message for this client.

        Args:
            message: bytes (a binary message), str (a text message) or a HubMessage; see
                `Hub.broadcast`.
            key: conflation key, a str; see `Hub.broadcast`.

        Raises:
            ClientDisconnectedError: the client is closing or gone.
            QueueFullError: its outbox is full and the overflow policy made no room.
            ValidationError: the message or the key cannot be used.

        Thread-safety: any thread. Source: go-wsc `Client.Send`.
        """
        cdef bytes frame
        cdef int run
        if self.engine.away():
            self.engine.deliveries.send_on_loop(
                partial(self.send, message, key=key), message, self.id, self.user_id
            )
            return
        if self.state != OPEN:
            error = ClientDisconnectedError(f"client {self.id!a} is not connected")
            if self.engine.fanout.tells_losses():
                self.engine.deliveries.refused(message, self.id, "conn_closed", error, self.user_id)
            raise error
        frame = self.engine.framed(message, self.id, &run)
        self.engine.deliver(self, frame, key, run)

    def disconnect(self, code=1000, reason=""):
        """Closes the connection: what is queued goes out first, then the close frame.

        Nothing more is heard of it: messages that wait for an async callback are dropped. The
        transport is aborted when the client has not answered within HubConfig.close_timeout.
        Does nothing when the connection is closing already.

        Args:
            code: close code, 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: text for the client, cut to 123 bytes of UTF-8.

        Raises:
            ValidationError: the code may not be sent, or the reason is not a str; the connection
                is untouched.

        Thread-safety: any thread. Source: go-wsc `Disconnect`.
        """
        check_close(code, reason)
        if self.engine.away():
            self.engine.deliveries.on_loop(partial(self.disconnect, code, reason))
            return
        if self.inbox is not None:
            self.inbox.forget_messages()
        self.send_away(code, reason)

    def set_user_data(self, key, value):
        """Keeps a value under a key of `user_data`.

        Args:
            key: hashable.
            value: anything.

        Thread-safety: any thread. Source: go-wsc `SetUserData`.
        """
        self.user_data[key] = value

    def get_user_data(self, key, default=None):
        """The value kept under a key of `user_data`.

        Args:
            key: hashable.
            default: what to return where there is none.

        Returns:
            object: the value or the default.

        Thread-safety: any thread. Source: go-wsc `GetUserData`.
        """
        return default if self.data is None else self.data.get(key, default)

    def __dir__(self):
        """The public names that are the application's, for completion."""
        names = super().__dir__()
        return [name for name in names if not name.startswith("_") and name not in OF_PROTOCOLS]

    def __repr__(self):
        state = ("connecting", "open", "closing", "closed")[self.state]
        return f"<Client {self.id!a} user={self.user_id!a} {state}>"

    cdef int send_away(self, int code, str reason) except -1:
        if self.state <= OPEN and self.stream is not None:
            return self.begin_close(code, reason)
        return 0

    # --- connecting ---

    def connection_made(self, stream):
        """The transport of a connection to the hub's own server (asyncio.BaseProtocol)."""
        if self.input_closed:
            stream.abort()  # `give_up`
            return
        self.input_closed = True  # what comes is no frame before it is known to be one
        try:
            self.drains = keeps_input(stream)
            self.handshake = self.engine.requests.begin(self, stream)
            self.input_closed = self.handshake is None
        except BaseException as error:
            stream.abort()
            self.engine.application.report(None, error)

    cdef int begin(
        self, object stream, int descriptor, bint secure, str remote_address
    ) except -1:
        self.handshake = None
        self.remote_address = remote_address
        self.write = stream.write
        self.connected_wall = wall_time()
        # From here to the `try` nothing can fail, so that what `gone` takes back is all there.
        self.stream = stream
        self.descriptor = descriptor
        self.secure = secure
        self.fd = -1 if secure or self.packs else descriptor
        self.engine.connections += 1
        self.engine.counters.connections += 1
        try:
            # pause_writing now comes with the first byte that the transport keeps. The loops' TLS
            # transports compare with >=, so that 0 would pause them for ever.
            stream.set_write_buffer_limits(high=1 if secure and not self.drains else 0, low=0)
            if stream.get_write_buffer_size() > 0:
                self.engine.fanout.set_blocked(self, True)
            self.engine.admission.connected(self)
        except BaseException as error:
            self.failed(error)
        return 0

    cdef int begin_on(self, object stream, int descriptor, bint secure) except -1:
        self.late_address = not self.remote_address
        self.drains = keeps_input(stream)
        return self.begin(
            stream, descriptor, secure, self.remote_address or peer_address(stream)
        )

    cdef bytes pack(self, bytes frame):
        return self.context.pack(frame)

    cdef object any_transport(self):
        # The asyncio transport, of a request too; None where there is none yet, or no more.
        if self.stream is None and self.handshake is not None:
            return self.handshake.transport
        return self.stream

    # --- the context of its callbacks ---

    # All callbacks of a client run in one contextvars.Context, and nothing else does: plain ones
    # are called in it, and the task of its Inbox runs in it. A context that is entered cannot be
    # entered again, by a loop inside a callback for one: a copy then does.

    cdef object enter_context(self):
        """Makes its context the current one; returns what PyContext_Exit is to leave."""
        cdef object context = self.variables
        if context is None:
            context = self.variables = PyContext_Copy(self.engine.loop_context.variables)
        elif self.inbox is not None:
            context = PyContext_Copy(context)  # the Inbox's task may go on meanwhile
        if try_to_enter(<PyObject*>context) < 0:
            PyErr_Clear()
            context = PyContext_Copy(context)
            PyContext_Enter(context)
        return context

    cdef int drop_context(self) except -1:
        # It may hold the client itself, once that was set in it.
        if self.state == CLOSED and self.inbox is None:
            self.variables = None
        return 0

    cdef int pause_reading(self, int reason) except -1:
        if self.stream is not None and self.state == OPEN and self.lost_early is None:
            if not self.reading_paused:
                self.stream.pause_reading()
            self.reading_paused |= reason
            self.halted = True  # the rest of this read waits too
        return 0

    cdef int resume_reading(self, int reasons) except -1:
        if self.reading_paused & reasons:
            self.reading_paused &= ~reasons
            self.halted = self.reading_paused & (PAUSED_FOR_CALLBACKS | PAUSED_FOR_RATE) != 0
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
        if self.lost_early is not None:
            self.engine.turns.queue(self)
        elif self.ended_inside:
            self.ended_inside = False
            if not self.eof_received() and self.stream is not None:
                self.close_transport()
        return 0

    cdef bint within_rate(self, Py_ssize_t size) except -1:
        """Counts a message against the client's rates; whether the message is to be heard."""
        cdef Engine engine = self.engine
        cdef double now = wsc_coarse_now()
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
        if self.rate_timer is None:
            self.pause_reading(PAUSED_FOR_RATE)
            self.rate_timer = engine.loop_context.call_later(owed, self._rate_passed)
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
        if self.lost_early is not None:
            return self.take_last_turn()
        if self.transport_now() is None and not (self.secure and self.state == OPEN):
            self.deferred_input = None  # it was ended while it waited
        if not self.reading_paused:
            self.take_deferred_input()
        stream = self.transport_now()
        if stream is not None and not self.reading_paused:
            stream.resume_reading()
        return 0

    cdef int take_last_turn(self) except -1:
        """Its transport has gone: what has come of it is heard, and then that it has gone."""
        cdef tuple lost = self.lost_early
        self.halted = False
        self.take_deferred_input()
        if self.deferred_input is not None:
            return self.engine.turns.queue(self)
        self.lost_early = None
        self.connection_lost(lost[0])
        return 0

    cdef object transport_now(self):
        """The asyncio transport, of a request too; None if it is closing or gone."""
        cdef object stream = self.any_transport()
        return None if stream is None or stream.is_closing() else stream

    def _rate_passed(self):
        """The client is read again if it owes nothing any more; else the timer is set once more."""
        cdef Engine engine = self.engine
        cdef double owed
        self.rate_timer = None
        if self.state != OPEN:
            return
        owed = self.allowance.owed(&engine.rates, wsc_coarse_now())
        if owed > 0:
            self.rate_timer = engine.loop_context.call_later(owed, self._rate_passed)
        else:
            self.resume_reading(PAUSED_FOR_RATE)

    # --- receiving ---

    cdef int take_message(self, object content, Py_ssize_t size) except -1:
        cdef object handler
        cdef object result
        cdef int answer = NO_ACK
        if self.held is not None:
            self.held_bytes += size
            self.held.append((content, size))
            return 0
        if (
            self.engine.ack_filter is not None
            and type(content) is str
            and PyUnicode_GET_LENGTH(content) <= ACK_CHARACTERS
            and PyUnicode_Contains(content, ACK_MARK)
        ):
            answer = self.engine.ack_filter(self, content)
        # The hub has asked for an acknowledgement that settles something: no rate bounds it.
        if self.engine.rates.bounded and answer != SETTLED and not self.within_rate(size):
            return 0
        self.engine.counters.messages_in += 1
        self.engine.counters.bytes_in += size
        self.messages_in += 1
        self.bytes_in += size
        if answer != NO_ACK:
            return 0
        # With an inbox, the hub asks in the message's turn.
        if self.engine.publish_filter is not None and self.inbox is None:
            if not self.engine.publish_filter(self, content):
                self.doubts = DOUBTS
                return 0
            if self.doubts:
                self.doubts -= 1
        handler = self.engine.message_handler
        if handler is not None and self.inbox is None:
            result = None
            try:
                result = self.call_handler(handler, content)
            except BaseException as error:
                self.engine.application.callback_failed(self, error)
            if result is not None:
                self.engine.application.wait_for_result(self, result)
        elif self.engine.message_handlers or self.engine.publish_filter is not None:
            self.engine.application.receive(self, self.engine.message_handlers, content)
        return 0

    cdef object call_handler(self, object handler, object content):
        cdef object context = self.enter_context()
        try:
            return handler(self, content)
        finally:
            PyContext_Exit(context)

    cdef int take_control(self, int opcode, const char* payload, Py_ssize_t size) except -1:
        if opcode == CLOSE:
            return self.take_close(payload, size)
        if opcode == PONG and self.pong_due:
            self.pong_due = False  # the hub has asked for it: no rate bounds it
            self.round_trip = <float>(wsc_now() - self.pinged_at)
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

    cdef int take_close(self, const char* payload, Py_ssize_t size) except -1:
        cdef int code = 0
        cdef str reason = ""
        cdef bint sound = True
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
        self.end_code = code or 1005
        self.end_reason = reason
        self.engine.count_close(self.end_code, True)
        # The peer's own code comes back, and an empty close for an empty one (section 5.5.1).
        return self.begin_close(code, "")

    cdef int failed(self, object error) except -1:
        self.failing = self.failing or self.input_closed
        try:
            self.engine.application.report(self, error)
        finally:
            if self.state <= OPEN:
                self.begin_close(1011, "")
        return 0

    # --- sending ---

    cdef int push_control(self, bytes frame, object key) except -1:
        self.engine.fanout.detach_if_batched(self)
        if outbox_push(
            &self.box, &self.engine.fanout.limits, &self.engine.fanout.counters,
            <PyObject*>frame, NULL if key is None else <PyObject*>key, RUN_CONTROL,
        ) == NO_MEMORY:
            raise MemoryError("no memory for an outbox")
        return self.engine.fanout.mark(self)

    cdef int ping(self) except -1:
        return self.push_control(PING_FRAME, PING_KEY)

    cpdef pause_writing(self):
        self.engine.fanout.set_blocked(self, True)

    cpdef resume_writing(self):
        self.engine.fanout.set_blocked(self, False)
        if self.state == CLOSED:
            return
        if self.handshake is not None:
            self.handshake.drained()
            return
        if self.box.count:
            self.engine.fanout.mark(self)
        elif self.state == CLOSING:
            self.drained()

    cdef int broken(self, int error) except -1:
        self.end = "conn_error"
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
            self.engine.lose(self, frames, "queue_full", None)
            self.engine.lose(self, [<bytes>frame], "broadcast_full", None)
        return 0

    cdef int check_alive(self, double now) except -1:
        cdef double since_data = 0
        cdef unsigned long long acked = 0
        cdef double idle = now - self.last_seen
        if self.state != OPEN:
            return self.engine.clients.expel(self)  # there was no memory for it when it left
        self.engine.outbox_depth.add_count(self.box.count)
        if self.may_close():
            outbox_trim(&self.box)
        if self.listening or self.lost_early is not None:
            self.last_seen = now  # it is we who have not heard all yet
            return 0
        if self.reading_paused:
            self.last_seen = now  # it is we who do not listen
            self.part_since = now
            if wsc_was_reset(self.descriptor):  # which no read tells of
                self.end = "conn_error"
                return self.abort()
            return 0
        if self.secure and (
            self.stream.is_closing() or wsc_peer_ended(self.descriptor)
        ):
            # Not every TLS transport tells of the end of the peer's stream.
            self.end_of_stream()
            return 0
        if self.parts is not None and now - self.part_since >= self.engine.message_timeout:
            return self.refuse_over("message_timeout", 1008, "a message that takes too long")
        if idle >= self.engine.heartbeat_timeout:
            # A long first frame that still arrives, which on a picows server of the application's
            # picows reads, or a long backlog still being read, is no silence.
            if wsc_progress(self.descriptor, &since_data, &acked) == 0:
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
                self.pinged_at = wsc_now()
                self.pong_due = True
                wsc_progress(self.descriptor, &since_data, &self.acked)
                return self.ping()
        return 0

    # --- closing ---

    cdef int fail(self, int code, str reason, str limit) except -1:
        """Fails the connection (RFC 6455 section 7.1.7): the peer broke the protocol or a bound."""
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
        if self.end_code is None:
            self.end_code = code
            self.end_reason = reason
            self.engine.count_close(code, False)
        try:
            self.leave()
            self.limit_close()
            if outbox_close(&self.box, <PyObject*>frame) == NO_MEMORY:
                return self.abort()
            self.close_queued = True
            self.resume_reading(PAUSED_FOR_CALLBACKS | PAUSED_FOR_RATE)
            return self.engine.fanout.mark(self)
        except BaseException:
            if self.engine.loop_context.loop.is_closed():
                raise HubStoppedError("the loop of the hub is closed") from None
            self.abort()
            raise

    cdef int limit_close(self) except -1:
        """Begins the time that closing may take, unless it runs already."""
        if self.close_slot < 0:
            self.close_slot = self.engine.deadlines.set(
                self._abort_for_timeout,
                self.engine.loop_context.loop.time() + self.engine.close_timeout,
            )
        return 0

    cdef int leave(self) except -1:
        """CLOSING: out of every set, with nothing more to hear."""
        self.state = CLOSING
        self.leave_sets()
        self.engine.clients.closing.add(self)
        self.parts = None
        self.held = None
        return 0

    cdef int leave_sets(self) except -1:
        if self.memberships is not None:
            # With rooms that were deleted just now, whose end `on_room_left` has not heard of.
            try:
                self.rooms_at_end = tuple(
                    [members.id for members in self.memberships if isinstance(members, Room)]
                )
            except MemoryError:
                pass  # nobody hears of them: what matters is that it leaves
        return self.engine.clients.expel(self)

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

    cdef int forget(self) except -1:
        cdef unsigned int lost = outbox_clear(&self.box)
        self.engine.counters.dropped_closed += lost
        self.box.dropped += lost
        self.state = CLOSED
        self.input_closed = True
        self.fd = -1
        self.dirty_at = -1
        self.engine.fanout.set_blocked(self, False)
        self.close_slot = -1
        self.rate_timer = None
        self.authenticating = None
        self.inbox = None
        self.variables = None
        self.picows_protocol = None
        self.counted = False
        return self.let_go()

    def _abort_for_timeout(self):
        self.close_slot = -1
        self.engine.over("close_timeout")
        self.end = "send_timeout"
        self.abort()

    cdef int close_normally(self) except -1:
        self.disconnect()
        return 0

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
        if error is not None and self.end is None:
            self.end = "conn_error"
        if self.listening or (
            self.deferred_input is not None
            and error is None and self.secure and self.handshake is None
        ):
            # Its received bytes are heard first. TLS may bring its end in the same read, and
            # uvloop's TLS closes though it is paused. The descriptor may be another's by then.
            self.lost_early = (error,)
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
        cdef bint broken = self.end_code is None
        self.engine.fanout.set_blocked(self, False)
        if self.state == CLOSED or self.stream is None:
            return 0
        self.state = CLOSED
        self.input_closed = True
        self.fd = -1
        self.parts = None
        self.held = None
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
                self.engine.lose(self, frames, self.end or "conn_closed", None)
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
        return self.drop_context()

    cdef int end_timers(self) except -1:
        if self.close_slot >= 0:
            self.engine.deadlines.cancel(self._abort_for_timeout, self.close_slot)
            self.close_slot = -1
        if self.rate_timer is not None:
            self.rate_timer.cancel()
            self.rate_timer = None
        if self.authenticating is not None:
            self.authenticating.cancel()
            self.authenticating = None
        return 0

    cdef int let_go(self) except -1:
        """Undoes by hand what made a cycle, so that nothing waits for the garbage collector."""
        cdef object stream = self.stream
        self.write = None
        self.stream = None
        return self.leave_picows(stream)


# --- what the parts of a hub do with a client ---

# `Client` is the application's, so these are functions: they are in nobody's way there.

# Connecting, in the order of the calls.

def protocol_of(client):
    """The connection as its transport calls it; completion of a Client shows none of this.

    Args:
        client: any.

    Returns:
        asyncio.BufferedProtocol: the client itself.

    Thread-safety: any thread.
    """
    return client


def give_up(Client client not None):
    """Has a connection end as it is: it is not connected yet.

    Thread-safety: the loop's thread, like all of these functions.
    """
    client.input_closed = True


def agree_on(Client client not None, str subprotocol, deflate):
    """Tells a client what its upgrade has negotiated.

    Args:
        client: before `begin_connection`.
        subprotocol: a str or None.
        deflate: settings.Compression or None.
    """
    cdef int server_window
    cdef int client_window
    client.subprotocol = subprotocol
    if deflate is None:
        return
    client.inflates = True
    server_window = deflate.server_max_window_bits
    client_window = deflate.client_max_window_bits
    if deflate.server_no_context_takeover:
        client.window = <unsigned char>server_window
        server_window = 0
    if deflate.client_no_context_takeover:
        client_window = 0
    if server_window or client_window:
        client.context = Context(client.engine.codec, server_window, client_window)
        client.packs = server_window != 0


def set_pending_identity(Client client not None, identity):
    """Keeps the identity of a connection until it stands: an Identity, or an awaitable for it.

    Args:
        client: whose it is.
        identity: None drops it.
    """
    client.pending = identity


def pending_identity(Client client not None):
    """The identity that `set_pending_identity` has kept; None where it has kept none."""
    return client.pending


def set_remote_address(Client client not None, str remote_address not None):
    """Tells a client the address of its peer, where another one makes the connection."""
    client.remote_address = remote_address


def begin_connection(
    Client client not None, stream, int descriptor, bint secure, str remote_address not None
):
    """Has a client begin: its 101 is written, and it is the protocol of its transport.

    Args:
        client: new.
        stream: the asyncio transport.
        descriptor: of its socket.
        secure: it speaks TLS.
        remote_address: of its peer.
    """
    client.begin(stream, descriptor, secure, remote_address)


def feed(Client client not None, bytes data not None):
    """Gives a client what came in one segment with its upgrade."""
    client.feed(data, len(data))


def address_came_late(Client client not None):
    """Whether the address was not known yet when the upgrade was accepted."""
    return client.late_address


def set_counted(Client client not None, bint counted):
    """Marks whether a client is counted among the connections of its address.

    Args:
        client: any.
        counted: from now on.

    Returns:
        bool: whether it was until now.
    """
    cdef bint before = client.counted
    client.counted = counted
    return before


def hold_input(Client client not None):
    """Keeps the messages of a client until `release_input`: its identity is not known yet."""
    client.held = []


def set_authenticating(Client client not None, task):
    """Has the end of the connection cancel the task that finds out its identity; None: none."""
    client.authenticating = task


def is_connecting(Client client not None):
    """Whether a client is neither open yet nor closing."""
    return client.state == CONNECTING


def enter(Client client not None, str client_id, str user_id, user_data, str device_id):
    """Makes a connection an open client of the hub.

    Args:
        client: whose identity is known now.
        client_id: free.
        user_id: whose client it is.
        user_data: a dict, which is copied, or None.
        device_id: None: not known.
    """
    client.id = client_id
    client.user_id = user_id
    client.device_id = device_id
    if user_data:
        client.data = dict(user_data)
    client.state = OPEN
    client.engine.clients.admit(client)
    client.announced = True


def release_input(Client client not None):
    """Has a client hear the messages that `hold_input` has kept."""
    cdef list held = client.held or []  # none: it was not let in
    client.held = None
    client.held_bytes = 0
    client.listening = True
    try:
        for content, size in held:
            if client.state != OPEN:
                break
            client.take_message(content, size)
    except BaseException as error:
        client.failed(error)
    finally:
        client.listened()


# Its callbacks: their context, and their inbox.

def call_in_context(Client client not None, function, *args):
    """Calls the application in the context of a client's callbacks; returns what it returns."""
    cdef object context = client.enter_context()
    try:
        return function(*args)
    finally:
        PyContext_Exit(context)


def lend_context(Client client not None):
    """The context of a client's callbacks, for the task of its inbox; before there is one."""
    cdef object context = client.enter_context()
    PyContext_Exit(context)
    return context


def copy_context(Client client not None):
    """A new context that begins with what the callbacks of a client have set."""
    return PyContext_Copy(lend_context(client))


def keep_context(Client client not None):
    """Has the callbacks of a client go on with what the task that calls this has set."""
    client.variables = PyContext_CopyCurrent()


def inbox_of(Client client not None):
    """The Inbox of a client, or None."""
    return client.inbox


def set_inbox(Client client not None, inbox):
    """Gives a client an Inbox; None takes it away."""
    client.inbox = inbox
    client.drop_context()


def pause_reading(Client client not None):
    """Has nothing more read of a client: too much waits for its callbacks."""
    client.pause_reading(PAUSED_FOR_CALLBACKS)


def resume_reading(Client client not None):
    """Undoes `pause_reading`."""
    client.resume_reading(PAUSED_FOR_CALLBACKS)


# Its transport, and its end.

def transport_of(Client client not None):
    """The asyncio transport, of a request too; None where there is none yet, or no more."""
    return client.any_transport()


def descriptor_of(Client client not None):
    """The descriptor of the socket; -1 where there is none, or where it may be closed already."""
    return -1 if client.stream is None or client.stream.is_closing() else client.descriptor


def send_away(Client client not None, int code, str reason not None):
    """Closes the connection; what has come of it is still heard.

    Args:
        client: any; one that is closing already is left alone.
        code, reason: of the close frame; checked.
    """
    client.send_away(code, reason)


def close_transport(Client client not None):
    """Closes the transport once what was written is sent, without a close frame."""
    client.close_transport()


def abort(Client client not None):
    """Ends the connection at once, without a close frame."""
    client.abort()


def forget(Client client not None):
    """Lets go of a connection whose loop was closed."""
    client.forget()
