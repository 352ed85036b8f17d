"""Catching up: the recipient of a message, its order, and the memory that it may take."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from tests.acks import (
    TroubledStore,
    acking,
    acknowledge,
    caught_up,
    contents,
    eventually_count,
    received,
)
from tests.acks import running_and_aborting as running
from tests.support import join, stall
from wsc_fast import (
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    HubConfig,
    HubMessage,
    MemoryOfflineStore,
    PendingFullError,
)
from wsc_fast.delivery import replay
from wsc_fast.testing import RawClient, eventually

pytestmark = pytest.mark.usefixtures("closing_sockets")


def number(content: str) -> int:
    return int(content.split()[0])


# --- the recipient of a message ---


@pytest.mark.parametrize("kind", ["acknowledged", "plain"])
async def test_the_other_devices_get_live_messages_while_one_catches_up(kind: str) -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        await caught_up(hub)
        store.gate.clear()
        phone, _ = await join(hub, "phone&user=ann")
        await eventually(lambda: store.calls["read"] == 2)
        if kind == "plain":
            assert hub.send_to_user("ann", HubMessage(content="live")) == 2
        else:
            hub.send_ack_message_to_user("ann", ACKMessage(content="live"))
        assert await contents(laptop, 1) == ["live"]
        store.gate.set()
        assert await contents(phone, 1) == ["live"]


async def test_a_message_for_one_client_goes_to_that_client_alone_while_another_catches_up() -> (
    None
):
    store = TroubledStore()
    hub = acking(store, retry_interval=0.05, max_retries=5)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        await caught_up(hub)
        early = hub.send_ack_message("laptop", ACKMessage(content="early"))
        store.gate.clear()
        phone, _ = await join(hub, "phone&user=ann")
        await eventually(lambda: store.calls["read"] == 2)
        late = hub.send_ack_message("laptop", ACKMessage(content="late"))
        hub.send_to_user("ann", HubMessage(content="end"))
        assert (await contents(laptop, 3))[:2] == ["early", "late"]
        store.gate.set()
        # Nothing that is for the laptop comes before what is for both.
        assert await contents(phone, 1) == ["end"]
        assert hub.get_pending_acks("phone") == []
        assert {each.id for each in hub.get_pending_acks("laptop")} == {early.id, late.id}
        # An acknowledgement counts from the recipient of the message.
        for pending in (early, late):
            await acknowledge(phone, pending.id)
        await eventually(lambda: hub.get_stats().acks_ignored == 2)
        assert not early.done()
        for pending in (early, late):
            await acknowledge(laptop, pending.id)
        assert await early is await late is AckStatus.CONFIRMED


async def test_a_message_for_a_client_that_leaves_goes_to_the_users_others_at_once() -> None:
    hub = acking(retry_interval=60.0, timeout=120.0)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        phone, _ = await join(hub, "phone&user=ann")
        pending = [hub.send_ack_message("laptop", ACKMessage(content=n)) for n in "12"]
        assert await contents(laptop, 2) == ["1", "2"]
        laptop.reset()
        assert await contents(phone, 2) == ["1", "2"]
        assert [each.content for each in hub.get_pending_acks("phone")] == ["1", "2"]
        for each in pending:
            await acknowledge(phone, each.id)
        assert await pending[0] is await pending[1] is AckStatus.CONFIRMED


async def test_a_stored_message_for_one_client_does_not_come_to_another_that_connects() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        pending = hub.send_ack_message("laptop", ACKMessage(content="for the laptop"))
        await pending.accepted()
        phone, _ = await join(hub, "phone&user=ann")
        hub.send_to_user("ann", HubMessage(content="end"))
        assert await contents(phone, 1) == ["end"]
        assert await contents(laptop, 2) == ["for the laptop", "end"]
        assert hub._delivery.acks.count == 1  # type: ignore[union-attr]


async def test_one_message_to_two_clients_of_a_user_is_two_deliveries() -> None:
    hub = acking(timeout=0.5, max_retries=0)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        phone, _ = await join(hub, "phone&user=ann")
        message = ACKMessage(id="m", content="x")
        first = hub.send_ack_message("laptop", message)
        second = hub.send_ack_message("phone", message)
        assert first is not second
        assert hub.send_ack_message("phone", message) is second
        assert await contents(laptop, 1) == await contents(phone, 1) == ["x"]
        await acknowledge(phone, "m")
        assert await second is AckStatus.CONFIRMED
        with pytest.raises(AckTimeoutError):
            await first


async def test_one_message_to_two_clients_that_leave_is_stored_once_and_ends_both() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        phone, _ = await join(hub, "phone&user=ann")
        message = ACKMessage(id="m", content="x")
        both = [hub.send_ack_message(name, message) for name in ("laptop", "phone")]
        for raw in (laptop, phone):
            raw.reset()
        await eventually(lambda: hub.connections == 0)
        assert [each.status for each in both] == [AckStatus.STORED] * 2
        await eventually_count(store, "ann", 1)
        tablet, _ = await join(hub, "tablet&user=ann")
        assert await contents(tablet, 1) == ["x"]
        await acknowledge(tablet, "m")
        assert await both[0] is await both[1] is AckStatus.CONFIRMED
        await eventually_count(store, "ann", 0)


async def test_two_deliveries_of_one_id_keep_the_place_in_the_store_until_both_have_ended() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        phone, _ = await join(hub, "phone&user=ann")
        message = ACKMessage(id="m", content="x")
        first = hub.send_ack_message("laptop", message)
        second = hub.send_ack_message("phone", message)
        await asyncio.gather(first.accepted(), second.accepted())
        await acknowledge(laptop, "m")
        assert await first is AckStatus.CONFIRMED
        for raw in (laptop, phone):
            raw.reset()
        await eventually(lambda: hub.connections == 0)
        await eventually_count(store, "ann", 1)
        phone, _ = await join(hub, "phone&user=ann")
        assert await contents(phone, 1) == ["x"]
        await acknowledge(phone, "m")
        assert await second is AckStatus.CONFIRMED
        await eventually_count(store, "ann", 0)


async def test_a_delivery_that_ends_with_another_outlives_it() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        laptop, _ = await join(hub, "laptop&user=ann")
        phone, _ = await join(hub, "phone&user=ann")
        message = ACKMessage(id="m", content="x")
        hub.send_ack_message("laptop", message)
        held = hub.send_ack_message("phone", message)
        for raw in (laptop, phone):
            raw.reset()
        await eventually(lambda: held.status is AckStatus.STORED)
        gc.collect()
        tablet, _ = await join(hub, "tablet&user=ann")
        await acknowledge(tablet, (await received(tablet))["id"])
        assert await held is AckStatus.CONFIRMED


async def test_each_device_that_connects_gets_the_backlog() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, retry_interval=60.0, timeout=120.0)
    async with running(hub):
        for n in range(600):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        devices = [(await join(hub, f"d{n}&user=ann"))[0] for n in range(3)]
        expected = [str(n) for n in range(600)]
        for raw in devices:
            assert await contents(raw, 600) == expected


# --- order ---


async def test_messages_sent_while_a_client_catches_up_come_behind_its_backlog() -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        store.gate.clear()
        for n in range(5):
            hub.send_ack_message_to_user("ann", ACKMessage(content=f"stored {n}"))
        raw, _ = await join(hub, "a&user=ann")
        await eventually(lambda: store.calls["read"] == 1)
        expected = [f"stored {n}" for n in range(5)]
        for n in range(6):
            expected.append(f"live {n}")
            if n % 2:
                hub.send_to_user("ann", HubMessage(content=f"live {n}"))
            else:
                hub.send_ack_message_to_user("ann", ACKMessage(content=f"live {n}"))
        store.gate.set()
        assert await contents(raw, len(expected)) == expected


async def test_a_plain_message_is_not_overtaken_by_a_later_one_that_is_stored() -> None:
    store = TroubledStore()
    hub = acking(store)
    async with running(hub):
        store.gate.clear()
        raw, _ = await join(hub, "a&user=ann")
        await eventually(lambda: store.calls["read"] == 1)
        hub.send_to_user("ann", HubMessage(content="1"))
        await hub.send_ack_message_to_user("ann", ACKMessage(content="2")).accepted()
        hub.send_to_user("ann", HubMessage(content="3"))
        store.gate.set()
        assert await contents(raw, 3) == ["1", "2", "3"]


async def test_a_full_outbox_of_one_device_delays_that_device_alone() -> None:
    hub = acking(config=HubConfig(outbox_messages=4), retry_interval=60.0, timeout=120.0)
    async with running(hub):
        slow, client = await join(hub, "slow&user=ann", rcvbuf=4096)
        fast, _ = await join(hub, "fast&user=ann")
        await stall(client, 1 << 22)
        for n in range(4):
            client.send(str(n))
        for n in range(50):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
            assert await contents(fast, 1) == [str(n)]
        assert client.is_connected()
        got: list[str] = []
        while len(got) < 50:
            frame = await slow.recv()
            if frame.payload.startswith(b"{"):
                got.append(json.loads(frame.payload)["content"])
        assert got == [str(n) for n in range(50)]


# --- copies ---


async def test_no_copy_is_queued_while_the_first_one_waits_in_the_outbox() -> None:
    hub = acking(retry_interval=0.05, max_retries=100, timeout=60.0)
    async with running(hub):
        _raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        other, _ = await join(hub, "b&user=ann")
        await stall(client, 1 << 22)
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        # The other device, which reads, gets copies.
        assert await contents(other, 4) == ["x"] * 4
        assert client.queued_messages == 1
        assert pending.attempts >= 4


# --- bounds ---


async def test_the_queue_behind_a_backlog_is_bounded_in_bytes() -> None:
    store = TroubledStore()
    hub = acking(store, config=HubConfig(outbox_bytes=10_000))
    async with running(hub):
        store.gate.clear()
        raw, _ = await join(hub, "a&user=ann")
        await eventually(lambda: store.calls["read"] == 1)
        for _ in range(3):
            assert hub.send_to_user("ann", HubMessage(content="x" * 3_000)) == 1
        with pytest.raises(PendingFullError, match="outbox_bytes"):
            hub.send_to_user("ann", HubMessage(content="x" * 3_000))
        store.gate.set()
        assert await contents(raw, 3) == ["x" * 3_000] * 3


@pytest.mark.parametrize("size", [10, 200_000])
async def test_a_client_that_acknowledges_nothing_is_sent_a_window(size: int) -> None:
    count = 1_500 if size == 10 else 60
    store = MemoryOfflineStore()
    config = HubConfig(outbox_messages=100_000, outbox_bytes=1 << 26)
    hub = acking(store, config=config, offline_limit=10_000)
    async with running(hub):
        for n in range(count):
            hub.send_ack_message_to_user("ann", ACKMessage(content=f"{n} ".ljust(size, "x")))
        raw, client = await join(hub, "a&user=ann")
        most = replay.WINDOW if size == 10 else replay.WINDOW_BYTES // size + 1
        got = [number(each) for each in await contents(raw, most)]
        assert got == list(range(most))
        table = hub._delivery.acks.table  # type: ignore[union-attr]
        # Memory holds the messages that were sent, and at most one page that was read for it.
        assert table.nbytes <= replay.WINDOW_BYTES + (2 << 20)
        ids = [each.id for each in hub.get_pending_acks("a")]
        assert len(ids) <= most + 1
        for message_id in ids[:most]:
            await acknowledge(raw, message_id)
        rest = min(count - most, most)
        got = [number(each) for each in await contents(raw, rest)]
        assert got == list(range(most, most + rest))
        assert client.dropped_messages == 0


async def test_backlogs_of_many_users_wait_for_memory_and_all_arrive() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, max_pending_bytes=200_000, offline_limit=1_000)
    async with running(hub):
        users = [f"user{n}" for n in range(10)]
        for user in users:
            for n in range(40):
                hub.send_ack_message_to_user(user, ACKMessage(content=f"{n} ".ljust(5_000, "x")))
        clients = [(await join(hub, f"{user}/a&user={user}"))[0] for user in users]
        table = hub._delivery.acks.table  # type: ignore[union-attr]

        async def read(raw: RawClient) -> list[int]:
            got = []
            for _ in range(40):
                message = await received(raw)
                got.append(number(message["content"]))
                await acknowledge(raw, message["id"])
            return got

        for got in await asyncio.gather(*map(read, clients)):
            assert got == list(range(40))
        await eventually(lambda: table.nbytes == 0)
        assert not table.starved


async def test_a_message_that_timed_out_is_not_kept_for_a_client_that_does_not_read() -> None:
    hub = acking(config=HubConfig(outbox_messages=2), timeout=0.05, max_retries=0)
    async with running(hub):
        _raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        await stall(client, 1 << 22)
        client.send("1")
        client.send("2")
        first = hub.send_ack_message_to_user("ann", ACKMessage())
        mailbox = hub._delivery.acks.table.mailboxes["ann"]  # type: ignore[union-attr]
        line = mailbox.replays[client]._line
        ended = []
        for _ in range(5):
            wave = [hub.send_ack_message_to_user("ann", ACKMessage()) for _ in range(100)]
            ended += await asyncio.gather(*wave, return_exceptions=True)
        assert {type(each) for each in ended} == {AckTimeoutError}
        assert first.done()
        assert len(line) <= 2 * 100 + 17


async def test_many_connections_of_one_user_take_a_share_each_and_not_its_square() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, retry_interval=60.0, timeout=120.0)
    calls = 0
    listed = hub.get_clients_by_user

    def listing(user_id: str) -> Any:
        nonlocal calls
        calls += 1
        return listed(user_id)

    hub.get_clients_by_user = listing  # type: ignore[method-assign]
    async with running(hub):
        for n in range(50):
            hub.send_ack_message_to_user("guest", ACKMessage(content=str(n)))
        before = calls
        clients = [(await join(hub, f"c{n}&user=guest"))[0] for n in range(30)]
        for raw in clients:
            assert await contents(raw, 50) == [str(n) for n in range(50)]
        # A replay looks at its own client, and at no other.
        assert calls - before <= 2 * len(clients)
