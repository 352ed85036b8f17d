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
import sqlite3
from pathlib import Path
from typing import Self

from tests.redis_server import PROGRAM, RedisServer

# A long log of changes would take a server long to read when it starts again.
OPTIONS = "--auto-aof-rewrite-min-size", "1mb"
# A command in a mount namespace of its own, where it may mount.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


class Place:
    """The base of all places."""

    url: str
    within: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
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

    def __init__(self, directory: Path, *, program: str | None = PROGRAM) -> None:
        self.server = RedisServer(directory, *OPTIONS, program=program)

    async def __aenter__(self) -> Self:
        await self.back()
        self.url = self.server.url
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.server.kill)

    async def away(self, *, at_start: bool = False) -> str:
        if not at_start and random.random() < 0.5:
            self.server.pause()
            return "Redis hangs"
        await asyncio.to_thread(self.server.kill)
        return "Redis is killed"

    async def crash(self, *options: str) -> None:
        """kill -9, and started again with its data; these options hold from now on."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(random.choice([0, 0.3]))
        self.server.options = (*OPTIONS, *options)
        await asyncio.to_thread(self.server.start)

    async def back(self) -> None:
        if self.server.process is None:
            await asyncio.to_thread(self.server.start)
        else:
            self.server.resume()
            await asyncio.to_thread(self.server.command, "PING")


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
            *UNSHARE,
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

    async def __aexit__(self, *_: object) -> None:
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


def has_redis() -> bool:
    return PROGRAM is not None


async def has_small_disks() -> bool:
    """Whether mount namespaces are allowed here."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    process = await asyncio.create_subprocess_exec(
        *UNSHARE,
        *("mount", "-t", "tmpfs", "none", "/mnt"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0
