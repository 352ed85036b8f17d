"""The fault switches of the kit, and its record of what was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support import named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    AckStatus,
    ClientNotFoundError,
    Hub,
    HubMessage,
    MemoryOfflineStore,
    OfflineStoreError,
    SharedOfflineStore,
    SQLiteOfflineStore,
    UserOfflineError,
)
from wsc_fast.testing import Clock, FaultProxy, FaultyStore, HubClient, Record, eventually, running

MESSAGE = ACKMessage(content="x")


def storing(store: FaultyStore) -> Hub:
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True), store=store)
    return hub


async def test_a_store_fails_and_is_mended() -> None:
    store = FaultyStore(MemoryOfflineStore())
    async with running(storing(store)) as hub:
        store.fail()
        with pytest.raises(OfflineStoreError, match="the test has the store fail"):
            await hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        store.fail(OfflineStoreError("the disk is full"))
        with pytest.raises(OfflineStoreError, match="the disk is full"):
            await hub.send_ack_message_to_user("ann", ACKMessage(content="y"))
        store.mend()
        await hub.send_ack_message_to_user("ann", ACKMessage(content="z")).accepted()
        assert await store.count("ann") == 1
        assert store.calls["append"] >= 3


async def test_a_store_is_late_or_away() -> None:
    with Clock() as clock:
        clock.attach()
        store = FaultyStore(MemoryOfflineStore())
        async with running(storing(store)) as hub:
            store.late(1.5)
            storing_it = asyncio.ensure_future(
                hub.send_ack_message_to_user("ann", ACKMessage(content="x")).accepted()
            )
            await clock.advance(1)
            assert not storing_it.done()
            await clock.advance(1)
            await storing_it
            store.away()
            later = [
                asyncio.ensure_future(hub.send_ack_message_to_user("ann", message).accepted())
                for message in (ACKMessage(content="y"), ACKMessage(content="z"))
            ]
            await clock.advance(30)
            assert not any(each.done() for each in later)
            store.mend()
            await asyncio.gather(*later)
            kept = [json.loads(each.data)["content"] for each in await store.read("ann")]
            assert kept == ["x", "y", "z"]


async def test_a_shared_store_stays_shared(tmp_path: object) -> None:
    shared = FaultyStore.of(SQLiteOfflineStore(f"{tmp_path}/store.db"))
    assert isinstance(shared, SharedOfflineStore)
    assert not isinstance(FaultyStore.of(MemoryOfflineStore()), SharedOfflineStore)
    async with running(storing(shared)) as hub:
        await hub.send_ack_message_to_user("ann", MESSAGE).accepted()
        assert await shared.missing("ann", [MESSAGE.id, "other"]) == ["other"]


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """A server of TCP that answers with what it gets; its port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_proxy_hands_on_and_has_faults(any_loop: str) -> None:
    async with echoing() as port, FaultProxy("127.0.0.1", port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.read(100) == b"one"
        proxy.freeze()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(100)
        proxy.mend()
        assert await reader.read(100) == b"two"
        proxy.late(0.1)
        begin = asyncio.get_running_loop().time()
        writer.write(b"three")
        assert await reader.read(100) == b"three"
        assert asyncio.get_running_loop().time() - begin > 0.15  # there and back
        proxy.away()
        assert await ended(reader)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await ended(reader)
        writer.close()
        proxy.mend()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"four")
        assert await reader.read(100) == b"four"
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(10):
        try:
            return await reader.read(100) == b""
        except ConnectionError:
            return True


async def test_a_record_has_what_was_sent_to_whom() -> None:
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig())
    hub.create_room("r")
    record = Record(hub)
    async with running(hub), await HubClient.connect(hub, query={"id": "a"}) as client:
        hub.broadcast("all", key="k")
        hub.broadcast_to_room("r", message=b"room")
        hub.send_to_client("a", "client")
        hub.send_to_user("a", HubMessage(content="user"))
        await hub.publish("r", "published")
        with pytest.raises(ClientNotFoundError):
            hub.send_text_to_client("nobody", "x")
        with pytest.raises(UserOfflineError):
            hub.send_to_user("away", HubMessage(content="x"))
        pending = hub.send_ack_message_to_user("a", MESSAGE)
        await client.expect(MESSAGE, skip=True)
        assert record.expect(MESSAGE, user="a", acknowledged=False).result is pending
        await client.ack(MESSAGE.id)
        assert await pending is AckStatus.CONFIRMED
        assert record.expect(MESSAGE, user="a", acknowledged=True).result is pending
        with pytest.raises(AssertionError, match=r"to user 'away': .*raised UserOff"):
            record.expect("never", user="away")
    assert [sent.message for sent in record.to_room("r")] == [b"room", "published"]
    assert record.to_all()[0].options == {"key": "k"}
    assert record.to_client("a")[0].payload == "client"
    assert isinstance(record.to_client("nobody")[0].error, ClientNotFoundError)
    assert [sent.acknowledged for sent in record.to_user("a")] == [None, True]
    record.close()
    before = len(record)
    with pytest.raises(Exception, match="has stopped"):
        hub.broadcast("x")
    assert len(record) == before


async def test_a_client_that_reconnects_leaves_nothing() -> None:
    async with running(Hub(authenticate=named)) as hub:
        client = await HubClient.connect(hub, query={"id": "a"})
        client.drop()
        await eventually(lambda: hub.get_connected_clients() == 0)
        again = await client.reconnect()
        await again.close()
