import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Self, final

from wsc_fast._core.fanout import Fanout, FanoutNeeds
from wsc_fast._core.histogram import Histogram
from wsc_fast._core.messages import MessageForms
from wsc_fast._core.settings import Settings
from wsc_fast._core.timers import Timers
from wsc_fast.messages import HubMessage

# Clients are Any here: connection.pyi stands above this module.
_Message = bytes | bytearray | memoryview | str | HubMessage

@final
class Engine(FanoutNeeds):
    """The work of a hub on clients, users, rooms and messages (internal)."""

    max_rooms: int
    max_rooms_per_client: int
    max_message_size: int
    max_fragments: int
    auth_input_bytes: int
    heartbeat_interval: float
    heartbeat_timeout: float
    close_timeout: float
    message_timeout: float

    def __new__(cls, hub: object) -> Self: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """asyncio.AbstractEventLoop | None: the loop it runs on, None while it does not run."""
    @property
    def fanout(self) -> Fanout: ...
    @property
    def connections(self) -> int: ...
    @property
    def deadlines(self) -> Timers[Callable[[], object]]: ...
    def attach(self, loop: asyncio.AbstractEventLoop | None, send_threads: int = 0) -> int:
        """Binds to the running loop of this thread, or to none.

        Args:
            loop: the loop, or None.
            send_threads: so many threads are to help with sends.

        Returns:
            int: those that are there.
        """
    def join(
        self, requests: object, admission: object, application: object, deliveries: object
    ) -> None:
        """Has these hear of what happens here; upward.py has their interfaces."""
    def configure(self, config: Settings) -> None:
        """Takes the settings that hold from the start on; for a hub that does not run."""
    def configure_live(self, config: Settings) -> None:
        """Takes all other settings; a running hub takes most of them anew."""
    def set_timeouts(self, heartbeat: float, message: float) -> None:
        """Sets the longest silence of a client, and the longest time of a message, in seconds."""
    def new_context(self) -> Context:
        """A contextvars.Context for what is no client's."""
    def is_away(self) -> bool:
        """Whether the hub runs, and in another thread."""
    def set_turns(self, heavy_read: int, budget: float) -> None:
        """Sets the bytes of a heavy read, and the least seconds that such reads have in a turn."""
    def set_forms(self, forms: MessageForms) -> None:
        """Hands down what messages.py has for the engine; to be called first of all."""
    def set_client_stats(self, client_stats: Callable[..., Any]) -> None:
        """Hands down what `Client.stats` calls, with the numbers that only it knows."""
    def set_acks(
        self,
        take: Callable[[Any, str], int],
        replaying: set[str],
        hold: Callable[[str, Any, bytes], int],
        ran_empty: Callable[[Any], None],
    ) -> None:
        """Joins the acknowledgements to the engine.

        Args:
            take: `take(client, text) -> int` takes acknowledgements out of what comes in:
                NO_ACK, SETTLED or IGNORED.
            replaying: the set of users whose plain messages go through `hold`.
            hold: `hold(user_id, message, data) -> int`.
            ran_empty: `ran_empty(client)`, once for each `await_empty`.
        """
    def hear_empty(self, ran_empty: Callable[[Any], None]) -> None:
        """Has `ran_empty(client)` be called when an outbox is empty for which somebody waits."""
    def must_wait(self, client: Any, size: int) -> bool:
        """Whether a frame of so many bytes has to wait for room in a client's outbox.

        Half of the outbox is left for others. A frame that has to wait may be sent once
        `hear_empty` has told that the outbox is empty.
        """
    def set_filters(
        self,
        join_filter: Callable[[Any, str], bool] | None,
        publish_filter: Callable[[Any, str | bytes], bool] | None,
    ) -> None:
        """Has `join_filter(client, room_id)` and `publish_filter(client, message)` decide."""
    def watch_losses(self, watched: bool) -> None:
        """Whether `Deliveries.lost` is called for what is dropped or not sent."""
    def send_message(self, user_id: str, message: Any) -> int:
        """`send_to_user` without the failure handlers, on the loop's thread."""
    def set_message_handlers(
        self,
        handlers: tuple[Callable[..., Any], ...],
        gathers: bool = False,
        alone: Callable[[str | bytes], bool] | None = None,
    ) -> None:
        """Has these called for each message.

        Args:
            handlers: called one after the other.
            gathers: each call is for the list of the messages of one read.
            alone: which messages are in a list of their own; None: none.
        """
    def get_client_by_id(self, client_id: str) -> Any:
        """See `Hub.get_client_by_id`."""
    def get_clients_by_user(self, user_id: str) -> list[Any]:
        """See `Hub.get_clients_by_user`."""
    def empty_rooms(self) -> None:
        """Takes the members out of deleted rooms, and tells of each; as many as a turn allows."""
    def count_emptying(self) -> int:
        """Counts the deleted rooms that have members left."""
    def set_room_watchers(
        self, joined: Callable[[Any, str], None] | None, left: Callable[[Any, str], None] | None
    ) -> None:
        """Has `joined(client, room_id)` and `left(client, room_id)` hear; None: nobody wants to.

        The end of a connection is no `left` (`Client.leave_sets`).
        """
    def set_heads(
        self,
        decode_head: Callable[[str | bytes], Any],
        without_heads: Callable[[list[bytes]], list[bytes]],
    ) -> None:
        """Hands down what cluster/heads.py has for the head lines of wsc.1.

        Args:
            decode_head: `decode_head(line) -> Head`, or a str that says why it is none.
            without_heads: `without_heads(frames) -> list[bytes]`: plain frames, of those which
                carry a message.
        """
    def set_kept(
        self,
        is_kept: Callable[[str], bool],
        publish: Callable[..., None],
        join: Callable[[Any, Any], None],
        joining: Callable[[Any, str], int],
        left: Callable[[Any, Any], None],
        emptied: set[str],
    ) -> None:
        """Has somebody look after kept rooms.

        Args:
            is_kept: `is_kept(room_id) -> bool`.
            publish: `publish(room_id, frame, exclude, key, idempotency_key=None, answer=None)`.
            join: `join(client, room)` makes a client that speaks wsc.1 a member, now or later.
            joining: `joining(client, room_id) -> int`: into how many other rooms a client is on its
                way.
            left: `left(client, room)`: a client has been asked to leave.
            emptied: a set that takes the ids of rooms whose last member has left.
        """
    def set_outgoing(
        self,
        outgoing: list[tuple[str, bytes, tuple[str, ...], str | None]] | None,
        publish_outgoing: Callable[[], None] | None,
        entered_first: Callable[[str], None] | None,
    ) -> None:
        """Has the messages of plain rooms, and broadcasts, go to other hubs too.

        Args:
            outgoing: takes (room_id, frame, exclude, key) of each; room_id is "" for a broadcast.
                None: there are no other hubs.
            publish_outgoing: is called at the end of a tick in which it took any.
            entered_first: `entered_first(room_id)`: a room has its first member.
        """
    def set_relay(
        self,
        elsewhere: set[str] | None,
        relay: Callable[[str, bytes, int], None] | None,
        relay_to_client: Callable[[str, bytes, str | None], bool] | None,
    ) -> None:
        """Has messages to users and clients go to other hubs too.

        Args:
            elsewhere: users who are here and on other hubs.
            relay: `relay(user_id, data, priority)`: sends a HubMessage, as JSON, to the other hubs
                of a user; None: users are of one hub.
            relay_to_client: `relay_to_client(client_id, frame, key)`: sends a message to a client
                that is not here; returns whether another hub may have it.
        """
    def deliver_to_client(self, client_id: str, message: str | bytes, key: str | None) -> None:
        """A message of another hub for a client; raises as `send_to_client`."""
    def encoded_message(self, message: Any) -> bytes:
        """A HubMessage as JSON; raises ValidationError where it cannot be sent."""
    def deliver_to_user(self, user_id: str, data: bytes, priority: int) -> int:
        """A HubMessage of another hub, as JSON, for the clients of a user here.

        Raises:
            WSCError: no client of the user has got it.
        """
    def publish_to_plain(
        self, room_id: str, message: _Message, exclude: Any, key: str | None
    ) -> None:
        """`Hub.publish` for a plain room, without an idempotency key: as `broadcast_to_room`."""
    def prepare_for_plain(
        self, room_id: str, message: _Message, exclude: Any, key: str | None, known: bool
    ) -> tuple[bytes, tuple[str, ...]]:
        """A message of a plain room, or of all clients, that the bus has to take first.

        Args:
            room_id: of the room; "" for all clients.
            message, exclude, key: as for `broadcast`.
            known: the room has to be there.

        Returns:
            tuple[bytes, tuple[str, ...]]: the frame, and the ids of clients that do not get it.
        """
    def unaware_members(self, room_id: str) -> list[Any]:
        """The members of a room who do not speak wsc.1."""
    def append_to_kept(
        self,
        room_id: str,
        message: _Message,
        exclude: Any,
        key: str | None,
        idempotency_key: str | None,
        answer: Any,
    ) -> None:
        """`Hub.publish`: as `append_to_room`, with the answer of the bus.

        Args:
            room_id: of a kept room.
            message, exclude, key: as for `broadcast`.
            idempotency_key: a str or None.
            answer: the future that gets the answer.
        """
    def end_passing(self, room_id: str) -> bool:
        """Ends a room that a `join_room` has made, once nobody is in it.

        Returns:
            bool: whether nobody is in it.
        """
    def end_all_passing(self) -> None:
        """Ends all rooms that joins have made and that nobody is in: the hub has stopped."""
    def sweep(self, share: float) -> None:
        """Gives the next `share` (0 to 1) of the clients their heartbeat check."""
    def open_clients(self) -> list[Any]: ...
    def slowest_clients(self, most: int) -> list[Any]:
        """See `Hub.slowest_clients`."""
    def forget_connections(self) -> None:
        """The loop was closed under the hub: its connections went with it, and nobody was told."""
    def closing_clients(self) -> list[Any]: ...
    def read_counters(self) -> dict[str, Any]:
        """The counters since the last reset, and the gauges of this moment."""
    def count_overload(self) -> tuple[int, int]:
        """The messages dropped from full outboxes, and those beyond their client's rate."""
    def fullest_client(self) -> Any:
        """The client for which most messages wait; None where there is none. Looks at each."""
    def read_histograms(self) -> dict[str, Histogram]:
        """The histograms by name; `reset_counters` leaves them alone."""
    def reset_counters(self) -> None: ...
    def count_waiting(self) -> int:
        """The number of connections that wait for their turn to be read."""
    def count_limit(self, limit: str) -> None: ...
    def count_rejected(self, why: str) -> None: ...
    def count_replaced(self) -> None: ...
    def count_callback_error(self) -> None: ...
