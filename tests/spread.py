"""Runs the tests on all cores: `python -m tests.spread`, with arguments of pytest.

Tests that must not share the machine are marked `alone`. They run first, in one process. All
others run behind them in several processes, and the last line is pytest's summary of these. Each
file stays in one process, so that what its tests share is made once. The marks divide the tests:
none runs twice, and none is left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

NOTHING_CHOSEN, INTERRUPTED = 5, 2  # exit codes of pytest
# Tests wait most of the time, so that a core has room for more than one process.
PROCESSES = (os.cpu_count() or 1) + 1


def pytest(*arguments: str) -> int:
    """Runs it to its end; returns its exit code."""
    with subprocess.Popen([sys.executable, "-m", "pytest", *arguments]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # pytest has been told as well, and ends in good order


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="marks", default="")
    parser.add_argument("-n", dest="processes", default=str(PROCESSES))
    options, others = parser.parse_known_args(arguments)
    chosen = f" and ({options.marks})" if options.marks else ""

    alone = pytest("-m", f"alone{chosen}", *others)
    if alone == INTERRUPTED:
        return alone
    spread = ("-n", options.processes, "--dist", "loadfile")
    together = pytest(*spread, "-m", f"not alone{chosen}", *others)
    failures = [code for code in (alone, together) if code not in (0, NOTHING_CHOSEN)]
    return failures[0] if failures else min(alone, together)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
