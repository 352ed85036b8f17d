"""What a TLS handshake costs before it begins, and when it may: `wsc_fast.acceptor`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
from collections.abc import Callable

import aiofastnet
import pytest

from tests.support import TLSClient, eventually, running, silent_sockets
from wsc_fast import Hub, HubConfig
from wsc_fast.acceptor import Acceptor, hello_size


def hello(context: ssl.SSLContext) -> bytes:
    """What a client of TLS sends first, in one record."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def records(data: bytes, size: int) -> bytes:
    """The same handshake message in records of at most so many bytes."""
    body = data[5:]
    return b"".join(
        data[:3] + struct.pack("!H", len(body[at : at + size])) + body[at : at + size]
        for at in range(0, len(body), size)
    )


def acceptor(hub: Hub) -> Acceptor:
    (found,) = hub._acceptors
    return found


def transports() -> int:
    """How many TLS connections Python's memory has, of aiofastnet's or of a loop's."""
    kinds = ("SSLTransport_Socket", "SSLProtocol")
    return sum(type(found).__name__ in kinds for found in gc.get_objects())


@pytest.mark.parametrize("size", [100_000, 100, 60])
def test_a_hello_is_whole_with_its_last_byte_and_not_before(
    size: int, client_tls: ssl.SSLContext
) -> None:
    data = records(hello(client_tls), size)
    assert hello_size(data) == len(data)
    assert hello_size(data + b"what follows") == len(data)
    asked = 0
    while asked < len(data):
        # What it asks for is never more than there is, and always more than it has.
        more = hello_size(data[:asked])
        assert more is not None
        assert asked < more <= len(data)
        for some in range(asked, more):
            assert hello_size(data[:some]) == more
        asked = more


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x17\x03\x03\x00\x10" + bytes(16),  # another kind of record
        b"\x16\x03\x01\x00\x00",  # an empty one
        b"\x16\x03\x01\xff\xff",  # longer than any hello
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # another message: a ServerHello
        records(b"\x16\x03\x01\x00\x00\x01\x00\x00\x40" + bytes(64), 1),  # in 68 records
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    assert hello_size(data) is None


class Piecemeal(TLSClient):
    """Sends its hello byte by byte, and each only once the one before it was looked at."""

    waiting: Callable[[], bool]
    in_records: bool

    async def _write_out(self) -> None:
        data = self._outgoing.read()
        if data[:1] == b"\x16" and data[5:6] == b"\x01":
            data = records(data, 50) if self.in_records else data
            for at in range(len(data)):
                await asyncio.get_running_loop().sock_sendall(self.sock, data[at : at + 1])
                if at + 1 < len(data):
                    await eventually(self.waiting)
        else:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)


@pytest.mark.parametrize("in_records", [False, True])
async def test_a_hello_may_come_in_pieces(
    any_loop: str, in_records: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    async with running(hub, ssl=server_tls):
        Piecemeal.waiting = staticmethod(
            lambda: len(acceptor(hub)._hellos) == 1 and not acceptor(hub)._shaking
        )
        Piecemeal.in_records = in_records
        with await Piecemeal.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            hub.broadcast("served")
            assert (await raw.recv()).payload == b"served"
        assert not acceptor(hub)._hellos


async def test_B11_half_open_handshakes_of_tls_are_bounded(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(max_handshakes=50))
    async with running(hub, ssl=server_tls):
        silent = await silent_sockets(hub, 200)
        for sock in silent:
            # Some are silent, some stop within their hello, some after it.
            with contextlib.suppress(OSError):
                sock.send(hello(client_tls)[: [0, 100, None][sock.fileno() % 3]])
        await eventually(lambda: hub.get_stats().rejected["handshakes"] >= 150)
        assert hub.get_stats().limited["max_handshakes"] >= 150
        assert len(acceptor(hub)._shaking) + len(acceptor(hub)._hellos) <= 50
        async with asyncio.timeout(2):
            raw = await TLSClient.open_tls(hub, client_tls)
        raw.close()
        for sock in silent:
            sock.close()


@pytest.mark.parametrize("sent", [None, 100])
async def test_B11_without_a_hello_a_handshake_costs_a_socket(
    any_loop: str, sent: int | None, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    gc.collect()
    before = transports()
    async with running(hub, ssl=server_tls):
        silent = await silent_sockets(hub, 300)
        if sent is not None:
            for sock in silent:
                sock.send(hello(client_tls)[:sent])
        await eventually(lambda: len(acceptor(hub)._hellos) == 300)
        with await TLSClient.open_tls(hub, client_tls):  # by now all that was sent has been seen
            assert transports() == before + 1
        for sock in silent:
            sock.close()
        await eventually(lambda: not acceptor(hub)._hellos)
        assert hub.get_stats().rejected["gone"] >= 300


async def test_B11_one_handshake_begins_in_a_turn(
    any_loop: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    turn = 0
    begun: list[int] = []
    begin = Acceptor._begin

    def note(self: Acceptor, connection: socket.socket) -> None:
        begun.append(turn)
        begin(self, connection)

    monkeypatch.setattr(Acceptor, "_begin", note)
    async with running(hub, ssl=server_tls):
        crowd = await silent_sockets(hub, 40)
        await eventually(lambda: len(acceptor(hub)._hellos) == 40)
        for sock in crowd:
            sock.send(hello(client_tls))
        while len(begun) < 40:
            turn += 1
            await asyncio.sleep(0)
        assert len(set(begun)) == 40
        for sock in crowd:
            sock.close()


async def test_B11_handshakes_of_tls_that_fail_are_counted(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.5))
    told: list[object] = []
    hub.on_error(lambda client, error: told.append(error))
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with running(hub, ssl=server_tls):
        leaving, torn, confused, silent, stuck = await silent_sockets(hub, 5)
        torn.send(hello(client_tls)[:100])
        await eventually(lambda: len(acceptor(hub)._hellos) == 5)
        leaving.close()
        torn.close()
        confused.send(b"GET / HTTP/1.1\r\n\r\n")
        stuck.send(hello(client_tls))
        await eventually(lambda: hub.get_stats().rejected["gone"] == 3)
        await eventually(lambda: hub.get_stats().limited["handshake_timeout"] == 2)
        assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
        assert not acceptor(hub)._shaking
        assert not acceptor(hub)._hellos
        for sock in (silent, confused, stuck):
            sock.close()
    assert told == []


@pytest.mark.parametrize("library", ["OpenSSL", "OpenSSL in Python"])
@pytest.mark.parametrize("end", ["leaves", "resets", "sends what is no TLS", "is given up"])
async def test_a_handshake_that_failed_leaves_nothing_to_the_garbage_collector(
    any_loop: str,
    library: str,
    end: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if library == "OpenSSL in Python":
        monkeypatch.setattr(aiofastnet, "OPENSSL_DYN_LIBS", None)
    hub = Hub()
    loop = asyncio.get_running_loop()
    async with running(hub, ssl=server_tls):
        gc.collect()
        gc.disable()
        try:
            before = transports()
            for _ in range(10):
                (sock,) = await silent_sockets(hub, 1)
                await loop.sock_sendall(sock, hello(client_tls))
                assert await loop.sock_recv(sock, 65536)
                if end == "is given up":
                    acceptor(hub)._end_oldest()
                elif end == "sends what is no TLS":
                    await loop.sock_sendall(sock, bytes(100))
                if end not in ("leaves", "resets"):
                    with contextlib.suppress(ConnectionError):
                        while await loop.sock_recv(sock, 65536):
                            pass
                if end == "resets":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                await eventually(lambda: not acceptor(hub)._shaking)
            await eventually(lambda: transports() <= before, timeout=2.0)
        finally:
            gc.enable()


async def test_handshakes_under_way_outlive_the_stop_of_accepting(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # A new process has taken over the port: whoever had connected has nobody else.
    hub = Hub()
    async with running(hub, ssl=server_tls, reuse_port=True):
        (early,) = await silent_sockets(hub, 1)
        await eventually(lambda: len(acceptor(hub)._hellos) == 1)
        request = TLSClient.request(hub)
        middle = await TLSClient.open_tls(hub, client_tls, upgrade=False, flush=False)
        await eventually(lambda: len(acceptor(hub)._shaking) == 1)
        draining = asyncio.create_task(hub.drain(5.0))
        await eventually(lambda: acceptor(hub).port is None)
        await middle.send_raw(request)
        await middle.read_response()
        assert middle.response.startswith(b"HTTP/1.1 101 ")
        early.send(hello(client_tls))
        assert (await asyncio.get_running_loop().sock_recv(early, 1))[0] == 22
        middle.close()
        early.close()
        draining.cancel()
