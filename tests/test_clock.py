"""The clock that tests set: each of the hub's clocks passes with it, on both loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest

from tests.support import known, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    AckStatus,
    AckTimeoutError,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    MemoryOfflineStore,
    RetryConfig,
)
from wsc_fast.auth import JWTAuthenticator, TokenAuthenticator
from wsc_fast.testing import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Clock,
    RawClient,
    eventually,
    eventually_async,
    running,
)

SECRET = "s" * 32
# A RawClient answers no pings.
PATIENT = HubConfig(heartbeat_interval=36000, heartbeat_timeout=72000)


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock() as clock:
        yield clock


def began() -> float:
    return time.monotonic()


async def test_sleeps_and_timeouts_pass(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    start = began()
    woken: list[str] = []

    async def sleeps(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.ensure_future(sleeps(name, at)) for name, at in (("b", 50), ("a", 10))]
    await clock.advance(9)
    assert woken == []
    await clock.advance(2)
    assert woken == ["a"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await clock.advance(60)
    await clock.advance(60)
    assert woken == ["a", "b"]
    assert all(task.done() for task in tasks)
    assert clock.passed >= 100
    assert began() - start < 5


async def test_a_timer_that_was_cancelled_is_not_called(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    loop = asyncio.get_running_loop()
    called: list[int] = []
    first = loop.call_later(5, called.append, 1)
    loop.call_at(loop.time() + 6, called.append, 2)
    first.cancel()
    assert first.cancelled()
    await clock.advance(10)
    assert called == [2]


async def test_real_time_goes_on(any_loop: Any, clock: Clock) -> None:
    await clock.advance(100)
    start = began()
    await asyncio.sleep(0.05)
    assert 0.04 < began() - start < 5


async def test_timers_that_are_left_are_called_after_the_close(any_loop: Any) -> None:
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    with Clock() as clock:
        await clock.advance(1000)
        loop.call_later(0.05, called.set)
    assert abs(loop.time() - time.monotonic()) < 5
    async with asyncio.timeout(10):
        await called.wait()


def test_there_is_one_clock_at_a_time(clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="in use already"):
        Clock()


async def test_only_seconds_pass(clock: Clock) -> None:
    for wrong in (-1, float("nan"), float("inf"), "30", True):
        with pytest.raises(ValueError, match="seconds must be"):
            await clock.advance(wrong)  # type: ignore[arg-type]


async def answer_pings(client: RawClient, seen: list[int]) -> None:
    while True:
        frame = await client.recv(timeout=1e6)
        seen.append(frame.opcode)
        if frame.opcode == PING:
            await client.send(PONG, frame.payload)


async def test_heartbeats_end_a_silent_client_alone(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(HubConfig(heartbeat_interval=20, heartbeat_timeout=60), authenticate=named)
    start = began()
    async with running(hub):
        with (
            await RawClient.open(hub, "/ws?id=silent") as silent,
            await RawClient.open(hub, "/ws?id=alive") as alive,
        ):
            seen: list[int] = []
            answering = asyncio.ensure_future(answer_pings(alive, seen))
            await clock.advance(50)
            assert hub.get_connected_clients() == 2
            await clock.advance(30)
            await eventually(lambda: hub.get_connected_client_ids() == ["alive"])
            assert seen.count(PING) in (3, 4)
            frames = await silent.recv_rest()
            assert [frame.opcode for frame in frames if frame.opcode != PING] == [CLOSE]
            assert frames[-1].code == 1001
            answering.cancel()
    assert began() - start < 10


async def test_acknowledgements_are_asked_for_again_and_time_out(
    any_loop: Any, clock: Clock
) -> None:
    clock.attach()
    hub = Hub(PATIENT, authenticate=named)
    hub.enable_ack(ACKConfig(timeout=100, retry_interval=30, max_retries=2))
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a") as a:
            pending = hub.send_ack_message("a", ACKMessage(content="x"))
            await clock.advance(25)
            assert pending.attempts == 1
            assert (await a.recv()).opcode == TEXT
            await clock.advance(40)
            assert pending.attempts == 3
            await clock.advance(200)
            with pytest.raises(AckTimeoutError):
                await pending
            assert pending.status is AckStatus.TIMEOUT


async def test_retries_wait_for_the_clock(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(authenticate=named)
    hub.set_retry_config(
        RetryConfig(
            max_retries=2,
            base_delay=60,
            max_delay=60,
            jitter=False,
            retryable_errors=("user_offline",),
            non_retryable_errors=(),
        )
    )
    async with running(hub):
        sending = asyncio.ensure_future(hub.send_to_user_with_retry("ann", HubMessage(content="")))
        await clock.advance(110)
        assert not sending.done()
        await clock.advance(20)
        result = await sending
        assert not result.success
        assert len(result.attempts) == 3
        assert 119 < result.total_time < 130


def token(clock: Clock, seconds: float, **claims: float) -> str:
    claims = {"exp": clock.time() + seconds, **claims}
    return jwt.encode({"sub": "ann", **claims}, SECRET, algorithm="HS256")


async def test_a_json_web_token_ends(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(PATIENT, authenticate=JWTAuthenticator(SECRET, algorithms=["HS256"], query="token"))
    async with running(hub):
        early = f"/ws?token={token(clock, 900, nbf=clock.time() + 300)}"
        late = f"/ws?token={token(clock, 600)}"
        with await RawClient.open(hub, late) as ann:
            with pytest.raises(AssertionError, match="401"):
                await RawClient.open(hub, early)
            await clock.advance(400)
            assert hub.get_connected_clients() == 1
            (await RawClient.open(hub, early)).close()
            await clock.advance(400)
            frames = [frame for frame in await ann.recv_rest() if frame.opcode != PING]
            assert frames[-1].code == 4401
            with pytest.raises(AssertionError, match="401"):
                await RawClient.open(hub, late)
            # A token of now is good, though the machine's clock is behind.
            (await RawClient.open(hub, f"/ws?token={token(clock, 60)}")).close()


def test_pyjwt_has_its_own_clock_back() -> None:
    with Clock() as clock:
        asyncio.run(clock.advance(1000))
        made = token(clock, 60, iat=clock.time())
        assert jwt.decode(made, SECRET, algorithms=["HS256"])["sub"] == "ann"
        ends = jwt.encode({"exp": datetime.now(UTC)}, SECRET, algorithm="HS256")
        with pytest.raises(jwt.ExpiredSignatureError):
            jwt.decode(ends, SECRET, algorithms=["HS256"])
    with pytest.raises(jwt.ImmatureSignatureError):
        jwt.decode(made, SECRET, algorithms=["HS256"])


async def test_an_identity_ends(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    tokens = TokenAuthenticator({"t" * 32: Identity("ann", expires_at=clock.time() + 100)})
    hub = Hub(PATIENT, authenticate=tokens)
    bearer = [("Authorization", f"Bearer {'t' * 32}")]
    async with running(hub):
        with await RawClient.open(hub, headers=bearer) as ann:
            await clock.advance(120)
            frames = [frame for frame in await ann.recv_rest() if frame.opcode != PING]
            assert frames[-1].code == 4401
            with pytest.raises(AssertionError, match="401"):
                await RawClient.open(hub, headers=bearer)


async def test_rates_of_messages_fill_up(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(HubConfig(message_rate=1.0, rate_limit_action="drop"), authenticate=named)
    got: list[str | bytes] = []
    hub.on_message_received(lambda client, message: got.append(message))
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a") as a:
            for _ in range(10):
                await a.send(TEXT, b"first")
            await eventually(lambda: hub.get_stats().rate_limited > 0)
            await eventually(lambda: len(got) + hub.get_stats().rate_limited == 10)
            before = len(got)
            await clock.advance(10)
            await a.send(TEXT, b"second")
            await eventually(lambda: got[-1] == "second")
            assert len(got) == before + 1


async def test_rates_of_connections_fill_up(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(HubConfig(connection_rate=1.0), authenticate=named)
    async with running(hub):
        answers = []
        for number in range(6):
            with await RawClient.open(hub, upgrade=False) as peer:
                await peer.send_raw(peer.request(hub, f"/ws?id={number}"))
                answers.append((await peer.read_response())[9:12])
        assert b"429" in answers
        await clock.advance(10)
        (await RawClient.open(hub, "/ws?id=late")).close()


async def test_stored_messages_grow_old(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    store = MemoryOfflineStore()
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True, offline_max_age=3600), store=store)
    async with running(hub):
        pending = hub.send_ack_message_to_user("ann", ACKMessage(content="x"))
        await pending.accepted()
        assert await store.count("ann") == 1
        await clock.advance(1800)
        assert await store.count("ann") == 1
        await clock.advance(7200)
        await eventually_async(lambda: nothing_in(store))


async def nothing_in(store: MemoryOfflineStore) -> bool:
    return await store.count("ann") == 0


async def test_a_history_ends(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(authenticate=named)
    hub.keep("r", ttl=300)
    async with running(hub):
        await hub.publish("r", "x")
        await clock.advance(200)
        assert len(await hub.cluster.history("r")) == 1
        await clock.advance(200)
        assert await hub.cluster.history("r") == []


async def test_times_of_a_client_pass(any_loop: Any, clock: Clock) -> None:
    clock.attach()
    hub = Hub(PATIENT, authenticate=named)
    async with running(hub):
        with await RawClient.open(hub, "/ws?id=a"):
            client = known(hub, "a")
            await clock.advance(500)
            assert 499 < client.stats().age < 600
            idle = clock.time() - client.last_activity.timestamp()
            assert 499 < idle < 600
