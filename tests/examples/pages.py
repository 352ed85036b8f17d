"""The pages of examples in a browser, and the simulated people of some.

`WSC_SHOTS=FOLDER` keeps screenshots.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tests.examples.support import EXAMPLES, PATIENCE, ROOT, Example

if TYPE_CHECKING:
    from tests.browsers.window import Window

PHONE = (390, 780)
DESK = (1200, 800)

Open = Callable[..., "Window"]


def number(window: Window, css: str) -> float:
    """The number that an element shows; -1 before it shows one."""
    text = window.text(css)
    return float(text) if text.replace(".", "").isdigit() else -1.0


def crowd(server: Example, folder: Path, program: str, *options: str) -> str:
    """Runs the simulated people of an example to their end; what they print."""
    command = [sys.executable, str(EXAMPLES / program), "--port", str(server.port), *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout
