"""Limits count themselves; clients that send much wait for their turn; TLS peers; a quiet log."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import trustme

from tests.support import exchange, stall
from wsc_fast import Client, Hub, HubConfig, Identity, LimitError, Request
from wsc_fast.log import PERIOD
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    TLSClient,
    encode,
    eventually,
    running,
)


async def provoke(hub: Hub, data: bytes) -> list[Any]:
    """The frames that answer these bytes."""
    with await RawClient.open(hub) as raw:
        await raw.send_raw(data)
        return await raw.recv_rest()


@pytest.mark.parametrize(
    ("limit", "value", "data", "code"),
    [
        ("max_message_size", 200, encode(BINARY, bytes(201)), 1009),
        ("max_fragments", 3, encode(TEXT, fin=False) + encode(CONTINUATION, fin=False) * 3, 1008),
        ("message_rate", 5.0, encode(TEXT, b"x") * 20, 1008),
        ("message_rate", 5.0, encode(PING, b"x") * 20, 1008),
        ("message_rate", 5.0, encode(PONG, b"x") * 20, 1008),
        ("byte_rate", 100.0, encode(TEXT, b"x" * 90) * 2, 1008),
        ("byte_rate", 100.0, encode(PING, b"x" * 90) * 2, 1008),
    ],
)
async def test_a_limit_on_what_is_sent_counts_itself(
    limit: str, value: float, data: bytes, code: int
) -> None:
    hub = Hub(HubConfig(**{limit: value}))  # type: ignore[arg-type]
    async with running(hub):
        frames = await provoke(hub, data)
        assert frames[-1].opcode == CLOSE
        assert frames[-1].code == code
        limited = hub.get_stats().limited
        assert {name: count for name, count in limited.items() if count} == {limit: 1}
        hub.reset_stats()
        assert not any(hub.get_stats().limited.values())


@pytest.mark.parametrize(
    ("limit", "value", "request_", "status"),
    [
        ("max_header_bytes", 600, b"GET /ws HTTP/1.1\r\nX: " + b"x" * 600, b"431"),
        ("max_headers", 10, b"GET /ws HTTP/1.1\r\n" + b"X: x\r\n" * 11 + b"\r\n", b"400"),
    ],
)
async def test_a_limit_on_the_head_counts_itself(
    limit: str, value: int, request_: bytes, status: bytes
) -> None:
    hub = Hub(HubConfig(**{limit: value}))  # type: ignore[arg-type]
    async with running(hub):
        assert (await exchange(hub, request_)).split()[1] == status
        assert hub.get_stats().limited[limit] == 1


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("max_connections", 1),
        ("max_connections_per_address", 1),
        ("connection_rate", 1.0),
        ("connection_rate_per_address", 1.0),
    ],
)
async def test_a_limit_on_connections_counts_itself(limit: str, value: float) -> None:
    hub = Hub(HubConfig(**{limit: value}))  # type: ignore[arg-type]
    async with running(hub):
        with await RawClient.open(hub):
            for _ in range(3):
                await exchange(hub, RawClient.request(hub))
            limited = hub.get_stats().limited
            assert limited[limit] >= 2
            assert sum(limited.values()) == limited[limit]


async def test_a_handshake_that_ends_early_or_late_is_counted() -> None:
    hub = Hub(HubConfig(handshake_timeout=0.2))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as silent:
            (await RawClient.open(hub, upgrade=False)).reset()
            await eventually(lambda: hub.get_stats().rejected["gone"] == 1)
            assert await silent.read_all() == b""
        assert hub.get_stats().limited["handshake_timeout"] == 1
        assert hub.get_stats().rejected["gone"] == 1


async def test_limits_of_authentication_count_themselves() -> None:
    async def never(request: Request) -> Identity:
        await asyncio.sleep(60)
        return Identity("x")

    config = HubConfig(authentication_timeout=0.3, authentication_input_bytes=1_000)
    hub = Hub(config, authenticate=never)
    async with running(hub):
        assert (await provoke(hub, encode(TEXT, bytes(2_000))))[-1].code == 4401
        limited = hub.get_stats().limited
        assert limited["authentication_input_bytes"] == limited["authentication_timeout"] == 1


async def test_limits_of_time_count_themselves() -> None:
    config = HubConfig(
        message_timeout=0.1, heartbeat_interval=0.2, heartbeat_timeout=30.0, close_timeout=0.1
    )
    hub = Hub(config)
    async with running(hub):
        with await RawClient.open(hub, rcvbuf=4096) as raw:
            (client_id,) = hub.get_connected_client_ids()
            client = hub.get_client_by_id(client_id)
            assert client is not None
            await stall(client)  # so that the close cannot reach it
            await raw.send(TEXT, b"x", fin=False)
            await eventually(lambda: hub.connections == 0)
        limited = hub.get_stats().limited
        assert limited["message_timeout"] == limited["close_timeout"] == 1


async def test_limits_of_rooms_count_themselves() -> None:
    hub = Hub(HubConfig(max_rooms=2, max_rooms_per_client=1))
    async with running(hub):
        with await RawClient.open(hub):
            (client,) = hub.get_connected_client_ids()
            hub.create_room("a")
            hub.create_room("b")
            hub.join_room(client, "a")
            with pytest.raises(LimitError):
                hub.create_room("c")
            with pytest.raises(LimitError):
                hub.join_room(client, "b")
        limited = hub.get_stats().limited
        assert limited["max_rooms"] == limited["max_rooms_per_client"] == 1


async def test_back_pressure_of_callbacks_counts_itself() -> None:
    hub = Hub(HubConfig(max_pending_callbacks=5))
    handled = []

    @hub.on_message_received
    async def slow(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        handled.append(message)

    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"x") * 100)
            await eventually(lambda: len(handled) == 100)
        assert hub.get_stats().limited["max_pending_callbacks"] >= 1


async def test_the_certificate_of_a_tls_peer_is_on_the_request(
    authority: trustme.CA, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, any_loop: str
) -> None:
    asked: list[tuple[bool, Any]] = []

    def authenticate(request: Request) -> Identity:
        asked.append((request.tls, request.peer_certificate))
        return Identity("x")

    strict = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(strict)
    authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    with_certificate = ssl.create_default_context()
    authority.configure_trust(with_certificate)
    authority.issue_cert("ann.example").configure_cert(with_certificate)
    hub = Hub(authenticate=authenticate)
    async with running(hub, ssl=strict):
        with await TLSClient.open_tls(hub, with_certificate):
            pass
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls):
            pass
    async with running(hub):
        with await RawClient.open(hub):
            pass
    (_, shown), without, plain = asked
    assert shown["subjectAltName"] == (("DNS", "ann.example"),)
    assert asked[0][0]
    assert without == (True, None)
    assert plain == (False, None)


async def test_a_flood_of_raising_callbacks_is_one_line_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()
    errors = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_message_received
    def fail(client: Client, message: str | bytes) -> None:
        raise RuntimeError("no")

    async with running(hub):
        began = asyncio.get_running_loop().time()
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"x") * 2_000)
            await eventually(lambda: len(errors) == 2_000)
        seconds = asyncio.get_running_loop().time() - began
    lines = [record for record in caplog.records if record.name == "wsc_fast"]
    assert 0 < len(lines) <= seconds / PERIOD + 2
