"""The memory of a connection that is idle: where each byte goes, and what it has beside others.

    python benchmarks/experiments/idle_memory.py

Prints the two tables of docs/performance.md, "An idle connection". The first one has the sizes of
its objects. The second one has servers with many connections of one kind each: the bytes that
Python's allocator and malloc have handed out for them, and the growth of the resident memory, with
what the allocators keep for later. Memory of the kernel is in neither.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import re
import resource
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import uvloop
from own_server import serving

from wsc_fast import Hub, HubConfig, Identity, Request
from wsc_fast._core.connection import Client
from wsc_fast._core.stream import Stream
from wsc_fast.messages import IdFactory

CONNECTIONS = 5_000
# Connections that are there before the first look, so that no list or dict of the hub is new.
EARLIER = 200
MESSAGES = 100
ALONE = 5  # of these, each answered before the next one
ROOMS = ("news", "sports", "weather")
INTERVAL = 2.0  # seconds of the heartbeat
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
TEXT, PING, PONG = 0x81, 0x89, 0x8A


# --- the sizes of objects ---


def block(size: int) -> int:
    """The bytes that an allocation of this size takes: pymalloc has steps of 16, up to 512."""
    return -(-size // 16) * 16 if size <= 512 else -(-(size + 8) // 16) * 16


def collected(kind: type) -> int:
    """The bytes of an object of a class that the garbage collector looks at."""
    return block(kind.__basicsize__ + 2 * ctypes.sizeof(ctypes.c_void_p))


def parts() -> dict[str, float]:
    """The bytes of each object of an idle connection, and of its places in those of the hub."""
    ids = {(make := IdFactory(9))(): None for _ in range(CONNECTIONS)}
    everyone: list[None] = []
    for _ in ids:
        everyone.append(None)
    return {
        "`Client`": collected(Client),
        "`Stream`": collected(Stream),
        "its id, which is its user id too": block(sys.getsizeof(make())),
        "its address, as text": block(sys.getsizeof("192.0.2.100")),
        "place in the dict of ids": sys.getsizeof(ids) / CONNECTIONS,
        "place in the list of clients": sys.getsizeof(everyone) / CONNECTIONS,
        "place in the list of descriptors": 1.25 * ctypes.sizeof(ctypes.c_void_p),
    }


# --- the servers ---


class Allocated(ctypes.Structure):
    """The counts that mallinfo2 of glibc returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated() -> int:
    """The bytes that pymalloc and malloc of this process have handed out."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Allocated
    with tempfile.TemporaryFile() as report:
        kept = os.dup(2)
        os.dup2(report.fileno(), 2)
        try:
            sys._debugmallocstats()
            libc.fflush(None)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        report.seek(0)
        found = re.search(rb"# bytes in allocated blocks\s+=\s+([\d,]+)", report.read())
    assert found is not None
    of_malloc = libc.mallinfo2()
    return int(found[1].replace(b",", b"")) + int(of_malloc.uordblks + of_malloc.hblkhd)


def resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def identify(request: Request) -> Identity:
    return Identity(user_id=request.query["user"])


def serve(kind: str, port: int) -> None:
    config = HubConfig(
        heartbeat_interval=INTERVAL,
        heartbeat_timeout=86_400.0,
        enable_compression=kind == "deflate",
    )
    hub = Hub(config, authenticate=identify if kind == "user" else None)

    if kind == "aware":

        @hub.on_client_connected
        def enter(client: Client) -> None:
            for room in ROOMS:
                hub.join_room(client.id, room)

    if kind == "talked":
        hub.on_message_received(lambda client, message: client.send(message))

    @hub.route("/memory")
    def memory(request: Request) -> dict[str, int]:
        return {
            "allocated": allocated(),
            "resident": resident(),
            "connected": hub.get_connected_clients(),
        }

    async def main() -> None:
        if kind == "aware":
            for room in ROOMS:
                hub.create_room(room)
        await hub.start("127.0.0.1", port)
        await asyncio.Event().wait()

    uvloop.run(main())


# --- their clients ---


def masked(first: int, payload: bytes = b"") -> bytes:
    """A short frame under the mask 0."""
    return bytes([first, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


class Peer:
    """One client, by hand: the sockets of thousands are to take little time."""

    def __init__(self, port: int, number: int, kind: str) -> None:
        source = ""
        if kind == "addresses":
            source = f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
        self.sock = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
        extra = {
            "aware": b"Sec-WebSocket-Protocol: wsc.1\r\n",
            "deflate": b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
        }.get(kind, b"")
        self.sock.sendall(
            b"GET /ws?user=customer-%08d HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n%b%b\r\n" % (number, KEY, extra)
        )
        self.came = b""
        while b"\r\n\r\n" not in self.came:
            self.read()
        answer, _, self.came = self.came.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101"), answer
        if kind == "aware":
            self.sock.sendall(masked(TEXT, b'{"hello":1}\n'))

    def read(self) -> None:
        data = self.sock.recv(65536)
        assert data, "the server has closed a connection"
        self.came += data

    def frame(self) -> tuple[int, bytes]:
        """The next frame, which is a short one: its first byte, and its payload."""
        while len(self.came) < 2 or len(self.came) < 2 + self.came[1]:
            self.read()
        end = 2 + self.came[1]
        first, payload = self.came[0], self.came[2:end]
        self.came = self.came[end:]
        return first, payload

    def talk(self) -> None:
        """Messages, a few alone and the rest at once, and their echoes."""
        for some in (*[1] * ALONE, MESSAGES - ALONE):
            self.sock.sendall(masked(TEXT, b"x" * 64) * some)
            left = some
            while left:
                first, _ = self.frame()
                left -= first == TEXT
                if first == PING:
                    self.sock.sendall(masked(PONG))

    def answer_ping(self) -> None:
        while self.frame()[0] != PING:
            pass
        self.sock.sendall(masked(PONG))


def look(port: int, connected: int) -> dict[str, int]:
    """The memory of a server, once so many clients are in it."""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/memory") as answer:
            found: dict[str, int] = json.load(answer)
        if found["connected"] == connected:
            return found


@dataclass
class Kind:
    """Connections of one kind: the word for the server, and the deeds of each client."""

    name: str
    title: str
    does: Callable[[Peer], None] | None = None


def pinged(peer: Peer) -> None:
    for _ in range(3):
        peer.answer_ping()


KINDS = (
    Kind("idle", "idle, all from one address"),
    Kind("addresses", "each from an address of its own"),
    Kind("idle", "pinged, and has answered", pinged),
    Kind("user", "a user id of its own, from `authenticate`"),
    Kind("aware", "speaks wsc.1, in 3 rooms"),
    Kind("deflate", "permessage-deflate, without contexts"),
    Kind("talked", "has sent and received 100 messages", Peer.talk),
)


def measure(kind: Kind) -> tuple[float, float]:
    """Bytes of a connection: handed out, and resident."""
    with serving(__file__, lambda port: ["--serve", kind.name, str(port)]) as (_, port):
        peers = [Peer(port, number, kind.name) for number in range(EARLIER)]
        if kind.does:
            for peer in peers:
                kind.does(peer)
        before = look(port, EARLIER)
        late = [Peer(port, number, kind.name) for number in range(EARLIER, EARLIER + CONNECTIONS)]
        if kind.does:
            for peer in late:
                kind.does(peer)
        after = look(port, EARLIER + CONNECTIONS)
        for peer in peers + late:
            peer.sock.close()
    allocated_, resident_ = (
        (after[what] - before[what]) / CONNECTIONS for what in ("allocated", "resident")
    )
    return allocated_, resident_


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", nargs=2, help="be the server; what a row starts")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        kind, port = options.serve
        serve(kind, int(port))
    print("| part of an idle connection | bytes |")
    print("| --- | --- |")
    sizes = parts()
    for name, size in sizes.items():
        print(f"| {name} | {size:.0f} |")
    print(f"| all | {sum(sizes.values()):.0f} |")
    print()
    print("| a connection | bytes handed out | resident |")
    print("| --- | --- | --- |")
    for row in KINDS:
        allocated_, resident_ = measure(row)
        print(f"| {row.title} | {allocated_:,.0f} | {resident_:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
