"""Recovery of real clients: of more than their outbox holds, and over a restart of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import known, named
from tests.test_kept_rooms import Aware, keeping
from wsc_fast import Client, Hub, HubConfig, MemoryBus
from wsc_fast.bus.base import Page, Retention
from wsc_fast.testing import eventually, running


def many_rooms(count: int, config: HubConfig | None = None) -> Hub:
    """A hub that makes each client a member of the kept rooms r0, r1, ..."""
    hub = Hub(config, authenticate=named)
    hub.keep("r*")

    @hub.on_client_connected
    def enter(client: Client) -> None:
        for number in range(count):
            hub.join_room(client.id, f"r{number}")

    return hub


async def places(aware: Aware, count: int) -> None:
    for _ in range(count):
        head, _ = await aware.recv()
        assert "recovered" in head


@pytest.mark.parametrize("outbox", [1024, 7, 1])
async def test_a_client_gets_more_than_its_outbox_holds(outbox: int, any_loop: str) -> None:
    rooms, missed = (100, 20) if outbox == 1024 else (5, 4)
    hub = many_rooms(rooms, HubConfig(outbox_messages=outbox))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await places(aware, rooms)
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        for number in range(missed):
            for room in range(rooms):
                hub.broadcast_to_room(f"r{room}", f"{room} {number}")
        back = await Aware.open(hub, "a", aware.positions)
        texts: dict[str, list[bytes]] = {}
        recovered = 0
        while recovered < rooms:
            head, payload = await back.recv()
            if "recovered" in head:
                assert (head["recovered"], head["missed"]) == (True, missed)
                recovered += 1
            else:
                texts.setdefault(head["room"], []).append(payload)
        assert texts == {
            f"r{room}": [f"{room} {number}".encode() for number in range(missed)]
            for room in range(rooms)
        }
        await eventually(lambda: len(known(hub, "a").rooms) == rooms)
        assert hub.broadcast_to_room("r0", "live") == 1
        assert (await back.recv())[1] == b"live"
        back.close()


async def test_clients_that_do_not_read_wait_and_leave_nothing_behind() -> None:
    hub = many_rooms(3, HubConfig(outbox_messages=8))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await places(aware, 3)
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        for number in range(90):
            hub.broadcast_to_room(f"r{number % 3}", bytes(16_000))
        back = await Aware.open(hub, "a", aware.positions, rcvbuf=4096)
        await eventually(lambda: hub.get_connected_clients() == 1)
        assert known(hub, "a").queued_messages <= 8
        back.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        again = await Aware.open(hub, "a", aware.positions)
        recovered = 0
        while recovered < 3:
            head, _ = await again.recv()
            if "recovered" in head:
                assert (head["recovered"], head["missed"]) == (True, 30)
                recovered += 1
        again.close()


async def test_a_client_recovers_over_a_restart_of_its_hub(tmp_path: Path, any_loop: str) -> None:
    positions: dict[str, str] = {}
    for start in range(3):
        hub = keeping(hub=Hub(authenticate=named, bus=MemoryBus(tmp_path / "history.db")))
        async with running(hub):
            aware = await Aware.open(hub, "a", positions)
            if start:
                assert await aware.texts(2) == [b"1", b"2"]
            head, _ = await aware.recv()
            assert head["recovered"] is bool(start)
            first = await hub.publish("r", "0", idempotency_key=str(start))
            assert (await aware.recv())[1] == b"0"
            aware.close()
            await eventually(lambda hub=hub: hub.get_connected_clients() == 0)  # type: ignore[misc]
            positions = aware.positions
            assert positions["r"] == first.position
            assert not (await hub.publish("r", "1")).duplicate
            hub.broadcast_to_room("r", "2")
            if start:
                again = await hub.publish("r", "x", idempotency_key=str(start - 1))
                assert again.duplicate


class CountingBus(MemoryBus):
    """Counts the reads of what was missed."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Page:
        self.reads += since is not None and limit > 0
        return await super().read(room, since, limit, retention)


async def test_clients_that_come_one_after_another_share_one_read(any_loop: str) -> None:
    bus = CountingBus()
    hub = keeping(hub=Hub(authenticate=named, bus=bus))
    texts = [str(number).encode() for number in range(90)]
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        positions = dict(aware.positions)
        for text in texts:
            await hub.publish("r", text)
        aware.close()
    async with running(hub):  # which remembers no message now
        for name in ("a", "b", "c"):
            back = await Aware.open(hub, name, positions)
            assert await back.texts(len(texts)) == texts
            head, _ = await back.recv()
            assert (head["recovered"], head["missed"]) == (True, len(texts))
            hub.broadcast_to_room("r", "live")
            assert (await back.recv())[1] == b"live"
            texts.append(b"live")
            back.close()
            await eventually(lambda: hub.get_connected_clients() == 0)
        assert bus.reads == 1
