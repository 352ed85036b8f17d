"""One server process of a scenario: a hub, and an application that publishes to all users.

Reads commands from its standard input, a line each, and ends with it:

    publish     publish to all users from now on, each message with acknowledgement
    pause       publish no more; answered by "idle" once no `accepted` is awaited
    look        answered by "look" and, as JSON, which messages are where, and who waits

Prints a line for each thing that happens:

    ready                       the hub serves
    accepted USER NUMBER        `accepted` of this message has returned
    refused USER NUMBER ERROR   `accepted` of this message has raised
    broken ERROR                something raised what it must not
    stuck WHO                   a sender still waits after the hub has stopped

SIGTERM drains and stops the hub, while the application goes on sending until it is told that the
hub has stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from trials.torture.faults import FAULTS, faulty
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    Identity,
    OfflineStoreError,
    PendingACK,
    PendingFullError,
    RedisOfflineStore,
    Request,
    SQLiteOfflineStore,
)
from wsc_fast.errors import HubStoppedError, WSCError

# Seconds that senders have, after the hub has stopped, to hear of it.
AFTERWARDS = 3.0


def tell(*words: object) -> None:
    """Prints a line, in one call, so that a process which is killed prints all of it or nothing."""
    sys.stdout.write(" ".join(" ".join(map(str, words)).split()) + "\n")
    sys.stdout.flush()


class Application:
    """Sends to all users, and tells what becomes of each message."""

    def __init__(self, hub: Hub, store: Any, arguments: argparse.Namespace) -> None:
        self.hub = hub
        self.name = arguments.sender
        self.users = [f"user{number}" for number in range(arguments.users)]
        self.ending = False
        self._store = store
        self._arguments = arguments
        self._publishing = False
        self._publishers: dict[str, asyncio.Task[None]] = {}
        self._next: dict[str, int] = {}
        # Messages that wait for `accepted`, and those that wait for the acknowledgement.
        self._accepting: set[str] = set()
        self._awaiting: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def do(self, command: str) -> None:
        """Does what a line of standard input asks for."""
        if command == "publish":
            self.publish()
        elif command == "pause":
            self.spawn(self.pause())
        else:
            self.spawn(self.look())

    # --- sending ---

    def publish(self) -> None:
        self._publishing = True
        for user in self.users:
            former = self._publishers.get(user)
            if former is not None:
                former.cancel()  # it may wait for ever
            self._publishers[user] = asyncio.create_task(self._publish_to(user))

    async def pause(self) -> None:
        self._publishing = False
        if self._publishers:
            await asyncio.wait(self._publishers.values())
        tell("idle")

    async def _publish_to(self, user: str) -> None:
        try:
            while self._publishing and not self.ending:
                await self._wave(user)
                await asyncio.sleep(random.random() * self._arguments.pause)
        except HubStoppedError:
            pass
        except Exception:
            tell("broken", json.dumps(traceback.format_exc()))

    async def _wave(self, user: str) -> None:
        """Sends some messages, and waits for `accepted` of most of them."""
        wave = []
        for _ in range(random.randint(1, self._arguments.wave)):
            try:
                number, pending = self.send(user, data=self._padding())
            except PendingFullError:
                break
            if random.random() < 0.3:
                self.spawn(self.watch(user, number, pending))
            if random.random() < 0.9:
                wave.append(self._accepted(user, number, pending))
        if random.random() < 0.5:
            for each in wave:
                await each
        else:
            await asyncio.gather(*wave)

    def send(self, user: str, **fields: Any) -> tuple[int, PendingACK]:
        """Sends the next message to a user; returns its number, too.

        Args:
            user: the recipient.
            fields: further ones of the ACKMessage.

        Raises:
            PendingFullError: too much is pending.
            HubStoppedError: the hub has stopped.
        """
        number = self._next.get(user, self._arguments.first)
        content = f"{self.name} {number}"
        message = ACKMessage(id=f"{user} {content}", content=content, **fields)
        pending = self.hub.send_ack_message_to_user(user, message)
        self._next[user] = number + 1
        return number, pending

    def _padding(self) -> dict[str, Any]:
        return {"padding": "x" * self._arguments.size} if self._arguments.size else {}

    async def _accepted(self, user: str, number: int, pending: PendingACK) -> None:
        who = f"{user} {number}"
        self._accepting.add(who)
        try:
            await pending.accepted()
        except WSCError as error:
            tell("refused", user, number, type(error).__name__, error)
        else:
            tell("accepted", user, number)
        finally:
            self._accepting.discard(who)

    async def watch(self, user: str, number: int, pending: PendingACK) -> None:
        """However the message ends, it has to end."""
        with contextlib.suppress(WSCError):
            await self.outcome(user, number, pending)

    async def outcome(self, user: str, number: int, pending: PendingACK) -> None:
        """Waits for the acknowledgement.

        Raises:
            WSCError: the message ends otherwise.
        """
        who = f"{user} {number}"
        self._awaiting.add(who)
        try:
            await pending
        except WSCError:
            raise
        except Exception:
            tell("broken", json.dumps(traceback.format_exc()))
        finally:
            self._awaiting.discard(who)

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- looking ---

    async def look(self) -> None:
        """Tells which messages are where, by user, as [sender, number]; and who waits."""
        stored: dict[str, list[Any]] = {}
        pending: dict[str, list[Any]] = {}
        trouble = ""
        for user in self.users:
            try:
                stored[user] = await self._stored(user)
            except OfflineStoreError as error:
                trouble = str(error)
            pending[user] = [
                named(message.content)
                for client in self.hub.get_clients_by_user(user)
                for message in self.hub.get_pending_acks(client.id)
            ]
        found = {
            "stored": stored,
            "pending": pending,
            "trouble": trouble,
            "accepting": sorted(self._accepting),
            "awaiting": sorted(self._awaiting),
        }
        tell("look", json.dumps(found))

    async def _stored(self, user: str) -> list[Any]:
        found, after = [], 0
        while page := await self._store.read(user, after=after, limit=1000):
            after = page[-1].position
            found += [named(json.loads(each.data.splitlines()[-1])["content"]) for each in page]
        return found

    # --- the end ---

    async def end(self, drain: float) -> None:
        """Drains and stops the hub; the senders go on until they hear of it."""
        if drain:
            await self.hub.drain(drain)
        await self.hub.stop()
        self.ending = True
        waiting = {*self._publishers.values(), *self._tasks}
        if waiting:
            await asyncio.wait(waiting, timeout=AFTERWARDS)
        for who in sorted(self._accepting):
            tell("stuck", "accepted:", who)
        for who in sorted(self._awaiting):
            tell("stuck", "acknowledged:", who)


def named(content: str) -> list[Any]:
    """The sender of a message, and its number."""
    sender, number = content.split()
    return [sender, int(number)]


async def _start(hub: Hub, listen: dict[str, Any], attach: Any, *, before: bool) -> None:
    """Starts a hub with acknowledgements enabled before or after.

    Before: like a service manager, again and again while the store is not there.
    """
    if before:
        attach()
    while True:
        try:
            await hub.start(**listen)
        except OfflineStoreError as error:
            logging.info("the hub does not start: %s", error)
            await asyncio.sleep(0.05)
        else:
            break
    if not before:
        attach()


async def serve(arguments: argparse.Namespace) -> None:
    def authenticate(request: Request) -> Identity:
        return Identity(request.query["user"])

    if arguments.store.startswith("redis:"):
        kind = faulty(RedisOfflineStore, arguments.fault)
        store = kind(arguments.store, timeout=arguments.patience)
    else:
        kind = faulty(SQLiteOfflineStore, arguments.fault)
        store = kind(arguments.store, busy_timeout=arguments.patience)
    hub = Hub(authenticate=authenticate)
    config = ACKConfig(
        enable_offline_messages=True,
        offline_limit=1_000_000,
        retry_interval=arguments.retry,
        max_retries=100,
        timeout=60.0,
    )
    listen: dict[str, Any] = {"host": "127.0.0.1", "port": arguments.port, "reuse_port": True}
    if arguments.socket is not None:
        listen = {"sock": socket.socket(fileno=arguments.socket)}
    await _start(
        hub,
        listen,
        lambda: hub.enable_ack(config, store=store),
        before=arguments.attach == "before",
    )
    await live(Application(hub, store, arguments), arguments.drain)


async def live(application: Application, drain: float) -> None:
    """Obeys standard input to its end, or until SIGTERM; then drains and stops."""
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    tell("ready")
    obeying = asyncio.create_task(_obey(application))
    ending = asyncio.create_task(terminated.wait())
    await asyncio.wait([obeying, ending], return_when=asyncio.FIRST_COMPLETED)
    if obeying.done():
        obeying.result()
    else:
        await application.end(drain)


async def _obey(application: Application) -> None:
    """Does all commands of standard input, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        application.do(line.decode().strip())


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments that all servers have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--store", required=True, help="a path, or the URL of a Redis server")
    parser.add_argument("--sender", required=True, help="the name in its messages")
    parser.add_argument("--port", type=int, help="to listen on, with SO_REUSEPORT")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="the first number to each user")
    parser.add_argument("--size", type=int, default=0, help="bytes of padding in each message")
    parser.add_argument("--wave", type=int, default=8, help="most messages to a user at once")
    parser.add_argument("--pause", type=float, default=0.02, help="most seconds between waves")
    parser.add_argument("--retry", type=float, default=0.3, help="seconds, of ACKConfig")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds, of the store")
    parser.add_argument("--drain", type=float, default=0.0, help="seconds")
    parser.add_argument("--seed", default="")
    return parser


def run(
    serving: Callable[[argparse.Namespace], Coroutine[Any, Any, None]],
    arguments: argparse.Namespace,
) -> None:
    """Runs a server with a log and a seed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    random.seed(arguments.seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving(arguments))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--socket", type=int, help="the descriptor of a listening socket")
    parser.add_argument("--attach", choices=["before", "after"], default="before")
    parser.add_argument("--fault", choices=FAULTS)
    run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
