"""A hub on one path of an aiohttp application: `Hub.aiohttp`.

aiohttp accepts connections, speaks TLS, and reads requests. A handler of that path gives the
connection to the hub, which answers the request by the code of its own port (Door.connect). Neither
aiohttp nor this file is on the way of a message afterwards.

aiohttp has no call for that. `_hand_over` has its protocol forget the connection, as if that had
been lost: then it leaves the set that a shutdown waits for, and the answer of the handler goes
nowhere.
"""

from __future__ import annotations

from contextlib import ExitStack
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from wsc_fast.adapters.door import Door, check_kept
from wsc_fast.config import HubConfig
from wsc_fast.log import log

if TYPE_CHECKING:
    from aiohttp import web

# aiohttp has no public names for these: whether a request asks for an upgrade, and the bytes that a
# protocol has read behind it.
_is_upgrade = attrgetter("_message.upgrade")
_read_behind = attrgetter("_message_tail")

# As lines and errors name it.
_SERVER = "aiohttp's port"

# Settings about what comes before the upgrade, and who bounds that here.
_OF_AIOHTTP = {
    "backlog": "it is an argument of run_app",
    "handshake_timeout": "aiohttp does not bound how long a request takes",
    "max_handshakes": "aiohttp has no such bound",
    "receive_buffer_size": "set SO_RCVBUF on the socket that run_app gets as sock",
    "write_buffer_size": "set SO_SNDBUF on the socket that run_app gets as sock",
}


def _check(config: HubConfig) -> None:
    """Raises ConfigError for a setting that cannot hold on aiohttp's port."""
    check_kept(config, _OF_AIOHTTP, _SERVER)


class Endpoint:
    """The hub on a path of one application, from its startup to its shutdown.

    Args:
        door: of the hub.
        app: the application, which does not run yet.
        path: of the endpoint.
        tls: whether its server speaks TLS.

    Thread-safety: the thread of the application's loop, but for its making.
    """

    def __init__(self, door: Door, app: web.Application, path: str, tls: bool) -> None:
        self._door = door
        self._tls = tls
        self._lines = ExitStack()
        app.router.add_get(path, self.take, allow_head=False)
        app.on_startup.append(self._begin)
        app.on_shutdown.append(self._end)

    async def _begin(self, app: web.Application) -> None:
        with ExitStack() as lines:
            lines.enter_context(self._door.own_log())
            if routes := self._door.missing_routes():
                log.warning(
                    "the hub's routes are not served on aiohttp's port: %s", ", ".join(routes)
                )
            await self._door.attach(_SERVER, _check, self._tls)
            self._lines = lines.pop_all()

    async def _end(self, app: web.Application) -> None:
        with self._lines:
            await self._door.end(None)

    async def take(self, request: web.Request) -> web.Response:
        """Gives the connection of an upgrade to the hub."""
        from aiohttp import web

        if not _is_upgrade(request):
            raise web.HTTPUpgradeRequired(
                text="this is a WebSocket endpoint\n", headers={"Upgrade": "websocket"}
            )
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()  # aiohttp had it pause where it has read much
            self._door.connect(transport, _head_of(request) + _hand_over(request.protocol))
        return web.Response(status=101)  # goes nowhere


def _head_of(request: web.Request) -> bytes:
    version = f"{request.version.major}.{request.version.minor}"
    lines = [f"{request.method} {request.raw_path} HTTP/{version}".encode()]
    lines += [b"%b: %b" % header for header in request.raw_headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _hand_over(protocol: Any) -> bytes:
    """Has aiohttp's protocol forget its connection; returns what it has read behind the head."""
    behind: bytes = _read_behind(protocol)
    protocol.transport = None  # which connection_lost would close
    protocol.connection_lost(None)
    return behind
