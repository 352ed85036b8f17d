"""A server process of a scenario (server.py), as the scenario sees it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from trials.torture.ledger import Ledger, Name, ranges
from trials.torture.users import Door

# Seconds in which a server starts, or stops after SIGTERM.
START, STOP = 90.0, 30.0
# Most bytes of a line: a Look names the messages of all users.
LINE = 1 << 26


class ServerFailed(Exception):
    """A server did not start, or ended by itself; the scenario cannot go on."""


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


class Server:
    """A running server process; `start` makes one.

    Attributes:
        module: the program.
    """

    module: ClassVar[str] = "trials.torture.server"

    def __init__(
        self, process: asyncio.subprocess.Process, sender: str, ledger: Ledger, log: Path
    ) -> None:
        self.sender = sender
        self.accepted_since: Counter[str] = Counter()  # by user, from the last `publish` on
        self.refused = 0
        self.last_refusal = ""
        self.log = log
        self._process = process
        self.ledger = ledger
        self._leaving = False
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._looks: list[asyncio.Future[Look]] = []
        self._reading = asyncio.create_task(self._read())

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
            ServerFailed: it did not get ready.
        """
        listen = (
            ("--socket", str(door.socket.fileno())) if door.shared else ("--port", str(door.port))
        )
        more = [f"--{name}={value}" for name, value in options.items() if value is not None]
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(within or []),
                *(sys.executable, "-m", cls.module),
                *("--store", store, "--sender", sender),
                *listen,
                *more,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                pass_fds=[door.socket.fileno()] if door.shared else [],
                limit=LINE,
            )
        server = cls(process, sender, ledger, log)
        ready = asyncio.create_task(server._ready.wait())
        await asyncio.wait(
            [ready, server._reading], timeout=START, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not server._ready.is_set():
            await server.kill()
            raise ServerFailed(f"{sender} did not get ready: {server.last_words()}")
        return server

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):  # what is killed may leave half a line
                self.heard(line.decode().rstrip("\n"))
        if not self._leaving:
            status = await self._process.wait()
            self.ledger.violate(
                "broken", f"{self.sender} ended by itself ({status}): {self.last_words()}"
            )

    def heard(self, line: str) -> None:
        """Takes a line that it has printed."""
        word, _, rest = line.partition(" ")
        if word == "accepted":
            user, number = rest.split()
            self.accepted_since[user] += 1
            self.ledger.accept(user, (self.sender, int(number)))
        elif word == "refused":
            user, number, self.last_refusal = rest.split(" ", 2)
            self.refused += 1
            self.ledger.refuse(user, (self.sender, int(number)))
        elif word == "ready":
            self._ready.set()
        elif word == "idle":
            self._idle.set()
        elif word == "look":
            self._looks.pop(0).set_result(Look.parse(self.sender, rest))
        elif word == "stuck":
            text = f"the hub of {self.sender} has stopped, and still there waits for {rest}"
            self.ledger.violate("waiting", text)
        elif word == "broken":
            self.ledger.violate("broken", f"{self.sender}: {json.loads(rest)}")
        else:
            raise ValueError(f"{self.sender} says {line!r}")

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-8:]) or "it has logged nothing"

    # --- commands ---

    def publish(self) -> None:
        self.accepted_since.clear()
        self.refused = 0
        self.last_refusal = ""
        self.tell("publish")

    async def pause(self, patience: float) -> bool:
        """Has it publish no more; whether all that was sent was accepted or refused in time."""
        self._idle.clear()
        self.tell("pause")
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
        self.tell("look")
        done, _ = await asyncio.wait(
            [looking, self._reading], timeout=patience, return_when=asyncio.FIRST_COMPLETED
        )
        if looking in done:
            return looking.result()
        return Look(self.sender, trouble=f"no answer within {patience:g} s")

    def tell(self, command: str) -> None:
        """Gives it a command.

        Raises:
            ServerFailed: it has ended by itself.
        """
        if self._reading.done() and not self._leaving:
            raise ServerFailed(f"{self.sender} has ended")
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    # --- the end ---

    async def kill(self) -> None:
        """kill -9; returns once all that it had printed has been read."""
        self._leaving = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        await self._reading

    async def terminate(self) -> None:
        """SIGTERM; returns once it has ended."""
        self._leaving = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP):
                status = await self._process.wait()
        except TimeoutError:
            self.ledger.violate("broken", f"{self.sender} did not end within {STOP:g} s")
            await self.kill()
            return
        await self._reading
        if status:
            text = f"{self.sender} ended with status {status}: {self.last_words()}"
            self.ledger.violate("broken", text)
