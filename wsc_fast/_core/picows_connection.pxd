"""The part of a connection that deals with picows, besides being its listener.

picows writes nothing after the 101, and reads nothing after the first frame: the connection is then
the transport's protocol itself. A hub's own server (upgrade/handshake.py) hands connections over at
once, a picows server of the application's (`handle_websocket`) at the end of the read that brings
the first frame, since before that picows does not tell what is left in its buffer.

    on_ws_connected   picows has made the connection: from here on it is silenced
    on_ws_frame       a frame of the read that brought the first one
    take_over         the transport reads for us, and picows for nobody
    leave_picows      the connection is gone

Ownership: the connection holds its picows transport, which holds a Guard for its logger and its
asyncio transport, which holds the connection. `leave_picows` undoes this cycle.
"""

from picows.picows cimport WSTransport

from wsc_fast._core.receiver cimport Receiver


cdef class Guard:
    cdef:
        PicowsConnection client    # None once the connection is gone
        object stream              # the asyncio transport
        object protocol            # picows', which made the connection, once it is ours; else None


cdef class PicowsConnection(Receiver):
    cdef:
        object stream              # the asyncio transport; None before and after the connection
        WSTransport transport      # picows', made when `conn` is asked for; or what picows made

    # That of the picows transport; None without one.
    cdef Guard guard(self)
    cdef bint take_over(self) except -1
    cdef int silence(self, Guard guard) except -1
    cdef int parser_failed(self, object error) except -1
    # The asyncio transport, which was its own, has gone with this error.
    cdef int tell_picows_lost(self, object error) except -1
    cdef int leave_picows(self, object stream) except -1

    # For the subclass: the connection stands, its 101 is written, and `stream` is its transport.
    cdef int begin(
        self, object stream, int descriptor, bint secure, str remote_address
    ) except -1
    # The same for one whose address picows has known only now.
    cdef int begin_on(self, object stream, int descriptor, bint secure) except -1
    # A ping of the hub's is queued.
    cdef int ping(self) except -1
    # As `Client.disconnect` does without arguments.
    cdef int close_normally(self) except -1
    # Ends the connection at once; connection_lost follows in a later turn.
    cdef int abort(self) except -1
    # Its transport is gone.
    cdef int gone(self) except -1
