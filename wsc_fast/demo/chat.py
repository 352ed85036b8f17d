"""A room chat on the public API of wsc_fast alone: the demo, and an example to copy from.

Clients talk JSON text messages with a "type"; the two unions below are the whole protocol.

    client -> server    join_room, leave_room, chat_message, room_list
    server -> client    joined, user_joined, user_left, chat_message, room_list, error

Rules that hold throughout:
- The worst answer to a client is an `error` message, whatever it sends: junk never raises.
- Everything a client can make the server keep is bounded by the constants below.
- The chat's own state changes before it calls the hub, because any send may end a slow client, and
  so come back here through `on_client_disconnected`.
- The sender gets its own chat_message back: that is how a page knows that the message arrived.
"""

import asyncio
import contextlib
import re
import unicodedata
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from wsc_fast import (
    Client,
    ClientNotFoundError,
    Hub,
    HubConfig,
    MemoryBus,
    Request,
    RequestError,
    Response,
    WSCError,
)
from wsc_fast.demo.pages import read_page

LOBBY = "lobby"  # always there, the only room that outlives its last member

MAX_NAME = 40  # characters of a room's or a person's name
MAX_TEXT = 2_000  # characters of a chat message
MAX_MESSAGE_BYTES = 32_768  # holds MAX_TEXT even if every character is escaped as a surrogate pair
MESSAGE_RATE = 10.0  # a second, of one client: all members of a room may hear of each
MAX_ROOMS = 500
MAX_ROOMS_PER_CLIENT = 20
MAX_MEMBERS = 200  # of one room: user_joined carries all names to all members
HISTORY_MESSAGES = 50  # kept for each room, for those who come later
HISTORY_CHARACTERS = 20_000  # and no more text than this
ROOM_LIST_INTERVAL = 0.2  # seconds; however many come and go, the list is sent once in that time
# Seconds from one change of a person in a room (entering it, a new name) to the next, which waits:
# the names of all go to all, for a request of 50 bytes.
CHANGE_INTERVAL = 1.0
MAX_CHANGES = 2 * MAX_ROOMS_PER_CLIENT  # in that time, of one person in all rooms

_KEPT = "said:"  # and the name of a room: the kept room of what is said in it
_KEPT_FOR = 86_400.0  # seconds
_JOINERS = {0x200C: None, 0x200D: None}  # invisible, but Persian words and emoji families need them
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


class _Message(msgspec.Struct, tag_field="type"):
    """Base of all messages: one JSON object, told apart by its "type"."""


class JoinRoom(_Message, tag="join_room"):
    """Enter a room, making it if need be; in a room already entered, change the name."""

    room: str
    name: str


class LeaveRoom(_Message, tag="leave_room"):
    """Leave a room; answered by the `user_left` that everybody there gets."""

    room: str


class PostMessage(_Message, tag="chat_message"):
    """Say something in a room."""

    room: str
    text: str


class ListRooms(_Message, tag="room_list"):
    """Ask for the rooms now; changes are sent unasked."""


class RoomSummary(msgspec.Struct):
    """One line of the list of rooms."""

    room: str
    members: int


class RoomList(_Message, tag="room_list"):
    """All rooms."""

    rooms: list[RoomSummary]


class ChatMessage(_Message, tag="chat_message"):
    """Something said in a room."""

    room: str
    name: str
    text: str
    time: datetime


class Joined(_Message, tag="joined"):
    """To the one who joined; `name` ends in a number if another member had the wanted one."""

    room: str
    name: str
    members: list[str]
    history: list[ChatMessage]


class UserJoined(_Message, tag="user_joined"):
    """To everybody else in the room."""

    room: str
    name: str
    members: list[str]


class UserLeft(_Message, tag="user_left"):
    """To everybody in the room, and to the one who left if still connected."""

    room: str
    name: str
    members: list[str]


class Error(_Message, tag="error", omit_defaults=True):
    """A request was refused; `room` is the one it named, as it was given."""

    message: str
    room: str | None = None


_Request = JoinRoom | LeaveRoom | PostMessage | ListRooms
_said_decoder = msgspec.json.Decoder(ChatMessage)
_decoder = msgspec.json.Decoder(_Request)
_encoder = msgspec.json.Encoder()


class _Refused(Exception):
    """The client's request cannot be met; becomes an `error` message."""


class _Person:
    """The chat's notes on a client."""

    def __init__(self) -> None:
        self.rooms: set[str] = set()
        self.changed: dict[str, asyncio.TimerHandle] = {}  # rooms where the next change has to wait
        self.wanted: dict[str, str] = {}  # room -> the name of the change that waits


class _Room:
    """The chat's notes on a room beyond the hub's membership."""

    def __init__(self) -> None:
        self.members: dict[str, str] = {}  # client id -> name in this room
        self.history: deque[ChatMessage] = deque()
        self._history_characters = 0
        # Clients that are to be welcomed once the history is read; None where it is there.
        self.waiting: list[Client] | None = None

    def names(self) -> list[str]:
        return sorted(self.members.values(), key=str.casefold)

    def free_name(self, wanted: str, client_id: str) -> str:
        """`wanted`, or with a number behind it if another member is called so."""
        taken = {name.casefold() for key, name in self.members.items() if key != client_id}
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            suffix = f" {number}"
            name = wanted[: MAX_NAME - len(suffix)] + suffix
        return name

    def recall(self, before: list[ChatMessage]) -> None:
        """Puts what was said before ahead of what is said since."""
        since = [message for message in self.history if message not in before]
        self.history.clear()
        self._history_characters = 0
        for message in (*before, *since):
            self.remember(message)

    def remember(self, message: ChatMessage) -> None:
        self.history.append(message)
        self._history_characters += len(message.text)
        while len(self.history) > HISTORY_MESSAGES or self._history_characters > HISTORY_CHARACTERS:
            self._history_characters -= len(self.history.popleft().text)


class Chat:
    """The room chat; it answers the events of the hub it is given."""

    def __init__(self, hub: Hub, *, keeps: bool = False) -> None:
        self._hub = hub
        self._keeps = keeps
        self._rooms: dict[str, _Room] = {LOBBY: _Room()}
        if keeps:
            hub.keep(f"{_KEPT}*", size=HISTORY_MESSAGES, ttl=_KEPT_FOR)
            hub.on_startup(lambda: self._read_history(LOBBY, self._rooms[LOBBY]))
        self._room_list_due: asyncio.TimerHandle | None = None
        hub.create_room(LOBBY)
        hub.on_client_connected(self._on_connected)
        hub.on_client_disconnected(self._on_disconnected)
        hub.on_message_received(self._on_message)
        hub.on_request(self._on_request)

    @property
    def rooms(self) -> int:
        """How many rooms there are."""
        return len(self._rooms)

    async def _read_history(self, room_name: str, room: _Room) -> None:
        """Gives a room what was said in it before, then welcomes those who came meanwhile."""
        try:
            entries = await self._hub.cluster.history(_KEPT + room_name, limit=HISTORY_MESSAGES)
            texts = [entry.message for entry in entries if isinstance(entry.message, str)]
            room.recall([_said_decoder.decode(text) for text in texts])
        finally:
            waiting, room.waiting = room.waiting or [], None
            for client in waiting:
                self._welcome(client, room_name, room)

    def _on_connected(self, client: Client) -> None:
        # Kept with the client: by the time the hub tells of its disconnect, it is in no room.
        client.set_user_data("person", _Person())

    def _on_disconnected(self, client: Client) -> None:
        person = _person_of(client)
        for timer in person.changed.values():
            timer.cancel()
        for room_name in list(person.rooms):
            self._take_out(client, room_name)

    def _on_message(self, client: Client, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._send(client, Error("Expected JSON in a text message, not a binary one."))
            return
        try:
            request = _decoder.decode(message)
        except (msgspec.DecodeError, RecursionError) as error:
            self._send(client, Error(f"Not understood: {error}"[:200]))
            return
        self._answer(client, request)

    def _on_request(self, client: Client, data: Any) -> RoomList:
        """Answers with the rooms; the client learns so that requests are answered, and pings."""
        if data != "rooms":
            raise RequestError("not-understood", 'the one request is "rooms"')
        return self._room_list()

    def _answer(self, client: Client, request: _Request) -> None:
        try:
            self._handle(client, request)
        except (_Refused, WSCError) as error:  # WSCError: a bound of the hub's own configuration
            self._send(client, Error(str(error), getattr(request, "room", None)))

    def _handle(self, client: Client, request: _Request) -> None:
        match request:
            case JoinRoom(room, name):
                self._change(client, _clean_name(room, "room name"), _clean_name(name, "name"))
            case LeaveRoom(room):
                self._leave(client, _clean_name(room, "room name"))
            case PostMessage(room, text):
                self._post(client, _clean_name(room, "room name"), text)
            case ListRooms():
                self._send(client, self._room_list())

    def _change(self, client: Client, room_name: str, wanted: str) -> None:
        person = _person_of(client)
        if room_name in person.changed:
            person.wanted[room_name] = wanted  # in place of another that waits
            return
        if len(person.changed) >= MAX_CHANGES:
            raise _Refused("You change rooms too often.")
        if room_name in person.rooms:
            self._rename(client, room_name, wanted)
        else:
            self._join(client, room_name, wanted)
        if client.is_connected():  # else it went while the others were told
            loop = asyncio.get_running_loop()
            person.changed[room_name] = loop.call_later(
                CHANGE_INTERVAL, self._change_again, client, room_name
            )

    def _change_again(self, client: Client, room_name: str) -> None:
        person = _person_of(client)
        del person.changed[room_name]
        wanted = person.wanted.pop(room_name, None)
        if wanted is not None and client.is_connected():
            self._answer(client, JoinRoom(room_name, wanted))

    def _join(self, client: Client, room_name: str, wanted: str) -> None:
        rooms = _person_of(client).rooms
        if len(rooms) >= MAX_ROOMS_PER_CLIENT:
            raise _Refused(f"You can be in {MAX_ROOMS_PER_CLIENT} rooms at most.")
        room = self._rooms.get(room_name)
        if room is None:
            if len(self._rooms) >= MAX_ROOMS:
                raise _Refused(f"There can be {MAX_ROOMS} rooms at most.")
            self._hub.create_room(room_name)
            room = self._rooms[room_name] = _Room()
            if self._keeps:
                room.waiting = []
                self._hub.create_task(self._read_history(room_name, room))
        elif len(room.members) >= MAX_MEMBERS:
            raise _Refused(f"The room is full: {MAX_MEMBERS} members.")
        name = room.members[client.id] = room.free_name(wanted, client.id)
        rooms.add(room_name)
        try:
            self._hub.join_room(client.id, room_name)
            if self._keeps:
                self._hub.join_room(client.id, _KEPT + room_name)
        except WSCError:
            self._take_out(client, room_name)
            raise
        self._broadcast(room_name, UserJoined(room_name, name, room.names()), exclude=client.id)
        self._welcome(client, room_name, room)
        self._rooms_changed()

    def _rename(self, client: Client, room_name: str, wanted: str) -> None:
        room = self._rooms[room_name]
        before, name = room.members[client.id], room.free_name(wanted, client.id)
        if name != before:
            room.members[client.id] = name
            self._broadcast(room_name, UserLeft(room_name, before, room.names()), exclude=client.id)
            self._broadcast(room_name, UserJoined(room_name, name, room.names()), exclude=client.id)
        self._welcome(client, room_name, room)

    def _leave(self, client: Client, room_name: str) -> None:
        person = _person_of(client)
        if person.wanted.pop(room_name, None) is not None and room_name not in person.rooms:
            return  # it was not in yet
        self._room_of(client, room_name)
        with contextlib.suppress(ClientNotFoundError):
            self._hub.leave_room(client.id, room_name)
            if self._keeps:
                self._hub.leave_room(client.id, _KEPT + room_name)
        self._send(client, self._take_out(client, room_name))

    def _post(self, client: Client, room_name: str, text: str) -> None:
        room = self._room_of(client, room_name)
        text = text.replace("\r\n", "\n").strip()
        if not 1 <= len(text) <= MAX_TEXT:
            raise _Refused(f"A message has 1 to {MAX_TEXT} characters.")
        if _CONTROL_CHARACTER.search(text):
            raise _Refused("A message has no control characters.")
        message = ChatMessage(room_name, room.members[client.id], text, datetime.now(UTC))
        room.remember(message)
        self._broadcast(_KEPT + room_name if self._keeps else room_name, message)

    def _room_of(self, client: Client, room_name: str) -> _Room:
        if room_name not in _person_of(client).rooms:
            raise _Refused("You are not in this room.")
        return self._rooms[room_name]

    def _take_out(self, client: Client, room_name: str) -> UserLeft:
        """Forget a member that the hub's room no longer has, and the room with its last member."""
        room = self._rooms[room_name]
        _person_of(client).rooms.discard(room_name)
        name = room.members.pop(client.id)
        notice = UserLeft(room_name, name, room.names())
        if room.members or room_name == LOBBY:
            self._broadcast(room_name, notice)
        else:
            del self._rooms[room_name]
            self._hub.delete_room(room_name)
        self._rooms_changed()
        return notice

    def _welcome(self, client: Client, room_name: str, room: _Room) -> None:
        name = room.members.get(client.id)
        if room.waiting is not None:
            room.waiting.append(client)
        elif name is not None:  # else it went while the others were told
            self._send(client, Joined(room_name, name, room.names(), list(room.history)))

    def _room_list(self) -> RoomList:
        return RoomList(
            [RoomSummary(name, len(room.members)) for name, room in sorted(self._rooms.items())]
        )

    def _rooms_changed(self) -> None:
        if self._room_list_due is None:
            loop = asyncio.get_running_loop()
            self._room_list_due = loop.call_later(ROOM_LIST_INTERVAL, self._publish_room_list)

    def _publish_room_list(self) -> None:
        self._room_list_due = None
        # With a key: to a client that is behind, only the newest list is sent.
        self._hub.broadcast(_to_text(self._room_list()), key="room_list")

    def _broadcast(self, room_name: str, message: _Message, *, exclude: str | None = None) -> None:
        excluded = () if exclude is None else (exclude,)
        self._hub.broadcast_to_room(room_name, _to_text(message), exclude=excluded)

    def _send(self, client: Client, message: _Message) -> None:
        # Gone, or its outbox is full: the hub counts that, and there is nobody to tell.
        with contextlib.suppress(WSCError):
            client.send(_to_text(message))


def _person_of(client: Client) -> _Person:
    person: _Person = client.get_user_data("person")
    return person


def _to_text(message: _Message) -> str:
    return _encoder.encode(message).decode()  # str, since bytes would go out as a binary message


def _clean_name(value: str, what: str) -> str:
    value = unicodedata.normalize("NFC", value).strip()
    if not 1 <= len(value) <= MAX_NAME:
        raise _Refused(f"A {what} has 1 to {MAX_NAME} characters.")
    visible = value.translate(_JOINERS)
    if not visible or not visible.isprintable():
        raise _Refused(f"A {what} has no control or invisible characters.")
    return value


def create_hub(
    config: HubConfig | None = None, *, kind: type[Hub] = Hub, keep: str | None = None
) -> Hub:
    """A hub with the chat on it, its page on "/" and its state on "/health".

    Args:
        config: settings instead of those of the demo.
        kind: the class of the hub.
        keep: a file for what is said, so that it outlasts the process; None keeps it in memory.
    """
    if config is None:
        config = HubConfig(
            max_message_size=MAX_MESSAGE_BYTES,
            message_rate=MESSAGE_RATE,
            rate_limit_action="pause",  # a page that comes back joins all of its rooms at once
        )
    hub = kind(config, bus=None if keep is None else MemoryBus(keep))
    chat = Chat(hub, keeps=keep is not None)
    page = read_page(Path(__file__).with_name("page.html"))

    @hub.route("/")
    def index(request: Request) -> Response:
        return page

    @hub.route("/health")
    def health(request: Request) -> dict[str, Any]:
        stats = hub.get_stats()
        return {
            "status": "healthy",
            "uptime": str(timedelta(seconds=int(stats.uptime))),
            "connections": stats.connected_clients,
            "rooms": chat.rooms,
        }

    return hub


class _Announced(Hub):
    """Says where its chat is, once it listens."""

    async def start(self, host: Any = "127.0.0.1", *args: Any, **options: Any) -> None:
        await super().start(host, *args, **options)
        shown = f"[{host}]" if ":" in host else host
        print(f"Chat on http://{shown}:{self.port}\nPress Ctrl+C to stop", flush=True)


def main(host: str = "127.0.0.1", port: int = 8080, keep: str | None = None) -> None:
    """Serve the chat until Ctrl+C; port 0 chooses a free one, `keep` is a file for what is said."""
    create_hub(kind=_Announced, keep=keep).run(host, port, path="/ws")
