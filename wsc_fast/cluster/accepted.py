"""The newest accepted messages of rooms, for a while: this hub notices if the bus loses them.

A chain notices the loss of what it has. These are the others: a message that this hub published has
an answer of the bus, and nobody here follows the room, or the message has not come yet. A bus loses
what it took in its last seconds, so that a minute is enough. It does so between two connections:
where a room has a later message since, the newest one of the connection before is looked up, too.
So is one that a chain knows to be lost, where the bus did not take the mark.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from wsc_fast.bus.base import Published, Retention, Way
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
        room: its id.
        position: of the message.
        since: when it was accepted.
        retention: of the room.
        way: on which it went.
    """

    room: str
    position: str
    since: float
    retention: Retention
    way: Way


class Accepted:
    """The accepted messages of one hub.

    Args:
        has_come: whether a chain has this position of a room, and so notices its loss.
        tops, read: ask the bus.
        mark: puts a mark into a history.
        refused: hears that a server refuses to answer, or to take a mark.
        way: see `Bus.way`.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        has_come: Callable[[str, str], bool],
        tops: Tops,
        read: Read,
        mark: Mark,
        refused: Callable[[BusError], object],
        way: Callable[[str], Way],
    ) -> None:
        self._has_come = has_come
        self._tops = tops
        self._read = read
        self._mark = mark
        self._refused = refused
        self._way = way
        self._places: OrderedDict[str, _Place] = OrderedDict()  # the oldest first
        # Of earlier connections, and lost ones, by room and position: each is looked up once.
        self._earlier: OrderedDict[tuple[str, str], _Place] = OrderedDict()

    def note(self, room: str, position: str, now: float, retention: Retention) -> None:
        """The bus has this message of a room."""
        before, way = self._places.get(room), self._way(room)
        if before is not None and before.way != way:
            self._note_earlier(before)
        self._places[room] = _Place(room, position, now, retention, way)
        self._places.move_to_end(room)
        if len(self._places) > MOST_ROOMS:
            self._places.popitem(last=False)

    def note_lost(self, room: str, position: str, now: float, retention: Retention) -> None:
        """The bus has lost this message, and its history has no mark of it yet."""
        self._note_earlier(_Place(room, position, now, retention, self._way(room)))

    def _note_earlier(self, place: _Place) -> None:
        self._earlier[place.room, place.position] = place
        if len(self._earlier) > MOST_ROOMS:
            self._earlier.popitem(last=False)

    def position_of(self, room: str) -> str | None:
        """The position that is known of a room."""
        place = self._places.get(room)
        return None if place is None else place.position

    def forget(self) -> None:
        """The hub has stopped."""
        self._places.clear()
        self._earlier.clear()

    def servers(self) -> set[int]:
        """The numbers of the servers that have something to be looked up."""
        places = chain(self._earlier.values(), self._places.values())
        return {place.way.server for place in places}

    async def check(self, server: int, now: float) -> None:
        """Looks whether a server has them, and marks the rooms of those that it has lost.

        Where the server does not answer, the next check looks again.
        """
        try:
            for places in _of_server(server, self._earlier):
                for place in places:
                    await self._check_earlier(place, now)
                await asyncio.sleep(0)  # where nothing was asked, this is the end of the turn
            for places in _of_server(server, self._places):
                some = self._not_come(places)
                tops = await self._tops([place.room for place in some]) if some else []
                for place, top in zip(some, tops, strict=True):
                    await self._check(place, top, now)
                await asyncio.sleep(0)
        except OSError:
            return
        except BusError as error:
            self._refused(error)

    def _not_come(self, places: Sequence[_Place]) -> list[_Place]:
        found = []
        for place in places:
            if self._places.get(place.room) is not place:
                continue
            if self._has_come(place.room, place.position):
                del self._places[place.room]
            else:
                found.append(place)
        return found

    async def _check_earlier(self, place: _Place, now: float) -> None:
        if not self._has_come(place.room, place.position):
            is_there = await self._is_there(place)
            if is_there is None and now - place.since < place.retention.ttl:
                return
        self._earlier.pop((place.room, place.position), None)

    async def _check(self, place: _Place, top: str | None, now: float) -> None:
        is_there = place.position == top or await self._is_there(place)
        known = place.retention.ttl if is_there is None else KNOWN_SECONDS if is_there else 0.0
        if now - place.since >= known and self._places.get(place.room) is place:
            del self._places[place.room]

    async def _is_there(self, place: _Place) -> bool | None:
        """Whether the history has this message still; if it is lost, the room gets a mark.

        Returns:
            bool | None: None where the server refuses to read, or to take the mark.

        Raises:
            OSError: it does not answer.
        """
        try:
            page = await self._read(place.room, place.position, 1, place.retention)
            if page.loss:
                await self._mark(place.room, page.loss, place.retention)
        except OSError:
            raise
        except BusError as error:
            self._refused(error)
            return None
        return page.contiguous


def _of_server(server: int, places: Mapping[Any, _Place]) -> Iterator[list[_Place]]:
    """The places at a server, as they are now, a question's rooms at a time."""
    of_server = [place for place in places.values() if place.way.server == server]
    for start in range(0, len(of_server), _AT_ONCE):
        yield of_server[start : start + _AT_ONCE]
