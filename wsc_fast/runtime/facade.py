"""The part of the hub's face that is about its life in a process: a base of Hub.

life.py, hooks.py and tasks.py do the work of these calls.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from wsc_fast._core.calls import Calls
from wsc_fast.config.kinds import FOREVER
from wsc_fast.errors import ValidationError
from wsc_fast.runtime.hooks import LifeHooks
from wsc_fast.runtime.life import Life
from wsc_fast.runtime.signatures import OfHub
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.runtime.threads import ThreadCalls

T = TypeVar("T")


class LifeFace(Calls):
    """Base of Hub: its end, callbacks around its life, and tasks that end with it (internal)."""

    _calls: ThreadCalls
    _life: Life
    _hooks: LifeHooks
    _tasks: Tasks

    def on_startup(self, fn: OfHub) -> OfHub:
        """Has `fn()` called at each start, on the hub's loop, before the first client can connect.

        Args:
            fn: plain or async; its end is waited for, but not that of a task of `create_task` that
                it returns. If it raises, the start ends with that exception, and the hub does not
                run. Several are called in the order of their registration.

        Returns:
            fn, so that this works as a decorator too.

        Raises:
            ValidationError: fn cannot be called, or takes an argument.

        Thread-safety: any thread. Source: ASGI's lifespan.
        """
        return self._hooks.add_startup(fn)

    def on_shutdown(self, fn: OfHub) -> OfHub:
        """Has `fn()` called when the hub begins to stop, while its clients are still connected.

        Messages that it sends reach them before the close. It is called once for each start that
        got through all startup callbacks.

        Args:
            fn: plain or async; its end is waited for, within the timeout of the stop. An exception
                goes to `on_error`, and the stop goes on. Several are called in the order of their
                registration.

        Returns:
            fn, so that this works as a decorator too.

        Raises:
            ValidationError: fn cannot be called, or takes an argument.

        Thread-safety: any thread. Source: ASGI's lifespan.
        """
        return self._hooks.add_shutdown(fn)

    def create_task(
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Runs a coroutine on the hub's loop as a task that ends with the hub.

        The hub keeps it alive. A stop cancels it once the shutdown callbacks have ended, while the
        clients are still connected, and waits for its end within the timeout. An exception goes to
        `on_error`.

        Args:
            coro: a coroutine.
            name: of the task.

        Returns:
            asyncio.Task: it belongs to the hub's loop.

        Raises:
            HubStateError: the hub does not run, or is stopping; the coroutine is closed.
            ValidationError: coro is no coroutine.

        Thread-safety: any thread. Source: asyncio `create_task`.
        """
        if not inspect.iscoroutine(coro):
            raise ValidationError(f"coro must be a coroutine, not {type(coro).__name__}")
        try:
            return self._calls.run(partial(self._tasks.start, coro, name))
        except BaseException:
            coro.close()
            raise

    async def stop(self, timeout: float = 5.0) -> None:
        """Stops gracefully: accepts nothing more, flushes outboxes, closes all with 1001.

        Args:
            timeout: seconds; connections that are not closed by then are aborted, and async
                callbacks that are under way then are cancelled. Callbacks that hear of a disconnect
                have a second.

        Raises:
            ValidationError: the timeout is no number of seconds.

        Idempotent: a second call waits for the first. The hub can be started again afterwards.
        Thread-safety: any thread, from within any loop. Source: go-wsc `Stop`.
        """
        await self._life.stop(_checked_seconds("timeout", timeout))

    async def drain(self, period: float = 10.0) -> None:
        """Sends the clients away with 1012, a few at a time, so that not all come back at once.

        Where another process may serve the port (`sock`, `reuse_port`), the hub accepts nothing
        more: clients that connect from now on are that process's. Else new upgrades get 503 from
        now on, while routes go on being served. `stop` is to follow.

        Args:
            period: seconds that it takes at most; it ends once nobody is connected. Connections
                that were accepted before, and have not asked for their upgrade yet, have one second
                at the least.

        Raises:
            ValidationError: the period is no number of seconds.

        Thread-safety: any thread, from within any loop.
        """
        await self._life.drain(_checked_seconds("period", period))


def _checked_seconds(what: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValidationError(f"{what} must be a number of seconds, not {value!r}")
    return float(min(value, FOREVER))  # type: ignore[call-overload]
