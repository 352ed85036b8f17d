"""The thread of an open store: the calls that wait, batch by batch, and their answers.

The rules:

- Only the worker thread touches the database; only the event loop touches futures and the count
  of waiting bytes. Between them stand a queue (loop to worker) and `call_soon_threadsafe`.
- The queue is the order of everything: a call takes its place when it is made.
- All calls that wait become one transaction (a batch), in that order. Nothing is reported before
  its COMMIT has returned and its files have been seen in their places. A transaction that fails
  leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from wsc_fast.errors import OfflineStoreError
from wsc_fast.stores.sqlite import database
from wsc_fast.stores.sqlite.entries import Entry
from wsc_fast.stores.sqlite.others import Others
from wsc_fast.stores.sqlite.transactions import Transactions

# Most writes and bytes of one transaction, which then takes some 50 ms.
_BATCH_ROWS = database.BATCH_ROWS
_BATCH_BYTES = 4 << 20

# Most calls that end in one turn of the event loop, and most messages that they return.
TURN_ENTRIES = 200
_TURN_MESSAGES = 1000

# Seconds without a call after which the log is emptied.
_QUIET = 1.0


class Worker:
    """The thread of an open store, and what it shares with the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transactions: Transactions) -> None:
        self.loop = loop
        # Entries, and None to end after those before it.
        self.queue: SimpleQueue[Entry | None] = SimpleQueue()
        # Bytes of what is in the queue or under way; only the loop touches these two.
        self.waiting: int = 0
        self.closing = False
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        # A daemon, so that a program which forgets `close` ends all the same.
        self.thread: threading.Thread = threading.Thread(
            target=self._run, name="wsc_fast-offline", daemon=True
        )
        # The thread's alone: the loop only names it in what it asks.
        self._transactions = transactions
        self.others: Others = transactions.others
        # Entries that are done, and whose callers are yet to be told; the loop's.
        self._done: deque[Entry] = deque()
        self._telling = False
        self._ended = False

    # On the loop.

    def put(self, entry: Entry) -> asyncio.Future[Any]:
        """Has the thread do this, behind all that was put in before; returns the entry's future."""
        self.waiting += entry.size
        self.queue.put(entry)
        return entry.future

    def _on_opened(self, error: OfflineStoreError | None) -> None:
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)

    def _on_batch(self, batch: list[Entry]) -> None:
        self._done += batch
        if not self._telling:
            self._tell_callers()

    def _tell_callers(self) -> None:
        """Ends some of the calls, and the others in the next turns: their callbacks take time."""
        entries, messages = TURN_ENTRIES, _TURN_MESSAGES
        while self._done and entries > 0 and messages > 0:
            entry = self._done.popleft()
            entries -= 1
            if isinstance(entry.outcome, list):
                messages -= len(entry.outcome)
            self._end(entry)
        self._telling = bool(self._done)
        if self._telling:
            self.loop.call_soon(self._tell_callers)
        elif self._ended:
            self.closed.set_result(None)

    def _end(self, entry: Entry) -> None:
        self.waiting -= entry.size
        if entry.future.done():  # cancelled
            return
        if isinstance(entry.outcome, OfflineStoreError):
            entry.future.set_exception(entry.outcome)
        else:
            entry.future.set_result(entry.outcome)

    def _on_closed(self) -> None:
        self._ended = True
        if not self._telling:
            self.closed.set_result(None)

    # In the thread.

    def _run(self) -> None:
        try:
            self._transactions.open()
        except BaseException as error:
            self._tell(self._on_opened, self._transactions.trouble(error))
        else:
            self._tell(self._on_opened, None)
            self._serve()
        finally:
            self._transactions.close()
            self._tell(self._on_closed)

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop was closed over the store: what waits is still written, then this ends.
            self.queue.put(None)

    def _serve(self) -> None:
        """Works off batches until it is told to end; no error ends it."""
        last = False
        while not last:
            batch: list[Entry] = []
            try:
                last = self._take(batch)
                self._transactions.do(batch)
            except BaseException as error:
                undone = [entry for entry in batch if entry.outcome is msgspec.UNSET]
                self._transactions.fail(undone, error)
            if batch:
                self._tell(self._on_batch, batch)

    def _take(self, batch: list[Entry]) -> bool:
        """Waits for an entry and takes what else is there; returns whether it is the last batch."""
        rows = size = 0
        entry = self._wait_for_entry()
        while entry is not None:
            batch.append(entry)
            rows += entry.rows
            size += entry.size
            if rows >= _BATCH_ROWS or size >= _BATCH_BYTES:
                return False
            try:
                entry = self.queue.get_nowait()
            except Empty:
                return False
        return True

    def _wait_for_entry(self) -> Entry | None:
        if self._transactions.log_is_used:
            try:
                return self.queue.get(timeout=_QUIET)
            except Empty:
                self._transactions.save_log()
        return self.queue.get()
