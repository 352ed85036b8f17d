"""Event callbacks: plain and async, their order per client, backpressure, and what they raise."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
import websockets

from tests.support import TLS, only_client, run_apart, times_logged, unless_lost
from wsc_fast import (
    Client,
    ConnectionLostError,
    Hub,
    HubConfig,
    Identity,
    ProtocolError,
    Request,
    ValidationError,
)
from wsc_fast.testing import (
    CLOSE,
    TEXT,
    RawClient,
    assert_nothing_left,
    encode,
    eventually,
    reset_when_closed,
    running,
    uri,
)

REGISTRARS = sorted(name for name in dir(Hub) if name.startswith("on_"))

# These end a loop or a task when they get past us; a callback may raise any of them.
HARD = [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of the hub's log at ERROR."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "wsc_fast" and record.levelno >= logging.ERROR
    ]


# --- setting them ---


def test_there_are_callbacks_to_set() -> None:
    assert {"on_client_connected", "on_error", "on_node", "on_startup"} < set(REGISTRARS)


@pytest.mark.parametrize("name", REGISTRARS)
def test_a_callback_is_returned_so_that_it_works_as_a_decorator(name: str) -> None:
    def plain(*args: object) -> None: ...
    async def later(*args: object) -> None: ...

    assert getattr(Hub(), name)(plain) is plain
    assert getattr(Hub(), name)(later) is later


@pytest.mark.parametrize("name", REGISTRARS)
@pytest.mark.parametrize("bad", [None, 1, "name"])
def test_a_callback_must_be_callable(name: str, bad: Any) -> None:
    with pytest.raises(ValidationError, match="callable"):
        getattr(Hub(), name)(bad)


async def test_several_callbacks_run_in_the_order_they_were_set() -> None:
    hub = Hub()
    seen: list[object] = []

    def recorder(name: str, is_async: bool) -> Callable[..., Any]:
        async def later(*args: object) -> None:
            await asyncio.sleep(0)
            seen.append((name, *args[1:]))

        def now(*args: object) -> None:
            seen.append((name, *args[1:]))

        return later if is_async else now

    for number, is_async in enumerate([False, True, False, True, True, False]):
        hub.on_client_connected(recorder(f"in {number}", is_async))
        hub.on_message_received(recorder(f"message {number}", is_async))
        hub.on_client_disconnected(recorder(f"out {number}", is_async))
    async with running(hub):
        with await RawClient.open(hub, tail=encode(TEXT, b"a") + encode(TEXT, b"b")):
            await eventually(lambda: len(seen) == 18)
        await eventually(lambda: len(seen) == 24)
    assert seen == [
        *[(f"in {number}",) for number in range(6)],
        *[(f"message {number}", "a") for number in range(6)],
        *[(f"message {number}", "b") for number in range(6)],
        *[(f"out {number}",) for number in range(6)],
    ]


async def test_a_callback_set_while_the_hub_runs_counts_from_then_on() -> None:
    hub = Hub()
    seen: list[str] = []
    async with running(hub), websockets.connect(uri(hub)) as ws:
        await ws.send("unheard")
        await eventually(lambda: hub.get_stats().messages_in == 1)
        hub.on_message_received(lambda client, message: seen.append(f"1 {message}"))
        await ws.send("a")
        await eventually(lambda: seen == ["1 a"])
        hub.on_message_received(lambda client, message: seen.append(f"2 {message}"))
        await ws.send("b")
        await eventually(lambda: seen == ["1 a", "1 b", "2 b"])


async def test_what_the_callbacks_get(any_loop: str) -> None:
    hub = Hub()
    seen: list[tuple[object, ...]] = []
    hub.on_client_connected(lambda *args: seen.append(("in", *args)))
    hub.on_client_disconnected(lambda *args: seen.append(("out", *args)))
    hub.on_message_received(lambda *args: seen.append(("message", *args)))
    async with running(hub):
        async with websockets.connect(uri(hub)) as ws:
            client = only_client(hub)
            await ws.send("größe")
            await ws.send(b"\x00\xff")
            await ws.send(["fra", "gmen", "ted"])
        await eventually(lambda: len(seen) == 5)
    assert seen == [
        ("in", client),
        ("message", client, "größe"),
        ("message", client, b"\x00\xff"),
        ("message", client, "fragmented"),
        ("out", client),
    ]


async def test_any_awaitable_is_awaited() -> None:
    hub = Hub()
    seen: list[str | bytes] = []

    class Later:
        def __init__(self, message: str | bytes) -> None:
            self.message = message

        def __await__(self) -> Any:
            yield
            seen.append(self.message)

    hub.on_message_received(lambda client, message: Later(message))
    async with running(hub), websockets.connect(uri(hub)) as ws:
        await ws.send("a")
        await ws.send("b")
        await eventually(lambda: seen == ["a", "b"])


async def test_the_connect_callback_is_over_before_the_first_message() -> None:
    hub = Hub()
    seen: list[str] = []
    gate = asyncio.Event()

    @hub.on_client_connected
    async def connected(client: Client) -> None:
        seen.append("begin")
        await gate.wait()
        seen.append("end")

    hub.on_message_received(lambda client, message: seen.append(str(message)))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    async with running(hub):
        tail = encode(TEXT, b"1") + encode(TEXT, b"2") + encode(CLOSE, b"\x03\xe8")
        with await RawClient.open(hub, tail=tail) as raw:
            await eventually(lambda: hub.get_stats().messages_in == 2)
            assert (await raw.recv()).code == 1000
            assert seen == ["begin"]
            gate.set()
            await eventually(lambda: seen == ["begin", "end", "1", "2", "out"])


# --- order and backpressure ---


@pytest.mark.fault(number="F15")
async def test_handlers_that_sleep_at_random_keep_the_order_of_each_client(any_loop: str) -> None:
    hub = Hub()
    rng = random.Random(15)
    seen: dict[Client, list[int]] = {}
    running_now: dict[Client, int] = {}
    overlaps = 0

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        nonlocal overlaps
        running_now[client] = running_now.get(client, 0) + 1
        overlaps += running_now[client] > 1
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.002)
        if rng.random() < 0.005:
            # The loop holds tasks only weakly; the hub must not.
            gc.collect()
        seen.setdefault(client, []).append(int(message))
        running_now[client] -= 1
        if rng.random() < 0.05:
            raise ValueError("a handler that fails changes no order")

    count, clients = 200, 5
    async with running(hub):
        raws = [await RawClient.open(hub) for _ in range(clients)]
        for start in range(0, count, 20):
            for raw in raws:
                numbers = range(start, start + 20)
                await raw.send_raw(b"".join(encode(TEXT, b"%d" % n) for n in numbers))
        await eventually(lambda: sum(map(len, seen.values())) == count * clients, timeout=60.0)
        for raw in raws:
            raw.close()
    assert len(seen) == clients
    assert all(numbers == list(range(count)) for numbers in seen.values())
    assert overlaps == 0


async def test_more_than_64_waiting_pause_that_clients_reading_and_nobody_elses(
    any_loop: str,
) -> None:
    hub = Hub()
    gate = asyncio.Event()
    seen: list[int] = []
    total, size = 12_000, 1024

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        if message == "ping":
            client.send("pong")
            return
        await gate.wait()
        assert isinstance(message, bytes)
        assert len(message) == size
        seen.append(int(message[:8]))

    async with running(hub):
        with await RawClient.open(hub) as flood, await RawClient.open(hub) as other:
            data = b"".join(encode(2, (b"%08d" % n).ljust(size)) for n in range(total))
            sending = asyncio.create_task(flood.send_raw(data))
            await eventually(lambda: hub.get_stats().messages_in > 64)
            taken = []
            for _ in range(200):
                await other.send(TEXT, b"ping")
                assert (await other.recv()).payload == b"pong"
                taken.append(hub.get_stats().messages_in)
            # Only the other's own messages were still taken; what one read had brought is in it.
            assert taken[-1] - taken[100] == 99
            assert taken[-1] < 1000
            assert not sending.done()
            assert seen == []
            gate.set()
            await sending
            await eventually(lambda: len(seen) == total)
            assert seen == list(range(total))


@pytest.mark.fault(number="E6")
async def test_a_flood_over_the_bound_is_handled_in_order_and_nothing_is_lost() -> None:
    hub = Hub(HubConfig(max_pending_callbacks=1, read_buffer_size=8192))
    seen: list[int] = []
    waiting = 0
    received = 0

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        nonlocal waiting
        await asyncio.sleep(0)
        seen.append(int(message))
        waiting = max(waiting, hub.get_stats().messages_in - len(seen))

    total = 20_000
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(b"".join(encode(TEXT, b"%d" % n) for n in range(total)))
            await eventually(lambda: len(seen) == total)
            assert seen == list(range(total))
            received = hub.get_stats().messages_in
    assert received == total
    # Never much more than one read of the socket brings, in frames of 11 bytes.
    assert waiting <= 8192 // 7


async def test_a_client_that_is_not_read_is_still_sent_to_and_its_end_is_noticed() -> None:
    hub = Hub(HubConfig(max_pending_callbacks=2))
    gate = asyncio.Event()
    seen: list[str] = []

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        await gate.wait()
        seen.append(str(message))

    hub.on_client_disconnected(lambda client: seen.append("out"))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(b"".join(encode(TEXT, b"%d" % n) for n in range(10)))
            await eventually(lambda: hub.get_stats().limited["max_pending_callbacks"] == 1)
            hub.broadcast("to you")
            assert (await raw.recv()).payload == b"to you"
        gate.set()
        await eventually(lambda: "out" in seen)
    assert seen == [*"0123456789", "out"]


async def test_disconnecting_a_client_whose_reading_is_paused() -> None:
    hub = Hub(HubConfig(max_pending_callbacks=2))
    gate = asyncio.Event()
    gone: list[Client] = []

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        await gate.wait()

    hub.on_client_disconnected(gone.append)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send_raw(b"".join(encode(TEXT, b"%d" % n) for n in range(10)))
            await eventually(lambda: hub.get_stats().limited["max_pending_callbacks"] == 1)
            it = only_client(hub)
            it.disconnect(4000)
            assert (await raw.recv()).code == 4000
            await raw.send(CLOSE, b"\x0f\xa0")
            # Its answer is read although its messages wait.
            assert await raw.recv_rest(timeout=3) == []
            await eventually(lambda: hub.connections == 0)
            assert gone == []
            gate.set()
            await eventually(lambda: gone == [it])


# --- what callbacks raise ---


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_raising_message_callback_is_reported_and_the_connection_stays(
    any_loop: str, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    failures: list[tuple[Client | None, BaseException]] = []
    error = ValueError("mine")

    def plain(client: Client, message: str | bytes) -> None:
        raise error

    async def later(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        raise error

    hub.on_message_received(later if is_async else plain)
    hub.on_message_received(lambda client, message: client.send(f"after {message!r}"))
    hub.on_error(unless_lost(lambda client, error: failures.append((client, error))))
    async with running(hub), websockets.connect(uri(hub)) as ws:
        it = only_client(hub)
        for text in "ab":
            await ws.send(text)
            # The other callbacks of the event run all the same.
            assert await ws.recv() == f"after {text!r}"
        assert it.is_connected()
        stats = hub.get_stats()
        assert stats.callback_errors == stats.error_count == 2
    assert failures == [(it, error), (it, error)]
    lines = errors_in(caplog)
    assert times_logged(caplog, "a callback raised") == 2
    assert it.id in lines[0]
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.fault(number="A27")
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_raising_connect_callback_closes_with_1011(any_loop: str, is_async: bool) -> None:
    hub = Hub()
    seen: list[str] = []

    def plain(client: Client) -> None:
        raise ValueError("password=hunter2")

    async def later(client: Client) -> None:
        await asyncio.sleep(0)
        raise ValueError("password=hunter2")

    hub.on_client_connected(later if is_async else plain)
    hub.on_client_connected(lambda client: seen.append("second connect callback"))
    hub.on_message_received(lambda client, message: seen.append("message"))
    hub.on_client_disconnected(lambda client: seen.append("out"))
    hub.on_error(lambda client, error: seen.append(str(error)))
    async with running(hub):
        # The message came in the same segment as the upgrade.
        with await RawClient.open(hub, tail=encode(TEXT, b"x")) as raw:
            frame = await raw.recv()
            assert frame.code == 1011
            assert b"hunter2" not in frame.payload
            assert hub.get_connected_clients() == 0
            await raw.send(CLOSE, frame.payload)
            assert await raw.recv_rest() == []
        await eventually(lambda: "out" in seen)
        assert hub.connections == 0
    assert seen == ["password=hunter2", "out"]


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_raising_disconnect_callback_leaves_nothing_behind(is_async: bool) -> None:
    hub = Hub()
    seen: list[str] = []

    def plain(client: Client) -> None:
        seen.append("out")
        raise ValueError("mine")

    async def later(client: Client) -> None:
        plain(client)

    hub.on_client_disconnected(later if is_async else plain)
    hub.on_error(unless_lost(lambda client, error: seen.append(str(error))))
    async with running(hub):
        hub.create_room("r")
        with await RawClient.open(hub):
            hub.join_room(only_client(hub).id, "r")
        await eventually(lambda: len(seen) == 2)
        assert hub.get_room_clients("r") == []
        assert hub.connections == 0
    assert seen == ["out", "mine"]


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_a_base_exception_of_a_message_callback_closes_its_client_alone(
    any_loop: str, kind: type[BaseException], is_async: bool
) -> None:
    hub = Hub()
    failures: list[type[BaseException]] = []

    def plain(client: Client, message: str | bytes) -> None:
        if message == "hard":
            raise kind
        client.send(message)

    async def later(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        plain(client, message)

    hub.on_message_received(later if is_async else plain)
    hub.on_error(unless_lost(lambda client, error: failures.append(type(error))))
    async with running(hub):
        with await RawClient.open(hub) as raw, await RawClient.open(hub) as other:
            await raw.send(TEXT, b"hard")
            assert (await raw.recv()).code == 1011
            await other.send(TEXT, b"unhurt")
            assert (await other.recv()).payload == b"unhurt"
    assert failures == [kind]


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", HARD[:2])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("name", ["on_client_connected", "on_client_disconnected"])
async def test_a_base_exception_of_another_callback_hurts_nobody_else(
    kind: type[BaseException], is_async: bool, name: str
) -> None:
    hub = Hub()
    failures: list[type[BaseException]] = []
    gone: list[Client] = []

    def plain(client: Client) -> None:
        if client.get_user_data("spared") is None and not failures:
            raise kind

    async def later(client: Client) -> None:
        await asyncio.sleep(0)
        plain(client)

    hub.on_error(unless_lost(lambda client, error: failures.append(type(error))))
    getattr(hub, name)(later if is_async else plain)
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            if name == "on_client_connected":
                assert (await raw.recv()).code == 1011
        await eventually(lambda: gone)
        with await RawClient.open(hub) as raw:
            hub.broadcast("unhurt")
            assert (await raw.recv()).payload == b"unhurt"
    assert failures == [kind]
    assert len(gone) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_an_on_error_callback_that_raises_is_logged_and_stops_no_other(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    heard: list[str] = []

    def plain(client: Client | None, error: BaseException) -> None:
        raise RuntimeError("the error handler itself")

    async def later(client: Client | None, error: BaseException) -> None:
        await asyncio.sleep(0)
        plain(client, error)

    @hub.on_message_received
    def fail(client: Client, message: str | bytes) -> None:
        raise ValueError(str(message))

    hub.on_error(later if is_async else plain)
    hub.on_error(lambda client, error: heard.append(str(error)))
    async with running(hub), websockets.connect(uri(hub)) as ws:
        await ws.send("a")
        await ws.send("b")
        await eventually(lambda: heard == ["a", "b"])
        await eventually(lambda: len(errors_in(caplog)) == 4)
        assert only_client(hub).is_connected()
    assert sum("an on_error callback raised" in line for line in errors_in(caplog)) == 2


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", HARD[:3])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_a_base_exception_of_an_on_error_callback_hurts_nobody(
    kind: type[BaseException], is_async: bool
) -> None:
    async def scenario() -> None:
        hub = Hub()
        heard = 0

        def plain(client: Client | None, error: BaseException) -> None:
            nonlocal heard
            heard += 1
            raise kind

        async def later(client: Client | None, error: BaseException) -> None:
            await asyncio.sleep(0)
            plain(client, error)

        @hub.on_message_received
        def fail(client: Client, message: str | bytes) -> None:
            if message == "fail":
                raise ValueError("mine")
            client.send(message)

        hub.on_error(later if is_async else plain)
        async with running(hub):
            with await RawClient.open(hub) as raw:
                await raw.send(TEXT, b"fail")
                await eventually(lambda: heard == 1)
                await raw.send(TEXT, b"unhurt")
                assert (await raw.recv()).payload == b"unhurt"

    run_apart(scenario)


async def test_a_peers_fault_comes_to_on_error_and_is_no_callback_error() -> None:
    hub = Hub()
    heard: list[tuple[Client | None, BaseException]] = []
    hub.on_error(lambda client, error: heard.append((client, error)))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            it = only_client(hub)
            await raw.send(TEXT, b"\xff")
            assert (await raw.recv()).code == 1007
        assert len(heard) == 1
        assert heard[0][0] is it
        assert isinstance(heard[0][1], ProtocolError)
        assert heard[0][1].code == 1007
        stats = hub.get_stats()
        assert (stats.protocol_errors, stats.callback_errors, stats.error_count) == (1, 0, 1)


async def test_where_no_client_can_be_named_on_error_gets_none() -> None:
    heard: list[tuple[Client | None, str]] = []

    def authenticate(request: Request) -> None:
        raise ValueError("in authenticate")

    hub = Hub(authenticate=authenticate)
    hub.on_error(lambda client, error: heard.append((client, str(error))))

    @hub.route("/fails")
    def fails(request: Request) -> str:
        raise ValueError("in a route")

    async with running(hub):
        for path in ("/ws", "/fails"):
            with await RawClient.open(hub, upgrade=False) as raw:
                await raw.send_raw(raw.request(hub, path))
                assert b" 500 " in await raw.read_response()
    assert heard == [(None, "in authenticate"), (None, "in a route")]


async def test_callbacks_without_on_error_still_reach_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub()

    @hub.on_message_received
    def fail(client: Client, message: str | bytes) -> None:
        raise ValueError("mine")

    async with running(hub), websockets.connect(uri(hub)) as ws:
        await ws.send("a")
        await eventually(lambda: errors_in(caplog))
    assert "mine" in caplog.text


# --- stopping with callbacks under way ---


async def test_stop_lets_callbacks_under_way_finish() -> None:
    hub = Hub()
    begun = asyncio.Event()
    finish = asyncio.Event()
    seen: list[str] = []

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        begun.set()
        await finish.wait()
        seen.append("message")

    @hub.on_client_disconnected
    async def out(client: Client) -> None:
        await asyncio.sleep(0)
        seen.append("out")

    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as ws:
        await ws.send("x")
        await begun.wait()
        stopping = asyncio.create_task(hub.stop(timeout=5.0))
        await ws.wait_closed()
        assert not stopping.done()
        finish.set()
        await stopping
    assert seen == ["message", "out"]


@pytest.mark.fault(number="F14")
async def test_stop_with_a_stuck_callback_still_tells_of_the_disconnect() -> None:
    hub = Hub()
    begun = asyncio.Event()
    cancelled = asyncio.Event()
    failures: list[BaseException] = []
    gone: list[Client] = []

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    hub.on_client_disconnected(gone.append)
    hub.on_error(unless_lost(lambda client, error: failures.append(error)))
    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as ws:
        await ws.send("x")
        await begun.wait()
        begin = time.monotonic()
        await hub.stop(timeout=0.2)
        assert time.monotonic() - begin < 1.5
        await ws.wait_closed()
    assert cancelled.is_set()
    # Being cancelled by stop is no fault of the callback's.
    assert failures == []
    assert len(gone) == 1


# --- callbacks that go on when their client has gone ---


async def leaves(hub: Hub, *messages: bytes) -> None:
    """A client comes, sends these and leaves."""
    raw = await RawClient.open(hub, tail=b"".join(encode(TEXT, text) for text in messages))
    await eventually(lambda: hub.get_connected_clients() == 1)
    raw.close()
    await eventually(lambda: hub.connections == 0)


@pytest.mark.parametrize("where", ["connected", "message"])
async def test_a_callback_that_never_ends_is_cancelled_once_its_client_has_gone(
    any_loop: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.1))
    seen: list[str] = []

    async def never(*args: object) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    if where == "connected":
        hub.on_client_connected(never)
    hub.on_message_received(never)
    hub.on_client_disconnected(lambda client: seen.append("gone"))
    async with running(hub):
        for number in range(1, 4):
            await leaves(hub, b"a", b"b", b"c")
            await eventually(lambda: len(seen) == 2 * number)  # noqa: B023
        await eventually(lambda: not hub._parts.tasks)
        assert hub.get_stats().limited["callback_close_timeout"] == 3
        assert hub.get_stats().callback_errors == 0
    assert seen == ["cancelled", "gone"] * 3
    assert times_logged(caplog, "callback_close_timeout") == 3
    assert times_logged(caplog, "received messages were not handled") == 3


async def test_a_callback_that_stops_the_hub_is_not_cancelled_by_it(any_loop: str) -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.05))

    @hub.on_message_received
    async def stop(client: Client, message: str | bytes) -> None:
        await hub.stop(0.5)  # as long as the other client does not answer the close

    await hub.start(port=0)
    with await RawClient.open(hub), await RawClient.open(hub) as raw:
        await raw.send(TEXT, b"stop")
        assert (await raw.recv()).code == 1001
        raw.close()
        await eventually(lambda: hub.loop is None)
    assert hub.get_stats().limited["callback_close_timeout"] == 0
    assert_nothing_left(hub)


async def test_an_async_on_client_disconnected_that_never_ends_is_cancelled(any_loop: str) -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.1))
    begun = 0

    @hub.on_message_received
    @hub.on_client_disconnected
    async def never(*args: object) -> None:
        nonlocal begun
        begun += 1
        await asyncio.get_running_loop().create_future()

    async with running(hub):
        await leaves(hub, b"a")
        await eventually(lambda: begun == 2 and not hub._parts.tasks)
        await leaves(hub)
        await eventually(lambda: begun == 3 and not hub._parts.tasks)
        assert hub.get_stats().limited["callback_close_timeout"] == 3


async def test_messages_before_a_leave_are_handled_however_long_it_takes_in_all(
    any_loop: str,
) -> None:
    # Each callback has the time, not all of them together.
    hub = Hub(HubConfig(callback_close_timeout=2.0))
    seen: list[str] = []
    ends: asyncio.Queue[None] = asyncio.Queue()

    @hub.on_message_received
    async def handle(client: Client, message: str) -> None:
        await ends.get()
        seen.append(message)

    hub.on_client_disconnected(lambda client: seen.append("gone"))
    async with running(hub):
        await leaves(hub, b"0", b"1", b"2", b"3")
        began = time.monotonic()
        for number in range(4):
            await asyncio.sleep(0.7)
            ends.put_nowait(None)
            await eventually(lambda: len(seen) > number)  # noqa: B023
        assert time.monotonic() - began > 2.5
        await eventually(lambda: seen == ["0", "1", "2", "3", "gone"])
        assert hub.get_stats().limited["callback_close_timeout"] == 0


async def test_a_callback_goes_on_while_its_client_is_there(any_loop: str) -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.05))
    ended = asyncio.Event()
    going_on = asyncio.Event()

    @hub.on_message_received
    async def handle(client: Client, message: str) -> None:
        await going_on.wait()
        ended.set()

    async with running(hub):
        with await RawClient.open(hub, tail=encode(TEXT, b"a")):
            await asyncio.sleep(0.3)
            going_on.set()
            async with asyncio.timeout(5):
                await ended.wait()
        assert hub.get_stats().limited["callback_close_timeout"] == 0


async def test_a_callback_that_takes_no_cancellation_is_told_of_and_does_no_harm(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(callback_close_timeout=0.1))
    seen: list[str] = []

    @hub.on_message_received
    async def stubborn(client: Client, message: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            seen.append(message)

    hub.on_client_disconnected(lambda client: seen.append("gone"))
    async with running(hub):
        await leaves(hub, b"a", b"b")
        await eventually(lambda: seen == ["a", "gone"])
        await eventually(lambda: not hub._parts.tasks)


# --- connections that are lost ---


@TLS
@pytest.mark.parametrize("end", ["close", "reset"])
async def test_on_error_hears_of_a_connection_that_broke(
    any_loop: str,
    end: str,
    tls: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    quiet_log: None,
) -> None:
    hub = Hub()
    told: list[object] = []
    hub.on_error(lambda client, error: told.append((client, error)))
    hub.on_client_disconnected(lambda client: told.append((client, client.close_code)))
    async with running(hub, ssl=server_tls if tls else None):
        options = {"ssl": client_tls, "server_hostname": "localhost"} if tls else {}
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port, **options)
        writer.write(RawClient.request(hub))
        await reader.readuntil(b"\r\n\r\n")
        client = only_client(hub)
        if end == "reset":
            sock = writer.get_extra_info("socket")
            reset_when_closed(sock)
            writer.transport.abort()
        else:
            writer.close()
        await eventually(lambda: len(told) == 2)
        (whose, error), gone = told  # type: ignore[misc]
        assert (whose, gone) == (client, (client, 1006))
        assert isinstance(error, ConnectionLostError)
        assert isinstance(error, ConnectionError)
        assert (error.code, str(error)) == (
            1006,
            "the connection broke: it ended without a close frame",
        )
        # It is nothing that went wrong in a callback.
        assert hub.get_stats().callback_errors == 0


async def test_on_error_hears_of_a_heartbeat_that_ended(any_loop: str, quiet_log: None) -> None:
    hub = Hub(HubConfig(heartbeat_interval=0.05, heartbeat_timeout=0.2, close_timeout=0.1))
    told: list[object] = []
    hub.on_error(lambda client, error: told.append((client, error)))
    hub.on_client_disconnected(lambda client: told.append(client))
    async with running(hub):
        raw = await RawClient.open(hub)
        client = only_client(hub)
        await eventually(lambda: len(told) == 2)
        (whose, error), gone = told  # type: ignore[misc]
        assert whose is gone is client
        assert isinstance(error, ConnectionLostError)
        assert error.code == client.close_code == 1001
        assert str(error).startswith("heartbeat timeout: nothing came from the client for ")
        raw.close()


@pytest.mark.parametrize("end", ["peer", "hub", "stop", "fault", "before the identity"])
async def test_on_error_hears_nothing_of_connections_that_end_otherwise(
    any_loop: str, end: str
) -> None:
    async def authenticate(request: Request) -> Identity:
        if end == "before the identity":
            await asyncio.Event().wait()
        return Identity("ann")

    hub = Hub(HubConfig(close_timeout=0.1), authenticate=authenticate)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        raw = await RawClient.open(hub)
        await eventually(lambda: hub.get_stats().connections == 1)
        if end != "before the identity":
            await eventually(lambda: hub.get_connected_clients() == 1)
        if end == "peer":
            await raw.send(CLOSE, b"\x03\xe8")
            await raw.recv_rest()
        elif end == "hub":
            only_client(hub).disconnect()
        elif end == "stop":
            await hub.stop(timeout=0.1)
        elif end == "fault":
            await raw.send(TEXT, b"\xff")
            await raw.recv()
        raw.close()
        await eventually(lambda: hub.connections == 0)
    assert [type(error) for error in errors] == ([ProtocolError] if end == "fault" else [])
