"""The requests of the console: from each to its view or action, and to the answer."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from importlib import resources
from typing import Any

import msgspec

from wsc_fast._core.clients import check_id
from wsc_fast.console import questions as ask
from wsc_fast.console.access import (
    HEADERS,
    Access,
    Admitted,
    MayOperate,
    ReadOnlyError,
    refusal,
)
from wsc_fast.console.actions import Actions, RefusedError
from wsc_fast.console.cluster import GoneHubError, Hubs, UnknownHubError
from wsc_fast.console.log_ring import LogRing
from wsc_fast.console.needs import Needs
from wsc_fast.console.samples import Samples
from wsc_fast.console.top_lists import TopFinder
from wsc_fast.console.views import Views
from wsc_fast.errors import HubStateError, ValidationError, shown
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.request import Request
from wsc_fast.upgrade.routes import METHODS

# The files of the page beside its HTML, with their types.
FILES = {
    "console.js": "text/javascript; charset=utf-8",
    "ask.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "elements.js": "text/javascript; charset=utf-8",
    "formats.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Characters that can be searched for.
MOST_TEXT = 256
# Requests that are under way at a time; each may look at all clients.
MOST_REQUESTS = 32
# The first that fits an error counts.
_ERRORS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (msgspec.MsgspecError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ValidationError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ReadOnlyError, HTTPStatus.FORBIDDEN),
    (RefusedError, HTTPStatus.CONFLICT),
    (GoneHubError, HTTPStatus.GONE),
    (UnknownHubError, HTTPStatus.BAD_GATEWAY),
    (HubStateError, HTTPStatus.SERVICE_UNAVAILABLE),
)
_KNOWN = tuple(kind for kind, _ in _ERRORS)


class Console:
    """The console of one hub, which serves it from now on.

    Args:
        needs: of the hub.
        path, authenticate, read_only: see `Hub.enable_console`.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs, path: str, authenticate: MayOperate, read_only: bool) -> None:
        _check_path(path)
        if type(read_only) is not bool:
            raise ValidationError(f"read_only must be True or False, not {shown(read_only)}")
        open_paths = [path, *(f"{path}/{name}" for name in FILES)]
        self._access = Access(
            authenticate, needs.authenticates, needs.count_rejected, open_paths, read_only
        )
        self._under_way = 0
        log, top, actions = LogRing(), TopFinder(needs.hub), Actions(needs.hub)
        samples = Samples(needs.read, lambda: self._hubs.bus_round_trip)
        self._hubs = Hubs(needs, Views(needs, samples, log, top), actions, read_only)
        samples.ticks.append(self._hubs.look)
        routes = self._routes(path)
        # All that may fail comes first, so that nothing is served of a call that has failed.
        for where, _, _ in routes:
            needs.check_route(where, METHODS)  # the guard is of all methods of a path
        needs.watch_loop()
        needs.node.answer_hubs(self._hubs.answer)
        for companion in (log, samples, _Forgets(self._hubs, top)):
            needs.accompany(companion)
        if needs.running():
            log.begin()
            samples.begin(asyncio.get_running_loop())
        for where, methods, route in routes:
            needs.add_route(where, methods, partial(self._let_in, route), self._access)

    def _routes(self, path: str) -> list[tuple[str, tuple[str, ...], Answerer]]:
        folder = resources.files("wsc_fast.console")
        page = folder.joinpath("page.html").read_text(encoding="utf-8")
        # Relative, so that a proxy may serve the console below a path of its own.
        page = page.replace("{base}", html.escape(path.rpartition("/")[2]))
        gets: dict[str, Answerer] = {path: _page(page)}
        for name, kind in FILES.items():
            gets[f"{path}/{name}"] = _file(folder.joinpath(name).read_bytes(), kind)
        for name, view in (
            ("overview", self._overview),
            ("hubs", self._summaries),
            ("client", self._client),
            ("user", self._user),
            ("room", self._room),
            ("find", self._find),
        ):
            gets[f"{path}/{name}"] = view
        routes = [(where, ("GET",), answerer) for where, answerer in gets.items()]
        return [*routes, (f"{path}/act", ("POST",), self._act)]

    # --- each request ---

    async def _let_in(self, answerer: Answerer, request: Request) -> Response:
        operator = await self._access.operator_of(request)
        if isinstance(operator, Response):
            return operator
        if self._under_way >= MOST_REQUESTS:
            text = "too many requests at a time"
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, text, {"Retry-After": "1"})
        self._under_way += 1
        try:
            return await answerer(request, operator)
        except _KNOWN as error:
            status = next(status for kind, status in _ERRORS if isinstance(error, kind))
            return _json(ask.Reply(error="refused", text=str(error)), status)
        finally:
            self._under_way -= 1

    async def _overview(self, request: Request, operator: Admitted) -> Response:
        query = request.query
        since, line = _number(query.get("since", "0")), _number(query.get("line", "0"))
        return _json(await self._hubs.overview(query.get("hub", ""), since, int(line)))

    async def _summaries(self, request: Request, operator: Admitted) -> Response:
        return _json(await self._hubs.summaries())

    async def _client(self, request: Request, operator: Admitted) -> Response:
        return _json(await self._hubs.client(_id(request, "client")))

    async def _user(self, request: Request, operator: Admitted) -> Response:
        return _json(await self._hubs.user(_id(request, "user")))

    async def _room(self, request: Request, operator: Admitted) -> Response:
        return _json(await self._hubs.room(_id(request, "room")))

    async def _find(self, request: Request, operator: Admitted) -> Response:
        text = request.query.get("text", "")
        if not 0 < len(text) <= MOST_TEXT:
            raise ValidationError(f"text must have 1 to {MOST_TEXT} characters, not {len(text)}")
        return _json(await self._hubs.find(text))

    async def _act(self, request: Request, operator: Admitted) -> Response:
        self._access.check_may_act(request, operator)
        action = ask.decode_action(request.body)
        who = ask.Operator(operator.name, request.remote_address, self._hubs.own)
        # An operator whose browser goes away does not take back what is on its way.
        return _json(await asyncio.shield(self._hubs.act(action, who)))


Answerer = Callable[[Request, Admitted], Awaitable[Response]]


class _Forgets:
    """Ends with the hub what the parts know of its run: a companion."""

    def __init__(self, hubs: Hubs, top: TopFinder) -> None:
        self._hubs = hubs
        self._top = top

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts."""

    def close(self) -> None:
        """The hub has stopped."""
        self._hubs.end()
        self.forget()

    def forget(self) -> None:
        """The hub's loop was closed, or this is the child of a fork."""
        self._hubs.forget()
        self._top.forget()

    def descriptors(self) -> list[int]:
        """Of its sockets: it has none."""
        return []


def _check_path(path: object) -> None:
    if type(path) is not str or not path.startswith("/") or path.endswith("/") or "{" in path:
        raise ValidationError(
            "the path of the console must begin with a slash, not end with one and have no "
            f"parameters, not {shown(path)}"
        )


def _page(text: str) -> Answerer:
    """The page, which shows no buttons to an operator who may not act."""
    acting, looking = (
        _file(text.replace("{acts}", acts).encode(), "text/html; charset=utf-8")
        for acts in ("true", "false")
    )

    async def answerer(request: Request, operator: Admitted) -> Response:
        return await (looking if operator.read_only else acting)(request, operator)

    return answerer


def _file(content: bytes, kind: str) -> Answerer:
    response = Response(body=content, content_type=kind, headers=HEADERS)

    async def answerer(request: Request, operator: Admitted) -> Response:
        return response

    return answerer


def _json(body: Any, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(status, ask.encode(body), content_type="application/json", headers=HEADERS)


def _id(request: Request, kind: str) -> str:
    return check_id(kind, request.query.get("id", ""))


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e15:
        raise ValidationError(f"expected a number from 0 to 1e15, not {shown(text)}")
    return number
