"""Telling the application of messages that were not delivered: five kinds of failure handlers.

Handlers run beside the deliveries, never within them: a failure is put into a bounded queue, and
one task works it off in order. Plain methods run in a thread of their own, so that one that
blocks, on a database say, does not hold the loop; async ones as tasks, at most a bounded number at
once. What the queue cannot take is counted. What fails within a handler is counted and reported to
no handler, so that a handler which sends to the same absent user does not call itself for ever.

Which failure calls which handler is a table in docs/delivery.md.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from wsc_fast.errors import (
    AckTimeoutError,
    ClientDisconnectedError,
    ClientNotFoundError,
    HubStateError,
    LoopBusyError,
    OfflineStoreFullError,
    PendingFullError,
    QueueFullError,
    SendFailureReason,
    UserOfflineError,
    ValidationError,
)
from wsc_fast.log import log
from wsc_fast.messages import ACKMessage, HubMessage

if TYPE_CHECKING:
    from wsc_fast.hub import Hub

Message = HubMessage | ACKMessage | str | bytes

# Failures that wait for their handlers; more are counted only.
MAX_WAITING = 10_000
# Async handlers at once.
MAX_RUNNING = 64
# Seconds that the handlers get at the hub's stop, though its timeout is over.
FINISH_GRACE = 1.0

# Set while a handler runs, in whatever it awaits, starts or calls in its thread.
_handling: ContextVar[bool] = ContextVar("wsc_fast_handling_failure", default=False)


class SendFailureHandler(Protocol):
    """Hears of every failure (go-wsc `SendFailureHandler`). The method may be async."""

    def handle_send_failure(
        self, msg: Message, recipient: str, reason: SendFailureReason, error: Exception
    ) -> Any: ...


class QueueFullHandler(Protocol):
    """Hears of full queues; `queue_type` is "outbox", "broadcast" or "pending"."""

    def handle_queue_full(
        self, msg: Message, recipient: str, queue_type: str, error: Exception
    ) -> Any: ...


class UserOfflineHandler(Protocol):
    """Hears of messages for users who have no connected client."""

    def handle_user_offline(self, msg: Message, user_id: str, error: Exception) -> Any: ...


class ConnectionErrorHandler(Protocol):
    """Hears of messages whose client had gone, or went before it got them."""

    def handle_connection_error(self, msg: Message, client_id: str, error: Exception) -> Any: ...


class TimeoutHandler(Protocol):
    """Hears of messages that took too long; `timeout_type` is "call", "send", "ack" or "offline".

    `duration` is in seconds.
    """

    def handle_timeout(
        self, msg: Message, recipient: str, timeout_type: str, duration: float, error: Exception
    ) -> Any: ...


class Failure(msgspec.Struct, frozen=True):
    """One message that was not delivered, and why."""

    message: Message
    recipient: str
    reason: SendFailureReason
    error: Exception
    duration: float = 0.0  # seconds, of a timeout
    kind: str | None = None  # the queue or timeout type, where the reason does not say it


# Reason -> the special handlers' method, and their queue or timeout type.
_SPECIAL: dict[SendFailureReason, tuple[str, str | None]] = {
    SendFailureReason.QUEUE_FULL: ("handle_queue_full", "outbox"),
    SendFailureReason.BROADCAST_FULL: ("handle_queue_full", "broadcast"),
    SendFailureReason.PENDING_FULL: ("handle_queue_full", "pending"),
    SendFailureReason.USER_OFFLINE: ("handle_user_offline", None),
    SendFailureReason.CONN_CLOSED: ("handle_connection_error", None),
    SendFailureReason.CONN_ERROR: ("handle_connection_error", None),
    SendFailureReason.CHANNEL_CLOSED: ("handle_connection_error", None),
    SendFailureReason.TIMEOUT: ("handle_timeout", "call"),
    SendFailureReason.SEND_TIMEOUT: ("handle_timeout", "send"),
    SendFailureReason.ACK_TIMEOUT: ("handle_timeout", "ack"),
}
# The most special class first.
_REASONS: tuple[tuple[type[BaseException], SendFailureReason], ...] = (
    (PendingFullError, SendFailureReason.PENDING_FULL),
    (OfflineStoreFullError, SendFailureReason.PENDING_FULL),
    (QueueFullError, SendFailureReason.QUEUE_FULL),
    (UserOfflineError, SendFailureReason.USER_OFFLINE),
    (ClientDisconnectedError, SendFailureReason.CONN_CLOSED),
    (ClientNotFoundError, SendFailureReason.CONN_CLOSED),
    (AckTimeoutError, SendFailureReason.ACK_TIMEOUT),
    (LoopBusyError, SendFailureReason.TIMEOUT),
    (HubStateError, SendFailureReason.CHANNEL_CLOSED),
    (ValidationError, SendFailureReason.VALIDATION),
    (ConnectionError, SendFailureReason.CONN_ERROR),
)
METHODS = (
    "handle_send_failure",
    "handle_queue_full",
    "handle_user_offline",
    "handle_connection_error",
    "handle_timeout",
)


def reason_of(error: BaseException) -> SendFailureReason:
    """The reason that an exception of a send stands for; "unknown" for those of others."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return SendFailureReason.UNKNOWN


def outside_handlers() -> None:
    """The task that calls this was begun by a handler perhaps, but is not the handler's own."""
    _handling.set(False)


class FailureCounters(msgspec.Struct):
    """Of one hub, under their names in HubStats."""

    send_failures: int = 0
    unreported_failures: int = 0
    handler_errors: int = 0


class FailureReporter:
    """The failure handlers of one hub, and what waits to be told to them.

    Thread-safety: `add` and `remove` from any thread; `report` and the rest in the loop's thread.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._handlers: dict[str, tuple[Any, ...]] = dict.fromkeys(METHODS, ())
        self._waiting: deque[Failure] = deque()
        self._running: set[asyncio.Task[Any]] = set()
        self._room: asyncio.Event | None = None  # set while fewer than MAX_RUNNING run
        self._worker: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._recursion_logged = False
        self.active = False  # whether there is any handler
        self.counters = FailureCounters()

    def add(self, method: str, handler: object) -> None:
        """Adds a handler; ValidationError if it has no such method."""
        if not callable(getattr(handler, method, None)):
            raise ValidationError(
                f"a handler must have a method {method}, which {type(handler).__name__} has not"
            )
        self._handlers[method] = (*self._handlers[method], handler)
        self._changed()

    def remove(self, method: str, handler: object) -> None:
        """Removes a handler, by identity; nothing happens if it is not there."""
        kept = list(self._handlers[method])
        for index, known in enumerate(kept):
            if known is handler:
                del kept[index]
                break
        self._handlers[method] = tuple(kept)
        self._changed()

    def _changed(self) -> None:
        self.active = any(self._handlers.values())
        self._hub._watch_losses(self.active)

    def report(self, failure: Failure, *, of_call: bool = True) -> None:
        """Counts a failure, and queues it for the handlers.

        Args:
            failure: what happened.
            of_call: a call of the application failed, which may be a handler's; not something that
                came of it later.
        """
        self.counters.send_failures += 1
        if not self.active:
            return
        loop = self._hub.loop
        if of_call and _handling.get():
            self.counters.unreported_failures += 1
            if not self._recursion_logged:
                self._recursion_logged = True
                log.warning(
                    "a failure handler's own message failed (%s): such failures are counted, and "
                    "reported to no handler",
                    failure.reason,
                )
            return
        if len(self._waiting) >= MAX_WAITING or loop is None or loop.is_closed():
            self.counters.unreported_failures += 1
            return
        self._waiting.append(failure)
        if self._worker is None:
            self._worker = loop.create_task(self._work())

    async def _work(self) -> None:
        _handling.set(True)
        try:
            while self._waiting:
                failure = self._waiting.popleft()
                for method, arguments in _calls(failure):
                    for handler in self._handlers[method]:
                        await self._call(getattr(handler, method), arguments)
        finally:
            # No await between the last look at `_waiting` and here: nothing can slip in.
            self._worker = None

    async def _call(self, method: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if not inspect.iscoroutinefunction(method):
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "wsc_fast failure handlers")
            loop = asyncio.get_running_loop()
            result, error = await loop.run_in_executor(
                self._thread, partial(_in_handler, method, arguments)
            )
        else:
            result, error = _in_handler(method, arguments)
        if error is not None:
            self._failed(error)
            return
        if not inspect.isawaitable(result):
            return
        task = asyncio.ensure_future(self._await(result))
        self._running.add(task)
        task.add_done_callback(self._ended)
        if len(self._running) >= MAX_RUNNING:
            self._room = asyncio.Event()
            await self._room.wait()

    async def _await(self, result: Any) -> None:
        try:
            await result
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the hub is stopping; not a CancelledError of the handler's own
            self._failed(error)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if self._room is not None:
            self._room.set()
            self._room = None

    def _failed(self, error: BaseException) -> None:
        self.counters.handler_errors += 1
        log.error("a failure handler raised", exc_info=error)

    async def finish(self, timeout: float) -> None:
        """Lets the handlers hear what waits, for `timeout` seconds or a second; then gives up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max(timeout, FINISH_GRACE)
        while tasks := [*self._running, *([self._worker] if self._worker else [])]:
            if not (await asyncio.wait(tasks, timeout=max(0.0, deadline - loop.time())))[0]:
                break
        tasks = [*self._running, *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.counters.unreported_failures += len(self._waiting)
        self._waiting.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    def forget(self) -> None:
        """The loop was closed under the hub."""
        self.counters.unreported_failures += len(self._waiting)
        self._waiting.clear()
        self._running.clear()
        self._worker = None


def _in_handler(
    method: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, BaseException | None]:
    # What it raises is handed over, since SystemExit and CancelledError would do more on their way.
    _handling.set(True)
    try:
        return method(*arguments), None
    except BaseException as error:
        return None, error


def _calls(failure: Failure) -> list[tuple[str, tuple[Any, ...]]]:
    message, recipient, error = failure.message, failure.recipient, failure.error
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("handle_send_failure", (message, recipient, failure.reason, error))
    ]
    method, kind = _SPECIAL.get(failure.reason, (None, None))
    kind = failure.kind or kind
    if method == "handle_timeout":
        calls.append((method, (message, recipient, kind, failure.duration, error)))
    elif method is not None:
        middle = () if kind is None else (kind,)
        calls.append((method, (message, recipient, *middle, error)))
    return calls
