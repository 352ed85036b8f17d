"""The pages in Chinese say what the English ones say: no section is missing or older."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.translations import (
    PAGES,
    ROOT,
    Section,
    code,
    digest,
    sections,
    source_of,
    translated,
)

INDEX = ROOT / "docs/zh/index.md"
SECTIONS = [each for page in PAGES for each in translated(page)]
SOURCES = sorted({each.source for each in SECTIONS})


RECIPES = (
    "index first-server send rooms who-may-connect tls-and-proxies routes beside-an-application"
    " slow-clients limits-and-memory stop-and-restart test"
)


def test_the_tutorial_and_most_recipes_are_translated() -> None:
    tutorial = {f"docs/tutorial/{path.name}" for path in (ROOT / "docs/tutorial").glob("*.md")}
    recipes = {f"docs/how-to/{name}.md" for name in RECIPES.split()}
    assert {"README.md", *tutorial, *recipes} <= set(SOURCES)


@pytest.mark.parametrize("source", SOURCES)
def test_each_section_is_translated_once(source: str) -> None:
    wanted = [section.title for section in sections((ROOT / source).read_text())]
    assert [each.title for each in SECTIONS if each.source == source] == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_source_has_not_changed_since(page: Path) -> None:
    stale = []
    for each in translated(page):
        section = source_of(each)
        if section is None or digest(section) != each.noted:
            stale.append(each.title)
    assert stale == [], "translate the changes, then run python -m tests.translations --done"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translation_has_the_code_of_its_source(page: Path) -> None:
    for each in translated(page):
        section = source_of(each)
        assert section is not None
        # Files that are shown stand beside the source.
        own = [re.sub(r"\} (?:\.\./)+tutorial/", "} ", block) for block in code(each.text)]
        wanted = code(section.text)
        if not any("{toctree}" in block for block in wanted):
            assert own == wanted, each.title
        if section.text.strip():
            assert re.search(r"[\u4e00-\u9fff]", each.text), f"{each.title} is not in Chinese"


def test_a_link_leads_to_the_translation_where_there_is_one() -> None:
    in_english, count = [], 0
    for page in [*PAGES, INDEX]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        # A reader may want the original of the page at hand.
        own = {each.source for each in SECTIONS if each.page == page}
        translated_elsewhere = {(ROOT / source).resolve() for source in set(SOURCES) - own}
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", prose):
            count += 1
            if (page.parent / link).resolve() in translated_elsewhere:
                in_english.append(f"{page.name}: {link}")
    assert in_english == []
    assert count > 50


def test_a_change_of_the_source_is_seen_and_one_of_the_width_is_not() -> None:
    section = Section("Title", "some text\nin two lines")
    assert digest(section) == digest(Section("Title", "some text in\ntwo lines"))
    assert digest(section) != digest(Section("Title", "some text in three lines"))
    assert digest(section) != digest(Section("Other", section.text))


def test_a_comment_in_code_is_no_heading() -> None:
    page = "# One\n\n```python\n# no heading\n```\n\n## Two\n\ntext\n"
    assert [section.title for section in sections(page)] == ["One", "Two"]
