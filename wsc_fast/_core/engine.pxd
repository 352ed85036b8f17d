"""What the Hub does with clients, users, rooms and messages, compiled: the base class of Hub.

Way of a message through it: the public method checks its thread, frames the message once, finds
the recipients, and pushes the frame to each; the flush (fanout.pxd) does the rest at the end of
the tick.
"""

from cpython.object cimport PyObject

from wsc_fast._core.deflate cimport Codec
from wsc_fast._core.fanout cimport Fanout, FanoutNeeds
from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.members cimport MemberSet
from wsc_fast._core.outbox cimport Sink
from wsc_fast._core.timers cimport Timers

cdef enum:
    # Room before the read buffer for what the last read of a connection left behind: a head or
    # a control frame.
    READ_HEADROOM = 256
    # What a connection may read at once before its upgrade, and where its rate can pause it. A read
    # of this many bytes is a heavy one, and so is one of READ_LEAST where rates are bounded.
    READ_SMALL = 8192
    READ_LEAST = 1024
    # More than an aiofastnet transport can have received and not handed over: its buffer of
    # 16 records and their heads, and one record that is decrypted.
    READ_WHOLE = 294912

cdef enum:
    # What happens to a client that sends faster than its rate.
    RATE_CLOSE = 0
    RATE_DROP = 1
    RATE_PAUSE = 2

cdef enum:
    # What an incoming text was.
    NO_ACK = 0
    SETTLED = 1  # an acknowledgement of what was pending
    IGNORED = 2  # an acknowledgement of nothing

cdef struct Counted:
    # Of connections and calls. Written by the loop's thread only; each is read by get_stats.
    unsigned long long messages_in
    unsigned long long bytes_in
    unsigned long long messages_out       # calls that framed a message
    unsigned long long dropped_slow       # backlog of a client that was disconnected for being slow
    unsigned long long dropped_closed     # backlog of a connection that went away
    unsigned long long refused            # QueueFullError
    unsigned long long slow_disconnects
    unsigned long long connections
    unsigned long long replaced_clients
    unsigned long long protocol_errors
    unsigned long long heartbeat_timeouts
    unsigned long long callback_errors
    unsigned long long rejected_full
    unsigned long long rejected_origin
    unsigned long long rejected_auth
    unsigned long long rejected_request
    unsigned long long rejected_address
    unsigned long long rejected_rate
    unsigned long long rejected_handshakes
    unsigned long long rejected_gone      # left before its request was whole
    unsigned long long rate_limited       # messages beyond a client's rate

cdef class Engine(FanoutNeeds):
    cdef:
        # Its parts. None of them knows the engine but as its `FanoutNeeds`.
        LoopContext loop_context
        Fanout fanout
        Counted counters
        # What the transports of all connections read into, one at a time (receiver.pxd).
        readonly object _read_view    # memoryview of what follows the headroom; keeps the memory
        unsigned char* read_area
        bint reading                 # what is in it is being taken
        dict clients       # id -> Sink, the open ones
        dict users         # user id -> MemberSet, of clients whose user_id is not their id
        dict rooms         # id -> Room
        set closing        # of Sink: those in the closing handshake, or being aborted
        list everyone      # of Sink, the open ones, dense; Sink.slot is the place in it
        unsigned long thread_id      # of the loop's thread; 0 while not running
        Py_ssize_t sweep_at          # where the heartbeat goes on in `everyone`
        Codec codec                  # None where compression is off
        # Copies of settings, by `Hub.set_config`; some are longer for a while (hub.py).
        public Py_ssize_t _max_rooms
        public Py_ssize_t _max_rooms_per_client
        public Py_ssize_t _max_message_size
        public Py_ssize_t _max_fragments
        public Py_ssize_t _auth_input_bytes
        public double _heartbeat_interval
        public double _heartbeat_timeout
        public double _close_timeout
        public double _message_timeout
        # How often each limit was met: setting -> int; counted where something is refused.
        dict limited
        # Turns of those who send much (receiver.pxd).
        object small_view            # memoryview: the first READ_SMALL bytes of `_read_view`
        object least_view            # memoryview: the first `heavy_read` bytes of it
        object whole_view            # memoryview of READ_WHOLE bytes from where `_read_view` begins
        Py_ssize_t heavy_read        # a read of this many bytes is one
        # Deques of Sink, not read until their turn comes: who is no client yet, and the others.
        object waiting_requests
        object waiting_readers
        bint requests_next
        Py_ssize_t readers_at_once
        unsigned long long read_turn  # its number; who has its turn carries it
        double turn_began
        double read_budget           # seconds, of this turn
        double least_budget
        double read_deadline         # when the heavy read under way is to stop
        double read_spent            # seconds, of this turn of the loop
        bint crowded
        bint read_turn_due
        # Messages and bytes that each client may send a second; 0 is no bound.
        bint rated
        double message_rate
        double byte_rate
        int rate_action
        bint pausing                 # its being met pauses, and the rest of the read waits
        # What is to be called at its time: a handshake's end, a close timeout, the heartbeat.
        readonly Timers _deadlines
        # Connections from the handshake's end until the transport is gone, closing ones too.
        readonly Py_ssize_t connections
        # What on_message_received has set: all of them, and the only one where there is one.
        tuple message_handlers
        object message_handler
        # `filter(client, text) -> int` for what may be an acknowledgement; None where none counts.
        object ack_filter
        # The users whose messages wait behind what is replayed to them, and `hold(user_id, message,
        # data) -> int` that has them wait; None where nothing is replayed.
        object replaying
        object hold
        # `ran_empty(client)`, for who waits for room in a client's outbox.
        object room_heard
        # `filter(client, message) -> bool`: may it publish this; None where everybody may.
        object publish_filter
        # `filter(client, room_id) -> bool`: may it join.
        object join_filter

    cdef int over(self, str limit) except -1
    # To be called before anything is put into the read buffer while that is in use.
    cdef int change_buffer(self) except -1
    cdef int read_much(self, Sink receiver, double spent, bint more) except -1
    cdef bint has_turn(self, unsigned long long turn) noexcept
    cdef int wait_for_turn(self, Sink receiver) except -1
    cdef int queue_reader(self, Sink receiver) except -1
    cdef Py_ssize_t count_waiting(self) except -1
    cdef int call_read_turn(self) except -1
    cdef bint away(self) noexcept
    cdef int admit(self, Sink sink) except -1
    cdef int expel(self, Sink sink) except -1
    cdef int deliver(self, Sink sink, bytes frame, object key, int run) except -1
    cdef int push(self, Sink sink, bytes frame, PyObject* key, int run) except -1
    cpdef Py_ssize_t _send_message(self, user_id, message) except -1
    cdef Py_ssize_t offer_to_user(self, str user_id, bytes frame, int run) except? 0
    cpdef bint _has_clients(self, str user_id) except -1
    cpdef bint _send_to(self, Sink sink, bytes data, int priority) except -1
    cpdef Py_ssize_t _send_to_user(self, str user_id, bytes data, int priority) except? 0
    cdef bint offer(self, Sink sink, bytes frame, int run) except -1
    cdef object queue_full(self, Sink sink)
    cdef bytes framed(self, object message, object recipient)
    cdef Py_ssize_t publish(
        self, list items, object members, object message, object exclude, object key,
        object recipient,
    ) except -1
    cdef list excluded(self, object exclude)
    cdef Sink find_client(self, object client_id)
    cdef MemberSet find_room(self, object room_id)
