from collections.abc import Iterable

_Opened = tuple[bytes, tuple[str, ...] | None, str | None]

def pack_entry(frame: bytes, exclude: Iterable[str], key: str | None) -> bytes:
    """The entry of a message that this hub publishes.

    Args:
        frame: of the message, plain; b"" makes a mark.
        exclude: ids of clients that do not get it, or nothing.
        key: the conflation key, or None.

    Returns:
        bytes: FLAGS to payload.

    Thread-safety: any thread.
    """

def pack_envelope(kind: str, origin: str, prev: str, entries: Iterable[tuple[str, bytes]]) -> bytes:
    """An envelope.

    Args:
        kind: "k" or "p".
        origin: the name of the hub.
        prev: the position before the first entry, or "-".
        entries: (position, entry) of each message.

    Returns:
        bytes.

    Thread-safety: any thread.
    """

def read_envelope(
    data: bytes,
) -> tuple[str, str, str, list[tuple[str, bytes, tuple[str, ...] | None, str | None]]]:
    """An envelope that has come over a bus.

    Args:
        data: its bytes.

    Returns:
        tuple[str, str, str, list[tuple[str, bytes, tuple[str, ...] | None, str | None]]]: kind,
        origin, prev, and for each message its position, its frame, the ids of clients that do not
        get it, and its conflation key. A mark has b"" for a frame. No messages: the history of a
        kept room was deleted.

    Raises:
        ValidationError: these bytes are no envelope.

    Thread-safety: any thread.
    """

def open_entry(entry: bytes) -> _Opened:
    """The message of an entry out of a history.

    Args:
        entry: FLAGS to payload.

    Returns:
        tuple[bytes, tuple[str, ...] | None, str | None]: its frame, the ids of clients that did not
        get it, and its conflation key. A mark has b"" for a frame.

    Raises:
        ValidationError: these bytes are no entry.

    Thread-safety: any thread.
    """
