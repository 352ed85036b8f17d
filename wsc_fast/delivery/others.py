"""The interface that deliveries need of the other hubs on a bus; cluster/users.py implements it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ended:
    """A message that the offline store holds, and that has ended on this hub.

    Attributes:
        user_id, mailbox, message_id: of the message.
        outcome: "confirmed", "failed", "timeout", "dropped"; or "again": it is sent anew.
            Of all but "confirmed" and "again" the first that any hub tells counts.
        text: of the error; empty where there is none.
        waits: the name of the hub that has sent it; "" where it is this one.
    """

    user_id: str
    mailbox: str
    message_id: str
    outcome: str
    text: str
    waits: str


class Others(Protocol):
    """The other hubs.

    Attributes:
        name: of this hub among them.
        elsewhere: users who are here and on other hubs.
        one_machine: all of them are on this machine.
    """

    elsewhere: set[str]

    @property
    def one_machine(self) -> bool: ...

    @property
    def name(self) -> str: ...

    def is_elsewhere(self, user_id: str) -> bool:
        """Whether other hubs may have a user: he is in `elsewhere`, or not here."""

    async def send(self, user_id: str, data: bytes, priority: int) -> int:
        """Sends a HubMessage, as JSON, to the other hubs that have a user; returns how many.

        Raises:
            BusError: the bus did not take it.
            ValidationError: it is too large for a bus.
        """

    def stored(self, user_id: str, mailbox: str) -> None:
        """A message was stored: the other hubs that have the user look there."""

    async def settle(self, ended: Sequence[Ended]) -> list[bool]:
        """Tells the other hubs how messages have ended.

        Returns:
            list[bool]: whether each counts; True where the bus could not be asked.
        """

    async def outcomes(
        self, user_id: str, mailbox: str, message_ids: Sequence[str]
    ) -> list[tuple[str, str] | None]:
        """The outcomes, with the texts of errors, that other hubs have told of messages.

        Raises:
            BusError: the bus did not answer.
        """
