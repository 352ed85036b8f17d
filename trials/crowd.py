"""Crowds of clients that come and go, for the scenarios of `torture` and `torture_cluster`.

A member has one connection at a time, to one of the crowd's doors. Its behaviour depends on its
mood:

    BUSY    comes and goes
    CALM    stays where it is, and connects where it is not
    AWAY    leaves, and does not come back
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Self

import aiohttp

# Seconds for which a member is away at most.
PAUSE = 0.1


class Mood(Enum):
    BUSY = auto()
    CALM = auto()
    AWAY = auto()


class Door:
    """An address that clients connect to, whoever serves it at the time.

    With `shared` it is a listening socket that each server inherits, as from a service manager.
    Without, each server listens by itself (SO_REUSEPORT), and the port is kept free for them.
    """

    def __init__(self, name: str, *, shared: bool = False) -> None:
        self.name = name
        self.shared = shared
        self.socket = socket.socket()
        if not shared:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(("127.0.0.1", 0))
        if shared:
            self.socket.listen(100)
        self.port = int(self.socket.getsockname()[1])


class Crowd:
    """All clients of a scenario.

    Attributes:
        doors: the addresses of the servers.
    """

    def __init__(self) -> None:
        self.doors: list[Door] = []
        self.session: aiohttp.ClientSession
        self._lives: list[asyncio.Task[None]] = []

    @property
    def members(self) -> Sequence[Member]:
        """All clients of it, for subclasses."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._lives = [asyncio.create_task(member.live()) for member in self.members]
        return self

    async def __aexit__(self, *_: object) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await self.session.close()
        for door in self.doors:
            door.socket.close()

    def be(self, mood: Mood, members: Iterable[Member] | None = None) -> None:
        """Tells all members, or these, how to behave from now on."""
        for member in self.members if members is None else members:
            member.mood = mood
            member.told.set()

    def check(self) -> None:
        """Raises what ended the life of a member: a mistake in here."""
        for life in self._lives:
            if life.done():
                life.result()


class Member:
    """One client, over all of its connections.

    Attributes:
        told: the mood has changed, or the connection has ended.
        mood: see above.
        door: while connected.
    """

    def __init__(self, name: str, crowd: Crowd) -> None:
        self.name = name
        self.told = asyncio.Event()
        self.mood = Mood.AWAY
        self.door: Door | None = None
        self._crowd = crowd

    async def live(self) -> None:
        while True:
            if self.mood is Mood.AWAY or not self._crowd.doors:
                self.told.clear()
                await self.told.wait()
                continue
            with contextlib.suppress(aiohttp.ClientError, OSError):  # TimeoutError is one
                await self._visit(random.choice(self._crowd.doors))
            await asyncio.sleep(random.random() * PAUSE)

    async def _visit(self, door: Door) -> None:
        """One connection, from its beginning to its end."""
        raise NotImplementedError

    @property
    def query(self) -> str:
        """It says who comes."""
        return f"user={self.name}"

    async def _connect(
        self, door: Door, upgrade: float, close: float, protocols: tuple[str, ...] = ()
    ) -> aiohttp.ClientWebSocketResponse:
        """Connects; a server has these seconds to answer the upgrade, and a close frame."""
        async with asyncio.timeout(upgrade):
            return await self._crowd.session.ws_connect(
                f"ws://127.0.0.1:{door.port}/ws?{self.query}",
                protocols=protocols,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=close),
            )

    async def _told_until(self, time: float) -> bool:
        """Waits until it is told something; False: it is that time, and it is busy."""
        self.told.clear()
        try:
            async with asyncio.timeout_at(time if self.mood is Mood.BUSY else None):
                await self.told.wait()
        except TimeoutError:
            return False
        return True


async def hang_up(connection: aiohttp.ClientWebSocketResponse) -> None:
    """Ends a connection, politely or without a word."""
    transport_socket = connection.get_extra_info("socket")
    if transport_socket is not None and random.random() < 0.5:
        transport_socket.shutdown(socket.SHUT_RDWR)
    await connection.close()
