"""The clients that are there, and their rooms, as the soak's server knows from its own calls."""

from __future__ import annotations

from trials.soak.log import Log
from wsc_fast import Client


class Roster:
    """Clients that have entered, and have neither gone nor been closed by the hub.

    Attributes:
        here: all of them.
        ids, users, rooms: the same, by id, user and room.
    """

    def __init__(self, log: Log) -> None:
        self.here: list[Client] = []
        self.ids: dict[str, Client] = {}
        self.users: dict[str, set[Client]] = {}
        self.rooms: dict[str, set[Client]] = {}
        self._log = log
        self._place: dict[Client, int] = {}  # in `here`

    def __contains__(self, client: Client) -> bool:
        return client in self._place

    def enter(self, client: Client) -> None:
        """It has come; one of the same id, whose place it takes, is closed."""
        if (older := self.ids.get(client.id)) is not None:
            self.closed(older, 4409)
        self.ids[client.id] = client
        self._place[client] = len(self.here)
        self.here.append(client)
        self.users.setdefault(client.user_id, set()).add(client)
        self._log("E", client.user_data["serial"], client.user_id)

    def closed(self, client: Client, code: int) -> None:
        """The hub closes it now, or has just done so."""
        self._log("K", client.user_data["serial"], code)
        self.forget(client)

    def forget(self, client: Client) -> None:
        """It counts no more; harmless if it does not already."""
        place = self._place.pop(client, None)
        if place is None:
            return
        del self.ids[client.id]
        last = self.here.pop()
        if last is not client:
            self.here[place] = last
            self._place[last] = place
        members = self.users[client.user_id]
        members.discard(client)
        if not members:
            del self.users[client.user_id]
        for room in self.rooms.values():
            room.discard(client)
