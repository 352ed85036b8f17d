"""The lag of the loop: a timer of its own, and by how much it comes late.

The heartbeat's timers are of no use for that: they stand in slots of 10 ms, and wait while the loop
is late.
"""

from __future__ import annotations

from wsc_fast._core import clock
from wsc_fast._core.histogram import Histogram
from wsc_fast.runtime.periodic import Periodic

# Seconds between two looks. A loop that stands still for so long is seen in any case.
EVERY = 0.25


class LoopLag(Periodic):
    """The lag of the loop that a hub runs on.

    Attributes:
        seconds: by how much the timer came late.

    Thread-safety: the loop's thread.
    """

    def __init__(self) -> None:
        super().__init__(EVERY)
        self.seconds: Histogram = Histogram(128e-6)
        self._due = 0.0

    def started(self) -> None:
        self._due = clock.monotonic() + EVERY

    def tick(self) -> None:
        now = clock.monotonic()
        self.seconds.observe(now - self._due)
        self._due = now + EVERY
