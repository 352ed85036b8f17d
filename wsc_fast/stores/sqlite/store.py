"""SQLiteOfflineStore: an offline store in one file, with the standard library's sqlite3.

The rules:

- Only the worker thread touches the database; only the event loop touches futures and the count
  of waiting bytes. Between them stand a queue (loop to worker) and `call_soon_threadsafe`.
- The queue is the order of everything: a call takes its place when it is made.
- Whatever waits becomes one transaction (a batch), in that order. Nothing is reported before its
  COMMIT has returned and its files have been seen in their places. A transaction that fails leaves
  nothing behind.

On a full disk the store has to recover by itself once messages are acknowledged, and SQLite needs
room to remove one: the pages that change are written into the log, and the log can be emptied only
where the database has room for all that is in it. So:

- Appends are refused while the disk has less free than their pages take in the log and in the
  database, and a part that is kept for removing messages.
- Near that bound the log is emptied before each transaction that appends. One that fails can
  then be taken back, log and all, with no room at all.
- What removes is never refused. If it fails for want of room, the log is emptied and it is done
  once more, a few at a time.
- A log that nobody writes to is emptied after a second, so that another program which fills the
  disk later finds the store's messages in the database.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, Literal, get_args

import msgspec

from wsc_fast.errors import ConfigError, OfflineStoreError
from wsc_fast.log import log
from wsc_fast.stores.base import READ_BYTES, StoredMessage, exists_error, full_error
from wsc_fast.stores.sqlite import database
from wsc_fast.stores.sqlite.files import DatabaseFiles

Synchronous = Literal["FULL", "NORMAL"]

# Most writes and bytes of one transaction, which then takes some 50 ms.
_BATCH_ROWS = database.BATCH_ROWS
_BATCH_BYTES = 4 << 20

# Ids of one transaction's entry; a call that removes more makes several.
_DELETE_IDS = 64

# Most calls that end in one turn of the event loop, and most messages that they return.
TURN_ENTRIES = 200
_TURN_MESSAGES = 1000

# Roughly what an entry costs beside its texts and data: itself, its future, the queue's place.
_ENTRY_BYTES = 512

# A batch whose entries have spent their time waiting for the lock still tries this long, seconds.
_LAST_TRY = 0.05

# The least of `max_bytes`: the empty tables take some.
_SMALLEST = 1 << 20

# Beside its size, what a write may take in the log (12 pages were measured, in large indexes), and
# what an append may add to the database (2 pages).
ROW_LOG_BYTES = 64 << 10
ROW_GROWTH_BYTES = 32 << 10

# Seconds without a call after which the log is emptied.
_QUIET = 1.0

# Spans of positions that others have filled, of which a list is kept; and positions that one call
# of `appended` looks at.
_MOST_SPANS = 1000
_MOST_POSITIONS = 100_000


class Append(msgspec.Struct):
    """A message to keep; its future gets the messages that were dropped for it."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_id: str
    data: bytes
    limit: int
    drop_oldest: bool
    # An OfflineStoreError is raised, anything else returned.
    outcome: Any = msgspec.UNSET
    rows: ClassVar[int] = 1
    writes: ClassVar[bool] = True


class Delete(msgspec.Struct):
    """Messages to remove; its future gets how many there were."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_ids: list[str]
    outcome: Any = msgspec.UNSET
    writes: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        return len(self.message_ids)


class Expire(msgspec.Struct):
    """Old messages to remove; its future gets them."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    before: float
    limit: int
    max_bytes: int
    outcome: Any = msgspec.UNSET
    writes: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        return self.limit


class Query(msgspec.Struct):
    """Anything that only reads; its future gets the result of the function."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    function: Callable[[sqlite3.Connection], Any]
    outcome: Any = msgspec.UNSET
    rows: ClassVar[int] = 1
    writes: ClassVar[bool] = False


Entry = Append | Delete | Expire | Query


class SQLiteOfflineStore:
    """A SharedOfflineStore in an SQLite database.

    One thread does all the work, so that no call blocks the event loop however slow the disk is.
    What waits while it is busy is written in one transaction (group commit): the more load, the
    fewer commits per message.

    What is reported as stored or deleted outlasts the end of the process, kill -9 included. What a
    power cut or a crash of the kernel costs depends on `synchronous`:

    - "FULL": nothing. Each transaction is on the disk (fsync) before it is reported; that is, if
      the disk and the file system keep what they promise on fsync.
    - "NORMAL": all that was reported since the last checkpoint, that is up to the last 32 MB of
      changes, or since there was a quiet second. Messages are lost that
      were reported as stored, and messages come again that were reported as deleted. The database
      itself stays sound. Worth it only where each fsync takes many milliseconds.

    The default is "FULL", because an append is meant to resolve only when it is durable, and group
    commit makes one fsync do for all that waits.

    Back-pressure: on a disk that is too slow no memory grows. Once calls of `max_waiting_bytes`
    wait, appends fail with OfflineStoreError ("... too slow ..."); acknowledgements and reads have
    as much again for themselves. A database of `max_bytes` is full, whoever the messages are
    for: appends fail until some go.

    Trouble: a locked database (another process writes) is waited for, `busy_timeout` at most; then
    and on an I/O error or a damaged file, the calls of the transaction fail with
    OfflineStoreError, nothing of it is stored, and the next one tries anew. Reads still answer
    while another process holds the write lock, behind the writes that were called before them.

    A full disk: an eighth of the disk, 64 MiB at most, is kept free for removing messages. Where an
    append would go below, it fails with OfflineStoreError, which says how much is free. Removing
    works on, and makes room in the file for new messages.

    A file that is removed or replaced while the store is open: the store notices before it reports
    anything as stored, writes a warning, and goes on with the file that is at the path, a new one
    if there is none. The messages of the file that went are gone.

    Several processes may share the file on a local disk; not on a network file system. Forking
    with an open store is not supported: the thread does not live in the child, whose calls would
    wait for ever; open a store of its own there. The file does not shrink when messages go, but
    their place is used again; until then parts of them may still be in it. A new file, and the two
    beside it, "-wal" and "-shm", which belong to it, can be read by their owner only (mode 0600).

    Thread-safety: all methods on one event loop; after `close`, `open` may be called on another.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout: float = 5.0,
        max_waiting_bytes: int = 64 << 20,
        max_bytes: int = 1 << 30,
    ) -> None:
        """Notes where the database is; `open` opens it.

        Args:
            path: of the file; created if it is not there, in a directory that is.
            synchronous: "FULL" or "NORMAL", see above.
            busy_timeout: how long a call waits for another process's lock, seconds.
            max_waiting_bytes: what may wait for the disk, with about 512 bytes per message beside
                its data.
            max_bytes: what the file may grow to, in bytes; the log beside it is not counted.

        Raises:
            ConfigError: a value that cannot be used.
        """
        name = os.fspath(path)
        if not isinstance(name, str) or name in ("", ":memory:") or "\0" in name:
            raise ConfigError(
                f"path must be that of a file, not {path!r}; in memory there is MemoryOfflineStore"
            )
        if synchronous not in get_args(Synchronous):
            raise ConfigError(f"synchronous must be 'FULL' or 'NORMAL', not {synchronous!r}")
        if not 0 < busy_timeout <= 3600:
            raise ConfigError(f"busy_timeout must be above 0 and up to 3600, not {busy_timeout!r}")
        if max_waiting_bytes < 1:
            raise ConfigError(f"max_waiting_bytes must be 1 or more, not {max_waiting_bytes!r}")
        if max_bytes < _SMALLEST:
            raise ConfigError(f"max_bytes must be {_SMALLEST} or more, not {max_bytes!r}")
        # Absolute: a later chdir (as of a daemon) must not move it.
        self._path = os.path.abspath(name)
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._max_waiting_bytes = max_waiting_bytes
        self._max_bytes = max_bytes
        # The first is set from the start of `open` to the end of `close`, the second only while
        # calls are taken.
        self._worker: Worker | None = None
        self._ready: Worker | None = None

    async def open(self) -> None:
        """Opens the database, creates it or brings its schema up to date.

        Harmless when it is open; after `close` it opens again. A store whose event loop was closed
        over it opens on the running one.

        Raises:
            OfflineStoreError: it cannot be opened; it is no database, that of another program or
                of a newer version (all of which are left as they are); it is open on another loop.
        """
        while (worker := self._worker) is not None:
            if not self._is_ours(worker):
                await self._abandon(worker)
            elif worker.closing:
                await self._closed(worker)
            else:
                await asyncio.shield(worker.opened)
                return
        worker = Worker(
            asyncio.get_running_loop(),
            self._path,
            self._synchronous,
            self._busy_timeout,
            self._max_bytes,
        )
        self._worker = worker
        # The first callback of the future, so before anyone who awaits it goes on.
        worker.opened.add_done_callback(partial(self._on_opened, worker))
        worker.thread.start()
        try:
            await asyncio.shield(worker.opened)
        except OfflineStoreError:
            await self._closed(worker)
            raise

    def _on_opened(self, worker: Worker, opened: asyncio.Future[None]) -> None:
        if opened.exception() is not None:
            worker.closing = True
        elif not worker.closing:
            self._ready = worker

    async def close(self) -> None:
        """Finishes what waits, closes the database and ends the thread.

        Calls made from here on fail. Harmless when it is closed.

        Raises:
            OfflineStoreError: it is open on another event loop that still is in use.
        """
        worker = self._worker
        if worker is None:
            return
        if not self._is_ours(worker):
            await self._abandon(worker)
            return
        self._ready = None
        if not worker.closing:
            worker.closing = True
            worker.queue.put(None)
        await self._closed(worker)

    def _is_ours(self, worker: Worker) -> bool:
        return worker.loop is asyncio.get_running_loop()

    async def _closed(self, worker: Worker) -> None:
        await asyncio.shield(worker.closed)
        # It has nothing left to do, so this does not block.
        worker.thread.join()
        if self._worker is worker:
            self._worker = None

    async def _abandon(self, worker: Worker) -> None:
        """Lets go of a worker whose loop was closed over it, once it is through."""
        if not worker.loop.is_closed():
            raise self._error("it is open on another event loop")
        self._ready = None
        worker.queue.put(None)
        await asyncio.to_thread(worker.thread.join)
        if self._worker is worker:
            self._worker = None

    def append(
        self, user_id: str, message_id: str, data: bytes, *, limit: int, drop_oldest: bool
    ) -> asyncio.Future[list[StoredMessage]]:
        """Keeps a message behind all others of the user; see `OfflineStore.append`.

        Nobody has to await the future for the message to be kept, and to cancel it takes nothing
        back.

        Args:
            user_id: whose message it is.
            message_id: kept once per user.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: whether the oldest go at the limit, or this one is refused.

        Returns:
            asyncio.Future[list[StoredMessage]]: what was dropped, once the message is durable.

        Raises:
            OfflineStoreFullError: (awaited) at the limit, without `drop_oldest`.
            MessageExistsError: (awaited) the id is taken by other data.
            OfflineStoreError: (awaited) the message is not stored: the database has trouble, the
                disk is nearly full or too slow, an id is no valid text, the store is not open.
        """
        try:
            worker = self._open_worker()
            self._check_text("user_id", user_id)
            self._check_text("message_id", message_id)
            if not isinstance(data, bytes):
                raise self._error(f"data must be bytes, not {type(data).__name__}")
            if limit < 1:
                raise full_error(named(self._path), user_id, limit)
            size = _ENTRY_BYTES + len(user_id) + len(message_id) + len(data)
            self._check_waiting(worker, size, self._max_waiting_bytes)
        except OfflineStoreError as error:
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused
        return worker.put(
            Append(
                worker.loop.create_future(),
                size,
                time.time(),
                user_id,
                message_id,
                data,
                min(limit, database.LARGEST),
                bool(drop_oldest),
            )
        )

    async def read(
        self, user_id: str, *, after: int = 0, limit: int = 100, max_bytes: int = READ_BYTES
    ) -> list[StoredMessage]:
        """The next messages of a user, in order; see `OfflineStore.read`.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many messages at most.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[StoredMessage]: also those whose `append` was called before and is not done yet.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        self._check_text("user_id", user_id)
        found: list[StoredMessage] = await self._ask(
            partial(database.read, user_id=user_id, after=after, limit=limit, max_bytes=max_bytes)
        )
        return found

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """Removes messages of a user; see `OfflineStore.delete`.

        Args:
            user_id: whose messages.
            message_ids: which; unknown ones are passed over.

        Returns:
            int: how many there were, once it is durable that they are gone.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        worker = self._open_worker()
        self._check_text("user_id", user_id)
        ids = self._ids(message_ids)
        parts = [ids[start : start + _DELETE_IDS] for start in range(0, len(ids), _DELETE_IDS)]
        sizes = [_ENTRY_BYTES + sum(map(len, part)) + 64 * len(part) for part in parts]
        self._check_waiting(worker, sum(sizes), 2 * self._max_waiting_bytes)
        now = time.time()
        deleting = [
            worker.put(Delete(worker.loop.create_future(), size, now, user_id, part))
            for size, part in zip(sizes, parts, strict=True)
        ]
        return sum(await asyncio.gather(*deleting))

    async def count(self, user_id: str) -> int:
        """How many messages are kept for a user.

        Args:
            user_id: whose messages.

        Returns:
            int: 0 for a user without messages.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        self._check_text("user_id", user_id)
        held: int = await self._ask(partial(database.count, user_id=user_id))
        return held

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time; see `OfflineStore.expire`.

        Args:
            before: seconds since the epoch.
            limit: how many messages to remove at most, the oldest first.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each, once it is durable that
                they are gone.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        worker = self._open_worker()
        self._check_waiting(worker, _ENTRY_BYTES, 2 * self._max_waiting_bytes)
        future: asyncio.Future[list[tuple[str, StoredMessage]]] = worker.loop.create_future()
        worker.put(
            Expire(future, _ENTRY_BYTES, time.time(), float(before), max(0, limit), max_bytes)
        )
        return await future

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """For whom others have stored messages; see `SharedOfflineStore.appended`.

        It costs a look at one row while nobody else stores anything. Another store object on the
        same file counts as another, also in this process.

        Args:
            after: the position behind which to look; -1 asks for the newest position only. A
                position that the database has not reached, since the file was replaced, is taken
                as 0.
            limit: how many users at most.

        Returns:
            tuple[int, list[str]]: the position to look behind next, and ids of users.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        worker = self._open_worker()
        found: tuple[int, list[str]] = await self._ask(
            partial(worker.others.appended, after=after, limit=limit)
        )
        return found

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """Which of these messages are not in the store; see `SharedOfflineStore.missing`.

        Args:
            user_id: whose messages.
            message_ids: which.

        Returns:
            list[str]: ids, each once; one whose `append` has been called and is not done counts as
                there.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        self._check_text("user_id", user_id)
        ids = list(dict.fromkeys(self._ids(message_ids)))
        found: list[str] = await self._ask(
            partial(database.missing, user_id=user_id, message_ids=ids)
        )
        return found

    async def _ask(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        worker = self._open_worker()
        self._check_waiting(worker, _ENTRY_BYTES, 2 * self._max_waiting_bytes)
        future = worker.loop.create_future()
        return await worker.put(Query(future, _ENTRY_BYTES, time.time(), function))

    def _ids(self, message_ids: Collection[str]) -> list[str]:
        ids = list(message_ids)
        for message_id in ids:
            self._check_text("message_id", message_id)
        return ids

    def _open_worker(self) -> Worker:
        worker = self._ready
        if worker is None:
            raise self._error("it is not open")
        return worker

    def _check_waiting(self, worker: Worker, size: int, most: int) -> None:
        if worker.waiting + size > most:
            raise self._error(
                f"the disk is too slow, or the message too large: {worker.waiting} bytes wait, "
                f"and {size} more would go beyond {most}"
            )

    def _check_text(self, name: str, value: str) -> None:
        """Refuses what SQLite cannot take as a text, lest it fails a whole batch."""
        if not isinstance(value, str):
            raise self._error(f"{name} must be str, not {type(value).__name__}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise self._error(f"{name} is no valid Unicode: {error}") from error

    def _error(self, text: str) -> OfflineStoreError:
        return OfflineStoreError(f"{named(self._path)}: {text}")


class Worker:
    """The thread of an open store, and what it shares with the loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        synchronous: str,
        busy_timeout: float,
        max_bytes: int,
    ) -> None:
        self.loop = loop
        # Entries, and None to end after those before it.
        self.queue: SimpleQueue[Entry | None] = SimpleQueue()
        # Bytes of what is in the queue or under way; only the loop touches these two.
        self.waiting = 0
        self.closing = False
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        # A daemon, so that a program which forgets `close` ends all the same.
        self.thread = threading.Thread(target=self._run, name="wsc_fast-offline", daemon=True)
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._db_waits = busy_timeout
        self._files = DatabaseFiles(path)
        self._log_is_used = False
        self.others = Others()
        # What is through, and has yet to be told to the callers; the loop's.
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
            self._connection()
        except BaseException as error:
            self._tell(self._on_opened, self._trouble(error))
        else:
            self._tell(self._on_opened, None)
            self._serve()
        finally:
            self._disconnect()
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
                rest = batch
                while rest:
                    part, rest = self._part(rest)
                    self._attempt(part)
            except BaseException as error:
                self._fail([entry for entry in batch if entry.outcome is msgspec.UNSET], error)
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
        if self._log_is_used:
            try:
                return self.queue.get(timeout=_QUIET)
            except Empty:
                self._log_is_used = False
                self._checkpoint("PASSIVE")
        return self.queue.get()

    def _part(self, entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
        """The next entries to do in one transaction, and those behind them.

        That is all of them while the disk has room for the worst. Else it is as many as there
        surely is room for; an append for which there is none is refused.
        """
        if not any(type(entry) is Append for entry in entries):
            return entries, []
        each = ROW_LOG_BYTES + ROW_GROWTH_BYTES
        if self._files.has_room(sum(2 * entry.size + each * entry.rows for entry in entries)):
            return entries, []
        room = self._room()
        if room is None:
            return entries, []
        part: list[Entry] = []
        for index, entry in enumerate(entries):
            if type(entry) is not Append:
                room.take_removal(entry)
            elif not room.take(entry):
                if room.is_used:
                    return part, entries[index:]
                entry.outcome = self._error(room.refusal(entry))
                continue
            part.append(entry)
        return part, []

    def _room(self) -> Room | None:
        """Empties the log, and measures; None if that does not work, as of a damaged database."""
        try:
            self._checkpoint()
            db = self._connection()
            (unused,) = db.execute("PRAGMA freelist_count").fetchone()
            (page_size,) = db.execute("PRAGMA page_size").fetchone()
        except (sqlite3.Error, OfflineStoreError):
            return None
        disk = self._files.disk()
        if disk is None:
            return None
        return Room(*disk, log_bytes=self._files.log_bytes(), unused_bytes=unused * page_size)

    def _attempt(self, part: list[Entry]) -> None:
        """Does entries in one transaction.

        If that fails for want of room, the appends fail, and the others are done once more.
        """
        try:
            self._transact(part)
            if not self._files.complete() and self._reopen():
                self._transact(part)
        except BaseException as error:
            self._roll_back(part, error)
            if database.code(error) not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                self._fail(part, error)
                return
            self._fail([entry for entry in part if type(entry) is Append], error)
            self._remove([entry for entry in part if type(entry) is not Append], error)

    def _remove(self, entries: list[Entry], error: BaseException) -> None:
        """Does entries that read or remove once more, after a failure for want of room.

        The log is emptied first, and fewer are done at a time until they fit.
        """
        size = len(entries)
        while any(entry.writes for entry in entries):
            self._checkpoint()
            try:
                self._transact(entries[:size])
            except BaseException as own:
                self._roll_back(entries, own)
                error = own
                first = entries[0]
                if size > 1:
                    size = max(size // 4, 1)
                elif type(first) is Expire and first.limit > 1:
                    first.limit = max(first.limit // 4, 1)
                else:
                    break
            else:
                del entries[:size]
                size *= 2
        self._fail(entries, error)

    def _transact(self, part: list[Entry]) -> None:
        """Does entries in one transaction, and gives each its outcome."""
        db = self._connection()
        writing = any(entry.writes for entry in part)
        if writing:
            self._limit_wait(db, part[-1].asked_at)
            db.execute("BEGIN IMMEDIATE")
        rows: list[Any] = []
        for index, entry in enumerate(part):
            if type(entry) is Append:
                entry.outcome = []
                rows += (
                    index,
                    entry.user_id,
                    entry.message_id,
                    entry.data,
                    entry.asked_at,
                    entry.limit,
                    entry.drop_oldest,
                )
            elif type(entry) is Delete:
                entry.outcome = 0
                for message_id in entry.message_ids:
                    rows += (index, entry.user_id, message_id, None, None, None, None)
            else:
                # It sees what was called before it, and nothing else.
                database.arrive(db, rows)
                if type(entry) is Query:
                    self._query(db, entry, writing)
                elif type(entry) is Expire:
                    entry.outcome = database.expire(db, entry.before, entry.limit, entry.max_bytes)
        if writing:
            database.arrive(db, rows)
            last, own = self._collect(db, part)
            db.execute("COMMIT")
            self._log_is_used = True
            self.others.committed(last, own)

    def _query(self, db: sqlite3.Connection, entry: Query, writing: bool) -> None:
        try:
            entry.outcome = entry.function(db)
        except sqlite3.Error as error:
            # A read that fails is no reason to fail the writes beside it, if they still stand.
            if db.in_transaction is not writing:
                raise
            entry.outcome = self._trouble(error)

    def _collect(self, db: sqlite3.Connection, part: list[Entry]) -> tuple[int, int]:
        """Gives the entries what the triggers have left about them.

        Returns:
            tuple[int, int]: the newest position, and how many the part has filled.
        """
        results = database.Results(db)
        stored = sum(type(entry) is Append for entry in part)
        for index in results.noted:
            entry = part[index]
            if type(entry) is Append:
                stored -= 1
                if index not in results.existing:
                    entry.outcome = full_error(named(self._path), entry.user_id, entry.limit)
                elif (data := results.existing[index]) is not None:
                    entry.outcome = exists_error(
                        named(self._path), entry.user_id, entry.message_id, data
                    )
            else:
                entry.outcome += 1
        for index, message in results.dropped:
            part[index].outcome.append(message)
        return results.sequence, stored

    def _limit_wait(self, db: sqlite3.Connection, asked_at: float) -> None:
        """Has this part wait for the lock only as long as is left to its newest entry.

        Otherwise, with n batches waiting behind a lock, the last would fail after n timeouts.
        """
        left = self._busy_timeout - max(time.time() - asked_at, 0.0)
        if left > 0.9 * self._busy_timeout:
            left = self._busy_timeout
        self._wait(db, max(left, _LAST_TRY))

    def _wait(self, db: sqlite3.Connection, seconds: float) -> None:
        seconds = min(seconds, self._busy_timeout)
        if seconds != self._db_waits:
            db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._db_waits = seconds

    def _fail(self, entries: list[Entry], error: BaseException) -> None:
        """Their transaction failed: writes fail with it, reads are done once more."""
        for entry in entries:
            if type(entry) is not Query:
                entry.outcome = self._trouble(error)
                continue
            try:
                entry.outcome = entry.function(self._connection())
            except BaseException as own:
                entry.outcome = self._trouble(own)

    def _roll_back(self, entries: list[Entry], error: BaseException) -> None:
        """Takes back a transaction that failed, and the outcomes that it gave."""
        for entry in entries:
            entry.outcome = msgspec.UNSET
        # After another error than these two the connection may be unusable; a new one is cheap.
        keep = database.code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
        try:
            if keep and self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except BaseException:
            keep = False
        if not keep:
            self._disconnect()

    def _trouble(self, cause: BaseException) -> OfflineStoreError:
        """What is reported for an error: one for each entry, since each gets its own traceback."""
        text = str(cause) or type(cause).__name__
        if database.code(cause) == sqlite3.SQLITE_BUSY:
            text += f", by another process, for longer than {self._busy_timeout:g} s"
        elif database.code(cause) == sqlite3.SQLITE_FULL:
            text += f" (max_bytes is {self._max_bytes})"
        error = self._error(text)
        error.__cause__ = cause
        return error

    def _error(self, text: str) -> OfflineStoreError:
        return OfflineStoreError(f"{named(self._path)}: {text}")

    # The files.

    def _checkpoint(self, mode: Literal["TRUNCATE", "PASSIVE"] = "TRUNCATE") -> bool:
        """Writes the log into the database; returns whether all of it was written.

        "TRUNCATE" gives its room back to the disk, and waits a little for others who use the log.
        """
        try:
            db = self._connection()
            self._wait(db, _LAST_TRY)
            busy, frames, written = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except (sqlite3.Error, OfflineStoreError):
            return False
        return not busy and frames == written

    def _reopen(self) -> bool:
        """Some of the files are no longer in their places: opens the database that is there now.

        Returns:
            bool: whether it is another one, which does not have what was just committed.
        """
        replaced = self._files.replaced()
        # Even if the database was moved, or its log removed, this writes all into the database.
        saved = self._checkpoint()
        if replaced:
            log.warning(
                "offline store %s: the file was removed or replaced while it was open; its "
                "messages are gone, the store goes on with the file that is there now",
                self._path,
            )
            self._files.remove_log()
        elif saved:
            log.warning(
                "offline store %s: its log was removed while it was open; nothing is lost",
                self._path,
            )
        if replaced or saved:
            self._disconnect()
            self._connection()
        return replaced

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = database.connect(
                self._path, self._synchronous, self._busy_timeout, self._max_bytes
            )
            self._db_waits = self._busy_timeout
            if self._files.note():
                self.others.forget()
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()  # takes back what is not committed


class Room:
    """The room that a disk and a database have for the appends of one transaction."""

    def __init__(self, free: int, kept: int, *, log_bytes: int, unused_bytes: int) -> None:
        """Takes what was measured over a log that is empty, or could not be emptied.

        Args:
            free: bytes of the disk.
            kept: bytes of those that are not for appends.
            log_bytes: of the log, which may all have to go into the database.
            unused_bytes: of pages in the database that hold nothing.
        """
        self._free = free
        self._kept = kept + log_bytes
        self._unused = 0 if log_bytes else unused_bytes
        self._log = 0
        self._growth = 0

    @property
    def is_used(self) -> bool:
        """Whether the transaction writes anything yet."""
        return self._log > 0

    def refusal(self, entry: Append) -> str:
        """What is said to an append for which there is no room."""
        return (
            f"the disk is nearly full: {self._free} bytes are free, of which {self._kept} are kept "
            f"for removing messages, and this message of {len(entry.data)} bytes may take "
            f"{2 * entry.size + ROW_LOG_BYTES + ROW_GROWTH_BYTES}"
        )

    def take(self, entry: Append) -> bool:
        """Takes room for this; returns whether there was enough."""
        log_used = self._log + entry.size + ROW_LOG_BYTES
        growth = self._growth + entry.size + ROW_GROWTH_BYTES
        more = max(0, growth - self._unused)
        # A write into unused pages is always tried: if the log has no room, it is rolled back.
        if more and self._kept + log_used + more > self._free:
            return False
        self._log, self._growth = log_used, growth
        return True

    def take_removal(self, entry: Entry) -> None:
        """Counts the room that a removal takes in the log; a removal is never refused."""
        if entry.writes:
            self._log += entry.rows * ROW_LOG_BYTES


class Others:
    """The positions that other connections have filled, as far back as somebody may ask.

    Thread-safety: the worker thread.
    """

    def __init__(self) -> None:
        self._known = 0
        # From behind the first to the second, in order.
        self._spans: list[tuple[int, int]] = []

    def forget(self) -> None:
        """It is another database now."""
        self._known = 0
        self._spans.clear()

    def committed(self, last: int, own: int) -> None:
        """A transaction of this store has filled so many positions, the newest of all."""
        self._add(last - own)
        self._known = last

    def _add(self, upto: int) -> None:
        """All behind the known positions, up to this one, are others'."""
        if upto < self._known:
            # A backup was copied into the file.
            self.forget()
        if upto > self._known:
            self._spans.append((self._known, upto))
            self._known = upto
        if len(self._spans) > _MOST_SPANS:
            # Nobody has asked for long. The two oldest become one span, so that our own positions
            # between them will be reported as others'.
            self._spans[:2] = [(self._spans[0][0], self._spans[1][1])]

    def appended(self, db: sqlite3.Connection, after: int, limit: int) -> tuple[int, list[str]]:
        """See `SharedOfflineStore.appended`."""
        if not db.in_transaction:
            # In a transaction the newest positions may be our own, not committed yet: then
            # `committed` adds what others have filled.
            self._add(database.newest(db))
        if after < 0:
            return self._known, []
        if after > self._known:
            after = 0
        spans, end = self._behind(after)
        found = database.users_within(db, spans, limit + 1) if spans else []
        if len(found) > limit:
            end = found[limit][1] - 1
        return end, [user_id for user_id, _ in found[:limit]]

    def _behind(self, after: int) -> tuple[list[tuple[int, int]], int]:
        """Spans behind a position, as far as one call looks, and the position where they end."""
        spans: list[tuple[int, int]] = []
        left = _MOST_POSITIONS
        for low, high in self._spans:
            low = max(low, after)
            if high <= low:
                continue
            if high - low > left:
                spans.append((low, low + left))
                return spans, low + left
            spans.append((low, high))
            left -= high - low
        return spans, self._known


def named(path: str) -> str:
    """A store as its errors name it."""
    return f"offline store {path}"
