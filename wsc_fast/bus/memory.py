"""The bus of a hub alone: histories of kept rooms in the hub's own process.

With a file, the histories outlast the process (file.py). A message that the process gave to clients
and lost in a crash is no longer known by its position, and the room has a mark after it. So nobody
recovers past it unawares.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wsc_fast._core.clock import monotonic
from wsc_fast._core.envelopes import pack_envelope
from wsc_fast.bus.base import (
    KEY_SECONDS,
    MARK,
    PRESENCE,
    Change,
    Handler,
    Member,
    NodeInfo,
    NodeState,
    Outcome,
    Outgoing,
    Page,
    Published,
    Retention,
    Way,
    Word,
)
from wsc_fast.bus.directory import MemoryDirectory
from wsc_fast.bus.history import TOP_SECONDS, History, new_tag
from wsc_fast.errors import BusError, BusUnavailableError, ConfigError
from wsc_fast.log import log

if TYPE_CHECKING:
    from wsc_fast.bus.file import HistoryFile

# Answers to publishes with an idempotency key that are known at most.
MOST_KEYS = 100_000
# The least of `max_bytes`.
_SMALLEST = 1 << 20


class MemoryBus:
    """Keeps the histories of a hub that has no other beside it.

    With a file, histories, positions and idempotency keys outlast the process: clients recover over
    a restart of the hub. The file is written behind what happens, by a thread of its own, so no
    publish waits for the disk; `close` writes the rest. A kill or a crash may take the messages of
    the last moments out of the file, as a rule 0.1 s, also such whose `publish` had returned.
    Clients that come back to the rooms of these hear `recovered: false`, and nothing is missing in
    silence. After a crash of the machine, which may take more, all rooms count as such; so do they
    after a kill on a system other than Linux.

    Trouble: a file that cannot be written, on a full disk for example, is logged once a second, and
    all goes on in memory; it is written again when that is possible. A file that is removed or
    replaced is written anew from memory. Each bus needs a file of its own, on a local disk; a
    second one that opens it gets a BusError. Forking with an open file is not supported.

    Args:
        path: of the file, an SQLite database; created if it is not there, in a directory that is.
            None: there is none, and the histories end with the bus.
        max_bytes: of all histories together, 1 MiB or more; beyond that the histories of the rooms
            go in which nothing was published for the longest time. The file holds the same
            histories.

    Attributes:
        at_once: True: the bus is in this process.
        one_machine: True.
        servers: 1.

    Raises:
        ConfigError: an argument cannot be used.

    Thread-safety: the loop of the hub that has opened it.
    """

    at_once: bool = True
    one_machine: bool = True
    servers: int = 1

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = 268_435_456
    ) -> None:
        if type(max_bytes) is not int or max_bytes < _SMALLEST:
            raise ConfigError(f"max_bytes must be an int of {_SMALLEST} or more, not {max_bytes!r}")
        # Absolute: a later chdir (as of a daemon) must not move it.
        self._path = None if path is None else os.path.abspath(_checked(path))
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._handler: Handler | None = None
        self._origin = ""
        self._file: HistoryFile | None = None
        # While the file is read: rooms that were subscribed, and messages that wait.
        self._loading = False
        self._late_rooms: list[str] = []
        self._late: list[Outgoing] = []
        # The place before the first message of each room without a history. It is another one once
        # a history has gone: nobody may take that room for one in which nothing was said.
        self._start = new_start()
        self._directory: MemoryDirectory | None = None
        self._state: Callable[[], NodeState] | None = None
        # By room, the one last published to at the end.
        self._histories: OrderedDict[str, History] = OrderedDict()
        # (room, idempotency key) -> its answer, and until when it is known; the oldest first.
        self._answers: OrderedDict[tuple[str, str], tuple[Published, float]] = OrderedDict()

    async def open(self, handler: Handler, origin: str) -> None:
        """See `Bus.open`; reads the file, in its thread."""
        if self._handler not in (None, handler):
            raise BusError("this MemoryBus is in use by another hub: each hub needs its own")
        self._handler, self._origin = handler, origin
        if self._path is not None:
            self._loading = True
            try:
                await self._open_file(self._path)
            except BaseException as error:
                self._refuse_late(error)
                self._handler = None
                raise
            finally:
                self._loading = False
        handler.up()
        self._take_late()

    def _take_late(self) -> None:
        """Does what was asked for while the file was read."""
        rooms, self._late_rooms = self._late_rooms, []
        late, self._late = self._late, []
        if rooms:
            self.subscribe(rooms)
        self.publish(late)

    def _refuse_late(self, cause: BaseException) -> None:
        self._late_rooms.clear()
        late, self._late = self._late, []
        error = BusUnavailableError(f"the bus did not open: {cause}")
        for outgoing in late:
            if outgoing.answer is None:
                assert self._handler is not None
                self._handler.not_published(outgoing, error)
            elif not outgoing.answer.done():
                outgoing.answer.set_exception(error)

    async def _open_file(self, path: str) -> None:
        from wsc_fast.bus.file import HistoryFile

        if self._file is not None:
            # The loop was closed over the hub, and nobody has closed the bus.
            self._file.abandon()
        self._file = HistoryFile(path)
        try:
            self._nbytes = await self._file.open(self._max_bytes)
        except BaseException:
            self._file = None
            raise
        self._histories, self._answers = self._file.histories, self._file.answers
        self._start = self._file.start or new_start()

    async def close(self) -> None:
        """See `Bus.close`; without a file, the histories stay for the next `open`."""
        self._handler = None
        if self._directory is not None:
            self._directory.close()
            self._directory = self._state = None
        file, self._file = self._file, None
        if file is not None:
            self._histories, self._answers, self._nbytes = OrderedDict(), OrderedDict(), 0
            await file.close(self._start)

    def forget(self) -> None:
        """See `Bus.forget`; the next `open` reads the file anew."""
        self._handler = self._directory = self._state = None
        self._loading = False
        self._late_rooms.clear()
        self._late.clear()

    def descriptors(self) -> list[int]:
        """See `Bus.descriptors`: it has no sockets."""
        return []

    def subscribe(self, rooms: Sequence[str]) -> None:
        """See `Bus.subscribe`."""
        if self._loading:
            self._late_rooms += rooms
            return
        assert self._handler is not None
        self._handler.subscribed(rooms, False)

    def unsubscribe(self, rooms: Sequence[str]) -> None:
        """See `Bus.unsubscribe`."""

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """See `Bus.publish`; what comes while the file is read waits for that."""
        if self._loading:
            self._late += batch
            return
        for outgoing in batch:
            answer = self._publish(outgoing)
            if outgoing.answer is not None and not outgoing.answer.done():
                outgoing.answer.set_result(answer)

    def _publish(self, outgoing: Outgoing) -> Published:
        now = monotonic()
        key = outgoing.idempotency_key
        if key is not None:
            known = self._answers.get((outgoing.room, key))
            if known is not None and known[1] > now:
                return Published(known[0].position, True)
        data = position = None
        if outgoing.retention is not None:
            prev, position = self._append(outgoing, outgoing.retention, now)
            data = pack_envelope("k", self._origin, prev, ((position, outgoing.entry),))
        answer = Published(position, False)
        if key is not None:
            self._remember(outgoing.room, key, answer, now)
        if data is not None:
            # Last: the handler may publish, too.
            assert self._handler is not None
            self._handler.envelope(outgoing.room, data)
        return answer

    def _append(self, outgoing: Outgoing, retention: Retention, now: float) -> tuple[str, str]:
        """Appends to a history; the position before the message, and that of the message."""
        history = self._known(outgoing.room, now)
        if history is None:
            history = self._histories[outgoing.room] = History(before=self._start, top=self._start)
            self._nbytes += history.nbytes
        before, prev = history.nbytes, history.top
        position = history.append(outgoing.entry, retention, now)
        self._nbytes += history.nbytes - before
        self._histories.move_to_end(outgoing.room)
        self._make_room(now)
        self._note(outgoing.room)
        return prev, position

    def _known(self, room: str, now: float) -> History | None:
        """The history of a room; None: there is none, or not any more."""
        history = self._histories.get(room)
        if history is not None and history.forgotten <= now:
            self._drop(room)
            return None
        if history is not None and history.ends <= now and history.entries:
            self._nbytes -= history.nbytes
            history.drop_all()
            self._nbytes += history.nbytes
            self._note(room)
        return history

    def _note(self, room: str) -> None:
        if self._file is not None:
            self._file.changed(room)

    def _drop(self, room: str) -> None:
        self._nbytes -= self._histories.pop(room).nbytes
        self._start = new_start()
        self._note(room)

    def _make_room(self, now: float) -> None:
        # Two at a time: more go than come, and no call takes long.
        for _ in range(2):
            room, oldest = next(iter(self._histories.items()))
            too_much = self._nbytes > self._max_bytes
            if too_much:
                log.warning(
                    "the histories of kept rooms reached max_bytes of MemoryBus, %d: that of the "
                    "room longest without a message is dropped",
                    self._max_bytes,
                    extra={"event": "history_dropped", "max_bytes": self._max_bytes},
                )
            if oldest.forgotten <= now or (too_much and len(self._histories) > 1):
                self._drop(room)
            elif too_much:
                self._shorten(oldest)

    def _shorten(self, history: History) -> None:
        """The only history takes too much: its oldest messages go."""
        before = history.nbytes
        while len(history.entries) > 1 and history.nbytes > self._max_bytes:
            history.drop_oldest()
        self._nbytes += history.nbytes - before

    def _remember(self, room: str, key: str, answer: Published, now: float) -> None:
        until = now + KEY_SECONDS
        self._answers[room, key] = answer, until
        self._answers.move_to_end((room, key))
        if self._file is not None:
            self._file.answered(room, key, answer, until)
        while self._answers:
            oldest, (_, until) = next(iter(self._answers.items()))
            if until > now and len(self._answers) <= MOST_KEYS:
                return
            del self._answers[oldest]

    def read(
        self, room: str, since: str | None, limit: int, retention: Retention
    ) -> asyncio.Future[Page]:
        """See `Bus.read`."""
        answer: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        if self._loading:
            answer.set_exception(BusUnavailableError("the bus still reads its file"))
            return answer
        history = self._known(room, monotonic())
        if history is None:
            answer.set_result(Page(self._start, since in (None, self._start), []))
            return answer
        if since is None:
            messages = [each for each in history.entries if each.entry != MARK] if limit else []
            newest = messages[-limit:]
            answer.set_result(Page(history.top, True, newest))
            return answer
        found = history.after(since, limit)
        answer.set_result(Page(history.top, found is not None, found or []))
        return answer

    async def delete(self, room: str) -> None:
        """See `Bus.delete`."""
        if self._loading or self._handler is None:
            raise BusUnavailableError("the bus is not open")
        now = monotonic()
        deleted = self._histories.pop(room, None)
        history = self._histories[room] = History()  # with a place of its own
        history.forgotten = now + TOP_SECONDS
        self._nbytes += history.nbytes - (0 if deleted is None else deleted.nbytes)
        self._make_room(now)
        self._note(room)
        self._handler.envelope(room, pack_envelope("k", self._origin, history.top, ()))

    def way(self, room: str) -> Way:
        """See `Bus.way`; it is always the same one."""
        return Way(0, 0)

    async def tops(self, rooms: Sequence[str]) -> Sequence[str | None]:
        """See `Bus.tops`."""
        return [
            None if (found := self._histories.get(room)) is None else found.top for room in rooms
        ]

    # --- who is where ---

    async def lease(self, state: Callable[[], NodeState], grace: Callable[[], float]) -> None:
        """See `Bus.lease`."""
        self._state = state
        self._directory = MemoryDirectory(grace, self._tell_presence)

    def _tell_presence(self, room: str, lines: bytes) -> None:
        if self._handler is not None:
            self._handler.envelope(PRESENCE + room, lines)

    def directory(self, changes: Sequence[Change]) -> None:
        """See `Bus.directory`."""
        if self._directory is not None:
            self._directory.enter(changes)

    async def members(self, room: str, cursor: str) -> tuple[str, Sequence[Member]]:
        """See `Bus.members`; all of them are one page."""
        return "", [] if self._directory is None else self._directory.members(room)

    async def count(self, room: str) -> int:
        """See `Bus.count`."""
        return 0 if self._directory is None else self._directory.count(room)

    async def online(self, users: Sequence[str]) -> set[str]:
        """See `Bus.online`."""
        return set() if self._directory is None else self._directory.online(users)

    async def nodes(self) -> Sequence[NodeInfo]:
        """See `Bus.nodes`."""
        if self._state is None:
            return []
        state = self._state()
        return [NodeInfo(self._origin, self._origin, state.clients, state.draining)]

    def offline_store(self) -> None:
        """See `Bus.offline_store`: a hub that is alone has stores of its own."""

    # --- words between hubs: there is no other hub ---

    async def tell(self, words: Sequence[Word], again: bool) -> Sequence[int]:
        """See `Bus.tell`."""
        return [0] * len(words)

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[bool]:
        """See `Bus.settle`."""
        return [True] * len(outcomes)

    async def outcomes(
        self, user: str, mailbox: str, message_ids: Sequence[str]
    ) -> Sequence[bytes | None]:
        """See `Bus.outcomes`."""
        return [None] * len(message_ids)

    async def elsewhere(self, users: Sequence[str]) -> set[str]:
        """See `Bus.elsewhere`."""
        return set()

    async def clients(self, user: str) -> int:
        """See `Bus.clients`: the hub counts its own."""
        return 0


def new_start() -> str:
    """A place before the first message of a room, which no room has had."""
    return f"0.{new_tag()}"


def _checked(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not isinstance(name, str) or name in ("", ":memory:") or "\0" in name:
        raise ConfigError(f"path must be that of a file, not {path!r}; in memory it is None")
    return name
