"""Whether a request is accepted: the checks, in the order of RFC 6455 section 4.2.

So nothing of the hub (an id, a slot, a room) is taken before a request is known to be sound.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Protocol

from picows import WSUpgradeResponse

from wsc_fast._core.connection import (
    Client,
    agree_on,
    call_in_context,
    peer_address,
    set_pending_identity,
)
from wsc_fast._core.engine import Engine
from wsc_fast._core.handshake import RequestHead
from wsc_fast.addresses import is_trusted, origin_allowed, parse_address, parse_host
from wsc_fast.log import log
from wsc_fast.runtime.callbacks import checked_callback
from wsc_fast.runtime.state import State
from wsc_fast.upgrade.admission import Admission
from wsc_fast.upgrade.answers import answer, refusal
from wsc_fast.upgrade.identity import check_identity
from wsc_fast.upgrade.negotiation import choose_subprotocol, list_items, negotiate_deflate
from wsc_fast.upgrade.request import Authenticate, Request
from wsc_fast.upgrade.site import Site

# 16 bytes in base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z").match
# Characters of what a peer has sent that go into a line of the log.
_MOST_SHOWN = 200
# Methods that get 405; what is none of HTTP's gets 400 (RFC 9110 section 9.1).
_OTHER_METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE")


class Settings(Protocol):
    """The settings of HubConfig that requests are checked against."""

    @property
    def allowed_origins(self) -> tuple[str, ...]: ...
    @property
    def check_origin(self) -> bool: ...
    @property
    def subprotocols(self) -> tuple[str, ...]: ...


class Policy:
    """Decides on the requests of one hub.

    Args:
        engine, state, admission: of the hub.
        site: what is served.
        settings: those that hold now.
        authenticate: the application's; see Hub.
        report: hears of what `authenticate` and routes raise.
        shares_port: whether another process may go on accepting on the port.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        admission: Admission,
        site: Site,
        settings: Callable[[], Settings],
        *,
        authenticate: Authenticate | None,
        report: Callable[[None, BaseException], None],
        shares_port: Callable[[], bool],
    ) -> None:
        if authenticate is not None:
            checked_callback(authenticate)
        self.site = site
        self._engine = engine
        self._state = state
        self._admission = admission
        self._settings = settings
        self._authenticate = authenticate
        self._report = report
        self._shares_port = shares_port
        self._watcher: Callable[[Mapping[str, str]], None] | None = None

    def watch_upgrades(self, watcher: Callable[[Mapping[str, str]], None]) -> None:
        """Has `watcher(headers)` called for each upgrade, in the context of the client to be."""
        self._watcher = watcher

    def accept(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | dict[str, str]:
        """Decides on a request: the headers for its 101, or the answer that it gets instead.

        Args:
            head: the request.
            client: what the connection would be; told who it is.
            remote_address: of the peer, or "".
            transport: the connection, where it is known already.
        """
        try:
            return self._decide(head, client, remote_address, transport)
        except BaseException as error:
            # The text of the exception is for us alone; CancelledError and its like end no loop.
            self._report(None, error)
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    def drop_identity(self, client: Client) -> None:
        """A connection that was accepted cannot be made."""
        self._admission.drop_identity(client)

    def _decide(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | dict[str, str]:
        refused = self._check_request(head)
        if refused is not None:
            return refused
        if not self._state.accepting:
            self._engine.count_rejected("full")
            return _unavailable()
        path = head.target.partition(b"?")[0].decode("ascii")
        route = self.site.route_at(path)
        if route is not None:
            return answer(call_in_context(client, route, Request(head, remote_address, transport)))
        # Where another server has the connection, it has chosen by the path.
        if transport is not None and self.site.path is not None and path != self.site.path:
            return self.reject(HTTPStatus.NOT_FOUND)
        refused = self._check_upgrade(head, remote_address)
        if refused is not None:
            return refused
        # A draining hub that shares its port has left it to others. A client that still comes to
        # this one had connected before, and no other can serve it.
        if self._state.draining and not self._shares_port():
            self._engine.count_rejected("full")
            return _unavailable()
        full = self._admission.is_full()
        if full and not self._admission.may_return():
            return self._refuse_full()
        if not self._admission.admit(remote_address):
            return refusal(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "1"})
        refused = self._check_origin(head, remote_address, transport)
        if refused is not None:
            return refused
        if self._watcher is not None:
            call_in_context(client, self._watcher, head.headers)
        if self._authenticate is not None:
            refused = self._identify(head, client, remote_address, transport, full)
        return refused if refused is not None else self._negotiate(head, client)

    def _identify(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
        full: bool,
    ) -> WSUpgradeResponse | None:
        """Asks `authenticate` who it is."""
        assert self._authenticate is not None
        request = Request(head, remote_address, transport)
        identity = call_in_context(client, self._authenticate, request)
        if identity is None:
            return self._refuse_unauthenticated()
        if inspect.isawaitable(identity):
            self._admission.find_out(client, identity, full)
            return None
        check_identity(identity)
        if self._admission.reason_against(identity) is not None:
            return self._refuse_unauthenticated()
        if full and self._admission.client_of(identity) is None:
            return self._refuse_full()
        set_pending_identity(client, identity)
        return None

    def _refuse_full(self) -> WSUpgradeResponse:
        self._admission.count_full()
        return _unavailable()

    def _refuse_unauthenticated(self) -> WSUpgradeResponse:
        self._engine.count_rejected("auth")
        # RFC 9110 section 15.5.2 wants a challenge, though only the application knows which.
        return refusal(HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})

    def _negotiate(self, head: RequestHead, client: Client) -> dict[str, str]:
        deflate = subprotocol = None
        headers = {}
        if head.protocols is not None and self._settings().subprotocols:
            subprotocol = choose_subprotocol(self._settings().subprotocols, head.protocols)
            if subprotocol is not None:
                headers["Sec-WebSocket-Protocol"] = subprotocol
        if head.extensions is not None and self.site.deflate is not None:
            deflate = negotiate_deflate(self.site.deflate, ",".join(head.extensions))
            if deflate is not None:
                headers["Sec-WebSocket-Extensions"] = deflate.response
        if headers:
            agree_on(client, subprotocol, deflate)
        return headers

    def reject(self, status: HTTPStatus, text: str = "") -> WSUpgradeResponse:
        self._engine.count_rejected("request")
        return refusal(status, f"{status.value} {status.phrase}: {text}" if text else "")

    def _upgrade_required(self, text: str, version: dict[str, str]) -> WSUpgradeResponse:
        self._engine.count_rejected("request")
        # A message with Upgrade has to list it in Connection (RFC 9110 section 7.8).
        headers = {"Upgrade": "websocket", "Connection": "close, Upgrade", **version}
        return refusal(HTTPStatus.UPGRADE_REQUIRED, text, headers)

    def _check_request(self, head: RequestHead) -> WSUpgradeResponse | None:
        """The rules for every request, whatever it is for (RFC 9112 section 3.2)."""
        if not (head.hosts == 0 and head.http10) and (
            head.hosts != 1 or parse_host(head.host or "") is None
        ):
            return self.reject(HTTPStatus.BAD_REQUEST, "exactly one sound Host header is needed")
        if head.authority is not None and parse_host(head.authority) is None:
            return self.reject(HTTPStatus.BAD_REQUEST, "the target names no sound host")
        if head.method in ("GET", "HEAD"):
            return None
        if head.method in _OTHER_METHODS:
            self._engine.count_rejected("request")
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
        return self.reject(HTTPStatus.BAD_REQUEST, "an unknown method")

    def _check_upgrade(self, head: RequestHead, remote_address: str) -> WSUpgradeResponse | None:
        # RFC 6455 section 4.2.1, in its order; two key headers leave it open which counts. HTTP/1.0
        # has no upgrade (RFC 9110 section 7.8).
        if not head.to_websocket or not head.upgrade or head.method != "GET" or head.http10:
            return self._upgrade_required("this is a WebSocket endpoint", {})
        host = _host_of(head)
        if self.site.allowed_hosts and parse_host(host) not in self.site.allowed_hosts:
            self._engine.count_rejected("origin")
            log.info(
                "an upgrade from %s is refused: the host %s is none of allowed_hosts",
                remote_address or "an unknown address",
                _shown(host),
            )
            return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this host is not served")
        if head.version != "13" or head.versions != 1:
            version = {"Sec-WebSocket-Version": "13"}
            return self._upgrade_required("WebSocket version 13 is needed", version)
        if head.key is None or head.keys != 1 or not _KEY(head.key):
            return self.reject(
                HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64"
            )
        return None

    def _check_origin(
        self, head: RequestHead, remote_address: str, transport: asyncio.Transport | None
    ) -> WSUpgradeResponse | None:
        if head.origin is None or not self._settings().check_origin:
            return None
        tls = self.site.tls or self._proxy_has_tls(head, transport)
        if head.origins == 1 and origin_allowed(
            head.origin, _host_of(head), tls, self._settings().allowed_origins
        ):
            return None
        self._engine.count_rejected("origin")
        log.info(
            "an upgrade from %s is refused: the origin %s is not that of the host %s, nor in "
            "allowed_origins",
            remote_address or "an unknown address",
            _shown(head.origin) if head.origins == 1 else "is there twice and",
            _shown(_host_of(head)),
        )
        return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this origin is not allowed")

    def _proxy_has_tls(self, head: RequestHead, transport: asyncio.Transport | None) -> bool:
        """Whether a trusted proxy says that the request came to it by TLS."""
        if head.forwarded_proto is None or transport is None:
            return False
        peer = parse_address(peer_address(transport))
        return (
            peer is not None
            and is_trusted(peer, self.site.trusted_proxies)
            # Some say "wss" of an upgrade.
            and not {"https", "wss"}.isdisjoint(map(str.lower, list_items(head.forwarded_proto)))
        )


def _unavailable() -> WSUpgradeResponse:
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})


def _host_of(head: RequestHead) -> str:
    # RFC 9112 section 3.2.2: a target in absolute form counts instead of the header.
    return (head.authority if head.authority is not None else head.host) or ""


def _shown(text: str) -> str:
    """A text that a peer has sent, for a line of the log."""
    return ascii(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")
