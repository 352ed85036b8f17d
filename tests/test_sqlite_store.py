"""SQLiteOfflineStore where disks, locks, files and processes give trouble."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LOOPS
from tests.support import ROOT, own_disk
from tests.test_offline_stores import append, fill, ids
from wsc_fast.errors import ConfigError, OfflineStoreError, OfflineStoreFullError
from wsc_fast.log import log
from wsc_fast.stores.base import MOST_DROPPED, READ_BYTES, StoredMessage
from wsc_fast.stores.sqlite import database, files, others, worker
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
from wsc_fast.stores.sqlite.transactions import Transactions
from wsc_fast.stores.sqlite.worker import Worker
from wsc_fast.testing import eventually


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the database is to be; asserts at the end that no thread of a store is left."""
    yield tmp_path / "offline.db"
    assert [t for t in threading.enumerate() if t.name.startswith("wsc_fast-offline")] == []


class opened:
    """A store that is open while the block runs."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.store = SQLiteOfflineStore(path, **options)

    async def __aenter__(self) -> SQLiteOfflineStore:
        await self.store.open()
        return self.store

    async def __aexit__(self, *args: object) -> None:
        await self.store.close()


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Holds the write lock of the database, as another process would; ROLLBACK lets go."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def on_connect(
    monkeypatch: pytest.MonkeyPatch, hook: Callable[[sqlite3.Connection], object]
) -> None:
    """Has a function called, in the worker's thread, with each connection of a store."""
    connect = sqlite3.connect

    def connect_and_call(*args: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*args, **options)
        hook(db)
        return db

    monkeypatch.setattr(sqlite3, "connect", connect_and_call)


def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each statement that stores execute from here on."""
    seen: list[str] = []

    class Recording(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            seen.append(sql)
            return super().execute(sql, *args)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Recording))
    return seen


def content(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def remove(*paths: str | Path) -> None:
    for path in paths:
        os.unlink(path)


def size_of(path: Path) -> int:
    return path.stat().st_size


def siblings(path: Path) -> list[str]:
    """Names of all files in the directory of this one."""
    return sorted(each.name for each in path.parent.iterdir())


async def outcomes(calls: list[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


def check_sound(path: Path) -> None:
    """Asserts that the database, of a closed store, is whole and its counters are right."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counted = "SELECT user_key, count(*) FROM messages GROUP BY user_key ORDER BY user_key"
        held = "SELECT user_key, held FROM users ORDER BY user_key"
        assert db.execute(held).fetchall() == db.execute(counted).fetchall()


# The settings.


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("", {}),
        (":memory:", {}),
        ("nul\0", {}),
        ("x", {"synchronous": "OFF"}),
        ("x", {"busy_timeout": 0}),
        ("x", {"busy_timeout": float("nan")}),
        ("x", {"max_waiting_bytes": 0}),
        ("x", {"max_bytes": (1 << 20) - 1}),
    ],
)
def test_a_setting_that_cannot_work_is_refused(path: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SQLiteOfflineStore(path, **options)


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
async def test_the_database_is_set_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: str
) -> None:
    seen = statements(monkeypatch)
    async with opened(path, synchronous=synchronous):
        assert f"PRAGMA synchronous = {synchronous}" in seen
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert db.execute("PRAGMA application_id").fetchone() == (database.APPLICATION_ID,)


async def test_full_is_the_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = statements(monkeypatch)
    async with opened(path):
        assert "PRAGMA synchronous = FULL" in seen


async def test_a_relative_path_is_that_of_the_beginning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    store = SQLiteOfflineStore(path.name)
    monkeypatch.chdir("/")
    await store.open()
    await store.close()
    assert siblings(path) == [path.name]


# A process that is killed.

# Appends and deletes without end; writes a line for each that is reported done ("+id", "-id"), and
# before each delete "?id".
VICTIM = """
import asyncio, itertools, os, random, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore

path, name, seed = sys.argv[1:]
chance = random.Random(seed)

def say(text):
    os.write(1, text.encode() + b"\\n")

async def main():
    store = SQLiteOfflineStore(path)
    await store.open()
    number = itertools.count()
    while True:
        calls, kept = [], []
        for _ in range(chance.randrange(1, 60)):
            user, message = f"user{chance.randrange(20)}", f"{name}-{next(number)}"
            call = store.append(user, message, message.encode(), limit=10**6, drop_oldest=False)
            call.add_done_callback(lambda call, m=message: call.result() == [] and say("+" + m))
            calls.append(call)
            kept.append((user, message))
        if chance.random() < 0.5:
            user, message = chance.choice(kept)
            say("?" + message)
            if await store.delete(user, [message]):
                say("-" + message)
        await asyncio.gather(*calls)

asyncio.run(main())
"""


def lines_of_a_victim(path: Path, name: str, seed: int, count: int) -> list[str]:
    """Runs a VICTIM until it has written that many lines, kills it, and returns all lines."""
    command = [sys.executable, "-c", VICTIM, str(path), name, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as victim:
        assert victim.stdout is not None
        lines = [victim.stdout.readline() for _ in range(count)]
        victim.kill()
        lines += victim.stdout
    assert victim.returncode == -signal.SIGKILL
    # The kill may tear the last one.
    return [line.strip() for line in lines if line.endswith("\n")]


@pytest.mark.fault(number="G8")
@pytest.mark.fault(number="G9")
async def test_reported_appends_and_deletes_outlast_kill_9(path: Path) -> None:
    chance = random.Random(8)
    kept: set[str] = set()  # reported as stored
    asked: set[str] = set()  # perhaps deleted
    gone: set[str] = set()  # reported as deleted
    into = {"+": kept, "?": asked, "-": gone}
    for turn in range(10):
        # A random moment, without a clock.
        for line in lines_of_a_victim(path, f"turn{turn}", turn, chance.randrange(1, 1500)):
            into[line[0]].add(line[1:])
        messages: list[StoredMessage] = []
        async with opened(path) as store:
            for user in range(20):
                found = await store.read(f"user{user}", limit=10**6)
                assert await store.count(f"user{user}") == len(found)
                messages += found
        assert all(message.data == message.id.encode() for message in messages)
        present = {message.id for message in messages}
        assert len(present) == len(messages)
        assert kept - asked <= present, turn
        assert not gone & present, turn
        check_sound(path)
    assert len(kept) > 100
    assert gone


# A database that is locked.


@pytest.mark.fault(number="G18")
async def test_a_locked_database_is_waited_for(path: Path, any_loop: str) -> None:
    async with opened(path) as store:
        with locked(path) as other:
            pending = append(store, "m1")
            # That the loop keeps turning meanwhile is the point; it would stand in a call.
            for _ in range(1000):
                await asyncio.sleep(0)
                assert not pending.done()
            other.execute("ROLLBACK")
            assert await pending == []


@pytest.mark.fault(number="G18")
async def test_a_lock_that_stays_fails_what_waits_and_nothing_else(path: Path) -> None:
    async with opened(path, busy_timeout=0.2) as store:
        await fill(store, ["m1", "m2"])
        with locked(path) as other:
            calls = [append(store, "m3"), store.delete("ann", ["m1"]), store.expire(1e12)]
            for error in await outcomes(calls):
                assert type(error) is OfflineStoreError
                assert str(path) in str(error)
                assert "locked" in str(error)
                assert isinstance(error.__cause__, sqlite3.OperationalError)
            # A call that only reads is not held up.
            assert await ids(store) == ["m1", "m2"]
            assert await store.count("ann") == 2
            # Also where the write before it fails.
            failing = append(store, "m4")
            assert [message.id for message in await store.read("ann")] == ["m1", "m2"]
            with pytest.raises(OfflineStoreError):
                await failing
            other.execute("ROLLBACK")
        await fill(store, ["m5"])
        assert await ids(store) == ["m1", "m2", "m5"]
    check_sound(path)


@pytest.mark.fault(number="G18")
async def test_batches_behind_a_lock_share_the_timeout(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_BATCH_ROWS", 5)
    async with opened(path, busy_timeout=1.0) as store:
        with locked(path):
            start = time.monotonic()
            errors = await outcomes([append(store, f"m{n}") for n in range(100)])
            took = time.monotonic() - start
        assert all(type(error) is OfflineStoreError for error in errors)
        # Of 20 batches each would wait for a second; so it is one, and short tries.
        assert 0.9 < took < 10
        await fill(store, ["again"])
        assert await ids(store) == ["again"]


async def test_open_waits_for_another_process_too(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        store = SQLiteOfflineStore(path, busy_timeout=0.1)
        with pytest.raises(OfflineStoreError, match="locked"):
            await store.open()
        patient = SQLiteOfflineStore(path, busy_timeout=30)
        opening = asyncio.ensure_future(patient.open())
        await asyncio.sleep(0)
        assert not opening.done()
        other.execute("ROLLBACK")
        await opening
        await patient.close()


async def test_several_stores_share_a_new_file(path: Path) -> None:
    stores = [SQLiteOfflineStore(path) for _ in range(5)]
    try:
        await asyncio.gather(*[store.open() for store in stores])
        calls = [append(stores[n % 5], f"m{n}", limit=60) for n in range(100)]
        results = await outcomes(calls)
        assert sum(result == [] for result in results) == 60
        assert sum(type(result) is OfflineStoreFullError for result in results) == 40
        for store in stores:
            assert await store.count("ann") == 60
    finally:
        await asyncio.gather(*[store.close() for store in stores])
    check_sound(path)


async def test_several_stores_may_create_the_file_at_once(path: Path) -> None:
    # Often, because they have to meet while one of them creates the schema.
    for turn in range(30):
        stores = [SQLiteOfflineStore(path.with_name(f"{turn}.db")) for _ in range(5)]
        try:
            await asyncio.gather(*[store.open() for store in stores])
        finally:
            await asyncio.gather(*[store.close() for store in stores])


async def test_open_tries_again_when_the_timeout_was_not_heeded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As SQLite does, once in a thousand times, when processes change a new file to WAL at once.
    prepare = database._prepare
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    errors = [error]

    def busy_at_first(*args: Any) -> None:
        if errors:
            raise errors.pop()
        prepare(*args)

    monkeypatch.setattr(database, "_prepare", busy_at_first)
    async with opened(path) as store:
        await fill(store, ["m1"])
    assert not errors


# A disk that is full, or fails.


@pytest.mark.fault(number="G18")
async def test_a_full_disk_fails_what_does_not_fit(path: Path) -> None:
    stored: list[str] = []
    async with opened(path, max_bytes=1 << 20) as store:
        for wave in range(100):
            names = [f"m{wave}.{n}" for n in range(10)]
            results = await outcomes([append(store, name, data=bytes(2000)) for name in names])
            if results == [[]] * 10:
                stored += names
                continue
            break
        assert stored
        for error in results:
            assert type(error) is OfflineStoreError
            assert "full" in str(error)
            assert str(path) in str(error)
        # All or nothing, and the store goes on: it reads, and what is deleted makes room.
        assert await ids(store) == stored
        assert await store.delete("ann", stored[:20]) == 20
        await fill(store, ["again"], data=bytes(2000))
        assert await ids(store) == [*stored[20:], "again"]
    check_sound(path)


@pytest.mark.fault(number="G16")
async def test_a_million_users_take_max_bytes_and_no_more(path: Path) -> None:
    stored, refused = 0, []
    async with opened(path, max_bytes=1 << 20) as store:
        while not refused:
            calls = [append(store, "m", user=f"{stored + n}", data=bytes(500)) for n in range(100)]
            results = await outcomes(calls)
            refused = [result for result in results if result != []]
            stored += len(results) - len(refused)
        assert stored > 1000
        assert {str(error).partition(": ")[2] for error in refused} == {
            "database or disk is full (max_bytes is 1048576)"
        }
        assert os.path.getsize(path) <= 1 << 20  # noqa: ASYNC240
        # Expired messages make room; and it is as full after the next start.
        assert len(await store.expire(1e12, 500)) == 500
        assert await append(store, "m", user="again") == []
    check_sound(path)
    async with opened(path, max_bytes=1 << 20) as store:
        with pytest.raises(OfflineStoreError, match="full"):
            await asyncio.gather(
                *(append(store, "m", user=f"more {n}", data=bytes(500)) for n in range(1000))
            )
    # A lower bound takes nothing away.
    async with opened(path, max_bytes=2 << 20) as store:
        assert await append(store, "m", user="larger", data=bytes(500)) == []


# On a file system of its own, of 4 MB, that is full (ENOSPC) until something else on it goes.
ON_A_SMALL_DISK = """
import asyncio, os, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
from wsc_fast.errors import OfflineStoreError

async def main(disk):
    with open(disk + "/other", "wb") as other:
        other.write(bytes(300_000))
    store = SQLiteOfflineStore(disk + "/offline.db")
    await store.open()
    stored, failed = [], []
    while len(failed) < 3:
        name = f"m{len(stored)}"
        try:
            await store.append("ann", name, bytes(5000), limit=10**6, drop_oldest=False)
            stored.append(name)
        except OfflineStoreError as error:
            failed.append(str(error))
        assert len(stored) < 1000
    assert "full" in failed[0], failed
    assert len(stored) > 20, stored
    whole = dict(limit=10**6, max_bytes=10**9)
    assert [m.id for m in await store.read("ann", **whole)] == stored
    os.remove(disk + "/other")
    assert await store.append("ann", "again", b"", limit=10**6, drop_oldest=False) == []
    assert [m.id for m in await store.read("ann", **whole)] == [*stored, "again"]
    await store.close()
    print("done")

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.fault(number="G18")
def test_a_full_file_system_fails_appends_and_recovers(tmp_path: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=4m none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*apart, *mount.split()]).returncode:
        pytest.skip("no file system can be mounted here")
    script = f'{mount} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        [*apart, "sh", "-c", script, sys.executable, ON_A_SMALL_DISK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# Its files cannot grow beyond a bound (EFBIG: an I/O error to SQLite), until that is lifted.
CRAMPED = """
import asyncio, resource, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
from wsc_fast.errors import OfflineStoreError

async def main():
    store = SQLiteOfflineStore(sys.argv[1])
    await store.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    stored, failed = [], 0
    for wave in range(200):
        names = [f"m{wave}.{n}" for n in range(10)]
        calls = [store.append("ann", m, bytes(2000), limit=10**6, drop_oldest=False) for m in names]
        results = await asyncio.gather(*calls, return_exceptions=True)
        if results == [[]] * 10:
            stored += names
        else:
            assert all(type(error) is OfflineStoreError for error in results), results
            assert "I/O" in str(results[0]), results
            failed += 1
        if failed == 3:
            break
    assert failed == 3 and len(stored) > 100, (failed, len(stored))
    assert [m.id for m in await store.read("ann", limit=10**6)] == stored
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert await store.append("ann", "again", b"", limit=10**6, drop_oldest=False) == []
    assert [m.id for m in await store.read("ann", limit=10**6)] == [*stored, "again"]
    await store.close()

asyncio.run(main())
"""


@pytest.mark.fault(number="G18")
def test_an_io_error_fails_the_batch_and_the_next_one_works(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRAMPED, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_sound(path)


async def test_the_directory_is_not_there(path: Path) -> None:
    store = SQLiteOfflineStore(path / "none" / "offline.db")
    for _ in range(2):
        with pytest.raises(OfflineStoreError, match=r"none/offline\.db: No such file"):
            await store.open()
    with pytest.raises(OfflineStoreError, match="not open"):
        await append(store, "m1")
    await store.close()


async def test_the_path_is_a_directory(path: Path) -> None:
    with pytest.raises(OfflineStoreError, match="unable to open"):
        await SQLiteOfflineStore(path.parent).open()


# A file that is none of ours.


def foreign_database(path: Path, *commands: str) -> bytes:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for command in commands:
            db.execute(command)
    return path.read_bytes()


async def refused_and_untouched(path: Path, before: bytes, text: str) -> None:
    for _ in range(2):
        with pytest.raises(OfflineStoreError, match=text) as caught:
            async with opened(path):
                pass
        assert str(path) in str(caught.value)
    assert content(path) == before
    assert siblings(path) == [path.name]


@pytest.mark.fault(number="G18")
@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"xy",
        b"This is a text, and somebody needs it.\n" * 300,
        random.Random(18).randbytes(20_000),
        b"SQLite format 3\0" + random.Random(18).randbytes(20_000),
    ],
    ids=["a-byte", "two-bytes", "a-text", "noise", "noise-behind-the-magic"],
)
async def test_a_file_that_is_no_database_is_left_alone(path: Path, data: bytes) -> None:
    put(path, data)
    await refused_and_untouched(path, data, "not a database|malformed")


@pytest.mark.parametrize(
    "command",
    ["CREATE TABLE theirs (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"],
)
async def test_the_database_of_another_program_is_left_alone(path: Path, command: str) -> None:
    await refused_and_untouched(path, foreign_database(path, command), "another program")


async def test_an_empty_file_becomes_a_database(path: Path) -> None:
    put(path, b"")
    async with opened(path) as store:
        await fill(store, ["m1"])


@pytest.mark.fault(number="G18")
async def test_a_damaged_database_raises_and_the_store_lives_on(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(200)], data=bytes(1000))
    whole = content(path)
    # The first page stays, so it opens.
    put(path, whole[:4096] + random.Random(18).randbytes(len(whole) - 4096))
    async with opened(path) as store:
        for _ in range(3):
            with pytest.raises(OfflineStoreError, match=r"offline.db: .*malformed"):
                await store.read("ann")
            with pytest.raises(OfflineStoreError, match=r"offline.db: .*malformed"):
                await append(store, "m1")
        # The cure of the time: from a backup, without a new start.
        put(path, whole)
        assert len(await ids(store)) == 200


# Versions of the schema.


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, ["m1"])
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version + 1}")
    before = content(path)
    with pytest.raises(OfflineStoreError, match=rf"version {version + 1}.* is {version}\b"):
        await SQLiteOfflineStore(path).open()
    assert content(path) == before


async def test_an_older_schema_is_brought_up_to_date(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        await fill(store, ["m1"])
    further = ("CREATE TABLE further (x)", "INSERT INTO further SELECT count(*) FROM messages")
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, further))
    for _ in range(2):
        async with opened(path) as store:
            assert await ids(store) == ["m1"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT x FROM further").fetchall() == [(1,)]
        assert db.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)


async def test_a_migration_that_fails_leaves_the_old_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as store:
        await fill(store, ["m1"])
    with monkeypatch.context() as patch:
        wrong = ("CREATE TABLE further (x)", "INSERT INTO nowhere VALUES (1)")
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, wrong))
        with pytest.raises(OfflineStoreError, match="nowhere"):
            async with opened(path):
                pass
    async with opened(path) as store:
        assert await ids(store) == ["m1"]
    with closing(sqlite3.connect(path)) as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE name = 'further'").fetchall()
        assert tables == []


# Back-pressure.


@pytest.mark.fault(number="G16")
@pytest.mark.fault(number="G18")
async def test_the_queue_for_a_slow_disk_is_bounded(path: Path, any_loop: str) -> None:
    async with opened(path, busy_timeout=60, max_waiting_bytes=100_000) as store:
        with locked(path) as other:
            calls = [append(store, f"m{n}", data=bytes(1000)) for n in range(1000)]
            accepted = [n for n, call in enumerate(calls) if not call.done()]
            # Each is 1,000 bytes and a little more than 512.
            assert accepted == list(range(len(accepted)))
            assert 50 < len(accepted) <= 100_000 // 1512
            for call in calls[len(accepted) :]:
                with pytest.raises(OfflineStoreError, match=r"too slow.* bytes wait"):
                    await call
            # Acknowledgements and reads have room of their own, but not for ever.
            deletes = [asyncio.ensure_future(store.delete("ann", ["m0"])) for _ in range(1000)]
            await eventually(lambda: any(each.done() for each in deletes))
            refused = [each for each in deletes if each.done()]
            for each in refused:
                with pytest.raises(OfflineStoreError, match="too slow"):
                    await each
            assert 50 < 1000 - len(refused) < 200
            other.execute("ROLLBACK")
        assert await asyncio.gather(*[calls[n] for n in accepted]) == [[]] * len(accepted)
        assert sum([await each for each in deletes if each not in refused]) == 1
        # A message that is through no longer counts.
        for _ in range(5):
            await fill(store, [f"n{n}" for n in range(50)], data=bytes(1000))
            await store.delete("ann", [f"n{n}" for n in range(50)])


async def test_a_message_beyond_the_bound_is_refused(path: Path) -> None:
    async with opened(path, max_waiting_bytes=10_000) as store:
        with pytest.raises(OfflineStoreError, match="too large"):
            await append(store, "m1", data=bytes(10_001))
        await fill(store, ["m2"], data=bytes(9_000))


# Group commit.


async def test_appends_at_once_share_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = statements(monkeypatch)
    async with opened(path) as store:
        seen.clear()
        await fill(store, [f"m{n}" for n in range(1000)])
        assert 1 <= seen.count("COMMIT") <= 10
        assert seen.count("BEGIN IMMEDIATE") == seen.count("COMMIT")
        seen.clear()
        calls = [store.delete("ann", [f"m{n}"]) for n in range(1000)]
        assert await asyncio.gather(*calls) == [1] * 1000
        assert 1 <= seen.count("COMMIT") <= 10
        # Reads take no lock.
        seen.clear()
        await asyncio.gather(*[store.read("ann") for _ in range(20)])
        assert "BEGIN IMMEDIATE" not in seen


async def test_a_batch_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = statements(monkeypatch)
    async with opened(path) as store:
        with ExitStack() as stack:
            other = stack.enter_context(locked(path))
            seen.clear()
            calls = [append(store, f"m{n}", limit=10_000) for n in range(5000)]
            large = [append(store, f"l{n}", data=bytes(1 << 20), limit=10_000) for n in range(20)]
            other.execute("ROLLBACK")
        assert await asyncio.gather(*calls, *large) == [[]] * 5020
        # 5,000 at 1,024 a batch, 20 MB at 4 MB a batch.
        assert seen.count("COMMIT") >= 5 + 4
    check_sound(path)


async def test_an_old_sqlite_with_few_parameters(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_connect(monkeypatch, lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999))
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(1000)])
        assert len(await ids(store)) == 1000


# Single entries.


async def test_an_id_that_is_no_text_fails_alone(path: Path) -> None:
    async with opened(path) as store:
        calls = [
            append(store, "m1"),
            append(store, "half \ud83d"),
            append(store, "m2", user="half \ud83d"),
            append(store, 7),  # type: ignore[arg-type]
            append(store, "m3", data="text"),  # type: ignore[arg-type]
            append(store, "m4", limit=10**30),
        ]
        first, *wrong, last = await outcomes(calls)
        assert first == last == []
        for error in wrong:
            assert type(error) is OfflineStoreError
            assert str(path) in str(error)
        assert await ids(store) == ["m1", "m4"]
        for call in (
            store.read("\ud83d"),
            store.count("\ud83d"),
            store.delete("\ud83d", ["m1"]),
            store.delete("ann", ["m1", "\ud83d"]),
        ):
            with pytest.raises(OfflineStoreError, match="Unicode"):
                await call
        assert await ids(store) == ["m1", "m4"]


async def test_numbers_beyond_those_of_sqlite(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, ["m1", "m2"])
        assert await store.read("ann", after=10**30) == []
        assert len(await store.read("ann", after=-(10**30), limit=10**30)) == 2
        assert await store.read("ann", limit=0) == []
        assert await store.read("ann", limit=-1) == []
        assert await store.expire(float("inf"), limit=-1) == []
        assert len(await store.expire(float("inf"), limit=10**30)) == 2


@pytest.mark.fault(number="G16")
async def test_a_limit_of_zero_refuses_every_message(path: Path) -> None:
    async with opened(path) as store:
        for drop_oldest in (True, False):
            with pytest.raises(OfflineStoreFullError):
                await append(store, "m1", limit=0, drop_oldest=drop_oldest)
        assert await store.count("ann") == 0


@pytest.mark.fault(number="G16")
async def test_users_without_messages_leave_nothing(path: Path) -> None:
    async with opened(path) as store:
        users = [f"user{n}" for n in range(500)]
        await asyncio.gather(*[append(store, "m1", user=user) for user in users])
        await asyncio.gather(*[store.delete(user, ["m1"]) for user in users[:250]])
        await store.expire(1e12)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM users").fetchone() == (0,)


async def test_a_cancelled_append_is_stored_all_the_same(path: Path, any_loop: str) -> None:
    async with opened(path) as store:
        calls = [append(store, f"m{n}") for n in range(3)]
        calls[1].cancel()
        assert await outcomes([calls[0], calls[2]]) == [[], []]
        assert await ids(store) == ["m0", "m1", "m2"]


async def test_calls_of_a_batch_take_effect_in_their_order(path: Path) -> None:
    async with opened(path) as store:
        with locked(path) as other:
            calls = [
                append(store, "m1"),
                asyncio.ensure_future(store.read("ann")),
                asyncio.ensure_future(store.delete("ann", ["m1"])),
                asyncio.ensure_future(store.read("ann")),
                asyncio.ensure_future(store.expire(1e12)),
            ]
            # The coroutines begin in this turn of the loop, behind the append.
            await asyncio.sleep(0)
            calls.append(append(store, "m1"))
            calls.append(asyncio.ensure_future(store.count("ann")))
            await asyncio.sleep(0)
            other.execute("ROLLBACK")
        stored, seen, deleted, unseen, expired, again, count = await asyncio.gather(*calls)
        assert [message.id for message in seen] == ["m1"]
        assert (stored, deleted, unseen, expired, again, count) == ([], 1, [], [], [], 1)


@pytest.mark.parametrize(
    ("part", "method"),
    [(Worker, "_take"), (Transactions, "_transact"), (Transactions, "_collect")],
)
async def test_no_error_ends_the_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch, part: type, method: str
) -> None:
    original = getattr(part, method)
    failures: list[BaseException] = []

    def fails(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        if failures:
            raise failures.pop()
        return result

    monkeypatch.setattr(part, method, fails)
    async with opened(path) as store:
        for error in (RuntimeError("a bug"), MemoryError(), SystemExit()):
            failures.append(error)
            with pytest.raises(OfflineStoreError, match=str(error) or type(error).__name__):
                await append(store, "m1")
        await fill(store, ["m2"])
        assert (await ids(store))[-1] == "m2"


# Event loops.


@pytest.mark.parametrize("kinds", [("asyncio", "uvloop"), ("uvloop", "asyncio")])
def test_two_loops_one_after_the_other(path: Path, kinds: tuple[str, str]) -> None:
    store = SQLiteOfflineStore(path)

    async def use(name: str) -> list[str]:
        await store.open()
        await fill(store, [name])
        found = await ids(store)
        await store.close()
        return found

    for number, kind in enumerate(kinds, 1):
        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            assert runner.run(use(f"m{number}")) == [f"m{n}" for n in range(1, number + 1)]


@pytest.mark.parametrize("kind", list(LOOPS))
def test_a_loop_that_was_closed_over_the_store(path: Path, kind: str) -> None:
    store = SQLiteOfflineStore(path)

    async def leave() -> None:
        await store.open()
        with locked(path):
            for n in range(100):
                append(store, f"m{n}")

    async def come_back() -> None:
        await store.open()
        assert await ids(store) == [f"m{n}" for n in range(100)]

    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(leave())
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(come_back())
    # Closed on a third loop.
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(store.close())
        runner.run(store.close())


def test_two_loops_at_once_are_refused(path: Path) -> None:
    store = SQLiteOfflineStore(path)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(store.open())
        with pytest.raises(OfflineStoreError, match="another event loop"):
            second.run(store.open())
        with pytest.raises(OfflineStoreError, match="another event loop"):
            second.run(store.close())
        first.run(store.close())
        second.run(store.open())
        second.run(store.close())


# Opening and closing.


async def test_close_finishes_what_waits(path: Path, any_loop: str) -> None:
    async with opened(path) as store:
        with locked(path) as other:
            calls = [append(store, f"m{n}", limit=10_000) for n in range(3000)]
            delete = asyncio.ensure_future(store.delete("ann", ["m0"]))
            await asyncio.sleep(0)
            closings = [asyncio.ensure_future(store.close()) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(OfflineStoreError, match="not open"):
                await append(store, "late")
            reopening = asyncio.ensure_future(store.open())
            await asyncio.sleep(0)
            assert not any(each.done() for each in (*closings, reopening, delete, *calls))
            other.execute("ROLLBACK")
        await closings[0]
        assert all(call.done() for call in calls)
        assert await asyncio.gather(*calls) == [[]] * 3000
        assert await delete == 1
        await asyncio.gather(*closings, reopening)
        assert await store.count("ann") == 2999
    assert siblings(path) == [path.name]


async def test_a_cancelled_close_still_closes(path: Path) -> None:
    store = SQLiteOfflineStore(path)
    await store.open()
    with locked(path) as other:
        call = append(store, "m1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.close(), 0.05)
        other.execute("ROLLBACK")
    assert await call == []
    await store.close()
    await store.open()
    assert await ids(store) == ["m1"]
    await store.close()


async def test_close_while_it_opens(path: Path) -> None:
    store = SQLiteOfflineStore(path)
    opening = asyncio.ensure_future(store.open())
    await asyncio.sleep(0)
    await store.close()
    await opening
    with pytest.raises(OfflineStoreError, match="not open"):
        await append(store, "m1")
    async with opened(path) as other:
        await fill(other, ["m1"])


FORGETFUL = """
import asyncio, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore

async def main():
    store = SQLiteOfflineStore(sys.argv[1])
    await store.open()
    assert await store.append("ann", "m1", b"", limit=1, drop_oldest=False) == []
    return store

store = asyncio.run(main())
"""


async def test_a_program_that_forgets_to_close_ends(path: Path) -> None:
    command = [sys.executable, "-c", FORGETFUL, str(path)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    async with opened(path) as store:
        assert await ids(store) == ["m1"]


# A disk that is full of anything; only the messages can be freed.

# Fills the file system with messages (argv: directory, bytes of a message, messages at once, bytes
# of another file), is killed or closes, removes all messages, and stores again.
FILL = """
import asyncio, os, signal, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
from wsc_fast.errors import OfflineStoreError

disk, size, at_once, other, end = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
path = disk + "/offline.db"

def append(store, name):
    # Users in turn, so that the messages of one lie all over the file.
    user = f"user{int(name[1:]) % 7}"
    return store.append(user, name, name.encode() * (size // len(name)), limit=10**6,
        drop_oldest=False)

async def kept(store):
    found = []
    for n in range(7):
        after = 0
        while page := await store.read(f"user{n}", after=after):
            found += [(f"user{n}", m.id) for m in page]
            after = page[-1].position
    return found

async def fill(store, start):
    stored, refused, number = [], [], start
    while len(refused) < 20:
        names = [f"m{n}" for n in range(number, number + at_once)]
        number += at_once
        results = await asyncio.gather(*[append(store, m) for m in names], return_exceptions=True)
        for name, result in zip(names, results):
            if result == []:
                stored.append(name)
            else:
                assert type(result) is OfflineStoreError, result
                refused.append(str(result))
    return stored, refused

async def first():
    with open(disk + "/other", "wb") as file:
        file.write(bytes(other))
    store = SQLiteOfflineStore(path)
    await store.open()
    stored, refused = await fill(store, 0)
    assert len(stored) > 3, stored
    assert all("nearly full: " in text and " bytes are free" in text for text in refused), refused
    print(len(stored), flush=True)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "go on":
        await recover(store, len(stored))
    await store.close()

async def recover(store, count):
    found = await kept(store)
    assert len(found) == count, (len(found), count)
    for at in range(0, len(found), 150):
        calls = [store.delete(user, [name]) for user, name in found[at : at + 150]]
        assert await asyncio.gather(*calls) == [1] * len(calls)
    assert await kept(store) == []
    # As much as before, or nearly.
    stored, _ = await fill(store, 10**6)
    assert len(stored) >= count * 0.8, (len(stored), count)

async def again(count):
    store = SQLiteOfflineStore(path)
    await store.open()
    await recover(store, count)
    await store.close()
    print("done")

asyncio.run(again(int(end)) if end.isdigit() else first())
"""


@pytest.mark.parametrize(
    ("size", "message", "at_once", "other", "end"),
    [
        ("2m", 300, 20, 0, "kill"),
        ("6m", 5_000, 1, 0, "go on"),
        ("6m", 200_000, 1, 0, "close"),
        ("6m", 2_000, 10, 3_000_000, "kill"),
        ("80m", 1_000_000, 3, 0, "go on"),
        ("200m", 100_000, 100, 100_000_000, "close"),
    ],
)
def test_a_full_disk_recovers_once_messages_are_removed(
    tmp_path: Path, size: str, message: int, at_once: int, other: int, end: str
) -> None:
    with own_disk(tmp_path, size) as run:
        done = run(FILL, message, at_once, other, end)
        assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr
        if end != "go on":
            done = run(FILL, message, at_once, other, done.stdout.strip())
            assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# Another program takes all that the disk has while the store is quiet.
TAKEN = """
import asyncio, os, sys
from wsc_fast.stores.sqlite.store import SQLiteOfflineStore
from wsc_fast.errors import OfflineStoreError

def take_all(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    disk = os.statvfs(os.path.dirname(path))
    assert disk.f_bavail == 0, disk

async def main(disk):
    path = disk + "/offline.db"
    store = SQLiteOfflineStore(path)
    await store.open()
    names = [f"m{n}" for n in range(300)]
    await asyncio.gather(
        *[store.append("ann", m, bytes(2000), limit=10**6, drop_oldest=False) for m in names])
    # The quiet second, after which the messages are in the database.
    while os.path.getsize(path) < 300 * 2000:
        await asyncio.sleep(0.01)
    take_all(disk + "/other")
    for at in range(0, 300, 10):
        assert await store.delete("ann", names[at : at + 10]) == 10
    try:
        await store.append("ann", "large", bytes(5_000_000), limit=10**6, drop_oldest=False)
    except OfflineStoreError as error:
        assert "nearly full" in str(error), error
    else:
        raise AssertionError("stored")
    os.unlink(disk + "/other")
    assert await store.append("ann", "again", bytes(5_000_000), limit=9, drop_oldest=False) == []
    await store.close()
    print("done")

asyncio.run(main(sys.argv[1]))
"""


def test_messages_can_be_removed_when_another_program_takes_the_whole_disk(tmp_path: Path) -> None:
    with own_disk(tmp_path, "64m") as run:
        done = run(TAKEN)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


async def test_messages_are_in_the_database_after_a_quiet_second(path: Path) -> None:
    async with opened(path) as store:
        empty = size_of(path)
        await fill(store, [f"m{n}" for n in range(100)], data=bytes(1000))
        await eventually(lambda: size_of(path) >= empty + 100_000)


async def test_deletes_are_done_a_few_at_a_time_where_more_does_not_fit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Transactions._transact
    tried: list[int] = []

    def cramped(self: Any, part: list[Any]) -> None:
        rows = sum(entry.rows for entry in part if entry.writes)
        tried.append(rows)
        if rows > 20:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        transact(self, part)

    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(200)])
        with monkeypatch.context() as patch:
            patch.setattr(Transactions, "_transact", cramped)
            with locked(path) as other:
                calls: list[Awaitable[Any]] = [
                    asyncio.ensure_future(store.delete("ann", [f"m{n}"])) for n in range(100)
                ]
                calls.append(asyncio.ensure_future(store.read("ann")))
                await asyncio.sleep(0)
                calls.append(append(store, "new"))
                calls.append(asyncio.ensure_future(store.expire(1e12, 90)))
                await asyncio.sleep(0)
                other.execute("ROLLBACK")
            *deleted, found, new, expired = await outcomes(calls)
        assert deleted == [1] * 100
        assert [message.id for message in found] == [f"m{n}" for n in range(100, 200)]
        assert isinstance(new, OfflineStoreError)
        # Fewer than asked for, and not none.
        assert [message.id for _, message in expired] == [
            f"m{100 + n}" for n in range(len(expired))
        ]
        assert 1 <= len(expired) <= 20
        assert max(tried) > 20
        assert await ids(store) == [f"m{n}" for n in range(100 + len(expired), 200)]
    check_sound(path)


async def test_removing_fails_where_not_even_one_fits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Transactions._transact
    tries = 0

    def full(self: Any, part: list[Any]) -> None:
        nonlocal tries
        if any(entry.writes for entry in part):
            tries += 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        transact(self, part)

    names = [f"m{n}" for n in range(500)]
    async with opened(path) as store:
        await fill(store, names)
        with monkeypatch.context() as patch:
            patch.setattr(Transactions, "_transact", full)
            with locked(path) as other:
                calls = [asyncio.ensure_future(store.delete("ann", [name])) for name in names]
                await asyncio.sleep(0)
                other.execute("ROLLBACK")
            errors = await outcomes(calls)
            assert all(type(error) is OfflineStoreError for error in errors)
        # It gives up soon, and not for ever.
        assert tries < 50
        assert await asyncio.gather(*[store.delete("ann", [name]) for name in names]) == [1] * 500


# A file that is removed or replaced under the open store.


async def test_a_file_that_is_removed_is_noticed_before_anything_is_promised(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(path) as store:
        await fill(store, ["before"])
        for turn in range(3):
            remove(path, f"{path}-wal", f"{path}-shm")
            # The first append already.
            assert await append(store, f"m{turn}", limit=1) == []
            assert await ids(store) == [f"m{turn}"]
            assert siblings(path) == [path.name, f"{path.name}-shm", f"{path.name}-wal"]
            assert mode(path) == 0o600
            (line,) = [r.getMessage() for r in caplog.records if "removed or replaced" in r.message]
            assert str(path) in line
            assert "messages are gone" in line
            log.tell_counts(at_once=True)  # the next line is a new one
            caplog.clear()
    async with opened(path) as store:
        assert await ids(store) == ["m2"]
    check_sound(path)


@pytest.mark.parametrize("kept", [[""], ["-wal"], ["-shm"], ["-wal", "-shm"], []])
async def test_a_backup_that_is_put_in_place_is_served(path: Path, kept: list[str]) -> None:
    backup = path.with_name("backup")
    async with opened(backup) as other:
        await fill(other, ["old1", "old2"], user="bob")
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(100)], data=bytes(1000))
        for suffix in ("", "-wal", "-shm"):
            if suffix not in kept:
                remove(f"{path}{suffix}")
        os.replace(backup, path)
        # A log that is left of the old database does not get into the new one.
        assert await append(store, "new", user="bob") == []
        assert await ids(store, "bob") == ["old1", "old2", "new"]
        assert await ids(store) == []
    check_sound(path)
    async with opened(path) as store:
        assert await ids(store, "bob") == ["old1", "old2", "new"]


async def test_a_file_that_is_moved_away_has_all_its_messages(path: Path) -> None:
    away = path.with_name("away.db")
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(100)])
        os.rename(path, away)
        await fill(store, ["new"])
        assert await ids(store) == ["new"]
    async with opened(away) as store:
        # Up to the one that was stored when it had gone, which is in the new file.
        assert (await ids(store))[:100] == [f"m{n}" for n in range(100)]
    check_sound(away)
    check_sound(path)


async def test_two_stores_both_follow_to_the_new_file(path: Path) -> None:
    async with opened(path) as first, opened(path) as second:
        await fill(first, ["before"])
        remove(path, f"{path}-wal", f"{path}-shm")
        for turn in range(3):
            for name, store in (("first", first), ("second", second)):
                await fill(store, [f"{name}{turn}"])
        expected = [f"{name}{turn}" for turn in range(3) for name in ("first", "second")]
        assert await ids(first) == await ids(second) == expected
    check_sound(path)


async def test_a_log_that_is_removed_costs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_LOOK_EVERY", 0.0)
    async with opened(path) as store:
        await fill(store, ["m1"])
        remove(f"{path}-wal")
        await fill(store, ["m2"])
        assert [r for r in caplog.records if "log was removed" in r.message]
        # As after kill -9: all is in the files.
        copy = path.with_name("copy.db")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
        async with opened(copy) as other:
            assert await ids(other) == ["m1", "m2"]
        await fill(store, ["m3"])
        assert await ids(store) == ["m1", "m2", "m3"]
    check_sound(path)


async def test_a_directory_that_is_gone_fails_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "offline.db"
    async with opened(path) as store:
        await fill(store, ["m1"])
        folder.rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(OfflineStoreError, match="No such file"):
                await append(store, "m2")
            with pytest.raises(OfflineStoreError, match="No such file"):
                await store.read("ann")
        (tmp_path / "elsewhere").rename(folder)
        # The first m2 was written while the directory moved, and then nobody could say so.
        assert await ids(store) == ["m1", "m2"]
        await fill(store, ["m3"])
        assert await ids(store) == ["m1", "m2", "m3"]
    check_sound(path)


# The permissions of the file.


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_a_new_file_is_its_owners_only(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        async with opened(path) as store:
            await fill(store, ["m1"])
            names = [path.name, f"{path.name}-shm", f"{path.name}-wal"]
            assert siblings(path) == names
            assert [mode(path.parent / name) for name in names] == [0o600] * 3
    finally:
        os.umask(before)


async def test_a_file_that_is_there_keeps_its_mode(path: Path) -> None:
    put(path, b"")
    os.chmod(path, 0o640)
    async with opened(path) as store:
        await fill(store, ["m1"])
        assert mode(path) == mode(Path(f"{path}-wal")) == 0o640


# The turns of the loop.


async def test_calls_of_a_batch_end_over_several_turns(path: Path, any_loop: str) -> None:
    turn = 0
    ended: dict[int, int] = {}

    def note(done: asyncio.Future[Any]) -> None:
        assert done.result() == []
        ended[turn] = ended.get(turn, 0) + 1

    async with opened(path) as store:
        with locked(path) as other:
            for n in range(1000):
                append(store, f"m{n}").add_done_callback(note)
            other.execute("ROLLBACK")
        while sum(ended.values()) < 1000:
            await asyncio.sleep(0)
            turn += 1
        # A turn of this count may see two of the store's.
        assert max(ended.values()) <= 2 * worker.TURN_ENTRIES
    assert len(ended) >= 3


async def test_close_comes_after_the_last_call_of_a_batch(path: Path, any_loop: str) -> None:
    order: list[str] = []
    store = SQLiteOfflineStore(path)
    await store.open()
    calls = [append(store, f"m{n}") for n in range(1000)]
    calls[-1].add_done_callback(lambda _: order.append("last"))  # type: ignore[attr-defined]
    await store.close()
    order.append("closed")
    assert order == ["last", "closed"]
    assert await asyncio.gather(*calls) == [[]] * 1000


async def test_a_thousand_appends_at_once_drop_no_more_than_two_thousand_messages(
    path: Path,
) -> None:
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(5000)], limit=5000)
        with locked(path) as other:
            calls = [append(store, f"n{n}", limit=10, drop_oldest=True) for n in range(500)]
            other.execute("ROLLBACK")
        dropped = [message.id for each in await asyncio.gather(*calls) for message in each]
        # One each at least, so that the user does not get more.
        assert 500 <= len(dropped) <= 3 * (MOST_DROPPED + 500)
        assert dropped == [f"m{n}" for n in range(len(dropped))]
        assert await store.count("ann") == 5500 - len(dropped)


async def test_a_much_lower_limit_drops_no_more_bytes_than_a_read_returns(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(20)], data=bytes(READ_BYTES // 4))
        sizes = []
        for number in range(20):
            dropped = await append(store, f"n{number}", limit=2, drop_oldest=True)
            sizes.append(sum(len(message.data) for message in dropped))
            if await store.count("ann") == 2:
                break
        assert max(sizes) == READ_BYTES
        assert len(sizes) >= 5


async def test_more_ids_than_an_entry_takes_are_removed(path: Path) -> None:
    names = [f"m{n}" for n in range(3000)]
    async with opened(path) as store:
        await fill(store, names, limit=3000)
        assert await store.delete("ann", [*names[:2500], "none"]) == 2500
        assert await ids(store) == names[2500:]


async def test_a_page_loads_no_more_than_it_returns(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(50)], data=bytes(1 << 20))
        tracemalloc.start()
        try:
            assert len(await store.read("ann", limit=1000)) == 1
            assert len(await store.expire(1e12)) == 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 6 << 20


# Two processes over one file.


async def test_appended_of_many_spans_and_positions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "_MOST_SPANS", 5)
    monkeypatch.setattr(others, "_MOST_POSITIONS", 7)
    async with opened(path) as first, opened(path) as second:
        after, _ = await first.appended(-1)
        for n in range(30):
            await fill(first, [f"m{n}"], user=f"ours{n}")
            await fill(second, ["m1", "m2"], user=f"theirs{n}")
        told: list[str] = []
        while True:
            position, users = await first.appended(after)
            if position == after:
                break
            assert len(users) <= 7
            told += users
            after = position
        # The list of spans was too short to tell all of ours apart, and none of theirs is missing.
        assert {f"theirs{n}" for n in range(30)} <= set(told)
        assert "ours29" not in told


async def test_appended_goes_on_in_a_database_that_was_replaced(path: Path) -> None:
    backup = path.with_name("backup")
    async with opened(backup) as other:
        await fill(other, ["m1"], user="bob")
    async with opened(path) as store:
        await fill(store, [f"m{n}" for n in range(100)])
        after, _ = await store.appended(-1)
        assert after == 100
        os.replace(backup, path)
        # Its own appends are in the new file, behind those of others.
        await fill(store, ["m2"], user="cyd")
        position, users = await store.appended(after)
        assert users == ["bob"]
        assert await store.appended(position) == (position, [])


async def test_appended_beside_appends_of_the_same_batch(path: Path) -> None:
    async with opened(path) as first, opened(path) as second:
        after, _ = await first.appended(-1)
        await fill(second, ["m1"], user="theirs")
        with locked(path) as other:
            calls: list[Awaitable[Any]] = [append(first, "m1", user="ours")]
            calls.append(asyncio.ensure_future(first.appended(after)))
            await asyncio.sleep(0)
            calls.append(append(first, "m2", user="ours"))
            other.execute("ROLLBACK")
        _, (position, users), _ = await asyncio.gather(*calls)
        position, more = await first.appended(position)
        assert {*users, *more} == {"theirs"}
