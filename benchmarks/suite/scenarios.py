"""The rows that are measured, each of one or several cases, as data.

A row compares servers in one respect. `make bench` runs the main rows: in all rounds for those
servers that are near each other, once for the rest (`once`). `make bench-full` runs all rows, for
all their servers in each round.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .machine import max_connections

EVERY = (
    *("c", "wsc", "socketify", "picows"),
    *("wsc-picows", "wsc-picows-server", "wsc-uvicorn", "wsc-lists"),
    *("websockets", "aiohttp", "fastapi", "granian", "socketio"),
)
NEAR = EVERY[:4]
DISTANT = EVERY[4:]
# The JSON handler's request behind the id, and its answer.
ITEMS = [(1250, 2), (99, 12), (48_000, 1)]
ORDER = ",".join(f'{{"price":{price},"count":{count}}}' for price, count in ITEMS)
JSON_REQUEST = ('{"id":"', f'","items":[{ORDER}]}}')
JSON_ANSWER = ('{"id":"', f'","total":{sum(price * count for price, count in ITEMS)}}}')


@dataclass(frozen=True)
class Case:
    mode: str  # of the load generator, and of the server, unless that is another
    connections: int
    label: str = ""  # what tells it from the others of its row
    x: float = 0  # likewise, for those that grow
    window: int = 0
    rate: float = 0
    payload: int = 128
    stalled: int = 0
    messages: int = 0
    concurrency: int = 0  # handshakes at a time
    options: tuple[str, ...] = ()  # others, of the load generator
    server_mode: str = ""
    needs: str = ""  # "tls", "deflate" or "json"
    environment: dict[str, str] = field(default_factory=dict, hash=False)  # of wsc_fast

    def load_options(self) -> list[str]:
        values = {
            "connections": self.connections,
            "window": self.window,
            "rate": self.rate,
            "payload": self.payload,
            "stalled": self.stalled,
            "messages": self.messages,
            "connect-concurrency": self.concurrency,
        }
        options = [
            text for name, value in values.items() if value for text in (f"--{name}", f"{value}")
        ]
        if self.needs in ("tls", "deflate"):
            options.append(f"--{self.needs}")
        return [*options, *self.options]


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    cases: tuple[Case, ...]
    servers: tuple[str, ...] = NEAR
    once: tuple[str, ...] = DISTANT
    kind: str = "load"  # or "idle", "send", "loop-stall"
    group: str = "full"  # or "main", or "growth"
    rounds: int = 0  # at most; 0: as many as asked for


def rows(*cases: Row) -> dict[str, Row]:
    return {row.name: row for row in cases}


def fitting(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes, those beyond the limit of descriptors replaced by the largest possible one."""
    return tuple(dict.fromkeys(max_connections(size) for size in sizes))


def window_for(payload: int) -> int:
    """So that about 64 KiB are in flight, and one message at least."""
    return max(1, min(32, 65_536 // payload))


LARGEST = max_connections(20_000)
SIZES = (16, 128, 1_024, 8_192, 65_536, 1_000_000)
# The defaults of wsc_fast bound a queue by 1,024 messages, and a client's rooms by 1,000.
DEEP = {"WSC_OUTBOX_MESSAGES": "10000", "WSC_OUTBOX_BYTES": str(1 << 24)}

ROWS = rows(
    Row(
        "fanout-w32",
        "fan-out to 1,000, window 32",
        (Case("fanout", 1000, window=32),),
        group="main",
    ),
    Row("fanout-w1", "fan-out to 1,000, window 1", (Case("fanout", 1000, window=1),), group="main"),
    Row("room-w32", "room of 1,000, window 32", (Case("room", 1000, window=32),), group="main"),
    Row(
        "direct",
        "direct messages among 1,000, 1 each in flight",
        (Case("direct", 1000, window=1),),
        group="main",
    ),
    Row("echo-w1", "echo, 100 clients, window 1", (Case("echo", 100, window=1),), group="main"),
    Row("echo-w16", "echo, 100 clients, window 16", (Case("echo", 100, window=16),), group="main"),
    Row(
        "mixed",
        "chat: 1,000 clients, 50 rooms; 80 % to rooms, 19 % direct, 1 % to all",
        (Case("mixed", 1000, window=100, options=("--rooms", "50", "--room-size", "20")),),
        group="main",
    ),
    Row(
        "idle",
        "10,000 idle connections",
        (Case("idle", 10_000, server_mode="fanout"),),
        ("c", "wsc", "wsc-auth"),
        EVERY[2:],
        kind="idle",
        group="main",
    ),
    Row(
        "stalled",
        "10,000 broadcasts of 1 KB to 100 clients, 1,000 a second",
        (
            Case("fanout", 100, "alone", rate=1000, payload=1024, messages=10_000),
            Case("fanout", 200, "stalled", rate=1000, payload=1024, messages=10_000, stalled=100),
        ),
        ("wsc",),
        ("socketify", "picows", "websockets", "aiohttp", "fastapi", "granian"),
        group="main",
        rounds=1,
    ),
    Row("send", "send_to_client", (Case("fanout", 1),), ("wsc",), (), kind="send", group="main"),
    Row(
        "loop-stall",
        f"broadcasting to {LARGEST:,}",
        (Case("fanout", LARGEST, window=2),),
        ("wsc",),
        (),
        kind="loop-stall",
        group="main",
    ),
    Row(
        "rooms-100x100",
        "100 rooms of 100, 1 message in flight in each",
        (Case("room", 10_000, window=1, options=("--rooms", "100", "--room-size", "100")),),
        rounds=2,
    ),
    Row(
        "rooms-1000x10",
        "1,000 rooms of 10, random publishers, 100 in flight in all",
        (
            Case(
                "room",
                10_000,
                window=100,
                options=("--rooms", "1000", "--room-size", "10", "--random"),
            ),
        ),
        rounds=2,
    ),
    Row(
        "latency-fanout",
        "fan-out to 100 at a fixed rate",
        tuple(
            Case("fanout", 100, f"{rate:,}/s", rate, rate=rate) for rate in (100, 500, 1000, 2000)
        ),
        rounds=2,
    ),
    Row(
        "latency-echo",
        "echo, 100 clients, at a fixed rate",
        tuple(Case("echo", 100, f"{rate:,}/s", rate, rate=rate) for rate in (2000, 10_000, 30_000)),
        rounds=2,
    ),
    Row(
        "latency-mixed",
        "chat at a fixed rate: 1,000 clients, 50 rooms",
        (
            Case(
                "mixed",
                1000,
                "2,000/s",
                2000,
                rate=2000,
                options=("--rooms", "50", "--room-size", "20"),
            ),
        ),
        rounds=2,
    ),
    Row(
        "storm",
        "5,000 connections at the same moment",
        (Case("idle", 5000, concurrency=5000, server_mode="fanout"),),
        ("c", "wsc", "wsc-auth", "socketify", "picows"),
        kind="idle",
        rounds=2,
    ),
    Row(
        "idle-sizes",
        "idle connections",
        tuple(
            Case("idle", size, f"{size:,}", size, server_mode="fanout")
            for size in fitting((1000, 3000, 10_000, 20_000, 50_000))
        ),
        kind="idle",
        rounds=1,
    ),
    Row(
        "publishers",
        "fan-out to 1,000 from 32 publishers, 1 message of each in flight",
        (Case("fanout", 1000, window=1, options=("--publishers", "32")),),
        rounds=2,
    ),
    Row(
        "json",
        "100 clients, window 1, a handler that reads and writes JSON",
        (
            Case(
                "echo",
                100,
                window=1,
                payload=32,
                server_mode="json",
                needs="json",
            ),
        ),
        rounds=2,
    ),
    Row(
        "tls",
        "over TLS 1.3",
        (
            Case("fanout", 200, "fan-out to 200, window 8", window=8, needs="tls"),
            Case("echo", 100, "echo, 100 clients, window 1", window=1, needs="tls"),
        ),
        rounds=2,
    ),
    Row(
        "deflate",
        "fan-out of compressed messages of 1 KB to 1,000, window 8",
        (Case("fanout", 1000, window=8, payload=1024, needs="deflate"),),
        rounds=2,
    ),
    Row(
        "payload",
        "fan-out to 100, by size of the message",
        tuple(
            Case("fanout", 100, f"{size:,} B", size, window=window_for(size), payload=size)
            for size in SIZES
        ),
        rounds=1,
    ),
    Row(
        "grow-clients",
        "fan-out, window 1, by number of clients",
        tuple(
            Case("fanout", size, f"{size:,}", size, window=1)
            for size in fitting((10, 30, 100, 300, 1000, 3000, 10_000, 20_000, 50_000))
        ),
        ("c", "wsc", "socketify"),
        (),
        group="growth",
        rounds=2,
    ),
    Row(
        "grow-rooms",
        "messages to random rooms of 10 among 1,000 clients, by number of rooms",
        tuple(
            Case(
                "room",
                1000,
                f"{count:,}",
                count,
                window=32,
                options=("--rooms", str(count), "--room-size", "10", "--random"),
            )
            for count in (1, 10, 100, 1000, 10_000, 100_000)
        ),
        ("c", "wsc", "socketify"),
        (),
        group="growth",
        rounds=2,
    ),
    Row(
        "grow-payload",
        "fan-out to 100, window 1, by size of the message in bytes",
        tuple(
            Case("fanout", 100, f"{size:,}", size, window=1, payload=size)
            for size in (16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_000_000)
        ),
        ("c", "wsc", "socketify"),
        (),
        group="growth",
        rounds=2,
    ),
    Row(
        "grow-queue",
        "fan-out to 100, by messages in flight",
        tuple(
            Case("fanout", 100, f"{window:,}", window, window=window, environment=DEEP)
            for window in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
        ),
        ("c", "wsc", "socketify"),
        (),
        group="growth",
        rounds=2,
    ),
)
