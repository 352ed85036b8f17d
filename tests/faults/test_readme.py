"""README.md, the list of faults: each fault has tests, and each mark of a test has its fault."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROW = re.compile(r"^\| ([A-H]\d+) \| [^|]+\. \| [^|]+\. \| ([^|]+) \|$", re.M)
ROWS = ROW.findall((FOLDER / "README.md").read_text())
MARK = re.compile(r"^@pytest\.mark\.fault\(number=\"(\w+)\"\)$", re.M)


def marked() -> dict[str, set[str]]:
    """The names of the files that have a test with a mark, by the number of the fault."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in FOLDER.parent.rglob("test_*.py"):
        for number in MARK.findall(path.read_text()):
            found[number].add(path.name)
    return found


MARKED = marked()


def test_each_number_has_one_row_in_order() -> None:
    numbers = [(number[0], int(number[1:])) for number, _ in ROWS]
    assert numbers == sorted(set(numbers))


def test_each_marked_fault_is_in_the_list() -> None:
    assert set(MARKED) <= {number for number, _ in ROWS}


@pytest.mark.parametrize(("number", "files"), ROWS, ids=[number for number, _ in ROWS])
def test_a_row_names_the_files_of_its_tests(number: str, files: str) -> None:
    assert files == ", ".join(f"`{name}`" for name in sorted(MARKED[number]))
    assert files


def test_every_mark_is_written_as_the_list_is_searched() -> None:
    for path in FOLDER.parent.rglob("test_*.py"):
        text = path.read_text()
        assert len(MARK.findall(text)) == len(re.findall(r"^@\w+\.mark\.fault\b", text, re.M)), path


def test_no_name_of_a_test_is_a_number() -> None:
    for path in FOLDER.parent.rglob("test_*.py"):
        assert re.findall(r"def test_[A-Z]+\d+_\w+", path.read_text()) == [], path
