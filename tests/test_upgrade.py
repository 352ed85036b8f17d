"""Upgrades that the engine answers by itself (`_core.upgrade`), beside the policy in Python.

One hub accepts by the engine's own transport, where the compiled upgrade stands before the policy.
The other one has the loop's transports, where the policy decides on each request. Both get the same
bytes, and have to answer with the same bytes, to make the same clients of them, and to count the
same.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from wsc_fast import Client, Hub, HubConfig, Identity, Request
from wsc_fast.testing import RawClient, eventually, running

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the engine's own transport needs epoll"),
]


@pytest.fixture(autouse=True)
def own(only_hub_transport: None) -> None:
    """Has each test run once: it names its transports itself."""


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
LINES = (
    "GET /ws HTTP/1.1",
    "Host: 127.0.0.1:8080",
    "Upgrade: websocket",
    "Connection: Upgrade",
    KEY,
    "Sec-WebSocket-Version: 13",
)
# Lines that a browser adds.
BROWSER = (
    "Connection: keep-alive, Upgrade",
    "Pragma: no-cache",
    "Origin: http://127.0.0.1:8080",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept-Language: en-US,en;q=0.5",
    "Cookie: session=abc; theme=dark",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
)
# Headers that are added one at a time, or take the place of the one with their name.
VARIANTS = (
    *BROWSER,
    "Host: 127.0.0.1",
    "Host: EXAMPLE.org:1",
    "Host: [::1]:8080",
    "Host: a b",
    "Host:",
    "Host: example.org:0",
    "Host: example.org:65536",
    "Host: \xe4.example",
    "Upgrade: WebSocket",
    "Upgrade: h2c, websocket",
    "Upgrade: h2c",
    "Upgrade:",
    "Connection: upgrade",
    "Connection: close",
    "Sec-WebSocket-Version: 8",
    "Sec-WebSocket-Version: 13, 8",
    "Sec-WebSocket-Key: ++++++++++////////AAAA==",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ!=",
    "Sec-WebSocket-Protocol: chat",
    "Sec-WebSocket-Protocol: unknown, chat, wsc.1",
    "Sec-WebSocket-Protocol: wsc.1",
    "Sec-WebSocket-Protocol: unknown",
    "Sec-WebSocket-Protocol: ,, ,",
    "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10",
    "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99, permessage-deflate",
    "Sec-WebSocket-Extensions: x-webkit-deflate-frame",
    f"Sec-WebSocket-Extensions: {'x, ' * 500}permessage-deflate",
    "Origin: null",
    "Origin: http://evil.example",
    "Origin: https://pages.example",
    "Origin: https://sub.pages.example",
    "Origin: http://127.0.0.1",
    "Content-Length: 0",
    "Content-Length: 5",
    "Transfer-Encoding: chunked",
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-For: unknown",
    "X-Forwarded-Proto: https",
    "Expect: 100-continue",
    "X: \x7f",
    "X Y: z",
    ": empty",
    f"Padding: {'p' * 600}",
)
FIRST_LINES = (
    "GET /ws?id=7&name=%41nn HTTP/1.1",
    "GET /ws?wsc=1 HTTP/1.1",
    "GET /ws? HTTP/1.1",
    "GET /WS HTTP/1.1",
    "GET /ws/ HTTP/1.1",
    "GET /other HTTP/1.1",
    "GET /page HTTP/1.1",
    "GET http://127.0.0.1:8080/ws HTTP/1.1",
    "GET /ws HTTP/1.0",
    "GET /ws HTTP/1.2",
    "GET /ws HTTP/2.0",
    "POST /ws HTTP/1.1",
    "get /ws HTTP/1.1",
    "\r\nGET /ws HTTP/1.1",
)


def head(lines: tuple[str, ...] | list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def with_header(header: str) -> list[str]:
    name = header.partition(":")[0].lower()
    return [line for line in LINES if line.partition(":")[0].lower() != name] + [header]


def requests() -> list[bytes]:
    """Requests by hand, each header a second time, each missing, and mutants of all of these."""
    chance = random.Random(1)
    found = [head(LINES), head(with_header(BROWSER[0]) + list(BROWSER[1:]))]
    found += [head(with_header(header)) for header in VARIANTS]
    found += [head([first, *LINES[1:]]) for first in FIRST_LINES]
    found += [head([*LINES, line]) for line in (*LINES[1:], *VARIANTS)]
    found += [head(LINES[:at] + LINES[at + 1 :]) for at in range(1, len(LINES))]
    found += [head(LINES)[:-2], head(LINES) + b"behind it", head(LINES).replace(b"\r\n", b"\n")]
    for number in range(200):
        mutant = bytearray(found[number % len(found)])
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(mutant))
            match chance.randrange(3):
                case 0:
                    mutant[at] = chance.choice(b"\r\n :,;=?&/aA1\x00\x80\xff")
                case 1:
                    del mutant[at : at + chance.randrange(1, 9)]
                case _:
                    mutant[at:at] = mutant[chance.randrange(len(mutant)) :][:20]
        found.append(bytes(mutant))
    return found


@dataclass
class Side:
    """One of the two hubs, and what the application has seen there since `compared` last looked."""

    hub: Hub
    transport: Any
    seen: list[tuple[Any, ...]] = field(default_factory=list)

    def answers(self) -> int:
        """The number of requests that the compiled upgrade has accepted."""
        poller = self.hub._parts.listener.poller
        return 0 if poller is None else int(poller.answerer.accepted)


def side(transport: str, authenticate: str, **settings: Any) -> Side:
    def identify(request: Request) -> Identity | None:
        seen.append((request.method, request.path, request.query, request.cookies))
        seen.append((request.remote_address, list(request.headers.items()), request.tls))
        if request.query.get("id") == "7":
            request.refusal = "it is 7"
            return None
        if b"evil" in str(request.headers).encode():
            raise RuntimeError("evil")
        return Identity("ann", user_data={"n": 1})

    async def identify_later(request: Request) -> Identity | None:
        await asyncio.sleep(0)
        return identify(request)

    asks = {"none": None, "plain": identify, "async": identify_later}[authenticate]
    hub = Hub(HubConfig(**settings), authenticate=asks)
    hub.on_error(lambda client, error: seen.append(("error", str(error))))
    found = Side(hub, transport)
    seen = found.seen

    @hub.on_client_connected
    def connected(client: Client) -> None:
        user = client.user_id if asks is not None else len(client.user_id)
        seen.append((client.remote_address, client.subprotocol, user, client.user_data))

    @hub.on_client_disconnected
    def gone(client: Client) -> None:
        seen.append(("gone", client.close_code))

    @hub.route("/page")
    def page(request: Request) -> str:
        return f"{request.method} of {request.remote_address}"

    return found


@asynccontextmanager
async def pair(authenticate: str, **settings: Any) -> AsyncIterator[tuple[Side, Side]]:
    sides = side("hub", authenticate, **settings), side("loop", authenticate, **settings)
    for each in sides:
        await each.hub.start("127.0.0.1", 0, transport=each.transport)
    try:
        yield sides
    finally:
        for each in sides:
            await each.hub.stop()


async def asked(at: Side, request: bytes) -> bytes:
    """The bytes that a peer gets which sends these, ends its half, and reads to the end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", at.hub.port))
        await loop.sock_sendall(sock, request)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while data := await loop.sock_recv(sock, 65536):
                answer += data
        except ConnectionResetError:
            answer += b"reset"
    return re.sub(rb"Date: [^\r]*\r\n", b"", answer)


def counters(hub: Hub) -> dict[str, Any]:
    stats = hub.get_stats()
    return {
        name: getattr(stats, name)
        for name in (
            "connections_total",
            "rejected",
            "limited",
            "closes",
            "error_count",
            "protocol_errors",
        )
    }


async def compare(sides: tuple[Side, Side], request: bytes) -> bytes:
    answers = [await asked(each, request) for each in sides]
    assert answers[0] == answers[1], request
    await eventually(lambda: not any(each.hub.get_connected_clients() for each in sides))
    assert sides[0].seen == sides[1].seen, request
    for each in sides:
        each.seen.clear()
    return answers[0]


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "compression": {"enable_compression": True, "subprotocols": ("chat",)},
    "context": {
        "enable_compression": True,
        "server_no_context_takeover": False,
        "client_no_context_takeover": False,
        "server_max_window_bits": 12,
    },
    "origins": {"allowed_origins": ("https://pages.example", "null"), "subprotocols": ("chat",)},
    "hosts": {"allowed_hosts": ("127.0.0.1:8080", "example.org:1"), "check_origin": False},
    "proxies": {"trusted_proxies": ("127.0.0.0/8",)},
    "small": {"max_header_bytes": 512, "max_headers": 8},
    "limits": {"max_connections_per_address": 1_000},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("authenticate", ["none", "plain", "async"])
async def test_the_engine_and_the_policy_answer_the_same(settings: str, authenticate: str) -> None:
    async with pair(authenticate, **SETTINGS[settings]) as sides:
        accepted = 0
        for request in requests():
            answer = await compare(sides, request)
            accepted += answer.startswith(b"HTTP/1.1 101 ")
        assert counters(sides[0].hub) == counters(sides[1].hub)
        # Most of those which are accepted are common.
        assert accepted / 2 < sides[0].answers() <= accepted
        assert sides[1].answers() == 0


@asynccontextmanager
async def connected(hub: Hub) -> AsyncIterator[socket.socket]:
    """A connection of which the hub has heard, and read nothing yet."""
    with socket.socket() as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", hub.port))
        await eventually(hub._parts.requests.waits)
        yield sock


@pytest.mark.parametrize("authenticate", ["none", "plain", "async"])
async def test_a_request_in_two_reads_is_the_policys(authenticate: str) -> None:
    loop = asyncio.get_running_loop()
    async with pair(authenticate) as sides:
        for request in (head(LINES), head([*LINES, *BROWSER[1:]])):
            answers = []
            for each in sides:
                requests = each.hub._parts.requests
                async with connected(each.hub) as sock:
                    await loop.sock_sendall(sock, request[:40])
                    await eventually(lambda one=requests: not one._all()[0].untouched)
                    await loop.sock_sendall(sock, request[40:])
                    answers.append(await loop.sock_recv(sock, 4096))
            assert answers[0] == answers[1]
            assert answers[0].startswith(b"HTTP/1.1 101 ")
        assert sides[0].answers() == 0


@pytest.mark.parametrize("authenticate", ["none", "plain", "async"])
async def test_a_request_that_comes_after_its_connection_is_the_engines(authenticate: str) -> None:
    loop = asyncio.get_running_loop()
    async with pair(authenticate) as (here, _):
        for number in range(1, 4):
            async with connected(here.hub) as sock:
                await loop.sock_sendall(sock, head(LINES))
                answer = await loop.sock_recv(sock, 4096)
                assert answer.startswith(b"HTTP/1.1 101 ")
                assert here.answers() == number
                assert not here.hub._parts.requests.waits()


async def test_a_crowd_of_slow_authenticates_has_one_of_them_in_a_turn() -> None:
    turn, calls = 0, []

    def slow(request: Request) -> Identity:
        end = time.perf_counter() + 0.004  # longer than the Poller's budget
        while time.perf_counter() < end:
            pass
        calls.append(turn)
        return Identity(f"user {len(calls)}")

    async def count_turns() -> None:
        nonlocal turn
        while len(calls) < 12:
            turn += 1
            await asyncio.sleep(0)

    hub = Hub(authenticate=slow)
    async with running(hub), AsyncExitStack() as stack:
        socks = [await stack.enter_async_context(connected(hub)) for _ in range(12)]
        await eventually(lambda: len(hub._parts.requests._waiting) == 12)
        for sock in socks:
            sock.send(head(LINES))  # all of them, before the loop goes on
        await count_turns()
        assert len(set(calls)) == 12, calls


async def test_a_queue_that_is_accepted_at_once_is_let_in_by_turns() -> None:
    turn, calls = 0, []

    def slow(request: Request) -> Identity:
        end = time.perf_counter() + 0.002  # longer than the budget of heavy reads
        while time.perf_counter() < end:
            pass
        calls.append(turn)
        return Identity(f"user {len(calls)}")

    hub = Hub(authenticate=slow)
    async with running(hub, reuse_port=True):
        with ExitStack() as stack:
            for _ in range(20):  # before the loop goes on
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", hub.port)))
                sock.sendall(head(LINES))
            hub._parts.listener.leave_to_others()
            while len(calls) < 20:
                turn += 1
                await asyncio.sleep(0)
        assert max(Counter(calls).values()) < 3, calls


async def test_a_refusal_by_authenticate_is_answered_whenever_its_request_comes() -> None:
    loop = asyncio.get_running_loop()
    refused = head(["GET /ws?id=7 HTTP/1.1", *LINES[1:]])
    async with pair("plain") as sides:
        answers = [await compare(sides, refused)]
        async with connected(sides[0].hub) as sock:
            await loop.sock_sendall(sock, refused)
            sock.shutdown(socket.SHUT_WR)
            answers.append(await loop.sock_recv(sock, 4096))
        assert all(answer.startswith(b"HTTP/1.1 401 ") for answer in answers)
        assert sides[0].hub.get_stats().rejected["auth"] == 2
        assert sides[0].answers() == 0


async def test_settings_that_change_take_back_what_the_policy_has_allowed() -> None:
    page = head(with_header("Origin: https://pages.example"))
    offer = head(with_header("Sec-WebSocket-Protocol: chat"))
    async with pair("none", allowed_origins=("https://pages.example",)) as sides:
        assert (await compare(sides, page)).startswith(b"HTTP/1.1 101 ")
        assert b"chat" not in await compare(sides, offer)
        for each in sides:
            each.hub.set_config(HubConfig(subprotocols=("chat",)))
        assert (await compare(sides, page)).startswith(b"HTTP/1.1 403 ")
        assert b"chat" in await compare(sides, offer)
        for each in sides:
            each.hub.set_config(HubConfig(max_connections=1))
        with await RawClient.open(sides[0].hub), await RawClient.open(sides[1].hub):
            answers = [await asked(each, head(LINES)) for each in sides]
            assert answers[0] == answers[1]
            assert answers[0].startswith(b"HTTP/1.1 503 ")
        assert sides[0].answers() == 4


async def test_a_hub_that_drains_refuses() -> None:
    async with pair("none") as sides:
        for each in sides:
            await each.hub.drain(0.01)
        assert (await compare(sides, head(LINES))).startswith(b"HTTP/1.1 503 ")
        assert sides[0].answers() == 0


async def test_the_policy_is_asked_once_for_each_host_and_page() -> None:
    async with pair("none", check_origin=False) as (here, _):
        policy, asked_for = here.hub._parts.requests.policy, 0
        allows_page = policy.allows_page

        def counted(host: str, origin: str | None) -> bool:
            nonlocal asked_for
            asked_for += 1
            return allows_page(host, origin)

        policy.allows_page = counted  # type: ignore[method-assign]
        for number in range(600):  # more than are kept
            for _ in range(2):
                request = head(with_header(f"Host: h{number}.example"))
                assert (await asked(here, request)).startswith(b"HTTP/1.1 101 ")
        assert asked_for == 600


@pytest.mark.parametrize("transport", ["hub", "loop"])
async def test_an_upgrade_that_fails_behind_authenticate_leaves_nothing(transport: str) -> None:
    asked: list[asyncio.Future[Identity]] = []

    def later(request: Request) -> asyncio.Future[Identity]:
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    def fail(client: Client) -> None:
        raise MemoryError

    hub = Hub(authenticate=later)
    admission = hub._admission
    admission.await_hello = fail  # type: ignore[method-assign]
    async with running(hub, transport=transport):
        with pytest.raises(AssertionError):
            await RawClient.open(hub, headers=[("Sec-WebSocket-Protocol", "wsc.1")])
        assert asked[0].cancelled()
        assert not admission._requests


async def test_a_connection_that_ends_in_authenticate_is_no_client() -> None:
    # A loop inside a callback can end it, where asyncio is patched for that (test_reentrance.py).
    def ending(request: Request) -> Identity:
        poller = hub._parts.listener.poller
        assert poller is not None
        poller.finish()
        return Identity("ann")

    hub, loop = Hub(authenticate=ending), asyncio.get_running_loop()
    async with running(hub):
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", hub.port))
            await loop.sock_sendall(sock, head(LINES))
            assert await loop.sock_recv(sock, 4096) == b""
        assert hub.get_stats().connections_total == 0
