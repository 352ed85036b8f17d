"""The rooms that a hub keeps, and how much is kept of each: patterns, and their form on a bus."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wsc_fast.bus.base import Retention
from wsc_fast.errors import ValidationError, shown

# The bounds of a pattern, in characters, and of what a kept room keeps.
MOST_PATTERN, MOST_SIZE, MOST_TTL = 256, 10_000, 86_400.0
# Messages of one page of a history.
MOST_HISTORY = 1_000
# The rooms that were asked about of late.
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Pattern:
    """Rooms that are kept alike.

    Attributes:
        text: the pattern.
        retention: of these rooms.
        closes: members who do not speak wsc.1 are closed where the room has a gap.
    """

    text: str
    retention: Retention
    closes: bool
    match: Callable[[str], object] = field(repr=False)


class KeptRooms:
    """Patterns of room ids; the first one that matches counts.

    Thread-safety: any thread.
    """

    def __init__(self) -> None:
        self._patterns: tuple[Pattern, ...] = ()
        self._known: dict[str, Pattern | None] = {}

    def keep(self, pattern: str, retention: Retention, closes: bool = False) -> None:
        """Rooms whose ids match are kept rooms from now on.

        Args:
            pattern: as of a shell.
            retention, closes: see `Pattern`.
        """
        match = re.compile(fnmatch.translate(pattern)).match
        self._patterns = (*self._patterns, Pattern(pattern, retention, closes, match))
        self._known = {}

    def pattern_of(self, room_id: str) -> Pattern | None:
        """The pattern of a kept room; None: the room is plain."""
        try:
            return self._known[room_id]
        except KeyError:
            pass
        found = next((each for each in self._patterns if each.match(room_id)), None)
        if len(self._known) >= _MOST_KNOWN:
            self._known = {}
        self._known[room_id] = found
        return found

    def retention_of(self, room_id: str) -> Retention | None:
        """The retention of a kept room; None: the room is plain."""
        found = self.pattern_of(room_id)
        return None if found is None else found.retention

    def dump(self) -> bytes:
        """The patterns as they stand on a bus, for publishers: JSON."""
        return json.dumps(
            [(each.text, each.retention.size, each.retention.ttl) for each in self._patterns]
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> KeptRooms:
        """The patterns that `dump` has written.

        Raises:
            ValueError, TypeError: these bytes are none.
        """
        kept = cls()
        patterns: Sequence[Sequence[object]] = json.loads(data)
        for pattern, size, ttl in patterns:
            kept.keep(checked_pattern(pattern), checked_retention(size, ttl))
        return kept


def checked_pattern(pattern: object) -> str:
    """A pattern of room ids.

    Raises:
        ValidationError: it cannot be used.
    """
    if type(pattern) is not str or not 0 < len(pattern) <= MOST_PATTERN:
        raise ValidationError(
            f"pattern must be a str of 1 to {MOST_PATTERN} characters, not {shown(pattern)}"
        )
    return pattern


def checked_retention(size: object, ttl: object) -> Retention:
    """The bounds of a kept room's history.

    Raises:
        ValidationError: one cannot be used.
    """
    if type(size) is not int or not 0 < size <= MOST_SIZE:
        raise ValidationError(f"size must be an int from 1 to {MOST_SIZE}, not {shown(size)}")
    if not isinstance(ttl, (int, float)) or type(ttl) is bool or not 1 <= ttl <= MOST_TTL:
        raise ValidationError(f"ttl must be 1 to {MOST_TTL:.0f} seconds, not {shown(ttl)}")
    return Retention(size, float(ttl))


def check_page(after: object, limit: object) -> None:
    """Checks what is asked of a history: the position before the page, and its length.

    Raises:
        ValidationError: an argument cannot be used.
    """
    if type(limit) is not int or not 0 < limit <= MOST_HISTORY:
        raise ValidationError(f"limit must be an int from 1 to {MOST_HISTORY}, not {limit!r}")
    if after is not None and (type(after) is not str or not 0 < len(after) <= 64):
        raise ValidationError(f"after must be a position or None, not {after!a}")
