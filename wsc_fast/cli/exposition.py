"""Reads the text in which a hub tells its metrics (Prometheus' text format), and compares two."""

from __future__ import annotations

import math
import re
from collections import defaultdict

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*").fullmatch
_LABEL = re.compile(r'([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")

# The label of a hub with a name, beside the metric's own one.
_HUB = "hub"

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """The metrics of one moment.

    Args:
        text: of the endpoint.
        at: the time, in seconds of any clock.

    Raises:
        ValueError: a line is none of this format.
    """

    def __init__(self, text: str, at: float) -> None:
        self.at = at
        self._samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                self._read(line)

    def _read(self, line: str) -> None:
        match = _SAMPLE(line)
        if match is None:
            raise ValueError(f"{line[:80]!r} is no line of metrics")
        labels = tuple(
            (name, _ESCAPED.sub(_unescaped, value))
            for name, value in _LABEL.findall(match[2] or "")
        )
        self._samples[match[1]][labels] = float(match[3])

    def has(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self._samples)

    def value(self, name: str) -> float:
        """The value of a metric, the sum over its labels; 0 if it is not there."""
        return sum(self._samples.get(name, {}).values())

    def longest(self, name: str) -> float:
        """The highest value of a metric over its labels; 0 if it is not there."""
        return max(self._samples.get(name, {}).values(), default=0.0)

    def by_label(self, name: str) -> dict[str, float]:
        """The values of a metric by the value of its label, all hubs together."""
        found: dict[str, float] = defaultdict(float)
        for labels, value in self._samples.get(name, {}).items():
            for label, of_label in labels:
                if label != _HUB:
                    found[of_label] += value
        return dict(found)

    def buckets(self, name: str) -> dict[float, float]:
        """Upper bound -> how many are up to it, of a histogram, all labels together."""
        found: dict[float, float] = defaultdict(float)
        for labels, value in self._samples.get(f"{name}_bucket", {}).items():
            found[float(dict(labels).get("le", "inf"))] += value
        return dict(sorted(found.items()))


def _unescaped(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


class Change:
    """The way from one moment to a later one; from nothing if there is no earlier one."""

    def __init__(self, before: Metrics | None, now: Metrics) -> None:
        # A hub that has been started anew counts from zero.
        uptime = "wsc_uptime_seconds"
        if before is not None and now.longest(uptime) < before.longest(uptime):
            before = None
        self._before, self._now = before, now
        self.seconds: float = now.at - before.at if before is not None else now.longest(uptime)

    def rate(self, name: str) -> float:
        """The growth of a counter in a second."""
        before = self._before.value(name) if self._before is not None else 0.0
        return max(self._now.value(name) - before, 0.0) / self.seconds if self.seconds > 0 else 0.0

    def percentile(self, name: str, percent: float) -> float | None:
        """The value of a histogram that so many per cent of the new ones do not exceed.

        Returns:
            float: within its bucket a straight line is assumed, as Prometheus does; None if there
            is no new one.
        """
        earlier = self._before.buckets(name) if self._before is not None else {}
        counts = {
            bound: count - earlier.get(bound, 0.0)
            for bound, count in self._now.buckets(name).items()
        }
        total = max(counts.values(), default=0.0)
        if total <= 0:
            return None
        wanted, low, below = total * percent / 100, 0.0, 0.0
        for bound, count in counts.items():
            if count >= wanted and count > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low
