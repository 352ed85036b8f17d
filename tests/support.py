"""Helpers of our own tests beside wsc_fast.testing: crowds, stalled clients, measures, markers."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from wsc_fast import Client, ConnectionLostError, Hub, Identity, Request
from wsc_fast.testing import PING, PONG, Frame, RawClient, eventually, open_client, running

ROOT = Path(__file__).parent.parent

# Has a test run once over plain TCP and once over TLS.
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
# Of a test that measures memory or time, of which a sanitizer takes a lot for itself.
MEASURES = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="measures, under a sanitizer")
# Settings of an outbox that no test fills.
BOUNDLESS: dict[str, Any] = {"outbox_messages": 1 << 20, "outbox_bytes": 1 << 30}
# Lists within each other that no decoder of JSON takes: Python 3.11's take 1,000, 3.13's 10,000.
TOO_DEEP = 100_000


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def tls_options(context: ssl.SSLContext | None) -> dict[str, Any]:
    """Keyword arguments of `Hub.start` for a server context or none."""
    return {} if context is None else {"ssl": context}


async def silent_sockets(hub: Hub, count: int) -> list[socket.socket]:
    """Sockets that are connected to the hub, and have sent nothing."""
    silent = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", hub.port))
        silent.append(sock)
    return silent


def times_logged(caplog: pytest.LogCaptureFixture, part: str) -> int:
    """Counts the lines with this part of a hub that has stopped, left out ones included."""
    found = [record for record in caplog.records if part in record.getMessage()]
    said = [record for record in found if not record.msg.startswith("%d more in the last")]
    return len(said) + sum(getattr(record, "suppressed", 0) for record in found)


def busy(seconds: float) -> None:
    """Works for so long without giving the loop its turn, as an application may."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def named(request: Request) -> Identity:
    """An `authenticate` for tests: `/ws?id=CLIENT&user=USER`, the user being the id if left out."""
    return Identity(request.query.get("user", request.query["id"]), request.query["id"])


async def join(hub: Hub, name: str, **options: Any) -> tuple[RawClient, Client]:
    """Connects to a hub with `authenticate=named`: the raw end and the hub's.

    The name is the client's id, and may go on as "a&user=ann".
    """
    raw = await RawClient.open(hub, f"/ws?id={name}", **options)
    return raw, known(hub, name.partition("&")[0])


@asynccontextmanager
async def crowd(
    hub: Hub,
    count: int,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    rcvbuf: int | None = None,
) -> AsyncIterator[dict[str, RawClient]]:
    """A running hub with `authenticate=named` and clients c0, c1, ... in that order.

    `tls` are the contexts of server and client.
    """
    async with running(hub, ssl=tls[0] if tls else None):
        raws: dict[str, RawClient] = {}
        try:
            for number in range(count):
                raws[f"c{number}"] = await open_client(
                    hub, tls[1] if tls else None, f"/ws?id=c{number}", rcvbuf=rcvbuf
                )
            yield raws
        finally:
            for raw in raws.values():
                raw.close()


async def serves_others(hub: Hub) -> None:
    """Asserts that a new client is served."""
    with await RawClient.open(hub, "/ws?id=other") as other:
        await other.send(PING, b"alive")
        assert await other.recv() == Frame(PONG, b"alive")


def agreed(raw: RawClient) -> str | None:
    """The extensions in its 101; None where there are none."""
    for line in raw.response.decode().split("\r\n"):
        name, _, value = line.partition(": ")
        if name == "Sec-WebSocket-Extensions":
            return value
    return None


@contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Gives a function that tells how many bytes are held now, and were at most, since it began.

    Allocations as such, so that memory which is taken but never touched counts as well.
    """
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()


def known(hub: Hub, name: str) -> Client:
    """The connected client of this id."""
    client = hub.get_client_by_id(name)
    assert client is not None
    return client


async def stall(client: Client, size: int = 1 << 20) -> int:
    """Sends zeros to a client that does not read until its transport is blocked.

    Returns how many messages of `size` zeros that took: one, but over TLS some more. From here on
    its outbox holds exactly what is sent next.
    """
    assert client.conn is not None
    transport = client.conn.underlying_transport
    for count in range(1, 9):
        client.send(bytes(size))
        await eventually(lambda: client.queued_messages == 0)
        if transport.get_write_buffer_size() > 0:
            return count
    raise AssertionError("the kernel takes it all")


async def exchange(hub: Hub, data: bytes, timeout: float = 10.0) -> bytes:
    """All that a hub answers to these bytes on a new connection, to the end of the stream."""
    with await RawClient.open(hub, upgrade=False) as client:
        await client.send_raw(data)
        return await client.read_all(timeout)


def only_client(hub: Hub) -> Client:
    """The one client that is connected."""
    (client_id,) = hub.get_connected_client_ids()
    return known(hub, client_id)


def run_apart(scenario: Callable[[], Any]) -> None:
    """Runs a scenario in a thread of its own: where it ends the loop, it must not end pytest."""
    outcome: list[BaseException | None] = []

    def body() -> None:
        try:
            asyncio.run(asyncio.wait_for(scenario(), 20))
        except BaseException as error:
            outcome.append(error)
        else:
            outcome.append(None)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert outcome == [None]


def unless_lost(handler: Callable[[Client | None, BaseException], object]) -> Any:
    """An `on_error` callback that hears of all but connections that ended without a close frame.

    For tests whose clients go so.
    """

    def heard(client: Client | None, error: BaseException) -> object:
        return None if isinstance(error, ConnectionLostError) else handler(client, error)

    return heard


@contextmanager
def own_disk(
    tmp_path: Path, size: str
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs scripts on a file system of its own, at `tmp_path`, which outlasts each of them."""
    # A process that keeps the mount: the others enter its namespaces.
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    script = f"mount -t tmpfs -o size={size} none {tmp_path} && echo mounted && exec cat"
    if shutil.which("unshare") is None:
        pytest.skip("no file system can be mounted here: there is no unshare")
    with subprocess.Popen(
        [*apart, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            if keeper.stdout.readline() != "mounted\n":
                pytest.skip("no file system can be mounted here: unshare or mount is refused")
            enter = ["nsenter", "--preserve-credentials", "--user", "--mount"]
            enter += [f"--wd={ROOT}", "--target", str(keeper.pid)]

            def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [*enter, sys.executable, "-c", script, str(tmp_path), *map(str, args)],
                    capture_output=True,
                    text=True,
                    timeout=100,
                    check=False,
                )

            yield run
        finally:
            keeper.stdin.close()
