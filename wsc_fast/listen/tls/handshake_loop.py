"""The loop that aiofastnet's transport of one connection sees, until it has shaken hands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from wsc_fast._core.connection import Client, transport_of
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.tls.scheduler import HandshakeScheduler
from wsc_fast.log import log
from wsc_fast.runtime.deadlines import Deadline


class HandshakeLoop:
    """The loop as the aiofastnet transport of one connection sees it.

    Until it has shaken hands, what it reads is up to the scheduler.

    Args:
        loop: the real one.
        needs: of the hub whose connection it is.
        scheduler: says when it reads.
        client: the protocol of the connection.
    """

    __slots__ = ("_client", "_deadline", "_descriptor", "_loop", "_needs", "_reader", "_scheduler")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        needs: Needs,
        scheduler: HandshakeScheduler,
        client: Client,
    ) -> None:
        self._loop = loop
        self._needs = needs
        self._scheduler = scheduler
        self._client = client
        self._deadline: Deadline | None = None
        self._descriptor = -1
        self._reader: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        if transport_of(self._client) is None:
            self._descriptor, self._reader = descriptor, callback
            self._loop.add_reader(descriptor, self._scheduler.read, self)
        else:
            self._loop.add_reader(descriptor, callback)

    def remove_reader(self, descriptor: int) -> bool:
        self._reader = None
        return self._loop.remove_reader(descriptor)

    def call_later(
        self, seconds: float, call: Callable[[], object]
    ) -> Deadline | asyncio.TimerHandle:
        """Takes the transport's first timer, which ends the handshake, for a deadline of the hub's.

        So a loop that is late has its turns before the handshake is ended.
        """
        if self._deadline is not None or self._needs.deadlines.loop is None:
            return self._loop.call_later(seconds, call)
        self._deadline = Deadline(self._needs.deadlines, seconds, call)
        return self._deadline

    def end(self) -> None:
        """Ends a handshake that was cancelled, as its deadline would.

        aiofastnet 1.2 knows no other end of it, and keeps it with its buffers until then.
        """
        if self._deadline is not None:
            self._deadline()
            self._deadline.cancel()

    def wait(self) -> None:
        """Has the loop not report what there is to read, until `step`."""
        if self._reader is not None:
            self._loop.remove_reader(self._descriptor)

    def step(self) -> None:
        """Reads, if the transport still wants to, and has the loop tell of what comes next."""
        if self._reader is None:
            return
        self._reader()
        reader, self._reader = self._reader, None
        if reader is not None:
            # By itself from now on, once it has shaken hands.
            self.add_reader(self._descriptor, reader)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """aiofastnet 1.2 reports what peers do too: each that leaves in its handshake, or sends
        more behind the end of its stream. The hub counts such peers by other ways."""
        # So it calls what a method of the protocol raised.
        if "protocol." in context["message"] or context["message"].startswith("user "):
            self._needs.report(context["exception"])
        else:
            log.debug("TLS: %s: %r", context["message"], context.get("exception"))
