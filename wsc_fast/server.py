"""Listening and the upgrade: what happens to a connection before it is a client.

The order of the checks is the order of RFC 6455 section 4.2, so that nothing of the hub (an id, a
slot, a room) is taken before a request is known to be sound. handshake.pyx reads the request.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import is_dataclass
from hashlib import sha1
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, TLSVersion
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_plus

import msgspec
from multidict import CIMultiDict
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from wsc_fast._core.connection import Client, peer_address
from wsc_fast._core.handshake import RequestHead, TooManyHeaders
from wsc_fast.errors import ValidationError
from wsc_fast.extensions import choose_subprotocol, negotiate_deflate

if TYPE_CHECKING:
    from ssl import SSLObject

    from wsc_fast.hub import Hub

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z").match
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
_WANTED_HOST = re.compile(r"((?:\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?\Z").match
# Headers of an answer that are not the application's to set.
_OUR_HEADERS = ("Content-Length", "Transfer-Encoding", "Connection")
# What can stand before the ? of a request target.
_PATH = re.compile(r"/[!-\"$->@-~]*\Z").match
# 16 bytes in base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z").match
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What is appended to a key before it is hashed (RFC 6455 section 1.3).
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL_STATUSES = frozenset(status.value for status in HTTPStatus if status >= 200)
# Methods that get 405; what is none of HTTP's gets 400 (RFC 9110 section 9.1).
_OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE")


class Identity(msgspec.Struct, frozen=True):
    """Who a client is, as `authenticate` says.

    Attributes:
        user_id: the user; may have several clients.
        client_id: id of this client; None lets the hub make one. A connection whose client_id is
            taken by another one of the same user replaces it (close code 4409), also in a hub that
            is full. Where it is another user's, it is refused as if `authenticate` returned None.
        user_data: what `client.user_data` begins with. The dict is copied, what it holds is not.
        expires_at: when the identity ends, in seconds since the epoch: the client is then closed
            with 4401. One that has ended already is refused as if `authenticate` returned None.
            None: never.
    """

    user_id: str
    client_id: str | None = None
    user_data: dict[Any, Any] | None = None
    expires_at: float | None = None


class Response(msgspec.Struct, frozen=True):
    """An answer of a route.

    Attributes:
        status: HTTP status code.
        body: str is sent as UTF-8.
        content_type: the header of that name.
        headers: further headers; those that frame the answer are the server's own and ignored.

    Raises:
        ValidationError: a status that HTTP does not know or that ends no request (1xx), a body that
            is neither bytes nor str, or a header name or value that HTTP cannot carry (line breaks,
            for one).
    """

    status: int = 200
    body: bytes | str = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.status not in _FINAL_STATUSES:
            raise ValidationError(f"{self.status!r} is no final HTTP status code")
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
        tls: whether it came over TLS to this very server; False behind `handle_websocket`.
        peer_certificate: the certificate that the peer has shown and the TLS context has verified,
            as `ssl.SSLSocket.getpeercert` tells it; None where there is none, or `tls` is False.
    """

    __slots__ = ("_head", "_transport", "path", "remote_address")

    def __init__(
        self, head: RequestHead, remote_address: str, transport: asyncio.Transport | None = None
    ) -> None:
        self.path = unquote(head.target.partition(b"?")[0].decode("ascii"))
        self.remote_address = remote_address
        self._head = head
        self._transport = transport

    @property
    def tls(self) -> bool:
        return self._tls_object() is not None

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        tls = self._tls_object()
        return None if tls is None else tls.getpeercert() or None

    def _tls_object(self) -> SSLObject | None:
        if self._transport is None:
            return None
        found: SSLObject | None = self._transport.get_extra_info("ssl_object")
        return found

    @property
    def headers(self) -> Mapping[str, str]:
        return self._head.headers

    @property
    def query(self) -> dict[str, str]:
        # What parse_qsl of urllib gives, at half its cost.
        found: dict[str, str] = {}
        for pair in self._head.target.partition(b"?")[2].decode("ascii").split("&"):
            if pair:
                name, _, value = pair.partition("=")
                found.setdefault(unquote_plus(name), unquote_plus(value))
        return found

    @property
    def cookies(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in self.headers.get("Cookie", "").split(";"):
            name, equals, value = part.partition("=")
            if equals:
                found.setdefault(name.strip(), value.strip().strip('"'))
        return found


Authenticate = Callable[[Request], "Identity | Awaitable[Identity | None] | None"]
Route = Callable[[Request], Any]  # what `answer` takes


def switching_protocols(key: str, headers: dict[str, str]) -> bytes:
    """The 101 that accepts an upgrade (RFC 6455 section 4.2.2).

    Args:
        key: the Sec-WebSocket-Key of the request.
        headers: what was negotiated.
    """
    accept = b2a_base64(sha1(key.encode() + _ACCEPT_GUID).digest(), newline=False)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, lines)
    )


def refusal(
    status: HTTPStatus, text: str = "", headers: dict[str, str] | None = None
) -> WSUpgradeResponse:
    """A refused request; a new object each time, since picows writes into it."""
    body = (text or f"{status.value} {status.phrase}").encode() + b"\n"
    response: WSUpgradeResponse = WSUpgradeResponse.create_error_response(status, body, headers)
    return response


def answer(result: object) -> WSUpgradeResponse:
    """Turns what a route returned into picows' response."""
    if isinstance(result, str):
        result = Response(body=result)
    elif isinstance(result, bytes):
        result = Response(body=result, content_type="application/octet-stream")
    elif not isinstance(result, Response) and _is_json(result):
        result = Response(body=msgspec.json.encode(result), content_type="application/json")
    if not isinstance(result, Response):
        raise TypeError(
            "a route must return str, bytes, Response, or a dict, list, tuple, dataclass or Struct "
            f"for JSON, not {type(result).__name__}"
        )
    response = WSUpgradeResponse()
    response.version = b"HTTP/1.1"
    response.status = HTTPStatus(result.status)
    # Checked again: the dict may have changed since the response was made.
    response.headers = result._sendable_headers()
    response.body = result.body.encode() if isinstance(result.body, str) else result.body
    if not response.body and result.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        response.headers["Content-Length"] = "0"
    return response


def _is_json(result: object) -> bool:
    if isinstance(result, (dict, list, tuple, msgspec.Struct)):
        return True
    return is_dataclass(result) and not isinstance(result, type)


def accept(
    hub: Hub,
    head: RequestHead,
    client: Client,
    remote_address: str,
    transport: asyncio.Transport | None,
) -> WSUpgradeResponse | dict[str, str]:
    """Decides on a request: the headers for its 101, or the answer that it gets instead.

    Args:
        hub: whose connection it would be.
        head: the request, of method GET or HEAD.
        client: what the connection would be; told who it is.
        remote_address: of the peer, or "".
        transport: the connection, where it is known already.
    """
    if not hub._accepting:
        hub._count_rejected("full")
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})
    path = head.target.partition(b"?")[0].decode("ascii")
    route = hub._routes.get(path)
    if route is not None:
        return answer(route(Request(head, remote_address, transport)))
    if hub._path is not None and path != hub._path:
        return _reject(hub, HTTPStatus.NOT_FOUND)

    refused = _check_upgrade(hub, head)
    if refused is not None:
        return refused
    # Whoever had connected before a hub that shares its port began to drain has nobody else.
    if hub._draining and not hub._shares_port:
        hub._count_rejected("full")
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})
    full = hub._is_full()
    if full and not hub._may_return():
        return _refuse_full(hub)
    if remote_address:
        over = hub._limits.admit(remote_address)
        if over is not None:
            hub._count_limit(over)
            hub._count_rejected("address" if over == "max_connections_per_address" else "rate")
            return refusal(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "1"})
    refused = _check_origin(hub, head)
    if refused is not None:
        return refused

    if hub._authenticate is not None:
        identity = hub._authenticate(Request(head, remote_address, transport))
        if identity is None:
            return _refuse_unauthenticated(hub)
        if not inspect.isawaitable(identity):
            hub._check_identity(identity)
            if hub._reason_against(identity) is not None:
                return _refuse_unauthenticated(hub)
            if full and hub._client_of(identity) is None:
                return _refuse_full(hub)
        elif full:
            hub._returning.add(client)
        client._pending = identity
    return _negotiate(hub, head, client)


def _refuse_full(hub: Hub) -> WSUpgradeResponse:
    hub._refuse_full()
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})


def _refuse_unauthenticated(hub: Hub) -> WSUpgradeResponse:
    hub._count_rejected("auth")
    # RFC 9110 section 15.5.2 wants a challenge, though only the application knows which.
    return refusal(HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})


def _negotiate(hub: Hub, head: RequestHead, client: Client) -> dict[str, str]:
    deflate = subprotocol = None
    headers = {}
    if head.protocols is not None and hub.config.subprotocols:
        subprotocol = choose_subprotocol(hub.config.subprotocols, head.protocols)
        if subprotocol is not None:
            headers["Sec-WebSocket-Protocol"] = subprotocol
    if head.extensions is not None and hub._deflate is not None:
        deflate = negotiate_deflate(hub._deflate, ",".join(head.extensions))
        if deflate is not None:
            headers["Sec-WebSocket-Extensions"] = deflate.response
    if headers:
        client._agree(subprotocol, deflate)
    return headers


def head_of(request: WSUpgradeRequest) -> RequestHead:
    """The head of a request that a picows server has parsed.

    Raises:
        ValueError: picows takes more for a request than we do.
    """
    lines = [b"GET %b HTTP/1.1" % request.path]
    for name, value in request.headers.items():
        lines.append(f"{name}: {value}".encode("ascii", "surrogateescape"))
    return RequestHead(b"\r\n".join([*lines, b""]))


def picows_answer(
    request: WSUpgradeRequest, client: Client, decided: WSUpgradeResponse | dict[str, str]
) -> WSUpgradeResponseWithListener:
    """What a picows server is told of what `accept` decided."""
    if isinstance(decided, WSUpgradeResponse):
        return WSUpgradeResponseWithListener(decided, None)
    # picows accepts nothing but exactly this (RFC 6455 section 4.2.1 has lists).
    request.headers["Connection"] = "upgrade"
    request.headers["Upgrade"] = "websocket"
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(decided), client)


def _reject(hub: Hub, status: HTTPStatus, text: str = "") -> WSUpgradeResponse:
    hub._count_rejected("request")
    return refusal(status, text)


def _check_upgrade(hub: Hub, head: RequestHead) -> WSUpgradeResponse | None:
    # RFC 6455 section 4.2.1, in its order; two Host or key headers leave it open which counts.
    if not head.to_websocket or not head.upgrade or head.method != "GET":
        hub._count_rejected("request")
        return refusal(
            HTTPStatus.UPGRADE_REQUIRED, "this is a WebSocket endpoint", {"Upgrade": "websocket"}
        )
    if head.host is None or head.hosts != 1 or not _HOST(head.host.lower()):
        return _reject(hub, HTTPStatus.BAD_REQUEST, "exactly one Host header is needed")
    if hub._allowed_hosts and head.host.lower() not in hub._allowed_hosts:
        hub._count_rejected("origin")
        return refusal(HTTPStatus.FORBIDDEN)
    if head.version != "13" or head.versions != 1:
        hub._count_rejected("request")
        return refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "WebSocket version 13 is needed",
            {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"},
        )
    if head.key is None or head.keys != 1 or not _KEY(head.key):
        return _reject(hub, HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _check_origin(hub: Hub, head: RequestHead) -> WSUpgradeResponse | None:
    if head.origin is None or not hub.config.check_origin:
        return None
    assert head.host is not None
    if head.origins == 1 and origin_allowed(
        head.origin, head.host, hub._tls, hub.config.allowed_origins
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


def forwarded_address(
    peer: str, forwarded_for: list[str], trusted: tuple[IPv4Network | IPv6Network, ...]
) -> str:
    """Whose request a proxy has passed on.

    Args:
        peer: the address that the connection comes from.
        forwarded_for: the X-Forwarded-For headers. Each proxy appends the address it was asked
            from, so that only what trusted ones have appended can be believed.
        trusted: the proxies.

    Returns:
        str: the last address, seen from us, that is no trusted proxy; of what cannot be an
        address, and what stands before it, nothing is believed.
    """
    believed = peer
    hops = [hop.strip(" \t") for value in forwarded_for for hop in value.split(",")]
    for hop in reversed(hops):
        try:
            address = ip_address(believed)
            # What a socket of both families tells of an IPv4 peer.
            address = getattr(address, "ipv4_mapped", None) or address
            if not any(address in network for network in trusted):
                break
            believed = str(ip_address(hop))
        except ValueError:
            break
    return believed


class Handshake:
    """The request of one connection of the hub's own server, until it is answered.

    Reads one request head. Anything but an accepted upgrade is answered and closed, and what was
    sent behind it is not looked at.

    Args:
        hub: whose connection it is.
        client: what the connection is if its upgrade is accepted; its protocol already.
        transport: the connection.
    """

    __slots__ = ("_answered", "_client", "_descriptor", "_head", "_hub", "_transport")

    def __init__(self, hub: Hub, client: Client, transport: asyncio.Transport) -> None:
        self._hub = hub
        self._client = client
        self._transport = transport
        self._head: bytearray | None = None  # what came of it in earlier reads
        self._answered = False
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        if self._descriptor >= hub._last_file:
            hub._log_out_of_files()

    def received(self, data: bytes | bytearray) -> None:
        """Takes what the transport has read."""
        if self._answered:
            return
        searched = 0
        if self._head is not None:
            searched = max(0, len(self._head) - 3)
            self._head += data
            data = self._head
        end = data.find(b"\r\n\r\n", searched)
        most = self._hub.config.max_header_bytes
        if 0 <= end <= most - 4:
            self._decide(bytes(data[: end + 2]), bytes(data[end + 4 :]))
        elif len(data) >= most:
            self._hub._count_limit("max_header_bytes")
            self._answer(_reject(self._hub, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        elif self._head is None:
            self._head = bytearray(data)

    def _decide(self, raw: bytes, rest: bytes) -> None:
        hub, client, transport = self._hub, self._client, self._transport
        try:
            head = RequestHead(raw, hub.config.max_headers)
        except ValueError as error:
            if isinstance(error, TooManyHeaders):
                hub._count_limit("max_headers")
            self._answer(_reject(hub, HTTPStatus.BAD_REQUEST))
            return
        if head.method not in ("GET", "HEAD"):
            if head.method in _OTHER_METHODS:
                hub._count_rejected("request")
                allow = {"Allow": "GET, HEAD"}
                self._answer(refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers=allow))
            else:
                self._answer(_reject(hub, HTTPStatus.BAD_REQUEST))
            return
        remote_address = peer_address(transport)
        if hub._trusted_proxies and head.forwarded_for is not None:
            remote_address = forwarded_address(
                remote_address, head.forwarded_for, hub._trusted_proxies
            )
        decided = hub._accept(head, client, remote_address, transport)
        if isinstance(decided, WSUpgradeResponse):
            self._answer(decided, head.method == "HEAD")
            return
        assert head.key is not None
        transport.write(switching_protocols(head.key, decided))
        hub._handshaking.pop(self, None)
        client._begin(transport, self._descriptor, hub._tls, remote_address)
        if rest:
            client._feed(rest)

    def _answer(self, response: WSUpgradeResponse, head_only: bool = False) -> None:
        hub, transport = self._hub, self._transport
        assert hub.loop is not None
        self._answered = True
        response.headers["Connection"] = "close"
        answer = bytes(response.to_bytes())
        if head_only:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        transport.write(answer)
        self._client._close_transport()
        if transport.get_write_buffer_size():
            # Its peer does not read; aborting what has closed meanwhile is nothing.
            hub.loop.call_later(hub.config.close_timeout, transport.abort)

    def descriptor(self) -> int:
        """Of its socket; -1 where it may be closed already."""
        return -1 if self._transport.is_closing() else self._descriptor

    def lost(self) -> None:
        """The connection is gone."""
        waited = self._hub._handshaking.pop(self, None) is not None
        if waited and not self._answered and self._hub._accepting:
            self._hub._count_rejected("gone")

    def abort(self) -> None:
        """Ends a connection that is not upgraded yet."""
        self._transport.abort()


def check_path(what: str, path: object) -> None:
    """Raises ValidationError for a path that no request target can be (RFC 9112 section 3.2.1)."""
    if not isinstance(path, str) or not _PATH(path):
        raise ValidationError(
            f"{what} must begin with / and have only visible ASCII characters but ? and #, "
            f"not {path!r}"
        )


def check_listen_arguments(
    host: str | Sequence[str] | None,
    port: int,
    sock: socket.socket | None,
    ssl: SSLContext | None,
) -> None:
    """Raises ValidationError for what cannot be listened on.

    A Unix socket is among it: the hub sets TCP options and looks at TCP's state.
    """
    if ssl is not None and not isinstance(ssl, SSLContext):
        raise ValidationError(f"ssl must be an SSLContext or None, not {ssl!r}")
    if ssl is not None and ssl.protocol == PROTOCOL_TLS_CLIENT:
        raise ValidationError("ssl must be a context for a server, this one is for a client")
    if ssl is not None and ssl.minimum_version < TLSVersion.TLSv1_2:
        raise ValidationError(
            f"ssl allows {ssl.minimum_version.name}: its minimum_version must be TLSv1_2 or TLSv1_3"
        )
    if sock is not None:
        _check_socket(sock)
        return
    if type(port) is not int or not 0 <= port <= 65535:
        raise ValidationError(f"port must be an int from 0 to 65535, not {port!r}")
    hosts = (host or None,) if isinstance(host, str) or host is None else host
    if not isinstance(hosts, (tuple, list)) or not hosts:
        raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
    for name in hosts:
        if name is None:
            continue
        if not isinstance(name, str) or not name:
            raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
        if name.startswith(("/", "unix:", "\0")):
            raise ValidationError("Unix sockets cannot be served: the hub needs TCP")
        if not name.isprintable():
            raise ValidationError(f"host {name!r} holds characters that no address has")


def _check_socket(sock: socket.socket) -> None:
    if not isinstance(sock, socket.socket):
        raise ValidationError(f"sock must be a socket, not {sock!r}")
    if sock.family == getattr(socket, "AF_UNIX", None):
        raise ValidationError("Unix sockets cannot be served: the hub needs TCP")
    if sock.fileno() < 0:
        raise ValidationError("sock is closed")
    if sock.type != socket.SOCK_STREAM:
        raise ValidationError("sock is no TCP socket")
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        raise ValidationError("sock is connected: it cannot listen")
    if not sock.getsockname()[1]:
        raise ValidationError("sock is not bound to an address")
