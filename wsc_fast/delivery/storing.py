"""The way of messages from memory into the offline store.

A message is stored when somebody waits for `accepted`, when its user is away, and when the hub
stops. All messages that were sent to that user before it are stored first, so that the store's
order is the order of sending. When the last client of a mailbox has gone, the mailbox is parked:
its messages move to the store, and memory keeps those alone whose PendingACK a caller holds.

Nothing here takes more than a bounded number of steps in one turn of the loop, however many
messages or users are concerned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from itertools import islice

from wsc_fast._core.pending import AckTable, Mailbox, PendingACK
from wsc_fast.delivery.catching_up import CatchingUp
from wsc_fast.delivery.entries import unpack
from wsc_fast.delivery.journal import Journal
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.store_access import store_error
from wsc_fast.errors import MessageExistsError, PendingFullError, ValidationError
from wsc_fast.messages import AckStatus, is_same_message
from wsc_fast.stores.base import StoredMessage

# Messages that are parked or stored in one turn of the loop.
AT_ONCE = 100


class Storing:
    """The way of the messages of one hub into its offline store.

    Args:
        table: of what is pending.
        parked: the messages of users who are away.
        journal: the offline store.
        catching_up: the clients that catch up.
        most_waiting: bytes that may wait for the store to open.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        table: AckTable,
        parked: Parked,
        journal: Journal,
        catching_up: CatchingUp,
        most_waiting: int,
    ) -> None:
        self._table = table
        self._parked = parked
        self._journal = journal
        self._catching_up = catching_up
        self._most_waiting = most_waiting
        # Mailboxes whose last client has gone, and whose messages are not parked yet.
        self._leaving: dict[str, Mailbox] = {}
        self._parking = False
        # By mailbox, how many of its messages are still to be stored for other hubs, or left out.
        self._spreading: dict[Mailbox, int] = {}

    def forget(self) -> None:
        """Nothing is to be parked any more; nobody is told."""
        self._leaving.clear()
        self._parking = False
        self._spreading.clear()

    # --- parking ---

    def park(self, mailbox: Mailbox) -> None:
        """Moves a mailbox to the store: its user is away."""
        self._catching_up.end_all(mailbox)
        if mailbox.key in self._leaving:
            return  # its turn comes
        self.park_some(mailbox, AT_ONCE)
        self._table.release(mailbox)
        if mailbox.pending:
            self._leaving[mailbox.key] = mailbox
            if not self._parking:
                self._park_soon()

    def stay(self, mailbox: Mailbox) -> None:
        """A client of the mailbox has connected: what is not parked yet is not parked."""
        self._leaving.pop(mailbox.key, None)

    def _park_soon(self) -> None:
        loop = self._table.loop
        assert loop is not None
        self._parking = True
        loop.call_soon(self._park_on)

    def _park_on(self) -> None:
        """Parks the next few messages of the users who have left."""
        self._parking = False
        left = AT_ONCE
        while self._leaving and left > 0:
            mailbox = next(iter(self._leaving.values()))
            left -= self.park_some(mailbox, left) + 1
            if not mailbox.pending:
                self._leaving.pop(mailbox.key, None)
                self._table.release(mailbox)
        if self._leaving and self._table.loop is not None:
            self._park_soon()

    def park_some(self, mailbox: Mailbox, most: int) -> int:
        """Parks so many messages of a mailbox at most; returns how many."""
        some = list(islice(mailbox.pending.values(), most))
        for pending in some:
            if not pending._stored and pending._storing is None:
                self._append(pending)
            self._table.renew(pending)  # when the user is back
            self._table.delist(mailbox, pending)
            pending._hold_by_waiters()
            pending.status = AckStatus.STORED
            known = self._parked.get(mailbox.key, pending.id)
            if known is not None and not known.done():
                self._table.follow(known, pending)
            else:
                self._parked.add(pending)
        if not mailbox.pending:
            mailbox.unstored = None
            mailbox.unstored_stale = False
        return len(some)

    # --- storing ---

    def check_waiting(self) -> None:
        """PendingFullError where too much waits for the store to open already."""
        if self._journal.waiting_bytes >= self._most_waiting:
            raise PendingFullError(
                f"{self._journal.waiting_bytes} bytes of messages wait for the offline store to "
                "open already (ACKConfig.max_pending_bytes)"
            )

    def _append(self, pending: PendingACK) -> None:
        pending._storing = self._journal.append(pending)

    async def accepted(self, pending: PendingACK) -> None:
        """Has a message that is pending written to the store, unless it ends before."""
        await self._store_up_to(pending)
        storing = pending._storing
        if storing is None or pending.done():
            if not pending._stored:
                await pending
            return
        # The end of the message ends the waiting, too: the store may take longer than the hub.
        accepted = asyncio.get_running_loop().create_future()
        pending._tell_later(accepted)
        storing.add_done_callback(partial(_pass_on, pending, accepted))
        await accepted

    async def _store_up_to(self, pending: PendingACK) -> None:
        """Stores a message, and first whatever was sent to its user before it."""
        while not (pending._storing or pending._stored or pending.done()):
            mailbox = self._table.mailboxes[pending._mailbox]
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

    def spread(self, mailbox: Mailbox) -> None:
        """Stores what is pending, so that other hubs have it; not what is for one client alone."""
        goes_on = mailbox in self._spreading
        if mailbox.unstored_stale:
            self._list_unstored(mailbox)
        self._spreading[mailbox] = len(mailbox.unstored or ())
        if not goes_on:
            self._spread_some(mailbox, True)

    def _spread_some(self, mailbox: Mailbox, first: bool) -> None:
        left = self._spreading.pop(mailbox, 0)
        unstored = mailbox.unstored
        if not unstored:
            return
        for _ in range(min(AT_ONCE, left, len(unstored))):
            each = unstored.popleft()
            if each.done() or each._stored or each._storing is not None:
                continue
            if each._client_id is not None:
                unstored.append(each)
            else:
                self._append(each)
        loop = self._table.loop
        if left > AT_ONCE and loop is not None:
            self._spreading[mailbox] = left - AT_ONCE
            loop.call_soon(self._spread_on, mailbox)
        elif not first:
            # Messages that came meanwhile stand before older ones for one client.
            mailbox.unstored_stale = mailbox.unstored_stale or bool(unstored)

    def _spread_on(self, mailbox: Mailbox) -> None:
        if self._table.mailboxes.get(mailbox.key) is mailbox and not self._table.stopped:
            self._spread_some(mailbox, False)
        else:
            self._spreading.pop(mailbox, None)

    def _list_unstored(self, mailbox: Mailbox) -> deque[PendingACK]:
        # Appends have failed: all that are not stored, in their order.
        mailbox.unstored_stale = False
        mailbox.unstored = unstored = deque(
            each for each in mailbox.pending.values() if not each._stored and each._storing is None
        )
        return unstored

    def appended(self, pending: PendingACK, error: BaseException | None) -> bool:
        """A message is in the store, or is not; returns whether it is."""
        error = _trouble(pending, error)
        if error is None:
            self._table.counters.offline_stored += 1
            pending._stored = True
            if pending.status in (AckStatus.CONFIRMED, AckStatus.FAILED):
                self._table.owner.delete(
                    pending._mailbox, pending.id, pending._origin, pending._error
                )
                return False
        if pending.status is AckStatus.STORED:
            self._appended_parked(pending, error)
        elif error is not None and not pending.done():
            mailbox = self._table.mailboxes.get(pending._mailbox)
            if mailbox is not None:
                mailbox.unstored_stale = True
        return error is None

    def _appended_parked(self, pending: PendingACK, error: Exception | None) -> None:
        """`appended` for a message whose user was away."""
        if (error is None or _is_tried_again(error)) and self._is_back(pending):
            # Its user came back while it was being stored.
            self.send_parked(pending)
        elif error is not None:
            # It is nowhere.
            self._parked.pop(pending._mailbox, pending.id)
            self._table.give_up(pending, error)

    def send_parked(self, pending: PendingACK) -> None:
        """A message whose user is back goes out from memory."""
        mailbox = self._table.mailbox_of(pending._mailbox, pending.user_id)
        self._catching_up.unpark(mailbox, pending)

    def _is_back(self, pending: PendingACK) -> bool:
        return (
            not self._table.stopped
            and self._parked.get(pending._mailbox, pending.id) is pending
            and self._table.has_clients(pending._mailbox, pending.user_id)
        )


def _pass_on(
    pending: PendingACK,
    accepted: asyncio.Future[object],
    storing: asyncio.Future[list[StoredMessage]],
) -> None:
    """Tells the caller of `accepted` what became of the storing."""
    if accepted.done():
        return
    error = asyncio.CancelledError() if storing.cancelled() else storing.exception()
    trouble = _trouble(pending, error)
    if trouble is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(trouble)


def _is_tried_again(error: Exception) -> bool:
    """Whether the same message may be stored later."""
    return not isinstance(error, ValidationError)


def _trouble(pending: PendingACK, error: BaseException | None) -> Exception | None:
    """Why a message is not stored; None where the store holds the very message."""
    if error is None:
        return None
    if not isinstance(error, MessageExistsError):
        return store_error(error)
    if is_same_message(unpack(error.data).data, pending._data):
        return None
    return ValidationError(
        f"the offline store holds another message with the id {pending.id!a} for user "
        f"{pending.user_id!a}"
    )
