"""The hub on a path of an aiohttp application: real servers, real clients."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, web

from wsc_fast import ConfigError, Hub, HubConfig, ValidationError
from wsc_fast.testing import (
    CLOSE,
    TEXT,
    Authority,
    Frame,
    RawClient,
    assert_nothing_left,
    encode,
    eventually,
    open_client,
)

GOING_AWAY = Frame(CLOSE, b"\x03\xe9server shutdown")


class At(NamedTuple):
    """Where a server listens."""

    port: int


def echoing(config: HubConfig | None = None, **options: Any) -> Hub:
    hub = Hub(config, **options)
    hub.on_message_received(lambda client, message: client.send(message))
    return hub


def application(hub: Hub, **options: Any) -> web.Application:
    app = web.Application()

    async def count(request: web.Request) -> web.Response:
        return web.Response(text=f"{hub.get_connected_clients()} clients")

    app.router.add_get("/", count)
    hub.aiohttp(app, "/ws", **options)
    return app


@asynccontextmanager
async def serving(hub: Hub, context: ssl.SSLContext | None = None) -> AsyncIterator[At]:
    """An application with the hub, on the loop of the test; nothing of it is left at the end."""
    runner = web.AppRunner(application(hub, tls=context is not None))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield At(runner.addresses[0][1])
    finally:
        await runner.cleanup()
    assert_nothing_left(hub)


async def fetched(at: At, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{at.port}{path}"
    async with ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_one_port_has_http_and_the_clients_of_the_hub(any_loop: str) -> None:
    hub = echoing()
    async with serving(hub) as at:
        with await RawClient.open(at) as raw:
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")
            assert await fetched(at, "/") == (200, "1 clients")
        await eventually(lambda: hub.get_connected_clients() == 0)
        assert await fetched(at, "/") == (200, "0 clients")


async def test_frames_that_come_with_the_request_are_heard(any_loop: str) -> None:
    many = 300_000  # more than aiohttp reads before it pauses
    async with serving(echoing()) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(RawClient.request(at, "/ws", ()) + encode(TEXT, b"w" * many))
            assert b" 101 " in await raw.read_response()
            assert await raw.recv() == Frame(TEXT, b"w" * many)


async def test_an_upgrade_may_follow_an_answered_request(any_loop: str) -> None:
    async with serving(echoing()) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 200 " in await raw.read_response()
            await raw.send_raw(RawClient.request(at, "/ws", ()))
            assert b" 101 " in await raw.read_response()
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")


async def test_over_tls(
    any_loop: str, certificates: Authority, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.write(tmp_path))
    async with serving(echoing(), context) as at:
        with await open_client(at, client_tls) as raw:
            await raw.send(TEXT, b"x" * 100_000)
            assert await raw.recv() == Frame(TEXT, b"x" * 100_000)
        # The origin of a page of this server's is https.
        for scheme, status in (("https", b"101"), ("http", b"403")):
            with await open_client(at, client_tls, upgrade=False) as raw:
                origin = ("Origin", f"{scheme}://127.0.0.1:{at.port}")
                await raw.send_raw(RawClient.request(at, "/ws", [origin]))
                assert (await raw.read_response()).split()[1] == status


async def test_refusals_are_those_of_the_hub() -> None:
    hub = echoing(authenticate=lambda request: None)
    async with serving(hub) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(RawClient.request(at, "/ws", ()))
            assert b" 401 " in await raw.read_response()
        assert hub.get_stats().rejected["auth"] == 1
        status, text = await fetched(at, "/ws")
        assert (status, text) == (426, "this is a WebSocket endpoint\n")


async def test_clients_are_closed_with_the_application(any_loop: str) -> None:
    hub = echoing()
    ends: list[asyncio.Task[Frame]] = []

    async def answered(raw: RawClient) -> Frame:
        with raw:
            frame = await raw.recv(timeout=50)
            await raw.send(CLOSE, frame.payload[:2])
            assert await raw.read_all() == b""
        return frame

    async with serving(hub) as at:
        ends += [asyncio.create_task(answered(await RawClient.open(at))) for _ in range(20)]
        await eventually(lambda: hub.get_connected_clients() == 20)
    assert await asyncio.gather(*ends) == [GOING_AWAY] * 20


async def test_a_hub_serves_one_application_after_another() -> None:
    hub = echoing()
    for _ in range(2):
        async with serving(hub) as at:
            with await RawClient.open(at) as raw:
                await raw.send(TEXT, b"hello")
                assert await raw.recv() == Frame(TEXT, b"hello")


async def test_a_setting_of_the_server_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backlog must stay .* an argument of run_app"):
        async with serving(echoing(HubConfig(backlog=7))):
            pass


async def test_routes_of_the_hub_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    hub = echoing()
    hub.route("/health")(lambda request: "fine")
    async with serving(hub) as at:
        assert (await fetched(at, "/health"))[0] == 404
    assert "not served on aiohttp's port: /health" in caplog.text


def test_a_path_that_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValidationError):
        Hub().aiohttp(web.Application(), "no-slash")
