"""A queue of operations, and the task that has the server do them batch by batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from wsc_fast.stores.redis.operations import Operation, Read
from wsc_fast.stores.redis.pace import MOST_BYTES, Pace

# A batch has at most so many operations: the server serves nobody else while it works on one.
BATCH_OPERATIONS = 500

# As a result: the operation waits again, in front of its queue; or another lane has taken it.
LATER, ELSEWHERE = object(), object()


class Owner(Protocol):
    """The things that a lane needs of the session that it belongs to."""

    loop: asyncio.AbstractEventLoop
    timeout: float

    def fail(self, operation: Operation, error: Exception) -> None:
        """An operation has failed."""

    def settle(self, operation: Operation, result: Any) -> None:
        """An operation is done."""


class Lane:
    """A queue, and the task that has the server do what is in it, one batch after the other."""

    def __init__(
        self,
        owner: Owner,
        send: Callable[[list[Any]], Awaitable[list[Any]]],
        operations: int = BATCH_OPERATIONS,
        pace: Pace | None = None,
    ) -> None:
        self.queue: deque[Any] = deque()
        self.batch: list[Any] = []  # being sent
        self._owner = owner
        self._send = send
        self._operations = operations
        self._pace = pace
        self._wake = asyncio.Event()
        self._ending = False
        self._task = owner.loop.create_task(self._run())

    def put(self, operation: Operation) -> None:
        self.queue.append(operation)
        self._wake.set()

    async def finish(self) -> None:
        """Returns once all is done; nothing may be put in any more."""
        self._ending = True
        self._wake.set()
        await self._task

    def drop(self) -> list[Operation]:
        """Ends the task, with nothing done about what is left, which it returns."""
        # The task may swallow the cancellation, in redis-py on Python 3.11: then it ends by this.
        self._ending = True
        self._wake.set()
        self._task.cancel()
        left = [*self.batch, *self.queue]
        self.batch, self.queue = [], deque()
        return left

    async def _run(self) -> None:
        while self.queue or not self._ending:
            if not self.queue:
                self._wake.clear()
                await self._wake.wait()
            elif batch := self._take():
                await self._do(batch)

    def _take(self) -> list[Operation]:
        batch: list[Operation] = []
        most = MOST_BYTES if self._pace is None else self._pace.bytes
        size = 0
        queue = self.queue
        while queue and len(batch) < self._operations:
            operation = queue[0]
            if batch and size + operation.size > most:
                break
            queue.popleft()
            # Nobody waits for a read that was cancelled. A write is done all the same.
            if not (isinstance(operation, Read) and operation.future.done()):
                batch.append(operation)
                size += operation.size
        return batch

    async def _do(self, batch: list[Operation]) -> None:
        self.batch = batch
        try:
            results = await self._send(batch)
        except Exception as error:
            self.batch = []
            for operation in batch:
                self._owner.fail(operation, error)
            await self._fail_old(error)
            return
        self.batch = []
        answered = list(zip(batch, results, strict=True))
        self.queue.extendleft(each for each, result in reversed(answered) if result is LATER)
        for operation, result in answered:
            if result is not LATER and result is not ELSEWHERE:
                self._owner.settle(operation, result)

    async def _fail_old(self, error: Exception) -> None:
        """After a batch has failed: fails all that has waited for as long as a batch is tried."""
        count = 0
        before = self._owner.loop.time() - self._owner.timeout
        while self.queue and self.queue[0].born <= before:
            self._owner.fail(self.queue.popleft(), error)
            count += 1
            if count % BATCH_OPERATIONS == 0:
                # The loop has others to serve, too.
                await asyncio.sleep(0)
