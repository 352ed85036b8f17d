"""The reads of histories that one hub has under way: a few at once, others wait.

Each page may have megabytes. So no read begins either while as many pages wait to be dealt with.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from wsc_fast.bus.base import Page, Retention
from wsc_fast.cluster.turns import Turns

# So many reads are under way at once.
MOST_READS = 64

Answer = asyncio.Future[Page]
Ask = Callable[[str, str | None, int, Retention], Awaitable[Page]]


class Reads:
    """The reads of one hub.

    Args:
        ask: reads from the bus.
        turns: of the hub, in which the pages are dealt with.

    Thread-safety: the loop's thread.
    """

    def __init__(self, ask: Ask, turns: Turns) -> None:
        self._ask = ask
        self._turns = turns
        self._waiting: deque[tuple[Answer, tuple[str, str | None, int, Retention]]] = deque()
        self._under_way: set[Answer] = set()

    def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Answer:
        """Reads, see `Bus.read`; now or when it is its turn."""
        if not self._waiting and self._may_read():
            return self._begin((room, since, limit, retention))
        answer: Answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_look_at_error)
        self._waiting.append((answer, (room, since, limit, retention)))
        return answer

    def _may_read(self) -> bool:
        return len(self._under_way) < MOST_READS and len(self._turns) < MOST_READS

    def _begin(self, arguments: tuple[str, str | None, int, Retention]) -> Answer:
        answer = asyncio.ensure_future(self._ask(*arguments))
        if not answer.done():
            self._under_way.add(answer)
            answer.add_done_callback(_look_at_error)
            answer.add_done_callback(self._ended)
        return answer

    def _ended(self, answer: Answer) -> None:
        self._under_way.discard(answer)
        self.go_on()

    def go_on(self) -> None:
        """Begins reads that have waited, if they may."""
        while self._waiting and self._may_read():
            waiter, arguments = self._waiting.popleft()
            if not waiter.done():
                answer = self._begin(arguments)
                answer.add_done_callback(partial(_pass_on, waiter))

    def forget(self) -> None:
        """The hub has stopped: nobody waits for any answer."""
        self._waiting.clear()
        self._under_way.clear()


def _pass_on(waiter: Answer, answer: Answer) -> None:
    if waiter.done():
        return
    if answer.cancelled():
        waiter.cancel()
    elif (error := answer.exception()) is not None:
        waiter.set_exception(error)
    else:
        waiter.set_result(answer.result())


def _look_at_error(answer: Answer) -> None:
    """Looks at the error of a read for which nobody waits any more, so that asyncio does not."""
    if not answer.cancelled():
        answer.exception()
