"""The offline store as the acknowledgements use it: what is written, removed, and looked up there.

    append     in the order of the calls, whatever some of them have to wait for
    delete     what is acknowledged, once in a turn of the loop; again later where that failed
    page       the next messages of a mailbox, for a replay
    watch      what other processes that share the store have done
    expire     what is too old goes

The store may be away. It opens again by itself, and who waits for a reading is told after PATIENCE
seconds in which nothing came from the store at all. A store that is slow, but answers, is waited
for as long as it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from wsc_fast.errors import OfflineStoreError
from wsc_fast.log import log
from wsc_fast.stores.base import (
    OfflineStore,
    PartialPage,
    SharedOfflineStore,
    StoredMessage,
)
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast._core.pending import PendingACK
    from wsc_fast.config import ACKConfig

# What a replay reads from the store at a time, in messages and in bytes.
PAGE = 200
PAGE_BYTES = 1 << 20
# Seconds without any answer of the store after which it counts as away, and how long it then does.
PATIENCE = 2.0
AWAY = 5.0
# Seconds between two attempts to open the store, and to remove what could not be removed.
OPEN_AGAIN = 1.0
DELETE_AGAIN = 5.0
# Acknowledged messages that could not be removed yet, of which the hub knows.
MOST_UNDELETED = 10_000
# Users whose deletions, or whose new messages, are dealt with in one turn of the loop.
USERS_AT_ONCE = 100
# Seconds between two looks at what other processes have stored, at what they have removed, and at
# what is too old.
LOOK_EVERY = 1.0
# Users with new messages of whom one look tells.
NEWS_AT_ONCE = 1_000
# Seconds for which a store surely remembers what others have stored.
REMEMBERED = 600.0
CHECK_EVERY = 5.0
EXPIRE_EVERY = 60.0
# Messages of one user that are looked for at once.
IDS_AT_ONCE = 1_000
# Messages that are told to have been dropped in one turn of the loop.
TOLD_AT_ONCE = 50

# Appends that had to wait and begin in one turn of the loop.
APPENDS_AT_ONCE = 100

T = TypeVar("T")
Appending = asyncio.Future[list[StoredMessage]]


class Page(msgspec.Struct, frozen=True):
    """The next messages of a mailbox, and whether nothing follows them."""

    messages: list[StoredMessage]
    is_last: bool


class Owner(Protocol):
    """What the journal tells, and of whom it asks."""

    def appended(self, pending: PendingACK, error: BaseException | None) -> None:
        """A message is in the store, or is not."""

    def dropped(self, key: str, stored: StoredMessage, age: float | None) -> None:
        """The store has let go of a message: for its age in seconds, or, None, for its bound."""

    def stored_elsewhere(self, key: str) -> None:
        """Another process has stored messages for a mailbox."""

    def anything_stored_elsewhere(self) -> None:
        """Other processes may have stored messages for anybody."""

    def parked_keys(self) -> list[str]:
        """The mailboxes of which somebody waits for a message that the store should hold."""

    def parked_ids(self, key: str) -> list[str]:
        """The messages of a mailbox that somebody waits for."""

    def gone(self, key: str, message_id: str) -> None:
        """The store does not hold a message any more, and not by our doing."""

    def count_error(self) -> None:
        """The store has failed."""


class Journal:
    """What a hub does with its offline store.

    Args:
        store: OfflineStore.
        config: ACKConfig.
        owner: who is told.

    Thread-safety: the loop's thread.
    """

    def __init__(self, store: OfflineStore, config: ACKConfig, owner: Owner) -> None:
        self.store = store
        self._config = config
        self._owner = owner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_error_line = 0.0
        self._reset()

    def _reset(self) -> None:
        self._ended = False
        self._opening: asyncio.Task[None] | None = None
        self._open_again_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        # Calls of the store that are under way.
        self._writing: set[asyncio.Future[Any]] = set()
        # Appends that have to wait, for the store to open or for a deletion, and all behind them.
        self._appends: deque[tuple[PendingACK, Appending]] = deque()
        self.waiting_bytes = 0  # of these
        self._appending: asyncio.Task[None] | None = None
        # Acknowledged messages, by mailbox: to be removed, being removed, not removed.
        self._deletes: dict[str, dict[str, None]] = {}
        self._deleting: dict[tuple[str, str], asyncio.Future[int]] = {}
        self._undeleted: dict[str, dict[str, None]] = {}
        self._undeleted_count = 0
        self._delete_timer: asyncio.TimerHandle | None = None
        self._trimming: set[str] = set()  # mailboxes with more messages than they may have
        self._told: deque[tuple[str, StoredMessage, float | None]] = deque()
        self._told_all = asyncio.Event()
        # Readings that are under way, when the store was last heard of, and who waits for its end.
        self._reading = 0
        self._heard_at = 0.0
        self._away_until = 0.0
        self._lost: asyncio.Future[None] | None = None

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens the store on this loop, and begins to look after it."""
        self._reset()
        self._loop = loop
        self._begin_to_open()
        self._spawn(self._expire())
        if isinstance(self.store, SharedOfflineStore):
            self._spawn(self._watch(self.store))
            self._spawn(self._check(self.store))

    def forget(self) -> None:
        """The loop was closed over it: its tasks went with it."""
        self._loop = None
        self._reset()

    @property
    def busy(self) -> bool:
        """Whether something is to be written still."""
        return bool(self._writing or self._deletes or self._told)

    async def stop_looking(self) -> None:
        """Ends what is done now and then; writing goes on."""
        self._ended = True  # a store may swallow the cancellation
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

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
        for task in (self._opening, self._appending):
            if task is not None:
                task.cancel()
                await asyncio.wait([task], timeout=1.0)  # a store may swallow the cancellation
        for _, storing in self._appends:
            storing.cancel()
        if self._delete_timer is not None:
            self._delete_timer.cancel()
        try:
            async with asyncio.timeout_at(deadline):
                await self.store.close()
        except Exception:
            log.exception("the offline store did not close")
        self.forget()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._running().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop

    # --- opening ---

    def _begin_to_open(self) -> None:
        self._opening = self._running().create_task(self._open())
        # Where nobody waits any more, its failure is no news.
        self._opening.add_done_callback(_retrieve)

    async def _open(self) -> None:
        try:
            await self.store.open()
        except Exception as error:
            self._open_again_at = self._running().time() + OPEN_AGAIN
            raise store_error(error) from error

    async def opened(self) -> None:
        """Returns once the store is open; tries again, but not more often than each second.

        Raises:
            OfflineStoreError: the last attempt has failed.
        """
        opening = self._opening
        assert opening is not None
        if _has_failed(opening) and self._running().time() >= self._open_again_at:
            self._begin_to_open()
        assert self._opening is not None
        await asyncio.wait([self._opening])
        if self._opening.cancelled():
            raise OfflineStoreError("the offline store was closed")
        error = self._opening.exception()
        if error is not None:
            raise OfflineStoreError(str(error)) from error.__cause__

    def _is_open(self) -> bool:
        opening = self._opening
        return opening is not None and opening.done() and not _has_failed(opening)

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
        elif self._appends or not self._is_open() or self._is_deleted(pending):
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
        try:
            return asyncio.ensure_future(
                self.store.append(
                    pending._mailbox,
                    pending.id,
                    pending._data,
                    limit=self._config.offline_limit,
                    drop_oldest=self._config.offline_overflow == "drop_oldest",
                )
            )
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
                if not self._is_open():
                    await self.opened()
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
            self._heard()
            dropped = done.result()
            self._tell_dropped(pending._mailbox, dropped, None)
            if len(dropped) > 1 and pending._mailbox not in self._trimming:
                self._trimming.add(pending._mailbox)
                self._spawn(self._trim(pending._mailbox))
        else:
            self._owner.count_error()
        self._owner.appended(pending, error)

    # --- what the store lets go ---

    async def _trim(self, key: str) -> None:
        """The limit was lowered, and one append drops a bounded number only: drops the rest."""
        try:
            while (excess := await self.store.count(key) - self._config.offline_limit) > 0:
                page = await self.store.read(key, limit=min(excess, PAGE), max_bytes=PAGE_BYTES)
                if not page:
                    break
                await self.store.delete(key, [stored.id for stored in page])
                self._tell_dropped(key, page, None)
                await self._told_all.wait()
        except Exception as error:
            self.failed("messages beyond a lowered limit could not be removed", error)
        finally:
            self._trimming.discard(key)

    def _tell_dropped(self, key: str, dropped: list[StoredMessage], age: float | None) -> None:
        if not dropped:
            return
        if not self._told:
            self._told_all.clear()
            self._running().call_soon(self._tell)
        self._told.extend((key, stored, age) for stored in dropped)

    def _tell(self) -> None:
        for _ in range(min(TOLD_AT_ONCE, len(self._told))):
            self._owner.dropped(*self._told.popleft())
        if not self._told:
            self._told_all.set()
        elif self._loop is not None:
            self._loop.call_soon(self._tell)

    # --- removing ---

    def delete(self, key: str, message_id: str) -> None:
        """Removes an acknowledged message, with others of this turn of the loop."""
        if not self._deletes:
            self._running().call_soon(self._flush_deletes)
        self._deletes.setdefault(key, {})[message_id] = None

    def is_deleted(self, key: str, message_id: str) -> bool:
        """Whether it is about to be removed from the store."""
        return (
            (key, message_id) in self._deleting
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
        return await self.store.delete(key, ids)

    def _deleted(self, key: str, ids: list[str], done: asyncio.Future[int]) -> None:
        self._writing.discard(done)
        for message_id in ids:
            if self._deleting.get((key, message_id)) is done:
                del self._deleting[key, message_id]
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._heard()
            return
        self.failed("acknowledged messages could not be removed", error)
        if self._loop is None:
            return
        # Those beyond the bound come again under the same id.
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

    def is_away(self) -> bool:
        """Whether the store has not answered lately, and is not asked for a while."""
        return self._running().time() < self._away_until

    async def page(self, key: str, after: int) -> Page:
        """The next messages of a mailbox.

        Raises:
            OfflineStoreError: they cannot be read, or the store is away.
        """
        messages = await self.ask(self._read(key, after))
        is_full = len(messages) >= PAGE or sum(len(each.data) for each in messages) >= PAGE_BYTES
        return Page(messages, not is_full and not isinstance(messages, PartialPage))

    async def _read(self, key: str, after: int) -> list[StoredMessage]:
        await self.opened()
        if self._appending is not None:
            # What was to be stored before this is asked is in the page, too.
            await asyncio.wait([self._appending])
        return await self.store.read(key, after=after, limit=PAGE, max_bytes=PAGE_BYTES)

    async def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Awaits the store in a task of its own: a store may swallow a cancellation.

        Raises:
            OfflineStoreError: the store is away, or does not answer for so long that it is.
        """
        if self.is_away():
            question.close()
            raise OfflineStoreError("the offline store does not answer")
        loop = self._running()
        asking = loop.create_task(question)
        asking.add_done_callback(_retrieve)
        if self._reading == 0:
            self._heard_at = loop.time()
        if self._lost is None:
            self._lost = loop.create_future()
            loop.call_later(PATIENCE, self._lose_patience, self._lost)
        self._reading += 1
        try:
            either: list[asyncio.Future[Any]] = [asking, self._lost]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reading -= 1
            if not asking.done():
                asking.cancel()
        if not asking.done():
            raise OfflineStoreError(f"the offline store has not answered for {PATIENCE:g} s")
        answer = asking.result()
        self._heard()
        return answer

    def _heard(self) -> None:
        self._heard_at = self._running().time()
        self._away_until = 0.0

    def _lose_patience(self, lost: asyncio.Future[None]) -> None:
        if self._loop is None or self._lost is not lost:
            return
        now = self._loop.time()
        if self._reading == 0:
            self._lost = None
        elif now < self._heard_at + PATIENCE:
            self._loop.call_at(self._heard_at + PATIENCE, self._lose_patience, lost)
        else:
            self._away_until = now + AWAY
            self._lost = None
            lost.set_result(None)

    # --- now and then ---

    async def _expire(self) -> None:
        """Removes what is too old."""
        most = self._config.offline_max_age
        while not self._ended:
            try:
                await self.opened()
                before = time.time() - most
                while expired := await self.store.expire(before):
                    for key, stored in expired:
                        # A store may tell here of what an append has dropped for its bound.
                        is_old = stored.stored_at < before
                        age = max(0.0, time.time() - stored.stored_at) if is_old else None
                        self._tell_dropped(key, [stored], age)
                    await self._told_all.wait()
            except Exception as error:
                self.failed("old messages could not be removed", error)
            if not self._ended:
                await asyncio.sleep(min(EXPIRE_EVERY, max(1.0, most / 10)))

    async def _watch(self, store: SharedOfflineStore) -> None:
        """Looks for what other processes have stored."""
        after = -1
        asked_at = self._running().time()
        while not self._ended:
            keys: list[str] = []
            try:
                await self.opened()
                after, keys = await store.appended(after, NEWS_AT_ONCE)
            except Exception as error:
                self.failed("other processes' messages cannot be looked for", error)
            else:
                now = self._running().time()
                if now - asked_at > REMEMBERED:
                    self._owner.anything_stored_elsewhere()
                asked_at = now
            await in_turns(keys, self._owner.stored_elsewhere, USERS_AT_ONCE)
            if not self._ended and len(keys) < NEWS_AT_ONCE:
                await asyncio.sleep(LOOK_EVERY)

    async def _check(self, store: SharedOfflineStore) -> None:
        """Looks whether the store still holds what somebody waits for here."""
        while not self._ended:
            await asyncio.sleep(CHECK_EVERY)
            for key in self._owner.parked_keys():
                try:
                    await self.opened()
                    ids = self._owner.parked_ids(key)
                    for start in range(0, len(ids), IDS_AT_ONCE):
                        for gone in await store.missing(key, ids[start : start + IDS_AT_ONCE]):
                            self._owner.gone(key, gone)
                except Exception as error:
                    self.failed("messages cannot be looked for", error)
                await asyncio.sleep(0)

    # --- errors ---

    def failed(self, what: str, error: BaseException) -> None:
        """The store has failed: counted, and a line in the log, at most one a second."""
        self._owner.count_error()
        now = time.monotonic()
        if now >= self._next_error_line:
            self._next_error_line = now + 1.0
            known = isinstance(error, OfflineStoreError)
            log.error("offline store: %s: %s", what, error, exc_info=None if known else error)


def store_error(error: BaseException) -> OfflineStoreError:
    """An exception of a store as callers get it."""
    if isinstance(error, OfflineStoreError):
        return error
    log.error("the offline store raised", exc_info=error)
    return OfflineStoreError(f"the offline store raised {type(error).__name__}: {error}")


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _copy_result(to: Appending, done: Appending) -> None:
    if to.done():
        return
    if done.cancelled():
        to.cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
