"""The end of a connection that is answered: the peer gets the answer, however it behaves."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable

import pytest

from tests.support import TLS, serves_others, tls_options
from wsc_fast import Hub, HubConfig, Request
from wsc_fast.testing import RawClient, eventually, open_client, running
from wsc_fast.upgrade import lingering as lingering_module

BODY = bytes(range(256)) * 8_000
GET = b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n"
# The kernel takes little at once, so that the answer waits for its reader.
SMALL = 1 << 16


def serving_much(**settings: float) -> Hub:
    hub = Hub(HubConfig(write_buffer_size=SMALL, **settings))  # type: ignore[arg-type]

    @hub.route("/big")
    def big(request: Request) -> bytes:
        return BODY

    return hub


async def connected(hub: Hub, tls: ssl.SSLContext | None = None) -> RawClient:
    return await open_client(hub, tls, upgrade=False, rcvbuf=SMALL)


async def read_slowly(raw: RawClient, pause: float) -> bytes:
    """All that comes, some of it at a time."""
    with contextlib.suppress(ConnectionError):
        more = True
        while more:
            await asyncio.sleep(pause)
            more = await raw._more(10.0)
    return bytes(raw.buffer)


@TLS
@pytest.mark.parametrize("kind", ["upload", "upgrade", "long head"])
async def test_the_answer_reaches_a_peer_that_still_sends(
    any_loop: str, tls: bool, kind: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(close_timeout=2.0), authenticate=lambda request: None)

    def ask(port: int) -> int:
        # A client that blocks: it reads once it has sent all.
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=client_tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        ) as connection:
            if kind == "upload":
                connection.request("POST", "/", body=bytes(8 << 20))
            elif kind == "upgrade":
                connection.connect()
                connection.sock.sendall(RawClient.request(hub) + bytes(4 << 20))
                return int(connection.sock.recv(100)[9:12])
            else:
                connection.request("GET", "/", headers={"X": "x" * (2 << 20)})
            return connection.getresponse().status

    async with running(hub, **tls_options(server_tls if tls else None)):
        wanted = {"upload": 405, "upgrade": 401, "long head": 431}[kind]
        for _ in range(2):
            assert await asyncio.to_thread(ask, hub.port) == wanted
        await eventually(lambda: not hub._parts.requests._answered)


@TLS
async def test_a_slow_reader_gets_all_of_it(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = serving_much(close_timeout=0.4)
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connected(hub, client_tls if tls else None) as raw:
            await raw.send_raw(GET)
            began = asyncio.get_running_loop().time()
            answer = await read_slowly(raw, 0.02 if tls else 0.08)  # a record, or a buffer
            took = asyncio.get_running_loop().time() - began
        assert answer.endswith(BODY)
        assert took > 0.8  # or this has tried nothing
        await eventually(lambda: not hub._parts.requests._answered)
    assert hub.get_stats().limited["close_timeout"] == 0


async def test_a_slow_reader_that_has_ended_its_half_gets_all_of_it(any_loop: str) -> None:
    hub = serving_much(close_timeout=0.4)
    async with running(hub):
        with await connected(hub) as raw:
            await raw.send_raw(GET)
            raw.sock.shutdown(socket.SHUT_WR)
            assert (await read_slowly(raw, 0.08)).endswith(BODY)
    assert hub.get_stats().limited["close_timeout"] == 0


@TLS
async def test_a_peer_that_does_not_read_is_gone_after_the_close_timeout_and_counted(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = serving_much(close_timeout=0.3)
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connected(hub, client_tls if tls else None) as raw:
            await raw.send_raw(GET)
            await eventually(lambda: len(hub._parts.requests._answered) == 1)
            await eventually(lambda: not hub._parts.requests._answered, timeout=3.0)
            assert hub.get_stats().limited["close_timeout"] == 1
            assert not (await raw.read_all()).endswith(BODY)


async def test_a_peer_that_takes_crumbs_does_not_keep_the_answer(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering_module, "LEAST_RATE", 100 << 20)
    hub = serving_much(close_timeout=0.3)
    async with running(hub):
        with await connected(hub) as raw:
            await raw.send_raw(GET)
            assert not (await read_slowly(raw, 0.03)).endswith(BODY)
        assert hub.get_stats().limited["close_timeout"] == 1


@TLS
async def test_a_peer_that_stays_is_gone_after_the_close_timeout(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(close_timeout=0.3))
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connected(hub, client_tls if tls else None) as raw:
            await raw.send_raw(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.read_response()).startswith(b"HTTP/1.1 404 ")
            # It hears at once that nothing more comes, and goes on sending.
            assert await raw.read_all() in (b"404 Not Found\n", b"")
            for _ in range(5):
                with contextlib.suppress(OSError):
                    raw.sock.send(b"more")
                await asyncio.sleep(0.02)
            await eventually(lambda: not hub._parts.requests._answered, timeout=3.0)
    assert hub.get_stats().limited["close_timeout"] == 0


async def test_lingering_connections_are_bounded_with_those_that_have_not_asked(
    any_loop: str,
) -> None:
    bound = 20
    hub = Hub(HubConfig(max_handshakes=bound, close_timeout=30.0, handshake_timeout=30.0))
    async with running(hub), contextlib.AsyncExitStack() as stack:

        async def one(sent: bytes) -> RawClient:
            raw = stack.enter_context(await RawClient.open(hub, upgrade=False))
            await raw.send_raw(sent)
            return raw

        silent = [await one(b"GET") for _ in range(5)]
        await eventually(lambda: len(hub._parts.requests._waiting) == 5)
        for _ in range(3 * bound):
            raw = await one(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 404 " in await raw.read_all()
        assert len(hub._parts.requests._answered) <= bound - 5
        # The connections of the crowd have gone, and not those that were there before.
        assert len(hub._parts.requests._waiting) == 5
        assert hub.get_stats().limited["max_handshakes"] >= 2 * bound
        await serves_others(hub)
        for raw in silent:
            await raw.send_raw(b" /none HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.read_response()).startswith(b"HTTP/1.1 404 ")


async def test_few_wait_for_the_end_of_a_peer_that_has_its_answer(any_loop: str) -> None:
    hub = serving_much(close_timeout=30.0, max_handshakes=800)
    async with running(hub), contextlib.AsyncExitStack() as stack:

        async def one(request: bytes) -> RawClient:
            raw = stack.enter_context(await open_client(hub, None, upgrade=False, rcvbuf=SMALL))
            await raw.send_raw(request)
            return raw

        download = await one(GET)
        await eventually(lambda: len(hub._parts.requests._answered) == 1)
        refused = [await one(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(150)]
        for raw in refused:
            # A peer that sends nothing more gets its answer and no reset, whenever it reads.
            assert b" 404 " in await raw.read_all()
        # Of 800 an eighth; the one whose answer is still on its way is none of these.
        assert len(hub._parts.requests._answered) == 101
        assert hub.get_stats().limited["max_handshakes"] == 50
        assert (await download.read_all()).endswith(BODY)


@pytest.mark.parametrize(
    "leave", [RawClient.close, RawClient.reset, RawClient.vanish], ids=["close", "reset", "vanish"]
)
async def test_nothing_is_left_of_a_peer_that_leaves(
    any_loop: str, leave: Callable[[RawClient], None]
) -> None:
    hub = serving_much(close_timeout=0.3)
    async with running(hub):
        for request in (GET, b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"):
            raw = await connected(hub)
            await raw.send_raw(request)
            await eventually(lambda: len(hub._parts.requests._answered) == 1)
            leave(raw)
            await eventually(lambda: not hub._parts.requests._answered, timeout=3.0)
            raw.close()


async def test_a_stop_ends_those_that_still_read(any_loop: str) -> None:
    hub = serving_much(close_timeout=30.0)
    async with running(hub):
        with await connected(hub) as raw:
            await raw.send_raw(GET)
            await eventually(lambda: len(hub._parts.requests._answered) == 1)
            await hub.stop()
            assert not (await raw.read_all()).endswith(BODY)
        assert not hub._parts.requests._answered
        await hub.start(port=0)
        await serves_others(hub)
