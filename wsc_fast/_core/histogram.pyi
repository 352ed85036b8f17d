from typing import Self, final

@final
class Histogram:
    """Counts of values in buckets, each twice as wide as the one before it (internal).

    Args:
        first: the bound of the first bucket, above 0.

    Thread-safety: the loop's thread; `read` any.
    """

    def __new__(cls, first: float) -> Self: ...
    @property
    def first(self) -> float: ...
    def observe(self, value: float) -> None:
        """Counts one value; one below 0, of a clock that was read too early, counts as 0.

        Args:
            value: in the unit of `first`.
        """
    def read(self) -> tuple[list[tuple[float, int]], float]:
        """The buckets and the sum of all values.

        Returns:
            tuple[list[tuple[float, int]], float]: the upper bound of each bucket, the last of which
                is infinite, with how many values are at most that; and the sum.
        """
    def reset(self) -> None:
        """Forgets all values."""
