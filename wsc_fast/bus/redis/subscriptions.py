"""The channels that are subscribed, on one connection after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wsc_fast.bus.redis.commands import Names, command
from wsc_fast.bus.redis.link import Link

# Channels of one command, and commands that wait for their answers.
CHANNELS_AT_ONCE, COMMANDS_AT_ONCE = 500, 4


class Subscription:
    """One channel that is wanted.

    Attributes:
        channel: as the server knows it.
        room: its id.
        heard: the server has confirmed it before.
    """

    __slots__ = ("channel", "heard", "room")

    def __init__(self, channel: bytes, room: str) -> None:
        self.channel: bytes = channel
        self.room: str = room
        self.heard: bool = False


class _Command:
    """A command that waits for a confirmation of each of its channels."""

    __slots__ = ("left", "subscriptions")

    def __init__(self, subscriptions: Sequence[Subscription], left: int) -> None:
        self.subscriptions = subscriptions  # none: of an UNSUBSCRIBE
        self.left = left


class Subscriptions:
    """The channels of one server.

    Args:
        names: of channels.
        inbox: a channel that is subscribed with the first ones, and named by no room.
        subscribed: is told of rooms whose messages come from now on, and whether they had before.
    """

    def __init__(
        self, names: Names, inbox: bytes, subscribed: Callable[[Sequence[str], bool], object]
    ) -> None:
        self._names = names
        self._inbox = inbox
        self._subscribed = subscribed
        self._wanted: dict[str, Subscription] = {}
        self._to_send: deque[Subscription] = deque()
        self._to_end: deque[bytes] = deque()
        self._commands: deque[_Command] = deque()
        self._pings: deque[asyncio.Future[None]] = deque()
        self._link: Link | None = None

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def first(self) -> object | None:
        """The command that waits for its confirmations for the longest time."""
        return self._commands[0] if self._commands else None

    def heard(self, prefix: str) -> list[str]:
        """The rooms whose messages come, and whose ids begin so."""
        return [room for room, each in self._wanted.items() if each.heard and room[:1] == prefix]

    def connected(self, link: Link) -> None:
        """Subscribes all that is wanted on a new connection, the inbox first."""
        self._link = link
        self._pings.clear()
        self._commands.clear()
        self._to_end.clear()
        for each in self._wanted.values():
            link.set_name(each.channel, each.room)
        self._to_send = deque(self._wanted.values())
        # The second one is there to see whether we may. Valkey refuses it without a subscription.
        link.send(command(b"SUBSCRIBE", self._inbox))
        link.send(command(b"UNSUBSCRIBE", self._inbox + b":none"))
        self._commands += (_Command((), 1), _Command((), 1))
        self._send()

    def disconnected(self) -> None:
        """The connection has ended."""
        self._link = None
        self._commands.clear()
        self._to_send.clear()
        self._to_end.clear()

    def subscribe(self, rooms: Iterable[str]) -> None:
        """Wants the messages of these rooms, if it does not already."""
        for room in rooms:
            if room not in self._wanted:
                each = self._wanted[room] = Subscription(self._names.channel(room), room)
                if self._link is not None:
                    self._link.set_name(each.channel, room)
                    self._to_send.append(each)
        self._send()

    def unsubscribe(self, rooms: Iterable[str]) -> None:
        """Wants them no more."""
        for room in rooms:
            each = self._wanted.pop(room, None)
            if each is not None and self._link is not None:
                self._link.set_name(each.channel, None)
                self._to_end.append(each.channel)
        self._send()

    def _send(self) -> None:
        link = self._link
        # Ends come first: a channel that is wanted again afterwards stays subscribed.
        while link is not None and self._to_end and self._may_send():
            ends = [self._to_end.popleft() for _ in range(self._next(self._to_end))]
            self._commands.append(_Command((), len(ends)))
            link.send(command(b"UNSUBSCRIBE", *ends))
        while link is not None and self._to_send and self._may_send():
            batch = [self._to_send.popleft() for _ in range(self._next(self._to_send))]
            batch = [each for each in batch if self._wanted.get(each.room) is each]
            if batch:
                self._commands.append(_Command(batch, len(batch)))
                link.send(command(b"SUBSCRIBE", *(each.channel for each in batch)))

    def ping(self, link: Link) -> asyncio.Future[None]:
        """Asks whether the server is there; the future has no error."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings.append(future)
        link.send(command(b"PING"))
        return future

    def _ponged(self) -> None:
        if self._pings:
            future = self._pings.popleft()
            if not future.done():
                future.set_result(None)

    def _may_send(self) -> bool:
        return len(self._commands) < COMMANDS_AT_ONCE

    @staticmethod
    def _next(queue: Sequence[Any]) -> int:
        return min(len(queue), CHANNELS_AT_ONCE)

    def confirmed(self, value: Sequence[Any]) -> None:
        """The server has confirmed a channel, or answered a PING."""
        if value[0] == b"pong":
            self._ponged()
            return
        if not self._commands:
            return
        first = self._commands[0]
        first.left -= 1
        if first.left:
            return
        self._commands.popleft()
        self._tell(first.subscriptions)
        self._send()

    def _tell(self, subscriptions: Sequence[Subscription]) -> None:
        # Unsubscribed meanwhile, or subscribed anew by a later command: that one tells.
        valid = [each for each in subscriptions if self._wanted.get(each.room) is each]
        again = [each.room for each in valid if each.heard]
        new = [each.room for each in valid if not each.heard]
        for each in valid:
            each.heard = True
        if again:
            self._subscribed(again, True)
        if new:
            self._subscribed(new, False)
