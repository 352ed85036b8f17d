"""Restarts and upkeep of a server: draining, certificates, sockets handed over, watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import trustme

from tests.support import RawClient, eventually, exchange, running
from wsc_fast import ConfigError, Hub, HubConfig, HubStateError, ValidationError, inherited_socket


async def test_a_drain_sends_clients_away_in_slices() -> None:
    hub = Hub()
    hub.route("/health")(lambda request: "draining" if hub._draining else "fine")
    async with running(hub):
        raws = [await RawClient.open(hub) for _ in range(40)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        draining = asyncio.create_task(hub.drain(1.0))
        ends = []
        await eventually(lambda: hub._draining)
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
        context = hub._certificate[0] if hub._certificate else None
        assert context is not None
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


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
from wsc_fast import Hub, inherited_socket
hub = Hub()
hub.route("/pid")(lambda request: str(os.getpid()))
hub.run(sock=inherited_socket(NAME))
"""


@pytest.mark.parametrize("name", [None, "web"])
def test_a_new_process_takes_over_an_inherited_socket(name: str | None) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        address = listening.getsockname()
        seen = set()
        for _ in range(2):
            environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
            number = listening.fileno()
            server = subprocess.Popen(
                [sys.executable, "-c", ACTIVATED.replace("NAME", repr(name))],
                env=environment,
                pass_fds=[3],
                preexec_fn=partial(os.dup2, number, 3, True),
            )
            # It waits in the backlog until the process has come up: no connection is refused.
            with socket.create_connection(address, timeout=20) as client:
                client.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while part := client.recv(4096):
                    answer += part
            assert int(answer.rpartition(b"\r\n")[2]) == server.pid
            seen.add(server.pid)
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) == 0
        assert len(seen) == 2


def test_sockets_that_nobody_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    with pytest.raises(ConfigError, match="LISTEN_PID"):
        inherited_socket()
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "0")
    with pytest.raises(ConfigError, match="none of the 0 sockets"):
        inherited_socket()


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


def block_the_loop(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_callback_that_blocks_the_loop_is_named(
    any_loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(HubConfig(watchdog_timeout=0.1))

    @hub.on_client_connected
    def connected(client: object) -> None:
        block_the_loop(0.5)

    with caplog.at_level(logging.WARNING, "wsc_fast"):
        async with running(hub):
            (await RawClient.open(hub)).close()
            await eventually(lambda: hub.connections == 0)
    (record,) = [record for record in caplog.records if "no turn" in record.message]
    assert "block_the_loop" in record.message
    assert "0.1 s" in record.message


async def test_a_loop_that_turns_is_left_in_peace(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(HubConfig(watchdog_timeout=0.2))
    async with running(hub):
        assert hub._watchdog is not None
        turns = hub._watchdog._turns
        await eventually(lambda: hub._watchdog is not None and hub._watchdog._turns > turns + 8)
    assert hub._watchdog is None
    assert not caplog.records
