"""A slow, plain model of RFC 6455's receiving side: what a server must make of a client's bytes.

Written from the RFC and not from our parser, byte by byte, to compare the parser with.
"""

from __future__ import annotations

import codecs
import zlib
from dataclasses import dataclass, field

# A server's acts: ("message", str | bytes), ("pong", payload), ("close", code or None for an
# empty one), ("fail", close code).
Event = tuple[str, object]

DATA = {0, 1, 2}
CONTROL = {8, 9, 10}


class Failed(Exception):
    """The peer broke the protocol; args[0] is the close code."""


def sendable(code: int) -> bool:
    """Whether a peer may close with this code (RFC 6455 section 7.4, and the IANA registry)."""
    return code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code <= 4999


@dataclass
class Model:
    """One connection, after the upgrade.

    Attributes:
        max_message_size: bytes of one message, over all fragments, inflated.
        max_fragments: of one message that has more than one frame.
        deflate: permessage-deflate is agreed on, without context takeover.
    """

    max_message_size: int = 1 << 20
    max_fragments: int = 16_384
    deflate: bool = False
    events: list[Event] = field(default_factory=list)
    done: bool = False
    _input: bytearray = field(default_factory=bytearray)
    # The message under way: its opcode, payload so far, frames, whether compressed.
    _opcode: int | None = None
    _payload: bytearray = field(default_factory=bytearray)
    _frames: int = 0
    _compressed: bool = False
    _utf8: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    # The data frame under way: payload to come, key, FIN.
    _left: int = 0
    _key: bytes = b""
    _at: int = 0
    _fin: bool = False
    _in_frame: bool = False

    def feed(self, data: bytes) -> None:
        """Takes the next bytes; what follows from them is appended to `events`."""
        for byte in data:
            if self.done:
                return
            try:
                self._take(byte)
            except Failed as failure:
                self.events.append(("fail", failure.args[0]))
                self.done = True

    def _take(self, byte: int) -> None:
        if self._in_frame:
            self._payload_byte(byte ^ self._key[self._at % 4])
            return
        self._input.append(byte)
        head = self._input
        opcode = head[0] & 15
        if opcode not in DATA | CONTROL:
            raise Failed(1002)
        if opcode in CONTROL and head[0] < 128:
            raise Failed(1002)
        if len(head) < 2:
            return
        if head[1] < 128:
            raise Failed(1002)
        size, at = head[1] & 127, 2
        if opcode in CONTROL and size > 125:
            raise Failed(1002)
        if size > 125:
            at = 4 if size == 126 else 10
            if len(head) < at:
                return
            size = int.from_bytes(head[2:at], "big")
            if size < (126 if at == 4 else 65536) or size >= 1 << 63:
                raise Failed(1002)
        if len(head) < at + 4:
            return
        key, reserved = bytes(head[at : at + 4]), head[0] >> 4 & 7
        if opcode in CONTROL:
            if len(head) < at + 4 + size:
                return
            if reserved:
                raise Failed(1002)
            masked = head[at + 4 :]
            self._input = bytearray()
            self._control(opcode, bytes(b ^ key[i % 4] for i, b in enumerate(masked)))
            return
        self._begin(opcode, head[0] >= 128, reserved, size)
        self._input = bytearray()
        self._key, self._at, self._left = key, 0, size
        self._in_frame = True
        if not size:
            self._end_of_frame()

    def _begin(self, opcode: int, fin: bool, reserved: int, size: int) -> None:
        compressed = reserved == 4 and self.deflate and opcode != 0
        if reserved and not compressed:
            raise Failed(1002)
        if (opcode == 0) != (self._opcode is not None):
            raise Failed(1002)
        if opcode:
            self._opcode, self._payload, self._frames = opcode, bytearray(), 0
            self._compressed = compressed
            self._utf8.reset()
        # A compressed message that could not be made smaller may be a little larger.
        slack = self.max_message_size // 8 + 64 if self._compressed else 0
        if len(self._payload) + size > self.max_message_size + slack:
            raise Failed(1009)
        self._frames += 1
        if self._frames > self.max_fragments and (self._frames > 1 or not fin):
            raise Failed(1008)
        self._fin = fin

    def _payload_byte(self, byte: int) -> None:
        self._payload.append(byte)
        self._at += 1
        self._left -= 1
        if self._opcode == 1 and not self._compressed:
            try:
                self._utf8.decode(bytes([byte]))
            except UnicodeDecodeError:
                raise Failed(1007) from None
            # Python's decoder waits for the third byte of a surrogate.
            begun = self._utf8.getstate()[0]
            if len(begun) == 2 and begun[0] == 0xED and begun[1] >= 0xA0:
                raise Failed(1007)
        if not self._left:
            self._end_of_frame()

    def _end_of_frame(self) -> None:
        self._in_frame = False
        if not self._fin:
            return
        payload, opcode = bytes(self._payload), self._opcode
        self._opcode = None
        if self._compressed:
            payload = self._inflate(payload)
        if opcode == 2:
            self.events.append(("message", payload))
            return
        try:
            self.events.append(("message", payload.decode()))
        except UnicodeDecodeError:
            raise Failed(1007) from None

    def _inflate(self, payload: bytes) -> bytes:
        inflater = zlib.decompressobj(-15)
        message = bytearray()
        # The tail that the sender has cut off (RFC 7692 section 7.2.2). Byte by byte, so that it is
        # known what comes out before a fault.
        for at, byte in enumerate(payload + b"\x00\x00\xff\xff"):
            try:
                message += inflater.decompress(bytes([byte]))
            except zlib.error:
                raise Failed(1007) from None
            if len(message) > self.max_message_size:
                raise Failed(1009)
            if inflater.eof:
                # The last block may be marked so; an empty byte may follow it (section 7.2.3.4).
                if payload[at + 1 :] not in (b"", b"\x00") or at >= len(payload):
                    raise Failed(1007)
                return bytes(message)
        try:
            # A stored block behind it comes out as it is only if the message ends with a block. Its
            # padding is ones: zeros could end a block that is still open.
            if inflater.decompress(b"\xf8\x04\x00\xfb\xffends") != b"ends":
                raise Failed(1007)
        except zlib.error:
            raise Failed(1007) from None
        return bytes(message)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:
            self.events.append(("pong", payload))
        elif opcode == 8:
            self.done = True
            if len(payload) == 1:
                raise Failed(1002)
            code = int.from_bytes(payload[:2], "big") if payload else None
            if code is not None and not sendable(code):
                raise Failed(1002)
            try:
                payload[2:].decode()
            except UnicodeDecodeError:
                raise Failed(1007) from None
            self.events.append(("close", code))
