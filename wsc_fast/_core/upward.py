"""The compiled code's calls upward: small interfaces, which higher layers implement.

An `Engine` is given one object of each of the first four (`join`). It calls nothing else of the
package above it, but for the functions and forms that are handed to it (`set_acks`,
`set_filters`, `set_forms`, `set_message_handlers`). All of it is called in the loop's thread,
but for `Deliveries.on_loop`, `send_on_loop` and `send_failed`, which are called in the thread that
called the hub.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wsc_fast.errors import ProtocolError

if TYPE_CHECKING:
    from wsc_fast._core.connection import Client
    from wsc_fast._core.engine import Engine
    from wsc_fast._core.handshake import RequestHead

T = TypeVar("T")
Handlers = tuple[Callable[..., Any], ...]


class Requests(Protocol):
    """Answers the requests of the hub's own server."""

    def begin(self, client: Client, transport: asyncio.Transport) -> Request | None:
        """A connection to the hub's own server was made; None ends it.

        Args:
            client: its protocol.
            transport: of the connection.
        """


class Upgrades(Protocol):
    """The policy of upgrades, as far as the compiled one asks it (upgrade.pyx).

    Attributes:
        asks_each: the application hears of each upgrade before it is accepted.
    """

    asks_each: bool

    def allows_page(self, host: str, origin: str | None) -> bool:
        """Whether requests with these headers are accepted, as long as the settings stay."""

    def agreement(
        self, protocols: str | None, extensions: str | None, in_query: bool
    ) -> tuple[bytes, str | None, Any, bool]:
        """The agreement with a client that offers this, as long as the settings stay.

        Args:
            protocols, extensions: the headers, of each not more than one.
            in_query: the query says that it speaks wsc.1.

        Returns:
            the lines of the 101 about it; the subprotocol; what was agreed on of compression;
            whether it speaks wsc.1.
        """

    def let_in(
        self, head: RequestHead, client: Client, remote_address: str, transport: asyncio.Transport
    ) -> Any:
        """Counts a sound upgrade against the limits, and tells the application of it.

        Returns:
            None: it is accepted. Else the answer that it gets.
        """

    def await_hello(self, client: Client) -> None:
        """An upgrade is accepted of a client that speaks wsc.1."""

    def drop_identity(self, client: Client) -> None:
        """A connection that `let_in` has accepted cannot be made."""


class Admission(Protocol):
    """Makes clients of connections, and hears of their ends."""

    def connected(self, client: Client) -> None:
        """The upgrade is done: 101 is written."""

    def greeted(self, client: Client) -> None:
        """The hello of a client that speaks wsc.1 has come."""

    def disconnected(self, client: Client, announced: bool) -> None:
        """The transport is gone.

        Args:
            client: closed.
            announced: whether the application has heard that it was connected.
        """


class Application(Protocol):
    """Calls the application's callbacks, and hears of their exceptions."""

    def receive(
        self, client: Client, handlers: Handlers, message: str | bytes | list[str | bytes]
    ) -> None:
        """A message came. Called where its handlers cannot be called straight from C.

        Args:
            client: whose message it is.
            handlers: of `on_message_received`, to be called one after the other.
            message: whole; with `on_messages_received`, a list of them.
        """

    def wait_for_result(self, client: Client, result: object) -> None:
        """A message handler has returned something; an awaitable is awaited."""

    def callback_failed(self, client: Client, error: BaseException) -> None:
        """A message handler has raised."""

    def report(self, client: Client | None, error: BaseException) -> None:
        """Something went wrong that is no fault of a peer."""

    def protocol_failed(self, client: Client, error: ProtocolError) -> None:
        """A peer broke the protocol or a bound, and is being closed."""

    def too_slow(self, client: Client, messages: int, nbytes: int) -> None:
        """A client is closed, since a broadcast found its outbox full.

        Args:
            client: closing.
            messages, nbytes: that waited for it, and are dropped.
        """

    def connection_lost(self, client: Client, text: str) -> None:
        """A connection ended without a close frame, or was silent for too long."""


class Deliveries(Protocol):
    """Hears of messages that do not reach their clients, and of calls of other threads."""

    def on_loop(self, call: Callable[[], T]) -> T:
        """Runs a call on the loop's thread; returns or raises what it does there."""

    def send_on_loop(
        self, call: Callable[[], T], message: Any, recipient: str, to: str | None = None
    ) -> T:
        """As `on_loop`, for a send of a raw message.

        Args:
            call: the send.
            message, recipient: its arguments.
            to: the user; "" for nobody in particular; None if it is that of the client that the
                recipient names.
        """

    def not_queued(self, user_id: str, queued: int) -> Exception:
        """The error for a message to a user that no client of the user got.

        Args:
            user_id: the recipient.
            queued: 0, or minus the number of clients whose outboxes are full.
        """

    def not_running(self, message: Any, recipient: str) -> Exception:
        """The error for a raw message that is sent while the hub does not run.

        Args:
            message, recipient: the arguments of the send.
        """

    def send_failed(self, message: Any, recipient: str, error: Exception) -> None:
        """A send of a HubMessage has raised, in this thread."""

    def refused(
        self, message: Any, recipient: str, reason: str, error: Exception, to: str | None = None
    ) -> None:
        """A send of a raw message raises; called if there are failure handlers.

        Args:
            message, recipient: its arguments.
            reason: of SendFailureReason.
            error: what is raised.
            to: the user; None: that of the client which the recipient names.
        """

    def lost(
        self, client: Client, frames: list[bytes], reason: str, error: Exception | None
    ) -> None:
        """A client does not get these frames; called if there are failure handlers."""


class Request(Protocol):
    """A connection whose request is not answered yet; its Client holds it until the upgrade."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def received(self, data: bytes | bytearray) -> None: ...
    def drained(self) -> None: ...
    def lost(self) -> None: ...


def join(
    engine: Engine,
    requests: Requests,
    admission: Admission,
    application: Application,
    deliveries: Deliveries,
) -> None:
    """Has these hear of what happens in an engine."""
    engine.join(requests, admission, application, deliveries)
