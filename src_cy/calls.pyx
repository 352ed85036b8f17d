"""The calls of a Hub: clients, users, rooms, and what is sent to them; see calls.pxd.

Threads: every method may be called from any thread. Off the loop's thread it hands itself to the
loop through `deliveries.on_loop` (upward.py) and returns or raises there as it would here. While
the hub is not running there is no loop's thread, and calls work where they are made.
"""

from functools import partial

from cpython.list cimport PyList_GET_SIZE

from wsc_fast._core.engine cimport Engine
from wsc_fast._core.members cimport KeptRoom, MemberSet
from wsc_fast._core.outbox cimport Sink

from wsc_fast.errors import ClientNotFoundError, RoomNotFoundError, ValidationError


cdef class Calls:
    """Base of Hub: its calls about clients, users, rooms and messages (internal)."""

    def __cinit__(self):
        self._engine = Engine.__new__(Engine, self)

    @property
    def loop(self):
        """asyncio.AbstractEventLoop | None: the loop it runs on, None while it does not run."""
        return self._engine.loop_context.loop

    @property
    def connections(self):
        """int: connections from the handshake's end until the transport is gone."""
        return self._engine.connections

    @property
    def longest_flush(self):
        """float: of the flushes since the last reset, seconds."""
        return self._engine.fanout.longest_flush

    # --- connection management ---

    def get_connected_clients(self):
        """The number of connected clients.

        Returns:
            int: open clients; those in the closing handshake no longer count.

        Thread-safety: any thread. Source: go-wsc `GetConnectedClients`.
        """
        return PyList_GET_SIZE(self._engine.clients.everyone)

    def get_connected_client_ids(self):
        """The ids of all connected clients.

        Returns:
            list[str]: in no particular order.

        Thread-safety: any thread. Source: go-wsc `GetConnectedClientsIDs`.
        """
        return list(self._engine.clients.by_id)

    def get_client_by_id(self, client_id):
        """The connected client with this id.

        Args:
            client_id: a str.

        Returns:
            Client | None: None when no connected client has the id.

        Raises:
            ValidationError: the id is not a str.

        Thread-safety: any thread. Source: go-wsc `GetClientByID`.
        """
        return self._engine.get_client_by_id(client_id)

    def get_all_connected_users(self):
        """The ids of all users with at least one connected client.

        Returns:
            list[str]: each once, in no particular order.

        Thread-safety: any thread. Source: go-wsc `GetAllConnectedUsers`.
        """
        return self._engine.clients.user_ids()

    def get_clients_by_user(self, user_id):
        """The connected clients of a user.

        Args:
            user_id: a str.

        Returns:
            list[Client]: empty when the user has none.

        Raises:
            ValidationError: the id is not a str.

        Thread-safety: any thread.
        """
        return self._engine.get_clients_by_user(user_id)

    # --- sending ---

    def broadcast(self, message, *, exclude=(), key=None):
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
        if self._engine.away():
            return self._engine.deliveries.send_on_loop(
                partial(self.broadcast, message, exclude=exclude, key=key), message, ""
            )
        return self._engine.publish(self._engine.clients.everyone, None, message, exclude, key, "")

    def broadcast_text(self, text):
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
        return self.broadcast(checked_text(text))

    def broadcast_to_room(self, room_id, message, *, exclude=(), key=None):
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
        cdef MemberSet room
        if self._engine.away():
            return self._engine.deliveries.send_on_loop(
                partial(self.broadcast_to_room, room_id, message, exclude=exclude, key=key),
                message, room_id, "",
            )
        try:
            room = self._engine.room_to_join(room_id)
        except RoomNotFoundError:
            if self._engine.thread_id == 0:
                raise self._engine.deliveries.not_running(message, room_id) from None
            raise
        if room is None or isinstance(room, KeptRoom):
            return self._engine.append_to_room(room_id, message, exclude, key)
        return self._engine.publish(room.items, room, message, exclude, key, room_id)

    def send_to_client(self, client_id, message, *, key=None):
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
        cdef Sink sink
        cdef bytes frame
        cdef int run
        if self._engine.away():
            self._engine.deliveries.send_on_loop(
                partial(self.send_to_client, client_id, message, key=key), message, client_id
            )
            return
        try:
            sink = self._engine.clients.find(client_id)
        except ClientNotFoundError as error:
            if self._engine.thread_id == 0:
                raise self._engine.deliveries.not_running(message, client_id) from None
            if self._engine.relay_to_client is not None:
                frame = self._engine.framed(message, client_id, &run)
                if self._engine.relay_to_client(client_id, frame, key):
                    return
            if self._engine.fanout.tells_losses():
                self._engine.deliveries.refused(message, client_id, "conn_closed", error)
            raise
        frame = self._engine.framed(message, client_id, &run)
        self._engine.deliver(sink, frame, key, run)

    def send_text_to_client(self, client_id, text):
        """Queues a text message for one client.

        Args:
            client_id: a str.
            text: a str.

        Raises:
            ClientNotFoundError, QueueFullError, ValidationError, HubStateError: as
                `send_to_client`.

        Thread-safety: any thread. Source: go-wsc `SendTextToClient`.
        """
        self.send_to_client(client_id, checked_text(text))

    def send_to_user(self, user_id, message):
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
        try:
            if self._engine.away():
                send = (<object>self._engine).send_message
                return self._engine.deliveries.on_loop(partial(send, user_id, message))
            return self._engine.send_message(user_id, message)
        except Exception as error:
            self._engine.deliveries.send_failed(message, user_id, error)
            raise

    # --- rooms ---

    def create_room(self, room_id):
        """Makes an empty room.

        Args:
            room_id: 1 to 256 characters, no control characters.

        Raises:
            RoomExistsError: there is one already.
            LimitError: HubConfig.max_rooms is reached.
            ValidationError: the id cannot be used.

        Thread-safety: any thread. Source: go-wsc `CreateRoom`.
        """
        if self._engine.away():
            self._engine.deliveries.on_loop(partial(self.create_room, room_id))
            return
        self._engine.create_room(room_id)

    def delete_room(self, room_id):
        """Removes a room; its members stay connected.

        There is no such room from this call on. The members of a large one are taken out, and
        `on_room_left` hears of them, over several turns of the loop.

        Args:
            room_id: a str.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `DeleteRoom`.
        """
        if self._engine.away():
            self._engine.deliveries.on_loop(partial(self.delete_room, room_id))
            return
        self._engine.delete_room(room_id)

    def join_room(self, client_id, room_id):
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
        if self._engine.away():
            self._engine.deliveries.on_loop(partial(self.join_room, client_id, room_id))
            return
        self._engine.join_room(client_id, room_id)

    def leave_room(self, client_id, room_id):
        """Ends a client's membership of a room, if it has one.

        Args:
            client_id: a str.
            room_id: a str.

        Raises:
            ClientNotFoundError: no connected client has the id.
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `LeaveRoom`.
        """
        if self._engine.away():
            self._engine.deliveries.on_loop(partial(self.leave_room, client_id, room_id))
            return
        self._engine.leave_room(client_id, room_id)

    def get_room_clients(self, room_id):
        """The ids of a room's members.

        Args:
            room_id: a str.

        Returns:
            list[str]: in no particular order.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread. Source: go-wsc `GetRoomClients`.
        """
        if self._engine.away():
            return self._engine.deliveries.on_loop(partial(self.get_room_clients, room_id))
        return self._engine.room_clients(room_id)

    def get_room_size(self, room_id):
        """The number of a room's members, without a list of them.

        Args:
            room_id: a str.

        Returns:
            int: clients of this hub.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread.
        """
        if self._engine.away():
            return self._engine.deliveries.on_loop(partial(self.get_room_size, room_id))
        return self._engine.room_size(room_id)

    def get_room_users(self, room_id):
        """The ids of the users who have a client in a room.

        Args:
            room_id: a str.

        Returns:
            list[str]: each once, in no particular order.

        Raises:
            RoomNotFoundError: there is no such room.

        Thread-safety: any thread.
        """
        if self._engine.away():
            return self._engine.deliveries.on_loop(partial(self.get_room_users, room_id))
        return self._engine.room_users(room_id)

    def get_rooms(self):
        """The ids of all rooms.

        Returns:
            list[str]: in the order of their creation.

        Thread-safety: any thread.
        """
        return list(self._engine.rooms)

    def get_client_rooms(self, client_id):
        """The ids of the rooms that a client is in.

        Args:
            client_id: a str.

        Returns:
            list[str]: in the order of joining.

        Raises:
            ClientNotFoundError: no connected client has the id.

        Thread-safety: any thread.
        """
        if self._engine.away():
            return self._engine.deliveries.on_loop(partial(self.get_client_rooms, client_id))
        return self._engine.client_rooms(client_id)


cdef object checked_text(object text):
    if not isinstance(text, str):
        raise ValidationError(f"text must be a str, not {type(text).__name__}")
    return text
