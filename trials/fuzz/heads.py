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
from ipaddress import IPv6Address

HEAD_MAX = 16_384  # bytes, with the empty line
FIELDS_MAX = 128
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
REQUEST_LINE = re.compile(rf"({TOKEN}) ([\x21-\x7e]+) HTTP/1\.([0-9])").fullmatch
TARGET = re.compile(r"(?:(?:https?|wss?)://([^/?]*))?([/?].*)?", re.IGNORECASE).fullmatch
FIELD = re.compile(rf"({TOKEN}):([\t\x20-\x7e\x80-\xff]*)").fullmatch
HOST = re.compile(r"([a-z0-9._~-]{1,255}|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?").fullmatch
ORIGIN = re.compile(r"(https?)://(.*)").fullmatch
ORIGIN_MAX = 1024
# The hub looks at so many subprotocols, and at so many offers of extensions if they take no more
# than so many characters.
ITEMS_MAX, OFFERS_MAX, OFFERS_SIZE = 64, 16, 4096
PORTS = {"http": 80, "https": 443}
KNOWN_METHODS = {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"}


class Unexpected(Exception):
    """The hub answered something else."""


@dataclass
class Agreed:
    """The contents of the hub's Sec-WebSocket-Extensions."""

    keeps: bool  # the client's context
    server_keeps: bool
    window: int  # of the client, in bits


@dataclass
class Answer:
    """The answer that a request must get.

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
            close = "close, Upgrade" if self.status == 426 else "close"
            if fields["Connection"] != close or len(rest) != (0 if self.head_only else size):
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
    text = ",".join(values)
    if len(text) > OFFERS_SIZE:
        return None
    for name, parameters in offered(text)[:OFFERS_MAX]:
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
    """The answer of a hub with the path /ws and a route /health to a stream's first request."""
    end = stream.find(b"\r\n\r\n")
    if not 0 <= end <= HEAD_MAX - 4:
        if not begins_a_request(stream.decode("latin-1")):
            return Answer(400)
        return Answer(431 if len(stream) >= HEAD_MAX else 0)
    first, *lines = stream[:end].decode("latin-1").removeprefix("\r\n").split("\r\n")
    request = REQUEST_LINE(first)
    fields = [FIELD(line) for line in lines]
    if request is None or None in fields or len(fields) > FIELDS_MAX:
        return Answer(400)
    found: dict[str, list[str]] = {}
    for field in fields:
        assert field is not None
        found.setdefault(field[1].lower(), []).append(field[2].strip(" \t"))
    lengths = found.get("content-length", ["0"])
    encoded = "transfer-encoding" in found
    if len(lengths) > 1 or not re.fullmatch("[0-9]+", lengths[0]):
        return Answer(400)
    if encoded and "content-length" in found:
        return Answer(400)
    method, target, minor = request.groups()
    parts = TARGET(target)
    if parts is None or target.startswith("?"):
        return Answer(400)
    hosts = [parsed_host(value) for value in found.get("host", [])]
    sound = len(hosts) == 1 or (hosts == [] and minor == "0")
    if parts[1] is not None:
        hosts.append(parsed_host(parts[1]))
    if not sound or None in hosts:
        return Answer(400, head_only=method == "HEAD")
    if method not in ("GET", "HEAD"):
        return Answer(405 if method in KNOWN_METHODS else 400)
    if encoded or int(lengths[0]):
        return Answer(400, head_only=method == "HEAD")
    path = (parts[2] or "").partition("?")[0] or "/"
    if minor == "0":
        found.pop("upgrade", None)
    host = hosts[-1] if hosts else None
    answer = Answer(upgrade_status(method, path, found, host, tls), stream[end + 4 :])
    answer.head_only = method == "HEAD"
    if answer.status == 101:
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        digest = hashlib.sha1((found["sec-websocket-key"][0] + guid).encode()).digest()
        answer.accept = base64.b64encode(digest).decode()
        protocols = items(found, "sec-websocket-protocol")[:ITEMS_MAX]
        answer.subprotocol = next((name for name in ("chat", "v2") if name in protocols), None)
        answer.deflate = deflate_of(found.get("sec-websocket-extensions", []))
    return answer


def items(found: dict[str, list[str]], name: str) -> list[str]:
    return [item.strip(" \t") for value in found.get(name, []) for item in value.split(",")]


def begins_a_request(text: str) -> bool:
    """Whether a request line, after an empty line or none, can go on from here."""
    if text == "\r":
        return True
    method, *rest = text.removeprefix("\r\n").split(" ", 2)
    if not re.fullmatch(rf"({TOKEN})?", method) or (rest and not method):
        return False
    if rest and not re.fullmatch(r"[\x21-\x7e]*", rest[0]):
        return False
    if len(rest) < 2:
        return True
    version = re.sub(r"^(HTTP/1\.)[0-9]", r"\g<1>0", rest[1])[:10]
    return rest[0] != "" and "HTTP/1.0\r\n".startswith(version)


def parsed_host(text: str) -> tuple[str, int | None] | None:
    match = HOST(text.lower())
    if match is None or (match[2] and not 0 < int(match[2]) < 65536):
        return None
    name = match[1]
    if name.startswith("["):
        try:
            name = str(IPv6Address(name[1:-1]))
        except ValueError:
            return None
    return name, int(match[2]) if match[2] else None


def upgrade_status(
    method: str,
    path: str,
    found: dict[str, list[str]],
    host: tuple[str, int | None] | None,
    tls: bool,
) -> int:
    if path == "/health":
        return 200
    if path != "/ws":
        return 404
    upgrades = [item.lower() for item in items(found, "upgrade")]
    connections = [item.lower() for item in items(found, "connection")]
    if method != "GET" or "websocket" not in upgrades or "upgrade" not in connections:
        return 426
    assert host is not None
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
        if len(origins) != 1 or origins[0] is None or len(origins[0][0]) > ORIGIN_MAX:
            return 403
        scheme, page = origins[0][1], parsed_host(origins[0][2])
        if page is None or (tls and scheme == "http"):
            return 403
        if (page[0], page[1] or PORTS[scheme]) != (host[0], host[1] or PORTS[scheme]):
            return 403
    return 101
