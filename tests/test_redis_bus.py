"""RedisBus against real servers: restarted, emptied, paused, cut off, failing over.

The promises are those of wsc_fast/bus/base.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.no_words import NoWords
from tests.ports import free_port
from tests.redis_server import EACH_PROGRAM, RedisServer, Sentinel, cutter, failing_over
from tests.support import times_logged
from wsc_fast.bus.base import EVERYBODY, Bus, Outgoing, Page, Published, Retention
from wsc_fast.bus.redis import server as redis_server
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.bus.redis.calls import jump, times
from wsc_fast.bus.redis.outgoing import MOST_UNANSWERED
from wsc_fast.errors import BusError, BusUnavailableError, ConfigError
from wsc_fast.testing import eventually

KEPT = Retention(size=100, ttl=300.0)


# For tests of the scripts and of what differs between the two.
on_each_program = pytest.mark.parametrize("server", EACH_PROGRAM, indirect=True)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], RedisServer]]:
    """One server of each program, for the tests that leave it running."""
    with ExitStack() as servers:

        @cache
        def start(program: str) -> RedisServer:
            directory = tmp_path_factory.mktemp(program)
            return servers.enter_context(RedisServer(directory, program=program))

        yield start


@pytest.fixture
def server(request: pytest.FixtureRequest, shared: Callable[[str], RedisServer]) -> RedisServer:
    """The shared server, empty."""
    found = shared(getattr(request, "param", EACH_PROGRAM[0]))
    found.command("FLUSHALL")
    return found


class Message:
    """One message of an envelope, and where it stood."""

    def __init__(self, room: str, kind: str, origin: str, prev: str, position: str, text: str):
        self.room, self.kind, self.origin = room, kind, origin
        self.prev, self.position, self.text = prev, position, text


class Node(NoWords):
    """A hub, as far as a bus sees it: remembers all that it hears."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.envelopes = 0
        self.told: list[tuple[list[str], bool]] = []
        self.states: list[Any] = []
        self.failed: list[tuple[Outgoing, Exception]] = []

    def envelope(self, channel: str, data: bytes) -> bool:
        self.envelopes += 1
        self.messages += opened_envelope(channel, data)
        return True

    def takes_more(self) -> bool:
        return True

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        self.told.append((list(channels), again))

    def up(self) -> None:
        self.states.append("up")

    def down(self, error: Exception) -> None:
        self.states.append(error)

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        self.failed.append((outgoing, error))

    def texts(self, room: str) -> list[str]:
        return [message.text for message in self.messages if message.room == room]

    def hears(self, room: str) -> bool:
        return any(room in channels for channels, _ in self.told)

    def again(self, room: str) -> int:
        """The number of times that the room was subscribed again."""
        return sum(room in channels for channels, again in self.told if again)


def opened_envelope(channel: str, data: bytes) -> list[Message]:
    """The messages of an envelope; `prev` of each is the position before it."""
    head, _, rest = data.partition(b"\n")
    version, kind, origin, prev, count = head.decode().split(" ")
    assert version == "wsc1"
    found = []
    for _ in range(int(count)):
        line, _, rest = rest.partition(b"\n")
        position, flags, exclude, key, length = line.decode().split(" ")
        assert (flags, exclude, key) == ("t", "0", "0")
        text, rest = rest[: int(length)].decode(), rest[int(length) :]
        found.append(Message(channel, kind, origin, prev, position, text))
        prev = position
    assert rest == b""
    return found


def entry(text: str) -> bytes:
    return b"t 0 0 %d\n%b" % (len(text.encode()), text.encode())


def text_of(data: bytes) -> str:
    return data.partition(b"\n")[2].decode()


def outgoing(
    room: str, text: str, kept: Retention | None = None, key: str | None = None
) -> Outgoing:
    """A message with an answer to wait for."""
    answer = asyncio.get_running_loop().create_future()
    return Outgoing(room, entry(text), kept, key, answer)


async def say(
    bus: RedisBus,
    room: str,
    *texts: str,
    kept: Retention | None = KEPT,
    key: str | None = None,
) -> list[Published]:
    """Publishes in one batch, and returns the answers."""
    batch = [outgoing(room, text, kept, key) for text in texts]
    bus.publish(batch)
    return list(await asyncio.gather(*answers(batch)))


def answers(batch: Sequence[Outgoing]) -> list[asyncio.Future[Published]]:
    found = [each.answer for each in batch if each.answer is not None]
    assert len(found) == len(batch)
    return found


@asynccontextmanager
async def opened(
    url: Any, origin: str = "a", rooms: Sequence[str] = (), **options: Any
) -> AsyncIterator[tuple[RedisBus, Node]]:
    """An open bus and its hub, subscribed to some rooms."""
    bus, node = RedisBus(url, **options), Node()
    before = keeping()
    await bus.open(node, origin)
    try:
        bus.subscribe(rooms)
        await eventually(lambda: all(node.hears(room) for room in rooms))
        yield bus, node
    finally:
        await bus.close()
    assert keeping() == before


def keeping() -> int:
    """Tasks that keep connections."""
    return sum("Server." in repr(task.get_coro()) for task in asyncio.all_tasks())


async def all_came(node: Node, count: int) -> None:
    await eventually(lambda: len(node.messages) == count)


async def subscribed_again(node: Node, room: str, times: int) -> None:
    await eventually(lambda: node.again(room) == times)


async def history(bus: RedisBus, room: str, since: str | None = None, limit: int = 1000) -> Page:
    return await bus.read(room, since, limit, KEPT)


def texts_of(page: Page) -> list[str]:
    return [text_of(each.entry) for each in page.entries]


def positions(published: Sequence[Published]) -> list[str]:
    assert all(each.position is not None and not each.duplicate for each in published)
    return [str(each.position) for each in published]


def test_it_is_a_bus() -> None:
    bus: Bus = RedisBus("redis://localhost")
    assert repr(bus) == "RedisBus(['localhost:6379'], prefix='wsc:')"


# --- messages ---


@on_each_program
async def test_two_hubs_hear_each_other_and_themselves(server: RedisServer, any_loop: str) -> None:
    both = ["kept", "plain"]
    async with (
        opened(server.url, "a", both) as (one, at_one),
        opened(server.url, "b", both) as (two, at_two),
    ):
        (first,) = positions(await say(one, "kept", "k1"))
        (second,) = positions(await say(two, "kept", "k2"))
        assert await say(two, "plain", "p", kept=None) == [Published(None, False)]
        assert await say(one, EVERYBODY, "all", kept=None) == [Published(None, False)]
        for node in (at_one, at_two):
            await all_came(node, 4)
            found = {each.text: each for each in node.messages}
            assert found["k1"].position == found["k2"].prev == first
            assert found["k2"].position == second
            assert (found["k1"].kind, found["k1"].origin) == ("k", "a")
            assert (found["p"].room, found["p"].kind, found["p"].origin) == ("plain", "p", "b")
            assert (found["p"].prev, found["p"].position) == ("-", "-")
            assert (found["all"].room, found["all"].kind) == (EVERYBODY, "p")
            assert node.states == ["up"]


async def test_open_subscribes_everybody_and_tells(server: RedisServer) -> None:
    async with opened(server.url, "a") as (_, node):
        await eventually(lambda: node.told == [([EVERYBODY], False)])


async def test_messages_of_a_room_come_in_the_order_of_publishing(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k", "p"]) as (bus, node):
        batches = []
        for number in range(50):
            batch = []
            for text in (f"{number}a", f"{number}b", f"{number}c"):
                batch += [outgoing("k", text, KEPT), outgoing("p", text)]
            bus.publish(batch)
            batches += batch
            if number % 10 == 0:
                await asyncio.sleep(0)
        published = await asyncio.gather(*answers(batches))
        await eventually(lambda: len(node.messages) == 300)
        expected = [f"{number}{letter}" for number in range(50) for letter in "abc"]
        assert node.texts("k") == node.texts("p") == expected
        chain = [each for each in node.messages if each.room == "k"]
        assert [each.prev for each in chain[1:]] == [each.position for each in chain[:-1]]
        assert [each.position for each in published if each.position] == [
            each.position for each in chain
        ]


async def test_neighbours_of_a_room_share_an_envelope(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k", "p", "q"]) as (bus, node):
        await say(bus, "p", *map(str, range(100)), kept=None)
        await eventually(lambda: len(node.messages) == 100)
        assert node.envelopes == 2  # of 64 messages at most
        await say(bus, "k", *map(str, range(100)))
        await eventually(lambda: len(node.messages) == 200)
        assert node.envelopes == 4
        batch = [outgoing(room, "x") for room in "pqpq"]
        bus.publish(batch)
        await asyncio.gather(*answers(batch))
        await eventually(lambda: node.envelopes == 8)
        await say(bus, "p", "y" * 60_000, "y" * 60_000, "z", kept=None)
        await eventually(lambda: node.envelopes == 10)  # of 64 KiB, but for the last message


async def test_messages_that_come_while_a_call_is_under_way_share_the_next(
    server: RedisServer,
) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, node):
        batch = [outgoing("k", str(number), KEPT) for number in range(80)]
        for each in batch[:40]:
            bus.publish([each])  # in one turn: these share the first
        await asyncio.sleep(0)
        for each in batch[40:]:
            bus.publish([each])
        await asyncio.gather(*answers(batch))
        await eventually(lambda: len(node.messages) == 80)
        assert node.envelopes == 2
        assert node.texts("k") == [str(number) for number in range(80)]


async def test_a_message_of_a_megabyte_passes(server: RedisServer) -> None:
    large = "x" * (1 << 20)
    async with opened(server.url, "a", ["k", "p"]) as (bus, node):
        await say(bus, "k", large, large)
        await say(bus, "p", large, kept=None)
        await eventually(lambda: len(node.messages) == 3)
        assert {each.text for each in node.messages} == {large}
        assert texts_of(await history(bus, "k")) == [large, large]


async def test_a_message_or_key_that_is_too_large_is_refused(server: RedisServer) -> None:
    async with opened(server.url, "a") as (bus, _):
        for kept in (None, KEPT):
            with pytest.raises(BusError, match="has at most 1052672 bytes on a bus, not 1100014"):
                await say(bus, "k", "x" * 1_100_000, kept=kept)
            with pytest.raises(BusError, match="key has at most 128 bytes, not 130"):
                await say(bus, "k", "x", kept=kept, key="é" * 65)
            await say(bus, "k", "x", kept=kept, key="é" * 64)
        assert bus.counters()["waiting_bytes"] == 0


@on_each_program
async def test_any_bytes_pass_unchanged(server: RedisServer) -> None:
    payload = bytes(range(256)) * 3
    data = b"b 0 0 %d\n%b" % (len(payload), payload)
    async with opened(server.url, "a") as (bus, _):
        answer = asyncio.get_running_loop().create_future()
        bus.publish([Outgoing("k", data, KEPT, None, answer)])
        await answer
        assert [each.entry for each in (await history(bus, "k")).entries] == [data]


async def test_odd_names_of_rooms_are_kept_apart(server: RedisServer) -> None:
    rooms = ["a}:1:b", "a", "é\n{x}", "\ud800", " "]
    async with opened(server.url, "a", rooms) as (bus, node):
        for room in rooms:
            await say(bus, room, "m")
            await say(bus, room, "p", kept=None)
        await eventually(lambda: len(node.messages) == 10)
        assert [each.room for each in node.messages] == [room for room in rooms for _ in "mp"]
        assert (await say(bus, "a", "1", key="1:b}:c"))[0].duplicate is False
        assert (await say(bus, "a}:1:b", "2", key="c"))[0].duplicate is False


async def test_a_flood_of_plain_messages_does_not_hold_up_kept_ones(server: RedisServer) -> None:
    async with opened(server.url, "a") as (bus, _):
        flood = [outgoing(f"r{number}", "x" * 100) for number in range(20_000)]
        bus.publish(flood)
        await say(bus, "k", "kept")
        assert not flood[-1].answer.done()  # type: ignore[union-attr]
        await asyncio.gather(*answers(flood))


# --- idempotency ---


@on_each_program
async def test_a_message_with_a_known_key_is_a_duplicate(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k", "p"]) as (bus, node):
        (first,) = await say(bus, "k", "one", key="order-17")
        again = await say(bus, "k", "two", "three", key="order-17")
        assert again == [Published(first.position, True)] * 2
        assert (await say(bus, "k", "four", key="order-18"))[0].duplicate is False
        assert await say(bus, "p", "one", kept=None, key="K") == [Published(None, False)]
        assert await say(bus, "p", "two", kept=None, key="K") == [Published(None, True)]
        within = await say(bus, "k", "five", "six", key="order-19")
        assert [each.duplicate for each in within] == [False, True]
        assert within[0].position == within[1].position
        await eventually(lambda: node.texts("k") == ["one", "four", "five"])
        assert node.texts("p") == ["one"]
        assert 290 < server.command("TTL", "wsc:i:1:{k}:order-17") <= 300
        assert 290 < server.command("TTL", "wsc:i:1:{p}:K") <= 300


# --- history ---


@on_each_program
async def test_a_history_is_read_from_each_place(server: RedisServer) -> None:
    async with opened(server.url, "a") as (bus, _):
        before = await history(bus, "k")
        assert re.fullmatch(r"\d{13}-0\.[\w-]{8}", before.top)
        assert (before.contiguous, before.entries) == (True, [])
        assert (await history(bus, "k", before.top)).contiguous
        places = [before.top, *positions(await say(bus, "k", *"abcde"))]
        for number, place in enumerate(places):
            page = await history(bus, "k", place)
            assert page.contiguous
            assert page.top == places[-1]
            assert texts_of(page) == list("abcde")[number:]
            assert [each.position for each in page.entries] == places[number + 1 :]
        page = await history(bus, "k", places[1], limit=2)
        assert (page.contiguous, texts_of(page)) == (True, ["b", "c"])
        assert texts_of(await history(bus, "k", None, limit=2)) == ["d", "e"]
        page = await history(bus, "k", places[1], limit=0)
        assert (page.top, page.contiguous, page.entries) == (places[-1], False, [])
        assert await bus.tops(["k", "unknown"]) == [places[-1], None]
        many = [f"r{number}" for number in range(1200)]
        assert await bus.tops(many) == [None] * 1200


@on_each_program
async def test_the_place_before_a_first_message_is_not_that_of_the_message(
    server: RedisServer,
) -> None:
    rooms = [f"k{number}" for number in range(20)]
    async with opened(server.url, "a", rooms) as (bus, node):
        for room in rooms:
            await say(bus, room, "first")
        await eventually(lambda: len(node.messages) == len(rooms))
        for message in node.messages:
            assert message.prev != message.position
            assert texts_of(await history(bus, message.room, message.prev)) == ["first"]


@pytest.mark.parametrize(
    "since", ["", "-", "0-0.other", "1-1.tag", "99999999999999-0.tag", "no position", "x" * 64]
)
async def test_a_place_that_the_room_never_had_is_not_contiguous(
    server: RedisServer, since: str
) -> None:
    async with opened(server.url, "a") as (bus, _):
        assert not (await history(bus, "k", since)).contiguous
        (position,) = positions(await say(bus, "k", "a"))
        for place in (since, position[:-1], position.partition(".")[0] + ".other"):
            page = await history(bus, "k", place)
            assert (page.contiguous, page.entries, page.top) == (False, [], position)


@on_each_program
async def test_a_history_is_bounded_in_size_and_what_was_dropped_is_missed(
    server: RedisServer,
) -> None:
    small = Retention(size=10, ttl=300.0)
    async with opened(server.url, "a") as (bus, _):
        (first,) = positions(await say(bus, "k", "first", kept=small))
        for number in range(10):
            await say(bus, "k", *(f"{number}.{n}" for n in range(50)), kept=small)
        assert 10 <= server.command("XLEN", "wsc:h:{k}") < 300
        assert not (await history(bus, "k", first)).contiguous
        newest = await history(bus, "k", None, limit=10)
        assert texts_of(newest) == [f"9.{n}" for n in range(40, 50)]
        assert (await history(bus, "k", newest.entries[0].position)).contiguous


async def test_a_long_history_comes_in_pages_of_some_megabytes(server: RedisServer) -> None:
    async with opened(server.url, "a") as (bus, _):
        place = (await history(bus, "k")).top
        for number in range(12):
            await say(bus, "k", f"{number} " + "x" * 1_000_000)
        found: list[str] = []
        pages = 0
        while True:
            page = await history(bus, "k", place)
            assert page.contiguous
            if not page.entries:
                break
            pages += 1
            found += [text.split()[0] for text in texts_of(page)]
            place = page.entries[-1].position
        assert found == [str(number) for number in range(12)]
        assert pages == 3
        assert [text.split()[0] for text in texts_of(await history(bus, "k"))] == [
            *("7", "8", "9", "10", "11")
        ]


@on_each_program
async def test_a_history_that_has_expired_is_missed_but_its_last_place_is_known(
    server: RedisServer,
) -> None:
    brief = Retention(size=100, ttl=0.05)
    async with opened(server.url, "a") as (bus, _):
        first, last = positions(await say(bus, "k", "a", "b", kept=brief))
        await eventually(lambda: not server.command("EXISTS", "wsc:h:{k}"))
        assert 86000 < server.command("TTL", "wsc:t:{k}") <= 86400
        assert (await history(bus, "k", last)).contiguous
        assert not (await history(bus, "k", first)).contiguous
        (after,) = positions(await say(bus, "k", "c"))
        page = await history(bus, "k", last)
        assert (page.contiguous, page.top, texts_of(page)) == (True, after, ["c"])
        assert not (await history(bus, "k", first)).contiguous


async def test_a_history_lives_for_its_time_after_the_last_message(server: RedisServer) -> None:
    kept = Retention(size=100, ttl=40.0)
    async with opened(server.url, "a") as (bus, _):
        for text in "abc":
            await say(bus, "k", text, kept=kept)
            assert 40_000 < server.command("PTTL", "wsc:h:{k}") <= 50_000


@pytest.mark.parametrize("ttl", [0.001, 0.5, 1, 59.9, 300, 86400, 10_000_000])
def test_a_slot_of_time_is_at_most_a_quarter_of_a_history(ttl: float) -> None:
    life, top, _, digits = (int(each) for each in times(Retention(1, ttl)))
    slot = 10 ** (13 - digits)
    assert slot <= max(1, ttl * 1000 / 4)
    assert life == int(ttl * 1000) + slot
    assert top == max(86400, int(ttl))


@on_each_program
async def test_no_position_of_a_deleted_history_is_known(server: RedisServer) -> None:
    async with (
        opened(server.url, "a", ["k"]) as (one, here),
        opened(server.url, "b", ["k"]) as (two, there),
    ):
        start = (await history(one, "k")).top
        before = [start, *positions(await say(one, "k", "x", "y"))]
        await eventually(lambda: here.envelopes == there.envelopes == 1)
        await two.delete("k")
        await eventually(lambda: here.envelopes == there.envelopes == 2)  # without messages
        assert here.texts("k") == there.texts("k") == ["x", "y"]
        page = await history(one, "k")
        assert (page.entries, page.top in before) == ([], False)
        for position in before:
            assert not (await history(one, "k", position)).contiguous
        (after,) = positions(await say(one, "k", "z"))
        await eventually(lambda: len(there.messages) == 3)
        assert there.messages[-1].prev == page.top
        assert texts_of(await history(one, "k", page.top)) == ["z"]
        for position in before:
            assert not (await history(one, "k", position)).contiguous
        await one.delete("nobody has said anything here")
        assert all(server.command("PTTL", key) > 0 for key in server.command("KEYS", "*"))
        assert after not in before


@on_each_program
async def test_a_lost_position_is_found_in_the_stream(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, node):
        _, second = positions(await say(bus, "k", "a", "b"))
        server.command("DEL", "wsc:t:{k}")
        (third,) = positions(await say(bus, "k", "c"))
        await eventually(lambda: len(node.messages) == 3)
        assert node.messages[-1].prev == second
        server.command("DEL", "wsc:t:{k}")
        assert (await history(bus, "k", second)).top == third


@on_each_program
async def test_a_lost_history_is_never_taken_for_a_whole_one(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, _):
        empty = (await history(bus, "k")).top
        server.command("FLUSHALL")
        assert not (await history(bus, "k", empty)).contiguous
        first, last = positions(await say(bus, "k", "a", "b"))
        server.command("FLUSHALL")
        for place in (empty, first, last):
            assert not (await history(bus, "k", place)).contiguous
        await say(bus, "k", "c")
        for place in (empty, first, last):
            assert not (await history(bus, "k", place)).contiguous


# --- subscriptions ---


@on_each_program
async def test_a_room_is_heard_from_its_confirmation_until_it_is_unsubscribed(
    server: RedisServer,
) -> None:
    async with opened(server.url, "a") as (bus, node):
        await say(bus, "k", "before")
        bus.subscribe(["k", "k"])
        bus.subscribe(["k"])
        await eventually(lambda: node.hears("k"))
        await say(bus, "k", "while")
        await eventually(lambda: node.texts("k") == ["while"])
        bus.unsubscribe(["k", "never"])
        await say(bus, "k", "after")
        bus.subscribe(["k"])
        bus.unsubscribe(["k"])
        bus.subscribe(["k"])
        told = len(node.told)
        await eventually(lambda: len(node.told) > told)
        await say(bus, "k", "again")
        await eventually(lambda: node.texts("k") == ["while", "again"])
        assert [told for told in node.told if "k" in told[0]] == [(["k"], False)] * 2
        assert bus.counters()["subscriptions"] == 2


async def test_thousands_of_rooms_are_subscribed_and_again_after_a_cut(server: RedisServer) -> None:
    rooms = [f"room {number}" for number in range(5000)]
    async with opened(server.url, "a", rooms) as (bus, node):
        named = [name for channels, _ in node.told for name in channels]
        assert sorted(named) == sorted([EVERYBODY, *rooms])
        assert max(len(channels) for channels, _ in node.told) <= 500
        node.told.clear()
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(lambda: node.again(rooms[-1]) == 1)
        named = [name for channels, again in node.told for name in channels if again]
        assert sorted(named) == sorted([EVERYBODY, *rooms])
        await say(bus, rooms[2500], "x", kept=None)
        await eventually(lambda: node.texts(rooms[2500]) == ["x"])


# --- faults ---


@on_each_program
async def test_a_cut_subscription_is_made_again_without_a_word_of_down(
    server: RedisServer, any_loop: str
) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, node):
        for number in range(1, 4):
            await eventually(lambda: server.command("CLIENT", "KILL", "TYPE", "pubsub") == 1)
            await subscribed_again(node, "k", number)
        await say(bus, "k", "x")
        await eventually(lambda: node.texts("k") == ["x"])
        assert node.states == ["up"]
        assert bus.counters()["reconnects"] == 3


async def test_a_connection_that_had_lasted_is_made_again_without_a_pause(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(redis_server, "LASTED", 0.0)
    async with opened(server.url, "a", ["k"]) as (bus, node):
        await eventually(lambda: server.command("CLIENT", "KILL", "TYPE", "pubsub") == 1)
        await subscribed_again(node, "k", 1)
        assert bus.counters()["reconnects"] == 1


async def test_a_connection_that_ends_soon_is_made_again_after_a_pause(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_server, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(redis_server, "LASTED", 60.0)
    async with opened(server.url, "a", ["k"]) as (bus, _):
        await eventually(lambda: server.command("CLIENT", "KILL", "TYPE", "pubsub") == 1)
        await eventually(lambda: "connecting again" in caplog.text)
        for _ in range(10):
            await asyncio.sleep(0)
        assert bus.counters()["reconnects"] == 0


@on_each_program
async def test_cut_publishes_are_looked_up_and_published_once(server: RedisServer) -> None:
    """The answers of calls are lost, each in turn; the script had done them."""
    async with (
        cutter(server) as relay,
        opened(relay.url, "a") as (bus, _),
        opened(server.url, "b", ["k", "p"]) as (_, node),
    ):
        lose = 0

        def reply(number: int, data: bytes) -> bytes | None:
            nonlocal lose
            if lose and re.search(rb"\$2\d\r\n=?\d+-\d+\.|^:[01]\r\n$", data):
                lose -= 1
                return None
            return data

        relay.reply = reply
        found: list[str] = []
        for number in range(5):
            lose = 2
            texts = [f"{number}{letter}" for letter in "abc"]
            found += positions(await say(bus, "k", *texts))
            lose = 1
            keyed = await say(bus, "k", f"{number}k", key=f"key {number}")
            found += positions(keyed)
            lose = 1
            plain = await say(bus, "p", f"{number}p", kept=None, key=f"key {number}")
            assert plain == [Published(None, False)]
        await eventually(lambda: len(node.messages) == 25)
        kept = [each for each in node.messages if each.room == "k"]
        assert [each.position for each in kept] == found
        assert [each.prev for each in kept[1:]] == found[:-1]
        assert node.texts("p") == [f"{number}p" for number in range(5)]
        assert bus.counters()["lookups"] >= 20


@on_each_program
async def test_lost_requests_are_published_once(server: RedisServer) -> None:
    """The calls themselves are lost: the lookup finds nothing, and publishes."""
    async with cutter(server) as relay, opened(relay.url, "a", ["k"]) as (bus, node):
        lost = 0

        def request(number: int, data: bytes) -> bytes | None:
            nonlocal lost
            if b"message" in data and lost < 2:
                lost += 1
                return None
            return data

        relay.request = request
        found = positions(await say(bus, "k", "message 1", "message 2"))
        assert lost == 2
        await eventually(lambda: [each.position for each in node.messages] == found)


@on_each_program
async def test_an_outcome_that_cannot_be_known_is_an_error(server: RedisServer) -> None:
    small = Retention(size=1, ttl=300.0)
    async with (
        cutter(server) as relay,
        opened(relay.url, "a") as (bus, _),
        opened(server.url, "b", ["k"]) as (other, node),
    ):
        cut = asyncio.Event()

        async def reply(number: int, data: bytes) -> bytes | None:
            if b"-" in data and b"." in data and not cut.is_set():
                cut.set()
                # Meanwhile the history goes on, and forgets the message.
                for _ in range(4):
                    await say(other, "k", *map(str, range(60)), kept=small)
                return None
            return data

        relay.reply = reply
        with pytest.raises(BusUnavailableError, match="nobody knows whether it was published"):
            await say(bus, "k", "mine", kept=small)
        await eventually(lambda: len(node.messages) == 241)
        assert node.texts("k").count("mine") == 1


async def test_a_plain_message_of_unknown_outcome_is_not_published_again(
    server: RedisServer,
) -> None:
    async with cutter(server) as relay, opened(relay.url, "a", ["p"]) as (bus, node):
        relay.reply = lambda number, data: None if data == b":1\r\n" else data
        with pytest.raises(BusUnavailableError, match="nobody knows whether it was published"):
            await say(bus, "p", "x", kept=None)
        relay.reply = lambda number, data: data
        quiet = Outgoing("p", entry("y"))
        await eventually(lambda: bus.counters()["reconnects"] >= 1)
        bus.publish([quiet])
        await eventually(lambda: node.texts("p")[-1:] == ["y"])
        assert node.texts("p").count("x") <= 1
        assert bus.counters()["not_published"] == 1


@on_each_program
async def test_scripts_that_the_server_has_forgotten_are_loaded_again(
    server: RedisServer,
) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, node):
        for number in range(3):
            server.command("SCRIPT", "FLUSH")
            texts = [f"{number}{letter}" for letter in "ab"]
            batch = [outgoing("k", text, KEPT) for text in texts]
            for each in batch:
                bus.publish([each])
            other = say(bus, f"room {number}", "x", "y")
            *_, _ = await asyncio.gather(other, *answers(batch))
            server.command("SCRIPT", "FLUSH")
            assert texts_of(await history(bus, "k"))[-2:] == texts
        await eventually(lambda: node.texts("k") == ["0a", "0b", "1a", "1b", "2a", "2b"])


async def test_a_position_that_the_server_has_lost_is_told_from_an_old_one(tmp_path: Path) -> None:
    small = Retention(size=1, ttl=300.0)
    with RedisServer(tmp_path, "--appendonly", "no") as server:
        async with opened(server.url, "a", ["k"]) as (bus, node):
            silent = (await history(bus, "silent")).top
            (known,) = positions(await say(bus, "k", "known"))
            (expired,) = positions(await say(bus, "brief", "x", kept=Retention(9, 0.05)))
            await eventually(lambda: not server.command("EXISTS", "wsc:h:{brief}"))
            server.command("SAVE")
            lost = [positions(await say(bus, room, "lost"))[0] for room in ("k", "silent", "brief")]
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await eventually(lambda: node.again("k") == 1)
            for _ in range(2):
                for room, place, before in zip(
                    ("k", "silent", "brief"), lost, (known, silent, expired), strict=True
                ):
                    page = await history(bus, room, place)
                    assert (page.contiguous, page.loss != "") == (False, True), room
                    page = await history(bus, room, before)
                    assert (page.contiguous, page.loss) == (True, "")
                    await say(bus, room, "after")
            for number in range(300):
                await say(bus, "k", f"{number}", kept=small)
            for place in (known, *lost, "no position"):
                page = await history(bus, "k", place)
                assert (page.contiguous, page.loss) == (False, "")


async def test_a_server_that_is_killed_and_comes_back_with_its_log(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--appendfsync", "always") as server:
        async with opened(server.url, "a", ["k"]) as (bus, node):
            (first,) = positions(await say(bus, "k", "before"))
            await asyncio.to_thread(server.kill)
            await eventually(lambda: len(node.states) == 2)
            batch = [outgoing("k", text, KEPT) for text in "ab"]
            bus.publish(batch)
            await asyncio.to_thread(server.start)
            found = positions(await asyncio.gather(*answers(batch)))
            await eventually(lambda: node.again("k") == 1)
            page = await history(bus, "k", first)
            assert (page.contiguous, texts_of(page)) == (True, ["a", "b"])
            assert page.top == found[-1]
            await eventually(lambda: len(node.states) == 3)
            assert isinstance(node.states[1], Exception)
            assert node.states[::2] == ["up", "up"]


async def test_a_server_that_comes_back_empty_is_noticed(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--appendonly", "no") as server:
        async with opened(server.url, "a", ["k"]) as (bus, node):
            (first,) = positions(await say(bus, "k", "before"))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await eventually(lambda: node.again("k") == 1)
            page = await history(bus, "k", first)
            assert not page.contiguous
            assert not page.loss  # nobody can take what is there now for a part of what was
            (after,) = positions(await say(bus, "k", "after"))
            assert texts_of(await history(bus, "k", page.top)) == ["after"]
            assert await bus.tops(["k"]) == [after]


async def test_messages_wait_for_a_server_within_bounds_of_bytes_and_time(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with opened(server.url, "a", timeout=0.5, max_waiting_bytes=5000) as (bus, node):
            await asyncio.to_thread(server.kill)
            await eventually(lambda: len(node.states) == 2)
            began = time.monotonic()
            waiting = [outgoing("k", "x" * 1000, KEPT), outgoing("p", "x" * 1000)]
            waiting += [outgoing("p", "x", key="K"), Outgoing("k", entry("quiet"), KEPT)]
            bus.publish(waiting)
            assert bus.counters()["waiting_bytes"] > 2000
            bus.publish(too_much := [outgoing("k", "x" * 2000, KEPT)])
            assert len(node.failed) == 0
            (full,) = await asyncio.gather(*answers(too_much), return_exceptions=True)
            assert isinstance(full, BusUnavailableError)
            assert "more than 5000 bytes wait" in str(full)
            failed = await asyncio.gather(*answers(waiting[:3]), return_exceptions=True)
            assert time.monotonic() - began >= 0.5
            for error in failed:
                assert isinstance(error, BusUnavailableError)
                assert f"the bus at 127.0.0.1:{server.port}: not published within" in str(error)
            assert [(each, type(error)) for each, error in node.failed] == [
                (waiting[3], BusUnavailableError)
            ]
            with pytest.raises(BusUnavailableError, match=r"did not answer within 0\.5 s"):
                await history(bus, "k")
            with pytest.raises(BusUnavailableError, match=r"did not answer within 0\.5 s"):
                await bus.tops(["k"])
            assert bus.counters()["waiting_bytes"] == 0
            assert bus.counters()["not_published"] == 5
            await asyncio.to_thread(server.start)
            await eventually(lambda: len(node.states) == 3)
            assert positions(await say(bus, "k", "after"))


async def test_a_hanging_server_is_noticed_and_used_again(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with opened(server.url, "a", ["k"], timeout=10.0) as (bus, node):
            (first,) = positions(await say(bus, "k", "before"))
            await asyncio.to_thread(server.pause)
            began = time.monotonic()
            batch = [outgoing("k", text, KEPT) for text in "ab"]
            bus.publish(batch)
            await eventually(lambda: len(node.states) == 2, timeout=20)
            assert time.monotonic() - began >= 3
            await asyncio.to_thread(server.resume)
            found = positions(await asyncio.gather(*answers(batch)))
            page = await history(bus, "k", first)
            # The server had got the call before it was made again.
            assert [each.position for each in page.entries] == found
            await eventually(lambda: node.again("k") == 1)
            await eventually(lambda: len(node.states) == 3)


async def test_a_connection_that_is_half_open_is_noticed(server: RedisServer) -> None:
    async with cutter(server) as relay, opened(relay.url, "a", ["k"], timeout=20.0) as (bus, node):
        before = relay.connections
        relay.reply = lambda number, data: b"" if number <= before else data
        began = time.monotonic()
        found = positions(await say(bus, "k", "x", "y"))
        assert time.monotonic() - began >= 2.5
        await eventually(lambda: node.again("k") == 1)
        page = await history(bus, "k")
        assert [each.position for each in page.entries] == found
        assert node.states == ["up"]


async def test_a_subscription_that_the_server_has_lost_is_found_by_the_probe(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wsc_fast.bus.redis.server.PROBE", 0.3)
    async with opened(server.url, "a", ["k"]) as (bus, node):
        await eventually(lambda: bus.counters()["longest_lag"] > 0)
        assert node.again("k") == 0
    async with cutter(server) as relay, opened(relay.url, "a", ["k"]) as (bus, node):
        # Behind the back of the bus all of its subscriptions end, once.
        def request(number: int, data: bytes) -> bytes:
            if number > 2 or b"trigger" not in data:
                return data
            return b"*1\r\n$11\r\nUNSUBSCRIBE\r\n"

        def reply(number: int, data: bytes) -> bytes:
            return b"" if number <= 2 and b"$11\r\nunsubscribe" in data else data

        relay.request, relay.reply = request, reply
        bus.subscribe(["trigger"])
        await eventually(lambda: node.again("k") == 1)
        assert "the server does not know our subscriptions" in caplog.text


@on_each_program
async def test_a_hub_that_does_not_read_is_cut_off_and_told(server: RedisServer) -> None:
    server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 65536 1")
    try:
        async with (
            opened(server.url, "a", ["p"]) as (_, node),
            opened(server.url, "b") as (other, _),
        ):
            large = "x" * 100_000
            sent = 0
            # The loop that all three share reads between two batches: each has to be too much.
            while not node.again("p"):
                await say(other, "p", *[large] * 40, kept=None)
                sent += 40
                assert sent < 4000
            assert len(node.texts("p")) < sent
    finally:
        default = "pubsub 33554432 8388608 60"
        server.command("CONFIG", "SET", "client-output-buffer-limit", default)


async def test_a_busy_loop_does_not_cost_the_connections(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, node):
        time.sleep(4)  # noqa: ASYNC251 - as an application may
        await say(bus, "k", "x")
        await eventually(lambda: node.texts("k") == ["x"])
        assert bus.counters()["reconnects"] == 0


async def test_close_hands_over_what_was_published_before(server: RedisServer) -> None:
    async with opened(server.url, "b") as (reader, _):
        async with opened(server.url, "a") as (bus, node):
            batch = [outgoing("k", str(number), KEPT) for number in range(3 * MOST_UNANSWERED)]
            for each in batch:
                bus.publish([each])
            others = [outgoing(f"r{number}", "x", KEPT) for number in range(1000)]
            bus.publish(others)
        assert all(each.done() and each.exception() is None for each in answers(batch + others))
        page = await history(reader, "k", None, limit=10)
        assert page.top == answers(batch)[-1].result().position
        late = [outgoing("k", "late", KEPT), Outgoing("k", entry("late"), KEPT)]
        bus.publish(late)
        with pytest.raises(BusUnavailableError, match="is not open"):
            await answers(late[:1])[0]
        assert [each for each, _ in node.failed] == [late[1]]
        with pytest.raises(BusUnavailableError, match="is not open"):
            await history(bus, "k")
        with pytest.raises(BusUnavailableError, match="is not open"):
            await bus.tops(["k"])
        bus.subscribe(["k"])
        bus.unsubscribe(["k"])


async def test_close_of_a_bus_that_is_away_fails_what_waits(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with opened(server.url, "a") as (bus, node):
            await asyncio.to_thread(server.kill)
            await eventually(lambda: len(node.states) == 2)
            batch = [outgoing("k", "x", KEPT), outgoing("p", "x")]
            bus.publish(batch)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        for answer in answers(batch):
            with pytest.raises(BusUnavailableError, match="was closed"):
                await answer


async def test_a_bus_can_be_opened_again(server: RedisServer) -> None:
    bus = RedisBus(server.url)
    for _ in range(2):
        node = Node()
        await bus.open(node, "a")
        with pytest.raises(BusError, match="is open already"):
            await bus.open(node, "a")
        await say(bus, "k", "x")
        await bus.close()
        await bus.close()
    assert keeping() == 0


# --- servers that are refused, and settings ---


async def refused(url: str, **options: Any) -> str:
    """Why a bus does not open."""
    bus, node = RedisBus(url, **options), Node()
    with pytest.raises(BusError) as caught:
        await bus.open(node, "a")
    assert node.states == []
    assert keeping() == 0
    return str(caught.value)


async def test_a_server_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text = await refused(f"redis://:secret@127.0.0.1:{free_port()}")
    assert "cannot be reached" in text
    assert "secret" not in text
    assert "cannot be reached" in await refused(f"unix://{tmp_path}/none")


async def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        assert "does not let us in: WRONGPASS" in await refused(
            f"redis://:other@127.0.0.1:{server.port}"
        )
        assert "asks for a password: put it into the URL" in await refused(
            f"redis://127.0.0.1:{server.port}"
        )
        async with opened(server.url) as (bus, _):
            await say(bus, "k", "x")


async def test_a_cluster_and_a_replica_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with RedisServer(tmp_path / "a", "--cluster-enabled", "yes") as server:
        assert "is a Redis Cluster" in await refused(f"redis://127.0.0.1:{server.port}")
        master = ("--replicaof", "127.0.0.1", str(free_port()))
        with RedisServer(tmp_path / "b", *master) as replica:
            assert "is a replica" in await refused(replica.url)


async def test_an_older_server_is_refused(server: RedisServer) -> None:
    async with cutter(server) as relay:
        # The answer keeps its length.
        relay.reply = lambda number, data: re.sub(
            rb"(redis|valkey)_version:\S+",
            lambda found: (found[1] + b"_version:6.0").ljust(len(found[0]), b"."),
            data,
        )
        assert re.search(r"is (Redis|Valkey) 6\.0", await refused(relay.url))


async def test_something_else_than_redis_is_refused() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(web, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    assert "does not speak RESP" in await refused(f"redis://127.0.0.1:{port}")
    listener.close()
    await listener.wait_closed()


async def test_a_policy_that_evicts_history_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")
    with RedisServer(tmp_path, *options) as server:
        async with opened(server.url):
            pass
    assert "maxmemory-policy volatile-lru" in caplog.text
    assert "set maxmemory-policy noeviction" in caplog.text


# The rights that docs/redis-bus.md lists.
DOCUMENT = Path(__file__).parent.parent / "docs/redis-bus.md"


def documented_rights() -> list[str]:
    of_bus, _ = re.findall(r"ACL SETUSER wsc (.*)", DOCUMENT.read_text())
    return str(of_bus).split()


@on_each_program
async def test_a_user_with_the_documented_rights_is_enough(server: RedisServer) -> None:
    rights = documented_rights()
    assert ">PASSWORD" in rights
    server.command("ACL", "SETUSER", "wsc", "reset", *rights)
    url = f"redis://wsc:PASSWORD@127.0.0.1:{server.port}"
    try:
        async with opened(url, "a", ["k", "p"]) as (bus, node):
            first, _ = positions(await say(bus, "k", "x", "y"))
            await say(bus, "k", "z", key="K")
            await say(bus, "p", "x", kept=None)
            await say(bus, "p", "x", kept=None, key="K")
            server.command("SCRIPT", "FLUSH")
            assert texts_of(await history(bus, "k", first)) == ["y", "z"]
            assert texts_of(await history(bus, "k")) == ["x", "y", "z"]
            await bus.tops(["k"])
            bus.unsubscribe(["p"])
            await eventually(lambda: len(node.messages) == 5)
            await bus.delete("k")
            assert texts_of(await history(bus, "k")) == []
        assert "does not let us" in await refused(url, prefix="other:")
        commands = [each[1:] for each in rights if each.startswith("+")]
        # Without these two the bus works: a connection has no name, and a PING has an answer.
        for name in {each.split("|")[0] for each in commands} - {"client", "ping"}:
            server.command("ACL", "SETUSER", "wsc", "reset", *rights, f"-{name}")
            text = await refused(url)
            assert name in text.lower(), text
    finally:
        server.command("ACL", "DELUSER", "wsc")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://x"}, "the URL of a RedisBus must be redis://"),
        ({"url": "redis://x:port"}, "the URL of a RedisBus must be redis://"),
        ({"url": "redis+sentinel://h1,h2"}, "the name of the master is missing"),
        ({"url": []}, "url must name 1 to 64 servers, not 0"),
        ({"timeout": 0}, "timeout must be above 0 and up to 60 seconds, not 0"),
        ({"timeout": 61}, "timeout must be above 0 and up to 60 seconds, not 61"),
        ({"max_waiting_bytes": 0}, "max_waiting_bytes must be at least 1, not 0"),
        ({"prefix": "a b"}, "prefix must be up to 64 ASCII characters"),
        ({"prefix": "{a}"}, "prefix must be up to 64 ASCII characters"),
        ({"prefix": "a" * 65}, "prefix must be up to 64 ASCII characters"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        RedisBus(**({"url": "redis://localhost"} | options))


def test_no_text_shows_a_password() -> None:
    for url in (
        "redis://user:secret@host/1",
        "redis+sentinel://user:secret@h1:1,h2/main?sentinel_password=secret2",
    ):
        assert "secret" not in repr(RedisBus(url))
    with pytest.raises(ConfigError) as caught:
        RedisBus("http://user:secret@host")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# --- ways to a server ---


async def test_the_bus_goes_over_a_unix_socket(tmp_path: Path) -> None:
    # The path of a socket is bounded, and pytest's is long.
    path = f"/tmp/wsc-test-{os.getpid()}.sock"
    with RedisServer(tmp_path, "--unixsocket", path):
        async with opened(f"unix://{path}?db=1", "a", ["k"]) as (bus, node):
            await say(bus, "k", "x")
            await eventually(lambda: node.texts("k") == ["x"])


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, authority: Any) -> Iterator[RedisServer]:
    """A server with a port for TLS beside its own; its number is the plain one's."""
    folder = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(folder / "cert.pem", append=number > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    files = [f"--tls-cert-file {folder}/cert.pem", f"--tls-key-file {folder}/key.pem"]
    options = " ".join([*files, f"--tls-ca-cert-file {folder}/ca.pem", "--tls-auth-clients no"])
    with RedisServer(folder, "--tls-port", str(free_port()), *options.split()) as server:
        yield server


async def test_the_bus_goes_over_tls(
    tls_server: RedisServer, client_tls: ssl.SSLContext, any_loop: str
) -> None:
    port = tls_server.options[1]
    ca = tls_server.directory / "ca.pem"
    by_url = (f"rediss://localhost:{port}?ssl_ca_certs={ca}", None)
    by_context = (f"redis://localhost:{port}", client_tls)
    for url, context in (by_url, by_context):
        async with opened(url, "a", ["k"], ssl_context=context) as (bus, node):
            await say(bus, "k", "x" * 300_000)
            await all_came(node, 1)
    assert "certificate verify failed" in await refused(f"rediss://localhost:{port}")


async def test_rooms_are_divided_between_independent_servers(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    rooms = [f"room {number}" for number in range(40)]
    with RedisServer(folders[0]) as first, RedisServer(folders[1]) as second:
        urls = [first.url, second.url]
        async with opened(urls, "a", rooms) as (one, node), opened(urls, "b") as (two, _):
            for room in rooms:
                await say(two, room, "x")
            await say(two, EVERYBODY, "all", kept=None)
            await eventually(lambda: len(node.messages) == 41)
            tops = await one.tops(rooms)
            assert None not in tops
            assert [(await history(two, room)).top for room in rooms] == tops
            held = [
                sum(server.command("EXISTS", f"wsc:h:{{{room}}}") for room in rooms)
                for server in (first, second)
            ]
            assert sum(held) == 40
            assert min(held) > 8
            # One server is away: the rooms of the other go on.
            await asyncio.to_thread(second.kill)
            await eventually(lambda: len(node.states) == 2)
            there = [room for room in rooms if first.command("EXISTS", f"wsc:h:{{{room}}}")]
            await say(one, there[0], "y")
            await asyncio.to_thread(second.start)
            await eventually(lambda: node.states[2:] == ["up"])


def test_with_one_server_more_only_rooms_move_that_go_there() -> None:
    keys = range(0, 1 << 32, 4_000_037)
    for buckets in range(1, 10):
        before = [jump(key, buckets) for key in keys]
        after = [jump(key, buckets + 1) for key in keys]
        assert set(before) == set(range(buckets))
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        assert set(moved) == {buckets}
        assert abs(len(moved) / len(keys) - 1 / (buckets + 1)) < 0.05


async def test_a_sentinel_that_is_asked_is_among_the_sockets_of_the_bus() -> None:
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        login = await reader.readuntil(b"secret\r\n")
        assert login.startswith(b"*3\r\n$4\r\nAUTH\r\n$4\r\nuser\r\n")
        writer.write(b"+OK\r\n")
        await reader.readuntil(b"main\r\n")
        asked.set()
        await reader.read()  # until the end: it gives no answer
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as sentinel:
        at = f"127.0.0.1:{sentinel.sockets[0].getsockname()[1]}"
        options = "sentinel_username=user&sentinel_password=secret"
        bus = RedisBus(f"redis+sentinel://127.0.0.1:1,{at}/main?{options}")
        opening = asyncio.ensure_future(bus.open(Node(), "a"))
        await asked.wait()
        (descriptor,) = bus.descriptors()
        with socket.socket(fileno=os.dup(descriptor)) as ours:
            assert ":".join(map(str, ours.getpeername())) == at
        with pytest.raises(BusError, match=f"no Sentinel knows a master.*{at}: no answer"):
            await opening
        assert bus.descriptors() == []


async def test_a_failover_of_sentinel_is_followed(tmp_path: Path) -> None:
    async with failing_over(tmp_path) as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port},127.0.0.1:1/main"
        async with opened(url, "a", ["k"], timeout=30.0) as (bus, node):
            (first,) = positions(await say(bus, "k", "before"))
            await eventually(lambda: replica.command("GET", "wsc:t:{k}") == first.encode())
            await asyncio.to_thread(master.kill)
            found = positions(await say(bus, "k", "after"))
            await eventually(lambda: node.again("k") >= 1, timeout=20)
            page = await history(bus, "k", first)
            assert page.contiguous
            assert [each.position for each in page.entries] == found
            assert replica.command("GET", "wsc:t:{k}") == found[0].encode()


@asynccontextmanager
async def with_sentinel(tmp_path: Path) -> AsyncIterator[tuple[RedisServer, str]]:
    """A master, and the URL of its Sentinel, which does nothing by itself."""
    folders = tmp_path / "master", tmp_path / "sentinel"
    for folder in folders:
        folder.mkdir()
    with (
        RedisServer(folders[0]) as master,
        Sentinel(folders[1], master, down_after=600_000) as sentinel,
    ):
        yield master, f"redis+sentinel://127.0.0.1:{sentinel.port}/main"


@pytest.mark.parametrize("fault", ["killed", "a replica"])
async def test_a_start_waits_for_the_master_that_sentinel_names(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_sentinel(tmp_path) as (master, url):
        if fault == "killed":
            await asyncio.to_thread(master.kill)
        else:
            master.command("REPLICAOF", "127.0.0.1", str(free_port()))
        async with AsyncExitStack() as stack:
            opening = asyncio.ensure_future(
                stack.enter_async_context(opened(url, "a", ["k"], timeout=30.0))
            )
            await eventually(lambda: times_logged(caplog, "cannot be used yet") or opening.done())
            assert not opening.done()
            if fault == "killed":
                await asyncio.to_thread(master.start)
            else:
                master.command("REPLICAOF", "NO", "ONE")
            bus, _ = await opening
            await say(bus, "k", "x")
        assert times_logged(caplog, "cannot be used yet") == 1


async def test_a_start_waits_no_longer_than_the_timeout(tmp_path: Path) -> None:
    async with with_sentinel(tmp_path) as (master, url):
        await asyncio.to_thread(master.kill)
        began = time.monotonic()
        with pytest.raises(BusError, match="cannot be reached"):
            async with opened(url, timeout=0.5):
                pass
        assert time.monotonic() - began < 5


@on_each_program
async def test_no_key_is_left_without_a_time_to_live(server: RedisServer) -> None:
    async with opened(server.url, "a", ["k"]) as (bus, _):
        await say(bus, "k", "x", "y")
        await say(bus, "k", "z", key="K")
        await say(bus, "p", "z", kept=None, key="K")
        await history(bus, "new")
        keys = server.command("KEYS", "*")
        assert sorted(key.decode() for key in keys) == [
            *("wsc:h:{k}", "wsc:i:1:{k}:K", "wsc:i:1:{p}:K", "wsc:keep", "wsc:t:{k}", "wsc:t:{new}")
        ]
        assert all(server.command("PTTL", key) > 0 for key in keys)


def test_the_log_says_what_an_operator_can_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wsc_fast")

    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(server.url) as (_, node):
                await asyncio.to_thread(server.kill)
                await eventually(lambda: len(node.states) == 2)
                await asyncio.to_thread(server.start)
                await eventually(lambda: len(node.states) == 3)

    asyncio.run(scenario())
    lines = [record.getMessage() for record in caplog.records]
    for part in (
        "connected to",
        "has ended",
        "Look whether the server runs",
        "is there again, after",
    ):
        assert any(part in line for line in lines), (part, lines)
