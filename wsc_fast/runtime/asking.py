"""Requests of clients: each is answered once, by what a callback of the application returns.

A request is a text of JSON whose first field is its type: `request`, `join`, `leave` or `ping`
(docs/wire.md). It is told from other messages by its beginning, so that these cost no decoding. It
takes its turn among its client's messages, and it is not one for `on_message_received`.

Rules:

    1. A request has one answer, with data or with an error. No text of an exception reaches a
       client, but for those that are made for it: RequestError, and refusals of the hub.
    2. A text that only begins like a request is a message.
    3. Nothing is kept between two requests.

A hub makes an Asking when the first callback for requests is set.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import msgspec

from wsc_fast._core.connection import Client
from wsc_fast._core.upward import Handlers
from wsc_fast.errors import (
    ClientNotFoundError,
    LimitError,
    PermissionDeniedError,
    RequestError,
    RoomNotFoundError,
    SendError,
    ValidationError,
)
from wsc_fast.runtime.inbox import decided, is_awaitable
from wsc_fast.runtime.lines import note_room, tell_refused_join

_begins = re.compile(r'\s*\{\s*"type"\s*:\s*"(?:request|join|leave|ping)"').match
# The errors of `join_room` and `leave_room`, as a client is told of them.
_REFUSALS: dict[type[Exception], tuple[str, str]] = {
    PermissionDeniedError: ("forbidden", "this room may not be joined"),
    RoomNotFoundError: ("not-found", "there is no such room"),
    LimitError: ("limit", "too many rooms"),
    ValidationError: ("invalid", "this is no id of a room"),
}


class _Request(msgspec.Struct, tag_field="type"):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class _Ask(_Request, tag="request"):
    data: Any = None


class _Join(_Request, tag="join"):
    room: str


class _Leave(_Request, tag="leave"):
    room: str


class _Ping(_Request, tag="ping"):
    pass


class _Error(msgspec.Struct):
    code: str
    message: str


class _Answer(msgspec.Struct, tag_field="type", tag="answer", omit_defaults=True):
    id: str
    data: Any = None
    error: _Error | None = None


_AnyRequest = _Ask | _Join | _Leave | _Ping
_decoder = msgspec.json.Decoder(_AnyRequest)


class Asking:
    """The requests of the clients of one hub.

    Args:
        join, leave: `join_room` and `leave_room` of the hub.

    Attributes:
        on_request, on_join_request: the callbacks of the application.
        answered: requests that got an answer with data.
        refused: requests that got one with an error.
        refused_joins: joins that `on_join_request` did not allow, which are among these.

    Thread-safety: the loop's thread.
    """

    def __init__(self, join: Callable[[str, str], None], leave: Callable[[str, str], None]) -> None:
        self._join = join
        self._leave = leave
        self.on_request: Callable[[Client, Any], object] | None = None
        self.on_join_request: Callable[[Client, str], object] | None = None
        self.answered: int = 0
        self.refused: int = 0
        self.refused_joins: int = 0

    def among(self, handlers: Handlers) -> Handlers:
        """The handlers of messages, which are not called with requests, and that of requests."""
        return (*(_of_messages(handler) for handler in handlers), self._take)

    def wrap(self, wrapper: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Has functions stand for the callbacks that are set; see `Callbacks.wrap`."""
        if self.on_request is not None:
            self.on_request = wrapper("request", self.on_request)
        if self.on_join_request is not None:
            self.on_join_request = wrapper("join_request", self.on_join_request)

    def deny(self, client: Client, message: str | bytes) -> None:
        """`authorize_publish` did not allow a message; if it is a request, its client is told."""
        request = _read(message)
        if request is not None:
            self._refuse(client, request, "forbidden", "this may not be sent")

    def _take(self, client: Client, message: str | bytes | list[str | bytes]) -> object:
        request = _read(message)
        if request is None:
            return None
        try:
            result = self._called(client, request)
            if is_awaitable(result):
                return self._awaited(client, request, result)
            self._answer(client, request, result)
        except Exception as error:
            self._fail(client, request, error)
        return None

    async def _awaited(self, client: Client, request: _AnyRequest, result: Any) -> None:
        try:
            self._answer(client, request, await result)
        except Exception as error:
            self._fail(client, request, error)

    def _called(self, client: Client, request: _AnyRequest) -> object:
        """Calls the callback for a request; what it has returned, which may be awaitable."""
        match request:
            case _Ask():
                if self.on_request is None:
                    raise RequestError("unknown", "this hub answers no requests")
                return self.on_request(client, request.data)
            case _Join():
                if self.on_join_request is None:
                    raise RequestError("forbidden", "no room can be asked for")
                return self.on_join_request(client, request.room)
            case _Leave():
                _move(self._leave, client, request.room)
        return None

    def _answer(self, client: Client, request: _AnyRequest, result: object) -> None:
        if isinstance(request, _Join):
            if not decided(result, "on_join_request"):
                self.refused_joins += 1
                tell_refused_join(client, request.room, "on_join_request")
                raise RequestError(*_REFUSALS[PermissionDeniedError])
            _move(self._join, client, request.room)
            result = None
        self._send(client, _Answer(request.id, result))
        self.answered += 1

    def _fail(self, client: Client, request: _AnyRequest, error: Exception) -> None:
        """Answers with an error; raises the exception again where the application has to know."""
        if isinstance(error, ClientNotFoundError) and not client.is_connected():
            return
        if isinstance(error, RequestError):
            self._refuse(client, request, error.code, str(error))
            return
        if isinstance(request, _Join):
            note_room(error, request.room)
        self._refuse(client, request, "failed", "the request failed")
        raise error

    def _refuse(self, client: Client, request: _AnyRequest, code: str, text: str) -> None:
        self.refused += 1
        self._send(client, _Answer(request.id, error=_Error(code, text)))

    def _send(self, client: Client, answer: _Answer) -> None:
        text = msgspec.json.encode(answer).decode()
        # Gone, or its outbox is full: the engine counts that, and the client's time runs out.
        with suppress(SendError):
            client.send(text)


def _move(call: Callable[[str, str], None], client: Client, room_id: str) -> None:
    """Has a client join or leave a room; raises RequestError for what the hub refuses."""
    try:
        call(client.id, room_id)
    except tuple(_REFUSALS) as error:
        raise RequestError(*_REFUSALS[type(error)]) from error


def may_be_request(message: str | bytes) -> bool:
    """Whether a message begins like a request. Such a one is in a list of messages alone."""
    return isinstance(message, str) and _begins(message) is not None


def _read(message: str | bytes | list[str | bytes]) -> _AnyRequest | None:
    if isinstance(message, list):
        if len(message) != 1:  # a function before may have emptied it
            return None
        message = message[0]
    if not may_be_request(message):
        return None
    try:
        return _decoder.decode(message)
    except (msgspec.DecodeError, RecursionError):
        return None


def _of_messages(
    handler: Callable[[Client, Any], Any],
) -> Callable[[Client, Any], Any]:
    """A handler of messages, or of lists of these, that is not called with requests."""

    def call(client: Client, message: str | bytes | list[str | bytes]) -> Awaitable[Any] | Any:
        return None if _read(message) is not None else handler(client, message)

    return call
