"""Faults of slow peers, heartbeats and time (README.md, section E)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import ssl
import statistics
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import picows
import pytest

from tests.support import TLS, join, named, stall
from wsc_fast import Client, Hub, HubConfig, QueueFullError, handle_websocket
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    TLSClient,
    encode,
    eventually,
    running,
)


def small(**settings: Any) -> HubConfig:
    """Little room in the kernel, and short times."""
    return HubConfig(write_buffer_size=4096, **{"close_timeout": 1.0, **settings})


@asynccontextmanager
async def slow_client(
    hub: Hub, server_tls: ssl.SSLContext | None, client_tls: ssl.SSLContext
) -> AsyncIterator[tuple[RawClient, Client]]:
    async with running(hub, ssl=server_tls):
        raw: RawClient
        if server_tls is None:
            raw = await RawClient.open(hub, "/ws?id=slow", rcvbuf=4096)
        else:
            raw = await TLSClient.open_tls(hub, client_tls, "/ws?id=slow", rcvbuf=4096)
        client = hub.get_client_by_id("slow")
        assert client is not None
        with raw:
            yield raw, client


async def read_until_close(raw: RawClient) -> list[Frame]:
    """All frames up to the close, which it answers; asserts that nothing comes after it."""
    frames = []
    while (frame := await raw.recv()).opcode != CLOSE:
        frames.append(frame)
    frames.append(frame)
    await raw.send(CLOSE, frame.payload)
    assert await raw.recv_rest() == []
    return frames


# --- E1 ---


@pytest.mark.fault(number="E1")
@TLS
async def test_after_an_overflow_comes_a_prefix_then_the_close(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(small(outbox_messages=20), authenticate=named)
    async with slow_client(hub, server_tls if tls else None, client_tls) as (raw, client):
        sent = 0
        while client.is_connected():
            hub.broadcast(f"{sent:07d}".encode() * 1000)
            sent += 1
            assert sent < 10_000
            # A turn of the loop between them, so that some reach the kernel.
            await asyncio.sleep(0)

        reading = asyncio.ensure_future(read_until_close(raw))
        while not reading.done():
            # The outbox is free again now, and none of these may come through.
            assert hub.broadcast(f"{sent:07d}".encode() * 1000) == 0
            sent += 1
            await asyncio.sleep(0)
        *messages, close = await reading
        assert [message.payload[:7] for message in messages] == [
            f"{number:07d}".encode() for number in range(len(messages))
        ]
        assert all(len(message.payload) == 7000 for message in messages)
        assert close.code == 1013
        stats = hub.get_stats()
        # Everything up to the one that did not fit was either received or counted.
        assert stats.deliveries + 1 == len(messages) + stats.dropped["slow_consumer"]


# --- E2 ---


@pytest.mark.fault(number="E2")
@TLS
async def test_stalled_clients_do_not_grow_memory(
    tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    stalled_count, live_count, rounds = (30, 4, 2_000) if tls else (100, 4, 2_000)
    hub = Hub(HubConfig(overflow="drop_oldest", outbox_messages=512), authenticate=named)

    async def connect(name: str) -> RawClient:
        if tls:
            return await TLSClient.open_tls(hub, client_tls, f"/ws?id={name}", rcvbuf=4096)
        return await RawClient.open(hub, f"/ws?id={name}", rcvbuf=4096)

    async def read_in_order(raw: RawClient) -> None:
        for number in range(rounds):
            payload = (await raw.recv()).payload
            assert payload[:8] == f"{number:08d}".encode()
            if number % 16 == 15:
                acknowledged[raw] = number
                progress.set()

    async with running(hub, ssl=server_tls if tls else None):
        stuck = [await connect(f"stuck{number}") for number in range(stalled_count)]
        live = [await connect(f"live{number}") for number in range(live_count)]
        acknowledged = dict.fromkeys(live, -1)
        progress = asyncio.Event()
        readers = [asyncio.ensure_future(read_in_order(raw)) for raw in live]
        tracemalloc.start()
        try:
            for number in range(rounds):
                hub.broadcast(f"{number:08d}".encode() + bytes(1016))
                # Paced by the clients that read, not by the others: a window of 64.
                while number - min(acknowledged.values()) > 64:
                    progress.clear()
                    await progress.wait()
                if number % 8 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*readers)
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The backlog is 512 KB once, and a ring of 8 KB for each client that has it.
        assert grown < (6 << 20 if not tls else 16 << 20), f"{grown:,} bytes"
        assert hub.get_connected_clients() == stalled_count + live_count
        for number in range(live_count):
            client = hub.get_client_by_id(f"live{number}")
            assert client is not None
            assert client.dropped_messages == 0
        for raw in stuck + live:
            raw.reset()


# --- E3 ---


@pytest.mark.fault(number="E3")
@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
@TLS
async def test_dropping_tears_no_frame_and_keeps_control_frames(
    any_loop: str,
    tls: bool,
    overflow: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub = Hub(small(outbox_messages=8, overflow=overflow), authenticate=named)
    async with slow_client(hub, server_tls if tls else None, client_tls) as (raw, client):
        fillers = await stall(client)  # the head is half sent now
        for number in range(100):
            hub.broadcast(f"{number:07d}".encode() * 100)
        await raw.send(PING, b"alive?")
        await eventually(lambda: client.queued_messages == 9)
        for number in range(100, 200):
            hub.broadcast(f"{number:07d}".encode() * 100)
        client.disconnect(4000, "done")

        frames = await read_until_close(raw)
        assert {frame.payload for frame in frames[:fillers]} == {bytes(1 << 20)}
        pong, *messages, close = frames[fillers:]
        assert (pong.opcode, pong.payload) == (PONG, b"alive?")
        kept = range(192, 200) if overflow == "drop_oldest" else range(8)
        assert [message.payload for message in messages] == [
            f"{number:07d}".encode() * 100 for number in kept
        ]
        assert (close.code, close.payload[2:]) == (4000, b"done")
        assert client.dropped_messages == 192


# --- E4 ---

# Short, but long enough that a busy machine does not hold up this process, both ends of it, for
# a whole timeout: nothing would move then, and the heartbeat would be right to say so.
HEARTBEAT = {"heartbeat_interval": 0.2, "heartbeat_timeout": 0.7}


async def pace(step: float, end: float) -> AsyncIterator[None]:
    """Turns of `step` seconds until `end` seconds are over: the slowness that is being tested."""
    start = time.monotonic()
    while time.monotonic() - start < end:
        await asyncio.sleep(step)
        yield


@pytest.mark.fault(number="E4")
async def test_a_slow_upload_survives_the_heartbeat(any_loop: str) -> None:
    received: list[str | bytes] = []
    hub = Hub(HubConfig(**HEARTBEAT), authenticate=named)
    hub.on_message_received(lambda client, message: received.append(message))
    async with running(hub):
        raw, client = await join(hub, "slow")
        with raw:
            # One frame, so that nothing whole arrives for longer than the timeout.
            frame = encode(BINARY, bytes(range(256)) * 400)
            sent = 0
            async for _ in pace(0.02, 1.8):
                await raw.send_raw(frame[sent : sent + 1000])
                sent += 1000
            await raw.send_raw(frame[sent:])
            await eventually(lambda: received)
            assert received == [bytes(range(256)) * 400]
            assert client.is_connected()
            assert hub.get_stats().heartbeat_timeouts == 0


@pytest.mark.fault(number="E4")
async def test_a_slow_first_frame_to_a_picows_server_survives_the_heartbeat() -> None:
    # Until it is whole picows reads, and the hub hears of nothing.
    received: list[str | bytes] = []
    hub = Hub(HubConfig(**HEARTBEAT), authenticate=named)
    hub.on_message_received(lambda client, message: received.append(message))
    server = await picows.ws_create_server(
        lambda request: handle_websocket(hub, request), "127.0.0.1", 0, enable_auto_pong=False
    )
    try:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/?id=slow"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
            frame = encode(BINARY, bytes(range(256)) * 400)
            sent = 0
            async for _ in pace(0.02, 1.8):
                ws._writer.transport.write(frame[sent : sent + 1000])
                sent += 1000
            ws._writer.transport.write(frame[sent:])
            await eventually(lambda: received)
            assert received == [bytes(range(256)) * 400]
            assert hub.get_stats().heartbeat_timeouts == 0
    finally:
        server.close()
        await hub.stop()


@pytest.mark.fault(number="E4")
async def test_a_slow_upload_in_fragments_survives_the_heartbeat() -> None:
    received: list[str | bytes] = []
    hub = Hub(HubConfig(**HEARTBEAT), authenticate=named)
    hub.on_message_received(lambda client, message: received.append(message))
    async with running(hub):
        raw, _ = await join(hub, "slow")
        with raw:
            opcode, count = TEXT, 0
            async for _ in pace(0.05, 1.8):
                await raw.send(opcode, b"part ", fin=False)
                opcode = CONTINUATION
                count += 1
            await raw.send(opcode, b"end")
            await eventually(lambda: received)
            assert received == ["part " * count + "end"]


@pytest.mark.fault(number="E4")
@TLS
async def test_a_backlog_read_slowly_survives_the_heartbeat(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(small(outbox_bytes=1 << 22, **HEARTBEAT), authenticate=named)
    async with slow_client(hub, server_tls if tls else None, client_tls) as (raw, client):
        for _ in range(40):
            client.send(bytes(50_000))
        # 2 MB at about 400 KB/s: longer than the timeout, and not over when we look.
        loop = asyncio.get_running_loop()
        async for _ in pace(0.02, 1.8):
            if isinstance(raw, TLSClient):
                raw._incoming.write(await loop.sock_recv(raw.sock, 8_000))
            else:
                raw.buffer += await loop.sock_recv(raw.sock, 8_000)
            assert client.is_connected()
        assert hub.get_stats().heartbeat_timeouts == 0


@pytest.mark.fault(number="E4")
async def test_a_backlog_in_the_kernel_read_slowly_survives_the_heartbeat() -> None:
    # With the kernel's own buffer sizes all of it leaves the outbox at once, but the client is
    # still at work on it, and the ping stands behind it.
    hub = Hub(HubConfig(**HEARTBEAT), authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "slow", rcvbuf=4096)
        with raw:
            client.send(bytes(700_000))
            async for _ in pace(0.02, 1.8):
                raw.buffer += await asyncio.get_running_loop().sock_recv(raw.sock, 6_000)
            assert len(raw.buffer) < 700_000, "read faster than meant"
            assert client.is_connected()
            assert hub.get_stats().heartbeat_timeouts == 0


# --- E5 ---


@pytest.mark.fault(number="E5")
@TLS
@pytest.mark.alone  # it measures a timeout closely
async def test_an_unanswered_close_ends_at_its_timeout_under_any_traffic(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    gone: list[Client] = []
    heard: list[str | bytes] = []
    hub = Hub(HubConfig(close_timeout=0.3), authenticate=named)
    hub.on_client_disconnected(gone.append)
    hub.on_message_received(lambda client, message: heard.append(message))
    async with slow_client(hub, server_tls if tls else None, client_tls) as (raw, client):
        client.disconnect(1000, "bye")
        start = time.monotonic()
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not gone and time.monotonic() < start + 5:
                await raw.send(TEXT, b"still here")
                await raw.send(PING)
                sent += 1
                await asyncio.sleep(0.01)
        await eventually(lambda: gone, timeout=1.0)
        assert 0.25 <= time.monotonic() - start < 1.5
        assert sent >= 2
        assert gone == [client]
        assert heard == []
        assert hub.connections == 0


@pytest.mark.fault(number="E5")
@pytest.mark.alone  # it measures a timeout closely
async def test_a_close_behind_a_backlog_that_is_not_read_ends_at_its_timeout() -> None:
    gone: list[Client] = []
    hub = Hub(small(close_timeout=0.3), authenticate=named)
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        raw, client = await join(hub, "slow", rcvbuf=4096)
        with raw:
            await stall(client)
            client.send("behind it")
            start = time.monotonic()
            client.disconnect()
            await eventually(lambda: gone)
            assert 0.25 <= time.monotonic() - start < 1.5
            assert hub.connections == 0


# --- E6 ---


@pytest.mark.fault(number="E6")
async def test_a_flood_is_not_read_while_an_async_handler_is_behind(any_loop: str) -> None:
    total, size = 20_000, 1_024
    handled: list[int] = []
    go_on = asyncio.Event()
    hub = Hub(HubConfig(max_pending_callbacks=64), authenticate=named)

    @hub.on_message_received
    async def handle(client: Client, message: bytes) -> None:
        if client.id == "flood":
            await go_on.wait()
            handled.append(int(message[:8]))
        else:
            client.send(message)

    async def flood(raw: RawClient) -> None:
        for first in range(0, total, 100):
            await raw.send_raw(
                b"".join(
                    encode(BINARY, f"{number:08d}".encode() + bytes(size - 8))
                    for number in range(first, first + 100)
                )
            )

    async with running(hub):
        raw, client = await join(hub, "flood")
        other, _ = await join(hub, "other")
        with raw, other:
            sending = asyncio.ensure_future(flood(raw))
            await eventually(lambda: hub.get_stats().messages_in > 64)
            # Meanwhile everybody else is served, twenty round trips long.
            for number in range(20):
                await other.send(BINARY, b"%d" % number)
                assert (await other.recv()).payload == b"%d" % number
            # One is under way, and one is beyond the bound.
            assert hub.get_stats().messages_in - 20 == 64 + 2
            assert not sending.done()
            assert handled == []

            go_on.set()
            await sending
            await eventually(lambda: len(handled) == total)
            assert handled == list(range(total))
            assert client.is_connected()


@pytest.mark.fault(number="E6")
async def test_the_queue_stays_bounded_all_through_a_flood(any_loop: str) -> None:
    total, size = 60_000, 128
    handled = most = 0
    hub = Hub(HubConfig(max_pending_callbacks=64), authenticate=named)

    @hub.on_message_received
    async def handle(client: Client, message: bytes) -> None:
        nonlocal handled, most
        await asyncio.sleep(0)
        handled += 1
        most = max(most, hub.get_stats().messages_in - handled)

    async with running(hub):
        raw, _ = await join(hub, "flood")
        with raw:
            block = encode(BINARY, bytes(size)) * 1_000
            for _ in range(total // 1_000):
                await raw.send_raw(block)
            await eventually(lambda: handled == total, timeout=60.0)
    assert most == 64 + 1


@pytest.mark.fault(number="E6")
async def test_a_client_that_the_hub_does_not_read_is_not_silent() -> None:
    # The hub pauses: that nothing arrives meanwhile is no sign of a dead client.
    go_on = asyncio.Event()
    handled: list[str | bytes] = []
    hub = Hub(HubConfig(max_pending_callbacks=1, **HEARTBEAT), authenticate=named)

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        await go_on.wait()
        handled.append(message)

    async with running(hub):
        raw, client = await join(hub, "talker")
        with raw:
            for number in range(100):
                await raw.send(TEXT, b"%3d" % number + bytes(1000))
            await eventually(lambda: hub.get_stats().messages_in > 1)
            await asyncio.sleep(1.4)  # longer than the timeout and a sweep
            assert client.is_connected()
            go_on.set()
            await eventually(lambda: len(handled) == 100)
            assert hub.get_stats().heartbeat_timeouts == 0


# --- E8 ---

SILENT_PEER = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(sys.stdin.buffer.read())
while data := sock.recv(4096):
    if data.endswith(b"ready"):
        print("ready", flush=True)
"""


@pytest.mark.fault(number="E8")
@pytest.mark.alone  # it measures a timeout closely
async def test_a_stopped_process_is_gone_within_interval_and_timeout() -> None:
    gone: list[Client] = []
    hub = Hub(HubConfig(**HEARTBEAT, close_timeout=0.1), authenticate=named)
    hub.on_client_disconnected(gone.append)
    hub.on_client_connected(lambda client: client.send("ready"))
    async with running(hub):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SILENT_PEER,
            str(hub.port),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(RawClient.request(hub, "/ws?id=stopped"))
            process.stdin.close()
            assert await process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await eventually(lambda: gone)
            took = time.monotonic() - stopped
            # Interval, timeout, a sweep and the closing handshake; a second for a busy machine.
            assert took < 0.2 + 0.7 + 0.04 + 0.1 + 1.0
            assert hub.get_stats().heartbeat_timeouts == 1
            assert hub.connections == 0
        finally:
            process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]


async def answer_pings(raw: RawClient) -> None:
    """Does as a living client does, until something else comes."""
    while (frame := await raw.recv()).opcode == PING:
        await raw.send(PONG, frame.payload)


@pytest.mark.fault(number="E8")
async def test_silence_is_closed_and_any_frame_is_life(any_loop: str) -> None:
    gone: list[str] = []
    hub = Hub(HubConfig(**HEARTBEAT, close_timeout=0.1), authenticate=named)
    hub.on_client_disconnected(lambda client: gone.append(client.id))

    async with running(hub):
        silent, _ = await join(hub, "silent")
        living, client = await join(hub, "living")
        with silent, living:
            answering = asyncio.ensure_future(answer_pings(living))
            await eventually(lambda: gone == ["silent"])
            frames = await silent.recv_rest()
            assert frames[0].opcode == PING
            assert frames[-1].code == 1001
            # For a further timeout and more the living one stays.
            async for _ in pace(0.05, 1.2):
                assert client.is_connected()
            answering.cancel()
        assert hub.get_stats().heartbeat_timeouts == 1


@pytest.mark.fault(number="E8")
async def test_a_loop_that_stood_still_gives_its_clients_time_to_answer(any_loop: str) -> None:
    gone: list[str] = []
    hub = Hub(HubConfig(**HEARTBEAT, close_timeout=0.1), authenticate=named)
    hub.on_client_disconnected(lambda client: gone.append(client.id))

    async with running(hub):
        living, client = await join(hub, "living")
        silent, _ = await join(hub, "silent")
        with living, silent:
            answering = asyncio.ensure_future(answer_pings(living))
            await raw_turns()
            # A callback that blocks, or a process that is stopped for a while: nobody was asked.
            time.sleep(2 * HEARTBEAT["heartbeat_timeout"])  # noqa: ASYNC251
            # A client that does not answer goes all the same, and the timeout is as before.
            await eventually(lambda: gone == ["silent"])
            assert client.is_connected()
            await eventually(
                lambda: hub._engine.heartbeat_timeout == HEARTBEAT["heartbeat_timeout"]
            )
            answering.cancel()
        assert hub.get_stats().heartbeat_timeouts == 1


async def raw_turns() -> None:
    """A few turns of the loop: work that was just begun waits for something by then."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.fault(number="E8")
async def test_a_stalled_outbox_does_not_keep_a_dead_peer() -> None:
    hub = Hub(small(**HEARTBEAT, close_timeout=0.1), authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "dead", rcvbuf=4096)
        with raw:
            await stall(client)
            for number in range(50):
                with contextlib.suppress(QueueFullError):
                    client.send(f"{number}")
            await eventually(lambda: hub.connections == 0, timeout=4.0)
            assert hub.get_stats().heartbeat_timeouts == 1


# --- E9 ---


@pytest.mark.fault(number="E9")
async def test_pings_of_clients_that_came_together_are_spread() -> None:
    count, interval = 200, 1.0
    hub = Hub(HubConfig(heartbeat_interval=interval, heartbeat_timeout=10.0), authenticate=named)
    async with running(hub):
        raws = [(await join(hub, f"{number}"))[0] for number in range(count)]
        # All of them are silent since the same moment.
        for raw in raws:
            await raw.send(TEXT, b"now")
        await eventually(lambda: hub.get_stats().messages_in == count)

        async def pinged(raw: RawClient) -> float:
            assert (await raw.recv()).opcode == PING
            return time.monotonic()

        times = sorted(await asyncio.gather(*map(pinged, raws)))
        # Spread over a sweep, a fifth of the interval. A busy machine only stretches it.
        quarters = statistics.quantiles(times, n=4)
        assert quarters[2] - quarters[0] > interval / 5 / 4
        assert times[-1] - times[0] > interval / 5 / 2
        for raw in raws:
            raw.close()
