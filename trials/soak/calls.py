"""The random calls of the soak's server: sends of all kinds, rooms, closes, and misuses."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from typing import Any

from trials.soak.log import Log
from trials.soak.messages import body, number_of
from trials.soak.roster import Roster
from wsc_fast import (
    ACKMessage,
    Client,
    Hub,
    HubMessage,
    QueueFullError,
    RoomNotFoundError,
    UserOfflineError,
    ValidationError,
    WSCError,
)

ROOMS = 40


class Calls:
    """Calls of one hub, on its loop. Each tells the log what it did.

    Attributes:
        acking: the users that messages with acknowledgement go to.
        playing: whether new messages may be sent.
        tasks: what was begun and has not ended.
    """

    def __init__(
        self, hub: Hub, roster: Roster, draw: random.Random, log: Log, acking: list[str]
    ) -> None:
        self.hub = hub
        self.roster = roster
        self.draw = draw
        self.log = log
        self.acking = acking
        self.playing = True
        self.counter = 0
        self.tasks: set[asyncio.Task[Any]] = set()

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
        if self.roster.here and draw.random() < 0.2:
            exclude = [draw.choice(self.roster.here) for _ in range(3)]
        self.hub.broadcast(message, exclude=exclude, key=str(key) if key else None)
        self.log.done["broadcasts, conflated" if key else "broadcasts"] += 1

    def room_broadcast(self) -> None:
        if not self.roster.rooms:
            return
        room = self.draw.choice(list(self.roster.rooms))
        number, message = self.message()
        exclude: list[Client] = []
        if self.roster.rooms[room] and self.draw.random() < 0.2:
            exclude = [self.draw.choice(list(self.roster.rooms[room]))]
        members = [client for client in self.roster.rooms[room] if client not in exclude]
        before = [client for client in members if client.is_connected()]
        queued = self.hub.broadcast_to_room(room, message, exclude=exclude)
        self.log("S", number, [client.user_data["serial"] for client in members])
        if queued != sum(client.is_connected() for client in before):
            self.log.violation(f"broadcast_to_room gave {queued} for {len(before)} members")
        self.log.done["room broadcasts"] += 1

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
            self.log.done["direct sends refused"] += 1
            return
        except WSCError:
            if client.is_connected():
                raise
            return
        self.log("S", number, [client.user_data["serial"]])
        self.log.done["direct sends"] += 1

    def user_message(self) -> tuple[int, HubMessage]:
        self.counter += 1
        priority = self.draw.randrange(1, 5) if self.draw.random() < 0.3 else 2
        number = number_of(self.counter, priority=priority)
        content = body(number, self.size() % 2_000).decode()
        return number, HubMessage(id=str(number), content=content, priority=priority)

    def to_user(self) -> None:
        acks = self.hub._delivery.acks
        assert acks is not None
        kind = self.draw.random()
        if kind < 0.1 and acks.replaying:
            user = self.draw.choice(sorted(acks.replaying))
        elif kind < 0.2 or not self.roster.here:
            user = self.draw.choice(self.acking)
        else:
            user = self.draw.choice(self.roster.here).user_id
        number, message = self.user_message()
        held = user in acks.replaying
        try:
            self.hub.send_to_user(user, message)
        except UserOfflineError:
            self.log.done["messages to users who are away"] += 1
            return
        except QueueFullError:
            self.log.done["user messages refused"] += 1
            return
        to = [client.user_data["serial"] for client in self.roster.users.get(user, ())]
        self.log("U", number, held, user, to)
        self.log.done["user messages, held behind a replay" if held else "user messages"] += 1

    def with_ack(self) -> None:
        user = self.draw.choice(self.acking)
        self.counter += 1
        number = number_of(self.counter)
        message = ACKMessage(id=str(number), content=body(number, self.size() % 2_000).decode())
        clients = list(self.roster.users.get(user, ()))
        if user[0] == "s" and clients and self.draw.random() < 0.5:
            client = self.draw.choice(clients)
            if not client.is_connected():
                return
            pending = self.hub.send_ack_message(client.id, message)
        else:
            pending = self.hub.send_ack_message_to_user(user, message)
        self.log("A", number, user)
        self.log.done["messages with acknowledgement"] += 1
        if self.draw.random() < 0.2:
            self.spawn(self.accepted(pending))

    async def accepted(self, pending: Any) -> None:
        # Whether the client then fails it is the client's business.
        with contextlib.suppress(WSCError):
            await pending.accepted()
        self.log.done["acknowledgements accepted"] += 1

    async def retry(self) -> None:
        result = await self.hub.send_to_user_with_retry("nobody", HubMessage(content="x"))
        if result.success:
            self.log.violation("a message to nobody was sent")
        self.log.done["sends with retry"] += 1

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def join(self, client: Client) -> None:
        room = self.draw.choice(list(self.roster.rooms))
        if client.is_connected():
            self.hub.join_room(client.id, room)
            self.roster.rooms[room].add(client)
            self.log.done["joins"] += 1

    def leave(self, client: Client) -> None:
        room = self.draw.choice(list(self.roster.rooms))
        if client.is_connected():
            self.hub.leave_room(client.id, room)
            self.roster.rooms[room].discard(client)
            self.log.done["leaves"] += 1

    def toggle_room(self) -> None:
        room = f"room {self.draw.randrange(ROOMS)}"
        if room not in self.roster.rooms:
            self.hub.create_room(room)
            self.roster.rooms[room] = set()
            self.log.done["rooms created"] += 1
        elif self.draw.random() < 0.3:
            self.hub.delete_room(room)
            del self.roster.rooms[room]
            self.log.done["rooms deleted"] += 1

    def disconnect(self, client: Client) -> None:
        if not client.is_connected():
            return
        code = self.draw.choice((1000, 1008, 4000))
        clients = self.hub.get_clients_by_user(client.user_id)
        if self.draw.random() < 0.3:
            for each in clients:
                self.roster.closed(each, code)
            self.hub.disconnect_user(client.user_id, code, "soak")
            self.log.done["disconnect_user"] += 1
        else:
            self.roster.closed(client, code)
            client.disconnect(code, "soak")
            self.log.done["disconnects"] += 1

    def misuse(self) -> None:
        for call, kind in (
            (lambda: self.hub.broadcast(5), ValidationError),
            (lambda: self.hub.broadcast_to_room("no such room", "x"), RoomNotFoundError),
        ):
            try:
                call()
            except kind:
                self.log.done["misuses refused"] += 1
            else:
                self.log.violation("a misuse was not refused")

    def check(self) -> None:
        """Compares the hub's answers about rooms and clients with the calls."""
        open_ = {client.id for client in self.roster.here if client.is_connected()}
        if open_ != set(self.hub.get_connected_client_ids()):
            self.log.violation("get_connected_client_ids differs from the model")
        for room, members in self.roster.rooms.items():
            wanted = sorted(client.id for client in members if client.is_connected())
            if wanted != sorted(self.hub.get_room_clients(room)):
                self.log.violation(f"get_room_clients({room!r}) differs from the model")
        self.log.done["checks of members"] += 1

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
        elif self.roster.here and self.roster.rooms:
            client = draw.choice(self.roster.here)
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
