"""A node of a scenario (node.py), as the scenario sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trials.torture.users import Door
from trials.torture_cluster.findings import Findings

# Seconds in which a node starts, or ends after SIGTERM.
START, STOP = 30.0, 20.0
# Words that no log of a node may have.
TROUBLE = ("Traceback", "never retrieved", "was never awaited", "Task was destroyed")


class NodeFailedError(Exception):
    """A node did not start, or ended by itself."""


class RefusedError(Exception):
    """A publish had an error, or no answer: nobody knows whether it was published."""


@dataclass(frozen=True)
class Answer:
    """The answer to a publish."""

    position: str
    duplicate: bool


@dataclass
class Look:
    """The tasks, rooms and counters of a node, as it tells them."""

    tasks: list[str] = field(default_factory=list)
    clients: int = 0
    rooms: list[str] = field(default_factory=list)
    cluster: dict[str, int] = field(default_factory=dict)
    bus: dict[str, float] = field(default_factory=dict)


class Node:
    """A running node; `start` makes one.

    Attributes:
        name: of this life of the node, in its messages.
        door: where it listens.
        last: the last look at it.
        frozen: it was sent SIGSTOP.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        name: str,
        door: Door,
        findings: Findings,
        unsaid: set[str],
        log: Path,
    ) -> None:
        self.name = name
        self.door = door
        self.last = Look()
        self.frozen = False
        self._process = process
        self._findings = findings
        self._unsaid = unsaid
        self._log = log
        self._leaving = self._killed = False
        self._ready = asyncio.Event()
        self._number = 0
        self._publishing: dict[int, asyncio.Future[Answer]] = {}
        self._looking: list[asyncio.Future[Look]] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        name: str,
        door: Door,
        findings: Findings,
        unsaid: set[str],
        log: Path,
        **options: Any,
    ) -> Node:
        """Starts a node, and returns once it serves.

        Args:
            name: in its messages.
            door: where it listens.
            findings: hears of its trouble.
            unsaid: gets the texts that it could not say to other nodes.
            log: the file for its standard error.
            options: further ones of node.py; those that are None are left out.

        Raises:
            NodeFailedError: it did not get ready.
        """
        more = [f"--{key}={value}" for key, value in options.items() if value is not None]
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "trials.torture_cluster.node"),
                *("--name", name, "--port", str(door.port)),
                *more,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=1 << 22,
            )
        node = cls(process, name, door, findings, unsaid, log)
        ready = asyncio.create_task(node._ready.wait())
        await asyncio.wait(
            [ready, node._reading], timeout=START, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not node._ready.is_set():
            words = node.last_words()
            await node.kill()
            raise NodeFailedError(f"{name} did not get ready: {words}")
        return node

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):  # what is killed may leave half a line
                self._heard(json.loads(line))
        status = await self._process.wait()
        for future in [*self._publishing.values(), *self._looking]:
            if not future.done():
                future.set_exception(RefusedError(f"{self.name} has ended"))
        if not self._leaving:
            text = f"{self.name} ended by itself ({status}): {self.last_words()}"
            self._findings.add("broken", text)

    def _heard(self, line: dict[str, Any]) -> None:
        kind = line.pop("is")
        if kind == "unsaid":
            self._unsaid.add(line["text"])
        elif kind == "ready":
            self._ready.set()
        elif kind == "look":
            looking = self._looking.pop(0)
            if not looking.done():
                looking.set_result(Look(**line))
        else:
            future = self._publishing.pop(line["number"])
            if future.done():
                return
            if kind == "published":
                future.set_result(Answer(line["position"], line["duplicate"]))
            else:
                future.set_exception(RefusedError(line["error"]))

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-8:]) or "it has logged nothing"

    # --- commands ---

    def _tell(self, do: str, **fields: Any) -> None:
        if self._reading.done() or self._killed:
            raise RefusedError(f"{self.name} has ended")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")

    async def publish(self, room: str, text: str, key: str | None, patience: float) -> Answer:
        """Has it publish.

        Raises:
            RefusedError: an error, no answer in time, or the end of the node.
        """
        self._number += 1
        self._tell("publish", number=self._number, room=room, text=text, key=key)
        future = self._publishing[self._number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience):
                return await future
        except TimeoutError:
            raise RefusedError(f"{self.name} did not answer within {patience:g} s") from None

    def say(self, room: str, text: str) -> None:
        """Has it broadcast to a room."""
        self._tell("say", room=room, text=text)

    def chat(self, on: bool) -> None:
        """Has it talk in the plain room, or be silent."""
        self._tell("chat", on=on)

    async def look(self, patience: float) -> Look:
        """Has it look at itself.

        Raises:
            RefusedError: no answer in time, or the end of the node.
        """
        self._tell("look")
        future: asyncio.Future[Look] = asyncio.get_running_loop().create_future()
        self._looking.append(future)
        try:
            async with asyncio.timeout(patience):
                self.last = await future
        except TimeoutError:
            raise RefusedError(f"{self.name} did not answer within {patience:g} s") from None
        return self.last

    # --- faults, and the end ---

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """kill -9; returns once all that it had printed has been read."""
        self._killed = True
        await self._end(lambda: self._process.send_signal(signal.SIGKILL))

    async def terminate(self) -> None:
        """SIGTERM; returns once it has drained and ended."""
        await self._end(lambda: self._process.send_signal(signal.SIGTERM), judged=True)

    async def _end(self, signals: Callable[[], None], *, judged: bool = False) -> None:
        self._leaving = True
        if self._process.returncode is None:
            signals()
        try:
            async with asyncio.timeout(STOP):
                status = await self._process.wait()
        except TimeoutError:
            self._findings.add("broken", f"{self.name} did not end within {STOP:g} s")
            self._process.kill()
            status = 0
        await self._reading
        if judged and status:
            text = f"{self.name} ended with status {status}: {self.last_words()}"
            self._findings.add("broken", text)


def trouble(log: Path) -> list[str]:
    """The lines of a log that should not be there, with those behind them."""
    lines = log.read_text(errors="replace").splitlines()
    return [
        " | ".join(lines[number : number + 30])
        for number, line in enumerate(lines)
        if any(word in line for word in TROUBLE)
    ]
