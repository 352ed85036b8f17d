"""The database of SQLiteOfflineStore: its schema, how it is opened, and the statements.

The limit of each user is enforced in SQL, not in Python: an append or a delete is a row inserted
into the view `arriving`, whose triggers do the rest against a counter per user. The reason is the
GIL: sqlite3 lets go of it around each step of a statement, and beside a busy event loop it may
wait for many milliseconds to have it back. An executemany of 1,000 rows was seen to take 27 s that
way, instead of 2 ms. So a batch is one statement, which is one step.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from wsc_fast.errors import OfflineStoreError
from wsc_fast.stores.base import MOST_DROPPED, READ_BYTES, StoredMessage

# Most writes that one statement takes.
BATCH_ROWS = 1024

# The largest integer that SQLite has.
LARGEST = (1 << 63) - 1

# Most pages of a file.
_MOST_PAGES = 0xFFFFFFFE

# Marks a database as ours ("wscO"), lest we write our tables into that of another program.
APPLICATION_ID = 0x7773634F

# Statements that bring the schema from version N to N + 1; what is here is never changed, only
# added to.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
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


def _within(rows: str, order: str, max_bytes: object) -> str:
    """SQL: positions of rows in order, up to the one with which their sizes reach `max_bytes`."""
    return f"""
        SELECT position FROM (
            SELECT position, row_number() OVER so_far AS number,
                sum(size) OVER so_far - size AS bytes_before
            FROM ({rows})
            WINDOW so_far AS (ORDER BY {order})
        )
        WHERE number = 1 OR bytes_before < {max_bytes}
    """


# SQL: messages that one append drops, if there are not too many bytes of them. `length` of a blob
# does not read it.
_OLDEST_OF_USER = f"""
    SELECT position, length(data) AS size FROM messages
    WHERE user_key = new.user_key
    ORDER BY position
    LIMIT (SELECT min(
        new.excess, max(1, {MOST_DROPPED} - coalesce((SELECT max(number) FROM dropped), 0))
    ))
"""

# Of each connection, in memory: where a batch's writes go in, and the results that its triggers
# leave. `entry` is the place in the batch.
_TEMPORARY = f"""
PRAGMA temp_store = MEMORY;

-- A message to keep or, with data NULL, to remove; a row of NULLs is nothing.
CREATE TEMP VIEW arriving AS
    SELECT 0 AS entry, '' AS user_id, '' AS id, x'' AS data, 0.0 AS stored_at, 0 AS most,
        0 AS drop_oldest;

-- A user who has to lose the oldest messages, `excess` of them in the end.
CREATE TEMP VIEW crowded AS SELECT 0 AS entry, 0 AS user_key, 0 AS excess;

-- Of a message to keep whose id the user has: the stored data, or NULL if they are the same.
CREATE TEMP TABLE existing (entry INTEGER, data BLOB);

CREATE TEMP TABLE dropped (
    number INTEGER PRIMARY KEY, entry INTEGER, position INTEGER, id TEXT, data BLOB, stored_at REAL
);
CREATE INDEX temp.dropped_by_entry ON dropped (entry);

-- A row for each message to keep that was not inserted, and for each that was removed.
CREATE TEMP TABLE noted (entry INTEGER);

-- `most` is 1 or more, so a user whose row goes with the last message dropped has it made anew.
CREATE TEMP TRIGGER keep INSTEAD OF INSERT ON arriving
WHEN new.data IS NOT NULL
BEGIN
    INSERT INTO existing
        SELECT new.entry, nullif(data, new.data) FROM users JOIN messages USING (user_key)
        WHERE user_id = new.user_id AND id = new.id;
    INSERT INTO crowded
        SELECT new.entry, user_key, held - new.most + 1 FROM users
        WHERE user_id = new.user_id AND held >= new.most AND new.drop_oldest AND changes() = 0;
    INSERT OR IGNORE INTO users VALUES (NULL, new.user_id, 0);
    -- Ignored if it exists.
    INSERT OR IGNORE INTO messages
        SELECT NULL, user_key, new.id, new.stored_at, new.data FROM users
        WHERE user_id = new.user_id AND (held < new.most OR new.drop_oldest);
    INSERT INTO noted SELECT new.entry WHERE changes() = 0;
END;

-- A lowered limit is reached over many appends: one drops at least one message, but not more than
-- {MOST_DROPPED} with the others of its batch, and not more bytes than a read returns.
CREATE TEMP TRIGGER drop_oldest INSTEAD OF INSERT ON crowded
BEGIN
    INSERT INTO dropped
        SELECT NULL, new.entry, position, id, data, stored_at FROM messages
        WHERE position IN ({_within(_OLDEST_OF_USER, "position", READ_BYTES)})
        ORDER BY position;
    DELETE FROM messages
        WHERE position IN (SELECT position FROM dropped WHERE entry = new.entry);
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

_NEXT = _within(
    """
    SELECT position, length(data) AS size FROM messages
    WHERE user_key = (SELECT user_key FROM users WHERE user_id = ?) AND position > ?
    ORDER BY position
    LIMIT ?
    """,
    "position",
    "?",
)

_READ = f"""
SELECT position, id, data, stored_at FROM messages WHERE position IN ({_NEXT}) ORDER BY position
"""

_COUNT = "SELECT held FROM users WHERE user_id = ?"

_OLD = _within(
    """
    SELECT position, stored_at, length(data) AS size FROM messages
    WHERE stored_at < ?
    ORDER BY stored_at, position
    LIMIT ?
    """,
    "stored_at, position",
    "?",
)

# The newest position there ever was; no row, or NULL below, before the first.
_NEWEST = "SELECT seq FROM sqlite_sequence WHERE name = 'messages'"

# All of it in one step.
_RESULTS = f"""
SELECT (SELECT group_concat(entry) FROM noted), (SELECT count(*) FROM existing),
    (SELECT count(*) FROM dropped), ({_NEWEST})
"""


def connect(path: str, synchronous: str, busy_timeout: float, max_bytes: int) -> sqlite3.Connection:
    """Opens the database, creates it or brings its schema up to date.

    Args:
        path: of the file; a new one can be read by its owner only.
        synchronous: "FULL" or "NORMAL".
        busy_timeout: how long to wait for other processes, seconds.
        max_bytes: what the file may grow to.

    Raises:
        sqlite3.Error: it cannot be opened.
        OfflineStoreError: the file cannot be created, or is none of ours.
    """
    _create(path)
    deadline = time.monotonic() + busy_timeout
    while True:
        db = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
        try:
            _prepare(db, synchronous, max_bytes)
        except BaseException as error:
            db.close()
            # The change to WAL does not heed the timeout when others open the file just now.
            if code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return db


def _create(path: str) -> None:
    # SQLite gives the two other files the mode of the first. A file that is there is not opened
    # here: to close it would take away the locks that this process has on it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        # SQLite would say no more than that it cannot open the file.
        raise OfflineStoreError(error.strerror) from error
    with suppress(OSError):
        # To SQLite such a file is empty (an old oddity of its), and would be written over.
        if os.path.getsize(path) == 1:
            raise OfflineStoreError("file is not a database")


def _prepare(db: sqlite3.Connection, synchronous: str, max_bytes: int) -> None:
    # Reads only, up to where it is known to be ours; in a transaction, since another process may
    # be creating it just now.
    db.execute("BEGIN")
    version = _version(db)
    db.execute("COMMIT")
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise OfflineStoreError(f"its file system has no write-ahead log, only {mode!r}")
    if version < len(MIGRATIONS):
        _migrate(db)
    db.execute(f"PRAGMA synchronous = {synchronous}")
    # With "FAST", removing a large message writes a few pages. With "ON", the default of some
    # builds, it writes zeros over all pages of the message, for which a full disk has no room.
    db.execute("PRAGMA secure_delete = FAST")
    # Eight times what is usual, 16 and 32 MB: random users touch pages all over the indexes.
    db.execute("PRAGMA cache_size = -16384")
    db.execute("PRAGMA wal_autocheckpoint = 8192")
    # For a file that is larger already, SQLite takes the pages that it has.
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
    if application != APPLICATION_ID and (application or version or objects):
        raise OfflineStoreError("it is the database of another program")
    if version > len(MIGRATIONS):
        raise OfflineStoreError(
            f"it is of a newer wsc_fast: its schema has version {version}, "
            f"the newest known here is {len(MIGRATIONS)}"
        )
    return int(version)


def _migrate(db: sqlite3.Connection) -> None:
    """Brings the schema up to date, all of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    # Once more: another process may have been faster.
    for statements in MIGRATIONS[_version(db) :]:
        for statement in statements:
            db.execute(statement)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")


def arrive(db: sqlite3.Connection, rows: list[Any]) -> None:
    """Has the triggers do these writes, in order, and empties the list."""
    for size, values in _filled_up(db, rows, _COLUMNS):
        db.execute(_arriving(size), values)
    rows.clear()


class Results:
    """The notes of the triggers about a batch. To read the notes clears them away.

    Attributes:
        noted: entries, of appends that did not insert and, once for each message, of deletes.
        existing: by entry, the data stored under the id of an append; None if they are the same.
        dropped: entry and message of each that an append has dropped.
        sequence: the newest position of the database.
    """

    __slots__ = ("dropped", "existing", "noted", "sequence")

    def __init__(self, db: sqlite3.Connection) -> None:
        noted, existing, dropped, sequence = db.execute(_RESULTS).fetchone()
        self.sequence: int = sequence or 0
        self.noted: list[int] = []
        self.existing: dict[int, bytes | None] = {}
        self.dropped: list[tuple[int, StoredMessage]] = []
        if noted is not None:
            self.noted += map(int, str(noted).split(","))
            db.execute("DELETE FROM noted")
        if existing:
            self.existing.update(db.execute("SELECT entry, data FROM existing").fetchall())
            db.execute("DELETE FROM existing")
        if dropped:
            rows = db.execute(
                "SELECT entry, position, id, data, stored_at FROM dropped ORDER BY number"
            )
            self.dropped += [
                (entry, StoredMessage(*message)) for entry, *message in rows.fetchall()
            ]
            db.execute("DELETE FROM dropped")


def read(
    db: sqlite3.Connection, user_id: str, after: int, limit: int, max_bytes: int
) -> list[StoredMessage]:
    """See `OfflineStore.read`."""
    values = (user_id, _number(after), _number(limit), _number(max_bytes))
    return [StoredMessage(*row) for row in db.execute(_READ, values).fetchall()]


def count(db: sqlite3.Connection, user_id: str) -> int:
    """See `OfflineStore.count`."""
    row = db.execute(_COUNT, (user_id,)).fetchone()
    return 0 if row is None else int(row[0])


def expire(
    db: sqlite3.Connection, before: float, limit: int, max_bytes: int
) -> list[tuple[str, StoredMessage]]:
    """See `OfflineStore.expire`."""
    values = (before, _number(limit), _number(max_bytes))
    rows = db.execute(
        "SELECT user_id, position, id, data, stored_at FROM messages JOIN users USING (user_key) "
        f"WHERE position IN ({_OLD}) ORDER BY stored_at, position",
        values,
    ).fetchall()
    if rows:
        db.execute(f"DELETE FROM messages WHERE position IN ({_OLD})", values)
    return [(user_id, StoredMessage(*message)) for user_id, *message in rows]


def missing(db: sqlite3.Connection, user_id: str, message_ids: Sequence[str]) -> list[str]:
    """See `SharedOfflineStore.missing`; each id once."""
    found: list[str] = []
    for size, values in _filled_up(db, message_ids, 1, others=1):
        found += [each for (each,) in db.execute(_missing(size), (user_id, *values)).fetchall()]
    return found


def newest(db: sqlite3.Connection) -> int:
    """The newest position there ever was."""
    row = db.execute(_NEWEST).fetchone()
    return 0 if row is None else int(row[0])


def users_within(
    db: sqlite3.Connection, spans: Sequence[tuple[int, int]], limit: int
) -> list[tuple[str, int]]:
    """Users who have messages at these positions, and the first position of each, in order.

    Args:
        db: the connection.
        spans: the position before each span's first, and that of its last.
        limit: how many users at most.
    """
    found: dict[str, int] = {}
    ends = [end for span in spans for end in span]
    for size, values in _filled_up(db, ends, 2, others=1):
        for user_id, first in db.execute(_users_within(size), (*values, _number(limit))).fetchall():
            found.setdefault(user_id, first)
        if len(found) >= limit:
            break
    return list(found.items())[:limit]


@cache
def _arriving(rows: int) -> str:
    return "INSERT INTO arriving VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)


@cache
def _missing(rows: int) -> str:
    return (
        "WITH one AS (SELECT (SELECT user_key FROM users WHERE user_id = ?) AS user_key), "
        f"asked (id) AS (VALUES {', '.join(['(?)'] * rows)}) "
        "SELECT id FROM asked WHERE id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM messages "
        "WHERE messages.user_key = (SELECT user_key FROM one) AND messages.id = asked.id)"
    )


@cache
def _users_within(spans: int) -> str:
    return (
        f"WITH span (low, high) AS (VALUES {', '.join(['(?, ?)'] * spans)}) "
        "SELECT user_id, min(position) AS first FROM span CROSS JOIN messages "
        "ON position > low AND position <= high JOIN users USING (user_key) "
        "GROUP BY user_key ORDER BY first LIMIT ?"
    )


def _filled_up(
    db: sqlite3.Connection, values: Sequence[Any], columns: int, *, others: int = 0
) -> Iterator[tuple[int, list[Any]]]:
    """The rows of as few statements as can be, and of few sizes, since each is compiled once.

    Args:
        db: the connection.
        values: of all rows, one row after the other.
        columns: how many values a row has.
        others: how many further parameters each statement has.

    Yields:
        tuple[int, list[Any]]: number of rows, a power of two or the most that fit, and their
            values, filled up with NULLs.
    """
    parameters = db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    most = min(BATCH_ROWS, (parameters - others) // columns)
    for start in range(0, len(values), most * columns):
        some = [*values[start : start + most * columns]]
        size = min(1 << (len(some) // columns - 1).bit_length(), most)
        some += [None] * (size * columns - len(some))
        yield size, some


def code(error: BaseException) -> int | None:
    """SQLite's primary result code, None if the error has none."""
    extended: int | None = getattr(error, "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _number(number: int) -> int:
    """A number as near as SQLite has it, 0 for those below (-1 would mean no limit)."""
    return max(0, min(number, LARGEST))
