"""The work of a hub among several that is counted in instructions; see gate/scenarios.py.

    scenarios.py LIBRARY [NAME ...]

`run.py --only instructions` starts it under valgrind. The redis-server is a process of its own, and
is not counted. A turn of the loop is counted once all has come that it will find.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import os
import socket
import stat
import sys
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from benchmarks.cluster.redis_server import RedisServer
from benchmarks.gate.scenarios import CONFIG, LATE, Meter, Peers, rounds, turns
from wsc_fast import Client, Hub, HubConfig, Identity, RedisBus
from wsc_fast._core.resp import RespReader
from wsc_fast.bus.redis import server
from wsc_fast.bus.redis.commands import Names, command
from wsc_fast.bus.redis.link import MOST_REPLY

TEXT = "x" * 128
SEVERAL = 32
NAMES = Names(b"wsc:")


class PatientLink(server.Link):
    """Reads all that is there in one turn, however slow valgrind is."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__(*callbacks)
        most = {"most": MOST_REPLY, "budget": LATE}
        RespReader.__init__(self, *callbacks[:2], self._replied, self.abort, **most)


class Side:
    """The hub's ends of its connections to Redis."""

    def __init__(self, port: int) -> None:
        self._numbers = [
            int(name) for name in os.listdir("/proc/self/fd") if _leads_to(int(name), port)
        ]

    def waiting(self) -> int:
        """Bytes that have come and are not read yet."""
        total = 0
        for number in self._numbers:
            found = array.array("i", [0])
            fcntl.ioctl(number, termios.FIONREAD, found)
            total += found[0]
        return total

    def settle(self, least: int = 1) -> None:
        """Returns once all has come that Redis has to say, which is so many bytes at least."""
        while self.waiting() < least:
            time.sleep(0.001)
        before = 0
        while (now := self.waiting()) != before:
            before = now
            time.sleep(0.02)


def _leads_to(number: int, port: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return False
        with socket.socket(fileno=os.dup(number)) as sock:
            return sock.family == socket.AF_INET and sock.getpeername()[1] == port
    except OSError:
        return False


class World:
    """A hub on a bus, with members of one room."""

    def __init__(self, hub: Hub, redis: RedisServer, peers: Peers, side: Side) -> None:
        self.hub, self.redis, self.peers, self.side = hub, redis, peers, side

    def publish(self, size: int) -> None:
        """Another hub publishes so many envelopes; they have come when this returns."""
        count = SEVERAL // size
        entry = b"- t 0 0 %d\n%b" % (len(TEXT), TEXT.encode())
        envelope = b"wsc1 p another - %d\n%b" % (size, entry * size)
        self.redis.send(command(b"PUBLISH", NAMES.channel("room"), envelope) * count)
        self.redis.discard(count)
        self.side.settle(count * len(envelope))


@asynccontextmanager
async def world(members: int, room: str = "room") -> AsyncIterator[World]:
    redis = RedisServer()
    hub = Hub(
        HubConfig(**CONFIG),
        authenticate=lambda request: Identity(user_id="user"),
        bus=RedisBus(redis.url),
    )
    hub.keep("kept*")

    @hub.on_client_connected
    def enter(client: Client) -> None:
        hub.join_room(client.id, room)

    try:
        await hub.start("127.0.0.1", 0)
        peers = Peers(hub.port, members)
        while hub.get_connected_clients() < members:
            await turns()
        peers.upgraded()
        here = World(hub, redis, peers, Side(redis.port))
        await asyncio.sleep(0.1)
        yield here
        peers.close()
        while hub.get_connected_clients():
            await turns()
        await hub.stop()
    finally:
        redis.close()


async def local(meter: Meter, name: str, members: int) -> int:
    """The same on a hub without a bus."""
    hub = Hub(HubConfig(**CONFIG), authenticate=lambda request: Identity(user_id="user"))
    hub.create_room("room")
    hub.on_client_connected(lambda client: hub.join_room(client.id, "room"))
    await hub.start("127.0.0.1", 0)
    peers = Peers(hub.port, members)
    while hub.get_connected_clients() < members:
        await turns()
    peers.upgraded()

    async def one(counting: Any) -> int:
        with counting:
            for _ in range(SEVERAL):
                hub.broadcast_to_room("room", TEXT)
            await turns()
        assert peers.drain() == members * SEVERAL * (4 + len(TEXT))
        return SEVERAL

    count = await rounds(meter, name, one)
    peers.close()
    while hub.get_connected_clients():
        await turns()
    await hub.stop()
    return count


async def remote(meter: Meter, name: str, members: int, size: int) -> int:
    """Messages of another hub, so many of them in an envelope."""
    async with world(members) as here:

        async def one(counting: Any) -> int:
            here.publish(size)
            with counting:
                await turns(3)
            assert here.peers.drain() == members * SEVERAL * (4 + len(TEXT))
            return SEVERAL

        return await rounds(meter, name, one)


async def publish(meter: Meter, name: str, at_once: int, *, waits: bool) -> int:
    """Publishes to one kept room that nobody here is in."""
    async with world(1, "nothing") as here:

        async def one(counting: Any) -> int:
            tasks = []
            with counting:
                for _ in range(at_once):
                    if waits:
                        tasks.append(asyncio.ensure_future(here.hub.publish("kept", TEXT)))
                    else:
                        here.hub.broadcast_to_room("kept", TEXT)
                await turns(3)
            while here.hub.bus.counters()["waiting_bytes"]:  # type: ignore[union-attr]
                here.side.settle()
                with counting:
                    await turns(3)
            await asyncio.gather(*tasks)
            return at_once

        return await rounds(meter, name, one)


SCENARIOS: dict[str, Callable[[Meter, str], Awaitable[int]]] = {}
for _members in (1, 100):
    SCENARIOS[f"local, room of {_members}"] = lambda m, n, c=_members: local(m, n, c)
    SCENARIOS[f"remote, room of {_members}"] = lambda m, n, c=_members: remote(m, n, c, 1)
    SCENARIOS[f"remote in envelopes of 32, room of {_members}"] = lambda m, n, c=_members: remote(
        m, n, c, SEVERAL
    )
SCENARIOS |= {
    "`await hub.publish`, alone": lambda m, n: publish(m, n, 1, waits=True),
    "`await hub.publish`, 32 in a turn": lambda m, n: publish(m, n, SEVERAL, waits=True),
    "`broadcast_to_room` to a kept room, 32 in a turn": lambda m, n: publish(
        m, n, SEVERAL, waits=False
    ),
}


async def main(library: str, names: list[str]) -> None:
    server.Link = PatientLink  # type: ignore[misc]
    meter = Meter(library)
    print(json.dumps({name: await SCENARIOS[name](meter, name) for name in names or SCENARIOS}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2:]))
