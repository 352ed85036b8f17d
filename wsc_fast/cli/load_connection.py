"""A connection of `wsc-fast bench` to a hub. picows' client half does it.

It takes less of this process than wsc_client, so that the hub is measured and not the load.
Messages are handed over in the call in which they are read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import picows
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from wsc_fast.cli import peer as limits
from wsc_fast.cli.output import Failure, reason_of
from wsc_fast.cli.peer import (
    ABNORMAL,
    CONNECT_TIMEOUT,
    MAX_MESSAGE,
    ConnectFailure,
    Peer,
    ending,
    refused,
    unreachable,
)

# The failures are told by the commands.
_LOGGER = logging.getLogger("picows.wsc_fast_cli")
_LOGGER.disabled = True


class Connection(WSListener):
    """An open connection.

    Args:
        receive: called with each message: text as str, binary as bytes. It may raise, which ends
            the connection, and is raised by `closed`.

    Attributes:
        code: the close code, ABNORMAL if no close frame came; None while it is open.
        reason: the text of the close frame.
    """

    def __init__(self, receive: Callable[[str | bytes], None]) -> None:
        self.code: int | None = None
        self.reason: str = ""
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
        await asyncio.wait([self._gone], timeout=limits.CLOSE_TIMEOUT)
        self._transport.disconnect(graceful=False)
        return self._close_code != ABNORMAL

    @property
    def ending(self) -> str:
        """The end of the connection, in words."""
        return ending(ABNORMAL if self.code is None else self.code, self.reason)


async def connect(peer: Peer, receive: Callable[[str | bytes], None]) -> Connection:
    """Opens a connection.

    Args:
        peer: to whom.
        receive: of Connection.

    Raises:
        ConnectFailure: it cannot be opened; the text says why.
    """
    fields = list(peer.fields)
    if peer.subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(peer.subprotocols)))
    options: dict[str, Any] = {
        "ssl_context": peer.tls,
        "extra_headers": fields,
        "max_frame_size": MAX_MESSAGE,
        "logger_name": _LOGGER,
        "websocket_handshake_timeout": CONNECT_TIMEOUT,
        "max_redirects": 0,
    }
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            opened = await picows.ws_connect(lambda: Connection(receive), peer.url, **options)
    except OSError as error:  # a timeout and an error of TLS, too
        raise unreachable(peer.url, error) from None
    except picows.WSError as error:
        raise _refused(peer, error) from None
    connection = cast(Connection | None, opened[1])
    if connection is None:  # as picows says it
        raise ConnectFailure(f"{peer.url} closed the connection without an answer", False)
    return connection


def _refused(peer: Peer, error: picows.WSError) -> ConnectFailure:
    response = getattr(error, "response", None)
    if response is None:
        return ConnectFailure(f"{peer.url} is no WebSocket server: {reason_of(error)}", True)
    body = getattr(error, "raw_body", None) or b""
    return refused(peer.url, int(response.status), response.status.phrase, body)
