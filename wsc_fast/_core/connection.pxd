"""One connection: `Client`, which is itself the listener that picows calls.

Way of a connection:

    __cinit__          the upgrade was accepted (server.py); nothing of the hub is taken yet
    on_ws_connected    101 is written; the guard takes the transport over; the identity is settled
    _enter             OPEN: a member of the hub, announced to the application
    on_ws_frame        frames -> messages -> callbacks
    begin_close        CLOSING: out of every set, close frame queued, close timer running
    on_ws_disconnected CLOSED: the transport is gone; announced once

picows writes nothing after the 101: its transport is told that its close frame is sent, and its
logger and asyncio transport are a Guard, which turns what picows wants to say into our own close.
"""

from picows.picows cimport WSFrame, WSListener, WSTransport

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.outbox cimport Sink

cdef class Client(Sink):
    cdef:
        Engine engine
        WSTransport transport
        object stream              # the asyncio transport; None before and after the connection
        Guard guard
        object close_timer         # asyncio TimerHandle, while CLOSING
        dict data                  # user_data; None until first used
        object inbox               # events.Inbox while an async callback of this client is due
        bytearray parts            # payload of a fragmented message so far, or None
        list held                  # (opcode, fin, payload) before the identity is known
        tuple fault                # (code, text): picows found a protocol error
        object authenticating      # asyncio.Task while an async authenticate runs
        readonly str remote_address
        double connected_wall      # seconds since the epoch
        double last_seen           # coarse monotonic seconds
        double pinged_at
        unsigned long long acked   # bytes, at the last look (see check_alive)
        Py_ssize_t held_bytes
        unsigned int fragments
        unsigned char part_opcode
        bint announced             # on_client_connected has been called
        bint peer_closed           # the peer's close frame is in
        bint failing               # we closed because of the peer's fault
        bint fault_passed
        bint reading_paused        # by us, for its async callbacks
        bint close_queued          # our close frame went into the outbox
        public object _pending     # server.Pending: who it is, or how to find out; then None

    cdef int receive(self, int opcode, bint fin, const char* payload, Py_ssize_t size) except -1
    cdef int receive_part(self, int opcode, bint fin, const char* data, Py_ssize_t size) except -1
    cdef int receive_close(self, const char* payload, Py_ssize_t size) except -1
    cdef int message(self, int opcode, const char* payload, Py_ssize_t size) except -1
    cdef int hold(self, WSFrame frame) except -1
    cdef int fail(self, int code, str reason) except -1
    cdef int begin_close(self, int code, str reason) except -1
    cdef int push_control(self, bytes frame, object key) except -1
    cdef int peer_error(self, object error) except -1
    cdef int abort(self) except -1
    cdef int leave(self) except -1
    cdef bint may_close(self) noexcept

# Stands between picows' transport and the asyncio transport.
cdef class Guard:
    cdef:
        Engine engine
        Client client              # None before the upgrade and once the connection is gone
        int descriptor
        object stream              # the asyncio transport
