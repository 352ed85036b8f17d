"""From an event to its listeners: those of its room, then those of the client (J7).

A message that nobody listens to is held until somebody does, so that an `async for` which begins
after the connection, or again after a `break`, has all of them. The newest are held, within bounds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, cast

from wsc_client.errors import ClosedError
from wsc_client.events import (
    Bus,
    ErrorEvent,
    Event,
    First,
    Gap,
    Joined,
    Message,
    Recovered,
    Refused,
    StateChange,
)
from wsc_client.listeners import (
    LOGGER,
    Backlogs,
    Delivery,
    Dropped,
    Finished,
    Handler,
    Listener,
    Listeners,
    Stream,
)
from wsc_client.options import Options
from wsc_client.tasks import Tasks

E = TypeVar("E")

OF_ROOMS: tuple[type[Any], ...] = (Message, Joined, Refused, Recovered, First, Gap)
ALL: tuple[type[Any], ...] = (*OF_ROOMS, StateChange, Bus, ErrorEvent)


class Dispatch:
    """Gives events to listeners.

    Attributes:
        backlogs: what waits for async ones.
        unheard: messages that were dropped since nobody listened to them.
        closed: why iterators cannot begin; None while the client is not closed.
    """

    def __init__(self, options: Options, tasks: Tasks) -> None:
        self.backlogs: Backlogs = Backlogs(options.pending_messages, options.pending_bytes)
        self.unheard: int = 0
        self.closed: ClosedError | None = ClosedError("the client is not connected")
        self._most, self._most_bytes = options.pending_messages, options.pending_bytes
        self._tasks = tasks
        self._client = self.listeners()
        self._rooms: dict[str, Listeners] = {}
        self._held: deque[Delivery] = deque()
        self._held_bytes = 0
        self._releasing = False
        self._reporting = False

    def listeners(self) -> Listeners:
        """A place for listeners of something."""
        return Listeners(self._listened)

    def of_room(self, name: str) -> Listeners:
        """The place for listeners of this room."""
        return self._rooms.setdefault(name, self.listeners())

    def forget_room(self, name: str) -> None:
        """The room was left: its iterators end."""
        if name in self._rooms:
            self._rooms.pop(name).end(None)

    def on(
        self, kind: type[Any], function: Callable[[Any], object], place: Listeners | None = None
    ) -> Callable[[], None]:
        """Has a function called; returns one that ends it."""
        if kind not in ALL:
            raise TypeError(f"{kind!r} is no class of events, expected one of {ALL}")
        if not callable(function):
            raise TypeError(f"the listener is {function!r}, expected a function")
        handler = Handler(function, self.backlogs, self._tasks.spawn, self.report)
        return (place or self._client).add(kind, handler)

    def events(self, kinds: tuple[type[Any], ...], place: Listeners | None = None) -> Events[Any]:
        """Begins to read the events of these classes.

        Raises:
            ClosedError: the client is closed.
        """
        if self.closed is not None:
            raise self.closed.again()
        stream = Stream(self.backlogs)
        return Events(stream, [(place or self._client).add(kind, stream) for kind in kinds], self)

    def unseen(self, deliveries: list[Delivery]) -> None:
        """A reader has left these. Where nobody else has got them, the next reader does."""
        for delivery in deliveries:
            if delivery.alone and isinstance(delivery.event, Message):
                self._hold(delivery)
            else:
                delivery.release()
        self._listened()

    def emit(
        self,
        event: Event,
        size: int = 0,
        finished: Finished | None = None,
        dropped: Dropped | None = None,
    ) -> None:
        """Gives an event to its listeners; see Delivery."""
        delivery = Delivery(event, size, finished, dropped)
        unheard = self._releasing or not self._heard_by(event)
        if unheard and isinstance(event, Message):
            self._hold(delivery)
        else:
            self._give(delivery)

    def end(self, error: ClosedError | None) -> None:
        """The client is closed: iterators end, with this error."""
        self.closed = error or ClosedError(why="called")
        for place in (self._client, *self._rooms.values()):
            place.end(error)

    def report(self, error: BaseException) -> None:
        """An error of the application's code: an event, or a log line where nobody listens."""
        event = ErrorEvent(error)
        if self._reporting or not self._client.of(event):
            LOGGER.error("a function of the application has raised", exc_info=error)
            return
        self._reporting = True
        try:
            self.emit(event)
        finally:
            self._reporting = False

    def _give(self, delivery: Delivery) -> None:
        for listener in self._heard_by(delivery.event):
            listener.put(delivery)
        delivery.release()

    def _heard_by(self, event: Event) -> tuple[Listener, ...]:
        room = getattr(event, "room", None)
        of_room = self._rooms[room].of(event) if room in self._rooms else ()
        return (*of_room, *self._client.of(event))

    # --- messages without a listener ---

    def _hold(self, delivery: Delivery) -> None:
        held = self._held
        held.append(delivery)
        self._held_bytes += delivery.size
        while len(held) > self._most or (self._held_bytes > self._most_bytes and len(held) > 1):
            dropped = held.popleft()
            self._held_bytes -= dropped.size
            dropped.drop()
            self.unheard += 1
            if self.unheard == 1:
                LOGGER.warning("nobody listens to messages: the oldest of them are dropped")

    def _listened(self) -> None:
        # At the end of this turn, so that listeners which are set together all get them.
        if self._held and not self._releasing:
            self._releasing = True
            asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        self._releasing = False
        held, self._held, self._held_bytes = self._held, deque(), 0
        for delivery in held:
            if self._heard_by(delivery.event):
                self._give(delivery)
            else:
                self._hold(delivery)


class Events(Generic[E]):
    """An async iterator over events.

    It is done with an event when it is asked for the next one, or when it ends. A loop that is left
    by `break` or an exception lets go of it, and so ends it.
    """

    def __init__(self, stream: Stream, ends: list[Callable[[], None]], dispatch: Dispatch) -> None:
        self._stream, self._ends, self._dispatch = stream, ends, dispatch
        self._current: Delivery | None = None
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        """The next event. A call that is cancelled loses none.

        Raises:
            ClosedError: the client was closed otherwise than by `close` or with 1000.
            RuntimeError: another task waits for the next event.
        """
        if self._current is not None:
            current, self._current = self._current, None
            self._stream.done(current)
        self._current = await self._stream.get()
        if self._current is None:
            raise StopAsyncIteration
        return cast(E, self._current.event)

    def close(self) -> None:
        """Ends it. Messages that it has not given wait for the next listener."""
        ends, self._ends = self._ends, []
        for end in ends:
            end()
        if ends:
            current, self._current = self._current, None
            self._dispatch.unseen(self._stream.leave(current))

    async def aclose(self) -> None:
        """The same, as async generators have it."""
        self.close()

    def __del__(self) -> None:
        if not self._ends:
            return
        if _runs(self._loop):
            self.close()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_close, self._stream, self._ends, self._dispatch)


def _runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the thread of the loop, in one of its callbacks."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _close(stream: Stream, ends: list[Callable[[], None]], dispatch: Dispatch) -> None:
    """Ends an iterator that is gone."""
    Events(stream, ends, dispatch).close()
