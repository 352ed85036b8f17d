"""Accepting plain TCP by the engine's own transport: one listening socket on a hub's Poller."""

from __future__ import annotations

import asyncio
import socket
from ssl import SSLContext

from wsc_fast._core.entrance import Entrance
from wsc_fast._core.poller import Poller
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.spare import Spare


class PolledAcceptor:
    """Accepts the connections of one listening socket; `Acceptor` does the same by the loop.

    Where no descriptor is left it refuses, with one that it has kept for that. Where that one is
    gone too, it pauses for a second.

    Args:
        loop: on which it accepts.
        needs: of the hub whose connections they are.
        listening: bound, owned from here on.
        poller: of the hub.

    Thread-safety: the loop's thread.
    """

    _PAUSE = 1.0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        needs: Needs,
        listening: socket.socket,
        poller: Poller,
    ) -> None:
        self._loop = loop
        self._needs = needs
        self._socket = listening
        self._resuming: asyncio.TimerHandle | None = None
        try:
            listening.setblocking(False)
            # Accepted sockets inherit it.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.listen(needs.settings().backlog)
            self._spare = Spare()
            self._entrance = Entrance(
                poller, listening.fileno(), needs.make_connection, self._out_of_files
            )
        except BaseException:
            listening.close()
            raise

    @property
    def port(self) -> int | None:
        """The port that it listens on; None once it has stopped accepting."""
        return int(self._socket.getsockname()[1]) if self._socket.fileno() >= 0 else None

    def use(self, ssl: SSLContext) -> None:
        """Serves TLS with another context from now on: never called, since it serves none."""

    def descriptors(self) -> list[int]:
        """Of its sockets: none that the Poller does not tell of."""
        return []

    def is_busy(self) -> bool:
        """Whether it has connections that have not shaken hands yet: without TLS none has to."""
        return False

    def take_queue(self) -> None:
        """Accepts all who have connected by now."""
        if self._socket.fileno() >= 0:
            self._entrance.accept_all(self._needs.settings().backlog + 1)

    def _out_of_files(self) -> bool:
        self._needs.log_out_of_files()
        if self._spare.refuse_one(self._socket):
            return True
        if self._resuming is not None:
            self._resuming.cancel()
        self._resuming = self._loop.call_later(self._PAUSE, self._entrance.resume)
        return False

    def stop_accepting(self) -> None:
        """Leaves the port to others; connections that were accepted go on."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._entrance.close()
        self._socket.close()
        self._spare.close()

    def close(self) -> None:
        """Accepts nothing more."""
        self.stop_accepting()
