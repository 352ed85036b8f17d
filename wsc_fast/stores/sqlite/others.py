"""The messages that other connections have stored in the same database."""

from __future__ import annotations

import sqlite3

from wsc_fast.stores.sqlite import database

# Spans of positions that others have filled, of which a list is kept; and positions that one call
# of `appended` looks at.
_MOST_SPANS = 1000
_MOST_POSITIONS = 100_000


class Others:
    """The positions that other connections have filled, as far back as somebody may ask.

    Thread-safety: the worker thread.
    """

    def __init__(self) -> None:
        self._known = 0
        # From behind the first to the second, in order.
        self._spans: list[tuple[int, int]] = []

    def forget(self) -> None:
        """It is another database now."""
        self._known = 0
        self._spans.clear()

    def committed(self, last: int, own: int) -> None:
        """A transaction of this store has filled so many positions, the newest of all."""
        self._add(last - own)
        self._known = last

    def _add(self, upto: int) -> None:
        """All behind the known positions, up to this one, are others'."""
        if upto < self._known:
            # A backup was copied into the file.
            self.forget()
        if upto > self._known:
            self._spans.append((self._known, upto))
            self._known = upto
        if len(self._spans) > _MOST_SPANS:
            # Nobody has asked for long. The two oldest become one span, so that our own positions
            # between them will be reported as others'.
            self._spans[:2] = [(self._spans[0][0], self._spans[1][1])]

    def appended(self, db: sqlite3.Connection, after: int, limit: int) -> tuple[int, list[str]]:
        """See `SharedOfflineStore.appended`."""
        if not db.in_transaction:
            # In a transaction the newest positions may be our own, not committed yet: then
            # `committed` adds what others have filled.
            self._add(database.newest(db))
        if after < 0:
            return self._known, []
        if after > self._known:
            after = 0
        spans, end = self._behind(after)
        found = database.users_within(db, spans, limit + 1) if spans else []
        if len(found) > limit:
            end = found[limit][1] - 1
        return end, [user_id for user_id, _ in found[:limit]]

    def _behind(self, after: int) -> tuple[list[tuple[int, int]], int]:
        """Spans behind a position, as far as one call looks, and the position where they end."""
        spans: list[tuple[int, int]] = []
        left = _MOST_POSITIONS
        for low, high in self._spans:
            low = max(low, after)
            if high <= low:
                continue
            if high - low > left:
                spans.append((low, low + left))
                return spans, low + left
            spans.append((low, high))
            left -= high - low
        return spans, self._known
