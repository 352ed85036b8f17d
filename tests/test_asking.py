"""Requests of clients: on_request, on_join_request, and messages that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.aware import Aware, keeping
from tests.support import TOO_DEEP, join, named
from wsc_fast import Client, Hub, HubConfig, RequestError, ValidationError
from wsc_fast.testing import BINARY, TEXT, RawClient, encode, eventually, running


def request(kind: str, number: int, **fields: Any) -> bytes:
    return json.dumps({"type": kind, "id": f"q{number}", **fields}).encode()


async def asked(raw: RawClient, kind: str, number: int, **fields: Any) -> Any:
    """The answer to a request: its data, or its error."""
    await raw.send(TEXT, request(kind, number, **fields))
    return await answer_to(raw, number)


async def answer_to(raw: RawClient, number: int) -> Any:
    frame = await raw.recv()
    answer = json.loads(frame.payload)
    assert frame.opcode == TEXT
    assert (answer.pop("type"), answer.pop("id")) == ("answer", f"q{number}")
    assert answer.keys() <= {"data"} or answer.keys() == {"error"}
    return answer.get("error", answer.get("data"))


def echoing(**options: Any) -> Hub:
    """A hub that answers a request with its data."""
    hub = Hub(authenticate=named, **options)
    hub.on_request(lambda client, data: data)
    return hub


# --- requests ---


@pytest.mark.parametrize("data", [None, 7, "text", [1, {"a": None}], {"nested": {"b": [True]}}])
async def test_a_request_is_answered_with_what_the_callback_returns(data: object) -> None:
    hub = echoing()
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert await asked(raw, "request", 1, data=data) == data
        assert hub.get_stats().requests_answered == 1
        raw.close()


async def test_the_callback_gets_client_and_data_and_may_be_async(any_loop: str) -> None:
    hub = Hub(authenticate=named)

    @hub.on_request
    async def answer(client: Client, data: Any) -> list[Any]:
        await asyncio.sleep(0)
        return [client.id, data]

    async with running(hub):
        raw, _ = await join(hub, "a")
        assert await asked(raw, "request", 1, data={"x": 1}) == ["a", {"x": 1}]
        assert await asked(raw, "request", 2) == ["a", None]
        raw.close()


async def test_an_error_of_the_application_is_the_answer() -> None:
    hub = Hub(authenticate=named)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_request
    async def answer(client: Client, data: Any) -> None:
        raise RequestError("no-price", f"there is no price of {data}")

    async with running(hub):
        raw, _ = await join(hub, "a")
        expected = {"code": "no-price", "message": "there is no price of tea"}
        assert await asked(raw, "request", 1, data="tea") == expected
        raw.close()
    assert errors == []
    stats = hub.get_stats()
    assert (stats.requests_answered, stats.requests_refused) == (0, 1)


@pytest.mark.parametrize("is_async", [False, True])
async def test_another_exception_tells_the_client_nothing_and_the_application_all(
    is_async: bool,
) -> None:
    hub = Hub(authenticate=named)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    def plain(client: Client, data: Any) -> None:
        raise RuntimeError("secret")

    async def later(client: Client, data: Any) -> None:
        raise RuntimeError("secret")

    hub.on_request(later if is_async else plain)
    async with running(hub):
        raw, client = await join(hub, "a")
        failed = {"code": "failed", "message": "the request failed"}
        assert await asked(raw, "request", 1) == failed
        await eventually(lambda: errors)
        assert client.is_connected()
        raw.close()
    assert [str(error) for error in errors] == ["secret"]


async def test_an_answer_that_json_cannot_hold_is_an_error() -> None:
    hub = Hub(authenticate=named)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    hub.on_request(lambda client, data: object())
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert (await asked(raw, "request", 1))["code"] == "failed"
        raw.close()
    assert [type(error) for error in errors] == [TypeError]


async def test_requests_are_no_messages_and_messages_no_requests() -> None:
    hub = echoing()
    heard: list[str | bytes] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    texts = [
        b'{"type":"request"}',  # no id
        b'{"type":"request","id":""}',
        b'{"type":"request","id":7}',
        b'{"type":"request","id":"' + b"x" * 65 + b'"}',
        b'{"type":"request","id":"q1"',
        b'{"id":"q1","type":"request"}',  # the type is not the first field
        b'{"type":"requests","id":"q1"}',
        b'{"type":"join","id":"q1"}',  # no room
        b'{"type":"request","id":"q1","data":' + b"[" * TOO_DEEP,
        b"{}",
        b"plain",
    ]
    async with running(hub):
        raw, _ = await join(hub, "a")
        for text in texts:
            await raw.send(TEXT, text)
        await raw.send(BINARY, b'{"type":"request","id":"q1"}')
        assert await asked(raw, "request", 1, data="end") == "end"
        raw.close()
    assert heard == [*(text.decode() for text in texts), b'{"type":"request","id":"q1"}']


async def test_white_space_in_a_request_changes_nothing() -> None:
    hub = echoing()
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send(TEXT, b' {\n "type" :\t"request" , "id":"q1", "data" : 5, "more": 1 } ')
        assert await answer_to(raw, 1) == 5
        raw.close()


async def test_without_callbacks_requests_are_messages() -> None:
    hub = Hub(authenticate=named)
    heard: list[str | bytes] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send(TEXT, request("request", 1))
        await eventually(lambda: heard == [request("request", 1).decode()])
        raw.close()


async def test_a_ping_is_answered_and_each_kind_needs_its_callback() -> None:
    hub = Hub(authenticate=named)
    hub.on_join_request(lambda client, room_id: True)
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert await asked(raw, "ping", 1) is None
        assert (await asked(raw, "request", 2))["code"] == "unknown"
        raw.close()
    hub = echoing()
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert await asked(raw, "ping", 1) is None
        assert (await asked(raw, "join", 2, room="r"))["code"] == "forbidden"
        raw.close()


async def test_requests_and_messages_keep_their_order() -> None:
    hub = Hub(authenticate=named)
    seen: list[object] = []
    gate = asyncio.Event()

    @hub.on_request
    async def answer(client: Client, data: Any) -> Any:
        await gate.wait()
        seen.append(data)
        return data

    hub.on_message_received(lambda client, message: seen.append(message))
    async with running(hub):
        raw, _ = await join(hub, "a")
        frames = [
            encode(TEXT, request("request", 1, data=1)),
            encode(TEXT, b"two"),
            encode(TEXT, request("request", 3, data=3)),
        ]
        await raw.send_raw(b"".join(frames))
        await eventually(lambda: hub.get_stats().messages_in == 3)
        assert seen == []
        gate.set()
        assert [await answer_to(raw, number) for number in (1, 3)] == [1, 3]
        assert seen == [1, "two", 3]
        raw.close()


async def test_a_client_that_goes_before_its_answer_is_no_error() -> None:
    hub = Hub(authenticate=named)
    gate, done = asyncio.Event(), asyncio.Event()

    @hub.on_join_request
    async def allow(client: Client, room_id: str) -> bool:
        await gate.wait()
        done.set()
        return True

    async with running(hub):
        raw, _ = await join(hub, "a")
        await raw.send(TEXT, request("join", 1, room="r"))
        await eventually(lambda: hub.get_stats().messages_in == 1)
        raw.close()
        await eventually(lambda: hub.get_connected_clients() == 0)
        gate.set()
        await done.wait()
        await eventually(lambda: hub.get_stats().outlasting_callbacks == 0)
    assert hub.get_stats().callback_errors == 0


async def test_a_request_that_may_not_be_published_is_refused() -> None:
    hub = Hub(authenticate=named, authorize_publish=lambda client, message: "bad" not in message)
    hub.on_request(lambda client, data: data)
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert (await asked(raw, "request", 1, data="bad"))["code"] == "forbidden"
        assert await asked(raw, "request", 2, data="good") == "good"
        raw.close()
    stats = hub.get_stats()
    assert (stats.unauthorized, stats.requests_refused, stats.requests_answered) == (1, 1, 1)


async def test_a_client_that_recovers_asks_with_an_empty_head() -> None:
    hub = keeping()
    hub.on_request(lambda client, data: data)
    async with running(hub):
        client = await Aware.open(hub, "a")
        await client.recv()  # a member of its first room
        await client.raw.send(TEXT, b"\n" + request("request", 1, data="x"))
        head, payload = await client.recv()
        assert (head, json.loads(payload)) == ({}, {"type": "answer", "id": "q1", "data": "x"})
        client.close()


# --- rooms ---


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_client_joins_the_rooms_that_the_application_allows(is_async: bool) -> None:
    hub = Hub(authenticate=named)
    hub.create_room("chat")
    hub.create_room("staff")

    def plain(client: Client, room_id: str) -> bool:
        return room_id != "staff"

    async def later(client: Client, room_id: str) -> bool:
        await asyncio.sleep(0)
        return room_id != "staff"

    if is_async:
        hub.on_join_request(later)
    else:
        hub.on_join_request(plain)
    async with running(hub):
        raw, client = await join(hub, "a")
        assert await asked(raw, "join", 1, room="chat") is None
        assert await asked(raw, "join", 2, room="chat") is None
        assert (await asked(raw, "join", 3, room="staff"))["code"] == "forbidden"
        assert client.rooms == ("chat",)
        assert await asked(raw, "leave", 4, room="chat") is None
        assert client.rooms == ()
        raw.close()
    stats = hub.get_stats()
    assert (stats.refused_joins, stats.requests_refused, stats.requests_answered) == (1, 1, 3)


async def test_the_hub_s_own_refusals_have_codes() -> None:
    hub = Hub(
        HubConfig(max_rooms_per_client=1),
        authenticate=named,
        authorize_join=lambda client, room_id: room_id != "closed",
    )
    for room_id in ("one", "two", "closed"):
        hub.create_room(room_id)
    hub.on_join_request(lambda client, room_id: True)
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))
    async with running(hub):
        raw, _ = await join(hub, "a")
        assert (await asked(raw, "join", 1, room="nowhere"))["code"] == "not-found"
        assert (await asked(raw, "join", 2, room="closed"))["code"] == "forbidden"
        assert (await asked(raw, "join", 3, room=""))["code"] == "invalid"
        assert await asked(raw, "join", 4, room="one") is None
        assert (await asked(raw, "join", 5, room="two"))["code"] == "limit"
        assert (await asked(raw, "leave", 6, room="nowhere"))["code"] == "not-found"
        raw.close()
    assert errors == []
    assert hub.get_stats().refused_joins == 1


async def test_a_callback_that_raises_lets_nobody_in() -> None:
    hub = Hub(authenticate=named)
    hub.create_room("chat")
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_join_request
    def allow(client: Client, room_id: str) -> bool:
        if room_id == "chat":
            raise LookupError("the database is away")
        raise RequestError("full", "come later")

    async with running(hub):
        raw, client = await join(hub, "a")
        assert (await asked(raw, "join", 1, room="chat"))["code"] == "failed"
        full = {"code": "full", "message": "come later"}
        assert await asked(raw, "join", 2, room="x") == full
        assert client.rooms == ()
        raw.close()
    assert [str(error) for error in errors] == ["the database is away"]


# --- setting the callbacks ---


@pytest.mark.parametrize("name", ["on_request", "on_join_request"])
def test_there_is_one_function_and_it_is_checked(name: str) -> None:
    hub = Hub()
    set_fn: Callable[[Any], Any] = getattr(hub, name)
    for bad in (None, "name", lambda client: True):
        with pytest.raises(ValidationError):
            set_fn(bad)

    def fn(client: Client, given: Any) -> bool:
        return True

    assert set_fn(fn) is fn
    with pytest.raises(ValidationError, match="already"):
        set_fn(fn)


@pytest.mark.parametrize("wrong", [("", ""), ("x" * 65, ""), (7, ""), ("code", 7)])
def test_a_request_error_has_a_code_and_a_text(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(ValidationError):
        RequestError(*wrong)
