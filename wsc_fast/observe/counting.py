"""The counters and gauges of a hub, read from its parts."""

from __future__ import annotations

from wsc_fast._core.engine import Engine
from wsc_fast.cluster.counters import Counters
from wsc_fast.cluster.node import Node
from wsc_fast.delivery.delivery import Delivery
from wsc_fast.runtime.callbacks import Callbacks
from wsc_fast.runtime.life import Life
from wsc_fast.stats import HubStats, snapshot


class Counting:
    """The counters and gauges of one hub.

    Args:
        engine, callbacks, delivery, life, node: of the hub.

    Attributes:
        cluster: the counters of kept rooms and the bus, which HubStats has not.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self,
        engine: Engine,
        callbacks: Callbacks,
        delivery: Delivery,
        life: Life,
        node: Node,
    ) -> None:
        self.cluster: Counters = node.counters
        self._node = node
        self._engine = engine
        self._callbacks = callbacks
        self._delivery = delivery
        self._life = life

    def snapshot(self) -> HubStats:
        """See `Hub.get_stats`."""
        return snapshot(
            self._engine.read_counters(),
            connections=self._engine.connections,
            start_time=self._life.start_time,
            uptime=self._life.uptime(),
            own={**self._callbacks.counters(), "nodes": self._node.nodes_seen()},
            delivery=self._delivery.counters(),
        )

    def reset(self) -> None:
        """See `Hub.reset_stats`."""
        self._engine.reset_counters()
        self._delivery.reset_counters()
        self._callbacks.reset_counters()
        self.cluster.reset()
