"""A hub's single calls, with real clients on real sockets: queues, flush, rooms, clients, ACKs.

`Fanout.flush()` is what the loop calls at the end of a turn. Between two rounds, while nothing is
measured, it empties the outboxes, and the clients read.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import picows
import pytest
import websockets

from benchmarks.gate.scenarios import (
    Peers,
    PicowsPeer,
    hub_with,
    masked,
    picows_with,
    websockets_with,
)
from benchmarks.micro import plain
from benchmarks.micro.conftest import Measure
from wsc_fast import ACKConfig, ACKMessage, Client, Hub, HubMessage, Priority, QueueFullError
from wsc_fast._core.connection import begin_connection

TEXT = "x" * 128
MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE = HubMessage(id="0123456789abcdefghijklmn", content="x" * 64, create_at=MADE_AT)
URGENT = HubMessage(id="urgent", content="x" * 64, create_at=MADE_AT, priority=Priority.HIGH)
PLAIN_MESSAGE = plain.Message(MESSAGE.id, "text", MESSAGE.content, "2026-01-01T00:00:00Z")
BATCH = 256  # calls in a round, where each leaves something in an outbox
OURS_AND_PLAIN = pytest.mark.parametrize("who", ["wsc_fast", "Python"])
EVERYBODY = pytest.mark.parametrize("who", ["wsc_fast", "Python", "picows", "websockets"])


def emptying(hub: Hub, peers: Peers) -> Callable[[], None]:
    def empty() -> None:
        while hub.get_stats().queued_messages:
            hub._engine.fanout.flush()
            peers.drain()

    return empty


def plain_hub(clients: int) -> tuple[plain.Hub, Callable[[], None]]:
    """The hub, and what empties its queues."""
    hub = plain.Hub()
    for _ in range(clients):
        hub.register("127.0.0.1")

    def empty() -> None:
        for client in hub.clients.values():
            client.queue.clear()

    return hub, empty


# --- calls that queue a message for one client ---


@OURS_AND_PLAIN
async def test_send_to_client(measure: Measure, who: str) -> None:
    what = "send_to_client, 128 B"
    if who == "wsc_fast":
        async with hub_with(1) as (hub, peers):
            call = partial(hub.send_to_client, "client0", TEXT)
            measure(what, who, call, times=BATCH, between=emptying(hub, peers))
    else:
        theirs, empty = plain_hub(1)
        (client_id,) = theirs.clients
        measure(what, who, partial(theirs.send, client_id, TEXT), times=BATCH, between=empty)


async def test_client_send(measure: Measure) -> None:
    async with hub_with(1) as (hub, peers):
        client = hub.get_client_by_id("client0")
        assert client is not None
        call = partial(client.send, TEXT)
        measure("client.send, 128 B", "wsc_fast", call, times=BATCH, between=emptying(hub, peers))


@OURS_AND_PLAIN
async def test_send_to_user(measure: Measure, who: str) -> None:
    what = "send_to_user, a HubMessage"
    if who == "wsc_fast":
        async with hub_with(1) as (hub, peers):
            call = partial(hub.send_to_user, "client0", MESSAGE)
            measure(what, who, call, times=BATCH, between=emptying(hub, peers))
    else:
        theirs, empty = plain_hub(1)
        send = partial(theirs.send_to_user, "user", PLAIN_MESSAGE)
        measure(what, who, send, times=BATCH, between=empty)


# --- the outbox: by what waits, policy, priority and key ---

PUSHES = 64


def refused(hub: Hub) -> None:
    try:
        hub.send_to_client("client0", TEXT)
    except QueueFullError:
        return
    raise AssertionError("the outbox is full")


# By the kind of push: the bound, the policy, the key of the last that waits, the call.
OUTBOX: dict[str, tuple[int, str, str | None, Callable[[Hub], object]]] = {
    "behind others": (10_000, "disconnect", None, lambda hub: hub.send_to_client("client0", TEXT)),
    "a HubMessage of a priority above theirs": (
        10_000,
        "disconnect",
        None,
        lambda hub: hub.send_to_user("client0", URGENT),
    ),
    "under the key of the last": (
        10_000,
        "disconnect",
        "key",
        lambda hub: hub.send_to_client("client0", TEXT, key="key"),
    ),
    "full, drop_oldest": (0, "drop_oldest", None, lambda hub: hub.broadcast(TEXT)),
    "full, drop_newest": (0, "drop_newest", None, lambda hub: hub.broadcast(TEXT)),
    "full, QueueFullError": (0, "disconnect", None, refused),
}


@pytest.mark.parametrize("waiting", [0, 100, 1_000])
@pytest.mark.parametrize("case", OUTBOX)
async def test_outbox(measure: Measure, case: str, waiting: int) -> None:
    bound, overflow, key, push = OUTBOX[case]
    if not bound and not waiting:
        pytest.skip("an outbox of no messages is never full")
    async with hub_with(1, outbox_messages=bound or waiting, overflow=overflow) as (hub, peers):
        empty = emptying(hub, peers)

        def fill() -> None:
            empty()
            for number in range(waiting):
                hub.send_to_client("client0", TEXT, key=key if number == waiting - 1 else None)

        measure(named(case, waiting), "wsc_fast", partial(push, hub), times=PUSHES, between=fill)
        assert not bound or hub.get_stats().refused == 0


def named(case: str, waiting: int) -> str:
    return f"outbox: {case}, {waiting:,} waiting"


def plain_pushes(case: str, waiting: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A push as plain Python has it, and what makes the queue ready before each round."""
    data = plain.frame(TEXT)
    if case == "a HubMessage of a priority above theirs":
        heap: list[tuple[int, int, bytes]] = []
        numbers = itertools.count()

        def refill() -> None:
            heap[:] = [(-2, next(numbers), data) for _ in range(waiting)]

        def push_urgent() -> None:
            heapq.heappush(heap, (-3, next(numbers), plain.frame(PLAIN_MESSAGE.encode())))

        return push_urgent, refill
    if case == "under the key of the last":
        client = plain.Client("client0", "user", "127.0.0.1")
        hub = plain.Hub()
        hub.clients["client0"] = client
        client.keyed.update((str(number), data) for number in range(waiting))
        return lambda: hub.send_keyed("client0", TEXT, "key"), lambda: None
    queue: deque[bytes] = deque(maxlen=waiting if case.startswith("full") else None)

    def ready() -> None:
        queue.clear()
        queue.extend([data] * waiting)

    if case == "full, QueueFullError":

        def push() -> None:
            plain.frame(TEXT)
            try:
                if len(queue) >= waiting:
                    raise OverflowError(f"{len(queue)} messages wait")
            except OverflowError:
                pass

        return push, ready
    if case == "full, drop_newest":

        def push() -> None:
            frame = plain.frame(TEXT)
            if len(queue) < waiting:
                queue.append(frame)

        return push, ready
    return lambda: queue.append(plain.frame(TEXT)), ready


@pytest.mark.parametrize("waiting", [0, 100, 1_000])
@pytest.mark.parametrize("case", OUTBOX)
def test_plain_queue(measure: Measure, case: str, waiting: int) -> None:
    if case.startswith("full") and not waiting:
        pytest.skip("a queue of no messages is never full")
    push, ready = plain_pushes(case, waiting)
    measure(named(case, waiting), "Python", push, times=PUSHES, between=ready)


# --- to everybody: the walk, the flush, and all of it to the kernel ---


@OURS_AND_PLAIN
@pytest.mark.parametrize("members", [1, 10, 100, 1_000])
async def test_broadcast(measure: Measure, members: int, who: str) -> None:
    what = f"broadcast to {members:,}, queued"
    times = max(8, BATCH // members)
    if who == "wsc_fast":
        async with hub_with(members) as (hub, peers):
            call = partial(hub.broadcast, TEXT)
            measure(what, who, call, times=times, between=emptying(hub, peers), rounds=50)
    else:
        theirs, empty = plain_hub(members)
        push = partial(theirs.broadcast, TEXT)
        measure(what, who, push, times=times, between=empty, rounds=50)


CLIENTS = 100
QUEUES = [1, 32, 256]


class Pairs:
    """Connections of plain Python: one end writes, the other reads."""

    def __init__(self, count: int) -> None:
        self._readers = []
        self._writers = []
        with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
            for _ in range(count):
                self._readers.append(socket.create_connection(server.getsockname()))
                self._writers.append(server.accept()[0])
        for sock in self._readers + self._writers:
            sock.setblocking(False)

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *exception: object) -> None:
        for sock in self._readers + self._writers:
            sock.close()

    def flush(self, hub: plain.Hub) -> None:
        for client, sock in zip(hub.clients.values(), self._writers, strict=True):
            sock.send(b"".join(client.queue))
            client.queue.clear()

    def drain(self) -> None:
        for sock in self._readers:
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 18):
                    pass


@OURS_AND_PLAIN
@pytest.mark.parametrize("waiting", QUEUES)
async def test_flush(measure: Measure, waiting: int, who: str) -> None:
    """For each message of each client."""
    what = f"flush, {waiting} waiting for each of {CLIENTS}; each delivery"
    options: dict[str, Any] = {"times": 1, "each": waiting * CLIENTS, "rounds": 50}
    if who == "wsc_fast":
        async with hub_with(CLIENTS) as (hub, peers):

            def queue() -> None:
                peers.drain()
                for _ in range(waiting):
                    hub.broadcast(TEXT)

            measure(what, who, hub._engine.fanout.flush, between=queue, **options)
            assert hub.get_stats().queued_messages == 0
    else:
        theirs, _ = plain_hub(CLIENTS)
        with Pairs(CLIENTS) as pairs:

            def queue() -> None:
                pairs.drain()
                for _ in range(waiting):
                    theirs.broadcast(TEXT)

            measure(what, who, lambda: pairs.flush(theirs), between=queue, **options)


@EVERYBODY
@pytest.mark.parametrize("waiting", QUEUES)
async def test_to_the_kernel(measure: Measure, waiting: int, who: str) -> None:
    """Broadcasts and the flush behind them; for each message of each client."""
    what = f"{waiting} x broadcast to {CLIENTS}, to the kernel; each delivery"
    options: dict[str, Any] = {"times": 1, "each": waiting * CLIENTS, "rounds": 20}
    if who == "wsc_fast":
        async with hub_with(CLIENTS) as (hub, peers):

            def ours() -> None:
                for _ in range(waiting):
                    hub.broadcast(TEXT)
                hub._engine.fanout.flush()

            measure(what, who, ours, between=peers.drain, **options)
            assert hub.get_stats().queued_messages == 0
    elif who == "Python":
        theirs, _ = plain_hub(CLIENTS)
        with Pairs(CLIENTS) as pairs:

            def python() -> None:
                for _ in range(waiting):
                    theirs.broadcast(TEXT)
                pairs.flush(theirs)

            measure(what, who, python, between=pairs.drain, **options)
    elif who == "picows":
        payload = TEXT.encode()
        async with picows_with(CLIENTS) as peers:

            def picows_way() -> None:
                for _ in range(waiting):
                    for member in PicowsPeer.members:
                        member.send(picows.WSMsgType.TEXT, payload)

            measure(what, who, picows_way, between=peers.drain, **options)
    else:
        async with websockets_with(CLIENTS) as (connections, peers):

            def websockets_way() -> None:
                for _ in range(waiting):
                    websockets.broadcast(connections, TEXT)

            measure(what, who, websockets_way, between=peers.drain, **options)


# --- rooms ---

ROOM = 10


@OURS_AND_PLAIN
async def test_broadcast_to_room(measure: Measure, who: str) -> None:
    what = f"broadcast_to_room, {ROOM} members, queued"
    if who == "wsc_fast":
        async with hub_with(ROOM) as (hub, peers):
            hub.create_room("room")
            for client_id in hub.get_connected_client_ids():
                hub.join_room(client_id, "room")
            call = partial(hub.broadcast_to_room, "room", TEXT)
            measure(what, who, call, times=BATCH, between=emptying(hub, peers))
    else:
        # A room is no other to it than everybody.
        theirs, empty = plain_hub(ROOM)
        measure(what, who, partial(theirs.broadcast, TEXT), times=BATCH, between=empty)


@OURS_AND_PLAIN
async def test_join_and_leave(measure: Measure, who: str) -> None:
    what = "join_room and leave_room"
    if who == "wsc_fast":
        async with hub_with(2) as (hub, _):
            hub.create_room("room")
            hub.join_room("client0", "room")

            def ours() -> None:
                hub.join_room("client1", "room")
                hub.leave_room("client1", "room")

            measure(what, who, ours)
    else:
        theirs, _ = plain_hub(2)
        first, second = theirs.clients
        theirs.rooms["room"] = set()
        theirs.join(first, "room")

        def python() -> None:
            theirs.join(second, "room")
            theirs.leave(second, "room")

        measure(what, who, python)


# --- clients ---


class Stream:
    """A transport that does nothing, for clients that have nothing to say."""

    def write(self, data: bytes) -> None:
        raise AssertionError("nobody sends")

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False


NEW = 100


@pytest.mark.parametrize("what", ["registration", "removal"])
@OURS_AND_PLAIN
async def test_clients(measure: Measure, what: str, who: str) -> None:
    """A hub of a thousand clients gets one more, behind the upgrade; and loses it."""
    new: list[Any] = []
    if who == "wsc_fast":
        async with hub_with(1_000) as (hub, _):
            stream = Stream()

            def register() -> None:
                client = Client(hub._engine)
                begin_connection(client, stream, 0, False, "127.0.0.1")  # type: ignore[arg-type]
                new.append(client)

            def remove() -> None:
                new.pop().connection_lost(None)

            measure_clients(measure, what, who, register, remove, new)
            assert hub.get_connected_clients() == 1_000
    else:
        theirs, _ = plain_hub(1_000)
        measure_clients(
            measure,
            what,
            who,
            lambda: new.append(theirs.register("127.0.0.1")),
            lambda: theirs.remove(new.pop()),
            new,
        )


def measure_clients(
    measure: Measure,
    what: str,
    who: str,
    register: Callable[[], object],
    remove: Callable[[], object],
    new: list[Any],
) -> None:
    registering = what == "registration"

    def between() -> None:
        while new:
            remove()
        if not registering:
            for _ in range(NEW):
                register()

    call = register if registering else remove
    measure(f"{what} of a client", who, call, times=NEW, between=between)
    while new:
        remove()


# --- acknowledgements ---


@OURS_AND_PLAIN
async def test_acknowledged(measure: Measure, who: str) -> None:
    """Queued for the client, kept until it is acknowledged, and acknowledged."""
    what = "message that is acknowledged"
    numbers = itertools.count()
    if who == "wsc_fast":
        async with hub_with(1) as (hub, peers):
            hub.enable_ack(ACKConfig(timeout=60.0, retry_interval=60.0))
            client = hub.get_client_by_id("client0")
            assert client is not None

            def ours() -> None:
                message_id = f"message-{next(numbers):08}"
                hub.send_ack_message("client0", ACKMessage(id=message_id, content="x" * 64))
                answer = masked(f'{{"type":"ack","message_id":"{message_id}"}}')
                client.get_buffer(-1)[: len(answer)] = answer
                client.buffer_updated(len(answer))

            measure(what, who, ours, times=BATCH, between=emptying(hub, peers))
            assert not hub.get_pending_acks("client0")
    else:
        theirs, empty = plain_hub(1)
        (client_id,) = theirs.clients

        def python() -> None:
            message_id = f"message-{next(numbers):08}"
            message = plain.Message(message_id, "text", "x" * 64, datetime.now(UTC).isoformat())
            theirs.send_with_ack(client_id, message, 60.0)
            answer = masked(f'{{"type":"ack","message_id":"{message_id}"}}')
            text = plain.message(answer)
            assert isinstance(text, str)
            theirs.acknowledge(text)

        measure(what, who, python, times=BATCH, between=empty)
        assert not theirs.pending
