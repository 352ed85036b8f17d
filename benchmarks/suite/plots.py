"""Results as SVG: the main comparison, latencies, sizes, and how cost grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

from .claims import bytes_per_connection, connections_per_second
from .machine import Result
from .results import Results, first_fault, percentile, power_law, rate
from .scenarios import EVERY, ROWS
from .servers import SERVERS
from .tables import MAIN, cost, points, rounded

matplotlib.use("svg")  # before pyplot
from matplotlib import pyplot

OURS, LIMIT, OTHERS = "#c8442f", "#6f7780", "#a9bdd1"
# Lines need telling apart; the same colour for a server in every plot.
LINES = dict(
    zip(
        EVERY,
        (
            *(LIMIT, OURS, "#2b6cb0", "#2f855a", "#b7791f", "#805ad5"),
            *("#0f8b8d", "#8a5a44", "#d53f8c", "#4c51bf", "#9c4221", "#718096"),
        ),
        strict=True,
    )
)
STYLE = {
    "svg.fonttype": "none",  # text stays text: small files, and readable to a search
    "svg.hashsalt": "wsc_fast",  # the same file for the same figures
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
PERCENTILES = ("p50", "p90", "p99", "p99.9", "p99.99")


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Writes what the results allow; returns the file of each row, and of "main"."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    with matplotlib.rc_context(STYLE):
        if any(results.of(row) for row in MAIN):
            drawn["main"] = save(throughput(results), folder, "throughput")
        for row in results.rows():
            if row.startswith("grow-"):
                drawn[row] = save(growth(results, row), folder, row)
            elif row.startswith("latency-"):
                drawn[row] = save(latency(results, row), folder, row)
            elif row == "idle":
                drawn[row] = save(idle(results), folder, row)
            elif row == "payload":
                drawn[row] = save(payload(results), folder, row)
    return drawn


def save(figure: Any, folder: Path, name: str) -> str:
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return f"{name}.svg"


def bars(axes: Any, title: str, values: dict[str, float], marks: dict[str, str]) -> None:
    """One bar for each server; `marks` stand behind the names of some."""
    names = list(values)
    colours = [{"wsc": OURS, "c": LIMIT}.get(name, OTHERS) for name in names]
    axes.barh(range(len(names)), list(values.values()), color=colours, height=0.72)
    longest = max(values.values())
    for place, value in enumerate(values.values()):
        axes.text(value + longest * 0.015, place, rounded(value), va="center", fontsize=8)
    axes.set_yticks(
        range(len(names)), [SERVERS[name].title + marks.get(name, "") for name in names]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.22)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    axes.set_title(title)


def medians(results: Results, row: str, figure: Callable[[Result], float]) -> dict[str, float]:
    """Of the servers that got through, in the usual order."""
    found = {name: results.values(figure, row, name) for name in EVERY}
    return {name: median(values) for name, values in found.items() if values}


def marks(results: Results, row: str) -> dict[str, str]:
    """An asterisk for each server that lost a message, or with which something else went wrong."""
    return {name: " *" for name in EVERY if first_fault(results.of(row, name))}


def throughput(results: Results) -> Any:
    rows = [row for row in MAIN if medians(results, row, rate)]
    columns = 2
    height = (len(rows) + columns - 1) // columns
    figure, panels = pyplot.subplots(height, columns, figsize=(9.2, 2.15 * height), squeeze=False)
    figure.suptitle("Messages received a second", x=0.02, ha="left", fontweight="bold", fontsize=12)
    for axes in panels.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(panels.flat, rows, strict=False):
        bars(axes, ROWS[row].title, medians(results, row, rate), marks(results, row))
    figure.tight_layout()
    return figure


def idle(results: Results) -> Any:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.2, 2.5))
    count = f"{ROWS['idle'].cases[0].connections:,}"
    for axes, title, figure_of in (
        (left, f"KB an idle connection, of {count}", bytes_per_connection),
        (right, "New connections a second", connections_per_second),
    ):
        bars(axes, title, medians(results, "idle", figure_of), marks(results, "idle"))
    figure.tight_layout()
    return figure


def latency(results: Results, row: str) -> Any:
    """By percentile, one panel for each rate; the axis stretches the tail."""
    cases = results.cases(row)
    figure, panels = pyplot.subplots(
        1, len(cases), figsize=(2.2 + 2.6 * len(cases), 3.3), sharey=True, squeeze=False
    )
    for axes, case in zip(panels.flat, cases, strict=True):
        for name in EVERY:
            done = [r for run in results.of(row, name, case) if not (r := run.result)["failure"]]
            if done:
                known = {p: v for p in PERCENTILES if (v := percentile(done, p)) is not None}
                axes.plot(
                    list(known),
                    [value / 1000 for value in known.values()],
                    color=LINES[name],
                    marker="o",
                    markersize=2.5,
                    linewidth=2.4 if name == "wsc" else 1.2,
                    zorder=3 if name == "wsc" else 2,
                    label=SERVERS[name].title,
                )
        axes.set_yscale("log")
        axes.grid(axis="y", color="#e3e6ea", linewidth=0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(case)
    panels[0][0].set_ylabel("ms from when it was due")
    legend(figure, panels.flat[0])
    figure.suptitle(
        f"Latency: {ROWS[row].title}", x=0.02, ha="left", fontweight="bold", fontsize=11
    )
    figure.tight_layout()
    return figure


def legend(figure: Any, axes: Any) -> None:
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(lines, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def payload(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    for name in EVERY:
        runs = [run for run in results.of("payload", name) if not run.result["failure"]]
        if runs:
            series = sorted((run.x, rate(run.result)) for run in runs)
            curve(axes, name, series, SERVERS[name].title)
    axes.set_xlabel("bytes of the message")
    axes.set_ylabel("received a second")
    axes.set_title(ROWS["payload"].title)
    legend(figure, axes)
    return figure


def curve(axes: Any, name: str, series: list[tuple[float, float]], label: str) -> None:
    axes.loglog(
        [x for x, _ in series],
        [y for _, y in series],
        color=LINES[name],
        marker="o",
        markersize=3.5,
        linewidth=2.2 if name == "wsc" else 1.3,
        zorder=3 if name == "wsc" else 2,
        label=label,
    )
    axes.grid(color="#e3e6ea", linewidth=0.6)


def growth(results: Results, row: str) -> Any:
    figure, axes = pyplot.subplots(figsize=(5.4, 3.5))
    for name in results.servers(row):
        series = points(results, row, name)
        if len(series) > 1:
            exponent = power_law(series)[0]
            curve(axes, name, series, f"{SERVERS[name].title}: exponent {exponent:.2f}")
    axes.set_xlabel(
        {"grow-rooms": "rooms", "grow-payload": "bytes", "grow-queue": "messages in flight"}.get(
            row, "clients"
        )
    )
    axes.set_ylabel(cost(row)[0])
    axes.set_title(ROWS[row].title.split(", by")[0])
    axes.legend(frameon=False, fontsize=8)
    return figure
