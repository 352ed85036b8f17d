"""Hub, the facade: wires the compiled engine, the server, the callbacks and the configuration.

What a hub does with clients, rooms and messages is in the compiled base class (engine.pyx). Here
is its life: starting, stopping, the heartbeat, the calls from other threads, and the callbacks.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from ssl import SSLContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from wsc_fast._core.connection import Client
from wsc_fast._core.frames import check_close
from wsc_fast._core.handshake import RequestHead
from wsc_fast._core.timers import TICK, Timers
from wsc_fast.adapters import picows
from wsc_fast.addresses import Host as RequestHost
from wsc_fast.addresses import parse_host, parse_network
from wsc_fast.config import HubConfig
from wsc_fast.config.kinds import FOREVER, kinds_of
from wsc_fast.delivery.facade import Delivery
from wsc_fast.delivery.failures import REFUSED_EXCERPT, Failure
from wsc_fast.errors import (
    ConfigError,
    ConnectionLostError,
    HubStateError,
    HubStoppedError,
    PermissionDeniedError,
    ProtocolError,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.listen.arguments import check_listen_arguments, check_path
from wsc_fast.listen.limits import ConnectionLimits
from wsc_fast.listen.listener import Listener
from wsc_fast.listen.needs import Needs
from wsc_fast.listen.sockets import Host
from wsc_fast.log import log
from wsc_fast.messages import IdFactory, message_forms
from wsc_fast.runtime.callbacks import Handlers, Inbox, dispatch, is_awaitable, wait_for
from wsc_fast.runtime.deadlines import time_limit
from wsc_fast.runtime.process import last_file
from wsc_fast.runtime.runner import Life, Runner
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.runtime.watchdog import Watchdog
from wsc_fast.stats import HubStats, snapshot
from wsc_fast.turns import MOST_ENDS, in_turns
from wsc_fast.upgrade.answers import Route, refusal
from wsc_fast.upgrade.handshake import Handshake
from wsc_fast.upgrade.identity import Identity, check_identity
from wsc_fast.upgrade.negotiation import Deflate
from wsc_fast.upgrade.policy import accept
from wsc_fast.upgrade.request import Authenticate

if TYPE_CHECKING:
    from picows import WSUpgradeResponse

MakeConnection = Callable[[Client, asyncio.Transport, str, dict[str, str], str], None]
TransportName = Literal["hub", "picows"]
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# Close codes of our own (RFC 6455 section 7.4.2 leaves 4000-4999 to applications).
CLOSE_UNAUTHENTICATED = 4401
CLOSE_REPLACED = 4409
CLOSE_TRY_AGAIN = 1013
# How many connections a full hub takes besides while an async `authenticate` finds out whose they
# are: one of a hundred, within these bounds.
_LEAST_RETURNING = 10
_MOST_RETURNING = 1_000

# Async on_error callbacks at once that concern no client: anybody can have `authenticate` raise.
_MOST_ERROR_TASKS = 64

# How often a client is looked at, as a part of the heartbeat interval, and the heartbeat's tick.
_SWEEPS_PER_INTERVAL = 5
_LONGEST_TICK = 1.0
# Seconds that a callback may take that begins when the timeout of a stop is over.
_LAST_WORDS = 1.0
# Seconds between two slices of a drain.
_DRAIN_SLICE = 0.1
# Seconds behind its time from which on a heartbeat says that the loop stood still.
_STOOD_STILL = 0.1
# Descriptors that a process needs besides its connections: the application's, the stores'.
_OTHER_FILES = 1_024
# How far ahead a timer is set for an identity that ends, since the wall clock may be set meanwhile.
_LONGEST_WAIT = 60.0
# Those that run, to be told of a fork.
_running: weakref.WeakSet[Hub] = weakref.WeakSet()


class Hub(Delivery):
    """A WebSocket hub: holds the connections, and moves messages to clients, users and rooms.

    Args:
        config: settings; see HubConfig.
        authenticate: `authenticate(request) -> Identity | None`, plain or async; None refuses: with
            401, or with close code 4401 after an async one. Without it every client is anonymous:
            a fresh id, and `user_id` equal to it.
        authorize_join: `authorize_join(client, room_id) -> bool`, plain: whether `join_room` may
            make the client a member.
        authorize_publish: `authorize_publish(client, message) -> bool`, plain: whether a message of
            the client may go to `on_message_received`. Other messages are counted and dropped, and
            the failure handlers hear of them (reason `permission`).

    Thread-safety: every method may be called from any thread; off the loop's thread it runs on the
    loop, and returns or raises as it would there. Source: go-wsc `NewHub`.
    """

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        authenticate: Authenticate | None = None,
        authorize_join: Callable[[Client, str], bool] | None = None,
        authorize_publish: Callable[[Client, str | bytes], bool] | None = None,
    ) -> None:
        for hook in (authenticate, authorize_join, authorize_publish):
            if hook is not None:
                _checked_callback(hook)
        for hook in (authorize_join, authorize_publish):
            if inspect.iscoroutinefunction(hook):
                raise ValidationError(
                    f"{hook.__name__} must be a plain function, not async: it decides at once"
                )
        super().__init__()
        self._set_forms(message_forms)
        self._authenticate = authenticate
        self._authorize_join = authorize_join
        self._authorize_publish = authorize_publish
        self._set_filters(
            self._may_join if authorize_join is not None else None,
            self._may_publish if authorize_publish is not None else None,
        )
        self._accepting = False
        self._draining = False
        self._watchdog: Watchdog | None = None
        self._ended = False  # stopped; only `start` begins anew
        self._path: str | None = None
        self._takes_from_others = False  # connections of another server (`attach`)
        self._make_connection: MakeConnection | None = None  # where the transport is picows
        self._tls = False
        self._routes: dict[str, Route] = {}
        self._new_id = IdFactory(9)
        self._listener = Listener(
            Needs(
                settings=lambda: self.config,
                deadlines=self._deadlines,
                make_connection=partial(Client, self),
                count_limit=self._count_limit,
                count_rejected=self._count_rejected,
                report=partial(self._report, None),
                log_out_of_files=self._log_out_of_files,
            )
        )
        self._last_file = sys.maxsize  # the highest descriptor that the process may have
        self._next_files_line = 0.0
        self._runner: Runner | None = None  # while `run` runs
        self._allowed_hosts: frozenset[RequestHost | None] = frozenset()
        # Those whose request is not answered yet, oldest first -> their slot of `_deadlines`.
        self._handshaking: dict[Handshake, int] = {}
        # Those that were answered and not upgraded, while their peers read; oldest first.
        self._answered: dict[Handshake, None] = {}
        # Whether any client has had an id of the application's; and those who are let into a full
        # hub to find out whose connection they replace.
        self._names_clients = False
        self._returning: set[Client] = set()
        # Since when each async `authenticate` is under way, the longest first; and who was
        # disconnected meanwhile: when, the close code and the reason.
        self._authenticating: dict[Client, float] = {}
        self._sent_away: dict[str, tuple[float, int, str]] = {}
        # Clients whose identity ends: when by the wall clock, and their timer.
        self._expiring: dict[Client, tuple[float, int]] = {}
        self._expiries: Timers[Client] = Timers(self._expired)
        self._limits = ConnectionLimits()
        self._unauthorized = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        # Tasks of async on_error callbacks that concern no client.
        self._error_tasks: set[asyncio.Task[Any]] = set()
        self._unreported_errors = 0
        # Clients whose async callbacks go on, by user; and of these whose client has gone.
        self._inboxes: dict[str, set[Inbox]] = {}
        self._outlasting: set[Inbox] = set()
        self._abandoned = 0  # received messages that no callback was called with
        self._stop_callers: set[asyncio.Task[Any]] = set()
        self._thread_calls = ThreadCalls()
        self._heartbeat_due = math.inf
        # How long the loop did no work when it last stood still, and until when.
        self._stood_still = 0.0
        self._stood_still_until = -math.inf
        self._all_gone: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._stopped: asyncio.Future[None] | None = None  # of this run; done when it ends
        self._start_time: datetime | None = None
        self._started = 0.0
        # Held while a callback or a route is added, which is no single step for Python.
        self._registering = threading.Lock()
        self._on_connected: Handlers = ()
        self._on_disconnected: Handlers = ()
        self._on_message: Handlers = ()
        self._on_error: Handlers = ()
        self.config = HubConfig()
        self.set_config(config if config is not None else self.config)

    def __repr__(self) -> str:
        state = "stopped" if self.loop is None or self.loop.is_closed() else "running"
        return f"<Hub {state}, {self.get_connected_clients()} clients>"

    # --- configuration ---

    def set_config(self, config: HubConfig) -> None:
        """Sets the configuration: all of it before the start, what can change after it.

        Args:
            config: the new settings.

        Raises:
            ConfigError: a setting differs that a running hub cannot change.

        Thread-safety: any thread. Source: go-wsc `SetConfig`.
        """
        if self._is_away():
            self._on_loop(lambda: self.set_config(config))
            return
        if not isinstance(config, HubConfig):
            raise ConfigError(f"config must be a HubConfig, not {type(config).__name__}")
        self._forget_closed_loop()
        if self.loop is not None:
            for name, kind in kinds_of(HubConfig).items():
                old, new = getattr(self.config, name), getattr(config, name)
                if old != new and not kind.live:
                    raise ConfigError(
                        f"HubConfig.{name} cannot change while the hub runs: {old!r} to {new!r}"
                    )
            if self._takes_from_others:
                picows.check_attachable(config)
        else:
            self._set_read_buffer(config.read_buffer_size)
            self._set_compression(
                config.enable_compression, config.compression_level, config.compression_threshold
            )
            self._deflate = (
                Deflate(
                    config.server_no_context_takeover,
                    config.client_no_context_takeover,
                    config.server_max_window_bits,
                    config.client_max_window_bits,
                )
                if config.enable_compression
                else None
            )
        self.config = config
        if self._runner is not None:
            self._runner.allow_files()
            self._last_file = last_file()
        self._set_limits(
            config.outbox_messages, config.outbox_bytes, config.overflow, config.flush_budget
        )
        networks = map(parse_network, config.trusted_proxies)
        self._trusted_proxies = tuple(network for network in networks if network is not None)
        self._allowed_hosts = frozenset(map(parse_host, config.allowed_hosts))
        self._max_rooms = config.max_rooms
        self._max_rooms_per_client = config.max_rooms_per_client
        self._max_message_size = config.max_message_size
        self._max_fragments = config.max_fragments
        self._auth_input_bytes = config.authentication_input_bytes
        self._heartbeat_interval = config.heartbeat_interval
        self._heartbeat_timeout = config.heartbeat_timeout
        self._close_timeout = config.close_timeout
        self._message_timeout = config.message_timeout
        self._limits.set(
            config.max_connections_per_address,
            config.connection_rate,
            config.connection_rate_per_address,
        )
        self._set_rates(config.message_rate, config.byte_rate, config.rate_limit_action)

    # --- callbacks ---

    def on_client_connected(self, fn: F) -> F:
        """Has `fn(client)` called for each new client, before any of its messages.

        Args:
            fn: plain or async. If it raises, the client is closed with 1011.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Thread-safety: any thread. Source: go-wsc `OnClientConnected`.
        """
        with self._registering:
            self._on_connected += (_checked_callback(fn),)
        return fn

    def on_client_disconnected(self, fn: F) -> F:
        """Has `fn(client)` called once for each connected client that has gone.

        Args:
            fn: plain or async. The client is out of its rooms already.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Thread-safety: any thread. Source: go-wsc `OnClientDisconnected`.
        """
        with self._registering:
            self._on_disconnected += (_checked_callback(fn),)
        return fn

    def on_message_received(self, fn: F) -> F:
        """Has `fn(client, message)` called for each message.

        Args:
            fn: plain or async; `message` is str for text, bytes for binary. An async one runs for
                one message of a client at a time, in order.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Thread-safety: any thread. Source: go-wsc `OnMessageReceived`.
        """
        with self._registering:
            self._on_message += (_checked_callback(fn),)
            self._set_message_handlers(self._on_message)
        return fn

    def on_error(self, fn: F) -> F:
        """Has `fn(client, error)` called for what callbacks raise, and what goes wrong with peers.

        Args:
            fn: plain or async; `client` is None where no client can be named, `error` is the
                exception: ProtocolError for a peer's fault, ConnectionLostError for a connection
                that broke or a heartbeat that was not answered, else what a callback raised.

        Returns:
            fn, so that this works as a decorator too; several may be set.

        Thread-safety: any thread. Source: go-wsc `OnError`.
        """
        with self._registering:
            self._on_error += (_checked_callback(fn),)
        return fn

    def route(self, path: str) -> Callable[[Route], Route]:
        """Serves plain HTTP GET requests of a path.

        Args:
            path: exact, beginning with a slash.

        Returns:
            a decorator for `f(request)`, a plain function: a str that it returns is sent as text,
            bytes as octets, a Response as it says, and a dict, list, tuple, dataclass or
            msgspec.Struct as JSON.

        Raises:
            ValidationError: the path cannot be served, or is served already.

        Thread-safety: any thread. Source: Go `http.HandleFunc`.
        """
        check_path("a route", path)
        if path in self._routes:
            raise ValidationError(f"the route {path!r} is served already")
        if self.loop is not None and path == self._path:
            raise ValidationError(f"the path {path!r} is the WebSocket endpoint")

        def register(fn: Route) -> Route:
            if inspect.iscoroutinefunction(fn):
                raise ValidationError(f"the route {path!r} must be a plain function, not async")
            with self._registering:
                if path in self._routes:
                    raise ValidationError(f"the route {path!r} is served already")
                self._routes[path] = _checked_callback(fn)
            return fn

        return register

    # --- life ---

    @property
    def port(self) -> int:
        """The port listened on, the same at each address.

        Raises:
            HubStateError: the hub does not listen.
        """
        return self._listener.port

    async def start(
        self,
        host: Host = "127.0.0.1",
        port: int = 8080,
        *,
        path: str = "/ws",
        ssl: SSLContext | None = None,
        sock: socket.socket | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        reuse_port: bool = False,
        transport: TransportName = "hub",
    ) -> None:
        """Starts serving on the running loop; returns once the address is listened on.

        Args:
            host: an address or a name, a list of them, or None or "" for all interfaces. What is
                written as an address has to be one of this machine; of those that a name stands for
                one has to be. "::" takes IPv4 as well, if the list has no IPv4 address.
            port: 0 chooses one that is free at each address, see `port`.
            path: of the WebSocket endpoint, exact.
            ssl: serve wss:// with this context.
            sock: an already bound TCP socket instead of host and port, such as one that systemd
                handed over (`inherited_socket`).
            certfile, keyfile: PEM files, instead of `ssl`, for TLS 1.2 and newer; see
                `reload_certificate`.
            reuse_port: let other processes listen on the same port (SO_REUSEPORT).
            transport: "hub", or "picows": then picows makes each connection once its upgrade is
                accepted, and `client.conn` is picows' own transport from the start. All settings
                hold with both; what "picows" costs stands in the README.

        Raises:
            ListenError: the address is in use, not ours, or not permitted.
            HubStateError: the hub runs already.
            ValidationError: a Unix socket, a path or a transport that cannot be served, or both
                kinds of TLS.
            ConfigError: the certificate cannot be loaded.
            OfflineStoreError: the offline store does not open.

        Thread-safety: the thread of the running loop, which the hub then belongs to.
        """
        self._check_not_running()
        check_path("path", path)
        if path in self._routes:
            raise ValidationError(f"the path {path!r} is served as a route already")
        check_listen_arguments(host, port, sock, ssl)
        if transport not in ("hub", "picows"):
            raise ValidationError(f"transport must be 'hub' or 'picows', not {transport!r}")
        ssl = self._listener.choose_tls(ssl, certfile, keyfile)
        loop = asyncio.get_running_loop()
        self._attach(loop)
        self._path = path
        self._make_connection = picows.make_connection if transport == "picows" else None
        self._tls = ssl is not None
        try:
            await self._open_store(loop)
            await self._listener.open(
                host,
                port,
                sock=sock,
                ssl=ssl,
                reuse_port=reuse_port,
                check=partial(self._check_still_starting, loop),
            )
        except BaseException:
            if sock is not None:
                sock.close()  # it was given to the hub for good
            await self._give_up_start(loop)
            raise
        self._last_file = last_file()
        self._begin()

    async def attach(self, *, tls: bool = False) -> None:
        """Has the hub run on the running loop, on which another server listens.

        For a picows server of one's own, whose listener factory calls `handle_websocket`: clients
        of that server are then the hub's, its heartbeat runs, and its offline store is open. Until
        `stop`, which closes the clients and leaves the server to its owner.

        Args:
            tls: whether that server speaks TLS. Then the origin of a page of its own is https.

        Raises:
            HubStateError: the hub runs already.
            HubStoppedError: it was stopped while its offline store opened.
            ConfigError: a setting cannot hold on a server that is not the hub's; its text says why.
            OfflineStoreError: the offline store does not open.

        Thread-safety: the thread of the running loop, which the hub then belongs to.
        Source: go-wsc `go hub.Run()` beside `HandleWebSocket`.
        """
        self._check_not_running()
        loop = asyncio.get_running_loop()
        self._attach_to(loop, tls)
        try:
            await self._open_store(loop)
        except BaseException:
            await self._give_up_start(loop)
            raise
        self._begin()

    def _attach_to(self, loop: asyncio.AbstractEventLoop, tls: bool) -> None:
        self._take_from_others()
        self._attach(loop)
        self._path = self._make_connection = None
        self._tls = tls
        self._listener.forget_port()

    def _take_from_others(self) -> None:
        """Has connections of another server be the hub's from now on, also if it listens itself."""
        if not self._takes_from_others:
            picows.check_attachable(self.config)
            self._takes_from_others = True

    @property
    def _shares_port(self) -> bool:
        return self._listener.shares_port

    def _check_not_running(self) -> None:
        self._forget_closed_loop()
        if self.loop is not None:
            raise HubStateError("the hub runs already")

    async def _open_store(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._acks is not None:
            self._acks.attach(loop)
            try:
                await self._acks.opened()
            finally:
                self._check_still_starting(loop)

    def _check_still_starting(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.loop is not loop or self._stopping is not None:
            raise HubStoppedError("the hub was stopped while it started")

    async def _give_up_start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.loop is loop and self._stopping is None:
            if self._acks is not None:
                await self._acks.stop(0.0)
            self._detach()

    def _begin(self) -> None:
        assert self.loop is not None
        self._stopped = self.loop.create_future()
        self._ended = self._draining = False
        self._sleepers.begin()
        self._accepting = True
        if self.config.watchdog_timeout:
            self._watchdog = Watchdog(self.config.watchdog_timeout)
            self._watchdog.start(self.loop)
        self._start_time = datetime.now(UTC)
        self._started = time.monotonic()
        self._expiries.attach(self.loop)
        _running.add(self)
        self._heartbeat_due = math.inf
        self._heartbeat()

    async def stop(self, timeout: float = 5.0) -> None:
        """Stops gracefully: accepts nothing more, flushes outboxes, closes all with 1001.

        Args:
            timeout: seconds; what is not closed by then is aborted, and async callbacks that are
                under way then are cancelled. Those that are told of a disconnect have a second.

        Raises:
            ValidationError: the timeout is no number of seconds.

        Idempotent: a second call waits for the first. The hub can be started again afterwards.
        Thread-safety: any thread, from within any loop. Source: go-wsc `Stop`.
        """
        timeout = _checked_seconds("timeout", timeout)
        self._forget_closed_loop()
        loop = self.loop
        if loop is None:
            return
        if asyncio.get_running_loop() is not loop:
            stop = self.stop(timeout)
            try:
                done = asyncio.run_coroutine_threadsafe(stop, loop)
            except RuntimeError:
                stop.close()
                return  # the loop was closed meanwhile: nothing is left to stop
            await asyncio.wrap_future(done)
            return
        caller = asyncio.current_task()
        assert caller is not None
        self._stop_callers.add(caller)
        try:
            if self._stopping is not None:
                await asyncio.shield(self._stopping)
                return
            self._stopping = loop.create_future()
            try:
                await self._stop(timeout)
            finally:
                self._close_timeout = self.config.close_timeout
                self._stopping.set_result(None)
                self._stopping = None
        finally:
            self._stop_callers.discard(caller)

    async def _stop(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._accepting = False
        self._ended = True
        self._listener.close()
        await in_turns([*self._handshaking, *self._answered], Handshake.abort, MOST_ENDS)
        self._sleepers.end()
        # What is queued has as long as the caller gives it.
        self._close_timeout = max(self.config.close_timeout, timeout)
        await in_turns(self._open_clients(), _shut_down)
        # Those that still authenticate are no clients yet, only tasks.
        for task in list(self._tasks):
            joining: Client | None = getattr(task, "wsc_client", None)
            if joining is not None:
                _shut_down(joining)
        await self._wait_until_gone(deadline)
        begun = set(self._tasks)
        await in_turns(self._closing_clients(), Client._abort, MOST_ENDS)
        # An aborted transport is gone a turn or two later, whatever the peer does.
        await self._wait_until_gone(time.monotonic() + 1.0)
        if self._acks is not None:
            await self._acks.stop(deadline - time.monotonic())
        await self._finish_tasks(begun, deadline)
        await self._failures.finish(deadline - time.monotonic())
        self._deadlines.clear()
        self._expiries.clear()
        self._draining = False
        self._stop_watching()
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)
        self._detach()

    def _detach(self) -> None:
        _running.discard(self)
        self._attach(None)
        self._takes_from_others = False
        self._thread_calls.end()

    def _forked(self) -> None:
        """This is the child of a fork: the connections and the loop are the parent's.

        The hub is a stopped one here. In place of each of its sockets there is /dev/null, so that
        nothing that still happens to the parent's transports in this process (they are ended when
        the interpreter ends, for one) reaches the socket, or the epoll that both processes share,
        and so that a connection that the parent closes is closed.
        """
        clients = [*self._open_clients(), *self._closing_clients()]
        clients += [task.wsc_client for task in self._tasks if hasattr(task, "wsc_client")]
        descriptors = {client._get_descriptor() for client in clients}
        answered = [*self._handshaking, *self._answered]
        descriptors.update(handshake.descriptor() for handshake in answered)
        descriptors.update(self._listener.descriptors())
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            if descriptor >= 0:
                os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        if self._runner is not None:
            self._runner.give_signals_back()
        self._forget_loop()

    def _forget_closed_loop(self) -> None:
        if self.loop is not None and self.loop.is_closed():
            self._forget_loop()

    def _forget_loop(self) -> None:
        """The loop was closed under the hub: nothing of it can be stopped any more."""
        self._accepting = self._draining = False
        self._stop_watching()
        self._listener.forget()
        self._handshaking.clear()
        self._returning.clear()
        self._answered.clear()
        for task in self._tasks:
            joining: Client | None = getattr(task, "wsc_client", None)
            if joining is not None:
                joining._forget()
        self._tasks.clear()
        self._error_tasks.clear()
        self._authenticating.clear()
        self._sent_away.clear()
        self._inboxes.clear()
        self._outlasting.clear()
        self._stop_callers.clear()
        self._failures.forget()
        if self._acks is not None:
            self._acks.forget()
        self._forget_connections()
        self._expiring.clear()
        self._limits.clear()
        self._expiries = Timers(self._expired)
        self._all_gone = self._stopping = self._stopped = None
        self._detach()

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None

    async def drain(self, period: float = 10.0) -> None:
        """Sends the clients away with 1012, a few at a time, so that not all come back at once.

        Where another process may serve the port (`sock`, `reuse_port`), the hub accepts nothing
        more: whoever connects from now on is that process's. Else new upgrades get 503 from now on,
        while routes go on being served. `stop` is to follow.

        Args:
            period: seconds that it takes at most; it ends once nobody is connected.

        Raises:
            ValidationError: the period is no number of seconds.

        Thread-safety: any thread, from within any loop.
        """
        period = _checked_seconds("period", period)
        self._forget_closed_loop()
        loop = self.loop
        if loop is None:
            return
        if loop is not asyncio.get_running_loop():
            there = asyncio.run_coroutine_threadsafe(self.drain(period), loop)
            await asyncio.wrap_future(there)
            return
        self._draining = True
        if self._shares_port:
            self._listener.leave_to_others()
        clients = self._open_clients()
        slices = max(1, math.ceil(period / _DRAIN_SLICE))
        for number in range(slices):
            await in_turns(clients[number::slices], _restart)
            # Whoever the loop has accepted in this turn is known in the next.
            await asyncio.sleep(period / slices)
            if not self._draining or self._has_nobody():
                return  # the hub was stopped meanwhile, or all have left
        # Those that were still authenticating when it began.
        await in_turns(self._open_clients(), _restart)

    def _has_nobody(self) -> bool:
        """Neither clients nor, where a drain lets them in, connections that may become some."""
        if self.connections or not self._shares_port:
            return not self.connections
        return not self._handshaking and not self._listener.is_busy()

    def reload_certificate(self) -> None:
        """Loads `certfile` and `keyfile` again, for connections from now on; the others stay.

        `run` does so at SIGHUP.

        Raises:
            HubStateError: the hub was not started with `certfile`.
            ConfigError: the files cannot be loaded; the certificate in use stays.

        Thread-safety: any thread.
        """
        self._listener.reload_certificate()

    async def _wait_until_gone(self, deadline: float) -> None:
        assert self.loop is not None
        while self.connections > 0 and (left := deadline - time.monotonic()) > 0:
            self._all_gone = self.loop.create_future()
            await asyncio.wait([self._all_gone], timeout=left)
        self._all_gone = None

    async def _finish_tasks(self, begun: set[asyncio.Task[Any]], deadline: float) -> None:
        """Callbacks under way may finish, but for those that wait for this very stop.

        Args:
            begun: those that may take until the deadline. The others tell of a disconnect at the
                end, or of one that waited for a callback which was cancelled: they may take a
                second in any case.
            deadline: by the monotonic clock.
        """
        await self._finish(begun & self._tasks, deadline)
        await self._finish(set(self._tasks), max(deadline, time.monotonic() + _LAST_WORDS))

    async def _finish(self, tasks: set[asyncio.Task[Any]], deadline: float) -> None:
        tasks -= self._stop_callers
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, deadline - time.monotonic()))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)

    def run(
        self,
        host: Host = "127.0.0.1",
        port: int = 8080,
        *,
        path: str = "/ws",
        ssl: SSLContext | None = None,
        sock: socket.socket | None = None,
        certfile: str | None = None,
        keyfile: str | None = None,
        reuse_port: bool = False,
        transport: TransportName = "hub",
    ) -> None:
        """Serves until SIGINT or SIGTERM, on uvloop; blocks.

        The arguments are those of `start`. The first signal drains (`HubConfig.drain_period`) and
        stops gracefully, a second one stops at once; one that comes before the hub serves ends the
        start. SIGHUP loads the certificate again, where there is a certfile.

        Until it returns, the handlers of these signals are the hub's, SIGPIPE is ignored, and the
        soft limit of open files is what `max_connections` needs (children inherit it); then all of
        it is as it was before. glibc keeps up to 16 MiB of freed memory from then on.

        Raises:
            SystemExit: the address cannot be listened on; its text says why in one line.
            HubStateError: a loop runs in this thread already; there it is `await hub.start(...)`.

        Thread-safety: signals are handled only when called in the main thread.
        Source: go-wsc `go hub.Run()` with `http.ListenAndServe`.
        """
        self._runner = Runner(
            Life(
                start=self.start,
                stop=self.stop,
                stopped=self._until_stopped,
                drain=self._drain_before_stop,
                abort=self._abort_all,
                reload_certificate=self.reload_certificate,
                open_files=self._open_files,
            )
        )
        try:
            self._runner.run(
                host,
                port,
                path=path,
                ssl=ssl,
                sock=sock,
                certfile=certfile,
                keyfile=keyfile,
                reuse_port=reuse_port,
                transport=transport,
            )
        finally:
            self._runner = None

    async def _until_stopped(self) -> None:
        assert self._stopped is not None
        await self._stopped

    async def _drain_before_stop(self) -> None:
        if self.config.drain_period:
            await self.drain(self.config.drain_period)

    def _abort_all(self) -> None:
        for client in (*self._open_clients(), *self._closing_clients()):
            client._abort()

    def _open_files(self) -> int:
        return self.config.max_connections + self.config.max_handshakes + _OTHER_FILES

    async def __aenter__(self) -> Self:
        """Starts the hub with the default arguments, unless it runs already."""
        self._forget_closed_loop()
        if self.loop is None:
            await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _heartbeat(self) -> None:
        # One timer for all: each tick looks at the next few clients, so that pings are spread.
        sweep = self.config.heartbeat_interval / _SWEEPS_PER_INTERVAL
        tick = min(_LONGEST_TICK, max(TICK, sweep / 10))
        assert self.loop is not None
        now = time.monotonic()
        late = now - self._heartbeat_due
        if late > max(_STOOD_STILL, self._patience(now, self.config.heartbeat_timeout)):
            # The loop stood still, and nobody was asked or heard meanwhile.
            self._stood_still, self._stood_still_until = late, now
        for name in ("heartbeat_timeout", "message_timeout"):
            timeout = getattr(self.config, name)
            setattr(self, f"_{name}", timeout + self._patience(now, timeout))
        self._heartbeat_due = now + tick
        self._deadlines.set(self._heartbeat, self.loop.time() + tick)
        self._sweep(min(1.0, tick / sweep))

    def _patience(self, now: float, timeout: float) -> float:
        """What clients get besides a timeout: it has passed once since the loop stood still."""
        return self._stood_still if now - self._stood_still_until <= timeout else 0.0

    # --- calls from other threads ---

    def _on_loop(self, call: Callable[[], T]) -> T:
        """Runs a call on the loop's thread and returns or raises what it does there."""
        return self._thread_calls.make(call, self.loop, self.config.thread_call_timeout)

    # --- from the upgrade to the client ---

    def _handshake(self, client: Client, transport: asyncio.Transport) -> Handshake | None:
        """Called by a Client of our own server when it is connected, before it is upgraded."""
        loop = self.loop
        if loop is None or not self._accepting:
            transport.abort()  # accepted in the turn before the hub stopped
            return None
        if len(self._handshaking) + len(self._answered) >= self.config.max_handshakes:
            # The oldest has had the longest time; whoever is honest is quicker than that. And
            # whoever makes a crowd is in the larger group.
            self._count_too_many_handshakes()
            crowd: dict[Handshake, Any] = max(self._answered, self._handshaking, key=len)
            oldest = next(iter(crowd))
            oldest.settle()
            oldest.abort()
        handshake = Handshake(self, client, transport)
        self._handshaking[handshake] = self._deadlines.set(
            handshake.time_out, loop.time() + self.config.handshake_timeout
        )
        return handshake

    def _admit(self, remote_address: str) -> bool:
        """Whether the limits per address and per second let in one more, which is then counted."""
        over = self._limits.admit(remote_address) if remote_address else None
        if over is None:
            return True
        self._count_limit(over)
        self._count_rejected("address" if over == "max_connections_per_address" else "rate")
        return False

    def _count_too_many_handshakes(self) -> None:
        self._count_rejected("handshakes")
        self._count_limit("max_handshakes")

    def _accept(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | dict[str, str]:
        try:
            return accept(self, head, client, remote_address, transport)
        except BaseException as error:
            # The text of the exception is for us alone; CancelledError and its like end no loop.
            self._report(None, error)
            return refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _reason_against(self, identity: Identity) -> str | None:
        """Why a client may not have an identity that `authenticate` gave, if it may not."""
        if identity.expires_at is not None and identity.expires_at <= time.time():
            return "authentication expired"
        older = self._client_of(identity)
        if older is not None and older.user_id != identity.user_id:
            log.warning(
                "client id %r of user %r is refused to user %r: authenticate has to make ids that "
                "no two users share",
                older.id,
                older.user_id,
                identity.user_id,
            )
            return "authentication failed"
        return None

    def _client_of(self, identity: Identity | None) -> Client | None:
        """The connected client that one of this identity would replace."""
        if identity is None or identity.client_id is None:
            return None
        found: Client | None = self.get_client_by_id(identity.client_id)
        return found

    # A connection that went without a word holds its place until the heartbeat misses it. So where
    # clients have ids of the application's, a full hub lets in who replaces its own connection.

    def _is_full(self) -> bool:
        return self.connections + len(self._outlasting) >= self.config.max_connections

    def _may_return(self) -> bool:
        """Whether a full hub finds out who it is: somebody may be replaced, and few are asked."""
        most = min(_MOST_RETURNING, max(_LEAST_RETURNING, self.config.max_connections // 100))
        return self._names_clients and len(self._returning) < most

    def _refuse_full(self) -> None:
        self._count_rejected("full")
        self._count_limit("max_connections")

    def _connected(self, client: Client) -> None:
        """Called by a Client once its connection is made."""
        if client._address_came_late() and not self._admit(client.remote_address):
            self._drop_identity(client)
            self._turn_away(client, CLOSE_TRY_AGAIN, "too many connections")
            return
        if client.remote_address:
            self._limits.connected(client.remote_address)
            client._counted = True
        pending = client._pending
        if pending is None or isinstance(pending, Identity):
            client._pending = None
            self._enter(client, pending)
            return
        client._hold_input()
        task = self._spawn(self._finish_authentication(client, pending), client._copy_context())
        task.wsc_client = client  # type: ignore[attr-defined]
        client._set_authenticating(task)
        self._authenticating[client] = time.monotonic()
        task.add_done_callback(lambda _: self._authenticating.pop(client, None))

    async def _finish_authentication(self, client: Client, pending: Awaitable[Any]) -> None:
        client._pending = None
        identity: Identity | None = None
        try:
            try:
                async with time_limit(self._deadlines, self.config.authentication_timeout) as limit:
                    identity = await pending
            except TimeoutError:
                if not limit.expired():
                    raise  # its own, not ours
                self._count_limit("authentication_timeout")
            if identity is not None:
                check_identity(identity)
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the client left, or the hub is stopping
            client._set_authenticating(None)
            self._count_rejected("auth")
            self._report(client, error)
            client.disconnect(1011)
            return
        client._set_authenticating(None)
        if not client._is_connecting():
            return  # it left, or the hub is stopping
        client._keep_context()
        if identity is None:
            self._count_rejected("auth")
            client.disconnect(CLOSE_UNAUTHENTICATED, "authentication failed")
            return
        since = self._authenticating.get(client, math.inf)
        when, code, text = self._sent_away.get(identity.user_id, (-math.inf, 0, ""))
        if when >= since:
            self._count_rejected("auth")
            client.disconnect(code, text)
            return
        self._enter(client, identity)
        client._release_input()

    def _enter(self, client: Client, identity: Identity | None) -> None:
        if not self._accepting:
            client.disconnect(1001, "server shutdown")
            return
        older = self._client_of(identity)
        returning = client in self._returning
        self._returning.discard(client)
        if identity is None:
            client_id = user_id = self._new_id()
            data = None
        else:
            reason = self._reason_against(identity)
            if reason is not None:
                self._count_rejected("auth")
                client.disconnect(CLOSE_UNAUTHENTICATED, reason)
                return
            if returning and older is None:
                self._refuse_full()
                client.disconnect(CLOSE_TRY_AGAIN, "too many connections")
                return
            client_id = identity.client_id or self._new_id()
            user_id, data = identity.user_id, identity.user_data
            client._set_device(identity.device_id)
            self._names_clients = self._names_clients or identity.client_id is not None
            if identity.expires_at is not None:
                self._expire_at(client, identity.expires_at)
            if older is not None:
                self._replace(older)
        client._enter(client_id, user_id, data)
        if self._acks is not None:
            self._acks.entered(client)
        if self._on_connected:
            dispatch(self, client, self._on_connected, (client,), fatal=True)

    def _replace(self, older: Client) -> None:
        self._count_replaced()
        reason = "replaced by a newer connection"
        if self.connections > self.config.max_connections:
            self._turn_away(older, CLOSE_REPLACED, reason)
        else:
            # It is the same user's: what the user has sent over it is heard.
            older._send_away(CLOSE_REPLACED, reason)

    def _turn_away(self, client: Client, code: int, reason: str) -> None:
        """Closes a connection without waiting for an answer to its close frame."""
        client._send_away(code, reason)
        if self.loop is not None:
            self.loop.call_soon(client._abort, context=self._new_context())

    def _drop_identity(self, client: Client) -> None:
        """Nobody will ask who this connection belongs to."""
        self._returning.discard(client)
        pending = client._pending
        if pending is None:
            return
        client._pending = None
        if inspect.iscoroutine(pending):
            pending.close()
        elif asyncio.isfuture(pending):
            pending.cancel()

    def _expire_at(self, client: Client, when: float) -> None:
        # By the wall clock, which is looked at again when the time has come: it may be set.
        assert self.loop is not None
        due = self.loop.time() + max(0.0, min(when - time.time(), _LONGEST_WAIT))
        self._expiring[client] = when, self._expiries.set(client, due)

    def _expired(self, client: Client) -> None:
        expiry = self._expiring.pop(client, None)
        if expiry is None or self.loop is None:
            return
        if expiry[0] > time.time():
            self._expire_at(client, expiry[0])
        else:
            client.disconnect(CLOSE_UNAUTHENTICATED, "authentication expired")

    def disconnect_user(self, user_id: str, code: int = 1000, reason: str = "") -> int:
        """Closes all connections of a user, in this call; see `Client.disconnect`.

        None of them is heard afterwards: messages that wait for an async callback are dropped, also
        those of connections that have ended. Where an async `authenticate` that is under way turns
        out to be this user's, its connection is closed too. It takes about 2 microseconds for each.

        Args:
            user_id: a str.
            code: close code.
            reason: text for the clients.

        Returns:
            int: how many clients it was.

        Raises:
            ValidationError: the code may not be sent, or the reason or the id is not a str.

        Thread-safety: any thread.
        """
        if self._is_away():
            return self._on_loop(lambda: self.disconnect_user(user_id, code, reason))
        check_close(code, reason)
        clients = self.get_clients_by_user(user_id)
        for client in clients:
            client.disconnect(code, reason)
        for inbox in self._inboxes.get(user_id, ()):
            inbox.forget_messages()
        self._send_away_who_comes(user_id, code, reason)
        return len(clients)

    def _send_away_who_comes(self, user_id: str, code: int, reason: str) -> None:
        """Keeps in mind that a user was disconnected, for those who are authenticated now."""
        away = self._sent_away
        longest = next(iter(self._authenticating.values()), math.inf)
        while away and next(iter(away.values()))[0] < longest:
            del away[next(iter(away))]
        if self._authenticating:
            away.pop(user_id, None)
            away[user_id] = time.monotonic(), code, reason

    def _disconnected(self, client: Client, announced: bool) -> None:
        """Called by a Client once its connection is gone."""
        if client._counted:
            self._limits.gone(client.remote_address)
        expiry = self._expiring.pop(client, None)
        if expiry is not None:
            self._expiries.cancel(client, expiry[1])
        self._drop_identity(client)
        if announced and self._acks is not None:
            self._acks.left(client)
        if self.connections == 0 and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)
        if announced and self._on_disconnected:
            dispatch(self, client, self._on_disconnected, (client,))
        self._limit_callbacks(client)

    def _limit_callbacks(self, client: Client) -> None:
        """A client has gone: an async callback of it that is under way has so long from now on."""
        inbox = client._get_inbox()
        if inbox is not None:
            inbox.limit()

    # --- callbacks, called by Client ---

    def _dispatch(self, client: Client, handlers: Handlers, message: str | bytes) -> None:
        inbox: Inbox | None = client._get_inbox()
        if inbox is not None:
            inbox.put_message(handlers, message)
        else:
            dispatch(self, client, handlers, (client, message))

    def _may_join(self, client: Client, room_id: str) -> bool:
        """Called for each `join_room`, where there is an `authorize_join`."""
        assert self._authorize_join is not None
        return _decided(client._call(self._authorize_join, client, room_id))

    def _may_publish(self, client: Client, message: str | bytes) -> bool:
        """Called by a Client for each message, where there is an `authorize_publish`."""
        assert self._authorize_publish is not None
        try:
            if _decided(client._call(self._authorize_publish, client, message)):
                return True
        except Exception as error:
            self._report(client, error)  # nobody has allowed it
        self._unauthorized += 1
        denied = PermissionDeniedError(f"client {client.id!a} may not publish this")
        # An excerpt: it is the client that decides how much there is of it.
        self._failures.report(
            Failure(
                message[:REFUSED_EXCERPT],
                client.id,
                SendFailureReason.PERMISSION,
                denied,
                to=client.user_id,
            )
        )
        return False

    def _await_result(self, client: Client, result: object) -> None:
        if is_awaitable(result):
            wait_for(self, client, result)  # type: ignore[arg-type]

    def _callback_failed(self, client: Client, error: BaseException, fatal: bool = False) -> None:
        """A callback raised: reported; closes the client where it must not stay connected."""
        self._report(client, error)
        # CancelledError, KeyboardInterrupt and their like: what the callback was doing is unknown.
        if fatal or not isinstance(error, Exception):
            client.disconnect(1011)

    def _protocol_error(self, client: Client, error: ProtocolError) -> None:
        log.debug("%r: protocol error %d: %s", client, error.code, error)
        self._tell_error_handlers(client, error)

    def _connection_lost(self, client: Client, text: str) -> None:
        """Called by a Client that is gone without a close frame, or was silent for too long."""
        log.debug("client %r: %s", client.id, text)
        if self._on_error:
            assert client.close_code is not None
            self._tell_error_handlers(client, ConnectionLostError(client.close_code, text))

    def _report(self, client: Client | None, error: BaseException) -> None:
        self._count_callback_error()
        log.error("error in a callback of %r", client, exc_info=error)
        self._tell_error_handlers(client, error)

    def _tell_error_handlers(self, client: Client | None, error: BaseException) -> None:
        # What an async one has to await takes its turn among the client's events, so that a client
        # never has more than one under way, and is not read while many of its errors wait.
        call = self._new_context().run if client is None else client._call
        results = []
        for handler in self._on_error:
            try:
                result = call(handler, client, error)
                if is_awaitable(result):
                    results.append(result)
            except BaseException:
                log.exception("an on_error callback raised")
        if client is None:
            for result in results:
                self._await_error_handler(result)
        elif results:
            wait_for(self, client, _logging_errors(results), args=(client,))

    def _await_error_handler(self, result: Awaitable[Any]) -> None:
        """What an async on_error has to await of an error that concerns no client."""
        if len(self._error_tasks) < _MOST_ERROR_TASKS:
            task = self._spawn(_logging_errors([result]), self._new_context())
            self._error_tasks.add(task)
            task.add_done_callback(self._error_tasks.discard)
            return
        self._unreported_errors += 1
        if inspect.iscoroutine(result):
            result.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], context: Context) -> asyncio.Task[Any]:
        # The set keeps the task alive: the loop itself holds it only weakly.
        assert self.loop is not None
        task: asyncio.Task[Any] = self.loop.create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _log_abandoned(self, client: Client, messages: int) -> None:
        log.warning(
            "%r: %d received messages were not handled: the callback before them was cancelled",
            client,
            messages,
        )

    def _log_out_of_files(self) -> None:
        now = time.monotonic()
        if now >= self._next_files_line:
            self._next_files_line = now + 1.0
            log.warning("out of file descriptors: connections are refused")

    # --- stats ---

    def get_stats(self) -> HubStats:
        """A snapshot of the hub's counters and gauges.

        Returns:
            HubStats.

        Thread-safety: any thread. Source: go-wsc `GetStats`.
        """
        if self._is_away():
            return self._on_loop(self.get_stats)
        return snapshot(
            self._counters(),
            connected_clients=self.get_connected_clients(),
            active_rooms=self._count_rooms(),
            connections=self.connections,
            start_time=self._start_time,
            uptime=time.monotonic() - self._started if self.loop is not None else 0.0,
            longest_flush=self.longest_flush,
            own={
                "messages_abandoned": self._abandoned,
                "unauthorized": self._unauthorized,
                "unreported_errors": self._unreported_errors,
            },
            delivery=self._delivery_counters(),
        )

    def reset_stats(self) -> None:
        """Sets every counter to zero; gauges and the start time stay.

        Thread-safety: any thread. Source: go-wsc `ResetStats`.
        """
        if self._is_away():
            self._on_loop(self.reset_stats)
            return
        self._reset_counters()
        self._reset_delivery_counters()
        self._unauthorized = self._abandoned = self._unreported_errors = 0


def _shut_down(client: Client) -> None:
    client._send_away(1001, "server shutdown")


def _restart(client: Client) -> None:
    client._send_away(1012, "service restart")


async def _logging_errors(results: list[Awaitable[Any]]) -> None:
    for result in results:
        try:
            await result
        except BaseException:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.exception("an on_error callback raised")


def _checked_seconds(what: str, value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValidationError(f"{what} must be a number of seconds, not {value!r}")
    return float(min(value, FOREVER))  # type: ignore[call-overload]


def _checked_callback(fn: F) -> F:
    if not callable(fn):
        raise ValidationError(f"a callback must be callable, not {type(fn).__name__}")
    return fn


def _decided(answer: object) -> bool:
    """What an authorization hook has answered; an awaitable, which is true, decides nothing."""
    if answer is True or answer is False:
        return answer
    if is_awaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise TypeError("authorize_join and authorize_publish must return a bool, not an awaitable")
    return bool(answer)


def _after_fork() -> None:
    for hub in list(_running):
        hub._forked()


os.register_at_fork(after_in_child=_after_fork)
