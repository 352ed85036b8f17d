"""Lists of messages: on_messages_received hears of all messages of one read at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support import join, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    Identity,
    ProtocolError,
    Request,
    ValidationError,
)
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    TEXT,
    RawClient,
    deflated,
    encode,
    eventually,
    running,
)

Heard = list[list[str | bytes]]


def listing(hub: Hub) -> Heard:
    """The lists with which a hub calls on_messages_received."""
    heard: Heard = []
    hub.on_messages_received(lambda client, messages: heard.append(messages))
    return heard


def texts(*payloads: str) -> bytes:
    """Frames of text, to be written at once."""
    return b"".join(encode(TEXT, payload.encode()) for payload in payloads)


async def test_the_messages_of_one_read_come_as_one_list(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    heard = listing(hub)
    async with running(hub):
        raw, client = await join(hub, "a")
        await raw.send_raw(texts("one", "zwei \N{SNOWMAN}") + encode(BINARY, b"\x00\xff"))
        await eventually(lambda: heard)
        await raw.send_raw(texts("alone"))
        await eventually(lambda: len(heard) == 2)
        assert heard == [["one", "zwei \N{SNOWMAN}", b"\x00\xff"], ["alone"]]
        assert client.stats().messages_in == hub.get_stats().messages_in == 4
        raw.close()


async def test_a_message_in_pieces_is_in_the_list_of_its_last_piece() -> None:
    hub = Hub(authenticate=named)
    heard = listing(hub)
    async with running(hub):
        raw, _ = await join(hub, "a")
        whole = texts("first", "second")
        await raw.send_raw(whole[:-3])
        await eventually(lambda: heard)
        await raw.send_raw(whole[-3:] + texts("third"))
        await eventually(lambda: len(heard) == 2)
        assert heard == [["first"], ["second", "third"]]
        raw.close()


@pytest.mark.parametrize("end", [encode(3, b""), encode(CLOSE, b"\x03\xe8"), b"\xc1\x80...."])
async def test_messages_before_an_end_are_heard_before_it(end: bytes) -> None:
    events: list[object] = []
    hub = Hub(authenticate=named)
    hub.on_messages_received(lambda client, messages: events.append(messages))
    hub.on_error(lambda client, error: events.append(type(error)))
    hub.on_client_disconnected(lambda client: events.append("gone"))
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send_raw(texts("one", "two") + end + texts("after"))
        await raw.recv_rest()
        await eventually(lambda: "gone" in events)
        raw.close()
    faults = [] if end == encode(CLOSE, b"\x03\xe8") else [ProtocolError]
    assert events == [["one", "two"], *faults, "gone"]


def test_a_hub_hears_messages_or_lists() -> None:
    hub = Hub()
    hub.on_messages_received(lambda client, messages: None)
    hub.on_messages_received(lambda client, messages: None)
    with pytest.raises(ValidationError, match="on_message_received or for on_messages_received"):
        hub.on_message_received(lambda client, message: None)
    hub = Hub()
    hub.on_message_received(lambda client, message: None)
    with pytest.raises(ValidationError, match="on_message_received or for on_messages_received"):
        hub.on_messages_received(lambda client, messages: None)
    with pytest.raises(ValidationError, match="cannot be called with"):
        Hub().on_messages_received(lambda client: None)  # type: ignore[arg-type]


async def test_several_functions_get_each_list_in_turn() -> None:
    hub = Hub(authenticate=named)
    calls: list[tuple[str, Any]] = []
    hub.on_messages_received(lambda client, messages: calls.append(("plain", messages)))

    @hub.on_messages_received
    async def later(client: Client, messages: list[str | bytes]) -> None:
        await asyncio.sleep(0)
        calls.append(("async", messages))

    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send_raw(texts("one", "two"))
        await eventually(lambda: len(calls) == 2)
        raw.close()
    assert calls == [("plain", ["one", "two"]), ("async", ["one", "two"])]


async def test_an_async_function_runs_for_one_list_at_a_time() -> None:
    hub = Hub(authenticate=named)
    heard: Heard = []
    under_way = 0
    gate = asyncio.Event()

    @hub.on_messages_received
    async def hear(client: Client, messages: list[str | bytes]) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await gate.wait()
        heard.append(messages)
        under_way -= 1

    async with running(hub):
        raw, client = await join(hub, "a")
        for number in range(3):
            await raw.send_raw(texts(f"{number}a", f"{number}b"))
            count = 2 * number + 2
            await eventually(lambda count=count: client.stats().messages_in == count)
        assert heard == []
        gate.set()
        await eventually(lambda: len(heard) == 3)
        assert heard == [[f"{number}a", f"{number}b"] for number in range(3)]
        raw.close()


async def test_the_bound_on_waiting_messages_counts_those_in_lists() -> None:
    hub = Hub(HubConfig(max_pending_callbacks=10), authenticate=named)
    heard: list[str | bytes] = []
    gate = asyncio.Event()

    @hub.on_messages_received
    async def hear(client: Client, messages: list[str | bytes]) -> None:
        await gate.wait()
        heard.extend(messages)
        messages.clear()  # the list is the function's own

    async with running(hub):
        raw, client = await join(hub, "a")
        for start in range(0, 40, 4):
            await raw.send_raw(texts(*(str(start + more) for more in range(4))))
            if start < 16:  # the fourth list is the third that waits, and has the eleventh message
                await eventually(lambda count=start + 4: client.stats().messages_in == count)
        assert hub.get_stats().limited["max_pending_callbacks"] == 1
        assert client.stats().messages_in == 16
        gate.set()
        await eventually(lambda: len(heard) == 40)
        assert heard == [str(number) for number in range(40)]
        raw.close()


@pytest.mark.parametrize("waits", [False, True])
async def test_authorize_publish_is_asked_for_each_message(waits: bool) -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: message != "bad")
    heard: Heard = []
    gate = asyncio.Event()

    @hub.on_messages_received
    async def hear(client: Client, messages: list[str | bytes]) -> None:
        if waits:
            await gate.wait()
        heard.append(messages)

    async with running(hub):
        raw, client = await join(hub, "a")
        await raw.send_raw(texts("first"))
        await eventually(lambda: client.stats().messages_in == 1)
        await raw.send_raw(texts("bad", "one", "bad", "two"))
        await raw.send_raw(texts("bad"))
        await eventually(lambda: client.stats().messages_in == 6)
        gate.set()
        await eventually(lambda: hub.get_stats().unauthorized == 3)
        await eventually(lambda: len(heard) == 2)
        assert heard == [["first"], ["one", "two"]]
        raw.close()


async def test_authorize_publish_is_asked_for_some_hundred_messages_at_once_at_most() -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: True)
    heard = listing(hub)
    async with running(hub):
        raw, client = await join(hub, "a")
        await raw.send_raw(texts("x") * 2_000)
        await eventually(lambda: client.stats().messages_in == 2_000)
        assert sum(map(len, heard)) == 2_000
        assert max(map(len, heard)) <= 256
        raw.close()


async def test_requests_keep_their_place_among_messages() -> None:
    hub = Hub(authenticate=named)
    events: list[object] = []
    hub.on_messages_received(lambda client, messages: events.append(messages))

    @hub.on_request
    async def answer(client: Client, data: Any) -> Any:
        await asyncio.sleep(0)
        events.append(data)
        return data

    async with running(hub):
        raw, _ = await join(hub, "a")
        asked = json.dumps({"type": "request", "id": "q1", "data": 7})
        await raw.send_raw(texts("one", "two", asked, '{"type": "request"}', "three", "four"))
        assert json.loads((await raw.recv()).payload)["data"] == 7
        # A text that begins like a request, and is none, is a message in a list of its own.
        await eventually(lambda: len(events) == 4)
        assert events == [["one", "two"], 7, ['{"type": "request"}'], ["three", "four"]]
        raw.close()


async def test_a_function_may_empty_its_list_beside_requests() -> None:
    hub = Hub(authenticate=named)
    heard: list[str | bytes] = []
    failed: list[BaseException] = []
    hub.on_error(lambda client, error: failed.append(error))
    hub.on_request(lambda client, data: data)

    @hub.on_messages_received
    def take_out(client: Client, messages: list[str | bytes]) -> None:
        while messages:
            heard.append(messages.pop(0))

    async with running(hub):
        raw, _ = await join(hub, "a")
        asked = json.dumps({"type": "request", "id": "q1", "data": 7})
        await raw.send_raw(texts("one", "two", asked))
        assert json.loads((await raw.recv()).payload)["data"] == 7
        raw.close()
    assert (heard, failed) == (["one", "two"], [])


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_list_holds_some_256_kib_at_most(compressed: bool) -> None:
    config = HubConfig(enable_compression=compressed, max_message_size=1 << 20)
    hub = Hub(config, authenticate=named)
    heard = listing(hub)
    size, count = 100_000, 40
    payloads = [str(number % 10).encode() * size for number in range(count)]
    offer = ("Sec-WebSocket-Extensions", "permessage-deflate; client_no_context_takeover")
    async with running(hub):
        raw, _ = await join(hub, "a", headers=[offer] if compressed else [])
        for payload in payloads:
            plain, rsv = (deflated(payload), 4) if compressed else (payload, 0)
            await raw.send(TEXT, plain, rsv=rsv)
        await eventually(lambda: sum(map(len, heard)) == count)
        raw.close()
    assert [message for messages in heard for message in messages] == [
        payload.decode() for payload in payloads
    ]
    assert max(map(len, heard)) <= 3


async def test_messages_that_came_before_the_identity_are_one_list() -> None:
    gate = asyncio.Event()

    async def authenticate(request: Request) -> Identity:
        await gate.wait()
        return Identity(user_id="a")

    hub = Hub(authenticate=authenticate)
    heard = listing(hub)
    async with running(hub):
        raw = await RawClient.open(hub)
        await raw.send_raw(texts("one", "two"))
        await raw.send_raw(texts("three"))
        gate.set()
        await eventually(lambda: sum(map(len, heard)) == 3)
        assert [message for messages in heard for message in messages] == ["one", "two", "three"]
        raw.close()


async def test_an_error_of_the_function_is_told_and_the_next_list_comes() -> None:
    hub = Hub(authenticate=named)
    errors: list[BaseException] = []
    heard: Heard = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_messages_received
    def hear(client: Client, messages: list[str | bytes]) -> None:
        heard.append(messages)
        if messages == ["bad", "other"]:
            raise ValueError("of the application")

    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send_raw(texts("bad", "other"))
        await eventually(lambda: errors)
        await raw.send_raw(texts("good"))
        await eventually(lambda: len(heard) == 2)
        assert [str(error) for error in errors] == ["of the application"]
        raw.close()


async def test_acknowledgements_are_in_no_list() -> None:
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig())
    heard = listing(hub)
    async with running(hub):
        raw, _ = await join(hub, "a")
        pending = hub.send_ack_message_to_user("a", ACKMessage(content="that"))
        message_id = json.loads((await raw.recv()).payload)["id"]
        answer = json.dumps({"type": "ack", "message_id": message_id})
        await raw.send_raw(texts("one", answer, "two"))
        await pending
        await eventually(lambda: heard)
        assert heard == [["one", "two"]]
        raw.close()
