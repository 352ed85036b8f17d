"""A worker of `serve --workers`, as the command sees it that serves in the worker's process."""

from __future__ import annotations

import asyncio
import socket

from wsc_fast import Hub
from wsc_fast.bus.local import PROGRAMS, LocalBus, find_program
from wsc_fast.cli.output import UsageFailure
from wsc_fast.log import log
from wsc_fast.runtime.cores import share_cores

# Seconds between two looks whether the hub listens.
_LOOK = 0.01


class Place:
    """The place of this process among the workers.

    Args:
        text: NUMBER:COUNT:DESCRIPTOR; the count is that of the workers, the descriptor the worker's
            end of the socket to workers.py.

    Attributes:
        number: from 1 on.
    """

    def __init__(self, text: str) -> None:
        number, count, descriptor = map(int, text.split(":"))
        self.number: int = number
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        share_cores(count)

    def prepare(self, hub: Hub, *, choose_bus: bool) -> None:
        """Has the hub say when it listens, and gives it a bus where it needs one.

        Args:
            hub: has not started.
            choose_bus: a hub without a bus gets the local one.

        Raises:
            UsageFailure: there is no bus for it.
        """
        if hub.bus is None and choose_bus:
            self._choose_bus(hub)
        if isinstance(hub.bus, LocalBus):
            # The answer comes once the server is the watching process's.
            self._socket.sendall(b"bus\n")
            self._socket.recv(1)
        hub.on_startup(lambda: self._begin(hub))

    def _choose_bus(self, hub: Hub) -> None:
        missing = "" if find_program() else f"{' or '.join(PROGRAMS)} (apt install redis-server)"
        if not missing:
            try:
                hub.set_bus("local")
            except ImportError:
                missing = "redis-py (pip install 'wsc_fast[redis]')"
        if missing:
            raise UsageFailure(
                "the hub has no bus, so that each worker would reach its own clients only. Install "
                f"{missing}, give the hub a RedisBus, or take it as it is with --no-bus"
            )
        if self.number == 1:
            log.info(
                'the hub has no bus: the workers share one on this machine, as with bus="local"',
                extra={"event": "local_bus_chosen"},
            )

    def _begin(self, hub: Hub) -> None:
        hub.create_task(self._tell_ready(hub), name="tell_ready")

    async def _tell_ready(self, hub: Hub) -> None:
        # The hub tells nobody that it listens.
        while not hub.get_stats().uptime:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(self._socket, b"ready\n")
