"""The room that a disk and a database have for appends, entry by entry."""

from __future__ import annotations

from wsc_fast.stores.sqlite.entries import Append, Entry

# Beside its size, what a write may take in the log (12 pages were measured, in large indexes), and
# what an append may add to the database (2 pages).
ROW_LOG_BYTES = 64 << 10
ROW_GROWTH_BYTES = 32 << 10


class Room:
    """The room that a disk and a database have for the appends of one transaction."""

    def __init__(self, free: int, kept: int, *, log_bytes: int, unused_bytes: int) -> None:
        """Takes what was measured over a log that is empty, or could not be emptied.

        Args:
            free: bytes of the disk.
            kept: bytes of those that are not for appends.
            log_bytes: of the log, which may all have to go into the database.
            unused_bytes: of pages in the database that hold nothing.
        """
        self._free = free
        self._kept = kept + log_bytes
        self._unused = 0 if log_bytes else unused_bytes
        self._log = 0
        self._growth = 0

    @property
    def is_used(self) -> bool:
        """Whether the transaction writes anything yet."""
        return self._log > 0

    def refusal(self, entry: Append) -> str:
        """The text of the error for an append for which there is no room."""
        return (
            f"the disk is nearly full: {self._free} bytes are free, of which {self._kept} are kept "
            f"for removing messages, and this message of {len(entry.data)} bytes may take "
            f"{2 * entry.size + ROW_LOG_BYTES + ROW_GROWTH_BYTES}"
        )

    def take(self, entry: Append) -> bool:
        """Takes room for this; returns whether there was enough."""
        log_used = self._log + entry.size + ROW_LOG_BYTES
        growth = self._growth + entry.size + ROW_GROWTH_BYTES
        more = max(0, growth - self._unused)
        # A write into unused pages is always tried: if the log has no room, it is rolled back.
        if more and self._kept + log_used + more > self._free:
            return False
        self._log, self._growth = log_used, growth
        return True

    def take_removal(self, entry: Entry) -> None:
        """Counts the room that a removal takes in the log; a removal is never refused."""
        if entry.writes:
            self._log += entry.rows * ROW_LOG_BYTES
