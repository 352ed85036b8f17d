"""ACKConfig(per="device"): each device of a user gets each message, and acknowledges for itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.acks import (
    TroubledStore,
    acknowledge,
    caught_up,
    contents,
    contents_acknowledged,
    eventually_count,
    failed,
    received,
)
from tests.acks import running_and_aborting as running
from wsc_fast import (
    ACKConfig,
    AckFailedError,
    ACKMessage,
    AckStatus,
    ConfigError,
    Hub,
    HubMessage,
    HubStoppedError,
    Identity,
    MemoryOfflineStore,
    OfflineStore,
    OfflineStoreError,
    Request,
    SQLiteOfflineStore,
    ValidationError,
)
from wsc_fast.delivery.devices import key_of_device, key_of_devices
from wsc_fast.testing import RawClient, eventually, eventually_async

pytestmark = pytest.mark.usefixtures("closing_sockets")


def named(request: Request) -> Identity:
    return Identity(request.query["user"], device_id=request.query.get("device"))


def per_device(store: OfflineStore, **settings: Any) -> Hub:
    hub = Hub(authenticate=named)
    settings = {"retry_interval": 60.0, "timeout": 120.0, **settings}
    config = ACKConfig(enable_offline_messages=True, per="device", **settings)
    hub.enable_ack(config, store=store)
    return hub


async def join(hub: Hub, user: str, device: str | None = None) -> RawClient:
    """A client of a device, once the devices of its user are known."""
    before = hub.get_connected_clients()
    query = f"user={user}" + ("" if device is None else f"&device={device}")
    raw = await RawClient.open(hub, f"/ws?{query}")
    await eventually(lambda: hub.get_connected_clients() == before + 1)
    await caught_up(hub)
    return raw


async def leave(hub: Hub, raw: RawClient) -> None:
    before = hub.connections
    raw.reset()
    await eventually(lambda: hub.connections == before - 1)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> OfflineStore:
    return MemoryOfflineStore() if request.param == "memory" else SQLiteOfflineStore(tmp_path / "m")


async def test_a_device_that_is_away_gets_what_another_has_acknowledged(
    store: OfflineStore,
) -> None:
    hub = per_device(store)
    async with running(hub):
        laptop, phone = await join(hub, "ann", "laptop"), await join(hub, "ann", "phone")
        await leave(hub, phone)
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(300)
        ]
        assert await contents_acknowledged(laptop, 300) == [str(n) for n in range(300)]
        assert {await each for each in pending} == {AckStatus.CONFIRMED}
        phone = await join_while_backlog(hub, "ann", "phone")
        assert await contents_acknowledged(phone, 300) == [str(n) for n in range(300)]
        for device in ("laptop", "phone"):
            await eventually_count(store, key_of_device("ann", device), 0)


async def test_what_is_stored_for_a_user_is_counted_over_all_devices(store: OfflineStore) -> None:
    hub = per_device(store)
    async with running(hub):
        for device in ("laptop", "phone"):
            await leave(hub, await join(hub, "ann", device))
        for number in range(3):
            await hub.send_ack_message_to_user("ann", ACKMessage(content=str(number))).accepted()
        assert await hub._delivery.count_stored("ann") == 6
        assert await hub._delivery.count_stored("bob") == 0


async def test_what_is_stored_is_not_counted_where_nothing_is_stored() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        assert await hub._delivery.count_stored("ann") is None
        hub.enable_ack()
        assert await hub._delivery.count_stored("ann") is None


async def join_while_backlog(hub: Hub, user: str, device: str) -> RawClient:
    return await RawClient.open(hub, f"/ws?user={user}&device={device}")


async def test_devices_that_are_both_away_each_get_everything(store: OfflineStore) -> None:
    hub = per_device(store)
    async with running(hub):
        for device in ("laptop", "phone"):
            await leave(hub, await join(hub, "ann", device))
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="1"))
        await pending.accepted()
        assert pending.status is AckStatus.STORED
        for device in ("laptop", "phone"):
            raw = await join_while_backlog(hub, "ann", device)
            assert await contents_acknowledged(raw, 1) == ["1"]
            assert await pending is AckStatus.CONFIRMED
            await eventually_count(store, key_of_device("ann", device), 0)
            await leave(hub, raw)


async def test_the_devices_are_known_after_a_restart(store: OfflineStore) -> None:
    for hub in (per_device(store), per_device(type(store)(*paths_of(store)))):
        async with running(hub):
            if hub.get_stats().acks_sent == 0 and await noted(hub, "ann") == set():
                for device in ("laptop", "phone"):
                    await leave(hub, await join(hub, "ann", device))
                continue
            await hub.send_ack_message_to_user("ann", ACKMessage(content="x")).accepted()
            for device in ("laptop", "phone"):
                raw = await join_while_backlog(hub, "ann", device)
                assert await contents_acknowledged(raw, 1) == ["x"]
        return


def paths_of(store: OfflineStore) -> tuple[str, ...]:
    return (store._path,) if isinstance(store, SQLiteOfflineStore) else ()


async def noted(hub: Hub, user: str) -> set[str]:
    assert hub._delivery.acks is not None
    assert hub._delivery.acks.store is not None
    await hub._delivery.acks.opened()
    return {each.id for each in await hub._delivery.acks.store.read(key_of_devices(user))}


async def eventually_noted(hub: Hub, user: str, devices: set[str]) -> None:
    async def are_noted() -> bool:
        return await noted(hub, user) == devices

    await eventually_async(are_noted, 5.0)


async def test_order_holds_for_each_device_across_messages_of_both_kinds() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        await leave(hub, await join(hub, "ann", "phone"))
        for n in range(3):
            hub.send_ack_message_to_user("ann", ACKMessage(content=f"stored {n}"))
        expected = [f"stored {n}" for n in range(3)]
        raw = await join_while_backlog(hub, "ann", "phone")
        await eventually(lambda: hub.get_connected_clients() == 1)
        for n in range(6):
            expected.append(f"live {n}")
            if n % 2:
                hub.send_to_user("ann", HubMessage(content=f"live {n}"))
            else:
                hub.send_ack_message_to_user("ann", ACKMessage(content=f"live {n}"))
            await asyncio.sleep(0)
        got = await contents_acknowledged(raw, len(expected))
        with_ack = [each for each in expected if each[-1] in "024" or each.startswith("stored")]
        assert [each for each in got if each in with_ack] == with_ack
        assert sorted(got) == sorted(expected)


async def test_messages_stored_before_any_device_was_known_go_to_the_first_one(
    store: OfflineStore,
) -> None:
    hub = per_device(store)
    async with running(hub):
        pending = [
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n))) for n in range(5)
        ]
        for each in pending:
            await each.accepted()
        raw = await join_while_backlog(hub, "ann", "phone")
        assert await contents_acknowledged(raw, 5) == list("01234")
        assert {await each for each in pending} == {AckStatus.CONFIRMED}
        await eventually_count(store, "ann", 0)
        # A second device begins with what comes from now on.
        laptop = await join(hub, "ann", "laptop")
        hub.send_ack_message_to_user("ann", ACKMessage(content="new"))
        assert await contents_acknowledged(laptop, 1) == ["new"]


async def test_clients_without_a_device_share_the_mailbox_of_their_user() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        one, two = await join(hub, "ann"), await join(hub, "ann")
        phone = await join(hub, "ann", "phone")
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        assert await contents(one, 1) == ["x"]
        assert await contents_acknowledged(two, 1) == ["x"]
        assert await pending is AckStatus.CONFIRMED
        assert hub.get_pending_acks(client_of(hub, "phone")) != []
        assert await contents_acknowledged(phone, 1) == ["x"]
        await eventually(lambda: hub._delivery.acks.count == 0)  # type: ignore[union-attr]


def client_of(hub: Hub, device: str) -> str:
    (found,) = [each.id for each in hub._engine.open_clients() if each.device_id == device]
    return found


async def test_a_message_for_one_client_is_for_its_device_alone() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        laptop, phone = await join(hub, "ann", "laptop"), await join(hub, "ann", "phone")
        pending = hub.send_ack_message(client_of(hub, "phone"), ACKMessage(content="x"))
        await leave(hub, phone)
        await pending.accepted()
        hub.send_to_user("ann", HubMessage(content="end"))
        assert await contents_acknowledged(laptop, 1) == ["end"]
        phone = await join_while_backlog(hub, "ann", "phone")
        assert await contents_acknowledged(phone, 1) == ["x"]
        assert await pending is AckStatus.CONFIRMED


async def test_the_number_of_devices_is_bounded_and_the_oldest_is_forgotten(
    store: OfflineStore,
) -> None:
    hub = per_device(store, max_devices=2)
    async with running(hub):
        for device in ("a", "b", "c"):
            await leave(hub, await join(hub, "ann", device))
        assert await noted(hub, "ann") == {"b", "c"}
        await hub.send_ack_message_to_user("ann", ACKMessage(content="x")).accepted()
        assert await store.count(key_of_device("ann", "a")) == 0
        assert await store.count(key_of_device("ann", "b")) == 1
        raw = await join(hub, "ann", "a")
        hub.send_ack_message_to_user("ann", ACKMessage(content="new"))
        assert await contents_acknowledged(raw, 1) == ["new"]


async def test_a_device_that_does_not_come_for_long_is_forgotten() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store, offline_max_age=0.2)
    async with running(hub):
        await leave(hub, await join(hub, "ann", "old"))

        await eventually_noted(hub, "ann", set())
        # Nobody hears of that as of a lost message.
        assert hub.get_stats().send_failures == 0


async def test_the_outcome_is_the_first_acknowledgement_or_the_last_failure() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    failures: list[Any] = []

    class Hears:
        def handle_send_failure(self, *call: Any) -> None:
            failures.append(call)

    hub.add_send_failure_handler(Hears())
    async with running(hub):
        laptop, phone = await join(hub, "ann", "laptop"), await join(hub, "ann", "phone")
        for outcomes in (("failed", "confirmed"), ("failed", "failed")):
            pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
            for raw, outcome in zip((laptop, phone), outcomes, strict=True):
                message = await received(raw)
                await acknowledge(raw, message["id"], status=outcome, error="no disk")
            if "confirmed" in outcomes:
                assert await pending is AckStatus.CONFIRMED
                assert failures == []
            else:
                with pytest.raises(AckFailedError, match="no disk"):
                    await pending
                await eventually(lambda: len(failures) == 1)


async def test_the_same_message_again_is_the_same_pending_one_and_other_content_refused() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        await leave(hub, await join(hub, "ann", "phone"))
        message = ACKMessage(id="m", content="x")
        pending = hub.send_ack_message_to_user("ann", message)
        assert hub.send_ack_message_to_user("ann", message) is pending
        await pending.accepted()
        assert hub.send_ack_message_to_user("ann", message) is pending
        with pytest.raises(ValidationError, match="another message"):
            hub.send_ack_message_to_user("ann", ACKMessage(id="m", content="y"))
        assert pending.attempts == 0
        raw = await join_while_backlog(hub, "ann", "phone")
        assert await contents_acknowledged(raw, 1) == ["x"]
        assert await pending is AckStatus.CONFIRMED
        assert pending.attempts == 1


async def test_a_stop_ends_what_waits_and_the_next_hub_delivers_it() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        await leave(hub, await join(hub, "ann", "phone"))
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        await pending.accepted()
    with pytest.raises(HubStoppedError, match="offline store"):
        await pending
    again = per_device(store)
    async with running(again):
        raw = await join_while_backlog(again, "ann", "phone")
        assert await contents_acknowledged(raw, 1) == ["x"]
        await eventually_count(store, key_of_device("ann", "phone"), 0)


async def test_a_store_that_is_away_is_an_error_of_the_message() -> None:
    store = TroubledStore()
    store.failing.add("read")
    hub = per_device(store)
    async with running(hub):
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        for waiting in (pending, pending.accepted()):
            with pytest.raises(OfflineStoreError, match="cannot read"):
                await waiting
        # A connected device gets messages all the same.
        raw = await RawClient.open(hub, "/ws?user=bob&device=phone")
        await eventually(lambda: hub.get_connected_clients() == 1)
        live = hub.send_ack_message_to_user("bob", ACKMessage(content="live"))
        assert await contents_acknowledged(raw, 1) == ["live"]
        assert await live is AckStatus.CONFIRMED


async def test_a_device_that_connects_while_the_others_are_read_is_noted() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        await leave(hub, await join(hub, "ann", "old"))
        for n in range(500):  # many turns of the loop
            hub.send_ack_message_to_user("ann", ACKMessage(content=str(n)))
        raw = await RawClient.open(hub, "/ws?user=ann&device=new")
        await eventually_noted(hub, "ann", {"old", "new"})
        hub.send_ack_message_to_user("ann", ACKMessage(content="for both"))
        while (await received(raw))["content"] != "for both":
            pass


async def test_a_hand_over_that_fails_is_done_at_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsc_fast.delivery.catching_up.REPLAY_AGAIN", 0.05)
    failing = [True]

    class Fails(MemoryOfflineStore):
        def append(self, user_id: str, *args: Any, **options: Any) -> Any:
            if failing and user_id == key_of_device("ann", "phone"):
                failing.clear()
                return failed("once")
            return super().append(user_id, *args, **options)

    store = Fails()
    hub = per_device(store)
    async with running(hub):
        await hub.send_ack_message_to_user("ann", ACKMessage(content="kept")).accepted()
        raw = await join_while_backlog(hub, "ann", "phone")
        assert await contents_acknowledged(raw, 1) == ["kept"]
        assert not failing
        await eventually_count(store, "ann", 0)


async def test_a_store_that_hangs_delays_the_devices_that_are_connected_for_its_patience_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsc_fast.delivery.store_access.PATIENCE", 0.3)
    store = TroubledStore()
    hub = per_device(store)
    async with running(hub):
        first = await join(hub, "ann", "first")
        store.gate.clear()
        second = await join_while_backlog(hub, "ann", "second")
        await eventually(lambda: hub.get_connected_clients() == 2)
        # The one that was known gets messages at once, the other one when the patience is over.
        hub.send_ack_message_to_user("ann", ACKMessage(content="1"))
        hub.send_to_user("ann", HubMessage(content="2"))
        assert await contents_acknowledged(first, 2) == ["1", "2"]
        assert await contents_acknowledged(second, 2) == ["1", "2"]
        store.gate.set()


@pytest.mark.parametrize("user", ["\x1fann", "ann\x1fphone", ""])
async def test_no_id_reaches_the_mailbox_of_another(user: str) -> None:
    hub = per_device(MemoryOfflineStore())
    async with running(hub):
        with pytest.raises(ValidationError, match="user id"):
            hub.send_ack_message_to_user(user, ACKMessage())


async def test_nothing_is_left_of_devices_that_have_gone() -> None:
    store = MemoryOfflineStore()
    hub = per_device(store)
    async with running(hub):
        for n in range(20):
            raw = await join(hub, f"user{n}", "phone")
            pending = hub.send_ack_message_to_user(f"user{n}", ACKMessage(content="x"))
            assert await contents_acknowledged(raw, 1) == ["x"]
            assert await pending is AckStatus.CONFIRMED
            await leave(hub, raw)
        acks: Any = hub._delivery.acks
        devices: Any = acks._devices
        await eventually(lambda: not acks.journal.busy)
        del pending
        assert not acks.table.mailboxes
        assert not devices._known
        assert not devices._waiting
        assert not devices._loading
        assert not devices._parents._references
        assert not acks.catching_up._count_of
        kept = {json.loads(m.data)["device"] for u in store._messages.values() for m in u.values()}
        assert kept == {"phone"}


def test_devices_need_a_store() -> None:
    with pytest.raises(ConfigError, match="enable_offline_messages"):
        ACKConfig(per="device")
    with pytest.raises(ConfigError, match="per"):
        ACKConfig(per="client", enable_offline_messages=True)  # type: ignore[arg-type]


async def test_a_device_id_is_checked_as_other_ids_are() -> None:
    hub = Hub(authenticate=lambda request: Identity("ann", device_id="a\x1fb"))
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        with pytest.raises(Exception, match=r"500|closed|101"):
            await RawClient.open(hub, "/ws")
        assert "device id" in str(errors[0])
