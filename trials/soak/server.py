"""The hub of the soak, in a process of its own: random calls, and a log of who should get what.

Started by run.py. Commands come by line on stdin (`play`, `rest`, `stat`, `stop`, `quit`); the log
goes out on stdout, one JSON array a line, in the order of the hub calls. Each line is written in
the turn of the call that it tells of, with no other call in between:

    ["listening", port]
    ["E", serial, user]              a client has entered: it counts as connected from here on
    ["G", serial, code]              its connection has gone, with the hub's close code
    ["B", number, [serial...]]       broadcast, but for these
    ["S", number, [serial...]]       sent to these: a room, or one client
    ["U", number, held, user, [serial...]]   a HubMessage; held behind a replay
    ["A", number, user]              a message with acknowledgement
    ["Y", serial]                    it said goodbye: all before this line has to arrive
    ["K", serial, code]              the hub closes it, with this code: likewise
    ["I", serial, count]             its message of this count was heard
    ["F", number, recipient, reason] reported to the failure handler
    ["X", text]                      a violation that this half saw
    ["L", seconds]                   this process stood still for so long
    ["stat", {...}], ["end", {...}]  internals; what was done
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import ssl
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import trustme
import uvloop

from trials.soak.messages import (
    BYE,
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    HEARTBEAT_INTERVAL,
    HEARTBEAT_TIMEOUT,
    LATE,
    STOOD_STILL,
    body,
    number_of,
    parse,
    watch_lateness,
)
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Client,
    Hub,
    HubConfig,
    HubMessage,
    Identity,
    LoopBusyError,
    QueueFullError,
    Request,
    RoomNotFoundError,
    SQLiteOfflineStore,
    UserOfflineError,
    ValidationError,
    WSCError,
)

ROOMS = 40
TICK = 0.01
# The logger, the module and the function that tell of a failure handler's queue that is full.
QUEUE_IS_FULL = ("wsc_fast", "reporter", "overflows")


class ProvokedError(Exception):
    """Raised on purpose, by callbacks."""


class SoakHub(Hub):
    """Logs each broadcast where it happens, so that those from other threads are logged too."""

    log_broadcast: Any = None

    def broadcast(self, message: Any, *, exclude: Any = (), key: str | None = None) -> int:
        count = super().broadcast(message, exclude=exclude, key=key)
        if not self._is_away():
            self.log_broadcast(message, exclude)
        return count


class Watch(logging.Handler):
    """Every warning and every traceback is a violation, unless the soak provoked it."""

    def __init__(self, soak: Soak) -> None:
        super().__init__()
        self.soak = soak

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ProvokedError):
            self.soak.done["provoked errors logged"] += 1
        elif (record.name, record.module, record.funcName) == QUEUE_IS_FULL:
            # Clients that stall lose more frames at once than the queue of failures takes.
            self.soak.done["times that the failure queue was full"] += 1
        elif error is not None or record.levelno >= logging.WARNING:
            text = record.getMessage()
            if error is not None:
                text += "\n" + "".join(traceback.format_exception(error))
            self.soak.log("X", f"log: {text}")


class Soak:
    """The hub and what is done with it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.draw = random.Random(options.seed)
        self.done: Counter[str] = Counter()
        self.lines: list[bytes] = []
        self.counter = 0
        self.here: list[Client] = []  # entered, and neither gone nor closed by us
        self.place: dict[Client, int] = {}
        self.ids: dict[str, Client] = {}
        self.users: dict[str, set[Client]] = {}
        self.rooms: dict[str, set[Client]] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.acking = [f"a{i}" for i in range(options.singles)]
        self.acking += [f"s{i}" for i in range(options.shared)]
        self.playing = True
        self.resting = 0.0  # until when; one of the two processes cannot keep up
        self.stopping = threading.Event()
        self.out: asyncio.WriteTransport | None = None
        self.hub = hub = SoakHub(
            HubConfig(
                enable_compression=True,
                server_no_context_takeover=False,
                client_no_context_takeover=False,
                heartbeat_interval=HEARTBEAT_INTERVAL,
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                handshake_timeout=HANDSHAKE_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                write_buffer_size=1 << 15,
                outbox_messages=512,
                max_message_size=1 << 17,
                # More than anybody who behaves sends: whoever floods is read no further.
                message_rate=500.0,
                byte_rate=1 << 20,
                rate_limit_action="pause",
                max_connections=options.limit,
            ),
            authenticate=self.authenticate,
        )
        hub.log_broadcast = self.log_broadcast
        hub.enable_ack(
            ACKConfig(
                enable_offline_messages=True,
                timeout=36_000.0,
                retry_interval=1.0,
                max_retries=1_000_000,
                offline_limit=1_000_000,
            ),
            store=SQLiteOfflineStore(options.store),
        )
        hub.on_client_connected(self.connected)
        hub.on_client_disconnected(self.disconnected)
        hub.on_message_received(self.received)
        hub.on_error(self.error)
        hub.add_send_failure_handler(self)

    # --- the log ---

    def log(self, *line: Any) -> None:
        self.lines.append(json.dumps(line).encode() + b"\n")

    async def write(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self.lines and self.out is not None:
                self.out.write(b"".join(self.lines))
                self.lines.clear()

    def log_broadcast(self, message: str | bytes, exclude: Any) -> None:
        content = message.encode() if isinstance(message, str) else message
        excluded = [client.user_data["serial"] for client in exclude]
        self.log("B", int(content[: content.index(b" ")]), excluded)

    def violation(self, text: str) -> None:
        self.log("X", text)

    # --- callbacks ---

    def authenticate(self, request: Request) -> Any:
        query = request.query
        if query["kind"] == "autherror":
            raise ProvokedError("authenticate")
        if query["kind"] == "refused":
            return None
        data = {"serial": int(query["n"]), "kind": query["kind"], "heard": 0}
        identity = Identity(query["user"], query.get("id"), data)
        if query["kind"] == "slowauth":

            async def later() -> Identity | None:
                await asyncio.sleep(self.draw.random() * 0.3)
                if self.draw.random() < 0.2:
                    raise ProvokedError("authenticate, later")
                return identity if self.draw.random() < 0.7 else None

            return later()
        return identity

    def connected(self, client: Client) -> Any:
        serial = client.user_data["serial"]
        if (older := self.ids.get(client.id)) is not None:
            self.closed(older, 4409)
        self.ids[client.id] = client
        self.place[client] = len(self.here)
        self.here.append(client)
        self.users.setdefault(client.user_id, set()).add(client)
        self.log("E", serial, client.user_id)
        self.done["clients entered"] += 1
        if client.user_data["kind"] == "async":
            return asyncio.sleep(self.draw.random() * 0.02)
        if client.user_data["kind"] == "unwanted":
            self.closed(client, 1011)
            raise ProvokedError("on_client_connected")
        if self.rooms and self.draw.random() < 0.5:
            self.join(client)
        return None

    def forget(self, client: Client) -> None:
        place = self.place.pop(client, None)
        if place is None:
            return
        del self.ids[client.id]
        last = self.here.pop()
        if last is not client:
            self.here[place] = last
            self.place[last] = place
        members = self.users[client.user_id]
        members.discard(client)
        if not members:
            del self.users[client.user_id]
        for room in self.rooms.values():
            room.discard(client)

    def disconnected(self, client: Client) -> None:
        self.forget(client)
        self.log("G", client.user_data["serial"], client.close_code)
        if self.playing and self.draw.random() < 0.05:
            self.room_broadcast()
        if self.draw.random() < 0.02:
            self.done["callbacks that raised"] += 1
            raise ProvokedError("on_client_disconnected")

    def closed(self, client: Client, code: int) -> None:
        """The hub closes it now, or has just done so."""
        self.log("K", client.user_data["serial"], code)
        self.forget(client)

    def received(self, client: Client, message: str | bytes) -> Any:
        if client.user_data["kind"] == "async":
            return self.take_later(client, message)
        return self.take(client, message)

    async def take_later(self, client: Client, message: str | bytes) -> None:
        if self.draw.random() < 0.5:
            await asyncio.sleep(self.draw.random() * 0.02)
        self.take(client, message)

    def take(self, client: Client, message: str | bytes) -> None:
        text = message if isinstance(message, str) else message.decode()
        data = client.user_data
        if text[1:2] != " ":
            return  # of those that misbehave
        what, count = text[0], int(text.split(" ", 2)[1])
        data["heard"] += 1
        if count != data["heard"]:
            self.violation(f"client {data['serial']} sent {count} as its {data['heard']}.")
        self.log("I", data["serial"], count)
        self.done["client messages heard"] += 1
        if what == "e" and client.is_connected():
            self.direct(client)
        elif what == "o" and self.playing:
            self.step()
        elif what == "x":
            self.done["callbacks that raised"] += 1
            raise ProvokedError("on_message_received")
        elif what == "q" and client in self.place and client.is_connected():
            self.disconnect(client)
        elif what in "bB" and client.is_connected() and client in self.place:
            if what == "B":
                client.send(BYE)
                self.log("S", -1, [data["serial"]])
            self.log("Y", data["serial"])

    def error(self, client: Client | None, error: BaseException) -> None:
        self.done[f"on_error: {type(error).__name__}"] += 1
        if self.draw.random() < 0.02:
            raise ProvokedError("on_error")

    async def handle_send_failure(
        self, message: HubMessage, recipient: str, reason: Any, error: Exception
    ) -> None:
        self.done[f"failures: {reason}"] += 1
        raw = message.type == "raw"
        content = message.data["bytes"] if raw and message.data else message.content
        if not isinstance(content, bytes | str):
            if not isinstance(error, ValidationError):  # of `misuse`
                self.violation(f"a failure of {message!r} for {recipient}: {reason}, {error!r}")
            return
        with contextlib.suppress(ValueError):
            number = parse(content if isinstance(content, bytes) else content.encode())
            if not raw:
                self.log("F", number, recipient, str(reason))
        if self.draw.random() < 0.01:
            raise ProvokedError("failure handler")

    # --- what is done ---

    def message(self, *, key: int = 0) -> tuple[int, str | bytes]:
        self.counter += 1
        text = self.draw.random() < 0.5
        number = number_of(self.counter, key=key, text=text)
        content = body(number, self.size())
        return number, content.decode() if text else content

    def size(self) -> int:
        kind = self.draw.random()
        if kind < 0.9:
            return self.draw.randrange(200)
        if kind < 0.99:
            return self.draw.randrange(4_000)
        return self.draw.choice((30_000, 66_000)) if kind > 0.998 else 10_000

    def broadcast(self) -> None:
        draw = self.draw
        key = draw.randrange(1, 8) if draw.random() < 0.1 else 0
        _, message = self.message(key=key)
        exclude = []
        if self.here and draw.random() < 0.2:
            exclude = [draw.choice(self.here) for _ in range(3)]
        self.hub.broadcast(message, exclude=exclude, key=str(key) if key else None)
        self.done["broadcasts, conflated" if key else "broadcasts"] += 1

    def room_broadcast(self) -> None:
        if not self.rooms:
            return
        room = self.draw.choice(list(self.rooms))
        number, message = self.message()
        exclude: list[Client] = []
        if self.rooms[room] and self.draw.random() < 0.2:
            exclude = [self.draw.choice(list(self.rooms[room]))]
        members = [client for client in self.rooms[room] if client not in exclude]
        before = [client for client in members if client.is_connected()]
        queued = self.hub.broadcast_to_room(room, message, exclude=exclude)
        self.log("S", number, [client.user_data["serial"] for client in members])
        if queued != sum(client.is_connected() for client in before):
            self.violation(f"broadcast_to_room gave {queued} for {len(before)} members")
        self.done["room broadcasts"] += 1

    def direct(self, client: Client) -> None:
        key = self.draw.randrange(1, 8) if self.draw.random() < 0.2 else 0
        number, message = self.message(key=key)
        name = str(key) if key else None
        try:
            if self.draw.random() < 0.5:
                client.send(message, key=name)
            else:
                self.hub.send_to_client(client.id, message, key=name)
        except QueueFullError:
            self.done["direct sends refused"] += 1
            return
        except WSCError:
            if client.is_connected():
                raise
            return
        self.log("S", number, [client.user_data["serial"]])
        self.done["direct sends"] += 1

    def user_message(self) -> tuple[int, HubMessage]:
        self.counter += 1
        priority = self.draw.randrange(1, 5) if self.draw.random() < 0.3 else 2
        number = number_of(self.counter, priority=priority)
        content = body(number, self.size() % 2_000).decode()
        return number, HubMessage(id=str(number), content=content, priority=priority)

    def to_user(self) -> None:
        acks = self.hub._acks
        assert acks is not None
        kind = self.draw.random()
        if kind < 0.1 and acks.replaying:
            user = self.draw.choice(sorted(acks.replaying))
        elif kind < 0.2 or not self.here:
            user = self.draw.choice(self.acking)
        else:
            user = self.draw.choice(self.here).user_id
        number, message = self.user_message()
        held = user in acks.replaying
        try:
            self.hub.send_to_user(user, message)
        except UserOfflineError:
            self.done["messages to users who are away"] += 1
            return
        except QueueFullError:
            self.done["user messages refused"] += 1
            return
        to = [client.user_data["serial"] for client in self.users.get(user, ())]
        self.log("U", number, held, user, to)
        self.done["user messages, held behind a replay" if held else "user messages"] += 1

    def with_ack(self) -> None:
        user = self.draw.choice(self.acking)
        self.counter += 1
        number = number_of(self.counter)
        message = ACKMessage(id=str(number), content=body(number, self.size() % 2_000).decode())
        clients = list(self.users.get(user, ()))
        if user[0] == "s" and clients and self.draw.random() < 0.5:
            client = self.draw.choice(clients)
            if not client.is_connected():
                return
            pending = self.hub.send_ack_message(client.id, message)
        else:
            pending = self.hub.send_ack_message_to_user(user, message)
        self.log("A", number, user)
        self.done["messages with acknowledgement"] += 1
        if self.draw.random() < 0.2:
            self.spawn(self.accepted(pending))

    async def accepted(self, pending: Any) -> None:
        # Whether the client then fails it is the client's business.
        with contextlib.suppress(WSCError):
            await pending.accepted()
        self.done["acknowledgements accepted"] += 1

    async def retry(self) -> None:
        result = await self.hub.send_to_user_with_retry("nobody", HubMessage(content="x"))
        if result.success:
            self.violation("a message to nobody was sent")
        self.done["sends with retry"] += 1

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def join(self, client: Client) -> None:
        room = self.draw.choice(list(self.rooms))
        if client.is_connected():
            self.hub.join_room(client.id, room)
            self.rooms[room].add(client)
            self.done["joins"] += 1

    def leave(self, client: Client) -> None:
        room = self.draw.choice(list(self.rooms))
        if client.is_connected():
            self.hub.leave_room(client.id, room)
            self.rooms[room].discard(client)
            self.done["leaves"] += 1

    def toggle_room(self) -> None:
        room = f"room {self.draw.randrange(ROOMS)}"
        if room not in self.rooms:
            self.hub.create_room(room)
            self.rooms[room] = set()
            self.done["rooms created"] += 1
        elif self.draw.random() < 0.3:
            self.hub.delete_room(room)
            del self.rooms[room]
            self.done["rooms deleted"] += 1

    def disconnect(self, client: Client) -> None:
        if not client.is_connected():
            return
        code = self.draw.choice((1000, 1008, 4000))
        clients = self.hub.get_clients_by_user(client.user_id)
        if self.draw.random() < 0.3:
            for each in clients:
                self.closed(each, code)
            self.hub.disconnect_user(client.user_id, code, "soak")
            self.done["disconnect_user"] += 1
        else:
            self.closed(client, code)
            client.disconnect(code, "soak")
            self.done["disconnects"] += 1

    def misuse(self) -> None:
        for call, kind in (
            (lambda: self.hub.broadcast(5), ValidationError),
            (lambda: self.hub.broadcast_to_room("no such room", "x"), RoomNotFoundError),
        ):
            try:
                call()
            except kind:
                self.done["misuses refused"] += 1
            else:
                self.violation("a misuse was not refused")

    def check(self) -> None:
        """What the hub says of rooms and clients against what was done."""
        open_ = {client.id for client in self.here if client.is_connected()}
        if open_ != set(self.hub.get_connected_client_ids()):
            self.violation("get_connected_client_ids differs from the model")
        for room, members in self.rooms.items():
            wanted = sorted(client.id for client in members if client.is_connected())
            if wanted != sorted(self.hub.get_room_clients(room)):
                self.violation(f"get_room_clients({room!r}) differs from the model")
        self.done["checks of members"] += 1

    def step(self) -> None:
        draw, kind = self.draw, self.draw.random()
        if kind < 0.08:
            self.toggle_room()
        elif kind < 0.14:
            self.with_ack()
        elif kind < 0.17:
            self.misuse()
        elif kind < 0.18:
            self.spawn(self.retry())
        elif kind < 0.20:
            self.check()
        elif self.here and self.rooms:
            client = draw.choice(self.here)
            if kind < 0.35:
                self.join(client)
            elif kind < 0.42:
                self.leave(client)
            elif kind < 0.55:
                self.room_broadcast()
            elif kind < 0.75:
                self.direct(client)
            elif kind < 0.985:
                self.to_user()
            else:
                self.disconnect(client)

    async def play(self) -> None:
        """Small calls at a steady rate; broadcasts in bursts, to so many receivers a second."""
        loop = asyncio.get_running_loop()
        credit, burst, last = 0.0, 1, loop.time()
        while self.playing:
            await asyncio.sleep(TICK)
            now = loop.time()
            if now < self.resting:
                last = now
                self.done["ticks rested, as this machine is slow"] += 1
                continue
            credit = min(credit + (now - last) * self.options.rate, 20.0 * len(self.here) + 1)
            last = now
            for _ in range(self.draw.randrange(9)):
                self.step()
            if self.here and credit >= burst * len(self.here):
                credit -= burst * len(self.here)
                for _ in range(burst):
                    self.broadcast()
                burst = self.draw.choice((1, 1, 2, 4, 10))

    def rest(self) -> None:
        self.resting = asyncio.get_running_loop().time() + 0.5

    def late(self, seconds: float) -> None:
        if seconds > LATE:
            self.rest()
        if seconds > STOOD_STILL:
            self.log("L", seconds)

    def play_in_thread(self) -> None:
        """Broadcasts from a thread of its own, few."""
        counter = 1 << 40  # so that the numbers are nobody else's
        while not self.stopping.wait(0.3):
            counter += 1
            number = number_of(counter)
            try:
                self.hub.broadcast(body(number, 50).decode())
            except LoopBusyError:
                self.done["broadcasts from a thread, given up"] += 1
            else:
                self.done["broadcasts from a thread"] += 1

    # --- what is left ---

    async def stat(self) -> dict[str, Any]:
        hub, acks = self.hub, self.hub._acks
        assert acks is not None
        stored = 0
        if acks.store is not None and acks.loop is not None:
            for user in self.acking:
                stored += await acks.store.count(user)
        gc.collect()
        objects = [type(item) for item in gc.get_objects()]
        return {
            "client objects": objects.count(Client),
            "hub objects": sum(str(kind.__module__).startswith("wsc_fast") for kind in objects),
            "allocated blocks": sys.getallocatedblocks(),
            "connections": hub.connections,
            "connected clients": hub.get_connected_clients(),
            "closing clients": len(hub._closing_clients()),
            "handshakes": len(hub._handshaking),
            "hub tasks": len(hub._tasks),
            "tasks": len(asyncio.all_tasks()) - len(self.tasks),
            "our tasks": len(self.tasks),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "pending acks": acks.count,
            "ack queues": len(acks._users),
            "parked acks": len(acks._parked),
            "ack replays": len(acks.replaying),
            "store calls": len(acks.journal._writing),
            "ack deletes": len(acks.journal._deletes),
            "stored messages": stored,
            "users": len(hub.get_all_connected_users()),
            "threads": threading.active_count(),
            "unreported failures": hub.get_stats().unreported_failures,
        }

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        logging.getLogger().addHandler(Watch(self))
        self.out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        writer = asyncio.create_task(self.write())
        watching = asyncio.create_task(watch_lateness(self.late))
        await self.hub.start(
            port=0,
            ssl=certificate() if self.options.tls else None,
            transport=self.options.transport,
        )
        self.log("listening", self.hub.port)
        player = thread = None
        while command := (await reader.readline()).decode().strip():
            if command == "play":
                player = asyncio.create_task(self.play())
                thread = threading.Thread(target=self.play_in_thread)
                thread.start()
            elif command == "rest":
                self.rest()
            elif command == "stop":
                self.playing = False
                self.stopping.set()
                assert player is not None
                assert thread is not None
                await player
                await asyncio.to_thread(thread.join)
                for room in list(self.rooms):
                    self.hub.delete_room(room)
                self.rooms.clear()
                # No thread and no socket of the executor's is to count as a leak.
                await loop.shutdown_default_executor()
                self.log("stopped")
            elif command == "stat":
                self.log("stat", await self.stat())
            elif command == "quit":
                break
        stats = self.hub.get_stats()
        await self.hub.stop()
        left = await self.stat()
        counters = {
            "frames sent": stats.frames_sent,
            "deliveries": stats.deliveries,
            "partial sends": stats.partial_sends,
            "conflated": stats.conflated,
            "slow consumers closed": stats.slow_consumer_disconnects,
            "heartbeat timeouts": stats.heartbeat_timeouts,
            "protocol errors": stats.protocol_errors,
            "callback errors": stats.callback_errors,
            "unreported failures": stats.unreported_failures,
            "compressed frames": stats.compressed_frames,
            "acks retransmitted": stats.acks_retransmitted,
            "acks confirmed": stats.acks_confirmed,
            "acks failed": stats.acks_failed,
            "acks timed out": stats.acks_timed_out,
            "acks dropped": stats.acks_dropped,
            "offline stored": stats.offline_stored,
            "offline replayed": stats.offline_replayed,
            "offline errors": stats.offline_errors,
            "replaced clients": stats.replaced_clients,
            "pauses for a rate": stats.rate_limited,
        }
        self.log("end", {"done": dict(self.done), "stats": counters, "left": left})
        writer.cancel()
        watching.cancel()
        self.out.write(b"".join(self.lines))
        self.out.close()
        await asyncio.sleep(0.1)


def certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000.0)
    parser.add_argument("--store", required=True)
    parser.add_argument("--singles", type=int, default=4)
    parser.add_argument("--shared", type=int, default=4)
    parser.add_argument("--limit", type=int, default=100_000)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--transport", default="hub")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Soak(options).run())


if __name__ == "__main__":
    main()
