"""A server of TCP or of a Unix socket that a test takes away, slows down, or freezes.

Programs connect to the proxy in the server's place: a RedisBus, a RedisOfflineStore, a Publisher.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from wsc_fast.testing.sockets import reset_when_closed
from wsc_fast.testing.threads import LoopThread

_SIZE = 1 << 16


class FaultProxy:
    """Hands bytes on between its clients and a server, with switches.

        async with FaultProxy("127.0.0.1", 6379) as proxy:
            hub = Hub(bus=RedisBus(f"redis://127.0.0.1:{proxy.port}"))
            ...
            proxy.away()
            ...
            proxy.mend()

    Args:
        host: of the server; the path of its Unix socket where it begins with "/".
        port: of the server; 0 for a Unix socket.

    Attributes:
        port: that it listens on, on 127.0.0.1, while it is open.

    Thread-safety: the loop's thread.
    """

    def __init__(self, host: str, port: int = 0) -> None:
        self._host, self._target = host, port
        self._server: asyncio.Server | None = None
        self.port: int = 0
        self._away = False
        self._seconds = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Begins to listen, on the running loop.

        Raises:
            OSError: it cannot listen.
        """
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cuts all connections, and listens no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- switches ---

    def cut(self) -> None:
        """All connections break, by RST. The next ones are made."""
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            if isinstance(getattr(sock, "family", None), int) and sock.family != socket.AF_UNIX:
                with suppress(OSError):
                    reset_when_closed(sock)
            writer.transport.abort()
        self._writers.clear()

    def away(self) -> None:
        """All connections break, and none is made until `mend`."""
        self._away = True
        self.cut()

    def freeze(self) -> None:
        """No byte goes either way until `mend`; connections are taken."""
        self._flowing.clear()

    def late(self, seconds: float) -> None:
        """All bytes are handed on so much later.

        Args:
            seconds: by the loop's clock, which a Clock sets ahead.
        """
        self._seconds = seconds

    def mend(self) -> None:
        """Bytes go, and connections are made."""
        self._away, self._seconds = False, 0.0
        self._flowing.set()

    # --- connections ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._away:
                self.cut()
                return
            there, back = await self._connect()
            self._writers.add(back)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._hand_on(reader, back))
                    both.create_task(self._hand_on(there, writer))
            finally:
                self._drop(back)
        except (OSError, BaseExceptionGroup):
            pass  # one of both has ended: so does the other
        finally:
            self._drop(writer)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(self._host)
        return await asyncio.open_connection(self._host, self._target)

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_SIZE):
            if self._seconds:
                await asyncio.sleep(self._seconds)
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError("the end of a stream")

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()

    async def __aenter__(self) -> FaultProxy:
        await self.open()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()


class BlockingProxy:
    """The switches of a FaultProxy on the loop of a thread.

    Args:
        proxy: that runs on the thread's loop.
        thread: whose loop that is.

    Thread-safety: any thread but that one.
    """

    def __init__(self, proxy: FaultProxy, thread: LoopThread) -> None:
        self._proxy = proxy
        self._thread = thread

    def cut(self) -> None:
        """See `FaultProxy.cut`."""
        self._thread.run(self._proxy.cut)

    def away(self) -> None:
        """See `FaultProxy.away`."""
        self._thread.run(self._proxy.away)

    def freeze(self) -> None:
        """See `FaultProxy.freeze`."""
        self._thread.run(self._proxy.freeze)

    def late(self, seconds: float) -> None:
        """See `FaultProxy.late`."""
        self._thread.run(lambda: self._proxy.late(seconds))

    def mend(self) -> None:
        """See `FaultProxy.mend`."""
        self._thread.run(self._proxy.mend)
