"""A hub behind nginx and HAProxy, as docs/operations/proxies.md says: what comes through, and when
either of them ends.

A proxy that is not installed skips its tests, unless WSC_REQUIRE_CLIENTS=1. Clients connect from
127.0.0.2, so that the hub can tell them from the proxy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
import websockets
from websockets.asyncio.client import ClientConnection

from tests.proxies.proxy import NAMES, Proxy, proxying
from tests.support import only_client, unless_lost
from wsc_fast import Client, Hub, HubConfig, Identity, Request, Response
from wsc_fast.testing import RawClient, eventually, running

CLIENT = "127.0.0.2"
PROXY = "127.0.0.1"
FORGED = "203.0.113.9"
# 123 bytes of UTF-8, which is all that a close frame has room for.
LONGEST_REASON = "\U0001f44b Adieu, ça suffit. " + "ж" * 49 + "!"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each proxy in turn."""
    return str(request.param)


class Echo(Hub):
    """Sends back what comes, and keeps what its callbacks are told."""

    def __init__(self, **config: Any) -> None:
        authenticate = config.pop("authenticate", None)
        super().__init__(HubConfig(**config), authenticate=authenticate)
        self.gone: list[Client] = []
        self.errors: list[Exception] = []
        self.on_message_received(lambda client, message: client.send(message))
        self.on_client_disconnected(self.gone.append)
        self.on_error(unless_lost(lambda client, error: self.errors.append(error)))


def dial(place: Proxy | Hub, path: str = "/ws", **options: Any) -> websockets.connect:
    """A client of a proxy or, directly, of a hub; it sends no pings of its own."""
    settings = {"max_size": None, "ping_interval": None, "local_addr": (CLIENT, 0), "proxy": None}
    scheme = "wss" if "ssl" in options else "ws"
    return websockets.connect(f"{scheme}://127.0.0.1:{place.port}{path}", **{**settings, **options})


async def end_of(ws: ClientConnection) -> tuple[int, str] | None:
    """Code and reason of the close frame that ends a connection; None if it ends without."""
    while True:
        try:
            await ws.recv()
        except websockets.ConnectionClosed as closed:
            return None if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)


# --- messages ---


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_536, 1 << 20])
async def test_messages_come_back_as_they_went(
    name: str, tmp_path: Path, size: int, compressed: bool
) -> None:
    text = secrets.token_hex(size // 2 + 1)[:size]
    async with running(Echo(enable_compression=compressed)) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy) as ws:
                for message in (text, secrets.token_bytes(size), "ж" * (size // 2)):
                    await ws.send(message)
                    assert await ws.recv() == message
                assert ("Sec-WebSocket-Extensions" in ws.response.headers) == compressed
        worth_it = size >= hub.config.compression_threshold
        # Random bytes are not shortened, and go out as they are.
        assert hub.get_stats().compressed_frames == (3 if compressed and worth_it else 0)


async def test_a_thousand_messages_in_order(name: str, tmp_path: Path) -> None:
    numbers = [str(number) for number in range(1000)]
    async with running(Echo()) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy) as ws:
                for number in numbers:
                    await ws.send(number)
                assert [await ws.recv() for _ in numbers] == numbers


async def test_a_hundred_clients_get_a_broadcast(name: str, tmp_path: Path) -> None:
    async with running(Echo(enable_compression=True)) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            clients = await asyncio.gather(*(dial(proxy) for _ in range(100)))
            messages = ["to all", b"\0" * 1000, "x" * 100_000]
            for message in messages:
                assert hub.broadcast(message) == 100
            for ws in clients:
                assert [await ws.recv() for _ in messages] == messages
            assert hub.get_stats().compressed_frames == 2
            await asyncio.gather(*(ws.close() for ws in clients))
            await eventually(lambda: len(hub.gone) == 100)
        assert hub.errors == []


async def test_a_client_that_does_not_read_delays_nobody(name: str, tmp_path: Path) -> None:
    """The proxy holds a bounded part for it, and then its outbox overflows."""
    async with running(Echo(close_timeout=0.5)) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy) as ws:
                with await RawClient.open(proxy, rcvbuf=4096):
                    sent = 0
                    while not hub.get_stats().slow_consumer_disconnects:
                        assert sent < 2000, "it never overflows"
                        hub.broadcast(b"%7d" % sent + bytes(65_536))
                        assert (await ws.recv())[:7] == b"%7d" % sent
                        sent += 1
                    await eventually(lambda: hub.gone)
                    assert hub.connections == 1
                await ws.send("still served")
                assert await ws.recv() == "still served"


# --- closing ---


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1000, ""), (1001, "bye"), (3000, LONGEST_REASON), (4999, "\0")],
    ids=["empty", "ASCII", "Unicode", "NUL"],
)
async def test_close_codes_come_through(name: str, tmp_path: Path, code: int, reason: str) -> None:
    """From the hub with its reason; the client's code comes back to it."""
    async with running(Echo()) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy) as ws:
                only_client(hub).disconnect(code, reason)
                assert await end_of(ws) == (code, reason)
            await eventually(lambda: len(hub.gone) == 1)
            async with dial(proxy) as ws:
                await ws.close(code, reason)
                assert await end_of(ws) == (code, "")
            await eventually(lambda: len(hub.gone) == 2)
        assert hub.errors == []


async def test_the_hub_stops(name: str, tmp_path: Path) -> None:
    """Each client gets what was queued, and 1001; the hub that starts again is reached again."""
    hub = Echo()
    async with running(hub):
        port = hub.port
        with proxying(name, tmp_path, port) as proxy:
            clients = await asyncio.gather(*(dial(proxy) for _ in range(20)))
            hub.broadcast(bytes(1 << 19))
            hub.broadcast("last words")
            stopping = asyncio.create_task(hub.stop())
            for ws in clients:
                assert await ws.recv() == bytes(1 << 19)
                assert await ws.recv() == "last words"
                assert await end_of(ws) == (1001, "server shutdown")
            await stopping
            assert len(hub.gone) == 20
            with pytest.raises(websockets.InvalidStatus) as refused:
                await dial(proxy)
            assert refused.value.response.status_code in (502, 503)
            async with running(hub, port=port), dial(proxy) as ws:
                await ws.send("again")
                assert await ws.recv() == "again"
    assert hub.errors == []


async def test_the_proxy_is_killed(name: str, tmp_path: Path) -> None:
    async with running(Echo()) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            clients = await asyncio.gather(*(dial(proxy) for _ in range(20)))
            await asyncio.to_thread(proxy.program.kill)
            await eventually(lambda: hub.connections == 0)
            assert len(set(hub.gone)) == len(hub.gone) == 20
            for ws in clients:
                assert await end_of(ws) is None
        assert hub.errors == []


# --- idle connections ---


async def test_the_heartbeat_keeps_an_idle_connection(name: str, tmp_path: Path) -> None:
    """Past three timeouts of the proxy."""
    async with running(Echo(heartbeat_interval=0.3)) as hub:
        with proxying(name, tmp_path, hub.port, timeout=1.5) as proxy:
            async with dial(proxy) as ws:
                client = only_client(hub)
                await eventually(
                    lambda: (client.last_activity - client.connected_at).total_seconds() > 4.5
                )
                await ws.send("still here")
                assert await ws.recv() == "still here"
                assert hub.gone == []


async def test_without_a_heartbeat_the_proxy_ends_an_idle_connection(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub takes it as any other end: one disconnect, and nothing to report."""
    async with running(Echo(heartbeat_interval=300, heartbeat_timeout=600)) as hub:
        with proxying(name, tmp_path, hub.port, timeout=1) as proxy:
            async with dial(proxy) as ws:
                client = only_client(hub)
                began = time.monotonic()
                assert await end_of(ws) is None
                assert time.monotonic() - began > 0.9
                await eventually(lambda: hub.connections == 0)
                assert hub.gone == [client]
                assert not client.is_connected()
        assert hub.errors == []
        assert hub.get_stats().error_count == 0
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


# --- the address of the client ---


def by_address(request: Request) -> Identity:
    """An `authenticate`: the user is named by the address that it comes from."""
    return Identity(request.remote_address)


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        ((PROXY,), CLIENT),
        (("127.0.0.0/31", "10.0.0.0/8"), CLIENT),
        ((), PROXY),
        (("10.0.0.0/8", CLIENT), PROXY),
    ],
    ids=["trusted", "trusted network", "not trusted", "others trusted"],
)
@pytest.mark.parametrize(
    "forged",
    [
        [],
        [("X-Forwarded-For", FORGED)],
        [("x-forwarded-for", f"{FORGED}, {PROXY}")],
        [("X-Forwarded-For", FORGED), ("X-Forwarded-For", PROXY)],
        [("X-Forwarded-For", "nonsense")],
        [("Forwarded", f"for={FORGED}"), ("X-Real-IP", FORGED)],
    ],
    ids=["honest", "forged", "a forged list", "two forged", "nonsense", "other headers"],
)
async def test_the_address_is_what_a_trusted_proxy_says(
    name: str,
    tmp_path: Path,
    trusted: tuple[str, ...],
    seen: str,
    forged: list[tuple[str, str]],
) -> None:
    """And of that only the part that it has appended; a client past the proxy is not believed."""
    async with running(Echo(trusted_proxies=trusted, authenticate=by_address)) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy, additional_headers=forged):
                assert only_client(hub).remote_address == seen
                assert only_client(hub).user_id == seen
            await eventually(lambda: hub.connections == 0)
        if CLIENT not in trusted:
            async with dial(hub, additional_headers=forged):
                assert only_client(hub).remote_address == CLIENT
                assert only_client(hub).user_id == CLIENT


async def test_the_address_comes_through_two_proxies(name: str, tmp_path: Path) -> None:
    other = next(each for each in NAMES if each != name)
    async with running(Echo(trusted_proxies=(PROXY,))) as hub:
        with (
            proxying(name, tmp_path, hub.port) as inner,
            proxying(other, tmp_path, inner.port) as outer,
        ):
            async with dial(outer, additional_headers={"X-Forwarded-For": FORGED}) as ws:
                assert only_client(hub).remote_address == CLIENT
                await ws.send("through both")
                assert await ws.recv() == "through both"


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_a_page_behind_the_proxy_is_of_the_same_origin(
    name: str, tmp_path: Path, tls: bool, authority: trustme.CA, client_tls: ssl.SSLContext
) -> None:
    """The Host header comes through; https is the proxy's doing, and another page's origin not."""
    certificate = authority.issue_cert("127.0.0.1") if tls else None
    options: dict[str, Any] = {"ssl": client_tls} if tls else {}
    async with running(Echo()) as hub:
        with proxying(name, tmp_path, hub.port, certificate=certificate) as proxy:
            origin = f"{'https' if tls else 'http'}://127.0.0.1:{proxy.port}"
            async with dial(proxy, origin=origin, **options) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
            for other in (f"http://127.0.0.1:{hub.port}", "https://elsewhere.example"):
                with pytest.raises(websockets.InvalidStatus) as refused:
                    await dial(proxy, origin=other, **options)
                assert refused.value.response.status_code == 403


@pytest.mark.parametrize(("path", "status"), [("/ws?who=nobody", 401), ("/other", 404)])
async def test_a_refusal_comes_through(name: str, tmp_path: Path, path: str, status: int) -> None:
    async with running(Echo(authenticate=lambda request: None)) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await dial(proxy, path)
            assert refused.value.response.status_code == status


async def test_a_subprotocol_is_agreed_on_through_the_proxy(name: str, tmp_path: Path) -> None:
    async with running(Echo(subprotocols=("chat.v2", "chat.v1"))) as hub:
        with proxying(name, tmp_path, hub.port) as proxy:
            async with dial(proxy, subprotocols=["chat.v1", "chat.v2"]) as ws:
                assert ws.subprotocol == only_client(hub).subprotocol == "chat.v2"


async def test_a_route_is_served_through_the_proxy(name: str, tmp_path: Path) -> None:
    """Plain HTTP, on one connection to the proxy that is kept."""
    hub = Echo()
    hub.route("/who")(lambda request: f"you are {request.remote_address}")
    async with running(hub):
        with (
            proxying(name, tmp_path, hub.port) as proxy,
            await RawClient.open(proxy, upgrade=False) as client,
        ):
            for _ in range(2):
                request = f"GET /who HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\n\r\n"
                await client.send_raw(request.encode())
                assert (await client.read_response()).startswith(b"HTTP/1.1 200 ")
                while len(client.buffer) < len("you are 127.0.0.1"):
                    assert await client._more(10.0)
                assert client.buffer == b"you are 127.0.0.1"
                client.buffer.clear()


async def test_the_health_check_of_haproxy_is_answered(tmp_path: Path) -> None:
    """HTTP/1.0 without a host, as its `option httpchk` sends it unless told otherwise."""
    hub = Echo()
    status = [200]
    asked: list[str] = []

    @hub.route("/health")
    def health(request: Request) -> Response:
        asked.append(request.headers.get("Host", ""))
        return Response(status[0])

    server = "server hub 127.0.0.1:8080"
    check = "check inter 50ms fall 1 rise 1"
    async with running(hub):
        with proxying(
            "haproxy",
            tmp_path,
            hub.port,
            more={server: f"option httpchk GET /health\n    {server} {check}"},
        ) as proxy:

            async def answer() -> bytes:
                with await RawClient.open(proxy, upgrade=False) as client:
                    await client.send_raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                    return (await client.read_response())[9:12]

            await eventually(lambda: asked.count("") >= 3)
            assert await answer() == b"200"
            status[0] = 500
            async with asyncio.timeout(10.0):
                while await answer() != b"503":  # as long as it has not checked again
                    pass
