"""Publishing to users from a process without a hub: over real hubs, connections and servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acks import acknowledge, received
from tests.publishers import Both
from tests.redis_server import RedisServer, cutter
from tests.support import join
from wsc_fast import (
    ACKConfig,
    BusError,
    BusUnavailableError,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    MessageTypeError,
    OfflineStoreFullError,
    Priority,
    RedisBus,
    Request,
    ValidationError,
)
from wsc_fast.delivery.entries import unpack
from wsc_fast.messages import decode_hub_message, encode_hub_message
from wsc_fast.publish import Batch, Publisher, Told
from wsc_fast.testing import CLOSE, RawClient, eventually_async

KEPT = ACKConfig(enable_offline_messages=True, retry_interval=0.2, max_retries=50)


def named(request: Request) -> Identity:
    """`/ws?id=CLIENT&user=USER&device=DEVICE`; the user is the id if left out."""
    query = request.query
    return Identity(query.get("user", query["id"]), query["id"], device_id=query.get("device"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@asynccontextmanager
async def publisher(kind: str, *args: Any, **options: Any) -> AsyncIterator[Both]:
    """A publisher, closed in the end."""
    both = Both(kind, *args, **options)
    try:
        yield both
    finally:
        await both.call("close")


@asynccontextmanager
async def hubs(
    url: str | list[str], count: int = 2, acks: ACKConfig | None = None
) -> AsyncIterator[list[Hub]]:
    """Hubs on one bus."""
    made = []
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        for _ in range(count):
            bus = RedisBus(url, refresh=0.2)
            hub = Hub(HubConfig(close_timeout=0.1), authenticate=named, bus=bus)
            if acks is not None:
                hub.enable_ack(acks)
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            made.append(hub)
        yield made


@asynccontextmanager
async def clients(*of: tuple[Hub, str]) -> AsyncIterator[list[RawClient]]:
    """Clients of hubs, whom the bus knows."""
    raws = [(await join(hub, name))[0] for hub, name in of]
    try:
        for hub, name in of:
            await entered(hub, name.partition("user=")[2].partition("&")[0] or name)
        yield raws
    finally:
        for raw in raws:
            raw.close()


async def entered(hub: Hub, user: str) -> None:
    """Returns once the bus knows that a user is online."""

    async def is_online() -> bool:
        return await hub.cluster.online([user]) == {user}

    await eventually_async(is_online)


# --- messages without acknowledgement ---


async def test_a_message_reaches_a_user_on_each_hub_that_has_him(
    server: RedisServer, kind: str
) -> None:
    async with hubs(server.url, 3) as (one, two, three), publisher(kind, server.url) as both:
        of = ((one, "a1&user=ann"), (two, "a2&user=ann"), (three, "b"))
        async with clients(*of) as (first, second, other):
            assert await both.user("ann", "your parcel is here") == Told(2)
            message = HubMessage(type="notice", content="é€", data={"order": 17})
            assert await both.user("ann", message) == Told(2)
            for raw in (first, second):
                got = await received(raw)
                assert (got["type"], got["to"], got["content"]) == (
                    "text",
                    "ann",
                    "your parcel is here",
                )
                assert got["id"]
                assert "require_ack" not in got
                assert (await raw.recv()).payload == encode_hub_message(message)
            assert await both.user("b", "to b", message_id="m1") == Told(1)
            got = await received(other)
            assert (got["id"], got["content"]) == ("m1", "to b")


async def test_the_answer_says_that_a_user_is_away(server: RedisServer, kind: str) -> None:
    async with hubs(server.url, 1), publisher(kind, server.url) as both:
        assert await both.user("nobody", "x") == Told(0)
        assert await both.call("disconnect", "nobody") == Told(0)


async def test_a_user_is_disconnected_from_all_hubs(server: RedisServer, kind: str) -> None:
    async with (
        hubs(server.url) as (one, two),
        publisher(kind, server.url) as both,
        clients((one, "a1&user=ann"), (two, "a2&user=ann"), (two, "b")) as raws,
    ):
        assert await both.call("disconnect", "ann", 4403, "blocked") == Told(2)
        for raw in raws[:2]:
            frame = await raw.recv()
            assert (frame.opcode, frame.payload) == (CLOSE, b"\x11\x33blocked")
        assert await both.user("b", "stays") == Told(1)
        assert (await received(raws[2]))["content"] == "stays"


async def test_a_batch_tells_users_and_rooms(server: RedisServer, kind: str) -> None:
    async with (
        hubs(server.url, 2, KEPT) as (one, two),
        publisher(kind, server.url) as both,
        clients((one, "ann"), (two, "bob"), (two, "eve")) as (ann, bob, eve),
    ):

        def fill(batch: Batch) -> None:
            for number in range(200):
                batch.user("ann", str(number))
            batch.user("bob", "kept", require_ack=True, message_id="m1")
            batch.broadcast("to all")
            batch.disconnect("eve")
            batch.user("cid", "for later", require_ack=True)
            batch.user("cid", "lost")
            with pytest.raises(ValidationError):
                batch.user("", "x")

        results = await both.batch(fill)
        assert results[:200] == [Told(1)] * 200
        assert results[200] == Told(1, stored=True)
        assert results[201].position is None
        assert results[202:] == [Told(1), Told(0, stored=True), Told(0)]
        texts = []
        while len(texts) < 200:
            payload = (await ann.recv()).payload
            if payload != b"to all":
                texts.append(json.loads(payload)["content"])
        assert texts == [str(number) for number in range(200)]
        while (payload := (await bob.recv()).payload) == b"to all":
            pass
        assert json.loads(payload)["content"] == "kept"
        while (await eve.recv()).opcode != CLOSE:
            pass


# --- messages with acknowledgement ---


async def test_a_message_waits_for_a_user_until_it_is_acknowledged(
    server: RedisServer, kind: str
) -> None:
    async with hubs(server.url, 2, KEPT) as (one, two), publisher(kind, server.url) as both:
        assert await both.user("ann", "paid", require_ack=True, message_id="m1") == Told(
            0, stored=True
        )
        async with clients((one, "a&user=ann")) as (raw,):
            got = await received(raw)
            assert (got["id"], got["to"], got["content"]) == ("m1", "ann", "paid")
            assert got["require_ack"] is True
            assert (await received(raw))["id"] == "m1"  # again, as nobody has acknowledged it
        async with clients((two, "b&user=ann")) as (raw,):
            assert (await received(raw))["id"] == "m1"
            await acknowledge(raw, "m1")
            await stored(server, 0, "ann")
        async with clients((one, "c&user=ann")) as (raw,):
            assert await both.user("ann", "last", require_ack=True) == Told(1, stored=True)
            assert (await received(raw))["content"] == "last"


async def stored(server: RedisServer, count: int, mailbox: str) -> None:
    """Returns once a mailbox holds so many messages."""

    async def are() -> bool:
        key = f"wsc:offline:messages:{mailbox}"
        return bool(await asyncio.to_thread(server.command, "HLEN", key) == count)

    await eventually_async(are)


async def test_a_message_reaches_both_devices_and_one_acknowledgement_ends_it(
    server: RedisServer, kind: str
) -> None:
    async with (
        hubs(server.url, 2, KEPT) as (one, two),
        publisher(kind, server.url) as both,
        clients((one, "a1&user=ann"), (two, "a2&user=ann")) as (first, second),
    ):
        message = HubMessage(id="m1", content="x", priority=Priority.CRITICAL)
        assert await both.user("ann", message, require_ack=True) == Told(2, stored=True)
        assert not message.require_ack
        for raw in (first, second):
            assert (await received(raw))["id"] == "m1"
        await acknowledge(second, "m1")
        await stored(server, 0, "ann")
        assert await both.user("ann", "next") == Told(2)
        while (await received(first))["id"] == "m1":
            pass  # it was sent again before the word of its end had come


async def test_the_same_message_again_is_stored_and_sent_once(
    server: RedisServer, kind: str
) -> None:
    async with hubs(server.url, 1, KEPT) as (hub,), publisher(kind, server.url) as both:
        options = {"require_ack": True, "message_id": "m1"}
        assert await both.user("ann", "paid", **options) == Told(0, stored=True)
        again = Told(0, stored=True, duplicate=True)
        assert await both.user("ann", "paid", **options) == again
        with pytest.raises(ValidationError, match="another message with the id 'm1'"):
            await both.user("ann", "not paid", **options)
        assert server.command("HLEN", "wsc:offline:messages:ann") == 1
        async with clients((hub, "ann")) as (raw,):
            assert (await received(raw))["id"] == "m1"
            await acknowledge(raw, "m1")
            await stored(server, 0, "ann")
            # It was acknowledged: nothing is sent.
            assert await both.user("ann", "paid", **options) == again
            assert await both.user("ann", "next") == Told(1)
            assert (await received(raw))["content"] == "next"


async def test_a_message_that_has_timed_out_is_sent_once_more(
    server: RedisServer, kind: str
) -> None:
    short = ACKConfig(enable_offline_messages=True, timeout=0.4, retry_interval=0.3, max_retries=0)
    async with hubs(server.url, 1, short) as (hub,), publisher(kind, server.url) as both:
        options = {"require_ack": True, "message_id": "m1"}
        async with clients((hub, "ann")) as (raw,):
            await both.user("ann", "paid", **options)
            assert (await received(raw))["id"] == "m1"

            async def timed_out() -> bool:
                return hub.get_stats().acks_timed_out == 1

            await eventually_async(timed_out)
            told = await both.user("ann", "paid", **options)
            assert told == Told(1, stored=True, duplicate=True)
            assert (await received(raw))["id"] == "m1"
            await acknowledge(raw, "m1")
            await stored(server, 0, "ann")


async def test_each_known_device_gets_a_message_of_its_own(server: RedisServer, kind: str) -> None:
    config = ACKConfig(
        enable_offline_messages=True, per="device", retry_interval=0.2, max_retries=50
    )
    async with hubs(server.url, 2, config) as (one, two), publisher(kind, server.url) as both:
        of = ((one, "a1&user=ann&device=phone"), (two, "a2&user=ann&device=desk"))
        async with clients(*of) as (phone, desk):
            await stored(server, 2, "\x1fann")
            told = await both.user("ann", "x", require_ack=True, message_id="m1")
            assert told == Told(2, stored=True)
            for raw in (phone, desk):
                assert (await received(raw))["id"] == "m1"
            await acknowledge(phone, "m1")
            await stored(server, 0, "ann\x1fphone")
            assert (await received(desk))["id"] == "m1"  # this device has not acknowledged it
        async with clients((one, "a3&user=ann&device=desk")) as (desk,):
            assert (await received(desk))["id"] == "m1"
            await acknowledge(desk, "m1")
            await stored(server, 0, "ann\x1fdesk")
            told = await both.user("ann", "x", require_ack=True, message_id="m1")
            assert told == Told(0, stored=True, duplicate=True)


async def test_a_user_for_whom_too_much_waits_gets_no_more(server: RedisServer, kind: str) -> None:
    async with publisher(kind, server.url, offline_limit=2) as both:
        for number in range(2):
            await both.user("ann", f"{number}", require_ack=True)
        with pytest.raises(OfflineStoreFullError, match=r"holds 2 messages for user 'ann', and"):
            await both.user("ann", "2", require_ack=True)
        assert await both.user("bob", "0", require_ack=True) == Told(0, stored=True)


async def test_a_stored_message_is_as_a_hub_stores_it(server: RedisServer, kind: str) -> None:
    async with publisher(kind, server.url) as both:
        await both.user("ann", 'é "€\n\x7f', require_ack=True, message_id="m1")
    entry = unpack(server.command("HGET", "wsc:offline:messages:ann", "m1"))
    assert (entry.origin, entry.timeout) == ("", None)
    message = decode_hub_message(entry.data)
    assert (message.content, message.to, message.require_ack) == ('é "€\n\x7f', "ann", True)
    assert encode_hub_message(message) == entry.data  # so hubs see that it needs an answer
    assert server.command("ZSCORE", "wsc:offline:oldest", "ann")
    assert 0 < server.command("PTTL", "wsc:offline:messages:ann") <= 30 * 86400 * 1000


async def test_users_of_several_servers_are_found(tmp_path: Path, kind: str) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as first, RedisServer(folders[1]) as second:
        urls = [first.url, second.url]
        names = [f"user{number}" for number in range(6)]
        async with (
            hubs(urls, 1, KEPT) as (hub,),
            publisher(kind, urls) as both,
            clients(*((hub, name) for name in names)) as raws,
        ):
            for name, raw in zip(names, raws, strict=True):
                assert await both.user(name, "plain") == Told(1)
                told = await both.user(name, "kept", require_ack=True, message_id="m1")
                assert told == Told(1, stored=True)
                assert (await received(raw))["content"] == "plain"
                assert (await received(raw))["content"] == "kept"
                await acknowledge(raw, "m1")
                await stored(first, 0, name)
                told = await both.user(name, "kept", require_ack=True, message_id="m1")
                assert told == Told(0, stored=True, duplicate=True)


# --- faults ---


async def test_a_server_that_is_away_ends_in_an_error(server: RedisServer, kind: str) -> None:
    async with publisher(kind, server.url, timeout=0.3) as both:
        await both.user("ann", "x")
        await asyncio.to_thread(server.stop)
        with pytest.raises(BusUnavailableError, match=r"not published within 0\.3 s"):
            await both.user("ann", "x")
        with pytest.raises(BusUnavailableError, match="did not answer within"):
            await both.user("ann", "x", require_ack=True)
        await asyncio.to_thread(server.start)
        assert await both.user("ann", "x", require_ack=True) == Told(0, stored=True)


async def test_scripts_that_the_server_has_forgotten_are_loaded_again(
    server: RedisServer, kind: str
) -> None:
    async with publisher(kind, server.url) as both:
        for _ in range(2):
            assert await both.user("ann", "x") == Told(0)
            assert (await both.user("ann", "x", require_ack=True)).stored
            server.command("SCRIPT", "FLUSH")
        assert server.command("HLEN", "wsc:offline:messages:ann") == 2


@pytest.mark.parametrize("lost", range(1, 6))
async def test_a_connection_that_breaks_sends_nothing_twice(
    server: RedisServer, kind: str, lost: int
) -> None:
    """A call of a message whose answer is lost is made again."""
    async with (
        hubs(server.url, 1, KEPT) as (hub,),
        cutter(server) as relay,
        clients((hub, "ann")) as (raw,),
        publisher(kind, relay.url) as both,
    ):
        await both.user("bob", "x", require_ack=True)  # has the scripts known
        answers = 0

        def reply(number: int, data: bytes) -> bytes | None:
            nonlocal answers
            answers += data.startswith((b"*", b"$"))
            return None if answers == lost and data.startswith((b"*", b"$")) else data

        relay.reply = reply
        told = await both.user("ann", "x", require_ack=True, message_id="m1")
        assert told == Told(1, stored=True)
        assert server.command("HLEN", "wsc:offline:messages:ann") == 1
        assert (await received(raw))["id"] == "m1"


async def test_a_word_without_an_answer_is_not_sent_again(server: RedisServer, kind: str) -> None:
    async with (
        hubs(server.url, 1) as (hub,),
        cutter(server) as relay,
        clients((hub, "ann")) as (raw,),
        publisher(kind, relay.url) as both,
    ):
        await both.user("bob", "x")
        lost = 0

        def reply(number: int, data: bytes) -> bytes | None:
            nonlocal lost
            if lost or not data.startswith(b"*"):
                return data
            lost += 1
            return None

        relay.reply = reply
        with pytest.raises(BusUnavailableError, match="nobody knows whether"):
            await both.user("ann", "once")
        assert await both.user("ann", "last") == Told(1)
        assert [(await received(raw))["content"] for _ in range(2)] == ["once", "last"]
        lost = 0
        # All clients may be closed twice: this call is made again.
        assert (await both.call("disconnect", "ann")).hubs <= 1
        assert lost == 1
        assert (await raw.recv()).opcode == CLOSE


async def test_a_user_of_the_bus_without_the_right_hears_of_it(
    server: RedisServer, kind: str
) -> None:
    server.command("ACL", "SETUSER", "web", "on", ">secret", "~wsc:*", "&wsc:*", "+@connection")
    url = f"redis://web:secret@127.0.0.1:{server.port}"
    async with publisher(kind, url) as both:
        for require_ack in (False, True):
            with pytest.raises(BusError, match="refused") as caught:
                await both.user("ann", "x", require_ack=require_ack)
            assert not isinstance(caught.value, BusUnavailableError)


async def test_the_rights_of_the_page_are_enough(server: RedisServer) -> None:
    page = (Path(__file__).parents[1] / "docs/redis-bus.md").read_text()
    lines = [line.split()[3:] for line in page.splitlines() if "ACL SETUSER wsc" in line]
    (more,) = re.findall(r"Offline messages on the server of the bus need `(.*?)`", page)
    server.command("ACL", "SETUSER", "wsc", *lines[0], *lines[1], *more.split())
    url = f"redis://wsc:PASSWORD@127.0.0.1:{server.port}"
    async with hubs(url, 2, KEPT) as (one, two), publisher("async", url) as both:
        async with clients((one, "a1&user=ann"), (two, "a2&user=ann")) as (first, second):
            for _ in range(2):
                told = await both.user("ann", "x", require_ack=True, message_id="m1")
                assert told.stored
            for raw in (first, second):
                assert (await received(raw))["id"] == "m1"
            await acknowledge(first, "m1")
            await stored(server, 0, "ann")
            assert await both.call("disconnect", "ann") == Told(2)
        assert one.get_stats().offline_errors + two.get_stats().offline_errors == 0


async def test_a_store_with_a_wrong_key_is_an_error_of_its_user_alone(
    server: RedisServer, kind: str
) -> None:
    server.command("SET", "wsc:offline:order:ann", "no sorted set")
    async with publisher(kind, server.url) as both:

        def fill(batch: Batch) -> None:
            batch.user("ann", "x", require_ack=True)
            batch.user("bob", "x", require_ack=True)

        failed, done = await both.batch(fill)
        assert "does not take a message for user 'ann': WRONGTYPE" in str(failed)
        assert done == Told(0, stored=True)


# --- arguments ---


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: p.user("", "x"), ValidationError, "1 to 256 characters"),
        (lambda p: p.user(7, "x"), ValidationError, "a user id must be a str, not int"),
        (lambda p: p.user("u", b"x"), MessageTypeError, "a str or a HubMessage, not bytes"),
        (lambda p: p.user("u", "\ud800"), ValidationError, "lone surrogate"),
        (lambda p: p.user("u", "x", require_ack=1), ValidationError, "True or False, not int"),
        (lambda p: p.user("u", "x", message_id=""), ValidationError, "a message id must have 1"),
        (
            lambda p: p.user("u", HubMessage(), message_id="m"),
            ValidationError,
            "message_id is for a str",
        ),
        (lambda p: p.user("u", HubMessage(id="")), ValidationError, "HubMessage.id is ''"),
        (lambda p: p.user("u", "x" * (1 << 21)), ValidationError, "bytes on a bus, not 2097"),
        (
            lambda p: p.user("u", "x" * (1 << 21), require_ack=True),
            ValidationError,
            "bytes on a bus, not 2097",
        ),
        (lambda p: p.disconnect("u", 1005), ValidationError, "close code 1005 may not be sent"),
        (lambda p: p.disconnect("u", "1000"), ValidationError, "an int, not str"),
        (lambda p: p.disconnect("u", 1000, 7), ValidationError, "a str, not int"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(
    call: Callable[[Publisher], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(Publisher("redis://127.0.0.1:1", timeout=0.1))


@pytest.mark.parametrize("limit", [0, True, 1.5, 1 << 31])
def test_an_offline_limit_that_cannot_be_used_is_named(limit: Any) -> None:
    with pytest.raises(ConfigError, match="offline_limit must be an int from 1 to"):
        Publisher("redis://127.0.0.1:1", offline_limit=limit)


def test_a_publisher_stores_a_message_without_compiled_modules(server: RedisServer) -> None:
    code = f"""
import sys
from wsc_fast.publish import Publisher
publisher = Publisher({server.url!r})
publisher.user("ann", "x")
publisher.user("ann", "x", require_ack=True)
publisher.disconnect("ann")
print([name for name in sys.modules if name.startswith("wsc_fast._core") or name == "asyncio"])
"""
    out = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{os.getcwd()!r}]\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out == "['asyncio']\n" or out == "[]\n"
    assert server.command("HLEN", "wsc:offline:messages:ann") == 1
