"""The main job, end to end: connect, send, broadcast, rooms, stop; on both loops, plain and TLS."""

from __future__ import annotations

import ssl

import pytest
import websockets

from wsc_fast import Client, Hub
from wsc_fast.testing import RawClient, running


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_messages_to_one_to_a_room_and_to_all(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    seen: list[tuple[str, str | bytes]] = []

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        seen.append((client.id, message))
        client.send(message)

    async with running(hub, ssl=server_tls if tls else None):
        uri = f"{'wss' if tls else 'ws'}://127.0.0.1:{hub.port}/ws"
        options = {"ssl": client_tls} if tls else {}
        async with (
            websockets.connect(uri, **options) as first,
            websockets.connect(uri, **options) as second,
        ):
            await first.send("größe")
            assert await first.recv() == "größe"
            await second.send(b"\x00" * 100_000)
            assert await second.recv() == b"\x00" * 100_000
            one, two = (client_id for client_id, _ in seen)

            hub.send_to_client(one, "direct")
            assert await first.recv() == "direct"
            hub.create_room("r")
            hub.join_room(two, "r")
            assert hub.broadcast_to_room("r", "room") == 1
            assert hub.broadcast("all") == 2
            assert await second.recv() == "room"
            assert await second.recv() == "all"
            assert await first.recv() == "all"

            await hub.stop()
            with pytest.raises(websockets.ConnectionClosedOK) as closed:
                await first.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


async def test_a_raw_client_is_answered(any_loop: str) -> None:
    hub = Hub()
    async with running(hub):
        with await RawClient.open(hub) as client:
            await client.send(9, b"hi")
            frame = await client.recv()
            assert (frame.opcode, frame.payload) == (10, b"hi")
