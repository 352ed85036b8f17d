"""Events on their way to listeners: functions, async functions and iterators.

A plain function is called at once. Calls of an async function, and events for an iterator, wait in
a backlog of their own, in order. A backlog that is full has nothing more read from the connection.
Only where a request waits for its answer, which comes behind other messages, the client reads on,
up to a larger bound: the listener that is behind may be the one that asks.

A Delivery is one event on its way. It is finished once all that got it are done with it: the plain
functions have returned, the async ones too, and each iterator has come back for its next event or
has ended. Only then is a message acknowledged and its position kept.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from wsc_client.errors import ClosedError
from wsc_client.events import ErrorEvent, Event, Message

LOGGER = logging.getLogger("wsc_client")

Finished = Callable[[BaseException | None], None]
Dropped = Callable[[], None]

# So many times the bounds may wait while a request waits for its answer.
WHILE_ASKING = 10


class Delivery:
    """One event on its way.

    Args:
        event: it.
        size: of its payload, in bytes.
        finished: called once, with the first error of a listener.
        dropped: called in place of it, where no listener gets the event.
    """

    __slots__ = ("_dropped", "_error", "_finished", "_waits", "event", "size")

    def __init__(
        self, event: Event, size: int, finished: Finished | None, dropped: Dropped | None = None
    ) -> None:
        self.event: Event = event
        self.size: int = size
        self._finished, self._dropped = finished, dropped
        self._error: BaseException | None = None
        self._waits = 1  # for the caller that gives it to the listeners

    def hold(self) -> None:
        """One more has to be done with it; `release` ends that."""
        self._waits += 1

    @property
    def alone(self) -> bool:
        """Whether one alone has to be done with it."""
        return self._waits == 1

    def fail(self, error: BaseException) -> None:
        """A listener has raised."""
        self._error = self._error or error

    def drop(self) -> None:
        """No listener gets it."""
        if self._dropped is not None:
            self._dropped()

    def release(self) -> None:
        """One of them is done with it."""
        self._waits -= 1
        if self._waits == 0 and self._finished is not None:
            self._finished(self._error)


class Backlogs:
    """Whether what waits for listeners is within its bounds.

    Args:
        most: events that may wait for one listener.
        most_bytes: of their payloads.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._full: set[Backlog] = set()
        self._overfull: set[Backlog] = set()  # beyond the bounds while a request waits, too
        self._asking = False
        self._room: asyncio.Future[None] | None = None

    def look(self, backlog: Backlog) -> None:
        """A backlog has changed."""
        if self._beyond(backlog, 1):
            self._full.add(backlog)
        elif backlog.size * 2 <= self._most_bytes:
            self._full.discard(backlog)
        if self._beyond(backlog, WHILE_ASKING):
            self._overfull.add(backlog)
        else:
            self._overfull.discard(backlog)
        self._go_on()

    def forget(self, backlog: Backlog) -> None:
        """A backlog is gone."""
        self._full.discard(backlog)
        self._overfull.discard(backlog)
        self._go_on()

    def asking(self, asks: bool) -> None:
        """Whether a request waits for its answer, from now on."""
        self._asking = asks
        self._go_on()

    def room(self) -> asyncio.Future[None] | None:
        """A future that is done once all are within their bounds; None where they are."""
        if not self._stopping:
            return None
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        return self._room

    @property
    def _stopping(self) -> bool:
        return bool(self._overfull if self._asking else self._full)

    def _beyond(self, backlog: Backlog, times: int) -> bool:
        return backlog.count > self._most * times or backlog.size > self._most_bytes * times

    def _go_on(self) -> None:
        if self._room is not None and not self._stopping:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None


class Backlog:
    """Deliveries that wait for one listener, in order."""

    def __init__(self, backlogs: Backlogs) -> None:
        self.count: int = 0
        self.size: int = 0
        self._backlogs = backlogs

    def added(self, delivery: Delivery) -> None:
        """A delivery waits."""
        delivery.hold()
        self.count += 1
        self.size += delivery.size
        self._backlogs.look(self)

    def done(self, delivery: Delivery) -> None:
        """The listener is done with it."""
        self.count -= 1
        self.size -= delivery.size
        self._backlogs.look(self)
        delivery.release()

    def gone(self) -> None:
        """The listener has ended."""
        self._backlogs.forget(self)


class Stream(Backlog):
    """The events that an iterator has not got yet."""

    def __init__(self, backlogs: Backlogs) -> None:
        super().__init__(backlogs)
        self._waiting: deque[Delivery] = deque()
        self._ended: ClosedError | bool = False
        self._wake: asyncio.Future[None] | None = None

    def put(self, delivery: Delivery) -> None:
        """An event for it."""
        self.added(delivery)
        self._waiting.append(delivery)
        self._awake()

    def end(self, error: ClosedError | None) -> None:
        """Nothing more comes; `get` raises this error, once it has given all."""
        self._ended = error or True
        self._awake()

    async def get(self) -> Delivery | None:
        """The next delivery; None at the end."""
        if self._wake is not None and not self._wake.done():
            raise RuntimeError("another task waits for the next event of this iterator")
        while not self._waiting:
            if isinstance(self._ended, ClosedError):
                raise self._ended.again()
            if self._ended:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._waiting.popleft()

    def leave(self, current: Delivery | None) -> list[Delivery]:
        """The iterator has ended: it has dealt with the current event, and gets no other.

        Returns:
            list[Delivery]: what it has not given; the caller releases these.
        """
        if current is not None:
            self.done(current)
        unseen, self._waiting = list(self._waiting), deque()
        self._ended = True
        self._awake()  # of a task that waits for the next event meanwhile
        self.gone()
        return unseen

    def _awake(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Handler(Backlog):
    """A function that is called with events.

    Args:
        function: it; its awaitables are awaited one after the other.
        backlogs: of the client.
        spawn: makes a task that the client ends with it.
        report: hears of what the function raises.
    """

    def __init__(
        self,
        function: Callable[[Any], object],
        backlogs: Backlogs,
        spawn: Callable[[Any], asyncio.Task[Any]],
        report: Callable[[BaseException], None],
    ) -> None:
        super().__init__(backlogs)
        self.function: Callable[[Any], object] = function
        self._spawn, self._report = spawn, report
        self._waiting: deque[tuple[Delivery, Awaitable[object]]] = deque()
        self._working = False

    def put(self, delivery: Delivery) -> None:
        """Calls the function."""
        try:
            result = self.function(delivery.event)
        except Exception as error:
            self._failed(delivery, error)
            return
        if inspect.isawaitable(result):
            self.added(delivery)
            self._waiting.append((delivery, result))
            if not self._working:
                self._working = True
                # A task that is cancelled before its first step runs no `finally`.
                self._spawn(self._work()).add_done_callback(self._stopped)

    async def _work(self) -> None:
        while self._waiting:
            delivery, awaitable = self._waiting.popleft()
            try:
                await awaitable
            except asyncio.CancelledError as error:
                # Either the client ends, or something that the function awaited was cancelled.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._failed(delivery, error)
            except Exception as error:
                self._failed(delivery, error)
            self.done(delivery)
        self._working = False

    def _stopped(self, task: asyncio.Task[Any]) -> None:
        """Where the client has ended, the rest is not dealt with, and so not acknowledged."""
        if not task.cancelled():
            return
        self._working = False
        for _, awaitable in self._waiting:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
        self._waiting.clear()
        self.count = self.size = 0
        self.gone()

    def _failed(self, delivery: Delivery, error: BaseException) -> None:
        delivery.fail(error)
        # An error of a listener of errors would come back to it.
        if isinstance(delivery.event, ErrorEvent):
            LOGGER.error("a listener of errors has raised", exc_info=error)
        else:
            self._report(error)


Listener = Handler | Stream


class Listeners:
    """The listeners of a client, or of a room.

    Args:
        listened: called when there is one for messages.
    """

    def __init__(self, listened: Callable[[], None]) -> None:
        self._of: dict[type[Any], tuple[Listener, ...]] = {}
        self._listened = listened

    def add(self, kind: type[Any], listener: Listener) -> Callable[[], None]:
        """Has it get events of this class; returns a function that ends it."""
        self._of[kind] = (*self._of.get(kind, ()), listener)
        if kind is Message:
            self._listened()

        def end() -> None:
            rest = tuple(other for other in self._of.get(kind, ()) if other is not listener)
            self._of[kind] = rest

        return end

    def of(self, event: Event) -> tuple[Listener, ...]:
        """The listeners of this event."""
        return self._of.get(type(event), ())

    def end(self, error: ClosedError | None) -> None:
        """The iterators end."""
        for listener in {each for some in self._of.values() for each in some}:
            if isinstance(listener, Stream):
                listener.end(error)
