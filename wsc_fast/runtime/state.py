"""Where a hub is in its life: what its parts look at, and `Life` alone changes."""

from __future__ import annotations


class State:
    """One hub's.

    Attributes:
        accepting: it lets new clients in, from the end of `start` to the beginning of `stop`.
        draining: it sends its clients away.
        ended: it was stopped; only `start` begins anew.
    """

    __slots__ = ("accepting", "draining", "ended")

    def __init__(self) -> None:
        self.accepting: bool = False
        self.draining: bool = False
        self.ended: bool = False
