"""The things that the room `api` needs of a hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.pending import PendingACK
from wsc_fast.bus.base import Member, Page, Published
from wsc_fast.messages import ACKMessage, HubMessage
from wsc_fast.upgrade.routes import Guard, Route


class Publishing(Protocol):
    """The hub's node."""

    def prepare(self) -> None:
        """To be called once before the others."""

    async def publish_anywhere(
        self,
        room_id: str,
        message: str | bytes,
        exclude: Iterable[str],
        key: str | None,
        idempotency_key: str | None,
    ) -> Published:
        """Publishes to a room, or to all clients."""

    def keeps(self, room_id: str) -> bool:
        """Tells whether a room has a history."""

    async def page(self, room_id: str, after: str | None, limit: int) -> Page:
        """Reads a part of a room's history."""

    def is_watched(self, room_id: str) -> bool:
        """Tells whether a room has presence."""

    async def members_page(self, room_id: str, cursor: str) -> tuple[str, Sequence[Member]]:
        """Reads a page of the users in a room, see `Bus.members`."""

    async def count(self, room_id: str) -> int:
        """Counts the users in a room."""

    async def send_to_user(self, user_id: str, message: HubMessage) -> int:
        """Sends to a user on all hubs; returns how many hubs have queued it."""

    async def disconnect_user(self, user_id: str, code: int, reason: str) -> int:
        """Closes the clients of a user on all hubs; returns how many these were."""

    async def online(self, user_ids: Sequence[str]) -> set[str]:
        """Tells which users are connected to any hub."""

    def bus_state(self) -> str:
        """Tells whether the hub hears of the others: "none", "up" or "down"."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to this room.

    Attributes:
        engine: counts refusals.
        client_of: the client with an id; None: it is not connected here.
        count_clients: how many clients are connected.
        node: publishes and reads.
        has_acks: whether acknowledgements are enabled.
        send_with_ack: as `Hub.send_ack_message_to_user`.
        draining: whether the hub sends its clients away.
        check_route: raises ValidationError for a path and methods that cannot be served.
        add_route: serves a path: `add_route(path, methods, route, guard)`.
    """

    engine: Engine
    client_of: Callable[[str], Client | None]
    count_clients: Callable[[], int]
    node: Publishing
    has_acks: Callable[[], bool]
    send_with_ack: Callable[[str, ACKMessage], PendingACK]
    draining: Callable[[], bool]
    check_route: Callable[[str, tuple[str, ...]], object]
    add_route: Callable[[str, tuple[str, ...], Route, Guard], object]
