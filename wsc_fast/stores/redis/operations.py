"""Operations: calls that wait for the server, in the form that a script takes and returns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from wsc_fast.stores.base import StoredMessage

# Bytes that an operation occupies besides its strings, about.
OVERHEAD = 300
# Positions are exact as doubles up to here; that is the year 2255.
LAST_POSITION = 1 << 53


class Operation:
    """A call that waits for the server, or that the server is working on.

    Attributes:
        user: its id.
        strings: that go to the server.
        size: bytes of memory, about.
        born: when it was called.
        future: the caller's, who may cancel it.
        reads: of the same user, which wait until it is done, whatever becomes of it.
    """

    __slots__ = ("born", "future", "reads", "size", "strings", "user")

    def __init__(self, user: bytes, strings: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self.user: bytes = user
        self.strings: Sequence[bytes] = strings
        self.size: int = OVERHEAD + len(user) + sum(map(len, strings)) + 50 * len(strings)
        self.born: float = loop.time()
        self.future: asyncio.Future[Any] = loop.create_future()
        self.reads: list[Read] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(string) for string in self.strings]

    def packed(self, user: int) -> tuple[Any, ...]:
        """The operation as it goes to the script, with the number of the user."""
        return user, self.lengths


class Append(Operation):
    """A message to keep."""

    __slots__ = ("drop_oldest", "limit")

    def __init__(
        self, user: bytes, message_id: bytes, data: bytes, limit: int, drop_oldest: bool
    ) -> None:
        super().__init__(user, (message_id, data))
        self.limit: int = limit
        self.drop_oldest: bool = drop_oldest

    def packed(self, user: int) -> tuple[Any, ...]:
        return user, *self.lengths, self.limit, self.drop_oldest


class Delete(Operation):
    """Message ids to remove."""

    __slots__ = ()


class Expire(Operation):
    """Messages to remove because they are too old, if they are still where they were read.

    Without messages it mends what `oldest` says of its user.
    """

    __slots__ = ("messages", "positions")

    def __init__(self, user: bytes, rows: Sequence[Row]) -> None:
        super().__init__(user, [row.id for row in rows])
        self.positions: list[int] = [int(row.position) for row in rows]
        self.messages: list[StoredMessage | None] = [row.message for row in rows]

    def packed(self, user: int) -> tuple[Any, ...]:
        return user, self.lengths, self.positions

    def removed(self, which: Iterable[int]) -> list[StoredMessage]:
        """The messages, by the numbers that the script returned."""
        messages = [self.messages[number - 1] for number in which]
        return [message for message in messages if message is not None]


class Row(msgspec.Struct):
    """A message that is too old, as it was read. It has no data if these were evicted."""

    user: bytes
    id: bytes
    position: bytes
    data: bytes | None

    @property
    def message(self) -> StoredMessage | None:
        return None if self.data is None else stored(self.position, self.id, self.data)


class Read(Operation):
    """A question; `kind` and `arguments` are those of the script."""

    __slots__ = ("arguments", "kind")

    def __init__(
        self,
        kind: str,
        user: bytes = b"",
        strings: Sequence[bytes] = (),
        arguments: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(user, strings)
        self.kind: str = kind
        self.arguments: tuple[Any, ...] = arguments

    def packed(self, user: int) -> tuple[Any, ...]:
        return self.kind, user, self.lengths, *self.arguments


def pack(batch: Sequence[Operation]) -> tuple[Iterable[bytes], bytes, bytes]:
    """The users of a batch by their numbers, its operations in MessagePack, and their strings."""
    users: dict[bytes, int] = {}
    packed = [each.packed(users.setdefault(each.user, len(users) + 1)) for each in batch]
    strings = b"".join(string for each in batch for string in each.strings)
    return users, msgspec.msgpack.encode(packed), strings


def encode(text: str) -> bytes:
    # A lone surrogate must not raise: the id may come from a client.
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def bounded(number: int) -> int:
    """A number that the scripts count with exactly."""
    return max(-LAST_POSITION, min(number, LAST_POSITION))


def stored(position: bytes, message_id: bytes, data: bytes) -> StoredMessage:
    number = int(position)
    return StoredMessage(number, decode(message_id), data, number / 1e6)


def dropped(flat: Sequence[bytes]) -> list[StoredMessage]:
    """The messages that an append dropped, in the form in which the script returns them."""
    return [stored(position, name, data) for name, position, data in groups(flat, 3)]


def groups(flat: Sequence[bytes], size: int) -> list[tuple[bytes, ...]]:
    return list(zip(*[iter(flat)] * size, strict=True))
