"""The sending half: messages, requests, their queue, and answers (Q and R of spec.md).

Each call has a future. A caller that is cancelled takes its message out of the queue; what has gone
out already cannot be taken back, and its answer is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from wsc_client.errors import (
    ClientError,
    ClosedError,
    LostError,
    QueueFullError,
    RefusedError,
    RequestTimeoutError,
)
from wsc_client.listeners import LOGGER
from wsc_client.options import Options
from wsc_client.platform import Cancellable, Platform
from wsc_client.session import Session
from wsc_client.wire import Payload, dumped, encoded, size_of, with_empty_head

Answered = Callable[[Any], None]


class Outgoing:
    """A message or a request that waits to be sent, or for its answer.

    Args:
        payload: as it goes out.
        resolve, reject: one of them is told of its end.
        id: of a request; a message has none.
        retry: whether a request is sent again when its connection ends.
    """

    __slots__ = ("id", "payload", "reject", "resolve", "retry", "size", "timer")

    def __init__(
        self,
        payload: Payload,
        resolve: Answered,
        reject: Callable[[ClientError], None],
        *,
        id: str = "",
        retry: bool = False,
    ) -> None:
        self.payload, self.size = payload, size_of(payload)
        self.resolve, self.reject = resolve, reject
        self.id, self.retry = id, retry
        self.timer: Cancellable | None = None


class Sender:
    """Sends, and finds the requests of answers.

    Args:
        asks: told whether a request waits for its answer, each time that this may have changed.

    Attributes:
        queued_bytes: of the payloads that wait.
        sent: messages and requests that were handed to a connection.
        answered: the hub has answered some request: it knows them (B2).
    """

    def __init__(
        self,
        session: Session,
        options: Options,
        platform: Platform,
        asks: Callable[[bool], None],
    ) -> None:
        self.queued_bytes: int = 0
        self.sent: int = 0
        self.answered: bool = False
        self._session, self._options, self._platform = session, options, platform
        self._asks = asks
        self._queue: deque[Outgoing] = deque()
        self._unanswered: dict[str, Outgoing] = {}
        self._ids = 0

    # --- what the application calls ---

    def send(self, data: Any) -> asyncio.Future[None]:
        """Q1."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(Outgoing(encoded(data), *_settling(future)), future)
        return future

    def request(self, data: Any, timeout: float | None, retry: bool) -> asyncio.Future[Any]:
        """R1."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        id, payload = self.asking("request", data=data)
        request = Outgoing(payload, *_settling(future), id=id, retry=retry)
        self._limit(request, self._options.request_timeout if timeout is None else timeout)
        self._put(request, future)
        return future

    # --- what the other parts call ---

    def asking(self, type: str, **fields: Any) -> tuple[str, str]:
        """A request of this type: its id, and the text (R1)."""
        id = f"{self._platform.prefix}{self._ids + 1}"
        text = dumped({"type": type, "id": id, **fields})
        self._ids += 1
        return id, text

    def ask_now(
        self, type: str, resolve: Answered, reject: Callable[[ClientError], None], **fields: Any
    ) -> None:
        """Sends a request that does not wait in the queue."""
        id, text = self.asking(type, **fields)
        request = Outgoing(text, resolve, reject, id=id)
        self.transmit(text)
        self._wait_for(request)
        self._limit(request, self._options.request_timeout)

    def transmit(self, payload: Payload) -> None:
        """Hands a message to the connection, whatever waits (Q5)."""
        if self._session.socket is not None:
            headed = with_empty_head(payload) if self._options.recover else payload
            self._session.socket.send(headed)

    def flush(self) -> None:
        """Sends what waits, as far as the connection takes it (Q2)."""
        while self._queue and self._session.takes:
            outgoing = self._queue.popleft()
            self.queued_bytes -= outgoing.size
            self.sent += 1
            if outgoing.id:
                self._wait_for(outgoing)
            self.transmit(outgoing.payload)
            if not outgoing.id:
                outgoing.resolve(None)

    def settle(self, answer: dict[str, Any]) -> bool:
        """Whether this is an answer to a request of this client (R2, R5)."""
        id, prefix = answer["id"], self._platform.prefix
        number = id.removeprefix(prefix)
        known = id.startswith(prefix) and number.isascii() and number.isdecimal()
        if not known or len(number) > 18 or not 1 <= int(number) <= self._ids:
            return False
        self.answered = True
        request = self._waited_for(id)
        if request is None:
            return True
        _stop(request)
        error = answer.get("error")
        if isinstance(error, dict):
            code, message = error.get("code"), error.get("message")
            request.reject(RefusedError(str(code or "failed"), str(message or "")))
        else:
            request.resolve(answer.get("data"))
        self._session.answered()
        return True

    def asking_still(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._unanswered)

    def dropped(self) -> None:
        """The connection has ended (R4)."""
        unanswered, self._unanswered = list(self._unanswered.values()), {}
        self._asks(False)
        again = [each for each in unanswered if each.retry]
        for each in unanswered:
            if not each.retry:
                _fail(each, LostError("the connection ended before the answer"))
        self._queue.extendleft(reversed(again))
        self.queued_bytes += sum(each.size for each in again)

    def closed(self, error: ClosedError) -> None:
        """The client is closed (Q4)."""
        queue, self._queue, self.queued_bytes = self._queue, deque(), 0
        if queue:
            text = "%d messages and requests that waited are not sent: the client is closed"
            LOGGER.warning(text, len(queue))
        for each in queue:
            _fail(each, error.again())

    # --- requests that wait for their answers ---

    def _wait_for(self, request: Outgoing) -> None:
        self._unanswered[request.id] = request
        self._asks(True)

    def _waited_for(self, id: str) -> Outgoing | None:
        """The request, which does not wait any more."""
        request = self._unanswered.pop(id, None)
        if request is not None:
            self._asks(bool(self._unanswered))
        return request

    # --- the queue ---

    def _put(self, outgoing: Outgoing, future: asyncio.Future[Any]) -> None:
        if self._session.state == "closed":
            _fail(outgoing, ClosedError())
            return
        socket = self._session.socket
        held = self.queued_bytes + (0 if socket is None else socket.buffered)
        if held + outgoing.size > self._options.queue_bytes:  # Q3
            most = self._options.queue_bytes
            _fail(outgoing, QueueFullError(f"more than queue_bytes ({most}) wait to be sent"))
            return
        future.add_done_callback(lambda done: self._forget(outgoing) if done.cancelled() else None)
        self._queue.append(outgoing)
        self.queued_bytes += outgoing.size
        self.flush()

    def _limit(self, request: Outgoing, timeout: float) -> None:
        def give_up() -> None:
            self._forget(request)
            _fail(request, RequestTimeoutError(f"no answer came within {timeout:g} s"))  # R3

        request.timer = self._platform.call_later(timeout, give_up)

    def _forget(self, outgoing: Outgoing) -> None:
        """Nobody waits for it any more."""
        _stop(outgoing)
        if self._waited_for(outgoing.id) is not None:
            self._session.answered()
        elif outgoing in self._queue:
            self._queue.remove(outgoing)
            self.queued_bytes -= outgoing.size


def _settling(future: asyncio.Future[Any]) -> tuple[Answered, Callable[[ClientError], None]]:
    def resolve(value: Any) -> None:
        if not future.done():
            future.set_result(value)

    def reject(error: ClientError) -> None:
        if not future.done():
            future.set_exception(error)
            if isinstance(error, ClosedError) and error.why:
                # A line tells of all that the close rejects: no complaint about each future that
                # nobody awaits.
                future.exception()

    return resolve, reject


def _stop(outgoing: Outgoing) -> None:
    if outgoing.timer is not None:
        outgoing.timer.cancel()


def _fail(outgoing: Outgoing, error: ClientError) -> None:
    _stop(outgoing)
    outgoing.reject(error)
