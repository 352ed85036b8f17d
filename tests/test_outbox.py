"""The bounded outbox through the public API: overflow, conflation, exclusion, counting.

A client is first stalled (see `stall`), so that its outbox holds exactly what is sent next.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import join, named, stall
from wsc_fast import Client, ConfigError, Hub, HubConfig, QueueFullError, ValidationError
from wsc_fast.testing import CLOSE, PING, PONG, TEXT, RawClient, eventually, running

# Broadcasts through batches, however few the clients, and without.
pytestmark = pytest.mark.usefixtures("either_way")

# A text of 98 bytes is a frame of 100, so that both bounds are reached at ten messages.
BOUNDS = {"messages": {"outbox_messages": 10}, "bytes": {"outbox_bytes": 1_000}}
POLICIES = ("disconnect", "drop_oldest", "drop_newest")

bounded = pytest.mark.parametrize("bound", BOUNDS)


def numbered(number: int) -> str:
    return f"{number:098d}"


@dataclass
class Stalled:
    hub: Hub
    raw: RawClient
    client: Client

    async def read(self, count: int) -> list[str]:
        """The next text messages."""
        frames = [await self.raw.recv() for _ in range(count)]
        assert {frame.opcode for frame in frames} <= {TEXT}
        return [frame.payload.decode() for frame in frames]

    async def read_filler(self) -> None:
        frame = await self.raw.recv()
        assert frame.payload == bytes(len(frame.payload))


@asynccontextmanager
async def stalled(**settings: Any) -> AsyncIterator[Stalled]:
    """A hub with one client whose transport is blocked and whose outbox is empty."""
    settings.setdefault("close_timeout", 30.0)  # a close waits for what is read below
    hub = Hub(HubConfig(write_buffer_size=4096, **settings), authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "slow", rcvbuf=4096)
        with raw:
            await stall(client)
            hub.reset_stats()
            yield Stalled(hub, raw, client)


# --- overflow ---


@bounded
async def test_disconnect_closes_a_client_whose_outbox_overflows(any_loop: str, bound: str) -> None:
    async with stalled(overflow="disconnect", **BOUNDS[bound]) as at:
        for number in range(10):
            assert at.hub.broadcast(numbered(number)) == 1
        assert (at.client.queued_messages, at.client.queued_bytes) == (10, 1_000)
        assert at.client.is_connected()

        assert at.hub.broadcast(numbered(10)) == 0
        assert not at.client.is_connected()
        assert at.hub.get_connected_clients() == 0
        stats = at.hub.get_stats()
        assert stats.slow_consumer_disconnects == 1
        # The ten that waited, and the one that found no room.
        assert stats.dropped["slow_consumer"] == 11
        assert at.client.dropped_messages == 11
        assert stats.deliveries == 10

        await at.read_filler()
        close = await at.raw.recv()
        assert close.opcode == CLOSE
        assert close.code == 1013
        await at.raw.send(CLOSE, close.payload)
        assert await at.raw.recv_rest() == []


@bounded
async def test_drop_oldest_keeps_the_latest(any_loop: str, bound: str) -> None:
    async with stalled(overflow="drop_oldest", **BOUNDS[bound]) as at:
        for number in range(25):
            assert at.hub.broadcast(numbered(number)) == 1
        assert (at.client.queued_messages, at.client.queued_bytes) == (10, 1_000)
        stats = at.hub.get_stats()
        assert stats.dropped == {
            "drop_oldest": 15,
            "drop_newest": 0,
            "slow_consumer": 0,
            "conn_closed": 0,
        }
        assert at.client.dropped_messages == 15
        assert stats.deliveries == 25

        await at.read_filler()
        assert await at.read(10) == [numbered(number) for number in range(15, 25)]
        assert at.client.is_connected()


@bounded
async def test_drop_newest_keeps_the_first(any_loop: str, bound: str) -> None:
    async with stalled(overflow="drop_newest", **BOUNDS[bound]) as at:
        taken = [at.hub.broadcast(numbered(number)) for number in range(25)]
        assert taken == [1] * 10 + [0] * 15
        stats = at.hub.get_stats()
        assert stats.dropped == {
            "drop_oldest": 0,
            "drop_newest": 15,
            "slow_consumer": 0,
            "conn_closed": 0,
        }
        assert at.client.dropped_messages == 15
        assert stats.deliveries == 10

        await at.read_filler()
        assert await at.read(10) == [numbered(number) for number in range(10)]
        await eventually(lambda: at.client.queued_messages == 0)
        assert at.hub.broadcast("room again") == 1
        assert await at.read(1) == ["room again"]


@bounded
@pytest.mark.parametrize("overflow", ["disconnect", "drop_newest"])
async def test_a_direct_send_to_a_full_outbox_raises_and_the_client_stays(
    overflow: str, bound: str
) -> None:
    async with stalled(overflow=overflow, **BOUNDS[bound]) as at:
        for number in range(10):
            at.client.send(numbered(number))
        for send in (
            lambda text: at.client.send(text),
            lambda text: at.hub.send_to_client("slow", text),
            lambda text: at.hub.send_text_to_client("slow", text),
        ):
            with pytest.raises(QueueFullError, match="slow"):
                send(numbered(99))
        stats = at.hub.get_stats()
        assert stats.refused == 3
        assert stats.slow_consumer_disconnects == 0
        assert sum(stats.dropped.values()) == 0
        assert at.client.is_connected()

        await at.read_filler()
        assert await at.read(10) == [numbered(number) for number in range(10)]
        at.client.send("room again")
        assert await at.read(1) == ["room again"]


@bounded
async def test_a_direct_send_under_drop_oldest_makes_room(bound: str) -> None:
    async with stalled(overflow="drop_oldest", **BOUNDS[bound]) as at:
        for number in range(13):
            at.hub.send_to_client("slow", numbered(number))
        stats = at.hub.get_stats()
        assert (stats.refused, stats.dropped["drop_oldest"]) == (0, 3)
        assert at.client.dropped_messages == 3
        await at.read_filler()
        assert await at.read(10) == [numbered(number) for number in range(3, 13)]


@pytest.mark.parametrize("overflow", POLICIES)
async def test_a_message_larger_than_the_bound_is_taken_when_nothing_else_waits(
    overflow: str,
) -> None:
    async with stalled(overflow=overflow, outbox_bytes=1_000) as at:
        large = "x" * 5_000
        at.client.send(large)
        assert at.client.queued_messages == 1
        if overflow == "drop_oldest":
            at.client.send("y" * 6_000)
            assert at.client.queued_messages == 1
            large = "y" * 6_000
        else:
            with pytest.raises(QueueFullError):
                at.client.send("small")
        await at.read_filler()
        assert await at.read(1) == [large]


async def test_drop_oldest_drops_no_more_than_it_must() -> None:
    async with stalled(overflow="drop_oldest", outbox_bytes=1_000) as at:
        for number in range(10):
            at.client.send(numbered(number))
        at.client.send("z" * 296)  # a frame of 300
        assert at.client.dropped_messages == 3
        assert at.client.queued_bytes == 1_000
        await at.read_filler()
        assert await at.read(8) == [numbered(number) for number in range(3, 10)] + ["z" * 296]


async def test_one_full_outbox_does_not_touch_its_neighbours() -> None:
    async with stalled(overflow="disconnect", outbox_messages=10) as at:
        before, _ = await join(at.hub, "before")
        after, _ = await join(at.hub, "after")
        with before, after:
            got: dict[str, list[bytes]] = {"before": [], "after": []}
            for number in range(30):
                assert at.hub.broadcast(numbered(number)) == (3 if number < 10 else 2)
                for name, raw in (("before", before), ("after", after)):
                    got[name].append((await raw.recv()).payload)
            wanted = [numbered(number).encode() for number in range(30)]
            assert got == {"before": wanted, "after": wanted}
            assert not at.client.is_connected()


async def test_policy_and_bounds_change_while_the_hub_runs() -> None:
    async with stalled(overflow="drop_newest", outbox_messages=10) as at:
        for number in range(10):
            at.client.send(numbered(number))
        at.hub.set_config(
            HubConfig(
                write_buffer_size=4096, close_timeout=1.0, overflow="drop_oldest", outbox_messages=4
            )
        )
        # Waiting messages stay until something new needs the room.
        assert at.client.queued_messages == 10
        at.client.send(numbered(10))
        assert at.client.queued_messages == 4
        assert at.client.dropped_messages == 7
        with pytest.raises(ConfigError):
            at.hub.set_config(HubConfig(write_buffer_size=8192))
        await at.read_filler()
        assert await at.read(4) == [numbered(number) for number in range(7, 11)]


async def test_a_backlog_lost_with_its_connection_is_counted(any_loop: str) -> None:
    async with stalled() as at:
        for number in range(7):
            at.client.send(numbered(number))
        at.raw.reset()
        await eventually(lambda: at.hub.connections == 0)
        assert at.hub.get_stats().dropped["conn_closed"] == 7
        assert at.client.dropped_messages == 7
        assert (at.client.queued_messages, at.client.queued_bytes) == (0, 0)


async def test_a_backlog_that_outlives_the_close_timeout_is_counted(any_loop: str) -> None:
    async with stalled(close_timeout=0.1) as at:
        for number in range(7):
            at.client.send(numbered(number))
        at.client.disconnect()
        await eventually(lambda: at.hub.connections == 0)
        # The close frame itself is no message.
        assert at.hub.get_stats().dropped["conn_closed"] == 7
        assert at.client.dropped_messages == 7


@pytest.mark.parametrize("overflow", POLICIES)
async def test_pongs_pass_a_full_outbox_and_evict_nothing(overflow: str) -> None:
    async with stalled(overflow=overflow, outbox_messages=10) as at:
        for number in range(10):
            at.client.send(numbered(number))
        for number in range(100):
            await at.raw.send(PING, b"%d" % number)
        # A message behind the pings shows that the hub has read them all.
        await at.raw.send(TEXT, b"done")
        await eventually(lambda: at.hub.get_stats().messages_in == 1)
        # RFC 6455 section 5.5.3: of a flood of pings the most recent may stand for all.
        assert at.client.queued_messages == 10 + 33
        assert at.client.dropped_messages == 0

        await at.read_filler()
        pongs = [await at.raw.recv() for _ in range(33)]
        assert {pong.opcode for pong in pongs} == {PONG}
        assert [pong.payload for pong in pongs] == [b"%d" % number for number in [*range(32), 99]]
        assert await at.read(10) == [numbered(number) for number in range(10)]


# --- conflation ---


async def test_under_a_key_only_the_latest_waits(any_loop: str) -> None:
    async with stalled(outbox_messages=4) as at:
        for number in range(10_000):
            assert at.hub.broadcast(f"price {number}", key="price") == 1
        assert at.client.queued_messages == 1
        stats = at.hub.get_stats()
        assert stats.conflated == 9_999
        assert sum(stats.dropped.values()) == 0
        assert at.client.dropped_messages == 0
        await at.read_filler()
        assert await at.read(1) == ["price 9999"]


async def test_a_newer_message_takes_its_own_place_in_the_order() -> None:
    async with stalled() as at:
        at.client.send("a1", key="a")
        at.client.send("plain 1")
        at.client.send("b1", key="b")
        at.client.send("a2", key="a")
        at.client.send("plain 2")
        at.client.send("b2", key="b")
        await at.read_filler()
        assert await at.read(4) == ["plain 1", "a2", "plain 2", "b2"]


async def test_a_key_is_one_for_direct_room_and_broadcast_messages() -> None:
    async with stalled() as at:
        at.hub.create_room("room")
        at.hub.join_room("slow", "room")
        at.hub.broadcast("broadcast", key="k")
        at.hub.broadcast_to_room("room", "room", key="k")
        at.hub.send_to_client("slow", "direct", key="k")
        at.client.send("send", key="k")
        # Built at run time: equal keys count as one, not only identical ones.
        at.client.send("last", key="".join(["", "k"]))
        assert at.client.queued_messages == 1
        assert at.hub.get_stats().conflated == 4
        await at.read_filler()
        assert await at.read(1) == ["last"]


async def test_messages_of_one_tick_are_conflated_for_a_client_that_reads(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "fast")
        with raw:
            for number in range(5):
                hub.broadcast(f"{number}", key="k")
            hub.broadcast("end")
            assert [(await raw.recv()).payload for _ in range(2)] == [b"4", b"end"]
            # A message that was sent is not looked for: the key starts anew.
            hub.broadcast("5", key="k")
            assert (await raw.recv()).payload == b"5"
            assert hub.get_stats().conflated == 4


@pytest.mark.parametrize("overflow", POLICIES)
async def test_a_replacement_fits_into_a_full_outbox(overflow: str) -> None:
    async with stalled(overflow=overflow, outbox_messages=10) as at:
        at.client.send("old", key="k")
        for number in range(9):
            at.client.send(numbered(number))
        assert at.hub.broadcast("new", key="k") == 1
        assert at.client.is_connected()
        assert at.client.dropped_messages == 0
        await at.read_filler()
        assert await at.read(10) == [*(numbered(number) for number in range(9)), "new"]


@pytest.mark.parametrize("overflow", ["disconnect", "drop_newest"])
async def test_a_refused_replacement_leaves_the_older_message(overflow: str) -> None:
    # The newer one is too long for the room that the older one leaves. "QueueFullError: nothing
    # of it was sent" must not cost the client the value that it would have had.
    async with stalled(overflow=overflow, outbox_bytes=1_000) as at:
        at.client.send(numbered(0), key="k")
        for number in range(1, 10):
            at.client.send(numbered(number))
        with pytest.raises(QueueFullError):
            at.client.send("x" * 500, key="k")
        assert at.hub.get_stats().conflated == 0
        assert at.client.queued_messages == 10
        await at.read_filler()
        assert await at.read(10) == [numbered(number) for number in range(10)]


@pytest.mark.parametrize("key", [1, b"k", ("k",), 1.5])
async def test_a_key_that_is_no_str_is_refused_before_anyone_is_sent_to(key: Any) -> None:
    async with stalled() as at:
        at.hub.create_room("room")
        at.hub.join_room("slow", "room")
        for call in (
            lambda: at.hub.broadcast("x", key=key),
            lambda: at.hub.broadcast_to_room("room", "x", key=key),
            lambda: at.hub.send_to_client("slow", "x", key=key),
            lambda: at.client.send("x", key=key),
        ):
            with pytest.raises(ValidationError, match="key"):
                call()
        assert at.client.queued_messages == 0
        assert at.hub.get_stats().messages_out == 0


@pytest.mark.parametrize("key", ["\x00pong", "\x00ping"])
async def test_no_key_reaches_control_frames(key: str) -> None:
    async with stalled() as at:
        await at.raw.send(PING, b"alive?")
        await eventually(lambda: at.client.queued_messages == 1)
        at.client.send("data", key=key)
        assert at.client.queued_messages == 2
        await at.read_filler()
        pong = await at.raw.recv()
        assert (pong.opcode, pong.payload) == (PONG, b"alive?")
        assert await at.read(1) == ["data"]


async def test_replaced_pongs_are_no_conflated_messages() -> None:
    async with stalled() as at:
        for _ in range(50):
            await at.raw.send(PING, b"x")
        await at.raw.send(TEXT, b"done")
        await eventually(lambda: at.hub.get_stats().messages_in == 1)
        assert at.client.queued_messages == 33
        assert at.hub.get_stats().conflated == 0
        assert at.hub.get_stats().control_replaced == 17


# --- exclude ---


@asynccontextmanager
async def four(hub: Hub) -> AsyncIterator[list[RawClient]]:
    async with running(hub):
        raws = [(await join(hub, name))[0] for name in "abcd"]
        hub.create_room("room")
        for name in "abc":
            hub.join_room(name, "room")
        try:
            yield raws
        finally:
            for raw in raws:
                raw.close()


async def received(hub: Hub, raws: list[RawClient]) -> list[list[bytes]]:
    """The messages of each client up to now: a last broadcast marks the end."""
    hub.broadcast("end")
    got = []
    for raw in raws:
        payloads = []
        while (payload := (await raw.recv()).payload) != b"end":
            payloads.append(payload)
        got.append(payloads)
    return got


async def test_excluded_clients_are_left_out_by_id_or_object(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    async with four(hub) as raws:
        second = hub.get_client_by_id("b")
        assert second is not None
        assert hub.broadcast("1", exclude=["a"]) == 3
        assert hub.broadcast("2", exclude=(second,)) == 3
        assert hub.broadcast("3", exclude={"a", second, "nobody"}) == 2
        assert hub.broadcast("4", exclude=(name for name in "abcd")) == 0
        assert hub.broadcast_to_room("room", "5", exclude=["a", "d"]) == 2
        assert hub.broadcast_to_room("room", "6", exclude=["a", "a"]) == 2
        # Nobody stays excluded.
        assert hub.broadcast("7") == 4
        assert await received(hub, raws) == [
            [b"2", b"7"],
            [b"1", b"5", b"6", b"7"],
            [b"1", b"2", b"3", b"5", b"6", b"7"],
            [b"1", b"2", b"3", b"7"],
        ]


@pytest.mark.parametrize("exclude", ["a", None, 5, [["a"]], [{}]])
async def test_an_exclude_that_cannot_be_used_sends_nothing(exclude: Any) -> None:
    hub = Hub(authenticate=named)
    async with four(hub) as raws:
        with pytest.raises((ValueError, TypeError)):
            hub.broadcast("x", exclude=exclude)
        with pytest.raises((ValueError, TypeError)):
            hub.broadcast_to_room("room", "x", exclude=exclude)
        assert hub.broadcast("all") == 4
        assert await received(hub, raws) == [[b"all"]] * 4


async def test_an_exclude_that_raises_half_way_excludes_nobody() -> None:
    def failing() -> Any:
        yield "a"
        raise KeyError("half way")

    hub = Hub(authenticate=named)
    async with four(hub) as raws:
        with pytest.raises(KeyError):
            hub.broadcast("x", exclude=failing())
        assert hub.broadcast("all") == 4
        assert await received(hub, raws) == [[b"all"]] * 4


async def test_an_exclude_that_broadcasts_itself() -> None:
    hub = Hub(authenticate=named)

    def busy() -> Any:
        hub.broadcast("inner", exclude=["b"])
        yield "a"

    async with four(hub) as raws:
        assert hub.broadcast("outer", exclude=busy()) == 3
        assert await received(hub, raws) == [
            [b"inner"],
            [b"outer"],
            [b"inner", b"outer"],
            [b"inner", b"outer"],
        ]


async def test_an_excluded_client_is_not_closed_for_being_full() -> None:
    async with stalled(overflow="disconnect", outbox_messages=2) as at:
        at.client.send("1")
        at.client.send("2")
        assert at.hub.broadcast("3", exclude=["slow"]) == 0
        assert at.client.is_connected()
        assert at.client.dropped_messages == 0


async def test_a_client_that_has_gone_may_be_excluded() -> None:
    async with stalled() as at:
        at.client.disconnect()
        assert at.hub.broadcast("x", exclude=[at.client, "slow"]) == 0


# --- counting ---


async def test_stats_of_simple_traffic_are_exact(any_loop: str) -> None:
    # A budget that no busy machine can spend: a flush in slices would count as several.
    hub = Hub(HubConfig(flush_budget=60.0), authenticate=named)
    async with four(hub) as raws:
        hub.reset_stats()
        await raws[0].send(TEXT, b"hello")
        await raws[0].send(2, b"12345678")
        await eventually(lambda: hub.get_stats().messages_in == 2)
        hub.broadcast("12345678")  # a frame of 10
        hub.broadcast_to_room("room", b"12345678")
        hub.send_to_client("a", "12345678")
        assert hub.get_stats().queued_messages == 8
        assert hub.get_stats().queued_bytes == 80
        client = hub.get_client_by_id("a")
        assert client is not None
        assert (client.queued_messages, client.queued_bytes) == (3, 30)
        for raw, count in zip(raws, (3, 2, 2, 1), strict=True):
            for _ in range(count):
                assert (await raw.recv()).payload == b"12345678"

        stats = hub.get_stats()
        assert (stats.messages_in, stats.bytes_in) == (2, 13)
        assert (stats.messages_out, stats.bytes_out) == (3, 80)
        assert stats.total_messages == 5
        assert (stats.deliveries, stats.frames_sent) == (8, 8)
        assert (stats.flushes, stats.send_calls, stats.partial_sends) == (1, 4, 0)
        assert stats.messages_per_send == 2.0
        assert (stats.queued_messages, stats.queued_bytes) == (0, 0)
        assert (stats.connected_clients, stats.active_rooms, stats.connections) == (4, 1, 4)
        assert stats.error_count == 0
        assert stats.longest_flush > 0
        assert stats.uptime > 0

        hub.reset_stats()
        after = hub.get_stats()
        assert (after.messages_in, after.messages_out, after.deliveries) == (0, 0, 0)
        assert (after.bytes_in, after.bytes_out, after.send_calls, after.flushes) == (0, 0, 0, 0)
        assert after.longest_flush == 0
        assert after.connected_clients == 4
        assert after.start_time == stats.start_time


# --- all of it against a model ---


@pytest.mark.parametrize("overflow", POLICIES)
@pytest.mark.parametrize("seed", range(6))
async def test_random_sends_to_a_stalled_client_match_a_model(overflow: str, seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(f"{seed} {overflow}")
    messages, nbytes = draw.randint(1, 40), draw.randint(200, 6_000)
    waiting: list[tuple[str, str | None]] = []
    dropped = conflated = refused = 0

    def frame_size(text: str) -> int:
        return len(text) + (2 if len(text) < 126 else 4)

    def fits(size: int) -> bool:
        total = sum(frame_size(text) for text, _ in waiting)
        return not waiting or (len(waiting) < messages and total + size <= nbytes)

    async with stalled(overflow=overflow, outbox_messages=messages, outbox_bytes=nbytes) as at:
        for number in range(600):
            key = draw.choice([None, None, None, "k1", "k2", "k3"])
            # One size per key, so that a replacement always fits where its forerunner was.
            size = draw.randint(6, 200) if key is None else 50 + int(key[1])
            text = f"{number:0{size}d}"

            replaced = next((entry for entry in waiting if key and entry[1] == key), None)
            if replaced is not None:
                waiting.remove(replaced)
                conflated += 1
            if overflow == "drop_oldest":
                while not fits(frame_size(text)):
                    del waiting[0]
                    dropped += 1
            taken = fits(frame_size(text))
            if taken:
                waiting.append((text, key))
            # A broadcast under "disconnect" would end the test.
            if overflow != "disconnect" and draw.random() < 0.5:
                assert at.hub.broadcast(text, key=key) == taken
                dropped += not taken
            elif taken:
                at.client.send(text, key=key)
            else:
                refused += 1
                with pytest.raises(QueueFullError):
                    at.client.send(text, key=key)
            assert at.client.queued_messages == len(waiting)
            assert at.client.queued_bytes == sum(frame_size(text) for text, _ in waiting)

        stats = at.hub.get_stats()
        assert sum(stats.dropped.values()) == at.client.dropped_messages == dropped
        assert (stats.conflated, stats.refused) == (conflated, refused)
        await at.read_filler()
        assert await at.read(len(waiting)) == [text for text, _ in waiting]
