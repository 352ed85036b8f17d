"""The cores that this process may use, and how many threads help with sends there.

Two things bound the cores: the affinity of the process, and the CPU quota of its control groups
(cgroups(7)), as a container has one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# With "auto" no more threads help. More were never measured.
MOST_HELPERS = 3

# Serve on the same cores, this one among them.
_processes = 1

_GROUPS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def count_helpers(send_threads: int | str) -> int:
    """The threads to help with sends, for a setting `HubConfig.send_threads`.

    Returns:
        int: with "auto" one for each usable core but the loop's own, divided between the processes
        that share the cores; none where the system does not say which cores may be used.
    """
    if isinstance(send_threads, int):
        return send_threads
    return max(min(usable_cores() // _processes - 1, MOST_HELPERS), 0)


def share_cores(processes: int) -> None:
    """Says that so many processes serve on the same cores, this one among them."""
    global _processes
    _processes = processes


def usable_cores(groups: Path = _GROUPS, mounted: Path = _MOUNTED) -> int:
    """The whole cores whose time this process may use, at least 1.

    Args:
        groups: the file that names the control groups of the process.
        mounted: where the control groups are.
    """
    try:
        allowed: float = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        return 1
    for quota in _quotas(groups, mounted):
        allowed = min(allowed, quota)
    return max(math.floor(allowed), 1)


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """The quotas of all control groups that this process is in, in cores."""
    for line in _text(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Systems that imitate Linux may write lines of another form.
        if not path.startswith("/") or (controllers and "cpu" not in controllers.split(",")):
            continue
        # The second version has no list of controllers; the first one has a folder for each.
        folder = mounted / controllers if controllers else mounted
        # In a container the group may have another path than the one that we see, or only the root.
        for group in (Path(path), *Path(path).parents):
            place = folder / group.relative_to("/")
            limit, _, period = _text(place / "cpu.max").partition(" ")
            if not limit:
                limit, period = (
                    _text(place / "cpu.cfs_quota_us"),
                    _text(place / "cpu.cfs_period_us"),
                )
            if limit.strip().isdecimal() and period.strip().isdecimal() and int(period):
                yield int(limit) / int(period)


def _text(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes())  # a group may have any name
    except (OSError, ValueError):
        return ""
