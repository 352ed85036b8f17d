"""The map of the tests, tests/README.md: each file of tests, with the first line of its docstring.

    python -m tests.map     writes it anew

tests/test_style.py looks that it is true.
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "README.md"
# The folders, in the order of the page, and what stands above their tables.
FOLDERS = {
    ".": "By module and by subject",
    "faults": "Faults of peers, networks and systems ([the list](faults/README.md))",
    "examples": "The programs of examples/",
    "clients": "Clients of others",
    "browsers": "Browsers",
    "proxies": "Proxies",
}
HEAD = """\
# The map of the tests

This page lists each file of tests with what it shows. [docs/testing.md](../docs/testing.md) tells
how to run them, and what the longer trials are for. Helpers for tests stand beside them, in files
whose names do not begin with `test_`.
`python -m tests.map` writes this page from the docstrings.
"""


def summary(path: Path) -> str:
    """The first sentence of a file's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return paragraph.replace("|", "\\|").removesuffix(".")


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for folder, title in FOLDERS.items():
        rows = [
            f"| [{path.name}]({path.relative_to(TESTS)}) | {summary(path)} |"
            for path in sorted((TESTS / folder).glob("test_*.py"))
        ]
        parts.append("\n".join([f"## {title}", "", "| file | it shows |", "| --- | --- |", *rows]))
    helpers = [
        f"| [{path.name}]({path.name}) | {summary(path)} |"
        for path in sorted(TESTS.glob("*.py"))
        if not path.name.startswith(("test_", "__"))
    ]
    parts.append("\n".join(["## Helpers", "", "| file | it is |", "| --- | --- |", *helpers]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    PAGE.write_text(page())
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
