"""The batch of a broadcast (fanout.pxd): whatever happens beside it in the same tick, each client
gets what it would get without.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

from tests.support import join, known, named, stall
from wsc_fast import Client, Hub, HubConfig, QueueFullError
from wsc_fast._core.connection import abort
from wsc_fast.testing import CLOSE, RawClient, eventually, running, uri

COUNT = 40


@pytest.fixture(params=["all", "room"])
def to_room(request: pytest.FixtureRequest) -> bool:
    """Has the test run with broadcasts to everybody and to a room of everybody."""
    return bool(request.param == "room")


class Crowd:
    """A hub with clients c0 to c39, all in a room, and the raw end of each."""

    def __init__(self, hub: Hub, to_room: bool) -> None:
        self.hub = hub
        self.to_room = to_room
        self.raws: list[RawClient] = []

    def cast(self, text: str, **options: Any) -> int:
        if self.to_room:
            return self.hub.broadcast_to_room("room", text, **options)
        return self.hub.broadcast(text, **options)

    async def heard(self, number: int, until: str = "end") -> list[str]:
        """The texts that a client gets up to `until`, or to its close frame."""
        texts = []
        while True:
            frame = await self.raws[number].recv()
            if frame.opcode == CLOSE:
                return [*texts, f"close {frame.code}"]
            text = frame.payload.decode()
            if text == until:
                return texts
            texts.append(text)


@asynccontextmanager
async def crowd(to_room: bool, count: int = COUNT, **settings: Any) -> AsyncIterator[Crowd]:
    hub = Hub(HubConfig(**settings), authenticate=named)
    async with running(hub):
        hub.create_room("room")
        here = Crowd(hub, to_room)
        try:
            for number in range(count):
                raw, client = await join(hub, f"c{number}", rcvbuf=4096)
                here.raws.append(raw)
                hub.join_room(client.id, "room")
            yield here
        finally:
            for raw in here.raws:
                raw.close()


async def test_all_get_all_in_order(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        assert [here.cast(f"m{number}") for number in range(50)] == [COUNT] * 50
        frames = here.hub._engine.fanout.batch_frames
        assert (frames is not None and len(frames) == 50) == either_way
        here.cast("end")
        for number in range(COUNT):
            assert await here.heard(number) == [f"m{index}" for index in range(50)]
        assert here.hub._engine.fanout.batch_frames is None
        stats = here.hub.get_stats()
        assert (stats.deliveries, stats.frames_sent) == (51 * COUNT, 51 * COUNT)
        assert stats.send_calls == COUNT


async def test_direct_messages_in_between(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        here.cast("one")
        here.hub.send_to_client("c3", "direct")
        here.cast("two")
        known(here.hub, "c4").send("mine")
        here.cast("end")
        assert await here.heard(3) == ["one", "direct", "two"]
        assert await here.heard(4) == ["one", "two", "mine"]
        assert await here.heard(5) == ["one", "two"]


async def test_excluded_ones_miss_that_message_only(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        assert here.cast("one", exclude=["c1"]) == COUNT - 1
        assert here.cast("two", exclude=["c2", known(here.hub, "c1")]) == COUNT - 2
        assert here.cast("three") == COUNT
        assert here.cast("four", exclude=["c1"]) == COUNT - 1
        here.cast("end")
        assert await here.heard(1) == ["three"]
        assert await here.heard(2) == ["one", "three", "four"]
        assert await here.heard(0) == ["one", "two", "three", "four"]


async def test_members_come_and_go_in_between(either_way: bool) -> None:
    async with crowd(True) as here:
        here.hub.leave_room("c1", "room")
        here.cast("one")
        here.hub.leave_room("c2", "room")
        here.hub.join_room("c1", "room")
        here.hub.join_room("c1", "room")
        assert here.cast("two") == COUNT - 1
        here.hub.leave_room("c1", "room")
        here.hub.join_room("c2", "room")
        here.hub.leave_room("c2", "room")
        here.hub.join_room("c2", "room")
        assert here.cast("three") == COUNT - 1
        here.hub.broadcast("end")
        assert await here.heard(0) == ["one", "two", "three"]
        assert await here.heard(1) == ["two"]
        assert await here.heard(2) == ["one", "three"]


async def test_a_client_that_leaves_or_is_closed_gets_what_was_sent_before(
    either_way: bool, to_room: bool
) -> None:
    async with crowd(to_room) as here:
        here.cast("one")
        known(here.hub, "c1").disconnect(4000)
        assert here.cast("two") == COUNT - 1
        here.hub.disconnect_user("c2", 4001, "")
        assert here.cast("end") == COUNT - 2
        assert await here.heard(1) == ["one", "close 4000"]
        assert await here.heard(2) == ["one", "two", "close 4001"]
        assert await here.heard(3) == ["one", "two"]


async def test_an_abort_counts_what_it_loses(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        client = known(here.hub, "c1")
        here.cast("one")
        here.cast("two")
        abort(client)
        await eventually(lambda: here.hub.get_stats().connections == COUNT - 1)
        assert client.dropped_messages == 2
        assert here.hub.get_stats().dropped["conn_closed"] == 2


async def test_a_room_deleted_in_between(either_way: bool) -> None:
    async with crowd(True) as here:
        here.cast("one")
        here.hub.delete_room("room")
        here.hub.create_room("room")
        assert here.cast("two") == 0
        here.hub.broadcast("end")
        for number in range(COUNT):
            assert await here.heard(number) == ["one"]


async def test_two_sets_that_overlap(either_way: bool) -> None:
    async with crowd(True) as here:
        here.hub.broadcast("all 1")
        here.cast("room 1")
        here.hub.broadcast("all 2")
        here.hub.broadcast("end")
        for number in range(COUNT):
            assert await here.heard(number) == ["all 1", "room 1", "all 2"]


async def test_new_clients_get_what_comes_after_them(either_way: bool) -> None:
    greeted: list[int] = []
    async with crowd(False) as here:

        @here.hub.on_client_connected
        def greet(client: Client) -> None:
            # Before and after it is one of them, within one callback: the hub has it already.
            greeted.append(here.hub.broadcast(f"{client.id} is here"))

        raws = [await RawClient.open(here.hub, f"/ws?id=n{number}") for number in range(3)]
        await eventually(lambda: len(greeted) == 3)
        here.cast("end")
        here.raws += raws
        assert greeted == [COUNT + 1, COUNT + 2, COUNT + 3]
        assert await here.heard(0) == [f"n{number} is here" for number in range(3)]
        assert await here.heard(COUNT + 1) == ["n1 is here", "n2 is here"]


async def test_what_waits_is_told(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        client = known(here.hub, "c0")
        here.cast("12345")
        here.cast("67890")
        assert (client.queued_messages, client.queued_bytes) == (2, 14)
        here.hub.send_to_client("c0", "x")
        assert (client.queued_messages, client.queued_bytes) == (3, 17)
        stats = here.hub.get_stats()
        assert (stats.queued_messages, stats.queued_bytes) == (2 * COUNT + 1, 14 * COUNT + 3)
        await eventually(lambda: here.hub.get_stats().queued_messages == 0)
        assert (client.queued_messages, client.queued_bytes) == (0, 0)


async def test_a_key_replaces_only_what_has_it(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:
        here.cast("plain 1")
        here.cast("keyed 1", key="k")
        here.cast("plain 2")
        here.cast("keyed 2", key="k")
        here.cast("end")
        assert await here.heard(7) == ["plain 1", "plain 2", "keyed 2"]


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
async def test_bounds_are_those_of_an_outbox(
    either_way: bool, to_room: bool, overflow: str
) -> None:
    async with crowd(to_room, outbox_messages=3, overflow=overflow) as here:
        counts = [here.cast(f"m{number}") for number in range(5)]
        wanted = {
            "disconnect": ([COUNT] * 3 + [0] * 2, ["close 1013"]),
            "drop_oldest": ([COUNT] * 5, ["m2", "m3", "m4"]),
            "drop_newest": ([COUNT] * 3 + [0] * 2, ["m0", "m1", "m2"]),
        }[overflow]
        assert counts == wanted[0]
        await eventually(lambda: here.hub.get_stats().queued_messages == 0)
        here.cast("end")
        assert await here.heard(0) == wanted[1]


async def test_bytes_are_bounded_too(either_way: bool) -> None:
    async with crowd(False, outbox_bytes=250, overflow="drop_newest") as here:
        assert [here.cast("x" * 100) for _ in range(3)] == [COUNT, COUNT, 0]
        with pytest.raises(QueueFullError):
            here.hub.send_to_client("c0", "y" * 100)
        await eventually(lambda: here.hub.get_stats().queued_messages == 0)
        # One that is larger than the bound is taken where nothing else waits.
        assert here.cast("z" * 300) == COUNT
        here.hub.broadcast("end")
        await eventually(lambda: here.hub.get_stats().queued_messages == 0)
        assert (await here.heard(5, "z" * 300)) == ["x" * 100] * 2


async def test_settings_change_in_between(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room, overflow="drop_newest") as here:
        here.cast("one")
        here.hub.set_config(HubConfig(overflow="drop_newest", outbox_messages=1))
        assert here.cast("two") == 0
        await eventually(lambda: here.hub.get_stats().queued_messages == 0)
        here.cast("end")
        assert await here.heard(0) == ["one"]


async def test_slow_readers_get_it_in_part_and_the_rest_later(
    either_way: bool, to_room: bool
) -> None:
    settings = {"write_buffer_size": 4096, "outbox_bytes": 1 << 24}
    async with crowd(to_room, **settings) as here:
        await stall(known(here.hub, "c1"))
        texts = [f"{number} " + "x" * 40_000 for number in range(12)]
        for number, text in enumerate(texts):
            assert here.cast(text) == COUNT
            if number % 4 == 3:
                await eventually(lambda: here.hub._engine.fanout.batch_frames is None)
        here.cast("end")
        for number in (0, 2, 39):
            assert await here.heard(number) == texts
        assert (await here.raws[1].recv()).payload == bytes(1 << 20)
        assert await here.heard(1) == texts


async def test_more_than_one_plan_and_no_time(either_way: bool) -> None:
    # Each send is beyond the budget, so that the plan is cut short again and again.
    async with crowd(False, flush_budget=1e-6) as here:
        for number in range(20):
            here.cast(f"m{number}")
        here.hub.send_to_client("c39", "direct")
        here.cast("end")
        wanted = [f"m{number}" for number in range(20)]
        for number in range(COUNT - 1):
            assert await here.heard(number) == wanted
        assert await here.heard(39) == [*wanted, "direct"]


async def test_more_frames_than_one_send_takes(either_way: bool) -> None:
    async with crowd(False) as here:
        wanted = [f"m{number}" for number in range(700)]
        for text in wanted:
            assert here.cast(text) == COUNT
        here.cast("end")
        for number in (0, 17, 39):
            assert await here.heard(number) == wanted


async def test_callbacks_in_the_middle(either_way: bool, to_room: bool) -> None:
    async with crowd(to_room) as here:

        @here.hub.on_client_disconnected
        def tell(client: Client) -> None:
            here.cast(f"{client.id} left")

        for number in range(1, 5):
            here.raws[number].reset()
        here.cast("one")
        await eventually(lambda: here.hub.connections == COUNT - 4)
        here.cast("end")
        heard = await here.heard(0)
        assert heard[0] == "one"
        assert sorted(heard[1:]) == [f"c{number} left" for number in range(1, 5)]


async def test_compressed_once_for_each_window(either_way: bool, to_room: bool) -> None:
    text = "compress me " * 50
    async with crowd(to_room, enable_compression=True, compression_threshold=64) as here:
        clients = [await websockets.connect(uri(here.hub, f"/ws?id=w{n}")) for n in range(4)]
        for number in range(4):
            await eventually(lambda number=number: here.hub.get_client_by_id(f"w{number}"))
            here.hub.join_room(f"w{number}", "room")
        here.hub.reset_stats()
        assert here.cast(text, exclude=["w1"]) == COUNT + 3
        here.cast(text + "2")
        here.hub.send_to_client("w2", "direct")
        here.cast("end")
        assert await clients[1].recv() == text + "2"
        assert [await clients[2].recv() for _ in range(4)] == [text, text + "2", "direct", "end"]
        assert [await clients[0].recv() for _ in range(3)] == [text, text + "2", "end"]
        assert await here.heard(3) == [text, text + "2"]
        assert here.hub.get_stats().compressed_frames == 2
        for client in clients:
            await client.close()


async def test_clients_with_a_context_of_their_own(either_way: bool, to_room: bool) -> None:
    # They have no descriptor to write to (fanout.pyx, rule 3).
    settings = {"enable_compression": True, "server_no_context_takeover": False}
    async with crowd(to_room, compression_threshold=1, **settings) as here:
        clients = [await websockets.connect(uri(here.hub, f"/ws?id=w{n}")) for n in range(4)]
        for number in range(4):
            await eventually(lambda number=number: here.hub.get_client_by_id(f"w{number}"))
            here.hub.join_room(f"w{number}", "room")
        texts = [f"compress me {number} " * 50 for number in range(3)]
        for text in texts:
            assert here.cast(text) == COUNT + 4
        here.cast("end")
        for client in clients:
            assert [await client.recv() for _ in range(4)] == [*texts, "end"]
        assert await here.heard(3) == texts
        for client in clients:
            await client.close()


def test_small_sets_have_none() -> None:
    hub = Hub()
    assert hub._engine.fanout.batch_least > 1
    assert hub._engine.fanout.batch_frames is None
