"""Presence on one hub: who is in a room, who has come and left, and the grace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import join, named
from wsc_fast import (
    Client,
    Hub,
    HubConfig,
    HubStateError,
    HubStoppedError,
    Member,
    MemoryBus,
    RedisBus,
    ValidationError,
)
from wsc_fast.bus.base import PRESENCE, Change
from wsc_fast.bus.directory import MemoryDirectory
from wsc_fast.cluster import views
from wsc_fast.errors import BusUnavailableError, ConfigError
from wsc_fast.testing import RawClient, eventually, running

Told = list[tuple[str, set[str], set[str]]]


def present(grace: float = 0.0, **options: Any) -> tuple[Hub, Told]:
    """A hub with presence in rooms `r…`, and what `on_presence` was called with."""
    config = HubConfig(presence_grace=grace, close_timeout=0.1)
    hub = Hub(config, authenticate=named, **options)
    hub.presence("r*")
    told: Told = []
    hub.on_presence(lambda room, joined, left: told.append((room, joined, left)))
    for room in ("r", "r2", "other"):
        hub.create_room(room)
    return hub, told


@asynccontextmanager
async def inside(hub: Hub, *names: str, room: str = "r") -> AsyncIterator[dict[str, RawClient]]:
    """Clients in a room; a name may be `client&user=user`."""
    raws = {}
    try:
        for name in names:
            raws[name], client = await join(hub, name)
            hub.join_room(client.id, room)
        yield raws
    finally:
        for raw in raws.values():
            raw.close()


async def members(hub: Hub, room: str = "r") -> dict[str, int]:
    return {each.user_id: each.clients for each in await hub.cluster.members(room)}


def sum_of(told: Told, room: str = "r") -> set[str]:
    """The users in a room by all that was told; each change is told once."""
    users: set[str] = set()
    for each, joined, left in told:
        if each == room:
            assert not joined & users
            assert left <= users
            users = (users | joined) - left
    return users


class Late(MemoryBus):
    """A bus that is open only when `open` has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = False

    def subscribe(self, rooms: Sequence[str]) -> None:
        if self._handler is not None:
            super().subscribe(rooms)


# --- questions ---


async def test_a_hub_alone_knows_who_is_in_a_room_and_who_is_online(any_loop: str) -> None:
    hub, _ = present()
    async with (
        running(hub),
        inside(hub, "a&user=ann", "b&user=bob", "b2&user=bob"),
        inside(hub, "c", room="r2"),
    ):
        found = await hub.cluster.members("r")
        assert sorted(found, key=lambda each: each.user_id) == [Member("ann", 1), Member("bob", 2)]
        assert await hub.cluster.count("r") == 2
        assert await hub.cluster.count("r2") == 1
        assert await hub.cluster.count("r3") == 0
        assert await hub.cluster.online(["ann", "c", "nobody", "a"]) == {"ann", "c"}
        assert await hub.cluster.online([]) == set()
        (node,) = await hub.cluster.nodes()
        assert (node.clients, node.draining) == (4, False)
        assert node.name


async def test_a_user_leaves_with_the_last_client_however_that_leaves() -> None:
    hub, _ = present()
    async with running(hub), inside(hub, "a&user=ann", "a2&user=ann", "b", "c", "d") as raws:
        hub.leave_room("a", "r")
        assert await members(hub) == {"ann": 1, "b": 1, "c": 1, "d": 1}
        hub.leave_room("a2", "r")
        assert await members(hub) == {"b": 1, "c": 1, "d": 1}
        assert await hub.cluster.online(["ann"]) == {"ann"}
        raws["b"].close()
        await eventually(lambda: hub.get_connected_clients() == 4)
        await eventually(lambda: hub.get_stats().connections == 4)
        assert await members(hub) == {"c": 1, "d": 1}
        hub.disconnect_user("c")
        await eventually(lambda: hub.get_stats().connections == 3)
        assert await members(hub) == {"d": 1}
        hub.delete_room("r")
        assert await members(hub) == {}
        hub.create_room("r")
        hub.join_room("d", "r")
        assert await members(hub) == {"d": 1}


async def test_a_client_that_is_replaced_leaves_its_user_there() -> None:
    hub, told = present()
    async with running(hub), inside(hub, "a"), inside(hub, "a", "b"):
        await eventually(lambda: hub.get_stats().connections == 2)
        assert await members(hub) == {"a": 1, "b": 1}
        await eventually(lambda: sum_of(told) == {"a", "b"})


async def test_rooms_of_no_pattern_have_no_presence() -> None:
    hub, told = present()
    async with running(hub), inside(hub, "a", room="other"), inside(hub, "b"):
        with pytest.raises(ValidationError, match="room 'other' has no presence"):
            await hub.cluster.members("other")
        with pytest.raises(ValidationError, match="room 'other' has no presence"):
            await hub.cluster.count("other")
        await eventually(lambda: told)
        assert told == [("r", {"b"}, set())]


async def test_presence_without_rooms_still_knows_who_is_online() -> None:
    hub = Hub(authenticate=named)
    hub.presence()
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert await hub.cluster.online(["a", "b"]) == {"a"}
        raw.close()


async def test_another_loop_may_ask_too() -> None:
    hub, _ = present()
    async with running(hub), inside(hub, "a"):
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(asyncio.run(members(hub))))
        thread.start()
        await eventually(lambda: found)
        thread.join()
        assert found == [{"a": 1}]


async def test_after_a_stop_and_a_start_nobody_is_there() -> None:
    hub, told = present(grace=60.0)
    async with running(hub), inside(hub, "a"):
        assert await members(hub) == {"a": 1}
    with pytest.raises(HubStoppedError):
        await hub.cluster.members("r")
    del told[:]
    async with running(hub):
        assert await members(hub) == {}
        async with inside(hub, "b"):
            assert await members(hub) == {"b": 1}
            await eventually(lambda: told)
            assert told == [("r", {"b"}, set())]


async def test_a_hub_tells_that_it_drains() -> None:
    hub, _ = present()
    async with running(hub), inside(hub, "a"):
        drain = asyncio.ensure_future(hub.drain(0.05))
        await asyncio.sleep(0)
        (node,) = await hub.cluster.nodes()
        assert node.draining
        await drain


async def test_a_memory_bus_with_a_file_knows_who_is_there(tmp_path: Path) -> None:
    hub, told = present(bus=MemoryBus(tmp_path / "kept.db"))
    async with running(hub), inside(hub, "a"):
        assert await members(hub) == {"a": 1}
        await eventually(lambda: told == [("r", {"a"}, set())])


async def test_a_kept_room_has_presence_too() -> None:
    hub, told = present()
    hub.delete_room("r")
    hub.keep("r")
    async with running(hub), inside(hub, "a"):
        assert await members(hub) == {"a": 1}
        await eventually(lambda: sum_of(told) == {"a"})
        hub.broadcast_to_room("r", "text")
        assert len(await hub.cluster.history("r")) == 1


# --- what is told ---


async def test_joins_and_leaves_are_told_together() -> None:
    hub, told = present()
    async with running(hub), inside(hub, *(f"u{n}" for n in range(20))) as raws:
        await eventually(lambda: sum_of(told) == set(raws))
        calls = len(told)
        for name in list(raws)[:10]:
            hub.leave_room(name, "r")
        await eventually(lambda: sum_of(told) == set(list(raws)[10:]))
        assert len(told) == calls + 1
        assert hub.cluster.counters()["presence_told"] == 30
        assert hub.cluster.counters()["presence_changes"] == 50


async def test_a_join_and_a_leave_in_between_are_not_told() -> None:
    hub, told = present()
    async with running(hub), inside(hub, "a"), inside(hub, "b", room="other"):
        await eventually(lambda: told)
        hub.join_room("b", "r")
        hub.leave_room("b", "r")
        hub.leave_room("a", "r")
        await eventually(lambda: len(told) == 2)
        assert told[1] == ("r", set(), {"a"})


async def test_a_user_who_is_back_within_the_grace_has_not_left() -> None:
    hub, told = present(grace=0.5)
    async with running(hub), inside(hub, "a", "b", "c") as raws:
        await eventually(lambda: sum_of(told) == {"a", "b", "c"})
        hub.leave_room("a", "r")
        raws["b"].close()
        await eventually(lambda: hub.get_stats().connections == 2)
        found = await members(hub)
        assert found == {"a": 0, "b": 0, "c": 1}
        assert await hub.cluster.count("r") == 3
        assert await hub.cluster.online(["b"]) == {"b"}
        hub.join_room("a", "r")
        async with inside(hub, "b"):
            assert await members(hub) == {"a": 1, "b": 1, "c": 1}
            hub.leave_room("c", "r")
            await eventually(lambda: sum_of(told) == {"a", "b"})
            assert [left for _, _, left in told if left] == [{"c"}]


async def test_a_new_leave_has_a_new_grace() -> None:
    hub, told = present(grace=0.3)
    loop = asyncio.get_running_loop()
    async with running(hub), inside(hub, "a", "b"):
        await eventually(lambda: sum_of(told) == {"a", "b"})
        hub.leave_room("a", "r")
        hub.join_room("a", "r")
        hub.leave_room("a", "r")
        left_at = loop.time()
        await eventually(lambda: sum_of(told) == {"b"})
        assert loop.time() - left_at >= 0.29
        assert await members(hub) == {"b": 1}


async def test_the_grace_may_change_while_the_hub_runs() -> None:
    hub, told = present(grace=3600.0)
    async with running(hub), inside(hub, "a", "b"):
        hub.leave_room("a", "r")
        hub.set_config(msgspec.structs.replace(hub.config, presence_grace=0.0))
        hub.leave_room("b", "r")
        await eventually(lambda: sum_of(told) == {"a"})
        assert await members(hub) == {"a": 0}


async def test_the_last_member_of_a_room_is_told_to_have_left() -> None:
    hub, told = present(grace=0.2)
    async with running(hub):
        async with inside(hub, "a"):
            await eventually(lambda: told == [("r", {"a"}, set())])
        await eventually(lambda: told[1:] == [("r", set(), {"a"})])
        assert await members(hub) == {}


async def test_each_callback_has_sets_of_its_own() -> None:
    hub, told = present()

    def spoil(room: str, joined: set[str], left: set[str]) -> None:
        joined.clear()

    hub.on_presence(spoil)
    second: Told = []
    hub.on_presence(lambda room, joined, left: second.append((room, joined, left)))
    async with running(hub), inside(hub, "a"):
        await eventually(lambda: second)
        assert told == second == [("r", {"a"}, set())]


async def test_an_async_callback_ends_before_the_next_call_about_its_room() -> None:
    hub, _ = present()
    begun: Told = []
    go_on = asyncio.Event()

    @hub.on_presence
    async def slow(room: str, joined: set[str], left: set[str]) -> None:
        begun.append((room, joined, left))
        await go_on.wait()

    async with running(hub), inside(hub, "a"):
        await eventually(lambda: begun == [("r", {"a"}, set())])
        async with inside(hub, "b", "c"), inside(hub, "d", room="r2"):
            await eventually(lambda: len(begun) == 2)
            assert begun[1] == ("r2", {"d"}, set())
            go_on.set()
            await eventually(lambda: len(begun) == 3)
            assert begun[2] == ("r", {"b", "c"}, set())


async def test_a_callback_that_raises_is_reported_and_the_others_are_called() -> None:
    hub = Hub(HubConfig(presence_grace=0.0), authenticate=named)
    hub.presence("r*")
    hub.create_room("r")
    told: Told = []
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_presence
    def plain(room: str, joined: set[str], left: set[str]) -> None:
        raise RuntimeError("plain")

    @hub.on_presence
    async def late(room: str, joined: set[str], left: set[str]) -> None:
        raise RuntimeError("async")

    hub.on_presence(lambda room, joined, left: told.append((room, joined, left)))
    async with running(hub), inside(hub, "a"):
        await eventually(lambda: len(errors) == 2)
        assert sorted(map(str, errors)) == ["async", "plain"]
        hub.leave_room("a", "r")
        await eventually(lambda: sum_of(told) == set() and len(told) == 2)


async def test_a_callback_that_is_set_while_the_hub_runs_hears_of_all_who_are_there() -> None:
    hub = Hub(HubConfig(presence_grace=0.0), authenticate=named)
    hub.presence("r*")
    hub.create_room("r")
    told: Told = []
    async with running(hub), inside(hub, "a"):
        hub.on_presence(lambda room, joined, left: told.append((room, joined, left)))
        await eventually(lambda: told)
        assert told == [("r", {"a"}, set())]


async def test_a_callback_that_ends_with_a_cancellation_keeps_nobody_from_hearing() -> None:
    hub = Hub(HubConfig(presence_grace=0.0), authenticate=named)
    hub.presence("r*")
    for room in ("r", "r2"):
        hub.create_room(room)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_presence
    def plain(room: str, joined: set[str], left: set[str]) -> None:
        raise asyncio.CancelledError

    @hub.on_presence
    async def late(room: str, joined: set[str], left: set[str]) -> None:
        raise asyncio.CancelledError

    told: list[str] = []

    @hub.on_presence
    async def last(room: str, joined: set[str], left: set[str]) -> None:
        told.append(room)

    async with running(hub), inside(hub, "a"), inside(hub, "b", room="r2"):
        await eventually(lambda: sorted(told) == ["r", "r2"])
        assert len(errors) == 4


async def test_a_callback_may_ask_and_send() -> None:
    hub, _ = present()

    @hub.on_presence
    async def tell(room: str, joined: set[str], left: set[str]) -> None:
        count = await hub.cluster.count(room)
        hub.broadcast_to_room(room, f"{count} {sorted(joined)}")

    async with running(hub), inside(hub, "a") as raws:
        assert (await raws["a"].recv()).payload == b"1 ['a']"


async def test_joins_in_on_client_connected_are_seen_by_the_next_question() -> None:
    hub, _ = present()
    counts: list[int] = []

    @hub.on_client_connected
    async def enter(client: Client) -> None:
        hub.join_room(client.id, "r")
        counts.append(await hub.cluster.count("r"))

    async with running(hub):
        raws = [(await join(hub, f"u{number}"))[0] for number in (1, 2, 3)]
        await eventually(lambda: counts == [1, 2, 3])
        for raw in raws:
            raw.close()


# --- what is refused ---


async def test_a_hub_that_has_not_asked_does_nothing_for_it() -> None:
    hub = Hub(authenticate=named)
    hub.create_room("r")
    async with running(hub), inside(hub, "a"):
        for question in (hub.cluster.online(["a"]), hub.cluster.nodes()):
            with pytest.raises(ValidationError, match=r"presence is off: see Hub\.presence"):
                await question
        with pytest.raises(ValidationError, match="has no presence"):
            await hub.cluster.members("r")
        assert hub.cluster.counters()["presence_changes"] == 0
        with pytest.raises(HubStateError, match="presence is for a hub that does not run"):
            hub.presence("r")


def test_anonymous_clients_have_no_presence() -> None:
    with pytest.raises(ValidationError, match="all clients of this hub are anonymous"):
        Hub().presence("r")


@pytest.mark.parametrize("pattern", ["", "x" * 257, 5, None])
def test_a_pattern_that_is_none_is_refused(pattern: Any) -> None:
    with pytest.raises(ValidationError, match="pattern must be a str of 1 to 256 characters"):
        Hub(authenticate=named).presence("r", pattern)


def test_a_callback_that_cannot_be_called_is_refused() -> None:
    hub = Hub(authenticate=named)
    with pytest.raises(ValidationError, match="cannot be called with"):
        hub.on_presence(lambda room: None)  # type: ignore[arg-type, misc]


async def test_clients_that_come_before_the_bus_is_open_are_entered_then() -> None:
    hub, told = present(bus=Late())
    loop = asyncio.get_running_loop()
    async with running(hub):
        node = hub._node
        bus = node._bus
        assert isinstance(bus, Late)
        await node.close(1.0)
        raw, _ = await join(hub, "a")
        hub.join_room("a", "r")
        await node.open(loop)
        assert await members(hub) == {"a": 1}
        assert await hub.cluster.online(["a"]) == {"a"}
        await eventually(lambda: told == [("r", {"a"}, set())])
        raw.close()


async def test_ids_that_cannot_be_are_refused() -> None:
    hub, _ = present()
    async with running(hub):
        with pytest.raises(ValidationError, match="user_ids must be several ids"):
            await hub.cluster.online("ann")
        with pytest.raises(ValidationError, match="a user id may not hold control characters"):
            await hub.cluster.online(["\n"])
        with pytest.raises(ValidationError, match="a room id must be a str"):
            await hub.cluster.members(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ({"lease": 0.5}, "lease must be 1 to 300 seconds"),
        ({"lease": 301}, "lease must be 1 to 300 seconds"),
        ({"lease": float("nan")}, "lease must be 1 to 300 seconds"),
        ({"refresh": 0.01}, "refresh must be from 0.1 seconds to half of the lease"),
        ({"lease": 4, "refresh": 2.1}, r"half of the lease \(4\)"),
    ],
)
def test_a_lease_has_bounds(times: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RedisBus("redis://h", **times)  # type: ignore[arg-type]


async def test_bytes_that_no_hub_has_written_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub, told = present()
    async with running(hub), inside(hub, "a"):
        await eventually(lambda: told)
        hub._node.envelope(f"{PRESENCE}r", b"+\xff")
        assert hub.cluster.counters()["poisoned"] == 1
        assert "bytes on the bus that no hub has written" in caplog.text


async def test_a_callback_without_presence_is_worth_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = Hub(authenticate=named)
    hub.on_presence(lambda room, joined, left: None)
    async with running(hub):
        assert "on_presence is never called, since presence is off" in caplog.text


async def test_a_client_that_outlasts_the_bus_harms_nothing() -> None:
    """Its connection ends when the hub has closed the bus already."""
    hub, _ = present()
    async with running(hub), inside(hub, "a", "b"):
        bus = hub._node._bus
        assert bus is not None
        await hub._node.close(1.0)
        hub.leave_room("a", "r")
        assert hub.get_stats().callback_errors == 0
        await hub.stop(0.1)
        assert hub.get_stats().callback_errors == 0
        assert await bus.nodes() == []


# --- views ---


class Read(MemoryBus):
    """A bus whose reads end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[list[str]]] = []
        self.subscribed: list[str] = []

    def subscribe(self, rooms: Sequence[str]) -> None:
        self.subscribed += rooms

    def unsubscribe(self, rooms: Sequence[str]) -> None:
        for room in rooms:
            self.subscribed.remove(room)

    async def members(self, room: str, cursor: str) -> tuple[str, Sequence[Member]]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return "", [Member(user, 1) for user in await self.waiting[-1]]


async def test_what_has_come_since_the_subscription_goes_on_top_of_the_read() -> None:
    """A leave on one connection may come before a read on another one that does not know it."""
    bus, told = Read(), Told()
    room = views.Views(lambda: bus, lambda *each: told.append(each), 0.02, 0.001)
    room.follow("r")
    assert bus.subscribed == [f"{PRESENCE}r"]
    room.heard("r", "+early")
    room.subscribed("r", False)
    room.heard("r", "-gone\n+new\n+fleeting\n-fleeting")
    await eventually(lambda: bus.waiting)
    room.heard("r", "+late")
    assert told == []
    bus.waiting[0].set_result(["old", "gone", "fleeting"])
    await eventually(lambda: told)
    assert told == [("r", {"old", "new", "late"}, set())]
    room.heard("r", "+old\n-nobody\n\n*")
    room.heard("r", "-late")
    await eventually(lambda: len(told) == 2)
    assert told[1] == ("r", set(), {"late"})
    room.leave("r")
    assert bus.subscribed == []
    room.heard("r", "+x")
    room.forget()


async def test_a_view_is_read_again_where_something_may_have_been_missed() -> None:
    bus, told = Read(), Told()
    room = views.Views(lambda: bus, lambda *each: told.append(each), 0.02, 0.001)
    room.follow("r")
    room.subscribed("r", False)
    await eventually(lambda: bus.waiting)
    bus.waiting[0].set_result(["a", "b"])
    await eventually(lambda: told)
    room.subscribed("r", True)
    room.heard("r", "-a")  # it is told meanwhile, too
    await eventually(lambda: len(told) == 2)
    await eventually(lambda: len(bus.waiting) == 2)
    room.subscribed("r", True)  # once more: the read under way counts no more
    await eventually(lambda: len(bus.waiting) == 3)
    assert bus.waiting[1].cancelled()
    room.heard("r", "+c")
    bus.waiting[2].set_result(["a", "d"])
    await eventually(lambda: len(told) == 3)
    assert told == [("r", {"a", "b"}, set()), ("r", set(), {"a"}), ("r", {"a", "c", "d"}, {"b"})]
    room.forget()


async def test_a_read_that_fails_is_made_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(views, "RETRY", 0.01)
    bus, told = Read(), Told()
    room = views.Views(lambda: bus, lambda *each: told.append(each), 0.02, 0.001)
    room.follow("r")
    room.subscribed("r", False)
    await eventually(lambda: bus.waiting)
    bus.waiting[0].set_exception(BusUnavailableError("away"))
    await eventually(lambda: len(bus.waiting) == 2)
    assert "the users in room 'r' could not be read: away" in caplog.text
    bus.waiting[1].set_result(["a"])
    await eventually(lambda: told == [("r", {"a"}, set())])
    room.forget()


def test_a_view_is_let_go_where_its_loop_was_closed_during_the_read() -> None:
    bus, told = Read(), Told()
    rooms = views.Views(lambda: bus, lambda *each: told.append(each), 0.02, 0.001)

    async def read(number: int) -> None:
        rooms.follow("r")
        rooms.subscribed("r", False)
        await eventually(lambda: len(bus.waiting) == number)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(read(1))
    loop.close()
    rooms.forget()

    async def read_again() -> None:
        await read(2)
        bus.waiting[1].set_result(["a"])
        await eventually(lambda: told)
        rooms.forget()

    asyncio.run(read_again())
    assert told == [("r", {"a"}, set())]


async def test_few_of_many_rooms_are_read_at_once() -> None:
    bus, told = Read(), Told()
    rooms = views.Views(lambda: bus, lambda *each: told.append(each), 0.02, 0.001)
    for number in range(200):
        rooms.follow(str(number))
        rooms.subscribed(str(number), False)
    for done in range(200):
        await eventually(lambda done=done: len(bus.waiting) == min(200, done + views.MOST_READS))
        bus.waiting[done].set_result(["a"])
    await eventually(lambda: len(told) == 200)
    rooms.forget()


# --- the directory in memory ---


async def test_many_leaves_at_once_are_told_over_several_turns() -> None:
    said: dict[str, list[str]] = {}
    turns: list[int] = []

    def tell(room: str, lines: bytes) -> None:
        said.setdefault(room, []).extend(lines.decode().split("\n"))
        turns.append(lines.count(b"\n") + 1)

    directory = MemoryDirectory(lambda: 0.05, tell)
    users = [f"u{n}" for n in range(2500)]
    directory.enter([Change("r", user, 1) for user in users])
    del turns[:]
    directory.enter([Change("r", user, 0) for user in users])
    assert directory.count("r") == 2500
    await eventually(lambda: directory.count("r") == 0)
    assert sum(turns) == 2500
    assert max(turns) <= 1000
    assert set(said["r"]) == {f"{sign}{user}" for sign in "+-" for user in users}
    assert len(said["r"]) == 5000
    directory.close()
