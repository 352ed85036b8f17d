"""A request of a route on the hub's own server: its body, then the call, plain or async.

The body is read within `handshake_timeout`, as the head is. An async route has as long as it takes:
it ends when its peer goes, when the hub stops, or when there are too many (handshake.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client, copy_context
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.upgrade.answers import refusal
from wsc_fast.upgrade.policy import Policy
from wsc_fast.upgrade.request import head_of, set_body
from wsc_fast.upgrade.routes import RouteCall

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Answering(Protocol):
    """The connection of the request."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def answer(self, response: WSUpgradeResponse) -> None:
        """Sends the answer, unless the connection is gone."""


class Serving:
    """One request.

    Args:
        call: the route, its request, and the length of the body.
        policy, tasks: of the hub.
        client: the context of the call; it becomes no client.
        answering: the connection.
        lasts: is called when an async route begins.
    """

    __slots__ = ("_answering", "_body", "_call", "_client", "_lasts", "_policy", "_task", "_tasks")

    def __init__(
        self,
        call: RouteCall,
        policy: Policy,
        tasks: Tasks,
        client: Client,
        answering: Answering,
        lasts: Callable[[], None],
    ) -> None:
        self._call: RouteCall | None = call
        self._policy = policy
        self._tasks = tasks
        self._client = client
        self._answering = answering
        self._lasts = lasts
        self._body = bytearray()
        self._task: asyncio.Task[WSUpgradeResponse] | None = None

    def begin(self, rest: bytes) -> None:
        """Begins with what has come behind the head."""
        assert self._call is not None
        if len(rest) < self._call.length and self._waits_for_permission(self._call):
            self._answering.transport.write(_CONTINUE)
        self.received(rest)

    def _waits_for_permission(self, call: RouteCall) -> bool:
        # RFC 9110 section 10.1.1.
        if head_of(call.request).http10:
            return False
        return call.request.headers.get("Expect", "").lower() == "100-continue"

    def received(self, data: bytes | bytearray) -> None:
        """Takes what the transport has read; more than the body is not looked at."""
        call = self._call
        if call is None:
            return
        self._body += data
        if len(self._body) < call.length:
            return
        self._call = None
        set_body(call.request, bytes(self._body[: call.length]))
        del self._body
        self._answer_or_wait(self._policy.call(call, self._client))

    def _answer_or_wait(self, result: Any) -> None:
        if isinstance(result, WSUpgradeResponse):
            self._answering.answer(result)
            return
        finishing = self._policy.finish(result)
        if self._answering.transport.is_closing():
            finishing.close()  # a loop ran inside the route, and the connection ended in it
            return
        self._lasts()
        self._task = self._tasks.spawn(finishing, copy_context(self._client))
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[WSUpgradeResponse]) -> None:
        if task.cancelled():
            self._answering.answer(refusal(HTTPStatus.INTERNAL_SERVER_ERROR))
        else:
            self._answering.answer(task.result())

    def end(self) -> None:
        """The connection is gone, or is to go."""
        self._call = None
        if self._task is not None:
            self._tasks.cancel(self._task)
