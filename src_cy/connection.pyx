"""One connection, from the accepted upgrade to the end of its transport.

Rules
1.  No callback here raises into picows: a user's exception is reported, a peer's fault closes.
2.  A client leaves every set of the hub before its close frame is queued, and the dirty list
    before its transport is aborted, so that nothing finds it in between.
3.  The application hears of a client once when it is open, and once when its transport is gone,
    and of nothing of it before, between or after that the other rules do not allow.
4.  Every close has one timer, started when it begins and not extended by anything.

States: CONNECTING -> OPEN -> CLOSING -> CLOSED, or from any state straight to CLOSED. In CLOSING
data is neither heard nor sent (RFC 6455 sections 5.5.1 and 7.1); what was queued before the close
still goes out ahead of the close frame.

What this module does not do yet: inflate (deflate.pyx will), and check UTF-8 before a text message
is complete.
"""

import asyncio
import sys
from datetime import datetime, timezone
from functools import partial
from time import time as wall_time

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy
from picows.picows cimport WSFrame, WSMsgType, WSTransport

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.frames cimport (
    FIN_PONG,
    check_close_code,
    encode,
    encode_close,
    encode_message,
)
from wsc_fast._core.outbox cimport (
    CLOSED,
    CLOSING,
    CONNECTING,
    NO_MEMORY,
    OPEN,
    RUN_CONTROL,
    RUN_NORMAL,
    Sink,
    outbox_clear,
    outbox_close,
    outbox_push,
    outbox_trim,
)

from picows import WSProtocolError

from wsc_fast.errors import (
    ClientDisconnectedError,
    HubStateError,
    ProtocolError,
    ValidationError,
)

cdef extern from "net.h" nogil:
    double wsc_coarse_now()
    int wsc_progress(int fd, double* since_data, unsigned long long* acked)
    bint wsc_peer_ended(int fd)
    int wsc_prepare(int fd, int send_buffer)
    void wsc_peer(int fd, char* out)
    bint wsc_copy_ascii(char* out, const char* data, Py_ssize_t size)

cdef extern from "<netinet/in.h>" nogil:
    enum:
        INET6_ADDRSTRLEN

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_1BYTE_DATA(object)

cdef bytes PING_FRAME = b"\x89\x00"
# Conflation keys of control frames, which no application can name: a newer ping or pong replaces
# one that still waits.
cdef object PING_KEY = object()
cdef object PONG_KEY = object()

cdef enum:
    SHORT_TEXT = 4096
    # What a few pings take on the wire, over TLS too: that the peer's kernel acknowledges them says
    # nothing of the peer, and more than that was read by it.
    PING_BYTES = 256


cdef class Guard:
    """What picows' transport sees in place of its logger and of the asyncio transport.

    picows means to write in one case after the upgrade: its parser met a protocol error. It then
    finds `is_close_frame_sent` true and only logs that, which comes here. Closing and aborting
    come here too, so that they take the client's own way out.

    While there is no client yet it also plays the socket, since picows asks for a dozen socket
    options and addresses of every connection only to log them.

    Args:
        engine: the hub.
        stream: the asyncio transport.
        send_buffer: bytes of the kernel's send buffer, 0 for its own choice.

    Raises:
        OSError: the connection is gone already.
    """

    def __cinit__(self, Engine engine not None, stream, int send_buffer=0):
        cdef int error
        self.engine = engine
        self.stream = stream
        self.descriptor = stream.get_extra_info("socket").fileno()
        error = wsc_prepare(self.descriptor, send_buffer)
        if error < 0:
            raise OSError(-error, "the connection is gone")

    @property
    def remote_address(self):
        """str: the peer's IP address, "" where there is none."""
        cdef char[INET6_ADDRSTRLEN] out
        wsc_peer(self.descriptor, out)
        return out.decode("ascii")

    def get_extra_info(self, name, default=None):
        if self.client is None:
            if name == "socket":
                return self
            if name == "peername" or name == "sockname":
                return None
        return self.stream.get_extra_info(name, default)

    def fileno(self):
        return self.descriptor

    def setsockopt(self, *args):
        pass

    def getsockopt(self, *args):
        return 0

    def debug(self, *args):
        error = sys.exc_info()[1]
        if self.client is not None and isinstance(error, PARSER_ERRORS):
            self.client.peer_error(error)
            return
        # Where it is picows' automatic pong, picows comes back with this very error, and we close.
        raise HubStateError(
            "the hub writes to this connection: use Client.send and Client.disconnect, and "
            "enable_auto_pong=False on a picows server of your own"
        )

    def close(self):
        if self.client is not None:
            self.client.disconnect()
            return
        self.stream.close()
        if self.stream.get_write_buffer_size():
            # An answer that its peer does not read; aborting what has closed meanwhile is nothing.
            self.engine.loop.call_later(self.engine.close_timeout, self.stream.abort)

    def abort(self):
        if self.client is None:
            self.stream.abort()
        else:
            self.client.abort()

    def __getattr__(self, name):
        return getattr(self.stream, name)


cdef tuple PARSER_ERRORS = (WSProtocolError, MemoryError, HubStateError)


class Discard(asyncio.Protocol):
    """Takes the place of picows' protocol once the peer broke the protocol: reads and forgets.

    The parser cannot go on, but closing with unread input would make the kernel reset the
    connection, and the peer would never read our close frame (RFC 6455 section 7.1.1).
    """

    __slots__ = ("_inner",)

    def __init__(self, inner):
        self._inner = inner

    def connection_lost(self, exc):
        self._inner.connection_lost(exc)

    def pause_writing(self):
        self._inner.pause_writing()

    def resume_writing(self):
        self._inner.resume_writing()


cdef class Client(Sink):
    """One live WebSocket connection, as the hub's callbacks get it (go-wsc `Client`).

    Stays valid after the connection has gone: `is_connected()` is then False and `send` raises.
    Thread-safety: methods from any thread; attributes are best read in the loop's thread.
    """

    def __cinit__(self, Engine engine not None, str remote_address not None):
        self.engine = engine
        self.remote_address = remote_address
        self.last_seen = wsc_coarse_now()

    # --- what the application sees ---

    @property
    def hub(self):
        """Hub: the hub that it is connected to."""
        return self.engine

    @property
    def conn(self):
        """picows.WSTransport | None: the connection; None before the upgrade is done.

        For looking, not for writing: what it would write itself ends in a RuntimeError.
        """
        return self.transport

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
        """int: frames in its outbox."""
        return self.box.count

    @property
    def queued_bytes(self):
        """int: bytes in its outbox, frame headers included."""
        return self.box.nbytes

    @property
    def dropped_messages(self):
        """int: messages for this client that were dropped, whatever the reason."""
        return self.box.dropped

    def is_connected(self):
        """Whether messages can be sent to it and come from it.

        Returns:
            bool: False from the moment that either side began to close.

        Thread-safety: any thread. Source: go-wsc `IsConnected`.
        """
        return self.state == OPEN

    def send(self, message, *, key=None):
        """Queues a message for this client.

        Args:
            message: bytes (a binary message) or str (a text message).
            key: conflation key, a str; see `Hub.broadcast`.

        Raises:
            ClientDisconnectedError: the client is closing or gone.
            QueueFullError: its outbox is full and the overflow policy made no room.
            ValidationError: the message or the key cannot be used.

        Thread-safety: any thread. Source: go-wsc `Client.Send`.
        """
        if self.engine.away():
            self.engine._on_loop(partial(self.send, message, key=key))
            return
        if self.state != OPEN:
            raise ClientDisconnectedError(f"client {self.id!a} is not connected")
        self.engine.deliver(self, encode_message(message), key, RUN_NORMAL)

    def disconnect(self, code=1000, str reason=""):
        """Closes the connection: what is queued goes out first, then the close frame.

        The transport is aborted when the client has not answered within HubConfig.close_timeout.
        Does nothing when the connection is closing already.

        Args:
            code: close code, 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: text for the client, cut to 123 bytes of UTF-8.

        Raises:
            ValidationError: the code may not be sent; the connection is untouched.

        Thread-safety: any thread. Source: go-wsc `Disconnect`.
        """
        check_close_code(code)
        if self.engine.away():
            self.engine._on_loop(partial(self.disconnect, code, reason))
            return
        if self.state <= OPEN and self.stream is not None:
            self.begin_close(code, reason)

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

    def __repr__(self):
        state = ("connecting", "open", "closing", "closed")[self.state]
        return f"<Client {self.id!a} user={self.user_id!a} {state}>"

    # --- connecting ---

    cpdef on_ws_connected(self, WSTransport transport):
        cdef Guard guard
        if isinstance(transport.underlying_transport, Guard):
            guard = transport.underlying_transport
        else:
            # Behind handle_websocket the connection was made without us.
            try:
                guard = Guard(self.engine, transport.underlying_transport)
            except OSError:
                transport.underlying_transport.abort()
                return
        self.transport = transport
        self.stream = guard.stream
        self.write = self.stream.write
        self.fd = -1 if transport.is_secure else transport._socket
        self.connected_wall = wall_time()
        self.engine.connections += 1
        self.engine.counters.connections += 1
        guard.client = self
        self.guard = guard
        # From here on picows cannot write, and needs none of what it would write with.
        transport.is_close_frame_sent = True
        transport._logger = guard
        transport.underlying_transport = guard
        transport._write_buffer = None
        transport._tr_write = None
        transport._tr_get_write_buffer_size = None
        transport.request = None
        transport.response = None
        try:
            # pause_writing now comes with the first byte that the transport keeps. TLS transports
            # compare with >=, so that 0 would pause them for ever.
            self.stream.set_write_buffer_limits(high=1 if transport.is_secure else 0, low=0)
            if self.stream.get_write_buffer_size() > 0:
                self.blocked = True
            if not self.remote_address:
                self.remote_address = guard.remote_address
            self.engine._connected(self)
        except BaseException as error:
            self.engine._report(self, error)
            self.begin_close(1011, "")

    def _enter(self, str client_id, str user_id, user_data):
        """Makes it an open client of the hub under an identity; the id must be free."""
        self.id = client_id
        self.user_id = user_id
        if user_data:
            self.data = dict(user_data)
        self.state = OPEN
        self.engine.admit(self)
        self.announced = True

    def _hold_input(self):
        """Keeps frames until `_release_input`: the identity is not known yet."""
        self.held = []

    def _release_input(self):
        cdef list held = self.held
        self.held = None
        self.held_bytes = 0
        try:
            for opcode, fin, payload in held:
                if self.state != OPEN:
                    break
                self.receive(opcode, fin, payload, len(payload))
        except BaseException as error:
            self.engine._report(self, error)
            self.begin_close(1011, "")

    def _is_connecting(self):
        return self.state == CONNECTING

    def _set_authenticating(self, task):
        self.authenticating = task

    def _set_inbox(self, inbox):
        self.inbox = inbox

    def _get_inbox(self):
        return self.inbox

    def _pause_reading(self):
        if self.stream is not None and self.state == OPEN:
            self.reading_paused = True
            self.stream.pause_reading()

    def _resume_reading(self):
        self.reading_paused = False
        if self.stream is not None and self.fault is None:
            self.stream.resume_reading()

    # --- receiving ---

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef int opcode = frame.msg_type
        self.last_seen = wsc_coarse_now()
        if self.fault is not None:
            # picows parses one frame ahead: the one frame before the faulty one is still to come.
            if self.fault_passed:
                return
            self.fault_passed = True
        try:
            if self.state == OPEN:
                if frame.rsv1 or frame.rsv2 or frame.rsv3:
                    # No extension is agreed on (RFC 6455 section 5.2).
                    self.fail(1002, "a reserved bit is set")
                else:
                    self.receive(opcode, frame.fin, frame.payload_ptr, frame.payload_size)
            elif self.state == CONNECTING:
                self.hold(frame)
            elif self.state == CLOSING and opcode == WSMsgType.CLOSE:
                self.peer_closed = True
                if self.may_close():
                    self.drained()
        except BaseException as error:
            self.engine._report(self, error)
            if self.state <= OPEN:
                self.begin_close(1011, "")

    cdef int receive(self, int opcode, bint fin, const char* payload, Py_ssize_t size) except -1:
        if opcode == WSMsgType.TEXT or opcode == WSMsgType.BINARY:
            if fin and self.parts is None:
                return self.message(opcode, payload, size)
            return self.receive_part(opcode, fin, payload, size)
        if opcode == WSMsgType.CONTINUATION:
            return self.receive_part(opcode, fin, payload, size)
        if opcode == WSMsgType.PING:
            # Answered through the outbox, the latest only (RFC 6455 section 5.5.3).
            return self.push_control(encode(FIN_PONG, payload, size), PONG_KEY)
        if opcode == WSMsgType.CLOSE:
            return self.receive_close(payload, size)
        return 0  # a pong: that it came is all that counts

    cdef int receive_part(self, int opcode, bint fin, const char* data, Py_ssize_t size) except -1:
        cdef bytearray parts
        cdef Py_ssize_t held
        # RFC 6455 section 5.4: the first frame has the opcode, all others are continuations.
        if (opcode == WSMsgType.CONTINUATION) != (self.parts is not None):
            return self.fail(1002, "a fragment out of order")
        if self.parts is None:
            self.parts = bytearray()
            self.part_opcode = <unsigned char>opcode
            self.fragments = 0
        self.fragments += 1
        held = PyByteArray_GET_SIZE(self.parts)
        if held + size > self.engine.max_message_size:
            return self.fail(1009, "message too big")
        if self.fragments > self.engine.max_fragments:
            return self.fail(1008, "too many fragments")
        PyByteArray_Resize(self.parts, held + size)
        memcpy(PyByteArray_AS_STRING(self.parts) + held, data, size)
        if fin:
            parts = self.parts
            self.parts = None
            return self.message(self.part_opcode, parts, len(parts))
        return 0

    cdef int message(self, int opcode, const char* payload, Py_ssize_t size) except -1:
        cdef object content
        cdef object handler
        cdef object result
        if size > self.engine.max_message_size:
            # picows has refused longer frames already, but not on a server of the application's.
            return self.fail(1009, "message too big")
        if opcode == WSMsgType.BINARY:
            content = PyBytes_FromStringAndSize(payload, size)
        else:
            try:
                content = decode_text(payload, size)
            except UnicodeDecodeError:
                return self.fail(1007, "invalid UTF-8")
        self.engine.counters.messages_in += 1
        self.engine.counters.bytes_in += size
        handler = self.engine.message_handler
        if handler is not None and self.inbox is None:
            try:
                result = handler(self, content)
            except BaseException as error:
                self.engine._callback_failed(self, error)
                return 0
            if result is not None:
                self.engine._await_result(self, result)
        elif self.engine.message_handlers:
            self.engine._dispatch(self, self.engine.message_handlers, content)
        return 0

    cdef int receive_close(self, const char* payload, Py_ssize_t size) except -1:
        # picows has checked the length and the UTF-8 of the reason, but not every code.
        cdef int code = 1000
        self.peer_closed = True
        if size >= 2:
            code = (<unsigned char>payload[0] << 8) | <unsigned char>payload[1]
            try:
                check_close_code(code)
            except ValidationError:
                return self.fail(1002, "invalid close code")
            return self.begin_close(code, "")
        # An empty close is answered with an empty one (RFC 6455 section 5.5.1).
        return self.begin_close(0, "")

    cdef int hold(self, WSFrame frame) except -1:
        """Keeps a frame that came before the identity is known, within a bound."""
        if frame.msg_type == WSMsgType.CLOSE:
            self.peer_closed = True
            return self.begin_close(1000, "")
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            return self.fail(1002, "a reserved bit is set")
        # What a held frame costs besides its payload is bounded with it.
        self.held_bytes += frame.payload_size + 128
        if self.held_bytes > self.engine.auth_input_bytes:
            return self.fail(1008, "too much input before authentication")
        if self.held is not None:
            self.held.append((frame.msg_type, frame.fin, frame.get_payload_as_bytes()))
        return 0

    # --- sending ---

    cdef int push_control(self, bytes frame, object key) except -1:
        if outbox_push(
            &self.box, &self.engine.limits, &self.engine.counters,
            <PyObject*>frame, <PyObject*>key, RUN_CONTROL,
        ) == NO_MEMORY:
            raise MemoryError("no memory for an outbox")
        return self.engine.mark(self)

    cpdef pause_writing(self):
        self.blocked = True
        self.engine.unmark(self)

    cpdef resume_writing(self):
        self.blocked = False
        if self.state == CLOSED:
            return
        if self.box.count:
            self.engine.mark(self)
        elif self.state == CLOSING:
            self.drained()

    cdef int broken(self, int error) except -1:
        return self.abort()

    cdef int too_slow(self) except -1:
        cdef unsigned int dropped
        if self.state != OPEN:
            return 0
        dropped = outbox_clear(&self.box)
        # The message that found no room is one more.
        self.engine.counters.slow_disconnects += 1
        self.engine.counters.dropped_slow += dropped + 1
        self.box.dropped += dropped + 1
        return self.begin_close(1013, "slow consumer")

    cdef int check_alive(self, double now) except -1:
        cdef double since_data = 0
        cdef unsigned long long acked = 0
        cdef double idle = now - self.last_seen
        if self.may_close():
            outbox_trim(&self.box)
        if self.transport.is_secure and (
            self.stream.is_closing() or wsc_peer_ended(self.transport._socket)
        ):
            # Not every TLS transport tells of the end of the peer's stream.
            self._eof()
            return 0
        if self.reading_paused:
            self.last_seen = now  # it is we who do not listen
            return 0
        if idle >= self.engine.heartbeat_timeout:
            # A long frame still arriving, or a long backlog still being read, is no silence.
            if wsc_progress(self.transport._socket, &since_data, &acked) == 0:
                if since_data < self.engine.heartbeat_timeout and since_data < idle:
                    self.last_seen = now - since_data
                    return 0
                if acked > self.acked + PING_BYTES:
                    self.acked = acked
                    self.last_seen = now
                    return 0
            self.engine.counters.heartbeat_timeouts += 1
            return self.begin_close(1001, "heartbeat timeout")
        if idle >= self.engine.heartbeat_interval:
            if now - self.pinged_at >= self.engine.heartbeat_interval:
                self.pinged_at = now
                wsc_progress(self.transport._socket, &since_data, &self.acked)
                return self.push_control(PING_FRAME, PING_KEY)
        return 0

    # --- closing ---

    cdef int peer_error(self, object error) except -1:
        """picows' parser met a fault; called in the middle of its work on a read."""
        if self.fault is not None or self.state >= CLOSING:
            return 0
        if isinstance(error, WSProtocolError):
            self.fault = (int(error.args[0]), str(error.args[1]))
        else:
            self.fault = (1011, "")
        # A sound frame may precede the faulty one and be delivered right after this.
        self.stream.pause_reading()
        self.engine.loop.call_soon(self._close_for_fault)
        return 0

    def _close_for_fault(self):
        if self.state <= OPEN:
            self.fail(self.fault[0], self.fault[1])

    cdef int fail(self, int code, str reason) except -1:
        """Fails the connection (RFC 6455 section 7.1.7): the peer broke the protocol or a bound."""
        if self.state >= CLOSING:
            return 0
        self.failing = True
        self.engine.counters.protocol_errors += 1
        self.begin_close(code, reason)
        # Not from within a read: picows may still be at work on its buffer.
        self.stream.pause_reading()
        self.engine.loop.call_soon(self._discard_input)
        self.engine._protocol_error(self, ProtocolError(code, reason))
        return 0

    def _discard_input(self):
        if self.state == CLOSING and self.stream is not None and not self.stream.is_closing():
            self.stream.set_protocol(Discard(self.stream.get_protocol()))
            self.stream.resume_reading()

    cdef int begin_close(self, int code, str reason) except -1:
        cdef bytes frame
        if self.state >= CLOSING:
            return 0
        frame = b"\x88\x00" if code == 0 else encode_close(code, reason)
        self.leave()
        self.close_timer = self.engine.loop.call_later(
            self.engine.close_timeout, self._abort_for_timeout
        )
        if outbox_close(&self.box, <PyObject*>frame) == NO_MEMORY:
            return self.abort()
        self.close_queued = True
        self._resume_reading()
        return self.engine.mark(self)

    cdef int leave(self) except -1:
        """CLOSING: out of every set, with nothing more to hear."""
        self.state = CLOSING
        self.engine.expel(self)
        self.engine.closing.add(self)
        self.parts = None
        self.held = None
        return 0

    cdef bint may_close(self) noexcept:
        return self.box.count == 0 and not self.blocked

    cdef int drained(self) except -1:
        """The close frame is with the kernel."""
        if self.stream is None:
            return 0
        if self.peer_closed:
            # The server closes TCP first (RFC 6455 section 7.1.1).
            self.stream.close()
        elif self.failing:
            try:
                if self.stream.can_write_eof():
                    self.stream.write_eof()
                else:
                    self.stream.close()
            except OSError:
                self.stream.abort()  # the peer has reset the connection meanwhile
        return 0

    cdef int forget(self) except -1:
        cdef unsigned int lost = outbox_clear(&self.box)
        self.engine.counters.dropped_closed += lost
        self.box.dropped += lost
        self.state = CLOSED
        self.fd = -1
        self.dirty_at = -1
        self.blocked = False
        self.close_timer = None
        self.authenticating = None
        self.inbox = None
        self.write = None
        self.stream = None
        if self.guard is not None:
            self.guard.client = None
            self.guard = None
        return 0

    def _forget(self):
        self.forget()

    def _abort_for_timeout(self):
        self.close_timer = None
        self.abort()

    def _abort(self):
        """Ends the connection at once, without a close frame (for hub.py)."""
        self.abort()

    cdef int abort(self) except -1:
        """Ends the connection at once; on_ws_disconnected follows in a later turn."""
        if self.state < CLOSING:
            self.leave()
        self.engine.unmark(self)
        if self.stream is not None:
            self.stream.abort()
        return 0

    def _eof(self):
        """The peer half-closed; returns whether the transport is to stay open for writing.

        What is queued for it still goes out, within the close timeout: a close frame that it has
        sent just before is answered, and so is a request by a client that only reads from then on.
        """
        if self.state < CLOSING:
            self.leave()
        self.peer_closed = True
        if self.close_timer is None:
            self.close_timer = self.engine.loop.call_later(
                self.engine.close_timeout, self._abort_for_timeout
            )
        # TLS transports close whatever is returned.
        return not self.transport.is_secure and not self.may_close()

    cpdef on_ws_disconnected(self, WSTransport transport):
        cdef unsigned int lost
        if self.state == CLOSED or self.stream is None:
            return  # or it was gone before it was connected
        if self.state < CLOSING:
            self.leave()
        self.state = CLOSED
        self.engine.closing.discard(self)
        self.engine.unmark(self)
        lost = outbox_clear(&self.box)
        if lost and self.close_queued:
            lost -= 1  # the last one is our close frame
        self.engine.counters.dropped_closed += lost
        self.box.dropped += lost
        self.fd = -1
        if self.close_timer is not None:
            self.close_timer.cancel()
            self.close_timer = None
        if self.authenticating is not None:
            self.authenticating.cancel()
            self.authenticating = None
        # What made a cycle is undone by hand, so that nothing waits for the garbage collector.
        transport.underlying_transport = self.stream
        self.guard.client = None
        self.guard = None
        self.write = None
        self.stream = None
        self.engine.connections -= 1
        try:
            self.engine._disconnected(self, self.announced)
        except BaseException as error:
            self.engine._report(self, error)


cdef object decode_text(const char* payload, Py_ssize_t size):
    # CPython's decoder goes byte by byte where the input is not aligned, and a payload behind a
    # header seldom is; for short ASCII, the most common text, this is faster.
    cdef object text
    if size <= SHORT_TEXT:
        text = PyUnicode_New(size, 127)
        if wsc_copy_ascii(<char*>PyUnicode_1BYTE_DATA(text), payload, size):
            return text
    return PyUnicode_DecodeUTF8(payload, size, NULL)
