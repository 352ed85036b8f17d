"""The publishers of a scenario: they publish on all nodes, and publish again with the same key.

A publish with an idempotency key is made again, on any node, until it has an answer; now and then
once more after that. One without a key is made once, whatever becomes of it. The answers are
compared with the record in the quiet after a round.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

from trials.torture_cluster.findings import Findings
from trials.torture_cluster.process import Answer, Node, RefusedError
from trials.torture_cluster.record import Record
from trials.torture_cluster.texts import short

# Seconds that a publisher waits for an answer of a node, and for an answer of any.
PATIENCE, AT_ALL = 8.0, 90.0
# Most messages that a publisher has under way.
BURST = 4


class Publishers:
    """All publishers of a scenario.

    Attributes:
        answered: how many publishes had an answer.
        again: how many were made again.
        accepted: the positions of all answers.
    """

    def __init__(
        self,
        count: int,
        rooms: Sequence[str],
        nodes: Sequence[Node],
        findings: Findings,
    ) -> None:
        """Begins silent.

        Args:
            count: of publishers.
            rooms: kept ones.
            nodes: a list, in which nodes are replaced.
            findings: of the scenario.
        """
        self.answered = self.again = 0
        self._count = count
        self._rooms = rooms
        self._nodes = nodes
        self._findings = findings
        self._pause = 0.05
        self._size = 0
        self._lossless = True
        self._numbers = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._on = False
        self._answers: list[tuple[str, Answer]] = []
        self.accepted: set[str] = set()

    def use(self, *, pause: float, size: int, lossless: bool) -> None:
        """Sets how they publish in the next round.

        Args:
            pause: seconds between two bursts of a publisher, on average.
            size: most bytes of padding in a message.
            lossless: the bus loses nothing, and so no idempotency key.
        """
        self._pause = pause
        self._size = size
        self._lossless = lossless

    def start(self) -> None:
        """Has all of them publish from now on."""
        self._on = True
        self._tasks = [asyncio.create_task(self._live(f"p{n}")) for n in range(self._count)]

    async def stop(self) -> None:
        """Has them stop; returns once everything has its answer."""
        self._on = False
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    async def _live(self, name: str) -> None:
        while self._on:
            burst = [self._one(name) for _ in range(random.randint(1, BURST))]
            await asyncio.gather(*burst)
            await asyncio.sleep(random.expovariate(1 / self._pause))

    async def _one(self, name: str) -> None:
        kind = random.random()
        if kind < 0.5:
            await self.publish(name)
        elif kind < 0.75:
            room, text = self._message(name)
            with contextlib.suppress(RefusedError):
                answer = await random.choice(self._nodes).publish(room, text, None, PATIENCE)
                self.take(text, answer, 1)
        else:
            with contextlib.suppress(RefusedError):
                random.choice(self._nodes).say(*self._message(name))

    def _message(self, name: str, room: str = "") -> tuple[str, str]:
        self._numbers += 1
        room = room or random.choice(self._rooms)
        padding = " " + "x" * random.randrange(self._size) if self._size else ""
        return room, f"{room} {name} {self._numbers}{padding}"

    async def publish(self, name: str, room: str = "") -> str:
        """Publishes one message with a key until it has an answer; returns its text."""
        room, text = self._message(name, room)
        key = text[:60]
        try:
            async with asyncio.timeout(AT_ALL):
                self.take(text, *await self._attempts(room, text, key))
        except TimeoutError:
            self._findings.add("late", f"{short(text)!r} had no answer within {AT_ALL:g} s")
            return text
        if random.random() < 0.1:
            with contextlib.suppress(RefusedError):
                self.take_again(text, await self._attempt(room, text, key))
        return text

    async def _attempts(self, room: str, text: str, key: str) -> tuple[Answer, int]:
        attempts = 0
        while True:
            attempts += 1
            try:
                return await self._attempt(room, text, key), attempts
            except RefusedError:
                self.again += 1
                await asyncio.sleep(random.uniform(0.01, 0.1))

    async def _attempt(self, room: str, text: str, key: str) -> Answer:
        awake = [node for node in self._nodes if not node.frozen] or self._nodes
        # Now and then a frozen one is asked, too.
        node = random.choice(awake if random.random() < 0.9 else self._nodes)
        return await node.publish(room, text, key, PATIENCE)

    def take(self, text: str, answer: Answer, attempts: int) -> None:
        self.answered += 1
        self.accepted.add(answer.position)
        self._answers.append((text, answer))
        if attempts == 1 and answer.duplicate:
            self._findings.add("unrecorded", f"the first {short(text)!r} is said to be a duplicate")

    def take_again(self, text: str, answer: Answer) -> None:
        self._answers.append((text, answer))
        if not answer.duplicate and self._lossless:
            self._findings.add("doubled", f"{short(text)!r} was published again under its key")

    def judge(self, record: Record) -> None:
        """Compares the answers since the last time with the record."""
        for text, answer in self._answers:
            known = record.texts.get(answer.position)
            if known != text:
                said = f"{short(text)!r} was answered with {answer.position}"
                found = known and short(known)
                self._findings.add("unrecorded", f"{said}, where the record has {found!r}")
        self._answers.clear()
