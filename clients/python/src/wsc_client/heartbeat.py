"""Whether the connection is alive (B of spec.md).

Once nothing has come for a while, the client asks. A hub that answers requests is sent a request,
any other one a ping of RFC 6455 (B4). Time in which the client itself does not read, since its
listeners are behind, is no silence of the server. A ping waits behind a long message: as long as
the server takes some of that, it is alive.
"""

from __future__ import annotations

from collections.abc import Callable

from wsc_client.options import Options
from wsc_client.platform import Platform
from wsc_client.sender import Sender
from wsc_client.session import Session

QUIET = 5.0  # B3
# Seconds that a timer of a process which runs is late at most.
LATE = 1.0


class Heartbeat:
    """Asks silent connections, and ends those that stay silent.

    Args:
        behind: whether the client does not read, since listeners are behind.
    """

    def __init__(
        self,
        session: Session,
        sender: Sender,
        options: Options,
        platform: Platform,
        behind: Callable[[], bool],
    ) -> None:
        self._session, self._sender = session, sender
        self._options, self._platform, self._behind = options, platform, behind
        self._heard_at = 0.0
        self._pinged = False  # and nothing has come since
        self._heard_count = 0

    def opened(self) -> None:
        """A connection begins."""
        self._heard_at = self._platform.now()
        self._pinged = False
        self._watch(self._options.heartbeat_interval)

    def heard(self) -> None:
        """Something has come."""
        self._heard_count += 1
        self._heard_at = self._platform.now()
        self._pinged = False

    def network_back(self) -> None:
        """B3."""
        quiet = self._platform.now() - self._heard_at >= QUIET
        if self._session.state == "open" and quiet:
            self._ping()

    def _watch(self, wait: float) -> None:
        def look() -> None:
            interval = self._options.heartbeat_interval
            left = self._heard_at + interval - self._platform.now()
            if left <= 0:
                self._ping()
                left = interval
            self._watch(left)

        self._session.after(wait, look)

    def _ping(self) -> None:
        """B1."""
        if self._pinged or self._behind() or not self._asks():
            return
        self._pinged = True
        self._wait(self._heard_count)

    def _wait(self, before: int) -> None:
        """Ends the connection, unless more has come by then than before."""
        timeout = self._options.heartbeat_timeout
        due = self._platform.now() + timeout
        socket = self._session.socket
        held_back = socket is not None and not socket.writable
        taken = 0 if socket is None else socket.taken

        def look() -> None:
            if self._heard_count != before:
                return
            goes_on = held_back and socket is not None and socket.taken > taken  # B5
            # A process that stood still has not read yet what came meanwhile.
            if self._behind() or goes_on or self._platform.now() > due + LATE:
                self._wait(before)
            else:
                self._session.fail(TimeoutError("the server does not answer pings"))

        self._session.after(timeout, look)

    def _asks(self) -> bool:
        """Whether something was sent that the server answers (B2, B4)."""
        heartbeat, socket = self._options.heartbeat, self._session.socket
        if heartbeat is False or socket is None:
            return False
        if heartbeat or self._sender.answered:
            self._sender.transmit(self._sender.asking("ping")[1])
            return True
        return socket.ping()
