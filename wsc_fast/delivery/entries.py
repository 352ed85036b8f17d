"""A message in the offline store, where several hubs send: before its JSON stands who has sent it.

    wsc1 HUB TIMEOUT\\n<the HubMessage as JSON>

HUB is the name of the sending hub on the bus. TIMEOUT is that of the message in seconds, `-` where
it has none of its own. A message that a hub without a bus has stored has no such line.
"""

from __future__ import annotations

from typing import NamedTuple

_MARK = b"wsc1 "


class Entry(NamedTuple):
    """A message out of the store.

    Attributes:
        data: the HubMessage as JSON.
        origin: the name of the hub that has sent it; None: it is not known.
        timeout: seconds; None: it has none of its own.
    """

    data: bytes
    origin: str | None
    timeout: float | None


def pack(data: bytes, origin: str, timeout: float | None) -> bytes:
    """The bytes to store of a message.

    Args:
        data: the HubMessage as JSON.
        origin, timeout: see `Entry`.
    """
    return b"%b%b %b\n%b" % (
        _MARK,
        origin.encode(),
        b"-" if timeout is None else repr(timeout).encode(),
        data,
    )


def unpack(stored: bytes) -> Entry:
    """The message whose bytes are stored. Bytes that no hub has written are its data."""
    if not stored.startswith(_MARK):
        return Entry(stored, None, None)
    line, _, data = stored.partition(b"\n")
    try:
        _, origin, timeout = line.decode().split(" ")
        return Entry(data, origin, None if timeout == "-" else float(timeout))
    except ValueError:
        return Entry(stored, None, None)
