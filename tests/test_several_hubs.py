"""Several hubs as one over Redis: rooms, broadcasts, recovery, and what a lost bus ends in."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.aware import Aware, keeping
from tests.redis_server import EACH_PROGRAM, RedisServer
from tests.support import join, named
from wsc_fast import (
    BusUnavailableError,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    HubStateError,
    LimitError,
    RoomNotFoundError,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.cluster.chain import RING_MESSAGES
from wsc_fast.testing import RawClient, eventually, eventually_async, running


@pytest.fixture(params=EACH_PROGRAM)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    redis = RedisServer(tmp_path, program=request.param)
    redis.start()
    yield redis
    redis.kill()


@asynccontextmanager
async def hubs(
    server: RedisServer, count: int = 2, config: HubConfig | None = None, **options: Any
) -> AsyncIterator[list[Hub]]:
    """Hubs on one bus; each makes its clients members of the room `r`, which is kept."""
    made = [
        keeping("r*", Hub(config, authenticate=named, bus=RedisBus(server.url)), **options)
        for _ in range(count)
    ]
    async with asyncio.timeout(60):
        for hub in made:
            await hub.start("127.0.0.1", 0)
        try:
            yield made
        finally:
            for hub in made:
                await hub.stop(1.0)


async def subscribed(sender: Hub, room: str, client: RawClient) -> None:
    """Returns once what `sender` says in a room reaches this client of another hub."""

    async def reached() -> bool:
        sender.broadcast_to_room(room, "ready")
        try:
            return bool(await client.recv(0.2))
        except TimeoutError:
            return False

    await eventually_async(reached)


async def texts(client: RawClient, count: int) -> list[bytes]:
    """The next payloads of a client, but for those of `subscribed`."""
    found: list[bytes] = []
    while len(found) < count:
        payload = (await client.recv()).payload
        if payload != b"ready":
            found.append(payload)
    return found


async def payloads(client: Aware, count: int) -> list[bytes]:
    """The next payloads of a client that speaks wsc.1, as `texts` has them."""
    found: list[bytes] = []
    while len(found) < count:
        payload = (await client.recv())[1]
        if payload not in (b"", b"ready"):
            found.append(payload)
    return found


# --- plain rooms ---


async def test_a_plain_room_reaches_the_members_on_other_hubs(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        a, _ = await join(one, "a")
        b, _ = await join(two, "b")
        one.join_room("a", "plain")
        two.join_room("b", "plain")
        await subscribed(one, "plain", b)
        await subscribed(two, "plain", a)
        assert one.broadcast_to_room("plain", "text") == 1
        assert two.broadcast_to_room("plain", b"bytes", exclude=["a"]) == 1
        one.broadcast_to_room("plain", "last")
        assert await texts(a, 2) == [b"text", b"last"]
        assert sorted(await texts(b, 3)) == [b"bytes", b"last", b"text"]
        a.close()
        b.close()


async def test_the_order_of_one_hub_holds_on_another(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        b, _ = await join(two, "b")
        two.join_room("b", "plain")
        await subscribed(one, "plain", b)
        for number in range(500):
            one.broadcast_to_room("plain", str(number))
            if number % 50 == 0:
                one.broadcast(f"all {number}")
                await asyncio.sleep(0)
        expected = []
        for number in range(500):
            expected.append(str(number).encode())
            if number % 50 == 0:
                expected.append(f"all {number}".encode())
        assert await texts(b, len(expected)) == expected
        b.close()


@pytest.mark.parametrize("room", ["plain", "r"])
async def test_a_burst_of_many_outboxes_closes_no_client_that_reads(
    server: RedisServer, room: str
) -> None:
    async with hubs(server, config=HubConfig(outbox_messages=32)) as (one, two):
        b, _ = await join(two, "b")
        aware = await Aware.open(two, "c")
        await aware.recv()  # it is in the room r
        if room == "plain":
            two.join_room("b", room)
            two.join_room("c", room)
        await subscribed(one, room, b)
        for number in range(3000):
            one.broadcast_to_room(room, str(number))
        expected = [b"%d" % number for number in range(3000)]
        assert await texts(b, 3000) == expected
        assert await payloads(aware, 3000) == expected
        b.close()
        aware.close()


async def test_a_heal_of_many_outboxes_closes_no_client_that_reads(server: RedisServer) -> None:
    config = HubConfig(outbox_messages=32)
    async with hubs(server, config=config, size=5000) as (one, two):
        b, _ = await join(two, "b")
        aware = await Aware.open(two, "c")
        await aware.recv()
        await subscribed(one, "r", b)
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        for number in range(3000):
            one.broadcast_to_room("r", str(number))
        expected = [b"%d" % number for number in range(3000)]
        assert await texts(b, 3000) == expected
        assert await payloads(aware, 3000) == expected
        assert two.cluster.counters()["healed"] > 2 * 32
        b.close()
        aware.close()


async def test_a_broadcast_reaches_every_client(server: RedisServer) -> None:
    async with hubs(server, 3) as made:
        raws = [(await join(hub, f"c{number}"))[0] for number, hub in enumerate(made)]
        made[0].broadcast("to all", exclude=(name for name in ("c1",)))
        made[2].broadcast("again")
        assert sorted([(await raws[0].recv()).payload for _ in range(2)]) == [b"again", b"to all"]
        assert (await raws[1].recv()).payload == b"again"
        assert sorted([(await raws[2].recv()).payload for _ in range(2)]) == [b"again", b"to all"]
        for raw in raws:
            raw.close()


async def test_a_room_goes_with_its_last_member_and_comes_with_the_next(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.cluster.rooms.LINGER", 0.1)
    async with hubs(server) as (one, two):
        b, _ = await join(two, "b")
        two.join_room("b", "plain")
        await subscribed(one, "plain", b)
        two.leave_room("b", "plain")
        await eventually(lambda: "plain" not in two.get_rooms(), timeout=20)
        assert one.broadcast_to_room("plain", "to nobody") == 0
        two.join_room("b", "plain")
        await subscribed(one, "plain", b)
        with pytest.raises(RoomNotFoundError):
            two.get_room_clients("nobody is here")
        b.close()


# --- kept rooms ---


async def test_all_hubs_have_one_order_of_a_kept_room(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        a, b = await Aware.open(one, "a"), await Aware.open(two, "b")
        assert (await a.recv())[0]["first"] is True
        assert (await b.recv())[0]["first"] is True
        for number in range(100):
            one.broadcast_to_room("r", f"one {number}")
            two.broadcast_to_room("r", f"two {number}")
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        texts = await a.texts(200)
        assert texts == await b.texts(200)
        assert sorted(texts) == sorted(
            f"{hub} {number}".encode() for hub in ("one", "two") for number in range(100)
        )
        assert a.positions == b.positions
        a.close()
        b.close()


async def test_a_client_recovers_on_another_hub(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        a = await Aware.open(one, "a")
        await a.recv()
        one.broadcast_to_room("r", "seen")
        await a.recv()
        a.close()
        await eventually(lambda: one.get_connected_clients() == 0)
        for number in range(300):
            await one.publish("r", str(number))
        back = await Aware.open(two, "a", a.positions)
        head, _ = await back.recv()
        assert head["recovered"] is False  # 100 are kept
        last = back.positions
        back.close()
        for number in range(50):
            await one.publish("r", str(number))
        back = await Aware.open(two, "a", last)
        assert await back.texts(50) == [str(number).encode() for number in range(50)]
        assert (await back.recv())[0]["recovered"] is True
        back.close()


async def test_publish_knows_its_key_on_every_hub(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        first = await one.publish("r", "text", idempotency_key="k")
        again = await two.publish("r", "text", idempotency_key="k")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert first.position == again.position
        history = await two.cluster.history("r")
        assert [(each.position, each.message) for each in history] == [(first.position, "text")]


async def test_messages_that_the_subscription_missed_are_healed(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        a = await Aware.open(one, "a")
        await a.recv()
        texts: list[bytes] = []
        for round_ in range(20):
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            for number in range(20):
                await two.publish("r", f"{round_} {number}")
        while len(texts) < 400:
            head, payload = await a.recv()
            assert head.get("gap", "") == ""  # of broadcasts: nothing is kept of these
            if "room" in head:
                texts.append(payload)
        assert texts == [f"{r} {n}".encode() for r in range(20) for n in range(20)]
        assert one.cluster.counters()["heals"] > 0
        a.close()


async def test_a_bus_that_lost_its_data_ends_in_a_gap(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        a = await Aware.open(one, "a")
        await a.recv()
        await two.publish("r", "before")
        assert (await a.recv())[1] == b"before"
        await asyncio.to_thread(server.kill)
        for file in server.directory.rglob("*"):
            if file.is_file() and "aof" in str(file):
                file.unlink()
        await asyncio.to_thread(server.start)
        await two.publish("r", "after")
        head, payload = await a.recv()
        while payload != b"after" and not head.get("gap"):
            head, payload = await a.recv()
        assert head.get("gap") == "r"
        assert one.cluster.counters()["gaps"] == 1
        a.close()


async def test_broadcasts_have_a_gap_also_where_every_room_is_kept(server: RedisServer) -> None:
    hub = keeping("*", Hub(authenticate=named, bus=RedisBus(server.url)))
    async with running(hub):
        a = await Aware.open(hub, "a")
        await a.recv()
        await eventually(lambda: server.command("PUBSUB", "NUMSUB", "wsc:c:{r}")[1] == 1)
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await a.recv() == ({"gap": ""}, b"")
        a.close()


async def test_a_read_that_a_stop_ends_is_no_error_in_the_log(server: RedisServer) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    hub = keeping("r*", Hub(authenticate=named, bus=RedisBus(server.url)))
    joined: list[Client] = []
    hub.on_client_connected(joined.append)
    async with running(hub):
        a = await Aware.open(hub, "a")
        await a.recv()
        server.pause()
        b = await Aware.open(hub, "b", {"r": "unknown"})  # for which the history is read
        await eventually(lambda: len(joined) == 2)
        a.close()
        b.close()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    gc.collect()
    assert errors == []


async def test_a_hub_does_not_start_without_its_bus(server: RedisServer) -> None:
    await asyncio.to_thread(server.kill)
    hub = Hub(bus=RedisBus(server.url, timeout=0.5))
    with pytest.raises(Exception, match="reach"):
        async with running(hub):
            pass
    assert hub.loop is None


# --- what went wrong once ---


async def test_a_key_that_is_no_text_stops_no_traffic(server: RedisServer) -> None:
    async with hubs(server) as (one, two):
        b, _ = await join(two, "b")
        with pytest.raises(ValidationError, match="surrogate"):
            one.broadcast("text", key="\ud800")
        one.broadcast("after it")
        assert await texts(b, 1) == [b"after it"]
        b.close()


async def test_who_joins_gets_what_is_published_next(server: RedisServer) -> None:
    hub = Hub(authenticate=named, bus=RedisBus(server.url))
    hub.keep("r*")

    @hub.on_client_connected
    def welcome(client: Client) -> None:
        hub.join_room(client.id, f"r {client.id}")
        hub.broadcast_to_room(f"r {client.id}", "welcome")

    async with running(hub):
        for number in range(20):
            raw, _ = await join(hub, f"c{number}")
            assert await texts(raw, 1) == [b"welcome"]
            raw.close()


async def test_a_join_into_a_room_that_was_made_anew_is_one_of_the_new_room(
    server: RedisServer,
) -> None:
    async with hubs(server, 1) as (hub,):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.join_room("a", "r2")
        hub.delete_room("r2")
        hub.create_room("r2")
        hub.join_room("a", "r2")
        head, _ = await aware.recv()
        assert (head["room"], head["first"]) == ("r2", True)
        assert hub.get_room_clients("r2") == ["a"]
        await hub.publish("r2", "text")
        assert (await aware.recv())[1] == b"text"
        aware.close()


async def test_rooms_on_the_way_into_which_a_client_is_count_as_its_rooms(
    server: RedisServer,
) -> None:
    hub = Hub(HubConfig(max_rooms_per_client=2), authenticate=named, bus=RedisBus(server.url))
    hub.keep("r*")
    refused: list[str] = []

    @hub.on_client_connected
    def enter(client: Client) -> None:
        hub.join_room(client.id, "r1")
        hub.join_room(client.id, "r2")
        hub.join_room(client.id, "r1")  # once more: no further room
        for room in ("r3", "plain"):
            try:
                hub.join_room(client.id, room)
            except LimitError as error:
                refused.append(str(error))
        hub.leave_room(client.id, "r2")
        hub.join_room(client.id, "r4")

    async with running(hub):
        a = await Aware.open(hub, "a")
        rooms = {(await a.recv())[0]["room"] for _ in range(2)}
        assert rooms == {"r1", "r4"}
        assert refused == ["client 'a' is in 2 rooms, as many as max_rooms_per_client allows"] * 2
        await eventually(lambda: hub.get_client_rooms("a") == ["r1", "r4"])
        a.close()


async def test_a_room_that_nobody_came_to_be_in_is_let_go(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.cluster.rooms.LINGER", 0.1)
    async with hubs(server, 1) as (hub,):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        for number in range(20):
            hub.join_room("a", f"r{number}")
            hub.leave_room("a", f"r{number}")
        assert len(hub.get_rooms()) == 21
        await eventually(lambda: hub.get_rooms() == ["r"])
        aware.close()


async def test_a_call_while_the_bus_closes_raises_nothing_of_the_bus(server: RedisServer) -> None:
    heard: list[tuple[HubMessage, Exception]] = []

    class Handler:
        async def handle_send_failure(
            self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
        ) -> None:
            heard.append((msg, error))

    hub = keeping("r*", Hub(authenticate=named, bus=RedisBus(server.url)))
    hub.add_send_failure_handler(Handler())
    await hub.start("127.0.0.1", 0)
    await asyncio.to_thread(server.pause)
    hub.broadcast_to_room("r", "this has the stop wait")
    before = hub.cluster.counters()["not_published"]
    stopping = asyncio.ensure_future(hub.stop(1.0))
    with suppress(HubStateError):
        while not stopping.done():
            hub.broadcast_to_room("r", "late")
            await asyncio.sleep(0.001)
    await stopping
    assert hub.cluster.counters()["not_published"] > before
    late = [error for msg, error in heard if msg.content == "late"]
    assert late
    assert all(isinstance(error, BusUnavailableError) for error in late)


async def test_a_stop_while_the_bus_opens_leaves_it_closed(server: RedisServer) -> None:
    hub = Hub(bus=RedisBus(server.url))
    await asyncio.to_thread(server.pause)
    starting = asyncio.ensure_future(hub.start("127.0.0.1", 0))
    await eventually(lambda: hub.loop is not None)
    await hub.stop(0.1)
    await asyncio.to_thread(server.resume)
    with pytest.raises(Exception, match="stopped"):
        await starting
    async with running(hub):
        hub.broadcast("text")  # the bus is open once, and takes it


async def test_a_heal_that_fails_is_not_the_last(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hubs(server) as (one, two):
        a = await Aware.open(one, "a")
        await a.recv()
        rooms = one._node._rooms
        assert rooms is not None
        hear, give = rooms.heard, rooms.give
        missed: list[object] = []
        failed: list[object] = []

        def heard(*args: Any) -> None:
            if missed:
                hear(*args)
            missed.append(args)

        def given(*args: Any) -> None:
            failed.append(args)
            if len(failed) == 1:
                raise MemoryError("none is left")
            give(*args)

        monkeypatch.setattr(rooms, "heard", heard)
        monkeypatch.setattr(rooms, "give", given)
        for text in ("missed", "second"):
            await two.publish("r", text)
        await eventually(lambda: failed)
        await two.publish("r", "third")
        assert await a.texts(2) == [b"second", b"third"]
        a.close()


async def test_clients_behind_one_whose_recovery_fails_recover(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hubs(server) as (one, two):
        first = await two.publish("r", "first")
        for number in range(RING_MESSAGES + 1):
            await two.publish("r", str(number))
        assert one._node._rooms is not None
        recovery = one._node._rooms._recovery
        go_on = recovery._go_on
        failed: list[object] = []

        def fails_once(*args: Any) -> None:
            failed.append(args)
            if len(failed) == 1:
                raise MemoryError("none is left")
            go_on(*args)

        monkeypatch.setattr(recovery, "_go_on", fails_once)
        other = await Aware.open(one, "other")
        await other.recv()  # this hub knows the room
        server.pause()
        try:
            positions = {"r": str(first.position)}
            clients = [await Aware.open(one, name, positions) for name in "abc"]
            await eventually(lambda: [len(each) for each in recovery._asked.values()] == [3])
        finally:
            server.resume()
        for each in clients:
            await each.texts(RING_MESSAGES + 1)
            assert (await each.recv())[0]["recovered"] is True
        for each in (other, *clients):
            each.close()
