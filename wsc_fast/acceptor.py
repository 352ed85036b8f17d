"""Accepting connections where the loop's own way will not do: on asyncio, and those over TLS.

What a peer can have of a TLS handshake for nothing is little. Until its ClientHello is there to the
end, a connection is a socket and a deadline (`Hellos`); what is no ClientHello ends there. Then it
waits for its turn: a handshake costs the server a signature, with all that belongs to it 0.5 to
3 ms that nobody can interrupt. One begins in each turn of the loop, a few where turns are long, so
that a storm of handshakes holds up little but handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from ssl import CERT_NONE, SSLContext
from typing import TYPE_CHECKING, Any, cast

import aiofastnet

from wsc_fast._core.connection import Client

if TYPE_CHECKING:
    from wsc_fast.hub import Hub

_OP_ENABLE_KTLS = 8  # openssl/ssl.h
# What a TLS connection may have received, and what it may have encrypted and not sent: one and two
# records of the largest size. aiofastnet would take 257 KiB for each.
_TLS_RECEIVED = 16 * 1024 + 64
_TLS_SENT = 2 * _TLS_RECEIVED
# A ClientHello (RFC 8446 sections 4.1.2 and 5.1): in how many records it may come, and its size.
# OpenSSL sends one of 300 to 2,000 bytes; some clients cut it up, to pass filters.
_HELLO_RECORDS = 16
_HELLO_MOST = 16 * 1024
_RECORD_HEAD = 5
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_TCP_ESTABLISHED = 1  # tcpi_state of tcp(7)
# In each turn of the loop one handshake begins, or where turns are long as many as make so many a
# second, which is a quarter of a core; but no more than so many at once.
_A_SECOND = 333
_MOST_AT_ONCE = 16


def _needs_the_loops_tls(context: SSLContext) -> bool:
    """Whether aiofastnet 1.2 cannot serve this context; asked anew for each connection."""
    return (
        # OpenSSL is linked into Python: its way without the symbols fails after a pause.
        aiofastnet.OPENSSL_DYN_LIBS is None
        # CPython's callbacks look for an object of its `ssl` module, and crash without one.
        or context.sni_callback is not None
        or context.keylog_filename is not None
        or getattr(context, "_msg_callback", None) is not None
        # It decodes each client's certificate through a temporary file, and hangs without one.
        or context.verify_mode != CERT_NONE
        # With kTLS it may keep the rest of a record (OP_ENABLE_KTLS, from Python 3.12 on by name).
        or bool(context.options & _OP_ENABLE_KTLS)
    )


class _TLSLoop:
    """The loop as aiofastnet's transports see it: of their complaints the hub takes its own part.

    To a loop's own handler aiofastnet 1.2 reports what peers do, too: each that leaves in its
    handshake, or sends more behind the end of its stream. Those the hub counts by other ways.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self._hub = hub
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        # So it calls what a method of the protocol raised.
        if "protocol." in context["message"] or context["message"].startswith("user "):
            self._hub._report(None, context["exception"])


def hello_size(data: bytes) -> int | None:
    """How many bytes of a stream have to be there for its ClientHello to be whole, or to tell more.

    Args:
        data: how the stream begins.

    Returns:
        At most `len(data)` once it is whole; None for what is no ClientHello.
    """
    end = 0
    hello = b""
    for _ in range(_HELLO_RECORDS):
        start = end + _RECORD_HEAD
        if len(data) < start:
            return start
        if data[end] != _HANDSHAKE:
            return None
        end = start + int.from_bytes(data[end + 3 : start])
        if end == start or end > _HELLO_MOST:
            return None
        if len(data) < end:
            return end
        hello += data[start:end]
        if hello[0] != _CLIENT_HELLO:
            return None
        if len(hello) >= 4 and len(hello) - 4 >= int.from_bytes(hello[1:4]):
            return end
    return None


def has_left(connection: socket.socket) -> bool:
    """Whether the peer is known to have ended its stream, read or not."""
    option = getattr(socket, "TCP_INFO", None)  # Linux
    if option is None:
        return False
    return connection.getsockopt(socket.IPPROTO_TCP, option, 1)[0] != _TCP_ESTABLISHED


class Hellos:
    """Connections that have not begun their TLS handshake: without their ClientHello, or a turn.

    Args:
        hub: whose connections they are.
        begin: takes a socket whose turn it is.
    """

    def __init__(self, hub: Hub, begin: Callable[[socket.socket], None]) -> None:
        assert hub.loop is not None
        self._hub = hub
        self._loop = hub.loop
        self._begin = begin
        self._deadlines: dict[socket.socket, float] = {}  # oldest first
        self._wanted: dict[socket.socket, int] = {}  # bytes of those that are waited for
        self._ready: deque[socket.socket] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._turn_due = False
        self._turned_at = math.inf  # the last turn, if there was anybody left then

    def __len__(self) -> int:
        return len(self._deadlines)

    def descriptors(self) -> list[int]:
        """Of their sockets."""
        return [connection.fileno() for connection in self._deadlines]

    def add(self, connection: socket.socket) -> None:
        """Takes a connection that was just accepted; the socket is owned from here on."""
        timeout = self._hub.config.handshake_timeout
        self._deadlines[connection] = self._loop.time() + timeout
        self._wanted[connection] = 0
        self._loop.add_reader(connection, self._arrived, connection)
        if self._timer is None:
            self._timer = self._loop.call_later(timeout, self._end_late)

    def drop_oldest(self) -> None:
        """Ends the one that has had the longest time."""
        self._drop(next(iter(self._deadlines)))

    def close(self) -> None:
        """Ends all of them."""
        for connection in list(self._deadlines):
            self._drop(connection)
        if self._timer is not None:
            self._timer.cancel()

    def _arrived(self, connection: socket.socket) -> None:
        wanted = self._wanted[connection]
        try:
            data = connection.recv(_HELLO_MOST, socket.MSG_PEEK)
            size = hello_size(data) if data else None
            if size is not None and len(data) < size:
                if len(data) >= wanted:
                    # The loop tells again once there is so much.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
                    self._wanted[connection] = size
                    return
                if has_left(connection):
                    size = None
                # Else the kernel is short of memory: OpenSSL is to keep what there is.
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
        self._ready.append(connection)
        self._call_turn()

    def _call_turn(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Once in a turn of the loop, while there is anybody whose ClientHello is there."""
        self._turn_due = False
        now = self._loop.time()
        took = max(0.0, now - self._turned_at)
        left = max(1, min(_MOST_AT_ONCE, int(took * _A_SECOND)))
        while self._ready and left:
            connection = self._ready.popleft()
            if connection not in self._deadlines:
                continue  # ended while it waited
            if has_left(connection):
                self._gone(connection)
                continue
            del self._deadlines[connection]
            self._begin(connection)
            left -= 1
        self._turned_at = now if self._ready else math.inf
        if self._ready:
            self._call_turn()

    def _end_late(self) -> None:
        # One timer for all: each has the same time, so the oldest is the next.
        now = self._loop.time()
        self._timer = None
        for connection, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._end_late)
                return
            self._hub._count_limit("handshake_timeout")
            self._drop(connection)

    def _stop_waiting(self, connection: socket.socket) -> None:
        if self._wanted.pop(connection, None) is not None and not self._loop.is_closed():
            self._loop.remove_reader(connection)

    def _gone(self, connection: socket.socket) -> None:
        self._hub._count_rejected("gone")
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._stop_waiting(connection)
        del self._deadlines[connection]
        connection.close()


class Acceptor:
    """Accepts the connections of one listening socket.

    Without TLS uvloop (libuv) does it well: it keeps a spare descriptor, with which it accepts and
    closes what it cannot serve. asyncio would stop accepting for a second, and log and schedule
    that once for each place in the backlog; and with TLS neither loop lets us end the handshakes
    that are under way when the hub stops.

    Args:
        hub: whose connections they are.
        listening: bound, owned from here on.
        ssl: serve TLS with this context.
    """

    _AT_ONCE = 16
    _PAUSE = 1.0

    def __init__(self, hub: Hub, listening: socket.socket, ssl: SSLContext | None) -> None:
        assert hub.loop is not None
        self._hub = hub
        self._loop = hub.loop
        self._socket = listening
        self._ssl = ssl
        self._tls_loop = _TLSLoop(hub, self._loop)
        self._hellos = Hellos(hub, self._begin)
        self._shaking: dict[socket.socket, asyncio.Task[None]] = {}
        self._given_up: dict[socket.socket, asyncio.Task[None]] = {}  # they end within a turn
        self._resuming: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        try:
            listening.listen(hub.config.backlog)
            self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            listening.close()
            raise
        self._loop.add_reader(listening, self._accept)

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
        return [sock.fileno() for sock in (self._socket, *shaking)] + self._hellos.descriptors()

    def _accept(self) -> None:
        for _ in range(self._AT_ONCE):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    continue  # an error of the one connection (accept(2), "Error handling")
                self._hub._log_out_of_files()
                if not self._refuse_one():
                    self._pause()
                    return
            else:
                connection.setblocking(False)
                if len(self._shaking) + len(self._hellos) >= self._hub.config.max_handshakes:
                    self._end_oldest()
                if self._ssl is None:
                    self._begin(connection)
                else:
                    self._hellos.add(connection)

    def _end_oldest(self) -> None:
        # Of the larger group: whoever makes a crowd is in it.
        self._hub._count_too_many_handshakes()
        if len(self._hellos) >= len(self._shaking):
            self._hellos.drop_oldest()
            return
        connection, task = next(iter(self._shaking.items()))
        del self._shaking[connection]
        self._given_up[connection] = task
        # aiofastnet 1.2 keeps one that is cancelled, with its buffers, until its timeout.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._serve(connection))
        self._shaking[connection] = task
        task.add_done_callback(partial(self._served, connection))

    def _refuse_one(self) -> bool:
        # False: even the spare descriptor has gone to somebody else.
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        try:
            self._socket.accept()[0].close()
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except BlockingIOError:
            self._spare = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        return True

    def _pause(self) -> None:
        # The socket stays readable: without a pause the loop would do nothing else.
        self._loop.remove_reader(self._socket)
        self._resuming = self._loop.call_later(
            self._PAUSE, self._loop.add_reader, self._socket, self._accept
        )

    async def _serve(self, connection: socket.socket) -> None:
        client = Client(self._hub)
        try:
            await self._connect(client, connection)
        except asyncio.CancelledError:
            # Not raised again: its frames hold the transport with its buffers, and are held by it.
            transport = client._transport()
            if transport is None:
                connection.close()
            else:
                # In the very turn in which the handshake ended: the socket is the transport's.
                transport.abort()

    async def _connect(self, client: Client, connection: socket.socket) -> None:
        context = self._ssl
        timeout = self._hub.config.handshake_timeout
        if context is None or _needs_the_loops_tls(context):
            await self._loop.connect_accepted_socket(
                lambda: client,
                connection,
                ssl=context,
                ssl_handshake_timeout=timeout if context else None,
            )
        else:
            await aiofastnet.connect_accepted_socket(
                cast(asyncio.AbstractEventLoop, self._tls_loop),
                lambda: client,
                connection,
                ssl=context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=self._hub.config.close_timeout,
                ssl_incoming_bio_size=_TLS_RECEIVED,
                ssl_outgoing_bio_size=_TLS_SENT,
            )

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
            self._hub._count_limit("handshake_timeout")  # both loops say so of TLS
        elif isinstance(error, OSError):
            if given_up is None:
                self._hub._count_rejected("gone")  # it left, or could not shake hands
        else:
            self._hub._report(None, error)

    def stop_accepting(self) -> None:
        """Leaves the port to others; whoever has connected goes on."""
        if not self._loop.is_closed():
            if self._resuming is not None:
                self._resuming.cancel()
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def close(self) -> None:
        """Accepts nothing more, and ends the handshakes under way."""
        self.stop_accepting()
        self._hellos.close()
        if not self._loop.is_closed():
            for task in (*self._shaking.values(), *self._given_up.values()):
                task.cancel()
