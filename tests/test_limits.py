"""Limits on connections and their rate, and on the messages of a client a second."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import pytest

from tests.support import TLS, exchange, silent_sockets, tls_options
from wsc_fast import Client, Hub, HubConfig
from wsc_fast.testing import TEXT, RawClient, encode, eventually, open_client, running
from wsc_fast.upgrade.limits import MAX_BUCKETS, Buckets, ConnectionLimits, address_key


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("", "192.0.2.1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


def test_a_bucket_fills_again() -> None:
    now = 100.0
    buckets = Buckets(2.0, lambda: now)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    now += 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now += 1000.0
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]


def test_buckets_of_very_many_addresses_are_bounded() -> None:
    buckets = Buckets(1.0, lambda: 0.0)
    for number in range(5 * MAX_BUCKETS):
        assert buckets.take(str(number))
    assert len(buckets._buckets) <= MAX_BUCKETS
    assert not buckets.take(str(5 * MAX_BUCKETS - 1))


async def status(hub: Hub) -> bytes:
    """The status line of an upgrade."""
    with await RawClient.open(hub, upgrade=False) as client:
        await client.send_raw(RawClient.request(hub))
        return (await client.read_response()).partition(b"\r\n")[0]


async def test_connections_per_address(any_loop: str) -> None:
    hub = Hub(HubConfig(max_connections_per_address=3))
    async with running(hub):
        raws = [await RawClient.open(hub) for _ in range(3)]
        refused = await exchange(hub, RawClient.request(hub))
        assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"Retry-After: 1\r\n" in refused
        raws.pop().reset()
        await eventually(lambda: hub.connections == 2)
        raws.append(await RawClient.open(hub))
        hub.set_config(HubConfig(max_connections_per_address=4))
        raws.append(await RawClient.open(hub))
        assert hub.get_stats().rejected["address"] == 1
        for raw in raws:
            raw.close()
        await eventually(lambda: hub.connections == 0)
        assert hub._parts.admission._limits._counts == {}


def test_floods_of_many_addresses_leave_some_of_the_rate_to_others() -> None:
    now = 100.0
    limits = ConnectionLimits()
    limits.set(0, 100.0, 10.0, lambda: now)
    flood = [f"198.51.100.{number}" for number in range(100)]
    refused, in_time = [], 0
    for number in range(2_000):  # 1,000 a second, each address ten of them
        now += 0.001
        limits.admit(flood[number % 100])
        if number % 100 == 99:
            over = limits.admit(f"203.0.113.{number // 100}")
            in_time += over is None
            refused.append(over)
    assert in_time == 20, refused
    # The flood still gets the rest, and nobody gets more than there is.
    admitted = 0
    for number in range(1_000):
        now += 0.001
        admitted += limits.admit(flood[number % 100]) is None
    assert 90 <= admitted <= 101


def test_a_rate_of_one_a_second_is_one_a_second() -> None:
    now = 100.0
    limits = ConnectionLimits()
    limits.set(0, 1.0, 5.0, lambda: now)
    for _ in range(3):
        assert limits.admit("192.0.2.1") is None
        assert limits.admit("192.0.2.1") == "connection_rate"
        now += 1.0


def test_without_a_rate_of_each_address_nothing_is_kept() -> None:
    limits = ConnectionLimits()
    limits.set(0, 5.0, 0.0, lambda: 100.0)
    assert [limits.admit("192.0.2.1") for _ in range(6)] == [None] * 5 + ["connection_rate"]


@pytest.mark.parametrize("name", ["connection_rate", "connection_rate_per_address"])
async def test_new_connections_a_second(name: str) -> None:
    hub = Hub(HubConfig(**{name: 3.0}))  # type: ignore[arg-type]
    async with running(hub):
        lines = [await status(hub) for _ in range(6)]
        assert lines[:3] == [b"HTTP/1.1 101 Switching Protocols"] * 3
        assert lines[-1] == b"HTTP/1.1 429 Too Many Requests"
        assert hub.get_stats().rejected["rate"] >= 2


@pytest.mark.fault(number="B11")
async def test_half_open_handshakes_are_bounded_and_an_honest_client_gets_in() -> None:
    hub = Hub(HubConfig(max_handshakes=50))
    async with running(hub):
        silent = await silent_sockets(hub, 200)
        await eventually(lambda: hub.get_stats().rejected["handshakes"] >= 150)
        assert len(hub._parts.requests._waiting) == 50
        async with asyncio.timeout(1):
            raw = await RawClient.open(hub)
        raw.close()
        for sock in silent:
            sock.close()


@pytest.fixture
def counting() -> Callable[[HubConfig], tuple[Hub, list[str | bytes]]]:
    def make(config: HubConfig) -> tuple[Hub, list[str | bytes]]:
        seen: list[str | bytes] = []
        hub = Hub(config)

        @hub.on_message_received
        def note(client: Client, message: str | bytes) -> None:
            seen.append(message)

        return hub, seen

    return make


Make = Callable[[HubConfig], tuple[Hub, list[str | bytes]]]


@pytest.mark.parametrize(
    "rates",
    [{"message_rate": 10.0}, {"byte_rate": 100.0}, {"message_rate": 10.0, "byte_rate": 1e9}],
)
async def test_a_client_that_sends_too_fast_is_closed(
    rates: dict[str, float], counting: Make
) -> None:
    hub, seen = counting(HubConfig(**rates))  # type: ignore[arg-type]
    async with running(hub):
        with await RawClient.open(hub) as fast, await RawClient.open(hub) as other:
            await fast.send_raw(encode(TEXT, b"0123456789") * 100)
            frame = await fast.recv()
            assert (frame.code, frame.payload[2:]) == (1008, b"too many messages")
            assert 10 <= len(seen) <= 12
            before = len(seen)
            await other.send(TEXT, b"x")
            await eventually(lambda: len(seen) == before + 1)
        assert hub.get_stats().rate_limited == 1


async def test_messages_beyond_the_rate_are_dropped(counting: Make) -> None:
    hub, seen = counting(HubConfig(message_rate=10.0, rate_limit_action="drop"))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"x") * 1000)
            await eventually(lambda: len(seen) + hub.get_stats().rate_limited == 1000)
            assert 10 <= len(seen) <= 20
            await raw.send(9, b"still here")
            assert (await raw.recv()).payload == b"still here"


@TLS
async def test_reading_is_paused_and_nothing_is_lost(
    any_loop: str,
    tls: bool,
    counting: Make,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub, seen = counting(HubConfig(message_rate=2000.0, rate_limit_action="pause"))
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await open_client(hub, client_tls if tls else None) as raw:
            began = asyncio.get_running_loop().time()
            for number in range(3000):
                await raw.send(TEXT, b"%1024d" % number)
            await eventually(lambda: len(seen) == 3000)
            # 2,000 at once, and the others at 2,000 a second; the last read is not waited for.
            assert asyncio.get_running_loop().time() - began > 0.4
            assert seen == [f"{number:1024}" for number in range(3000)]
            assert hub.get_stats().rate_limited > 0


async def test_a_paused_client_can_be_closed(counting: Make) -> None:
    hub, seen = counting(HubConfig(message_rate=1.0, rate_limit_action="pause"))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"x") * 100)
            await eventually(lambda: len(seen) == 2)  # the others came in the same read, and wait
            hub.broadcast("bye")
            for client in hub.get_clients_by_user(hub.get_all_connected_users()[0]):
                client.disconnect(4000)
            assert (await raw.recv()).payload == b"bye"
            assert (await raw.recv()).code == 4000
