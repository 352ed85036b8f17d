"""Request: what `authenticate` and routes get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from wsc_fast._core.handshake import RequestHead
from wsc_fast.upgrade.identity import Identity

if TYPE_CHECKING:
    from ssl import SSLObject


class Request:
    """The HTTP request of an upgrade or of a route, as `authenticate` and routes get it.

    Attributes:
        method: of HTTP, such as "GET".
        path_params: of a route with parameters: name -> str, decoded. Else empty.
        body: of a request to a route; empty where there is none.
        path: decoded path without the query.
        query: str -> str; of repeated names the first counts. The first 256 pairs are looked at.
        headers: case-insensitive mapping.
        cookies: str -> str, of all Cookie lines; of repeated names the first counts. The first 256
            are looked at.
        remote_address: the peer's IP address; "" behind `handle_websocket`, where picows does not
            tell it before the connection is made.
        tls: whether it came over TLS to this very server; False behind `handle_websocket` and
            `asgi_routes`.
        refusal: why `authenticate` refuses, a str or an exception, which it may set before it
            returns None. It stands in the log, escaped and cut at 200 characters; the peer does not
            hear of it. No secrets.
        peer_certificate: the certificate that the peer has shown and the TLS context has verified,
            as `ssl.SSLSocket.getpeercert` tells it; None where there is none, or `tls` is False.
    """

    __slots__ = (
        "_body",
        "_cookies",
        "_head",
        "_path",
        "_query",
        "_transport",
        "path_params",
        "refusal",
        "remote_address",
    )

    def __init__(
        self,
        head: RequestHead,
        remote_address: str,
        transport: asyncio.Transport | None = None,
        path_params: dict[str, str] | None = None,
    ) -> None:
        self.remote_address: str = remote_address
        self.refusal: str | BaseException | None = None
        self.path_params: dict[str, str] = path_params or {}
        self._body = b""
        self._head = head
        self._transport = transport
        # Parsed at the first access.
        self._path: str | None = None
        self._query: dict[str, str] | None = None
        self._cookies: dict[str, str] | None = None

    @property
    def method(self) -> str:
        return self._head.method

    @property
    def body(self) -> bytes:
        return self._body

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


def head_of(request: Request) -> RequestHead:
    """The whole head of a request: all lines of a name and all cookies (for auth/)."""
    return request._head


def set_body(request: Request, body: bytes) -> None:
    """Gives a request its body, once that is there (for serving.py)."""
    request._body = body


def _first_of_each(pairs: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


Authenticate = Callable[[Request], Identity | Awaitable[Identity | None] | None]
