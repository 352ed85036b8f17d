"""The hubs on the bus: how many there are, and which have come and which have gone.

They are asked for each second while the application hears of them, since a hub that was killed says
nothing, and every five seconds for their number alone. A bus that has lost its data knows them
again within a few seconds, so one that is missing has gone only if it is missing for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from wsc_fast.bus.base import NodeInfo
from wsc_fast.cluster.presence import Needs, call_all
from wsc_fast.errors import BusError, HubStateError

# Seconds after which a hub that is missing has gone.
SETTLE = 3.0
# Seconds between two looks for their number alone.
EVERY = 5.0


class Nodes:
    """The hubs that one hub knows of.

    Args:
        needs: of the hub.
        own: the name of the hub.
        callbacks: of the application, for `on_node`; may grow.

    Attributes:
        seen: hubs that the bus has told of last, this one included; 0 while it does not answer.

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
        self._asked_at = -EVERY
        self.seen: int = 0

    def look(self, now: float) -> None:
        """Asks for them; to be called each second or so.

        Args:
            now: on the loop's clock.
        """
        is_due = self._callbacks or now - self._asked_at >= EVERY
        if not is_due or self._needs.bus() is None or self._asking is not None:
            return
        self._asked_at = now
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
        self._asked_at = -EVERY
        self.seen = 0

    async def _ask(self) -> None:
        bus = self._needs.bus()
        if bus is None:
            return
        try:
            nodes = await bus.nodes()
        except (BusError, HubStateError):
            self.seen = 0  # nobody knows; the bus writes a line of its own
            return
        self.seen = len(nodes)
        if not self._callbacks:
            return
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
