"""The record of a scenario: what servers reported, what users saw, and what does not fit.

A message is named by its sender (a server process, over all its lives), its user and a number that
grows with each message of that sender to that user. Four rules are judged:

    lost        `accepted` returned, and the user never saw the message
    doubled     the user saw the message under two ids (copies under one id are dropped by clients)
    disordered  the user saw a message after a later one of the same sender
    astray      somebody saw a message of another user

A user who has several devices has seen a message once one of them has; each device has an order of
its own. A message whose `accepted` raised may be lost, and may come late. The scenarios add what
they notice themselves, under the other names in KINDS.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

# The kinds of faults, as the columns of the table.
KINDS = {
    "lost": "accepted and never seen",
    "doubled": "seen under two ids",
    "disordered": "seen after a later one",
    "astray": "seen by another user",
    "late": "not seen in time by a user who was connected",
    "left": "still in the store, though the user acknowledged it",
    "waiting": "a sender who waits and hears nothing",
    "closed": "a user for whom the store takes no message again",
    "broken": "a server that failed",
}
# Violations of each kind that are printed with all their details; the others are counted.
DETAILED = 10

Name = tuple[str, int]  # sender and number


class Ledger:
    """The fates of all messages of one scenario, as far as they are known."""

    def __init__(
        self,
        users: Collection[str],
        *,
        order_of_accepted: bool = False,
        kinds: Mapping[str, str] = KINDS,
    ) -> None:
        """Begins with nothing.

        Args:
            users: the names of all users.
            order_of_accepted: whether the order is judged among accepted messages alone. Where the
                store fails on purpose, a message that nobody awaited may be refused without
                anybody hearing of it.
            kinds: of violations.
        """
        self.kinds = kinds
        self.started = time.monotonic()
        self.order_of_accepted = order_of_accepted
        self.accepted: dict[str, set[Name]] = {user: set() for user in users}
        self.refused: dict[str, set[Name]] = {user: set() for user in users}
        # By user and device.
        self.seen: dict[tuple[str, str], list[tuple[Name, str]]] = defaultdict(list)
        # Messages that a device has answered, and those that another one saw only then.
        self.answered: dict[str, set[Name]] = {user: set() for user in users}
        self.again: dict[tuple[str, str], set[Name]] = defaultdict(set)
        self.names_seen: dict[str, set[Name]] = {user: set() for user in users}
        self.missing: dict[str, set[Name]] = {user: set() for user in users}
        self.copies = 0
        self.counts: Counter[str] = Counter()
        self._reports: Counter[str] = Counter()

    # --- what is reported ---

    def accept(self, user: str, name: Name) -> None:
        self.accepted[user].add(name)
        if name not in self.names_seen[user]:
            self.missing[user].add(name)

    def refuse(self, user: str, name: Name) -> None:
        self.refused[user].add(name)

    def see(self, user: str, name: Name, circumstances: str, device: str = "") -> None:
        """A device of a user saw a message under an id that was new to it."""
        if name in self.answered[user]:
            self.again[user, device].add(name)
        self.seen[user, device].append((name, circumstances))
        self.names_seen[user].add(name)
        self.missing[user].discard(name)

    def answer(self, user: str, name: Name) -> None:
        """A device of a user has answered a message."""
        self.answered[user].add(name)

    def violate(self, kind: str, text: str, count: int = 1) -> None:
        """Notes and prints that something does not fit.

        Args:
            kind: one of the ledger's kinds.
            text: who is concerned, what is missing, and where it was found.
            count: of how many messages.
        """
        assert kind in self.kinds
        self.counts[kind] += count
        self._reports[kind] += 1
        if self._reports[kind] <= DETAILED:
            print(f"  {self.now()} {kind}: {text}", flush=True)
        elif self._reports[kind] == DETAILED + 1:
            print(f"  further ones are only counted: {kind}", flush=True)

    def now(self) -> str:
        """The time since the beginning."""
        return f"+{time.monotonic() - self.started:.2f} s"

    # --- what is judged ---

    def judge(self) -> None:
        """Notes what was doubled and disordered; what is lost is judged by the scenario."""
        for (user, device), seen in self.seen.items():
            twice = [name for name, count in Counter(n for n, _ in seen).items() if count > 1]
            if twice:
                text = f"{user}{device} saw twice {ranges(twice)}"
                self.violate("doubled", text, len(twice))
            self._judge_order(user, device)

    def _judge_order(self, user: str, device: str) -> None:
        last: dict[str, tuple[int, str]] = {}
        for (sender, number), circumstances in self.seen[user, device]:
            if not self.has_order(user, device, (sender, number)):
                continue
            before, there = last.get(sender, (-1, ""))
            if number < before:
                text = (
                    f"{user}{device} saw {sender} {number} ({circumstances}) after "
                    f"{sender} {before} ({there}){self._elsewhere(user, device, (sender, number))}"
                )
                self.violate("disordered", text)
            else:
                last[sender] = number, circumstances

    def _elsewhere(self, user: str, device: str, name: Name) -> str:
        """The ways in which other devices saw a message."""
        return "".join(
            f"; {user}{other}: {circumstances}"
            for (whose, other), seen in self.seen.items()
            for each, circumstances in seen
            if whose == user and other != device and each == name
        )

    def has_order(self, user: str, device: str, name: Name) -> bool:
        """Whether a message has to come in its turn."""
        if self.order_of_accepted:
            return name in self.accepted[user]
        return name not in self.refused[user]

    def total(self, what: dict[str, set[Name]]) -> int:
        return sum(map(len, what.values()))


def ranges(names: Iterable[Name]) -> str:
    """Messages in few words: "A 3-7 9, B 12"."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for sender, number in sorted(names):
        numbers[sender].append(number)
    if not numbers:
        return "nothing"
    return ", ".join(f"{sender} {_runs(each)}" for sender, each in numbers.items())


def _runs(numbers: list[int], most: int = 12) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if len(texts) > most:
        texts[most:] = [f"... ({len(numbers)} in all)"]
    return " ".join(texts)
