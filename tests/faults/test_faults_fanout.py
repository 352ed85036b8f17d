"""Faults of fan-out, callbacks, memory and threads (README.md, section F)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.oracle import Oracle
from tests.support import BOUNDLESS, TLS, crowd, join, known, named, stall, traced, unless_lost
from wsc_fast import (
    Client,
    ClientDisconnectedError,
    ClientNotFoundError,
    Hub,
    HubConfig,
    HubStateError,
    LimitError,
    LoopBusyError,
    RoomExistsError,
    RoomNotFoundError,
    ValidationError,
    WSCError,
)
from wsc_fast.testing import CLOSE, TEXT, Frame, RawClient, encode, eventually, running

# Broadcasts through batches, however few the clients, and without.
pytestmark = pytest.mark.usefixtures("either_way")


async def texts(raw: RawClient, end: bytes = b"end") -> list[str]:
    """All messages up to a message `end`, or up to the close frame, as text."""
    got = []
    while (frame := await raw.recv()).payload != end:
        if frame.opcode == CLOSE:
            got.append(f"close {frame.code}")
            break
        got.append(frame.payload.decode())
    return got


async def all_texts(hub: Hub, raws: dict[str, RawClient]) -> dict[str, list[str]]:
    hub.broadcast("end")
    return {name: await texts(raw) for name, raw in raws.items()}


# --- F1 ---


@pytest.mark.fault(number="F1")
@pytest.mark.parametrize("ending", ["abort", "reset"])
@pytest.mark.parametrize("queued", ["before", "after"])
@pytest.mark.parametrize("budget", [0.005, 1e-9])
async def test_nothing_is_written_to_a_reused_descriptor(
    any_loop: str, ending: str, queued: str, budget: float
) -> None:
    hub = Hub(HubConfig(flush_budget=budget), authenticate=named)
    pairs: list[tuple[socket.socket, socket.socket]] = []
    async with crowd(hub, 40) as raws:
        victim = known(hub, "c39")
        assert victim.conn is not None
        number = victim.conn.underlying_transport.get_extra_info("socket").fileno()

        def take_its_number() -> bool:
            pairs.append(socket.socketpair())
            return number in {end.fileno() for pair in pairs for end in pair}

        if queued == "before":
            for _ in range(3):
                hub.broadcast(b"secret of c39" * 50)
        if ending == "abort":
            victim.conn.disconnect(False)
        else:
            raws["c39"].reset()
        if queued == "after":
            for _ in range(3):
                hub.broadcast(b"secret of c39" * 50)
        # Each turn of the loop takes whatever numbers are free, until the victim's is among them.
        deadline = time.monotonic() + 5
        while not take_its_number():
            assert time.monotonic() < deadline
            if len(pairs) > 8:
                for end in pairs.pop(0):
                    end.close()
            hub.broadcast(b"more")
            await asyncio.sleep(0)
        for _ in range(20):
            hub.broadcast(b"more")
            await asyncio.sleep(0)
        ends = [end for pair in pairs for end in pair]
        for end in ends:
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(1)
        for end in ends:
            end.close()
        hub.broadcast(b"end")
        for name in list(raws)[:-1]:
            assert (await texts(raws[name]))[:3] == ["secret of c39" * 50] * 3


# --- F2 ---


@pytest.mark.fault(number="F2")
@TLS
async def test_no_message_overtakes_bytes_that_the_transport_still_holds(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, 1, contexts, rcvbuf=4096) as raws:
        raw, client = raws["c0"], known(hub, "c0")
        sent: list[bytes] = []
        got: list[bytes] = []
        partial = 0
        for number in range(150):
            # Alternately more than the kernel takes, and something that would fit by itself.
            for size in (30_000, 10):
                sent.append((b"%06d" % number) * (size // 6))
                hub.broadcast(sent[-1]) if number % 2 else client.send(sent[-1])
            await asyncio.sleep(0)
            assert client.conn is not None
            partial += client.conn.underlying_transport.get_write_buffer_size() > 0
            # Read one frame: the transport gets room for some of what it holds.
            got.append((await raw.recv()).payload)
        while len(got) < len(sent):
            got.append((await raw.recv()).payload)
        assert got == sent
        assert partial > 10, "the transport was never behind"


# --- F3 ---


@pytest.mark.fault(number="F3")
@pytest.mark.parametrize("seed", range(4))
async def test_shared_plans_give_nobody_the_bytes_of_another(any_loop: str, seed: int) -> None:
    # Frames of one length, freed and made all the time, so that addresses are used again.
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    async with crowd(hub, 50, rcvbuf=4096) as raws:
        await Oracle(hub, raws, ("F3", seed), [600]).run(500)


# --- F4 ---


@pytest.mark.fault(number="F4")
async def test_over_tls_everything_is_encrypted_and_in_order(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 3, (server_tls, client_tls)) as raws:
        sent = []
        for number in range(60):
            # A plain byte on the descriptor would end the TLS stream with WRONG_VERSION_NUMBER.
            for size in (20_000, 20):
                sent.append((b"%010d" % number) * (size // 10))
                hub.broadcast(sent[-1])
            if number % 3 == 0:
                await asyncio.sleep(0)
        for raw in raws.values():
            assert [(await raw.recv()).payload for _ in sent] == sent


# --- F5 ---


@pytest.mark.fault(number="F5")
@pytest.mark.parametrize("seed", range(3))
async def test_resets_during_broadcasts_hurt_nobody_else(any_loop: str, seed: int) -> None:
    print(f"seed {seed}")
    draw = random.Random(seed)
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    gone: list[str] = []
    hub.on_client_disconnected(lambda client: gone.append(client.id))
    async with crowd(hub, 120, rcvbuf=4096) as raws:
        victims = draw.sample(sorted(raws), 60)
        resetting = list(victims)
        sent = []
        for number in range(60):
            sent.append(b"%06d" % number * draw.choice([1, 100, 3_000]))
            hub.broadcast(sent[-1])
            # In the middle of a tick, right behind it, or a turn later.
            for _ in range(draw.randint(0, 3)):
                if resetting:
                    raws[resetting.pop()].reset()
            if draw.random() < 0.5:
                await asyncio.sleep(0)
        while resetting:
            raws[resetting.pop()].reset()

        async def read(raw: RawClient) -> list[bytes]:
            return [(await raw.recv()).payload for _ in sent]

        for got in await asyncio.gather(*(read(raws[n]) for n in set(raws) - set(victims))):
            assert got == sent
        await eventually(lambda: len(gone) == 60)
        assert sorted(gone) == sorted(victims)
        assert hub.connections == 60


# --- F6 ---


@pytest.mark.fault(number="F6")
async def test_members_that_change_in_a_callback_are_neither_skipped_nor_doubled(
    any_loop: str,
) -> None:
    hub = Hub(authenticate=named)

    @hub.on_message_received
    def change(client: Client, message: str) -> None:
        assert hub.broadcast_to_room("room", "1") == 8
        known(hub, "c1").disconnect(4001)  # an earlier member
        known(hub, "c6").disconnect(4006)  # a later one
        client.disconnect(4003)  # itself
        hub.leave_room("c2", "room")
        hub.join_room("c8", "room")
        hub.join_room("c8", "room")
        assert hub.broadcast_to_room("room", "2") == 5
        hub.delete_room("room")
        with pytest.raises(RoomNotFoundError):
            hub.broadcast_to_room("room", "3")
        hub.create_room("room")
        hub.join_room("c0", "room")
        assert hub.broadcast_to_room("room", "4") == 1
        assert hub.broadcast("5") == 7

    async with crowd(hub, 10) as raws:
        hub.create_room("room")
        for number in range(8):
            hub.join_room(f"c{number}", "room")
        await raws["c3"].send(TEXT, b"go")
        assert [await texts(raws[f"c{number}"], b"5") for number in range(10)] == [
            ["1", "2", "4"],
            ["1", "close 4001"],
            ["1"],
            ["1", "close 4003"],
            ["1", "2"],
            ["1", "2"],
            ["1", "close 4006"],
            ["1", "2"],
            ["2"],
            [],
        ]
        assert hub.get_stats().callback_errors == 0


@pytest.mark.fault(number="F6")
@pytest.mark.parametrize("kind", ["awaited", "task"])
async def test_stopping_in_the_callback_loses_nothing_that_was_queued(
    any_loop: str, kind: str
) -> None:
    hub = Hub(authenticate=named)
    stopping: list[asyncio.Task[None]] = []
    stopped = asyncio.Event()

    @hub.on_message_received
    async def stop(client: Client, message: str) -> None:
        hub.broadcast("last words")
        if kind == "awaited":
            await hub.stop(2.0)
            stopped.set()
        else:
            stopping.append(asyncio.ensure_future(hub.stop(2.0)))
            hub.broadcast("and more")
            stopping[0].add_done_callback(lambda _: stopped.set())

    async with crowd(hub, 10) as raws:
        await raws["c4"].send(TEXT, b"go")
        for raw in raws.values():
            got = await texts(raw)
            assert got[0] == "last words"
            assert got[-1] == "close 1001"
            assert got[1:-1] in ([], ["and more"])
            assert len(got) == (2 if kind == "awaited" else 3)
            raw.close()
        async with asyncio.timeout(5):
            await stopped.wait()
        assert hub.loop is None


# --- F7 ---


@pytest.mark.fault(number="F7")
@pytest.mark.parametrize("then", ["leave", "delete", "disconnect", "leave and join"])
@TLS
async def test_a_message_is_not_lost_to_a_leave_or_close_of_the_same_tick(
    any_loop: str, tls: bool, then: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(authenticate=named)
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, 2, contexts) as raws:
        hub.create_room("room")
        hub.join_room("c0", "room")
        client = known(hub, "c0")
        assert hub.broadcast_to_room("room", "for c0") == 1
        if then.startswith("leave"):
            hub.leave_room("c0", "room")
        elif then == "delete":
            hub.delete_room("room")
        else:
            client.disconnect(4000)
        if then == "leave and join":
            hub.join_room("c0", "room")
        if then != "delete":
            hub.join_room("c1", "room")
        hub.broadcast("end")
        # The later joiner does not get it.
        assert await texts(raws["c1"]) == []
        wanted = ["for c0", "close 4000"] if then == "disconnect" else ["for c0"]
        assert await texts(raws["c0"]) == wanted


# --- F8 ---


@pytest.mark.fault(number="F8")
@pytest.mark.parametrize("how", ["reset", "server"])
async def test_a_cascade_of_disconnects_does_not_recurse(any_loop: str, how: str) -> None:
    hub = Hub(HubConfig(**BOUNDLESS), authenticate=named)
    gone: Counter[str] = Counter()
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))

    @hub.on_client_disconnected
    def left(client: Client) -> None:
        gone[client.id] += 1
        hub.broadcast(f"left {client.id}")

    async with crowd(hub, 300) as raws:
        leaving = [f"c{number}" for number in range(1, 300)]
        if how == "server":
            for name in leaving:
                known(hub, name).disconnect()
        for name in leaving:
            raws[name].reset()
        await eventually(lambda: len(gone) == 299)
        got = (await all_texts(hub, {"c0": raws["c0"]}))["c0"]
        assert sorted(got) == sorted(f"left {name}" for name in leaving)
        assert set(gone.values()) == {1}
        assert errors == []


@pytest.mark.fault(number="F8")
async def test_disconnects_that_each_close_the_next_client_do_not_recurse() -> None:
    hub = Hub(HubConfig(close_timeout=0.05), authenticate=named)
    gone: list[str] = []

    @hub.on_client_disconnected
    def domino(client: Client) -> None:
        gone.append(client.id)
        following = hub.get_client_by_id(f"c{int(client.id[1:]) + 1}")
        if following is not None:
            assert following.conn is not None
            following.conn.disconnect(False)

    async with crowd(hub, 300) as raws:
        raws["c0"].reset()
        await eventually(lambda: len(gone) == 300)
        assert gone == list(raws)


# --- F9 ---


@pytest.mark.fault(number="F9")
async def test_a_broadcast_within_an_eviction_of_a_broadcast_does_not_deadlock() -> None:
    hub = Hub(
        HubConfig(write_buffer_size=4096, outbox_messages=3, close_timeout=0.05), authenticate=named
    )
    gone: list[str] = []

    @hub.on_client_disconnected
    def left(client: Client) -> None:
        gone.append(client.id)
        for _ in range(3):
            hub.broadcast(f"left {client.id}")

    async with crowd(hub, 30, rcvbuf=4096) as raws:
        for number in range(29):
            await stall(known(hub, f"c{number}"))
        for _ in range(3):
            assert hub.broadcast("x") == 30
        # All 29 overflow in one broadcast; the one that reads gets this and everything after it.
        assert hub.broadcast("y") == 0
        assert hub.get_connected_clients() == 0
        assert hub.get_stats().slow_consumer_disconnects == 30
        await eventually(lambda: len(gone) == 30)
        assert sorted(gone) == sorted(raws)


@pytest.mark.fault(number="F9")
async def test_a_callback_that_waits_for_a_thread_that_calls_the_hub_does_not_hang(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(thread_call_timeout=0.2), authenticate=named)
    outcome: list[BaseException | int] = []

    def broadcast() -> None:
        try:
            outcome.append(hub.broadcast("from the thread"))
        except BaseException as error:
            outcome.append(error)

    @hub.on_message_received
    def wait_for_it(client: Client, message: str) -> None:
        thread = threading.Thread(target=broadcast)
        thread.start()
        thread.join(5.0)
        assert not thread.is_alive()

    async with crowd(hub, 1) as raws:
        start = time.monotonic()
        await raws["c0"].send(TEXT, b"go")
        await eventually(lambda: outcome)
        assert time.monotonic() - start < 2.0
        assert isinstance(outcome[0], LoopBusyError)
        assert isinstance(outcome[0], TimeoutError)
        # The call has failed for its caller, so it does not happen later on.
        assert await all_texts(hub, raws) == {"c0": []}


# --- F10 ---


@pytest.mark.fault(number="F10")
@pytest.mark.parametrize("death", ["reset", "close timeout", "answers"])
async def test_the_end_of_a_replaced_connection_leaves_the_new_one_alone(
    any_loop: str, death: str
) -> None:
    hub = Hub(HubConfig(close_timeout=0.1), authenticate=named)
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        hub.create_room("room")
        hub.create_room("old room")
        first, old = await join(hub, "same")
        hub.join_room("same", "room")
        hub.join_room("same", "old room")
        second, new = await join(hub, "same")
        with first, second:
            assert new is not old
            assert not old.is_connected()
            hub.join_room("same", "room")
            assert hub.get_client_rooms("same") == ["room"]
            close = await first.recv()
            assert close.code == 4409
            if death == "reset":
                first.reset()
            elif death == "answers":
                await first.send(CLOSE, close.payload)
            await eventually(lambda: gone == [old])

            assert hub.get_client_by_id("same") is new
            assert hub.get_connected_client_ids() == ["same"]
            assert hub.get_room_clients("room") == ["same"]
            assert hub.get_room_clients("old room") == []
            assert hub.get_clients_by_user("same") == [new]
            assert hub.get_all_connected_users() == ["same"]
            assert hub.get_stats().replaced_clients == 1
            hub.send_to_client("same", "to the new one")
            assert (await second.recv()).payload == b"to the new one"
            with pytest.raises(ClientDisconnectedError):
                old.send("to the old one")


@pytest.mark.fault(number="F10")
async def test_a_user_of_several_clients_survives_the_end_of_one(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        first, second, third = [
            await RawClient.open(hub, f"/ws?id={name}&user=u") for name in ("x", "y", "x")
        ]
        with second, third:
            first.reset()
            await eventually(lambda: gone)
            assert {client.id for client in hub.get_clients_by_user("u")} == {"x", "y"}
            third.reset()
            await eventually(lambda: len(gone) == 2)
            assert [client.id for client in hub.get_clients_by_user("u")] == ["y"]
            second.reset()
            await eventually(lambda: len(gone) == 3)
            assert hub.get_clients_by_user("u") == []
            assert hub.get_all_connected_users() == []


# --- F11 ---


@pytest.mark.fault(number="F11")
async def test_a_client_that_has_gone_joins_no_room(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    outcomes: list[type[BaseException] | None] = []

    def try_to_join(client: Client) -> None:
        for call in (
            lambda: hub.join_room(client.id, "room"),
            lambda: hub.leave_room(client.id, "room"),
            lambda: hub.get_client_rooms(client.id),
            lambda: hub.send_to_client(client.id, "x"),
        ):
            try:
                call()
            except ClientNotFoundError:
                outcomes.append(ClientNotFoundError)
            else:
                outcomes.append(None)
        with pytest.raises(ClientDisconnectedError):
            client.send("x")

    async def later(client: Client) -> None:
        await asyncio.sleep(0.01)
        try_to_join(client)

    hub.on_client_disconnected(try_to_join)
    hub.on_client_disconnected(later)
    async with running(hub):
        hub.create_room("room")
        raw, client = await join(hub, "gone")
        hub.join_room("gone", "room")
        client.disconnect()
        # From the moment that it closes, not only once it has gone.
        try_to_join(client)
        assert hub.get_room_clients("room") == []
        raw.reset()
        await eventually(lambda: len(outcomes) == 12)
        assert outcomes == [ClientNotFoundError] * 12
        assert hub.get_room_clients("room") == []
        assert hub.broadcast_to_room("room", "x") == 0


# --- F12 ---


@pytest.mark.fault(number="F12")
@pytest.mark.parametrize(
    "name",
    ["", "x" * 257, "x" * (1 << 20), "a\0b", "\ud800", "a\nb", "\x7f", "\x85", 5, None, b"bytes"],
    ids=lambda name: ascii(name)[:20],
)
async def test_names_that_cannot_be_used_are_refused(name: Any) -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 1):
        for call in (
            lambda: hub.create_room(name),
            lambda: hub.delete_room(name),
            lambda: hub.join_room("c0", name),
            lambda: hub.leave_room("c0", name),
            lambda: hub.get_room_clients(name),
            lambda: hub.broadcast_to_room(name, "x"),
            lambda: hub.send_to_client(name, "x"),
            lambda: hub.get_client_rooms(name),
        ):
            with pytest.raises(ValueError, match="id"):
                call()
        assert hub.get_rooms() == []


@pytest.mark.fault(number="F12")
@pytest.mark.parametrize("name", [" ", "x" * 256, "größe", "𝄞" * 256, "a/b?c=d", "constructor"])
async def test_unusual_names_that_can_be_used_are_taken(name: str) -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 1):
        hub.create_room(name)
        hub.join_room("c0", name)
        assert hub.get_room_clients(name) == ["c0"]
        assert hub.get_client_rooms("c0") == [name]
        with pytest.raises(RoomExistsError):
            hub.create_room(name)
        hub.delete_room(name)
        assert hub.get_client_rooms("c0") == []


@pytest.mark.fault(number="F12")
async def test_endless_rooms_are_bounded_and_leave_nothing_behind() -> None:
    # Tracing makes one turn of all this, in which the watchdog would read sources to tell of it.
    config = HubConfig(max_rooms=10_000, max_rooms_per_client=1_000, watchdog_timeout=0)
    hub = Hub(config, authenticate=named)
    async with crowd(hub, 2):
        with traced() as memory:
            before, _ = memory()
            for turn in range(2):
                for number in range(10_000):
                    hub.create_room(f"room {turn} {number}")
                with pytest.raises(LimitError):
                    hub.create_room("one more")
                for number in range(1_000):
                    hub.join_room("c0", f"room {turn} {number}")
                with pytest.raises(LimitError):
                    hub.join_room("c0", f"room {turn} 1000")
                hub.join_room("c0", f"room {turn} 17")  # a member already: no new one
                hub.join_room("c1", f"room {turn} 1000")
                assert hub.get_stats().active_rooms == 10_000
                for number in range(10_000):
                    hub.delete_room(f"room {turn} {number}")
                assert hub.get_rooms() == []
                assert hub.get_client_rooms("c0") == []
            # The dict of rooms keeps its table, and all else goes, some of it in the next turn.
            await eventually(lambda: memory()[0] - before < 2 << 20)


# --- F13 ---


@pytest.mark.fault(number="F13")
async def test_joining_and_leaving_are_idempotent(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raws = {
            name: await RawClient.open(hub, f"/ws?id={name}&user={user}")
            for name, user in (("a1", "a"), ("a2", "a"), ("b1", "b"))
        }
        for room in ("one", "two"):
            hub.create_room(room)
            for name in ("a1", "a2"):
                hub.join_room(name, room)
                hub.join_room(name, room)
        assert sorted(hub.get_room_clients("one")) == ["a1", "a2"]
        assert hub.broadcast_to_room("one", "1") == 2
        assert hub.broadcast_to_room("two", "2") == 2
        assert hub.broadcast("3") == 3
        hub.leave_room("a1", "one")
        hub.leave_room("a1", "one")
        hub.leave_room("b1", "one")
        assert hub.broadcast_to_room("one", "4") == 1
        assert hub.broadcast_to_room("two", "5") == 2
        assert {client.id for client in hub.get_clients_by_user("a")} == {"a1", "a2"}
        assert await all_texts(hub, raws) == {
            "a1": ["1", "2", "3", "5"],
            "a2": ["1", "2", "3", "4", "5"],
            "b1": ["3"],
        }
        for raw in raws.values():
            raw.close()


# --- F14 ---


async def by_close_frame(hub: Hub, raw: RawClient) -> None:
    await raw.send(CLOSE, b"\x03\xe8")


async def by_empty_close_frame(hub: Hub, raw: RawClient) -> None:
    await raw.send(CLOSE)


async def by_end_of_stream(hub: Hub, raw: RawClient) -> None:
    raw.close()


async def by_half_close(hub: Hub, raw: RawClient) -> None:
    raw.sock.shutdown(socket.SHUT_WR)


async def by_reset(hub: Hub, raw: RawClient) -> None:
    raw.reset()


async def by_protocol_error(hub: Hub, raw: RawClient) -> None:
    await raw.send(3, b"reserved opcode")


async def by_broken_utf8(hub: Hub, raw: RawClient) -> None:
    await raw.send(TEXT, b"\xff")


async def by_server(hub: Hub, raw: RawClient) -> None:
    known(hub, "c0").disconnect(4000, "bye")


async def by_server_twice(hub: Hub, raw: RawClient) -> None:
    client = known(hub, "c0")
    client.disconnect(4000, "bye")
    client.disconnect(4001, "again")
    await raw.send(CLOSE, b"\x03\xe8")


async def by_transport(hub: Hub, raw: RawClient) -> None:
    client = known(hub, "c0")
    assert client.conn is not None
    client.conn.disconnect(False)


async def by_overflow(hub: Hub, raw: RawClient) -> None:
    client = known(hub, "c0")
    while client.is_connected():
        hub.broadcast(bytes(1 << 20))
        await asyncio.sleep(0)


async def by_overflow_then_reset(hub: Hub, raw: RawClient) -> None:
    await by_overflow(hub, raw)
    raw.reset()


async def by_replacement(hub: Hub, raw: RawClient) -> None:
    other = await RawClient.open(hub, "/ws?id=c0&user=u")
    other.reset()


async def by_silence(hub: Hub, raw: RawClient) -> None:
    hub.set_config(HubConfig(close_timeout=0.1, heartbeat_interval=0.05, heartbeat_timeout=0.1))


async def by_stop(hub: Hub, raw: RawClient) -> None:
    await hub.stop(0.2)


async def by_callback(hub: Hub, raw: RawClient) -> None:
    await raw.send(TEXT, b"disconnect me")
    await raw.send(TEXT, b"not heard any more")


ENDINGS = [value for name, value in globals().items() if name.startswith("by_")]


@pytest.mark.fault(number="F14")
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_each_connect_has_one_disconnect_and_a_clean_state_before_it(
    any_loop: str, kind: str, ending: Callable[[Hub, RawClient], Any]
) -> None:
    hub = Hub(HubConfig(close_timeout=0.1), authenticate=named)
    connected: list[Client] = []
    disconnected: list[Client] = []
    second: list[Client] = []
    errors: list[BaseException] = []

    hub.on_client_connected(connected.append)
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_message_received
    def on_message(client: Client, message: str) -> None:
        client.disconnect(4000)

    def look(client: Client) -> None:
        disconnected.append(client)
        assert not client.is_connected()
        assert hub.get_client_by_id(client.id) is not client
        assert client not in hub.get_clients_by_user(client.user_id)
        assert hub.get_room_clients("room") == []
        raise KeyError("the application's own bug")

    async def look_later(client: Client) -> None:
        await asyncio.sleep(0)
        look(client)

    hub.on_client_disconnected(look if kind == "plain" else look_later)
    hub.on_client_disconnected(second.append)
    async with running(hub):
        hub.create_room("room")
        raw = await RawClient.open(hub, "/ws?id=c0&user=u")
        hub.join_room("c0", "room")
        with contextlib.suppress(ConnectionError):
            await ending(hub, raw)
        await eventually(lambda: hub.connections == 0, timeout=5.0)
        await eventually(lambda: len(second) == len(connected))
        assert disconnected == second
        assert Counter(map(id, disconnected)) == Counter(map(id, connected))
        raised = [error for error in errors if isinstance(error, KeyError)]
        assert len(raised) == len(connected)
        raw.close()


@pytest.mark.fault(number="F14")
async def test_a_connect_callback_that_raises_is_a_connect_too(any_loop: str) -> None:
    hub = Hub(HubConfig(close_timeout=0.1), authenticate=named)
    disconnected: list[str] = []
    hub.on_client_disconnected(lambda client: disconnected.append(client.id))

    @hub.on_client_connected
    def fail(client: Client) -> None:
        raise KeyError("no")

    async with running(hub):
        raw = await RawClient.open(hub, "/ws?id=c0")
        with raw:
            assert (await raw.recv()).code == 1011
            await eventually(lambda: disconnected == ["c0"])
            assert hub.get_connected_clients() == 0


@pytest.mark.fault(number="F14")
async def test_a_client_that_was_never_connected_never_disconnects() -> None:
    events: list[str] = []

    async def never(request: Any) -> None:
        await asyncio.sleep(0)

    hub = Hub(HubConfig(close_timeout=0.1), authenticate=never)
    hub.on_client_connected(lambda client: events.append("connect"))
    hub.on_client_disconnected(lambda client: events.append("disconnect"))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(b"GET /ws HTTP/1.1\r\n")
        with await RawClient.open(hub) as raw:
            assert (await raw.recv()).code == 4401
        await eventually(lambda: hub.connections == 0)
    assert events == []


# --- F15 ---


@pytest.mark.fault(number="F15")
async def test_async_callbacks_keep_the_order_of_each_client(any_loop: str) -> None:
    draw = random.Random(15)
    hub = Hub(authenticate=named)
    events: dict[str, list[str]] = {f"c{number}": [] for number in range(20)}
    errors: list[str] = []
    gone: list[str] = []

    hub.on_error(unless_lost(lambda client, error: errors.append(f"{client.id} {error.args[0]}")))

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        await asyncio.sleep(draw.random() / 100)
        events[client.id].append("connected")

    @hub.on_message_received
    async def message(client: Client, text: str) -> None:
        if draw.random() < 0.02:
            gc.collect()
        if draw.random() < 0.7:
            await asyncio.sleep(draw.random() / 500)
        if int(text) % 7 == 0:
            raise KeyError(text)
        events[client.id].append(text)

    @hub.on_client_disconnected
    async def disconnected(client: Client) -> None:
        await asyncio.sleep(0)
        events[client.id].append("disconnected")
        gone.append(client.id)

    async with crowd(hub, 20) as raws:
        for number in range(1, 31):
            for raw in raws.values():
                await raw.send(TEXT, b"%d" % number)
        for raw in raws.values():
            raw.close()
        await eventually(lambda: len(gone) == 20, timeout=60.0)
        wanted = [str(number) for number in range(1, 31) if number % 7]
        for name in events:
            assert events[name] == ["connected", *wanted, "disconnected"]
        assert Counter(errors) == Counter(
            f"{name} {number}" for name in events for number in (7, 14, 21, 28)
        )


# --- F16 ---


@pytest.mark.fault(number="F16")
@pytest.mark.parametrize(
    "message",
    ["\ud800", "ok \udfff", None, 5, 1.5, object(), ["x"], memoryview(b"abcdef")[::2]],
    ids=lambda message: type(message).__name__,
)
async def test_a_bad_message_is_refused_before_anyone_is_sent_to(message: Any) -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 3) as raws:
        hub.create_room("room")
        hub.join_room("c0", "room")
        for call in (
            lambda: hub.broadcast(message),
            lambda: hub.broadcast_text(message),
            lambda: hub.broadcast_to_room("room", message),
            lambda: hub.send_to_client("c0", message),
            lambda: hub.send_text_to_client("c0", message),
            lambda: known(hub, "c0").send(message),
        ):
            with pytest.raises(ValidationError):
                call()
        stats = hub.get_stats()
        assert (stats.messages_out, stats.deliveries, stats.queued_messages) == (0, 0, 0)
        assert await all_texts(hub, raws) == {"c0": [], "c1": [], "c2": []}


@pytest.mark.fault(number="F16")
async def test_a_bad_exclude_counts_no_message() -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 1):
        for exclude in ("c0", [[]], None):
            with pytest.raises((ValueError, TypeError)):
                hub.broadcast("x", exclude=exclude)  # type: ignore[arg-type]
        assert hub.get_stats().messages_out == 0


# --- F17 ---


@pytest.mark.fault(number="F17")
@pytest.mark.parametrize("kind", [bytearray, lambda data: memoryview(bytearray(data))])
async def test_a_buffer_that_the_caller_changes_later_is_sent_as_it_was(
    kind: Callable[[bytes], Any],
) -> None:
    hub = Hub(HubConfig(write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    async with crowd(hub, 2, rcvbuf=4096) as raws:
        hub.create_room("room")
        hub.join_room("c0", "room")
        # Small ones that the kernel takes at once, large ones that wait for it.
        for size in (10, 100_000, 1_000_000):
            buffer = kind(b"a" * size)
            hub.broadcast(buffer)
            hub.broadcast_to_room("room", buffer)
            hub.send_to_client("c0", buffer)
            buffer[:] = b"z" * size
            await asyncio.sleep(0)
            buffer[:] = b"y" * size
            for _ in range(3):
                assert (await raws["c0"].recv()).payload == b"a" * size
            assert (await raws["c1"].recv()).payload == b"a" * size


# --- F18 ---


@pytest.mark.fault(number="F18")
async def test_eight_threads_call_everything_while_clients_come_and_go(any_loop: str) -> None:
    hub = Hub(HubConfig(close_timeout=0.2, **BOUNDLESS), authenticate=named)
    hub.on_message_received(lambda client, message: client.send(message))
    unexpected: list[BaseException] = []
    rounds: Counter[int] = Counter()
    halt = threading.Event()

    def calls(number: int, draw: random.Random) -> tuple[Callable[[], object], ...]:
        room = f"room {number % 3}"
        name = f"c{draw.randrange(12)}"
        client = hub.get_client_by_id(name)
        return (
            lambda: hub.create_room(room),
            lambda: hub.join_room(name, room),
            lambda: hub.broadcast(f"all from {number}", exclude=[name]),
            lambda: hub.broadcast_text("text"),
            lambda: hub.broadcast_to_room(room, b"bytes", key=f"{number}"),
            lambda: hub.send_to_client(name, "direct"),
            lambda: hub.send_text_to_client(name, "direct"),
            hub.get_connected_clients,
            hub.get_connected_client_ids,
            hub.get_all_connected_users,
            lambda: hub.get_clients_by_user(name),
            lambda: hub.get_room_clients(room),
            lambda: hub.get_client_rooms(name),
            hub.get_rooms,
            hub.get_stats,
            lambda: hub.set_config(hub.config),
            lambda: client and client.send("client.send"),
            lambda: client and client.set_user_data("thread", number),
            lambda: client and client.get_user_data("thread"),
            lambda: client and client.is_connected(),
            lambda: client and draw.random() < 0.1 and client.disconnect(4000),
            lambda: hub.leave_room(name, room),
            lambda: draw.random() < 0.1 and hub.delete_room(room),
            lambda: draw.random() < 0.1 and hub.reset_stats(),
        )

    def call_everything(number: int) -> None:
        draw = random.Random(number)
        while not halt.is_set():
            for call in calls(number, draw):
                try:
                    call()
                except WSCError:
                    pass  # a documented answer: no such room, client gone, hub stopped, ...
                except BaseException as error:
                    unexpected.append(error)
            rounds[number] += 1

    async def churn(number: int) -> None:
        while not halt.is_set() and hub.loop is not None:
            await asyncio.sleep(0)  # a hub that is stopping refuses at once
            with contextlib.suppress(ConnectionError, AssertionError, HubStateError):
                raw = await RawClient.open(hub, f"/ws?id=c{number}")
                with raw:
                    for _ in range(5):
                        await raw.send(TEXT, b"hello")
                        await raw.recv()
                    if number % 2:
                        raw.reset()

    threads = [
        threading.Thread(target=call_everything, args=(number,), daemon=True) for number in range(8)
    ]
    async with running(hub):
        churning = [asyncio.ensure_future(churn(number)) for number in range(12)]
        for thread in threads:
            thread.start()
        try:
            await eventually(lambda: len(rounds) == 8 and min(rounds.values()) >= 5, timeout=30)
            await hub.stop(1.0)
            stopped_at = dict(rounds)
            # Calls after the stop end promptly too: every thread gets through five more rounds.
            await eventually(
                lambda: all(rounds[number] >= stopped_at[number] + 5 for number in range(8)),
                timeout=5,
            )
        finally:
            halt.set()
            for thread in threads:
                await asyncio.to_thread(thread.join, 10)
            for task in churning:
                task.cancel()
            await asyncio.gather(*churning, return_exceptions=True)
        assert not any(thread.is_alive() for thread in threads)
    assert unexpected == []


@pytest.mark.fault(number="F18")
async def test_a_foreign_thread_gets_results_and_errors_as_the_loop_would(
    any_loop: str,
) -> None:
    hub = Hub(authenticate=named)
    async with crowd(hub, 2) as raws:
        await asyncio.to_thread(hub.create_room, "room")
        await asyncio.to_thread(hub.join_room, "c0", "room")
        assert await asyncio.to_thread(hub.broadcast, "1") == 2
        assert await asyncio.to_thread(hub.broadcast_to_room, "room", "2") == 1
        assert (await asyncio.to_thread(hub.get_stats)).connected_clients == 2
        for call, error in (
            (lambda: hub.create_room("room"), RoomExistsError),
            (lambda: hub.join_room("nobody", "room"), ClientNotFoundError),
            (lambda: hub.broadcast_to_room("nowhere", "x"), RoomNotFoundError),
            (lambda: hub.broadcast("\ud800"), ValidationError),
        ):
            with pytest.raises(error):
                await asyncio.to_thread(call)
        assert await all_texts(hub, raws) == {"c0": ["1", "2"], "c1": ["1"]}


# --- F19 ---


@pytest.mark.fault(number="F19")
@TLS
@pytest.mark.parametrize("seed", range(2))
async def test_a_flush_in_slices_meets_sends_and_disconnects_between_them(
    any_loop: str, seed: int, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # A budget that is spent at once: one slice takes sixteen sends, or one TLS client.
    hub = Hub(HubConfig(flush_budget=1e-9, write_buffer_size=4096, **BOUNDLESS), authenticate=named)
    contexts = (server_tls, client_tls) if tls else None
    async with crowd(hub, 30 if tls else 120, contexts, rcvbuf=4096) as raws:
        await Oracle(hub, raws, ("F19", seed, tls), [20, 300, 9_000], leaving=True).run(
            100 if tls else 150
        )
        stats = hub.get_stats()
        assert stats.send_calls / stats.flushes < 20


# --- F20 ---


def live(kinds: tuple[str, ...]) -> Counter[str]:
    """How many objects of these types the garbage collector knows."""
    return Counter(name for name in (type(o).__name__ for o in gc.get_objects()) if name in kinds)


KINDS = (
    "Client",
    "Guard",
    "Inbox",
    "Handshake",
    "WSTransport",
    "WSUpgradeRequest",
    "MemberSet",
    "Room",
    "TCPTransport",
    "_SelectorSocketTransport",
)


@pytest.mark.fault(number="F20")
@pytest.mark.parametrize("batches", [50, 5], ids=["10000 without gc", "1000 with gc"])
async def test_ten_thousand_connects_leave_nothing_behind(batches: int) -> None:
    batch = 200
    collecting = batches < 50
    hub = Hub(HubConfig(close_timeout=2.0))
    gone = 0

    @hub.on_client_connected
    def connected(client: Client) -> None:
        hub.join_room(client.id, "room")
        client.set_user_data("a", {"cycle": client})
        client.user_data.clear()

    @hub.on_message_received
    async def message(client: Client, text: str) -> None:
        await asyncio.sleep(0)
        client.send(text)

    @hub.on_client_disconnected
    def disconnected(client: Client) -> None:
        nonlocal gone
        gone += 1

    async def visit(number: int) -> None:
        raw = await RawClient.open(hub, tail=encode(TEXT, b"hello"))
        frame: Frame | None = await raw.recv()
        assert frame is not None
        assert frame.payload == b"hello"
        if number % 4 == 0:
            raw.reset()
        elif number % 4 == 1:
            raw.close()
        elif number % 4 == 2:
            await raw.send(CLOSE, b"\x03\xe8")
            await raw.recv_rest()
            raw.close()
        else:
            await raw.send(3, b"broken")
            await raw.recv_rest()
            raw.close()

    gc.collect()
    if not collecting:
        gc.disable()
    try:
        async with running(hub):
            hub.create_room("room")

            async def run(count: int) -> None:
                nonlocal gone
                gone = 0
                for _ in range(count):
                    before = gone
                    await asyncio.gather(*(visit(number) for number in range(batch)))
                    await eventually(lambda before=before: gone == before + batch)
                await eventually(lambda: hub.connections == 0)
                assert gone == count * batch

            await run(1)  # what is made once is made now
            descriptors = len(os.listdir("/proc/self/fd"))
            await run(batches)
            if collecting:
                gc.collect()
            # A transport is gone some turns of the loop after its last callback. The room stays.
            await eventually(lambda: live(KINDS) == {"Room": 1})
            assert len(os.listdir("/proc/self/fd")) == descriptors
            assert hub.get_connected_clients() == 0
            assert hub.get_connected_client_ids() == []
            assert hub.get_all_connected_users() == []
            assert hub.get_room_clients("room") == []
            assert hub._engine.closing_clients() == []
            assert not hub._parts.requests._waiting
            assert not hub._parts.tasks
            stats = hub.get_stats()
            assert (stats.connections, stats.queued_messages, stats.queued_bytes) == (0, 0, 0)
    finally:
        gc.enable()
