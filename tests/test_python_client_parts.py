"""The client in Python beyond the cases: listeners, iterators, bounds, cancellation."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from wsc_client import (
    Client,
    ClosedError,
    ErrorEvent,
    First,
    Gap,
    LostError,
    Message,
    OptionError,
    ProtocolError,
    QueueFullError,
    Recovered,
    StateChange,
)
from wsc_client.platform import Answer, Ending
from wsc_client.transport import retry_after

from tests.clients.python_world import World, settle

URGENT = (
    '{"id":"m%d","type":"t","content":"","create_at":"2026-11-24T09:30:00Z","require_ack":true}'
)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[World]:
    """A world whose client is open."""
    world = World({"options": options})
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    world.did = []
    yield world
    await world.end()


async def receive(world: World, *texts: str) -> None:
    for text in texts:
        await world.act({"do": "receive", "text": text})


def sent(world: World) -> list[Any]:
    return [each["sent"] for each in world.did if "sent" in each]


async def collected(events: Any, count: int) -> list[Any]:
    found = []
    async for each in events:
        found.append(each)
        if len(found) == count:
            break
    return found


# --- options and arguments ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"queue_byte": 1}, "no option 'queue_byte'"),
        ({"queue_bytes": "many"}, "queue_bytes is 'many', expected an int, 0 or more"),
        ({"min_delay": -1.0}, "min_delay is -1.0, expected seconds, 0 or more"),
        ({"connect_timeout": 0}, "connect_timeout is 0, expected seconds, more than 0"),
        ({"known_ids": True}, "known_ids is True"),
        ({"max_delay": float("nan")}, "max_delay is nan"),
        ({"recover": 1}, "recover is 1, expected True or False"),
        ({"protocols": "chat"}, "protocols is 'chat', expected a list of str"),
        ({"get_token": "abc"}, "get_token is 'abc', expected a function"),
        ({"status_url": "/status"}, "status_url is '/status', expected http"),
    ],
)
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        Client("ws://hub.test/ws", **options)


@pytest.mark.parametrize("url", ["no url", "ftp://hub.test/", "ws://", "ws://hub:port/", 5, ""])
def test_a_url_that_is_none_is_refused_at_once(url: Any) -> None:
    with pytest.raises(OptionError, match="the url is"):
        Client(url)


def test_http_is_taken_for_ws() -> None:
    assert Client("https://app.example/ws?a=1#part").url == "wss://app.example/ws?a=1"
    assert Client("http://app.example/ws").url == "ws://app.example/ws"


async def test_data_that_is_no_json_is_not_sent() -> None:
    async with opened() as world:
        circle: list[Any] = []
        circle.append(circle)
        for data in ({1, 2}, float("nan"), circle, "\ud800", object()):
            with pytest.raises((TypeError, ValueError)):
                world.client.send(data)
            if not isinstance(data, str):
                with pytest.raises((TypeError, ValueError)):
                    world.client.request(data)
        assert world.did == []
        # The numbers of requests go on without a hole.
        world.client.request("next").cancel()
        assert sent(world)[0]["json"]["id"] == "q1"


async def test_a_listener_has_to_be_a_function_and_an_event_a_class_of_events() -> None:
    client = Client("ws://hub.test/ws")
    with pytest.raises(TypeError, match="no class of events"):
        client.on(int, print)
    with pytest.raises(TypeError, match="expected a function"):
        client.on(Message, "print")  # type: ignore[arg-type]


# --- listeners ---


async def test_async_listeners_are_awaited_one_after_the_other_and_then_acknowledge() -> None:
    async with opened() as world:
        gates = [asyncio.Event(), asyncio.Event()]
        begun: list[str] = []

        @world.client.on(Message)
        async def slow(message: Message) -> None:
            begun.append(message.data["id"])
            await gates[len(begun) - 1].wait()

        await receive(world, "\n" + URGENT % 1, "\n" + URGENT % 2, "\n" + URGENT % 1)
        assert begun == ["m1"]
        # The copy of a message whose listener is not done is neither shown nor acknowledged.
        assert sent(world) == []
        for gate, acknowledged in zip(gates, ("m1", "m2"), strict=True):
            gate.set()
            await settle()
            assert sent(world)[-1]["json"] == {"type": "ack", "message_id": acknowledged}
        assert begun == ["m1", "m2"]
        assert len(sent(world)) == 2
        assert world.client.stats().copies == 1


async def test_an_async_listener_that_raises_has_the_message_acknowledged_as_failed() -> None:
    async with opened() as world:

        @world.client.on(Message)
        async def wrong(message: Message) -> None:
            raise LookupError("x" * 600)

        await receive(world, "\n" + URGENT % 1)
        (ack,) = sent(world)
        assert ack["json"]["status"] == "failed"
        assert ack["json"]["error"] == "x" * 500
        assert {"error": True} in world.did


async def test_a_listener_that_meets_a_cancellation_has_failed_once_and_goes_on() -> None:
    """It awaited something that was cancelled; its own task was not."""
    async with opened() as world:
        heard: list[str] = []

        @world.client.on(Message)
        async def listen(message: Message) -> None:
            await asyncio.sleep(0)
            if message.data["id"] == "m1":
                gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                gone.cancel()
                await gone
            heard.append(message.data["id"])

        for number in (1, 2, 3):
            world.sockets[-1].ears.received("\n" + URGENT % number)
        await settle()
        assert heard == ["m2", "m3"]
        acks = [each["json"] for each in sent(world)]
        assert [(each["message_id"], each.get("status")) for each in acks] == [
            ("m1", "failed"),
            ("m2", None),
            ("m3", None),
        ]
        assert acks[0]["error"] == "CancelledError()"
        assert {"error": True} in world.did


async def test_the_position_in_the_storage_is_that_of_messages_that_are_done() -> None:
    async with opened(storage=True) as world:
        gate = asyncio.Event()
        world.client.on(Message, lambda message: gate.wait())
        await receive(world, '{"room":"r","pos":"1"}\nx', '{"room":"r","pos":"2"}\ny')
        await world.act({"do": "advance", "ms": 200})
        assert not [each for each in world.did if "stored" in each]
        # The hello of this process has what has come, so that none comes twice.
        await world.act({"do": "end", "code": 1006})
        await world.act({"do": "advance", "ms": 500})
        await world.act({"do": "open"})
        assert sent(world)[-1]["head"] == {"hello": 1, "pos": {"r": "2"}}
        gate.set()
        await settle()
        await world.act({"do": "advance", "ms": 200})
        assert {"stored": {"wsc:ws://hub.test/ws:pos": [["r", "2"]]}} in world.did


async def test_a_message_that_was_not_done_at_the_end_comes_again() -> None:
    async with opened(storage=True) as world:
        world.client.on(Message, lambda message: asyncio.Event().wait())
        await receive(world, '{"room":"r","pos":"1"}\n' + URGENT % 1)
        await world.client.aclose()
        world.did = []
        await world.act({"do": "connect"})
        await world.act({"do": "open"})
        assert sent(world) == [{"head": {"hello": 1, "pos": {}}, "text": ""}]
        await receive(world, '{"room":"r","pos":"1"}\n' + URGENT % 1)
        assert [each for each in world.did if "message" in each]


async def test_an_error_without_a_listener_is_logged_and_one_of_a_listener_of_errors_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as world:

        def wrong(event: Any) -> None:
            raise LookupError(f"of {type(event).__name__}")

        world.client.on(ErrorEvent, wrong)
        world.client.on(Message, wrong)
        await receive(world, "\nx")
        assert world.client.state == "open"
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "of ErrorEvent"
    ]


async def test_a_listener_that_has_ended_is_not_called() -> None:
    async with opened() as world:
        heard: list[str] = []

        def once(message: Message) -> None:
            heard.append("once")
            end()

        end = world.client.on(Message, once)
        room = world.client.room("r", join=False)
        room.on(Message, lambda message: heard.append("room"))
        await receive(world, '{"room":"r","pos":"1"}\nx', '{"room":"r","pos":"2"}\ny')
        assert heard == ["room", "once", "room"]


# --- iterators ---


def silent_world(**options: Any) -> World:
    """A world whose client has no listener of messages."""
    return World({"options": options}, listens=False)


async def test_messages_before_the_first_listener_wait_for_it() -> None:
    world = silent_world()
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    room = world.client.room("r", join=False)
    await receive(world, "\na", '{"room":"r","pos":"1"}\nb', "\n" + URGENT % 1, "\nc")
    assert "m1" not in str(sent(world))
    # That of the room first: the others wait for one of the client.
    assert [each.data for each in await collected(room, 1)] == ["b"]
    rest = [each.data for each in await collected(world.client, 3)]
    assert [rest[0], rest[1]["id"], rest[2]] == ["a", "m1", "c"]
    await settle()
    assert sent(world)[-1]["json"] == {"type": "ack", "message_id": "m1"}
    await world.end()


async def test_an_iterator_that_is_left_loses_nothing() -> None:
    world = silent_world()
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    first = asyncio.ensure_future(collected(world.client, 2))
    await settle()
    await receive(world, "\n1", "\n2")
    assert [each.data for each in await first] == [1, 2]
    await receive(world, "\n3")
    second = asyncio.ensure_future(collected(world.client, 2))
    await settle()
    for text in ("\n4", "\n5"):
        world.sockets[-1].ears.received(text)
    assert [each.data for each in await second] == [3, 4]
    assert [each.data for each in await collected(world.client, 1)] == [5]
    await world.end()


async def test_messages_that_nobody_listens_to_are_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = silent_world(pending_messages=3)
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    await receive(world, *(f"\n{number}" for number in range(5)))
    assert world.client.stats().unheard == 2
    assert caplog.text.count("nobody listens to messages") == 1
    assert [each.data for each in await collected(world.client, 3)] == [2, 3, 4]
    await world.end()


async def test_a_message_that_was_dropped_unheard_is_heard_when_it_comes_again() -> None:
    world = silent_world(pending_messages=2)
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    world.did = []
    await receive(world, *("\n" + URGENT % number for number in range(1, 6)))
    assert world.client.stats().unheard == 3
    heard: list[str] = []
    world.client.on(Message, lambda message: heard.append(message.data["id"]))
    await settle()
    await receive(world, *("\n" + URGENT % number for number in range(1, 6)))
    assert heard == ["m4", "m5", "m1", "m2", "m3"]
    assert world.client.stats().copies == 2
    # Each is acknowledged once it was heard; the copies of two are, too.
    acknowledged = [each["json"]["message_id"] for each in sent(world)]
    assert acknowledged == ["m4", "m5", "m1", "m2", "m3", "m4", "m5"]
    await world.end()


@pytest.mark.parametrize("arrived", [False, True])
async def test_an_iterator_that_another_task_closes_ends_its_reader(arrived: bool) -> None:
    world = silent_world()
    await world.act({"do": "connect"})
    await world.act({"do": "open"})
    stream = aiter(world.client)
    waiting = asyncio.ensure_future(anext(stream, "the end"))
    await settle()
    if arrived:  # in the same turn of the loop
        world.sockets[-1].ears.received("\nx")
    await stream.aclose()
    assert await waiting == "the end"
    assert await anext(stream, "the end") == "the end"
    if arrived:
        assert [each.data for each in await collected(world.client, 1)] == ["x"]
    await world.end()


async def test_all_events_come_in_one_order() -> None:
    async with opened() as world:
        events = asyncio.ensure_future(collected(world.client.events(), 5))
        await settle()
        await receive(
            world,
            '{"room":"r","pos":"0","recovered":false,"first":true}\n',
            '{"room":"r","pos":"1"}\nx',
            '{"gap":"r","pos":"3"}\n',
            '{"room":"r","pos":"4","recovered":true,"missed":1}\n',
        )
        await world.act({"do": "end", "code": 1012})
        assert [type(each) for each in await events] == [
            First,
            Message,
            Gap,
            Recovered,
            StateChange,
        ]


@pytest.mark.parametrize(
    ("end", "why"), [(1000, None), (1008, "code"), (4401, "unauthorized"), (None, None)]
)
async def test_an_iterator_ends_with_the_client(end: int | None, why: str | None) -> None:
    async with opened() as world:
        waiting = asyncio.ensure_future(collected(world.client, 9))
        await settle()
        await receive(world, "\nlast")
        if end is None:
            world.client.close()
        else:
            await world.act({"do": "end", "code": end})
        if why is None:
            assert [each.data for each in await waiting] == ["last"]
        else:
            with pytest.raises(ClosedError, match=why) as caught:
                await waiting
            assert (caught.value.why, caught.value.close_code) == (why, end)
        with pytest.raises(ClosedError):
            await collected(world.client, 1)


async def test_each_caller_gets_an_error_of_its_own() -> None:
    """One that is raised again and again collects the tracebacks of all callers."""
    async with opened() as world:
        waiting = [asyncio.ensure_future(collected(world.client, 9)) for _ in range(2)]
        await settle()
        await world.act({"do": "end", "code": 1008})
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        for _ in range(2):
            for call in (world.client.opened(), collected(world.client, 1)):
                with pytest.raises(ClosedError) as caught:
                    await call
                errors.append(caught.value)
        assert len({id(each) for each in errors}) == 6
        assert {(str(each), each.why, each.close_code) for each in errors} == {  # type: ignore[union-attr]
            (str(errors[0]), "code", 1008)
        }


async def test_iterators_of_a_room_end_when_it_is_left() -> None:
    async with opened() as world:
        room = world.client.room("r")
        waiting = asyncio.ensure_future(collected(room, 9))
        await settle()
        room.leave()
        assert await waiting == []
        assert world.client.room("r") is not room


# --- bounds ---


async def test_a_slow_iterator_holds_up_the_connection_and_not_the_heartbeat() -> None:
    async with opened(pending_messages=2, heartbeat=True) as world:
        stream = aiter(world.client)
        first = asyncio.ensure_future(anext(stream))
        await settle()
        ears = world.sockets[-1].ears
        behind = [ears.received(f"\n{number}") for number in range(4)]
        assert [each is None for each in behind] == [True, True, False, False]
        # B5: nobody reads meanwhile, so that silence says nothing.
        await world.act({"do": "advance", "ms": 60_000})
        assert world.client.state == "open"
        assert (await first).data == 0
        for number in (1, 2, 3):
            assert (await anext(stream)).data == number
        assert behind[-1] is not None
        assert behind[-1].done()
        assert ears.received("\n4") is None
        await world.act({"do": "advance", "ms": 60_000})
        assert world.client.state != "open"


async def test_a_message_whose_caller_is_cancelled_is_not_sent() -> None:
    world = World({"options": {"queueBytes": 10}})
    await world.act({"do": "connect"})
    first, second = world.client.send("a" * 10), None
    with pytest.raises(QueueFullError, match=r"more than queue_bytes \(10\)"):
        await world.client.send("b")
    waiting = asyncio.ensure_future(asyncio.wait_for(first, 60))
    await settle()
    waiting.cancel()
    await settle()
    assert world.client.stats().queued_bytes == 0
    second = world.client.send("c" * 10)
    request = world.client.request(1)
    with pytest.raises(QueueFullError):
        await request
    world.did = []
    await world.act({"do": "open"})
    await second
    assert [each.get("text") for each in sent(world)] == ["", "c" * 10]
    await world.end()


async def test_a_message_that_nobody_awaits_is_rejected_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Q4. The event loop does not complain of each of them."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, said: complaints.append(said))
    world = World({})
    await world.act({"do": "connect"})
    for _ in range(3):
        world.client.send("x")
    awaited = world.client.send("y")
    await world.end()
    with pytest.raises(ClosedError):
        await awaited
    del awaited
    gc.collect()
    await settle()
    assert complaints == []
    (line,) = [each.getMessage() for each in caplog.records if "not sent" in each.getMessage()]
    assert line == "4 messages and requests that waited are not sent: the client is closed"


async def test_a_request_whose_caller_is_cancelled_leaves_nothing() -> None:
    async with opened() as world:
        request = world.client.request(1)
        request.cancel()
        await settle()
        await receive(world, '\n{"type":"answer","id":"q1","data":1}')
        assert not [each for each in world.did if "message" in each]
        # It does not hold up a change to a new token, see T4.
        assert not world.client._sender.asking_still()


# --- answers of the server, pings: rules that no page can show ---


@pytest.mark.parametrize(
    ("answer", "state", "delay"),
    [
        (Answer(403), "closed", 0),
        (Answer(401), "closed", 0),
        (Answer(200), "waiting", 0.5),
        (Answer(404), "waiting", 0.5),
        (Answer(503, 5.0), "waiting", 5.5),
        (Answer(429, 9999.0), "waiting", 300.5),
        (Answer(503), "waiting", 0.5),
    ],
)
async def test_the_answer_to_the_upgrade_decides(answer: Answer, state: str, delay: float) -> None:
    """H5."""
    world = World({"options": {"statusUrl": "http://hub.test/status"}})
    changes: list[StateChange] = []
    world.client.on(StateChange, changes.append)
    await world.act({"do": "connect"})
    world.sockets[-1].ears.ended(Ending(1006, answer=answer))
    await settle()
    assert [each.state for each in changes] == ["connecting", state]
    assert changes[-1].delay == delay
    assert not [each for each in world.did if "status" in each]
    if delay > 5:
        await world.act({"do": "online"})
        assert world.client.state == "waiting"
    await world.end()


async def test_a_401_asks_for_another_token_once() -> None:
    world = World({"options": {"getToken": True}})
    await world.act({"do": "connect"})
    for token in ("t1", "t2"):
        await world.act({"do": "token", "value": token})
        world.sockets[-1].ears.ended(Ending(1006, answer=Answer(401)))
        await settle()
    assert world.did[-1] == {"state": {"state": "closed", "code": 1006, "why": "unauthorized"}}
    assert [each for each in world.did if "getToken" in each] == [{"getToken": True}] * 2
    await world.end()


async def test_a_server_that_does_not_speak_wsc_1_is_an_attempt_that_failed() -> None:
    """C4."""
    world = World({})
    changes: list[StateChange] = []
    world.client.on(StateChange, changes.append)
    await world.act({"do": "connect"})
    world.sockets[-1].ears.opened(None)
    assert changes[-1].state == "waiting"
    assert isinstance(changes[-1].error, ProtocolError)
    await world.end()


async def test_a_hub_without_requests_is_sent_pings_of_the_protocol() -> None:
    """B4."""
    async with opened() as world:
        pings: list[int] = []
        world.sockets[-1].ping = lambda: not pings.append(1)  # type: ignore[method-assign]
        await world.act({"do": "advance", "ms": 25_000})
        assert len(pings) == 1
        world.sockets[-1].ears.heard()
        await world.act({"do": "advance", "ms": 24_999})
        assert len(pings) == 1
        await world.act({"do": "advance", "ms": 1 + 9_999})
        assert (len(pings), world.client.state) == (2, "open")
        await world.act({"do": "advance", "ms": 1})
        assert world.client.state == "waiting"


async def test_a_token_that_no_subprotocol_can_carry_is_an_attempt_that_failed() -> None:
    world = World({"options": {"getToken": True}})
    await world.act({"do": "connect"})
    await world.act({"do": "token", "value": "a token"})
    assert world.did[-2:] == [
        {"error": True},
        {"state": {"state": "waiting", "code": 1006, "delay": 500}},
    ]
    await world.end()


async def test_a_client_that_only_watches_acknowledges_nothing() -> None:
    async with opened(acknowledge=False) as world:
        await receive(world, "\n" + URGENT % 1, "\n" + URGENT % 1)
        assert len([each for each in world.did if "message" in each]) == 2
        assert sent(world) == []


async def test_a_message_has_its_text_as_it_came() -> None:
    async with opened(json=False) as world:
        heard: list[Message] = []
        world.client.on(Message, heard.append)
        await receive(world, "\n" + URGENT % 1, '{"room":"r","pos":"1"}\n{ "a": 1}')
        assert [each.raw for each in heard] == [URGENT % 1, '{ "a": 1}']


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        ("", 0.0),
        ("soon", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0.0),
    ],
)
def test_a_retry_after_that_cannot_be_read_counts_as_none(value: str, seconds: float) -> None:
    assert retry_after({"Retry-After": value}) == seconds


# --- bounds, and requests of listeners ---


async def test_a_listener_that_asks_is_answered_behind_a_full_backlog() -> None:
    """The answer comes behind messages, which are read on up to a larger bound."""
    async with opened(pending_messages=2) as world:
        answers: list[Any] = []
        world.client.on(Message, lambda message: gate.wait())
        gate = asyncio.Event()
        ears = world.sockets[-1].ears
        behind = [ears.received(f"\n{number}") for number in range(4)][-1]
        assert behind is not None
        request = world.client.request(1)
        request.add_done_callback(lambda done: answers.append(done.result()))
        # The reader that has stopped goes on, though nobody is done with a message.
        assert behind.done()
        assert ears.received("\n4") is None
        assert ears.received('\n{"type":"answer","id":"q1","data":5}') is not None
        await settle()
        assert answers == [5]
        gate.set()
        await settle()
        assert ears.received("\n5") is None


async def test_what_is_read_for_a_request_is_bounded_too() -> None:
    async with opened(pending_messages=2) as world:
        gate = asyncio.Event()
        world.client.on(Message, lambda message: gate.wait())
        request = world.client.request(1)
        ears = world.sockets[-1].ears
        stopped = [ears.received(f"\n{number}") for number in range(21)]
        assert [number for number, each in enumerate(stopped) if each is not None] == [20]
        request.cancel()
        await settle()
        assert stopped[-1] is not None
        assert not stopped[-1].done()
        gate.set()
        await settle()
        assert stopped[-1].done()


async def test_a_request_that_ends_with_its_connection_has_nothing_read_for_it() -> None:
    async with opened(pending_messages=1) as world:
        gate = asyncio.Event()
        world.client.on(Message, lambda message: gate.wait())
        request = world.client.request(1)
        await receive(world, "\n1", "\n2")
        await world.act({"do": "end", "code": 1006})
        assert isinstance(request.exception(), LostError)
        await world.act({"do": "advance", "ms": 500})
        await world.act({"do": "open"})
        assert world.sockets[-1].ears.received("\n3") is not None
        gate.set()
