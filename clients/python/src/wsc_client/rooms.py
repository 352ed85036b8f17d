"""Rooms that the client asks to join, again on each connection (J of spec.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from wsc_client.dispatch import OF_ROOMS, Dispatch, Events
from wsc_client.errors import ClientError, RefusedError
from wsc_client.events import First, Gap, Joined, Message, Recovered, Refused
from wsc_client.sender import Sender
from wsc_client.session import Session

E = TypeVar("E")
RoomEvent = Message | Joined | Refused | Recovered | First | Gap


class Forget(Protocol):
    """Forgets the position of a room."""

    def __call__(self, room: str) -> None: ...


class Room:
    """A room. `Client.room` makes it.

    `async for message in room` gives its messages, which are those of kept rooms alone: messages of
    other rooms do not say where they were sent to, and are the client's.

    Attributes:
        name: of the room.
        joined: whether the server has said, on this connection, that the client is a member.
    """

    def __init__(self, name: str, rooms: Rooms, dispatch: Dispatch) -> None:
        self.name: str = name
        self.joined: bool = False
        self.asks: bool = False
        self._rooms, self._dispatch = rooms, dispatch

    def leave(self) -> None:
        """Leaves the room, and forgets it and its position (J5). Its iterators end."""
        self._rooms.leave(self)

    @overload
    def on(self, event: type[E], listener: Callable[[E], object]) -> Callable[[], None]: ...
    @overload
    def on(self, event: type[E]) -> Callable[[Callable[[E], Any]], Callable[[E], Any]]: ...
    def on(self, event: type[Any], listener: Callable[[Any], Any] | None = None) -> Any:
        """Has a function called with each event of this class and of this room.

        Args:
            event: such as Message or Gap.
            listener: plain or async. Without it this is a decorator.

        Returns:
            a function that ends it; or the decorator, which returns the function as it is.

        Raises:
            TypeError: there is no such class of events, or the listener is no function.
        """
        place = self._dispatch.of_room(self.name)
        if listener is not None:
            return self._dispatch.on(event, listener, place)

        def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            self._dispatch.on(event, function, place)
            return function

        return decorate

    def __aiter__(self) -> Events[Message]:
        """Its messages, until the client is closed or the room is left.

        Raises:
            ClosedError: the client was closed otherwise than by `close` or with 1000.
        """
        return self._dispatch.events((Message,), self._dispatch.of_room(self.name))

    def events(self) -> Events[RoomEvent]:
        """All its events in their order, such as for a `match`.

        Raises:
            ClosedError: as of the iteration.
        """
        return self._dispatch.events(OF_ROOMS, self._dispatch.of_room(self.name))

    def __repr__(self) -> str:
        return f"<Room {self.name!r}{', joined' if self.joined else ''}>"


class Rooms:
    """The rooms of a client, in the order of the first calls.

    Args:
        forget: forgets the position of a room.
        join_delay: seconds until a join goes out, unless something is sent before; 0: at the end of
            this turn of the loop.
    """

    def __init__(
        self,
        session: Session,
        sender: Sender,
        dispatch: Dispatch,
        forget: Forget,
        join_delay: float,
    ) -> None:
        self._session, self._sender, self._dispatch = session, sender, dispatch
        self._forget = forget
        self._join_delay = join_delay
        self._rooms: dict[str, Room] = {}
        self._joins: dict[Room, None] = {}  # not asked for yet on this connection

    def room(self, name: str, join: bool) -> Room:
        """J1, J6."""
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name, self, self._dispatch)
        if join and not room.asks:
            room.asks = True
            self._joins[room] = None
            if self._session.state == "open":
                self._join_soon()
        return room

    def _join_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._join_delay:
            loop.call_later(self._join_delay, self.join_all)
        else:
            loop.call_soon(self.join_all)

    def opened(self) -> None:
        """J2."""
        self._joins = {room: None for room in self._rooms.values() if room.asks}
        self.join_all()

    def join_all(self) -> None:
        """Asks for the rooms of the calls since it last did."""
        if self._session.state == "open":
            joins, self._joins = self._joins, {}
            for room in joins:
                self._join(room)

    def dropped(self) -> None:
        """The connection has ended, and with it all memberships."""
        for room in self._rooms.values():
            room.joined = False

    def leave(self, room: Room) -> None:
        """J5."""
        if self._rooms.get(room.name) is not room:
            return
        del self._rooms[room.name]
        self._forget(room.name)
        asked = room not in self._joins
        self._joins.pop(room, None)
        if room.asks and asked and self._session.state == "open":
            self._sender.ask_now("leave", _nothing, _nothing, room=room.name)
        room.asks = room.joined = False
        self._dispatch.forget_room(room.name)

    def _join(self, room: Room) -> None:
        def joined(answer: Any) -> None:
            if room.asks:  # it may have been left meanwhile
                room.joined = True
                self._dispatch.emit(Joined(room.name))  # J3

        def refused(error: ClientError) -> None:
            if room.asks and isinstance(error, RefusedError):  # J4
                room.asks = False
                self._dispatch.emit(Refused(room.name, error))

        self._sender.ask_now("join", joined, refused, room=room.name)


def _nothing(answer: Any) -> None:
    pass
