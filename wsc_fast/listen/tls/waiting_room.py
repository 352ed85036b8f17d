"""Where connections wait that have not begun their TLS handshake."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from wsc_fast.listen.needs import Needs
from wsc_fast.listen.tls.hello import HELLO_MOST, hello_size, is_costly
from wsc_fast.listen.tls.scheduler import HandshakeScheduler
from wsc_fast.runtime.deadlines import Deadline

_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # tcpi_state (tcp(7))
# Seconds for a handshake whose hello was read only when its time was over: the loop stood still.
_LAST_MOMENT = 1.0


def has_left(connection: socket.socket) -> bool:
    """Whether the peer is known to have ended its stream, read or not."""
    option = getattr(socket, "TCP_INFO", None)  # Linux
    if option is None:
        return False
    state = connection.getsockopt(socket.IPPROTO_TCP, option, 1)[0]
    return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)


class TLSWaitingRoom:
    """Connections that have not begun their TLS handshake: without their ClientHello, or a turn.

    Args:
        loop: on which they wait.
        needs: of the hub whose connections they are.
        begin: takes a socket whose turn it is, and the seconds that its handshake may take.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        needs: Needs,
        begin: Callable[[socket.socket, float], None],
    ) -> None:
        self._loop = loop
        self._needs = needs
        self._begin = begin
        self.scheduler: HandshakeScheduler = HandshakeScheduler(loop, self._begin_some)
        self._deadlines: dict[socket.socket, Deadline] = {}  # oldest first
        self._wanted: dict[socket.socket, int] = {}  # bytes of those that are waited for
        self._ready: deque[tuple[socket.socket, float]] = deque()  # with what is left of its time

    def __len__(self) -> int:
        return len(self._deadlines)

    def descriptors(self) -> list[int]:
        """Of their sockets."""
        return [connection.fileno() for connection in self._deadlines]

    def add(self, connection: socket.socket) -> None:
        """Takes a connection that was just accepted; the socket is owned from here on."""
        self._loop.add_reader(connection.fileno(), self._arrived, connection)
        timeout = self._needs.settings().handshake_timeout
        end = partial(self._end_late, connection)
        self._deadlines[connection] = Deadline(self._needs.deadlines, timeout, end)
        self._wanted[connection] = 0

    def drop_oldest(self) -> None:
        """Ends the one that has had the longest time."""
        self._drop(next(iter(self._deadlines)))

    def close(self) -> None:
        """Ends all of them."""
        for connection in list(self._deadlines):
            self._drop(connection)

    def _arrived(self, connection: socket.socket) -> None:
        wanted = self._wanted[connection]
        try:
            data = connection.recv(HELLO_MOST, socket.MSG_PEEK)
            size = hello_size(data) if data else None
            if size is not None and len(data) < size:
                if len(data) >= wanted:
                    # The loop tells again once there is so much.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
                    self._wanted[connection] = size
                    return
                if has_left(connection):
                    size = None
                # Else the kernel has no room for it: OpenSSL is to keep what there is.
            if size is not None and wanted:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = None
        if size is None:
            self._gone(connection)
            return
        self._stop_waiting(connection)
        left = self._deadlines[connection].due - self._loop.time()
        if left <= 0:
            left = min(_LAST_MOMENT, self._needs.settings().handshake_timeout)
        self._ready.append((connection, left))
        self.scheduler.call()

    def _begin_some(self, most: int) -> bool:
        while self._ready and most:
            connection, left = self._ready.popleft()
            if connection not in self._deadlines:
                continue  # ended while it waited
            if has_left(connection):
                self._gone(connection)
                continue
            most -= 1
            if self._asks_for_much(connection):
                self._gone(connection)
                continue
            self._begin(connection, left)
            self._deadlines.pop(connection).cancel()
        return bool(self._ready)

    def _asks_for_much(self, connection: socket.socket) -> bool:
        try:
            return is_costly(connection.recv(HELLO_MOST, socket.MSG_PEEK))
        except OSError:
            return True

    def _end_late(self, connection: socket.socket) -> None:
        self._needs.count_limit("handshake_timeout")
        self._drop(connection)

    def _stop_waiting(self, connection: socket.socket) -> None:
        if self._wanted.pop(connection, None) is not None and not self._loop.is_closed():
            self._loop.remove_reader(connection.fileno())

    def _gone(self, connection: socket.socket) -> None:
        self._needs.count_rejected("gone")
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._stop_waiting(connection)
        self._deadlines.pop(connection).cancel()
        connection.close()
