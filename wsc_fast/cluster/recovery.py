"""The joins of clients that speak wsc.1: each gets what it missed, or hears that it cannot.

A client that comes back names a position. If the chain of the room knows it, the client gets the
rest and becomes a member in one turn of the loop. Else the history is read from there on, once for
all clients that ask for the same, until the chain knows where the client is.

Half of a client's outbox is for what it missed. A client that has missed more gets the rest when
its outbox has run empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from wsc_fast._core import kept
from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.envelopes import open_entry
from wsc_fast._core.members import KeptRoom
from wsc_fast.bus.base import Page, Retention
from wsc_fast.cluster.chain import Chain, Message
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.reads import Answer
from wsc_fast.errors import ValidationError

# A client that has missed more begins anew.
MOST_MISSED, MOST_MISSED_BYTES = 500, 524_288
# Pages that were read are kept over so many calls of `look` after their last use, and so many bytes
# in all. Most clients that come back have the same position, but not all come during one read.
PAGE_LOOKS, MOST_PAGE_BYTES = 5, 16 << 20
# A client whose place is not found in so many reads begins anew: the bus contradicts itself.
MOST_TRIES = 20
# Roughly the bytes of a head line.
_HEAD_BYTES = 256

Read = Callable[[str, str | None, int, Retention], Answer]
InTurns = Callable[[Iterator[None]], None]


@dataclass(slots=True, eq=False)
class Join:
    """A client on its way into a room.

    Attributes:
        position: up to which it has all; None: it names none.
        missed, nbytes: what it was given.
        tries: how often the history was read for it in vain.
        asked: a read for it is under way.
        lost: it cannot be told what it missed.
        lost_at: how many reads its chain had begun by then.
    """

    client: Client
    room: KeptRoom
    position: str | None
    missed: int = 0
    nbytes: int = 0
    tries: int = 0
    asked: bool = False
    lost: bool = False
    lost_at: int = 0

    def lose(self, chain: Chain) -> None:
        """It begins anew."""
        self.lost, self.lost_at = True, chain.asked


@dataclass(slots=True, eq=False)
class _Kept:
    """A page that was read.

    Attributes:
        messages: of it, without a gap.
        nbytes: of these, about.
        looks: calls of `look` since it was used.
    """

    messages: list[Message]
    nbytes: int
    looks: int = 0


class Recovery:
    """The joins of one hub that are under way.

    Args:
        engine, counters: of the hub.
        read: asks the bus.
        in_turns: does the steps of a generator in turns of the loop; each is about one client.
        emptied: takes the ids of rooms whose last join has ended.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        read: Read,
        in_turns: InTurns,
        emptied: set[str],
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._read = read
        self._in_turns = in_turns
        self._emptied = emptied
        # By room, all that are under way.
        self._joins: dict[str, dict[Client, Join]] = {}
        self._chains: dict[str, Chain] = {}  # of these rooms
        self._rooms: dict[Client, set[str]] = {}  # into which each is on its way
        # By the position after which it reads, those that wait for a read.
        self._asked: dict[tuple[Chain, str], list[Join]] = {}
        # By the position after which they begin, pages of late.
        self._pages: dict[tuple[Chain, str], _Kept] = {}
        self._page_bytes = 0
        # By client, the joins that wait until its outbox is empty.
        self._full: dict[Client, dict[Join, Chain]] = {}
        engine.hear_empty(self.ran_empty)

    def join(self, chain: Chain, join: Join) -> None:
        """Makes a client a member now, or when what it missed is known.

        A second join of a client that is on its way changes nothing: only the first one has the
        position.
        """
        joins = self._joins.setdefault(chain.room, {})
        under_way = joins.get(join.client)
        if under_way is not None and under_way.room.deleted:
            del joins[join.client]  # the room has been made anew since
        self._chains[chain.room] = chain
        if joins.setdefault(join.client, join) is join:
            self._rooms.setdefault(join.client, set()).add(chain.room)
            self._advance(chain, join)

    def leave(self, room_id: str, client: Client) -> None:
        """The client is to be no member: its join ends if it is under way."""
        joins = self._joins.get(room_id)
        if joins is None or joins.pop(client, None) is None:
            return
        rooms = self._rooms[client]
        rooms.discard(room_id)
        if not rooms:
            del self._rooms[client]
        if not joins:
            del self._joins[room_id], self._chains[room_id]
            self._emptied.add(room_id)  # it may never have had a member

    def count_others(self, client: Client, room_id: str) -> int:
        """Into how many rooms but this one a client is on its way."""
        rooms = self._rooms.get(client, ())
        return len(rooms) - (room_id in rooms)

    def waits(self, room_id: str) -> bool:
        """Whether any client is on its way into this room."""
        return room_id in self._joins

    def settled(self, chain: Chain) -> None:
        """The chain is up to date: joins that waited for that go on."""
        joins = self._joins.get(chain.room)
        if joins:
            self._in_turns(self._advance_all(chain, list(joins.values())))

    def _advance_all(self, chain: Chain, joins: list[Join]) -> Iterator[None]:
        for join in joins:
            self._advance(chain, join)
            yield

    def look(self) -> None:
        """Lets go of clients that went while they waited, and goes on where a read has failed.

        To be called each second or so.
        """
        for client in [each for each in self._full if not each.is_connected()]:
            del self._full[client]
        self._forget_pages()
        for room_id, joins in list(self._joins.items()):
            chain = self._chains[room_id]
            for client in [each for each in joins if not each.is_connected()]:
                self.leave(room_id, client)
            if self.waits(room_id) and not chain.healing:
                self._try_again(chain, list(joins.values()))

    def _try_again(self, chain: Chain, joins: list[Join]) -> None:
        behind = [join for join in joins if join.lost and not _has_caught_up(chain, join)]
        for join in behind:
            join.tries += 1
        if behind or chain.last is None:
            chain.heal()
        else:
            self.settled(chain)

    def forget(self) -> None:
        """The hub has stopped."""
        self._joins.clear()
        self._chains.clear()
        self._rooms.clear()
        self._asked.clear()
        self._pages.clear()
        self._page_bytes = 0
        self._full.clear()

    def ran_empty(self, client: Client) -> None:
        """The outbox of a client has run empty: joins that waited for that go on."""
        for join, chain in self._full.pop(client, {}).items():
            self._advance(chain, join)

    def _advance(self, chain: Chain, join: Join) -> None:
        if not self._is_wanted(chain, join):
            return
        if chain.last is None or chain.healing:
            return  # `settled` comes
        if join in self._full.get(join.client, ()):
            return  # `ran_empty` comes
        if join.position is None or join.lost:
            if join.position is None or _has_caught_up(chain, join):
                self._enter(chain, join)
        elif chain.knows(join.position):
            if self._give_all(chain, join, chain.after(join.position)):
                self._enter(chain, join)
        else:
            self._ask(chain, join, join.position)

    def _is_wanted(self, chain: Chain, join: Join) -> bool:
        if self._joins.get(chain.room, {}).get(join.client) is not join:
            return False
        if join.client.is_connected():
            return True
        self.leave(chain.room, join.client)
        return False

    def _give_all(self, chain: Chain, join: Join, messages: list[Message]) -> bool:
        """Gives a client what it missed, up to its bounds; False: it has to wait for the rest."""
        for message in messages:
            size = len(message.frame)
            if self._must_wait(chain, join, size):
                return False
            join.missed += 1
            join.nbytes += size
            if join.missed > MOST_MISSED or join.nbytes > MOST_MISSED_BYTES:
                join.lose(chain)
                break
            join.position, join.tries = message.position, 0
            if not message.exclude or join.client.id not in message.exclude:
                kept.give_one(
                    self._engine, join.client, chain.room, message.position, message.frame
                )
        return True

    def _must_wait(self, chain: Chain, join: Join, size: int) -> bool:
        if not self._engine.must_wait(join.client, size + _HEAD_BYTES):
            return False
        self._full.setdefault(join.client, {})[join] = chain
        return True

    def _enter(self, chain: Chain, join: Join) -> None:
        if self._must_wait(chain, join, 0):
            return
        self.leave(chain.room, join.client)
        if join.room.deleted:
            return
        assert chain.last is not None
        if join.position is None:
            more = ',"recovered":false,"first":true'
        elif join.lost:
            more = ',"recovered":false'
            self._counters.not_recovered += 1
        else:
            more = f',"recovered":true,"missed":{join.missed}'
            self._counters.recovered += 1
        kept.say(self._engine, join.client, chain.room, chain.last, more)
        kept.enter_room(self._engine, join.client, join.room)

    # --- reads of the history ---

    def _ask(self, chain: Chain, join: Join, position: str) -> None:
        if join.asked:
            return  # the chain was settled meanwhile, and does not know the position
        join.tries += 1
        page = self._pages.get((chain, position))
        if page is not None:
            page.looks = 0
            self._go_on(chain, join, page.messages)
            return
        join.asked = True
        waiting = self._asked.get((chain, position))
        if waiting is not None:
            waiting.append(join)
            return
        self._asked[chain, position] = [join]
        answer = self._read(chain.room, position, MOST_MISSED + 1, chain.retention)
        if answer.done():
            self._answered(chain, position, answer)
        else:
            answer.add_done_callback(partial(self._answered, chain, position))

    def _answered(self, chain: Chain, position: str, answer: Answer) -> None:
        joins = self._asked.pop((chain, position), None)
        if joins is None:
            return  # the hub has stopped meanwhile
        if not answer.cancelled() and answer.exception() is None:
            self._in_turns(self._go_on_all(chain, position, joins, answer.result()))
            return
        # The bus is away: they wait until `look` asks again.
        for join in joins:
            join.asked = False
            if join.tries > MOST_TRIES:
                join.lose(chain)

    def _go_on_all(
        self, chain: Chain, position: str, joins: list[Join], page: Page
    ) -> Iterator[None]:
        messages = _messages_of(page)
        if messages:
            self._keep_page(chain, position, messages)
        try:
            for join in joins:
                join.asked = False
                if self._is_wanted(chain, join):
                    self._go_on(chain, join, messages)
                yield
        finally:
            # After an error, such as no memory, `look` goes on with those that are left.
            for join in joins:
                join.asked = False

    def _keep_page(self, chain: Chain, position: str, messages: list[Message]) -> None:
        nbytes = sum(len(each.frame) + _HEAD_BYTES for each in messages)
        if self._page_bytes + nbytes <= MOST_PAGE_BYTES:
            self._pages[chain, position] = _Kept(messages, nbytes)
            self._page_bytes += nbytes

    def _forget_pages(self) -> None:
        for place, page in list(self._pages.items()):
            page.looks += 1
            if page.looks > PAGE_LOOKS:
                del self._pages[place]
                self._page_bytes -= page.nbytes

    def _go_on(self, chain: Chain, join: Join, messages: list[Message] | None) -> None:
        """Gives a client what was read; None: it cannot be read."""
        if messages is None or len(messages) > MOST_MISSED or join.tries > MOST_TRIES:
            join.lose(chain)
        elif not self._give_all(chain, join, messages):
            return
        ahead = not messages and not chain.knows(join.position or "")
        if (ahead or join.lost) and not chain.healing and not _has_caught_up(chain, join):
            chain.heal()  # the history is ahead of what has come over the bus
        self._advance(chain, join)


def _has_caught_up(chain: Chain, join: Join) -> bool:
    """Whether the chain has read the history since it was known that a join cannot recover.

    Else the chain may be behind the messages that the client has, and would give them again. A bus
    that answers no read keeps nobody out for ever.
    """
    if not join.lost:
        return False
    known = join.position is not None and chain.knows(join.position)
    return known or chain.hears_all or chain.answered > join.lost_at or join.tries > 2 * MOST_TRIES


def _messages_of(page: Page) -> list[Message] | None:
    """The messages of a page; None where something is missing, or is no message."""
    if not page.contiguous:
        return None
    try:
        found = [Message(position, *open_entry(entry)) for position, entry in page.entries]
    except ValidationError:
        return None
    return None if any(each.is_mark for each in found) else found
