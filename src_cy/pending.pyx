"""Messages that wait for their acknowledgement; see pending.pxd.

Rules
1.  The call decides whom a message is for: all clients that its mailbox has by then, or one client,
    and after that one has gone the others of the mailbox. An acknowledgement counts from a client
    that the message is for.
2.  Each client gets the messages of its mailbox in the order of sending, whatever the others do.
3.  A message is in `pending` from the send to its end, or until its user is away and it is parked.
4.  No copy is queued for a client while the last one may still wait in that client's outbox.
"""

import asyncio
from asyncio import get_running_loop
from collections import deque
from weakref import ref

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport INFINITY

from wsc_fast._core.clock cimport passed
from wsc_fast._core.engine cimport IGNORED, NO_ACK, SETTLED, Engine
from wsc_fast._core.frames cimport FIN_TEXT, encode
from wsc_fast._core.messages cimport MessageForms
from wsc_fast._core.outbox cimport OPEN, PUSHED, Sink
from wsc_fast._core.timers cimport Timers

cdef extern from "net.h" nogil:
    double wsc_now()

from wsc_fast._core.clients import check_id
from wsc_fast._core.timers import TICK
from wsc_fast.errors import (
    AckFailedError,
    AckTimeoutError,
    ClientDisconnectedError,
    ClientNotFoundError,
    HubStoppedError,
    PendingFullError,
    UserOfflineError,
    ValidationError,
    shown,
)
cdef double CLOCK_TICK = TICK

# Seconds; about thirty years, which a loop's clock can carry.
cdef double LONGEST_TIMEOUT = 1e9
# Messages of one mailbox that are in the store, have timed out, and may still be acknowledged.
cdef Py_ssize_t MOST_LAPSED = 1_000
# The least of what one mailbox may have pending unless ACKConfig.max_pending_per_user says more.
cdef Py_ssize_t LEAST_SHARE = 16
# Clients that waited for memory and go on to catch up in one turn of the loop.
cdef Py_ssize_t MOST_WOKEN = 20


cdef inline bytes frame_of(PendingACK pending):
    return encode(FIN_TEXT, PyBytes_AS_STRING(pending._data), PyBytes_GET_SIZE(pending._data))


# Freed ones are kept for the next ones: so many come and go in a turn of the loop that Python would
# look for garbage among them all the time.
@cython.freelist(1024)
cdef class PendingACK:
    """A message on its way to an acknowledgement (go-wsc `PendingACK`).

    `await pending` gives AckStatus.CONFIRMED once it is acknowledged, and raises AckFailedError
    with the client's text, AckTimeoutError after the last retransmission, AckDroppedError when the
    hub gave it up, OfflineStoreError where it could not be stored, ValidationError where the
    offline store holds another message under its id, or HubStoppedError when the hub stops. It may
    be awaited more than once, and need not be. While the user is away it waits for the user, and
    for the store as `accepted` does: `asyncio.timeout` around it ends the waiting alone.

    Attributes:
        id: of the message.
        message: the ACKMessage, as it was when it was sent.
        user_id: whose acknowledgement counts.
        status: AckStatus.
        attempts: how often it was sent so far; with ACKConfig(per="device") to the device to which
            it was sent most often.

    Thread-safety: may be awaited on any loop; attributes are best read in the hub's thread.
    """

    @property
    def message(self):
        cdef MessageForms forms = self._table.forms
        message = forms.to_ack_message(forms.decode_hub_message(self._data))
        message.timeout = self._given_timeout
        return message

    @property
    def attempts(self):
        if self._children:
            return max([child.attempts for child in self._children])
        return self.sent_count

    @property
    def _timeout(self):
        return self.timeout()

    @property
    def _own_timeout(self):
        # Seconds, as it was given; None: ACKConfig.timeout.
        return self._given_timeout

    @property
    def _retransmissions(self):
        # How often it was sent again since it last began.
        return self.retries

    cpdef bint done(self) noexcept:
        """Whether the outcome is known. Thread-safety: any thread."""
        return self._error is not None or self.status is self._table.forms.confirmed

    cpdef bint _is_open(self) noexcept:
        # Whether it is to be sent.
        return self.status is self._table.forms.pending and self._error is None

    cdef double timeout(self) noexcept:
        # Seconds.
        if self._given_timeout is None:
            return self._table.default_timeout
        return <double>self._given_timeout

    def __await__(self):
        loop = get_running_loop()
        own = self._table.loop
        # A Future for each waiter, so that cancelling one leaves the others.
        if self.done():
            waiter = loop.create_future()
            self.tell(waiter)
        elif own is None or own.is_closed():
            raise HubStoppedError("the hub's loop was closed before the outcome was known")
        elif own is loop:
            waiter = loop.create_future()
            self._tell_later(waiter)
            if self.key is None:
                waiter.held = self  # in no mailbox: nobody else may hold it
        else:
            waiter = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._outcome(), own))
        return waiter.__await__()

    def _tell_later(self, waiter):
        """Gives the outcome to a future of the hub's loop once it is known, unless it is done."""
        if self.done():
            self.tell(waiter)
        elif self.waiter is None:
            self.waiter = waiter
        elif self.more_waiters is None:
            self.more_waiters = [waiter]
        else:
            self.more_waiters.append(waiter)

    def _hold_by_waiters(self):
        """Has it live on for as long as somebody awaits it: it leaves its mailbox."""
        if self.waiter is not None:
            for waiter in (self.waiter, *(self.more_waiters or ())):
                waiter.held = self

    cdef int tell(self, waiter) except -1:
        """Gives the outcome to one waiter."""
        if waiter.done():
            return 0  # cancelled
        if self._error is None:
            waiter.set_result(self._table.forms.confirmed)
        else:
            # A new traceback for each waiter.
            waiter.set_exception(self._error.with_traceback(None))
            waiter.exception()  # a waiter that has given up needs no line in the log
        return 0

    async def accepted(self):
        """Returns once a crash of the server can no longer lose the message.

        That is when it is in the offline store, or acknowledged; without a store, when it is
        acknowledged. It waits for as long as the store takes: the hub does not give an append up,
        since the store may have done it, and the message would come after its error. A store has a
        bound of its own: RedisOfflineStore its `timeout`, SQLiteOfflineStore its `busy_timeout` and
        the time of the disk.

        Raises:
            WSCError: what awaiting the message would raise, or why it could not be stored.

        Thread-safety: any loop.
        """
        loop = self._table.loop
        if loop is None or loop.is_closed() or loop is get_running_loop():
            await self._table.owner.accepted(self)
        else:
            accepted = asyncio.run_coroutine_threadsafe(self._table.owner.accepted(self), loop)
            await asyncio.wrap_future(accepted)

    async def _outcome(self):
        return await self

    def __repr__(self):
        return (
            f"<PendingACK {self.id!a} user={self.user_id!a} {self.status} attempts={self.attempts}>"
        )


@cython.freelist(1024)
cdef class Mailbox:
    """The messages that one user, or one device, has not acknowledged (internal)."""

    def __cinit__(self, str key not None, str user_id not None):
        self.key = key
        self.user_id = user_id
        self.pending = {}
        self.replays = {}

    @property
    def lapsed(self):
        """Messages of the store that have timed out, and may be acknowledged: id -> origin."""
        if self._lapsed is None:
            self._lapsed = {}
        return self._lapsed


cdef class TableOwner:
    """The owner of a table, as the table sees it: Acks (delivery/acks.py); internal."""

    def key_of(self, client):
        """The mailbox of a client, where each device has one of its own."""
        raise NotImplementedError

    def send_to_devices(self, user_id, message):
        """`start` for a user, where each device has a mailbox of its own; returns PendingACK."""
        raise NotImplementedError

    def device_ended(self, pending):
        """A delivery to one device has come to its end."""
        raise NotImplementedError

    def parked(self, mailbox, message_id):
        """The message with this id that waits for its user in the store; None if there is none."""
        raise NotImplementedError

    def check_waiting(self):
        """Raises PendingFullError where too much waits for the store to open already."""
        raise NotImplementedError

    def park(self, mailbox):
        """Moves a mailbox to the store: its user is away."""
        raise NotImplementedError

    def delete(self, mailbox, message_id, origin, error):
        """Removes an acknowledged message from the store.

        Args:
            mailbox: the key of its mailbox.
            message_id: its id.
            origin: the other hub that has sent it; None: this one has.
            error: of a client that has refused it; None: it was confirmed.
        """
        raise NotImplementedError

    def delete_once_stored(self, pending):
        """A message was acknowledged while it was being stored: no page may bring it any more."""
        raise NotImplementedError

    def spread(self, mailbox):
        """Has the clients of other hubs get what is pending in a mailbox."""
        raise NotImplementedError

    def catch_up(self, mailbox, client, line):
        """Has a client catch up, with these messages besides what it is catching up with."""
        raise NotImplementedError

    def report(self, pending, error):
        """Tells the failure handlers that a message was not delivered."""
        raise NotImplementedError

    async def accepted(self, pending):
        """Returns once a message is in the store, or acknowledged."""
        raise NotImplementedError


cdef class CatchUp:
    """A client that catches up, as the table sees it: a Replay (delivery/replay.py); internal."""

    def put(self, pending):
        """A message was sent: it goes out when its turn comes."""
        raise NotImplementedError

    def has_sent(self, pending):
        """Whether the client has got a message that is pending still."""
        raise NotImplementedError

    def acknowledged(self, message_id):
        """A message is acknowledged that was no longer pending."""
        raise NotImplementedError

    def settled(self, pending, answered):
        """A message has come to its end; `answered`: the client has confirmed or refused it."""
        raise NotImplementedError

    def wake(self):
        """There may be room."""
        raise NotImplementedError


@cython.final
cdef class AckTable:
    """The pending messages of one hub (internal).

    Args:
        engine: whose clients they are for.
        config: ACKConfig.
        has_store: whether the messages of users who are away are kept.
        counters: AckCounters.
        owner: does the work that is not every message's.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, Engine engine not None, config, bint has_store, counters, TableOwner owner not None
    ):
        self.engine = engine
        self.owner = owner
        self.has_store = has_store
        self.forms = engine.forms
        self.counters = counters
        self.default_timeout = config.timeout
        self.retry_interval = config.retry_interval
        self.max_retries = config.max_retries
        self.most = config.max_pending
        self.most_bytes = config.max_pending_bytes
        self.mailbox_most = min(
            self.most, config.max_pending_per_user or max(self.most // 4, LEAST_SHARE)
        )
        self.mailbox_most_bytes = self.most_bytes // 4
        # The devices of a user are known by the store.
        self.per_device = has_store and config.per == "device"
        self.mailboxes = {}
        self.replaying = set()
        self.starved = set()
        self.elsewhere = None
        self.attach(None)

    def attach(self, loop):
        """Runs on this loop from now on, or on none.

        The timers are new ones: those of a loop that was closed went with it.
        """
        self.loop = loop
        self.timers = Timers(self._due)
        self.timers.attach(loop)

    def clear_timers(self):
        """Nothing is sent again any more, and nothing times out."""
        self.timers.clear()

    def forget(self):
        """Nothing is pending any more; nobody is told."""
        self.mailboxes.clear()
        self.replaying.clear()
        self.starved.clear()
        self.count = self.nbytes = 0

    cpdef Mailbox mailbox_of(self, str key, str user_id):
        """The mailbox of this key, made where there is none."""
        cdef Mailbox mailbox = self.mailboxes.get(key)
        if mailbox is None:
            self.mailboxes[key] = mailbox = Mailbox.__new__(Mailbox, key, user_id)
        return mailbox

    # --- who is here ---

    cpdef bint is_here(self, str user_id) except -1:
        """Whether a user has a connected client."""
        return self.engine.clients.has_user(user_id)

    def await_empty(self, Sink client not None):
        """Has `ran_empty` be called, once, when the outbox of a client has run empty."""
        self.engine.await_empty(client)

    # --- sending ---

    cdef PendingACK new(
        self, str mailbox, str user_id, str client_id, str message_id, bytes data, int priority,
        timeout,
    ):
        cdef PendingACK pending = PendingACK.__new__(PendingACK)
        pending._table = self
        pending._mailbox = mailbox
        pending.user_id = user_id
        pending._client_id = client_id
        pending.id = message_id
        pending._data = data
        pending._priority = priority
        pending._given_timeout = timeout
        pending.status = self.forms.pending
        pending.deadline = INFINITY
        pending._slot = -1
        return pending

    def found(
        self, Mailbox mailbox not None, str message_id, bytes data not None, str origin, timeout
    ):
        """A message that was read from the store, of which nobody knew.

        Args:
            mailbox, message_id, data: of it.
            origin: the other hub that has sent it; None: this one has, or it is not known.
            timeout: as it was given to that hub, in seconds; None: ACKConfig.timeout.
        """
        cdef PendingACK pending = self.new(
            mailbox.key, mailbox.user_id, None, message_id, data, 2, timeout
        )
        pending._origin = origin
        return pending

    cpdef PendingACK start(self, recipient, message, bint to_client):
        """Sends a message to a client or a user until it is acknowledged."""
        cdef Sink client
        if self.loop is None:
            raise HubStoppedError("the hub does not run")
        if type(recipient) is not str or not recipient:
            check_id("client" if to_client else "user", recipient)
        if not to_client:
            if self.per_device:
                return self.owner.send_to_devices(recipient, message)
            return self.send(recipient, None, message)
        client = self.engine.clients.by_id.get(recipient)
        if client is None:
            check_id("client", recipient)
            raise ClientNotFoundError(f"no connected client has the id {recipient!a}")
        return self.send(client.user_id, client, message)

    cpdef str key_of(self, Sink client):
        """The key of the mailbox that a client gets its messages from."""
        return self.owner.key_of(client) if self.per_device else client.user_id

    cpdef list clients_of(self, str mailbox, str user_id):
        """The connected clients of a mailbox."""
        cdef list clients = self.engine.clients.of_user(user_id)
        if self.per_device:
            clients = [client for client in clients if self.key_of(client) == mailbox]
        return clients

    cpdef bytes encoded(self, str user_id, message):
        """The HubMessage that an ACKMessage goes out as, as JSON; checks what is given."""
        if self.stopped:
            raise HubStoppedError("the hub has stopped")
        if not isinstance(message, self.forms.ACKMessage):
            raise ValidationError(f"expected an ACKMessage, not {type(message).__name__}")
        timeout = message.timeout
        if timeout is not None and (
            type(timeout) not in (int, float) or not 0 < timeout <= LONGEST_TIMEOUT
        ):
            raise ValidationError(
                f"ACKMessage.timeout is {shown(timeout)}, expected a positive number of seconds, "
                f"at most {LONGEST_TIMEOUT:.0f}, or None"
            )
        return self.forms.encoder.encode(self.forms.to_hub_message(message, user_id))

    cdef PendingACK send(self, str user_id, Sink client, message):
        cdef bytes data = self.encoded(user_id, message)
        return self.send_to_mailbox(
            user_id if client is None else self.key_of(client), user_id, client, message, data
        )

    cpdef PendingACK send_to_mailbox(
        self, str key, str user_id, Sink client, message, bytes data
    ):
        """Sends an encoded message to all clients of a mailbox, or to one of them."""
        cdef PendingACK pending = None
        cdef Mailbox mailbox = self.mailboxes.get(key)
        cdef str message_id = message.id if type(message.id) is str else str(message.id)
        cdef bint online
        if self.has_store:
            pending = self.owner.parked(key, message_id)
            if pending is not None:
                self.check_same(pending, data)
                return pending
        if mailbox is not None:
            pending = self.known(mailbox, message_id, client, data)
            if pending is not None:
                return pending
        if mailbox is None:
            check_id("user", user_id)
        self.check_bounds(mailbox, user_id)
        online = client is not None or self.has_clients(key, user_id)
        if not online:
            if not self.has_store:
                raise UserOfflineError(f"user {user_id!a} has no connected client")
            self.owner.check_waiting()
        pending = self.new(
            key, user_id, None if client is None else client.id, message_id, data,
            message.priority, message.timeout,
        )
        self.counters.acks_sent += 1
        if mailbox is None:
            mailbox = self.mailbox_of(key, user_id)
        elif mailbox._lapsed is not None and message_id in mailbox._lapsed:
            # It has timed out before, and the store has it still.
            del mailbox._lapsed[message_id]
            pending._stored = True
        self.enlist(mailbox, pending)
        if not online:
            self.owner.park(mailbox)
            return pending
        self.send_live(mailbox, pending)
        if self.elsewhere is not None and user_id in self.elsewhere:
            self.owner.spread(mailbox)
        return pending

    cpdef bint has_clients(self, str mailbox, str user_id) except -1:
        """Whether a mailbox has a connected client."""
        if self.per_device:
            return len(self.clients_of(mailbox, user_id)) > 0
        return self.is_here(user_id)

    def unlisted(self, str key, str user_id, message, bytes data not None):
        """A message that is in no mailbox."""
        return self.new(
            key, user_id, None, str(message.id), data, message.priority, message.timeout
        )

    cdef PendingACK known(self, Mailbox mailbox, str message_id, Sink client, bytes data):
        """The same delivery, if it is under way; ValidationError for other content under its id."""
        cdef PendingACK pending
        cdef PendingACK found = None
        cdef str client_id = None if client is None else client.id
        for pending in self.of_id(mailbox, message_id):
            self.check_same(pending, data)
            if pending._client_id == client_id:
                found = pending
        return found

    cpdef list of_id(self, Mailbox mailbox, object message_id):
        """The pending messages of a mailbox with this id: mostly one or none."""
        cdef PendingACK pending = mailbox.pending.get(message_id)
        cdef list found = [] if pending is None else [pending]
        if mailbox.namesakes is not None:
            found += mailbox.namesakes.get(message_id, ())
        return found

    cpdef int check_same(self, PendingACK pending, bytes data) except -1:
        """ValidationError for other content under the id of a message."""
        if pending._data != data and not self.forms.is_same_message(pending._data, data):
            raise ValidationError(
                f"another message with the id {pending.id!a} waits for its acknowledgement"
            )
        return 0

    cdef int check_bounds(self, Mailbox mailbox, str user_id) except -1:
        if self.count >= self.most:
            raise PendingFullError(
                f"{self.count} messages wait for an acknowledgement already (ACKConfig.max_pending)"
            )
        if self.nbytes >= self.most_bytes:
            raise PendingFullError(
                f"{self.nbytes} bytes of messages wait for an acknowledgement already "
                "(ACKConfig.max_pending_bytes)"
            )
        if mailbox is None:
            return 0
        if len(mailbox.pending) >= self.mailbox_most:
            raise PendingFullError(
                f"{len(mailbox.pending)} messages wait for user {user_id!a} to acknowledge them "
                "already (ACKConfig.max_pending_per_user)"
            )
        if mailbox.nbytes >= self.mailbox_most_bytes:
            raise PendingFullError(
                f"{mailbox.nbytes} bytes of messages wait for user {user_id!a} to acknowledge them "
                "already (a quarter of ACKConfig.max_pending_bytes)"
            )
        return 0

    cpdef int enlist(self, Mailbox mailbox, PendingACK pending) except -1:
        """Makes a message pending, behind all others of its mailbox."""
        cdef Py_ssize_t size = weight(pending)
        pending.key = pending.id
        if pending.id in mailbox.pending:
            # One message may go to several clients, each by itself.
            pending.key = (pending.id, pending._client_id)
            if mailbox.namesakes is None:
                mailbox.namesakes = {}
            mailbox.namesakes.setdefault(pending.id, []).append(pending)
        mailbox.pending[pending.key] = pending
        mailbox.nbytes += size
        self.nbytes += size
        self.count += 1
        mailbox.directed += pending._client_id is not None
        if self.has_store and not pending._stored and pending._storing is None:
            if mailbox.unstored is None:
                mailbox.unstored = deque()
            mailbox.unstored.append(pending)
        return 0

    cpdef int delist(self, Mailbox mailbox, PendingACK pending) except -1:
        """Takes a message out of its mailbox, which need not be its end."""
        cdef Py_ssize_t size = weight(pending)
        cdef list others
        del mailbox.pending[pending.key]
        mailbox.nbytes -= size
        self.nbytes -= size
        self.count -= 1
        mailbox.directed -= pending._client_id is not None
        if type(pending.key) is tuple:
            others = mailbox.namesakes[pending.id]
            others.remove(pending)
            if not others:
                del mailbox.namesakes[pending.id]
                if not mailbox.namesakes:
                    mailbox.namesakes = None
        pending.key = None
        return 0

    cdef list audience(self, PendingACK pending):
        """The clients that a message is for by now."""
        cdef Sink client
        if pending._client_id is not None:
            client = self.engine.clients.by_id.get(pending._client_id)
            if client is not None and client.user_id == pending.user_id:
                return [client]
        return self.clients_of(pending._mailbox, pending.user_id)

    cpdef bint counts_from(self, PendingACK pending, Sink client) except -1:
        """Whether a message is for this client, and an acknowledgement of this client counts."""
        cdef Sink other
        if pending._client_id is None or pending._client_id == client.id:
            return True
        other = self.engine.clients.by_id.get(pending._client_id)
        return other is None or other.user_id != pending.user_id

    cpdef int send_live(self, Mailbox mailbox, PendingACK pending) except -1:
        """Sends a message to all clients that it is for; to one that catches up, in its turn."""
        cdef list full = None
        cdef bint taken = False
        cdef bytes frame = frame_of(pending)
        cdef Sink client
        self.engine.counters.messages_out += 1
        for client in self.audience(pending):
            replay = mailbox.replays.get(client) if mailbox.replays else None
            if replay is not None:
                replay.put(pending)
            elif self.engine.push(client, frame, NULL, pending._priority - 1) == PUSHED:
                taken = True
            elif full is None:
                full = [client]
            else:
                full.append(client)
        if taken:
            pending.sent_count += 1
            pending.sent_at = self.engine.fanout.flush_number
        self.begin(pending)
        if full is not None:
            for client in full:
                # Later messages queue up behind it.
                self.owner.catch_up(mailbox, client, [pending])
        return 0

    cpdef bint send_now(self, PendingACK pending, Sink client) except -1:
        """Sends a message to one client; whether its outbox took it."""
        cdef bint taken
        if client.state != OPEN:
            return False
        self.engine.counters.messages_out += 1
        taken = self.engine.push(client, frame_of(pending), NULL, pending._priority - 1) == PUSHED
        if taken:
            pending.sent_count += 1
            pending.sent_at = self.engine.fanout.flush_number
        self.begin(pending)
        return taken

    cpdef object send_plain(self, Sink client, bytes data, int priority):
        """Sends a HubMessage without acknowledgement to one client: None, or what says why not."""
        cdef int result
        if client.state != OPEN:
            return ClientDisconnectedError(f"client {client.id!a} is not connected")
        self.engine.counters.messages_out += 1
        result = self.engine.push(
            client,
            encode(FIN_TEXT, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)),
            NULL,
            priority - 1,
        )
        return None if result == PUSHED else self.engine.refusal(client, result)

    cdef bint retransmit(self, Mailbox mailbox, PendingACK pending, double now) except -1:
        """Sends it again to those that have got it once; whether an outbox took it."""
        cdef unsigned long long before = pending.sent_at
        cdef bytes frame = None
        cdef Sink client
        cdef bint taken = False
        cdef bint sent_once = False
        for client in self.audience(pending):
            replay = mailbox.replays.get(client) if mailbox.replays else None
            if replay is not None and not replay.has_sent(pending):
                continue  # its turn comes
            sent_once = True
            if self.engine.fanout.may_wait(client, before):
                continue  # rule 4
            if frame is None:
                frame = frame_of(pending)
                self.engine.counters.messages_out += 1
            if self.engine.push(client, frame, NULL, pending._priority - 1) == PUSHED:
                taken = True
        if taken:
            pending.sent_count += 1
            pending.retries += 1
            pending.sent_at = self.engine.fanout.flush_number
        if sent_once:
            self.schedule(pending, now)
        else:
            # Its turn sets its timer anew; until then only its end is waited for.
            pending.due = pending.deadline
            pending._slot = self.timers.set(pending, pending.due)
        return taken

    cdef int begin(self, PendingACK pending) except -1:
        """Its time runs from the first attempt to send it."""
        cdef double now = self.loop.time()
        if pending.deadline == INFINITY:
            pending.deadline = now + pending.timeout()
        return self.schedule(pending, now)

    cdef int schedule(self, PendingACK pending, double now) except -1:
        self.unschedule(pending)
        pending.due = pending.deadline
        if pending.retries < self.max_retries:
            pending.due = min(pending.due, now + self.retry_interval)
        pending._slot = self.timers.set(pending, pending.due)
        return 0

    cdef int unschedule(self, PendingACK pending) except -1:
        if pending._slot >= 0:
            self.timers.cancel(pending, pending._slot)
            pending._slot = -1
        return 0

    def renew(self, PendingACK pending not None):
        """Its time begins again with the next attempt to send it."""
        self.unschedule(pending)
        pending.deadline = INFINITY
        pending.retries = 0

    def _due(self, PendingACK pending not None):
        cdef Mailbox mailbox
        cdef double now
        if self.loop is None or pending._slot < 0:
            return
        now = self.loop.time()
        if now + CLOCK_TICK < pending.due:
            return  # set anew meanwhile
        pending._slot = -1
        if now + CLOCK_TICK / 2 >= pending.deadline:
            self.counters.acks_timed_out += 1
            self.give_up(
                pending,
                AckTimeoutError(
                    pending.id,
                    f"message {pending.id!a} was not acknowledged by user {pending.user_id!a} in "
                    f"{pending.timeout()} s, sent {pending.sent_count} times",
                ),
            )
            return
        mailbox = self.mailboxes.get(pending._mailbox)
        if mailbox is None or pending.key is None:
            return
        if self.retransmit(mailbox, pending, now):
            self.counters.acks_retransmitted += 1

    # --- acknowledgements ---

    def take(self, Sink client not None, str text not None):
        """An incoming text that may be an acknowledgement: SETTLED, IGNORED, or NO_ACK."""
        cdef PendingACK pending
        cdef Mailbox mailbox
        cdef list found
        try:
            answer = self.forms.decode_acknowledgement(text)
        except self.forms.no_acknowledgement:
            return NO_ACK
        message_id = answer.message_id
        mailbox = self.mailboxes.get(self.key_of(client))
        found = [] if mailbox is None else self.waiting_for(mailbox, client, message_id)
        if not found:
            self.counters.acks_ignored += 1
            if (
                mailbox is None or mailbox._lapsed is None or message_id not in mailbox._lapsed
            ):
                return IGNORED
            origin = mailbox._lapsed.pop(message_id)
            for replay in mailbox.replays.values():
                replay.acknowledged(message_id)
            self.owner.delete(mailbox.key, message_id, origin, None)
            self.release(mailbox)
            return SETTLED
        for pending in found:
            if pending.deadline != INFINITY:
                self.engine.ack_latency.add(
                    max(0.0, wsc_now() + passed - (pending.deadline - pending.timeout()))
                )
            if answer.status == "confirmed":
                self.counters.acks_confirmed += 1
                self.settle(pending, self.forms.confirmed, None)
            else:
                self.counters.acks_failed += 1
                why = answer.error or "the client could not process it"
                error = AckFailedError(pending.id, why)
                self.settle(pending, self.forms.failed, error)
                self.owner.report(pending, error)
        return SETTLED

    cdef list waiting_for(self, Mailbox mailbox, Sink client, object message_id):
        """The messages that an acknowledgement of this client settles: one may be out twice."""
        cdef PendingACK pending
        cdef list found = []
        for pending in self.of_id(mailbox, message_id):
            if self.counts_from(pending, client):
                found.append(pending)
        return found

    cpdef int settle(self, PendingACK pending, status, error) except -1:
        """The end of a message: out of its mailbox, and its waiters told."""
        cdef bint answered = status is self.forms.confirmed or status is self.forms.failed
        cdef Mailbox mailbox
        cdef PendingACK follower
        cdef list waiters
        cdef object reference
        pending.status = status
        pending._error = error
        self.unschedule(pending)
        mailbox = self.mailboxes.get(pending._mailbox)
        if mailbox is not None and pending.key is not None:
            self.delist(mailbox, pending)
            if mailbox.replays:
                for replay in mailbox.replays.values():
                    replay.settled(pending, answered)
            if pending._stored and status is self.forms.timeout:
                mailbox.lapsed[pending.id] = pending._origin
                if len(mailbox._lapsed) > MOST_LAPSED:
                    del mailbox._lapsed[next(iter(mailbox._lapsed))]
            self.release(mailbox)
        if self.starved and self.has_memory():
            self.wake_starved()
        # A message that is still being stored is deleted when that is done.
        if pending._stored and answered and not self.leave_to_namesake(mailbox, pending):
            self.owner.delete(pending._mailbox, pending.id, pending._origin, error)
        elif answered and pending._storing is not None:
            self.owner.delete_once_stored(pending)
        if pending.waiter is not None:
            waiter, pending.waiter = pending.waiter, None
            waiters, pending.more_waiters = pending.more_waiters, None
            pending.tell(waiter)
            if waiters is not None:
                for waiter in waiters:
                    pending.tell(waiter)
        if pending._group is not None:
            self.owner.device_ended(pending)
        if pending.followers is not None:
            waiters, pending.followers = pending.followers, None
            for reference in waiters:
                follower = reference()
                if follower is not None and not follower.done():
                    self.settle(follower, status, error)
        pending.leader = None
        return 0

    cdef bint leave_to_namesake(self, Mailbox mailbox, PendingACK pending) except -1:
        """Whether another pending message has the same id, and so the same place in the store."""
        cdef PendingACK other
        if mailbox is None:
            return False
        for other in self.of_id(mailbox, pending.id):
            other._stored = True
            return True
        return False

    cpdef bint has_memory(self) noexcept:
        """Whether the bytes that are pending leave room for more."""
        return self.nbytes < self.most_bytes

    cdef int wake_starved(self) except -1:
        """Some of the clients that wait for memory go on."""
        for _ in range(min(MOST_WOKEN, len(self.starved))):
            self.starved.pop().wake()
        return 0

    def follow(self, PendingACK pending not None, PendingACK follower not None):
        """Has a message end as another one of the same id does, which it keeps alive."""
        if pending.followers is None:
            pending.followers = []
        pending.followers.append(ref(follower))
        follower.leader = pending

    cpdef int give_up(self, PendingACK pending, error) except -1:
        """A message ends undelivered: it has timed out, or was dropped for this error."""
        if isinstance(error, AckTimeoutError):
            self.settle(pending, self.forms.timeout, error)
        else:
            self.counters.acks_dropped += 1
            self.settle(pending, self.forms.dropped, error)
        self.owner.report(pending, error)
        return 0

    cpdef int release(self, Mailbox mailbox) except -1:
        """A mailbox that holds nothing is not kept."""
        if not mailbox.pending and not mailbox._lapsed and not mailbox.replays:
            if self.mailboxes.get(mailbox.key) is mailbox:
                del self.mailboxes[mailbox.key]
        elif (
            mailbox.unstored is not None
            and len(mailbox.unstored) > 2 * len(mailbox.pending) + 16
        ):
            mailbox.unstored = deque([item for item in mailbox.unstored if not item.done()])
        return 0
