"""Every row of the API table for clients, users, sending and rooms; the Client; other threads."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import picows
import pytest
import websockets

from tests.support import only_client
from wsc_fast import (
    Client,
    ClientDisconnectedError,
    ClientNotFoundError,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    HubStoppedError,
    Identity,
    LimitError,
    LoopBusyError,
    MessageTypeError,
    QueueFullError,
    Request,
    RoomExistsError,
    RoomNotFoundError,
    ValidationError,
    WSCError,
)
from wsc_fast.testing import CLOSE, TEXT, Frame, RawClient, eventually, running, uri

# Broadcasts through batches, however few the clients, and without.
pytestmark = pytest.mark.usefixtures("either_way")

BAD_IDS = [
    "",
    "x" * 257,
    "a\nb",
    "\x00",
    "\x7f",
    "\x85",
    "a\u2028b",
    "\u2029",
    "\ud800",
    1,
    None,
    b"room",
    [],
    {},
]


def by_query(request: Request) -> Identity:
    """An authenticate that believes what the query says, for tests only."""
    return Identity(request.query["user"], request.query.get("id"))


async def join(hub: Hub, user: str, client_id: str | None = None) -> RawClient:
    query = f"?user={user}" + (f"&id={client_id}" if client_id else "")
    return await RawClient.open(hub, f"/ws{query}")


async def texts(client: RawClient, count: int) -> list[str]:
    return [(await client.recv()).payload.decode() for _ in range(count)]


# --- the contract ---


@pytest.mark.parametrize(
    "name",
    [
        "set_config",
        "run",
        "start",
        "stop",
        "route",
        "get_connected_clients",
        "get_connected_client_ids",
        "get_client_by_id",
        "get_all_connected_users",
        "get_clients_by_user",
        "broadcast",
        "broadcast_text",
        "send_to_client",
        "send_text_to_client",
        "create_room",
        "delete_room",
        "join_room",
        "leave_room",
        "broadcast_to_room",
        "get_room_clients",
        "get_rooms",
        "get_client_rooms",
        "on_client_connected",
        "on_client_disconnected",
        "on_message_received",
        "on_error",
        "get_stats",
        "reset_stats",
    ],
)
def test_the_hub_has_every_method_of_the_contract(name: str) -> None:
    assert callable(getattr(Hub, name))


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "user_id",
        "conn",
        "hub",
        "connected_at",
        "last_activity",
        "user_data",
        "is_connected",
        "disconnect",
        "set_user_data",
        "get_user_data",
        "send",
        "queued_messages",
        "queued_bytes",
        "remote_address",
    ],
)
def test_the_client_has_every_name_of_the_contract(name: str) -> None:
    assert hasattr(Client, name)


# --- connection management ---


async def test_an_anonymous_client_has_a_short_unique_id_and_is_its_own_user() -> None:
    hub = Hub()
    async with running(hub), AsyncExitStack() as stack:
        for _ in range(20):
            stack.enter_context(await RawClient.open(hub))
        ids = hub.get_connected_client_ids()
        assert hub.get_connected_clients() == len(set(ids)) == 20
        assert all(len(client_id) <= 16 for client_id in ids)
        assert sorted(hub.get_all_connected_users()) == sorted(ids)
        for client_id in ids:
            client = hub.get_client_by_id(client_id)
            assert client is not None
            assert client.user_id == client.id == client_id
            assert hub.get_clients_by_user(client_id) == [client]


async def test_users_with_several_clients() -> None:
    hub = Hub(authenticate=by_query)
    async with running(hub):
        with await join(hub, "ann", "a1"), await join(hub, "ann", "a2") as second:
            with await join(hub, "bob", "b1"):
                assert sorted(hub.get_all_connected_users()) == ["ann", "bob"]
                assert sorted(c.id for c in hub.get_clients_by_user("ann")) == ["a1", "a2"]
                assert [c.id for c in hub.get_clients_by_user("bob")] == ["b1"]
            await eventually(lambda: hub.get_connected_clients() == 2)
            assert hub.get_all_connected_users() == ["ann"]
            assert hub.get_clients_by_user("bob") == []
            second.close()
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert [c.id for c in hub.get_clients_by_user("ann")] == ["a1"]
        await eventually(lambda: hub.get_connected_clients() == 0)
        assert hub.get_all_connected_users() == []


async def test_each_client_of_a_user_is_reached_as_they_come_and_go() -> None:
    hub = Hub(authenticate=by_query)
    message = HubMessage(content="hello")
    async with running(hub):
        with await join(hub, "ann", "a1") as first:
            assert hub.send_to_user("ann", message) == 1
            with await join(hub, "ann", "a2") as second:
                assert hub.send_to_user("ann", message) == 2
                with await join(hub, "ann", "a3") as third:
                    assert hub.send_to_user("ann", message) == 3
                    assert b"hello" in (await third.recv()).payload
                first.close()
                await eventually(lambda: hub.get_connected_clients() == 1)
                assert hub.send_to_user("ann", message) == 1
                for _ in range(3):
                    assert b"hello" in (await second.recv()).payload
        await eventually(lambda: hub.get_connected_clients() == 0)
        with await join(hub, "ann", "a4"):
            assert [client.id for client in hub.get_clients_by_user("ann")] == ["a4"]
            assert hub.send_to_user("ann", message) == 1


async def test_a_user_whose_id_is_also_a_client_id() -> None:
    hub = Hub(authenticate=by_query)
    async with running(hub):
        # "ann" is the id of ann's first client, and of one client of bob's user "b".
        with await join(hub, "ann", "ann"), await join(hub, "ann", "x"), await join(hub, "b", "c"):
            assert sorted(c.id for c in hub.get_clients_by_user("ann")) == ["ann", "x"]
            assert sorted(hub.get_all_connected_users()) == ["ann", "b"]
            assert hub.get_clients_by_user("c") == []


async def test_looking_up_what_is_not_there() -> None:
    hub = Hub()
    assert hub.get_client_by_id("nobody") is None
    assert hub.get_clients_by_user("nobody") == []
    assert hub.get_connected_client_ids() == []
    assert hub.get_all_connected_users() == []
    assert hub.get_rooms() == []
    assert hub.get_connected_clients() == 0
    assert repr(hub) == "<Hub stopped, 0 clients>"
    async with running(hub):
        assert repr(hub) == "<Hub running, 0 clients>"


@pytest.mark.fault(number="F10")
async def test_a_newer_connection_with_the_same_id_replaces_the_older(any_loop: str) -> None:
    hub = Hub(authenticate=by_query)
    seen: list[tuple[str, Client]] = []
    hub.on_client_connected(lambda client: seen.append(("in", client)))
    hub.on_client_disconnected(lambda client: seen.append(("out", client)))
    async with running(hub):
        hub.create_room("r")
        with await join(hub, "ann", "one") as old:
            first = only_client(hub)
            hub.join_room("one", "r")
            with await join(hub, "ann", "one") as new:
                second = only_client(hub)
                assert second is not first
                assert not first.is_connected()
                # The newer one is a client of its own: it inherits no room.
                assert hub.get_room_clients("r") == []
                assert hub.get_clients_by_user("ann") == [second]
                assert (await old.recv()).code == 4409
                await old.send(CLOSE, b"\x11\x39")
                assert await old.recv_rest() == []
                await eventually(lambda: ("out", first) in seen)
                # The old one's end takes nothing of the new one with it.
                assert hub.get_client_by_id("one") is second
                hub.send_to_client("one", "still here")
                assert await texts(new, 1) == ["still here"]
                assert hub.get_stats().replaced_clients == 1
    assert seen == [("in", first), ("in", second), ("out", first), ("out", second)]


# --- sending ---


async def test_what_goes_out_as_text_and_as_binary() -> None:
    class Text(str):
        __slots__ = ()

    class Binary(bytes):
        pass

    hub = Hub()
    messages: list[Any] = [
        "text",
        "größe €",
        "",
        b"bytes",
        b"",
        Text("sub"),
        Binary(b"sub"),
        bytearray(b"array"),
        memoryview(b"..view..")[2:6],
    ]
    wanted: list[Any] = [
        *["text", "größe €", "", b"bytes", b"", "sub", b"sub"],
        *[b"array", b"view"],
    ]
    async with running(hub), websockets.connect(uri(hub)) as ws:
        client_id = hub.get_connected_client_ids()[0]
        hub.create_room("r")
        hub.join_room(client_id, "r")
        ways: list[Callable[[Any], Any]] = [
            hub.broadcast,
            lambda m: hub.send_to_client(client_id, m),
            lambda m: hub.broadcast_to_room("r", m),
            only_client(hub).send,
        ]
        for way in ways:
            for message in messages:
                way(message)
            assert [await ws.recv() for _ in messages] == wanted


async def test_aiohttp_and_websockets_clients_get_the_same() -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: hub.broadcast(message))
    async with (
        running(hub),
        aiohttp.ClientSession() as session,
        session.ws_connect(uri(hub)) as one,
        websockets.connect(uri(hub)) as two,
    ):
        await one.send_str("from aiohttp")
        assert await one.receive_str() == await two.recv() == "from aiohttp"
        await two.send(b"from websockets")
        assert await one.receive_bytes() == await two.recv() == b"from websockets"


@pytest.mark.fault(number="F17")
async def test_a_buffer_changed_after_the_call_is_sent_as_it_was() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            buffer = bytearray(b"before")
            hub.broadcast(buffer)
            buffer[:] = b"after!"
            assert (await client.recv()).payload == b"before"


@pytest.mark.fault(number="F16")
@pytest.mark.parametrize(
    ("message", "error"),
    [
        (None, MessageTypeError),
        (1, MessageTypeError),
        (["a"], MessageTypeError),
        ({"a": 1}, MessageTypeError),
        ("\ud800", ValidationError),
        (memoryview(b"abcdef")[::2], ValidationError),
    ],
    ids=["None", "int", "list", "dict", "surrogate", "strided"],
)
async def test_a_message_that_cannot_be_sent_reaches_nobody(
    message: Any, error: type[Exception]
) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            hub.create_room("r")
            hub.join_room(it.id, "r")
            for call in (
                lambda: hub.broadcast(message),
                lambda: hub.send_to_client(it.id, message),
                lambda: hub.broadcast_to_room("r", message),
                lambda: it.send(message),
            ):
                with pytest.raises(error):
                    call()
                with pytest.raises(ValueError, match=r"message|memoryview"):
                    call()
            assert it.queued_messages == 0
            hub.broadcast("fine")
            assert await texts(client, 1) == ["fine"]


async def test_the_text_methods_take_text_only() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            assert hub.broadcast_text("one") == 1
            hub.send_text_to_client(it.id, "two")
            assert [await client.recv(), await client.recv()] == [
                Frame(TEXT, b"one"),
                Frame(TEXT, b"two"),
            ]
            for bad in (b"bytes", None, 1, bytearray(b"x")):
                with pytest.raises(ValidationError, match="str"):
                    hub.broadcast_text(bad)  # type: ignore[arg-type]
                with pytest.raises(ValidationError, match="str"):
                    hub.send_text_to_client(it.id, bad)  # type: ignore[arg-type]


async def test_sending_to_nobody() -> None:
    hub = Hub()
    async with running(hub):
        assert hub.broadcast("x") == 0
        assert hub.broadcast_text("x") == 0
        hub.create_room("r")
        assert hub.broadcast_to_room("r", "x") == 0
        with pytest.raises(ClientNotFoundError, match="nobody"):
            hub.send_to_client("nobody", "x")
        with pytest.raises(ClientNotFoundError):
            hub.send_text_to_client("nobody", "x")
        with pytest.raises(RoomNotFoundError, match="nowhere"):
            hub.broadcast_to_room("nowhere", "x")


async def test_exclude_by_id_and_by_client() -> None:
    hub = Hub(authenticate=by_query)
    async with running(hub), AsyncExitStack() as stack:
        names = ["a", "b", "c", "d"]
        raw = {name: stack.enter_context(await join(hub, name, name)) for name in names}
        b = hub.get_client_by_id("b")
        assert b is not None
        hub.create_room("r")
        for name in "abc":
            hub.join_room(name, "r")

        assert hub.broadcast("1", exclude=["a"]) == 3
        assert hub.broadcast("2", exclude=(b,)) == 3
        assert hub.broadcast("3", exclude={"a", "b"}) == 2
        assert hub.broadcast("4", exclude=(name for name in "ab")) == 2
        assert hub.broadcast("5", exclude=["a", "a", b, "b", "nobody"]) == 2
        assert hub.broadcast("6", exclude=names) == 0
        assert hub.broadcast_to_room("r", "7", exclude=["a", "d"]) == 2
        assert hub.broadcast("8", exclude=[]) == 4
        assert hub.broadcast("9") == 4

        wanted = {"a": "289", "b": "1789", "c": "1234 5789", "d": "123 4589"}
        for name, numbers in wanted.items():
            numbers = numbers.replace(" ", "")
            assert await texts(raw[name], len(numbers)) == list(numbers)
        with pytest.raises(ValidationError, match="iterable"):
            hub.broadcast("x", exclude="ab")
        assert b.queued_messages == 0


async def test_a_key_replaces_what_still_waits_under_it() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            hub.create_room("r")
            hub.join_room(it.id, "r")
            # One turn of the loop, so that all of it waits.
            hub.broadcast("cursor 1", key="cursor")
            hub.broadcast("plain 1")
            hub.broadcast_to_room("r", "cursor 2", key="cursor")
            hub.send_to_client(it.id, "other", key="other")
            hub.send_to_client(it.id, "cursor 3", key="cursor")
            it.send("plain 2")
            it.send("cursor 4", key="cursor")
            assert await texts(client, 4) == ["plain 1", "other", "plain 2", "cursor 4"]
            assert hub.get_stats().conflated == 3
            # A message that has gone out is not replaced.
            hub.broadcast("cursor 5", key="cursor")
            assert await texts(client, 1) == ["cursor 5"]
            assert hub.get_stats().conflated == 3
            for bad in (1, b"cursor", ["cursor"]):
                with pytest.raises(ValidationError, match="key"):
                    hub.broadcast("x", key=bad)  # type: ignore[arg-type]
                with pytest.raises(ValidationError, match="key"):
                    it.send("x", key=bad)  # type: ignore[arg-type]


async def test_a_full_outbox_refuses_a_direct_send_and_closes_on_a_broadcast() -> None:
    hub = Hub(HubConfig(outbox_messages=4))
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            for number in range(4):
                it.send(f"{number}")
            assert it.queued_messages == 4
            for call in (
                lambda: it.send("5"),
                lambda: hub.send_to_client(it.id, "5"),
                lambda: hub.send_text_to_client(it.id, "5"),
            ):
                with pytest.raises(QueueFullError, match="4 messages"):
                    call()
            assert it.is_connected()
            assert hub.get_stats().refused == 3
            assert hub.broadcast("6") == 0
            assert not it.is_connected()
            assert (await client.recv()).code == 1013
            stats = hub.get_stats()
            assert stats.slow_consumer_disconnects == 1
            assert stats.dropped["slow_consumer"] == 5
            assert it.dropped_messages == 5


@pytest.mark.parametrize(
    ("overflow", "left"), [("drop_oldest", ["6", "7", "8", "9"]), ("drop_newest", list("0123"))]
)
async def test_a_full_outbox_drops_by_policy(overflow: Any, left: list[str]) -> None:
    hub = Hub(HubConfig(outbox_messages=4, overflow=overflow))
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            queued = [hub.broadcast(str(number)) for number in range(10)]
            assert queued == ([1] * 10 if overflow == "drop_oldest" else [1] * 4 + [0] * 6)
            assert it.queued_messages == 4
            assert it.dropped_messages == 6
            assert hub.get_stats().dropped[overflow] == 6
            if overflow == "drop_newest":
                with pytest.raises(QueueFullError):
                    it.send("direct")
            assert await texts(client, 4) == left
            assert it.is_connected()


async def test_the_outbox_is_bounded_in_bytes_but_takes_one_message_of_any_size() -> None:
    hub = Hub(HubConfig(outbox_bytes=1000))
    async with running(hub):
        with await RawClient.open(hub) as client:
            it = only_client(hub)
            it.send(b"x" * 5000)
            with pytest.raises(QueueFullError):
                it.send(b"")
            assert len((await client.recv()).payload) == 5000
            it.send(b"x" * 900)
            with pytest.raises(QueueFullError):
                it.send(b"x" * 200)
            it.send(b"x" * 50)
            assert len((await client.recv()).payload) == 900
            assert len((await client.recv()).payload) == 50


# --- rooms ---


async def test_rooms_from_creation_to_deletion() -> None:
    hub = Hub(authenticate=by_query)
    hub.create_room("early")
    async with running(hub), AsyncExitStack() as stack:
        raw = {name: stack.enter_context(await join(hub, name, name)) for name in "abc"}
        hub.create_room("late")
        assert hub.get_rooms() == ["early", "late"]
        assert hub.get_room_clients("early") == []
        hub.join_room("a", "early")
        hub.join_room("b", "early")
        hub.join_room("a", "late")
        assert sorted(hub.get_room_clients("early")) == ["a", "b"]
        assert hub.get_client_rooms("a") == ["early", "late"]
        assert hub.get_client_rooms("c") == []
        assert hub.get_stats().active_rooms == 2
        assert hub.broadcast_to_room("early", "hello") == 2
        hub.leave_room("b", "early")
        assert hub.broadcast_to_room("early", "again") == 1
        assert await texts(raw["a"], 2) == ["hello", "again"]
        hub.delete_room("early")
        assert hub.get_rooms() == ["late"]
        assert hub.get_client_rooms("a") == ["late"]
        # Its members stay connected.
        assert hub.get_connected_clients() == 3
        assert hub.broadcast("all") == 3
        assert await texts(raw["b"], 2) == ["hello", "all"]
        assert await texts(raw["c"], 1) == ["all"]
        hub.create_room("early")
        assert hub.get_room_clients("early") == []


@pytest.mark.fault(number="F13")
async def test_joining_twice_is_joining_once_and_leaving_is_idempotent() -> None:
    hub = Hub(authenticate=by_query)
    async with running(hub):
        hub.create_room("r")
        with await join(hub, "ann", "a1") as first, await join(hub, "ann", "a2") as second:
            for _ in range(2):
                hub.join_room("a1", "r")
                hub.join_room("a2", "r")
            assert sorted(hub.get_room_clients("r")) == ["a1", "a2"]
            assert hub.get_room_size("r") == 2
            assert await asyncio.to_thread(hub.get_room_size, "r") == 2
            assert hub.get_client_rooms("a1") == ["r"]
            assert hub.broadcast_to_room("r", "once") == 2
            hub.leave_room("a1", "r")
            hub.leave_room("a1", "r")
            assert hub.get_room_clients("r") == ["a2"]
            assert hub.broadcast("end") == 2
            assert await texts(first, 2) == ["once", "end"]
            assert await texts(second, 2) == ["once", "end"]


async def test_every_room_method_names_what_is_missing() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub):
            it = only_client(hub)
            hub.create_room("r")
            with pytest.raises(RoomExistsError, match="'r'"):
                hub.create_room("r")
            for call in (
                lambda: hub.delete_room("none"),
                lambda: hub.join_room(it.id, "none"),
                lambda: hub.leave_room(it.id, "none"),
                lambda: hub.get_room_clients("none"),
                lambda: hub.get_room_size("none"),
                lambda: hub.broadcast_to_room("none", "x"),
            ):
                with pytest.raises(RoomNotFoundError, match="'none'"):
                    call()
            for call in (
                lambda: hub.join_room("gone", "r"),
                lambda: hub.leave_room("gone", "r"),
                lambda: hub.get_client_rooms("gone"),
            ):
                with pytest.raises(ClientNotFoundError, match="'gone'"):
                    call()
            # An unknown room is not made by joining it.
            assert hub.get_rooms() == ["r"]


@pytest.mark.fault(number="F12")
@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
async def test_ids_that_cannot_be_used_are_refused(bad: Any) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub):
            it = only_client(hub)
            hub.create_room("r")
            for call in (
                lambda: hub.create_room(bad),
                lambda: hub.delete_room(bad),
                lambda: hub.join_room(it.id, bad),
                lambda: hub.join_room(bad, "r"),
                lambda: hub.leave_room(it.id, bad),
                lambda: hub.get_room_clients(bad),
                lambda: hub.get_room_size(bad),
                lambda: hub.get_client_rooms(bad),
                lambda: hub.broadcast_to_room(bad, "x"),
                lambda: hub.send_to_client(bad, "x"),
            ):
                with pytest.raises(ValueError, match="id m"):
                    call()
            assert hub.get_rooms() == ["r"]


@pytest.mark.parametrize("good", ["x", "x" * 256, "größe", "a b", "</script>", "😀" * 256])
async def test_ids_that_can_be_used(good: str) -> None:
    hub = Hub(authenticate=lambda request: Identity(good, good))
    async with running(hub):
        with await RawClient.open(hub) as client:
            hub.create_room(good)
            hub.join_room(good, good)
            assert hub.get_room_clients(good) == [good]
            assert hub.broadcast_to_room(good, "x") == 1
            assert await texts(client, 1) == ["x"]


@pytest.mark.fault(number="F12")
async def test_the_number_of_rooms_is_bounded() -> None:
    hub = Hub(HubConfig(max_rooms=2))
    hub.create_room("1")
    hub.create_room("2")
    with pytest.raises(LimitError, match="2 rooms"):
        hub.create_room("3")
    # An existing room is reported before the bound: the caller's answer to it is another.
    with pytest.raises(RoomExistsError):
        hub.create_room("1")
    hub.delete_room("1")
    hub.create_room("3")
    assert hub.get_rooms() == ["2", "3"]
    none = Hub(HubConfig(max_rooms=0))
    with pytest.raises(LimitError):
        none.create_room("1")


@pytest.mark.fault(number="F12")
@pytest.mark.parametrize("user", ["ann", "same"])
async def test_the_number_of_rooms_of_a_client_is_bounded(user: str) -> None:
    hub = Hub(HubConfig(max_rooms_per_client=2), authenticate=by_query)
    async with running(hub):
        # A client is in its user's set too, unless their ids are the same: that is no room.
        with await join(hub, user, "same"):
            for room in ("1", "2", "3"):
                hub.create_room(room)
            hub.join_room("same", "1")
            hub.join_room("same", "2")
            with pytest.raises(LimitError, match="2 rooms"):
                hub.join_room("same", "3")
            hub.join_room("same", "2")
            hub.leave_room("same", "1")
            hub.join_room("same", "3")
            assert hub.get_client_rooms("same") == ["2", "3"]


@pytest.mark.fault(number="F11")
async def test_a_client_that_has_left_joins_no_room() -> None:
    hub = Hub()
    failures: list[type[BaseException]] = []
    done = asyncio.Event()

    def try_to_join(client: Client) -> None:
        try:
            hub.join_room(client.id, "r")
        except ClientNotFoundError as error:
            failures.append(type(error))

    @hub.on_client_disconnected
    def gone(client: Client) -> None:
        try_to_join(client)
        asyncio.get_running_loop().call_soon(later, client)

    def later(client: Client) -> None:
        try_to_join(client)
        done.set()

    async with running(hub):
        hub.create_room("r")
        with await RawClient.open(hub):
            hub.join_room(only_client(hub).id, "r")
        async with asyncio.timeout(10):
            await done.wait()
        assert failures == [ClientNotFoundError, ClientNotFoundError]
        assert hub.get_room_clients("r") == []


# --- the Client ---


async def test_what_a_client_knows_of_itself() -> None:
    hub = Hub(authenticate=lambda request: Identity("ann", "one", {"role": "admin"}))
    before = datetime.now(UTC)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            assert (it.id, it.user_id) == ("one", "ann")
            assert it.hub is hub
            assert isinstance(it.conn, picows.WSTransport)
            assert it.remote_address == "127.0.0.1"
            assert it.is_connected()
            assert repr(it) == "<Client 'one' user='ann' open>"
            assert it.connected_at.tzinfo is UTC
            assert before <= it.connected_at <= datetime.now(UTC)
            assert abs(it.last_activity - it.connected_at) < timedelta(seconds=1)
            assert it.user_data == {"role": "admin"}
            it.set_user_data("n", 1)
            assert it.get_user_data("n") == 1
            assert it.get_user_data("none") is None
            assert it.get_user_data("none", "default") == "default"
            assert it.user_data == {"role": "admin", "n": 1}

            it.send("abc")
            it.send(b"abcd")
            assert (it.queued_messages, it.queued_bytes) == (2, 5 + 6)
            assert await texts(raw, 2) == ["abc", "abcd"]
            assert (it.queued_messages, it.queued_bytes) == (0, 0)
            assert it.dropped_messages == 0


async def test_the_last_activity_moves_with_every_frame() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            first = it.last_activity

            async def pong() -> bool:
                await raw.send(9)
                await raw.recv()
                return it.last_activity > first + timedelta(milliseconds=5)

            async with asyncio.timeout(10):
                while not await pong():
                    pass
            assert it.connected_at <= first + timedelta(milliseconds=10)


async def test_the_user_data_of_one_client_is_its_own() -> None:
    shared = {"role": "guest"}
    hub = Hub(authenticate=lambda request: Identity("ann", None, shared))
    async with running(hub):
        with await RawClient.open(hub), await RawClient.open(hub):
            one, two = hub.get_clients_by_user("ann")
            one.set_user_data("x", 1)
            assert two.user_data == {"role": "guest"}
            assert shared == {"role": "guest"}


async def test_a_client_stays_valid_after_its_connection() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub):
            it = only_client(hub)
            it.set_user_data("k", "v")
        await eventually(lambda: hub.connections == 0)
        for _ in range(2):
            assert not it.is_connected()
            with pytest.raises(ClientDisconnectedError, match=it.id):
                it.send("x")
            it.disconnect()
            it.disconnect(4000, "again")
            assert it.hub is hub
            assert it.user_id == it.id
            assert it.get_user_data("k") == "v"
            assert it.remote_address == "127.0.0.1"
            assert it.connected_at <= datetime.now(UTC)
            assert it.last_activity <= datetime.now(UTC) + timedelta(seconds=1)
            assert (it.queued_messages, it.queued_bytes) == (0, 0)
            assert "closed" in repr(it)
            with pytest.raises(ClientNotFoundError if hub.loop else HubStoppedError):
                hub.send_to_client(it.id, "x")
            await hub.stop()


async def test_disconnect_lets_what_is_queued_go_out_first() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            for number in range(10):
                it.send(f"{number}")
            it.disconnect(4321, "läuft ab")
            assert not it.is_connected()
            assert hub.get_connected_clients() == 0
            assert hub.broadcast("not for it") == 0
            with pytest.raises(ClientDisconnectedError):
                it.send("too late")
            it.disconnect(1000)  # does nothing: the first one counts
            assert await texts(raw, 10) == [str(number) for number in range(10)]
            frame = await raw.recv()
            assert frame.code == 4321
            assert frame.payload[2:].decode() == "läuft ab"
            await raw.send(CLOSE, frame.payload[:2])
            assert await raw.recv_rest() == []


@pytest.mark.fault(number="A14")
@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70000, -1, 10**12])
async def test_a_code_that_may_not_be_sent_leaves_the_connection_untouched(code: int) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            with pytest.raises(ValueError, match=r"close code"):
                it.disconnect(code)
            it.send("still there")
            assert await texts(raw, 1) == ["still there"]


@pytest.mark.fault(number="A14")
async def test_a_long_reason_is_cut_on_a_code_point() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            only_client(hub).disconnect(1000, "é" * 100)
            assert (await raw.recv()).payload == b"\x03\xe8" + "é".encode() * 61


async def test_the_picows_transport_is_for_looking() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            conn = only_client(hub).conn
            assert conn is not None
            for write in (
                lambda: conn.send(picows.WSMsgType.TEXT, b"x"),
                lambda: conn.send_ping(b"x"),
                lambda: conn.send_pong(b"x"),
            ):
                with pytest.raises(RuntimeError):
                    write()
            hub.broadcast("sound")
            assert await texts(raw, 1) == ["sound"]
            # A method that only closes takes the client's own way out.
            conn.disconnect()
            assert (await raw.recv()).code == 1000


# --- configuration ---


def test_the_settings_are_changed_by_set_config_alone() -> None:
    hub = Hub()
    with pytest.raises(AttributeError):
        hub.config = HubConfig(max_rooms=5)  # type: ignore[misc]
    assert hub.config == HubConfig()


async def test_before_the_start_all_of_the_configuration_can_be_set() -> None:
    hub = Hub()
    assert hub.config == HubConfig()
    hub.set_config(
        HubConfig(max_message_size=200, read_buffer_size=4096, handshake_timeout=1.0, max_rooms=1)
    )
    hub.create_room("r")
    with pytest.raises(LimitError):
        hub.create_room("s")
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, b"x" * 201)
            assert (await raw.recv()).code == 1009


async def test_after_the_start_what_can_change_changes() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            hub.create_room("r")
            hub.set_config(HubConfig(outbox_messages=1, max_rooms=1, max_connections=1))
            it.send("1")
            with pytest.raises(QueueFullError):
                it.send("2")
            with pytest.raises(LimitError):
                hub.create_room("s")
            with await RawClient.open(hub, upgrade=False) as second:
                await second.send_raw(second.request(hub))
                assert b" 503 " in await second.read_response()
            hub.set_config(HubConfig(overflow="drop_oldest", outbox_messages=1))
            it.send("3")
            assert await texts(raw, 2) == ["1", "3"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("read_buffer_size", 4096),
        ("write_buffer_size", 4096),
        ("handshake_timeout", 1.0),
        ("max_message_size", 4096),
        ("max_fragments", 4096),
        ("backlog", 10),
    ],
)
async def test_after_the_start_the_rest_is_refused_whole(name: str, value: Any) -> None:
    hub = Hub()
    async with running(hub):
        with pytest.raises(ValueError, match=f"{name} cannot change") as caught:
            hub.set_config(HubConfig(**{name: value, "max_rooms": 0}))
        assert isinstance(caught.value, ConfigError)
        assert hub.config == HubConfig()
        hub.create_room("nothing of it was applied")
    hub.set_config(HubConfig(**{name: value}))


def test_a_config_is_a_hubconfig() -> None:
    for bad in ({}, {"max_rooms": 1}, 5, "x"):
        with pytest.raises(ConfigError, match="HubConfig"):
            Hub(bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="HubConfig"):
            Hub().set_config(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Hub().set_config(None)  # type: ignore[arg-type]


# --- other threads ---


async def test_every_method_works_from_another_thread(any_loop: str) -> None:
    hub = Hub(authenticate=by_query)
    async with running(hub):
        with await join(hub, "ann", "a") as raw, await join(hub, "bob", "b"):
            client = hub.get_client_by_id("a")
            assert client is not None

            def body() -> None:
                hub.create_room("r")
                hub.join_room("a", "r")
                assert hub.get_rooms() == ["r"]
                assert hub.get_room_clients("r") == ["a"]
                assert hub.get_client_rooms("a") == ["r"]
                assert hub.broadcast("1") == 2
                assert hub.broadcast_text("2") == 2
                assert hub.broadcast_to_room("r", "3") == 1
                hub.send_to_client("a", "4")
                hub.send_text_to_client("a", "5")
                client.send("6")
                client.set_user_data("k", 1)
                hub.leave_room("a", "r")
                hub.delete_room("r")
                assert hub.get_connected_clients() == 2
                assert sorted(hub.get_connected_client_ids()) == ["a", "b"]
                assert sorted(hub.get_all_connected_users()) == ["ann", "bob"]
                assert hub.get_client_by_id("a") is client
                assert hub.get_clients_by_user("ann") == [client]
                assert hub.get_stats().connected_clients == 2
                hub.reset_stats()
                hub.set_config(HubConfig(max_rooms=0))
                # Errors come back too.
                with pytest.raises(LimitError):
                    hub.create_room("s")
                with pytest.raises(RoomNotFoundError):
                    hub.delete_room("s")
                with pytest.raises(ClientNotFoundError):
                    hub.send_to_client("c", "x")
                with pytest.raises(MessageTypeError):
                    hub.broadcast(None)  # type: ignore[arg-type]
                client.disconnect(4000, "from a thread")
                with pytest.raises(ClientDisconnectedError):
                    client.send("x")

            await asyncio.to_thread(body)
            assert await texts(raw, 6) == list("123456")
            assert (await raw.recv()).code == 4000


async def test_messages_of_a_thread_arrive_in_its_order() -> None:
    hub = Hub(HubConfig(outbox_messages=10_000))
    async with running(hub):
        with await RawClient.open(hub) as raw:

            def body(name: int) -> None:
                for number in range(100):
                    hub.broadcast(f"{name} {number}")

            calls = [asyncio.to_thread(body, name) for name in range(4)]
            await asyncio.gather(*calls)
            got = [text.split() for text in await texts(raw, 400)]
            for name in range(4):
                assert [int(n) for of, n in got if int(of) == name] == list(range(100))


@pytest.mark.fault(number="F18")
async def test_eight_threads_get_results_or_prompt_errors_amid_churn_and_after_stop() -> None:
    hub = Hub(
        HubConfig(max_rooms=20, outbox_messages=64, overflow="drop_oldest", close_timeout=0.5)
    )
    stopped = threading.Event()
    unexpected: list[BaseException] = []
    slowest = 0.0
    calls = 0

    def one_of(rng: random.Random) -> Callable[[], object]:
        ids = hub.get_connected_client_ids() or ["none"]
        client_id = rng.choice(ids)
        client = hub.get_client_by_id(client_id)
        room = f"room {rng.randrange(30)}"
        choices: list[Callable[[], object]] = [
            hub.get_connected_clients,
            hub.get_connected_client_ids,
            hub.get_all_connected_users,
            lambda: hub.get_clients_by_user(client_id),
            lambda: hub.broadcast("b"),
            lambda: hub.broadcast("b", exclude=[client_id], key="k"),
            lambda: hub.broadcast_text("t"),
            lambda: hub.send_to_client(client_id, b"s"),
            lambda: hub.send_text_to_client(client_id, "s"),
            lambda: hub.create_room(room),
            lambda: hub.delete_room(room),
            lambda: hub.join_room(client_id, room),
            lambda: hub.leave_room(client_id, room),
            lambda: hub.broadcast_to_room(room, "r"),
            lambda: hub.get_room_clients(room),
            lambda: hub.get_client_rooms(client_id),
            hub.get_rooms,
            hub.get_stats,
            hub.reset_stats,
            lambda: hub.set_config(hub.config),
            lambda: repr(hub),
        ]
        if client is not None:
            it = client
            choices += [
                lambda: it.send("c"),
                lambda: it.user_data,
                lambda: it.set_user_data("k", 1),
                lambda: it.last_activity,
                it.is_connected,
            ]
            if rng.random() < 0.05:
                choices = [it.disconnect]
        return rng.choice(choices)

    def body(seed: int) -> None:
        nonlocal slowest, calls
        rng = random.Random(seed)
        left = 200
        while left:
            # Once the hub has stopped, 200 calls more.
            left -= stopped.is_set()
            begin = time.monotonic()
            try:
                one_of(rng)()
            except WSCError:
                pass
            except BaseException as error:
                unexpected.append(error)
                return
            slowest = max(slowest, time.monotonic() - begin)
            calls += 1

    threads = [threading.Thread(target=body, args=(seed,), daemon=True) for seed in range(8)]
    await hub.start(port=0)
    for thread in threads:
        thread.start()
    for _ in range(30):
        clients = [await RawClient.open(hub) for _ in range(4)]
        for client in clients:
            await client.send(TEXT, b"x")
        for index, client in enumerate(clients):
            if index % 2:
                client.reset()
            else:
                client.close()
    await hub.stop(timeout=2.0)
    stopped.set()
    await asyncio.to_thread(lambda: [thread.join(30) for thread in threads])
    assert not any(thread.is_alive() for thread in threads)
    assert unexpected == []
    assert slowest < 5.0
    assert calls > 8 * 200
    assert hub.connections == 0


@pytest.mark.fault(number="F9")
async def test_a_callback_that_waits_for_a_thread_that_calls_the_hub_does_not_hang() -> None:
    hub = Hub(HubConfig(thread_call_timeout=0.2))
    raised: list[BaseException] = []

    def body() -> None:
        try:
            hub.broadcast("deadlock")
        except BaseException as error:
            raised.append(error)

    @hub.on_message_received
    def wait(client: Client, message: str | bytes) -> None:
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        client.send("out of it")

    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, b"go")
            # A call that was given up does not happen afterwards.
            assert await texts(raw, 1) == ["out of it"]
            hub.broadcast("next")
            assert await texts(raw, 1) == ["next"]
    assert len(raised) == 1
    assert isinstance(raised[0], LoopBusyError)
    assert isinstance(raised[0], TimeoutError)
    assert "0.2 s" in str(raised[0])


async def test_a_timeout_that_a_call_itself_raises_is_not_taken_for_a_busy_loop() -> None:
    hub = Hub()

    def items() -> Any:
        raise TimeoutError("mine")
        yield

    async with running(hub):
        with pytest.raises(TimeoutError, match="mine"):
            await asyncio.to_thread(hub.broadcast, "x", exclude=items())


@pytest.mark.parametrize(
    "register",
    [
        lambda hub, fn: hub.on_client_connected(fn),
        lambda hub, fn: hub.on_client_disconnected(fn),
        lambda hub, fn: hub.on_message_received(fn),
        lambda hub, fn: hub.on_error(fn),
    ],
    ids=["connected", "disconnected", "message", "error"],
)
def test_no_callback_is_lost_that_threads_register_at_once(
    register: Callable[[Hub, Callable[..., None]], object], quick_switches: None
) -> None:
    for _ in range(10):
        hub = Hub()
        in_threads(lambda number, hub=hub: register(hub, lambda *_, number=number: None))  # type: ignore[misc]
        lists = (
            hub._parts.callbacks._on_connected,
            hub._parts.callbacks._on_disconnected,
            hub._parts.callbacks._on_message,
            hub._parts.callbacks._on_error,
        )
        assert sorted(len(handlers) for handlers in lists) == [0, 0, 0, THREADS * EACH]


def test_a_route_that_threads_register_at_once_is_one_thread_s(quick_switches: None) -> None:
    for _ in range(10):
        hub = Hub()
        made: list[int] = []

        def register(number: int, hub: Hub = hub, made: list[int] = made) -> None:
            with suppress(ValidationError):
                hub.route(f"/{number % EACH}")(lambda request: str(number))
                made.append(number)

        in_threads(register)
        assert len(made) == len(hub._parts.site.routes) == EACH


THREADS, EACH = 8, 50


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Has threads take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(call: Callable[[int], object]) -> None:
    """Calls it with different numbers, in several threads that begin at once."""
    start = threading.Barrier(THREADS)

    def work(first: int) -> None:
        start.wait()
        for number in range(first, first + EACH):
            call(number)

    with ThreadPoolExecutor(THREADS) as threads:
        for done in [threads.submit(work, number * EACH) for number in range(THREADS)]:
            done.result(30)


# --- the face and its engine ---


def test_nobody_gives_a_hub_another_engine() -> None:
    hub = Hub()
    with pytest.raises(AttributeError):
        hub._engine = Hub()._engine  # type: ignore[misc]


class Shouting(Hub):
    """A hub of an application's, with a broadcast of its own."""

    def broadcast(self, message: Any, *, exclude: Any = (), key: str | None = None) -> int:
        return super().broadcast(message.upper(), exclude=exclude, key=key)


async def test_what_a_subclass_overrides_is_called_and_is_the_hub_of_its_clients() -> None:
    hub = Shouting()
    async with running(hub):
        with await RawClient.open(hub) as raw:
            assert only_client(hub).hub is hub
            assert hub.broadcast_text("a") == 1
            assert (await raw.recv()).payload == b"A"
            assert await asyncio.to_thread(hub.broadcast_text, "b") == 1
            assert (await raw.recv()).payload == b"B"


async def test_a_hub_that_had_clients_is_freed_with_its_engine() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub):
            assert hub.get_connected_clients() == 1
    freed = weakref.ref(hub)
    del hub
    gc.collect()
    assert freed() is None
