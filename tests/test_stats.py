"""HubStats: every counter moves with what it counts, and nothing else moves it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from tests.support import exchange, join, named, only_client
from wsc_fast import Hub, HubConfig, HubStats
from wsc_fast.testing import CLOSE, PING, TEXT, RawClient, eventually, running

GAUGES = {"connected_clients", "active_rooms", "connections", "queued_messages", "queued_bytes"}


@pytest.mark.parametrize("name", HubStats.__struct_fields__)
def test_every_field_is_documented(name: str) -> None:
    assert HubStats.__doc__ is not None
    assert name in HubStats.__doc__


def test_a_hub_that_never_ran_has_counted_nothing() -> None:
    stats = msgspec.structs.asdict(Hub().get_stats())
    assert stats.pop("start_time") is None
    assert stats.pop("dropped") == dict.fromkeys(
        ("drop_oldest", "drop_newest", "slow_consumer", "conn_closed"), 0
    )
    assert stats.pop("rejected") == dict.fromkeys(
        ("full", "origin", "auth", "request", "address", "rate", "handshakes", "gone"), 0
    )
    assert not any(stats.pop("limited").values())
    assert not any(stats.pop("closes").values())
    assert set(stats.values()) == {0}


def test_a_snapshot_is_immutable_and_can_be_sent_as_json() -> None:
    stats = Hub().get_stats()
    with pytest.raises(AttributeError):
        stats.messages_in = 1  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(stats), type=HubStats) == stats


async def test_messages_and_bytes_in_and_out(any_loop: str) -> None:
    hub = Hub()
    before = datetime.now(UTC)
    async with running(hub):
        clients = [await RawClient.open(hub) for _ in range(3)]
        await clients[0].send(TEXT, b"hello")
        await clients[1].send(2, b"\x00" * 300)
        await clients[2].send(TEXT, b"in ", fin=False)
        await clients[2].send(0, b"two")
        await clients[2].send(PING, b"not a message")
        await eventually(lambda: hub.get_stats().messages_in == 3)
        await eventually(lambda: hub.get_stats().frames_sent == 1)  # the pong
        assert (await clients[2].recv()).payload == b"not a message"
        hub.create_room("r")
        stats = hub.get_stats()
        assert stats.bytes_in == 5 + 300 + 6
        assert (stats.messages_out, stats.deliveries, stats.total_messages) == (0, 0, 3)
        assert (stats.connected_clients, stats.connections, stats.connections_total) == (3, 3, 3)
        assert stats.active_rooms == 1
        assert stats.start_time is not None
        assert before <= stats.start_time <= datetime.now(UTC)
        assert 0 < stats.uptime < 60

        hub.reset_stats()
        hub.broadcast("abc")
        only = hub.get_connected_client_ids()[0]
        hub.send_to_client(only, b"abcd")
        stats = hub.get_stats()
        assert (stats.messages_out, stats.deliveries, stats.total_messages) == (2, 4, 2)
        assert (stats.queued_messages, stats.queued_bytes) == (4, 3 * 5 + 6)
        assert (stats.frames_sent, stats.send_calls, stats.flushes) == (0, 0, 0)
        await eventually(lambda: hub.get_stats().frames_sent == 4)
        stats = hub.get_stats()
        assert stats.bytes_out == 3 * 5 + 6
        # Two messages of one turn went to one client in one send.
        assert (stats.send_calls, stats.flushes) == (3, 1)
        assert stats.messages_per_send == pytest.approx(4 / 3)
        assert (stats.queued_messages, stats.queued_bytes, stats.partial_sends) == (0, 0, 0)
        assert 0 < stats.longest_flush < 1
        for client in clients:
            client.close()


async def test_reset_clears_the_counters_and_keeps_the_gauges() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            hub.create_room("r")
            await client.send(TEXT, b"x")
            hub.broadcast("y")
            await client.recv()
            await eventually(lambda: hub.get_stats().messages_in == 1)
            start = hub.get_stats().start_time
            hub.broadcast("z")
            hub.reset_stats()
            stats = hub.get_stats()
            assert stats.start_time == start
            assert stats.uptime > 0
            for name in set(stats.__struct_fields__) - GAUGES - {"start_time", "uptime"}:
                value: Any = getattr(stats, name)
                assert not any(value.values()) if isinstance(value, dict) else value == 0, name
            assert (stats.connected_clients, stats.active_rooms, stats.connections) == (1, 1, 1)
            assert (stats.queued_messages, stats.queued_bytes) == (1, 3)


async def test_messages_queued_for_a_connection_that_goes_away_are_counted() -> None:
    hub = Hub(HubConfig(outbox_bytes=1 << 26, outbox_messages=10_000, close_timeout=0.1))
    async with running(hub):
        client = await RawClient.open(hub, rcvbuf=4096)
        it = only_client(hub)
        it.send(b"x" * (1 << 24))
        await eventually(lambda: it.queued_messages == 0)
        for _ in range(10):
            hub.broadcast("never read")
        client.reset()
        await eventually(lambda: hub.connections == 0)
        stats = hub.get_stats()
        assert stats.dropped["conn_closed"] == 10
        assert stats.partial_sends >= 1
        assert it.dropped_messages == 10


async def test_a_silent_client_is_pinged_then_counted_as_a_heartbeat_timeout(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(heartbeat_interval=0.1, heartbeat_timeout=0.3))
    async with running(hub):
        with await RawClient.open(hub) as silent:
            assert (await silent.recv()).opcode == PING
            frame = await silent.recv()
            while frame.opcode == PING:
                frame = await silent.recv()
            assert (frame.opcode, frame.code) == (CLOSE, 1001)
        stats = hub.get_stats()
        assert (stats.heartbeat_timeouts, stats.error_count) == (1, 1)


async def test_every_kind_of_error_is_in_the_error_count() -> None:
    hub = Hub()

    @hub.on_message_received
    def fail(client: object, message: str | bytes) -> None:
        raise ValueError("mine")

    async with running(hub):
        with await RawClient.open(hub) as client:
            await client.send(TEXT, b"x")
            await client.send(3, b"a reserved opcode")
            assert (await client.recv()).code == 1002
        stats = hub.get_stats()
        assert (stats.callback_errors, stats.protocol_errors, stats.error_count) == (1, 1, 2)


@pytest.mark.fault(number="B15")
async def test_no_name_of_a_peer_or_a_room_becomes_a_name_of_the_stats() -> None:
    def names(stats: HubStats) -> set[str]:
        found = set(stats.__struct_fields__)
        for field in stats.__struct_fields__:
            value = getattr(stats, field)
            if isinstance(value, dict):
                found |= {f"{field}.{key}" for key in value}
        return found

    hub = Hub(authenticate=named)
    before = names(hub.get_stats())
    async with running(hub):
        for number in range(1_000):
            hub.create_room(f'a"}} {number}')
        for number in range(50):
            request = f"GET /{number} HTTP/1.1\r\nHost: x\r\nX-{number}: 1\r\n\r\n".encode()
            assert (await exchange(hub, request)).startswith(b"HTTP/1.1 404 ")
            raw, client = await join(hub, f"{number}&user=u{number}")
            with raw:
                hub.join_room(client.id, f'a"}} {number}')
        stats = hub.get_stats()
        assert (stats.active_rooms, stats.rejected["request"]) == (1_000, 50)
        assert names(stats) == before
