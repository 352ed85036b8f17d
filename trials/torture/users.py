"""The users of a scenario: clients that come and go, and do what docs/wire.md asks of a client.

A user has one device or several. Each has one connection at a time, to one of the crowd's doors,
and drops ids that it knows. What else it does depends on its mood:

    BUSY    comes and goes, also in the middle of a message; acknowledges now and then late, or not
            before it leaves, or sends an acknowledgement that gets lost, or says "failed"
    CALM    stays where it is, acknowledges everything at once, and connects where it is not
    AWAY    leaves, and does not come back

A message may say in its data how it wants to be answered: "confirmed" or "failed", or "nothing" on
the first connection that brings it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any, Self

import aiohttp

from trials.torture.ledger import Ledger

# Seconds in which a server has to answer an upgrade, and a close frame.
UPGRADE, CLOSE = 10.0, 1.0
# How much of a device's history a report shows, and how many connections are known.
HISTORY, VISITS = 8, 50
# While a device is busy: of so many acknowledgements one says "failed", and of so many one is lost.
FAILED, LOST = 50, 20


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

    def __init__(self, names: Sequence[str], ledger: Ledger, devices: int = 1) -> None:
        self.ledger = ledger
        self.doors: list[Door] = []
        self.users = {name: User(name, devices, self) for name in names}
        self.devices = [device for user in self.users.values() for device in user.devices]
        self.session: aiohttp.ClientSession
        self._lives: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._lives = [asyncio.create_task(device.live()) for device in self.devices]
        return self

    async def __aexit__(self, *_: object) -> None:
        for life in self._lives:
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await self.session.close()
        for door in self.doors:
            door.socket.close()

    def be(self, mood: Mood, users: Iterable[User] | None = None) -> None:
        """Tells all users, or these, how to behave from now on."""
        for user in self.users.values() if users is None else users:
            for device in user.devices:
                device.be(mood)

    def absent(self) -> list[Device]:
        """Devices that are not connected."""
        return [device for device in self.devices if device.door is None]

    def check(self) -> None:
        """Raises what ended the life of a device: a mistake in here."""
        for life in self._lives:
            if life.done():
                life.result()


class User:
    """An application's user."""

    def __init__(self, name: str, devices: int, crowd: Crowd) -> None:
        self.name = name
        # A single device needs no name.
        names = [""] if devices == 1 else [f"/{letter}" for letter in "abcd"[:devices]]
        self.devices = [Device(name, each, crowd) for each in names]

    def where(self) -> str:
        """The doors that the user is connected to."""
        doors = [device.door.name for device in self.devices if device.door is not None]
        return f"connected to {' and '.join(doors)}" if doors else "away"

    def history(self) -> str:
        """The last events of this user, for reports."""
        return "; ".join(f"{device}: {device.history()}" for device in self.devices)


class Device:
    """A device of a user, with the ids that it knows."""

    def __init__(self, user: str, name: str, crowd: Crowd) -> None:
        self.told = asyncio.Event()  # the mood has changed, or the connection has ended
        self.mood = Mood.AWAY
        self.door: Door | None = None  # while connected
        self.user = user
        self.name = name
        # When its last connections began and ended, on the monotonic clock.
        self.visits: deque[tuple[float, float]] = deque(maxlen=VISITS)
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._crowd = crowd
        self._known: set[str] = set()
        self._unanswered: deque[dict[str, Any]] = deque()
        self._ignored: set[str] = set()
        self._connections = 0
        self._left = False

    def __str__(self) -> str:
        return f"{self.user}{self.name}"

    def history(self) -> str:
        """The last events of this device, for reports."""
        return ", ".join(self._history) or "was never connected"

    def be(self, mood: Mood) -> None:
        """Tells it how to behave from now on."""
        self.mood = mood
        self.told.set()

    async def live(self) -> None:
        while True:
            if self.mood is Mood.AWAY or not self._crowd.doors:
                self.told.clear()
                await self.told.wait()
                continue
            with contextlib.suppress(aiohttp.ClientError, OSError):  # TimeoutError is one
                await self._visit(random.choice(self._crowd.doors))
            await asyncio.sleep(random.random() * 0.1)

    async def _visit(self, door: Door) -> None:
        url = f"ws://127.0.0.1:{door.port}/ws?user={self.user}&device={self.name[1:]}"
        async with asyncio.timeout(UPGRADE):
            connection = await self._crowd.session.ws_connect(
                url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE)
            )
        self.door = door
        self.visits.append((time.monotonic(), math.inf))
        self._connections += 1
        self._note(f"came to {door.name}")
        self._unanswered.clear()
        self._ignored.clear()
        self._left = False
        guide = asyncio.create_task(self._guide(connection))
        try:
            await self._read(connection, door)
        finally:
            self.door = None
            self.visits.append((self.visits.pop()[0], time.monotonic()))
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
            if leave_after <= 0 and self.mood is Mood.BUSY:
                return  # with what is not acknowledged yet
            if self.mood is Mood.CALM or random.random() < 0.7:
                await self._acknowledge(connection)

    def _take(self, message: dict[str, Any], door: Door) -> None:
        ledger = self._crowd.ledger
        sender, number = message["content"].split()
        wanted = (message.get("data") or {}).get("answer")
        if message["to"] != self.user:
            ledger.violate("astray", f"{self} saw {sender} {number} of {message['to']}")
        elif message["id"] in self._known:
            ledger.copies += 1
        else:
            self._known.add(message["id"])
            when = f"{ledger.now()} from {door.name} on connection {self._connections}"
            ledger.see(self.user, (sender, int(number)), when, self.name)
            if wanted == "nothing":
                self._ignored.add(message["id"])
        if message.get("require_ack") and message["id"] not in self._ignored:
            self._unanswered.append(self._answer(message["id"], wanted))

    def _answer(self, message_id: str, wanted: str | None) -> dict[str, Any]:
        answer = {"type": "ack", "message_id": message_id}
        by_chance = wanted is None and self.mood is Mood.BUSY and random.randrange(FAILED) == 0
        if by_chance or wanted == "failed":
            answer |= {"status": "failed", "error": f"{self} does not want it"}
        return answer

    async def _acknowledge(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        while self._unanswered:
            answer = self._unanswered.popleft()
            if self.mood is not Mood.BUSY or random.randrange(LOST):
                await connection.send_str(json.dumps(answer))
                user, sender, number = answer["message_id"].split()[:3]
                self._crowd.ledger.answer(user, (sender, int(number)))

    async def _guide(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Does what its mood asks of this connection."""
        until = asyncio.get_running_loop().time() + random.uniform(0.05, 1.0)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            while self.door is not None:
                self.told.clear()
                if self.mood is Mood.AWAY:
                    break
                if self.mood is Mood.CALM:
                    await self._acknowledge(connection)
                try:
                    async with asyncio.timeout_at(until if self.mood is Mood.BUSY else None):
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
