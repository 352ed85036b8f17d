"""The interface for adapters: another server than the hub's own hands over its connections.

An adapter opens the door (`attach`, or `open` at the first request). There are two ways in:

    connect    the connection itself, with the request that was read of it. The hub answers
    accept     a request alone. The hub decides, and the other server answers and makes the
               connection: `Client` is a picows listener and an asyncio.BufferedProtocol

`serve` answers a request for a route, of which the other server has the connection.

`end` stops the hub with that server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, feed, peer_address, protocol_of
from wsc_fast._core.engine import Engine
from wsc_fast._core.handshake import RequestHead
from wsc_fast.config import HubConfig
from wsc_fast.errors import ConfigError, HubStateError
from wsc_fast.log import log
from wsc_fast.runtime.life import Life
from wsc_fast.runtime.process import OwnLog
from wsc_fast.runtime.state import State
from wsc_fast.upgrade.answers import refusal
from wsc_fast.upgrade.policy import Policy
from wsc_fast.upgrade.refusals import Refusals
from wsc_fast.upgrade.request import set_body
from wsc_fast.upgrade.routes import RouteCall

# Reads the body of a request, of this length; None where the peer has gone before it was there.
ReadBody = Callable[[int], Awaitable[bytes | None]]
# Raises ConfigError for a setting that cannot hold on the server whose connections are taken.
Check = Callable[[HubConfig], None]

# Seconds that clients have for their answer to the close frame, as with `Hub.stop`.
_STOP_TIMEOUT = 5.0


def check_kept(
    config: HubConfig, of_the_server: Mapping[str, str], server: str, otherwise: str = ""
) -> None:
    """Raises ConfigError for a setting that is another server's, and has no default value.

    Args:
        config: the settings.
        of_the_server: the settings that cannot hold there -> why, or what to set instead.
        server: whose port it is.
        otherwise: where the setting holds.
    """
    defaults = HubConfig()
    for name, instead in of_the_server.items():
        value, default = getattr(config, name), getattr(defaults, name)
        if value != default:
            raise ConfigError(
                f"HubConfig.{name} must stay {default!r} on {server}, not {value!r}: "
                f"{instead}{otherwise}"
            )


class Door:
    """The door of one hub.

    Args:
        engine, state, life, policy, refusals: of the hub.
        settings: those that hold now.
        own_log: the hub's lines on standard error, where nobody has set up logging.
        has_bus: whether the hub was given a bus.

    Attributes:
        own_log, has_bus: the same.
        serves_routes: an application serves the hub's routes on the other server's port.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        life: Life,
        policy: Policy,
        refusals: Refusals,
        settings: Callable[[], HubConfig],
        own_log: Callable[[], OwnLog],
        has_bus: Callable[[], bool],
    ) -> None:
        self.own_log: Callable[[], OwnLog] = own_log
        self.has_bus: Callable[[], bool] = has_bus
        self.serves_routes: bool = False
        self._engine = engine
        self._state = state
        self._life = life
        self._policy = policy
        self._refusals = refusals
        self._settings = settings

    async def attach(self, server: str, check: Check, tls: bool, path: str | None = None) -> None:
        """Has the hub run on the loop of the other server; see `Hub.attach`.

        Args:
            server: how lines and errors name it.
            check: of the settings.
            tls: whether that server speaks TLS.
            path: of the WebSocket endpoint; None where the other server chooses by the path.
        """
        self._life.check_not_running()
        self._take(check)
        await self._life.attach(server, tls, path)

    def open(self, server: str, check: Check, tls: bool = False, path: str | None = None) -> bool:
        """Has the hub take connections of the server whose loop runs.

        A hub that does not run is attached to that loop. One that was stopped stays stopped.

        Args:
            server, check, tls, path: as for `attach`.

        Returns:
            bool: whether the hub was attached by this call.

        Raises:
            ConfigError: a setting cannot hold there.
            HubStateError: the hub belongs to another loop.
        """
        self._life.forget_closed_loop()
        loop = self._engine.loop
        if loop is None:
            if self._state.ended:
                return False
            self._take(check)
            self._life.attach_at_once(server, tls, path)
            return True
        if loop is not asyncio.get_running_loop():
            raise HubStateError("the hub belongs to another loop than this server")
        self._take(check)
        return False

    async def end(self, grace: float | None) -> None:
        """Stops the hub with the other server, after the drain that the settings ask for.

        Args:
            grace: seconds that the other server waits at most; None where it has no bound.
        """
        most = float("inf") if grace is None else grace / 2
        try:
            if self._settings().drain_period:
                await self._life.drain(min(self._settings().drain_period, most))
            await self._life.stop(min(_STOP_TIMEOUT, most))
        except asyncio.CancelledError:
            # The other server waits no longer: what is left ends at once, so that the hub may
            # start again.
            self._life.abort_all()
            await self._life.stop(0.0)
            raise

    def missing_routes(self) -> list[str]:
        """The paths of the hub's routes, where the other server's port does not have them."""
        return [] if self.serves_routes else self._policy.site.routes.paths()

    def has_route(self, path: str) -> bool:
        """Whether a path of a request, not decoded, is that of a route."""
        return self._policy.site.routes.find(path) is not None

    async def serve(
        self, head: RequestHead, read_body: ReadBody, address: str
    ) -> WSUpgradeResponse | None:
        """Answers a request for a route.

        Args:
            head: the request.
            read_body: reads its body, once the request is let in.
            address: of the peer, or "".

        Returns:
            The answer; None where the peer has gone before its request was there.
        """
        if self._engine.loop is not asyncio.get_running_loop():
            return self._refuse_route(address)
        client = self.new_client()  # in whose context the route is called; it becomes no client
        decided = self._policy.accept(head, client, address, None)
        if not isinstance(decided, RouteCall):
            assert isinstance(decided, WSUpgradeResponse)  # the path is a route's
            return decided
        body = await read_body(decided.length)
        if body is None:
            return None
        set_body(decided.request, body)
        result = self._policy.call(decided, client)
        if isinstance(result, WSUpgradeResponse):
            return result
        return await self._policy.finish(result)

    def _refuse_route(self, address: str) -> WSUpgradeResponse:
        self._engine.count_rejected("full")
        log.warning(
            "a request from %s for a route of the hub is refused: the hub does not run on the loop "
            'of the application. Has its server ws=hub.uvicorn(path="/ws")?',
            address or "an unknown address",
            extra={"event": "route_refused", "reason": "full", "address": address},
        )
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})

    def _take(self, check: Check) -> None:
        if self._life.check_settings is None:
            check(self._settings())
            self._life.check_settings = check

    def connect(self, transport: asyncio.Transport, data: bytes) -> None:
        """Makes a connection of the other server the hub's: as if the hub had accepted it.

        Args:
            transport: the connection; the client becomes its protocol.
            data: all that was read of it and not answered yet. It begins with the request.
        """
        if not self._state.accepting:
            turn_away(transport, self._policy.refuse_ending(peer_address(transport)))
            return
        client = self.new_client()
        protocol = protocol_of(client)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        feed(client, data)

    def new_client(self) -> Client:
        """The client that a connection becomes if its request is accepted."""
        return Client(self._engine)

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
            remote_address: of the peer; "" where it is known only once the connection is made.
            transport: the connection, where it is known already.
        """
        decided = self._policy.accept(head, client, remote_address, transport)
        if isinstance(decided, RouteCall):
            return self._policy.call_at_once(decided, client)
        return decided

    def refuse(self, address: str, why: str, limit: str | None = None) -> None:
        """Counts and tells a request that cannot be read.

        Args:
            address: of the peer, or "".
            why: the end of the line.
            limit: the setting that it does not keep to, if there is one.
        """
        if limit is not None:
            self._engine.count_limit(limit)
        self._refusals.refuse("request", address, why)

    def cannot_run(self, server: str, error: Exception, address: str = "") -> WSUpgradeResponse:
        """The answer where the hub cannot run beside the other server, which is counted and told.

        Args:
            server: as for `attach`.
            error: why it cannot.
            address: of the peer, or "".
        """
        why = str(error)
        self._refusals.refuse(
            "full", address, "the hub cannot run on %s: %s", server, why, detail=why
        )
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def turn_away(transport: asyncio.Transport, answer: WSUpgradeResponse) -> None:
    """Answers the request of a connection that does not become the hub's, and closes it."""
    answer.headers.setdefault("Connection", "close")
    transport.write(bytes(answer.to_bytes()))
    transport.close()
