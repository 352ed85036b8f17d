"""The results of a trial: a directory for its data and logs, and its table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any


def directory_of(title: str, parent: Path | None) -> AbstractContextManager[str]:
    """A directory for one row of the table.

    Args:
        title: of the row.
        parent: the directory that it is made in, and stays in; None: it is a temporary one.
    """
    if parent is None:
        return tempfile.TemporaryDirectory()
    directory = parent.absolute() / title.replace(" ", "-")
    directory.mkdir(parents=True)
    return nullcontext(str(directory))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table in Markdown."""
    print()
    for row in [columns, ["---"] * len(columns), *rows]:
        print("| " + " | ".join(f"{each:,}" if type(each) is int else each for each in row) + " |")
