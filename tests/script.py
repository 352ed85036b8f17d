"""Python programs in processes of their own, which tell their port and are told to end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The beginning of a program: `announced(hub).run(port=0)` prints the port. `run` blocks, so that a
# thread has to do it. It is no daemon: one that is printing while the interpreter ends aborts it.
# The program configures logging, so that `run` does not, and standard error has warnings alone.
ANNOUNCE = """
    import logging, threading, time
    from wsc_fast import HubStateError

    logging.basicConfig(level=logging.WARNING)

    def announce(hub):
        while threading.main_thread().is_alive():
            try:
                print(hub.port, flush=True)
                return
            except HubStateError:
                time.sleep(0.005)

    def announced(hub):
        threading.Thread(target=announce, args=(hub,)).start()
        return hub
"""


class Script:
    """A Python program in a process of its own; its first line of output is a port."""

    def __init__(self, code: str, *args: str, stdin: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *args],
            cwd=ROOT,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def port(self) -> int:
        line = self.line()
        assert line, self.finish()
        return int(line)

    def line(self) -> str:
        """The next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def finish(self) -> tuple[int, str, str]:
        """Exit code, what is left of stdout, and stderr."""
        assert self.process.stdout is not None
        ending = threading.Timer(20, self.process.kill)
        ending.start()
        out = self.process.stdout.read()  # not communicate's, which misses what `port` has buffered
        _, err = self.process.communicate()
        ending.cancel()
        return self.process.returncode, out, err

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *args: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
