"""Tests on the loop of the test: orders, acknowledgements, time, a store that fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from orders import ready

from wsc_fast import ACKMessage, AckTimeoutError, Hub
from wsc_fast.testing import (
    Clock,
    FaultyStore,
    HubClient,
    Record,
    RefusedError,
    eventually,
    eventually_async,
)


async def test_the_kitchen_hears_of_an_order(hub_client: Any) -> None:
    cook, ann = await hub_client("cook"), await hub_client("ann")
    await ann.send({"dish": "soup"})
    await ann.expect({"taken": "soup"})
    await cook.expect({"dish": "soup", "from": "ann"})
    await ann.expect_nothing()


async def test_nobody_comes_in_without_a_token(hub_client: Any) -> None:
    with pytest.raises(RefusedError, match="401"):
        await hub_client()


async def test_a_dish_that_is_ready_waits_for_its_customer(hub: Hub, hub_client: Any) -> None:
    cook = await hub_client("cook")
    await cook.send({"ready": "soup", "for": "ann"})
    await cook.expect_nothing()
    ann = await hub_client("ann")
    message = await ann.expect(ACKMessage(content="soup is ready", type="ready"))
    await ann.ack(message)
    await eventually(lambda: not hub.get_pending_acks(hub.get_clients_by_user("ann")[0].id))


async def test_a_customer_is_told_again(
    hub: Hub, hub_client: Any, hub_clock: Clock, hub_record: Record
) -> None:
    ann = await hub_client("ann")
    ready(hub, "ann", "soup")
    await ann.expect(ACKMessage(content="soup is ready", type="ready"))
    await hub_clock.advance(12)
    await ann.ack(await ann.expect(ACKMessage(content="soup is ready", type="ready")))
    await eventually(lambda: hub_record.expect(user="ann").acknowledged)


async def test_a_minute_without_an_answer_is_too_long(
    hub: Hub, hub_client: Any, hub_clock: Clock, hub_record: Record
) -> None:
    await hub_client("ann")
    ready(hub, "ann", "soup")
    await hub_clock.advance(120)
    with pytest.raises(AckTimeoutError):
        await hub_record.expect(user="ann").result


async def test_a_phone_in_a_tunnel_is_closed(hub: Hub, hub_client: Any, hub_clock: Clock) -> None:
    phone = await hub_client("ann", answers_pings=False)
    await hub_client("bob")
    await hub_clock.advance(90)
    assert hub.get_all_connected_users() == ["bob"]
    await phone.expect_close(1001)


async def test_a_full_disk_is_told_to_the_sender(hub: Hub, store: FaultyStore) -> None:
    store.fail()
    pending = hub.send_ack_message_to_user("ann", ACKMessage(content="soup is ready"))
    with pytest.raises(Exception, match="the test has the store fail"):
        await pending
    store.mend()
    await hub.send_ack_message_to_user("ann", ACKMessage(content="again")).accepted()


async def test_two_hubs_are_one(hub_cluster: Any, hub_client: Any) -> None:
    one, two = await hub_cluster(2)
    cook = await hub_client("cook", hub=one)
    ann = await hub_client("ann", hub=two)
    await ann.send({"dish": "soup"})
    await cook.expect({"dish": "soup", "from": "ann"})


async def test_the_bus_is_away(hub_cluster: Any, hub_client: Any) -> None:
    one, two = await hub_cluster(2)
    cook = await hub_client("cook", hub=one)
    ann = await hub_client("ann", hub=two)
    hub_cluster.bus.away()
    await ann.send({"dish": "soup"})
    await ann.expect({"taken": "soup"})  # her own hub goes on
    hub_cluster.bus.mend()
    await eventually_async(lambda: heard(cook, ann))


async def heard(cook: HubClient, ann: HubClient) -> bool:
    """Whether an order reaches the kitchen again: the hubs connect to the bus by themselves."""
    before = len(cook.received)
    await ann.send({"dish": "tea"})
    await ann.expect({"taken": "tea"})
    await asyncio.sleep(0.3)  # at most five messages a second
    return len(cook.received) > before
