"""The calls by which a hub, or a publisher without one, publishes and reads; and errors of both."""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache

from wsc_fast.bus.base import KEY_SECONDS, OUTCOME_SECONDS, Outcome, Retention, Word
from wsc_fast.bus.redis.commands import Names, encode, script

# A call publishes at most so many messages, and takes no further one beyond so many bytes.
MOST_MESSAGES, MOST_ENVELOPE = 64, 65536
# The position of a room's newest message is known for at least so many seconds.
TOP_SECONDS = 86400
# Milliseconds by which the clocks of two servers may differ when an outcome is looked up.
CLOCKS_DIFFER = 5000
# Users of one page of a room's members, and of one question for who is online.
MEMBERS, USERS_AT_ONCE = b"500", 500
# Bytes of entries after which a page of a history ends.
MOST_PAGE = 4 << 20


def new_tag() -> bytes:
    """A text that no other call has: 48 random bits."""
    return base64.urlsafe_b64encode(os.urandom(6))


@lru_cache(maxsize=64)
def times(retention: Retention) -> tuple[bytes, bytes, bytes, bytes]:
    """The times of a kept room, as the script takes them.

    The life of the stream is renewed once in a slot of time, and so longer by a slot. A slot is as
    many milliseconds as the last digits of an entry's id count: a power of ten.
    """
    milliseconds = int(retention.ttl * 1000)
    digits = max(0, len(str(milliseconds // 4)) - 1)
    life = milliseconds + 10**digits
    top = max(int(retention.ttl), TOP_SECONDS)
    return b"%d" % life, b"%d" % top, b"%d" % KEY_SECONDS, b"%d" % (13 - digits)


def plain_envelope(origin: bytes, entries: Sequence[bytes]) -> bytes:
    """The envelope of messages of a plain room, or of broadcasts."""
    parts = [b"wsc1 p %b - %d\n" % (origin, len(entries))]
    for entry in entries:
        parts += (b"- ", entry)
    return b"".join(parts)


def publish_plain(names: Names, room: str, origin: bytes, entries: Sequence[bytes]) -> list[bytes]:
    """Publishes messages of a plain room, neighbours, or broadcasts."""
    return [b"PUBLISH", names.channel(room), plain_envelope(origin, entries)]


def publish_once(
    names: Names, room: str, origin: bytes, entry: bytes, key: str, tag: bytes
) -> list[bytes]:
    """Publishes a message of a plain room, unless one was published under its key before."""
    return [
        b"EVAL",  # its text is short, and so it cannot be missing at the server
        script("once").text,
        b"1",
        names.idempotency(room, key),
        names.channel(room),
        plain_envelope(origin, [entry]),
        tag,
        b"%d" % KEY_SECONDS,
    ]


def publish_kept(
    names: Names,
    room: str,
    origin: bytes,
    messages: Sequence[tuple[bytes, str | None]],
    retention: Retention,
    tag: bytes,
    age: float | None,
) -> list[bytes]:
    """Publishes messages of a kept room.

    Args:
        names: of keys and channels.
        room: its id.
        origin: the name of the hub or publisher.
        messages: the entry and the idempotency key of each.
        retention: of the room.
        tag: of this call, and of each attempt to make it.
        age: seconds since the first attempt, whose outcome is not known; None: it is the first.
    """
    keys = [*names.history(room)]
    keys += [names.idempotency(room, key) for _, key in messages if key is not None]
    keyed = b"".join(b"0" if key is None else b"1" for _, key in messages)
    return [
        b"EVALSHA",
        script("publish").sha,
        b"%d" % len(keys),
        *keys,
        names.channel(room),
        origin,
        tag,
        b"%d" % retention.size,
        *times(retention),
        b"" if age is None else b"%d" % (age * 1000 + CLOCKS_DIFFER),
        keyed if len(keys) > 2 else b"",
        *(b"%b %b" % (tag, entry) for entry, _ in messages),
    ]


def read_history(
    names: Names, room: str, since: str | None, limit: int, retention: Retention
) -> list[bytes]:
    """Reads the history of a kept room; see `Bus.read`."""
    stream, top = names.history(room)
    return [
        b"EVALSHA",
        script("read").sha,
        b"2",
        stream,
        top,
        _position(since),
        b"%d" % limit,
        new_tag(),
        b"%d" % max(int(retention.ttl), TOP_SECONDS),
        b"%d" % MOST_PAGE,
    ]


def ask_directory(names: Names, what: bytes, *arguments: bytes) -> list[bytes]:
    """A question about who is where: "members", "online" or "nodes"; see directory.lua."""
    return [b"EVALSHA", script("directory").sha, b"0", what, names.prefix, b"", b"", *arguments]


def tell_hubs(names: Names, incarnation: str, words: Sequence[Word]) -> list[bytes]:
    """Sends words to the hubs that have their users, but for that of the incarnation."""
    pairs = [part for user, data, _ in words for part in (encode(user), data)]
    return [*_users(names, b"tell", incarnation), *pairs]


def tell_hub(names: Names, words: Sequence[Word]) -> list[bytes]:
    """Sends each of the words to the one hub that it names."""
    pairs = [part for word in words for part in (encode(word.hub), word.data)]
    return [*_users(names, b"tell_hub", ""), *pairs]


def note_outcomes(names: Names, incarnation: str, outcomes: Sequence[Outcome]) -> list[bytes]:
    """Notes how messages have ended, and tells the hubs that have copies."""
    arguments = [*_users(names, b"settle", incarnation), b"%d" % OUTCOME_SECONDS]
    for word, mailbox, message_id, outcome, first, waits in outcomes:
        key = names.outcome(mailbox, message_id)
        arguments += (encode(word.user), key, outcome, b"%d" % first, encode(waits), word.data)
    return arguments


def ask_elsewhere(names: Names, incarnation: str, users: Sequence[str]) -> list[bytes]:
    """Asks which of these users other hubs have."""
    return [*_users(names, b"elsewhere", incarnation), *map(encode, users)]


def ask_clients(names: Names, user: str) -> list[bytes]:
    """Asks how many clients a user has on all hubs."""
    return [*_users(names, b"clients", ""), encode(user)]


def _users(names: Names, what: bytes, incarnation: str) -> list[bytes]:
    return [b"EVALSHA", script("users").sha, b"0", what, names.prefix, encode(incarnation)]


def _position(since: str | None) -> bytes:
    """A position for the script, in which nothing asks for the newest messages."""
    return b"" if since is None else since.encode("utf-8", "replace") or b"-"


def number_of_server(room: str, servers: int) -> int:
    """The number of the server that has a room, of a list of so many."""
    return jump(zlib.crc32(encode(room)), servers)


def jump(key: int, buckets: int) -> int:
    """The number of the server of a room (Lamping and Veach, "A Fast, Minimal Memory, Consistent
    Hash Algorithm"): with one server more, only the rooms move that go there.

    Args:
        key: the CRC-32 of the room's id.
        buckets: how many servers there are.
    """
    last, place = -1, 0
    while place < buckets:
        last = place
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        place = int((last + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return last


def is_passing(text: str) -> bool:
    """Whether a command that has had this error may be done a little later."""
    return text.startswith(("LOADING", "BUSY ", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS")) or (
        "-NOREPLICAS" in text
    )


def is_elsewhere(text: str) -> bool:
    """Whether this error says that another server is the master now."""
    # Before version 7 a server begins the text with the place in the script.
    return text.startswith(("READONLY", "MASTERDOWN")) or "-READONLY" in text
