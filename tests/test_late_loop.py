"""A loop that stood still: what waited in its sockets is heard before any time is over.

A callback that blocks, SIGSTOP or a machine that is moved holds up reading, while the clock goes
on. uvloop runs timers before it looks at its sockets.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest

from tests.support import busy, join, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    Request,
    RetryConfig,
)
from wsc_fast.testing import (
    CLOSE,
    CONTINUATION,
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

SHORT = 0.3  # the setting whose time is over when the loop is back
TOO_LONG = 0.6  # the loop stands still


async def stand_still(meanwhile: Callable[[], object], seconds: float = TOO_LONG) -> None:
    """Blocks the loop while it reads, as a handler of messages does; peers go on meanwhile."""
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    over = loop.create_future()

    def block() -> None:
        here.recv(1)
        busy(seconds)
        meanwhile()
        over.set_result(None)

    with here, there:
        here.setblocking(False)
        loop.add_reader(here, block)
        there.send(b"x")
        await over
        loop.remove_reader(here)


async def test_an_acknowledgement_that_waits_in_the_socket_is_in_time(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(timeout=SHORT, max_retries=0))
    async with running(hub):
        raw, _ = await join(hub, "ann")
        with raw:
            pending = hub.send_ack_message("ann", ACKMessage(id="m", content="x"))
            await raw.recv()
            answer = b'{"type":"ack","message_id":"m","status":"confirmed"}'
            await stand_still(lambda: raw.sock.send(encode(TEXT, answer)))
            assert str(await pending) == "confirmed"
            assert hub.get_stats().acks_timed_out == 0


@pytest.mark.parametrize("part", [0, 20], ids=["nothing", "a part"])
async def test_a_request_that_waits_in_the_socket_is_answered(any_loop: str, part: int) -> None:
    hub = Hub(HubConfig(handshake_timeout=SHORT))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            request = raw.request(hub)
            await raw.send_raw(request[:part])
            await eventually(lambda: hub._parts.requests._waiting)
            await stand_still(lambda: raw.sock.send(request[part:]))
            assert (await raw.read_response()).startswith(b"HTTP/1.1 101 ")
            assert hub.get_stats().limited["handshake_timeout"] == 0


async def test_a_request_that_does_not_come_is_ended_all_the_same(any_loop: str) -> None:
    hub = Hub(HubConfig(handshake_timeout=SHORT))
    async with running(hub):
        with await RawClient.open(hub, upgrade=False) as raw:
            await eventually(lambda: hub._parts.requests._waiting)
            await stand_still(lambda: None)
            assert await raw.read_all() == b""
            assert hub.get_stats().limited["handshake_timeout"] == 1


@pytest.fixture(params=["aiofastnet", "the loop's"])
def any_tls(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of server and client, for the TLS of aiofastnet and for the loop's own."""
    if request.param != "aiofastnet":
        monkeypatch.setattr(server_tls, "sni_callback", lambda *_: None)
    return server_tls, client_tls


class Shaking(TLSClient):
    """A TLS client whose handshake goes step by step."""

    def begin(self, context: ssl.SSLContext) -> bytes:
        """Its ClientHello."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    async def finish(self) -> bytes:
        """Reads what the server says; returns the end of the handshake with a request."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                assert await self._read_in(5.0), "the server has ended it"
            else:
                self._tls.write(b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n")
                return self._outgoing.read()


@pytest.mark.parametrize("when", ["before its hello", "in its hello", "after its hello"])
async def test_a_tls_handshake_whose_rest_waits_in_the_socket_goes_on(
    any_loop: str, any_tls: tuple[ssl.SSLContext, ssl.SSLContext], when: str
) -> None:
    server_tls, client_tls = any_tls
    hub = Hub(HubConfig(handshake_timeout=SHORT))
    async with running(hub, ssl=server_tls):
        (acceptor,) = hub._parts.listener.acceptors
        with await Shaking.open(hub, upgrade=False) as raw:
            data = raw.begin(client_tls)
            await eventually(lambda: len(acceptor._waiting_room) == 1)
            if when == "in its hello":
                raw.sock.send(data[:50])
                data = data[50:]
            elif when == "after its hello":
                raw.sock.send(data)
                data = await raw.finish()
            await stand_still(lambda: raw.sock.send(data))
            if when != "after its hello":
                raw.sock.send(await raw.finish())
            assert b" 404 " in await raw.read_response()
        assert hub.get_stats().limited["handshake_timeout"] == 0


async def test_a_tls_handshake_that_stays_half_done_is_ended_and_counted(
    any_loop: str, any_tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server_tls, client_tls = any_tls
    hub = Hub(HubConfig(handshake_timeout=SHORT))
    async with running(hub, ssl=server_tls):
        (acceptor,) = hub._parts.listener.acceptors
        with await Shaking.open(hub, upgrade=False) as raw:
            raw.sock.send(raw.begin(client_tls))
            await eventually(lambda: acceptor._shaking)
            while await raw._read_in(5.0):
                pass
            await eventually(lambda: not acceptor._shaking and not acceptor._given_up)
        assert hub.get_stats().limited["handshake_timeout"] == 1
        assert hub.get_stats().rejected["gone"] == 0


async def test_an_answer_of_the_authentication_service_counts_on_a_late_loop(any_loop: str) -> None:
    here, there = socket.socketpair()
    there.setblocking(False)
    asked = asyncio.Event()

    async def ask(request: Request) -> Identity:
        asked.set()
        reader, writer = await asyncio.open_connection(sock=there)
        name = await reader.readline()
        writer.close()
        return Identity(name.decode().strip())

    hub = Hub(HubConfig(authentication_timeout=SHORT), authenticate=ask)
    async with running(hub):
        with here, await RawClient.open(hub) as raw:
            await asked.wait()
            await stand_still(lambda: here.send(b"ann\n"))
            await eventually(lambda: hub.get_clients_by_user("ann"))
            await raw.send(PING)
            assert (await raw.recv()).opcode == PONG
        assert hub.get_stats().limited["authentication_timeout"] == 0


async def test_an_authentication_that_does_not_end_is_over_all_the_same(any_loop: str) -> None:
    async def ask(request: Request) -> Identity:
        await asyncio.Event().wait()
        raise AssertionError

    hub = Hub(HubConfig(authentication_timeout=SHORT), authenticate=ask)
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await stand_still(lambda: None)
            assert (await raw.recv()).code == 4401
        assert hub.get_stats().limited["authentication_timeout"] == 1


@pytest.mark.parametrize("size", [100, 1 << 20], ids=["small", "more than one read"])
async def test_the_rest_of_a_message_that_waits_in_the_socket_is_heard(
    any_loop: str, size: int
) -> None:
    heard: list[int] = []
    hub = Hub(HubConfig(message_timeout=SHORT, heartbeat_interval=1.0, max_message_size=2 * size))
    hub.on_message_received(lambda client, message: heard.append(len(message)))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            await raw.send(TEXT, b"x", fin=False)
            await raw.send(PING)
            await raw.recv()  # the first part is in
            rest = encode(CONTINUATION, b"x" * size)
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * size)
            sent: list[int] = []
            await stand_still(lambda: sent.append(raw.sock.send(rest)))
            await raw.send_raw(rest[sent[0] :])
            await eventually(lambda: heard)
        assert heard == [size + 1]
        assert hub.get_stats().limited["message_timeout"] == 0


@pytest.mark.parametrize("wait", ["its answer", "its message"])
async def test_a_client_that_was_heard_too_late_is_not_silent(any_loop: str, wait: str) -> None:
    hub = Hub(HubConfig(heartbeat_interval=SHORT / 2, heartbeat_timeout=SHORT))
    async with running(hub):
        with await RawClient.open(hub) as raw:
            assert (await raw.recv()).opcode == PING
            opcode = PONG if wait == "its answer" else TEXT
            await stand_still(lambda: raw.sock.send(encode(opcode, b"")), 2 * TOO_LONG)
            await raw.send(PING, b"alive")
            while await raw.recv() != Frame(PONG, b"alive"):
                pass  # a ping, or none, that it was sent before
            assert hub.get_stats().heartbeat_timeouts == 0


async def test_a_close_frame_that_waits_in_the_socket_ends_the_closing(any_loop: str) -> None:
    gone: list[Client] = []
    hub = Hub(HubConfig(close_timeout=SHORT), authenticate=named)
    hub.on_client_disconnected(gone.append)
    async with running(hub):
        raw, client = await join(hub, "ann")
        with raw:
            client.disconnect(1000)
            assert (await raw.recv()).opcode == CLOSE
            await stand_still(lambda: raw.sock.send(encode(CLOSE, b"\x03\xe8")))
            await eventually(lambda: gone)
        assert hub.get_stats().limited["close_timeout"] == 0


async def test_a_retry_finds_the_user_who_came_while_the_loop_stood_still(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    offline = {"retryable_errors": ("user_offline",), "non_retryable_errors": ()}
    hub.set_retry_config(RetryConfig(max_retries=1, base_delay=SHORT, jitter=False, **offline))
    async with running(hub):
        message = HubMessage(content="x")
        sending = asyncio.create_task(hub.send_to_user_with_retry("ann", message))
        await eventually(lambda: hub._delivery.sleepers._waiting)
        with socket.socket() as sock:

            def come() -> None:
                sock.connect(("127.0.0.1", hub.port))
                sock.send(RawClient.request(hub, "/ws?id=ann"))

            await stand_still(come)
            result = await sending
        assert result.success, result
        assert len(result.attempts) == 2
