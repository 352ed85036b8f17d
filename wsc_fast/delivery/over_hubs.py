"""Deliveries of one hub beside those of others that share its bus and its offline store.

The store is where hubs meet: a message for a user who is on another hub goes there, and the others
are told to look. The hub whose client acknowledges a message tells how it has ended before it is
deleted. So a hub that finds its message gone finds the outcome on the bus, also where the word of
it was lost. docs/architecture.md draws the way of such a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from wsc_fast._core.engine import Engine
from wsc_fast._core.pending import AckTable, Mailbox, PendingACK
from wsc_fast.delivery.catching_up import CatchingUp
from wsc_fast.delivery.devices import user_of_key
from wsc_fast.delivery.entries import pack
from wsc_fast.delivery.journal import Journal
from wsc_fast.delivery.others import Ended, Others
from wsc_fast.delivery.parked import Parked
from wsc_fast.delivery.storing import Storing
from wsc_fast.errors import (
    AckDroppedError,
    AckFailedError,
    AckTimeoutError,
    BusError,
    OfflineStoreError,
)
from wsc_fast.messages import AckStatus
from wsc_fast.turns import in_turns

# Messages that have timed out, and of which the hub knows that they may be sent anew.
MOST_TIMED_OUT = 1_000
# Messages that end in one turn of the loop.
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one hub's deliveries that this works on."""

    engine: Engine
    table: AckTable
    parked: Parked
    journal: Journal
    storing: Storing
    catching_up: CatchingUp


class OverHubs:
    """The deliveries of one hub that concern other hubs.

    Args:
        others: the other hubs.
        parts: of this hub's deliveries.
        tell: tells the failure handlers of a message that was not delivered.
        look: has the clients of a mailbox that are here read the store.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        others: Others,
        parts: Parts,
        tell: Callable[[PendingACK, Exception], None],
        look: Callable[[str], None],
    ) -> None:
        self._others = others
        self._engine = parts.engine
        self._table = parts.table
        self._parked = parts.parked
        self._journal = parts.journal
        self._storing = parts.storing
        self._catching_up = parts.catching_up
        self._tell = tell
        self._look = look
        # By mailbox and id, the ends of messages that are about to be deleted; with the call that
        # tells the failure handlers, where one is due.
        self._ended: dict[tuple[str, str], tuple[Ended, Callable[[], object] | None]] = {}
        self._timed_out: dict[tuple[str, str], None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- messages of this hub ---

    def entry_of(self, pending: PendingACK) -> bytes:
        """The bytes to store of a message."""
        origin = pending._origin or self._others.name
        return pack(pending._data, origin, pending._own_timeout)

    def spread(self, user_id: str) -> None:
        """A user of this hub is on another one as well, which is to have what is pending."""
        keys = {user_id, *map(self._table.key_of, self._engine.get_clients_by_user(user_id))}
        for key in keys:
            mailbox: Mailbox | None = self._table.mailboxes.get(key)
            if mailbox is not None and mailbox.pending:
                self._storing.spread(mailbox)
                self._others.stored(user_id, key)  # some may be stored already

    def stored(self, pending: PendingACK, existed: bool) -> None:
        """A message is in the store.

        Args:
            pending: the message.
            existed: it was there before, as another hub has sent it.
        """
        key = pending._mailbox, pending.id
        if existed or self._timed_out.pop(key, _NEVER) is not _NEVER:
            # A hub that has sent it until it timed out sends it once more.
            self._run(self._settle([self._end_of(pending, "again", "")]))
        elif self._others.is_elsewhere(pending.user_id):
            self._others.stored(pending.user_id, pending._mailbox)

    def _end_of(self, pending: PendingACK, outcome: str, text: str) -> Ended:
        return Ended(
            pending.user_id, pending._mailbox, pending.id, outcome, text, pending._origin or ""
        )

    # --- messages that end here ---

    def acknowledged(
        self, key: str, message_id: str, origin: str | None, error: Exception | None
    ) -> None:
        """A client has acknowledged a stored message, which is about to be deleted."""
        user_id = user_of_key(key)
        failed = isinstance(error, AckFailedError)
        # That a message has failed is to be told once. So the bus decides, also where this hub does
        # not know yet that the user is elsewhere as well.
        if not failed and not self._concerns_others(user_id, origin):
            return
        ended = Ended(
            user_id,
            key,
            message_id,
            "failed" if failed else "confirmed",
            str(error) if failed else "",
            origin or "",
        )
        self._ended[key, message_id] = ended, None

    def _concerns_others(self, user_id: str, origin: str | None) -> bool:
        is_of_other = origin is not None and origin != self._others.name
        return is_of_other or self._others.is_elsewhere(user_id)

    async def before_delete(self, key: str, message_ids: Collection[str]) -> None:
        """To be awaited before messages are deleted: others find the outcomes then."""
        found = [self._ended.pop((key, each), None) for each in message_ids]
        ended = [each for each in found if each is not None]
        if not ended:
            return
        counts = await self._others.settle([each for each, _ in ended])
        for (_, tell), is_first in zip(ended, counts, strict=True):
            if tell is not None and is_first:
                tell()

    def report(self, pending: PendingACK, error: Exception) -> bool:
        """Tells the failure handlers of a message that other hubs may tell of; else returns False.

        A client has refused it here, or it has timed out, and the same may have happened there. Or
        the store has failed, and may have it all the same.
        """
        key = pending._mailbox, pending.id
        if isinstance(error, AckFailedError):
            if key in self._ended:
                self._ended[key] = self._ended[key][0], lambda: self._tell(pending, error)
                return True
            if pending._storing is None:
                return False  # no other hub can have it
            # Its append is under way: it is deleted behind that.
            self.tell_once(
                self._end_of(pending, "failed", str(error)), lambda: self._tell(pending, error)
            )
            return True
        if isinstance(error, AckTimeoutError):
            if not pending._stored and pending._storing is None:
                return False
            self._remember_timeout(*key)
            ended = self._end_of(pending, "timeout", str(error))
        elif isinstance(error, OfflineStoreError):
            ended = self._end_of(pending, "dropped", str(error))
        else:
            return False
        self.tell_once(ended, lambda: self._tell(pending, error))
        return True

    def tell_once(self, ended: Ended, tell: Callable[[], object]) -> None:
        """Tells of the end of a message, if no other hub has done so."""
        self._run(self._tell_once(ended, tell))

    async def _tell_once(self, ended: Ended, tell: Callable[[], object]) -> None:
        counts = await self._others.settle([ended])
        if counts[0]:
            tell()

    async def _settle(self, ended: Sequence[Ended]) -> None:
        await self._others.settle(ended)

    def _remember_timeout(self, key: str, message_id: str) -> None:
        self._timed_out[key, message_id] = None
        if len(self._timed_out) > MOST_TIMED_OUT:
            del self._timed_out[next(iter(self._timed_out))]

    # --- messages that end elsewhere ---

    def settled(self, key: str, message_id: str, outcome: str, text: str) -> None:
        """A message has ended on another hub."""
        if outcome == "again":
            self._send_again(key, message_id)
        elif outcome in ("confirmed", "failed"):
            failed = AckFailedError(message_id, text) if outcome == "failed" else None
            status = AckStatus.CONFIRMED if failed is None else AckStatus.FAILED
            self._end_all(key, message_id, status, failed)
        elif outcome == "timeout":
            self._remember_timeout(key, message_id)
            self._end_parked(key, message_id, AckStatus.TIMEOUT, AckTimeoutError(message_id, text))
        elif outcome == "dropped":
            self._end_all(
                key, message_id, AckStatus.DROPPED, AckDroppedError(message_id, text), False
            )

    def _send_again(self, key: str, message_id: str) -> None:
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        if mailbox is not None:
            mailbox.lapsed.pop(message_id, None)
            self._table.release(mailbox)
        self._look(key)

    def _end_all(
        self,
        key: str,
        message_id: str,
        status: AckStatus,
        error: Exception | None,
        delete: bool = True,
    ) -> None:
        """Ends each copy of a message that this hub has, without a word to others."""
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        may_come = self._end_parked(key, message_id, status, error)
        if mailbox is not None:
            may_come = True  # with the next page that a client here reads
            mailbox.lapsed.pop(message_id, None)
            for replay in mailbox.replays.values():
                replay.acknowledged(message_id)
            for pending in self._table.of_id(mailbox, message_id):
                self._end(pending, status, error)
            self._table.release(mailbox)
        if may_come and delete:
            # The other hub deletes it as well, unless it is killed before.
            self._journal.delete(key, message_id)

    def _end_parked(
        self, key: str, message_id: str, status: AckStatus, error: Exception | None
    ) -> bool:
        """Ends a message that somebody awaits here, and whose user is not; whether there is one."""
        pending = self._parked.pop(key, message_id)
        if pending is None or pending.done():
            return False
        self._end(pending, status, error)
        return True

    def _end(self, pending: PendingACK, status: AckStatus, error: Exception | None) -> None:
        pending._stored = False  # it is deleted by the hub that has told of its end
        self._table.settle(pending, status, error)

    # --- what the store does not hold any more ---

    def to_check(self, key: str) -> list[str]:
        """The messages of a mailbox that others may have ended without our hearing of it."""
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        if mailbox is None:
            return []
        return [
            pending.id
            for pending in mailbox.pending.values()
            if pending._stored and pending._retransmissions
        ]

    async def checked(
        self, key: str, message_ids: Sequence[str], gone: Collection[str]
    ) -> list[str]:
        """Ends messages of whose end the bus knows.

        Args:
            key: of the mailbox.
            message_ids: those that were looked for.
            gone: those that the store does not hold.

        Returns:
            list[str]: those of `gone` of which nothing is known.
        """
        try:
            outcomes = await self._others.outcomes(user_of_key(key), key, message_ids)
        except BusError:
            return []  # the next check knows more
        lost: list[str] = []
        for message_id, outcome in zip(message_ids, outcomes, strict=True):
            if outcome is not None and outcome[0] != "again":
                self.settled(key, message_id, *outcome)
            elif message_id in gone:
                lost.append(message_id)
        for message_id in lost:
            self._lost(key, message_id)
        return lost

    def suspect(self, key: str, message_ids: Sequence[str]) -> None:
        """A reading of the whole store did not bring messages that it should hold.

        They go to nobody until the bus has said whether they have ended.
        """
        for pending in self._here(key, message_ids):
            self._table.renew(pending)
        self._run(self._check(key, message_ids))

    def _here(self, key: str, message_ids: Sequence[str]) -> list[PendingACK]:
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        if mailbox is None:
            return []
        return [
            each for message_id in message_ids for each in self._table.of_id(mailbox, message_id)
        ]

    async def _check(self, key: str, message_ids: Sequence[str]) -> None:
        await self.checked(key, message_ids, message_ids)
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        for pending in self._here(key, message_ids):
            if mailbox is not None and pending._is_open():
                self._table.send_live(mailbox, pending)

    def _lost(self, key: str, message_id: str) -> None:
        """The store has lost a message, or the end of it is forgotten."""
        mailbox: Mailbox | None = self._table.mailboxes.get(key)
        for pending in [] if mailbox is None else self._table.of_id(mailbox, message_id):
            if not pending._stored or pending._storing is not None:
                continue
            if pending._origin is None:
                pending._stored = False
                assert mailbox is not None
                mailbox.unstored_stale = True
                if self._others.is_elsewhere(pending.user_id):
                    self._storing.spread(mailbox)
            else:
                self._end_as_gone(pending)

    def _end_as_gone(self, pending: PendingACK) -> None:
        """A message of another hub has gone from the store: that hub knows more of it."""
        text = f"message {pending.id!a} is not in the offline store any more"
        self._end(pending, AckStatus.DROPPED, AckDroppedError(pending.id, text))

    def unpark(self, mailbox: Mailbox, pending: Sequence[PendingACK]) -> None:
        """Parked messages have gone from the store: they go out unless they have ended."""
        self._run(self._unpark(mailbox, list(pending)))

    async def _unpark(self, mailbox: Mailbox, messages: list[PendingACK]) -> None:
        ids = [pending.id for pending in messages]
        outcomes: Sequence[tuple[str, str] | None]
        is_known = True
        try:
            outcomes = await self._others.outcomes(mailbox.user_id, mailbox.key, ids)
        except BusError:
            outcomes = [None] * len(ids)  # one copy too many is better than none
            is_known = False

        def go_on(both: tuple[PendingACK, tuple[str, str] | None]) -> None:
            pending, outcome = both
            if outcome is not None and outcome[0] != "again":
                self.settled(mailbox.key, pending.id, *outcome)
            elif self._parked.get(mailbox.key, pending.id) is pending and not pending.done():
                if pending._origin is None:
                    self._storing.send_parked(pending)
                elif is_known:
                    self._parked.pop(mailbox.key, pending.id)
                    self._end_as_gone(pending)

        await in_turns(list(zip(messages, outcomes, strict=True)), go_on, AT_ONCE)

    # --- life ---

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        loop = self._table.loop
        if loop is None:
            coroutine.close()
            return
        task = loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, deadline: float) -> None:
        """The hub stops: waits for what others are told, until a time of the loop's clock."""
        loop = asyncio.get_running_loop()
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed."""
        self._ended.clear()
        self._timed_out.clear()
        self._tasks.clear()


_NEVER = object()
