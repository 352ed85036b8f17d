"""A kit for the tests of applications: a running hub, clients that may misbehave, a clock, TLS.

    from wsc_fast.testing import HubClient, running

    async def test_an_echo():
        async with running(hub), await HubClient.connect(hub) as client:
            await client.send("hello")
            await client.expect("hello")

The fixtures of `plugin` do the same for pytest. The tests of wsc_fast use the kit too. It uses
public names of wsc_fast, sets the clock of `_core.clock`, and writes and reads frames by itself.
Nothing of it belongs in a program that serves.

Each name is imported when it is first used, so that a plugin of pytest costs nothing at its start.

Thread-safety: clients, clocks, `running`, `eventually` and `eventually_async` belong to the loop of
their test. All else may be called in any thread.
"""

import typing

if typing.TYPE_CHECKING:
    from wsc_fast.testing.blocking_client import BlockingClient
    from wsc_fast.testing.clients import RawClient, TLSClient, open_client
    from wsc_fast.testing.clock import BlockingClock, Clock
    from wsc_fast.testing.expected import matches
    from wsc_fast.testing.frames import (
        BINARY,
        CLOSE,
        CONTINUATION,
        PING,
        PONG,
        TEXT,
        Frame,
        apply_mask,
        deflated,
        encode,
        head,
        take_frame,
    )
    from wsc_fast.testing.hub_client import HubClient, RefusedError
    from wsc_fast.testing.hubs import (
        Listening,
        assert_nothing_left,
        running,
        running_in_thread,
        uri,
    )
    from wsc_fast.testing.proxy import FaultProxy
    from wsc_fast.testing.record import Record, Sent
    from wsc_fast.testing.requests import upgrade_request
    from wsc_fast.testing.sockets import drop_packets, reset_when_closed
    from wsc_fast.testing.stores import FaultyStore
    from wsc_fast.testing.threads import LoopThread
    from wsc_fast.testing.tls import Authority, client_hello, trusting
    from wsc_fast.testing.waiting import eventually, eventually_async, wait_until

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Authority",
    "BlockingClient",
    "BlockingClock",
    "Clock",
    "FaultProxy",
    "FaultyStore",
    "Frame",
    "HubClient",
    "Listening",
    "LoopThread",
    "RawClient",
    "Record",
    "RefusedError",
    "Sent",
    "TLSClient",
    "apply_mask",
    "assert_nothing_left",
    "client_hello",
    "deflated",
    "drop_packets",
    "encode",
    "eventually",
    "eventually_async",
    "head",
    "matches",
    "open_client",
    "reset_when_closed",
    "running",
    "running_in_thread",
    "take_frame",
    "trusting",
    "upgrade_request",
    "uri",
    "wait_until",
]

_NAMES = {
    "blocking_client": ("BlockingClient",),
    "clients": (
        "RawClient",
        "TLSClient",
        "open_client",
    ),
    "clock": (
        "BlockingClock",
        "Clock",
    ),
    "expected": ("matches",),
    "frames": (
        "BINARY",
        "CLOSE",
        "CONTINUATION",
        "PING",
        "PONG",
        "TEXT",
        "Frame",
        "apply_mask",
        "deflated",
        "encode",
        "head",
        "take_frame",
    ),
    "hub_client": (
        "HubClient",
        "RefusedError",
    ),
    "hubs": (
        "Listening",
        "assert_nothing_left",
        "running",
        "running_in_thread",
        "uri",
    ),
    "proxy": ("FaultProxy",),
    "record": (
        "Record",
        "Sent",
    ),
    "requests": ("upgrade_request",),
    "sockets": (
        "drop_packets",
        "reset_when_closed",
    ),
    "stores": ("FaultyStore",),
    "threads": ("LoopThread",),
    "tls": (
        "Authority",
        "client_hello",
        "trusting",
    ),
    "waiting": (
        "eventually",
        "eventually_async",
        "wait_until",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

# Hidden from type checkers, which would take any name for one of the kit.
if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _MODULE_OF:
            raise AttributeError(f"module 'wsc_fast.testing' has no attribute {name!r}")
        module = importlib.import_module(f"wsc_fast.testing.{_MODULE_OF[name]}")
        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
