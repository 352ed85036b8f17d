"""How the micro-benchmarks measure: coroutine tests on uvloop, and many calls in each round."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import pytest
import uvloop

# A round is about so long, where nothing else bounds it: long beside the clock's resolution, short
# beside the time slices of the kernel.
ROUND = 0.0005
ROUNDS = 200
WARMUP = 5

Call = Callable[[], Any]


class Measure:
    """Measures a call that is repeated within rounds."""

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def __call__(
        self,
        what: str,
        who: str,
        call: Call,
        *,
        times: int = 0,
        each: int = 1,
        between: Call | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        """Runs the rounds.

        Args:
            what: is measured; others measure it too.
            who: does it.
            call: without arguments.
            times: how often within a round; 0 finds out.
            each: how many operations one call is.
            between: runs before each round, and is not measured.
            rounds: how many.
        """
        times = times or often(call)

        def run() -> None:
            for _ in range(times):
                call()

        def setup() -> None:
            if between is not None:
                between()

        self._benchmark.extra_info.update(what=what, who=who, operations=times * each)
        self._benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=WARMUP)


def often(call: Call) -> int:
    """How often a call fits into a round."""
    times = 1
    while True:
        start = perf_counter()
        for _ in range(times):
            call()
        spent = perf_counter() - start
        if spent > ROUND / 4:
            return max(1, int(times * ROUND / spent))
        times *= 4


@pytest.fixture
def measure(benchmark: Any) -> Iterator[Measure]:
    gc.collect()
    gc.disable()
    yield Measure(benchmark)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(pyfuncitem.obj(**arguments))
    return True
