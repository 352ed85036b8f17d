"""Messages that are sent until they are acknowledged, and kept while their user is away.

Per user there is a queue of what is not acknowledged yet, in the order of sending:

    live       a message goes out at once to the user's clients, and again at each retry interval
    replaying  a client has just connected, or an outbox was full: one task sends, paced by the
               outbox, first what the offline store holds, then what is pending, then the messages
               without acknowledgement that were held back meanwhile; new ones queue up behind
    away       no client is connected: with an offline store the queue moves there, and nothing of
               it stays in memory but what callers hold; without one it waits for its timeouts

A message is written to the store when somebody waits for `accepted`, when its user is away, and
when the hub stops; whatever was sent to that user before it is written first, so that the store's
order is the order of sending. It leaves the store when it was acknowledged. After a crash, what
was stored and not known to be acknowledged is delivered again under the same id.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Generator
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from wsc_fast.delivery.failures import Failure, Message, outside_handlers, reason_of
from wsc_fast.delivery.offline import OfflineStore, StoredMessage
from wsc_fast.errors import (
    AckDroppedError,
    AckFailedError,
    AckTimeoutError,
    HubStoppedError,
    OfflineStoreError,
    PendingFullError,
    SendFailureReason,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import (
    ACKMessage,
    HubMessage,
    decode_acknowledgement,
    decode_hub_message,
    encode_hub_message,
    to_ack_message,
    to_hub_message,
)
from wsc_fast.timers import TICK, Timers

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.config import ACKConfig
    from wsc_fast.hub import Hub

# Messages that a replay reads from the store at a time.
PAGE = 200
# Messages of one user that a replay has out without an acknowledgement.
WINDOW = 1_000
# Messages and bytes in a client's outbox up to which a replay goes on sending.
REPLAY_MESSAGES = 256
REPLAY_BYTES = 1 << 18
# Seconds between a replay's looks at an outbox that has no room.
POLL = 0.005
# Seconds without room after which the replay goes to another client of the user, if there is one.
STALLED = 1.0
# Seconds between two searches for messages that are too old.
EXPIRE_EVERY = 60.0
# A replay reads the store so often in vain, after pauses that double, then goes on without it and
# comes back to it later.
READ_ATTEMPTS = 4
READ_PAUSE = 0.1
REPLAY_AGAIN = 5.0
# Seconds; about thirty years, which a loop's clock can carry.
LONGEST_TIMEOUT = 1e9
# Seconds that writing what is pending gets at the stop, though its timeout is over.
STORE_GRACE = 1.0


class AckStatus(StrEnum):
    """What became of a message with acknowledgement, so far."""

    PENDING = "pending"
    STORED = "stored"  # its user is away, and it is in the offline store
    CONFIRMED = "confirmed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    DROPPED = "dropped"


class AckCounters(msgspec.Struct):
    """Of one hub, under their names in HubStats."""

    acks_sent: int = 0
    acks_retransmitted: int = 0
    acks_confirmed: int = 0
    acks_failed: int = 0
    acks_timed_out: int = 0
    acks_dropped: int = 0
    acks_ignored: int = 0
    offline_stored: int = 0
    offline_replayed: int = 0
    offline_errors: int = 0


class PendingACK:
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

    __slots__ = (
        "__weakref__",
        "_acks",
        "_client_id",
        "_data",
        "_deadline",
        "_due",
        "_error",
        "_message",
        "_order",
        "_priority",
        "_retries",
        "_slot",
        "_stored",
        "_storing",
        "_timeout",
        "_waiters",
        "_walk",
        "attempts",
        "id",
        "status",
        "user_id",
    )

    def __init__(
        self,
        acks: Acks,
        user_id: str,
        client_id: str | None,
        message: ACKMessage | None,
        message_id: str,
        data: bytes,
        priority: int,
        timeout: float,
    ) -> None:
        self._acks = acks
        self.user_id = user_id
        self._client_id = client_id
        self._message = message
        self.id = message_id
        self._data = data
        self._priority = priority
        self._timeout = timeout
        self.status = AckStatus.PENDING
        self.attempts = 0
        self._retries = 0
        self._deadline = math.inf  # set by the first send
        self._due = 0.0
        self._slot = -1
        self._order = 0  # among what was sent to its user
        self._walk = 0  # the replay that sent it last
        self._waiters: list[asyncio.Future[None]] | None = None
        self._error: BaseException | None = None
        self._stored = False  # it is in the store
        self._storing: asyncio.Future[list[StoredMessage]] | None = None  # it will be

    @property
    def message(self) -> ACKMessage:
        if self._message is None:
            self._message = to_ack_message(decode_hub_message(self._data))
        return self._message

    def done(self) -> bool:
        """Whether the outcome is known. Thread-safety: any thread."""
        return self._error is not None or self.status is AckStatus.CONFIRMED

    def _is_open(self) -> bool:
        # Whether it is to be sent.
        return self.status is AckStatus.PENDING and self._error is None

    def __await__(self) -> Generator[Any, None, AckStatus]:
        loop = asyncio.get_running_loop()
        own = self._acks.loop
        if not self.done():
            if own is None or own.is_closed():
                raise HubStoppedError("the hub's loop was closed before the outcome was known")
            if own is not loop:
                there = asyncio.run_coroutine_threadsafe(self._outcome(), own)
                return (yield from asyncio.wrap_future(there).__await__())
            # One for each who waits, so that cancelling one leaves the others.
            waiter: asyncio.Future[None] = loop.create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            yield from waiter
        if self._error is not None:
            # A new traceback for each who awaits it.
            raise self._error.with_traceback(None)
        return AckStatus.CONFIRMED

    async def accepted(self) -> None:
        """Returns once a crash of the server can no longer lose the message.

        That is when it is in the offline store, or acknowledged; without a store, when it is
        acknowledged.

        Raises:
            WSCError: what awaiting the message would raise, or why it could not be stored.

        Thread-safety: any loop.
        """
        loop = self._acks.loop
        if loop is None or loop.is_closed() or loop is asyncio.get_running_loop():
            await self._acks.accepted(self)
        else:
            accepted = asyncio.run_coroutine_threadsafe(self._acks.accepted(self), loop)
            await asyncio.wrap_future(accepted)

    async def _outcome(self) -> AckStatus:
        return await self

    def __repr__(self) -> str:
        return (
            f"<PendingACK {self.id!a} user={self.user_id!a} {self.status} attempts={self.attempts}>"
        )


class _Held(msgspec.Struct, eq=False):
    """A message without acknowledgement that waits behind a replay."""

    message: HubMessage
    data: bytes
    _order: int


class _Queue:
    """What one user has not acknowledged."""

    __slots__ = (
        "acknowledged",
        "from_store",
        "held",
        "lapsed",
        "line",
        "out",
        "pending",
        "progress",
        "replay",
        "target",
        "unstored",
        "walk",
    )

    def __init__(self) -> None:
        self.pending: dict[str, PendingACK] = {}  # in the order of sending
        self.unstored: deque[PendingACK] = deque()  # those of them that are not in the store
        self.lapsed: dict[str, None] = {}  # in the store, timed out, may still be acknowledged
        self.replay: asyncio.Task[None] | None = None
        self.target: Client | None = None  # the client that the replay is for; None: all of them
        self.from_store = False
        self.line: deque[PendingACK | _Held] = deque()  # what it sends when the store is done
        self.held = 0  # how many of these are without acknowledgement
        self.walk = 0  # its number
        self.out = 0  # sent by it, and not settled
        self.acknowledged: set[str] = set()  # while it reads the store: pages may be older
        self.progress: asyncio.Event | None = None  # set when something was settled


class Acks:
    """The pending messages of one hub.

    Thread-safety: the loop's thread.
    """

    def __init__(self, hub: Hub, config: ACKConfig, store: OfflineStore | None) -> None:
        self._hub = hub
        self.config = config
        self.store = store
        self.counters = AckCounters()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.count = 0
        self.replaying: set[str] = set()  # the users whose messages are held back
        self._users: dict[str, _Queue] = {}
        self._parked: WeakValueDictionary[tuple[str, str], PendingACK] = WeakValueDictionary()
        self._timers: Timers[PendingACK] = Timers(self._due)
        self._walks = 0
        self._opening: asyncio.Task[None] | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Future[Any]] = set()
        # Appends that have to wait, for the store to open or for a deletion, and all behind them.
        self._appends: deque[tuple[PendingACK, asyncio.Future[list[StoredMessage]]]] = deque()
        self._appending: asyncio.Task[None] | None = None
        self._order = 0
        self._next_error_line = 0.0
        self._replay_messages = max(1, min(REPLAY_MESSAGES, hub.config.outbox_messages // 2))
        self._replay_bytes = max(1, min(REPLAY_BYTES, hub.config.outbox_bytes // 2))
        self._deletes: dict[str, list[str]] = {}
        self._deleting: dict[tuple[str, str], asyncio.Future[int]] = {}
        self._stopped = False

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop from now on."""
        self._stopped = False
        self.loop = loop
        self._timers.attach(loop)
        if self.store is not None:
            self._opening = loop.create_task(self._open())
            self._expiring = loop.create_task(self._expire())

    async def _open(self) -> None:
        assert self.store is not None
        try:
            await self.store.open()
        except Exception as error:
            raise _store_error(error) from error

    async def opened(self) -> None:
        """Returns once the store is open; raises what that failed with."""
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def stop(self, timeout: float) -> None:
        """Stores what is pending, or ends it; the clients have gone already."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._stopped = True
        for task in (
            self._expiring,
            *[queue.replay for queue in self._users.values() if queue.replay is not None],
        ):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        stopped = HubStoppedError("the hub stopped before the message was acknowledged")
        for user_id, queue in list(self._users.items()):
            self._drop_held(user_id, queue, stopped)
            if self.store is not None:
                self._park(user_id, queue)
            else:
                for pending in list(queue.pending.values()):
                    self._give_up(pending, stopped)
        # What has to be written gets some time even where the clients have used it up.
        deadline = max(deadline, loop.time() + STORE_GRACE)
        while (self._storing or self._deletes) and loop.time() < deadline:
            if self._deletes:
                self._flush_deletes()
            await asyncio.wait(set(self._storing), timeout=max(0.0, deadline - loop.time()))
            await asyncio.sleep(0)
        self._timers.clear()
        for pending in list(self._parked.values()):
            if pending.done():
                continue
            if pending._stored:
                error = HubStoppedError("the hub stopped; the message is in the offline store")
                self._settle(pending, AckStatus.STORED, error)
            else:
                late = "the hub stopped before the offline store had taken the message"
                self._give_up(pending, OfflineStoreError(late))
        self._parked.clear()
        self._users.clear()
        self.count = 0
        self.replaying.clear()
        if self.store is not None:
            await self._close(deadline)
        self.loop = None

    async def _close(self, deadline: float) -> None:
        assert self.store is not None
        for task in (self._opening, self._appending):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        self._opening = self._appending = None
        self._appends.clear()
        try:
            async with asyncio.timeout_at(deadline + STORE_GRACE):
                await self.store.close()
        except Exception:
            log.exception("the offline store did not close")

    def forget(self) -> None:
        """The loop was closed under the hub: its tasks and timers went with it."""
        self.loop = None
        self._timers = Timers(self._due)
        self._users.clear()
        self._parked.clear()
        self._storing.clear()
        self._deletes.clear()
        self._deleting.clear()
        self._appends.clear()
        self.replaying.clear()
        self._opening = self._expiring = self._appending = None
        self.count = 0

    # --- sending ---

    def send(self, user_id: str, client: Client | None, message: ACKMessage) -> PendingACK:
        """Sends a message to a user, or to one client of the user, until it is acknowledged."""
        if self._stopped:
            raise HubStoppedError("the hub has stopped")
        if not isinstance(message, ACKMessage):
            raise ValidationError(f"expected an ACKMessage, not {type(message).__name__}")
        timeout = message.timeout if message.timeout is not None else self.config.timeout
        if type(timeout) not in (int, float) or not 0 < timeout <= LONGEST_TIMEOUT:
            raise ValidationError(
                f"ACKMessage.timeout is {timeout!r}, expected a positive number of seconds, at "
                f"most {LONGEST_TIMEOUT:.0f}, or None"
            )
        data = encode_hub_message(to_hub_message(message, user_id))
        queue = self._users.get(user_id)
        known = None if self.store is None else self._parked.get((user_id, message.id))
        if known is None and queue is not None:
            known = queue.pending.get(message.id)
        if known is not None:
            if known._data != data:
                raise ValidationError(
                    f"another message with the id {message.id!a} waits for its acknowledgement"
                )
            return known
        if self.count >= self.config.max_pending:
            raise PendingFullError(
                f"{self.count} messages wait for an acknowledgement already (ACKConfig.max_pending)"
            )
        online = client is not None or self._hub._has_clients(user_id)
        if not online and self.store is None:
            raise UserOfflineError(f"user {user_id!a} has no connected client")
        pending = PendingACK(
            self,
            user_id,
            None if client is None else client.id,
            message,
            message.id,
            data,
            int(message.priority),
            timeout,
        )
        self.counters.acks_sent += 1
        if queue is None:
            self._users[user_id] = queue = _Queue()
        self._enlist(queue, pending)
        if not online:
            self._park(user_id, queue)
        elif queue.replay is not None:
            queue.line.append(pending)
            self._begin(pending)
        elif not self._transmit(pending):
            # No room: whatever comes now queues up behind it.
            self._replay(user_id, queue, None, from_store=False)
        return pending

    def hold(self, user_id: str, message: HubMessage, data: bytes) -> int:
        """Takes a message without acknowledgement that must not overtake a replay.

        Returns how many clients it is held for.
        """
        clients = self._hub.get_clients_by_user(user_id)
        if not clients:
            raise UserOfflineError(f"user {user_id!a} has no connected client")
        queue = self._users[user_id]
        if queue.held >= self._hub.config.outbox_messages:
            raise PendingFullError(
                f"{queue.held} messages for user {user_id!a} wait behind its backlog already "
                f"(HubConfig.outbox_messages)"
            )
        queue.held += 1
        self._order += 1
        queue.line.append(_Held(message, data, self._order))
        return len(clients)

    def pending_of(self, user_id: str, client_id: str) -> list[ACKMessage]:
        queue = self._users.get(user_id)
        if queue is None:
            return []
        return [
            pending.message
            for pending in queue.pending.values()
            if pending._client_id in (None, client_id)
        ]

    def _enlist(self, queue: _Queue, pending: PendingACK) -> None:
        self._order += 1
        pending._order = self._order
        queue.pending[pending.id] = pending
        self.count += 1
        if self.store is not None:
            queue.unstored.append(pending)

    def _transmit(self, pending: PendingACK) -> bool:
        # Whether at least one client took it.
        hub = self._hub
        taken = False
        if pending._client_id is not None:
            client = hub.get_client_by_id(pending._client_id)
            if client is not None and client.user_id == pending.user_id:
                taken = hub._send_to(client, pending._data, pending._priority)
                return self._sent(pending, taken)
        taken = hub._send_to_user(pending.user_id, pending._data, pending._priority) > 0
        return self._sent(pending, taken)

    def _sent(self, pending: PendingACK, taken: bool) -> bool:
        if taken:
            pending.attempts += 1
        self._begin(pending)
        return taken

    def _begin(self, pending: PendingACK) -> None:
        """Its time runs from the first attempt to send it."""
        assert self.loop is not None
        now = self.loop.time()
        if pending._deadline == math.inf:
            pending._deadline = now + pending._timeout
        self._schedule(pending, now)

    def _schedule(self, pending: PendingACK, now: float) -> None:
        if pending._slot >= 0:
            self._timers.cancel(pending, pending._slot)
        due = pending._deadline
        if pending._retries < self.config.max_retries and due > now + self.config.retry_interval:
            due = now + self.config.retry_interval
        pending._due = due
        pending._slot = self._timers.set(pending, due)

    def _due(self, pending: PendingACK) -> None:
        loop = self.loop
        if loop is None or pending._slot < 0 or loop.time() + TICK < pending._due:
            return  # taken back or set anew meanwhile
        pending._slot = -1
        now = loop.time()
        if now + TICK / 2 >= pending._deadline:
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
            pending._due = pending._deadline
            pending._slot = self._timers.set(pending, pending._due)
            return
        pending._retries += 1
        if self._transmit(pending):
            self.counters.acks_retransmitted += 1

    # --- acknowledgements ---

    def take(self, client: Client, text: str) -> bool:
        """An incoming text that may be an acknowledgement; whether it is one."""
        answer = decode_acknowledgement(text)
        if answer is None:
            return False
        queue = self._users.get(client.user_id)
        pending = None if queue is None else queue.pending.get(answer.message_id)
        if pending is None:
            self.counters.acks_ignored += 1
            if queue is not None and answer.message_id in queue.lapsed:
                del queue.lapsed[answer.message_id]
                self._delete(client.user_id, answer.message_id)
                self._release(client.user_id, queue)
            return True
        if answer.status == "confirmed":
            self.counters.acks_confirmed += 1
            self._settle(pending, AckStatus.CONFIRMED, None)
        else:
            self.counters.acks_failed += 1
            error = AckFailedError(pending.id, answer.error or "the client could not process it")
            self._settle(pending, AckStatus.FAILED, error)
            self._report(pending, error)
        return True

    def _settle(self, pending: PendingACK, status: AckStatus, error: BaseException | None) -> None:
        """The end of a message: out of the queue, and its waiters told."""
        pending.status = status
        pending._error = error
        if pending._slot >= 0:
            self._timers.cancel(pending, pending._slot)
            pending._slot = -1
        queue = self._users.get(pending.user_id)
        if queue is not None and queue.pending.get(pending.id) is pending:
            del queue.pending[pending.id]
            self.count -= 1
            if pending._walk == queue.walk:
                queue.out -= 1
            if queue.from_store and status in (AckStatus.CONFIRMED, AckStatus.FAILED):
                queue.acknowledged.add(pending.id)
            if queue.progress is not None:
                queue.progress.set()
            if pending._stored and status is AckStatus.TIMEOUT:
                queue.lapsed[pending.id] = None
                if len(queue.lapsed) > WINDOW:
                    del queue.lapsed[next(iter(queue.lapsed))]
            self._release(pending.user_id, queue)
        # What is still being stored is deleted when that is done.
        if pending._stored and status in (AckStatus.CONFIRMED, AckStatus.FAILED):
            self._delete(pending.user_id, pending.id)
        if pending._waiters is not None:
            for waiter in pending._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            pending._waiters = None

    def _give_up(self, pending: PendingACK, error: Exception) -> None:
        status = AckStatus.TIMEOUT if isinstance(error, AckTimeoutError) else AckStatus.DROPPED
        if status is AckStatus.DROPPED:
            self.counters.acks_dropped += 1
        self._settle(pending, status, error)
        self._report(pending, error)

    def _release(self, user_id: str, queue: _Queue) -> None:
        # A queue that holds nothing is not kept.
        if not queue.pending and not queue.lapsed and queue.replay is None:
            if self._users.get(user_id) is queue:
                del self._users[user_id]
        elif len(queue.unstored) > 2 * len(queue.pending) + 16:
            queue.unstored = deque(item for item in queue.unstored if not item.done())

    def _report(
        self, pending: PendingACK, error: Exception, reason: SendFailureReason | None = None
    ) -> None:
        try:
            message: Message = pending.message
        except ValidationError:
            message = pending._data  # the store held something that is no HubMessage
        self._hub._failures.report(
            Failure(
                message,
                pending._client_id or pending.user_id,
                reason or reason_of(error),
                error,
                duration=pending._timeout,
            ),
            of_call=False,
        )

    # --- clients come and go ---

    def entered(self, client: Client) -> None:
        """A client has connected: what its user has not acknowledged goes out again."""
        user_id = client.user_id
        queue = self._users.get(user_id)
        # An anonymous client is a user that nobody has seen before.
        from_store = self.store is not None and self._hub._authenticate is not None
        if queue is None and not from_store:
            return
        if queue is None:
            self._users[user_id] = queue = _Queue()
        # The newest client gets it: an older one may have gone silent.
        self._replay(user_id, queue, client, from_store=from_store)

    def left(self, client: Client) -> None:
        """A client's connection has gone."""
        user_id = client.user_id
        queue = self._users.get(user_id)
        if queue is None:
            return
        others = self._hub.get_clients_by_user(user_id)
        if others:
            if queue.replay is not None and queue.target is client:
                self._replay(user_id, queue, others[-1], from_store=queue.from_store)
            return
        self._end_replay(user_id, queue)
        queue.lapsed.clear()
        if self.store is not None:
            self._park(user_id, queue)
        else:
            self._release(user_id, queue)

    def _end_replay(self, user_id: str, queue: _Queue) -> None:
        # Its user is away.
        if queue.replay is not None:
            queue.replay.cancel()
            queue.replay = None
            queue.target = None
            queue.from_store = False
            self.replaying.discard(user_id)
        error = UserOfflineError(f"user {user_id!a} left before the message was sent")
        self._drop_held(user_id, queue, error)

    def _drop_held(self, user_id: str, queue: _Queue, error: Exception) -> None:
        for item in queue.line:
            if isinstance(item, _Held):
                failure = Failure(item.message, user_id, reason_of(error), error)
                self._hub._failures.report(failure, of_call=False)
        queue.line.clear()
        queue.held = 0

    # --- the store ---

    def _park(self, user_id: str, queue: _Queue) -> None:
        """Moves a queue to the store: its user is away."""
        self._end_replay(user_id, queue)
        self._store(queue, None)
        for pending in queue.pending.values():
            if pending._slot >= 0:
                self._timers.cancel(pending, pending._slot)
                pending._slot = -1
            # Its time begins anew when the user is back.
            pending._deadline = math.inf
            pending._retries = 0
            pending.status = AckStatus.STORED
            self._parked[user_id, pending.id] = pending
        self.count -= len(queue.pending)
        queue.pending.clear()
        queue.unstored.clear()
        self._release(user_id, queue)

    def _store(self, queue: _Queue, upto: PendingACK | None) -> None:
        # In the order of sending: whatever was sent before is stored before.
        while queue.unstored:
            pending = queue.unstored.popleft()
            if not pending.done():
                self._append(pending)
            if pending is upto:
                return

    def _append(self, pending: PendingACK) -> None:
        assert self.loop is not None
        storing: asyncio.Future[list[StoredMessage]]
        deleted = self._is_deleted(pending.user_id, pending.id)
        if self._appends or deleted or not self._is_open():
            storing = self.loop.create_future()
            self._appends.append((pending, storing))
            if self._appending is None:
                self._appending = self.loop.create_task(self._append_waiting())
        else:
            storing = self._append_now(pending)
        pending._storing = storing
        self._storing.add(storing)

        def appended(done: asyncio.Future[list[StoredMessage]]) -> None:
            self._storing.discard(done)
            pending._storing = None
            self._appended(pending, done)

        storing.add_done_callback(appended)

    def _append_now(self, pending: PendingACK) -> asyncio.Future[list[StoredMessage]]:
        assert self.store is not None
        try:
            return asyncio.ensure_future(
                self.store.append(
                    pending.user_id,
                    pending.id,
                    pending._data,
                    limit=self.config.offline_limit,
                    drop_oldest=self.config.offline_overflow == "drop_oldest",
                )
            )
        except Exception as error:
            assert self.loop is not None
            failed: asyncio.Future[list[StoredMessage]] = self.loop.create_future()
            failed.set_exception(error)
            return failed

    def _is_deleted(self, user_id: str, message_id: str) -> bool:
        # Whether it is about to be removed from the store.
        return (user_id, message_id) in self._deleting or (
            message_id in self._deletes.get(user_id, ())
        )

    async def _append_waiting(self) -> None:
        # One after the other, so that the order stays that of the calls of `_append`.
        while self._appends:
            pending, storing = self._appends[0]
            try:
                await self.opened()
                while self._is_deleted(pending.user_id, pending.id):
                    self._flush_deletes()
                    deleting = self._deleting.get((pending.user_id, pending.id))
                    if deleting is not None:
                        await asyncio.wait([deleting])
                now = self._append_now(pending)
            except Exception as error:
                if not storing.done():
                    storing.set_exception(error)
            else:
                now.add_done_callback(partial(_copy_result, storing))
            self._appends.popleft()
        self._appending = None

    def _appended(self, pending: PendingACK, done: asyncio.Future[list[StoredMessage]]) -> None:
        if self.loop is None:
            return  # the loop was closed under the hub
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            pending._stored = True
            self.counters.offline_stored += 1
            for stored in done.result():
                self._dropped(
                    pending.user_id,
                    stored,
                    SendFailureReason.PENDING_FULL,
                    f"user {pending.user_id!a} has {self.config.offline_limit} newer messages in "
                    f"the offline store",
                )
            if pending.status in (AckStatus.CONFIRMED, AckStatus.FAILED):
                self._delete(pending.user_id, pending.id)
            return
        self.counters.offline_errors += 1
        error = _store_error(error)
        if pending.status is AckStatus.STORED:
            # Its user is away, and it is nowhere.
            self._parked.pop((pending.user_id, pending.id), None)
            self._give_up(pending, error)
        elif not pending.done():
            queue = self._users.get(pending.user_id)
            if queue is not None:
                # Others may have failed with it: all that are not stored, in their order.
                queue.unstored = deque(
                    each
                    for each in queue.pending.values()
                    if not each._stored and each._storing is None
                )

    def _dropped(
        self, user_id: str, stored: StoredMessage, reason: SendFailureReason, why: str
    ) -> None:
        """The store let go of a message, for its bound or its age."""
        error = AckDroppedError(stored.id, f"message {stored.id!a} was dropped: {why}")
        queue = self._users.get(user_id)
        pending = self._parked.pop((user_id, stored.id), None)
        if pending is None and queue is not None:
            pending = queue.pending.get(stored.id)
        self.counters.acks_dropped += 1
        message: HubMessage | ACKMessage | bytes = stored.data
        if pending is not None:
            message = pending.message
            self._settle(pending, AckStatus.DROPPED, error)
        else:
            try:
                message = to_ack_message(decode_hub_message(stored.data))
            except ValidationError:
                log.warning("the offline store holds something that is no HubMessage")
        age = max(0.0, time.time() - stored.stored_at)
        kind = "offline" if reason is SendFailureReason.TIMEOUT else None
        self._hub._failures.report(
            Failure(message, user_id, reason, error, duration=age, kind=kind), of_call=False
        )

    def _delete(self, user_id: str, message_id: str) -> None:
        # One call of the store for what is acknowledged in one turn.
        if not self._deletes:
            assert self.loop is not None
            self.loop.call_soon(self._flush_deletes)
        self._deletes.setdefault(user_id, []).append(message_id)

    def _flush_deletes(self) -> None:
        deletes, self._deletes = self._deletes, {}
        if self.store is None or self.loop is None:
            return
        for user_id, ids in deletes.items():
            deleting = asyncio.ensure_future(self._delete_now(user_id, ids))
            self._storing.add(deleting)
            for message_id in ids:
                self._deleting[user_id, message_id] = deleting
            deleting.add_done_callback(partial(self._deleted, user_id, ids))

    async def _delete_now(self, user_id: str, ids: list[str]) -> int:
        assert self.store is not None
        return await self.store.delete(user_id, ids)

    def _deleted(self, user_id: str, ids: list[str], done: asyncio.Future[int]) -> None:
        self._storing.discard(done)
        for message_id in ids:
            if self._deleting.get((user_id, message_id)) is done:
                del self._deleting[user_id, message_id]
        if not done.cancelled() and (error := done.exception()) is not None:
            # It comes again under the same id.
            self.counters.offline_errors += 1
            self._log_store_error("acknowledged messages could not be removed", error)

    def _log_store_error(self, what: str, error: BaseException) -> None:
        now = time.monotonic()
        if now >= self._next_error_line:
            self._next_error_line = now + 1.0
            known = isinstance(error, OfflineStoreError)
            log.error("offline store: %s: %s", what, error, exc_info=None if known else error)

    def _is_open(self) -> bool:
        opening = self._opening
        return opening is not None and opening.done() and not opening.cancelled()

    async def accepted(self, pending: PendingACK) -> None:
        """Has a message written to the store, unless it is or has been acknowledged."""
        if pending._stored:
            return
        if self.store is None or pending.done():
            await pending
            return
        if pending._storing is None:
            queue = self._users.get(pending.user_id)
            assert queue is not None
            self._store(queue, pending)
        storing = pending._storing
        assert storing is not None
        try:
            await asyncio.shield(storing)
        except BaseException as error:
            if not storing.done() or storing.cancelled():
                raise  # it is the caller who is cancelled
            if pending.status is not AckStatus.CONFIRMED:
                raise _store_error(error) from None

    async def _expire(self) -> None:
        """Removes what is too old, now and then."""
        assert self.store is not None
        await self.opened()
        while not self._stopped:
            try:
                before = time.time() - self.config.offline_max_age
                while expired := await self.store.expire(before):
                    for user_id, stored in expired:
                        self._too_old(user_id, stored)
                    await asyncio.sleep(0)
            except Exception as error:
                self.counters.offline_errors += 1
                self._log_store_error("old messages could not be removed", error)
            if not self._stopped:  # the store may have swallowed the cancellation
                await asyncio.sleep(min(EXPIRE_EVERY, max(1.0, self.config.offline_max_age / 10)))

    def _too_old(self, user_id: str, stored: StoredMessage) -> None:
        self._dropped(
            user_id,
            stored,
            SendFailureReason.TIMEOUT,
            f"user {user_id!a} did not come for it in {self.config.offline_max_age} s",
        )

    # --- the replay ---

    def _replay(
        self, user_id: str, queue: _Queue, client: Client | None, *, from_store: bool
    ) -> None:
        assert self.loop is not None
        if queue.replay is not None:
            queue.replay.cancel()
        self._walks += 1
        queue.walk = self._walks
        queue.target = client
        queue.from_store = from_store
        queue.acknowledged.clear()
        queue.out = 0
        held = [item for item in queue.line if isinstance(item, _Held)]
        line: list[PendingACK | _Held] = [*queue.pending.values(), *held]
        queue.line = deque(sorted(line, key=_order_of))
        if client is None:
            # An outbox was full: what is out already is not sent again.
            for pending in queue.pending.values():
                if pending.attempts:
                    pending._walk = queue.walk
                    queue.out += 1
        self.replaying.add(user_id)
        queue.replay = self.loop.create_task(self._run_replay(user_id, queue, from_store))

    async def _run_replay(self, user_id: str, queue: _Queue, from_store: bool) -> None:
        outside_handlers()  # what fails here is nobody's own failure
        complete = True
        try:
            if from_store:
                complete = await self._replay_store(user_id, queue)
                queue.from_store = False
                queue.acknowledged.clear()
            while queue.line:
                item = queue.line[0]
                if isinstance(item, PendingACK):
                    if item._walk != queue.walk:
                        await self._replay_one(user_id, queue, item)
                else:
                    await self._room(user_id, queue)
                    queue.held -= 1
                    queued = self._hub._send_to_user(user_id, item.data, int(item.message.priority))
                    if queued <= 0:
                        error = self._hub._not_queued(user_id, queued)
                        failure = Failure(item.message, user_id, reason_of(error), error)
                        self._hub._failures.report(failure, of_call=False)
                queue.line.popleft()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            complete = False
            self._hub._report(None, error)
            self._drop_held(user_id, queue, error)
        finally:
            # No await between the last look at the line and here: nothing can slip in.
            if queue.replay is asyncio.current_task():
                queue.replay = None
                queue.target = None
                queue.from_store = False
                self.replaying.discard(user_id)
                self._release(user_id, queue)
        if not complete and self.loop is not None:
            self.loop.call_later(REPLAY_AGAIN, self._replay_again, user_id)

    def _replay_again(self, user_id: str) -> None:
        clients = self._hub.get_clients_by_user(user_id) if not self._stopped else []
        if clients:
            self.entered(clients[-1])

    async def _replay_store(self, user_id: str, queue: _Queue) -> bool:
        """Sends what the store holds; returns whether all of it could be read."""
        assert self.store is not None
        after, failures = 0, 0
        while True:
            try:
                await self.opened()
                page = await self._page(user_id, queue, after)
            except Exception as error:
                failures += 1
                self.counters.offline_errors += 1
                self._log_store_error(f"the messages of user {user_id!a} cannot be read", error)
                if failures == READ_ATTEMPTS:
                    return False
                await asyncio.sleep(READ_PAUSE * 2**failures)
                continue
            if not page:
                return True
            oldest = time.time() - self.config.offline_max_age
            for stored in page:
                after = stored.position
                if stored.stored_at < oldest:
                    self._delete(user_id, stored.id)
                    self._too_old(user_id, stored)
                    continue
                pending = queue.pending.get(stored.id)
                if pending is None:
                    if stored.id in queue.acknowledged or self._is_deleted(user_id, stored.id):
                        continue  # acknowledged since the page was read
                    pending = self._adopt(user_id, queue, stored)
                if pending._walk != queue.walk:
                    self.counters.offline_replayed += 1
                    await self._replay_one(user_id, queue, pending)

    async def _page(self, user_id: str, queue: _Queue, after: int) -> list[StoredMessage]:
        """What the store holds next, for the replay that calls; CancelledError once it is over."""
        assert self.store is not None
        try:
            return await self.store.read(user_id, after=after, limit=PAGE)
        finally:
            # A store may swallow a cancellation: asyncio.wait_for does on Python 3.11, and redis-py
            # uses it. A replay that went on would overtake the next one.
            if self._stopped or queue.replay is not asyncio.current_task():
                raise asyncio.CancelledError

    def _adopt(self, user_id: str, queue: _Queue, stored: StoredMessage) -> PendingACK:
        pending = self._parked.pop((user_id, stored.id), None)
        if pending is None:
            pending = PendingACK(
                self, user_id, None, None, stored.id, stored.data, 2, self.config.timeout
            )
            try:
                pending._priority = int(decode_hub_message(stored.data).priority)
            except ValidationError:
                log.warning("the offline store holds something that is no HubMessage")
        self._order += 1
        pending._order = self._order
        pending._stored = True
        pending.status = AckStatus.PENDING
        queue.lapsed.pop(stored.id, None)
        queue.pending[pending.id] = pending
        self.count += 1
        return pending

    async def _replay_one(self, user_id: str, queue: _Queue, pending: PendingACK) -> None:
        while pending._is_open():
            client = await self._room(user_id, queue, pending)
            if not pending._is_open():
                return
            if pending._walk != queue.walk:
                pending._walk = queue.walk
                queue.out += 1
            if client is None:
                taken = self._transmit(pending)
            else:
                taken = self._hub._send_to(client, pending._data, pending._priority)
                self._sent(pending, taken)
            if taken or pending._client_id is not None:
                return  # one that is for a full client only is left to its timer
            await asyncio.sleep(POLL)

    async def _room(
        self, user_id: str, queue: _Queue, pending: PendingACK | None = None
    ) -> Client | None:
        """Waits until a client has room for one more, and few enough are unacknowledged.

        Returns whom to send to; None for all of the clients, or if it is over with `pending`.
        """
        assert self.loop is not None
        pause = 0.0  # at first: what was pushed in this turn goes out at its end
        patience = self.loop.time() + STALLED
        while True:
            target = queue.target
            clients = self._hub.get_clients_by_user(user_id)
            roomy = [client for client in clients if self._has_room(client)]
            if queue.out >= WINDOW:
                queue.progress = asyncio.Event()
                await queue.progress.wait()
            elif target is not None and target in roomy:
                return target
            elif roomy and target is None:
                return None
            elif roomy and (target not in clients or self.loop.time() >= patience):
                # A client that does not read may not hold up the user's others: one of these gets
                # all that is not acknowledged, in order, from a replay of its own.
                self._replay(user_id, queue, roomy[-1], from_store=queue.from_store)
                raise asyncio.CancelledError
            elif pending is not None and not pending._is_open():
                return None  # nobody reads, and it has timed out meanwhile
            elif pending is not None and pending._client_id is not None and len(clients) > 1:
                return None
            else:
                await asyncio.sleep(pause)
                pause = POLL

    def _has_room(self, client: Client) -> bool:
        return (
            client.queued_messages < self._replay_messages
            and client.queued_bytes < self._replay_bytes
        )


def _order_of(item: PendingACK | _Held) -> int:
    return item._order


def _copy_result(
    to: asyncio.Future[list[StoredMessage]], done: asyncio.Future[list[StoredMessage]]
) -> None:
    if to.done():
        return
    if done.cancelled():
        to.cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())


def _store_error(error: BaseException) -> OfflineStoreError:
    if isinstance(error, OfflineStoreError):
        return error
    log.error("the offline store raised", exc_info=error)
    return OfflineStoreError(f"the offline store raised {type(error).__name__}: {error}")
