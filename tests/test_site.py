"""The site of the docs builds without a warning, and its links lead somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest

import wsc_fast
from tests.test_style import public_methods
from wsc_fast import Client, Hub

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Links of the theme to the project that it is, in each page.
FORGE = "https://github.com/wsc-fast/wsc_fast/"


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Builds a site as `make docs` does, with the settings of ours.

    Args:
        source: the folder with its pages.
        out: where it goes.
        options: further ones of Sphinx.
    """
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    return subprocess.run(
        [*command, "-c", str(DOCS), *options, str(source), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Page(HTMLParser):
    """The anchors and the links of a page of the site."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value and tag in ("a", "img", "link", "script"):
                self.links.add(value)


class Site(NamedTuple):
    """A site that was built: its folder, and its pages by their paths in it."""

    root: Path
    pages: dict[Path, Page]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert (done.returncode, done.stderr) == (0, "")
    return Site(out, {path: Page(path.read_text()) for path in out.rglob("*.html")})


def test_each_page_of_the_docs_is_in_the_site(site: Site) -> None:
    sources = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert sources <= {path.relative_to(site.root) for path in site.pages}


def test_each_link_within_the_site_leads_somewhere(site: Site) -> None:
    broken, count = [], 0
    for path, page in site.pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            of_page = parts.fragment and target.suffix == ".html"
            if not target.exists() or (
                of_page and unquote(parts.fragment) not in site.pages[target].anchors
            ):
                broken.append(f"{path.name}: {link}")
    assert broken == []
    assert count > 1_000


def test_each_link_to_the_forge_leads_to_a_file(site: Site) -> None:
    paths = set()
    for page in site.pages.values():
        for link in page.links:
            if link.startswith((f"{FORGE}blob/main/", f"{FORGE}tree/main/")):
                paths.add(urlsplit(link.split("/main/", 1)[1]).path)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert "deploy/README.md" in paths


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    for path in site.pages:
        text = path.read_text()
        assert 'src="http' not in text, path
        assert '<link rel="stylesheet" href="http' not in text, path


def test_the_search_knows_the_pages(site: Site) -> None:
    index = (site.root / "searchindex.js").read_text()
    assert "several-servers" in index
    assert "conflat" in index  # as the search stems it


def test_each_public_name_has_its_docstring_in_the_site(site: Site) -> None:
    names = [f"wsc_fast.{name}" for name in wsc_fast.__all__]
    for cls in (Hub, Client):
        methods = public_methods(cls)
        assert len(methods) > 5
        names += [f"wsc_fast.{cls.__name__}.{name}" for name, _ in methods]
    anchors = {anchor for page in site.pages.values() for anchor in page.anchors}
    assert [name for name in names if name not in anchors] == []


def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    broken = {
        "page": "[elsewhere](gone.md)",
        "anchor": "[a part](#nowhere)",
        "contents": "```{toctree}\nabsent\n```",
        "picture": "![a picture](lost.svg)",
    }
    source = tmp_path / "source"
    source.mkdir()
    text = "\n\n".join(["# Page", *broken.values()])
    (source / "index.md").write_text(text + "\n")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0
    for said in ("gone.md", "nowhere", "absent", "lost.svg"):
        assert said in done.stderr


def test_the_pictures_of_the_concepts_are_those_of_their_script(tmp_path: Path) -> None:
    script = DOCS / "images/concepts.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=60)
    pages = "".join(path.read_text() for path in (DOCS / "concepts").glob("*.md"))
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 4
    for path in drawn:
        assert path.read_text() == (DOCS / "images" / path.name).read_text(), "draw them anew"
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert f"](../images/{path.name})" in pages
