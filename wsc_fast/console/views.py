"""The views of this hub: what the page shows of it, as types that become JSON.

A view of a client, user or room is None where this hub has none of that id. Ids are checked by the
calls of the hub; all lists and texts are cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec

from wsc_fast._core.connection import Client
from wsc_fast._core.envelopes import open_entry
from wsc_fast.bus.base import Entry
from wsc_fast.console.log_ring import LogLine, LogRing
from wsc_fast.console.needs import Needs
from wsc_fast.console.samples import Sample, Samples
from wsc_fast.console.top_lists import Sized, Slow, TopFinder
from wsc_fast.errors import BusError, OfflineStoreError, RoomNotFoundError
from wsc_fast.messages import payload_of
from wsc_fast.turns import in_turns

# Entries of a list, lines of the log in one answer, messages of a history.
MOST_LISTED, MOST_LINES, MOST_HISTORY = 50, 100, 20
# Characters of a message that is shown.
MOST_SHOWN = 500


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """One hub.

    Attributes:
        name: of the hub on the bus.
        bus: "none", "up" or "down".
        draining: whether it sends its clients away.
        uptime: seconds.
        samples: those behind the moment that was asked for.
        clients, connections, queued_messages, queued_bytes: gauges.
        dropped, rejected, limited, closes: counters by reason, since the last reset.
        rooms, users, room_count, user_count: see TopLists.
        slowest: clients.
        log: lines behind the number that was asked for, the newest first.
    """

    name: str
    bus: str
    draining: bool
    uptime: float
    samples: list[Sample]
    clients: int
    connections: int
    queued_messages: int
    queued_bytes: int
    dropped: dict[str, int]
    rejected: dict[str, int]
    limited: dict[str, int]
    closes: dict[str, int]
    rooms: list[Sized]
    users: list[Sized]
    room_count: int
    user_count: int
    slowest: list[Slow]
    log: list[LogLine]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One line about a hub.

    Attributes:
        name, bus, draining, uptime: see Overview.
        clients, rooms: how many.
        sample: the newest; None in the first seconds.
        error: why nothing else is known of it; "" where it is.
    """

    name: str
    bus: str = ""
    draining: bool = False
    uptime: float = 0.0
    clients: int = 0
    rooms: int = 0
    sample: Sample | None = None
    error: str = ""


class ClientView(msgspec.Struct, frozen=True, kw_only=True):
    """One client.

    Attributes:
        hub: the name of its hub.
        id, user, device, address, subprotocol: see Client; "" for none.
        connected, last_activity: seconds since the epoch.
        now: seconds since the epoch, on the clock of these.
        messages_in, bytes_in, frames_sent, bytes_out, dropped, conflated: counters.
        queued_messages, queued_bytes: gauges.
        round_trip: seconds; None where it is not known.
        unacknowledged: messages that wait for its acknowledgement.
        rooms: the first of them; room_count: of all.
    """

    hub: str
    id: str
    user: str
    device: str
    address: str
    subprotocol: str
    connected: float
    last_activity: float
    now: float
    messages_in: int
    bytes_in: int
    frames_sent: int
    bytes_out: int
    dropped: int
    conflated: int
    queued_messages: int
    queued_bytes: int
    round_trip: float | None
    unacknowledged: int
    rooms: list[str]
    room_count: int


class UserView(msgspec.Struct, frozen=True, kw_only=True):
    """A user on one hub, or on all.

    Attributes:
        id: of the user.
        clients: the first of them, without their rooms; client_count: of all.
        stored: messages in the offline store; None where there is none, or it does not answer.
        stored_error: why nothing is known of the store; "" for nothing.
        silent: names of hubs that did not answer.
    """

    id: str
    clients: list[ClientView]
    client_count: int
    stored: int | None = None
    stored_error: str = ""
    silent: list[str] = []


class Present(msgspec.Struct, frozen=True):
    """A client in a room."""

    id: str
    user: str
    hub: str


class Said(msgspec.Struct, frozen=True):
    """A message of a history."""

    position: str
    text: str


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """A room on one hub, or on all.

    Attributes:
        id: of the room.
        members: the first of them; member_count: of all.
        by_hub: members by the name of the hub.
        present: users in the room on all hubs; None where it has no presence.
        kept: whether it has a history.
        history: the newest messages, the oldest first.
        trouble: why history or presence is not known; "" for nothing.
        silent: names of hubs that did not answer.
    """

    id: str
    members: list[Present]
    member_count: int
    by_hub: dict[str, int]
    present: int | None = None
    kept: bool = False
    history: list[Said] = []
    trouble: str = ""
    silent: list[str] = []


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The ids that hold a text.

    Attributes:
        clients, users, rooms: the first that were found, those that begin with it first of all.
        silent: names of hubs that did not answer.
    """

    clients: list[str]
    users: list[str]
    rooms: list[str]
    silent: list[str] = []


class Views:
    """The views of one hub.

    Args:
        needs: of the hub.
        samples, log, top: what is known of it.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs, samples: Samples, log: LogRing, top: TopFinder) -> None:
        self._needs = needs
        self._hub = needs.hub
        self._samples = samples
        self._log = log
        self._top = top

    async def overview(self, since: float, line: int) -> Overview:
        """The hub.

        Args:
            since: the time of the last sample that is known.
            line: the number of the last line of the log that is known.
        """
        top = await self._top.lists()
        stats = self._needs.read().stats
        return Overview(
            name=self._needs.node.name,
            bus=self._needs.node.bus_state(),
            draining=self._needs.draining(),
            uptime=stats.uptime,
            samples=self._samples.after(since),
            clients=stats.connected_clients,
            connections=stats.connections,
            queued_messages=stats.queued_messages,
            queued_bytes=stats.queued_bytes,
            dropped={**stats.dropped, "refused": stats.refused},
            rejected=stats.rejected,
            limited=stats.limited,
            closes=stats.closes,
            rooms=top.rooms,
            users=top.users,
            room_count=top.room_count,
            user_count=top.user_count,
            slowest=self._top.slowest(),
            log=self._log.after(line, MOST_LINES),
        )

    def summary(self) -> Summary:
        """A line about the hub."""
        stats = self._needs.read().stats
        return Summary(
            name=self._needs.node.name,
            bus=self._needs.node.bus_state(),
            draining=self._needs.draining(),
            uptime=stats.uptime,
            clients=stats.connected_clients,
            rooms=stats.active_rooms,
            sample=self._samples.last,
        )

    async def client(self, client_id: str) -> ClientView | None:
        """A client."""
        client = self._hub.get_client_by_id(client_id)
        if client is None:
            return None
        (unacknowledged,) = await self._needs.count_pending([client])
        return self._client_view(client, unacknowledged, MOST_LISTED)

    def _client_view(self, client: Client, unacknowledged: int, most_rooms: int) -> ClientView:
        stats = client.stats()
        rooms = client.rooms
        return ClientView(
            hub=self._needs.node.name,
            id=client.id,
            user=client.user_id,
            device=client.device_id or "",
            address=client.remote_address,
            subprotocol=client.subprotocol or "",
            connected=stats.connected_at.timestamp(),
            last_activity=client.last_activity.timestamp(),
            now=time.time(),
            messages_in=stats.messages_in,
            bytes_in=stats.bytes_in,
            frames_sent=stats.frames_sent,
            bytes_out=stats.bytes_out,
            dropped=stats.dropped,
            conflated=stats.conflated,
            queued_messages=stats.queued_messages,
            queued_bytes=stats.queued_bytes,
            round_trip=stats.round_trip,
            unacknowledged=unacknowledged,
            rooms=list(rooms[:most_rooms]),
            room_count=len(rooms),
        )

    async def user(self, user_id: str) -> UserView:
        """A user; without clients where he is away."""
        clients = self._hub.get_clients_by_user(user_id)
        some = clients[:MOST_LISTED]
        pending = await self._needs.count_pending(some)
        found: list[ClientView] = []
        await in_turns(
            zip(some, pending, strict=True),
            lambda each: found.append(self._client_view(*each, most_rooms=0)),
        )
        return UserView(id=user_id, clients=found, client_count=len(clients))

    async def stored(self, user_id: str) -> tuple[int | None, str]:
        """The messages that are stored for a user; or None, and why that is not known."""
        try:
            return await self._needs.count_stored(user_id), ""
        except OfflineStoreError as error:
            return None, str(error)

    def room(self, room_id: str) -> RoomView:
        """A room; without members where there is none on this hub."""
        try:
            ids = self._hub.get_room_clients(room_id)
        except RoomNotFoundError:
            ids = []
        name = self._needs.node.name
        found = ((each, self._hub.get_client_by_id(each)) for each in ids[:MOST_LISTED])
        members = [Present(each, client.user_id, name) for each, client in found if client]
        by_hub = {name: len(ids)} if ids else {}
        return RoomView(id=room_id, members=members, member_count=len(ids), by_hub=by_hub)

    async def told_of_room(self, room_id: str) -> dict[str, Any]:
        """The fields of a RoomView that the bus knows, whichever hub asks."""
        fields: dict[str, Any] = {"kept": self._needs.node.keeps(room_id)}
        try:
            if fields["kept"]:
                page = await self._needs.node.page(room_id, None, MOST_HISTORY)
                fields["history"] = [Said(each.position, _shown(each)) for each in page.entries]
            if self._needs.node.is_watched(room_id):
                fields["present"] = await self._hub.cluster.count(room_id)
        except BusError as error:
            fields["trouble"] = str(error)
        return fields

    async def find(self, text: str) -> Found:
        """The ids that hold a text, whatever its case."""
        hub = self._hub
        return Found(
            clients=await _holding(text, hub.get_connected_client_ids),
            users=await _holding(text, hub.get_all_connected_users),
            rooms=await _holding(text, hub.get_rooms),
        )


async def _holding(text: str, ids: Callable[[], list[str]]) -> list[str]:
    wanted = text.casefold()
    first: list[str] = []
    others: list[str] = []

    def look(each: str) -> None:
        place = each.casefold().find(wanted)
        if place == 0 and len(first) < MOST_LISTED:
            first.append(each)
        elif place > 0 and len(others) < MOST_LISTED:
            others.append(each)

    listed = ids()
    await asyncio.sleep(0)  # to list very many takes a turn of its own
    await in_turns(listed, look)
    return best_of(text, first + others)


def best_of(text: str, ids: list[str]) -> list[str]:
    """The ids in the order in which they are shown: the very one, those that begin so, others."""
    wanted = text.casefold()
    ordered = sorted(
        dict.fromkeys(ids), key=lambda each: (each != text, not each.casefold().startswith(wanted))
    )
    return ordered[:MOST_LISTED]


def _shown(entry: Entry) -> str:
    # Not decoded whole: a message may have a megabyte.
    frame, _, _ = open_entry(entry.entry)
    text = payload_of(frame)[: 4 * MOST_SHOWN].decode("utf-8", "replace")
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
