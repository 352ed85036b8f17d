"""The newest accepted messages of rooms, for a while: this hub notices if the bus loses them.

A chain notices the loss of what it has. These are the others: a message that this hub published has
an answer of the bus, and nobody here follows the room, or the message has not come yet. A bus loses
what it took in its last seconds, so that a minute is enough. It does so between two connections:
where a room has a later message since, the newest one of the connection before is looked up, too.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from wsc_fast.bus.base import Published, Retention
from wsc_fast.cluster.reads import Answer
from wsc_fast.errors import BusError

# Seconds for which a position is known, at least, and the rooms that are known at most.
KNOWN_SECONDS, MOST_ROOMS = 60.0, 10_000
# Rooms of one question for positions.
_AT_ONCE = 500

Tops = Callable[[Sequence[str]], Awaitable[Sequence[str | None]]]
Read = Callable[[str, str | None, int, Retention], Answer]
Mark = Callable[[str, str, Retention], Awaitable[Published]]


class _Place(NamedTuple):
    """The newest accepted message of a room.

    Attributes:
        position: of it.
        since: when it was accepted.
        retention: of the room.
        link: the connection over which it went, see `Bus.link`.
    """

    position: str
    since: float
    retention: Retention
    link: int


class Accepted:
    """The accepted messages of one hub.

    Args:
        has_come: whether a chain has this position of a room, and so notices its loss.
        tops, read: ask the bus.
        mark: puts a mark into a history.
        link: see `Bus.link`.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        has_come: Callable[[str, str], bool],
        tops: Tops,
        read: Read,
        mark: Mark,
        link: Callable[[str], int],
    ) -> None:
        self._has_come = has_come
        self._tops = tops
        self._read = read
        self._mark = mark
        self._link = link
        self._places: OrderedDict[str, _Place] = OrderedDict()  # the oldest first
        # Places of earlier connections, which are looked up once.
        self._earlier: deque[tuple[str, _Place]] = deque(maxlen=MOST_ROOMS)

    def __len__(self) -> int:
        return len(self._places) + len(self._earlier)

    def note(self, room: str, position: str, now: float, retention: Retention) -> None:
        """The bus has this message of a room."""
        before, link = self._places.get(room), self._link(room)
        if before is not None and before.link != link:
            self._earlier.append((room, before))
        self._places[room] = _Place(position, now, retention, link)
        self._places.move_to_end(room)
        if len(self._places) > MOST_ROOMS:
            self._places.popitem(last=False)

    def position_of(self, room: str) -> str | None:
        """The position that is known of a room."""
        place = self._places.get(room)
        return None if place is None else place.position

    def forget(self) -> None:
        """The hub has stopped."""
        self._places.clear()
        self._earlier.clear()

    async def check(self, now: float) -> None:
        """Looks whether the bus has them, and marks the rooms of those that it has lost.

        Where the bus does not answer, the next check looks again.
        """
        rooms = list(self._places)
        try:
            while self._earlier:
                room, place = earlier = self._earlier[0]
                if not self._has_come(room, place.position):
                    await self._is_there(room, place)
                if self._earlier and self._earlier[0] is earlier:
                    self._earlier.popleft()
            for start in range(0, len(rooms), _AT_ONCE):
                some = self._not_come(rooms[start : start + _AT_ONCE])
                for room, top in zip(some, await self._tops(some), strict=True):
                    await self._check(room, top, now)
        except (BusError, OSError):
            return

    def _not_come(self, rooms: Sequence[str]) -> list[str]:
        found = []
        for room in rooms:
            place = self._places.get(room)
            if place is not None and self._has_come(room, place.position):
                del self._places[room]
            elif place is not None:
                found.append(room)
        return found

    async def _check(self, room: str, top: str | None, now: float) -> None:
        place = self._places.get(room)
        if place is None:
            return
        if place.position != top:
            if await self._is_there(room, place) and now - place.since < KNOWN_SECONDS:
                return
        elif now - place.since < KNOWN_SECONDS:
            return
        if self._places.get(room) is place:
            del self._places[room]

    async def _is_there(self, room: str, place: _Place) -> bool:
        """Whether the history has this message still; if it is lost, the room gets a mark."""
        page = await self._read(room, place.position, 1, place.retention)
        if page.loss:
            await self._mark(room, page.loss, place.retention)
        return page.contiguous
