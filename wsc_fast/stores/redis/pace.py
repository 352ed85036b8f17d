"""Bounds the bytes that go over the line at a time."""

from __future__ import annotations

# Bytes of a batch of writes, and of messages in the reply to a batch: at first, at least, at most.
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 1 << 16, 1 << 14, 1 << 20


class Pace:
    """The bytes that go over the line at a time: as many as take little of an attempt's time.

    Attributes:
        bytes: the number.
        slow: seconds beyond which an answer takes long.
    """

    def __init__(self, slow: float) -> None:
        self.bytes: int = FIRST_BYTES
        self.slow = slow

    def took(self, seconds: float) -> None:
        """An attempt is over."""
        if seconds > self.slow:
            self.bytes = max(LEAST_BYTES, self.bytes // 4)

    def carried(self, size: int, seconds: float) -> None:
        """So many bytes came or went."""
        if seconds <= self.slow and 2 * size >= self.bytes:
            self.bytes = min(MOST_BYTES, 2 * self.bytes)
