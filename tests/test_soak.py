"""A short `make soak`, and the comparison that it relies on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trials.soak.messages import BYE_NUMBER, body, key_of, number_of, parse, priority_of
from trials.soak.model import SLOW, Model, Record, difference

ROOT = Path(__file__).parents[1]
ONE, TWO, THREE, FOUR = (number_of(counter) for counter in range(1, 5))
K1, K2, K3 = (number_of(counter, key=5) for counter in range(11, 14))


def test_ten_seconds_of_everything_at_once() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "trials.soak.run", "--seconds", "10", "--clients", "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8_000:] + run.stderr[-8_000:]
    assert "PASSED" in run.stdout


@pytest.mark.parametrize("priority", [1, 2, 3, 4])
@pytest.mark.parametrize("key", [0, 7])
def test_a_number_tells_its_message(priority: int, key: int) -> None:
    number = number_of(123, key=key, priority=priority, text=False)
    assert (key_of(number), priority_of(number), number & 1) == (key, priority, 0)
    assert parse(body(number, 500)) == number
    with pytest.raises(ValueError, match="differs"):
        parse(body(number, 500)[:-1])


@pytest.mark.parametrize(
    ("wanted", "got", "edge", "optional"),
    [
        ([], [], 0, 0),
        ([ONE, TWO, THREE], [ONE, TWO, THREE], 3, 0),
        ([ONE, TWO, THREE], [ONE, TWO], 2, 0),  # the third was sent after its goodbye
        ([ONE, BYE_NUMBER, TWO], [ONE, BYE_NUMBER], 2, 0),
        ([ONE, K1, TWO, K2], [ONE, TWO, K2], 4, 0),  # conflated
        ([ONE, TWO, THREE], [TWO, THREE], 3, 1),  # the first was held before it came
        ([ONE, TWO, THREE, FOUR], [THREE, FOUR], 4, 2),
        ([ONE, TWO], [], 2, 2),
    ],
)
def test_a_right_stream_has_no_difference(
    wanted: list[int], got: list[int], edge: int, optional: int
) -> None:
    assert difference(wanted, got, edge, optional) == ""


@pytest.mark.parametrize(
    ("wanted", "got", "edge", "optional", "text"),
    [
        ([ONE, TWO, THREE], [ONE, THREE], 3, 0, "to come 1 later"),  # lost
        ([ONE, TWO, THREE], [ONE, TWO], 3, 0, "missing at the end"),
        ([ONE, TWO, THREE], [ONE, TWO, TWO, THREE], 3, 0, "had before"),
        ([ONE, TWO], [ONE, TWO, TWO], 2, 0, "behind its last"),
        ([ONE, TWO, THREE], [TWO, ONE, THREE], 3, 0, "to come"),  # out of order
        ([ONE, TWO], [ONE, FOUR, TWO], 2, 0, "not its own"),
        ([ONE, K1, TWO, K2], [ONE, TWO], 4, 0, "under the key"),  # the latest is lost
        ([ONE, K1, TWO], [ONE, TWO], 3, 0, "under the key"),
        ([ONE, K1, K2, K3, TWO], [ONE, K2, K1, K3, TWO], 5, 0, "not its own|had before"),
        ([ONE, TWO, THREE], [ONE, THREE], 3, 1, "to come 1 later"),
        ([ONE, TWO], [], 2, 1, "missing at the end"),
    ],
)
def test_a_wrong_stream_is_told(
    wanted: list[int], got: list[int], edge: int, optional: int, text: str
) -> None:
    assert any(part in difference(wanted, got, edge, optional) for part in text.split("|"))


@pytest.mark.parametrize("code", [SLOW, None, 1001])
@pytest.mark.parametrize("excuse", ["", "late", "stood still"])
def test_what_a_slow_machine_excuses(code: int | None, excuse: str) -> None:
    model = Model()
    record = model.records[1] = Record(1, "good", "u1", good=True)
    model.take(["E", 1, "u1"])
    model.take(["B", ONE, []])
    model.take(["B", TWO, []])
    record.got.append(ONE)
    if excuse == "late":
        record.lagged = True
    elif excuse:
        model.take(["L", 3.0])
    record.code = code
    model.finished(record)
    assert not model.violations
    model.take(["G", 1, 1000])
    # It was closed by nobody, or read too slowly: neither where the machine stood still.
    excused = excuse == "stood still" or (excuse == "late" and code == SLOW)
    assert bool(model.violations) is not excused


def test_nothing_excuses_a_gap() -> None:
    model = Model()
    record = model.records[1] = Record(1, "good", "u1", good=True)
    for line in (
        ["E", 1, "u1"],
        ["B", ONE, []],
        ["B", TWO, []],
        ["L", 3.0],
        ["Y", 1],
        ["G", 1, 1000],
    ):
        model.take(line)
    record.got.append(TWO)
    model.finished(record)
    assert "to come 1 later" in model.violations[0]


@pytest.mark.parametrize("good", [True, False])
def test_a_held_message_that_vanishes(good: bool) -> None:
    model = Model()
    record = model.records[1] = Record(1, "good" if good else "reset", "u1", good=good)
    for line in (["E", 1, "u1"], ["U", ONE, True, "u1", [1]], ["Y", 1], ["G", 1, 1000]):
        model.take(line)
    record.said_bye = True
    model.finished(record)
    assert not model.violations
    model.end(unreported=0)
    # The kernel may have had it, for a client that then was reset.
    assert bool(model.violations) is good


@pytest.mark.parametrize("still", [False, True])
def test_what_is_overdue(still: bool) -> None:
    model = Model()
    record = model.records[1] = Record(1, "malformed", "u1", good=False)
    model.late(record, "is open after that")
    if still:
        model.take(["L", 24.0])  # it could not say so before
        model.late(record, "is open after that")
    assert not model.violations
    model.end(unreported=0)
    assert bool(model.violations) is not still


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("entered", [False, True])
def test_one_that_never_ended(entered: bool, still: bool) -> None:
    model = Model()
    record = model.records[1] = Record(1, "good", "u1", good=True)
    if entered:
        model.take(["E", 1, "u1"])
    if still:
        model.stood_still()
    model.finished(record)
    model.end(unreported=0)
    # Where the machine stood still it may not have been let in; if it was, its end has to come.
    assert bool(model.violations) is (entered or not still)
