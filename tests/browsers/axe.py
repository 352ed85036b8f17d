"""axe-core, which finds what keeps people with a screen reader or poor sight from using a page.

npm installs it below build/, once. Tests skip where npm or its registry is not there.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.clients.javascript import npm
from tests.clients.node_peers import BUILD, NPM_OPTIONS

HERE = Path(__file__).parent
# Runs behind the source; returns a line about each element that a rule complains of.
FIND = """
    const found = await axe.run(document, {
        runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    });
    return found.violations.flatMap(({ id, nodes }) =>
        nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
"""


@functools.cache
def source() -> str:
    """The script that makes `axe` in a page."""
    place = BUILD / "axe"
    wanted = (HERE / "package-lock.json").read_bytes()
    lock = place / "package-lock.json"
    if not lock.exists() or lock.read_bytes() != wanted:
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            made = Path(scratch) / "axe"
            made.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, made)
            if npm(made, "ci", *NPM_OPTIONS).returncode:
                pytest.skip("npm cannot install axe-core")
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
    return (place / "node_modules" / "axe-core" / "axe.min.js").read_text()
