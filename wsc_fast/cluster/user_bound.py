"""The bound on the connections of one user, over all hubs on the bus.

A hub that has a new client of a user asks the bus how many clients the user has. Are there too
many, it asks the other hubs since when each of them is connected. Hubs sort these alike, so that
several that ask at once come to the same answer: the oldest clients stay, or the newest ones. A
client is closed by its id, so that two hubs that say so close one client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from wsc_fast._core.connection import Client
from wsc_fast.bus.base import Bus
from wsc_fast.cluster import words
from wsc_fast.cluster.questions import Questions
from wsc_fast.errors import BusError
from wsc_fast.log import log

Age = tuple[int, str]  # since when a client is connected, in ms since the epoch; and its id


class PerUser(Protocol):
    """The bound on the connections of a user, as this hub keeps it; see upgrade/per_user.py."""

    most: int

    @property
    def closes_oldest(self) -> bool: ...
    def refuse(self, client: Client) -> None: ...
    def close(self, client: Client) -> None: ...
    def clients(self, user_id: str) -> Sequence[Client]: ...


class UserBound:
    """The bound as one hub keeps it together with the others.

    Args:
        per_user: the bound on this hub.
        questions: to the other hubs.
        bus: the bus, once it is open; None before and after.
        name: of this hub on the bus.
        tell: sends a word to one hub.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        per_user: PerUser,
        questions: Questions,
        bus: Callable[[], Bus | None],
        name: Callable[[], str],
        tell: Callable[[str, words.AnyWord], None],
    ) -> None:
        self._per_user = per_user
        self._questions = questions
        self._bus = bus
        self._name = name
        self._tell = tell

    def concerns(self) -> bool:
        """Whether each new client is to be looked at."""
        bus = self._bus()
        return bool(self._per_user.most) and bus is not None and not bus.at_once

    async def look(self, client: Client) -> None:
        """Closes a client that is one too many of its user, or those that are too old."""
        bus, user_id, most = self._bus(), client.user_id, self._per_user.most
        try:
            if bus is None or await bus.clients(user_id) <= most:
                return
            name = self._name()
            found = await self._questions.ask(
                user_id, lambda number: words.Ages(user_id, name, number), all_hubs=False
            )
        except BusError as error:
            log.warning(
                "nobody knows whether user %a has too many connections: %s",
                user_id,
                error,
                extra={"event": "words_failed", "error": str(error)},
            )
            return
        self._judge(client, most, {**_lists(found), name: self.ages(user_id)})

    def _judge(self, client: Client, most: int, ages: Mapping[str, Sequence[Age]]) -> None:
        everybody = sorted((age, hub) for hub, each in ages.items() for age in each)
        ids = [client_id for (_, client_id), _ in everybody]
        if len(ids) <= most or client.id not in ids:
            return
        if not self._per_user.closes_oldest:
            if ids.index(client.id) >= most:
                self._per_user.refuse(client)
            return
        for (_, client_id), hub in everybody[: len(everybody) - most]:
            if hub == self._name():
                self.close(client.user_id, client_id)
            else:
                self._tell(hub, words.CloseClient(client.user_id, client_id))

    def ages(self, user_id: str) -> list[Age]:
        """Since when each client of a user here is connected."""
        return [
            (int(each.connected_at.timestamp() * 1000), each.id)
            for each in self._per_user.clients(user_id)
        ]

    def close(self, user_id: str, client_id: str) -> None:
        """Closes a client of a user here for a newer one, unless it has gone."""
        for each in self._per_user.clients(user_id):
            if each.id == client_id:
                self._per_user.close(each)


def _lists(found: Mapping[str, int | list[Age]]) -> dict[str, list[Age]]:
    return {hub: ages for hub, ages in found.items() if isinstance(ages, list)}
