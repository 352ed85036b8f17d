"""A hub on one path of uvicorn's port: `Hub.uvicorn`.

uvicorn accepts connections, speaks TLS, and reads requests. For each WebSocket upgrade it makes an
object of what it was given as `ws`, and hands it the transport and the head of the request.

Rules
1.  The hub answers the request by the code of its own port (Door.connect).
2.  A connection is handed over within the call that brings its request. Neither uvicorn nor this
    file is on its way afterwards, so that it costs what one of the hub's own port costs.
3.  All other paths go to the protocol that uvicorn would have chosen, which gets the same calls.
4.  The hub starts before the application, and stops when uvicorn ends its connections.
5.  The hub's lines are shown meanwhile: uvicorn sets up logging for its own loggers alone.

uvicorn tells nobody that a server starts, so `Server.startup` is wrapped (`_hear_of_starts`). A
server with a start of its own has the hub start at its first upgrade.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from contextlib import ExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

from wsc_fast._core.connection import peer_address
from wsc_fast.adapters.door import Door, check_kept, turn_away
from wsc_fast.config import HubConfig
from wsc_fast.errors import ConfigError, HubStateError
from wsc_fast.log import log
from wsc_fast.upgrade.answers import refusal

if TYPE_CHECKING:
    from uvicorn import Config, Server
    from uvicorn.server import ServerState

# As lines and errors name it.
_SERVER = "uvicorn's port"

# Settings about what comes before the upgrade, and who bounds that here.
_OF_UVICORN = {
    "backlog": "it is an option of uvicorn's, backlog",
    "handshake_timeout": "uvicorn does not bound how long a request takes",
    "max_handshakes": "uvicorn has limit_concurrency",
    "receive_buffer_size": "set SO_RCVBUF on the socket that uvicorn gets as fd",
    "write_buffer_size": "set SO_SNDBUF on the socket that uvicorn gets as fd",
}


def _check(config: HubConfig) -> None:
    """Raises ConfigError for a setting that cannot hold on uvicorn's port."""
    check_kept(config, _OF_UVICORN, _SERVER)


class Endpoint:
    """The WebSocket endpoint of one hub, as uvicorn takes it for `ws`.

    Args:
        door: of the hub.
        path: of the endpoint.

    Attributes:
        path: the same, in bytes.

    Raises:
        ImportError: uvicorn is not there.

    Thread-safety: the thread of uvicorn's loop, but for its making.
    """

    def __init__(self, door: Door, path: str) -> None:
        _hear_of_starts()
        self.path: bytes = path.encode("ascii")
        self._door = door
        self._path = path

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Upgrade:
        """One upgrade; the arguments are those with which uvicorn makes a protocol."""
        return Upgrade(self, config, server_state, app_state)

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "with reload or workers uvicorn imports the application in other processes, and a hub "
            'cannot go there: give it the name of the endpoint, such as ws="app:ws" where the '
            'module app has ws = hub.uvicorn(path="/ws")'
        )

    async def begin(self, config: Config, state: ServerState) -> _Stop:
        """uvicorn's server starts: so does the hub.

        Returns:
            its stop, which uvicorn calls once its server has started.

        Raises:
            ConfigError, HubStateError, OfflineStoreError: as `Hub.attach`.
        """
        with ExitStack() as lines:
            lines.enter_context(self._door.own_log())
            self._warn(config)
            await self._door.attach(_SERVER, _check, config.ssl is not None, self._path)
            return _Stop(self._door, config, state, lines.pop_all())

    def _warn(self, config: Config) -> None:
        if config.workers > 1 and not self._door.has_bus():
            log.warning(
                "uvicorn has %d workers, each with a hub of its own: what is sent in one does not "
                'reach the clients of the others. Give the hub a bus, such as Hub(bus="local")',
                config.workers,
            )

    def warn_of_routes(self) -> None:
        """The application has started: Starlette has made its middleware by now."""
        if routes := self._door.missing_routes():
            log.warning(
                "the hub's routes are not served on uvicorn's port (%s): write "
                "app.add_middleware(hub.asgi_routes), or app = hub.asgi_routes(app)",
                ", ".join(routes),
            )

    def take(
        self, transport: asyncio.Transport, data: bytes, config: Config, state: ServerState
    ) -> None:
        """A connection whose request is for the hub.

        Args:
            transport: the connection.
            data: all that was read of it, from the request on.
            config, state: of uvicorn's server.
        """
        try:
            with ExitStack() as lines:
                lines.enter_context(self._door.own_log())
                if self._door.open(_SERVER, _check, config.ssl is not None, self._path):
                    _Stop(self._door, config, state, lines.pop_all())
        except (ConfigError, HubStateError) as error:
            turn_away(transport, self._door.cannot_run(_SERVER, error, peer_address(transport)))
            return
        self._door.connect(transport, data)

    def refuse(self, transport: asyncio.Transport) -> None:
        """Ends a connection on which an earlier request is not answered yet."""
        self._door.refuse(
            peer_address(transport), "the request before it on the connection is not answered yet"
        )
        transport.abort()  # what is still to be written for that request would be no frame


class _Stop:
    """Stands among uvicorn's connections, and is told to end with them.

    Args:
        door: of the hub.
        config, state: of uvicorn's server.
        lines: has the hub's lines shown, and is closed once the hub has stopped.
    """

    def __init__(self, door: Door, config: Config, state: ServerState, lines: ExitStack) -> None:
        self._door = door
        self._grace = config.timeout_graceful_shutdown
        self._state = state
        self._lines = lines
        connections: set[Any] = state.connections
        connections.add(self)
        self._connections = connections

    def shutdown(self) -> None:
        """uvicorn's server ends; it waits for its connections and tasks."""
        task = asyncio.get_running_loop().create_task(self.end())
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def end(self) -> None:
        """Stops the hub, also where uvicorn's server has not started."""
        self._connections.discard(self)
        with self._lines:
            await self._door.end(self._grace)


class Upgrade:
    """The request of one WebSocket upgrade, as uvicorn hands it over.

    Args:
        endpoint: of the hub.
        config, state, app_state: of uvicorn's server.
    """

    def __init__(
        self, endpoint: Endpoint, config: Config, state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self._endpoint = endpoint
        self._config = config
        self._state = state
        self._app_state = app_state
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        """uvicorn hands over the connection."""
        self._transport = transport

    def data_received(self, head: bytes) -> None:
        """uvicorn hands over the head of the request, with which its own part ends."""
        transport = self._transport
        http: Any = transport.get_protocol()
        http.transport = _HandedOver()  # whose protocol uvicorn makes this object next
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        if path != self._endpoint.path:
            self._pass_on(transport, head)
        elif _is_answering(http):
            self._endpoint.refuse(transport)
        else:
            data = head + _read_behind(http)
            self._endpoint.take(transport, data, self._config, self._state)

    def _pass_on(self, transport: asyncio.Transport, head: bytes) -> None:
        """Gives a request for another path to uvicorn's own protocol."""
        from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

        if AutoWebSocketsProtocol is None:
            log.warning("an upgrade for the application is refused: websockets is not installed")
            turn_away(transport, refusal(HTTPStatus.NOT_IMPLEMENTED))
            return
        protocol: Any = AutoWebSocketsProtocol(
            config=self._config, server_state=self._state, app_state=self._app_state
        )
        protocol.connection_made(transport)
        protocol.data_received(head)
        transport.set_protocol(protocol)


class _HandedOver:
    """The transport of a protocol of uvicorn's that has handed over its own."""

    def set_protocol(self, protocol: object) -> None:
        """The transport has its protocol already."""

    def is_closing(self) -> bool:
        """No timer of the protocol is to close the connection."""
        return True

    def close(self) -> None:
        """It is not the protocol's to close."""


def _is_answering(http: Any) -> bool:
    """Whether an earlier request of the connection is not answered yet."""
    cycle = getattr(http, "cycle", None)
    return cycle is not None and not cycle.response_complete


def _read_behind(http: Any) -> bytes:
    """The bytes that uvicorn has read behind the head of an upgrade, and does not hand over.

    Args:
        http: uvicorn's protocol, which is about to hand over its connection.
    """
    error = sys.exception()
    if error is not None and type(error).__name__ == "HttpParserUpgrade":
        # httptools tells where the head ends, in bytes that only a frame of the caller knows.
        assert error.__traceback__ is not None
        data: bytes = error.__traceback__.tb_frame.f_locals["data"]
        return data[error.args[0] :]
    conn: Any = getattr(http, "conn", None)
    return bytes(conn.trailing_data[0]) if hasattr(conn, "trailing_data") else b""


@functools.cache
def _hear_of_starts() -> None:
    """Has endpoints hear of each start of a server of uvicorn's.

    Raises:
        ImportError: uvicorn is not there.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(
            "Hub.uvicorn needs uvicorn: pip install 'wsc_fast[uvicorn]'", name="uvicorn"
        ) from error
    startup = uvicorn.Server.startup

    @functools.wraps(startup)
    async def start_with_hub(server: Server, *args: Any, **options: Any) -> None:
        endpoint = server.config.ws_protocol_class
        if endpoint is None and isinstance(server.config.ws, Endpoint):
            raise ConfigError(
                'uvicorn serves no WebSockets with interface="wsgi": wrap the application in '
                "a2wsgi.WSGIMiddleware, and serve that"
            )
        if not isinstance(endpoint, Endpoint):
            await startup(server, *args, **options)
            return
        stop = await endpoint.begin(server.config, server.server_state)
        try:
            await startup(server, *args, **options)
        finally:
            if server.started:
                endpoint.warn_of_routes()
            else:
                await stop.end()

    uvicorn.Server.startup = start_with_hub  # type: ignore[assignment, method-assign]
