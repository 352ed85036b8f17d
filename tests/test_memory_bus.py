"""MemoryBus: each promise of a bus, with a file and without; the file over kills and full disks."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.no_words import NoWords
from tests.support import ROOT, own_disk, times_logged
from wsc_fast import BusError, ConfigError
from wsc_fast._core.envelopes import read_envelope
from wsc_fast.bus.base import MARK, Entry, Outgoing, Published, Retention
from wsc_fast.bus.database import APPLICATION_ID, Database
from wsc_fast.bus.memory import MemoryBus
from wsc_fast.testing import eventually

KEEP = Retention(100, 300.0)


class Heard(NoWords):
    """A handler that writes down what it hears."""

    def __init__(self) -> None:
        self.ups = 0
        self.channels: list[tuple[str, bool]] = []
        self.links: list[tuple[str, str, str]] = []  # room, prev, position

    def envelope(self, channel: str, data: bytes) -> bool:
        kind, origin, prev, messages = read_envelope(data)
        assert (kind, origin) == ("k", "hub")
        for position, *_ in messages:
            self.links.append((channel, prev, position))
            prev = position
        return True

    def takes_more(self) -> bool:
        return True

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        self.channels += [(channel, again) for channel in channels]

    def up(self) -> None:
        self.ups += 1

    def down(self, error: Exception) -> None:
        raise AssertionError(error)

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        raise AssertionError(error)


class Clock:
    """The two clocks of a bus, which a test sets forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        for name in ("memory.monotonic", "file.monotonic", "file.time"):
            monkeypatch.setattr(f"wsc_fast.bus.{name}", lambda: self.now)
        monkeypatch.setattr("wsc_fast.bus.database.clock.time", lambda: self.now)


@asynccontextmanager
async def opened(
    path: str | os.PathLike[str] | None = None, handler: Heard | None = None, **options: Any
) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus(path, **options)
    await bus.open(handler or Heard(), "hub")
    try:
        yield bus
    finally:
        await bus.close()


def entry(text: str | bytes) -> bytes:
    payload = text.encode() if isinstance(text, str) else text
    return b"b 0 0 %d\n%b" % (len(payload), payload)


async def publish(
    bus: MemoryBus,
    text: str | bytes,
    room: str = "r",
    retention: Retention | None = KEEP,
    key: str | None = None,
) -> Published:
    answer: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    bus.publish([Outgoing(room, entry(text), retention, key, answer)])
    return await answer


async def positions(bus: MemoryBus, count: int, room: str = "r", **options: Any) -> list[str]:
    """Publishes the texts 0, 1, ...; the position of each."""
    found = [await publish(bus, str(n), room, **options) for n in range(count)]
    return [each.position or "" for each in found]


async def texts(
    bus: MemoryBus, since: str | None = None, room: str = "r", limit: int = 10_000
) -> list[bytes] | None:
    """The messages after a position; None where it is not known."""
    page = await bus.read(room, since, limit, KEEP)
    return [each.entry.partition(b"\n")[2] for each in page.entries] if page.contiguous else None


async def behind_first(bus: MemoryBus, room: str = "r") -> list[bytes] | None:
    """The entries behind the first message; that of a mark is empty."""
    first = (await bus.read(room, None, 10_000, KEEP)).entries[0]
    return await texts(bus, first.position, room)


def bytes_of(file: Path) -> bytes:
    return file.read_bytes()


def replace(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


@pytest.fixture(params=[False, True], ids=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "history.db" if request.param else None


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


# --- the promises of a bus ---


async def test_it_hears_its_own_messages_in_order_each_after_the_one_before(
    path: Path | None, any_loop: str
) -> None:
    heard = Heard()
    async with opened(path, heard) as bus:
        assert bus.at_once
        assert heard.ups == 1
        bus.subscribe(["r", "s"])
        assert heard.channels == [("r", False), ("s", False)]
        before = (await bus.read("r", None, 0, KEEP)).top
        found = await positions(bus, 5)
        assert heard.links == [
            ("r", prev, position) for prev, position in zip([before, *found], found, strict=False)
        ]
        bus.unsubscribe(["r"])


async def test_a_history_is_read_after_any_of_its_positions(path: Path | None) -> None:
    async with opened(path) as bus:
        empty = await bus.read("r", None, 10, KEEP)
        assert (empty.contiguous, list(empty.entries)) == (True, [])
        found = [empty.top, *await positions(bus, 10)]
        for number, position in enumerate(found):
            assert await texts(bus, position) == numbers(number, 10)
            assert await texts(bus, position, limit=3) == numbers(number, min(number + 3, 10))
        assert await texts(bus, None, limit=3) == numbers(7, 10)
        page = await bus.read("r", None, 0, KEEP)
        assert (page.top, page.contiguous, list(page.entries)) == (found[-1], True, [])
        assert await bus.tops(["r", "nobody"]) == [found[-1], None]
        first = (await bus.read("r", found[0], 1, KEEP)).entries
        assert first == [Entry(found[1], entry("0"))]


@pytest.mark.parametrize(
    "unknown", ["", "5", "0.", "5.other", "11.other", "-1.x", "x.y", "٣.x", "9" * 30, "1.a.b"]
)
async def test_a_position_that_is_not_known_is_no_place_to_read_from(
    path: Path | None, unknown: str
) -> None:
    async with opened(path) as bus:
        found = await positions(bus, 10)
        page = await bus.read("r", unknown, 100, KEEP)
        assert (page.top, page.contiguous, list(page.entries)) == (found[-1], False, [])
        assert await texts(bus, found[0], room="another") is None


async def test_no_position_of_a_deleted_history_is_known(path: Path | None) -> None:
    heard = Heard()
    async with opened(path, heard) as bus:
        before = [(await bus.read("r", None, 0, KEEP)).top, *await positions(bus, 3)]
        other = (await bus.read("unknown", None, 0, KEEP)).top
        await bus.delete("r")
        place = (await bus.read("r", None, 0, KEEP)).top
        (after,) = await positions(bus, 1)
        assert heard.links[-1] == ("r", place, after)
        assert await texts(bus, place) == [b"0"]
        assert await texts(bus, other, room="unknown") == []  # of other rooms nothing was lost
    async with opened(path) if path else nullcontext(bus) as bus:
        for position in before:
            assert await texts(bus, position) is None
        if path:
            assert await texts(bus, place) == [b"0"]


async def test_the_oldest_go_beyond_the_size(path: Path | None) -> None:
    async with opened(path) as bus:
        found = await positions(bus, 10, retention=Retention(4, 300.0))
        assert await texts(bus) == numbers(6, 10)
        assert await texts(bus, found[5]) == numbers(6, 10)
        assert await texts(bus, found[4]) is None
        # A pattern of another size counts from the next message on.
        await publish(bus, "10", retention=Retention(2, 300.0))
        assert await texts(bus, found[8]) == numbers(9, 11)
        assert await texts(bus, found[7]) is None


async def test_messages_go_after_their_time_and_the_place_behind_them_later(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with opened(path) as bus:
        found = await positions(bus, 2)
        clock.now += 299
        assert await texts(bus, found[0]) == [b"1"]
        clock.now += 2
        assert await texts(bus, found[0]) is None
        assert await texts(bus, found[1]) == []
        assert (await publish(bus, "2")).position not in found
        assert await texts(bus, found[1]) == [b"2"]
        clock.now += 86_401
        assert await texts(bus, found[1]) is None
        assert (await bus.read("r", None, 0, KEEP)).top not in found


async def test_a_key_is_answered_once_more_for_its_time_and_for_its_room(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with opened(path) as bus:
        one = await publish(bus, "one", key="k")
        assert await publish(bus, "two", key="k") == Published(one.position, True)
        assert not (await publish(bus, "three", room="s", key="k")).duplicate
        assert await publish(bus, "plain", room="p", retention=None, key="k") == Published(
            None, False
        )
        assert (await publish(bus, "plain", room="p", retention=None, key="k")).duplicate
        assert await texts(bus) == [b"one"]
        clock.now += 301
        assert not (await publish(bus, "four", key="k")).duplicate


async def test_a_key_counts_for_what_the_handler_publishes_meanwhile(path: Path | None) -> None:
    class Echo(Heard):
        def envelope(self, channel: str, data: bytes) -> bool:
            super().envelope(channel, data)
            bus.publish([Outgoing("r", entry("again"), KEEP, "k")])
            return True

    heard = Echo()
    async with opened(path, heard) as bus:
        await publish(bus, "one", key="k")
        assert len(heard.links) == 1


@pytest.mark.parametrize("by", ["publish", "read"])
async def test_rooms_without_end_take_no_more_than_max_bytes(path: Path | None, by: str) -> None:
    async with opened(path, max_bytes=1 << 20) as bus:
        kept = await publish(bus, bytes(1000), room="quiet")
        goes = by == "publish"  # a read, as of a join, makes no history
        for number in range(3000):
            if by == "publish":
                await publish(bus, bytes(1000), room=f"r{number}")
            else:
                await bus.read(f"r{number}", None, 0, KEEP)
        assert await texts(bus, kept.position, room="quiet") == (None if goes else [])
        assert await texts(bus, room="r2999") == ([bytes(1000)] if goes else [])
        known = sum(top is not None for top in await bus.tops([f"r{n}" for n in range(3000)]))
        assert known < 2100 if goes else known == 0


async def test_one_room_takes_no_more_than_max_bytes(path: Path | None) -> None:
    async with opened(path, max_bytes=1 << 20) as bus:
        for number in range(30):
            await publish(bus, bytes([number]) * 100_000)
        found = await texts(bus)
        assert found is not None
        assert [each[0] for each in found] == list(range(20, 30))


async def test_a_bus_is_of_one_hub(path: Path | None) -> None:
    async with opened(path) as bus:
        with pytest.raises(BusError, match="another hub"):
            await bus.open(Heard(), "other")


async def test_a_bus_without_a_file_keeps_its_histories_from_one_open_to_the_next() -> None:
    bus = MemoryBus()
    await bus.open(Heard(), "hub")
    found = await positions(bus, 3)
    await bus.close()
    await bus.open(Heard(), "hub")
    assert await texts(bus, found[0]) == numbers(1, 3)
    await bus.close()


def test_bad_arguments_are_refused() -> None:
    for wrong in (0, 1_048_575, True, 2.5e6, "2"):
        with pytest.raises(ConfigError, match="max_bytes"):
            MemoryBus(max_bytes=wrong)  # type: ignore[arg-type]
    for path in ("", ":memory:", "a\0b", b"a"):
        with pytest.raises(ConfigError, match="path"):
            MemoryBus(path)  # type: ignore[arg-type]


# --- over a restart ---


async def test_a_restart_keeps_histories_and_positions_and_keys(file: Path, any_loop: str) -> None:
    async with opened(file) as bus:
        first = await bus.read("quiet", None, 0, KEEP)
        found = await positions(bus, 10, retention=Retention(5, 300.0))
        keyed = await publish(bus, "keyed", room="s", key="k")
        await publish(bus, "plain", room="p", retention=None, key="k")
    async with opened(file) as bus:
        assert await texts(bus) == numbers(5, 10)
        assert await texts(bus, found[4]) == numbers(5, 10)
        assert await texts(bus, found[3]) is None
        assert await texts(bus, found[-1]) == []
        # Nothing was said there.
        assert await texts(bus, first.top, room="quiet") == []
        assert await publish(bus, "again", room="s", key="k") == Published(keyed.position, True)
        assert (await publish(bus, "again", room="p", retention=None, key="k")).duplicate
        more = await positions(bus, 2)
        assert set(more).isdisjoint(found)
        assert await texts(bus, found[-1]) == numbers(0, 2)
    assert os.stat(file).st_mode & 0o777 == 0o600


async def test_the_place_of_a_silent_room_is_not_known_after_a_crash_or_a_history_that_went(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages to the room may be lost since then, or may be gone."""
    crashed = tmp_path / "crashed.db"
    async with opened(file) as bus:
        first = await bus.read("quiet", None, 0, KEEP)
    async with opened(file) as bus:
        await publish(bus, "one")
        await until_written(bus)
        shutil.copy(file, crashed)
        for beside in ("-wal", "-unwritten"):
            shutil.copy(f"{file}{beside}", f"{crashed}{beside}")
    async with opened(crashed) as bus:
        assert await texts(bus) == [b"one"]
        assert await texts(bus, first.top, room="quiet") is None
    clock = Clock(monkeypatch)
    async with opened(file) as bus:
        first = await bus.read("quiet", None, 0, KEEP)
        await publish(bus, "one", room="old")
    clock.now += 90_000
    async with opened(file) as bus:
        assert await bus.tops(["old"]) == [None]
        assert await texts(bus, first.top, room="quiet") is None


async def test_a_file_of_the_first_version_is_read(file: Path) -> None:
    async with opened(file) as bus:
        await publish(bus, "one")
    with sqlite3.connect(file) as db:
        db.executescript("DROP TABLE start; PRAGMA user_version = 1")
    db.close()
    async with opened(file) as bus:
        assert await behind_first(bus) == [b""]  # nobody knows whether it was closed: a mark
        first = await bus.read("quiet", None, 0, KEEP)
    async with opened(file) as bus:
        assert await texts(bus, first.top, room="quiet") == []


async def test_a_position_that_a_crash_took_out_of_the_file_is_never_given_again(
    file: Path, tmp_path: Path
) -> None:
    """A copy of an older file stands for one to which the newest messages never came."""
    async with opened(file) as bus:
        early = await positions(bus, 3)
    older = bytes_of(file)
    async with opened(file) as bus:
        late = await positions(bus, 3)
    replace(file, older)
    async with opened(file) as bus:
        for position in late:
            assert await texts(bus, position) is None
        again = await positions(bus, 3)
        assert set(again).isdisjoint(late)
        for position in late:
            assert await texts(bus, position) is None
        assert await texts(bus, early[0]) == [b"1", b"2", b"0", b"1", b"2"]


async def test_what_is_too_old_is_not_read_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with opened(file) as bus:
        old = await positions(bus, 2, room="old", key="old")
        clock.now += 86_000
        middle = await positions(bus, 2, room="middle")
        clock.now += 299
        new = await positions(bus, 2, room="new")
    clock.now += 102
    async with opened(file) as bus:
        assert await bus.tops(["old", "middle", "new"]) == [None, middle[-1], new[-1]]
        assert await texts(bus, middle[0], room="middle") is None
        assert await texts(bus, middle[1], room="middle") == []
        assert await texts(bus, new[0], room="new") == [b"1"]
        assert old[0] == old[1]
    rows = await asyncio.to_thread(contents, file)
    assert {room for room, _ in rows} == {"middle", "new"}


def contents(file: Path) -> list[tuple[str, int]]:
    """Room and number of each message in a file that nobody has open."""
    with sqlite3.connect(file) as db:
        rows = db.execute(
            "SELECT room, entries.number FROM rooms LEFT JOIN entries USING (key) ORDER BY 1, 2"
        ).fetchall()
    db.close()
    return rows


async def test_a_clock_that_was_set_back_makes_nothing_last_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    async with opened(file) as bus:
        found = await positions(bus, 2)
    clock.now -= 500_000
    async with opened(file) as bus:
        assert await texts(bus, found[0]) == [b"1"]
        clock.now += 86_401
        assert await texts(bus, found[0]) is None


async def test_a_lowered_max_bytes_lets_the_oldest_rooms_go(file: Path) -> None:
    async with opened(file, max_bytes=8 << 20) as bus:
        found = [await publish(bus, bytes(100_000), room=f"r{n}") for n in range(40)]
    async with opened(file, max_bytes=1 << 20) as bus:
        tops = await bus.tops([f"r{n}" for n in range(40)])
        assert tops == [None] * 30 + [each.position for each in found[30:]]
        assert await publish(bus, "more", room="r39")
    assert len(await asyncio.to_thread(contents, file)) == 11


async def test_the_file_does_not_grow_without_end(file: Path) -> None:
    async with opened(file, max_bytes=1 << 20) as bus:
        sizes = []
        for _ in range(12):
            for number in range(300):
                await publish(bus, os.urandom(3_000), room=f"r{number}")
            await until_written(bus)
            sizes.append(sum(each.stat().st_size for each in file.parent.iterdir()))
    # The log beside it has its own bound.
    assert max(sizes) < (2 << 20) + (6 << 20), sizes
    assert len(bytes_of(file)) < 3 << 20


async def until_written(bus: MemoryBus) -> None:
    """Returns when the file has all that the bus has."""
    file = bus._file
    assert file is not None
    await eventually(lambda: not file._changed and not file._gone and file._writing is None)


# --- a file that cannot be used ---


async def test_a_second_bus_on_a_file_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.bus.database._BUSY", 0.05)
    script = (
        "import asyncio\n"
        "from unittest.mock import Mock\n"
        "from wsc_fast.bus import database, memory\n"
        "database._BUSY = 0.05\n"
        f"asyncio.run(memory.MemoryBus({str(file)!r}).open(Mock(), 'hub'))\n"
    )
    async with opened(file) as bus:
        await publish(bus, "one")
        with pytest.raises(BusError, match="in use by another hub or process"):
            await MemoryBus(file).open(Heard(), "hub")
        other = await asyncio.to_thread(run, script)
        assert other.returncode == 1
        assert "in use by another hub or process" in other.stderr
        assert await texts(bus) == [b"one"]
    async with opened(file) as bus:
        assert await texts(bus) == [b"one"]


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no database, but long enough for one to be sure of that\n" * 40, "not a database"),
        (b"x", "not a database"),
        ("CREATE TABLE theirs (x)", "another program"),
        ("PRAGMA application_id = 7", "another program"),
        (f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3", "newer"),
    ],
)
async def test_a_file_of_something_else_is_left_as_it_is(
    file: Path, content: bytes | str, reason: str
) -> None:
    if isinstance(content, bytes):
        replace(file, content)
    else:
        with sqlite3.connect(file) as db:
            db.executescript(content)
        db.close()
    before = bytes_of(file)
    with pytest.raises(BusError, match=reason) as found:
        await MemoryBus(file).open(Heard(), "hub")
    assert str(file) in str(found.value)
    assert bytes_of(file) == before


async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    bus = MemoryBus(tmp_path / "none" / "history.db")
    with pytest.raises(BusError, match="No such file"):
        await bus.open(Heard(), "hub")
    (tmp_path / "none").mkdir()
    await bus.open(Heard(), "hub")
    await bus.close()


async def test_a_history_with_a_hole_is_not_read(file: Path) -> None:
    async with opened(file) as bus:
        found = await positions(bus, 5)
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM entries WHERE number = 3")
    db.close()
    async with opened(file) as bus:
        assert await texts(bus, found[0]) is None
        assert await texts(bus, found[-1]) == []


# --- a disk that fails ---


@pytest.mark.parametrize("replaced", ["file", "directory", "other"])
async def test_a_file_that_goes_is_written_anew_from_memory(
    tmp_path: Path, replaced: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.bus.file._AGAIN", 0.02)
    directory = tmp_path / "data"
    directory.mkdir()
    file = directory / "history.db"
    async with opened(file) as bus:
        found = await positions(bus, 3)
        await publish(bus, "keyed", room="s", key="k")
        await until_written(bus)
        if replaced == "directory":
            directory.rename(tmp_path / "gone")
        else:
            file.rename(directory / "gone.db")
        if replaced == "other":
            with sqlite3.connect(file) as db:
                db.execute("CREATE TABLE theirs (x)")
            db.close()
        await publish(bus, "3")
        await eventually(lambda: times_logged(caplog, "removed or replaced"))
        if replaced != "file":
            await eventually(lambda: times_logged(caplog, "could not be written"))
            await publish(bus, "4")
            if replaced == "directory":
                directory.mkdir()
            else:
                file.unlink()
        await until_written(bus)
    async with opened(file) as bus:
        assert await texts(bus, found[0]) == numbers(1, 4 if replaced == "file" else 5)
        assert (await publish(bus, "again", room="s", key="k")).duplicate


# On a disk of 3 MB that something else fills, until that goes.
FULL = """
import asyncio, logging, os, sys
from tests.test_memory_bus import Heard, KEEP, opened, publish, texts, until_written
from wsc_fast.bus import file
from wsc_fast.bus.base import Retention
from wsc_fast.testing import eventually

disk = sys.argv[1]
lines = []
logging.getLogger("wsc_fast").addHandler(logging.NullHandler())
logging.getLogger("wsc_fast").addFilter(lambda record: lines.append(record.getMessage()))
file._AGAIN = 0.05
keep = Retention(10_000, 300.0)

async def main():
    with open(disk + "/other", "wb") as other:
        other.write(bytes(1_000_000))
    async with opened(disk + "/history.db") as bus:
        found = []
        while not lines:
            answer = await publish(bus, os.urandom(5_000), retention=keep, key=str(len(found)))
            found.append(answer.position)
            await asyncio.sleep(0.001)
        assert "full" in lines[0] and "make room" in lines[0], lines
        for _ in range(20):
            found.append((await publish(bus, "more", retention=keep)).position)
        assert len(await texts(bus, found[0])) == len(found) - 1
        os.remove(disk + "/other")
        await until_written(bus)
    async with opened(disk + "/history.db") as bus:
        assert len(await texts(bus, found[0])) == len(found) - 1, lines
        assert (await publish(bus, "again", retention=keep, key="0")).duplicate
    print("done")

asyncio.run(main())
"""


def test_a_full_disk_leaves_no_hole(tmp_path: Path) -> None:
    with own_disk(tmp_path, "3m") as run_there:
        done = run_there(FULL)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# --- kill -9 ---

# Publishes to two rooms in turn, and says each position.
PUBLISHER = """
import asyncio, sys
from unittest.mock import Mock
from wsc_fast.bus.base import Outgoing, Retention
from wsc_fast.bus.memory import MemoryBus

async def main():
    bus = MemoryBus(sys.argv[1])
    await bus.open(Mock(), "hub")
    while True:
        for room in ("a", "b"):
            answer = asyncio.get_running_loop().create_future()
            bus.publish([Outgoing(room, b"b 0 0 1\\n.", Retention(50, 300.0), None, answer)])
            print(room, answer.result().position, flush=True)
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""


async def test_a_kill_loses_the_newest_at_most_and_never_in_silence(file: Path) -> None:
    given: dict[str, list[str]] = {"a": [], "b": []}
    lost = 0
    for number in range(6):
        await asyncio.to_thread(publish_until_killed, file, 40 + 100 * number, given)
        async with opened(file) as bus:
            for room, known in given.items():
                assert len(set(known)) == len(known)
                page = await bus.read(room, None, 10_000, KEEP)
                found = [each.position for each in page.entries]
                if found:
                    # A run of what was given, which ends where the file does.
                    start = known.index(found[0])
                    assert known[start : start + len(found)] == found
                kept = known.index(found[-1]) + 1 if found else 0
                for position in known[kept:]:
                    assert await texts(bus, position, room) is None
                if known[kept:] and found:
                    lost += 1
                    # A client that had the last one before these passes a mark.
                    behind = await bus.read(room, found[-1], 10, KEEP)
                    assert [each.entry for each in behind.entries] == [MARK]
                    assert behind.top == page.top == behind.entries[-1].position
                # The next process knows these no more.
                del known[kept:]
    assert given["a"]
    assert given["b"]
    assert lost


async def test_a_start_that_is_given_up_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    opened = Database.open

    def open_late(database: Database) -> None:
        opening.set()
        assert go_on.wait(10)
        opened(database)

    monkeypatch.setattr(Database, "open", open_late)
    bus = MemoryBus(tmp_path / "kept.db")
    task = asyncio.create_task(bus.open(Heard(), "hub"))
    await asyncio.to_thread(opening.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await eventually(lambda: not any("history" in each.name for each in threading.enumerate()))
    assert open_files(tmp_path) == []


def open_files(folder: Path) -> list[str]:
    """The files in a folder that this process has open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    names = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [name for name in names if name.startswith(str(folder))]


async def killed_process(file: Path, *rooms: str, wait: bool = True) -> None:
    """A process publishes to each room, and is killed; with `wait` once all is written."""
    program = WRITER.replace("WAIT", "await until_written(bus)" if wait else "pass")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(file), *rooms],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


WRITER = """
import asyncio, os, signal, sys
from tests.test_memory_bus import opened, publish, until_written

async def main():
    async with opened(sys.argv[1]) as bus:
        for room in sys.argv[2:]:
            await publish(bus, "one", room)
        WAIT
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def marked(file: Path, *rooms: str) -> list[bool]:
    """Whether the history of each room ends in a mark."""
    async with opened(file) as bus:
        pages = [await bus.read(room, None, 1, KEEP) for room in rooms]
    return [bool(page.entries) and page.entries[-1].position != page.top for page in pages]


async def test_a_kill_that_takes_no_message_leaves_no_mark(file: Path) -> None:
    await killed_process(file, "a", "b")
    assert await marked(file, "a", "b") == [False, False]


async def test_a_kill_marks_the_rooms_alone_whose_messages_it_took(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await killed_process(file, "a", "b")
    await killed_process(file, "b", wait=False)
    assert await marked(file, "a", "b") == [False, True]
    assert times_logged(caplog, "messages of 1 kept rooms may be missing") == 1
    assert await marked(file, "a", "b") == [False, True]
    assert times_logged(caplog, "messages of 1 kept rooms may be missing") == 1
    async with opened(file) as bus:
        await publish(bus, "two", "b")
        assert await behind_first(bus, "b") == [b"", b"two"]


@pytest.mark.parametrize("how", ["another boot", "no boot is known", "no map", "a cut map"])
async def test_where_the_map_says_nothing_all_rooms_are_marked(
    file: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    await killed_process(file, "a", "b")
    if how == "no map":
        os.unlink(f"{file}-unwritten")
    elif how == "a cut map":
        os.truncate(f"{file}-unwritten", 60_000)
    else:
        boot = "/proc/sys/kernel/ostype" if how == "another boot" else "/nowhere"
        monkeypatch.setattr("wsc_fast.bus.unwritten._BOOT", boot)
    assert await marked(file, "a", "b") == [True, True]
    assert os.listdir(file.parent) == [file.name]  # it was closed in good order
    assert await marked(file, "a", "b") == [True, True]
    async with opened(file) as bus:
        assert await behind_first(bus, "a") == [b""]


async def test_a_map_that_cannot_be_written_goes_and_the_bus_goes_on(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    async with opened(file) as bus:
        await publish(bus, "one", "a")
        monkeypatch.setattr("wsc_fast.bus.unwritten.os.pwrite", full)
        await publish(bus, "one", "b")
        await until_written(bus)
        assert times_logged(caplog, "the map of unwritten rooms") == 1
        assert f"{file.name}-unwritten" not in os.listdir(file.parent)
        assert await texts(bus, room="b") == [b"one"]


def publish_until_killed(file: Path, lines: int, given: dict[str, list[str]]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            room, position = process.stdout.readline().split()
            given[room].append(position)
        process.kill()
        for line in process.stdout:
            if line.endswith("\n"):
                room, position = line.split()
                given[room].append(position)


# --- what it costs ---


async def test_a_long_history_is_opened_beside_a_loop_that_goes_on(file: Path) -> None:
    keep = Retention(10_000, 300.0)
    async with opened(file) as bus:
        for number in range(20_000):
            bus.publish([Outgoing(f"r{number % 100}", entry(b"x" * 100), keep)])
    turns = 0
    bus = MemoryBus(file)
    opening = asyncio.create_task(bus.open(Heard(), "hub"))
    while not opening.done():
        await asyncio.sleep(0.001)
        turns += 1
    await opening
    assert len(await texts(bus, room="r99") or ()) == 200
    assert turns > 10
    await bus.close()


async def test_a_loop_that_is_closed_over_a_bus_leaves_the_file_to_the_next(file: Path) -> None:
    heard = Heard()
    bus = MemoryBus(file)

    async def first() -> list[str]:
        await bus.open(heard, "hub")
        found = await positions(bus, 3)
        await until_written(bus)
        return found

    found = await asyncio.to_thread(lambda: asyncio.run(first()))
    await bus.open(heard, "hub")
    assert await texts(bus, found[0]) == numbers(1, 3)
    await bus.close()
