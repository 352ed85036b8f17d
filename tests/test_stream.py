"""The engine's own transport: `_core.poller`, `_core.stream` and `_core.entrance`.

The tests of connections run on it as a whole; here is what concerns it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import busy, has_ipv6, join, known, named, only_client
from wsc_fast import Client, Hub, HubConfig
from wsc_fast._core.connection import pause_reading, transport_of
from wsc_fast._core.stream import Stream
from wsc_fast.listen.polled import PolledAcceptor
from wsc_fast.testing import TEXT, RawClient, encode, eventually, reset_when_closed, running

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the engine's own transport needs epoll"),
]


@pytest.fixture(autouse=True)
def own(only_hub_transport: None) -> None:
    """Has each test run with the engine's own transport only."""


def stream_of(hub: Hub) -> Any:
    """The transport of the one connection of a hub, upgraded or not."""
    requests = [handshake.transport for handshake in hub._parts.requests._all()]
    (stream,) = requests or [transport_of(only_client(hub))]
    assert isinstance(stream, Stream)
    return stream


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# --- turns ---


async def test_callbacks_that_take_long_do_not_hold_up_the_loop(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    heard: list[int] = []
    turn = 0

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        heard.append(turn)
        busy(0.002)

    async with running(hub):
        raws = [(await join(hub, f"c{number}"))[0] for number in range(60)]
        for raw in raws:
            raw.sock.send(encode(TEXT, b"x"))
        while len(heard) < len(raws):
            await asyncio.sleep(0)
            turn += 1
        # Of a turn no more than the budget, and the rest of four events.
        assert max(heard.count(each) for each in set(heard)) <= 8
        for raw in raws:
            raw.close()


async def test_events_that_a_turn_has_no_time_for_come_first_in_the_next(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    heard: list[str] = []
    raws: dict[str, RawClient] = {}

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        busy(0.001)
        if client.id not in heard:
            raws[client.id].sock.send(encode(TEXT, b"again"))  # it is ready again at once
        heard.append(client.id)

    async with running(hub):
        for number in range(50):
            raws[f"c{number}"] = (await join(hub, f"c{number}"))[0]
        for raw in raws.values():
            raw.sock.send(encode(TEXT, b"x"))
        await eventually(lambda: len(heard) == 2 * len(raws))
        assert set(heard[: len(raws)]) == set(raws)
        for raw in raws.values():
            raw.close()


async def test_ends_are_spread_over_turns(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    ends: list[int] = []
    turn = 0

    @hub.on_client_disconnected
    def gone(client: Client) -> None:
        ends.append(turn)
        busy(0.002)

    async with running(hub):
        raws = [(await join(hub, f"c{number}"))[0] for number in range(30)]
        hub._life.abort_all()
        while len(ends) < len(raws):
            await asyncio.sleep(0)
            turn += 1
        assert max(ends.count(each) for each in set(ends)) <= 3
        for raw in raws:
            raw.close()


async def test_a_reset_while_nothing_is_read_costs_no_turns() -> None:
    # epoll tells of a reset whatever is asked for. asyncio gets a new reader in each turn.
    loop = asyncio.get_running_loop()
    assert not isinstance(loop, asyncio.BaseEventLoop)

    def serve() -> None:
        asyncio.run(main())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real, runs = loop.add_reader, 0

        def count(descriptor: int, callback: Any, *args: Any) -> None:
            nonlocal runs
            runs += 1
            real(descriptor, callback, *args)

        loop.add_reader = count  # type: ignore[assignment,method-assign]
        hub = Hub(authenticate=named)
        async with running(hub):
            raw, client = await join(hub, "a")
            pause_reading(client)
            reset_when_closed(raw.sock)
            raw.close()
            # Others are served meanwhile; each of their messages takes a few turns.
            other, _ = await join(hub, "b")
            runs = 0
            for _ in range(20):
                other.sock.send(encode(TEXT, b"x"))
                before = hub.get_stats().messages_in
                await eventually(lambda before=before: hub.get_stats().messages_in > before)  # type: ignore[misc]
            assert runs <= 60
            assert client.is_connected()
            hub._engine.sweep(1.0)
            await eventually(lambda: not client.is_connected())
            other.close()

    await loop.run_in_executor(None, serve)


# --- writing ---


async def test_bytes_of_all_kinds_arrive_in_order_however_slowly_they_are_taken(
    any_loop: str,
) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub, upgrade=False, rcvbuf=4096) as raw:
            await eventually(hub._parts.requests._all)
            stream = stream_of(hub)
            blocks = [bytes([number]) * (1 << 20) for number in range(1, 8)]
            changing = bytearray(blocks[2])
            stream.write(blocks[0])
            stream.write(memoryview(blocks[1])[5:])
            stream.write(changing)
            changing[:] = bytes(len(changing))  # the transport has taken what was in it
            stream.writelines([blocks[3], memoryview(bytearray(blocks[4]))])
            stream.write(memoryview(blocks[5])[::2])
            stream.write(b"")
            stream.write(blocks[6])
            expected = b"".join([blocks[0], blocks[1][5:], *blocks[2:5], blocks[5][::2], blocks[6]])
            waiting = stream.get_write_buffer_size()
            assert 0 < waiting < len(expected)
            stream.close()
            assert stream.is_closing()
            stream.write(b"too late")
            assert await raw.read_all() == expected
            await eventually(lambda: stream.fileno() == -1)
            assert stream.get_write_buffer_size() == 0


async def test_the_end_of_our_half_comes_behind_what_waits(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub, upgrade=False, rcvbuf=4096) as raw:
            await eventually(hub._parts.requests._all)
            stream = stream_of(hub)
            stream.write(bytes(1 << 23))
            stream.write_eof()
            stream.write_eof()
            with pytest.raises(RuntimeError, match="after write_eof"):
                stream.write(b"x")
            assert stream.get_write_buffer_size() > 0
            assert await raw.read_all() == bytes(1 << 23)
            assert not stream.is_closing()
            stream.abort()
            await eventually(lambda: not hub._parts.requests._all())


async def test_the_limits_of_writing_are_asyncio_s() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub, upgrade=False, rcvbuf=4096):
            await eventually(hub._parts.requests._all)
            stream = stream_of(hub)
            assert stream.get_write_buffer_limits() == (16 << 10, 64 << 10)
            stream.set_write_buffer_limits(high=100)
            assert stream.get_write_buffer_limits() == (25, 100)
            stream.set_write_buffer_limits(low=100)
            assert stream.get_write_buffer_limits() == (100, 400)
            with pytest.raises(ValueError, match="must be >= low"):
                stream.set_write_buffer_limits(high=1, low=2)
            stream.abort()
            stream.abort()


async def test_a_peer_that_resets_amid_a_message_ends_it_with_the_error(any_loop: str) -> None:
    hub = Hub(HubConfig(outbox_bytes=1 << 24), authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "a", rcvbuf=4096)
        client.send(bytes(1 << 23))
        await eventually(lambda: stream_of(hub).get_write_buffer_size() > 0)
        reset_when_closed(raw.sock)
        raw.close()
        await eventually(lambda: hub.connections == 0)
        assert client.close_code == 1006


# --- what it tells ---


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_it_tells_of_its_socket(any_loop: str, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    hub = Hub(authenticate=named)
    await hub.start(host, 0)
    with socket.create_connection((host, hub.port)) as sock:
        sock.sendall(RawClient.request(hub, "/ws?id=a"))
        await eventually(hub.get_connected_clients)
        client = known(hub, "a")
        stream = stream_of(hub)
        assert client.remote_address == host
        assert stream.get_extra_info("peername") == sock.getsockname()
        assert stream.get_extra_info("sockname") == sock.getpeername()
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("cipher", "none") == "none"
        found = stream.get_extra_info("socket")
        assert found.fileno() == stream.fileno() >= 0
        assert (found.family, found.type) == (family, socket.SOCK_STREAM)
        assert found.getsockname() == sock.getpeername()
        assert found.getpeername() == sock.getsockname()
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert stream.get_protocol() is client
        assert stream.is_reading()
        assert client.conn is not None
        assert client.conn.underlying_transport.get_extra_info("peername") == sock.getsockname()
        await hub.stop(timeout=0.1)
    assert stream.fileno() == found.fileno() == -1
    assert stream.get_protocol() is None
    assert not stream.is_reading()
    with pytest.raises(OSError, match="Bad file descriptor"):
        found.getsockname()
    assert stream.get_extra_info("sockname") is None
    stream.pause_reading()
    stream.resume_reading()
    stream.close()
    stream.abort()


async def test_an_IPv4_peer_of_a_socket_for_both_families(any_loop: str) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    hub = Hub(authenticate=named)
    await hub.start("::", 0)
    with socket.create_connection(("127.0.0.1", hub.port)) as sock:
        sock.sendall(RawClient.request(hub, "/ws?id=a"))
        await eventually(hub.get_connected_clients)
        assert known(hub, "a").remote_address == "127.0.0.1"
        host, port, *_ = stream_of(hub).get_extra_info("peername")
        assert (host, port) == ("::ffff:127.0.0.1", sock.getsockname()[1])
    await hub.stop()


# --- descriptors ---


async def test_a_stop_leaves_no_descriptor_open(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    before = open_descriptors()
    for _ in range(2):
        raws = []
        await hub.start("127.0.0.1", 0)
        raws.append((await join(hub, "open"))[0])
        raws.append((await join(hub, "slow", rcvbuf=4096))[0])
        known(hub, "slow").send(bytes(1 << 20))
        raws.append(await RawClient.open(hub, upgrade=False))
        answered = await RawClient.open(hub, upgrade=False)
        await answered.send_raw(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
        raws.append(answered)
        await eventually(lambda: len(hub._parts.requests._answered) == 1)
        await eventually(lambda: len(hub._parts.requests._waiting) == 1)
        ours = open_descriptors() - before
        assert len(ours) > 2 * len(raws)
        await hub.stop(timeout=0.05)
        # At once, and not a turn later.
        assert hub._parts.listener.descriptors() == []
        for raw in raws:
            raw.close()
        assert open_descriptors() <= before


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_a_loop_closed_under_the_hub_leaves_no_descriptor_open(kind: str) -> None:
    import uvloop

    hub = Hub(authenticate=named)
    before = open_descriptors()
    loop = uvloop.new_event_loop() if kind == "uvloop" else asyncio.new_event_loop()

    async def begin() -> RawClient:
        await hub.start("127.0.0.1", 0)
        return (await join(hub, "a"))[0]

    raw = loop.run_until_complete(begin())
    client = known(hub, "a")
    loop.close()
    asyncio.run(hub.stop())  # the hub finds out
    assert not client.is_connected()
    raw.close()
    assert open_descriptors() <= before


async def test_a_fork_replaces_the_epoll_and_each_socket(any_loop: str) -> None:
    hub = Hub(HubConfig(outbox_bytes=1 << 24), authenticate=named)
    before = open_descriptors()
    async with running(hub):
        raw, client = await join(hub, "a", rcvbuf=4096)
        stream = stream_of(hub)
        client.send(bytes(1 << 23))
        await eventually(lambda: stream.get_write_buffer_size() > 0)
        stream.close()  # it is open until all is sent
        new = map(int, open_descriptors() - before)
        mine = {each for each in new if linked(each) == "anon_inode:[eventpoll]"}
        assert len(mine) == 1
        assert mine | {stream.fileno()} <= hub._life.descriptors()
        raw.close()


def linked(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


# --- listening ---


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_descriptors())) + 1, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in taken:
            os.close(each)


async def test_it_pauses_where_the_spare_descriptor_has_gone_too(
    any_loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PolledAcceptor, "_PAUSE", 0.05)
    hub = Hub(authenticate=named)
    async with running(hub):
        first, _ = await join(hub, "first")
        (acceptor,) = hub._parts.listener.acceptors
        assert isinstance(acceptor, PolledAcceptor)
        with socket.socket() as waiting:
            waiting.setblocking(False)
            acceptor._spare.close()
            with no_more_files():
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(("127.0.0.1", hub.port))
                await eventually(lambda: acceptor._resuming is not None)
                first.sock.send(encode(TEXT, b"x"))
                await eventually(lambda: hub.get_stats().messages_in == 1)
                assert "out of file descriptors" in caplog.text
            waiting.send(RawClient.request(hub, "/ws?id=second"))
            await eventually(lambda: hub.get_connected_clients() == 2)
        first.close()


def test_the_objects_of_an_idle_connection_stay_small() -> None:
    """docs/performance.md, "An idle connection", has where the rest goes."""
    of_collector = 2 * struct.calcsize("P")
    # pymalloc serves up to 512 bytes; a larger object costs a header of malloc's besides.
    assert Client.__basicsize__ + of_collector <= 448
    assert Stream.__basicsize__ + of_collector <= 128
