"""Calling the application: its event callbacks and its hooks, and what they raise.

`Callbacks` has what the application gave to `on_...` and to the hooks. It implements
`_core.upward.Application`, so the compiled code calls it for whatever it does not call itself.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from wsc_fast._core.connection import Client, call_in_context, inbox_of
from wsc_fast._core.engine import Engine
from wsc_fast._core.upward import Handlers
from wsc_fast.errors import (
    ConnectionLostError,
    PermissionDeniedError,
    ProtocolError,
    ValidationError,
)
from wsc_fast.log import about, log
from wsc_fast.runtime.inbox import (
    Inbox,
    Inboxes,
    Needs,
    decided,
    dispatch,
    is_awaitable,
    wait_for,
)
from wsc_fast.runtime.lines import (
    note_room,
    tell_callback_error,
    tell_heartbeat,
    tell_protocol_error,
    tell_raised,
    tell_refused_join,
    tell_slow_consumer,
)
from wsc_fast.runtime.signatures import (
    OfClient,
    OfError,
    OfJoinRequest,
    OfMessage,
    OfMessages,
    OfRequest,
    OfRoom,
    checked_callback,
)
from wsc_fast.runtime.tasks import Tasks

if TYPE_CHECKING:
    from wsc_fast.runtime.asking import Asking

# `wrapper(event, fn)` returns the function that is called in place of the callback `fn`.
Wrapper = Callable[[str, Callable[..., Any]], Callable[..., Any]]


class ClientWatcher(Protocol):
    """Hears of clients before the application does. No method raises."""

    def connected(self, client: Client) -> None:
        """A client is open."""

    def disconnected(self, client: Client) -> None:
        """A client that was open has gone; it is a member of no room any more."""


class RoomWatcher(Protocol):
    """Hears of members before the application does. No method raises."""

    def joined(self, client: Client, room_id: str) -> None:
        """A client has become a member of a room."""

    def left(self, client: Client, room_id: str) -> None:
        """A membership has ended."""


# Async on_error callbacks at once that concern no client: anybody can have `authenticate` raise.
_MOST_ERROR_TASKS = 64
# As an error of one of them names them.
_HOOKS = "authorize_join and authorize_publish"


class Callbacks:
    """The callbacks of one hub.

    Args:
        engine: of the hub; it calls message handlers and hooks straight from C.
        tasks: of the hub.
        needs: what the inboxes need of the hub.
        join, leave: `join_room` and `leave_room` of the hub, for requests of clients.
        authorize_join, authorize_publish: the application's hooks; see Hub.
        denied: hears of a message that its client may not publish.

    Attributes:
        inboxes: events that wait for async callbacks.
        unauthorized: messages that `authorize_publish` did not allow.
        refused_joins: joins that `authorize_join` did not allow.
        unreported_errors: errors that no on_error callback was awaited for.

    Thread-safety: the loop's thread, but for `add_...`.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Tasks,
        needs: Needs,
        *,
        join: Callable[[str, str], None],
        leave: Callable[[str, str], None],
        authorize_join: Callable[[Client, str], bool] | None,
        authorize_publish: Callable[[Client, str | bytes], bool] | None,
        denied: Callable[[Client, str | bytes, PermissionDeniedError], None],
    ) -> None:
        for hook, subject in ((authorize_join, "room_id"), (authorize_publish, "message")):
            if hook is not None:
                checked_callback(hook, "client", subject)
            if inspect.iscoroutinefunction(hook):
                raise ValidationError(
                    f"{hook.__name__} must be a plain function, not async: it decides at once"
                )
        self._engine = engine
        self._tasks = tasks
        self._settings = needs.settings
        self._authorize_join = authorize_join
        self._authorize_publish = authorize_publish
        self._denied = denied
        self._move = join, leave
        self._asking: Asking | None = None  # once there are callbacks for requests
        may_publish = self._may_publish if authorize_publish is not None else None
        engine.set_filters(
            self._may_join if authorize_join is not None else None,
            may_publish,
        )
        self.inboxes: Inboxes = Inboxes(engine, tasks, needs, may_publish, self.callback_failed)
        self.unauthorized: int = 0
        self.refused_joins: int = 0
        self.unreported_errors: int = 0
        # Tasks of async on_error callbacks that concern no client.
        self._error_tasks: set[asyncio.Task[Any]] = set()
        # Held while a callback is added, which is no single step for Python.
        self._adding = threading.Lock()
        self._on_connected: Handlers = ()
        self._on_disconnected: Handlers = ()
        self._on_message: Handlers = ()
        self._gathers = False  # these are called with the list of messages of each read
        self._on_error: Handlers = ()
        self._wrap: Wrapper = lambda event, fn: fn
        self._on_room_joined: Handlers = ()
        self._on_room_left: Handlers = ()
        self._client_watcher: ClientWatcher | None = None
        self._room_watcher: RoomWatcher | None = None

    # --- what the application gives ---

    def add_connected(self, fn: OfClient) -> OfClient:
        """`fn(client)` for each new client."""
        with self._adding:
            self._on_connected += (self._wrap("connected", checked_callback(fn, "client")),)
        return fn

    def add_disconnected(self, fn: OfClient) -> OfClient:
        """`fn(client)` for each client that has gone."""
        with self._adding:
            self._on_disconnected += (self._wrap("disconnected", checked_callback(fn, "client")),)
        return fn

    def add_message(self, fn: OfMessage) -> OfMessage:
        """`fn(client, message)` for each message."""
        self._add_message(fn, False)
        return fn

    def add_messages(self, fn: OfMessages) -> OfMessages:
        """`fn(client, messages)` for the list of the messages of each read."""
        self._add_message(fn, True)
        return fn

    def _add_message(self, fn: Callable[..., object], gathers: bool) -> None:
        with self._adding:
            checked_callback(fn, "client", "messages" if gathers else "message")
            if self._on_message and self._gathers != gathers:
                raise ValidationError(
                    "a hub has functions for on_message_received or for on_messages_received, "
                    "not for both"
                )
            self._gathers = gathers
            self._on_message += (self._wrap(self._message_event(), fn),)
            self._hand_down()

    def _message_event(self) -> str:
        return "messages" if self._gathers else "message"

    def set_request(self, fn: OfRequest) -> OfRequest:
        """`fn(client, data)` for each request, whose answer is what it returns."""
        with self._adding:
            checked_callback(fn, "client", "data")
            asking = self._asked()
            if asking.on_request is not None:
                raise ValidationError("on_request has a function already, and a request one answer")
            asking.on_request = self._wrap("request", fn)
            self._hand_down()
        return fn

    def set_join_request(self, fn: OfJoinRequest) -> OfJoinRequest:
        """`fn(client, room_id)` for each request to join a room, whether it may."""
        with self._adding:
            checked_callback(fn, "client", "room_id")
            asking = self._asked()
            if asking.on_join_request is not None:
                raise ValidationError("on_join_request has a function already, which decides")
            asking.on_join_request = self._wrap("join_request", fn)
            self._hand_down()
        return fn

    def _asked(self) -> Asking:
        if self._asking is None:
            from wsc_fast.runtime.asking import Asking

            self._asking = Asking(*self._move)
        return self._asking

    def _hand_down(self) -> None:
        """Gives the compiled code the handlers of messages, and of requests among them."""
        handlers, alone = self._on_message, None
        if self._asking is not None:
            from wsc_fast.runtime.asking import may_be_request

            handlers, alone = self._asking.among(handlers), may_be_request
        self._engine.set_message_handlers(handlers, self._gathers, alone)

    def add_error(self, fn: OfError) -> OfError:
        """`fn(client, error)` for what goes wrong."""
        with self._adding:
            self._on_error += (checked_callback(fn, "client", "error"),)
        return fn

    def wrap(self, wrapper: Wrapper) -> None:
        """Has functions stand for the callbacks of clients, those set already and those to come."""
        with self._adding:
            self._wrap = wrapper
            self._on_connected = tuple(wrapper("connected", fn) for fn in self._on_connected)
            event = self._message_event()
            self._on_message = tuple(wrapper(event, fn) for fn in self._on_message)
            self._on_disconnected = tuple(
                wrapper("disconnected", fn) for fn in self._on_disconnected
            )
            self._on_room_joined = tuple(wrapper("room_joined", fn) for fn in self._on_room_joined)
            self._on_room_left = tuple(wrapper("room_left", fn) for fn in self._on_room_left)
            if self._asking is not None:
                self._asking.wrap(wrapper)
            self._hand_down()

    def add_room_joined(self, fn: OfRoom) -> OfRoom:
        """`fn(client, room_id)` for each client that becomes a member of a room."""
        with self._adding:
            checked_callback(fn, "client", "room_id")
            self._on_room_joined += (self._wrap("room_joined", fn),)
            self._watch_rooms()
        return fn

    def add_room_left(self, fn: OfRoom) -> OfRoom:
        """`fn(client, room_id)` for each membership that ends."""
        with self._adding:
            checked_callback(fn, "client", "room_id")
            self._on_room_left += (self._wrap("room_left", fn),)
            self._watch_rooms()
        return fn

    def watch_clients(self, watcher: ClientWatcher) -> None:
        """Has somebody hear of clients from now on; for a hub that does not run."""
        self._client_watcher = watcher

    def watch_rooms(self, watcher: RoomWatcher) -> None:
        """Has somebody hear of members from now on; for a hub that does not run."""
        with self._adding:
            self._room_watcher = watcher
            self._watch_rooms()

    def _watch_rooms(self) -> None:
        watched = self._room_watcher is not None
        self._engine.set_room_watchers(
            self._room_joined if self._on_room_joined or watched else None,
            self._room_left if self._on_room_left or watched else None,
        )

    # --- events ---

    def connected(self, client: Client) -> None:
        """A client is open; one whose callback raises is closed with 1011."""
        if self._client_watcher is not None:
            self._client_watcher.connected(client)
        if self._on_connected:
            dispatch(self.inboxes, client, self._on_connected, fatal=True)

    def disconnected(self, client: Client) -> None:
        """An open client has gone, and is in none of its rooms any more."""
        if self._on_room_left or self._room_watcher is not None:
            for room_id in client.rooms:
                self._room_left(client, room_id)
        if self._client_watcher is not None:
            self._client_watcher.disconnected(client)
        if self._on_disconnected:
            dispatch(self.inboxes, client, self._on_disconnected)

    def _room_joined(self, client: Client, room_id: str) -> None:
        if self._room_watcher is not None:
            self._room_watcher.joined(client, room_id)
        if self._on_room_joined:
            handlers = tuple(partial(_with, fn, room_id) for fn in self._on_room_joined)
            dispatch(self.inboxes, client, handlers)

    def _room_left(self, client: Client, room_id: str) -> None:
        if self._room_watcher is not None:
            self._room_watcher.left(client, room_id)
        if self._on_room_left:
            handlers = tuple(partial(_with, fn, room_id) for fn in self._on_room_left)
            dispatch(self.inboxes, client, handlers)

    def limit(self, client: Client) -> bool:
        """A client has gone: an async callback of it that is under way has so long from now on.

        Returns:
            bool: whether there is one.
        """
        inbox: Inbox | None = inbox_of(client)
        if inbox is None:
            return False
        inbox.limit()
        return True

    def receive(
        self, client: Client, handlers: Handlers, message: str | bytes | list[str | bytes]
    ) -> None:
        """See `upward.Application`."""
        inbox: Inbox | None = inbox_of(client)
        if inbox is not None:
            inbox.put_message(handlers, message)
        else:
            dispatch(self.inboxes, client, handlers, message)

    def wait_for_result(self, client: Client, result: object) -> None:
        """See `upward.Application`."""
        if is_awaitable(result):
            # Its handler has the message already; it may be dropped with others all the same.
            wait_for(self.inboxes, client, result, message=b"")  # type: ignore[arg-type]

    # --- hooks ---

    def _may_join(self, client: Client, room_id: str) -> bool:
        """Called for each `join_room`, where there is an `authorize_join`."""
        assert self._authorize_join is not None
        try:
            answer = call_in_context(client, self._authorize_join, client, room_id)
            allowed = decided(answer, _HOOKS)
        except BaseException as error:
            note_room(error, room_id)
            raise
        if not allowed:
            self.refused_joins += 1
            tell_refused_join(client, room_id, "authorize_join")
        return allowed

    def _may_publish(self, client: Client, message: str | bytes) -> bool:
        """Called for each message, where there is an `authorize_publish`."""
        assert self._authorize_publish is not None
        try:
            answer = call_in_context(client, self._authorize_publish, client, message)
            if decided(answer, _HOOKS):
                return True
        except Exception as error:
            self.report(client, error)  # nobody has allowed it
        self.unauthorized += 1
        denied = PermissionDeniedError(f"client {client.id!a} may not publish this")
        self._denied(client, message, denied)
        if self._asking is not None:
            self._asking.deny(client, message)
        return False

    # --- errors ---

    def callback_failed(self, client: Client, error: BaseException, fatal: bool = False) -> None:
        """A callback raised: reported; closes the client where it must not stay connected."""
        self.report(client, error)
        # CancelledError, KeyboardInterrupt and their like: what the callback was doing is unknown.
        if fatal or not isinstance(error, Exception):
            client.disconnect(1011)

    def protocol_failed(self, client: Client, error: ProtocolError) -> None:
        """See `upward.Application`."""
        tell_protocol_error(client, error, self._settings())
        self._tell(client, error)

    def too_slow(self, client: Client, messages: int, nbytes: int) -> None:
        """See `upward.Application`."""
        tell_slow_consumer(client, messages, nbytes, self._settings())

    def connection_lost(self, client: Client, text: str) -> None:
        """See `upward.Application`."""
        if client.close_code == 1006:
            if log.debugs():
                log.debug("client %a: %s", client.id, text, extra=about(client, "connection_lost"))
        else:
            tell_heartbeat(client, text)
        if self._on_error:
            assert client.close_code is not None
            self._tell(client, ConnectionLostError(client.close_code, text))

    def report(self, client: Client | None, error: BaseException) -> None:
        """Counts and logs an error, and tells the on_error callbacks; `client` may be unknown."""
        self._engine.count_callback_error()
        tell_callback_error(client, error)
        self._tell(client, error)

    def _tell(self, client: Client | None, error: BaseException) -> None:
        # An async on_error takes its turn among the client's events, so that a client never has
        # more than one under way, and is not read while many of its errors wait.
        call = (
            self._engine.new_context().run if client is None else partial(call_in_context, client)
        )
        results = []
        for handler in self._on_error:
            try:
                result = call(handler, client, error)
                if is_awaitable(result):
                    results.append(result)
            except BaseException as raised:
                tell_raised("on_error_raised", "an on_error callback", raised)
        if client is None:
            for result in results:
                self._wait_without_client(result)
        elif results:
            wait_for(self.inboxes, client, _logging_errors(results))

    def _wait_without_client(self, result: Awaitable[Any]) -> None:
        """Awaits the result of an async on_error for an error that concerns no client."""
        if len(self._error_tasks) < _MOST_ERROR_TASKS:
            task = self._tasks.spawn(_logging_errors([result]), self._engine.new_context())
            self._error_tasks.add(task)
            task.add_done_callback(self._error_tasks.discard)
            return
        self.unreported_errors += 1
        if inspect.iscoroutine(result):
            result.close()

    # --- counters and gauges, and the end of a loop ---

    def counters(self) -> dict[str, int]:
        """Under their names in HubStats."""
        asking = self._asking
        return {
            "outlasting_callbacks": len(self.inboxes.outlasting),
            "messages_abandoned": self.inboxes.abandoned,
            "unauthorized": self.unauthorized,
            "refused_joins": self.refused_joins + (asking.refused_joins if asking else 0),
            "requests_answered": asking.answered if asking else 0,
            "requests_refused": asking.refused if asking else 0,
            "unreported_errors": self.unreported_errors,
        }

    def reset_counters(self) -> None:
        self.unauthorized = self.refused_joins = 0
        if self._asking is not None:
            self._asking.answered = self._asking.refused = self._asking.refused_joins = 0
        self.inboxes.abandoned = self.unreported_errors = 0

    def forget(self) -> None:
        """The loop was closed: what was under way went with it."""
        self._error_tasks.clear()
        self.inboxes.forget()


def _with(fn: Callable[[Client, str], object], room_id: str, client: Client) -> object:
    # To an inbox it is an event of the client alone; only messages have more.
    try:
        result = fn(client, room_id)
    except BaseException as error:
        note_room(error, room_id)
        raise
    return _awaited(result, room_id) if is_awaitable(result) else result


async def _awaited(result: Any, room_id: str) -> None:
    """Awaits the result of a callback about a room."""
    try:
        await result
    except BaseException as error:
        note_room(error, room_id)
        raise


async def _logging_errors(results: list[Awaitable[Any]]) -> None:
    for result in results:
        try:
            await result
        except BaseException as raised:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            tell_raised("on_error_raised", "an on_error callback", raised)
