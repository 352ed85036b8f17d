"""The interface of offline stores, and the parts that all of them share: messages, bounds, errors.

A message with acknowledgement for a user who is away is kept in a store until it is acknowledged,
dropped by a bound, or too old. Every store implements `OfflineStore`; a store that several hubs may
use at the same time implements `SharedOfflineStore` as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Iterator
from itertools import islice
from typing import Protocol, runtime_checkable

import msgspec

from wsc_fast.errors import MessageExistsError, OfflineStoreFullError

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

    All calls come from the hub's loop, and none may block it. A store raises an OfflineStoreError
    and nothing else.
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
            user_id: the user that the message is for.
            message_id: kept once: the same id and data of the same user again change nothing.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: what to do at the limit: drop the oldest, or refuse this one. One call may
                drop a bounded number only; the next ones drop the rest.

        Returns:
            an awaitable of what was dropped for it, done when the message is durable. The place in
            the order is taken by the call, not by the await. It ends within a bound of the store:
            the hub waits, since it cannot know whether an append that it gave up was done.

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
        """Removes messages of a user.

        Args:
            user_id: whose messages.
            message_ids: which; those that are not there are no error.

        Returns:
            int: how many there were, once it is durable that they are gone.
        """
        ...

    async def count(self, user_id: str) -> int:
        """The number of messages that are kept for a user."""
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
        """The users for whom others have stored messages.

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
        """The ids of these messages that are not in the store.

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
    """The error of an append for an id that is taken by other data.

    Args:
        where: names the store.
        user_id: the user that the message is for.
        message_id: of both messages.
        data: of the message that is in the store.
    """
    text = f"{where}: user {user_id!a} has another message with the id {message_id!a}"
    return MessageExistsError(text, data)


def full_error(where: str, user_id: str, limit: int) -> OfflineStoreFullError:
    """The error of an append at the limit; `where` names the store."""
    return OfflineStoreFullError(f"{where}: it may keep {limit} messages for user {user_id!r}")
