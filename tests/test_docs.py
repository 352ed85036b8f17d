"""The code in docs/delivery.md runs as it is written, and does what the page says."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.redis_server import RedisServer
from tests.support import join, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    HubConfig,
    HubMessage,
    PendingFullError,
    QueueFullError,
    UserOfflineError,
)
from wsc_fast.testing import TEXT, RawClient, eventually, running

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/delivery.md").read_text(), re.S)


def block(name: str) -> str:
    """The block of the page that defines a name."""
    (found,) = [text for text in BLOCKS if f"class {name}" in text or f"def {name}" in text]
    return found


@pytest.fixture(autouse=True)
def _closed_databases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes what the page's code has opened for as long as a process lives."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noting(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noting)
    yield
    for db in opened:
        db.close()


@pytest.mark.parametrize("text", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "docs/delivery.md", "exec"), {})


def test_each_promise_names_a_test_that_there_is() -> None:
    page = (ROOT / "docs/delivery.md").read_text()
    named = re.findall(r"^\| .+ \| `(test_\w+)` \|$", page, re.M)
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert set(named) <= there


async def test_the_first_example_answers() -> None:
    names: dict[str, Any] = {}
    exec(block("greet"), names)
    async with running(names["hub"]) as hub:
        raw, _ = await join_as(hub, "ann")
        await raw.send(TEXT, b"hello")
        assert b'"content":"you said hello"' in (await raw.recv()).payload
        raw.close()


async def join_as(hub: Hub, user: str) -> Any:
    raw = await RawClient.open(hub, f"/ws?user={user}")
    return raw, hub.get_clients_by_user(user)[0]


async def test_the_offline_table_keeps_what_absent_users_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("OfflineTable"), names)
    async with running(names["hub"]) as hub:
        hub.enable_ack()
        with pytest.raises(UserOfflineError):
            hub.send_to_user("ann", HubMessage(id="m", content="hello", data={"n": 1}))
        with pytest.raises(UserOfflineError):
            hub.send_ack_message_to_user("ann", ACKMessage(id="a", content="acknowledge"))
        with sqlite3.connect(tmp_path / "offline.db") as db:
            await eventually(lambda: len(db.execute("SELECT * FROM offline").fetchall()) == 2)
            rows = db.execute("SELECT * FROM offline").fetchall()
        assert [row[:2] for row in rows] == [("ann", "m"), ("ann", "a")]
        plain, with_ack = (msgspec.json.decode(row[2], type=HubMessage) for row in rows)
        assert (plain.content, plain.to, plain.data) == ("hello", "ann", {"n": 1})
        assert (with_ack.content, with_ack.require_ack) == ("acknowledge", True)


async def test_the_redis_fallback_keeps_what_a_full_queue_refused(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("RedisFallback").partition("hub = ")[0], names)
    with RedisServer(tmp_path) as server:
        fallback = names["RedisFallback"](server.url)
        hub = Hub(HubConfig(outbox_messages=1), authenticate=named)
        hub.enable_ack(ACKConfig(max_pending=1))
        hub.add_queue_full_handler(fallback)
        async with running(hub):
            raw, client = await join(hub, "phone&user=ann")
            hub.send_ack_message_to_user("ann", ACKMessage(content="pending"))
            with pytest.raises(PendingFullError):
                hub.send_ack_message_to_user("ann", ACKMessage(content="1"))
            with pytest.raises(QueueFullError):
                hub.send_to_user("ann", HubMessage(content="2", data={"n": 2}))
            with pytest.raises(QueueFullError):
                client.send("3")
            with pytest.raises(QueueFullError):
                client.send(b"4")
            await eventually(lambda: fallback.redis.llen("fallback:ann") == 4)
            kept = [
                msgspec.json.decode(each, type=HubMessage)
                for each in fallback.redis.lrange("fallback:ann", 0, -1)
            ]
            assert [each.content for each in kept] == ["1", "2", "3", ""]
            assert [each.data for each in kept] == [None, {"n": 2}, None, {"bytes": "NA=="}]
            assert {each.to for each in kept} == {"ann"}
            assert client.is_connected()
            raw.close()
        fallback.redis.close()


SOURCES = [
    path
    for folder in ("wsc_fast", "src_cy")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".pyx", ".lua", ".h")
    and path.name != "__init__.py"
    and "demo" not in path.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_stands_in_the_house(path: Path) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    house = page[page.index("## The house") : page.index("The compiled modules form layers")]
    lua = path.suffix == ".lua" and "*.lua" in house
    of_kit = "testing" in path.parts and "testing/ " in house
    named = re.search(rf"(?<![\w]){re.escape(path.name)}\b", house)
    assert lua or of_kit or named, f"give {path.name} a line in docs/architecture.md, 'The house'"
