"""The offline store behind the acknowledgements: away, late, shared with others, forgetful."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acks import (
    TroubledStore,
    acking,
    acknowledge,
    caught_up,
    contents,
    contents_acknowledged,
    eventually_count,
    failed,
    received,
)
from tests.acks import running_and_aborting as running
from tests.redis_server import RedisServer
from tests.support import join
from wsc_fast import (
    ACKConfig,
    AckDroppedError,
    ACKMessage,
    AckStatus,
    HubMessage,
    MemoryOfflineStore,
    OfflineStore,
    OfflineStoreError,
    PendingFullError,
    RedisOfflineStore,
    SQLiteOfflineStore,
    StoredMessage,
)
from wsc_fast._core.connection import abort
from wsc_fast.delivery import journal, store_access, upkeep
from wsc_fast.testing import RawClient, eventually, eventually_async

pytestmark = pytest.mark.usefixtures("closing_sockets")


# --- opening ---


async def test_a_store_that_was_away_when_it_was_attached_is_opened_later() -> None:
    store = TroubledStore()
    store.failing.add("open")
    hub = acking(None)
    hub._delivery.acks = None
    async with running(hub):
        hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
        with pytest.raises(OfflineStoreError, match="cannot open"):
            await hub.send_ack_message_to_user("ann", ACKMessage()).accepted()
        store.failing.clear()

        async def stored() -> bool:
            try:
                await hub.send_ack_message_to_user("ann", ACKMessage()).accepted()
            except OfflineStoreError:
                return False
            return True

        await eventually_async(stored, 5.0)
        assert await store.count("ann") == 1
        # Not each message has tried.
        assert store.calls["open"] <= 4


async def test_messages_that_wait_for_a_store_to_open_come_in_order_and_are_bounded() -> None:
    store = TroubledStore()
    store.gate.clear()
    hub = acking(None)
    hub._delivery.acks = None
    async with running(hub):
        config = ACKConfig(enable_offline_messages=True, max_pending_bytes=100_000)
        hub.enable_ack(config, store=store)
        sent = 0

        def send() -> None:
            nonlocal sent
            while True:
                content = f"{sent} ".ljust(500, "x")
                hub.send_ack_message_to_user("ann", ACKMessage(content=content))
                sent += 1

        with pytest.raises(PendingFullError, match="to open already"):
            send()
        raw = await RawClient.open(hub, "/ws?id=a&user=ann")
        await eventually(lambda: hub.get_connected_clients() == 1)
        live = hub.send_ack_message_to_user("ann", ACKMessage(content="live"))
        store.gate.set()
        for n in range(sent):
            message = await received(raw)
            assert int(message["content"].split()[0]) == n
            await acknowledge(raw, message["id"])
        assert await contents_acknowledged(raw, 1) == ["live"]
        assert await live is AckStatus.CONFIRMED


# --- away ---


async def test_a_store_that_hangs_holds_up_plain_messages_for_its_patience_only() -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        store.gate.clear()
        begun = time.monotonic()
        raw, _ = await join(hub, "a&user=ann")
        hub.send_to_user("ann", HubMessage(content="plain"))
        assert (await received(raw))["content"] == "plain"
        took = time.monotonic() - begun
        assert store_access.PATIENCE * 0.9 <= took <= store_access.PATIENCE + 1.0
        # The next one does not wait at all while the store is known to be away.
        begun = time.monotonic()
        bob, _ = await join(hub, "b&user=bob")
        hub.send_to_user("bob", HubMessage(content="plain"))
        assert (await received(bob))["content"] == "plain"
        assert time.monotonic() - begun < store_access.PATIENCE / 2
        assert store.calls["read"] == 1
        store.gate.set()


async def test_messages_of_a_store_come_once_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_access, "PATIENCE", 0.1)
    monkeypatch.setattr(store_access, "AWAY", 0.2)
    monkeypatch.setattr("wsc_fast.delivery.catching_up.REPLAY_AGAIN", 0.2)
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        for n in range(3):
            await hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))).accepted()
        store.gate.clear()
        raw, _ = await join(hub, "a&user=ann")
        hub.send_to_user("ann", HubMessage(content="plain"))
        assert (await received(raw))["content"] == "plain"
        store.gate.set()
        assert await contents_acknowledged(raw, 3) == ["0", "1", "2"]
        await eventually_count(store, "ann", 0)


async def test_a_slow_store_that_answers_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_access, "PATIENCE", 0.3)
    turn = asyncio.Semaphore(1)

    class Slow(MemoryOfflineStore):
        async def read(self, *args: Any, **options: Any) -> Any:
            async with turn:
                await asyncio.sleep(0.02)
                return await super().read(*args, **options)

    store = Slow()
    hub = acking(store)
    async with running(hub):
        users = [f"user{n}" for n in range(40)]
        for user in users:
            hub.send_ack_message_to_user(user, ACKMessage(content=user))
        clients = await asyncio.gather(*(join(hub, f"{user}/a&user={user}") for user in users))
        # The last one waits for twice the patience, as the store serves one after the other.
        for user, (raw, _) in zip(users, clients, strict=True):
            assert (await received(raw))["content"] == user
        assert hub.get_stats().offline_errors == 0


async def test_a_page_that_is_not_full_is_the_last_one() -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        for n in range(journal.PAGE - 1):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        raw, _ = await join(hub, "a&user=ann")
        expected = [str(n) for n in range(journal.PAGE - 1)]
        assert await contents(raw, journal.PAGE - 1) == expected
        await caught_up(hub)
        assert store.calls["read"] == 1


# --- removing ---


async def test_a_message_that_could_not_be_removed_is_removed_later_and_comes_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "DELETE_AGAIN", 0.3)
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        message = ACKMessage(id="m", content="x")
        pending = hub.send_ack_message_to_user("ann", message)
        await pending.accepted()
        store.failing.add("delete")
        raw, _ = await join(hub, "a&user=ann")
        await acknowledge(raw, (await received(raw))["id"])
        assert await pending is AckStatus.CONFIRMED
        await eventually(lambda: store.calls["delete"])
        again, _ = await join(hub, "b&user=ann")
        hub.send_to_user("ann", HubMessage(content="end"))
        assert (await received(again))["content"] == "end"
        store.failing.clear()
        await eventually_count(store, "ann", 0)
        # The same id is new again.
        await hub.send_ack_message_to_user("ann", message).accepted()
        assert await store.count("ann") == 1


async def test_a_message_that_cannot_be_removed_cannot_be_stored_anew_meanwhile() -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        message = ACKMessage(id="m", content="x")
        await hub.send_ack_message_to_user("ann", message).accepted()
        store.failing.add("delete")
        raw, _ = await join(hub, "a&user=ann")
        await acknowledge(raw, (await received(raw))["id"])
        await eventually(lambda: store.calls["delete"])
        with pytest.raises(OfflineStoreError, match="cannot be removed"):
            await hub.send_ack_message_to_user("ann", message).accepted()


class LatePages(MemoryOfflineStore):
    """A store whose deletions wait, and whose pages come later than they were read."""

    def __init__(self) -> None:
        super().__init__()
        self.may_delete, self.may_answer = asyncio.Event(), asyncio.Event()
        self.pages_read = 0

    async def delete(self, user_id: str, message_ids: Iterable[str]) -> int:
        await self.may_delete.wait()
        return await super().delete(user_id, message_ids)

    async def read(self, *args: Any, **kwargs: Any) -> list[StoredMessage]:
        page = await super().read(*args, **kwargs)
        self.pages_read += 1
        await self.may_answer.wait()
        return page


async def test_a_page_that_comes_after_a_deletion_brings_no_message_back() -> None:
    store = LatePages()
    hub = acking(store)
    async with running(hub):
        for content in ("first", "second"):
            await hub.send_ack_message_to_user("ann", ACKMessage(content=content)).accepted()
        store.may_answer.set()
        one, _ = await join(hub, "a&user=ann")
        first = await received(one)
        await acknowledge(one, first["id"])
        await eventually(lambda: hub.get_stats().acks_confirmed == 1)
        # The page of another client is read, then the message is removed, then the page comes.
        store.may_answer.clear()
        pages = store.pages_read
        two, _ = await join(hub, "b&user=ann")
        await eventually(lambda: store.pages_read > pages)
        store.may_delete.set()
        await eventually(lambda: not hub._delivery.acks.journal._deleting)
        store.may_answer.set()
        assert (await received(two))["content"] == "second"
        await caught_up(hub)
        hub.send_to_user("ann", HubMessage(content="next"))
        assert (await received(two))["content"] == "next"


async def test_acknowledgements_of_many_users_are_removed_over_several_turns() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        inner = hub._delivery.acks
        assert inner is not None
        users = [f"user{n}" for n in range(3 * journal.USERS_AT_ONCE)]
        for user in users:
            await hub.send_ack_message_to_user(user, ACKMessage(id="m")).accepted()
        for user in users:
            inner.journal.delete(user, "m")
        await asyncio.sleep(0)
        begun = len(inner.journal._deleting)
        assert begun <= journal.USERS_AT_ONCE
        await eventually(lambda: not inner.journal.busy)
        assert not store._messages


# --- what the store lets go ---


async def test_a_limit_that_was_lowered_by_far_drops_all_that_is_beyond_it_and_tells() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, offline_limit=10_000)
    async with running(hub):
        for n in range(5_000):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        await eventually_count(store, "ann", 5_000)
    hub = acking(store, offline_limit=10)
    async with running(hub):
        await hub.send_ack_message_to_user("ann", ACKMessage(content="newest")).accepted()
        await eventually_count(store, "ann", 10)
        await eventually(lambda: hub.get_stats().acks_dropped == 4_991)
        raw, _ = await join(hub, "a&user=ann")
        expected = [*(str(n) for n in range(4_991, 5_000)), "newest"]
        assert await contents(raw, 10) == expected


# --- stores that others use too ---


@asynccontextmanager
async def two_stores(kind: str, path: Path) -> AsyncIterator[tuple[OfflineStore, OfflineStore]]:
    """Two stores over the same file or server, as two processes have them."""
    if kind == "sqlite":
        yield SQLiteOfflineStore(path / "m.db"), SQLiteOfflineStore(path / "m.db")
        return
    with RedisServer(path) as server:
        yield RedisOfflineStore(server.url), RedisOfflineStore(server.url)


KINDS = pytest.mark.parametrize("kind", ["sqlite", "redis"])


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(upkeep, "CHECK_EVERY", 0.2)


@KINDS
@pytest.mark.usefixtures("looking_often")
async def test_a_message_that_another_process_stores_comes_to_a_user_connected_here(
    kind: str, tmp_path: Path
) -> None:
    async with two_stores(kind, tmp_path) as (one, two):
        here, there = acking(one), acking(two)
        async with running(here), running(there):
            raw, _ = await join(here, "a&user=ann")
            for n in range(3):
                own = here.send_ack_message_to_user("ann", ACKMessage(content=f"own {n}"))
                await own.accepted()
                assert (await received(raw))["content"] == f"own {n}"
            for n in range(300):
                there.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
            assert await contents_acknowledged(raw, 300) == [str(n) for n in range(300)]
            # Messages that this process had stored and sent itself are not sent again.
            here.send_to_user("ann", HubMessage(content="end"))
            assert (await received(raw))["content"] == "end"
            await eventually_count(two, "ann", 3)


@KINDS
@pytest.mark.usefixtures("looking_often")
async def test_a_sender_is_told_when_another_process_has_delivered_its_message(
    kind: str, tmp_path: Path
) -> None:
    async with two_stores(kind, tmp_path) as (one, two):
        here, there = acking(one), acking(two)
        async with running(here), running(there):
            pending = here.send_ack_message_to_user("ann", ACKMessage(content="x"))
            await pending.accepted()
            raw, _ = await join(there, "a&user=ann")
            message = await received(raw)
            assert not pending.done()
            await acknowledge(raw, message["id"])
            with pytest.raises(AckDroppedError, match="another process has delivered"):
                async with asyncio.timeout(5.0):
                    await pending


@KINDS
async def test_a_message_that_the_store_has_lost_is_sent_from_memory(
    kind: str, tmp_path: Path
) -> None:
    async with two_stores(kind, tmp_path) as (one, two):
        hub = acking(one)
        async with running(hub):
            pending = [
                hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(3)
            ]
            await asyncio.gather(*(each.accepted() for each in pending))
            await two.open()
            assert await two.delete("ann", [each.id for each in pending]) == 3
            await two.close()
            raw, _ = await join(hub, "a&user=ann")
            assert await contents_acknowledged(raw, 3) == ["0", "1", "2"]
            assert {await each for each in pending} == {AckStatus.CONFIRMED}


@KINDS
async def test_a_user_who_comes_back_while_a_message_is_being_stored_gets_it(
    kind: str, tmp_path: Path
) -> None:
    async with two_stores(kind, tmp_path) as (one, _):
        hub = acking(one)
        async with running(hub):
            for round_ in range(30):
                raw, client = await join(hub, f"{round_}&user=ann")
                abort(client)
                again = asyncio.create_task(RawClient.open(hub, f"/ws?id=b{round_}&user=ann"))
                while hub.get_clients_by_user("ann"):  # noqa: ASYNC110 (each turn counts)
                    await asyncio.sleep(0)
                pending = []
                while not again.done() or not hub.get_clients_by_user("ann"):
                    if len(pending) < 50:
                        message = ACKMessage(content=str(len(pending)))
                        pending.append(hub.send_ack_message_to_user("ann", message))
                    await asyncio.sleep(0)
                second = await again
                expected = [str(n) for n in range(len(pending))]
                assert await contents_acknowledged(second, len(pending)) == expected
                assert {await each for each in pending} <= {AckStatus.CONFIRMED}
                raw.close()
                second.reset()
                await eventually(lambda: hub.connections == 0)


class FullStore(MemoryOfflineStore):
    """A store that takes nothing."""

    def append(self, *args: Any, **bounds: Any) -> Any:
        return failed("the disk is nearly full")


async def test_a_message_that_the_store_refuses_leaves_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = acking(FullStore())
    async with running(hub):
        with pytest.raises(OfflineStoreError, match="nearly full"):
            await hub.send_ack_message_to_user("ann", ACKMessage()).accepted()
        (line,) = [each for each in caplog.records if getattr(each, "event", "") == "store_error"]
        assert line.getMessage().endswith(
            "a message was not stored (user 'ann'): the disk is nearly full"
        )
        assert hub.get_stats().offline_errors == 1
