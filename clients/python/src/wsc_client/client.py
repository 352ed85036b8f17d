"""The client: its parts joined, and the calls of the application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from wsc_client.dispatch import ALL, Dispatch, Events
from wsc_client.errors import ClosedError
from wsc_client.events import CloseFrame, Event, Message, State, StateChange
from wsc_client.heartbeat import Heartbeat
from wsc_client.options import OptionNames, Options, checked, checked_url
from wsc_client.platform import Platform
from wsc_client.receiver import Receiver
from wsc_client.rooms import Room, Rooms
from wsc_client.sender import Sender
from wsc_client.session import Session
from wsc_client.tasks import Tasks
from wsc_client.transport import fetcher, opener
from wsc_client.wire import Payload

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the client was made.

    Attributes:
        connections: so many have been open.
        sent: messages and requests that were handed to a connection.
        received: messages of the server, of any kind.
        copies: messages that were known and dropped.
        unheard: messages that were dropped since nobody listened to them.
        queued_bytes: gauge, what waits to be sent.
    """

    connections: int
    sent: int
    received: int
    copies: int
    unheard: int
    queued_bytes: int


class Client:
    """A connection to a hub that comes back.

        async with Client("wss://app.example/ws") as client:
            async for message in client.room("chat:lobby"):
                print(message.data)

    It belongs to the event loop on which it was connected, and is not thread-safe:
    `wsc_client.sync` has a client for threads.

    Args:
        url: of the hub, ws:// or wss://; http and https stand for these.
        options: see Options. Times are in seconds.

    Raises:
        OptionError: the url or an option cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        _platform: Platform | None = None,
        _join_delay: float = 0.0,
        **options: Unpack[OptionNames],
    ) -> None:
        self.url: str = checked_url(url)
        self.options: Options = checked(options)
        key = self.options.storage_key or f"wsc:{url}"
        self._tasks = Tasks()
        platform = _platform or Platform(opener(self.options, self._tasks), fetcher(self.options))
        self._dispatch = Dispatch(self.options, self._tasks)
        self._session = Session(self.url, self.options, platform, self._dispatch, self._tasks)
        backlogs = self._dispatch.backlogs
        self._sender = Sender(self._session, self.options, platform, backlogs.asking)
        self._receiver = Receiver(
            self._session,
            self._sender,
            self._dispatch,
            self._tasks,
            self.options,
            platform,
            key,
        )
        self._rooms = Rooms(
            self._session, self._sender, self._dispatch, self._receiver.forget, _join_delay
        )
        self._heartbeat = Heartbeat(
            self._session,
            self._sender,
            self.options,
            platform,
            lambda: backlogs.room() is not None,
        )
        self._session.parts = _Parts(self)

    # --- the life ---

    @property
    def state(self) -> State:
        """ "connecting", "open", "waiting" or "closed"."""
        return self._session.state

    @property
    def subprotocol(self) -> str | None:
        """The one that the last connection has agreed on; "wsc.1" where the client recovers."""
        return self._session.subprotocol

    @property
    def background(self) -> bool:
        """Whether waits are four times as long, such as while nobody looks; may be set."""
        return self._session.background

    @background.setter
    def background(self, value: bool) -> None:
        self._session.background = value

    def connect(self) -> None:
        """Begins to connect, and returns at once. A client that waits connects now (S1).

        Raises:
            RuntimeError: no event loop runs here.
        """
        asyncio.get_running_loop()
        self._session.connect()

    async def opened(self) -> None:
        """Waits until the connection is open.

        Raises:
            ClosedError: the client is closed, or was closed meanwhile.
        """
        if self.state == "open":
            return
        if self._dispatch.closed is not None:
            raise self._dispatch.closed.again()
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(change: StateChange) -> None:
            if change.state in ("open", "closed") and not settled.done():
                settled.set_result(None)

        end = self.on(StateChange, look)
        try:
            await settled
        finally:
            end()
        if self.state == "closed":
            raise (self._dispatch.closed or ClosedError()).again()

    def close(self) -> None:
        """Ends the connection with 1000, for good (S2). Messages that wait are rejected.

        The close goes on behind this call; `aclose` waits for its end.
        """
        if self.state != "closed":
            self._session.close()
            self._receiver.save()

    async def aclose(self) -> CloseFrame | None:
        """Closes, waits for the server's answer, and ends async listeners that still run.

        A message whose listeners are not done is not acknowledged. It comes again.

        Returns:
            CloseFrame | None: the server's. With 1000 it has read all that was sent, with 1006 it
            has not answered. None where no connection was open.
        """
        was_open = self.state == "open"
        self.close()
        await self._tasks.finish(self.options.close_timeout * 2)
        self._receiver.save()
        self._receiver.begin_anew()
        former = self._session.former
        return former.closed if was_open and former is not None else None

    async def __aenter__(self) -> Self:
        """Connects, and waits until the connection is open.

        It waits for as long as the hub cannot be reached; `asyncio.timeout` bounds that.

        Raises:
            ClosedError: the hub does not let this client in.
        """
        self.connect()
        try:
            await self.opened()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def network_back(self) -> None:
        """The network is back: a waiting client connects, an open one asks the hub (W4, B3)."""
        self._session.network_back()
        self._heartbeat.network_back()

    # --- messages ---

    def send(self, data: Any) -> asyncio.Future[None]:
        """Sends a message, now or once the connection is open (Q1). It is queued by the call.

        Args:
            data: str or bytes, which go out as they are, or a value that can be JSON.

        Returns:
            asyncio.Future[None]: done when the message is handed to a connection. That does not say
            that the server has it. To cancel it takes the message out of the queue. Its errors are
            ClosedError and QueueFullError.

        Raises:
            TypeError, ValueError: the data cannot be JSON.
        """
        self._rooms.join_all()
        return self._sender.send(data)

    def request(
        self, data: Any, *, timeout: float | None = None, retry: bool = False
    ) -> asyncio.Future[Any]:
        """Asks the application behind the hub (R). It is queued by the call.

        Args:
            data: a value that can be JSON.
            timeout: seconds, from this call on; by itself `request_timeout`.
            retry: asks again if the connection ends before the answer. Without it the future ends
                in LostError then.

        Returns:
            asyncio.Future[Any]: the answer. Its errors are RefusedError, RequestTimeoutError,
            LostError, ClosedError and QueueFullError.

        Raises:
            TypeError, ValueError: the data cannot be JSON.
        """
        self._rooms.join_all()
        return self._sender.request(data, timeout, retry)

    def room(self, name: str, *, join: bool = True) -> Room:
        """A room that the client asks to join, now and on each further connection (J).

        The client asks in the next turn of the loop, or ahead of the next message or request. One
        that is left before is not asked for.

        Args:
            name: of the room.
            join: False where the application joins the client by itself.
        """
        return self._rooms.room(name, join)

    # --- events ---

    @overload
    def on(self, event: type[E], listener: Callable[[E], object]) -> Callable[[], None]: ...
    @overload
    def on(self, event: type[E]) -> Callable[[Callable[[E], Any]], Callable[[E], Any]]: ...
    def on(self, event: type[Any], listener: Callable[[Any], Any] | None = None) -> Any:
        """Has a function called with each event of this class.

        Calls of a plain function happen in the order of the events. So do those of an async one,
        which are awaited one after the other.

        Args:
            event: such as Message or StateChange.
            listener: plain or async. Without it this is a decorator.

        Returns:
            a function that ends it; or the decorator, which returns the function as it is.

        Raises:
            TypeError: there is no such class of events, or the listener is no function.
        """
        if listener is not None:
            return self._dispatch.on(event, listener)

        def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            self._dispatch.on(event, function)
            return function

        return decorate

    def __aiter__(self) -> Events[Message]:
        """All messages, until the client is closed.

        A message counts as dealt with when the loop comes back for the next one, or is left.

        Raises:
            ClosedError: the client was closed otherwise than by `close` or with 1000.
        """
        return self._dispatch.events((Message,))

    def events(self) -> Events[Event]:
        """All events in their order, such as for a `match`.

        Raises:
            ClosedError: as of the iteration.
        """
        return self._dispatch.events(ALL)

    # --- the rest ---

    def save(self) -> None:
        """Writes positions and known ids to the storage now; by itself within 0.1 s of a change."""
        self._receiver.save()

    def stats(self) -> Stats:
        """Counters."""
        return Stats(
            self._session.connections,
            self._sender.sent,
            self._receiver.received,
            self._receiver.copies,
            self._dispatch.unheard,
            self._sender.queued_bytes,
        )

    def __repr__(self) -> str:
        return f"<Client {self.url} {self.state}>"


class _Parts:
    """Tells the parts of a client of connections that come and go."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def opened(self) -> None:
        """C2."""
        client = self._client
        client._heartbeat.opened()
        socket = client._session.socket
        if client.options.recover and socket is not None:
            socket.send(client._receiver.hello())
        client._rooms.opened()
        client._sender.flush()

    def received(self, data: Payload) -> asyncio.Future[None] | None:
        client = self._client
        self.heard()
        behind = client._receiver.receive(data)
        if behind is not None:
            # Messages that came meanwhile are read only now.
            behind.add_done_callback(lambda done: client._heartbeat.heard())
        return behind

    def heard(self) -> None:
        self._client._heartbeat.heard()

    def writable(self) -> None:
        self._client._sender.flush()

    def dropped(self) -> None:
        self._client._rooms.dropped()
        self._client._sender.dropped()

    def closed(self, error: ClosedError) -> None:
        self._client._sender.closed(error)
        self._client._receiver.save()

    def asking(self) -> bool:
        return self._client._sender.asking_still()
