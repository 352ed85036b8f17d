"""A loop in a thread of its own, for tests that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import uvloop

_T = TypeVar("_T")


class LoopThread:
    """A uvloop in a thread, which runs coroutines for threads without a loop.

    Thread-safety: any thread but its own.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="hub", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the loop, and waits for it.

        Args:
            coroutine: to be run.

        Returns:
            what it returns; what it raises is raised.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def run(self, function: Callable[[], _T]) -> _T:
        """Calls a plain function in the thread, and waits for it.

        Args:
            function: to be called without arguments.

        Returns:
            what it returns; what it raises is raised.
        """

        async def called() -> _T:
            return function()

        return self.call(called())

    def close(self) -> None:
        """Ends the thread and closes the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
