"""Bugs that a review found, each with its story; a test fails where the bug comes back."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from typing import Any

import pytest

from tests.support import join, named, stall
from wsc_fast import Client, ClientDisconnectedError, Hub, HubConfig, ListenError, ValidationError
from wsc_fast.listen import listener as listener_module
from wsc_fast.testing import BINARY, PING, Frame, RawClient, eventually, running

BAD_FRAME = b"\x83\x80\0\0\0\0"


async def test_a_peer_that_faults_and_resets_doubles_nothing_for_others(any_loop: str) -> None:
    # Ending our stream towards a peer that had reset raised out of settling a flush; jobs behind it
    # had been sent, but were not popped, and went out again.
    hub = Hub(authenticate=named)
    told = 0

    @hub.on_error
    def tell(client: Client, error: BaseException) -> None:
        nonlocal told
        told += 1
        hub.broadcast(b"%d" % told)

    async with running(hub):
        victims = [(await join(hub, f"victim{i}"))[0] for i in range(3)]
        for number in range(5):
            hostile, _ = await join(hub, f"hostile{number}")
            await hostile.send_raw(BAD_FRAME)
            hostile.reset() if number % 2 else hostile.close()
            await eventually(lambda number=number: told == number + 1)
            await eventually(lambda: hub.connections == len(victims))
        hub.broadcast(b"end")
        for victim in victims:
            got = [(await victim.recv()).payload for _ in range(6)]
            assert got == [b"1", b"2", b"3", b"4", b"5", b"end"]
            victim.close()


@pytest.mark.parametrize("overflow", ["disconnect", "drop_newest", "drop_oldest"])
async def test_a_waiting_pong_does_not_tear_a_hole_into_the_queue(overflow: Any) -> None:
    # One place counted the pong's bytes and another did not, so that data was evicted that the
    # policy protects.
    config = HubConfig(
        write_buffer_size=4096, outbox_bytes=1000, overflow=overflow, close_timeout=0.5
    )
    hub = Hub(config, authenticate=named)
    async with running(hub):
        raw, client = await join(hub, "slow", rcvbuf=4096)
        with raw:
            before = await stall(client)
            await raw.send(PING, b"p" * 125)
            await eventually(lambda: client.queued_messages == 1)
            queued = [hub.broadcast(b"%03d" % i + b"x" * 97) for i in range(10)]
            if overflow == "disconnect":
                assert queued == [1] * 8 + [0, 0]
                assert not client.is_connected()
                assert hub.get_stats().dropped["drop_newest"] == 0
                return
            frames = [await raw.recv() for _ in range(before + 1 + 8)]
            got = [
                int(f.payload[:3]) for f in frames if f.opcode == BINARY and f.payload[3:4] == b"x"
            ]
            assert got == list(range(8) if overflow == "drop_newest" else range(2, 10))


# In a process of its own: the closed loop leaves transports that only the collector finds.
LOOP_CLOSED = """
import asyncio, sys
from tests.support import join, named
from wsc_fast.testing import RawClient, running
from wsc_fast import ClientDisconnectedError, Hub, HubConfig

hub = Hub(HubConfig(close_timeout=0.1), authenticate=named)
kept = []

async def first():
    await hub.start(port=0)
    kept.extend([await join(hub, f"c{i}") for i in range(50)])

async def second():
    async with running(hub):
        for _, client in kept:
            assert not client.is_connected()
            try:
                client.send(b"late")
            except ClientDisconnectedError:
                pass
            else:
                raise AssertionError("sent to a client that is gone")
            client.disconnect()
        new, _ = await join(hub, "new")
        hub.broadcast("new")
        assert (await new.recv()).payload == b"new"
        new.close()

loop = asyncio.new_event_loop()
loop.run_until_complete(first())
hub.broadcast(b"pending")
if sys.argv[1] == "closing":
    for _, client in kept:
        client.disconnect()
loop.close()
asyncio.run(second())
assert hub.get_stats().dropped["conn_closed"] >= 50
print("alive")
"""


@pytest.mark.parametrize("state", ["open", "closing"])
def test_clients_of_a_loop_that_was_closed_are_dead(state: str) -> None:
    # They kept their place in the dirty list and their descriptor: a crash, or bytes on a
    # descriptor that had become somebody else's.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOOP_CLOSED, state],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


async def test_a_finalizer_during_a_broadcast_makes_it_skip_nobody(any_loop: str) -> None:
    # Scheduling the flush allocates, which may collect garbage, whose finalizer may disconnect a
    # client: the last member then moved to a place that the walk had passed.
    hub = Hub(authenticate=named)

    class Bomb:
        def __init__(self) -> None:
            self.itself = self  # a cycle, so that only the collector finds it

        def __del__(self) -> None:
            first = hub.get_client_by_id("c0")
            if first is not None:
                first.disconnect()

    async with running(hub):
        clients = [await join(hub, f"c{i}") for i in range(20)]
        Bomb()
        thresholds = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            assert hub.broadcast(b"all") in (19, 20)
        finally:
            gc.set_threshold(*thresholds)
        for raw, client in clients[1:]:
            assert await raw.recv() == Frame(BINARY, b"all"), client
        for raw, _ in clients:
            raw.close()


async def test_a_start_that_fails_late_leaves_nothing_behind(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A failure behind create_server left a hub that said it ran, and could not be started again.
    hub = Hub(HubConfig(receive_buffer_size=4096))
    with monkeypatch.context() as patch:
        # As with a kernel that refuses the option; a full table of descriptors is the same to us.
        patch.setattr(listener_module.socket, "SO_RCVBUF", 9999)
        with pytest.raises(ListenError):
            await hub.start(port=0)
    assert hub.loop is None
    async with running(hub):
        assert hub.port


@pytest.mark.parametrize("port", [-1, 65536, 70000, "80", None, True, 1.5])
async def test_a_port_that_is_none_is_refused(any_loop: str, port: Any) -> None:
    # uvloop listened on 4464 for 70000.
    with pytest.raises(ValidationError, match="port must be"):
        await Hub().start(port=port)


@pytest.mark.parametrize("turns", range(4))
async def test_connections_of_the_turn_before_stop_do_not_outlive_it(
    any_loop: str, turns: int
) -> None:
    hub = Hub()
    called: list[object] = []
    hub.route("/x")(lambda request: called.append(request) or "x")
    await hub.start(port=0)
    raws = [await RawClient.open(hub, upgrade=False) for _ in range(20)]
    for _ in range(turns):
        await asyncio.sleep(0)
    await hub.stop()
    for raw in raws:
        with raw:
            assert await raw.read_all(timeout=2.0) == b""
    assert called == []


def test_a_client_cannot_be_made_without_a_hub() -> None:
    # It could, and crashed the process with the first call.
    with pytest.raises(TypeError):
        Client(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Client.__new__(Client)
    client = Client(Hub()._engine)
    client.disconnect()
    with pytest.raises(ClientDisconnectedError):
        client.send("x")
