"""The lag of the loop: a timer of its own, and by how much it comes late.

The heartbeat's timers are of no use for that: they stand in slots of 10 ms, and wait while the loop
is late.
"""

from __future__ import annotations

import asyncio
from contextvars import Context

from wsc_fast._core import clock
from wsc_fast._core.histogram import Histogram

# Seconds between two looks. A loop that stands still for so long is seen in any case.
EVERY = 0.25


class LoopLag:
    """The lag of the loop that a hub runs on.

    Attributes:
        seconds: by how much the timer came late.

    Thread-safety: the loop's thread.
    """

    def __init__(self) -> None:
        self.seconds: Histogram = Histogram(128e-6)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks from now on; the hub has started."""
        self.begin(loop)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks from now on."""
        if self._timer is None:
            self._set(loop)

    def close(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self) -> None:
        """The loop was closed, or is another process's."""
        self._timer = None

    def descriptors(self) -> list[int]:
        """Of its sockets: it has none."""
        return []

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = clock.monotonic() + EVERY
        # In no context of a client that may have caused the start.
        self._timer = loop.call_later(EVERY, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self.seconds.observe(clock.monotonic() - self._due)
        self._set(loop)
