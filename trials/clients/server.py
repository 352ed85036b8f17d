"""A hub of a scenario, and an application that lets clients into rooms and answers requests.

Reads commands from its standard input, each a JSON object on a line, and ends with it:

    {"do": "publish", "number": n, "room": r, "text": t, "key": k}    answered by "published" or
                                                                       "refused", with the number
    {"do": "history", "room": r, "after": p}    answered by a "list" of the texts of all messages
                                                after that position, marks left out
    {"do": "upgrades"}                          answered by a "list" of the times of all upgrades

Prints "ready" once it serves, and the answers. SIGTERM drains and stops the hub.

A token is the time of its end, in seconds since 1970: such a client is closed with 4401 then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from typing import Any

import uvloop

from trials.torture_cluster.node import tell
from trials.torture_cluster.sabotage import FAULTS
from wsc_fast import (
    Client,
    Hub,
    HubConfig,
    Identity,
    MemoryBus,
    RedisBus,
    Request,
)
from wsc_fast.bus.base import MARK, Retention
from wsc_fast.errors import WSCError

DRAIN, STOP = 0.5, 5.0
RETENTION = Retention(10_000, 3600.0)


# The times of all upgrades that came so far as to be authenticated.
upgrades: list[float] = []


def authenticate(request: Request) -> Identity | None:
    upgrades.append(time.time())
    token = request.query.get("token")
    if token is None:
        return Identity("ann")
    if float(token) < time.time():
        return None
    return Identity("ann", expires_at=float(token))


def make(bus: str, connection_rate: float) -> Hub:
    """The hub; its bus is that of a URL, or a file."""
    config = HubConfig(
        allowed_origins=("*",),
        connection_rate=connection_rate,
        max_handshakes=20_000,
    )
    known: RedisBus | MemoryBus = RedisBus(bus) if "://" in bus else MemoryBus(bus)
    hub = Hub(config, authenticate=authenticate, bus=known)
    hub.keep("kept*", size=RETENTION.size, ttl=RETENTION.ttl)
    hub.on_join_request(lambda client, room_id: room_id.startswith("kept"))

    @hub.on_request
    async def answer(client: Client, data: Any) -> Any:
        return data

    return hub


async def publish(hub: Hub, number: int, room: str, text: str, key: str | None) -> None:
    """Publishes, and tells what became of it."""
    try:
        published = await hub.publish(room, text, idempotency_key=key)
    except WSCError as error:
        tell("refused", number=number, error=f"{type(error).__name__}: {error}")
    else:
        position, duplicate = published.position, published.duplicate
        tell("published", number=number, position=position, duplicate=duplicate)


async def tell_history(hub: Hub, room: str, after: str) -> None:
    """Tells what is in the history of a room.

    It is read from the bus: `hub.cluster.history` does not go on behind a mark.
    """
    texts: list[str] = []
    bus = hub.bus
    assert bus is not None
    while (page := await bus.read(room, after, 1000, RETENTION)).entries:
        texts += [
            each.entry.partition(b"\n")[2].decode() for each in page.entries if each.entry != MARK
        ]
        after = page.entries[-1].position
    tell("list", list=texts)


async def tell_upgrades(hub: Hub) -> None:
    """Tells when clients were let in."""
    tell("list", list=upgrades)


DOES: dict[str, Any] = {
    "publish": publish,
    "history": tell_history,
    "upgrades": tell_upgrades,
}


async def obey(hub: Hub) -> None:
    """Does all commands of standard input, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with asyncio.TaskGroup() as tasks:
        async for line in reader:
            command = json.loads(line)
            do = DOES[command.pop("do")]
            tasks.create_task(do(hub, **command))


async def serve(arguments: argparse.Namespace) -> None:
    hub = make(arguments.bus, arguments.connection_rate)
    await hub.start("127.0.0.1", arguments.port, reuse_port=True)
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    obeying = asyncio.create_task(obey(hub))
    ending = asyncio.create_task(terminated.wait())
    tell("ready")
    await asyncio.wait([obeying, ending], return_when=asyncio.FIRST_COMPLETED)
    if obeying.done():
        obeying.result()
    else:
        await hub.drain(DRAIN)
    await hub.stop(STOP)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bus", required=True, help="a URL, or the file of a MemoryBus")
    parser.add_argument("--name", required=True, help="in its log")
    parser.add_argument("--port", type=int, required=True, help="to listen on, with SO_REUSEPORT")
    parser.add_argument("--connection-rate", type=float, default=0.0, help="see HubConfig")
    parser.add_argument("--faults", default="", help="promises that it breaks (sabotage.py)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for fault in filter(None, arguments.faults.split(",")):
        FAULTS[fault]()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
