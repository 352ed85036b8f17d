"""Log lines about the life of a hub: begun, draining, stopped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import cache

from wsc_fast.log import log


def tell_begun(
    loop: asyncio.AbstractEventLoop,
    what: str,
    hub: str,
    places: tuple[str, ...] = (),
    scheme: str = "",
    path: str = "",
) -> None:
    """The hub serves.

    Args:
        loop: that it runs on.
        what: the first words of the line.
        hub: its name.
        places: the addresses that it listens on; none where another server does.
        scheme: in front of each.
        path: of the WebSocket endpoint; "" where it is not known.
    """
    kind = type(loop).__module__.partition(".")[0]
    served = " and ".join(f"{scheme}{place}{path}" for place in places) or path
    log.info(
        "%s (process %d, hub %s, wsc_fast %s on %s)",
        f"{what} {served}" if served else what,
        os.getpid(),
        hub,
        _version(),
        kind,
        extra={
            "event": "listening" if places else "attached",
            "listen": list(places),
            "path": path,
            "tls": scheme == "wss://",
            "pid": os.getpid(),
            "hub": hub,
            "version": _version(),
            "loop": kind,
        },
    )


def tell_threads(wanted: int, there: int) -> None:
    """A hub has begun with so many threads for its sends."""
    if there < wanted:
        log.warning(
            "send_threads: %d threads were asked for, and %d are there: the system allows no more, "
            "or it is not Linux. The loop's thread sends what they would have",
            wanted,
            there,
            extra={"event": "send_threads_missing", "setting": "send_threads"},
        )


def tell_draining(clients: int, period: float) -> None:
    """A drain begins with so many clients."""
    log.info(
        "draining: %d clients are sent away (1012) within %.3g s",
        clients,
        period,
        extra={"event": "draining", "clients": clients, "seconds": period},
    )


def tell_drained(seconds: float, clients: int, left: int) -> None:
    """A drain has ended, which began with so many clients."""
    log.info(
        "drained in %.3g s: %d clients were sent away, %d connections are left",
        seconds,
        clients,
        left,
        extra={
            "event": "drained",
            "clients": clients,
            "left": left,
            "seconds": round(seconds, 3),
        },
    )


def tell_stopped(
    seconds: float, connections: int, aborted: int, uptime: float, counters: Mapping[str, int]
) -> None:
    """The hub has stopped.

    Args:
        seconds: that the stop took.
        connections: that there were when it began.
        aborted: how many of them did not answer in time.
        uptime: seconds that the hub ran.
        counters: of the engine.
    """
    log.tell_counts(at_once=True)
    log.info(
        "stopped in %.2f s: %d connections were closed, %d of them without an answer in time; "
        "it ran for %.1f s, with %d connections, %d messages received and %d sent",
        seconds,
        connections,
        aborted,
        uptime,
        counters["connections"],
        counters["messages_in"],
        counters["messages_out"],
        extra={
            "event": "stopped",
            "seconds": round(seconds, 6),
            "closed": connections,
            "aborted": aborted,
            "uptime": round(uptime, 3),
            "connections_total": counters["connections"],
            "messages_in": counters["messages_in"],
            "messages_out": counters["messages_out"],
        },
    )


@cache
def _version() -> str:
    import importlib.metadata  # slow to import, and needed once

    try:
        return importlib.metadata.version("wsc_fast")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree"
