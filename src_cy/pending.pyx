"""Messages that wait for their acknowledgement; see pending.pxd."""

import asyncio
from asyncio import get_running_loop
from collections import deque
from weakref import WeakValueDictionary

cimport cython
from libc.math cimport INFINITY

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.messages cimport HubMessageEncoder
from wsc_fast._core.outbox cimport Sink
from wsc_fast._core.timers cimport Timers

from wsc_fast._core.engine import check_id
from wsc_fast._core.timers import TICK
from wsc_fast.errors import (
    AckFailedError,
    AckTimeoutError,
    ClientNotFoundError,
    HubStoppedError,
    PendingFullError,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.messages import (
    NO_ACKNOWLEDGEMENT,
    ACKMessage,
    AckStatus,
    decode_acknowledgement,
    decode_hub_message,
    encoder,
    to_ack_message,
    to_hub_message,
)

cdef HubMessageEncoder ENCODER = encoder
cdef double CLOCK_TICK = TICK
cdef object PENDING = AckStatus.PENDING
cdef object CONFIRMED = AckStatus.CONFIRMED
cdef object FAILED = AckStatus.FAILED
cdef object TIMEOUT = AckStatus.TIMEOUT
cdef object DROPPED = AckStatus.DROPPED

# Seconds; about thirty years, which a loop's clock can carry.
cdef double LONGEST_TIMEOUT = 1e9
# Messages of one user that are in the store, have timed out, and may still be acknowledged.
cdef Py_ssize_t MOST_LAPSED = 1_000


# Freed ones are kept for the next ones: so many come and go in a turn of the loop that Python would
# look for garbage among them all the time.
@cython.freelist(1024)
cdef class PendingACK:
    """A message on its way to an acknowledgement (go-wsc `PendingACK`).

    `await pending` gives AckStatus.CONFIRMED once it is acknowledged, and raises AckFailedError
    with the client's text, AckTimeoutError after the last retransmission, AckDroppedError when the
    hub gave it up, OfflineStoreError where it could not be stored, or HubStoppedError when the hub
    stops. It may be awaited more than once, and need not be.

    Attributes:
        id: of the message.
        message: the ACKMessage.
        user_id: whose acknowledgement counts.
        status: AckStatus.
        attempts: how often it was sent so far.

    Thread-safety: may be awaited on any loop; attributes are best read in the hub's thread.
    """

    @property
    def message(self):
        if self._message is None:
            self._message = to_ack_message(decode_hub_message(self._data))
        return self._message

    cpdef bint done(self) noexcept:
        """Whether the outcome is known. Thread-safety: any thread."""
        return self.error is not None or self.status is CONFIRMED

    cpdef bint _is_open(self) noexcept:
        # Whether it is to be sent.
        return self.status is PENDING and self.error is None

    def __await__(self):
        loop = get_running_loop()
        own = self._acks.loop
        # A Future for each who waits, so that cancelling one leaves the others.
        if self.done():
            waiter = loop.create_future()
            self.tell(waiter)
        elif own is None or own.is_closed():
            raise HubStoppedError("the hub's loop was closed before the outcome was known")
        elif own is loop:
            waiter = loop.create_future()
            if self.waiter is None:
                self.waiter = waiter
            elif self.more_waiters is None:
                self.more_waiters = [waiter]
            else:
                self.more_waiters.append(waiter)
        else:
            waiter = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._outcome(), own))
        return waiter.__await__()

    cdef int tell(self, waiter) except -1:
        """Gives the outcome to one who waits."""
        if waiter.done():
            return 0  # cancelled
        if self.error is None:
            waiter.set_result(CONFIRMED)
        else:
            # A new traceback for each who awaits it.
            waiter.set_exception(self.error.with_traceback(None))
            waiter.exception()  # who does not wait any longer has no need of a line in the log
        return 0

    async def accepted(self):
        """Returns once a crash of the server can no longer lose the message.

        That is when it is in the offline store, or acknowledged; without a store, when it is
        acknowledged.

        Raises:
            WSCError: what awaiting the message would raise, or why it could not be stored.

        Thread-safety: any loop.
        """
        loop = self._acks.loop
        if loop is None or loop.is_closed() or loop is get_running_loop():
            await self._acks.accepted(self)
        else:
            accepted = asyncio.run_coroutine_threadsafe(self._acks.accepted(self), loop)
            await asyncio.wrap_future(accepted)

    async def _outcome(self):
        return await self

    def __repr__(self):
        return (
            f"<PendingACK {self.id!a} user={self.user_id!a} {self.status} attempts={self.attempts}>"
        )


@cython.freelist(1024)
cdef class UserQueue:
    """What one user has not acknowledged (internal)."""

    def __cinit__(self):
        self.pending = {}

    @property
    def line(self):
        """A deque of what the replay sends when the store is done."""
        if self._line is None:
            self._line = deque()
        return self._line

    @line.setter
    def line(self, line):
        self._line = line

    @property
    def lapsed(self):
        """Ids of what is in the store, has timed out, and may still be acknowledged."""
        if self._lapsed is None:
            self._lapsed = {}
        return self._lapsed

    @property
    def acknowledged(self):
        """Ids, while the replay reads the store: pages may be older."""
        if self._acknowledged is None:
            self._acknowledged = set()
        return self._acknowledged


cdef class AckTable:
    """The pending messages of one hub (internal); Acks is its Python half.

    Thread-safety: the loop's thread.
    """

    def __init__(self, Engine hub not None, config, store, counters):
        self._hub = hub
        self.config = config
        self.store = store
        self.counters = counters
        self.retry_interval = config.retry_interval
        self.max_retries = config.max_retries
        self._users = {}
        self.replaying = set()
        self._parked = WeakValueDictionary()
        self._attach_timers(None)

    def _attach_timers(self, loop):
        """New timers, on this loop or on none yet: those of a loop that was closed went with it."""
        self._timers = Timers(self._due)
        self._timers.attach(loop)

    def _clear_timers(self):
        self._timers.clear()

    # --- sending ---

    cdef PendingACK new(
        self, user_id, client_id, message, message_id, bytes data, int priority, timeout
    ):
        cdef PendingACK pending = PendingACK.__new__(PendingACK)
        pending._acks = self
        pending.user_id = user_id
        pending._client_id = client_id
        pending._message = message
        pending.id = message_id
        pending._data = data
        pending._priority = priority
        pending._timeout = timeout
        pending.status = PENDING
        pending.deadline = INFINITY
        pending._slot = -1
        return pending

    def _found(self, user_id, message_id, bytes data not None):
        """A message that was read from the store, of which nobody knew."""
        return self.new(user_id, None, None, message_id, data, 2, self.config.timeout)

    cpdef PendingACK start(self, recipient, message, bint to_client):
        """Sends a message to a client or a user until it is acknowledged."""
        cdef Sink client
        if self.loop is None:
            raise HubStoppedError("the hub does not run")
        if type(recipient) is not str or not recipient:
            check_id("client" if to_client else "user", recipient)
        if not to_client:
            return self.send(recipient, None, message)
        client = self._hub.clients.get(recipient)
        if client is None:
            check_id("client", recipient)
            raise ClientNotFoundError(f"no connected client has the id {recipient!a}")
        return self.send(client.user_id, client, message)

    cdef PendingACK send(self, str user_id, Sink client, message):
        cdef PendingACK pending = None
        cdef UserQueue queue
        cdef bytes data
        cdef bint online
        if self._stopped:
            raise HubStoppedError("the hub has stopped")
        if not isinstance(message, ACKMessage):
            raise ValidationError(f"expected an ACKMessage, not {type(message).__name__}")
        timeout = message.timeout
        if timeout is None:
            timeout = self.config.timeout
        elif type(timeout) not in (int, float) or not 0 < timeout <= LONGEST_TIMEOUT:
            raise ValidationError(
                f"ACKMessage.timeout is {timeout!r}, expected a positive number of seconds, at "
                f"most {LONGEST_TIMEOUT:.0f}, or None"
            )
        data = ENCODER.encode(to_hub_message(message, user_id))
        message_id = message.id
        queue = self._users.get(user_id)
        if self.store is not None:
            pending = self._parked.get((user_id, message_id))
        if pending is None and queue is not None:
            pending = queue.pending.get(message_id)
        if pending is not None:
            if pending._data != data:
                raise ValidationError(
                    f"another message with the id {message_id!a} waits for its acknowledgement"
                )
            return pending
        if self.count >= self.config.max_pending:
            raise PendingFullError(
                f"{self.count} messages wait for an acknowledgement already (ACKConfig.max_pending)"
            )
        online = client is not None or self._hub._has_clients(user_id)
        if not online and self.store is None:
            raise UserOfflineError(f"user {user_id!a} has no connected client")
        pending = self.new(
            user_id, None if client is None else client.id, message, message_id, data,
            message.priority, timeout,
        )
        self.counters.acks_sent += 1
        if queue is None:
            self._users[user_id] = queue = UserQueue()
        self._order += 1
        pending._order = self._order
        queue.pending[message_id] = pending
        self.count += 1
        if self.store is not None:
            if queue.unstored is None:
                queue.unstored = deque()
            queue.unstored.append(pending)
        if not online:
            self._park(user_id, queue)
        elif queue.replay is not None:
            queue.line.append(pending)
            self._begin(pending)
        elif not self._transmit(pending):
            # No room: whatever comes now queues up behind it.
            self._replay(user_id, queue, None, from_store=False)
        return pending

    cpdef bint _transmit(self, PendingACK pending) except -1:
        """Sends it; returns whether at least one client took it."""
        cdef Sink client
        if pending._client_id is not None:
            client = self._hub.clients.get(pending._client_id)
            if client is not None and client.user_id == pending.user_id:
                return self._sent(
                    pending, self._hub._send_to(client, pending._data, pending._priority)
                )
        return self._sent(
            pending,
            self._hub._send_to_user(pending.user_id, pending._data, pending._priority) > 0,
        )

    cpdef bint _sent(self, PendingACK pending, bint taken) except -1:
        if taken:
            pending.attempts += 1
        self._begin(pending)
        return taken

    cpdef int _begin(self, PendingACK pending) except -1:
        """Its time runs from the first attempt to send it."""
        cdef double now = self.loop.time()
        if pending.deadline == INFINITY:
            pending.deadline = now + <double>pending._timeout
        return self.schedule(pending, now)

    cdef int schedule(self, PendingACK pending, double now) except -1:
        self._unschedule(pending)
        pending.due = pending.deadline
        if pending.retries < self.max_retries:
            pending.due = min(pending.due, now + self.retry_interval)
        pending._slot = self._timers.set(pending, pending.due)
        return 0

    cpdef int _unschedule(self, PendingACK pending) except -1:
        if pending._slot >= 0:
            self._timers.cancel(pending, pending._slot)
            pending._slot = -1
        return 0

    def _anew(self, PendingACK pending not None):
        """Its time begins again with the next attempt to send it."""
        self._unschedule(pending)
        pending.deadline = INFINITY
        pending.retries = 0

    def _due(self, PendingACK pending not None):
        cdef UserQueue queue
        cdef double now
        if self.loop is None or pending._slot < 0:
            return
        now = self.loop.time()
        if now + CLOCK_TICK < pending.due:
            return  # set anew meanwhile
        pending._slot = -1
        if now + CLOCK_TICK / 2 >= pending.deadline:
            self.counters.acks_timed_out += 1
            self._give_up(
                pending,
                AckTimeoutError(
                    pending.id,
                    f"message {pending.id!a} was not acknowledged by user {pending.user_id!a} in "
                    f"{pending._timeout} s, sent {pending.attempts} times",
                ),
            )
            return
        queue = self._users.get(pending.user_id)
        if queue is None or queue.pending.get(pending.id) is not pending:
            return
        if queue.replay is not None and pending._walk != queue.walk:
            # Its turn comes, and sets its timer anew; until then only its end is waited for.
            pending.due = pending.deadline
            pending._slot = self._timers.set(pending, pending.due)
            return
        pending.retries += 1
        if self._transmit(pending):
            self.counters.acks_retransmitted += 1

    # --- acknowledgements ---

    def take(self, Sink client not None, str text not None):
        """An incoming text that may be an acknowledgement; whether it is one."""
        cdef PendingACK pending = None
        cdef UserQueue queue
        try:
            answer = decode_acknowledgement(text)
        except NO_ACKNOWLEDGEMENT:
            answer = None
        if answer is None:
            return False
        message_id = answer.message_id
        queue = self._users.get(client.user_id)
        if queue is not None:
            pending = queue.pending.get(message_id)
        if pending is None:
            self.counters.acks_ignored += 1
            if queue is not None and queue._lapsed is not None and message_id in queue._lapsed:
                del queue._lapsed[message_id]
                self._delete(client.user_id, message_id)
                self._release(client.user_id, queue)
        elif answer.status == "confirmed":
            self.counters.acks_confirmed += 1
            self._settle(pending, CONFIRMED, None)
        else:
            self.counters.acks_failed += 1
            error = AckFailedError(pending.id, answer.error or "the client could not process it")
            self._settle(pending, FAILED, error)
            self._report(pending, error)
        return True

    cpdef int _settle(self, PendingACK pending, status, error) except -1:
        """The end of a message: out of the queue, and its waiters told."""
        cdef bint answered = status is CONFIRMED or status is FAILED
        cdef UserQueue queue
        cdef list waiters
        pending.status = status
        pending.error = error
        self._unschedule(pending)
        queue = self._users.get(pending.user_id)
        if queue is not None and queue.pending.get(pending.id) is pending:
            del queue.pending[pending.id]
            self.count -= 1
            if pending._walk == queue.walk:
                queue.out -= 1
            if queue.from_store and answered:
                queue.acknowledged.add(pending.id)
            if queue.progress is not None:
                queue.progress.set()
            if pending._stored and status is TIMEOUT:
                queue.lapsed[pending.id] = None
                if len(queue._lapsed) > MOST_LAPSED:
                    del queue._lapsed[next(iter(queue._lapsed))]
            self._release(pending.user_id, queue)
        # What is still being stored is deleted when that is done.
        if pending._stored and answered:
            self._delete(pending.user_id, pending.id)
        if pending.waiter is not None:
            waiter, pending.waiter = pending.waiter, None
            waiters, pending.more_waiters = pending.more_waiters, None
            pending.tell(waiter)
            if waiters is not None:
                for waiter in waiters:
                    pending.tell(waiter)
        return 0

    cpdef int _give_up(self, PendingACK pending, error) except -1:
        if isinstance(error, AckTimeoutError):
            self._settle(pending, TIMEOUT, error)
        else:
            self.counters.acks_dropped += 1
            self._settle(pending, DROPPED, error)
        self._report(pending, error)
        return 0

    cpdef int _release(self, str user_id, UserQueue queue) except -1:
        """A queue that holds nothing is not kept."""
        if not queue.pending and not queue._lapsed and queue.replay is None:
            if self._users.get(user_id) is queue:
                del self._users[user_id]
        elif queue.unstored is not None and len(queue.unstored) > 2 * len(queue.pending) + 16:
            queue.unstored = deque([item for item in queue.unstored if not item.done()])
        return 0
