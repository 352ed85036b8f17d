"""Whether a request is accepted: the checks, in the order of RFC 6455 section 4.2.

So nothing of the hub (an id, a slot, a room) is taken before a request is known to be sound.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

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
from wsc_fast.cluster.heads import IN_QUERY, SUBPROTOCOL
from wsc_fast.config import HubConfig
from wsc_fast.log import quoted
from wsc_fast.runtime.signatures import checked_callback
from wsc_fast.runtime.state import State
from wsc_fast.upgrade.admission import Admission
from wsc_fast.upgrade.answers import answer, header_lines, refusal
from wsc_fast.upgrade.identity import Identity, check_identity
from wsc_fast.upgrade.negotiation import (
    Deflate,
    choose_subprotocol,
    list_items,
    negotiate_deflate,
)
from wsc_fast.upgrade.refusals import Refusals, listed
from wsc_fast.upgrade.request import Authenticate, Request
from wsc_fast.upgrade.routes import METHODS, RouteCall, Served
from wsc_fast.upgrade.site import Site

# 16 bytes in base64.
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==\Z").match
# The methods of HTTP (RFC 9110 section 9.1 and RFC 5789); what is none gets 400.
_METHODS = ("GET", "HEAD", *METHODS[1:], "CONNECT", "TRACE")


class Policy:
    """Decides on the requests of one hub.

    Args:
        engine, state, admission: of the hub.
        site: what is served.
        settings: those that hold now.
        refusals: counts and tells them.
        authenticate: the application's; see Hub.
        report: hears of what `authenticate` and routes raise.
        shares_port: whether another process may go on accepting on the port.

    Attributes:
        site: what is served.
        asks_each: the application hears of each upgrade before it is accepted.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        admission: Admission,
        site: Site,
        settings: Callable[[], HubConfig],
        refusals: Refusals,
        *,
        authenticate: Authenticate | None,
        report: Callable[[BaseException], None],
        shares_port: Callable[[], bool],
    ) -> None:
        if authenticate is not None:
            checked_callback(authenticate, "request")
        self.site = site
        self._engine = engine
        self._state = state
        self._admission = admission
        self._settings = settings
        self._refusals = refusals
        self._authenticate = authenticate
        self._report = report
        self._shares_port = shares_port
        self._watcher: Callable[[Mapping[str, str]], None] | None = None
        self.asks_each: bool = authenticate is not None

    def watch_upgrades(self, watcher: Callable[[Mapping[str, str]], None]) -> None:
        """Has `watcher(headers)` called for each upgrade, in the context of the client to be."""
        self._watcher = watcher
        self.asks_each = True

    def accept(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | RouteCall | dict[str, str]:
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
            self._admission.drop_identity(client)
            return self._not_identified(error)

    def drop_identity(self, client: Client) -> None:
        """A connection that was accepted cannot be made."""
        self._admission.drop_identity(client)

    # --- what the compiled upgrade asks ---

    def allows_page(self, host: str, origin: str | None) -> bool:
        """See `upward.Upgrades`."""
        return (
            parse_host(host) is not None
            and self._serves(host)
            and (origin is None or self._allows(origin, host, self.site.tls))
        )

    def agreement(
        self, protocols: str | None, extensions: str | None, in_query: bool
    ) -> tuple[bytes, str | None, Deflate | None, bool]:
        """See `upward.Upgrades`."""
        headers, subprotocol, deflate, aware = self._agree(
            None if protocols is None else [protocols],
            None if extensions is None else [extensions],
            in_query,
        )
        return header_lines(headers), subprotocol, deflate, aware

    def let_in(
        self, head: RequestHead, client: Client, remote_address: str, transport: asyncio.Transport
    ) -> WSUpgradeResponse | None:
        """See `upward.Upgrades`."""
        try:
            if not self._admission.admit(remote_address):
                return _too_many()
            return self._identify(head, client, remote_address, transport, False)
        except BaseException as error:
            return self._not_identified(error)

    def await_hello(self, client: Client) -> None:
        """See `upward.Upgrades`."""
        self._admission.await_hello(client)

    # --- the checks ---

    def _decide(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | RouteCall | dict[str, str]:
        refused = self._check_request(head)
        if refused is not None:
            return refused
        if not self._state.accepting:
            return self.refuse_ending(remote_address)
        path = head.target.partition(b"?")[0].decode("ascii")
        served = self.site.routes.find(path) if path != self.site.path else None
        if served is not None:
            request = Request(head, remote_address, transport, served.params_of(path))
            return self._route(served, head, request)
        if head.method not in ("GET", "HEAD"):
            return self._refuse_method("GET, HEAD")
        if head.length or head.encoded:
            return self._refuse_body()
        # Where another server has the connection, it has chosen by the path.
        if transport is not None and self.site.path is not None and path != self.site.path:
            return self._refuse_path(head, remote_address)
        refused = self._check_upgrade(head, remote_address)
        if refused is not None:
            return refused
        # A draining hub that shares its port has left it to others. A client that still comes to
        # this one had connected before, and no other can serve it.
        if self._state.draining and not self._shares_port():
            return self._refuse_ending(remote_address, "the hub is draining")
        full = self._admission.is_full()
        if full and not self._admission.may_return():
            return self._refuse_full(remote_address)
        if not self._admission.admit(remote_address):
            return _too_many()
        refused = self._check_origin(head, remote_address, transport)
        if refused is None:
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
        """Tells the watcher of it, and asks `authenticate` who it is."""
        if self._watcher is not None:
            call_in_context(client, self._watcher, head.headers)
        if self._authenticate is None:
            return None
        request = Request(head, remote_address, transport)
        identity = call_in_context(client, self._authenticate, request)
        if identity is None:
            return self._refuse_unauthenticated(remote_address, request.refusal)
        if type(identity) is not Identity and inspect.isawaitable(identity):
            self._admission.find_out(client, identity, full, request)
            return None
        check_identity(identity)
        reason = self._admission.reason_against(identity)
        if reason is not None:
            return self._refuse_unauthenticated(remote_address, reason)
        if full and self._admission.client_of(identity) is None:
            return self._refuse_full(remote_address)
        set_pending_identity(client, identity)
        return None

    def refuse_ending(self, remote_address: str) -> WSUpgradeResponse:
        """The answer of a hub that accepts nothing any more."""
        why = "the hub has stopped" if self._state.ended else "the hub is stopping"
        return self._refuse_ending(remote_address, why)

    def _refuse_ending(self, remote_address: str, why: str) -> WSUpgradeResponse:
        self._refusals.refuse("full", remote_address, why)
        return _unavailable()

    def _refuse_path(self, head: RequestHead, remote_address: str) -> WSUpgradeResponse:
        if not (head.to_websocket and head.upgrade):
            return self.reject(HTTPStatus.NOT_FOUND)  # of anybody who looks around
        self._refusals.refuse(
            "request", remote_address, "its path is not that of the endpoint, %s", self.site.path
        )
        return refusal(HTTPStatus.NOT_FOUND)

    def _refuse_full(self, remote_address: str) -> WSUpgradeResponse:
        self._refusals.over_limit("full", remote_address, "max_connections")
        return _unavailable()

    def _refuse_unauthenticated(self, remote_address: str, reason: object) -> WSUpgradeResponse:
        self._refusals.unauthenticated(remote_address, reason)
        # RFC 9110 section 15.5.2 wants a challenge, though only the application knows which.
        return refusal(HTTPStatus.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})

    def _negotiate(self, head: RequestHead, client: Client) -> dict[str, str]:
        headers, subprotocol, deflate, aware = self._agree(
            head.protocols, head.extensions, head.has_parameter(IN_QUERY)
        )
        if headers or aware:
            agree_on(client, subprotocol, deflate, aware)
        if aware:
            self._admission.await_hello(client)
        return headers

    def _agree(
        self, protocols: list[str] | None, extensions: list[str] | None, in_query: bool
    ) -> tuple[dict[str, str], str | None, Deflate | None, bool]:
        """The agreement: headers, subprotocol, compression, whether it speaks wsc.1."""
        deflate = subprotocol = None
        headers = {}
        if protocols is not None:
            known = (SUBPROTOCOL, *self._settings().subprotocols)
            subprotocol = choose_subprotocol(known, protocols)
            if subprotocol is not None:
                headers["Sec-WebSocket-Protocol"] = subprotocol
        if extensions is not None and self.site.deflate is not None:
            deflate = negotiate_deflate(self.site.deflate, ",".join(extensions))
            if deflate is not None:
                headers["Sec-WebSocket-Extensions"] = deflate.response
        return headers, subprotocol, deflate, in_query or subprotocol == SUBPROTOCOL

    def reject(self, status: HTTPStatus, text: str = "") -> WSUpgradeResponse:
        self._engine.count_rejected("request")
        return refusal(status, f"{status.value} {status.phrase}: {text}" if text else "")

    def _upgrade_required(
        self, text: str, version: dict[str, str], remote_address: str, why: str
    ) -> WSUpgradeResponse:
        self._refusals.refuse("request", remote_address, why)
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
        if head.method not in _METHODS:
            return self.reject(HTTPStatus.BAD_REQUEST, "an unknown method")
        return None

    def _refuse_method(self, allowed: str) -> WSUpgradeResponse:
        self._engine.count_rejected("request")
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": allowed})

    def _refuse_body(self) -> WSUpgradeResponse:
        return self.reject(HTTPStatus.BAD_REQUEST, "a request with a body")

    def _route(
        self, served: Served, head: RequestHead, request: Request
    ) -> WSUpgradeResponse | RouteCall:
        """The call of a route, or the answer to a request that it does not take."""
        route = served.route_of(head.method)
        if route is None:
            return self._refuse_method(served.allowed())
        if head.method in ("GET", "HEAD") and (head.length or head.encoded):
            return self._refuse_body()
        if head.encoded:
            return self.reject(HTTPStatus.LENGTH_REQUIRED, "a body needs a Content-Length")
        most = self._settings().max_request_body
        if served.guard is not None:
            refused = served.guard.check(request)
            if refused is not None:
                return answer(refused)
            most = served.guard.most_body
        if head.length > most:
            self._engine.count_limit("max_request_body")
            return self.reject(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return RouteCall(route, request, head.length)

    # --- routes ---

    def call(self, call: RouteCall, client: Client) -> WSUpgradeResponse | Awaitable[object]:
        """Calls a route.

        Args:
            call: with its body.
            client: in whose context it is called.

        Returns:
            The answer, or what an async route has returned, for `finish`.
        """
        try:
            result = call_in_context(client, call.route, call.request)
            return result if inspect.isawaitable(result) else answer(result)
        except BaseException as error:
            return self._failed(error)

    async def finish(self, result: Awaitable[object]) -> WSUpgradeResponse:
        """The answer of an async route."""
        try:
            return answer(await result)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, GeneratorExit) or (task is not None and task.cancelling()):
                raise
            return self._failed(error)

    def call_at_once(self, call: RouteCall, client: Client) -> WSUpgradeResponse:
        """Calls a route where nothing can be waited for: 501 for a body, and for an async one."""
        if call.length:
            return self.reject(HTTPStatus.NOT_IMPLEMENTED, "no body is read here")
        result = self.call(call, client)
        if isinstance(result, WSUpgradeResponse):
            return result
        if inspect.iscoroutine(result):
            result.close()
        return self.reject(HTTPStatus.NOT_IMPLEMENTED, "no async route is served here")

    def _not_identified(self, error: BaseException) -> WSUpgradeResponse:
        self._engine.count_rejected("auth")  # it is of `authenticate`, mostly
        return self._failed(error)

    def _failed(self, error: BaseException) -> WSUpgradeResponse:
        # The text of the exception is for us alone; CancelledError and its like end no loop.
        self._report(error)
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_upgrade(self, head: RequestHead, remote_address: str) -> WSUpgradeResponse | None:
        # RFC 6455 section 4.2.1, in its order; two key headers leave it open which counts. HTTP/1.0
        # has no upgrade (RFC 9110 section 7.8).
        if not head.to_websocket or not head.upgrade or head.method != "GET" or head.http10:
            return self._upgrade_required(
                "this is a WebSocket endpoint",
                {},
                remote_address,
                "it is no WebSocket request; a proxy in front has to speak HTTP/1.1 and to pass on "
                "Upgrade and Connection",
            )
        host = _host_of(head)
        if not self._serves(host):
            self._refusals.refuse(
                "origin",
                remote_address,
                "the host %s is none of HubConfig.allowed_hosts (%s)",
                quoted(host),
                listed(self._settings().allowed_hosts),
                setting="allowed_hosts",
                host=quoted(host),
            )
            return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this host is not served")
        if head.version != "13" or head.versions != 1:
            version = {"Sec-WebSocket-Version": "13"}
            return self._upgrade_required(
                "WebSocket version 13 is needed",
                version,
                remote_address,
                "it asks for another version of WebSocket than 13",
            )
        if head.key is None or head.keys != 1 or not _KEY(head.key):
            text = "Sec-WebSocket-Key must be 16 bytes in base64"
            self._refusals.refuse("request", remote_address, text)
            return refusal(HTTPStatus.BAD_REQUEST, f"400 Bad Request: {text}")
        return None

    def _check_origin(
        self, head: RequestHead, remote_address: str, transport: asyncio.Transport | None
    ) -> WSUpgradeResponse | None:
        if head.origin is None or not self._settings().check_origin:
            return None  # however many there are
        tls = self.site.tls or self._proxy_has_tls(head, transport)
        if head.origins == 1 and self._allows(head.origin, _host_of(head), tls):
            return None
        if head.origins == 1:
            self._refusals.refuse(
                "origin",
                remote_address,
                "the origin %s is not %s://%s, nor in HubConfig.allowed_origins (%s)",
                quoted(head.origin),
                "https" if tls else "http",
                quoted(_host_of(head))[1:-1],
                listed(self._settings().allowed_origins),
                setting="allowed_origins",
                origin=quoted(head.origin),
            )
        else:
            self._refusals.refuse("origin", remote_address, "it has two headers Origin")
        return refusal(HTTPStatus.FORBIDDEN, "403 Forbidden: this origin is not allowed")

    def _serves(self, host: str) -> bool:
        return not self.site.allowed_hosts or parse_host(host) in self.site.allowed_hosts

    def _allows(self, origin: str, host: str, tls: bool) -> bool:
        settings = self._settings()
        return not settings.check_origin or origin_allowed(
            origin, host, tls, settings.allowed_origins
        )

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


def _too_many() -> WSUpgradeResponse:
    return refusal(HTTPStatus.TOO_MANY_REQUESTS, headers={"Retry-After": "1"})


def _host_of(head: RequestHead) -> str:
    # RFC 9112 section 3.2.2: a target in absolute form counts instead of the header.
    return (head.authority if head.authority is not None else head.host) or ""
