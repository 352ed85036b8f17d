"""A client's connection to a hub, for the commands that talk to one. picows' client half does it.

Messages are handed over in the call in which they are read: while that call writes to a terminal
or a pipe that is slow, nothing more is read, so that no queue grows here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import picows
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

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

# The failures are told by the commands.
_LOGGER = logging.getLogger("picows.wsc_fast_cli")
_LOGGER.disabled = True


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
    """

    url: str
    fields: list[tuple[str, str]]
    tls: ssl.SSLContext


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


class Connection(WSListener):
    """An open connection.

    Args:
        receive: called with each message: text as str, binary as bytes. It may raise, which ends
            the connection, and is raised by `closed`.

    Attributes:
        code: the close code, ABNORMAL if no close frame came; None while it is open.
        reason: the text of the close frame.
        subprotocol: the one that was agreed on, or None.
    """

    def __init__(self, receive: Callable[[str | bytes], None]) -> None:
        self.code: int | None = None
        self.reason: str = ""
        self.subprotocol: str | None = None
        self._receive = receive
        self._transport: WSTransport | None = None
        self._kind: WSMsgType | None = None  # of a message that comes in fragments
        self._parts: list[bytes] = []
        loop = asyncio.get_running_loop()
        # `_ended` also ends with an exception of `receive`, while the connection is still there.
        self._ended: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._close_code = ABNORMAL

    # --- what picows calls ---

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.subprotocol = transport.response.headers.get("Sec-WebSocket-Protocol")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            code: Any = frame.get_close_code()  # of an application's own, an int
            self._close_code = int(code) or 1005
            self.reason = frame.get_close_reason() or ""
            if not transport.is_close_frame_sent:
                transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif kind not in (WSMsgType.PING, WSMsgType.PONG) and not self._ended.done():
            try:
                self._take(kind, frame)
            except BaseException as error:
                self._ended.set_exception(error)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.code = self._close_code
        self._writable.set()
        self._gone.set_result(None)
        if not self._ended.done():
            self._ended.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take(self, kind: WSMsgType, frame: WSFrame) -> None:
        payload = frame.get_payload_as_bytes()
        if kind != WSMsgType.CONTINUATION:
            self._kind, self._parts = kind, []
        if self._parts or not frame.fin:
            self._parts.append(payload)
            if sum(map(len, self._parts)) > MAX_MESSAGE:
                raise Failure(f"the hub sent a message of more than {MAX_MESSAGE} bytes")
            if not frame.fin:
                return
            payload, self._parts = b"".join(self._parts), []
        text = self._kind == WSMsgType.TEXT
        self._receive(payload.decode("utf-8", "replace") if text else payload)

    # --- what commands call ---

    @property
    def held_up(self) -> bool:
        """Whether the hub does not read as fast as is sent."""
        return not self._writable.is_set()

    def send_now(self, message: str | bytes) -> None:
        """Sends a message: str as text, bytes as binary; nothing once the connection has ended."""
        if self._transport is not None and self.code is None:
            kind = WSMsgType.TEXT if isinstance(message, str) else WSMsgType.BINARY
            self._transport.send(kind, message)

    async def send(self, message: str | bytes) -> None:
        """Sends a message, once the hub has read most of what came before it.

        Raises:
            Failure: the connection has ended.
        """
        await self._writable.wait()
        if self.code is not None:
            raise Failure(f"the message was not sent: {self.ending}")
        self.send_now(message)

    async def closed(self) -> int:
        """Waits for the end of the connection.

        Returns:
            int: the close code.
        """
        await asyncio.shield(self._ended)
        assert self.code is not None
        return self.code

    async def close(self) -> bool:
        """Closes with 1000, and waits for the answer.

        Returns:
            bool: whether it came: then the hub has read all that was sent.
        """
        if self._transport is None or self.code is not None:
            return True
        self._transport.send_close(WSCloseCode.OK)
        await asyncio.wait([self._gone], timeout=CLOSE_TIMEOUT)
        self._transport.disconnect(graceful=False)
        return self._close_code != ABNORMAL

    @property
    def ending(self) -> str:
        """The end of the connection, in words."""
        if self.code == ABNORMAL:
            return "the connection was lost"
        reason = f" ({self.reason})" if self.reason else ""
        return f"the hub closed the connection with {self.code}{reason}"


async def connect(peer: Peer, receive: Callable[[str | bytes], None]) -> Connection:
    """Opens a connection.

    Args:
        peer: to whom.
        receive: of Connection.

    Raises:
        ConnectFailure: it cannot be opened; the text says why.
    """
    options: dict[str, Any] = {
        "ssl_context": peer.tls,
        "extra_headers": peer.fields,
        "max_frame_size": MAX_MESSAGE,
        "logger_name": _LOGGER,
        "websocket_handshake_timeout": CONNECT_TIMEOUT,
        "max_redirects": 0,
    }
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            opened = await picows.ws_connect(lambda: Connection(receive), peer.url, **options)
    except TimeoutError:
        raise ConnectFailure(f"{peer.url} does not answer", False) from None
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of {peer.url} cannot be trusted: {error.verify_message}"
        raise ConnectFailure(text, True) from None
    except ssl.SSLError as error:
        raise ConnectFailure(f"{peer.url} does not speak TLS: {_of_tls(error)}", True) from None
    except OSError as error:
        raise ConnectFailure(f"{peer.url} cannot be reached: {_of_network(error)}", False) from None
    except picows.WSError as error:
        raise _refused(peer, error) from None
    connection = cast(Connection | None, opened[1])
    if connection is None:  # as picows says it
        raise ConnectFailure(f"{peer.url} closed the connection without an answer", False)
    return connection


def _of_tls(error: ssl.SSLError) -> str:
    return (error.reason or reason_of(error)).lower().replace("_", " ")


def _of_network(error: OSError) -> str:
    """The system's own words: asyncio puts the address there, or a list of several errors."""
    if isinstance(error, socket.gaierror):
        return reason_of(error)
    number = error.errno
    if number is None and (match := re.search(r"\[Errno (\d+)\]", str(error))):
        number = int(match[1])
    return os.strerror(number).lower() if number is not None else reason_of(error)


def _refused(peer: Peer, error: picows.WSError) -> ConnectFailure:
    response = getattr(error, "response", None)
    if response is None:
        return ConnectFailure(f"{peer.url} is no WebSocket server: {reason_of(error)}", True)
    status = int(response.status)
    text = f"{peer.url} answers {status} {response.status.phrase}"
    body = (getattr(error, "raw_body", None) or b"").decode("utf-8", "replace").strip()
    said = body.partition("\n")[0].removeprefix(f"{status} {response.status.phrase}").lstrip(": ")
    if said and len(said) <= 200 and "<" not in said:
        text += f": {said}"
    if status in _HINTS:
        text += f" ({_HINTS[status]})"
    return ConnectFailure(text, 300 <= status < 500 and status not in (408, 429))
