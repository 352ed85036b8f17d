"""The figures of the charts: one sample of the hub's counters every two seconds.

They are noted all the time, and not only while somebody looks: an operator who opens the page
sees the minutes before.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable

import msgspec

from wsc_fast.observe.readings import Distribution, Reading
from wsc_fast.runtime.periodic import Periodic

# Seconds between two samples, and the samples that are kept: ten minutes.
EVERY, SAMPLES = 2.0, 300
# The reasons of drops that a chart tells apart.
REASONS = ("drop_oldest", "drop_newest", "slow_consumer", "conn_closed")
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Sample(msgspec.Struct, frozen=True):
    """The hub in one interval, or at its end. None: nothing of it is known.

    Attributes:
        time: its end, in seconds since the epoch.
        connections, rooms: at its end.
        messages_in, messages_out, deliveries: a second.
        bytes_in, bytes_out: a second.
        drop_oldest, drop_newest, slow_consumer, conn_closed, refused: messages a second that were
            dropped, or not taken, by reason.
        rejected: upgrades and requests refused, a second.
        flush_clients: sends of a flush, on average.
        flush_seconds: the 99th percentile of a flush's time.
        loop_lag: the longest, seconds.
        queued_bytes: in all outboxes.
        memory: resident bytes of the process.
        bus_round_trip: seconds that the bus took to answer a question.
    """

    time: float
    connections: int
    rooms: int
    messages_in: float
    messages_out: float
    deliveries: float
    bytes_in: float
    bytes_out: float
    drop_oldest: float
    drop_newest: float
    slow_consumer: float
    conn_closed: float
    refused: float
    rejected: float
    flush_clients: float | None
    flush_seconds: float | None
    loop_lag: float | None
    queued_bytes: int
    memory: int | None
    bus_round_trip: float | None


class Samples(Periodic):
    """The samples of one hub: a companion of it.

    Args:
        read: the counters of this moment.
        bus_round_trip: the last that was measured, in seconds.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, read: Callable[[], Reading], bus_round_trip: Callable[[], float | None]
    ) -> None:
        super().__init__(EVERY)
        self._read = read
        self._bus_round_trip = bus_round_trip
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._before: tuple[float, Reading] | None = None
        self.ticks: list[Callable[[], object]] = []

    def started(self) -> None:
        self._before = time.monotonic(), self._read()

    def tick(self) -> None:
        self.take()
        for tick in self.ticks:
            tick()

    def take(self) -> None:
        """Notes a sample of the time since the last one."""
        now, reading = time.monotonic(), self._read()
        if self._before is not None:
            began, before = self._before
            # A counter that was reset meanwhile is smaller than before.
            seconds = max(now - began, 1e-3)
            self._samples.append(_sample(before, reading, seconds, self._bus_round_trip()))
        self._before = now, reading

    def after(self, moment: float) -> list[Sample]:
        """The samples behind a moment, the oldest first.

        Args:
            moment: seconds since the epoch.
        """
        return [each for each in self._samples if each.time > moment]

    @property
    def last(self) -> Sample | None:
        """The newest sample."""
        return self._samples[-1] if self._samples else None


def _sample(before: Reading, now: Reading, seconds: float, bus_round_trip: float | None) -> Sample:
    old, new = before.stats, now.stats

    def rate(one: float, other: float) -> float:
        return max(0.0, other - one) / seconds

    def rate_of(name: str) -> float:
        return rate(getattr(old, name), getattr(new, name))

    histograms = {
        name: (before.histograms[name], now.histograms[name])
        for name in ("flush_clients", "flush_seconds", "loop_lag")
    }
    return Sample(
        time=time.time(),
        connections=new.connected_clients,
        rooms=new.active_rooms,
        messages_in=rate_of("messages_in"),
        messages_out=rate_of("messages_out"),
        deliveries=rate_of("deliveries"),
        bytes_in=rate_of("bytes_in"),
        bytes_out=rate_of("bytes_out"),
        **{reason: rate(old.dropped[reason], new.dropped[reason]) for reason in REASONS},
        refused=rate_of("refused"),
        rejected=rate(sum(old.rejected.values()), sum(new.rejected.values())),
        flush_clients=mean(*histograms["flush_clients"]),
        flush_seconds=percentile(*histograms["flush_seconds"], 0.99),
        loop_lag=percentile(*histograms["loop_lag"], 1.0),
        queued_bytes=new.queued_bytes,
        memory=resident_memory(),
        bus_round_trip=bus_round_trip,
    )


def mean(before: Distribution, now: Distribution) -> float | None:
    """The mean of the values that came between two readings of a histogram."""
    count = now[0][-1][1] - before[0][-1][1]
    return (now[1] - before[1]) / count if count > 0 else None


def percentile(before: Distribution, now: Distribution, share: float) -> float | None:
    """The bound of the bucket that holds this share of the values between two readings."""
    counts = [
        (bound, more - less) for (bound, more), (_, less) in zip(now[0], before[0], strict=True)
    ]
    total = counts[-1][1]
    if total <= 0:
        return None
    reached = next(bound for bound, upto in counts if upto >= share * total)
    if math.isinf(reached):  # beyond the last bound that is a number
        reached = max(bound for bound, _ in counts if not math.isinf(bound))
    return reached


def resident_memory() -> int | None:
    """The resident bytes of this process; None where /proc does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_SIZE
    except (OSError, IndexError, ValueError):
        return None
