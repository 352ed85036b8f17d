"""Messages that are sent until they are acknowledged, and kept while their user is away.

A mailbox holds what one user has not acknowledged, in the order of sending. While a client of the
user is connected a message goes out at once, and again at each retry interval. A client that has
just connected, or whose outbox was full, catches up first (replay.py); the others take no notice.
When the last client has gone the mailbox is parked: with an offline store its messages move there,
and nothing of them stays in memory but what callers hold; without one they wait for their timeouts.

A message is written to the store when somebody waits for `accepted`, when its user is away, and
when the hub stops; whatever was sent to that user before it is written first, so that the store's
order is the order of sending. It leaves the store when it was acknowledged. After a crash, what
was stored and not known to be acknowledged is delivered again under the same id.

Nothing here takes more than a bounded number of steps in one turn of the loop, however many
messages or users are concerned.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast._core.pending import AckTable, Mailbox, PendingACK
from wsc_fast.delivery.devices import Devices, is_of_devices, key_of_device, user_of_key
from wsc_fast.delivery.failures import Failure, reason_of
from wsc_fast.delivery.journal import Journal, store_error
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.replay import Held, Replay
from wsc_fast.errors import (
    AckDroppedError,
    ClientDisconnectedError,
    ConfigError,
    HubStoppedError,
    MessageExistsError,
    OfflineStoreError,
    PendingFullError,
    QueueFullError,
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
    is_same_message,
)
from wsc_fast.stores.base import OfflineStore, StoredMessage
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.config import ACKConfig, HubConfig
    from wsc_fast.hub import Hub

# Messages that are parked, stored or ended in one turn of the loop.
AT_ONCE = 100
# Clients that catch up once more in one turn of the loop.
CLIENTS_AT_ONCE = 20
# Seconds after which a client catches up once more, where the store could not be read.
REPLAY_AGAIN = 5.0
# Seconds that writing what is pending gets at the stop, though its timeout is over.
STORE_GRACE = 1.0

# Who uses which store: a store that one hub closes is closed for all.
_owners: weakref.WeakKeyDictionary[OfflineStore, weakref.ref[Acks]] = weakref.WeakKeyDictionary()


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


class Acks(AckTable):
    """The pending messages of one hub.

    Args:
        hub: whose messages they are.
        config: ACKConfig.
        store: where messages are kept; None keeps none.

    Raises:
        ConfigError: another hub uses the store.

    Thread-safety: the loop's thread.
    """

    def __init__(self, hub: Hub, config: ACKConfig, store: OfflineStore | None) -> None:
        if store is not None and hub._authenticate is None:
            log.warning(
                "offline messages need `authenticate`: without it each client is a user whom "
                "nobody knows again, and nothing is kept"
            )
            store = None
        if store is not None:
            _claim(store, self)
        super().__init__(hub, config, store, AckCounters(), Parked())
        self._journal = None if store is None else Journal(store, config, self)
        self._devices = Devices(self, self.journal) if self.per_device else None
        self._ended = False  # it has been stopped, and not started since
        # Mailboxes whose last client has gone, and whose messages are not parked yet.
        self._leaving: dict[str, Mailbox] = {}
        self._parking = False
        # User -> how many of the user's clients catch up.
        self._replays_of: dict[str, int] = {}
        # Clients that have caught up with what is in memory, but not with the store.
        self._behind: dict[Client, None] = {}
        self._behind_timer: asyncio.TimerHandle | None = None

    @property
    def journal(self) -> Journal:
        """The offline store, where there is one."""
        assert self._journal is not None
        return self._journal

    @property
    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the hub runs on."""
        assert self.loop is not None
        return self.loop

    @property
    def hub_config(self) -> HubConfig:
        """The hub's settings of this moment."""
        return self._hub.config

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop from now on."""
        self._stopped = self._ended = False
        self.loop = loop
        self._attach_timers(loop)
        if self._journal is not None:
            self._journal.attach(loop)

    def is_in_use(self) -> bool:
        """Whether its hub runs, or has not run yet."""
        return not self._ended and not (self.loop is not None and self.loop.is_closed())

    async def opened(self) -> None:
        """Returns once the store is open; raises what that failed with."""
        if self._journal is not None:
            await self._journal.opened()

    async def stop(self, timeout: float) -> None:
        """Stores what is pending, or ends it; the clients have gone already."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._stopped = True
        if self._devices is not None:
            await self._devices.finish(max(deadline, loop.time() + STORE_GRACE))
        if self._journal is not None:
            await self._journal.stop_looking()
        stopped = HubStoppedError("the hub stopped before the message was acknowledged")
        for mailbox in list(self._users.values()):
            self._end_replays(mailbox, stopped)
        await self._empty_mailboxes(stopped)
        # What has to be written gets some time even where the clients have used it up.
        deadline = max(deadline, loop.time() + STORE_GRACE)
        if self._journal is not None:
            await self._journal.write_out(deadline)
        self._clear_timers()
        await in_turns(self._parked, self._end_parked, AT_ONCE)
        if self._devices is not None:
            await self._devices.end(stopped)
        self._forget()
        if self._journal is not None:
            await self._journal.close(deadline + STORE_GRACE)
        self._ended = True
        self.loop = None

    async def _empty_mailboxes(self, error: Exception) -> None:
        while self._users:
            mailbox = next(iter(self._users.values()))
            mailbox.lapsed.clear()
            if self.store is not None:
                self._park_some(mailbox, AT_ONCE)
            else:
                for pending in list(islice(mailbox.pending.values(), AT_ONCE)):
                    self._give_up(pending, error)
            self._release(mailbox)
            await asyncio.sleep(0)

    def _end_parked(self, pending: PendingACK) -> None:
        if pending.done():
            return
        if pending._stored:
            error = HubStoppedError("the hub stopped; the message is in the offline store")
            self._settle(pending, AckStatus.STORED, error)
        else:
            late = "the hub stopped before the offline store had taken the message"
            self._give_up(pending, OfflineStoreError(late))

    def _forget(self) -> None:
        if self._devices is not None:
            self._devices.clear()
        self._replays_of.clear()
        self._parked.clear()
        self._leaving.clear()
        self._behind.clear()
        self.starved.clear()
        self._forget_all()
        if self._behind_timer is not None:
            self._behind_timer.cancel()
            self._behind_timer = None

    def forget(self) -> None:
        """The loop was closed under the hub: its tasks and timers went with it."""
        self.loop = None
        self._ended = True
        self._behind_timer = None
        self._parking = False
        self._attach_timers(None)
        self._forget()
        if self._journal is not None:
            self._journal.forget()

    # --- sending ---

    def hold(self, user_id: str, message: HubMessage, data: bytes) -> int:
        """Sends a message without acknowledgement to a user of whose clients some catch up.

        Returns how many clients it was queued or held for.
        """
        clients = self._hub.get_clients_by_user(user_id)
        if not clients:
            raise UserOfflineError(f"user {user_id!a} has no connected client")
        item = Held(data, int(message.priority))
        refused: list[tuple[Client, Exception]] = []
        for client in clients:
            error = self._hold_for(client, item)
            if error is not None:
                refused.append((client, error))
        if len(refused) == len(clients):
            raise refused[0][1]
        for _, error in refused:
            self._report_held(item, user_id, error)
        return len(clients) - len(refused)

    def _hold_for(self, client: Client, item: Held) -> Exception | None:
        replay = self._replay_of(client)
        if replay is None:
            if self._hub._send_to(client, item.data, item.priority):
                return None
            return QueueFullError(f"the outbox of client {client.id!a} is full")
        if replay.hold(item):
            return None
        return PendingFullError(
            f"{replay.held} messages for user {client.user_id!a} wait behind its backlog already "
            f"(HubConfig.outbox_messages, outbox_bytes)"
        )

    def send_held(self, replay: Replay, item: Held) -> None:
        """The turn of a message that a replay held has come."""
        if not self._hub._send_to(replay.client, item.data, item.priority):
            error = QueueFullError(f"the outbox of client {replay.client.id!a} is full")
            self._report_held(item, replay.mailbox.user_id, error)

    def pending_of(self, client: Client) -> list[ACKMessage]:
        """The messages that an acknowledgement of this client would settle."""
        mailbox = self._users.get(self._key_of(client))
        if mailbox is None:
            return []
        return [
            pending.message
            for pending in mailbox.pending.values()
            if self._counts_from(pending, client)
        ]

    def awaits(self, client: Client) -> bool:
        """Whether an acknowledgement of this client's user is awaited."""
        mailbox = self._users.get(self._key_of(client))
        return mailbox is not None and bool(mailbox.pending)

    def has_memory(self) -> bool:
        """Whether what is pending leaves room for more."""
        return self.nbytes < self.config.max_pending_bytes

    def _key_of(self, client: Client) -> str:
        """The key of the mailbox that a client gets its messages from."""
        if self._devices is None:
            return client.user_id
        return key_of_device(client.user_id, client.device_id)

    def _send_to_devices(self, user_id: str, message: ACKMessage) -> PendingACK:
        """`send_ack_message_to_user` where each device has a mailbox of its own."""
        assert self._devices is not None
        check_id("user", user_id)
        return self._devices.send(user_id, message, self._encoded(user_id, message))

    def _device_ended(self, pending: PendingACK) -> None:
        """A delivery to one device has come to its end."""
        assert self._devices is not None
        self._devices.ended(pending)

    def _wake_starved(self) -> None:
        for _ in range(min(CLIENTS_AT_ONCE, len(self.starved))):
            self.starved.pop().wake()

    # --- failures ---

    def _report(self, pending: PendingACK, error: Exception) -> None:
        if not self._is_told(pending):
            return
        self._hub._failures.report(
            Failure.of_data(
                pending._data,
                pending.user_id,
                reason_of(error),
                error,
                client_id=pending._client_id,
                duration=pending._timeout,
            ),
            of_call=False,
        )

    def _is_told(self, pending: PendingACK) -> bool:
        """Whether its failure is one: not where another device has confirmed it, or may still."""
        alone = self._devices is None or pending._group is None
        return alone or self._devices.is_told(pending)  # type: ignore[union-attr]

    def _report_held(self, item: Held, user_id: str, error: Exception) -> None:
        failure = Failure.of_data(item.data, user_id, reason_of(error), error)
        self._hub._failures.report(failure, of_call=False)

    # --- clients come and go ---

    def entered(self, client: Client) -> None:
        """A client has connected: what its user has not acknowledged goes out again."""
        if self._devices is not None:
            self._devices.joined(client)
        mailbox = self._users.get(self._key_of(client))
        if mailbox is None:
            if self.store is None:
                return
            mailbox = self._mailbox(self._key_of(client), client.user_id)
        self._leaving.pop(mailbox.key, None)
        self._catch_up(mailbox, client, self._for(mailbox, client), from_store=True, again=True)
        self._release(mailbox)

    def left(self, client: Client) -> None:
        """A client's connection has gone."""
        self._behind.pop(client, None)
        if self._devices is not None:
            self._devices.left(client)
        mailbox = self._users.get(self._key_of(client))
        if mailbox is None:
            return
        others = self._clients_of(mailbox)
        replay = mailbox.replays.get(client)
        if replay is not None:
            self._end_replay(replay, self._left_error(client, others))
        if others:
            self._redirect(mailbox, client, others)
            return
        mailbox.lapsed.clear()
        if self.store is not None:
            self._park(mailbox)
        else:
            self._release(mailbox)

    def _left_error(self, client: Client, others: list[Client]) -> Exception:
        if others:
            return ClientDisconnectedError(
                f"client {client.id!a} left before the message was sent to it"
            )
        return _user_left(client.user_id)

    def _for(self, mailbox: Mailbox, client: Client) -> list[PendingACK]:
        if not mailbox.directed:
            return list(mailbox.pending.values())
        return [each for each in mailbox.pending.values() if self._counts_from(each, client)]

    def _redirect(self, mailbox: Mailbox, left: Client, others: list[Client]) -> None:
        """What was for one client alone goes to the others of the user."""
        if not mailbox.directed:
            return
        line = [
            pending
            for pending in mailbox.pending.values()
            if pending._client_id == left.id and self._counts_from(pending, others[0])
        ]
        if line:
            for client in others:
                self._catch_up(mailbox, client, line)

    # --- replays ---

    def _replay_of(self, client: Client) -> Replay | None:
        mailbox = self._users.get(self._key_of(client))
        return None if mailbox is None else mailbox.replays.get(client)

    def _catch_up(
        self,
        mailbox: Mailbox,
        client: Client,
        line: list[PendingACK],
        *,
        sent: list[PendingACK] | None = None,
        from_store: bool = False,
        again: bool = False,
    ) -> None:
        """Has a client catch up, with these messages besides what it is catching up with."""
        from_store = from_store and self.store is not None
        replay = mailbox.replays.get(client)
        if replay is not None:
            for pending in line:
                replay.put(pending)
            if from_store:
                replay.read_again()
        elif line or from_store:
            replay = Replay(
                self, mailbox, client, line, sent=sent or [], from_store=from_store, again=again
            )
            mailbox.replays[client] = replay
            user_id = mailbox.user_id
            self._replays_of[user_id] = self._replays_of.get(user_id, 0) + 1
            self.replaying.add(user_id)
            replay.start()

    async def prepare(self, client: Client) -> None:
        """To be awaited before the store is read for a client."""
        if self._devices is not None:
            await self._devices.known(client.user_id)

    def await_empty(self, client: Client) -> None:
        """Has the replay of a client go on once the client's outbox has run empty."""
        self._hub._await_empty(client)

    def ran_empty(self, client: Client) -> None:
        """The outbox of a client has run empty."""
        replay = self._replay_of(client)
        if replay is not None:
            replay.wake()

    def caught_up(self, replay: Replay, complete: bool, error: Exception | None) -> None:
        """A replay has come to its end, or was ended."""
        mailbox, client = replay.mailbox, replay.client
        if mailbox.replays.get(client) is not replay:
            return  # it was ended, and this is only its task
        if error is not None:
            self._hub._report(None, error)
        self._end_replay(replay, error or self._left_error(client, [client]))
        if not complete and self.store is not None and client.is_connected():
            self._behind[client] = None
            self._catch_up_later(REPLAY_AGAIN)
        self._release(mailbox)

    def _end_replay(self, replay: Replay, error: Exception) -> None:
        mailbox = replay.mailbox
        del mailbox.replays[replay.client]
        self._replays_of[mailbox.user_id] -= 1
        if not self._replays_of[mailbox.user_id]:
            del self._replays_of[mailbox.user_id]
            self.replaying.discard(mailbox.user_id)
        for item in replay.end():
            self._report_held(item, mailbox.user_id, error)

    def _end_replays(self, mailbox: Mailbox, error: Exception) -> None:
        for replay in list(mailbox.replays.values()):
            self._end_replay(replay, error)

    def _catch_up_later(self, seconds: float) -> None:
        """Has those who are behind catch up once more, unless that is due already."""
        if self._behind and self._behind_timer is None and self.loop is not None:
            self._behind_timer = self.loop.call_later(seconds, self._catch_up_again)

    def _catch_up_again(self) -> None:
        self._behind_timer = None
        for client in list(islice(self._behind, CLIENTS_AT_ONCE)):
            del self._behind[client]
            if client.is_connected() and not self._stopped:
                self._look_again(client, again=True)
        self._catch_up_later(0.0)

    def _look_again(self, client: Client, *, again: bool) -> None:
        mailbox = self._mailbox(self._key_of(client), client.user_id)
        sent = self._for(mailbox, client)
        self._catch_up(mailbox, client, [], sent=sent, from_store=True, again=again)

    def adopt(
        self, replay: Replay, stored: StoredMessage, acknowledged: set[str], *, again: bool
    ) -> PendingACK | None:
        """Makes a message of the store pending, unless it is or has been acknowledged.

        Args:
            replay: which has read it.
            stored: as the store has it.
            acknowledged: ids that were acknowledged since the store was asked.
            again: whether one that has timed out is pending anew.

        Returns:
            PendingACK | None: None for one that needs not be sent.
        """
        mailbox = replay.mailbox
        known = self._of_id(mailbox, stored.id)
        if known:
            return next((each for each in known if self._counts_from(each, replay.client)), None)
        if stored.id in acknowledged or self.journal.is_deleted(mailbox.key, stored.id):
            return None
        if not again and stored.id in mailbox.lapsed:
            return None
        pending = self._parked.pop(mailbox.key, stored.id)
        if pending is None:
            pending = self._found(mailbox, stored.id, stored.data)
            try:
                pending._priority = int(decode_hub_message(stored.data).priority)
            except ValidationError:
                log.warning("the offline store holds something that is no HubMessage")
        mailbox.lapsed.pop(stored.id, None)
        pending._stored = True
        pending.status = AckStatus.PENDING
        self._enlist(mailbox, pending)
        return pending

    def all_read(self, mailbox: Mailbox) -> None:
        """A replay has read all that the store holds for a mailbox.

        What is parked still has gone from the store, by somebody else's doing or a loss: it is sent
        from memory.
        """
        for pending in self._parked.of(mailbox.key):
            if pending._storing is None and pending.status is AckStatus.STORED:
                pending._stored = False
                self._unpark(mailbox, pending)

    def _unpark(self, mailbox: Mailbox, pending: PendingACK) -> None:
        """Its user is back: a parked message is sent from memory."""
        self._parked.pop(mailbox.key, pending.id)
        pending.status = AckStatus.PENDING
        self._enlist(mailbox, pending)
        self._send_live(mailbox, pending)
        for replay in mailbox.replays.values():
            replay.put_older(pending)

    # --- parking ---

    def _park(self, mailbox: Mailbox) -> None:
        """Moves a mailbox to the store: its user is away."""
        self._end_replays(mailbox, _user_left(mailbox.user_id))
        if mailbox.key in self._leaving:
            return  # its turn comes
        self._park_some(mailbox, AT_ONCE)
        self._release(mailbox)
        if mailbox.pending:
            self._leaving[mailbox.key] = mailbox
            if not self._parking:
                self._parking = True
                self.running_loop.call_soon(self._park_on)

    def _park_on(self) -> None:
        """Parks the next few messages of who has left."""
        self._parking = False
        left = AT_ONCE
        while self._leaving and left > 0:
            mailbox = next(iter(self._leaving.values()))
            left -= self._park_some(mailbox, left) + 1
            if not mailbox.pending:
                self._leaving.pop(mailbox.key, None)
                self._release(mailbox)
        if self._leaving and self.loop is not None:
            self._parking = True
            self.loop.call_soon(self._park_on)

    def _park_some(self, mailbox: Mailbox, most: int) -> int:
        some = list(islice(mailbox.pending.values(), most))
        for pending in some:
            if not pending._stored and pending._storing is None:
                self._append(pending)
            self._anew(pending)  # when the user is back
            self._delist(mailbox, pending)
            pending.status = AckStatus.STORED
            known = self._parked.get(mailbox.key, pending.id)
            if known is not None and not known.done():
                self._follow(known, pending)
            else:
                self._parked.add(pending)
        if not mailbox.pending:
            mailbox.unstored = None
            mailbox.unstored_stale = False
        return len(some)

    # --- the store ---

    def _check_waiting(self) -> None:
        """PendingFullError where too much waits for the store to open already."""
        if self.journal.waiting_bytes >= self.config.max_pending_bytes:
            raise PendingFullError(
                f"{self.journal.waiting_bytes} bytes of messages wait for the offline store to "
                "open already (ACKConfig.max_pending_bytes)"
            )

    def _append(self, pending: PendingACK) -> None:
        pending._storing = self.journal.append(pending)

    def _delete(self, key: str, message_id: str) -> None:
        self.journal.delete(key, message_id)

    async def accepted(self, pending: PendingACK) -> None:
        """Has a message written to the store, unless it is or has been acknowledged."""
        if pending._stored:
            return
        if self.store is None or pending.done():
            await pending
            return
        if self._devices is not None and self._devices.is_of_user(pending):
            await self._devices.accepted(pending)
            return
        await self._store_up_to(pending)
        storing = pending._storing
        if storing is None or pending.done():
            await self.accepted(pending)
            return
        # The end of the message ends the waiting, too: the store may take longer than the hub.
        accepted = self.running_loop.create_future()
        pending._tell_later(accepted)
        storing.add_done_callback(partial(self._pass_on, pending, accepted))
        await accepted

    def _pass_on(
        self,
        pending: PendingACK,
        accepted: asyncio.Future[object],
        storing: asyncio.Future[list[StoredMessage]],
    ) -> None:
        """Tells who waits for `accepted` what became of the storing."""
        if accepted.done():
            return
        error = asyncio.CancelledError() if storing.cancelled() else storing.exception()
        trouble = _trouble(pending, error)
        if trouble is None:
            accepted.set_result(None)
        else:
            accepted.set_exception(trouble)

    async def _store_up_to(self, pending: PendingACK) -> None:
        """Stores a message, and first whatever was sent to its user before it."""
        while not (pending._storing or pending._stored or pending.done()):
            mailbox = self._users[pending._mailbox]
            unstored = mailbox.unstored
            if mailbox.unstored_stale or not unstored:
                unstored = self._list_unstored(mailbox)
            for _ in range(min(AT_ONCE, len(unstored))):
                each = unstored.popleft()
                if not each.done() and not each._stored and each._storing is None:
                    self._append(each)
                if each is pending:
                    return
            await asyncio.sleep(0)

    def _list_unstored(self, mailbox: Mailbox) -> deque[PendingACK]:
        # Appends have failed: all that are not stored, in their order.
        mailbox.unstored_stale = False
        mailbox.unstored = unstored = deque(
            each for each in mailbox.pending.values() if not each._stored and each._storing is None
        )
        return unstored

    # --- what the journal tells ---

    def appended(self, pending: PendingACK, error: BaseException | None) -> None:
        """A message is in the store, or is not."""
        error = _trouble(pending, error)
        if error is None:
            self.counters.offline_stored += 1
            pending._stored = True
            if pending.status in (AckStatus.CONFIRMED, AckStatus.FAILED):
                self._delete(pending._mailbox, pending.id)
                return
        mailbox = self._users.get(pending._mailbox)
        if pending.status is AckStatus.STORED:
            if error is not None and not _is_tried_again(error):
                self._parked.pop(pending._mailbox, pending.id)
                self._give_up(pending, error)
            elif self._is_back(pending):
                # Its user came back while it was being stored.
                self._unpark(self._mailbox(pending._mailbox, pending.user_id), pending)
            elif error is not None:
                # Its user is away, and it is nowhere.
                self._parked.pop(pending._mailbox, pending.id)
                self._give_up(pending, error)
        elif error is not None and mailbox is not None and not pending.done():
            mailbox.unstored_stale = True

    def _is_back(self, pending: PendingACK) -> bool:
        return (
            not self._stopped
            and self._parked.get(pending._mailbox, pending.id) is pending
            and self._has_clients(pending._mailbox, pending.user_id)
        )

    def dropped(self, key: str, stored: StoredMessage, age: float | None) -> None:
        """The store has let go of a message: for its age in seconds, or, None, for its bound."""
        user_id = user_of_key(key)
        if is_of_devices(key):
            if self._devices is not None:
                self._devices.forgotten(user_id, stored.id)
            return
        mailbox = self._users.get(key)
        pending = self._parked.pop(key, stored.id)
        if pending is None and mailbox is not None:
            pending = mailbox.pending.get(stored.id)
        if age is not None:
            reason, kind = SendFailureReason.TIMEOUT, "offline"
            why = f"user {user_id!a} did not come for it in {self.config.offline_max_age} s"
        else:
            reason, kind = SendFailureReason.PENDING_FULL, None
            why = (
                f"user {user_id!a} has {self.config.offline_limit} newer messages in the offline "
                "store"
            )
        error = AckDroppedError(stored.id, f"message {stored.id!a} was dropped: {why}")
        self.counters.acks_dropped += 1
        if pending is not None:
            self._settle(pending, AckStatus.DROPPED, error)
            if not self._is_told(pending):
                return
        failure = Failure.of_data(
            stored.data, user_id, reason, error, duration=age or 0.0, kind=kind
        )
        self._hub._failures.report(failure, of_call=False)

    def stored_elsewhere(self, key: str) -> None:
        """Another process has stored messages for a user: who is connected here gets them."""
        if self._stopped:
            return
        user_id = user_of_key(key)
        if is_of_devices(key):
            if self._devices is not None:
                self._devices.changed(user_id)
            return
        for client in self._hub.get_clients_by_user(user_id):
            if self._key_of(client) == key:
                self._look_again(client, again=False)

    def anything_stored_elsewhere(self) -> None:
        """Other processes may have stored messages for anybody: all clients look at the store."""
        self._behind.update(dict.fromkeys(self._hub._open_clients()))
        self._catch_up_later(0.0)

    def parked_keys(self) -> list[str]:
        """The mailboxes of which somebody waits for a message that the store should hold."""
        return self._parked.keys()

    def parked_ids(self, key: str) -> list[str]:
        """The messages of a mailbox that somebody waits for."""
        return [pending.id for pending in self._parked.of(key)]

    def gone(self, key: str, message_id: str) -> None:
        """The store does not hold a message any more, and not by our doing."""
        pending = self._parked.get(key, message_id)
        if pending is None or pending.done() or not pending._stored:
            return
        self._parked.pop(key, message_id)
        text = (
            f"message {message_id!a} for user {pending.user_id!a} is not in the offline store any "
            "more: another process has delivered or dropped it, or the store has lost it"
        )
        self._give_up(pending, AckDroppedError(message_id, text))

    def count_error(self) -> None:
        """The store has failed."""
        self.counters.offline_errors += 1


def _user_left(user_id: str) -> UserOfflineError:
    return UserOfflineError(f"user {user_id!a} left before the message was sent")


def _is_tried_again(error: Exception) -> bool:
    """Whether the same message may be stored later."""
    return not isinstance(error, ValidationError)


def _trouble(pending: PendingACK, error: BaseException | None) -> Exception | None:
    """Why a message is not stored; None where the store holds the very message."""
    if error is None:
        return None
    if not isinstance(error, MessageExistsError):
        return store_error(error)
    if is_same_message(error.data, pending._data):
        return None
    return ValidationError(
        f"the offline store holds another message with the id {pending.id!a} for user "
        f"{pending.user_id!a}"
    )


def _claim(store: OfflineStore, acks: Acks) -> None:
    """Notes who uses a store; ConfigError if another hub does."""
    try:
        reference = _owners.get(store)
        _owners[store] = weakref.ref(acks)
    except TypeError:
        return  # it cannot be a key
    owner = None if reference is None else reference()
    if owner is not None and owner.is_in_use():
        _owners[store] = weakref.ref(owner)
        raise ConfigError(
            f"store {store!r} belongs to another hub, expected one of its own: two store objects "
            "may share a file or a server"
        )
