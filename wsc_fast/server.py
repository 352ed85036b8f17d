"""Listening and the upgrade: what happens to a connection before it is a client.

The order of the checks is the order of RFC 6455 section 4.2, so that nothing of the hub (an id, a
slot, a room) is taken before a request is known to be sound. picows reads the request and answers
400 by itself to what is no HTTP/1.1 GET without a body; everything else is decided here.
"""

from __future__ import annotations

import asyncio
import binascii
import errno
import inspect
import os
import re
import socket
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, unquote

import msgspec
from multidict import CIMultiDict
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from wsc_fast._core.connection import Client, Guard
from wsc_fast.errors import ValidationError

if TYPE_CHECKING:
    from ssl import SSLContext

    from wsc_fast.hub import Hub

# What a request target may hold (RFC 3986): visible ASCII, beginning with a slash.
_TARGET = re.compile(rb"/[\x21-\x7e]*\Z").match
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z").match
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
_WANTED_HOST = re.compile(r"((?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
# Headers of an answer that are not the application's to set.
_OUR_HEADERS = ("Content-Length", "Transfer-Encoding", "Connection")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Identity(msgspec.Struct, frozen=True):
    """Who a client is, as `authenticate` says.

    Attributes:
        user_id: the user; may have several clients.
        client_id: id of this client; None lets the hub make one. A connection whose client_id is
            taken replaces the older connection (close code 4409).
        user_data: what `client.user_data` begins with.
    """

    user_id: str
    client_id: str | None = None
    user_data: dict[Any, Any] | None = None


class Response(msgspec.Struct, frozen=True):
    """An answer of a route.

    Attributes:
        status: HTTP status code.
        body: str is sent as UTF-8.
        content_type: the header of that name.
        headers: further headers; those that frame the answer are the server's own and ignored.

    Raises:
        ValidationError: a status that HTTP does not know, a body that is neither bytes nor str, or
            a header name or value that HTTP cannot carry (line breaks, for one).
    """

    status: int = 200
    body: bytes | str = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] | None = None

    def __post_init__(self) -> None:
        try:
            HTTPStatus(self.status)
        except ValueError:
            raise ValidationError(f"{self.status!r} is no HTTP status code") from None
        if not isinstance(self.body, (bytes, str)):
            raise ValidationError(f"a body must be bytes or str, not {type(self.body).__name__}")
        self._sendable_headers()

    def _sendable_headers(self) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in {**(self.headers or {}), "Content-Type": self.content_type}.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise ValidationError(f"header {name!r}: {value!r} must be two str")
            if not _HEADER_NAME(name) or not _HEADER_VALUE(value):
                raise ValidationError(f"header {name!r}: {value!r} cannot be sent")
            if name.title() not in _OUR_HEADERS:
                headers[name] = value
        return headers


class Request:
    """The HTTP request of an upgrade or of a route, as `authenticate` and routes get it.

    Attributes:
        path: decoded path without the query.
        query: str -> str; of repeated names the first counts.
        headers: case-insensitive mapping.
        cookies: str -> str; of repeated names the first counts.
        remote_address: the peer's IP address; "" behind `handle_websocket`, where picows does not
            tell it before the connection is made.
    """

    __slots__ = ("_target", "headers", "path", "remote_address")

    def __init__(self, request: WSUpgradeRequest, remote_address: str) -> None:
        path, _, self._target = request.path.decode("ascii").partition("?")
        self.path = unquote(path)
        self.headers: Mapping[str, str] = request.headers
        self.remote_address = remote_address

    @property
    def query(self) -> dict[str, str]:
        pairs = parse_qsl(self._target, keep_blank_values=True)
        return dict(reversed(pairs))

    @property
    def cookies(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in self.headers.get("Cookie", "").split(";"):
            name, equals, value = part.partition("=")
            if equals:
                found.setdefault(name.strip(), value.strip().strip('"'))
        return found


Authenticate = Callable[[Request], "Identity | Awaitable[Identity | None] | None"]
Route = Callable[[Request], "str | bytes | dict[str, Any] | Response"]


class SwitchingProtocols(WSUpgradeResponse):
    """The 101 of an accepted upgrade: fixed but for the one header that picows sets in it."""

    __slots__ = ("accept",)
    status = HTTPStatus.SWITCHING_PROTOCOLS

    @property
    def headers(self) -> Self:  # type: ignore[override]
        """Takes the place of a mapping of headers: only ever assigned to."""
        return self

    def __setitem__(self, name: str, value: str) -> None:
        self.accept = value

    def to_bytes(self) -> bytearray:
        return bytearray(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % self.accept.encode()
        )


def refusal(
    status: HTTPStatus, text: str = "", headers: dict[str, str] | None = None
) -> WSUpgradeResponseWithListener:
    """A refused request; a new object each time, since picows writes into it."""
    body = (text or f"{status.value} {status.phrase}").encode() + b"\n"
    return WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_error_response(status, body, headers), None
    )


def answer(result: object) -> WSUpgradeResponseWithListener:
    """Turns what a route returned into picows' response."""
    if isinstance(result, str):
        result = Response(body=result)
    elif isinstance(result, bytes):
        result = Response(body=result, content_type="application/octet-stream")
    elif isinstance(result, dict):
        result = Response(body=msgspec.json.encode(result), content_type="application/json")
    if not isinstance(result, Response):
        raise TypeError(
            f"a route must return str, bytes, dict or Response, not {type(result).__name__}"
        )
    response = WSUpgradeResponse()
    response.version = b"HTTP/1.1"
    response.status = HTTPStatus(result.status)
    # Checked again: the dict may have changed since the response was made.
    response.headers = result._sendable_headers()
    response.body = result.body.encode() if isinstance(result.body, str) else result.body
    if not response.body and result.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        response.headers["Content-Length"] = "0"
    return WSUpgradeResponseWithListener(response, None)


def accept(
    hub: Hub, request: WSUpgradeRequest, remote_address: str
) -> WSUpgradeResponseWithListener:
    """Decides on a request: the 101 with a Client for the connection, or another answer.

    Args:
        hub: whose connection it would be.
        request: as picows parsed it; two of its headers are normalised for picows' own check.
        remote_address: of the peer, or "".
    """
    if not _TARGET(request.path):
        return _reject(hub, HTTPStatus.BAD_REQUEST)
    if not hub._accepting:
        hub._count_rejected("full")
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})
    path = request.path.partition(b"?")[0].decode("ascii")
    route = hub._routes.get(path)
    if route is not None:
        return answer(route(Request(request, remote_address)))
    if hub._path is not None and path != hub._path:
        return _reject(hub, HTTPStatus.NOT_FOUND)

    headers = request.headers
    refused = _check_upgrade(hub, headers)
    if refused is not None:
        return refused
    if hub.connections >= hub.config.max_connections:
        hub._count_rejected("full")
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})
    refused = _check_origin(hub, headers)
    if refused is not None:
        return refused

    client = Client(hub, remote_address)
    if hub._authenticate is not None:
        identity = hub._authenticate(Request(request, remote_address))
        if identity is None:
            hub._count_rejected("auth")
            # RFC 9110 section 15.5.2 wants a challenge, though only the application knows which.
            return refusal(HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})
        if not inspect.isawaitable(identity):
            hub._check_identity(identity)
        client._pending = identity
    # picows accepts nothing but exactly this (RFC 6455 section 4.2.1 has lists).
    headers["Connection"] = "upgrade"
    headers["Upgrade"] = "websocket"
    return WSUpgradeResponseWithListener(SwitchingProtocols(), client)


def _reject(hub: Hub, status: HTTPStatus, text: str = "") -> WSUpgradeResponseWithListener:
    hub._count_rejected("request")
    return refusal(status, text)


def _has_token(headers: CIMultiDict[str], name: str, token: str) -> bool:
    # RFC 9110 section 5.6.1: a list may stretch over several headers of one name.
    for value in headers.getall(name, ()):
        lowered = value.lower()
        if lowered == token or token in (item.strip() for item in lowered.split(",")):
            return True
    return False


def _check_upgrade(hub: Hub, headers: CIMultiDict[str]) -> WSUpgradeResponseWithListener | None:
    # RFC 6455 section 4.2.1, in its order; two Host or key headers leave it open which counts.
    if not _has_token(headers, "Upgrade", "websocket") or not _has_token(
        headers, "Connection", "upgrade"
    ):
        hub._count_rejected("request")
        return refusal(
            HTTPStatus.UPGRADE_REQUIRED, "this is a WebSocket endpoint", {"Upgrade": "websocket"}
        )
    hosts = headers.getall("Host", ())
    if len(hosts) != 1 or not _HOST(hosts[0].lower()):
        return _reject(hub, HTTPStatus.BAD_REQUEST, "exactly one Host header is needed")
    if hub._allowed_hosts and hosts[0].lower() not in hub._allowed_hosts:
        hub._count_rejected("origin")
        return refusal(HTTPStatus.FORBIDDEN)
    if headers.getall("Sec-WebSocket-Version", ()) != ["13"]:
        hub._count_rejected("request")
        return refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "WebSocket version 13 is needed",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    keys = headers.getall("Sec-WebSocket-Key", ())
    try:
        sound = len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16
    except (ValueError, binascii.Error):
        sound = False
    if not sound:
        return _reject(hub, HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _check_origin(hub: Hub, headers: CIMultiDict[str]) -> WSUpgradeResponseWithListener | None:
    if not hub.config.check_origin:
        return None
    origins = headers.getall("Origin", None)
    if origins is None:
        return None
    if len(origins) == 1 and origin_allowed(
        origins[0], headers["Host"], hub._tls, hub.config.allowed_origins
    ):
        return None
    hub._count_rejected("origin")
    return refusal(HTTPStatus.FORBIDDEN)


def origin_allowed(origin: str, host: str, tls: bool, allowed: tuple[str, ...]) -> bool:
    """Whether a browser page of this origin may connect (RFC 6455 section 10.2).

    Args:
        origin: the Origin header.
        host: the Host header; an origin of the same host and port is the host's own. A scheme of
            https is its own too where we do not serve TLS ourselves: a proxy may do that.
        tls: whether this server speaks TLS.
        allowed: HubConfig.allowed_origins.
    """
    if "*" in allowed:
        return True
    match = _ORIGIN(origin.lower())
    if match is None:
        return False
    scheme, name, port_text = match.groups()
    port = int(port_text) if port_text else _DEFAULT_PORTS[scheme]
    own = _HOST(host.lower())
    if own is not None and own[1] == name and (scheme == "https" or not tls):
        own_port = int(own[2]) if own[2] else _DEFAULT_PORTS[scheme]
        if own_port == port:
            return True
    for pattern in allowed:
        wanted = pattern.lower()
        wanted_scheme, separator, rest = wanted.rpartition("://")
        if separator and wanted_scheme != scheme:
            continue
        wanted_host = _WANTED_HOST(rest)
        if wanted_host is None:
            continue
        if int(wanted_host[2] or _DEFAULT_PORTS[scheme]) != port:
            continue
        if wanted_host[1] == name:
            return True
        if wanted_host[1].startswith("*.") and name.endswith(wanted_host[1][1:]):
            return True
    return False


class PicowsLog:
    """The logger that picows gets: a `logging.Logger` would be copied for each connection.

    Drops picows' own lines. What is worth a line (faults of peers, of callbacks, of the listening
    socket) the hub logs itself; a method here cannot raise, which picows relies on.
    """

    def isEnabledFor(self, level: int) -> bool:
        return False

    def _drop(self, *args: object, **kwargs: object) -> None:
        pass

    log = debug = info = warning = error = exception = critical = _drop


class Upgrade:
    """The listener factory of one connection: knows its peer, which picows does not tell."""

    __slots__ = ("_hub", "protocol", "remote_address")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.protocol: HubProtocol | None = None
        self.remote_address = ""

    def __call__(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        response = self._hub._accept(request, self.remote_address)
        if response.listener is not None:
            self.forget()
        return response

    def forget(self) -> None:
        """The handshake is over: it is a client now, or gone."""
        if self.protocol is not None:
            self._hub._handshaking.discard(self.protocol)
            self.protocol.upgrade = None
            self.protocol = None


class HubProtocol(WSProtocol):  # type: ignore[misc]
    """picows' protocol for the hub's own server: counts handshakes and hears of a half-close."""

    __slots__ = ("_hub", "upgrade")

    def __init__(self, hub: Hub) -> None:
        config = hub.config
        self._hub = hub
        self.upgrade: Upgrade | None = Upgrade(hub)
        super().__init__(
            None,  # host and port: of clients only
            None,  # path: of clients only
            False,  # is_client_side
            self.upgrade,
            hub._picows_log,
            True,  # disconnect_on_exception; the Client never raises
            config.handshake_timeout,
            False,  # enable_auto_ping: the hub's heartbeat pings
            1.0,  # auto_ping_idle_timeout, unused
            1.0,  # auto_ping_reply_timeout, unused
            1,  # auto_ping_strategy, unused
            False,  # enable_auto_pong: pongs go through the outbox
            config.max_message_size,
            None,  # extra_headers: of clients only
            config.read_buffer_size,
        )

    def connection_made(self, transport: asyncio.Transport) -> None:
        upgrade = self.upgrade
        assert upgrade is not None
        if not self._hub._accepting:
            transport.abort()  # accepted in the turn before the hub stopped
            return
        try:
            guard = Guard(self._hub, transport, self._hub.config.write_buffer_size)
        except OSError:
            # The peer is gone already; picows would fail on socket options.
            transport.abort()
            return
        if guard.fileno() >= self._hub._last_file:
            self._hub._log_out_of_files()
        upgrade.remote_address = guard.remote_address
        super().connection_made(guard)
        upgrade.protocol = self
        self._hub._handshaking.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.upgrade is not None:
            self.upgrade.forget()
        if self.transport is not None:
            super().connection_lost(exc)

    def eof_received(self) -> bool:
        return self.listener is not None and self.listener._eof()

    def abort_handshake(self) -> None:
        """Ends a connection that has not been upgraded yet."""
        self.transport.disconnect(False)


class Acceptor:
    """Accepts the connections of one listening socket, where the loop's own way will not do.

    Without TLS uvloop (libuv) does it well: it keeps a spare descriptor, with which it accepts and
    closes what it cannot serve. asyncio would stop accepting for a second, and log and schedule
    that once for each place in the backlog; and with TLS neither loop lets us end the handshakes
    that are under way when the hub stops.

    Args:
        hub: whose connections they are.
        listening: bound, owned from here on.
        ssl: serve TLS with this context.
    """

    _AT_ONCE = 64
    _PAUSE = 1.0

    def __init__(self, hub: Hub, listening: socket.socket, ssl: SSLContext | None) -> None:
        assert hub.loop is not None
        self._hub = hub
        self._loop = hub.loop
        self._socket = listening
        self._tls: dict[str, Any] = {}
        if ssl is not None:
            self._tls = {"ssl": ssl, "ssl_handshake_timeout": hub.config.handshake_timeout}
        self._shaking: dict[socket.socket, asyncio.Task[None]] = {}
        self._resuming: asyncio.TimerHandle | None = None
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        listening.setblocking(False)
        listening.listen(hub.config.backlog)
        self._loop.add_reader(listening, self._accept)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._socket.getsockname()[1])

    def _accept(self) -> None:
        for _ in range(self._AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # an error of the one connection (accept(2), "Error handling")
                self._hub._log_out_of_files()
                if not self._refuse_one():
                    self._pause()
                    return
            else:
                connection.setblocking(False)
                task = self._loop.create_task(self._serve(connection))
                self._shaking[connection] = task
                task.add_done_callback(partial(self._served, connection))

    def _refuse_one(self) -> bool:
        # False: even the spare descriptor has gone to somebody else.
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        try:
            self._socket.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except BlockingIOError:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        return True

    def _pause(self) -> None:
        # The socket stays readable: without a pause the loop would do nothing else.
        self._loop.remove_reader(self._socket)
        self._resuming = self._loop.call_later(
            self._PAUSE, self._loop.add_reader, self._socket, self._accept
        )

    async def _serve(self, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(
            lambda: HubProtocol(self._hub), connection, **self._tls
        )

    def _served(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        # Not within the task, which may be cancelled before it begins.
        del self._shaking[connection]
        if task.cancelled():
            connection.close()  # the hub stops
            return
        error = task.exception()
        if error is not None:
            connection.close()  # it left during the TLS handshake, or could not shake hands
            if not isinstance(error, OSError):
                self._hub._report(None, error)

    def close(self) -> None:
        """Accepts nothing more, and ends the handshakes under way."""
        if not self._loop.is_closed():
            if self._resuming is not None:
                self._resuming.cancel()
            self._loop.remove_reader(self._socket)
            for task in list(self._shaking.values()):
                task.cancel()
        self._socket.close()
        if self._spare is not None:
            os.close(self._spare)


def check_listen_arguments(
    host: str | Sequence[str] | None, port: int, sock: socket.socket | None
) -> None:
    """Raises ValidationError for what cannot be listened on.

    A Unix socket is among it: picows sets TCP options on every connection.
    """
    if type(port) is not int or not 0 <= port <= 65535:
        raise ValidationError(f"port must be an int from 0 to 65535, not {port!r}")
    hosts = (host,) if isinstance(host, str) else host or ()
    if not isinstance(hosts, (tuple, list)) or not all(isinstance(name, str) for name in hosts):
        raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
    if any(name.startswith(("/", "unix:", "\0")) for name in hosts) or (
        sock is not None and sock.family == getattr(socket, "AF_UNIX", None)
    ):
        raise ValidationError("Unix sockets cannot be served: picows sets TCP options on them")
