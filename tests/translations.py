"""The pages in Chinese, and the sections of English pages that they translate.

Above each heading of a translation stands a comment with the source, its heading, and a hash of
its text:

    <!-- docs/tutorial/echo.md: 1. Echo, 3f2a91bc -->

`python -m tests.translations` lists the sections whose source has changed since. With `--done` it
writes the new hashes, once somebody has translated the changes.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# The index leads to the others, and translates nothing.
PAGES = [
    ROOT / "README.zh-CN.md",
    *sorted(path for path in (ROOT / "docs/zh").rglob("*.md") if path.parent.name != "zh"),
]
NOTE = re.compile(r"^<!-- ([\w./-]+): (.+), (\w*) -->$", re.M)


class Section(NamedTuple):
    """A heading, and the text below it up to the next heading of any level."""

    title: str
    text: str


class Translated(NamedTuple):
    """A section of a translation: where its source is, the hash that it noted, its text."""

    page: Path
    source: str
    title: str
    noted: str
    text: str


def sections(text: str) -> list[Section]:
    """The sections of a page; headings within code are none."""
    found: list[tuple[str, list[str]]] = []
    in_code = False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        heading = None if in_code else re.match(r"#+ (.+)", line)
        if heading:
            found.append((heading[1], []))
        elif found:
            found[-1][1].append(line)
    return [Section(title, "\n".join(lines)) for title, lines in found]


def digest(section: Section) -> str:
    """A hash that does not change with the width of lines."""
    words = " ".join([section.title, *section.text.split()])
    return hashlib.sha256(words.encode()).hexdigest()[:8]


def translated(page: Path) -> list[Translated]:
    """The sections of a translation, each with the comment above it."""
    text = page.read_text()
    own = sections(text)
    notes = NOTE.findall(text)
    assert len(own) == len(notes), f"{page.name}: each heading has one comment above it"
    return [
        Translated(page, source, title, noted, section.text)
        for (source, title, noted), section in zip(notes, own, strict=True)
    ]


def source_of(each: Translated) -> Section | None:
    """The section that is translated, if it is still there."""
    for section in sections((ROOT / each.source).read_text()):
        if section.title == each.title:
            return section
    return None


def code(text: str) -> list[str]:
    """The blocks of code of a section, without links to files beside the page."""
    fenced = re.findall(r"^```.*?^```$", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [*fenced, *re.findall(r"^ {4}\S.*$", rest, re.M)]


def main() -> int:
    """Lists what has changed, or notes that it is translated."""
    stale = 0
    for page in PAGES:
        text = page.read_text()
        for each in translated(page):
            section = source_of(each)
            new = digest(section) if section else "gone"
            if new != each.noted:
                stale += 1
                print(f"{page.relative_to(ROOT)}: {each.source}, {each.title}")
                old = f"<!-- {each.source}: {each.title}, {each.noted} -->"
                text = text.replace(old, f"<!-- {each.source}: {each.title}, {new} -->")
        if "--done" in sys.argv:
            page.write_text(text)
    return 1 if stale and "--done" not in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
