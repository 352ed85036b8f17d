"""A short `make torture-clients`, and records and hubs that are wrong, which it has to notice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from tests.played import play
from tests.redis_server import PROGRAM
from tests.support import ROOT
from trials.clients.hubs import SCENARIOS
from trials.clients.networks import DEFAULTS, FAULTS, worst_wait
from trials.clients.pages import KINDS
from trials.clients.verdict import WRONG, End, ends, judge

ROOM = "kept0"


def torture(*arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, str]], str]:
    """Runs it; returns the exit status, the rows by scenario and client, and all that it said."""
    status, rows, said = play("trials.clients.run", "--quick", *arguments, timeout=200)
    return status, {(row["scenario"], row["client"]): row for row in rows}, said


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_no_client_misses_a_message_in_silence_whatever_is_cut_or_killed(scenario: str) -> None:
    status, rows, said = torture("--scenario", scenario)
    assert status == 0, said
    assert set(rows) == {(scenario, kind) for kind in KINDS}, said
    for row in rows.values():
        assert int(row["connections"]) > 1, said
        assert int(row["requests"]) > 3, said


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_hubs_that_break_their_promises_are_noticed() -> None:
    faults = ("lose", "double", "swap", "forget")
    status, rows, said = torture(
        *("--scenario", "three", "--client", "node"),
        *(word for fault in faults for word in ("--fault", fault)),
    )
    assert status == 1, said
    (row,) = rows.values()
    for kind in ("missing", "doubled", "disordered", "needless"):
        assert row[kind] != "0", said


# --- networks that are away for a while ---


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, str], dict[str, str]]:
    """The rows of a short run, by fault and client."""
    status, rows, said = play("trials.clients.networks", "--quick", timeout=200)
    assert status in (0, 1), said
    return {(row["fault"], row["client"]): row for row in rows}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_is_back_within_its_bound(
    networks: dict[tuple[str, str], dict[str, str]], fault: str, kind: str
) -> None:
    row = networks[fault, kind]
    assert float(row["back"]) <= float(row["bound"]), row
    assert row["wrong"] == row["late"] == "0", row
    assert (int(row["connections"]) > 1) == (fault not in ("sleep", "kept")), row


@pytest.mark.parametrize("fault", FAULTS)
def test_the_bounds_are_those_of_the_specification(fault: str) -> None:
    text = (ROOT / "clients" / "spec.md").read_text().partition("\n## Coming back\n")[2]
    (line,) = (line for line in text.splitlines() if f"| `{fault}` |" in line)
    seconds = FAULTS[fault].bound(DEFAULTS)
    assert f"{seconds:g} s" in line


def test_the_worst_wait_is_from_the_end_of_a_connection_to_the_next_one() -> None:
    states = (0, "open"), (1000, "waiting"), (1500, "connecting"), (1600, "waiting"), (4000, "open")
    assert worst_wait([[at, "state", state] for at, state in states]) == 3


# --- what one client saw ---


def saw(
    *entries: Sequence[Any],
    last: int = 3,
    lossless: bool = True,
    history: Sequence[int] = (1, 2, 3, 4),
) -> dict[str, int]:
    """The findings about a record with these entries, behind the join."""
    record = [[0, "first", ROOM, 0], *([0, *entry] for entry in entries)]
    counts = judge(record, {ROOM: End(last)}, {ROOM: history}, lossless=lossless).counts
    return {kind: counts[kind] for kind in WRONG if counts[kind]}


def messages(*numbers: int) -> list[list[Any]]:
    return [["message", ROOM, number] for number in numbers]


GAP = ["gap", ROOM, 0]
RECOVERED = ["recovered", ROOM, 1]


def test_a_whole_record_is_right() -> None:
    assert saw(*messages(1, 2, 3)) == {}
    assert saw(*messages(1, 2, 3), RECOVERED) == {}


def test_a_message_that_is_left_out_is_missing_from_the_first_on() -> None:
    assert saw(*messages(1, 3)) == {"missing": 1}
    assert saw(*messages(2, 3)) == {"missing": 1}
    assert saw(*messages(1), RECOVERED, *messages(3)) == {"missing": 1}


def test_a_loss_excuses_what_is_missing_at_its_place_and_nowhere_else() -> None:
    assert saw(*messages(1), GAP, *messages(3), lossless=False) == {}
    assert saw(*messages(1), GAP, *messages(2, 4), last=4, lossless=False) == {"missing": 1}
    assert saw(*messages(1), GAP, *messages(3)) == {"needless": 1}


def test_a_loss_of_the_bus_may_be_told_behind_the_messages_that_follow_it() -> None:
    after_loss = partial(saw, history=(1, 4, 5), last=5, lossless=False)
    assert after_loss(*messages(1, 4, 5)) == {"untold": 1}
    assert after_loss(*messages(1, 4), GAP, *messages(5)) == {}
    assert after_loss(*messages(1, 4, 5), RECOVERED) == {"untold": 1}


def test_a_loss_of_the_bus_excuses_nothing_else() -> None:
    after_loss = partial(saw, history=(1, 4), last=4, lossless=False)
    assert saw(*messages(1, 4), history=(1, 4), last=4) == {"missing": 1}
    # It has seen what the bus has lost, so that it has to be told.
    assert after_loss(*messages(1, 2, 4)) == {"missing": 1}
    assert after_loss(*messages(1, 2), GAP, *messages(4)) == {}
    assert saw(*messages(1, 4), lossless=False, history=(1, 3, 4), last=4) == {"missing": 1}


def test_a_message_twice_is_doubled_unless_the_bus_has_lost_it() -> None:
    assert saw(*messages(1, 2, 2, 3)) == {"doubled": 1}
    assert saw(*messages(1, 2), GAP, *messages(2, 3)) == {"doubled": 1, "needless": 1}
    assert saw(*messages(1, 2), GAP, *messages(2, 3), lossless=False) == {}
    assert saw(*messages(1, 2), GAP, *messages(2, 2, 3), lossless=False) == {"doubled": 1}


def test_a_message_after_a_later_one_is_disordered() -> None:
    assert saw(GAP, *messages(2, 1, 3), lossless=False) == {"disordered": 1}


def test_a_client_that_is_not_at_the_end_is_late() -> None:
    assert saw(*messages(1, 2)) == {"late": 1}
    room = {ROOM: End(3)}
    assert not ends([[0, "message", ROOM, 2]], room)
    assert not ends([[0, "message", ROOM, 3], [0, "asked", 0]], room)
    assert ends([[0, "message", ROOM, 3], [0, "asked", 0], [0, "rejected", 0, ""]], room)


def test_a_loss_that_is_told_behind_the_last_message_stands_for_it() -> None:
    room = {ROOM: End(3, at=50.0)}
    for at, is_late in ((49, 1), (50, 0)):
        record = [[1, "first", ROOM, 0], [2, "message", ROOM, 1], [at, *GAP]]
        assert ends(record, room) != is_late
        assert judge(record, room, {ROOM: [1, 2, 3]}, lossless=False).counts["late"] == is_late


def test_a_client_that_is_closed_refused_or_throws_is_broken() -> None:
    closed = ["state", "closed", 1006, "unauthorized"]
    for entry in (closed, ["refused", ROOM, "forbidden"], ["error", "TypeError"]):
        assert saw(*messages(1, 2, 3), entry) == {"broken": 1}


def test_each_request_has_one_answer_of_its_own() -> None:
    answer = ["answered", 0, {"number": 0}]
    assert saw(*messages(1, 2, 3), ["asked", 0], answer) == {}
    wrong = [
        [["asked", 0]],
        [["asked", 0], answer, answer],
        [["asked", 0], ["answered", 0, {"number": 1}]],
        [["asked", 0], ["rejected", 0, "lost"]],
        [answer],
    ]
    for entries in wrong:
        assert saw(*messages(1, 2, 3), *entries) == {"unanswered": 1}
