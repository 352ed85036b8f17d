"""The memory of the hub's process, and whether it grew.

The median of the RSS in the last quarter of the warm-up (a minute, or half of a shorter run) is
compared with that of the last quarter of the run: it may be at most 2 % more. In runs under a
quarter of an hour 3 MB will do too, which an allocator keeps more or less of, and under three
minutes 10 %. Over TLS the warm-up takes five minutes. A smaller leak shows in the blocks
of memory that are left when everybody has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from trials.soak.messages import LATE

# The growth that a short run may have, in bytes.
SLACK = 3e6


class Memory:
    """The sizes of a process over time, in seconds and bytes."""

    def __init__(self) -> None:
        self.sizes: list[tuple[float, int]] = []
        self.late_at: list[float] = []

    async def watch(self, pid: int, lateness: Callable[[], float]) -> None:
        """Looks at a process twice a second, and at how late this one is."""
        page = os.sysconf("SC_PAGE_SIZE")
        begin = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                size = resident(pid) * page
                self.sizes.append((time.monotonic() - begin, size))
            if lateness() > LATE:
                self.late_at.append(time.monotonic() - begin)
            await asyncio.sleep(0.5)

    def judge(self, seconds: float, tls: bool) -> tuple[str, bool]:
        """The finding for a run of so many seconds, in words, and whether memory grew too much."""
        # OpenSSL allocates what each connection needs; malloc's heap fits after some minutes.
        warm = min(300.0 if tls else 60.0, seconds / 2)
        early = [size for at, size in self.sizes if warm * 0.75 <= at <= warm]
        late = [size for at, size in self.sizes if at >= seconds - (seconds - warm) / 4]
        if seconds < 20:
            return "not judged: too short", False
        if not early or not late or sum(at <= warm for at in self.late_at) > warm / 10:
            return "not judged: too slow a machine for all clients to be there by then", False
        before, after = statistics.median(early), statistics.median(late)
        growth = (after / before - 1) * 100
        allowed = 2.0 if seconds >= 180 else 10.0
        if seconds < 900:
            allowed = max(allowed, SLACK / before * 100)
        text = (
            f"{before / 1e6:.1f} MB at {warm * 0.75:.0f}-{warm:.0f} s, {after / 1e6:.1f} MB at the "
            f"end: {growth:+.1f} % (allowed: {allowed:.1f} %)"
        )
        return text, growth > allowed

    def by_minute(self) -> str:
        minutes: dict[int, list[int]] = {}
        for at, size in self.sizes:
            minutes.setdefault(int(at // 60), []).append(size)
        return " ".join(f"{statistics.median(sizes) / 1e6:.1f}" for sizes in minutes.values())


def resident(pid: int) -> int:
    """Pages of a process's memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
