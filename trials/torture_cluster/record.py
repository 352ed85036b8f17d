"""The truth about kept rooms: what the streams of the bus have, and ever had.

It is read by redis-py and decoded here, so that it is independent of the code under test. Each
message has the one before it in its stream as its predecessor. Data that a server is about to lose
is read before; so the record also has messages that nobody can read any more. A mark of the hubs
stands in it as a message that nobody gets.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from trials.torture_cluster.findings import Findings
from trials.torture_cluster.texts import short

Entry = tuple[str, str | None, str]  # position, the position before it where that is known, text


@dataclass(frozen=True)
class Loss:
    """The newest messages of a room, which the bus has lost at once.

    Attributes:
        edge: the position before them, which the bus has kept.
        gone: their positions.
    """

    edge: str
    gone: frozenset[str]


class Record:
    """All messages of all kept rooms.

    Attributes:
        texts: by position.
        places: by text, its positions; a text that was lost and published again has several.
        before: by position, the position before it; None: not known.
        tops: by room, the position of the newest message, or the place before the first, at the
            last reading.
        losses: of all rooms.
    """

    def __init__(self, findings: Findings) -> None:
        self.texts: dict[str, str] = {}
        self.places: dict[str, list[str]] = {}
        self.before: dict[str, str | None] = {}
        self.tops: dict[str, str] = {}
        self.losses: list[Loss] = []
        self._streams: dict[str, list[str]] = {}
        self._findings = findings
        self._doubles: set[str] = set()

    def take(self, room: str, top: str | None, entries: Sequence[Entry]) -> None:
        """Takes what a stream has now, all of it.

        Args:
            room: its id.
            top: the position of the newest message, or the place before the first.
            entries: in their order.
        """
        if top is not None:
            self.tops[room] = top
        self._streams[room] = [position for position, *_ in entries]
        last: str | None = None
        for position, named, text in entries:
            before = named if last is None else last
            if self.before.get(position) is None:
                self.before[position] = before
            elif before is not None and self.before[position] != before:
                then = self.before[position]
                self._findings.add("disordered", f"{position} was behind {then}, now {before}")
            if position not in self.texts:
                self.texts[position] = text
                self.places.setdefault(text, []).append(position)
            last = position
        for text, count in Counter(text for _, _, text in entries).items():
            if count > 1 and text not in self._doubles:
                self._doubles.add(text)
                places = [position for position, _, each in entries if each == text]
                self._findings.add("doubled", f"the history has {short(text)!r} at {places}")

    def lost(self, room: str, left: Collection[str]) -> None:
        """The bus has lost the newest messages of a room since the last reading.

        Args:
            room: its id.
            left: the positions that it has now.
        """
        known = self._streams.get(room, [])
        gone = list(itertools.takewhile(lambda position: position not in left, reversed(known)))
        edge = self.before.get(gone[-1]) if gone else None
        if edge is not None:
            self.losses.append(Loss(edge, frozenset(gone)))

    def is_within(self, start: str, end: str, messages: int, nbytes: int) -> bool:
        """Whether `end` follows `start` without a break, with at most so much between them."""
        place: str | None = end
        for _ in range(messages + 1):
            if place == start:
                return True
            if place is None or place not in self.texts:
                return False
            nbytes -= len(self.texts[place])
            if nbytes < 0:
                return False
            place = self.before[place]
        return False

    def path(self, start: str | None, end: str) -> str:
        """The messages between two positions, in a few words."""
        found: list[str] = []
        place: str | None = end
        while place is not None and place != start and len(found) < 6:
            found.append(f"{place} {short(self.texts.get(place, '?'))!r}")
            place = self.before.get(place)
        more = "" if place == start else f" ... and {start} is not among the last {len(found)}"
        return " <- ".join(found) + more


def read_tops(port: int, prefix: str, rooms: Sequence[str]) -> dict[str, str]:
    """The newest positions of these rooms, as a server has them; blocks."""
    with redis.Redis(port=port, protocol=2, socket_timeout=10) as client:
        tops = client.mget([f"{prefix}t:{{{room}}}" for room in rooms])
    return {room: top.decode() for room, top in zip(rooms, tops, strict=True) if top}


def read(port: int, prefix: str, rooms: Iterable[str]) -> list[tuple[str, str | None, list[Entry]]]:
    """The streams of these rooms, as a server has them; blocks.

    Args:
        port: of the server.
        prefix: of the bus.
        rooms: their ids.
    """
    found = []
    with redis.Redis(port=port, protocol=2, socket_timeout=10) as client:
        for room in rooms:
            name = f"{prefix}h:{{{room}}}", f"{prefix}t:{{{room}}}"
            pipe = client.pipeline(transaction=True)
            pipe.xrange(name[0])
            pipe.get(name[1])
            entries, top = pipe.execute()
            found.append((room, top and top.decode(), [_entry(each) for each in entries]))
    return found


def _entry(entry: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    number, fields = entry
    tag, _, data = fields[b"m"].partition(b" ")
    line, _, rest = data.partition(b"\n")
    flags, exclude, key, length = line.split(b" ")
    begin = int(exclude) + int(key)
    before: Any = fields.get(b"p")
    position = f"{number.decode()}.{tag.decode()}"
    text = rest[begin : begin + int(length)].decode()
    return position, before and before.decode(), f"mark {position}" if flags == b"g" else text
