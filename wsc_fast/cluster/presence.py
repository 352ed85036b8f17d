"""The presence of users: as the bus is told of those of this hub, and as the application hears.

The callbacks of the hub tell of each room that a client joins and leaves; users.py hears of clients
that come and go. This counts the clients of each user in a room, and gives the bus what has
changed. The bus keeps it for all hubs (`bus.base.Bus.directory`). A room is watched if its id
matches a pattern. In such a room the application hears of joins and leaves on each hub that has
members (views.py).
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast.bus.base import PRESENCE, Bus, Change
from wsc_fast.cluster import views
from wsc_fast.cluster.counters import Counters
from wsc_fast.runtime.inbox import is_awaitable
from wsc_fast.runtime.tasks import Tasks

# Seconds for which a room without members here is followed on, beside the grace.
LINGER = 10.0
# So many rooms are looked at in one turn of `look`, and so many answers of patterns are known.
MOST_LOOKED_AT, MOST_KNOWN = 1000, 10_000


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that presence needs of its hub.

    Attributes:
        engine, tasks, counters: of the hub.
        bus: the bus, once it is open; None before and after.
        grace: seconds after which a leave is told.
        report: tells the application of an error.
    """

    engine: Engine
    tasks: Tasks
    counters: Counters
    bus: Callable[[], Bus | None]
    grace: Callable[[], float]
    report: Callable[[BaseException], None]


class Presence:
    """The presence of one hub: `runtime.callbacks.RoomWatcher`.

    Args:
        needs: of the hub.
        callbacks: of the application, for `on_presence`; may grow.

    Thread-safety: the loop's thread, but for `watch` before the start.
    """

    def __init__(self, needs: Needs, callbacks: Sequence[Callable[..., object]]) -> None:
        self._needs = needs
        self._callbacks = callbacks
        self._patterns: tuple[Callable[[str], object], ...] = ()
        self._known: dict[str, bool] = {}
        # By room and user, his clients here.
        self._clients: dict[tuple[str, str], int] = {}
        # By room, its members here, and since when rooms have none.
        self._members: dict[str, int] = {}
        self._emptied: dict[str, float] = {}
        # Somebody hears, so that rooms with members are followed.
        self._follows = False
        self._views = views.Views(self._bus, self._tell, views.SETTLE, views.PERIOD)

    def _bus(self) -> Bus:
        bus = self._needs.bus()
        assert bus is not None
        return bus

    # --- which rooms ---

    def watch(self, patterns: Sequence[str]) -> None:
        """Rooms whose ids match are watched from now on."""
        self._patterns += tuple(re.compile(fnmatch.translate(each)).match for each in patterns)
        self._known = {}

    def is_watched(self, room_id: str) -> bool:
        """Whether the users in a room are known."""
        found = self._known.get(room_id)
        if found is None:
            found = any(match(room_id) for match in self._patterns)
            if len(self._known) >= MOST_KNOWN:
                self._known = {}
            self._known[room_id] = found
        return found

    # --- what the callbacks tell ---

    def joined(self, client: Client, room_id: str) -> None:
        """See `RoomWatcher`."""
        if self.is_watched(room_id):
            self._members[room_id] = self._members.get(room_id, 0) + 1
            self._emptied.pop(room_id, None)
            self._follow_all()
            self._follow(room_id)
            self._change(room_id, client, 1)

    def left(self, client: Client, room_id: str) -> None:
        """See `RoomWatcher`."""
        if self.is_watched(room_id):
            self._change(room_id, client, -1)
            members = self._members.pop(room_id, 0) - 1
            if members > 0:
                self._members[room_id] = members
            elif self._needs.engine.loop is not None:
                self._emptied[room_id] = self._needs.engine.loop.time()

    def _follow(self, room_id: str) -> None:
        if self._follows:
            self._views.follow(room_id)

    def _follow_all(self) -> None:
        """From the first callback on, which may be set while the hub runs."""
        if not self._follows and self._callbacks and self._needs.bus() is not None:
            self._follows = True
            for room_id in self._members:
                self._follow(room_id)

    def _change(self, room_id: str, client: Client, more: int) -> None:
        key = room_id, client.user_id
        clients = self._clients.get(key, 0) + more
        if clients > 0:
            self._clients[key] = clients
        else:
            self._clients.pop(key, None)
        self._needs.counters.presence_changes += 1
        bus = self._needs.bus()
        if bus is not None:
            bus.directory([Change(room_id, client.user_id, max(clients, 0))])

    # --- what the bus tells ---

    def opened(self) -> None:
        """The bus is open; clients may have come before."""
        self._follow_all()
        self._bus().directory(
            [Change(room, user, clients) for (room, user), clients in self._clients.items()]
        )

    def heard(self, channel: str, lines: str) -> None:
        """See `Handler.envelope`, for a channel of PRESENCE."""
        self._views.heard(channel.removeprefix(PRESENCE), lines)

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        """See `Handler.subscribed`, for channels of PRESENCE."""
        for each in channels:
            self._views.subscribed(each.removeprefix(PRESENCE), again)

    def look(self, now: float) -> None:
        """Lets go of rooms without members here, and looks for the first callback.

        To be called each second or so.

        Args:
            now: on the loop's clock.
        """
        self._follow_all()
        for room_id, since in list(self._emptied.items())[:MOST_LOOKED_AT]:
            if now - since < LINGER + self._needs.grace():
                return
            del self._emptied[room_id]
            self._views.leave(room_id)

    def forget(self) -> None:
        """The hub has stopped: nobody is here."""
        self._views.forget()
        self._follows = False
        self._clients.clear()
        self._members.clear()
        self._emptied.clear()

    # --- what the application hears ---

    def _tell(self, room_id: str, joined: set[str], left: set[str]) -> asyncio.Task[None] | None:
        self._needs.counters.presence_told += len(joined) + len(left)
        return call_all(self._needs, self._callbacks, lambda: (room_id, set(joined), set(left)))


def call_all(
    needs: Needs, callbacks: Sequence[Callable[..., object]], arguments: Callable[[], Any]
) -> asyncio.Task[None] | None:
    """Calls callbacks that concern no client, and reports their errors.

    Args:
        needs: of the hub.
        callbacks: each is called, whatever another one raises.
        arguments: makes those of each.

    Returns:
        asyncio.Task[None] | None: ends with the async ones; None where there is none.
    """
    context = needs.engine.new_context()
    results: list[Awaitable[object]] = []
    for fn in callbacks:
        try:
            result = context.run(fn, *arguments())
        except BaseException as error:
            needs.report(error)  # those of other rooms are told behind this one
        else:
            if is_awaitable(result):
                results.append(result)  # type: ignore[arg-type]
    return needs.tasks.spawn(_await_all(needs, results), context) if results else None


async def _await_all(needs: Needs, results: list[Awaitable[object]]) -> None:
    for result in results:
        try:
            await result
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            needs.report(error)
