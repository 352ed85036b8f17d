"""The end of a connection: by either side, by a fault, or because its transport is gone.

    send_away       the application or the hub closes
    take_close      the peer closes
    fail            the peer broke the protocol, or a bound: the connection is failed
    failed          something in here went wrong: closed with 1011
    too_slow        a broadcast has met its full outbox: closed with 1013
    broken          the kernel takes nothing more for it
    begin_close     each of these: out of all sets, the close frame behind what is queued, one timer
    drained         the close frame is with the kernel; then the transport is closed, if the peer
                    has closed, or half-closed, if the peer is at fault
    end_of_stream   the peer half-closed: what is queued still goes out
    abort           at once, without a close frame
    connection_lost the transport is gone; once what has come is heard, `gone` tells the application
"""

from wsc_fast._core.pacing cimport PacedConnection


cdef class ClosableConnection(PacedConnection):
    cdef:
        int descriptor             # of its socket, for looking only; Sink.fd is for writing
        long long close_slot       # of `Engine.deadlines`, while CLOSING; else -1
        object end_code            # int, the close code that ended it; None while it is open
        str end_reason
        str end                    # the reason of failure for what was still queued at the end
        tuple rooms_at_end         # ids; None while it is open, and of a client that was in none
        bint announced             # on_client_connected has been called
        bint peer_closed           # the peer's close frame is in
        bint failing               # we closed because of the peer's fault
        bint close_queued          # our close frame went into the outbox

    cdef int send_away(self, int code, str reason) except -1
    cdef int take_close(self, const char* payload, Py_ssize_t size) except -1
    cdef int begin_close(self, int code, str reason) except -1
    cdef int limit_close(self) except -1
    cdef int leave(self) except -1
    cdef int leave_sets(self) except -1
    # Nothing waits to be sent, or is with the transport.
    cdef bint may_close(self) noexcept
    cdef int resume_to_close(self, object stream) except -1
    cdef bint end_of_stream(self) except -1
    cdef int let_go(self) except -1
    # For the subclass: it is closed, and the application has heard of it.
    cdef int drop_context(self) except -1
