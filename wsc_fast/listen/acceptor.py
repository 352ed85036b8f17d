"""Accepting connections where the loop's own way will not do: on asyncio, and those over TLS.

A TLS handshake costs its peer a few bytes, which it may have prepared, and us 100 KB and 0.5 to
6 ms that nobody can interrupt, most of it for a signature. So what a peer can have is bounded:

- Until its ClientHello is there to the end, a connection is a socket and a deadline (`Hellos`).
  What is no ClientHello, or asks for a key exchange that takes 10 to 180 ms, ends there.
- How many begin in a turn of the loop, and how long those under way may read, is up to `Turns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, cast

import aiofastnet

from wsc_fast._core.connection import Client
from wsc_fast.deadlines import Deadline
from wsc_fast.listen.tls.context import needs_the_loops_tls
from wsc_fast.listen.tls.hello import HELLO_MOST, hello_size, is_costly
from wsc_fast.log import log

if TYPE_CHECKING:
    from wsc_fast.hub import Hub

# What a TLS connection may have received, and what it may have encrypted and not sent: one and two
# records of the largest size. aiofastnet would take 257 KiB for each.
_TLS_RECEIVED = 16 * 1024 + 64
_TLS_SENT = 2 * _TLS_RECEIVED
_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8  # tcpi_state (tcp(7))
# Seconds that handshakes may have of each turn of the loop, if its other work takes no three times
# as long; beyond, what is read is left for the next turn. One step of one may exceed it.
_LEAST_BUDGET, _MOST_BUDGET = 0.001, 0.004
# Seconds for a handshake whose hello was read only when its time was over: the loop stood still.
_LAST_MOMENT = 1.0
# Seconds after which a handshake has certainly ended: our own deadline comes long before.
_NEVER = 3600.0
# Seconds that a step costs besides, where it is the last one: the end of a task, an exception.
_AFTERMATH = 0.00007


class Turns:
    """How much of each turn of the loop TLS handshakes may take.

    Args:
        loop: which turns.
        begin: looks at so many that would begin theirs, and says whether more wait for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, begin: Callable[[int], bool]) -> None:
        self._loop = loop
        self._begin = begin
        self._waiting: deque[_HandshakeLoop] = deque()
        self._called = False  # the next turn is taken
        self._used = False  # this one is
        self._began = 0.0
        self._spent = 0.0
        self._budget = _LEAST_BUDGET

    def call(self) -> None:
        """Somebody waits for a turn."""
        self._used = True
        if not self._called:
            self._called = True
            self._began = time.perf_counter()
            self._loop.call_soon(self._turn)

    def read(self, handshake: _HandshakeLoop) -> None:
        """A handshake under way has something to read, now or in a later turn."""
        self.call()
        if self._spent < self._budget:
            self._step(handshake)
        else:
            handshake.wait()
            self._waiting.append(handshake)

    def _step(self, handshake: _HandshakeLoop) -> None:
        began = time.perf_counter()
        try:
            handshake.step()
        finally:
            self._spent += time.perf_counter() - began + _AFTERMATH

    def _turn(self) -> None:
        now = time.perf_counter()
        others = now - self._began - self._spent
        self._budget = min(_MOST_BUDGET, max(_LEAST_BUDGET, others / 3))
        self._began, self._spent = now, 0.0
        # One more turn than is used: only of those that follow on each other the time is known.
        self._called = self._used
        if not self._called:
            self._budget = _LEAST_BUDGET
            return
        self._loop.call_soon(self._turn)
        while self._waiting and self._spent < self._budget:
            self._step(self._waiting.popleft())
        most = 1 if self._waiting else int(self._budget / _LEAST_BUDGET)
        began = time.perf_counter()
        self._used = self._begin(most) or bool(self._waiting)
        self._spent += time.perf_counter() - began


class _HandshakeLoop:
    """The loop as the aiofastnet transport of one connection sees it.

    Until it has shaken hands, what it reads is up to `Turns`.
    """

    __slots__ = ("_acceptor", "_client", "_deadline", "_descriptor", "_loop", "_reader")

    def __init__(self, acceptor: Acceptor, client: Client) -> None:
        self._acceptor = acceptor
        self._client = client
        self._loop = acceptor.loop
        self._deadline: Deadline | None = None
        self._descriptor = -1
        self._reader: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        if self._client._transport() is None:
            self._descriptor, self._reader = descriptor, callback
            self._loop.add_reader(descriptor, self._acceptor.turns.read, self)
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
        if self._deadline is not None or self._acceptor.deadlines.loop is None:
            return self._loop.call_later(seconds, call)
        self._deadline = Deadline(self._acceptor.deadlines, seconds, call)
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
        more behind the end of its stream. Those the hub counts by other ways."""
        # So it calls what a method of the protocol raised.
        if "protocol." in context["message"] or context["message"].startswith("user "):
            self._acceptor.report(context["exception"])
        else:
            log.debug("TLS: %s: %r", context["message"], context.get("exception"))


def has_left(connection: socket.socket) -> bool:
    """Whether the peer is known to have ended its stream, read or not."""
    option = getattr(socket, "TCP_INFO", None)  # Linux
    if option is None:
        return False
    state = connection.getsockopt(socket.IPPROTO_TCP, option, 1)[0]
    return state in (_TCP_CLOSE, _TCP_CLOSE_WAIT)


class Hellos:
    """Connections that have not begun their TLS handshake: without their ClientHello, or a turn.

    Args:
        hub: whose connections they are.
        begin: takes a socket whose turn it is, and the seconds that its handshake may take.
    """

    def __init__(self, hub: Hub, begin: Callable[[socket.socket, float], None]) -> None:
        assert hub.loop is not None
        self._hub = hub
        self._loop = hub.loop
        self._begin = begin
        self.turns = Turns(hub.loop, self._begin_some)
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
        timeout = self._hub.config.handshake_timeout
        end = partial(self._end_late, connection)
        self._deadlines[connection] = Deadline(self._hub._deadlines, timeout, end)
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
            left = min(_LAST_MOMENT, self._hub.config.handshake_timeout)
        self._ready.append((connection, left))
        self.turns.call()

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
        self._hub._count_limit("handshake_timeout")
        self._drop(connection)

    def _stop_waiting(self, connection: socket.socket) -> None:
        if self._wanted.pop(connection, None) is not None and not self._loop.is_closed():
            self._loop.remove_reader(connection.fileno())

    def _gone(self, connection: socket.socket) -> None:
        self._hub._count_rejected("gone")
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._stop_waiting(connection)
        self._deadlines.pop(connection).cancel()
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
        self.loop = hub.loop
        self.deadlines = hub._deadlines
        self._socket = listening
        self._ssl = ssl
        self._hellos = Hellos(hub, self._begin)
        self.turns = self._hellos.turns
        self._shaking: dict[socket.socket, tuple[asyncio.Task[None], Client]] = {}
        self._given_up: dict[socket.socket, asyncio.Task[None]] = {}  # until they have ended
        self._resuming: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        try:
            listening.listen(hub.config.backlog)
            self._spare: int | None = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            listening.close()
            raise
        self.loop.add_reader(listening.fileno(), self._accept)

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

    def is_busy(self) -> bool:
        """Whether it has connections that have not shaken hands yet."""
        return bool(self._shaking) or len(self._hellos) > 0

    def take_queue(self) -> None:
        """Accepts all who have connected by now."""
        if self._socket.fileno() >= 0:
            for _ in range(self._hub.config.backlog // self._AT_ONCE + 1):
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
                self._hub._log_out_of_files()
                if not self._refuse_one():
                    self._pause()
                    return False
            else:
                connection.setblocking(False)
                under_way = len(self._shaking) + len(self._hellos)
                if evict and under_way >= self._hub.config.max_handshakes:
                    self._end_oldest()
                if self._ssl is None:
                    self._begin(connection, 0.0)
                else:
                    self._hellos.add(connection)
        return True

    def _end_oldest(self) -> None:
        # Of the larger group, since that is where a flood of connections is.
        self._hub._count_too_many_handshakes()
        if len(self._hellos) >= len(self._shaking):
            self._hellos.drop_oldest()
        else:
            self._give_up(next(iter(self._shaking)))

    def _give_up(self, connection: socket.socket) -> None:
        """Ends a connection that is still being set up: its task, or its TLS handshake."""
        task, client = self._shaking.pop(connection)
        self._given_up[connection] = task
        if self._ssl is None:
            task.cancel()
            return
        # aiofastnet 1.2 keeps a handshake that is cancelled, with its buffers, until its timeout.
        client._give_up()
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, connection: socket.socket, seconds: float) -> None:
        client = Client(self._hub)
        task = self.loop.create_task(self._serve(client, connection, seconds))
        self._shaking[connection] = task, client
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
        self.loop.remove_reader(self._socket.fileno())
        if self._resuming is not None:
            self._resuming.cancel()
        self._resuming = self.loop.call_later(
            self._PAUSE, self.loop.add_reader, self._socket.fileno(), self._accept
        )

    async def _serve(self, client: Client, connection: socket.socket, seconds: float) -> None:
        handshake = _HandshakeLoop(self, client)
        try:
            await self._connect(handshake, client, connection, seconds)
        except asyncio.CancelledError:
            # Not raised again: its frames hold the transport with its buffers, and are held by it.
            transport = client._transport()
            if transport is None:
                handshake.end()
                connection.close()
            else:
                # In the very turn in which the handshake ended: the socket is the transport's.
                transport.abort()

    async def _connect(
        self, handshake: _HandshakeLoop, client: Client, connection: socket.socket, seconds: float
    ) -> None:
        context = self._ssl
        if context is None:
            await self.loop.connect_accepted_socket(lambda: client, connection)
        elif needs_the_loops_tls(context):
            end = Deadline(self.deadlines, seconds, partial(self._end_late, connection))
            try:
                await self.loop.connect_accepted_socket(
                    lambda: client,
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
                lambda: client,
                connection,
                ssl=context,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=self._hub.config.close_timeout,
                ssl_incoming_bio_size=_TLS_RECEIVED,
                ssl_outgoing_bio_size=_TLS_SENT,
            )

    def _end_late(self, connection: socket.socket) -> None:
        if connection in self._shaking:
            self._hub._count_limit("handshake_timeout")
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
            self._hub._count_limit("handshake_timeout")  # both loops say so of TLS
        elif isinstance(error, OSError):
            if given_up is None:
                self._hub._count_rejected("gone")  # it left, or could not shake hands
        else:
            self.report(error)

    def report(self, error: BaseException) -> None:
        """Tells of what went wrong in here."""
        self._hub._report(None, error)

    def stop_accepting(self) -> None:
        """Leaves the port to others; whoever has connected goes on."""
        if not self.loop.is_closed():
            if self._resuming is not None:
                self._resuming.cancel()
            if self._socket.fileno() >= 0:
                self.loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def close(self) -> None:
        """Accepts nothing more, and ends the handshakes under way."""
        self.stop_accepting()
        self._hellos.close()
        if not self.loop.is_closed():
            for task in [task for task, _ in self._shaking.values()] + [*self._given_up.values()]:
                task.cancel()
