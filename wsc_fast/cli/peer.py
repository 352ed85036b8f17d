"""The hub that a command connects to: its URL, and the words for why that fails."""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from wsc_fast.cli.output import Failure, UsageFailure, reason_of

# Seconds for connecting, and for the upgrade.
CONNECT_TIMEOUT = 10.0
# Seconds for the hub's answer to a close frame.
CLOSE_TIMEOUT = 5.0
# The largest message that is taken, in bytes.
MAX_MESSAGE = 1 << 30

# A connection that ends with one of these has ended as it should.
NORMAL = (1000, 1001)
# No close frame came.
ABNORMAL = 1006

# Hints, by the status of a refusal.
_HINTS = {
    401: "--token or --header shows who you are",
    404: "is the path that of the hub's endpoint, such as /ws?",
}


class ConnectFailure(Failure):
    """The hub cannot be reached, or refuses.

    Attributes:
        lasting: it is of no use to try again.
    """

    def __init__(self, text: str, lasting: bool) -> None:
        super().__init__(text)
        self.lasting = lasting


@dataclass(frozen=True)
class Peer:
    """A hub to connect to.

    Attributes:
        url: ws:// or wss://.
        fields: header fields of the upgrade request.
        tls: for wss://.
        subprotocols: that are offered.
    """

    url: str
    fields: list[tuple[str, str]]
    tls: ssl.SSLContext
    subprotocols: tuple[str, ...] = ()


def checked_url(url: str) -> str:
    """The WebSocket URL that was meant.

    Args:
        url: ws://, wss://, http:// or https://; without any, ws:// is meant.

    Raises:
        UsageFailure: it is none.
    """
    if "://" not in url:
        url = f"ws://{url}"
    scheme, _, rest = url.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme.lower(), scheme.lower())
    url = f"{scheme}://{rest}"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageFailure(f"{url} is no WebSocket URL: {error}") from None
    if scheme not in ("ws", "wss"):
        raise UsageFailure(f"{url} is no WebSocket URL, expected ws:// or wss://")
    if not host or not url.isprintable() or " " in url or parts.fragment:
        raise UsageFailure(f"{url} is no WebSocket URL, expected ws://host:port/path")
    if parts.username is not None:
        raise UsageFailure("a user name cannot stand in the URL: use --token or --header")
    return url


def ending(code: int, reason: str) -> str:
    """The end of a connection, in words."""
    if code == ABNORMAL:
        return "the connection was lost"
    return f"the hub closed the connection with {code}{f' ({reason})' if reason else ''}"


def unreachable(url: str, error: OSError) -> ConnectFailure:
    """The failure of a connection that the network or TLS did not bring about."""
    if isinstance(error, TimeoutError):
        return ConnectFailure(f"{url} does not answer", False)
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"the certificate of {url} cannot be trusted: {error.verify_message}"
        return ConnectFailure(text, True)
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or reason_of(error)).lower().replace("_", " ")
        return ConnectFailure(f"{url} does not speak TLS: {reason}", True)
    return ConnectFailure(f"{url} cannot be reached: {_of_network(error)}", False)


def _of_network(error: OSError) -> str:
    """The system's own words: asyncio puts the address there, or a list of several errors."""
    if isinstance(error, socket.gaierror):
        return reason_of(error)
    number = error.errno
    if number is None and (match := re.search(r"\[Errno (\d+)\]", str(error))):
        number = int(match[1])
    return os.strerror(number).lower() if number is not None else reason_of(error)


def refused(url: str, status: int, phrase: str, body: bytes) -> ConnectFailure:
    """The failure of a connection that the server answered with another status than 101."""
    text = f"{url} answers {status} {phrase}"
    first = body.decode("utf-8", "replace").strip().partition("\n")[0]
    said = first.removeprefix(f"{status} {phrase}").lstrip(": ")
    if said and len(said) <= 200 and "<" not in said:
        text += f": {said}"
    if status in _HINTS:
        text += f" ({_HINTS[status]})"
    return ConnectFailure(text, 300 <= status < 500 and status not in (408, 429))
