"""One client on a raw connection: it keeps what comes, and answers as its way of life has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from trials.soak.messages import BYE_NUMBER, parse, priority_of
from trials.soak.model import Model, Record
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    deflated,
    drop_packets,
    encode,
    reset_when_closed,
    upgrade_request,
)

Headers = Sequence[tuple[str, str]]
# Raised where the socket of a connection is touched that has gone already.
GONE = (OSError, AttributeError, ValueError)

decode = msgspec.json.decode


class Peer(asyncio.Protocol):
    """One raw connection; keeps what comes in its Record.

    `name` stands for the id that it asks for, `headers` are further ones of its request.
    """

    def __init__(
        self,
        model: Model,
        draw: random.Random,
        record: Record,
        *,
        name: int | None = None,
        headers: Headers = (),
        upgrade: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.model = model
        self.draw = draw
        self.record = record
        self.name = name
        self.headers = headers
        self.upgrade = upgrade
        self.open: asyncio.Future[bool] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()  # the goodbye
        self.buffer = b""
        self.deflate = False
        self.inflater: Any = None  # where the server keeps its context
        self.transport: Any = None
        self.pongs = True
        self.acks = 1.0  # the share of messages that it acknowledges at once
        self.unanswered: list[str] = []
        self.ending = False  # it has sent its close frame
        self.silent = False  # it has half-closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        if self.upgrade:
            self.transport.write(self.request())

    def request(self) -> bytes:
        record = self.record
        name = "" if self.name is None else f"&id=id{self.name}"
        path = f"/ws?n={record.serial}&user={record.user}&kind={record.kind}{name}"
        return upgrade_request("soak", path, self.headers)

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.open, self.over, self.answered):
            if not future.done():
                future.set_result(None)
        self.model.finished(self.record)

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data if self.buffer else data
        start = 0
        if not self.open.done():
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return
            head = data[:end].decode("latin-1").lower()
            self.deflate = "permessage-deflate" in head
            if self.deflate and "server_no_context_takeover" not in head:
                self.inflater = zlib.decompressobj(-15)
            self.open.set_result(head.startswith("http/1.1 101"))
            if not head.startswith("http/1.1 101"):
                self.model.done["upgrades refused"] += 1
                self.transport.close()
                return
            start = end + 4
        size = len(data)
        while size - start >= 2:
            length, head_size = data[start + 1], 2
            if length > 125:
                head_size = 4 if length == 126 else 10
                if size - start < head_size:
                    break
                length = int.from_bytes(data[start + 2 : start + head_size], "big")
            if size - start < head_size + length:
                break
            begin = start + head_size
            self.frame(data[start], data[begin : begin + length])
            start = begin + length
        self.buffer = data[start:]

    def frame(self, first: int, payload: bytes) -> None:
        opcode = first & 15
        try:
            if opcode in (TEXT, BINARY):
                if first & 0x40:
                    inflater = self.inflater or zlib.decompressobj(-15)
                    payload = inflater.decompress(payload + b"\0\0\xff\xff")
                    self.model.done["compressed messages received"] += 1
                self.message(opcode, payload)
            elif opcode == PING:
                if self.pongs:
                    self.write(encode(PONG, payload))
                    self.model.done["pings answered"] += 1
            elif opcode == CLOSE:
                self.record.code = int.from_bytes(payload[:2], "big") if payload else 1005
                if not self.ending:
                    self.write(encode(CLOSE, payload[:2]))
                    self.ending = True
        except (ValueError, KeyError, zlib.error) as error:
            self.model.violation(f"{self.record}: {error}")

    def message(self, opcode: int, payload: bytes) -> None:
        record = self.record
        if record.code is not None:
            raise ValueError("a message came behind the close frame")
        if payload[:1] != b"{":
            number = parse(payload)
            if number == BYE_NUMBER:
                if not self.answered.done():
                    self.answered.set_result(None)
            elif opcode != (TEXT if number & 1 else BINARY):
                raise ValueError(f"message {number} came with opcode {opcode}")
            record.got.append(number)
            return
        message = decode(payload)
        number = parse(message["content"].encode())
        if message["id"] != str(number) or message.get("priority", 2) != priority_of(number):
            raise ValueError(f"HubMessage {message['id']} holds {number}")
        if not message.get("require_ack"):
            record.got_hub.append(number)
            if priority_of(number) == 2:
                record.all_hub.append(number)
            return
        if self.model.see(record, number):
            record.all_hub.append(number)
        self.unanswered.append(message["id"])
        if self.draw.random() < self.acks:
            self.acknowledge()

    def acknowledge(self) -> None:
        for message_id in self.unanswered:
            answer = {"type": "ack", "message_id": message_id}
            if self.draw.random() < 0.02:
                answer |= {"status": "failed", "error": "soak"}
            self.write(encode(TEXT, json.dumps(answer).encode()))
        self.unanswered.clear()

    def vanish(self) -> None:
        """From here on no packet reaches it, and so none leaves: its kernel answers nothing."""
        with contextlib.suppress(*GONE):
            drop_packets(self.transport.get_extra_info("socket"))

    def reset(self) -> None:
        with contextlib.suppress(*GONE):
            reset_when_closed(self.transport.get_extra_info("socket"))
        self.transport.abort()

    def write(self, data: bytes) -> None:
        if not self.silent and not self.over.done() and not self.transport.is_closing():
            self.transport.write(data)

    def say(self, what: str) -> bytes:
        """The next message of its own."""
        self.record.sent += 1
        draw = self.draw
        payload = f"{what} {self.record.sent} {'x' * draw.randrange(300)}".encode()
        opcode = TEXT if draw.random() < 0.5 else BINARY
        if self.deflate and draw.random() < 0.5:
            # By itself, which both kinds of contexts allow.
            return encode(opcode, deflated(payload, level=1), rsv=4)
        return encode(opcode, payload)
