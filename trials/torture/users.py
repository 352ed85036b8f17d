"""The users of a scenario: clients that come and go, and do what docs/wire.md asks of a client.

A user has one connection at a time, to one of the crowd's doors. Each connection drops ids that it
knows. What else it does depends on the mood of the crowd:

    BUSY    comes and goes, also in the middle of a message; acknowledges now and then late, or not
            before it leaves
    CALM    stays where it is, acknowledges everything at once, and connects where it is not
    AWAY    leaves, and does not come back
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections import deque
from enum import Enum, auto
from typing import Any, Self

import aiohttp

from trials.torture.ledger import Ledger

# Seconds in which a server has to answer an upgrade, and a close frame.
UPGRADE, CLOSE = 10.0, 1.0
# How much of a user's history a report shows.
HISTORY = 8


class Mood(Enum):
    BUSY = auto()
    CALM = auto()
    AWAY = auto()


class Door:
    """An address that users connect to, whoever serves it at the time.

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
    """All users of a scenario."""

    def __init__(self, names: list[str], ledger: Ledger) -> None:
        self.ledger = ledger
        self.users = {name: User(name, self) for name in names}
        self.doors: list[Door] = []
        self.mood = Mood.AWAY
        self.session: aiohttp.ClientSession
        self._lives: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._lives = [asyncio.create_task(user.live()) for user in self.users.values()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await self.session.close()
        for door in self.doors:
            door.socket.close()

    def be(self, mood: Mood) -> None:
        """Tells all users how to behave from now on."""
        self.mood = mood
        for user in self.users.values():
            user.told.set()

    def absent(self) -> list[User]:
        """Users who are not connected."""
        return [user for user in self.users.values() if user.door is None]

    def check(self) -> None:
        """Raises what ended the life of a user: a mistake in here."""
        for life in self._lives:
            if life.done():
                life.result()


class User:
    """An application's user, with the ids that it knows."""

    def __init__(self, name: str, crowd: Crowd) -> None:
        self.name = name
        self.told = asyncio.Event()  # the mood has changed, or the connection has ended
        self.door: Door | None = None  # while connected
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._crowd = crowd
        self._known: set[str] = set()
        self._unanswered: deque[str] = deque()
        self._left = False

    def history(self) -> str:
        """The last events of this user, for reports."""
        return ", ".join(self._history) or "was never connected"

    async def live(self) -> None:
        while True:
            if self._crowd.mood is Mood.AWAY or not self._crowd.doors:
                self.told.clear()
                await self.told.wait()
                continue
            with contextlib.suppress(aiohttp.ClientError, OSError):  # TimeoutError is one
                await self._visit(random.choice(self._crowd.doors))
            await asyncio.sleep(random.random() * 0.1)

    async def _visit(self, door: Door) -> None:
        url = f"ws://127.0.0.1:{door.port}/ws?user={self.name}"
        async with asyncio.timeout(UPGRADE):
            connection = await self._crowd.session.ws_connect(
                url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE)
            )
        self.door = door
        self._note(f"came to {door.name}")
        self._unanswered.clear()
        self._left = False
        guide = asyncio.create_task(self._guide(connection))
        try:
            await self._read(connection, door)
        finally:
            self.door = None
            self.told.set()
            await asyncio.wait([guide])
            left = self._left or not connection.closed
            await connection.close()
            self._note("left" if left else f"was closed ({connection.close_code})")

    async def _read(self, connection: aiohttp.ClientWebSocketResponse, door: Door) -> None:
        leave_after = random.randint(5, 200)  # messages
        async for frame in connection:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                return
            self._take(json.loads(frame.data), door)
            leave_after -= 1
            if leave_after <= 0 and self._crowd.mood is Mood.BUSY:
                return  # with what is not acknowledged yet
            if self._crowd.mood is Mood.CALM or random.random() < 0.7:
                await self._acknowledge(connection)

    def _take(self, message: dict[str, Any], door: Door) -> None:
        ledger = self._crowd.ledger
        sender, number = message["content"].split()
        if message["to"] != self.name:
            ledger.violate("astray", f"{self.name} saw {sender} {number} of {message['to']}")
        elif message["id"] in self._known:
            ledger.copies += 1
        else:
            self._known.add(message["id"])
            ledger.see(self.name, (sender, int(number)), f"{ledger.now()} from {door.name}")
        self._unanswered.append(message["id"])

    async def _acknowledge(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        while self._unanswered:
            answer = {"type": "ack", "message_id": self._unanswered.popleft()}
            await connection.send_str(json.dumps(answer))

    async def _guide(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Does what the mood of the crowd asks of this connection."""
        until = asyncio.get_running_loop().time() + random.uniform(0.05, 1.0)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            while self.door is not None:
                self.told.clear()
                if self._crowd.mood is Mood.AWAY:
                    break
                if self._crowd.mood is Mood.CALM:
                    await self._acknowledge(connection)
                try:
                    async with asyncio.timeout_at(until if self._crowd.mood is Mood.BUSY else None):
                        await self.told.wait()
                except TimeoutError:
                    break
            if self.door is not None:
                await self._leave(connection)

    async def _leave(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._left = True
        if random.random() < 0.5:
            transport_socket = connection.get_extra_info("socket")
            if transport_socket is not None:
                transport_socket.shutdown(socket.SHUT_RDWR)
        await connection.close()

    def _note(self, event: str) -> None:
        self._history.append(f"{self._crowd.ledger.now()} {event}")
