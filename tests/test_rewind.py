"""A bus that loses accepted messages: clients that miss them are told, also after an absence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.aware import Aware, keeping
from tests.redis_server import RedisServer, cutter, failing_over
from tests.support import named
from tests.test_memory_bus import killed_process
from wsc_fast import Hub, MemoryBus
from wsc_fast.bus.base import MARK
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.publish import AsyncPublisher
from wsc_fast.testing import eventually, running

Act = Callable[[], Awaitable[None]]
# The URL of a bus, what saves its state, and what makes the bus go on from there.
Loss = AsyncIterator[tuple[str, Act, Act]]
# Without its log it comes back as it was at the last SAVE.
FORGETFUL = ("--appendonly", "no")


def on(url: str) -> Hub:
    return keeping(hub=Hub(authenticate=named, bus=RedisBus(url, timeout=20.0)))


class Clients:
    """Clients of the room `r`; all are closed at the end."""

    def __init__(self) -> None:
        self._all: list[Aware] = []

    @property
    def last(self) -> Aware:
        """That has come last."""
        return self._all[-1]

    async def come(self, hub: Hub, name: str) -> Aware:
        """A new one, which is a member now."""
        aware = await Aware.open(hub, name)
        self._all.append(aware)
        head, _ = await aware.recv()
        assert head["first"]
        return aware

    async def come_back(self, hub: Hub, before: Aware) -> tuple[list[bytes], bool]:
        """One with the positions of an earlier one: the messages that it gets, and whether it has
        recovered."""
        aware = await Aware.open(hub, "back", before.positions)
        self._all.append(aware)
        messages = []
        while True:
            head, payload = await aware.recv()
            if "recovered" in head:
                return messages, head["recovered"]
            if "room" in head:
                messages.append(payload)

    def close(self) -> None:
        for aware in self._all:
            aware.close()


@pytest.fixture
def clients() -> Iterator[Clients]:
    found = Clients()
    yield found
    found.close()


async def until_text(aware: Aware, text: bytes) -> list[dict[str, Any]]:
    """The heads that came before it."""
    heads = []
    while True:
        head, payload = await aware.recv()
        if payload == text:
            return heads
        heads.append(head)


async def until_gap(aware: Aware) -> dict[str, Any]:
    while True:
        head, _ = await aware.recv()
        if head.get("gap") == "r":
            return head


@asynccontextmanager
async def rewinding(directory: Path) -> Loss:
    """The URL of a server, what saves its state, and what restarts it as it was then."""
    with RedisServer(directory, *FORGETFUL) as server:

        async def save() -> None:
            await asyncio.to_thread(server.command, "SAVE")

        async def rewind() -> None:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

        yield server.url, save, rewind


@asynccontextmanager
async def with_replica(directory: Path) -> Loss:
    """The same with Sentinel: the state is that of a replica that follows no more."""
    async with failing_over(directory) as (master, replica, sentinel):

        def is_even() -> bool:
            top = master.command("GET", "wsc:t:{r}")
            return bool(replica.command("GET", "wsc:t:{r}") == top)

        async def save() -> None:
            await eventually(is_even)
            # A server without a password refuses one.
            replica.command("CONFIG", "SET", "masterauth", "none")
            master.command("CLIENT", "KILL", "TYPE", "replica")

        async def rewind() -> None:
            await asyncio.to_thread(master.kill)
            await eventually(lambda: replica.command("ROLE")[0] == b"master", timeout=20)

        yield f"redis+sentinel://127.0.0.1:{sentinel.port}/main", save, rewind


LOSSES = {"rewind": rewinding, "failover": with_replica}


@pytest.mark.parametrize("loss", LOSSES)
async def test_a_client_that_was_away_hears_of_messages_that_the_bus_has_lost(
    tmp_path: Path, clients: Clients, loss: str
) -> None:
    async with LOSSES[loss](tmp_path) as (url, save, rewind), running(on(url)) as hub:
        stays = await clients.come(hub, "stays")
        goes = await clients.come(hub, "goes")
        goes.close()
        await eventually(lambda: hub.get_connected_clients() == 1)
        await hub.publish("r", "kept")
        await save()
        lost = await hub.publish("r", "lost")
        assert await stays.texts(2) == [b"kept", b"lost"]
        assert stays.positions["r"] == lost.position
        await rewind()
        await until_gap(stays)
        assert await clients.come_back(hub, goes) == ([], False)
        # A client that was told goes on from there.
        stays.close()
        await hub.publish("r", "after")
        await until_text(clients.last, b"after")
        assert await clients.come_back(hub, stays) == ([b"after"], True)


@pytest.mark.parametrize("follows", [False, True])
async def test_a_hub_notices_the_loss_of_messages_that_it_published_and_nobody_heard(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch, follows: bool
) -> None:
    """Nobody is in the room, or not since a moment ago."""
    monkeypatch.setattr("wsc_fast.cluster.rooms.LINGER", 0.1)
    async with (
        rewinding(tmp_path) as (url, save, rewind),
        running(on(url)) as one,
        running(on(url)) as other,
    ):
        goes = await clients.come(one if follows else other, "goes")
        await other.publish("r", "kept")
        assert await goes.texts(1) == [b"kept"]
        await save()
        if follows:  # it has the last message, too, and the hub that follows the room lets it go
            goes.close()
            stays = await clients.come(one, "stays")
            async with AsyncPublisher(url) as publisher:
                await publisher.room("r", "lost")
            assert await stays.texts(1) == [b"lost"]
            stays.close()
        else:
            goes.close()
        for hub in (one, other):
            await eventually(lambda hub=hub: hub.get_rooms() == [])  # type: ignore[misc]
        if not follows:
            await other.publish("r", "lost")
        await rewind()
        await eventually(lambda: entries(url)[-1:] == [MARK], timeout=10)
        assert entries(url).count(MARK) == 1
        assert await clients.come_back(one, goes) == ([], False)


async def test_a_loss_is_noticed_though_the_hub_has_published_again_before_it_looks(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.cluster.rooms.LINGER", 0.1)
    async with rewinding(tmp_path) as (url, save, rewind), running(on(url)) as hub:
        goes = await clients.come(hub, "goes")
        await hub.publish("r", "kept")
        assert await goes.texts(1) == [b"kept"]
        await save()
        goes.close()
        await eventually(lambda: hub.get_rooms() == [])
        await hub.publish("r", "lost")
        await rewind()
        await hub.publish("r", "after")
        await eventually(lambda: MARK in entries(url), timeout=10)
        assert await clients.come_back(hub, goes) == ([], False)


async def test_a_server_that_loses_messages_twice_gets_two_marks(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the replica of another one in between, as after two failovers, and runs on."""
    monkeypatch.setattr("wsc_fast.cluster.audit.EVERY", 0.5)  # no connection ends
    folders = [tmp_path / "main", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    quickly = ("--repl-diskless-sync-delay", "0")
    with RedisServer(folders[0], *quickly) as main, RedisServer(folders[1], *quickly) as other:

        async def follow(follower: RedisServer, followed: RedisServer) -> None:
            run = partial(asyncio.to_thread, follower.command)
            await run("REPLICAOF", "127.0.0.1", followed.port)
            await eventually(
                lambda: follower.command("INFO")["master_link_status"] == "up", timeout=20
            )
            await run("REPLICAOF", "NO", "ONE")

        async with running(on(main.url)) as hub:
            stays = await clients.come(hub, "stays")
            for number in (1, 2):
                goes = await clients.come(hub, "goes")
                goes.close()
                await hub.publish("r", f"kept {number}")
                await until_text(stays, f"kept {number}".encode())
                await follow(other, main)
                await hub.publish("r", f"lost {number}")
                await until_text(stays, f"lost {number}".encode())
                await follow(main, other)
                await until_gap(stays)
                assert entries(main.url).count(MARK) == number
                assert await clients.come_back(hub, goes) == ([], False)


def without_marks(number: int, data: bytes) -> bytes:
    """The request, as a server knows it that refuses marks."""
    return data.replace(b"EVALSHA", b"REFUSED") if b"lost by" in data else data


async def test_members_do_not_wait_for_a_mark_that_the_bus_refuses(
    tmp_path: Path,
    clients: Clients,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("wsc_fast.cluster.audit.EVERY", 0.5)
    with RedisServer(tmp_path, *FORGETFUL) as server:
        async with cutter(server) as relay, running(on(relay.url)) as hub:
            stays = await clients.come(hub, "stays")
            goes = await clients.come(hub, "goes")
            goes.close()
            await hub.publish("r", "kept")
            await asyncio.to_thread(server.command, "SAVE")
            await hub.publish("r", "lost")
            assert await stays.texts(2) == [b"kept", b"lost"]
            relay.request = without_marks
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            gap = await until_gap(stays)
            published = await hub.publish("r", "after")
            heads = await until_text(stays, b"after")
            assert [head for head in heads if head.get("gap") == "r"] == []
            assert stays.positions["r"] == published.position != gap["pos"]
            assert MARK not in entries(server.url)
            events = {record.event for record in caplog.records if hasattr(record, "event")}
            assert "mark_failed" in events
            assert "history_failed" not in events
            # A client that was away is told once the bus takes the mark.
            relay.request = lambda number, data: data
            await eventually(lambda: MARK in entries(server.url), timeout=20)
            assert await clients.come_back(hub, goes) == ([], False)
            assert entries(server.url).count(MARK) == 1


async def test_a_server_that_is_away_keeps_no_loss_of_another_one_from_being_noticed(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "away", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as away, RedisServer(folders[1], *FORGETFUL) as other:
        urls = [away.url, other.url]
        hub = keeping(hub=Hub(authenticate=named, bus=RedisBus(urls, timeout=20.0)))
        async with running(hub):
            rooms = [f"r{number}" for number in range(20)]
            for room in rooms:
                await hub.publish(room, "kept")
            await asyncio.to_thread(other.command, "SAVE")
            for room in rooms:
                await hub.publish(room, "lost")
            there = [room for room in rooms if other.command("EXISTS", f"wsc:h:{{{room}}}")]
            assert 0 < len(there) < len(rooms)
            away.pause()
            await asyncio.to_thread(other.kill)
            await asyncio.to_thread(other.start)
            for room in there:
                await eventually(lambda room=room: MARK in entries(other.url, room), timeout=15)  # type: ignore[misc]
            away.resume()


async def test_a_room_that_the_server_refuses_to_read_keeps_no_loss_of_others_from_being_noticed(
    tmp_path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async with rewinding(tmp_path) as (url, save, rewind), running(on(url)) as hub:
        for room in ("r1", "r2"):
            await hub.publish(room, "kept")
        await save()
        for room in ("r1", "r2"):
            await hub.publish(room, "lost")
        await rewind()
        with redis.Redis.from_url(url) as server:
            server.set("wsc:h:{r1}", "no stream")
        await eventually(lambda: MARK in entries(url, "r2"), timeout=15)
        assert "audit_failed" in {getattr(record, "event", "") for record in caplog.records}


async def test_a_deleted_history_is_no_loss_where_its_last_message_has_the_time_of_now(
    tmp_path: Path, clients: Clients
) -> None:
    with RedisServer(tmp_path) as server:
        # The server gives no message an earlier time than the one before.
        server.command("XADD", "wsc:h:{r}", "9999999999999-5", "m", "tag t 0 0 1\nx")
        server.command("SET", "wsc:t:{r}", "9999999999999-5.tag")
        async with running(on(server.url)) as hub:
            stays = await clients.come(hub, "stays")
            await hub.publish("r", "before")
            await until_text(stays, b"before")
            await hub.cluster.delete_room("r")
            gap = await until_gap(stays)
            published = await hub.publish("r", "after")
            assert await until_text(stays, b"after") == []
            assert gap["pos"] != published.position
            assert entries(server.url) == [b"t 0 0 5\nafter"]


def entries(url: str, room: str = "r") -> list[bytes]:
    """The history of a room, as it is on the server."""
    with redis.Redis.from_url(url, protocol=2) as server:
        found = server.xrange(f"wsc:h:{{{room}}}")
        return [entry[1][b"m"].partition(b" ")[2] for entry in found]


async def test_a_client_that_was_away_hears_of_messages_that_a_killed_hub_had_not_written(
    tmp_path: Path, clients: Clients
) -> None:
    file = tmp_path / "kept.db"

    def alone() -> Hub:
        return keeping(hub=Hub(authenticate=named, bus=MemoryBus(file)))

    async with running(alone()) as hub:
        await hub.publish("r", "kept")
        goes = await clients.come(hub, "goes")
    await killed_process(file, "r", wait=False)
    async with running(alone()) as hub:
        assert await clients.come_back(hub, goes) == ([], False)
        clients.last.close()
        await hub.publish("r", "after")
        assert await clients.come_back(hub, clients.last) == ([b"after"], True)
        for limit in (1, 2, 3):
            found = await hub.cluster.history("r", limit=limit)
            assert [each.message for each in found] == ["kept", "after"][-limit:]
        with pytest.raises(LookupError):
            await hub.cluster.history("r", after=goes.positions["r"])
    await killed_process(file, "r")
    async with running(alone()) as hub:
        assert await clients.come_back(hub, clients.last) == ([b"one"], True)


async def test_hubs_that_notice_the_same_loss_tell_of_it_once(
    tmp_path: Path, clients: Clients
) -> None:
    async with (
        rewinding(tmp_path) as (url, save, rewind),
        running(on(url)) as one,
        running(on(url)) as other,
    ):
        stay = [await clients.come(hub, name) for hub in (one, other) for name in "ab"]
        goes = await clients.come(other, "goes")
        goes.close()
        await one.publish("r", "kept")
        await save()
        await other.publish("r", "lost")
        for client in stay:
            assert await client.texts(2) == [b"kept", b"lost"]
        await rewind()
        for text in ("1", "2", "3"):
            await one.publish("r", text)
        for client in stay:
            await until_gap(client)
        await one.publish("r", "4")
        for client in stay:
            heads = await until_text(client, b"4")
            assert "r" not in [head.get("gap") for head in heads]
        for hub in (one, other):
            assert await clients.come_back(hub, goes) == ([], False)
        found = await one.cluster.history("r")
        assert [each.message for each in found] == ["kept", "1", "2", "3", "4"]
        # A mark takes the place of no message.
        async with AsyncPublisher(url) as publisher:
            for limit in range(1, 6):
                for history in (one.cluster.history, publisher.history):
                    newest = await history("r", limit=limit)
                    assert newest == found[-limit:]
