"""The benchmark suite runs: each row for a moment, with few clients, and nothing is lost.

The figures mean nothing here. These tests ask that the load generator, the C limit and
our server understand each other in each row, and that results can be written, read and merged.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.suite import scenarios
from benchmarks.suite.machine import Machine, build
from benchmarks.suite.measure import Measure, Timing
from benchmarks.suite.results import Results, Run, faults, power_law
from benchmarks.suite.servers import SERVERS, available

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or shutil.which("taskset") is None, reason="needs gcc and taskset"
)
# Rows that start other programs, or whose point is their size.
ROWS = (
    *("fanout-w32", "room-w32", "direct", "echo-w16", "mixed", "idle", "rooms-1000x10"),
    *("latency-fanout", "latency-echo", "latency-mixed", "publishers", "json", "tls", "deflate"),
)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_runs_without_faults(name: str) -> None:
    features = build()
    environment, skipped = available({"wsc"})
    assert not skipped
    measure = Measure(Machine(environment), Timing(1, seconds=0.1, warmup=0.05, full=False))
    row = scenarios.ROWS[name]
    case = replace(row.cases[0], connections=min(row.cases[0].connections, 40))
    if "--rooms" in case.options:
        others = [option for option in case.options if option == "--random"]
        case = replace(case, options=("--rooms", "20", "--room-size", "10", *others))
    if case.needs in {"tls", "deflate"} - features:
        pytest.skip(f"the load generator was built without {case.needs}")
    for server in ("c", "wsc"):
        if case.needs not in SERVERS[server].lacks:
            result = measure.run(row, case, server, 0).result
            assert not faults(result), result
            assert result["opened"] == case.connections
            assert row.kind == "idle" or result["latency_us"]["samples"] > 0


CLUSTER = Path(__file__).parent.parent / "benchmarks" / "cluster" / "run.py"


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
@pytest.mark.parametrize(
    "name", ["remote", "rate", "publish", "storm", "idle", "peers", "faults", "directory"]
)
def test_a_measure_of_several_hubs_runs(name: str) -> None:
    command = [sys.executable, CLUSTER, "--quick", "--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 2
    if name == "faults":  # kept rooms lose nothing; the last columns are missing, and so on
        assert [row[-3:] for row in rows[2:]] == [["0", "0", "0 |"]] * 2


def test_a_later_row_replaces_an_earlier_one(tmp_path: Path) -> None:
    def runs(row: str, *rates: float) -> list[Run]:
        return [
            Run(row, "", 0, "wsc", turn, {"failure": None, "rate": rate})
            for turn, rate in enumerate(rates)
        ]

    first = Results([{"date": "then"}], runs("echo-w1", 1, 2) + runs("direct", 3))
    first.write(tmp_path / "results.json")
    results = Results.read(tmp_path / "results.json")
    assert results == first
    results.merge(Results([{"date": "now"}], runs("echo-w1", 5)))
    assert results.values(lambda result: result["rate"], "echo-w1", "wsc") == [5]
    assert results.values(lambda result: result["rate"], "direct", "wsc") == [3]
    assert [session["date"] for session in results.sessions] == ["then", "now"]
    exponent, factor = power_law([(x, 3 * x**1.5) for x in (1, 10, 100)])
    assert (round(exponent, 6), round(factor, 6)) == (1.5, 3)
