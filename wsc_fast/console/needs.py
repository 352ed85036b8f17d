"""The things that the room `console` needs of a hub: its public calls, and a few others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wsc_fast._core.connection import Client
from wsc_fast.bus.base import Bus, NodeInfo, Page
from wsc_fast.messages import HubMessage
from wsc_fast.observe.readings import Reading
from wsc_fast.runtime.life import Companion
from wsc_fast.upgrade.routes import Guard, Route


class WatchedCluster(Protocol):
    """The calls of `Hub.cluster` that are used."""

    async def count(self, room_id: str) -> int: ...
    async def nodes(self) -> list[NodeInfo]: ...
    async def send_to_user(self, user_id: str, message: HubMessage) -> int: ...
    async def disconnect_user(self, user_id: str, code: int = 1000, reason: str = "") -> int: ...


class WatchedHub(Protocol):
    """The calls of `Hub` that are used."""

    @property
    def cluster(self) -> WatchedCluster: ...
    @property
    def bus(self) -> Bus | None: ...
    def get_client_by_id(self, client_id: str) -> Client | None: ...
    def get_connected_client_ids(self) -> list[str]: ...
    def get_all_connected_users(self) -> list[str]: ...
    def get_clients_by_user(self, user_id: str) -> list[Client]: ...
    def get_rooms(self) -> list[str]: ...
    def get_room_size(self, room_id: str) -> int: ...
    def get_room_clients(self, room_id: str) -> list[str]: ...
    def slowest_clients(self, n: int = 10) -> list[Client]: ...
    def broadcast_to_room(self, room_id: str, message: str) -> int: ...


class Node(Protocol):
    """The hub among the others."""

    name: str

    async def ask_hub(self, hub: str, content: bytes, *, again: bool = True) -> bytes: ...
    def answer_hubs(self, answerer: Callable[[bytes], Awaitable[bytes]]) -> None: ...
    def bus_state(self) -> str: ...
    def keeps(self, room_id: str) -> bool: ...
    async def page(self, room_id: str, after: str | None, limit: int) -> Page: ...
    def is_watched(self, room_id: str) -> bool: ...


class AddRoute(Protocol):
    """Serves a path."""

    def __call__(
        self, path: str, methods: tuple[str, ...], route: Route, guard: Guard, /
    ) -> object: ...


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to this room.

    Attributes:
        hub: its public calls.
        node: the hub among the others.
        watch_loop: has the lag of the loop measured from now on.
        read: the counters of this moment; after `watch_loop`.
        count_pending: the messages that each of several clients may acknowledge.
        count_stored: the messages that are stored for a user; None where none are.
        authenticates: whether a function is the hub's own `authenticate`.
        count_rejected: counts a refusal.
        draining: whether the hub sends its clients away.
        check_route, add_route: serve a path.
        accompany: has a companion begin and end with the hub.
        running: whether the hub runs.
    """

    hub: WatchedHub
    node: Node
    watch_loop: Callable[[], object]
    read: Callable[[], Reading]
    count_pending: Callable[[Sequence[Client]], Awaitable[list[int]]]
    count_stored: Callable[[str], Awaitable[int | None]]
    authenticates: Callable[[object], bool]
    count_rejected: Callable[[str], object]
    draining: Callable[[], bool]
    check_route: Callable[[str, Sequence[str]], object]
    add_route: AddRoute
    accompany: Callable[[Companion], object]
    running: Callable[[], bool]
