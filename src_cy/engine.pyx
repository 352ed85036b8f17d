"""The work of a hub with clients, users, rooms and messages; see engine.pxd.

Threads: everything here is called in the loop's thread, or while the hub does not run. calls.pyx
sees to that for the calls of the application.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_Copy
from cpython.dict cimport PyDict_GetItemWithError
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.string cimport memset

from wsc_fast._core.clients cimport ClientRegistry
from wsc_fast._core.clock cimport passed
from wsc_fast._core.deflate cimport Codec
from wsc_fast._core.fanout cimport Fanout, FanoutNeeds
from wsc_fast._core.frames cimport FIN_TEXT, encode, encode_message, with_head
from wsc_fast._core.histogram cimport Histogram
from wsc_fast._core.loop_context cimport LoopContext
from wsc_fast._core.members cimport KeptRoom, MemberSet, Room, deleted_rooms_of, push_all, rooms_of
from wsc_fast._core.memory cimport AN_ENGINE, born, died
from wsc_fast._core.messages cimport MessageForms
from wsc_fast._core.outbox cimport (
    AWARE,
    DISCONNECT,
    DROP_NEWEST,
    DROP_OLDEST,
    MADE_ROOM,
    NO_MEMORY,
    OPEN,
    PUSHED,
    REFUSED,
    RUN_NORMAL,
    Counters,
    Limits,
    Sink,
    outbox_push,
)
from wsc_fast._core.rates cimport RATE_CLOSE, RATE_DROP, RATE_PAUSE
from wsc_fast._core.read_buffer cimport ReadBuffer
from wsc_fast._core.read_turns cimport ReadTurns
from wsc_fast._core.timers cimport Timers

from wsc_fast._core.clients import check_id
from wsc_fast._core.timers import MOST_ENDS
from wsc_fast.errors import (
    ClientNotFoundError,
    LimitError,
    PermissionDeniedError,
    QueueFullError,
    RoomExistsError,
    RoomNotFoundError,
    ValidationError,
)

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object)

cdef extern from "net.h" nogil:
    double wsc_coarse_now()
    double wsc_now()

cdef dict POLICIES = {
    "disconnect": DISCONNECT,
    "drop_oldest": DROP_OLDEST,
    "drop_newest": DROP_NEWEST,
}

cdef dict RATE_ACTIONS = {"close": RATE_CLOSE, "drop": RATE_DROP, "pause": RATE_PAUSE}

# The head line of a message without a position, for clients that speak wsc.1 (docs/wire.md).
cdef bytes NO_HEAD = b"\n"

# The settings whose meeting is counted in `limited`; others have a counter of their own.
cdef tuple LIMITS = (
    "max_connections",
    "max_connections_per_address",
    "max_connections_per_user",
    "connection_rate",
    "connection_rate_per_address",
    "max_handshakes",
    "handshake_timeout",
    "max_header_bytes",
    "max_headers",
    "max_request_body",
    "authentication_timeout",
    "authentication_input_bytes",
    "max_message_size",
    "max_fragments",
    "message_timeout",
    "message_rate",
    "byte_rate",
    "max_pending_callbacks",
    "max_pending_callback_bytes",
    "callback_close_timeout",
    "max_rooms",
    "max_rooms_per_client",
    "close_timeout",
)

# The close codes that are told of from 0 on; others once they were met: those of RFC 6455 that one
# side may send or that stand for none, and the hub's own.
cdef tuple CLOSES = (
    1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 4401, 4409
)

# `slowest_clients` sorts once it has found so many more than it looks for.
cdef Py_ssize_t MOST_SORTED = 1024

# Seconds that the members of deleted rooms take of a turn, as in turns.py.
cdef double EMPTYING_BUDGET = 0.002


cdef str checked_key(object key):
    if type(key) is not str:
        raise ValidationError(f"a conflation key must be a str, not {type(key).__name__}")
    if not PyUnicode_IS_COMPACT_ASCII(key) and not is_encodable(<str>key):
        raise ValidationError(f"a conflation key must not hold a lone surrogate: {key!a}")
    return key


cdef bint is_encodable(str text) except -1:
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        pass
    return False


@cython.final
cdef class Engine(FanoutNeeds):
    """The work of a hub on clients, users, rooms and messages (internal)."""

    def __cinit__(self, hub):
        born(AN_ENGINE)
        self.hub = hub
        memset(&self.counters, 0, sizeof(Counted))
        self.loop_context = LoopContext()
        self.fanout = Fanout(self, self.loop_context)
        self.clients = ClientRegistry(self.fanout)
        self.rooms = {}
        self.emptying = []
        self.deadlines = Timers(most=MOST_ENDS)
        self.message_handlers = ()
        self.limited = dict.fromkeys(LIMITS, 0)
        memset(self.closes, 0, sizeof(self.closes))
        self.outbox_depth = Histogram(1)
        self.round_trips = Histogram(128e-6)
        self.ack_latency = Histogram(128e-6)
        self.turns = ReadTurns(self.loop_context)
        self.read_buffer = ReadBuffer()

    def __dealloc__(self):
        died(AN_ENGINE)

    @property
    def loop(self):
        """asyncio.AbstractEventLoop | None: the loop it runs on, None while it does not run."""
        return self.loop_context.loop

    # --- the loop and the configuration ---

    def attach(self, loop, int send_threads=0):
        """Binds to the running loop of this thread, or to none.

        Args:
            loop: the loop, or None.
            send_threads: so many threads are to help with sends.

        Returns:
            int: those that are there.
        """
        self.loop_context.attach(loop)
        self.fanout.attach(send_threads)
        self.deadlines.attach(loop)
        self.turns.attach()
        self.emptying.clear()  # nobody is connected
        self.thread_id = 0 if loop is None else PyThread_get_thread_ident()
        return self.fanout.threads

    def join(self, requests, admission, application, deliveries):
        """Has these hear of what happens here; upward.py has their interfaces."""
        self.requests = requests
        self.admission = admission
        self.application = application
        self.deliveries = deliveries

    def configure(self, config):
        """Takes the settings that hold from the start on; for a hub that does not run."""
        cdef Codec codec = None
        self.read_buffer.make(config.read_buffer_size)
        if config.enable_compression:
            codec = Codec(config.compression_level, config.compression_threshold)
            if self.codec is not None:
                codec.compressions = self.codec.compressions
        self.codec = codec

    def configure_live(self, config):
        """Takes all other settings; a running hub takes most of them anew."""
        self.bound_outboxes(config)
        self.bound_rates(config)
        self.set_timeouts(config.heartbeat_timeout, config.message_timeout)
        self.heartbeat_interval = config.heartbeat_interval
        self.close_timeout = config.close_timeout
        self.max_rooms = config.max_rooms
        self.max_rooms_per_client = config.max_rooms_per_client
        self.max_message_size = config.max_message_size
        self.max_fragments = config.max_fragments
        self.auth_input_bytes = config.authentication_input_bytes

    cdef int bound_outboxes(self, config) except -1:
        self.fanout.end_batch()
        self.fanout.limits.messages = config.outbox_messages
        self.fanout.limits.nbytes = config.outbox_bytes
        self.fanout.limits.policy = POLICIES[config.overflow]
        self.fanout.aware_limits = self.fanout.limits
        self.fanout.aware_limits.policy = DISCONNECT
        self.fanout.aware_limits.evicted = NULL
        self.fanout.budget = config.flush_budget
        return 0

    cdef int bound_rates(self, config) except -1:
        """Bounds what each client may send a second; 0 is no bound."""
        self.rates.messages = config.message_rate
        self.rates.nbytes = config.byte_rate
        self.rates.action = RATE_ACTIONS[config.rate_limit_action]
        self.rates.bounded = self.rates.messages > 0 or self.rates.nbytes > 0
        self.rates.pausing = self.rates.bounded and self.rates.action == RATE_PAUSE
        self.turns.set_rated(self.rates.bounded)
        self.read_buffer.set_least(self.turns.heavy_read)
        return 0

    def set_timeouts(self, double heartbeat, double message):
        """Sets the longest silence of a client, and the longest time of a message, in seconds."""
        self.heartbeat_timeout = heartbeat
        self.message_timeout = message

    def new_context(self):
        """A contextvars.Context for what is no client's."""
        return PyContext_Copy(self.loop_context.variables)

    def is_away(self):
        """Whether the hub runs, and in another thread."""
        return self.away()

    def set_turns(self, Py_ssize_t heavy_read, double budget):
        """Sets the bytes of a heavy read, and the least seconds that such reads have in a turn."""
        self.turns.set(heavy_read, budget)
        self.read_buffer.set_least(heavy_read)

    cdef bytes form_of(self, bytes frame, int form):
        if form == AWARE:
            return with_head(frame, NO_HEAD)
        return self.codec.compressed_form(frame, form & (AWARE - 1))

    cdef bytes form_for(self, bytes frame, int form):
        """The frame in a form other than 0; None: there is no memory for it."""
        try:
            if form >= AWARE and not self.has_head:
                frame = self.form_of(frame, AWARE)
            return frame if form == AWARE else self.form_of(frame, form)
        except MemoryError:
            pass
        return None

    cdef int push_aware(self, Sink sink, bytes frame) except -1:
        """Queues a frame that has its head line; a client without room for it is closed."""
        cdef int result
        self.has_head = True
        try:
            result = self.push(sink, frame, NULL, RUN_NORMAL)
        finally:
            self.has_head = False
        if result != PUSHED:
            sink.too_slow(<PyObject*>frame)
        return 0

    def set_forms(self, MessageForms forms not None):
        """Hands down what messages.py has for the engine; to be called first of all."""
        self.forms = forms

    def set_client_stats(self, client_stats):
        """Hands down what `Client.stats` calls, with the numbers that only it knows."""
        self.client_stats = client_stats

    def set_heads(self, decode_head, without_heads):
        """Hands down what cluster/heads.py has for the head lines of wsc.1.

        Args:
            decode_head: `decode_head(line) -> Head`, or a str that says why it is none.
            without_heads: `without_heads(frames) -> list[bytes]`: plain frames, of those which
                carry a message.
        """
        self.decode_head = decode_head
        self.without_heads = without_heads

    def set_kept(self, is_kept, publish, join, joining, left, emptied):
        """Has somebody look after kept rooms.

        Args:
            is_kept: `is_kept(room_id) -> bool`.
            publish: `publish(room_id, frame, exclude, key, idempotency_key=None, answer=None)`.
            join: `join(client, room)` makes a client that speaks wsc.1 a member, now or later.
            joining: `joining(client, room_id) -> int`: into how many other rooms a client is on its
                way.
            left: `left(client, room)`: a client has been asked to leave.
            emptied: a set that takes the ids of rooms whose last member has left.
        """
        cdef Room room
        self.emptied = emptied
        for room in self.rooms.values():
            room.emptied = emptied
        self.is_kept = is_kept
        self.publish_kept = publish
        self.join_kept = join
        self.joining_kept = joining
        self.left_kept = left

    def set_acks(self, take, replaying, hold, ran_empty):
        """Joins the acknowledgements to the engine.

        Args:
            take: `take(client, text) -> int` takes acknowledgements out of what comes in:
                NO_ACK, SETTLED or IGNORED.
            replaying: the set of users whose plain messages go through `hold`.
            hold: `hold(user_id, message, data) -> int`.
            ran_empty: `ran_empty(client)`, once for each `await_empty`.
        """
        self.ack_filter = take
        self.replaying = replaying
        self.hold = hold
        self.hear_empty(ran_empty)

    def hear_empty(self, ran_empty):
        """Has `ran_empty(client)` be called when an outbox is empty for which somebody waits."""
        self.room_heard = (*(self.room_heard or ()), ran_empty)

    def must_wait(self, Sink client not None, Py_ssize_t size):
        """Whether a frame of so many bytes has to wait for room in a client's outbox.

        Half of the outbox is left for others. A frame that has to wait may be sent once
        `hear_empty` has told that the outbox is empty.
        """
        cdef const Limits* limits = &self.fanout.limits
        if not client.box.count or (
            2 * (client.box.count + 1) <= limits.messages
            and 2 * (client.box.nbytes + size) <= limits.nbytes
        ):
            return False
        self.await_empty(client)
        return True

    cdef int ran_empty(self, Sink sink) except -1:
        sink.awaited = False
        for heard in self.room_heard or ():
            heard(sink)
        return 0

    cdef int await_empty(self, Sink sink) except -1:
        """Has those who wait hear, once, that the outbox of a client has run empty."""
        sink.awaited = True
        return 0

    def set_filters(self, join_filter, publish_filter):
        """Has `join_filter(client, room_id)` and `publish_filter(client, message)` decide."""
        self.join_filter = join_filter
        self.publish_filter = publish_filter

    def watch_losses(self, watched):
        """Whether `Deliveries.lost` is called for what is dropped or not sent."""
        self.fanout.tell_losses(watched)

    cdef int over(self, str limit) except -1:
        """A limit was met: counts it under the name of its setting."""
        self.limited[limit] += 1
        return 0

    cdef void count_close(self, int code, bint of_peer) noexcept:
        # Memory for this is there, since a connection may have to end without any.
        self.closes[0 if of_peer and code >= 3000 else code - 999] += 1

    cdef dict count_closes(self):
        """The connections that ended: close code, as text -> how many."""
        cdef dict counts = {str(code): self.closes[<int>code - 999] for code in CLOSES}
        cdef int i
        counts["3000-4999"] = self.closes[0]
        for i in range(1, CLOSE_CODES):
            if self.closes[i]:
                counts[str(i + 999)] = self.closes[i]
        return counts

    def count_limit(self, str limit):
        self.over(limit)

    def count_waiting(self):
        """The number of connections that wait for their turn to be read."""
        return self.turns.count_waiting()

    cdef int lose(self, Sink sink, list frames, str reason, object error) except -1:
        if self.fanout.tells_losses() and frames:
            self.deliveries.lost(sink, frames, reason, error)
        return 0

    cdef int lose_queued(self, Sink sink, list frames, str reason) except -1:
        """As `lose`, for frames in the form of the client."""
        return self.lose(
            sink, self.without_heads(frames) if sink.form >= AWARE else frames, reason, None
        )

    def set_message_handlers(self, tuple handlers, bint gathers=False, object alone=None):
        """Has these called for each message.

        Args:
            handlers: called one after the other.
            gathers: each call is for the list of the messages of one read.
            alone: which messages are in a list of their own; None: none.
        """
        self.gathers = gathers
        self.alone = alone
        self.message_handlers = handlers
        self.message_handler = handlers[0] if len(handlers) == 1 else None

    cdef bint away(self) noexcept:
        return self.thread_id != 0 and self.thread_id != PyThread_get_thread_ident()

    # --- who is connected ---

    cpdef get_client_by_id(self, client_id):
        """See `Hub.get_client_by_id`."""
        if type(client_id) is not str:
            check_id("client", client_id)
        return self.clients.by_id.get(client_id)

    cpdef list get_clients_by_user(self, user_id):
        """See `Hub.get_clients_by_user`."""
        if type(user_id) is not str:
            check_id("user", user_id)
        return self.clients.of_user(user_id)

    # --- sending ---

    cdef bytes framed(self, object message, object recipient, int* run):
        """The message's frame, and its priority; failure handlers hear of one that has none."""
        cdef bytes frame
        run[0] = RUN_NORMAL
        if type(message) is bytes or (
            type(message) is str and PyUnicode_IS_COMPACT_ASCII(message)
        ):
            return encode_message(message)  # which takes every one of these
        try:
            if (
                type(message) is str or type(message) is bytes
                or not isinstance(message, self.forms.encoder.HubMessage)
            ):
                return encode_message(message)
            frame = self.forms.encoder.encode_frame(message)
            run[0] = message.priority - 1
            return frame
        except ValidationError as error:
            if self.fanout.tells_losses():
                self.deliveries.refused(message, recipient, "validation", error)
            raise

    cdef int deliver(self, Sink sink, bytes frame, object key, int run) except -1:
        """Queues a frame for one client, or raises what says why not."""
        cdef PyObject* key_ptr = NULL
        cdef str checked
        cdef int result
        cdef object error
        if key is not None:
            checked = checked_key(key)
            key_ptr = <PyObject*>checked
        self.counters.messages_out += 1
        result = self.push(sink, frame, key_ptr, run)
        if result != PUSHED:
            error = self.refusal(sink, result)
            self.lose(sink, [frame], "queue_full", error)
            raise error
        return 0

    cdef int push(self, Sink sink, bytes frame, PyObject* key, int run) except -1:
        """Queues a frame for one client: PUSHED, REFUSED or NO_MEMORY."""
        cdef int result
        cdef list dropped = None
        cdef const Limits* limits = &self.fanout.limits
        self.fanout.detach_if_batched(sink)
        if sink.form:
            frame = self.form_for(frame, sink.form)
            if frame is None:
                self.counters.refused += 1
                return NO_MEMORY
            if sink.form >= AWARE:
                limits = &self.fanout.aware_limits
        result = outbox_push(
            &sink.box, limits, &self.fanout.counters, <PyObject*>frame, key, run
        )
        if result == REFUSED or result == NO_MEMORY:
            self.counters.refused += 1
            return result
        self.fanout.counters.deliveries += 1
        if result == MADE_ROOM:
            dropped = self.fanout.taken()
        if sink.dirty_at < 0:
            self.fanout.mark(sink)
        if dropped is not None:
            self.lose(sink, dropped, "queue_full", None)
        return PUSHED

    cdef object refusal(self, Sink sink, int result):
        """The error for a frame that is in no outbox: REFUSED or NO_MEMORY."""
        if result == NO_MEMORY:
            return MemoryError(f"no memory for the outbox of client {sink.id!a}")
        return QueueFullError(
            f"the outbox of client {sink.id!a} is full: {sink.box.count} messages, "
            f"{sink.box.nbytes} bytes wait (bounds: {self.fanout.limits.messages} messages, "
            f"{self.fanout.limits.nbytes} bytes)"
        )

    cpdef Py_ssize_t send_message(self, user_id, message) except -1:
        """`send_to_user` without the failure handlers, on the loop's thread."""
        cdef bytes frame
        cdef Py_ssize_t queued
        if type(user_id) is not str:
            check_id("user", user_id)
        if self.relay is not None and self.relays(user_id, message):
            return 0
        if self.replaying is not None and user_id in self.replaying:
            return self.hold(user_id, message, self.forms.encoder.encode(message))
        frame = self.forms.encoder.encode_frame(message)
        queued = self.offer_to_user(user_id, frame, message.priority - 1)
        if queued <= 0:
            raise self.deliveries.not_queued(user_id, queued)
        return queued

    cdef bint relays(self, str user_id, message) except -1:
        """Sends a message to other hubs that may have a user; whether nobody is here."""
        cdef bint is_here = self.clients.has_user(user_id)
        if self.thread_id == 0 or (is_here and user_id not in self.elsewhere):
            return False
        check_id("user", user_id)
        self.relay(user_id, self.forms.encoder.encode(message), message.priority)
        return not is_here

    def encoded_message(self, message):
        """A HubMessage as JSON; raises ValidationError where it cannot be sent."""
        return self.forms.encoder.encode(message)

    def deliver_to_user(self, str user_id not None, bytes data not None, int priority):
        """A HubMessage of another hub, as JSON, for the clients of a user here.

        Raises:
            WSCError: no client of the user has got it.
        """
        cdef Py_ssize_t queued
        if self.replaying is not None and user_id in self.replaying:
            return self.hold(user_id, self.forms.decode_hub_message(data), data)
        queued = self.offer_to_user(
            user_id,
            encode(FIN_TEXT, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)),
            priority - 1,
        )
        if queued <= 0:
            raise self.deliveries.not_queued(user_id, queued)
        return queued

    def deliver_to_client(self, client_id, message, key):
        """A message of another hub for a client; raises as `send_to_client`."""
        cdef int run
        cdef Sink sink = self.clients.find(client_id)
        cdef bytes frame = self.framed(message, client_id, &run)
        self.deliver(sink, frame, key, run)

    cdef Py_ssize_t offer_to_user(self, str user_id, bytes frame, int run) except? 0:
        # How many clients it was queued for; 0: the user has none; below 0: the outboxes of that
        # many are full, and there is no other. MemoryError: there was no memory, and no other.
        cdef MemberSet user = self.clients.users.get(user_id)
        cdef Sink sink = self.clients.named_as(user_id)
        cdef Py_ssize_t queued = 0
        cdef list refused = None  # (Sink, result of `push`)
        cdef list items
        cdef int result
        self.counters.messages_out += 1
        if user is not None:
            self.fanout.schedule_before_walk(user.items)
        if sink is not None:
            result = self.push(sink, frame, NULL, run)
            if result == PUSHED:
                queued = 1
            else:
                refused = [(sink, result)]
        if user is not None:
            # Where the application is told of losses on the way, clients may leave meanwhile.
            items = list(user.items) if self.fanout.tells_losses() else user.items
            for sink in items:
                if sink.state != OPEN:
                    continue
                result = self.push(sink, frame, NULL, run)
                if result == PUSHED:
                    queued += 1
                elif refused is None:
                    refused = [(sink, result)]
                else:
                    refused.append((sink, result))
        if refused is None:
            return queued
        for sink, result in refused:
            if queued:
                self.lose(sink, [frame], "queue_full", self.refusal(sink, result))
            elif result == NO_MEMORY:
                raise self.refusal(sink, result)
        return queued or -len(refused)

    cdef Py_ssize_t publish(
        self, list items, object members, object message, object exclude, object key,
        object recipient,
    ) except -1:
        cdef int run
        cdef bytes frame = self.framed(message, recipient, &run)
        cdef PyObject* key_ptr = NULL
        cdef str checked
        cdef list skipped
        cdef Sink sink
        if key is not None:
            checked = checked_key(key)
            key_ptr = <PyObject*>checked
        if PyList_GET_SIZE(items) == 0 and self.thread_id == 0:
            raise self.deliveries.not_running(message, recipient)
        if self.outgoing is not None:
            exclude = tuple(self.excluded_ids(exclude))  # an iterator can be read once
            self.send_out(recipient, frame, exclude, key)
        if type(exclude) is tuple and not exclude:
            self.counters.messages_out += 1
            self.fanout.schedule_before_walk(items)
            return push_all(self.fanout, items, members, None, frame, key_ptr, run, None)
        skipped = self.excluded(exclude)
        self.counters.messages_out += 1
        self.fanout.schedule_before_walk(items)
        try:
            for sink in skipped:
                sink.skip = True
            return push_all(self.fanout, items, members, skipped, frame, key_ptr, run, None)
        finally:
            for sink in skipped:
                sink.skip = False

    cdef int send_out(self, str room_id, bytes frame, tuple exclude, object key) except -1:
        """Notes a message for other hubs; it goes to the bus once, at the end of the tick."""
        self.outgoing.append((room_id, frame, exclude, key))
        if PyList_GET_SIZE(self.outgoing) == 1:
            self.loop_context.call_soon(self.publish_outgoing)
        return 0

    cdef Py_ssize_t append_to_room(
        self, str room_id, object message, object exclude, object key
    ) except -1:
        """`broadcast_to_room` for a kept room, or one that has members on other hubs alone."""
        cdef int run
        cdef bytes frame
        if self.thread_id == 0:
            raise self.deliveries.not_running(message, room_id)
        frame = self.framed(message, room_id, &run)
        if key is not None:
            checked_key(key)
        self.counters.messages_out += 1
        if not self.is_kept(room_id):
            self.send_out(room_id, frame, tuple(self.excluded_ids(exclude)), key)
            return 0
        self.publish_kept(room_id, frame, tuple(self.excluded_ids(exclude)), key)
        room = self.rooms.get(room_id)
        return 0 if room is None else (<MemberSet>room).size()

    def set_outgoing(self, list outgoing, publish_outgoing, entered_first):
        """Has the messages of plain rooms, and broadcasts, go to other hubs too.

        Args:
            outgoing: takes (room_id, frame, exclude, key) of each; room_id is "" for a broadcast.
                None: there are no other hubs.
            publish_outgoing: is called at the end of a tick in which it took any.
            entered_first: `entered_first(room_id)`: a room has its first member.
        """
        self.outgoing = outgoing
        self.publish_outgoing = publish_outgoing
        self.entered_first = entered_first

    def set_relay(self, set elsewhere, relay, relay_to_client):
        """Has messages to users and clients go to other hubs too.

        Args:
            elsewhere: users who are here and on other hubs.
            relay: `relay(user_id, data, priority)`: sends a HubMessage, as JSON, to the other hubs
                of a user; None: users are of one hub.
            relay_to_client: `relay_to_client(client_id, frame, key)`: sends a message to a client
                that is not here; returns whether another hub may have it.
        """
        self.elsewhere = elsewhere
        self.relay = relay
        self.relay_to_client = relay_to_client

    def publish_to_plain(self, room_id, message, exclude, key):
        """`Hub.publish` for a plain room, without an idempotency key: as `broadcast_to_room`."""
        cdef MemberSet room = self.room_to_join(room_id)
        if room is None:
            self.append_to_room(room_id, message, exclude, key)
        else:
            self.publish(room.items, room, message, exclude, key, room_id)

    def prepare_for_plain(self, room_id, message, exclude, key, bint known):
        """A message of a plain room, or of all clients, that the bus has to take first.

        Args:
            room_id: of the room; "" for all clients.
            message, exclude, key: as for `broadcast`.
            known: the room has to be there.

        Returns:
            tuple[bytes, tuple[str, ...]]: the frame, and the ids of clients that do not get it.
        """
        cdef int run
        cdef bytes frame
        if known:
            self.room_to_join(room_id)  # raises where there is none
        frame = self.framed(message, room_id, &run)
        if key is not None:
            checked_key(key)
        self.counters.messages_out += 1
        return frame, tuple(self.excluded_ids(exclude))

    def unaware_members(self, room_id):
        """The members of a room who do not speak wsc.1."""
        cdef MemberSet room = self.rooms.get(room_id)
        if room is None:
            return []
        return [sink for sink in room.items if (<Sink>sink).form < AWARE]

    def append_to_kept(self, str room_id, message, exclude, key, idempotency_key, answer):
        """`Hub.publish`: as `append_to_room`, with the answer of the bus.

        Args:
            room_id: of a kept room.
            message, exclude, key: as for `broadcast`.
            idempotency_key: a str or None.
            answer: the future that gets the answer.
        """
        cdef int run
        cdef bytes frame = self.framed(message, room_id, &run)
        if key is not None:
            checked_key(key)
        self.counters.messages_out += 1
        self.publish_kept(
            room_id, frame, tuple(self.excluded_ids(exclude)), key, idempotency_key, answer
        )

    cdef list excluded(self, object exclude):
        # The clients named by ids or by themselves; ids of nobody are nothing to leave out.
        cdef list found = []
        for client_id in self.excluded_ids(exclude):
            client = self.clients.by_id.get(client_id)
            if client is not None:
                found.append(client)
        return found

    cdef list excluded_ids(self, object exclude):
        cdef list found = []
        if isinstance(exclude, (str, Sink)):
            raise ValidationError(
                f"exclude must be an iterable of client ids, not a single {type(exclude).__name__}"
            )
        try:
            items = iter(exclude)
        except TypeError:
            raise ValidationError(
                f"exclude must be an iterable of client ids, not {type(exclude).__name__}"
            ) from None
        for item in items:
            found.append((<Sink>item).id if isinstance(item, Sink) else check_id("client", item))
        return found

    # --- rooms ---

    cdef MemberSet find_room(self, object room_id):
        cdef PyObject* found = NULL
        if type(room_id) is str:
            found = PyDict_GetItemWithError(self.rooms, room_id)
        if found == NULL:
            check_id("room", room_id)
            raise RoomNotFoundError(f"there is no room with the id {room_id!a}")
        return <MemberSet>found

    cdef int create_room(self, object room_id) except -1:
        check_id("room", room_id)
        if room_id in self.rooms:
            raise RoomExistsError(f"there is a room with the id {room_id!a} already")
        self.make_room(room_id)
        return 0

    cdef Room make_room(self, str room_id):
        cdef Room room
        if len(self.rooms) >= self.max_rooms:
            self.over("max_rooms")
            raise LimitError(f"the hub has {len(self.rooms)} rooms, as many as max_rooms allows")
        if self.is_kept is not None and self.is_kept(room_id):
            room = KeptRoom.__new__(KeptRoom, room_id)
        else:
            room = Room.__new__(Room, room_id)
        room.emptied = self.emptied
        self.rooms[room_id] = room
        return room

    cdef MemberSet room_to_join(self, object room_id):
        """The room; None for one that its first member makes: a kept one, or any with a bus."""
        cdef PyObject* found = NULL
        if type(room_id) is str:
            found = PyDict_GetItemWithError(self.rooms, room_id)
            if found == NULL and self.is_kept is not None:
                check_id("room", room_id)
                if self.outgoing is not None or self.is_kept(room_id):
                    return None
        return <MemberSet>found if found != NULL else self.find_room(room_id)

    cdef int delete_room(self, object room_id) except -1:
        cdef Room room
        room = <Room>self.find_room(room_id)
        if self.fanout.batch_set is room:
            self.fanout.end_batch()
        del self.rooms[room_id]
        room.deleted = True
        self.emptying.append(room)
        if PyList_GET_SIZE(self.emptying) == 1:  # else `empty_rooms` is due, or calls us
            self.empty_rooms()
        return 0

    def empty_rooms(self):
        """Takes the members out of deleted rooms, and tells of each; as many as a turn allows."""
        cdef double until = wsc_now() + EMPTYING_BUDGET
        cdef Room room
        try:
            while PyList_GET_SIZE(self.emptying) and wsc_now() < until:
                room = <Room>self.emptying[0]
                if room.size():
                    self.take_out(<Sink>room.items[room.size() - 1], room)
                else:
                    self.emptying.pop(0)
        finally:
            if PyList_GET_SIZE(self.emptying) and self.loop_context.loop is not None:
                self.loop_context.call_soon(self.empty_rooms)

    cdef int take_out(self, Sink sink, MemberSet room) except -1:
        if room.discard(sink) and self.room_left is not None:
            self.room_left(sink, room.id)
        return 0

    def end_passing(self, room_id):
        """Ends a room that a `join_room` has made, once nobody is in it.

        Returns:
            bool: whether nobody is in it.
        """
        cdef object room = self.rooms.get(room_id)
        if room is None:
            return True
        if (<Room>room).size():
            return False
        if (<Room>room).passing:
            del self.rooms[room_id]
            (<Room>room).deleted = True
        return True

    def end_all_passing(self):
        """Ends all rooms that joins have made and that nobody is in: the hub has stopped."""
        for room_id in list(self.rooms):
            self.end_passing(room_id)

    cdef int join_room(self, object client_id, object room_id) except -1:
        cdef Sink sink
        cdef MemberSet room
        cdef Py_ssize_t sets, joining
        sink = self.clients.find(client_id)
        room = self.room_to_join(room_id)
        if self.join_filter is not None:
            if not self.join_filter(sink, room_id):
                raise PermissionDeniedError(f"client {client_id!a} may not join room {room_id!a}")
            # The hook is the application's, and may have ended either.
            room = self.room_of_open(sink, room_id)
        sets = 0 if sink.memberships is None else len(sink.memberships)
        joining = 0
        if sink.form >= AWARE and self.joining_kept is not None:
            joining = self.joining_kept(sink, room_id)
        if sets + joining >= self.max_rooms_per_client:
            if sets and room is not None and room in sink.memberships:
                return 0
            if len(rooms_of(sink)) + joining >= self.max_rooms_per_client:
                self.over("max_rooms_per_client")
                raise LimitError(
                    f"client {client_id!a} is in {self.max_rooms_per_client} rooms, as many as "
                    "max_rooms_per_client allows"
                )
        if PyList_GET_SIZE(self.emptying):
            room = self.leave_deleted(sink, room_id)
        if room is None:
            room = self.make_room(room_id)
            (<Room>room).passing = True
        if isinstance(room, KeptRoom):
            self.join_kept(sink, room)  # who speaks wsc.1 may have to wait
        else:
            self.enter_room(sink, room)
        return 0

    cdef bint enter_room(self, Sink sink, MemberSet room) except -1:
        """Makes a client a member; whether it was none before."""
        if not room.add(sink):
            return False
        if self.outgoing is not None and room.size() == 1:
            self.entered_first(room.id)
        if self.fanout.batch_set is room:
            self.fanout.enter_batch(sink)
        if self.room_joined is not None:
            self.room_joined(sink, room.id)
        return True

    cdef MemberSet leave_deleted(self, Sink sink, object room_id):
        """Before it joins one that may have the same id; returns the room that has it now."""
        for room in deleted_rooms_of(sink):
            self.take_out(sink, <Room>room)
        # A callback may have ended the client, or this room.
        return self.room_of_open(sink, room_id)

    cdef MemberSet room_of_open(self, Sink sink, object room_id):
        if sink.state != OPEN:
            raise ClientNotFoundError(f"no connected client has the id {sink.id!a}")
        return self.room_to_join(room_id)

    cdef int leave_room(self, object client_id, object room_id) except -1:
        cdef Sink sink
        cdef MemberSet room
        room = self.find_room(room_id)
        sink = self.clients.find(client_id)
        if isinstance(room, KeptRoom):
            self.left_kept(sink, room)
        if self.fanout.batch_set is room and self.fanout.in_batch(sink):
            self.fanout.leave_batch(sink)
        return self.take_out(sink, room)

    cdef list room_clients(self, object room_id):
        cdef Sink sink
        return [sink.id for sink in self.find_room(room_id).items]

    cdef Py_ssize_t room_size(self, object room_id) except -1:
        return PyList_GET_SIZE(self.find_room(room_id).items)

    cdef list room_users(self, object room_id):
        cdef Sink sink
        cdef set users = set()
        for sink in self.find_room(room_id).items:
            users.add(sink.user_id)
        return list(users)

    cdef list client_rooms(self, object client_id):
        return rooms_of(self.clients.find(client_id))

    def count_emptying(self):
        """Counts the deleted rooms that have members left."""
        return PyList_GET_SIZE(self.emptying)

    def set_room_watchers(self, joined, left):
        """Has `joined(client, room_id)` and `left(client, room_id)` hear; None: nobody wants to.

        The end of a connection is no `left` (`Client.leave_sets`).
        """
        self.room_joined = joined
        self.room_left = left

    # --- heartbeat and stats ---

    def sweep(self, double share):
        """Gives the next `share` (0 to 1) of the clients their heartbeat check."""
        self.fanout.make_up()
        self.clients.sweep(share, wsc_coarse_now() + passed)

    def open_clients(self):
        return list(self.clients.everyone)

    def slowest_clients(self, most):
        """See `Hub.slowest_clients`."""
        cdef Py_ssize_t count = min(most, PyList_GET_SIZE(self.clients.everyone))
        cdef list found = []  # (bytes, messages, place, Sink), which no two have alike
        cdef Py_ssize_t least = 0
        cdef Sink sink
        for place, sink in enumerate(self.clients.everyone):
            if sink.box.nbytes > least:
                found.append((sink.box.nbytes, sink.box.count, place, sink))
                if len(found) >= 2 * count + MOST_SORTED:
                    found.sort(reverse=True)
                    del found[count:]
                    least = found[count - 1][0]
        found.sort(reverse=True)
        return [entry[3] for entry in found[:count]]

    def forget_connections(self):
        """The loop was closed under the hub: its connections went with it, and nobody was told."""
        cdef Sink sink
        self.fanout.forget()
        for sink in [*self.clients.everyone, *self.clients.closing]:
            self.clients.expel(sink)
            sink.forget()
        self.clients.closing.clear()
        self.connections = 0

    def closing_clients(self):
        return list(self.clients.closing)

    def read_counters(self):
        """The counters since the last reset, and the gauges of this moment."""
        cdef Sink sink
        cdef Py_ssize_t messages = 0
        cdef Py_ssize_t nbytes = 0
        cdef Py_ssize_t waiting = self.fanout.count_batched()
        cdef dict counters = {**self.counters, **self.fanout.counters}
        for sink in self.clients.everyone:
            messages += sink.box.count
            nbytes += sink.box.nbytes
        if waiting:
            messages += waiting * PyList_GET_SIZE(self.fanout.batch_frames)
            nbytes += waiting * self.fanout.batch_bytes
        counters["compressed"] = 0 if self.codec is None else self.codec.compressions
        counters["connected_clients"] = PyList_GET_SIZE(self.clients.everyone)
        counters["active_rooms"] = len(self.rooms)
        counters["longest_flush"] = self.fanout.longest_flush
        counters["queued_messages"] = messages
        counters["queued_bytes"] = nbytes
        counters["limited"] = dict(self.limited)
        counters["closes"] = self.count_closes()
        return counters

    def count_overload(self):
        """The messages dropped from full outboxes, and those beyond their client's rate."""
        cdef Counters* counters = &self.fanout.counters
        return counters.dropped_oldest + counters.dropped_newest, self.counters.rate_limited

    def fullest_client(self):
        """The client for which most messages wait; None where there is none. Looks at each."""
        cdef Sink sink
        cdef Sink found = None
        for sink in self.clients.everyone:
            if found is None or sink.box.count > found.box.count:
                found = sink
        return found

    def read_histograms(self):
        """The histograms by name; `reset_counters` leaves them alone."""
        return {
            "outbox_depth": self.outbox_depth,
            "round_trips": self.round_trips,
            "ack_latency": self.ack_latency,
            "flush_clients": self.fanout.flush_clients,
            "flush_seconds": self.fanout.flush_seconds,
            "send_seconds": self.fanout.send_seconds,
        }

    def reset_counters(self):
        memset(&self.counters, 0, sizeof(Counted))
        memset(&self.fanout.counters, 0, sizeof(Counters))
        if self.codec is not None:
            self.codec.compressions = 0
        self.limited = dict.fromkeys(LIMITS, 0)
        memset(self.closes, 0, sizeof(self.closes))
        self.fanout.longest_flush = 0.0

    def count_rejected(self, str why):
        if why == "full":
            self.counters.rejected_full += 1
        elif why == "origin":
            self.counters.rejected_origin += 1
        elif why == "auth":
            self.counters.rejected_auth += 1
        elif why == "address":
            self.counters.rejected_address += 1
        elif why == "rate":
            self.counters.rejected_rate += 1
        elif why == "handshakes":
            self.counters.rejected_handshakes += 1
        elif why == "gone":
            self.counters.rejected_gone += 1
        else:
            self.counters.rejected_request += 1

    def count_replaced(self):
        self.counters.replaced_clients += 1

    def count_callback_error(self):
        self.counters.callback_errors += 1
