"""The bus of a scenario: a real server, which is killed, rewound, emptied, frozen and failed over.

Before a server loses data, a copy of it runs on another port for a moment, so that the record also
has the messages that are about to be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from tests.redis_server import Cutter, RedisServer, Sentinel, cutter
from trials.torture_cluster.record import Record, read, read_tops
from wsc_fast.testing import eventually_async

PREFIX = "wsc:"
# Milliseconds by which a rewound server is older.
AGES = 20, 400
# Redis writes to its log before it answers, unless it waits for a sync. A replica gets its data
# without a delay.
OPTIONS = ("--appendfsync", "no")
AT_ONCE = (*OPTIONS, "--repl-diskless-sync-delay", "0")
# The append-only file: of Redis 7 and Valkey, and of Redis 6.
LOGS = "appendonlydir", "appendonly.aof"


class Bus:
    """One server.

    Attributes:
        server: the one that nodes publish to.
    """

    def __init__(
        self,
        directory: Path,
        program: str,
        record: Record,
        rooms: Sequence[str],
    ) -> None:
        self._directory = directory
        self._program = program
        self._record = record
        self._rooms = rooms
        self._copies = 0
        self.server = self._make("bus")

    def _make(self, name: str) -> RedisServer:
        folder = self._directory / name
        folder.mkdir(exist_ok=True)
        return RedisServer(folder, *OPTIONS, program=self._program)

    @property
    def url(self) -> str:
        """For a node."""
        return self.server.url

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.server.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.server.kill)

    async def ask(self, *command: object) -> Any:
        """Runs one command on the server."""
        return await asyncio.to_thread(self.server.command, *command)

    async def settle(self) -> None:
        """Has the server ready for the next round."""

    # --- the record ---

    async def look_at_tops(self) -> None:
        """Puts the newest positions into the record."""
        found = await asyncio.to_thread(read_tops, self.server.port, PREFIX, self._rooms)
        self._record.tops.update(found)

    async def write_down(self) -> None:
        """Puts all that the server has into the record."""
        await self._write_down(self.server)

    async def _write_down(self, server: RedisServer) -> None:
        for found in await asyncio.to_thread(read, server.port, PREFIX, self._rooms):
            self._record.take(*found)

    async def _write_down_dead(self, dead: RedisServer) -> None:
        """Puts all that a killed server has on its disk into the record."""
        self._copies += 1
        copy = self._make(f"copy{self._copies}")
        _copy_logs(dead.directory, copy.directory)
        with copy:
            await self._write_down(copy)
        shutil.rmtree(copy.directory)

    async def _write_down_loss(self, server: RedisServer) -> None:
        """Puts into the record which messages of a dead server the next one lacks."""
        for room, _, entries in await asyncio.to_thread(read, server.port, PREFIX, self._rooms):
            self._record.lost(room, {position for position, *_ in entries})

    # --- faults ---

    async def kill(self) -> None:
        """kill -9, and started again with its data."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(random.choice([0, 0.3]))
        await asyncio.to_thread(self.server.start)

    async def rewind(self) -> None:
        """kill -9, and started again with data that are some 100 ms older."""
        await self._lose(older=True)

    async def empty(self) -> None:
        """kill -9, and started again with nothing."""
        await self._lose(older=False)

    async def _lose(self, *, older: bool) -> None:
        directory = self.server.directory
        old = self._directory / "old"
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        if older:
            _copy_logs(directory, old)
            await asyncio.sleep(random.uniform(*AGES) / 1000)
        await asyncio.to_thread(self.server.kill)
        await self._write_down_dead(self.server)
        for name in LOGS:
            if (directory / name).is_dir():
                shutil.rmtree(directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
        _copy_logs(old, directory)
        await asyncio.to_thread(self.server.start)
        await self._write_down_loss(self.server)

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT."""
        self.server.pause()
        await asyncio.sleep(seconds)
        self.server.resume()

    @asynccontextmanager
    async def small_buffers(self) -> AsyncIterator[None]:
        """Has the server cut off each node that more than 64 KiB wait for."""
        name = "client-output-buffer-limit"
        await self.ask("CONFIG", "SET", name, "pubsub 64kb 64kb 0")
        try:
            yield
        finally:
            await self.ask("CONFIG", "SET", name, "pubsub 32mb 8mb 60")

    async def cut_subscriptions(self) -> None:
        """Kills the connections over which messages come to the nodes."""
        await self.ask("CLIENT", "KILL", "TYPE", "pubsub")


class ReplicatedBus(Bus):
    """A master and a replica, which Sentinel promotes when it is told to.

    By itself it would do so on a busy machine whenever a server is late, and the record would miss
    the messages of that server.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._replica = self._make("replica")
        self.server.options = self._replica.options = AT_ONCE
        folder = self._make("sentinel").directory
        self._sentinel = Sentinel(folder, self.server, down_after=600_000)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/main"

    async def __aenter__(self) -> Self:
        try:
            await super().__aenter__()
            await self._follow()
            await asyncio.to_thread(self._sentinel.start)
            await self.settle()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in (self._sentinel, self._replica, self.server):
            await asyncio.to_thread(server.kill)

    async def _follow(self) -> None:
        """Starts a new replica."""
        self._replica.options = (*AT_ONCE, "--replicaof", "127.0.0.1", str(self.server.port))
        for name in LOGS:
            shutil.rmtree(self._replica.directory / name, ignore_errors=True)
        await asyncio.to_thread(self._replica.start)

    async def settle(self) -> None:
        async def is_whole() -> bool:
            info = await asyncio.to_thread(self._replica.command, "INFO", "replication")
            known = await asyncio.to_thread(self._sentinel.command, "SENTINEL", "replicas", "main")
            replicas = [dict(zip(each[::2], each[1::2], strict=True)) for each in known]
            return info["master_link_status"] == "up" and any(
                (int(each[b"port"]), each[b"flags"]) == (self._replica.port, b"slave")
                for each in replicas
            )

        await eventually_async(is_whole, timeout=60)

    async def fail_over(self) -> None:
        """Has the replica fall behind, kills the master, and waits until Sentinel names it."""
        old, new = self.server, self._replica
        # A server without a password refuses one.
        await asyncio.to_thread(new.command, "CONFIG", "SET", "masterauth", "none")
        await self.ask("CLIENT", "KILL", "TYPE", "replica")
        await asyncio.sleep(random.uniform(*AGES) / 1000)
        await asyncio.to_thread(old.kill)
        await self._write_down_dead(old)
        await asyncio.to_thread(self._sentinel.command, "SENTINEL", "FAILOVER", "main")

        async def is_promoted() -> bool:
            named = await asyncio.to_thread(
                self._sentinel.command, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"
            )
            return int(named[1]) == new.port

        await eventually_async(is_promoted, timeout=60)
        await self._write_down_loss(new)
        await asyncio.to_thread(new.command, "CONFIG", "SET", "masterauth", "")
        self.server, self._replica = new, old
        await self._follow()


def _copy_logs(there: Path, here: Path) -> None:
    for name in LOGS:
        if (there / name).is_dir():
            shutil.copytree(there / name, here / name)
        elif (there / name).exists():
            shutil.copy(there / name, here / name)


class Relay:
    """The way of one node to the bus, on which either direction can be held up.

    The bytes of a held direction are not lost: they come when it is opened again, as from a network
    that drops packets for a while.
    """

    def __init__(self, relay: Cutter) -> None:
        self.url = relay.url
        self._open = {"request": asyncio.Event(), "reply": asyncio.Event()}
        for direction, event in self._open.items():
            event.set()
            setattr(relay, direction, self._holding(event))

    @staticmethod
    def _holding(event: asyncio.Event) -> Any:
        async def hold(number: int, data: bytes) -> bytes:
            await event.wait()
            return data

        return hold

    @contextlib.contextmanager
    def held(self, directions: Iterable[str]) -> Any:
        """Holds up "request", "reply" or both."""
        for each in directions:
            self._open[each].clear()
        try:
            yield
        finally:
            for each in directions:
                self._open[each].set()


@asynccontextmanager
async def relays(server: RedisServer, count: int) -> AsyncIterator[list[Relay]]:
    """Relays to one server, as many as there are nodes."""
    async with AsyncExitStack() as stack:
        yield [Relay(await stack.enter_async_context(cutter(server))) for _ in range(count)]
