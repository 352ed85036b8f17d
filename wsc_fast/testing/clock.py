"""A clock that tests set: time passes for a hub, and nobody waits for it.

All clocks by which a hub tells how much time has passed are moved together:

    the loop's time and timers      heartbeats, ACK timeouts, retries, deadlines, asyncio.sleep
    the hub's monotonic clock       rates, time-outs of silent clients, histories, uptime
    the hub's wall clock            ends of tokens and identities, ages of stored messages
    PyJWT's clock                   `exp`, `nbf` and `iat` of JSON Web Tokens

Time goes on by itself too, as fast as the machine's. Not moved are the clocks of other processes
(histories, leases and idempotency keys of Redis end by its clock), the timestamps of messages and
of the log, and the clocks that the application reads by itself (`time.time()`).

A loop is moved by replacing its `time`, `call_at` and `call_later`, as attributes of this one loop:
asyncio's own loops and uvloop look them up there, and so do `asyncio.sleep` and `asyncio.timeout`.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from contextvars import Context
from itertools import count
from typing import Any, Self

import wsc_fast._core.clock as of_the_hub
from wsc_fast.testing.jwt_clock import give_back, move
from wsc_fast.testing.threads import LoopThread

# Of `advance`: the most steps that it takes, the turns of the loop after each, and the seconds for
# which it then waits for sockets and threads.
_STEPS = 300
_TURNS = 8
_PAUSE = 0.001

# The clock that is open, if there is one.
_open: list[Clock] = []


class MovedTimer:
    """A timer on a loop whose clock is moved: what `call_at` and `call_later` return there.

    Thread-safety: the loop's thread.
    """

    __slots__ = ("_args", "_callback", "_context", "_when")

    def __init__(
        self, when: float, callback: Callable[..., object], args: Any, context: Context | None
    ) -> None:
        self._when = when
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = context

    def when(self) -> float:
        """When it is due, by the loop's clock."""
        return self._when

    def cancel(self) -> None:
        """Has it not be called."""
        self._callback = self._args = None

    def cancelled(self) -> bool:
        """Whether it is not going to be called: it was cancelled, or has been called."""
        return self._callback is None

    def fire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Has the loop call it in this turn."""
        if self._callback is not None:
            loop.call_soon(self._run, context=self._context)

    def _run(self) -> None:
        callback, args = self._callback, self._args
        if callback is not None:
            self.cancel()
            callback(*args)


class MovedLoop:
    """The clock and the timers of one loop, which are moved with the hub's.

    Args:
        loop: a loop of asyncio or uvloop.

    Thread-safety: the loop's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timers: list[tuple[float, int, MovedTimer]] = []
        self._numbers = count()
        self._native: Any = None
        self._native_due = math.inf
        self._replace("time", self.time)
        self._replace("call_at", self.call_at)
        self._replace("call_later", self.call_later)

    def _replace(self, name: str, function: Callable[..., object]) -> None:
        try:
            setattr(self._loop, name, function)
        except AttributeError:
            raise RuntimeError(
                f"the clock of a {type(self._loop).__name__} cannot be moved: it takes no "
                "attributes; asyncio's own loops and uvloop do"
            ) from None

    def release(self) -> None:
        """Gives the loop its own clock back; timers that are left are called when they are due."""
        left = [timer for _, _, timer in sorted(self._timers) if not timer.cancelled()]
        now = self.time()
        if self._native is not None:
            self._native.cancel()
        for name in ("time", "call_at", "call_later"):
            delattr(self._loop, name)
        for timer in left:
            self._loop.call_later(max(0.0, timer.when() - now), timer.fire, self._loop)

    def time(self) -> float:
        """As the loop's own, moved."""
        return type(self._loop).time(self._loop) + of_the_hub.moved_by()

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> MovedTimer:
        """As the loop's own."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> MovedTimer:
        """As the loop's own."""
        timer = MovedTimer(when, callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        if when < self._native_due:
            self._arm(when)
        return timer

    def next_due(self) -> float:
        """When the next timer is due, by the moved clock; infinite without any."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    def moved(self) -> None:
        """The clocks were moved: calls what is due by now."""
        self._fire()

    def _arm(self, when: float) -> None:
        # One timer of the loop's own, for the first of ours.
        if self._native is not None:
            self._native.cancel()
        self._native_due = when
        delay = max(0.0, when - self.time())
        if isinstance(self._loop, asyncio.BaseEventLoop):
            # Its loop compares them with `self.time()`, which is ours.
            self._native = asyncio.BaseEventLoop.call_at(self._loop, when, self._fire)
        else:
            self._native = type(self._loop).call_later(self._loop, delay, self._fire)

    def _fire(self) -> None:
        if self._native is not None:
            self._native.cancel()
            self._native = None
        now = self.time()
        # uvloop counts in milliseconds, and may be early by one.
        while self.next_due() <= now + 0.0005:
            heapq.heappop(self._timers)[2].fire(self._loop)
        self._native_due = math.inf
        if self._timers:
            self._arm(self._timers[0][0])


class Clock:
    """The clocks of all hubs of this process, which a test sets ahead.

        async def test_a_silent_client_is_closed(hub, hub_client, clock):
            ann = await hub_client("ann", answers_pings=False)
            await clock.advance(60)
            await ann.expect_close(1001)

    Timers come in their order, and between two of them the hub and the clients of this loop do
    what is to be done: a client that answers pings stays alive. Attach it before the hub starts:
    timers that uvloop had before stay on the machine's clock.

    Raises:
        RuntimeError: another Clock is in use.

    Thread-safety: the thread of the loop; attributes any.
    """

    def __init__(self) -> None:
        if _open:
            raise RuntimeError("a Clock is in use already; close it first: there is one at a time")
        _open.append(self)
        self._loops: dict[asyncio.AbstractEventLoop, MovedLoop] = {}
        self._closed = False
        move()

    @property
    def passed(self) -> float:
        """The seconds that the test has let pass so far."""
        return of_the_hub.moved_by()

    def time(self) -> float:
        """The wall clock as the hub sees it, in seconds since 1970: for `exp` of a token."""
        return of_the_hub.time()

    def monotonic(self) -> float:
        """The monotonic clock as the hub sees it."""
        return of_the_hub.monotonic()

    def attach(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Moves the clock of a loop along, until `close`. Twice is once.

        Args:
            loop: None for the running one.

        Raises:
            RuntimeError: its clock cannot be moved, no loop runs, or this Clock is closed.
        """
        if self._closed:
            raise RuntimeError("this Clock is closed")
        loop = loop or asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = MovedLoop(loop)

    async def advance(self, seconds: float) -> None:
        """Lets time pass, timer by timer, at once.

        It stops at each timer that is due, or up to a three hundredth of `seconds` later, and has
        the loop take some turns there and wait for sockets for a millisecond. A store or a bus that
        needs longer for its answer finds that more time has passed.

        Args:
            seconds: to let pass, 0 or more.

        Raises:
            ValueError: it is below 0, or no finite number.
            RuntimeError: the loop's clock cannot be moved.
        """
        if not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            raise ValueError(f"seconds must be a number of 0 or more, not {seconds!r}")
        self.attach()
        end = of_the_hub.monotonic() + seconds
        least = seconds / _STEPS
        await self._settle()
        while (left := end - of_the_hub.monotonic()) > 0:
            due = min(moved.next_due() - moved.time() for moved in self._loops.values())
            self._move(min(left, max(due, least, 0.0)))
            await self._settle()

    def _move(self, seconds: float) -> None:
        of_the_hub.move(of_the_hub.moved_by() + seconds)
        running = asyncio.get_running_loop()
        for loop, moved in self._loops.items():
            if loop is running:
                moved.moved()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(moved.moved)

    async def _settle(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        # On the machine's clock, since the loop's goes on as fast.
        await asyncio.sleep(_PAUSE)
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def close(self) -> None:
        """Gives all clocks back. The hubs have to be stopped before."""
        if self._closed:
            return
        self._closed = True
        for loop, moved in self._loops.items():
            if not loop.is_closed():
                moved.release()
        of_the_hub.move(0.0)
        give_back()
        _open.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class BlockingClock:
    """A Clock for tests without a loop: it sets the clocks of the hub in a thread.

    Args:
        clock: a Clock.
        thread: that the hub runs in.

    Thread-safety: any thread but that one.
    """

    def __init__(self, clock: Clock, thread: LoopThread) -> None:
        self._clock = clock
        self._thread = thread
        thread.run(clock.attach)

    @property
    def passed(self) -> float:
        """See `Clock.passed`."""
        return self._clock.passed

    def time(self) -> float:
        """See `Clock.time`."""
        return self._clock.time()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._clock.monotonic()

    def advance(self, seconds: float) -> None:
        """See `Clock.advance`; it returns once the time has passed."""
        self._thread.call(self._clock.advance(seconds))
