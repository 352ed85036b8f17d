"""The users of a hub alone, in memory, and the rooms that they are in: presence on a MemoryBus.

As on a bus with several hubs, a leave is told after the grace, and only if the user is not back.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence

from wsc_fast.bus.base import EVERYBODY, Change, Member

# Leaves that are told in one turn of the loop.
MOST_ENDED = 1000


class MemoryDirectory:
    """The users of one hub.

    Args:
        grace: seconds after which a leave is told.
        tell: gets the room, and a line for each user who has come or left; see `Handler.envelope`.

    Thread-safety: the loop's thread.
    """

    def __init__(self, grace: Callable[[], float], tell: Callable[[str, bytes], object]) -> None:
        self._grace = grace
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        # By room, the users who are told to be there, with their clients; 0 in the grace.
        self._rooms: dict[str, dict[str, int]] = {}
        # When the grace of a user in a room ends; and of all, in order, those that came back too.
        self._ends: dict[tuple[str, str], float] = {}
        self._due: list[tuple[float, str, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Tells no leave any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def enter(self, changes: Sequence[Change]) -> None:
        """See `Bus.directory`."""
        said: dict[str, list[str]] = defaultdict(list)
        for room, user, clients in changes:
            users = self._rooms.setdefault(room, {})
            if clients:
                if user not in users:
                    said[room].append(f"+{user}")
                self._ends.pop((room, user), None)
                users[user] = clients
            elif users.get(user):
                self._leave(room, user, said)
            self._drop_if_empty(room)
        self._say(said)

    def _leave(self, room: str, user: str, said: dict[str, list[str]]) -> None:
        grace = self._grace()
        if not grace:
            del self._rooms[room][user]
            said[room].append(f"-{user}")
            return
        self._rooms[room][user] = 0
        due = self._loop.time() + grace
        self._ends[room, user] = due
        heapq.heappush(self._due, (due, room, user))
        self._set_timer()

    def _drop_if_empty(self, room: str) -> None:
        if not self._rooms[room]:
            del self._rooms[room]

    def _set_timer(self) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._due[0][0]:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due[0][0], self._end_some)

    def _end_some(self) -> None:
        self._timer = None
        said: dict[str, list[str]] = defaultdict(list)
        # A timer may be a little early.
        now = self._loop.time() + 0.001
        for _ in range(MOST_ENDED):
            if not self._due or self._due[0][0] > now:
                break
            due, room, user = heapq.heappop(self._due)
            if self._ends.get((room, user)) == due:
                del self._ends[room, user]
                del self._rooms[room][user]
                self._drop_if_empty(room)
                said[room].append(f"-{user}")
        if self._due:
            self._set_timer()
        self._say(said)

    def _say(self, said: dict[str, list[str]]) -> None:
        for room, lines in said.items():
            self._tell(room, "\n".join(lines).encode())

    # --- questions ---

    def members(self, room: str) -> list[Member]:
        """The users who are present in a room."""
        return [Member(user, clients) for user, clients in self._rooms.get(room, {}).items()]

    def count(self, room: str) -> int:
        """How many they are."""
        return len(self._rooms.get(room, ()))

    def online(self, users: Sequence[str]) -> set[str]:
        """The users among these who are connected."""
        return {user for user in users if user in self._rooms.get(EVERYBODY, ())}
