"""The thread's work on a batch of calls: transactions, also on a full disk.

On a full disk the store has to recover by itself once messages are acknowledged, and SQLite needs
room to remove one: the pages that change are written into the log, and the log can be emptied only
where the database has room for all that is in it. So:

- Appends are refused while the disk has less free than their pages take in the log and in the
  database, and a part that is kept for removing messages.
- Near that bound the log is emptied before each transaction that appends. One that fails can
  then be taken back, log and all, with no room at all.
- A removal is never refused. If it fails for want of room, the log is emptied and it is done once
  more, a few at a time.
- A log that nobody writes to is emptied after a second, so that another program which fills the
  disk later finds the store's messages in the database.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any, Literal

import msgspec

from wsc_fast._core import clock
from wsc_fast.errors import OfflineStoreError
from wsc_fast.log import log
from wsc_fast.stores.base import exists_error, full_error
from wsc_fast.stores.sqlite import database
from wsc_fast.stores.sqlite.entries import Append, Delete, Entry, Expire, Query
from wsc_fast.stores.sqlite.files import DatabaseFiles, is_full
from wsc_fast.stores.sqlite.others import Others
from wsc_fast.stores.sqlite.room import ROW_GROWTH_BYTES, ROW_LOG_BYTES, Room

# A batch whose entries have spent their time waiting for the lock still tries this long, seconds.
_LAST_TRY = 0.05


class Transactions:
    """The connection to the database, and all that is done over it.

    Thread-safety: one thread.

    Attributes:
        log_is_used: whether the log holds what `save_log` would write into the database.
        others: what other connections have stored.
    """

    def __init__(self, path: str, synchronous: str, busy_timeout: float, max_bytes: int) -> None:
        self.log_is_used: bool = False
        self.others: Others = Others()
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._max_bytes = max_bytes
        self._db: sqlite3.Connection | None = None
        self._db_waits = busy_timeout
        self._files = DatabaseFiles(path)

    def open(self) -> None:
        """Opens the database; raises what SQLite raises, or an OfflineStoreError."""
        self._connection()

    def close(self) -> None:
        """Takes back what is not committed, and lets go; what is done next opens it again."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def do(self, entries: list[Entry]) -> None:
        """Does entries, in as many transactions as the disk asks for."""
        while entries:
            part, entries = self._part(entries)
            self._attempt(part)

    def save_log(self) -> None:
        """Writes the log into the database, as far as nobody else reads it."""
        self.log_is_used = False
        self._checkpoint("PASSIVE")

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
                self.fail(part, error)
                return
            self.fail([entry for entry in part if type(entry) is Append], error)
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
        self.fail(entries, error)

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
            self.log_is_used = True
            self.others.committed(last, own)

    def _query(self, db: sqlite3.Connection, entry: Query, writing: bool) -> None:
        try:
            entry.outcome = entry.function(db)
        except sqlite3.Error as error:
            # A read that fails is no reason to fail the writes beside it, if they still stand.
            if db.in_transaction is not writing:
                raise
            entry.outcome = self.trouble(error)

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
        left = self._busy_timeout - max(clock.time() - asked_at, 0.0)
        if left > 0.9 * self._busy_timeout:
            left = self._busy_timeout
        self._wait(db, max(left, _LAST_TRY))

    def _wait(self, db: sqlite3.Connection, seconds: float) -> None:
        seconds = min(seconds, self._busy_timeout)
        if seconds != self._db_waits:
            db.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
            self._db_waits = seconds

    def fail(self, entries: list[Entry], error: BaseException) -> None:
        """Their transaction failed: writes fail with it, reads are done once more."""
        for entry in entries:
            if type(entry) is not Query:
                entry.outcome = self.trouble(error)
                continue
            try:
                entry.outcome = entry.function(self._connection())
            except BaseException as own:
                entry.outcome = self.trouble(own)

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
            self.close()

    def trouble(self, cause: BaseException) -> OfflineStoreError:
        """The error to report for one: a new one for each entry, for a traceback of its own."""
        text = str(cause) or type(cause).__name__
        if database.code(cause) == sqlite3.SQLITE_BUSY:
            text += f", by another process, for longer than {self._busy_timeout:g} s"
        elif database.code(cause) == sqlite3.SQLITE_FULL:
            text += f" (max_bytes is {self._max_bytes})"
        elif database.code(cause) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
            # SQLite does not say why, and may mean one of the files beside it (-wal, -shm).
            text += ": the disk is full" if is_full(self._path) else ""
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
            self.close()
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


def named(path: str) -> str:
    """A store as its errors name it."""
    return f"offline store {path}"
