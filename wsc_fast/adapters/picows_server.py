"""Connections of a picows server of one's own: `handle_websocket` (go-wsc `HandleWebSocket`).

picows accepts, reads the request, and reads up to the end of the first frame. So settings about
what comes before the upgrade are that server's, and `check_attachable` refuses them.
"""

from __future__ import annotations

from http import HTTPStatus

from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from wsc_fast._core.connection import Client
from wsc_fast._core.handshake import RequestHead, TooManyHeaders
from wsc_fast.adapters.picows import SERVER, check_attachable
from wsc_fast.errors import ConfigError, HubStateError
from wsc_fast.hub import Hub, door_of
from wsc_fast.upgrade.answers import refusal


def handle_websocket(hub: Hub, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
    """A picows listener factory, for a picows server of one's own.

    Use as `ws_create_server(partial(handle_websocket, hub), host, port, enable_auto_pong=False)`,
    after `await hub.attach()`. Without that the first request attaches the hub, and its offline
    store opens meanwhile. Any path is served, but for the hub's routes. Once the hub is stopped,
    requests get 503. `await hub.stop()` closes the clients; the server is its owner's to close.
    An error that `attach` would raise is logged, and the request gets 500.

    Args:
        hub: the hub that the clients belong to.
        request: the argument with which picows calls its listener factory.

    Returns:
        what picows expects of its factory.

    Thread-safety: the thread of the server's loop. Source: go-wsc `HandleWebSocket`.
    """
    door = door_of(hub)
    client = door.new_client()
    try:
        door.open(SERVER, check_attachable)
    except (ConfigError, HubStateError) as error:
        return _answer(request, client, door.cannot_run(SERVER, error))
    try:
        head = _head_of(request, hub.config.max_headers)
    except ValueError as error:
        door.refuse("", str(error), "max_headers" if isinstance(error, TooManyHeaders) else None)
        return _answer(request, client, refusal(HTTPStatus.BAD_REQUEST))
    return _answer(request, client, door.accept(head, client, "", None))


def _head_of(request: WSUpgradeRequest, max_headers: int) -> RequestHead:
    """The head of a request that a picows server has parsed.

    Raises:
        ValueError: picows takes more for a request than we do.
    """
    lines = [b"GET %b HTTP/1.1" % request.path]
    for name, value in request.headers.items():
        lines.append(f"{name}: {value}".encode("ascii", "surrogateescape"))
    return RequestHead(b"\r\n".join([*lines, b""]), max_headers)


def _answer(
    request: WSUpgradeRequest, client: Client, decided: WSUpgradeResponse | dict[str, str]
) -> WSUpgradeResponseWithListener:
    """The form in which a picows server gets the decision of `accept`."""
    if isinstance(decided, WSUpgradeResponse):
        return WSUpgradeResponseWithListener(decided, None)
    # picows accepts nothing but exactly this (RFC 6455 section 4.2.1 has lists).
    request.headers["Connection"] = "upgrade"
    request.headers["Upgrade"] = "websocket"
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(decided), client)
