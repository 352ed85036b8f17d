"""A plain model of the upgrade request: what a hub answers to it, for fuzz_stream.py to compare.

Written from RFC 9112 (the head), RFC 6455 section 4.2 (the upgrade) and docs/reference.md (the
order of the checks), not from handshake.pyx: whole lines, regular expressions and dicts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

HEAD_MAX = 16_384  # bytes, with the empty line
FIELDS_MAX = 128
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rf"({TOKEN}) (/[\x21-\x7e]*) HTTP/1\.1").fullmatch
FIELD = re.compile(rf"({TOKEN}):([\t\x20-\x7e\x80-\xff]*)").fullmatch
NAME = r"[a-z0-9._-]+|\[[0-9a-f:.]+\]"
HOST = re.compile(rf"({NAME})(?::([0-9]{{1,5}}))?").fullmatch
ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?").fullmatch
PORTS = {"http": 80, "https": 443}
KNOWN_METHODS = {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"}


class Unexpected(Exception):
    """The hub answered something else."""


@dataclass
class Agreed:
    """What the hub's Sec-WebSocket-Extensions says."""

    keeps: bool  # the client's context
    server_keeps: bool
    window: int  # of the client, in bits


@dataclass
class Answer:
    """What has to be answered.

    Attributes:
        status: 0 while the head is not complete.
        rest: what came behind the head.
        deflate: what can be agreed on, for an upgrade.
    """

    status: int
    rest: bytes = b""
    head_only: bool = False
    accept: str = ""
    subprotocol: str | None = None
    deflate: Agreed | None = None

    def compare(self, written: bytes) -> bytes:
        """Raises Unexpected, or returns what was written behind the head of the 101."""
        if self.status == 0:
            if written:
                raise Unexpected(f"answered before the head is whole: {written[:100]!r}")
            return b""
        head, end, rest = written.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        if not end or not first.startswith(f"HTTP/1.1 {self.status} ") or len(fields) != len(lines):
            raise Unexpected(f"{written[:200]!r}, not {self.status}")
        if self.status != 101:
            size = int(fields["Content-Length"])
            if fields["Connection"] != "close" or len(rest) != (0 if self.head_only else size):
                raise Unexpected(f"an answer framed wrongly: {written[:300]!r}")
            return b""
        wanted = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": self.accept,
        }
        if self.subprotocol is not None:
            wanted["Sec-WebSocket-Protocol"] = self.subprotocol
        if self.deflate is not None:
            agreed = fields.pop("Sec-WebSocket-Extensions", "")
            if parsed(agreed) != self.deflate:
                raise Unexpected(f"agreed on {agreed!r}, not {self.deflate}")
        if fields != wanted:
            raise Unexpected(f"{fields}, not {wanted}")
        return rest


def parsed(agreed: str) -> Agreed:
    """The parameters of an answer."""
    name, *parameters = [part.strip() for part in agreed.split(";")]
    if name != "permessage-deflate":
        raise Unexpected(f"agreed on {agreed!r}")
    values = dict(parameter.partition("=")[::2] for parameter in parameters)
    return Agreed(
        "client_no_context_takeover" not in values,
        "server_no_context_takeover" not in values,
        int(values.get("client_max_window_bits", "15")),
    )


def offered(text: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The offers of a Sec-WebSocket-Extensions header, up to the first thing that is none."""
    symbol = re.compile(rf'[ \t]*({TOKEN}|"(?:[^"\\]|\\.)*"|[,;=])[ \t]*')
    found: list[tuple[str, list[tuple[str, str | None]]]] = []
    # One offer per turn, of symbols: NAME (; NAME (= VALUE)?)* and a comma or the end.
    at = 0

    def take(kinds: str) -> str | None:
        nonlocal at
        match = symbol.match(text, at)
        if match is None or not re.match(kinds, match[1]):
            return None
        at = match.end()
        return match[1]

    while True:
        while take(","):
            pass
        name = take(TOKEN)
        if name is None:
            return found
        parameters: list[tuple[str, str | None]] = []
        while take(";"):
            parameter = take(TOKEN)
            if parameter is None or len(parameters) == 16:
                return found
            value = None
            if take("="):
                value = take(rf'{TOKEN}|"')
                if value is None:
                    return found
                if value.startswith('"'):
                    value = re.sub(r"\\(.)", r"\1", value[1:-1])
            parameters.append((parameter.lower(), value))
        if at < len(text) and text[at] != ",":
            return found
        found.append((name.lower(), parameters))


def deflate_of(values: list[str]) -> Agreed | None:
    """RFC 7692 section 7.1, for a hub that would keep both contexts."""
    for name, parameters in offered(",".join(values)):
        if name != "permessage-deflate" or len(dict(parameters)) != len(parameters):
            continue
        agreed: Agreed | None = Agreed(True, True, 15)
        for parameter, value in parameters:
            bits = int(value) if value and re.fullmatch("[89]|1[0-5]", value) else 0
            if agreed is None:
                break
            if parameter == "server_no_context_takeover" and value is None:
                agreed.server_keeps = False
            elif parameter == "client_no_context_takeover" and value is None:
                agreed.keeps = False
            elif parameter == "server_max_window_bits" and bits > 8:
                pass
            elif parameter == "client_max_window_bits" and (bits or value is None):
                agreed.window = bits or 15
            else:
                agreed = None
        if agreed is not None:
            return agreed
    return None


def answer_to(stream: bytes, tls: bool) -> Answer:
    """What a hub with the path /ws and a route /health answers to the first request of a stream."""
    end = stream.find(b"\r\n\r\n")
    if len(stream) >= HEAD_MAX and not 0 <= end <= HEAD_MAX - 4:
        return Answer(431)
    if end < 0:
        return Answer(0)
    first, *lines = stream[:end].decode("latin-1").split("\r\n")
    request = REQUEST_LINE(first)
    fields = [FIELD(line) for line in lines]
    if request is None or None in fields or len(fields) > FIELDS_MAX:
        return Answer(400)
    found: dict[str, list[str]] = {}
    for field in fields:
        assert field is not None
        found.setdefault(field[1].lower(), []).append(field[2].strip(" \t"))
    lengths = found.get("content-length", ["0"])
    if "transfer-encoding" in found or len(lengths) > 1 or not re.fullmatch("0+", lengths[0]):
        return Answer(400)
    method, target = request.groups()
    if method not in ("GET", "HEAD"):
        return Answer(405 if method in KNOWN_METHODS else 400)
    answer = Answer(upgrade_status(method, target.partition("?")[0], found, tls), stream[end + 4 :])
    answer.head_only = method == "HEAD"
    if answer.status == 101:
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = hashlib.sha1((found["sec-websocket-key"][0] + guid).encode()).digest()
        answer.accept = base64.b64encode(digest).decode()
        protocols = items(found, "sec-websocket-protocol")
        answer.subprotocol = next((name for name in ("chat", "v2") if name in protocols), None)
        answer.deflate = deflate_of(found.get("sec-websocket-extensions", []))
    return answer


def items(found: dict[str, list[str]], name: str) -> list[str]:
    return [item.strip(" \t") for value in found.get(name, []) for item in value.split(",")]


def upgrade_status(method: str, path: str, found: dict[str, list[str]], tls: bool) -> int:
    if path == "/health":
        return 200
    if path != "/ws":
        return 404
    upgrades = [item.lower() for item in items(found, "upgrade")]
    connections = [item.lower() for item in items(found, "connection")]
    if method != "GET" or "websocket" not in upgrades or "upgrade" not in connections:
        return 426
    hosts = [HOST(value.lower()) for value in found.get("host", [])]
    if len(hosts) != 1 or hosts[0] is None:
        return 400
    if found.get("sec-websocket-version") != ["13"]:
        return 426
    try:
        (key,) = found.get("sec-websocket-key", [])
        if len(base64.b64decode(key.encode("latin-1"), validate=True)) != 16 or len(key) != 24:
            return 400
    except (ValueError, binascii.Error):
        return 400
    if "origin" in found:
        origins = [ORIGIN(value.lower()) for value in found["origin"]]
        if len(origins) != 1 or origins[0] is None:
            return 403
        scheme, name, port = origins[0].groups()
        own = (hosts[0][1], int(hosts[0][2] or PORTS[scheme]))
        if (name, int(port or PORTS[scheme])) != own or (tls and scheme == "http"):
            return 403
    return 101
