"""Whether a request is accepted: the checks, in the order of RFC 6455 section 4.2.

So nothing of the hub (an id, a slot, a room) is taken before a request is known to be sound.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, peer_address
from wsc_fast._core.handshake import RequestHead
from wsc_fast.addresses import is_trusted, origin_allowed, parse_address, parse_host
from wsc_fast.log import log
from wsc_fast.upgrade.answers import answer, refusal
from wsc_fast.upgrade.identity import check_identity
from wsc_fast.upgrade.negotiation import choose_subprotocol, list_items, negotiate_deflate
from wsc_fast.upgrade.request import Request

if TYPE_CHECKING:
    from wsc_fast.hub import Hub

# 16 bytes in base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z").match
# Characters of what a peer has sent that go into a line of the log.
_MOST_SHOWN = 200
# Methods that get 405; what is none of HTTP's gets 400 (RFC 9110 section 9.1).
_OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE")


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
        return reject(hub, HTTPStatus.NOT_FOUND)

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
            check_identity(identity)
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


def reject(hub: Hub, status: HTTPStatus, text: str = "") -> WSUpgradeResponse:
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
        return reject(hub, HTTPStatus.BAD_REQUEST, "exactly one sound Host header is needed")
    if head.authority is not None and parse_host(head.authority) is None:
        return reject(hub, HTTPStatus.BAD_REQUEST, "the target names no sound host")
    if head.method in ("GET", "HEAD"):
        return None
    if head.method in _OTHER_METHODS:
        hub._count_rejected("request")
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
    return reject(hub, HTTPStatus.BAD_REQUEST, "an unknown method")


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
        return reject(hub, HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64")
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
