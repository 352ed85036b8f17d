import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from typing import Any, Self, TypeVar

from typing_extensions import disjoint_base

from wsc_fast._core.engine import Engine, _Message
from wsc_fast._core.hearing import HeardConnection
from wsc_fast._core.settings import Compression
from wsc_fast.stats import ClientStats

_T = TypeVar("_T")

def peer_address(stream: asyncio.Transport) -> str:
    """The IP address of a connection's peer (internal).

    Args:
        stream: an asyncio transport.

    Returns:
        str: the address; "" where there is none.

    Thread-safety: the loop's thread.
    """

# At run time asyncio.BufferedProtocol and picows.WSListener are bases of it, too. The stubs leave
# them out, with their methods, so that completion shows the application's names alone.
@disjoint_base
class Client(HeardConnection):
    """One live WebSocket connection, as the hub's callbacks get it (go-wsc `Client`).

    Stays valid after the connection has gone: `is_connected()` is then False and `send` raises.
    Thread-safety: methods from any thread; attributes are best read in the loop's thread.
    """

    def __new__(cls, engine: Engine) -> Self: ...
    @property
    def hub(self) -> Any:
        """Hub: the hub that it is connected to."""
    @property
    def remote_address(self) -> str: ...
    @property
    def subprotocol(self) -> str | None: ...
    @property
    def device_id(self) -> str | None: ...
    @property
    def close_code(self) -> int | None:
        """int | None: the close code that ended the connection; None while it is open.

        The client's where it closed first, 1005 for a close frame without one; else the hub's; 1006
        when the connection ended without a close frame (RFC 6455 section 7.1.5).
        """
    @property
    def close_reason(self) -> str:
        """str: the reason that came or went with `close_code`."""
    @property
    def connected_at(self) -> datetime:
        """datetime: when the connection was made, UTC."""
    @property
    def last_activity(self) -> datetime:
        """datetime: when a frame last came from the client, UTC, to a few milliseconds."""
    @property
    def user_data(self) -> dict[Any, Any]:
        """dict: the application's own data on this client; made on first use."""
    @property
    def queued_messages(self) -> int:
        """int: frames that wait to be sent to it."""
    @property
    def queued_bytes(self) -> int:
        """int: bytes of these frames, headers included."""
    @property
    def dropped_messages(self) -> int:
        """int: messages for this client that were dropped, whatever the reason."""
    @property
    def rooms(self) -> tuple[str, ...]:
        """tuple[str, ...]: the rooms it is in; once it is closing, those it was in until then."""
    def is_connected(self) -> bool:
        """Whether messages can be sent to it and come from it.

        Returns:
            bool: False from the moment that either side began to close.

        Thread-safety: any thread. Source: go-wsc `IsConnected`.
        """
    def stats(self) -> ClientStats:
        """A snapshot of the counters of this client.

        Returns:
            ClientStats: also of a client that has gone.

        Thread-safety: any thread.
        """
    def send(self, message: _Message, *, key: str | None = None) -> None:
        """Queues a message for this client.

        Args:
            message: bytes (a binary message), str (a text message) or a HubMessage; see
                `Hub.broadcast`.
            key: conflation key, a str; see `Hub.broadcast`.

        Raises:
            ClientDisconnectedError: the client is closing or gone.
            QueueFullError: its outbox is full and the overflow policy made no room.
            ValidationError: the message or the key cannot be used.

        Thread-safety: any thread. Source: go-wsc `Client.Send`.
        """
    def disconnect(self, code: int = 1000, reason: str = "") -> None:
        """Closes the connection: what is queued goes out first, then the close frame.

        Nothing more is heard of it: messages that wait for an async callback are dropped. The
        transport is aborted when the client has not answered within HubConfig.close_timeout.
        Does nothing when the connection is closing already.

        Args:
            code: close code, 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: text for the client, cut to 123 bytes of UTF-8.

        Raises:
            ValidationError: the code may not be sent, or the reason is not a str; the connection
                is untouched.

        Thread-safety: any thread. Source: go-wsc `Disconnect`.
        """
    def set_user_data(self, key: Any, value: Any) -> None:
        """Keeps a value under a key of `user_data`.

        Args:
            key: hashable.
            value: anything.

        Thread-safety: any thread. Source: go-wsc `SetUserData`.
        """
    def get_user_data(self, key: Any, default: Any = None) -> Any:
        """The value kept under a key of `user_data`.

        Args:
            key: hashable.
            default: what to return where there is none.

        Returns:
            object: the value or the default.

        Thread-safety: any thread. Source: go-wsc `GetUserData`.
        """

def protocol_of(client: Client) -> asyncio.BufferedProtocol:
    """The connection as its transport calls it; completion of a Client shows none of this.

    Args:
        client: any.

    Returns:
        asyncio.BufferedProtocol: the client itself.

    Thread-safety: any thread.
    """

def give_up(client: Client) -> None:
    """Has a connection end as it is: it is not connected yet.

    Thread-safety: the loop's thread, like all of these functions.
    """

def agree_on(
    client: Client, subprotocol: str | None, deflate: Compression | None, aware: bool = False
) -> None:
    """Tells a client what its upgrade has negotiated.

    Args:
        client: before `begin_connection`.
        subprotocol: a str or None.
        deflate: settings.Compression or None.
        aware: it speaks wsc.1 (docs/wire.md).
    """

def set_pending_identity(client: Client, identity: Any) -> None:
    """Keeps the identity of a connection until it stands: an Identity, or an awaitable for it.

    Args:
        client: whose it is.
        identity: None drops it.
    """

def pending_identity(client: Client) -> Any:
    """The identity that `set_pending_identity` has kept; None where it has kept none."""

def set_remote_address(client: Client, remote_address: str) -> None:
    """Tells a client the address of its peer, where another one makes the connection."""

def begin_connection(
    client: Client, stream: asyncio.Transport, descriptor: int, secure: bool, remote_address: str
) -> None:
    """Has a client begin: its 101 is written, and it is the protocol of its transport.

    Args:
        client: new.
        stream: the asyncio transport.
        descriptor: of its socket.
        secure: it speaks TLS.
        remote_address: of its peer.
    """

def feed(client: Client, data: bytes) -> None:
    """Gives a client what came in one segment with its upgrade."""

def address_came_late(client: Client) -> bool:
    """Whether the address was not known yet when the upgrade was accepted."""

def is_aware(client: Client) -> bool:
    """Whether a client speaks wsc.1."""

def has_greeted(client: Client) -> bool:
    """Whether the hello of a client that speaks wsc.1 has come."""

def take_position(client: Client, room_id: str) -> str | None:
    """The position in a room that the hello of a client has named; None: none, or it was taken."""

def enter_unnamed(client: Client, client_id: str) -> None:
    """Counts a connection to its address, and makes it an open client that is its own user.

    Args:
        client: that `is_unnamed`.
        client_id: free.
    """

def is_unnamed(client: Client) -> bool:
    """Whether nobody asks whose connection this is, and its address was counted in time."""

def set_counted(client: Client, counted: bool) -> bool:
    """Marks whether a client is counted among the connections of its address.

    Args:
        client: any.
        counted: from now on.

    Returns:
        bool: whether it was until now.
    """

def hold_input(client: Client) -> None:
    """Keeps the messages of a client until `release_input`: its identity is not known yet."""

def hear_hello(client: Client) -> None:
    """Reads on: who a client is that speaks wsc.1 is known, and its hello is to come."""

def set_authenticating(client: Client, task: asyncio.Task[Any] | None) -> None:
    """Has the end of the connection cancel the task that finds out its identity; None: none."""

def is_connecting(client: Client) -> bool:
    """Whether a client is neither open yet nor closing."""

def enter(
    client: Client,
    client_id: str,
    user_id: str,
    user_data: dict[Any, Any] | None,
    device_id: str | None,
) -> None:
    """Makes a connection an open client of the hub.

    Args:
        client: whose identity is known now.
        client_id: free.
        user_id: whose client it is.
        user_data: a dict, which is copied, or None.
        device_id: None: not known.
    """

def release_input(client: Client) -> None:
    """Has a client hear the messages that `hold_input` has kept, and reads on."""

def call_in_context(client: Client, function: Callable[..., _T], *args: Any) -> _T:
    """Calls the application in the context of a client's callbacks; returns what it returns."""

def lend_context(client: Client) -> Context:
    """The context of a client's callbacks, for the task of its inbox; before there is one."""

def copy_context(client: Client) -> Context:
    """A new context that begins with what the callbacks of a client have set."""

def keep_context(client: Client) -> None:
    """Has the callbacks of a client go on with what the task that calls this has set."""

def inbox_of(client: Client) -> Any:
    """The Inbox of a client, or None."""

def set_inbox(client: Client, inbox: Any) -> None:
    """Gives a client an Inbox; None takes it away."""

def pause_reading(client: Client) -> None:
    """Has nothing more read of a client: too much waits for its callbacks."""

def resume_reading(client: Client) -> None:
    """Undoes `pause_reading`."""

def transport_of(client: Client) -> asyncio.Transport | None:
    """The asyncio transport, of a request too; None where there is none yet, or no more."""

def descriptor_of(client: Client) -> int:
    """The descriptor of the socket; -1 where there is none, or where it may be closed already."""

def send_away(client: Client, code: int, reason: str) -> None:
    """Closes the connection; what has come of it is still heard.

    Args:
        client: any; one that is closing already is left alone.
        code, reason: of the close frame; checked.
    """

def close_transport(client: Client) -> None:
    """Closes the transport once what was written is sent, without a close frame."""

def abort(client: Client) -> None:
    """Ends the connection at once, without a close frame."""

def forget(client: Client) -> None:
    """Lets go of a connection whose loop was closed."""
