"""The rooms that a hub keeps, and how much is kept of each: patterns, and their form on a bus."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wsc_fast.bus.base import Retention

# The rooms that were asked about of late.
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class _Pattern:
    text: str
    match: Callable[[str], object]
    retention: Retention


class KeptRooms:
    """Patterns of room ids, each with a retention; the first one that matches counts.

    Thread-safety: any thread.
    """

    def __init__(self) -> None:
        self._patterns: tuple[_Pattern, ...] = ()
        self._known: dict[str, Retention | None] = {}

    def keep(self, pattern: str, retention: Retention) -> None:
        """Rooms whose ids match are kept rooms from now on.

        Args:
            pattern: as of a shell.
            retention: of these rooms.
        """
        match = re.compile(fnmatch.translate(pattern)).match
        self._patterns = (*self._patterns, _Pattern(pattern, match, retention))
        self._known = {}

    def retention_of(self, room_id: str) -> Retention | None:
        """The retention of a kept room; None: the room is plain."""
        try:
            return self._known[room_id]
        except KeyError:
            pass
        found = next((each for each in self._patterns if each.match(room_id)), None)
        retention = None if found is None else found.retention
        if len(self._known) >= _MOST_KNOWN:
            self._known = {}
        self._known[room_id] = retention
        return retention

    def dump(self) -> bytes:
        """The patterns as they stand on a bus, for publishers: JSON."""
        return json.dumps(
            [(each.text, each.retention.size, each.retention.ttl) for each in self._patterns]
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> KeptRooms:
        """The patterns that `dump` has written.

        Raises:
            ValueError: these bytes are none.
        """
        kept = cls()
        patterns: Sequence[Sequence[object]] = json.loads(data)
        for pattern, size, ttl in patterns:
            kept.keep(str(pattern), Retention(int(str(size)), float(str(ttl))))
        return kept
