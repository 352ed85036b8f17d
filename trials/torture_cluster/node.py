"""One node of a scenario: a hub on the bus, and an application that does what it is told.

Reads commands from its standard input, each a JSON object on a line, and ends with it:

    {"do": "publish", "number": n, "room": r, "text": t, "key": k}    answered by "published" or
                                                                       "refused", with the number
    {"do": "say", "room": r, "text": t}    broadcast_to_room, which nobody answers
    {"do": "chat", "on": true}             broadcasts to the plain room from now on
    {"do": "look"}                         answered by "look", and the tasks, rooms and counters

Prints a JSON object for each thing that happens, with the kind as its `is`: also "ready", and
"unsaid" with the text of a message of the plain room that the bus did not take.

SIGTERM drains and stops the hub.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
from typing import Any

import uvloop

from trials.torture_cluster.sabotage import FAULTS
from trials.torture_cluster.texts import BRIEF, BRIEF_TTL, PLAIN, SIZE, TTL, kept_rooms
from wsc_fast import Client, Hub, HubMessage, Identity, RedisBus, Request, SendFailureReason
from wsc_fast.cluster import rooms
from wsc_fast.errors import HubStoppedError, WSCError

# Seconds that a room without members is followed on: so short that rooms come and go here.
LINGER = 1.0
# Seconds between two messages of the plain room.
CHAT_PAUSE = 0.02
DRAIN, STOP = 1.0, 5.0


def tell(kind: str, **fields: object) -> None:
    """Prints a line, in one call, so that a process which is killed prints all of it or nothing."""
    sys.stdout.write(json.dumps({"is": kind, **fields}) + "\n")
    sys.stdout.flush()


class Application:
    """Joins each client to all rooms, publishes, and tells what becomes of it."""

    def __init__(self, hub: Hub, name: str, count: int) -> None:
        self._hub = hub
        self._name = name
        self._rooms = [PLAIN, *kept_rooms(count)]
        self._chats = 0
        self._chatting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        hub.on_client_connected(self._connected)
        hub.add_send_failure_handler(self)

    def _connected(self, client: Client) -> None:
        for room in self._rooms:
            self._hub.join_room(client.id, room)

    async def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> None:
        if recipient == PLAIN:
            tell("unsaid", text=msg.content)

    def do(self, command: dict[str, Any]) -> None:
        """Does one command."""
        kind = command.pop("do")
        if kind == "publish":
            self._spawn(self._publish(**command))
        elif kind == "say":
            with contextlib.suppress(HubStoppedError):
                self._hub.broadcast_to_room(command["room"], command["text"])
        elif kind == "chat":
            self._chat(command["on"])
        else:
            self._look()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _publish(self, number: int, room: str, text: str, key: str | None) -> None:
        try:
            published = await self._hub.publish(room, text, idempotency_key=key)
        except WSCError as error:
            tell("refused", number=number, error=f"{type(error).__name__}: {error}")
        else:
            tell(
                "published",
                number=number,
                position=published.position,
                duplicate=published.duplicate,
            )

    def _chat(self, on: bool) -> None:
        if self._chatting is not None:
            self._chatting.cancel()
        self._chatting = self._spawn(self._go_on_chatting()) if on else None

    async def _go_on_chatting(self) -> None:
        while True:
            self._chats += 1
            with contextlib.suppress(HubStoppedError):
                self._hub.broadcast_to_room(PLAIN, f"{PLAIN} {self._name} {self._chats}")
            await asyncio.sleep(CHAT_PAUSE)

    def _look(self) -> None:
        bus = self._hub.bus
        assert isinstance(bus, RedisBus)
        tell(
            "look",
            tasks=sorted(str(task.get_coro()) for task in asyncio.all_tasks()),
            clients=self._hub.get_connected_clients(),
            rooms=self._hub.get_rooms(),
            cluster=self._hub.cluster.counters(),
            bus=bus.counters(),
        )

    async def end(self) -> None:
        """Has its own tasks end."""
        self._chat(False)
        if self._tasks:
            await asyncio.wait(self._tasks)


async def serve(arguments: argparse.Namespace) -> None:
    def authenticate(request: Request) -> Identity:
        return Identity(request.query["user"])

    rooms.LINGER = LINGER
    hub = Hub(authenticate=authenticate, bus=RedisBus(arguments.bus))
    hub.keep("kept*", size=SIZE, ttl=TTL)
    hub.keep(BRIEF, ttl=BRIEF_TTL)
    application = Application(hub, arguments.name, arguments.rooms)
    await hub.start("127.0.0.1", arguments.port, reuse_port=True)
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    obeying = asyncio.create_task(_obey(application))
    ending = asyncio.create_task(terminated.wait())
    tell("ready")
    await asyncio.wait([obeying, ending], return_when=asyncio.FIRST_COMPLETED)
    if obeying.done():
        obeying.result()
        return
    await hub.drain(DRAIN)
    await hub.stop(STOP)
    await application.end()


async def _obey(application: Application) -> None:
    """Does all commands of standard input, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        application.do(json.loads(line))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bus", required=True, help="the URL")
    parser.add_argument("--name", required=True, help="the name in its messages")
    parser.add_argument("--port", type=int, required=True, help="to listen on, with SO_REUSEPORT")
    parser.add_argument("--rooms", type=int, required=True, help="how many kept rooms")
    parser.add_argument("--faults", default="", help="promises that it breaks (sabotage.py)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for fault in filter(None, arguments.faults.split(",")):
        FAULTS[fault]()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))


if __name__ == "__main__":
    main()
