"""The clients that catch up with their mailbox: the beginning and the end of that.

A client catches up when it has connected, when its outbox had no room for a message, and when
another process has stored a message for it. Meanwhile messages without acknowledgement wait behind
what it catches up with, so that nothing overtakes anything. replay.py has the catching up of one
client; here are all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

from wsc_fast._core.connection import Client
from wsc_fast._core.pending import AckTable, Mailbox, PendingACK
from wsc_fast.config import HubConfig
from wsc_fast.delivery.devices import Devices
from wsc_fast.delivery.entries import unpack
from wsc_fast.delivery.failures import Failure, reason_of
from wsc_fast.delivery.journal import Journal
from wsc_fast.delivery.needs import Needs
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.replay import Held, Replay
from wsc_fast.delivery.reporter import FailureReporter
from wsc_fast.errors import (
    ClientDisconnectedError,
    PendingFullError,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import AckStatus, HubMessage, decode_hub_message
from wsc_fast.stores.base import StoredMessage

# Clients that catch up once more in one turn of the loop.
CLIENTS_AT_ONCE = 20
# Seconds after which a client catches up once more, where the store could not be read.
REPLAY_AGAIN = 5.0


class CatchingUp:
    """The clients of one hub that catch up.

    Args:
        needs: of the hub.
        table: of what is pending.
        failures: hears of what is not sent.
        parked: the messages of users who are away.
        journal: the offline store; None where there is none.
        devices: of the users; None where a user has one mailbox.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        needs: Needs,
        table: AckTable,
        failures: FailureReporter,
        parked: Parked,
        journal: Journal | None,
        devices: Devices | None,
    ) -> None:
        self.table = table
        self._needs = needs
        self._failures = failures
        self._parked = parked
        self._journal = journal
        self._devices = devices
        # Messages that have gone from the store are sent from memory; where there are other hubs,
        # these are asked first (over_hubs.py).
        self.unpark_all: Callable[[Mailbox, Sequence[PendingACK]], object] = self._unpark_all
        # The name of this hub in the store; a hub alone has none there.
        self.own_name: Callable[[], str | None] = lambda: None
        # Where other hubs end messages of the store: is told which ones a reading did not bring.
        self.suspect: Callable[[str, Sequence[str]], None] | None = None
        # User -> how many of the user's clients catch up.
        self._count_of: dict[str, int] = {}
        # Clients that have caught up with what is in memory, but not with the store.
        self._behind: dict[Client, None] = {}
        self._behind_timer: asyncio.TimerHandle | None = None

    @property
    def journal(self) -> Journal:
        """The offline store, where there is one."""
        assert self._journal is not None
        return self._journal

    @property
    def settings(self) -> HubConfig:
        """The hub's settings of this moment."""
        return self._needs.settings()

    def forget(self) -> None:
        """Nobody catches up any more; nobody is told."""
        self._count_of.clear()
        self._behind.clear()
        if self._behind_timer is not None:
            self._behind_timer.cancel()
            self._behind_timer = None

    def forget_loop(self) -> None:
        """The loop was closed under the hub: what it was to call went with it."""
        self._behind_timer = None

    # --- messages without acknowledgement ---

    def hold(self, user_id: str, message: HubMessage, data: bytes) -> int:
        """Sends a message without acknowledgement to a user of whose clients some catch up.

        Returns how many clients it was queued or held for.
        """
        clients = self._needs.engine.get_clients_by_user(user_id)
        if not clients:
            raise UserOfflineError(f"user {user_id!a} has no connected client")
        item = Held(data, int(message.priority))
        refused: list[Exception] = []
        for client in clients:
            error = self._hold_for(client, item)
            if error is not None:
                refused.append(error)
        if len(refused) == len(clients):
            raise refused[0]
        for error in refused:
            self._report_held(item, user_id, error)
        return len(clients) - len(refused)

    def _hold_for(self, client: Client, item: Held) -> Exception | None:
        replay = self._replay_of(client)
        if replay is None:
            return self.table.send_plain(client, item.data, item.priority)
        if replay.hold(item):
            return None
        return PendingFullError(
            f"{replay.held} messages for user {client.user_id!a} wait behind its backlog already "
            f"(HubConfig.outbox_messages, outbox_bytes)"
        )

    def send_held(self, replay: Replay, item: Held) -> None:
        """The turn of a message that a replay held has come."""
        error = self.table.send_plain(replay.client, item.data, item.priority)
        if error is not None:
            self._report_held(item, replay.mailbox.user_id, error)

    def _report_held(self, item: Held, user_id: str, error: Exception) -> None:
        failure = Failure.of_data(item.data, user_id, reason_of(error), error)
        self._failures.report(failure, of_call=False)

    # --- beginning ---

    def _replay_of(self, client: Client) -> Replay | None:
        mailbox = self.table.mailboxes.get(self.table.key_of(client))
        return None if mailbox is None else mailbox.replays.get(client)

    def catch_up(
        self,
        mailbox: Mailbox,
        client: Client,
        line: list[PendingACK],
        *,
        sent: list[PendingACK] | None = None,
        from_store: bool = False,
        again: bool = False,
    ) -> None:
        """Has a client catch up, with these messages besides what it is catching up with.

        Args:
            mailbox: of the client.
            client: the one that is behind.
            line: what is pending for it.
            sent: what it has got already, of what the store may hold.
            from_store: whether to read the store, where there is one.
            again: whether what has timed out is sent again, too.
        """
        from_store = from_store and self._journal is not None
        replay: Replay | None = mailbox.replays.get(client)
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
            self._count_of[user_id] = self._count_of.get(user_id, 0) + 1
            self.table.replaying.add(user_id)
            replay.start()

    def entered(self, mailbox: Mailbox, client: Client) -> None:
        """A client has connected: what its mailbox holds goes out again."""
        line = self._for(mailbox, client)
        if self.suspect is not None:
            # Another hub may have ended what is stored: it comes as far as the store has it.
            line = [pending for pending in line if not pending._stored]
        self.catch_up(mailbox, client, line, from_store=True, again=True)

    def look_again(self, client: Client, *, again: bool = False) -> None:
        """A client reads the store once more; `again` as of `catch_up`."""
        mailbox = self.table.mailbox_of(self.table.key_of(client), client.user_id)
        sent = self._for(mailbox, client)
        self.catch_up(mailbox, client, [], sent=sent, from_store=True, again=again)

    def all_look_again(self) -> None:
        """All clients read the store once more, a few in each turn of the loop."""
        self._behind.update(dict.fromkeys(self._needs.engine.open_clients()))
        self._later(0.0)

    def _for(self, mailbox: Mailbox, client: Client) -> list[PendingACK]:
        if not mailbox.directed:
            return list(mailbox.pending.values())
        counts_from = self.table.counts_from
        return [each for each in mailbox.pending.values() if counts_from(each, client)]

    def _later(self, seconds: float) -> None:
        """Has the clients that are behind catch up once more, unless that is due already."""
        loop = self.table.loop
        if self._behind and self._behind_timer is None and loop is not None:
            self._behind_timer = loop.call_later(seconds, self._again)

    def _again(self) -> None:
        self._behind_timer = None
        for client in list(islice(self._behind, CLIENTS_AT_ONCE)):
            del self._behind[client]
            if client.is_connected() and not self.table.stopped:
                self.look_again(client, again=True)
        self._later(0.0)

    # --- the end ---

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
            self._needs.report(error)
        self._end(replay, error or _client_left(client))
        if not complete and self._journal is not None and client.is_connected():
            self._behind[client] = None
            self._later(REPLAY_AGAIN)
        self.table.release(mailbox)

    def left(self, client: Client) -> None:
        """A client has gone, which need not have a mailbox."""
        self._behind.pop(client, None)

    def left_mailbox(self, mailbox: Mailbox, client: Client, others: list[Client]) -> None:
        """A client has gone, and these are the others of its mailbox."""
        replay: Replay | None = mailbox.replays.get(client)
        if replay is not None:
            self._end(replay, _client_left(client) if others else _user_left(client.user_id))
        if others:
            self._redirect(mailbox, client, others)

    def _redirect(self, mailbox: Mailbox, left: Client, others: list[Client]) -> None:
        """The messages for one client alone go to the others of the user."""
        if not mailbox.directed:
            return
        line = [
            pending
            for pending in mailbox.pending.values()
            if pending._client_id == left.id and self.table.counts_from(pending, others[0])
        ]
        if line:
            for client in others:
                self.catch_up(mailbox, client, line)

    def end_all(self, mailbox: Mailbox, error: Exception | None = None) -> None:
        """Ends the replays of a mailbox.

        Args:
            mailbox: of which nobody catches up from now on.
            error: why what they held is not sent; None: because the user has left.
        """
        for replay in list(mailbox.replays.values()):
            self._end(replay, error or _user_left(mailbox.user_id))

    def _end(self, replay: Replay, error: Exception) -> None:
        mailbox = replay.mailbox
        del mailbox.replays[replay.client]
        self._count_of[mailbox.user_id] -= 1
        if not self._count_of[mailbox.user_id]:
            del self._count_of[mailbox.user_id]
            self.table.replaying.discard(mailbox.user_id)
        for item in replay.end():
            self._report_held(item, mailbox.user_id, error)

    # --- messages of the store ---

    async def prepare(self, client: Client) -> None:
        """To be awaited before the store is read for a client."""
        if self._devices is not None:
            await self._devices.known(client.user_id)

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
        mailbox, table = replay.mailbox, self.table
        known = table.of_id(mailbox, stored.id)
        if known:
            return next((each for each in known if table.counts_from(each, replay.client)), None)
        if stored.id in acknowledged or self.journal.is_deleted(mailbox.key, stored.id):
            return None
        if not again and stored.id in mailbox.lapsed:
            return None
        pending = self._parked.pop(mailbox.key, stored.id)
        if pending is None:
            entry = unpack(stored.data)
            origin = None if entry.origin == self.own_name() else entry.origin
            if self.suspect is not None and stored.id not in mailbox.lapsed:
                self._others_look(mailbox, replay.client, stored.position)
            pending = table.found(mailbox, stored.id, entry.data, origin, entry.timeout)
            try:
                pending._priority = int(decode_hub_message(entry.data).priority)
            except ValidationError:
                log.warning("the offline store holds something that is no HubMessage")
        mailbox.lapsed.pop(stored.id, None)
        pending._stored = True
        pending.status = AckStatus.PENDING
        table.enlist(mailbox, pending)
        return pending

    def _others_look(self, mailbox: Mailbox, client: Client, position: int) -> None:
        """Another hub has stored a message that a client here gets: the others get it as well."""
        for other in self.table.clients_of(mailbox.key, mailbox.user_id):
            replay: Replay | None = mailbox.replays.get(other)
            if other is not client and (replay is None or replay.has_passed(position)):
                sent = self._for(mailbox, other)
                self.catch_up(mailbox, other, [], sent=sent, from_store=True)

    def expected(self, replay: Replay) -> set[str]:
        """The ids of messages that are to be sent, and that the store should hold."""
        if self.suspect is None:
            return set()
        return {
            pending.id
            for pending in replay.mailbox.pending.values()
            if pending._stored and not replay.has_sent(pending)
        }

    def all_read(self, mailbox: Mailbox, expected: set[str]) -> None:
        """A replay has read all that the store holds for a mailbox, but not the expected ids.

        A message that is parked still has gone from the store: another process has removed it, or
        the store has lost it. It is sent from memory.
        """
        if expected and self.suspect is not None:
            self.suspect(mailbox.key, list(expected))
        gone = [
            pending
            for pending in self._parked.of(mailbox.key)
            if pending._storing is None and pending.status is AckStatus.STORED
        ]
        for pending in gone:
            pending._stored = False
        if gone:
            self.unpark_all(mailbox, gone)

    def _unpark_all(self, mailbox: Mailbox, gone: Sequence[PendingACK]) -> None:
        for pending in gone:
            self.unpark(mailbox, pending)

    def unpark(self, mailbox: Mailbox, pending: PendingACK) -> None:
        """Its user is back: a parked message is sent from memory."""
        self._parked.pop(mailbox.key, pending.id)
        pending.status = AckStatus.PENDING
        self.table.enlist(mailbox, pending)
        self.table.send_live(mailbox, pending)
        for replay in mailbox.replays.values():
            replay.put_older(pending)


def _client_left(client: Client) -> ClientDisconnectedError:
    return ClientDisconnectedError(f"client {client.id!a} left before the message was sent to it")


def _user_left(user_id: str) -> UserOfflineError:
    return UserOfflineError(f"user {user_id!a} left before the message was sent")
