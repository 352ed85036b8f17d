"""The users who connect and disconnect, on all hubs, as the application hears of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from wsc_fast.bus.base import EVERYBODY, Bus
from wsc_fast.cluster import views
from wsc_fast.cluster.presence import Needs, call_all


class Online:
    """The users of all hubs, as one hub follows them from its first callback on.

    Args:
        needs: of the hub.
        callbacks: of the application, for `on_users`; may grow.

    Thread-safety: the loop's thread.
    """

    def __init__(self, needs: Needs, callbacks: Sequence[Callable[..., object]]) -> None:
        self._needs = needs
        self._callbacks = callbacks
        self._views = views.Views(self._bus, self._tell, views.SETTLE, views.PERIOD)

    def _bus(self) -> Bus:
        bus = self._needs.bus()
        assert bus is not None
        return bus

    def look(self) -> None:
        """Follows them once somebody hears; to be called each second or so."""
        if self._callbacks and self._needs.bus() is not None:
            self._views.follow(EVERYBODY)

    def heard(self, lines: str) -> None:
        """Users have connected and disconnected; see `Handler.envelope`."""
        self._views.heard(EVERYBODY, lines)

    def subscribed(self, again: bool) -> None:
        """See `Handler.subscribed`."""
        self._views.subscribed(EVERYBODY, again)

    def forget(self) -> None:
        """The hub has stopped."""
        self._views.forget()

    def _tell(self, room_id: str, online: set[str], offline: set[str]) -> asyncio.Task[None] | None:
        return call_all(self._needs, self._callbacks, lambda: (set(online), set(offline)))
