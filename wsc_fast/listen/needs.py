"""The things that this room needs of its hub: the full list, so that it knows no hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsc_fast._core.connection import Client
from wsc_fast._core.poller import Poller
from wsc_fast._core.timers import Timers
from wsc_fast.config import HubConfig


@dataclass(frozen=True, slots=True)
class Needs:
    """The things that a hub gives to this room.

    Attributes:
        settings: those that hold now; a running hub takes new ones.
        deadlines: the timers on which the handshakes end.
        make_connection: makes the protocol of an accepted connection.
        make_poller: makes what accepts, reads and writes on the running loop.
        count_limit: counts that a limit was met; takes the name of its setting.
        count_rejected: counts a connection that was not let in; takes the reason, of those that
            HubStats has.
        report: tells the application of an error; no client is named with it.
        log_out_of_files: logs that no descriptor is left, once in a second at most.
    """

    settings: Callable[[], HubConfig]
    deadlines: Timers[Callable[[], object]]
    make_connection: Callable[[], Client]
    make_poller: Callable[[], Poller]
    count_limit: Callable[[str], None]
    count_rejected: Callable[[str], None]
    report: Callable[[BaseException], None]
    log_out_of_files: Callable[[], None]
