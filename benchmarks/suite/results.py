"""Runs: written as JSON, read and merged again, and the figures that are drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from .machine import Result

BUSY_SHARE = 0.8  # of a core, that an undisturbed run takes on one side at least
_FAULTS = ("lost", "duplicated", "reordered", "corrupt", "unexpected_closes", "protocol_errors")


@dataclass(frozen=True)
class Run:
    row: str
    case: str
    x: float
    server: str
    round: int
    result: Result


@dataclass
class Results:
    """The figures of all runs. A session is machine, versions and command of one start."""

    sessions: list[dict[str, Any]]
    runs: list[Run]

    def replace(self, runs: list[Run]) -> None:
        """Takes these rows in place of those that are here under the same names."""
        replaced = {run.row for run in runs}
        self.runs = [run for run in self.runs if run.row not in replaced] + runs

    def merge(self, newer: Results) -> None:
        self.replace(newer.runs)
        self.sessions += newer.sessions

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sessions = ",\n".join(json.dumps(session) for session in self.sessions)
        runs = ",\n".join(json.dumps(asdict(run), separators=(",", ":")) for run in self.runs)
        path.write_text(f'{{"sessions": [\n{sessions}\n],\n"runs": [\n{runs}\n]}}\n')

    @classmethod
    def read(cls, path: Path) -> Results:
        data = json.loads(path.read_text())
        return cls(data["sessions"], [Run(**run) for run in data["runs"]])

    def of(self, row: str, server: str | None = None, case: str | None = None) -> list[Run]:
        return [
            run
            for run in self.runs
            if run.row == row
            and (server is None or run.server == server)
            and (case is None or run.case == case)
        ]

    def rows(self) -> list[str]:
        return list(dict.fromkeys(run.row for run in self.runs))

    def servers(self, row: str) -> list[str]:
        return list(dict.fromkeys(run.server for run in self.of(row)))

    def cases(self, row: str) -> list[str]:
        return list(dict.fromkeys(run.case for run in self.of(row)))

    def values(
        self, figure: Callable[[Result], float], row: str, server: str, case: str | None = None
    ) -> list[float]:
        """Of those runs that were finished."""
        return [
            figure(run.result) for run in self.of(row, server, case) if not run.result["failure"]
        ]

    def pairs(self, row: str, ours: str, theirs: str) -> list[tuple[Result, Result]]:
        """Of the same round."""
        other = {(run.case, run.round): run.result for run in self.of(row, theirs)}
        return [
            (run.result, other[run.case, run.round])
            for run in self.of(row, ours)
            if (run.case, run.round) in other
        ]


def faults(result: Result) -> str:
    """The faults that the load generator found, or an empty text."""
    found = [f"{result[kind]:,} {kind.replace('_', ' ')}" for kind in _FAULTS if result.get(kind)]
    return "; ".join(([result["failure"]] if result.get("failure") else []) + found)


def first_fault(runs: list[Run]) -> str:
    for run in runs:
        if fault := faults(run.result):
            return fault.splitlines()[0]
    return ""


def rate(result: Result) -> float:
    return float(result["deliveries_per_second"])


def per_cpu_second(result: Result) -> float:
    return float(result["deliveries"] / max(result["server_cpu_seconds"], 0.01))


def p99(result: Result) -> float:
    return float(result["latency_us"]["p99"])


def percentile(results: list[Result], key: str) -> float | None:
    """Median of a percentile of the latency ("p99.9"), in microseconds; None where a run had fewer
    than ten samples beyond it, so that it would be little but the longest."""
    beyond = 1 - float(key[1:]) / 100
    if any(r["latency_us"]["samples"] * beyond < 10 for r in results):
        return None
    return median(r["latency_us"][key] for r in results)


def is_disturbed(result: Result) -> bool:
    """Whether somebody else had the cores: with messages in flight, one of the two is busy."""
    return bool(max(result["server_cpu_share"], result["cpu_share"]) < BUSY_SHARE)


def spread(values: list[float], digits: int = 2) -> str:
    text = f"{median(values):,.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
    return text


def power_law(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Exponent and factor of y = factor * x ** exponent, by least squares of the logarithms."""
    xs, ys = [log(x) for x, _ in points], [log(y) for _, y in points]
    x_mean, y_mean = fmean(xs), fmean(ys)
    exponent = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - x_mean) ** 2 for x in xs
    )
    return exponent, exp(y_mean - exponent * x_mean)
