"""Limits of connecting: connections per address, and new ones a second."""

from __future__ import annotations

from collections.abc import Callable

from wsc_fast._core.clock import monotonic
from wsc_fast._core.rates import TokenBucket
from wsc_fast.addresses import address_key

# Buckets of addresses that are kept; beyond it the full ones go, which are as good as new.
MAX_BUCKETS = 10_000
# The share of `connection_rate` that is kept for addresses which have not asked for so long.
RESERVE = 0.2
LATELY = 10.0


class Buckets:
    """A token bucket per key: `rate` a second, and as many at once as come in one second.

    Args:
        rate: 0 allows everything.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, key: str, *, keep: float = 0.0) -> bool:
        """Whether there is one more for this key, which is then taken.

        Args:
            keep: a share of what there can be at most, which has to be left.
        """
        if self._rate <= 0:
            return True
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
        allowed = bucket.take(self._rate, now, keep)
        if len(self._buckets) > MAX_BUCKETS:
            self._prune(now)
        return allowed

    def asked_within(self, key: str, seconds: float) -> bool:
        """Whether this key has asked for one so lately; never where everything is allowed."""
        found = self._buckets.get(key)
        return found is not None and self._clock() - found.counted_at < seconds

    def _prune(self, now: float) -> None:
        kept = {
            key: bucket
            for key, bucket in self._buckets.items()
            if not bucket.is_full(self._rate, now)
        }
        # An attack comes from more addresses than that: the first go, which have waited longest.
        while len(kept) > MAX_BUCKETS // 2:
            del kept[next(iter(kept))]
        self._buckets = kept


class ConnectionLimits:
    """The limits on connections of one hub, and what counts against them. In the loop's thread."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.set(0, 0.0, 0.0)

    def set(
        self,
        per_address: int,
        rate: float,
        rate_per_address: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._bounded = bool(per_address or rate or rate_per_address)
        self._per_address = per_address
        self._all = Buckets(rate, clock)
        self._each = Buckets(rate_per_address, clock)

    def admit(self, address: str) -> str | None:
        """Whether one more may connect from an address; if not, which setting forbids it."""
        if not self._bounded:
            return None
        key = address_key(address)
        if self._per_address and self._counts.get(key, 0) >= self._per_address:
            return "max_connections_per_address"
        # One address's flood may not use up what all have together, and those of many addresses not
        # what is kept for addresses that have not come lately.
        again = self._each.asked_within(key, LATELY)
        if not self._each.take(key):
            return "connection_rate_per_address"
        if not self._all.take("", keep=RESERVE if again else 0.0):
            return "connection_rate"
        return None

    def connected(self, address: str) -> None:
        key = address_key(address) if ":" in address else address
        self._counts[key] = self._counts.get(key, 0) + 1

    def gone(self, address: str) -> None:
        key = address_key(address) if ":" in address else address
        left = self._counts.get(key, 0) - 1
        if left > 0:
            self._counts[key] = left
        else:
            self._counts.pop(key, None)

    def clear(self) -> None:
        self._counts.clear()
