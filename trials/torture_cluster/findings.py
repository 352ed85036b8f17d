"""The things that went wrong in a scenario, by kind, each printed with what is known of it."""

from __future__ import annotations

import time
from collections import Counter

# The kinds, as the columns of the table.
KINDS = {
    "missing": "a client missed a message without a word",
    "untold": "accepted messages were lost, and a client behind them never heard of it",
    "doubled": "a client, or the history, has a message twice",
    "disordered": "a client got a message before an earlier one, or before it was a member",
    "unrecorded": "an answer, or a client, has a message that the history never had",
    "needless": "a client was told of a loss where nothing was lost",
    "late": "something did not come in the quiet after the faults",
    "left": "keys, tasks, bytes or subscriptions stay behind",
    "broken": "a node failed, or logged a traceback",
}
# So many are printed; the others are counted.
PRINTED = 20


class Findings:
    """All of one scenario.

    Attributes:
        counts: by kind.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.round = 0

    def add(self, kind: str, text: str) -> None:
        """Notes that something is wrong."""
        assert kind in KINDS
        self.counts[kind] += 1
        total = self.counts.total()
        if total <= PRINTED:
            print(f"  round {self.round}, {self.now()} {kind}: {text}", flush=True)
        elif total == PRINTED + 1:
            print("  further ones are only counted", flush=True)

    def now(self) -> str:
        """The time since the beginning."""
        return f"+{time.monotonic() - self.started:.2f} s"
