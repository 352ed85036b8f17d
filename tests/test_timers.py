"""Timers: what they fire, when, how much of it in one turn, and what a late loop does first."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import MEASURES, busy, traced
from wsc_fast import ValidationError
from wsc_fast._core.timers import LATE, TICK, Timers
from wsc_fast.testing import eventually

ONE_A_TURN = 0.0  # a budget that no item fits in, so that each turn fires one
SOON = 2 * TICK


class Fired(list[Any]):
    """Timers whose items are noted as they fire; `on` says what an item does then."""

    def __init__(self, **options: Any) -> None:
        self.timers: Timers[Any] = Timers(self.note, **options)
        self.loop = asyncio.get_running_loop()
        self.timers.attach(self.loop)
        self.on: dict[Any, Callable[[], object]] = {}
        self.slots: dict[Any, int] = {}

    def note(self, item: Any) -> None:
        self.append(item)
        if item in self.on:
            self.on[item]()

    def set(self, item: Any, seconds: float = SOON) -> None:
        self.slots[item] = self.timers.set(item, self.loop.time() + seconds)

    def set_together(self, *items: Any) -> None:
        when = self.loop.time() + SOON
        for item in items:
            self.slots[item] = self.timers.set(item, when)

    def cancel(self, item: Any) -> None:
        self.timers.cancel(item, self.slots[item])


async def test_items_fire_in_the_order_of_their_times_and_of_setting(any_loop: str) -> None:
    fired = Fired()
    fired.set("last", 5 * TICK)
    fired.set_together("a", "b", "c")
    fired.set("first", 0.0)
    began = fired.loop.time()
    await eventually(lambda: len(fired) == 5)
    assert fired == ["first", "a", "b", "c", "last"]
    assert fired.loop.time() - began > 4 * TICK
    assert not fired.timers.slots


@MEASURES
async def test_a_slot_of_80_000_items_costs_as_much_for_each_as_a_small_one() -> None:
    fired = Fired(budget=60.0)
    fired.set_together(*range(80_000))
    began = time.process_time()
    await eventually(lambda: fired)
    assert fired == list(range(80_000)), "one turn, in the order of setting"
    assert time.process_time() - began < 1.0, "quadratic: 3 s"


async def test_work_beyond_one_turn_waits_for_the_next_after_sockets_are_read(
    any_loop: str,
) -> None:
    fired = Fired(budget=ONE_A_TURN)
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        heard = bytearray()
        fired.loop.add_reader(here, lambda: heard.extend(here.recv(100)))
        # Each item sends what the loop is to read before the next but one fires.
        seen: list[int] = []

        def talk() -> None:
            seen.append(len(heard))
            there.send(b"x")

        fired.on = dict.fromkeys(range(20), talk)
        fired.set_together(*range(20))
        await eventually(lambda: len(fired) == 20)
        fired.loop.remove_reader(here)
    assert fired == list(range(20))
    assert all(turn - 1 <= count for turn, count in enumerate(seen)), seen


async def test_many_items_hold_no_turn_much_longer_than_their_budget(any_loop: str) -> None:
    fired = Fired()
    fired.on = {item: lambda: busy(0.0005) for item in range(100)}
    fired.set_together(*range(100))
    turns = 0
    while len(fired) < 100:
        await asyncio.sleep(0)
        turns += bool(fired)
    assert fired == list(range(100))
    assert turns >= 20, "50 ms of work, 2 ms of each turn"


async def test_items_that_are_taken_back_while_others_of_their_slot_fire_do_not_fire() -> None:
    fired = Fired()
    fired.on["a"] = lambda: [fired.cancel("b"), fired.cancel("a")]
    fired.set_together("a", "b", "c")
    await eventually(lambda: len(fired) == 2)
    assert fired == ["a", "c"]
    assert not fired.timers.slots


async def test_items_that_are_set_anew_while_others_of_their_slot_fire_fire_later() -> None:
    fired = Fired()

    def postpone() -> None:
        fired.cancel("b")
        fired.set("b")

    fired.on["a"] = postpone
    fired.set_together("a", "b", "c")
    await eventually(lambda: len(fired) == 3)
    assert fired == ["a", "c", "b"]


async def test_items_are_taken_back_and_set_between_the_turns_of_one_slot() -> None:
    fired = Fired(budget=ONE_A_TURN)
    fired.set_together(*range(50))

    def change() -> None:
        for item in range(25, 50):
            fired.cancel(item)
        fired.timers.set("new", 0.0)  # its time is past, but it was set last

    fired.on[0] = lambda: fired.loop.call_soon(change)
    await eventually(lambda: "new" in fired)
    assert fired == [*range(25), "new"]


async def test_an_item_that_sets_itself_for_a_time_that_is_past_holds_up_nobody() -> None:
    fired = Fired()
    fired.on["again"] = lambda: fired.timers.set("again", 0.0)
    fired.set_together("again", "other")
    turns = 0
    while fired.count("again") < 5:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 5, "each time in a later turn"
    assert fired.count("other") == 1
    fired.timers.clear()


async def test_an_item_that_raises_leaves_the_others_their_turn(any_loop: str) -> None:
    fired = Fired()
    told: list[str] = []
    fired.loop.set_exception_handler(lambda loop, context: told.append(str(context["exception"])))

    def fail() -> None:
        raise RuntimeError("this one")

    fired.on["b"] = fail
    fired.set_together("a", "b", "c")
    fired.set("later", 4 * TICK)
    await eventually(lambda: len(fired) == 4)
    assert fired == ["a", "b", "c", "later"]
    assert told == ["this one"]


@pytest.mark.parametrize("budget", [60.0, ONE_A_TURN])
async def test_an_item_that_clears_ends_the_firing_and_what_is_set_then_fires(
    budget: float,
) -> None:
    fired = Fired(budget=budget)

    def clear() -> None:
        fired.timers.clear()
        fired.set("after")

    fired.on["b"] = clear
    fired.set_together("a", "b", "c", "d")
    fired.set("later", 4 * TICK)
    await eventually(lambda: "after" in fired)
    await asyncio.sleep(6 * TICK)  # that nothing comes has no other sign
    assert fired == ["a", "b", "after"]


async def test_timers_that_were_cleared_while_they_waited_for_the_loop_start_anew() -> None:
    fired = Fired()
    fired.set("a")
    busy(SOON + LATE + 2 * TICK)
    await asyncio.sleep(0)  # they wait for the late loop now
    fired.timers.clear()
    fired.set("b")
    await eventually(lambda: fired)
    assert fired == ["b"]


@pytest.mark.parametrize("again", [False, True], ids=["on no loop", "on the same loop again"])
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "late"])
async def test_the_call_for_a_former_loop_does_nothing(
    any_loop: str, again: bool, late: bool
) -> None:
    # A loop goes on in the child of a fork, until what it runs ends.
    fired, errors = Fired(), []
    fired.loop.set_exception_handler(lambda _, context: errors.append(context))
    fired.set("former")
    if late:
        busy(SOON + LATE + 2 * TICK)
        await asyncio.sleep(0)  # they wait for the late loop now
    fired.timers.attach(fired.loop if again else None)
    if again:
        fired.set("new", 2 * SOON)
    over = fired.loop.create_future()
    fired.loop.call_later(3 * SOON, over.set_result, None)
    await over
    await eventually(lambda: fired or not again)  # a late loop takes some turns first
    assert (fired, errors) == (["new"] if again else [], [])


async def test_a_cancelled_item_leaves_no_memory_behind() -> None:
    fired = Fired()

    def rounds(count: int) -> None:
        for number in range(count):
            fired.set("message", 3600.0 + number * TICK)
            fired.cancel("message")

    rounds(1_000)
    with traced() as memory:
        rounds(100_000)
        assert memory()[0] < 10_000
    assert not fired.timers.slots
    # The slots of long-lived ones do not grow by it either.
    for number in range(1_000):
        fired.set(number, 3600.0 + number)
    with traced() as memory:
        rounds(100_000)
        assert memory()[0] < 200_000
    fired.timers.clear()


async def test_an_item_fires_though_all_before_it_were_taken_back(any_loop: str) -> None:
    fired = Fired()
    for number in range(1_000):
        fired.set(number, number * TICK / 100)
    fired.set("last", 12 * TICK)
    for number in range(1_000):
        fired.cancel(number)
    await eventually(lambda: fired)
    assert fired == ["last"]


async def test_a_slot_that_was_emptied_is_used_again() -> None:
    fired = Fired()
    when = fired.loop.time() + SOON
    for _ in range(200):
        fired.timers.cancel("a", fired.timers.set("a", when))
    fired.timers.set("b", when)
    await eventually(lambda: fired)
    await asyncio.sleep(3 * TICK)
    assert fired == ["b"]


@pytest.mark.parametrize("when", [1e300, math.inf, 1e19, 2.0**63])
async def test_a_time_beyond_all_numbers_is_never(any_loop: str, when: float) -> None:
    fired = Fired()
    never = fired.timers.set("never", when)
    fired.set("soon")
    await eventually(lambda: fired)
    assert fired == ["soon"]
    assert never > 0
    fired.timers.cancel("never", never)
    assert not fired.timers.slots


@pytest.mark.parametrize("when", [-1.0, -1e300, -math.inf])
async def test_a_time_long_past_is_now(any_loop: str, when: float) -> None:
    fired = Fired()
    fired.timers.set("now", when)
    await eventually(lambda: fired)


async def test_a_time_that_is_no_number_is_refused() -> None:
    fired = Fired()
    with pytest.raises(ValidationError, match="a time of the loop's clock, not nan"):
        fired.timers.set("a", math.nan)
    assert not fired.timers.slots


@pytest.mark.parametrize("where", ["callback", "timer", "read"])
async def test_bytes_in_a_socket_are_heard_before_a_late_item_fires(
    any_loop: str, where: str
) -> None:
    fired = Fired()
    heard: list[bytes] = []
    seen: list[list[bytes]] = []

    class Note(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            heard.append(data)

    def stand_still() -> None:
        busy(SOON + LATE + 3 * TICK)
        there.send(b"x")  # what the peer has sent meanwhile

    here, there = socket.socketpair()
    waker, sleeper = socket.socketpair()
    with there, waker, sleeper:
        transport, _ = await fired.loop.create_connection(Note, sock=here)
        fired.on["a"] = lambda: seen.append(list(heard))
        fired.set("a")
        if where == "callback":
            fired.loop.call_soon(stand_still)
        elif where == "timer":
            fired.loop.call_later(SOON / 2, stand_still)
        else:
            fired.loop.add_reader(sleeper, lambda: [sleeper.recv(1), stand_still()])
            waker.send(b"x")
        await eventually(lambda: fired)
        fired.loop.remove_reader(sleeper)
        transport.close()
    assert seen == [[b"x"]]


async def test_a_peer_that_connected_while_the_loop_stood_still_is_heard_first(
    any_loop: str,
) -> None:
    loop = asyncio.get_running_loop()
    fired = Fired()
    heard: list[bytes] = []

    class Note(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            heard.append(data)

    server = await loop.create_server(Note, "127.0.0.1", 0)
    seen: list[list[bytes]] = []
    fired.on["a"] = lambda: seen.append(list(heard))
    fired.set("a")
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        peer.send(b"hello")
        busy(SOON + LATE + 2 * TICK)
        await eventually(lambda: fired)
    server.close()
    assert seen == [[b"hello"]]


async def test_a_late_loop_fires_no_more_than_what_was_due_when_it_came() -> None:
    fired = Fired()
    fired.set("a")
    fired.set("b", SOON + LATE + 6 * TICK)
    busy(SOON + LATE + 2 * TICK)
    # While "a" waits for the loop's turns "b" is late as well: it has turns of its own.
    between: list[int] = []

    def turn() -> None:
        if len(fired) == 0:
            busy(LATE + 4 * TICK)
        elif len(fired) == 1:
            between.append(len(fired))
        if len(fired) < 2:
            fired.loop.call_soon(turn)

    fired.loop.call_soon(turn)
    await eventually(lambda: len(fired) == 2)
    assert fired == ["a", "b"]
    assert len(between) > 3
