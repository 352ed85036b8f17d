"""A thread that notices when a callback blocks the loop, and says which one.

The loop marks the time now and then; if it has not for `timeout` seconds, the stack of its thread
is logged, once for each time that it is blocked.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback

from wsc_fast.log import log


class Watchdog:
    """Watches one loop.

    Args:
        timeout: seconds without a turn of the loop until it counts as blocked.

    `start` and `stop` in the loop's thread.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._turns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = threading.Event()
        self.blocked = 0  # how often

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._over = threading.Event()
        self._turn()
        threading.Thread(
            target=self._watch,
            args=(threading.get_ident(), self._over),
            name="wsc_fast watchdog",
            daemon=True,
        ).start()

    def stop(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        assert self._loop is not None
        self._turns += 1
        self._timer = self._loop.call_later(self._timeout / 4, self._turn)

    def _watch(self, thread: int, over: threading.Event) -> None:
        seen, told = 0, False
        while not over.wait(self._timeout):
            if self._turns != seen:
                seen, told = self._turns, False
            elif not told:
                told = True
                self.blocked += 1
                frame = sys._current_frames().get(thread)
                stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
                del frame
                log.warning(
                    "the loop has made no turn for %.3g s; its thread is here:\n%s",
                    self._timeout,
                    stack,
                )
