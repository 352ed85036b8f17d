import asyncio
from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine, _Message
from wsc_fast.messages import HubMessage

@disjoint_base
class Calls:
    """Base of Hub: its calls about clients, users, rooms and messages (internal)."""

    def __new__(cls, *args: object, **kwargs: object) -> Self: ...
    @property
    def _engine(self) -> Engine: ...
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """asyncio.AbstractEventLoop | None: the loop it runs on, None while it does not run."""
    @property
    def connections(self) -> int:
        """int: connections from the handshake's end until the transport is gone."""
    @property
    def longest_flush(self) -> float:
        """float: of the flushes since the last reset, seconds."""
    def get_connected_clients(self) -> int:
        """The number of connected clients.

        Returns:
            int: open clients; those in the closing handshake no longer count.

        Thread-safety: any thread. Source: go-wsc `GetConnectedClients`.
        """
    def get_connected_client_ids(self) -> list[str]:
        """The ids of all connected clients.

        Returns:
            list[str]: in no particular order.

        Thread-safety: any thread. Source: go-wsc `GetConnectedClientsIDs`.
        """
    def get_client_by_id(self, client_id: str) -> Client | None:
        """The connected client with this id.

        Args:
            client_id: a str.

        Returns:
            Client | None: None when no connected client has the id.

        Raises:
            ValidationError: the id is not a str.

        Thread-safety: any thread. Source: go-wsc `GetClientByID`.
        """
    def get_all_connected_users(self) -> list[str]:
        """The ids of all users with at least one connected client.

        Returns:
            list[str]: each once, in no particular order.

        Thread-safety: any thread. Source: go-wsc `GetAllConnectedUsers`.
        """
    def get_clients_by_user(self, user_id: str) -> list[Client]:
        """The connected clients of a user.

        Args:
            user_id: a str.

        Returns:
            list[Client]: empty when the user has none.

        Raises:
            ValidationError: the id is not a str.

        Thread-safety: any thread.
        """
    def broadcast(
        self, message: _Message, *, exclude: Iterable[str | Client] = (), key: str | None = None
    ) -> int:
        """Queues a message for every connected client.

        Args:
            message: bytes (a binary message), str (a text message) or a HubMessage (its JSON,
                as a text message, before what waits with a lower priority).
            exclude: ids of clients, or Client objects, that do not get it.
            key: conflation key, a str: a message that still waits in an outbox under the same key
                is replaced by this one, which takes its place at the end of the queue.

        Returns:
            int: how many clients it was queued for. A full outbox is dealt with by
            HubConfig.overflow and counted in the stats.

        Raises:
            ValidationError: the message or the key cannot be used; nobody gets anything.
            HubStateError: the hub does not run in this process.

        Thread-safety: any thread. Source: go-wsc `Broadcast`.
        """
    def broadcast_text(self, text: str) -> int:
        """Queues a text message for every connected client.

        Args:
            text: a str.

        Returns:
            int: how many clients it was queued for.

        Raises:
            ValidationError: `text` is not a str, or holds a lone surrogate.
            HubStateError: the hub does not run in this process.

        Thread-safety: any thread. Source: go-wsc `BroadcastText`.
        """
    def broadcast_to_room(
        self,
        room_id: str,
        message: _Message,
        *,
        exclude: Iterable[str | Client] = (),
        key: str | None = None,
    ) -> int:
        """Queues a message for every member of a room.

        Args:
            room_id: a str.
            message, exclude, key: as for `broadcast`.

        Returns:
            int: how many members it was queued for.

        Raises:
            RoomNotFoundError: there is no such room.
            ValidationError: the message, the key or the id cannot be used.
            HubStateError: the hub does not run in this process.

        Thread-safety: any thread. Source: go-wsc `BroadcastToRoom`.
        """
    def send_to_client(self, client_id: str, message: _Message, *, key: str | None = None) -> None:
        """Queues a message for one client.

        Args:
            client_id: a str.
            message, key: as for `broadcast`.

        Raises:
            ClientNotFoundError: no connected client has the id.
            QueueFullError: its outbox is full and the overflow policy made no room.
            ValidationError: the message, the key or the id cannot be used.
            HubStateError: the hub does not run in this process.

        Thread-safety: any thread. Source: go-wsc `SendToClient`.
        """
    def send_to_user(self, user_id: str, message: HubMessage) -> int:
        """Queues a message for every client of a user; it is encoded once.

        Args:
            user_id: a str.
            message: a HubMessage.

        Returns:
            int: how many clients it was queued for.

        Raises:
            UserOfflineError: the user has no connected client.
            QueueFullError: the outboxes of all of them are full.
            PendingFullError: too many messages are held back behind a replay for this user.
            ValidationError: the message cannot be sent.
            HubStateError: the hub does not run in this process.

        A failure also goes to the failure handlers. Thread-safety: any thread. Source: go-wsc
        `SendToUser`.
        """
    def send_text_to_client(self, client_id: str, text: str) -> None:
        """Queues a text message for one client.

        Args:
            client_id: a str.
            text: a str.

        Raises:
            ClientNotFoundError, QueueFullError, ValidationError, HubStateError: as
                `send_to_client`.

        Thread-safety: any thread. Source: go-wsc `SendTextToClient`.
        """
    def create_room(self, room_id: str) -> None:
        """Makes an empty room.

        Args:
            room_id: 1 to 256 characters, no control characters.

        Raises:
            RoomExistsError: there is one already.
            LimitError: HubConfig.max_rooms is reached.
            ValidationError: the id cannot be used.

        Thread-safety: any thread. Source: go-wsc `CreateRoom`.
        """
    def delete_room(self, room_id: str) -> None:
        """Removes a room; its members stay connected.

        There is no such room from this call on. The members of a large one are taken out, and
        `on_room_left` hears of them, over several turns of the loop.

        Args:
            room_id: a str.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `DeleteRoom`.
        """
    def join_room(self, client_id: str, room_id: str) -> None:
        """Makes a client a member of a room; joining twice is joining once.

        Args:
            client_id: a str.
            room_id: a str.

        Raises:
            ClientNotFoundError: no connected client has the id.
            RoomNotFoundError: there is no such room (see `create_room`).
            LimitError: HubConfig.max_rooms_per_client is reached.
            PermissionDeniedError: `authorize_join` does not allow it.

        Thread-safety: any thread. Source: go-wsc `JoinRoom`.
        """
    def leave_room(self, client_id: str, room_id: str) -> None:
        """Ends a client's membership of a room, if it has one.

        Args:
            client_id: a str.
            room_id: a str.

        Raises:
            ClientNotFoundError: no connected client has the id.
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `LeaveRoom`.
        """
    def get_room_clients(self, room_id: str) -> list[str]:
        """The ids of a room's members.

        Args:
            room_id: a str.

        Returns:
            list[str]: in no particular order.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `GetRoomClients`.
        """
    def get_room_size(self, room_id: str) -> int:
        """The number of a room's members, without a list of them.

        Args:
            room_id: a str.

        Returns:
            int: clients of this hub.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread.
        """
    def get_room_users(self, room_id: str) -> list[str]:
        """The ids of the users who have a client in a room.

        Args:
            room_id: a str.

        Returns:
            list[str]: each once, in no particular order.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread.
        """
    def get_rooms(self) -> list[str]:
        """The ids of all rooms.

        Returns:
            list[str]: in the order of their creation.

        Thread-safety: any thread.
        """
    def get_client_rooms(self, client_id: str) -> list[str]:
        """The ids of the rooms that a client is in.

        Args:
            client_id: a str.

        Returns:
            list[str]: in the order of joining.

        Raises:
            ClientNotFoundError: no connected client has the id.

        Thread-safety: any thread.
        """
