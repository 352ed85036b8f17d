"""Runs tests under valgrind, and fails where a report has one of our modules in its stack.

Python, uvloop and OpenSSL are not built for valgrind and make reports of their own, of reads that
their authors know of. No pattern suppresses them, since it might hide ours too; a report counts
where a frame of it, or of where its memory came from, is in wsc_fast. PYTHONMALLOC=malloc, since
valgrind sees no smaller piece of memory than what is malloc'ed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = ("tests/test_outbox.py", "tests/test_hub_smoke.py", "tests/test_fuzz_corpus.py")
OURS = re.compile(r"wsc_fast|src_cy|\bwsc_[a-z]")


def main() -> int:
    arguments = sys.argv[1:] or TESTS
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--quiet", "--num-callers=16", f"--log-file={folder}/%p"]
        command += [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--timeout=1800",
        ]
        status = subprocess.run(
            [*command, *arguments], env=os.environ | {"PYTHONMALLOC": "malloc"}, check=False
        ).returncode
        reports: list[str] = []
        for path in Path(folder).iterdir():
            text = re.sub(r"(?m)^==\d+== ?", "", path.read_text(errors="replace"))
            reports += [report for report in text.split("\n\n") if report.strip()]
    ours = [report for report in reports if OURS.search(report)]
    print(f"valgrind: {len(reports)} reports, {len(ours)} of them with our modules")
    print("\n\n".join(ours))
    return status or bool(ours)


if __name__ == "__main__":
    sys.exit(main())
