"""The command line: `wsc-fast`, and `python -m wsc_fast`. Needs the extra `cli` (typer, rich).

A command is a file, which declares its arguments and options in one function. All else that it
needs is imported when it runs, so that `--help` and completion are quick.

- A mistake of the user's is one red line on standard error, never a traceback: `Failure`.
- Standard output has the results alone; standard error has all that is said about them.
- Exit codes: 0 done, 1 failed, 2 wrong usage, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process."""
    try:
        import typer  # noqa: F401
    except ImportError:
        sys.exit("wsc-fast needs the extra 'cli': pip install 'wsc_fast[cli]'")
    from wsc_fast.cli.app import run

    sys.exit(run())
