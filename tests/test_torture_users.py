"""A short torture of users over several hubs, and hubs that break their word, which it notices."""

from __future__ import annotations

import math
import time

import pytest

from tests.played import play
from tests.redis_server import PROGRAM
from trials.crowd import Door, Mood
from trials.torture.ledger import Name
from trials.torture_cluster import user_ledger
from trials.torture_cluster.user_ledger import KINDS, LATE, UserLedger
from trials.torture_cluster.user_rooms import GRACE, rooms_of
from wsc_fast import Hub, HubMessage, Identity
from wsc_fast.testing import eventually

# Together they kill, cut off and replace hubs, and kill Redis.
QUICK = ["users-both", "users-partition", "users-restart"]
# The promises that hubs and stores break, and that fill every column but those of UNIT.
FAULTS = ["lose", "double", "swap", "keep", "repeat", "deny", "linger", "hurry", "litter", "shout"]
# A violation that no fault provokes, and that a test of the users shows.
UNIT = "astray"


def torture(*arguments: str) -> tuple[int, dict[str, str], str]:
    """Runs it; returns the exit status, the row of the table by column, and all that it said."""
    status, rows, said = play("trials.torture_cluster.run", *arguments, timeout=250)
    return status, rows[-1] if rows else {}, said


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_users_lose_nothing_whatever_hub_or_bus_is_killed_cut_off_or_replaced() -> None:
    scenarios = (word for name in QUICK for word in ("--scenario", name))
    status, row, said = torture("--quick", *scenarios)
    assert status == 0, said
    assert int(row["rounds"]) == len(QUICK)
    assert int(row["accepted"].replace(",", "")) > 100, said
    assert int(row["confirmed"].replace(",", "")) > 100, said


@pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")
def test_hubs_that_break_every_promise_are_noticed_in_every_column() -> None:
    status, row, said = torture(
        *("--scenario", "users-hop", "--rounds", "1", "--patience", "1"),
        *(word for fault in FAULTS for word in ("--fault", fault)),
    )
    assert status == 1, said
    assert [kind for kind in KINDS if row[kind] == "0"] == [UNIT], said


# --- the ledger ---

FIRST: Name = ("A", 1)


def ledger(*, store_fails: bool = False, cut_off: bool = False) -> UserLedger:
    return UserLedger(["user0", "user1"], store_fails=store_fails, cut_off=cut_off)


def test_each_device_has_an_order_of_its_own() -> None:
    record = ledger()
    for number, device in [(1, "/a"), (3, "/a"), (2, "/b"), (3, "/b")]:
        record.see("user0", ("A", number), "now", device)
    record.judge()
    assert not record.counts
    record.see("user0", ("A", 2), "now", "/a")
    record.judge()
    assert record.counts == {"disordered": 1}


class Clock:
    """The time of a ledger."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(user_ledger, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("behind", [None, "user1", "user0"])
def test_stored_messages_may_come_late_once_the_store_has_not_answered(
    behind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    record = ledger()
    record.see("user0", ("A", 2), "now", "/a")
    if behind is not None:
        record.fall_behind(behind)
    clock.now += 14
    record.see("user0", ("A", 1), "now", "/a")
    record.judge()
    assert record.counts["disordered"] == (behind != "user0")


@pytest.mark.parametrize(
    ("seconds", "happens", "judged"),
    [
        (0.9, "", False),  # the answer may be on its way to the store
        (1.1, "", True),
        (0.9, "killed", False),
        (9.0, "killed", False),
        (9.0, "killed late", True),
        (9.0, "cut", False),
        (9.0, "cut before", False),
        (9.0, "cut and back", True),
    ],
)
def test_a_message_may_come_late_that_another_device_is_answering(
    seconds: float, happens: str, judged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    record = ledger()
    record.see("user0", ("A", 1), "now", "/b")
    record.see("user0", ("A", 2), "now", "/a")
    if happens in ("cut before", "cut and back"):
        record.cut(True)
    if happens == "cut and back":
        record.cut(False)
    record.answer("user0", ("A", 1))
    clock.now += 2.0 if happens == "killed late" else 0.5
    if happens.startswith("killed"):
        record.kill()
    elif happens == "cut":
        record.cut(True)
    clock.now += seconds - 0.5
    record.see("user0", ("A", 1), "now", "/a")
    record.judge()
    assert record.counts["disordered"] == judged


def test_a_hub_that_cannot_ask_may_tell_once_more() -> None:
    for is_alone in (False, True):
        record = ledger()
        record.tell("A", "user0", FIRST, "unknown")
        if is_alone:
            record.be_alone("B")
        record.tell("B", "user0", FIRST, "unknown")
        assert record.counts["told"] == (not is_alone)


def test_a_message_that_one_device_has_seen_is_not_missing() -> None:
    record = ledger()
    record.see("user0", FIRST, "now", "/b")
    record.accept("user0", FIRST)
    record.accept("user1", FIRST)
    assert record.total(record.missing) == 1


def test_a_failure_that_two_hubs_tell_is_told_twice() -> None:
    record = ledger()
    record.tell("A", "user0", FIRST, "unknown")
    record.tell("B", "user1", FIRST, "unknown")
    assert not record.counts
    record.tell("B", "user0", FIRST, "ack_timeout")
    assert record.counts == {"told": 1}


def test_a_sender_who_hears_of_a_drop_is_misled_unless_the_store_fails() -> None:
    record = ledger()
    record.end("A", "confirmed", "user0", FIRST)
    record.end("A", "AckFailedError", "user0", FIRST)
    assert not record.counts
    record.end("A", "AckDroppedError", "user0", FIRST)
    record.end("A", "AckTimeoutError", "user0", FIRST)
    assert record.counts == {"misled": 2}
    record = ledger(store_fails=True)
    record.end("A", "AckDroppedError", "user0", FIRST)
    assert not record.counts


@pytest.mark.parametrize(
    ("away", "back", "is_wrong"),
    [
        (GRACE / 4, 0.0, True),
        (GRACE, 0.0, False),
        # He is back, and was away for so long before.
        (GRACE / 4, 1.0, True),
        (GRACE, 1.0, False),
        (GRACE, 2 * LATE, True),
    ],
)
def test_a_user_has_left_who_was_away_for_longer_than_the_grace_of_late(
    away: float, back: float, is_wrong: bool
) -> None:
    now = time.monotonic()
    for cut_off in (False, True):
        record = ledger(cut_off=cut_off)
        first, second = record.crowd.users["user0"].devices
        room, room_of_devices = rooms_of("user0", "a")
        first.visits.append((now - 100.0, now - back - away))
        if back:
            first.visits.append((now - back, math.inf))
        record.leave("B", room, "user0")
        assert record.counts["offline"] == (is_wrong and not cut_off)
        # The other device is in the first room alone.
        second.visits.append((now - 50.0, math.inf))
        record.leave("B", room_of_devices, "user0")
        assert record.counts["offline"] == 2 * (is_wrong and not cut_off)
        record.leave("B", room, "user0")
        assert record.counts["offline"] == (2 * is_wrong + 1) * (not cut_off)


async def test_a_message_of_another_user_is_astray() -> None:
    record = ledger()
    door = Door("A")
    hub = Hub(authenticate=lambda request: Identity(request.query["user"]))
    message = HubMessage(content="A 1", to="user1")
    hub.on_client_connected(lambda client: hub.send_to_client(client.id, message))
    await hub.start("127.0.0.1", door.port, reuse_port=True)
    record.crowd.doors.append(door)
    async with record.crowd as crowd:
        crowd.be(Mood.CALM, crowd.users["user0"].devices)
        await eventually(lambda: record.counts == {"astray": 2})
        crowd.be(Mood.CALM, crowd.users["user1"].devices)
        await eventually(lambda: len(record.seen) == 2)
        crowd.check()
    await hub.stop()
    assert record.counts == {"astray": 2}
