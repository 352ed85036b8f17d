"""The HTTP API: requests to real hubs over real connections, their answers, their bounds."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.acks import acknowledge
from tests.clients.node_peers import node
from tests.clients.support import missing
from tests.redis_server import RedisServer
from tests.support import exchange, join, named, serves_others, times_logged
from wsc_fast import (
    ACKConfig,
    Client,
    ConfigError,
    Hub,
    HubConfig,
    HubStateError,
    RedisBus,
    ValidationError,
)
from wsc_fast.testing import CLOSE, RawClient, eventually, eventually_async, running

KEY, OTHER = "k" * 16, "a-second-key-of-32-characters-ok"
JSON = {"Content-Type": "application/json"}


def make_hub(config: HubConfig | None = None, **options: Any) -> Hub:
    """A hub whose clients are in the room `plain` and in the kept room `kept`."""
    hub = Hub(config, authenticate=named)
    hub.keep("kept*")
    hub.create_room("plain")
    hub.on_client_connected(enter)
    hub.enable_api(**{"keys": {"billing": KEY, "shop": OTHER}, **options})
    return hub


def enter(client: Client) -> None:
    client.hub.join_room(client.id, "plain")
    client.hub.join_room(client.id, "kept")


@asynccontextmanager
async def caller(hub: Hub, key: str | None = KEY) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the API of a running hub."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{hub.port}/api", headers=headers, timeout=20
    ) as http:
        yield http


@asynccontextmanager
async def members(hub: Hub, *names: str) -> AsyncIterator[list[RawClient]]:
    """Clients of the hub, gone before it stops."""
    raws = [(await join(hub, name))[0] for name in names]
    try:
        yield raws
    finally:
        for raw in raws:
            raw.close()


async def said(raw: RawClient, count: int = 1) -> list[bytes]:
    """The payloads of the next messages."""
    return [(await raw.recv()).payload for _ in range(count)]


def told(answer: httpx.Response) -> tuple[int, str]:
    """The status and the kind of an error."""
    return answer.status_code, answer.json()["error"]


# --- publishing ---


@pytest.mark.parametrize("room", ["plain", "kept"])
async def test_a_published_message_reaches_the_members_of_the_room(room: str) -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http, members(hub, "ann", "bob") as (ann, bob):
        body = {"room": room, "message": "héllo", "exclude": ["bob"]}
        answer = await http.post("/publish", json=body)
        assert (answer.status_code, answer.json()["duplicate"]) == (200, False)
        assert (answer.json()["position"] is None) == (room == "plain")
        data = base64.b64encode(b"\0\xff").decode()
        await http.post("/publish", json={"room": room, "data": data})
        assert await said(ann, 2) == ["héllo".encode(), b"\0\xff"]
        assert await said(bob) == [b"\0\xff"]
        assert hub.get_stats().messages_out == 2


@pytest.mark.parametrize("room", ["plain", "kept", None])
async def test_a_message_is_published_once_under_an_idempotency_key(room: str | None) -> None:
    hub = make_hub()
    path, body = ("/publish", {"room": room}) if room else ("/broadcast", {})
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        answers = [
            (await http.post(path, json=body | {"message": text, "idempotency_key": key})).json()
            for text, key in (("one", "a"), ("again", "a"), ("two", "b"))
        ]
        assert [each["duplicate"] for each in answers] == [False, True, False]
        assert answers[1]["position"] == answers[0]["position"]
        assert await said(raw, 2) == [b"one", b"two"]


async def test_a_hub_without_kept_rooms_publishes_too() -> None:
    hub = Hub(authenticate=named)
    hub.enable_api(keys=KEY)
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        assert (await http.post("/broadcast", json={"message": "hi"})).status_code == 200
        nobody = await http.post("/publish", json={"room": "nobody", "message": "hi"})
        assert nobody.json() == {"position": None, "duplicate": False}
        assert await said(raw) == [b"hi"]
        (client,) = hub.iter_clients()
        with pytest.raises(LookupError):
            hub.join_room(client.id, "nobody")


async def test_a_caller_who_leaves_takes_nothing_back(tmp_path: Path) -> None:
    """The members of this hub get a plain message that those of others have got."""
    with RedisServer(tmp_path) as server:
        hub = Hub(authenticate=named, bus=RedisBus(server.url))
        hub.enable_api(keys=KEY)
        hub.on_client_connected(lambda client: hub.join_room(client.id, "r"))
        async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
            server.pause()
            body = {"room": "r", "message": "hi"}
            asking = asyncio.ensure_future(http.post("/publish", json=body))
            await eventually(lambda: hub.cluster.counters()["published"] == 1)
            asking.cancel()
            await asyncio.wait([asking])
            await serves_others(hub)
            server.resume()
            assert await said(raw) == [b"hi"]


# --- users ---


async def test_a_user_gets_a_hub_message_at_each_client() -> None:
    hub = make_hub()
    names = [f"{name}&user=ann" for name in ("phone", "desk")]
    async with running(hub), caller(hub) as http, members(hub, *names) as clients:
        body = {"user": "ann", "message": "paid", "type": "notice", "id": "m1"}
        answer = await http.post("/send", json=body)
        assert answer.json() == {"hubs": 1, "stored": False}
        for raw in clients:
            got = msgspec.json.decode((await said(raw))[0])
            assert (got["id"], got["type"], got["content"]) == ("m1", "notice", "paid")
        away = await http.post("/send", json={"user": "bob", "message": "x"})
        assert told(away) == (404, "user_offline")


async def test_a_user_or_a_client_is_disconnected() -> None:
    hub = make_hub()
    names = ("p&user=ann", "d&user=ann", "b")
    async with running(hub), caller(hub) as http, members(hub, *names) as (phone, desk, bob):
        body = {"user": "ann", "code": 4403, "reason": "blocked"}
        assert (await http.post("/disconnect", json=body)).json() == {"clients": 2}
        for raw in (phone, desk):
            frame = await raw.recv()
            assert (frame.opcode, frame.payload) == (CLOSE, b"\x11\x33blocked")
        assert (await http.post("/disconnect", json={"client": "b", "code": 1000.0})).json() == {
            "clients": 1
        }
        assert (await bob.recv()).payload == b"\x03\xe8"
        gone = await http.post("/disconnect", json={"client": "nobody"})
        assert gone.json() == {"clients": 0}


@asynccontextmanager
async def two_hubs(
    folder: Path, acks: ACKConfig | None = None
) -> AsyncIterator[tuple[Hub, Hub, RedisServer]]:
    """Hubs on one bus; the first is to be asked."""
    with RedisServer(folder) as server:
        hubs = []
        for _ in range(2):
            bus = RedisBus(server.url, refresh=0.2)
            hub = Hub(HubConfig(close_timeout=0.1), authenticate=named, bus=bus)
            if acks is not None:
                hub.enable_ack(acks)
            hub.enable_api(keys=KEY)
            hubs.append(hub)
        one, two = hubs
        async with running(one), running(two):
            yield one, two, server


async def entered(hub: Hub, *users: str) -> None:
    """Returns once the bus knows that these users are online."""

    async def are() -> bool:
        return await hub.cluster.online(users) == set(users)

    await eventually_async(are)


async def test_a_message_finds_a_user_on_all_hubs(tmp_path: Path) -> None:
    async with (
        two_hubs(tmp_path) as (one, two, _),
        members(one, "a1&user=ann") as (here,),
        members(two, "a2&user=ann", "bob") as (there, bob),
        caller(one) as http,
    ):
        await entered(one, "ann", "bob")
        body = {"user": "ann", "message": "paid", "id": "m1"}

        async def sent_to_both() -> bool:
            return bool((await http.post("/send", json=body)).json()["hubs"] == 2)

        await eventually_async(sent_to_both)  # this hub hears in a moment that ann is there, too
        for raw in (here, there):
            assert msgspec.json.decode((await said(raw))[0])["id"] == "m1"
        answer = await http.post("/send", json=body | {"user": "bob"})
        assert answer.json() == {"hubs": 1, "stored": False}
        assert msgspec.json.decode((await said(bob))[0])["content"] == "paid"
        away = await http.post("/send", json=body | {"user": "nobody"})
        assert told(away) == (404, "user_offline")


async def test_a_user_is_disconnected_from_all_hubs(tmp_path: Path) -> None:
    async with (
        two_hubs(tmp_path) as (one, two, _),
        members(one, "a1&user=ann") as (here,),
        members(two, "a2&user=ann", "a3&user=ann") as there,
        caller(one) as http,
    ):
        await entered(two, "ann")
        body = {"user": "ann", "code": 4403, "reason": "blocked"}
        assert (await http.post("/disconnect", json=body)).json() == {"clients": 3}
        for raw in (here, *there):
            assert (await raw.recv()).payload == b"\x11\x33blocked"


async def test_a_message_waits_for_its_user_until_it_is_acknowledged(tmp_path: Path) -> None:
    acks = ACKConfig(enable_offline_messages=True, retry_interval=0.2, max_retries=50)
    body = {"user": "ann", "message": "paid", "id": "m1", "require_ack": True}
    async with two_hubs(tmp_path, acks) as (one, two, server), caller(one) as http:
        answer = await http.post("/send", json=body)
        assert answer.json() == {"hubs": None, "stored": True}
        again = await http.post("/send", json=body)
        assert again.json() == {"hubs": None, "stored": True}
        other = await http.post("/send", json=body | {"message": "not paid"})
        assert told(other) == (422, "invalid")
        assert server.command("HLEN", "wsc:offline:messages:ann") == 1
        async with members(two, "a&user=ann") as (raw,):
            message = msgspec.json.decode((await said(raw))[0])
            assert (message["id"], message["content"], message["to"]) == ("m1", "paid", "ann")
            await acknowledge(raw, "m1")

            async def is_gone() -> bool:
                return bool(server.command("HLEN", "wsc:offline:messages:ann") == 0)

            await eventually_async(is_gone)
            await http.post("/send", json=body | {"id": "m2"})
            while msgspec.json.decode((await said(raw))[0])["id"] != "m2":
                pass


async def test_an_acknowledgement_may_take_longer_than_a_request_waits() -> None:
    hub = make_hub()
    hub.enable_ack(ACKConfig(timeout=0.5, max_retries=0))
    body = {"user": "ann", "message": "paid", "require_ack": True, "wait": 0.05}
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        answer = await http.post("/send", json=body)
        assert answer.json() == {"hubs": None, "stored": False}
        await said(raw)
        refusing = asyncio.ensure_future(
            http.post("/send", json=body | {"id": "m1", "wait": 10}),
        )
        await said(raw)
        await acknowledge(raw, "m1", status="failed", error="no room")
        refused = await refusing
        assert told(refused) == (409, "not_acknowledged")
        assert refused.json()["detail"] == "no room"
        timed_out = await http.post("/send", json=body | {"id": "m2", "wait": 10})
        assert told(timed_out) == (409, "not_acknowledged")
        await said(raw)
        confirming = asyncio.ensure_future(
            http.post("/send", json=body | {"id": "m3", "wait": 10}),
        )
        await said(raw)
        await acknowledge(raw, "m3")
        assert (await confirming).json() == {"hubs": None, "stored": True}
        away = await http.post("/send", json=body | {"user": "bob"})
        assert told(away) == (404, "user_offline")


async def test_a_hub_without_acknowledgements_says_so() -> None:
    hub = make_hub()
    body = {"user": "ann", "message": "paid", "require_ack": True}
    async with running(hub), caller(hub) as http:
        assert told(await http.post("/send", json=body)) == (404, "no_acknowledgements")


# --- batches ---


async def test_a_batch_has_an_answer_for_each_request_and_keeps_their_order() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        requests: list[dict[str, Any]] = [
            {"do": "publish", "room": "kept", "message": f"{number}"} for number in range(96)
        ]
        requests += [
            {"do": "broadcast", "message": "all"},
            {"do": "send", "user": "bob", "message": "x"},
            {"do": "publish", "room": "kept", "message": "x", "idempotency_key": "é" * 65},
            {"do": "disconnect", "user": "bob"},
        ]
        answer = await http.post("/batch", json={"requests": requests})
        answers = answer.json()["answers"]
        assert [each["status"] for each in answers] == [200] * 97 + [404, 422, 200]
        assert answers[97]["error"]["error"] == "user_offline"
        assert answers[99]["result"] == {"clients": 0}
        assert await said(raw, 97) == [b"%d" % number for number in range(96)] + [b"all"]
        requests.append({"do": "broadcast", "message": "one too many"})
        too_many = await http.post("/batch", json={"requests": requests})
        assert told(too_many) == (422, "invalid")
        assert "length <= 100 - at `$.requests`" in too_many.json()["detail"]


async def test_a_batch_of_very_many_deliveries_lets_others_have_their_turn() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        requests = [{"do": "broadcast", "message": "x" * 9000}] * 100
        seen = set()
        asking = asyncio.ensure_future(http.post("/batch", json={"requests": requests}))
        while not asking.done():
            seen.add(hub.cluster.counters()["published"])
            await asyncio.sleep(0)
        assert (await asking).status_code == 200
        assert seen >= set(range(101))


# --- questions ---


async def test_a_history_is_read_in_pages() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        for number in range(5):
            await hub.publish("kept1", f"{number}")
        await hub.publish("kept1", b"\xff")
        newest = (await http.get("/history", params={"room": "kept1", "limit": 4})).json()
        assert [each.get("message") for each in newest["messages"]] == ["2", "3", "4", None]
        assert newest["messages"][3] == {"position": newest["top"], "data": "/w=="}
        after = newest["messages"][0]["position"]
        params = {"room": "kept1", "after": after, "limit": "1"}
        page = (await http.get("/history", params=params)).json()
        assert [each["message"] for each in page["messages"]] == ["3"]
        assert page["top"] == newest["top"] != page["messages"][0]["position"]


async def test_a_page_of_a_history_ends_after_a_mebibyte() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        positions = [(await hub.publish("kept1", "x" * 400_000)).position for _ in range(5)]
        newest = (await http.get("/history?room=kept1")).json()["messages"]
        assert [each["position"] for each in newest] == positions[3:]
        params = {"room": "kept1", "after": positions[0]}
        page = (await http.get("/history", params=params)).json()
        assert [each["position"] for each in page["messages"]] == positions[1:3]
        assert page["top"] == positions[4]


@pytest.mark.parametrize(
    ("query", "status", "kind", "detail"),
    [
        ("", 422, "invalid", "Object missing required field `room`"),
        ("room=kept&limit=0", 422, "invalid", "Expected `int` >= 1 - at `$.limit`"),
        ("room=kept&limit=many", 422, "invalid", "Expected `int`, got `str` - at `$.limit`"),
        ("room=kept&form=x", 422, "invalid", "Object contains unknown field `form`"),
        ("room=plain", 404, "not_kept", "room 'plain' is not kept: see Hub.keep"),
        ("room=kept&after=0.gone", 410, "gone", "does not reach back to the position '0.gone'"),
    ],
)
async def test_a_history_that_cannot_be_read(
    query: str, status: int, kind: str, detail: str
) -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.get(f"/history?{query}")
        assert told(answer) == (status, kind)
        assert detail in answer.json()["detail"]


async def test_the_users_who_are_there_are_told() -> None:
    hub = make_hub()
    hub.presence("plain")
    async with running(hub), caller(hub) as http:
        clients = [await RawClient.open(hub, f"/ws?id={name}") for name in ("ann", "bob")]
        await eventually_async(lambda: counted(http, 2))
        page = (await http.get("/presence?room=plain")).json()
        assert sorted(page.pop("members"), key=str) == [
            {"user": "ann", "clients": 1},
            {"user": "bob", "clients": 1},
        ]
        assert page == {"cursor": "", "count": 2}
        asked = {"users": ["bob", "nobody", "ann"]}
        assert (await http.post("/online", json=asked)).json() == {"online": ["ann", "bob"]}
        assert told(await http.get("/presence?room=kept")) == (404, "no_presence")
        assert told(await http.get("/presence?room=plain&cursor=x")) == (422, "invalid")
        assert told(await http.post("/online", json={"users": []})) == (422, "invalid")
        for client in clients:
            client.close()


async def counted(http: httpx.AsyncClient, count: int) -> bool:
    return bool((await http.get("/presence?room=plain")).json()["count"] == count)


async def test_who_is_there_is_not_known_without_presence() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.post("/online", json={"users": ["ann"]})
        assert told(answer) == (404, "no_presence")
        assert "presence is off: see Hub.presence" in answer.json()["detail"]


async def test_the_health_of_a_hub_that_drains_is_503() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "ok", "bus": "none", "clients": 1},
        )
        raw.close()
        await hub.drain(0.0)
        answer = await http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")


# --- requests that are refused ---


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("publish", {"message": "x"}, "Object missing required field `room`"),
        ("publish", {"room": 1, "message": "x"}, "Expected `str`, got `int` - at `$.room`"),
        ("publish", {"room": "", "message": "x"}, "length >= 1 - at `$.room`"),
        ("publish", {"room": "a\nb", "message": "x"}, "may not hold control characters"),
        ("publish", {"room": "r"}, "Expected one of the fields `message` and `data`"),
        ("publish", {"room": "r", "message": "x", "data": ""}, "Expected one of the fields"),
        ("publish", {"room": "r", "data": "?"}, "Invalid base64 encoded string - at `$.data`"),
        ("publish", {"room": "r", "message": "x", "rom": "r"}, "unknown field `rom`"),
        ("publish", {"room": "r", "message": "x", "exclude": "bob"}, "at `$.exclude`"),
        (
            "publish",
            {"room": "r", "message": "x", "exclude": [""]},
            "length >= 1 - at `$.exclude[0]`",
        ),
        ("publish", {"room": "r", "message": "x", "exclude": ["a"] * 1_001}, "length <= 1000"),
        (
            "publish",
            {"room": "r", "message": "x", "exclude": ["a"] * 10_001},
            "Expected at most 10000 strings",
        ),
        (
            "publish",
            {"room": "r", "message": "x", "idempotency_key": "é" * 65},
            "idempotency_key must be a str of 1 to 128 bytes",
        ),
        ("send", {"user": "u", "message": 5}, "Expected `str`, got `int` - at `$.message`"),
        ("disconnect", {"user": "u", "code": 1005}, "1005"),
        ("disconnect", {"client": "nobody", "code": 2999}, "2999"),
        ("disconnect", {"client": "nobody", "code": 1000.5}, "1000.5"),
        ("disconnect", {"client": "a\nb"}, "a client id may not hold control characters"),
        ("send", {"user": "a\nb", "message": "x"}, "a user id may not hold"),
        ("send", {"user": "u", "message": "x", "id": "a\nb"}, "a message id may not hold"),
        ("send", {"user": "u", "message": "x", "wait": 10.5}, "<= 10.0 - at `$.wait`"),
        (
            "batch",
            {"requests": [{"do": "broadcast", "message": "x"}, {"do": "broadcast"}]},
            "Expected one of the fields `message` and `data` - at `$.requests[1]`",
        ),
        ("disconnect", {"user": "u", "client": "c"}, "Expected one of the fields"),
        ("disconnect", {}, "Expected one of the fields `user` and `client`"),
        ("batch", {"requests": [{"do": "fly"}]}, "Invalid value 'fly' - at `$.requests[0].do`"),
        ("batch", {"requests": []}, "length >= 1 - at `$.requests`"),
    ],
)
async def test_an_error_names_the_field_and_what_was_expected(
    path: str, body: dict[str, Any], detail: str
) -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.post(f"/{path}", json=body)
        assert told(answer) == (422, "invalid")
        assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'{"message":"\xff"}', b'{"message":"\\ud800"}', b'{"message":""} x'],
)
async def test_a_body_that_is_no_json_is_400(body: bytes) -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.post("/broadcast", content=body, headers=JSON)
        assert told(answer) == (400, "malformed")


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonx", ""])
async def test_a_body_of_another_type_is_415(kind: str) -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.post("/publish", content=b"{}", headers={"Content-Type": kind})
        assert told(answer) == (415, "unsupported_media_type")
        good = {"Content-Type": "Application/JSON; charset=utf-8"}
        answer = await http.post("/broadcast", content=b'{"message":"x"}', headers=good)
        assert answer.status_code == 200


async def test_other_methods_and_paths_are_405_and_404() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        answer = await http.get("/publish")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await http.get("/nothing")).status_code == 404


async def test_a_long_body_is_413_and_one_without_a_length_411() -> None:
    hub = make_hub(HubConfig(max_request_body=10), max_body=2_000)
    async with running(hub), caller(hub) as http:
        assert (await http.post("/broadcast", json={"message": "x" * 1_900})).status_code == 200
        answer = await http.post("/broadcast", json={"message": "x" * 2_000})
        assert answer.status_code == 413
        assert hub.get_stats().limited["max_request_body"] == 1

        async def parts() -> AsyncIterator[bytes]:
            yield b"{}"

        answer = await http.post("/broadcast", content=parts(), headers=JSON)
        assert answer.status_code == 411


async def test_a_bus_that_is_away_is_503(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        hub = Hub(bus=RedisBus(server.url, timeout=0.2))
        hub.enable_api(keys=KEY)
        async with running(hub), caller(hub) as http:
            assert (await http.get("/health")).json()["bus"] == "up"
            await asyncio.to_thread(server.stop)
            await eventually(lambda: not hub_hears(hub))
            answer = await http.post("/publish", json={"room": "r", "message": "x"})
            assert told(answer) == (503, "bus_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert (await http.get("/health")).json()["bus"] == "down"


def hub_hears(hub: Hub) -> bool:
    return hub._node.bus_state() == "up"


async def test_a_long_text_of_quotes_is_no_body_of_many_strings() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http, members(hub, "ann") as (raw,):
        text = '{"name": "value"}' * 10_000
        assert (await http.post("/broadcast", json={"message": text})).status_code == 200
        assert await said(raw) == [text.encode()]


# --- keys ---


async def test_a_request_without_a_good_key_is_401_before_its_body_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "wsc_fast")
    hub = make_hub()
    async with running(hub):
        for header in ("", f"Authorization: Basic {KEY}", f"X-API-Key: {KEY[:-1]}", "X-API-Key:"):
            lines = ["POST /api/publish HTTP/1.1", "Host: x", "Content-Length: 1000000"]
            head = "\r\n".join([*lines, *([header] if header else []), "", ""])
            answer = await exchange(hub, head.encode())
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"www-authenticate: bearer" in answer.lower()
        assert hub.get_stats().rejected["auth"] == 4
        assert times_logged(caplog, "is refused: its API key is not known") == 1
        assert times_logged(caplog, "is refused: it has no API key") == 1
    assert KEY[:-1] not in caplog.text


async def test_each_key_is_good_in_either_header() -> None:
    hub = make_hub()
    async with running(hub), caller(hub, None) as http:
        for key in (KEY, OTHER):
            for name, value in (("Authorization", f"bearer {key}"), ("X-API-Key", key)):
                assert (await http.get("/health", headers={name: value})).status_code == 200
        both = {"Authorization": "Basic eDp5", "X-API-Key": KEY}
        assert (await http.get("/health", headers=both)).status_code == 200


@pytest.mark.parametrize("path", ["openapi.json", "history?room=kept", "health"])
async def test_no_question_is_answered_without_a_key(path: str) -> None:
    hub = make_hub()
    async with running(hub), caller(hub, None) as http:
        assert (await http.get(f"/{path}")).status_code == 401


async def test_many_wrong_keys_of_one_address_are_429_and_a_good_one_still_passes() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        wrong = {"Authorization": "Bearer wrong"}
        answers = [await http.get("/health", headers=wrong) for _ in range(60)]
        refused = [each for each in answers if each.status_code == 429]
        assert {each.status_code for each in answers} == {401, 429}
        assert {each.headers["retry-after"] for each in refused} == {"1"}
        assert hub.get_stats().rejected["rate"] == len(refused)
        assert (await http.get("/health")).status_code == 200


async def test_a_key_beyond_its_rate_is_429_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "wsc_fast")
    hub = make_hub(rate=0.1)
    async with running(hub), caller(hub) as http:
        assert (await http.get("/health")).status_code == 200
        answer = await http.get("/health")
        assert told(answer) == (429, "too_many_requests")
        assert answer.headers["retry-after"] == "10"
        assert (await http.get("/health", headers={"Authorization": f"Bearer {OTHER}"})).is_success
        assert hub.get_stats().rejected["rate"] == 1
        assert times_logged(caplog, "the API key billing asks more than 0.1 times a second") == 1


@pytest.mark.parametrize(
    "keys",
    [
        "",
        (),
        {},
        None,
        5,
        b"k" * 16,
        "k" * 15,
        "k" * 513,
        "k" * 15 + " ",
        "ü" * 16,
        [KEY, KEY],
        [KEY, 5],
        {"": KEY},
        {"a\nb": KEY},
        {5: KEY},
        [f"{number:016}" for number in range(1_001)],
    ],
)
def test_keys_that_cannot_be_used_are_a_config_error_that_does_not_hold_them(keys: Any) -> None:
    hub = Hub()
    with pytest.raises(ConfigError, match="keys") as caught:
        hub.enable_api(keys=keys)
    assert "kkkkk" not in str(caught.value)
    assert "üüüüü" not in str(caught.value)
    hub.enable_api(keys=KEY)


def test_no_keys_say_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"hub\.enable_api\(keys=os\.environ\['API_KEY'\]\)"):
        Hub().enable_api(keys="")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"rate": -1}, ConfigError),
        ({"rate": "5"}, ConfigError),
        ({"rate": float("nan")}, ConfigError),
        ({"max_body": 1_023}, ConfigError),
        ({"max_body": 1e6}, ConfigError),
        ({"path": "api"}, ValidationError),
        ({"path": "/"}, ValidationError),
        ({"path": "/api/"}, ValidationError),
        ({"path": None}, ValidationError),
        ({"path": "/a b"}, ValidationError),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Hub().enable_api(**{"keys": KEY, **options})


def test_the_api_is_enabled_once_and_serves_nothing_of_a_call_that_failed() -> None:
    hub = Hub()
    hub.route("/api/health")(lambda request: "mine")
    with pytest.raises(ValidationError, match="served already"):
        hub.enable_api(keys=KEY)
    hub.route("/api/publish", methods=("POST",))(lambda request: "mine")
    hub.enable_api("/other", keys=KEY)
    with pytest.raises(HubStateError, match="enabled already"):
        hub.enable_api("/third", keys=KEY)


async def test_no_route_of_the_application_takes_the_key_away() -> None:
    hub = make_hub()
    for path in ("/api/publish", "/api/health"):
        with pytest.raises(ValidationError, match="of the console or of the HTTP API"):
            hub.route(path, methods=("OPTIONS",))(lambda request: "mine")
    async with running(hub), caller(hub, None) as http:
        assert (await http.post("publish", json={"message": "x"})).status_code == 401
        assert (await http.get("health")).status_code == 401
    hub = Hub()
    hub.route("/api/publish", methods=("PUT",))(lambda request: "mine")
    with pytest.raises(ValidationError, match="the route PUT '/api/publish' is served already"):
        hub.enable_api(keys=KEY)


# --- several hubs ---


async def test_a_message_to_one_hub_reaches_the_clients_of_others(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        hubs = [Hub(authenticate=named, bus=RedisBus(server.url)) for _ in range(2)]
        for hub in hubs:
            hub.keep("kept*")
            hub.on_client_connected(enter)
        asked, other = hubs
        asked.enable_api(keys=KEY)
        async with (
            running(asked),
            running(other),
            caller(asked) as http,
            members(asked, "ann") as (here,),
            members(other, "bob") as (there,),
        ):
            bodies: list[tuple[str, dict[str, Any]]] = [
                ("/publish", {"room": "plain", "message": "p"}),
                ("/broadcast", {"message": "b"}),
            ]
            await subscribed(asked, other, here, there)
            for path, body in bodies:
                for duplicate in (False, True):
                    answer = await http.post(path, json=body | {"idempotency_key": "once"})
                    assert answer.json() == {"position": None, "duplicate": duplicate}
            assert await said(here, 2) == await said(there, 2) == [b"p", b"b"]
            first = await http.post("/publish", json={"room": "kept", "message": "k"})
            assert await said(here) == await said(there) == [b"k"]
            page = (await http.get("/history?room=kept")).json()
            assert page["messages"][-1] == {"position": first.json()["position"], "message": "k"}
            requests = [
                {"do": "publish", "room": room, "message": f"{room}{number}"}
                for number in range(20)
                for room in ("kept", "plain")
            ]
            assert (await http.post("/batch", json={"requests": requests})).status_code == 200
            for raw in (here, there):
                got = [each.decode() for each in await said(raw, 40)]
                for room in ("kept", "plain"):
                    assert [each for each in got if each.startswith(room)] == [
                        f"{room}{number}" for number in range(20)
                    ]


async def subscribed(one: Hub, other: Hub, *clients: RawClient) -> None:
    """Both hubs hear the rooms: a message to each of them has come."""
    await one.publish("kept", "ready")
    for raw in clients:
        assert await said(raw) == [b"ready"]


# --- the document ---


async def test_a_validator_accepts_the_document() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    hub = make_hub(path="/v1/hub")
    async with running(hub):
        url = f"http://127.0.0.1:{hub.port}/v1/hub/openapi.json"
        async with httpx.AsyncClient(headers={"X-API-Key": KEY}) as http:
            document = (await http.get(url)).json()
    validator.validate(document)
    assert document["servers"] == [{"url": "/v1/hub"}]


async def test_the_document_describes_each_route_and_its_statuses() -> None:
    hub = make_hub()
    async with running(hub), caller(hub) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        served = {path for path in hub._site.routes.paths() if path.startswith("/api/")}
        assert {f"/api{path}" for path in paths} == served
        for path, methods in paths.items():
            (method,) = methods
            answer = await http.request(method.upper(), path, json={} if method == "post" else None)
            assert str(answer.status_code) in methods[method]["responses"]


# --- the page ---

PAGE = (Path(__file__).parents[1] / "docs/http-api.md").read_text()


def block(language: str) -> str:
    """The code of the page in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)
    return str(found)


@asynccontextmanager
async def hub_of_the_page(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    monkeypatch.setenv("API_KEY", KEY)
    names: dict[str, Any] = {"__name__": "page"}
    exec(block("python"), names)
    async with running(names["hub"]) as hub:
        yield hub


async def output_of(*command: str) -> list[str]:
    """The lines that a command of the page prints."""
    # Neither runs with the library of a sanitizer.
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=PIPE, env=os.environ | {"LD_PRELOAD": ""}
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    return out.decode().splitlines()


async def test_the_commands_of_the_page_publish_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("curl") is None:
        missing("curl is not installed")
    async with hub_of_the_page(monkeypatch) as hub:
        raw = await RawClient.open(hub)
        await eventually(lambda: hub.get_connected_clients() == 1)
        script = block("sh").replace("8080", str(hub.port)).replace("curl -s", "\ncurl -s -w '\\n'")
        published, history = map(msgspec.json.decode, await output_of("sh", "-ec", script))
        assert await said(raw) == [b"paid"]
        assert history["messages"] == [{"position": published["position"], "message": "paid"}]
        raw.close()


async def test_the_program_for_node_makes_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = node()
    if found is None:
        missing("there is no Node")
    async with hub_of_the_page(monkeypatch) as hub:
        raw = await RawClient.open(hub)
        await eventually(lambda: hub.get_connected_clients() == 1)
        script = block("js").replace("localhost:8080", f"127.0.0.1:{hub.port}")
        printed = await output_of(found[0], "--input-type=module", "-e", script)
        assert printed[0].startswith("200 { position: '")
        assert printed[1:] == ["200 { position: null, duplicate: false }", "404 user_offline"]
        assert await said(raw, 2) == [b"sent", b"we close at six"]
        raw.close()
