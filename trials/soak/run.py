"""A long run of everything at once, checked by a model.

    python -m trials.soak.run [--quick] [--seconds 1800] [--clients 5000] [--seed 1] [--rate 20000]

Starts a hub (server.py) and, in this process, clients on raw connections that come and go. The
hub's log says who should get what; the model here compares. For a client that behaves:

- It counts as connected from its E line. What the log has for it after that arrives, each once,
  in the order of the log: raw messages among themselves, and HubMessages of each priority among
  themselves (a replay may hold those back).
- Up to its Y or K line (it said goodbye, or the hub closes it) all of that has to arrive; what was
  sent after a Y may, without a gap. A message with a conflation key may be left out where a later
  one under the key arrives. A HubMessage that was held behind a replay may be missing at the end
  only, and if nobody got it, a failure handler has heard of it (or it was on its way to one
  that misbehaves).
- It is closed by nobody but itself and the hub on purpose, and what it sends is heard in order.
- A message with acknowledgement is seen by its user; by one who has a single client, in order.

A client that misbehaves gets nothing that is not its own, none twice, and no gap before the end.
Exit status 1 on any violation. Which numbers are drawn follows from the seed; how the processes
interleave does not.

A slow machine makes for less load and for no violation: where one of the two processes is late, the
hub gets less to do and fewer clients come; and the connections that live while one of them stands
still (2 s late) count as misbehaving, since a peer may rightly have been given up.

Memory: the median of the RSS in the last quarter of the warm-up (a minute, or half of a shorter
run) against that of the last quarter of the run: at most 2 % more. In runs under a quarter of an
hour also 3 MB, which an allocator keeps more or less of, and under three minutes 10 %. What they
miss shows in the blocks of memory that are left when everybody has gone.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ctypes
import json
import os
import random
import resource
import socket
import ssl
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from trials.soak.messages import (
    BYE_NUMBER,
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    HEARTBEAT_INTERVAL,
    HEARTBEAT_TIMEOUT,
    LATE,
    STOOD_STILL,
    key_of,
    parse,
    priority_of,
    watch_lateness,
)

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10
SLOW = 1013
# How long a client that behaves waits for the end that it asked for, or for its upgrade.
PATIENCE = 30.0
# What touching the socket of a connection raises that has gone already.
GONE = (OSError, AttributeError, ValueError)
# How long a process may stand still, until it can say so.
LONGEST_STILL = 120.0
# What the memory may grow by in a short run, in bytes.
SLACK = 3e6
# A filter of a socket (BPF) that drops every packet: `return 0`.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
SO_ATTACH_FILTER = 26

# What a peer may not send (RFC 6455), and the codes that it may be closed with.
MALFORMED: list[tuple[bytes, tuple[int, ...]]] = [
    (b"\x81\x05hello", (1002,)),  # not masked
    (b"\xf1\x80\0\0\0\0", (1002,)),  # reserved bits
    (b"\x83\x80\0\0\0\0", (1002,)),  # unknown opcode
    (b"\x80\x80\0\0\0\0", (1002,)),  # continues nothing
    (b"\x09\x80\0\0\0\0", (1002,)),  # a ping in fragments
    (b"\x89\xfe\0\x80\0\0\0\0" + bytes(128), (1002,)),  # a long ping
    (b"\x81\x82\0\0\0\0\xff\xfe", (1007,)),  # no UTF-8
    (b"\x82\xff\0\0\0\1\0\0\0\0\0\0\0\0", (1009,)),  # 4 GiB
    (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", (1002, 1009)),
    (b"\x88\x81\0\0\0\0\x03", (1002,)),  # a close code of one byte
    (b"\x88\x82\0\0\0\0\x03\xed", (1002,)),  # 1005 on the wire
    (b"\x01\x81\0\0\0\0a\x81\x81\0\0\0\0b", (1002,)),  # a message within a message
]
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789",
    b"\0" * 500,
    b"GET /" + b"a" * 40_000,
]

decode = msgspec.json.decode


def encode(opcode: int, payload: bytes = b"", rsv1: bool = False) -> bytes:
    first, size = 0x80 | (0x40 if rsv1 else 0) | opcode, len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + b"\0\0\0\0" + payload


# --- the model ---


@dataclass(eq=False)
class Record:
    """One connection: what it was to get, and what it got."""

    serial: int
    kind: str
    user: str
    good: bool
    wanted: list[int] = field(default_factory=list)
    wanted_hub: list[tuple[int, bool]] = field(default_factory=list)  # held
    early: list[int] = field(default_factory=list)  # held for its user when it came
    edge: int = -1  # of `wanted`; -1: it has not said goodbye and was not closed
    edge_hub: int = -1
    kicked: int = 0  # the code
    entered: bool = False
    gone: bool = False
    hub_code: int | None = None  # with which the hub says that it ended
    heard: int = 0
    got: list[int] = field(default_factory=list)
    got_hub: list[int] = field(default_factory=list)  # without messages with acknowledgement
    acked: list[int] = field(default_factory=list)  # those, the first time that its user sees them
    all_hub: list[int] = field(default_factory=list)  # both, of normal priority
    sent: int = 0
    judged: bool = True  # no process stood still while it lived
    lagged: bool = False  # its own process was late while it lived
    said_bye: bool = False
    code: int | None = None  # of the server's close frame
    finished: bool = False  # the client's side of it

    def __repr__(self) -> str:
        return f"client {self.serial} ({self.kind}, user {self.user})"


class Model:
    """Follows the hub's log, and compares each connection once both its ends are done."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.everyone: dict[int, Record] = {}
        self.held: dict[str, list[int]] = {}  # by user, the latest
        self.held_got: dict[int, bool] = {}
        self.reported: set[int] = set()
        self.wanted_acks: dict[str, list[int]] = {}
        self.seen: dict[str, set[int]] = {}
        self.last_seen: dict[str, int] = {}
        self.violations: list[str] = []
        self.overdue: list[tuple[float, str]] = []  # when it was noticed
        self.done: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()

    def violation(self, text: str) -> None:
        self.violations.append(text)
        if len(self.violations) <= 20:
            print(f"VIOLATION: {text}", file=sys.stderr, flush=True)

    def take(self, line: list[Any]) -> None:
        """One line of the hub's log; see server.py."""
        kind = line[0]
        if kind == "B":
            excluded = set(line[2])
            for serial, record in self.everyone.items():
                if serial not in excluded:
                    record.wanted.append(line[1])
        elif kind == "S":
            for serial in line[2]:
                self.records[serial].wanted.append(line[1])
        elif kind == "U":
            _, number, held, user, serials = line
            if held:
                self.held_got[number] = False
                latest = self.held.setdefault(user, [])
                latest.append(number)
                del latest[:-2_000]
            else:
                self.held.pop(user, None)
            for serial in serials:
                self.records[serial].wanted_hub.append((number, held))
        elif kind == "A":
            self.wanted_acks.setdefault(line[2], []).append(line[1])
        elif kind == "E":
            record = self.everyone[line[1]] = self.records[line[1]]
            record.entered = True
            record.early = list(self.held.get(line[2], ()))
        elif kind == "G":
            record = self.records[line[1]]
            self.everyone.pop(line[1], None)
            record.gone = True
            record.hub_code = line[2]
            self.compare(record)
        elif kind in "YK":
            record = self.records[line[1]]
            if record.edge < 0 or kind == "K":
                record.edge, record.edge_hub = len(record.wanted), len(record.wanted_hub)
            if kind == "K":
                record.kicked = line[2]
                self.everyone.pop(line[1], None)
        elif kind == "I":
            self.records[line[1]].heard = line[2]
        elif kind == "F":
            self.reported.add(line[1])
            self.done[f"reported: {line[3]}"] += 1
        elif kind == "X":
            self.violation(f"the server: {line[1]}")
        elif kind == "L":
            self.stood_still()

    def stood_still(self) -> None:
        """One of the processes did: who is connected may have been given up, and rightly so."""
        for record in self.records.values():
            self.done["connections not judged, as the machine stood still"] += record.judged
            record.judged = False
        # A process that stands still says so afterwards.
        now = time.monotonic()
        self.overdue = [entry for entry in self.overdue if entry[0] < now - LONGEST_STILL]

    def late(self, record: Record, text: str) -> None:
        """Something did not come in time: a violation, unless a process stood still."""
        if record.judged:
            self.overdue.append((time.monotonic(), f"{record} {text}"))
            record.judged = False  # its client gives up: what follows is no violation of its own

    def finished(self, record: Record) -> None:
        """The client's side of a connection is over."""
        record.finished = True
        self.compare(record)

    def compare(self, record: Record) -> None:
        if not record.finished or not record.gone:
            return
        self.records.pop(record.serial, None)
        good = record.good and record.judged and record.code != SLOW
        edge = max(record.edge, 0) if good else 0
        if record.edge < 0 and good:
            self.violation(
                f"{record} was closed by nobody: code {record.code}, of the hub {record.hub_code}, "
                f"{'said goodbye' if record.said_bye else 'without a goodbye'}, "
                f"sent {record.sent}, heard {record.heard}, {len(record.wanted)} for it"
            )
        if good and record.kicked and not record.said_bye and record.code != record.kicked:
            self.violation(f"{record}: closed with {record.code}, not {record.kicked}")
        if record.code == SLOW and record.good and record.judged:
            if record.lagged:
                self.done["clients that behaved, too slow for the load"] += 1
            else:
                self.violation(f"{record} read all the time, and was closed as a slow consumer")
        if fault := difference(record.wanted, record.got, edge):
            self.violation(f"{record}, raw messages, edge {record.edge}: {fault}")
        self.compare_hub(record, good)
        if good and record.said_bye and not record.kicked and record.heard != record.sent:
            self.violation(f"{record}: {record.heard} of its {record.sent} messages were heard")
        self.checked["connections that behaved" if good else "connections that misbehaved"] += 1
        self.checked["messages compared"] += len(record.got) + len(record.got_hub)
        self.checked["acknowledged messages seen"] += len(record.acked)
        if good and record.user[0] == "a":
            for one, two in zip(record.all_hub, record.all_hub[1:], strict=False):
                if one >> 6 >= two >> 6:
                    self.violation(f"{record}: HubMessage {two} came after {one}")
                    break

    def compare_hub(self, record: Record, good: bool) -> None:
        # What was held has to come if something not held was sent later: the replay was over.
        certain = max((i for i, (_, held) in enumerate(record.wanted_hub) if not held), default=-1)
        edge = min(max(record.edge_hub, 0), certain + 1) if good else 0
        got_or_lost = record.got_hub
        if not good:
            # What the hub gave to the kernel was sent, though nobody read it.
            got_or_lost = [*record.early, *(n for n, held in record.wanted_hub if held)]
        for number in got_or_lost:
            if number in self.held_got:
                self.held_got[number] = True
        for priority in range(1, 5):
            wanted = [n for n in record.early if priority_of(n) == priority]
            optional = len(wanted)
            entries = [
                (i, n) for i, (n, _) in enumerate(record.wanted_hub) if priority_of(n) == priority
            ]
            wanted += [n for _, n in entries]
            must = optional + sum(i < edge for i, _ in entries)
            got = [n for n in record.got_hub if priority_of(n) == priority]
            if fault := difference(wanted, got, must, optional):
                self.violation(f"{record}, HubMessages of priority {priority}: {fault}")

    def see(self, record: Record, number: int) -> bool:
        """A message with acknowledgement has come; whether for the first time."""
        seen = self.seen.setdefault(record.user, set())
        if number in seen:
            self.done["copies dropped by id"] += 1
            return False
        seen.add(number)
        if record.user[0] == "a":
            if number < self.last_seen.get(record.user, 0):
                last = self.last_seen[record.user]
                self.violation(f"{record}: acknowledged message {number} came after {last}")
            self.last_seen[record.user] = number
        record.acked.append(number)
        return True

    def end(self, unreported: int) -> None:
        """Everybody has gone."""
        for _, text in self.overdue:
            self.violation(text)
        for record in list(self.records.values()):
            # One that was not let in while the machine stood still has nothing to end.
            if (record.good and record.judged) or record.entered or record.got:
                state = f"entered {record.entered}, gone {record.gone}, over {record.finished}"
                self.violation(f"{record} never ended on both sides: {state}")
        for user, numbers in self.wanted_acks.items():
            if missing := set(numbers) - self.seen.get(user, set()):
                self.violation(f"user {user} never saw {sorted(missing)[:5]} ({len(missing)})")
            if other := self.seen.get(user, set()) - set(numbers):
                self.violation(f"user {user} saw {sorted(other)[:5]}, which nobody sent to it")
            self.checked["messages with acknowledgement"] += len(numbers)
        if not unreported:
            lost = [n for n, got in self.held_got.items() if not got and n not in self.reported]
            if lost:
                self.violation(f"{len(lost)} held messages vanished unreported: {lost[:5]}")


def difference(wanted: list[int], got: list[int], edge: int, optional: int = 0) -> str:
    """The first difference, or "": `wanted[:edge]` has to be there, but for what was conflated.

    The first `optional` of `wanted` may be missing, from their beginning.
    """
    i = 0
    left_out: dict[int, int] = {}  # key -> the first that was passed over
    for place, number in enumerate(got):
        while i < len(wanted) and wanted[i] != number:
            if i >= optional or place > 0:
                key = key_of(wanted[i])
                if not key or wanted[i] == BYE_NUMBER:
                    where = "which is not its own"
                    if number in wanted[:i]:
                        where = "which it had before"
                    elif number in wanted[i:]:
                        where = f"which was to come {wanted[i:].index(number)} later"
                    return f"at {place} it got {number}, {where}, for {wanted[i]}"
                left_out.setdefault(key, i)
            i += 1
        if i == len(wanted):
            where = "had before" if number in wanted else "not its own"
            return f"at {place} it got {number} ({where}) behind its last"
        if number != BYE_NUMBER:
            left_out.pop(key_of(number), None)
        i += 1
    for number in wanted[i:edge] if i >= optional else wanted[optional:edge]:
        key = key_of(number)
        if not key or number == BYE_NUMBER:
            return f"{edge - i} are missing at the end, the first is {number}"
        left_out.setdefault(key, i)
    for key, place in left_out.items():
        if place < edge:
            return f"{wanted[place]} is missing, and no later one under the key {key} came"
    return ""


# --- a client ---


class Peer(asyncio.Protocol):
    """One raw connection; keeps what comes in its Record."""

    def __init__(self, soak: Soak, record: Record, headers: str = "", upgrade: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.soak = soak
        self.record = record
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
            self.transport.write(self.request().encode())

    def request(self) -> str:
        record = self.record
        key = base64.b64encode(os.urandom(16)).decode()
        name = f"&id=id{self.soak.ids[record.serial]}" if record.serial in self.soak.ids else ""
        return (
            f"GET /ws?n={record.serial}&user={record.user}&kind={record.kind}{name} HTTP/1.1\r\n"
            "Host: soak\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{self.headers}\r\n"
        )

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.open, self.over, self.answered):
            if not future.done():
                future.set_result(None)
        self.soak.model.finished(self.record)

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
                self.soak.model.done["upgrades refused"] += 1
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
                    self.soak.model.done["compressed messages received"] += 1
                self.message(opcode, payload)
            elif opcode == PING:
                if self.pongs:
                    self.write(encode(PONG, payload))
                    self.soak.model.done["pings answered"] += 1
            elif opcode == CLOSE:
                self.record.code = int.from_bytes(payload[:2], "big") if payload else 1005
                if not self.ending:
                    self.write(encode(CLOSE, payload[:2]))
                    self.ending = True
        except (ValueError, KeyError, zlib.error) as error:
            self.soak.model.violation(f"{self.record}: {error}")

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
        if self.soak.model.see(record, number):
            record.all_hub.append(number)
        self.unanswered.append(message["id"])
        if self.soak.draw.random() < self.acks:
            self.acknowledge()

    def acknowledge(self) -> None:
        for message_id in self.unanswered:
            answer = {"type": "ack", "message_id": message_id}
            if self.soak.draw.random() < 0.02:
                answer |= {"status": "failed", "error": "soak"}
            self.write(encode(TEXT, json.dumps(answer).encode()))
        self.unanswered.clear()

    def vanish(self) -> None:
        """From here on no packet reaches it, and so none leaves: its kernel answers nothing."""
        drop_all = struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))
        with contextlib.suppress(*GONE):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, drop_all)

    def reset(self) -> None:
        with contextlib.suppress(*GONE):
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def write(self, data: bytes) -> None:
        if not self.silent and not self.over.done() and not self.transport.is_closing():
            self.transport.write(data)

    def say(self, what: str) -> bytes:
        """The next message of its own."""
        self.record.sent += 1
        draw = self.soak.draw
        payload = f"{what} {self.record.sent} {'x' * draw.randrange(300)}".encode()
        opcode = TEXT if draw.random() < 0.5 else BINARY
        if self.deflate and draw.random() < 0.5:
            # By itself, which both kinds of contexts allow.
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            packed = packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH)
            return encode(opcode, packed[:-4], rsv1=True)
        return encode(opcode, payload)


class Soak:
    """The clients, and the hub's process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tls = trusting() if options.tls else None
        self.draw = random.Random(options.seed)
        self.model = Model()
        self.serial = 0
        self.ids: dict[int, int] = {}  # serial -> the id that it asks for
        self.port = 0
        self.running = True
        self.draining = False
        self.leaving = asyncio.Event()
        self.server: Any = None
        self.stats: asyncio.Queue[Any] = asyncio.Queue()
        self.listening = asyncio.Event()
        self.stopped = asyncio.Event()
        self.final: dict[str, Any] = {}
        self.memory: list[tuple[float, int]] = []  # seconds, bytes
        self.late_at: list[float] = []  # seconds, as above
        self.blocks = 0  # of memory, more than before the first client
        self.lateness = 0.0
        self.singles = max(2, options.clients // 25)
        self.shared = max(2, options.clients // 50)

    # --- connections ---

    async def connect(
        self, kind: str, *, user: str = "", good: bool = False, **options: Any
    ) -> Peer:
        self.serial += 1
        record = Record(self.serial, kind, user or f"u{self.serial}", good)
        self.model.records[record.serial] = record
        self.model.done[f"connections, {kind}"] += 1
        rcvbuf = options.pop("rcvbuf", None)
        name = options.pop("id", None)
        tls = self.tls if options.pop("tls", True) else None
        if name is not None:
            self.ids[record.serial] = name
        sock = socket.socket()
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        peer = Peer(self, record, **options)
        await loop.sock_connect(sock, ("127.0.0.1", self.port))
        if tls is None:
            await loop.create_connection(lambda: peer, sock=sock)
        else:
            await loop.create_connection(lambda: peer, sock=sock, ssl=tls, server_hostname="")
        if peer.upgrade:
            await asyncio.wait([peer.open], timeout=PATIENCE)
        self.ids.pop(record.serial, None)
        return peer

    def late(self, seconds: float) -> None:
        """This process is late by so much."""
        self.lateness = max(seconds, 0.8 * self.lateness)
        if seconds > LATE:
            for record in self.model.records.values():
                record.lagged = True
        if seconds > STOOD_STILL:
            self.model.stood_still()

    async def keep_up(self) -> None:
        """Has the hub do less while this process cannot keep up with it."""
        while True:
            if self.lateness > LATE:
                await self.command("rest")
            await asyncio.sleep(0.2)

    async def while_late(self) -> None:
        while self.lateness > LATE and not self.leaving.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.1 + self.draw.random() * 0.4)

    async def pause(self, peer: Peer, longest: float) -> None:
        """Some time of a connection's life, cut short by its end or by the end of all."""
        waiting = asyncio.ensure_future(self.leaving.wait())
        seconds = self.draw.random() * longest
        await asyncio.wait(
            [peer.over, waiting], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()

    async def behave(self, user: str, headers: str, longest: float) -> None:
        """A client that behaves, whose stream has to be right."""
        draw = self.draw
        kind = "async" if draw.random() < 0.1 else "good"
        name = None
        if not user and draw.random() < 0.03:
            name = self.serial  # another one will ask for the same
        peer = await self.connect(kind, user=user, good=True, headers=headers, id=name)
        record = peer.record
        if not peer.open.done() or not peer.open.result():
            self.model.late(record, f"was not let in, within {PATIENCE} s")
            peer.transport.abort()
            return
        if user:
            peer.acks = draw.choice((1.0, 0.5, 0.1))
        life = asyncio.get_running_loop().time() + draw.random() * longest
        while not peer.over.done() and not self.leaving.is_set():
            if asyncio.get_running_loop().time() > life and not (self.draining and user):
                break
            await self.pause(peer, 4.0)
            await self.while_late()
            if record.code is None and not peer.over.done():
                what = draw.choices("mexoq", (10, 5, 1, 3, 0.1))[0]
                if self.draining and what == "q":
                    what = "m"
                peer.write(b"".join(peer.say(what) for _ in range(draw.choice((1, 1, 5)))))
                if self.draining:
                    peer.acks = 1.0
                    peer.acknowledge()
                if draw.random() < 0.1:
                    # A slow reader, within what is right.
                    peer.transport.pause_reading()
                    await asyncio.sleep(draw.random() * 0.2)
                    peer.transport.resume_reading()
        if name is not None and not peer.over.done() and record.code is None:
            newer = await self.connect("good", user=record.user, good=True, id=name)
            self.model.done["connections replaced"] += 1
            await self.leave(newer)
        await self.leave(peer)

    async def leave(self, peer: Peer) -> None:
        draw, record = self.draw, peer.record
        if record.code is None and not peer.over.done():
            record.said_bye = True
            how = draw.random()
            if record.kind == "async" or how < 0.4:
                peer.write(peer.say("B"))
                await asyncio.wait([peer.answered, peer.over], timeout=PATIENCE, **FIRST)
                farewell = b""
            else:
                farewell = peer.say("b")
            if how < 0.8 or self.tls is not None:  # TLS has no half-closing
                if not peer.ending:
                    peer.ending = True
                    farewell += encode(CLOSE, struct.pack("!H", 1000))
                peer.write(farewell)
                self.model.done["leaves, by a close frame"] += 1
            else:
                peer.write(farewell)
                if not peer.over.done() and not peer.transport.is_closing():
                    peer.transport.write_eof()
                    peer.silent = True
                self.model.done["leaves, by half-closing"] += 1
        await asyncio.wait([peer.over], timeout=PATIENCE)
        if not peer.over.done():
            self.model.late(record, f"asked for its end, which did not come in {PATIENCE} s")
            peer.transport.abort()

    # --- those who misbehave ---

    async def reset(self, user: str) -> None:
        peer = await self.connect("reset", user=user)
        peer.acks = 0.3
        await self.pause(peer, 15.0)
        peer.reset()

    async def stall(self) -> None:
        peer = await self.connect("stall", rcvbuf=4096)
        peer.transport.pause_reading()
        await self.pause(peer, 25.0)
        if self.draw.random() < 0.5:
            peer.transport.resume_reading()
            await self.pause(peer, 2.0)
        peer.transport.abort()

    async def half_open(self) -> None:
        """Its network has gone: it never answers again, and says no goodbye. The hub finds out."""
        peer = await self.connect("half-open")
        if peer.open.done() and peer.open.result():
            peer.vanish()
            record = peer.record
            longest = HEARTBEAT_TIMEOUT + HEARTBEAT_INTERVAL + CLOSE_TIMEOUT + 10
            waiting = asyncio.get_running_loop().time() + longest
            while not record.gone and not self.leaving.is_set():
                await asyncio.sleep(0.2)
                if asyncio.get_running_loop().time() > waiting:
                    self.model.late(record, f"had vanished, and is there after {longest} s")
                    break
            self.model.done["vanished clients found out"] += record.gone
        peer.reset()

    async def malformed(self) -> None:
        peer = await self.connect("malformed")
        await self.pause(peer, 3.0)
        wrong, codes = self.draw.choice(MALFORMED)
        if peer.record.code is None and not peer.over.done():
            peer.ending = True
            peer.write(wrong)
            await asyncio.wait([peer.over], timeout=PATIENCE)
            code = peer.record.code
            if code not in (*codes, SLOW, None) and not peer.record.kicked:
                self.model.violation(f"{peer.record}: {wrong[:14]!r} closed with {code}")
            if not peer.over.done():
                self.model.late(peer.record, f"is open after {wrong[:14]!r}")
        peer.transport.abort()

    async def torn(self) -> None:
        peer = await self.connect("torn")
        await self.pause(peer, 5.0)
        whole = encode(TEXT, b"z" * self.draw.randrange(1, 3_000))
        peer.write(whole[: self.draw.randrange(1, len(whole))])
        await self.pause(peer, 2.0)
        peer.transport.abort() if self.draw.random() < 0.5 else peer.transport.close()

    async def flood(self) -> None:
        """Pings without reading what is answered."""
        peer = await self.connect("flood", rcvbuf=4096)
        peer.transport.pause_reading()
        for _ in range(20):
            peer.write(encode(PING, b"p" * 100) * 200)
            await self.pause(peer, 0.2)
            if peer.over.done() or self.leaving.is_set():
                break
        peer.transport.abort()

    async def slowloris(self) -> None:
        peer = await self.connect("slowloris", upgrade=False)
        begin = time.monotonic()
        for byte in peer.request().encode():
            if peer.over.done():
                break
            peer.write(bytes([byte]))
            await asyncio.wait([peer.over], timeout=0.2)
            if time.monotonic() > begin + 4 * HANDSHAKE_TIMEOUT:
                self.model.late(peer.record, f"was suffered for {4 * HANDSHAKE_TIMEOUT} s")
                break
        peer.transport.abort()

    async def garbage(self) -> None:
        # Of a hub that speaks TLS, half of it comes without.
        peer = await self.connect("garbage", upgrade=False, tls=self.draw.random() < 0.5)
        peer.write(self.draw.choice(GARBAGE))
        await asyncio.wait([peer.over], timeout=4)
        peer.transport.abort()

    async def refused(self) -> None:
        kind = self.draw.choice(("autherror", "refused", "unwanted", "slowauth"))
        peer = await self.connect(kind)
        await self.pause(peer, 5.0)
        peer.transport.abort()

    async def misbehave(self) -> None:
        ways: list[Callable[[], Any]] = [
            *(self.half_open, self.malformed, self.torn, self.flood, self.slowloris),
            *(self.garbage, self.refused, lambda: self.reset("")),
        ]
        await self.draw.choice(ways)()

    async def slot(self, index: int) -> None:
        """One after the other; what costs the server memory is a matter of the slot."""
        draw, user, headers = self.draw, "", ""
        if index < self.singles:
            user = f"a{index}"
        elif index < self.singles + 2 * self.shared:
            user = f"s{(index - self.singles) // 2}"
        if index % 8 == 0:
            headers = (
                "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
                "client_no_context_takeover\r\n"
            )
        elif index % 50 == 1:
            headers = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
        await asyncio.sleep(draw.random() * min(5.0, self.options.seconds / 4))
        while self.running or (self.draining and user):
            await self.while_late()
            try:
                if user and draw.random() < 0.3 and self.running:
                    await self.reset(user)
                elif user or index % 10 < 7:
                    await self.behave(user, headers, min(40.0, self.options.seconds / 2))
                elif index % 10 == 7:
                    await self.stall()
                else:
                    await self.misbehave()
            except OSError as error:
                self.model.done[f"connect: {type(error).__name__}"] += 1
            if self.running:
                await asyncio.sleep(draw.random())

    # --- the hub's process ---

    async def start(self, directory: str) -> None:
        options = self.options
        self.server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trials.soak.server", "--seed", str(options.seed)),
            *("--rate", str(options.rate), "--store", f"{directory}/offline.db"),
            *("--singles", str(self.singles), "--shared", str(self.shared)),
            *("--transport", options.transport, *(["--tls"] if options.tls else [])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )

    async def follow(self) -> None:
        async for text in self.server.stdout:
            line = decode(text)
            if line[0] == "listening":
                self.port = line[1]
                self.listening.set()
            elif line[0] == "stat":
                self.stats.put_nowait(line[1])
            elif line[0] == "stopped":
                self.stopped.set()
            elif line[0] == "end":
                self.final = line[1]
            else:
                try:
                    self.model.take(line)
                except KeyError as error:
                    self.model.violation(f"the log tells of {error} too early or late: {line}")

    async def complaints(self) -> None:
        text = (await self.server.stderr.read()).decode()
        if text:
            self.model.violation(f"the server wrote to stderr:\n{text[:8_000]}")

    async def command(self, text: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.server.stdin.write(text.encode() + b"\n")
            await self.server.stdin.drain()

    async def stat(self) -> dict[str, int]:
        await self.command("stat")
        async with asyncio.timeout(120):
            return await self.stats.get()  # type: ignore[no-any-return]

    async def watch_memory(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        begin = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                size = resident(self.server.pid) * page
                self.memory.append((time.monotonic() - begin, size))
            if self.lateness > LATE:
                self.late_at.append(time.monotonic() - begin)
            await asyncio.sleep(0.5)

    async def until(
        self, what: str, condition: Callable[[dict[str, int]], bool], seconds: float
    ) -> dict[str, int]:
        deadline = time.monotonic() + seconds
        while True:
            stat = await self.stat()
            if condition(stat):
                return stat
            if time.monotonic() > deadline:
                self.model.violation(f"{what} did not come in {seconds} s: {stat}")
                return stat
            await asyncio.sleep(0.2)

    async def run(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            await self.start(directory)
            following = asyncio.create_task(self.follow())
            complaining = asyncio.create_task(self.complaints())
            try:
                await self.listen_and_play()
                await self.command("quit")
                async with asyncio.timeout(60):
                    if await self.server.wait() != 0:
                        self.model.violation(f"the server ended with {self.server.returncode}")
                    await following
                    await complaining
            finally:
                if self.server.returncode is None:
                    self.server.kill()
                    await self.server.wait()

    async def listen_and_play(self) -> None:
        async with asyncio.timeout(30):
            await self.listening.wait()
        baseline = await self.stat()
        await self.command("play")
        watching = asyncio.create_task(self.watch_memory())
        pacing = [
            asyncio.create_task(watch_lateness(self.late)),
            asyncio.create_task(self.keep_up()),
        ]
        slots = [asyncio.create_task(self.slot(i)) for i in range(self.options.clients)]
        sleeping = asyncio.create_task(asyncio.sleep(self.options.seconds))
        await asyncio.wait([sleeping, *slots], return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        self.running, self.draining = False, True
        await self.command("stop")
        async with asyncio.timeout(120):
            await self.stopped.wait()
        await self.until(
            "the acknowledgement of everything",
            lambda stat: stat["pending acks"] == stat["stored messages"] == 0,
            120,
        )
        self.draining = False
        self.leaving.set()
        for outcome in await asyncio.gather(*slots, return_exceptions=True):
            if isinstance(outcome, BaseException):
                self.model.violation(f"the harness: {outcome!r}")

        def as_before(stat: dict[str, int]) -> bool:
            return all(stat[name] <= baseline[name] + LEAKS[name] for name in LEAKS)

        left = await self.until("the state before the first client", as_before, 60)
        self.blocks = left["allocated blocks"] - baseline["allocated blocks"]
        for task in pacing:
            task.cancel()
        self.model.checked["kinds of leaks looked for"] = len(LEAKS)
        await asyncio.sleep(0.2)
        self.model.end(left["unreported failures"])

    # --- the verdict ---

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio reports of this process: a reset is no fault here, all else is."""
        error = context.get("exception")
        if not isinstance(error, OSError):
            self.model.violation(f"the harness: {context['message']}: {error!r}")

    def check_memory(self) -> str:
        seconds = self.options.seconds
        # OpenSSL allocates what each connection needs; malloc's heap fits after some minutes.
        warm = min(60.0 if self.tls is None else 300.0, seconds / 2)
        early = [size for at, size in self.memory if warm * 0.75 <= at <= warm]
        late = [size for at, size in self.memory if at >= seconds - (seconds - warm) / 4]
        if seconds < 20:
            return "not judged: too short"
        if not early or not late or sum(at <= warm for at in self.late_at) > warm / 10:
            return "not judged: this machine was too slow for all clients to be there by then"
        before, after = statistics.median(early), statistics.median(late)
        growth = (after / before - 1) * 100
        allowed = 2.0 if seconds >= 180 else 10.0
        if seconds < 900:
            allowed = max(allowed, SLACK / before * 100)
        text = (
            f"{before / 1e6:.1f} MB at {warm * 0.75:.0f}-{warm:.0f} s, {after / 1e6:.1f} MB at the "
            f"end: {growth:+.1f} % (allowed: {allowed:.1f} %)"
        )
        if growth > allowed:
            self.model.violation(f"memory grew: {text}")
        return text

    def by_minute(self) -> str:
        minutes: dict[int, list[int]] = {}
        for at, size in self.memory:
            minutes.setdefault(int(at // 60), []).append(size)
        return " ".join(f"{statistics.median(sizes) / 1e6:.1f}" for sizes in minutes.values())

    def report(self) -> bool:
        memory = self.check_memory()
        left = self.final.get("left", {})
        for name in NONE_LEFT:
            if left.get(name, 1):
                self.model.violation(f"after the stop there are {left.get(name)} {name}")
        options = self.options
        way = ("over TLS, " if options.tls else "") + (
            "on picows, " if options.transport == "picows" else ""
        )
        print(f"soak: {options.seconds:g} s, {way}{options.clients} clients, seed {options.seed}")
        for title, counts in (
            ("clients", self.model.done),
            ("hub calls", self.final.get("done", {})),
            ("hub counters", self.final.get("stats", {})),
            ("checked", self.model.checked),
        ):
            print(f"  {title}")
            for name, count in sorted(counts.items()):
                print(f"    {name:<50} {count:>12,}")
        print(f"  memory: {memory}; by the minute: {self.by_minute()} MB")
        print(f"  blocks of memory in the end: {self.blocks:+,} (allowed: {LEAKS[BLOCKS]:+,})")
        print(f"  {len(self.model.violations)} violations")
        for text in self.model.violations[:10]:
            print(f"    {text}")
        print("PASSED" if not self.model.violations else "FAILED")
        return not self.model.violations


def trusting() -> ssl.SSLContext:
    """Of a client that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def resident(pid: int) -> int:
    """Pages of a process's memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


FIRST: Any = {"return_when": asyncio.FIRST_COMPLETED}
BLOCKS = "allocated blocks"
# What has to be as before once everybody has gone, and how much more there may be. Of blocks of
# memory (sys.getallocatedblocks) caches hold some; one for each connection would be more.
NONE_LEFT = (
    *("client objects", "connections", "connected clients", "closing clients", "handshakes"),
    *("hub tasks", "our tasks", "pending acks", "ack queues", "parked acks", "ack replays"),
    *("store calls", "ack deletes", "stored messages", "users"),
)
LEAKS = dict.fromkeys((*NONE_LEFT, "hub objects", "tasks", "descriptors", "threads"), 0)
LEAKS[BLOCKS] = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000.0, help="broadcast deliveries/second")
    parser.add_argument("--quick", action="store_true", help="3 minutes, 1,000 clients: as in CI")
    parser.add_argument("--tls", action="store_true", help="all of it over TLS")
    parser.add_argument("--transport", choices=["hub", "picows"], default="hub")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.clients = 180.0, 1_000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = options.clients + 500
    if most != resource.RLIM_INFINITY and most < needed:
        raise SystemExit(f"{options.clients} clients need {needed} descriptors (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def body() -> bool:
            soak = Soak(options)
            asyncio.get_running_loop().set_exception_handler(soak.failed)
            try:
                await soak.run()
            except TimeoutError as error:
                soak.model.violation(f"the server does not answer: {error!r}")
            return soak.report()

        if not runner.run(body()):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
