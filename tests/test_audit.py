"""Audits: what a hub asks the bus about rooms of which no message tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.aware import Aware, keeping
from tests.redis_server import RedisServer, cutter
from tests.support import named
from wsc_fast import Client, Hub
from wsc_fast.bus.base import Retention, Way
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.cluster.accepted import MOST_ROOMS, Accepted
from wsc_fast.cluster.audit import Audit
from wsc_fast.testing import eventually, running

ROOMS = [f"r{number}" for number in range(20)]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits follow each other at once."""
    monkeypatch.setattr("wsc_fast.cluster.node._LOOK", 0.05)
    monkeypatch.setattr("wsc_fast.cluster.audit.EVERY", 0.05)


def in_all_rooms(hub: Hub) -> Hub:
    """A hub that makes each client a member of ROOMS."""
    hub.keep("r*")

    @hub.on_client_connected
    def enter(client: Client) -> None:
        for room in ROOMS:
            hub.join_room(client.id, room)

    return hub


async def test_a_server_that_is_away_keeps_no_room_of_another_one_from_being_healed(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "away", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as away, RedisServer(folders[1]) as other:
        async with cutter(other) as relay:
            bus = RedisBus([away.url, relay.url], timeout=20.0)
            async with running(in_all_rooms(Hub(authenticate=named, bus=bus))) as hub:
                client = await Aware.open(hub, "a")
                for _ in ROOMS:
                    await client.recv()
                (room, *_) = [room for room in ROOMS if bus.way(room).server == 1]
                assert {bus.way(each).server for each in ROOMS} == {0, 1}
                away.pause()
                # The message does not come, and none comes after it.
                relay.reply = lambda number, data: b"" if b"wsc1 k " in data else data
                await hub.publish(room, "unheard")
                head, payload = await client.recv()
                while "bus" in head:  # it hears of the server that is away
                    head, payload = await client.recv()
                assert (head["room"], payload) == (room, b"unheard")
                away.resume()
                client.close()


async def test_an_audit_that_has_no_answer_yet_is_not_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = asked = 0
    look = Audit.look

    def count_looks(audit: Audit, now: float) -> None:
        nonlocal looks
        looks += 1
        look(audit, now)

    def count_questions(number: int, data: bytes) -> bytes:
        nonlocal asked
        asked += data.count(b"MGET")
        return data

    monkeypatch.setattr(Audit, "look", count_looks)
    with RedisServer(tmp_path) as server:
        async with cutter(server) as relay:
            hub = keeping(hub=Hub(authenticate=named, bus=RedisBus(relay.url, timeout=20.0)))
            async with running(hub):
                client = await Aware.open(hub, "a")
                await client.recv()
                await hub.publish("r elsewhere", "accepted")
                relay.request = count_questions
                await eventually(lambda: asked > 4)  # with an answer, it is
                server.pause()
                await eventually(lambda: looks > 10)
                asked = looks = 0
                await eventually(lambda: looks > 10)
                assert asked <= 2  # about rooms with members, and about accepted messages
                server.resume()
                asked = 0
                await eventually(lambda: asked > 4)
                client.close()


async def test_a_history_that_ends_before_its_newest_position_is_a_gap(tmp_path: Path) -> None:
    """Else the room is silent for ever: each audit reads, and there is nothing to read."""
    with RedisServer(tmp_path) as server:
        async with running(keeping(hub=Hub(authenticate=named, bus=RedisBus(server.url)))) as hub:
            client = await Aware.open(hub, "a")
            await client.recv()
            await hub.publish("r", "before")
            assert await client.texts(1) == [b"before"]
            await asyncio.to_thread(server.command, "SET", "wsc:t:{r}", "9999999999999-0.other")
            head, _ = await client.recv()
            assert head == {"gap": "r", "pos": "9999999999999-0.other"}
            await hub.publish("r", "after")
            assert await client.texts(1) == [b"after"]
            client.close()


async def test_a_check_of_many_rooms_takes_many_turns_of_the_loop() -> None:
    """Of rooms that chains follow nothing is asked, so that no answer is waited for."""
    connection = 0
    # A bus would be asked by the calls that are None here.
    accepted = Accepted(
        lambda room, position: True,
        *(None, None, None, None),  # type: ignore[arg-type]
        lambda room: Way(0, connection),
    )
    for connection in range(2):
        for number in range(MOST_ROOMS):
            accepted.note(f"r{number}", f"{connection}.x", 0.0, Retention(100, 300.0))
    checking = asyncio.ensure_future(accepted.check(0, 1.0))
    turns = 0
    while not checking.done():
        await asyncio.sleep(0)
        turns += 1
    await checking
    assert turns > 2 * MOST_ROOMS // 1000
    assert not accepted.servers()
