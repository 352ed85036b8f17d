"""Faults of the handshake and identity (README.md, section B), over real sockets.

test_server.py has the other rows and parts of rows. Behind them stand rows of section A that the
modules about the transport leave out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import psutil
import pytest

from tests.support import (
    TLS,
    exchange,
    join,
    known,
    named,
    only_client,
    stall,
    tls_options,
    unless_lost,
)
from wsc_fast import (
    Client,
    ClientDisconnectedError,
    Hub,
    HubConfig,
    Identity,
    Request,
    Response,
    RoomNotFoundError,
    WSCError,
)
from wsc_fast.demo.chat import create_hub
from wsc_fast.log import PERIOD
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    TLSClient,
    encode,
    eventually,
    running,
)

KIB, MIB = 1 << 10, 1 << 20
QUIET = pytest.mark.usefixtures("quiet_log")
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def watched(hub: Hub) -> AsyncIterator[RawClient]:
    """Runs a hub with a client who must be served at the end, and have heard nothing till then.

    `on_error` may not have heard of anything either.
    """
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=honest") as honest:
            await eventually(lambda: hub.get_connected_clients() == 1)
            yield honest
            await eventually(lambda: hub.connections == 1)
            assert hub.get_connected_clients() == 1
            await honest.send(PING, b"alive")
            assert await honest.recv() == Frame(PONG, b"alive")
    assert errors == []


def status(answer: bytes) -> int:
    """The status of an HTTP answer; asserts that it is one, whole, the only one and the last."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert end
    assert answer.count(b"HTTP/1.1 ") == 1
    close = b"Connection: close" + (b", Upgrade" if lines[0].startswith(b"HTTP/1.1 426 ") else b"")
    assert close in lines
    assert b"Content-Length: %d" % len(body) in lines
    return int(lines[0].split(b" ")[1])


# --- B1, B2: origins

MALFORMED = [
    "http://a:b",
    "http://a:\xb2",  # a digit to str.isdigit
    "http://a:99999999999999999999",
    "http://[::1",
    "http://[",
    "http://[]",
    "http://[" + ":" * 5_000 + "]",
    "http://",
    "://",
    "https://user:password@127.0.0.1",
    "http://%31%32%37.0.0.1",
    "x" * 10_240,
    "http://" + "a" * 10_240,
    "http://" + "a." * 5_120 + "example.org",
    "http://a.example.org:" + "1" * 10_240,
    "\xff",
    "http://\xff.example.org",
    "http://a.example.org\xff",
]


@pytest.mark.fault(number="B2")
@QUIET
@pytest.mark.parametrize("allowed", [(), ("https://*.example.org", "[::1]:80", "a")], ids=repr)
@pytest.mark.parametrize("origin", MALFORMED, ids=lambda origin: ascii(origin)[:32])
async def test_a_malformed_origin_is_403_and_no_error(
    origin: str, allowed: tuple[str, ...]
) -> None:
    asked: list[str] = []

    def authenticate(request: Request) -> Identity:
        asked.append(request.query["id"])
        return named(request)

    hub = Hub(HubConfig(allowed_origins=allowed), authenticate=authenticate)
    async with watched(hub):
        for path in ("/ws?id=honest", "/ws?id=a"):  # nor does it replace anybody
            request = RawClient.request(hub, path, [("Origin", origin)])
            assert status(await exchange(hub, request)) == 403
        rejected = hub.get_stats().rejected
        assert rejected["origin"] == sum(rejected.values()) == 2
        assert asked == ["honest"]


@pytest.mark.fault(number="B1")
@QUIET
@pytest.mark.parametrize(
    "origins",
    [
        ("https://app.example", "https://evil.example"),
        ("https://evil.example", "https://app.example"),
        ("https://app.example", "null"),
        ("https://app.example", ""),
        ("https://app.example, https://evil.example",),
    ],
)
async def test_two_origins_are_403_in_either_order(origins: tuple[str, ...]) -> None:
    hub = Hub(HubConfig(allowed_origins=("https://app.example",)))
    async with watched(hub):
        request = RawClient.request(hub, headers=[("Origin", origin) for origin in origins])
        assert status(await exchange(hub, request)) == 403


@pytest.mark.fault(number="B1")
@QUIET
@pytest.mark.parametrize(
    "origin",
    [
        "http://{host}.evil.example:{port}",
        "http://evil.{host}:{port}",
        "http://evil{host}:{port}",
        "http://{host}@evil.example:{port}",
        "http://{host}",
        "http://{host}:{port}0",
        "http://evil.example:{port}",
    ],
)
async def test_an_origin_that_only_resembles_the_hosts_own_is_403(origin: str) -> None:
    hub = Hub(authenticate=named)
    async with watched(hub):
        for host in ("127.0.0.1", "app.example"):
            own = f"{host}:{hub.port}"
            headers = [("Origin", origin.format(host=host, port=hub.port))]
            request = RawClient.request(hub, "/ws?id=a", headers, Host=own)
            assert status(await exchange(hub, request)) == 403
        with await RawClient.open(
            hub, "/ws?id=b", headers=[("Origin", f"http://127.0.0.1:{hub.port}")]
        ):
            pass


# --- B3: what is pipelined behind any refusal


@pytest.mark.fault(number="B3")
@pytest.mark.parametrize("apart", [False, True], ids=["one segment", "two segments"])
async def test_nothing_is_served_behind_any_refusal(any_loop: str, apart: bool) -> None:
    served: list[str] = []

    def authenticate(request: Request) -> Identity | None:
        if "raise" in request.query:
            raise ValueError("no")
        return Identity("a") if "good" in request.query else None

    def secret(request: Request) -> str:
        served.append(request.path)
        return "secret"

    hub = Hub(HubConfig(max_connections=1), authenticate=authenticate)
    hub.route("/metrics")(secret)
    hub.route("/page")(lambda request: "page")

    def raises(request: Request) -> str:
        raise ValueError("no")

    hub.route("/raise")(raises)
    async with running(hub):
        request = RawClient.request
        good = request(hub, "/ws?good")
        refused = {
            "malformed": (400, b"GET /ws HTTP/1.1\r\nno header\r\n\r\n"),
            "no key": (400, request(hub, Sec_WebSocket_Key="")),
            "a body": (400, request(hub, "/ws?good", [("Content-Length", str(len(METRICS)))])),
            "chunked": (400, request(hub, "/ws?good", [("Transfer-Encoding", "chunked")])),
            "authenticate": (401, request(hub)),
            "origin": (403, request(hub, "/ws?good", [("Origin", "null")])),
            "path": (404, request(hub, "/none")),
            "method": (405, good.replace(b"GET", b"POST", 1)),
            "no upgrade": (426, request(hub, Upgrade="")),
            "version": (426, request(hub, Sec_WebSocket_Version="8")),
            "a header too long": (431, request(hub, "/ws?good", [("X", "x" * 17_000)])),
            "a raising authenticate": (500, request(hub, "/ws?raise")),
            "a route": (200, request(hub, "/page")),
            "a raising route": (500, request(hub, "/raise")),
        }
        # One at a time, while there is room; and then the one that finds none.
        for name, (expected, data) in refused.items():
            assert await pipelined(hub, data, apart) == expected, name
        with await RawClient.open(hub, "/ws?good"):
            await eventually(lambda: hub.connections == 1)
            assert await pipelined(hub, good, apart) == 503
        assert served == []
        assert hub.get_stats().connections_total == 1
        # Alone it is served.
        assert b"secret" in await exchange(hub, METRICS)


async def pipelined(hub: Hub, first: bytes, apart: bool) -> int:
    """The status of the one answer that a request gets which has others behind it."""
    behind = METRICS + RawClient.request(hub, "/ws?good") + encode(TEXT, b"x")
    with await RawClient.open(hub, upgrade=False) as raw:
        if not apart:
            await raw.send_raw(first + behind)
            return status(await raw.read_all())
        await raw.send_raw(first)
        await raw._more(10.0)
        with suppress(ConnectionError):  # the connection has ended already
            await raw.send_raw(behind)
        return status(await raw.read_all())


# --- B4: an authenticate that does not let itself be cancelled


@pytest.mark.fault(number="B4")
@QUIET
@pytest.mark.parametrize("how", ["reset", "close", "stop"])
async def test_an_authenticate_that_cannot_be_cancelled_makes_no_ghost(
    any_loop: str, how: str
) -> None:
    begun = asyncio.Event()
    gate = asyncio.Event()
    ended: list[str] = []
    seen: list[str] = []

    async def authenticate(request: Request) -> Identity:
        begun.set()
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        ended.append("ended")
        return Identity("ann", "one")

    hub = Hub(HubConfig(close_timeout=0.2), authenticate=authenticate)
    hub.on_client_connected(lambda client: seen.append("in"))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    hub.on_message_received(lambda client, message: seen.append("message"))
    async with running(hub):
        raw = await RawClient.open(hub, tail=encode(TEXT, b"x"))
        await begun.wait()
        stopping = asyncio.ensure_future(hub.stop(timeout=0.2)) if how == "stop" else None
        if stopping is None:
            getattr(raw, how)()
        await eventually(lambda: hub.connections == 0)
        assert ended == []
        gate.set()
        await eventually(lambda: ended == ["ended"])
        if stopping is not None:
            await stopping
            raw.close()
        assert hub.get_connected_clients() == 0
        assert hub.get_clients_by_user("ann") == []
        assert hub.get_client_by_id("one") is None
        assert seen == []
        if stopping is None:
            # The same user again, whose connection replaces no other.
            with await RawClient.open(hub):
                await eventually(lambda: hub.get_connected_client_ids() == ["one"])
                assert seen == ["in"]
                assert hub.get_stats().replaced_clients == 0


# --- B7: claims of an identity


@pytest.mark.fault(number="B7")
@QUIET
async def test_no_claim_of_a_client_impersonates_or_evicts_anybody() -> None:
    tokens = {"Bearer a": Identity("alice", "alice"), "Bearer m": Identity("mallory")}
    hub = Hub(authenticate=lambda request: tokens[request.headers["Authorization"]])
    heard: list[tuple[str, object]] = []
    hub.on_message_received(lambda client, message: heard.append((client.user_id, message)))
    async with running(hub):
        with await RawClient.open(hub, headers=[("Authorization", "Bearer a")]) as alice:
            await eventually(lambda: hub.get_connected_clients() == 1)
            claims = [
                ("Authorization", "Bearer m"),
                ("X-Client-Id", "alice"),
                ("Client-Id", "alice"),
                ("Cookie", "client_id=alice; id=alice; user=alice"),
                ("Sec-WebSocket-Protocol", "alice"),
            ]
            path = "/ws?client_id=alice&id=alice&user_id=alice&user=alice"
            with await RawClient.open(hub, path, headers=claims) as mallory:
                said = json.dumps({"type": "login", "id": "alice", "from": "alice"})
                await mallory.send(TEXT, said.encode())
                await eventually(lambda: heard)
                assert heard == [("mallory", said)]
                assert hub.get_clients_by_user("alice") == [known(hub, "alice")]
                hub.send_to_client("alice", "for alice")
                assert await alice.recv() == Frame(TEXT, b"for alice")
                await mallory.send(PING, b"nothing")
                assert await mallory.recv() == Frame(PONG, b"nothing")
        assert hub.get_stats().replaced_clients == 0


# --- B9: headers that take long to parse

LONG_HEADERS: dict[str, list[tuple[str, str]]] = {
    "a protocol with spaces in it": [("Sec-WebSocket-Protocol", "b" + " " * 14_000 + "x")],
    "protocols": [("Sec-WebSocket-Protocol", ",".join(["b"] * 7_000))],
    "an unclosed quote": [("Sec-WebSocket-Extensions", 'a; b="' + "\\c" * 7_000)],
    "offers": [("Sec-WebSocket-Extensions", "permessage-deflate," * 740)],
    "parameters": [("Sec-WebSocket-Extensions", "a" + ";b" * 7_000)],
    "commas": [("Connection", "," * 14_000)],
    "commas and spaces": [("Connection", " ," * 7_000)],
    "tokens of an upgrade": [("Upgrade", "h2c," * 3_500)],
    "spaces": [("X", " " * 14_000 + "x" + " " * 500)],
    "cookies": [("Cookie", "a=b;" * 3_500)],
    "many": [(f"X{number}", "," * 100) for number in range(120)],
}


@pytest.mark.fault(number="B9")
@QUIET
@pytest.mark.parametrize("kind", list(LONG_HEADERS))
async def test_a_long_header_takes_no_longer_than_it_is_long(kind: str) -> None:
    parsed: list[object] = []

    def authenticate(request: Request) -> Identity:
        parsed[:] = [request.query, request.cookies, dict(request.headers)]
        return Identity("a")

    hub = Hub(
        HubConfig(enable_compression=True, subprotocols=("a", "c")), authenticate=authenticate
    )
    async with running(hub):
        took = []
        for turn in range(5):
            # Never the same twice, since an offer that has been seen is remembered.
            headers = [*LONG_HEADERS[kind], ("X-Turn", f"{turn}")]
            request = RawClient.request(hub, "/ws?a=b", headers)
            assert 14_000 < len(request) < 16_000 or kind == "many"
            with await RawClient.open(hub, upgrade=False) as raw:
                before = time.process_time()
                await raw.send_raw(request)
                assert (await raw.read_response()).startswith(b"HTTP/1.1 101 ")
                took.append(time.process_time() - before)
        assert min(took) < 0.005
        assert len(parsed) == 3


# --- B10, B13: names


@pytest.mark.fault(number="B10")
@QUIET
@pytest.mark.parametrize("name", ["constructor", ",;constructor", "__class__", "__proto__", "{0}"])
async def test_magic_names_in_queries_cookies_and_offers_are_ignored(name: str) -> None:
    parsed: list[object] = []

    def authenticate(request: Request) -> Identity:
        parsed[:] = [request.query, request.cookies, request.headers["Cookie"]]
        return Identity("a")

    hub = Hub(HubConfig(enable_compression=True, subprotocols=("a",)), authenticate=authenticate)
    async with running(hub):
        headers = [
            ("Sec-WebSocket-Extensions", name),
            ("Sec-WebSocket-Extensions", f"permessage-deflate; {name}"),
            ("Sec-WebSocket-Protocol", name),
            ("Cookie", name),
        ]
        with await RawClient.open(hub, f"/ws?{name}", headers=headers) as raw:
            assert b"Sec-WebSocket-Extensions" not in raw.response
            assert b"Sec-WebSocket-Protocol" not in raw.response
            assert parsed == [{name: ""}, {}, name]
            await raw.send(PING, b"p")
            assert await raw.recv() == Frame(PONG, b"p")


@pytest.mark.fault(number="B13")
@QUIET
@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        (("c",), ["a,b"], None),
        (("c",), ["a", "b"], None),
        (("b", "a"), ["a,b"], "b"),
        (("c",), [",".join(f"n{number}" for number in range(1000))], None),
        # So many are looked at.
        (("n63",), [",".join(f"n{number}" for number in range(1000))], "n63"),
        (("n63",), [f"n{number}" for number in range(100)], "n63"),
        (("n64", "n999"), [",".join(f"n{number}" for number in range(1000))], None),
        (("a",), ["A"], None),
        (("a",), ['"a"'], None),
        (("a",), ["a b"], None),
    ],
)
async def test_the_101_names_a_subprotocol_that_was_offered_or_none(
    any_loop: str, wanted: tuple[str, ...], offered: list[str], chosen: str | None
) -> None:
    hub = Hub(HubConfig(subprotocols=wanted))
    headers = [("Sec-WebSocket-Protocol", value) for value in offered]
    async with running(hub):
        with await RawClient.open(hub, headers=headers) as raw:
            lines = raw.response.decode().split("\r\n")
            named_ones = [line for line in lines if line.startswith("Sec-WebSocket-Protocol")]
            assert named_ones == ([] if chosen is None else [f"Sec-WebSocket-Protocol: {chosen}"])
            await eventually(lambda: hub.get_connected_clients() == 1)
            assert only_client(hub).subprotocol == chosen


# --- B11: slowloris


@asynccontextmanager
async def silent_ones(hub: Hub, count: int, sent: bytes = b"") -> AsyncIterator[list[RawClient]]:
    """So many connections that have sent no request, or only the beginning of one."""
    async with AsyncExitStack() as stack:
        raws = []
        for _ in range(count):
            raw = await RawClient.open(hub, upgrade=False)
            stack.enter_context(raw)
            await raw.send_raw(sent)
            raws.append(raw)
        yield raws


@pytest.mark.fault(number="B11")
@QUIET
@pytest.mark.alone  # 4,000 ends have to be open before the first deadline
async def test_two_thousand_silent_sockets_keep_no_honest_client_waiting(
    any_loop: str,
) -> None:
    deadline = 5.0
    # They hold no slot either: with the honest one the hub is full.
    hub = Hub(HubConfig(handshake_timeout=deadline, max_connections=1))
    async with running(hub):
        files = psutil.Process().num_fds
        before = files()
        started = time.monotonic()
        half = b"GET /ws HTTP/1.1\r\nHost: x\r\n"
        async with silent_ones(hub, 1_000), silent_ones(hub, 1_000, half):
            # Both ends of them are in this process.
            await eventually(lambda: files() == before + 4_000, timeout=deadline)
            asked = time.monotonic()
            with await RawClient.open(hub) as honest:
                await honest.send(PING, b"p")
                assert await honest.recv() == Frame(PONG, b"p")
                assert time.monotonic() - asked < 1.0
                # All of them go at their deadline, and the honest one stays.
                await eventually(lambda: files() == before + 2_000 + 2)
                assert time.monotonic() - started < 2 * deadline
                await honest.send(PING, b"q")
                assert await honest.recv() == Frame(PONG, b"q")
    assert hub.get_stats().connections_total == 1


@pytest.mark.fault(number="B11")
@QUIET
@pytest.mark.parametrize("sent", [b"", b"GET /ws HTTP/1.1\r\n"], ids=["none", "half"])
async def test_connections_half_open_are_counted_and_bounded(any_loop: str, sent: bytes) -> None:
    bound, count = 50, 200
    hub = Hub(HubConfig(max_handshakes=bound, handshake_timeout=30.0))
    async with watched(hub):
        files = psutil.Process().num_fds
        before = files()
        async with silent_ones(hub, count, sent) as raws:
            # The oldest have gone for the newest, and nobody waits for the deadline.
            await eventually(lambda: files() == before + count + bound)
            assert hub.get_stats().rejected["handshakes"] == count - bound
            for raw in raws[: count - bound]:
                assert await raw.read_all() == b""
            with await RawClient.open(hub) as honest:
                await honest.send(PING, b"p")
                assert await honest.recv() == Frame(PONG, b"p")
        # One that is answered, or leaves by itself, makes room.
        await eventually(lambda: files() == before)
        rejected = hub.get_stats().rejected["handshakes"]
        for _ in range(2 * bound):
            assert status(await exchange(hub, b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")) == 404
            (await RawClient.open(hub, upgrade=False)).reset()
        assert hub.get_stats().rejected["handshakes"] == rejected == count - bound + 1


@pytest.mark.fault(number="B11")
@QUIET
@TLS
async def test_a_byte_now_and_then_gains_no_time(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.4))
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await RawClient.open(hub, upgrade=False) as raw:
            sending: RawClient | asyncio.StreamWriter = raw
            request = RawClient.request(hub, headers=[("X", "x" * 10_000)])
            if tls:
                _, writer = await asyncio.open_connection(
                    sock=raw.sock, ssl=client_tls, server_hostname="127.0.0.1"
                )
                sending = writer
            started = time.monotonic()
            sent = 0
            with suppress(ConnectionError):
                for at in range(len(request)):
                    if isinstance(sending, RawClient):
                        await sending.send_raw(request[at : at + 1])
                    else:
                        sending.write(request[at : at + 1])
                        await sending.drain()
                    sent += 1
                    await asyncio.sleep(0.01)
                    assert time.monotonic() - started < 2.0
            assert 3 < sent < 200
            assert time.monotonic() - started > 0.2
            if isinstance(sending, asyncio.StreamWriter):
                sending.transport.abort()
    assert hub.get_stats().connections_total == 0


@pytest.mark.fault(number="B11")
@QUIET
async def test_a_head_that_grows_is_not_parsed_anew_each_time(any_loop: str) -> None:
    hub = Hub()
    async with watched(hub):
        request = RawClient.request(hub, "/ws?x", [(f"X{n}", "x" * 100) for n in range(120)])
        request += RawClient.request(hub)[:-2]
        request = request.replace(b"\r\n\r\n", b"\r\n", 1)[:16_000]
        with await RawClient.open(hub, upgrade=False) as raw:
            took = []
            for at in range(0, 15_000, 10):
                before = time.process_time()
                await raw.send_raw(request[at : at + 10])
                await asyncio.sleep(0)
                await asyncio.sleep(0)  # the hub has read it by now, alone
                took.append(time.process_time() - before)
        # The last parts of 15 KB took no longer than the first ones; the middle one of each, so
        # that no interruption counts. A parser that begins anew takes fifty times as long.
        early, late = sorted(took[:300])[150], sorted(took[-300:])[150]
        assert late < 4 * early


# --- B12: how many and how large

TOO_LARGE: dict[str, tuple[bytes, set[int | None]]] = {
    "129 headers": (b"".join(b"X%d: x\r\n" % number for number in range(128)) + b"\r\n", {400}),
    "3,000 headers": (b"X:\r\n" * 3_000 + b"\r\n", {400}),
    "16 KB of headers": (b"".join(b"X: %01000d\r\n" % 0 for _ in range(17)) + b"\r\n", {431}),
    "a header of 16 KB": (b"X: " + b"x" * 16_384 + b"\r\n\r\n", {431}),
    "a name of 16 KB": (b"x" * 16_384 + b": x\r\n\r\n", {431}),
    "16 KB without end": (b"X: " + b"x" * 16_384, {431}),
    "a megabyte without end": (b"X: " + b"x" * MIB, {431, None}),
    "a megabyte of line ends": (b"\r" * MIB, {431, None}),
}


@pytest.mark.fault(number="B12")
@QUIET
@pytest.mark.parametrize("piece", [None, 1_000], ids=["one segment", "pieces"])
@pytest.mark.parametrize("kind", list(TOO_LARGE))
async def test_a_head_of_too_much_is_refused_and_no_error(
    any_loop: str, kind: str, piece: int | None
) -> None:
    hub = Hub()
    rest, statuses = TOO_LARGE[kind]
    data = RawClient.request(hub_at(80), "/ws?id=a")[:-2] + rest
    async with watched(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            answered = asyncio.ensure_future(raw.read_all())
            with suppress(ConnectionError):
                for at in range(0, len(data), piece or len(data)):
                    await raw.send_raw(data[at : at + (piece or len(data))])
                    await asyncio.sleep(0)
            answer = await answered
            # None: closed with more on the way, and the reset that is overtook the answer.
            assert (status(answer) if answer else None) in statuses
        assert hub.get_stats().connections_total == 1
        assert hub.get_stats().rejected["request"] == 1


@pytest.mark.fault(number="B12")
@QUIET
async def test_a_request_line_of_16_KB_is_refused() -> None:
    hub = Hub()
    async with watched(hub):
        assert status(await exchange(hub, RawClient.request(hub, "/" + "a" * 16_384))) == 431


def hub_at(port: int) -> Any:
    """Takes the place of a hub for RawClient.request."""
    return type("Address", (), {"port": port})


@pytest.mark.fault(number="B12")
@QUIET
async def test_heads_without_end_take_no_memory_but_their_16_KB(any_loop: str) -> None:
    hub = Hub()
    count = 100
    async with watched(hub), silent_ones(hub, count) as raws:
        # One of them first, so that what a first request needs is not counted.
        assert status(await exchange(hub, b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")) == 426
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for raw in raws:
                await raw.send_raw(b"GET /ws HTTP/1.1\r\nX: " + b"x" * 16_000)
            await exchange(hub, b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
            held, _ = tracemalloc.get_traced_memory()
            assert held - before < count * 20_000
            for raw in raws:
                await raw.send_raw(b"x" * 1_000)
                assert status(await raw.read_all()) == 431
            left, _ = tracemalloc.get_traced_memory()
            for raw in raws:
                raw.buffer.clear()
        finally:
            tracemalloc.stop()
        assert left - before < count * 2_000


# --- B14: injection into logs and pages

SCRIPT = "<script>alert(1)</script>"


def unsafe(text: str) -> list[str]:
    """The characters that a terminal or a reader of lines would take for more than text."""
    return [character for character in text if not character.isprintable() or character > "\x7e"]


OF_ITS_LIFE = ("listening", "stopped")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The hub's own log lines, each as it is written; without tracebacks."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "wsc_fast" and getattr(record, "event", None) not in OF_ITS_LIFE
    ]


@pytest.mark.fault(number="B14")
@pytest.mark.parametrize(
    "name",
    ["\u202eevil", "a b\xa0c", "größe", SCRIPT, "%1b[2J", "\\x1b[2J'\"", "{0} %s %(x)s"],
    ids=ascii,
)
async def test_ids_are_escaped_in_the_log(
    any_loop: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = Hub(authenticate=lambda request: Identity(name, "id " + name))

    @hub.on_message_received
    def fail(client: Client, message: str) -> None:
        hub.join_room(client.id, message)

    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, ("room " + name).encode())
            await eventually(lambda: hub.get_stats().callback_errors == 1)
            await raw.send(3)
            assert (await raw.recv()).code == 1002
        with pytest.raises(RoomNotFoundError) as missing:
            hub.get_room_clients(name)
        assert unsafe(str(missing.value)) == []
    lines = lines_of(caplog)
    assert len(lines) == 2
    assert [unsafe(line) for line in lines] == [[], []]
    # And the error that is in the traceback, where it is the hub's own.
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RoomNotFoundError)
    assert unsafe(str(record.exc_info[1])) == []


@pytest.mark.fault(number="B14")
@pytest.mark.parametrize("bad", ["a\x1b[2J", "a\r\nERROR forged", "a\n", "\x7f", "\x9b2J", "\0"])
@pytest.mark.parametrize("of", ["user", "client", "room"])
async def test_an_id_with_control_characters_is_refused_and_not_echoed(
    of: str, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    identity = Identity(bad) if of == "user" else Identity("a", bad if of == "client" else None)
    hub = Hub(authenticate=lambda request: identity)
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))
    async with running(hub):
        if of == "room":
            for call in (hub.create_room, hub.get_room_clients, hub.delete_room):
                with pytest.raises(WSCError) as refused:
                    call(bad)
                errors.append(refused.value)
        else:
            answer = await exchange(hub, RawClient.request(hub))
            assert status(answer) == 500
            assert bad.encode("latin-1") not in answer
    assert len(errors) == (3 if of == "room" else 1)
    assert [unsafe(str(error)) for error in errors] == [[]] * len(errors)
    assert [unsafe(line) for line in lines_of(caplog)] == [[]] * (0 if of == "room" else 1)
    formatted = [logging.Formatter().format(record) for record in caplog.records]
    assert [unsafe(text.replace("\n", "")) for text in formatted] == [[]] * len(formatted)
    assert not any("\nERROR forged" in text for text in formatted)


ECHOED = {
    "path": {"path": f"/{SCRIPT}%1b[2J%0d%0aSet-Cookie:%20a=b"},
    "query": {"path": f"/ws?x={SCRIPT}%1b[2J%0d%0aSet-Cookie:%20a=b", "Upgrade": ""},
    "host": {"Host": SCRIPT},
    "upgrade": {"Upgrade": SCRIPT},
    "connection": {"Connection": SCRIPT},
    "version": {"Sec_WebSocket_Version": SCRIPT},
    "key": {"Sec_WebSocket_Key": SCRIPT},
    "origin": {"Origin": f"http://{SCRIPT}"},
}


@pytest.mark.fault(number="B14")
@pytest.mark.parametrize("where", list(ECHOED))
async def test_an_answer_tells_nothing_of_the_request(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = Hub()
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, **ECHOED[where]))  # type: ignore[arg-type]
        assert 400 <= status(answer) < 500
        assert b"Content-Type: text/plain" in answer
        for text in (b"script", b"alert", b"\x1b", b"[2J", b"Set-Cookie", b"a=b"):
            assert text not in answer
    # But a refused origin is shown to the operator, in the one line of its refusal.
    lines = [line for line in lines_of(caplog) if "script" in line]
    assert len(lines) == (1 if where == "origin" else 0)
    assert [unsafe(line) for line in lines] == [[]] * len(lines)


@pytest.mark.fault(number="B14")
async def test_the_101_repeats_nothing_of_an_offer() -> None:
    hub = Hub(HubConfig(enable_compression=True, subprotocols=("a",)))
    headers = [
        ("Sec-WebSocket-Protocol", f"{SCRIPT}, a"),
        ("Sec-WebSocket-Extensions", f'x; y="{SCRIPT}", permessage-deflate'),
    ]
    async with running(hub):
        with await RawClient.open(hub, headers=headers) as raw:
            assert b"Sec-WebSocket-Protocol: a\r\n" in raw.response + b"\r\n"
            assert b"permessage-deflate" in raw.response
            assert b"script" not in raw.response


@pytest.mark.fault(number="B14")
@pytest.mark.parametrize("reason", ["\x1b[2J", "a\r\nERROR forged", SCRIPT, "\u202e", "\0"])
async def test_a_close_reason_of_the_peer_reaches_no_log(
    any_loop: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = Hub(authenticate=named)
    gone: list[tuple[int | None, str]] = []

    @hub.on_client_disconnected
    def leave(client: Client) -> None:
        gone.append((client.close_code, client.close_reason))
        assert unsafe(repr(client)) == []

    async with running(hub):
        raw, _ = await join(hub, "a")
        with raw:
            await raw.send(CLOSE, b"\x03\xe8" + reason.encode())
            assert await raw.recv_rest() == [Frame(CLOSE, b"\x03\xe8")]  # nor does it come back
        await eventually(lambda: gone)
    assert gone == [(1000, reason)]  # the application gets it as it is, and may show it escaped
    assert lines_of(caplog) == []


@pytest.mark.fault(number="B14")
async def test_the_demo_shows_names_as_data_and_refuses_invisible_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    hub = create_hub()
    async with running(hub):
        page = await exchange(hub, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with await RawClient.open(hub) as raw:

            async def said(**message: str) -> dict[str, Any]:
                await raw.send(TEXT, json.dumps(message).encode())
                while True:
                    frame = await raw.recv()
                    assert frame.opcode == TEXT
                    assert not any(byte < 32 for byte in frame.payload)
                    answer: dict[str, Any] = json.loads(frame.payload)
                    if answer["type"] != "room_list":
                        return answer

            joined = await said(type="join_room", room="<b>", name="<i>me</i>")
            assert (joined["type"], joined["room"], joined["name"]) == (
                "joined",
                "<b>",
                "<i>me</i>",
            )
            echo = await said(type="chat_message", room="<b>", text=SCRIPT)
            assert (echo["type"], echo["text"]) == ("chat_message", SCRIPT)
            for bad in ("\x1b[2J", "a\r\nb", "\u202e", "\x9b", "\x00"):
                answer = await said(type="join_room", room=bad, name="me")
                assert answer["type"] == "error"
                assert unsafe(answer["message"]) == []
                answer = await said(type="join_room", room="lobby", name=f"a{bad}b")
                assert answer["type"] == "error"
            answer = await said(type="chat_message", room="<b>", text="a\x1b[2J")
            assert answer["type"] == "error"
            # Names that people chose are on no page: they come as messages, to be shown as text.
            again = await exchange(hub, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert again.partition(b"\r\n\r\n")[2] == page.partition(b"\r\n\r\n")[2]  # not the Date
            health = await exchange(hub, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"application/json" in health
            assert b"<b>" not in health
            assert b"<i>" not in health
    assert lines_of(caplog) == []


# --- A2: replies to what came ahead of a fault


@pytest.mark.fault(number="A2")
@QUIET
async def test_replies_ahead_of_a_fault_go_out_ahead_of_its_close(any_loop: str) -> None:
    hub = Hub(HubConfig(close_timeout=0.5))
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"a") + encode(TEXT, b"b") + encode(3) * 2)
            *replies, close = await raw.recv_rest()
            assert replies == [Frame(TEXT, b"a"), Frame(TEXT, b"b")]
            assert close.code == 1002
        await eventually(lambda: hub.connections == 0)
    stats = hub.get_stats()
    assert (stats.deliveries, stats.dropped["conn_closed"]) == (2, 0)


@pytest.mark.fault(number="A2")
async def test_a_reply_after_the_close_is_refused_and_one_that_never_left_is_counted(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(close_timeout=10.0, outbox_bytes=8 * MIB), authenticate=named)
    late: list[BaseException] = []
    hub.on_message_received(lambda client, message: client.send(message))

    @hub.on_error
    def reply_again(client: Client, error: BaseException) -> None:
        with pytest.raises(ClientDisconnectedError) as refused:
            client.send("late")
        late.append(refused.value)

    async with running(hub):
        raw, client = await join(hub, "a", rcvbuf=1 << 14)
        await stall(client, 6 * MIB)
        await raw.send_raw(encode(TEXT, b"a") + encode(TEXT, b"b") + encode(3))
        await eventually(lambda: late)
        # The replies wait behind what the kernel has not taken, and the close behind them.
        assert client.queued_messages == 3
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        assert hub.get_stats().dropped["conn_closed"] == client.dropped_messages == 2
    assert len(late) == 1


# --- A7: a logger that raises


class Broken(logging.Handler):
    """As a handler whose disk is full, or whose server is away."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        raise OSError("no space left on device")


@pytest.fixture
def broken_log() -> Iterator[Broken]:
    """Has the hub log to a handler that raises."""
    log = logging.getLogger("wsc_fast")
    handler, level, propagate = Broken(), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


@asynccontextmanager
async def unhurt_loop() -> AsyncIterator[None]:
    """Asserts that nothing is raised into the loop or a transport."""
    raised: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: raised.append(context))
    yield
    assert raised == []


@pytest.mark.fault(number="A7")
async def test_a_logger_that_raises_keeps_no_fault_of_a_peer_from_on_error(
    any_loop: str, broken_log: Broken
) -> None:
    hub = Hub(HubConfig(close_timeout=0.3))
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))
    async with running(hub), unhurt_loop():
        with await RawClient.open(hub) as raw:
            await raw.send(3)
            assert [frame.code for frame in await raw.recv_rest()] == [1002]
        await eventually(lambda: hub.connections == 0)
    assert broken_log.lines
    assert len(errors) == 1


@pytest.mark.fault(number="A7")
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_logger_that_raises_ends_no_connection_whose_callback_raised(
    any_loop: str, kind: str, broken_log: Broken
) -> None:
    hub = Hub(HubConfig(close_timeout=0.3))
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))

    def fail(client: Client, message: str) -> None:
        if message == "fail":
            raise LookupError("mine")
        client.send(message)

    async def fail_later(client: Client, message: str) -> None:
        await asyncio.sleep(0)
        fail(client, message)

    hub.on_message_received(fail if kind == "plain" else fail_later)
    async with running(hub), unhurt_loop():
        with await RawClient.open(hub) as raw:
            await raw.send_raw(encode(TEXT, b"fail") + encode(TEXT, b"next"))
            assert await raw.recv(timeout=2.0) == Frame(TEXT, b"next")
        await eventually(lambda: hub.connections == 0)
    assert broken_log.lines
    assert [type(error) for error in errors] == [LookupError]


@pytest.mark.fault(number="A7")
@pytest.mark.parametrize("path", ["/ws", "/page"])
async def test_a_logger_that_raises_keeps_no_500_from_a_request(
    any_loop: str, path: str, broken_log: Broken
) -> None:
    def fail(request: Request) -> Any:
        raise LookupError("mine")

    hub = Hub(authenticate=fail)
    hub.route("/page")(fail)
    errors: list[BaseException] = []
    hub.on_error(unless_lost(lambda client, error: errors.append(error)))
    async with running(hub), unhurt_loop():
        assert status(await exchange(hub, RawClient.request(hub, path))) == 500
    assert broken_log.lines
    assert [type(error) for error in errors] == [LookupError]


# The hub takes the limit of files at its start, and warns of what comes at it: low meanwhile. In a
# process of its own, since uvloop leaves a connection behind which nobody knows any more.
WARNED_AT_ONCE = """
import asyncio, logging, resource, sys, psutil
from tests.conftest import LOOPS
from wsc_fast.testing import RawClient
from wsc_fast import Hub, HubConfig

lines = []

class Broken(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
        raise OSError("no space left on device")

logging.getLogger("wsc_fast").addHandler(Broken())
logging.getLogger("wsc_fast").propagate = False
logging.getLogger("asyncio").disabled = True

async def main():
    hub = Hub(HubConfig(handshake_timeout=0.5))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = psutil.Process().num_fds() + 6
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    await hub.start(port=0)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    raws = []
    answers = set()
    while not lines:
        raws.append(await RawClient.open(hub, upgrade=False))
        await raws[-1].send_raw(raws[-1].request(hub))
        try:
            answers.add((await raws[-1].read_response(timeout=1.5))[:12])
        except TimeoutError:
            answers.add("neither an answer nor, at the deadline, an end")
    assert "out of file descriptors" in lines[0]
    await hub.stop(timeout=0.2)
    print(*answers)

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.fault(number="A7")
def test_a_logger_that_raises_ends_no_connection_that_is_made(any_loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WARNED_AT_ONCE, any_loop],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "b'HTTP/1.1 101'\n"), done.stderr


# --- A16, A19: memory


@pytest.mark.fault(number="A16")
@QUIET
@TLS
async def test_pings_without_end_take_less_than_a_megabyte(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(outbox_bytes=64 * MIB))
    async with running(hub, **tls_options(server_tls if tls else None)):
        if tls:
            raw: RawClient = await TLSClient.open_tls(hub, client_tls, rcvbuf=1 << 14)
        else:
            raw = await RawClient.open(hub, rcvbuf=1 << 14)
        with raw:
            await eventually(lambda: hub.get_connected_clients() == 1)
            client = only_client(hub)
            filled = await stall(client, 6 * MIB)
            pings = b"".join(encode(PING, b"%0125d" % number) for number in range(1_000))
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                for _ in range(40):
                    await raw.send_raw(pings)
                taken = hub.get_stats().messages_in
                await raw.send(TEXT, b"all are in")
                await eventually(lambda: hub.get_stats().messages_in == taken + 1)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak - before < MIB
            assert client.queued_bytes < 64 * 127
            for _ in range(filled):
                assert (await raw.recv()).opcode == BINARY
            client.disconnect()
            *pongs, close = await read_to_close(raw)
            # In order, and the latest of all is among them.
            assert {frame.opcode for frame in pongs} == {PONG}
            assert pongs[-1].payload == b"%0125d" % 999
            assert [int(frame.payload) for frame in pongs[:-1]] == list(range(len(pongs) - 1))
            assert close.code == 1000


async def read_to_close(raw: RawClient) -> list[Frame]:
    """All frames up to the close."""
    frames = [await raw.recv()]
    while frames[-1].opcode != CLOSE:
        frames.append(await raw.recv())
    return frames


@pytest.mark.fault(number="A19")
@QUIET
async def test_connections_share_one_read_buffer_and_keep_nothing(any_loop: str) -> None:
    count = 24
    async with AsyncExitStack() as stack:
        hub = Hub(HubConfig(close_timeout=0.5), authenticate=named)
        await stack.enter_async_context(running(hub))
        raws = []
        for number in range(count):
            raw, _ = await join(hub, f"{number}")
            raws.append(stack.enter_context(raw))
        large = encode(BINARY, bytes(MIB))
        tracemalloc.start()
        try:
            for raw in raws:
                await raw.send(BINARY, b"first")
            await eventually(lambda: hub.get_stats().messages_in == count)
            before, _ = tracemalloc.get_traced_memory()
            for raw in raws:
                await raw.send_raw(large)
            await eventually(lambda: hub.get_stats().messages_in == 2 * count)
            idle, _ = tracemalloc.get_traced_memory()
            # 4 KB each, of 24 MB that came; and the buffer itself is one for all.
            assert idle - before < count * 4 * KIB
        finally:
            tracemalloc.stop()


# --- A31: the log under faults


@pytest.mark.fault(number="A31")
@pytest.mark.parametrize("step", [1, 100], ids=["bytes", "chunks"])
async def test_faults_of_peers_leave_one_warning_a_second_at_most(
    any_loop: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    began = time.monotonic()
    hub = Hub(HubConfig(close_timeout=0.3))
    unmasked = encode(TEXT, b"x" * 300, masked=False) * 2
    async with running(hub):
        for _ in range(5):
            with await RawClient.open(hub) as raw:
                with suppress(ConnectionError):
                    for start in range(0, len(unmasked), step):
                        await raw.send_raw(unmasked[start : start + step])
                        await asyncio.sleep(0)
                assert [frame.code for frame in await raw.recv_rest()] == [1002]
            await eventually(lambda: hub.connections == 0)
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {record.event for record in lines} == {"protocol_error"}  # type: ignore[attr-defined]
    assert len(lines) <= (time.monotonic() - began) / PERIOD + 2
    assert len(lines) + sum(getattr(record, "suppressed", 0) for record in lines) >= 5


@pytest.mark.fault(number="A31")
async def test_refusals_leave_a_few_lines_in_the_log(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    hub = Hub(authenticate=lambda request: None)
    hub.route("/page")(lambda request: Response(404))
    async with running(hub):
        for number in range(200):
            requests = [
                RawClient.request(hub),
                RawClient.request(hub, "/page"),
                RawClient.request(hub, "/none"),
                RawClient.request(hub, headers=[("Origin", "null")]),
                b"\x16\x03\x01\x02\x00\r\n\r\n",
                b"\0\r\n\r\n",
            ]
            answer = await exchange(hub, requests[number % len(requests)])
            assert 400 <= status(answer) < 500
    # An operator has to know of these, and no more often than that.
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    kinds = Counter(
        (record.msg.partition(" (%d more")[0], vars(record).get("reason"))
        for record in lines
        if record.msg != "%d more in the last %.1f s like: %s"
    )
    # An identity, a path, an origin, and two kinds of bytes that are no request.
    assert len(kinds) == 5
    assert max(kinds.values()) <= (time.monotonic() - began) / PERIOD + 2
