"""One failure handler: the failures that wait for it, and the task that tells it of them in order.

Handlers run beside the deliveries, never within them, and a slow handler holds up no other. Plain
methods run in a thread of that handler, so that one that blocks, on a database say, does not hold
the loop; it is a daemon thread, so that one that hangs does not keep the process. Async methods run
as tasks, a bounded number at once.

A queue is bounded in failures and in bytes. One recipient may take as much of it as it leaves free
to the others, and messages that clients may not publish have a smaller part of their own.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Protocol

from wsc_fast.delivery.batches import Batch, Capacity
from wsc_fast.delivery.failures import GENERAL, SPECIAL, Message, calls_of, handling
from wsc_fast.errors import SendFailureReason
from wsc_fast.log import log

# Failures that wait for one handler, and their bytes as they are in memory.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 << 20
# The same of messages that clients may not publish; they take no room of the others.
MAX_WAITING_REFUSED = 1_000
MAX_WAITING_REFUSED_BYTES = 1 << 20
# Async calls of one handler at once.
MAX_RUNNING = 64
# Seconds after which a task that tells one failure after the other lets the loop go on.
SLICE = 0.001


class Owner(Protocol):
    """The interface that a queue needs of its owner."""

    @property
    def ids(self) -> str:
        """The beginning of the ids that raw messages are told under."""

    def failed(self, error: BaseException) -> None:
        """The handler raised."""

    def sweep(self) -> None:
        """The handler was removed, and nothing is under way for it."""


_ThreadCall = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class HandlerThread:
    """A daemon thread for the plain methods of one handler."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_ThreadCall | None] = SimpleQueue()
        threading.Thread(
            target=_serve, args=(self._calls,), name="wsc_fast failure handler", daemon=True
        ).start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Has the thread call a function that never raises."""
        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, function, arguments))
        return future

    def end(self) -> None:
        """The thread ends after its last call; one that hangs does so never."""
        self._calls.put(None)


def _serve(calls: SimpleQueue[_ThreadCall | None]) -> None:
    while (call := calls.get()) is not None:
        future, function, arguments = call
        result = function(*arguments)
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            future.get_loop().call_soon_threadsafe(_hand_over, future, result)
        del call, future, function, arguments, result  # nothing is kept while it waits


def _hand_over(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


class HandlerQueue:
    """One handler object: the failures that wait for it, and the task that tells it of them.

    Thread-safety: the loop's thread. `methods` is replaced from any thread, and never changed.
    """

    def __init__(self, owner: Owner, handler: object) -> None:
        self.handler = handler
        self.methods: dict[str, int] = {}  # how often it was added for each
        self._owner = owner
        # With the messages of each batch, the last one first, and how many they were.
        self._waiting: deque[tuple[Batch, list[Message], int]] = deque()
        self._make_room()
        self._overflowed = False
        self._worker: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._vacancy: asyncio.Event | None = None  # set while fewer than MAX_RUNNING run
        self._thread: HandlerThread | None = None

    def _make_room(self) -> None:
        self._room = Capacity(MAX_WAITING, MAX_WAITING_BYTES)
        self._refused = Capacity(MAX_WAITING_REFUSED, MAX_WAITING_REFUSED_BYTES)

    def hears_of(self, reason: SendFailureReason) -> bool:
        return GENERAL in self.methods or SPECIAL.get(reason, ("",))[0] in self.methods

    def _room_of(self, reason: SendFailureReason) -> Capacity:
        return self._refused if reason is SendFailureReason.PERMISSION else self._room

    def is_open(self, reason: SendFailureReason, holder: str) -> bool:
        """Whether there may be room for a failure of a recipient."""
        return self._room_of(reason).is_open(holder)

    def add(self, batch: Batch, items: Sequence[Message], loop: asyncio.AbstractEventLoop) -> int:
        """Queues those that there is room for, from the first on; returns how many these are."""
        taken = self._room_of(batch.failure.reason).take(batch, items)
        if taken:
            self._waiting.append((batch, [*reversed(items[:taken])], taken))
            if self._worker is None:
                # In no context of the caller: the handlers are told of others' failures too.
                self._worker = loop.create_task(self._work(), context=Context())
        return taken

    def overflows(self) -> None:
        """A failure found no room; a line in the log for each time that the queue fills."""
        if not self._overflowed:
            self._overflowed = True
            log.warning(
                "failures come faster than the handler %s takes them: those that find no room in "
                "its queue are counted as unreported_failures",
                type(self.handler).__name__,
            )

    async def _work(self) -> None:
        handling.set(True)
        try:
            # A loop whose tasks are eager would begin within the call that failed.
            await asyncio.sleep(0)
            pause = time.monotonic() + SLICE
            while self._waiting and self.methods:
                await self._tell(*self._next())
                if time.monotonic() > pause:
                    await asyncio.sleep(0)
                    pause = time.monotonic() + SLICE
        finally:
            # No await between the last look at `_waiting` and here: nothing can slip in.
            self._worker = None
            self._overflowed = False
            if not self.methods:
                self.clear()
                self._owner.sweep()

    def _next(self) -> tuple[Batch, Message, int]:
        """Takes out the first; also the number of the failure."""
        batch, items, count = self._waiting[0]
        item = items.pop()
        if not items:
            self._waiting.popleft()
        self._room_of(batch.failure.reason).give_back(batch.holder, batch.size(item))
        return batch, item, batch.number + count - len(items) - 1

    async def _tell(self, batch: Batch, item: Message, number: int) -> None:
        try:
            failure = batch.told(item, f"{self._owner.ids}-{number}")
            for method, arguments in calls_of(failure, batch.client_id):
                for _ in range(self.methods.get(method, 0)):
                    await self._call(getattr(self.handler, method), arguments)
        except Exception as error:
            self._owner.failed(error)

    async def _call(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if inspect.iscoroutinefunction(method):
            result, error = _in_handler(method, arguments)
        else:
            if self._thread is None:
                self._thread = HandlerThread()
            result, error = await self._thread.call(_in_handler, method, arguments)
        if error is not None:
            self._owner.failed(error)
            return
        if not inspect.isawaitable(result):
            return
        task = asyncio.ensure_future(self._await(result))
        self._running.add(task)
        task.add_done_callback(self._ended)
        if len(self._running) >= MAX_RUNNING:
            self._vacancy = asyncio.Event()
            await self._vacancy.wait()

    async def _await(self, result: Any) -> None:
        try:
            await result
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the hub is stopping; not a CancelledError of the handler's own
            self._owner.failed(error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if self._vacancy is not None:
            self._vacancy.set()
            self._vacancy = None
        if not self.methods:
            self._owner.sweep()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that are under way for the handler."""
        return [*self._running, *([self._worker] if self._worker is not None else [])]

    def clear(self) -> int:
        """Forgets what waits and ends the thread; returns how many failures these were."""
        count = sum(len(items) for _, items, _ in self._waiting)
        self._waiting.clear()
        self._make_room()
        if self._thread is not None:
            self._thread.end()
            self._thread = None
        return count

    def forget(self) -> int:
        """The loop was closed: nothing goes on. Returns as `clear`."""
        self._running.clear()
        self._worker = None
        self._vacancy = None
        return self.clear()


def _in_handler(
    method: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, BaseException | None]:
    # An exception is handed over: SystemExit and CancelledError would do more on their way.
    handling.set(True)
    try:
        return method(*arguments), None
    except BaseException as error:
        return None, error
