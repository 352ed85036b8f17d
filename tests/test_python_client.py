"""The client in Python on real hubs, and on networks that fail."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from wsc_client import (
    Client,
    ClosedError,
    FileStorage,
    First,
    Joined,
    LostError,
    Message,
    Recovered,
    Refused,
    RefusedError,
    RequestTimeoutError,
    StateChange,
    Token,
)

from tests.asking_hub import asking
from tests.redis_server import cutter
from tests.support import known, named, only_client
from trials.clients.line import line
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    HubConfig,
    Identity,
    MemoryBus,
    Request,
    Response,
)
from wsc_fast import Client as HubClient
from wsc_fast.auth import TokenAuthenticator
from wsc_fast.testing import eventually, running

QUICK: dict[str, Any] = {"min_delay": 0.05, "max_delay": 0.2}


def url_of(hub: Hub, query: str = "?id=a", port: int | None = None) -> str:
    return f"ws://127.0.0.1:{port or hub.port}/ws{query}"


async def collected(events: Any, count: int) -> list[Any]:
    found = []
    async for each in events:
        found.append(each)
        if len(found) == count:
            break
    return found


# --- on hubs ---


async def test_texts_bytes_json_and_requests_on_one_connection(any_loop: str) -> None:
    hub = asking()
    async with running(hub), Client(url_of(hub)) as client:
        for data in ("plain text", {"a": [1, None]}, b"\x00\n\xff"):
            await client.send(data)
        assert [each.data for each in await collected(client, 3)] == [
            "plain text",
            {"a": [1, None]},
            b"\x00\n\xff",
        ]
        assert await client.request({"get": "it"}) == {"you": "a", "asked": {"get": "it"}}
        with pytest.raises(RefusedError, match="there is nothing") as caught:
            await client.request("nothing")
        assert caught.value.code == "no-such"
    assert client.state == "closed"
    with pytest.raises(ClosedError):
        await client.send("late")


async def test_all_that_was_sent_is_read_before_the_close(any_loop: str) -> None:
    hub = asking()
    heard: list[str | bytes] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    texts = [f"{number} " + "x" * 5000 for number in range(500)]
    async with running(hub):
        async with Client(url_of(hub), queue_bytes=1 << 24) as client:
            for text in texts:
                client.send(text)
            await client.send("last")
        await eventually(lambda: hub.connections == 0)
        assert heard == [*texts, "last"]


async def test_no_task_is_left_whatever_state_the_client_is_closed_in(any_loop: str) -> None:
    hub = asking()

    async def stuck(event: Any) -> None:
        await asyncio.Event().wait()

    def left() -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - before if not task.done()}

    async with running(hub):
        before = asyncio.all_tasks()
        async with Client(url_of(hub)) as client:
            client.on(Message, stuck)
            await client.send("x")
            await client.request(1)
        assert left() == set()
        for wait in (0, 1, 5, 20):  # turns of the loop
            client = Client(url_of(hub), get_token=lambda: asyncio.sleep(0, "token-of-someone"))
            client.connect()
            for _ in range(wait):
                await asyncio.sleep(0)
            await client.aclose()
            assert left() == set()
    # Nobody listens there any more.
    client = Client(url_of(hub, port=1), **QUICK)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), client:
            raise AssertionError("it cannot connect")
    assert client.state == "closed"
    assert left() == set()
    gc.collect()


async def test_rooms_are_joined_and_recovered_over_a_restart(tmp_path: Path) -> None:
    bus = str(tmp_path / "kept.db")
    hub = asking(Hub(authenticate=named, bus=MemoryBus(bus)))
    loaded: list[tuple[str, str]] = []

    async def load(room: str, why: str) -> None:
        loaded.append((room, why))

    async with running(hub):
        port = hub.port
        client = Client(url_of(hub), load=load, **QUICK)
        heard: list[Any] = []
        for kind in (Joined, First, Recovered, Refused, Message):
            client.on(kind, heard.append)
        client.room("chat:b")
        client.room("chat:a")
        client.room("staff")
        client.connect()
        await eventually(lambda: [each for each in heard if isinstance(each, Refused)])
        await eventually(lambda: loaded == [("chat:b", "first"), ("chat:a", "first")])
        await hub.publish("chat:a", "before")
        await eventually(lambda: "before" in [getattr(each, "data", "") for each in heard])
    hub = asking(Hub(authenticate=named, bus=MemoryBus(bus)))
    hub.on_startup(lambda: hub.publish("chat:a", "meanwhile"))
    async with running(hub, port=port):
        await eventually(lambda: Recovered("chat:a", 1) in heard)
        await hub.publish("chat:a", "after")
        await eventually(lambda: "after" in [getattr(each, "data", "") for each in heard])
        assert known(hub, "a").rooms == ("chat:b", "chat:a")
        await client.aclose()
    texts = [each.data for each in heard if isinstance(each, Message)]
    assert texts == ["before", "meanwhile", "after"]
    assert next(each for each in heard if isinstance(each, Refused)).error.code == "forbidden"


async def test_a_program_that_starts_again_recovers_from_its_file(tmp_path: Path) -> None:
    hub = asking()
    file = tmp_path / "positions.json"
    async with running(hub):
        async with Client(url_of(hub), storage=FileStorage(file)) as client:
            room = client.room("chat:a")
            await eventually(lambda: room.joined)
            await hub.publish("chat:a", "one")
            assert [each.data for each in await collected(room, 1)] == ["one"]
        await eventually(lambda: hub.connections == 0)
        await hub.publish("chat:a", "two")
        async with Client(url_of(hub), storage=FileStorage(file)) as client:
            (message,) = await collected(client.room("chat:a"), 1)
            assert message.data == "two"
    assert os.listdir(tmp_path) == [file.name]


async def test_a_storage_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gone").mkdir()
    storage = FileStorage(tmp_path / "gone" / "positions.json")
    (tmp_path / "gone").rmdir()
    hub = asking()
    async with running(hub), Client(url_of(hub), storage=storage) as client:
        room = client.room("chat:a")
        await eventually(lambda: "the storage cannot be written" in caplog.text)
        await hub.publish("chat:a", "one")
        assert [each.data for each in await collected(room, 1)] == ["one"]


async def test_messages_that_must_arrive_are_shown_once_and_acknowledged() -> None:
    hub = asking()
    hub.enable_ack(ACKConfig(retry_interval=0.2))
    heard: list[str] = []
    async with running(hub), cutter(hub) as relay:  # type: ignore[arg-type]
        client = Client(url_of(hub, port=relay.port), **QUICK)
        async with client:
            client.on(Message, lambda message: heard.append(message.data["content"]))
            await client.request(1)  # the hub has let it in
            await hub.send_ack_message_to_user("a", ACKMessage(content="one"))
            # The acknowledgement of the second one is lost with the connection.
            relay.request = lambda number, data: None
            pending = hub.send_ack_message_to_user("a", ACKMessage(content="two"))
            await eventually(lambda: len(heard) == 2)
            relay.request = lambda number, data: data
            await pending
            await client.request(1, retry=True)
            assert heard == ["one", "two"]


async def test_a_token_goes_as_a_subprotocol_and_is_renewed_before_it_ends() -> None:
    good = {"first-token-of-ann": "ann", "second-token-of-ann": "ann"}
    asked: list[float] = []

    def get_token() -> str | Token:
        asked.append(time.time())
        first = Token("first-token-of-ann", asked[0] + 1)
        return first if len(asked) == 1 else "second-token-of-ann"

    hub = asking(Hub(authenticate=TokenAuthenticator(good)))
    states: list[str] = []
    async with running(hub):
        client = Client(url_of(hub), get_token=get_token)
        client.on(StateChange, lambda change: states.append(change.state))
        async with client:
            await eventually(lambda: states.count("open") == 2)
            await client.request(1)  # the hub has let it in
            assert only_client(hub).user_id == "ann"
    assert states == ["connecting", "open", "connecting", "open", "closed"]
    assert asked[1] - asked[0] > 0.4


async def test_a_token_that_ends_is_renewed() -> None:
    tokens: list[str | None] = []

    async def authenticate(request: Request) -> Identity | None:
        tokens.append(request.query.get("token"))
        later = 3600 if tokens[-1] == "second" else 0.2
        return Identity("ann", expires_at=time.time() + later)

    names = iter(["first", "second"])
    hub = asking(Hub(authenticate=authenticate))
    async with running(hub):
        client = Client(url_of(hub), get_token=lambda: next(names), token_query="token")
        async with client:
            await eventually(lambda: client.stats().connections == 2)
            await client.request(1)
    assert tokens == ["first", "second"]


@pytest.mark.parametrize(("status", "why"), [(401, "unauthorized"), (403, "forbidden")])
async def test_a_client_that_is_not_let_in_is_closed_at_once(status: int, why: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ClosedError, match=f"the server answers {status}") as caught:
        async with Client(f"ws://127.0.0.1:{port}/ws"):
            raise AssertionError("it was let in")
    assert caught.value.why == why
    server.close()
    await server.wait_closed()


async def test_a_status_route_is_asked_where_no_answer_was_seen() -> None:
    hub = Hub()
    asked: list[str | None] = []

    @hub.route("/status")
    def status(request: Request) -> Response:
        asked.append(request.headers.get("Authorization"))
        return Response(status=403)

    async with running(hub), cutter(hub) as relay:  # type: ignore[arg-type]
        relay.request = lambda number, data: None
        client = Client(
            url_of(hub, port=relay.port),
            status_url=f"http://127.0.0.1:{hub.port}/status",
            get_token=lambda: "the-token",
        )
        with pytest.raises(ClosedError, match="forbidden"):
            async with client:
                raise AssertionError("it was let in")
    assert asked == ["Bearer the-token"]


@pytest.mark.parametrize("upgrade", [True, False], ids=["upgrade", "status"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int, upgrade: bool) -> None:
    """The token is for the server that was named, and for no other one (H4)."""
    asked = 0
    elsewhere: list[bytes] = []

    async def see(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        elsewhere.append(await reader.read(10_000))
        writer.close()

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        request = await reader.readuntil(b"\r\n\r\n")
        if upgrade or request.startswith(b"GET /status"):
            assert b"SECRET" in request
            asked += 1
            target = b"http://127.0.0.1:%d/ws" % other.sockets[0].getsockname()[1]
            writer.write(b"HTTP/1.1 %d Other\r\nLocation: %s\r\n" % (status, target))
            writer.write(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(see, "127.0.0.1", 0)
    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    at = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = Client(
        f"ws://{at}/ws",
        get_token=lambda: "SECRET",
        status_url=f"http://{at}/status",
        proxy=False,
        **QUICK,
    )
    client.connect()
    # Further attempts show that the client has dealt with the answer.
    await eventually(lambda: asked >= 3)
    assert client.state in ("waiting", "connecting")
    await client.aclose()
    for each in (server, other):
        each.close()
        await each.wait_closed()
    assert elsewhere == []


async def test_a_full_hub_says_when_to_come_again(caplog: pytest.LogCaptureFixture) -> None:
    hub = asking(Hub(HubConfig(max_connections=1)))
    async with running(hub), Client(url_of(hub)):
        second = Client(url_of(hub, "?id=b"), **QUICK)
        changes: list[StateChange] = []
        second.on(StateChange, changes.append)
        second.connect()
        await eventually(lambda: len(changes) >= 2)
        await second.aclose()
    assert changes[1].state == "waiting"
    assert changes[1].delay >= 1
    assert "the server answers 503; connecting again in" in caplog.text


async def test_a_request_that_is_not_answered_ends_in_an_error_that_says_why() -> None:
    hub = Hub()
    asked = asyncio.Event()

    @hub.on_request
    async def never(client: HubClient, data: Any) -> None:
        asked.set()
        await asyncio.sleep(30)

    async with running(hub), cutter(hub) as relay:  # type: ignore[arg-type]
        client = Client(url_of(hub, port=relay.port), **QUICK)
        async with client:
            with pytest.raises(RequestTimeoutError, match=r"no answer came within 0\.05 s"):
                await client.request(1, timeout=0.05)
            lost = client.request(2)
            await asked.wait()
            await relay.finish()
            with pytest.raises(LostError):
                await lost


# --- networks ---


@pytest.fixture
def short() -> dict[str, Any]:
    """Options that are thirty times shorter than the defaults."""
    return {
        **QUICK,
        "connect_timeout": 0.4,
        "heartbeat_interval": 0.3,
        "heartbeat_timeout": 0.3,
    }


async def black_hole(relay: Any) -> None:
    relay.silence()
    await asyncio.sleep(1.0)
    relay.speak()


async def portal(relay: Any) -> None:
    relay.portal = True
    await relay.cut_all()
    await asyncio.sleep(0.5)
    relay.portal = False


async def ends_idle(relay: Any) -> None:
    relay.idle = 0.1
    await relay.cut_all()
    await asyncio.sleep(0.6)
    relay.idle = None


@pytest.mark.parametrize("requests", [True, False], ids=["requests", "plain"])
@pytest.mark.parametrize("fault", [black_hole, portal, ends_idle])
async def test_a_client_comes_back_after_a_fault_of_the_network(
    fault: Callable[[Any], Awaitable[None]], requests: bool, short: dict[str, Any]
) -> None:
    hub = asking() if requests else Hub(authenticate=named)
    if not requests:
        hub.keep("chat:*")
        hub.on_client_connected(lambda client: hub.join_room(client.id, "chat:a"))
    async with running(hub), line([hub.port]) as relay:
        client = Client(url_of(hub, port=relay.port), **short)
        heard: list[Any] = []
        states: list[str] = []
        client.on(StateChange, lambda change: states.append(change.state))
        client.on(Message, lambda message: heard.append(message.data))
        client.room("chat:a", join=requests)
        async with client:
            await eventually(lambda: client.room("chat:a").joined or not requests)
            await eventually(lambda: hub.get_connected_clients() == 1)
            await hub.publish("chat:a", "1")
            await eventually(lambda: heard == [1])
            suffering = asyncio.ensure_future(fault(relay))
            await asyncio.sleep(0)
            await hub.publish("chat:a", "2")
            await suffering
            await hub.publish("chat:a", "3")
            await eventually(lambda: heard == [1, 2, 3])
            assert states.count("open") > 1
        assert "closed" not in states[:-1]


@asynccontextmanager
async def slow_reader(hub: Hub, goes_on: Callable[[], bool]) -> AsyncIterator[int]:
    """A relay, at this port, that reads 400 KB/s of a client as long as the function says so."""

    async def up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while goes_on() and (data := await reader.read(8192)):
            writer.write(data)
            await asyncio.sleep(len(data) / 400_000)
        if not goes_on():
            await asyncio.Event().wait()

    async def down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(8192):
            writer.write(data)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_hub, to_hub = await asyncio.open_connection("127.0.0.1", hub.port)
        ways = [asyncio.ensure_future(up(reader, to_hub))]
        ways.append(asyncio.ensure_future(down(from_hub, writer)))
        try:
            await asyncio.wait(ways, return_when="FIRST_COMPLETED")
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            to_hub.close()

    # Little memory for what comes, so that the client sees how slowly it is read.
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listening.bind(("127.0.0.1", 0))
    carrying: set[asyncio.Task[None]] = set()
    server = await asyncio.start_server(
        lambda *streams: carrying.add(asyncio.ensure_future(carry(*streams))),
        sock=listening,
        limit=4096,
    )
    try:
        yield listening.getsockname()[1]
    finally:
        server.close()
        for each in carrying:
            each.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)
        await server.wait_closed()


SLOW: dict[str, Any] = {
    "heartbeat_interval": 0.4,
    "heartbeat_timeout": 0.6,
    "queue_bytes": 8 << 20,
    "compression": False,
    "proxy": False,
    "close_timeout": 0.2,
}


async def test_a_connection_that_takes_a_long_message_slowly_is_alive() -> None:
    """B5: the pings of the client wait behind the message."""
    got: list[int] = []
    hub = Hub(HubConfig(max_message_size=8 << 20))
    hub.on_message_received(lambda client, message: got.append(len(message)))
    async with running(hub), slow_reader(hub, lambda: True) as port:
        states: list[str] = []
        client = Client(f"ws://127.0.0.1:{port}/ws", **QUICK, **SLOW)
        client.on(StateChange, lambda change: states.append(change.state))
        async with client:
            await client.send(os.urandom(1_200_000))
            await eventually(lambda: got == [1_200_000], timeout=20)
            assert states == ["connecting", "open"]


async def test_a_network_that_takes_nothing_more_is_found_in_the_middle_of_a_message() -> None:
    """B1."""
    hub = Hub(HubConfig(max_message_size=32 << 20))
    taking = True
    async with running(hub), slow_reader(hub, lambda: taking) as port:
        changes: list[StateChange] = []
        client = Client(f"ws://127.0.0.1:{port}/ws", **QUICK, **SLOW)
        client.on(StateChange, changes.append)
        async with client:
            client.send(os.urandom(8_000_000))
            await eventually(lambda: changes[-1].state == "open")
            taking = False
            await eventually(lambda: any(each.state == "waiting" for each in changes), timeout=10)
            (lost, *_) = [each for each in changes if each.state == "waiting"]
            assert "does not answer pings" in str(lost.error)


def test_the_log_lines_are_those_of_its_logger() -> None:
    assert logging.getLogger("wsc_client.websockets").parent is logging.getLogger("wsc_client")
