"""The work on what a bus brings is done in short turns, and few reads are under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from wsc_fast.bus.base import Page, Retention
from wsc_fast.cluster import reads as reads_module
from wsc_fast.cluster import turns as turns_module
from wsc_fast.cluster.reads import Reads
from wsc_fast.cluster.turns import Turns

KEEP = Retention(100, 300.0)
PAGE = Page("1.x", True, ())


class Work:
    """Turns, and a record of the steps that were done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.room = True
        self.idles = 0
        self.turns = Turns(lambda: self.room, self.idle)

    def idle(self) -> None:
        self.idles += 1

    def steps(self, name: str, count: int) -> Iterator[None]:
        for number in range(count):
            self.done.append(f"{name}{number}")
            yield

    def failing(self) -> Iterator[None]:
        self.done.append("failing")
        yield
        raise ValueError("as the test wants it")


async def a_turn() -> None:
    await asyncio.sleep(0)


async def test_work_is_done_in_the_call_where_there_is_time() -> None:
    work = Work()
    work.turns.run(work.steps("a", 3))
    assert work.done == ["a0", "a1", "a2"]
    assert (len(work.turns), work.idles) == (0, 1)


async def test_work_goes_on_in_order_once_the_outboxes_have_room() -> None:
    work = Work()
    work.room = False
    work.turns.run(work.steps("a", 2))
    work.turns.run(work.steps("b", 1))
    await a_turn()
    assert (work.done, len(work.turns), work.idles) == ([], 2, 0)
    work.room = True
    await a_turn()
    assert (work.done, len(work.turns), work.idles) == (["a0", "a1", "b0"], 0, 1)


async def test_a_turn_ends_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(turns_module, "monotonic", lambda: now)
    work = Work()

    def slow() -> Iterator[None]:
        nonlocal now
        for each in work.steps("slow", 3):
            now += turns_module.BUDGET * 0.6
            yield each

    work.turns.run(slow())
    assert work.done == ["slow0", "slow1"]
    work.turns.run(work.steps("next", 1))  # behind it
    assert work.done == ["slow0", "slow1"]
    await a_turn()
    assert work.done == ["slow0", "slow1", "slow2", "next0"]
    # All that is done in one turn shares its budget.
    work.turns.run(slow())
    assert len(work.done) == 5
    await a_turn()
    assert len(work.done) == 7


async def test_an_error_ends_its_own_work_alone() -> None:
    work = Work()
    with pytest.raises(ValueError, match="as the test wants it"):
        work.turns.run(work.failing())
    work.turns.run(work.steps("a", 1))
    assert work.done == ["failing", "a0"]


async def test_work_of_a_step_comes_after_it() -> None:
    work = Work()

    def outer() -> Iterator[None]:
        work.turns.run(work.steps("inner", 1))
        yield from work.steps("outer", 2)

    work.turns.run(outer())
    assert work.done == ["outer0", "outer1", "inner0"]


async def test_a_stop_drops_what_waits() -> None:
    work = Work()
    work.room = False
    work.turns.run(work.steps("a", 1))
    work.turns.forget()
    work.room = True
    await a_turn()
    assert work.done == []
    work.turns.run(work.steps("b", 1))
    assert work.done == ["b0"]


# --- reads ---


class Asked:
    """Reads whose answers the test gives. A room begins with the number of its server."""

    def __init__(self, servers: int = 1) -> None:
        self.servers = servers
        self.rooms: list[str] = []
        self.answers: list[asyncio.Future[Page]] = []
        self.work = Work()
        self.work.turns = Turns(lambda: self.work.room, lambda: self.reads.go_on())
        self.reads = Reads(self.ask, self.server_of, lambda: self.servers, self.work.turns)

    def ask(
        self, room: str, since: str | None, limit: int, retention: Retention
    ) -> asyncio.Future[Page]:
        self.rooms.append(room)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def server_of(self, room: str) -> int:
        return int(room[0]) if self.servers > 1 else 0

    def read(self, room: str) -> asyncio.Future[Page]:
        return self.reads.read(room, None, 0, KEEP)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_module, "MOST_READS", 2)


@pytest.mark.usefixtures("few")
async def test_few_reads_are_under_way_at_once() -> None:
    asked = Asked()
    answers = [asked.read(room) for room in "abcd"]
    assert asked.rooms == ["a", "b"]
    asked.answers[1].set_result(PAGE)
    await a_turn()
    assert await answers[1] is PAGE
    assert asked.rooms == ["a", "b", "c"]
    asked.answers[2].set_exception(OSError("no answer"))
    with pytest.raises(OSError, match="no answer"):
        await answers[2]
    asked.answers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await answers[0]
    asked.answers[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await answers[3]


@pytest.mark.usefixtures("few")
async def test_reads_of_a_server_that_is_away_hold_up_no_others() -> None:
    asked = Asked(servers=2)
    for room in ("0a", "0b", "0c", "1a", "1b"):
        asked.read(room)
    assert asked.rooms == ["0a", "1a"]
    asked.answers[1].set_result(PAGE)
    await a_turn()
    assert asked.rooms == ["0a", "1a", "1b"]
    asked.answers[0].set_exception(OSError("no answer"))
    await a_turn()
    assert asked.rooms == ["0a", "1a", "1b", "0b"]


@pytest.mark.usefixtures("few")
async def test_no_read_begins_while_many_pages_wait() -> None:
    asked = Asked()
    asked.work.room = False
    for name in "xy":
        asked.work.turns.run(asked.work.steps(name, 1))
    asked.read("a")
    assert asked.rooms == []
    asked.work.room = True
    await a_turn()
    assert asked.rooms == ["a"]


@pytest.mark.usefixtures("few")
async def test_reads_of_a_hub_that_stopped_take_no_place_of_the_next() -> None:
    asked = Asked()
    for room in "abc":
        asked.read(room)
    asked.reads.forget()
    asked.read("d")
    asked.read("e")
    assert asked.rooms == ["a", "b", "d", "e"]
    asked.answers[0].set_result(PAGE)
    await a_turn()
    asked.read("f")
    assert asked.rooms == ["a", "b", "d", "e"]
