"""A relay between a browser and a hub that keeps what goes over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wsc_fast import Hub
from wsc_fast.testing import Frame, take_frame


class Wire:
    """One connection: the bytes of either side."""

    def __init__(self) -> None:
        self.up = bytearray()
        self.down = bytearray()

    @property
    def request(self) -> bytes:
        """The head of the browser's request."""
        return bytes(self.up.partition(b"\r\n\r\n")[0])

    def frames_up(self) -> list[Frame]:
        """The whole frames of the browser, unmasked but not decompressed."""
        data = self.up.partition(b"\r\n\r\n")[2]
        frames = []
        while (frame := take_frame(data, masked=True)) is not None:
            frames.append(frame)
        return frames


class Tap:
    """Listens on `port` for browsers, and keeps a Wire for each of their connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.wires: list[Wire] = []

    @property
    def websocket(self) -> Wire:
        """The connection that asked for /ws; there is one."""
        (wire,) = (wire for wire in self.wires if wire.up.startswith(b"GET /ws "))
        return wire


@asynccontextmanager
async def tapped(hub: Hub) -> AsyncIterator[Tap]:
    """Relays between 127.0.0.1:`tap.port` and a running hub."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                kept += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire()
        tap.wires.append(wire)
        hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", hub.port)
        both = (pump(reader, hub_writer, wire.up), pump(hub_reader, writer, wire.down))
        for each in both:
            task = asyncio.create_task(each)
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    tap = Tap(server.sockets[0].getsockname()[1])
    try:
        yield tap
    finally:
        server.close()
        for task in list(pumps):
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await server.wait_closed()
