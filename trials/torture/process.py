"""A server process of a scenario (server.py), as the scenario sees it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from trials.crowd import Door
from trials.process import Process, ProcessFailedError
from trials.torture.ledger import Ledger, Name, ranges


@dataclass
class Look:
    """The places of messages, and the senders that wait, as a server tells them."""

    server: str
    stored: dict[str, set[Name]] = field(default_factory=dict)
    pending: dict[str, set[Name]] = field(default_factory=dict)
    accepting: list[str] = field(default_factory=list)
    awaiting: list[str] = field(default_factory=list)
    trouble: str = ""

    @classmethod
    def parse(cls, server: str, text: str) -> Look:
        found = json.loads(text)
        for key in ("stored", "pending"):
            found[key] = {
                user: {(sender, number) for sender, number in messages}
                for user, messages in found[key].items()
            }
        return cls(server, **found)

    def keys(self) -> set[object]:
        """A name for each message that is stored, and for each sender that waits."""
        stored = {(user, name) for user, names in self.stored.items() for name in names}
        return stored | {(self.server, who) for who in self.awaiting}

    def forget(self, known: set[object]) -> None:
        """Takes out what is known already, by its name in `keys`."""
        self.stored = {
            user: {name for name in names if (user, name) not in known}
            for user, names in self.stored.items()
        }
        self.awaiting = [who for who in self.awaiting if (self.server, who) not in known]

    def left(self) -> int:
        """How much has not come to its end."""
        return bool(self.trouble) + len(self.awaiting) + sum(map(len, self.stored.values()))

    def where(self, user: str, names: set[Name]) -> str:
        """Tells which of these messages are in the store, and which in the memory of the hub."""
        store = f"unreadable: {self.trouble}" if self.trouble else ""
        if user in self.stored:
            store = ranges(self.stored[user] & names)
        return (
            f"in the store as {self.server} reads it: {store or 'nothing'}; "
            f"pending in {self.server}: {ranges(self.pending.get(user, set()) & names)}"
        )


class Server(Process):
    """A running server process; `start` makes one.

    Attributes:
        module: the program.
    """

    module: ClassVar[str] = "trials.torture.server"

    def __init__(
        self, process: asyncio.subprocess.Process, sender: str, log: Path, ledger: Ledger
    ) -> None:
        super().__init__(process, sender, log)
        self.accepted_since: Counter[str] = Counter()  # by user, from the last `publish` on
        self.refused = 0
        self.last_refusal = ""
        self.ledger = ledger
        self._idle = asyncio.Event()
        self._looks: list[asyncio.Future[Look]] = []

    @classmethod
    async def start(
        cls,
        store: str,
        sender: str,
        door: Door,
        ledger: Ledger,
        log: Path,
        *,
        within: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Starts a process, and returns once it serves.

        Args:
            store: a path, or the URL of a Redis server.
            sender: the name in its messages.
            door: where it listens.
            ledger: what hears of its messages.
            log: the file for its standard error.
            within: a command that runs it in another namespace.
            options: further ones of the program; those that are None are left out.

        Raises:
            ProcessFailedError: it did not get ready.
        """
        listen = (
            ("--socket", str(door.socket.fileno())) if door.shared else ("--port", str(door.port))
        )
        return await cls._start(
            cls.module,
            ["--store", store, "--sender", sender, *listen],
            options,
            sender,
            log,
            ledger,
            within=within or (),
            pass_fds=[door.socket.fileno()] if door.shared else [],
        )

    def _heard(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "accepted":
            user, number = rest.split()
            self.accepted_since[user] += 1
            self.ledger.accept(user, (self.name, int(number)))
        elif word == "refused":
            user, number, self.last_refusal = rest.split(" ", 2)
            self.refused += 1
            self.ledger.refuse(user, (self.name, int(number)))
        elif word == "ready":
            self._ready.set()
        elif word == "idle":
            self._idle.set()
        elif word == "look":
            self._looks.pop(0).set_result(Look.parse(self.name, rest))
        elif word == "stuck":
            text = f"the hub of {self.name} has stopped, and still there waits for {rest}"
            self.ledger.violate("waiting", text)
        elif word == "broken":
            self._broken(f"{self.name}: {json.loads(rest)}")
        else:
            raise ValueError(f"{self.name} says {line!r}")

    def _broken(self, text: str) -> None:
        self.ledger.violate("broken", text)

    # --- commands ---

    def publish(self) -> None:
        self.accepted_since.clear()
        self.refused = 0
        self.last_refusal = ""
        self._tell("publish")

    async def pause(self, patience: float) -> bool:
        """Has it publish no more; whether all that was sent was accepted or refused in time."""
        self._idle.clear()
        self._tell("pause")
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def look(self, patience: float) -> Look:
        """Has it tell which messages are where, and who waits."""
        looking: asyncio.Future[Look] = asyncio.get_running_loop().create_future()
        self._looks.append(looking)
        self._tell("look")
        done, _ = await asyncio.wait(
            [looking, self._reading], timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )
        if looking in done:
            return looking.result()
        return Look(self.name, trouble=f"no answer within {patience:g} s")

    def _tell(self, command: str) -> None:
        if self._reading.done() and not self._leaving:
            raise ProcessFailedError(f"{self.name} has ended")
        self._write(command)
