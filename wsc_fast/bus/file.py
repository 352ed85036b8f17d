"""The file of a MemoryBus: the histories are written behind what happens in memory.

The loop notes which rooms have changed. Every 50 ms, or after 1,000 changes, one thread writes the
newest state of these rooms in one transaction (database.py). There is no queue of messages: what is
not written yet is in the histories, whose bytes are bounded.

A process that is killed takes with it what is not written. A map says of which rooms
(unwritten.py): these get a mark when the file is opened the next time.

A write that fails is tried again each second, with what has changed meanwhile. A file that was
removed or replaced is written anew from memory.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from wsc_fast._core.clock import monotonic, time
from wsc_fast.bus.base import Published
from wsc_fast.bus.database import MOST_KEYS, Answers, Batch, Database, Loaded, ReplacedError
from wsc_fast.bus.history import History
from wsc_fast.bus.unwritten import Unwritten
from wsc_fast.errors import BusError
from wsc_fast.log import log

# A write begins so many seconds after the first change, or at once after so many changes.
_DELAY, _CHANGES = 0.05, 1000
# Seconds after a write that failed.
_AGAIN = 1.0
# One transaction takes no further room once it has so many entries or bytes.
_MOST_ENTRIES, _MOST_BYTES = 10_000, 16 << 20


@dataclass(slots=True, eq=False)
class _Stored:
    """A history in the file.

    Attributes:
        key: its key there.
        number: of the newest message that was written.
    """

    history: History
    key: int
    number: int


class HistoryFile:
    """The file of one MemoryBus, from its open to its close.

    Args:
        path: of the file.

    Attributes:
        histories, answers: what is known; the bus changes them, and says so by `changed`.
        start: the place before the first message of a room without a history, from the last close
            in good order; "": it is not known.

    Thread-safety: the loop on which it was opened.
    """

    def __init__(self, path: str) -> None:
        self.histories: OrderedDict[str, History] = OrderedDict()
        self.answers: Answers = OrderedDict()
        self.start: str = ""
        self._path = path
        self._database = Database(path)
        self._unwritten = Unwritten(path)
        self._thread = ThreadPoolExecutor(1, "wsc_fast-history")
        self._loop = asyncio.get_running_loop()
        self._stored: dict[str, _Stored] = {}
        self._next_key = 1
        # The rooms that have changed, each with the answers of which the file knows nothing yet.
        self._changed: dict[str, list[tuple[Any, ...]]] = {}
        self._changes = 0
        self._gone: list[int] = []
        self._anew = False
        self._failing = False
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[bool] | None = None  # whether it was written
        self._closed = False

    async def open(self, max_bytes: int) -> int:
        """Opens the file and reads it.

        Args:
            max_bytes: of the histories; what does not fit goes.

        Returns:
            int: the bytes of the histories.

        Raises:
            BusError: the file cannot be used.
        """
        try:
            loaded, marked = await asyncio.wrap_future(self._thread.submit(self._load, max_bytes))
        except BaseException:
            self.abandon()
            raise
        self.histories, self.answers = loaded.histories, loaded.answers
        self._next_key = loaded.top_key + 1
        self._stored = {
            room: _Stored(history, loaded.keys[room], history.number - (room in marked))
            for room, history in loaded.histories.items()
        }
        if marked:
            self._changed = {room: [] for room in marked}
            self._soon()
            log.warning(
                "the process that had the file %a before was killed, or its machine crashed: "
                "messages of %d kept rooms may be missing, and clients that come back to these "
                "will hear of it",
                self._path,
                len(marked),
                extra={"event": "history_marked", "rooms": len(marked)},
            )
        self._gone = loaded.gone
        self.start = loaded.start
        return loaded.nbytes

    def _load(self, max_bytes: int) -> tuple[Loaded, set[str]]:
        """The content of the file, and the rooms that have got a mark."""
        self._database.open()
        loaded = self._database.load(max_bytes, (monotonic(), time()))
        marked = self._unwritten.read(loaded.histories, closed=loaded.closed)
        for room in marked:
            loaded.histories[room].mark()
        loaded.nbytes = sum(each.nbytes for each in loaded.histories.values())
        self._unwritten.begin(marked)
        return loaded, marked

    async def close(self, start: str) -> None:
        """Writes all that has changed, once, and closes the file.

        Args:
            start: the place before the first message of a room without a history.
        """
        self._closed = True
        try:
            written = True
            while written and (self._writing is not None or self._changed or self._gone):
                if self._writing is None:
                    self._write()
                assert self._writing is not None
                written = await asyncio.shield(self._writing)
            if written:
                leaving = self._thread.submit(self._database.leave, start)
                with suppress(BusError):  # then nobody knows it, as after a crash
                    await asyncio.wrap_future(leaving)
                    self._unwritten.end()
        finally:
            closed = self.abandon()
        await asyncio.wrap_future(closed)

    def abandon(self) -> Future[None]:
        """Has the thread close the file, and end."""
        self._closed = True
        self._cancel_timer()
        self._unwritten.close()
        closed = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        return closed

    def _close(self) -> None:
        self._unwritten.close()  # a start that was given up may have opened it since
        self._database.close()

    # --- what has changed ---

    def changed(self, room: str) -> None:
        """The history of a room has changed, or is there no more."""
        self._rows_of(room)
        self._soon()

    def answered(self, room: str, key: str, answer: Published, until: float) -> None:
        """A publish with an idempotency key was answered."""
        row = (room, key, answer.position, until + time() - monotonic())
        self._rows_of(room).append(row)
        self._soon()

    def _rows_of(self, room: str) -> list[tuple[Any, ...]]:
        """The answers of a changed room; from now on it is one."""
        rows = self._changed.get(room)
        if rows is None:
            rows = self._changed[room] = []
            self._unwritten.add(room)
        return rows

    def _soon(self) -> None:
        self._changes += 1
        if self._timer is None:
            self._timer = self._loop.call_later(_DELAY, self._write)
        elif self._changes == _CHANGES and not self._failing:
            self._cancel_timer()
            self._timer = self._loop.call_later(0, self._write)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- writing ---

    def _write(self) -> None:
        """Has the thread write what has changed; the next write begins when this one has ended."""
        self._cancel_timer()
        if self._writing is not None:
            return
        self._changes = 0
        numbers: dict[str, int] = {}
        batch = self._take(numbers)
        self._writing = self._loop.create_future()
        future = self._thread.submit(self._database.write, batch)
        future.add_done_callback(partial(self._tell, partial(self._written, batch, numbers)))

    def _tell(self, callback: Callable[[Future[None]], None], future: Future[None]) -> None:
        with suppress(RuntimeError):  # the loop was closed over the hub
            self._loop.call_soon_threadsafe(callback, future)

    def _take(self, numbers: dict[str, int]) -> Batch:
        """Takes changed rooms; `numbers` gets that of the newest message of each."""
        batch = Batch(anew=self._anew, gone=list(self._gone))
        nbytes = 0
        while self._changed and len(batch.entries) < _MOST_ENTRIES and nbytes < _MOST_BYTES:
            room = next(iter(self._changed))
            batch.answers += self._changed.pop(room)
            stored = self._stored_as(room, batch)
            numbers[room] = 0
            if stored is not None:
                numbers[room] = stored.history.number
                nbytes += _add_room(batch, room, stored)
        return batch

    def _stored_as(self, room: str, batch: Batch) -> _Stored | None:
        """The state of a room in the file; a history that replaced another one is new."""
        history = self.histories.get(room)
        stored = self._stored.get(room)
        if stored is not None and stored.history is not history:
            batch.gone.append(stored.key)
            self._gone.append(stored.key)
            del self._stored[room]
            stored = None
        if stored is None and history is not None:
            stored = self._stored[room] = _Stored(history, self._next_key, history.first)
            self._next_key += 1
        return stored

    def _written(self, batch: Batch, numbers: dict[str, int], future: Future[None]) -> None:
        assert self._writing is not None
        writing, self._writing = self._writing, None
        error = future.exception()
        self._failing = error is not None
        if error is None:
            self._anew = False
            del self._gone[: len(batch.gone)]
            for room, number in numbers.items():
                self._unwritten.remove(room)
                if room in self._stored:
                    self._stored[room].number = number
        elif isinstance(error, ReplacedError):
            for room in numbers:
                self._unwritten.remove(room)
            self._write_anew()
        else:
            self._take_back(batch, numbers, error)
        if not self._closed and (self._changed or self._gone):
            delay = _DELAY if error is None else _AGAIN
            self._cancel_timer()
            self._timer = self._loop.call_later(delay, self._write)
        writing.set_result(error is None or isinstance(error, ReplacedError))

    def _take_back(self, batch: Batch, numbers: dict[str, int], error: BaseException) -> None:
        for room in numbers:
            if room in self._changed:
                self._unwritten.remove(room)  # it has changed meanwhile
            else:
                self._changed[room] = []
        rows = sum(map(len, self._changed.values())) + len(batch.answers)
        if rows <= MOST_KEYS:  # else the oldest keys are known in memory alone
            for row in reversed(batch.answers):
                self._changed[row[0]].insert(0, row)
        log.error(
            "the histories of kept rooms could not be written to %a: %s; clients recover from "
            "memory, but not over a restart of the hub: make room on the disk, or remove the "
            "file if it is damaged, and it is written anew",
            self._path,
            error,
            extra={"event": "history_not_written", "error": type(error).__name__},
        )

    def _write_anew(self) -> None:
        log.error(
            "the file %a with the histories of kept rooms was removed or replaced: it is written "
            "anew from memory",
            self._path,
            extra={"event": "history_written_anew"},
        )
        self._anew = True
        self._gone.clear()
        self._stored.clear()
        for rows in self._changed.values():
            rows.clear()  # they are among the answers
        for room in self.histories:
            self._rows_of(room)
        for (room, key), (answer, until) in self.answers.items():
            self._rows_of(room).append((room, key, answer.position, until + time() - monotonic()))


def _add_room(batch: Batch, room: str, stored: _Stored) -> int:
    """Adds the newest state of a room to a batch; returns the bytes of its entries."""
    history, shift = stored.history, time() - monotonic()
    ends, forgotten = history.ends + shift, history.forgotten + shift
    batch.rooms.append(
        (
            stored.key,
            room,
            history.number,
            history.first,
            history.before,
            history.top,
            ends,
            forgotten,
            time(),
        )
    )
    # The number of the last written one may be older than all that is left.
    number = max(stored.number, history.first)
    nbytes = 0
    for position, entry in history.slice(number - history.first, len(history.entries)):
        number += 1
        batch.entries.append((stored.key, number, position, entry))
        nbytes += len(entry)
    return nbytes
