"""Calls that other threads make of a hub, run on the thread of its loop."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, TypeVar

from wsc_fast._core.engine import Engine
from wsc_fast.errors import HubStoppedError, LoopBusyError
from wsc_fast.log import log

T = TypeVar("T")


class ThreadCalls:
    """The calls of one hub that are under way.

    Args:
        engine: of the hub; it knows the loop and its thread.
        timeout: seconds that the loop has to take a call, as the settings say now.

    Thread-safety: `make` is for any thread but the loop's, `run` for any, `end` for the loop's.
    """

    def __init__(self, engine: Engine, timeout: Callable[[], float]) -> None:
        self._engine = engine
        self._timeout = timeout
        self._calls: set[concurrent.futures.Future[Any]] = set()

    def run(self, call: Callable[[], T]) -> T:
        """Makes a call here on the loop's thread, or while no loop runs; else as `make`."""
        return self.make(call) if self._engine.is_away() else call()

    def make(self, call: Callable[[], T]) -> T:
        """Runs a call on the loop's thread.

        Args:
            call: what to run.

        Returns:
            what the call returns.

        Raises:
            HubStoppedError: the loop is gone, or went before it took the call.
            LoopBusyError: it did not take the call in time; the call does not run any more.
            BaseException: what the call raises.
        """
        loop = self._engine.loop
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._calls.add(result)
        try:
            if loop is None:
                raise HubStoppedError("the hub has stopped")
            try:
                loop.call_soon_threadsafe(_run, call, result)
            except RuntimeError as error:
                raise HubStoppedError("the loop of the hub is closed") from error
            return _wait(result, self._timeout())
        finally:
            self._calls.discard(result)

    def end(self) -> None:
        """The hub has stopped: the loop takes no call any more."""
        for result in list(self._calls):
            if not result.done():
                result.set_exception(HubStoppedError("the hub stopped before it took the call"))


def _run(call: Callable[[], T], result: concurrent.futures.Future[T]) -> None:
    if result.done():
        return
    value: Any = None
    failure: BaseException | None = None
    try:
        value = call()
    except BaseException as error:
        failure = error
    try:
        if failure is None:
            result.set_result(value)
        else:
            result.set_exception(failure)
    except concurrent.futures.InvalidStateError:
        log.warning("a call from another thread ran after its caller had given up")


def _wait(result: concurrent.futures.Future[T], timeout: float) -> T:
    try:
        return result.result(timeout)
    except concurrent.futures.TimeoutError:
        if result.done():
            return result.result()  # it came that moment, or raised this itself
        try:
            result.set_exception(TimeoutError())  # so that it does not run any more
        except concurrent.futures.InvalidStateError:
            return result.result()
        raise LoopBusyError(
            f"the hub's loop did not take the call in {timeout} s: "
            "is a callback blocking it, or waiting for this thread?"
        ) from None
