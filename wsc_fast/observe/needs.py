"""The things that the room `observe` needs of a hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsc_fast._core.engine import Engine
from wsc_fast._core.histogram import Histogram
from wsc_fast.observe.counting import Counting
from wsc_fast.runtime.callbacks import Wrapper
from wsc_fast.runtime.life import Companion
from wsc_fast.runtime.threads import ThreadCalls
from wsc_fast.upgrade.routes import Route


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to this room.

    Attributes:
        engine: the loop, the clients and the histograms.
        calls: of other threads.
        counting: the counters and gauges.
        stores: how long the offline store took, by operation.
        add_route: serves a path.
        accompany: has a companion begin and end with the hub.
        wrap_callbacks: has `wrapper(event, fn)` stand for each callback of the application, those
            that are set already and those to come.
        watch_upgrades: has `fn(headers)` called in the context of each client to be.
        report: tells the application of an error; no client is named with it.
    """

    engine: Engine
    calls: ThreadCalls
    counting: Counting
    stores: Callable[[], dict[str, Histogram]]
    add_route: Callable[[str, Route], object]
    accompany: Callable[[Companion], None]
    wrap_callbacks: Callable[[Wrapper], None]
    watch_upgrades: Callable[[Callable[[Any], None]], None]
    report: Callable[[BaseException], None]
