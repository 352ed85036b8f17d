"""Clients that the hub hears no more: disconnected users, and messages that are not allowed.

Also the bounds of async callbacks whose client has gone, or which go wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import exchange, join, known, named, only_client, unless_lost
from wsc_fast import Client, Hub, HubConfig, Identity, Request
from wsc_fast.testing import CLOSE, TEXT, RawClient, deflated, encode, eventually, running


class Slow:
    """An async callback that goes on until it is told to, once for each message."""

    def __init__(self) -> None:
        self.begun: list[object] = []
        self.go_on = asyncio.Semaphore(0)

    async def __call__(self, client: Client, message: object = None) -> None:
        self.begun.append(message)
        await self.go_on.acquire()

    def let(self, count: int = 1_000) -> None:
        for _ in range(count):
            self.go_on.release()


# --- messages that wait ---


def ban(hub: Hub, client: Client) -> None:
    assert hub.disconnect_user("ann", 4403, "banned") == 1


def end(hub: Hub, client: Client) -> None:
    client.disconnect(4403, "banned")


def expire(hub: Hub, client: Client) -> None:
    hub._parts.admission._expiring[client] = (0.0, hub._parts.admission._expiring[client][1])
    hub._parts.admission._expired(client)


@pytest.mark.parametrize("how", [ban, end, expire])
async def test_a_disconnected_client_is_heard_no_further(
    any_loop: str, how: Callable[[Hub, Client], None]
) -> None:
    def authenticate(request: Request) -> Identity:
        return Identity("ann", expires_at=time.time() + 1_000)

    hub = Hub(authenticate=authenticate)
    slow, gone = Slow(), Slow()
    hub.on_message_received(slow)
    hub.on_client_disconnected(gone)
    async with running(hub):
        raw = await RawClient.open(hub)
        client = only_client(hub)
        for number in range(50):
            await raw.send(TEXT, b"delete-account %d" % number)
        await eventually(lambda: hub.get_stats().messages_in == 50)
        how(hub, client)
        slow.let()
        gone.let()
        assert (await raw.recv()).code == (4401 if how is expire else 4403)
        raw.close()
        await eventually(lambda: len(gone.begun) == 1 and not hub._parts.callbacks.inboxes._of_user)
        assert slow.begun == ["delete-account 0"]
        assert hub.get_stats().messages_abandoned == 49


@pytest.mark.parametrize("state", ["closing", "gone"])
async def test_a_user_that_is_disconnected_is_not_heard_though_it_has_left(state: str) -> None:
    hub = Hub(authenticate=named)
    slow, gone = Slow(), Slow()
    hub.on_message_received(slow)
    hub.on_client_disconnected(gone)
    async with running(hub):
        raw, client = await join(hub, "ann")
        other, _ = await join(hub, "bob")
        for one in (raw, other):
            await one.send_raw(encode(TEXT, b"a command") * 3)
        await eventually(lambda: hub.get_stats().messages_in == 6)
        if state == "closing":
            client.send(bytes(30 << 20))  # more than the kernel takes, so that it cannot go
        await raw.send(CLOSE, b"\x03\xe8")
        if state == "gone":
            raw.close()
            await eventually(lambda: hub.connections == 1)
        else:
            await eventually(lambda: not client.is_connected())
        assert hub.disconnect_user("ann") == 0
        slow.let()
        gone.let()
        raw.close()
        await eventually(lambda: not hub._parts.callbacks.inboxes._of_user)
        assert len(slow.begun) == 1 + 3
        assert len(gone.begun) == 1
        other.close()


@pytest.mark.parametrize("how", ["leaves", "replaced", "stop"])
async def test_messages_of_others_are_heard_to_the_end(how: str) -> None:
    hub = Hub(authenticate=named)
    slow = Slow()
    hub.on_message_received(slow)
    async with running(hub):
        raw, _ = await join(hub, "ann")
        await raw.send_raw(encode(TEXT, b"a command") * 3)
        await eventually(lambda: hub.get_stats().messages_in == 3)
        if how == "replaced":
            second = await RawClient.open(hub, "/ws?id=ann")
            assert (await raw.recv()).code == 4409
            second.close()
        elif how == "leaves":
            raw.close()
            await eventually(lambda: hub.connections == 0)
        stopping = asyncio.create_task(hub.stop(5.0)) if how == "stop" else None
        if stopping is not None:
            assert (await raw.recv()).code == 1001
            await raw.send(CLOSE, b"\x03\xe9")
        slow.let()
        await eventually(lambda: len(slow.begun) == 3)
        if stopping is not None:
            await stopping
        assert hub.get_stats().messages_abandoned == 0
        raw.close()


async def test_a_user_that_is_disconnected_while_it_authenticates_is_not_let_in(
    any_loop: str,
) -> None:
    doors: dict[str, asyncio.Event] = {}
    connected: list[str] = []

    async def authenticate(request: Request) -> Identity:
        name = request.query["id"]
        await doors.setdefault(name, asyncio.Event()).wait()
        return Identity(name.partition("-")[0], name)

    hub = Hub(authenticate=authenticate)
    hub.on_client_connected(lambda client: connected.append(client.id))
    async with running(hub):
        ann = await RawClient.open(hub, "/ws?id=ann-1", tail=encode(TEXT, b"a command"))
        bob = await RawClient.open(hub, "/ws?id=bob")
        await eventually(lambda: set(doors) == {"ann-1", "bob"})
        assert hub.disconnect_user("ann", 4403, "banned") == 0
        later = await RawClient.open(hub, "/ws?id=ann-2")
        await eventually(lambda: len(doors) == 3)
        for door in doors.values():
            door.set()
        frame = await ann.recv()
        assert (frame.code, frame.payload[2:]) == (4403, b"banned")
        # Others are let in, and so is one that asks again: `authenticate` has to refuse it.
        await eventually(lambda: sorted(connected) == ["ann-2", "bob"])
        assert hub.get_stats().rejected["auth"] == 1
        await eventually(lambda: not hub._parts.admission._authenticating)
        hub.disconnect_user("nobody")
        assert not hub._parts.admission._sent_away
        for raw in (ann, bob, later):
            raw.close()


# --- what may be published ---


async def test_whether_a_message_may_be_published_is_asked_in_its_turn(any_loop: str) -> None:
    loaded = asyncio.Event()
    asked: list[str | bytes] = []
    heard: list[str | bytes] = []

    def may_publish(client: Client, message: str | bytes) -> bool:
        asked.append(message)
        return not client.get_user_data("muted")

    hub = Hub(authenticate=named, authorize_publish=may_publish)

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        await loaded.wait()
        client.set_user_data("muted", True)

    @hub.on_message_received
    async def message(client: Client, text: str) -> None:
        heard.append(text)

    async with running(hub):
        raw = await RawClient.open(hub, "/ws?id=ann", tail=encode(TEXT, b"spam"))
        await raw.send(TEXT, b"more spam")
        await eventually(lambda: hub.get_stats().messages_in == 2)
        assert asked == []
        loaded.set()
        await eventually(lambda: hub.get_stats().unauthorized == 2)
        known(hub, "ann").set_user_data("muted", False)
        await raw.send_raw(encode(TEXT, b"a word") * 3)
        await eventually(lambda: len(heard) == 3)
        assert asked == ["spam", "more spam", *["a word"] * 3]
        raw.close()


async def test_messages_of_a_muted_client_that_wait_are_refused_without_a_callback_too() -> None:
    hub = Hub(authorize_publish=lambda client, message: False)
    connected = Slow()
    hub.on_client_connected(connected)
    async with running(hub):
        raw = await RawClient.open(hub, tail=encode(TEXT, b"spam"))
        await eventually(lambda: hub.get_stats().messages_in == 1)
        assert hub.get_stats().unauthorized == 0
        connected.let()
        await eventually(lambda: hub.get_stats().unauthorized == 1)
        raw.close()


# --- what async callbacks take ---


@pytest.mark.parametrize("kind", ["plain", "compressed"])
async def test_waiting_messages_are_bounded_as_they_are_in_memory(any_loop: str, kind: str) -> None:
    # Four bytes a character, of which one comes; and compressed a thousandth of that.
    text = "\U0001f600" + "a" * 20_000
    body = text.encode()
    message = encode(TEXT, body) if kind == "plain" else encode(TEXT, deflated(body), rsv=4)
    hub = Hub(HubConfig(enable_compression=True))
    slow = Slow()
    hub.on_message_received(slow)
    most = hub.config.max_pending_callback_bytes
    async with running(hub):
        raw = await RawClient.open(
            hub, headers=[("Sec-WebSocket-Extensions", "permessage-deflate")]
        )
        sending = asyncio.create_task(raw.send_raw(message * 100))
        await eventually(lambda: hub.get_stats().limited["max_pending_callback_bytes"] == 1)
        (inbox,) = hub._parts.callbacks.inboxes._of_user[only_client(hub).user_id]
        assert most < inbox._nbytes <= most + 4 * len(text) + 1024
        slow.let()
        await sending
        await eventually(lambda: slow.begun == [text] * 100)
        raw.close()


async def test_a_client_has_one_async_on_error_under_way_at_a_time(any_loop: str) -> None:
    hub = Hub(HubConfig(max_pending_callbacks=8))
    under_way = most = told = 0
    go_on = asyncio.Semaphore(0)

    @hub.on_message_received
    def fails(client: Client, message: str) -> None:
        raise ValueError(message)

    @hub.on_error
    async def error(client: Client | None, error: BaseException) -> None:
        nonlocal under_way, most, told
        under_way += 1
        most = max(most, under_way)
        await go_on.acquire()
        under_way -= 1
        told += isinstance(error, ValueError)

    async with running(hub):
        raw = await RawClient.open(hub)
        count = 2_000
        await raw.send_raw(encode(TEXT, b"x" * 100) * count)
        await eventually(lambda: under_way == 1)
        # It is not read meanwhile: not all of them have raised.
        await eventually(lambda: hub.get_stats().limited["max_pending_callbacks"] == 1)
        assert len(hub._parts.tasks) == 1
        assert hub.get_stats().callback_errors == 1
        for _ in range(count):
            go_on.release()
        await eventually(lambda: told == count)
        assert most == 1
        go_on.release()
        raw.close()


async def test_all_async_on_error_callbacks_hear_of_each_error_in_order() -> None:
    hub = Hub()
    heard: list[tuple[int, str]] = []

    def note(number: int) -> Any:
        async def later(client: Client | None, error: BaseException) -> None:
            await asyncio.sleep(0)
            if isinstance(error, ValueError):
                heard.append((number, str(error)))

        return later

    @hub.on_message_received
    def first(client: Client, message: str) -> None:
        raise ValueError(f"first {message}")

    @hub.on_message_received
    async def second(client: Client, message: str) -> None:
        await asyncio.sleep(0)
        raise ValueError(f"second {message}")

    hub.on_error(note(1))
    hub.on_error(note(2))
    async with running(hub):
        raw = await RawClient.open(hub)
        await raw.send_raw(encode(TEXT, b"a") + encode(TEXT, b"b"))
        await eventually(lambda: len(heard) == 8)
        raw.close()
    assert [text for number, text in heard if number == 1] == [
        text for number, text in heard if number == 2
    ]
    assert sorted({text for _, text in heard}) == ["first a", "first b", "second a", "second b"]


async def test_errors_of_nobody_have_a_bounded_number_of_async_callbacks() -> None:
    def authenticate(request: Request) -> Identity:
        raise ValueError("anybody can have that")

    hub = Hub(authenticate=authenticate)
    told = Slow()
    hub.on_error(told)
    async with running(hub):
        for _ in range(100):
            assert b" 500 " in await exchange(hub, RawClient.request(hub))
        assert len(hub._parts.tasks) == 64
        assert hub.get_stats().unreported_errors == 36
        told.let()
        await eventually(lambda: not hub._parts.tasks)
        assert b" 500 " in await exchange(hub, RawClient.request(hub))
        await eventually(lambda: len(told.begun) == 65)
        gc.collect()  # a coroutine that was never awaited would be a warning, and so an error


@pytest.mark.parametrize("end", ["leaves", "breaks"])
async def test_a_client_that_has_gone_counts_while_its_callbacks_go_on(
    any_loop: str, end: str
) -> None:
    hub = Hub(HubConfig(max_connections=3))
    slow = Slow()
    if end == "leaves":
        hub.on_client_disconnected(slow)
    else:
        hub.on_error(slow)
    async with running(hub):
        for number in range(3):
            raw = await RawClient.open(hub)
            await eventually(lambda: hub.get_connected_clients() == 1)
            raw.close()
            await eventually(lambda: len(slow.begun) == number + 1)  # noqa: B023
            await eventually(lambda: hub.connections == 0)
        assert b" 503 " in await exchange(hub, RawClient.request(hub))
        assert hub.get_stats().rejected["full"] == 1
        assert hub.get_stats().outlasting_callbacks == 3
        slow.let()
        await eventually(lambda: hub.get_stats().outlasting_callbacks == 0)
        (await RawClient.open(hub)).close()
        await eventually(lambda: hub.get_stats().connections_total == 4)


@pytest.mark.parametrize("end", ["leaves", "resets"])
async def test_a_client_that_has_gone_counts_for_its_address_while_its_callbacks_go_on(
    any_loop: str, end: str
) -> None:
    hub = Hub(HubConfig(max_connections_per_address=2))
    slow = Slow()
    hub.on_message_received(slow)
    async with running(hub):
        for number in range(2):
            raw = await RawClient.open(hub)
            await raw.send_raw(encode(TEXT, b"much"))
            await eventually(lambda: len(slow.begun) == number + 1)  # noqa: B023
            raw.close() if end == "leaves" else raw.reset()
            await eventually(lambda: hub.connections == 0)
        assert b" 429 " in await exchange(hub, RawClient.request(hub))
        assert hub.get_stats().limited["max_connections_per_address"] == 1
        slow.let()
        await eventually(lambda: not hub._parts.tasks)
        with await RawClient.open(hub), await RawClient.open(hub):
            assert b" 429 " in await exchange(hub, RawClient.request(hub))
        await eventually(lambda: hub.connections == 0)
        (await RawClient.open(hub)).close()


async def test_an_async_on_error_that_never_ends_is_cancelled_once_its_client_has_gone() -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.05))
    gone: list[Client] = []

    @hub.on_error
    async def never(client: Client | None, error: BaseException) -> None:
        await asyncio.get_running_loop().create_future()

    hub.on_client_disconnected(gone.append)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, b"\xff")
            assert (await raw.recv()).code == 1007
        await eventually(lambda: len(gone) == 1 and not hub._parts.tasks)
        assert hub.get_stats().limited["callback_close_timeout"] == 1


async def test_an_error_while_a_client_leaves_costs_its_address_no_place(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(HubConfig(max_connections_per_address=1))
    hub.enable_ack()
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    told: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: told.append(error)))
    failure = MemoryError("none left")

    def fail(client: Client) -> None:
        raise failure

    monkeypatch.setattr(hub._delivery.acks, "left", fail)
    async with running(hub):
        for number in range(2):
            (await RawClient.open(hub)).close()
            await eventually(lambda: len(gone) == number + 1)  # noqa: B023
        assert told == [failure, failure]


async def test_a_client_counts_for_its_address_while_it_is_told_that_it_has_gone(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(max_connections_per_address=1, callback_close_timeout=0.1))
    begun: list[str] = []
    gate = asyncio.Event()

    @hub.on_message_received
    async def wait_for_ever(client: Client, message: str | bytes) -> None:
        begun.append("message")
        await asyncio.Event().wait()

    @hub.on_client_disconnected
    async def be_slow(client: Client) -> None:
        begun.append("gone")
        with contextlib.suppress(asyncio.CancelledError):
            await gate.wait()

    async with running(hub):
        raw = await RawClient.open(hub)
        await raw.send_raw(encode(TEXT, b"much"))
        await eventually(lambda: begun == ["message"])
        raw.close()
        await eventually(lambda: begun == ["message", "gone"])
        assert b" 429 " in await exchange(hub, RawClient.request(hub))
        gate.set()
        await eventually(lambda: not hub._parts.tasks)
        (await RawClient.open(hub)).close()


def test_a_client_of_a_closed_loop_gives_back_no_place_of_another_run() -> None:
    hub = Hub(HubConfig(max_connections_per_address=1))
    held: list[asyncio.Future[None]] = []
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))

    @hub.on_message_received
    async def wait_for_ever(client: Client, message: str | bytes) -> None:
        held.append(asyncio.get_running_loop().create_future())
        await held[-1]

    async def leave_one_behind() -> RawClient:
        await hub.start(port=0)
        raw = await RawClient.open(hub)
        await raw.send_raw(encode(TEXT, b"much"))
        await eventually(lambda: len(held) == 1)
        return raw

    async def serve_another() -> None:
        async with running(hub):
            with await RawClient.open(hub):
                held.clear()
                gc.collect()
                assert b" 429 " in await exchange(hub, RawClient.request(hub))
            await eventually(lambda: hub.connections == 0)

    loop = asyncio.new_event_loop()
    raw = loop.run_until_complete(leave_one_behind())
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        raw.close()
        asyncio.run(serve_another())
    assert errors == []
