"""Acknowledgements and offline messages: what is pending, sent again, stored, replayed, settled."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support import TEXT, RawClient, eventually, join, known, named, running
from wsc_fast import (
    ACKConfig,
    AckDroppedError,
    AckFailedError,
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    ClientNotFoundError,
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


def acking(store: Any = None, *, config: HubConfig | None = None, **settings: Any) -> Hub:
    """A hub with acknowledgements; with offline messages where there is a store."""
    hub = Hub(config, authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=store is not None, **settings), store=store)
    return hub


async def received(client: RawClient) -> dict[str, Any]:
    """The next HubMessage of a client."""
    frame = await client.recv()
    assert frame.opcode == TEXT
    return dict(json.loads(frame.payload))


async def acknowledge(client: RawClient, message_id: str, **more: Any) -> None:
    await client.send(TEXT, json.dumps({"type": "ack", "message_id": message_id, **more}).encode())


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


async def test_B14_what_a_client_says_of_its_failure_cannot_draw_on_a_terminal() -> None:
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
        for bad in (0, -1, float("inf"), float("nan"), "1"):
            with pytest.raises(ValidationError, match="timeout"):
                hub.send_ack_message("a", ACKMessage(content="x", timeout=bad))  # type: ignore[arg-type]
        raw.close()


async def test_G1_only_the_own_user_can_acknowledge() -> None:
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


async def eventually_count(store: Any, user_id: str, count: int) -> None:
    async with asyncio.timeout(10):
        while await store.count(user_id) != count:  # noqa: ASYNC110 (a store has no event)
            await asyncio.sleep(0.001)


async def test_what_is_pending_at_the_stop_is_stored() -> None:
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


async def test_G6_stored_first_then_live_and_accepted_keeps_the_order() -> None:
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


async def test_G3_a_replay_larger_than_the_outbox_is_paced() -> None:
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


@pytest.mark.parametrize("overflow", ["drop_oldest", "refuse"])
async def test_G16_the_store_is_bounded_per_user(overflow: str) -> None:
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
        acks: Any = hub._acks
        assert not acks._mailboxes
        await eventually(lambda: not acks._parked)
        assert acks.count == 0


async def test_G10_a_link_that_dies_in_mid_replay() -> None:
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
