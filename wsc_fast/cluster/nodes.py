"""The other hubs on the bus, as the application hears of them: which have come and which have gone.

They are asked for each second while somebody hears, since a hub that was killed says nothing. A bus
that has lost its data knows them again within a few seconds, so one that is missing has gone only
if it is missing for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from wsc_fast.bus.base import NodeInfo
from wsc_fast.cluster.presence import Needs, call_all
from wsc_fast.errors import BusError, HubStateError

# Seconds after which a hub that is missing has gone.
SETTLE = 3.0


class Nodes:
    """The other hubs that one hub knows of.

    Args:
        needs: of the hub.
        own: the name of the hub.
        callbacks: of the application, for `on_node`; may grow.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, needs: Needs, own: Callable[[], str], callbacks: Sequence[Callable[..., object]]
    ) -> None:
        self._needs = needs
        self._own = own
        self._callbacks = callbacks
        self._known: dict[str, NodeInfo] = {}
        # Since when known ones are missing.
        self._missing: dict[str, float] = {}
        self._asking: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Asks for them; to be called each second or so."""
        bus = self._needs.bus()
        if not self._callbacks or bus is None or self._asking is not None:
            return
        self._asking = self._needs.tasks.spawn(self._ask(), self._needs.engine.new_context())
        self._asking.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        if self._asking is task:
            self._asking = None

    def forget(self) -> None:
        """The hub has stopped."""
        self._known = {}
        self._missing = {}
        self._asking = None

    async def _ask(self) -> None:
        bus = self._needs.bus()
        if bus is None:
            return
        try:
            nodes = await bus.nodes()
        except (BusError, HubStateError):
            return  # nobody knows; the bus writes a line of its own
        found = {each.name: each for each in nodes if each.name != self._own()}
        changes = [(each, True) for each in found.values() if each.name not in self._known]
        self._known |= found
        changes += [(self._known.pop(name), False) for name in self._gone(found)]
        for node, is_up in changes:
            await self._tell(node, is_up)

    async def _tell(self, node: NodeInfo, is_up: bool) -> None:
        telling = call_all(self._needs, self._callbacks, lambda: (node, is_up))
        if telling is not None:
            await telling

    def _gone(self, found: dict[str, NodeInfo]) -> list[str]:
        now = asyncio.get_running_loop().time()
        missing = {name: self._missing.get(name, now) for name in self._known if name not in found}
        gone = [name for name, since in missing.items() if now - since >= SETTLE]
        self._missing = {name: since for name, since in missing.items() if name not in gone}
        return gone
