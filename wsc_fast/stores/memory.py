"""The offline store in memory, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from wsc_fast._core import clock
from wsc_fast.errors import OfflineStoreError
from wsc_fast.stores.base import (
    MOST_DROPPED,
    READ_BYTES,
    StoredMessage,
    exists_error,
    full_error,
    within,
)


class MemoryOfflineStore:
    """An OfflineStore for tests: keeps messages in this process, and they end with it.

    They outlast `close` and `open`, as in any other store. The number of users is not bounded.

    Thread-safety: on one event loop only.
    """

    def __init__(self) -> None:
        self._open = False
        self._position = 0
        # By user, then by message id in the order of delivery; a user without messages has none.
        self._messages: dict[str, dict[str, StoredMessage]] = {}

    async def open(self) -> None:
        """Makes the store ready."""
        self._open = True

    async def close(self) -> None:
        """Refuses further calls until `open`; the messages stay."""
        self._open = False

    def append(
        self, user_id: str, message_id: str, data: bytes, *, limit: int, drop_oldest: bool
    ) -> asyncio.Future[list[StoredMessage]]:
        """See `OfflineStore.append`."""
        future: asyncio.Future[list[StoredMessage]] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(self._append(user_id, message_id, data, limit, drop_oldest))
        except OfflineStoreError as error:
            future.set_exception(error)
        return future

    def _append(
        self, user_id: str, message_id: str, data: bytes, limit: int, drop_oldest: bool
    ) -> list[StoredMessage]:
        self._check_open()
        held = self._messages.get(user_id, {})
        stored = held.get(message_id)
        if stored is not None:
            if stored.data != data:
                raise exists_error("offline store in memory", user_id, message_id, stored.data)
            return []
        if limit < 1 or (len(held) >= limit and not drop_oldest):
            raise full_error("offline store in memory", user_id, limit)
        excess = min(len(held) - limit + 1, MOST_DROPPED)
        dropped = [held.pop(next(iter(held))) for _ in range(excess)]
        self._position += 1
        held[message_id] = StoredMessage(self._position, message_id, data, clock.time())
        self._messages[user_id] = held
        return dropped

    async def read(
        self, user_id: str, *, after: int = 0, limit: int = 100, max_bytes: int = READ_BYTES
    ) -> list[StoredMessage]:
        """See `OfflineStore.read`."""
        self._check_open()
        held = self._messages.get(user_id, {}).values()
        following = (message for message in held if message.position > after)
        return list(within(following, limit, max_bytes))

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """See `OfflineStore.delete`."""
        self._check_open()
        return sum(self._remove(user_id, message_id) for message_id in message_ids)

    def _remove(self, user_id: str, message_id: str) -> bool:
        held = self._messages.get(user_id, {})
        found = held.pop(message_id, None) is not None
        if found and not held:
            del self._messages[user_id]
        return found

    async def count(self, user_id: str) -> int:
        """See `OfflineStore.count`."""
        self._check_open()
        return len(self._messages.get(user_id, {}))

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """See `OfflineStore.expire`. Looks at every message there is."""
        self._check_open()
        old = [
            (user_id, message)
            for user_id, held in self._messages.items()
            for message in held.values()
            if message.stored_at < before
        ]
        old.sort(key=lambda each: (each[1].stored_at, each[1].position))
        del old[sum(1 for _ in within((message for _, message in old), limit, max_bytes)) :]
        for user_id, message in old:
            self._remove(user_id, message.id)
        return old

    def _check_open(self) -> None:
        if not self._open:
            raise OfflineStoreError("offline store in memory: it is not open")
