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

from wsc_fast._core.memory cimport flag
from wsc_fast._core.pacing cimport PacedConnection

cdef enum:
    # Why what was still queued at the end of a connection is lost; closing.pyx has their words.
    CONN_CLOSED = 0
    CONN_ERROR = 1
    SEND_TIMEOUT = 2


cdef class ClosableConnection(PacedConnection):
    cdef:
        unsigned short end_code    # the close code that ended it; 0 while it is open
        unsigned char end          # CONN_CLOSED and so on
        flag announced             # on_client_connected has been called
        flag counted               # among the connections of its address (`set_counted`)
        flag peer_closed           # the peer's close frame is in
        flag failing               # we closed because of the peer's fault
        flag close_queued          # our close frame went into the outbox

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
