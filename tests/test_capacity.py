"""The model of capacity in benchmarks/cluster, and its tables in the docs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.cluster.capacity import CORES, ROOMS, Capacity, Costs, short, tables
from benchmarks.cluster.workers import COSTS, fit

PAGE = Path(__file__).parents[1] / "docs/benchmarks/workers.md"
ROUND = Costs(sender=10, worker=5, recipient=1, redis=4, subscriber=2, connection=100)


def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    costs = Costs.of(json.loads(COSTS.read_text()), 32)
    printed = tables(costs, list(CORES), list(ROOMS), 0.7)
    assert printed in PAGE.read_text(), "python benchmarks/cluster/capacity.py prints them"


def test_a_message_costs_each_worker_that_has_a_member() -> None:
    one = Capacity(ROUND, 1, 100, 0.5)
    assert one.reached == 1
    assert one.of_workers == 10 + 5 + 100
    assert one.by_workers == 0.5e6 / 115 == one.by_room
    assert one.of_redis == 6
    four = Capacity(ROUND, 4, 1000, 0.5)
    assert four.reached == pytest.approx(4)
    assert four.of_workers == pytest.approx(10 + 4 * 5 + 1000)
    assert four.by_redis == pytest.approx(0.5e6 / 12)
    assert four.servers == 1
    assert four.one_room == pytest.approx(0.5e6 / (5 + 1010 / 4))


def test_small_rooms_meet_the_limit_of_redis_and_large_ones_that_of_each_worker() -> None:
    small = [Capacity(ROUND, workers, 2, 1.0) for workers in (1, 64, 640)]
    assert small[0].servers == 1
    assert small[1].reached == pytest.approx(2, abs=0.02)
    assert small[2].servers > small[1].servers > 1
    # However many workers there are: one Redis has them all as subscribers.
    large = Capacity(ROUND, 640, 100_000, 1.0)
    assert large.one_room == pytest.approx(1e6 / (4 + 2 * 640), rel=0.01)


def test_the_fit_finds_the_costs_and_none_below_nothing() -> None:
    rows = [(1.0, float(k), float(r)) for k, r in itertools.product((1, 2, 4), (12, 240))]
    values = [10 + 5 * k + r for _, k, r in rows]
    assert fit(rows, values) == pytest.approx([10, 5, 1])
    found = fit(rows, [100 - 5 * k + r for _, k, r in rows])
    assert found[1] == 0
    assert min(found) >= 0


def test_figures_have_three_digits_that_count() -> None:
    assert [short(value) for value in (0.1234, 12.34, 999.4, 1234.0, 123_456.0)] == [
        "0.123",
        "12.3",
        "999",
        "1,230",
        "123,000",
    ]
