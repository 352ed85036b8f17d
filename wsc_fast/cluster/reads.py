"""The reads of histories that one hub has under way: a few at once, others wait.

Each page may have megabytes. So no read begins either while as many pages wait to be dealt with.
Each server of the bus has an equal share, so that reads of one that is away do not hold up others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from functools import partial

from wsc_fast.bus.base import Page, Retention
from wsc_fast.cluster.turns import Turns

# So many reads are under way at once.
MOST_READS = 64

Answer = asyncio.Future[Page]
_Arguments = tuple[str, str | None, int, Retention]
Ask = Callable[[str, str | None, int, Retention], Awaitable[Page]]


class Reads:
    """The reads of one hub.

    Args:
        ask: reads from the bus.
        server_of: the number of the server that has a room.
        servers: how many there are.
        turns: of the hub, in which the pages are dealt with.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        ask: Ask,
        server_of: Callable[[str], int],
        servers: Callable[[], int],
        turns: Turns,
    ) -> None:
        self._ask = ask
        self._server_of = server_of
        self._servers = servers
        self._turns = turns
        # By the number of the server.
        self._waiting: dict[int, deque[tuple[Answer, _Arguments]]] = defaultdict(deque)
        self._under_way: dict[int, set[Answer]] = defaultdict(set)

    def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Answer:
        """Reads, see `Bus.read`; now or when it is its turn."""
        server = self._server_of(room)
        if not self._waiting[server] and self._may_read(server):
            return self._begin(server, (room, since, limit, retention))
        answer: Answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_look_at_error)
        self._waiting[server].append((answer, (room, since, limit, retention)))
        return answer

    def _may_read(self, server: int) -> bool:
        share = max(1, MOST_READS // self._servers())
        return len(self._under_way[server]) < share and len(self._turns) < MOST_READS

    def _begin(self, server: int, arguments: _Arguments) -> Answer:
        answer = asyncio.ensure_future(self._ask(*arguments))
        if not answer.done():
            self._under_way[server].add(answer)
            answer.add_done_callback(_look_at_error)
            answer.add_done_callback(partial(self._ended, server))
        return answer

    def _ended(self, server: int, answer: Answer) -> None:
        self._under_way[server].discard(answer)
        self.go_on()

    def go_on(self) -> None:
        """Begins reads that have waited, if they may."""
        for server, waiting in list(self._waiting.items()):
            while waiting and self._may_read(server):
                waiter, arguments = waiting.popleft()
                if not waiter.done():
                    answer = self._begin(server, arguments)
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
