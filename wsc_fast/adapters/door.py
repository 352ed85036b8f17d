"""The interface for adapters: another server than the hub's own hands over its connections.

An adapter opens the door (`open`), asks what becomes of a request (`accept`), and makes the
connection of an accepted one: `Client` is a picows listener and an asyncio.BufferedProtocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from picows import WSUpgradeResponse

from wsc_fast._core.connection import Client
from wsc_fast._core.engine import Engine
from wsc_fast._core.handshake import RequestHead
from wsc_fast.config import HubConfig
from wsc_fast.errors import HubStateError
from wsc_fast.runtime.life import Life
from wsc_fast.runtime.state import State
from wsc_fast.upgrade.policy import Policy
from wsc_fast.upgrade.routes import RouteCall

# Raises ConfigError for a setting that cannot hold on the server whose connections are taken.
Check = Callable[[HubConfig], None]


class Door:
    """The door of one hub.

    Args:
        engine, state, life, policy: of the hub.
        settings: those that hold now.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        state: State,
        life: Life,
        policy: Policy,
        settings: Callable[[], HubConfig],
    ) -> None:
        self._engine = engine
        self._state = state
        self._life = life
        self._policy = policy
        self._settings = settings

    async def attach(self, check: Check, tls: bool) -> None:
        """See `Hub.attach`."""
        self._life.check_not_running()
        self._take(check)
        await self._life.attach(tls)

    def open(self, check: Check) -> None:
        """Has the hub take connections of the server whose loop runs.

        A hub that does not run is attached to that loop. One that was stopped stays stopped.

        Args:
            check: of the settings.

        Raises:
            ConfigError: a setting cannot hold there.
            HubStateError: the hub belongs to another loop.
        """
        self._life.forget_closed_loop()
        loop = self._engine.loop
        if loop is None:
            if not self._state.ended:
                self._take(check)
                self._life.attach_at_once(tls=False)
        elif loop is asyncio.get_running_loop():
            self._take(check)
        else:
            raise HubStateError("the hub belongs to another loop than this server")

    def _take(self, check: Check) -> None:
        if self._life.check_settings is None:
            check(self._settings())
            self._life.check_settings = check

    def new_client(self) -> Client:
        """The client that a connection becomes if its request is accepted."""
        return Client(self._engine)

    def accept(
        self,
        head: RequestHead,
        client: Client,
        remote_address: str,
        transport: asyncio.Transport | None,
    ) -> WSUpgradeResponse | dict[str, str]:
        """Decides on a request: the headers for its 101, or the answer that it gets instead.

        Args:
            head: the request.
            client: what the connection would be; told who it is.
            remote_address: of the peer; "" where it is known only once the connection is made.
            transport: the connection, where it is known already.
        """
        decided = self._policy.accept(head, client, remote_address, transport)
        if isinstance(decided, RouteCall):
            return self._policy.call_at_once(decided, client)
        return decided

    def refuse(self, limit: str | None = None) -> None:
        """Counts a request that cannot be read.

        Args:
            limit: the setting that it does not keep to, if there is one.
        """
        if limit is not None:
            self._engine.count_limit(limit)
        self._engine.count_rejected("request")
