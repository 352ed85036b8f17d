"""TLS of the engine's own transport: partial sends, KeyUpdates, goodbyes, resets, memory."""

from __future__ import annotations

import _ssl
import asyncio
import ctypes
import os
import random
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import crowd, known, named, only_client
from wsc_fast import Client, Hub, HubConfig
from wsc_fast._core.connection import transport_of
from wsc_fast._core.tls_stream import TLSStream, can_serve
from wsc_fast.testing import BINARY, CLOSE, TEXT, Authority, TLSClient, encode, eventually, running

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or not can_serve(), reason="needs epoll, and OpenSSL to call"
    ),
]

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own(only_hub_transport: None) -> None:
    """Has each test run with the engine's own transport only."""


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def client_tls(request: pytest.FixtureRequest, certificates: Authority) -> ssl.SSLContext:
    """A client's context for this version of TLS."""
    context = certificates.client_context()
    version = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}[request.param]
    context.minimum_version = context.maximum_version = version
    return context


def stream_of(client: Client) -> Any:
    stream = transport_of(client)
    assert isinstance(stream, TLSStream)
    return stream


def pointer_of(raw: TLSClient) -> ctypes.c_void_p:
    """The SSL of a client: the second pointer behind the head of Python's object."""
    inner: Any = raw._tls._sslobj  # type: ignore[attr-defined]
    words = ctypes.cast(id(inner), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.c_void_p(words[object.__basicsize__ // ctypes.sizeof(ctypes.c_void_p) + 1])


async def update_keys(raw: TLSClient, times: int, *, answered: bool = True) -> None:
    """Sends so many KeyUpdates (RFC 8446 section 4.6.3) in one segment."""
    library = ctypes.CDLL(_ssl.__file__)
    pointer = pointer_of(raw)
    for _ in range(times):
        assert library.SSL_key_update(pointer, int(answered)) == 1
        assert library.SSL_do_handshake(pointer) == 1
    await raw._write_out()


# --- sending ---


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("size", [1, 700, 16_384, 60_000])
async def test_slow_readers_get_everything_in_order(
    either_way: bool,
    threads: int,
    size: int,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub = Hub(HubConfig(write_buffer_size=8_192, send_threads=threads), authenticate=named)
    async with crowd(hub, 5, (server_tls, client_tls), rcvbuf=4_096) as raws:
        sent = []
        blocked = 0
        for number in range(12):
            for part in range(5):
                payload = b"%d,%d " % (number, part) + random.randbytes(size)
                hub.broadcast(payload)
                sent.append(payload)
            hub.send_to_client("c1", b"to one")
            await asyncio.sleep(0)
            blocked += sum(
                stream_of(client).get_write_buffer_size() > 0
                for client in (known(hub, name) for name in raws)
            )
            if size > 10_000:  # an outbox has no room for all
                for name, raw in raws.items():
                    await check(raw, name, sent[-5:])
        if size <= 10_000:
            for name, raw in raws.items():
                for start in range(0, len(sent), 5):
                    await check(raw, name, sent[start : start + 5])
        if size > 10_000:
            assert blocked > 0
            assert hub.get_stats().partial_sends > 0
        assert not hub.get_stats().slow_consumer_disconnects
        streams = [stream_of(known(hub, name)) for name in raws]
        await eventually(lambda: not any(each.get_write_buffer_size() for each in streams))


async def check(raw: Any, name: str, wanted: list[bytes]) -> None:
    for payload in wanted:
        assert (await raw.recv()).payload == payload
    if name == "c1":
        assert (await raw.recv()).payload == b"to one"


async def test_a_long_message_takes_many_turns(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    size = 24_000_000
    hub = Hub(HubConfig(outbox_bytes=1 << 25))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            client = only_client(hub)
            payload = random.randbytes(size)
            client.send(payload)
            await asyncio.sleep(0)
            # TLS has taken no more of it than it may in a turn; the rest waits unencrypted.
            await eventually(lambda: stream_of(client).get_write_buffer_size() > 0)
            assert stream_of(client).get_write_buffer_size() > size - 4_000_000
            assert (await raw.recv(30.0)).payload == payload
            assert hub.get_stats().bytes_out >= size


# --- receiving ---


async def test_a_crowd_that_sends_very_many_records_holds_up_no_turn(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    turn, heard = 0, []
    hub = Hub()
    hub.on_message_received(lambda client, message: heard.append(turn))
    async with running(hub, ssl=server_tls):
        raws = [await TLSClient.open_tls(hub, client_tls) for _ in range(8)]
        await eventually(lambda: hub.get_connected_clients() == 8)
        poller = hub._parts.listener.poller
        assert poller is not None
        poller.budget = 0.0  # each look at the clock ends the turn
        for raw in raws:
            for byte in encode(BINARY, bytes(1_000)):  # 3 ms, where a read is full of them
                raw._tls.write(bytes([byte]))
            raw.sock.sendall(raw._outgoing.read())  # all of them, before the loop goes on
        while len(heard) < 8:
            turn += 1
            await asyncio.sleep(0)
        assert len(set(heard)) == 8, heard
        for raw in raws:
            raw.close()


@pytest.mark.parametrize("client_tls", ["TLSv1.3"], indirect=True)
async def test_keys_may_change_at_any_time(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            for number in range(10):
                await update_keys(raw, 1 + number % 3, answered=number % 2 == 0)
                payload = random.randbytes(40_000)
                await raw.send(BINARY, payload)
                assert (await raw.recv()).payload == payload


@pytest.mark.fault(number="B5")
@pytest.mark.parametrize("client_tls", ["TLSv1.3"], indirect=True)
async def test_a_flood_of_new_keys_ends_its_connection_alone(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub, ssl=server_tls):
        other = await TLSClient.open_tls(hub, client_tls)
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(lambda: hub.connections == 2)
            await update_keys(raw, 2_000)
            await eventually(lambda: hub.connections == 1)
        await other.send(TEXT, b"served")
        assert (await other.recv()).payload == b"served"
        other.close()
        assert hub.get_stats().closes["1006"] >= 1


# --- the end ---


@pytest.mark.parametrize("first", ["hub", "peer"])
async def test_both_say_goodbye(
    any_loop: str, first: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(close_timeout=60.0))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            if first == "hub":
                only_client(hub).disconnect(4000, "enough")
                assert (await raw.recv()).code == 4000
                await raw.send_raw(encode(CLOSE, b"\x0f\xa0"))
            else:
                await raw.send_raw(encode(CLOSE, b"\x0f\xa0"))
                assert (await raw.recv()).code == 4000
            assert not await raw._more(10.0)
            assert raw._tls.read(1) == b""  # behind a mere end of TCP it would want to read more
            assert hub.connections == 1  # it waits for ours
            raw.say_goodbye()
            await eventually(lambda: hub.connections == 0)
            assert await asyncio.get_running_loop().sock_recv(raw.sock, 1) == b""


async def test_a_peer_that_says_no_goodbye_is_waited_for_so_long(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(close_timeout=0.3))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await raw.send_raw(encode(CLOSE, b"\x0f\xa0"))
            assert (await raw.recv()).code == 4000
            assert not await raw._more(10.0)
            await raw.send(TEXT, b"unheard")
            await eventually(lambda: hub.connections == 0)


@pytest.mark.parametrize("end", ["end of TCP", "reset"])
async def test_an_end_without_a_goodbye_breaks_the_connection(
    any_loop: str, end: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    heard: list[object] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    codes: list[int | None] = []
    hub.on_client_disconnected(lambda client: codes.append(client.close_code))
    async with running(hub, ssl=server_tls):
        raw = await TLSClient.open_tls(hub, client_tls)
        await raw.send(TEXT, b"whole")
        await raw.send_raw(encode(TEXT, b"in part", fin=True)[:-1])
        await eventually(lambda: heard == ["whole"])
        raw.reset() if end == "reset" else raw.close()
        await eventually(lambda: codes == [1006])
    assert heard == ["whole"]


async def test_a_reset_while_bytes_wait_ends_the_connection(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(write_buffer_size=8_192))
    async with running(hub, ssl=server_tls):
        raw = await TLSClient.open_tls(hub, client_tls, rcvbuf=4_096)
        await eventually(hub.get_connected_clients)
        client = only_client(hub)
        client.send(bytes(500_000))
        await eventually(lambda: stream_of(client).get_write_buffer_size() > 0)
        raw.reset()
        await eventually(lambda: hub.connections == 0)


async def test_the_object_of_ssl_may_outlive_the_connection(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            kept = stream_of(only_client(hub)).get_extra_info("ssl_object")
            assert kept.version() == raw._tls.version()
        await eventually(lambda: hub.connections == 0)
    assert kept.cipher() is not None
    with pytest.raises(ssl.SSLError):
        kept.read(1)


# --- memory ---


def test_an_idle_connection_takes_less_than_25_kb() -> None:
    program = ROOT / "benchmarks/experiments/tls_memory.py"
    said = subprocess.run(
        [sys.executable, str(program), "--connections", "400"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert 2_000 < float(said.stdout.split()[0].replace(",", "")) < 25_000, said.stdout
