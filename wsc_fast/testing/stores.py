"""An offline store that a test takes away, slows down, or has fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, TypeVar

from wsc_fast import OfflineStore, OfflineStoreError, SharedOfflineStore, StoredMessage

_T = TypeVar("_T")


class FaultyStore:
    """An offline store in front of another one, with switches.

        store = FaultyStore(MemoryOfflineStore())
        hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
        store.fail()    # as on a full disk
        store.mend()

    A switch holds for the calls from then on.

    Args:
        store: that keeps the messages. If other processes share it, say `FaultyStore.of(store)`.

    Attributes:
        calls: how often each operation was called, by name.

    Thread-safety: the hub's loop; the switches any thread.
    """

    def __init__(self, store: OfflineStore) -> None:
        self.calls: dict[str, int] = {}
        self._store: Any = store
        self._seconds = 0.0
        self._error: Exception | None = None
        self._away = False
        self._waiting: list[asyncio.Future[None]] = []

    @staticmethod
    def of(store: OfflineStore) -> FaultyStore:
        """The switches for a store; shared (SharedOfflineStore) where the store is.

        Args:
            store: that keeps the messages.
        """
        shared = isinstance(store, SharedOfflineStore)
        return SharedFaultyStore(store) if shared else FaultyStore(store)

    # --- switches ---

    def fail(self, error: Exception | None = None) -> None:
        """All operations fail at once.

        Args:
            error: that they raise; None for an OfflineStoreError.
        """
        self.mend()
        self._error = error or OfflineStoreError("the test has the store fail")

    def late(self, seconds: float) -> None:
        """All operations take so much longer.

        Args:
            seconds: by the loop's clock, which a Clock sets ahead.
        """
        self.mend()
        self._seconds = seconds

    def away(self) -> None:
        """No operation is answered until `mend`, which then has them done in their order."""
        self.mend()
        self._away = True

    def mend(self) -> None:
        """The store works."""
        self._seconds, self._error, self._away = 0.0, None, False
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.get_loop().call_soon_threadsafe(_come, turn)

    # --- the store ---

    async def open(self) -> None:
        """See `OfflineStore.open`."""
        await self._operate("open")

    async def close(self) -> None:
        """See `OfflineStore.close`: it closes whatever the switches say."""
        await self._store.close()

    def append(
        self,
        user_id: str,
        message_id: str,
        data: bytes,
        *,
        limit: int,
        drop_oldest: bool,
    ) -> Awaitable[list[StoredMessage]]:
        """See `OfflineStore.append`: the message takes its place when it is called."""
        return self._operate(
            "append", user_id, message_id, data, limit=limit, drop_oldest=drop_oldest
        )

    async def read(self, user_id: str, **options: Any) -> list[StoredMessage]:
        """See `OfflineStore.read`."""
        found: list[StoredMessage] = await self._operate("read", user_id, **options)
        return found

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """See `OfflineStore.delete`."""
        return int(await self._operate("delete", user_id, message_ids))

    async def count(self, user_id: str) -> int:
        """See `OfflineStore.count`."""
        return int(await self._operate("count", user_id))

    async def expire(
        self, before: float, limit: int = 1000, **options: Any
    ) -> list[tuple[str, StoredMessage]]:
        """See `OfflineStore.expire`."""
        return list(await self._operate("expire", before, limit, **options))

    def _operate(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        self.calls[name] = self.calls.get(name, 0) + 1
        if self._error is not None:
            return _raising(self._error)
        if self._away:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            return _in_turn(turn, partial(getattr(self._store, name), *args, **kwargs))
        operation: Awaitable[Any] = getattr(self._store, name)(*args, **kwargs)
        return _later(operation, self._seconds) if self._seconds else operation


class SharedFaultyStore(FaultyStore):
    """A FaultyStore in front of a store that several processes share."""

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """See `SharedOfflineStore.appended`."""
        found: tuple[int, list[str]] = await self._operate("appended", after, limit)
        return found

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """See `SharedOfflineStore.missing`."""
        return list(await self._operate("missing", user_id, message_ids))


async def _raising(error: Exception) -> Any:
    raise error


def _come(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


async def _in_turn(turn: asyncio.Future[None], operation: Callable[[], Awaitable[_T]]) -> _T:
    await turn
    return await operation()


async def _later(operation: Awaitable[_T], seconds: float) -> _T:
    await asyncio.sleep(seconds)
    return await operation
