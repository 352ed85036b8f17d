"""The tasks of a hub: async callbacks and authentications. Its stop lets them end, or ends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

from wsc_fast._core.engine import Engine

# Seconds that a callback may take that begins when the timeout of a stop is over.
_LAST_WORDS = 1.0


class Tasks:
    """The tasks of one hub.

    Args:
        engine: of the hub; it knows the loop.

    Thread-safety: the loop's thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
        """Runs a coroutine as a task of the hub, in a context."""
        # The set keeps the task alive: the loop itself holds it only weakly.
        assert self._engine.loop is not None
        task: asyncio.Task[Any] = self._engine.loop.create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def under_way(self) -> set[asyncio.Task[Any]]:
        """The tasks that run at this moment."""
        return set(self._tasks)

    async def finish(
        self, begun: set[asyncio.Task[Any]], deadline: float, callers: set[asyncio.Task[Any]]
    ) -> None:
        """Callbacks under way may finish, but for those that wait for this very stop.

        Args:
            begun: those that may take until the deadline. The others tell of a disconnect at the
                end, or of one that waited for a callback which was cancelled: they may take a
                second in any case.
            deadline: by the monotonic clock.
            callers: those that have called the stop.
        """
        await _finish(begun & self._tasks - callers, deadline)
        await _finish(self._tasks - callers, max(deadline, time.monotonic() + _LAST_WORDS))

    def forget(self) -> None:
        """Their loop was closed."""
        self._tasks.clear()


async def _finish(tasks: set[asyncio.Task[Any]], deadline: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1.0)
