"""What an offline store is, and the one in memory.

A message with acknowledgement for a user who is away is kept in a store until it is acknowledged,
dropped by a bound, or too old. Every store implements `OfflineStore`; a store that several hubs may
use at the same time implements `SharedOfflineStore` as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Iterable, Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

import msgspec

from wsc_fast.errors import MessageExistsError, OfflineStoreError, OfflineStoreFullError

# Messages that one `append` drops at most, where the limit was lowered.
MOST_DROPPED = 1_000
# Bytes of messages that one `read` or `expire` returns, unless it is told otherwise.
READ_BYTES = 1 << 20


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as an offline store keeps it.

    Attributes:
        position: grows with each message of the user: the order of delivery.
        id: of the HubMessage.
        data: the HubMessage as JSON, as it goes on the wire.
        stored_at: seconds since the epoch.
    """

    position: int
    id: str
    data: bytes
    stored_at: float


class PartialPage(list[StoredMessage]):
    """A page that a store returned early, since the whole took too long: more messages follow."""


@runtime_checkable
class OfflineStore(Protocol):
    """Keeps messages per user, in order. Implement it for a store of your own.

    All calls come from the hub's loop, and none may block it. What a store raises is an
    OfflineStoreError.
    """

    async def open(self) -> None:
        """Makes the store ready; called when the hub starts, and harmless when it is open."""

    async def close(self) -> None:
        """Finishes what is under way and lets go; `open` may follow."""

    def append(
        self, user_id: str, message_id: str, data: bytes, *, limit: int, drop_oldest: bool
    ) -> Awaitable[list[StoredMessage]]:
        """Keeps a message behind all others of the user.

        Args:
            user_id: whose message it is.
            message_id: kept once: the same id and data of the same user again change nothing.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: what to do at the limit: drop the oldest, or refuse this one. One call may
                drop a bounded number only; the next ones drop the rest.

        Returns:
            an awaitable of what was dropped for it, done when the message is durable. The place in
            the order is taken by the call, not by the await.

        Raises:
            OfflineStoreFullError: (awaited) at the limit, without `drop_oldest`.
            MessageExistsError: (awaited) the user has a message with this id and other data, which
                stays; the error carries it.
            OfflineStoreError: (awaited) the message is not stored.
        """
        ...

    async def read(
        self, user_id: str, *, after: int = 0, limit: int = 100, max_bytes: int = READ_BYTES
    ) -> list[StoredMessage]:
        """The next messages of a user, in order.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many messages at most.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[StoredMessage]: also those whose `append` has been called and is not done. Fewer
                than `limit` messages of fewer than `max_bytes` bytes are all that there are, unless
                it is a PartialPage.
        """
        ...

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """Removes messages of a user; returns how many there were, once that is durable."""
        ...

    async def count(self, user_id: str) -> int:
        """How many messages are kept for a user."""
        ...

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time.

        Args:
            before: seconds since the epoch.
            limit: how many messages to remove at most, the oldest first.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each.
        """
        ...


@runtime_checkable
class SharedOfflineStore(OfflineStore, Protocol):
    """An OfflineStore that other processes may change at the same time.

    The hub asks it now and then what they have done. So a message that another process has stored
    reaches a user who is connected here. And the hub tells a caller who waits here for a message
    that another process has delivered it or dropped it.
    """

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """For whom others have stored messages.

        Args:
            after: the position behind which to look, as the last call returned it; -1 asks for the
                newest position only.
            limit: how many users at most.

        Returns:
            tuple[int, list[str]]: the position to look behind next, and the ids of the users for
                whom a message was stored behind `after`, each once; not those whose messages were
                stored through this object alone.
        """
        ...

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """Which of these messages are not in the store.

        Args:
            user_id: whose messages.
            message_ids: which; the caller has to bound their number.

        Returns:
            list[str]: ids; one whose `append` has been called and is not done counts as there.
        """
        ...


def within(
    messages: Iterable[StoredMessage], limit: int, max_bytes: int
) -> Iterator[StoredMessage]:
    """The first messages, up to a number, or to the one with which their data reach a size.

    Args:
        messages: in order.
        limit: how many at most.
        max_bytes: bytes of data.
    """
    size = 0
    for message in islice(messages, max(limit, 0)):
        yield message
        size += len(message.data)
        if size >= max_bytes:
            return


def exists_error(where: str, user_id: str, message_id: str, data: bytes) -> MessageExistsError:
    """What an append raises for an id that is taken by other data.

    Args:
        where: names the store.
        user_id: whose message it is.
        message_id: of both messages.
        data: of the message that is in the store.
    """
    text = f"{where}: user {user_id!a} has another message with the id {message_id!a}"
    return MessageExistsError(text, data)


def full_error(where: str, user_id: str, limit: int) -> OfflineStoreFullError:
    """What an append raises at the limit; `where` names the store."""
    return OfflineStoreFullError(f"{where}: it may keep {limit} messages for user {user_id!r}")


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
        """Keeps a message behind all others of the user; see `OfflineStore.append`.

        Args:
            user_id: whose message it is.
            message_id: kept once per user.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: whether the oldest go at the limit, or this one is refused.

        Returns:
            asyncio.Future[list[StoredMessage]]: done already, with what was dropped.

        Raises:
            OfflineStoreFullError: (awaited) at the limit, without `drop_oldest`.
            MessageExistsError: (awaited) the id is taken by other data.
            OfflineStoreError: (awaited) the store is not open.
        """
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
        held[message_id] = StoredMessage(self._position, message_id, data, time.time())
        self._messages[user_id] = held
        return dropped

    async def read(
        self, user_id: str, *, after: int = 0, limit: int = 100, max_bytes: int = READ_BYTES
    ) -> list[StoredMessage]:
        """The next messages of a user, in order; see `OfflineStore.read`.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many messages at most.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[StoredMessage]: empty for a user without messages.

        Raises:
            OfflineStoreError: the store is not open.
        """
        self._check_open()
        held = self._messages.get(user_id, {}).values()
        following = (message for message in held if message.position > after)
        return list(within(following, limit, max_bytes))

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """Removes messages of a user; see `OfflineStore.delete`.

        Args:
            user_id: whose messages.
            message_ids: which; unknown ones are passed over.

        Returns:
            int: how many there were.

        Raises:
            OfflineStoreError: the store is not open.
        """
        self._check_open()
        return sum(self._remove(user_id, message_id) for message_id in message_ids)

    def _remove(self, user_id: str, message_id: str) -> bool:
        held = self._messages.get(user_id, {})
        found = held.pop(message_id, None) is not None
        if found and not held:
            del self._messages[user_id]
        return found

    async def count(self, user_id: str) -> int:
        """How many messages are kept for a user.

        Args:
            user_id: whose messages.

        Returns:
            int: 0 for a user without messages.

        Raises:
            OfflineStoreError: the store is not open.
        """
        self._check_open()
        return len(self._messages.get(user_id, {}))

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time; see `OfflineStore.expire`.

        Looks at every message there is.

        Args:
            before: seconds since the epoch.
            limit: how many messages to remove at most, the oldest first.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each.

        Raises:
            OfflineStoreError: the store is not open.
        """
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
