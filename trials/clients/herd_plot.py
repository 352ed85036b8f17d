"""Draws how a herd of clients came back (herd.py), in the style of the benchmarks' plots."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from benchmarks.suite.plots import LIMIT, OTHERS, OURS, STYLE
from trials.clients.herd import STEP, Course

# Seconds of one bar.
WIDTH = 0.5


def draw(virtual: Course, real: Course, file: Path) -> None:
    """Writes a plot.

    Args:
        virtual: the course on a virtual clock.
        real: that of real clients.
        file: the SVG file.
    """
    with matplotlib.rc_context(STYLE):
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(7.2, 6.4), sharex=True)
        end = max(virtual.opened[-1], real.opened[-1]) + 1
        above.set_title(f"{virtual.clients:,} clients on a virtual clock lose a hub at once")
        below.set_title(f"{real.clients:,} real clients in one node lose a real hub")
        for axes, course in ((above, virtual), (below, real)):
            _panel(axes, course, end)
        above.legend(frameon=False, fontsize=8)
        below.set_xlabel("seconds after the loss")
        figure.tight_layout()
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def _panel(axes: Any, course: Course, end: float) -> None:
    edges = [WIDTH * number for number in range(int(end / WIDTH) + 2)]
    for times, colour, label in (
        (course.attempts, OTHERS, "attempts"),
        (course.let_in, OURS, "let in"),
    ):
        counts = [bisect_left(times, edge) for edge in edges]
        rates = [(after - before) / WIDTH for before, after in pairwise(counts)]
        axes.stairs(rates, edges, fill=True, color=colour, label=label)
    if course.exact:  # one node tries later than the curve has it
        starts = [edge for edge in edges[:-1] if edge + WIDTH < len(course.expected) * STEP]
        expected = [(course.by(at + WIDTH) - course.by(at)) / WIDTH for at in starts]
        middles = [at + WIDTH / 2 for at in starts]
        axes.plot(middles, expected, color=LIMIT, linewidth=1.4, label="the jitter's curve")
    axes.axhline(course.rate, color=LIMIT, linestyle=":", label="connection_rate")
    axes.axvline(course.ready, color=LIMIT, linewidth=0.8)
    axes.text(course.ready, 30_000, " the next hub listens", va="top", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(1, 40_000)
    axes.set_xlim(0, end)
    axes.set_ylabel("a second")
