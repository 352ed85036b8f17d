"""The kernel's memory for clients: idle ones, and one that does not read.

`python benchmarks/experiments/kernel_memory.py` prints the rows of docs/operations/kernel.md and
sizing.md. Both ends of each connection are on this machine. Slabs are read from /proc/slabinfo,
which root may; others on the machine change them too.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from pathlib import Path

from wsc_fast import Hub, HubConfig
from wsc_fast.testing import eventually

CONNECTIONS = 4_000
MESSAGE = b"x" * 1_000
# The outbox of the client that does not read: it has this many messages once the kernel is full.
WAITING = 10
REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def connected(hub: Hub, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", hub.port))
    sock.sendall(REQUEST)
    return sock


async def taken(write_buffer: int, receive_buffer: int) -> int:
    """Bytes that the kernels take for a client that does not read."""
    config = HubConfig(
        overflow="drop_newest", outbox_messages=WAITING, write_buffer_size=write_buffer
    )
    hub = Hub(config)
    await hub.start(port=0)
    sock = connected(hub, receive_buffer)
    await eventually(hub.get_connected_clients)
    (client,) = hub.iter_clients()
    # It is full when the outbox stays full: the kernel may take more a moment later.
    quiet = 0
    while quiet < 20:
        hub.broadcast(MESSAGE)
        await asyncio.sleep(0.001 if client.queued_messages >= WAITING else 0)
        quiet = quiet + 1 if client.queued_messages >= WAITING else 0
    size = hub.get_stats().bytes_out
    sock.close()
    await hub.stop(timeout=0.2)
    return size


def slabs() -> int:
    """Bytes of objects in the kernel's slabs."""
    lines = Path("/proc/slabinfo").read_text().splitlines()[2:]
    return sum(int(fields[1]) * int(fields[3]) for fields in map(str.split, lines))


async def idle() -> float:
    """Bytes of slabs for one idle socket."""
    hub = Hub()
    await hub.start(port=0)
    before = slabs()
    socks = []
    for number in range(CONNECTIONS):
        socks.append(connected(hub))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await eventually(lambda: hub.get_connected_clients() == CONNECTIONS, 60)
    grown = slabs() - before
    for sock in socks:
        sock.close()
    await hub.stop(timeout=1)
    return grown / CONNECTIONS / 2


async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for write_buffer, receive_buffer in ((0, 0), (65_536, 0), (16_384, 65_536)):
        size = await taken(write_buffer, receive_buffer)
        print(f"write_buffer_size={write_buffer}, SO_RCVBUF={receive_buffer}: {size // 1000} KB")
    print(f"idle: {await idle() / 1000:.1f} KB a socket")


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
