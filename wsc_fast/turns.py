"""Work on very many connections or messages, done over several turns of the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from wsc_fast._core.timers import MOST_ENDS

__all__ = ["MOST_ENDS", "in_turns"]

T = TypeVar("T")

# Seconds of a turn. One call may exceed them.
BUDGET = 0.002


async def in_turns(items: Iterable[T], call: Callable[[T], object], most: int = 1 << 30) -> None:
    """Calls for each item, and gives the loop its turns in between.

    Args:
        items: must not change meanwhile.
        call: `call(item)`.
        most: items of one turn.
    """
    until = time.perf_counter() + BUDGET
    done = 0
    for item in items:
        if done >= most or time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + BUDGET
            done = 0
        call(item)
        done += 1
