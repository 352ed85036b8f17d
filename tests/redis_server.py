"""Redis servers of the test's own, on free ports: can be stopped, killed, paused and cut off.

The trials use them, too. Without a program the tests that need one are skipped, unless
WSC_REQUIRE_CLIENTS=1. Some tests of the bus run over each program that is installed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from wsc_fast.testing import eventually

PROGRAMS = {
    name: path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))
}
PROGRAM = next(iter(PROGRAMS.values()), None)
# The names of programs, for `parametrize`.
EACH_PROGRAM = list(PROGRAMS) or ["redis-server"]


class RedisServer:
    """A server that keeps its data in a directory across `stop` or `kill` and `start`.

    All methods block for as long as they take, some 50 ms: a test with work under way on its loop
    calls them in a thread.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        password: str = "",
        program: str | None = PROGRAM,
    ) -> None:
        self.program = program if program is None else PROGRAMS.get(program, program)
        if self.program is None:
            if os.environ.get("WSC_REQUIRE_CLIENTS") == "1":
                pytest.fail("WSC_REQUIRE_CLIENTS=1, but redis-server is not installed")
            pytest.skip("redis-server is not installed")
        self.directory = directory
        self.program = program
        self.options = options
        self.password = password
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns once it answers; on the port that it had before, if any."""
        known = self.port
        for _ in range(5):
            self.port = known or free_port()
            if self._start():
                return
            # Somebody else took the port meanwhile.
            assert not known, self.log()
        raise AssertionError(self.log())

    def _start(self) -> bool:
        self.process = subprocess.Popen(self.command_line())
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.log()
            with suppress(OSError, ConnectionError):
                # LOADING and NOAUTH begin with a minus, too.
                if self._ping():
                    return True
            time.sleep(0.005)
        return False

    def command_line(self) -> list[str]:
        """The program and its arguments."""
        assert self.program is not None
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        kept = ["--appendonly", "yes", "--save", "", "--logfile", "redis.log"]
        password = ["--requirepass", self.password] if self.password else []
        return [self.program, *where, *kept, *password, *self.options]

    def _ping(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
            login = f"AUTH {self.password}\r\n" if self.password else ""
            sock.sendall(f"{login}PING\r\n".encode())
            answer = b""
            while b"PONG" not in answer and b"-" not in answer:
                data = sock.recv(1000)
                if not data:
                    return False
                answer += data
            return b"PONG" in answer

    def stop(self) -> None:
        """In good order: with its data on the disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def pause(self) -> None:
        """It hangs: connections are accepted by the kernel, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def command(self, *arguments: Any) -> Any:
        """Runs one command."""
        import redis

        with redis.Redis(port=self.port, password=self.password or None, protocol=2) as client:
            return client.execute_command(*arguments)

    def log(self) -> str:
        log = self.directory / "redis.log"
        return log.read_text() if log.exists() else "no log"

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.kill()


class Sentinel(RedisServer):
    """A Sentinel that watches one master and decides alone.

    Args:
        directory: for its configuration.
        master: which it watches.
        down_after: milliseconds of silence after which the master is down.
    """

    def __init__(self, directory: Path, master: RedisServer, *, down_after: int = 300) -> None:
        super().__init__(directory, program=master.program)
        self.master = master
        self.down_after = down_after

    def command_line(self) -> list[str]:
        program, *_ = super().command_line()
        file = self.directory / "sentinel.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\nlogfile redis.log\n"
            f"sentinel monitor main 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds main {self.down_after}\n"
            "sentinel failover-timeout main 2000\n"
        )
        return [program, str(file), "--sentinel"]


@asynccontextmanager
async def failing_over(directory: Path) -> AsyncIterator[tuple[RedisServer, RedisServer, Sentinel]]:
    """A master, a replica that follows it, and a Sentinel that knows both."""
    folders = [directory / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as master:
        replica_of = ("--replicaof", "127.0.0.1", str(master.port))
        with (
            RedisServer(folders[1], *replica_of) as replica,
            Sentinel(folders[2], master) as sentinel,
        ):
            await eventually(lambda: replica.command("INFO")["master_link_status"] == "up")
            await eventually(
                lambda: len(sentinel.command("SENTINEL", "replicas", "main")) == 1, timeout=20
            )
            yield master, replica, sentinel


class Cutter:
    """A relay before a server: decides what becomes of each chunk of bytes that it is given.

    Attributes:
        port: where it listens.
        request: called with a connection's number and what the client sent; returns what to pass
            on, b"" for nothing, or None to cut the connection. May be async.
        reply: the same for what the server sent.
        connections: how many there were.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.request: Callable[[int, bytes], Any] = lambda number, data: data
        self.reply: Callable[[int, bytes], Any] = lambda number, data: data
        self._server_port = server_port
        self.connections = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            self._tasks.discard(task)
            return
        pumps = {
            asyncio.ensure_future(self._pump(number, reader, back, lambda: self.request)),
            asyncio.ensure_future(self._pump(number, there, writer, lambda: self.reply)),
        }
        self._pumps |= pumps
        # The end of one side is passed on, so that the other ends by itself.
        await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        for end in (writer, back):
            end.close()
            with suppress(OSError):
                await end.wait_closed()
        self._pumps -= pumps
        self._tasks.discard(task)

    async def _pump(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        judge: Callable[[], Callable[[int, bytes], Any]],
    ) -> None:
        while data := await reader.read(1 << 16):
            verdict = judge()(number, data)
            if isinstance(verdict, Awaitable):
                verdict = await verdict
            if verdict is None:
                raise ConnectionAbortedError
            writer.write(verdict)
            await writer.drain()
        writer.write_eof()

    async def finish(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def cutter(server: RedisServer) -> AsyncIterator[Cutter]:
    """Runs a Cutter before a server."""
    relay = Cutter(server.port)
    listener = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = listener.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        listener.close()
        await relay.finish()
        await listener.wait_closed()
