"""The database of a MemoryBus with a file: its schema, how it is opened, and its statements.

All of it runs in the thread of file.py. Each transaction takes histories from one state to a later
one. So the file has, of each history, some state that it once was in, without holes.

Few statements with many rows: sqlite3 lets go of the GIL around each step of a statement, and
beside a busy event loop it may wait for milliseconds to have it back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from wsc_fast._core import clock
from wsc_fast.bus.base import Entry, Published
from wsc_fast.bus.history import TOP_SECONDS, History
from wsc_fast.errors import BusError

# Marks a database as ours ("wscB"), lest we write our tables into that of another program.
APPLICATION_ID = 0x77736342
VERSION = 2
# Answers to publishes with an idempotency key that are known at most.
MOST_KEYS = 100_000
# Seconds that an open waits for a process that still closes the file.
_BUSY = 2.0
# Rows and bytes of one statement.
_MOST_ROWS, _MOST_BYTES = 256, 4 << 20
# After so many rows that are read, the thread waits for a moment. It lets go of the GIL for each
# row, but for so short a time that the loop's thread may not get it for a second.
_ROWS_AT_ONCE, _MOMENT = 500, 0.001
# While more than this part of the file is unused, each transaction gives some pages back.
_UNUSED_PART, _PAGES_BACK = 4, 256

# In `rooms`, `first` is the number before the first entry, and `before` its position.
_SCHEMA = """
CREATE TABLE rooms (
    key INTEGER PRIMARY KEY, room TEXT NOT NULL, number INTEGER NOT NULL, first INTEGER NOT NULL,
    before TEXT NOT NULL, top TEXT NOT NULL, ends REAL NOT NULL, forgotten REAL NOT NULL,
    written REAL NOT NULL
);
CREATE TABLE entries (
    key INTEGER NOT NULL, number INTEGER NOT NULL, position TEXT NOT NULL, entry BLOB NOT NULL
);
CREATE UNIQUE INDEX entries_in_order ON entries (key, number);
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, room TEXT NOT NULL, idempotency_key TEXT NOT NULL, position TEXT,
    until REAL NOT NULL
);
CREATE UNIQUE INDEX answers_once ON answers (room, idempotency_key);
CREATE INDEX answers_by_age ON answers (until);
"""
# Version 2 adds it.
_START = "CREATE TABLE start (position TEXT NOT NULL)"
_KEYS = "(SELECT value FROM json_each(?))"

# (room, idempotency key) -> the answer, and until when it is known; the oldest first.
Answers = OrderedDict[tuple[str, str], tuple[Published, float]]


@dataclass(slots=True)
class Batch:
    """The writes of one transaction. Times are of the wall clock.

    Attributes:
        anew: the file is another one, or a new one: what it holds goes first.
        gone: keys of histories that are no more.
        rooms: key to written, as in the table.
        entries: key, number, position, entry.
        answers: room, idempotency key, position, until.
    """

    anew: bool = False
    gone: list[int] = field(default_factory=list)
    rooms: list[tuple[Any, ...]] = field(default_factory=list)
    entries: list[tuple[Any, ...]] = field(default_factory=list)
    answers: list[tuple[Any, ...]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.gone or self.rooms or self.answers)


@dataclass(slots=True)
class Loaded:
    """The content of a file. Times are of the monotonic clock.

    Attributes:
        histories: by room, the one last published to at the end.
        keys: of the histories in the file, by room.
        answers: see Answers.
        gone: keys of histories that are too old, or too many.
        top_key: the largest key.
        nbytes: of the histories.
        start: the place before the first message of a room without a history; "": it is not known.
        closed: the file was closed in good order.
    """

    histories: OrderedDict[str, History] = field(default_factory=OrderedDict)
    keys: dict[str, int] = field(default_factory=dict)
    answers: Answers = field(default_factory=OrderedDict)
    gone: list[int] = field(default_factory=list)
    top_key: int = 0
    nbytes: int = 0
    start: str = ""
    closed: bool = False


class ReplacedError(BusError):
    """The file was removed or replaced; all of it has to be written anew."""


class Database:
    """An open file.

    Args:
        path: of the file.

    Thread-safety: one thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None

    # --- opening ---

    def open(self) -> None:
        """Opens the file, and creates it where there is none.

        Raises:
            BusError: it cannot be used; the text says why.
        """
        try:
            _create(self._path)
            self._db = _connect(self._path)
            self._opened = _identity(self._path)
        except (sqlite3.Error, OSError, BusError) as error:
            raise BusError(
                f"the histories of kept rooms in {self._path!a}: {_said(error)}"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def load(self, max_bytes: int, clock: tuple[float, float]) -> Loaded:
        """Reads all that is not too old, the newest rooms first.

        Args:
            max_bytes: of the histories together.
            clock: the same moment by the monotonic and by the wall clock.

        Raises:
            BusError: the file cannot be read.
        """
        assert self._db is not None
        now, wall = clock
        try:
            return _load(self._db, max_bytes, now - wall, now)
        except sqlite3.Error as error:
            raise BusError(
                f"the histories of kept rooms in {self._path!a}: {_said(error)}"
            ) from error

    # --- writing ---

    def leave(self, start: str) -> None:
        """Writes the place before the first message, at the end: nothing was said after that.

        The next `load` takes it out, so that there is none after a crash, which may lose messages
        to a room without a history.

        Raises:
            BusError: it could not be written.
        """
        if self._db is None or self._opened != _identity(self._path):
            return
        try:
            self._db.execute("INSERT INTO start VALUES (?)", (start,))
        except sqlite3.Error as error:
            raise BusError(_said(error)) from error

    def write(self, batch: Batch) -> None:
        """Writes a batch, all of it or nothing.

        Raises:
            ReplacedError: the file is not at its path any more.
            BusError: it could not be written; the text says why.
        """
        if self._db is None:
            self.open()
        assert self._db is not None
        if self._opened != _identity(self._path):
            self.close()
            raise ReplacedError("the file was removed or replaced")
        try:
            _write(self._db, batch)
            _shrink(self._db)
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.rollback()
            raise BusError(_said(error)) from error


def _create(path: str) -> None:
    # The files beside it get the mode of the first.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    if os.path.getsize(path) == 1:
        # To SQLite such a file is empty, and would be written over.
        raise BusError("the file is not a database")


def _connect(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY, isolation_level=None)
    try:
        _prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    # The lock that keeps other processes away is held until the close, or until the process ends.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    # Only reads, up to where the file is known to be ours.
    version = _version(db)
    if not version:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise BusError(f"its file system has no write-ahead log, only {mode!r}")
    # The writes come later anyway: a crash of the machine may lose some more of the newest.
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 16777216")
    db.execute("BEGIN EXCLUSIVE")
    if not version:
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    if version < VERSION:
        db.execute(_START)
        db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    """Version of the schema, 0 in an empty database."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (objects,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or objects):
        raise BusError("the file is the database of another program")
    if version > VERSION:
        raise BusError(
            f"the file is of a newer wsc_fast: its schema has version {version}, the newest known "
            f"here is {VERSION}"
        )
    return int(version)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _said(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_BUSY:
        return "the file is in use by another hub or process: each needs a file of its own"
    if code == sqlite3.SQLITE_NOTADB:
        return "the file is not a database"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


# --- reading ---


def _load(db: sqlite3.Connection, max_bytes: int, shift: float, now: float) -> Loaded:
    loaded = Loaded()
    rows = 0
    rooms = db.execute(
        "SELECT key, room, number, first, before, top, ends, forgotten FROM rooms "
        "ORDER BY written DESC, key DESC"
    ).fetchall()
    for key, room, number, first, before, top, ends, forgotten in rooms:
        loaded.top_key = max(loaded.top_key, key)
        # A wall clock that was set back makes nothing last for ever.
        latest = now + TOP_SECONDS
        history = History(
            number=number,
            before=before,
            top=top,
            ends=min(ends + shift, latest),
            forgotten=min(forgotten + shift, latest),
        )
        if history.forgotten <= now or room in loaded.keys or loaded.nbytes > max_bytes:
            loaded.gone.append(key)
            continue
        if history.ends > now:
            rows = _load_entries(db, key, first, history, rows)
        else:
            history.drop_all()
        if loaded.nbytes + history.nbytes > max_bytes:
            loaded.gone.append(key)
            continue
        loaded.nbytes += history.nbytes
        loaded.histories[room] = history
        loaded.histories.move_to_end(room, last=False)
        loaded.keys[room] = key
    answers = db.execute(
        "SELECT room, idempotency_key, position, until FROM answers ORDER BY id"
    ).fetchall()
    for room, key, position, until in answers[-MOST_KEYS:]:
        loaded.answers[room, key] = Published(position, False), until + shift
    for (start,) in db.execute("SELECT position FROM start").fetchall():
        loaded.closed = True
        if not loaded.gone:
            loaded.start = start
    # No crash of the machine may bring it back.
    db.execute("PRAGMA synchronous = FULL")
    with suppress(sqlite3.OperationalError):  # the disk is full, and the next write does it
        db.execute("DELETE FROM start")
    db.execute("PRAGMA synchronous = NORMAL")
    return loaded


def _load_entries(db: sqlite3.Connection, key: int, first: int, history: History, rows: int) -> int:
    """Reads the entries of a room; `rows` counts those of all rooms."""
    expected = first
    for number, position, entry in db.execute(
        "SELECT number, position, entry FROM entries WHERE key = ? ORDER BY number", (key,)
    ):
        expected += 1
        if number != expected:
            break
        history.put(Entry(position, entry))
        rows += 1
        if not rows % _ROWS_AT_ONCE:
            time.sleep(_MOMENT)
    if expected != history.number or (history.entries and history.entries[-1][0] != history.top):
        # No transaction of ours leaves such a history.
        history.drop_all()
    return rows


# --- writing ---


def _write(db: sqlite3.Connection, batch: Batch) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM start")
    if batch.anew:
        for table in ("rooms", "entries", "answers"):
            db.execute(f"DELETE FROM {table}")
    if batch.gone:
        gone = json.dumps(batch.gone)
        db.execute(f"DELETE FROM entries WHERE key IN {_KEYS}", (gone,))
        db.execute(f"DELETE FROM rooms WHERE key IN {_KEYS}", (gone,))
    for rows, values in _statements(batch.rooms):
        db.execute(_insert("rooms", 9, rows), values)
    for rows, values in _statements(batch.entries):
        db.execute(_insert("entries", 4, rows), values)
    db.execute(
        "DELETE FROM entries WHERE rowid IN (SELECT entries.rowid FROM rooms CROSS JOIN entries "
        "ON entries.key = rooms.key AND entries.number <= rooms.first "
        f"WHERE rooms.key IN {_KEYS})",
        (json.dumps([row[0] for row in batch.rooms]),),
    )
    for rows, values in _statements(batch.answers):
        columns = "answers (room, idempotency_key, position, until)"
        db.execute(_insert(columns, 4, rows), values)
    db.execute(
        "DELETE FROM answers WHERE until <= ? OR id <= (SELECT max(id) FROM answers) - ?",
        (clock.time(), MOST_KEYS),
    )
    db.execute("COMMIT")


def _shrink(db: sqlite3.Connection) -> None:
    (unused,) = db.execute("PRAGMA freelist_count").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    if unused > _PAGES_BACK and unused * _UNUSED_PART > pages:
        db.execute(f"PRAGMA incremental_vacuum({_PAGES_BACK})").fetchall()


def _statements(rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, list[Any]]]:
    """The rows of as few statements as can be, and of few sizes, since each is compiled once.

    Yields:
        tuple[int, list[Any]]: number of rows, a power of two, and their values. The last row is
            repeated, which changes nothing.
    """
    start = 0
    while start < len(rows):
        end, nbytes = start, 0
        while end < len(rows) and end - start < _MOST_ROWS and nbytes < _MOST_BYTES:
            nbytes += len(rows[end][-1]) if type(rows[end][-1]) is bytes else 0
            end += 1
        some = list(rows[start:end])
        size = 1 << (len(some) - 1).bit_length()
        some += [some[-1]] * (size - len(some))
        yield size, [value for row in some for value in row]
        start = end


@cache
def _insert(table: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * rows)}"
