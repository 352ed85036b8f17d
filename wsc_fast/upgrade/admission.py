"""Admission of clients: from an accepted upgrade to the client, and to the client's end.

The policy asks here whether there is room (`admit`, `is_full`) and whether an identity is refused.
Once the 101 is written, the connection becomes a client (`connected`): at once where the identity
is known, or when an async `authenticate` has found it out.

A connection that went without a word holds its place until the heartbeat misses it. So where
clients have ids of the application's, a full hub lets in a client that replaces its own connection.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wsc_fast._core import clock
from wsc_fast._core.connection import (
    Client,
    abort,
    address_came_late,
    copy_context,
    enter,
    enter_unnamed,
    forget,
    has_greeted,
    hear_hello,
    hold_input,
    is_aware,
    is_connecting,
    is_unnamed,
    keep_context,
    pending_identity,
    release_input,
    send_away,
    set_authenticating,
    set_counted,
    set_pending_identity,
)
from wsc_fast._core.engine import Engine
from wsc_fast._core.timers import Timers
from wsc_fast.config import HubConfig
from wsc_fast.log import about, log
from wsc_fast.messages import IdFactory
from wsc_fast.runtime.callbacks import Callbacks
from wsc_fast.runtime.deadlines import time_limit
from wsc_fast.runtime.state import State
from wsc_fast.runtime.tasks import Tasks
from wsc_fast.upgrade.identity import Identity, check_identity
from wsc_fast.upgrade.limits import ConnectionLimits
from wsc_fast.upgrade.per_user import PerUser
from wsc_fast.upgrade.refusals import Refusals
from wsc_fast.upgrade.request import Request

# Close codes of our own (RFC 6455 section 7.4.2 leaves 4000-4999 to applications).
CLOSE_UNAUTHENTICATED = 4401
CLOSE_REPLACED = 4409
CLOSE_TRY_AGAIN = 1013
# How many connections a full hub takes besides while an async `authenticate` finds out whose they
# are: one of a hundred, within these bounds.
_LEAST_RETURNING = 10
_MOST_RETURNING = 1_000
# How far ahead a timer is set for an identity that ends, since the wall clock may be set meanwhile.
_LONGEST_WAIT = 60.0


class Watcher(Protocol):
    """Hears of clients before the application does."""

    def entered(self, client: Client) -> None:
        """A client is open."""

    def left(self, client: Client) -> None:
        """A client that was open has gone."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to its admission.

    Attributes:
        settings: those that hold now.
        nobody_left: is called when the last connection has gone.
        refusals: counts and tells them.
        greet: hears of each client that speaks wsc.1 before the application does.
        disconnect_elsewhere: has other hubs close the clients of a user.
    """

    settings: Callable[[], HubConfig]
    nobody_left: Callable[[], None]
    refusals: Refusals
    greet: Callable[[Client], None]
    disconnect_elsewhere: Callable[[str, int, str], None]


class Admission:
    """Lets connections in, for one hub.

    Args:
        engine, callbacks, tasks, state: of the hub.
        needs: what else it needs of the hub.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, engine: Engine, callbacks: Callbacks, tasks: Tasks, state: State, needs: Needs
    ) -> None:
        self._engine = engine
        self._callbacks = callbacks
        self._tasks = tasks
        self._state = state
        self._needs = needs
        self._watcher: Watcher | None = None
        self._new_id: Callable[[], str] = IdFactory(9)
        self.per_user: PerUser = PerUser(engine, needs.settings, needs.refusals)
        self._limits = ConnectionLimits()
        # Whether any client has had an id of the application's; and those who are let into a full
        # hub to find out whose connection they replace.
        self._names_clients = False
        self._returning: set[Client] = set()
        # Since when each async `authenticate` is under way, the longest first; and who was
        # disconnected meanwhile: when, the close code and the reason.
        self._authenticating: dict[Client, float] = {}
        # Connections that speak wsc.1 and are no clients yet (docs/wire.md), and those of them
        # whose hello is awaited.
        self._aware: set[Client] = set()
        self._greeting: dict[Client, asyncio.Future[None]] = {}
        # Their requests, which know why they are refused.
        self._requests: dict[Client, Request] = {}
        self._sent_away: dict[str, tuple[float, int, str]] = {}
        # Clients whose identity ends: when by the wall clock, and their timer.
        self._expiring: dict[Client, tuple[float, int]] = {}
        self._expiries: Timers[Client] = Timers(self._expired)

    # --- its life ---

    def set_limits(self, settings: HubConfig) -> None:
        """New settings hold."""
        self._limits.set(
            settings.max_connections_per_address,
            settings.connection_rate,
            settings.connection_rate_per_address,
        )
        self.per_user.most = settings.max_connections_per_user

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub runs on this loop."""
        self._expiries.attach(loop)

    def end(self) -> None:
        """The hub has stopped: no identity ends any more."""
        self._expiries.clear()

    def authenticating(self) -> list[Client]:
        """Connections whose async `authenticate` is under way."""
        return list(self._authenticating)

    def forget(self) -> None:
        """The loop was closed: its connections went with it."""
        for client in self._authenticating:
            forget(client)
        self._returning.clear()
        self._aware.clear()
        self._authenticating.clear()
        self._requests.clear()
        self._sent_away.clear()
        self._expiring.clear()
        self._limits.clear()
        self._expiries = Timers(self._expired)

    def name_clients(self, prefix: str) -> None:
        """Has the ids of clients that have none of their own begin so."""
        make = IdFactory(9)
        self._new_id = (lambda: prefix + make()) if prefix else make

    def watch(self, watcher: Watcher) -> None:
        """Has this hear of clients from now on."""
        self._watcher = watcher

    # --- before the 101, asked by the policy ---

    def admit(self, remote_address: str) -> bool:
        """Whether the limits per address and per second let in one more, which is then counted."""
        over = self._limits.admit(remote_address) if remote_address else None
        if over is None:
            return True
        counted = "address" if over == "max_connections_per_address" else "rate"
        self._needs.refusals.over_limit(counted, remote_address, over)
        return False

    def is_full(self) -> bool:
        """Whether there are `max_connections`, with those whose callbacks outlast them."""
        outlasting = len(self._callbacks.inboxes.outlasting)
        return self._engine.connections + outlasting >= self._needs.settings().max_connections

    def may_return(self) -> bool:
        """Whether a full hub finds out who it is: somebody may be replaced, and few are asked."""
        most_connections = self._needs.settings().max_connections
        most = min(_MOST_RETURNING, max(_LEAST_RETURNING, most_connections // 100))
        return self._names_clients and len(self._returning) < most

    def find_out(
        self, client: Client, pending: Awaitable[Any], full: bool, request: Request
    ) -> None:
        """An async `authenticate` is to find out who this connection is, once it is made."""
        self._requests[client] = request
        if full:
            self._returning.add(client)
        set_pending_identity(client, pending)

    def reason_against(self, identity: Identity) -> str | None:
        """Why a client may not have an identity that `authenticate` gave, if it may not."""
        return self._reason_against(identity, self.client_of(identity))

    def _reason_against(self, identity: Identity, older: Client | None) -> str | None:
        """`reason_against`; `older` is the client that this one would replace."""
        if identity.expires_at is not None and identity.expires_at <= clock.time():
            return "authentication expired"
        if older is not None and older.user_id != identity.user_id:
            log.warning(
                "client id %a of user %a is refused to user %a: authenticate has to make ids that "
                "no two users share",
                older.id,
                older.user_id,
                identity.user_id,
                extra=about(older, "client_id_taken"),
            )
            return "authentication failed"
        return None

    def await_hello(self, client: Client) -> None:
        """The connection speaks wsc.1: it becomes a client when its hello has come."""
        self._aware.add(client)

    def client_of(self, identity: Identity | None) -> Client | None:
        """The connected client that one of this identity would replace."""
        if identity is None or identity.client_id is None:
            return None
        other: Client | None = self._engine.get_client_by_id(identity.client_id)
        return other

    def drop_identity(self, client: Client) -> None:
        """Nobody will ask who this connection belongs to."""
        self._returning.discard(client)
        self._aware.discard(client)
        self._requests.pop(client, None)
        pending = pending_identity(client)
        if pending is None:
            return
        set_pending_identity(client, None)
        if inspect.iscoroutine(pending):
            pending.close()
        elif asyncio.isfuture(pending):
            pending.cancel()

    # --- from the 101 to the client ---

    def connected(self, client: Client) -> None:
        """See `upward.Admission`."""
        aware = bool(self._aware) and client in self._aware
        if is_unnamed(client) and self._state.accepting and not aware:
            if client.remote_address:
                self._limits.connected(client.remote_address)
            enter_unnamed(client, self._new_id())
            if self._watcher is not None:
                self._watcher.entered(client)
            self._callbacks.connected(client)
            return
        if address_came_late(client) and not self.admit(client.remote_address):
            self.drop_identity(client)
            self._turn_away(client, CLOSE_TRY_AGAIN, "too many connections")
            return
        if client.remote_address:
            self._limits.connected(client.remote_address)
            set_counted(client, True)
        pending = pending_identity(client)
        if (pending is None or isinstance(pending, Identity)) and not aware:
            if pending is not None:
                set_pending_identity(client, None)
            self._enter(client, pending)
            return
        hold_input(client)
        task = self._tasks.spawn(self._authenticate(client, pending), copy_context(client))
        set_authenticating(client, task)
        self._authenticating[client] = clock.monotonic()
        task.add_done_callback(lambda _: self._authenticating.pop(client, None))

    def greeted(self, client: Client) -> None:
        """See `upward.Admission`."""
        waiting = self._greeting.get(client)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _hello(self, client: Client) -> bool:
        """Waits for the hello of a client that speaks wsc.1; whether it came in time."""
        if has_greeted(client):
            return True
        timeout = self._needs.settings().handshake_timeout
        self._greeting[client] = asyncio.get_running_loop().create_future()
        hear_hello(client)
        try:
            async with time_limit(self._engine.deadlines, timeout) as limit:
                await self._greeting[client]
        except TimeoutError:
            if not limit.expired():
                raise
            self._engine.count_limit("handshake_timeout")
            self._needs.refusals.refuse(
                "request",
                client.remote_address,
                "its hello (wsc.1) did not come within handshake_timeout, %.3g s",
                timeout,
            )
            return False
        finally:
            del self._greeting[client]
        return True

    async def _authenticate(
        self, client: Client, pending: Awaitable[Any] | Identity | None
    ) -> None:
        """Waits for an async `authenticate`, and for a hello; lets the client in or closes it."""
        set_pending_identity(client, None)
        request = self._requests.pop(client, None)
        identity: Identity | None = None
        anonymous, greeted = pending is None, True
        try:
            if pending is None or isinstance(pending, Identity):
                identity = pending
            else:
                identity = await self._identity(pending, client, request)
            if client in self._aware and (identity is not None or anonymous):
                greeted = await self._hello(client)
        except BaseException as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the client left, or the hub is stopping
            set_authenticating(client, None)
            self._engine.count_rejected("auth")
            self._callbacks.report(client, error)
            client.disconnect(1011)
            return
        set_authenticating(client, None)
        self._aware.discard(client)
        if not is_connecting(client):
            return  # it left, or the hub is stopping
        keep_context(client)
        if not greeted:
            client.disconnect(1008, "no hello")
            return
        if identity is None and not anonymous:
            client.disconnect(CLOSE_UNAUTHENTICATED, "authentication failed")
            return
        if identity is not None:
            since = self._authenticating.get(client, math.inf)
            when, code, text = self._sent_away.get(identity.user_id, (-math.inf, 0, ""))
            if when >= since:
                self._refuse(client, code, text)
                return
        self._enter(client, identity, is_aware(client))  # one that speaks wsc.1 comes this way
        release_input(client)

    async def _identity(
        self, pending: Awaitable[Any], client: Client, request: Request | None
    ) -> Identity | None:
        """The answer of `authenticate`; a refusal is counted and told."""
        timeout = self._needs.settings().authentication_timeout
        identity: Identity | None = None
        try:
            async with time_limit(self._engine.deadlines, timeout) as limit:
                identity = await pending
        except TimeoutError:
            if not limit.expired():
                raise  # its own, not ours
            self._needs.refusals.timed_out(client.remote_address)
            return None
        if identity is not None:
            check_identity(identity)
        elif is_connecting(client):
            reason = None if request is None else request.refusal
            self._needs.refusals.unauthenticated(client.remote_address, reason)
        return identity

    def _refuse(self, client: Client, code: int, reason: str) -> None:
        self._needs.refusals.unauthenticated(client.remote_address, reason)
        client.disconnect(code, reason)

    def _enter(self, client: Client, identity: Identity | None, aware: bool = False) -> None:
        if not self._state.accepting:
            client.disconnect(1001, "server shutdown")
            return
        older = self.client_of(identity)
        returning = bool(self._returning) and client in self._returning
        if returning:
            self._returning.discard(client)
        if identity is None:
            client_id = user_id = self._new_id()
            data = device_id = None
        else:
            reason = self._reason_against(identity, older)
            if reason is not None:
                self._refuse(client, CLOSE_UNAUTHENTICATED, reason)
                return
            if returning and older is None:
                self._needs.refusals.over_limit("full", client.remote_address, "max_connections")
                client.disconnect(CLOSE_TRY_AGAIN, "too many connections")
                return
            client_id = identity.client_id or self._new_id()
            user_id, data = identity.user_id, identity.user_data
            device_id = identity.device_id
            self._names_clients = self._names_clients or identity.client_id is not None
            if not self.per_user.admits(client, user_id, older):
                return
            if identity.expires_at is not None:
                self._expire_at(client, identity.expires_at)
            if older is not None:
                self._replace(older)
        enter(client, client_id, user_id, data, device_id)
        if self._watcher is not None:
            self._watcher.entered(client)
        if aware:
            self._needs.greet(client)
        self._callbacks.connected(client)

    def _replace(self, older: Client) -> None:
        self._engine.count_replaced()
        reason = "replaced by a newer connection"
        if self._engine.connections > self._needs.settings().max_connections:
            self._turn_away(older, CLOSE_REPLACED, reason)
        else:
            # It is the same user's: what the user has sent over it is heard.
            send_away(older, CLOSE_REPLACED, reason)

    def _turn_away(self, client: Client, code: int, reason: str) -> None:
        """Closes a connection without waiting for an answer to its close frame."""
        send_away(client, code, reason)
        if self._engine.loop is not None:
            self._engine.loop.call_soon(abort, client, context=self._engine.new_context())

    # --- the end of an identity, and of a connection ---

    def _expire_at(self, client: Client, when: float) -> None:
        # By the wall clock, which is looked at again when the time has come: it may be set.
        assert self._engine.loop is not None
        due = self._engine.loop.time() + max(0.0, min(when - clock.time(), _LONGEST_WAIT))
        self._expiring[client] = when, self._expiries.set(client, due)

    def _expired(self, client: Client) -> None:
        expiry = self._expiring.pop(client, None)
        if expiry is None or self._engine.loop is None:
            return
        if expiry[0] > clock.time():
            self._expire_at(client, expiry[0])
        else:
            client.disconnect(CLOSE_UNAUTHENTICATED, "authentication expired")

    def disconnect_user(self, user_id: str, code: int, reason: str) -> int:
        """Closes all connections of a user here, also one that turns out to be the user's.

        Args:
            user_id: the user.
            code, reason: of the close frames; checked.

        Returns:
            int: how many clients it was.
        """
        clients = self._engine.get_clients_by_user(user_id)
        for client in clients:
            client.disconnect(code, reason)
        self._callbacks.inboxes.forget_messages(user_id)
        self._send_away_who_comes(user_id, code, reason)
        return len(clients)

    def disconnect_everywhere(self, user_id: str, code: int, reason: str) -> int:
        """`disconnect_user` on each hub; returns how many clients it was here."""
        clients = self.disconnect_user(user_id, code, reason)
        self._needs.disconnect_elsewhere(user_id, code, reason)
        return clients

    def _send_away_who_comes(self, user_id: str, code: int, reason: str) -> None:
        """Keeps in mind that a user was disconnected, for those who are authenticated now."""
        away = self._sent_away
        longest = next(iter(self._authenticating.values()), math.inf)
        while away and next(iter(away.values()))[0] < longest:
            del away[next(iter(away))]
        if self._authenticating:
            away.pop(user_id, None)
            away[user_id] = clock.monotonic(), code, reason

    def disconnected(self, client: Client, announced: bool) -> None:
        """See `upward.Admission`."""
        try:
            expiry = self._expiring.pop(client, None) if self._expiring else None
            if expiry is not None:
                self._expiries.cancel(client, expiry[1])
            if not announced:
                self.drop_identity(client)
            if announced and self._watcher is not None:
                self._watcher.left(client)
        finally:
            # Others wait for the end of this one, also where something above went wrong.
            if self._engine.connections == 0:
                self._needs.nobody_left()
            if announced:
                self._callbacks.disconnected(client)
            if not self._callbacks.limit(client):
                self.leave_address(client)

    def leave_address(self, client: Client) -> None:
        """A client and its callbacks have gone: it is none of its address any more."""
        if set_counted(client, False):
            self._limits.gone(client.remote_address)
