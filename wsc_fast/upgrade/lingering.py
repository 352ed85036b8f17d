"""The end of a connection whose request is answered: the peer gets the answer, and no reset.

Rules
1.  A socket that is closed with unread input, or that gets some later, resets the connection, and
    the peer may lose the answer over it (RFC 9112 section 9.6). So the stream ends in stages: the
    answer, the end of our half, then input is read and forgotten until the peer ends its half.
2.  A peer that takes the answer slowly gets all of it, however long that takes, if it takes some in
    every `close_timeout`, and LEAST_RATE bytes a second on average.
3.  Once the peer has taken the answer, it has `close_timeout` to end its half.
4.  Once the kernel has the answer, only peers that still send need the connection. The hub holds
    few of these (handshake.py), and one more ends the oldest.

TLS has no half-closed streams: its transports send what is written, say goodbye and close.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable

from wsc_fast._core.connection import Client, close_transport, give_up
from wsc_fast._core.engine import Engine
from wsc_fast._core.pings import acknowledged
from wsc_fast.config import HubConfig

# Bytes a second (Kestrel's MinResponseDataRate has the same).
LEAST_RATE = 240
# How often a connection is looked at in one `close_timeout`.
_LOOKS = 4


def untaken(descriptor: int) -> int:
    """Bytes that were given to a socket and that the peer has not acknowledged yet."""
    size = array.array("i", [0])
    try:
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, size)
    except OSError:
        return 0  # this kernel does not tell
    return size[0]


class Lingering:
    """One connection, from its answer to its end.

    Args:
        engine: counts.
        settings: those that hold now.
        client: its protocol.
        transport: of the connection.
        descriptor: of its socket.
        answer: written at once.
    """

    __slots__ = (
        "_before",
        "_began",
        "_client",
        "_descriptor",
        "_engine",
        "_loop",
        "_progress",
        "_settings",
        "_taken",
        "_timer",
        "_transport",
    )

    def __init__(
        self,
        engine: Engine,
        settings: Callable[[], HubConfig],
        client: Client,
        transport: asyncio.Transport,
        descriptor: int,
        answer: bytes,
    ) -> None:
        assert engine.loop is not None
        self._engine = engine
        self._settings = settings
        self._loop = engine.loop  # also once the hub has left it
        self._client = client
        self._transport = transport
        self._descriptor = descriptor
        self._began = self._progress = self._loop.time()
        # Bytes that the peer has acknowledged: before the answer, and until the last look.
        self._before = self._taken = acknowledged(descriptor)
        give_up(client)
        # So `resume_writing` is called once the transport has given everything to the kernel. A
        # `high` of 0 would pause the loops' own TLS.
        transport.set_write_buffer_limits(high=1, low=0)
        transport.write(answer)
        self._timer: asyncio.TimerHandle | None = None
        self._wait()
        self._end_half()

    def _end_half(self) -> None:
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
            elif not self._transport.get_write_buffer_size():
                self._close()
        except OSError:
            self._transport.abort()  # the peer has reset the connection meanwhile

    def drained(self) -> None:
        """The transport has handed the whole answer to the kernel."""
        if not self._transport.can_write_eof():
            self._close()

    def _wait(self) -> None:
        seconds = self._settings().close_timeout / _LOOKS
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        close_timeout, transport = self._settings().close_timeout, self._transport
        now = self._loop.time()
        # The loops' own TLS does not tell how much it holds, but while it holds some, so does the
        # kernel.
        left = transport.get_write_buffer_size() + untaken(self._descriptor)
        taken = acknowledged(self._descriptor)
        if taken > self._taken:
            self._progress, self._taken = now, taken
        wanted = LEAST_RATE * (now - self._began - close_timeout)
        if now - self._progress < close_timeout and (not left or taken - self._before >= wanted):
            self._wait()
        elif left:
            self._engine.count_limit("close_timeout")
            transport.abort()
        else:
            self._close()
            # Over TLS that may wait for the peer's goodbye.
            self._timer = self._loop.call_later(close_timeout, transport.abort)

    def _close(self) -> None:
        # A TLS transport of asyncio that is closed twice cannot be aborted any more.
        if not self._transport.is_closing():
            close_transport(self._client)

    def lost(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
