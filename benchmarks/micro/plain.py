"""The obvious way in Python: what one would write without this package, not careless, not tuned."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from typing import Any


def frame(message: str | bytes) -> bytes:
    payload = message.encode() if isinstance(message, str) else message
    first = 0x81 if isinstance(message, str) else 0x82
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def unmask(data: bytes, mask: bytes) -> bytes:
    """By one xor of long integers, the fastest that plain Python has."""
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def message(data: bytes) -> str | bytes:
    """The message of a client's frame that is there as a whole."""
    size, start = data[1] & 127, 2
    if size == 126:
        (size,), start = struct.unpack_from("!H", data, 2), 4
    elif size == 127:
        (size,), start = struct.unpack_from("!Q", data, 2), 10
    mask = data[start : start + 4]
    payload = unmask(data[start + 4 : start + 4 + size], mask)
    return payload.decode() if data[0] & 15 == 1 else payload


def head(data: bytes) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers of a request."""
    first, *lines = data.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    return method, target, headers


@dataclass
class Message:
    """As a HubMessage."""

    id: str
    type: str
    content: str
    create_at: str
    priority: int = 2
    data: dict[str, Any] | None = None

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes) -> Message:
        return cls(**json.loads(text))


@dataclass(eq=False)
class Client:
    id: str
    user_id: str
    address: str
    queue: deque[bytes] = field(default_factory=lambda: deque(maxlen=1024))
    keyed: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    rooms: set[str] = field(default_factory=set)


class Hub:
    """Dicts and sets of clients, and a bounded deque for each."""

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.users: dict[str, set[Client]] = {}
        self.rooms: dict[str, set[Client]] = {}
        self.pending: dict[str, tuple[Client, asyncio.TimerHandle, asyncio.Future[str]]] = {}

    def register(self, address: str) -> Client:
        client = Client(uuid.uuid4().hex, "user", address)
        self.clients[client.id] = client
        self.users.setdefault(client.user_id, set()).add(client)
        return client

    def remove(self, client: Client) -> None:
        del self.clients[client.id]
        self.users[client.user_id].discard(client)
        for room_id in client.rooms:
            self.rooms[room_id].discard(client)

    def join(self, client_id: str, room_id: str) -> None:
        client = self.clients[client_id]
        self.rooms[room_id].add(client)
        client.rooms.add(room_id)

    def leave(self, client_id: str, room_id: str) -> None:
        client = self.clients[client_id]
        self.rooms[room_id].discard(client)
        client.rooms.discard(room_id)

    def send(self, client_id: str, message: str | bytes) -> None:
        self.clients[client_id].queue.append(frame(message))

    def send_keyed(self, client_id: str, message: str | bytes, key: str) -> None:
        keyed = self.clients[client_id].keyed
        keyed[key] = frame(message)
        keyed.move_to_end(key)

    def send_to_user(self, user_id: str, message: Message) -> None:
        data = frame(message.encode())
        for client in self.users[user_id]:
            client.queue.append(data)

    def broadcast(self, message: str | bytes) -> None:
        data = frame(message)
        for client in self.clients.values():
            client.queue.append(data)

    def send_with_ack(self, client_id: str, message: Message, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        client = self.clients[client_id]
        client.queue.append(frame(message.encode()))
        timer = loop.call_later(timeout, self.pending.pop, message.id, None)
        self.pending[message.id] = (client, timer, loop.create_future())

    def acknowledge(self, text: str) -> None:
        _, timer, future = self.pending.pop(json.loads(text)["message_id"])
        timer.cancel()
        future.set_result("confirmed")
