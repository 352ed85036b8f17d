"""Faults of acknowledgements, offline messages and retries (README.md, section G).

test_acks.py and the tests of the stores provoke the other rows. The last part tries to break our
own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.acks import acking, acknowledge, eventually_count, failed, received
from tests.redis_server import RedisServer
from tests.support import join, known, named, run_apart, stall
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    Hub,
    HubConfig,
    HubMessage,
    HubStoppedError,
    MemoryOfflineStore,
    OfflineStoreError,
    PendingACK,
    RedisOfflineStore,
    SQLiteOfflineStore,
    UserOfflineError,
)
from wsc_fast._core.timers import TICK
from wsc_fast.delivery import replay
from wsc_fast.delivery.replay import Held, Replay
from wsc_fast.messages import to_hub_message
from wsc_fast.stores.sqlite import database
from wsc_fast.stores.sqlite.transactions import Transactions
from wsc_fast.testing import PING, PONG, RawClient, eventually, running

pytestmark = pytest.mark.usefixtures("closing_sockets")

ROOT = Path(__file__).parents[2]


class Heard:
    """Hears of every failure."""

    def __init__(self, hub: Hub) -> None:
        self.calls: list[tuple[Any, ...]] = []
        hub.add_send_failure_handler(self)

    def handle_send_failure(self, *call: Any) -> None:
        self.calls.append(call)

    def reasons(self) -> list[str]:
        return [str(call[2]) for call in self.calls]


class SlowStore(MemoryOfflineStore):
    """Takes its time for what is in `gates`, and fails what is in `failing` so many times."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = asyncio.Event()
        self.opening.set()
        self.appending = asyncio.Event()
        self.appending.set()
        self.failing = 0

    async def open(self) -> None:
        await self.opening.wait()
        await super().open()

    def append(self, *args: Any, **options: Any) -> Any:
        if self.failing:
            self.failing -= 1
            return failed("no disk")
        if self.appending.is_set():
            return super().append(*args, **options)
        return asyncio.ensure_future(self._later(args, options))

    async def _later(self, args: Any, options: Any) -> Any:
        await self.appending.wait()
        return await super().append(*args, **options)


async def contents(store: Any, user: str = "ann") -> list[str]:
    return [json.loads(each.data)["content"] for each in await store.read(user, limit=10_000)]


async def received_until(raw: RawClient, last: str) -> list[str]:
    """The contents of all HubMessages up to this one."""
    found = [""]
    while found[-1] != last:
        found.append((await received(raw))["content"])
    return found[1:]


def is_writing(hub: Hub) -> bool:
    """Whether the offline store has something to do still."""
    inner: Any = hub._delivery.acks
    return inner._journal is not None and inner._journal.busy


def assert_nothing_left(hub: Hub) -> None:
    inner: Any = hub._delivery.acks
    assert not inner.table.mailboxes
    assert not inner.parked_messages
    assert not is_writing(hub)
    assert not inner.replaying
    assert inner.count == 0
    assert sum(map(len, inner.table.timers.slots.values())) == 0


# --- G4, G7 ---


@pytest.mark.fault(number="G4")
@pytest.mark.parametrize("same_id", [False, True], ids=["another id", "the same id"])
@pytest.mark.parametrize("store", [False, True], ids=["memory", "store"])
async def test_a_half_open_old_connection_swallows_nothing(same_id: bool, store: bool) -> None:
    hub = acking(MemoryOfflineStore() if store else None, retry_interval=60.0, timeout=120.0)
    async with running(hub):
        # Nobody reads from the old one any more, and nobody closes it.
        old, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        before = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=f"b{n}")) for n in range(5)
        ]
        new, _ = await join(hub, "a&user=ann" if same_id else "b&user=ann")
        after = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=f"a{n}")) for n in range(10)
        ]
        for expected in [*(f"b{n}" for n in range(5)), *(f"a{n}" for n in range(10))]:
            message = await received(new)
            assert message["content"] == expected
            await acknowledge(new, message["id"])
        assert {await each for each in before + after} == {AckStatus.CONFIRMED}
        old.reset()
        new.close()


@pytest.mark.fault(number="G4")
async def test_an_old_connection_silent_in_mid_replay_holds_up_no_new_one() -> None:
    hub = acking(MemoryOfflineStore(), offline_limit=5000)
    async with running(hub):
        for n in range(replay.WINDOW + 500):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        old, _ = await join(hub, "a&user=ann")
        for _ in range(10):
            await acknowledge(old, (await received(old))["id"])
        await eventually(lambda: hub.get_stats().acks_confirmed == 10)
        new, _ = await join(hub, "b&user=ann")
        hub.send_ack_message_to_user("ann", ACKMessage(content="live"))
        try:
            assert (await received_within(new, 1.0))["content"] == "10"
        finally:
            old.reset()
            new.close()


@pytest.mark.parametrize("back", ["after it was found out", "before"])
@pytest.mark.parametrize("store", [False, True], ids=["memory", "store"])
async def test_a_client_whose_packets_are_dropped(store: bool, back: str) -> None:
    config = HubConfig(
        heartbeat_interval=0.2, heartbeat_timeout=0.6, close_timeout=0.2, outbox_messages=100_000
    )
    hub = acking(MemoryOfflineStore() if store else None, config=config, timeout=60.0)
    heard = Heard(hub)
    async with running(hub):
        old, _ = await join(hub, "a&user=ann")
        first = hub.send_ack_message_to_user("ann", ACKMessage(content="first"))
        await acknowledge(old, (await received(old))["id"])
        await first
        old.vanish()
        numbers = [str(n) for n in range(200)]
        pending = [hub.send_ack_message_to_user("ann", ACKMessage(content=n)) for n in numbers]
        if back == "before":
            assert hub.get_stats().heartbeat_timeouts == 0
        else:
            await eventually(lambda: hub.connections == 0)
            assert hub.get_stats().heartbeat_timeouts == 1
            status = AckStatus.STORED if store else AckStatus.PENDING
            await eventually(lambda: {each.status for each in pending} == {status})
        if store:
            await asyncio.gather(*(each.accepted() for each in pending))
        new, _ = await join(hub, "b&user=ann")
        # It answers pings to the end, also while the first one is not found out yet.
        answering = asyncio.create_task(answer(new, [*numbers, "last", "end"]))
        hub.send_to_user("ann", HubMessage(content="last"))
        assert {await each for each in pending} == {AckStatus.CONFIRMED}
        await eventually(lambda: hub.connections == 1)
        assert hub.get_stats().heartbeat_timeouts == 1
        await eventually(lambda: not is_writing(hub))
        hub.send_to_user("ann", HubMessage(content="end"))
        await answering
        assert_nothing_left(hub)
        # The copies that went to the first one are no losses.
        assert [call[0].content for call in heard.calls] in ([], ["last"])
        old.reset()
        new.close()


async def answer(raw: RawClient, contents: list[str]) -> None:
    """Reads these HubMessages, in this order; answers pings, and acknowledges where asked to."""
    for content in contents:
        while (frame := await raw.recv()).opcode == PING:
            await raw.send(PONG, frame.payload)
        message = json.loads(frame.payload)
        assert message["content"] == content
        if message.get("require_ack"):
            await acknowledge(raw, message["id"])


async def received_within(raw: RawClient, seconds: float) -> dict[str, Any]:
    return dict(json.loads((await raw.recv(seconds)).payload))


@pytest.mark.parametrize("why", ["stalls", "closes"])
async def test_a_device_that_does_not_read_takes_nothing_from_the_other(why: str) -> None:
    hub = acking(MemoryOfflineStore(), retry_interval=60.0, timeout=120.0)
    hub.on_client_connected(lambda client: client.send(bytes(1 << 22)))  # its replay has to wait
    async with running(hub):
        one, _ = await join(hub, "a&user=ann")
        for n in range(400):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        assert len((await one.recv()).payload) == 1 << 22
        for n in range(400):
            assert (await received(one))["content"] == str(n)
        # It has seen them all, and acknowledged none.
        two, client = await join(hub, "b&user=ann", rcvbuf=4096)
        await eventually(lambda: client.queued_messages >= 100)
        last = hub.send_ack_message_to_user("ann", ACKMessage(content="last"))
        if why == "closes":
            client.disconnect()
        # Messages that it has are not sent again before the retry interval; new ones come.
        assert (await received_within(one, 1.0))["content"] == "last"
        for pending in hub.get_pending_acks("a"):
            await acknowledge(one, pending.id)
        assert await last is AckStatus.CONFIRMED
        assert hub.get_pending_acks("a") == []
        one.close()
        two.reset()


@pytest.mark.parametrize("how", ["to the stalled one", "all were full"])
@pytest.mark.alone  # it measures how long others wait
async def test_a_stalled_client_does_not_hold_up_the_users_other(how: str) -> None:
    hub = acking(config=HubConfig(outbox_messages=2))
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        other, second = await join(hub, "b&user=ann", rcvbuf=4096)
        stalled = [client] if how == "to the stalled one" else [client, second]
        for each in stalled:
            await stall(each, 1 << 22)
            each.send("1")
            each.send("2")
        if how == "to the stalled one":
            hub.send_ack_message("a", ACKMessage())
        else:
            hub.send_ack_message_to_user("ann", ACKMessage())
        live = hub.send_ack_message_to_user("ann", ACKMessage(content="live"))
        async with asyncio.timeout(1.5):
            while b'"live"' not in (await other.recv()).payload:
                pass
            await acknowledge(other, live.id)
            await live
        raw.reset()
        other.close()


@pytest.mark.fault(number="G11")
async def test_a_message_behind_a_replay_times_out_too() -> None:
    hub = acking(config=HubConfig(outbox_messages=2), timeout=0.1, max_retries=0)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        client.send("1")
        client.send("2")
        try:
            for _ in range(3):
                with pytest.raises(AckTimeoutError):
                    async with asyncio.timeout(1.0):
                        await hub.send_ack_message_to_user("ann", ACKMessage())
        finally:
            raw.reset()


@pytest.mark.fault(number="G7")
@pytest.mark.alone  # it measures how long others wait
async def test_a_client_that_joins_amid_constant_publishing_gets_each_once_in_order() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, config=HubConfig(outbox_messages=10_000), offline_limit=10_000)
    async with running(hub):
        longest = 0.0
        sent = 0

        async def publish() -> None:
            nonlocal longest, sent
            while sent < 3000:
                start = time.perf_counter()
                hub.send_ack_message_to_user("ann", ACKMessage(content=str(sent)))
                hub.broadcast(f"news {sent}")
                longest = max(longest, time.perf_counter() - start)
                sent += 1
                if sent % 10 == 0:
                    await asyncio.sleep(0)

        publishing = asyncio.create_task(publish())
        await eventually(lambda: sent >= 500)
        raw, _ = await join(hub, "a&user=ann")
        assert sent < 3000
        messages: list[int] = []
        news: list[int] = []
        while len(messages) < 3000 or news[-1:] != [2999]:
            text = (await raw.recv()).payload.decode()
            if text.startswith("news "):
                news.append(int(text[5:]))
            else:
                message = json.loads(text)
                messages.append(int(message["content"]))
                await acknowledge(raw, message["id"])
        await publishing
        assert messages == list(range(3000))
        assert news == list(range(news[0], 3000))
        assert longest < 0.5
        await eventually_count(store, "ann", 0)
        raw.close()


@pytest.mark.fault(number="G6")
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_live_messages_come_behind_a_replay_of_a_thousand(kind: str, tmp_path: Path) -> None:
    store: Any = MemoryOfflineStore() if kind == "memory" else SQLiteOfflineStore(tmp_path / "db")
    hub = acking(store, config=HubConfig(outbox_messages=64), offline_limit=10_000)
    async with running(hub):
        now = ACKMessage().create_at
        for n in range(1000):
            # Of one moment, and with ids that sort otherwise than they were sent.
            message = ACKMessage(id=str(n), content=str(n), create_at=now)
            hub.send_ack_message_to_user("ann", message)
        raw, _ = await join(hub, "a&user=ann")
        live: list[str] = []
        got: list[str] = []
        while len(got) < 1000 + len(live) or len(live) < 90:
            message_ = await received(raw)
            got.append(message_["content"])
            if message_.get("require_ack"):
                await acknowledge(raw, message_["id"])
            if len(got) % 10 == 0 and len(live) < 90:
                live.append(f"live {len(live)}")
                if len(live) % 3:
                    hub.send_to_user("ann", HubMessage(content=live[-1]))
                else:
                    hub.send_ack_message_to_user("ann", ACKMessage(content=live[-1]))
        assert got == [*map(str, range(1000)), *live]
        await eventually_count(store, "ann", 0)
        raw.close()


# --- G9 ---

SERVER = """
import asyncio, sys
from wsc_fast import *
from wsc_fast import Identity

async def main(path, count):
    hub = Hub(authenticate=lambda request: Identity(request.query["user"], request.query["id"]))
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=SQLiteOfflineStore(path))
    await hub.start(port=0)
    for n in range(count):
        await hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))).accepted()
    print(hub.port, flush=True)
    store = hub._delivery.acks.store
    left = int(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))
    while hub.get_stats().acks_confirmed + left < 20 or await store.count("ann") != left:
        await asyncio.sleep(0.001)
    print("gone", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


class Address:
    """Takes the place of a hub for RawClient.open."""

    def __init__(self, port: int) -> None:
        self.port = port


@pytest.mark.fault(number="G9")
async def test_an_acknowledged_message_is_not_delivered_again_after_kill_9(tmp_path: Path) -> None:
    path = str(tmp_path / "offline.db")

    def start(count: int) -> tuple[subprocess.Popen[str], Any]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, path, str(count)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, Address(int(process.stdout.readline()))

    process, address = await asyncio.to_thread(start, 20)
    try:
        with await RawClient.open(address, "/ws?user=ann&id=a") as raw:
            for n in range(20):
                message = await received(raw)
                assert message["content"] == str(n)
                if n % 2:
                    await acknowledge(raw, message["id"])
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("10\n")
            process.stdin.flush()
            assert await asyncio.to_thread(process.stdout.readline) == "gone\n"
            process.send_signal(signal.SIGKILL)
        close(process)
        process, address = await asyncio.to_thread(start, 1)
        with await RawClient.open(address, "/ws?user=ann&id=a") as raw:
            for n in range(0, 20, 2):
                assert (await received(raw))["content"] == str(n)
            assert (await received(raw))["content"] == "0"  # the one of this run
    finally:
        close(process)


def close(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(OSError):
            stream.close()


# --- G11, G12, G13, G17 ---


@pytest.mark.fault(number="G11")
@pytest.mark.parametrize(("end", "count"), [("timeout", 100_000), ("disconnect", 10_000)])
async def test_messages_that_nobody_acknowledges_leave_nothing(end: str, count: int) -> None:
    timeout = count / 20_000
    hub = acking(
        timeout=timeout, max_retries=0, max_pending_per_user=count, max_pending_bytes=1 << 30
    )
    heard = Heard(hub)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        reading = asyncio.create_task(raw.read_all())
        tasks, started = len(asyncio.all_tasks()), time.monotonic()
        for n in range(count):
            hub.send_ack_message("a", ACKMessage(content=str(n)))
            if n % 500 == 499:
                await asyncio.sleep(0)
        # Where the machine is so slow, the first are over already.
        if time.monotonic() < started + timeout / 2:
            assert hub.get_stats().acks_pending == count
        # None has a task of its own, nor a timer: those are shared by all of a hundredth second.
        # There is one that sends them, and one that tells the handlers.
        assert len(asyncio.all_tasks()) <= tasks + 2
        inner: Any = hub._delivery.acks
        assert len(inner.table.timers.slots) <= (time.monotonic() - started) / TICK + 2
        if end == "disconnect":
            raw.reset()
            reading.cancel()
        await eventually(lambda: hub.get_stats().acks_pending == 0, 60)
        await eventually(lambda: not inner.table.mailboxes)
        assert hub.get_stats().acks_timed_out == count
        assert_nothing_left(hub)
        await eventually(lambda: len(heard.calls) + hub.get_stats().unreported_failures == count)
        heard.calls.clear()
        if end == "timeout":
            known(hub, "a").disconnect()
        raw.close()
        await asyncio.gather(reading, return_exceptions=True)
    gc.collect()
    assert sum(type(each) is PendingACK for each in gc.get_objects()) == 0


@pytest.mark.fault(number="G12")
async def test_late_and_old_acknowledgements_complete_nothing() -> None:
    hub = acking(timeout=0.1, max_retries=0)
    async with running(hub):
        raw, _ = await join(hub, "a")
        with pytest.raises(AckTimeoutError):
            await hub.send_ack_message("a", ACKMessage(id="old"))
        fresh = hub.send_ack_message("a", ACKMessage(timeout=60.0))
        await acknowledge(raw, "old")
        await eventually(lambda: hub.get_stats().acks_ignored == 1)
        assert not fresh.done()
        raw.close()
    with pytest.raises(HubStoppedError):
        await fresh
    async with running(hub):
        raw, _ = await join(hub, "a")
        newer = hub.send_ack_message("a", ACKMessage())
        assert newer.id not in ("old", fresh.id)
        for old in ("old", fresh.id):
            await acknowledge(raw, old)
        await eventually(lambda: hub.get_stats().acks_ignored == 3)
        assert not newer.done()
        await acknowledge(raw, newer.id)
        await newer
        raw.close()


@pytest.mark.fault(number="G13")
async def test_a_retry_under_the_same_id_is_seen_again_and_stored_once() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, timeout=0.2, max_retries=0)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        message = ACKMessage(id="m", content="x", create_at=ACKMessage().create_at)
        for _ in range(2):
            pending = hub.send_ack_message_to_user("ann", message)
            await pending.accepted()
            assert await contents(store) == ["x"]
            assert (await received(raw))["id"] == "m"  # and its acknowledgement is lost
            with pytest.raises(AckTimeoutError):
                await pending
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 0)
        raw, _ = await join(hub, "b&user=ann")
        assert (await received(raw))["id"] == "m"
        await acknowledge(raw, "m")
        await eventually_count(store, "ann", 0)
        raw.close()


@pytest.mark.fault(number="G13")
async def test_the_same_message_twice_to_an_absent_user_is_delivered_once() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):
        message = ACKMessage(id="m")
        first = hub.send_ack_message_to_user("ann", message)
        second = hub.send_ack_message_to_user("ann", message)
        raw, _ = await join(hub, "a&user=ann")
        assert (await received(raw))["id"] == "m"
        await acknowledge(raw, "m")
        async with asyncio.timeout(1.0):
            assert await second is AckStatus.CONFIRMED
            assert await first is AckStatus.CONFIRMED
        raw.close()


@pytest.mark.fault(number="G13")
async def test_another_message_with_the_id_of_a_stored_one_is_refused() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):
        first = hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="1"))
        assert first.status is AckStatus.STORED
        with pytest.raises(ValueError, match="another message"):
            hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="2"))


@pytest.mark.fault(number="G13")
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_message_sent_again_right_after_its_confirmation_is_stored_anew(
    kind: str, tmp_path: Path
) -> None:
    store: Any = MemoryOfflineStore() if kind == "memory" else SQLiteOfflineStore(tmp_path / "db")
    hub = acking(store)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        message = ACKMessage(id="m")
        first = hub.send_ack_message_to_user("ann", message)
        await first.accepted()

        async def again() -> PendingACK:
            await first
            second = hub.send_ack_message_to_user("ann", message)
            await second.accepted()
            return second

        task = asyncio.create_task(again())
        await received(raw)
        await acknowledge(raw, "m")
        second = await task
        assert second is not first
        await eventually(lambda: not is_writing(hub))
        assert await store.count("ann") == 1
        raw.close()


@pytest.mark.fault(number="G15")
async def test_ten_thousand_pending_to_a_dead_client_time_out_without_a_storm() -> None:
    count = 10_000
    config = HubConfig(outbox_messages=100)
    hub = acking(config=config, timeout=3.0, retry_interval=0.05, max_retries=2000)
    inner: Any = hub._delivery.acks
    async with running(hub):
        dead, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        watcher, _ = await join(hub, "watcher")
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(count)
        ]
        done = asyncio.gather(*pending, return_exceptions=True)
        while not done.done():
            hub.send_to_client("watcher", "tick")
            assert (await watcher.recv()).payload == b"tick"
            assert sum(map(len, inner.table.timers.slots.values())) <= count
        assert {type(outcome) for outcome in await done} == {AckTimeoutError}
        # No storm: a client without room is sent nothing again, and what waits for its turn
        # behind that has no retries.
        assert hub.get_stats().acks_retransmitted == 0
        assert max(each.attempts for each in pending) == 1
        assert client.queued_messages <= 100
        assert client.is_connected()
        await eventually(lambda: not inner.table.mailboxes)
        assert_nothing_left(hub)
        dead.reset()
        watcher.close()


@pytest.mark.fault(number="G17")
async def test_two_clients_of_a_user_at_once_lose_nothing() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        for n in range(500):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        (one, _), (two, _) = await asyncio.gather(join(hub, "a&user=ann"), join(hub, "b&user=ann"))
        hub.send_to_user("ann", HubMessage(content="end"))
        got: dict[RawClient, list[str]] = {one: [], two: []}

        async def read(raw: RawClient) -> None:
            while got[raw][-1:] != ["end"]:
                message = await received(raw)
                got[raw].append(message["content"])
                if message["content"] != "end":
                    await acknowledge(raw, message["id"])

        await asyncio.gather(read(one), read(two))
        # To one of them: the newest, unless an earlier one acknowledges already. None is lost,
        # and each gets what it gets in order.
        numbers = [[int(each) for each in got[raw][:-1]] for raw in (one, two)]
        assert {*numbers[0], *numbers[1]} == set(range(500))
        assert all(each == sorted(set(each)) for each in numbers)
        await eventually_count(store, "ann", 0)
        for raw in (one, two):
            raw.close()


# --- G18 ---


async def p99_of_broadcasts(hub: Hub, raw: RawClient, done: Callable[[], object]) -> float:
    times = []
    while not done():
        start = time.perf_counter()
        hub.broadcast("tick")
        assert (await raw.recv()).payload == b"tick"
        times.append(time.perf_counter() - start)
    assert len(times) > 20
    return sorted(times)[int(len(times) * 0.99)]


@pytest.mark.fault(number="G18")
@pytest.mark.alone  # it measures how long others wait
async def test_a_locked_database_stalls_nobody(tmp_path: Path) -> None:
    path = tmp_path / "offline.db"
    hub = acking(SQLiteOfflineStore(path, busy_timeout=0.5))
    heard = Heard(hub)
    async with running(hub):
        raw, _ = await join(hub, "watcher")
        kept = hub.send_ack_message_to_user("ann", ACKMessage(content="kept"))
        await kept.accepted()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        lost = ACKMessage(id="lost")
        pending = hub.send_ack_message_to_user("ann", lost)
        accepted = asyncio.create_task(pending.accepted())
        assert await p99_of_broadcasts(hub, raw, accepted.done) < 0.2
        with pytest.raises(OfflineStoreError, match="locked"):
            await accepted
        with pytest.raises(OfflineStoreError, match="locked"):
            await pending
        await eventually(lambda: heard.calls)
        told = to_hub_message(lost, "ann")
        assert [(call[0], call[1], call[2]) for call in heard.calls] == [(told, "ann", "unknown")]
        other.execute("ROLLBACK")
        other.close()
        after = hub.send_ack_message_to_user("ann", ACKMessage(content="after"))
        await after.accepted()
        back, _ = await join(hub, "a&user=ann")
        assert await received_until(back, "after") == ["kept", "after"]
        assert hub.get_stats().offline_errors == 1
        raw.close()
        back.close()


@pytest.mark.fault(number="G18")
async def test_a_full_disk_is_reported_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = database.connect

    def small(*arguments: Any) -> Any:
        db = connect(*arguments)
        db.execute("PRAGMA max_page_count = 40")
        return db

    monkeypatch.setattr(database, "connect", small)
    hub = acking(SQLiteOfflineStore(tmp_path / "offline.db"), offline_limit=100_000)
    heard = Heard(hub)
    async with running(hub):
        raw, _ = await join(hub, "watcher")
        stored: list[str] = []
        refused = None
        while refused is None:
            message = ACKMessage(content="x" * 2000)
            try:
                await hub.send_ack_message_to_user("ann", message).accepted()
                stored.append(message.id)
            except OfflineStoreError:
                refused = message
            assert len(stored) < 1000
        await eventually(lambda: heard.calls)
        told = to_hub_message(refused, "ann")
        assert [(call[0], call[2]) for call in heard.calls] == [(told, "unknown")]
        assert "full" in str(heard.calls[0][3])
        hub.broadcast("still")
        assert (await raw.recv()).payload == b"still"
        # Stored messages are delivered, and make room.
        back, _ = await join(hub, "a&user=ann")
        for message_id in stored:
            assert (await received(back))["id"] == message_id
            await acknowledge(back, message_id)
        assert hub._delivery.acks is not None
        await eventually_count(hub._delivery.acks.store, "ann", 0)
        back.reset()
        await eventually(lambda: hub.get_connected_clients() == 1)
        await hub.send_ack_message_to_user("ann", ACKMessage(content="fits")).accepted()
        raw.close()


@pytest.mark.fault(number="G18")
async def test_a_file_that_is_no_database_stops_the_start_alone(tmp_path: Path) -> None:
    path = tmp_path / "offline.db"
    path.write_bytes(b"junk" * 10_000)
    hub = acking(SQLiteOfflineStore(path))
    with pytest.raises(OfflineStoreError, match="not a database"):
        await hub.start(port=0)
    assert hub.loop is None
    path.unlink()
    async with running(hub):
        await hub.send_ack_message_to_user("ann", ACKMessage()).accepted()


@pytest.mark.fault(number="G18")
@pytest.mark.fault(number="G20")
@pytest.mark.alone  # it measures how long others wait
async def test_redis_stopped_and_started_again_loses_nothing_it_had_accepted(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path, "--appendfsync", "always") as server:
        hub = acking(RedisOfflineStore(server.url, timeout=0.5))
        heard = Heard(hub)
        async with running(hub):
            watcher, _ = await join(hub, "watcher")
            kept = [hub.send_ack_message_to_user("ann", ACKMessage(content=n)) for n in "123"]
            await asyncio.gather(*(each.accepted() for each in kept))
            await asyncio.to_thread(server.stop)
            lost = ACKMessage(content="lost")
            pending = hub.send_ack_message_to_user("ann", lost)
            accepted = asyncio.create_task(pending.accepted())
            assert await p99_of_broadcasts(hub, watcher, accepted.done) < 0.2
            for trouble in (accepted, pending):
                with pytest.raises(OfflineStoreError, match=rf"Redis at 127.0.0.1:{server.port}"):
                    await trouble
            await eventually(lambda: heard.calls)
            assert [(call[0], call[1], call[2]) for call in heard.calls] == [
                (to_hub_message(lost, "ann"), "ann", "unknown")
            ]
            # A connected user does not notice. A user who comes back meanwhile lacks only the
            # messages of the store, which follow by themselves.
            bob, _ = await join(hub, "b&user=bob")
            hub.send_to_user("bob", HubMessage(content="live"))
            assert (await received(bob))["content"] == "live"
            await asyncio.to_thread(server.start)
            back, _ = await join(hub, "a&user=ann")
            await answer(back, ["1", "2", "3"])
            assert {await each for each in kept} == {AckStatus.CONFIRMED}
            assert hub._delivery.acks is not None
            await eventually_count(hub._delivery.acks.store, "ann", 0)
            for raw in (watcher, bob, back):
                raw.close()


@pytest.mark.fault(number="G18")
@pytest.mark.parametrize("delay", [0.2])
@pytest.mark.alone  # it measures how long others wait
async def test_a_slow_disk_stalls_nobody(
    delay: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Transactions._transact

    def slow(self: Any, batch: Any) -> Any:
        time.sleep(delay)
        return transact(self, batch)

    monkeypatch.setattr(Transactions, "_transact", slow)
    hub = acking(SQLiteOfflineStore(tmp_path / "offline.db"))
    async with running(hub):
        raw, _ = await join(hub, "watcher")
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(100)
        ]
        accepted = asyncio.gather(*(each.accepted() for each in pending))
        assert await p99_of_broadcasts(hub, raw, accepted.done) < delay / 2
        await accepted
        # A user comes back while that goes on.
        back, _ = await join(hub, "a&user=ann")
        assert await received_until(back, "99") == [str(n) for n in range(100)]
        raw.close()
        back.close()


@pytest.mark.fault(number="G18")
async def test_junk_in_the_store_harms_no_other_message() -> None:
    store = MemoryOfflineStore()
    await store.open()
    await store.append("ann", "junk", b"junk", limit=10, drop_oldest=True)
    hub = acking(store, timeout=0.2, max_retries=0)
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        assert (await raw.recv()).payload == b"junk"
        for n in range(20):
            hub.send_ack_message("a", ACKMessage(id=str(n)))
        await eventually(lambda: hub.get_stats().acks_timed_out >= 20, 2.0)
        assert hub.get_pending_acks("a") == []
        assert troubles == []
        raw.close()


# --- clients that misbehave; leaks ---


async def test_late_double_and_foreign_acknowledgements_and_a_reconnect_in_the_middle() -> None:
    hub = acking(timeout=30.0, retry_interval=0.02, max_retries=2)
    async with running(hub):
        ann, _ = await join(hub, "a&user=ann")
        bob, _ = await join(hub, "b&user=bob")
        late = hub.send_ack_message_to_user("ann", ACKMessage(id="late"))
        middle = hub.send_ack_message_to_user("ann", ACKMessage(id="middle"))
        for _ in range(3):
            assert {(await received(ann))["id"] for _ in range(2)} == {"late", "middle"}
        await acknowledge(bob, "late")
        await acknowledge(ann, "late")
        assert await late is AckStatus.CONFIRMED
        await acknowledge(ann, "late")
        await eventually(lambda: hub.get_stats().acks_ignored == 2)
        assert not middle.done()
        ann.reset()
        await eventually(lambda: hub.get_connected_clients() == 1)
        ann, _ = await join(hub, "a2&user=ann")
        assert (await received(ann))["id"] == "middle"
        await acknowledge(ann, "middle")
        assert await middle is AckStatus.CONFIRMED
        assert late.attempts == 3
        assert middle.attempts == 4
        assert_nothing_left(hub)
        ann.close()
        bob.close()


@pytest.mark.parametrize("store", [False, True], ids=["memory", "store"])
async def test_nothing_is_left_after_ten_thousand_rounds(store: bool) -> None:
    kept = MemoryOfflineStore() if store else None
    hub = acking(kept, timeout=60.0)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        for n in range(100):
            if n % 10 == 9:
                raw.reset()
                await eventually(lambda: hub.get_connected_clients() == 0)
                if store:
                    for _ in range(5):
                        hub.send_ack_message_to_user("ann", ACKMessage())
                raw, _ = await join(hub, "a&user=ann")
            pending = [hub.send_ack_message_to_user("ann", ACKMessage()) for _ in range(100)]
            if n % 3 == 0 and store:
                await pending[50].accepted()
            expected = 105 if n % 10 == 9 and store else 100
            answers = []
            for _ in range(expected):
                message = await received(raw)
                answers.append(acknowledge(raw, message["id"]))
                if n % 7 == 0:
                    answers.append(acknowledge(raw, message["id"]))
            for answer in answers:
                await answer
            assert {await each for each in pending} == {AckStatus.CONFIRMED}
        await eventually(lambda: hub.get_stats().acks_pending == 0)
        if kept is not None:
            await eventually_count(kept, "ann", 0)
        del pending
        await eventually(lambda: not hub._delivery.acks.table.mailboxes)  # type: ignore[union-attr]
        await eventually(lambda: not is_writing(hub))
        gc.collect()
        assert_nothing_left(hub)
        assert sum(type(each) is PendingACK for each in gc.get_objects()) == 0
        assert hub.get_stats().acks_confirmed >= 10_000
        raw.close()


# --- attempts to break acks.py ---


async def test_messages_sent_again_in_one_tick_keep_their_order() -> None:
    hub = acking(timeout=30.0, retry_interval=0.05, max_retries=1)
    async with running(hub):
        raw, _ = await join(hub, "a")
        for n in range(100):
            hub.send_ack_message("a", ACKMessage(id=str(n)))
        got = [(await received(raw))["id"] for _ in range(200)]
        assert got[:100] == [str(n) for n in range(100)]
        assert got[100:] == got[:100]
        raw.close()


async def test_a_message_that_comes_while_the_held_ones_go_out() -> None:
    hub = acking(config=HubConfig(outbox_messages=8), timeout=30.0)
    late: list[PendingACK] = []
    catching_up: Any = hub._delivery.acks.catching_up  # type: ignore[union-attr]
    send_held = catching_up.send_held

    def sending(replay: Replay, item: Held) -> None:
        if not late and b"held 3" in item.data:
            late.append(hub.send_ack_message_to_user("ann", ACKMessage(content="last")))
        send_held(replay, item)

    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        for n in range(8):
            client.send(f"filler {n}")
        hub.send_ack_message_to_user("ann", ACKMessage(content="first"))
        for n in range(8):
            assert hub.send_to_user("ann", HubMessage(content=f"held {n}")) == 1
        catching_up.send_held = sending
        got: list[str] = []
        while got[-1:] != ["last"]:
            frame = await raw.recv()
            if frame.payload.startswith(b"{"):
                got.append(json.loads(frame.payload)["content"])
        assert got == ["first", *(f"held {n}" for n in range(8)), "last"]
        raw.close()


async def test_messages_that_wait_for_the_store_to_open_keep_their_order() -> None:
    store = SlowStore()
    hub = Hub(authenticate=named)
    async with running(hub):
        store.opening.clear()
        hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
        await asyncio.sleep(0)
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(3)
        ]
        await asyncio.sleep(0)
        store.opening.set()
        inner: Any = hub._delivery.acks
        inner.journal.access._opening.add_done_callback(
            lambda _: pending.append(hub.send_ack_message_to_user("ann", ACKMessage(content="3")))
        )
        asyncio.get_running_loop().call_soon(
            lambda: pending.append(hub.send_ack_message_to_user("ann", ACKMessage(content="4")))
        )
        await eventually(lambda: len(pending) == 5)
        await asyncio.gather(*(each.accepted() for each in pending))
        assert await contents(store) == ["0", "1", "2", "4", "3"]


async def test_appends_that_failed_are_stored_in_order_later() -> None:
    store = SlowStore()
    hub = acking(store)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(4)
        ]
        store.failing = 3
        outcomes = await asyncio.gather(
            *(each.accepted() for each in pending[:3]), return_exceptions=True
        )
        assert [type(each) for each in outcomes] == [OfflineStoreError] * 3
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 0)
        await eventually_count(store, "ann", 4)
        assert await contents(store) == ["0", "1", "2", "3"]


async def test_a_store_whose_append_raises_at_once() -> None:
    class Raises(MemoryOfflineStore):
        def append(self, *args: Any, **options: Any) -> Any:
            raise RuntimeError("no disk")

    hub = acking(Raises())
    async with running(hub):
        pending = hub.send_ack_message_to_user("ann", ACKMessage())
        with pytest.raises(OfflineStoreError, match="no disk"):
            await pending
        assert_nothing_left(hub)


async def test_a_message_acknowledged_elsewhere_during_a_replay_is_not_sent_again() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, config=HubConfig(outbox_messages=20), timeout=30.0)
    async with running(hub):
        for n in range(100):
            hub.send_ack_message_to_user("ann", ACKMessage(id=str(n), content=str(n)))
        one, _ = await join(hub, "a&user=ann")
        for n in range(100):
            assert (await received(one))["id"] == str(n)
        await eventually(lambda: hub._delivery.acks.table.mailboxes["ann"].replays == {})  # type: ignore[union-attr]
        # So that its replay has to wait.
        hub.on_client_connected(lambda client: client.send(bytes(1 << 22)))
        two, client = await join(hub, "b&user=ann", rcvbuf=4096)
        await eventually(lambda: client.queued_messages >= 10)
        for n in range(50, 100):
            await acknowledge(one, str(n))
        await eventually(lambda: hub.get_stats().acks_confirmed == 50)
        await eventually_count(store, "ann", 50)
        hub.send_to_user("ann", HubMessage(content="end"))
        got: list[str] = []
        while got[-1:] != ["end"]:
            frame = await two.recv()
            if frame.payload.startswith(b"{"):
                got.append(json.loads(frame.payload)["content"])
        one.close()
        two.close()
        assert got == [*map(str, range(50)), "end"]


async def test_a_replay_to_a_closing_client_and_a_new_message() -> None:
    store = MemoryOfflineStore()
    hub = acking(
        store,
        config=HubConfig(outbox_messages=4, close_timeout=0.1),
        retry_interval=0.15,
        timeout=30.0,
    )
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        for n in range(4):
            client.send(str(n))
        first = hub.send_ack_message_to_user("ann", ACKMessage(content="first"))
        for _ in range(5):  # its replay begins, and waits for room
            await asyncio.sleep(0)
        client.disconnect()
        second = hub.send_ack_message_to_user("ann", ACKMessage(content="second"))
        await eventually(lambda: hub.connections == 0)
        assert first.status is second.status is AckStatus.STORED
        assert await contents(store) == ["first", "second"]
        assert first._slot == second._slot == -1, "a parked message has a timer"
        assert troubles == []
        raw.close()


async def test_a_user_whose_only_client_is_closing_is_offline() -> None:
    hub = acking(config=HubConfig(outbox_messages=2, close_timeout=0.3), timeout=30.0)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        client.send("1")
        client.send("2")
        hub.send_ack_message_to_user("ann", ACKMessage())
        client.disconnect()
        try:
            with pytest.raises(UserOfflineError):
                hub.send_to_user("ann", HubMessage())
        finally:
            raw.reset()


async def test_stop_does_not_say_stored_of_what_is_not() -> None:
    store = SlowStore()
    hub = acking(store)
    heard = Heard(hub)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        pending = hub.send_ack_message_to_user("ann", ACKMessage())
        store.appending.clear()
        await hub.stop(0.2)
        store.appending.set()
        raw.close()
    error = await asyncio.gather(pending, return_exceptions=True)
    await asyncio.sleep(0)
    assert await_count(store) or "is in the offline store" not in str(error[0])
    assert await_count(store) or heard.calls or hub.get_stats().unreported_failures


def await_count(store: MemoryOfflineStore) -> int:
    return sum(map(len, store._messages.values()))


async def test_a_store_that_does_not_close() -> None:
    class Stuck(MemoryOfflineStore):
        async def close(self) -> None:
            raise RuntimeError("cannot close")

    hub = acking(Stuck())
    await hub.start(port=0)
    try:
        await hub.stop(0.5)
    finally:
        stuck = hub.loop is not None
        if stuck:
            hub._delivery.acks.store = None  # type: ignore[union-attr]
            await hub.stop(0.5)
    assert not stuck


async def test_a_store_that_does_not_open() -> None:
    class Away(MemoryOfflineStore):
        async def open(self) -> None:
            raise ConnectionRefusedError(111, "no server")

    hub = acking(Away())
    with pytest.raises(OfflineStoreError, match="no server"):
        await hub.start(port=0)


async def test_the_failure_of_a_store_to_open_is_not_left_to_the_collector(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "offline.db"
    path.write_bytes(b"junk" * 10_000)
    hub = acking(SQLiteOfflineStore(path))
    with pytest.raises(OfflineStoreError):
        await hub.start(port=0)
    hub._delivery.acks = None
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("forgotten", [False, True], ids=["as it is", "stopped since"])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_the_loop_was_closed_under_a_pending_message(forgotten: bool) -> None:
    hub = acking(MemoryOfflineStore())
    kept: list[PendingACK] = []

    async def first() -> None:
        await hub.start(port=0)
        kept.append(hub.send_ack_message_to_user("ann", ACKMessage()))

    async def second() -> None:
        if forgotten:
            await hub.stop()
        with pytest.raises(HubStoppedError):
            await asyncio.wait_for(asyncio.shield(kept[0]), 0.5)

    try:
        run_apart(first)
        run_apart(second)
    finally:
        run_apart(hub.stop)
        gc.collect()


async def test_a_huge_timeout_is_refused_or_honoured() -> None:
    hub = acking(max_retries=0)
    async with running(hub):
        raw, _ = await join(hub, "a")
        try:
            hub.send_ack_message("a", ACKMessage(timeout=1e308))
        except ValueError:
            assert_nothing_left(hub)
        raw.close()


async def test_a_hub_that_is_started_again_replays_what_it_stored() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    for n in range(5):
        async with running(hub):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        for n in range(5):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        await eventually_count(store, "ann", 0)
        raw.close()
    assert_nothing_left(hub)


async def test_a_store_that_cannot_be_read_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(MemoryOfflineStore):
        failures = 2

        async def read(self, *args: Any, **options: Any) -> Any:
            if self.failures:
                self.failures -= 1
                raise OfflineStoreError("cannot be read")
            return await super().read(*args, **options)

    caplog.set_level(logging.ERROR, "wsc_fast")
    store = Flaky()
    hub = acking(store)
    async with running(hub):
        for n in range(3):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        raw, _ = await join(hub, "a&user=ann")
        hub.send_to_user("ann", HubMessage(content="plain"))
        assert await received_until(raw, "plain") == ["0", "1", "2", "plain"]
        assert hub.get_stats().offline_errors == 2
        assert "cannot be read" in caplog.text
        raw.close()


@pytest.mark.parametrize("raising", ["connected", "disconnected", "message"])
async def test_callbacks_that_raise_lose_no_message(raising: str) -> None:
    store = MemoryOfflineStore()
    hub = acking(store)

    def fail(*_: Any) -> None:
        raise RuntimeError("x")

    async with running(hub):
        pending = [hub.send_ack_message_to_user("ann", ACKMessage()) for _ in range(20)]
        if raising == "connected":
            hub.on_client_connected(fail)
        elif raising == "disconnected":
            hub.on_client_disconnected(fail)
        else:
            hub.on_message_received(fail)
        raw = await RawClient.open(hub, "/ws?id=a&user=ann")
        await raw.send(1, b"hello")
        raw.close()
        await eventually(lambda: hub.connections == 0)
        await eventually_count(store, "ann", 20)
        assert {each.status for each in pending} == {AckStatus.STORED}
        hub._parts.callbacks._on_connected = ()
        raw, _ = await join(hub, "b&user=ann")
        for each in pending:
            message = await received(raw)
            assert message["id"] == each.id
            await acknowledge(raw, each.id)
        await asyncio.gather(*pending)
        raw.close()


async def test_connects_and_disconnects_at_every_point_lose_nothing() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, config=HubConfig(outbox_messages=16))
    async with running(hub):
        pending: list[PendingACK] = []
        for round_ in range(40):
            pending.append(hub.send_ack_message_to_user("ann", ACKMessage(content=f"{round_} a")))
            raw, _ = await join(hub, f"c{round_}&user=ann")
            pending.append(hub.send_ack_message_to_user("ann", ACKMessage(content=f"{round_} b")))
            for _ in range(round_ % 12):
                await asyncio.sleep(0)
            raw.reset()
            if round_ % 3:
                await eventually(lambda: hub.get_connected_clients() == 0)
        await eventually(lambda: hub.get_connected_clients() == 0)
        raw, _ = await join(hub, "last&user=ann")
        for each in pending:
            message = await received(raw)
            assert message["id"] == each.id
            await acknowledge(raw, each.id)
        await asyncio.gather(*pending)
        await eventually_count(store, "ann", 0)
        raw.close()


class Swallowing(MemoryOfflineStore):
    """Hears of a cancellation too late, as asyncio.wait_for does on Python 3.11."""

    def __init__(self) -> None:
        super().__init__()
        self.going = asyncio.Event()
        self.going.set()
        self.waiting = 0
        self.expirations = 0

    async def _wait(self) -> None:
        self.waiting += 1
        with contextlib.suppress(asyncio.CancelledError):
            await self.going.wait()
        self.waiting -= 1

    async def read(self, *args: Any, **options: Any) -> Any:
        await self._wait()
        return await super().read(*args, **options)

    async def expire(self, *args: Any, **options: Any) -> Any:
        await self._wait()
        self.expirations += 1
        return await super().expire(*args, **options)


async def test_a_replay_ends_though_its_store_swallows_the_cancellation() -> None:
    store = Swallowing()
    hub = acking(store)
    async with running(hub):
        await eventually(lambda: store.expirations)
        for n in range(3):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        store.going.clear()
        raw, _ = await join(hub, "a&user=ann")
        await eventually(lambda: store.waiting == 1)
        raw.reset()
        await eventually(lambda: store.waiting == 0)
        await asyncio.sleep(0)
        assert_nothing_left(hub)
        # Messages that it had read do not overtake those that the next one reads.
        raw, _ = await join(hub, "b&user=ann")
        await eventually(lambda: store.waiting == 1)
        with pytest.raises(TimeoutError):
            await raw.recv(0.05)
        store.going.set()
        await answer(raw, ["0", "1", "2"])
        await eventually_count(store, "ann", 0)
        await eventually(lambda: not is_writing(hub))
        assert_nothing_left(hub)
        raw.close()


async def test_the_stop_does_not_wait_for_a_store_that_swallows_cancellations() -> None:
    store = Swallowing()
    store.going.clear()
    hub = acking(store)
    async with running(hub):
        await eventually(lambda: store.waiting == 1)  # expiring
        raw, _ = await join(hub, "a&user=ann")
        await eventually(lambda: store.waiting == 2)  # and reading
        async with asyncio.timeout(8.0):
            await hub.stop(0.5)
        raw.close()


async def test_an_error_within_a_replay_loses_nothing_in_silence() -> None:
    hub = acking(config=HubConfig(outbox_messages=2))
    heard = Heard(hub)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        client.send("1")
        client.send("2")
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="first"))
        held = [HubMessage(content="held"), HubMessage(content="held too")]
        for each in held:
            assert hub.send_to_user("ann", each) == 1
        broken = RuntimeError("broken")

        def send_held(replay: Replay, item: Held) -> None:
            raise broken

        catching_up: Any = hub._delivery.acks.catching_up  # type: ignore[union-attr]
        catching_up.send_held = send_held
        await raw.recv()
        await eventually(lambda: len(heard.calls) == 2)
        assert errors == [broken]
        told = [msgspec.structs.replace(each, to="ann") for each in held]
        assert [(call[0], call[3]) for call in heard.calls] == [(each, broken) for each in told]
        del catching_up.send_held
        # The one with acknowledgement is sent again when its time has come, or to the next client.
        other, _ = await join(hub, "b&user=ann")
        await answer(other, ["first"])
        assert await pending is AckStatus.CONFIRMED
        raw.reset()
        other.close()
