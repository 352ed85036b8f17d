"""SQLiteOfflineStore: an offline store in one file, with the standard library's sqlite3.

The rules:

- Only the worker thread touches the database; only the event loop touches futures and the count
  of waiting bytes. Between them stand a queue (loop to worker) and `call_soon_threadsafe`.
- The queue is the order of everything: a call takes its place when it is made.
- Whatever waits becomes one transaction (a batch), in that order. Nothing is reported before its
  COMMIT has returned, and a batch that fails leaves nothing behind.

The limit of each user is enforced in SQL, not in Python: an append or a delete is a row inserted
into the view `arriving`, whose triggers do the rest against a counter per user. Not for beauty:
sqlite3 lets go of the GIL around each step of a statement, and beside a busy event loop it may
wait for many milliseconds to have it back: executemany of 1,000 rows was seen to take 27 s that
way, instead of 2 ms. So a batch is one statement, which is one step.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache, partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, get_args

import msgspec

from wsc_fast.delivery.offline import StoredMessage
from wsc_fast.errors import ConfigError, OfflineStoreError, OfflineStoreFullError

Synchronous = Literal["FULL", "NORMAL"]

# What one transaction takes at most: bounds its time (some 50 ms) and the turn of the event loop
# that resolves its futures.
_BATCH_ENTRIES = 1024
_BATCH_BYTES = 4 << 20

# Roughly what an entry costs beside its texts and data: itself, its future, the queue's place.
_ENTRY_BYTES = 512

# A batch whose entries have spent their time waiting for the lock still tries this long, seconds.
_LAST_TRY = 0.05

# The least of `max_bytes`: the empty tables take some, and SQLite's most pages of a file.
_SMALLEST, _MOST_PAGES = 1 << 20, 0xFFFFFFFE

# The largest integer that SQLite has.
_LARGEST = (1 << 63) - 1

# Marks a database as ours ("wscO"), lest we write our tables into that of another program.
_APPLICATION_ID = 0x7773634F

# Statements that bring the schema from version N to N + 1; what is here is never changed, only
# added to.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # `held` spares counting a user's messages for each append. A user without messages has no
        # row: a million of passing ids leave nothing.
        """
        CREATE TABLE users (
            user_key INTEGER PRIMARY KEY,
            user_id TEXT NOT NULL UNIQUE,
            held INTEGER NOT NULL
        )
        """,
        # AUTOINCREMENT: a position is not used again, so that nobody who reads on after it misses
        # a message.
        """
        CREATE TABLE messages (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            user_key INTEGER NOT NULL,
            id TEXT NOT NULL,
            stored_at REAL NOT NULL,
            data BLOB NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX messages_once ON messages (user_key, id)",
        # An index ends in the row's key: this one is (user_key, position).
        "CREATE INDEX messages_in_order ON messages (user_key)",
        "CREATE INDEX messages_by_age ON messages (stored_at)",
        """
        CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
            UPDATE users SET held = held + 1 WHERE user_key = new.user_key;
        END
        """,
        """
        CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
            UPDATE users SET held = held - 1 WHERE user_key = old.user_key;
            DELETE FROM users WHERE user_key = old.user_key AND held = 0;
        END
        """,
    ),
)

# Of each connection, in memory: where a batch's writes go in, and what comes of them. `entry` is
# the place in the batch.
_TEMPORARY = """
PRAGMA temp_store = MEMORY;

-- A message to keep or, with data NULL, to remove; a row of NULLs is nothing.
CREATE TEMP VIEW arriving AS
    SELECT 0 AS entry, '' AS user_id, '' AS id, x'' AS data, 0.0 AS stored_at, 0 AS most,
        0 AS drop_oldest;

CREATE TEMP TABLE dropped (
    entry INTEGER, position INTEGER, id TEXT, data BLOB, stored_at REAL,
    PRIMARY KEY (entry, position)
) WITHOUT ROWID;

-- Of a message to keep: it is refused. Of messages to remove: there was one, once for each.
CREATE TEMP TABLE noted (entry INTEGER);

-- `most` is 1 or more, so a user whose row goes with the last message dropped has it made anew.
CREATE TEMP TRIGGER keep INSTEAD OF INSERT ON arriving
WHEN new.data IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM users JOIN messages USING (user_key)
    WHERE user_id = new.user_id AND id = new.id
)
BEGIN
    INSERT INTO dropped
        SELECT new.entry, position, id, data, stored_at FROM users JOIN messages USING (user_key)
        WHERE user_id = new.user_id AND held >= new.most AND new.drop_oldest
        ORDER BY position
        LIMIT coalesce((SELECT held - new.most + 1 FROM users WHERE user_id = new.user_id), 0);
    DELETE FROM messages
        WHERE position IN (SELECT position FROM dropped WHERE entry = new.entry);
    INSERT OR IGNORE INTO users VALUES (NULL, new.user_id, 0);
    INSERT INTO messages
        SELECT NULL, user_key, new.id, new.stored_at, new.data FROM users
        WHERE user_id = new.user_id AND held < new.most;
    INSERT INTO noted SELECT new.entry WHERE changes() = 0;
END;

CREATE TEMP TRIGGER remove INSTEAD OF INSERT ON arriving
WHEN new.data IS NULL AND new.id IS NOT NULL
BEGIN
    DELETE FROM messages
        WHERE user_key = (SELECT user_key FROM users WHERE user_id = new.user_id)
            AND id = new.id;
    INSERT INTO noted SELECT new.entry WHERE changes() > 0;
END;
"""

_COLUMNS = 7

_READ = """
SELECT position, id, data, stored_at FROM messages
WHERE user_key = (SELECT user_key FROM users WHERE user_id = ?) AND position > ?
ORDER BY position LIMIT ?
"""

_COUNT = "SELECT held FROM users WHERE user_id = ?"

_OLD = "FROM messages WHERE stored_at < ? ORDER BY stored_at, position LIMIT ?"


class _Append(msgspec.Struct):
    """A message to keep; its future gets what was dropped for it."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_id: str
    data: bytes
    limit: int
    drop_oldest: bool


class _Delete(msgspec.Struct):
    """Messages to remove; its future gets how many there were."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_ids: list[str]


class _Query(msgspec.Struct):
    """Anything else; its future gets what the function returns."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    function: Callable[[sqlite3.Connection], Any]
    writes: bool


_Entry = _Append | _Delete | _Query


class SQLiteOfflineStore:
    """An OfflineStore in an SQLite database.

    One thread does all the work, so that no call blocks the event loop however slow the disk is.
    What waits while it is busy is written in one transaction (group commit): the more load, the
    fewer commits per message.

    What is reported as stored or deleted outlasts the end of the process, kill -9 included. What a
    power cut or a crash of the kernel costs depends on `synchronous`:

    - "FULL": nothing. Each transaction is on the disk (fsync) before it is reported; that is, if
      the disk and the file system keep what they promise on fsync.
    - "NORMAL": whatever was reported since the last checkpoint, that is up to the last 32 MB of
      changes, or the last half minute where the kernel writes by itself. Messages are lost that
      were reported as stored, and messages come again that were reported as deleted. The database
      itself stays sound. Worth it only where each fsync takes many milliseconds.

    The default is "FULL", because an append is meant to resolve only when it is durable, and group
    commit makes one fsync do for all that waits.

    Back-pressure: on a disk that is too slow no memory grows. Once calls of `max_waiting_bytes`
    wait, appends fail with OfflineStoreError ("... too slow ..."); acknowledgements and reads have
    as much again for themselves. A database of `max_bytes` is full, whoever the messages are
    for: appends fail until some go.

    Trouble: a locked database (another process writes) is waited for, `busy_timeout` at most; then
    and on a full disk, an I/O error or a damaged file, the calls of the transaction fail with
    OfflineStoreError, nothing of it is stored, and the next one tries anew. Reads still answer
    while another process holds the write lock, behind the writes that were called before them.

    Several processes may share the file on a local disk; not on a network file system. Forking
    with an open store is not supported: the thread does not live in the child, whose calls would
    wait for ever; open a store of its own there. The file does not shrink when messages go, but
    their place is used again. It is created with the permissions that the umask leaves; so are the
    two files beside it, "-wal" and "-shm", which belong to it.

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
            max_bytes: what the file may grow to; the log beside it is not counted.

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
        # From the begin of `open` to the end of `close`, and while it takes calls.
        self._worker: _Worker | None = None
        self._ready: _Worker | None = None

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
        worker = _Worker(
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

    def _on_opened(self, worker: _Worker, opened: asyncio.Future[None]) -> None:
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

    def _is_ours(self, worker: _Worker) -> bool:
        return worker.loop is asyncio.get_running_loop()

    async def _closed(self, worker: _Worker) -> None:
        await asyncio.shield(worker.closed)
        # It has nothing left to do, so this does not block.
        worker.thread.join()
        if self._worker is worker:
            self._worker = None

    async def _abandon(self, worker: _Worker) -> None:
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
            OfflineStoreError: (awaited) the message is not stored: the database has trouble, the
                disk is too slow for what comes, an id is no valid text, the store is not open.
        """
        try:
            worker = self._open_worker()
            self._check_text("user_id", user_id)
            self._check_text("message_id", message_id)
            if not isinstance(data, bytes):
                raise self._error(f"data must be bytes, not {type(data).__name__}")
            if limit < 1:
                raise _full(self._path, user_id, limit)
            size = _ENTRY_BYTES + len(user_id) + len(message_id) + len(data)
            self._check_waiting(worker, size, self._max_waiting_bytes)
        except OfflineStoreError as error:
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            return refused
        future = worker.loop.create_future()
        worker.waiting += size
        worker.queue.put(
            _Append(
                future,
                size,
                time.time(),
                user_id,
                message_id,
                data,
                min(limit, _LARGEST),
                bool(drop_oldest),
            )
        )
        return future

    async def read(self, user_id: str, *, after: int = 0, limit: int = 100) -> list[StoredMessage]:
        """The next messages of a user, in order; see `OfflineStore.read`.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many at most.

        Returns:
            list[StoredMessage]: also those whose `append` was called before and is not done yet.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        self._check_text("user_id", user_id)
        values = (user_id, _within(after), _within(limit))
        found: list[StoredMessage] = await self._ask(partial(_read, values=values), writes=False)
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
        ids = list(message_ids)
        for message_id in ids:
            self._check_text("message_id", message_id)
        size = _ENTRY_BYTES + sum(map(len, ids)) + 64 * len(ids)
        self._check_waiting(worker, size, 2 * self._max_waiting_bytes)
        future: asyncio.Future[int] = worker.loop.create_future()
        worker.waiting += size
        worker.queue.put(_Delete(future, size, time.time(), user_id, ids))
        return await future

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
        held: int = await self._ask(partial(_count, user_id=user_id), writes=False)
        return held

    async def expire(self, before: float, limit: int = 1000) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time; see `OfflineStore.expire`.

        Args:
            before: seconds since the epoch.
            limit: how many to remove at most, the oldest first. They are all in memory at once.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each, once it is durable that
                they are gone.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open.
        """
        values = (float(before), _within(limit))
        old: list[tuple[str, StoredMessage]] = await self._ask(
            partial(_expire, values=values), writes=True
        )
        return old

    async def _ask(self, function: Callable[[sqlite3.Connection], Any], *, writes: bool) -> Any:
        worker = self._open_worker()
        self._check_waiting(worker, _ENTRY_BYTES, 2 * self._max_waiting_bytes)
        future = worker.loop.create_future()
        worker.waiting += _ENTRY_BYTES
        worker.queue.put(_Query(future, _ENTRY_BYTES, time.time(), function, writes))
        return await future

    def _open_worker(self) -> _Worker:
        worker = self._ready
        if worker is None:
            raise self._error("it is not open")
        return worker

    def _check_waiting(self, worker: _Worker, size: int, most: int) -> None:
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
        return OfflineStoreError(f"offline store {self._path}: {text}")


class _Worker:
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
        self.queue: SimpleQueue[_Entry | None] = SimpleQueue()
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

    # On the loop.

    def _on_opened(self, error: OfflineStoreError | None) -> None:
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)

    def _on_batch(self, batch: list[_Entry], outcomes: list[Any]) -> None:
        for entry, outcome in zip(batch, outcomes, strict=True):
            self.waiting -= entry.size
            future = entry.future
            if future.done():  # cancelled
                continue
            if isinstance(outcome, OfflineStoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _on_closed(self) -> None:
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
            batch: list[_Entry] = []
            try:
                last = self._take(batch)
                outcomes = self._transact(batch)
            except BaseException as error:
                outcomes = self._undo(batch, error)
            if batch:
                self._tell(self._on_batch, batch, outcomes)

    def _take(self, batch: list[_Entry]) -> bool:
        """Waits for an entry and takes what else is there; returns whether it is the last batch."""
        size = 0
        entry = self.queue.get()
        while entry is not None:
            batch.append(entry)
            size += entry.size
            if len(batch) >= _BATCH_ENTRIES or size >= _BATCH_BYTES:
                return False
            try:
                entry = self.queue.get_nowait()
            except Empty:
                return False
        return True

    def _transact(self, batch: list[_Entry]) -> list[Any]:
        """Does a batch in one transaction; returns what each entry's future gets."""
        if not batch:
            return []
        db = self._connection()
        writing = any(type(entry) is not _Query or entry.writes for entry in batch)
        if writing:
            self._limit_wait(db, batch[-1].asked_at)
            db.execute("BEGIN IMMEDIATE")
        outcomes: list[Any] = []
        rows: list[Any] = []
        for index, entry in enumerate(batch):
            if type(entry) is _Append:
                outcomes.append([])
                rows += (
                    index,
                    entry.user_id,
                    entry.message_id,
                    entry.data,
                    entry.asked_at,
                    entry.limit,
                    entry.drop_oldest,
                )
            elif type(entry) is _Delete:
                outcomes.append(0)
                for message_id in entry.message_ids:
                    rows += (index, entry.user_id, message_id, None, None, None, None)
            else:
                assert type(entry) is _Query
                # It sees what was called before it, and nothing else.
                _arrive(db, rows)
                outcomes.append(self._query(db, entry, writing))
        if writing:
            _arrive(db, rows)
            self._collect(db, batch, outcomes)
            db.execute("COMMIT")
        return outcomes

    def _limit_wait(self, db: sqlite3.Connection, asked_at: float) -> None:
        """Has this batch wait for the lock only as long as is left to its newest entry.

        Otherwise, with n batches waiting behind a lock, the last would fail after n timeouts.
        """
        left = self._busy_timeout - max(time.time() - asked_at, 0.0)
        if left > 0.9 * self._busy_timeout:
            left = self._busy_timeout
        left = max(left, min(_LAST_TRY, self._busy_timeout))
        if left != self._db_waits:
            db.execute(f"PRAGMA busy_timeout = {int(left * 1000)}")
            self._db_waits = left

    def _query(self, db: sqlite3.Connection, query: _Query, in_transaction: bool) -> Any:
        try:
            return query.function(db)
        except sqlite3.Error as error:
            # A read that fails is no reason to fail the writes beside it, if they still stand.
            if query.writes or db.in_transaction is not in_transaction:
                raise
            return self._trouble(error)

    def _collect(self, db: sqlite3.Connection, batch: list[_Entry], outcomes: list[Any]) -> None:
        """Puts in what the triggers have left about the entries, and clears that away."""
        (noted,) = db.execute("SELECT group_concat(entry) FROM noted").fetchone()
        if noted is not None:
            for index in map(int, str(noted).split(",")):
                entry = batch[index]
                if type(entry) is _Append:
                    outcomes[index] = _full(self._path, entry.user_id, entry.limit)
                else:
                    outcomes[index] += 1
            db.execute("DELETE FROM noted")
        dropped = db.execute("SELECT * FROM dropped ORDER BY entry, position").fetchall()
        if dropped:
            for index, *message in dropped:
                outcomes[index].append(StoredMessage(*message))
            db.execute("DELETE FROM dropped")

    def _undo(self, batch: list[_Entry], error: BaseException) -> list[Any]:
        """Takes a failed batch back; its writes fail, its reads are done once more."""
        # After another error than these two the connection may be unusable; a new one is cheap.
        keep = _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
        try:
            if keep and self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except BaseException:
            keep = False
        if not keep:
            self._disconnect()
        outcomes: list[Any] = []
        for entry in batch:
            outcome: Any = None
            if type(entry) is _Query and not entry.writes:
                try:
                    outcome = entry.function(self._connection())
                except BaseException as own:
                    outcome = self._trouble(own)
            else:
                outcome = self._trouble(error)
            outcomes.append(outcome)
        return outcomes

    def _trouble(self, cause: BaseException) -> OfflineStoreError:
        """What is reported for an error: one for each entry, since each gets its own traceback."""
        text = str(cause) or type(cause).__name__
        if _code(cause) == sqlite3.SQLITE_BUSY:
            text += f", by another process, for longer than {self._busy_timeout:g} s"
        elif _code(cause) == sqlite3.SQLITE_FULL:
            text += f" (max_bytes is {self._max_bytes})"
        error = OfflineStoreError(f"offline store {self._path}: {text}")
        error.__cause__ = cause
        return error

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = _connect(self._path, self._synchronous, self._busy_timeout, self._max_bytes)
            self._db_waits = self._busy_timeout
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()  # takes back what is not committed


def _connect(
    path: str, synchronous: str, busy_timeout: float, max_bytes: int
) -> sqlite3.Connection:
    """Opens the database, with its schema up to date; raises sqlite3.Error, OfflineStoreError."""
    with suppress(OSError):
        # To SQLite such a file is empty (an old oddity of its), and would be written over.
        if os.path.getsize(path) == 1:
            raise OfflineStoreError("file is not a database")
    deadline = time.monotonic() + busy_timeout
    while True:
        db = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
        try:
            _prepare(db, synchronous, max_bytes)
        except BaseException as error:
            db.close()
            # The change to WAL does not heed the timeout when others open the file just now.
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return db


def _prepare(db: sqlite3.Connection, synchronous: str, max_bytes: int) -> None:
    # Reads only, up to where it is known to be ours; in a transaction, since another process may
    # be creating it just now.
    db.execute("BEGIN")
    version = _version(db)
    db.execute("COMMIT")
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise OfflineStoreError(f"its file system has no write-ahead log, only {mode!r}")
    if version < len(_MIGRATIONS):
        _migrate(db)
    db.execute(f"PRAGMA synchronous = {synchronous}")
    # Eight times what is usual, 16 and 32 MB: random users touch pages all over the indexes.
    db.execute("PRAGMA cache_size = -16384")
    db.execute("PRAGMA wal_autocheckpoint = 8192")
    # Of a file that is larger already, what it has.
    (page_size,) = db.execute("PRAGMA page_size").fetchone()
    db.execute(f"PRAGMA max_page_count = {min(max_bytes // page_size, _MOST_PAGES)}")
    # The log may outgrow that while another process reads; afterwards it is cut to this.
    db.execute("PRAGMA journal_size_limit = 67108864")
    db.executescript(_TEMPORARY)


def _version(db: sqlite3.Connection) -> int:
    """Version of the schema, 0 in an empty database; raises OfflineStoreError if it is not ours."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (application or version or objects):
        raise OfflineStoreError("it is the database of another program")
    if version > len(_MIGRATIONS):
        raise OfflineStoreError(
            f"it is of a newer wsc_fast: its schema has version {version}, "
            f"the newest known here is {len(_MIGRATIONS)}"
        )
    return int(version)


def _migrate(db: sqlite3.Connection) -> None:
    """Brings the schema up to date, all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    # Once more: another process may have been faster.
    for statements in _MIGRATIONS[_version(db) :]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
    db.execute("COMMIT")


def _arrive(db: sqlite3.Connection, rows: list[Any]) -> None:
    """Has the triggers do these writes, in order, and empties the list.

    In as few statements as can be, and of few sizes, since each size is compiled once: filled up
    with NULLs to a power of two.
    """
    most = min(_BATCH_ENTRIES, db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // _COLUMNS)
    for start in range(0, len(rows), most * _COLUMNS):
        values = rows[start : start + most * _COLUMNS]
        count = len(values) // _COLUMNS
        size = min(1 << (count - 1).bit_length(), most)
        values += [None] * ((size - count) * _COLUMNS)
        db.execute(_statement(size), values)
    rows.clear()


@cache
def _statement(rows: int) -> str:
    return "INSERT INTO arriving VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)


def _read(db: sqlite3.Connection, values: tuple[str, int, int]) -> list[StoredMessage]:
    return [StoredMessage(*row) for row in db.execute(_READ, values).fetchall()]


def _count(db: sqlite3.Connection, user_id: str) -> int:
    row = db.execute(_COUNT, (user_id,)).fetchone()
    return 0 if row is None else int(row[0])


def _expire(db: sqlite3.Connection, values: tuple[float, int]) -> list[tuple[str, StoredMessage]]:
    rows = db.execute(
        f"SELECT user_id, position, id, data, stored_at FROM (SELECT * {_OLD}) "
        "JOIN users USING (user_key) ORDER BY stored_at, position",
        values,
    ).fetchall()
    if rows:
        db.execute(f"DELETE FROM messages WHERE position IN (SELECT position {_OLD})", values)
    return [(user_id, StoredMessage(*message)) for user_id, *message in rows]


def _full(path: str, user_id: str, limit: int) -> OfflineStoreFullError:
    return OfflineStoreFullError(
        f"offline store {path}: it may keep {limit} messages for user {user_id!r}"
    )


def _code(error: BaseException) -> int | None:
    """SQLite's primary result code, None if the error has none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _within(number: int) -> int:
    """A number as near as SQLite has it, 0 for those below (-1 would mean no limit)."""
    return max(0, min(number, _LARGEST))
