"""Deadlines on a hub's timers, in place of `loop.call_later` and `asyncio.timeout`.

After the loop stood still, its own timers may fire before it has read what waits in the sockets. A
hub's timers let the loop have some turns first (timers.pxd), and do not all fire in one turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from wsc_fast._core.timers import Timers


class Deadline:
    """A call when a time has passed, unless it is cancelled before.

    Args:
        timers: on a loop; their items are called.
        seconds: from now on.
        call: what is called.

    Attributes:
        due: when, by the loop's clock.

    Thread-safety: the loop's thread.
    """

    __slots__ = ("_call", "_slot", "_timers", "due")

    def __init__(
        self, timers: Timers[Callable[[], object]], seconds: float, call: Callable[[], object]
    ) -> None:
        assert timers.loop is not None
        self._timers = timers
        self._call = call
        self.due: float = timers.loop.time() + seconds
        self._slot = timers.set(self, self.due)

    def __call__(self) -> None:
        self._call()

    def cancel(self) -> None:
        """Takes the call back, and keeps no reference to what would have been called."""
        self._timers.cancel(self, self._slot)
        self._call = _nothing


def _nothing() -> None:
    pass


@asynccontextmanager
async def time_limit(
    timers: Timers[Callable[[], object]], seconds: float
) -> AsyncIterator[asyncio.Timeout]:
    """As `asyncio.timeout`.

    Args:
        timers: on the running loop; their items are called.
        seconds: from now on; then the task is cancelled and TimeoutError raised.

    Returns:
        the asyncio.Timeout, for `expired()`.
    """
    async with asyncio.timeout(None) as limit:
        deadline = Deadline(timers, seconds, partial(limit.reschedule, 0.0))
        try:
            yield limit
        finally:
            deadline.cancel()
