"""Connections by the library websockets, as a Socket; and the question to the status route.

Each connection has two tasks: one opens it and reads, the other one writes. The reader stops at the
future that the client gives it, so that a server is read as fast as the listeners go.
"""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, cast

from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from wsc_client.events import CloseFrame
from wsc_client.options import Options
from wsc_client.platform import Answer, Ears, Ending, Fetch, OpenSocket, Socket
from wsc_client.tasks import Tasks
from wsc_client.wire import Payload

NO_CLOSE_FRAME = 1006
NO_CODE = 1005
# Bytes that a connection takes ahead of what it has written; more waits in the client's queue.
AHEAD = 64 << 10

# Bytes that the system holds ahead of what it has sent: so it shows whether a slow server reads.
UNSENT = 128 << 10

# The client tells of failures by its own log lines and events.
_LOGGER = logging.getLogger("wsc_client.websockets")
_LOGGER.setLevel(logging.CRITICAL)


def opener(options: Options, tasks: Tasks) -> OpenSocket:
    """The function that opens connections with these options."""

    def open(url: str, protocols: Sequence[str], ears: Ears) -> Socket:
        return WebSocket(url, protocols, ears, options, tasks)

    return open


class _Connect(connect):
    """An attempt that follows no redirect: the token is for the server that was named."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """The answer is the end of the attempt, as any other refusal is."""
        return exc


class WebSocket:
    """One connection, from the attempt to its end."""

    def __init__(
        self, url: str, protocols: Sequence[str], ears: Ears, options: Options, tasks: Tasks
    ) -> None:
        self._ears, self._options, self._tasks = ears, options, tasks
        self._out: deque[tuple[Payload, int]] = deque()
        self._buffered = 0
        self._handed = 0  # bytes that the library was given
        self._work = asyncio.Event()  # there is something to write
        self._drained = asyncio.Event()  # no more than AHEAD waits
        self._empty = asyncio.Event()  # nothing waits
        self._drained.set()
        self._empty.set()
        self._closing = asyncio.get_running_loop().create_future()
        self._socket: ClientConnection | None = None
        self._reader = tasks.spawn(self._run(url, protocols), closing=True)

    @property
    def buffered(self) -> int:
        """Bytes that are not written yet."""
        return self._buffered

    @property
    def writable(self) -> bool:
        """Whether it is open, and holds little back."""
        return self._socket is not None and self._buffered < AHEAD and not self._closing.done()

    @property
    def taken(self) -> int:
        """Bytes that the system has taken of what was to be written, by and large."""
        waits = 0 if self._socket is None else self._socket.transport.get_write_buffer_size()
        return self._handed - waits

    @property
    def closed(self) -> CloseFrame:
        """The server's close frame, once the connection has ended."""
        socket = self._socket
        if socket is None or socket.close_code is None:
            return CloseFrame(NO_CLOSE_FRAME)
        return CloseFrame(socket.close_code, socket.close_reason or "")

    def send(self, data: Payload) -> None:
        """Sends a message; nothing once the connection has ended."""
        if not self._closing.done():
            size = len(data)
            self._out.append((data, size))
            self._wait_for(size)
            self._work.set()

    def ping(self) -> bool:
        """Sends a ping, whose pong counts as heard."""
        if self._socket is None or self._closing.done():
            return False
        self._tasks.spawn(self._ping(self._socket))
        return True

    def close(self, code: int | None) -> None:
        """Ends the connection: with a close frame, or at once without a code."""
        if self._closing.done():
            return
        self._closing.set_result(None)
        socket = self._socket
        if socket is None:
            self._reader.cancel()
        elif code is None:
            socket.transport.abort()
        else:
            self._tasks.spawn(self._close(socket, code), closing=True)

    # --- reading ---

    async def _run(self, url: str, protocols: Sequence[str]) -> None:
        try:
            socket = await self._connect(url, protocols)
        except InvalidStatus as error:
            answer = Answer(error.response.status_code, retry_after(error.response.headers))
            self._ended(Ending(NO_CLOSE_FRAME, error=error, answer=answer))
            return
        except Exception as error:
            self._ended(Ending(NO_CLOSE_FRAME, error=error))
            return
        _hold_little(socket)
        self._socket = socket
        writer = self._tasks.spawn(self._write(socket), closing=True)
        try:
            self._ears.opened(socket.subprotocol)
            ending = await self._read(socket)
        except BaseException:
            socket.transport.abort()
            raise
        finally:
            writer.cancel()
        self._ended(ending)

    async def _connect(self, url: str, protocols: Sequence[str]) -> ClientConnection:
        options = self._options
        further: dict[str, Any] = {}
        if options.ssl is not None and url.startswith("wss:"):
            further["ssl"] = options.ssl
        headers = options.headers
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        return await _Connect(
            url,
            subprotocols=[Subprotocol(each) for each in protocols] or None,
            additional_headers=pairs,
            compression="deflate" if options.compression else None,
            proxy=cast(Any, options.proxy or None),
            max_size=options.max_message_size,
            open_timeout=None,  # the client has a time of its own
            close_timeout=options.close_timeout,
            ping_interval=None,
            logger=_LOGGER,
            **further,
        )

    async def _read(self, socket: ClientConnection) -> Ending:
        try:
            while True:
                behind = self._ears.received(await socket.recv())
                if behind is not None and not self._closing.done():
                    await asyncio.wait((behind, self._closing), return_when="FIRST_COMPLETED")
                # A server that does not read is not read either: answers would pile up.
                await self._drained.wait()
        except ConnectionClosed as error:
            if error.rcvd is None:
                # A message that is too large, or against the rules, has us send a code.
                cause = error if error.sent is not None else error.__cause__
                return Ending(NO_CLOSE_FRAME, error=cause)
            return Ending(error.rcvd.code or NO_CODE, error.rcvd.reason)

    def _ended(self, ending: Ending) -> None:
        if not self._closing.done():
            self._closing.set_result(None)
        self._ears.ended(ending)

    # --- writing ---

    async def _write(self, socket: ClientConnection) -> None:
        try:
            while True:
                while self._out:
                    data, size = self._out.popleft()
                    self._handed += size
                    await socket.send(data)
                    full = not self.writable
                    self._wait_for(-size)
                    if full and self.writable:
                        self._ears.writable()
                self._work.clear()
                await self._work.wait()
        except ConnectionClosed:
            pass  # the reader tells of it
        finally:
            self._out.clear()
            self._wait_for(-self._buffered)

    def _wait_for(self, size: int) -> None:
        """So many bytes more wait to be written."""
        self._buffered += size
        for event, most in ((self._drained, AHEAD), (self._empty, 0)):
            if self._buffered <= most:
                event.set()
            else:
                event.clear()

    async def _ping(self, socket: ClientConnection) -> None:
        try:
            await (await socket.ping())
        except (ConnectionClosed, OSError):
            return
        self._ears.heard()

    async def _close(self, socket: ClientConnection, code: int) -> None:
        """Writes what was sent, then the close frame, and waits for the server's."""
        try:
            async with asyncio.timeout(self._options.close_timeout):
                await self._empty.wait()
        except TimeoutError:
            socket.transport.abort()
            return
        try:
            await socket.close(code)
        except (WebSocketException, OSError):
            socket.transport.abort()


def _hold_little(socket: ClientConnection) -> None:
    """Has the system take only what it can send soon, where it knows how to."""
    option = getattr(sockets, "TCP_NOTSENT_LOWAT", None)
    plain = socket.transport.get_extra_info("socket")
    if option is not None and plain is not None:
        with suppress(OSError):
            plain.setsockopt(sockets.IPPROTO_TCP, option, UNSENT)


# --- the status route ---


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the token along, to any host."""

    def redirect_request(self, *args: Any, **further: Any) -> None:
        """There is no further request: the redirect itself is the answer (H4)."""


def fetcher(options: Options) -> Fetch:
    """The function that asks the status route."""

    def get(url: str, token: str | None) -> Answer:
        headers = {"Cache-Control": "no-store"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(url, headers=headers)
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if options.ssl is not None:
            handlers.append(urllib.request.HTTPSHandler(context=options.ssl))
        if options.proxy is not True:
            proxies = {"http": options.proxy, "https": options.proxy} if options.proxy else {}
            handlers.append(urllib.request.ProxyHandler(proxies))
        try:
            opened = urllib.request.build_opener(*handlers).open(
                request, timeout=options.connect_timeout
            )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, retry_after(error.headers))
        with opened:
            return Answer(opened.status, retry_after(opened.headers))

    async def fetch(url: str, token: str | None) -> Answer:
        # It blocks, for `connect_timeout` at most.
        return await asyncio.to_thread(get, url, token)

    return fetch


def retry_after(headers: Any) -> float:
    """Seconds of the header Retry-After, which has seconds or a date (RFC 9110 section 10.2.3)."""
    text = headers.get("Retry-After") or ""
    if text.isascii() and text.isdecimal():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0
