"""Messages that are sent until they are acknowledged, and kept while their user is away.

A mailbox holds what one user has not acknowledged, in the order of sending. While a client of the
user is connected a message goes out at once, and again at each retry interval: that is AckTable
(_core/pending). A client that has just connected, or whose outbox was full, catches up first
(catching_up.py); the others take no notice. When the last client has gone the mailbox is parked:
with an offline store its messages move there (storing.py), and nothing of them stays in memory but
what callers hold; without one they wait for their timeouts.

A message leaves the store when it was acknowledged. After a crash the hub delivers the messages of
the store again, under the same ids.

This file joins the parts: their life, clients that come and go, and the news of the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from wsc_fast._core.histogram import Histogram
from wsc_fast._core.pending import AckTable, Mailbox, PendingACK, TableOwner
from wsc_fast.delivery.catching_up import CatchingUp
from wsc_fast.delivery.claims import claim
from wsc_fast.delivery.devices import Devices, is_of_devices, key_of_device, user_of_key
from wsc_fast.delivery.entries import unpack
from wsc_fast.delivery.failures import Failure, reason_of
from wsc_fast.delivery.journal import Journal
from wsc_fast.delivery.others import Ended, Others
from wsc_fast.delivery.over_hubs import OverHubs, Parts
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.storing import AT_ONCE, Storing
from wsc_fast.delivery.tally import count_pending
from wsc_fast.errors import (
    AckDroppedError,
    HubStoppedError,
    OfflineStoreError,
    SendFailureReason,
)
from wsc_fast.log import log
from wsc_fast.messages import ACKMessage, AckStatus, HubMessage
from wsc_fast.stores.base import OfflineStore, StoredMessage
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.config import ACKConfig
    from wsc_fast.delivery.needs import Needs
    from wsc_fast.delivery.reporter import FailureReporter

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


class Acks(TableOwner):
    """The messages of one hub that are to be acknowledged.

    Args:
        needs: of the hub.
        failures: hears of what is not delivered.
        config: ACKConfig.
        store: where messages are kept; None keeps none.

    Raises:
        ConfigError: another hub uses the store.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        needs: Needs,
        failures: FailureReporter,
        config: ACKConfig,
        store: OfflineStore | None,
    ) -> None:
        if store is not None and not needs.knows_users():
            log.warning(
                "offline messages need `authenticate`: without it each client is a user whom "
                "nobody knows again, and nothing is kept"
            )
            store = None
        self._ended = False  # it has been stopped, and not started since
        self._config = config
        self._failures = failures
        self._engine = needs.engine
        self._counters = AckCounters()
        self.store = store
        self.parked_messages: Parked = Parked()
        table = AckTable(needs.engine, config, store is not None, self._counters, self)
        self.table: AckTable = table
        if store is not None:
            claim(store, self)
        self._journal = None if store is None else Journal(store, config, self)
        self._devices = None
        if table.per_device:
            self._devices = Devices(needs, table, config, self.parked_messages, self.journal.access)
        self.catching_up: CatchingUp = CatchingUp(
            needs, table, failures, self.parked_messages, self._journal, self._devices
        )
        self._storing = None
        if self._journal is not None:
            self._storing = Storing(
                table,
                self.parked_messages,
                self._journal,
                self.catching_up,
                config.max_pending_bytes,
            )
        # Deliveries that concern other hubs; None: this hub is alone.
        self.over_hubs: OverHubs | None = None
        # The engine and the facade call these for each message: no step stands between.
        self.start: Callable[[str, ACKMessage, bool], PendingACK] = table.start
        self.take: Callable[[Client, str], int] = table.take
        self.hold: Callable[[str, HubMessage, bytes], int] = self.catching_up.hold
        self.ran_empty: Callable[[Client], None] = self.catching_up.ran_empty

    def join(self, others: Others) -> None:
        """Has messages go to users on other hubs, by the offline store."""
        if self._journal is None or self._storing is None:
            return
        parts = Parts(
            self._engine,
            self.table,
            self.parked_messages,
            self._journal,
            self._storing,
            self.catching_up,
        )
        over_hubs = self.over_hubs = OverHubs(
            others, parts, self._tell_failure, self.stored_elsewhere
        )
        self.table.elsewhere = others.elsewhere
        self.catching_up.suspect = over_hubs.suspect
        self.catching_up.own_name = lambda: others.name
        self.catching_up.unpark_all = over_hubs.unpark

    @property
    def journal(self) -> Journal:
        """The offline store, where there is one."""
        assert self._journal is not None
        return self._journal

    @property
    def storing(self) -> Storing:
        """The way into the offline store, where there is one."""
        assert self._storing is not None
        return self._storing

    @property
    def counters(self) -> AckCounters:
        """The counters since the last reset."""
        return self._counters

    @counters.setter
    def counters(self, counters: AckCounters) -> None:
        self._counters = self.table.counters = counters

    def store_latencies(self) -> dict[str, Histogram]:
        """Seconds that the store took to answer, by operation; none without a store."""
        return {} if self._journal is None else self._journal.access.latencies

    @property
    def count(self) -> int:
        """The number of pending messages."""
        return self.table.count

    @property
    def replaying(self) -> set[str]:
        """The users whose plain messages go through `hold`: a client of theirs catches up."""
        return self.table.replaying

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop from now on."""
        self.table.stopped = self._ended = False
        self.table.attach(loop)
        if self._journal is not None:
            self._journal.attach(loop)

    def is_in_use(self) -> bool:
        """Whether its hub runs, or has not run yet."""
        if self._ended:
            return False
        loop = self.table.loop
        return loop is None or not loop.is_closed()

    async def opened(self) -> None:
        """Returns once the store is open; raises what that failed with."""
        if self._journal is not None:
            await self._journal.access.opened()

    async def stop(self, timeout: float) -> None:
        """Stores what is pending, or ends it; the clients have gone already."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self.table.stopped = True
        if self._devices is not None:
            await self._devices.finish(max(deadline, loop.time() + STORE_GRACE))
        if self._journal is not None:
            await self._journal.stop_looking()
        stopped = HubStoppedError("the hub stopped before the message was acknowledged")
        for mailbox in list(self.table.mailboxes.values()):
            self.catching_up.end_all(mailbox, stopped)
        await self._empty_mailboxes(stopped)
        # The writing gets some time even where the clients have used it up.
        deadline = max(deadline, loop.time() + STORE_GRACE)
        if self._journal is not None:
            await self._journal.write_out(deadline)
        if self.over_hubs is not None:
            await self.over_hubs.finish(deadline)
        self.table.clear_timers()
        await in_turns(self.parked_messages, self._end_parked, AT_ONCE)
        if self._devices is not None:
            await self._devices.end(stopped)
        self._forget()
        if self._journal is not None:
            await self._journal.close(deadline + STORE_GRACE)
        self._ended = True
        self.table.loop = None

    async def _empty_mailboxes(self, error: Exception) -> None:
        table = self.table
        while table.mailboxes:
            mailbox = next(iter(table.mailboxes.values()))
            mailbox.lapsed.clear()
            if self._storing is not None:
                self._storing.park_some(mailbox, AT_ONCE)
            else:
                for pending in list(islice(mailbox.pending.values(), AT_ONCE)):
                    table.give_up(pending, error)
            table.release(mailbox)
            await asyncio.sleep(0)

    def _end_parked(self, pending: PendingACK) -> None:
        if pending.done():
            return
        if pending._stored:
            error = HubStoppedError("the hub stopped; the message is in the offline store")
            self.table.settle(pending, AckStatus.STORED, error)
        else:
            late = "the hub stopped before the offline store had taken the message"
            self.table.give_up(pending, OfflineStoreError(late))

    def _forget(self) -> None:
        if self.over_hubs is not None:
            self.over_hubs.forget()
        if self._devices is not None:
            self._devices.clear()
        if self._storing is not None:
            self._storing.forget()
        self.catching_up.forget()
        self.parked_messages.clear()
        self.table.forget()

    def forget(self) -> None:
        """The loop was closed under the hub: its tasks and timers went with it."""
        self._ended = True
        self.table.attach(None)
        self.catching_up.forget_loop()
        self._forget()
        if self._journal is not None:
            self._journal.forget()

    # --- for the facade ---

    def pending_of(self, client: Client) -> list[ACKMessage]:
        """The messages that an acknowledgement of this client would settle."""
        mailbox = self._mailbox_of(client)
        if mailbox is None:
            return []
        return [
            pending.message
            for pending in mailbox.pending.values()
            if self.table.counts_from(pending, client)
        ]

    async def count_pending(self, clients: Sequence[Client]) -> list[int]:
        """The length of `pending_of` each client; found in turns of the loop."""
        return await count_pending(self.table, self._engine.get_client_by_id, clients)

    async def count_stored(self, user_id: str) -> int | None:
        """The messages that the offline store holds for a user; None where there is no store.

        Raises:
            OfflineStoreError: they cannot be counted, or the store is away.
        """
        if self._journal is None:
            return None
        most_devices = self._config.max_devices if self._devices is not None else 0
        return await self._journal.count(user_id, most_devices)

    def awaits(self, client: Client) -> bool:
        """Whether an acknowledgement of this client's user is awaited."""
        mailbox = self._mailbox_of(client)
        return mailbox is not None and bool(mailbox.pending)

    def _mailbox_of(self, client: Client) -> Mailbox | None:
        return self.table.mailboxes.get(self.table.key_of(client))

    # --- clients come and go ---

    def entered(self, client: Client) -> None:
        """A client has connected: what its user has not acknowledged goes out again."""
        if self._devices is not None:
            self._devices.joined(client)
        mailbox = self._mailbox_of(client)
        if mailbox is None:
            if self._storing is None:
                return
            mailbox = self.table.mailbox_of(self.table.key_of(client), client.user_id)
        if self._storing is not None:
            self._storing.stay(mailbox)
        self.catching_up.entered(mailbox, client)
        self.table.release(mailbox)

    def left(self, client: Client) -> None:
        """A client's connection has gone."""
        self.catching_up.left(client)
        if self._devices is not None:
            self._devices.left(client)
        mailbox = self._mailbox_of(client)
        if mailbox is None:
            return
        others = self.table.clients_of(mailbox.key, mailbox.user_id)
        self.catching_up.left_mailbox(mailbox, client, others)
        if others:
            return
        mailbox.lapsed.clear()
        if self._storing is not None:
            self._storing.park(mailbox)
        else:
            self.table.release(mailbox)

    # --- for the table ---

    def key_of(self, client: Client) -> str:
        """The mailbox of a client, where each device has one of its own."""
        return key_of_device(client.user_id, client.device_id)

    def send_to_devices(self, user_id: str, message: ACKMessage) -> PendingACK:
        """`start` for a user, where each device has a mailbox of its own."""
        assert self._devices is not None
        return self._devices.send(user_id, message)

    def device_ended(self, pending: PendingACK) -> None:
        """A delivery to one device has come to its end."""
        assert self._devices is not None
        self._devices.ended(pending)

    def parked(self, mailbox: str, message_id: str) -> PendingACK | None:
        """The message with this id that waits for its user in the store."""
        return self.parked_messages.get(mailbox, message_id)

    def check_waiting(self) -> None:
        """PendingFullError where too much waits for the store to open already."""
        self.storing.check_waiting()

    def park(self, mailbox: Mailbox) -> None:
        """Moves a mailbox to the store: its user is away."""
        self.storing.park(mailbox)

    def delete(
        self, mailbox: str, message_id: str, origin: str | None, error: Exception | None
    ) -> None:
        """Removes an acknowledged message from the store."""
        if self.over_hubs is not None:
            self.over_hubs.acknowledged(mailbox, message_id, origin, error)
        self.journal.delete(mailbox, message_id)

    def delete_once_stored(self, pending: PendingACK) -> None:
        """A message was acknowledged while it was being stored: no page may bring it any more."""
        assert pending._storing is not None
        self.journal.delete_once_stored(pending._mailbox, pending.id, pending._storing)

    def spread_user(self, user_id: str) -> None:
        """A user of this hub is on another one as well, which is to have what is pending."""
        if self._devices is not None:
            self._devices.changed(user_id)
        if self.over_hubs is not None:
            self.over_hubs.spread(user_id)

    def spread(self, mailbox: Mailbox) -> None:
        """Has the clients of other hubs get what is pending in a mailbox."""
        if self._storing is not None:
            self._storing.spread(mailbox)

    def catch_up(self, mailbox: Mailbox, client: Client, line: list[PendingACK]) -> None:
        """Has a client catch up, with these messages besides what it is catching up with."""
        self.catching_up.catch_up(mailbox, client, line)

    def report(self, pending: PendingACK, error: Exception) -> None:
        """Tells the failure handlers that a message was not delivered."""
        if not self._is_told(pending):
            return
        if self.over_hubs is None or not self.over_hubs.report(pending, error):
            self._tell_failure(pending, error)

    def _tell_failure(self, pending: PendingACK, error: Exception) -> None:
        self._failures.report(
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
        if self._devices is None or pending._group is None:
            return True
        return self._devices.is_told(pending)

    async def accepted(self, pending: PendingACK) -> None:
        """Has a message written to the store, unless it is or has been acknowledged."""
        if pending._stored:
            return
        if self._storing is None or pending.done():
            await pending
        elif self._devices is not None and self._devices.is_of_user(pending):
            await self._devices.accepted(pending)
        else:
            await self._storing.accepted(pending)

    # --- for the journal ---

    def appended(self, pending: PendingACK, error: BaseException | None) -> None:
        """A message is in the store, or is not."""
        if self.storing.appended(pending, error) and self.over_hubs is not None:
            self.over_hubs.stored(pending, existed=error is not None)

    def entry_of(self, pending: PendingACK) -> bytes:
        """The bytes to store of a message."""
        return pending._data if self.over_hubs is None else self.over_hubs.entry_of(pending)

    async def before_delete(self, key: str, message_ids: Collection[str]) -> None:
        """Other hubs hear how messages have ended before these are deleted."""
        if self.over_hubs is not None:
            await self.over_hubs.before_delete(key, message_ids)

    def dropped(self, key: str, stored: StoredMessage, age: float | None) -> None:
        """The store has let go of a message: for its age in seconds, or, None, for its bound."""
        user_id = user_of_key(key)
        if is_of_devices(key):
            if self._devices is not None:
                self._devices.forgotten(user_id, stored.id)
            return
        mailbox = self.table.mailboxes.get(key)
        pending = self.parked_messages.pop(key, stored.id)
        if pending is None and mailbox is not None:
            pending = mailbox.pending.get(stored.id)
        if age is not None:
            reason, kind = SendFailureReason.TIMEOUT, "offline"
            why = f"user {user_id!a} did not come for it in {self._config.offline_max_age} s"
        else:
            reason, kind = SendFailureReason.PENDING_FULL, None
            why = (
                f"user {user_id!a} has {self._config.offline_limit} newer messages in the offline "
                "store"
            )
        error = AckDroppedError(stored.id, f"message {stored.id!a} was dropped: {why}")
        self.counters.acks_dropped += 1
        if pending is not None:
            self.table.settle(pending, AckStatus.DROPPED, error)
            if not self._is_told(pending):
                return
        entry = unpack(stored.data)
        failure = Failure.of_data(
            entry.data, user_id, reason, error, duration=age or 0.0, kind=kind
        )
        tell = partial(self._failures.report, failure, of_call=False)
        if self.over_hubs is None:
            tell()
        else:
            waits = entry.origin or ""
            self.over_hubs.tell_once(
                Ended(user_id, key, stored.id, "dropped", str(error), waits), tell
            )

    def stored_elsewhere(self, key: str) -> None:
        """Another process has stored messages for a user: its clients that are here get them."""
        if self.table.stopped:
            return
        user_id = user_of_key(key)
        if is_of_devices(key):
            if self._devices is not None:
                self._devices.changed(user_id)
            return
        for client in self._engine.get_clients_by_user(user_id):
            if self.table.key_of(client) == key:
                self.catching_up.look_again(client)

    def anything_stored_elsewhere(self) -> None:
        """Other processes may have stored messages for anybody: all clients look at the store."""
        self.catching_up.all_look_again()

    def keys_to_check(self) -> list[str]:
        """The mailboxes of which somebody waits for a message that the store should hold."""
        keys = self.parked_messages.keys()
        if self.over_hubs is not None:
            keys += [key for key in self.table.mailboxes if key not in keys]
        return keys

    def ids_to_check(self, key: str) -> list[str]:
        """The messages of a mailbox that somebody waits for."""
        ids = [pending.id for pending in self.parked_messages.of(key) if pending._stored]
        return ids if self.over_hubs is None else ids + self.over_hubs.to_check(key)

    async def checked(self, key: str, message_ids: Sequence[str], gone: list[str]) -> None:
        """Of these messages the store does not hold some any more, and not by our doing."""
        if self.over_hubs is not None:
            gone = await self.over_hubs.checked(key, message_ids, gone)
        for message_id in gone:
            self._gone(key, message_id)

    def _gone(self, key: str, message_id: str) -> None:
        pending = self.parked_messages.get(key, message_id)
        if pending is None or pending.done() or not pending._stored:
            return
        self.parked_messages.pop(key, message_id)
        text = (
            f"message {message_id!a} for user {pending.user_id!a} is not in the offline store any "
            "more: another process has delivered or dropped it, or the store has lost it"
        )
        error = AckDroppedError(message_id, text)
        if self.over_hubs is None:
            self.table.give_up(pending, error)
            return
        self.counters.acks_dropped += 1
        self.table.settle(pending, AckStatus.DROPPED, error)
        ended = Ended(pending.user_id, key, message_id, "dropped", text, "")
        self.over_hubs.tell_once(ended, partial(self._tell_failure, pending, error))

    def count_error(self) -> None:
        """The store has failed."""
        self.counters.offline_errors += 1
