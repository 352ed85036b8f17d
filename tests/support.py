"""What tests share: a running hub, a raw client that can misbehave, and waiting for conditions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import os
import socket
import ssl
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import pytest

from wsc_fast import Client, ConnectionLostError, Hub, Identity, Request

# Has a test run once over plain TCP and once over TLS.
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
# Of a test that measures memory or time, of which a sanitizer takes a lot for itself.
MEASURES = pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="measures, under a sanitizer")
# Settings of an outbox that no test fills.
BOUNDLESS: dict[str, Any] = {"outbox_messages": 1 << 20, "outbox_bytes": 1 << 30}
# Lists within each other that no decoder of JSON takes: Python 3.11's take 1,000, 3.13's 10,000.
TOO_DEEP = 100_000
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
# A filter of a socket (BPF) that drops every packet: `return 0`.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_SO_ATTACH_FILTER = 26


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@asynccontextmanager
async def running(hub: Hub, **options: Any) -> AsyncIterator[Hub]:
    """Serves a hub on a free port, and asserts at the end that nothing of it is left."""
    await hub.start(**{"port": 0, **options})
    try:
        yield hub
    finally:
        await hub.stop(timeout=2.0)
    assert hub.connections == 0
    assert hub.get_connected_clients() == 0
    assert hub.loop is None


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Returns once the condition holds; there is no event to wait for, so it is polled."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout} s"
        await asyncio.sleep(0.001)


async def eventually_async(
    condition: Callable[[], Awaitable[object]], timeout: float = 10.0
) -> None:
    """`eventually` for what has to be awaited to know."""
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """`eventually` for tests without a loop."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Frame:
    """One frame as the server sent it."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def code(self) -> int:
        """Close code of a close frame, 1005 where it has none."""
        assert self.opcode == CLOSE
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else 1005


def encode(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
) -> bytes:
    """A client's frame; its mask is zero, so that the payload can be read in the bytes."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, mask_bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    return head + (b"\0\0\0\0" if masked else b"") + payload


class RawClient:
    """A client on a bare socket: reads only when told to, and sends whatever it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self.response = b""

    @classmethod
    async def open(
        cls,
        hub: Hub,
        path: str = "/ws",
        *,
        headers: Sequence[tuple[str, str]] = (),
        rcvbuf: int | None = None,
        tail: bytes = b"",
        upgrade: bool = True,
    ) -> Self:
        """Connects; with `upgrade` also shakes hands, sending `tail` in the same segment."""
        sock = socket.socket()
        if rcvbuf is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, ("127.0.0.1", hub.port))
            client = cls(sock)
            if upgrade:
                await client.send_raw(client.request(hub, path, headers) + tail)
                await client.read_response()
                assert client.response.startswith(b"HTTP/1.1 101 "), client.response
        except BaseException:
            sock.close()
            raise
        return client

    @staticmethod
    def request(
        hub: Hub, path: str = "/ws", headers: Sequence[tuple[str, str]] = (), **replaced: str
    ) -> bytes:
        """The bytes of an upgrade request; `replaced` by header name with _ for -, "" removes."""
        fields = {
            "Host": f"127.0.0.1:{hub.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        for name, value in replaced.items():
            fields[name.replace("_", "-")] = value
        lines = [f"GET {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items() if value]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    async def send_raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        await self.send_raw(encode(opcode, payload, **options))

    async def read_response(self, timeout: float = 10.0) -> bytes:
        """Reads the head of an HTTP response; what follows stays in the buffer."""
        while b"\r\n\r\n" not in self.buffer:
            if not await self._more(timeout):
                break
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.response = head
        self.buffer = bytearray(rest)
        return head

    async def read_all(self, timeout: float = 10.0) -> bytes:
        """Reads to the end of the stream, or a reset."""
        try:
            while await self._more(timeout):
                pass
        except ConnectionError:
            pass
        return bytes(self.buffer)

    async def _more(self, timeout: float) -> bool:
        async with asyncio.timeout(timeout):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        self.buffer += data
        return bool(data)

    def _parse(self) -> Frame | None:
        data = self.buffer
        if len(data) < 2:
            return None
        assert not data[1] & 0x80, "a server frame is masked"
        size, start = data[1] & 0x7F, 2
        if size == 126:
            if len(data) < 4:
                return None
            (size,), start = struct.unpack_from("!H", data, 2), 4
        elif size == 127:
            if len(data) < 10:
                return None
            (size,), start = struct.unpack_from("!Q", data, 2), 10
        if len(data) < start + size:
            return None
        frame = Frame(
            data[0] & 0x0F,
            bytes(data[start : start + size]),
            bool(data[0] & 0x80),
            data[0] >> 4 & 7,
        )
        del data[: start + size]
        return frame

    async def recv(self, timeout: float = 10.0) -> Frame:
        """The next frame; ConnectionError at the end of the stream."""
        while True:
            frame = self._parse()
            if frame is not None:
                return frame
            if not await self._more(timeout):
                raise ConnectionResetError("end of stream")

    async def recv_rest(self, timeout: float = 10.0) -> list[Frame]:
        """All frames to the end of the stream; asserts that they are whole."""
        frames = []
        try:
            while True:
                frames.append(await self.recv(timeout))
        except ConnectionError:
            pass
        assert not self.buffer, f"the stream ends in a torn frame: {bytes(self.buffer[:40])!r}"
        return frames

    def vanish(self) -> None:
        """Its network goes: from here on no packet reaches it, and its kernel answers nothing."""
        drop_all = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, drop_all)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Closes with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


def tls_options(context: ssl.SSLContext | None) -> dict[str, Any]:
    """Keyword arguments of `Hub.start` for a server context or none."""
    return {} if context is None else {"ssl": context}


class TLSClient(RawClient):
    """A RawClient behind TLS: as slow, and as free to misbehave."""

    _tls: ssl.SSLObject
    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    @classmethod
    async def open_tls(
        cls,
        hub: Hub,
        context: ssl.SSLContext,
        path: str = "/ws",
        *,
        rcvbuf: int | None = None,
        upgrade: bool = True,
        flush: bool = True,
    ) -> Self:
        """Connects and shakes hands, TLS first; with `upgrade` also those of WebSocket.

        Without `flush` the end of the TLS handshake waits for what is sent next.
        """
        client = await cls.open(hub, upgrade=False, rcvbuf=rcvbuf)
        client._incoming, client._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client._tls = context.wrap_bio(
            client._incoming, client._outgoing, server_hostname="127.0.0.1"
        )
        while True:
            try:
                client._tls.do_handshake()
            except ssl.SSLWantReadError:
                await client._write_out()
                assert await client._read_in(10.0)
            else:
                break
        if upgrade:
            await client.send_raw(client.request(hub, path))
            await client.read_response()
            assert client.response.startswith(b"HTTP/1.1 101 "), client.response
        elif flush:
            await client._write_out()
        return client

    def say_goodbye(self, last: bytes = b"", *, behind: bytes = b"") -> None:
        """Sends its close_notify, with which its half of TLS ends, in one segment with `last`.

        What is `behind` it is no TLS any more.
        """
        if last:
            self._tls.write(last)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self.sock.sendall(self._outgoing.read() + behind)

    async def _write_out(self) -> None:
        await super().send_raw(self._outgoing.read())

    async def _read_in(self, timeout: float) -> bool:
        async with asyncio.timeout(timeout):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
        if data:
            self._incoming.write(data)
        return bool(data)

    async def send_raw(self, data: bytes) -> None:
        self._tls.write(data)
        await self._write_out()

    async def _more(self, timeout: float) -> bool:
        while True:
            try:
                data = self._tls.read(1 << 18)
            except ssl.SSLWantReadError:
                await self._write_out()
                if not await self._read_in(timeout):
                    return False
            except ssl.SSLZeroReturnError:
                return False
            else:
                self.buffer += data
                return bool(data)


async def open_client(
    hub: Hub, tls: ssl.SSLContext | None, path: str = "/ws", **options: Any
) -> RawClient:
    """A RawClient, over TLS where `tls` is a client's context."""
    if tls is None:
        return await RawClient.open(hub, path, **options)
    return await TLSClient.open_tls(hub, tls, path, **options)


async def silent_sockets(hub: Hub, count: int) -> list[socket.socket]:
    """Sockets that are connected to the hub, and have sent nothing."""
    silent = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", hub.port))
        silent.append(sock)
    return silent


def busy(seconds: float) -> None:
    """What an application does for so long without giving the loop its turn."""
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


def deflated(data: bytes, window: int = 15) -> bytes:
    """A message as a client without context takeover compresses it."""
    deflater = zlib.compressobj(wbits=-window)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


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


def uri(hub: Hub, path: str = "/ws", *, tls: bool = False) -> str:
    """The WebSocket address of a running hub."""
    return f"{'wss' if tls else 'ws'}://127.0.0.1:{hub.port}{path}"


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
