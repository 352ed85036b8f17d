"""The part of the hub's face that takes the application's callbacks: a base of Hub.

callbacks.py does the work of these calls.
"""

from __future__ import annotations

from wsc_fast._core.calls import Calls
from wsc_fast.runtime.callbacks import Callbacks
from wsc_fast.runtime.signatures import (
    OfClient,
    OfError,
    OfJoinRequest,
    OfMessage,
    OfMessages,
    OfRequest,
    OfRoom,
)


class CallbackFace(Calls):
    """Base of Hub: callbacks of clients, messages, rooms and errors (internal)."""

    _callbacks: Callbacks

    def on_client_connected(self, fn: OfClient) -> OfClient:
        """Has `fn(client)` called for each new client, before any of its messages.

        Args:
            fn: plain or async. If it raises, the client is closed with 1011.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread. Source: go-wsc `OnClientConnected`.
        """
        return self._callbacks.add_connected(fn)

    def on_client_disconnected(self, fn: OfClient) -> OfClient:
        """Has `fn(client)` called once for each connected client that has gone.

        Args:
            fn: plain or async. The client is out of its rooms already; `client.rooms` has those
                that it was in.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread. Source: go-wsc `OnClientDisconnected`.
        """
        return self._callbacks.add_disconnected(fn)

    def on_message_received(self, fn: OfMessage) -> OfMessage:
        """Has `fn(client, message)` called for each message.

        Args:
            fn: plain or async; `message` is str for text, bytes for binary. An async one runs for
                one message of a client at a time, in order.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so, or `on_messages_received` has a function.

        Thread-safety: any thread. Source: go-wsc `OnMessageReceived`.
        """
        return self._callbacks.add_message(fn)

    def on_messages_received(self, fn: OfMessages) -> OfMessages:
        """Has `fn(client, messages)` called for the messages that have come together.

        One read of a connection may bring many messages of a client that sends much. This calls fn
        once for all of them, where `on_message_received` calls once for each: it costs less, and
        the application may do its own work for many at once.

        Args:
            fn: plain or async; `messages` is a list, never empty, of str for text and bytes for
                binary, in their order. It is fn's to keep or change. A list holds some 256 KiB at
                most, or one larger message, and 256 messages where `authorize_publish` is asked.
                An async fn runs for one list of a client at a time.

        Returns:
            fn, so that this works as a decorator too; several may be set, which get the same list.

        Raises:
            ValidationError: fn cannot be called so, or `on_message_received` has a function.

        Thread-safety: any thread.
        """
        return self._callbacks.add_messages(fn)

    def on_request(self, fn: OfRequest) -> OfRequest:
        """Has `fn(client, data)` called for each request of a client, and sends what it returns.

        A request is a text of JSON of its own form, see docs/wire.md; the libraries for clients
        have it as `request(data)`. It takes its turn among the client's messages, and does not
        come to `on_message_received`.

        Args:
            fn: plain or async; `data` is any value of JSON. It returns what JSON can hold, or
                raises RequestError, whose code and text are the answer then. For any other
                exception the client hears that its request failed, and `on_error` hears the rest.

        Returns:
            fn, so that this works as a decorator too.

        Raises:
            ValidationError: fn cannot be called so, or there is one already.

        Thread-safety: any thread.
        """
        return self._callbacks.set_request(fn)

    def on_join_request(self, fn: OfJoinRequest) -> OfJoinRequest:
        """Has `fn(client, room_id)` decide whether a client that asks for a room may join it.

        Where it returns True the hub does what `join_room` does, `authorize_join` included, and
        answers the client. The libraries for clients ask by `room(room_id)`, and again on each new
        connection. A client may leave each room that it is in. Without this function no room can be
        asked for.

        Args:
            fn: plain or async; it returns a bool.

        Returns:
            fn, so that this works as a decorator too.

        Raises:
            ValidationError: fn cannot be called so, or there is one already.

        Thread-safety: any thread.
        """
        return self._callbacks.set_join_request(fn)

    def on_error(self, fn: OfError) -> OfError:
        """Has `fn(client, error)` called for what callbacks raise, and what goes wrong with peers.

        Args:
            fn: plain or async; `client` is None where no client can be named, `error` is the
                exception: ProtocolError for a peer's fault, ConnectionLostError for a connection
                that broke or a heartbeat that was not answered, else what a callback raised.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread. Source: go-wsc `OnError`.
        """
        return self._callbacks.add_error(fn)

    def on_room_joined(self, fn: OfRoom) -> OfRoom:
        """Has `fn(client, room_id)` called for each client that has become a member of a room.

        Args:
            fn: plain or async. It is called in `join_room`, and an async one in the order of the
                client's other events.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread.
        """
        return self._callbacks.add_room_joined(fn)

    def on_room_left(self, fn: OfRoom) -> OfRoom:
        """Has `fn(client, room_id)` called for each membership of a room that has ended.

        It ends by `leave_room`, by `delete_room`, and with the connection: then this is called for
        each of the client's rooms, and `on_client_disconnected` afterwards.

        Args:
            fn: plain or async, as for `on_room_joined`. The members of a large room that is deleted
                are told of over several turns of the loop.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Raises:
            ValidationError: fn cannot be called so.

        Thread-safety: any thread.
        """
        return self._callbacks.add_room_left(fn)
