"""Work on the offline store that is done now and then, and news of the messages that it drops.

expire     removes what is too old
trim       removes what is beyond a limit that was lowered
watch      looks for what other processes have stored
check      looks whether the store still holds what somebody waits for here
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from wsc_fast._core import clock
from wsc_fast.delivery.store_access import PAGE, PAGE_BYTES, StoreAccess
from wsc_fast.stores.base import SharedOfflineStore, StoredMessage
from wsc_fast.turns import in_turns

if TYPE_CHECKING:
    from wsc_fast.config import ACKConfig

# Seconds between two looks at what other processes have stored, at what they have removed, and at
# what is too old.
LOOK_EVERY = 1.0
CHECK_EVERY = 5.0
EXPIRE_EVERY = 60.0
# One look tells of so many users with new messages; one turn of the loop tells of so many.
NEWS_AT_ONCE = 1_000
USERS_AT_ONCE = 100
# Seconds for which a store surely remembers what others have stored.
REMEMBERED = 600.0
# Messages of one user that are looked for at once.
IDS_AT_ONCE = 1_000
# Messages that are told to have been dropped in one turn of the loop.
TOLD_AT_ONCE = 50


class Owner(Protocol):
    """The interface that the upkeep needs of its owner."""

    def dropped(self, key: str, stored: StoredMessage, age: float | None) -> None:
        """The store has let go of a message: for its age in seconds, or, None, for its bound."""

    def stored_elsewhere(self, key: str) -> None:
        """Another process has stored messages for a mailbox."""

    def anything_stored_elsewhere(self) -> None:
        """Other processes may have stored messages for anybody."""

    def keys_to_check(self) -> list[str]:
        """The mailboxes of which somebody waits for a message that the store should hold."""

    def ids_to_check(self, key: str) -> list[str]:
        """The messages of a mailbox that somebody waits for."""

    async def checked(self, key: str, message_ids: Sequence[str], gone: list[str]) -> None:
        """Of these messages the store does not hold some any more, and not by our doing."""


class Upkeep:
    """The upkeep of the offline store of one hub.

    Args:
        access: the store.
        config: ACKConfig.
        owner: is told of what is found.

    Thread-safety: the loop's thread.
    """

    def __init__(self, access: StoreAccess, config: ACKConfig, owner: Owner) -> None:
        self._access = access
        self._config = config
        self._owner = owner
        self._reset()

    def _reset(self) -> None:
        self._ended = False
        self._attached = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trimming: set[str] = set()  # mailboxes with more messages than they may have
        # Messages that were dropped and are not told yet: mailbox, message, age.
        self._dropped: deque[tuple[str, StoredMessage, float | None]] = deque()
        self._told_all = asyncio.Event()

    # --- life ---

    def attach(self) -> None:
        """Begins, on the loop of the store."""
        self._reset()
        self._attached = True
        self._spawn(self._expire())
        store = self._access.store
        if isinstance(store, SharedOfflineStore):
            self._spawn(self._watch(store))
            self._spawn(self._check(store))

    async def stop(self) -> None:
        """Ends it; what was dropped is told still."""
        self._ended = True  # a store may swallow the cancellation
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def forget(self) -> None:
        """The loop was closed over it, or the store is closed."""
        self._reset()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._access.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- messages that the store has dropped ---

    @property
    def is_telling(self) -> bool:
        """Whether something that was dropped is not told yet."""
        return bool(self._dropped)

    def appended(self, key: str, dropped: list[StoredMessage]) -> None:
        """The store has taken a message, and let go of these for it."""
        self._tell_dropped(key, dropped, None)
        if len(dropped) > 1 and key not in self._trimming:
            self._trimming.add(key)
            self._spawn(self._trim(key))

    async def _trim(self, key: str) -> None:
        """The limit was lowered, and one append drops a bounded number only: drops the rest."""
        store, most = self._access.store, self._config.offline_limit
        timed = self._access.timed
        try:
            while (excess := await timed("count", store.count(key)) - most) > 0:
                reading = store.read(key, limit=min(excess, PAGE), max_bytes=PAGE_BYTES)
                page = await timed("read", reading)
                if not page:
                    break
                await timed("delete", store.delete(key, [stored.id for stored in page]))
                self._tell_dropped(key, page, None)
                await self._told_all.wait()
        except Exception as error:
            self._access.failed("messages beyond a lowered limit could not be removed", error)
        finally:
            self._trimming.discard(key)

    def _tell_dropped(self, key: str, dropped: list[StoredMessage], age: float | None) -> None:
        if not dropped:
            return
        if not self._dropped:
            self._told_all.clear()
            self._access.loop.call_soon(self._tell)
        self._dropped.extend((key, stored, age) for stored in dropped)

    def _tell(self) -> None:
        for _ in range(min(TOLD_AT_ONCE, len(self._dropped))):
            self._owner.dropped(*self._dropped.popleft())
        if not self._dropped:
            self._told_all.set()
        elif self._attached:
            self._access.loop.call_soon(self._tell)

    # --- now and then ---

    async def _expire(self) -> None:
        """Removes what is too old."""
        most = self._config.offline_max_age
        while not self._ended:
            try:
                await self._access.opened()
                before = clock.time() - most
                store, timed = self._access.store, self._access.timed
                while expired := await timed("expire", store.expire(before)):
                    for key, stored in expired:
                        # A store may tell here of what an append has dropped for its bound.
                        is_old = stored.stored_at < before
                        age = max(0.0, clock.time() - stored.stored_at) if is_old else None
                        self._tell_dropped(key, [stored], age)
                    await self._told_all.wait()
            except Exception as error:
                self._access.failed("old messages could not be removed", error)
            if not self._ended:
                await asyncio.sleep(min(EXPIRE_EVERY, max(1.0, most / 10)))

    async def _watch(self, store: SharedOfflineStore) -> None:
        """Looks for what other processes have stored."""
        after = -1
        asked_at = self._access.loop.time()
        while not self._ended:
            keys: list[str] = []
            try:
                await self._access.opened()
                news = store.appended(after, NEWS_AT_ONCE)
                after, keys = await self._access.timed("appended", news)
            except Exception as error:
                self._access.failed("other processes' messages cannot be looked for", error)
            else:
                now = self._access.loop.time()
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
            for number, key in enumerate(self._owner.keys_to_check()):
                try:
                    await self._access.opened()
                    await self._check_mailbox(store, key)
                except Exception as error:
                    self._access.failed("messages cannot be looked for", error)
                if number % USERS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _check_mailbox(self, store: SharedOfflineStore, key: str) -> None:
        ids = self._owner.ids_to_check(key)
        for start in range(0, len(ids), IDS_AT_ONCE):
            page = ids[start : start + IDS_AT_ONCE]
            gone = await self._access.timed("missing", store.missing(key, page))
            await self._owner.checked(key, page, gone)
