"""Messages whose user is away are kept as long as somebody holds them, and no longer."""

from __future__ import annotations

import gc

import pytest

from tests.acks import acking
from wsc_fast import ACKMessage, Hub, MemoryOfflineStore, PendingACK
from wsc_fast.delivery.parked import Parked
from wsc_fast.testing import running

pytestmark = pytest.mark.usefixtures("closing_sockets")


def parked_of(hub: Hub) -> Parked:
    assert hub._delivery.acks is not None
    return hub._delivery.acks.parked_messages


async def accepted(hub: Hub, user: str, message_id: str) -> PendingACK:
    pending = hub.send_ack_message_to_user(user, ACKMessage(id=message_id))
    await pending.accepted()
    return pending


async def test_a_message_is_found_by_mailbox_and_id_while_somebody_holds_it() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):
        parked = parked_of(hub)
        one, two = await accepted(hub, "ann", "1"), await accepted(hub, "ann", "2")
        bob = await accepted(hub, "bob", "1")
        assert parked.get("ann", "1") is one
        assert parked.get("bob", "1") is bob
        assert parked.get("bob", "2") is parked.get("eve", "1") is None
        assert parked.of("ann") == [one, two]
        assert parked.keys() == ["ann", "bob"]
        assert set(parked) == {one, two, bob}
        assert len(parked) == 3
        assert parked.pop("ann", "1") is one
        assert parked.pop("ann", "1") is None
        parked.add(one)
        assert parked.of("ann") == [two, one]
        parked.clear()


async def test_a_message_that_nobody_holds_leaves_nothing_of_its_user() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):
        kept = await accepted(hub, "kept", "m")
        for n in range(100):
            await accepted(hub, f"user {n}", "m")
        gc.collect()
        assert parked_of(hub)._references.keys() == {"kept"}
        del kept
        gc.collect()
        assert not parked_of(hub)._references


async def test_a_newer_message_of_the_same_id_outlives_the_older_one() -> None:
    hub = acking(MemoryOfflineStore())
    async with running(hub):
        parked = Parked()
        older = await accepted(hub, "ann", "m")
        table = hub._delivery.acks.table  # type: ignore[union-attr]
        newer = table.found(table.mailbox_of("ann", "ann"), "m", b"{}", None, None)
        parked.add(older)
        parked.add(newer)
        del older
        gc.collect()
        assert parked.get("ann", "m") is newer
        table.mailboxes.clear()
