"""The work of a hub on clients, users, rooms and messages, compiled. The parts of a hub share it.

Way of a message through it: the public method (calls.pyx) checks its thread; the message is framed
once, its recipients are found, and the frame is pushed to each; the flush (fanout.pxd) does the
rest at the end of the tick.

Each part of it has one reason: `fanout` sends, `clients` knows who is connected, `turns` says who
is read, `read_buffer` is what they read into, `loop_context` calls the loop.

Ownership: the face owns the engine, and the engine its parts. Each connection owns a reference to
the engine, and the engine one to each open client (`clients`), until that is gone. `hub` refers
back to the face; the garbage collector ends that cycle.
"""

cimport cython
from cpython.object cimport PyObject

from wsc_fast._core.clients cimport ClientRegistry
from wsc_fast._core.deflate cimport Codec
from wsc_fast._core.fanout cimport Fanout, FanoutNeeds
from wsc_fast._core.histogram cimport Histogram
from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.members cimport MemberSet, Room
from wsc_fast._core.messages cimport MessageForms
from wsc_fast._core.outbox cimport Sink
from wsc_fast._core.rates cimport Rates
from wsc_fast._core.read_buffer cimport ReadBuffer
from wsc_fast._core.read_turns cimport ReadTurns
from wsc_fast._core.timers cimport Timers

cdef enum:
    # The kinds of incoming texts.
    NO_ACK = 0
    SETTLED = 1  # an acknowledgement of what was pending
    IGNORED = 2  # an acknowledgement of nothing

cdef enum:
    CLOSE_CODES = 4001

cdef struct Counted:
    # Of connections and calls. Written by the loop's thread only; each is read by get_stats.
    unsigned long long messages_in
    unsigned long long bytes_in
    unsigned long long messages_out       # calls that framed a message
    unsigned long long dropped_slow       # backlog of a client that was disconnected for being slow
    unsigned long long dropped_closed     # backlog of a connection that went away
    unsigned long long refused            # a send to one client found no room, or no memory
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


@cython.final
cdef class Engine(FanoutNeeds):
    cdef:
        object hub         # the Hub that it is the engine of; for `Client.hub` alone
        # Its parts, none of which knows the engine; `fanout` has it as its FanoutNeeds.
        LoopContext loop_context
        readonly Fanout fanout
        ClientRegistry clients
        ReadTurns turns
        ReadBuffer read_buffer
        Counted counters
        dict rooms         # id -> Room
        list emptying      # of Room: deleted ones with members left, the first one's go first
        unsigned long thread_id      # of the loop's thread; 0 while not running
        Codec codec                  # None where compression is off
        MessageForms forms           # of HubMessages and ACKMessages
        # Higher layers that hear of events here: the interfaces of upward.py, in its order.
        object requests
        object admission
        object application
        object deliveries
        # Copies of settings (`configure_live`); timeouts may be longer for a while.
        public Py_ssize_t max_rooms
        public Py_ssize_t max_rooms_per_client
        public Py_ssize_t max_message_size
        public Py_ssize_t max_fragments
        public Py_ssize_t auth_input_bytes
        public double heartbeat_interval
        public double heartbeat_timeout
        public double close_timeout
        public double message_timeout
        # How often each limit was met: setting -> int; counted where something is refused.
        dict limited
        Histogram outbox_depth  # messages in an outbox, as the heartbeat finds them
        Histogram round_trips   # seconds from the heartbeat's ping to its pong
        Histogram ack_latency   # seconds from the first send to the acknowledgement
        # `stats.client_stats`, for `Client.stats`.
        object client_stats
        Rates rates                  # of what each client sends
        # Calls that are due at a time: a handshake's end, a close timeout, the heartbeat.
        readonly Timers deadlines
        # Connections from the handshake's end until the transport is gone, closing ones too.
        readonly Py_ssize_t connections
        # The handlers of on_message_received, or of on_messages_received: all of them, and the only
        # one where there is one. The latter get lists: `gathers`; a message for which
        # `alone(message) -> bool` is true is in a list of its own.
        tuple message_handlers
        object message_handler
        bint gathers
        object alone
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
        # How connections ended, by close code from 1000 on. The first one counts the codes that
        # peers chose from those of applications.
        unsigned long long closes[CLOSE_CODES]
        # Of kept rooms (set_kept); None where no room is kept.
        object is_kept
        object publish_kept
        object join_kept
        object joining_kept
        object left_kept
        # Messages of the bus that were queued since the flush `given_after` (kept.pyx): how many,
        # their bytes, and since when.
        unsigned long long given_after
        Py_ssize_t given
        Py_ssize_t given_bytes
        double given_since
        set emptied
        # Of other hubs (set_outgoing); None where there are none.
        list outgoing
        object publish_outgoing
        object entered_first
        # Users who are on other hubs as well, and the ways to them and to clients of other hubs
        # (set_relay); None where there are none.
        set elsewhere
        object relay
        object relay_to_client
        bint has_head      # the frame that is pushed has its head line
        # Head lines of wsc.1 (set_heads).
        object decode_head
        object without_heads
        # `joined(client, room_id)` and `left(client, room_id)`; None where nobody wants to hear.
        object room_joined
        object room_left

    cdef int bound_outboxes(self, config) except -1
    cdef int bound_rates(self, config) except -1
    cdef int over(self, str limit) except -1
    # A connection ends with this code. Codes of applications that a peer chose count together,
    # since there are 2,000 of them.
    cdef void count_close(self, int code, bint of_peer) noexcept
    cdef dict count_closes(self)
    cdef bint away(self) noexcept
    cdef int deliver(self, Sink sink, bytes frame, object key, int run) except -1
    cdef bytes form_for(self, bytes frame, int form)
    # Each frame for one client goes into its outbox here; those for many by `push_each` of members.
    # It says where there was no room or memory; a client that a walk could not reach is closed.
    cdef int push(self, Sink sink, bytes frame, PyObject* key, int run) except -1
    cdef int lose_queued(self, Sink sink, list frames, str reason) except -1
    cdef int push_aware(self, Sink sink, bytes frame) except -1
    cdef object refusal(self, Sink sink, int result)
    cpdef Py_ssize_t send_message(self, user_id, message) except -1
    cdef bint relays(self, str user_id, message) except -1
    cdef Py_ssize_t offer_to_user(self, str user_id, bytes frame, int run) except? 0
    cdef int await_empty(self, Sink sink) except -1
    cdef bytes framed(self, object message, object recipient, int* run)
    cdef Py_ssize_t publish(
        self, list items, object members, object message, object exclude, object key,
        object recipient,
    ) except -1
    cdef int send_out(self, str room_id, bytes frame, tuple exclude, object key) except -1
    cdef Py_ssize_t append_to_room(
        self, str room_id, object message, object exclude, object key
    ) except -1
    # The ids of clients that are named by ids or by themselves; ValidationError.
    cdef list excluded_ids(self, object exclude)
    cdef list excluded(self, object exclude)
    cpdef get_client_by_id(self, client_id)
    cpdef list get_clients_by_user(self, user_id)
    cdef MemberSet find_room(self, object room_id)
    cdef int create_room(self, object room_id) except -1
    cdef int delete_room(self, object room_id) except -1
    cdef int join_room(self, object client_id, object room_id) except -1
    cdef bint enter_room(self, Sink sink, MemberSet room) except -1
    cdef Room make_room(self, str room_id)
    cdef MemberSet room_to_join(self, object room_id)
    cdef int leave_room(self, object client_id, object room_id) except -1
    cdef int take_out(self, Sink sink, MemberSet room) except -1
    cdef MemberSet leave_deleted(self, Sink sink, object room_id)
    # The room, for a client that is still open; else an error.
    cdef MemberSet room_of_open(self, Sink sink, object room_id)
    cdef list room_clients(self, object room_id)
    cdef Py_ssize_t room_size(self, object room_id) except -1
    cdef list room_users(self, object room_id)
    cdef list client_rooms(self, object client_id)
