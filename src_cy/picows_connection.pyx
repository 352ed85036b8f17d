"""The part of a connection that deals with picows; see picows_connection.pxd."""

import sys

from libc.stdint cimport uint8_t
from picows.picows cimport WSFrame, WSTransport

from wsc_fast._core.clock cimport passed
from wsc_fast._core.memory cimport A_GUARD, born, died
from wsc_fast._core.outbox cimport OPEN
from wsc_fast._core.receiver cimport Receiver, wsc_head

from picows import WSProtocolError

from wsc_fast.errors import HubStateError

cdef extern from "wire.h":
    pass  # receiver.pxd declares what is in it

cdef extern from "net.h" nogil:
    double wsc_coarse_now()

cdef tuple PARSER_ERRORS = (WSProtocolError, MemoryError, HubStateError)


cdef class Guard:
    """Stands in a picows transport for its logger and for the asyncio transport.

    picows means to write in two cases after the upgrade: the application asks it to, or its parser
    met a protocol error. It then finds `is_close_frame_sent` true and only logs that, which comes
    here. Closing and aborting come here too, so that they take the client's own way out.
    """

    def __cinit__(self, PicowsConnection client not None, stream):
        born(A_GUARD)
        self.client = client
        self.stream = stream

    def __dealloc__(self):
        died(A_GUARD)

    def isEnabledFor(self, level):
        return False

    def debug(self, *args):
        error = sys.exc_info()[1]
        if self.client is not None and isinstance(error, PARSER_ERRORS):
            self.client.parser_failed(error)
            return
        # Where it is picows' automatic pong, picows comes back with this very error, and we close.
        raise HubStateError(
            "the hub writes to this connection: use Client.send and Client.disconnect, and "
            "enable_auto_pong=False on a picows server of your own"
        )

    def close(self):
        if self.client is not None:
            self.client.close_normally()

    def abort(self):
        if self.client is not None:
            self.client.abort()

    def __getattr__(self, name):
        return getattr(self.stream, name)

cdef class PicowsConnection(Receiver):
    """A connection that picows may have made (internal; `Client` is the public class)."""

    @property
    def conn(self):
        """picows.WSTransport | None: the connection; None before the upgrade and after the end.

        For looking, not for writing: what it would write itself ends in a HubStateError.
        """
        cdef Guard guard
        if self.stream is not None and self.transport is None:
            guard = Guard(self, self.stream)
            self.transport = WSTransport(False, guard, guard, self.engine.loop_context.loop)
            self.silence(guard)
        return self.transport

    cpdef on_ws_connected(self, WSTransport transport):
        """picows has made the connection (adapters/picows.py)."""
        stream = transport.underlying_transport
        cdef Guard guard = Guard(self, stream)
        self.transport = transport
        self.silence(guard)
        self.begin_on(stream, transport._socket, transport.is_secure)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        """picows has parsed a frame of the read that brought the first one."""
        cdef wsc_head head
        self.last_seen = wsc_coarse_now() + passed
        head.opcode = <uint8_t>frame.msg_type
        head.fin = frame.fin
        head.rsv = frame.rsv1 << 2 | frame.rsv2 << 1 | frame.rsv3
        head.size = frame.payload_size
        head.key = 0  # picows has unmasked it
        try:
            if not self.input_closed:
                self.take_parsed(&head, <uint8_t*>frame.payload_ptr)
            if frame.last_in_buffer and self.take_over():
                self.feed(frame.payload_ptr + frame.payload_size, frame.tail_size)
        except BaseException as error:
            self.input_closed = True
            self.failed(error)

    cpdef send_user_specific_ping(self, WSTransport transport):
        """picows' automatic ping, where it is on: through the outbox."""
        if self.state == OPEN:
            self.ping()

    cpdef on_ws_disconnected(self, WSTransport transport):
        self.gone()

    cdef int parser_failed(self, object error) except -1:
        """picows' parser met a fault; called in the middle of its work on a read."""
        self.take_over()
        if isinstance(error, WSProtocolError):
            return self.refuse(int(error.args[0]), "protocol error")
        return self.refuse(1011, "")

    cdef bint take_over(self) except -1:
        """The transport reads for us from here on, and picows for nobody; whether picows did."""
        cdef Guard guard = self.guard()
        if self.stream is None or guard is None or guard.protocol is not None:
            return False
        guard.protocol = self.stream.get_protocol()
        self.stream.set_protocol(self)
        return True

    cdef Guard guard(self):
        return None if self.transport is None else <Guard>self.transport._logger

    cdef int silence(self, Guard guard) except -1:
        """picows can write no more, and needs nothing of what it would write with."""
        cdef WSTransport transport = self.transport
        transport.is_close_frame_sent = True
        transport._logger = guard
        transport.underlying_transport = guard
        transport._write_buffer = None
        transport._tr_write = None
        transport._tr_get_write_buffer_size = None
        transport.request = None
        transport.response = None
        return 0

    cdef int tell_picows_lost(self, object error) except -1:
        cdef Guard guard = self.guard()
        cdef object protocol = None if guard is None else guard.protocol
        if protocol is not None:
            # It has futures and tasks of its own to end, and calls us back.
            guard.protocol = None
            protocol.connection_lost(error)
        return 0

    cdef int write(self, object data) except -1:
        self.stream.write(data)
        return 0

    cdef int leave_picows(self, object stream) except -1:
        cdef WSTransport transport = self.transport
        cdef Guard guard = self.guard()
        self.transport = None
        if transport is not None:
            guard.client = guard.protocol = None
            transport.underlying_transport = stream
            transport.is_disconnected = True
            if not transport.disconnected_future.done() and not transport._loop.is_closed():
                transport.disconnected_future.set_result(None)
        return 0

    cdef int begin(
        self, object stream, int descriptor, bint secure, str remote_address
    ) except -1:
        return 0

    cdef int begin_on(self, object stream, int descriptor, bint secure) except -1:
        return 0

    cdef int ping(self) except -1:
        return 0

    cdef int close_normally(self) except -1:
        return 0

    cdef int abort(self) except -1:
        return 0

    cdef int gone(self) except -1:
        return 0


def take_over(PicowsConnection client not None):
    """Has a connection that picows has made read for itself (internal): picows reads nothing of it.

    Thread-safety: the loop's thread.
    """
    client.take_over()
