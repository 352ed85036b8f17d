"""The commands and scripts that go to the server, in bytes, and the names of keys and channels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from wsc_fast.bus.base import EVERYBODY, PRESENCE

# The files of scripts that are called by their names at the server.
SCRIPTS = ("directory", "publish", "read", "users")


class Script:
    """A script that the server runs.

    Attributes:
        text: of the script.
        sha: its name at the server, once it is loaded there.
    """

    def __init__(self, text: bytes) -> None:
        self.text: bytes = text
        # The hash protects no secret.
        self.sha: bytes = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


@cache
def script(name: str) -> Script:
    """The script of a file in this folder; it is read once."""
    from importlib.resources import files  # a publisher is to be imported fast

    return Script((files("wsc_fast.bus.redis") / f"{name}.lua").read_bytes())


def script_of(sha: bytes) -> Script:
    """The script that has this name at the server."""
    return next(each for each in map(script, SCRIPTS) if each.sha == sha)


def command(*arguments: bytes) -> bytes:
    """A command as it goes over the line."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def call(sha: bytes, keys: Sequence[bytes], *arguments: bytes) -> bytes:
    """A call of a script that the server has loaded."""
    return command(b"EVALSHA", sha, b"%d" % len(keys), *keys, *arguments)


def encode(text: str) -> bytes:
    """The bytes of a room's id, or of an idempotency key."""
    # A lone surrogate must not raise: the id may come from a client.
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    """The id whose bytes these are."""
    return data.decode("utf-8", "surrogatepass")


class Names:
    """The names of keys and channels, which all begin with one prefix.

    Args:
        prefix: of all.
    """

    def __init__(self, prefix: bytes) -> None:
        self.prefix: bytes = prefix

    def channel(self, room: str) -> bytes:
        """The channel of a room, of all clients, or of who is present."""
        if room == EVERYBODY:
            return self.prefix + b"c:"
        if room.startswith(PRESENCE):
            return b"%be:{%b}" % (self.prefix, encode(room.removeprefix(PRESENCE)))
        return b"%bc:{%b}" % (self.prefix, encode(room))

    def inbox(self, origin: str) -> bytes:
        """The channel of one hub."""
        return b"%bn:%b" % (self.prefix, encode(origin))

    def kept(self) -> bytes:
        """The key that says which rooms are kept, for publishers without a hub."""
        return self.prefix + b"keep"

    def history(self, room: str) -> tuple[bytes, bytes]:
        """The keys of a kept room: its stream, and the position of its newest message."""
        name = encode(room)
        return b"%bh:{%b}" % (self.prefix, name), b"%bt:{%b}" % (self.prefix, name)

    def present(self, room: str) -> bytes:
        """The key of the users who are present in a room."""
        return b"%bp:{%b}" % (self.prefix, encode(room))

    def top(self, room: str) -> bytes:
        """The key of the position of a kept room's newest message."""
        return b"%bt:{%b}" % (self.prefix, encode(room))

    def offline(self) -> bytes:
        """The prefix of the keys of the offline store on the bus."""
        return self.prefix + b"offline:"

    def outcome(self, mailbox: str, message_id: str) -> bytes:
        """The key of how a message to a user has ended."""
        name = encode(mailbox)
        return b"%bk:%d:{%b}:%b" % (self.prefix, len(name), name, encode(message_id))

    def idempotency(self, room: str, key: str) -> bytes:
        """The key of what was published in a room under an idempotency key."""
        name = encode(room)
        # With the length no two pairs of room and key have the same name.
        return b"%bi:%d:{%b}:%b" % (self.prefix, len(name), name, encode(key))
