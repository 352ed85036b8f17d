"""Telling the application of messages that were not delivered: five kinds of failure handlers.

Each handler object has a queue of its own (handler_queue.py). A failure that a queue cannot take is
counted. So is one that a handler causes itself: no handler hears of it, or a handler which sends to
the same absent user would call itself for ever.

A table in docs/delivery.md says which failure calls which handler.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast.delivery.batches import Batch
from wsc_fast.delivery.failures import METHODS, Failure, Message, as_id, handling
from wsc_fast.delivery.handler_queue import HandlerQueue
from wsc_fast.errors import LimitError, SendFailureReason, ValidationError
from wsc_fast.log import log
from wsc_fast.messages import new_message_id, requires_ack
from wsc_fast.runtime.lines import tell_raised
from wsc_fast.runtime.signatures import checked_callback

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast.delivery.needs import Needs

# Handler objects of one hub. Each may have a thread.
MAX_HANDLERS = 64
# Bytes that a failure takes beside its message, about; and each further one of the same client.
FAILURE_BYTES = 1_024
LISTED_BYTES = 64
# Seconds that the handlers get at the hub's stop, though its timeout is over.
FINISH_GRACE = 1.0


class FailureCounters(msgspec.Struct):
    """Of one hub, under their names in HubStats."""

    send_failures: int = 0
    unreported_failures: int = 0
    handler_errors: int = 0


class FailureReporter:
    """The failure handlers of one hub, and what waits to be told to them.

    Args:
        needs: of the hub.

    Thread-safety: `add` and `remove` from any thread; `report` and the rest in the loop's thread.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._lock = threading.Lock()  # held while a handler is added or removed
        self._queues: tuple[HandlerQueue, ...] = ()  # one for each handler object
        # The queues that hear of each reason.
        self._hearing: dict[SendFailureReason, list[HandlerQueue]] = {}
        self._recursion_logged = False
        self._number = 0  # of failures queued so far
        self.ids: str = new_message_id()  # how the ids begin that raw messages are told under
        self.active: bool = False  # whether there is any handler
        self.counters: FailureCounters = FailureCounters()

    # --- handlers ---

    def add(self, method: str, handler: object) -> None:
        """Adds a handler.

        Args:
            method: one of the five.
            handler: an object that has it.

        Raises:
            ValidationError: it has no such method, or one of other arguments.
            LimitError: the hub has MAX_HANDLERS handler objects.
        """
        if not callable(getattr(handler, method, None)):
            raise ValidationError(
                f"a handler must have a method {method}, which {type(handler).__name__} has not"
            )
        checked_callback(getattr(handler, method), *METHODS[method])
        with self._lock:
            queue = self._queue_of(handler)
            if queue is None:
                if len(self._queues) >= MAX_HANDLERS:
                    raise LimitError(
                        f"the hub has {len(self._queues)} failure handlers already, and takes at "
                        f"most {MAX_HANDLERS}"
                    )
                queue = HandlerQueue(self, handler)
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

    def _queue_of(self, handler: object) -> HandlerQueue | None:
        return next((queue for queue in self._queues if queue.handler is handler), None)

    def _changed(self) -> None:
        self.active = any(queue.methods for queue in self._queues)
        self._hearing = {
            reason: [queue for queue in self._queues if queue.hears_of(reason)]
            for reason in SendFailureReason
        }
        self._needs.engine.watch_losses(self.active)

    def _sweep_soon(self) -> None:
        loop = self._needs.engine.loop
        if loop is None or not self._needs.engine.is_away():
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
        self._add(queues, Batch(failure, holder, self._number, extra), [failure.message])

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
        it is no failure here. Frames that no queue has room for are not looked at, and count.

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
            batch = Batch(failure, user_id, self._number, LISTED_BYTES, client.id)
            self._add(queues, batch, kept)

    def _are_full(
        self, queues: Sequence[HandlerQueue], reason: SendFailureReason, holder: str
    ) -> bool:
        return all(not queue.is_open(reason, holder) for queue in queues)

    def _queues_for(
        self, reason: SendFailureReason, count: int, of_call: bool
    ) -> Sequence[HandlerQueue]:
        """The queues that are to hear of failures; none if these are a handler's own doing."""
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

    def _add(self, queues: Sequence[HandlerQueue], batch: Batch, items: Sequence[Message]) -> None:
        loop = self._needs.engine.loop
        assert loop is not None
        self._number += len(items)
        for queue in queues:
            missed = len(items) - queue.add(batch, items, loop)
            if missed:
                self._unreported((queue,), missed)

    def _unreported(self, queues: Sequence[HandlerQueue], count: int) -> None:
        """So many found no room in any of these queues."""
        self.counters.unreported_failures += count * len(queues)
        for queue in queues:
            queue.overflows()

    def failed(self, error: BaseException) -> None:
        """A handler raised."""
        self.counters.handler_errors += 1
        tell_raised("failure_handler_error", "a failure handler", error)

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
