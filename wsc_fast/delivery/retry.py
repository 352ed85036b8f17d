"""Sending again after a failure that may pass: the record of the attempts, and the waiting.

No retry library: the happy path must cost no more than a plain send, errors are told apart by
their reason, each attempt is recorded, and the hub's stop ends a wait; what a library would bring
is the formula of the delay, which is RetryConfig.delay.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from wsc_fast._core.clock import monotonic
from wsc_fast._core.timers import Timers
from wsc_fast.delivery.failures import reason_of
from wsc_fast.errors import HubStoppedError, WSCError
from wsc_fast.runtime.deadlines import Deadline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wsc_fast.config import RetryConfig


class SendAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to send (go-wsc `SendAttempt`).

    Attributes:
        attempt_number: from 1.
        start_time: UTC.
        duration: seconds, by the monotonic clock.
        error: what it ended with; None if it succeeded.
        success: whether it did.
    """

    attempt_number: int
    start_time: datetime
    duration: float
    error: Exception | None
    success: bool


class SendResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a send with retries (go-wsc `SendResult`).

    Attributes:
        success: whether the message was queued for at least one client.
        attempts: each of them, in order.
        total_retries: attempts after the first.
        total_time: seconds in all, waits included, by the monotonic clock.
        final_error: what the last attempt ended with; None if it succeeded.
        delivered_to: how many clients it was queued for; those of another hub count as one.
    """

    success: bool
    attempts: tuple[SendAttempt, ...]
    total_retries: int
    total_time: float
    final_error: Exception | None
    delivered_to: int = 0


class Sleepers:
    """Waits between attempts, but for a hub that ends or has ended. In the loop's thread.

    Args:
        timers: of the hub.
    """

    def __init__(self, timers: Timers[Callable[[], object]]) -> None:
        self._timers = timers
        self._waiting: set[asyncio.Future[bool]] = set()
        self._ended = False

    async def sleep(self, seconds: float) -> bool:
        """Waits; returns False if the hub ends before the time, or has ended."""
        if self._ended:
            return False
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timers = self._timers
        if timers.loop is not loop:
            # The hub does not run.
            timers = Timers()
            timers.attach(loop)
        deadline = Deadline(timers, seconds, partial(_end, waiter, True))
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            deadline.cancel()
            self._waiting.discard(waiter)

    def begin(self) -> None:
        self._ended = False

    def end(self) -> None:
        self._ended = True
        for waiter in self._waiting:
            _end(waiter, False)


def _end(waiter: asyncio.Future[bool], slept: bool) -> None:
    if not waiter.done():  # it may have been cancelled in this very turn
        waiter.set_result(slept)


async def send_with_retry(
    send: Callable[[], int | Awaitable[int]], config: RetryConfig, sleepers: Sleepers
) -> SendResult:
    """Calls `send` until it succeeds, or fails in a way that is not retried.

    Args:
        send: returns how many clients the message was queued for, or raises; plain or async.
        config: which failures are retried, how often, and after how long.
        sleepers: what waits between the attempts; the hub wakes it when it stops.

    Returns:
        SendResult: of a failure too; it raises nothing but CancelledError.
    """
    begin = monotonic()
    attempts: list[SendAttempt] = []
    while True:
        start_time = datetime.now(UTC)
        start = monotonic()
        delivered, error = 0, None
        try:
            queued = send()
            delivered = queued if isinstance(queued, int) else await queued
        except (WSCError, OSError, MemoryError) as failure:
            error = failure
        attempts.append(
            SendAttempt(
                attempt_number=len(attempts) + 1,
                start_time=start_time,
                duration=monotonic() - start,
                error=error,
                success=error is None,
            )
        )
        retry = len(attempts)
        if (
            error is not None
            and retry <= config.max_retries
            and reason_of(error) in config.retryable_errors
        ):
            if await sleepers.sleep(config.delay(retry)):
                continue
            error = HubStoppedError("the hub stopped before the message could be sent again")
        return SendResult(
            success=error is None,
            attempts=tuple(attempts),
            total_retries=retry - 1,
            total_time=monotonic() - begin,
            final_error=error,
            delivered_to=delivered,
        )
