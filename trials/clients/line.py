"""The network between clients and hubs: a relay that cuts connections, falls silent, or lies.

The bytes of a silent line are not lost: they come when it is open again, as from a network that
drops packets for a while. A client that has given up its connection meanwhile gets none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

# The answer of a captive portal to any request.
PAGE = b"<!doctype html><title>Welcome</title>Accept our terms to use the network."
PORTAL = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)
)


class Line:
    """A relay to one of several ports, chosen anew for each connection.

    Attributes:
        port: where it listens.
        life: gives the seconds after which a new connection is cut; None: no connection is cut.
        idle: seconds of silence in both directions after which a connection is ended; None: never.
        portal: a captive portal answers each new connection with its page.
        connections, cuts: how many there were.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        """Carries nothing yet: see `line`.

        Args:
            ports: of hubs; the caller may change the list.
        """
        self.port = 0
        self.life: Callable[[], float] | None = None
        self.idle: float | None = None
        self.portal = False
        self.connections = self.cuts = 0
        self._ports = ports
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def silence(self) -> None:
        """Carries nothing from now on; connections stay open, and new ones are made."""
        self._open.clear()

    def speak(self) -> None:
        """Carries everything again."""
        self._open.set()

    async def cut_all(self) -> None:
        """Cuts all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        # asyncio would log what a handler of connections raises.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self.portal:
                await self._lie(reader, writer)
            else:
                await self._carry(reader, writer)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _lie(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(PORTAL)
        writer.close()
        await writer.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", random.choice(self._ports))
        try:
            await _Pair(self, [(reader, back), (there, writer)]).run()
        finally:
            back.transport.abort()

    async def open(self) -> None:
        """Returns once the line carries something."""
        await self._open.wait()


class _Pair:
    """Both directions of one connection."""

    def __init__(
        self, line: Line, ways: Sequence[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    ) -> None:
        self._line = line
        self._ways = ways
        self._carried = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Carries until one end is over, or the line ends the connection."""
        tasks = [asyncio.create_task(self._carry())]
        if self._line.life is not None:
            tasks.append(asyncio.create_task(self._cut(self._line.life())))
        if self._line.idle is not None:
            tasks.append(asyncio.create_task(self._end_idle(self._line.idle)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self) -> None:
        async with asyncio.TaskGroup() as pumps:
            for way in self._ways:
                pumps.create_task(self._pump(*way))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._line.open()
            self._carried = asyncio.get_running_loop().time()
            writer.write(data)
            await writer.drain()
        await self._line.open()
        writer.write_eof()

    async def _cut(self, life: float) -> None:
        await asyncio.sleep(life)
        self._line.cuts += 1
        if random.random() < 0.5:  # in good order for TCP; else both ends get a reset
            for _, writer in self._ways:
                writer.close()
            await asyncio.gather(
                *(writer.wait_closed() for _, writer in self._ways), return_exceptions=True
            )

    async def _end_idle(self, idle: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left = self._carried + idle - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self._line.cuts += 1


@asynccontextmanager
async def line(ports: Sequence[int]) -> AsyncIterator[Line]:
    """Runs a Line to these ports."""
    relay = Line(ports)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        relay.speak()
        await relay.cut_all()
        await server.wait_closed()
