"""Kept rooms on one hub: what clients of wsc.1 get, what others get, and recovery."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.aware import AWARE, Aware, keeping
from tests.support import crowd, join, known, named
from wsc_fast import (
    Hub,
    HubConfig,
    HubMessage,
    HubStateError,
    PermissionDeniedError,
    Priority,
    QueueFullError,
    RoomNotFoundError,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.testing import BINARY, CLOSE, TEXT, RawClient, eventually, running

# --- what clients see ---


async def test_an_aware_client_gets_positions_and_another_what_it_always_got(any_loop: str) -> None:
    hub = keeping()
    async with running(hub):
        plain, _ = await join(hub, "plain")
        aware = await Aware.open(hub, "aware")
        head, payload = await aware.recv()
        assert head == {"room": "r", "pos": head["pos"], "recovered": False, "first": True}
        assert payload == b""
        assert hub.broadcast_to_room("r", "one\ntwo") == 2
        assert hub.broadcast_to_room("r", b"\x00\n") == 2
        frame = await plain.recv()
        assert (frame.opcode, frame.payload) == (TEXT, b"one\ntwo")
        frame = await plain.recv()
        assert (frame.opcode, frame.payload) == (BINARY, b"\x00\n")
        first, payload = await aware.recv()
        assert (set(first), first["room"], payload) == ({"room", "pos"}, "r", b"one\ntwo")
        second, payload = await aware.recv()
        assert payload == b"\x00\n"
        assert len({head["pos"], first["pos"], second["pos"]}) == 3
        hub.send_to_client("aware", "direct")
        hub.broadcast("all")
        assert [await aware.recv(), await aware.recv()] == [({}, b"direct"), ({}, b"all")]
        plain.close()
        aware.close()


async def test_a_client_that_comes_back_gets_what_it_missed(any_loop: str) -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.broadcast_to_room("r", "0")
        await aware.recv()
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        for number in range(1, 4):
            hub.broadcast_to_room("r", str(number))
        back = await Aware.open(hub, "a", aware.positions)
        assert await back.texts(3) == [b"1", b"2", b"3"]
        head, payload = await back.recv()
        assert (head["recovered"], head["missed"], payload) == (True, 3, b"")
        assert head["pos"] == back.positions["r"]
        hub.broadcast_to_room("r", "4")
        assert await back.texts(1) == [b"4"]
        back.close()


async def test_who_joined_an_empty_room_recovers_its_first_messages() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        hub.broadcast_to_room("r", "first")
        back = await Aware.open(hub, "a", aware.positions)
        assert (await back.recv())[1] == b"first"
        assert (await back.recv())[0]["recovered"] is True
        back.close()


async def test_a_room_lives_on_for_the_grace_after_its_last_member_and_not_its_first_join() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "aware")
        await aware.recv()
        rooms = hub._node._rooms
        now = asyncio.get_running_loop().time()
        rooms.look(now, 5.0)
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        rooms.look(now + 7.0, 5.0)
        rooms.look(now + 7.0 + 14.9, 5.0)
        assert hub.get_room_clients("r") == []
        rooms.look(now + 7.0 + 15.1, 5.0)
        with pytest.raises(RoomNotFoundError):
            hub.get_room_clients("r")


async def test_who_missed_more_than_is_kept_is_told_so() -> None:
    hub = keeping(size=3)
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.broadcast_to_room("r", "seen")
        await aware.recv()
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        for number in range(100):  # more than the ring has, too
            hub.broadcast_to_room("r", str(number))
        back = await Aware.open(hub, "a", aware.positions)
        head, _ = await back.recv()
        assert head["recovered"] is False
        assert "first" not in head
        hub.broadcast_to_room("r", "next")
        assert await back.texts(1) == [b"next"]
        back.close()


@pytest.mark.parametrize("position", ["1.unknown", "nonsense", "999999999999999999999.x", "-"])
async def test_a_position_of_nobody_recovers_nothing(position: str) -> None:
    hub = keeping()
    async with running(hub):
        hub.broadcast_to_room("r", "before")
        back = await Aware.open(hub, "a", {"r": position})
        head, _ = await back.recv()
        assert head["recovered"] is False
        assert hub.get_stats().connected_clients == 1
        back.close()


async def test_more_than_the_ring_is_read_from_the_history() -> None:
    hub = keeping(size=400)
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        aware.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        for number in range(400):
            hub.broadcast_to_room("r", str(number))
        back = await Aware.open(hub, "a", aware.positions)
        assert await back.texts(400) == [str(number).encode() for number in range(400)]
        assert (await back.recv())[0] == {
            "room": "r",
            "pos": back.positions["r"],
            "recovered": True,
            "missed": 400,
        }
        back.close()


async def test_the_history_outlasts_a_stop_of_the_hub() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.broadcast_to_room("r", "0")
        await aware.recv()
    aware.close()
    async with running(hub):
        hub.broadcast_to_room("r", "1")
        back = await Aware.open(hub, "a", aware.positions)
        assert await back.texts(1) == [b"1"]
        assert (await back.recv())[0]["recovered"] is True
        back.close()


async def test_an_excluded_aware_client_hears_of_the_position_alone() -> None:
    hub = keeping()
    async with running(hub):
        first, second = await Aware.open(hub, "a"), await Aware.open(hub, "b")
        await first.recv()
        await second.recv()
        hub.broadcast_to_room("r", "text", exclude=["a"])
        assert (await second.recv())[1] == b"text"
        head, payload = await first.recv()
        assert (head["skipped"], head["pos"], payload) == (True, second.positions["r"], b"")
        first.close()
        second.close()


async def test_a_hub_message_in_a_kept_room_has_the_place_of_any_other() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.broadcast_to_room("r", "one")
        hub.broadcast_to_room("r", HubMessage(content="urgent", priority=Priority.CRITICAL))
        assert (await aware.recv())[1] == b"one"
        assert json.loads((await aware.recv())[1])["content"] == "urgent"
        history = await hub.cluster.history("r")
        assert history[0].message == "one"
        assert isinstance(history[1].message, HubMessage)
        assert [each.position for each in history][-1] == aware.positions["r"]
        aware.close()


async def test_compression_holds_for_aware_clients_too() -> None:
    hub = keeping(hub=Hub(HubConfig(enable_compression=True), authenticate=named))
    headers = (*AWARE, ("Sec-WebSocket-Extensions", "permessage-deflate"))
    text = "word " * 100
    async with running(hub):
        plain = await Aware.open(hub, "plain")
        packed = await Aware.open(hub, "packed", headers=headers)
        await plain.recv()
        await packed.recv()
        hub.broadcast_to_room("r", text)
        assert (await plain.recv())[1] == text.encode()
        frame = await packed.raw.recv()
        assert frame.rsv == 4
        import zlib

        payload = zlib.decompressobj(-15).decompress(frame.payload + b"\0\0\xff\xff")
        assert payload.partition(b"\n")[2] == text.encode()
        plain.close()
        packed.close()


async def test_many_members_get_a_batch_in_their_forms() -> None:
    hub = keeping(hub=Hub(authenticate=named))
    async with running(hub):
        plain = [(await join(hub, f"p{number}"))[0] for number in range(40)]
        aware = [await Aware.open(hub, f"a{number}") for number in range(40)]
        for each in aware:
            await each.recv()
        for number in range(3):
            assert hub.broadcast_to_room("r", f"to all {number}") == 80
        hub.broadcast("everybody")
        for raw in plain:
            assert [(await raw.recv()).payload for _ in range(4)] == [
                b"to all 0",
                b"to all 1",
                b"to all 2",
                b"everybody",
            ]
        positions = set()
        for each in aware:
            assert await each.texts(3) == [b"to all 0", b"to all 1", b"to all 2"]
            assert await each.recv() == ({}, b"everybody")
            positions.add(each.positions["r"])
        assert len(positions) == 1
        for raw in (*plain, *(each.raw for each in aware)):
            raw.close()


# --- the hello ---


async def test_the_application_hears_of_a_client_once_its_hello_has_come() -> None:
    heard: list[str] = []
    hub = Hub(authenticate=named)
    hub.on_client_connected(lambda client: heard.append(client.id))
    hub.on_message_received(lambda client, message: heard.append(repr(message)))
    async with running(hub):
        raw = await RawClient.open(hub, "/ws?id=a", headers=AWARE)
        raw2, _ = await join(hub, "b")
        assert heard == ["b"]
        await raw.send(TEXT, b'{"hello":1}\n')
        await eventually(lambda: heard == ["b", "a"])
        await raw.send(TEXT, b"\nto the application")
        await raw.send(BINARY, b"\nbytes")
        await raw.send(TEXT, b'{"later":1}\nwith a head')
        await raw.send(TEXT, b'{"later":1}\n')
        await raw.send(TEXT, b"\n")
        await eventually(lambda: len(heard) == 6)
        assert heard[2:] == ["'to the application'", "b'bytes'", "'with a head'", "''"]
        raw.close()
        raw2.close()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"no head", b"no head line"),
        (b"\nno hello", b"no head line"),
        (b'{"pos":{}}\n', b"no hello"),
        (b'{"hello":2}\n', b"another version"),
        (b'{"hello":1,"pos":{"r":5}}\n', b"head line"),
        (b'{"hello":1,"pos":{"r":"a b"}}\n', b"head line"),
        (b"{}}\n", b"head line"),
        (b'{"hello":1,"pos":' + b'{"r":"x",' * 3 + b"\n", b"head line"),
        (b" " * 20_000 + b"\n", b"no head line"),
        (
            json.dumps({"hello": 1, "pos": {str(n): "x" for n in range(101)}}).encode() + b"\n",
            b"100",
        ),
    ],
)
async def test_a_message_without_a_sound_head_ends_its_client_alone(
    message: bytes, reason: bytes
) -> None:
    hub = keeping()
    async with running(hub):
        other, _ = await join(hub, "other")
        raw = await RawClient.open(hub, "/ws?id=a", headers=AWARE)
        await raw.send(TEXT, message)
        frame = await raw.recv()
        assert frame.opcode == CLOSE
        assert frame.payload[:2] == (1002).to_bytes(2, "big")
        assert reason in frame.payload
        assert hub.broadcast_to_room("r", "still here") == 1
        assert (await other.recv()).payload == b"still here"
        raw.close()
        other.close()


async def test_a_hello_that_does_not_come_ends_the_connection() -> None:
    hub = keeping(hub=Hub(HubConfig(handshake_timeout=0.3), authenticate=named))
    async with running(hub):
        raw = await RawClient.open(hub, "/ws?id=a", headers=AWARE)
        frame = await raw.recv()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1008).to_bytes(2, "big"))
        assert hub.get_stats().limited["handshake_timeout"] == 1
        raw.close()


async def test_the_query_asks_for_it_beside_another_subprotocol() -> None:
    hub = keeping(hub=Hub(HubConfig(subprotocols=("chat.v2",)), authenticate=named))
    async with running(hub):
        raw = await RawClient.open(
            hub, "/ws?id=a&wsc=1", headers=(("Sec-WebSocket-Protocol", "chat.v2"),)
        )
        assert b"chat.v2" in raw.response
        client = Aware(raw)
        await client.send_head({"hello": 1})
        assert (await client.recv())[0]["first"] is True
        assert known(hub, "a").subprotocol == "chat.v2"
        raw.close()


async def test_an_async_authenticate_and_a_hello_are_both_awaited(any_loop: str) -> None:
    async def authenticate(request: Any) -> Any:
        await asyncio.sleep(0)
        return named(request)

    hub = keeping(hub=Hub(authenticate=authenticate))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        assert (await aware.recv())[0]["first"] is True
        anonymous = keeping(hub=Hub())
        async with running(anonymous):
            raw = await RawClient.open(anonymous, "/ws", headers=AWARE)
            nobody = Aware(raw)
            await nobody.send_head({"hello": 1})
            assert (await nobody.recv())[0]["first"] is True
            raw.close()
        aware.close()


@pytest.mark.parametrize("payload", [b"", b"text"])
async def test_a_head_alone_counts_as_a_message(payload: bytes) -> None:
    hub = keeping(hub=Hub(HubConfig(message_rate=10.0), authenticate=named))
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        for _ in range(100):
            await aware.send_head({}, payload)
        frame = await aware.raw.recv()
        assert (frame.code, frame.payload[2:]) == (1008, b"too many messages")
        assert 10 <= hub.get_stats().messages_in <= 12
        aware.close()


# --- rooms, joins ---


async def test_a_kept_room_is_made_by_its_first_member_and_goes_with_its_last() -> None:
    hub = keeping()
    async with running(hub):
        assert hub.get_rooms() == []
        assert hub.broadcast_to_room("r", "to nobody") == 0
        raw, _ = await join(hub, "a")
        assert hub.get_rooms() == ["r"]
        assert hub.get_room_clients("r") == ["a"]
        raw.close()
        await eventually(lambda: hub.get_rooms() == [], timeout=20)
        assert [each.message for each in await hub.cluster.history("r")] == ["to nobody"]
        with pytest.raises(RoomNotFoundError):
            hub.broadcast_to_room("plain", "text")


async def test_a_join_that_is_not_allowed_makes_no_room() -> None:
    hub = Hub(authenticate=named, authorize_join=lambda client, room_id: False)
    hub.keep("r*")
    async with crowd(hub, 1):
        with pytest.raises(PermissionDeniedError):
            hub.join_room("c0", "r")
        assert hub.get_rooms() == []


async def test_a_second_join_of_a_connection_begins_anew() -> None:
    hub = keeping()
    async with running(hub):
        aware = await Aware.open(hub, "a")
        await aware.recv()
        hub.leave_room("a", "r")
        hub.broadcast_to_room("r", "missed")
        hub.join_room("a", "r")
        assert (await aware.recv())[0]["first"] is True
        hub.join_room("a", "r")  # it is a member already
        hub.broadcast_to_room("r", "got")
        assert (await aware.recv())[1] == b"got"
        aware.close()


# --- publish and history ---


async def test_publish_says_where_the_message_stands() -> None:
    hub = keeping()
    async with running(hub):
        one = await hub.publish("r", "one", idempotency_key="k")
        again = await hub.publish("r", "one", idempotency_key="k")
        two = await hub.publish("r", "two")
        assert (one.duplicate, again.duplicate, two.duplicate) == (False, True, False)
        assert one.position == again.position != two.position
        assert [each.message for each in await hub.cluster.history("r")] == ["one", "two"]
        after = await hub.cluster.history("r", after=one.position)
        assert [each.message for each in after] == ["two"]
        with pytest.raises(LookupError, match="does not reach back"):
            await hub.cluster.history("r", after="0.nobody")
        elsewhere = await asyncio.to_thread(lambda: asyncio.run(hub.publish("r", "three")))
        assert elsewhere.position not in (one.position, two.position)


async def test_bad_arguments_are_refused_at_once() -> None:
    hub = Hub()
    for wrong in ({"size": 0}, {"size": 10_001}, {"size": 1.5}, {"ttl": 0.5}, {"ttl": 86_401}):
        with pytest.raises(ValidationError):
            hub.keep("r", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        hub.keep("")
    hub.keep("r*")
    with pytest.raises(HubStateError):
        await hub.publish("r", "text")
    with pytest.raises(HubStateError):
        hub.broadcast_to_room("r", "text")
    async with running(hub):
        with pytest.raises(HubStateError, match="before the start"):
            hub.keep("s*")
        with pytest.raises(ValidationError, match="gap_unaware"):
            hub.keep("s*", gap_unaware="other")  # type: ignore[arg-type]
        with pytest.raises(RoomNotFoundError):
            await hub.publish("plain", "text")
        with pytest.raises(ValidationError, match="idempotency_key"):
            await hub.publish("r", "text", idempotency_key="")
        with pytest.raises(ValidationError, match="at most 1052672 bytes on a bus, not 1100014"):
            await hub.publish("r", "x" * 1_100_000)
        for wrong_limit in (0, 1_001, True):
            with pytest.raises(ValidationError, match="limit"):
                await hub.cluster.history("r", limit=wrong_limit)
        with pytest.raises(ValidationError):
            await hub.cluster.history("plain")


# --- clients that are slow ---


@contextmanager
def overflowing(policy: str) -> Iterator[Hub]:
    yield keeping(
        hub=Hub(
            HubConfig(overflow=policy, outbox_messages=8, outbox_bytes=1 << 20),
            authenticate=named,
        )
    )


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", "drop_newest"])
async def test_an_aware_client_is_closed_rather_than_left_with_a_gap(policy: str) -> None:
    with overflowing(policy) as hub:
        async with running(hub):
            aware = await Aware.open(hub, "a")
            await aware.recv()
            for number in range(20):
                hub.broadcast_to_room("r", str(number))
            frame = await aware.raw.recv()
            texts = []
            while frame.opcode != CLOSE:
                texts.append(frame.payload.partition(b"\n")[2])
                frame = await aware.raw.recv()
            assert frame.payload[:2] == (1013).to_bytes(2, "big")
            assert texts == [str(number).encode() for number in range(len(texts))]
            aware.close()


@pytest.mark.parametrize("text", ["hello", "17", '{"bus":1}', "a\nb"])
async def test_failure_handlers_hear_the_message_that_found_no_room(text: str) -> None:
    heard: list[Any] = []

    class Handler:
        def handle_send_failure(
            self, msg: Any, recipient: str, reason: SendFailureReason, error: Exception
        ) -> None:
            heard.append(msg.content)

    with overflowing("disconnect") as hub:
        hub.add_send_failure_handler(Handler())
        async with running(hub):
            aware = await Aware.open(hub, "a")
            await aware.recv()
            for _ in range(8):
                hub.send_to_client("a", "to fill its outbox")
            with pytest.raises(QueueFullError):
                hub.send_to_client("a", text)
            await eventually(lambda: heard == [text])
            aware.close()
