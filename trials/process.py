"""A program of a scenario in a process of its own, which is told commands and answers in lines."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

# Seconds in which a program starts, or ends after a signal.
START, STOP = 90.0, 30.0
# Most bytes of a line.
LINE = 1 << 26


class ProcessFailedError(Exception):
    """A program did not start, or ended by itself; the scenario cannot go on."""


class Process:
    """A running program; `_start` of a subclass makes one.

    Attributes:
        name: as reports name it.
        log: the file for its standard error.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process
        self._leaving = False
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def _start(
        cls,
        program: str,
        arguments: Sequence[str],
        options: dict[str, Any],
        name: str,
        log: Path,
        *more: Any,
        within: Sequence[str] = (),
        pass_fds: Collection[int] = (),
    ) -> Self:
        """Starts a program, and returns once it has said that it is ready.

        Args:
            program: the module to run.
            arguments: of it.
            options: further ones; those that are None are left out.
            name: see the class.
            log: see the class.
            more: further arguments of the class.
            within: a command that runs it in another namespace.
            pass_fds: descriptors that it inherits.

        Raises:
            ProcessFailedError: it did not get ready.
        """
        chosen = [f"--{key}={value}" for key, value in options.items() if value is not None]
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(*within, sys.executable, "-m", program, *arguments, *chosen),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                pass_fds=pass_fds,
                limit=LINE,
            )
        self = cls(process, name, log, *more)
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait(
            [ready, self._reading], timeout=START, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not self._ready.is_set():
            await self.kill()
            raise ProcessFailedError(f"{name} did not get ready: {self.last_words()}")
        return self

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):  # a program that is killed may leave half a line
                self._heard(line.decode().rstrip("\n"))
        status = await self._process.wait()
        self._ended()
        if not self._leaving:
            self._broken(f"{self.name} ended by itself ({status}): {self.last_words()}")

    def _heard(self, line: str) -> None:
        """It has printed a line; for subclasses."""
        raise NotImplementedError

    def _ended(self) -> None:
        """Nothing more comes of it; for subclasses."""

    def _broken(self, text: str) -> None:
        """It has done what a program must not do; for subclasses."""
        raise NotImplementedError

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-8:]) or "it has logged nothing"

    def _write(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    async def kill(self) -> None:
        """kill -9; returns once all that it had printed has been read."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> None:
        """SIGTERM; returns once it has ended."""
        status = await self._end(signal.SIGTERM)
        if status:
            self._broken(f"{self.name} ended with status {status}: {self.last_words()}")

    async def _end(self, with_signal: signal.Signals) -> int:
        """Ends it; returns its status, 0 where it had to be killed."""
        self._leaving = True
        if self._process.returncode is None:
            self._process.send_signal(with_signal)
        try:
            async with asyncio.timeout(STOP):
                status = await self._process.wait()
        except TimeoutError:
            self._broken(f"{self.name} did not end within {STOP:g} s")
            self._process.kill()
            status = 0
        await self._reading
        return status
