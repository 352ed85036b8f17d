"""The memory of an idle TLS connection: docs/performance.md.

    python benchmarks/experiments/tls_memory.py --connections 5000 --transport hub

Prints how much the resident memory of a server grows for each connection, in bytes; then the same
after 200 broadcasts of 1 KB. The clients are another process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from wsc_fast import Hub
from wsc_fast.testing import Authority, eventually

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
WARM_UP = 50


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def be_clients(port: int, count: int) -> None:
    """Connects so many, says so, and reads what comes until its input ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    sockets = []
    for _ in range(count):
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", port)))
        sock.sendall(REQUEST)
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
        sockets.append(sock)
    print("ready", flush=True)
    sys.stdin.readline()


@asynccontextmanager
async def clients(port: int, count: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--clients-of",
        str(port),
        "--connections",
        str(count),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def measure(transport: Any, count: int) -> None:
    hub = Hub()
    await hub.start("127.0.0.1", 0, ssl=Authority().server_context(), transport=transport)
    async with clients(hub.port, WARM_UP):
        pass
    await eventually(lambda: not hub.connections)
    gc.collect()
    before = resident()
    async with clients(hub.port, count):
        gc.collect()
        print(f"{(resident() - before) / count:,.0f} bytes an idle connection", flush=True)
        for _ in range(200):
            hub.broadcast(bytes(1000))
            await asyncio.sleep(0.005)
        print(f"{(resident() - before) / count:,.0f} bytes after 200 broadcasts of 1 KB")
    await hub.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--transport", default="hub", choices=("hub", "loop"))
    parser.add_argument("--clients-of", type=int, help="be the clients of this port")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.clients_of:
        be_clients(options.clients_of, options.connections)
    else:
        uvloop.run(measure(options.transport, options.connections))


if __name__ == "__main__":
    main()
