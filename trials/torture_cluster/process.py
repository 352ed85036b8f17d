"""A node of a scenario (node.py), as the scenario sees it."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from trials.crowd import Door
from trials.process import Process
from trials.torture_cluster.findings import Findings

# Words that no log of a node may have.
TROUBLE = ("Traceback", "never retrieved", "was never awaited", "Task was destroyed")


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


class Node(Process):
    """A running node; `start` makes one.

    Attributes:
        program: the module that it runs.
        name: of this life of the node, in its messages.
        door: where it listens.
        last: the last look at it.
        frozen: it was sent SIGSTOP.
    """

    program = "trials.torture_cluster.node"

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        name: str,
        log: Path,
        door: Door,
        findings: Findings,
        unsaid: set[str],
    ) -> None:
        super().__init__(process, name, log)
        self.door = door
        self.last = Look()
        self.frozen = False
        self._findings = findings
        self._unsaid = unsaid
        self._killed = False
        self._number = 0
        self._publishing: dict[int, asyncio.Future[Answer]] = {}
        self._looking: list[asyncio.Future[Look]] = []

    @classmethod
    async def start(
        cls,
        name: str,
        door: Door,
        findings: Findings,
        unsaid: set[str],
        log: Path,
        **options: Any,
    ) -> Self:
        """Starts a node, and returns once it serves.

        Args:
            name: in its messages.
            door: where it listens.
            findings: hears of its trouble.
            unsaid: gets the texts that it could not say to other nodes.
            log: the file for its standard error.
            options: further ones of node.py; those that are None are left out.

        Raises:
            ProcessFailedError: it did not get ready.
        """
        arguments = ["--name", name, "--port", str(door.port)]
        return await cls._start(cls.program, arguments, options, name, log, door, findings, unsaid)

    def _ended(self) -> None:
        for future in [*self._publishing.values(), *self._looking]:
            if not future.done():
                future.set_exception(RefusedError(f"{self.name} has ended"))

    def _broken(self, text: str) -> None:
        self._findings.add("broken", text)

    def _heard(self, text: str) -> None:
        line: dict[str, Any] = json.loads(text)
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

    # --- commands ---

    def _tell(self, do: str, **fields: Any) -> None:
        if self._reading.done() or self._killed:
            raise RefusedError(f"{self.name} has ended")
        self._write(json.dumps({"do": do, **fields}))

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
        await super().kill()


def trouble(log: Path) -> list[str]:
    """The lines of a log that should not be there, with those behind them."""
    lines = log.read_text(errors="replace").splitlines()
    return [
        " | ".join(lines[number : number + 30])
        for number, line in enumerate(lines)
        if any(word in line for word in TROUBLE)
    ]
