"""One connection to a server: commands go out, and answers come back in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from wsc_fast._core.resp import ReplyError, RespReader
from wsc_fast.bus.redis.commands import command

# Bytes of one answer, at most: a page of a history, an envelope of one message.
MOST_REPLY = 16 << 20
# A link is full once so many bytes wait for the kernel.
FULL = 1 << 20

Answer = Callable[[Any], object]


class LinkLostError(ConnectionError):
    """The connection ended, so that the answer to a command is not known."""


class Link(RespReader, asyncio.BufferedProtocol):
    """One connection.

    An answer goes to the callable that `send` was given for its command: the value, a ReplyError,
    or a LinkLostError. Confirmations of subscriptions go to `on_confirmed`.

    Attributes:
        lost: a future; its result is why the connection ended.
        full: the kernel takes no more for now.
    """

    def __init__(
        self,
        on_message: Callable[[str, bytes], object],
        on_stray: Callable[[bytes, bytes], object],
        on_confirmed: Callable[[list[Any]], object],
        on_room: Callable[[], object],
        may_go_on: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(
            on_message,
            on_stray,
            self._replied,
            self.abort,
            most=MOST_REPLY,
            may_go_on=may_go_on,
        )
        self._on_confirmed = on_confirmed
        self._on_room = on_room
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._expected: deque[Answer] = deque()
        self._reason: Exception | None = None
        self.lost: asyncio.Future[Exception] = self._loop.create_future()
        self.full: bool = False
        self.silent: float = 0.0
        self._bytes_heard = 0

    # --- sending ---

    def send(self, data: bytes, *answers: Answer) -> None:
        """Sends commands, with a callable for the answer to each."""
        if self.lost.done():
            unknown = LinkLostError(str(self.lost.result()))
            for answer in answers:
                answer(unknown)
            return
        self._expected.extend(answers)
        # An aborted one is about to be lost, which answers.
        if self._transport is not None and self._reason is None:
            self._transport.write(data)

    def ask(self, *arguments: bytes) -> asyncio.Future[Any]:
        """Sends one command; its answer may be a ReplyError.

        Returns:
            asyncio.Future: the answer; it raises LinkLostError.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self.send(command(*arguments), lambda value: _settle(future, value))
        return future

    @property
    def descriptor(self) -> int:
        """Of its socket; -1 where there is none, or where it may be closed already."""
        if self._transport is None or self._reason is not None:
            return -1
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor

    @property
    def unanswered(self) -> int:
        """Commands whose answers have not come."""
        return len(self._expected)

    # --- receiving ---

    def _replied(self, value: Any) -> None:
        if isinstance(value, list) and value and value[0] in _CONFIRMATIONS:
            self._on_confirmed(value)
        elif self._expected:
            self._expected.popleft()(value)
        elif isinstance(value, ReplyError):
            # The answer to a subscription, which is not allowed.
            self.abort(value)

    def watch(self, elapsed: float) -> None:
        """Counts the time in which nothing came.

        Args:
            elapsed: seconds since the last call in which the loop could have read.
        """
        if self.waiting or self.bytes_read != self._bytes_heard:
            self._bytes_heard = self.bytes_read
            self.silent = 0.0
        else:
            self.silent += elapsed

    # --- of the transport ---

    def connection_made(self, transport: Any) -> None:
        """The connection is there."""
        self._transport = transport
        transport.set_write_buffer_limits(high=FULL)
        self.attach(transport, self._loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended: no answer comes any more."""
        self.stop()
        error = self._reason or exc or ConnectionError("the server has closed the connection")
        self._reason = error
        if not self.lost.done():
            self.lost.set_result(error)
        unknown = LinkLostError(str(error))
        while self._expected:
            self._expected.popleft()(unknown)

    def pause_writing(self) -> None:
        """The kernel takes no more for now."""
        self.full = True

    def resume_writing(self) -> None:
        """The kernel takes more."""
        self.full = False
        self._on_room()

    def abort(self, reason: Exception) -> None:
        """Ends the connection at once.

        Args:
            reason: what `lost` tells.
        """
        if self._reason is None:
            self._reason = reason
        self.stop()
        if self._transport is not None:
            self._transport.abort()


_CONFIRMATIONS = (b"subscribe", b"unsubscribe", b"pong")


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, LinkLostError):
        future.set_exception(value)
        # Without this, asyncio would complain of the answers that nobody waits for any more.
        future.exception()
    else:
        future.set_result(value)
