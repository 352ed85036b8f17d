"""Failures as they wait to be told, and how much of them may wait.

A failure waits in the form in which it lies in memory anyway: frames, text, encoded messages. It is
decoded when a handler is called. So a failure costs little in the call that failed, and nothing
that is done to a message afterwards changes what a handler sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from sys import getsizeof

import msgspec

from wsc_fast._core import clock
from wsc_fast.delivery.failures import Encoded, Failure, Message, copied
from wsc_fast.messages import HubMessage, decode_hub_message, message_of


class Batch(msgspec.Struct, frozen=True):
    """The common part of failures that differ in their message only.

    They are one failure, or all of a client's outbox. The queues of all handlers share it.
    """

    failure: Failure  # its message is not looked at
    holder: str  # on whose account they wait
    number: int  # of the first
    extra: int  # bytes that each takes beside its message, about
    client_id: str | None = None  # of a lost outbox: whose; then the messages are frames
    at: float = msgspec.field(default_factory=clock.time)

    def size(self, item: Message) -> int:
        """Bytes of one failure in memory."""
        return _size(item) + self.extra

    def sizes(self, items: Sequence[Message]) -> Iterator[int]:
        """Bytes of each; lazily, since there may be no room for the most."""
        if self.client_id is None:
            return map(self.size, items)
        return map(self.extra.__add__, map(getsizeof, items))

    def told(self, item: Message, message_id: str) -> Failure:
        """One failure as it is told: with a HubMessage that is the handler's own."""
        failure = self.failure
        recipient, to = failure.recipient, failure.to or ""
        if self.client_id is None:
            message = _decoded(item)
        else:
            assert isinstance(item, bytes)
            message = message_of(item)
            if isinstance(message, HubMessage):
                recipient = to  # of a HubMessage: its user, whichever call has sent it
        if not isinstance(message, HubMessage):
            message = self._raw(message, message_id)
        if to:
            message.to = to
        return msgspec.structs.replace(failure, message=message, recipient=recipient)

    def _raw(self, message: str | bytes, message_id: str) -> HubMessage:
        return HubMessage(
            id=message_id,
            type="raw",
            content=message if isinstance(message, str) else "",
            data={"bytes": message} if isinstance(message, bytes) else None,
            create_at=datetime.fromtimestamp(self.at, UTC),
        )


def _size(item: Message) -> int:
    if isinstance(item, (str, bytes)):
        return getsizeof(item)
    if isinstance(item, Encoded):
        return getsizeof(item.data)
    # One that cannot be encoded: its data is the caller's.
    return sum(getsizeof(getattr(item, name, None)) for name in item.__struct_fields__)


def _decoded(item: Message) -> HubMessage | str | bytes:
    if isinstance(item, Encoded):
        try:
            return decode_hub_message(item.data)
        except Exception:
            return item.data  # an offline store held something that is no HubMessage
    if isinstance(item, HubMessage):
        return copied(item)
    assert isinstance(item, (str, bytes))
    return item


class Capacity:
    """The free part of a queue, and the parts that recipients hold.

    One recipient may hold as much as is free: alone it gets half of the queue, and the more hold
    much, the more is left for one that comes new.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._free = most
        self._free_bytes = most_bytes
        self._held: dict[str, tuple[int, int]] = {}  # failures, bytes

    def is_open(self, holder: str) -> bool:
        count, nbytes = self._held.get(holder, (0, 0))
        return count < self._free and nbytes < self._free_bytes

    def take(self, batch: Batch, items: Sequence[Message]) -> int:
        """Takes room for the first of these; returns for how many."""
        count, nbytes = self._held.get(batch.holder, (0, 0))
        free, free_bytes = self._free, self._free_bytes
        taken = size = 0
        for more in batch.sizes(items):
            if count + taken >= free - taken or nbytes + size + more > free_bytes - size:
                break
            taken += 1
            size += more
        if taken:
            self._held[batch.holder] = (count + taken, nbytes + size)
            self._free -= taken
            self._free_bytes -= size
        return taken

    def give_back(self, holder: str, size: int) -> None:
        count, nbytes = self._held[holder]
        if count == 1:
            del self._held[holder]
        else:
            self._held[holder] = (count - 1, nbytes - size)
        self._free += 1
        self._free_bytes += size
