"""The clients of a scenario: they hop between the nodes, and remember positions.

An aware client does what docs/wire.md asks of one. An unaware one only reads. They come and go as
the mood of the crowd asks (trials/crowd.py), to any node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import aiohttp

from trials import crowd
from trials.crowd import Door, Mood, hang_up
from trials.torture_cluster.findings import Findings
from trials.torture_cluster.record import Record
from trials.torture_cluster.texts import PLAIN, kept_rooms
from trials.torture_cluster.views import PlainView, RoomView, UnawareView

# Seconds in which a node has to answer an upgrade, and a close frame; else the client goes on.
UPGRADE, CLOSE = 2.0, 0.3
# Seconds for which a client stays, on average.
STAY = 0.7


class Crowd(crowd.Crowd):
    """All clients of a scenario.

    Attributes:
        counts: deliveries, reconnects, and joins that were and were not recovered, and gaps.
        failure: the first mistake in here.
    """

    def __init__(self, aware: int, unaware: int, rooms: int, findings: Findings) -> None:
        super().__init__()
        self.findings = findings
        self.stay = STAY
        self.counts: Counter[str] = Counter()
        self.aware = [AwareClient(f"aware{n}", self, rooms) for n in range(aware)]
        self.unaware = [UnawareClient(f"unaware{n}", self) for n in range(unaware)]

    @property
    def members(self) -> Sequence[_Client]:
        return [*self.aware, *self.unaware]

    def behind(self, record: Record) -> list[str]:
        """The clients that are not connected, or do not have all that the record has."""
        absent = [client.name for client in self.members if client.door is None]
        return absent + [
            f"{view} is at {view.place}{'' if view.joined else ', not joined'}, "
            f"the top is {record.tops.get(view.room)}"
            for client in self.aware
            for view in client.views.values()
            if not view.joined or record.tops.get(view.room) not in (None, view.place)
        ]

    def without(self, plain: set[str], kept: dict[str, str]) -> list[str]:
        """The clients that have not got these messages: of the plain room, and by kept room."""
        found = [
            f"{client.name} on {client.door and client.door.name} lacks {sorted(lacking)}"
            for client in self.members
            if client.plain is None or (lacking := plain - client.plain.newest)
        ]
        return found + [
            f"{client.name} on {client.door and client.door.name} lacks {text!r}"
            for client in self.unaware
            for room, text in kept.items()
            if client.kept is None or text not in client.kept.texts.get(room, [])
        ]

    def untold(self, record: Record, accepted: Collection[str]) -> list[str]:
        """The losses that clients were not told of; see `RoomView.untold`."""
        views = (view for client in self.aware for view in client.views.values())
        return [text for view in views for text in view.untold(record, accepted)]

    def judge(self, record: Record, unsaid: set[str], *, lossless: bool) -> None:
        """Compares all that was seen since the last time with the record."""
        for client in self.aware:
            for view in client.views.values():
                view.judge(record, self.findings, lossless=lossless)
        for client in self.members:
            for plain in [*client.past, client.plain]:
                if plain is not None:
                    plain.judge(unsaid, self.findings)
            client.past.clear()
        for other in self.unaware:
            for kept in [*other.past_kept, other.kept]:
                if kept is not None:
                    kept.judge(record, self.findings, lossless=lossless)
            other.past_kept.clear()


class _Client(crowd.Member):
    """One client, over all of its connections.

    Attributes:
        plain: what this connection saw of the plain room.
        past: what former ones saw since the last judgement.
    """

    protocols: tuple[str, ...] = ()
    _crowd: Crowd

    def __init__(self, name: str, crowd: Crowd) -> None:
        super().__init__(name, crowd)
        self.plain: PlainView | None = None
        self.past: list[PlainView] = []

    async def _visit(self, door: Door) -> None:
        connection = await self._connect(door, UPGRADE, CLOSE, self.protocols)
        self._crowd.counts["reconnects"] += 1
        guide = asyncio.create_task(self._guide(connection))
        try:
            await self._connected(connection, door)
            self.door = door
            self.told.set()
            async for frame in connection:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    return
                self._take(frame.data)
        finally:
            self.door = None
            guide.cancel()
            await asyncio.wait([guide])
            await connection.close()
            self._left()

    async def _connected(self, connection: aiohttp.ClientWebSocketResponse, door: Door) -> None:
        self.plain = PlainView(f"{self.name} on {door.name}", aware=bool(self.protocols))

    def _take(self, data: str) -> None:
        raise NotImplementedError

    def _left(self) -> None:
        if self.plain is not None:
            self.past.append(self.plain)
            self.plain = None

    async def _guide(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        """Has the connection end as the mood of the crowd asks for it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + random.expovariate(1 / self._crowd.stay)
        while self.mood is not Mood.AWAY:
            if not await self._told_until(until):
                break
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await hang_up(connection)


class AwareClient(_Client):
    """A client that speaks wsc.1.

    Attributes:
        views: by kept room.
    """

    protocols = ("wsc.1",)

    def __init__(self, name: str, crowd: Crowd, rooms: int) -> None:
        super().__init__(name, crowd)
        self.views = {room: RoomView(name, room) for room in kept_rooms(rooms)}

    async def _connected(self, connection: aiohttp.ClientWebSocketResponse, door: Door) -> None:
        await super()._connected(connection, door)
        for view in self.views.values():
            view.connected(f"{door.name} {self._crowd.findings.now()}")
        places = {room: view.place for room, view in self.views.items() if view.place is not None}
        await connection.send_str(json.dumps({"hello": 1, "pos": places}) + "\n")

    def _take(self, data: str) -> None:
        line, _, payload = data.partition("\n")
        head: dict[str, Any] = json.loads(line) if line else {}
        counts, findings = self._crowd.counts, self._crowd.findings
        assert self.plain is not None
        room = head.get("room", head.get("gap"))
        if "pos" in head:
            self.views[room].head(head, payload, findings)
            counts["deliveries"] += "recovered" not in head and "gap" not in head
            counts["recovered"] += head.get("recovered") is True
            counts["not"] += head.get("recovered") is False and "first" not in head
            counts["gaps"] += "gap" in head
        elif "gap" in head and room == PLAIN:
            self.plain.gap()
        elif payload:
            counts["deliveries"] += 1
            self.plain.message(payload, findings)

    def _left(self) -> None:
        super()._left()
        for view in self.views.values():
            view.joined = False


class UnawareClient(_Client):
    """A client that knows nothing of positions.

    Attributes:
        kept: what this connection saw of kept rooms.
        past_kept: what former ones saw since the last judgement.
    """

    def __init__(self, name: str, crowd: Crowd) -> None:
        super().__init__(name, crowd)
        self.kept: UnawareView | None = None
        self.past_kept: list[UnawareView] = []

    async def _connected(self, connection: aiohttp.ClientWebSocketResponse, door: Door) -> None:
        await super()._connected(connection, door)
        self.kept = UnawareView(f"{self.name} on {door.name}")

    def _take(self, data: str) -> None:
        assert self.plain is not None
        assert self.kept is not None
        self._crowd.counts["deliveries"] += 1
        if data.startswith(f"{PLAIN} "):
            self.plain.message(data, self._crowd.findings)
        else:
            self.kept.message(data)

    def _left(self) -> None:
        super()._left()
        if self.kept is not None:
            self.past_kept.append(self.kept)
            self.kept = None
