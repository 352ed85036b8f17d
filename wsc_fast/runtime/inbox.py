"""The events of one client that wait for an async callback of it, in their order.

A plain callback runs where the event happens. Once an async callback of a client is under way,
whatever else happens to that client waits in its Inbox: one task works it off, one event at a
time, in order, and ends when nothing waits. Clients without async callbacks have no Inbox.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from types import CoroutineType
from typing import Any

from wsc_fast._core.connection import (
    Client,
    call_in_context,
    inbox_of,
    lend_context,
    pause_reading,
    resume_reading,
    set_inbox,
    transport_of,
)
from wsc_fast._core.engine import Engine
from wsc_fast._core.upward import Handlers
from wsc_fast.config import HubConfig
from wsc_fast.log import about, log
from wsc_fast.runtime.deadlines import Deadline
from wsc_fast.runtime.tasks import Tasks

# A message, or the list of those of one read (`on_messages_received`).
_Heard = str | bytes | list[str | bytes]
# The handlers that are called for it; its message, or None for an event that is none, such as a
# disconnect; whether the first handler that raises closes the client; how many events it counts
# as, and its bytes in memory: the handlers may change a list, and what it holds.
_Event = tuple[Handlers, _Heard | None, bool, int, int]

# Bytes that an event takes beside its message, about.
_EVENT_BYTES = 256


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to its inboxes.

    Attributes:
        settings: those that hold now.
        awaits_acknowledgement: whether something is pending that a client may acknowledge.
        paused: the inboxes whose clients are not read, for the part that sends messages which
            their clients may acknowledge.
        gone: hears of a client that has gone, once none of its callbacks goes on.
    """

    settings: Callable[[], HubConfig]
    awaits_acknowledgement: Callable[[Client], bool]
    paused: set[Inbox]
    gone: Callable[[Client], None]


class Inboxes:
    """The inboxes of one hub, and what all of them need of it.

    Args:
        engine, tasks: of the hub.
        needs: what else they need of the hub.
        may_publish: whether a message may be published; None where everything may.
        failed: hears of what a callback raised; the flag closes the client.

    Attributes:
        outlasting: those whose client has gone.
        abandoned: received messages that no callback was called with.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Tasks,
        needs: Needs,
        may_publish: Callable[[Client, str | bytes], bool] | None,
        failed: Callable[[Client, BaseException, bool], None],
    ) -> None:
        self.engine = engine
        self.tasks = tasks
        self.needs = needs
        self.may_publish = may_publish
        self.failed = failed
        self.outlasting: set[Inbox] = set()
        self.abandoned = 0
        self._of_user: dict[str, set[Inbox]] = {}

    def begun(self, inbox: Inbox, user_id: str) -> None:
        self._of_user.setdefault(user_id, set()).add(inbox)

    def ended(self, inbox: Inbox, user_id: str) -> None:
        self.outlasting.discard(inbox)
        self.needs.paused.discard(inbox)
        of_user = self._of_user.get(user_id, set())
        of_user.discard(inbox)
        if not of_user:
            self._of_user.pop(user_id, None)

    def forget_messages(self, user_id: str) -> None:
        """Drops the messages of a user that wait, also those of connections that have ended."""
        for inbox in self._of_user.get(user_id, ()):
            inbox.forget_messages()

    def forget(self) -> None:
        """The loop was closed: their tasks went with it."""
        self._of_user.clear()
        self.outlasting.clear()
        self.needs.paused.clear()


def is_awaitable(value: object) -> bool:
    """Whether a callback's result has to be awaited; quick for the usual kinds."""
    return value is not None and (type(value) is CoroutineType or inspect.isawaitable(value))


def decided(answer: object, hooks: str) -> bool:
    """The answer of a hook that decides; an awaitable, which is true, decides nothing.

    Args:
        answer: what it returned.
        hooks: the name of the hook, or of several.

    Raises:
        TypeError: the answer is an awaitable.
    """
    if answer is True or answer is False:
        return answer
    if is_awaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError(f"{hooks} must return a bool, not an awaitable")
    return bool(answer)


def dispatch(
    inboxes: Inboxes,
    client: Client,
    handlers: Handlers,
    message: _Heard | None = None,
    *,
    fatal: bool = False,
) -> None:
    """Calls handlers with the client, now if nothing of this client waits, else in its turn.

    Args:
        inboxes: of the hub; they hear of what handlers raise.
        client: in whose order the handlers are called.
        handlers: called one after the other; async ones are awaited.
        message: what the event is about; the handlers get it, too. None: it is no message.
        fatal: the first handler that raises ends the event and closes the client with 1011.
    """
    inbox: Inbox | None = inbox_of(client)
    if inbox is not None:
        inbox.put(handlers, message, fatal)
        return
    args = (client,) if message is None else (client, message)
    for index, handler in enumerate(handlers, 1):
        try:
            result = call_in_context(client, handler, *args)
        except BaseException as error:
            inboxes.failed(client, error, fatal)
            if fatal:
                return
        else:
            if is_awaitable(result):
                wait_for(inboxes, client, result, handlers[index:], message, fatal=fatal)
                return
        inbox = inbox_of(client)
        if inbox is not None:  # an async on_error is under way, for one
            if index < len(handlers):
                inbox.put(handlers[index:], message, fatal)
            return


def wait_for(
    inboxes: Inboxes,
    client: Client,
    first: Awaitable[Any],
    rest: Handlers = (),
    message: _Heard | None = None,
    *,
    fatal: bool = False,
) -> None:
    """Has all further events of a client wait for what one of its callbacks has returned.

    Args:
        inboxes: of the hub.
        client: in whose order it is awaited.
        first: what has to be awaited.
        rest: the handlers after it, of the same event.
        message, fatal: as of `dispatch`.
    """
    inbox: Inbox | None = inbox_of(client)
    if inbox is None:
        Inbox(inboxes, client).start(first, rest, message, fatal)
    else:
        inbox.put_first(first, rest, message, fatal)


def _size_of(message: _Heard | None) -> int:
    """Bytes that an event takes in memory."""
    if message is None:
        return _EVENT_BYTES
    size = _EVENT_BYTES + sys.getsizeof(message)
    return size + sum(map(sys.getsizeof, message)) if isinstance(message, list) else size


def _count_of(message: _Heard | None) -> int:
    """How many events it counts as."""
    return len(message) if isinstance(message, list) else 1


class Inbox:
    """The events of one client that wait for an async callback, and the task that works them off.

    Bounded by backpressure: with more than `HubConfig.max_pending_callbacks` waiting, or more than
    `HubConfig.max_pending_callback_bytes`, the client's socket is not read until half of them are
    done, and what is left of a read waits too. A callback may wait for an acknowledgement of its
    own client: while some are awaited, only the bytes are bounded.

    Once the client has gone, each of its callbacks has `HubConfig.callback_close_timeout`: one that
    waits for more of its client would keep its task, and what else is to be told, for ever.
    """

    __slots__ = ("_client", "_count", "_deadline", "_inboxes", "_nbytes", "_task", "_waiting")

    def __init__(self, inboxes: Inboxes, client: Client) -> None:
        self._inboxes = inboxes
        self._client = client
        self._waiting: deque[_Event] = deque()
        self._count = self._nbytes = 0  # of what waits; bytes as they are in memory
        self._task: asyncio.Task[None] | None = None
        # Of the callback under way, once its client has gone.
        self._deadline: Deadline | None = None

    def start(
        self, first: Awaitable[Any], rest: Handlers, message: _Heard | None, fatal: bool
    ) -> None:
        """Begins with an awaitable that a handler has returned, and the handlers after it."""
        context = lend_context(self._client)
        set_inbox(self._client, self)
        self._inboxes.begun(self, self._client.user_id)
        self._task = self._inboxes.tasks.spawn(self._run(first, rest, message, fatal), context)
        if transport_of(self._client) is None:
            self.limit()

    def limit(self) -> None:
        """Gives the callback under way `callback_close_timeout`, since its client has gone."""
        timers = self._inboxes.engine.deadlines
        self._end_limit()
        if timers.loop is not None:
            self._inboxes.outlasting.add(self)
            seconds = self._inboxes.needs.settings().callback_close_timeout
            self._deadline = Deadline(timers, seconds, self._time_out)

    def _end_limit(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_out(self) -> None:
        self._deadline = None
        assert self._task is not None
        if not self._inboxes.tasks.cancel(self._task):
            return
        self._inboxes.engine.count_limit("callback_close_timeout")
        log.warning(
            "%r: a callback was cancelled: it went on for %s s after its client had gone "
            "(callback_close_timeout)",
            self._client,
            self._inboxes.needs.settings().callback_close_timeout,
            extra=about(self._client, "callback_cancelled", setting="callback_close_timeout"),
        )
        self._abandon_messages()

    def forget_messages(self) -> None:
        """Drops the messages that wait: whose they are is not to be heard any more."""
        before = self._count
        self._drop_messages()
        self._inboxes.abandoned += before - self._count

    def put_first(
        self, first: Awaitable[Any], rest: Handlers, message: _Heard | None, fatal: bool
    ) -> None:
        """Puts what has to be awaited, and the handlers after it, ahead of what waits."""
        self._waiting.appendleft(self._event((lambda *_: first, *rest), message, fatal))

    def put_message(self, handlers: Handlers, message: _Heard) -> None:
        """Puts a message; whether it may be published is asked in its turn."""
        may_publish = self._inboxes.may_publish
        if may_publish is not None:
            handlers = (partial(self._call_if_allowed, may_publish, handlers),)
        self.put(handlers, message, False)

    async def _call_if_allowed(
        self,
        may_publish: Callable[[Client, str | bytes], bool],
        handlers: Handlers,
        client: Client,
        message: _Heard,
    ) -> None:
        allowed: _Heard | None
        if isinstance(message, list):
            allowed = [each for each in message if may_publish(client, each)] or None
        else:
            allowed = message if may_publish(client, message) else None
        if allowed is not None:
            await self._call(handlers, allowed, False)
        else:
            # A crowd whose messages are refused takes turns, since each may have many waiting.
            await asyncio.sleep(0)

    def put(self, handlers: Handlers, message: _Heard | None, fatal: bool) -> None:
        self._waiting.append(self._event(handlers, message, fatal))
        if self not in self._inboxes.needs.paused and (limit := self._limit_met(1)) is not None:
            self._inboxes.needs.paused.add(self)
            self._inboxes.engine.count_limit(limit)
            pause_reading(self._client)
            if self._inboxes.needs.awaits_acknowledgement(self._client):
                log.warning(
                    "%r: %d bytes of its messages wait for on_message_received (%s): its "
                    "acknowledgements are not heard until they are handled",
                    self._client,
                    self._nbytes,
                    limit,
                    extra=about(self._client, "input_paused", setting=limit),
                )

    def _limit_met(self, share: float) -> str | None:
        """The setting of which more than a share is used; None if there is none."""
        needs = self._inboxes.needs
        settings = needs.settings()
        if self._nbytes > settings.max_pending_callback_bytes * share:
            return "max_pending_callback_bytes"
        if self._count <= settings.max_pending_callbacks * share:
            return None
        return None if needs.awaits_acknowledgement(self._client) else "max_pending_callbacks"

    def _event(self, handlers: Handlers, message: _Heard | None, fatal: bool) -> _Event:
        """An event that is going to wait; counts it."""
        count, nbytes = _count_of(message), _size_of(message)
        self._count += count
        self._nbytes += nbytes
        return handlers, message, fatal, count, nbytes

    def _next(self) -> tuple[Handlers, _Heard | None, bool]:
        handlers, message, fatal, count, nbytes = self._waiting.popleft()
        self._count -= count
        self._nbytes -= nbytes
        if self._deadline is not None:
            self.limit()
        if self in self._inboxes.needs.paused and self._limit_met(0.5) is None:
            self._resume()
        return handlers, message, fatal

    def look_again(self) -> None:
        """Something is sent that its client may acknowledge: then only the bytes are bounded."""
        if self._limit_met(1) is None:
            self._resume()

    def _resume(self) -> None:
        self._inboxes.needs.paused.discard(self)
        resume_reading(self._client)

    async def _run(
        self, first: Awaitable[Any], rest: Handlers, message: _Heard | None, fatal: bool
    ) -> None:
        try:
            if await self._finish(first, fatal):
                await self._call(rest, message, fatal)
            elif fatal:
                self._drop_messages()
            while self._waiting:
                await self._call(*self._next())
        finally:
            # No await between the last look at `_waiting` and here: nothing can slip in.
            self._end_limit()
            set_inbox(self._client, None)
            self._inboxes.ended(self, self._client.user_id)
            # Something waits only where a callback was cancelled.
            self._abandon_messages()
            for handlers, message, fatal, *_ in self._waiting:
                dispatch(self._inboxes, self._client, handlers, message, fatal=fatal)
            if transport_of(self._client) is None and inbox_of(self._client) is None:
                self._inboxes.needs.gone(self._client)

    def _abandon_messages(self) -> None:
        waiting = self._count
        self.forget_messages()
        if waiting > self._count:
            log.warning(
                "%r: %d received messages were not handled: the callback before them was cancelled",
                self._client,
                waiting - self._count,
                extra=about(self._client, "messages_abandoned"),
            )

    def _drop_messages(self) -> None:
        # Other events stay: the end of the client and of its memberships, and its errors.
        self._waiting = deque(event for event in self._waiting if event[1] is None)
        self._count = len(self._waiting)
        self._nbytes = _EVENT_BYTES * self._count

    async def _call(self, handlers: Handlers, message: _Heard | None, fatal: bool) -> None:
        args = (self._client,) if message is None else (self._client, message)
        for handler in handlers:
            try:
                result = handler(*args)
            except BaseException as error:
                self._inboxes.failed(self._client, error, fatal)
                if fatal:
                    self._drop_messages()
                    return
                continue
            if is_awaitable(result) and not await self._finish(result, fatal):
                self._drop_messages()
                return

    async def _finish(self, result: Awaitable[Any], fatal: bool) -> bool:
        # Returns whether the event goes on to its next handler.
        try:
            await result
        except BaseException as error:
            if isinstance(error, GeneratorExit) and self._is_destroyed():
                raise
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # we or a stop of the hub cancelled the task; the callback raised nothing
            self._inboxes.failed(self._client, error, fatal)
            return not fatal
        return True

    def _is_destroyed(self) -> bool:
        """Whether this is the end of a task whose loop was closed, and that nothing resumes."""
        if asyncio._get_running_loop() is None:
            return True
        return self._task is not None and asyncio.current_task() is not self._task
