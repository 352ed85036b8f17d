"""How a hub starts, drains, stops, and is forgotten where its loop or its process went away.

A hub runs on one loop from `start` or `attach` to `stop`. `forget` is for what cannot be stopped
any more: the loop was closed under the hub, or this is the child of a fork.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ssl import SSLContext
from typing import Any, Protocol

from wsc_fast._core import clock
from wsc_fast._core.connection import Client, abort, descriptor_of, send_away
from wsc_fast._core.engine import Engine
from wsc_fast.cluster.node import Node
from wsc_fast.config import HubConfig
from wsc_fast.delivery.delivery import Delivery
from wsc_fast.errors import HubStateError, HubStoppedError
from wsc_fast.listen.listener import Listener
from wsc_fast.listen.sockets import Host
from wsc_fast.log import log
from wsc_fast.runtime import fork
from wsc_fast.runtime.callbacks import Callbacks
from wsc_fast.runtime.cores import count_helpers
from wsc_fast.runtime.heartbeat import Heartbeat
from wsc_fast.runtime.hooks import LifeHooks
from wsc_fast.runtime.life_lines import (
    tell_begun,
    tell_drained,
    tell_draining,
    tell_stopped,
    tell_threads,
)
from wsc_fast.runtime.process import FileLimit
from wsc_fast.runtime.state import State
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.runtime.watchdog import Watchdog
from wsc_fast.turns import MOST_ENDS, in_turns
from wsc_fast.upgrade.admission import Admission
from wsc_fast.upgrade.handshake import Requests
from wsc_fast.upgrade.site import Site

# Seconds between two slices of a drain.
_DRAIN_SLICE = 0.1
# Seconds that the connections have for their upgrades which a hub has accepted before it leaves a
# port to others, and between two looks whether they are done.
_TO_UPGRADE, _LOOK = 1.0, 0.01
# Seconds that the shutdown callbacks have after a start that failed behind the startup callbacks.
_GIVE_UP = 5.0
# Seconds that clients have for their close where the shutdown callbacks have used up the timeout.
_LEAST_TO_CLOSE = 1.0


class Companion(Protocol):
    """Something that begins and ends with each run of the hub."""

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts on this loop; an exception ends the start."""

    def close(self) -> None:
        """The hub has stopped; also called where `open` was not, or has failed."""

    def forget(self) -> None:
        """The hub's loop was closed, or this is the child of a fork."""

    def descriptors(self) -> list[int]:
        """Of its sockets."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one hub that its life begins and ends."""

    engine: Engine
    state: State
    listener: Listener
    site: Site
    requests: Requests
    admission: Admission
    callbacks: Callbacks
    tasks: Tasks
    delivery: Delivery
    node: Node
    hooks: LifeHooks
    calls: ThreadCalls
    heartbeat: Heartbeat
    files: FileLimit


class Life:
    """The life of one hub.

    Args:
        parts: of the hub.
        settings: those that hold now.

    Attributes:
        start_time: when it started last, UTC; None before.
        check_settings: while connections of another server are the hub's: raises ConfigError for
            settings that cannot hold there.
        give_signals_back: while `run` runs: for the child of a fork.
        companions: begin and end with each run of the hub.

    Thread-safety: the loop's thread, but for `stop` and `drain`.
    """

    def __init__(self, parts: Parts, settings: Callable[[], HubConfig]) -> None:
        self._parts = parts
        self._settings = settings
        self._watchdog: Watchdog | None = None
        self._all_gone: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._stopped: asyncio.Future[None] | None = None  # of this run; done when it ends
        self._server: str | None = None  # whose connections it takes; None where it listens
        self._start: object = None  # the start of this run; None while it does not run
        self._began: float | None = None  # when this run began, by the monotonic clock
        self.companions: list[Companion] = []
        self._was_ended = False  # before the start that is under way
        self.start_time: datetime | None = None
        self.check_settings: Callable[[Any], None] | None = None
        self.give_signals_back: Callable[[], None] | None = None

    def uptime(self) -> float:
        """Seconds since the start; 0 where the hub does not run, or is still starting."""
        return 0.0 if self._began is None else clock.monotonic() - self._began

    # --- the start ---

    def check_not_running(self) -> None:
        """Raises HubStateError where the hub runs."""
        self.forget_closed_loop()
        if self._parts.engine.loop is not None:
            where = f", attached to {self._server}" if self._server else ""
            raise HubStateError(f"the hub runs already{where}")

    async def start(
        self,
        host: Host,
        port: int,
        *,
        path: str,
        given: list[socket.socket],
        ssl: SSLContext | None,
        reuse_port: bool,
    ) -> None:
        """Listens, on the running loop; see `Hub.start`. The arguments are checked."""
        parts = self._parts
        loop = asyncio.get_running_loop()
        self._bind(loop)
        fork.watch(self)
        start = self._start = object()
        self._server = None
        parts.site.serve(path, ssl is not None)
        try:
            await self._make_ready(loop, start)
            await parts.listener.open(
                host,
                port,
                given=given,
                ssl=ssl,
                reuse_port=reuse_port,
                check=partial(self._check_still_starting, start),
            )
        except BaseException:
            for sock in given:
                sock.close()  # it was given to the hub for good
            await self._give_up_start(loop, start)
            raise
        parts.files.look()
        self._begin()
        places, name = parts.listener.addresses, parts.node.own_name()
        tell_begun(loop, "listening on", name, places, f"{'wss' if ssl else 'ws'}://", path)

    async def attach(self, server: str, tls: bool, path: str | None) -> None:
        """Runs on the running loop, beside a server of somebody else's; see `Hub.attach`.

        Args:
            server: how lines and errors name it.
            tls: whether it speaks TLS.
            path: of the WebSocket endpoint; None where the server chooses by the path.
        """
        loop = asyncio.get_running_loop()
        self._attach_to(loop, server, tls, path)
        parts, start = self._parts, self._start
        try:
            await self._make_ready(loop, start)
        except BaseException:
            await self._give_up_start(loop, start)
            raise
        self._begin()
        tell_begun(loop, f"attached to {server}", parts.node.own_name(), path=path or "")

    def attach_at_once(self, server: str, tls: bool, path: str | None) -> None:
        """As `attach`; the offline store opens, and startup callbacks run, meanwhile."""
        parts = self._parts
        loop = asyncio.get_running_loop()
        self._attach_to(loop, server, tls, path)
        parts.delivery.attach(loop)
        self._begin()
        parts.tasks.begin()
        starting = partial(self._check_still_starting, self._start)
        parts.tasks.start(parts.hooks.start_up(starting), "on_startup")
        tell_begun(loop, f"attached to {server}", parts.node.own_name(), path=path or "")
        opening = loop.create_task(self._open_beside(loop, self._start))
        opening.add_done_callback(_log_failure)

    def _attach_to(
        self, loop: asyncio.AbstractEventLoop, server: str, tls: bool, path: str | None
    ) -> None:
        self._bind(loop)
        fork.watch(self)
        self._server = server
        self._start = object()
        self._parts.site.serve(path, tls)
        self._parts.requests.make_connection = None
        self._parts.listener.forget_port()

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        wanted = count_helpers(self._settings().send_threads)
        tell_threads(wanted, self._parts.engine.attach(loop, wanted))

    async def _make_ready(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        parts = self._parts
        self._was_ended = parts.state.ended
        await self._open_store(loop, start)
        await parts.node.open(loop)
        self._check_still_starting(start)
        await self._open_companions(loop, start)
        parts.state.ended = False
        parts.delivery.sleepers.begin()
        parts.tasks.begin()
        await parts.hooks.start_up(partial(self._check_still_starting, start))

    async def _open_store(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        try:
            await self._parts.delivery.open_store(loop)
        finally:
            self._check_still_starting(start)

    async def _open_beside(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        await self._parts.node.open(loop)
        self._check_still_starting(start)
        await self._open_companions(loop, start)

    async def _open_companions(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        for companion in self.companions:
            await companion.open(loop)
            self._check_still_starting(start)

    def _check_still_starting(self, start: object) -> None:
        # By the start, not by the loop: the hub may be in its next run on the same one.
        if self._start is not start or self._stopping is not None:
            raise HubStoppedError("the hub was stopped while it started")

    async def _give_up_start(self, loop: asyncio.AbstractEventLoop, start: object) -> None:
        if self._start is start and self._stopping is None:
            self._stopping = loop.create_future()
            try:
                await self._take_leave(clock.monotonic() + _GIVE_UP)
                self._close_companions()
                await self._parts.delivery.close_store(0.0)
                await self._parts.node.close(0.0)
                self._parts.state.ended = self._was_ended
                self._detach()
            finally:
                self._stopping.set_result(None)
                self._stopping = None

    async def _take_leave(self, deadline: float) -> None:
        """The application's last words, and the end of its tasks."""
        await self._parts.hooks.shut_down(deadline - clock.monotonic())
        await self._parts.tasks.end_own(deadline)

    def _begin(self) -> None:
        parts = self._parts
        loop = parts.engine.loop
        assert loop is not None
        self._stopped = loop.create_future()
        parts.state.ended = parts.state.draining = False
        parts.delivery.sleepers.begin()
        parts.state.accepting = True
        timeout = self._settings().watchdog_timeout
        if timeout:
            self._watchdog = Watchdog(timeout)
            self._watchdog.start(loop)
        self.start_time = datetime.now(UTC)
        self._began = clock.monotonic()
        parts.admission.begin(loop)
        parts.heartbeat.begin()

    # --- the stop ---

    async def stopped(self) -> None:
        """Returns once this run of the hub has stopped, whoever stopped it."""
        assert self._stopped is not None
        await self._stopped

    async def stop(self, timeout: float) -> None:
        """See `Hub.stop`; the timeout is checked. Thread-safety: any thread, from any loop."""
        self.forget_closed_loop()
        loop = self._parts.engine.loop
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
        if self._parts.hooks.is_shutting_down(caller):
            return  # a shutdown callback: the stop that has called it goes on behind it
        with self._parts.tasks.spared(caller):
            await self._stop_once(loop, timeout)

    async def _stop_once(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
            return
        self._stopping = loop.create_future()
        try:
            await self._stop(timeout)
        finally:
            self._parts.engine.close_timeout = self._settings().close_timeout
            self._stopping.set_result(None)
            self._stopping = None

    async def _stop(self, timeout: float) -> None:
        parts = self._parts
        began = clock.monotonic()
        deadline = began + timeout
        connections = parts.engine.connections
        parts.state.accepting = False
        parts.listener.close()
        await parts.requests.abort_all()
        await self._take_leave(deadline)
        deadline = max(deadline, clock.monotonic() + min(timeout, _LEAST_TO_CLOSE))
        parts.state.ended = True
        parts.delivery.sleepers.end()
        self._close_companions()
        # Queued messages have as long as the caller gives them.
        parts.engine.close_timeout = max(self._settings().close_timeout, timeout)
        await in_turns(parts.engine.open_clients(), _shut_down)
        for client in parts.admission.authenticating():
            _shut_down(client)
        await self._wait_until_gone(deadline)
        begun = parts.tasks.under_way()
        late = parts.engine.closing_clients()
        await in_turns(late, abort, MOST_ENDS)
        # An aborted transport is gone a turn or two later, whatever the peer does.
        await self._wait_until_gone(clock.monotonic() + 1.0)
        await parts.delivery.close_store(deadline - clock.monotonic())
        await parts.tasks.finish(begun, deadline)
        await parts.node.close(deadline - clock.monotonic())  # callbacks may have published
        await parts.delivery.failures.finish(deadline - clock.monotonic())
        parts.listener.finish()
        parts.engine.deadlines.clear()
        parts.admission.end()
        parts.state.draining = False
        self._stop_watching()
        tell_stopped(
            clock.monotonic() - began,
            connections,
            len(late),
            self.uptime(),
            parts.engine.read_counters(),
        )
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_result(None)
        self._detach()

    async def _wait_until_gone(self, deadline: float) -> None:
        engine = self._parts.engine
        assert engine.loop is not None
        while engine.connections > 0 and (left := deadline - clock.monotonic()) > 0:
            self._all_gone = engine.loop.create_future()
            await asyncio.wait([self._all_gone], timeout=left)
        self._all_gone = None

    def nobody_left(self) -> None:
        """The last connection has gone."""
        if self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def abort_all(self) -> None:
        """Ends all connections at once, and the last words that are under way."""
        self._parts.hooks.cut_short()
        engine = self._parts.engine
        for client in (*engine.open_clients(), *engine.closing_clients()):
            abort(client)

    def _close_companions(self) -> None:
        for companion in self.companions:
            companion.close()

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None

    def _detach(self) -> None:
        fork.unwatch(self)
        self._parts.engine.attach(None)
        self._start = self._began = self.check_settings = None
        self._parts.calls.end()

    # --- the drain ---

    async def drain(self, period: float) -> None:
        """See `Hub.drain`; the period is checked. Thread-safety: any thread, from any loop."""
        self.forget_closed_loop()
        parts = self._parts
        loop = parts.engine.loop
        if loop is None:
            return
        if loop is not asyncio.get_running_loop():
            there = asyncio.run_coroutine_threadsafe(self.drain(period), loop)
            await asyncio.wrap_future(there)
            return
        parts.state.draining = True
        end = clock.monotonic() + max(period, _TO_UPGRADE)
        if parts.listener.shares_port:
            parts.listener.leave_to_others()
        clients = parts.engine.open_clients()
        began = clock.monotonic()
        tell_draining(len(clients), period)
        await self._send_all_away(clients, period)
        await self._finish_upgrades(end)
        # Clients that were still authenticating when the drain began are left, and those let in.
        if parts.state.draining:
            await in_turns(parts.engine.open_clients(), _restart)
        tell_drained(clock.monotonic() - began, len(clients), parts.engine.connections)

    async def _send_all_away(self, clients: list[Client], period: float) -> None:
        parts = self._parts
        slices = max(1, math.ceil(period / _DRAIN_SLICE))
        for number in range(slices):
            await in_turns(clients[number::slices], _restart)
            await asyncio.sleep(period / slices)
            if not parts.state.draining or self._has_nobody():
                return  # the hub was stopped meanwhile, or all have left

    async def leave_port(self) -> None:
        """Leaves a shared port to the others; returns once those it has accepted are let in."""
        if self._parts.engine.loop is not None and self._parts.listener.shares_port:
            self._parts.listener.leave_to_others()
            await self._finish_upgrades(clock.monotonic() + _TO_UPGRADE)

    async def _finish_upgrades(self, end: float) -> None:
        await asyncio.sleep(0)  # a connection accepted in this turn is known in the next
        # Nobody tells of the moment in which there is none left.
        while (  # noqa: ASYNC110
            self._upgrades() and self._stopping is None and clock.monotonic() < end
        ):
            await asyncio.sleep(_LOOK)

    def _upgrades(self) -> bool:
        """Whether connections may become clients, where a drain lets them in."""
        parts = self._parts
        if not parts.listener.shares_port or not parts.state.accepting:
            return False
        return parts.requests.waits() or parts.listener.is_busy()

    def _has_nobody(self) -> bool:
        return not self._parts.engine.connections and not self._upgrades()

    # --- where nothing can be stopped any more ---

    def forget_closed_loop(self) -> None:
        """Where the loop was closed under the hub, the hub is a stopped one from here on."""
        loop = self._parts.engine.loop
        if loop is not None and loop.is_closed():
            self.forget()

    def forget(self) -> None:
        """The loop was closed under the hub: nothing of it can be stopped any more."""
        parts = self._parts
        parts.state.accepting = parts.state.draining = False
        self._stop_watching()
        parts.listener.forget()
        for companion in self.companions:
            companion.forget()
        parts.requests.forget()
        parts.admission.forget()
        parts.hooks.forget()
        parts.tasks.forget()
        parts.callbacks.forget()
        parts.delivery.forget()
        parts.engine.forget_connections()
        parts.node.forget()  # rooms that nobody is in any more end
        self._all_gone = self._stopping = self._stopped = None
        self._detach()

    def descriptors(self) -> set[int]:
        """See `fork.Forked`."""
        parts = self._parts
        clients = [
            *parts.engine.open_clients(),
            *parts.engine.closing_clients(),
            *parts.admission.authenticating(),
        ]
        descriptors = {descriptor_of(client) for client in clients}
        descriptors.update(parts.requests.descriptors())
        descriptors.update(parts.listener.descriptors())
        descriptors.update(parts.node.descriptors())
        for companion in self.companions:
            descriptors.update(companion.descriptors())
        return descriptors

    def forked(self) -> None:
        """See `fork.Forked`."""
        if self.give_signals_back is not None:
            self.give_signals_back()
        self.forget()


def _log_failure(opening: asyncio.Task[None]) -> None:
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.error("a part of the hub did not start: %s", error)


def _shut_down(client: Client) -> None:
    send_away(client, 1001, "server shutdown")


def _restart(client: Client) -> None:
    send_away(client, 1012, "service restart")
