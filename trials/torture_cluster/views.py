"""The things that one client saw, and whether they fit the record.

A client of a kept room has a place: the position up to which it has all. Each message that it gets
has to be the one right behind its place, unless it was told of a loss (a gap, or
"recovered": false), which gives it a new place. That is judged in the quiet after a round, when the
record is read.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from trials.torture_cluster.findings import Findings
from trials.torture_cluster.record import Record
from trials.torture_cluster.texts import short, text_of

# The bounds within which a client has to recover. Beside its payload a message has a head line.
MOST_MISSED, MOST_MISSED_BYTES = 500, 400_000
# So many of the last events are shown in a report.
EVENTS = 12


@dataclass(slots=True)
class Step:
    """A move of a client from one place to the next.

    Attributes:
        kind: "message", "recovered", "lost" (it was not recovered) or "gap".
        before, after: the places; None: it had none. Of one that was not recovered, the first is
            that of its hello, since it may have got a part of what it missed.
        text: of a message.
        trail: the last events, for a report.
    """

    kind: str
    before: str | None
    after: str
    text: str
    trail: tuple[str, ...]


@dataclass
class RoomView:
    """One kept room, as an aware client saw it over all of its connections.

    Attributes:
        place: the position that the next hello names.
        joined: the client is a member on this connection.
    """

    who: str
    room: str
    place: str | None = None
    joined: bool = False
    steps: list[Step] = field(default_factory=list)
    trail: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS))
    _missed: int = 0
    _named: str | None = None  # in the hello of this connection
    _seen: set[str] = field(default_factory=set)  # positions, and texts
    _newest: tuple[int, int] = (0, 0)

    def connected(self, node: str) -> None:
        """A new connection begins."""
        self.joined = False
        self._missed = 0
        self._named = self.place
        self.trail.append(f"to {node} with {self.place}")

    def head(self, head: dict[str, Any], payload: str, findings: Findings) -> None:
        """A message with a position, or a gap, has come."""
        position = head["pos"]
        if "gap" in head:
            self._step("gap", position)
        elif "recovered" not in head:
            self._message(position, payload, findings)
        elif head["recovered"]:
            self._step("recovered", position, f"missed {head['missed']}")
            if head["missed"] != self._missed:
                text = f"{self} was told that it missed {head['missed']}, and got {self._missed}"
                findings.add("missing", text)
            self.joined = True
        else:
            if head.get("first") and self.place is not None:
                findings.add("missing", f"{self} named {self.place}, and is treated as new")
            self._step("lost", position)
            self.joined = True

    def _step(self, kind: str, position: str, text: str = "") -> None:
        self.trail.append(f"{kind} {position} {short(text)}")
        before = self._named if kind == "lost" else self.place
        self.steps.append(Step(kind, before, position, text, tuple(self.trail)))
        self.place = position

    def _message(self, position: str, text: str, findings: Findings) -> None:
        if self.place is None:
            findings.add("disordered", f"{self} got {short(text)!r} before it was a member")
        self._step("message", position, text)
        self._missed += not self.joined

    def __str__(self) -> str:
        return f"{self.who} in {self.room}"

    def judge(self, record: Record, findings: Findings, *, lossless: bool) -> None:
        """Compares all steps since the last time with the record.

        Args:
            record: has all that these steps are about.
            findings: hears what does not fit.
            lossless: the bus has lost nothing: gaps are needless, and each client has to recover.
        """
        for step in self.steps:
            self._judge(step, record, findings, lossless)
            if step.kind == "message":
                self._judge_order(step, findings)
            elif step.kind != "recovered" and not lossless:
                # Another node may not have heard of the loss yet, and give the lost ones again.
                self._seen.clear()
                self._newest = (0, 0)
        self.steps.clear()

    def untold(self, record: Record, accepted: Collection[str]) -> list[str]:
        """The losses of accepted messages that it has passed, and was not told of.

        Args:
            record: has all that its steps are about.
            accepted: the positions that publishers were told.
        """
        found = []
        for loss in record.losses:
            lost = loss.gone & set(accepted)
            for number, step in enumerate(self.steps):
                passes = step.kind == "message" and step.before == loss.edge
                if not lost or not passes or step.after in loss.gone:
                    continue
                if all(later.kind in ("message", "recovered") for later in self.steps[number:]):
                    trail = ", ".join(step.trail)
                    found.append(f"{self} went on behind {loss.edge}: {trail}; lost: {lost}")
        return found

    def _judge_order(self, step: Step, findings: Findings) -> None:
        trail = ", ".join(step.trail)
        if self._seen & {step.after, step.text}:
            findings.add("doubled", f"{self} got {short(step.text)!r} twice: {trail}")
        elif _id_of(step.after) < self._newest:
            findings.add("disordered", f"{self} got {short(step.text)!r} late: {trail}")
        self._newest = max(self._newest, _id_of(step.after))
        self._seen |= {step.after, step.text}

    def _judge(self, step: Step, record: Record, findings: Findings, lossless: bool) -> None:
        trail = ", ".join(step.trail)
        if step.kind == "message":
            if record.texts.get(step.after) != step.text:
                known = record.texts.get(step.after)
                text = f"{self} got {step.text!r} at {step.after}, where the record has {known!r}"
                findings.add("unrecorded", f"{text}: {trail}")
            elif record.before[step.after] != step.before:
                path = record.path(step.before, step.after)
                findings.add("missing", f"{self} was at {step.before}: {trail}; record: {path}")
        elif step.kind == "recovered":
            if step.before != step.after:
                path = record.path(step.before, step.after)
                text = f"{self} was at {step.before} when it was said to have recovered"
                findings.add("missing", f"{text}: {trail}; record: {path}")
        elif step.before is not None and lossless:
            near = (step.before, step.after, MOST_MISSED, MOST_MISSED_BYTES)
            if record.is_within(*near):
                path = record.path(step.before, step.after)
                findings.add("needless", f"{self}, {step.kind}: {trail}; record: {path}")


def _id_of(position: str) -> tuple[int, int]:
    milliseconds, _, number = position.partition(".")[0].partition("-")
    return int(milliseconds), int(number)


class PlainView:
    """The plain room, as one client saw it on one connection.

    Each publisher numbers its messages. A number that is left out is a hole, unless the client was
    told of a gap since the one before.
    """

    def __init__(self, who: str, *, aware: bool) -> None:
        self._who = who
        self._aware = aware
        self._last: dict[str, int] = {}
        self._after_gap: set[str] = set()
        self._holes: list[tuple[str, int, int]] = []
        self.newest: set[str] = set()

    def message(self, payload: str, findings: Findings) -> None:
        """A message of the plain room has come."""
        text = text_of(payload)
        self.newest.add(payload)
        last = self._last.get(text.publisher, text.number - 1)
        if text.number <= last:
            kind = "doubled" if text.number == last else "disordered"
            findings.add(kind, f"{self._who} got {payload!r} after number {last}")
            return
        if text.number > last + 1 and text.publisher not in self._after_gap and self._aware:
            self._holes.append((text.publisher, last + 1, text.number))
        self._after_gap.discard(text.publisher)
        self._last[text.publisher] = text.number

    def gap(self) -> None:
        """The client hears that messages may be missing."""
        self._after_gap = set(self._last)

    def judge(self, unsaid: set[str], findings: Findings) -> None:
        """Looks whether each hole is of messages that their node has reported.

        Args:
            unsaid: the texts of these.
            findings: hears what does not fit.
        """
        for publisher, start, end in self._holes:
            missing = [n for n in range(start, end) if f"plain {publisher} {n}" not in unsaid]
            if missing:
                text = f"{self._who} missed {missing[:5]} of {publisher} in the plain room"
                findings.add("missing", f"{text}, {len(missing)} in all, without a word")
        self._holes.clear()
        self.newest.clear()


class UnawareView:
    """The kept rooms, as a client without wsc.1 saw them on one connection: texts alone."""

    def __init__(self, who: str) -> None:
        self._who = who
        self.texts: dict[str, list[str]] = {}

    def message(self, payload: str) -> None:
        """A message of a kept room has come."""
        self.texts.setdefault(text_of(payload).room, []).append(payload)

    def judge(self, record: Record, findings: Findings, *, lossless: bool) -> None:
        """Compares them with the record: doubles and order, and where nothing is lost, holes."""
        for room, texts in self.texts.items():
            self._judge(room, texts, record, findings, lossless)
            self.texts[room] = texts[-1:]

    def _judge(
        self,
        room: str,
        texts: list[str],
        record: Record,
        findings: Findings,
        lossless: bool,
    ) -> None:
        where = f"{self._who} in {room}"
        places = record.places
        for text in texts:
            if text not in places:
                findings.add("unrecorded", f"{where} got {text!r}")
                return
        # A text that was lost and published again has several places.
        for last, text in itertools.pairwise(texts):
            before, after = places[last], places[text]
            if len(before) > 1 or len(after) > 1:
                continue
            if text == last:
                findings.add("doubled", f"{where} got {short(text)!r} twice")
            elif _id_of(after[0]) < _id_of(before[0]):
                findings.add("disordered", f"{where} got {short(text)!r} after {short(last)!r}")
            elif lossless and record.before[after[0]] != before[0]:
                path = record.path(before[0], after[0])
                findings.add("missing", f"{where} got {short(text)!r} after {last!r}: {path}")
