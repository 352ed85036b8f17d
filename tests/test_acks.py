"""Acknowledgements and offline messages: what is pending, sent again, stored, replayed, settled."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from tests.acks import (
    FullStore,
    acking,
    acknowledge,
    caught_up,
    contents,
    contents_acknowledged,
    eventually_count,
    received,
)
from tests.support import TOO_DEEP, join, known, named
from wsc_fast import (
    ACKConfig,
    AckDroppedError,
    AckFailedError,
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    ClientNotFoundError,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    HubStateError,
    HubStoppedError,
    MemoryOfflineStore,
    OfflineStoreError,
    PendingFullError,
    UserOfflineError,
    ValidationError,
)
from wsc_fast._core.connection import abort
from wsc_fast.delivery.storing import AT_ONCE
from wsc_fast.testing import PING, PONG, TEXT, RawClient, encode, eventually, running


async def test_a_message_is_confirmed_by_its_client() -> None:
    hub = acking()
    seen: list[Any] = []
    hub.on_message_received(lambda client, message: seen.append(message))
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = hub.send_ack_message("a", ACKMessage(id="m1", content="hello"))
        assert pending.status is AckStatus.PENDING
        assert not pending.done()
        message = await received(raw)
        assert message["id"] == "m1"
        assert message["content"] == "hello"
        assert message["to"] == "ann"
        assert message["require_ack"] is True
        assert [each.id for each in hub.get_pending_acks("a")] == ["m1"]
        await acknowledge(raw, "m1", timestamp="2026-01-01T00:00:00Z")
        assert await pending is AckStatus.CONFIRMED
        assert await pending is AckStatus.CONFIRMED
        await pending.accepted()
        assert pending.attempts == 1
        assert hub.get_pending_acks("a") == []
        # The hub consumes acknowledgements, and nothing else that looks like them.
        await raw.send(TEXT, b'{"type":"note","message_id":"m1"}')
        await eventually(lambda: seen)
        assert seen == ['{"type":"note","message_id":"m1"}']
        raw.close()


async def test_a_client_reports_that_it_failed() -> None:
    hub = acking()
    async with running(hub):
        raw, _ = await join(hub, "a")
        pending = hub.send_ack_message_to_user("a", ACKMessage(content="x"))
        await acknowledge(raw, (await received(raw))["id"], status="failed", error="disk full")
        with pytest.raises(AckFailedError, match="disk full") as failure:
            await pending
        assert failure.value.message_id == pending.id
        assert pending.status is AckStatus.FAILED
        raw.close()


@pytest.mark.fault(number="B14")
async def test_a_failure_that_a_client_reports_cannot_draw_on_a_terminal() -> None:
    hub = acking()
    async with running(hub):
        raw, _ = await join(hub, "a")
        for text, told in (("größe", "größe"), ("\x1b[2J\nroot: é", r"\x1b[2J\nroot: \xe9")):
            pending = hub.send_ack_message_to_user("a", ACKMessage(content="x"))
            await acknowledge(raw, (await received(raw))["id"], status="failed", error=text)
            with pytest.raises(AckFailedError) as failure:
                await pending
            assert str(failure.value) == told
        raw.close()


async def test_it_is_sent_again_with_the_same_id_and_times_out() -> None:
    hub = acking(timeout=0.5, retry_interval=0.1, max_retries=2)
    async with running(hub):
        raw, _ = await join(hub, "a")
        pending = hub.send_ack_message("a", ACKMessage(id="m", content="x"))
        with pytest.raises(AckTimeoutError, match="'m'"):
            await pending
        assert pending.attempts == 3
        assert [(await received(raw))["id"] for _ in range(3)] == ["m"] * 3
        assert hub.get_pending_acks("a") == []
        raw.close()


async def test_a_message_has_a_timeout_of_its_own() -> None:
    hub = acking(timeout=60.0)
    async with running(hub):
        raw, _ = await join(hub, "a")
        with pytest.raises(AckTimeoutError):
            async with asyncio.timeout(5):
                await hub.send_ack_message("a", ACKMessage(content="x", timeout=0.05))
        for bad in (0, -1, float("inf"), float("nan"), "1", 10**5_000):
            with pytest.raises(ValidationError, match="timeout"):
                hub.send_ack_message("a", ACKMessage(content="x", timeout=bad))  # type: ignore[arg-type]
        raw.close()


@pytest.mark.fault(number="G1")
async def test_only_the_user_of_a_message_can_acknowledge_it() -> None:
    hub = acking()
    async with running(hub):
        ann, _ = await join(hub, "a&user=ann")
        ann2, _ = await join(hub, "a2&user=ann")
        bob, _ = await join(hub, "b&user=bob")
        pending = hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="x"))
        assert (await received(ann))["id"] == (await received(ann2))["id"] == "m"
        for guess in ("m", "n", "", "m" * 500):
            await acknowledge(bob, guess)
        await eventually(lambda: hub.get_stats().acks_ignored == 4)
        assert pending.status is AckStatus.PENDING
        await acknowledge(ann2, "m")  # the first of the user's clients
        await pending
        await acknowledge(ann, "m")  # and again
        await eventually(lambda: hub.get_stats().acks_ignored == 5)
        for raw in (ann, ann2, bob):
            raw.close()


async def test_a_reconnect_sends_what_is_pending_at_once() -> None:
    hub = acking(retry_interval=60.0, timeout=120.0)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = [hub.send_ack_message("a", ACKMessage(content=str(n))) for n in range(50)]
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 0)
        raw, _ = await join(hub, "b&user=ann")
        for n in range(50):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        await asyncio.gather(*pending)
        raw.close()


async def test_the_same_message_again_is_the_same_pending_one() -> None:
    hub = acking()
    async with running(hub):
        raw, _ = await join(hub, "a")
        message = ACKMessage(id="m", content="x")
        pending = hub.send_ack_message("a", message)
        assert hub.send_ack_message("a", message) is pending
        with pytest.raises(ValidationError, match="another message with the id 'm'"):
            hub.send_ack_message("a", ACKMessage(id="m", content="y"))
        assert (await received(raw))["content"] == "x"
        raw.close()


async def test_sends_that_cannot_be() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "a")
        with pytest.raises(HubStateError, match="enable_ack"):
            hub.send_ack_message("a", ACKMessage(content="x"))
        hub.enable_ack(ACKConfig(max_pending=2))
        with pytest.raises(HubStateError, match="enabled already"):
            hub.enable_ack(ACKConfig())
        with pytest.raises(ClientNotFoundError, match="nobody"):
            hub.send_ack_message("nobody", ACKMessage(content="x"))
        with pytest.raises(UserOfflineError, match="nobody"):
            hub.send_ack_message_to_user("nobody", ACKMessage(content="x"))
        with pytest.raises(ValidationError, match="expected an ACKMessage"):
            hub.send_ack_message("a", HubMessage(content="x"))  # type: ignore[arg-type]
        first = hub.send_ack_message("a", ACKMessage(content="1"))
        hub.send_ack_message("a", ACKMessage(content="2"))
        with pytest.raises(PendingFullError, match="max_pending"):
            hub.send_ack_message("a", ACKMessage(content="3"))
        raw.close()
    with pytest.raises(HubStoppedError):
        await first
    with pytest.raises(HubStoppedError):
        hub.send_ack_message("a", ACKMessage(content="x"))


# --- offline messages ---


async def test_a_message_for_an_absent_user_is_stored_and_delivered_in_order() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(500)
        ]
        assert pending[0].status is AckStatus.STORED
        await asyncio.gather(*(each.accepted() for each in pending))
        assert await store.count("ann") == 500
        raw, _ = await join(hub, "a&user=ann")
        live = hub.send_ack_message_to_user("ann", ACKMessage(content="live"))
        assert hub.send_to_user("ann", HubMessage(content="plain")) == 1
        for n in range(500):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        message = await received(raw)
        assert message["content"] == "live"
        await acknowledge(raw, message["id"])
        assert (await received(raw))["content"] == "plain"
        await asyncio.gather(*pending, live)
        await eventually_count(store, "ann", 0)
        raw.close()


async def test_pending_messages_are_stored_at_the_stop() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="x"))
        await received(raw)
        assert await store.count("ann") == 0
    with pytest.raises(HubStoppedError, match="offline store"):
        await pending
    await pending.accepted()
    raw.close()
    again = acking(store)
    async with running(again):
        raw, _ = await join(again, "a&user=ann")
        assert (await received(raw))["id"] == "m"
        await acknowledge(raw, "m")
        await eventually_count(store, "ann", 0)
        raw.close()


@pytest.mark.fault(number="G6")
async def test_stored_messages_come_first_and_accepted_live_ones_behind_them() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        hub.send_ack_message_to_user("ann", ACKMessage(content="1"))
        second = hub.send_ack_message_to_user("ann", ACKMessage(content="2"))
        await second.accepted()
        assert [json.loads(each.data)["content"] for each in await store.read("ann")] == ["1", "2"]
        hub.send_ack_message_to_user("ann", ACKMessage(content="3"))
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 0)
        hub.send_ack_message_to_user("ann", ACKMessage(content="4"))
        raw, _ = await join(hub, "b&user=ann")
        assert [(await received(raw))["content"] for _ in range(4)] == ["1", "2", "3", "4"]
        raw.close()


@pytest.mark.fault(number="G3")
async def test_a_replay_larger_than_the_outbox_is_paced() -> None:
    store = MemoryOfflineStore()
    config = HubConfig(outbox_messages=64)
    hub = acking(store, config=config, offline_limit=100_000)
    async with running(hub):
        for n in range(20_000):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        raw, client = await join(hub, "a&user=ann")
        for n in range(20_000):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        assert client.dropped_messages == 0
        await eventually_count(store, "ann", 0)
        assert hub.get_stats().slow_consumer_disconnects == 0
        raw.close()


@pytest.mark.fault(number="G16")
@pytest.mark.parametrize("overflow", ["drop_oldest", "refuse"])
async def test_the_store_is_bounded_per_user(overflow: str) -> None:
    store = MemoryOfflineStore()
    hub = acking(store, offline_limit=3, offline_overflow=overflow)
    async with running(hub):
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(4)
        ]
        if overflow == "drop_oldest":
            with pytest.raises(AckDroppedError, match="3 newer messages"):
                await pending[0]
            await pending[3].accepted()
            kept = "123"
        else:
            with pytest.raises(OfflineStoreError):
                await pending[3].accepted()
            with pytest.raises(OfflineStoreError):
                await pending[3]
            kept = "012"
        stored = await store.read("ann")
        assert "".join(json.loads(each.data)["content"] for each in stored) == kept
        assert hub.get_stats().acks_dropped == 1


async def test_a_stored_message_too_old_is_dropped_and_reported() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, offline_max_age=0.05)
    async with running(hub):
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        with pytest.raises(AckDroppedError, match="did not come"):
            async with asyncio.timeout(5):
                await pending
        assert await store.count("ann") == 0


async def test_nothing_is_kept_in_memory_for_users_who_are_away() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        for n in range(1000):
            await hub.send_ack_message_to_user(f"user {n}", ACKMessage(content="x")).accepted()
        acks: Any = hub._delivery.acks
        assert not acks.table.mailboxes
        await eventually(lambda: not acks.parked_messages)
        assert acks.count == 0


@pytest.mark.fault(number="G10")
async def test_a_link_that_dies_in_mid_replay_leaves_no_gap() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        for n in range(1000):
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        raw, _ = await join(hub, "a&user=ann")
        for n in range(500):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        await eventually(lambda: hub.get_stats().acks_confirmed == 500)
        raw.reset()
        await eventually(lambda: hub.get_connected_clients() == 0)
        raw, _ = await join(hub, "b&user=ann")
        for n in range(500, 1000):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        await eventually_count(store, "ann", 0)
        raw.close()


async def test_a_hub_on_another_thread_can_be_awaited() -> None:
    hub = acking()
    async with running(hub):
        raw, _ = await join(hub, "a")

        def elsewhere() -> AckStatus:
            async def send() -> AckStatus:
                pending = hub.send_ack_message("a", ACKMessage(id="m", content="x"))
                await pending.accepted()
                return await pending

            return asyncio.run(send())

        outcome = asyncio.get_running_loop().run_in_executor(None, elsewhere)
        await received(raw)
        await acknowledge(raw, "m")
        assert await outcome is AckStatus.CONFIRMED
        known(hub, "a")
        raw.close()


async def test_the_same_message_again_while_its_user_is_away() -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        message = ACKMessage(id="m", content="x")
        pending = hub.send_ack_message_to_user("ann", message)
        assert hub.send_ack_message_to_user("ann", message) is pending
        with pytest.raises(ValidationError, match="another message with the id 'm'"):
            hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="y"))
        await pending.accepted()
        assert hub.send_ack_message_to_user("ann", message) is pending
        raw, _ = await join(hub, "a&user=ann")
        assert (await received(raw))["content"] == "x"
        await acknowledge(raw, "m")
        await pending
        raw.close()


# --- identity of messages ---


@pytest.mark.parametrize("held", [True, False], ids=["held", "not held"])
async def test_another_message_under_a_stored_id_is_refused(held: bool) -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        first = hub.send_ack_message_to_user("ann", ACKMessage(id="order-1", content="shipped"))
        await first.accepted()
        if not held:
            del first
            gc.collect()
            other = hub.send_ack_message_to_user("ann", ACKMessage(id="order-1", content="lost"))
            for waiting in (other.accepted(), other):
                with pytest.raises(ValidationError, match="another message with the id 'order-1'"):
                    await waiting
            assert other.status is AckStatus.DROPPED
        else:
            with pytest.raises(ValidationError, match="another message with the id 'order-1'"):
                hub.send_ack_message_to_user("ann", ACKMessage(id="order-1", content="lost"))
        assert [json.loads(each.data)["content"] for each in await store.read("ann")] == ["shipped"]


async def test_the_same_message_made_anew_after_a_restart_is_accepted_and_stored_once() -> None:
    store = MemoryOfflineStore()
    for _ in range(2):
        hub = acking(store)
        async with running(hub):
            message = ACKMessage(id="order-1", content="shipped", data={"n": [1, 2]})
            await hub.send_ack_message_to_user("ann", message).accepted()
            assert await store.count("ann") == 1


async def test_a_change_of_the_caller_after_the_call_changes_nothing() -> None:
    hub = acking()
    async with running(hub):
        raw, _ = await join(hub, "a")
        message = ACKMessage(id="m", content="x", data={"n": 1}, timeout=30.0)
        pending = hub.send_ack_message("a", message)
        message.content, message.id = "changed", "other"
        message.data["n"] = 2  # type: ignore[index]
        assert (await received(raw))["data"] == {"n": 1}
        assert pending.message.content == "x"
        assert pending.message.data == {"n": 1}
        assert pending.message.timeout == 30.0
        assert pending.id == "m"
        raw.close()


@pytest.mark.parametrize("depth", [99, 100])
async def test_data_is_nested_up_to_a_bound(depth: int) -> None:
    store = MemoryOfflineStore()
    hub = acking(store)
    async with running(hub):
        data: dict[str, Any] = {"a": 1}
        for _ in range(depth):
            data = {"a": data}
        if depth == 100:
            with pytest.raises(ValidationError, match="100 deep"):
                hub.send_ack_message_to_user("ann", ACKMessage(data=data))
            return
        hub.send_ack_message_to_user("ann", ACKMessage(data=data))
        hub.send_ack_message_to_user("ann", ACKMessage(content="behind"))
        raw, _ = await join(hub, "a&user=ann")
        assert (await received(raw))["data"] == data
        assert (await received(raw))["content"] == "behind"
        raw.close()


async def test_a_message_that_no_decoder_takes_does_not_end_a_replay() -> None:
    store = MemoryOfflineStore()
    await store.open()
    deep = b'{"id":"deep","data":{"a":' + b"[" * TOO_DEEP + b"]" * TOO_DEEP + b"}}"
    await store.append("ann", "deep", deep, limit=10, drop_oldest=True)
    hub = acking(store)
    async with running(hub):
        hub.send_ack_message_to_user("ann", ACKMessage(content="behind"))
        raw, _ = await join(hub, "a&user=ann")
        assert (await raw.recv()).payload == deep
        assert (await received(raw))["content"] == "behind"
        assert hub.get_stats().callback_errors == 0
        raw.close()


# --- limits ---


async def test_one_user_cannot_take_what_all_may_have_pending() -> None:
    hub = acking(max_pending=100)
    async with running(hub):
        raw, _ = await join(hub, "a&user=eve")
        for _ in range(25):
            hub.send_ack_message("a", ACKMessage())
        with pytest.raises(PendingFullError, match="max_pending_per_user"):
            hub.send_ack_message("a", ACKMessage())
        other, _ = await join(hub, "b&user=bob")
        hub.send_ack_message("b", ACKMessage(content="important"))
        assert (await received(other))["content"] == "important"
        raw.close()
        other.close()


async def test_pending_messages_are_bounded_in_bytes() -> None:
    hub = acking(max_pending_bytes=50_000)
    message = {"content": "x" * 10_000}
    async with running(hub):
        clients = [(await join(hub, f"{name}/a&user={name}"))[0] for name in "abcdef"]
        for name in "abc":
            hub.send_ack_message_to_user(name, ACKMessage(**message))
        hub.send_ack_message_to_user("a", ACKMessage(**message))
        with pytest.raises(PendingFullError, match=r"a quarter of ACKConfig\.max_pending_bytes"):
            hub.send_ack_message_to_user("a", ACKMessage())
        hub.send_ack_message_to_user("d", ACKMessage(**message))
        with pytest.raises(PendingFullError, match=r"already \(ACKConfig\.max_pending_bytes\)"):
            hub.send_ack_message_to_user("e", ACKMessage())
        await acknowledge(clients[1], (await received(clients[1]))["id"])
        await eventually(lambda: hub.get_stats().acks_confirmed == 1)
        hub.send_ack_message_to_user("e", ACKMessage(content="fits"))
        assert (await received(clients[4]))["content"] == "fits"
        for raw in clients:
            raw.reset()


@pytest.mark.parametrize("action", ["close", "drop", "pause"])
async def test_acknowledgements_that_settle_something_are_under_no_rate(action: Any) -> None:
    config = HubConfig(message_rate=5.0, byte_rate=500.0, rate_limit_action=action)
    hub = acking(config=config)
    async with running(hub):
        raw, client = await join(hub, "a")
        pending = [hub.send_ack_message("a", ACKMessage()) for _ in range(100)]
        for _ in pending:
            await acknowledge(raw, (await received(raw))["id"])
        async with asyncio.timeout(5.0):
            await asyncio.gather(*pending)
        assert client.is_connected()
        assert hub.get_stats().rate_limited == 0
        # Others are counted as any message is.
        for _ in range(100):
            await acknowledge(raw, "unknown")
        await eventually(lambda: hub.get_stats().rate_limited > 0)
        raw.reset()


async def test_pongs_that_the_hub_has_asked_for_are_under_no_rate() -> None:
    config = HubConfig(message_rate=1.0, heartbeat_interval=0.05, heartbeat_timeout=5.0)
    hub = acking(config=config)
    async with running(hub):
        raw, client = await join(hub, "a")
        for _ in range(8):
            frame = await raw.recv()
            assert frame.opcode == PING
            await raw.send(PONG, frame.payload)
        assert client.is_connected()
        assert hub.get_stats().rate_limited == 0
        for _ in range(5):
            await raw.send(PONG, b"unasked")
        await eventually(lambda: hub.get_stats().rate_limited > 0)
        raw.reset()


# --- what a callback may wait for ---


async def test_an_async_callback_may_wait_for_acknowledgements_of_its_own_client() -> None:
    hub = acking(timeout=10.0, retry_interval=5.0)
    outcomes: list[AckStatus] = []

    @hub.on_message_received
    async def received_from(client: Any, message: str) -> None:
        outcomes.append(await hub.send_ack_message(client.id, ACKMessage(content=message)))

    async with running(hub):
        raw, _ = await join(hub, "a")
        for n in range(300):
            await raw.send(TEXT, f"message {n}".encode())
        for n in range(300):
            message = await received(raw)
            assert message["content"] == f"message {n}"
            await acknowledge(raw, message["id"])
        await eventually(lambda: outcomes == [AckStatus.CONFIRMED] * 300)
        raw.reset()


@pytest.mark.parametrize("first", [0, 5])
async def test_a_callback_hears_acknowledgements_though_one_read_brought_more_than_may_wait(
    first: int,
) -> None:
    hub = acking(timeout=10.0, retry_interval=5.0)
    begun = asyncio.Event()
    outcomes: list[AckStatus] = []

    @hub.on_message_received
    async def received_from(client: Any, message: str) -> None:
        # Reading is paused by now, and nothing is awaited yet.
        await begun.wait()
        if int(message) >= first:
            outcomes.append(await hub.send_ack_message(client.id, ACKMessage(content=message)))

    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send_raw(b"".join(encode(TEXT, str(n).encode()) for n in range(300)))
        await eventually(lambda: hub.get_stats().limited["max_pending_callbacks"] > 0)
        begun.set()
        for n in range(first, 300):
            message = await received(raw)
            assert message["content"] == str(n)
            await acknowledge(raw, message["id"])
        await eventually(lambda: outcomes == [AckStatus.CONFIRMED] * (300 - first))
        raw.reset()


async def test_messages_that_wait_for_an_async_callback_are_bounded_in_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = HubConfig(max_pending_callback_bytes=100_000, max_pending_callbacks=1_000_000)
    hub = acking(config=config)
    gate = asyncio.Event()
    handled = 0

    @hub.on_message_received
    async def received_from(client: Any, message: str) -> None:
        nonlocal handled
        await gate.wait()
        handled += 1

    async with running(hub):
        raw, _ = await join(hub, "a")
        hub.send_ack_message("a", ACKMessage())
        sending = asyncio.create_task(send_many(raw, 200, 10_000))
        await eventually(lambda: hub.get_stats().limited["max_pending_callback_bytes"] == 1)
        assert "acknowledgements are not heard" in caplog.text
        gate.set()
        await eventually(lambda: handled == 200)
        await sending
        raw.reset()


async def send_many(raw: RawClient, count: int, size: int) -> None:
    for _ in range(count):
        await raw.send(TEXT, b"x" * size)


# --- clients without an identity ---


async def test_nothing_is_stored_for_clients_without_an_identity(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemoryOfflineStore()
    hub = Hub()
    hub.enable_ack(ACKConfig(enable_offline_messages=True, timeout=0.2), store=store)
    assert "authenticate" in caplog.text
    async with running(hub):
        raw = await RawClient.open(hub, "/ws")
        await eventually(lambda: hub.get_connected_clients() == 1)
        (client_id,) = hub.get_connected_client_ids()
        pending = hub.send_ack_message(client_id, ACKMessage())
        raw.reset()
        with pytest.raises(AckTimeoutError):
            await pending
        with pytest.raises(UserOfflineError):
            hub.send_ack_message_to_user("ann", ACKMessage())
    assert not store._messages


# --- two hubs ---


async def test_a_store_object_belongs_to_one_hub() -> None:
    store = MemoryOfflineStore()
    first = acking(store)
    with pytest.raises(ConfigError, match="another hub"):
        acking(store)
    async with running(first):
        with pytest.raises(ConfigError, match="another hub"):
            acking(store)
        await first.send_ack_message_to_user("ann", ACKMessage()).accepted()
    second = acking(store)
    async with running(second):
        assert await store.count("ann") == 1


# --- much at once ---


async def test_an_await_ends_though_nobody_else_holds_the_message() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):

        async def send(user_id: str, content: str) -> AckStatus:
            return await hub.send_ack_message_to_user(user_id, ACKMessage(content=content))

        away = asyncio.create_task(send("ann", "away"))
        bob, _ = await join(hub, "bob")
        leaves = asyncio.create_task(send("bob", "leaves"))
        assert await contents(bob, 1) == ["leaves"]
        bob.close()
        await eventually(lambda: not hub.get_connected_clients())
        gc.collect()
        for user_id, task in (("ann", away), ("bob", leaves)):
            client, _ = await join(hub, user_id)
            await contents_acknowledged(client, 1)
            assert await task is AckStatus.CONFIRMED
            client.close()


class SlowStore(MemoryOfflineStore):
    """An append is done a while after other hubs may read the message."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    def append(self, *args: Any, **options: Any) -> Any:
        return asyncio.ensure_future(self._late(super().append(*args, **options)))

    async def _late(self, appended: Any) -> Any:
        await self.gate.wait()
        return await appended


async def test_a_message_acknowledged_while_it_is_stored_goes_to_nobody_else() -> None:
    store = SlowStore()
    hub = acking(store)
    async with running(hub):
        first, _ = await join(hub, "a&user=ann")
        await caught_up(hub)
        message = ACKMessage(id="m1", content="x")
        pending = hub.send_ack_message_to_user("ann", message)
        storing = asyncio.create_task(pending.accepted())
        assert await contents_acknowledged(first, 1) == ["x"]
        await pending
        await storing
        second, _ = await join(hub, "b&user=ann")
        await caught_up(hub)
        assert hub._delivery.acks.count == 0  # nothing was found for it
        again = hub.send_ack_message_to_user("ann", message)  # behind the end of the first one
        assert await contents(second, 1) == ["x"]
        stored = asyncio.create_task(again.accepted())
        store.gate.set()
        await stored
        await eventually_count(store, "ann", 1)
        assert hub.get_stats().acks_retransmitted == 0
        await acknowledge(second, "m1")
        await again
        await eventually_count(store, "ann", 0)
        first.close()
        second.close()


async def test_a_user_with_many_pending_is_parked_over_several_turns_in_order() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, retry_interval=60.0, timeout=120.0, offline_limit=10_000)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(1_000)
        ]
        raw.reset()
        await eventually(lambda: hub.connections == 0)
        # The turn in which a client has gone parks some of them, and so does each that follows.
        stored = [each for each in pending if each.status is AckStatus.STORED]
        assert len(stored) <= 3 * AT_ONCE
        last = hub.send_ack_message_to_user("ann", ACKMessage(content="last"))
        await last.accepted()
        await eventually_count(store, "ann", 1_001)
        kept = await store.read("ann", limit=2_000)
        assert [json.loads(each.data)["content"] for each in kept] == [
            *map(str, range(1_000)),
            "last",
        ]


async def test_a_user_who_comes_back_while_being_parked_misses_nothing() -> None:
    store = MemoryOfflineStore()
    hub = acking(store, retry_interval=60.0, timeout=120.0, offline_limit=10_000)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann")
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(2_000)
        ]
        again = asyncio.create_task(RawClient.open(hub, "/ws?id=b&user=ann"))
        abort(client)
        second = await again
        assert await contents_acknowledged(second, 2_000) == [str(n) for n in range(2_000)]
        assert {await each for each in pending} == {AckStatus.CONFIRMED}
        await eventually_count(store, "ann", 0)
        raw.close()
        second.close()


async def test_a_store_that_fails_for_many_is_looked_at_once_for_all() -> None:
    hub = acking(FullStore(), retry_interval=60.0, timeout=120.0)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        pending = [hub.send_ack_message_to_user("ann", ACKMessage()) for _ in range(5_000)]
        storing: Any = hub._delivery.acks.storing  # type: ignore[union-attr]
        listed = 0
        list_unstored = storing._list_unstored

        def listing(mailbox: Any) -> Any:
            nonlocal listed
            listed += 1
            return list_unstored(mailbox)

        storing._list_unstored = listing
        outcomes = await asyncio.gather(
            *(each.accepted() for each in pending), return_exceptions=True
        )
        assert {type(each) for each in outcomes} == {OfflineStoreError}
        # Not once for each of the 5,000 failures.
        assert listed <= 1
        raw.reset()


# --- the end ---


async def test_accepted_ends_with_the_hub_though_the_store_takes_longer() -> None:
    class Stuck(MemoryOfflineStore):
        def append(self, *args: Any, **options: Any) -> Any:
            return asyncio.get_running_loop().create_future()

    hub = acking(Stuck())
    async with running(hub):
        pending = hub.send_ack_message_to_user("ann", ACKMessage())
        accepted = asyncio.create_task(pending.accepted())
        elsewhere = asyncio.get_running_loop().run_in_executor(
            None, lambda: asyncio.run(outcome_of(pending))
        )
        await eventually(lambda: pending._storing is not None)
        await hub.stop(0.1)
        with pytest.raises(OfflineStoreError, match="before the offline store had taken"):
            await accepted
        assert await elsewhere == "OfflineStoreError"


async def outcome_of(pending: Any) -> str:
    try:
        await pending.accepted()
    except BaseException as error:
        return type(error).__name__
    return "accepted"
