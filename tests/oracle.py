"""A model of what each client must get, driven by random hub calls against slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import random

from wsc_fast import Hub
from wsc_fast.testing import CLOSE, PING, RawClient

END = b"end of the fuzz"


class Oracle:
    """Calls the hub at random and knows, per client, the messages that have to arrive, in order.

    Args:
        hub: with outboxes that never overflow here.
        raws: the raw end of each client, by id.
        seed: printed, so that a failure can be repeated.
        sizes: payload sizes to choose from; one size only makes frames differ in nothing else.
        leaving: whether clients are disconnected on the way; those get a prefix, then the close.
    """

    def __init__(
        self,
        hub: Hub,
        raws: dict[str, RawClient],
        seed: object,
        sizes: list[int],
        *,
        leaving: bool = False,
    ) -> None:
        print(f"oracle seed: {seed!r}")
        self.hub = hub
        self.raws = raws
        self.draw = random.Random(repr(seed))
        self.sizes = sizes
        self.leaving = leaving
        self.number = 0
        self.open = sorted(raws)
        self.rooms: dict[str, set[str]] = {}
        self.wanted: dict[str, list[bytes]] = {name: [] for name in raws}
        self.got: dict[str, list[bytes]] = {name: [] for name in raws}
        self.gates = {name: asyncio.Event() for name in raws}

    async def run(self, steps: int) -> None:
        """Plays, then lets everybody read to the end and compares."""
        readers = [asyncio.ensure_future(self._read(name)) for name in self.raws]
        try:
            for _ in range(steps):
                self._step()
                if self.draw.random() < 0.3:
                    await asyncio.sleep(0)
            for gate in self.gates.values():
                gate.set()
            self.hub.broadcast(END)
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()
        for name in self.raws:
            assert self.got[name] == self.wanted[name], f"the stream of {name} differs"
        for room, members in self.rooms.items():
            assert set(self.hub.get_room_clients(room)) == members

    async def _read(self, name: str) -> None:
        raw, got, gate = self.raws[name], self.got[name], self.gates[name]
        while True:
            await gate.wait()
            frame = await raw.recv(30.0)
            if frame.opcode == PING:  # of the heartbeat, where this takes long
                continue
            if frame.opcode == CLOSE or frame.payload == END:
                break
            got.append(frame.payload)
        if frame.opcode == CLOSE:
            # A client that has gone would hold the loop up at the end otherwise.
            with contextlib.suppress(ConnectionError):
                await raw.send(CLOSE, frame.payload)

    def _payload(self) -> bytes:
        self.number += 1
        size = self.draw.choice(self.sizes)
        return (b"%012d" % self.number * (size // 12 + 1))[:size]

    def _some(self, most: int) -> list[str]:
        return self.draw.sample(self.open, min(len(self.open), self.draw.randint(0, most)))

    def _step(self) -> None:
        draw, hub = self.draw, self.hub
        action = draw.random()
        if action < 0.35:
            payload, excluded = self._payload(), self._some(5)
            assert hub.broadcast(payload, exclude=excluded) == len(self.open) - len(excluded)
            self._expect(set(self.open) - set(excluded), payload)
        elif action < 0.55 and self.rooms:
            room = draw.choice(sorted(self.rooms))
            payload, excluded = self._payload(), self._some(5)
            to = self.rooms[room] - set(excluded)
            assert hub.broadcast_to_room(room, payload, exclude=excluded) == len(to)
            self._expect(to, payload)
        elif action < 0.75:
            for name in self._some(8):
                payload = self._payload()
                hub.send_to_client(name, payload)
                self._expect({name}, payload)
        elif action < 0.80:
            room = f"room {draw.randint(0, 5)}"
            if room in self.rooms:
                hub.delete_room(room)
                del self.rooms[room]
            else:
                hub.create_room(room)
                self.rooms[room] = set()
        elif action < 0.90 and self.rooms:
            room = draw.choice(sorted(self.rooms))
            for name in self._some(10):
                if draw.random() < 0.7:
                    hub.join_room(name, room)
                    self.rooms[room].add(name)
                else:
                    hub.leave_room(name, room)
                    self.rooms[room].discard(name)
        elif action < 0.99 or not self.leaving or len(self.open) < 3:
            for name in self._some(4):
                gate = self.gates[name]
                gate.clear() if gate.is_set() else gate.set()
        else:
            name = self.open.pop(draw.randrange(len(self.open)))
            client = hub.get_client_by_id(name)
            assert client is not None
            client.disconnect()
            for members in self.rooms.values():
                members.discard(name)

    def _expect(self, names: set[str], payload: bytes) -> None:
        for name in names:
            self.wanted[name].append(payload)
