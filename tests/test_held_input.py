"""Messages that come before it is known whose they are: held up to a bound, then not read."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import picows
import pytest
import uvicorn
import websockets
from aiohttp import web

from tests.aware import AWARE
from tests.support import agreed, only_client
from wsc_fast import Client, Hub, HubConfig, Identity, Request, handle_websocket
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Clock,
    Frame,
    RawClient,
    TLSClient,
    deflated,
    encode,
    eventually,
    running,
)

RSV1 = 4
LIMIT = "authentication_input_bytes"
BOUND = 10_000
SERVERS = ["own", "own, tls", "transport", "picows", "picows, tls", "uvicorn", "aiohttp"]
PLAIN = [server for server in SERVERS if "tls" not in server]


class At(NamedTuple):
    port: int


class Held:
    """A hub whose async `authenticate` waits for the test, and what it has heard.

    Attributes:
        hub: it.
        gate: lets clients in.
        heard: their messages, in order.
        left: how many of the tasks of `authenticate` were cancelled.
    """

    def __init__(self, **settings: Any) -> None:
        self.gate = asyncio.Event()
        self.heard: list[str | bytes] = []
        self.left = 0
        settings.setdefault(LIMIT, BOUND)
        self.hub = Hub(HubConfig(**settings), authenticate=self._authenticate)
        self.hub.on_message_received(lambda client, message: self.heard.append(message))

    async def _authenticate(self, request: Request) -> Identity:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        return Identity("ann")

    @property
    def pauses(self) -> int:
        return self.hub.get_stats().limited[LIMIT]

    async def paused(self) -> None:
        await eventually(lambda: self.pauses > 0)


@asynccontextmanager
async def served(hub: Hub, server: str, tls: ssl.SSLContext) -> AsyncIterator[At]:
    """Serves a hub on a server of this kind."""
    options = {"ssl": tls if "tls" in server else None}
    async with AsyncExitStack() as stack:
        if server.startswith("picows"):
            listening = await picows.ws_create_server(
                partial(handle_websocket, hub), "127.0.0.1", 0, enable_auto_pong=False, **options
            )
            stack.push_async_callback(hub.stop)
            stack.callback(listening.close)
            yield At(listening.sockets[0].getsockname()[1])
        elif server == "uvicorn":
            config = uvicorn.Config(nothing, ws=hub.uvicorn(path="/ws"), lifespan="off")
            serving = uvicorn.Server(config)
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            task = asyncio.create_task(serving._serve(sockets=[sock]))
            await eventually(lambda: serving.started)
            yield At(sock.getsockname()[1])
            serving.should_exit = True
            await task
        elif server == "aiohttp":
            app = web.Application()
            hub.aiohttp(app, path="/ws")
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield At(runner.addresses[0][1])
        else:
            if server == "transport":
                options["transport"] = "picows"
            await stack.enter_async_context(running(hub, **options))
            yield At(hub.port)


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that is never called."""


def bursts() -> dict[str, bytes]:
    """Each goes beyond the bound in a way of its own."""
    return {
        "one message": encode(TEXT, b"x" * 11_000),
        "many messages": b"".join(encode(TEXT, b"x" * 500) for _ in range(30)),
        "empty messages": b"".join(encode(TEXT, b"") for _ in range(1_000)),
        "fragments": encode(TEXT, b"x", fin=False) + encode(0, b"x", fin=False) * 999,
    }


@pytest.mark.fault(number="B5")
@pytest.mark.parametrize("server", SERVERS)
async def test_what_comes_beyond_the_bound_waits_and_is_heard_in_order(
    any_loop: str, server: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    held = Held()
    sent = ["first", "long " + "x" * 500_000, *(f"{n} " + "y" * 5_000 for n in range(500)), "last"]
    scheme = "wss" if "tls" in server else "ws"
    async with (
        served(held.hub, server, server_tls) as at,
        websockets.connect(
            f"{scheme}://127.0.0.1:{at.port}/ws",
            ssl=client_tls if "tls" in server else None,
            compression=None,
        ) as client,
    ):

        async def send_all() -> None:
            for message in sent:
                await client.send(message)

        sending = asyncio.create_task(send_all())
        await held.paused()
        assert held.heard == []
        held.gate.set()
        await sending
        await eventually(lambda: len(held.heard) == len(sent))
    assert held.heard == sent


@pytest.mark.fault(number="B5")
@pytest.mark.parametrize("kind", bursts())
async def test_each_way_beyond_the_bound_is_waited_out(kind: str) -> None:
    held = Held()
    async with running(held.hub):
        with await RawClient.open(held.hub, tail=bursts()[kind]) as client:
            await held.paused()
            await client.send(0 if kind == "fragments" else TEXT, b"end")
            assert held.heard == []
            held.gate.set()
            await eventually(lambda: held.heard != [] and str(held.heard[-1]).endswith("end"))
            assert held.hub.get_stats().connections == 1


@pytest.mark.fault(number="B5")
async def test_tcp_holds_back_the_rest() -> None:
    held = Held(receive_buffer_size=16_384)
    async with running(held.hub):
        taken = []
        clients = []
        for _ in range(5):
            client = await RawClient.open(held.hub)
            clients.append(client)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            frames = encode(TEXT, b"x" * 1_000) * 4_000
            size = 0
            # A kernel that takes nothing for so long takes nothing more.
            with suppress(TimeoutError):
                while size < len(frames):
                    async with asyncio.timeout(0.5):
                        await asyncio.get_running_loop().sock_sendall(
                            client.sock, frames[size : size + 1_000]
                        )
                    size += 1_000
            taken.append(size)
        assert max(taken) < 500_000, taken  # of 4 MB each
        assert held.pauses == 5
        for client in clients:
            client.close()
        await eventually(lambda: held.hub.connections == 0)


@pytest.mark.parametrize("server", PLAIN)
@pytest.mark.parametrize("end", ["closed", "reset", "half-closed"])
async def test_a_peer_that_leaves_while_it_is_not_read_is_noticed(
    any_loop: str, end: str, server: str, server_tls: ssl.SSLContext
) -> None:
    held = Held()
    async with served(held.hub, server, server_tls) as at:
        client = await RawClient.open(at)
        # More than is held, and no more than the kernel takes: the end comes behind it.
        await client.send_raw(encode(TEXT, b"x" * 5_000) * 6)
        await held.paused()
        if end == "reset":
            client.reset()
        elif end == "half-closed":
            client.sock.shutdown(socket.SHUT_WR)
        else:
            client.close()
        await eventually(lambda: held.left == 1 and held.hub.connections == 0)
        client.close()
    assert held.heard == []
    assert held.hub.get_stats().limited["authentication_timeout"] == 0


async def test_a_peer_behind_tls_that_leaves_while_it_is_not_read_is_noticed(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    held = Held()
    async with running(held.hub, ssl=server_tls):
        client = await websockets.connect(
            f"wss://127.0.0.1:{held.hub.port}/ws", ssl=client_tls, compression=None
        )
        sending = asyncio.create_task(client.send("x" * 30_000))
        await held.paused()
        client.transport.abort()
        with suppress(websockets.ConnectionClosed):
            await sending
        await eventually(lambda: held.left == 1 and held.hub.connections == 0)
    assert held.heard == []


async def test_pings_cost_nothing_and_a_fault_is_one_here_too() -> None:
    held = Held()
    async with running(held.hub):
        pings = b"".join(encode(PING, b"%d" % number) for number in range(10_000))
        with await RawClient.open(held.hub, tail=pings) as client:
            while (await client.recv()).payload != b"9999":
                pass
        with await RawClient.open(held.hub, tail=encode(3, b"x")) as client:
            assert (await client.recv()).code == 1002
    assert held.pauses == 0


async def test_the_hub_may_close_one_that_is_not_read() -> None:
    held = Held(authentication_timeout=0.2)
    async with running(held.hub):
        with await RawClient.open(held.hub, tail=encode(TEXT, b"x" * 20_000)) as client:
            assert (await client.recv()).code == 4401
            await client.send(CLOSE, (4401).to_bytes(2, "big"))
            assert await client.recv_rest() == []
        await eventually(lambda: held.hub.connections == 0)


async def test_what_waits_is_judged_as_ever_once_it_is_heard() -> None:
    for data, code in (
        (encode(TEXT, b"x" * 200_000), 1009),
        (encode(TEXT, b"\xff" * 20_000), 1007),
    ):
        held = Held(max_message_size=100_000)
        async with running(held.hub):
            with await RawClient.open(held.hub) as client:
                sending = asyncio.create_task(client.send_raw(encode(TEXT, b"fine") + data))
                if code != 1009:
                    await held.paused()
                    held.gate.set()
                assert (await client.recv()).code == code
                with suppress(ConnectionError):
                    await sending


async def test_a_ping_is_answered_in_its_place_behind_what_waits() -> None:
    held = Held()
    async with running(held.hub):
        burst = encode(PING, b"1") + encode(TEXT, b"x" * 11_000) + encode(PING, b"2")
        with await RawClient.open(held.hub, tail=burst) as client:
            assert (await client.recv()).payload == b"1"
            await held.paused()
            held.gate.set()
            assert (await client.recv()).payload == b"2"
            assert len(held.heard) == 1


async def test_a_client_that_waited_has_not_been_silent() -> None:
    with Clock() as clock:
        held = Held(
            authentication_timeout=500.0,
            heartbeat_interval=20.0,
            heartbeat_timeout=60.0,
            message_timeout=60.0,
        )
        async with running(held.hub):
            begun = encode(TEXT, b"a", fin=False) + encode(0, b"x" * 11_000, fin=False)
            with await RawClient.open(held.hub, tail=begun) as client:
                await held.paused()
                await asyncio.sleep(0)
                await clock.advance(100.0)
                held.gate.set()
                await eventually(lambda: len(held.hub.get_connected_client_ids()) == 1)
                await clock.advance(10.0)
                await client.send(0, b"b")
                await eventually(lambda: held.heard == ["a" + "x" * 11_000 + "b"])


# --- compression ---


@pytest.mark.fault(number="B5")
@pytest.mark.parametrize("keeps", [False, True])
async def test_a_compressed_message_waits_if_it_inflates_to_more_than_may_be_held(
    keeps: bool,
) -> None:
    held = Held(
        enable_compression=True, client_no_context_takeover=not keeps, max_message_size=1 << 20
    )
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    texts = ["small", "x" * 900_000, "behind"]
    async with running(held.hub):
        burst = b"".join(encode(TEXT, deflated(text.encode()), rsv=RSV1) for text in texts)
        with await RawClient.open(held.hub, headers=offer, tail=burst) as client:
            assert ("client_no_context_takeover" in str(agreed(client))) != keeps
            await held.paused()
            assert held.heard == []
            held.gate.set()
            await eventually(lambda: held.heard == texts)


async def test_a_bomb_that_waited_is_refused_once_it_is_heard() -> None:
    held = Held(enable_compression=True, max_message_size=100_000)
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with running(held.hub):
        bomb = encode(BINARY, deflated(bytes(5_000_000)), rsv=RSV1)
        with await RawClient.open(held.hub, headers=offer, tail=bomb) as client:
            await held.paused()
            held.gate.set()
            assert (await client.recv()).code == 1009


async def test_a_compressed_message_of_a_peer_that_left_is_not_tried_again(
    any_loop: str, openssl: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    held = Held(enable_compression=True)
    async with running(held.hub, ssl=server_tls):
        client = await websockets.connect(
            f"wss://127.0.0.1:{held.hub.port}/ws", ssl=client_tls, compression="deflate"
        )
        await client.send("x" * 900_000)
        client.transport.close()  # its end comes right behind the message
        await eventually(lambda: held.left == 1 and held.hub.connections == 0)
    assert held.pauses == 1


@pytest.mark.fault(number="B5")
async def test_a_bomb_before_an_end_by_tls_is_looked_at_no_more_than_twice(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    held = Held(enable_compression=True, max_message_size=1 << 20)
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate")]
    async with running(held.hub, ssl=server_tls):
        with await TLSClient.open_tls(held.hub, client_tls, upgrade=False) as client:
            await client.shake_hands(client.request(held.hub, headers=offer))
            client.say_goodbye(encode(BINARY, deflated(bytes(900_000)), rsv=RSV1))
            await eventually(lambda: held.left == 1 and held.hub.connections == 0)
    assert 0 < held.pauses <= 2


# --- clients that speak wsc.1 ---


@pytest.mark.parametrize("bound", [0, 100, BOUND])
@pytest.mark.parametrize("asks", [False, True])
async def test_a_hello_is_heard_however_small_the_bound(bound: int, asks: bool) -> None:
    held = Held(**{LIMIT: bound})
    if not asks:
        held.gate.set()
    hello = json.dumps({"hello": 1, "pos": {f"room{n}": "1-0" * 20 for n in range(100)}}).encode()
    texts = [str(number) + "x" * 100 for number in range(300)]
    async with running(held.hub):
        burst = encode(TEXT, hello + b"\nwith the hello")
        burst += b"".join(encode(TEXT, b"\n" + text.encode()) for text in texts)
        with await RawClient.open(held.hub, headers=AWARE, tail=burst):
            if asks:
                await held.paused()
                held.gate.set()
            await eventually(lambda: held.heard == ["with the hello", *texts])


async def test_a_client_that_is_paused_by_its_callbacks_too_goes_on() -> None:
    held = Held(max_pending_callbacks=2)
    done: list[str | bytes] = []

    async def slow(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        done.append(message)

    held.hub.on_message_received(slow)
    texts = [f"{number} " + "x" * 1_000 for number in range(200)]
    async with running(held.hub):
        with await RawClient.open(held.hub) as client:
            burst = b"".join(encode(TEXT, text.encode()) for text in texts)
            sending = asyncio.create_task(client.send_raw(burst))
            await held.paused()
            held.gate.set()
            await sending
            await eventually(lambda: done == texts)
            only_client(held.hub).send("still there")
            assert await client.recv() == Frame(TEXT, b"still there")
