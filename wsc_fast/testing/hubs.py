"""A hub that runs while a test does: in the loop of the test, or in a thread for tests without one.

At the end both assert that the hub has let everything go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from wsc_fast import Hub
from wsc_fast.testing.threads import LoopThread

# How long clients may take for their answer to the close frame when a test ends.
STOP_TIMEOUT = 2.0


class Listening(Protocol):
    """A running hub, or anything else that listens on a port of this machine."""

    @property
    def port(self) -> int:
        """The port."""


@asynccontextmanager
async def running(hub: Hub, **options: Any) -> AsyncIterator[Hub]:
    """Serves a hub in the loop of the test, on a free port.

    Args:
        hub: a hub that does not run.
        **options: arguments of `Hub.start`.

    Returns:
        an async context manager, whose value is the hub.

    Raises:
        AssertionError: at the end, if a connection or a client is left.
    """
    await hub.start(**{"port": 0, **options})
    try:
        yield hub
    finally:
        await hub.stop(timeout=STOP_TIMEOUT)
    assert_nothing_left(hub)


@contextmanager
def running_in_thread(hub: Hub, **options: Any) -> Iterator[Hub]:
    """Serves a hub on a loop in a thread of its own, for tests whose client blocks.

    Only those of the hub's methods may be called from the test that are documented as thread-safe.

    Args:
        hub: a hub that does not run.
        **options: arguments of `Hub.start`.

    Returns:
        a context manager, whose value is the hub.

    Raises:
        AssertionError: at the end, if a connection or a client is left.
    """
    with LoopThread() as thread:
        thread.call(hub.start(**{"port": 0, **options}))
        try:
            yield hub
        finally:
            thread.call(hub.stop(timeout=STOP_TIMEOUT))
    assert_nothing_left(hub)


def assert_nothing_left(hub: Hub) -> None:
    """Asserts that a hub has stopped, and holds neither a connection nor a client.

    Raises:
        AssertionError: if it does.
    """
    assert hub.connections == 0, f"{hub.connections} connections are left"
    assert hub.get_connected_clients() == 0, f"left: {hub.get_connected_client_ids()}"
    assert hub.loop is None, "the hub runs"


def uri(hub: Listening, path: str = "/ws", *, tls: bool = False) -> str:
    """The WebSocket address of a running hub.

    Args:
        hub: a running hub.
        path: the path with its query.
        tls: whether it serves TLS.
    """
    return f"{'wss' if tls else 'ws'}://127.0.0.1:{hub.port}{path}"
