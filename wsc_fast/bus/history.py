"""The history of one kept room, as MemoryBus has it.

Positions are `NUMBER.TAG`. Numbers of a room count up by one. A tag is random, and the same for all
messages since the history was made or was read from a file. So a position that a crash has taken
out of the file is never given to another message.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field

from wsc_fast.bus.base import MARK, Entry, Retention

# The place after the newest message outlasts the messages, so that a client of a quiet room still
# recovers; so long, in seconds.
TOP_SECONDS = 86_400.0
# Of a history besides its entries, and of an entry besides its bytes.
HISTORY_BYTES, ENTRY_BYTES = 512, 160
_MOST_DIGITS = 19


def new_tag() -> str:
    """A tag that no message has had."""
    return secrets.token_urlsafe(6)


@dataclass(slots=True, eq=False)
class History:
    """The newest messages of one room.

    Attributes:
        tag: of the messages from now on.
        number: of the newest message.
        entries: the messages, the oldest first; their numbers have no holes.
        before: the position before the first entry.
        top: the position of the newest message, or the place before the first.
        nbytes: roughly what it takes in memory.
        ends: when the entries go, by the clock of the bus.
        forgotten: when all of it goes.
    """

    tag: str = field(default_factory=new_tag)
    number: int = 0
    entries: deque[Entry] = field(default_factory=deque)
    before: str = ""
    top: str = ""
    nbytes: int = HISTORY_BYTES
    ends: float = 0.0
    forgotten: float = 0.0

    def __post_init__(self) -> None:
        if not self.top:
            self.before = self.top = f"{self.number}.{self.tag}"

    @property
    def first(self) -> int:
        """The number before the first entry."""
        return self.number - len(self.entries)

    def append(self, entry: bytes, retention: Retention, now: float) -> str:
        """Adds a message; returns its position."""
        self.number += 1
        position = f"{self.number}.{self.tag}"
        self.put(Entry(position, entry))
        self.top = position
        self.keep_until(retention, now)
        while len(self.entries) > retention.size:
            self.drop_oldest()
        return position

    def mark(self) -> None:
        """Adds a mark: messages may be missing here. It has no influence on the times."""
        self.number += 1
        self.top = f"{self.number}.{self.tag}"
        self.put(Entry(self.top, MARK))

    def put(self, entry: Entry) -> None:
        """Adds an entry that has a position and a number."""
        self.entries.append(entry)
        self.nbytes += len(entry.entry) + ENTRY_BYTES

    def keep_until(self, retention: Retention, now: float) -> None:
        """Begins the time anew for which it is kept."""
        self.ends = now + retention.ttl
        self.forgotten = now + max(retention.ttl, TOP_SECONDS)

    def drop_oldest(self) -> None:
        oldest = self.entries.popleft()
        self.before = oldest.position
        self.nbytes -= len(oldest.entry) + ENTRY_BYTES

    def drop_all(self) -> None:
        self.entries.clear()
        self.before = self.top
        self.nbytes = HISTORY_BYTES

    def after(self, since: str, limit: int) -> list[Entry] | None:
        """The first `limit` messages after a position; None where it is not known."""
        if since == self.before:
            start = 0
        else:
            number, _, _ = since.partition(".")
            if not (number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS):
                return None
            start = int(number) - self.first
            if not 0 < start <= len(self.entries) or self.entries[start - 1].position != since:
                return None
        return self.slice(start, start + limit)

    def slice(self, start: int, end: int) -> list[Entry]:
        """The entries from one place to before another."""
        return [self.entries[i] for i in range(max(start, 0), min(end, len(self.entries)))]
