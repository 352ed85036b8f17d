"""The tasks of a hub. Its stop lets async callbacks and authentications end, or ends them.

Tasks of the application's own (`create_task`) are cancelled first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, TypeVar

from wsc_fast._core import clock
from wsc_fast._core.engine import Engine
from wsc_fast.errors import HubStateError, HubStoppedError
from wsc_fast.log import log

# Seconds that a callback may take that begins when the timeout of a stop is over.
_LAST_WORDS = 1.0

T = TypeVar("T")


class Tasks:
    """The tasks of one hub.

    Args:
        engine: of the hub; it knows the loop.
        report: counts and logs an exception, and tells the on_error callbacks.

    Thread-safety: the loop's thread.
    """

    def __init__(self, engine: Engine, report: Callable[[BaseException], None]) -> None:
        self._engine = engine
        self._report = report
        self._tasks: set[asyncio.Task[Any]] = set()
        self._own: set[asyncio.Task[Any]] = set()  # the application's
        self._spared: set[asyncio.Task[Any]] = set()  # those that have called the stop
        self._stopping = False

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

    def start(self, coroutine: Coroutine[Any, Any, T], name: str | None) -> asyncio.Task[T]:
        """See `Hub.create_task`."""
        loop = self._engine.loop
        if loop is None or loop.is_closed():
            raise HubStateError("the hub does not run: a task of it begins once it has started")
        if self._stopping:
            raise HubStoppedError("the hub is stopping: it begins no task any more")
        task: asyncio.Task[T] = loop.create_task(coroutine, name=name)
        self._own.add(task)
        task.add_done_callback(self._ended)
        return task

    def has_started(self, result: object) -> bool:
        """Whether this is a task of `Hub.create_task` that goes on."""
        return isinstance(result, asyncio.Task) and result in self._own

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._own.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._report(error)

    @contextmanager
    def spared(self, caller: asyncio.Task[Any]) -> Iterator[None]:
        """While a task has called the stop, the hub does not end it: the stop would end with it."""
        self._spared.add(caller)
        try:
            yield
        finally:
            self._spared.discard(caller)

    def cancel(self, task: asyncio.Task[Any]) -> bool:
        """Cancels a task, unless it has called the stop; returns whether it did."""
        return task not in self._spared and task.cancel()

    async def end_own(self, deadline: float) -> None:
        """Cancels the tasks of the application's, and waits for their ends.

        Args:
            deadline: by the monotonic clock.
        """
        self._stopping = True
        ending = self._own - self._spared
        if not ending:
            return
        for task in ending:
            task.cancel()
        timeout = max(_LAST_WORDS, deadline - clock.monotonic())
        _, late = await asyncio.wait(ending, timeout=timeout)
        for task in late:
            log.warning(
                "the task %a goes on though it was cancelled: the stop waits no longer for it",
                task.get_name(),
                extra={"event": "task_left", "task": task.get_name()},
            )

    def begin(self) -> None:
        """The hub starts: it takes tasks again."""
        self._stopping = False

    def under_way(self) -> set[asyncio.Task[Any]]:
        """The tasks that run at this moment."""
        return set(self._tasks)

    async def finish(self, begun: set[asyncio.Task[Any]], deadline: float) -> None:
        """Callbacks under way may finish, but for those that wait for this very stop.

        Args:
            begun: those that may take until the deadline. The others tell of a disconnect at the
                end, or of one that waited for a callback which was cancelled: they may take a
                second in any case.
            deadline: by the monotonic clock.
        """
        await _finish(begun & self._tasks - self._spared, deadline)
        await _finish(self._tasks - self._spared, max(deadline, clock.monotonic() + _LAST_WORDS))

    def forget(self) -> None:
        """Their loop was closed."""
        self._tasks.clear()
        self._own.clear()
        self._spared.clear()
        self._stopping = False


async def _finish(tasks: set[asyncio.Task[Any]], deadline: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=max(0.0, deadline - clock.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1.0)
