"""A companion of a hub that is called again and again while the hub runs."""

from __future__ import annotations

import asyncio
from contextvars import Context


class Periodic:
    """Calls its own `tick` every so often, from the start of its hub on to the stop.

    Args:
        every: seconds between two calls.

    Thread-safety: the loop's thread.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._timer: asyncio.TimerHandle | None = None

    def started(self) -> None:
        """The first interval begins."""

    def tick(self) -> None:
        """An interval is over."""

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts."""
        self.begin(loop)

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Calls from now on; nothing where it does so already."""
        if self._timer is None:
            self.started()
            self._wait(loop)

    def close(self) -> None:
        """The hub has stopped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self) -> None:
        """The hub's loop was closed, or this is the child of a fork."""
        self._timer = None

    def descriptors(self) -> list[int]:
        """Of its sockets: it has none."""
        return []

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # In no context of a client that may have caused the start.
        self._timer = loop.call_later(self._every, self._call, loop, context=Context())

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wait(loop)
        self.tick()
