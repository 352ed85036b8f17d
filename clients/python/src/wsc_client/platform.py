"""The surroundings of a client: clock, timers, chance, connections. Tests have others."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wsc_client.events import CloseFrame
from wsc_client.wire import Payload


class Cancellable(Protocol):
    """A timer."""

    def cancel(self) -> None:
        """It does not fire any more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that is not the upgrade.

    Attributes:
        status: such as 401.
        retry_after: seconds of the header Retry-After; 0 without one.
    """

    status: int
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a connection, or of an attempt.

    Attributes:
        code: the close code, 1006 where no close frame came.
        reason: the text of the close frame.
        error: what went wrong, where there is an exception for it.
        answer: the server's answer to the upgrade, where it refused.
    """

    code: int
    reason: str = ""
    error: BaseException | None = None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Ears:
    """The calls of a socket to the client.

    Attributes:
        opened: with the subprotocol that was agreed on.
        received: with each message. Nothing more is read until the future that it returns is done.
        heard: a pong has come.
        writable: the socket takes messages again.
        ended: the connection has ended. It is the last call.
    """

    opened: Callable[[str | None], None]
    received: Callable[[Payload], asyncio.Future[None] | None]
    heard: Callable[[], None]
    writable: Callable[[], None]
    ended: Callable[[Ending], None]


class Socket(Protocol):
    """A connection as the client uses it.

    Attributes:
        buffered: bytes that it holds back.
        writable: whether it takes messages without holding much back.
        taken: bytes that it has written. While it holds much back, they show that the server reads.
        closed: the server's close frame, once the connection has ended.
    """

    @property
    def buffered(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    @property
    def taken(self) -> int: ...
    @property
    def closed(self) -> CloseFrame: ...

    def send(self, data: Payload) -> None:
        """Sends a message; nothing once the connection has ended."""

    def ping(self) -> bool:
        """Sends a ping of RFC 6455; False where it cannot."""

    def close(self, code: int | None) -> None:
        """Ends the connection: with a close frame, or at once without a code."""


OpenSocket = Callable[[str, Sequence[str], Ears], Socket]
Fetch = Callable[[str, str | None], Awaitable[Answer]]


def _call_later(delay: float, fn: Callable[[], None]) -> Cancellable:
    return asyncio.get_running_loop().call_later(delay, fn)


@dataclass
class Platform:
    """Where a client runs.

    Attributes:
        open: opens a connection to a URL with these subprotocols.
        fetch: asks the status route, with this token.
        now: seconds of a clock that only goes on.
        wall: seconds since 1970.
        call_later: after so many seconds.
        random: from 0 to 1.
        prefix: the beginning of the ids of requests, which nobody can guess.
    """

    open: OpenSocket
    fetch: Fetch
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    call_later: Callable[[float, Callable[[], None]], Cancellable] = _call_later
    random: Callable[[], float] = random.random
    prefix: str = field(default_factory=lambda: secrets.token_urlsafe(8) + "-")
