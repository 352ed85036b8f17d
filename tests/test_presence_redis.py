"""Presence over several hubs and a real server: what all of them know, and what faults leave."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.no_words import NoWords
from tests.redis_server import RedisServer, cutter
from tests.support import join, named
from tests.test_presence import Told, inside, members, sum_of
from wsc_fast import BusError, BusUnavailableError, Hub, HubConfig, HubStateError, NodeInfo
from wsc_fast.bus.base import PRESENCE, Change, NodeState, Outgoing
from wsc_fast.bus.local import LocalBus
from wsc_fast.bus.redis import directory
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.bus.redis.commands import script
from wsc_fast.cluster import nodes, views
from wsc_fast.testing import RawClient, eventually, eventually_async

# Seconds of a lease and between its renewals, of hubs that are killed: the others know it soon.
# Hubs of this process have a longer lease, since the loop may stand still on a busy machine.
LEASE, REFRESH = 1.0, 0.2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A view is read again soon after the bus was away."""
    monkeypatch.setattr(views, "SETTLE", 0.5)


@dataclass
class Here:
    """A hub of this process, and what it was told."""

    hub: Hub
    told: Told


@asynccontextmanager
async def hubs(
    urls: list[Any], grace: float = 0.0, rooms: tuple[str, ...] = ("r*",)
) -> AsyncIterator[list[Here]]:
    """Hubs with presence on one bus; each has the room `r`."""
    made = []
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        for url in urls:
            bus = RedisBus(url, refresh=REFRESH)
            config = HubConfig(presence_grace=grace, close_timeout=0.1)
            hub = Hub(config, authenticate=named)
            hub.presence(*rooms)
            hub.set_bus(bus)
            told: Told = []
            hub.on_presence(lambda room, joined, left, told=told: told.append((room, joined, left)))
            hub.create_room("r")
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            made.append(Here(hub, told))
        yield made


async def agreed(here: list[Here], expected: dict[str, int], timeout: float = 10.0) -> None:
    """Returns once all hubs answer so, in each way, and have told it where they have members."""

    async def are() -> bool:
        for each in here:
            if await members(each.hub) != expected:
                return False
            if await each.hub.cluster.count("r") != len(expected):
                return False
            if each.hub.get_room_clients("r") and sum_of(each.told) != set(expected):
                return False
        return True

    await eventually_async(are, timeout)


PROGRAM = """
import asyncio, sys
from wsc_fast import Hub, HubConfig, Identity, RedisBus

async def main() -> None:
    bus = RedisBus(sys.argv[1], lease=1.0, refresh=0.2)
    hub = Hub(
        HubConfig(presence_grace=float(sys.argv[2])),
        authenticate=lambda request: Identity(request.query["id"]),
        bus=bus,
    )
    hub.presence("r*")
    hub.on_client_connected(lambda client: hub.join_room(client.id, "r"))
    await hub.start("127.0.0.1", 0)
    print(hub.port, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await hub.stop(0.1)

asyncio.run(main())
"""


@dataclass
class Apart:
    """A hub in a process of its own; its clients enter the room `r`."""

    process: subprocess.Popen[str]
    port: int

    async def stop(self) -> None:
        """In good order."""
        await asyncio.to_thread(self.process.communicate, "stop\n", 10)


@asynccontextmanager
async def apart(url: str, grace: float = 0.0) -> AsyncIterator[Apart]:
    with subprocess.Popen(  # noqa: ASYNC220 (it does not block for long)
        [sys.executable, "-c", PROGRAM, url, str(grace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            # In a thread: a hub of this process needs its loop.
            yield Apart(process, int(await asyncio.to_thread(process.stdout.readline)))
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


class Node(NoWords):
    """A bus without a hub, and what it has heard."""

    def __init__(self, url: Any, **options: Any) -> None:
        self.bus = RedisBus(url, **{"refresh": REFRESH, **options})
        self.grace = 0.0
        self.lines: list[tuple[str, str]] = []
        self.calls = 0
        self.again: list[str] = []

    def envelope(self, channel: str, data: bytes) -> bool:
        self.calls += 1
        self.lines += [(channel.removeprefix(PRESENCE), line) for line in data.decode().split("\n")]
        return True

    def takes_more(self) -> bool:
        return True

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Any, again: bool) -> None:
        if again:
            self.again += [each.removeprefix(PRESENCE) for each in channels]

    def up(self) -> None: ...
    def down(self, error: Exception) -> None: ...
    def not_published(self, outgoing: Outgoing, error: Exception) -> None: ...

    def put(self, *changes: tuple[str, str, int]) -> None:
        self.bus.directory([Change(*each) for each in changes])

    async def members(self, room: str) -> dict[str, int]:
        return await views.members_of(self.bus, room)


@asynccontextmanager
async def node(url: Any, name: str, *rooms: str, **options: Any) -> AsyncIterator[Node]:
    made = Node(url, **options)
    async with asyncio.timeout(60):
        await made.bus.open(made, name)
        try:
            await made.bus.lease(lambda: NodeState(7, False), lambda: made.grace)
            made.bus.subscribe([PRESENCE + room for room in rooms])
            yield made
        finally:
            await made.bus.close()


def keys(server: RedisServer) -> list[str]:
    """All keys, but for the one that tells publishers which rooms are kept."""
    found = sorted(key.decode() for key in server.command("KEYS", "*"))
    return [key for key in found if key != "wsc:keep"]


# --- what all hubs know ---


async def test_all_hubs_know_who_is_there(server: RedisServer) -> None:
    async with hubs([server.url] * 3) as here:
        one, two, three = (each.hub for each in here)
        async with inside(one, "a", "b1&user=b"), inside(two, "b2&user=b", "c"):
            await agreed(here, {"a": 1, "b": 2, "c": 1})
            assert await three.cluster.online(["a", "b", "x"]) == {"a", "b"}
            nodes = await three.cluster.nodes()
            assert {each.name for each in nodes} == {each.hub._node.name for each in here}
            assert len({each.incarnation for each in nodes}) == 3
            assert not any(each.draining for each in nodes)

            async def counted() -> bool:
                return sorted(each.clients for each in await one.cluster.nodes()) == [0, 2, 2]

            await eventually_async(counted)
            one.leave_room("b1", "r")
            two.leave_room("c", "r")
            await agreed(here, {"a": 1, "b": 1})
        await agreed(here, {})


async def test_a_question_sees_what_its_own_hub_has_done_just_now(server: RedisServer) -> None:
    async with hubs([server.url]) as (here,), inside(here.hub, "a"):
        assert await members(here.hub) == {"a": 1}
        for _ in range(20):
            here.hub.leave_room("a", "r")
            assert await here.hub.cluster.count("r") == 0
            here.hub.join_room("a", "r")
            assert await here.hub.cluster.count("r") == 1
        assert await here.hub.cluster.online(["a"]) == {"a"}


async def test_a_hub_that_has_no_members_hears_nothing_and_hears_all_with_the_first(
    server: RedisServer,
) -> None:
    async with hubs([server.url] * 2) as here:
        one, two = here
        async with inside(one.hub, "a", "b"):
            await agreed([one], {"a": 1, "b": 1})
            assert two.told == []
            async with inside(two.hub, "c"):
                await agreed(here, {"a": 1, "b": 1, "c": 1})


async def test_ids_of_any_kind_are_told_apart(server: RedisServer) -> None:
    async with node(server.url, "a", "r r", "r") as one, node(server.url, "b") as two:
        users = ["u v", "u", "v", "+", "-x", "ü{}", "1 2"]
        for user in users:
            two.put(("r r", user, 1), ("r", f"{user} 1", 2), ("", user, 3))
        await eventually(lambda: len(one.lines) == 14)
        assert {user for room, user in one.lines if room == "r r"} == {f"+{u}" for u in users}
        assert await one.members("r r") == dict.fromkeys(users, 1)
        assert await one.members("r") == {f"{user} 1": 2 for user in users}
        assert await one.bus.online([*users, "w", ""]) == set(users)


async def test_a_large_room_is_read_in_pages(server: RedisServer) -> None:
    async with node(server.url, "a") as one:
        users = [f"user {number}" for number in range(1700)]
        one.put(*(("r", user, 1) for user in users))
        cursor, page = await one.bus.members("r", "")
        sizes = [len(page)]
        found = {each.user_id for each in page}
        while cursor:
            cursor, page = await one.bus.members("r", cursor)
            sizes.append(len(page))
            found |= {each.user_id for each in page}
        assert found == set(users)
        assert len(sizes) >= 3
        assert max(sizes) < 600
        assert await one.bus.count("r") == 1700
        assert await one.bus.online([*users, "nobody"]) == set()


async def test_rooms_and_users_are_divided_between_servers(tmp_path: Path) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as first, RedisServer(folders[1]) as second:
        urls = [first.url, second.url]
        rooms = [f"r{number}" for number in range(20)]
        async with node(urls, "a", *rooms) as one, node(urls, "b") as two:
            users = [f"u{number}" for number in range(20)]
            two.put(*((room, user, 1) for room in rooms for user in users))
            two.put(*(("", user, 1) for user in users))
            await eventually(lambda: len(one.lines) == 400)
            for room in rooms:
                assert await one.members(room) == dict.fromkeys(users, 1)
            assert await one.bus.online(users) == set(users)
            assert {each.name for each in await one.bus.nodes()} == {"a", "b"}
            for each in (first, second):
                assert 0 < len(each.command("KEYS", "wsc:p:*")) < 20
                assert 0 < len(each.command("KEYS", "wsc:u:*")) < 20
        assert keys(first) == keys(second) == []


async def test_hubs_of_one_machine_know_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        async with AsyncExitStack() as stack:
            made = []
            for _ in range(2):
                hub = Hub(authenticate=named, bus=LocalBus("presence"))
                hub.presence("r")
                hub.create_room("r")
                await hub.start("127.0.0.1", 0)
                stack.push_async_callback(hub.stop, 0.1)
                made.append(hub)
            async with inside(made[0], "a"):
                assert await members(made[0]) == {"a": 1}
                assert await members(made[1]) == {"a": 1}
                assert await made[1].cluster.count("r") == 1
                assert await made[1].cluster.online(["a"]) == {"a"}
                assert len(await made[1].cluster.nodes()) == 2


@asynccontextmanager
async def changing(node: Node) -> AsyncIterator[None]:
    """Users come and go in each turn of the loop."""

    async def change() -> None:
        for number in itertools.count():
            node.put(("busy", f"u{number % 50}", number % 3))
            await asyncio.sleep(0)

    task = asyncio.ensure_future(change())
    try:
        yield
    finally:
        task.cancel()


async def test_a_question_is_answered_while_users_come_and_go_all_the_time(
    server: RedisServer,
) -> None:
    async with node(server.url, "a") as one, changing(one):
        for number in range(20):
            one.put(("r", f"u{number}", 1))
            async with asyncio.timeout(2):
                assert await one.bus.count("r") == number + 1


async def test_a_question_while_the_bus_is_away_ends_in_its_time(server: RedisServer) -> None:
    async with node(server.url, "a", timeout=1.0) as one:
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            one.put(("r", "u", 1))
            for question in (one.bus.count("r"), one.bus.members("r", ""), one.bus.online(["u"])):
                with pytest.raises(BusUnavailableError, match="did not take the changes"):
                    await question
        finally:
            server.process.send_signal(signal.SIGCONT)


async def test_a_dead_hub_is_taken_out_by_one_that_always_has_something_to_write(
    server: RedisServer,
) -> None:
    async with node(server.url, "a", "r") as one:
        incarnation = "gone.AAAAAAAA"
        server.command("ZADD", "wsc:nodes", 1, incarnation)
        server.command("HSET", "wsc:p:{r}", "u", f"{incarnation} 1\n")
        server.command("SADD", f"wsc:nr:{incarnation}", "r\nu")
        async with changing(one):
            await eventually(lambda: ("r", "-u") in one.lines)


# --- hubs that end ---


async def test_a_killed_hub_is_no_more_once_its_lease_has_ended(server: RedisServer) -> None:
    async with hubs([server.url] * 2, grace=0.3) as here, inside(here[0].hub, "a"):
        async with apart(server.url, grace=0.3) as killed:
            raws = [await RawClient.open(killed, f"/ws?id={name}") for name in ("a", "b", "c")]
            await agreed(here, {"a": 2, "b": 1, "c": 1})
            killed.process.kill()
            await agreed(here, {"a": 1}, timeout=LEASE + 1.5)
            assert await here[1].hub.cluster.online(["a", "b", "c"]) == {"a"}
            assert len(await here[1].hub.cluster.nodes()) == 2
            for raw in raws:
                raw.close()
        assert [left for _, _, left in here[0].told if left] == [{"b", "c"}]


async def test_the_leaves_of_a_killed_hub_are_one_message_for_each_room(
    server: RedisServer,
) -> None:
    async with (
        node(server.url, "a", "r", "s") as one,
        cutter(server) as relay,
        node(relay.url, "b", timeout=0.1, lease=LEASE) as two,
    ):
        users = [f"u{number:02}" for number in range(40)]
        two.put(*((room, user, 1) for room in ("r", "s") for user in users))
        await eventually(lambda: len(one.lines) == 80)
        calls = one.calls
        relay.request = lambda number, data: None
        await eventually(lambda: len(one.lines) == 160)
        assert one.calls - calls == 2
        assert sorted(one.lines[80:]) == [(room, f"-{u}") for room in "rs" for u in users]
        assert one.bus.counters()["reaped"] == 80


async def test_hubs_hear_of_each_other_and_of_one_that_is_killed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SETTLE", 0.5)
    heard: list[tuple[str, bool]] = []
    errors: list[BaseException] = []
    async with hubs([server.url] * 2) as (one, two):
        one.hub.on_error(lambda client, error: errors.append(error))

        @one.hub.on_node
        async def fail(node: NodeInfo, is_up: bool) -> None:
            raise RuntimeError

        @one.hub.on_node
        def changed(node: NodeInfo, is_up: bool) -> None:
            heard.append((node.name, is_up))

        other = two.hub._node.name
        await eventually(lambda: heard == [(other, True)])
        async with apart(server.url) as killed:
            await eventually(lambda: len(heard) == 2)
            name = heard[1][0]
            assert heard[1][1]
            killed.process.kill()
            await eventually(lambda: len(heard) == 3)
            assert heard[2] == (name, False)
        await two.hub.stop(1.0)
        await eventually(lambda: heard[3:] == [(other, False)])
        await eventually(lambda: len(errors) == 4)


async def test_a_hub_counts_the_hubs_on_the_bus(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "EVERY", 0.2)
    lonely = Hub(authenticate=named)
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        made = [
            Hub(
                HubConfig(close_timeout=0.1),
                authenticate=named,
                bus=RedisBus(server.url, lease=1, refresh=0.2),
            )
            for _ in range(2)
        ]
        for each in (lonely, *made):
            await each.start("127.0.0.1", 0)
            stack.push_async_callback(each.stop, 1.0)

        async def counted(number: int) -> None:
            await eventually(
                lambda: [each.get_stats().nodes for each in made] == [number] * len(made)
            )

        await counted(2)
        async with apart(server.url) as killed:
            await counted(3)
            killed.process.kill()
            await counted(2)
        assert lonely.get_stats().nodes == 0
        made[0].reset_stats()
        assert made[0].get_stats().nodes == 2  # it is no counter
        await made.pop().stop(1.0)
        await counted(1)
        server.stop()
        await counted(0)
        server.start()
        await counted(1)
        await made[0].stop(1.0)
        assert made[0].get_stats().nodes == 0


async def test_a_hub_without_presence_hears_of_the_others(server: RedisServer) -> None:
    heard: list[tuple[str, bool]] = []
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        one, two = (Hub(authenticate=named, bus=RedisBus(server.url)) for _ in range(2))
        one.on_node(lambda node, is_up: heard.append((node.name, is_up)))
        for each in (one, two):
            await each.start("127.0.0.1", 0)
            stack.push_async_callback(each.stop, 1.0)
        await eventually(lambda: heard == [(two._node.name, True)])


async def test_a_server_that_has_lost_its_data_is_no_end_of_a_hub(server: RedisServer) -> None:
    heard: list[bool] = []
    async with hubs([server.url] * 2) as (one, two):
        one.hub.on_node(lambda node, is_up: heard.append(is_up))
        await eventually(lambda: heard == [True])
        asked = two.hub.bus.counters()["lost_leases"]  # type: ignore[union-attr]
        server.command("FLUSHALL")
        await eventually(
            lambda: two.hub.bus.counters()["lost_leases"] > asked  # type: ignore[union-attr]
        )
        known = one.hub._node._nodes
        assert known is not None
        await eventually(lambda: not known._missing)
        await agreed([one, two], {})
        assert heard == [True]


async def test_the_users_of_a_killed_hub_may_be_back_within_a_grace_that_outlasts_its_lease(
    server: RedisServer,
) -> None:
    async with (
        node(server.url, "a", "r", lease=LEASE) as one,
        cutter(server) as relay,
        node(relay.url, "b", timeout=0.1, lease=LEASE) as two,
    ):
        one.grace = two.grace = 4 * LEASE
        two.put(("r", "back", 1), ("r", "gone", 1))
        await eventually(lambda: len(one.lines) == 2)
        relay.request = lambda number, data: None
        await eventually(lambda: one.bus.counters()["reaped"] == 2)
        assert await one.members("r") == {"back": 0, "gone": 0}
        one.put(("r", "back", 1))
        await eventually(lambda: len(one.lines) == 3)
        assert one.lines[2] == ("r", "-gone")
        assert await one.members("r") == {"back": 1}


async def test_a_hub_that_was_frozen_enters_all_anew(server: RedisServer) -> None:
    async with (
        hubs([server.url] * 2) as here,
        inside(here[0].hub, "a"),
        apart(server.url) as frozen,
    ):
        raw = await RawClient.open(frozen, "/ws?id=b")
        await agreed(here, {"a": 1, "b": 1})
        before = {each.incarnation for each in await here[0].hub.cluster.nodes()}
        frozen.process.send_signal(signal.SIGSTOP)
        await agreed(here, {"a": 1}, timeout=LEASE + 1.5)
        frozen.process.send_signal(signal.SIGCONT)
        await agreed(here, {"a": 1, "b": 1})
        after = {each.incarnation for each in await here[0].hub.cluster.nodes()}
        assert len(before & after) == 2
        assert len(before) == len(after) == 3
        raw.close()
        await agreed(here, {"a": 1})


async def test_a_hub_that_the_others_took_for_dead_tells_it(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(server.url, "a", "r") as one, node(server.url, "b") as two:
        two.put(("r", "u", 1))
        await eventually(lambda: one.lines)
        (held,) = two.bus._directories.values()
        former = held.incarnation
        server.command("DEL", f"wsc:n:{former}")
        await eventually(lambda: two.bus.counters()["lost_leases"] == 1)
        assert "the lease of this hub has ended" in caplog.text
        assert await two.members("r") == {"u": 1}
        await eventually(lambda: server.command("ZSCORE", "wsc:nodes", former) is None)
        assert held.incarnation != former
        assert await one.members("r") == {"u": 1}


async def test_a_user_who_left_while_the_bus_was_away_may_be_back_within_the_grace(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path, "--appendfsync", "always") as server:
        async with node(server.url, "a", "r") as one, node(server.url, "b") as two:
            one.grace = two.grace = 1.0
            two.put(("r", "u", 1), ("r", "v", 1))
            await eventually(lambda: len(one.lines) == 2)
            await asyncio.to_thread(server.kill)
            two.put(("r", "u", 0), ("r", "v", 0))
            await asyncio.to_thread(server.start)
            await eventually(lambda: server.command("ZCARD", "wsc:grace") == 2)
            one.put(("r", "u", 1))
            await eventually(lambda: len(one.lines) == 3)
            assert one.lines[2] == ("r", "-v")
            assert await one.members("r") == {"u": 1}


async def test_a_call_that_arrives_late_changes_nothing(server: RedisServer) -> None:
    """A node has given its connection up, and the server reads what it has sent there."""
    async with node(server.url, "a") as one, node(server.url, "b", "r") as two:
        one.put(("r", "u", 1))
        await eventually(lambda: two.lines)
        (held,) = one.bus._directories.values()

        def enter(incarnation: str, number: int) -> Any:
            text, name = script("directory").text, incarnation.encode()
            entry = ("60", "r", "late", "1")
            return server.command("EVAL", text, 0, "enter", "wsc:", name, number, "0", *entry)

        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: held._number == 2)
        await eventually(lambda: server.command("GET", f"wsc:n:{held.incarnation}")[:2] == b"2 ")
        assert enter(held.incarnation, 1) == b"LEASE"
        assert enter("a.former", 1) == b"LEASE"
        reap = ("reap", "wsc:", held.incarnation, 1, "b", "1", "0")
        assert server.command("EVAL", script("directory").text, 0, *reap) == b"LEASE"
        assert await two.members("r") == {"u": 1}
        assert enter(held.incarnation, 2) == []
        assert await two.members("r") == {"late": 1, "u": 1}


async def test_a_restart_of_hubs_one_after_another_tells_nobody_to_have_left(
    server: RedisServer,
) -> None:
    names = [f"u{number}" for number in range(6)]
    expected = dict.fromkeys([*names, "watcher"], 1)
    async with (
        hubs([server.url], grace=5.0) as here,
        inside(here[0].hub, "watcher"),
        AsyncExitStack() as stack,
    ):
        old = await stack.enter_async_context(apart(server.url, 5.0))
        raws = [await RawClient.open(old, f"/ws?id={name}") for name in names]
        await agreed(here, expected)
        for _ in range(2):
            new = await stack.enter_async_context(apart(server.url, 5.0))
            await old.stop()
            assert await here[0].hub.cluster.count("r") == 7
            for raw in raws:
                raw.close()
            raws = [await RawClient.open(new, f"/ws?id={name}") for name in names]
            await agreed(here, expected)
            assert await here[0].hub.cluster.online(names) == set(names)
            old = new
        assert [left for _, _, left in here[0].told if left] == []
        for raw in raws:
            raw.close()


# --- the server ends ---


async def test_a_leave_that_the_bus_did_not_bring_is_read(server: RedisServer) -> None:
    async with hubs([server.url] * 2) as here, inside(here[0].hub, "a"), inside(here[1].hub, "b"):
        here[0].hub.create_room("plain")
        here[0].hub.join_room("a", "plain")
        await agreed(here, {"a": 1, "b": 1})
        # As if it had been told while no connection was there.
        server.command("HDEL", "wsc:p:{r}", "b")
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await agreed(here, {"a": 1})


async def restarted(server: RedisServer, change: Callable[[], object]) -> None:
    await asyncio.to_thread(server.kill)
    change()
    await asyncio.to_thread(server.start)


def is_read(here: Here) -> bool:
    """Whether no read of the hub's view is due."""
    presence = here.hub._node._presence
    assert presence is not None
    return presence._views._views["r"].reading is None


@pytest.mark.parametrize("what", ["with its data", "empty", "with older data"])
async def test_a_server_that_restarts_ends_in_the_truth_and_nobody_flickers(
    tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with RedisServer(folder, "--appendfsync", "always") as server:
        async with (
            hubs([server.url] * 2) as here,
            inside(here[0].hub, "a", "gone"),
            inside(here[1].hub, "b"),
        ):
            await agreed(here, {"a": 1, "b": 1, "gone": 1})
            log = folder / "appendonlydir"
            shutil.copytree(log, tmp_path / "older") if log.exists() else None
            here[0].hub.leave_room("gone", "r")
            await agreed(here, {"a": 1, "b": 1})

            def change() -> None:
                if what != "with its data":
                    shutil.rmtree(log)
                if what == "with older data":
                    shutil.copytree(tmp_path / "older", log)

            incarnations = {each.incarnation for each in await here[0].hub.cluster.nodes()}
            await restarted(server, change)
            async with inside(here[0].hub, "c"):
                await agreed(here, {"a": 1, "b": 1, "c": 1})
                nodes = await here[0].hub.cluster.nodes()
                assert not incarnations & {each.incarnation for each in nodes}
                # Views that are read again find the same.
                await eventually(lambda: all(map(is_read, here)))
                await agreed(here, {"a": 1, "b": 1, "c": 1})
                for each in here:
                    left = [left for _, _, left in each.told if left]
                    assert left == [{"gone"}]


async def test_a_promoted_replica_that_has_missed_something_is_brought_up_to_date(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    at_once = ("--repl-diskless-sync-delay", "0")
    with RedisServer(folders[0], *at_once) as master, RedisServer(folders[1]) as replica:
        replica.command("REPLICAOF", "127.0.0.1", master.port)
        await eventually(lambda: replica.command("INFO")["master_link_status"] == "up")
        async with (
            cutter(master) as relay,
            node(relay.url, "a", "r") as one,
            node(relay.url, "b") as two,
        ):
            two.put(("r", "u", 1), ("r", "v", 1), ("", "u", 1))
            await eventually(lambda: len(one.lines) == 2)
            await eventually(lambda: replica.command("HLEN", "wsc:p:{r}") == 2)
            replica.command("REPLICAOF", "127.0.0.1", "1")
            two.put(("r", "v", 0), ("r", "w", 1))
            await eventually(lambda: len(one.lines) == 4)
            replica.command("REPLICAOF", "NO", "ONE")
            assert replica.command("HLEN", "wsc:p:{r}") == 2
            relay._server_port = replica.port
            await asyncio.to_thread(master.kill)

            async def is_so() -> bool:
                return (
                    await one.members("r") == {"u": 1, "w": 1}
                    and await one.bus.count("r") == 2
                    and await one.bus.online(["u", "v", "w"]) == {"u"}
                    and one.again != []
                )

            await eventually_async(is_so, 20)
        assert [key for key in keys(replica) if not key.startswith("wsc:n")] == []


async def test_a_hub_ends_at_once_where_the_bus_is_away(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        async with hubs([server.url]) as here, inside(here[0].hub, "a"):
            await agreed(here, {"a": 1})
            await asyncio.to_thread(server.kill)
            await here[0].hub.stop(0.1)  # closes its client, and then
            with pytest.raises(HubStateError):
                await here[0].hub.cluster.count("r")
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(server.start)
        one = Node(server.url, timeout=30.0)
        await one.bus.open(one, "a")
        await one.bus.lease(lambda: NodeState(0, False), lambda: 0.0)
        one.put(("r", "u", 1))
        await asyncio.to_thread(server.kill)
        await eventually(lambda: not one.bus._servers[0].is_there())
        began = loop.time()
        await one.bus.close()
        assert loop.time() - began < 5


async def test_a_stop_that_ends_before_the_bus_answers_leaves_nothing_open(
    server: RedisServer,
) -> None:
    hub = Hub(HubConfig(close_timeout=0.1), authenticate=named, bus=RedisBus(server.url))
    hub.presence("r")
    assert server.process is not None
    for _ in range(2):
        await hub.start("127.0.0.1", 0)
        server.process.send_signal(signal.SIGSTOP)
        await hub.stop(0.1)
        server.process.send_signal(signal.SIGCONT)
        assert len(asyncio.all_tasks()) == 1


async def test_a_start_that_one_of_two_servers_refuses_leaves_nothing_open(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / "1", tmp_path / "2"]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as first, RedisServer(folders[1]) as second:
        second.command("ACL", "SETUSER", "default", "-spop")
        hub = Hub(authenticate=named, bus=RedisBus([first.url, second.url]))
        hub.presence("r")
        with pytest.raises(BusError, match="all that presence needs"):
            await hub.start("127.0.0.1", 0)
        assert len(asyncio.all_tasks()) == 1
        second.command("ACL", "SETUSER", "default", "+spop")
        await hub.start("127.0.0.1", 0)
        await hub.stop(0.1)
        assert keys(first) == keys(second) == []


async def test_scripts_that_were_forgotten_are_loaded_again(server: RedisServer) -> None:
    async with node(server.url, "a") as one:
        server.command("SCRIPT", "FLUSH")
        assert await one.members("r") == {}
        server.command("SCRIPT", "FLUSH")
        one.put(("r", "u", 1))
        assert await one.members("r") == {"u": 1}
        server.command("SCRIPT", "FLUSH")
        assert await one.bus.online(["u"]) == set()


def documented_rights() -> list[list[str]]:
    """The rights on the page on RedisBus: those of the bus, and those of presence."""
    page = (Path(__file__).parent.parent / "docs" / "redis-bus.md").read_text()
    return [line.split()[3:] for line in page.splitlines() if "ACL SETUSER wsc" in line]


async def test_the_documented_rights_are_needed_and_enough(server: RedisServer) -> None:
    of_bus, of_presence = documented_rights()
    server.command("ACL", "SETUSER", "wsc", *of_bus, *of_presence)
    url = server.url.replace("//", "//wsc:PASSWORD@")
    async with hubs([url] * 2) as here, inside(here[0].hub, "a", "b"):
        await agreed(here, {"a": 1, "b": 1})
        here[0].hub.leave_room("a", "r")
        await agreed(here, {"b": 1})
        assert await here[1].hub.cluster.online(["b"]) == {"b"}
    assert keys(server) == []
    hub = Hub(authenticate=named, bus=RedisBus(url))
    hub.presence("r")
    for right in of_presence:
        server.command("ACL", "SETUSER", "wsc", right.replace("+", "-"))
        with pytest.raises(BusError, match=rf"all that presence needs .*{right[1:]}"):
            await hub.start("127.0.0.1", 0)
        server.command("ACL", "SETUSER", "wsc", right)
    await hub.start("127.0.0.1", 0)
    await hub.stop(1.0)


# --- what it costs, and what it leaves ---


async def test_heartbeats_are_for_each_hub_and_not_for_each_client(server: RedisServer) -> None:
    async with node(server.url, "a") as one, node(server.url, "b") as two, node(server.url, "c"):
        one.put(*(("r", f"u{number}", 1) for number in range(1000)))
        two.put(*(("", f"u{number}", 1) for number in range(1000)))
        assert await one.bus.count("r") == 1000
        assert await two.bus.online(["u1"]) == {"u1"}
        before = two.bus.counters()["heartbeats"]
        server.command("CONFIG", "RESETSTAT")
        await eventually(lambda: two.bus.counters()["heartbeats"] >= before + 5)
        calls = server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        assert calls <= 3 * 7


async def test_entries_are_written_again_now_and_then(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "AGAIN", 2.0)
    async with node(server.url, "a") as one:
        one.put(*(("r", f"u{number}", 1) for number in range(50)))
        assert await one.bus.count("r") == 50
        server.command("HDEL", "wsc:p:{r}", *(f"u{number}" for number in range(50)))
        await eventually(lambda: server.command("HLEN", "wsc:p:{r}") == 50)


async def test_each_key_has_a_time_to_live_and_none_is_left_by_a_stop(
    server: RedisServer,
) -> None:
    async with (
        hubs([server.url] * 2, grace=60.0) as here,
        inside(here[0].hub, "a", "b"),
        inside(here[1].hub, "b2&user=b"),
    ):
        await agreed(here, {"a": 1, "b": 2})
        here[0].hub.leave_room("a", "r")
        await agreed(here[:1], {"a": 0, "b": 2})
        found = keys(server)
        kinds = {key.split(":")[1] for key in found}
        assert kinds == {"grace", "n", "nodes", "nr", "nu", "p", "u"}
        assert [key for key in found if server.command("PTTL", key) <= 0] == []
    assert keys(server) == []


async def test_all_hubs_may_be_killed_and_the_next_one_cleans_up(server: RedisServer) -> None:
    async with apart(server.url) as killed:
        raws = [await RawClient.open(killed, f"/ws?id=u{number}") for number in range(3)]
        await eventually(lambda: server.command("HLEN", "wsc:p:{r}") == 3)
        killed.process.kill()
    async with hubs([server.url]) as here:
        await agreed(here, {})
        await eventually(lambda: server.command("ZCARD", "wsc:nodes") == 1)
        assert not [key for key in keys(server) if key[4:6] in ("p:", "u:")]
    assert keys(server) == []
    for raw in raws:
        raw.close()


async def test_a_hub_without_presence_on_the_same_bus_is_not_disturbed(
    server: RedisServer,
) -> None:
    plain = Hub(authenticate=named, bus=RedisBus(server.url))
    await plain.start("127.0.0.1", 0)
    async with hubs([server.url]) as here, inside(here[0].hub, "a"):
        raw, _ = await join(plain, "b")
        plain.join_room("b", "r")
        await agreed(here, {"a": 1})
        here[0].hub.broadcast_to_room("r", "text")
        assert (await raw.recv()).payload == b"text"
        assert plain.cluster.counters()["poisoned"] == 0
        raw.close()
    await plain.stop(1.0)
