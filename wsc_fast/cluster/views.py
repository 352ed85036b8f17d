"""The users of rooms as this hub sees them, and what it tells the application of their changes.

A view is one read of who is in a room, and the joins and leaves that have come since the room's
channel was subscribed, on top: those that came before the read, too, since it went another way. It
is read anew when something may have been missed. So the application hears each change once, however
often a message of the bus was lost or repeated, and changes that cancel each other not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from wsc_fast.bus.base import PRESENCE, Bus
from wsc_fast.errors import BusError, HubStateError
from wsc_fast.log import log

# Seconds between two calls of the application about one room.
PERIOD = 0.25
# Seconds after which a view is read again. A bus that has lost data is whole by then: every hub has
# entered its users anew.
SETTLE = 3.0
# Reads at once: all rooms are read when the bus is back.
MOST_READS = 64
# Rooms of which the application hears in one turn of the loop.
MOST_TOLD = 1000
# Seconds until the next attempt after a read that failed.
RETRY = 1.0

# A call of the application: the room, the users who have come, and those who have left. Where it
# takes time, the next call about this room waits for the end of the task.
Tell = Callable[[str, set[str], set[str]], "asyncio.Task[None] | None"]


class View:
    """One room.

    Attributes:
        told: the users that the application knows of.
        changed: users about whom it has to hear, and whether they are there.
        since: what has come since the subscription, while a read is due; None: none is.
        reading: the read that is due or under way.
        is_read: it was read once, so that changes can be told.
        telling: a call that goes on.
    """

    __slots__ = ("changed", "is_read", "reading", "since", "telling", "told")

    def __init__(self) -> None:
        self.told: set[str] = set()
        self.changed: dict[str, bool] = {}
        self.since: dict[str, bool] | None = None
        self.reading: asyncio.Task[None] | None = None
        self.is_read: bool = False
        self.telling: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Nobody reads it any more."""
        reading, self.reading = self.reading, None
        # A closed loop has ended its tasks, and raises where one is cancelled.
        if reading is not None and not reading.get_loop().is_closed():
            reading.cancel()

    def take(self, found: set[str]) -> None:
        """It was read: what has come meanwhile goes on top."""
        assert self.since is not None
        self.changed = dict.fromkeys(found - self.told, True)
        self.changed |= dict.fromkeys(self.told - found, False)
        self.changed |= self.since
        self.since = None
        self.is_read = True

    def settle(self) -> tuple[set[str], set[str]]:
        """The users who have come and those who have left, of whom the application knows now."""
        joined = {user for user, here in self.changed.items() if here} - self.told
        left = {user for user, here in self.changed.items() if not here} & self.told
        self.changed = {}
        self.told |= joined
        self.told -= left
        return joined, left


class Views:
    """The views of one hub.

    Args:
        bus: of the hub.
        tell: tells the application.
        settle, period: see SETTLE and PERIOD.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        bus: Callable[[], Bus],
        tell: Tell,
        settle: float,
        period: float,
    ) -> None:
        self._bus = bus
        self._tell = tell
        self._settle = settle
        self._period = period
        self._views: dict[str, View] = {}
        self._dirty: dict[str, None] = {}
        self._reads = asyncio.Semaphore(MOST_READS)
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._views)

    def follow(self, room: str) -> None:
        """Has the application hear of a room from now on."""
        if room not in self._views:
            self._views[room] = View()
            self._bus().subscribe([PRESENCE + room])

    def leave(self, room: str) -> None:
        """The application hears of this room no more."""
        view = self._views.pop(room, None)
        if view is not None:
            view.end()
            self._bus().unsubscribe([PRESENCE + room])

    def forget(self) -> None:
        """The hub has stopped."""
        for view in self._views.values():
            view.end()
        self._views.clear()
        self._dirty.clear()
        self._reads = asyncio.Semaphore(MOST_READS)  # the next run may be on another loop
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what the bus says ---

    def subscribed(self, room: str, again: bool) -> None:
        """See `Handler.subscribed`."""
        view = self._views.get(room)
        if view is None:
            return
        view.end()
        view.since = {}
        loop = asyncio.get_running_loop()
        view.reading = loop.create_task(self._read(room, view, self._settle if again else 0.0))

    def heard(self, room: str, lines: str) -> None:
        """Joins and leaves have come; see `Handler.envelope`."""
        view = self._views.get(room)
        if view is None:
            return
        for line in lines.split("\n"):
            if line[:1] in ("+", "-"):
                view.changed[line[1:]] = line[0] == "+"
                if view.since is not None:
                    view.since[line[1:]] = line[0] == "+"
        self._note(room, view)

    async def _read(self, room: str, view: View, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                async with self._reads:
                    found = set(await members_of(self._bus(), room))
            except (BusError, HubStateError) as error:
                pause = RETRY
                log.warning(
                    "the users in room %a could not be read: %s",
                    room,
                    error,
                    extra={"event": "presence_read_failed", "room": room, "error": str(error)},
                )
                continue
            view.take(found)
            view.reading = None
            self._note(room, view)
            return

    # --- what the application hears ---

    def _note(self, room: str, view: View) -> None:
        if view.changed and view.is_read and view.telling is None:
            self._dirty[room] = None
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._period, self._tell_all)

    def _tell_all(self) -> None:
        self._timer = None
        some = list(islice(self._dirty, MOST_TOLD))
        for room in some:
            del self._dirty[room]
        if self._dirty:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(0, self._tell_all)
        for room in some:
            view = self._views.get(room)
            if view is not None:
                self._tell_one(room, view)

    def _tell_one(self, room: str, view: View) -> None:
        joined, left = view.settle()
        if not joined and not left:
            return
        view.telling = self._tell(room, joined, left)
        if view.telling is not None:
            view.telling.add_done_callback(lambda _: self._told(room, view))

    def _told(self, room: str, view: View) -> None:
        view.telling = None
        if self._views.get(room) is view:
            self._note(room, view)


async def members_of(bus: Bus, room: str) -> dict[str, int]:
    """The users in a room with the number of their clients, read page by page."""
    found: dict[str, int] = {}
    cursor = ""
    while True:
        cursor, page = await bus.members(room, cursor)
        found.update((each.user_id, each.clients) for each in page)
        if not cursor:
            return found
