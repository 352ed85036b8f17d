"""`serve --reload`: the hub in a process of its own, which starts again when a file changes.

The watching process imports nothing of the application, so that an error of it ends the serving
process alone: the watching one says so, and waits for the next change.

The watching process holds the listening sockets (held_port.py), so that who connects meanwhile
waits for the next serving one. A pipe ties the two, so that the hub also stops where the watching
process was killed (reloaded.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wsc_fast.cli.held_port import HeldPort
from wsc_fast.cli.output import UsageFailure, say

# Seconds between two looks at the files.
INTERVAL = 0.25
# Seconds that a hub may take to stop behind its drain; then it is killed.
PATIENCE = 15.0

_LEFT_OUT = {"__pycache__", "node_modules", "site-packages", "build", "dist"}


class Supervisor:
    """Runs `wsc-fast` with some arguments, again and again.

    Args:
        arguments: of the command, without --reload, --host and --port.
        port: to listen on.
        folders: their Python files are watched, folders within them too.
        files: these are watched as well.
        drain: seconds that a hub takes for sending its clients away.

    Raises:
        UsageFailure: a folder is none.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        port: HeldPort,
        folders: Sequence[Path],
        files: Sequence[Path],
        drain: float,
    ) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UsageFailure(f"{folder} is no folder to watch")
        self._arguments = arguments
        self._port = port
        self._folders, self._files = folders, files
        self._patience = drain + PATIENCE
        self._stopping = False

    def run(self) -> int:
        """Until a signal ends it, or the hub stops by itself.

        Returns:
            int: the exit code.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        say(f"watching {', '.join(map(str, self._folders))} for changes")
        # Nobody writes to it, and nobody else has the end for writing: it ends with this process.
        tie, _ = os.pipe()
        sockets = self._port.descriptors(0)
        words = ["-m", "wsc_fast.cli.reloaded", str(tie), str(self._patience), *self._arguments]
        words.append(f"--sockets={','.join(map(str, sockets))}")
        while not self._stopping:
            seen = self._times()
            # A group of its own, so that Ctrl-C reaches it once, by way of this process.
            with subprocess.Popen(
                [sys.executable, *words], process_group=0, pass_fds=[tie, *sockets]
            ) as child:
                try:
                    changed = self._wait(child, seen)
                finally:
                    self._end(child)
            if not changed and not self._stopping:
                return 0
        return 0

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _wait(self, child: subprocess.Popen[bytes], seen: dict[Path, int]) -> bool:
        """Until a file changes (True), a signal comes, or the hub ends as it should."""
        failed = False
        while not self._stopping:
            if not failed and child.poll() is not None:
                if child.returncode == 0:
                    return False
                failed = True
                say("the hub has ended: waiting for a change", "yellow")
            now = self._times()
            if now != seen:
                say(f"{_first_of(now, seen)} has changed: starting again", "yellow")
                return True
            time.sleep(INTERVAL)
        return False

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(self._patience)
            except subprocess.TimeoutExpired:
                say(f"the hub has not stopped in {self._patience:g} s: killed", "red")
                child.kill()

    def _times(self) -> dict[Path, int]:
        """When each file changed last."""
        times = {}
        for path in (*self._files, *_python_files(self._folders)):
            try:
                times[path] = path.stat().st_mtime_ns
            except OSError:
                continue  # it went while we looked
        return times


def _python_files(folders: Iterable[Path]) -> Iterator[Path]:
    for top in folders:
        for folder, below, files in os.walk(top):
            below[:] = [
                name
                for name in below
                if not name.startswith(".")
                and name not in _LEFT_OUT
                and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
            ]
            yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _first_of(now: dict[Path, int], seen: dict[Path, int]) -> Path:
    """One of the files that differ."""
    return sorted(path for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))[0]
