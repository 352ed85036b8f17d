"""Whether the offline store is there, and answers.

The store may be away. It opens again by itself, and what waits for a reading ends after PATIENCE
seconds in which nothing came from the store at all. A store that is slow, but answers, is waited
for as long as it takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from wsc_fast._core.histogram import Histogram
from wsc_fast.errors import OfflineStoreError
from wsc_fast.log import log
from wsc_fast.stores.base import OfflineStore

# One reading is of so much, in messages and in bytes.
PAGE = 200
PAGE_BYTES = 1 << 20
# Seconds without any answer of the store after which it counts as away, and how long it then does.
PATIENCE = 2.0
AWAY = 5.0
# Seconds between two attempts to open the store.
OPEN_AGAIN = 1.0

T = TypeVar("T")


class StoreAccess:
    """The offline store of one hub, which may be away.

    Args:
        store: OfflineStore.
        count_error: counts that the store has failed.

    Attributes:
        latencies: seconds that the store took to answer, by operation.

    Thread-safety: the loop's thread.
    """

    def __init__(self, store: OfflineStore, count_error: Callable[[], None]) -> None:
        self.store = store
        self._count_error = count_error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up: bool | None = None  # as the log was told; None: nothing yet
        self.latencies: dict[str, Histogram] = {}
        self._reset()

    def _reset(self) -> None:
        self._opening: asyncio.Task[None] | None = None
        self._open_again_at = 0.0
        # Readings that are under way, when the store was last heard of, and what ends them all.
        self._reading = 0
        self._heard_at = 0.0
        self._away_until = 0.0
        self._lost: asyncio.Future[None] | None = None

    # --- life ---

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Opens the store on this loop."""
        self._reset()
        self._loop = loop
        self._begin_to_open()

    def forget(self) -> None:
        """The loop was closed over it: its tasks went with it."""
        self._loop = None
        self._reset()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the hub runs on."""
        assert self._loop is not None
        return self._loop

    async def stop_opening(self) -> None:
        """Gives up an attempt to open the store that is under way."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening], timeout=1.0)  # a store may swallow it

    async def close(self, deadline: float) -> None:
        """Closes the store, until a time of the loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                await self.store.close()
        except Exception:
            log.exception("the offline store did not close", extra={"event": "store_not_closed"})
        if self._up:
            self._up = None  # the next start says that it opens
        self.forget()

    # --- opening ---

    def _begin_to_open(self) -> None:
        self._opening = self.loop.create_task(self._open())
        # Where nobody waits any more, its failure is no news.
        self._opening.add_done_callback(_retrieve)

    async def _open(self) -> None:
        try:
            await self.timed("open", self.store.open())
        except Exception as error:
            self._open_again_at = self.loop.time() + OPEN_AGAIN
            self._tell(False, f"does not open: {error}")
            raise store_error(error) from error
        self._tell(True, "is open")

    def _tell(self, up: bool, what: str) -> None:
        """Says once that the store is there, or is not."""
        if up is self._up:
            return
        before, self._up = self._up, up
        name = type(self.store).__name__
        if up:
            again = " again" if before is False else ""
            extra = {"event": "store_up", "store": name}
            log.info("the offline store (%s) %s%s", name, what, again, extra=extra)
        else:
            log.warning(
                "the offline store (%s) %s; what needs it fails or waits until it is back",
                name,
                what,
                extra={"event": "store_down", "store": name},
                kind=f"store down {id(self)}",
            )

    async def opened(self) -> None:
        """Returns once the store is open; tries again, but not more often than each second.

        Raises:
            OfflineStoreError: the last attempt has failed.
        """
        opening = self._opening
        assert opening is not None
        if _has_failed(opening) and self.loop.time() >= self._open_again_at:
            self._begin_to_open()
        assert self._opening is not None
        await asyncio.wait([self._opening])
        if self._opening.cancelled():
            raise OfflineStoreError("the offline store was closed")
        error = self._opening.exception()
        if error is not None:
            raise OfflineStoreError(str(error)) from error.__cause__

    def is_open(self) -> bool:
        """Whether it can be asked at once."""
        opening = self._opening
        return opening is not None and opening.done() and not _has_failed(opening)

    # --- asking ---

    async def timed(self, operation: str, answer: Awaitable[T]) -> T:
        """Awaits what a method of the store has returned, and counts the time.

        Args:
            operation: its name.
            answer: of it.
        """
        began = time.monotonic()
        try:
            result = await answer
        except Exception:
            self.took(operation, began)
            raise
        self.took(operation, began)
        return result

    def took(self, operation: str, began: float) -> None:
        """An operation of the store has ended, which began at this monotonic time."""
        latency = self.latencies.get(operation)
        if latency is None:
            latency = self.latencies[operation] = Histogram(128e-6)
        latency.observe(time.monotonic() - began)

    def is_away(self) -> bool:
        """Whether the store has not answered lately, and is not asked for a while."""
        return self.loop.time() < self._away_until

    async def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """Awaits the store in a task of its own: a store may swallow a cancellation.

        Raises:
            OfflineStoreError: the store is away, or does not answer for so long that it is.
        """
        if self.is_away():
            question.close()
            raise OfflineStoreError("the offline store does not answer")
        loop = self.loop
        asking = loop.create_task(question)
        asking.add_done_callback(_retrieve)
        if self._reading == 0:
            self._heard_at = loop.time()
        if self._lost is None:
            self._lost = loop.create_future()
            loop.call_later(PATIENCE, self._lose_patience, self._lost)
        self._reading += 1
        try:
            either: list[asyncio.Future[Any]] = [asking, self._lost]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reading -= 1
            if not asking.done():
                asking.cancel()
        if not asking.done():
            raise OfflineStoreError(f"the offline store has not answered for {PATIENCE:g} s")
        answer = asking.result()
        self.heard()
        return answer

    def heard(self) -> None:
        """The store has answered: it is not away."""
        self._heard_at = self.loop.time()
        self._away_until = 0.0
        self._tell(True, "answers")

    def _lose_patience(self, lost: asyncio.Future[None]) -> None:
        if self._loop is None or self._lost is not lost:
            return
        now = self._loop.time()
        if self._reading == 0:
            self._lost = None
        elif now < self._heard_at + PATIENCE:
            self._loop.call_at(self._heard_at + PATIENCE, self._lose_patience, lost)
        else:
            self._away_until = now + AWAY
            self._tell(False, f"has not answered for {PATIENCE:g} s")
            self._lost = None
            lost.set_result(None)

    # --- errors ---

    def failed(self, what: str, error: BaseException, user_id: str | None = None) -> None:
        """The store has failed: counted, and told.

        Args:
            what: the operation, as the line says it.
            error: its exception.
            user_id: whose messages it was about, where it was one user's.
        """
        self._count_error()
        user = {} if user_id is None else {"user_id": user_id}
        log.error(
            "offline store: %s%s: %s",
            what,
            f" (user {user_id!a})" if user else "",
            error,
            exc_info=None if isinstance(error, OfflineStoreError) else error,
            extra={"event": "store_error", "reason": what, "error": str(error), **user},
            reason=what,
        )


def store_error(error: BaseException) -> OfflineStoreError:
    """An exception of a store as callers get it."""
    if isinstance(error, OfflineStoreError):
        return error
    log.error("the offline store raised", exc_info=error)
    return OfflineStoreError(f"the offline store raised {type(error).__name__}: {error}")


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
