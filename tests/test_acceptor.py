"""The cost of a TLS handshake before it begins, and its turn: `wsc_fast.listen.acceptor`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trustme

import wsc_fast.listen.tls.scheduler as scheduler_module
from tests.support import silent_sockets
from wsc_fast import Hub, HubConfig
from wsc_fast.listen.acceptor import Acceptor
from wsc_fast.listen.tls.hello import hello_size, is_costly
from wsc_fast.listen.tls.scheduler import HandshakeScheduler
from wsc_fast.listen.tls.waiting_room import TLSWaitingRoom
from wsc_fast.testing import TEXT, TLSClient, client_hello, eventually, reset_when_closed, running


def records(data: bytes, size: int) -> bytes:
    """The same handshake message in records of at most so many bytes."""
    body = data[5:]
    return b"".join(
        data[:3] + struct.pack("!H", len(body[at : at + size])) + body[at : at + size]
        for at in range(0, len(body), size)
    )


def acceptor(hub: Hub) -> Acceptor:
    (found,) = hub._parts.listener.acceptors
    return found


def transports() -> int:
    """Counts the TLS connections in Python's memory, of whatever transport."""
    kinds = ("TLSStream", "SSLTransport_Socket", "SSLProtocol")
    return sum(type(found).__name__ in kinds for found in gc.get_objects())


@pytest.mark.parametrize("size", [100_000, 100, 60])
def test_a_hello_is_whole_with_its_last_byte_and_not_before(
    size: int, client_tls: ssl.SSLContext
) -> None:
    data = records(client_hello(client_tls), size)
    assert hello_size(data) == len(data)
    assert hello_size(data + b"what follows") == len(data)
    asked = 0
    while asked < len(data):
        # It never asks for more than there is, and always for more than it has.
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


@pytest.mark.parametrize("in_records", [False, True])
async def test_a_hello_may_come_in_pieces(
    any_loop: str, in_records: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()

    class Piecemeal(TLSClient):
        """Sends its hello byte by byte, and each only while the hub waits for it."""

        async def _write_out(self) -> None:
            data = self._outgoing.read()
            if data[:1] == b"\x16" and data[5:6] == b"\x01":
                data = records(data, 50) if in_records else data
                for byte in data[:-1]:
                    self.sock.send(bytes([byte]))
                    await eventually(lambda: len(acceptor(hub)._waiting_room) == 1)
                    assert not acceptor(hub)._shaking
                data = data[-1:]
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async with running(hub, ssl=server_tls):
        with await Piecemeal.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            hub.broadcast("served")
            assert (await raw.recv()).payload == b"served"
        assert not acceptor(hub)._waiting_room


@pytest.mark.fault(number="B11")
async def test_half_open_handshakes_of_tls_are_bounded(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(max_handshakes=50))
    async with running(hub, ssl=server_tls):
        silent = await silent_sockets(hub, 200)
        for sock in silent:
            # Some are silent, some stop within their hello, some after it.
            with contextlib.suppress(OSError):
                sock.send(client_hello(client_tls)[: [0, 100, None][sock.fileno() % 3]])
        await eventually(lambda: hub.get_stats().rejected["handshakes"] >= 150)
        assert hub.get_stats().limited["max_handshakes"] >= 150
        assert len(acceptor(hub)._shaking) + len(acceptor(hub)._waiting_room) <= 50
        async with asyncio.timeout(2):
            raw = await TLSClient.open_tls(hub, client_tls)
        raw.close()
        for sock in silent:
            sock.close()


@pytest.mark.fault(number="B11")
@pytest.mark.parametrize("sent", [None, 100])
async def test_without_a_hello_a_handshake_costs_a_socket(
    any_loop: str, sent: int | None, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    gc.collect()
    before = transports()
    async with running(hub, ssl=server_tls):
        silent = await silent_sockets(hub, 300)
        if sent is not None:
            for sock in silent:
                sock.send(client_hello(client_tls)[:sent])
        await eventually(lambda: len(acceptor(hub)._waiting_room) == 300)
        with await TLSClient.open_tls(hub, client_tls):  # by now all that was sent has been seen
            assert transports() == before + 1
        for sock in silent:
            sock.close()
        await eventually(lambda: not acceptor(hub)._waiting_room)
        assert hub.get_stats().rejected["gone"] >= 300


@pytest.mark.fault(number="B11")
async def test_a_storm_of_handshakes_is_spread_over_turns(
    any_loop: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    turn = 0
    begun: list[int] = []
    begin = Acceptor._begin

    def note(self: Acceptor, connection: socket.socket, seconds: float) -> None:
        begun.append(turn)
        begin(self, connection, seconds)

    monkeypatch.setattr(Acceptor, "_begin", note)
    async with running(hub, ssl=server_tls):
        crowd = await silent_sockets(hub, 40)
        await eventually(lambda: len(acceptor(hub)._waiting_room) == 40)
        for sock in crowd:
            sock.send(client_hello(client_tls))
        while len(begun) < 40:
            turn += 1
            await asyncio.sleep(0)
        assert len(set(begun)) >= 40 / 4
        for sock in crowd:
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"\x16"
            sock.close()


class Clock:
    """A clock whose time the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Shaking:
    """A handshake under way that never has enough."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step
        self.waits = 0

    def wait(self) -> None:
        self.waits += 1


@pytest.mark.parametrize(
    ("others", "step", "steps"),
    [(0.0, 0.0004, 3), (0.0, 0.005, 1), (0.008, 0.001, 3), (1.0, 0.0009, 5)],
)
async def test_handshakes_have_so_much_of_a_turn(
    any_loop: str, others: float, step: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(scheduler_module, "time", clock)
    scheduler = HandshakeScheduler(asyncio.get_running_loop(), lambda most: False)
    taken: list[int] = [0]

    def take() -> None:
        taken[-1] += 1
        clock.now += step

    crowd: list[Any] = [Shaking(take) for _ in range(40)]
    for one in crowd:
        scheduler.read(one)
    while sum(taken) < 40:
        taken.append(0)
        clock.now += others
        await asyncio.sleep(0)
    # Of the turn in which it began not all was seen; each is told to wait once at most.
    assert set(taken[2:-1]) == {steps}
    assert all(one.waits <= 1 for one in crowd)
    # Once nobody asks any more, it leaves the loop alone.
    await eventually(lambda: not scheduler._called)


async def test_every_step_of_a_handshake_needs_a_turn_and_nothing_after_it(
    any_loop: str,
    authority: trustme.CA,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_ecdh_curve("secp384r1")  # the client is asked for another hello
    steps = 0
    read = HandshakeScheduler.read

    def note(self: HandshakeScheduler, handshake: Any) -> None:
        nonlocal steps
        steps += 1
        read(self, handshake)

    monkeypatch.setattr(HandshakeScheduler, "read", note)
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send(message))
    async with running(hub, ssl=context):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await raw.send(TEXT, b"x")
            assert (await raw.recv()).payload == b"x"
            assert 3 <= steps <= 4
            before = steps
            for _ in range(5):
                await raw.send(TEXT, b"x")
                assert (await raw.recv()).payload == b"x"
            assert steps == before


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HHH", kind, len(body) + 2, len(body)) + body


def asking(supported: list[int], shared: list[int]) -> bytes:
    """A ClientHello for these groups, with key shares for those."""
    groups = b"".join(struct.pack("!H", group) for group in supported)
    shares = b"".join(struct.pack("!HH", group, 32) + bytes(32) for group in shared)
    extensions = extension(10, groups) + extension(51, shares)
    body = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + struct.pack("!I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


X25519, P256, FFDHE2048, FFDHE8192 = 0x1D, 0x17, 0x100, 0x104


@pytest.mark.parametrize(
    ("supported", "shared", "costly"),
    [
        ([X25519, P256, FFDHE2048], [X25519], False),
        ([P256, FFDHE8192], [], False),  # it is asked for a share on P-256
        ([], [], False),
        ([X25519, FFDHE8192], [FFDHE8192], True),
        ([X25519, FFDHE8192], [X25519, FFDHE8192], False),
        ([FFDHE2048], [], True),
        ([0x1A, FFDHE2048], [0x1A], True),  # on a curve that OpenSSL does not offer
        ([P256, FFDHE2048], [P256, FFDHE2048], False),  # as GnuTLS may: the first one is taken
        ([X25519, FFDHE2048], [0x1A, FFDHE2048], True),
        ([0x1A] * 101 + [X25519], [], True),
    ],
)
async def test_a_key_exchange_that_takes_long_is_refused(
    any_loop: str,
    supported: list[int],
    shared: list[int],
    costly: bool,
    server_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = False

    async def note(self: Acceptor, *args: Any) -> None:
        nonlocal begun
        begun = True
        await connect(self, *args)

    connect = Acceptor._connect
    monkeypatch.setattr(Acceptor, "_connect", note)
    data = asking(supported, shared)
    assert hello_size(data) == len(data)
    assert is_costly(data) is costly
    assert is_costly(records(data, (len(data) - 5) // 15)) is costly
    # Nothing behind it changes that.
    assert is_costly(data + b"\x16\x03\x03\x00\x08\x00\x0a\x00\x04\x00\x02\x00\x1d") is costly
    hub = Hub()
    async with running(hub, ssl=server_tls):
        (sock,) = await silent_sockets(hub, 1)
        sock.send(data)
        # OpenSSL refuses the others too, for what they lack besides.
        await eventually(lambda: hub.get_stats().rejected["gone"] == 1)
        assert begun is not costly
        sock.close()


async def test_hellos_that_are_refused_take_turns_too(
    any_loop: str, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    turn = 0
    seen: list[int] = []
    look = TLSWaitingRoom._asks_for_much

    def note(self: TLSWaitingRoom, connection: socket.socket) -> bool:
        seen.append(turn)
        return look(self, connection)

    monkeypatch.setattr(TLSWaitingRoom, "_asks_for_much", note)
    async with running(hub, ssl=server_tls):
        crowd = await silent_sockets(hub, 40)
        for sock in crowd:
            sock.send(asking([FFDHE8192], []))
        while len(seen) < 40:
            turn += 1
            await asyncio.sleep(0)
        assert len(set(seen)) >= 40 / 4
        for sock in crowd:
            sock.close()


def test_hellos_of_python_are_not_costly(client_tls: ssl.SSLContext) -> None:
    assert not is_costly(client_hello(client_tls))


@pytest.mark.parametrize("way", ["plain", "TLS"])
async def test_a_handshake_that_gives_way_is_counted_once(
    any_loop: str, way: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(max_handshakes=5))
    async with running(hub, ssl=server_tls if way == "TLS" else None):
        crowd: list[socket.socket] = []
        clients: list[TLSClient] = []
        for _ in range(20):
            if way == "plain":
                crowd += await silent_sockets(hub, 1)
            else:
                # Its last flight is with the kernel when it has to give way.
                clients.append(
                    await TLSClient.open_tls(hub, client_tls, upgrade=False, flush=False)
                )
        if way == "TLS":
            for client in clients:
                with contextlib.suppress(OSError):
                    await client._write_out()
        await eventually(lambda: hub.get_stats().rejected["handshakes"] >= 15)
        for one in (*crowd, *clients):
            one.close()
        await eventually(lambda: sum(hub.get_stats().rejected.values()) == 20)
        await eventually(lambda: not hub._parts.requests._waiting and not hub.connections)
        rejected = hub.get_stats().rejected
        assert (rejected["handshakes"], rejected["gone"]) == (15, 5)


@pytest.mark.alone  # it measures a timeout closely
async def test_the_time_for_a_handshake_of_tls_is_one(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=1.0))
    loop = asyncio.get_running_loop()
    async with running(hub, ssl=server_tls):
        (sock,) = await silent_sockets(hub, 1)
        began = loop.time()
        data = client_hello(client_tls)
        sock.send(data[:-1])
        await asyncio.sleep(0.7)  # it is slow
        sock.send(data[-1:])
        with contextlib.suppress(ConnectionResetError):
            while await loop.sock_recv(sock, 65536):
                pass
        assert 0.9 < loop.time() - began < 1.5
        assert hub.get_stats().limited["handshake_timeout"] == 1
        sock.close()


@pytest.mark.fault(number="B11")
async def test_handshakes_of_tls_that_fail_are_counted(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(handshake_timeout=0.5))
    told: list[object] = []
    hub.on_error(lambda client, error: told.append(error))
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with running(hub, ssl=server_tls):
        leaving, torn, confused, silent, stuck = await silent_sockets(hub, 5)
        torn.send(client_hello(client_tls)[:100])
        await eventually(lambda: len(acceptor(hub)._waiting_room) == 5)
        leaving.close()
        torn.close()
        confused.send(b"GET / HTTP/1.1\r\n\r\n")
        stuck.send(client_hello(client_tls))
        await eventually(lambda: hub.get_stats().rejected["gone"] == 3)
        await eventually(lambda: hub.get_stats().limited["handshake_timeout"] == 2)
        assert await asyncio.get_running_loop().sock_recv(silent, 1) == b""
        assert not acceptor(hub)._shaking
        assert not acceptor(hub)._waiting_room
        for sock in (silent, confused, stuck):
            sock.close()
    assert told == []


@pytest.mark.parametrize("end", ["leaves", "resets", "sends what is no TLS", "is given up"])
async def test_a_handshake_that_failed_leaves_nothing_to_the_garbage_collector(
    any_loop: str,
    openssl: str,
    end: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub = Hub()
    loop = asyncio.get_running_loop()
    async with running(hub, ssl=server_tls):
        gc.collect()
        gc.disable()
        try:
            before = transports()
            for _ in range(10):
                (sock,) = await silent_sockets(hub, 1)
                await loop.sock_sendall(sock, client_hello(client_tls))
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
                    reset_when_closed(sock)
                sock.close()
                await eventually(lambda: not acceptor(hub)._shaking)
            await eventually(lambda: transports() <= before, timeout=8.0)
        finally:
            gc.enable()


async def test_handshakes_under_way_outlive_the_stop_of_accepting(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # A new process has taken over the port: the clients that had connected have nobody else.
    hub = Hub()
    async with running(hub, ssl=server_tls, reuse_port=True):
        (early,) = await silent_sockets(hub, 1)
        await eventually(lambda: len(acceptor(hub)._waiting_room) == 1)
        request = TLSClient.request(hub)
        middle = await TLSClient.open_tls(hub, client_tls, upgrade=False, flush=False)
        await eventually(lambda: len(acceptor(hub)._shaking) == 1)
        draining = asyncio.create_task(hub.drain(5.0))
        await eventually(lambda: acceptor(hub).port is None)
        await middle.send_raw(request)
        await middle.read_response()
        assert middle.response.startswith(b"HTTP/1.1 101 ")
        early.send(client_hello(client_tls))
        assert (await asyncio.get_running_loop().sock_recv(early, 1))[0] == 22
        middle.close()
        early.close()
        draining.cancel()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_the_loop_is_given_descriptors_by_their_numbers(
    secure: bool,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    # Some loops take no sockets there; asyncio's own and uvloop take both.
    loop = asyncio.SelectorEventLoop()
    given: list[object] = []
    for name in ("add_reader", "remove_reader"):
        real = getattr(loop, name)

        def record(descriptor: object, *args: Any, real: Callable[..., Any] = real) -> Any:
            given.append(descriptor)
            return real(descriptor, *args)

        monkeypatch.setattr(loop, name, record)

    async def serve() -> None:
        hub = Hub()
        async with running(hub, transport="loop", ssl=server_tls if secure else None):
            acceptor(hub)._pause()
            acceptor(hub)._loop.add_reader(acceptor(hub)._socket.fileno(), acceptor(hub)._accept)
            silent = await silent_sockets(hub, 2)
            await loop.run_in_executor(None, talk, hub.port)
            for sock in silent:
                sock.close()

    def talk(port: int) -> None:
        sock: socket.socket = socket.create_connection(("127.0.0.1", port))
        if secure:
            sock = client_tls.wrap_socket(sock, server_hostname="127.0.0.1")
        with sock:
            sock.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 404")

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    await asyncio.get_running_loop().run_in_executor(None, run)
    assert given
    assert {type(descriptor) for descriptor in given} == {int}
