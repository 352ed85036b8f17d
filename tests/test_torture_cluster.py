"""A short `make torture-cluster`, and wrong traces and nodes, which it has to notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.played import play
from tests.redis_server import PROGRAM, RedisServer
from trials.torture_cluster.buses import PREFIX
from trials.torture_cluster.findings import KINDS, Findings
from trials.torture_cluster.process import Answer, trouble
from trials.torture_cluster.publishers import Publishers
from trials.torture_cluster.record import Record, read
from trials.torture_cluster.scenarios import SCENARIOS
from trials.torture_cluster.views import PlainView, RoomView, UnawareView

ROOM = "kept0"


def torture(*arguments: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Runs it; returns the exit status, the rows of the table by title, and all that it said."""
    status, rows, said = play("trials.torture_cluster.run", *arguments, timeout=200)
    return status, {row["scenario"]: row for row in rows}, said


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_several_hubs_lose_nothing_in_silence_whatever_is_killed_or_frozen() -> None:
    scenarios = (word for name in SCENARIOS for word in ("--scenario", name))
    status, rows, said = torture("--quick", *scenarios)
    assert status == 0, said
    assert {"together", "failover"} == set(rows), said
    assert int(rows["together"]["rounds"]) == len(SCENARIOS) - 1
    assert int(rows["together"]["heals"]) > 0
    assert int(rows["together"]["gaps"]) > 0
    assert int(rows["failover"]["gaps"]) > 0


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_nodes_that_break_every_promise_are_noticed_in_every_column() -> None:
    faults = ["lose", "double", "swap", "invent", "forget", "keep", "shout"]
    status, rows, said = torture(
        *("--scenario", "hop", "--rounds", "2", "--patience", "1"),
        *(word for fault in faults for word in ("--fault", fault)),
    )
    assert status == 1, said
    assert [kind for kind in KINDS if rows["hop"][kind] == "0"] == ["untold"], said


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_nodes_that_keep_a_loss_to_themselves_are_noticed() -> None:
    status, rows, said = torture(
        *("--scenario", "rewind", "--rounds", "8", "--patience", "3", "--first", "--fault", "hush")
    )
    assert (status, rows["rewind"]["untold"]) == (1, "1"), said


# --- what one client saw ---


def told(*texts: str, room: str = ROOM) -> Record:
    """A record of a room with these messages: `1-0.t`, `2-0.t` and so on."""
    record = Record(Findings())
    entries = [(at(n), at(0) if n == 1 else None, text) for n, text in enumerate(texts, 1)]
    record.take(room, at(len(texts)), entries)
    return record


def at(number: int) -> str:
    return f"{number}-0.t"


def saw(
    *heads: tuple[dict[str, Any], str],
    record: Record | None = None,
    lossless: bool = True,
    place: str | None = None,
) -> dict[str, int]:
    """The findings about an aware client that got these heads and payloads."""
    findings = Findings()
    view = RoomView("ann", ROOM, place)
    view.connected("A")
    for head, payload in heads:
        view.head(head, payload, findings)
    view.judge(record or told("a", "b", "c", "d"), findings, lossless=lossless)
    return dict(findings.counts)


def message(number: int, text: str) -> tuple[dict[str, Any], str]:
    return {"room": ROOM, "pos": at(number)}, text


def joined(number: int, **head: Any) -> tuple[dict[str, Any], str]:
    return {"room": ROOM, "pos": at(number), **head}, ""


FIRST = joined(0, recovered=False, first=True)


def test_a_whole_trace_is_right() -> None:
    assert saw(FIRST, message(1, "a"), message(2, "b")) == {}
    assert saw(message(2, "b"), joined(2, recovered=True, missed=1), place=at(1)) == {}


def test_a_message_that_is_left_out_is_missing() -> None:
    assert saw(FIRST, message(1, "a"), message(3, "c")) == {"missing": 1}


def test_a_recovery_that_is_not_whole_is_missing() -> None:
    recovered = joined(3, recovered=True, missed=1)
    assert saw(message(2, "b"), recovered, place=at(1)) == {"missing": 1}
    assert saw(message(2, "b"), joined(2, recovered=True, missed=2), place=at(1)) == {"missing": 1}
    assert saw(FIRST, place=at(1)) == {"missing": 1}  # it had named a position


def test_a_loss_that_the_client_was_told_of_is_right_where_the_bus_loses() -> None:
    gap = {"gap": ROOM, "pos": at(2)}, ""
    assert saw(FIRST, gap, message(3, "c"), lossless=False) == {}
    lost = joined(2, recovered=False)
    assert saw(lost, message(3, "c"), place=at(1), lossless=False) == {}


def test_a_client_behind_a_loss_has_to_be_told_of_it_if_a_publisher_was_answered() -> None:
    record = told("a", "b", "c")
    record.lost(ROOM, {at(1)})
    record.take(ROOM, at(5), [(at(1), None, "a"), (at(4), None, "d"), (at(5), None, "e")])
    gap = {"gap": ROOM, "pos": at(4)}, ""

    def untold(*heads: tuple[dict[str, Any], str], accepted: set[str]) -> bool:
        view = RoomView("ann", ROOM, at(1))
        for head, payload in heads:
            view.head(head, payload, Findings())
        return bool(view.untold(record, accepted))

    assert untold(message(4, "d"), message(5, "e"), accepted={at(3), at(4)})
    assert not untold(message(4, "d"), accepted={at(1), at(4)})
    assert not untold(message(4, "d"), gap, message(5, "e"), accepted={at(3)})
    assert not untold(gap, message(5, "e"), accepted={at(3)})
    assert not untold(message(2, "b"), gap, accepted={at(3)})


def test_a_needless_gap_is_noticed() -> None:
    assert saw(FIRST, ({"gap": ROOM, "pos": at(2)}, "")) == {"needless": 1}
    assert saw(joined(2, recovered=False), place=at(1)) == {"needless": 1}
    # It is no such thing where the client missed more than a recovery gives.
    texts = [str(number).ljust(100_000) for number in range(9)]
    most = [message(number, texts[number - 1]) for number in range(2, 7)]
    record = told(*texts)
    assert saw(*most, joined(9, recovered=False), record=record, place=at(1)) == {}
    assert saw(joined(4, recovered=False), record=record, place=at(1)) == {"needless": 1}


def test_a_message_twice_is_doubled() -> None:
    assert saw(FIRST, message(1, "a"), message(1, "a")) == {"doubled": 1, "missing": 1}
    twice = told("a", "b", "a")
    assert saw(FIRST, message(1, "a"), message(2, "b"), message(3, "a"), record=twice) == {
        "doubled": 1
    }


def test_a_message_after_a_later_one_is_disordered() -> None:
    found = saw(FIRST, message(2, "b"), message(1, "a"))
    assert found["disordered"] == 1
    assert saw(message(1, "a"))["disordered"] == 1  # it was no member


def test_a_message_that_the_history_never_had_is_unrecorded() -> None:
    assert saw(FIRST, message(1, "another text")) == {"unrecorded": 1}
    assert saw(FIRST, message(7, "g")) == {"unrecorded": 1}


def test_a_client_without_positions_is_judged_by_its_texts() -> None:
    texts = [f"{ROOM} p {number}" for number in range(4)]
    record = told(*texts)

    def found(*seen: str, lossless: bool = True) -> dict[str, int]:
        findings = Findings()
        view = UnawareView("bob")
        for text in seen:
            view.message(text)
        view.judge(record, findings, lossless=lossless)
        return dict(findings.counts)

    assert found(*texts[1:]) == {}
    assert found(texts[0], texts[2]) == {"missing": 1}
    assert found(texts[0], texts[2], lossless=False) == {}
    assert found(texts[1], texts[1]) == {"doubled": 1}
    assert found(texts[1], texts[0]) == {"disordered": 1}
    assert found(f"{ROOM} p 9") == {"unrecorded": 1}


def test_a_hole_in_a_plain_room_needs_a_gap_or_a_report() -> None:
    def found(*seen: int, unsaid: int = 0, gap_before: int = 0) -> dict[str, int]:
        findings = Findings()
        view = PlainView("ann", aware=True)
        for number in seen:
            if number == gap_before:
                view.gap()
            view.message(f"plain A {number}", findings)
        view.judge({f"plain A {unsaid}"}, findings)
        return dict(findings.counts)

    assert found(4, 5, 6) == {}
    assert found(4, 6) == {"missing": 1}
    assert found(4, 6, unsaid=5) == {}
    assert found(4, 6, gap_before=6) == {}
    assert found(4, 5, 7, gap_before=5) == {"missing": 1}
    assert found(4, 4) == {"doubled": 1}
    assert found(4, 5, 4) == {"disordered": 1}


# --- the record, and the answers ---


def test_a_text_twice_in_the_history_is_doubled() -> None:
    findings = Findings()
    record = Record(findings)
    for _ in range(2):
        record.take(ROOM, at(2), [(at(1), None, "a"), (at(2), None, "a")])
    assert findings.counts == {"doubled": 1}


def test_a_history_whose_order_changes_is_disordered() -> None:
    findings = Findings()
    record = Record(findings)
    record.take(ROOM, at(3), [(at(1), None, "a"), (at(2), None, "b"), (at(3), None, "c")])
    record.take(ROOM, at(3), [(at(1), None, "a"), (at(3), None, "c")])
    assert findings.counts == {"disordered": 1}


def test_messages_that_a_server_lost_stay_in_the_record() -> None:
    record = told("a", "b", "c")
    record.take(ROOM, at(4), [(at(1), None, "a"), (at(4), None, "d")])
    assert record.before[at(4)] == at(1)
    assert record.before[at(3)] == at(2)
    assert record.is_within(at(1), at(4), 1, 100)
    assert not record.is_within(at(3), at(4), 10, 100)
    assert not record.is_within(at(1), at(3), 1, 100)
    assert not record.is_within(at(1), at(3), 2, 1)


def test_an_answer_without_a_message_in_the_history_is_unrecorded() -> None:
    def found(judge: Callable[[Publishers], None]) -> dict[str, int]:
        findings = Findings()
        publishers = Publishers(0, [], [], findings)
        judge(publishers)
        publishers.judge(told("a"))
        return dict(findings.counts)

    assert found(lambda each: each.take("a", Answer(at(1), False), 1)) == {}
    assert found(lambda each: each.take("a", Answer(at(1), True), 2)) == {}
    assert found(lambda each: each.take("a", Answer(at(1), True), 1)) == {"unrecorded": 1}
    assert found(lambda each: each.take("b", Answer(at(1), False), 1)) == {"unrecorded": 1}
    assert found(lambda each: each.take("a", Answer(at(2), False), 1)) == {"unrecorded": 1}
    assert found(lambda each: each.take_again("a", Answer(at(1), True))) == {}
    assert found(lambda each: each.take_again("a", Answer(at(1), False))) == {"doubled": 1}


def test_the_record_is_read_from_the_streams(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        stream, top = f"{PREFIX}h:{{{ROOM}}}", f"{PREFIX}t:{{{ROOM}}}"
        server.command("XADD", stream, "1-0", "m", "T t 0 0 1\na", "p", "0-0.S")
        server.command("XADD", stream, "2-0", "m", "U t 3 1 2\nannkbc")
        server.command("XADD", stream, "3-0", "m", "V g 0 0 0\n")
        server.command("SET", top, "2-0.U")
        assert read(server.port, PREFIX, [ROOM, "other"]) == [
            (
                ROOM,
                "2-0.U",
                [("1-0.T", "0-0.S", "a"), ("2-0.U", None, "bc"), ("3-0.V", None, "mark 3-0.V")],
            ),
            ("other", None, []),
        ]


def test_a_log_with_a_traceback_is_trouble(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("all is well\n")
    assert trouble(log) == []
    log.write_text("all is well\nTraceback (most recent call last):\n  File\n")
    assert trouble(log) == ["Traceback (most recent call last): |   File"]
