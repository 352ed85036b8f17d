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
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast._core.pending import AckTable, PendingACK, UserQueue
from wsc_fast.delivery.failures import Failure, outside_handlers, reason_of
from wsc_fast.delivery.offline import OfflineStore, StoredMessage
from wsc_fast.errors import (
    AckDroppedError,
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
    AckStatus,
    HubMessage,
    decode_hub_message,
    to_ack_message,
)

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
# Seconds that writing what is pending gets at the stop, though its timeout is over.
STORE_GRACE = 1.0


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


class _Held(msgspec.Struct, eq=False):
    """A message without acknowledgement that waits behind a replay."""

    message: HubMessage
    data: bytes
    _order: int


class Acks(AckTable):
    """The pending messages of one hub.

    Thread-safety: the loop's thread.
    """

    def __init__(self, hub: Hub, config: ACKConfig, store: OfflineStore | None) -> None:
        super().__init__(hub, config, store, AckCounters())
        self._walks = 0
        self._opening: asyncio.Task[None] | None = None
        self._expiring: asyncio.Task[None] | None = None
        self._storing: set[asyncio.Future[Any]] = set()
        # Appends that have to wait, for the store to open or for a deletion, and all behind them.
        self._appends: deque[tuple[PendingACK, asyncio.Future[list[StoredMessage]]]] = deque()
        self._appending: asyncio.Task[None] | None = None
        self._next_error_line = 0.0
        self._replay_messages = max(1, min(REPLAY_MESSAGES, hub.config.outbox_messages // 2))
        self._replay_bytes = max(1, min(REPLAY_BYTES, hub.config.outbox_bytes // 2))
        self._deletes: dict[str, list[str]] = {}
        self._deleting: dict[tuple[str, str], asyncio.Future[int]] = {}

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop from now on."""
        self._stopped = False
        self.loop = loop
        self._attach_timers(loop)
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
        self._clear_timers()
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
        self._attach_timers(None)
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

    def _report(
        self, pending: PendingACK, error: Exception, reason: SendFailureReason | None = None
    ) -> None:
        self._hub._failures.report(
            Failure.of_data(
                pending._data,
                pending.user_id,
                reason or reason_of(error),
                error,
                client_id=pending._client_id,
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
            self._users[user_id] = queue = UserQueue()
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

    def _end_replay(self, user_id: str, queue: UserQueue) -> None:
        # Its user is away.
        if queue.replay is not None:
            queue.replay.cancel()
            queue.replay = None
            queue.target = None
            queue.from_store = False
            self.replaying.discard(user_id)
        error = UserOfflineError(f"user {user_id!a} left before the message was sent")
        self._drop_held(user_id, queue, error)

    def _drop_held(self, user_id: str, queue: UserQueue, error: Exception) -> None:
        for item in queue.line:
            if isinstance(item, _Held):
                failure = Failure(item.message, user_id, reason_of(error), error)
                self._hub._failures.report(failure, of_call=False)
        queue.line.clear()
        queue.held = 0

    # --- the store ---

    def _park(self, user_id: str, queue: UserQueue) -> None:
        """Moves a queue to the store: its user is away."""
        self._end_replay(user_id, queue)
        self._store(queue, None)
        for pending in queue.pending.values():
            self._anew(pending)  # when the user is back
            pending.status = AckStatus.STORED
            self._parked[user_id, pending.id] = pending
        self.count -= len(queue.pending)
        queue.pending.clear()
        queue.unstored = None
        self._release(user_id, queue)

    def _store(self, queue: UserQueue, upto: PendingACK | None) -> None:
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
        self, user_id: str, queue: UserQueue, client: Client | None, *, from_store: bool
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

    async def _run_replay(self, user_id: str, queue: UserQueue, from_store: bool) -> None:
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

    async def _replay_store(self, user_id: str, queue: UserQueue) -> bool:
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

    async def _page(self, user_id: str, queue: UserQueue, after: int) -> list[StoredMessage]:
        """What the store holds next, for the replay that calls; CancelledError once it is over."""
        assert self.store is not None
        try:
            return await self.store.read(user_id, after=after, limit=PAGE)
        finally:
            # A store may swallow a cancellation: asyncio.wait_for does on Python 3.11, and redis-py
            # uses it. A replay that went on would overtake the next one.
            if self._stopped or queue.replay is not asyncio.current_task():
                raise asyncio.CancelledError

    def _adopt(self, user_id: str, queue: UserQueue, stored: StoredMessage) -> PendingACK:
        pending = self._parked.pop((user_id, stored.id), None)
        if pending is None:
            pending = self._found(user_id, stored.id, stored.data)
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

    async def _replay_one(self, user_id: str, queue: UserQueue, pending: PendingACK) -> None:
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
        self, user_id: str, queue: UserQueue, pending: PendingACK | None = None
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
