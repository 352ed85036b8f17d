"""The part of the hub's face that is about kept rooms: a base of Hub, with nothing of its own.

node.py does the work of these calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

from wsc_fast._core.calls import Calls
from wsc_fast._core.clients import check_id
from wsc_fast._core.connection import Client
from wsc_fast._core.frames import check_close
from wsc_fast.bus.base import Bus, HistoryEntry, Member, NodeInfo, Published
from wsc_fast.cluster.node import Node
from wsc_fast.errors import ValidationError, shown
from wsc_fast.messages import HubMessage
from wsc_fast.runtime.signatures import OfNode, OfPresence, OfUsers


class Cluster:
    """The calls of `Hub.cluster`.

    Thread-safety: any thread with a running loop.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def history(
        self, room_id: str, *, after: str | None = None, limit: int = 100
    ) -> list[HistoryEntry]:
        """The messages of a kept room.

        Args:
            room_id: a str.
            after: the position after which to begin; None gives the newest messages.
            limit: 1 to 1000.

        Returns:
            list[HistoryEntry]: the oldest first.

        Raises:
            LookupError: the history does not reach back to `after`, or the bus has lost messages
                behind it.
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: an argument cannot be used, or the room is not kept.
            HubStateError: the hub does not run in this process.
        """
        from wsc_fast.bus.kept import check_page  # most hubs keep nothing

        check_page(after, limit)
        return await self._node.history(room_id, after, limit)

    async def delete_room(self, room_id: str) -> None:
        """Deletes the history of a kept room, for all hubs. Its members stay.

        The messages that this hub has published before are deleted, too, also those on their way.

        Members who speak wsc.1 hear a gap, on each hub; a client that comes back with a position of
        before hears `"recovered":false`. The next message begins a history of its own. Idempotency
        keys stay known. `Hub.delete_room` ends a room on this hub, and deletes no history.

        Args:
            room_id: a str.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: the id cannot be used, or the room is not kept.
            HubStateError: the hub does not run in this process.
        """
        await self._node.delete_room(room_id)

    async def members(self, room_id: str) -> list[Member]:
        """The users who are present in a room, on all hubs.

        Args:
            room_id: of a room with presence; see `Hub.presence`.

        Returns:
            list[Member]: in no order. Of a large room they are read in several calls of the bus;
                one who comes or goes meanwhile may be there or not.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: the room has no presence.
            HubStateError: the hub does not run in this process.
        """
        return await self._node.members(room_id)

    async def count(self, room_id: str) -> int:
        """How many users are present in a room, on all hubs; one call of the bus.

        The users of a hub that was killed count until its lease has ended.

        Args:
            room_id: of a room with presence; see `Hub.presence`.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: the room has no presence.
            HubStateError: the hub does not run in this process.
        """
        return await self._node.count(room_id)

    async def online(self, user_ids: Iterable[str]) -> set[str]:
        """The users among these who are connected to any hub.

        Args:
            user_ids: of users, known or not.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: an id cannot be used, or presence is off.
            HubStateError: the hub does not run in this process.
        """
        if isinstance(user_ids, str):
            raise ValidationError(f"user_ids must be several ids, not the str {user_ids!a}")
        users = [check_id("user", each) for each in user_ids]
        return await self._node.online(users)

    async def send_to_user(self, user_id: str, message: HubMessage) -> int:
        """Sends a message to all clients of a user, on all hubs, and says whether it found any.

        `Hub.send_to_user` does the same without an answer of the other hubs.

        Args:
            user_id: a str.
            message: a HubMessage.

        Returns:
            int: how many hubs have queued it for clients of the user.

        Raises:
            UserOfflineError: the user has no connected client on any hub.
            QueueFullError: nobody has got it, and the outboxes of his clients here are full.
            BusUnavailableError: nobody has got it here, and the bus did not take it, or nobody
                knows whether it did.
            BusError: nobody has got it here, and the bus refuses it.
            ValidationError: an argument cannot be used.
            HubStateError: the hub does not run in this process.
        """
        return await self._node.send_to_user(user_id, message)

    async def disconnect_user(self, user_id: str, code: int = 1000, reason: str = "") -> int:
        """Closes all connections of a user on all hubs, and returns how many these were.

        Args:
            user_id, code, reason: as for `Hub.disconnect_user`.

        Returns:
            int: how many clients it was.

        Raises:
            BusUnavailableError: the bus did not answer in time, or one of the hubs did not within 2
                seconds; the clients of this hub are closed.
            BusError: the bus refuses; the clients of this hub are closed.
            ValidationError: an argument cannot be used.
            HubStateError: the hub does not run in this process.
        """
        check_id("user", user_id)
        check_close(code, reason)
        return await self._node.disconnect_user(user_id, code, reason)

    async def nodes(self) -> list[NodeInfo]:
        """The hubs that are one with this one, itself included; those that have presence.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses: a right of its user is missing, for one.
            ValidationError: presence is off.
            HubStateError: the hub does not run in this process.
        """
        return list(await self._node.ask(lambda bus: bus.nodes()))

    def counters(self) -> dict[str, int]:
        """Counts of kept rooms and the bus, since the hub was made or the last `reset_stats`.

        Returns:
            dict[str, int]: by name; docs/reference.md has them in a table.

        Thread-safety: any thread.
        """
        return asdict(self._node.counters)


def chosen_bus(bus: Bus | str) -> Bus:
    """The bus that the application means.

    Raises:
        ConfigError: a str other than "local".
        ImportError: "local" needs redis-py, which is not installed.
    """
    if not isinstance(bus, str):
        return bus
    from wsc_fast.bus.local import bus_of

    return bus_of(bus)


class ClusterFace(Calls):
    """Base of Hub: kept rooms (internal)."""

    _node: Node

    @property
    def bus(self) -> Bus | None:
        """The bus that the hub was given; None where there is none."""
        return self._node.given_bus

    def set_bus(self, bus: Bus | str) -> None:
        """Gives the hub its bus, in place of the one of its constructor. Kept rooms stay kept.

        Args:
            bus: see `Hub`.

        Raises:
            HubStateError: the hub runs already.
            ConfigError: bus is a str other than "local".
            ImportError: "local" needs redis-py, which is not installed.

        Thread-safety: any thread.
        """
        self._node.set_bus(chosen_bus(bus))

    def keep(
        self,
        pattern: str,
        *,
        size: int = 100,
        ttl: float = 300.0,
        gap_unaware: Literal["nothing", "close"] = "nothing",
    ) -> None:
        """Keeps the messages of rooms, so that clients which come back get what they missed.

        A kept room has a history and one order of messages. It needs no `create_room`: its first
        member makes it, and it goes with its last one, while the history stays. A client recovers
        if it speaks wsc.1 (docs/wire.md); others get what they get of any room.

        Args:
            pattern: of room ids, as of a shell: `chat:*`. The first pattern that matches counts.
            size: how many messages are kept of each room, 1 to 10,000.
            ttl: for how long after the last one, in seconds, 1 to 86,400.
            gap_unaware: what becomes of members who do not speak wsc.1 where messages are missing
                and cannot be read. "nothing": they are not told. "close": they are closed with
                1013, so that they come back and load the state anew.

        Raises:
            ValidationError: an argument cannot be used.
            HubStateError: the hub runs already.

        Thread-safety: any thread.
        """
        from wsc_fast.bus.kept import checked_pattern, checked_retention  # most hubs keep nothing

        checked_pattern(pattern)
        retention = checked_retention(size, ttl)
        if gap_unaware not in ("nothing", "close"):
            raise ValidationError(
                f'gap_unaware must be "nothing" or "close", not {shown(gap_unaware)}'
            )
        self._node.keep(pattern, retention, gap_unaware == "close")

    def presence(self, *patterns: str) -> None:
        """Has all hubs know which users are connected, and which are in these rooms.

        Then `cluster` has `members`, `count`, `online` and `nodes`, and `on_presence` is called.
        All hubs need the same patterns. A hub alone needs no bus for it.

        Args:
            *patterns: of room ids, as of a shell: `chat:*`. None: no rooms.

        Raises:
            ValidationError: a pattern cannot be used, or the hub has no `authenticate`, so that all
                its clients are anonymous.
            HubStateError: the hub runs already.

        Thread-safety: any thread.
        """
        from wsc_fast.bus.kept import checked_pattern  # most hubs ask for no presence

        for each in patterns:
            checked_pattern(each)
        self._node.presence(patterns)

    def on_presence(self, fn: OfPresence) -> OfPresence:
        """Has `fn(room_id, joined, left)` called for users who have come to a room or left it.

        It is called on each hub that has members in the room, every 250 ms at most, for the rooms
        of `presence`. A hub whose first member enters hears of all users in the room. A user has
        left once his last client has on all hubs, and `presence_grace` has passed.

        Args:
            fn: plain or async; `joined` and `left` are sets of user ids. While an async one goes on
                for a room, further changes of that room wait for its end.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread.
        """
        return self._node.add_presence(fn)

    def on_users(self, fn: OfUsers) -> OfUsers:
        """Has `fn(online, offline)` called for users who have come to a hub, or left the last one.

        It is called on each hub, every 250 ms at most, and hears first of all who are there. A user
        is offline once his last client has gone on all hubs, and `presence_grace` has passed. Each
        hub that hears of them holds the ids of all users. A hub with a bus and an `authenticate`
        knows its users; one alone needs `presence`.

        Args:
            fn: plain or async; `online` and `offline` are sets of user ids. While an async one goes
                on, further changes wait for its end.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread.
        """
        return self._node.add_users(fn)

    def on_node(self, fn: OfNode) -> OfNode:
        """Has `fn(node, is_up)` called for other hubs on the bus that have come or gone.

        It is called with True for each that is there when this hub starts, and for each that comes;
        with False once one has been missing for 3 seconds. One that was killed is missing once its
        lease has ended. It needs `authenticate` and a bus with others, on all hubs. While the bus
        is away nothing is told.

        Args:
            fn: plain or async; `node` is a NodeInfo, the last that was known of the hub. While an
                async one goes on, further changes wait for its end.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread.
        """
        return self._node.add_node(fn)

    async def publish(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str | Client] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Published:
        """Publishes a message to a room, and returns once the bus has taken it.

        `broadcast_to_room` does the same without an answer.

        Args:
            room_id: of the room.
            message, exclude, key: as for `broadcast`. The priority of a HubMessage is not regarded
                in a kept room, whose members get all messages in one order, nor with an
                idempotency key.
            idempotency_key: 1 to 128 bytes. For 300 seconds a further message to the room under the
                same key is not published, on any hub; the answer then is that of the first.

        Returns:
            Published: with the position in a kept room. Members of a plain room who are here get
                the message at once; with an idempotency key, once the bus has taken it.

        Raises:
            BusUnavailableError: the bus did not take it in time. In a plain room without an
                idempotency key, members who are here have got it.
            BusError: the bus refuses it, a full one for example; else as before.
            RoomNotFoundError: the room is plain, no bus connects the hub with others, and it is not
                there.
            ValidationError: an argument cannot be used.
            HubStateError: the hub does not run in this process.

        Thread-safety: any thread with a running loop.
        """
        return await self._node.publish(room_id, message, exclude, key, idempotency_key)

    @property
    def cluster(self) -> Cluster:
        """The calls about what the hub shares with others, such as histories."""
        return Cluster(self._node)
