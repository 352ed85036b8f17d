"""Foreign programs as a test's peers: found or skipped, started with a log, ended without a trace.

With WSC_REQUIRE_CLIENTS=1 a program that is missing fails the test, so that CI cannot skip it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def needed(*names: str) -> str:
    """Where the first of these programs is that is installed; without one skips, or fails."""
    # Debian has servers where only root looks.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    missing = f"{' or '.join(names)} is not installed"
    if os.environ.get("WSC_REQUIRE_CLIENTS") == "1":
        pytest.fail(f"{missing}, and WSC_REQUIRE_CLIENTS is set")
    pytest.skip(missing)


class Program:
    """A running program; `log` is the file of all that it writes."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._killed = False
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                pass_fds=pass_fds,
                cwd=cwd,
                start_new_session=True,
            )

    def said(self) -> str:
        """The end of its log, for a message."""
        return self.log.read_text(errors="replace")[-2000:]

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kills it and its children at once, as a crash or an empty battery would."""
        if not self._killed:
            self._killed = True
            # A group lives as long as one of its processes; it may have lost its first one.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def started(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> Iterator[Program]:
    """Runs a program, and kills it in the end; what it said is added to an exception.

    Args:
        command: with its arguments.
        log: for what it writes.
        env: all of its environment.
        pass_fds: open files that it inherits.
        cwd: the folder in which it runs; None: that of the test.
    """
    program = Program(command, log, env, pass_fds, cwd)
    try:
        yield program
    except Exception as error:
        error.add_note(f"{log}: {program.said()}")
        raise
    finally:
        program.kill()
