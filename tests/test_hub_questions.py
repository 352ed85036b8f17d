"""Questions of one hub to another one over a real bus: answered, refused, late, and forged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.redis_server import RedisServer
from tests.support import named
from wsc_fast import BusUnavailableError, Hub, RedisBus
from wsc_fast.cluster import hub_questions, words
from wsc_fast.cluster.node import Node


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as redis:
        yield redis


@asynccontextmanager
async def nodes(server: RedisServer, count: int = 2) -> AsyncIterator[list[Node]]:
    """The nodes of hubs on one bus."""
    made = []
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        for _ in range(count):
            hub = Hub(authenticate=named, bus=RedisBus(server.url, refresh=0.2))
            await hub.start("127.0.0.1", 0)
            stack.push_async_callback(hub.stop, 1.0)
            made.append(hub._node)
        yield made


async def echo(content: bytes) -> bytes:
    return b'{"asked":' + content + b"}"


async def test_a_hub_answers_another_one(server: RedisServer) -> None:
    async with nodes(server) as (one, other):
        other.answer_hubs(echo)
        assert await one.ask_hub(other.name, b'{"a":"\xc3\xbc"}') == b'{"asked":{"a":"\xc3\xbc"}}'
        answers = [one.ask_hub(other.name, b"%d" % number) for number in range(20)]
        assert await asyncio.gather(*answers) == [b'{"asked":%d}' % each for each in range(20)]


async def test_a_hub_on_which_nothing_answers_says_so(server: RedisServer) -> None:
    async with nodes(server) as (one, other):
        assert await one.ask_hub(other.name, b"1") == hub_questions.NOBODY


async def test_a_hub_that_is_not_there_is_an_error(server: RedisServer) -> None:
    async with nodes(server, 1) as (one,):
        with pytest.raises(BusUnavailableError, match="no hub has the name 'gone'"):
            await one.ask_hub("gone", b"1")


async def test_a_hub_alone_knows_no_other() -> None:
    hub = Hub(authenticate=named)
    await hub.start("127.0.0.1", 0)
    with pytest.raises(BusUnavailableError, match="this one is alone"):
        await hub._node.ask_hub("other", b"1")
    await hub.stop()


async def test_a_question_that_is_too_large_is_not_sent(server: RedisServer) -> None:
    async with nodes(server) as (one, other):
        other.answer_hubs(echo)
        with pytest.raises(BusUnavailableError, match="too large"):
            await one.ask_hub(other.name, b'"%b"' % (b"x" * hub_questions.MOST_QUESTION))


async def test_a_late_answer_ends_the_wait(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_questions, "PATIENCE", 0.2)

    async with nodes(server) as (one, other):
        assert other.users is not None
        monkeypatch.setattr(other.users.hub_questions, "asked", lambda word: None)
        with pytest.raises(BusUnavailableError, match=r"did not answer within 0\.2 s"):
            await one.ask_hub(other.name, b"1")


@pytest.mark.parametrize("trouble", ["raises", "is too large", "takes too long"])
async def test_an_answer_that_fails_is_told(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    async def fails(content: bytes) -> bytes:
        if trouble == "takes too long":
            await asyncio.get_running_loop().create_future()
        if trouble == "raises":
            raise LookupError("of the answerer")
        return b'"%b"' % (b"x" * hub_questions.MOST_REPLY)

    async with nodes(server) as (one, other):
        other.answer_hubs(fails)
        monkeypatch.setattr(hub_questions, "ANSWERED_IN", 0.1)
        assert await one.ask_hub(other.name, b"1") == hub_questions.FAILED
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("question_failed") == 1


async def test_too_many_questions_at_a_time_are_refused(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_questions, "MOST_ANSWERED", 2)
    free = asyncio.Event()

    async def waits(content: bytes) -> bytes:
        await free.wait()
        return content

    async with nodes(server) as (one, other):
        other.answer_hubs(waits)
        asked = [asyncio.ensure_future(one.ask_hub(other.name, b"%d" % n)) for n in range(3)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result() for each in done] == [hub_questions.BUSY]
        free.set()
        assert sorted([await each for each in asked]) == sorted([b"0", b"1", hub_questions.BUSY])
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("questions_refused") == 1


async def test_a_reply_of_a_hub_that_was_not_asked_does_not_count(server: RedisServer) -> None:
    held = asyncio.Event()

    async def waits(content: bytes) -> bytes:
        await held.wait()
        return b'"true"'

    async with nodes(server) as (one, other):
        other.answer_hubs(waits)
        asking = asyncio.ensure_future(one.ask_hub(other.name, b"1"))
        users = one.users
        assert users is not None
        for number in range(3):
            forged = words.HubReply(number, "somebody", msgspec.Raw(b'"forged"'))
            users.word(words.encode(forged))
        held.set()
        assert await asking == b'"true"'
