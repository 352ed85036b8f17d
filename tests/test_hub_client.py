"""The clients of the kit, async and blocking: what they expect, and how they say what came."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.support import known, named
from wsc_fast import ACKConfig, ACKMessage, AckStatus, Client, Hub, HubConfig, HubMessage
from wsc_fast.testing import (
    BlockingClient,
    Clock,
    HubClient,
    LoopThread,
    RefusedError,
    eventually,
    matches,
    running,
)

ID = {"id": "a"}


def echoing(**settings: Any) -> Hub:
    hub = Hub(HubConfig(**settings), authenticate=named)

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        client.send(message)

    return hub


def is_loud(message: str | bytes) -> bool:
    return isinstance(message, str) and message.isupper()


MESSAGE = HubMessage(content="x", data={"n": 1})


@pytest.mark.parametrize(
    ("message", "expected", "does"),
    [
        ("x", "x", True),
        ("x", b"x", False),
        (b"x", b"x", True),
        ('{"a": [1]}', {"a": [1]}, True),
        ('{"a": [1]}', {"a": [2]}, False),
        ("[1]", [1], True),
        ("no JSON", {}, False),
        (b"{}", {}, False),
        ("order 17", re.compile(r"order \d+"), True),
        (b"order 17", re.compile("order"), False),
        ("LOUD", is_loud, True),
        ("quiet", is_loud, False),
        ("x", None, True),
        ("x", str, True),
        ("x", bytes, False),
        ("{}", dict, True),
        ("[]", dict, False),
        ("{}", HubMessage, False),
    ],
)
def test_messages_match(message: str | bytes, expected: Any, does: bool) -> None:
    assert matches(message, expected) is does


async def test_a_hub_message_matches_but_for_its_id() -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        for _ in range(3):
            hub.send_to_user("a", HubMessage(content="x", data={"n": 1}))
        found = await client.expect(MESSAGE)
        assert found["content"] == "x"
        await client.expect(HubMessage)
        with pytest.raises(AssertionError, match="but came"):
            await client.expect(HubMessage(content="y"))


async def test_it_hears_an_echo_of_each_kind(any_loop: Any) -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        await client.send("text")
        await client.send(b"bytes")
        await client.send({"a": 1})
        await client.send([1, 2])
        assert await client.expect("text") == "text"
        assert await client.expect(b"bytes") == b"bytes"
        assert await client.expect({"a": 1}) == {"a": 1}
        assert await client.expect(list) == [1, 2]
        await client.expect_nothing()
        assert client.received == ["text", b"bytes", '{"a": 1}', "[1, 2]"]
        with pytest.raises(TypeError, match="not int"):
            await client.send(1)  # type: ignore[arg-type]


async def test_it_says_what_came_instead() -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        await client.send("one")
        await client.send("two")
        await client.expect("one")
        with pytest.raises(AssertionError) as caught:
            await client.expect({"a": 1})
        assert str(caught.value).splitlines() == [
            "expected {'a': 1}",
            "  but came 'two'",
            "all that came:",
            "  'one'",
            "  'two'",
        ]
        with pytest.raises(AssertionError, match=r"expected 'three' within 0.01 s.*\n.*\n  'one'"):
            await client.expect("three", within=0.01)


async def test_it_passes_over_others_if_told_so() -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        for each in ("one", "two", "three"):
            await client.send(each)
        await client.expect("two", skip=True)
        await client.expect("three")


async def test_nothing_is_expected_and_something_comes() -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        await client.expect_nothing(within=0)
        hub.broadcast("late")
        with pytest.raises(AssertionError, match="expected nothing, but came\n  'late'"):
            await client.expect_nothing(within=0)


async def test_it_expects_the_end(any_loop: Any) -> None:
    async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
        with pytest.raises(AssertionError, match=r"within 0\.01 s"):
            await client.expect_close(within=0.01)
        client_of_hub = known(hub, "a")
        client_of_hub.send("last")
        client_of_hub.disconnect(4000, "go")
        assert await client.expect_close(4000, "go") == 4000
        await client.expect("last")
        with pytest.raises(AssertionError, match=r"connection has ended: 4000 go"):
            await client.expect("more")
        with pytest.raises(AssertionError, match="expected a close with 1000, but came 4000"):
            await client.expect_close(1000)


async def test_a_refusal_has_its_status() -> None:
    async with running(Hub(authenticate=lambda request: None)) as hub:
        with pytest.raises(RefusedError, match="401") as caught:
            await HubClient.connect(hub)
        assert caught.value.status == 401


async def test_a_token_and_a_subprotocol() -> None:
    seen: list[str | None] = []
    hub = Hub(HubConfig(subprotocols=("chat",)))
    hub.on_client_connected(lambda client: seen.append(client.subprotocol))

    async with (
        running(hub),
        await HubClient.connect(hub, token="t", subprotocols=["x", "chat"]) as client,
    ):
        assert client.subprotocol == "chat"
        await eventually(lambda: seen == ["chat"])


async def test_it_acknowledges(any_loop: Any) -> None:
    hub = echoing()
    hub.enable_ack(ACKConfig())
    async with running(hub), await HubClient.connect(hub, query=ID) as client:
        first = hub.send_ack_message_to_user("a", ACKMessage(content="x"))
        await client.ack(await client.expect(ACKMessage(content="x")))
        assert await first is AckStatus.CONFIRMED
        second = hub.send_ack_message_to_user("a", ACKMessage(content="y"))
        await client.ack(await client.expect(str), "failed", "no room")
        with pytest.raises(Exception, match="no room"):
            await second


async def test_it_recovers_by_wsc_1(any_loop: Any) -> None:
    hub = Hub(authenticate=named)
    hub.keep("r")
    hub.on_client_connected(lambda client: hub.join_room(client.id, "r"))
    async with running(hub):  # noqa: SIM117
        async with await HubClient.connect(hub, query=ID, subprotocols=["wsc.1"]) as client:
            await client.expect_notice(room="r", recovered=False)
            hub.broadcast_to_room("r", "one")
            await client.expect("one")
            client.cut()
            await eventually(lambda: hub.get_connected_clients() == 0)
            hub.broadcast_to_room("r", "two")
            async with await client.reconnect() as again:
                await again.expect("two")
                await again.expect_notice(room="r", recovered=True, missed=1)
                await again.expect_nothing()
                with pytest.raises(AssertionError, match="expected a notice with"):
                    await again.expect_notice(gap="r", within=0.01)


async def test_a_slow_client_fills_its_outbox(any_loop: Any) -> None:
    hub = Hub(HubConfig(outbox_messages=8, overflow="disconnect"), authenticate=named)
    async with running(hub), await HubClient.connect(hub, query=ID, rcvbuf=4096) as client:
        client.stop_reading()
        while hub.get_connected_clients():
            hub.broadcast(bytes(200_000))
            await asyncio.sleep(0)
        client.start_reading()
        assert await client.expect_close() in (1006, 1008, 1013)


async def test_cut_and_vanished_clients(any_loop: Any) -> None:
    with Clock() as clock:
        clock.attach()
        async with running(echoing(heartbeat_interval=20, heartbeat_timeout=60)) as hub:
            cut = await HubClient.connect(hub, query={"id": "cut"})
            gone = await HubClient.connect(hub, query={"id": "gone"})
            stays = await HubClient.connect(hub, query={"id": "stays"})
            cut.cut()
            await eventually(lambda: hub.get_connected_clients() == 2)
            gone.vanish()
            await clock.advance(100)
            assert hub.get_connected_client_ids() == ["stays"]
            await stays.send("x")
            await stays.expect("x")
            for each in (cut, gone, stays):
                await each.close() if each is stays else each.drop()


async def test_a_clock_that_is_set_ahead_ends_no_expectation(any_loop: Any) -> None:
    with Clock() as clock:
        clock.attach()
        async with running(echoing()) as hub, await HubClient.connect(hub, query=ID) as client:
            waiting = asyncio.ensure_future(client.expect("late", within=30))
            await clock.advance(120)
            hub.broadcast("late")
            assert await waiting == "late"


def test_a_blocking_client_is_alike() -> None:
    hub = echoing()
    with LoopThread() as thread:
        thread.call(hub.start(port=0))
        made = thread.call(HubClient.connect(hub, query=ID))
        with BlockingClient(made, thread) as client:
            client.send({"a": 1})
            assert client.expect(dict) == {"a": 1}
            client.expect_nothing()
            client.stop_reading()
            client.send("x")
            with pytest.raises(AssertionError, match=r"within 0\.05 s"):
                client.expect("x", within=0.05)
            client.start_reading()
            client.expect("x")
            again = client.reconnect()
            client.expect_close(4409)
            assert (client.close_code, client.subprotocol) == (4409, None)
            again.cut()
            assert again.close_code == 1006
        thread.call(hub.stop())


def test_both_kinds_have_the_same_names() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    made = {"received", "notices", "positions", "subprotocol", "close_code", "close_reason"}
    assert names(BlockingClient) == (names(HubClient) | made) - {"connect"}
