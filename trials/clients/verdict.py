"""The verdict on the record of a client: whether a message is missing, doubled or out of order.

The messages of each room are numbered from 1 on, and each number was published until a hub had
accepted it. So a client has to get 1, 2, 3 and so on, whatever happened, unless an event said that
messages are missing. The event may come late in one case: the bus has lost these messages, and
the history that it has now goes on where the client was. No hub may have noticed it at that time.

At the end a client has the last message of each room, or was told of a loss after this message was
published: the mark that tells of a loss stands behind all that the hubs had published until then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# The events of a loss.
LOSSES = "first", "gap"
# The columns of the table that have to be 0.
WRONG = {
    "missing": "a message did not come, and no event said so",
    "untold": "the bus lost messages while the client was away, and no event said so, ever",
    "doubled": "a message came twice, with no event of a loss between",
    "disordered": "a message came after a later one",
    "needless": "an event said that messages are missing, and the bus had lost none",
    "unanswered": "a request was rejected, answered wrongly or twice, or not at all",
    "broken": "a client was closed for good, refused or threw; or a hub failed",
    "late": "a client was not at the end of each room in time",
}


class End(NamedTuple):
    """The last message of a room.

    Attributes:
        number: of it.
        at: when it was about to be published, in milliseconds since 1970.
    """

    number: int
    at: float = math.inf


@dataclass
class Findings:
    """The things that went wrong with one client.

    Attributes:
        counts: by kind, and of what happened.
        texts: each finding, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        assert kind in WRONG
        self.counts[kind] += 1
        self.texts.append(f"{kind}: {text}")


def ends(record: Sequence[Sequence[Any]], rooms: Mapping[str, End]) -> bool:
    """Whether the client is at the end of each room, and has all of its answers."""
    newest: dict[str, int] = {}
    told: dict[str, float] = {}
    waiting = 0
    for at, kind, *values in record:
        if kind == "message" and values[0] is not None:
            newest[values[0]] = values[1]
        elif kind in LOSSES:
            told[values[0]] = at
        waiting += (kind == "asked") - (kind in ("answered", "rejected"))
    return not waiting and all(
        newest.get(room) == end.number or told.get(room, -math.inf) >= end.at
        for room, end in rooms.items()
    )


def judge(
    record: Sequence[Sequence[Any]],
    rooms: Mapping[str, End],
    histories: Mapping[str, Sequence[int]],
    *,
    lossless: bool,
) -> Findings:
    """Judges the whole record of a client.

    Args:
        record: its entries, see page.js.
        rooms: the end of each.
        histories: the numbers that the bus has at the end, in their order.
        lossless: the bus lost nothing, so that nothing can be missing.
    """
    findings = Findings()
    views = {room: _View(room, findings, histories[room], lossless) for room in rooms}
    for at, kind, *values in record:
        room = values[0] if values else None
        if kind == "message" and room in views:
            views[room].message(at, values[1])
        elif kind in ("recovered", *LOSSES):
            if room in views:
                views[room].moved(at, kind)
        elif kind in ("refused", "error") or (kind == "state" and values[0] == "closed"):
            findings.add("broken", f"at {at}: {kind} {values}")
    for room, end in rooms.items():
        views[room].end(end)
    _judge_requests(record, findings)
    _count_connections(record, findings)
    return findings


class _View:
    """One room, as a client has seen it."""

    def __init__(
        self, room: str, findings: Findings, history: Sequence[int], lossless: bool
    ) -> None:
        self._room = room
        self._findings = findings
        # By number: the one before it.
        self._before = dict(zip(history, [0, *history], strict=False))
        self._lossless = lossless
        self._last = 0
        # A loss was told since the last new message.
        self._told = False
        self._told_at = -math.inf
        self._met = False
        # By number: how many losses had been told when the client saw it.
        self._seen: dict[int, int] = {}
        self._losses = 0
        # Holes of which an event has to tell yet: when, and which.
        self._untold: list[tuple[int, str]] = []

    def message(self, at: int, number: int) -> None:
        counts = self._findings.counts
        counts["messages"] += 1
        if number in self._seen:
            # A bus that loses its newest messages is given one again that a client has seen.
            if self._lossless or self._seen[number] == self._losses:
                self._add("doubled", at, f"{number} came again")
            counts["again"] += 1
            self._seen[number] = self._losses
            return
        if number < self._last:
            self._add("disordered", at, f"{number} came after {self._last}")
        elif number > self._last + 1 and not self._told:
            if self._before.get(number) == self._last and not self._lossless:
                self._untold.append((at, f"{number} came after {self._last}"))
            else:
                self._add("missing", at, f"{number} came after {self._last}")
        self._seen[number] = self._losses
        self._last = max(self._last, number)
        self._told = False

    def moved(self, at: int, kind: str) -> None:
        self._findings.counts[kind] += 1
        if kind == "recovered":
            return
        # The client has joined before the first message.
        if not self._met and kind == "first":
            self._met = True
            return
        self._told = True
        self._told_at = at
        self._untold.clear()
        self._losses += 1
        if self._lossless:
            self._add("needless", at, f"{kind} after {self._last}")

    def end(self, end: End) -> None:
        for at, text in self._untold:
            self._add("untold", at, text)
        if self._last != end.number and self._told_at < end.at:
            self._add("late", 0, f"the end is {end.number}, the client is at {self._last}")

    def _add(self, kind: str, at: int, text: str) -> None:
        self._findings.add(kind, f"at {at}, {self._room}: {text}")


def _judge_requests(record: Sequence[Sequence[Any]], findings: Findings) -> None:
    asked = {values[0] for _, kind, *values in record if kind == "asked"}
    answers: dict[int, list[Any]] = {number: [] for number in asked}
    for _, kind, *values in record:
        if kind in ("answered", "rejected"):
            answers.setdefault(values[0], []).append(values[1])
    findings.counts["requests"] = len(asked)
    for number, found in answers.items():
        if number not in asked or found != [{"number": number}]:
            findings.add("unanswered", f"request {number} got {found}")


def _count_connections(record: Sequence[Sequence[Any]], findings: Findings) -> None:
    """Counts connections, and those that ended with their token, or were changed ahead of that."""
    state, end = "", 0.0
    for at, kind, *values in record:
        if kind == "state":
            findings.counts["connections"] += values[0] == "open"
            # Without a wait between: after 4401, or with a new token.
            if (state, values[0]) == ("open", "connecting"):
                findings.counts["4401" if at >= end else "renewed"] += 1
            state = values[0]
        elif kind == "token" and state == "connecting":
            end = values[0]
