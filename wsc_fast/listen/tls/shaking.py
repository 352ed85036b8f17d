"""A TLS handshake on the engine's own transport: its turns, its time and its end."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from ssl import SSLContext

from wsc_fast._core.connection import Client
from wsc_fast._core.poller import Poller
from wsc_fast._core.tls_stream import TLSStream
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.tls.scheduler import HandshakeScheduler
from wsc_fast.runtime.deadlines import Deadline


class Shaking:
    """One connection, until the engine's own transport serves its protocol.

    Args:
        poller: of the hub.
        scheduler: says when it reads.
        context: of the TLS.
        client: the protocol of the connection.
        connection: accepted; its descriptor is the transport's from here on.

    Thread-safety: the loop's thread.
    """

    __slots__ = ("_client", "_done", "_scheduler", "_stream")

    def __init__(
        self,
        poller: Poller,
        scheduler: HandshakeScheduler,
        context: SSLContext,
        client: Client,
        connection: socket.socket,
    ) -> None:
        self._scheduler = scheduler
        self._client = client
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = TLSStream(
            poller, connection.fileno(), context, partial(scheduler.read, self)
        )
        connection.detach()

    async def run(self, needs: Needs, seconds: float) -> None:
        """Waits for its end.

        Args:
            needs: of the hub whose connection it is.
            seconds: that it may take.

        Raises:
            ConnectionAbortedError: it has taken longer.
            OSError: it has failed, or the peer has left.
        """
        end = Deadline(needs.deadlines, seconds, self._end_late)
        try:
            await self._done
        except BaseException:
            if self._stream.get_protocol() is None:
                self._stream.abort()
            raise
        finally:
            end.cancel()

    def _end_late(self) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionAbortedError("the TLS handshake took too long"))

    def wait(self) -> None:
        """Has the poller not tell what there is to read, until `step`."""
        self._stream.wait()

    def step(self) -> None:
        """Reads once, and has the poller tell of what comes next."""
        if self._done.done():
            return
        try:
            done = self._stream.shake()
        except Exception as error:
            self._done.set_exception(error)
            return
        if done:
            self._stream.serve(self._client)
            if not self._done.done():  # the protocol may have had the task given up
                self._done.set_result(None)
