"""The application's callbacks around the life of a hub: `on_startup` and `on_shutdown`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from wsc_fast._core.upward import Handlers
from wsc_fast.log import log
from wsc_fast.runtime.inbox import is_awaitable
from wsc_fast.runtime.signatures import OfHub, checked_callback


class LifeHooks:
    """The startup and shutdown callbacks of one hub.

    Args:
        report: counts and logs an exception, and tells the on_error callbacks.
        goes_on: whether a callback's result is a task that is to go on while the hub runs.

    Thread-safety: the loop's thread, but for `add_...`.
    """

    def __init__(
        self, report: Callable[[BaseException], None], goes_on: Callable[[object], bool]
    ) -> None:
        self._report = report
        self._goes_on = goes_on
        self._adding = threading.Lock()
        self._on_startup: Handlers = ()
        self._on_shutdown: Handlers = ()
        # All startup callbacks have ended well, and no shutdown callback was called since.
        self._started = False
        self._ending: asyncio.Task[None] | None = None

    def add_startup(self, fn: OfHub) -> OfHub:
        """`fn()` before the hub listens."""
        with self._adding:
            self._on_startup += (checked_callback(fn),)
        return fn

    def add_shutdown(self, fn: OfHub) -> OfHub:
        """`fn()` when the hub begins to stop."""
        with self._adding:
            self._on_shutdown += (checked_callback(fn),)
        return fn

    async def start_up(self, check: Callable[[], None]) -> None:
        """Calls the startup callbacks, one after the other; the first exception ends it.

        Args:
            check: raises where the hub was stopped meanwhile, by a callback or by others.
        """
        self._started = False
        for fn in self._on_startup:
            result = fn()
            # `lambda: hub.create_task(tick())` returns a task that ends with the hub alone.
            if is_awaitable(result) and not self._goes_on(result):
                await result
            check()
        self._started = True

    def is_shutting_down(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task calls the shutdown callbacks: it may not wait for their end."""
        return task is not None and task is self._ending

    async def shut_down(self, timeout: float) -> None:
        """Calls the shutdown callbacks, one after the other, once for each start.

        Args:
            timeout: seconds; then the one under way is cancelled, and the others are not called.
        """
        if not self._started:
            return
        self._started = False
        if not self._on_shutdown:
            return
        self._ending = asyncio.get_running_loop().create_task(self._call_all())
        try:
            _, late = await asyncio.wait([self._ending], timeout=max(0.0, timeout))
            if late:
                log.warning(
                    "on_shutdown took longer than the timeout of the stop (%.3g s): it is "
                    "cancelled, and the hub goes on stopping",
                    timeout,
                    extra={"event": "shutdown_timeout"},
                )
                self._ending.cancel()
                await asyncio.wait([self._ending], timeout=1.0)
        finally:
            self._ending.cancel()  # this stop itself was cancelled
            self._ending = None

    def cut_short(self) -> None:
        """Cancels the shutdown callback under way; the others are not called."""
        if self._ending is not None:
            self._ending.cancel()

    async def _call_all(self) -> None:
        for fn in self._on_shutdown:
            try:
                result = fn()
                if is_awaitable(result):
                    await result
            except BaseException as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._report(error)

    def forget(self) -> None:
        """The loop was closed under the hub."""
        self._started = False
        self._ending = None
