"""A hub that starts on a full disk fails in one line, which names the file and the reason."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.support import own_disk

# Starts a hub whose store or bus has its files on the disk, which is filled before: with bytes, or
# with files until it has room for no more of them. With "old" the hub has run there already.
PROGRAM = """
import asyncio, os, sys
from contextlib import suppress
from pathlib import Path
from wsc_fast import ACKConfig, Hub, Identity, MemoryBus, SQLiteOfflineStore
from wsc_fast.cli import app

folder, kind, command, age = sys.argv[1:]
os.environ["XDG_RUNTIME_DIR"] = folder

def make() -> Hub:
    if kind == "MemoryBus":
        hub = Hub(bus=MemoryBus(f"{folder}/bus.db"))
        hub.keep("r*", size=10, ttl=60)
        return hub
    if kind == "LocalBus":
        return Hub(bus="local")
    hub = Hub(authenticate=lambda request: Identity("ann"))
    settings = ACKConfig(enable_offline_messages=True)
    hub.enable_ack(settings, store=SQLiteOfflineStore(f"{folder}/offline.db"))
    return hub

async def once() -> None:
    hub = make()
    await hub.start("127.0.0.1", 0)
    await hub.stop(1.0)

if age == "old":
    asyncio.run(once())
with suppress(OSError), open(f"{folder}/filler", "wb", buffering=0) as filler:
    while filler.write(bytes(4096)):
        pass
with suppress(OSError):
    for number in range(1000):
        Path(f"{folder}/{number}").touch()
hub = make()
if command == "serve":
    sys.exit(app.run(["serve", "__main__:hub", "--port", "0"]))
hub.run("127.0.0.1", 0)
"""
BYTES, FILES = "128k", "1m,nr_inodes=12"


@pytest.mark.parametrize("command", ["run", "serve"])
@pytest.mark.parametrize(
    ("kind", "size", "age", "names", "reason"),
    [
        ("SQLite", BYTES, "new", "offline store {}/offline.db", "database or disk is full"),
        ("SQLite", FILES, "new", "offline store {}/offline.db", "No space left on device"),
        ("SQLite", BYTES, "old", "offline store {}/offline.db", "the disk is full"),
        ("SQLite", FILES, "old", "offline store {}/offline.db", "the disk is full"),
        ("MemoryBus", BYTES, "new", "kept rooms in '{}/bus.db'", "database or disk is full"),
        ("MemoryBus", FILES, "new", "kept rooms in '{}/bus.db'", "No space left on device"),
        ("LocalBus", FILES, "new", "the local bus cannot use {}/", "No space left on device"),
    ],
)
def test_a_start_on_a_full_disk_fails_in_one_line(
    kind: str, size: str, age: str, names: str, reason: str, command: str
) -> None:
    # The path of a socket is short.
    with tempfile.TemporaryDirectory() as folder, own_disk(Path(folder), size) as run:
        done = run(PROGRAM, kind, command, age)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wsc_fast: " if command == "run" else "wsc-fast: ")
    assert names.format(folder) in last
    assert reason in last
