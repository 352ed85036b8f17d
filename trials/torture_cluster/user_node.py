"""One hub of the scenarios with users: on a bus with a store, and an application that sends.

It obeys and tells what trials/torture/server.py does. Besides it obeys

    examine HOW     send a message to each user that asks to be answered so: see below
    presence        answered by "presence" and, as JSON, who is there

and tells

    ended USER NUMBER HOW               awaiting a message has ended: "confirmed", or an error
    examined USER SENDER NUMBER HOW     the same of a message of `examine`
    told USER SENDER NUMBER REASON      a failure handler heard of this message
    behind USER                         the store did not answer: stored messages may come late
    alone                               the hub could not tell the others how messages have ended
    gone ROOM USER                      `on_presence` says that the user has left the room

A message of `examine` asks for "confirmed", "failed" or "nothing"; the last one times out soon.
"plain" is a message without acknowledgement, and ends at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from typing import Any

from trials.torture.faults import faulty
from trials.torture.server import Application, live, parser_of, run, tell
from trials.torture_cluster.user_rooms import GRACE, LEASE, PATTERN, REFRESH, ROOMS, rooms_of
from trials.torture_cluster.user_sabotage import FAULTS
from wsc_fast import (
    ACKConfig,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    PendingACK,
    RedisBus,
    RedisOfflineStore,
    Request,
    SendFailureReason,
    StoredMessage,
)
from wsc_fast.errors import BusError, OfflineStoreError, WSCError

# Seconds after which a message times out that nobody answers; other messages never do.
SOON, NEVER = 1.0, 300.0
# Seconds in which Redis has to be there for a hub that starts.
AT_ALL = 60.0
# Seconds for which the store keeps messages after the last one.
STORE_TTL = 600.0
# Seconds without an answer after which a hub, whose patience is 2 s, may have given up a reading.
SILENT = 1.8
# Seconds between two sends of a message.
RETRY = 0.5


class Store(RedisOfflineStore):
    """Tells which readings fail: the hub goes on without the messages, which come later.

    The hub cancels a reading when it has waited for long enough, and also when its client leaves,
    which is no failure of the store.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = 0
        self._answered_at = 0.0

    async def read(self, user_id: str, **options: Any) -> list[StoredMessage]:
        if not self._reading:
            self._answered_at = time.monotonic()
        self._reading += 1
        try:
            found = await super().read(user_id, **options)
        except asyncio.CancelledError:
            if time.monotonic() - self._answered_at > SILENT:
                tell("behind", user_id)
            raise
        except Exception:
            tell("behind", user_id)
            raise
        finally:
            self._reading -= 1
        self._answered_at = time.monotonic()
        return found


class Alone(logging.Handler):
    """Hears in the hub's log that other hubs were not told."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "words_failed":
            tell("alone")


class UserApplication(Application):
    """Sends to all users, and tells what the hub says of them and of their messages."""

    def __init__(self, hub: Hub, store: Any, arguments: argparse.Namespace) -> None:
        super().__init__(hub, store, arguments)
        self._said = arguments.first
        hub.on_client_connected(self._connected)
        hub.on_presence(self._changed)
        hub.add_send_failure_handler(self)

    def _connected(self, client: Client) -> None:
        assert client.device_id is not None
        for room in rooms_of(client.user_id, client.device_id):
            self.hub.join_room(client.id, room)

    def _changed(self, room: str, joined: set[str], left: set[str]) -> None:
        for user in left:
            tell("gone", room, user)

    async def handle_send_failure(
        self, msg: HubMessage, recipient: str, reason: SendFailureReason, error: Exception
    ) -> None:
        tell("told", msg.to, msg.content, reason)

    def do(self, command: str) -> None:
        word, _, rest = command.partition(" ")
        if word == "examine":
            self.spawn(self._examine(rest))
        elif word == "presence":
            self.spawn(self._tell_presence())
        else:
            super().do(command)

    async def watch(self, user: str, number: int, pending: PendingACK) -> None:
        tell("ended", user, number, await self._ending(user, number, pending))

    async def _ending(self, user: str, number: int, pending: PendingACK) -> str:
        try:
            await self.outcome(user, number, pending)
        except WSCError as error:
            return type(error).__name__
        return "confirmed"

    async def _examine(self, how: str) -> None:
        one = self._say if how == "plain" else self._examine_one
        await asyncio.gather(*(one(user, how) for user in self.users))

    async def _examine_one(self, user: str, how: str) -> None:
        timeout = SOON if how == "nothing" else None
        number, pending = self.send(user, data={"answer": how}, timeout=timeout)
        tell("examined", user, self.name, number, await self._ending(user, number, pending))

    async def _say(self, user: str, how: str) -> None:
        self._said += 1
        content = f"{self.name}-{how} {self._said}"
        try:
            self.hub.send_to_user(user, HubMessage(content=content, to=user))
        except WSCError as error:
            tell("examined", user, content, type(error).__name__)
        else:
            tell("examined", user, content, "sent")

    async def _tell_presence(self) -> None:
        cluster = self.hub.cluster
        found: dict[str, Any] = {}
        try:
            for room in ROOMS:
                found[room] = sorted(each.user_id for each in await cluster.members(room))
            found["online"] = sorted(await cluster.online(self.users))
            found["hubs"] = sorted(each.name for each in await cluster.nodes())
        except WSCError as error:
            found["trouble"] = f"{type(error).__name__}: {error}"
        tell("presence", json.dumps(found))


async def serve(arguments: argparse.Namespace) -> None:
    def authenticate(request: Request) -> Identity:
        return Identity(request.query["user"], device_id=request.query["device"])

    kind: Any = Store
    for fault in filter(None, arguments.faults.split(",")):
        if fault in FAULTS:
            FAULTS[fault]()
        else:
            kind = faulty(kind, fault)
    store = kind(arguments.store, ttl=STORE_TTL, timeout=arguments.patience)
    hub = Hub(
        HubConfig(presence_grace=GRACE),
        authenticate=authenticate,
        bus=RedisBus(arguments.store, lease=LEASE, refresh=REFRESH),
    )
    config = ACKConfig(
        enable_offline_messages=True,
        offline_limit=1_000_000,
        retry_interval=RETRY,
        max_retries=1_000_000,
        timeout=NEVER,
    )
    hub.enable_ack(config, store=store)
    hub.presence(PATTERN)
    logging.getLogger("wsc_fast").addHandler(Alone())
    application = UserApplication(hub, store, arguments)
    await _start(hub, arguments.port)
    await live(application, arguments.drain)


async def _start(hub: Hub, port: int) -> None:
    """Starts it, like a service manager again and again while Redis is not there."""
    async with asyncio.timeout(AT_ALL):
        while True:
            try:
                return await hub.start("127.0.0.1", port, reuse_port=True)
            except (BusError, OfflineStoreError) as error:
                logging.info("the hub does not start: %s", error)
                await asyncio.sleep(0.05)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--faults", default="", help="promises that it and its store break")
    run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
