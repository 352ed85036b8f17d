from typing import Self, final

@final
class Allowance:
    """The messages and bytes that one client may still send (internal)."""

@final
class TokenBucket:
    """A count of what may still come in (internal).

    Args:
        rate: tokens that come a second, above 0.
        now: seconds, on the clock of all calls; the bucket is full then.

    Thread-safety: the loop's thread.
    """
    def __new__(cls, rate: float, now: float) -> Self: ...
    @property
    def counted_at(self) -> float:
        """float: when a token was last asked for."""
    def take(self, rate: float, now: float, keep: float = 0.0) -> bool:
        """Takes a token if there is one.

        Args:
            rate: as it was made with.
            now: seconds.
            keep: a share of what the bucket holds at most, which has to be left.

        Returns:
            bool: whether there was one.
        """
    def is_full(self, rate: float, now: float) -> bool:
        """Whether it would be full if it were asked: it is as good as a new one then.

        Args:
            rate: as it was made with.
            now: seconds.

        Returns:
            bool: whether it would.
        """
