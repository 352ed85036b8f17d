"""The load that `wsc-fast bench` puts on a hub: clients, messages with the time in them, counts.

Each message of ours has a tag of the run, the number of its client, and the time at which it was
due. Its latency is counted from that time, not from the one at which it was sent, so that a hub
which holds this process up does not look quick. A message that comes back within another one (a
chat's JSON) is found as well.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field

from wsc_fast.cli.histogram import Histogram
from wsc_fast.cli.load_connection import Connection, connect
from wsc_fast.cli.peer import NORMAL, ConnectFailure, Peer

# The shortest message: tag, number of the client, time.
LEAST_SIZE = 42
# Connections that are being opened at once.
_OPENING = 100
# Messages of one client that may be on their way; more are held back.
_MOST_UNDER_WAY = 1_000
# Seconds between two looks at what is due.
_TICK = 0.001
# Seconds that answers may take once nothing more is sent.
_LAST_ANSWERS = 1.0


@dataclass
class Counts:
    """Counters of a time.

    Attributes:
        sent: messages.
        received: messages, whoever sent them.
        received_bytes: of these.
        latency: of messages of this run.
    """

    sent: int = 0
    received: int = 0
    received_bytes: int = 0
    latency: Histogram = field(default_factory=Histogram)


class Load:
    """Clients that send and listen.

    Args:
        peer: the hub.
        mode: echo, broadcast or listen.
        clients: how many.
        rate: messages a second, of all together; 0: of echo, each client sends the next message
            once its answer is there.
        size: of a message, in bytes.
        duration: seconds, from the time at which all are connected.

    Attributes:
        connected: clients that are.
        errors: what went wrong, and how often.
        total: counters of the whole run.
        recent: counters since `take_recent` was called last.
        held_back: messages that were due, and not sent, since the hub was too far behind.
        elapsed: seconds that the measurement has taken so far.
        busy: how much of that this process was computing, from 0 to 1.
    """

    def __init__(
        self, peer: Peer, mode: str, clients: int, rate: float, size: int, duration: float
    ) -> None:
        self.mode: str = mode
        self.clients: int = clients
        self.duration: float = duration
        self.connected: int = 0
        self.errors: Counter[str] = Counter()
        self.total: Counts = Counts()
        self.recent: Counts = Counts()
        self.held_back: int = 0
        self.elapsed: float = 0.0
        self.busy: float = 0.0
        self._peer, self._rate = peer, rate
        self._tag = f"wsc-fast {secrets.token_hex(4)} "
        self._padding = "x" * (size - LEAST_SIZE)
        self._open: dict[int, Connection] = {}
        self._under_way = [0] * clients
        self._measuring = self._sending = False
        self._watchers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Connects, measures, and closes."""
        try:
            await self._connect_all()
            if self._open:
                await self._measure()
        finally:
            self._measuring = self._sending = False
            await self._close_all()

    def take_recent(self) -> Counts:
        """The counters since the last call, which begin anew."""
        taken, self.recent = self.recent, Counts()
        return taken

    # --- connections ---

    async def _connect_all(self) -> None:
        numbers = iter(range(self.clients))

        async def some() -> None:
            for number in numbers:
                await self._connect(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_OPENING, self.clients)):
                group.create_task(some())

    async def _connect(self, number: int) -> None:
        def receive(message: str | bytes) -> None:
            self._take(number, message)

        try:
            connection = await connect(self._peer, receive)
        except ConnectFailure as failure:
            self.errors[str(failure)] += 1
            return
        self._open[number] = connection
        self.connected += 1
        watcher = asyncio.create_task(self._watch(number, connection))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, number: int, connection: Connection) -> None:
        await connection.closed()
        # One that this process has closed is out of the table already.
        if self._open.pop(number, None) is not None:
            self.connected -= 1
            self.errors[connection.ending] += 1

    async def _close_all(self) -> None:
        connections = list(self._open.values())
        self._open.clear()
        answers = await asyncio.gather(*(each.close() for each in connections))
        for connection, answered in zip(connections, answers, strict=True):
            if not answered:
                self.errors["the hub did not answer the close frame"] += 1
            elif connection.code not in NORMAL:
                self.errors[connection.ending] += 1
        if self._watchers:
            await asyncio.wait(self._watchers)

    # --- messages ---

    async def _measure(self) -> None:
        self._measuring = self._sending = True
        began, computed = time.monotonic(), time.process_time()

        def look() -> None:
            self.elapsed = time.monotonic() - began
            self.busy = (time.process_time() - computed) / max(self.elapsed, 1e-9)

        try:
            if self.mode == "echo" and not self._rate:
                for number in list(self._open):
                    self._send(number, time.monotonic_ns())
            paced = self.mode != "listen" and self._rate > 0
            start, turns = time.monotonic_ns(), 0
            while time.monotonic() - began < self.duration and self._open:
                if paced:
                    turns = self._send_due(start, turns)
                await asyncio.sleep(_TICK if paced else 0.05)
                look()
        finally:
            look()
        self._sending = False
        await self._last_answers()

    async def _last_answers(self) -> None:
        # An event that tells of it would have to be looked at for each message.
        for _ in range(int(_LAST_ANSWERS / 0.01)):
            if not any(self._under_way) or not self._open:
                return
            await asyncio.sleep(0.01)

    def _send_due(self, start: int, turns: int) -> int:
        """Sends what is due by now; `turns` is how many were due before, and what is returned."""
        now = time.monotonic_ns()
        while (due := start + int(turns * 1e9 / self._rate)) <= now:
            self._send_in_turn(due)
            turns += 1
        return turns

    def _send_in_turn(self, due: int) -> None:
        if not self._open:
            return
        # In a broadcast the first client sends, and all of them measure.
        number = next(iter(self._open))
        if self.mode == "echo":
            self._open[number] = self._open.pop(number)  # behind the others
        self._send(number, due)

    def _send(self, number: int, due: int) -> None:
        connection = self._open.get(number)
        if connection is None:
            return
        if connection.held_up or self._under_way[number] >= _MOST_UNDER_WAY:
            self.held_back += 1
            return
        connection.send_now(f"{self._tag}{number:06x} {due:016x} {self._padding}")
        self._under_way[number] += 1
        self.total.sent += 1
        self.recent.sent += 1

    def _take(self, number: int, message: str | bytes) -> None:
        if not self._measuring:
            return
        for counts in (self.total, self.recent):
            counts.received += 1
            counts.received_bytes += len(message)
        text = message if isinstance(message, str) else message.decode("latin-1")
        at = text.find(self._tag)
        if at < 0:
            return
        at += len(self._tag)
        try:
            sender, due = int(text[at : at + 6], 16), int(text[at + 7 : at + 23], 16)
        except ValueError:
            return  # cut off, by a hub that changes messages
        if sender == number:
            self._under_way[number] -= 1
        elif self.mode == "echo":
            return  # another client's, which is the other client's to measure
        now = time.monotonic_ns()
        self.total.latency.add((now - due) // 1_000)
        self.recent.latency.add((now - due) // 1_000)
        if self.mode == "echo" and not self._rate and self._sending and sender == number:
            self._send(number, now)
