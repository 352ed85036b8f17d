"""WebSocket frames as bytes, sound or broken on purpose.

Written from RFC 6455 alone. The engine's encoder and parser are not used here: a kit that shared
their mistakes would not see them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
# A mask that leaves the payload as it is, so that it can be read in the bytes.
PLAIN_MASK = bytes(4)


@dataclass(frozen=True)
class Frame:
    """One frame as the server sent it."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def code(self) -> int:
        """Close code of a close frame, 1005 where it has none."""
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2]) if self.payload else 1005


def head(
    opcode: int,
    size: int,
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    mask: bytes = PLAIN_MASK,
    length_bytes: int = 0,
) -> bytes:
    """The head of a frame that claims a payload of `size` bytes, whatever follows it.

    Args:
        opcode: 0 to 15.
        size: the length that it claims.
        fin: whether it ends its message.
        rsv: the three reserved bits; 4 marks a compressed message.
        masked: whether it has a mask, as each frame of a client must.
        mask: the four bytes of the mask.
        length_bytes: 2 or 8 to write the length in so many bytes though fewer would do, which RFC
            6455 forbids; 0 for the shortest form.

    Returns:
        2 to 14 bytes.
    """
    first, mask_bit = (0x80 if fin else 0) | rsv << 4 | opcode, 0x80 if masked else 0
    if size < 126 and length_bytes == 0:
        start = struct.pack("!BB", first, mask_bit | size)
    elif size < 65536 and length_bytes < 8:
        start = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        start = struct.pack("!BBQ", first, mask_bit | 127, size)
    return start + (mask if masked else b"")


def encode(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    mask: bytes = PLAIN_MASK,
    length_bytes: int = 0,
) -> bytes:
    """A client's frame.

    Args:
        opcode: 0 to 15; TEXT, BINARY, CONTINUATION, CLOSE, PING and PONG are the known ones.
        payload: what it carries, before it is masked.
        fin: whether it ends its message.
        rsv: the three reserved bits; 4 marks a compressed message.
        masked: whether it has a mask, as each frame of a client must.
        mask: the four bytes of the mask; the default leaves the payload readable.
        length_bytes: as for `head`.

    Returns:
        the whole frame.
    """
    start = head(
        opcode,
        len(payload),
        fin=fin,
        rsv=rsv,
        masked=masked,
        mask=mask,
        length_bytes=length_bytes,
    )
    return start + (apply_mask(payload, mask) if masked and mask != PLAIN_MASK else payload)


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """The payload under a mask of four bytes; doing it twice gives the payload back."""
    size = len(payload)
    whole = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(size)


def take_frame(data: bytearray, *, masked: bool = False) -> Frame | None:
    """Takes the first frame out of `data`.

    Args:
        data: what has come; the frame is deleted from it.
        masked: whether it has to have a mask: True for what a client has sent, which is unmasked,
            False for what a server has sent.

    Returns:
        the frame, or None if it is not whole yet.

    Raises:
        AssertionError: if it has no mask and must have one, or the other way round.
    """
    if len(data) < 2:
        return None
    assert bool(data[1] & 0x80) is masked, f"the mask bit is not {masked}"
    size, start = data[1] & 0x7F, 2
    if size > 125:
        start = 4 if size == 126 else 10
        if len(data) < start:
            return None
        size = int.from_bytes(data[2:start])
    begin = start + 4 if masked else start
    if len(data) < begin + size:
        return None
    payload = bytes(data[begin : begin + size])
    if masked:
        payload = apply_mask(payload, bytes(data[start:begin]))
    frame = Frame(data[0] & 0x0F, payload, bool(data[0] & 0x80), data[0] >> 4 & 7)
    del data[: begin + size]
    return frame


def deflated(data: bytes, window: int = 15, level: int = -1) -> bytes:
    """The payload of a message that a client without context takeover compresses (RFC 7692).

    Args:
        data: the message.
        window: 9 to 15, the bits of the window that was agreed on.
        level: of zlib; 9 for the smallest bombs.

    Returns:
        what goes into frames whose first one has `rsv=4`.
    """
    deflater = zlib.compressobj(level, wbits=-window)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
