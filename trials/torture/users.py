"""The users of a scenario: clients that come and go, and do what docs/wire.md asks of a client.

A user has one device or several. Each drops ids that it knows, and behaves as its mood asks
(trials/crowd.py). A BUSY one also leaves in the middle of a message, and acknowledges now and then
late, or not before it leaves, or sends an acknowledgement that gets lost, or says "failed". A CALM
one acknowledges everything at once.

A message may say in its data how it wants to be answered: "confirmed" or "failed", or "nothing" on
the first connection that brings it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import aiohttp

from trials import crowd
from trials.crowd import Door, Mood, hang_up
from trials.torture.ledger import Ledger

# Seconds in which a server has to answer an upgrade, and a close frame.
UPGRADE, CLOSE = 10.0, 1.0
# How much of a device's history a report shows, and how many connections are known.
HISTORY, VISITS = 8, 50
# While a device is busy: of so many acknowledgements one says "failed", and of so many one is lost.
FAILED, LOST = 50, 20


class Crowd(crowd.Crowd):
    """All users of a scenario."""

    def __init__(self, names: Sequence[str], ledger: Ledger, devices: int = 1) -> None:
        super().__init__()
        self.ledger = ledger
        self.users = {name: User(name, devices, self) for name in names}
        self._devices = [device for user in self.users.values() for device in user.devices]

    @property
    def members(self) -> Sequence[Device]:
        return self._devices

    def absent(self) -> list[Device]:
        """Devices that are not connected."""
        return [device for device in self.members if device.door is None]


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


class Device(crowd.Member):
    """A device of a user, with the ids that it knows."""

    _crowd: Crowd

    def __init__(self, user: str, name: str, crowd: Crowd) -> None:
        super().__init__(name, crowd)
        self.user = user
        # When its last connections began and ended, on the monotonic clock.
        self.visits: deque[tuple[float, float]] = deque(maxlen=VISITS)
        self._history: deque[str] = deque(maxlen=HISTORY)
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

    @property
    def query(self) -> str:
        return f"user={self.user}&device={self.name[1:]}"

    async def _visit(self, door: Door) -> None:
        connection = await self._connect(door, UPGRADE, CLOSE)
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
            while self.door is not None and self.mood is not Mood.AWAY:
                self.told.clear()
                if self.mood is Mood.CALM:
                    await self._acknowledge(connection)
                if not await self._told_until(until):
                    break
            if self.door is not None:
                self._left = True
                await hang_up(connection)

    def _note(self, event: str) -> None:
        self._history.append(f"{self._crowd.ledger.now()} {event}")
