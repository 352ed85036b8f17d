"""send_to_user_with_retry: what is tried again, the record of the attempts, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.support import join, known, named, run_apart, stall
from wsc_fast import (
    Client,
    ConfigError,
    Hub,
    HubConfig,
    HubMessage,
    HubStoppedError,
    QueueFullError,
    RetryConfig,
    SendResult,
    UserOfflineError,
    ValidationError,
)
from wsc_fast._core.timers import Timers
from wsc_fast.delivery.retry import Sleepers, send_with_retry
from wsc_fast.testing import CLOSE, RawClient, eventually, running

OUTBOX = 64
FULL = HubConfig(outbox_messages=OUTBOX, overflow="drop_newest", close_timeout=0.2)
AT_ONCE = RetryConfig(max_retries=1_000_000, base_delay=0.001, backoff_factor=1.0)


class Heard:
    """A failure handler that notes what it hears."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def handle_send_failure(self, *call: Any) -> None:
        self.calls.append(call)


@asynccontextmanager
async def full_outbox(retry: RetryConfig) -> AsyncIterator[tuple[Hub, RawClient, Client, Heard]]:
    """A hub, and a client of user "ann" who does not read and whose outbox is full."""
    hub = Hub(FULL, authenticate=named)
    hub.set_retry_config(retry)
    heard = Heard()
    hub.add_send_failure_handler(heard)
    async with running(hub):
        raw, client = await join(hub, "a&user=ann", rcvbuf=4096)
        try:
            await stall(client, 1 << 22)
            for n in range(OUTBOX):
                client.send(str(n))
            yield hub, raw, client, heard
        finally:
            if raw.sock.fileno() >= 0:
                raw.reset()


def assert_consistent(result: SendResult) -> None:
    assert [each.attempt_number for each in result.attempts] == list(
        range(1, len(result.attempts) + 1)
    )
    assert result.total_retries == len(result.attempts) - 1
    assert all(each.success is (each.error is None) for each in result.attempts)
    assert all(not each.success for each in result.attempts[:-1])
    assert all(each.duration >= 0 for each in result.attempts)
    assert result.total_time >= sum(each.duration for each in result.attempts)
    assert result.success is (result.final_error is None)
    starts = [each.start_time for each in result.attempts]
    assert starts == sorted(starts)
    assert all(each.tzinfo is UTC for each in starts)


async def test_success_at_once_is_one_attempt() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        other, _ = await join(hub, "b&user=ann")
        before = datetime.now(UTC)
        result = await hub.send_to_user_with_retry("ann", HubMessage(content="x"))
        assert result.success
        assert result.delivered_to == 2
        assert result.final_error is None
        assert result.total_retries == 0
        (attempt,) = result.attempts
        assert before <= attempt.start_time <= datetime.now(UTC)
        assert result.total_time < 1
        assert_consistent(result)
        assert b'"content":"x"' in (await raw.recv()).payload
        assert b'"content":"x"' in (await other.recv()).payload
        assert hub.get_stats().send_failures == 0
        raw.close()
        other.close()


async def test_success_at_once_takes_no_turn_of_the_loop() -> None:
    hub = Hub(authenticate=named)
    async with running(hub):
        raw, _ = await join(hub, "a")
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        assert (await hub.send_to_user_with_retry("a", HubMessage())).success
        assert not turns
        raw.close()


async def test_it_tries_again_until_the_outbox_has_room() -> None:
    async with full_outbox(AT_ONCE) as (hub, raw, client, heard):
        task = asyncio.create_task(hub.send_to_user_with_retry("ann", HubMessage(id="late")))
        refused = hub.get_stats().refused
        await eventually(lambda: hub.get_stats().refused >= refused + 3)
        reading = asyncio.create_task(raw.recv_rest())
        result = await task
        assert result.success
        assert result.delivered_to == 1
        assert result.total_retries >= 3
        assert all(isinstance(each.error, QueueFullError) for each in result.attempts[:-1])
        assert result.attempts[-1].error is None
        assert_consistent(result)
        assert heard.calls == []
        client.disconnect()
        frames = await reading
        assert b'"id":"late"' in frames[-2].payload


async def test_the_delays_are_those_of_the_configuration() -> None:
    config = RetryConfig(max_retries=3, base_delay=0.04, backoff_factor=2.0, max_delay=0.1)
    assert [config.delay(retry) for retry in (1, 2, 3)] == [0.04, 0.08, 0.1]
    async with full_outbox(config) as (hub, _, _, heard):
        start = time.monotonic()
        message = HubMessage()
        result = await hub.send_to_user_with_retry("ann", message)
        elapsed = time.monotonic() - start
        assert not result.success
        assert result.delivered_to == 0
        assert len(result.attempts) == 4
        assert isinstance(result.final_error, QueueFullError)
        assert result.final_error is result.attempts[-1].error
        assert_consistent(result)
        starts = [each.start_time.timestamp() for each in result.attempts]
        gaps = [after - before for before, after in pairwise(starts)]
        for gap, delay in zip(gaps, (0.04, 0.08, 0.1), strict=True):
            assert delay - 0.005 <= gap < delay + 1.0
        assert 0.21 <= result.total_time <= elapsed
        # The handlers hear of the last one only.
        await eventually(lambda: heard.calls)
        ((told, *rest, error),) = heard.calls
        assert told == msgspec.structs.replace(message, to="ann")
        assert rest == ["ann", "queue_full"]
        assert repr(error) == repr(result.final_error)
        assert error.__traceback__ is None  # it would keep the variables of the caller
        assert hub.get_stats().send_failures == 1


def test_durations_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards(datetime):
        count = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.count += 1
            return datetime(2026, 1, 1, tzinfo=tz).replace(year=2026 - cls.count)

    monkeypatch.setattr("wsc_fast.delivery.retry.datetime", Backwards)
    errors: list[Exception | None] = [QueueFullError("1"), QueueFullError("2"), None]

    def send() -> int:
        error = errors.pop(0)
        if error is not None:
            raise error
        return 1

    result = asyncio.run(send_with_retry(send, AT_ONCE, Sleepers(Timers())))
    assert [each.start_time.year for each in result.attempts] == [2025, 2024, 2023]
    assert all(0 <= each.duration < 1 for each in result.attempts)
    assert 0.002 <= result.total_time < 5


@pytest.mark.parametrize("case", ["offline", "validation"])
async def test_failures_that_are_not_retried(case: str) -> None:
    hub = Hub(authenticate=named)
    hub.set_retry_config(AT_ONCE)
    async with running(hub):
        bad = HubMessage(id="" if case == "validation" else "m")
        result = await hub.send_to_user_with_retry("ann", bad)
        expected = UserOfflineError if case == "offline" else ValidationError
        assert type(result.final_error) is expected
        assert len(result.attempts) == 1
        assert_consistent(result)


@pytest.mark.parametrize(
    ("config", "error", "attempts"),
    [
        (RetryConfig(), QueueFullError("x"), 4),
        (RetryConfig(), ConnectionResetError("x"), 4),
        (RetryConfig(), HubStoppedError("x"), 4),
        (RetryConfig(), UserOfflineError("x"), 1),
        (RetryConfig(), ValidationError("x"), 1),
        (RetryConfig(), OSError("unknown"), 1),
        (RetryConfig(), MemoryError(), 1),
        (RetryConfig(retryable_errors=("unknown",)), OSError("unknown"), 4),
        (RetryConfig(retryable_errors=()), QueueFullError("in neither list"), 1),
        (RetryConfig(retryable_errors=("timeout",)), QueueFullError("in neither list"), 1),
        (
            RetryConfig(retryable_errors=("user_offline",), non_retryable_errors=()),
            UserOfflineError("x"),
            4,
        ),
        (RetryConfig(max_retries=0), QueueFullError("x"), 1),
    ],
    ids=str,
)
async def test_the_lists_decide(
    config: RetryConfig, error: Exception, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def send() -> int:
        calls.append(1)
        raise error

    config = RetryConfig(
        max_retries=config.max_retries,
        base_delay=0.001,
        retryable_errors=config.retryable_errors,
        non_retryable_errors=config.non_retryable_errors,
    )
    result = await send_with_retry(send, config, Sleepers(Timers()))
    assert len(calls) == len(result.attempts) == attempts
    assert result.final_error is error
    assert_consistent(result)


async def test_max_retries_0_is_one_attempt_and_no_wait() -> None:
    async with full_outbox(RetryConfig(max_retries=0, base_delay=30.0)) as (hub, _, _, heard):
        async with asyncio.timeout(5):
            result = await hub.send_to_user_with_retry("ann", HubMessage())
        assert len(result.attempts) == 1
        await eventually(lambda: len(heard.calls) == 1)


def test_a_retry_config_is_needed() -> None:
    with pytest.raises(ConfigError, match="RetryConfig"):
        Hub().set_retry_config({"max_retries": 3})  # type: ignore[arg-type]


# --- G14: what ends it ---


def attempts_seen(hub: Hub) -> int:
    return hub.get_stats().refused


@pytest.mark.fault(number="G14")
@pytest.mark.parametrize("how", ["cancel", "timeout", "stop"])
async def test_no_attempt_after_cancel_timeout_or_stop(how: str) -> None:
    config = RetryConfig(max_retries=100, base_delay=20.0)
    async with full_outbox(config) as (hub, raw, _, heard):
        before = attempts_seen(hub)
        start = time.monotonic()
        task = asyncio.create_task(hub.send_to_user_with_retry("ann", HubMessage()))
        await eventually(lambda: attempts_seen(hub) == before + 1)
        if how == "cancel":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await task
        else:
            raw.reset()
            await hub.stop(timeout=1.0)
            result = await task
            assert isinstance(result.final_error, HubStoppedError)
            assert not result.success
            assert len(result.attempts) == 1
            assert isinstance(result.attempts[0].error, QueueFullError)
            # The handlers, while they still run, hear why; a stopped hub counts it.
            stats = hub.get_stats()
            assert (
                len([c for c in heard.calls if c[2] == "channel_closed"])
                + (stats.unreported_failures)
                >= 1
            )
        assert time.monotonic() - start < 5
        if how != "stop":
            assert attempts_seen(hub) == before + 1
            assert not hub._delivery.sleepers._waiting


async def test_there_is_no_wait_while_the_hub_ends_or_has_ended(any_loop: str) -> None:
    hub = Hub(authenticate=named)
    every = ("queue_full", "timeout", "conn_error", "channel_closed", "user_offline")
    hub.set_retry_config(
        RetryConfig(
            max_retries=20,
            base_delay=60.0,
            max_delay=60.0,
            retryable_errors=every,
            non_retryable_errors=(),
        )
    )
    results: list[SendResult] = []

    async def send() -> None:
        results.append(await hub.send_to_user_with_retry("bob", HubMessage()))

    @hub.on_client_disconnected
    async def disconnected(client: Client) -> None:
        await asyncio.sleep(0)
        await send()

    async with asyncio.timeout(20):
        async with running(hub):
            raws = [(await join(hub, name))[0] for name in ("ann", "bob")]
            stopping = asyncio.create_task(hub.stop(timeout=15.0))
            for raw in raws:
                frame = await raw.recv()
                await raw.send(CLOSE, frame.payload)
                assert await raw.recv_rest() == []
                raw.close()
            await stopping
            await send()  # stopped
        assert len(results) == 3
        for result in results:
            assert isinstance(result.final_error, HubStoppedError)
            assert len(result.attempts) == 1
        # Started again, it waits again.
        async with running(hub):
            sending = asyncio.create_task(send())
            await eventually(lambda: hub._delivery.sleepers._waiting)
            await hub.stop()
            await sending
            assert isinstance(results[-1].final_error, HubStoppedError)


@pytest.mark.fault(number="G14")
async def test_a_timeout_in_the_turn_in_which_the_wait_ends_is_no_error(any_loop: str) -> None:
    loop = asyncio.get_running_loop()
    troubles: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    config = RetryConfig(max_retries=9, base_delay=0.02)

    def send() -> int:
        raise QueueFullError("x")

    async def limited() -> None:
        async with asyncio.timeout(0.01):
            await send_with_retry(send, config, Sleepers(Timers()))

    task = asyncio.create_task(limited())
    loop.call_later(0.005, time.sleep, 0.05)  # both are due when the loop is back
    with pytest.raises(TimeoutError):
        await task
    assert troubles == []


@pytest.mark.fault(number="G14")
async def test_a_retry_cancelled_before_it_began_makes_no_attempt() -> None:
    async with full_outbox(AT_ONCE) as (hub, _, _, heard):
        before = attempts_seen(hub)
        task = asyncio.create_task(hub.send_to_user_with_retry("ann", HubMessage()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert attempts_seen(hub) == before
        assert heard.calls == []


@pytest.mark.fault(number="G14")
async def test_a_client_that_leaves_during_the_back_off_ends_it() -> None:
    config = RetryConfig(max_retries=100, base_delay=0.01, backoff_factor=1.0)
    async with full_outbox(config) as (hub, raw, _, _):
        task = asyncio.create_task(hub.send_to_user_with_retry("ann", HubMessage()))
        before = attempts_seen(hub)
        await eventually(lambda: attempts_seen(hub) > before)
        raw.reset()
        async with asyncio.timeout(5):
            result = await task
        assert isinstance(result.final_error, UserOfflineError)
        assert all(isinstance(each.error, QueueFullError) for each in result.attempts[:-1])
        assert_consistent(result)


# --- G15: storms and overflows ---


@pytest.mark.fault(number="G15")
@pytest.mark.parametrize("jitter", [False, True], ids=["fixed", "jitter"])
def test_two_thousand_retries_do_not_overflow(jitter: bool) -> None:
    config = RetryConfig(
        max_retries=2000, base_delay=0.1, backoff_factor=2.0, max_delay=3.0, jitter=jitter
    )
    delays = [config.delay(retry) for retry in range(1, 2001)]
    assert all(0 <= delay <= 3.0 for delay in delays)
    if jitter:
        assert len(set(delays)) > 1900
        assert 1.2 < sum(delays[10:]) / 1990 < 1.8
        assert config.delay(2000) != config.delay(2000)
    else:
        assert delays[:6] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0]
        assert set(delays[5:]) == {3.0}


@pytest.mark.fault(number="G15")
async def test_two_thousand_retries_to_a_full_outbox_are_one_failure() -> None:
    config = RetryConfig(
        max_retries=2000, base_delay=1e-6, backoff_factor=2.0, max_delay=1e-4, jitter=True
    )
    async with full_outbox(config) as (hub, _, _, heard):
        result = await hub.send_to_user_with_retry("ann", HubMessage())
        assert len(result.attempts) == 2001
        assert result.total_retries == 2000
        assert_consistent(result)
        await eventually(lambda: len(heard.calls) == 1)


@pytest.mark.fault(number="G15")
@pytest.mark.parametrize("max_delay", [1e12, 1e300])
async def test_a_huge_delay_can_be_waited_for_and_cancelled(
    max_delay: float, any_loop: str
) -> None:
    config = RetryConfig(max_retries=2000, base_delay=max_delay, max_delay=max_delay)

    def send() -> int:
        raise QueueFullError("x")

    task = asyncio.create_task(send_with_retry(send, config, Sleepers(Timers())))
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done, task
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_thousand_at_once() -> None:
    config = RetryConfig(max_retries=1_000_000, base_delay=0.1, backoff_factor=1.0, jitter=True)
    async with full_outbox(config) as (hub, raw, client, heard):
        tasks = [
            asyncio.create_task(hub.send_to_user_with_retry("ann", HubMessage(id=f"m{n}")))
            for n in range(1000)
        ]
        before = attempts_seen(hub)
        await eventually(lambda: attempts_seen(hub) >= before + 1000)
        assert len(hub._delivery.sleepers._waiting) > 0
        reading = asyncio.create_task(raw.recv_rest(60))
        results = await asyncio.gather(*tasks)
        assert all(result.success and result.delivered_to == 1 for result in results)
        assert any(result.total_retries for result in results)
        for result in results:
            assert_consistent(result)
        client.disconnect()
        payloads = b"".join(frame.payload for frame in await reading)
        assert sorted(payloads.count(f'"id":"m{n}"'.encode()) for n in range(1000)) == [1] * 1000
        assert heard.calls == []
        assert not hub._delivery.sleepers._waiting


# --- other loops ---


def on_another_loop(scenario: Callable[[], Any]) -> asyncio.Future[Any]:
    """Runs a coroutine function on a loop of a thread of its own."""
    return asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(scenario()))


async def test_from_the_loop_of_another_thread() -> None:
    async with full_outbox(AT_ONCE) as (hub, raw, _, _):
        before = attempts_seen(hub)
        threads: list[int] = []

        async def elsewhere() -> SendResult:
            threads.append(threading.get_ident())
            return await hub.send_to_user_with_retry("ann", HubMessage(id="far"))

        outcome = on_another_loop(elsewhere)
        await eventually(lambda: attempts_seen(hub) >= before + 2)
        reading = asyncio.create_task(raw.recv_rest())
        result = await outcome
        assert threads != [threading.get_ident()]
        assert result.success
        assert result.total_retries >= 2
        assert_consistent(result)
        known(hub, "a").disconnect()
        assert any(b'"id":"far"' in frame.payload for frame in await reading)


@pytest.mark.fault(number="G14")
async def test_a_timeout_on_the_loop_of_another_thread_ends_the_retry_in_time() -> None:
    async with full_outbox(RetryConfig(base_delay=20.0)) as (hub, _, _, _):
        before = attempts_seen(hub)

        async def elsewhere() -> str:
            try:
                async with asyncio.timeout(0.05):
                    await hub.send_to_user_with_retry("ann", HubMessage())
            except TimeoutError:
                return "in time"
            return "not at all"

        assert await asyncio.wait_for(on_another_loop(elsewhere), 5) == "in time"
        await eventually(lambda: not hub._delivery.sleepers._waiting)
        assert attempts_seen(hub) <= before + 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_the_loop_was_closed_under_the_hub() -> None:
    hub = Hub(authenticate=named)

    async def served() -> None:
        await hub.start(port=0)

    async def later() -> None:
        result = await hub.send_to_user_with_retry("ann", HubMessage())
        assert isinstance(result.final_error, HubStoppedError)

    try:
        run_apart(served)
        run_apart(later)
    finally:
        run_apart(hub.stop)
        gc.collect()
