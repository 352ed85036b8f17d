"""The hub under attack, in a process of its own.

    python -m trials.attack.server CPU SETTINGS [tls] [hooks]

SETTINGS is JSON. The hub answers each message with itself, as one does that has a user's command to
answer; one of more than 1 KB with its length. A message "join ROOM" makes its sender a member of
that room, which is made if it is not there: the mistake of an application that lets clients name
rooms. A message that begins with "slow" has an async callback of half a second. It refuses clients
that show a token. With `hooks` nobody may publish what begins with "spam", and a failure handler
takes 2 ms for each message that was refused. Prints its port,
then for each line of standard input a line of JSON: "stats" the counters of the hub, "every
SECONDS" starts a broadcast of 1 KB that often and answers {}.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable
from typing import Any

import msgspec
import uvloop

from trials.attack.wire import API_KEY
from wsc_fast import (
    ACKConfig,
    Client,
    Hub,
    HubConfig,
    Identity,
    LimitError,
    Request,
    RoomExistsError,
)
from wsc_fast.testing import Authority

SLOW = 0.5  # seconds

# The settings that docs/security.md recommends to a hub that the internet can reach.
INTERNET: dict[str, Any] = {
    "max_connections": 15_000,
    "max_connections_per_address": 50,
    "connection_rate": 1_000.0,
    "connection_rate_per_address": 20.0,
    "message_rate": 50.0,
    "byte_rate": 65_536.0,
    "max_message_size": 65_536,
    "max_fragments": 64,
    "message_timeout": 30.0,
    "max_rooms": 10_000,
    "max_rooms_per_client": 50,
    "enable_compression": True,
}


USERS = itertools.count()
# Slow callbacks under way. The memory of each, and of the messages behind it, outlasts the
# connection.
asleep = 0


async def sleep() -> None:
    global asleep
    asleep += 1
    try:
        await asyncio.sleep(SLOW)
    finally:
        asleep -= 1


def authenticate(request: Request) -> Identity | None:
    """Reads the query, the cookies and the subprotocols; refuses clients that show a token."""
    token = request.query.get("token") or request.cookies.get("token")
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    return None if token or offered else Identity(f"user{next(USERS)}")


def may_publish(client: Client, message: str | bytes) -> bool:
    return not (isinstance(message, str) and message.startswith("spam"))


class Table:
    """Writes down each failure, as into a database."""

    def handle_send_failure(self, *failure: Any) -> None:
        time.sleep(0.002)


def make_hub(settings: dict[str, Any], hooks: bool = False) -> Hub:
    hub = Hub(
        HubConfig(**INTERNET | settings),
        authenticate=authenticate,
        authorize_publish=may_publish if hooks else None,
    )
    hub.enable_ack(ACKConfig())
    hub.enable_api(keys=API_KEY)
    if hooks:
        hub.add_send_failure_handler(Table())

    @hub.on_message_received
    def answer(client: Client, message: str | bytes) -> Awaitable[None] | None:
        if isinstance(message, str) and message.startswith("join "):
            room = message[5:]
            try:
                with contextlib.suppress(RoomExistsError):
                    hub.create_room(room)
                hub.join_room(client.id, room)
            except LimitError:
                client.send("too many rooms")
        elif isinstance(message, str) and message.startswith("slow"):
            return sleep()
        else:
            client.send(message if len(message) <= 1024 else str(len(message)))
        return None

    return hub


async def main(settings: dict[str, Any], tls: bool, hooks: bool) -> None:
    hub = make_hub(settings, hooks)
    await hub.start(port=0, ssl=Authority().server_context() if tls else None)
    print(hub.port, flush=True)
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    broadcaster: asyncio.Task[None] | None = None

    async def broadcast(seconds: float) -> None:
        # In an outbox of 1 MiB, a thousand of them are an overflow.
        while True:
            await asyncio.sleep(seconds)
            hub.broadcast(bytes(1024))

    while command := (await commands.readline()).split():
        answer: Any = {}
        if command[0] == b"stats":
            answer = msgspec.to_builtins(hub.get_stats()) | {"asleep": asleep}
        else:
            broadcaster = asyncio.create_task(broadcast(float(command[1])))
        print(json.dumps(answer), flush=True)
    if broadcaster is not None:
        broadcaster.cancel()
    await hub.stop()


if __name__ == "__main__":
    # A full collection walks all that the clients hold; the hub leaves it no cycles to find.
    gc.freeze()
    gc.set_threshold(100_000, 50, 1_000)
    with contextlib.suppress(PermissionError):
        os.nice(-20)  # the core is its own
    os.sched_setaffinity(0, {int(sys.argv[1])})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(json.loads(sys.argv[2]), "tls" in sys.argv[3:], "hooks" in sys.argv[3:]))
