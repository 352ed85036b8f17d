"""Trials that a test runs in short, as a user does, and the tables that they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def play(module: str, *arguments: str, timeout: float) -> tuple[int, list[dict[str, str]], str]:
    """Runs a trial.

    Args:
        module: its program.
        arguments: of the command.
        timeout: seconds.

    Returns:
        tuple: the exit status, the rows of its tables by column, and all that it said.
    """
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    columns: list[str] = []
    rows = []
    for line in run.stdout.splitlines():
        words = line.strip("| ").split(" | ")
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = words
        elif words[0] != "---":
            rows.append(dict(zip(columns, words, strict=True)))
    return run.returncode, rows, run.stdout + run.stderr
