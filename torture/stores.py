"""Where the servers of a scenario keep their messages, and how that goes away and comes back.

Each place is an asynchronous context manager with

    url             what a server is given
    within          a command before that of a server, for a disk of its own
    away, back      away(at_start=True) before a server starts, away() while it runs
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import socket
import sqlite3
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

REDIS = shutil.which("redis-server") or shutil.which("valkey-server")


class Place:
    """What all places have in common."""

    url: str
    within: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.back()

    async def away(self, *, at_start: bool = False) -> str:
        """Takes the store away; returns how, in a few words."""
        raise NotImplementedError

    async def back(self) -> None:
        """Brings it back; harmless if it is there."""


class SQLiteFile(Place):
    """A file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._home = directory / "store"
        self._home.mkdir()
        self._elsewhere = directory / "elsewhere"
        self._lock: sqlite3.Connection | None = None
        self.url = str(self._home / "offline.db")

    async def away(self, *, at_start: bool = False) -> str:
        if at_start and random.random() < 0.5:
            self._home.rename(self._elsewhere)
            return "its directory is not there"
        await asyncio.to_thread(self._take_lock, at_start)
        return "another process has locked it"

    def _take_lock(self, at_start: bool) -> None:
        db = sqlite3.connect(self.url, timeout=10, isolation_level=None, check_same_thread=False)
        if at_start:
            # Nobody else has it open: nobody can read it either.
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
        else:
            db.execute("BEGIN IMMEDIATE")
        self._lock = db

    async def back(self) -> None:
        if self._elsewhere.exists():
            self._elsewhere.rename(self._home)
        if self._lock is not None:
            db, self._lock = self._lock, None
            await asyncio.to_thread(self._let_go, db)

    def _let_go(self, db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK")
        db.close()


class Redis(Place):
    """A Redis server, which keeps its data when it is killed and started again."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = int(sock.getsockname()[1])
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._paused = False
        self.url = f"redis://127.0.0.1:{self._port}/0"

    async def __aenter__(self) -> Self:
        await self.back()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._kill()

    async def away(self, *, at_start: bool = False) -> str:
        if not at_start and random.random() < 0.5:
            assert self._process is not None
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True
            return "Redis hangs"
        await self._kill()
        return "Redis is killed"

    async def _kill(self) -> None:
        process, self._process, self._paused = self._process, None, False
        if process is not None:
            process.kill()
            await process.wait()

    async def back(self) -> None:
        if self._paused:
            assert self._process is not None
            self._process.send_signal(signal.SIGCONT)
            self._paused = False
        if self._process is None:
            assert REDIS is not None
            self._process = await asyncio.create_subprocess_exec(
                *(REDIS, "--bind", "127.0.0.1", "--port", str(self._port)),
                *("--dir", str(self._directory), "--appendonly", "yes", "--save", ""),
                *("--logfile", "redis.log"),
            )
        while not await self._answers():
            if self._process.returncode is not None:
                raise SystemExit(f"redis-server has ended: see {self._directory}/redis.log")
            await asyncio.sleep(0.02)

    async def _answers(self) -> bool:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            return answer.startswith(b"+PONG")
        return False


class SmallDisk(Place):
    """An SQLite file on a disk of a few megabytes, which nobody else can see.

    It is a tmpfs in a mount namespace. A process that sleeps keeps it, whatever happens to the
    servers within.
    """

    def __init__(self, directory: Path, megabytes: int) -> None:
        self._mount = directory / "disk"
        self._mount.mkdir()
        self._megabytes = megabytes
        self._keeper: asyncio.subprocess.Process | None = None
        self.url = str(self._mount / "offline.db")

    async def __aenter__(self) -> Self:
        mount = f"mount -t tmpfs -o size={self._megabytes}m none '{self._mount}'"
        self._keeper = await asyncio.create_subprocess_exec(
            *("unshare", "--user", "--map-root-user", "--mount"),
            *("sh", "-c", f"{mount} && echo mounted && exec sleep infinity"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._keeper.stdout is not None
        if await self._keeper.stdout.readline() != b"mounted\n":
            raise SystemExit("no mount namespace: is unshare allowed to make user namespaces?")
        self.within = [
            *("nsenter", "--preserve-credentials", "--user", "--mount", "--wd"),
            *("--target", str(self._keeper.pid)),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._keeper is not None
        self._keeper.kill()
        await self._keeper.wait()

    async def renew(self, taken: int) -> None:
        """An empty disk, of which another program has taken so many bytes; no server runs."""
        disk = f"'{self._mount}'"
        process = await asyncio.create_subprocess_exec(
            *self.within,
            *("sh", "-c", f"rm -f {disk}/* && head -c {taken} /dev/zero > {disk}/other"),
        )
        assert await process.wait() == 0


async def has_small_disks() -> bool:
    """Whether mount namespaces are allowed here."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--map-root-user", "--mount"),
        *("mount", "-t", "tmpfs", "none", "/mnt"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0
