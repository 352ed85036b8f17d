"""One kept room as a hub follows it: no message is missed without a word.

Each message names the position before it. Where that is the last one that the hub knows, the
message goes to the members. Else something was missed: the chain heals, that is, reads the history
after the last position that it knows, once for all members. If the history does not reach back so
far, there is a gap: the members are told, and the chain goes on from the newest message.

The bus may have lost that position, and still know older ones: then others miss messages as well,
who cannot know it, such as clients that are away. So the hub puts a mark into the history, one for
all hubs that notice the same loss. A client that passes the mark, on any way, has a gap there. The
chain goes on from the mark; where the bus does not take it, from the newest message.

A chain waits for nothing but the answer to a read, and the answer to a mark. A bus gives each of
them, or an error, within a bound of its own.

The generators here do one message in each step, so that many messages take many turns of the loop.
Between two steps anything may happen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, Protocol

from wsc_fast._core.envelopes import open_entry
from wsc_fast.bus.base import Entry, Page, Published, Retention
from wsc_fast.cluster.reads import Answer
from wsc_fast.errors import ValidationError

# The messages that a hub remembers of each room, for clients that come back soon.
RING_MESSAGES, RING_BYTES = 64, 65_536
# A read asks for so many messages.
HEAL_LIMIT = 1000
# While a chain heals, so many messages wait; beyond that it reads them again.
MOST_WAITING = 1000


class Message(NamedTuple):
    """A message of a kept room, or a mark; see `_core.envelopes.read_envelope`."""

    position: str
    frame: bytes
    exclude: tuple[str, ...] | None
    key: str | None

    @property
    def is_mark(self) -> bool:
        """Whether it is no message: those before it may be missing."""
        return not self.frame


class Needs(Protocol):
    """The calls that a chain makes; cluster/rooms.py has them.

    Attributes:
        hears_all: the bus is in this process, and no message can be missed on the way. A place
            that is not known is then that of a history which has begun anew.
    """

    @property
    def hears_all(self) -> bool: ...
    def read(self, room: str, since: str | None, limit: int, retention: Retention) -> Answer: ...
    def give(self, room: str, message: Message) -> None: ...
    def gap(self, room: str, position: str) -> None: ...
    def mark(self, room: str, loss: str, retention: Retention) -> asyncio.Future[Published]: ...
    def not_marked(self, chain: Chain, error: Exception) -> None: ...
    def settled(self, chain: Chain) -> None: ...
    def count_heal(self, room: str, messages: int) -> None: ...
    def failed(self, room: str, error: Exception) -> None: ...
    def in_turns(self, steps: Iterator[None]) -> None: ...


class Chain:
    """The last position of a room, and the messages before it.

    Args:
        room: its id.
        retention: of the room.
        needs: see there.
        server: the number of the server that has the room, see `Bus.way`.

    Attributes:
        last: the position up to which the members have all; None before it is known.
        healing: a read is under way, and messages that come wait for it.
        asked: how many reads have begun.
        answered: the number of the last one that brought it up to date.
    """

    def __init__(self, room: str, retention: Retention, needs: Needs, server: int = 0) -> None:
        self.room = room
        self.retention = retention
        self.server: int = server
        self.last: str | None = None
        self.healing: bool = False
        self.asked: int = 0
        self.answered: int = 0
        self._needs = needs
        self._ring: dict[str, Message] = {}  # by position, the oldest first
        self._ring_bytes = 0
        self._ring_start = ""  # the position before the first message of the ring
        self._waiting: deque[tuple[str, Message]] = deque()  # with the position before each
        self._heard_before = 0  # so many of them came before the read began
        self._overflowed = False  # some that came are not in `_waiting`
        self._ended = False
        self._loss = ""  # the last one that it has marked

    @property
    def hears_all(self) -> bool:
        """See `Needs`."""
        return self._needs.hears_all

    # --- what comes ---

    def heard(self, prev: str, messages: list[Message]) -> Iterator[None]:
        """Messages have come, of which the first one follows `prev`.

        No messages: the history was deleted, and the members have a gap.
        """
        if not messages and not self._ended and not self.knows(prev):
            self.heal()
        for message in messages:
            if self._ended:
                return
            if self.healing:
                self._wait(prev, message)
            elif prev == self.last:
                self._give(message)
                yield
            elif self.knows(message.position):
                pass
            elif self._needs.hears_all:
                self._begin_at(prev)
                self._give(message)
                yield
            else:
                self._wait(prev, message)
                self.heal()
            prev = message.position

    @property
    def is_silent(self) -> bool:
        """Whether it is up to date as far as it knows, and waits for the next message."""
        return self.last is not None and not self.healing and not self._ended

    def knows(self, position: str) -> bool:
        """Whether a message, or the place before the ring, has this position."""
        return position == self.last or position in self._ring or position == self._ring_start

    def after(self, position: str) -> list[Message]:
        """The messages after a position that it knows."""
        messages = list(self._ring.values())
        if position == self.last:
            return []
        if position == self._ring_start:
            return messages
        positions = list(self._ring)
        return messages[positions.index(position) + 1 :]

    def _wait(self, prev: str, message: Message) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append((prev, message))
        else:
            self._overflowed = True

    def _give(self, message: Message) -> None:
        if message.is_mark:
            self._gap_before(message.position)
            return
        self._ring[message.position] = message
        self._ring_bytes += len(message.frame)
        while len(self._ring) > 1 and (
            len(self._ring) > RING_MESSAGES or self._ring_bytes > RING_BYTES
        ):
            oldest = next(iter(self._ring))
            self._ring_bytes -= len(self._ring.pop(oldest).frame)
            self._ring_start = oldest
        self.last = message.position
        self._needs.give(self.room, message)

    def _gap_before(self, position: str) -> None:
        self._begin_at(position)
        self._needs.gap(self.room, position)

    def _begin_at(self, position: str) -> None:
        self._ring.clear()
        self._ring_bytes = 0
        self.last = self._ring_start = position

    def end(self) -> None:
        """Nobody follows the room any more: the answer of a read that is under way is for nobody.

        The room may have another chain by then.
        """
        self._ended = True

    # --- healing ---

    def heal(self) -> None:
        """Reads what may have been missed; where a read is under way, once more after that."""
        if self.healing:
            self._waiting.clear()
            self._heard_before = 0
            self._overflowed = True
        else:
            self.healing = True
            self._ask()

    def _ask(self) -> None:
        limit = 0 if self.last is None else HEAL_LIMIT
        self._heard_before = len(self._waiting)
        self.asked += 1
        answer = self._needs.read(self.room, self.last, limit, self.retention)
        if answer.done():
            self._answered(answer)
        else:
            answer.add_done_callback(self._answered)

    def _answered(self, answer: Answer) -> None:
        if self._ended:
            return
        error = OSError("the read was given up") if answer.cancelled() else answer.exception()
        if error is None:
            self._needs.in_turns(self._heal_with(answer.result()))
        else:
            self._give_up(error if isinstance(error, Exception) else OSError())

    def _give_up(self, error: Exception) -> None:
        """It heals again when the bus is back, with the next message, or in an audit."""
        self._waiting.clear()
        self._overflowed = False
        self._needs.failed(self.room, error)
        self._settle()

    def _settle(self) -> None:
        self.healing = False
        self._needs.settled(self)

    def _heal_with(self, page: Page) -> Iterator[None]:
        try:
            yield from self._take_page(page)
        except Exception as error:
            # Such as no memory. No read is under way any more, for which messages could wait.
            self._give_up(error)

    def _take_page(self, page: Page) -> Iterator[None]:
        if self.last is None:
            # With what came since the subscription, which members of this hub may have published.
            self._begin_at(self._waiting[0][0] if self._waiting else page.top)
            self._heard_before = 0
        elif page.loss and page.loss != self._loss:
            self._mark(page)
            return
        elif not page.contiguous or (not page.entries and page.top != self.last):
            self._gap_before(page.top)
        else:
            self._needs.count_heal(self.room, len(page.entries))
            for entry in page.entries:
                self._give_entry(entry)
                yield
                if self._ended:
                    return
            if page.entries and self.last != page.top:
                self._ask()  # a page may end early, by its bytes
                return
        yield from self._take_waiting()
        if self._ended:
            return
        if self._waiting or self._overflowed:
            self._overflowed = False
            self._ask()
        else:
            self.answered = self.asked
            self._settle()

    def _mark(self, page: Page) -> None:
        """The bus has lost what the members have: it goes on from the mark that says so."""
        answer = self._needs.mark(self.room, page.loss, self.retention)
        answer.add_done_callback(partial(self._marked, page))

    def _marked(self, page: Page, answer: asyncio.Future[Published]) -> None:
        if self._ended:
            return
        error = OSError("the mark was given up") if answer.cancelled() else answer.exception()
        if error is None:
            position = answer.result().position
            assert position is not None  # the room is kept
        else:
            # The members wait no longer. Where the mark is there all the same, it is a gap again.
            position = page.top
            error = error if isinstance(error, Exception) else OSError()
        self._needs.in_turns(self._pass_loss(page.loss, position, error))

    def _pass_loss(self, loss: str, position: str, error: Exception | None) -> Iterator[None]:
        try:
            if error is not None:
                # In one step with what follows: audits leave out a message that a chain has.
                self._needs.not_marked(self, error)
            if self._ended:
                return
            self._loss = loss
            self._gap_before(position)
        except Exception as error:
            self._give_up(error)  # as in `_heal_with`
            return
        yield
        if not self._ended:
            self._ask()

    def _give_entry(self, entry: Entry) -> None:
        try:
            self._give(Message(entry.position, *open_entry(entry.entry)))
        except ValidationError as error:
            # Somebody else writes to the bus; the members are told that something is missing.
            self._needs.failed(self.room, error)
            self._gap_before(entry.position)

    def _take_waiting(self) -> Iterator[None]:
        """Takes the messages that came meanwhile, up to one before which something is missing.

        A message that came before the read began is part of what was read, or of a history that
        the bus has lost.
        """
        for _ in range(self._heard_before):
            self._waiting.popleft()
        self._heard_before = 0
        while self._waiting and not self._ended:
            prev, message = self._waiting[0]
            if prev == self.last:
                self._waiting.popleft()
                self._give(message)
                yield
            elif self.knows(message.position):
                self._waiting.popleft()
            else:
                return
