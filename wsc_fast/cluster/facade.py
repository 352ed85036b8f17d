"""The part of the hub's face that is about kept rooms: a base of Hub, with nothing of its own.

node.py does the work of these calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

from wsc_fast._core.calls import Calls
from wsc_fast._core.connection import Client
from wsc_fast.bus.base import Bus, HistoryEntry, Published, Retention
from wsc_fast.cluster.node import Node
from wsc_fast.errors import ValidationError, shown
from wsc_fast.messages import HubMessage

# The bounds of what a kept room keeps.
MOST_SIZE, MOST_TTL = 10_000, 86_400.0
MOST_HISTORY = 1_000


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
            LookupError: the history does not reach back to `after`, or the bus has lost it.
            BusUnavailableError: the bus did not answer in time.
            ValidationError: an argument cannot be used, or the room is not kept.
            HubStateError: the hub does not run in this process.
        """
        if type(limit) is not int or not 0 < limit <= MOST_HISTORY:
            raise ValidationError(f"limit must be an int from 1 to {MOST_HISTORY}, not {limit!r}")
        if after is not None and (type(after) is not str or not 0 < len(after) <= 64):
            raise ValidationError(f"after must be a position or None, not {after!a}")
        return await self._node.history(room_id, after, limit)

    async def delete_room(self, room_id: str) -> None:
        """Deletes the history of a kept room, for all hubs. Its members stay.

        Members who speak wsc.1 hear a gap, on each hub; a client that comes back with a position of
        before hears `"recovered":false`. The next message begins a history of its own. Idempotency
        keys stay known. `Hub.delete_room` ends a room on this hub, and deletes no history.

        Args:
            room_id: a str.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            ValidationError: the id cannot be used, or the room is not kept.
            HubStateError: the hub does not run in this process.
        """
        await self._node.delete_room(room_id)

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
        if type(pattern) is not str or not 0 < len(pattern) <= 256:
            raise ValidationError(f"pattern must be a str of 1 to 256 characters, not {pattern!a}")
        if type(size) is not int or not 0 < size <= MOST_SIZE:
            raise ValidationError(f"size must be an int from 1 to {MOST_SIZE}, not {size!r}")
        if type(ttl) not in (int, float) or not 1 <= ttl <= MOST_TTL:
            raise ValidationError(f"ttl must be 1 to {MOST_TTL:.0f} seconds, not {ttl!r}")
        if gap_unaware not in ("nothing", "close"):
            raise ValidationError(
                f'gap_unaware must be "nothing" or "close", not {shown(gap_unaware)}'
            )
        self._node.keep(pattern, Retention(size, float(ttl)), gap_unaware == "close")

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
