"""The call of the script that writes, for an opened store, and for a publisher that has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from wsc_fast.stores.base import MOST_DROPPED
from wsc_fast.stores.redis.pace import MOST_BYTES

# Seconds for which a user's messages are kept after the last append, unless a store is told
# otherwise.
KEEP_SECONDS = 30 * 86400.0
# Users that `recent` holds, and the seconds that it holds them: an `appended` that asks for what is
# further back gets the rest only.
RECENT_USERS, RECENT_SECONDS = 10_000, 3600


class Write(NamedTuple):
    """A batch of writes, as the script takes it.

    Attributes:
        prefix: of all keys.
        users: in the order of their numbers.
        operations: in MessagePack.
        strings: of the operations, all in one.
        reply: the key of the reply.
        reply_seconds: for which it is kept.
        number: of the batch.
        ttl: milliseconds for which messages are kept.
        origin: 8 bytes that name the writer in `recent`.
    """

    prefix: bytes
    users: Iterable[bytes]
    operations: bytes
    strings: bytes
    reply: bytes
    reply_seconds: int
    number: int
    ttl: int
    origin: bytes

    def arguments(self, heard: int) -> tuple[Any, ...]:
        """The number of keys, the keys and the arguments.

        Args:
            heard: the number of the last batch whose reply has arrived.
        """
        keys = [self.reply, *keys_of(self.prefix, self.users)]
        bounds = (self.reply_seconds, self.ttl, len(self.prefix + b"messages:"), MOST_BYTES)
        kept = (MOST_DROPPED, RECENT_USERS, RECENT_SECONDS)
        packed = (self.operations, self.strings)
        return len(keys), *keys, self.number, heard, *bounds, self.origin, *kept, *packed


class NewMessage(NamedTuple):
    """A message to append: the key of its mailbox, its id, and its bytes."""

    mailbox: bytes
    id: bytes
    data: bytes


def appends(
    prefix: bytes, messages: Sequence[NewMessage], limit: int, reply: bytes, reply_seconds: int
) -> list[bytes]:
    """The script's arguments for appends by one that has no store.

    The same call may be made again while its reply is kept: it is done once.

    Args:
        prefix: of all keys of the store.
        messages: in order.
        limit: of messages in a mailbox; one more is refused.
        reply: the key of the reply, new for each call.
        reply_seconds: for which it is kept.
    """
    users: dict[bytes, int] = {}
    packed = [
        (users.setdefault(each.mailbox, len(users) + 1), len(each.id), len(each.data), limit, False)
        for each in messages
    ]
    write = Write(
        prefix,
        users,
        msgspec.msgpack.encode(packed),
        b"".join(part for each in messages for part in (each.id, each.data)),
        reply,
        reply_seconds,
        number=1,
        ttl=int(KEEP_SECONDS * 1000),
        origin=bytes(8),
    )
    return [each if isinstance(each, bytes) else b"%d" % each for each in write.arguments(0)]


def keys_of(prefix: bytes, users: Iterable[bytes]) -> list[bytes]:
    """The keys that both scripts take: those of all users, and of each of these."""
    keys = [prefix + name for name in (b"position", b"oldest", b"recent")]
    for user in users:
        keys += (prefix + b"messages:" + user, prefix + b"order:" + user)
    return keys
