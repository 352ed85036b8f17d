"""A client's connection to a hub, for `tail` and `send`: wsc_client does it.

Messages are handed over in the call in which they are read: while that call writes to a terminal or
a pipe that is slow, nothing more is read, so that no queue grows here. The client sends and shows
payloads as they are; it acknowledges nothing, since these commands only watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from wsc_fast.cli import peer as limits
from wsc_fast.cli.output import Failure, reason_of
from wsc_fast.cli.peer import (
    ABNORMAL,
    CONNECT_TIMEOUT,
    MAX_MESSAGE,
    NORMAL,
    ConnectFailure,
    Peer,
    ending,
    refused,
    unreachable,
)

try:
    from websockets.exceptions import InvalidStatus
    from wsc_client import Client, Message, StateChange
except ImportError as _missing:
    raise Failure(
        f"this command needs wsc-client, which is not installed ({_missing}): "
        "pip install 'wsc_fast[cli]', or pip install ./clients/python in a checkout"
    ) from None

_CLIENT_LOG = logging.getLogger("wsc_client")


class Connection:
    """A hub, and the end of the way to it.

    Args:
        peer: the hub.
        receive: called with each message: text as str, binary as bytes. An exception of it ends the
            connection, and is raised by `over`.
        opened: called with the connection each time that it is open.
        again: whether it connects again; called with the words for the end and the seconds of the
            wait. None: it does not.

    Attributes:
        reason: the text of the close frame, once it is over.
    """

    def __init__(
        self,
        peer: Peer,
        receive: Callable[[str | bytes], None],
        opened: Callable[[Connection], None] = lambda connection: None,
        again: Callable[[str, float], None] | None = None,
    ) -> None:
        self._peer, self._receive, self._opened, self._again = peer, receive, opened, again
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.reason: str = ""
        self._client = Client(
            peer.url,
            recover=False,
            json=False,
            acknowledge=False,
            protocols=peer.subprotocols,
            headers=peer.fields,
            ssl=peer.tls if peer.url.startswith("wss:") else None,
            proxy=False,
            compression=False,
            connect_timeout=CONNECT_TIMEOUT,
            close_timeout=limits.CLOSE_TIMEOUT,
            max_message_size=MAX_MESSAGE,
            queue_bytes=MAX_MESSAGE,
        )
        self._client.on(Message, self._heard)
        self._client.on(StateChange, self._changed)

    @property
    def subprotocol(self) -> str | None:
        """The one that was agreed on."""
        return self._client.subprotocol

    def connect(self) -> None:
        """Begins to connect."""
        self._client.connect()

    async def opened(self) -> None:
        """Waits until it is open, or `over` has a failure."""
        opening = asyncio.ensure_future(self._client.opened())
        either: set[asyncio.Future[Any]] = {opening, self._over}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        await asyncio.wait({opening})
        if not opening.cancelled():
            opening.exception()  # `over` says why
        if self._over.done():
            self._over.result()

    async def over(self) -> int:
        """Waits for the end.

        Returns:
            int: the close code, one of NORMAL.

        Raises:
            Failure: it has not ended as it should; ConnectFailure, it was never open.
        """
        return await asyncio.shield(self._over)

    async def send(self, message: str | bytes) -> None:
        """Sends a message, once the hub has read most of what came before it."""
        await self._client.send(message)

    async def close(self) -> None:
        """Closes with 1000, and waits for the answer: then the hub has read all that was sent.

        Raises:
            Failure: no answer comes, or the hub has ended the connection otherwise.
        """
        frame = await self._client.aclose()
        if frame is not None and frame.code == ABNORMAL:
            raise Failure("the hub does not answer the close frame")
        if frame is not None and frame.code not in NORMAL:
            raise Failure(ending(frame.code, frame.reason))

    async def abandon(self) -> None:
        """Closes, whatever the hub says."""
        await self._client.aclose()
        if self._over.done() and not self._over.cancelled():
            self._over.exception()  # it was told, or something else was

    # --- events ---

    def _heard(self, message: Message) -> None:
        if not self._over.done():
            try:
                self._receive(message.raw)
            except Exception as error:
                self._over.set_exception(error)

    def _changed(self, change: StateChange) -> None:
        if change.state == "open":
            self._opened(self)
        elif change.state in ("waiting", "closed") and not self._over.done():
            self._ended(change)

    def _ended(self, change: StateChange) -> None:
        self.reason = change.reason
        failure = self._failure(change)
        lasting = change.state == "closed"
        lasting |= isinstance(failure, ConnectFailure) and failure.lasting
        if self._again is not None and not lasting:
            said = str(failure) if failure is not None else ending(change.code, change.reason)
            self._again(said, change.delay)
            return
        if failure is not None:
            self._over.set_exception(failure)
        else:
            self._over.set_result(change.code)
        self._client.close()

    def _failure(self, change: StateChange) -> Failure | None:
        """The failure that this end is, if it is one."""
        url, error = self._peer.url, change.error
        if isinstance(error, InvalidStatus):
            response = error.response
            body = bytes(response.body or b"")
            return refused(url, response.status_code, response.reason_phrase, body)
        if isinstance(error, OSError):
            return unreachable(url, error)
        if error is not None and isinstance(error.__cause__, EOFError):
            return ConnectFailure(f"{url} closed the connection without an answer", False)
        if error is not None:
            return ConnectFailure(f"{url} is no WebSocket server: {reason_of(error)}", True)
        if change.code in NORMAL or change.why == "called":
            return None
        return Failure(ending(change.code, change.reason))


@asynccontextmanager
async def connected(connection: Connection) -> AsyncIterator[Connection]:
    """Connects, and closes at the end, whatever happens.

    The log of wsc_client is silent meanwhile: the commands tell of the failures themselves.
    """

    def silent(record: logging.LogRecord) -> bool:
        return False

    _CLIENT_LOG.addFilter(silent)
    connection.connect()
    try:
        yield connection
    finally:
        await connection.abandon()
        _CLIENT_LOG.removeFilter(silent)
