"""Publishing without a hub: Publisher and AsyncPublisher reach the clients of hubs over Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.aware import Aware, keeping
from tests.publishers import Both
from tests.redis_server import RedisServer, cutter
from tests.support import join, named
from wsc_fast import (
    BusError,
    BusUnavailableError,
    ConfigError,
    Hub,
    HubMessage,
    Member,
    MessageTypeError,
    Published,
    ValidationError,
)
from wsc_fast._core.clients import check_id
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.bus.redis.calls import number_of_server
from wsc_fast.publish import AsyncPublisher, Batch, Publisher
from wsc_fast.publish.calls import RoomCall
from wsc_fast.publish.messages import Message, checked_id
from wsc_fast.testing import eventually, eventually_async


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@asynccontextmanager
async def publishers(kind: str) -> AsyncIterator[Callable[..., Both]]:
    """Makes publishers, and closes them in the end."""
    made: list[Both] = []

    def make(*args: Any, **options: Any) -> Both:
        made.append(Both(kind, *args, **options))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            await each.call("close")


@asynccontextmanager
async def a_hub(server: RedisServer | list[RedisServer], **options: Any) -> AsyncIterator[Hub]:
    """A hub on the bus that keeps the rooms `r*`; its clients are members of `r`."""
    url = server.url if isinstance(server, RedisServer) else [each.url for each in server]
    hub = keeping("r*", Hub(authenticate=named, bus=RedisBus(url)), **options)
    async with asyncio.timeout(60):
        await hub.start("127.0.0.1", 0)
        try:
            yield hub
        finally:
            await hub.stop(1.0)


async def heard_by(client: Any, say: Callable[[], Awaitable[object]]) -> None:
    """Returns once what is said reaches a client: a subscription takes a moment."""

    async def reached() -> bool:
        await say()
        try:
            return bool(await client.recv(0.2))
        except TimeoutError:
            return False

    await eventually_async(reached)


async def next_other(client: Any, word: bytes = b"ready") -> bytes:
    while True:
        payload: bytes = (await client.recv()).payload
        if payload != word:
            return payload


async def test_a_message_to_a_kept_room_has_a_position(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher, a_hub(server) as hub:
        aware = await Aware.open(hub, "a")
        await aware.recv()
        plain, _ = await join(hub, "b")
        both = publisher(server.url)
        first = await both.room("r", "text")
        head, payload = await aware.recv()
        assert (payload, head["pos"]) == (b"text", first.position)
        assert first == Published(first.position, False)
        assert (await plain.recv()).payload == b"text"
        await both.room("r", b"\x00bytes", exclude=["b"])
        assert (await aware.recv())[1] == b"\x00bytes"
        message = HubMessage(content="order sent", from_="shop")
        last = await both.room("r", message)
        assert b"order sent" in (await aware.recv())[1]
        assert b"order sent" in (await plain.recv()).payload
        history = await both.call("history", "r")
        assert [each.message for each in history] == ["text", b"\x00bytes", message]
        assert history[-1].position == last.position
        assert history == await hub.cluster.history("r")
        after = await both.call("history", "r", after=first.position, limit=1)
        assert [each.message for each in after] == [b"\x00bytes"]
        with pytest.raises(LookupError, match="does not reach back"):
            await both.call("history", "r", after="1-1.none")
        aware.close()
        plain.close()


async def test_plain_rooms_and_broadcasts_reach_the_clients(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher, a_hub(server) as hub:
        a, _ = await join(hub, "a")
        b, _ = await join(hub, "b")
        hub.join_room("a", "plain")
        both = publisher(server.url)
        await heard_by(a, lambda: both.room("plain", "ready"))
        assert await both.room("plain", "one") == Published(None, False)
        assert await next_other(a) == b"one"
        assert await both.call("broadcast", "to all", exclude=["a"]) == Published(None, False)
        assert await both.call("broadcast", "again") == Published(None, False)
        assert await next_other(a) == b"again"
        assert [(await b.recv()).payload for _ in range(2)] == [b"to all", b"again"]
        a.close()
        b.close()


@pytest.mark.parametrize("room", ["r", "plain"])
async def test_a_message_under_one_key_is_published_once(
    server: RedisServer, kind: str, room: str
) -> None:
    async with publishers(kind) as publisher, a_hub(server) as hub:
        both = publisher(server.url)
        first = await both.room(room, "text", idempotency_key="order-17")
        again = await both.room(room, "text", idempotency_key="order-17")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert again.position == first.position
        other = await both.room(room, "text", idempotency_key="order-18")
        assert not other.duplicate
        if room == "r":
            # A hub knows the same keys.
            by_hub = await hub.publish("r", "text", idempotency_key="order-17")
            assert by_hub == again


async def test_a_batch_is_published_in_order(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher:
        count = 500
        async with a_hub(server, size=1000) as hub:
            aware = await Aware.open(hub, "a")
            await aware.recv()
            both = publisher(server.url)

            def fill(batch: Batch) -> None:
                with pytest.raises(ValidationError):
                    batch.room("", "text")
                for number in range(count):
                    batch.room("r", str(number))
                    batch.room(f"plain{number}", "text")
                batch.broadcast("last")

            results = await both.batch(fill)
            assert len(results) == 2 * count + 1
            kept = [each for each in results if isinstance(each, Published) and each.position]
            texts = []
            while len(texts) < count:
                _, payload = await aware.recv()
                if payload != b"last":
                    texts.append(payload)
            assert texts == [b"%d" % number for number in range(count)]
            history = await hub.cluster.history("r", limit=1000)
            assert [each.position for each in history] == [each.position for each in kept]
            aware.close()


async def test_a_block_that_raises_publishes_nothing(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher, a_hub(server) as hub:
        both = publisher(server.url)

        def fill(batch: Batch) -> None:
            batch.room("r", "text")
            raise KeyError("as the test wants it")

        with pytest.raises(KeyError):
            await both.batch(fill)
        assert await hub.cluster.history("r") == []


async def test_calls_of_many_tasks_share_round_trips(server: RedisServer) -> None:
    async with a_hub(server, size=1000) as hub, AsyncPublisher(server.url) as publisher:
        await publisher.room("r", "first")
        calls = server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"]
        published = await asyncio.gather(*(publisher.room("r", str(n)) for n in range(640)))
        assert len({each.position for each in published}) == 640
        done = server.command("INFO", "commandstats")["cmdstat_evalsha"]["calls"] - calls
        assert done < 30
        history = await hub.cluster.history("r", limit=1000)
        assert [each.message for each in history][1:] == [str(n) for n in range(640)]


async def test_a_publisher_knows_who_is_there(server: RedisServer, kind: str) -> None:
    hub = Hub(authenticate=named, bus=RedisBus(server.url))
    hub.presence("chat:*")
    async with publishers(kind) as publisher:
        await hub.start("127.0.0.1", 0)
        try:
            both = publisher(server.url)
            server.command("SCRIPT", "FLUSH")
            assert await both.call("members", "chat:1") == []
            joined = [(await join(hub, f"user{number}"))[0] for number in range(3)]
            for number in range(2):
                hub.join_room(f"user{number}", "chat:1")
            await hub.cluster.members("chat:1")  # the hub has written it by now
            found = await both.call("members", "chat:1")
            assert sorted(found, key=lambda each: each.user_id) == [
                Member("user0", 1),
                Member("user1", 1),
            ]
            asked = ["user0", "user2", "nobody"]
            assert await both.call("online", asked) == {"user0", "user2"}
            for client in joined:
                client.close()
            with pytest.raises(ValidationError, match="several ids, not the str 'ann'"):
                await both.call("online", "ann")
        finally:
            await hub.stop(1.0)


# --- which rooms are kept ---


async def test_a_publisher_knows_the_rooms_that_the_hubs_keep(
    server: RedisServer, kind: str
) -> None:
    async with publishers(kind) as publisher:
        with pytest.raises(BusError, match="no hub has been on it for a day") as caught:
            await publisher(server.url).room("r", "text")
        assert "keep={...}" in str(caught.value)
        told = publisher(server.url, keep={"news:*": (10, 60.0)})
        assert (await told.room("news:1", "text")).position is not None
        assert (await told.room("r", "text")).position is None
        with pytest.raises(ValidationError, match="room 'r' is not kept"):
            await told.call("history", "r")
        async with a_hub(server):
            assert (await publisher(server.url).room("r", "text")).position is not None


async def test_hubs_that_keep_other_rooms_are_told(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_hub(server), a_hub(server):
        assert "keeps other rooms" not in caplog.text
        async with a_hub(server, size=7):
            await asyncio.sleep(0)
        assert "another hub on the bus at" in caplog.text
        assert '["r*", 7, 300.0]' in caplog.text


async def test_the_hub_that_has_started_last_says_which_rooms_are_kept(
    server: RedisServer, kind: str
) -> None:
    async with publishers(kind) as publisher, a_hub(server, size=7) as old, a_hub(server):
        bus = old._node._bus
        assert isinstance(bus, RedisBus)
        before = bus.counters()["reconnects"]
        assert server.command("CLIENT", "KILL", "TYPE", "normal") > 0
        await eventually(lambda: bus.counters()["reconnects"] > before)
        await old.publish("r", "over the new connection")
        assert b'["r*", 100, 300.0]' in server.command("GET", "wsc:keep")
        server.command("DEL", "wsc:keep")  # as where the bus has lost its data
        assert server.command("CLIENT", "KILL", "TYPE", "normal") > 0
        await eventually(lambda: server.command("EXISTS", "wsc:keep"))
        assert server.command("TTL", "wsc:keep") > 80000
        assert (await publisher(server.url).room("r", "text")).position is not None


async def test_each_message_goes_to_the_server_that_has_its_room(tmp_path: Path, kind: str) -> None:
    async with publishers(kind) as publisher:
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        with RedisServer(folders[0]) as one, RedisServer(folders[1]) as two:
            async with a_hub([one, two]) as hub:
                both = publisher([one.url, two.url])
                for number in range(10):
                    await both.room(f"r{number}", "text")
                    assert len(await hub.cluster.history(f"r{number}")) == 1
                a, _ = await join(hub, "a")
                await both.call("broadcast", "to all")
                assert (await a.recv()).payload == b"to all"
                a.close()
            streams = [len(each.command("KEYS", "wsc:h:*")) for each in (one, two)]
            assert sum(streams) == 10
            assert min(streams) > 0


async def test_a_server_that_hangs_costs_the_messages_of_another_nothing_but_time(
    tmp_path: Path, kind: str
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with RedisServer(folders[0]) as one, RedisServer(folders[1]) as two:
        one.pause()
        async with publishers(kind) as publisher:
            both = publisher([one.url, two.url], keep={"r*": (10, 60.0)}, timeout=0.2)
            rooms = [f"r{number}" for number in range(8)]

            def fill(batch: Batch) -> None:
                for room in rooms:
                    batch.room(room, "text")

            results = await both.batch(fill)
        for room, result in zip(rooms, results, strict=True):
            there = number_of_server(room, 2) == 1
            assert isinstance(result, Published if there else BusUnavailableError)


# --- faults ---


async def test_a_server_that_is_away_ends_in_an_error_that_says_so(
    server: RedisServer, kind: str
) -> None:
    async with publishers(kind) as publisher:
        both = publisher(server.url, timeout=0.3, keep={"r": (10, 60.0)})
        await both.room("r", "text")
        await asyncio.to_thread(server.stop)
        with pytest.raises(BusUnavailableError, match=r"not published within 0\.3 s"):
            await both.room("r", "text")
        with pytest.raises(BusUnavailableError, match="did not answer within"):
            await both.call("history", "r")
        await asyncio.to_thread(server.start)
        await both.room("r", "text")
        assert len(await both.call("history", "r")) == 2


@pytest.mark.parametrize("key", [None, "order-17"])
@pytest.mark.parametrize("room", ["r", "plain"])
async def test_a_connection_that_breaks_publishes_nothing_twice(
    server: RedisServer, kind: str, room: str, key: str | None
) -> None:
    """The answer to the first call is lost: nobody can see whether it was done, but the server."""

    async with publishers(kind) as publisher:
        lost = 0

        def answer(data: bytes) -> bytes | None:
            nonlocal lost
            if lost or not data.startswith((b":", b"*")):  # the answers to what connecting asks
                return data
            lost += 1
            return None

        async with a_hub(server) as hub, cutter(server) as relay:
            a, _ = await join(hub, "a")
            hub.join_room("a", "plain")
            ready = publisher(server.url)
            await heard_by(a, lambda: ready.room(room, "ready"))
            both = publisher(relay.url, keep={"r": (100, 300.0)})
            relay.reply = lambda number, data: answer(data)
            if room == "plain" and key is None:
                with pytest.raises(BusUnavailableError, match="nobody knows whether"):
                    await both.room(room, "text", idempotency_key=key)
            else:
                published = await both.room(room, "text", idempotency_key=key)
                assert not published.duplicate
            assert lost == 1
            await both.room(room, "last")
            assert [await next_other(a), await next_other(a)] == [b"text", b"last"]
            a.close()


async def test_a_script_that_the_server_has_forgotten_is_loaded_again(
    server: RedisServer, kind: str
) -> None:
    async with publishers(kind) as publisher:
        both = publisher(server.url, keep={"r": (10, 60.0)})
        await both.room("r", "one")
        server.command("SCRIPT", "FLUSH")
        await both.room("r", "two")
        server.command("SCRIPT", "FLUSH")
        assert [each.message for each in await both.call("history", "r")] == ["one", "two"]


async def test_a_user_without_the_right_hears_of_it(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher:
        server.command("ACL", "SETUSER", "web", "on", ">secret", "~wsc:*", "&wsc:*", "+@connection")
        url = f"redis://web:secret@127.0.0.1:{server.port}"
        with pytest.raises(BusError, match="refused the message") as caught:
            await publisher(url, keep={}).room("plain", "text")
        assert not isinstance(caught.value, BusUnavailableError)
        assert "secret" not in str(caught.value)
        with pytest.raises(BusError, match="refused"):
            await publisher(url).room("r", "text")


async def test_a_user_who_may_not_load_a_script_hears_of_it(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher:
        rights = ("+@connection", "+evalsha")
        server.command("ACL", "SETUSER", "web", "on", ">secret", "~wsc:*", "&wsc:*", *rights)
        url = f"redis://web:secret@127.0.0.1:{server.port}"
        both = publisher(url, keep={"r": (10, 60.0)})
        async with asyncio.timeout(10):
            with pytest.raises(BusError, match="no permissions to run"):
                await both.room("r", "text")
            with pytest.raises(BusError, match="no permissions to run"):
                await both.call("history", "r")


async def test_bytes_that_no_hub_has_written_say_nothing_of_kept_rooms(
    server: RedisServer, kind: str
) -> None:
    async with publishers(kind) as publisher:
        for data in ("no json", '{"r*":1}', '[["r*",10]]', '[["r*",10,"1e999"]]', "[7]"):
            server.command("SET", "wsc:keep", data)
            with pytest.raises(BusError, match="no hub has written what stands at the key"):
                await publisher(server.url).room("r", "text")


async def test_a_server_that_still_loads_is_asked_again(kind: str) -> None:
    """It refuses all calls of a batch, and each is made again."""
    refused = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        while data := await reader.read(65536):
            for _ in range(data.count(b"CLIENT\r\n")):
                writer.write(b"+OK\r\n")
            for _ in range(data.count(b"PUBLISH\r\n")):
                refused += 1
                writer.write(b"-LOADING not yet\r\n" if refused <= 3 else b":0\r\n")
        writer.close()

    def fill(batch: Batch) -> None:
        for room in "abc":
            batch.room(room, "text")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        async with publishers(kind) as publisher:
            both = publisher(f"redis://127.0.0.1:{port}", keep={})
            assert await both.batch(fill) == [Published(None, False)] * 3
            assert refused == 6


async def test_close_leaves_a_call_that_is_under_way(server: RedisServer, kind: str) -> None:
    async with publishers(kind) as publisher:
        both = publisher(server.url, keep={})
        await both.room("plain", "first")
        calling = None
        server.pause()
        try:
            calling = asyncio.ensure_future(both.room("plain", "second"))
            await eventually(lambda: _in_use(both))
            closing = asyncio.ensure_future(both.call("close"))
            if both.blocks:
                await closing
        finally:
            server.resume()
        assert await calling == Published(None, False)
        await closing


def _in_use(both: Both) -> bool:
    return any(pool._in_use_connections for pool in both.publisher._pools)


async def test_callers_of_one_failed_round_trip_have_errors_of_their_own() -> None:
    async with AsyncPublisher("redis://127.0.0.1:1", timeout=0.1) as publisher:
        calls = [publisher.room("r", "text") for _ in range(20)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, BusUnavailableError) for each in errors)
        assert len({id(each) for each in errors}) == 20


async def test_a_large_batch_takes_a_time_that_grows_with_it_alone(
    server: RedisServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    takes = RoomCall.takes

    def counted(call: RoomCall, message: Message) -> bool:
        nonlocal looks
        looks += 1
        return takes(call, message)

    def fill(batch: Batch) -> None:
        for number in range(2000):
            batch.room("r", str(number))

    monkeypatch.setattr(RoomCall, "takes", counted)
    async with publishers(kind) as publisher:
        both = publisher(server.url, keep={"r": (1000, 60.0)})
        results = await both.batch(fill)
        assert all(isinstance(each, Published) for each in results)
        history = await both.call("history", "r", limit=1000)
        assert [each.message for each in history] == [str(n) for n in range(1000, 2000)]
    assert looks <= 2000


# --- arguments ---


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: p.room("", "x"), ValidationError, "1 to 256 characters"),
        (lambda p: p.room(7, "x"), ValidationError, "a room id must be a str, not int"),
        (lambda p: p.room("a\nb", "x"), ValidationError, "control characters"),
        (lambda p: p.room("r", 7), MessageTypeError, "str, bytes or a HubMessage, not int"),
        (lambda p: p.room("r", "\ud800"), ValidationError, "lone surrogate"),
        (lambda p: p.room("r", "x", key=7), ValidationError, "a conflation key must be a str"),
        (lambda p: p.room("r", "x", exclude="ann"), ValidationError, "not a single str"),
        (lambda p: p.room("r", "x", idempotency_key=""), ValidationError, "1 to 128 bytes"),
        (lambda p: p.room("r", b"x" * (1 << 21)), ValidationError, "bytes on a bus, not 2097"),
        (lambda p: p.history("r", limit=0), ValidationError, "1 to 1000, not 0"),
        (lambda p: p.history("r", after=7), ValidationError, "a position or None, not 7"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(
    call: Callable[[Publisher], object], error: type[Exception], text: str
) -> None:
    publisher = Publisher("redis://127.0.0.1:1", timeout=0.1)
    with pytest.raises(error, match=text):
        call(publisher)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "http://x"}, "the URL of a RedisBus must be"),
        ({"url": []}, "1 to 64 servers, not 0"),
        ({"timeout": 0}, "timeout must be above 0 and up to 60 seconds, not 0"),
        ({"prefix": "a b"}, "without spaces and braces, not 'a b'"),
        ({"keep": {"r": 7}}, "a size and a ttl for each pattern"),
        ({"keep": {"r": (0.5, 60.0)}}, "keep, at 'r': size must be an int from 1 to 10000"),
        ({"keep": {"r": (10, float("inf"))}}, "keep, at 'r': ttl must be 1 to 86400 seconds"),
        ({"keep": {"": (10, 60.0)}}, "keep, at '': pattern must be a str of 1 to 256 characters"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Publisher(**{"url": "redis://127.0.0.1:1", **options})


# --- processes, threads, loops ---


def test_the_module_is_imported_fast_and_compiles_nothing() -> None:
    code = """
import sys
from wsc_fast.publish import Publisher
compiled = [name for name in sys.modules if name.startswith("wsc_fast._core")]
heavy = [name for name in ("asyncio", "redis", "msgspec", "ssl") if name in sys.modules]
print(compiled, heavy, len(sys.modules))
"""
    out = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{os.getcwd()!r}]\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("]")
    assert out[:2] == ["[", " ["]
    assert int(out[2]) < 120


def test_threads_share_a_publisher(server: RedisServer) -> None:
    positions: list[str | None] = []
    with Publisher(server.url, keep={"r": (1000, 60.0)}) as publisher:

        def publish() -> None:
            for _ in range(50):
                positions.append(publisher.room("r", "text").position)

        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(positions)) == 400
        assert len(publisher.history("r", limit=1000)) == 400


def test_a_child_of_a_fork_has_connections_of_its_own(server: RedisServer) -> None:
    code = f"""
import os
from wsc_fast.publish import Publisher
publisher = Publisher({server.url!r}, keep={{"r": (1000, 60.0)}})
publisher.room("r", "before")
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        for _ in range(50):
            publisher.room("r", "child")
        os._exit(0)
    children.append(child)
for _ in range(50):
    publisher.room("r", "parent")
print([os.waitpid(child, 0)[1] for child in children], len(publisher.history("r", limit=1000)))
publisher.close()
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "[0, 0, 0] 201"


def test_an_async_publisher_begins_anew_under_another_loop(server: RedisServer) -> None:
    publisher = AsyncPublisher(server.url, keep={"r": (1000, 60.0)})

    async def publish() -> None:
        await publisher.room("r", "text")
        await publisher.close()

    asyncio.run(publish())
    asyncio.run(publish())


def test_an_async_publisher_may_be_closed_under_another_loop(server: RedisServer) -> None:
    code = f"""
import asyncio
from wsc_fast.bus.redis.calls import number_of_server
from wsc_fast.publish import AsyncPublisher
publisher = AsyncPublisher({server.url!r}, keep={{"r": (1000, 60.0)}})
async def publish():
    return await publisher.room("r", "text")
asyncio.run(publish())
asyncio.run(publisher.close())
print(asyncio.run(publish()).duplicate)
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == "False"


async def test_a_call_that_is_cancelled_leaves_the_others(server: RedisServer) -> None:
    async with AsyncPublisher(server.url, keep={"r": (1000, 60.0)}) as publisher:
        tasks = [asyncio.ensure_future(publisher.room("r", str(n))) for n in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [n for n, each in enumerate(results) if not isinstance(each, Published)] == [3]


# --- ids ---

IDS = [
    "r",
    "r r",
    "x" * 256,
    "\u4e16",
    "",
    "x" * 257,
    "a\nb",
    "a\x00",
    "\x7f",
    "\x85",
    "\u2028",
    1,
    b"r",
    None,
]


@pytest.mark.parametrize("value", IDS)
@pytest.mark.parametrize("kind", ["room", "user", "client"])
def test_a_publisher_takes_the_ids_that_a_hub_takes(kind: str, value: object) -> None:
    def answer(check: Callable[[str, object], str]) -> str:
        try:
            return check(kind, value)
        except ValidationError as error:
            return f"refused: {error}"

    # It has a check of its own, since it imports no compiled module.
    assert answer(checked_id) == answer(check_id)
