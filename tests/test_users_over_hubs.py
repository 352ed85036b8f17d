"""Users over several hubs and a real server: messages find them, and acknowledgements come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acks import acknowledge, received
from tests.redis_server import RedisServer, failing_over
from tests.support import join, named
from wsc_fast import (
    ACKConfig,
    AckFailedError,
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    BusUnavailableError,
    ClientNotFoundError,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    MemoryOfflineStore,
    RedisBus,
    RetryConfig,
    SQLiteOfflineStore,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.bus.base import Word
from wsc_fast.cluster import users
from wsc_fast.delivery import upkeep
from wsc_fast.testing import CLOSE, RawClient, eventually, eventually_async

Failures = list[tuple[str, Exception]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


class Failed:
    """Notes what the failure handlers hear."""

    def __init__(self) -> None:
        self.heard: Failures = []

    async def handle_send_failure(self, msg: Any, recipient: str, reason: Any, error: Any) -> None:
        self.heard.append((recipient, error))


@asynccontextmanager
async def hubs(
    url: Any, count: int = 2, acks: ACKConfig | None = None, limits: dict[str, Any] | None = None
) -> AsyncIterator[list[tuple[Hub, Failed]]]:
    """Hubs on one bus, and what their failure handlers heard."""
    made = []
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        for _ in range(count):
            config = HubConfig(close_timeout=0.1, **(limits or {}))
            hub = Hub(config, authenticate=named, bus=RedisBus(url, refresh=0.2))
            if acks is not None:
                hub.enable_ack(acks)
            failed = Failed()
            hub.add_send_failure_handler(failed)
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            made.append((hub, failed))
        yield made


@pytest.fixture
def connect() -> Iterator[Any]:
    """Makes clients, which are closed at the end: `connect(hub, "client&user=user")`."""
    made: list[RawClient] = []

    async def connected(hub: Hub, name: str) -> RawClient:
        raw, _ = await join(hub, name)
        made.append(raw)
        return raw

    yield connected
    for raw in made:
        raw.close()


async def closed_with(raw: RawClient) -> int:
    """The code of the close frame that comes next; the client answers it."""
    frame = await raw.recv()
    assert frame.opcode == CLOSE
    await raw.send(CLOSE, frame.payload)
    return int.from_bytes(frame.payload[:2], "big")


def offline(**settings: Any) -> ACKConfig:
    return ACKConfig(enable_offline_messages=True, **settings)


async def entered(hub: Hub, *users: str) -> None:
    """Returns once the bus knows that these users are online."""

    async def are() -> bool:
        return await hub.cluster.online(users) == set(users)

    await eventually_async(are)


# --- messages without acknowledgement ---


async def test_a_message_finds_a_user_on_each_hub_that_has_him(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 3) as ((one, _), (two, _), (three, failed)):
        raw_one = await connect(one, "a1&user=ann")
        raw_two = await connect(two, "a2&user=ann")
        await entered(three, "ann")
        await entered(one, "ann")
        assert three.send_to_user("ann", HubMessage(content="from three")) == 0
        for raw in (raw_one, raw_two):
            assert (await received(raw))["content"] == "from three"
        await eventually(lambda: one.send_to_user("ann", HubMessage(content="from one")) == 1)
        assert (await received(raw_one))["content"] == "from one"
        assert (await received(raw_two))["content"] == "from one"
        assert not failed.heard


async def test_a_user_who_is_nowhere_is_told_to_the_failure_handlers(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url) as ((one, failed), _):
        assert one.send_to_user("nobody", HubMessage(content="x")) == 0
        await eventually(lambda: bool(failed.heard))
        ((recipient, error),) = failed.heard
        assert recipient == "nobody"
        assert isinstance(error, UserOfflineError)
        assert "on any hub" in str(error)


async def test_a_call_says_on_how_many_hubs_a_user_got_a_message(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 3) as ((one, failed), (two, _), (three, _)):
        raws = [
            await connect(hub, f"{name}&user=ann")
            for hub, name in ((one, "a"), (two, "b"), (two, "c"))
        ]
        await entered(three, "ann")
        await eventually(lambda: "ann" in one._node.users.elsewhere)
        assert await one.cluster.send_to_user("ann", HubMessage(content="x")) == 2
        assert await three.cluster.send_to_user("ann", HubMessage(content="y")) == 2
        for raw in raws:
            assert {(await received(raw))["content"] for _ in range(2)} == {"x", "y"}
        with pytest.raises(UserOfflineError):
            await three.cluster.send_to_user("bob", HubMessage(content="x"))
        assert not failed.heard


async def test_a_send_with_retry_finds_a_user_who_comes_to_another_hub(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url) as ((one, failed), (two, _)):
        one.set_retry_config(
            RetryConfig(
                max_retries=100,
                base_delay=0.05,
                max_delay=0.05,
                retryable_errors=("user_offline",),
                non_retryable_errors=(),
            )
        )
        sending = asyncio.create_task(
            one.send_to_user_with_retry("ann", HubMessage(content="at last"))
        )
        await eventually(lambda: one._node.counters.words_sent > 1)
        raw = await connect(two, "a&user=ann")
        result = await sending
        assert (result.success, result.delivered_to) == (True, 1)
        assert result.total_retries > 0
        assert (await received(raw))["content"] == "at last"
        assert not failed.heard


async def test_a_user_is_disconnected_from_all_hubs(server: RedisServer, connect: Any) -> None:
    async with hubs(server.url, 3) as ((one, _), (two, _), (three, _)):
        raws = [
            await connect(hub, f"{name}&user=ann")
            for hub, name in ((one, "a"), (two, "b"), (two, "c"))
        ]
        other = await connect(two, "d&user=bob")
        await entered(three, "ann", "bob")
        assert three.disconnect_user("ann", 4000, "bye") == 0
        for raw in raws:
            assert await closed_with(raw) == 4000
        await eventually_async(lambda: not_online(three, "ann"))
        again = [await connect(hub, f"{name}&user=ann") for hub, name in ((one, "e"), (two, "f"))]
        await entered(three, "ann")
        await eventually(lambda: "ann" in one._node.users.elsewhere)
        assert await one.cluster.disconnect_user("ann", 4001) == 2
        for raw in again:
            assert await closed_with(raw) == 4001
        assert two.get_connected_client_ids() == ["d"]
        with pytest.raises(ValidationError):
            await one.cluster.disconnect_user("ann", 1006)
        other.close()


async def not_online(hub: Hub, user: str) -> bool:
    return not await hub.cluster.online([user])


@pytest.mark.parametrize(
    "word",
    [
        b'["message","ann",-5,{"content":"x"}]',
        b'["message","ann",0,{"content":"x"}]',
        b'["message","ann",5,{"content":"x"}]',
        b'["message","ann",1,3]',
        b'["message","ann",1,{"content":"x","other":"\xff"}]',
        b'["message","ann",1,' + 20_000 * b"[" + 20_000 * b"]" + b"]",
        b'["settled","ann"]',
        b"\xff",
    ],
    ids=lambda word: repr(word[:40]),
)
async def test_a_word_that_no_hub_has_written_reaches_no_client(
    server: RedisServer, connect: Any, word: bytes
) -> None:
    async with hubs(server.url) as ((one, _), (two, failed)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        assert await one._node._bus.tell([Word("", word, two._node.name)], True) == [1]
        one.send_to_user("ann", HubMessage(content="good"))
        assert (await received(raw))["content"] == "good"
        assert two.cluster.counters()["poisoned"] == 1
        assert two.bus.counters()["reconnects"] == 0
        assert not failed.heard


async def test_calls_that_wait_for_other_hubs_end_when_their_hub_stops(
    server: RedisServer,
) -> None:
    async with hubs(server.url) as ((one, failed), (two, _)):
        server.pause()
        try:
            calls = [
                asyncio.create_task(call)
                for call in (
                    one.cluster.send_to_user("bob", HubMessage(content="x")),
                    one.cluster.disconnect_user("bob"),
                )
            ]
            one.send_to_user("carl", HubMessage(content="x"))
            one.send_to_client(f"{two._node.name}.x", "x")
            await eventually(lambda: bool(one._node.users._questions._open))
            await one.stop(0.1)
            async with asyncio.timeout(5):
                for call in calls:
                    with pytest.raises(BusUnavailableError):
                        await call
            await eventually(lambda: len(failed.heard) == 2)
            assert {recipient for recipient, _ in failed.heard} == {"carl", f"{two._node.name}.x"}
            assert one._node.users._teller._waiting_bytes == 0
        finally:
            server.resume()


async def test_a_hub_with_two_connections_is_counted_once(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url) as ((one, _), (two, _)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        client = redis.Redis.from_url(server.url)
        listening = client.pubsub()
        listening.subscribe(f"wsc:n:{two._node.name}")
        assert listening.get_message(timeout=5) is not None
        assert await one.cluster.send_to_user("ann", HubMessage(content="x")) == 1
        assert (await received(raw))["content"] == "x"
        assert await one.cluster.disconnect_user("ann", 4001) == 1
        listening.close()
        client.close()


# --- who is online ---


@pytest.mark.parametrize("count", [1, 2], ids=["one server", "two servers"])
async def test_each_hub_hears_who_comes_online_and_goes_offline(
    server: RedisServer, connect: Any, tmp_path: Path, count: int
) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    with RedisServer(directory) as other:
        urls = [server.url, other.url][:count]
        async with hubs(urls, 2, limits={"presence_grace": 0.2}) as ((one, _), (two, _)):
            here: set[str] = set()
            first = [await connect(one, f"a{n}&user=u{n}") for n in range(20)]

            @two.on_users
            def changed(online: set[str], offline: set[str]) -> None:
                assert not online & here
                assert offline <= here
                here.difference_update(offline)
                here.update(online)

            expected = {f"u{n}" for n in range(20)}
            await eventually(lambda: here == expected)
            await connect(two, "b0&user=u0")
            last = await connect(two, "c&user=last")
            await eventually(lambda: here == expected | {"last"})
            for raw in (*first[:2], last):
                raw.close()
            await eventually(lambda: here == expected - {"u1"})


# --- the bound on the connections of a user ---


@pytest.mark.parametrize("over_hubs", [False, True], ids=["one hub", "two hubs"])
async def test_one_connection_too_many_is_refused(
    server: RedisServer, connect: Any, over_hubs: bool
) -> None:
    limits = {"max_connections_per_user": 2}
    async with hubs(server.url, 2, limits=limits) as ((one, _), (two, _)):
        await connect(one, "a&user=ann")
        await connect(two if over_hubs else one, "b&user=ann")
        await entered(one, "ann")
        await connect(one, "other&user=bob")
        third = await RawClient.open(two if over_hubs else one, "/ws?id=c&user=ann")
        assert await closed_with(third) == 1008
        third.close()
        stats = (two if over_hubs else one).get_stats()
        assert stats.limited["max_connections_per_user"] == 1
        assert stats.rejected["full"] == 1
        assert len(one.get_connected_client_ids()) == (2 if over_hubs else 3)


@pytest.mark.parametrize("over_hubs", [False, True], ids=["one hub", "two hubs"])
async def test_one_connection_too_many_closes_the_oldest(
    server: RedisServer, connect: Any, over_hubs: bool
) -> None:
    limits = {"max_connections_per_user": 2, "user_overflow": "close_oldest"}
    async with hubs(server.url, 2, limits=limits) as ((one, _), (two, _)):
        first = await connect(one, "a&user=ann")
        await asyncio.sleep(0.002)  # another millisecond
        second = await connect(two if over_hubs else one, "b&user=ann")
        await entered(one, "ann")
        await asyncio.sleep(0.002)
        third = await connect(two if over_hubs else one, "c&user=ann")
        assert await closed_with(first) == 4409
        await asyncio.sleep(0.002)
        await connect(one, "d&user=ann")
        assert await closed_with(second) == 4409
        await eventually(lambda: one.get_stats().connections + two.get_stats().connections == 2)
        assert third


@pytest.mark.parametrize("overflow", ["refuse", "close_oldest"])
async def test_as_many_connections_stay_as_a_user_may_have_where_many_come_at_once(
    server: RedisServer, connect: Any, overflow: str
) -> None:
    limits = {"max_connections_per_user": 3, "user_overflow": overflow}
    async with hubs(server.url, 3, limits=limits) as made:
        three = [hub for hub, _ in made]
        for number, hub in enumerate(three):
            await connect(hub, f"old{number}&user=ann")
            await entered(three[0], "ann")
        # One on each hub: each hub by itself has room for it.
        await asyncio.gather(
            *(connect(hub, f"new{number}&user=ann") for number, hub in enumerate(three))
        )

        def ids() -> set[str]:
            return {each for hub in three for each in hub.get_connected_client_ids()}

        expected = {f"{'old' if overflow == 'refuse' else 'new'}{number}" for number in range(3)}
        await eventually(lambda: ids() == expected)
        # Each hub has looked at its new client.
        await eventually(lambda: not any(hub._node._users._teller._tasks for hub in three))
        assert ids() == expected
        limited = [hub.get_stats().limited.get("max_connections_per_user", 0) for hub in three]
        assert sum(limited) == 3


async def test_clients_of_a_hub_that_does_not_answer_do_not_count(
    server: RedisServer, connect: Any
) -> None:
    limits = {"max_connections_per_user": 2, "user_overflow": "close_oldest"}
    async with hubs(server.url, 3, limits=limits) as ((one, _), (two, _), (three, _)):
        await connect(two, "a&user=ann")
        await entered(two, "ann")
        two._node._users.word = lambda data: None  # it hears nothing any more
        oldest = await connect(one, "b&user=ann")
        await entered(one, "ann")
        await asyncio.sleep(0.002)  # another millisecond
        for name in "cd":
            await connect(three, f"{name}&user=ann")
        assert await closed_with(oldest) == 4409
        await eventually(lambda: not three._node._users._teller._tasks)
        assert two.get_stats().connections == 1
        assert three.get_stats().connections == 2


# --- messages with acknowledgement ---


async def test_an_acknowledgement_on_another_hub_ends_the_await(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, acks=offline()) as ((one, _), (two, _)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        message = await received(raw)
        assert message["id"] == "m1"
        await pending.accepted()
        await acknowledge(raw, "m1")
        assert await pending is AckStatus.CONFIRMED


async def test_a_copy_of_another_hub_that_was_acknowledged_there_does_not_come_back(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, acks=offline()) as ((one, _), (two, _)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        assert (await received(raw))["id"] == "m1"
        table = two._delivery.acks.table
        (held,) = table.of_id(table.mailboxes["ann"], "m1")  # as the garbage collector may do
        raw.close()
        await eventually(lambda: held.status is AckStatus.STORED)
        # The user is on the hub that has sent it alone, which tells nobody of the end.
        raw = await connect(one, "b&user=ann")
        assert (await received(raw))["id"] == "m1"
        await acknowledge(raw, "m1")
        assert await pending is AckStatus.CONFIRMED
        await eventually(lambda: not one._delivery.acks.journal.busy)
        raw = await connect(two, "c&user=ann")
        await eventually(held.done)
        two.send_to_user("ann", HubMessage(content="next"))
        assert (await received(raw))["content"] == "next"


async def test_users_find_each_other_after_a_failover_of_sentinel(
    tmp_path: Path, connect: Any
) -> None:
    async with failing_over(tmp_path) as (master, replica, sentinel):
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        async with hubs(url, acks=offline()) as ((one, failed), (two, _)):
            raw = await connect(two, "a&user=ann")
            await entered(one, "ann")
            before = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
            assert (await received(raw))["id"] == "m1"
            await before.accepted()
            stored = lambda: replica.command("HLEN", "wsc:offline:messages:ann") == 1  # noqa: E731
            await eventually(stored)
            await asyncio.to_thread(master.kill)
            await acknowledge(raw, "m1")
            assert await before is AckStatus.CONFIRMED
            after = one.send_ack_message_to_user("ann", ACKMessage(id="m2", content="x"))
            message = await received(raw)
            while message["id"] != "m2":  # a copy may come for as long as the store is away
                message = await received(raw)
            await acknowledge(raw, "m2")
            assert await after is AckStatus.CONFIRMED
            await entered(one, "ann")
            assert await one.cluster.send_to_user("ann", HubMessage(content="plain")) == 1
            while (await received(raw))["content"] != "plain":
                pass
            assert not failed.heard


async def test_a_client_of_another_hub_refuses_a_message(server: RedisServer, connect: Any) -> None:
    async with hubs(server.url, acks=offline()) as ((one, _), (two, failed)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        await received(raw)
        await acknowledge(raw, "m1", status="failed", error="no room")
        with pytest.raises(AckFailedError, match="no room"):
            await pending
        await eventually(lambda: len(failed.heard) == 1)


async def test_a_message_that_clients_of_two_hubs_refuse_is_told_once(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 3, offline()) as made:
        one, two, three = (hub for hub, _ in made)
        raws = [await connect(two, "a&user=ann"), await connect(three, "b&user=ann")]
        await entered(one, "ann")
        for n in range(20):
            pending = one.send_ack_message_to_user("ann", ACKMessage(id=f"m{n}", content="x"))
            for raw in raws:
                assert (await received(raw))["id"] == f"m{n}"
            for raw in raws:
                await acknowledge(raw, f"m{n}", status="failed", error="no room")
            with pytest.raises(AckFailedError, match="no room"):
                await pending
        await eventually(lambda: sum(len(failed.heard) for _, failed in made) == 20)
        acks = [hub._delivery.acks for hub in (one, two, three)]
        await eventually(lambda: not any(each.journal.busy for each in acks))
        assert sum(len(failed.heard) for _, failed in made) == 20


async def test_a_message_that_times_out_on_another_hub_is_told_once(
    server: RedisServer, connect: Any
) -> None:
    config = offline(timeout=0.5, retry_interval=0.2, max_retries=1)
    async with hubs(server.url, 3, acks=config) as made:
        (one, failed), (two, failed_two), (three, failed_three) = made
        await connect(two, "a&user=ann")
        await connect(three, "b&user=ann")
        await entered(one, "ann")
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        with pytest.raises(AckTimeoutError):
            await pending
        both = [*failed.heard, *failed_two.heard, *failed_three.heard]
        await eventually(lambda: two.get_stats().acks_timed_out == 1)
        await eventually(lambda: three.get_stats().acks_timed_out == 1)
        await asyncio.sleep(0.1)  # nothing may follow
        both = [*failed.heard, *failed_two.heard, *failed_three.heard]
        assert [to for to, _ in both] == ["ann"]


async def test_both_devices_get_a_message_and_one_acknowledgement_ends_it(
    server: RedisServer, connect: Any
) -> None:
    config = offline(retry_interval=0.2, max_retries=50)
    async with hubs(server.url, 2, config) as ((one, failed), (two, failed_two)):
        here = await connect(one, "a&user=ann")
        there = await connect(two, "b&user=ann")
        await eventually(lambda: "ann" in one._node.users.elsewhere)
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        assert (await received(here))["id"] == "m1"
        assert (await received(there))["id"] == "m1"
        await acknowledge(there, "m1")
        assert await pending is AckStatus.CONFIRMED
        second = one.send_ack_message_to_user("ann", ACKMessage(id="m2", content="y"))
        for raw in (here, there):
            while (message := await received(raw))["id"] == "m1":
                pass  # it was sent again before the word of its end had come
            assert message["id"] == "m2"
        await acknowledge(here, "m2")
        assert await second is AckStatus.CONFIRMED
        await eventually(lambda: two._delivery.acks.count == 0)
        assert not failed.heard
        assert not failed_two.heard


async def test_what_was_pending_reaches_a_device_that_connects_to_another_hub(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 2, offline()) as ((one, _), (two, _)):
        here = await connect(one, "a&user=ann")
        sent = [
            one.send_ack_message_to_user("ann", ACKMessage(id=f"m{n}", content=str(n)))
            for n in range(300)
        ]
        there = await connect(two, "b&user=ann")
        found = [(await received(there))["id"] for _ in range(300)]
        assert found == [f"m{n}" for n in range(300)]
        assert [(await received(here))["id"] for _ in range(300)] == found
        for message_id in found:
            await acknowledge(there, message_id)
        assert {await each for each in sent} == {AckStatus.CONFIRMED}


async def test_messages_for_one_client_keep_no_others_from_a_further_hub(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 2, offline()) as ((one, _), (two, _)):
        here = await connect(one, "a&user=ann")
        for n in range(10):
            one.send_ack_message("a", ACKMessage(id=f"d{n}", content="x"))
        for n in range(100):
            one.send_ack_message_to_user("ann", ACKMessage(id=f"m{n}", content="x"))
        for _ in range(110):
            await received(here)
        there = await connect(two, "b&user=ann")
        found = [(await received(there))["id"] for _ in range(100)]
        assert found == [f"m{n}" for n in range(100)]


async def test_many_users_who_come_elsewhere_at_once_hold_up_no_turn(
    server: RedisServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "ASK_EVERY", 3600.0)
    async with hubs(server.url, 1, offline()) as ((hub, _),):
        names = [f"u{n}" for n in range(40)]
        for name in names:
            await connect(hub, f"{name}&user={name}")
            for _ in range(50):
                hub.send_ack_message_to_user(name, ACKMessage(content="x"))
        assert hub.get_stats().offline_stored == 0
        hub._node.elsewhere(names)  # as an answer of the bus says it
        assert hub._node.users._to_spread
        await eventually(lambda: hub.get_stats().offline_stored == 2000)


async def test_a_message_waits_for_a_user_and_finds_him_on_any_hub(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 2, offline()) as ((one, _), (two, _)):
        pending = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        await pending.accepted()
        raw = await connect(two, "a&user=ann")
        assert (await received(raw))["id"] == "m1"
        await acknowledge(raw, "m1")
        assert await pending is AckStatus.CONFIRMED


async def test_an_await_ends_though_the_word_of_its_end_was_lost(
    server: RedisServer, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "CHECK_EVERY", 0.2)
    async with hubs(server.url, 2, offline()) as ((one, _), (two, _)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        monkeypatch.setattr(one._node.users, "word", lambda data: None)
        confirmed = one.send_ack_message_to_user("ann", ACKMessage(id="m1", content="x"))
        refused = one.send_ack_message_to_user("ann", ACKMessage(id="m2", content="x"))
        for _ in range(2):
            await received(raw)
        await acknowledge(raw, "m1")
        await acknowledge(raw, "m2", status="failed", error="no room")
        assert await confirmed is AckStatus.CONFIRMED
        with pytest.raises(AckFailedError, match="no room"):
            await refused


async def test_messages_keep_the_order_of_sending_at_each_device(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 3, offline()) as ((one, _), (two, _), (three, _)):
        raws = [await connect(hub, f"{name}&user=ann") for name, hub in (("a", one), ("b", two))]
        await entered(three, "ann")
        sent = []
        for n in range(200):
            for number, hub in enumerate((one, three)):
                message = ACKMessage(id=f"{number}.{n}", content="x")
                sent.append(hub.send_ack_message_to_user("ann", message))
            if n % 10 == 0:
                await asyncio.sleep(0)
        for raw in raws:
            ids = [(await received(raw))["id"] for _ in range(400)]
            for number in (0, 1):
                of_one = [each for each in ids if each.startswith(f"{number}.")]
                assert of_one == [f"{number}.{n}" for n in range(200)]
            for each in ids:
                await acknowledge(raw, each)
        for each in sent:
            assert await each is AckStatus.CONFIRMED


async def test_a_message_that_timed_out_is_sent_anew(server: RedisServer, connect: Any) -> None:
    config = offline(timeout=0.4, retry_interval=0.2, max_retries=0)
    async with hubs(server.url, 2, config) as ((one, _), (two, _)):
        raw = await connect(two, "a&user=ann")
        await entered(one, "ann")
        message = ACKMessage(id="m1", content="x")
        with pytest.raises(AckTimeoutError):
            await one.send_ack_message_to_user("ann", message)
        assert (await received(raw))["id"] == "m1"
        again = one.send_ack_message_to_user("ann", message)
        assert (await received(raw))["id"] == "m1"
        await acknowledge(raw, "m1")
        assert await again is AckStatus.CONFIRMED


async def test_a_message_has_its_own_timeout_on_another_hub(
    server: RedisServer, connect: Any
) -> None:
    async with hubs(server.url, 2, offline()) as ((one, _), (two, _)):
        await connect(two, "a&user=ann")
        await entered(one, "ann")
        with pytest.raises(AckTimeoutError, match=r"in 0\.3 s"):
            await one.send_ack_message_to_user("ann", ACKMessage(content="x", timeout=0.3))


# --- clients of other hubs ---


async def test_a_message_finds_a_client_of_another_hub(server: RedisServer) -> None:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        made = []
        failed = Failed()
        for _ in range(2):
            hub = Hub(HubConfig(close_timeout=0.1), bus=RedisBus(server.url))
            hub.add_send_failure_handler(failed)
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            made.append(hub)
        one, two = made
        raw = await RawClient.open(two)
        stack.callback(raw.close)
        (client_id,) = two.get_connected_client_ids()
        one.send_to_client(client_id, "text")
        one.send_to_client(client_id, b"\x00\xff")
        one.send_to_client(client_id, HubMessage(content="hub message"))
        assert (await raw.recv()).payload == b"text"
        assert (await raw.recv()).payload == b"\x00\xff"
        assert (await received(raw))["content"] == "hub message"
        assert not failed.heard
        raw.close()
        await eventually(lambda: not two.get_connected_client_ids())
        one.send_to_client(client_id, "too late")
        await eventually(lambda: len(failed.heard) == 1)
        assert failed.heard[0][0] == client_id
        with pytest.raises(ClientNotFoundError):
            one.send_to_client("nobody", "x")


# --- stores ---


async def test_stores_that_hubs_cannot_share_are_refused(
    server: RedisServer, tmp_path: Path
) -> None:
    for store, word in (
        (SQLiteOfflineStore(tmp_path / "x.db"), "SQLite"),
        (MemoryOfflineStore(), "SharedOfflineStore"),
    ):
        hub = Hub(authenticate=named, bus=RedisBus(server.url))
        hub.enable_ack(offline(), store=store)
        with pytest.raises(ConfigError, match=word):
            await hub.start("127.0.0.1", 0)
