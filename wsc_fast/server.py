"""Listening and the upgrade: what happens to a connection before it is a client.

The order of the checks is the order of RFC 6455 section 4.2, so that nothing of the hub (an id, a
slot, a room) is taken before a request is known to be sound. handshake.pyx reads the request.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import re
import socket
from binascii import b2a_base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import is_dataclass
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha1
from http import HTTPStatus
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, TLSVersion
from time import time
from typing import TYPE_CHECKING, Any

import msgspec
from multidict import CIMultiDict
from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, peer_address
from wsc_fast._core.engine import check_id
from wsc_fast._core.handshake import RequestHead, RequestLine, TooManyHeaders
from wsc_fast.addresses import (
    forwarded_address,
    is_trusted,
    origin_allowed,
    parse_address,
    parse_host,
)
from wsc_fast.errors import ValidationError
from wsc_fast.extensions import choose_subprotocol, list_items, negotiate_deflate
from wsc_fast.lingering import Lingering
from wsc_fast.log import log

if TYPE_CHECKING:
    from ssl import SSLObject

    from wsc_fast.hub import Hub

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z").match
# Headers of an answer that are not the application's to set.
_OUR_HEADERS = ("Content-Length", "Transfer-Encoding", "Connection")
# What can stand before the ? of a request target.
_PATH = re.compile(r"/[!-\"$->@-~]*\Z").match
# 16 bytes in base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z").match
# What is appended to a key before it is hashed (RFC 6455 section 1.3).
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL_STATUSES = frozenset(status.value for status in HTTPStatus if status >= 200)
# Those of answers that have no body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED)
# How the first record of a TLS stream begins (RFC 8446 section 5.1): a handshake.
_TLS_RECORD = b"\x16\x03"
# Characters of what a peer has sent that go into a line of the log.
_MOST_SHOWN = 200
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
        device_id: the device that the client runs on, the same at each of its connections; see
            ACKConfig(per="device"). None: it is not known.
    """

    user_id: str
    client_id: str | None = None
    user_data: dict[Any, Any] | None = None
    expires_at: float | None = None
    device_id: str | None = None


def check_identity(identity: Identity) -> None:
    """Raises ValidationError for an identity that no client can have."""
    if identity.user_data is not None and not isinstance(identity.user_data, dict):
        raise ValidationError(
            f"user_data must be a dict or None, not {type(identity.user_data).__name__}"
        )
    expires_at = identity.expires_at
    if expires_at is not None and not (
        type(expires_at) in (int, float) and 0 <= expires_at < math.inf
    ):
        raise ValidationError(
            f"expires_at must be seconds since the epoch or None, not {expires_at!r}"
        )
    check_id("user", identity.user_id)
    if identity.client_id is not None:
        check_id("client", identity.client_id)
    if identity.device_id is not None:
        check_id("device", identity.device_id)


class Response(msgspec.Struct, frozen=True):
    """An answer of a route.

    Attributes:
        status: HTTP status code.
        body: str is sent as UTF-8. Answers of status 204, 205 and 304 have none.
        content_type: the header of that name.
        headers: further headers; those that frame the answer are the server's own and ignored.

    Raises:
        ValidationError: a status that HTTP does not know or that ends no request (1xx), a body that
            is neither bytes nor str, a body where the status has none, or a header name or value
            that HTTP cannot carry (line breaks, for one).
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
        if self.body and self.status in _BODILESS:
            raise ValidationError(
                f"an answer of status {self.status} has no body, and not one of {len(self.body)}"
            )
        self._sendable_headers()

    def _sendable_headers(self) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        typed = {} if self.status in _BODILESS else {"Content-Type": self.content_type}
        for name, value in {**(self.headers or {}), **typed}.items():
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
        query: str -> str; of repeated names the first counts. The first 256 pairs are looked at.
        headers: case-insensitive mapping.
        cookies: str -> str, of all Cookie lines; of repeated names the first counts. The first 256
            are looked at.
        remote_address: the peer's IP address; "" behind `handle_websocket`, where picows does not
            tell it before the connection is made.
        tls: whether it came over TLS to this very server; False behind `handle_websocket`.
        peer_certificate: the certificate that the peer has shown and the TLS context has verified,
            as `ssl.SSLSocket.getpeercert` tells it; None where there is none, or `tls` is False.
    """

    __slots__ = ("_cookies", "_head", "_path", "_query", "_transport", "remote_address")

    def __init__(
        self, head: RequestHead, remote_address: str, transport: asyncio.Transport | None = None
    ) -> None:
        self.remote_address = remote_address
        self._head = head
        self._transport = transport
        # Parsed at the first access.
        self._path: str | None = None
        self._query: dict[str, str] | None = None
        self._cookies: dict[str, str] | None = None

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
    def path(self) -> str:
        if self._path is None:
            self._path = self._head.path()
        return self._path

    @property
    def headers(self) -> Mapping[str, str]:
        return self._head.headers

    @property
    def query(self) -> dict[str, str]:
        if self._query is None:
            self._query = _first_of_each(self._head.query_pairs())
        return self._query

    @property
    def cookies(self) -> dict[str, str]:
        if self._cookies is None:
            self._cookies = _first_of_each(self._head.cookie_pairs())
        return self._cookies


def _first_of_each(pairs: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
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
    fields = {"Date": _date_of(int(time())), **(headers or {})}
    response: WSUpgradeResponse = WSUpgradeResponse.create_error_response(status, body, fields)
    return response


@lru_cache(maxsize=1)
def _date_of(seconds: int) -> str:
    # RFC 9110 section 6.6.1: a server that has a clock sends the date.
    return formatdate(seconds, usegmt=True)


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
    response.headers.setdefault("Date", _date_of(int(time())))
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
        head: the request.
        client: what the connection would be; told who it is.
        remote_address: of the peer, or "".
        transport: the connection, where it is known already.
    """
    refused = _check_request(hub, head)
    if refused is not None:
        return refused
    if not hub._accepting:
        hub._count_rejected("full")
        return _unavailable()
    path = head.target.partition(b"?")[0].decode("ascii")
    route = hub._routes.get(path)
    if route is not None:
        return answer(client._call(route, Request(head, remote_address, transport)))
    # Where another server has the connection, it has chosen by the path.
    if transport is not None and hub._path is not None and path != hub._path:
        return _reject(hub, HTTPStatus.NOT_FOUND)

    refused = _check_upgrade(hub, head, remote_address)
    if refused is not None:
        return refused
    # A draining hub that shares its port has left it to others: whoever still comes to this one had
    # connected before, and can be served by no other.
    if hub._draining and not hub._shares_port:
        hub._count_rejected("full")
        return _unavailable()
    full = hub._is_full()
    if full and not hub._may_return():
        return _refuse_full(hub)
    if not hub._admit(remote_address):
        return refusal(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "1"})
    refused = _check_origin(hub, head, remote_address, transport)
    if refused is not None:
        return refused

    if hub._authenticate is not None:
        identity = client._call(hub._authenticate, Request(head, remote_address, transport))
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


def _unavailable() -> WSUpgradeResponse:
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})


def _refuse_full(hub: Hub) -> WSUpgradeResponse:
    hub._refuse_full()
    return _unavailable()


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


def _reject(hub: Hub, status: HTTPStatus, text: str = "") -> WSUpgradeResponse:
    hub._count_rejected("request")
    return refusal(status, f"{status.value} {status.phrase}: {text}" if text else "")


def _upgrade_required(hub: Hub, text: str, version: dict[str, str]) -> WSUpgradeResponse:
    hub._count_rejected("request")
    # A message with Upgrade has to list it in Connection (RFC 9110 section 7.8).
    headers = {"Upgrade": "websocket", "Connection": "close, Upgrade", **version}
    return refusal(HTTPStatus.UPGRADE_REQUIRED, text, headers)


def _check_request(hub: Hub, head: RequestHead) -> WSUpgradeResponse | None:
    """What holds for every request, whatever it is for (RFC 9112 section 3.2)."""
    if not (head.hosts == 0 and head.http10) and (
        head.hosts != 1 or parse_host(head.host or "") is None
    ):
        return _reject(hub, HTTPStatus.BAD_REQUEST, "exactly one sound Host header is needed")
    if head.authority is not None and parse_host(head.authority) is None:
        return _reject(hub, HTTPStatus.BAD_REQUEST, "the target names no sound host")
    if head.method in ("GET", "HEAD"):
        return None
    if head.method in _OTHER_METHODS:
        hub._count_rejected("request")
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
    return _reject(hub, HTTPStatus.BAD_REQUEST, "an unknown method")


def _host_of(head: RequestHead) -> str:
    # RFC 9112 section 3.2.2: a target in absolute form counts instead of the header.
    return (head.authority if head.authority is not None else head.host) or ""


def _check_upgrade(hub: Hub, head: RequestHead, remote_address: str) -> WSUpgradeResponse | None:
    # RFC 6455 section 4.2.1, in its order; two key headers leave it open which counts. HTTP/1.0 has
    # no upgrade (RFC 9110 section 7.8).
    if not head.to_websocket or not head.upgrade or head.method != "GET" or head.http10:
        return _upgrade_required(hub, "this is a WebSocket endpoint", {})
    host = _host_of(head)
    if hub._allowed_hosts and parse_host(host) not in hub._allowed_hosts:
        hub._count_rejected("origin")
        log.info(
            "an upgrade from %s is refused: the host %s is none of allowed_hosts",
            remote_address or "an unknown address",
            _shown(host),
        )
        return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this host is not served")
    if head.version != "13" or head.versions != 1:
        version = {"Sec-WebSocket-Version": "13"}
        return _upgrade_required(hub, "WebSocket version 13 is needed", version)
    if head.key is None or head.keys != 1 or not _KEY(head.key):
        return _reject(hub, HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def _check_origin(
    hub: Hub, head: RequestHead, remote_address: str, transport: asyncio.Transport | None
) -> WSUpgradeResponse | None:
    if head.origin is None or not hub.config.check_origin:
        return None
    tls = hub._tls or _proxy_has_tls(hub, head, transport)
    if head.origins == 1 and origin_allowed(
        head.origin, _host_of(head), tls, hub.config.allowed_origins
    ):
        return None
    hub._count_rejected("origin")
    log.info(
        "an upgrade from %s is refused: the origin %s is not that of the host %s, nor in "
        "allowed_origins",
        remote_address or "an unknown address",
        _shown(head.origin) if head.origins == 1 else "is there twice and",
        _shown(_host_of(head)),
    )
    return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this origin is not allowed")


def _proxy_has_tls(hub: Hub, head: RequestHead, transport: asyncio.Transport | None) -> bool:
    """Whether a trusted proxy says that the request came to it by TLS."""
    if head.forwarded_proto is None or transport is None:
        return False
    peer = parse_address(peer_address(transport))
    return (
        peer is not None
        and is_trusted(peer, hub._trusted_proxies)
        # Some say "wss" of an upgrade.
        and not {"https", "wss"}.isdisjoint(map(str.lower, list_items(head.forwarded_proto)))
    )


def _shown(text: str) -> str:
    """What a peer has sent, for a line of the log."""
    return ascii(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")


class Handshake:
    """The request of one connection of the hub's own server, until it is answered.

    Reads one request head. Anything but an accepted upgrade is answered and closed, and what was
    sent behind it is not looked at.

    Args:
        hub: whose connection it is.
        client: what the connection is if its upgrade is accepted; its protocol already.
        transport: the connection.
    """

    __slots__ = (
        "_client",
        "_descriptor",
        "_head",
        "_hub",
        "_line",
        "_lingering",
        "_transport",
    )

    def __init__(self, hub: Hub, client: Client, transport: asyncio.Transport) -> None:
        self._hub = hub
        self._client = client
        self._transport = transport
        self._head: bytearray | None = None  # what came of it in earlier reads
        self._line: RequestLine | None = None  # of that
        self._lingering: Lingering | None = None  # once it is answered
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        if self._descriptor >= hub._last_file:
            hub._log_out_of_files()

    def received(self, data: bytes | bytearray) -> None:
        """Takes what the transport has read."""
        if self._lingering is not None:
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
        else:
            self._wait_for_more(data, most)

    def _wait_for_more(self, data: bytes | bytearray, most: int) -> None:
        if self._line is None:
            self._head = bytearray(data)
            self._line = RequestLine()
        if not self._line.fits(data):
            # Refused at once, since another protocol may never send what ends a head of HTTP.
            self._refuse_malformed(data, "a malformed request line")
        elif len(data) >= most:
            self._hub._count_limit("max_header_bytes")
            self._answer(_reject(self._hub, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def _refuse_malformed(self, data: bytes | bytearray, reason: str) -> None:
        if data.startswith(_TLS_RECORD):
            reason = "a TLS handshake, on a port without TLS"
        log.info("a bad request from %s: %s", peer_address(self._transport), reason)
        self._answer(_reject(self._hub, HTTPStatus.BAD_REQUEST, reason))

    def _decide(self, raw: bytes, rest: bytes) -> None:
        hub, client, transport = self._hub, self._client, self._transport
        try:
            head = RequestHead(raw, hub.config.max_headers)
        except ValueError as error:
            if isinstance(error, TooManyHeaders):
                hub._count_limit("max_headers")
            self._refuse_malformed(raw, str(error))
            return
        remote_address = peer_address(transport)
        if hub._trusted_proxies and head.forwarded_for is not None:
            remote_address = forwarded_address(
                remote_address, head.forwarded_for, hub._trusted_proxies
            )
        decided = hub._accept(head, client, remote_address, transport)
        if transport.is_closing():
            # A loop ran inside `authenticate` or a route, and the connection ended in it.
            hub._drop_identity(client)
            return
        if isinstance(decided, WSUpgradeResponse):
            self._answer(decided, head.method == "HEAD")
            return
        assert head.key is not None
        self.settle()
        if hub._make_connection is None:
            transport.write(switching_protocols(head.key, decided))
            client._begin(transport, self._descriptor, hub._tls, remote_address)
        else:
            try:
                hub._make_connection(client, transport, head.key, decided, remote_address)
            except OSError as error:
                hub._count_rejected("gone")
                log.info("a connection from %s cannot be made: %s", remote_address, error)
                hub._drop_identity(client)
                transport.abort()
                return
        if rest:
            client._feed(rest)

    def _answer(self, response: WSUpgradeResponse, head_only: bool = False) -> None:
        response.headers.setdefault("Connection", "close")
        answer = bytes(response.to_bytes())
        if head_only:
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self._head = self._line = None  # it may be a while until the connection is gone
        self.settle()
        self._hub._answered[self] = None
        self._lingering = Lingering(
            self._hub, self._client, self._transport, self._descriptor, answer
        )

    def descriptor(self) -> int:
        """Of its socket; -1 where it may be closed already."""
        return -1 if self._transport.is_closing() else self._descriptor

    def drained(self) -> None:
        """The transport has written all that it was given."""
        if self._lingering is not None:
            self._lingering.drained()

    def lost(self) -> None:
        """The connection is gone."""
        waited = self.settle()
        if self._lingering is not None:
            self._lingering.lost()
        elif waited and self._hub._accepting:
            self._hub._count_rejected("gone")

    def settle(self) -> bool:
        """Has the hub forget this handshake; returns whether it was still without an answer."""
        self._hub._answered.pop(self, None)
        slot = self._hub._handshaking.pop(self, None)
        if slot is None:
            return False
        self._hub._deadlines.cancel(self.time_out, slot)
        return True

    def time_out(self) -> None:
        """Ends it, since its request was not whole in time."""
        del self._hub._handshaking[self]
        self._hub._count_limit("handshake_timeout")
        self.abort()

    def abort(self) -> None:
        """Ends a connection that is not upgraded."""
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
    if host is None or host == "":
        return  # all interfaces
    hosts = (host,) if isinstance(host, str) else host
    if not isinstance(hosts, (tuple, list)) or not hosts:
        raise ValidationError(f"host must be a str, a list of str or None, not {host!r}")
    for name in hosts:
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
