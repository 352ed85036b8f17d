"""Histograms of what the engine and the hub measure; see histogram.pxd."""

from libc.string cimport memset


cdef class Histogram:
    """Counts of values in buckets, each twice as wide as the one before it (internal).

    Args:
        first: the bound of the first bucket, above 0.

    Thread-safety: the loop's thread; `read` any.
    """

    def __cinit__(self, double first):
        self.first = first
        self.reset()

    def observe(self, double value):
        """Counts one value; one below 0, of a clock that was read too early, counts as 0.

        Args:
            value: in the unit of `first`.
        """
        self.add(max(0.0, value))

    def read(self):
        """The buckets and the sum of all values.

        Returns:
            tuple[list[tuple[float, int]], float]: the upper bound of each bucket, the last of which
                is infinite, with how many values are at most that; and the sum.
        """
        cdef list buckets = []
        cdef unsigned long long seen = 0
        cdef int place
        for place in range(BOUNDS + 1):
            seen += self.counts[place]
            bound = self.first * (1 << place) if place < BOUNDS else float("inf")
            buckets.append((bound, seen))
        return buckets, self.total

    def reset(self):
        """Forgets all values."""
        self.total = 0
        memset(self.counts, 0, sizeof(self.counts))
