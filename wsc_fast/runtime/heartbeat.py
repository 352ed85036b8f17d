"""The heartbeat: who is silent is asked, and who stays silent is closed.

One timer for all clients: each tick looks at the next few, so that pings are spread. After the loop
stood still, no client was asked or heard meanwhile: every timeout is longer by that time, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from wsc_fast._core import clock
from wsc_fast._core.engine import Engine
from wsc_fast._core.timers import TICK
from wsc_fast.config import HubConfig
from wsc_fast.log import log

# How often a client is looked at, as a part of the heartbeat interval, and the heartbeat's tick.
_SWEEPS_PER_INTERVAL = 5
_LONGEST_TICK = 1.0
# Seconds behind its time from which on a heartbeat says that the loop stood still.
_STOOD_STILL = 0.1


class Heartbeat:
    """The heartbeat of one hub.

    Args:
        engine: whose clients are looked at.
        settings: those that hold now.
        look: is called at each beat, at least once a second.

    Thread-safety: the loop's thread.
    """

    def __init__(
        self, engine: Engine, settings: Callable[[], HubConfig], look: Callable[[], None]
    ) -> None:
        self._look = look
        self._engine = engine
        self._settings = settings
        self._due = math.inf
        # How long the loop did no work when it last stood still, and until when.
        self._stood_still = 0.0
        self._stood_still_until = -math.inf

    def begin(self) -> None:
        """Beats from now on, until the engine's deadlines are cleared."""
        self._due = math.inf
        self._beat()

    def _beat(self) -> None:
        engine, settings = self._engine, self._settings()
        sweep = settings.heartbeat_interval / _SWEEPS_PER_INTERVAL
        tick = min(_LONGEST_TICK, max(TICK, sweep / 10))
        assert engine.loop is not None
        now = clock.monotonic()
        late = now - self._due
        if late > max(_STOOD_STILL, self._patience(now, settings.heartbeat_timeout)):
            self._stood_still, self._stood_still_until = late, now
        engine.set_timeouts(
            settings.heartbeat_timeout + self._patience(now, settings.heartbeat_timeout),
            settings.message_timeout + self._patience(now, settings.message_timeout),
        )
        self._due = now + tick
        engine.deadlines.set(self._beat, engine.loop.time() + tick)
        engine.sweep(min(1.0, tick / sweep))
        self._look()
        log.tell_counts()

    def _patience(self, now: float, timeout: float) -> float:
        """The time added to a timeout, until one timeout has passed since the loop stood still."""
        return self._stood_still if now - self._stood_still_until <= timeout else 0.0
