"""Times in buckets: percentiles of any number of them, in memory that does not grow."""

from __future__ import annotations

# Buckets of one power of two, so that a bucket is at most 1/64 wide of what is in it.
_STEPS = 64
_LINEAR = 2 * _STEPS
_LONGEST = 1 << 40


class Histogram:
    """Times in microseconds, from 0 to 12 days. A percentile is at most 1.6 % above its true value.

    Attributes:
        count: how many there are.
        longest: of them.
    """

    def __init__(self) -> None:
        self.count: int = 0
        self.longest: int = 0
        self._sum = 0
        self._buckets = [0] * (_index(_LONGEST) + 1)

    def add(self, microseconds: int) -> None:
        """Counts one time."""
        value = min(max(microseconds, 0), _LONGEST)
        self.count += 1
        self.longest = max(self.longest, value)
        self._sum += value
        self._buckets[_index(value)] += 1

    @property
    def mean(self) -> float:
        """Their mean; 0 if there are none."""
        return self._sum / self.count if self.count else 0.0

    def percentile(self, percent: float) -> int:
        """The time that so many per cent of them do not exceed; 0 if there are none."""
        wanted = self.count * percent / 100
        seen = 0
        for index, number in enumerate(self._buckets):
            seen += number
            if number and seen >= wanted:
                return min(_top(index), self.longest)
        return 0


def _index(value: int) -> int:
    if value < _LINEAR:
        return value
    shift = value.bit_length() - _LINEAR.bit_length() + 1
    return _STEPS * shift + (value >> shift)


def _top(index: int) -> int:
    """The largest time of a bucket."""
    if index < _LINEAR:
        return index
    shift = index // _STEPS - 1
    return ((index - _STEPS * shift + 1) << shift) - 1
