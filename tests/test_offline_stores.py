"""The contract of every offline store, sentence by sentence of its interface.

A further store joins with one more entry in `STORES`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from wsc_fast.errors import MessageExistsError, OfflineStoreError, OfflineStoreFullError
from wsc_fast.stores.base import (
    MOST_DROPPED,
    READ_BYTES,
    OfflineStore,
    SharedOfflineStore,
    StoredMessage,
)
from wsc_fast.stores.memory import MemoryOfflineStore
from wsc_fast.stores.redis.store import RedisOfflineStore
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore


@asynccontextmanager
async def memory(path: Path) -> AsyncIterator[OfflineStore]:
    store = MemoryOfflineStore()
    await store.open()
    yield store
    await store.close()


@asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[OfflineStore]:
    store = SQLiteOfflineStore(path / "offline.db")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def redis(path: Path) -> AsyncIterator[OfflineStore]:
    with RedisServer(path) as server:
        store = RedisOfflineStore(server.url)
        await store.open()
        try:
            yield store
        finally:
            await store.close()


# By name, what opens an empty store and closes it; the path is an empty directory of the test.
STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[OfflineStore]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "redis": redis,
}

Opener = Callable[[], AbstractAsyncContextManager[OfflineStore]]


@asynccontextmanager
async def two_sqlite(path: Path) -> AsyncIterator[tuple[SharedOfflineStore, SharedOfflineStore]]:
    first, second = (SQLiteOfflineStore(path / "offline.db") for _ in range(2))
    await asyncio.gather(first.open(), second.open())
    try:
        yield first, second
    finally:
        await asyncio.gather(first.close(), second.close())


@asynccontextmanager
async def two_redis(path: Path) -> AsyncIterator[tuple[SharedOfflineStore, SharedOfflineStore]]:
    with RedisServer(path) as server:
        first, second = (RedisOfflineStore(server.url) for _ in range(2))
        await asyncio.gather(first.open(), second.open())
        try:
            yield first, second  # type: ignore[misc]
        finally:
            await asyncio.gather(first.close(), second.close())


Pair = Callable[[], AbstractAsyncContextManager[tuple[SharedOfflineStore, SharedOfflineStore]]]

# By name, what opens two stores over one database, as two processes would.
PAIRS: dict[str, Callable[[Path], AbstractAsyncContextManager[Any]]] = {
    "sqlite": two_sqlite,
    "redis": two_redis,
}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """To be used as `async with pair() as (first, second):`."""
    return partial(PAIRS[request.param], tmp_path)


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """To be used as `async with store() as opened:`, on the loop of the test."""
    return partial(STORES[request.param], tmp_path)


def append(
    store: OfflineStore,
    message_id: str,
    *,
    user: str = "ann",
    data: bytes = b"{}",
    limit: int = 1000,
    drop_oldest: bool = False,
) -> Awaitable[list[StoredMessage]]:
    return store.append(user, message_id, data, limit=limit, drop_oldest=drop_oldest)


async def fill(store: OfflineStore, names: Sequence[str], **options: Any) -> None:
    for dropped in await asyncio.gather(*[append(store, name, **options) for name in names]):
        assert dropped == []


async def ids(store: OfflineStore, user: str = "ann") -> list[str]:
    """Ids of all messages of a user, in order."""
    found: list[str] = []
    after = 0
    while page := await store.read(user, after=after):
        found += [message.id for message in page]
        after = page[-1].position
    return found


def later() -> float:
    """A time that differs from what is stored before and after it, also in milliseconds."""
    start = time.time()
    while time.time() < start + 0.002:
        pass
    now = time.time()
    while time.time() < now + 0.002:
        pass
    return now


async def test_it_is_an_offline_store(store: Opener) -> None:
    async with store() as opened:
        assert isinstance(opened, OfflineStore)


# append


async def test_a_message_comes_back_as_it_was_stored(store: Opener, any_loop: str) -> None:
    async with store() as opened:
        before = time.time()
        assert await append(opened, "m1", data=b'{"a": 1}') == []
        (message,) = await opened.read("ann")
        assert message.id == "m1"
        assert message.data == b'{"a": 1}'
        assert type(message.data) is bytes
        assert type(message.position) is int
        assert message.position >= 1
        assert before - 0.01 <= message.stored_at <= time.time() + 0.01


async def test_the_order_is_that_of_the_calls_not_of_the_awaits(
    store: Opener, any_loop: str
) -> None:
    async with store() as opened:
        pending = [append(opened, f"m{number}") for number in range(300)]
        for awaitable in reversed(pending):
            assert await awaitable == []
        assert await ids(opened) == [f"m{number}" for number in range(300)]


@pytest.mark.fault(number="G6")
async def test_messages_of_the_same_millisecond_keep_their_order(store: Opener) -> None:
    # Ids whose order as texts is another one.
    names = [str(number) for number in range(8, 12)] + ["b", "a"]
    async with store() as opened:
        await fill(opened, names)
        assert await ids(opened) == names


async def test_positions_grow_even_when_all_before_are_gone(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"])
        last = (await opened.read("ann"))[-1].position
        await opened.delete("ann", ["m1", "m2"])
        await fill(opened, ["m3"])
        (message,) = await opened.read("ann", after=last)
        assert message.id == "m3"


async def test_many_users_append_at_once(store: Opener, any_loop: str) -> None:
    async with store() as opened:
        users = [f"user{number}" for number in range(50)]
        calls = [append(opened, f"m{n}", user=user) for n in range(20) for user in users]
        assert await asyncio.gather(*calls) == [[]] * 1000
        for user in users:
            assert await ids(opened, user) == [f"m{n}" for n in range(20)]


# The same id again.


@pytest.mark.fault(number="G13")
async def test_the_same_id_again_is_stored_once_at_its_first_place(store: Opener) -> None:
    async with store() as opened:
        await append(opened, "m1", data=b"1")
        await append(opened, "m2", data=b"2")
        assert await append(opened, "m1", data=b"1") == []
        assert [(m.id, m.data) for m in await opened.read("ann")] == [("m1", b"1"), ("m2", b"2")]
        assert await opened.count("ann") == 2


async def test_the_same_id_with_other_data_is_refused_and_shown(store: Opener) -> None:
    async with store() as opened:
        await append(opened, "m1", data=b"1")
        await append(opened, "m2", data=b"2")
        for data in (b"other", b"", b"1 ", b"0"):
            with pytest.raises(MessageExistsError, match=r"ann.*m1") as caught:
                await append(opened, "m1", data=data)
            assert caught.value.data == b"1"
        assert [(m.id, m.data) for m in await opened.read("ann")] == [("m1", b"1"), ("m2", b"2")]
        assert await opened.count("ann") == 2
        # It is another message for another user, and once the first one is gone.
        assert await append(opened, "m1", user="bob", data=b"other") == []
        await opened.delete("ann", ["m1"])
        assert await append(opened, "m1", data=b"other") == []


async def test_the_same_id_with_other_data_at_the_limit_drops_nothing(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], limit=2)
        for drop_oldest in (True, False):
            with pytest.raises(MessageExistsError):
                await append(opened, "m1", data=b"x", limit=2, drop_oldest=drop_oldest)
        assert await ids(opened) == ["m1", "m2"]


@pytest.mark.fault(number="G13")
async def test_the_same_id_twice_at_once_is_stored_once(store: Opener) -> None:
    async with store() as opened:
        calls = [append(opened, name, data=name.encode()) for name in ["a", "b", "a"]]
        assert await asyncio.gather(*calls) == [[], [], []]
        assert [(m.id, m.data) for m in await opened.read("ann")] == [("a", b"a"), ("b", b"b")]


async def test_the_same_id_with_other_data_at_once_fails_alone(store: Opener) -> None:
    async with store() as opened:
        names = ["a", "b", "a", "c"]
        calls = [append(opened, name, data=b"%d" % n) for n, name in enumerate(names)]
        first, second, error, last = await asyncio.gather(*calls, return_exceptions=True)
        assert first == second == last == []
        assert isinstance(error, MessageExistsError)
        assert error.data == b"0"
        found = [(m.id, m.data) for m in await opened.read("ann")]
        assert found == [("a", b"0"), ("b", b"1"), ("c", b"3")]


@pytest.mark.fault(number="G13")
async def test_the_same_id_again_at_the_limit_changes_nothing(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], limit=2)
        assert await append(opened, "m1", limit=2, drop_oldest=True) == []
        assert await append(opened, "m2", limit=2, drop_oldest=False) == []
        assert await ids(opened) == ["m1", "m2"]


async def test_the_same_id_of_another_user_is_another_message(store: Opener) -> None:
    async with store() as opened:
        await append(opened, "m1", user="ann", data=b"a")
        await append(opened, "m1", user="bob", data=b"b")
        assert [m.data for m in await opened.read("ann")] == [b"a"]
        assert [m.data for m in await opened.read("bob")] == [b"b"]


async def test_a_deleted_id_is_new_again(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"])
        await opened.delete("ann", ["m1"])
        await fill(opened, ["m1"])
        assert await ids(opened) == ["m2", "m1"]


# The limit.


@pytest.mark.fault(number="G16")
async def test_at_the_limit_a_message_is_refused(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], limit=2)
        with pytest.raises(OfflineStoreFullError, match="ann"):
            await append(opened, "m3", limit=2)
        assert await ids(opened) == ["m1", "m2"]
        await opened.delete("ann", ["m1"])
        await fill(opened, ["m3"], limit=2)
        assert await ids(opened) == ["m2", "m3"]


@pytest.mark.fault(number="G16")
async def test_at_the_limit_the_oldest_is_dropped_and_reported(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], limit=2)
        first, second = await opened.read("ann")
        assert await append(opened, "m3", limit=2, drop_oldest=True) == [first]
        assert await append(opened, "m4", limit=2, drop_oldest=True) == [second]
        assert await ids(opened) == ["m3", "m4"]
        assert await opened.count("ann") == 2


@pytest.mark.fault(number="G16")
async def test_a_limit_of_one_keeps_the_newest(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1"], limit=1, drop_oldest=True)
        (first,) = await opened.read("ann")
        assert await append(opened, "m2", limit=1, drop_oldest=True) == [first]
        assert await ids(opened) == ["m2"]
        assert await opened.count("ann") == 1


@pytest.mark.fault(number="G16")
async def test_a_lower_limit_drops_as_many_as_it_takes(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, [f"m{n}" for n in range(5)], limit=5)
        with pytest.raises(OfflineStoreFullError):
            await append(opened, "m5", limit=3)
        dropped = await append(opened, "m5", limit=3, drop_oldest=True)
        assert [message.id for message in dropped] == ["m0", "m1", "m2"]
        assert await ids(opened) == ["m3", "m4", "m5"]


async def test_a_much_lower_limit_is_reached_over_several_appends(store: Opener) -> None:
    names = [f"m{n}" for n in range(2500)]
    async with store() as opened:
        await fill(opened, names, limit=3000)
        told: list[str] = []
        for number in range(10):
            dropped = await append(opened, f"n{number}", limit=10, drop_oldest=True)
            assert 1 <= len(dropped) <= MOST_DROPPED
            told += [message.id for message in dropped]
            if await opened.count("ann") == 10:
                break
        rest = [f"n{n}" for n in range(number + 1)]
        assert told == [*names, *rest][:-10]
        assert await ids(opened) == [*names, *rest][-10:]


@pytest.mark.fault(number="G16")
async def test_more_than_the_limit_at_once_drops_each_in_turn(store: Opener) -> None:
    async with store() as opened:
        calls = [append(opened, f"m{n}", limit=3, drop_oldest=True) for n in range(10)]
        dropped = [[message.id for message in each] for each in await asyncio.gather(*calls)]
        assert dropped == [[], [], []] + [[f"m{n}"] for n in range(7)]
        assert await ids(opened) == ["m7", "m8", "m9"]


@pytest.mark.fault(number="G16")
async def test_a_refusal_fails_no_other_append(store: Opener) -> None:
    async with store() as opened:
        calls = [
            append(opened, f"m{n}", user=user, limit=2) for n in range(4) for user in ("ann", "bob")
        ]
        calls.append(append(opened, "m", user="cyd"))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[:4] == [[]] * 4
        assert [type(each) for each in results[4:8]] == [OfflineStoreFullError] * 4
        assert results[8] == []
        assert await ids(opened, "ann") == await ids(opened, "bob") == ["m0", "m1"]


@pytest.mark.fault(number="G16")
async def test_the_limit_is_of_each_user(store: Opener) -> None:
    async with store() as opened:
        for user in ("ann", "bob"):
            await fill(opened, ["m1", "m2"], user=user, limit=2)
        assert await append(opened, "m3", user="ann", limit=2, drop_oldest=True) != []
        assert await ids(opened, "bob") == ["m1", "m2"]


@pytest.mark.fault(number="G16")
async def test_the_limit_holds_for_a_user_with_a_thousand_messages(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, [f"m{n}" for n in range(1000)], limit=1000)
        calls = [append(opened, f"n{n}", limit=1000, drop_oldest=True) for n in range(500)]
        dropped = await asyncio.gather(*calls)
        assert [message.id for each in dropped for message in each] == [f"m{n}" for n in range(500)]
        assert await opened.count("ann") == 1000


# read


@pytest.mark.fault(number="G6")
async def test_pages_join_without_gap_or_overlap(store: Opener) -> None:
    names = [f"m{n}" for n in range(250)]
    async with store() as opened:
        await fill(opened, names)
        pages, after = [], 0
        while page := await opened.read("ann", after=after):
            pages.append([message.id for message in page])
            after = page[-1].position
        assert pages == [names[:100], names[100:200], names[200:]]
        assert [m.id for m in await opened.read("ann", limit=1)] == ["m0"]
        assert [m.id for m in await opened.read("ann", limit=1000)] == names


async def test_paging_goes_on_behind_what_was_deleted(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2", "m3", "m4"])
        page = await opened.read("ann", limit=2)
        await opened.delete("ann", [message.id for message in page])
        rest = await opened.read("ann", after=page[-1].position)
        assert [message.id for message in rest] == ["m3", "m4"]


async def test_read_sees_what_was_appended_before_it(store: Opener, any_loop: str) -> None:
    async with store() as opened:
        pending = [append(opened, f"m{n}") for n in range(20)]
        assert [message.id for message in await opened.read("ann")] == [f"m{n}" for n in range(20)]
        assert await asyncio.gather(*pending) == [[]] * 20


async def test_read_sees_what_was_dropped_before_it(store: Opener) -> None:
    async with store() as opened:
        pending = [append(opened, f"m{n}", limit=2, drop_oldest=True) for n in range(5)]
        assert [message.id for message in await opened.read("ann")] == ["m3", "m4"]
        await asyncio.gather(*pending)


async def test_a_page_is_bounded_in_bytes(store: Opener) -> None:
    sizes = [100, 200, 5000, 10, 10, 3000, 1000, 1000]
    async with store() as opened:
        await asyncio.gather(
            *[append(opened, f"m{n}", data=bytes(size)) for n, size in enumerate(sizes)]
        )

        async def pages(**bounds: int) -> list[list[int]]:
            found, after = [], 0
            while page := await opened.read("ann", after=after, **bounds):
                found.append([len(message.data) for message in page])
                after = page[-1].position
            return found

        # The message that reaches the bound is the last one.
        assert await pages(max_bytes=3000) == [[100, 200, 5000], [10, 10, 3000], [1000, 1000]]
        assert await pages(max_bytes=3000, limit=1) == [[size] for size in sizes]
        assert await pages(max_bytes=5300) == [[100, 200, 5000], [10, 10, 3000, 1000, 1000]]
        assert await pages(max_bytes=5301) == [[100, 200, 5000, 10], [10, 3000, 1000, 1000]]
        for bound in (1, 0):
            assert await pages(max_bytes=bound) == [[size] for size in sizes]
        assert await opened.read("ann", limit=0, max_bytes=10**6) == []


async def test_a_page_has_no_more_bytes_than_the_default(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, [f"m{n}" for n in range(20)], data=bytes(READ_BYTES // 4))
        assert len(await opened.read("ann", limit=1000)) == 4
        assert await ids(opened) == [f"m{n}" for n in range(20)]


# delete and count


async def test_delete_counts_what_there_was(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2", "m3", "m4"])
        await fill(opened, ["m1"], user="bob")
        assert await opened.delete("ann", ["m2", "none", "m4"]) == 2
        assert await opened.delete("ann", ["m2", "m4"]) == 0
        assert await opened.delete("ann", []) == 0
        assert await opened.delete("ann", ("m1", "m1")) == 1
        assert await opened.delete("ann", {"m3"}) == 1
        assert await ids(opened) == []
        assert await ids(opened, "bob") == ["m1"]


async def test_many_deletes_at_once(store: Opener) -> None:
    names = [f"m{n}" for n in range(200)]
    async with store() as opened:
        await fill(opened, names)
        calls = [opened.delete("ann", [name, f"no {name}"]) for name in names[:150]]
        assert await asyncio.gather(*calls) == [1] * 150
        assert await ids(opened) == names[150:]
        assert await opened.delete("ann", names) == 50


async def test_count(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2", "m3"])
        await fill(opened, ["m1"], user="bob")
        assert await opened.count("ann") == 3
        await append(opened, "m1")
        assert await opened.count("ann") == 3
        await opened.delete("ann", ["m1", "m2"])
        assert await opened.count("ann") == 1
        assert await opened.count("bob") == 1


async def test_unknown_users_have_nothing(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1"])
        assert await opened.read("nobody") == []
        assert await opened.count("nobody") == 0
        assert await opened.delete("nobody", ["m1"]) == 0
        assert await opened.count("ann") == 1


# expire


async def test_expire_removes_the_oldest_first(store: Opener) -> None:
    async with store() as opened:
        for user, name in [("bob", "b1"), ("ann", "a1"), ("bob", "b2"), ("ann", "a2")]:
            await fill(opened, [name], user=user)
            later()
        now = later()
        await fill(opened, ["a3"])
        stored = {m.id: m for user in ("ann", "bob") for m in await opened.read(user)}
        assert await opened.expire(now, limit=1) == [("bob", stored["b1"])]
        assert await opened.expire(now, limit=2) == [("ann", stored["a1"]), ("bob", stored["b2"])]
        assert await opened.expire(now) == [("ann", stored["a2"])]
        assert await opened.expire(now) == []
        assert await ids(opened) == ["a3"]
        assert await opened.count("ann") == 1
        assert await opened.count("bob") == 0


async def test_expire_takes_a_thousand_unless_told(store: Opener) -> None:
    async with store() as opened:
        for user in ("ann", "bob"):
            await fill(opened, [f"m{n}" for n in range(600)], user=user)
        assert len(await opened.expire(later())) == 1000
        assert len(await opened.expire(later())) == 200


async def test_expire_is_bounded_in_bytes(store: Opener) -> None:
    sizes = [100, 5000, 10, 10, 3000, 1000]
    async with store() as opened:
        for number, size in enumerate(sizes):
            await append(opened, f"m{number}", user=f"user{number % 2}", data=bytes(size))
            later()
        now = later()
        told = []
        while expired := await opened.expire(now, max_bytes=3000):
            told.append([len(message.data) for _, message in expired])
            left = sum([await opened.count(f"user{n}") for n in range(2)])
            assert left == len(sizes) - sum(map(len, told))
        assert told == [[100, 5000], [10, 10, 3000], [1000]]


async def test_expire_has_no_more_bytes_than_the_default(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, [f"m{n}" for n in range(10)], data=bytes(READ_BYTES // 4))
        now = later()
        counts = []
        while expired := await opened.expire(now):
            counts.append(len(expired))
        assert counts == [4, 4, 2]


async def test_expire_keeps_what_is_not_older(store: Opener) -> None:
    async with store() as opened:
        now = later()
        await fill(opened, ["m1"])
        assert await opened.expire(now) == []
        (message,) = await opened.read("ann")
        assert await opened.expire(message.stored_at) == []
        assert await ids(opened) == ["m1"]


async def test_expired_messages_make_room(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], limit=2)
        await opened.expire(later())
        await fill(opened, ["m1", "m3"], limit=2)
        assert await ids(opened) == ["m1", "m3"]


# open and close


async def test_messages_outlast_close_and_open(store: Opener, any_loop: str) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2", "m3"], limit=3)
        await opened.delete("ann", ["m1"])
        before = await opened.read("ann")
        await opened.close()
        await opened.open()
        assert await opened.read("ann") == before
        assert await opened.count("ann") == 2
        # Identity, limit and order hold on.
        assert await append(opened, "m2", limit=2, drop_oldest=True) == []
        assert await append(opened, "m4", limit=2, drop_oldest=True) == [before[0]]
        assert await ids(opened) == ["m3", "m4"]


async def test_open_and_close_are_idempotent(store: Opener) -> None:
    async with store() as opened:
        await opened.open()
        await fill(opened, ["m1"])
        await asyncio.gather(opened.open(), opened.open())
        assert await ids(opened) == ["m1"]
        await opened.close()
        await opened.close()
        await asyncio.gather(opened.open(), opened.open())
        assert await ids(opened) == ["m1"]
        await asyncio.gather(opened.close(), opened.close())


async def test_close_waits_for_what_is_under_way(store: Opener) -> None:
    async with store() as opened:
        pending = [append(opened, f"m{n}") for n in range(100)]
        await opened.close()
        assert await asyncio.gather(*pending) == [[]] * 100
        await opened.open()
        assert await ids(opened) == [f"m{n}" for n in range(100)]


async def test_a_closed_store_raises_its_own_errors(store: Opener) -> None:
    async with store() as opened:
        await opened.close()
        refused = append(opened, "m1")
        with pytest.raises(OfflineStoreError):
            await refused
        with pytest.raises(OfflineStoreError):
            await opened.read("ann")
        with pytest.raises(OfflineStoreError):
            await opened.delete("ann", ["m1"])
        with pytest.raises(OfflineStoreError):
            await opened.count("ann")
        with pytest.raises(OfflineStoreError):
            await opened.expire(time.time())


# Texts and data.

TEXTS = [
    "plain",
    "Plain",
    "plain ",
    "with 'quotes' and \"more\"; DROP TABLE messages; --",
    "back\\slash %s ? :x $1 {y} *",
    "a:b/c,d|e\tf\ng",
    "Grüße, 日本語, עברית, 🦊",
    "e\u0301",
    "\u00e9",
    "nul\0inside",
    "nul\0other",
    "x" * 1000,
    "1",
    "01",
    "1.0",
    "NULL",
    "",
]


async def test_ids_are_any_text(store: Opener) -> None:
    async with store() as opened:
        for user in TEXTS:
            await fill(opened, TEXTS, user=user)
        for user in TEXTS:
            assert await ids(opened, user) == TEXTS
            assert await opened.delete(user, TEXTS[::2]) == len(TEXTS[::2])
        for user in TEXTS:
            assert await ids(opened, user) == TEXTS[1::2]
        assert {user for user, _ in await opened.expire(later())} == set(TEXTS)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", bytes(range(256)), '{"text": "日本"}'.encode(), os.urandom(1 << 20)],
    ids=["empty", "nul", "all-bytes", "json", "1MB"],
)
async def test_data_are_any_bytes(store: Opener, data: bytes) -> None:
    async with store() as opened:
        await fill(opened, ["m1", "m2"], data=data)
        found = await opened.read("ann", max_bytes=4 << 20)
        assert [message.data for message in found] == [data, data]
        (dropped,) = await append(opened, "m3", limit=2, drop_oldest=True)
        assert dropped.data == data
        ((_, expired),) = await opened.expire(later(), limit=1)
        assert expired.data == data


async def test_large_messages_at_once(store: Opener) -> None:
    async with store() as opened:
        await fill(opened, [f"m{n}" for n in range(20)], data=bytes(1 << 20))
        found = await opened.read("ann", max_bytes=20 << 20)
        assert [len(message.data) for message in found] == [1 << 20] * 20


# Two processes over one database.


async def told(store: SharedOfflineStore, after: int, limit: int = 1000) -> tuple[int, list[str]]:
    """All users that `appended` tells of, in as many calls as it takes."""
    users: list[str] = []
    while True:
        position, more = await store.appended(after, limit)
        assert position >= after
        assert len(more) <= limit
        assert len(set(more)) == len(more)
        if position == after:
            assert more == []
            return position, users
        after = position
        users += more


async def test_it_is_a_shared_store(pair: Pair) -> None:
    async with pair() as (first, _):
        assert isinstance(first, SharedOfflineStore)


async def test_appended_tells_of_others_and_not_of_its_own(pair: Pair) -> None:
    async with pair() as (first, second):
        position, users = await first.appended(-1)
        assert users == []
        await fill(first, ["m1"], user="ann")
        await fill(second, ["m1", "m2"], user="bob")
        await fill(first, ["m1"], user="cyd")
        await fill(second, ["m1"], user="dan")
        position, users = await told(first, position)
        assert sorted(users) == ["bob", "dan"]
        # Once.
        assert await told(first, position) == (position, [])
        await fill(first, ["m3"], user="bob")
        _, users = await told(first, position)
        assert users == []
        # Another message for the same user.
        await fill(second, ["m4"], user="bob")
        _, users = await told(first, position)
        assert users == ["bob"]


async def test_appended_begins_at_the_newest_position(pair: Pair) -> None:
    async with pair() as (first, second):
        await fill(second, ["m1"], user="ann")
        position, users = await first.appended(-1)
        assert users == []
        assert await told(first, position) == (position, [])
        await fill(second, ["m1"], user="bob")
        assert (await told(first, position))[1] == ["bob"]
        # From the beginning, where nothing was stored by this one.
        assert sorted((await told(first, 0))[1]) == ["ann", "bob"]


async def test_appended_comes_to_all_users_however_few_at_a_time(pair: Pair) -> None:
    async with pair() as (first, second):
        position, _ = await first.appended(-1)
        users = [f"user{n}" for n in range(50)]
        for name in ("m1", "m2"):
            await asyncio.gather(*[append(second, name, user=user) for user in users])
        for limit in (1, 7, 50, 1000):
            assert set((await told(first, position, limit))[1]) == set(users)


async def test_appended_misses_nothing_while_both_store(pair: Pair) -> None:
    chance = random.Random(1)
    async with pair() as (first, second):
        positions = [(await each.appended(-1))[0] for each in (first, second)]
        seen: list[set[str]] = [set(), set()]
        names: list[set[str]] = [set(), set()]
        for turn in range(60):
            calls = []
            for index, store in enumerate((first, second)):
                for n in range(chance.randrange(5)):
                    user = f"user{index}.{turn}.{n}"
                    names[index].add(user)
                    calls.append(append(store, "m", user=user, limit=2))
            await asyncio.gather(*calls)
            for index, store in enumerate((first, second)):
                if chance.random() < 0.5:
                    positions[index], users = await told(store, positions[index])
                    seen[index].update(users)
        for index, store in enumerate((first, second)):
            seen[index].update((await told(store, positions[index]))[1])
        assert seen[0] == names[1]
        assert seen[1] == names[0]


async def test_missing_is_what_nobody_has_any_more(pair: Pair) -> None:
    async with pair() as (first, second):
        await fill(first, [f"m{n}" for n in range(6)])
        await second.delete("ann", ["m1"])
        (dropped,) = await append(second, "m6", limit=5, drop_oldest=True)
        assert dropped.id == "m0"
        wanted = [f"m{n}" for n in range(8)]
        assert sorted(await first.missing("ann", wanted)) == ["m0", "m1", "m7"]
        assert sorted(await first.missing("ann", {"m1", "m2"})) == ["m1"]
        assert await first.missing("ann", ["m2"]) == []
        assert await first.missing("ann", []) == []
        assert sorted(await first.missing("bob", ["m2", "m3"])) == ["m2", "m3"]
        await second.expire(later())
        assert sorted(await first.missing("ann", wanted)) == wanted


async def test_a_message_about_to_be_stored_is_not_missing(pair: Pair) -> None:
    async with pair() as (first, _):
        pending = [append(first, f"m{n}") for n in range(100)]
        assert await first.missing("ann", ["m0", "m99", "m100"]) == ["m100"]
        await asyncio.gather(*pending)


async def test_missing_of_thousands(pair: Pair) -> None:
    names = [f"m{n}" for n in range(3000)]
    async with pair() as (first, second):
        await fill(first, names, limit=10_000)
        assert await second.missing("ann", names) == []
        await first.delete("ann", names[::3])
        assert sorted(await second.missing("ann", names)) == sorted(names[::3])


@pytest.mark.parametrize("text", ["e\u0301 \U0001f98a", "nul\0inside", "'x'; --", ""])
async def test_shared_calls_take_any_text(pair: Pair, text: str) -> None:
    async with pair() as (first, second):
        position, _ = await first.appended(-1)
        await fill(second, [text], user=text)
        assert (await told(first, position))[1] == [text]
        assert await first.missing(text, [text, "other"]) == ["other"]


async def test_shared_calls_of_a_closed_store(pair: Pair) -> None:
    async with pair() as (first, _):
        await first.close()
        with pytest.raises(OfflineStoreError):
            await first.appended(0)
        with pytest.raises(OfflineStoreError):
            await first.missing("ann", ["m1"])


# All together, against the store in memory.


@pytest.mark.parametrize("seed", range(3))
async def test_a_random_walk_agrees_with_the_store_in_memory(store: Opener, seed: int) -> None:
    chance = random.Random(seed)
    model = MemoryOfflineStore()
    await model.open()
    users, names = ["ann", "bob", "cyd"], [f"m{n}" for n in range(12)]

    def seen(result: Any) -> Any:
        """The part that may be compared: positions and times are each store's own."""
        if isinstance(result, StoredMessage):
            return result.id, result.data
        if isinstance(result, list | tuple):
            return [seen(each) for each in result]
        return type(result) if isinstance(result, Exception) else result

    async with store() as opened:
        both = (opened, model)
        for step in range(300):
            pending: list[list[Awaitable[Any]]] = [[], []]
            for _ in range(chance.randrange(12)):
                user, name = chance.choice(users), chance.choice(names)
                options = {"limit": chance.randrange(1, 8), "drop_oldest": chance.random() < 0.6}
                data = b"%d" % chance.randrange(2)
                for calls, each in zip(pending, both, strict=True):
                    calls.append(append(each, name, user=user, data=data, **options))
            # Before the appends are awaited, so that they share a batch where there are batches.
            user = chance.choice(users)
            kind = chance.randrange(4)
            if kind == 0:
                chosen = chance.sample(names, 5)
                results: list[Any] = [await each.delete(user, chosen) for each in both]
            elif kind == 1:
                bounds = {"limit": chance.randrange(1, 5), "max_bytes": chance.randrange(5)}
                results = [await each.read(user, **bounds) for each in both]
            elif kind == 2 and chance.random() < 0.3:
                bounds = {"limit": chance.randrange(1, 5), "max_bytes": chance.randrange(5)}
                results = [await each.expire(time.time() + 60, **bounds) for each in both]
            else:
                results = [await each.count(user) for each in both]
            assert seen(results[0]) == seen(results[1]), (seed, step, kind)
            outcomes = [await asyncio.gather(*calls, return_exceptions=True) for calls in pending]
            assert seen(outcomes[0]) == seen(outcomes[1]), (seed, step)
            for user in users:
                found = [await each.read(user) for each in both]
                assert seen(found[0]) == seen(found[1]), (seed, step, user)
                assert await opened.count(user) == len(found[0])
