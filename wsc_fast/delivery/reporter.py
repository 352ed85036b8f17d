"""Telling the application of messages that were not delivered: five kinds of failure handlers.

Handlers run beside the deliveries, never within them. Each handler object has a queue of its own
and one task that works it off in order, so that a slow handler holds up no other. Plain methods run
in a thread of that handler, so that one that blocks, on a database say, does not hold the loop; it
is a daemon thread, so that one that hangs does not keep the process. Async methods run as tasks, a
bounded number at once.

A queue holds what was sent in the form in which it lies in memory anyway: frames, text, encoded
messages. It is decoded when its handler is called. So a failure costs little in the call that
failed, and nothing that is done to a message afterwards changes what a handler sees.

A queue is bounded in failures and in bytes. One recipient may take as much of it as it leaves free
to the others, and messages that clients may not publish have a smaller part of their own. A failure
that a queue cannot take is counted. So is one that a handler causes itself: no handler hears of it,
or a handler which sends to the same absent user would call itself for ever.

Which failure calls which handler is a table in docs/delivery.md.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from datetime import UTC, datetime
from queue import SimpleQueue
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast.delivery.failures import (
    GENERAL,
    SPECIAL,
    Encoded,
    Failure,
    Message,
    as_id,
    calls_of,
    copied,
    handling,
)
from wsc_fast.errors import LimitError, SendFailureReason, ValidationError
from wsc_fast.log import log
from wsc_fast.messages import (
    HubMessage,
    decode_hub_message,
    message_of,
    new_message_id,
    requires_ack,
)

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.delivery.needs import Needs

# Failures that wait for one handler, and their bytes as they are in memory.
MAX_WAITING = 10_000
MAX_WAITING_BYTES = 16 << 20
# The same of messages that clients may not publish; they take no room of the others.
MAX_WAITING_REFUSED = 1_000
MAX_WAITING_REFUSED_BYTES = 1 << 20
# Async calls of one handler at once.
MAX_RUNNING = 64
# Handler objects of one hub. Each may have a thread.
MAX_HANDLERS = 64
# Bytes that a failure takes beside its message, about; and each further one of the same client.
FAILURE_BYTES = 1_024
LISTED_BYTES = 64
# Seconds after which a task that tells one failure after the other lets the loop go on.
SLICE = 0.001
# Seconds that the handlers get at the hub's stop, though its timeout is over.
FINISH_GRACE = 1.0


class FailureCounters(msgspec.Struct):
    """Of one hub, under their names in HubStats."""

    send_failures: int = 0
    unreported_failures: int = 0
    handler_errors: int = 0


class _Batch(msgspec.Struct, frozen=True):
    """What failures have in common that differ in their message only: one failure, or all that a
    client's outbox held. The queues of all handlers share it.
    """

    failure: Failure  # its message is not looked at
    holder: str  # on whose account they wait
    number: int  # of the first
    extra: int  # bytes that each takes beside its message, about
    client_id: str | None = None  # of a lost outbox: whose; then the messages are frames
    at: float = msgspec.field(default_factory=time.time)

    def size(self, item: Message) -> int:
        """Bytes of one failure in memory."""
        return _size(item) + self.extra

    def sizes(self, items: Sequence[Message]) -> Iterator[int]:
        """Bytes of each; lazily, since there may be no room for the most."""
        if self.client_id is None:
            return map(self.size, items)
        return map(self.extra.__add__, map(getsizeof, items))

    def told(self, item: Message, message_id: str) -> Failure:
        """One failure as it is told: with a HubMessage that is the handler's own."""
        failure = self.failure
        recipient, to = failure.recipient, failure.to or ""
        if self.client_id is None:
            message = _decoded(item)
        else:
            assert isinstance(item, bytes)
            message = message_of(item)
            if isinstance(message, HubMessage):
                recipient = to  # only `send_to_user` sends one, which names the user
        if not isinstance(message, HubMessage):
            message = self._raw(message, message_id)
        if to:
            message.to = to
        return msgspec.structs.replace(failure, message=message, recipient=recipient)

    def _raw(self, message: str | bytes, message_id: str) -> HubMessage:
        return HubMessage(
            id=message_id,
            type="raw",
            content=message if isinstance(message, str) else "",
            data={"bytes": message} if isinstance(message, bytes) else None,
            create_at=datetime.fromtimestamp(self.at, UTC),
        )


def _size(item: Message) -> int:
    if isinstance(item, (str, bytes)):
        return getsizeof(item)
    if isinstance(item, Encoded):
        return getsizeof(item.data)
    # One that cannot be encoded: its data is the caller's.
    return sum(getsizeof(getattr(item, name, None)) for name in item.__struct_fields__)


def _decoded(item: Message) -> HubMessage | str | bytes:
    if isinstance(item, Encoded):
        try:
            return decode_hub_message(item.data)
        except Exception:
            return item.data  # an offline store held something that is no HubMessage
    if isinstance(item, HubMessage):
        return copied(item)
    assert isinstance(item, (str, bytes))
    return item


class _Room:
    """How much of a queue is free, and who holds the rest.

    One recipient may hold as much as is free: alone it gets half of the queue, and the more hold
    much, the more is left for one that comes new.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._free = most
        self._free_bytes = most_bytes
        self._held: dict[str, tuple[int, int]] = {}  # failures, bytes

    def is_open(self, holder: str) -> bool:
        count, nbytes = self._held.get(holder, (0, 0))
        return count < self._free and nbytes < self._free_bytes

    def take(self, batch: _Batch, items: Sequence[Message]) -> int:
        """Takes room for the first of these; returns for how many."""
        count, nbytes = self._held.get(batch.holder, (0, 0))
        free, free_bytes = self._free, self._free_bytes
        taken = size = 0
        for more in batch.sizes(items):
            if count + taken >= free - taken or nbytes + size + more > free_bytes - size:
                break
            taken += 1
            size += more
        if taken:
            self._held[batch.holder] = (count + taken, nbytes + size)
            self._free -= taken
            self._free_bytes -= size
        return taken

    def give_back(self, holder: str, size: int) -> None:
        count, nbytes = self._held[holder]
        if count == 1:
            del self._held[holder]
        else:
            self._held[holder] = (count - 1, nbytes - size)
        self._free += 1
        self._free_bytes += size


_ThreadCall = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class _Thread:
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


class _Queue:
    """One handler object: what waits for it, and the task that tells it of that in order.

    Thread-safety: the loop's thread. `methods` is replaced from any thread, and never changed.
    """

    def __init__(self, reporter: FailureReporter, handler: object) -> None:
        self.handler = handler
        self.methods: dict[str, int] = {}  # how often it was added for each
        self._reporter = reporter
        # With the messages of each batch, the last one first, and how many they were.
        self._waiting: deque[tuple[_Batch, list[Message], int]] = deque()
        self._make_room()
        self._overflowed = False
        self._worker: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._vacancy: asyncio.Event | None = None  # set while fewer than MAX_RUNNING run
        self._thread: _Thread | None = None

    def _make_room(self) -> None:
        self._room = _Room(MAX_WAITING, MAX_WAITING_BYTES)
        self._refused = _Room(MAX_WAITING_REFUSED, MAX_WAITING_REFUSED_BYTES)

    def hears_of(self, reason: SendFailureReason) -> bool:
        return GENERAL in self.methods or SPECIAL.get(reason, ("",))[0] in self.methods

    def _room_of(self, reason: SendFailureReason) -> _Room:
        return self._refused if reason is SendFailureReason.PERMISSION else self._room

    def is_open(self, reason: SendFailureReason, holder: str) -> bool:
        """Whether there may be room for a failure of a recipient."""
        return self._room_of(reason).is_open(holder)

    def add(self, batch: _Batch, items: Sequence[Message], loop: asyncio.AbstractEventLoop) -> int:
        """Queues those that there is room for, from the first on; returns how many these are."""
        taken = self._room_of(batch.failure.reason).take(batch, items)
        if taken:
            self._waiting.append((batch, [*reversed(items[:taken])], taken))
            if self._worker is None:
                # Nothing of whoever called: the handlers are told of others' failures too.
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
                self._reporter.sweep()

    def _next(self) -> tuple[_Batch, Message, int]:
        """Takes out the first; also the number of the failure."""
        batch, items, count = self._waiting[0]
        item = items.pop()
        if not items:
            self._waiting.popleft()
        self._room_of(batch.failure.reason).give_back(batch.holder, batch.size(item))
        return batch, item, batch.number + count - len(items) - 1

    async def _tell(self, batch: _Batch, item: Message, number: int) -> None:
        try:
            failure = batch.told(item, f"{self._reporter.ids}-{number}")
            for method, arguments in calls_of(failure, batch.client_id):
                for _ in range(self.methods.get(method, 0)):
                    await self._call(getattr(self.handler, method), arguments)
        except Exception as error:
            self._reporter.failed(error)

    async def _call(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if inspect.iscoroutinefunction(method):
            result, error = _in_handler(method, arguments)
        else:
            if self._thread is None:
                self._thread = _Thread()
            result, error = await self._thread.call(_in_handler, method, arguments)
        if error is not None:
            self._reporter.failed(error)
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
            self._reporter.failed(error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if self._vacancy is not None:
            self._vacancy.set()
            self._vacancy = None
        if not self.methods:
            self._reporter.sweep()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is under way for the handler."""
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
    # What it raises is handed over, since SystemExit and CancelledError would do more on their way.
    handling.set(True)
    try:
        return method(*arguments), None
    except BaseException as error:
        return None, error


class FailureReporter:
    """The failure handlers of one hub, and what waits to be told to them.

    Args:
        needs: of the hub.

    Thread-safety: `add` and `remove` from any thread; `report` and the rest in the loop's thread.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._lock = threading.Lock()  # of those who add and remove
        self._queues: tuple[_Queue, ...] = ()  # one for each handler object
        # Those that hear of each reason.
        self._hearing: dict[SendFailureReason, list[_Queue]] = {}
        self._recursion_logged = False
        self._number = 0  # of failures queued so far
        self.ids = new_message_id()  # how the ids begin that raw messages are told under
        self.active = False  # whether there is any handler
        self.counters = FailureCounters()

    # --- handlers ---

    def add(self, method: str, handler: object) -> None:
        """Adds a handler.

        Args:
            method: one of the five.
            handler: an object that has it.

        Raises:
            ValidationError: it has no such method.
            LimitError: the hub has MAX_HANDLERS handler objects.
        """
        if not callable(getattr(handler, method, None)):
            raise ValidationError(
                f"a handler must have a method {method}, which {type(handler).__name__} has not"
            )
        with self._lock:
            queue = self._queue_of(handler)
            if queue is None:
                if len(self._queues) >= MAX_HANDLERS:
                    raise LimitError(
                        f"the hub has {len(self._queues)} failure handlers already, and takes at "
                        f"most {MAX_HANDLERS}"
                    )
                queue = _Queue(self, handler)
                self._queues = (*self._queues, queue)
            queue.methods = {**queue.methods, method: queue.methods.get(method, 0) + 1}
            self._changed()

    def remove(self, method: str, handler: object) -> None:
        """Removes a handler, by identity; nothing happens if it is not there."""
        with self._lock:
            queue = self._queue_of(handler)
            if queue is None or method not in queue.methods:
                return
            methods = {**queue.methods, method: queue.methods[method] - 1}
            queue.methods = {name: count for name, count in methods.items() if count}
            self._changed()
        if not queue.methods:
            self._sweep_soon()

    def _queue_of(self, handler: object) -> _Queue | None:
        return next((queue for queue in self._queues if queue.handler is handler), None)

    def _changed(self) -> None:
        self.active = any(queue.methods for queue in self._queues)
        self._hearing = {
            reason: [queue for queue in self._queues if queue.hears_of(reason)]
            for reason in SendFailureReason
        }
        self._needs.watch_losses(self.active)

    def _sweep_soon(self) -> None:
        loop = self._needs.engine.loop
        if loop is None or not self._needs.is_away():
            self.sweep()
            return
        with suppress(RuntimeError):  # the loop was closed; the hub forgets what was for it
            loop.call_soon_threadsafe(self.sweep)

    def sweep(self) -> None:
        """Lets go of handlers that were removed and have nothing under way."""
        with self._lock:
            over = [each for each in self._queues if not each.methods and not each.tasks()]
            self._queues = tuple(each for each in self._queues if each not in over)
        for queue in over:
            queue.clear()

    # --- failures ---

    def report(self, failure: Failure, *, of_call: bool = True) -> None:
        """Counts a failure, and queues it for the handlers.

        Args:
            failure: what happened.
            of_call: a call of the application failed, which may be a handler's; not something that
                came of it later.
        """
        self.counters.send_failures += 1
        queues = self._queues_for(failure.reason, 1, of_call)
        holder = as_id(failure.to or failure.recipient)
        if self._are_full(queues, failure.reason, holder):
            self._unreported(queues, 1)
            return
        failure = failure.kept()
        extra = FAILURE_BYTES + getsizeof(failure.recipient)
        extra += sum(getsizeof(each) for each in failure.error.args)
        self._add(queues, _Batch(failure, holder, self._number, extra), [failure.message])

    def report_lost(
        self,
        frames: list[bytes],
        client: Client,
        reason: SendFailureReason,
        error: Exception | Callable[[], Exception],
        *,
        duration: float,
        acks: bool,
        of_call: bool,
    ) -> None:
        """Counts what a client's outbox has lost, and queues it for the handlers.

        The acknowledgement of a message that requires one, or its absence, tells what became of it:
        it is no failure here. Those that no queue has room for are not looked at, and count.

        Args:
            frames: what was lost.
            client: whose outbox it was.
            reason, duration: as of a Failure, for all of them.
            error: the error, or what makes it where a handler is to hear of it.
            acks: whether messages that require an acknowledgement may be among them.
            of_call: as of `report`.
        """
        queues = self._queues_for(reason, len(frames), of_call)
        user_id = client.user_id
        if queues and self._are_full(queues, reason, user_id):
            self.counters.send_failures += len(frames)
            self._unreported(queues, len(frames))
            return
        kept = [each for each in frames if not requires_ack(each)] if acks else frames
        self.counters.send_failures += len(kept)
        if kept and queues:
            why = error if isinstance(error, Exception) else error()
            failure = Failure(b"", client.id, reason, why, duration, to=user_id)
            batch = _Batch(failure, user_id, self._number, LISTED_BYTES, client.id)
            self._add(queues, batch, kept)

    def _are_full(self, queues: Sequence[_Queue], reason: SendFailureReason, holder: str) -> bool:
        return all(not queue.is_open(reason, holder) for queue in queues)

    def _queues_for(self, reason: SendFailureReason, count: int, of_call: bool) -> Sequence[_Queue]:
        """Those that are to hear of failures; none if these are a handler's own doing."""
        if not self.active:
            return ()
        queues = self._hearing[reason]
        loop = self._needs.engine.loop
        if of_call and handling.get():
            if not self._recursion_logged:
                self._recursion_logged = True
                log.warning(
                    "a failure handler's own message failed (%s): such failures are counted, and "
                    "reported to no handler",
                    reason,
                )
        elif loop is not None and not loop.is_closed():
            return queues
        self.counters.unreported_failures += count * len(queues)
        return ()

    def _add(self, queues: Sequence[_Queue], batch: _Batch, items: Sequence[Message]) -> None:
        loop = self._needs.engine.loop
        assert loop is not None
        self._number += len(items)
        for queue in queues:
            missed = len(items) - queue.add(batch, items, loop)
            if missed:
                self._unreported((queue,), missed)

    def _unreported(self, queues: Sequence[_Queue], count: int) -> None:
        """So many found no room in any of these queues."""
        self.counters.unreported_failures += count * len(queues)
        for queue in queues:
            queue.overflows()

    def failed(self, error: BaseException) -> None:
        """A handler raised."""
        self.counters.handler_errors += 1
        log.error("a failure handler raised", exc_info=error)

    # --- the end ---

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [task for queue in self._queues for task in queue.tasks()]

    async def finish(self, timeout: float) -> None:
        """Lets the handlers hear what waits, for `timeout` seconds or a second; then gives up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(timeout, FINISH_GRACE)
        while tasks := self._tasks():
            if not (await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time())))[0]:
                break
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for queue in self._queues:
            self.counters.unreported_failures += queue.clear()

    def forget(self) -> None:
        """The loop was closed under the hub, or this is the child of a fork."""
        self.ids = new_message_id()
        for queue in self._queues:
            self.counters.unreported_failures += queue.forget()
