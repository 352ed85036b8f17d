"""The model: it compares what each client should get, by the hub's log, with what it got.

For a client that behaves:

- It counts as connected from its E line. All that the log has for it after that arrives, each
  once, in the order of the log: raw messages among themselves, and HubMessages of each priority
  among themselves (a replay may hold those back).
- Up to its Y or K line (it said goodbye, or the hub closes it) all of that has to arrive; what was
  sent after a Y may, without a gap. A message with a conflation key may be left out where a later
  one under the key arrives. A HubMessage that was held behind a replay may be missing at the end
  only, and if nobody got it, a failure handler has heard of it (or it was on its way to one
  that misbehaves).
- It is closed by nobody but itself and the hub on purpose, and what it sends is heard in order.
- A message with acknowledgement is seen by its user; by one who has a single client, in order.

A client that misbehaves gets nothing that is not its own, none twice, and no gap before the end.

Nothing of wsc_fast is used here.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from trials.soak.messages import BYE_NUMBER, key_of, priority_of

# The close code of a slow consumer.
SLOW = 1013
# How long a process may stand still, until it can say so.
LONGEST_STILL = 120.0


@dataclass(eq=False)
class Record:
    """One connection: what it was to get, and what it got."""

    serial: int
    kind: str
    user: str
    good: bool
    wanted: list[int] = field(default_factory=list)
    wanted_hub: list[tuple[int, bool]] = field(default_factory=list)  # held
    early: list[int] = field(default_factory=list)  # held for its user when it came
    edge: int = -1  # of `wanted`; -1: it has not said goodbye and was not closed
    edge_hub: int = -1
    kicked: int = 0  # the code
    entered: bool = False
    gone: bool = False
    hub_code: int | None = None  # with which the hub says that it ended
    heard: int = 0
    got: list[int] = field(default_factory=list)
    got_hub: list[int] = field(default_factory=list)  # without messages with acknowledgement
    acked: list[int] = field(default_factory=list)  # those, the first time that its user sees them
    all_hub: list[int] = field(default_factory=list)  # both, of normal priority
    sent: int = 0
    judged: bool = True  # no process stood still while it lived
    lagged: bool = False  # its own process was late while it lived
    said_bye: bool = False
    code: int | None = None  # of the server's close frame
    finished: bool = False  # the client's side of it

    def __repr__(self) -> str:
        return f"client {self.serial} ({self.kind}, user {self.user})"


class Model:
    """Follows the hub's log, and compares each connection once both its ends are done."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.everyone: dict[int, Record] = {}
        self.held: dict[str, list[int]] = {}  # by user, the latest
        self.held_got: dict[int, bool] = {}
        self.reported: set[int] = set()
        self.wanted_acks: dict[str, list[int]] = {}
        self.seen: dict[str, set[int]] = {}
        self.last_seen: dict[str, int] = {}
        self.violations: list[str] = []
        self.overdue: list[tuple[float, str]] = []  # when it was noticed
        self.done: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()

    def violation(self, text: str) -> None:
        self.violations.append(text)
        if len(self.violations) <= 20:
            print(f"VIOLATION: {text}", file=sys.stderr, flush=True)

    def take(self, line: list[Any]) -> None:
        """One line of the hub's log; see log.py."""
        kind = line[0]
        if kind == "B":
            excluded = set(line[2])
            for serial, record in self.everyone.items():
                if serial not in excluded:
                    record.wanted.append(line[1])
        elif kind == "S":
            for serial in line[2]:
                self.records[serial].wanted.append(line[1])
        elif kind == "U":
            _, number, held, user, serials = line
            if held:
                self.held_got[number] = False
                latest = self.held.setdefault(user, [])
                latest.append(number)
                del latest[:-2_000]
            else:
                self.held.pop(user, None)
            for serial in serials:
                self.records[serial].wanted_hub.append((number, held))
        elif kind == "A":
            self.wanted_acks.setdefault(line[2], []).append(line[1])
        elif kind == "E":
            record = self.everyone[line[1]] = self.records[line[1]]
            record.entered = True
            record.early = list(self.held.get(line[2], ()))
        elif kind == "G":
            record = self.records[line[1]]
            self.everyone.pop(line[1], None)
            record.gone = True
            record.hub_code = line[2]
            self.compare(record)
        elif kind in "YK":
            record = self.records[line[1]]
            if record.edge < 0 or kind == "K":
                record.edge, record.edge_hub = len(record.wanted), len(record.wanted_hub)
            if kind == "K":
                record.kicked = line[2]
                self.everyone.pop(line[1], None)
        elif kind == "I":
            self.records[line[1]].heard = line[2]
        elif kind == "F":
            self.reported.add(line[1])
            self.done[f"reported: {line[3]}"] += 1
        elif kind == "X":
            self.violation(f"the server: {line[1]}")
        elif kind == "L":
            self.stood_still()

    def stood_still(self) -> None:
        """One of the processes did: who is connected may have been given up, and rightly so."""
        for record in self.records.values():
            self.done["connections not judged, as the machine stood still"] += record.judged
            record.judged = False
        # A process that stands still says so afterwards.
        now = time.monotonic()
        self.overdue = [entry for entry in self.overdue if entry[0] < now - LONGEST_STILL]

    def late(self, record: Record, text: str) -> None:
        """Something did not come in time: a violation, unless a process stood still."""
        if record.judged:
            self.overdue.append((time.monotonic(), f"{record} {text}"))
            record.judged = False  # its client gives up: what follows is no violation of its own

    def finished(self, record: Record) -> None:
        """The client's side of a connection is over."""
        record.finished = True
        self.compare(record)

    def compare(self, record: Record) -> None:
        if not record.finished or not record.gone:
            return
        self.records.pop(record.serial, None)
        good = record.good and record.judged and record.code != SLOW
        edge = max(record.edge, 0) if good else 0
        if record.edge < 0 and good:
            self.violation(
                f"{record} was closed by nobody: code {record.code}, of the hub {record.hub_code}, "
                f"{'said goodbye' if record.said_bye else 'without a goodbye'}, "
                f"sent {record.sent}, heard {record.heard}, {len(record.wanted)} for it"
            )
        if good and record.kicked and not record.said_bye and record.code != record.kicked:
            self.violation(f"{record}: closed with {record.code}, not {record.kicked}")
        if record.code == SLOW and record.good and record.judged:
            if record.lagged:
                self.done["clients that behaved, too slow for the load"] += 1
            else:
                self.violation(f"{record} read all the time, and was closed as a slow consumer")
        if fault := difference(record.wanted, record.got, edge):
            self.violation(f"{record}, raw messages, edge {record.edge}: {fault}")
        self.compare_hub(record, good)
        if good and record.said_bye and not record.kicked and record.heard != record.sent:
            self.violation(f"{record}: {record.heard} of its {record.sent} messages were heard")
        self.checked["connections that behaved" if good else "connections that misbehaved"] += 1
        self.checked["messages compared"] += len(record.got) + len(record.got_hub)
        self.checked["acknowledged messages seen"] += len(record.acked)
        if good and record.user[0] == "a":
            for one, two in zip(record.all_hub, record.all_hub[1:], strict=False):
                if one >> 6 >= two >> 6:
                    self.violation(f"{record}: HubMessage {two} came after {one}")
                    break

    def compare_hub(self, record: Record, good: bool) -> None:
        # A held one has to come if one that was not held was sent later: the replay was over.
        certain = max((i for i, (_, held) in enumerate(record.wanted_hub) if not held), default=-1)
        edge = min(max(record.edge_hub, 0), certain + 1) if good else 0
        got_or_lost = record.got_hub
        if not good:
            # The hub gave it to the kernel, which counts as sent, though nobody read it.
            got_or_lost = [*record.early, *(n for n, held in record.wanted_hub if held)]
        for number in got_or_lost:
            if number in self.held_got:
                self.held_got[number] = True
        for priority in range(1, 5):
            wanted = [n for n in record.early if priority_of(n) == priority]
            optional = len(wanted)
            entries = [
                (i, n) for i, (n, _) in enumerate(record.wanted_hub) if priority_of(n) == priority
            ]
            wanted += [n for _, n in entries]
            must = optional + sum(i < edge for i, _ in entries)
            got = [n for n in record.got_hub if priority_of(n) == priority]
            if fault := difference(wanted, got, must, optional):
                self.violation(f"{record}, HubMessages of priority {priority}: {fault}")

    def see(self, record: Record, number: int) -> bool:
        """A message with acknowledgement has come; whether for the first time."""
        seen = self.seen.setdefault(record.user, set())
        if number in seen:
            self.done["copies dropped by id"] += 1
            return False
        seen.add(number)
        if record.user[0] == "a":
            if number < self.last_seen.get(record.user, 0):
                last = self.last_seen[record.user]
                self.violation(f"{record}: acknowledged message {number} came after {last}")
            self.last_seen[record.user] = number
        record.acked.append(number)
        return True

    def end(self, unreported: int) -> None:
        """Everybody has gone."""
        for _, text in self.overdue:
            self.violation(text)
        for record in list(self.records.values()):
            # One that was not let in while the machine stood still has nothing to end.
            if (record.good and record.judged) or record.entered or record.got:
                state = f"entered {record.entered}, gone {record.gone}, over {record.finished}"
                self.violation(f"{record} never ended on both sides: {state}")
        for user, numbers in self.wanted_acks.items():
            if missing := set(numbers) - self.seen.get(user, set()):
                self.violation(f"user {user} never saw {sorted(missing)[:5]} ({len(missing)})")
            if other := self.seen.get(user, set()) - set(numbers):
                self.violation(f"user {user} saw {sorted(other)[:5]}, which nobody sent to it")
            self.checked["messages with acknowledgement"] += len(numbers)
        if not unreported:
            lost = [n for n, got in self.held_got.items() if not got and n not in self.reported]
            if lost:
                self.violation(f"{len(lost)} held messages vanished unreported: {lost[:5]}")


def difference(wanted: list[int], got: list[int], edge: int, optional: int = 0) -> str:
    """The first difference, or "": `wanted[:edge]` has to be there, but for what was conflated.

    The first `optional` of `wanted` may be missing, from their beginning.
    """
    i = 0
    left_out: dict[int, int] = {}  # key -> the first that was passed over
    for place, number in enumerate(got):
        while i < len(wanted) and wanted[i] != number:
            if i >= optional or place > 0:
                key = key_of(wanted[i])
                if not key or wanted[i] == BYE_NUMBER:
                    where = "which is not its own"
                    if number in wanted[:i]:
                        where = "which it had before"
                    elif number in wanted[i:]:
                        where = f"which was to come {wanted[i:].index(number)} later"
                    return f"at {place} it got {number}, {where}, for {wanted[i]}"
                left_out.setdefault(key, i)
            i += 1
        if i == len(wanted):
            where = "had before" if number in wanted else "not its own"
            return f"at {place} it got {number} ({where}) behind its last"
        if number != BYE_NUMBER:
            left_out.pop(key_of(number), None)
        i += 1
    for number in wanted[i:edge] if i >= optional else wanted[optional:edge]:
        key = key_of(number)
        if not key or number == BYE_NUMBER:
            return f"{edge - i} are missing at the end, the first is {number}"
        left_out.setdefault(key, i)
    for key, place in left_out.items():
        if place < edge:
            return f"{wanted[place]} is missing, and no later one under the key {key} came"
    return ""
