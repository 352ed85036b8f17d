"""The nine invariants of the design ("What must always hold"), each by its number."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter

import pytest

from tests.oracle import Oracle
from tests.support import BOUNDLESS, TLS, crowd, known, named, stall, traced, unless_lost
from wsc_fast import Client, Hub, HubConfig, HubStoppedError, SendError, WSCError
from wsc_fast.testing import CLOSE, PING, PONG, TEXT, RawClient, TLSClient, eventually, running

# Broadcasts through batches, however few the clients, and without.
pytestmark = pytest.mark.usefixtures("either_way")

# --- 1. A payload is framed once per call, however many receive it ---


@TLS
async def test_invariant_1_a_payload_is_framed_once(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    count = 20 if tls else 100
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, count, contexts, rcvbuf=4096) as raws:
        hub.create_room("room")
        for name in raws:
            hub.join_room(name, "room")
            await stall(known(hub, name))
        payload = bytes(1 << 20)
        hub.reset_stats()
        with traced() as memory:
            before, _ = memory()
            assert hub.broadcast(payload) == count
            assert hub.broadcast_to_room("room", payload) == count
            after, peak = memory()
        # Two frames of 1 MiB in all, not one for each client.
        assert 2 << 20 <= after - before < 5 << 19
        assert peak - before < 5 << 19
        stats = hub.get_stats()
        assert (stats.messages_out, stats.deliveries) == (2, 2 * count)
        assert stats.queued_bytes == 2 * count * (len(payload) + 10)
        for raw in raws.values():
            raw.reset()


# --- 2. One send call per client and tick, however many messages wait ---


@TLS
async def test_invariant_2_one_send_per_client_and_tick(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # A budget that no busy machine can spend: a flush in slices would count as several.
    hub = Hub(HubConfig(flush_budget=60.0), authenticate=named)
    async with crowd(hub, 20, (server_tls, client_tls) if tls else None) as raws:
        hub.create_room("room")
        hub.join_room("c0", "room")
        hub.reset_stats()
        for tick in range(3):
            for number in range(50):
                hub.broadcast(f"{tick} {number}")
                hub.broadcast_to_room("room", "room")
                hub.send_to_client("c1", "direct")
            # A mix of sequences: c0 and c1 have more waiting than the others.
            assert hub.get_stats().queued_messages == 50 * 22
            await eventually(lambda: hub.get_stats().queued_messages == 0)
        stats = hub.get_stats()
        assert (stats.flushes, stats.send_calls) == (3, 3 * 20)
        assert stats.frames_sent == stats.deliveries == 3 * 50 * 22
        assert stats.partial_sends == 0
        for name, raw in raws.items():
            for _ in range(3 * (100 if name in ("c0", "c1") else 50)):
                assert (await raw.recv()).opcode == TEXT


async def test_invariant_2_a_long_backlog_goes_out_in_few_large_sends() -> None:
    hub = Hub(HubConfig(**BOUNDLESS), authenticate=named)
    async with crowd(hub, 1) as raws:
        hub.reset_stats()
        for _ in range(10_000):
            hub.broadcast(b"x" * 20)
        for _ in range(10_000):
            assert len((await raws["c0"].recv()).payload) == 20
        # One send takes at most 256 pieces.
        assert hub.get_stats().send_calls <= 10_000 // 256 + 5


async def test_invariant_2_a_callback_per_message_still_means_one_send() -> None:
    hub = Hub(authenticate=named)
    hub.on_message_received(lambda client, message: client.send(message))
    async with crowd(hub, 1) as raws:
        hub.reset_stats()
        block = b"".join(b"\x81\x84\0\0\0\0%04d" % number for number in range(100))
        await raws["c0"].send_raw(block)
        got = [(await raws["c0"].recv()).payload for _ in range(100)]
        assert got == [b"%04d" % number for number in range(100)]
        # One for each read that the hub needed; they may come in more than one segment.
        assert hub.get_stats().send_calls <= 3


# --- 3. The GIL is released once per flush ---


async def test_invariant_3_the_gil_is_released_once_per_flush() -> None:
    hub = Hub(HubConfig(flush_budget=60.0), authenticate=named)
    interval = sys.getswitchinterval()
    halt = threading.Event()

    def be_busy() -> None:
        while not halt.is_set():
            pass

    async with crowd(hub, 150) as raws:
        hub.broadcast("warm")
        for raw in raws.values():
            await raw.recv()
        hub.reset_stats()
        thread = threading.Thread(target=be_busy, daemon=True)
        sys.setswitchinterval(0.02)
        try:
            thread.start()
            hub.broadcast("while another thread wants the interpreter")
            await eventually(lambda: hub.get_stats().frames_sent == 150)
        finally:
            halt.set()
            sys.setswitchinterval(interval)
            thread.join()
        stats = hub.get_stats()
        assert stats.flushes == 1
        # Each release costs up to 20 ms here: 150 of them would take three seconds.
        assert stats.longest_flush < 0.5


# --- 4. Order ---


@TLS
@pytest.mark.parametrize("seed", range(3))
async def test_invariant_4_order_across_direct_room_and_broadcast(
    any_loop: str, seed: int, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, 12, contexts, rcvbuf=4096) as raws:
        sizes = [12, 60, 125, 126, 700, 4_000, 20_000, 70_000]
        await Oracle(hub, raws, ("invariant 4", seed, tls), sizes).run(300)
        stats = hub.get_stats()
        assert tls or stats.partial_sends > 10, "nothing was ever sent in part"


@pytest.mark.parametrize("seed", range(3))
async def test_invariant_4_order_with_clients_that_leave(any_loop: str, seed: int) -> None:
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    async with crowd(hub, 40, rcvbuf=4096) as raws:
        await Oracle(hub, raws, ("invariant 4 leaving", seed), [12, 300, 5_000], leaving=True).run(
            300
        )


async def test_invariant_4_order_with_frames_larger_than_one_send(any_loop: str) -> None:
    hub = Hub(HubConfig(**BOUNDLESS), authenticate=named)
    async with crowd(hub, 4) as raws:
        await Oracle(hub, raws, "invariant 4 large", [12, 65_530, 300_000, 1_500_000]).run(40)


# --- 5. An outbox is bounded, and stalled clients share frames ---


async def test_invariant_5_stalled_clients_share_their_backlog() -> None:
    count = 300
    hub = Hub(HubConfig(write_buffer_size=4096, overflow="drop_oldest"), authenticate=named)
    async with crowd(hub, count, rcvbuf=4096) as raws:
        for name in raws:
            await stall(known(hub, name))
        with traced() as memory:
            before, _ = memory()
            for number in range(3_000):
                hub.broadcast(f"{number:1020d}")
                if number % 100 == 0:
                    await asyncio.sleep(0)
            after, _ = memory()
        for name in raws:
            client = known(hub, name)
            assert client.queued_messages == 1_024
            assert client.queued_bytes == 1 << 20
        # 1 MB of frames, and 16 bytes for each entry of each client: 6 MB for a 300 MB backlog.
        assert after - before < 8 << 20, f"{after - before:,} bytes"
        assert hub.get_stats().dropped["drop_oldest"] == count * (3_000 - 1_024)
        for raw in raws.values():
            raw.reset()


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
@TLS
async def test_invariant_5_no_outbox_passes_its_bounds(
    any_loop: str,
    tls: bool,
    overflow: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    draw = random.Random(5)
    hub = Hub(
        HubConfig(
            write_buffer_size=4096,
            overflow=overflow,  # type: ignore[arg-type]
            outbox_messages=50,
            outbox_bytes=20_000,
            close_timeout=0.2,
        ),
        authenticate=named,
    )
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, 10, contexts, rcvbuf=4096) as raws:
        clients = [known(hub, name) for name in raws]
        for _ in range(1_500):
            message = bytes(draw.choice([1, 100, 5_000]))
            if draw.random() < 0.5:
                hub.broadcast(message)
            else:
                with contextlib.suppress(SendError):
                    draw.choice(clients).send(message)
            for client in clients:
                assert client.queued_messages <= 50
                assert client.queued_bytes <= 20_000
            if draw.random() < 0.2:
                await asyncio.sleep(0)
        assert sum(client.dropped_messages for client in clients) > 0
        for raw in raws.values():
            raw.reset()


# --- 6. Nobody delays anybody else ---


async def test_invariant_6_stalled_dead_and_hostile_clients_delay_nobody(any_loop: str) -> None:
    hub = Hub(
        HubConfig(write_buffer_size=4096, outbox_messages=8, close_timeout=0.1), authenticate=named
    )
    hub.on_message_received(lambda client, message: client.send(message))
    async with crowd(hub, 60, rcvbuf=4096) as raws:
        for number in range(20):
            await stall(known(hub, f"c{number}"))  # never reads again
        for number in range(20, 30):
            raws[f"c{number}"].reset()
        for number in range(30, 40):
            await raws[f"c{number}"].send_raw(b"\x83\x80\0\0\0\0" * 50)  # no WebSocket
        for number in range(40, 50):
            await raws[f"c{number}"].send_raw(b"\x82\xff\0\0\0\0\0\x0f\xff\xff")  # half a head
        live = [raws[f"c{number}"] for number in range(50, 60)]
        waits = []
        for number in range(200):
            start = time.monotonic()
            hub.broadcast(b"%d" % number)
            for raw in live:
                assert (await raw.recv()).payload == b"%d" % number
            waits.append(time.monotonic() - start)
            await live[number % 10].send(TEXT, b"echo")
            assert (await live[number % 10].recv()).payload == b"echo"
        waits.sort()
        # A machine that is busy otherwise may stretch a few, no fault of a client may all.
        assert waits[len(waits) // 2] < 0.05
        # The stalled ones, and those that sent half a head and do not read either.
        assert 20 <= hub.get_stats().slow_consumer_disconnects <= 30
        assert all(known(hub, f"c{number}").is_connected() for number in range(50, 60))


async def test_invariant_6_a_long_flush_yields_to_pings_reads_and_timers(any_loop: str) -> None:
    hub = Hub(HubConfig(flush_budget=1e-9), authenticate=named)
    order: list[str] = []
    hub.on_message_received(lambda client, message: order.append("read"))
    async with crowd(hub, 200) as raws:
        loop = asyncio.get_running_loop()
        hub.reset_stats()
        # The loop does this between two slices of the flush of 200 sends.
        sent: list[int] = []

        def turn() -> None:
            sent.append(hub.get_stats().frames_sent)
            if sent[-1] < 200:
                loop.call_soon(turn)

        await raws["c0"].send(TEXT, b"read me in between")
        await raws["c1"].send(PING, b"and me")
        hub.broadcast("to all")
        loop.call_soon(turn)
        loop.call_later(0, order.append, "timer")
        await eventually(lambda: sent and sent[-1] >= 200)
        await eventually(lambda: sorted(order) == ["read", "timer"])
        steps = [after - before for before, after in itertools.pairwise(sent)]
        assert max(steps) <= 16 * 2
        assert hub.get_stats().flushes >= 200 // 16
        for raw in raws.values():
            opcodes = {(await raw.recv()).opcode}
            if raw is raws["c1"]:
                opcodes.add((await raw.recv()).opcode)
                assert opcodes == {TEXT, PONG}


# --- 7. A callback may do anything ---


@pytest.mark.parametrize("seed", range(4))
async def test_invariant_7_callbacks_may_do_anything(any_loop: str, seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    hub = Hub(
        HubConfig(write_buffer_size=4096, outbox_messages=100, close_timeout=0.1),
        authenticate=named,
    )
    connected: Counter[int] = Counter()
    disconnected: Counter[int] = Counter()
    kept: list[Client] = []  # used long after they have gone
    reported: list[BaseException] = []
    planned = 0

    def somebody() -> str:
        return f"c{draw.randrange(30)}"

    def anything(client: Client, message: object = None) -> None:
        nonlocal planned
        for _ in range(draw.randint(1, 4)):
            room = f"room {draw.randrange(4)}"
            other = hub.get_client_by_id(somebody()) or draw.choice([*kept, client])
            try:
                match draw.randrange(12):
                    case 0:
                        hub.broadcast(bytes(draw.choice([5, 9_000])), exclude=[somebody()])
                    case 1:
                        hub.broadcast_to_room(room, "room")
                    case 2:
                        other.send("direct")
                    case 3:
                        client.send("back")
                    case 4:
                        hub.join_room(other.id, room)
                    case 5:
                        hub.leave_room(other.id, room)
                    case 6:
                        hub.create_room(room)
                    case 7:
                        hub.delete_room(room)
                    case 8 if draw.random() < 0.15:
                        other.disconnect(4000)
                    case 9 if draw.random() < 0.15:
                        client.disconnect(4000)
                    case 10 if draw.random() < 0.05 and other.conn is not None:
                        other.conn.disconnect(False)
                    case 11 if draw.random() < 0.2:
                        planned += 1
                        raise KeyError("planned")
            except WSCError:
                pass  # no such room, gone, full: each of them a documented answer

    def on_connected(client: Client) -> None:
        connected[id(client)] += 1
        kept.append(client)
        with contextlib.suppress(KeyError):
            anything(client)

    def on_disconnected(client: Client) -> None:
        disconnected[id(client)] += 1
        anything(client)

    async def on_message_later(client: Client, message: object) -> None:
        await asyncio.sleep(0)
        anything(client)

    hub.on_client_connected(on_connected)
    hub.on_client_disconnected(on_disconnected)
    hub.on_message_received(anything)
    hub.on_message_received(on_message_later)
    hub.on_error(unless_lost(lambda client, error: reported.append(error)))

    async def visit(name: str) -> None:
        for _ in range(6):
            with (
                contextlib.suppress(ConnectionError),
                await RawClient.open(hub, f"/ws?id={name}", rcvbuf=4096) as raw,
            ):
                for _ in range(12):
                    await raw.send(TEXT, b"go")
                    if draw.random() < 0.5:
                        await raw.recv(0.2)
            await asyncio.sleep(0)

    async def visit_patiently(name: str) -> None:
        # A visitor that waits for a message that nobody happens to send goes on after a while.
        with contextlib.suppress(TimeoutError):
            await visit(name)

    async with running(hub):
        await asyncio.gather(*(visit_patiently(f"c{number}") for number in range(30)))
        await eventually(lambda: hub.connections == 0)
        await eventually(lambda: not hub._parts.tasks)
        assert hub.get_connected_client_ids() == []
        for room in hub.get_rooms():
            assert hub.get_room_clients(room) == []
    assert set(connected.values()) == {1}
    assert disconnected == connected
    assert Counter(map(repr, reported)) == Counter({repr(KeyError("planned")): len(reported)})
    assert len(reported) <= planned
    for client in kept:
        assert not client.is_connected()
        assert (client.queued_messages, client.queued_bytes) == (0, 0)
        repr(client)


async def test_invariant_7_a_message_callback_may_stop_the_hub_in_mid_broadcast(
    any_loop: str,
) -> None:
    hub = Hub(authenticate=named)
    stopping: list[asyncio.Task[None]] = []

    @hub.on_message_received
    def stop(client: Client, message: str) -> None:
        hub.broadcast("before")
        stopping.append(asyncio.ensure_future(hub.stop(1.0)))
        stopping.append(asyncio.ensure_future(hub.stop(1.0)))
        hub.broadcast("after")
        raise KeyError("and raise on top")

    async with crowd(hub, 20) as raws:
        await raws["c7"].send(TEXT, b"go")
        for raw in raws.values():
            assert (await raw.recv()).payload == b"before"
            assert (await raw.recv()).payload == b"after"
            close = await raw.recv()
            assert close.code == 1001
            await raw.send(CLOSE, close.payload)
            assert await raw.recv_rest() == []
        await asyncio.gather(*stopping)
        assert hub.loop is None
        with pytest.raises(HubStoppedError):
            hub.broadcast("to nobody")


# --- 8. Nothing is retained for a client that has gone ---


@TLS
async def test_invariant_8_nothing_is_retained_for_a_client_that_has_gone(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # The 10,000 connections are in test_faults_fanout.py (F20). Here each has a backlog, rooms,
    # data and a key.
    hub = Hub(HubConfig(write_buffer_size=4096, close_timeout=0.1, **BOUNDLESS), authenticate=named)
    hub.on_message_received(lambda client, message: None)

    def left() -> Counter[str]:
        kinds = ("Client", "Guard", "Handshake", "WSTransport", "MemberSet", "Inbox")
        return Counter(
            name for name in (type(value).__name__ for value in gc.get_objects()) if name in kinds
        )

    async with running(hub, ssl=server_tls if tls else None):
        hub.create_room("room")

        async def come_and_go(turn: int) -> None:
            raws = []
            for number in range(20):
                path = f"/ws?id={turn}-{number}&user=user{number % 3}"
                raws.append(
                    await TLSClient.open_tls(hub, client_tls, path, rcvbuf=4096)
                    if tls
                    else await RawClient.open(hub, path, rcvbuf=4096)
                )
            for client in map(hub.get_client_by_id, hub.get_connected_client_ids()):
                assert client is not None
                hub.join_room(client.id, "room")
                client.set_user_data("blob", bytes(1000))
                client.send(bytes(400_000))
            for number in range(50):
                hub.broadcast(bytes(5_000))
                hub.broadcast(b"latest", key=f"key {number}")
                await asyncio.sleep(0)
            for number, raw in enumerate(raws):
                if number % 2:
                    known(hub, f"{turn}-{number}").disconnect()
                raw.reset()
            await eventually(lambda: hub.connections == 0)

        # Objects of earlier tests may be collected at any time, so the bound is from above.
        gc.collect()
        descriptors = len(os.listdir("/proc/self/fd"))
        await come_and_go(0)
        gc.collect()
        await eventually(lambda: not left())
        gc.disable()
        try:
            with traced() as memory:
                await come_and_go(1)
                before, _ = memory()
                for turn in range(2, 6):
                    await come_and_go(turn)
                after, _ = memory()
            # asyncio's TLS has cycles of its own, which only the collector can undo.
            if tls:
                gc.collect()
            await eventually(lambda: not left())
        finally:
            gc.enable()
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
        if not tls:
            assert after - before < 1 << 20, f"{after - before:,} bytes"
        assert hub.get_room_clients("room") == []
        assert hub.get_all_connected_users() == []
        assert hub.get_clients_by_user("user0") == []


# --- 9. Nothing is dropped in silence ---


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
@pytest.mark.parametrize("seed", range(3))
async def test_invariant_9_every_drop_is_counted(any_loop: str, overflow: str, seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(f"{seed} {overflow}")
    hub = Hub(
        HubConfig(
            write_buffer_size=4096,
            overflow=overflow,  # type: ignore[arg-type]
            outbox_messages=20,
            close_timeout=20.0,
        ),
        authenticate=named,
    )
    async with crowd(hub, 20, rcvbuf=4096) as raws:
        clients = {name: known(hub, name) for name in raws}
        attempts: Counter[str] = Counter()
        got: Counter[str] = Counter()
        refused = 0
        gates = {name: asyncio.Event() for name in raws}

        async def read(name: str) -> None:
            raw = raws[name]
            while (frame := await raw.recv(20.0)).opcode != CLOSE:
                got[name] += 1
                await gates[name].wait()
            await raw.send(CLOSE, frame.payload)

        readers = [asyncio.ensure_future(read(name)) for name in raws]
        for _ in range(500):
            message = bytes(draw.choice([10, 2_000, 40_000]))
            open_ones = [name for name in raws if clients[name].is_connected()]
            if not open_ones:
                break
            if draw.random() < 0.4:
                hub.broadcast(message)
                attempts.update(open_ones)
            else:
                name = draw.choice(open_ones)
                try:
                    clients[name].send(message)
                except SendError:
                    refused += 1
                else:
                    attempts[name] += 1
            if draw.random() < 0.1:
                gate = gates[draw.choice(list(raws))]
                gate.clear() if gate.is_set() else gate.set()
            if draw.random() < 0.01:
                clients[draw.choice(open_ones)].disconnect()
            if draw.random() < 0.5:
                await asyncio.sleep(0)
        for name in raws:
            clients[name].disconnect()
            gates[name].set()
        await asyncio.gather(*readers)
        stats = hub.get_stats()
        assert stats.refused == refused
        for name in raws:
            assert attempts[name] == got[name] + clients[name].dropped_messages, name
        dropped = sum(client.dropped_messages for client in clients.values())
        assert dropped == sum(stats.dropped.values())
        assert sum(got.values()) + dropped == sum(attempts.values())
        assert dropped > 0, "nothing was dropped: the test is too gentle"


@pytest.mark.parametrize("stalled", [False, True], ids=["idle", "stalled"])
async def test_invariant_9_what_a_half_closed_peer_does_not_get_is_counted(
    any_loop: str, stalled: bool
) -> None:
    # It sends FIN, as `nc -N` does, and reads on.
    hub = Hub(HubConfig(write_buffer_size=4096, close_timeout=1.0), authenticate=named)

    @hub.on_message_received
    def answer(client: Client, message: str) -> None:
        for number in range(20):
            client.send(f"answer {number} " * 300)

    async with crowd(hub, 1, rcvbuf=4096) as raws:
        raw, client = raws["c0"], known(hub, "c0")
        fillers = await stall(client, 300_000) if stalled else 0
        await raw.send(TEXT, b"question")
        raw.sock.shutdown(socket.SHUT_WR)
        if stalled:
            await eventually(lambda: not client.is_connected())
        frames = await raw.recv_rest()  # asserts that no frame is torn
        await eventually(lambda: hub.connections == 0)
        received = sum(frame.opcode == TEXT for frame in frames)
        assert received + client.dropped_messages == 20
        assert sum(hub.get_stats().dropped.values()) == client.dropped_messages
        assert sum(frame.opcode == 2 for frame in frames) == fillers
