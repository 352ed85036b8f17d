"""The messages of users who are away, as far as somebody holds their PendingACK."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsc_fast._core.pending import PendingACK


class _Reference(weakref.ref["PendingACK"]):
    """Knows where it stands, so that its end leaves nothing behind."""

    __slots__ = ("key", "message_id")

    key: str
    message_id: str


class Parked:
    """PendingACKs by mailbox and message id, each for as long as somebody holds it.

    Thread-safety: the loop's thread.
    """

    def __init__(self) -> None:
        self._references: dict[str, dict[str, _Reference]] = {}

    def __len__(self) -> int:
        return sum(map(len, list(self._references.values())))

    def get(self, key: str, message_id: str) -> PendingACK | None:
        """The message of a mailbox with this id; None if nobody holds one."""
        reference = self._references.get(key, {}).get(message_id)
        return None if reference is None else reference()

    def add(self, pending: PendingACK) -> None:
        """Adds a message; the one that was there under its id is forgotten."""
        reference = _Reference(pending, self._gone)
        reference.key, reference.message_id = pending._mailbox, pending.id
        self._references.setdefault(pending._mailbox, {})[pending.id] = reference

    def pop(self, key: str, message_id: str) -> PendingACK | None:
        """Takes a message out; None if nobody holds one."""
        ids = self._references.get(key)
        reference = None if ids is None else ids.pop(message_id, None)
        if ids is not None and not ids:
            del self._references[key]
        return None if reference is None else reference()

    def of(self, key: str) -> list[PendingACK]:
        """The messages of a mailbox, in the order in which they were added."""
        # A copy: a reference may end at any time, also in another thread.
        held = [reference() for reference in list(self._references.get(key, {}).values())]
        return [pending for pending in held if pending is not None]

    def keys(self) -> list[str]:
        """The mailboxes that have messages."""
        return list(self._references)

    def __iter__(self) -> Iterator[PendingACK]:
        for key in self.keys():
            yield from self.of(key)

    def clear(self) -> None:
        """Forgets all of them."""
        self._references.clear()

    def _gone(self, reference: weakref.ref[PendingACK]) -> None:
        assert isinstance(reference, _Reference)
        ids = self._references.get(reference.key)
        if ids is not None and ids.get(reference.message_id) is reference:
            del ids[reference.message_id]
            if not ids:
                del self._references[reference.key]
