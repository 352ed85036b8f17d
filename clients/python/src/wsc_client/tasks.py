"""The tasks of a client: kept alive, and ended with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Tasks that run until they are done or the client ends."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()
        self._closing: set[asyncio.Future[Any]] = set()

    def spawn(
        self, coroutine: Coroutine[Any, Any, Any], *, closing: bool = False
    ) -> asyncio.Task[Any]:
        """Runs a coroutine, which has to keep its exceptions to itself.

        Args:
            closing: it ends by itself once the client is closed.
        """
        task = asyncio.get_running_loop().create_task(coroutine)
        for some in (self._tasks, self._closing) if closing else (self._tasks,):
            some.add(task)
            task.add_done_callback(some.discard)
        return task

    def await_(
        self,
        awaitable: Awaitable[T],
        then: Callable[[T], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Awaits what a function of the application has returned.

        Args:
            awaitable: it.
            then: called with its result.
            failed: called with its exception; neither of them where it is cancelled.
        """

        def done(future: asyncio.Future[T]) -> None:
            self._tasks.discard(future)
            if future.cancelled():
                return
            error = future.exception()
            if isinstance(error, Exception):
                failed(error)
            elif error is None:
                then(future.result())

        future = asyncio.ensure_future(awaitable)
        self._tasks.add(future)
        future.add_done_callback(done)

    async def finish(self, patience: float) -> None:
        """Waits for the tasks that close, and cancels the others, but for the one that calls this.

        Args:
            patience: seconds for those that close; then they are cancelled, too.
        """
        closing = self._closing - {asyncio.current_task()}
        others = self._tasks - closing - {asyncio.current_task()}
        for task in others:
            task.cancel()
        try:
            if closing:
                await asyncio.wait(closing, timeout=patience)
        finally:
            for task in closing:
                task.cancel()
        if closing | others:
            await asyncio.wait(closing | others)
