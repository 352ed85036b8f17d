"""Code that runs in the middle of the hub's own work: a loop inside a callback, and Python code
inside the loop's and the transports' calls.

nest_asyncio, and dialogs under qasync, run the loop within a plain callback. Finalizers and signal
handlers run wherever Python does, and asyncio's loop and transports are Python. uvloop's are not,
and it refuses to run inside itself, so that all of this is about asyncio's own loop.
"""

# Each condition is waited for before the loop goes on.

from __future__ import annotations

import asyncio
import heapq
import random
import socket
import ssl
import time
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.support import crowd, exchange, join, known, named, serves_others
from wsc_fast import Client, Hub, HubConfig, HubMessage, Identity, Priority, Request, Response
from wsc_fast._core.connection import abort
from wsc_fast.testing import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    TLSClient,
    deflated,
    encode,
    eventually,
    open_client,
    running,
)

on_asyncio = pytest.mark.parametrize("any_loop", ["asyncio"])
DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


def turn_inside(seconds: float = 0.0) -> None:
    """A turn of the running loop and the next, inside of what it runs: what becomes ready in them,
    but not the rest of the turn under way."""
    loop: Any = asyncio.get_running_loop()
    before = len(loop._ready)
    loop._process_events(loop._selector.select(seconds))
    while loop._scheduled and loop._scheduled[0]._when <= loop.time():
        timer = heapq.heappop(loop._scheduled)
        timer._scheduled = False
        if timer._cancelled:
            loop._timer_cancelled_count -= 1
        loop._ready.append(timer)
    task = asyncio.current_task()
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    try:
        for _ in range(2):
            for handle in [loop._ready.pop() for _ in range(len(loop._ready) - before)][::-1]:
                if not handle._cancelled:
                    handle._run()
    finally:
        if task is not None:
            asyncio.tasks._enter_task(loop, task)


def watch() -> list[dict[str, Any]]:
    """The reports to the loop's exception handler, but for readers that asyncio itself cannot
    enter twice: they are told again."""
    told: list[dict[str, Any]] = []

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "cannot enter context" not in str(context.get("exception")):
            told.append(context)

    asyncio.get_running_loop().set_exception_handler(tell)
    return told


def frames_of(kind: str, payload: bytes) -> bytes:
    """One message, as a client of this kind sends it."""
    if kind == "compressed":
        return encode(TEXT, deflated(payload), rsv=4)
    if kind == "fragments":
        half = len(payload) // 2
        return encode(TEXT, payload[:half], fin=False) + encode(CONTINUATION, payload[half:])
    return encode(TEXT, payload)


# --- a loop inside a callback ---


@on_asyncio
@pytest.mark.parametrize("size", [20, 20_000], ids=["small", "heavy"])
@pytest.mark.parametrize("kind", ["plain", "fragments", "compressed", "tls"])
async def test_a_loop_inside_a_callback_mixes_no_clients(
    any_loop: str, kind: str, size: int, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    told = watch()
    hub = Hub(HubConfig(enable_compression=kind == "compressed"), authenticate=named)
    heard: dict[str, list[str]] = defaultdict(list)
    depth = most = 0

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        nonlocal depth, most
        heard[client.id].append(text)
        depth += 1
        most = max(most, depth)
        if depth < 5:
            turn_inside()
        depth -= 1

    tls = (server_tls, client_tls) if kind == "tls" else (None, None)
    sent: dict[str, list[str]] = {}
    dice = random.Random(size)
    async with running(hub, ssl=tls[0]):
        peers: dict[str, RawClient] = {}
        for name in "ABCDEF":
            if kind == "compressed":
                peers[name] = await RawClient.open(hub, f"/ws?id={name}", headers=DEFLATE)
            else:
                peers[name] = await open_client(hub, tls[1], f"/ws?id={name}")
            sent[name] = [f"{number} " + name * dice.randrange(1, size) for number in range(40)]
        loop = asyncio.get_running_loop()

        async def talk(name: str) -> None:
            data = b"".join(frames_of(kind, text.encode()) for text in sent[name])
            while data:
                some = dice.randrange(1, 4 * size)
                await peers[name].send_raw(data[:some])
                data = data[some:]
                await asyncio.sleep(0)

        talking = [loop.create_task(talk(name)) for name in peers]
        await eventually(lambda: sum(map(len, heard.values())) == 6 * 40)
        await asyncio.gather(*talking)
        assert heard == sent
        assert most > 1, "no loop ran inside a callback"
        assert hub.get_stats().protocol_errors == 0
        for raw in peers.values():
            await raw.send(PING, b"alive")
            assert await raw.recv() == Frame(PONG, b"alive")
            raw.close()
    assert told == []


@on_asyncio
async def test_a_client_heard_again_inside_its_own_callback_is_heard_in_order(
    any_loop: str,
) -> None:
    # Beyond its rate it is paused; what it owes has passed while its callback still runs.
    told = watch()
    hub = Hub(HubConfig(message_rate=50, rate_limit_action="pause"), authenticate=named)
    heard: list[str] = []
    again: list[str] = []

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        heard.append(text)
        if hub.get_stats().limited["message_rate"] and len(again) < 5:
            again.append(text)
            raw.sock.sendall(encode(TEXT, f"again {len(again)}".encode()))
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                turn_inside(0.01)

    first = [str(number) for number in range(60)]
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send_raw(b"".join(encode(TEXT, text.encode()) for text in first))
        await eventually(lambda: len(heard) == 65)
        raw.close()
    assert heard == first + [f"again {number}" for number in range(1, 6)]
    assert told == []


@on_asyncio
async def test_messages_held_back_come_before_those_read_inside_the_callback(
    any_loop: str,
) -> None:
    told = watch()
    heard: list[str] = []
    known_by_now = asyncio.Event()

    async def authenticate(request: Request) -> Identity:
        await known_by_now.wait()
        return named(request)

    hub = Hub(authenticate=authenticate)

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        heard.append(text)
        if len(heard) == 1:
            raw.sock.sendall(encode(TEXT, b"later"))
            for _ in range(20):
                turn_inside(0.001)
            raw.sock.sendall(encode(TEXT, b"last"))

    async with running(hub):
        held = b"".join(encode(TEXT, text) for text in (b"first", b"second", b"third"))
        raw = await RawClient.open(hub, "/ws?id=a", tail=held)
        known_by_now.set()
        await eventually(lambda: len(heard) == 5)
        raw.close()
    assert heard == ["first", "second", "third", "later", "last"]
    assert told == []


@on_asyncio
@pytest.mark.parametrize("end", ["half-close", "close", "reset", "tls"])
async def test_messages_before_the_end_are_heard_though_it_comes_inside_the_callback(
    any_loop: str, end: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    told = watch()
    heard: list[str] = []
    known_by_now = asyncio.Event()

    async def authenticate(request: Request) -> Identity:
        await known_by_now.wait()
        return named(request)

    hub = Hub(HubConfig(heartbeat_interval=0.01), authenticate=authenticate)

    @hub.on_message_received
    def message(client: Client, text: str) -> None:
        heard.append(text)
        if text != "first":
            return
        if isinstance(raw, TLSClient):
            raw.say_goodbye(encode(TEXT, b"third") + encode(TEXT, b"fourth"))
        elif end == "half-close":
            raw.sock.shutdown(socket.SHUT_WR)
        else:
            raw.close() if end == "close" else raw.reset()
        for _ in range(30):
            turn_inside(0.001)
            hub.broadcast("who is gone gets nothing")

    hub.on_client_disconnected(lambda client: heard.append("gone"))
    async with running(hub, ssl=server_tls if end == "tls" else None):
        held = encode(TEXT, b"first") + encode(TEXT, b"second")
        raw: RawClient
        if end == "tls":
            raw = await TLSClient.open_tls(hub, client_tls, upgrade=False)
            await raw.send_raw(raw.request(hub, "/ws?id=a") + held)
            await raw.read_response()
        else:
            raw = await RawClient.open(hub, "/ws?id=a", tail=held)
        known_by_now.set()
        await eventually(lambda: "gone" in heard)
        raw.close()
    expected = ["first", "second"] + (["third", "fourth"] if end == "tls" else [])
    assert heard == [*expected, "gone"]
    assert told == []


@on_asyncio
@pytest.mark.parametrize("kind", ["plain", "async", "route"])
async def test_a_connection_that_ends_inside_its_own_request_leaves_nothing(
    any_loop: str, kind: str
) -> None:
    told = watch()
    calls = 0

    def until_it_has_ended() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            for handshake in hub._parts.requests._waiting:
                asyncio.get_running_loop().call_later(0, handshake.abort)  # as its timeout would
            while hub._parts.requests._waiting:
                turn_inside(0.01)

    async def later(request: Request) -> Identity:
        return named(request)

    def authenticate(request: Request) -> Any:
        until_it_has_ended()
        return later(request) if kind == "async" else named(request)

    hub = Hub(authenticate=authenticate)

    @hub.route("/page")
    def page(request: Request) -> Response:
        until_it_has_ended()
        return Response(body="too late")

    async with running(hub):
        head = RawClient.request(hub, "/page" if kind == "route" else "/ws?id=a")
        assert await exchange(hub, head) == b""
        assert hub.connections == 0
        await serves_others(hub)
    assert calls == 2  # and that of the client which is served
    assert told == []


# --- Python code inside the loop's calls ---


class Between:
    """Has a function run once inside a call of the loop, as a finalizer or a signal handler may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.then: Callable[[], object] | None = None
        self.ran = 0
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            then, self.then = self.then, None
            if then is not None:
                self.ran += 1
                then()
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)


@on_asyncio
@pytest.mark.parametrize("leaver", ["first", "middle", "last"])
@pytest.mark.parametrize("count", [2, 5, 20, 40, 100])
@pytest.mark.parametrize("how", ["all", "excluding", "room", "key"])
async def test_a_broadcast_skips_nobody_where_a_client_leaves_meanwhile(
    any_loop: str, monkeypatch: pytest.MonkeyPatch, how: str, count: int, leaver: str
) -> None:
    between = Between(monkeypatch, asyncio.get_running_loop(), "call_soon")
    hub = Hub(authenticate=named)
    hub.create_room("room")
    gone = {"first": "c0", "middle": f"c{count // 2}", "last": f"c{count - 1}"}[leaver]
    async with crowd(hub, count) as raws:
        for name in raws:
            hub.join_room(name, "room")
        left_out = next(name for name in raws if name != gone) if how == "excluding" else None
        await asyncio.sleep(0)
        between.then = known(hub, gone).disconnect
        if how == "room":
            queued = hub.broadcast_to_room("room", b"all")
        else:
            queued = hub.broadcast(
                b"all", exclude=[left_out] if left_out else (), key="k" if how == "key" else None
            )
        assert between.ran == 1
        assert queued == count - 1 - (left_out is not None)
        hub.broadcast(b"next")
        for name, raw in raws.items():
            if name != gone:
                if name != left_out:
                    assert await raw.recv() == Frame(BINARY, b"all"), name
                assert await raw.recv() == Frame(BINARY, b"next"), name


@on_asyncio
@pytest.mark.parametrize("count", [5, 40])
@pytest.mark.parametrize("other", ["same", "room"])
async def test_a_broadcast_within_a_broadcast_reaches_everybody_it_is_for(
    any_loop: str, monkeypatch: pytest.MonkeyPatch, count: int, other: str
) -> None:
    # The outer one's exclusions are not the inner one's, nor is its batch.
    between = Between(monkeypatch, asyncio.get_running_loop(), "call_soon")
    hub = Hub(authenticate=named)
    hub.create_room("room")
    async with crowd(hub, count) as raws:
        for name in raws:
            hub.join_room(name, "room")
        await asyncio.sleep(0)
        between.then = lambda: (
            hub.broadcast(b"inner") if other == "same" else hub.broadcast_to_room("room", b"inner")
        )
        assert hub.broadcast(b"outer", exclude=["c0", "c1"]) == count - 2
        assert between.ran == 1
        for name, raw in raws.items():
            assert await raw.recv() == Frame(BINARY, b"inner"), name
            if name not in ("c0", "c1"):
                assert await raw.recv() == Frame(BINARY, b"outer"), name


class DoesNothing:
    """A failure handler."""

    def handle_send_failure(self, *args: object) -> None:
        pass


@on_asyncio
@pytest.mark.parametrize("where", ["loop", "failure"])
async def test_a_message_to_a_user_skips_no_client_where_another_leaves_meanwhile(
    any_loop: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loop = asyncio.get_running_loop()
    hub = Hub(HubConfig(outbox_messages=1, overflow="drop_oldest"), authenticate=named)
    if where == "failure":
        hub.add_send_failure_handler(DoesNothing())
        between = Between(monkeypatch, hub._delivery, "lost")
    else:
        between = Between(monkeypatch, loop, "call_soon")
    async with running(hub):
        clients = [await join(hub, f"c{number}&user=ann") for number in range(6)]
        if where == "failure":
            for _, client in clients:
                client.send("dropped")
        else:
            await asyncio.sleep(0)
        between.then = known(hub, "c0").disconnect
        hub.send_to_user("ann", HubMessage(content="to ann"))
        assert between.ran == 1
        for raw, client in clients[1:]:
            assert b"to ann" in (await raw.recv()).payload, client
        for raw, _ in clients:
            raw.close()


# --- Python code inside a transport's call ---


@on_asyncio
@pytest.mark.parametrize("what", ["evict", "overtake", "conflate", "disconnect"])
@pytest.mark.parametrize("through", ["partial", "context"])
async def test_messages_queued_while_a_flush_writes_change_nothing_that_it_has_sent(
    any_loop: str, monkeypatch: pytest.MonkeyPatch, through: str, what: str
) -> None:
    # One client's frames go to its transport, whose code is Python's. That code sends to
    # another client, whose frames the same flush has planned, or sent.
    between = Between(monkeypatch, _SelectorSocketTransport, "write")
    hub = Hub(
        HubConfig(
            outbox_messages=2,
            overflow="drop_oldest",
            outbox_bytes=1 << 24,
            enable_compression=through == "context",
            server_no_context_takeover=False,
        ),
        authenticate=named,
    )
    async with running(hub, transport="loop"):
        first, slow = await join(
            hub, "slow", rcvbuf=4096, headers=DEFLATE if through == "context" else ()
        )
        other, client = await join(hub, "other")

        def meanwhile() -> None:
            if what == "evict":
                client.send(b"three")
                client.send(b"four")
            elif what == "overtake":
                hub.send_to_user(
                    "other", HubMessage(content="critical", priority=Priority.CRITICAL)
                )
            elif what == "conflate":
                client.send(b"three", key="key")
            else:
                client.disconnect()

        between.then = meanwhile
        slow.send(bytes(1 << 23) if through == "partial" else b"short")
        client.send(b"one", key="key" if what == "conflate" else None)
        client.send(b"two")
        await eventually(lambda: between.ran)
        frames = [await other.recv() for _ in range(4 if what == "evict" else 3)]
        payloads = [frame.payload for frame in frames]
        assert payloads[:2] == [b"one", b"two"]
        if what == "evict":
            assert payloads[2:] == [b"three", b"four"]
        elif what == "overtake":
            assert b"critical" in payloads[2]
        elif what == "conflate":
            assert payloads[2] == b"three"
        else:
            assert payloads[2] == b"\x03\xe8"
        stats = hub.get_stats()
        assert set(stats.dropped.values()) == {0}
        first.reset()
        other.close()


@on_asyncio
async def test_a_client_that_leaves_while_a_flush_writes_gets_no_rest_of_a_frame(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two frames that the kernel took in part: while the first rest is written, its owner's
    # neighbour is aborted.
    between = Between(monkeypatch, _SelectorSocketTransport, "write")
    hub = Hub(HubConfig(outbox_bytes=1 << 24), authenticate=named)
    async with running(hub, transport="loop"):
        first, _ = await join(hub, "a", rcvbuf=4096)
        second, client = await join(hub, "b", rcvbuf=4096)
        between.then = partial(abort, client)
        hub.broadcast(bytes(1 << 23))
        await eventually(lambda: between.ran and hub.connections == 1)
        assert await first.recv() == Frame(BINARY, bytes(1 << 23))
        first.close()
        second.close()
