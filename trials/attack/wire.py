"""Bytes of attackers beside those of wsc_fast.testing: heads that never end, and bombs."""

from __future__ import annotations

import zlib

from wsc_fast.testing import BINARY, TEXT, deflated, encode, upgrade_request

# Of the server's HTTP API.
API_KEY = "key-of-an-honest-caller"
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def request(*headers: str, path: str = "/ws", end: bytes = b"\r\n\r\n") -> bytes:
    """An upgrade request, with further headers; without its `end` it is never done."""
    lines = [(name, value) for name, _, value in (each.partition(": ") for each in headers)]
    return upgrade_request(path=path, headers=lines).removesuffix(b"\r\n\r\n") + end


def api_request(key: str, body: bytes = b"", length: int = 0) -> bytes:
    """A request to the HTTP API; without a whole body it announces one of a mebibyte."""
    lines = [
        "POST /api/batch HTTP/1.1",
        "Host: x",
        f"X-API-Key: {key}",
        "Content-Type: application/json",
        f"Content-Length: {length or 1 << 20}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def bomb(inflated: int) -> bytes:
    """A compressed message of so many zeros, about a thousandth of their size."""
    deflater = zlib.compressobj(9, wbits=-15)
    body = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(inflated >> 20))
    body += deflater.flush(zlib.Z_SYNC_FLUSH)
    return encode(BINARY, body[:-4], rsv=4)


def small_bomb(text: str) -> bytes:
    """A compressed message of a text, which is no more than some limit once it is inflated."""
    return encode(TEXT, deflated(text.encode(), level=9), rsv=4)
