"""Restarts and upkeep of a server: draining, certificates, sockets handed over, watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trustme

import wsc_fast.listen.sockets as sockets_module
from tests.support import TLS, exchange
from wsc_fast import ConfigError, Hub, HubConfig, HubStateError, ValidationError, inherited_socket
from wsc_fast.listen.acceptor import Acceptor
from wsc_fast.testing import RawClient, eventually, running, wait_until


async def test_a_drain_sends_clients_away_in_slices() -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "draining" if hub._parts.state.draining else "fine")
    async with running(hub):
        raws = [await RawClient.open(hub) for _ in range(40)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        draining = asyncio.create_task(hub.drain(1.0))
        ends = []
        await eventually(lambda: hub._parts.state.draining)
        assert (await exchange(hub, RawClient.request(hub))).startswith(b"HTTP/1.1 503 ")
        health = await exchange(hub, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert health.endswith(b"draining")

        async def end(raw: RawClient) -> None:
            frame = await raw.recv()
            assert (frame.code, frame.payload[2:]) == (1012, b"service restart")
            ends.append(loop.time() - began)
            raw.close()

        await asyncio.gather(*(end(raw) for raw in raws))
        await draining
        ends.sort()
        assert ends[0] < 0.5
        assert ends[-1] > 0.7
        assert ends[len(ends) // 2] > 0.2
        for bad in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValidationError, match="period"):
                await hub.drain(bad)


def accepts(hub: Hub) -> bool:
    """Whether connections to its port are still the hub's."""
    listener = hub._parts.listener
    return bool(listener.servers) or any(each.port is not None for each in listener.acceptors)


@pytest.mark.parametrize("reuse_port", [False, True])
async def test_a_drain_ends_once_nobody_is_connected(any_loop: str, reuse_port: bool) -> None:
    hub = Hub()
    async with asyncio.timeout(30):
        async with running(hub, reuse_port=reuse_port):
            await hub.drain(300.0)
        async with running(hub, reuse_port=reuse_port):
            raws = [await RawClient.open(hub) for _ in range(10)]
            draining = asyncio.create_task(hub.drain(300.0))
            await eventually(lambda: hub._parts.state.draining)
            for raw in raws:
                assert not draining.done()
                raw.close()
            await draining
            assert hub.connections == 0


@TLS
async def test_a_drain_waits_for_peers_that_have_not_asked_yet(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    async with running(hub, reuse_port=True, ssl=server_tls if tls else None):
        with socket.create_connection(("127.0.0.1", hub.port)) as sock:
            draining = asyncio.create_task(hub.drain(30.0))
            await eventually(lambda: not accepts(hub))
            reader, writer = await asyncio.open_connection(
                sock=sock, **({"ssl": client_tls, "server_hostname": "127.0.0.1"} if tls else {})
            )
            assert not draining.done()
            writer.write(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert not draining.done()
            writer.transport.abort()
            async with asyncio.timeout(10):
                await draining


async def test_a_stop_ends_a_drain() -> None:
    hub = Hub()
    async with running(hub):
        raw = await RawClient.open(hub)
        other = await RawClient.open(hub)
        draining = asyncio.create_task(hub.drain(60.0))
        assert (await raw.recv()).code in (1012, 1001)
        raw.close()
        stopping = asyncio.create_task(hub.stop())
        assert (await other.recv()).code in (1012, 1001)
        other.close()
        await stopping
        draining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await draining
    async with running(hub):  # and the next run takes clients again
        (await RawClient.open(hub)).close()
        await eventually(lambda: hub.connections == 0)


# --- TLS ---


def write(authority: trustme.CA, directory: Path) -> tuple[str, str]:
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    return str(directory / "cert.pem"), str(directory / "key.pem")


def spoil(path: str) -> None:
    Path(path).write_text("nonsense")


async def serial(hub: Hub, authority: trustme.CA, **options: ssl.TLSVersion) -> int:
    """The serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    _, writer = await asyncio.open_connection(
        "127.0.0.1", hub.port, ssl=context, server_hostname="localhost"
    )
    shown = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return int(shown, 16)


async def test_a_certificate_is_loaded_again_without_dropping_anybody(
    any_loop: str, authority: trustme.CA, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    certfile, keyfile = write(authority, tmp_path)
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub, certfile=certfile, keyfile=keyfile):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", hub.port, ssl=client_tls, server_hostname="localhost"
        )
        writer.write(RawClient.request(hub))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        first = await serial(hub, authority)
        write(authority, tmp_path)
        hub.reload_certificate()
        second = await serial(hub, authority)
        assert first != second
        spoil(keyfile)
        with pytest.raises(ConfigError, match=r"cert\.pem"):
            hub.reload_certificate()
        assert await serial(hub, authority) == second
        writer.write(b"\x81\x82\0\0\0\0hi")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def test_tls_before_1_2_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    certfile, keyfile = write(authority, tmp_path)
    hub = Hub()
    async with running(hub, certfile=certfile, keyfile=keyfile):
        await serial(hub, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        (acceptor,) = hub._parts.listener.acceptors
        assert acceptor._ssl is not None
        assert acceptor._ssl.minimum_version is ssl.TLSVersion.TLSv1_2
    older = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    older.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.raises(ValidationError, match="minimum_version must be TLSv1_2"):
        await hub.start(port=0, ssl=older)


async def test_certificates_that_cannot_be(tmp_path: Path) -> None:
    hub = Hub()
    with pytest.raises(ConfigError, match=r"none\.pem"):
        await hub.start(port=0, certfile=str(tmp_path / "none.pem"))
    with pytest.raises(ValidationError, match="not both"):
        await hub.start(port=0, certfile="x", ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    async with running(hub):
        with pytest.raises(HubStateError, match="certfile"):
            hub.reload_certificate()


# --- sockets of other processes ---

ACTIVATED = """
import os
os.environ["LISTEN_PID"] = str(os.getpid())
from wsc_fast import Hub, HubConfig, inherited_socket
hub = Hub(HubConfig(drain_period=PERIOD))
hub.route("/pid")(lambda request: str(os.getpid()))
hub.on_message_received(lambda client, message: client.send(message))
hub.run(sock=inherited_socket(NAME), **FILES)
"""


@contextmanager
def inherited() -> Iterator[socket.socket]:
    """A socket that listens; a client waits in its backlog until a process serves it."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield listening


@contextmanager
def serving(
    listening: socket.socket,
    name: str | None = None,
    drain_period: float = 0.0,
    files: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is given the socket as systemd does it; killed if it lives in the end."""
    script = ACTIVATED.replace("NAME", repr(name)).replace("PERIOD", str(drain_period))
    server = subprocess.Popen(
        [sys.executable, "-c", script.replace("FILES", repr(files or {}))],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
        pass_fds=[3],
        preexec_fn=partial(os.dup2, listening.fileno(), 3, True),
    )
    try:
        yield server
    finally:
        server.kill()
        server.wait()


def answer(address: tuple[str, int], target: str = "/pid") -> bytes:
    """The answer to a request for a target, upgrade or not; the connection is closed."""
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(UPGRADE % target.encode())
        got = b""
        while part := client.recv(4096):
            got += part
            if got.startswith(b"HTTP/1.1 101 ") and got.endswith(b"\r\n\r\n"):
                break
        return got


UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def upgraded(address: tuple[str, int]) -> socket.socket:
    client = socket.create_connection(address, timeout=20)
    client.sendall(UPGRADE % b"/ws")
    assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
    return client


@pytest.mark.parametrize("name", [None, "web"])
def test_a_new_process_takes_over_an_inherited_socket(name: str | None) -> None:
    with inherited() as listening:
        for _ in range(2):
            with serving(listening, name) as server:
                # It waits in the backlog until the process has come up: no connection is refused.
                got = answer(listening.getsockname())
                assert int(got.rpartition(b"\r\n")[2]) == server.pid
                server.send_signal(signal.SIGTERM)
                assert server.wait(timeout=20) == 0


def test_a_process_that_drains_leaves_the_socket_to_the_next() -> None:
    with inherited() as listening:
        address = listening.getsockname()
        with serving(listening, drain_period=0.5) as old:
            staying = upgraded(address)
            with serving(listening) as new:
                while int(answer(address).rpartition(b"\r\n")[2]) != new.pid:
                    pass  # both accept
                old.send_signal(signal.SIGTERM)
                # From before the drain to after the old one's end nobody is refused.
                served = 0
                while old.poll() is None or served < 50:
                    assert answer(address, "/ws").startswith(b"HTTP/1.1 101 ")
                    served += 1
                assert old.returncode == 0
                assert staying.recv(100)[:4] == b"\x88\x11" + (1012).to_bytes(2, "big")
                staying.close()


def test_the_first_signal_drains_and_the_second_ends_at_once() -> None:
    with inherited() as listening, serving(listening, drain_period=60.0) as server:
        clients = [upgraded(listening.getsockname()) for _ in range(40)]
        server.send_signal(signal.SIGTERM)
        # The first slice is on its way, and its clients do not answer; most are open still.
        clients[0].settimeout(10.0)
        assert clients[0].recv(100)[2:4] == (1012).to_bytes(2, "big")
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0
        assert time.monotonic() - began < 4.0  # a stop that waits for them takes 5 s
        for client in clients:
            client.close()


def test_SIGHUP_loads_the_certificate_again(authority: trustme.CA, tmp_path: Path) -> None:
    certfile, keyfile = write(authority, tmp_path)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def connected() -> ssl.SSLSocket:
        plain = socket.create_connection(listening.getsockname(), timeout=20)
        return context.wrap_socket(plain, server_hostname="localhost")

    def shown() -> str:
        with connected() as client:
            certificate = client.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])

    files = {"certfile": certfile, "keyfile": keyfile}
    with inherited() as listening, serving(listening, files=files) as server:
        with connected() as staying:
            staying.sendall(UPGRADE % b"/ws")
            assert staying.recv(4096).startswith(b"HTTP/1.1 101 ")
            first = shown()
            write(authority, tmp_path)
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: shown() != first)
            staying.sendall(b"\x81\x82\0\0\0\0hi")
            assert staying.recv(100) == b"\x81\x02hi"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0


def test_a_descriptor_that_is_handed_over_must_be_a_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(sockets_module, "_FIRST_INHERITED", file.fileno())
        with pytest.raises(ConfigError, match="is no socket"):
            inherited_socket()


def test_sockets_that_nobody_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    with pytest.raises(ConfigError, match="LISTEN_PID"):
        inherited_socket()
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "0")
    with pytest.raises(ConfigError, match="none of the 0 sockets"):
        inherited_socket()


@TLS
async def test_a_connected_client_is_served_by_the_hub_that_drains(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # The kernel resets connections in the queue of a socket with SO_REUSEPORT that is closed.
    hub = Hub()
    async with running(hub, reuse_port=True, ssl=server_tls if tls else None):
        request, port = RawClient.request(hub), hub.port
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        draining = asyncio.create_task(hub.drain(30.0))
        await asyncio.sleep(0)
        with pytest.raises(HubStateError, match="does not listen"):
            _ = hub.port
        for sock in crowd:
            if tls:
                reader, writer = await asyncio.open_connection(
                    sock=sock, ssl=client_tls, server_hostname="127.0.0.1"
                )
            else:
                reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            writer.transport.abort()
        draining.cancel()


async def test_a_connection_in_the_backlog_of_a_hub_that_drains_evicts_nobody(
    any_loop: str, server_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(max_handshakes=5))
    async with running(hub, reuse_port=True, ssl=server_tls):
        port = hub.port
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        hub._parts.listener.take_queue()
        (acceptor,) = hub._parts.listener.acceptors
        assert isinstance(acceptor, Acceptor)
        assert len(acceptor._shaking) + len(acceptor._waiting_room) == 40
        assert hub.get_stats().rejected["handshakes"] == 0
        for sock in crowd:
            sock.close()


async def test_a_second_drain_finds_the_socket_closed(
    any_loop: str, server_tls: ssl.SSLContext
) -> None:
    for context in (None, server_tls):
        hub = Hub()
        async with running(hub, reuse_port=True, ssl=context):
            await hub.drain(0.01)
            await hub.drain(0.01)


@TLS
async def test_a_drain_without_a_descriptor_left_ends(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    async with running(hub, reuse_port=True, ssl=server_tls if tls else None):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken: list[int] = []
        try:
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            await hub.drain(0.01)
        finally:
            for descriptor in taken:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(HubStateError):
            _ = hub.port


async def test_two_hubs_share_a_port(any_loop: str) -> None:
    one, other = Hub(), Hub()
    async with running(one, reuse_port=True), running(other, port=one.port, reuse_port=True):
        raws = [await RawClient.open(one) for _ in range(40)]
        await eventually(lambda: one.connections + other.connections == 40)
        assert one.connections
        assert other.connections
        for raw in raws:
            raw.close()
        await eventually(lambda: one.connections + other.connections == 0)


# --- the watchdog ---


def block_the_loop(until: Callable[[], object]) -> None:
    wait_until(until)


async def test_a_callback_that_blocks_the_loop_is_named(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(HubConfig(watchdog_timeout=0.2))

    @hub.on_client_connected
    def connected(client: object) -> None:
        block_the_loop(lambda: caplog.records)

    with caplog.at_level(logging.WARNING, "wsc_fast"):
        async with running(hub):
            (await RawClient.open(hub)).close()
            await eventually(lambda: hub.connections == 0)
    (record,) = caplog.records
    assert "no turn" in record.message
    assert "block_the_loop" in record.message
    assert "0.2 s" in record.message


async def test_a_loop_that_turns_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(HubConfig(watchdog_timeout=0.2))
    async with running(hub):
        assert hub._life._watchdog is not None
        turns = hub._life._watchdog._turns
        await eventually(
            lambda: hub._life._watchdog is not None and hub._life._watchdog._turns > turns + 8
        )
    assert hub._life._watchdog is None
    assert not caplog.records
