"""Turns: a client that sends much, or is none yet, waits for others; and nothing is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import struct
import time
from typing import Any

import pytest

from tests.support import BOUNDLESS, TLS, busy
from wsc_fast import Client, Hub, HubConfig, Identity, Request
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Frame,
    RawClient,
    TLSClient,
    deflated,
    encode,
    eventually,
    running,
)


async def test_messages_of_one_read_are_heard_over_several_turns(any_loop: str) -> None:
    count = 5_000
    hub = Hub()
    turn = 0
    heard: dict[int, int] = {}

    @hub.on_message_received
    def note(client: Client, message: str | bytes) -> None:
        heard[turn] = heard.get(turn, 0) + 1
        busy(0.0001)

    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT) * count)
            while sum(heard.values()) < count:
                turn += 1
                await asyncio.sleep(0)
    # The budget, a millisecond at most, and as many as pass between two looks at the clock;
    # in one turn as many again are read as were put aside. All of them came in one or two reads.
    assert max(heard.values()) <= 64


@pytest.mark.parametrize("kind", ["whole", "fragments", "split", "context", "many"])
@pytest.mark.parametrize("rated", [False, True], ids=["", "rated"])
async def test_the_inflated_size_counts_and_not_how_small_it_came(rated: bool, kind: str) -> None:
    # To inflate one takes longer than any budget of a turn. They are 4 KB: none is a heavy read.
    size = 4_000_000
    body = deflated(bytes(size))
    bomb = encode(BINARY, body, rsv=4)
    count = 3
    if kind == "fragments":
        bomb = encode(BINARY, body[:50], rsv=4, fin=False) + encode(CONTINUATION, body[50:])
    elif kind == "many":
        # Each is small once it is inflated too; all of a read are not.
        count, size = 60, 8_000
        bomb = encode(BINARY, deflated(bytes(size)), rsv=4) * 20
    settings: dict[str, Any] = {"enable_compression": True, "max_message_size": 4_000_000}
    if rated:
        settings |= {"message_rate": 1e6, "byte_rate": 1e12, "rate_limit_action": "drop"}
    if kind == "context":
        settings["client_no_context_takeover"] = False
    hub = Hub(HubConfig(**settings))
    turn = 0
    heard: dict[int, int] = {}

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    @hub.on_message_received
    def note(client: Client, message: str | bytes) -> None:
        assert len(message) in (size, 5)
        heard[turn] = heard.get(turn, 0) + 1
        if kind == "many":
            busy(0.0002)  # so that a few of them are too many for a turn

    async with running(hub):
        deflates = [("Sec-WebSocket-Extensions", "permessage-deflate")]
        crowd = [await RawClient.open(hub, headers=deflates) for _ in range(5)]
        counting = asyncio.create_task(count_turns())
        for _ in range(2):
            heard.clear()
            for raw in crowd:
                data = bomb * 3
                if kind == "split":
                    await raw.send_raw(data[:100])
                    data = data[100:]
                await raw.send_raw(data)
            await eventually(lambda: sum(heard.values()) == count * len(crowd))
            # As many as pass until the clock is looked at; those that came first may be as many.
            assert max(heard.values()) <= (2 if kind != "many" else 20)
        # A message that is small once it is inflated waits behind them, and is heard.
        heard.clear()
        await crowd[0].send_raw(bomb + encode(TEXT, deflated(b"small"), rsv=4))
        await eventually(lambda: sum(heard.values()) == count // 3 + 1)
        counting.cancel()
        for raw in crowd:
            raw.close()


async def test_messages_that_come_with_the_end_of_tls_are_heard_in_turns_too(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    size, count = 4_000_000, 6
    hub = Hub(HubConfig(enable_compression=True, max_message_size=size))
    turn = 0
    heard: dict[int, int] = {}
    gone: list[int] = []

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    @hub.on_message_received
    def note(client: Client, message: str | bytes) -> None:
        assert client.is_connected()
        heard[turn] = heard.get(turn, 0) + 1
        hub.broadcast("to nobody any more")

    hub.on_client_disconnected(lambda client: gone.append(sum(heard.values())))
    async with running(hub, ssl=server_tls):
        raw = await TLSClient.open_tls(hub, client_tls, upgrade=False)
        headers = [("Sec-WebSocket-Extensions", "permessage-deflate")]
        await raw.send_raw(raw.request(hub, "/ws", headers))
        assert b"permessage-deflate" in await raw.read_response()
        counting = asyncio.create_task(count_turns())
        raw.say_goodbye(encode(BINARY, deflated(bytes(size)), rsv=4) * count)
        await eventually(lambda: gone)
        counting.cancel()
        raw.close()
    assert gone == [count]
    assert max(heard.values()) <= 2


@TLS
async def test_a_client_that_waits_is_heard_in_order_and_to_the_end(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    source = random.Random(7)
    hub = Hub(HubConfig(read_buffer_size=16_384))
    got: dict[str, list[str | bytes]] = {}
    gone: list[str] = []
    waited = 0

    @hub.on_message_received
    def note(client: Client, message: str | bytes) -> None:
        nonlocal waited
        got.setdefault(client.id, []).append(message)
        waited = max(waited, hub._engine.count_waiting())

    @hub.on_client_disconnected
    def left(client: Client) -> None:
        gone.append(client.id)

    sent: list[str | bytes] = []
    flood = b""
    for number in range(5_000):
        body = b"%06d" % number + bytes(source.choice([0, 0, 0, 100, 20_000]) * (number % 50 == 0))
        if number % 3 == 0:
            sent.append(body.decode())
            half = len(body) // 2
            flood += encode(TEXT, body[:half], fin=False) + encode(PING, b"in between")
            flood += encode(CONTINUATION, body[half:])
        else:
            sent.append(body)
            flood += encode(BINARY, body)
    flood += encode(CLOSE, struct.pack("!H", 4000))
    async with running(hub, ssl=server_tls if tls else None):
        raws = [
            await (TLSClient.open_tls(hub, client_tls) if tls else RawClient.open(hub))
            for _ in range(12)
        ]
        await asyncio.gather(*(raw.send_raw(flood) for raw in raws))
        for raw in raws:
            assert (await raw.recv_rest())[-1] == Frame(CLOSE, struct.pack("!H", 4000))
            raw.close()
        await eventually(lambda: len(gone) == 12)
        assert all(bodies == sent for bodies in got.values())
        assert len(got) == 12
        assert waited > 0
        assert hub._engine.count_waiting() == 0


async def test_requests_wait_for_their_turn_and_clients_do_not_wait_for_them(any_loop: str) -> None:
    def authenticate(request: Request) -> Identity:
        busy(0.002)
        return Identity(request.query["id"])

    hub = Hub(authenticate=authenticate)
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub):
        honest = await RawClient.open(hub, "/ws?id=honest")
        crowd = [await RawClient.open(hub, upgrade=False) for _ in range(300)]
        for raw in crowd:
            await raw.send_raw(RawClient.request(hub, "/ws?id=crowd") + encode(TEXT, b"behind it"))
        answered = 0
        while hub.get_connected_clients() < 301:
            await honest.send(TEXT, b"x")
            assert (await honest.recv()).payload == b"x"
            answered += 1
        # All at once they would take 0.6 s, and it would be answered once; one or two in a turn.
        assert answered > 50
        for raw in crowd:
            assert (await raw.read_response()).startswith(b"HTTP/1.1 101 ")
            assert (await raw.recv()).payload == b"behind it"
            raw.close()
        honest.close()


async def answer(raw: RawClient) -> bytes:
    """The head that a request gets, or nothing."""
    try:
        return await raw.read_response()
    except ConnectionError:
        return b""


async def test_a_request_that_waited_too_long_is_not_let_in(any_loop: str) -> None:
    def authenticate(request: Request) -> Identity:
        busy(0.01)
        return Identity("somebody")

    hub = Hub(HubConfig(handshake_timeout=0.3), authenticate=authenticate)
    entered = 0

    @hub.on_client_connected
    def count(client: Client) -> None:
        nonlocal entered
        entered += 1

    async with running(hub):
        crowd = [await RawClient.open(hub, upgrade=False) for _ in range(150)]
        for raw in crowd:
            await raw.send_raw(RawClient.request(hub))
        answers = [await answer(raw) for raw in crowd]
        let_in = sum(answer.startswith(b"HTTP/1.1 101 ") for answer in answers)
        # Of the others the connection was ended, and the hub has not taken them for clients.
        assert 0 < let_in < 150
        assert entered == let_in
        for raw in crowd:
            raw.close()


async def test_a_client_that_leaves_while_it_waits_is_forgotten(any_loop: str) -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: busy(0.001))
    async with running(hub):
        crowd = [await RawClient.open(hub) for _ in range(30)]
        for raw in crowd:
            await raw.send_raw(encode(BINARY, bytes(100)) * 100)
        await eventually(hub._engine.count_waiting)
        for raw in crowd[::2]:
            raw.reset()
        for client_id in hub.get_connected_client_ids()[1::4]:
            found = hub.get_client_by_id(client_id)
            assert found is not None
            found.disconnect()
        await eventually(lambda: hub._engine.count_waiting() == 0)
        for raw in crowd[1::2]:
            raw.close()
        await eventually(lambda: hub.connections == 0)


@pytest.mark.parametrize("end", ["heard", "closed", "closed by the client", "stopped"])
async def test_a_client_beyond_its_rate_is_heard_no_further(any_loop: str, end: str) -> None:
    heard: list[str | bytes] = []
    hub = Hub(HubConfig(message_rate=20.0, rate_limit_action="pause", close_timeout=5.0))
    hub.on_message_received(lambda client, message: heard.append(message))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            count = 45 if end == "heard" else 500
            rest = encode(CLOSE, struct.pack("!H", 4000)) if end == "closed by the client" else b""
            frames = [encode(TEXT, b"%d" % number) for number in range(count)]
            await raw.send_raw(b"".join(frames[:60]) + rest)
            # 20 at once, and the one that is too much; the others came in the same read.
            await eventually(lambda: len(heard) == 21)
            (client,) = (hub.get_client_by_id(each) for each in hub.get_connected_client_ids())
            assert client is not None
            began = time.monotonic()
            if end == "heard":
                await eventually(lambda: len(heard) == count)
                assert time.monotonic() - began > 0.5
            elif end == "closed by the client":
                assert await raw.recv_rest(timeout=10.0) == [Frame(CLOSE, struct.pack("!H", 4000))]
                assert len(heard) == 60
            elif end == "closed":
                client.disconnect(4001)
                assert (await raw.recv()).code == 4001
                await raw.send(CLOSE, struct.pack("!H", 4001))
                await eventually(lambda: hub.connections == 0)
                assert time.monotonic() - began < 5.0
                assert len(heard) == 21
            else:
                await hub.stop(timeout=1.0)
            assert heard == [str(number) for number in range(len(heard))]


async def test_a_broadcast_does_not_wait_for_clients_that_send_much(any_loop: str) -> None:
    hub = Hub(HubConfig(**BOUNDLESS))
    hub.on_message_received(lambda client, message: busy(0.0005))
    async with running(hub):
        crowd = [await RawClient.open(hub) for _ in range(10)]
        listener = await RawClient.open(hub)
        for raw in crowd:
            await raw.send_raw(encode(BINARY, bytes(16)) * 1_000)
        await eventually(hub._engine.count_waiting)
        hub.broadcast("now")
        assert (await listener.recv()).payload == b"now"
        assert hub._engine.count_waiting() > 0
        for raw in [*crowd, listener]:
            raw.reset()


async def test_a_client_that_is_refused_what_it_publishes_waits_and_the_others_do_not(
    any_loop: str,
) -> None:
    senders, each = 50, 4
    turn = 0
    asked: dict[int, int] = {}
    heard_at: list[int] = []

    def may_publish(client: Client, message: str | bytes) -> bool:
        asked[turn] = asked.get(turn, 0) + 1
        if message == "fine":
            return True
        busy(0.0002)
        return False

    hub = Hub(authorize_publish=may_publish)

    @hub.on_message_received
    def note(client: Client, message: str | bytes) -> None:
        heard_at.append(turn)

    async with running(hub), contextlib.AsyncExitStack() as stack:
        other = stack.enter_context(await RawClient.open(hub))
        clients = [stack.enter_context(await RawClient.open(hub)) for _ in range(senders)]
        for raw in clients:
            await raw.send_raw(encode(TEXT, b"spam"))
        await eventually(lambda: hub.get_stats().unauthorized == senders)
        asked.clear()
        for raw in clients:
            raw.sock.send(encode(TEXT, b"spam") * each)
        other.sock.send(encode(TEXT, b"fine"))
        while sum(asked.values()) < senders * each + 1:
            turn += 1
            await asyncio.sleep(0)
        # A turn asks for what its budget allows, and for one read more. All came at once.
        assert max(asked.values()) <= 8 * each
        assert heard_at[0] < turn
        assert hub.get_stats().unauthorized == senders * (each + 1)


async def test_refused_messages_behind_an_async_callback_take_turns(any_loop: str) -> None:
    senders, each = 20, 30
    turn = 0
    asked: dict[int, int] = {}
    gate = asyncio.Event()
    begun = 0

    def may_publish(client: Client, message: str | bytes) -> bool:
        asked[turn] = asked.get(turn, 0) + 1
        return message == "fine"

    hub = Hub(authorize_publish=may_publish)

    @hub.on_message_received
    async def wait(client: Client, message: str | bytes) -> None:
        nonlocal begun
        begun += 1
        await gate.wait()

    async with running(hub), contextlib.AsyncExitStack() as stack:
        for _ in range(senders):
            raw = stack.enter_context(await RawClient.open(hub))
            await raw.send_raw(encode(TEXT, b"fine") + encode(TEXT, b"spam") * each)
        await eventually(lambda: begun == senders)
        asked.clear()
        gate.set()
        while sum(asked.values()) < senders * each:
            turn += 1
            await asyncio.sleep(0)
        # A client asks for one message of its own in a turn.
        assert max(asked.values()) <= senders
        assert hub.get_stats().unauthorized == senders * each
