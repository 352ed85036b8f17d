"""Starting and stopping: addresses, signals, both loops, stop from everywhere, interpreter exit."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
import websockets
from websockets.sync.client import connect

from tests.script import ANNOUNCE, Script
from tests.support import IPV6, only_client, tls_options
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    HubStateError,
    Identity,
    ListenError,
    MemoryOfflineStore,
    Request,
    RetryConfig,
    ValidationError,
)
from wsc_fast.config.kinds import kinds_of
from wsc_fast.testing import CLOSE, TEXT, RawClient, eventually, running, uri


async def descriptors_before() -> int:
    """How many there are, once the loop has opened those that it keeps for itself."""
    async with running(Hub()):
        pass
    return descriptors()


def descriptors() -> int:
    return psutil.Process().num_fds()


async def asyncio_can_connect(host: str, port: int) -> bool:
    try:
        async with websockets.connect(f"ws://{host}:{port}/ws"):
            return True
    except OSError:
        return False


RUN = (
    ANNOUNCE
    + """
    import os, signal
    from wsc_fast import Hub, HubConfig

    hub = Hub(HubConfig(outbox_bytes=1 << 26))

    @hub.on_message_received
    def handle(client, message):
        if message == "loop":
            client.send(type(hub.loop).__module__)
        else:
            for number in range(500):
                client.send(f"{number} ".ljust(2000))
            os.kill(os.getpid(), getattr(signal, message))

    announced(hub).run(port=0)
    print("run returned", hub.loop, flush=True)
"""
)


# --- run() ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_gracefully_on_a_signal(number: signal.Signals) -> None:
    with Script(RUN) as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            ws.send("loop")
            assert ws.recv() == "uvloop"
            script.process.send_signal(number)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                ws.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        assert script.finish() == (0, "run returned None\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_run_flushes_what_is_queued_before_it_ends(name: str) -> None:
    with Script(RUN) as script:
        with connect(f"ws://127.0.0.1:{script.port()}/ws") as ws:
            ws.send(name)
            # The iteration ends with 1000 and 1001, and raises on any other close.
            assert [int(message) for message in ws] == list(range(500))
            assert ws.close_code == 1001
        assert script.finish()[0] == 0


def test_run_ends_at_once_on_a_second_signal() -> None:
    with Script(RUN) as script:
        sock = socket.create_connection(("127.0.0.1", script.port()), timeout=10)
        with sock:
            sock.sendall(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(4096)
            script.process.send_signal(signal.SIGTERM)
            data = b""
            while b"\x03\xe9" not in data:
                data += sock.recv(4096)
            # It is not answered, so that the stop would take its five seconds.
            begin = time.monotonic()
            script.process.send_signal(signal.SIGTERM)
            assert script.finish()[0] == 0
            assert time.monotonic() - begin < 3.0


def test_run_on_an_address_in_use_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Script(
            """
            import sys
            from wsc_fast import Hub
            Hub().run(port=int(sys.argv[1]))
            """,
            str(port),
        ) as script:
            code, out, err = script.finish()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"127.0.0.1:{port}" in err
    assert "in use" in err


def test_run_in_a_thread_ends_with_stop_from_another() -> None:
    hub = Hub()
    ended = threading.Event()

    def body() -> None:
        hub.run(port=0)
        ended.set()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    port = None
    while port is None:
        assert time.monotonic() < deadline
        try:
            port = hub.port
        except HubStateError:
            time.sleep(0.001)
    with connect(f"ws://127.0.0.1:{port}/ws") as ws:
        assert hub.broadcast("from the main thread") == 1
        assert ws.recv() == "from the main thread"
        stopping = threading.Thread(target=lambda: asyncio.run(hub.stop()))
        stopping.start()
        with pytest.raises(websockets.ConnectionClosedOK):
            ws.recv(timeout=10)
    assert ended.wait(10)
    assert hub.loop is None
    for each in (stopping, thread):  # until then they hold the hub
        each.join(10)


ECHO = (
    ANNOUNCE
    + """
    from wsc_fast import Hub

    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    announced(hub).run(port=0)
"""
)


@pytest.mark.skipif(
    any(name in os.environ for name in ("LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")),
    reason="malloc is somebody else's here",
)
def test_run_has_the_memory_of_large_messages_used_again() -> None:
    def faults(process: psutil.Process) -> int:
        return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])

    message = "x" * 1_000_000
    with Script(ECHO) as script:
        server = psutil.Process(script.process.pid)
        with connect(f"ws://127.0.0.1:{script.port()}/ws", compression=None) as ws:
            for count in (10, 100):
                before = faults(server)
                for _ in range(count):
                    ws.send(message)
                    assert ws.recv() == message
            # Memory from the kernel each time would be 250 pages for each copy of the message.
            assert (faults(server) - before) / 100 < 50
        script.process.send_signal(signal.SIGTERM)
        assert script.finish()[0] == 0


# --- where it listens ---


async def test_start_serves_on_both_loops(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        assert hub.loop is asyncio.get_running_loop()
        assert isinstance(hub.loop, uvloop.Loop) == (any_loop == "uvloop")
        async with websockets.connect(uri(hub)):
            assert hub.get_connected_clients() == 1


async def test_port_0_chooses_a_free_port_and_tells_it() -> None:
    one, two = Hub(), Hub()
    for hub in (one, two):
        with pytest.raises(HubStateError, match="not listen"):
            _ = hub.port
    async with running(one), running(two):
        assert 0 < one.port != two.port > 0
    with pytest.raises(HubStateError):
        _ = one.port


async def test_a_list_of_hosts(any_loop: str) -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with running(hub, host=["127.0.0.1", "127.0.0.2"], port=port):
        assert hub.port == port
        for host in ("127.0.0.1", "127.0.0.2"):
            assert await asyncio_can_connect(host, port)
        assert not await asyncio_can_connect("127.0.0.3", port)


@IPV6
async def test_ipv6(any_loop: str) -> None:
    hub = Hub()
    async with running(hub, host="::1"):
        async with websockets.connect(
            f"ws://[::1]:{hub.port}/ws", origin=f"http://[::1]:{hub.port}"
        ):
            assert only_client(hub).remote_address == "::1"
        assert not await asyncio_can_connect("127.0.0.1", hub.port)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0"])
async def test_all_interfaces(host: str | None) -> None:
    hub = Hub()
    async with running(hub, host=host):
        assert await asyncio_can_connect("127.0.0.2", hub.port)


async def test_a_bound_socket(any_loop: str) -> None:
    hub = Hub()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with running(hub, sock=sock):
        assert hub.port == port
        assert await asyncio_can_connect("127.0.0.1", port)


@pytest.mark.fault(number="A7")
@pytest.mark.parametrize("host", ["/tmp/hub.sock", "unix:/tmp/hub.sock", "\0hub", ["/tmp/x"]])
async def test_a_unix_socket_path_is_refused(host: Any) -> None:
    hub = Hub()
    with pytest.raises(ValueError, match="Unix"):
        await hub.start(host, 0)
    assert hub.loop is None


@pytest.mark.fault(number="A7")
async def test_a_bound_unix_socket_is_refused(tmp_path: Path) -> None:
    hub = Hub()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "hub.sock"))
        with pytest.raises(ValidationError, match="Unix"):
            await hub.start(sock=sock)
    assert hub.loop is None


@pytest.mark.parametrize(
    "path", ["", "ws", "/größe", "/a b", "/ws\n", "/ws?room=1", "/ws#room", "/\x7f", None, 1]
)
async def test_a_path_that_cannot_be_served_is_refused(path: Any) -> None:
    hub = Hub()
    with pytest.raises(ValidationError, match="path"):
        await hub.start(port=0, path=path)
    assert hub.loop is None


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"host": []}, "host"),
        ({"host": ()}, "host"),
        ({"host": ["127.0.0.1", ""]}, "host"),
        ({"host": {"127.0.0.1"}}, "host"),
        ({"host": b"127.0.0.1"}, "host"),
        ({"host": "127.0.0.1\0.example"}, "host"),
        ({"port": "8080"}, "port"),
        ({"port": True}, "port"),
        ({"port": -1}, "port"),
        ({"port": 65536}, "port"),
        ({"ssl": True}, "ssl"),
        ({"ssl": "certificate.pem"}, "ssl"),
        ({"ssl": ssl.create_default_context()}, "client"),
        ({"sock": 3}, "sock"),
        ({"sock": "127.0.0.1"}, "sock"),
    ],
)
async def test_an_address_that_cannot_be_listened_on_is_refused(
    where: dict[str, Any], named: str
) -> None:
    hub = Hub()
    with pytest.raises(ValidationError, match=named):
        await hub.start(**{"port": 0, **where})
    assert hub.loop is None


@pytest.mark.parametrize("state", ["unbound", "closed", "connected", "udp"])
async def test_a_socket_that_cannot_listen_is_refused(state: str) -> None:
    hub = Hub()
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(
            socket.socket(type=socket.SOCK_DGRAM if state == "udp" else socket.SOCK_STREAM)
        )
        if state == "closed":
            sock.close()
        elif state == "connected":
            other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            sock.connect(other.getsockname())
        elif state == "udp":
            sock.bind(("127.0.0.1", 0))
        with pytest.raises(ValidationError, match=r"^sock is .*\b(bound|closed|connected|TCP)\b"):
            await hub.start(sock=sock)
        assert hub.loop is None
        assert state == "closed" or sock.fileno() >= 0  # still the caller's


async def test_an_address_named_twice_is_listened_on_once(any_loop: str) -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with running(hub, host=["127.0.0.1", "127.0.0.1"], port=port):
        assert await asyncio_can_connect("127.0.0.1", port)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_an_address_that_another_socket_begins_to_listen_on_is_in_use(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext
) -> None:
    # Both can be bound, with SO_REUSEADDR, as long as none of them listens.
    hub = Hub()
    with socket.socket() as bound, socket.socket() as listening:
        for sock in (bound, listening):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        listening.bind(bound.getsockname())
        listening.listen()
        with pytest.raises(ListenError, match="the socket: the address is in use"):
            await hub.start(sock=bound, **tls_options(server_tls if tls else None))
        assert hub.loop is None
    async with running(hub):
        pass


async def test_a_name_that_no_host_can_have(any_loop: str) -> None:
    hub = Hub()
    with pytest.raises(ListenError, match="no host has such a name"):
        await hub.start("a" * 64 + ".example", 0)
    assert hub.loop is None


async def test_a_route_on_the_path_of_a_running_hub_is_refused(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        with pytest.raises(ValidationError, match="endpoint"):
            hub.route("/ws")
        async with websockets.connect(uri(hub)):
            pass


@pytest.mark.parametrize("timeout", ["5", None, -1, float("nan"), float("inf")])
async def test_a_timeout_that_is_none_stops_nothing(timeout: Any) -> None:
    hub = Hub()
    async with running(hub):
        with pytest.raises(ValidationError, match="timeout"):
            await hub.stop(timeout)
        async with websockets.connect(uri(hub)):
            assert hub.get_connected_clients() == 1


async def test_run_within_a_running_loop_tells_of_start() -> None:
    hub = Hub()
    with pytest.raises(HubStateError, match=r"await hub\.start"):
        hub.run(port=0)
    async with running(hub):
        pass


@pytest.mark.parametrize("hook", ["authenticate", "authorize_join", "authorize_publish"])
def test_a_hook_that_cannot_be_called_is_refused(hook: str) -> None:
    with pytest.raises(ValidationError, match="callable"):
        Hub(**{hook: "somebody"})  # type: ignore[arg-type]


@pytest.mark.fault(number="H2")
async def test_after_a_failed_bind_the_hub_can_be_stopped_and_started(any_loop: str) -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for _ in range(2):
            with pytest.raises(ListenError, match=f"127.0.0.1:{port}.* in use") as caught:
                await hub.start(port=port)
            assert caught.value.errno == errno.EADDRINUSE
            assert isinstance(caught.value, OSError)
            assert "\n" not in str(caught.value)
            await hub.stop()
            assert hub.loop is None
    with pytest.raises(ListenError, match="not one of this machine"):
        await hub.start("192.0.2.1", 0)
    async with running(hub):
        assert await asyncio_can_connect("127.0.0.1", hub.port)


async def test_one_taken_address_of_several_leaves_none_listened_on() -> None:
    hub = Hub()
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        before = await descriptors_before()
        with pytest.raises(ListenError):
            await hub.start(["127.0.0.1", "127.0.0.2"], port)
        await eventually(lambda: descriptors() == before)
        assert not await asyncio_can_connect("127.0.0.1", port)


async def test_starting_twice_is_refused_and_changes_nothing() -> None:
    hub = Hub()
    async with running(hub):
        port = hub.port
        with pytest.raises(HubStateError, match="runs already"):
            await hub.start(port=0)
        assert hub.port == port
        assert await asyncio_can_connect("127.0.0.1", port)


async def test_starting_twice_at_once_starts_one() -> None:
    hub = Hub()
    results = await asyncio.gather(hub.start(port=0), hub.start(port=0), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["HubStateError", "NoneType"]
    assert await asyncio_can_connect("127.0.0.1", hub.port)
    await hub.stop()


async def test_async_with_starts_and_stops(monkeypatch: pytest.MonkeyPatch, any_loop: str) -> None:
    # The default port may be taken on this machine.
    monkeypatch.setattr(Hub.start, "__defaults__", ("127.0.0.1", 0))
    hub = Hub()
    async with hub as entered:
        assert entered is hub
        assert await asyncio_can_connect("127.0.0.1", hub.port)
    assert hub.loop is None
    with pytest.raises(RuntimeError, match="mine"):
        async with hub:
            raise RuntimeError("mine")
    assert hub.loop is None
    # One that was started by hand is stopped all the same.
    await hub.start(port=0)
    async with hub:
        assert hub.loop is not None
    assert hub.loop is None


async def test_two_hubs_on_one_loop_are_apart() -> None:
    one, two = Hub(), Hub()
    async with running(one), running(two):
        with await RawClient.open(one), await RawClient.open(two) as client:
            assert one.broadcast("x") == 1
            await one.stop(timeout=0.05)
            assert two.get_connected_clients() == 1
            two.broadcast("still here")
            assert (await client.recv()).payload == b"still here"


# --- stop() ---


async def test_stop_tells_every_client_and_then_listens_no_more(any_loop: str) -> None:
    hub = Hub()
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    await hub.start(port=0)
    port = hub.port
    clients = [await websockets.connect(uri(hub)) for _ in range(10)]
    await hub.stop()
    for ws in clients:
        await ws.wait_closed()
        assert ws.close_code == 1001
    assert len(set(gone)) == len(gone) == 10
    assert hub.get_connected_clients() == hub.connections == 0
    assert not await asyncio_can_connect("127.0.0.1", port)


@pytest.mark.fault(number="H2")
async def test_stop_before_the_start_and_after_the_stop_does_nothing(any_loop: str) -> None:
    hub = Hub()
    await hub.stop()
    await hub.start(port=0)
    await hub.stop()
    await hub.stop()
    await asyncio.gather(hub.stop(), hub.stop())
    assert hub.loop is None


@pytest.mark.fault(number="H2")
async def test_stops_at_once_are_one_stop(any_loop: str) -> None:
    hub = Hub()
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as ws:
        await asyncio.gather(*(hub.stop() for _ in range(5)))
        assert hub.loop is None
        await ws.wait_closed()
        assert ws.close_code == 1001
    assert len(gone) == 1


@pytest.mark.fault(number="H2")
@pytest.mark.parametrize("where", ["message", "connected", "disconnected", "error"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
async def test_stop_from_a_callback_does_not_wait_for_itself(
    any_loop: str, where: str, is_async: bool
) -> None:
    hub = Hub()
    stopped = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    began = 0.0

    async def stop() -> None:
        nonlocal began
        began = time.monotonic()
        await hub.stop(timeout=5.0)
        stopped.set()

    async def later(*args: object) -> None:
        await stop()

    def plain(*args: object) -> None:
        tasks.append(asyncio.get_running_loop().create_task(stop()))

    def fail(*args: object) -> None:
        raise ValueError("mine")

    callback = later if is_async else plain
    if where == "error":
        hub.on_message_received(fail)
        hub.on_error(callback)
    elif where == "message":
        hub.on_message_received(callback)
    else:
        getattr(hub, f"on_client_{where}")(callback)
    await hub.start(port=0)
    ws = await websockets.connect(uri(hub))
    if where == "disconnected":
        await ws.close()
    elif where in ("message", "error"):
        await ws.send("x")
    async with asyncio.timeout(10):
        await stopped.wait()
    # Nothing waits for itself until the timeout.
    assert time.monotonic() - began < 2.0
    assert hub.loop is None
    await ws.wait_closed()
    if where != "disconnected":
        assert ws.close_code == 1001


@pytest.mark.fault(number="H2")
async def test_stop_from_two_callbacks_at_once_does_not_wait_for_itself() -> None:
    hub = Hub()
    stopped = 0

    @hub.on_message_received
    async def handle(client: Client, message: str | bytes) -> None:
        nonlocal stopped
        await hub.stop(timeout=5.0)
        stopped += 1

    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as one, websockets.connect(uri(hub)) as two:
        begin = time.monotonic()
        await one.send("x")
        await two.send("x")
        await one.wait_closed()
        await two.wait_closed()
        await eventually(lambda: hub.loop is None)
        assert time.monotonic() - begin < 2.0
        await eventually(lambda: stopped == 2)


@pytest.mark.fault(number="H2")
async def test_stop_in_the_middle_of_broadcasts_loses_none() -> None:
    hub = Hub(HubConfig(outbox_bytes=1 << 24))
    tasks: list[asyncio.Task[None]] = []

    @hub.on_message_received
    def handle(client: Client, message: str | bytes) -> None:
        hub.broadcast("before")
        tasks.append(asyncio.get_running_loop().create_task(hub.stop()))
        hub.broadcast("after")

    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as one, websockets.connect(uri(hub)) as two:
        await one.send("x")
        for ws in (one, two):
            assert [await ws.recv(), await ws.recv()] == ["before", "after"]
            await ws.wait_closed()
            assert ws.close_code == 1001
    await asyncio.gather(*tasks)
    assert hub.loop is None


async def test_stop_from_another_thread_and_loop(any_loop: str) -> None:
    hub = Hub()
    await hub.start(port=0)
    async with websockets.connect(uri(hub)) as ws:
        await asyncio.to_thread(asyncio.run, hub.stop())
        assert hub.loop is None
        await ws.wait_closed()
        assert ws.close_code == 1001
    await asyncio.to_thread(asyncio.run, hub.stop())


async def test_stop_from_threads_and_the_loop_at_once() -> None:
    for _ in range(10):
        hub = Hub()
        await hub.start(port=0)
        with await RawClient.open(hub) as client:
            stops: list[Awaitable[Any]] = [hub.stop(timeout=5.0)]
            stops += [asyncio.to_thread(asyncio.run, hub.stop(timeout=5.0)) for _ in range(3)]
            stopping = asyncio.gather(*stops)
            frame = await client.recv()
            await client.send(CLOSE, frame.payload)
            await asyncio.wait_for(stopping, 10)
        assert hub.loop is None


async def test_a_cancelled_stop_can_be_finished_by_another(any_loop: str) -> None:
    hub = Hub()
    await hub.start(port=0)
    with await RawClient.open(hub) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await hub.stop(timeout=30)
        assert (await client.recv()).code == 1001
        await hub.stop(timeout=0.05)
        assert hub.loop is None
        assert await client.recv_rest() == []


async def test_stop_while_it_starts() -> None:
    for turns in range(4):
        hub = Hub()
        starting = asyncio.create_task(hub.start("localhost", 0))
        for _ in range(turns):
            await asyncio.sleep(0)
        await hub.stop()
        result = (await asyncio.gather(starting, return_exceptions=True))[0]
        # A listening socket left behind would keep the loop from closing.
        assert hub.loop is not None or hub._parts.listener.descriptors() == []
        # Either it was stopped, or the stop came first; never half of each.
        assert result is None or isinstance(result, HubStateError), repr(result)
        if hub.loop is not None:
            assert await asyncio_can_connect("127.0.0.1", hub.port)
            await hub.stop()
        with pytest.raises(HubStateError):
            _ = hub.port


async def test_it_can_be_started_again_on_the_same_loop(any_loop: str) -> None:
    hub = Hub()
    seen: list[str] = []
    hub.on_message_received(lambda client, message: seen.append(str(message)))
    hub.create_room("kept")
    for number in range(5):
        async with running(hub), websockets.connect(uri(hub)) as ws:
            await ws.send(f"{number}")
            await eventually(lambda number=number: len(seen) == number + 1)
            assert hub.broadcast("x") == 1
            assert await ws.recv() == "x"
    assert seen == list("01234")
    assert hub.get_rooms() == ["kept"]


@pytest.mark.parametrize("seconds", [sys.float_info.max, 1e300, 1e11, 1e10])
async def test_seconds_that_never_pass(
    any_loop: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each setting that is a time, all at once: nothing of them may fail when it is used.
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    times = {name: seconds for name, kind in kinds_of(HubConfig).items() if kind.is_seconds}
    assert len(times) > 8
    times["heartbeat_interval"] = seconds / 2
    errors: list[BaseException] = []

    async def authenticate(request: Request) -> Identity:
        return Identity("ann")

    hub = Hub(HubConfig(**times), authenticate=authenticate)
    hub.on_error(lambda client, error: errors.append(error))
    hub.enable_ack(
        ACKConfig(
            timeout=seconds,
            retry_interval=seconds,
            offline_max_age=seconds,
            enable_offline_messages=True,
        ),
        store=MemoryOfflineStore(),
    )
    hub.set_retry_config(RetryConfig(base_delay=seconds, max_delay=seconds))
    await hub.start(port=0)
    raw = await RawClient.open(hub)
    await eventually(lambda: hub.get_connected_clients() == 1)
    assert await asyncio.to_thread(hub.broadcast, "x") == 1
    assert (await raw.recv()).payload == b"x"
    hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
    sending = asyncio.create_task(hub.send_to_user_with_retry("nobody", HubMessage()))
    draining = asyncio.create_task(hub.drain(seconds))
    while (frame := await raw.recv()).opcode != CLOSE:
        pass
    assert frame.code == 1012
    raw.close()
    await draining
    await sending
    await hub.stop(seconds)
    assert (errors, died, troubles) == ([], [], [])


def test_it_can_be_started_again_on_another_loop() -> None:
    hub = Hub()

    async def once() -> None:
        async with running(hub), websockets.connect(uri(hub)) as ws:
            hub.broadcast("x")
            assert await ws.recv() == "x"

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(once())


def test_a_hub_whose_loop_was_closed_under_it_can_be_stopped_and_started() -> None:
    hub = Hub()

    async def begin() -> None:
        await hub.start(port=0)

    async def again() -> None:
        await hub.stop()
        async with running(hub), websockets.connect(uri(hub)) as ws:
            hub.broadcast("x")
            assert await ws.recv() == "x"

    asyncio.run(begin())
    asyncio.run(again())


# In a process of its own, since a loop that is closed leaves sockets open, and warns of them.
CLOSED_LOOP = """
    import asyncio, sys, threading, uvloop
    from wsc_fast.testing import RawClient
    from wsc_fast import ACKMessage, Hub, HubConfig, HubMessage, HubStoppedError

    kind, count, elsewhere = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop

    # What cannot be done any more; twice where the first call does not end the client.
    SENDS = {
        "broadcast": lambda hub, client: hub.broadcast("x"),
        "broadcast_to_room": lambda hub, client: hub.broadcast_to_room("room", "x"),
        "send_to_client": lambda hub, client: hub.send_to_client(client.id, "x"),
        "send": lambda hub, client: client.send("x"),
        "to_user": lambda hub, client: hub.send_to_user(client.user_id, HubMessage(content="x")),
        "acked": lambda hub, client: hub.send_ack_message(client.id, ACKMessage(content="x")),
    }
    ENDS = {
        "disconnect": lambda hub, client: client.disconnect(),
        "disconnect_user": lambda hub, client: hub.disconnect_user(client.user_id),
    }
    BEGINS = {
        "set_config": lambda hub: hub.set_config(HubConfig(backlog=7)),
        "drain": lambda hub: asyncio.run(hub.drain(5.0)),
        "stop": lambda hub: asyncio.run(hub.stop()),
        "enter": lambda hub: asyncio.run(enter(hub)),
    }

    async def enter(hub):
        async with hub:
            assert repr(hub) == "<Hub running, 0 clients>"

    async def begin(hub, raws):
        await hub.start(port=0)
        raws += [await RawClient.open(hub) for _ in range(count)]
        for client_id in hub.get_connected_client_ids():
            hub.join_room(client_id, "room")

    def closed(hub):
        raws = []
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(begin(hub, raws))
        for raw in raws:
            raw.close()
        assert repr(hub) == f"<Hub stopped, {count} clients>", hub
        return [hub.get_client_by_id(name) for name in hub.get_connected_client_ids()]

    def outcome(call):
        found = []
        def run():
            try:
                found.append(call())
            except HubStoppedError:
                found.append("stopped")
        if elsewhere:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(10)
        else:
            run()
        return found[0]

    hub = Hub()
    hub.enable_ack()
    hub.create_room("room")
    for name, call in {**SENDS, **ENDS}.items():
        clients = closed(hub)
        for _ in range(2 if name in SENDS else 1):
            assert outcome(lambda: call(hub, clients[0])) == "stopped", name
        asyncio.run(hub.stop())
        assert repr(hub) == "<Hub stopped, 0 clients>"
        assert not any(client.is_connected() for client in clients)
    for name, call in BEGINS.items():
        closed(hub)
        call(hub)
        assert hub.loop is None, name
        assert not hub.get_connected_clients(), name
    print("end")
"""


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_calls_of_a_hub_whose_loop_was_closed_say_that_it_has_stopped(
    any_loop: str, count: int, elsewhere: bool
) -> None:
    with Script(CLOSED_LOOP, any_loop, str(count), str(elsewhere)) as script:
        assert script.finish() == (0, "end\n", "")


async def test_stop_under_load_loses_nothing_that_is_queued_to_peers_that_read(
    any_loop: str,
) -> None:
    hub = Hub(HubConfig(outbox_messages=10_000, outbox_bytes=1 << 26))
    await hub.start(port=0)
    readers = [await RawClient.open(hub, rcvbuf=1 << 14) for _ in range(5)]
    sleeper = await RawClient.open(hub, rcvbuf=1 << 14)
    count = 3000
    for number in range(count):
        assert hub.broadcast(f"{number} ".ljust(1000)) == 6
    stopping = asyncio.create_task(hub.stop(timeout=10.0))

    async def read(client: RawClient) -> None:
        for number in range(count):
            assert int((await client.recv()).payload) == number
        frame = await client.recv()
        assert frame.code == 1001
        await client.send(CLOSE, frame.payload)
        assert await client.recv_rest() == []

    await asyncio.gather(*map(read, readers))
    # The one that does not read is what the stop still waits for.
    assert not stopping.done()
    sleeper.reset()
    await asyncio.wait_for(stopping, 5)
    for client in readers:
        client.close()


async def test_stop_under_load_over_tls(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(outbox_messages=10_000, outbox_bytes=1 << 26))
    await hub.start(port=0, ssl=server_tls)
    async with websockets.connect(uri(hub, tls=True), ssl=client_tls) as ws:
        for number in range(3000):
            hub.broadcast(f"{number} ".ljust(1000))
        stopping = asyncio.create_task(hub.stop(timeout=10.0))
        assert [int(await ws.recv()) for _ in range(3000)] == list(range(3000))
        await ws.wait_closed()
        assert ws.close_code == 1001
        await asyncio.wait_for(stopping, 5)


async def test_stop_lets_a_message_on_its_way_in_be_the_last() -> None:
    # A message that comes after the hub began to close is not heard (RFC 6455 section 5.5.1).
    hub = Hub()
    seen: list[str] = []
    hub.on_message_received(lambda client, message: seen.append(str(message)))
    await hub.start(port=0)
    with await RawClient.open(hub) as client:
        stopping = asyncio.create_task(hub.stop(timeout=5.0))
        frame = await client.recv()
        await client.send(TEXT, b"too late")
        await client.send(CLOSE, frame.payload)
        assert await client.recv_rest() == []
        await stopping
    assert seen == []


# --- H1: whatever clients do ---


@pytest.mark.fault(number="H1")
@pytest.mark.parametrize("timeout", [0.0, 0.3])
async def test_stop_ends_by_its_timeout_and_closes_every_descriptor(
    any_loop: str, timeout: float
) -> None:
    cancelled = 0

    async def authenticate(request: Request) -> Identity:
        nonlocal cancelled
        if "wait" in request.query:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled += 1
        return Identity("ann")

    hub = Hub(HubConfig(outbox_bytes=1 << 26), authenticate=authenticate)
    gone: list[Client] = []
    hub.on_client_disconnected(gone.append)
    before = await descriptors_before()
    await hub.start(port=0)
    not_reading = await RawClient.open(hub, rcvbuf=4096)
    not_answering = await RawClient.open(hub)
    await eventually(lambda: hub.get_connected_clients() == 2)
    hub.broadcast(b"x" * (1 << 24))
    uploading = await RawClient.open(hub)
    # A message begun and never ended.
    await uploading.send_raw(b"\x82\xfe\xff\xff\0\0\0\0begun")
    pending = [await RawClient.open(hub, "/ws?wait") for _ in range(3)]
    silent = [await RawClient.open(hub, upgrade=False) for _ in range(3)]
    half = [await RawClient.open(hub, upgrade=False) for _ in range(3)]
    for client in half:
        await client.send_raw(client.request(hub)[:-2])
    await eventually(lambda: hub.connections == 6 and hub.get_connected_clients() == 3)

    begin = time.monotonic()
    await hub.stop(timeout=timeout)
    assert time.monotonic() - begin < timeout + 1.0
    assert hub.connections == 0
    assert len(gone) == 3
    assert cancelled == 3
    everybody = (not_reading, not_answering, uploading, *pending, *silent, *half)
    try:
        for client in everybody:
            await client.read_all(timeout=2)  # it ends
    finally:
        for client in everybody:
            client.close()
    await eventually(lambda: descriptors() == before)


@pytest.mark.fault(number="H1")
async def test_a_silent_client_on_the_tls_port_goes_with_the_handshake_timeout(
    any_loop: str, server_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.5))
    before = await descriptors_before()
    await hub.start(port=0, ssl=server_tls)
    with await RawClient.open(hub, upgrade=False) as client:
        # The kernel's accept queue is emptied once a second connection has been served.
        with await RawClient.open(hub, upgrade=False) as second:
            await second.send_raw(b"GET / HTTP/1.1\r\n\r\n")
            await second.read_all()
        begin = time.monotonic()
        await hub.stop(timeout=0.2)
        assert time.monotonic() - begin < 1.0
        assert await client.read_all(timeout=5) == b""
    await eventually(lambda: descriptors() == before)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a callback"])
async def test_a_disconnect_callback_at_the_end_of_a_stop_has_a_second(
    any_loop: str, busy: bool
) -> None:
    hub = Hub(HubConfig(close_timeout=60.0))
    began: list[Client] = []
    ended: list[Client] = []
    cancelled: list[Client] = []

    @hub.on_message_received
    async def received(client: Client, message: str | bytes) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(client)
            raise

    @hub.on_client_disconnected
    async def disconnected(client: Client) -> None:
        began.append(client)
        await asyncio.sleep(0.05)  # a database
        ended.append(client)

    async with running(hub):
        silent = [await RawClient.open(hub) for _ in range(10)]
        if busy:
            for raw in silent:
                await raw.send(TEXT, b"x")
            await eventually(lambda: hub.get_stats().messages_in == 10)
        await hub.stop(timeout=0.1)
        assert len(began) == len(ended) == 10
        assert len(cancelled) == (10 if busy else 0)
        for raw in silent:
            raw.close()


async def test_a_disconnect_callback_that_never_ends_holds_a_stop_up_for_a_second() -> None:
    hub = Hub()

    @hub.on_client_disconnected
    async def disconnected(client: Client) -> None:
        await asyncio.Event().wait()

    async with running(hub):
        raw = await RawClient.open(hub)
        begin = time.monotonic()
        await hub.stop(timeout=0.1)
        assert 1.0 < time.monotonic() - begin < 4.0
        raw.close()


@pytest.mark.fault(number="H1")
async def test_a_client_that_arrives_while_the_hub_stops_is_not_served() -> None:
    hub = Hub()
    await hub.start(port=0)
    port = hub.port
    with await RawClient.open(hub) as holding, await RawClient.open(hub, upgrade=False) as late:
        request = late.request(hub)
        stopping = asyncio.create_task(hub.stop(timeout=5.0))
        frame = await holding.recv()
        assert not await asyncio_can_connect("127.0.0.1", port)
        with suppress(ConnectionError):
            await late.send_raw(request)
        assert b" 101 " not in await late.read_all()
        await holding.send(CLOSE, frame.payload)
        await stopping
    assert hub.connections == 0


@pytest.mark.fault(number="H1")
async def test_existing_clients_are_not_served_after_stop() -> None:
    hub = Hub(HubConfig(close_timeout=30.0))
    seen: list[str] = []
    hub.on_message_received(lambda client, message: seen.append(str(message)))
    await hub.start(port=0)
    with await RawClient.open(hub) as client:
        await hub.stop(timeout=0.05)
        with suppress(ConnectionError):
            await client.send(TEXT, b"x")
        assert (await client.recv_rest())[0].code == 1001
    assert seen == []


@pytest.mark.fault(number="H3")
@pytest.mark.alone  # it measures the longest turn of the loop
async def test_five_hundred_clients_are_told_to_go_without_a_stall() -> None:
    hub = Hub()
    await hub.start(port=0)
    clients = [await RawClient.open(hub) for _ in range(500)]
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    watching = asyncio.create_task(watch())
    stopping = asyncio.create_task(hub.stop(timeout=10.0))
    for client in clients:
        frame = await client.recv()
        assert frame.code == 1001
        await client.send(CLOSE, frame.payload)
    await stopping
    watching.cancel()
    for client in clients:
        assert await client.recv_rest() == []
        client.close()
    assert hub.connections == 0
    # Generous, since other work shares this machine: one pass over all of them takes 5 ms.
    assert longest < 0.5


# --- the end of the interpreter ---


EXIT = """
    import asyncio, gc, socket, struct, sys
    import uvloop
    from wsc_fast import Hub, HubConfig

    how, kind = sys.argv[1:]
    factory = uvloop.new_event_loop if kind == "uvloop" else asyncio.new_event_loop
    hub = Hub()
    socks = []
    forever = []

    @hub.on_message_received
    async def handle(client, message):
        client.user_data["hub"] = hub
        await asyncio.Event().wait()

    async def main():
        await hub.start(port=0)
        loop = asyncio.get_running_loop()
        hub.create_room("r")
        for number in range(5):
            sock = socket.socket()
            sock.setblocking(False)
            socks.append(sock)
            await loop.sock_connect(sock, ("127.0.0.1", hub.port))
            if number == 4:
                break  # this one only connects
            await loop.sock_sendall(
                sock,
                b"GET /ws HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\n"
                b"Connection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n",
            )
            await loop.sock_recv(sock, 4096)
        for client_id in hub.get_connected_client_ids():
            hub.join_room(client_id, "r")
        assert hub.broadcast(b"x" * 100_000) == 4
        await asyncio.sleep(0)
        hub.broadcast("never flushed")
        if how == "callback":
            await loop.sock_sendall(socks[0], b"\\x81\\x81\\0\\0\\0\\0x")
            while not hub.get_stats().messages_in:
                await asyncio.sleep(0)
        if how == "exit":
            sys.exit(0)

    if how in ("run", "callback", "exit"):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    else:
        # The loop is neither run to its end nor closed.
        loop = factory()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(main())
        if how == "drop":
            del hub, loop, handle
            asyncio.set_event_loop(None)
            gc.collect()
    print("end", flush=True)
"""


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
@pytest.mark.parametrize("how", ["run", "callback", "exit", "leave", "drop"])
def test_an_interpreter_that_ends_with_a_live_hub_says_nothing(how: str, kind: str) -> None:
    with Script(EXIT, how, kind) as script:
        code, out, err = script.finish()
    assert err == ""
    assert code == 0
    assert out == ("" if how == "exit" else "end\n")


def test_an_interpreter_that_ends_with_a_hub_never_started_says_nothing() -> None:
    with Script("from wsc_fast import Hub; hub = Hub(); hub.create_room('r')") as script:
        assert script.finish() == (0, "", "")
