"""The process that is measured: a hub on a bus, and one without, on one loop.

    python benchmarks/cluster/node.py REDIS_URL

It prints its ports as one line of JSON, and takes commands over a connection to `control`. Each has
its words between tabs, and is answered by a line:

    local COUNT ROOM      so many broadcasts to a room of the hub without a bus, in this
                          turn. It has no answer: the members see it
    publish COUNT TASKS   so many `hub.publish` to kept rooms, awaited by so many tasks
    kept COUNT            so many `broadcast_to_room` to kept rooms; the last of each is awaited
    redis-py CHANNEL ROOM redis-py hears the channel, and broadcasts to a room of the hub
                          without a bus
    cpu                   CPU seconds of this process, user and system
    bus                   the counters of the hub on the bus

A client is a member of the room that its path names: `/ws?room=r`. A room `kept...` is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from wsc_fast import Client, Hub, HubConfig, Identity, RedisBus, Request

TEXT = "x" * 128
ROOMS = 100  # into which messages are published
# The clients answer no ping, and count each byte.
CONFIG = HubConfig(
    outbox_messages=100_000, outbox_bytes=1 << 26, heartbeat_interval=3600, heartbeat_timeout=7200
)


def admit(request: Request) -> Identity:
    return Identity(user_id=request.query["room"])


def with_rooms(hub: Hub) -> Hub:
    """Makes each client a member of the room that it asks for."""

    @hub.on_client_connected
    def enter(client: Client) -> None:
        room = client.user_id
        if hub.bus is None and room not in hub.get_rooms():
            hub.create_room(room)
        hub.join_room(client.id, room)

    return hub


class Node:
    """The two hubs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bus = RedisBus(url)
        self.local_hub = with_rooms(Hub(CONFIG, authenticate=admit))
        self.hub = with_rooms(Hub(CONFIG, authenticate=admit, bus=self.bus))
        self.hub.keep("kept*", size=100, ttl=300)
        self.tasks: list[asyncio.Task[None]] = []

    def local(self, count: int, room: str) -> None:
        for _ in range(count):
            self.local_hub.broadcast_to_room(room, TEXT)

    async def publish(self, count: int, tasks: int) -> None:
        async def some(first: int) -> None:
            for number in range(first, count, tasks):
                await self.hub.publish(f"kept-{number % ROOMS}", TEXT)

        await asyncio.gather(*(some(first) for first in range(tasks)))

    async def kept(self, count: int) -> None:
        for number in range(count - ROOMS):
            self.hub.broadcast_to_room(f"kept-{number % ROOMS}", TEXT)
        # The last message of each room says that all before it are published.
        await self.publish(ROOMS, ROOMS)

    async def hear_by_redis_py(self, channel: str, room: str) -> None:
        import redis.asyncio

        client = redis.asyncio.Redis.from_url(self.url)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        await pubsub.subscribe(channel)
        while await pubsub.get_message(timeout=0.2) is not None:
            pass

        async def hear() -> None:
            while True:
                message = await pubsub.get_message(timeout=10)
                if message is not None:
                    self.local_hub.broadcast_to_room(room, message["data"].decode())

        self.tasks.append(asyncio.create_task(hear()))


class Control(asyncio.Protocol):
    """One connection of commands."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        os._exit(0)  # the measuring process has gone

    def data_received(self, data: bytes) -> None:
        name, *arguments = data.decode().split("\t")
        if name == "local":
            self._node.local(int(arguments[0]), arguments[1])
        elif name == "cpu":
            used = resource.getrusage(resource.RUSAGE_SELF)
            self._answer([used.ru_utime, used.ru_stime])
        elif name == "bus":
            self._answer(self._node.bus.counters() | self._node.hub.cluster.counters())
        else:
            calls: dict[str, Callable[..., Awaitable[None]]] = {
                "publish": self._node.publish,
                "kept": self._node.kept,
                "redis-py": self._node.hear_by_redis_py,
            }
            values = [int(each) if each.isdigit() else each for each in arguments]
            self._node.tasks.append(asyncio.ensure_future(self._run(calls[name](*values))))

    async def _run(self, call: Awaitable[None]) -> None:
        try:
            await call
        except Exception as error:
            self._answer(repr(error))
            raise
        self._answer("ok")

    def _answer(self, value: object) -> None:
        self._transport.write(json.dumps(value).encode() + b"\n")


async def main(url: str) -> None:
    node = Node(url)
    await node.local_hub.start("127.0.0.1", 0)
    await node.hub.start("127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    control = await loop.create_server(lambda: Control(node), "127.0.0.1", 0)
    ports = {
        "local": node.local_hub.port,
        "bus": node.hub.port,
        "control": control.sockets[0].getsockname()[1],
    }
    print(json.dumps(ports), flush=True)
    await loop.create_future()


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    uvloop.run(main(sys.argv[1]))
