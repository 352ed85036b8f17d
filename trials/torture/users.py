"""The users of a scenario: clients that come and go, and do what docs/wire.md asks of a client.

Each connection of a user drops ids that it knows, and behaves as the mood of the crowd asks
(trials/crowd.py). A BUSY user also leaves in the middle of a message, and acknowledges now
and then late, or not before it leaves. A CALM one acknowledges everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import aiohttp

from trials import crowd
from trials.crowd import Door, Mood, hang_up
from trials.torture.ledger import Ledger

# Seconds in which a server has to answer an upgrade, and a close frame.
UPGRADE, CLOSE = 10.0, 1.0
# How much of a user's history a report shows.
HISTORY = 8


class Crowd(crowd.Crowd):
    """All users of a scenario."""

    def __init__(self, names: list[str], ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.users = {name: User(name, self) for name in names}

    @property
    def members(self) -> Sequence[User]:
        return [*self.users.values()]

    def absent(self) -> list[User]:
        """Users who are not connected."""
        return [user for user in self.members if user.door is None]


class User(crowd.Member):
    """An application's user, with the ids that it knows."""

    _crowd: Crowd

    def __init__(self, name: str, crowd: Crowd) -> None:
        super().__init__(name, crowd)
        self._history: deque[str] = deque(maxlen=HISTORY)
        self._known: set[str] = set()
        self._unanswered: deque[str] = deque()
        self._left = False

    def history(self) -> str:
        """The last events of this user, for reports."""
        return ", ".join(self._history) or "was never connected"

    async def _visit(self, door: Door) -> None:
        connection = await self._connect(door, UPGRADE, CLOSE)
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
            while self.door is not None and self._crowd.mood is not Mood.AWAY:
                self.told.clear()
                if self._crowd.mood is Mood.CALM:
                    await self._acknowledge(connection)
                if not await self._told_until(until):
                    break
            if self.door is not None:
                self._left = True
                await hang_up(connection)

    def _note(self, event: str) -> None:
        self._history.append(f"{self._crowd.ledger.now()} {event}")
