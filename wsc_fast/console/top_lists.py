"""The largest rooms, the users with the most clients, and the fullest outboxes.

Rooms and users are gone through in turns of the loop, once for all who look: a result is shown
for some seconds, and longer where it took long to find. It is also shown while finding the next one
takes long.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterable

import msgspec

from wsc_fast.console.needs import WatchedHub
from wsc_fast.errors import RoomNotFoundError
from wsc_fast.turns import in_turns

# Entries of each list; seconds for which a result is shown; and times as long as it took to find.
MOST, KEEP, REST = 20, 4.0, 50.0
# Seconds that new lists are waited for where there are old ones. Another hub waits no longer than
# 1.5 s for the whole answer.
PATIENCE = 0.5


class Sized(msgspec.Struct, frozen=True):
    """A room with its members, or a user with his clients."""

    id: str
    size: int


class Slow(msgspec.Struct, frozen=True):
    """A client for which messages wait."""

    id: str
    user: str
    queued_messages: int
    queued_bytes: int
    dropped: int


class TopLists(msgspec.Struct, frozen=True):
    """The lists of one hub.

    Attributes:
        rooms, users: the largest first.
        room_count, user_count: of all.
        took: seconds until they were found, those of other work included.
    """

    rooms: list[Sized]
    users: list[Sized]
    room_count: int
    user_count: int
    took: float


class Largest:
    """The largest of many: takes one at a time, and holds no more than it returns."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        # The place decides between equal ones, so that the first counts and no ids are compared.
        self._heap: list[tuple[int, int, str]] = []
        self._place = 0

    def add(self, name: str, size: int) -> None:
        """Looks at one."""
        self._place -= 1
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (size, self._place, name))
        elif size > self._heap[0][0]:
            heapq.heapreplace(self._heap, (size, self._place, name))

    def found(self) -> list[Sized]:
        """The largest first."""
        return [Sized(name, size) for size, _, name in sorted(self._heap, reverse=True)]


class TopFinder:
    """Finds the lists of one hub.

    Args:
        hub: of which.

    Thread-safety: the loop's thread.
    """

    def __init__(self, hub: WatchedHub) -> None:
        self._hub = hub
        self._found: TopLists | None = None
        self._until = 0.0
        self._finding: asyncio.Task[TopLists] | None = None

    def forget(self) -> None:
        """The hub has stopped, or its loop was closed."""
        self._found = self._finding = None

    async def lists(self) -> TopLists:
        """The lists, found a moment ago; or older ones where it takes long to find them."""
        old = self._found
        if old is not None and time.monotonic() < self._until:
            return old
        loop = asyncio.get_running_loop()
        if self._finding is None or self._finding.get_loop() is not loop:
            self._finding = loop.create_task(self._find())
            self._finding.add_done_callback(self._end)
        # One who stops waiting does not stop it for the others.
        finding, patience = self._finding, None if old is None else PATIENCE
        await asyncio.wait([finding], timeout=patience)
        return finding.result() if old is None or finding.done() else old

    def _end(self, task: asyncio.Task[TopLists]) -> None:
        if self._finding is task:
            self._finding = None
        if not task.cancelled():
            task.exception()  # those who wait have it, if there are any

    async def _find(self) -> TopLists:
        began = time.monotonic()
        hub = self._hub
        rooms = hub.get_rooms()
        largest_rooms = await _largest(rooms, self._room_size)
        users = hub.get_all_connected_users()
        largest_users = await _largest(users, lambda user: len(hub.get_clients_by_user(user)))
        took = time.monotonic() - began
        self._found = TopLists(largest_rooms, largest_users, len(rooms), len(users), took)
        self._until = time.monotonic() + max(KEEP, REST * took)
        return self._found

    def _room_size(self, room_id: str) -> int:
        try:
            return self._hub.get_room_size(room_id)
        except RoomNotFoundError:
            return 0  # it was deleted meanwhile

    def slowest(self) -> list[Slow]:
        """The clients for which the most bytes wait; one call of the hub."""
        return [
            Slow(
                client.id,
                client.user_id,
                client.queued_messages,
                client.queued_bytes,
                client.dropped_messages,
            )
            for client in self._hub.slowest_clients(MOST)
        ]


async def _largest(names: Iterable[str], size_of: Callable[[str], int]) -> list[Sized]:
    largest = Largest()
    await asyncio.sleep(0)  # to list very many takes a turn of its own
    await in_turns(names, lambda name: largest.add(name, size_of(name)))
    return largest.found()
