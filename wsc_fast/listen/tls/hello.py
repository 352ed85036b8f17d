"""The ClientHello that begins a TLS stream: whether all of it is there, and what it asks for."""

from __future__ import annotations

# A ClientHello (RFC 8446 sections 4.1.2 and 5.1): in how many records it may come, and its size
# with their heads. OpenSSL's has 300 to 2,000 bytes; some clients cut theirs up, to pass filters.
_HELLO_RECORDS = 16
_RECORD_HEAD = 5
HELLO_MOST = 16 * 1024 + _HELLO_RECORDS * _RECORD_HEAD
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51
# Groups (RFC 8446 section 4.2.7): the curves that OpenSSL prefers, and those over finite fields.
_CURVES = frozenset((0x17, 0x18, 0x19, 0x1D, 0x1E))
_FINITE_FIELDS = range(0x100, 0x105)
_MOST_GROUPS = 100


def _take_hello(data: bytes) -> tuple[int | None, bytes]:
    """The result of `hello_size` for a stream, and the message out of its records so far."""
    end = 0
    hello = b""
    for _ in range(_HELLO_RECORDS):
        start = end + _RECORD_HEAD
        if len(data) < start:
            return start, hello
        if data[end] != _HANDSHAKE:
            return None, hello
        end = start + int.from_bytes(data[end + 3 : start])
        if end == start or end > HELLO_MOST:
            return None, hello
        hello += data[start:end]
        if len(data) < end:
            return end, hello
        if hello[0] != _CLIENT_HELLO:
            return None, hello
        if len(hello) >= 4 and len(hello) - 4 >= int.from_bytes(hello[1:4]):
            return end, hello
    return None, hello


def hello_size(data: bytes) -> int | None:
    """The bytes of a stream that have to be there for its ClientHello to be whole, or to tell more.

    Args:
        data: how the stream begins.

    Returns:
        At most `len(data)` once it is whole; None for what is no ClientHello.
    """
    return _take_hello(data)[0]


def is_costly(data: bytes) -> bool:
    """Whether OpenSSL would do Diffie-Hellman over a finite field for a ClientHello.

    It takes 100 times as long as on a curve, and is the peer's choice: OpenSSL takes the first key
    share of a group that it knows, or asks for one (RFC 8446 sections 4.2.7 and 4.2.8). No client
    has so many groups that they would take long to look at.

    Args:
        data: how the stream begins; what follows the ClientHello does not count.
    """
    body = _take_hello(data)[1]
    body = body[: 4 + int.from_bytes(body[1:4])]
    at = 4 + 2 + 32  # its head, version, random
    at += 1 + int.from_bytes(body[at : at + 1])  # session id
    at += 2 + int.from_bytes(body[at : at + 2])  # cipher suites
    at += 1 + int.from_bytes(body[at : at + 1])  # compression
    at += 2
    supported = b""
    while len(body) >= at + 4:
        kind, size = int.from_bytes(body[at : at + 2]), int.from_bytes(body[at + 2 : at + 4])
        content = body[at + 6 : at + 4 + size]  # behind the length of its list
        at += 4 + size
        if kind == _SUPPORTED_GROUPS:
            supported = content
        elif kind == _KEY_SHARE:
            share = 0
            for _ in range(_MOST_GROUPS):
                if len(content) < share + 4:
                    break
                group = int.from_bytes(content[share : share + 2])
                if group in _CURVES or group in _FINITE_FIELDS:
                    return group in _FINITE_FIELDS
                share += 4 + int.from_bytes(content[share + 2 : share + 4])
            else:
                return True
    if len(supported) > 2 * _MOST_GROUPS:
        return True
    groups = {int.from_bytes(supported[each : each + 2]) for each in range(0, len(supported), 2)}
    return _CURVES.isdisjoint(groups) and any(group in _FINITE_FIELDS for group in groups)
