"""A kit for the tests of applications: a running hub, clients that may misbehave, TLS.

    from wsc_fast.testing import TEXT, Frame, RawClient, eventually, running

    async def test_an_echo():
        async with running(hub):
            with await RawClient.open(hub) as client:
                await client.send(TEXT, b"hello")
                assert await client.recv() == Frame(TEXT, b"hello")

The tests of wsc_fast use it too. Its modules: `frames` and `requests` make bytes, `sockets` breaks
connections, `clients` joins these, `tls` has certificates, `hubs` runs a hub, `waiting` waits for
a condition. It uses public names of wsc_fast alone, and writes and reads frames by itself. Nothing
of it belongs in a program that serves.

Thread-safety: clients, `running`, `eventually` and `eventually_async` belong to the loop of their
test. All else may be called in any thread.
"""

from wsc_fast.testing.clients import RawClient, TLSClient, open_client
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
from wsc_fast.testing.hubs import (
    Listening,
    assert_nothing_left,
    running,
    running_in_thread,
    uri,
)
from wsc_fast.testing.requests import upgrade_request
from wsc_fast.testing.sockets import drop_packets, reset_when_closed
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
    "Frame",
    "Listening",
    "RawClient",
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
