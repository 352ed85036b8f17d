"""Tests without a loop: the hub runs in a thread, and each call waits for its end."""

from __future__ import annotations

from typing import Any

from orders import ready

from wsc_fast import ACKMessage, Hub
from wsc_fast.testing import BlockingClock, Record, wait_until


def test_an_order(hub_client: Any) -> None:
    cook, ann = hub_client("cook"), hub_client("ann")
    ann.send({"dish": "soup"})
    cook.expect({"dish": "soup", "from": "ann"})
    ann.expect({"taken": "soup"})


def test_nobody_is_there_and_the_message_is_on_record(hub: Hub, hub_record: Record) -> None:
    ready(hub, "ann", "soup")
    sent = hub_record.expect(ACKMessage(content="soup is ready", type="ready"), user="ann")
    assert sent.acknowledged is False


def test_a_slow_phone_hears_again(hub: Hub, hub_client: Any, hub_clock: BlockingClock) -> None:
    ann = hub_client("ann")
    ready(hub, "ann", "soup")
    ann.expect(str)
    hub_clock.advance(12)
    ann.ack(ann.expect(str))
    wait_until(lambda: not hub.get_pending_acks(hub.get_clients_by_user("ann")[0].id))


def test_a_broken_connection(hub: Hub, hub_client: Any) -> None:
    ann = hub_client("ann")
    ann.cut()
    wait_until(lambda: hub.get_connected_clients() == 0)
    ann.reconnect().expect_nothing()
