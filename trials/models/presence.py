"""Presence in chaos: real buses over real servers, and a truth to compare with.

    python -m trials.models.presence SECONDS [SEED]

Each node is a RedisBus behind a relay of its own. Users hop between nodes and rooms. Each cycle has
some seconds of chaos and some of quiet, after which every question has to be answered by the truth,
and what listeners have pieced together from events and reads, too. The chaos:

    cut       a node loses its connections, for a moment or for longer than its lease
    hold      a relay keeps the bytes of one direction or both, the connection stays open; what was
              kept arrives later, also after the node has given the connection up
    kill      a node is cut for ever, and another one takes its place
    restart   the server is killed and starts with its data
    empty     the server is killed and starts without data
    failover  the master is killed, and a replica takes its place that had lost touch before

Times are a tenth of the real ones: lease 1 s, refresh 0.3 s, grace 0.5 s.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.no_words import NoWords
from tests.redis_server import RedisServer
from wsc_fast.bus.base import PRESENCE, Change, NodeState, Outgoing
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.cluster.views import Views

ROOMS, USERS = [f"r {n}" for n in range(4)], [f"u{n} {n}" for n in range(24)]
LEASE, REFRESH, GRACE = 1.0, 0.3, 0.5
CHAOS, QUIET = 5.0, 6.0
PREFIX = "wsc:"


class Relay:
    """A way to the server that can be cut, or hold what goes over it."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.port = 0
        self.is_cut = self.is_dead = False
        self.held = [asyncio.Event(), asyncio.Event()]  # set: bytes pass
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        for event in self.held:
            event.set()
        listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut or self.is_dead:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.servers.port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self.writers |= ends
        pumps = [
            asyncio.ensure_future(self.pump(reader, back, 0)),
            asyncio.ensure_future(self.pump(there, writer, 1)),
        ]
        self.tasks |= set(pumps)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(*pumps)
        for pump in pumps:
            pump.cancel()
        for end in ends:
            end.transport.abort()
        self.writers -= ends
        self.tasks -= set(pumps)

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int
    ) -> None:
        while data := await reader.read(1 << 16):
            await self.held[direction].wait()
            writer.write(data)
            await writer.drain()
        await self.held[direction].wait()  # a node that hangs up may be heard late
        writer.write_eof()

    def cut(self) -> None:
        for writer in list(self.writers):
            writer.transport.abort()


class Servers:
    """A master and, now and then, a replica of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.master = self.make()
        self.master.start()

    @property
    def port(self) -> int:
        return self.master.port

    def make(self) -> RedisServer:
        self.number += 1
        place = self.folder / str(self.number)
        place.mkdir()
        return RedisServer(place, "--appendfsync", "always")

    def restart(self) -> None:
        self.master.kill()
        self.master.start()

    def empty(self) -> None:
        port = self.master.port
        self.master.kill()
        self.master = self.make()
        self.master.port = port
        self.master.start()

    async def failover(self, lag: float) -> None:
        replica = self.make()
        await asyncio.to_thread(replica.start)
        replica.command("REPLICAOF", "127.0.0.1", self.port)
        for _ in range(300):
            if replica.command("INFO")["master_link_status"] == "up":
                break
            await asyncio.sleep(0.02)
        # It loses touch, and keeps what it has.
        replica.command("REPLICAOF", "127.0.0.1", "1")
        await asyncio.sleep(lag)
        await asyncio.to_thread(self.master.kill)
        replica.command("REPLICAOF", "NO", "ONE")
        self.master = replica


class Node(NoWords):
    """A hub as the bus sees it. Its clients are numbers."""

    def __init__(self, name: str, relay: Relay) -> None:
        self.name = name
        self.relay = relay
        self.here: Counter[tuple[str, str]] = Counter()
        url = f"redis://127.0.0.1:{relay.port}/0"
        self.bus = RedisBus(url, lease=LEASE, refresh=REFRESH, timeout=3.0)
        self.told: dict[str, set[str]] = {room: set() for room in ROOMS}
        self.views = Views(lambda: self.bus, self.tell, 2.5, 0.05)

    async def open(self) -> None:
        while True:
            try:
                await self.bus.open(self, self.name)
                await self.bus.lease(lambda: NodeState(len(self.here), False), lambda: GRACE)
            except Exception as error:
                if "refused" in str(error):
                    print("   ", error)
                await self.bus.close()
                await asyncio.sleep(0.1)
            else:
                break
        for room in ROOMS:
            self.views.follow(room)

    def tell(self, room: str, joined: set[str], left: set[str]) -> None:
        assert not joined & self.told[room], "told twice"
        assert left <= self.told[room], "told of a leave only"
        self.told[room] = (self.told[room] | joined) - left

    def change(self, user: str, rooms: Sequence[str], more: int) -> None:
        changes = []
        for room in ("", *rooms):
            self.here[room, user] += more
            changes.append(Change(room, user, self.here[room, user]))
            if not self.here[room, user]:
                del self.here[room, user]
        self.bus.directory(changes)

    # as bus.base.Handler

    def envelope(self, channel: str, data: bytes) -> bool:
        self.views.heard(channel.removeprefix(PRESENCE), data.decode())
        return True

    def takes_more(self) -> bool:
        return True

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        for each in channels:
            if each.startswith(PRESENCE):
                self.views.subscribed(each.removeprefix(PRESENCE), again)

    def up(self) -> None: ...
    def down(self, error: Exception) -> None: ...
    def not_published(self, outgoing: Outgoing, error: Exception) -> None: ...


class World:
    """All of it."""

    def __init__(self, folder: Path) -> None:
        self.servers = Servers(folder)
        self.nodes: list[Node] = []
        self.ghosts: list[Node] = []
        self.stay = False
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.named = 0

    async def add(self) -> None:
        relay = Relay(self.servers)
        await relay.open()
        self.named += 1
        node = Node(f"node{self.named}", relay)
        await node.open()
        self.nodes.append(node)

    async def user(self, name: str) -> None:
        while True:
            node = random.choice(self.nodes) if self.nodes else None
            if node is None:
                await asyncio.sleep(0.05)
                continue
            rooms = random.sample(ROOMS, random.randint(0, 3))
            node.change(name, rooms, 1)
            end = asyncio.get_running_loop().time() + random.expovariate(1)
            while self.stay or asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.05)
                if node not in self.nodes:
                    break
            if node in self.nodes:
                node.change(name, rooms, -1)
            await asyncio.sleep(random.choice([0, 0, 0.1, 0.4, 0.8]))

    async def kill(self) -> None:
        node = random.choice(self.nodes)
        self.nodes.remove(node)
        node.relay.is_dead = True
        node.relay.cut()
        self.ghosts.append(node)
        await self.add()

    async def cut(self) -> None:
        relay = random.choice(self.nodes).relay
        relay.is_cut = True
        relay.cut()
        await asyncio.sleep(random.choice([0, 0.3, 1.5]))
        relay.is_cut = False

    async def hold(self) -> None:
        relay = random.choice(self.nodes).relay
        directions = random.choice([(0,), (1,), (0, 1)])
        for each in directions:
            relay.held[each].clear()
        await asyncio.sleep(random.choice([0.2, 0.8, 3.6]))
        for each in directions:
            relay.held[each].set()

    async def strike(self) -> None:
        names = ["cut", "cut", "hold", "hold", "kill", "restart", "empty", "failover"]
        name = random.choice(names)
        self.done[name] += 1
        if name == "failover":
            await self.servers.failover(random.choice([0, 0.2, 0.6]))
            for node in self.nodes:
                node.relay.cut()
        elif name in ("restart", "empty"):
            await asyncio.to_thread(getattr(self.servers, name))
        else:
            await getattr(self, name)()

    async def check(self, at: float) -> None:
        bad: Counter[str] = Counter()
        for room in ROOMS:
            truth = {user for node in self.nodes for (r, user) in node.here if r == room}
            clients = {u: sum(node.here[room, u] for node in self.nodes) for u in truth}
            for node in self.nodes:
                page, members = "", {}
                while True:
                    page, found = await node.bus.members(room, page)
                    members.update((each.user_id, each.clients) for each in found)
                    if not page:
                        break
                bad["members"] += members != clients
                bad["count"] += await node.bus.count(room) != len(truth)
                bad["events"] += node.told[room] != truth
        truth = {user for node in self.nodes for (r, user) in node.here if not r}
        for node in self.nodes:
            bad["online"] += await node.bus.online(USERS) != truth
            names = {each.name for each in await node.bus.nodes()}
            bad["nodes"] += names != {each.name for each in self.nodes}
        bad = +bad
        if bad:
            print(f"    after {at:.0f} s: {dict(bad)}")
        self.faults += bad

    async def left_behind(self) -> None:
        for node in self.nodes:
            await node.bus.close()
        left = set(self.servers.master.command("KEYS", "*")) - {b"wsc:keep"}
        if left:
            print("    left behind:", left[:8])
            self.faults["left behind"] += 1


async def run(seconds: float, seed: int) -> bool:
    random.seed(seed)
    folder = Path(tempfile.mkdtemp())
    world = World(folder)
    loop = asyncio.get_running_loop()
    for _ in range(3):
        await world.add()
    users = [asyncio.create_task(world.user(name)) for name in USERS]
    began = loop.time()
    while loop.time() - began < seconds:
        end = loop.time() + CHAOS
        strikes = []
        while loop.time() < end:
            await asyncio.sleep(random.expovariate(2))
            name = asyncio.create_task(world.strike())
            strikes.append(name)
            if random.random() < 0.6:
                await asyncio.wait([name])
        await asyncio.gather(*strikes)
        world.stay = True
        await asyncio.sleep(QUIET)
        await world.check(loop.time() - began)
        world.stay = False
    for each in users:
        each.cancel()
    await asyncio.wait(users)
    for node in world.nodes:
        for room, user in list(node.here):
            node.bus.directory([Change(room, user, 0)])
    counted = [node.bus.counters() for node in world.nodes]
    await world.left_behind()
    world.servers.master.kill()
    shutil.rmtree(folder)
    sums = {name: sum(each[name] for each in counted) for name in ("lost_leases", "reaped")}
    print(f"seed {seed}: {dict(world.done)}, {sums}, faults: {dict(world.faults) or 0}")
    return not world.faults


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "1"]
    sys.exit(not asyncio.run(run(float(arguments[0]), int(arguments[1]))))
