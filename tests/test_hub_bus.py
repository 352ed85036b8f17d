"""A hub and its bus: the rooms that are known, gaps, exclusions, histories, and publishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import picows
import pytest

from tests.aware import Aware, keeping
from tests.redis_server import EACH_PROGRAM, RedisServer
from tests.support import join, known, named
from tests.test_several_hubs import subscribed, texts
from wsc_fast import (
    BusUnavailableError,
    Client,
    Hub,
    HubConfig,
    Published,
    RoomNotFoundError,
    ValidationError,
    handle_websocket,
)
from wsc_fast.bus.memory import MemoryBus
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.testing import CLOSE, eventually, running

# --- a bus in this process connects no other hub, whatever its state ---


@pytest.mark.parametrize("before", ["nothing", "redis"])
@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_an_unknown_plain_room_is_an_error_where_no_other_hub_can_have_it(
    kind: str, before: str, tmp_path: Path
) -> None:
    bus = MemoryBus(tmp_path / "kept.db") if kind == "file" else MemoryBus()
    hub = Hub(bus=RedisBus("redis://127.0.0.1:1") if before == "redis" else bus)
    hub.set_bus(bus)
    hub.keep("r*")
    for _ in range(2):
        async with running(hub):
            with pytest.raises(RoomNotFoundError):
                hub.broadcast_to_room("plain", "text")
            hub.broadcast("to nobody")
            assert hub.broadcast_to_room("r", "kept") == 0
            assert hub.cluster.counters()["not_published"] == 0


async def test_a_hub_on_a_server_of_ones_own_waits_for_the_file_of_its_histories(
    tmp_path: Path,
) -> None:
    file = tmp_path / "kept.db"
    hub = keeping("r*", Hub(authenticate=named, bus=MemoryBus(file)))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        aware.close()
        await hub.publish("r", "missed")
    again = keeping("r*", Hub(authenticate=named, bus=MemoryBus(file)))
    again.on_client_connected(lambda client: again.broadcast_to_room("r", "welcome"))
    server = await picows.ws_create_server(
        lambda request: handle_websocket(again, request), "127.0.0.1", 0, enable_auto_pong=False
    )
    try:
        listening: Any = SimpleNamespace(port=server.sockets[0].getsockname()[1])
        back = await Aware.open(listening, "a", aware.positions)
        heard = [await back.recv() for _ in range(3)]
        # The second one was published before the file was read, or behind it.
        assert [payload for _, payload in heard if payload] == [b"missed", b"welcome"]
        assert any(head.get("recovered") for head, _ in heard)
        back.close()
    finally:
        server.close()
        await again.stop()


# --- what is left behind ---


async def test_rooms_that_joins_have_made_end_with_the_hub(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        for bus in (None, MemoryBus(), RedisBus(server.url)):
            hub = keeping("r*", Hub(authenticate=named, bus=bus))
            async with running(hub):
                aware = await Aware.open(hub, "a")
                await aware.recv()
                hub.create_room("own")
                hub.join_room("a", "own")
                if bus is not None and not bus.at_once:
                    hub.join_room("a", "plain")
                aware.close()
            assert hub.get_rooms() == ["own"]


async def test_a_join_alone_keeps_nothing(tmp_path: Path) -> None:
    bus = MemoryBus()
    hub = keeping("*", Hub(HubConfig(max_rooms_per_client=10_000), authenticate=named, bus=bus))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        for number in range(1000):
            hub.join_room("a", f"made up {number}")
            hub.leave_room("a", f"made up {number}")
        assert len(bus._histories) == 0
        aware.close()


async def test_a_history_that_went_is_no_gap_for_who_missed_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = keeping(hub=Hub(authenticate=named, bus=MemoryBus(max_bytes=1 << 20)))
    now = time.monotonic()
    monkeypatch.setattr("wsc_fast.bus.memory.monotonic", lambda: now)
    async with running(hub):
        aware, quiet = await Aware.open(hub, "a"), await Aware.open(hub, "b")
        for each in (aware, quiet):
            await each.recv()
        await hub.publish("r", "one")
        now += 100_000  # the history is too old
        await hub.publish("r", "two")
        for number in range(20):  # which push the history of `r` out
            await hub.publish(f"r{number}", bytes(100_000))
        await hub.publish("r", "three")
        assert await aware.texts(3) == [b"one", b"two", b"three"]
        assert await quiet.texts(3) == [b"one", b"two", b"three"]
        assert hub.cluster.counters()["gaps"] == hub.cluster.counters()["heals"] == 0
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 1)
        await hub.publish("r", "four")
        back = await Aware.open(hub, "a", aware.positions)
        assert (await back.recv())[1] == b"four"
        back.close()
        quiet.close()


# --- gaps ---


async def test_gaps_of_plain_rooms_are_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path) as server:
        hub = Hub(authenticate=named, bus=RedisBus(server.url))
        async with running(hub):
            aware = await Aware.open(hub, "a")
            await eventually(lambda: hub.get_connected_clients() == 1)
            hub.join_room("a", "plain")
            await eventually(lambda: server.command("PUBSUB", "NUMSUB", "wsc:c:{plain}")[1] == 1)
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            gaps = [(await aware.recv())[0] for _ in range(2)]
            assert sorted(each["gap"] for each in gaps) == ["", "plain"]
            assert hub.cluster.counters()["plain_gaps"] == 2
            assert hub.cluster.counters()["gaps"] == 0
            lines = [each for each in caplog.records if getattr(each, "event", "") == "plain_gap"]
            assert sum(each.__dict__["rooms"] for each in lines) == 2
            aware.close()


async def test_a_client_that_connects_while_the_bus_is_away_hears_of_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        hub = Hub(authenticate=named, bus=RedisBus(server.url))
        async with running(hub):
            first = await Aware.open(hub, "a")
            await eventually(lambda: hub.get_connected_clients() == 1)
            await asyncio.to_thread(server.kill)
            assert await first.recv() == ({"bus": False}, b"")
            second = await Aware.open(hub, "b")
            assert await second.recv() == ({"bus": False}, b"")
            await asyncio.to_thread(server.start)
            for each in (first, second):
                heads = [(await each.recv())[0] for _ in range(2)]
                assert {"bus": True} in heads  # beside the gap of broadcasts
            third = await Aware.open(hub, "c")
            await eventually(lambda: hub.get_connected_clients() == 3)
            hub.broadcast("text")
            assert await third.recv() == ({}, b"text")
            for each in (first, second, third):
                each.close()


# --- exclude ---


async def test_who_is_excluded_twice_hears_of_it_once() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.broadcast_to_room("r", "not for a", exclude=["a", "a", known(hub, "a")])
        hub.broadcast_to_room("r", "for a")
        assert (await aware.recv())[0]["skipped"] is True
        assert (await aware.recv())[1] == b"for a"
        aware.close()


async def test_an_exclude_that_is_too_long_is_an_error_that_says_how_long() -> None:
    hub = keeping()
    async with running(hub):
        exclude = [f"{number:0250}" for number in range(5000)]
        with pytest.raises(ValidationError, match=r"at most 1052672 bytes.*names 5000 clients"):
            hub.broadcast_to_room("r", "text", exclude=exclude)


# --- on each bus there is, and on none ---


on_each = pytest.mark.parametrize("kind", ["none", "memory", *EACH_PROGRAM])


@asynccontextmanager
async def hubs_on(kind: str, tmp_path: Path) -> AsyncIterator[list[Hub]]:
    """One hub, or two that share a Redis; each makes its clients members of the kept room `r`."""
    server = RedisServer(tmp_path, program=kind) if kind in EACH_PROGRAM else None
    buses: list[Any] = [MemoryBus() if kind == "memory" else None]
    if server is not None:
        await asyncio.to_thread(server.start)
        buses = [RedisBus(server.url), RedisBus(server.url)]
    made = [Hub(authenticate=named, bus=bus) for bus in buses]
    try:
        for hub in made:
            hub.keep("r*", gap_unaware="close")
            hub.keep("s*")
            hub.on_client_connected(partial(enter, hub))
            await hub.start("127.0.0.1", 0)
        yield made
    finally:
        for hub in made:
            await hub.stop(1.0)
        if server is not None:
            server.kill()


def enter(hub: Hub, client: Client) -> None:
    for room_id in ("r", "s"):
        hub.join_room(client.id, room_id)


@on_each
async def test_a_deleted_history_is_a_gap_for_who_was_there(kind: str, tmp_path: Path) -> None:
    async with hubs_on(kind, tmp_path) as hubs:
        here, there = await Aware.open(hubs[0], "here"), await Aware.open(hubs[-1], "there")
        away = await Aware.open(hubs[0], "away")
        for each in (here, there, away):
            assert {(await each.recv())[0]["room"] for _ in range(2)} == {"r", "s"}
        first = await hubs[0].publish("s", "before", idempotency_key="k")
        assert [(await each.recv())[1] for each in (here, there, away)] == [b"before"] * 3
        away.close()
        await hubs[-1].cluster.delete_room("s")
        for each in (here, there):
            head, _ = await each.recv()
            assert (head["gap"], each.positions["s"] != away.positions["s"]) == ("s", True)
        assert here.positions["s"] == there.positions["s"]
        assert await hubs[0].cluster.history("s") == []
        assert (await hubs[0].publish("s", "again", idempotency_key="k")) == Published(
            first.position, True
        )
        await hubs[0].publish("s", "after")
        assert [(await each.recv())[1] for each in (here, there)] == [b"after"] * 2
        assert [each.message for each in await hubs[0].cluster.history("s")] == ["after"]
        back = await Aware.open(hubs[0], "back", away.positions)
        heads = {head["room"]: head for head in [(await back.recv())[0] for _ in range(2)]}
        assert (heads["r"]["recovered"], heads["s"]["recovered"]) == (True, False)
        with pytest.raises(ValidationError, match="not kept"):
            await hubs[0].cluster.delete_room("plain")
        for each in (here, there, back):
            each.close()


@on_each
async def test_what_was_published_before_a_history_is_deleted_goes_too(
    kind: str, tmp_path: Path
) -> None:
    async with hubs_on(kind, tmp_path) as hubs:
        for number in range(300):  # more than one call of the bus takes
            hubs[0].broadcast_to_room("s", str(number))
        published = [asyncio.ensure_future(hubs[0].publish("s", "last"))]
        await asyncio.sleep(0)
        await asyncio.gather(*(hubs[0].cluster.delete_room("s") for _ in range(2)))
        assert await hubs[0].cluster.history("s") == []
        await asyncio.gather(*published)
        await hubs[0].publish("s", "after")
        assert [each.message for each in await hubs[0].cluster.history("s")] == ["after"]


@on_each
async def test_a_room_can_have_its_unaware_members_closed_for_a_gap(
    kind: str, tmp_path: Path
) -> None:
    async with hubs_on(kind, tmp_path) as hubs:
        (plain, _), aware = await join(hubs[-1], "plain"), await Aware.open(hubs[-1], "aware")
        await aware.texts(2)
        await hubs[0].publish("r", "before")
        await hubs[0].publish("s", "before")
        assert [(await plain.recv()).payload for _ in range(2)] == [b"before"] * 2
        await aware.texts(2)
        await hubs[0].cluster.delete_room("s")  # whose pattern says "nothing"
        assert (await aware.recv())[0]["gap"] == "s"
        await hubs[0].publish("s", "still here")
        assert (await plain.recv()).payload == b"still here"
        await aware.texts(1)
        await hubs[0].cluster.delete_room("r")
        assert (await aware.recv())[0]["gap"] == "r"
        frame = await plain.recv()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1013).to_bytes(2, "big"))
        assert hubs[-1].cluster.counters()["closed_by_gap"] == 1
        plain.close()
        aware.close()


@on_each
async def test_publish_to_a_plain_room_returns_once_the_bus_has_it(
    kind: str, tmp_path: Path
) -> None:
    async with hubs_on(kind, tmp_path) as hubs:
        one, two = hubs[0], hubs[-1]
        for hub in {one, two}:
            hub.create_room("p")
        (a, _), (b, _) = await join(one, "a"), await join(two, "b")
        one.join_room("a", "p")
        two.join_room("b", "p")
        if one is not two:
            await subscribed(one, "p", b)
            await texts(a, 0)
        assert await one.publish("p", "one") == Published(None, False)
        one.broadcast_to_room("p", "two")
        assert await one.publish("p", "three", idempotency_key="k") == Published(None, False)
        assert await one.publish("p", "never", idempotency_key="k") == Published(None, True)
        assert await two.publish("p", "never", idempotency_key="k") == Published(None, True)
        assert await one.publish("p", b"four", exclude=["a"], idempotency_key="other") == Published(
            None, False
        )
        answers = await asyncio.gather(*(one.publish("p", str(n)) for n in range(5)))
        assert answers == [Published(None, False)] * 5
        numbers = [b"%d" % number for number in range(5)]
        assert await texts(a, 8) == [b"one", b"two", b"three", *numbers]
        assert await texts(b, 9) == [b"one", b"two", b"three", b"four", *numbers]
        if one is two:
            with pytest.raises(RoomNotFoundError):
                await one.publish("nowhere", "text", idempotency_key="k")
        else:
            assert await one.publish("nowhere", "text", idempotency_key="k") == Published(
                None, False
            )
        for key in ("", "k" * 129):
            with pytest.raises(ValidationError, match="idempotency_key"):
                await one.publish("p", "text", idempotency_key=key)
        a.close()
        b.close()


async def test_publish_to_a_plain_room_fails_where_the_bus_does_not_take_it(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path) as server:
        hub = Hub(authenticate=named, bus=RedisBus(server.url, timeout=0.3))
        async with running(hub):
            raw, _ = await join(hub, "a")
            hub.join_room("a", "p")
            server.pause()
            failing = [
                asyncio.ensure_future(hub.publish("p", "here", idempotency_key=key))
                for key in (None, "k")
            ]
            assert (await raw.recv()).payload == b"here"
            for each in failing:
                with pytest.raises(BusUnavailableError):
                    await each
            server.resume()
            hub.broadcast("last")
            assert (await raw.recv()).payload == b"last"  # the other one was not given
            raw.close()
