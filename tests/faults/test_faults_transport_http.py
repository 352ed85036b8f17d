"""Faults around the open connection: upgrade, HTTP, files, signals, TLS (README.md, section A).

test_faults_transport.py has the rest of the section.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.support import exchange, join, named, serves_others
from wsc_fast import ConfigError, Hub, HubConfig, Identity, Request, Response, ValidationError
from wsc_fast._core.connection import Client
from wsc_fast.testing import (
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

SECRET = "password=hunter2"


def head(answer: bytes) -> tuple[int, list[str]]:
    """Status and header lines of an HTTP answer."""
    status, *lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    return int(status.split(" ")[1]), lines


def values(answer: bytes, name: str) -> list[str]:
    """The values of all headers of a name."""
    pairs = (line.partition(":") for line in head(answer)[1])
    return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]


# --- A7: connection_made that raises


@pytest.mark.fault(number="A7")
@pytest.mark.parametrize("host", ["/tmp/hub.sock", "unix:/tmp/hub.sock", "\0hub"])
async def test_a_unix_path_is_refused(host: str) -> None:
    hub = Hub()
    for hosts in (host, ["127.0.0.1", host]):
        with pytest.raises(ValueError, match="Unix socket") as raised:
            await hub.start(hosts, 0)
        assert isinstance(raised.value, ValidationError)
    assert hub.loop is None


@pytest.mark.fault(number="A7")
async def test_a_unix_socket_is_refused(tmp_path: Path) -> None:
    hub = Hub()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "hub.sock"))
        with pytest.raises(ValidationError, match="Unix socket"):
            await hub.start(sock=sock)
    async with running(hub):  # and the hub can still be started
        await serves_others(hub)


@pytest.mark.fault(number="A7")
@pytest.mark.usefixtures("only_hub_transport")
async def test_a_connection_that_is_no_TCP_is_served(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Client(hub._engine), sock=ours)
        with theirs:
            await loop.sock_sendall(theirs, RawClient.request(hub))
            assert (await loop.sock_recv(theirs, 4096)).startswith(b"HTTP/1.1 101 ")
            await eventually(lambda: hub.get_connected_clients() == 1)
            hub.broadcast(b"abc")
            assert await loop.sock_recv(theirs, 4096) == b"\x82\x03abc"
        await eventually(lambda: hub.connections == 0)
        await serves_others(hub)


@pytest.mark.fault(number="A7")
async def test_peers_that_reset_at_once_do_no_harm(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub()
    async with running(hub):
        fds = psutil.Process().num_fds()
        for index in range(200):
            raw = await RawClient.open(hub, upgrade=False)
            if index % 2:
                await raw.send_raw(raw.request(hub))
            raw.reset()
        await serves_others(hub)
        await eventually(lambda: hub.connections == 0)
        await eventually(lambda: psutil.Process().num_fds() <= fds)
    assert caplog.records == []


# --- A9, A28: what authenticate and routes raise


@pytest.mark.fault(number="A9")
@pytest.mark.parametrize("where", ["authenticate", "route"])
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_exception_of_the_factory_goes_to_the_log_alone(
    any_loop: str, where: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(request: Request) -> Any:
        raise error(SECRET)

    hub = Hub(authenticate=fail if where == "authenticate" else named)
    hub.route("/page")(fail)
    reported: list[tuple[object, BaseException]] = []
    hub.on_error(lambda client, error: reported.append((client, error)))
    async with running(hub):
        path = "/page" if where == "route" else "/ws?id=a"
        answer = await exchange(hub, RawClient.request(hub, path))
        assert b"hunter2" not in answer
        assert head(answer)[0] == 500
        assert hub.connections == 0
    assert [(client, type(error)) for client, error in reported] == [(None, error)]
    assert SECRET in caplog.text


@pytest.mark.fault(number="A9")
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_exception_of_an_async_authenticate_goes_to_the_log_alone(
    any_loop: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> Identity:
        await asyncio.sleep(0)
        raise error(SECRET)  # CancelledError: what awaiting a task that was cancelled raises

    hub = Hub(HubConfig(close_timeout=0.3, authentication_timeout=0.5), authenticate=fail)
    reported: list[BaseException] = []
    hub.on_error(lambda client, error: reported.append(error))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            stream = await raw.read_all(timeout=2.0)
        assert stream == b"\x88\x02\x03\xf3"  # 1011
        await eventually(lambda: hub.connections == 0)
    assert [type(one) for one in reported] == [error]
    assert SECRET in caplog.text


# --- A10, A11, A20, A21: the request


@pytest.mark.fault(number="A10")
async def test_a_refused_upgrade_takes_nothing(any_loop: str) -> None:
    asked: list[str] = []

    def authenticate(request: Request) -> Identity:
        asked.append(request.path)
        return Identity("alice", "alice")

    hub = Hub(authenticate=authenticate)
    seen: list[object] = []
    hub.on_client_connected(seen.append)
    hub.on_client_disconnected(seen.append)
    async with running(hub):
        with await RawClient.open(hub) as alice:
            hub.create_room("r")
            hub.join_room("alice", "r")
            older = hub.get_client_by_id("alice")
            request = RawClient.request
            for _ in range(100):
                answer = await exchange(hub, request(hub, Sec_WebSocket_Version="99"))
                assert head(answer)[0] == 426
            no_upgrade = request(hub, Upgrade="", Connection="")
            assert head(await exchange(hub, no_upgrade))[0] == 426
            assert head(await exchange(hub, request(hub, Sec_WebSocket_Key="short")))[0] == 400
            assert head(await exchange(hub, request(hub, Host="")))[0] == 400
            # They were not heard of, nor taken for newer connections of the same client.
            assert asked == ["/ws"]
            assert seen == [older]
            assert hub.get_client_by_id("alice") is older
            assert hub.get_room_clients("r") == ["alice"]
            assert hub.connections == 1
            hub.send_to_client("alice", "hi")
            assert await alice.recv() == Frame(TEXT, b"hi")
    stats = hub.get_stats()
    assert (stats.connections_total, stats.replaced_clients) == (1, 0)
    assert stats.rejected["request"] == 103


UPGRADES: dict[str, tuple[dict[str, str], list[tuple[str, str]]]] = {
    "Firefox": ({"Connection": "keep-alive, Upgrade"}, []),
    "two headers": ({"Connection": "keep-alive"}, [("Connection", "Upgrade")]),
    "two headers, turned": ({}, [("Connection", "keep-alive")]),
    "empty list item": ({"Connection": "Upgrade,"}, []),
    "mixed case": ({"Connection": "uPgRaDe", "Upgrade": "WebSocket"}, []),
    "spaces": ({"Connection": "  keep-alive ,\tUPGRADE  "}, []),
    "Upgrade with more than one protocol": ({"Upgrade": "h2c, websocket"}, []),
    "two Upgrade headers": ({"Upgrade": "h2c"}, [("Upgrade", "websocket")]),
}


@pytest.mark.fault(number="A11")
@pytest.mark.parametrize("kind", list(UPGRADES))
async def test_a_list_of_tokens_is_an_upgrade(kind: str) -> None:
    replaced, more = UPGRADES[kind]

    async def authenticate(request: Request) -> Identity:
        return Identity("alice")  # a coroutine left unawaited would be a warning, and an error

    hub = Hub(authenticate=authenticate)
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(raw.request(hub, headers=more, **replaced) + encode(PING, b"p"))
            assert head(await raw.read_response())[0] == 101
            (connection,) = values(raw.response, "Connection")
            assert connection.lower() == "upgrade"
            assert await raw.recv() == Frame(PONG, b"p")


@pytest.mark.fault(number="A11")
@pytest.mark.parametrize("connection", ["close", "upgraded", "not-upgrade", "up grade"])
async def test_a_connection_header_without_the_token_is_no_upgrade(connection: str) -> None:
    hub = Hub()
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, Connection=connection))
        assert head(answer)[0] == 426


@pytest.mark.fault(number="A20")
@pytest.mark.parametrize(
    "target",
    [
        b"/a\nb\x00\x1b[31m\xff",
        b"/ws\n",
        b"/ws\x00",
        b"/ws\x1b[31m",
        b"/ws\xff",
        b"/ws\x7f",
        b"ws",
        b"foo",
        b"ftp://evil/ws",
        b"http:/ws",
        b"http:///ws",
        b"http://user@evil/ws",
        b"http://a b/ws",
        b"*",
        b"/ws /ws",
        b"",
    ],
)
async def test_a_target_that_is_no_path_is_a_bad_request(target: bytes) -> None:
    hub = Hub()
    async with running(hub):
        request = RawClient.request(hub).replace(b"/ws", target, 1)
        answer = await exchange(hub, request)
        assert head(answer)[0] == 400
        assert not any(byte in answer for byte in b"\x00\x1b\x7f\xff")
        assert hub.connections == 0


@pytest.mark.fault(number="A21")
@pytest.mark.parametrize(
    ("replaced", "more"),
    [
        ({"Host": ""}, []),
        ({}, [("Host", "evil.example")]),
        ({"Host": "a b"}, []),
        ({}, [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]),
        ({"Sec-WebSocket-Key": ""}, []),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, []),
        ({"Sec-WebSocket-Key": "\xe9" * 24}, []),
    ],
    ids=["no host", "two hosts", "bad host", "two keys", "no key", "short key", "odd key"],
)
async def test_headers_that_contradict_each_other_are_a_bad_request(
    replaced: dict[str, str], more: list[tuple[str, str]]
) -> None:
    hub = Hub()
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, headers=more, **replaced))
        assert head(answer)[0] == 400
        assert values(answer, "Connection") == ["close"]


@pytest.mark.fault(number="A21")
@pytest.mark.parametrize("version", ["", "0", "7", "8", "12", "99", "13, 8", "13x"])
async def test_another_version_is_answered_with_ours(version: str) -> None:
    hub = Hub()
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, Sec_WebSocket_Version=version))
        assert head(answer)[0] == 426
        assert values(answer, "Sec-WebSocket-Version") == ["13"]


# --- A22, A23: the answer


@pytest.mark.fault(number="A22")
async def test_every_answer_is_a_new_one(any_loop: str) -> None:
    hub = Hub(HubConfig(max_connections=1), authenticate=named)
    headers = {"X-Kept": "1"}
    kept = Response(body="page", headers=headers)
    hub.route("/kept")(lambda request: kept)
    hub.route("/empty")(lambda request: "")
    async with running(hub):
        requests = {
            "/kept": (200, RawClient.request(hub, "/kept")),
            "/empty": (200, RawClient.request(hub, "/empty")),
            "path": (404, RawClient.request(hub, "/other")),
            "origin": (403, RawClient.request(hub, headers=[("Origin", "http://evil")])),
            "version": (426, RawClient.request(hub, Sec_WebSocket_Version="99")),
        }
        full = RawClient.request(hub, "/ws?id=b")
        for _ in range(3):
            for status, request in requests.values():
                answer = await exchange(hub, request)
                assert head(answer)[0] == status
                body = answer.partition(b"\r\n\r\n")[2]
                assert values(answer, "Content-Length") == [str(len(body))]
                assert values(answer, "Content-Type") == ["text/plain; charset=utf-8"] or (
                    len(values(answer, "Content-Type")) == 1
                )
        raw, _ = await join(hub, "a")
        with raw:
            for _ in range(3):
                answer = await exchange(hub, full)
                assert head(answer)[0] == 503
                assert len(values(answer, "Content-Length")) == 1
                assert len(values(answer, "Retry-After")) == 1
    assert headers == {"X-Kept": "1"}


@pytest.mark.fault(number="A22")
async def test_a_content_length_of_the_routes_own_is_not_sent_twice() -> None:
    hub = Hub()
    hub.route("/page")(lambda request: Response(body="page", headers={"Content-Length": "99"}))
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, "/page"))
        assert head(answer)[0] == 500 or values(answer, "Content-Length") == ["4"]


@pytest.mark.fault(number="A23")
@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-A": "a\r\nSet-Cookie: x=1"}},
        {"headers": {"X-A": "a\nSet-Cookie: x=1"}},
        {"headers": {"X-A": "a\rSet-Cookie: x=1"}},
        {"headers": {"X-A": "a\r\n\r\n<script>"}},
        {"headers": {"X-A\r\nSet-Cookie": "x=1"}},
        {"headers": {"X-A: b": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"X-A": "a\0"}},
        {"content_type": "text/html\r\nSet-Cookie: x=1"},
    ],
)
async def test_a_line_break_in_a_header_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Response(**options)
    hub = Hub()
    hub.route("/page")(lambda request: Response(**options))
    async with running(hub):
        answer = await exchange(hub, RawClient.request(hub, "/page"))
        assert head(answer)[0] == 500
        assert b"Set-Cookie" not in answer
        assert b"<script>" not in answer


@pytest.mark.fault(number="A23")
async def test_a_header_changed_after_the_response_was_made_is_not_sent() -> None:
    hub = Hub()
    headers = {"X-A": "a"}
    kept = Response(headers=headers)
    hub.route("/page")(lambda request: kept)
    async with running(hub):
        headers["X-A"] = "a\r\nSet-Cookie: x=1"
        answer = await exchange(hub, RawClient.request(hub, "/page"))
        assert values(answer, "Set-Cookie") == []


# --- A18, A25: settings and deadlines


@pytest.mark.fault(number="A18")
@pytest.mark.parametrize(
    "settings",
    [
        {"heartbeat_interval": 20.0, "heartbeat_timeout": 5.0},
        {"heartbeat_interval": 5.0, "heartbeat_timeout": 5.0},
        {"heartbeat_interval": 0.0},
        {"heartbeat_interval": -1.0},
        {"heartbeat_timeout": float("nan")},
        {"heartbeat_timeout": float("inf")},
        {"heartbeat_interval": "20"},
    ],
)
def test_a_heartbeat_that_cannot_work_is_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="heartbeat") as raised:
        HubConfig(**settings)
    assert isinstance(raised.value, ConfigError)


@pytest.mark.fault(number="A25")
@pytest.mark.parametrize("stage", ["TCP", "half a TLS hello", "TLS", "plain"])
async def test_a_silent_client_is_gone_after_the_handshake_timeout(
    any_loop: str, stage: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.3))
    async with running(hub, ssl=None if stage == "plain" else server_tls):
        fds = psutil.Process().num_fds()
        started = time.monotonic()
        with await RawClient.open(hub, upgrade=False) as raw:
            if stage == "TLS":
                reader, writer = await asyncio.open_connection(
                    sock=raw.sock, ssl=client_tls, server_hostname="127.0.0.1"
                )
                async with asyncio.timeout(2):
                    assert await reader.read() == b""
                writer.transport.abort()
            else:
                if stage == "half a TLS hello":
                    await raw.send_raw(b"\x16\x03\x01\x02\x00\x01")
                await raw.read_all(timeout=2.0)
            # One is this client's own end.
            await eventually(lambda: psutil.Process().num_fds() <= fds + 1, timeout=2.0)
            assert time.monotonic() - started < 2.0
        async with asyncio.timeout(2):
            if stage == "plain":
                await serves_others(hub)
            else:
                with await TLSClient.open_tls(hub, client_tls) as other:
                    await other.send(PING, b"alive")
                    assert await other.recv() == Frame(PONG, b"alive")


# --- A29, A30: what the operating system does to the process


def start_script(code: str, *arguments: str, stderr: Any = subprocess.PIPE) -> Any:
    """A Python process of its own, with pipes to it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


OUT_OF_FILES = """
import asyncio, logging, resource, sys
from tests.conftest import LOOPS
from wsc_fast import Hub

logging.basicConfig(format="LINE %(message)s", level=logging.INFO)

async def main() -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    await hub.start(port=0)
    print(hub.port, flush=True)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    await over.wait()
    loop.remove_reader(sys.stdin)
    await hub.stop()

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.fault(number="A29")
async def test_running_out_of_files_refuses_that_connection_alone(
    any_loop: str, tmp_path: Path
) -> None:
    async def attempt(hub: Any) -> RawClient | None:
        # None: refused. A TimeoutError: neither accepted nor refused.
        raw = await RawClient.open(hub, upgrade=False)
        try:
            await raw.send_raw(raw.request(hub))
            if (await raw.read_response(timeout=2.0)).startswith(b"HTTP/1.1 101 "):
                return raw
        except ConnectionError:
            pass
        except TimeoutError:
            raw.close()
            raise
        raw.close()
        return None

    with (
        (tmp_path / "log").open("w+") as log,
        start_script(OUT_OF_FILES, any_loop, stderr=log) as process,
    ):
        hub: Any = SimpleNamespace(port=int(process.stdout.readline()))
        started = time.monotonic()
        served: list[RawClient] = []
        try:
            results = await asyncio.gather(
                *(attempt(hub) for _ in range(150)), return_exceptions=True
            )
            served = [result for result in results if isinstance(result, RawClient)]
            # Still short of files: connections keep coming, and the rest is served.
            refused = 0
            while time.monotonic() - started < 1.0:
                again = await asyncio.gather(*(attempt(hub) for _ in range(10)))
                assert again == [None] * 10
                refused += 10
                probe = served[refused % len(served)]
                await probe.send(TEXT, b"echo")
                assert await probe.recv() == Frame(TEXT, b"echo")
            # And with nobody at the door it rests: 300,892 calls in some seconds were seen.
            server = psutil.Process(process.pid)
            before = sum(server.cpu_times()[:2])
            await asyncio.sleep(0.5)
            busy = sum(server.cpu_times()[:2]) - before
            for raw in served:
                raw.close()

            async def recovered() -> None:
                async with asyncio.timeout(3):
                    while (raw := await attempt(hub)) is None:
                        pass
                    with raw:
                        await raw.send(TEXT, b"back")
                        assert await raw.recv() == Frame(TEXT, b"back")

            await recovered()
        finally:
            elapsed = time.monotonic() - started
            for raw in served:
                raw.close()
            process.communicate("\n", timeout=30)
            log.seek(0)
            lines = log.read().count("out of file descriptors")
        # Not in silence, but at most one line a second.
        assert 1 <= lines <= elapsed + 2
        assert 30 <= len(served) <= 64
        assert len([result for result in results if result is None]) == 150 - len(served)
        assert busy < 0.25


# The peer closes one direction and then resets: the server's end is in CLOSE_WAIT when the reset
# comes, and then the very first send gets EPIPE, and with flags of 0 the signal. All of it in one
# turn of the loop, so that the hub cannot have read the end before it sends.
BROKEN_PIPE = """
import asyncio, signal, socket, sys
from tests.conftest import LOOPS
from wsc_fast.testing import RawClient, eventually, running
from wsc_fast import Hub

async def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    hub, gone = Hub(), []
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        raws = [await RawClient.open(hub) for _ in range(10)]
        await eventually(lambda: hub.get_connected_clients() == 10)
        for index, raw in enumerate(raws[:5]):
            raw.sock.shutdown(socket.SHUT_WR)
            raw.reset()
            for _ in range(index + 1):
                assert hub.broadcast(b"x" * 70000) == 10 - index
            await eventually(lambda: len(gone) == index + 1)
        for raw in raws[5:]:
            for _ in range(15):
                assert (await raw.recv()).payload == b"x" * 70000
            raw.close()
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL
    print("survived")

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main())
"""


@pytest.mark.fault(number="A30")
def test_a_broken_pipe_does_not_kill_the_process(any_loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_PIPE, any_loop],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


RUN = """
import logging, signal, socket
from wsc_fast import Hub

logging.basicConfig(level=logging.WARNING)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
hub = Hub()

@hub.on_message_received
def flood(client, message):
    # Partly taken by the kernel, the rest by the transport, which is then to write by itself.
    client.send(bytes(8 << 20))

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen()  # so that nobody comes too early
print(sock.getsockname()[1], flush=True)
hub.run(sock=sock)
print("stopped", signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL, flush=True)
"""


@pytest.mark.fault(number="A30")
async def test_a_broken_pipe_of_the_transport_does_not_kill_the_process_under_run() -> None:
    with start_script(RUN) as process:
        hub: Any = SimpleNamespace(port=int(process.stdout.readline()))

        for _ in range(5):
            raw = await RawClient.open(hub)
            await raw.send(TEXT, b"go")
            await raw._more(5.0)  # the first part is here, so the rest waits in the transport
            raw.sock.shutdown(socket.SHUT_WR)
            raw.reset()
        with await RawClient.open(hub) as raw:
            await raw.send(PING, b"alive")
            assert await raw.recv() == Frame(PONG, b"alive")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
        assert (process.returncode, output, errors) == (0, "stopped True\n", "")


# --- A31: the log of an honest hub


@pytest.mark.fault(number="A31")
async def test_connections_leave_no_lines_in_the_log(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub = Hub()
    async with running(hub):
        for _ in range(20):
            with await RawClient.open(hub):
                pass
            await exchange(hub, RawClient.request(hub, "/other"))
    # Of the connections there is none; of the refused upgrades one, and one that counts the others.
    events = [record.event for record in caplog.records]  # type: ignore[attr-defined]
    assert events == ["listening", "upgrade_refused", "upgrade_refused", "stopped"]


# --- requests that picows judges right by itself


@pytest.mark.parametrize(
    "headers",
    [
        [("Transfer-Encoding", "chunked")],
        [("Transfer-Encoding", "identity")],
        [("transfer-encoding", "gzip, chunked"), ("Content-Length", "0")],
        [("Content-Length", "3")],
        [("Content-Length", "0"), ("Content-Length", "3")],
    ],
)
async def test_picows_refuses_a_request_with_a_body(headers: list[tuple[str, str]]) -> None:
    hub = Hub()
    async with running(hub):
        smuggled = RawClient.request(hub, headers=headers) + b"0\r\n\r\n"
        answer = await exchange(hub, smuggled + RawClient.request(hub))
        assert head(answer)[0] == 400
        assert answer.count(b"HTTP/1.1 ") == 1
        assert hub.connections == 0


@pytest.mark.parametrize(("count", "status"), [(128, 101), (129, 400), (500, 400)])
async def test_picows_refuses_more_than_128_headers(count: int, status: int) -> None:
    hub = Hub()
    async with running(hub):
        request = RawClient.request(hub)
        own = request.count(b"\r\n") - 2
        request = RawClient.request(hub, headers=[(f"X-{i}", "") for i in range(count - own)])
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request)
            assert head(await raw.read_response())[0] == status
