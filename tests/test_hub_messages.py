"""HubMessages in the calls that take str and bytes too: to a client, to a room, to everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import crowd, join, known, named, stall
from wsc_fast import (
    ClientDisconnectedError,
    Hub,
    HubConfig,
    HubMessage,
    Priority,
    QueueFullError,
    RoomNotFoundError,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.messages import encode_hub_message
from wsc_fast.testing import TEXT, Frame, RawClient, eventually, running

# Each sends a message to the client "c0", among others.
SENDS: dict[str, Callable[[Hub, Any], object]] = {
    "broadcast": lambda hub, message: hub.broadcast(message),
    "broadcast_to_room": lambda hub, message: hub.broadcast_to_room("room", message),
    "send_to_client": lambda hub, message: hub.send_to_client("c0", message),
    "send": lambda hub, message: known(hub, "c0").send(message),
}
each_send = pytest.mark.parametrize("how", SENDS)


class OfTheApplication(HubMessage):
    """A message of the application's own."""


def with_room(config: HubConfig | None = None) -> Hub:
    hub = Hub(config, authenticate=named)
    hub.create_room("room")
    hub.on_client_connected(lambda client: hub.join_room(client.id, "room"))
    return hub


async def received(raw: RawClient, count: int) -> list[bytes]:
    frames = [await raw.recv() for _ in range(count)]
    assert {frame.opcode for frame in frames} == {TEXT}
    return [bytes(frame.payload) for frame in frames]


@each_send
@pytest.mark.parametrize("members", [1, 40])  # with outboxes, and as a batch
async def test_it_comes_as_its_json(how: str, members: int) -> None:
    hub = with_room()
    message = HubMessage(type="note", content="größe", data={"a": [1]}, require_ack=True)
    async with crowd(hub, members) as raws:
        SENDS[how](hub, message)
        SENDS[how](hub, "then a text")
        expected = [encode_hub_message(message), b"then a text"]
        reached = ["c0"] if "send" in how else list(raws)
        for name in reached:
            assert await received(raws[name], 2) == expected


@each_send
async def test_one_of_a_class_of_the_applications_own_is_taken(how: str) -> None:
    hub = with_room()
    message = OfTheApplication(content="x")
    async with crowd(hub, 1) as raws:
        SENDS[how](hub, message)
        assert await received(raws["c0"], 1) == [encode_hub_message(message)]


@each_send
async def test_another_thread_may_send_it(how: str) -> None:
    hub = with_room()
    message = HubMessage(content="x")
    async with crowd(hub, 1) as raws:
        await asyncio.to_thread(SENDS[how], hub, message)
        assert await received(raws["c0"], 1) == [encode_hub_message(message)]


@each_send
@pytest.mark.parametrize("members", [1, 40])
async def test_it_goes_before_messages_of_a_lower_priority(how: str, members: int) -> None:
    hub = with_room()
    by_priority = {each: HubMessage(content=each.name, priority=each) for each in Priority}
    async with crowd(hub, members) as raws:
        for each in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
            SENDS[how](hub, by_priority[each])
        SENDS[how](hub, "normal, too")
        wanted = [
            encode_hub_message(by_priority[Priority.CRITICAL]),
            encode_hub_message(by_priority[Priority.HIGH]),
            encode_hub_message(by_priority[Priority.NORMAL]),
            b"normal, too",
            encode_hub_message(by_priority[Priority.LOW]),
        ]
        assert await received(raws["c0"], 5) == wanted


@pytest.mark.parametrize("members", [1, 40])
async def test_who_is_excluded_gets_none(members: int) -> None:
    hub = with_room()
    async with crowd(hub, members) as raws:
        message = HubMessage(content="x", priority=Priority.HIGH)
        assert hub.broadcast(message, exclude=["c0"]) == members - 1
        assert hub.broadcast_to_room("room", message, exclude=["c0"]) == members - 1
        hub.broadcast("the end")
        assert await raws["c0"].recv() == Frame(TEXT, b"the end")


@each_send
@pytest.mark.parametrize(
    ("message", "text"),
    [
        (HubMessage(seq_no="1"), "HubMessage.seq_no"),  # type: ignore[arg-type]
        (HubMessage(data={"a": float("nan")}), "JSON cannot carry"),
        (HubMessage(priority=9), "priority"),  # type: ignore[arg-type]
        (object(), "bytes, str or a HubMessage"),
        ({"content": "x"}, "bytes, str or a HubMessage"),
    ],
)
async def test_one_that_cannot_be_sent_is_refused(how: str, message: Any, text: str) -> None:
    hub = with_room()
    failures: list[tuple[str, SendFailureReason]] = []

    class Handler:
        async def handle_send_failure(
            self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
        ) -> None:
            failures.append((recipient, reason))

    hub.add_send_failure_handler(Handler())
    async with crowd(hub, 1) as raws:
        with pytest.raises(ValidationError, match=text):
            SENDS[how](hub, message)
        hub.broadcast("the end")
        assert await raws["c0"].recv() == Frame(TEXT, b"the end")
        await eventually(lambda: len(failures) == 1)
        assert failures[0][1] is SendFailureReason.VALIDATION


async def test_the_errors_are_those_of_other_messages() -> None:
    hub = with_room(HubConfig(outbox_messages=1, overflow="drop_newest"))
    message = HubMessage(content="x", require_ack=False)
    lost: list[HubMessage] = []

    class Handler:
        async def handle_send_failure(
            self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
        ) -> None:
            lost.append(msg)

    hub.add_send_failure_handler(Handler())
    async with running(hub):
        raw, client = await join(hub, "c0")
        with pytest.raises(RoomNotFoundError):
            hub.broadcast_to_room("none", message)
        await stall(client)
        client.send(b"fills it")
        with pytest.raises(QueueFullError):
            hub.send_to_client("c0", message)
        raw.close()
        await eventually(lambda: not client.is_connected())
        with pytest.raises(ClientDisconnectedError):
            client.send(message)
        await eventually(lambda: [each.content for each in lost].count("x") == 2)


async def test_a_newer_one_replaces_one_of_the_same_key() -> None:
    hub = with_room()
    async with crowd(hub, 1) as raws:
        hub.broadcast(HubMessage(content="1", priority=Priority.HIGH), key="price")
        hub.broadcast(HubMessage(content="2", priority=Priority.HIGH), key="price")
        hub.broadcast("the end")
        first, last = await received(raws["c0"], 2)
        assert b'"content":"2"' in first
        assert last == b"the end"
