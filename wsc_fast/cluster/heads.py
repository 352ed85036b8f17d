"""Head lines of wsc.1, the subprotocol of clients that recover (docs/wire.md).

Each message of such a client, in both directions, is a head line, a newline, and the payload. The
head is empty, or one JSON object.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from wsc_fast._core.frames import encode_frame
from wsc_fast.messages import payload_of

# The name of the subprotocol, and the query that asks for it beside another one.
SUBPROTOCOL = "wsc.1"
IN_QUERY = b"wsc=1"
# A hello names at most so many rooms.
MOST_ROOMS = 100

_Room = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Position = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
# Heads that come without a message; see docs/wire.md.
_ALONE = ("recovered", "skipped", "gap", "bus")
_BINARY = 2


class Head(msgspec.Struct):
    """The head line of a message of a client.

    Attributes:
        hello: 1 in the first message of a connection.
        pos: of each room that it was in, the position up to which it has all.
    """

    hello: int = 0
    pos: dict[_Room, _Position] = {}


def decode_head(line: str | bytes) -> Head | str:
    """The head line of a client's message; a str where it is none, which tells the client why."""
    try:
        head = msgspec.json.decode(line, type=Head)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"a head line of wsc.1 that is none: {error}"
    if head.hello not in (0, 1):
        return "a hello of another version than 1"
    if len(head.pos) > MOST_ROOMS:
        return f"a hello with more than {MOST_ROOMS} rooms"
    return head


def without_heads(frames: list[bytes]) -> list[bytes]:
    """Frames of a client that speaks wsc.1 as others get them.

    Args:
        frames: as encoded by the hub.

    Returns:
        list[bytes]: plain frames, without those that carry no message of the application.
    """
    return [plain for frame in frames if (plain := _without_head(frame)) is not None]


def _without_head(frame: bytes) -> bytes | None:
    head, _, payload = payload_of(frame).partition(b"\n")
    if not payload and head:
        fields: Any = msgspec.json.decode(head)
        if isinstance(fields, dict) and any(name in fields for name in _ALONE):
            return None
    return encode_frame(payload if frame[0] & 15 == _BINARY else payload.decode())
