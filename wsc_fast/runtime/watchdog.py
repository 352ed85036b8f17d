"""A thread that notices when a callback blocks the loop, and says which one.

The loop counts its turns, four times in `timeout` seconds; where the count has stood still for so
long, the stack of its thread is logged, once for each time that it is blocked. A block of one and a
half times as long is always seen.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback

from wsc_fast.log import log

_LOOKS = 4  # in `timeout` seconds


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
        self._timer = self._loop.call_later(self._timeout / _LOOKS, self._turn)

    def _watch(self, thread: int, over: threading.Event) -> None:
        seen = still = 0
        while not over.wait(self._timeout / _LOOKS):
            if self._turns != seen:
                seen, still = self._turns, 0
                continue
            still += 1
            if still == _LOOKS:
                frame = sys._current_frames().get(thread)
                stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
                del frame
                log.warning(
                    "the loop has made no turn for %.3g s; its thread is here:\n%s",
                    self._timeout,
                    stack,
                    extra={"event": "loop_blocked"},
                )
