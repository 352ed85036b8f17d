"""Context variables: each client's callbacks share one context, and see no other client's.

structlog, OpenTelemetry, Sentry and Django's translations all keep in a ContextVar whom the code
that runs is working for.
"""

# Each condition is waited for before the loop goes on.
# ruff: noqa: B023

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import picows
import pytest
import websockets

from tests.support import exchange, named, only_client
from wsc_fast import Client, Hub, HubConfig, Identity, Request, handle_websocket
from wsc_fast.testing import CLOSE, TEXT, RawClient, encode, eventually, running, uri

# Set by what starts the hub, and by the callbacks.
application: ContextVar[str] = ContextVar("application", default="")
current: ContextVar[Any] = ContextVar("current", default=None)


@asynccontextmanager
async def served(
    hub: Hub, server: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> AsyncIterator[Callable[[str], Any]]:
    """Serves a hub on a server of this kind; gives what connects a client with an id to it."""
    tls = "tls" in server
    options = {"ssl": server_tls if tls else None}
    if "picows" in server:
        listening = await picows.ws_create_server(
            partial(handle_websocket, hub), "127.0.0.1", 0, enable_auto_pong=False, **options
        )
        port = listening.sockets[0].getsockname()[1]
    else:
        await hub.start(port=0, **options)
        port = hub.port
    try:
        yield lambda name: websockets.connect(
            f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/ws?id={name}",
            ssl=client_tls if tls else None,
            compression=None,
            max_size=None,
            max_queue=None,
        )
    finally:
        if "picows" in server:
            listening.close()
        await hub.stop()


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("server", ["own", "own, tls", "picows", "picows, tls"])
async def test_each_callback_sees_what_its_own_client_has_set(
    any_loop: str,
    server: str,
    kind: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    calls: Counter[str] = Counter()
    wrong: list[tuple[str, str, object]] = []

    def look(where: str, name: str, expected: object) -> None:
        calls[where] += 1
        if current.get() != expected or application.get() != "started":
            wrong.append((where, name, current.get()))

    def identify(request: Request) -> Identity:
        look("authenticate", request.query["id"], None)
        current.set(request.query["id"])
        return named(request)

    def decide(where: str, client: Client) -> bool:
        look(where, client.id, client.id)
        return True

    def connected(client: Client) -> None:
        look("connected", client.id, client.id)
        hub.join_room(client.id, "all")

    def heard(client: Client, message: str | bytes) -> None:
        look("message", client.id, client.id)
        if message == "raise":
            raise RuntimeError("as it was asked to")
        hub.broadcast_to_room("all", "a flush, from a callback")

    def asynchronous(callback: Callable[..., Any]) -> Callable[..., Any]:
        async def later(*args: Any) -> Any:
            await asyncio.sleep(0)
            return callback(*args)

        return later if kind == "async" else callback

    hub = Hub(
        authenticate=asynchronous(identify),
        authorize_join=lambda client, room: decide("join", client),
        authorize_publish=lambda client, message: decide("publish", client),
    )
    hub.create_room("all")
    hub.on_client_connected(asynchronous(connected))
    hub.on_message_received(asynchronous(heard))
    hub.on_client_disconnected(
        asynchronous(lambda client: look("disconnected", client.id, client.id))
    )
    hub.on_error(asynchronous(lambda client, error: look("error", client.id, client.id)))

    async def talk(ws: Any) -> None:
        for number in range(20):
            await ws.send("a message")
            if number % 5 == 0:
                await ws.send(b"x" * 100_000)  # a heavy read, which may have to wait for its turn
        await ws.send("raise")
        for _ in range(24):
            await ws.recv()

    application.set("started")
    async with served(hub, server, server_tls, client_tls) as connect:
        peers = [await connect(f"c{number}") for number in range(6)]
        await asyncio.gather(*map(talk, peers))
        for ws in peers[:3]:
            await ws.close()
        for ws in peers[3:]:
            ws.transport.write(encode(3, b"a reserved opcode"))
        for ws in peers:
            await ws.wait_closed()
        await eventually(lambda: calls["disconnected"] == 6)
        await eventually(lambda: calls["error"] == 9)
    assert wrong == []
    assert calls == {
        "authenticate": 6,
        "connected": 6,
        "join": 6,
        "publish": 6 * 25,
        "message": 6 * 25,
        "error": 9,
        "disconnected": 6,
    }


async def test_a_route_sees_nothing_of_other_requests(any_loop: str) -> None:
    hub = Hub()
    seen: list[object] = []

    @hub.route("/page")
    def page(request: Request) -> str:
        seen.append((application.get(), current.get()))
        current.set("the last one's")
        return "text"

    application.set("started")
    async with running(hub):
        for _ in range(3):
            await exchange(hub, b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
    assert seen == [("started", None)] * 3


@pytest.mark.parametrize("eager", [False, True])
async def test_callbacks_go_on_with_what_async_ones_have_set(any_loop: str, eager: bool) -> None:
    if eager:
        if not hasattr(asyncio, "eager_task_factory"):
            pytest.skip("since Python 3.12")
        if any_loop == "uvloop" and sys.version_info[:3] == (3, 13, 0):
            pytest.skip("uvloop hands eager_start to a factory that does not know it in 3.13.0")
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    seen: list[object] = []

    async def authenticate(request: Request) -> Identity:
        current.set("authenticate")
        return named(request)

    hub = Hub(authenticate=authenticate)

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        seen.append(current.get())
        current.set("connected")

    @hub.on_message_received
    async def heard(client: Client, message: str) -> None:
        seen.append(current.get())
        if message == "later":
            await asyncio.sleep(0)
        current.set(message)

    @hub.on_client_disconnected
    def left(client: Client) -> None:
        seen.append(current.get())

    async with running(hub), websockets.connect(uri(hub, "/ws?id=a")) as ws:
        for number, message in enumerate(["now", "later", "now", "now", "later"]):
            await ws.send(message)
            await eventually(lambda: len(seen) == 2 + number)
        await ws.close()
        await eventually(lambda: len(seen) == 7)
    assert seen == ["authenticate", "connected", "now", "later", "now", "now", "later"]


async def test_a_task_of_a_callback_has_its_clients_context(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    seen: list[tuple[str, object]] = []

    async def work(client: Client) -> None:
        await asyncio.sleep(0.001)
        seen.append((client.id, current.get()))

    tasks = []

    @hub.on_message_received
    def heard(client: Client, message: str) -> None:
        current.set(client.id)
        loop = asyncio.get_running_loop()
        tasks.append(loop.create_task(work(client)))
        loop.call_soon(lambda: seen.append((client.id, current.get())))

    async with running(hub):
        peers = [await RawClient.open(hub, f"/ws?id=c{number}") for number in range(3)]
        for peer in peers:
            await peer.send(TEXT, b"go")
        await eventually(lambda: len(seen) == 6)
        for peer in peers:
            peer.close()
    assert sorted(seen) == sorted((f"c{n}", f"c{n}") for n in range(3) for _ in range(2))


async def test_a_callback_that_calls_another_clients_hook_is_itself_again_afterwards() -> None:
    seen: list[tuple[str, object]] = []

    def may_join(client: Client, room: str) -> bool:
        seen.append(("join " + client.id, current.get()))
        return True

    hub = Hub(authenticate=named, authorize_join=may_join)
    hub.create_room("room")
    hub.on_client_connected(lambda client: current.set(client.id))

    @hub.on_message_received
    def heard(client: Client, message: str) -> None:
        hub.join_room(message, "room")
        seen.append(("behind it", current.get()))

    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a") as a, await RawClient.open(hub, "/ws?id=b"):
            await eventually(lambda: hub.get_connected_clients() == 2)
            await a.send(TEXT, b"b")
            await a.send(TEXT, b"a")
            await eventually(lambda: len(seen) == 4)
    assert seen == [("join b", "b"), ("behind it", "a"), ("join a", "a"), ("behind it", "a")]


async def test_a_hook_of_a_client_whose_async_callback_goes_on_sees_what_that_has_set() -> None:
    seen: list[object] = []
    going_on = asyncio.Event()

    def may(client: Client, what: str | bytes) -> bool:
        seen.append((what, current.get()))
        current.set("what the hook has set")
        return True

    hub = Hub(authorize_join=may, authorize_publish=may)
    hub.create_room("room")

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        current.set("so far")
        await going_on.wait()
        seen.append(current.get())
        current.set("at its end")

    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, b"a")
            await eventually(lambda: hub.get_stats().messages_in == 1)
            hub.join_room(only_client(hub).id, "room")
            assert seen == [("room", "so far")]
            going_on.set()
            await eventually(lambda: len(seen) == 3)
            assert seen[1:] == ["so far", ("a", "at its end")]


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("listens", [False, True])
async def test_nothing_that_was_set_outlives_its_client(
    any_loop: str, kind: str, listens: bool
) -> None:
    # The client itself is the usual value, which makes a cycle of the two.
    hub = Hub(HubConfig(close_timeout=30.0))
    gone: list[str] = []
    values: list[weakref.ref[Any]] = []

    class Value:
        pass

    def plain(client: Client, message: str) -> None:
        value = Value()
        value.client = client  # type: ignore[attr-defined]
        values.append(weakref.ref(value))
        current.set(value)
        client.user_data["value"] = None
        hub.broadcast(b"from a callback")
        hub.get_stats()

    async def later(client: Client, message: str) -> None:
        plain(client, message)
        await asyncio.sleep(0)

    hub.on_message_received(plain if kind == "plain" else later)
    if listens:
        hub.on_client_disconnected(lambda client: gone.append(client.id))
    async with running(hub):
        gc.collect()
        gc.disable()
        try:
            for number in range(4):
                raw = await RawClient.open(hub)
                await raw.send(TEXT, b"set it")
                await eventually(lambda: len(values) == number + 1)
                await raw.send(CLOSE, b"\x03\xe8")
                await raw.recv_rest()
                raw.close()
            await eventually(lambda: hub.connections == 0)
            await eventually(lambda: [ref() for ref in values] == [None] * 4)
        finally:
            gc.enable()
    assert len(gone) == (4 if listens else 0)


async def test_a_client_with_a_callback_costs_a_context_and_one_without_costs_none() -> None:
    hub = Hub()
    seen: list[object] = []
    async with running(hub):
        contexts = type(hub._engine.new_context())

        def held() -> int:
            gc.collect()
            return sum(type(found) is contexts for found in gc.get_objects())

        before = held()
        quiet = [await RawClient.open(hub) for _ in range(20)]
        assert held() - before < 5  # the engine's own timers
        hub.on_client_connected(lambda client: seen.append(client))
        told = [await RawClient.open(hub) for _ in range(20)]
        await eventually(lambda: len(seen) == 20)
        assert 20 <= held() - before < 25
        for raw in (*quiet, *told):
            raw.close()
