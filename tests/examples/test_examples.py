"""The folders of examples/: each is in the table of its README.md and has one of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.support import EXAMPLES, awaited, example

FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
ROWS = re.findall(
    r"^\| \[(\w+)\]\((\w+)/README\.md\) \|.*\| `(?:python ([\w./]+)|pytest)` \|$",
    (EXAMPLES / "README.md").read_text(),
    re.M,
)


def test_the_table_has_each_folder_once() -> None:
    assert sorted(name for name, _, _ in ROWS) == FOLDERS
    assert all(name == link for name, link, _ in ROWS)


@pytest.mark.parametrize(("name", "program"), [(name, program) for name, _, program in ROWS])
def test_a_folder_can_be_started_as_its_readme_says(name: str, program: str) -> None:
    assert (EXAMPLES / name / (program or "conftest.py")).is_file()
    assert (program or "pytest") in (EXAMPLES / name / "README.md").read_text()


def test_the_chat(tmp_path: Path) -> None:
    with (
        example("chat/server.py", tmp_path) as server,
        server.connect() as ann,
        server.connect() as bob,
    ):
        assert "<script src=" not in server.ask("/")[1]
        ann.send('{"type": "join_room", "room": "lobby", "name": "ann"}')
        awaited(ann, lambda message: message["type"] == "joined")
        bob.send('{"type": "join_room", "room": "lobby", "name": "bob"}')
        assert awaited(bob, lambda each: each["type"] == "joined")["members"] == ["ann", "bob"]
        ann.send('{"type": "chat_message", "room": "lobby", "text": "hello"}')
        heard = awaited(bob, lambda message: message["type"] == "chat_message")
        assert (heard["name"], heard["text"]) == ("ann", "hello")
        server.logs("connected from 127.0.0.1")
