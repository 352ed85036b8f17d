"""The offline store as the acknowledgements use it: writing, removing and reading.

    append     in the order of the calls, whatever some of them have to wait for
    delete     what is acknowledged, once in a turn of the loop; again later where that failed
    page       the next messages of a mailbox, for a replay

store_access.py knows whether the store is there at all. upkeep.py does the work of now and then,
and tells of the messages that the store has dropped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from wsc_fast.delivery import upkeep
from wsc_fast.delivery.devices import key_of_device, key_of_devices
from wsc_fast.delivery.store_access import PAGE, PAGE_BYTES, StoreAccess, store_error
from wsc_fast.errors import MessageExistsError, OfflineStoreError
from wsc_fast.stores.base import OfflineStore, PartialPage, StoredMessage

if TYPE_CHECKING:
    from wsc_fast._core.pending import PendingACK
    from wsc_fast.config import ACKConfig

# Seconds between two attempts to remove what could not be removed.
DELETE_AGAIN = 5.0
# Acknowledged messages that could not be removed yet, of which the hub knows.
MOST_UNDELETED = 10_000
# Users whose deletions begin in one turn of the loop.
USERS_AT_ONCE = 100
# Appends that had to wait and begin in one turn of the loop.
APPENDS_AT_ONCE = 100

Appending = asyncio.Future[list[StoredMessage]]


class Page(msgspec.Struct, frozen=True):
    """The next messages of a mailbox.

    Attributes:
        messages: as they were read.
        is_last: nothing follows them.
        removed: ids of messages that were removed from the store while the page was on its way.
    """

    messages: list[StoredMessage]
    is_last: bool
    removed: set[str]


class Owner(upkeep.Owner, Protocol):
    """The interface that the journal needs of its owner."""

    def appended(self, pending: PendingACK, error: BaseException | None) -> None:
        """A message is in the store, or is not."""

    def count_error(self) -> None:
        """The store has failed."""

    def entry_of(self, pending: PendingACK) -> bytes:
        """The bytes to store of a message."""

    async def before_delete(self, key: str, message_ids: Collection[str]) -> None:
        """To be awaited before messages that have ended are deleted; it raises nothing."""


class Journal:
    """Writes to the offline store of a hub, and reads it.

    Args:
        store: OfflineStore.
        config: ACKConfig.
        owner: is told of what happens.

    Attributes:
        access: the store, which may be away.
        waiting_bytes: of the appends that have to wait.

    Thread-safety: the loop's thread.
    """

    def __init__(self, store: OfflineStore, config: ACKConfig, owner: Owner) -> None:
        self.access: StoreAccess = StoreAccess(store, owner.count_error)
        self._upkeep = upkeep.Upkeep(self.access, config, owner)
        self._config = config
        self._owner = owner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        # Calls of the store that are under way.
        self._writing: set[asyncio.Future[Any]] = set()
        # Appends that have to wait, for the store to open or for a deletion, and all behind them.
        self._appends: deque[tuple[PendingACK, Appending]] = deque()
        self.waiting_bytes: int = 0
        self._appending: asyncio.Task[None] | None = None
        # Acknowledged messages, by mailbox: to be removed, being removed, not removed.
        self._deletes: dict[str, dict[str, None]] = {}
        self._deleting: dict[tuple[str, str], asyncio.Future[int]] = {}
        self._undeleted: dict[str, dict[str, None]] = {}
        # Acknowledged messages whose append is under way: they are removed once it is done.
        self._outlived: dict[tuple[str, str], asyncio.Future[Any]] = {}
        # By mailbox, the ids that have been removed since each page under way was asked for.
        self._removed: dict[str, list[set[str]]] = {}
        self._undeleted_count = 0
        self._delete_timer: asyncio.TimerHandle | None = None

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens the store on this loop, and begins to look after it."""
        self._reset()
        self._loop = loop
        self.access.attach(loop)
        self._upkeep.attach()

    def forget(self) -> None:
        """The loop was closed over it: its tasks went with it."""
        self._loop = None
        self._reset()
        self._upkeep.forget()
        self.access.forget()

    @property
    def busy(self) -> bool:
        """Whether something is to be written still, or to be told of what was dropped."""
        return bool(self._writing or self._deletes or self._upkeep.is_telling)

    async def stop_looking(self) -> None:
        """Ends what is done now and then; writing goes on."""
        await self._upkeep.stop()

    async def write_out(self, deadline: float) -> None:
        """Waits for what is being written, until a time of the loop's clock."""
        loop = self._running()
        while self.busy and loop.time() < deadline:
            if self._deletes:
                self._flush_deletes()
            if self._writing:
                await asyncio.wait(set(self._writing), timeout=max(0.0, deadline - loop.time()))
            await asyncio.sleep(0)

    async def close(self, deadline: float) -> None:
        """Closes the store; what waits to be written is given up."""
        await self.access.stop_opening()
        if self._appending is not None:
            self._appending.cancel()
            await asyncio.wait([self._appending], timeout=1.0)  # a store may swallow it
        for _, storing in self._appends:
            storing.cancel()
        if self._delete_timer is not None:
            self._delete_timer.cancel()
        await self.access.close(deadline)
        self.forget()

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    # --- writing ---

    def append(self, pending: PendingACK) -> Appending:
        """Stores a message behind all others; takes its place in the order at once."""
        loop = self._running()
        storing: Appending
        if self.waiting_bytes > self._config.max_pending_bytes:
            storing = loop.create_future()
            storing.set_exception(
                OfflineStoreError(
                    f"{self.waiting_bytes} bytes of messages wait for the offline store to open "
                    "(ACKConfig.max_pending_bytes)"
                )
            )
        elif self._appends or not self.access.is_open() or self._is_deleted(pending):
            storing = loop.create_future()
            self._appends.append((pending, storing))
            self.waiting_bytes += len(pending._data)
            if self._appending is None:
                self._appending = loop.create_task(self._append_waiting())
        else:
            storing = self._append_now(pending)
        self._writing.add(storing)
        storing.add_done_callback(partial(self._appended, pending))
        return storing

    def _append_now(self, pending: PendingACK) -> Appending:
        began = time.monotonic()
        try:
            storing = asyncio.ensure_future(
                self.access.store.append(
                    pending._mailbox,
                    pending.id,
                    self._owner.entry_of(pending),
                    limit=self._config.offline_limit,
                    drop_oldest=self._config.offline_overflow == "drop_oldest",
                )
            )
            storing.add_done_callback(lambda _: self.access.took("append", began))
            return storing
        except Exception as error:
            failed: Appending = self._running().create_future()
            failed.set_exception(error)
            return failed

    def _is_deleted(self, pending: PendingACK) -> bool:
        return self.is_deleted(pending._mailbox, pending.id)

    async def _append_waiting(self) -> None:
        # One after the other, so that the order stays that of the calls of `append`.
        count = 0
        while self._appends:
            pending, storing = self._appends[0]
            try:
                if not self.access.is_open():
                    await self.access.opened()
                if self._is_deleted(pending):
                    await self._delete_first(pending)
                now = self._append_now(pending)
            except Exception as error:
                if not storing.done():
                    storing.set_exception(error)
            else:
                now.add_done_callback(partial(_copy_result, storing))
            self._appends.popleft()
            self.waiting_bytes -= len(pending._data)
            count += 1
            if count % APPENDS_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._appending = None

    async def _delete_first(self, pending: PendingACK) -> None:
        """A message that is on its way out of the store is removed before it is stored anew."""
        self._delete_undeleted(pending._mailbox)
        while self._is_deleted(pending):
            outlived = self._outlived.get((pending._mailbox, pending.id))
            if outlived is not None:
                await asyncio.wait([outlived])
                await asyncio.sleep(0)  # `_appended` is called
                continue
            if pending.id in self._undeleted.get(pending._mailbox, ()):
                raise OfflineStoreError(
                    f"the former message {pending.id!a} of user {pending.user_id!a} cannot be "
                    "removed from the offline store"
                )
            self._flush_deletes()
            deleting = self._deleting.get((pending._mailbox, pending.id))
            if deleting is not None:
                await asyncio.wait([deleting])

    def _appended(self, pending: PendingACK, done: Appending) -> None:
        self._writing.discard(done)
        pending._storing = None
        if self._loop is None:
            return  # the loop was closed over it
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None:
            self.access.heard()
            self._upkeep.appended(pending._mailbox, done.result())
        elif isinstance(error, MessageExistsError | asyncio.CancelledError):
            self._owner.count_error()
        else:
            self.access.failed("a message was not stored", error, pending.user_id)
        self._owner.appended(pending, error)
        self._outlived.pop((pending._mailbox, pending.id), None)

    # --- removing ---

    def delete(self, key: str, message_id: str) -> None:
        """Removes an acknowledged message, with others of this turn of the loop."""
        if not self._deletes:
            self._running().call_soon(self._flush_deletes)
        self._deletes.setdefault(key, {})[message_id] = None

    def delete_once_stored(self, key: str, message_id: str, storing: asyncio.Future[Any]) -> None:
        """An acknowledged message is still being stored: it is removed behind that."""
        self._outlived[key, message_id] = storing

    def is_deleted(self, key: str, message_id: str) -> bool:
        """Whether it is about to be removed from the store."""
        return (
            (key, message_id) in self._deleting
            or (key, message_id) in self._outlived
            or message_id in self._deletes.get(key, ())
            or message_id in self._undeleted.get(key, ())
        )

    def _flush_deletes(self) -> None:
        if self._loop is None:
            return
        for _ in range(min(USERS_AT_ONCE, len(self._deletes))):
            key = next(iter(self._deletes))
            ids = list(self._deletes.pop(key))
            deleting = self._loop.create_task(self._delete_now(key, ids))
            self._writing.add(deleting)
            for message_id in ids:
                self._deleting[key, message_id] = deleting
            deleting.add_done_callback(partial(self._deleted, key, ids))
        if self._deletes:
            self._loop.call_soon(self._flush_deletes)

    async def _delete_now(self, key: str, ids: list[str]) -> int:
        await self._owner.before_delete(key, ids)
        return await self.access.timed("delete", self.access.store.delete(key, ids))

    def _deleted(self, key: str, ids: list[str], done: asyncio.Future[int]) -> None:
        self._writing.discard(done)
        for message_id in ids:
            if self._deleting.get((key, message_id)) is done:
                del self._deleting[key, message_id]
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            for removed in self._removed.get(key, ()):
                removed.update(ids)
            if self._loop is not None:
                self.access.heard()
            return
        self.access.failed("acknowledged messages could not be removed", error)
        if self._loop is None:
            return
        # Messages beyond the bound come again under the same id.
        for message_id in ids[: max(0, MOST_UNDELETED - self._undeleted_count)]:
            undeleted = self._undeleted.setdefault(key, {})
            self._undeleted_count += message_id not in undeleted
            undeleted[message_id] = None
        if self._delete_timer is None and self._undeleted:
            self._delete_timer = self._loop.call_later(DELETE_AGAIN, self._delete_again)

    def _delete_again(self) -> None:
        self._delete_timer = None
        for key in list(self._undeleted):
            self._delete_undeleted(key)

    def _delete_undeleted(self, key: str) -> None:
        ids = self._undeleted.pop(key, None)
        if ids is not None:
            self._undeleted_count -= len(ids)
            for message_id in ids:
                self.delete(key, message_id)

    # --- reading ---

    async def page(self, key: str, after: int) -> Page:
        """The next messages of a mailbox.

        Raises:
            OfflineStoreError: they cannot be read, or the store is away.
        """
        removed: set[str] = set()
        self._removed.setdefault(key, []).append(removed)
        try:
            messages = await self.access.ask(self._read(key, after))
        finally:
            self._page_ended(key, removed)
        is_full = len(messages) >= PAGE or sum(len(each.data) for each in messages) >= PAGE_BYTES
        return Page(messages, not is_full and not isinstance(messages, PartialPage), removed)

    def _page_ended(self, key: str, removed: set[str]) -> None:
        under_way = [each for each in self._removed.get(key, ()) if each is not removed]
        if under_way:
            self._removed[key] = under_way
        else:
            self._removed.pop(key, None)

    async def count(self, user_id: str, most_devices: int) -> int:
        """The messages that the store holds for a user, those of the user's devices included.

        Args:
            user_id: the user.
            most_devices: with `ACKConfig(per="device")` the devices that are looked at; else 0.

        Raises:
            OfflineStoreError: they cannot be counted, or the store is away.
        """
        try:
            return await self.access.ask(self._count(user_id, most_devices))
        except OfflineStoreError:
            raise
        except Exception as error:
            self._owner.count_error()
            raise store_error(error) from error

    async def _count(self, user_id: str, most_devices: int) -> int:
        await self.access.opened()
        store, keys = self.access.store, [user_id]
        if most_devices:
            noted = await store.read(key_of_devices(user_id), limit=most_devices)
            keys += [key_of_device(user_id, each.id) for each in noted]
        return sum([await store.count(key) for key in keys])

    async def _read(self, key: str, after: int) -> list[StoredMessage]:
        await self.access.opened()
        if self._appending is not None:
            # The page holds messages, too, that were to be stored before this is asked.
            await asyncio.wait([self._appending])
        reading = self.access.store.read(key, after=after, limit=PAGE, max_bytes=PAGE_BYTES)
        return await self.access.timed("read", reading)


def _copy_result(to: Appending, done: Appending) -> None:
    if to.done():
        return
    if done.cancelled():
        to.cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
