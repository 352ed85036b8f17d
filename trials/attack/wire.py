"""The bytes that clients of this folder send: requests, frames, bombs. No library is asked."""

from __future__ import annotations

import contextlib
import ssl
import struct
import zlib

TEXT, BINARY, CONTINUATION, PING = 1, 2, 0, 9


def request(*headers: str, path: str = "/ws", end: bytes = b"\r\n\r\n") -> bytes:
    """An upgrade request, with further headers; without its `end` it is never done."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return "\r\n".join(lines).encode() + end


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame under the mask 0, which changes nothing."""
    return head(opcode, len(payload), fin=fin, rsv1=rsv1) + payload


def head(opcode: int, size: int, *, fin: bool = True, rsv1: bool = False) -> bytes:
    """The head of a frame that claims so many bytes."""
    first = fin << 7 | rsv1 << 6 | opcode
    if size < 126:
        start = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        start = struct.pack("!BBH", first, 0xFE, size)
    else:
        start = struct.pack("!BBQ", first, 0xFF, size)
    return start + bytes(4)


def trusting() -> ssl.SSLContext:
    """Of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_hello() -> bytes:
    """What a TLS client sends first; to be sent again and again, at no cost for the sender."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


def bomb(inflated: int) -> bytes:
    """A compressed message of so many zeros, about a thousandth of their size."""
    deflater = zlib.compressobj(9, wbits=-15)
    body = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(inflated >> 20))
    body += deflater.flush(zlib.Z_SYNC_FLUSH)
    return frame(BINARY, body[:-4], rsv1=True)


def small_bomb(text: str) -> bytes:
    """A compressed message of a text, which is no more than some limit once it is inflated."""
    deflater = zlib.compressobj(9, wbits=-15)
    body = deflater.compress(text.encode()) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return frame(TEXT, body[:-4], rsv1=True)
