"""Connections that a picows server of the application's has made (go-wsc `HandleWebSocket`)."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from wsc_fast._core.connection import Client
from wsc_fast._core.handshake import RequestHead
from wsc_fast.server import refusal

if TYPE_CHECKING:
    from wsc_fast.hub import Hub


def handle_websocket(hub: Hub, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
    """A picows listener factory, for a picows server of one's own.

    Args:
        hub: must be attached to the loop that the server runs on, see below.
        request: what picows calls its listener factory with.

    Returns:
        what picows expects of its factory.

    Use as `ws_create_server(lambda request: handle_websocket(hub, request), host, port,
    enable_auto_pong=False)` in the thread of the running loop; the first request attaches the hub
    to that loop; once the hub is stopped, requests get 503. Any path is served, but for the hub's
    routes. `await hub.stop()` closes the
    clients; the server is its owner's to close. Source: go-wsc `HandleWebSocket`.
    """
    hub._forget_closed_loop()
    if hub.loop is None and not hub._ended:
        hub._attach(asyncio.get_running_loop())
        hub._path = None
        if hub._acks is not None:
            hub._acks.attach(asyncio.get_running_loop())
        hub._begin()
    client = Client(hub)
    try:
        head = _head_of(request)
    except ValueError:
        hub._count_rejected("request")
        return _answer(request, client, refusal(HTTPStatus.BAD_REQUEST))
    return _answer(request, client, hub._accept(head, client, "", None))


def _head_of(request: WSUpgradeRequest) -> RequestHead:
    """The head of a request that a picows server has parsed.

    Raises:
        ValueError: picows takes more for a request than we do.
    """
    lines = [b"GET %b HTTP/1.1" % request.path]
    for name, value in request.headers.items():
        lines.append(f"{name}: {value}".encode("ascii", "surrogateescape"))
    return RequestHead(b"\r\n".join([*lines, b""]))


def _answer(
    request: WSUpgradeRequest, client: Client, decided: WSUpgradeResponse | dict[str, str]
) -> WSUpgradeResponseWithListener:
    """What a picows server is told of what `accept` decided."""
    if isinstance(decided, WSUpgradeResponse):
        return WSUpgradeResponseWithListener(decided, None)
    # picows accepts nothing but exactly this (RFC 6455 section 4.2.1 has lists).
    request.headers["Connection"] = "upgrade"
    request.headers["Upgrade"] = "websocket"
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(decided), client)
