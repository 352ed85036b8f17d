"""A model of nodes and clients over RedisBus, while connections and the server are killed.

A node keeps the chain of one kept room: it gives its clients each message that follows the last
one, reads what is missing, and tells them of a gap where that cannot be read. Clients hop between
two nodes and come back with their position. Publishers use no idempotency keys, so that each
publish of unknown outcome has to be looked up.

Checked: between two messages that a client got without word of a gap, the room never had another
one; no client got a message twice; what was answered after the last fault came to all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.no_words import NoWords
from tests.redis_server import EACH_PROGRAM, RedisServer
from wsc_fast.bus.base import Outgoing, Retention
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.errors import BusError
from wsc_fast.testing import eventually

ROOM = "room"
KEPT = Retention(size=3000, ttl=300.0)
# Seconds of chaos.
SECONDS = 2.0


class Client:
    """The view of one client: positions, and None for word of a gap, before a place."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []
        self.place: str | None = None

    def got(self, position: str) -> None:
        self.seen.append(position)
        self.place = position

    def gap(self, place: str) -> None:
        self.seen += (None, place)
        self.place = place


class Node(NoWords):
    """A hub with one kept room.

    Attributes:
        last: the position of the newest message that was given.
        ring: the newest positions.
        busy: the chain is being mended; messages wait in `later`.
    """

    def __init__(self, chain: dict[str, str], texts: dict[str, bytes]) -> None:
        self.bus: RedisBus
        self.clients: set[Client] = set()
        self.last: str | None = None
        self.ring: list[str] = []
        self.busy = True
        self.later: list[tuple[str, str]] = []
        self.chain, self.texts = chain, texts
        self.healing: asyncio.Future[None] | None = None
        self.wanted = False

    def envelope(self, channel: str, data: bytes) -> bool:
        if channel != ROOM:
            return True
        head, _, rest = data.partition(b"\n")
        prev, count = head.decode().split(" ")[3:]
        for _ in range(int(count)):
            line, _, rest = rest.partition(b"\n")
            position, *_, length = line.decode().split(" ")
            self.chain[position], self.texts[position] = prev, rest[: int(length)]
            rest = rest[int(length) :]
            self.live(position, prev)
            prev = position
        return True

    def live(self, position: str, prev: str) -> None:
        if self.busy:
            self.later.append((position, prev))
        elif prev == self.last:
            self.give(position)
        elif position not in self.ring:
            self.later.append((position, prev))
            self.heal_soon()

    def takes_more(self) -> bool:
        return True

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        if ROOM in channels:
            self.heal_soon()

    def up(self) -> None:
        pass

    def down(self, error: Exception) -> None:
        pass

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        raise AssertionError("each message has an answer")

    def give(self, position: str) -> None:
        self.last = position
        self.ring = [*self.ring[-63:], position]
        for client in self.clients:
            client.got(position)

    def heal_soon(self) -> None:
        self.busy = True
        self.wanted = True
        if self.healing is None or self.healing.done():
            self.healing = asyncio.ensure_future(self.heal())

    async def heal(self) -> None:
        while self.wanted:
            self.wanted = False
            with suppress(BusError):
                page = await self.bus.read(ROOM, self.last, 1000, KEPT)
                self.texts |= {each.position: text_of(each.entry) for each in page.entries}
                if self.last is None:
                    self.last, self.ring = page.top, [page.top]
                elif not page.contiguous:
                    self.last, self.ring = page.top, [page.top]
                    for client in self.clients:
                        client.gap(page.top)
                else:
                    for each in page.entries:
                        self.give(each.position)
                self.wanted |= not self.mended()
                continue
            self.wanted = True
        self.busy = False

    def mended(self) -> bool:
        """Gives the messages that came meanwhile, as far as they follow."""
        later, self.later = self.later, []
        for number, (position, prev) in enumerate(later):
            if position in self.ring:
                continue
            if prev != self.last:
                # One that is older than a gap is in no page; it is dropped then.
                self.later = later[number + 1 :]
                return False
            self.give(position)
        return True

    async def join(self, client: Client) -> None:
        """Gives a client what it missed, and makes it a member in the same turn."""
        while True:
            await eventually(lambda: not self.busy, timeout=30)
            assert self.last is not None
            if client.place is None:
                client.gap(self.last)
            elif client.place in self.ring:
                for position in self.ring[self.ring.index(client.place) + 1 :]:
                    client.got(position)
            else:
                with suppress(BusError):
                    page = await self.bus.read(ROOM, client.place, 1000, KEPT)
                    self.texts |= {each.position: text_of(each.entry) for each in page.entries}
                    if not page.contiguous:
                        client.place = None
                    for each in page.entries:
                        client.got(each.position)
                    await asyncio.sleep(0.001)
                continue
            self.clients.add(client)
            return


async def hop(client: Client, nodes: Sequence[Node], rng: random.Random) -> None:
    while True:
        node = rng.choice(nodes)
        await node.join(client)
        try:
            await asyncio.sleep(rng.expovariate(4))
        finally:
            node.clients.discard(client)
        await asyncio.sleep(rng.choice([0, 0.01, 0.1]))


def text_of(entry: bytes) -> bytes:
    return entry.partition(b"\n")[2]


async def publish(bus: RedisBus, answered: list[str], rng: random.Random, end: float) -> None:
    """Publishes until a time, each message once; remembers the positions."""
    loop = asyncio.get_running_loop()
    while loop.time() < end:
        answer = loop.create_future()
        text = b"%d" % rng.getrandbits(62)
        entry = b"t 0 0 %d\n%b" % (len(text), text)
        bus.publish([Outgoing(ROOM, entry, KEPT, None, answer)])
        with suppress(BusError):
            answered.append((await answer).position)
        await asyncio.sleep(rng.expovariate(300))


async def disturb(server: RedisServer, kind: str, rng: random.Random) -> None:
    """Kills connections all the time, and the server now and then."""
    for number in range(int(SECONDS / 0.1)):
        await asyncio.sleep(0.1)
        kill = rng.choice(["pubsub", "pubsub", "normal"])
        await asyncio.to_thread(server.command, "CLIENT", "KILL", "TYPE", kill, "SKIPME", "yes")
        if kind != "connections" and number % 10 == 9:
            if kind == "rewound":
                await asyncio.to_thread(server.command, "SAVE")
                await asyncio.sleep(rng.uniform(0.02, 0.3))
            await asyncio.to_thread(server.kill)
            if kind == "emptied":
                (server.directory / "dump.rdb").unlink(missing_ok=True)
            await asyncio.to_thread(server.start)


OPTIONS = {
    "connections": (),
    "with its log": ("--appendfsync", "always"),
    "rewound": ("--appendonly", "no"),
    "emptied": ("--appendonly", "no"),
}


# Each kind over the first program, and the hardest one over the others.
RUNS = [
    *((kind, EACH_PROGRAM[0]) for kind in OPTIONS),
    *(("with its log", program) for program in EACH_PROGRAM[1:]),
]


@pytest.mark.parametrize(("kind", "program"), RUNS)
async def test_no_link_of_the_chain_breaks_in_silence(
    tmp_path: Path, kind: str, program: str
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    chain: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    loop = asyncio.get_running_loop()
    with RedisServer(tmp_path, *OPTIONS[kind], program=program) as server:
        nodes = [Node(chain, texts), Node(chain, texts)]
        buses = []
        for node, origin in zip(nodes, "ab", strict=True):
            node.bus = RedisBus(server.url, timeout=10.0)
            buses.append(node.bus)
            await node.bus.open(node, origin)
            node.bus.subscribe([ROOM])
        clients = [Client() for _ in range(20)]
        hopping = [asyncio.ensure_future(hop(client, nodes, rng)) for client in clients]
        answered: list[str] = []
        end = loop.time() + SECONDS
        publishing = [
            asyncio.ensure_future(publish(bus, answered, rng, end)) for bus in (*buses, buses[0])
        ]
        await disturb(server, kind, rng)
        await asyncio.gather(*publishing)
        for task in hopping:
            task.cancel()
        await asyncio.wait(hopping)
        for node in nodes:
            node.heal_soon()
        for client in clients:
            await nodes[0].join(client)
        last: list[str] = []
        await publish(buses[1], last, rng, loop.time() + 0.1)
        await eventually(lambda: all(client.place == last[-1] for client in clients), timeout=30)
        for bus in buses:
            await bus.close()
    assert len(answered) > 100
    assert len(set(answered)) == len(answered)
    for client in clients:
        check(client, chain, texts, last)
    if kind in ("connections", "with its log"):
        # The server has lost nothing: the only gap of a client is its first place, all that was
        # answered came, and nothing was published twice.
        assert [client.seen.count(None) for client in clients] == [1] * 20
        assert set(answered) <= set(texts)
        assert len(set(texts.values())) == len(texts)


def check(
    client: Client, chain: dict[str, str], texts: dict[str, bytes], last: Sequence[str]
) -> None:
    prev: str | None = None
    seen: list[str] = []
    after_gap = False
    for position in client.seen:
        if position is None:
            after_gap = True
            continue
        if not after_gap:
            seen.append(position)
            assert chain.get(position, prev) == prev
        after_gap = False
        prev = position
    assert len(set(seen)) == len({texts[position] for position in seen}) == len(seen)
    assert seen[-len(last) :] == list(last)
