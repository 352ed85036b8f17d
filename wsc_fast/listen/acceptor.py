"""Accepting connections where the loop's own way will not do: on asyncio, and those over TLS.

A TLS handshake costs its peer a few bytes, which it may have prepared, and us 100 KB and 0.5 to
6 ms that nobody can interrupt, most of it for a signature. So what a peer can have is bounded:

- Until its ClientHello is there to the end, a connection is a socket and a deadline
  (`TLSWaitingRoom`). A connection that sends something else, or asks for a key exchange that takes
  10 to 180 ms, ends there.
- The `HandshakeScheduler` says how many begin in a turn of the loop, and how long those under way
  may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from functools import partial
from ssl import SSLContext
from typing import cast

import aiofastnet

from wsc_fast._core.connection import Client, give_up, protocol_of, transport_of
from wsc_fast._core.poller import Poller
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.spare import Spare
from wsc_fast.listen.tls.context import can_serve, needs_the_loops_tls
from wsc_fast.listen.tls.handshake_loop import HandshakeLoop
from wsc_fast.listen.tls.shaking import Shaking
from wsc_fast.listen.tls.waiting_room import TLSWaitingRoom
from wsc_fast.runtime.deadlines import Deadline

# A TLS connection may hold one record of the largest size that it has received, and two that it has
# encrypted and not sent. aiofastnet would take 257 KiB for each.
_TLS_RECEIVED = 16 * 1024 + 64
_TLS_SENT = 2 * _TLS_RECEIVED
# Seconds after which a handshake has certainly ended: our own deadline comes long before.
_NEVER = 3600.0


class Acceptor:
    """Accepts the connections of one listening socket.

    Without TLS uvloop (libuv) does it well: it keeps a spare descriptor, with which it accepts and
    closes what it cannot serve. asyncio would stop accepting for a second, and log and schedule
    that once for each place in the backlog; and with TLS neither loop lets us end the handshakes
    that are under way when the hub stops.

    Args:
        loop: on which it accepts.
        needs: of the hub whose connections they are.
        listening: bound, owned from here on.
        ssl: serve TLS with this context.
        poller: has the engine's own transports, for TLS; None where the loop's are to be used.
    """

    _AT_ONCE = 16
    _PAUSE = 1.0

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        needs: Needs,
        listening: socket.socket,
        ssl: SSLContext | None,
        poller: Poller | None = None,
    ) -> None:
        self._loop = loop
        self._poller = poller
        self._needs = needs
        self._socket = listening
        self._ssl = ssl
        self._waiting_room = TLSWaitingRoom(loop, needs, self._begin)
        self._shaking: dict[socket.socket, tuple[asyncio.Task[None], Client]] = {}
        self._given_up: dict[socket.socket, asyncio.Task[None]] = {}  # until they have ended
        self._resuming: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        try:
            # Accepted sockets inherit it.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.listen(needs.settings().backlog)
            self._spare = Spare()
        except OSError:
            listening.close()
            raise
        self._loop.add_reader(listening.fileno(), self._accept)

    @property
    def port(self) -> int | None:
        """The port that it listens on; None once it has stopped accepting."""
        return int(self._socket.getsockname()[1]) if self._socket.fileno() >= 0 else None

    def use(self, ssl: SSLContext) -> None:
        """Serves TLS with another context from now on."""
        self._ssl = ssl

    def descriptors(self) -> list[int]:
        """Of its sockets: the one that it listens on, and those in the TLS handshake."""
        shaking = (*self._shaking, *self._given_up)
        own = [sock.fileno() for sock in (self._socket, *shaking)]
        return own + self._waiting_room.descriptors()

    def is_busy(self) -> bool:
        """Whether it has connections that have not shaken hands yet."""
        return bool(self._shaking) or len(self._waiting_room) > 0

    def take_queue(self) -> None:
        """Accepts all who have connected by now."""
        if self._socket.fileno() >= 0:
            for _ in range(self._needs.settings().backlog // self._AT_ONCE + 1):
                if not self._accept_some(evict=False):
                    return

    def _accept(self) -> None:
        self._accept_some(evict=True)

    def _accept_some(self, evict: bool) -> bool:
        """Returns whether there may be more to accept."""
        for _ in range(self._AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # an error of the one connection (accept(2), "Error handling")
                self._needs.log_out_of_files()
                if not self._spare.refuse_one(self._socket):
                    self._pause()
                    return False
            else:
                connection.setblocking(False)
                under_way = len(self._shaking) + len(self._waiting_room)
                if evict and under_way >= self._needs.settings().max_handshakes:
                    self._end_oldest()
                if self._ssl is None:
                    self._begin(connection, 0.0)
                else:
                    self._waiting_room.add(connection)
        return True

    def _end_oldest(self) -> None:
        # Of the larger group, since that is where a flood of connections is.
        self._needs.count_rejected("handshakes")
        self._needs.count_limit("max_handshakes")
        if len(self._waiting_room) >= len(self._shaking):
            self._waiting_room.drop_oldest()
        else:
            self._give_up(next(iter(self._shaking)))

    def _give_up(self, connection: socket.socket) -> None:
        """Ends a connection that is still being set up: its task, or its TLS handshake."""
        task, client = self._shaking.pop(connection)
        self._given_up[connection] = task
        if self._ssl is None or connection.fileno() < 0:
            task.cancel()  # its transport, or that of the engine's own which has the descriptor
            return
        # aiofastnet 1.2 keeps a handshake that is cancelled, with its buffers, until its timeout.
        give_up(client)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, connection: socket.socket, seconds: float) -> None:
        client = self._needs.make_connection()
        task = self._loop.create_task(self._serve(client, connection, seconds))
        self._shaking[connection] = task, client
        task.add_done_callback(partial(self._served, connection))

    def _pause(self) -> None:
        # The socket stays readable: without a pause the loop would do nothing else.
        self._loop.remove_reader(self._socket.fileno())
        if self._resuming is not None:
            self._resuming.cancel()
        self._resuming = self._loop.call_later(
            self._PAUSE, self._loop.add_reader, self._socket.fileno(), self._accept
        )

    async def _serve(self, client: Client, connection: socket.socket, seconds: float) -> None:
        handshake = HandshakeLoop(self._loop, self._needs, self._waiting_room.scheduler, client)
        try:
            await self._connect(handshake, client, connection, seconds)
        except asyncio.CancelledError:
            # Not raised again: its frames hold the transport with its buffers, and are held by it.
            transport = transport_of(client)
            if transport is None:
                handshake.end()
                connection.close()
            else:
                # In the very turn in which the handshake ended: the socket is the transport's.
                transport.abort()

    async def _connect(
        self, handshake: HandshakeLoop, client: Client, connection: socket.socket, seconds: float
    ) -> None:
        context = self._ssl
        if context is not None and self._poller is not None and can_serve(context):
            own = Shaking(self._poller, self._waiting_room.scheduler, context, client, connection)
            await own.run(self._needs, seconds)
        elif context is None:
            await self._loop.connect_accepted_socket(partial(protocol_of, client), connection)
        elif needs_the_loops_tls(context):
            end = Deadline(self._needs.deadlines, seconds, partial(self._end_late, connection))
            try:
                await self._loop.connect_accepted_socket(
                    partial(protocol_of, client),
                    connection,
                    ssl=context,
                    # The loop's own timer knows nothing of a late loop, so `end` has to be first.
                    ssl_handshake_timeout=seconds + _NEVER,
                )
            finally:
                end.cancel()
        else:
            await aiofastnet.connect_accepted_socket(
                cast(asyncio.AbstractEventLoop, handshake),
                partial(protocol_of, client),
                connection,
                ssl=context,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=self._needs.settings().close_timeout,
                ssl_incoming_bio_size=_TLS_RECEIVED,
                ssl_outgoing_bio_size=_TLS_SENT,
            )

    def _end_late(self, connection: socket.socket) -> None:
        if connection in self._shaking:
            self._needs.count_limit("handshake_timeout")
            self._give_up(connection)

    def _served(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        given_up = self._given_up.pop(connection, None)
        self._shaking.pop(connection, None)
        if task.cancelled():
            connection.close()  # before it began
            return
        error = task.exception()
        if error is None:
            return
        connection.close()
        if isinstance(error, OSError):
            error.__traceback__ = None  # a cycle, as in `_serve`
        if isinstance(error, ConnectionAbortedError):
            self._needs.count_limit("handshake_timeout")  # both loops say so of TLS
        elif isinstance(error, OSError):
            if given_up is None:
                self._needs.count_rejected("gone")  # it left, or could not shake hands
        else:
            self._needs.report(error)

    def stop_accepting(self) -> None:
        """Leaves the port to others; connections that were accepted go on."""
        if not self._loop.is_closed():
            if self._resuming is not None:
                self._resuming.cancel()
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._spare.close()

    def close(self) -> None:
        """Accepts nothing more, and ends the handshakes under way."""
        self.stop_accepting()
        self._waiting_room.close()
        if not self._loop.is_closed():
            for task in [task for task, _ in self._shaking.values()] + [*self._given_up.values()]:
                task.cancel()
