"""The bus of a hub alone: histories of kept rooms in the hub's own process.

With a file, the histories outlast the process (file.py). A message that the process gave to clients
and lost in a crash is no longer known by its position, so that nobody recovers past it unawares.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from wsc_fast._core.envelopes import pack_envelope
from wsc_fast.bus.base import (
    KEY_SECONDS,
    Entry,
    Handler,
    Outgoing,
    Page,
    Published,
    Retention,
)
from wsc_fast.errors import BusError
from wsc_fast.log import log

# The place after the newest message outlasts the messages, so that a client of a quiet room still
# recovers; so long, in seconds.
TOP_SECONDS = 86_400.0
# Of a history besides its entries, and of an entry besides its bytes.
HISTORY_BYTES, ENTRY_BYTES = 512, 160
MOST_KEYS = 100_000


@dataclass(slots=True, eq=False)
class History:
    """The newest messages of one room.

    Positions are `NUMBER.TAG`. Numbers of a room count up by one. A tag is random, and that of all
    messages since the history was made or read from a file.
    """

    tag: str
    number: int = 0  # of the newest message
    entries: deque[Entry] = field(default_factory=deque)
    before: str = ""  # the position before the first entry
    top: str = ""
    nbytes: int = HISTORY_BYTES
    ends: float = 0.0  # when the entries go, and when all of it goes
    forgotten: float = 0.0

    def __post_init__(self) -> None:
        if not self.top:
            self.before = self.top = f"{self.number}.{self.tag}"

    def append(self, entry: bytes, retention: Retention, now: float) -> str:
        """Adds a message; returns its position."""
        self.number += 1
        position = f"{self.number}.{self.tag}"
        self.entries.append(Entry(position, entry))
        self.nbytes += len(entry) + ENTRY_BYTES
        self.top = position
        self.keep_until(retention, now)
        while len(self.entries) > retention.size:
            self.drop_oldest()
        return position

    def keep_until(self, retention: Retention, now: float) -> None:
        """Begins the time anew for which it is kept."""
        self.ends = now + retention.ttl
        self.forgotten = now + max(retention.ttl, TOP_SECONDS)

    def drop_oldest(self) -> None:
        oldest = self.entries.popleft()
        self.before = oldest.position
        self.nbytes -= len(oldest.entry) + ENTRY_BYTES

    def drop_all(self) -> None:
        self.entries.clear()
        self.before = self.top
        self.nbytes = HISTORY_BYTES

    def after(self, since: str, limit: int) -> list[Entry] | None:
        """The first `limit` messages after a position; None where it is not known."""
        if since == self.before:
            start = 0
        else:
            number, _, _ = since.partition(".")
            if not (number.isascii() and number.isdigit() and len(number) < 20):
                return None
            start = int(number) - (self.number - len(self.entries))
            if not 0 < start <= len(self.entries) or self.entries[start - 1].position != since:
                return None
        end = min(len(self.entries), start + limit)
        return [self.entries[i] for i in range(start, end)]


class MemoryBus:
    """Keeps the histories of a hub that has no other beside it.

    Args:
        max_bytes: of all histories together, 1 MiB or more; beyond that the histories of the rooms
            go in which nothing was published for the longest time.

    Raises:
        ValueError: `max_bytes` is less.

    Thread-safety: the loop of the hub that has opened it.
    """

    at_once = True

    def __init__(self, *, max_bytes: int = 268_435_456) -> None:
        if type(max_bytes) is not int or max_bytes < 1_048_576:
            raise ValueError(f"max_bytes must be an int of 1048576 or more, not {max_bytes!r}")
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._handler: Handler | None = None
        self._origin = ""
        # By room, the one last published to at the end.
        self._histories: OrderedDict[str, History] = OrderedDict()
        # (room, idempotency key) -> its answer, and until when it is known; the oldest first.
        self._answers: OrderedDict[tuple[str, str], tuple[Published, float]] = OrderedDict()

    async def open(self, handler: Handler, origin: str) -> None:
        """See `Bus.open`."""
        if self._handler is not None:
            raise BusError("this MemoryBus is in use by another hub: each hub needs its own")
        self._handler, self._origin = handler, origin
        handler.up()

    async def close(self) -> None:
        """See `Bus.close`; the histories stay for the next `open`."""
        self._handler = None

    def subscribe(self, rooms: Sequence[str]) -> None:
        """See `Bus.subscribe`."""
        assert self._handler is not None
        self._handler.subscribed(rooms, False)

    def unsubscribe(self, rooms: Sequence[str]) -> None:
        """See `Bus.unsubscribe`."""

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """See `Bus.publish`."""
        for outgoing in batch:
            answer = self._publish(outgoing)
            if outgoing.answer is not None and not outgoing.answer.done():
                outgoing.answer.set_result(answer)

    def _publish(self, outgoing: Outgoing) -> Published:
        now = time.monotonic()
        key = (outgoing.room, outgoing.idempotency_key or "")
        if outgoing.idempotency_key is not None:
            known = self._answers.get(key)
            if known is not None and known[1] > now:
                return Published(known[0].position, True)
        position = None
        if outgoing.retention is not None:
            position = self._append(outgoing, outgoing.retention, now)
        answer = Published(position, False)
        if outgoing.idempotency_key is not None:
            self._answers.pop(key, None)
            self._answers[key] = answer, now + KEY_SECONDS
            self._forget_answers(now)
        return answer

    def _append(self, outgoing: Outgoing, retention: Retention, now: float) -> str:
        history = self._history(outgoing.room, retention, now)
        before, prev = history.nbytes, history.top
        position = history.append(outgoing.entry, retention, now)
        self._nbytes += history.nbytes - before
        self._histories.move_to_end(outgoing.room)
        self._make_room(now)
        assert self._handler is not None
        data = pack_envelope("k", self._origin, prev, ((position, outgoing.entry),))
        self._handler.envelope(outgoing.room, data)
        return position

    def _history(self, room: str, retention: Retention, now: float) -> History:
        history = self._histories.get(room)
        if history is not None and history.forgotten <= now:
            self._drop(room)
            history = None
        if history is None:
            history = self._histories[room] = History(secrets.token_urlsafe(6))
            history.keep_until(retention, now)
            self._nbytes += history.nbytes
        elif history.ends <= now and history.entries:
            self._nbytes -= history.nbytes
            history.drop_all()
            self._nbytes += history.nbytes
        return history

    def _drop(self, room: str) -> None:
        self._nbytes -= self._histories.pop(room).nbytes

    def _make_room(self, now: float) -> None:
        # Two at a time: more go than come, and no call takes long.
        for _ in range(2):
            oldest = next(iter(self._histories))
            if self._nbytes > self._max_bytes and len(self._histories) > 1:
                log.warning(
                    "the histories of kept rooms reached max_bytes of MemoryBus, %d: that of the "
                    "room longest without a message is dropped",
                    self._max_bytes,
                    extra={"event": "history_dropped", "max_bytes": self._max_bytes},
                )
                self._drop(oldest)
            elif self._histories[oldest].forgotten <= now:
                self._drop(oldest)

    def _forget_answers(self, now: float) -> None:
        while self._answers:
            key, (_, until) = next(iter(self._answers.items()))
            if until > now and len(self._answers) <= MOST_KEYS:
                return
            del self._answers[key]

    def read(
        self, room: str, since: str | None, limit: int, retention: Retention
    ) -> asyncio.Future[Page]:
        """See `Bus.read`."""
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        history = self._history(room, retention, time.monotonic())
        if since is None:
            newest = list(history.entries)[-limit:] if limit else []
            answer.set_result(Page(history.top, True, newest))
            return answer
        found = history.after(since, limit)
        answer.set_result(Page(history.top, found is not None, found or []))
        return answer

    async def tops(self, rooms: Sequence[str]) -> Sequence[str | None]:
        """See `Bus.tops`."""
        return [
            None if (found := self._histories.get(room)) is None else found.top for room in rooms
        ]
