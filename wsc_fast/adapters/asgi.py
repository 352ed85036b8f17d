"""The hub's routes in an ASGI application: `Hub.asgi_routes`.

The application's server accepts connections and reads requests. Requests for the hub's routes
(`Hub.route`, the HTTP API, the metrics) are answered as on the hub's own port; all others are the
application's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from picows import WSUpgradeResponse

from wsc_fast._core.handshake import RequestHead
from wsc_fast.adapters.door import Door
from wsc_fast.errors import HubStateError
from wsc_fast.upgrade.answers import refusal

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# Headers of an answer that the application's server writes itself.
_OF_THE_SERVER = ("connection", "date")


class AsgiRoutes:
    """An ASGI application: the hub's routes, and another application behind them.

    Args:
        door: of the hub.
        app: gets everything that is for no route of the hub; None: that is answered with 404.

    Thread-safety: the loop's thread.
    """

    def __init__(self, door: Door, app: Application | None) -> None:
        self._door = door
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http":
            target = _target_of(scope)
            if self._door.has_route(target.partition("?")[0]):
                answer = await self._answer(scope, target, receive)
                if answer is not None:
                    await _send(answer, send)
                return
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _send(refusal(HTTPStatus.NOT_FOUND), send)
        else:
            raise HubStateError(
                "Hub.asgi_routes serves the hub's routes, and no WebSocket: that is what "
                'ws=hub.uvicorn(path="/ws") is for'
            )

    async def _answer(
        self, scope: Scope, target: str, receive: Receive
    ) -> WSUpgradeResponse | None:
        """The answer of a route; None where the peer has gone before its request was there."""
        address = (scope.get("client") or ("",))[0]
        try:
            head = _head_of(scope, target)
        except ValueError as error:
            self._door.refuse(address, str(error))
            return refusal(HTTPStatus.BAD_REQUEST)
        return await self._door.serve(head, partial(_body_of, receive), address)


def _target_of(scope: Scope) -> str:
    """The path and query of a request, as the client sent them: without a root path."""
    raw: bytes | None = scope.get("raw_path")
    path = quote(scope["path"]) if raw is None else raw.decode("latin-1").partition("?")[0]
    # Where Starlette has mounted an application, its root path has the place of that one, too.
    root = quote(scope.get("app_root_path", scope.get("root_path", "")))
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


def _head_of(scope: Scope, target: str) -> RequestHead:
    # A request of HTTP/2 is decided on as one of HTTP/1.1, which it says the same as.
    version = "1.0" if scope["http_version"] == "1.0" else "1.1"
    lines = [f"{scope['method']} {target} HTTP/{version}".encode("latin-1")]
    lines += [b"%b: %b" % (name, value) for name, value in scope["headers"]]
    return RequestHead(b"\r\n".join(lines) + b"\r\n")


async def _body_of(receive: Receive, length: int) -> bytes | None:
    """The body of a request; None where the peer has gone before it was there."""
    body = bytearray()
    more = length > 0
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        body += event.get("body", b"")
        more = event.get("more_body", False) and len(body) < length
    return bytes(body[:length])


async def _send(answer: WSUpgradeResponse, send: Send) -> None:
    headers = {
        name.lower(): value
        for name, value in answer.headers.items()
        if name.lower() not in _OF_THE_SERVER
    }
    body = answer.body or b""
    if answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        headers["content-length"] = str(len(body))
    await send(
        {
            "type": "http.response.start",
            "status": int(answer.status),
            "headers": [
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
