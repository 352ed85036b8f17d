"""All that this room needs of the hub that it delivers for, so that it knows no hub."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from wsc_fast._core.engine import Engine
from wsc_fast.config import HubConfig
from wsc_fast.delivery.others import Others
from wsc_fast.stores.base import OfflineStore
from wsc_fast.upgrade.admission import Watcher


class Paused(Protocol):
    """A client that is not read, since too many of its messages wait for an async callback."""

    def look_again(self) -> None:
        """An acknowledgement is awaited from now on, perhaps by that callback."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to this room.

    Attributes:
        engine: the loop and the clients; messages go out through it.
        settings: those that hold now; a running hub takes new ones.
        knows_users: whether the hub knows a user again, which needs `authenticate`.
        watch_clients: has an object hear of clients that are open, and of those that have gone.
        paused: clients that are not read, and whose acknowledgements are not heard.
        report: tells the application of an error; no client is named with it.
        others: the other hubs on the bus; None where this hub is alone.
        store_on_bus: makes an offline store where the bus keeps its data; None: it has none.
    """

    engine: Engine
    settings: Callable[[], HubConfig]
    knows_users: Callable[[], bool]
    watch_clients: Callable[[Watcher], None]
    paused: Collection[Paused]
    report: Callable[[BaseException], None]
    others: Callable[[], Others | None]
    store_on_bus: Callable[[], OfflineStore | None]
