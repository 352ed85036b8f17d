"""The interface of a bus, which carries messages between hubs and keeps the history of rooms.

A bus is one object for one hub. `MemoryBus` is in the process of the hub, `RedisBus` goes to a
server. All calls are made on the hub's loop, none may block it, and the handler is called there.

Two kinds of rooms go over a bus. A message of a plain room is carried to the hubs that have
members, and forgotten. A message of a kept room is appended to the history of the room, gets a
position there, and is carried with its position and the one before it. So a hub that misses a
message notices it, and reads it from the history.

A position names one message of one kept room. It is an opaque text without spaces, at most 64
ASCII characters. No two messages of a room ever have the same one, not even after a bus has lost
its data. The place before the first message of a room has a position too.

An envelope is the bytes that go over a bus:

    wsc1 KIND ORIGIN PREV COUNT\\n
    POSITION FLAGS EXCLUDE KEY LENGTH\\n<exclude><key><payload>      COUNT times

KIND is `k` of a kept room, `p` of a plain one or of a broadcast. ORIGIN is the name of the hub that
published it. PREV is the position before the first message (`-` in plain rooms). COUNT is 0 where
the history of a kept room was deleted: PREV is then the place before the next message. POSITION
is that of the message, or `-`. FLAGS is `t` for a text message, `b` for a binary one. EXCLUDE, KEY
and LENGTH count the bytes of what follows the line: ids of clients that do not get it, with a
newline between them; the conflation key in UTF-8; the payload. An entry is all of that but POSITION
and its space: the hub that publishes makes it, and the bus neither reads nor changes it.

A mark is an entry of a kept room that is no message. It says that messages before it may be
missing, since the bus has lost them. Its FLAGS are `g`, and nothing follows its line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio

    from wsc_fast.messages import HubMessage
    from wsc_fast.stores.base import OfflineStore

# The entry of a mark.
MARK = b"g 0 0 0\n"
# A message may have so many bytes on a bus, its entry's first line included.
MOST_ENTRY_BYTES = 1_048_576 + 4096
# An idempotency key has at most so many bytes in UTF-8, and is known for so many seconds.
MOST_KEY_BYTES = 128
KEY_SECONDS = 300.0
# The outcome of a message is known for so many seconds.
OUTCOME_SECONDS = 60
# The channel of messages for all clients; each other channel has the id of its room.
EVERYBODY = ""
# Before a room's id, this names the channel of who is present there.
PRESENCE = "\0"


@dataclass(frozen=True, slots=True)
class Retention:
    """The bounds of a kept room's history.

    Attributes:
        size: messages, the newest.
        ttl: seconds after the room's last message.
    """

    size: int
    ttl: float


@dataclass(frozen=True, slots=True)
class Published:
    """The answer to a publish.

    Attributes:
        position: of the message in its kept room; None in a plain room.
        duplicate: a message was published under this idempotency key before. Then `position` is
            that message's, and nothing was published now.
    """

    position: str | None
    duplicate: bool


@dataclass(slots=True, eq=False)
class Outgoing:
    """One message on its way to a bus.

    Attributes:
        room: its id; EVERYBODY for a broadcast.
        entry: FLAGS to payload, see above.
        retention: of a kept room; None: the room is plain.
        idempotency_key: None: there is none.
        answer: gets the `Published` or the error; None where nobody waits. Then an error goes to
            `Handler.not_published`.
    """

    room: str
    entry: bytes
    retention: Retention | None = None
    idempotency_key: str | None = None
    answer: asyncio.Future[Published] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A message of a kept room, out of its history.

    Attributes:
        position: of the message.
        message: as it was sent; a HubMessage where it was one.
    """

    position: str
    message: HubMessage | str | bytes


class Entry(NamedTuple):
    """One message of a history: its position, and the entry as it was published."""

    position: str
    entry: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a room's history.

    Attributes:
        top: the position of the newest message, or the place before the first.
        contiguous: nothing is missing between what was asked for and `entries`.
        entries: in order; at most as many as were asked for. Empty where not contiguous. A bus may
            end a page earlier, after some megabytes: more follow unless the last one is `top`.
        loss: where the page is not contiguous since the bus has lost messages while it still knows
            older ones: a text that is the same for all that it has lost at once. Else "".
    """

    top: str
    contiguous: bool
    entries: Sequence[Entry]
    loss: str = ""


class Way(NamedTuple):
    """The way of a room's messages to the bus.

    Attributes:
        server: the number of the server that has the room, below `Bus.servers`.
        connection: counts the connections to it, up to this one. Only between two of them the
            server may have lost something.
    """

    server: int
    connection: int


class Change(NamedTuple):
    """The clients that one user has on this hub from now on.

    Attributes:
        room: those in this room; EVERYBODY: all that are connected.
        user: his id.
        clients: how many they are; 0: none any more.
    """

    room: str
    user: str
    clients: int


class NodeState(NamedTuple):
    """The facts that a hub tells the others of itself.

    Attributes:
        clients: that are connected.
        draining: whether it sends its clients away.
    """

    clients: int
    draining: bool


class Word(NamedTuple):
    """A message of one hub to others; no client sees it.

    Attributes:
        user: the id of a user: it goes to the other hubs that have the user.
        data: a JSON array, whose first item says what it is; see docs/redis-bus.md.
        hub: the name of the one hub that it goes to, whoever has the user; "" for none.
    """

    user: str
    data: bytes
    hub: str = ""


class Outcome(NamedTuple):
    """The end of a message to a user, as other hubs are told of it.

    Attributes:
        word: that tells the other hubs of the user.
        mailbox: the key of the message's mailbox in the offline store.
        message_id: its id.
        outcome: a short text that `outcomes` returns.
        first: it counts only where no outcome of this message is known.
        waits: the name of the hub that has sent it, which is told as well; "" for none.
    """

    word: Word
    mailbox: str
    message_id: str
    outcome: bytes
    first: bool
    waits: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One of the hubs on a bus.

    Attributes:
        name: of the hub on the bus.
        incarnation: names its life since it came to the bus, or since the others last took it for
            dead.
        clients: that were connected at its last heartbeat.
        draining: whether it sent its clients away then.
    """

    name: str
    incarnation: str
    clients: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A user who is present in a room.

    Attributes:
        user_id: his id.
        clients: his clients in the room on all hubs; 0 while he may come back
            (`HubConfig.presence_grace`).
    """

    user_id: str
    clients: int


class Handler(Protocol):
    """A hub, as its bus sees it. No method raises or blocks."""

    def envelope(self, channel: str, data: bytes) -> bool:
        """An envelope has come: of a room's channel, or of EVERYBODY.

        The hub's own come too, those of kept rooms and those of plain ones. On a channel of
        PRESENCE each line is "+" and a user who has come to the room, or "-" and one who has left.

        Returns:
            bool: whether the hub takes the next one now. A bus with others waits until
            `takes_more`; meanwhile the clients are sent what has come.
        """

    def takes_more(self) -> bool:
        """Whether the hub takes the next envelope now; to be asked once in a turn of the loop."""

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        """From now on all that is published on these channels comes.

        Args:
            channels: each is named once per subscription.
            again: they had come before, and something may have been missed since.
        """

    def kept_rooms(self) -> bytes:
        """The rooms that this hub keeps, in the form of bus/kept.py.

        A bus on which others publish without a hub has it for them.
        """

    def word(self, data: bytes) -> None:
        """Another hub, or a publisher, has sent this hub a word about a user."""

    def elsewhere(self, users: Sequence[str]) -> None:
        """Users whom this hub has entered are connected to other hubs as well."""

    def words_missed(self) -> None:
        """Words may have been lost; from now on they come again."""

    def up(self) -> None:
        """The bus can be reached, for the first time or again."""

    def down(self, error: Exception) -> None:
        """The bus cannot be reached. It tries again by itself until it is closed."""

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        """A message whose `answer` is None was not published, or nobody knows whether it was."""


class Bus(Protocol):
    """The interface of a bus.

    Attributes:
        at_once: the bus is in this process, and connects no other hub. While it is open, `publish`
            and `subscribe` have called the handler when they return, and the answers of `read` are
            done: the hub gives its members a message in the call that publishes it.
        one_machine: all of its hubs are on one machine.
        servers: how many there are, each with rooms of its own. One that is away does not keep the
            others from answering.

    Thread-safety: the loop of the hub that has opened it.
    """

    at_once: bool
    one_machine: bool
    servers: int

    async def open(self, handler: Handler, origin: str) -> None:
        """Begins to carry messages; EVERYBODY is subscribed from now on.

        Args:
            handler: hears what comes.
            origin: the name of this hub on the bus, without spaces.

        Raises:
            BusError: the bus cannot be used as it is; the text says why.
        """

    async def close(self) -> None:
        """Ends; what was published before has been handed over, or its answers have the error."""

    def forget(self) -> None:
        """The loop was closed over the hub, or this is the child of a fork: nothing can be closed.

        Lets go of the connections without using them. Messages that wait are lost. `open` may
        follow, on another loop.
        """

    def descriptors(self) -> list[int]:
        """Of its sockets, and of other files that the child of a fork must not have.

        The child gets /dev/null in place of each, and then `forget` is called there.
        """

    def subscribe(self, rooms: Sequence[str]) -> None:
        """Has the messages of these rooms come; `Handler.subscribed` says from when on."""

    def unsubscribe(self, rooms: Sequence[str]) -> None:
        """Has them come no more. Some that are under way may still come."""

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Publishes messages, in this order where they are of one room.

        While the bus is away they wait, within bounds in bytes and time; then each answer gets a
        BusUnavailableError. A message whose outcome is unknown is not published twice.

        Args:
            batch: neighbours of one room may share an envelope.
        """

    def read(
        self, room: str, since: str | None, limit: int, retention: Retention
    ) -> Awaitable[Page]:
        """Reads the history of a kept room.

        Args:
            room: its id.
            since: the position after which to read; None reads the newest messages, without marks.
            limit: the most entries to return; with 0 only `top` is asked for.
            retention: of the room.

        Returns:
            Awaitable[Page]: raises a BusUnavailableError if the bus did not answer in time.
        """

    def delete(self, room: str) -> Awaitable[None]:
        """Deletes the history of a kept room. No position of before is known afterwards.

        The hubs that have subscribed get an envelope without messages. Idempotency keys stay.

        Args:
            room: its id.

        Returns:
            Awaitable[None]: raises a BusUnavailableError if the bus did not answer in time.
        """

    async def tops(self, rooms: Sequence[str]) -> Sequence[str | None]:
        """The positions of the newest messages of kept rooms; None where nothing is known.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    def way(self, room: str) -> Way:
        """The server that has a room, and the connection over which its messages go there."""

    # --- who is where ---

    async def lease(self, state: Callable[[], NodeState], grace: Callable[[], float]) -> None:
        """Has the other hubs know of this one, until `close`; `directory` may be called then.

        Where the hub ends without a word, the bus lets go of what it has entered. Where others
        took it for dead while it was not, the bus enters all of it anew.

        Args:
            state: what the hub tells the others of itself; asked now and then.
            grace: the seconds after which a leave is told, unless the user is back.

        Raises:
            BusError: the bus cannot be used for it; the text says why.
        """

    def directory(self, changes: Sequence[Change]) -> None:
        """Enters who is connected here, and in which rooms.

        The bus carries a join once the first hub has a user, and a leave once the last one has had
        him, after the grace; to the hubs that have subscribed PRESENCE and the room's id.
        """

    async def members(self, room: str, cursor: str) -> tuple[str, Sequence[Member]]:
        """A page of the users who are present in a room, of 500 or about as many.

        Args:
            room: its id; EVERYBODY: of all users, whose clients need not be counted.
            cursor: "" for the first page, else what the page before has returned.

        Returns:
            tuple[str, Sequence[Member]]: the next cursor, "" after the last page, and the users.
            One may come twice. A user who was there during all of the pages is in one.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def count(self, room: str) -> int:
        """How many users are present in a room.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def online(self, users: Sequence[str]) -> set[str]:
        """The users among these who are connected to any hub.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def nodes(self) -> Sequence[NodeInfo]:
        """The hubs that hold leases.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    def offline_store(self) -> OfflineStore | None:
        """A new store of messages for users who are away, which all hubs on the bus share.

        Returns:
            OfflineStore | None: None where the bus keeps none.
        """

    # --- words between hubs: for a bus that is not in this process ---

    async def tell(self, words: Sequence[Word], again: bool) -> Sequence[int]:
        """Sends words to the hubs that have their users, but for this one, or to one hub.

        Args:
            words: those of one user, and those to one hub, come in this order.
            again: whether they may come twice. Else they are lost where nobody knows whether they
                were sent.

        Returns:
            Sequence[int]: for each, how many hubs have got it.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def settle(self, outcomes: Sequence[Outcome]) -> Sequence[bool]:
        """Notes how messages have ended, for OUTCOME_SECONDS, and tells the hubs that have copies.

        Args:
            outcomes: of messages that an offline store holds.

        Returns:
            Sequence[bool]: whether each was noted; False where an earlier one counts.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def outcomes(
        self, user: str, mailbox: str, message_ids: Sequence[str]
    ) -> Sequence[bytes | None]:
        """The outcomes that were noted of a user's messages; None where none is known.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def elsewhere(self, users: Sequence[str]) -> set[str]:
        """The users among these whom other hubs have.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """

    async def clients(self, user: str) -> int:
        """The number of a user's clients on all hubs, this one included.

        Raises:
            BusUnavailableError: the bus did not answer in time.
        """
