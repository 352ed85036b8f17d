"""The hubs and clients of one test: on the test's own loop, or in a thread for a test without one.

The port is known before a hub runs, since its socket is bound first. On the loop of the test a hub
starts when it is first needed there: by a client, at the latest where the test begins.
"""

from __future__ import annotations

import functools
import inspect
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from wsc_fast import Hub
from wsc_fast.testing.blocking_client import BlockingClient
from wsc_fast.testing.clock import Clock
from wsc_fast.testing.hub_client import HubClient
from wsc_fast.testing.hubs import STOP_TIMEOUT, assert_nothing_left
from wsc_fast.testing.threads import LoopThread


class Stage:
    """The hubs and clients of one test.

    Args:
        is_async: whether the test is a coroutine, so that hubs run on its loop.
        clock: that all loops follow; None for none.

    Attributes:
        thread: of the hubs of a test that is no coroutine; None for one that is.

    Thread-safety: the thread of the test.
    """

    def __init__(self, is_async: bool, clock: Clock | None) -> None:
        self.thread: LoopThread | None = None if is_async else LoopThread()
        self._clock = clock
        self._planned: list[tuple[Hub, dict[str, Any]]] = []
        self._running: list[Hub] = []
        self._ports: dict[Hub, int] = {}
        self._clients: list[HubClient] = []
        self._ends: list[Callable[[], Awaitable[None]]] = []

    def plan(self, hub: Hub, options: Mapping[str, Any]) -> None:
        """Gives a hub a port; it starts in `start`.

        Args:
            hub: that does not run.
            options: of `Hub.start`.
        """
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self._ports[hub] = sock.getsockname()[1]
        self._planned.append((hub, {"sock": sock, **options}))

    def port_of(self, hub: Hub) -> int:
        """The port of a hub, which may not run yet.

        Args:
            hub: of this stage.
        """
        return self._ports[hub]

    async def start(self) -> None:
        """Starts the hubs that do not run yet, on the running loop."""
        if self._clock is not None:
            self._clock.attach()
        while self._planned:
            hub, options = self._planned.pop(0)
            await hub.start(**options)
            self._running.append(hub)

    def at_end(self, end: Callable[[], Awaitable[None]]) -> None:
        """Has an async function called once all hubs have stopped."""
        self._ends.append(end)

    async def connect(self, hub: Hub, path: str, **options: Any) -> HubClient:
        """Connects a client, which is given up with the test.

        Args:
            hub: of this stage.
            path: of its endpoint.
            **options: of `HubClient.connect`.
        """
        await self.start()
        client = await HubClient.connect(hub, path, **options)
        client.on_reconnect = self._clients.append
        self._clients.append(client)
        return client

    def connect_blocking(self, hub: Hub, path: str, **options: Any) -> BlockingClient:
        """`connect` in the thread."""
        assert self.thread is not None
        return BlockingClient(self.thread.call(self.connect(hub, path, **options)), self.thread)

    async def stop(self) -> None:
        """Ends the clients, then the hubs.

        Raises:
            AssertionError: a hub holds a connection or a client after its stop.
        """
        for client in self._clients:
            client.drop()
        hubs, self._running = self._running, []
        for hub in hubs:
            await hub.stop(timeout=STOP_TIMEOUT)
        ends, self._ends = self._ends, []
        for end in ends:
            await end()
        for hub in hubs:
            assert_nothing_left(hub)

    def close(self) -> None:
        """Ends what is left: all of it for a test in a thread, else sockets that no hub took."""
        if self.thread is not None:
            try:
                self.thread.call(self.stop())
            finally:
                self.thread.close()
        for _, options in self._planned:
            with suppress(OSError):
                options["sock"].close()

    def around(self, test: Callable[..., Any]) -> Callable[..., Any]:
        """The test, with the hubs started before it and stopped behind it on its loop.

        Args:
            test: a coroutine function.
        """

        @functools.wraps(test)
        async def within(*args: Any, **kwargs: Any) -> Any:
            try:
                await self.start()
                return await test(*args, **kwargs)
            finally:
                await self.stop()

        return within


def is_async(test: Callable[..., Any]) -> bool:
    """Whether a test is a coroutine function."""
    return inspect.iscoroutinefunction(test)
