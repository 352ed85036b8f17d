"""One client catches up with its mailbox: it gets all that waits, in order, before it is live.

    the store   what the offline store holds, page by page, where the client has just connected
    the line    what was pending, and what is sent meanwhile, with acknowledgement or without

One task sends, paced by the client's outbox and by how much the client has not acknowledged. It
ends in a turn of the loop in which nothing is left, so that nothing can slip in; from then on the
client gets everything at once. The other clients of the mailbox take no notice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

from wsc_fast._core.pending import AckTable, CatchUp, Mailbox, PendingACK
from wsc_fast.delivery.failures import outside_handlers

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.config import HubConfig
    from wsc_fast.delivery.journal import Journal
    from wsc_fast.stores.base import StoredMessage

# A replay has at most so much out without an acknowledgement, in messages and in bytes.
WINDOW = 1_000
WINDOW_BYTES = 4 << 20
# Messages and bytes in a client's outbox up to which a replay goes on sending; at most half of what
# the outbox may hold.
REPLAY_MESSAGES = 256
REPLAY_BYTES = 1 << 18
# A replay reads the store so often in vain, after pauses that double, then goes on without it.
READ_ATTEMPTS = 4
READ_PAUSE = 0.1


class Held(msgspec.Struct, frozen=True, eq=False):
    """A message without acknowledgement that must not overtake a replay."""

    data: bytes  # as it goes on the wire
    priority: int


class ClientLeftError(Exception):
    """The client of a replay is closing or gone."""


class Owner(Protocol):
    """The interface that a replay needs of its owner."""

    table: AckTable

    @property
    def journal(self) -> Journal:
        """The offline store, where there is one."""

    @property
    def settings(self) -> HubConfig:
        """The hub's settings of this moment."""

    async def prepare(self, client: Client) -> None:
        """To be awaited before the store is read for a client."""

    def adopt(
        self, replay: Replay, stored: StoredMessage, acknowledged: set[str], *, again: bool
    ) -> PendingACK | None:
        """Makes a message of the store pending, unless it is or has been acknowledged."""

    def all_read(self, mailbox: Mailbox, expected: set[str]) -> None:
        """A replay has read all that the store holds for a mailbox, but not the expected ids."""

    def expected(self, replay: Replay) -> set[str]:
        """The ids of messages that are to be sent, and that the store should hold."""

    def send_held(self, replay: Replay, item: Held) -> None:
        """The turn of a message that a replay held has come."""

    def caught_up(self, replay: Replay, complete: bool, error: Exception | None) -> None:
        """A replay has come to its end, or was ended."""


class Replay(CatchUp):
    """Brings one client up to date.

    Args:
        owner: the one that has begun it.
        mailbox: of the client's user, or device.
        client: the one that is behind.
        line: what is pending for it.
        sent: what it has got already, of what the store may hold.
        from_store: whether to read the store first.
        again: whether what has timed out is sent again, too.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        owner: Owner,
        mailbox: Mailbox,
        client: Client,
        line: list[PendingACK],
        *,
        sent: list[PendingACK],
        from_store: bool,
        again: bool,
    ) -> None:
        self.client = client
        self.mailbox = mailbox
        self._owner = owner
        self._table = owner.table
        self._line: deque[PendingACK | Held] = deque(line)
        # Messages that were sent since it began. They go by the line, also where the store holds
        # them, so that they come behind the messages that are held.
        self._later: set[PendingACK] = set()
        # Messages that it has sent and nobody has settled.
        self._sent = set(sent)
        self._sent_bytes = sum(len(pending._data) for pending in sent)
        self._from_store = from_store
        self._again = again
        self._reading = False
        self._after = 0  # the position of the last message that was read
        self._acknowledged: set[str] = set()  # since the page under way was asked for
        self._held = 0
        self._held_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; to be called once the mailbox knows it."""
        self._task = self._loop().create_task(self._run())

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self._table.loop
        assert loop is not None
        return loop

    # --- what the mailbox tells ---

    def put(self, pending: PendingACK) -> None:
        """A message was sent: it goes out when its turn comes."""
        self._line.append(pending)
        self._later.add(pending)
        # A message that has ended meanwhile is not kept until its turn.
        if len(self._line) > 2 * (len(self.mailbox.pending) + self._held) + 16:
            first = self._line[0]
            self._line = deque(
                item
                for item in self._line
                if item is first or isinstance(item, Held) or not item.done()
            )

    def put_older(self, pending: PendingACK) -> None:
        """The last one that was put is older than it looks: it may go by the store as well."""
        self._later.discard(pending)

    def hold(self, item: Held) -> bool:
        """Takes a message without acknowledgement; whether there was room for it."""
        settings = self._owner.settings
        if self._held and (
            self._held >= settings.outbox_messages
            or self._held_bytes + len(item.data) > settings.outbox_bytes
        ):
            return False
        self._held += 1
        self._held_bytes += len(item.data)
        self._line.append(item)
        return True

    @property
    def held(self) -> int:
        """Messages without acknowledgement that wait."""
        return self._held

    def has_sent(self, pending: PendingACK) -> bool:
        """Whether the client has got a message that is pending still."""
        return pending in self._sent

    def settled(self, pending: PendingACK, answered: bool) -> None:
        """A message of the mailbox has come to its end."""
        self._later.discard(pending)
        if answered:
            self.acknowledged(pending.id)
        if pending in self._sent:
            self._sent.discard(pending)
            self._sent_bytes -= len(pending._data)
            self.wake()
        elif self._line and self._line[0] is pending:
            self.wake()  # what it waits to send is over

    def acknowledged(self, message_id: str) -> None:
        """A message is acknowledged: a page that is under way may still hold it."""
        if self._reading:
            self._acknowledged.add(message_id)

    def read_again(self) -> None:
        """The store holds more than when this began."""
        self._from_store = True

    def has_passed(self, position: int) -> bool:
        """Whether it has read on in the store beyond a position, or does not read."""
        return not self._reading or self._after >= position

    def wake(self) -> None:
        """There may be room."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> list[Held]:
        """Ends it before its time; returns what it held."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        held = [item for item in self._line if isinstance(item, Held)]
        self._line.clear()
        self._later.clear()
        self._held = self._held_bytes = 0
        return held

    # --- the task ---

    async def _run(self) -> None:
        outside_handlers()  # what fails here is nobody's own failure
        complete = True
        error: Exception | None = None
        try:
            while self._from_store or self._line:
                if self._from_store:
                    self._from_store = False
                    complete = await self._read_store()
                else:
                    await self._send_next()
        except ClientLeftError:
            pass
        except Exception as failure:
            complete, error = False, failure
        finally:
            # No await between the last look at the line and here: nothing can slip in.
            self._owner.caught_up(self, complete, error)

    async def _send_next(self) -> None:
        item = self._line[0]
        if isinstance(item, Held):
            await self._room()
            self._held -= 1
            self._held_bytes -= len(item.data)
            self._owner.send_held(self, item)
        else:
            await self._send(item)
        if self._line and self._line[0] is item:
            self._line.popleft()
            self._later.discard(item)

    async def _send(self, pending: PendingACK) -> None:
        while pending._is_open() and pending not in self._sent:
            await self._room(pending)
            if not pending._is_open() or not self._table.counts_from(pending, self.client):
                return
            if self._table.send_now(pending, self.client):
                self._sent.add(pending)
                self._sent_bytes += len(pending._data)
            elif self.client.queued_messages:
                # It is larger than what is left of the outbox.
                self._table.await_empty(self.client)
                await self._wait()
            else:
                return  # there is no memory for it: its timer tries again

    async def _read_store(self) -> bool:
        """Sends what the store holds; returns whether all of it could be read."""
        self._reading = True
        try:
            return await self._read_pages()
        finally:
            self._reading = False

    async def _read_pages(self) -> bool:
        owner, mailbox = self._owner, self.mailbox
        self._after, failures = 0, 0
        expected = owner.expected(self)
        while True:
            await self._fewer_bytes()
            self._acknowledged.clear()
            try:
                await owner.prepare(self.client)
                page = await owner.journal.page(mailbox.key, self._after)
            except Exception as error:
                failures += 1
                owner.journal.access.failed("messages cannot be read", error, mailbox.user_id)
                if failures == READ_ATTEMPTS or owner.journal.access.is_away():
                    return False
                await asyncio.sleep(READ_PAUSE * 2**failures)
                continue
            self._acknowledged |= page.removed
            for stored in page.messages:
                self._after = stored.position
                expected.discard(stored.id)
                pending = owner.adopt(self, stored, self._acknowledged, again=self._again)
                if pending is not None and not self._is_sent(pending):
                    self._table.counters.offline_replayed += 1
                    await self._send(pending)
            if page.is_last:
                owner.all_read(mailbox, expected)
                return True

    def _is_sent(self, pending: PendingACK) -> bool:
        """Whether the client has got it, or gets it by the line."""
        return pending in self._sent or pending in self._later

    async def _fewer_bytes(self) -> None:
        """Waits until there is memory for one more page, or this has sent nothing at all."""
        while self._sent and not self._table.has_memory():
            self._table.starved.add(self)
            try:
                await self._wait()
            finally:
                self._table.starved.discard(self)

    async def _room(self, pending: PendingACK | None = None) -> None:
        """Waits until the client has room for one more, and few enough are unacknowledged.

        Returns at once when the message that is to be sent has come to its end.
        """
        while pending is None or pending._is_open():
            if not self.client.is_connected():
                raise ClientLeftError
            if not self._has_room():
                self._table.await_empty(self.client)
            elif len(self._sent) < WINDOW and self._sent_bytes < WINDOW_BYTES:
                return
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = self._loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _has_room(self) -> bool:
        settings, client = self._owner.settings, self.client
        return client.queued_messages < max(
            1, min(REPLAY_MESSAGES, settings.outbox_messages // 2)
        ) and client.queued_bytes < max(1, min(REPLAY_BYTES, settings.outbox_bytes // 2))
