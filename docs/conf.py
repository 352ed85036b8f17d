"""How Sphinx builds the site from these pages: `make docs`.

The pages are plain Markdown that reads well on the forge, too. So they link to each other, and to
files of the repository, by relative paths. A link to a file that is no page of the site becomes a
link to the forge here.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import picows
from pygments.lexers.special import TextLexer
from sphinx.util import logging

import wsc_fast

ROOT = Path(__file__).parents[1]
FORGE = "https://github.com/wsc-fast/wsc_fast"

project = "wsc_fast"
author = "The wsc_fast developers"
copyright = author
release = wsc_fast.__version__
version = release.partition("+")[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# Blocks without a language are signatures, commands and files of several kinds.
highlight_language = "text"

# Headings have the anchors that the forge gives them. An address is a link only with its scheme.
myst_enable_extensions = ["linkify", "strikethrough"]
myst_heading_anchors = 4
myst_linkify_fuzzy_links = False

# Docstrings have the sections of Google's style. A name between single backticks is code.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"wsc_fast {version}"
html_theme_options = {
    "source_repository": FORGE,
    "source_branch": "main",
    "source_directory": "docs/",
}

# `make docs LINKS=1` asks other servers. Examples have none, and the forge is this repository.
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1|app\.example)", rf"{re.escape(FORGE)}.*"]
linkcheck_timeout = 20
linkcheck_retries = 2

LINK = re.compile(r"\]\((?P<name>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)


def link_to_the_forge(app: Any, docname: str, source: list[str]) -> None:
    """Turns links to files that are no pages of the site into links to the forge.

    A link that leads nowhere is a warning, which ends the build.

    Args:
        app: Sphinx.
        docname: the page.
        source: its text, as a list with one item, which is replaced.
    """
    page = Path(app.env.doc2path(docname))

    def turned(match: re.Match[str]) -> str:
        target = (page.parent / match["name"]).resolve()
        if not target.exists():
            logging.getLogger(__name__).warning(
                "a link to %s, which is not there", match["name"], location=docname
            )
        if target.is_relative_to(app.srcdir) and target.suffix in (".md", ".svg", ".png"):
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(ROOT) if target.is_relative_to(ROOT) else match["name"]
        return f"]({FORGE}/{kind}/main/{path}{match['anchor'] or ''})"

    parts = FENCED.split(source[0])
    parts[::2] = [LINK.sub(turned, text) for text in parts[::2]]
    source[0] = "".join(parts)


def without_self(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """A method's signature as callers see it; Cython's begin with `self`."""
    return signature and re.sub(r"^\(self(?:, )?", "(", signature), returned


# Methods that a transport of asyncio and picows call. They are no names for an application.
OF_TRANSPORTS = {*dir(asyncio.BufferedProtocol), *dir(picows.WSListener)}


def is_left_out(
    app: Any, what: str, name: str, obj: Any, is_skipped: bool, options: Any
) -> bool | None:
    """Whether a member has no place on a page; None leaves it to autodoc."""
    return True if name in OF_TRANSPORTS else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_the_forge)
    app.connect("autodoc-process-signature", without_self)
    app.connect("autodoc-skip-member", is_left_out)
    for language in ("caddy", "haproxy"):  # Pygments has none for them
        app.add_lexer(language, TextLexer)
