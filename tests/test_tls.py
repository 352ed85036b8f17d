"""TLS of the hub's own server: pauses, ends, and what goes wrong between them."""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import aiofastnet
import picows
import pytest
import trustme
import websockets

from tests.support import BOUNDLESS, TLS, busy, unless_lost
from wsc_fast import Client, Hub, HubConfig, Identity, Request, handle_websocket
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    TEXT,
    RawClient,
    TLSClient,
    encode,
    eventually,
    open_client,
    running,
)


@pytest.mark.parametrize("server", ["own", "own, OpenSSL in Python", "picows"])
@pytest.mark.parametrize("pausing", ["turn", "rate", "callbacks"])
async def test_messages_that_tls_had_received_before_a_pause_are_heard_after_it(
    any_loop: str,
    server: str,
    pausing: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if server == "own, OpenSSL in Python":
        monkeypatch.setattr(aiofastnet, "OPENSSL_DYN_LIBS", None)
    # Several pauses within one record, and more records behind it.
    count = 2_000
    heard: list[str | bytes] = []
    settings: dict[str, Any] = {
        "turn": BOUNDLESS,
        "rate": {"message_rate": 4_000.0, "rate_limit_action": "pause"},
        "callbacks": {"max_pending_callbacks": 4},
    }[pausing]
    hub = Hub(HubConfig(**settings))

    async def later(client: Client, message: str | bytes) -> None:
        await asyncio.sleep(0)
        heard.append(message)

    hub.on_message_received(
        later if pausing == "callbacks" else lambda client, message: heard.append(message)
    )
    async with AsyncExitStack() as stack:
        if server != "picows":
            await stack.enter_async_context(running(hub, ssl=server_tls))
            port = hub.port
        else:
            listening = await picows.ws_create_server(
                partial(handle_websocket, hub),
                "127.0.0.1",
                0,
                enable_auto_pong=False,
                use_aiofastnet=True,
                ssl=server_tls,
            )
            stack.push_async_callback(hub.stop)
            stack.callback(listening.close)
            port = listening.sockets[0].getsockname()[1]
        ws = await stack.enter_async_context(
            websockets.connect(
                f"wss://127.0.0.1:{port}/ws", ssl=client_tls, compression=None, max_size=None
            )
        )
        sent = [f"{number} " + "x" * random.randrange(3_000) for number in range(count)]
        for message in sent:
            await ws.send(message)
        await eventually(lambda: len(heard) == count, timeout=20.0)
        assert heard == sent
        if pausing == "turn":
            large = random.randbytes(1 << 20)
            for _ in range(3):
                await ws.send(large)
            await eventually(lambda: len(heard) == count + 3, timeout=20.0)
            assert set(heard[count:]) == {large}


@pytest.mark.parametrize("end", ["refused", "answered", "closed", "left"])
async def test_a_connection_that_waited_for_a_turn_ends_like_any_other(
    any_loop: str, end: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    # aiofastnet 1.2 hears nothing more of a transport that is paused when it is closed.
    waited = 0

    def authenticate(request: Request) -> Identity | None:
        nonlocal waited
        busy(0.003)
        waited = max(waited, hub._engine.count_waiting())
        return None if end == "refused" else Identity("somebody")

    hub = Hub(HubConfig(close_timeout=60.0), authenticate=authenticate)
    hub.route("/slow")(lambda request: str(authenticate(request)))

    async def visit(raw: TLSClient) -> None:
        request = RawClient.request(hub, "/slow" if end == "answered" else "/ws")
        if end == "left":
            raw.say_goodbye(request)
        else:
            closing = encode(CLOSE, struct.pack("!H", 4000)) if end == "closed" else b""
            await raw.send_raw(request + closing)
        await raw.read_all()
        raw.say_goodbye()
        # The end of the stream, and no reset: nothing that the peer has sent was left unread.
        assert await asyncio.get_running_loop().sock_recv(raw.sock, 1) == b""

    async with running(hub, ssl=server_tls), asyncio.timeout(20):
        crowd = [await TLSClient.open_tls(hub, client_tls, upgrade=False) for _ in range(12)]
        await asyncio.gather(*map(visit, crowd))
        assert waited > 0
        await eventually(lambda: not hub._parts.requests._waiting and not hub.connections)
        for raw in crowd:
            raw.close()


@pytest.mark.parametrize("end", ["of TCP", "of TLS", "of TLS at once"])
async def test_a_client_that_sent_and_left_while_it_was_paused_is_heard_to_the_end(
    any_loop: str,
    openssl: str,
    end: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    hub = Hub(HubConfig(heartbeat_interval=0.2, message_rate=20.0, rate_limit_action="pause"))
    heard: list[str | bytes] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            sent = b"".join(encode(TEXT, b"%d" % number) for number in range(45))
            if end == "of TLS at once":
                raw.say_goodbye(sent)
            else:
                await raw.send_raw(sent)
                await eventually(lambda: len(heard) == 21)
            if end == "of TLS":
                raw.say_goodbye()
            if end != "of TCP":
                await raw.read_all()
        # At its rate this takes a second, in which it is looked after some five times.
        await eventually(lambda: len(heard) == 45)
        assert heard == [str(number) for number in range(45)]
        await eventually(lambda: hub.connections == 0)


@TLS
async def test_a_reset_is_seen_though_reading_is_paused(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub(HubConfig(heartbeat_interval=0.2, heartbeat_timeout=60.0, max_pending_callbacks=1))
    free = asyncio.Event()
    hub.on_message_received(lambda client, message: free.wait())
    async with running(hub, ssl=server_tls if tls else None):
        raw = await open_client(hub, client_tls if tls else None)
        for _ in range(5):
            await raw.send(TEXT, b"x")
        await eventually(lambda: hub.get_stats().limited["max_pending_callbacks"])
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        free.set()


@TLS
async def test_a_connection_that_could_not_begin_is_ended(
    any_loop: str,
    tls: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub()
    told: list[object] = []
    hub.on_error(unless_lost(lambda client, error: told.append(error)))
    heard: list[object] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    failure = MemoryError("none left")

    def fail(*args: object) -> None:
        raise failure

    async with running(hub, ssl=server_tls if tls else None):
        monkeypatch.setattr(hub._parts.requests, "begin", fail)
        raw = (
            await TLSClient.open_tls(hub, client_tls, upgrade=False, flush=False)
            if tls
            else await RawClient.open(hub, upgrade=False)
        )
        await raw.send_raw(encode(TEXT, b"unasked"))
        assert await raw.read_all() == b""
        raw.close()
    assert told == [failure]
    assert heard == []


@pytest.mark.fault(number="F1")
@pytest.mark.parametrize("when", ["connected", "upgraded"])
async def test_giving_up_a_tls_handshake_that_has_just_ended_leaves_the_socket_to_its_owner(
    any_loop: str,
    when: str,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub(HubConfig(close_timeout=30.0))
    requests = hub._parts.requests
    part, step = (requests, "begin") if when == "connected" else (requests.policy, "accept")
    done = getattr(part, step)
    given_up = 0

    def give_up(*args: Any) -> object:
        # Between the end of the handshake and the next step of the task that waits for it.
        nonlocal given_up
        for task, _ in hub._parts.listener.acceptors[0]._shaking.values():
            given_up += task.cancel()
        return done(*args)

    async with running(hub, ssl=server_tls):
        monkeypatch.setattr(part, step, give_up)
        with await TLSClient.open_tls(hub, client_tls, upgrade=False, flush=False) as raw:
            # The request comes in the read that ends the handshake, and 32 KB behind it.
            if when == "upgraded":
                await raw.send_raw(RawClient.request(hub))
                await raw.send_raw(encode(BINARY, bytes(32_768)))
            await raw.read_all()
            raw.say_goodbye()
            assert given_up == 1
            # Its transport has ended it, and saw the peer go; a closed descriptor tells of nothing.
            await eventually(
                lambda: not hub._parts.requests._waiting and not hub.connections, timeout=5.0
            )
        monkeypatch.undo()
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            hub.broadcast("served")
            assert (await raw.recv()).payload == b"served"


@pytest.mark.fault(number="A31")
@pytest.mark.parametrize("broken", ["a record", "what follows the end"])
async def test_broken_tls_leaves_no_line_in_the_log(
    any_loop: str, broken: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    told: list[object] = []
    hub.on_error(unless_lost(lambda client, error: told.append(error)))
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with running(hub, ssl=server_tls):
        with await TLSClient.open_tls(hub, client_tls) as raw:
            await eventually(hub.get_connected_clients)
            if broken == "a record":
                raw.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            else:
                raw.say_goodbye(behind=b"\x17\x03\x03\x40\x00" + bytes(200_000))
            await eventually(lambda: hub.connections == 0)
    assert told == []


@pytest.mark.parametrize("asked", ["server name", "key log", "client certificate", "kernel TLS"])
async def test_contexts_that_call_python_or_ask_for_certificates_are_served(
    any_loop: str, asked: str, authority: trustme.CA, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    names: list[str | None] = []
    if asked == "server name":
        context.sni_callback = lambda connection, name, _: names.append(name)
    elif asked == "key log":
        context.keylog_filename = str(tmp_path / "keys")
    elif asked == "kernel TLS":
        context.options |= 8  # OP_ENABLE_KTLS, by that name from Python 3.12 on
    else:
        context.verify_mode = ssl.CERT_OPTIONAL
        authority.configure_trust(context)
    hub = Hub()
    async with running(hub, ssl=context):
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", hub.port, ssl=trusting, server_hostname="localhost"
        )
        writer.write(b"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()
    if asked == "server name":
        assert names == ["localhost"]
    elif asked == "key log":
        assert (tmp_path / "keys").stat().st_size > 0
