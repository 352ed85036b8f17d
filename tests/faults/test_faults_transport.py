"""Faults of the open connection: frames, closes and back-pressure (README.md, section A).

test_faults_transport_http.py has the rows about the upgrade, HTTP, files and signals.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Coroutine
from typing import Any

import psutil
import pytest

from tests.conftest import LOOPS
from tests.support import MEASURES, only_client, serves_others, stall, tls_options
from wsc_fast import (
    Client,
    ClientDisconnectedError,
    Hub,
    HubConfig,
    ProtocolError,
    Request,
    ValidationError,
)
from wsc_fast.testing import (
    BINARY,
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

MIB = 1 << 20
RESERVED_OPCODE = b"\x83\x81\0\0\0\0z"


# uvloop tells nobody of a TCP half-close under TLS: there the heartbeat has to find out.
REAPING = HubConfig(
    close_timeout=0.3, outbox_bytes=64 * MIB, heartbeat_interval=0.2, heartbeat_timeout=0.6
)


def recording(config: HubConfig | None = None) -> tuple[Hub, list[str | bytes], list[Client]]:
    """A hub, its messages, and the clients that have gone."""
    hub = Hub(config or HubConfig(close_timeout=0.5))
    messages: list[str | bytes] = []
    gone: list[Client] = []
    hub.on_message_received(lambda client, message: messages.append(message))
    hub.on_client_disconnected(gone.append)
    return hub, messages, gone


async def connect(
    hub: Hub, tls: ssl.SSLContext | None = None, *, rcvbuf: int | None = None
) -> RawClient:
    """Connects over TLS if there is a context; the hub must have no other client."""
    if tls is None:
        client = await RawClient.open(hub, rcvbuf=rcvbuf)
    else:
        client = await TLSClient.open_tls(hub, tls, rcvbuf=rcvbuf)
    await eventually(lambda: hub.get_connected_clients() == 1)
    return client


def only_close(frames: list[Frame]) -> int:
    """The code of the only frame that came, a close frame."""
    assert [frame.opcode for frame in frames] == [CLOSE]
    return frames[0].code


async def half_send(client: Client) -> list[Frame]:
    """Sends a client that is not reading more than the kernel takes; returns those frames."""
    return [Frame(BINARY, bytes(6 * MIB))] * await stall(client, 6 * MIB)


@pytest.mark.fault(number="A1")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("provoked", ["pong", "protocol error"])
async def test_nothing_lands_inside_a_half_sent_frame(
    any_loop: str,
    tls: bool,
    provoked: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub, _, _ = recording(HubConfig(close_timeout=10.0))
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connect(hub, client_tls if tls else None, rcvbuf=1 << 16) as raw:
            client = only_client(hub)
            expected = await half_send(client)
            if provoked == "pong":
                await raw.send(PING, b"now")
                await eventually(lambda: client.queued_messages == 1)
                client.send("after")
                expected += [Frame(PONG, b"now"), Frame(TEXT, b"after")]
                assert [await raw.recv() for _ in expected] == expected
            else:
                await raw.send_raw(RESERVED_OPCODE)
                await eventually(lambda: not client.is_connected())
                frames = await raw.recv_rest()
                assert frames[: len(expected)] == expected
                assert only_close(frames[len(expected) :]) == 1002


@pytest.mark.fault(number="A2")
@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
async def test_nothing_follows_the_close_for_a_fault_that_was_parsed_ahead(
    any_loop: str, ahead: int
) -> None:
    hub = Hub()
    seen: list[str] = []

    @hub.on_message_received
    def reply(client: Client, message: str) -> None:
        seen.append(message)
        if client.is_connected():
            client.send(message)
        else:
            with pytest.raises(ClientDisconnectedError):
                client.send(message)

    async with running(hub):
        with await connect(hub) as raw:
            valid = [f"m{i}" for i in range(ahead)]
            burst = b"".join(encode(TEXT, text.encode()) for text in valid)
            # Valid frames behind the fault too: none of them may be heard.
            await raw.send_raw(burst + b"\x83\x80\0\0\0\0" + encode(TEXT, b"late") * 3)
            *replies, close = await raw.recv_rest()
            assert close.opcode == CLOSE
            assert close.code == 1002
            # A message that the parser had passed may still be heard; its reply is ahead of the
            # close, or was refused.
            assert [frame.payload.decode() for frame in replies] == valid[: len(replies)]
            assert seen == valid


@pytest.mark.fault(number="A3")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_stream_under_back_pressure_is_not_corrupted(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub, _, _ = recording(HubConfig(outbox_bytes=64 * MIB))
    sizes = [9000, 9100, 70000, 12000, 80000, 9001] * 40
    # Each message tells its place in every byte, so that bytes of another one would show.
    sent = [struct.pack("!I", i) * (size // 4) + b"#" * (size % 4) for i, size in enumerate(sizes)]
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connect(hub, client_tls if tls else None, rcvbuf=1 << 14) as raw:
            client = only_client(hub)
            for index, message in enumerate(sent):
                client.send(message)
                if index % 16 == 0:
                    await asyncio.sleep(0)  # a flush between, so that sends of all sizes occur
            for message in sent:
                assert await raw.recv() == Frame(BINARY, message)


@pytest.mark.fault(number="A5")
@pytest.mark.parametrize("code", [1000, 999], ids=["valid", "invalid"])
async def test_frames_after_a_close_are_ignored(any_loop: str, code: int) -> None:
    hub, messages, gone = recording()
    close = struct.pack("!H", code)
    async with running(hub):
        with await connect(hub) as raw:
            await raw.send_raw(encode(CLOSE, close) + encode(TEXT, b"x"))
            answer = await raw.recv()
            assert (answer.opcode, answer.code) == (CLOSE, 1000 if code == 1000 else 1002)
            try:
                await raw.send_raw(encode(PING, b"p") + encode(TEXT, b"x"))
            except ConnectionError:
                assert code == 1000  # the server closes first where the handshake is complete
            assert await raw.recv_rest() == []
        await eventually(lambda: gone)
    assert messages == []
    assert len(gone) == 1


@pytest.mark.fault(number="A6")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("end", ["bad opcode", "half-close", "client close", "server close"])
async def test_a_peer_that_does_not_read_is_reaped(
    any_loop: str,
    tls: bool,
    end: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub, _, gone = recording(REAPING)
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connect(hub, client_tls if tls else None, rcvbuf=1 << 14) as raw:
            client = only_client(hub)
            hub.create_room("r")
            hub.join_room(client.id, "r")
            await half_send(client)
            megabyte = bytes(MIB)
            for _ in range(16):
                client.send(megabyte)
            if end == "bad opcode":
                await raw.send_raw(RESERVED_OPCODE)
            elif end == "half-close":
                raw.sock.shutdown(socket.SHUT_WR)
            elif end == "client close":
                await raw.send(CLOSE, b"\x03\xe8")
            else:
                client.disconnect()
            await eventually(lambda: not client.is_connected(), timeout=2.0)
            assert hub.get_connected_clients() == 0
            assert hub.get_room_clients("r") == []
            with pytest.raises(ClientDisconnectedError):
                client.send("late")
            # The peer keeps its end open and goes on not reading.
            await eventually(lambda: gone, timeout=1.5)
            assert hub.connections == 0
            assert client.queued_messages == 0
            assert hub.get_stats().dropped["conn_closed"] > 0
        await hub.stop()
    assert gone.count(client) == 1


@pytest.mark.fault(number="A6")
async def test_a_peer_that_does_not_read_is_reaped_though_TLS_hides_the_backlog(
    any_loop: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub, _, gone = recording(REAPING)
    async with running(hub, ssl=server_tls):
        with await connect(hub, client_tls, rcvbuf=1 << 14) as raw:
            client = only_client(hub)
            # One write passes the TLS layer whole: to the hub the transport looks empty.
            client.send(bytes(6 * MIB))
            await eventually(lambda: client.queued_messages == 0)
            raw.sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: gone, timeout=2.0)
            assert hub.connections == 0
    assert gone == [client]


@pytest.mark.fault(number="A6")
@pytest.mark.parametrize("end", ["by itself", "by stop"])
async def test_a_peer_that_does_not_read_a_routes_answer_is_reaped(any_loop: str, end: str) -> None:
    hub = Hub(HubConfig(close_timeout=0.3, handshake_timeout=0.3 if end == "by itself" else 10.0))
    asked = asyncio.Event()

    @hub.route("/big")
    def big(request: Request) -> bytes:
        asked.set()
        return bytes(16 * MIB)

    process = psutil.Process()
    async with running(hub):
        without = process.num_fds()
        with await RawClient.open(hub, rcvbuf=1 << 14, upgrade=False) as raw:
            await raw.send_raw(raw.request(hub, "/big"))
            await asked.wait()
            if end == "by stop":
                await hub.stop()
                without -= 1  # the listening socket
            # One more is this client's own end; the hub's end has to be closed.
            await eventually(lambda: process.num_fds() <= without + 1, timeout=2.0)


@pytest.mark.fault(number="A12")
@pytest.mark.parametrize("code", [0, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
async def test_a_close_code_that_must_not_be_sent_is_a_protocol_error(code: int) -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            await raw.send(CLOSE, struct.pack("!H", code))
            assert only_close(await raw.recv_rest()) == 1002


@pytest.mark.fault(number="A12")
@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1014, 3000, 4999])
async def test_a_sound_close_code_is_echoed(code: int) -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            await raw.send(CLOSE, struct.pack("!H", code) + "größe".encode())
            assert only_close(await raw.recv_rest()) == code
    assert hub.get_stats().protocol_errors == 0


@pytest.mark.fault(number="A13")
async def test_an_empty_close_is_answered_with_an_empty_one(any_loop: str) -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            await raw.send_raw(b"\x88\x80\0\0\0\0")
            assert await raw.read_all() == b"\x88\0"


@pytest.mark.fault(number="A13")
async def test_a_close_without_a_code_sends_1000() -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            only_client(hub).disconnect()
            assert await raw.recv() == Frame(CLOSE, b"\x03\xe8")


@pytest.mark.fault(number="A14")
@pytest.mark.parametrize(
    "code", [-1, 0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65536 + 1000, 70000, 1 << 31, 1 << 64]
)
async def test_a_code_that_cannot_be_sent_leaves_the_connection_untouched(code: int) -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            client = only_client(hub)
            with pytest.raises(ValidationError):
                client.disconnect(code)
            assert client.is_connected()
            client.send("still here")
            assert await raw.recv() == Frame(TEXT, b"still here")


@pytest.mark.fault(number="A14")
@pytest.mark.parametrize("reason", [None, 5, b"bytes", ["x"]])
async def test_a_reason_that_is_no_text_leaves_the_connection_untouched(reason: Any) -> None:
    hub, _, _ = recording()
    with pytest.raises(ValidationError, match="reason"):
        hub.disconnect_user("nobody", reason=reason)
    async with running(hub):
        with await connect(hub) as raw:
            client = only_client(hub)
            with pytest.raises(ValidationError, match="reason"):
                client.disconnect(1000, reason)
            assert client.is_connected()
            client.send("still here")
            assert await raw.recv() == Frame(TEXT, b"still here")


@pytest.mark.fault(number="A14")
@pytest.mark.parametrize(
    ("reason", "on_the_wire"),
    [
        ("é" * 100, "é" * 61),  # 123 bytes would end in half a code point
        ("a" + "é" * 100, "a" + "é" * 61),
        ("x" * 124, "x" * 123),
        ("x" * 123, "x" * 123),
        ("\ud800", "?"),
    ],
)
async def test_a_reason_is_cut_on_a_code_point(reason: str, on_the_wire: str) -> None:
    hub, _, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            only_client(hub).disconnect(1000, reason)
            assert await raw.recv() == Frame(CLOSE, b"\x03\xe8" + on_the_wire.encode())


@pytest.mark.fault(number="A15")
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG])
@pytest.mark.parametrize("rsv", [1, 2, 4, 7])
async def test_a_reserved_bit_is_a_protocol_error(opcode: int, rsv: int) -> None:
    hub, messages, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            payload = b"\x03\xe8" if opcode == CLOSE else b"x"
            await raw.send(opcode, payload, rsv=rsv)
            assert only_close(await raw.recv_rest()) == 1002
    assert messages == []


@pytest.mark.fault(number="A16")
@MEASURES
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_pings_of_a_peer_that_does_not_read_take_no_memory(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub, _, _ = recording()
    process = psutil.Process()
    async with running(hub, **tls_options(server_tls if tls else None)):
        with await connect(hub, client_tls if tls else None, rcvbuf=1 << 14) as raw:
            client = only_client(hub)
            expected = await half_send(client)  # so that no pong finds room in the kernel
            held = client.conn.underlying_transport.get_write_buffer_size()
            before = process.memory_info().rss
            ping = encode(PING, b"p" * 125) * 1000
            for _ in range(160):  # 20 MB
                await raw.send_raw(ping)
            await raw.send(PING, b"last")
            last_in = asyncio.Event()
            hub.on_message_received(lambda client, message: last_in.set())
            await raw.send(TEXT, b"all pings are in")
            await last_in.wait()
            # The first 32, and the latest of all the others.
            assert client.queued_messages == 33
            assert client.queued_bytes <= 33 * 127
            assert client.conn.underlying_transport.get_write_buffer_size() <= held
            # The process's other needs meanwhile (read buffers, this client) are in it too.
            assert process.memory_info().rss - before <= 4 * MIB
            expected += [Frame(PONG, b"p" * 125)] * 32 + [Frame(PONG, b"last")]
            assert [await raw.recv() for _ in expected] == expected


# Prints by how many bytes the process grew. On its own, since a heap that earlier tests left
# behind would hide growth; the client's ends are in it, but only their sockets.
READ_BUFFERS = """
import asyncio, psutil, sys
from tests.conftest import LOOPS
from wsc_fast.testing import BINARY, RawClient, encode, eventually, running
from wsc_fast import Hub, HubConfig

async def main(clients: int, largest: int, size: int, count: int) -> None:
    hub = Hub(HubConfig(max_message_size=largest))
    memory = psutil.Process().memory_info
    async with running(hub):
        burst = encode(BINARY, bytes(size)) * count
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, int)  # its thread is no growth
        before = grown = 0
        for wave in range(3):  # the first one to warm up, the last one to show that all was freed
            raws = [await RawClient.open(hub) for _ in range(clients)]
            before = before or memory().rss
            for raw in raws:
                raw.sock.setblocking(True)
            # From a thread, so that the kernel holds a lot whenever the hub comes to read.
            sends = [loop.run_in_executor(None, raw.sock.sendall, burst) for raw in raws]
            await asyncio.gather(*sends)
            await eventually(lambda: hub.get_stats().messages_in == (wave + 1) * clients * count)
            grown = max(grown, memory().rss - before)
            for raw in raws:
                raw.close()
            await eventually(lambda: hub.connections == 0)
    print(grown)

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main(*map(int, sys.argv[2:])))
"""


@pytest.mark.fault(number="A19")
@MEASURES
@pytest.mark.parametrize(
    ("clients", "largest", "size", "count"),
    [(24, MIB, MIB, 1), (16, 4096, 100, 20_000)],
    ids=["one large message", "many small messages"],
)
def test_a_read_buffer_stays_within_its_documented_bound(
    any_loop: str, clients: int, largest: int, size: int, count: int
) -> None:
    arguments = [any_loop, *map(str, (clients, largest, size, count))]
    done = subprocess.run(
        [sys.executable, "-c", READ_BUFFERS, *arguments],
        # A fixed threshold: what is freed goes back to the system at once.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Of HubConfig.read_buffer_size: "at most about twice max_message_size".
    bound = clients * 2.2 * largest + 4 * MIB
    assert int(done.stdout) <= bound, f"{int(done.stdout) / clients / 1024:.0f} KiB per client"


@pytest.mark.fault(number="A26")
@pytest.mark.parametrize("how", ["disconnect", "abort", "close", "picows"])
async def test_after_the_end_nothing_is_heard_and_nothing_is_sent(any_loop: str, how: str) -> None:
    hub, _, gone = recording()
    heard: list[str] = []

    @hub.on_message_received
    def end(client: Client, message: str) -> None:
        heard.append(message)
        assert client.conn is not None
        if how == "disconnect":
            client.disconnect(4000)
        elif how == "abort":
            client.conn.underlying_transport.abort()
        elif how == "close":
            client.conn.underlying_transport.close()
        else:
            client.conn.disconnect(graceful=False)
        for _ in range(3):
            with pytest.raises(ClientDisconnectedError):
                client.send("late")
        assert hub.broadcast("late") == 0

    async with running(hub):
        with await connect(hub) as raw:
            await raw.send_raw(b"".join(encode(TEXT, b"m%d" % i) for i in range(3)))
            frames = await raw.recv_rest()  # no answer to a close: ends with the close timeout
        await eventually(lambda: gone)
    assert heard == ["m0"]
    assert len(gone) == 1
    codes = [frame.code for frame in frames]
    assert codes == {"disconnect": [4000], "close": [1000]}.get(how, [])


@pytest.mark.fault(number="A27")
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_no_message_is_heard_of_a_client_whose_connect_callback_raised(
    any_loop: str, kind: str
) -> None:
    hub, messages, gone = recording()
    clients: list[Client] = []
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    def refuse(client: Client) -> None:
        clients.append(client)
        hub.create_room("r")
        hub.join_room(client.id, "r")
        raise LookupError("no such user")

    async def refuse_later(client: Client) -> None:
        # Long enough for the pipelined message to come in behind it.
        await eventually(lambda: hub.get_stats().messages_in == 1)
        refuse(client)

    hub.on_client_connected(refuse if kind == "plain" else refuse_later)
    async with running(hub):
        with await RawClient.open(hub, tail=encode(TEXT, b"x")) as raw:
            assert (await raw.recv()).code == 1011
            (client,) = clients
            assert not client.is_connected()
            assert hub.get_connected_clients() == 0
            assert hub.get_client_by_id(client.id) is None
            assert hub.get_all_connected_users() == []
            assert hub.get_room_clients("r") == []
        await eventually(lambda: hub.connections == 0)
    assert [type(error) for error in errors] == [LookupError]
    assert messages == []
    assert len(gone) <= 1


def on_loop(kind: str, test: Coroutine[Any, Any, None]) -> None:
    """Runs a test itself: what ends a loop must fail that test, not end pytest."""
    try:
        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            runner.run(test)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
        pytest.fail(f"{error!r} came out of the loop")


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("where", ["connected", "message"])
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_a_base_exception_closes_with_1011_and_leaves_the_loop_alone(
    any_loop: str, kind: str, where: str, error: type[BaseException]
) -> None:
    async def test() -> None:
        hub, _, gone = recording()
        reported: list[BaseException] = []
        hub.on_error(lambda client, error: reported.append(error))
        armed = True

        def fail(*args: object) -> None:
            if armed:
                raise error("on purpose")

        async def fail_later(*args: object) -> None:
            await asyncio.sleep(0)
            fail()

        register = hub.on_client_connected if where == "connected" else hub.on_message_received
        register(fail if kind == "plain" else fail_later)
        async with running(hub):
            with await RawClient.open(hub, tail=encode(TEXT, b"x")) as raw:
                assert (await raw.recv()).code == 1011
                await raw.send(CLOSE, b"\x03\xf3")
                assert await raw.recv_rest() == []
            await eventually(lambda: gone)
            armed = False
            await serves_others(hub)
        assert [type(one) for one in reported] == [error]

    on_loop(any_loop, test())


@pytest.mark.fault(number="A28")
@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("where", ["disconnected", "error"])
@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt])
def test_a_base_exception_of_a_callback_without_a_client_hurts_nobody(
    any_loop: str, kind: str, where: str, error: type[BaseException]
) -> None:
    async def test() -> None:
        hub = Hub(HubConfig(close_timeout=0.5))
        called = asyncio.Event()

        def fail(*args: object) -> None:
            called.set()
            raise error("on purpose")

        async def fail_later(*args: object) -> None:
            await asyncio.sleep(0)
            fail()

        register = hub.on_client_disconnected if where == "disconnected" else hub.on_error
        register(fail if kind == "plain" else fail_later)
        async with running(hub):
            with await connect(hub) as raw:
                await raw.send_raw(RESERVED_OPCODE)
                assert only_close(await raw.recv_rest()) == 1002
            await called.wait()
            await serves_others(hub)

    on_loop(any_loop, test())


@pytest.mark.fault(number="A31")
@pytest.mark.parametrize("pacing", ["bytes", "chunks"])
async def test_a_faulty_peer_does_not_fill_the_log(
    any_loop: str, pacing: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub, _, gone = recording()
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    caplog.set_level(logging.INFO)
    unmasked = encode(TEXT, b"x" * 300, masked=False)
    step = 1 if pacing == "bytes" else 100
    async with running(hub):
        for _ in range(10):
            with await RawClient.open(hub) as raw:
                for start in range(0, len(unmasked), step):
                    await raw.send_raw(unmasked[start : start + step])
                    await asyncio.sleep(0)  # the hub reads between, each time
                assert only_close(await raw.recv_rest()) == 1002
        await eventually(lambda: len(gone) == 10)
    # One report for each client, and nothing for each chunk; connections make no lines at all.
    assert [type(error) for error in errors] == [ProtocolError] * 10
    assert len(caplog.records) <= 10


@pytest.mark.fault(number="A32")
async def test_a_message_is_the_applications_own_copy(any_loop: str) -> None:
    hub, messages, _ = recording()
    async with running(hub):
        with await connect(hub) as raw:
            sent = [bytes([65 + i]) * 1000 for i in range(20)]
            for data in sent:
                await raw.send_raw(encode(BINARY, data) + encode(TEXT, data))
            halves = encode(BINARY, b"h" * 500, fin=False) + encode(CONTINUATION, b"h" * 500)
            await raw.send_raw(halves + encode(BINARY, b"z" * 2000) * 3)
            await eventually(lambda: len(messages) == 44)
    expected = [form for data in sent for form in (data, data.decode())]
    assert messages == [*expected, b"h" * 1000, *[b"z" * 2000] * 3]
    assert {type(message) for message in messages} == {bytes, str}


# picows gets these right by itself. A later release of it, or a way around its parser, might not.
PICOWS_FAULTS = {
    "unmasked frame": (encode(TEXT, b"x", masked=False), 1002),
    **{f"reserved opcode {op}": (encode(op, b"x"), 1002) for op in (3, 4, 5, 6, 7, 11, 12, 15)},
    "fragmented ping": (encode(PING, b"x", fin=False), 1002),
    "fragmented close": (encode(CLOSE, b"\x03\xe8", fin=False), 1002),
    "over-long ping": (encode(PING, b"x" * 126), 1002),
    "over-long pong": (encode(PONG, b"x" * 70_000), 1002),
    "over-long close": (encode(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "non-minimal 16-bit length": (b"\x82\xfe\x00\x7d\0\0\0\0" + bytes(125), 1002),
    "non-minimal 64-bit length": (b"\x82\xff" + struct.pack("!Q", 65535) + bytes(4), 1002),
    "64-bit length with its top bit set": (b"\x82\xff\x80" + bytes(7) + bytes(4), 1002),
    "close of one byte": (encode(CLOSE, b"\x03"), 1002),
    "close reason of bad UTF-8": (encode(CLOSE, b"\x03\xe8\xc3\x28"), 1007),
}


@pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("fault", list(PICOWS_FAULTS))
async def test_picows_refuses_a_faulty_frame(fault: str, split: bool) -> None:
    data, code = PICOWS_FAULTS[fault]
    hub, messages, gone = recording()
    async with running(hub):
        with await connect(hub) as raw:
            if split:
                for index in range(min(len(data), 200)):
                    await raw.send_raw(data[index : index + 1])
                    await asyncio.sleep(0)
            else:
                await raw.send_raw(data + encode(TEXT, b"late"))
            assert only_close(await raw.recv_rest()) == code
        await eventually(lambda: gone)
    assert messages == []
    assert hub.get_stats().protocol_errors == 1
