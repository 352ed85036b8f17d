"""A hub of a test or a trial that has no users: it takes no words of other hubs."""

from __future__ import annotations

from collections.abc import Sequence


class NoWords:
    """The part of `bus.base.Handler` that is about users, for one that has none."""

    def word(self, data: bytes) -> None:
        pass

    def elsewhere(self, users: Sequence[str]) -> None:
        pass

    def words_missed(self) -> None:
        pass
