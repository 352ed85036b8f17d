"""A world without real time: a clock, processes that can freeze or die, and connections that fail.

One seed repeats a run exactly: nothing depends on the machine, on threads or on the order of a set.
A model takes its time and all its dice from the Clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Lost(Exception):
    """No answer came: nobody knows whether the call was executed."""


class Clock:
    """The time of a run, its events, and its dice."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.dice = random.Random(seed)
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def at(self, delay: float, call: Callable[..., object], *args: Any) -> None:
        """Calls after so many seconds; calls of one time come in the order of `at`."""
        self.events += 1
        heappush(self._heap, (self.now + delay, self.events, call, args))

    def run(self, seconds: float) -> None:
        """Lets so much time pass."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call, args = heappop(self._heap)
            call(*args)
        self.now = end


class Future(Generic[T]):
    """A result that comes later, once."""

    def __init__(self) -> None:
        self.is_done = False
        self.error: Exception | None = None
        self._value: T | None = None
        self._calls: list[Callable[[Future[T]], object]] = []

    def set(self, value: T) -> None:
        """It is this, unless the result is known already."""
        self._end(value, None)

    def fail(self, error: Exception) -> None:
        """There will be none, unless the result is known already."""
        self._end(None, error)

    def _end(self, value: T | None, error: Exception | None) -> None:
        if not self.is_done:
            self.is_done, self._value, self.error = True, value, error
            for call in self._calls:
                call(self)
            self._calls.clear()

    def copy(self, other: Future[T]) -> None:
        """It is what another one is that is done."""
        self._end(other._value, other.error)

    def then(self, call: Callable[[Future[T]], object]) -> None:
        """Calls with it once the result is known."""
        if self.is_done:
            call(self)
        else:
            self._calls.append(call)

    def result(self) -> T:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Future[T], None, T]:
        if not self.is_done:
            yield self
        return self.result()


class Process:
    """A program that may be frozen, and dies without a word."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_dead = self.is_frozen = False
        self._backlog: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Something has come for it: at once, after the thaw, or never."""
        if self.is_dead:
            return
        if self.is_frozen:
            self._backlog.append((function, args))
        else:
            function(*args)

    def later(self, delay: float, function: Callable[..., object], *args: Any) -> None:
        """Its timer."""
        self.clock.at(delay, self.call, function, *args)

    def freeze(self) -> None:
        """It stands still; what comes for it waits."""
        self.is_frozen = True

    def thaw(self) -> None:
        """It goes on, first with what has come meanwhile."""
        self.is_frozen = False
        while self._backlog and not self.is_frozen and not self.is_dead:
            function, args = self._backlog.popleft()
            function(*args)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs a task in it."""
        self.later(0.0, self._step, coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        awaited.then(lambda _: self.later(0.0, self._step, coroutine))

    def sleep(self, seconds: float) -> Future[None]:
        """To be awaited."""
        future: Future[None] = Future()
        self.clock.at(seconds, future.set, None)
        return future

    def within(self, seconds: float, future: Future[T]) -> Awaitable[T]:
        """The future, which fails with Lost after so many seconds of this process."""
        within: Future[T] = Future()
        self.later(seconds, within.fail, Lost())
        future.then(within.copy)
        return within


class Path:
    """The way of bytes in one direction, which may be blocked for a while."""

    def __init__(self, clock: Clock, delays: list[float]) -> None:
        self.clock = clock
        self.delays = delays
        self.blocked_until = 0.0

    def block(self, seconds: float) -> None:
        """Nothing comes out before that; connections stay open."""
        self.blocked_until = max(self.blocked_until, self.clock.now + seconds)

    def arrival(self, after: float) -> float:
        """When bytes arrive that are sent now, behind those that arrive then."""
        delay = self.clock.dice.choice(self.delays) * self.clock.dice.random()
        return max(after, max(self.clock.now, self.blocked_until) + delay)


class Server:
    """A program that processes have connections to. It may crash, and may lose its newest state."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.life = 1
        self.down_until = 0.0
        self.links: list[Link] = []

    def crash(self, seconds: float) -> None:
        """All connections end, and new ones are refused for a while."""
        self.life += 1
        self.down_until = self.clock.now + seconds
        links, self.links = self.links, []
        for link in links:
            link.cut()

    def ended(self, link: Link) -> None:
        """A connection has ended."""


class Link:
    """A connection of a process to a server: calls and answers in order, and words of the server.

    Args:
        process: at the one end.
        server: at the other.
        paths: there and back.
        heard: is called with each word in the process.
    """

    count = 0

    def __init__(
        self,
        process: Process,
        server: Server,
        paths: tuple[Path, Path],
        heard: Callable[[Link, Any], object] | None = None,
    ) -> None:
        self.process = process
        self.server = server
        self.lost: Future[None] = Future()  # at the end of the process
        self.number = 0
        self._clock = process.clock
        self._paths = paths
        self._times = [0.0, 0.0]
        self._heard = heard
        self._life = server.life
        self._is_open = True  # at the end of the server
        self._keeps = True  # whether the server reads what was sent before the end
        self._calls: list[Future[Any]] = []

    def ask(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Has the server execute a call; the answer, or Lost."""
        future: Future[Any] = Future()
        if self.lost.is_done:
            future.fail(Lost())
            return future
        self._calls.append(future)
        self._times[0] = self._paths[0].arrival(self._times[0])
        self._clock.at(self._times[0] - self._clock.now, self._execute, future, call, args)
        return future

    def _execute(self, future: Future[Any], call: Callable[..., Any], args: Any) -> None:
        server = self.server
        if server.life != self._life or self._clock.now < server.down_until:
            return
        if not self._is_open and not self._keeps:
            return
        answer = call(*args)
        if self._is_open:
            self._back(self._answer, future, answer)

    def _back(self, call: Callable[..., object], *args: Any) -> None:
        self._times[1] = self._paths[1].arrival(self._times[1])
        self._clock.at(self._times[1] - self._clock.now, self.process.call, call, *args)

    def _answer(self, future: Future[Any], answer: Any) -> None:
        if not self.lost.is_done:
            self._calls.remove(future)
            future.set(answer)

    def say(self, word: Any) -> bool:
        """The server sends a word; whether it takes the connection for open."""
        if self._is_open:
            self._back(self._hear, word)
        return self._is_open

    def _hear(self, word: Any) -> None:
        if not self.lost.is_done and self._heard is not None:
            self._heard(self, word)

    def cut(self) -> None:
        """The connection breaks; the process hears of it a little later."""
        self._end()
        self._clock.at(self._clock.dice.random() * 0.05, self.process.call, self._gone)

    def give_up(self) -> None:
        """The process closes it. The server may read what was sent before."""
        self._gone()
        self._end()

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._keeps = self._clock.dice.random() < 0.5
            self.server.ended(self)

    def _gone(self) -> None:
        if not self.lost.is_done:
            self.lost.set(None)
            calls, self._calls = self._calls, []
            for future in calls:
                future.fail(Lost())
