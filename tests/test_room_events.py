"""on_room_joined and on_room_left, the rooms of a client that has gone, and rooms that are deleted
with very many members."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.support import crowd, join, known, named
from wsc_fast import Client, Hub, HubConfig, PermissionDeniedError, RoomNotFoundError
from wsc_fast._core.connection import enter
from wsc_fast.testing import CLOSE, TEXT, RawClient, encode, eventually, running

Event = tuple[str, ...]


def recording(hub: Hub) -> list[Event]:
    """The calls of the callbacks about rooms and ends, in their order."""
    heard: list[Event] = []
    hub.on_room_joined(lambda client, room_id: heard.append(("joined", client.id, room_id)))
    hub.on_room_left(lambda client, room_id: heard.append(("left", client.id, room_id)))
    hub.on_client_disconnected(lambda client: heard.append(("gone", client.id, *client.rooms)))
    return heard


def with_rooms(*rooms: str, **options: Any) -> Hub:
    hub = Hub(authenticate=named, **options)
    for room_id in rooms:
        hub.create_room(room_id)
    return hub


# --- joining and leaving ---


async def test_each_membership_is_told_of_once(any_loop: str) -> None:
    hub = with_rooms("x", "y")
    heard = recording(hub)
    async with crowd(hub, 2):
        hub.join_room("c0", "x")
        hub.join_room("c0", "x")  # is in it already
        hub.join_room("c0", "y")
        hub.join_room("c1", "x")
        hub.leave_room("c1", "y")  # was not in it
        hub.leave_room("c0", "x")
        hub.leave_room("c0", "x")
        assert heard == [
            ("joined", "c0", "x"),
            ("joined", "c0", "y"),
            ("joined", "c1", "x"),
            ("left", "c0", "x"),
        ]
        assert known(hub, "c0").rooms == ("y",)


async def test_a_join_that_is_refused_is_not_told_of() -> None:
    hub = with_rooms("x", "y", authorize_join=lambda client, room_id: room_id != "x")
    hub.set_config(HubConfig(max_rooms_per_client=0))
    heard = recording(hub)
    async with crowd(hub, 1):
        with pytest.raises(PermissionDeniedError):
            hub.join_room("c0", "x")
        with pytest.raises(RuntimeError, match="max_rooms_per_client"):
            hub.join_room("c0", "y")
        assert heard == []


async def test_members_of_a_deleted_room_have_left_it() -> None:
    hub = with_rooms("x", "y")
    heard = recording(hub)
    async with crowd(hub, 3):
        for number in range(3):
            hub.join_room(f"c{number}", "x")
        hub.join_room("c1", "y")
        heard.clear()
        hub.delete_room("x")
        assert sorted(heard) == [("left", f"c{number}", "x") for number in range(3)]
        assert known(hub, "c1").rooms == ("y",)


async def test_calls_of_other_threads_are_told_of() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with crowd(hub, 1):
        await asyncio.to_thread(hub.join_room, "c0", "x")
        assert await asyncio.to_thread(hub.get_room_users, "x") == ["c0"]
        await asyncio.to_thread(hub.delete_room, "x")
        await eventually(lambda: heard == [("joined", "c0", "x"), ("left", "c0", "x")])


async def test_a_callback_that_raises_ends_nothing_but_itself() -> None:
    hub = with_rooms("x")
    errors: list[str] = []
    hub.on_error(lambda client, error: errors.append(f"{client.id if client else None} {error}"))

    @hub.on_room_joined
    def fails(client: Client, room_id: str) -> None:
        raise ValueError(f"joined {room_id}")

    @hub.on_room_left
    async def fails_later(client: Client, room_id: str) -> None:
        raise ValueError(f"left {room_id}")

    heard = recording(hub)
    async with crowd(hub, 1):
        hub.join_room("c0", "x")
        hub.leave_room("c0", "x")
        await eventually(lambda: len(heard) == 2)
        assert heard == [("joined", "c0", "x"), ("left", "c0", "x")]
        assert errors == ["c0 joined x", "c0 left x"]
        assert known(hub, "c0").is_connected()


async def test_nobody_is_called_where_there_is_no_callback() -> None:
    hub = with_rooms("x")
    heard: list[str] = []
    async with crowd(hub, 1):
        hub.join_room("c0", "x")
        hub.on_room_left(lambda client, room_id: heard.append(room_id))
        hub.leave_room("c0", "x")
        assert heard == ["x"]


# --- the end of a connection ---


@pytest.mark.parametrize("end", ["close", "reset", "disconnect"])
async def test_a_client_that_goes_leaves_its_rooms_first(any_loop: str, end: str) -> None:
    hub = with_rooms("x", "y")
    heard = recording(hub)
    async with running(hub):
        raw, client = await join(hub, "a")
        hub.join_room("a", "y")
        hub.join_room("a", "x")
        if end == "close":
            await raw.send(CLOSE, b"")
        elif end == "disconnect":
            client.disconnect(4000)
        raw.close()
        await eventually(lambda: ("gone", "a", "y", "x") in heard)
        assert heard[2:] == [("left", "a", "y"), ("left", "a", "x"), ("gone", "a", "y", "x")]
        assert client.rooms == ("y", "x")
        assert hub.get_room_clients("x") == []


async def test_a_client_that_was_in_no_room_has_none_at_its_end() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.join_room("a", "x")
        hub.leave_room("a", "x")
        raw.close()
        await eventually(lambda: heard[-1:] == [("gone", "a")])


async def test_a_hub_that_stops_tells_of_all_rooms() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with crowd(hub, 3):
        for number in range(3):
            hub.join_room(f"c{number}", "x")
        heard.clear()
        await hub.stop(0)
    assert sorted(heard) == [
        *[("gone", f"c{number}", "x") for number in range(3)],
        *[("left", f"c{number}", "x") for number in range(3)],
    ]


async def test_a_connection_that_is_replaced_leaves_its_rooms() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with running(hub):
        old, _ = await join(hub, "a")
        hub.join_room("a", "x")
        new, client = await join(hub, "a")
        old.close()
        await eventually(lambda: ("gone", "a", "x") in heard)
        assert heard == [("joined", "a", "x"), ("left", "a", "x"), ("gone", "a", "x")]
        assert client.rooms == ()
        new.close()


# --- the order of a client's events ---


async def test_async_callbacks_come_in_the_order_of_all_events(any_loop: str) -> None:
    hub = with_rooms("x", "y")
    heard: list[Event] = []
    gate = asyncio.Event()

    @hub.on_client_connected
    def connected(client: Client) -> None:
        hub.join_room(client.id, "x")

    @hub.on_room_joined
    async def joined(client: Client, room_id: str) -> None:
        await gate.wait()
        heard.append(("joined", room_id))

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        heard.append(("message", str(message)))
        if message == "a":
            hub.join_room(client.id, "y")
            hub.leave_room(client.id, "x")

    @hub.on_room_left
    def left(client: Client, room_id: str) -> None:
        heard.append(("left", room_id))

    @hub.on_client_disconnected
    async def gone(client: Client) -> None:
        heard.append(("gone", *client.rooms))

    async with running(hub):
        tail = encode(TEXT, b"a") + encode(TEXT, b"b")
        with await RawClient.open(hub, "/ws?id=a", tail=tail):
            await eventually(lambda: hub.get_stats().messages_in == 2)
            gate.set()
            await eventually(lambda: ("left", "x") in heard)
        await eventually(lambda: ("gone", "y") in heard)
    assert heard == [
        ("joined", "x"),
        ("message", "a"),
        ("message", "b"),
        ("joined", "y"),
        ("left", "x"),
        ("left", "y"),
        ("gone", "y"),
    ]


async def test_events_of_rooms_outlast_messages_that_are_dropped() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    gate = asyncio.Event()

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        await gate.wait()

    async with running(hub):
        raw, client = await join(hub, "a")
        await raw.send(TEXT, b"under way")
        await raw.send(TEXT, b"dropped")
        await eventually(lambda: hub.get_stats().messages_in == 2)
        hub.join_room("a", "x")
        client.disconnect()
        gate.set()
        raw.close()
        await eventually(lambda: len(heard) == 3)
        assert hub.get_stats().messages_abandoned == 1
    assert heard == [("joined", "a", "x"), ("left", "a", "x"), ("gone", "a", "x")]


# --- what a callback may do ---


async def test_a_callback_may_end_the_client_or_the_room_that_it_hears_of() -> None:
    hub = with_rooms("x", "y")
    heard = recording(hub)

    @hub.on_room_joined
    def joined(client: Client, room_id: str) -> None:
        if room_id == "x":
            client.disconnect(4000)
        else:
            hub.delete_room(room_id)

    async with crowd(hub, 2) as raws:
        hub.join_room("c0", "x")
        hub.join_room("c1", "y")
        assert hub.get_rooms() == ["x"]
        raws["c0"].close()
        await eventually(lambda: ("gone", "c0", "x") in heard)
    assert heard[:3] == [("joined", "c0", "x"), ("joined", "c1", "y"), ("left", "c1", "y")]


async def test_a_callback_may_enter_another_room_in_place_of_one_that_is_deleted() -> None:
    hub = with_rooms("x", "y", "z")
    heard = recording(hub)

    @hub.on_room_left
    def left(client: Client, room_id: str) -> None:
        if client.is_connected():
            hub.join_room(client.id, "y")
        if "z" in hub.get_rooms():
            hub.delete_room("z")  # while the other one is emptied

    async with crowd(hub, 3):
        for number in range(3):
            hub.join_room(f"c{number}", "x")
            hub.join_room(f"c{number}", "z")
        hub.delete_room("x")
        await eventually(lambda: len([event for event in heard if event[0] == "left"]) == 6)
        assert sorted(hub.get_room_clients("y")) == ["c0", "c1", "c2"]
        assert {known(hub, f"c{number}").rooms for number in range(3)} == {("y",)}


# --- rooms that are deleted with very many members ---

MANY = 20_000


def many_clients(hub: Hub, count: int) -> list[Client]:
    """Clients that are open and have no connection; for a hub that runs."""
    clients = [Client(hub._engine) for _ in range(count)]
    for number, client in enumerate(clients):
        enter(client, f"m{number}", f"u{number % 7}", None, None)
    return clients


async def forget(hub: Hub, clients: list[Client]) -> None:
    for client in clients:
        client.disconnect()
    hub._engine.forget_connections()


@pytest.mark.parametrize("listens", [True, False])
async def test_a_large_room_is_deleted_over_several_turns(listens: bool) -> None:
    hub = with_rooms("x")
    heard = recording(hub) if listens else []
    async with running(hub):
        clients = many_clients(hub, MANY)
        for client in clients:
            hub.join_room(client.id, "x")
        assert len(hub.get_room_users("x")) == 7
        heard.clear()
        hub.delete_room("x")
        with pytest.raises(RoomNotFoundError):
            hub.get_room_clients("x")
        assert {client.rooms for client in clients} == {()}
        assert hub.get_client_rooms("m0") == []
        turns = 0
        while hub._engine.count_emptying():
            turns += 1
            await asyncio.sleep(0)
        if listens:
            assert turns > 0
            assert sorted(heard) == sorted(("left", client.id, "x") for client in clients)
        await forget(hub, clients)


async def test_a_deleted_room_is_left_before_one_of_its_name_is_joined() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with running(hub):
        clients = many_clients(hub, MANY)
        for client in clients:
            hub.join_room(client.id, "x")
        hub.delete_room("x")
        heard.clear()
        # The members that came first are taken out last.
        hub.create_room("x")
        hub.join_room("m0", "x")
        assert heard == [("left", "m0", "x"), ("joined", "m0", "x")]
        await eventually(lambda: not hub._engine.count_emptying())
        assert hub.get_room_clients("x") == ["m0"]
        assert ("left", "m0", "x") not in heard[2:]
        await forget(hub, clients)


async def test_a_client_that_goes_leaves_a_room_that_is_being_emptied_once() -> None:
    hub = with_rooms("x")
    heard = recording(hub)
    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.join_room("a", "x")
        clients = many_clients(hub, MANY)
        for client in clients:
            hub.join_room(client.id, "x")
        hub.delete_room("x")
        assert ("left", "a", "x") not in heard
        known(hub, "a").disconnect()
        raw.close()
        await eventually(lambda: ("gone", "a", "x") in heard)
        await eventually(lambda: not hub._engine.count_emptying())
        assert heard.count(("left", "a", "x")) == 1
        assert heard.index(("left", "a", "x")) < heard.index(("gone", "a", "x"))
        await forget(hub, clients)


async def test_the_next_start_knows_nothing_of_a_room_that_was_being_emptied() -> None:
    hub = with_rooms("x")
    async with running(hub):
        clients = many_clients(hub, MANY)
        for client in clients:
            hub.join_room(client.id, "x")
        hub.delete_room("x")
        await forget(hub, clients)
    heard = recording(hub)
    hub.create_room("y")
    async with crowd(hub, 1):
        hub.join_room("c0", "y")
        hub.delete_room("y")
        assert heard == [("joined", "c0", "y"), ("left", "c0", "y")]


async def test_slow_callbacks_of_a_deleted_room_let_the_loop_turn() -> None:
    hub = with_rooms("x")
    turns = 0
    at: list[int] = []

    @hub.on_room_left
    def left(client: Client, room_id: str) -> None:
        end = time.perf_counter() + 0.003  # longer than a turn of it may take
        while time.perf_counter() < end:
            pass
        at.append(turns)

    async with crowd(hub, 5):
        for number in range(5):
            hub.join_room(f"c{number}", "x")
        hub.delete_room("x")
        while len(at) < 5:
            turns += 1
            await asyncio.sleep(0)
        assert at == sorted(set(at))
