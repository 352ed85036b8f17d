"""The hub on picows: `transport="picows"`, and `handle_websocket` on a server of one's own."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import picows
import pytest
import websockets
from picows.picows import WSProtocol  # type: ignore[attr-defined]  # no stub has it

from tests.support import TLS, exchange, named, only_client
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    ConfigError,
    ConnectionLostError,
    Hub,
    HubConfig,
    HubStateError,
    HubStoppedError,
    Identity,
    MemoryOfflineStore,
    OfflineStoreError,
    Request,
    ValidationError,
    handle_websocket,
)
from wsc_fast._core.connection import transport_of
from wsc_fast.testing import TEXT, RawClient, encode, eventually, running

# --- transport="picows" (the tests of the handshake run on it too: `make test-picows`) ---


@TLS
async def test_picows_makes_the_connections_of_a_hub_that_is_started_so(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(subprotocols=("chat",), enable_compression=True))
    protocols: list[Any] = []

    @hub.on_client_connected
    def connected(client: Client) -> None:
        # Still in the call in which picows says that it has made the connection.
        assert client.conn is not None
        protocols.append(transport_of(client).get_protocol())  # type: ignore[union-attr]
        client.send("hello")

    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub, transport="picows", ssl=server_tls if tls else None):
        async with websockets.connect(
            f"{'wss' if tls else 'ws'}://localhost:{hub.port}/ws",
            ssl=client_tls if tls else None,
            subprotocols=[websockets.Subprotocol("chat")],
        ) as ws:
            assert ws.subprotocol == "chat"
            assert await ws.recv() == "hello"
            for message in ("größe" * 1_000, bytes(range(256)) * 100):
                await ws.send(message)
                assert await ws.recv() == message
            client = only_client(hub)
            assert isinstance(client.conn, picows.WSTransport)
            assert isinstance(protocols[0], WSProtocol)
            # From then on the hub reads by itself.
            assert transport_of(client).get_protocol() is client  # type: ignore[union-attr]
            assert client.remote_address in ("127.0.0.1", "::1")
        protocols.clear()


async def test_frames_that_come_with_the_request_are_heard_and_picows_writes_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    with caplog.at_level(logging.INFO):
        async with running(hub, transport="picows"):
            raw = await RawClient.open(hub, tail=encode(TEXT, b"one") + encode(TEXT, b"two")[:5])
            assert (await raw.recv()).payload == b"one"
            await raw.send_raw(encode(TEXT, b"two")[5:])
            assert (await raw.recv()).payload == b"two"
            raw.close()
            await eventually(lambda: hub.connections == 0)
    assert [each for each in caplog.records if each.name != "wsc_fast"] == []


CLOSED_LOOP = """
import gc, uvloop
from picows.picows import WSProtocol
from wsc_fast.testing import RawClient, eventually
from wsc_fast import Client, Hub

hub = Hub()

async def connect():
    await hub.start(port=0, transport="picows")
    raw = await RawClient.open(hub)
    await eventually(lambda: hub.get_connected_clients() == 1)
    return raw

gc.collect()
gc.disable()
loop = uvloop.new_event_loop()
raw = loop.run_until_complete(connect())
loop.close()
del loop
assert hub.get_connected_clients() == 1  # it notices with the next call that changes something
hub.set_config(hub.config)
assert hub.get_connected_clients() == 0
print([each for each in gc.get_objects() if isinstance(each, (WSProtocol, Client))])
"""


def test_nothing_of_a_loop_that_was_closed_waits_for_the_collector() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_LOOP], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


async def test_nothing_of_a_connection_on_picows_waits_for_the_collector() -> None:
    hub = Hub()
    async with running(hub, transport="picows"):
        (await RawClient.open(hub)).close()
        await eventually(lambda: hub.connections == 0)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                (await RawClient.open(hub)).close()
                await eventually(lambda: hub.connections == 0)
                await asyncio.sleep(0)  # the turn in which the transport lets go
            assert not [each for each in gc.get_objects() if isinstance(each, WSProtocol)]
        finally:
            gc.enable()


async def test_a_connection_that_is_no_TCP_ends_and_is_counted(any_loop: str) -> None:
    async def later(request: Request) -> Identity | None:
        raise AssertionError("nobody asks who it is")

    hub = Hub(authenticate=later)
    async with running(hub, transport="picows"):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Client(hub._engine), sock=ours)
        with theirs:
            await loop.sock_sendall(theirs, RawClient.request(hub))
            assert await loop.sock_recv(theirs, 4096) == b""
    assert hub.get_stats().rejected["gone"] == 1
    assert not hub._parts.admission._returning


@pytest.mark.parametrize("transport", ["tcp", None, ""])
async def test_a_transport_that_there_is_not_is_refused(transport: Any) -> None:
    with pytest.raises(ValidationError, match="transport must be 'hub', 'loop' or 'picows', not "):
        await Hub().start(port=0, transport=transport)


# --- a server of one's own ---


@pytest.mark.parametrize("use_aiofastnet", [False, True], ids=["own", "aiofastnet"])
async def test_handle_websocket_on_a_picows_server(any_loop: str, use_aiofastnet: bool) -> None:
    hub = Hub(authenticate=lambda request: Identity("ann", request.query.get("id")))
    seen: list[str] = []

    @hub.route("/health")
    def health(request: Request) -> dict[str, int]:
        return {"clients": hub.get_connected_clients()}

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        seen.append(f"{client.id} {message!r}")
        client.send(message)

    hub.on_client_disconnected(lambda client: seen.append(f"{client.id} out"))
    server = await picows.ws_create_server(
        lambda request: handle_websocket(hub, request),
        "127.0.0.1",
        0,
        enable_auto_pong=False,
        use_aiofastnet=use_aiofastnet,
    )
    port = server.sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/health") as response:
                assert await response.json() == {"clients": 0}
            async with session.get(f"http://127.0.0.1:{port}/any") as response:
                assert response.status == 426
        assert hub.loop is asyncio.get_running_loop()
        async with (
            websockets.connect(f"ws://127.0.0.1:{port}/any?id=one", max_size=None) as ws,
            websockets.connect(f"ws://127.0.0.1:{port}/ws?id=two", max_size=None) as other,
        ):
            await ws.send("größe")
            assert await ws.recv() == "größe"
            large = bytes(range(256)) * 10_000
            hub.set_config(HubConfig(outbox_bytes=1 << 24))
            hub.broadcast(large)
            hub.broadcast("last")
            assert [await ws.recv(), await other.recv()] == [large, large]
            assert [await ws.recv(), await other.recv()] == ["last", "last"]
            await (await ws.ping())
            client = hub.get_client_by_id("one")
            assert client is not None
            assert client.remote_address == "127.0.0.1"
            await other.close()
            await eventually(lambda: hub.get_connected_clients() == 1)
            await hub.stop(timeout=5.0)
            await ws.wait_closed()
            assert ws.close_code == 1001
        assert seen == ["one 'größe'", "two out", "one out"]
        assert hub.connections == 0
        assert hub.loop is None
    finally:
        server.close()
        await hub.stop()


async def test_a_picows_server_serves_two_hubs_by_path() -> None:
    hubs = {"/a": Hub(), "/b": Hub()}
    server = await picows.ws_create_server(
        lambda request: handle_websocket(hubs[request.path.decode()], request),
        "127.0.0.1",
        0,
        enable_auto_pong=False,
    )
    port = server.sockets[0].getsockname()[1]
    try:
        async with (
            websockets.connect(f"ws://127.0.0.1:{port}/a") as one,
            websockets.connect(f"ws://127.0.0.1:{port}/b") as two,
        ):
            assert hubs["/a"].broadcast("for a") == 1
            assert hubs["/b"].broadcast("for b") == 1
            assert [await one.recv(), await two.recv()] == ["for a", "for b"]
            await hubs["/a"].stop()
            assert hubs["/b"].broadcast("still") == 1
            assert await two.recv() == "still"
    finally:
        server.close()
        for hub in hubs.values():
            await hub.stop()


@asynccontextmanager
async def serving(hub: Hub, **options: Any) -> AsyncIterator[Any]:
    """A picows server of one's own whose clients are a hub's, which has its port meanwhile."""
    server = await picows.ws_create_server(
        partial(handle_websocket, hub), "127.0.0.1", 0, enable_auto_pong=False, **options
    )
    try:
        yield _At(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await hub.stop()
    assert hub.loop is None
    assert hub.connections == 0


class _At:
    """Takes the place of a hub for RawClient."""

    def __init__(self, port: int) -> None:
        self.port = port


async def test_a_connection_may_end_inside_the_callback_of_its_first_message(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    heard: list[tuple[str, Any]] = []

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        transport = transport_of(client)
        assert transport is not None
        transport.abort()
        # A loop inside the callback would call this.
        transport.get_protocol().connection_lost(None)
        heard.append((text, client.conn))

    async with serving(hub) as at:
        with await RawClient.open(at) as raw:
            await raw.send_raw(encode(TEXT, b"first") + encode(TEXT, b"second"))
            assert await raw.read_all() == b""
        await eventually(lambda: hub.connections == 0)
    assert heard == [("first", None)]
    assert not caplog.records


async def test_an_attached_hub_runs_before_the_first_request(any_loop: str) -> None:
    store = MemoryOfflineStore()
    config = HubConfig(heartbeat_interval=0.1, heartbeat_timeout=0.3, close_timeout=0.1)
    hub = Hub(config, authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
    async with serving(hub) as at:
        await hub.attach()
        assert hub.loop is asyncio.get_running_loop()
        assert hub.get_stats().start_time is not None
        await hub.send_ack_message_to_user("ann", ACKMessage(content="x")).accepted()
        assert await store.count("ann") == 1
        with pytest.raises(HubStateError, match="the hub runs already"):
            await hub.attach()
        with pytest.raises(HubStateError, match="the hub does not listen"):
            hub.port  # noqa: B018 (it is a property)
        # The heartbeat ends silent clients.
        raw = await RawClient.open(at, "/any?id=a")
        frames = await raw.recv_rest()
        assert frames[-1].code == 1001
        assert hub.get_stats().heartbeat_timeouts == 1
        raw.close()
        await hub.stop()
        assert (await exchange(at, RawClient.request(at))).startswith(b"HTTP/1.1 503 ")
        await hub.attach()
        raw = await RawClient.open(at, "/any?id=a")
        await hub.stop(timeout=0.1)
        assert (await raw.recv()).code == 1001
        raw.close()


async def test_a_store_that_does_not_open_leaves_the_hub_as_it_was() -> None:
    class Broken(MemoryOfflineStore):
        broken = True

        async def open(self) -> None:
            if self.broken:
                raise OfflineStoreError("no disk")

    store = Broken()
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
    with pytest.raises(OfflineStoreError, match="no disk"):
        await hub.attach()
    assert hub.loop is None
    store.broken = False
    await hub.attach()
    await hub.stop()


OF_THE_SERVER = {
    "backlog": 10,
    "handshake_timeout": 1.0,
    "max_handshakes": 10,
    "max_header_bytes": 1_000,
    "receive_buffer_size": 10_000,
    "trusted_proxies": ("10.0.0.1",),
    "write_buffer_size": 10_000,
}


@pytest.mark.parametrize("name", OF_THE_SERVER)
async def test_a_setting_that_cannot_hold_on_a_server_of_ones_own_is_refused(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    value: Any = OF_THE_SERVER[name]
    config = HubConfig(**{name: value})
    hub = Hub(config)
    told = rf"HubConfig.{name} must stay .* on a picows server of your own, not .*: \w+"
    with pytest.raises(ConfigError, match=told):
        await hub.attach()
    assert hub.loop is None
    # The first request, where the hub is not attached before: the log has the reason, not the peer.
    async with serving(hub) as at:
        answer = await exchange(at, RawClient.request(at))
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"HubConfig" not in answer
    assert f"HubConfig.{name} must stay" in caplog.text
    # On the hub's own port it holds, by either transport.
    async with running(hub, transport="picows"):
        assert (await exchange(hub, RawClient.request(hub, "/no"))).startswith(b"HTTP/1.1 404 ")
    hub = Hub()
    await hub.attach()
    with pytest.raises(ConfigError, match=f"HubConfig.{name} "):
        hub.set_config(config)
    assert hub.config == HubConfig()
    await hub.stop()
    hub.set_config(config)


async def test_the_limits_of_addresses_hold_on_a_server_of_ones_own(any_loop: str) -> None:
    seen: list[str] = []
    hub = Hub(HubConfig(max_connections_per_address=2))
    hub.on_client_connected(lambda client: seen.append(client.remote_address))
    async with serving(hub) as at:
        await hub.attach()
        one, two, three = [await RawClient.open(at) for _ in range(3)]
        frame = await three.recv()
        assert (frame.code, frame.payload[2:]) == (1013, b"too many connections")
        stats = hub.get_stats()
        assert stats.limited["max_connections_per_address"] == 1
        assert stats.rejected["address"] == 1
        assert seen == ["127.0.0.1"] * 2
        three.close()
        one.close()
        await eventually(lambda: hub.connections == 1)
        four = await RawClient.open(at)
        await eventually(lambda: len(seen) == 3)
        for raw in (two, four):
            raw.close()


@pytest.mark.parametrize("kind", ["plain", "coroutine", "future"])
async def test_a_client_over_a_limit_holds_no_place_on_a_server_of_ones_own(kind: str) -> None:
    def authenticate(request: Request) -> Any:
        if kind == "plain":
            return Identity("ann")
        future = asyncio.get_running_loop().create_future()
        future.set_result(Identity("ann"))
        return asyncio.wait_for(future, 1.0) if kind == "coroutine" else future

    errors: list[Exception] = []
    hub = Hub(HubConfig(max_connections_per_address=1), authenticate=authenticate)
    hub.on_error(lambda client, error: errors.append(error))
    async with serving(hub) as at:
        await hub.attach()
        one = await RawClient.open(at)
        await eventually(lambda: hub.get_connected_clients() == 1)
        # Refused clients answer no close frame, and are gone at once all the same.
        refused = [await RawClient.open(at) for _ in range(5)]
        for raw in refused:
            assert (await raw.recv()).code == 1013
        await eventually(lambda: hub.connections == 1)
        one.close()
        await eventually(lambda: hub.connections == 0)
        two = await RawClient.open(at)
        await eventually(lambda: hub.get_connected_clients() == 1)
        for raw in (two, *refused):
            raw.close()
    assert [type(error) for error in errors if type(error) is not ConnectionLostError] == []


async def test_the_origin_of_a_page_is_https_on_a_tls_server_of_ones_own() -> None:
    hub = Hub()
    async with serving(hub) as at:
        await hub.attach(tls=True)
        for scheme, status in (("http", 403), ("https", 101)):
            origin = ("Origin", f"{scheme}://127.0.0.1:{at.port}")
            raw = await RawClient.open(at, upgrade=False)
            await raw.send_raw(RawClient.request(at, headers=[origin]))
            assert (await raw.read_response()).startswith(b"HTTP/1.1 %d " % status)
            raw.close()


async def test_a_server_on_another_loop_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    await hub.attach()

    async def ask() -> bytes:
        server = await picows.ws_create_server(
            partial(handle_websocket, hub), "127.0.0.1", 0, enable_auto_pong=False
        )
        at: Any = _At(server.sockets[0].getsockname()[1])
        answer = await exchange(at, RawClient.request(at))
        server.close()
        return answer

    answer = await asyncio.to_thread(asyncio.run, ask())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "the hub belongs to another loop than this server" in caplog.text
    await hub.stop()


async def test_a_hub_that_is_stopped_while_its_store_opens_says_so() -> None:
    class Slow(MemoryOfflineStore):
        async def open(self) -> None:
            await asyncio.Event().wait()

    for begin in (lambda hub: hub.attach(), lambda hub: hub.start(port=0)):
        hub = Hub(authenticate=named)
        hub.enable_ack(ACKConfig(enable_offline_messages=True), store=Slow())
        starting = asyncio.create_task(begin(hub))
        await eventually(lambda hub=hub: hub.loop is not None)
        await hub.stop()
        with pytest.raises(HubStoppedError):
            await starting
        assert hub.loop is None


@pytest.mark.parametrize("name", ["connection_rate", "connection_rate_per_address"])
async def test_the_rates_of_connections_hold_on_a_server_of_ones_own(name: str) -> None:
    settings: Any = {name: 1.0}
    hub = Hub(HubConfig(**settings))
    async with serving(hub) as at:
        await hub.attach()
        raws = [await RawClient.open(at) for _ in range(3)]
        await eventually(lambda: hub.get_stats().limited[name] == 2)
        assert hub.get_connected_clients() == 1
        for raw in raws:
            raw.close()


async def test_the_number_of_headers_is_bounded_on_a_server_of_ones_own() -> None:
    hub = Hub(HubConfig(max_headers=8))
    async with serving(hub) as at:
        await hub.attach()
        request = RawClient.request(at, headers=[("X-Other", "y")] * 4)
        assert (await exchange(at, request)).startswith(b"HTTP/1.1 400 ")
        assert hub.get_stats().limited["max_headers"] == 1
        (await RawClient.open(at, headers=[("X-Other", "y")] * 3)).close()


async def test_a_hub_that_listens_may_have_clients_of_a_picows_server_too() -> None:
    hub = Hub()
    async with running(hub), serving(hub) as at:
        own, other = await RawClient.open(hub), await RawClient.open(at, "/any")
        await eventually(lambda: hub.broadcast("all") == 2)
        for raw in (own, other):
            assert (await raw.recv()).payload == b"all"
            raw.close()
        with pytest.raises(ConfigError, match="trusted_proxies"):
            hub.set_config(HubConfig(trusted_proxies=("10.0.0.1",)))
