"""SQLiteOfflineStore: what the hub sees of an offline store in one file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, get_args

from wsc_fast._core import clock
from wsc_fast.errors import ConfigError, OfflineStoreError
from wsc_fast.stores.base import READ_BYTES, StoredMessage, full_error
from wsc_fast.stores.sqlite import database
from wsc_fast.stores.sqlite.entries import Append, Delete, Expire, Query
from wsc_fast.stores.sqlite.transactions import Transactions, named
from wsc_fast.stores.sqlite.worker import Worker

Synchronous = Literal["FULL", "NORMAL"]

# Ids of one transaction's entry; a call that removes more makes several.
_DELETE_IDS = 64

# Roughly what an entry costs beside its texts and data: itself, its future, the queue's place.
_ENTRY_BYTES = 512

# The least of `max_bytes`: the empty tables take some.
_SMALLEST = 1 << 20


class SQLiteOfflineStore:
    """A SharedOfflineStore in an SQLite database.

    One thread does all the work, so that no call blocks the event loop however slow the disk is.
    Calls that wait while it is busy are done in one transaction (group commit): the more load, the
    fewer commits per message.

    A message that is reported as stored or deleted is so after the end of the process too, kill -9
    included. The cost of a power cut or a crash of the kernel depends on `synchronous`:

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
        transactions = Transactions(
            self._path, self._synchronous, self._busy_timeout, self._max_bytes
        )
        worker = Worker(asyncio.get_running_loop(), transactions)
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
        """See `OfflineStore.append`.

        Nobody has to await the future for the message to be kept, and to cancel it takes nothing
        back.

        Raises:
            OfflineStoreFullError, MessageExistsError: (awaited) as the protocol says.
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
                clock.time(),
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
        """See `OfflineStore.read`.

        Raises:
            OfflineStoreError: the database has trouble, or the store is not open; so in all calls
                below.
        """
        self._check_text("user_id", user_id)
        found: list[StoredMessage] = await self._ask(
            partial(database.read, user_id=user_id, after=after, limit=limit, max_bytes=max_bytes)
        )
        return found

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """See `OfflineStore.delete`."""
        worker = self._open_worker()
        self._check_text("user_id", user_id)
        ids = self._ids(message_ids)
        parts = [ids[start : start + _DELETE_IDS] for start in range(0, len(ids), _DELETE_IDS)]
        sizes = [_ENTRY_BYTES + sum(map(len, part)) + 64 * len(part) for part in parts]
        self._check_waiting(worker, sum(sizes), 2 * self._max_waiting_bytes)
        now = clock.time()
        deleting = [
            worker.put(Delete(worker.loop.create_future(), size, now, user_id, part))
            for size, part in zip(sizes, parts, strict=True)
        ]
        return sum(await asyncio.gather(*deleting))

    async def count(self, user_id: str) -> int:
        """See `OfflineStore.count`."""
        self._check_text("user_id", user_id)
        held: int = await self._ask(partial(database.count, user_id=user_id))
        return held

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """See `OfflineStore.expire`. It returns once it is durable that they are gone."""
        worker = self._open_worker()
        self._check_waiting(worker, _ENTRY_BYTES, 2 * self._max_waiting_bytes)
        future: asyncio.Future[list[tuple[str, StoredMessage]]] = worker.loop.create_future()
        worker.put(
            Expire(future, _ENTRY_BYTES, clock.time(), float(before), max(0, limit), max_bytes)
        )
        return await future

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """See `SharedOfflineStore.appended`.

        It costs a look at one row while nobody else stores anything. Another store object on the
        same file counts as another, also in this process. A position that the database has not
        reached, since the file was replaced, is taken as 0.
        """
        worker = self._open_worker()
        found: tuple[int, list[str]] = await self._ask(
            partial(worker.others.appended, after=after, limit=limit)
        )
        return found

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """See `SharedOfflineStore.missing`."""
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
        return await worker.put(Query(future, _ENTRY_BYTES, clock.time(), function))

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
