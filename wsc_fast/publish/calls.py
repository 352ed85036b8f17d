"""The calls that publish messages: which messages share one, and what their answers mean.

A call is a `RoomCall`, of messages to a room or to all clients, or a `WordCall`, of words to the
hubs that have users.

Messages of one kept room share a call, in which they stand in order; so do neighbours of one plain
room. Of a kept room one call is under way at a time, so that the order holds where it is made
again. A call whose connection broke is made again if the server can tell whether it was done: of a
kept room by its tag, of a plain room by its idempotency key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic
from typing import Any, ClassVar, Generic, TypeVar

from wsc_fast.bus.base import Published
from wsc_fast.bus.base import Word as Envelope
from wsc_fast.bus.redis.calls import (
    MOST_ENVELOPE,
    MOST_MESSAGES,
    new_tag,
    publish_kept,
    publish_once,
    publish_plain,
    tell_hubs,
)
from wsc_fast.bus.redis.commands import Names
from wsc_fast.errors import BusError, BusUnavailableError
from wsc_fast.publish.messages import Message
from wsc_fast.publish.users import Told, Word

# So many calls are made before any answer is read.
MOST_CALLS = 256
# A publisher is no hub: it has no inbox, and no hub takes its messages for its own.
ORIGIN = b"publisher"

M = TypeVar("M", Message, Word)


class Call(Generic[M]):
    """One call.

    Args:
        messages: in order; of one room, or all words.

    Attributes:
        script: the name of the script that it calls.
        messages: which it publishes.
        size: bytes of their entries.
    """

    __slots__ = ("_unknown", "messages", "size")

    script: ClassVar[str]

    def __init__(self, messages: list[M]) -> None:
        self.messages: list[M] = messages
        self.size: int = sum(len(each.entry) for each in messages)
        self._unknown = False  # an attempt has had no answer

    def takes(self, message: M) -> bool:
        """Whether one more message may share the call."""
        return len(self.messages) < MOST_MESSAGES and self.size < MOST_ENVELOPE

    def add(self, message: M) -> None:
        """Has one more message share the call."""
        self.messages.append(message)
        self.size += len(message.entry)

    def arguments(self, names: Names) -> list[bytes]:
        """The command that makes the call, now."""
        raise NotImplementedError

    def answered(self, value: Any) -> None:
        """The server has answered, and with no error."""
        raise NotImplementedError

    def may_be_repeated(self) -> bool:
        """Whether the call may be made again where nobody knows whether it was done."""
        raise NotImplementedError

    def lost(self, error: Exception) -> bool:
        """The connection broke before the answer; whether the call may be made again."""
        self._unknown = True
        if self.may_be_repeated():
            return True
        self.fail(BusUnavailableError(f"nobody knows whether the message was published: {error}"))
        return False

    def given_up(self, at: str, timeout: float, error: Exception) -> None:
        """There is no time for another attempt."""
        known = "nobody knows whether it was published" if self._unknown else "not published"
        self.fail(
            BusUnavailableError(f"the bus at {at}: {known} within {timeout:g} s; last: {error}")
        )

    def fail(self, error: BusError) -> None:
        """The messages have this error."""
        for message in self.messages:
            message.result = type(error)(str(error))


class RoomCall(Call[Message]):
    """Publishes messages of one room, or broadcasts."""

    __slots__ = ("_made", "_tag")

    script = "publish"

    def __init__(self, messages: list[Message]) -> None:
        super().__init__(messages)
        self._tag = b""
        self._made: float | None = None  # when it was made first

    def takes(self, message: Message) -> bool:
        """See `Call`."""
        first = self.messages[0]
        return (
            message.room == first.room
            and message.retention == first.retention
            and (first.retention is not None or (first.key is None and message.key is None))
            and super().takes(message)
        )

    def arguments(self, names: Names) -> list[bytes]:
        """See `Call`."""
        now = monotonic()
        if self._made is None:
            self._made, self._tag = now, new_tag()
        first = self.messages[0]
        if first.retention is not None:
            messages = [(each.entry, each.key) for each in self.messages]
            age = now - self._made if self._unknown else None
            return publish_kept(
                names, first.room, ORIGIN, messages, first.retention, self._tag, age
            )
        if first.key is not None:
            return publish_once(names, first.room, ORIGIN, first.entry, first.key, self._tag)
        entries = [each.entry for each in self.messages]
        return publish_plain(names, first.room, ORIGIN, entries)

    def answered(self, value: Any) -> None:
        """See `Call`."""
        first = self.messages[0]
        if first.retention is not None:
            for message, answer in zip(self.messages, value, strict=True):
                message.result = _of_kept(answer)
        else:
            for message in self.messages:
                # Of a PUBLISH, the answer is how many hubs have heard it.
                message.result = Published(None, first.key is not None and value == 1)

    def may_be_repeated(self) -> bool:
        """See `Call`."""
        first = self.messages[0]
        return first.retention is not None or first.key is not None


class WordCall(Call[Word]):
    """Tells the hubs that have users."""

    __slots__ = ()

    script = "users"

    def takes(self, message: Word) -> bool:
        """See `Call`."""
        return message.again == self.messages[0].again and super().takes(message)

    def arguments(self, names: Names) -> list[bytes]:
        """See `Call`."""
        words = [Envelope(each.user, each.entry) for each in self.messages]
        return tell_hubs(names, "", words)

    def answered(self, value: Any) -> None:
        """See `Call`."""
        for message, hubs in zip(self.messages, value, strict=True):
            message.result = Told(hubs)

    def may_be_repeated(self) -> bool:
        """See `Call`."""
        return self.messages[0].again


def _of_kept(answer: bytes) -> Published | Exception:
    if answer == b"?":
        return BusUnavailableError(
            "nobody knows whether the message was published: the history is too short to tell"
        )
    if answer.startswith(b"="):
        return Published(answer[1:].decode(), True)
    return Published(answer.decode(), False)


class Queue(Generic[M]):
    """The calls that publish messages, until each was made.

    Args:
        messages: in order.
        kind: of the calls.
    """

    def __init__(self, messages: Sequence[M], kind: Callable[[list[M]], Call[M]]) -> None:
        # By kept room; None: of plain rooms, broadcasts and words.
        self._lanes: dict[str | None, deque[Call[M]]] = {}
        for message in messages:
            name = None if message.retention is None else message.place
            lane = self._lanes.setdefault(name, deque())
            if lane and lane[-1].takes(message):
                lane[-1].add(message)
            else:
                lane.append(kind([message]))

    def take(self) -> list[Call[M]]:
        """Calls that may be made at once: of each kept room one."""
        calls: list[Call[M]] = []
        for name in list(islice(self._lanes, MOST_CALLS)):
            lane = self._lanes[name]
            most = 1 if name is not None else MOST_CALLS
            while lane and most and len(calls) < MOST_CALLS:
                calls.append(lane.popleft())
                most -= 1
            if not lane:
                del self._lanes[name]
        return calls

    def take_all(self) -> list[Call[M]]:
        """All that are left."""
        calls = [call for lane in self._lanes.values() for call in lane]
        self._lanes.clear()
        return calls
