"""The upgrade: routes, refusals, origins, authentication, and a picows server of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, unquote

import aiohttp
import msgspec
import pytest
import websockets
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import exchange, only_client, run_apart
from wsc_fast import (
    ACKConfig,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    MemoryOfflineStore,
    Request,
    Response,
    ValidationError,
)
from wsc_fast._core.handshake import RequestHead
from wsc_fast.addresses import origin_allowed
from wsc_fast.testing import CLOSE, TEXT, RawClient, encode, eventually, running, uri


class Answer:
    """A parsed HTTP answer; asserts that it is the only one on its connection."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status_line.split(" ")[1])
        self.fields = [tuple(line.split(": ", 1)) for line in lines]
        assert b"HTTP/1.1 " not in self.body

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value


async def ask(
    hub: Hub, path: str = "/ws", headers: list[tuple[str, str]] | None = None, **replaced: str
) -> Answer:
    """The answer that refuses an upgrade request."""
    answer = Answer(await exchange(hub, RawClient.request(hub, path, headers or (), **replaced)))
    assert answer["Connection"] == ("close, Upgrade" if answer.status == 426 else "close")
    if answer.status not in (204, 304):
        assert int(answer["Content-Length"]) == len(answer.body)
    return answer


async def get(hub: Hub, path: str) -> Answer:
    """A plain GET."""
    return Answer(await exchange(hub, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))


async def upgraded(hub: Hub, data: bytes) -> bool:
    """Whether a request is answered with 101."""
    with await RawClient.open(hub, upgrade=False) as client:
        await client.send_raw(data)
        return (await client.read_response()).startswith(b"HTTP/1.1 101 ")


# --- the upgrade ---


@pytest.mark.parametrize(
    "path", ["/", "/w", "/wss", "/ws/", "//ws", "/ws/x", "/WS", "/%77s", "/ws;x", "/x?/ws"]
)
async def test_another_path_is_404(path: str) -> None:
    hub = Hub()
    async with running(hub):
        assert (await ask(hub, path)).status == 404
        rejected = hub.get_stats().rejected
        assert {why: count for why, count in rejected.items() if count} == {"request": 1}


async def test_the_path_is_what_start_was_given_and_its_query_is_free() -> None:
    hub = Hub()
    async with running(hub, path="/chat/socket"):
        assert await upgraded(hub, RawClient.request(hub, "/chat/socket?a=b&c=/ws"))
        assert await upgraded(hub, RawClient.request(hub, "/chat/socket?"))
        assert (await ask(hub, "/ws")).status == 404


@pytest.mark.parametrize(
    "replaced",
    [
        {"Upgrade": "", "Connection": ""},
        {"Upgrade": ""},
        {"Upgrade": "h2c"},
        {"Connection": ""},
        {"Connection": "close"},
        {"Connection": "upgraded"},
    ],
    ids=str,
)
async def test_a_request_on_the_hubs_path_that_is_no_upgrade_is_426(
    replaced: dict[str, str],
) -> None:
    hub = Hub()
    async with running(hub):
        answer = await ask(hub, **replaced)
        assert answer.status == 426
        # RFC 9110 section 15.5.22 asks for it.
        assert answer["Upgrade"] == "websocket"
        assert hub.get_stats().rejected["request"] == 1


@pytest.mark.fault(number="A21")
@pytest.mark.parametrize("version", ["", "7", "8", "12", "14", "013", "13, 8", "x"])
async def test_another_version_is_426_and_names_ours(version: str) -> None:
    hub = Hub()
    async with running(hub):
        answer = await ask(hub, Sec_WebSocket_Version=version)
        assert answer.status == 426
        assert answer["Sec-WebSocket-Version"] == "13"


@pytest.mark.fault(number="A21")
@pytest.mark.parametrize(
    ("headers", "replaced"),
    [
        ([], {"Host": ""}),
        ([("Host", "other.example")], {}),
        ([], {"Host": "a b"}),
        ([], {"Host": "user@host"}),
        ([], {"Host": "host:port"}),
        ([], {"Sec_WebSocket_Key": ""}),
        ([], {"Sec_WebSocket_Key": "short"}),
        ([], {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}),
        ([], {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZSE="}),
        ([], {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25j\xe9Q=="}),
        ([], {"Sec_WebSocket_Key": "!GhlIHNhbXBsZSBub25jZQ=="}),
        ([("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")], {}),
        ([("Content-Length", "5")], {}),
        ([("Transfer-Encoding", "chunked")], {}),
        ([("bad header", "x")], {}),
    ],
    ids=str,
)
async def test_a_malformed_upgrade_is_400(
    headers: list[tuple[str, str]], replaced: dict[str, str]
) -> None:
    hub = Hub()
    async with running(hub):
        assert (await ask(hub, headers=headers, **replaced)).status == 400
        assert hub.connections == 0


@pytest.mark.fault(number="A20")
@pytest.mark.parametrize(
    "target",
    [
        "foo",
        "ftp://x/ws",
        "http:/ws",
        "*",
        "/a\nb",
        "/\x1b[31m",
        "/\x00",
        "/\xff",
        "/ws\x7f",
        "/a b",
    ],
    ids=ascii,
)
async def test_a_target_that_is_no_path_is_400(target: str) -> None:
    hub = Hub()
    async with running(hub):
        assert (await ask(hub, target)).status == 400


@pytest.mark.fault(number="A11")
@pytest.mark.parametrize(
    ("headers", "replaced"),
    [
        # As Firefox sends it.
        ([], {"Connection": "keep-alive, Upgrade"}),
        ([], {"Connection": "keep-alive,upgrade"}),
        ([], {"Connection": "Upgrade,"}),
        ([], {"Connection": "UPGRADE"}),
        ([], {"Connection": " , upgrade , HTTP2-Settings"}),
        ([("Connection", "keep-alive")], {}),
        ([("Connection", "Upgrade")], {"Connection": "keep-alive"}),
        ([], {"Upgrade": "WebSocket"}),
        ([], {"Upgrade": "websocket, h2c"}),
        ([("Upgrade", "h2c")], {}),
        ([("Upgrade", "websocket")], {"Upgrade": "h2c"}),
    ],
    ids=str,
)
async def test_lists_in_connection_and_upgrade_are_understood(
    headers: list[tuple[str, str]], replaced: dict[str, str]
) -> None:
    hub = Hub()
    async with running(hub):
        assert await upgraded(hub, RawClient.request(hub, "/ws", headers, **replaced))


async def test_the_accept_key_is_the_one_of_the_rfc() -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as client:
            # RFC 6455 section 1.3.
            await client.send_raw(client.request(hub, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ=="))
            answer = Answer(await client.read_response())
            assert answer.status == 101
            assert answer["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert answer["Upgrade"] == "websocket"
            assert answer["Connection"].lower() == "upgrade"
            # Neither was offered (RFC 6455 section 4.2.2).
            assert answer.all("Sec-WebSocket-Protocol") == []
            assert answer.all("Sec-WebSocket-Extensions") == []


async def test_a_request_that_arrives_byte_by_byte(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as client:
            for byte in client.request(hub) + encode(TEXT, b"x"):
                await client.send_raw(bytes([byte]))
            assert (await client.read_response()).startswith(b"HTTP/1.1 101 ")
            await eventually(lambda: hub.get_stats().messages_in == 1)


async def test_a_request_that_never_ends_is_cut_off(any_loop: str) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.2))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as silent:
            with await RawClient.open(hub, upgrade=False) as half:
                await half.send_raw(half.request(hub)[:-3])
                assert await half.read_all() == b""
            assert await silent.read_all() == b""
        with await RawClient.open(hub, upgrade=False) as endless:
            await endless.send_raw(b"GET /ws HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000)
            assert b" 101 " not in await endless.read_all()
        assert hub.connections == 0


# --- HTTP ---


def health_hub(**settings: Any) -> Hub:
    hub = Hub(HubConfig(**settings))
    hub.route("/health")(lambda request: "fine")
    return hub


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "host", ["", "Host: x\r\n", "Host: x:80\r\nConnection: close\r\n"], ids=repr
)
async def test_a_route_answers_http_1_0_which_needs_no_host(method: str, host: str) -> None:
    hub = health_hub()
    async with running(hub):
        answer = Answer(await exchange(hub, f"{method} /health HTTP/1.0\r\n{host}\r\n".encode()))
        assert (answer.status, answer.body) == (200, b"" if method == "HEAD" else b"fine")
        assert answer["Content-Length"] == "4"
        assert answer["Connection"] == "close"


async def test_http_1_0_has_no_upgrade() -> None:
    hub = Hub()
    async with running(hub):
        for drop in ("", "Host"):
            request = RawClient.request(hub, **({drop: ""} if drop else {}))
            answer = Answer(await exchange(hub, request.replace(b"HTTP/1.1", b"HTTP/1.0", 1)))
            assert answer.status == 426
            assert answer["Upgrade"] == "websocket"
        # Of a later version of HTTP/1 we know what 1.1 has (RFC 9110 section 2.5).
        assert await upgraded(hub, RawClient.request(hub).replace(b"HTTP/1.1", b"HTTP/1.2", 1))


BAD_HOSTS = ["a b/c@d", "a b", "user@x", "x:port", "x:99999", "x,y", "[::1", "\xe4", ""]


@pytest.mark.parametrize("path", ["/health", "/none", "/ws"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "BREW"])
async def test_every_request_has_one_sound_host(path: str, method: str) -> None:
    hub = health_hub()
    async with running(hub):

        async def status(version: str, *hosts: str) -> int:
            lines = [f"{method} {path} {version}", *(f"Host: {host}" for host in hosts), "", ""]
            return Answer(await exchange(hub, "\r\n".join(lines).encode("latin-1"))).status

        for host in BAD_HOSTS:
            assert await status("HTTP/1.1", host) == 400, host
            assert await status("HTTP/1.0", host) == 400, host
        for version in ("HTTP/1.1", "HTTP/1.0"):
            assert await status(version, "a", "b") == await status(version, "a", "a") == 400
        assert await status("HTTP/1.1") == 400
        if method != "BREW":
            assert await status("HTTP/1.1", "a_b:80") != 400
            assert await status("HTTP/1.0") != 400
        assert hub.get_stats().rejected["request"] >= 2 * len(BAD_HOSTS) + 5


@pytest.mark.parametrize(
    ("target", "status", "path", "query"),
    [
        ("http://app.example/health", 200, "/health", {}),
        ("HTTPS://app.example:8443/health?a=b", 200, "/health", {"a": "b"}),
        ("http://[::1]:80/health?", 200, "/health", {}),
        ("http://app.example", 200, "/", {}),
        ("http://app.example?a=b", 200, "/", {"a": "b"}),
        ("http://app.example/none", 404, None, {}),
        ("ftp://app.example/health", 400, None, {}),
        ("http:///health", 400, None, {}),
        ("http://user@app.example/health", 400, None, {}),
        ("http://app.example:port/health", 400, None, {}),
        ("http://app.example#/health", 400, None, {}),
        ("app.example/health", 400, None, {}),
    ],
)
async def test_a_target_in_absolute_form_is_understood(
    target: str, status: int, path: str | None, query: dict[str, str]
) -> None:
    hub = Hub()
    seen: list[Request] = []
    for route in ("/health", "/"):
        hub.route(route)(lambda request: seen.append(request) or "fine")  # type: ignore[func-returns-value]
    async with running(hub):
        data = await exchange(hub, f"GET {target} HTTP/1.1\r\nHost: other\r\n\r\n".encode())
        assert Answer(data).status == status
        assert [(it.path, it.query) for it in seen] == ([] if path is None else [(path, query)])


@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
async def test_the_host_of_an_upgrade_in_absolute_form_is_that_of_its_target(scheme: str) -> None:
    hub = Hub(HubConfig(allowed_hosts=("app.example",)))
    async with running(hub):

        async def status(target: str, host: str, origin: str | None = None) -> bytes:
            headers = [] if origin is None else [("Origin", origin)]
            with await RawClient.open(hub, upgrade=False) as raw:
                await raw.send_raw(raw.request(hub, target, headers, Host=host))
                return (await raw.read_response())[9:12]

        own = f"{scheme}://app.example/ws?a=b"
        # RFC 9112 section 3.2.2: the header does not count then.
        assert await status(own, "evil.example") == b"101"
        assert await status(own, "evil.example", "http://app.example") == b"101"
        assert await status(own, "app.example", "http://evil.example") == b"403"
        assert await status(own, "evil.example", "http://evil.example") == b"403"
        assert await status(f"{scheme}://evil.example/ws", "app.example") == b"403"


async def test_an_empty_line_before_a_request_is_passed_over(any_loop: str) -> None:
    hub = health_hub()
    health = b"\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running(hub):
        assert Answer(await exchange(hub, health)).body == b"fine"
        assert await upgraded(hub, b"\r\n" + RawClient.request(hub))
        for step in (1, 2, 3):
            with await RawClient.open(hub, upgrade=False) as raw:
                for at in range(0, len(health), step):
                    await raw.send_raw(health[at : at + step])
                    await asyncio.sleep(0)
                assert Answer(await raw.read_all()).body == b"fine"
        for before in (b"\r\n\r\n", b"\n", b"\r", b"\r\r\n", b" "):
            assert Answer(await exchange(hub, before + health[2:])).status == 400


async def test_every_answer_has_a_date() -> None:
    hub = health_hub()
    hub.route("/none-left")(lambda request: Response(204))
    hub.route("/own")(lambda request: Response(headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    async with running(hub):
        requests = {
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n": 200,
            b"GET /health HTTP/1.0\r\n\r\n": 200,
            b"GET /none-left HTTP/1.1\r\nHost: x\r\n\r\n": 204,
            b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n": 404,
            b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n": 426,
            b"POST /health HTTP/1.1\r\nHost: x\r\n\r\n": 405,
            b"GET / HTTP/1.1\r\n\r\n": 400,
            b"garbage\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000: 431,
        }
        for request, status in requests.items():
            began = int(time.time())
            answer = Answer(await exchange(hub, request))
            assert answer.status == status
            # RFC 9110 section 6.6.1.
            told = parsedate_to_datetime(answer["Date"]).timestamp()
            assert began <= told <= time.time()
        assert (await get(hub, "/own"))["Date"] == "Thu, 01 Jan 1970 00:00:00 GMT"


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_an_answer_without_a_body_has_none(status: int) -> None:
    for body in (b"x", "x"):
        with pytest.raises(ValidationError, match=f"status {status} has no body"):
            Response(status, body)
    hub = Hub()
    hub.route("/r")(lambda request: Response(status, headers={"X-A": "b"}))
    async with running(hub):
        for method in ("GET", "HEAD"):
            data = await exchange(hub, f"{method} /r HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = Answer(data)
            assert (answer.status, answer.body, answer["X-A"]) == (status, b"", "b")
            # RFC 9110 sections 8.6 and 15.3.6.
            assert answer.all("Content-Length") == (["0"] if status == 205 else [])
            assert answer.all("Content-Type") == []


# --- what is no HTTP ---

NO_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "bare LF": b"GET /ws HTTP/1.1\nHost: x\n\n",
    "high bytes": bytes(range(128, 256)),
    "PROXY 1": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "PROXY 2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "another name": b"GET / HTTQ",
    "two spaces": b"GET  /",
    "a byte in the target": b"GET /\x80",
    "JSON": b'{"type": "hello"}\n',
}


def lines_of(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if getattr(record, "event", "") == event
    ]


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytes"])
@pytest.mark.parametrize("kind", list(NO_HTTP))
async def test_bytes_that_are_no_http_are_answered_at_once(
    any_loop: str, kind: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub = Hub(HubConfig(handshake_timeout=60.0))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(NO_HTTP[kind]), step or 1_000):
                    await raw.send_raw(NO_HTTP[kind][at : at + (step or 1_000)])
            assert Answer(await raw.read_all()).status == 400
        assert hub.get_stats().rejected["request"] == 1
    (line,) = lines_of(caplog, "bad_request")
    assert line.startswith("a bad request from 127.0.0.1: ")
    assert ("TLS" in line) == (kind == "TLS")


async def test_the_log_tells_why_a_host_or_an_origin_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    hub = Hub(HubConfig(allowed_hosts=("app.example",), trusted_proxies=("127.0.0.1",)))
    async with running(hub):
        forwarded = [("X-Forwarded-For", "192.0.2.1")]
        answer = await ask(hub, headers=forwarded, Host="Evil.example:80")
        assert (answer.status, answer.body) == (403, b"403 Forbidden: this host is not served\n")
        headers = [*forwarded, ("Origin", "http://evil.example/\xe4" + "x" * 1_000)]
        answer = await ask(hub, headers=headers, Host="app.example")
        assert (answer.status, answer.body) == (403, b"403 Forbidden: this origin is not allowed\n")
        two = [("Origin", "http://app.example"), ("Origin", "http://app.example")]
        assert (await ask(hub, headers=two, Host="app.example")).status == 403
    host, origin, twice = lines_of(caplog, "upgrade_refused")
    assert host == (
        "an upgrade from 192.0.2.1 is refused: the host 'Evil.example:80' is none of "
        "HubConfig.allowed_hosts ('app.example')"
    )
    assert origin.startswith(
        "an upgrade from 192.0.2.1 is refused: the origin 'http://evil.example/\\xe4xxx"
    )
    assert len(origin) < 400
    assert "app.example" in origin
    assert twice == "an upgrade from 127.0.0.1 is refused: it has two headers Origin"


# --- how many ---


async def test_the_next_upgrade_beyond_max_connections_is_503_with_retry_after() -> None:
    hub = Hub(HubConfig(max_connections=2))

    @hub.route("/health")
    def health(request: Request) -> str:
        return "ok"

    async with running(hub):
        with await RawClient.open(hub):
            second = await RawClient.open(hub)
            for _ in range(2):
                answer = await ask(hub)
                assert answer.status == 503
                assert int(answer["Retry-After"]) > 0
            assert hub.get_stats().rejected["full"] == 2
            # A request that needs no slot is still answered.
            assert (await get(hub, "/health")).status == 200
            second.close()
            await eventually(lambda: hub.connections == 1)
            with await RawClient.open(hub):
                assert hub.get_connected_clients() == 2


@pytest.mark.fault(number="H4")
async def test_two_hundred_at_once_at_a_limit_of_fifty_make_fifty_clients(any_loop: str) -> None:
    hub = Hub(HubConfig(max_connections=50))
    async with running(hub):
        for _ in range(3):
            async with AsyncExitStack() as stack:

                async def attempt(stack: AsyncExitStack = stack) -> int:
                    client = await RawClient.open(hub, upgrade=False)
                    stack.enter_context(client)
                    await client.send_raw(client.request(hub))
                    return int((await client.read_response()).split(b" ")[1])

                statuses = await asyncio.gather(*(attempt() for _ in range(200)))
                assert sorted(statuses) == [101] * 50 + [503] * 150
                assert hub.get_connected_clients() == hub.connections == 50
            await eventually(lambda: hub.connections == 0)


@pytest.mark.fault(number="H4")
async def test_no_failing_path_keeps_a_slot() -> None:
    async def authenticate(request: Request) -> Identity | None:
        how = request.query.get("how")
        if how == "raise":
            raise ValueError("mine")
        if how == "never":
            await asyncio.Event().wait()
        return None if how == "none" else Identity("u")

    hub = Hub(HubConfig(max_connections=5, authentication_timeout=0.05), authenticate=authenticate)

    @hub.on_client_connected
    def connected(client: Client) -> None:
        if client.remote_address != "127.0.0.1":
            raise ValueError("not from here")

    async with running(hub):

        async def refused() -> None:
            assert (await ask(hub, "/none")).status == 404
            assert (await ask(hub, Upgrade="")).status == 426
            assert (await ask(hub, Host="")).status == 400
            assert (await ask(hub, headers=[("Origin", "http://evil.example")])).status == 403

        async def closed(how: str, code: int) -> None:
            with await RawClient.open(hub, f"/ws?how={how}") as client:
                assert (await client.recv()).code == code

        async def gone(how: str) -> None:
            client = await RawClient.open(hub, f"/ws?how={how}")
            client.reset()

        async def aborted() -> None:
            client = await RawClient.open(hub, upgrade=False)
            await client.send_raw(client.request(hub)[:40])
            client.reset()

        for _ in range(30):
            await refused()
            await aborted()
            for step in (closed("none", 4401), closed("raise", 1011), gone("never"), gone("")):
                await step
            await eventually(lambda: hub.connections == 0)
        await closed("never", 4401)
        await eventually(lambda: hub.connections == 0)
        async with AsyncExitStack() as stack:
            for _ in range(5):
                stack.enter_context(await RawClient.open(hub))
            await eventually(lambda: hub.get_connected_clients() == 5)
            assert (await ask(hub)).status == 503


# --- origins and hosts ---

BAD_ORIGINS = [
    "null",
    "file://",
    "",
    "http://app.example",
    "https://app.example:4433",
    "https://app.example.evil",
    "https://evilapp.example",
    "https://app.example@evil",
    "https://app.example/",
    "https://app.example#x",
    "https://app.example, https://app.example",
    "https://app.example\t",
    "ws://app.example",
    "app.example",
    "//app.example",
    "https:app.example",
    # B2
    "http://a:b",
    "http://[::1",
    "http://[",
    "https://",
    "https://:443",
    "https://app.example:",
    "https://app.example:99999999999999999999",
    "https://app.example\xff",
    "\xff",
    "x" * 10_000,
]


@pytest.mark.fault(number="B1")
@pytest.mark.fault(number="B2")
@pytest.mark.parametrize("origin", BAD_ORIGINS, ids=lambda origin: ascii(origin)[:40])
async def test_another_or_a_malformed_origin_is_403(origin: str) -> None:
    hub = Hub(HubConfig(allowed_origins=("https://app.example",)))
    async with running(hub):
        # Header values are stripped of white space, so that this one case is the good one.
        if origin == "https://app.example\t":
            assert await upgraded(hub, RawClient.request(hub, "/ws", [("Origin", origin)]))
            return
        answer = await ask(hub, headers=[("Origin", origin)])
        assert answer.status == 403
        assert hub.get_stats().rejected["origin"] == 1


@pytest.mark.fault(number="B1")
async def test_two_origins_are_403() -> None:
    hub = Hub(HubConfig(allowed_origins=("https://app.example",)))
    async with running(hub):
        headers = [("Origin", "https://app.example"), ("Origin", "https://app.example")]
        assert (await ask(hub, headers=headers)).status == 403


async def test_origins_that_may_connect() -> None:
    hub = Hub(HubConfig(allowed_origins=("https://app.example", "*.example.org")))
    async with running(hub):
        for origin in (
            None,  # no browser: the documented policy
            f"http://127.0.0.1:{hub.port}",
            f"https://127.0.0.1:{hub.port}",  # behind a proxy that speaks TLS
            "https://app.example",
            "https://app.example:443",
            "HTTPS://APP.EXAMPLE",
            "https://a.example.org",
            "http://a.b.example.org",
        ):
            headers = [] if origin is None else [("Origin", origin)]
            assert await upgraded(hub, RawClient.request(hub, "/ws", headers)), origin
        for origin in ("https://example.org", "https://evilexample.org", "https://a.example.org.x"):
            assert (await ask(hub, headers=[("Origin", origin)])).status == 403
        hub.set_config(HubConfig(check_origin=False))
        for origin in (*BAD_ORIGINS[:4], "https://evil.example"):
            assert await upgraded(hub, RawClient.request(hub, "/ws", [("Origin", origin)]))
        hub.set_config(HubConfig(allowed_origins=("*",)))
        assert await upgraded(hub, RawClient.request(hub, "/ws", [("Origin", "https://evil")]))


@pytest.mark.parametrize(
    ("origin", "host", "tls", "allowed", "expected"),
    [
        ("http://a.example", "a.example", False, (), True),
        ("http://a.example", "A.Example", False, (), True),
        ("http://a.example:80", "a.example", False, (), True),
        ("http://a.example", "a.example:80", False, (), True),
        ("http://a.example:8080", "a.example:8080", False, (), True),
        ("http://a.example:8080", "a.example:8081", False, (), False),
        ("http://a.example:8080", "a.example", False, (), False),
        ("https://a.example", "a.example", False, (), True),
        ("https://a.example", "a.example", True, (), True),
        # A page that came without TLS must not speak to a server of the same name with it.
        ("http://a.example", "a.example", True, (), False),
        ("http://[::1]:80", "[::1]:80", False, (), True),
        ("http://[::1]", "[::2]", False, (), False),
        ("http://b.example", "a.example", False, ("b.example",), True),
        ("https://b.example", "a.example", False, ("b.example",), True),
        ("https://b.example:8443", "a.example", False, ("b.example",), False),
        ("https://b.example:8443", "a.example", False, ("https://b.example:8443",), True),
        ("http://x.b.example", "a.example", False, ("https://*.b.example",), False),
        ("https://x.b.example", "a.example", False, ("https://*.b.example",), True),
        ("https://x.b.example", "a.example", False, ("*.B.EXAMPLE",), True),
        ("https://b.example", "a.example", False, ("*.b.example",), False),
        ("https://xb.example", "a.example", False, ("*.b.example",), False),
        ("null", "a.example", False, (), False),
        ("null", "null", False, ("*.b.example",), False),
        ("anything", "a.example", False, ("*",), True),
    ],
)
def test_origin_allowed(
    origin: str, host: str, tls: bool, allowed: tuple[str, ...], expected: bool
) -> None:
    assert origin_allowed(origin, host, tls, allowed) is expected


@pytest.mark.fault(number="B8")
async def test_a_host_that_is_not_allowed_is_403_whatever_its_origin() -> None:
    hub = Hub()
    async with running(hub):
        port = hub.port
        hub.set_config(HubConfig(allowed_hosts=(f"127.0.0.1:{port}", "App.Example")))
        evil = f"attack.poc:{port}"
        answer = await ask(hub, headers=[("Origin", f"http://{evil}")], Host=evil)
        assert answer.status == 403
        assert hub.get_stats().rejected["origin"] == 1
        assert (await ask(hub, Host="127.0.0.1")).status == 403
        assert await upgraded(hub, RawClient.request(hub))
        # Host names have no case (RFC 9110 section 4.2.3).
        assert await upgraded(hub, RawClient.request(hub, Host="app.example"))
        assert await upgraded(hub, RawClient.request(hub, Host="APP.EXAMPLE"))


# --- the rest of the handshake ---


@pytest.mark.fault(number="B3")
@pytest.mark.parametrize("refused", ["/none", "/ws", "/health"])
async def test_a_request_pipelined_behind_a_refused_upgrade_is_not_served(refused: str) -> None:
    hub = Hub()
    served: list[str] = []

    @hub.route("/metrics")
    def metrics(request: Request) -> str:
        served.append("metrics")
        return "secret"

    @hub.route("/health")
    def health(request: Request) -> str:
        return "ok"

    async with running(hub):
        first = RawClient.request(hub, refused, Upgrade="" if refused == "/ws" else "websocket")
        data = await exchange(hub, first + b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        # `exchange` has seen the end of the stream; Answer asserts that there is only one.
        answer = Answer(data)
        assert answer.status in (200, 404, 426)
        assert answer["Connection"].startswith("close")
        assert b"secret" not in data
        assert served == []


@pytest.mark.fault(number="B4")
async def test_a_client_that_leaves_while_it_is_authenticated_is_no_ghost(
    any_loop: str,
) -> None:
    gate = asyncio.Event()
    begun: list[str] = []
    ended: list[str] = []
    seen: list[str] = []

    async def authenticate(request: Request) -> Identity:
        begun.append("begun")
        try:
            await gate.wait()
        finally:
            ended.append("ended")
        return Identity("ann", "one")

    hub = Hub(authenticate=authenticate)
    hub.on_client_connected(lambda client: seen.append("in"))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    hub.on_error(lambda client, error: seen.append(repr(error)))
    async with running(hub):
        for how in ("reset", "close"):
            client = await RawClient.open(hub, tail=encode(TEXT, b"x"))
            await eventually(lambda: len(begun) == len(ended) + 1)
            assert hub.connections == 1
            getattr(client, how)()
            await eventually(lambda: hub.connections == 0)
            # It does not hold on to the work either.
            await eventually(lambda: len(begun) == len(ended))
        # The same user again, and this time it stays.
        with await RawClient.open(hub) as client:
            gate.set()
            await eventually(lambda: hub.get_connected_client_ids() == ["one"])
            hub.broadcast("hello")
            assert (await client.recv()).payload == b"hello"
            assert seen == ["in"]


@pytest.mark.fault(number="B4")
async def test_stop_while_a_client_is_authenticated_makes_no_ghost() -> None:
    seen: list[str] = []

    async def authenticate(request: Request) -> Identity:
        await asyncio.Event().wait()
        return Identity("ann")

    hub = Hub(authenticate=authenticate)
    hub.on_client_connected(lambda client: seen.append("in"))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    async with running(hub):
        with await RawClient.open(hub) as client:
            await eventually(lambda: hub.connections == 1)
            stopping = asyncio.create_task(hub.stop(timeout=5.0))
            frame = await client.recv()
            assert frame.code == 1001
            await client.send(CLOSE, frame.payload)
            await asyncio.wait_for(stopping, 3)
    assert seen == []


@pytest.mark.fault(number="B4")
async def test_an_id_taken_while_two_of_it_are_authenticated_has_one_client() -> None:
    gates = {"1": asyncio.Event(), "2": asyncio.Event()}

    async def authenticate(request: Request) -> Identity:
        await gates[request.query["n"]].wait()
        return Identity("ann", "one")

    hub = Hub(authenticate=authenticate)
    async with running(hub):
        with (
            await RawClient.open(hub, "/ws?n=1") as first,
            await RawClient.open(hub, "/ws?n=2") as second,
        ):
            gates["2"].set()
            await eventually(lambda: hub.get_connected_clients() == 1)
            gates["1"].set()
            assert (await second.recv()).code == 4409
            assert hub.get_connected_client_ids() == ["one"]
            hub.broadcast("hello")
            assert (await first.recv()).payload == b"hello"
            assert hub.get_stats().replaced_clients == 1


@pytest.mark.fault(number="B4")
async def test_authentication_has_its_own_timeout() -> None:
    cancelled = asyncio.Event()

    async def authenticate(request: Request) -> Identity:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Identity("ann")

    hub = Hub(HubConfig(authentication_timeout=0.05), authenticate=authenticate)
    async with running(hub):
        with await RawClient.open(hub) as client:
            assert (await client.recv()).code == 4401
        assert cancelled.is_set()
        assert hub.get_stats().rejected["auth"] == 1


@pytest.mark.fault(number="B5")
async def test_frames_sent_before_authentication_is_done_keep_their_order() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    async def authenticate(request: Request) -> Identity:
        await gate.wait()
        return Identity("ann")

    hub = Hub(HubConfig(authentication_input_bytes=1 << 20), authenticate=authenticate)
    hub.on_client_connected(lambda client: seen.append("in"))
    hub.on_message_received(lambda client, message: seen.append(str(message)))
    async with running(hub):
        burst = b"".join(encode(TEXT, b"%d" % n) for n in range(1000))
        # The last one comes in two fragments, so that the state of a message is kept too.
        burst += encode(TEXT, b"la", fin=False) + encode(9, b"ping") + encode(0, b"st")
        with await RawClient.open(hub, tail=burst[:-1]) as client:
            gate.set()
            await eventually(lambda: len(seen) == 1001)
            await client.send_raw(burst[-1:])
            assert (await client.recv()).payload == b"ping"
            await eventually(lambda: len(seen) == 1002)
    assert seen == ["in", *map(str, range(1000)), "last"]


@pytest.mark.fault(number="B6")
async def test_nothing_precedes_the_101(any_loop: str) -> None:
    hub = Hub()

    @hub.on_client_connected
    def connected(client: Client) -> None:
        client.send("first")
        hub.broadcast("second")
        client.disconnect(4000)

    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as client:
            await client.send_raw(client.request(hub))
            assert (await client.read_response()).startswith(b"HTTP/1.1 101 ")
            assert (await client.recv()).payload == b"first"
            assert (await client.recv()).payload == b"second"
            assert (await client.recv()).code == 4000


@pytest.mark.fault(number="B7")
async def test_a_client_does_not_choose_its_id() -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(f"{client.id} {client.user_id}"))
    async with running(hub):
        headers = [
            ("X-Client-Id", "alice"),
            ("X-User-Id", "alice"),
            ("Cookie", "client_id=alice; user_id=alice"),
            ("Authorization", "Basic YWxpY2U6eA=="),
        ]
        path = "/ws?client_id=alice&user_id=alice&id=alice&user=alice"
        with await RawClient.open(hub, path, headers=headers) as client:
            it = only_client(hub)
            await client.send(TEXT, json.dumps({"type": "login", "from": "alice"}).encode())
            assert (await client.recv()).payload.decode() == f"{it.id} {it.id}"
            assert it.id != "alice"
            assert hub.get_client_by_id("alice") is None
            assert hub.get_clients_by_user("alice") == []


@pytest.mark.fault(number="B16")
@pytest.mark.parametrize(
    ("method", "status"),
    [("POST", 405), ("OPTIONS", 405), ("PUT", 405), ("CONNECT", 405), ("get", 400), ("BREW", 400)],
)
async def test_another_method_is_405_or_no_method_at_all(method: str, status: int) -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "ok")
    async with running(hub):
        for path in ("/ws", "/health", "/none"):
            data = await exchange(hub, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert Answer(data).status == status
            if status == 405:
                assert Answer(data)["Allow"] == "GET, HEAD"


@pytest.mark.fault(number="B16")
async def test_HEAD_gets_what_GET_gets_but_for_the_body() -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "ok")
    async with running(hub):
        for path, status in (("/health", 200), ("/ws", 426), ("/none", 404)):
            answers = [
                await exchange(hub, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                for method in ("GET", "HEAD")
            ]
            got, head = map(Answer, answers)
            assert (got.status, head.status, head.body) == (status, status, b"")
            # A second may have passed between them.
            fields = [[field for field in it.fields if field[0] != "Date"] for it in (got, head)]
            assert fields[0] == fields[1]
        # And it does not upgrade (RFC 6455 section 4.1).
        upgrade = RawClient.request(hub).replace(b"GET", b"HEAD", 1)
        assert Answer(await exchange(hub, upgrade)).status == 426
        assert hub.connections == 0


@pytest.mark.fault(number="B16")
@pytest.mark.parametrize(
    "version",
    ["HTTP/2.0", "HTTP/0.9", "http/1.1", "", "HTTP/1.", "HTTP/1.10", "HTTP/1.x", " HTTP/1.1"],
)
async def test_another_http_version_is_400(version: str) -> None:
    hub = Hub()
    async with running(hub):
        data = await exchange(hub, f"GET /ws {version}\r\nHost: x\r\n\r\n".encode())
        assert Answer(data).status == 400


@pytest.mark.fault(number="B16")
@pytest.mark.parametrize(
    "path",
    [
        "//health",
        "/ws/../health",
        "/ws/../metrics",
        "/health/",
        "/./health",
        "/HEALTH",
        "/health%20",
    ],
)
async def test_routes_are_exact(path: str) -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "ok")
    async with running(hub):
        assert (await get(hub, path)).status == 404


# --- routes ---


class Point(msgspec.Struct):
    x: int
    y: int


@dataclass
class Place:
    name: str


async def test_a_route_may_return_stats_and_messages() -> None:
    hub = Hub()
    message = HubMessage(content="hello", from_="ann")
    hub.route("/stats")(lambda request: hub.get_stats())
    hub.route("/message")(lambda request: message)
    async with running(hub):
        assert json.loads((await get(hub, "/stats")).body)["connected_clients"] == 0
        assert msgspec.json.decode((await get(hub, "/message")).body, type=HubMessage) == message


async def test_what_a_route_may_return(any_loop: str) -> None:
    hub = Hub()
    results: dict[str, tuple[Any, int, str, bytes]] = {
        "/str": ("größe", 200, "text/plain; charset=utf-8", "größe".encode()),
        "/empty": ("", 200, "text/plain; charset=utf-8", b""),
        "/bytes": (b"\x00\xff", 200, "application/octet-stream", b"\x00\xff"),
        "/dict": ({"ok": True, "n": 1}, 200, "application/json", b'{"ok":true,"n":1}'),
        "/list": (["a", {"b": 1}], 200, "application/json", b'["a",{"b":1}]'),
        "/tuple": ((1, 2), 200, "application/json", b"[1,2]"),
        "/struct": (Point(1, 2), 200, "application/json", b'{"x":1,"y":2}'),
        "/dataclass": (Place("here"), 200, "application/json", b'{"name":"here"}'),
        "/page": (Response(body="<p>", content_type="text/html"), 200, "text/html", b"<p>"),
        "/201": (Response(status=201, body=b"x"), 201, "text/plain; charset=utf-8", b"x"),
        "/teapot": (Response(418), 418, "text/plain; charset=utf-8", b""),
        "/large": (b"x" * 3_000_000, 200, "application/octet-stream", b"x" * 3_000_000),
    }
    for path, (result, *_) in results.items():
        hub.route(path)(lambda request, result=result: result)
    async with running(hub):
        for path, (_, status, content_type, body) in results.items():
            answer = await get(hub, path)
            assert (answer.status, answer.body) == (status, body), path
            assert answer["Content-Type"].startswith(content_type.partition(";")[0])
            assert int(answer["Content-Length"]) == len(body)
            assert answer["Connection"] == "close"
        async with aiohttp.ClientSession(f"http://127.0.0.1:{hub.port}") as session:
            async with session.get("/dict") as response:
                assert await response.json() == {"ok": True, "n": 1}
            async with session.get("/str") as response:
                assert await response.text() == "größe"


async def test_further_headers_of_a_route() -> None:
    hub = Hub()
    headers = {"Cache-Control": "no-store", "X-A": "b"}
    hub.route("/r")(lambda request: Response(body="x", headers=headers))
    hub.route("/length")(lambda request: Response(body="x", headers={"Content-Length": "500"}))
    hub.route("/conn")(lambda request: Response(body="x", headers={"Connection": "keep-alive"}))
    hub.route("/chunked")(
        lambda request: Response(body="x", headers={"Transfer-Encoding": "chunked"})
    )
    hub.route("/type")(lambda request: Response(body="x", headers={"content-type": "a/b"}))
    async with running(hub):
        for _ in range(3):  # A22: nothing grows from answer to answer
            answer = await get(hub, "/r")
            assert answer["Cache-Control"] == "no-store"
            assert answer["X-A"] == "b"
        assert headers == {"Cache-Control": "no-store", "X-A": "b"}
        assert (await get(hub, "/length"))["Content-Length"] == "1"
        assert (await get(hub, "/chunked")).all("Transfer-Encoding") == []
        assert (await get(hub, "/conn"))["Connection"] == "close"
        assert len((await get(hub, "/type")).all("Content-Type")) == 1


async def test_what_a_route_is_told() -> None:
    hub = Hub()
    seen: list[Request] = []

    @hub.route("/r")
    def r(request: Request) -> str:
        seen.append(request)
        return "ok"

    async with running(hub):
        lines = [
            "GET /r?a=1&b=&a=2&name=gr%C3%B6%C3%9Fe+x HTTP/1.1",
            "Host: x",
            "X-Token: abc",
            'Cookie: one=1; two="2"; one=3; broken',
            "",
            "",
        ]
        assert Answer(await exchange(hub, "\r\n".join(lines).encode())).status == 200
    (request,) = seen
    assert request.path == "/r"
    assert request.query == {"a": "1", "b": "", "name": "größe x"}
    assert request.headers["x-token"] == request.headers["X-TOKEN"] == "abc"
    assert request.headers.get("none") is None
    assert request.cookies == {"one": "1", "two": "2"}
    assert request.remote_address == "127.0.0.1"


def requested(target: str, *lines: str) -> Request:
    """A request as `authenticate` gets it."""
    raw = "\r\n".join([f"GET {target} HTTP/1.1", *lines, ""]).encode("latin-1")
    return Request(RequestHead(raw), "192.0.2.1")


TARGETS = st.text("ab=&+%;/?:éc3F0zZ~", max_size=60).map(
    lambda text: text.encode("ascii", "replace").decode()
)


@given(TARGETS, TARGETS)
@example("", "&&=&a&=b&a==&%41=%c3%a9&%c3=%&%4=%zz&+=%2b+&%00")
def test_a_query_and_a_path_are_what_the_standard_library_says(path: str, query: str) -> None:
    request = requested(f"/{path.replace('?', '')}?{query}")
    assert request.path == f"/{unquote(path.replace('?', ''))}"
    pairs = parse_qsl(query, keep_blank_values=True)
    assert request._head.query_pairs() == pairs
    assert request.query == dict(reversed(pairs))
    assert list(request.query) == list(dict(pairs))


def test_cookies_of_several_lines_are_those_of_one() -> None:
    # As HTTP/2 clients send them (RFC 9113 section 8.2.3).
    apart = requested(
        "/", "Cookie: lang=en", "X: y", "cookie:  session=ann ;lang=de", "Cookie: ;a="
    )
    one = requested("/", "Cookie: lang=en; session=ann; lang=de; a=")
    assert apart.cookies == one.cookies == {"lang": "en", "session": "ann", "a": ""}


def test_cookies_are_told_as_they_are_but_for_blanks_and_quotes() -> None:
    line = 'Cookie: =x; a="1" ;\tb =\t2=3; nothing; c="";d; a=other; \xa0e=\xa0f\xa0'
    assert requested("/", line).cookies == {
        "": "x",
        "a": "1",
        "b": "2=3",
        "c": "",
        "\udca0e": "\udca0f\udca0",
    }


def test_the_parts_of_a_request_are_parsed_once() -> None:
    request = requested("/a%20b?c=d", "Cookie: e=f")
    assert request.query is request.query
    assert request.cookies is request.cookies
    assert request.path is request.path
    assert request.headers is request.headers


def test_so_many_pairs_are_looked_at() -> None:
    names = [f"n{number}" for number in range(1_000)]
    request = requested("/?&&" + "&".join(f"{name}=1" for name in names))
    assert list(request.query) == names[:256]
    lines = [f"Cookie: {name}=1; {name}=2" for name in names[:127]]
    assert list(requested("/", *lines).cookies) == names[:127]
    lines = ["Cookie: " + ";".join(f"{name}=1" for name in names), "Cookie: last=1"]
    assert list(requested("/", *lines).cookies) == names[:256]


@pytest.mark.parametrize("text", ["%41&", "%c3(%e2&", "a&", "&", "=", "%ff", "+", "a=%41&", "%"])
def test_a_request_costs_no_more_than_it_is_long(text: str) -> None:
    target = "/ws?" + text * (16_000 // len(text))
    lines = ["Cookie: " + text.replace("&", ";") * (16_000 // len(text))]
    took = []
    for _ in range(5):
        began = time.thread_time()
        request = requested(target, *lines)
        _ = request.path, request.query, request.cookies, request.query
        took.append(time.thread_time() - began)
    # 50 ns for a byte, on a machine that others use too.
    assert min(took) < 0.0016


@pytest.mark.parametrize(
    "path",
    ["", "r", "/grö", "/with?query", "/with space", "/with#fragment", 1, None, "/r"],
    ids=["empty", "no-slash", "non-ascii", "query", "space", "fragment", "1", "None", "twice"],
)
def test_a_route_that_cannot_be_served(path: Any) -> None:
    hub = Hub()
    hub.route("/r")(lambda request: "ok")
    with pytest.raises(ValidationError, match="route"):
        hub.route(path)


def test_a_route_is_a_function_of_a_request() -> None:
    hub = Hub()
    with pytest.raises(ValidationError, match="request"):
        hub.route("/r")(lambda: "ok")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="callable"):
        hub.route("/r")(None)  # type: ignore[arg-type]
    # A refused route is not registered.
    assert hub.route("/r")(handler := lambda request: "ok") is handler


async def test_a_route_on_the_hubs_own_path_is_refused_at_the_start() -> None:
    hub = Hub()
    hub.route("/ws")(lambda request: "ok")
    with pytest.raises(ValidationError, match="/ws"):
        await hub.start(port=0)
    async with running(hub, path="/other"):
        assert (await get(hub, "/ws")).body == b"ok"


@pytest.mark.parametrize(
    "result",
    [
        None,
        5,
        {"a"},
        Place,
        {"a": object()},
        [object()],
        Place(object()),  # type: ignore[arg-type]
        "\ud800",
    ],
    ids=["None", "int", "set", "class", "no-json", "list", "dataclass", "surrogate"],
)
async def test_a_route_that_returns_what_cannot_be_sent_is_a_plain_500(result: Any) -> None:
    hub = Hub()
    failures: list[BaseException] = []
    hub.on_error(lambda client, error: failures.append(error))
    hub.route("/r")(lambda request: result)
    async with running(hub):
        answer = await ask(hub, "/r")
        assert answer.status == 500
        assert answer.body == b"500 Internal Server Error\n"
        assert len(failures) == 1
        assert hub.connections == 0


@pytest.mark.fault(number="A23")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Response(body=5),  # type: ignore[arg-type]
        lambda: Response(headers={"X-A": "a\r\nSet-Cookie: x=1"}),
        lambda: Response(headers={"X-A": "a\nSet-Cookie: x=1"}),
        lambda: Response(headers={"X-A": "a\rb"}),
        lambda: Response(headers={"X-A": "a\x00b"}),
        lambda: Response(headers={"X-A\r\nSet-Cookie": "x=1"}),
        lambda: Response(headers={"X A": "x"}),
        lambda: Response(headers={"": "x"}),
        lambda: Response(headers={"X-A:": "x"}),
        lambda: Response(headers={"X-A": "€"}),
        lambda: Response(content_type="text/html\r\nSet-Cookie: x=1"),
        lambda: Response(status=99),
        lambda: Response(status=1000),
        lambda: Response(status="200\r\nSet-Cookie: x=1"),
    ],
)
def test_a_response_that_http_cannot_carry_is_refused(make: Callable[[], Response]) -> None:
    with pytest.raises(ValidationError):
        make()


@pytest.mark.fault(number="A23")
async def test_a_header_that_latin_1_can_carry_is_sent_or_refused() -> None:
    hub = Hub()
    hub.route("/r")(lambda request: Response(body="x", headers={"X-A": "gr\xf6\xdfe"}))
    async with running(hub):
        answer = await get(hub, "/r")
        assert answer.status == 500 or answer["X-A"] in (
            "gr\xf6\xdfe",
            "größe".encode().decode("latin-1"),
        )


@pytest.mark.fault(number="A9")
async def test_an_exception_of_a_route_or_authenticate_goes_to_the_log_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(request: Request) -> str:
        raise ValueError("password=hunter2")

    hub = Hub(authenticate=fails)  # type: ignore[arg-type]
    hub.route("/r")(fails)
    async with running(hub):
        for path in ("/ws", "/r"):
            answer = await ask(hub, path)
            assert answer.status == 500
            assert b"hunter2" not in answer.body
    assert caplog.text.count("password=hunter2") >= 2


# --- authentication ---


async def test_authenticate_says_who_a_client_is() -> None:
    asked: list[Request] = []

    def authenticate(request: Request) -> Identity | None:
        asked.append(request)
        if request.headers.get("Authorization") != "Bearer good":
            return None
        return Identity("ann", "phone", {"role": "admin"})

    hub = Hub(authenticate=authenticate)
    async with running(hub):
        answer = await ask(hub)
        assert answer.status == 401
        assert hub.get_stats().rejected["auth"] == 1
        headers = {"Authorization": "Bearer good", "Cookie": "session=s"}
        async with websockets.connect(uri(hub, "/ws?t=1"), additional_headers=headers):
            it = only_client(hub)
            assert (it.id, it.user_id, it.user_data) == ("phone", "ann", {"role": "admin"})
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(uri(hub), headers=headers),
        ):
            await eventually(lambda: hub.get_connected_client_ids() == ["phone"])
    request = asked[1]
    assert (request.path, request.query) == ("/ws", {"t": "1"})
    assert request.cookies == {"session": "s"}
    assert request.remote_address == "127.0.0.1"


async def test_an_identity_without_a_client_id_gets_a_fresh_one() -> None:
    hub = Hub(authenticate=lambda request: Identity("ann"))
    async with running(hub):
        with await RawClient.open(hub), await RawClient.open(hub):
            ids = hub.get_connected_client_ids()
            assert len(set(ids)) == 2
            assert "ann" not in ids
            assert hub.get_all_connected_users() == ["ann"]


async def test_an_async_authenticate(any_loop: str) -> None:
    async def authenticate(request: Request) -> Identity | None:
        await asyncio.sleep(0)
        name = request.query.get("name")
        return Identity(name) if name else None

    hub = Hub(authenticate=authenticate)
    seen: list[str] = []
    hub.on_client_connected(lambda client: seen.append(client.user_id))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    async with running(hub):
        with await RawClient.open(hub) as client:
            frame = await client.recv()
            assert frame.code == 4401
            await client.send(CLOSE, frame.payload)
            assert await client.recv_rest() == []
        assert hub.get_stats().rejected["auth"] == 1
        assert hub.get_connected_clients() == 0
        await eventually(lambda: hub.connections == 0)
        assert seen == []
        with await RawClient.open(hub, "/ws?name=ann") as client:
            await eventually(lambda: seen == ["ann"])
            hub.broadcast("hello")
            assert (await client.recv()).payload == b"hello"


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    "identity",
    [
        "ann",
        5,
        True,
        {"user_id": "ann"},
        Identity(""),
        Identity("x" * 257),
        Identity("a\nb"),
        Identity(5),  # type: ignore[arg-type]
        Identity("ann", "\x00"),
        Identity("ann", ""),
        Identity("ann", 5),  # type: ignore[arg-type]
        Identity("ann", None, 5),  # type: ignore[arg-type]
        Identity("ann", None, "text"),  # type: ignore[arg-type]
    ],
    ids=repr,
)
async def test_an_identity_that_cannot_be_used_is_refused_and_reported(
    identity: Any, is_async: bool
) -> None:
    async def later(request: Request) -> Identity:
        await asyncio.sleep(0)
        return identity

    failures: list[BaseException] = []
    hub = Hub(authenticate=later if is_async else lambda request: identity)
    hub.on_error(lambda client, error: failures.append(error))
    async with running(hub):
        if is_async:
            with await RawClient.open(hub) as client:
                assert (await client.recv()).code == 1011
        else:
            assert (await ask(hub)).status == 500
        assert len(failures) == 1
        assert hub.get_connected_clients() == 0


async def test_an_async_authenticate_that_raises_closes_with_1011() -> None:
    async def authenticate(request: Request) -> Identity:
        await asyncio.sleep(0)
        raise ValueError("password=hunter2")

    failures: list[str] = []
    hub = Hub(authenticate=authenticate)
    hub.on_error(lambda client, error: failures.append(str(error)))
    async with running(hub):
        with await RawClient.open(hub) as client:
            frame = await client.recv()
            assert frame.code == 1011
            assert b"hunter2" not in frame.payload
        assert failures == ["password=hunter2"]
        assert hub.get_stats().rejected["auth"] == 1


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_a_base_exception_of_authenticate_hurts_nobody_else(
    kind: type[BaseException], is_async: bool
) -> None:
    async def scenario() -> None:
        def plain(request: Request) -> Identity:
            if "fail" in request.query:
                raise kind
            return Identity("ann")

        async def later(request: Request) -> Identity:
            await asyncio.sleep(0)
            return plain(request)

        hub = Hub(authenticate=later if is_async else plain)
        async with running(hub):
            if is_async:
                with await RawClient.open(hub, "/ws?fail=1") as client:
                    assert (await client.recv(timeout=3)).code == 1011
            else:
                assert (await ask(hub, "/ws?fail=1")).status == 500
            with await RawClient.open(hub) as client:
                await eventually(lambda: hub.get_connected_clients() == 1)
                hub.broadcast("unhurt")
                assert (await client.recv()).payload == b"unhurt"

    run_apart(scenario)


@pytest.mark.fault(number="A10")
async def test_a_refused_upgrade_does_not_ask_who_it_is() -> None:
    asked = 0

    async def authenticate(request: Request) -> Identity:
        nonlocal asked
        asked += 1
        return Identity("ann", "one")

    hub = Hub(HubConfig(max_connections=1), authenticate=authenticate)
    async with running(hub):
        with await RawClient.open(hub):
            await eventually(lambda: hub.get_connected_clients() == 1)
            it = only_client(hub)
            for _ in range(20):
                assert (await ask(hub, Sec_WebSocket_Version="99")).status == 426
                assert (await ask(hub, Upgrade="")).status == 426
                assert (await ask(hub, headers=[("Origin", "null")])).status == 403
            # Nobody was replaced either.
            assert it.is_connected()
            assert only_client(hub) is it
    assert asked == 1


# --- identities that end ---


async def test_an_identity_that_ends_closes_with_4401(any_loop: str) -> None:
    gone: list[str] = []

    def authenticate(request: Request) -> Identity:
        ends = float(request.query["in"])
        return Identity("ann", request.query["id"], expires_at=time.time() + ends)

    hub = Hub(authenticate=authenticate)
    hub.on_client_disconnected(lambda client: gone.append(client.id))
    async with running(hub):
        soon = await RawClient.open(hub, "/ws?id=soon&in=0.2")
        later = await RawClient.open(hub, "/ws?id=later&in=1000000")
        frame = await soon.recv()
        assert (frame.code, frame.payload[2:]) == (4401, b"authentication expired")
        assert [client.id for client in hub.get_clients_by_user("ann")] == ["later"]
        assert hub.disconnect_user("ann", 4000, "bye") == 1
        assert (await later.recv()).code == 4000
        assert hub.disconnect_user("ann") == 0
        with pytest.raises(ValidationError):
            hub.disconnect_user("ann", 1005)
        for raw in (soon, later):
            raw.close()
        await eventually(lambda: len(gone) == 2)
        assert not hub._parts.admission._expiring


@pytest.mark.parametrize("ends", ["soon", -1.0, float("nan"), float("inf"), True])
async def test_an_identity_must_end_at_a_time(ends: Any) -> None:
    errors: list[Exception] = []
    hub = Hub(authenticate=lambda request: Identity("ann", expires_at=ends))
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        assert (await exchange(hub, RawClient.request(hub))).startswith(b"HTTP/1.1 500 ")
        assert hub.get_stats().rejected["auth"] == 1
    assert "expires_at" in str(errors[0])


# --- the rooms of the package that it passes (docs/architecture.md, "The way of an upgrade") ---

ROOMS = ("adapters", "hub", "listen", "upgrade", "delivery", "runtime")


def rooms_from(began: str, calls: list[str]) -> list[str]:
    """The rooms that were entered from the first call of this name on, one after the other."""
    modules = [call.split(":")[0].split(".") for call in calls[calls.index(began) :]]
    rooms = [module[1] for module in modules if module[1] in ROOMS]
    return [room for room, before in zip(rooms, [None, *rooms], strict=False) if room != before]


@pytest.mark.usefixtures("only_hub_transport")
async def test_an_upgrade_passes_each_room_once() -> None:
    hub = Hub(authenticate=lambda request: Identity(user_id="ann"))
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=MemoryOfflineStore())
    calls: list[str] = []

    def called(frame: FrameType, event: str, _: object) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module.startswith("wsc_fast."):
            calls.append(f"{module}:{frame.f_code.co_qualname}")

    async with running(hub):
        heard = asyncio.Event()

        @hub.on_client_connected
        def on_client_connected(client: Client) -> None:
            sys.setprofile(None)
            heard.set()

        sys.setprofile(called)
        try:
            raw = await RawClient.open(hub)
            await heard.wait()
        finally:
            sys.setprofile(None)
        raw.close()
    # Before the application is asked, the policy may have been asked for a verdict that is kept.
    began = "wsc_fast.upgrade.policy:Policy.let_in"
    assert rooms_from(began, calls) == ["upgrade", "delivery", "runtime"]


async def test_a_message_in_and_its_answers_pass_no_python_of_the_package(any_loop: str) -> None:
    hub = Hub(HubConfig(heartbeat_interval=1e6, heartbeat_timeout=2e6))
    calls: list[str] = []

    @hub.on_message_received
    def answer(client: Client, message: str | bytes) -> None:
        client.send(message)
        hub.send_to_client(client.id, message)
        hub.broadcast(message)
        hub.broadcast_to_room("room", message)
        hub.leave_room(client.id, "room")
        hub.join_room(client.id, "room")

    def called(frame: FrameType, event: str, _: object) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event == "call" and module.startswith("wsc_fast.") and "testing" not in module:
            calls.append(f"{module}:{frame.f_code.co_qualname}")

    hub.create_room("room")
    async with running(hub):
        with await RawClient.open(hub) as raw:
            hub.join_room(only_client(hub).id, "room")
            sys.setprofile(called)
            try:
                await raw.send(TEXT, b"hello")
                answers = [(await raw.recv()).payload for _ in range(4)]
            finally:
                sys.setprofile(None)
    assert answers == [b"hello"] * 4
    assert calls == []
