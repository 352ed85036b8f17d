import asyncio
from asyncio import BufferedProtocol
from collections.abc import Callable
from contextvars import Context
from datetime import datetime
from typing import Any, Self, TypeVar

from typing_extensions import disjoint_base

from wsc_fast._core.engine import Engine, _Message
from wsc_fast._core.picows_connection import PicowsConnection
from wsc_fast.hub import Hub
from wsc_fast.runtime.callbacks import Inbox
from wsc_fast.upgrade.negotiation import Deflate

_T = TypeVar("_T")

def peer_address(stream: asyncio.Transport) -> str:
    """The IP address of a connection's peer (internal).

    Args:
        stream: an asyncio transport.

    Returns:
        str: the address; "" where there is none.

    Thread-safety: the loop's thread.
    """

def acknowledged(descriptor: int) -> int:
    """How many bytes a connection's peer has acknowledged in all (internal).

    Args:
        descriptor: of its socket.

    Returns:
        int: 0 where the kernel does not tell.

    Thread-safety: any thread.
    """

@disjoint_base
class Client(PicowsConnection, BufferedProtocol):
    """One live WebSocket connection, as the hub's callbacks get it (go-wsc `Client`).

    Stays valid after the connection has gone: `is_connected()` is then False and `send` raises.
    Thread-safety: methods from any thread; attributes are best read in the loop's thread.
    """

    _counted: bool
    _pending: Any

    def __new__(cls, engine: Engine) -> Self: ...
    @property
    def hub(self) -> Hub:
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
    def is_connected(self) -> bool:
        """Whether messages can be sent to it and come from it.

        Returns:
            bool: False from the moment that either side began to close.

        Thread-safety: any thread. Source: go-wsc `IsConnected`.
        """
    def send(self, message: _Message, *, key: str | None = None) -> None:
        """Queues a message for this client.

        Args:
            message: bytes (a binary message) or str (a text message).
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
    def _send_away(self, code: int, reason: str) -> None: ...
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
    def _begin(
        self, stream: asyncio.Transport, descriptor: int, secure: bool, remote_address: str
    ) -> None: ...
    def _agree(self, subprotocol: str | None, deflate: Deflate | None) -> None: ...
    def _feed(self, data: bytes) -> None: ...
    def connection_made(self, stream: asyncio.Transport) -> None:  # type: ignore[override]
        """The transport of a connection to the hub's own server (asyncio.BaseProtocol)."""
    def connection_lost(self, error: Exception | None) -> None:
        """The transport is gone (asyncio.BaseProtocol)."""
    def eof_received(self) -> bool:
        """The peer half-closed (asyncio.BufferedProtocol)."""
    def _set_remote_address(self, remote_address: str) -> None: ...
    def _address_came_late(self) -> bool: ...
    def _set_device(self, device_id: str | None) -> None: ...
    def _enter(self, client_id: str, user_id: str, user_data: dict[Any, Any] | None) -> None: ...
    def _hold_input(self) -> None: ...
    def _release_input(self) -> None: ...
    def _give_up(self) -> None: ...
    def _transport(self) -> asyncio.Transport | None: ...
    def _close_transport(self) -> None: ...
    def _is_connecting(self) -> bool: ...
    def _set_authenticating(self, task: asyncio.Task[Any] | None) -> None: ...
    def _call(self, function: Callable[..., _T], *args: Any) -> _T: ...
    def _lend_context(self) -> Context: ...
    def _copy_context(self) -> Context: ...
    def _keep_context(self) -> None: ...
    def _set_inbox(self, inbox: Inbox | None) -> None: ...
    def _get_inbox(self) -> Inbox | None: ...
    def _pause_reading(self) -> None: ...
    def _resume_reading(self) -> None: ...
    def _forget(self) -> None: ...
    def _get_descriptor(self) -> int: ...
    def _abort(self) -> None: ...
