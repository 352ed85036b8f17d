"""The hub on a path of uvicorn's port, beside FastAPI: real servers, real clients."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port
from tests.script import ROOT
from tests.support import known, named
from wsc_fast import (
    ConfigError,
    Hub,
    HubConfig,
    HubStateError,
    Identity,
    Request,
    TokenAuthenticator,
    ValidationError,
)
from wsc_fast.observe import JsonFormatter
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
    running,
)

HTTPS = pytest.mark.parametrize("http", ["h11", "httptools"])
# Seconds that a process may take on a busy machine.
SLOWEST = 50
GOING_AWAY = Frame(CLOSE, b"\x03\xe9server shutdown")


class At(NamedTuple):
    """Where a server listens."""

    port: int


def echoing(config: HubConfig | None = None, **options: Any) -> Hub:
    hub = Hub(config, **options)
    hub.on_message_received(lambda client, message: client.send(message))
    return hub


def application(hub: Hub) -> FastAPI:
    """An application with HTTP and a WebSocket of its own."""
    app = FastAPI()

    @app.get("/")
    def count() -> int:
        return hub.get_connected_clients()

    @app.websocket("/own")
    async def own(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"own {text}")

    return app


def server_of(hub: Hub, app: Any = None, **options: Any) -> uvicorn.Server:
    endpoint = hub.uvicorn(path="/ws")
    config = uvicorn.Config(app or application(hub), ws=endpoint, log_config=None, **options)
    return uvicorn.Server(config)


@asynccontextmanager
async def serving(hub: Hub, *, app: Any = None, **options: Any) -> AsyncIterator[At]:
    """A hub beside an application on a uvicorn server in the loop of the test.

    At the end the server is told to exit, and nothing is left.
    """
    server = server_of(hub, app, **options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # `serve` without its handlers of signals, which are the test's.
        task = asyncio.create_task(server._serve(sockets=[listening]))
        await eventually(lambda: server.started or task.done())
        if task.done():
            await task
        try:
            yield At(listening.getsockname()[1])
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, SLOWEST)
    assert server.server_state.connections == set()
    assert server.server_state.tasks == set()
    assert_nothing_left(hub)


async def sent_away(raw: RawClient) -> Frame:
    """The frame that comes last, the hub's close frame, which the client answers."""
    with raw:
        frame = await raw.recv(timeout=SLOWEST)
        await raw.send(CLOSE, frame.payload[:2])
        assert await raw.read_all() == b""
    return frame


async def fetched(at: At, path: str = "/") -> bytes:
    """The answer to a GET of this path, on a connection of its own."""
    with await RawClient.open(at, upgrade=False) as raw:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{at.port}\r\nConnection: close\r\n\r\n"
        await raw.send_raw(request.encode())
        return await raw.read_all()


async def answered(at: At, *headers: tuple[str, str], path: str = "/ws") -> bytes:
    """The answer to an upgrade."""
    with await RawClient.open(at, upgrade=False) as raw:
        await raw.send_raw(RawClient.request(at, path, headers))
        return await raw.read_response()


# --- one port ---


@HTTPS
async def test_one_port_has_http_and_both_kinds_of_websockets(any_loop: str, http: Any) -> None:
    hub = echoing()
    async with serving(hub, http=http) as at:
        with await RawClient.open(at) as raw, await RawClient.open(at, "/own") as own:
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")
            await own.send(TEXT, b"hello")
            assert await own.recv() == Frame(TEXT, b"own hello")
            assert (await fetched(at)).endswith(b"\r\n\r\n1")
            assert await asyncio.to_thread(hub.broadcast, "to all") == 1
            assert await raw.recv() == Frame(TEXT, b"to all")


@HTTPS
async def test_frames_that_come_with_the_request_are_heard(any_loop: str, http: Any) -> None:
    hub = echoing()
    texts = [b"one", bytes(range(48, 58)) * 700, b"three"]
    early = b"".join(encode(TEXT, text) for text in texts)
    async with serving(hub, http=http) as at:
        for size in (len(early), 3, len(early) - 2):
            with await RawClient.open(at, tail=early[:size]) as raw:
                await raw.send_raw(early[size:])
                assert [await raw.recv() for _ in texts] == [Frame(TEXT, text) for text in texts]


@HTTPS
async def test_a_request_that_comes_byte_by_byte_is_taken_over(any_loop: str, http: Any) -> None:
    hub = echoing()
    async with serving(hub, http=http) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            for byte in RawClient.request(at) + encode(TEXT, b"hello"):
                await raw.send_raw(bytes([byte]))
                await asyncio.sleep(0)
            await raw.read_response()
            assert raw.response.startswith(b"HTTP/1.1 101 ")
            assert await raw.recv() == Frame(TEXT, b"hello")


@HTTPS
async def test_an_upgrade_may_follow_an_answered_request(any_loop: str, http: Any) -> None:
    hub = echoing()
    async with serving(hub, http=http, timeout_keep_alive=1) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await raw.read_response()).startswith(b"HTTP/1.1 200 ")
            await eventually(lambda: len(raw.buffer) == 1 or bool(raw.buffer))
            raw.buffer.clear()
            await raw.shake_hands(RawClient.request(at) + encode(TEXT, b"hello"))
            assert await raw.recv() == Frame(TEXT, b"hello")


@HTTPS
async def test_over_tls(
    any_loop: str, http: Any, certificates: Authority, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    certfile, keyfile = certificates.write(tmp_path)
    hub = echoing()
    async with serving(hub, http=http, ssl_certfile=certfile, ssl_keyfile=keyfile) as at:
        raws = [await open_client(at, client_tls, path) for path in ("/ws", "/ws", "/own")]
        for raw in raws:
            await raw.send(TEXT, b"x" * 100_000)
        for raw in raws[:2]:
            assert await raw.recv() == Frame(TEXT, b"x" * 100_000)
        assert (await raws[2].recv()).payload.startswith(b"own x")
        # The origin of a page of this server's is https.
        own, other = (("Origin", f"{scheme}://127.0.0.1:{at.port}") for scheme in ("https", "http"))
        for origin, status in ((own, b"101"), (other, b"403")):
            with await open_client(at, client_tls, upgrade=False) as raw:
                await raw.send_raw(RawClient.request(at, "/ws", [origin]))
                assert (await raw.read_response()).split()[1] == status
        with await open_client(at, client_tls, upgrade=False) as raw:
            await raw.shake_hands(RawClient.request(at) + encode(TEXT, b"early"))
            assert await raw.recv() == Frame(TEXT, b"early")
        for raw in raws:
            raw.close()


async def test_a_thousand_clients(any_loop: str) -> None:
    hub = echoing()
    async with serving(hub) as at:
        with contextlib.ExitStack() as stack:
            raws = [stack.enter_context(await RawClient.open(at)) for _ in range(1_000)]
            await eventually(lambda: hub.get_connected_clients() == 1_000)
            assert hub.broadcast("to all") == 1_000
            for raw in raws:
                assert await raw.recv() == Frame(TEXT, b"to all")
            assert (await fetched(at)).endswith(b"1000")
            ends = asyncio.gather(*map(sent_away, raws))
            await hub.stop()
            assert await ends == [GOING_AWAY] * 1_000


async def test_a_unix_socket_of_uvicorns_has_clients_without_an_address(
    any_loop: str, tmp_path: Path
) -> None:
    hub = echoing(
        HubConfig(trusted_proxies=("127.0.0.1",), max_connections_per_address=1),
        authenticate=named,
    )
    path = tmp_path / "socket"
    server = server_of(hub, uds=str(path))
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    at = At(80)
    headers = [("X-Forwarded-For", "203.0.113.7")]
    with contextlib.ExitStack() as stack:
        for name in ("a", "b"):
            reader, writer = await asyncio.open_unix_connection(str(path))
            stack.callback(writer.close)
            writer.write(RawClient.request(at, f"/ws?id={name}", headers) + encode(TEXT, b"hello"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await reader.readexactly(7) == b"\x81\x05hello"
            assert known(hub, name).remote_address == ""
        refused, writer = await asyncio.open_unix_connection(str(path))
        stack.callback(writer.close)
        writer.write(RawClient.request(at, headers=[("Origin", "http://evil.example")]))
        assert (await refused.read()).startswith(b"HTTP/1.1 403 ")
        server.should_exit = True
        assert await reader.readexactly(4) == b"\x88\x11\x03\xe9"
        writer.write(encode(CLOSE, b"\x03\xe9"))
    await asyncio.wait_for(task, SLOWEST)
    assert_nothing_left(hub)


# --- who is let in ---


@HTTPS
async def test_refusals_are_those_of_the_hubs_own_port(any_loop: str, http: Any) -> None:
    def authenticate(request: Any) -> Identity | None:
        return Identity("ann") if request.query.get("token") == "secret" else None

    hub = echoing(HubConfig(max_connections=1), authenticate=authenticate)
    async with serving(hub, http=http) as at:
        wrong = await answered(at, ("Origin", "http://evil.example"), path="/ws?token=secret")
        assert wrong.startswith(b"HTTP/1.1 403 ")
        assert (await answered(at)).startswith(b"HTTP/1.1 401 ")
        version = await answered(at, ("Sec-WebSocket-Version", "8"), path="/ws?token=secret")
        assert version.startswith(b"HTTP/1.1 426 ")
        with await RawClient.open(at, "/ws?token=secret") as raw:
            full = await answered(at, path="/ws?token=secret")
            assert full.startswith(b"HTTP/1.1 503 ")
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")
        rejected = hub.get_stats().rejected
        assert {reason: n for reason, n in rejected.items() if n} == {
            "origin": 1,
            "auth": 1,
            "request": 1,
            "full": 1,
        }


@HTTPS
async def test_each_refusal_leaves_a_line_and_a_metric(
    any_loop: str, http: Any, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    known_token = "a-token-that-is-known"
    hub = echoing(
        HubConfig(max_connections=1, max_header_bytes=1_024, connection_rate_per_address=1e6),
        authenticate=TokenAuthenticator({known_token: "ann"}, query="token"),
    )
    hub.enable_metrics(registry=registry)
    good = f"/ws?token={known_token}"

    async def refused(status: int, reason: str, text: str, *headers: Any, path: str = good) -> None:
        """This status, one more of this reason, and one line with this text."""
        caplog.clear()
        before = counted(registry, reason)
        assert (await answered(at, *headers, path=path)).split()[1] == str(status).encode()
        assert counted(registry, reason) == before + 1
        (line,) = [each for each in caplog.records if hasattr(each, "event")]
        assert (line.levelno, line.name) == (logging.WARNING, "wsc_fast")
        assert vars(line)["address"] == "127.0.0.1"
        assert text in line.getMessage()

    async with serving(hub, http=http) as at:
        await refused(
            403, "origin", "HubConfig.allowed_origins", ("Origin", "https://evil.example")
        )
        await refused(401, "auth", "'no token'", path="/ws")
        await refused(401, "auth", "'the token is unknown'", path="/ws?token=another-token-of-ours")
        await refused(426, "request", "another version", ("Sec-WebSocket-Version", "8"))
        await refused(400, "request", "Sec-WebSocket-Key must be", ("Sec-WebSocket-Key", "x"))
        await refused(431, "request", "HubConfig.max_header_bytes", ("X-Long", "x" * 1_024))
        with await RawClient.open(at, good):
            await refused(503, "full", "HubConfig.max_connections (1)")
        await hub.drain(0)
        await refused(503, "full", "the hub is draining")
        await hub.stop()
        await refused(503, "full", "the hub has stopped")


def counted(registry: CollectorRegistry, reason: str) -> float:
    """The refusals of this reason, as Prometheus' own parser reads them."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    (refusals,) = [each for each in families if each.name == "wsc_refusals"]
    return next(each.value for each in refusals.samples if each.labels["reason"] == reason)


async def test_a_path_is_the_hubs_when_it_is_exactly_that(any_loop: str) -> None:
    hub = echoing()
    async with serving(hub) as at:
        assert (await answered(at, path="/ws?a=b")).startswith(b"HTTP/1.1 101 ")
        for path in ("/ws/", "/WS", "/wss", "/"):
            assert (await answered(at, path=path)).startswith(b"HTTP/1.1 403 "), path
        assert (await fetched(at, "/ws")).startswith(b"HTTP/1.1 404 ")  # HTTP is uvicorn's


async def test_the_address_comes_from_a_trusted_proxy(any_loop: str) -> None:
    hub = echoing(HubConfig(trusted_proxies=("127.0.0.1",)), authenticate=named)
    async with serving(hub) as at:
        headers = [("X-Forwarded-For", "203.0.113.7")]
        with await RawClient.open(at, "/ws?id=a", headers=headers):
            assert known(hub, "a").remote_address == "203.0.113.7"


async def test_a_second_request_before_the_first_is_answered_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await answer.wait()
        await send({"type": "http.response.body", "body": b"late"})

    hub = echoing()
    async with serving(hub, app=slow, http="httptools", lifespan="off") as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            await raw.read_response()
            await raw.send_raw(RawClient.request(at))
            assert b"101" not in await raw.read_all()
        assert hub.get_stats().rejected["request"] == 1
        assert "the request before it on the connection is not answered yet" in caplog.text
        answer.set()
        assert hub.get_connected_clients() == 0


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backlog", 10),
        ("handshake_timeout", 1.0),
        ("max_handshakes", 10),
        ("receive_buffer_size", 4_096),
        ("write_buffer_size", 4_096),
    ],
)
async def test_a_setting_of_uvicorns_is_refused(name: str, value: Any) -> None:
    hub = echoing(HubConfig(**{name: value}))
    with pytest.raises(ConfigError, match=rf"HubConfig\.{name} must stay .* on uvicorn's port"):
        async with serving(hub):
            pass
    assert_nothing_left(hub)


async def test_a_running_hub_refuses_it_too() -> None:
    hub = echoing()
    async with serving(hub):
        with pytest.raises(ConfigError, match=r"HubConfig\.max_handshakes must stay"):
            hub.set_config(HubConfig(max_handshakes=10))
        hub.set_config(HubConfig(max_connections=7))


async def test_limits_of_requests_hold(any_loop: str) -> None:
    hub = echoing(HubConfig(max_header_bytes=512))
    async with serving(hub) as at:
        assert (await answered(at, ("X", "a" * 600))).startswith(b"HTTP/1.1 431 ")
        assert (await answered(at, ("X", "a" * 60))).startswith(b"HTTP/1.1 101 ")


# --- its life ---


async def test_the_hub_runs_before_the_application_starts_and_stops_before_it_ends(
    any_loop: str,
) -> None:
    states = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        states.append(hub.loop)
        yield
        states.append(hub.loop)

    hub = echoing()
    async with serving(hub, app=FastAPI(lifespan=lifespan)) as at:
        end = asyncio.create_task(sent_away(await RawClient.open(at)))
    assert await end == GOING_AWAY
    assert states == [asyncio.get_running_loop(), None]


async def test_it_drains_where_settings_say_so(any_loop: str) -> None:
    hub = echoing(HubConfig(drain_period=0.2))
    async with serving(hub) as at:
        end = asyncio.create_task(sent_away(await RawClient.open(at)))
    assert await end == Frame(CLOSE, b"\x03\xf4service restart")


async def test_a_bound_of_uvicorns_bounds_the_stop(any_loop: str) -> None:
    hub = echoing(HubConfig(drain_period=60.0))
    async with asyncio.timeout(15):
        async with serving(hub, timeout_graceful_shutdown=1) as at:
            raw = await RawClient.open(at)  # which never answers the close frame
        raw.close()


async def test_a_stop_that_uvicorn_cuts_off_leaves_no_hub_half_stopped(any_loop: str) -> None:
    hub = echoing()

    @hub.on_shutdown
    async def takes_too_long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)  # and does not end when it is told to

    server = server_of(hub, timeout_graceful_shutdown=1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server._serve(sockets=[listening]))
        await eventually(lambda: server.started)
        with await RawClient.open(At(listening.getsockname()[1])):
            server.should_exit = True
            await asyncio.wait_for(task, SLOWEST)
            await eventually(lambda: hub.loop is None)
    assert_nothing_left(hub)


async def test_last_words_may_take_their_time_where_the_application_does_not_start() -> None:
    hub = echoing()
    told: list[str] = []

    @hub.on_shutdown
    async def close() -> None:
        await asyncio.sleep(0.01)
        told.append("closed")

    @asynccontextmanager
    async def fails(app: FastAPI) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    with pytest.raises(SystemExit):
        await server_of(hub, FastAPI(lifespan=fails))._serve()
    assert told == ["closed"]
    assert_nothing_left(hub)


async def test_a_hub_serves_one_server_after_another(any_loop: str) -> None:
    hub = echoing()
    for _ in range(2):
        async with serving(hub) as at:
            with await RawClient.open(at, tail=encode(TEXT, b"hello")) as raw:
                assert await raw.recv() == Frame(TEXT, b"hello")


async def test_a_hub_that_the_application_has_stopped_answers_503(any_loop: str) -> None:
    hub = echoing()
    async with serving(hub) as at:
        await hub.stop()
        assert (await answered(at)).startswith(b"HTTP/1.1 503 ")
        assert (await fetched(at)).startswith(b"HTTP/1.1 200 ")


async def test_an_application_that_does_not_start_leaves_no_hub_running() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})

    hub = echoing()
    server = server_of(hub, failing, lifespan="on")
    with contextlib.suppress(SystemExit):  # of newer ones
        await server._serve()
    assert not server.started
    assert_nothing_left(hub)


async def test_a_hub_that_runs_already_is_refused() -> None:
    hub = echoing()
    await hub.attach()
    with pytest.raises(HubStateError, match=r"already, attached to a picows server of your own$"):
        async with serving(hub):
            pass
    await hub.stop()
    async with serving(hub):
        with pytest.raises(
            HubStateError, match=r"the hub runs already, attached to uvicorn's port$"
        ):
            await hub.start(port=0)
    async with running(hub):
        with pytest.raises(HubStateError, match=r"the hub runs already$"):
            async with serving(hub):
                pass


class OwnStart(uvicorn.Server):
    """A server that starts in a way of its own, of which nobody hears."""

    startup = getattr(uvicorn.Server.startup, "__wrapped__", uvicorn.Server.startup)


async def test_where_nobody_tells_of_the_start_the_first_upgrade_starts_the_hub(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn, "Server", OwnStart)
    hub = echoing()
    async with serving(hub) as at:
        assert hub.loop is None
        with await RawClient.open(at, tail=encode(TEXT, b"hello")) as raw:
            assert await raw.recv() == Frame(TEXT, b"hello")


async def test_a_setting_that_cannot_hold_is_then_answered_with_500(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uvicorn, "Server", OwnStart)
    hub = echoing(HubConfig(backlog=7))
    async with serving(hub) as at:
        assert (await answered(at)).startswith(b"HTTP/1.1 500 ")
        assert hub.get_stats().rejected["full"] == 1
    assert (
        "an upgrade from 127.0.0.1 is refused: the hub cannot run on uvicorn's port" in caplog.text
    )
    assert "HubConfig.backlog must stay" in caplog.text


# --- errors ---


async def test_a_hub_is_no_asgi_application(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = echoing()
    app = FastAPI()
    app.mount("/mounted", hub)
    async with serving(hub, app=app) as at:
        assert b" 101 " not in await answered(at, path="/mounted")
        assert (await fetched(at, "/mounted/")).startswith(b"HTTP/1.1 500 ")
    assert 'uvicorn.run(app, ws=hub.uvicorn(path="/ws"))' in caplog.text


def test_a_path_that_cannot_be_served_is_refused() -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "fine")
    for path in ("ws", "", "/a b", "/ws?x", "/health"):
        with pytest.raises(ValidationError, match="path"):
            hub.uvicorn(path=path)


def test_an_endpoint_goes_into_no_other_process() -> None:
    with pytest.raises(ConfigError, match='ws="app:ws"'):
        pickle.dumps(Hub().uvicorn())


@pytest.mark.filterwarnings("ignore:Uvicorn's native WSGI:DeprecationWarning")
async def test_an_interface_without_websockets_is_refused() -> None:
    hub = echoing()
    with pytest.raises(ConfigError, match=r"a2wsgi\.WSGIMiddleware"):
        await server_of(hub, lambda environ, start: [], interface="wsgi")._serve()


async def test_routes_of_the_hub_and_workers_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = echoing()
    hub.route("/health")(lambda request: "fine")
    async with serving(hub, workers=3) as at:
        assert (await fetched(at, "/health")).startswith(b"HTTP/1.1 404 ")
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert any("not served on uvicorn's port" in line and "/health" in line for line in warnings)
    assert any("3 workers, each with a hub of its own" in line for line in warnings)


async def test_routes_that_an_application_serves_are_not_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = with_routes()
    async with serving(hub, app=as_middleware(hub)):
        pass
    assert "not served on uvicorn's port" not in caplog.text


async def test_the_log_is_written_while_the_server_runs_where_nobody_has_configured_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = logging.getLogger("wsc_fast")
    monkeypatch.setattr(log, "handlers", [])
    hub = echoing(HubConfig(log_format="json"))
    async with serving(hub):
        (handler,) = log.handlers
        assert isinstance(handler.formatter, JsonFormatter)
        with pytest.raises(HubStateError):  # it runs already
            await server_of(hub)._serve()
        assert log.handlers == [handler]
    assert log.handlers == []


def test_without_uvicorn_the_error_names_the_extra() -> None:
    code = """
        import sys
        sys.modules["uvicorn"] = None
        from wsc_fast import Hub
        try:
            Hub().uvicorn()
        except ImportError as error:
            print(error)
    """
    script = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines())],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "pip install 'wsc_fast[uvicorn]'" in script.stdout, script.stderr


# --- the hub's routes on uvicorn's port ---

KEY = "a-key-of-the-tests"
WITH_KEY = {"X-API-Key": KEY}


def with_routes() -> Hub:
    """A hub with the HTTP API, metrics, and routes of its own."""
    hub = echoing()
    hub.enable_api("/api", keys=KEY)
    hub.enable_metrics(registry=CollectorRegistry())

    @hub.route("/rooms/{room}", methods=("GET", "PUT"))
    async def room(request: Request) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"room": request.path_params["room"], "body": request.body.decode()}

    @hub.route("/broken")
    def broken(request: Request) -> str:
        raise RuntimeError("of the application's")

    return hub


def as_middleware(hub: Hub) -> Any:
    app = application(hub)
    app.add_middleware(hub.asgi_routes)
    return app


def around(hub: Hub) -> Any:
    return hub.asgi_routes(application(hub))


def mounted(hub: Hub) -> Any:
    app = application(hub)
    app.mount("/api", hub.asgi_routes())
    app.mount("/rooms", hub.asgi_routes())
    return app


SERVED = pytest.mark.parametrize("served", [as_middleware, around, mounted])


@asynccontextmanager
async def asking(hub: Hub, app: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that has this application and the hub."""
    async with serving(hub, app=app, **options) as at:
        base = f"http://127.0.0.1:{at.port}"
        async with httpx.AsyncClient(base_url=base, timeout=SLOWEST) as client:
            yield client


@SERVED
async def test_an_application_serves_the_routes_of_the_hub(any_loop: str, served: Any) -> None:
    hub = with_routes()
    async with asking(hub, served(hub)) as client:
        assert (await client.get("/")).json() == 0  # of the application
        health = await client.get("/api/health", headers=WITH_KEY)
        assert health.json() == {"status": "ok", "bus": "none", "clients": 0}
        assert (await client.get("/api/health")).status_code == 401
        assert (await client.get("/api/nothing")).status_code == 404
        room = await client.put("/rooms/a%2Fb?x=1", content=b"w" * 60_000)
        assert room.json() == {"room": "a/b", "body": "w" * 60_000}
        assert room.headers["content-type"] == "application/json"
        assert len(room.headers.get_list("date")) == 1
        head = await client.head("/rooms/a")
        assert (head.status_code, head.content) == (200, b"")
        gone = await client.delete("/rooms/a")
        assert (gone.status_code, gone.headers["allow"]) == (405, "GET, HEAD, PUT")


@SERVED
async def test_a_request_to_the_api_reaches_the_clients(served: Any) -> None:
    hub = with_routes()
    async with asking(hub, served(hub)) as client:
        with await RawClient.open(At(client.base_url.port or 0)) as raw:
            body = {"message": "hello"}
            sent = await client.post("/api/broadcast", json=body, headers=WITH_KEY)
            assert sent.status_code == 200
            assert await raw.recv() == Frame(TEXT, b"hello")


async def test_a_route_does_there_as_on_the_port_of_the_hub() -> None:
    hub = with_routes()
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    async with asking(hub, around(hub)) as client:
        big = await client.put("/rooms/a", content=b"w" * (hub.config.max_request_body + 1))
        assert big.status_code == 413

        async def pieces() -> AsyncIterator[bytes]:
            yield b"of no known length"

        assert (await client.put("/rooms/a", content=pieces())).status_code == 411
        assert "wsc_connected_clients 0.0" in (await client.get("/metrics")).text
        broken = await client.get("/broken")
        assert (broken.status_code, broken.text) == (500, "500 Internal Server Error\n")
        assert hub.get_stats().limited["max_request_body"] == 1
    assert [str(error) for error in errors] == ["of the application's"]


async def test_a_root_path_is_no_part_of_the_path_of_a_route() -> None:
    hub = with_routes()
    async with asking(hub, as_middleware(hub), root_path="/behind") as client:
        assert (await client.get("/rooms/a")).json() == {"room": "a", "body": ""}


async def test_a_peer_that_leaves_before_its_body_is_there_is_forgotten() -> None:
    hub = with_routes()
    async with serving(hub, app=around(hub)) as at:
        with await RawClient.open(at, upgrade=False) as raw:
            await raw.send_raw(b"PUT /rooms/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nw")
        assert (await fetched(at, "/rooms/a")).startswith(b"HTTP/1.1 200 ")


async def test_where_the_hub_does_not_run_its_routes_are_answered_with_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = with_routes()
    transport = httpx.ASGITransport(around(hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/rooms/a")).status_code == 503
    assert "ws=hub.uvicorn" in caplog.text
    assert hub.get_stats().rejected["full"] == 1


async def test_routes_alone_serve_no_websocket_and_say_what_does() -> None:
    with pytest.raises(HubStateError, match=r"ws=hub\.uvicorn"):
        await Hub().asgi_routes()({"type": "websocket", "path": "/ws"}, None, None)


# --- processes ---

APP = """
from wsc_fast import Hub

hub = Hub()
ws = hub.uvicorn(path="/ws")


@hub.on_message_received
def echo(client, message):
    client.send(message)


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first"})
"""


@contextmanager
def uvicorn_process(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], At]]:
    """`uvicorn app:app --ws app:ws` on an inherited socket."""
    (folder / "app.py").write_text(APP)
    at = At(free_port())
    command = [sys.executable, "-m", "uvicorn", "app:app", "--ws", "app:ws", f"--port={at.port}"]
    with subprocess.Popen(
        [*command, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, at
        finally:
            process.kill()


async def connected(at: At) -> RawClient:
    """A client, once the server listens."""
    async with asyncio.timeout(SLOWEST):
        while True:
            try:
                return await RawClient.open(at)
            except (ConnectionError, AssertionError, TimeoutError):
                # While it starts, its socket may take a connection that nobody serves yet.
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_closes_the_clients_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    with uvicorn_process(tmp_path) as (process, at):
        with await connected(at) as raw:
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")
            process.send_signal(number)
            assert await sent_away(raw) == GOING_AWAY
        _, errors = await asyncio.to_thread(process.communicate, timeout=SLOWEST)
        assert process.returncode in (0, -number)
        assert "Finished server process" in errors
        assert re.search(r" INFO wsc_fast: attached to uvicorn's port /ws \(process \d+, ", errors)
        assert re.search(r" INFO wsc_fast: stopped in \d", errors)
        assert "Traceback" not in errors
        assert "Warning" not in errors


async def test_a_reload_closes_the_clients_and_serves_the_new_code(tmp_path: Path) -> None:
    with uvicorn_process(tmp_path, "--reload", "--reload-delay=0.05") as (process, at):
        with await connected(at) as raw:
            end = asyncio.create_task(sent_away(raw))
            file = tmp_path / "app.py"
            file.write_text(APP.replace("first", "second"))
            stamps = itertools.count(int(file.stat().st_mtime) + 10, 10)

            def has_seen_the_change() -> bool:
                # Again and again, since it may not have looked at the file as it was before.
                stamp = next(stamps)
                os.utime(file, (stamp, stamp))
                return end.done()

            await eventually(has_seen_the_change, timeout=SLOWEST)
            assert await end == GOING_AWAY
        with await connected(at) as raw:
            assert b"second" in await fetched(at)
            process.send_signal(signal.SIGINT)
            assert await sent_away(raw) == GOING_AWAY
        _, errors = await asyncio.to_thread(process.communicate, timeout=SLOWEST)
        assert "Traceback" not in errors


async def test_each_worker_serves_clients_and_warns(tmp_path: Path) -> None:
    with uvicorn_process(tmp_path, "--workers=2") as (process, at):
        with await connected(at) as raw:
            await raw.send(TEXT, b"hello")
            assert await raw.recv() == Frame(TEXT, b"hello")
            process.send_signal(signal.SIGINT)
            assert await sent_away(raw) == GOING_AWAY
        _, errors = await asyncio.to_thread(process.communicate, timeout=SLOWEST)
        assert "2 workers, each with a hub of its own" in errors
        assert "Traceback" not in errors
