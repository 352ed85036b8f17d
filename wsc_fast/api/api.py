"""The requests of the HTTP API: from the body of each to the call of the hub, and to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec

from wsc_fast._core.envelopes import open_entry
from wsc_fast.api import bodies, openapi
from wsc_fast.api.guard import ApiGuard, error
from wsc_fast.api.keys import KeyRing, Keys
from wsc_fast.api.needs import Needs
from wsc_fast.bus.base import EVERYBODY, Entry, Page
from wsc_fast.errors import (
    AckError,
    BusError,
    ConfigError,
    HubStateError,
    LimitError,
    MessageExistsError,
    OfflineStoreError,
    RoomNotFoundError,
    SendError,
    UserOfflineError,
    ValidationError,
    shown,
)
from wsc_fast.messages import ACKMessage, HubMessage, payload_of
from wsc_fast.upgrade.answers import Response
from wsc_fast.upgrade.request import Request
from wsc_fast.upgrade.routes import METHODS, Route

T = TypeVar("T")
Answer = bodies.Published | bodies.Sent | bodies.Closed

# Batches at a time: each makes one request in a turn of the loop. Others wait for them.
MOST_BATCHES = 8
# A page of a history ends after so many bytes of messages, so that no turn of the loop is long.
MOST_PAGE = 1 << 20
# The bounds of `max_body`: JSON of so many bytes is decoded in one turn.
LEAST_BODY, MOST_BODY = 1_024, 4_194_304
_BINARY = 2


class _GoneError(Exception):
    """A history does not reach back; a LookupError that is no fault of the hub's own code."""


class _NoPresenceError(Exception):
    """A room has no presence, or the hub has none."""


class _NoAcksError(Exception):
    """Acknowledgements are off."""


# The first that fits an error counts.
_ERRORS: tuple[tuple[type[Exception], HTTPStatus, str], ...] = (
    (msgspec.ValidationError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"),
    (msgspec.DecodeError, HTTPStatus.BAD_REQUEST, "malformed"),
    (ValidationError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"),
    (UserOfflineError, HTTPStatus.NOT_FOUND, "user_offline"),
    (RoomNotFoundError, HTTPStatus.NOT_FOUND, "not_kept"),
    (SendError, HTTPStatus.SERVICE_UNAVAILABLE, "not_taken"),
    (LimitError, HTTPStatus.SERVICE_UNAVAILABLE, "not_taken"),
    (BusError, HTTPStatus.SERVICE_UNAVAILABLE, "bus_unavailable"),
    (HubStateError, HTTPStatus.SERVICE_UNAVAILABLE, "not_running"),
    (_GoneError, HTTPStatus.GONE, "gone"),
    (_NoPresenceError, HTTPStatus.NOT_FOUND, "no_presence"),
    (_NoAcksError, HTTPStatus.NOT_FOUND, "no_acknowledgements"),
    (AckError, HTTPStatus.CONFLICT, "not_acknowledged"),
    (MessageExistsError, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid"),
    (OfflineStoreError, HTTPStatus.SERVICE_UNAVAILABLE, "not_taken"),
)
_KNOWN = tuple(kind for kind, _, _ in _ERRORS)


class Api:
    """The HTTP API of one hub, which serves it from now on.

    Args:
        needs: of the hub.
        path, keys, rate, max_body: see `Hub.enable_api`.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs, path: str, keys: Keys, rate: float, max_body: int) -> None:
        _check(path, rate, max_body)
        guard = ApiGuard(needs.engine, KeyRing(keys), rate, max_body)
        self._needs = needs
        self._path = path
        self._document: bytes | None = None
        # Of the loop that the hub has run on last.
        self._batches: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        posts: dict[str, tuple[type[Any], Callable[[Any], Awaitable[Any]]]] = {
            "publish": (bodies.Publish, self._do),
            "broadcast": (bodies.Broadcast, self._do),
            "send": (bodies.Send, self._do),
            "disconnect": (bodies.Disconnect, self._do),
            "batch": (bodies.Batch, self._batch),
            "online": (bodies.OnlineQuestion, self._online),
        }
        gets = {
            "history": self._history,
            "presence": self._presence,
            "health": self._health,
            "openapi.json": self._describe,
        }
        routes: list[tuple[str, tuple[str, ...], Route]] = [
            (f"{path}/{name}", ("POST",), partial(_post, kind, act))
            for name, (kind, act) in posts.items()
        ]
        routes += [(f"{path}/{name}", ("GET",), route) for name, route in gets.items()]
        # All that may fail comes first, so that nothing is served of a call that has failed.
        for where, _, _ in routes:
            needs.check_route(where, METHODS)  # the guard is of all methods of a path
        needs.node.prepare()
        for where, methods, route in routes:
            needs.add_route(where, methods, route, guard)

    # --- what is done ---

    async def _do(self, request: bodies.Request) -> Answer:
        if isinstance(request, bodies.Message):
            return await self._publish(request)
        if isinstance(request, bodies.Send):
            return await (self._send_with_ack if request.require_ack else self._send)(request)
        assert isinstance(request, bodies.Disconnect)
        return bodies.Closed(await self._disconnect(request))

    async def _publish(self, request: bodies.Message) -> bodies.Published:
        room_id = request.room if isinstance(request, bodies.Publish) else EVERYBODY
        done = await self._needs.node.publish_anywhere(
            room_id, request.payload(), request.exclude, request.key, request.idempotency_key
        )
        return bodies.Published(done.position, done.duplicate)

    async def _send(self, request: bodies.Send) -> bodies.Sent:
        message = HubMessage(type=request.type, to=request.user, content=request.message)
        if not isinstance(request.id, msgspec.UnsetType):
            message.id = request.id
        return bodies.Sent(await self._needs.node.send_to_user(request.user, message), False)

    async def _send_with_ack(self, request: bodies.Send) -> bodies.Sent:
        if not self._needs.has_acks():
            raise _NoAcksError("acknowledgements are off: see Hub.enable_ack")
        message = ACKMessage(type=request.type, content=request.message)
        if not isinstance(request.id, msgspec.UnsetType):
            message.id = request.id
        pending = self._needs.send_with_ack(request.user, message)
        try:
            async with asyncio.timeout(request.wait) as limit:
                await pending.accepted()
        except TimeoutError:  # an AckTimeoutError is one, too
            if not limit.expired():
                raise
            return bodies.Sent(None, False)
        return bodies.Sent(None, True)

    async def _disconnect(self, request: bodies.Disconnect) -> int:
        code = int(request.code)
        if not isinstance(request.user, msgspec.UnsetType):
            return await self._needs.node.disconnect_user(request.user, code, request.reason)
        assert not isinstance(request.client, msgspec.UnsetType)
        client = self._needs.client_of(request.client)
        if client is None:
            return 0
        client.disconnect(code, request.reason)
        return 1

    async def _batch(self, batch: bodies.Batch) -> bodies.Outcomes:
        outcomes: list[asyncio.Task[bodies.Outcome]] = []
        async with self._batches_under_way(), asyncio.TaskGroup() as group:
            for each in batch.requests:
                outcomes.append(group.create_task(self._outcome(each)))
                # One a turn: each may be for very many clients. They begin in their order.
                await asyncio.sleep(0)
        return bodies.Outcomes([each.result() for each in outcomes])

    def _batches_under_way(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._batches is None or self._batches[0] is not loop:
            self._batches = loop, asyncio.Semaphore(MOST_BATCHES)
        return self._batches[1]

    async def _outcome(self, request: bodies.Request) -> bodies.Outcome:
        try:
            return bodies.Outcome(HTTPStatus.OK, await self._do(request))
        except _KNOWN as failure:
            status, kind = _kind_of(failure)
            return bodies.Outcome(status, error=bodies.Error(kind, str(failure)))

    # --- questions ---

    async def _history(self, request: Request) -> Response:
        return await _answered(self._read(request))

    async def _read(self, request: Request) -> bodies.History:
        query = msgspec.convert(request.query, bodies.HistoryQuery, strict=False)
        if not self._needs.node.keeps(query.room):
            raise RoomNotFoundError(f"room {query.room!a} is not kept: see Hub.keep")
        try:
            page = await self._needs.node.page(query.room, query.after, query.limit)
        except LookupError as failure:
            raise _GoneError(str(failure)) from None
        return bodies.History(
            [_history_message(each) for each in _bounded(page, query.after)], page.top
        )

    async def _presence(self, request: Request) -> Response:
        return await _answered(self._present(request))

    async def _present(self, request: Request) -> bodies.Presence:
        query = msgspec.convert(request.query, bodies.PresenceQuery, strict=False)
        node = self._needs.node
        if not node.is_watched(query.room):
            raise _NoPresenceError(f"room {query.room!a} has no presence: see Hub.presence")
        cursor, members = await node.members_page(query.room, query.cursor)
        count = await node.count(query.room)
        found = [bodies.Present(each.user_id, each.clients) for each in members]
        return bodies.Presence(found, cursor, count)

    async def _online(self, question: bodies.OnlineQuestion) -> bodies.Online:
        try:
            found = await self._needs.node.online(question.users)
        except ValidationError as failure:  # the ids are checked already
            raise _NoPresenceError(str(failure)) from None
        return bodies.Online(sorted(found))

    def _health(self, request: Request) -> Response:
        draining = self._needs.draining()
        health = bodies.Health(
            "draining" if draining else "ok",
            self._needs.node.bus_state(),  # type: ignore[arg-type]
            self._needs.count_clients(),
        )
        status = HTTPStatus.SERVICE_UNAVAILABLE if draining else HTTPStatus.OK
        return _json(status, health)

    async def _describe(self, request: Request) -> Response:
        if self._document is None:
            document = await asyncio.to_thread(openapi.document, self._path)
            self._document = msgspec.json.encode(document)
        return Response(HTTPStatus.OK, self._document, content_type="application/json")


def _check(path: str, rate: float, max_body: int) -> None:
    if type(path) is not str or not path.startswith("/") or path.endswith("/"):
        raise ValidationError(
            f"the path of the API must begin with a slash and not end with one, not {shown(path)}"
        )
    if type(rate) not in (int, float) or not 0 <= rate <= 1e9:
        raise ConfigError(f"rate must be 0 to 1,000,000,000 requests a second, not {shown(rate)}")
    if type(max_body) is not int or not LEAST_BODY <= max_body <= MOST_BODY:
        raise ConfigError(
            f"max_body must be {LEAST_BODY} to {MOST_BODY} bytes, not {shown(max_body)}"
        )


async def _post(kind: type[T], act: Callable[[T], Awaitable[Any]], request: Request) -> Response:
    async def done() -> Any:
        return await act(bodies.decoded(kind, request.body))

    return await _answered(done())


async def _answered(result: Awaitable[Any]) -> Response:
    try:
        return _json(HTTPStatus.OK, await result)
    except _KNOWN as failure:
        status, kind = _kind_of(failure)
        later = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return error(status, kind, str(failure), later)


def _kind_of(failure: Exception) -> tuple[HTTPStatus, str]:
    return next((status, name) for kind, status, name in _ERRORS if isinstance(failure, kind))


def _json(status: HTTPStatus, body: object) -> Response:
    return Response(status, msgspec.json.encode(body), content_type="application/json")


def _bounded(page: Page, after: str | None) -> list[Entry]:
    """The entries of a page, as many as fit: the first after a position, or else the newest."""
    entries = list(page.entries) if after is not None else list(reversed(page.entries))
    size = fit = 0
    for entry in entries:
        size += len(entry.entry)
        if fit and size > MOST_PAGE:
            break
        fit += 1
    return entries[:fit] if after is not None else entries[:fit][::-1]


def _history_message(entry: Entry) -> bodies.HistoryMessage:
    frame, _, _ = open_entry(entry.entry)
    payload = payload_of(frame)
    if frame[0] & 15 == _BINARY:
        return bodies.HistoryMessage(entry.position, data=payload)
    return bodies.HistoryMessage(entry.position, message=payload.decode())
