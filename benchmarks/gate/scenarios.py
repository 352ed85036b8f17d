"""The pieces of a hub's work that the gate counts: small, repeatable, in one process, on sockets.

    scenarios.py LIBRARY [NAME ...]

run.py starts it so, under valgrind. Each round of a scenario dumps the instructions that it spent,
under the scenario's name; this prints, as JSON, how many messages they were spent on.

A scenario counts only what it means to: peers write and read on sockets of their own, without the
loop, while nothing is counted. Before a turn of the loop is counted, everything that it will find
has come (`Peers.arrived`), so that it always finds the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import select
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import picows
import uvloop
import websockets

from wsc_fast import ACKConfig, ACKMessage, Client, Hub, HubConfig, HubMessage, Identity, Request
from wsc_fast._core.timers import Timers

CLIENTS = 200
PEER_CLIENTS = 50  # of other libraries, whose clients take longer to connect under valgrind
WARMUP = 2
ROUNDS = 5
SEVERAL = 32  # messages that wait for each client
ROOM = 10
TIMERS = 80_000
QUEUE = 16  # outbox_messages where outboxes are full
TEXT = "x" * 128
CONTENT = "x" * 64
MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)
# Compressible as usual JSON is, and the same each time.
ROWS = json.dumps(
    [{"id": n * 37, "name": f"user{n * 13 % 97}", "on": n % 3 == 0} for n in range(24)]
)

REQUEST = (
    "GET /ws?id={} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{}\r\n"
)
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
# Timers fire too late to be counted, however slow valgrind is.
LATE = 3600.0
CONFIG: dict[str, Any] = {
    "handshake_timeout": LATE,
    "heartbeat_interval": LATE,
    "heartbeat_timeout": 2 * LATE,
    "close_timeout": LATE,
    "flush_budget": LATE,
    "watchdog_timeout": 0.0,
    "outbox_messages": 10_000,
    "outbox_bytes": 1 << 24,
}


class Meter:
    """Counts what runs within `with meter:`."""

    def __init__(self, library: str) -> None:
        self._callgrind = ctypes.CDLL(library)

    @contextmanager
    def scenario(self) -> Iterator[None]:
        gc.collect()
        gc.disable()
        self._callgrind.start()
        yield
        self._callgrind.stop()
        gc.enable()

    def dump(self, name: str) -> None:
        """Writes what was counted since the last time, under a name."""
        self._callgrind.dump(name.encode())

    def __enter__(self) -> None:
        self._callgrind.toggle()

    def __exit__(self, *exception: object) -> None:
        self._callgrind.toggle()


class Idle:
    """In the place of a Meter, for rounds that nobody counts."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        pass


def masked(text: str) -> bytes:
    """A client's frame; with a mask that does nothing, but has to be undone."""
    size = len(text)
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE, size >> 8, size & 255))
    return head + bytes(4) + text.encode()


class Peers:
    """The clients' ends of connections to a port of this process."""

    def __init__(self, port: int, count: int, headers: str = "") -> None:
        self.port = port
        self.sockets = []
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(REQUEST.format(f"client{number}", headers).encode())
            self.sockets.append(sock)

    def upgraded(self) -> None:
        for sock in self.sockets:
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            sock.setblocking(False)
        self._poll = select.poll()
        for descriptor in server_sides(self.port):
            self._poll.register(descriptor, select.POLLIN)

    def send(self, data: bytes) -> None:
        """Each sends this, and the server's kernel has it."""
        for sock in self.sockets:
            sock.sendall(data)
        while len(self._poll.poll()) < len(self.sockets):
            pass

    def drain(self) -> int:
        """Reads what there is; how many bytes."""
        read = 0
        for sock in self.sockets:
            with contextlib.suppress(BlockingIOError):
                while data := sock.recv(1 << 18):
                    read += len(data)
        return read

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def server_sides(port: int) -> Iterator[int]:
    """The descriptors of this process that are connections accepted at a port."""
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
            continue  # the second is what listed the directory
        with socket.socket(fileno=os.dup(int(name))) as sock, contextlib.suppress(OSError):
            # A listening socket has no peer.
            if (
                sock.family == socket.AF_INET
                and sock.getpeername()
                and sock.getsockname()[1] == port
            ):
                yield int(name)


async def turns(count: int = 2) -> None:
    """Turns of the loop; a flush that was scheduled before is in the first one."""
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def hub_with(
    clients: int = CLIENTS, headers: str = "", anonymous: bool = False, **config: Any
) -> AsyncIterator[tuple[Hub, Peers]]:
    def named(request: Request) -> Identity:
        return Identity(request.query["id"], request.query["id"])

    hub = Hub(HubConfig(**{**CONFIG, **config}), authenticate=None if anonymous else named)
    await hub.start("127.0.0.1", 0)
    if (poller := hub._parts.listener.poller) is not None:
        poller.budget = LATE
    peers = Peers(hub.port, clients, headers)
    while hub.get_connected_clients() < clients:
        await turns()
    peers.upgraded()
    try:
        yield hub, peers
    finally:
        peers.close()
        while hub.get_connected_clients():
            await turns()
        await hub.stop()


Round = Callable[[Any], Awaitable[int]]


async def rounds(meter: Meter, name: str, one: Round) -> int:
    """Runs it, the last rounds within the meter; how many messages each round has."""
    with meter.scenario():
        for counting in [Idle()] * WARMUP + [meter] * ROUNDS:
            await turns(1)  # timers that are due go off here
            messages = await one(counting)
            if counting is meter:
                meter.dump(name)
    return messages


# --- the scenarios ---


async def fan_out(meter: Meter, name: str, messages: int, part: str) -> int:
    """Broadcasts that wait together: the walk that queues them, or the turn that sends them."""
    idle = Idle()
    async with hub_with() as (hub, peers):

        async def one(counting: Any) -> int:
            with counting if part == "walk" else idle:
                for _ in range(messages):
                    hub.broadcast(TEXT)
            with counting if part == "flush" else idle:
                await turns()
            peers.drain()
            return messages * CLIENTS

        return await rounds(meter, name, one)


async def room(meter: Meter, name: str) -> int:
    async with hub_with() as (hub, peers):
        for number in range(CLIENTS):
            if number % ROOM == 0:
                hub.create_room(f"room{number}")
            hub.join_room(f"client{number}", f"room{number - number % ROOM}")
        names = hub.get_rooms()

        async def one(counting: Any) -> int:
            with counting:
                for room_id in names:
                    hub.broadcast_to_room(room_id, TEXT)
                await turns()
            peers.drain()
            return CLIENTS

        return await rounds(meter, name, one)


async def direct(meter: Meter, name: str) -> int:
    async with hub_with() as (hub, peers):
        names = hub.get_connected_client_ids()

        async def one(counting: Any) -> int:
            with counting:
                for client_id in names:
                    hub.send_to_client(client_id, TEXT)
                await turns()
            peers.drain()
            return CLIENTS

        return await rounds(meter, name, one)


async def user(meter: Meter, name: str) -> int:
    message = HubMessage(id="0123456789abcdefghijklmn", content=CONTENT, create_at=MADE_AT)
    async with hub_with() as (hub, peers):
        names = hub.get_connected_client_ids()

        async def one(counting: Any) -> int:
            with counting:
                for user_id in names:
                    hub.send_to_user(user_id, message)
                await turns()
            peers.drain()
            return CLIENTS

        return await rounds(meter, name, one)


async def acknowledged(meter: Meter, name: str) -> int:
    """A message that has to be acknowledged, sent, and its acknowledgement taken."""
    number = 0
    async with hub_with(clients=1) as (hub, peers):
        hub.enable_ack(ACKConfig(timeout=LATE, retry_interval=LATE))

        async def one(counting: Any) -> int:
            nonlocal number
            messages = []
            for _ in range(SEVERAL):
                number += 1
                messages.append(
                    ACKMessage(id=f"message-{number:06}", content=CONTENT, create_at=MADE_AT)
                )
            with counting:
                for message in messages:
                    hub.send_ack_message("client0", message)
                await turns()
            peers.drain()
            peers.send(
                b"".join(
                    masked(f'{{"type":"ack","message_id":"{message.id}","status":"confirmed"}}')
                    for message in messages
                )
            )
            with counting:
                await turns(4)
            assert not hub.get_pending_acks("client0")
            return SEVERAL

        return await rounds(meter, name, one)


async def timers(meter: Meter, name: str) -> int:
    """Timers of one slot, which all fire in one turn; so many that quadratic work would show."""
    fired: list[int] = []
    loop = asyncio.get_running_loop()
    kept: Timers[int] = Timers(fired.append, budget=LATE)
    kept.attach(loop)

    async def one(counting: Any) -> int:
        fired.clear()
        # Due by the time that the last one is set, so that no turn is spent on waiting.
        for number in range(TIMERS):
            kept.set(number, 0.0)
        with counting:
            while not fired:
                await turns(1)
        assert fired == list(range(TIMERS))
        return TIMERS

    return await rounds(meter, name, one)


async def echo(meter: Meter, name: str, messages: int, lists: bool = False) -> int:
    data = masked(TEXT) * messages
    async with hub_with() as (hub, peers):

        def answer(client: Client, message: str | bytes) -> None:
            client.send(message)

        def answer_all(client: Client, messages: list[str | bytes]) -> None:
            for message in messages:
                client.send(message)

        if lists:
            hub.on_messages_received(answer_all)
        else:
            hub.on_message_received(answer)

        async def one(counting: Any) -> int:
            peers.send(data)
            with counting:
                await turns(4)
            assert peers.drain() >= CLIENTS * messages * len(TEXT)
            return CLIENTS * messages

        return await rounds(meter, name, one)


async def compressed(meter: Meter, name: str) -> int:
    async with hub_with(headers=DEFLATE, enable_compression=True) as (hub, peers):

        async def one(counting: Any) -> int:
            with counting:
                hub.broadcast(ROWS)
                await turns()
            assert 0 < peers.drain() < CLIENTS * len(ROWS) // 2
            return CLIENTS

        return await rounds(meter, name, one)


async def overflowing(meter: Meter, name: str) -> int:
    """Broadcasts to full outboxes, which drop their oldest."""
    async with hub_with(overflow="drop_oldest", outbox_messages=QUEUE) as (hub, peers):

        async def one(counting: Any) -> int:
            for _ in range(QUEUE):
                hub.broadcast(TEXT)
            with counting:
                for _ in range(QUEUE):
                    hub.broadcast(TEXT)
            assert hub.get_stats().queued_messages == QUEUE * CLIENTS
            await turns()
            peers.drain()
            return QUEUE * CLIENTS

        return await rounds(meter, name, one)


async def connections(meter: Meter, name: str, anonymous: bool = False) -> int:
    """From the accepted connection to its end, with the upgrade; per connection."""
    async with hub_with(clients=1, anonymous=anonymous) as (hub, _):

        async def one(counting: Any) -> int:
            joining = [
                REQUEST.format(f"late{number}", "").encode() for number in range(PEER_CLIENTS)
            ]
            sockets = []
            for request in joining:
                sock = socket.create_connection(("127.0.0.1", hub.port))
                sock.sendall(request)
                sockets.append(sock)
            with counting:
                while hub.get_connected_clients() < 1 + PEER_CLIENTS:
                    await turns(1)
            for sock in sockets:
                sock.close()
            with counting:
                while hub.get_connected_clients() > 1:
                    await turns(1)
                await turns()  # what comes behind the end of a transport
            return PEER_CLIENTS

        return await rounds(meter, name, one)


class PicowsPeer(picows.WSListener):
    """Echoes, and is a member of all."""

    members: list[picows.WSTransport] = []

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.members.append(transport)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        transport.send(frame.msg_type, frame.get_payload_as_bytes())


@asynccontextmanager
async def picows_with(clients: int) -> AsyncIterator[Peers]:
    PicowsPeer.members = []
    server = await picows.ws_create_server(lambda request: PicowsPeer(), "127.0.0.1", 0)
    peers = Peers(server.sockets[0].getsockname()[1], clients)
    while len(PicowsPeer.members) < clients:
        await turns()
    peers.upgraded()
    try:
        yield peers
    finally:
        peers.close()
        server.close()
        await asyncio.sleep(0.1)


async def picows_sends(meter: Meter, name: str) -> int:
    """A loop of sends, as picows' documentation has it."""
    payload = TEXT.encode()
    async with picows_with(PEER_CLIENTS) as peers:

        async def one(counting: Any) -> int:
            with counting:
                for member in PicowsPeer.members:
                    member.send(picows.WSMsgType.TEXT, payload)
            assert peers.drain() > PEER_CLIENTS * len(payload)
            return PEER_CLIENTS

        return await rounds(meter, name, one)


async def picows_echo(meter: Meter, name: str) -> int:
    data = masked(TEXT)
    async with picows_with(PEER_CLIENTS) as peers:

        async def one(counting: Any) -> int:
            peers.send(data)
            with counting:
                await turns(4)
            assert peers.drain() > PEER_CLIENTS * len(TEXT)
            return PEER_CLIENTS

        return await rounds(meter, name, one)


@asynccontextmanager
async def websockets_with(clients: int) -> AsyncIterator[tuple[set[Any], Peers]]:
    """The connections, and their clients' ends."""
    connections: set[Any] = set()

    async def handle(connection: Any) -> None:
        connections.add(connection)
        await connection.wait_closed()

    async with websockets.serve(
        handle, "127.0.0.1", 0, open_timeout=LATE, ping_interval=None, compression=None
    ) as server:
        peers = Peers(next(iter(server.sockets)).getsockname()[1], clients)
        while len(connections) < clients:
            await turns()
        peers.upgraded()
        try:
            yield connections, peers
        finally:
            peers.close()


async def websockets_broadcast(meter: Meter, name: str) -> int:
    async with websockets_with(PEER_CLIENTS) as (connections, peers):

        async def one(counting: Any) -> int:
            with counting:
                websockets.broadcast(connections, TEXT)
            assert peers.drain() > PEER_CLIENTS * len(TEXT)
            return PEER_CLIENTS

        return await rounds(meter, name, one)


Scenario = Callable[[Meter, str], Awaitable[int]]
SCENARIOS: dict[str, Scenario] = {
    "broadcast: walk": lambda meter, name: fan_out(meter, name, 1, "walk"),
    "broadcast: flush": lambda meter, name: fan_out(meter, name, 1, "flush"),
    f"{SEVERAL} broadcasts: walk": lambda meter, name: fan_out(meter, name, SEVERAL, "walk"),
    f"{SEVERAL} broadcasts: flush": lambda meter, name: fan_out(meter, name, SEVERAL, "flush"),
    "room of 10": room,
    "compressed broadcast": compressed,
    "full outboxes": overflowing,
    "send_to_client": direct,
    "send_to_user": user,
    "acknowledged message": acknowledged,
    "80,000 timers of one slot": timers,
    "echo": lambda meter, name: echo(meter, name, 1),
    "echo, 16 at once": lambda meter, name: echo(meter, name, 16),
    "echo, 16 at once, as lists": lambda meter, name: echo(meter, name, 16, lists=True),
    "connection": connections,
    "connection without authenticate": lambda meter, name: connections(meter, name, True),
    "picows: loop of sends": picows_sends,
    "picows: echo": picows_echo,
    "websockets: broadcast": websockets_broadcast,
}


async def main() -> None:
    library, *names = sys.argv[1:]
    meter = Meter(library)
    messages = {}
    for name in names or SCENARIOS:
        messages[name] = await SCENARIOS[name](meter, name)
    print(json.dumps(messages))


if __name__ == "__main__":
    uvloop.run(main())
