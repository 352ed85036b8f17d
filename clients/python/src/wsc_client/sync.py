"""The client for scripts and threads: calls that block, over an event loop in a thread of its own.

    from wsc_client.sync import Client

    with Client("wss://app.example/ws") as client:
        print(client.request({"get": "price"}))

Any thread may call it. Listeners, `load` and `get_token` are called in worker threads, so that they
may block, and call the client too. A process that was forked has neither the loop nor the thread:
the client says so there, and the child makes its own.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from wsc_client import client as _client
from wsc_client.client import Stats
from wsc_client.dispatch import Events
from wsc_client.errors import ClientError, ClosedError
from wsc_client.events import Event, Message, State
from wsc_client.listeners import LOGGER
from wsc_client.options import OptionNames
from wsc_client.rooms import Room as AsyncRoom
from wsc_client.rooms import RoomEvent

__all__ = ["Client", "Room"]

T = TypeVar("T")
E = TypeVar("E")

# Seconds until a join goes out, at most: a thread may leave the room before, and has no turn of a
# loop that would end. The join goes out ahead of the next message or request.
JOIN_DELAY = 0.05

_here = threading.local()


class _Workers(ThreadPoolExecutor):
    """The worker threads of a loop, which waits for them at its end, but not for ever.

    Args:
        patience: seconds.
    """

    def __init__(self, patience: float) -> None:
        super().__init__(thread_name_prefix="wsc_client-worker")
        self._patience = patience
        self._calls: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Calls a function in one of the threads."""
        call = super().submit(fn, *args, **kwargs)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return call

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls; waits for those under way, for as long as its patience lasts."""
        super().shutdown(wait=False, cancel_futures=True)
        if wait and wait_for(list(self._calls), timeout=self._patience).not_done:
            LOGGER.warning("a function of the application still runs: the client does not wait")


class _Loop:
    """An event loop in a thread of its own, for one client.

    Args:
        patience: seconds that its end waits for worker threads.
    """

    def __init__(self, patience: float) -> None:
        self._pid = os.getpid()
        self._patience = patience
        # With a factory it leaves the event loop of the caller's thread as it is.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._stop: asyncio.Event | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wsc_client", daemon=True)
        self._thread.start()
        self._begun.wait()

    def call(self, fn: Callable[[], T]) -> T:
        """Calls a function on the loop, and waits for its result."""

        async def run() -> T:
            return fn()

        return self.wait(run())

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Waits for a coroutine on the loop.

        Raises:
            TimeoutError: it takes longer; it is cancelled.
            ClientError: this is another process, or the loop has ended.
            RuntimeError: this is the thread of the loop, which cannot wait for itself.
        """
        try:
            self.check()
        except BaseException:
            coroutine.close()
            raise

        async def run() -> T:
            async with asyncio.timeout(timeout):
                return await coroutine

        future: Future[T] = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt, too
            future.cancel()
            raise

    @property
    def foreign(self) -> bool:
        """Whether this is another process, which was forked from the loop's."""
        return self._pid != os.getpid()

    def stop(self) -> None:
        """Ends the loop, and its thread."""
        if self.foreign or not self._thread.is_alive() or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        # A listener that closes the client is waited for by the loop itself.
        if not getattr(_here, "listening", False):
            self._thread.join()

    def check(self) -> None:
        """Raises where nothing can be waited for here; see `wait`."""
        if self.foreign:
            text = (
                f"this client is of process {self._pid}: make one in this process, which was forked"
            )
            raise ClientError(text)
        if not self._thread.is_alive() or (self._stop is not None and self._stop.is_set()):
            raise ClosedError(why="called")
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "this is the thread of the client's loop, which cannot wait for itself"
            )

    def _run(self) -> None:
        async def run() -> None:
            self._loop.set_default_executor(_Workers(self._patience))
            self._stop = asyncio.Event()
            self._begun.set()
            await self._stop.wait()

        with self._runner:
            self._runner.run(run())


class _Receiving:
    """`receive` and iteration, of the client and of rooms: both take from one stream."""

    def __init__(self, loop: _Loop, read: Callable[[], Events[Message]]) -> None:
        self._loop, self._read = loop, read
        self._reading: Events[Message] | None = None
        self._lock = threading.Lock()

    def receive(self, timeout: float | None = None) -> Message:
        """The next message. From the first call on, messages wait for the next one.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            TimeoutError: none has come.
            ClosedError: the client is closed.
        """
        message = self._next(timeout)
        if message is None:
            raise ClosedError()
        return message

    def __iter__(self) -> Iterator[Message]:
        """The messages, until the client is closed, from the next one on.

        Raises:
            ClosedError: the client was closed otherwise than by `close` or with 1000.
        """
        begun = False
        try:
            while (message := self._next(None)) is not None:
                begun = True
                yield message
        except ClosedError as error:
            # Another thread has closed the client while the caller dealt with a message.
            if not begun or error.why != "called":
                raise

    def _next(self, timeout: float | None) -> Message | None:
        async def next_(left: float | None) -> Message | None:
            if self._reading is None:
                self._reading = self._read()
            try:
                async with asyncio.timeout(left):
                    return await anext(self._reading, None)
            except TimeoutError:
                raise TimeoutError(f"no message came within {timeout} s") from None

        # In a process that was forked, the lock may be held by a thread that is not there.
        self._loop.check()
        began = time.monotonic()
        most = -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
        if not self._lock.acquire(timeout=most):
            raise TimeoutError(f"no message came within {timeout} s")
        try:
            left = None if timeout is None else timeout - (time.monotonic() - began)
            return self._loop.wait(next_(left))
        finally:
            self._lock.release()

    async def _end_reading(self) -> None:
        """The last message is dealt with."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None


class Room(_Receiving):
    """A room of a Client; see `wsc_client.Room`."""

    def __init__(self, loop: _Loop, room: AsyncRoom) -> None:
        super().__init__(loop, lambda: aiter(room))
        self._room = room
        self.name: str = room.name

    @property
    def joined(self) -> bool:
        """Whether the server has said, on this connection, that the client is a member."""
        return self._room.joined

    def leave(self) -> None:
        """Leaves the room, and forgets it and its position."""
        self._loop.call(self._room.leave)

    def stands_for(self, room: AsyncRoom) -> bool:
        """Whether it is this room, and not one that was left."""
        return self._room is room

    def on(self, event: type[E], listener: Callable[[E], object]) -> Callable[[], None]:
        """Has a function called, in a worker thread, with each event of this class and room."""
        end = self._loop.call(lambda: self._room.on(event, threaded(listener)))
        return lambda: self._loop.call(end)

    def events(self) -> Iterator[RoomEvent]:
        """All events of the room in their order."""
        return _iterated(self._loop, self._loop.call(self._room.events))


class Client(_Receiving):
    """A connection to a hub that comes back, for code without an event loop.

    Args:
        url: of the hub.
        options: those of `wsc_client.Client`.

    Raises:
        OptionError: the url or an option cannot be used.
    """

    def __init__(self, url: str, **options: Unpack[OptionNames]) -> None:
        for name in ("get_token", "load"):
            function = options.get(name)
            if callable(function):
                options[name] = threaded(function)
        self._client = _client.Client(url, _join_delay=JOIN_DELAY, **options)
        super().__init__(_Loop(self._client.options.close_timeout), lambda: aiter(self._client))
        self._rooms: dict[str, Room] = {}

    # --- the life ---

    @property
    def state(self) -> State:
        """ "connecting", "open", "waiting" or "closed"."""
        return self._client.state

    def connect(self) -> None:
        """Begins to connect, and returns at once."""
        self._loop.call(self._client.connect)

    def opened(self, timeout: float | None = None) -> None:
        """Waits until the connection is open.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            ClosedError: the client is closed, or was closed meanwhile.
            TimeoutError: it is not open by then. The client goes on.
        """
        self._loop.wait(self._client.opened(), timeout)

    def close(self) -> None:
        """Closes the connection, waits for the server's answer, and ends the thread.

        It waits for listeners that still run, `close_timeout` at most. A client that is closed
        cannot connect again: make another one.
        """

        async def close() -> None:
            for receiving in (self, *self._rooms.values()):
                await receiving._end_reading()
            await self._client.aclose()

        if self._loop.foreign:
            return  # the connection is that of the process which was forked
        with suppress(ClosedError):  # it was closed before
            self._loop.wait(close())
            self._loop.stop()

    def __enter__(self) -> Self:
        """Connects, and waits until the connection is open.

        Raises:
            ClosedError: the hub does not let this client in.
        """
        try:
            self.connect()
            self.opened()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # --- messages ---

    def send(self, data: Any, *, timeout: float | None = None) -> None:
        """Sends a message, and waits until it is handed to a connection.

        Args:
            data: str or bytes, which go out as they are, or a value that can be JSON.
            timeout: seconds; then the message is taken out of the queue.

        Raises:
            TypeError, ValueError: the data cannot be JSON.
            TimeoutError: no connection took it.
            ClosedError, QueueFullError: it is not sent.
        """

        async def send() -> None:
            await self._client.send(data)

        self._loop.wait(send(), timeout)

    def request(self, data: Any, *, timeout: float | None = None, retry: bool = False) -> Any:
        """Asks the application behind the hub, and returns its answer.

        Args:
            data: a value that can be JSON.
            timeout: seconds; by itself `request_timeout`.
            retry: asks again if the connection ends before the answer.

        Raises:
            TypeError, ValueError: the data cannot be JSON.
            RefusedError: the answer is an error.
            RequestTimeoutError, LostError, ClosedError, QueueFullError: there is none.
        """

        async def request() -> Any:
            return await self._client.request(data, timeout=timeout, retry=retry)

        return self._loop.wait(request())

    def room(self, name: str, *, join: bool = True) -> Room:
        """A room that the client asks to join, now and on each further connection.

        The request goes out with the next message or request, and 50 ms after the call at the
        latest: `room(name).leave()` does nothing for a room that nobody has asked for.

        Args:
            name: of the room.
            join: False where the application joins the client by itself.
        """
        room = self._loop.call(lambda: self._client.room(name, join=join))
        known = self._rooms.get(name)
        if known is None or not known.stands_for(room):
            known = self._rooms[name] = Room(self._loop, room)
        return known

    # --- events ---

    def on(self, event: type[E], listener: Callable[[E], object]) -> Callable[[], None]:
        """Has a function called, in a worker thread, with each event of this class.

        Args:
            event: such as Message or StateChange.
            listener: a plain function. Its calls come one after the other.

        Returns:
            Callable[[], None]: ends it.

        Raises:
            TypeError: there is no such class of events, or the listener is no plain function.
        """
        end = self._loop.call(lambda: self._client.on(event, threaded(listener)))
        return lambda: self._loop.call(end)

    def events(self) -> Iterator[Event]:
        """All events in their order."""
        return _iterated(self._loop, self._loop.call(self._client.events))

    def stats(self) -> Stats:
        """Counters."""
        return self._client.stats()

    def __repr__(self) -> str:
        return repr(self._client)


def threaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the application, called in a worker thread.

    Raises:
        TypeError: it is no plain function.
    """
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise TypeError(f"the function is {function!r}, expected a plain one")

    def call(*args: Any) -> Any:
        _here.listening = True
        try:
            return function(*args)
        finally:
            _here.listening = False

    async def in_thread(*args: Any) -> Any:
        return await asyncio.to_thread(call, *args)

    return in_thread


def _iterated(loop: _Loop, events: Events[E]) -> Iterator[E]:
    async def next_() -> E | None:
        return await anext(events, None)

    async def close() -> None:
        await events.aclose()

    try:
        while (event := loop.wait(next_())) is not None:
            yield event
    finally:
        with suppress(ClientError):  # the client has ended before
            loop.wait(close())
