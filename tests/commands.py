"""The commands of `wsc-fast` as typer has them, and their tables in docs/command-line.md.

`python -m tests.commands` writes the tables anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.main

from wsc_fast.cli.app import app

PAGE = Path(__file__).parents[1] / "docs/command-line.md"
# Options that typer adds to the program itself, and to each command.
_OF_TYPER = {"--install-completion", "--show-completion", "--help"}


def commands() -> dict[str, Any]:
    """Each command by its name."""
    group: Any = typer.main.get_command(app())
    return dict(group.commands)


def table_of(command: Any) -> str:
    """The arguments and options of a command as a table."""
    rows = ["| argument or option | default | meaning |", "| --- | --- | --- |"]
    for each in command.params:
        if _OF_TYPER & set(each.opts) or each.hidden:
            continue
        is_option = each.opts[0].startswith("-")
        names = ", ".join(f"`{name}`" for name in each.opts) if is_option else f"`{each.metavar}`"
        rows.append(f"| {names} | {_default(each)} | {each.help.replace('|', '/')} |")
    return "\n".join(rows)


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    return "" if default in (None, False, ()) else f"`{default}`"


_SECTION = re.compile(r"^## ([a-z-]+)\n(.*?)(?=^## |\Z)", re.M | re.S)
_TABLE = re.compile(r"^\| argument or option .*(?:\n\|.*)*", re.M)


def tables_in(page: str) -> dict[str, str]:
    """The tables of the page by their commands: each stands under the heading of its command."""
    return {
        name: table for name, text in _SECTION.findall(page) for table in _TABLE.findall(text)[:1]
    }


def main() -> None:
    def renewed(section: re.Match[str]) -> str:
        command = commands().get(section[1])
        if command is None:
            return section[0]
        return _TABLE.sub(lambda _: table_of(command), section[0])

    PAGE.write_text(_SECTION.sub(renewed, PAGE.read_text()))


if __name__ == "__main__":
    main()
