"""The words of this hub on their way to other hubs: all of one tick go in one call of the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from wsc_fast.bus.base import MOST_ENTRY_BYTES, Bus, Word
from wsc_fast.cluster.counters import Counters
from wsc_fast.errors import BusUnavailableError, ValidationError
from wsc_fast.log import log

# Bytes of words that wait for the bus or its answer, at most, and the bytes of memory of each word
# beside its data, about.
MOST_WAITING, OVERHEAD = 16 << 20, 400
# Words of one call of the bus.
AT_ONCE = 256

Told = Callable[[int, Exception | None], object]


def check_size(data: bytes) -> None:
    """Raises ValidationError for a word that is too large for a bus."""
    if len(data) > MOST_ENTRY_BYTES:
        raise ValidationError(
            f"a message takes at most {MOST_ENTRY_BYTES} bytes on a bus, not {len(data)}"
        )


class Teller:
    """Sends words, in the order of the calls.

    Args:
        bus: the bus, while it is open; None before and after.
        counters: of the hub.

    Thread-safety: the loop's thread.
    """

    def __init__(self, bus: Callable[[], Bus | None], counters: Counters) -> None:
        self._bus = bus
        self._counters = counters
        self._loop: asyncio.AbstractEventLoop | None = None
        # By whether a word may come twice, and whether it is for one hub: the words of one call of
        # the bus share their fate.
        self._waiting: dict[tuple[bool, bool], list[tuple[Word, Told | None]]] = {
            (again, to_hub): [] for again in (False, True) for to_hub in (False, True)
        }
        self._waiting_bytes = 0
        self._flushing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop."""
        self._loop = loop

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed: nobody hears what becomes of the words."""
        self._loop = None
        for waiting in self._waiting.values():
            waiting.clear()
        self._waiting_bytes = 0
        self._flushing = False
        self._tasks.clear()  # a task of a closed loop cannot be cancelled

    async def finish(self, timeout: float) -> None:
        """Waits for what is on its way; for so many seconds at most. The rest has its error."""
        self._flush()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def tell(self, word: Word, *, again: bool, told: Told | None = None) -> None:
        """Sends a word to the other hubs that have its user.

        Args:
            word: which.
            again: whether it may come twice. Else it is lost where nobody knows whether it came.
            told: gets how many hubs have got it, or the error.

        Raises:
            ValidationError: it is too large for a bus.
        """
        check_size(word.data)
        if self._loop is None or self._waiting_bytes + len(word.data) > MOST_WAITING:
            why = (
                "the bus is not open"
                if self._loop is None
                else f"more than {MOST_WAITING} bytes of words wait for the bus"
            )
            self._failed([(word, told)], BusUnavailableError(why))
            return
        self._waiting[again, bool(word.hub)].append((word, told))
        self._waiting_bytes += len(word.data) + OVERHEAD
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    async def told(self, word: Word, *, again: bool) -> int:
        """Sends a word; returns how many hubs have got it.

        Raises:
            BusError: the bus did not take it.
            ValidationError: it is too large for a bus.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def told(count: int, error: Exception | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(count)
            else:
                answer.set_exception(error)

        self.tell(word, again=again, told=told)
        return await answer

    def _flush(self) -> None:
        self._flushing = False
        if self._loop is None:
            return
        for (again, _), waiting in self._waiting.items():
            for start in range(0, len(waiting), AT_ONCE):
                some = waiting[start : start + AT_ONCE]
                self.run(self._send(some, again))
            waiting.clear()

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs what is done for other hubs; `finish` waits for it."""
        assert self._loop is not None
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, words: list[tuple[Word, Told | None]], again: bool) -> None:
        bus, loop = self._bus(), self._loop
        try:
            if bus is None:
                raise BusUnavailableError("the bus is not open")
            counts = await bus.tell([word for word, _ in words], again)
        except Exception as error:
            self._failed(words, error)
            return
        except asyncio.CancelledError:
            self._failed(words, BusUnavailableError("the hub has stopped"))
            raise
        finally:
            if self._loop is loop:  # else they are forgotten
                self._waiting_bytes -= sum(len(word.data) + OVERHEAD for word, _ in words)
        self._counters.words_sent += len(words)
        for (_, told), count in zip(words, counts, strict=True):
            if told is not None:
                told(count, None)

    def _failed(self, words: list[tuple[Word, Told | None]], error: Exception) -> None:
        self._counters.words_failed += len(words)
        log.warning(
            "other hubs were not told of messages to users: %s",
            error,
            extra={"event": "words_failed", "error": str(error)},
        )
        for _, told in words:
            if told is not None:
                told(0, error)
