"""A short `make torture`, and stores that break their word, which it has to notice."""

from __future__ import annotations

import pytest

from tests.played import play
from tests.redis_server import PROGRAM
from trials.torture.ledger import Ledger, ranges

SCENARIOS = [
    (scenario, store)
    for scenario in ("kill", "full-disk", "late-store", "two-processes", "rolling-restart")
    for store in ("sqlite", "redis")
    if (scenario, store) != ("full-disk", "redis")
]


def torture(*arguments: str) -> tuple[int, dict[str, str], str]:
    """Runs it; returns the exit status, the last row of the table by column, and all that it said.

    The row is empty where nothing was played.
    """
    status, rows, said = play("trials.torture.run", *arguments, timeout=110)
    return status, rows[-1] if rows else {}, said


@pytest.mark.fault(number="G8")
@pytest.mark.parametrize(("scenario", "store"), SCENARIOS)
def test_accepted_messages_outlast_kill_9_and_are_seen_once_in_order(
    scenario: str, store: str
) -> None:
    if store == "redis" and PROGRAM is None:
        pytest.skip("redis-server is not installed")
    status, row, said = torture("--quick", "--scenario", scenario, "--store", store)
    if not row and "no mount namespaces" in said:
        pytest.skip("mount namespaces are not allowed")
    assert status == 0, said
    assert int(row["accepted"].replace(",", "")) > 100, said


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [("lose", "lost"), ("double", "doubled"), ("swap", "disordered"), ("keep", "left")],
)
def test_a_store_that_breaks_its_word_is_noticed(fault: str, noticed: str) -> None:
    status, row, said = torture(
        *("--scenario", "kill", "--store", "sqlite", "--rounds", "3", "--users", "8"),
        *("--fault", fault, "--patience", "1"),
    )
    assert status == 1, said
    assert row[noticed] != "0", said


def record(*numbers: int, order_of_accepted: bool = False) -> Ledger:
    """A ledger of ann, who saw these numbers of the sender A; all but 3 were accepted."""
    ledger = Ledger(["ann"], order_of_accepted=order_of_accepted)
    for number in {*numbers} - {3}:
        ledger.accept("ann", ("A", number))
    for number in numbers:
        ledger.see("ann", ("A", number), "now")
    return ledger


def test_messages_seen_in_order_are_right() -> None:
    ledger = record(1, 2, 3, 4)
    ledger.see("ann", ("B", 1), "now")  # each sender has an order of its own
    ledger.judge()
    assert not ledger.counts
    assert not ledger.missing["ann"]


def test_a_late_one_is_out_of_order_and_the_next_ones_are_not() -> None:
    ledger = record(1, 4, 2, 5)
    ledger.judge()
    assert ledger.counts == {"disordered": 1}


def test_a_refused_one_has_no_order() -> None:
    ledger = record(1, 4, 3, 5)
    ledger.refuse("ann", ("A", 3))
    ledger.judge()
    assert not ledger.counts


def test_a_message_that_nobody_awaited_has_an_order_unless_the_store_fails() -> None:
    ledger = record(1, 4, 3, 5)
    ledger.judge()
    assert ledger.counts == {"disordered": 1}
    ledger = record(1, 4, 3, 5, order_of_accepted=True)
    ledger.judge()
    assert not ledger.counts


def test_a_message_that_is_seen_twice_is_doubled() -> None:
    ledger = record(1, 2, 2, 4)
    ledger.judge()
    assert ledger.counts == {"doubled": 1}


def test_an_accepted_message_is_missing_until_it_is_seen() -> None:
    ledger = record(1)
    ledger.accept("ann", ("A", 2))
    assert ledger.missing["ann"] == {("A", 2)}
    ledger.see("ann", ("A", 2), "now")
    assert not ledger.missing["ann"]


def test_a_report_names_messages_in_few_words() -> None:
    assert ranges([]) == "nothing"
    assert ranges([("B", 12), ("A", 9), ("A", 3), ("A", 4), ("A", 5)]) == "A 3-5 9, B 12"
