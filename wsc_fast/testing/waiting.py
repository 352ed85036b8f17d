"""Waiting for a condition, in the place of a sleep that is too short on a busy machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Returns once the condition holds. It is asked again and again: no event tells of it.

    Args:
        condition: a function that returns something true once it holds.
        timeout: in seconds.

    Raises:
        AssertionError: if it does not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout} s"
        await asyncio.sleep(0.001)


async def eventually_async(
    condition: Callable[[], Awaitable[object]], timeout: float = 10.0
) -> None:
    """`eventually` for a condition that has to be awaited.

    Args:
        condition: an async function that returns something true once it holds.
        timeout: in seconds.

    Raises:
        TimeoutError: if it does not hold in time.
    """
    async with asyncio.timeout(timeout):
        while not await condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """`eventually` for tests without a loop.

    Args:
        condition: a function that returns something true once it holds.
        timeout: in seconds.

    Raises:
        AssertionError: if it does not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not come true in {timeout} s"
        time.sleep(0.005)
