"""The attacks: what the attackers do, what the hub is set to, what it may cost, what counts it.

`python -m trials.attack.attacks NAME CPU PORT SECONDS [tame]` runs one against a server.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trials.attack.swarm import Script, Swarm, be_cheap
from trials.attack.wire import API_KEY, DEFLATE, api_request, bomb, request, small_bomb
from wsc_fast.testing import BINARY, CONTINUATION, PING, TEXT, client_hello, encode, head

MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    """One row of the table.

    Attributes:
        name: for the command line.
        title: for people.
        script: makes what the attackers do; None keeps their core busy with nothing.
        counter: which of the stats shows it, as a path such as "limited.max_fragments".
        memory: the most that the server may grow by, in MiB.
        settings: of the hub, beside those that docs/security.md recommends.
        tame: what the same clients do before the attack, where their mere number costs something.
        broadcast: seconds between two broadcasts, before and during the attack; 0 for none.
        tls: the server speaks TLS, and so do the honest clients.
        hooks: the server has an `authorize_publish`, and a failure handler that is slow.
        cpu: the most milliseconds of the server's CPU that each connection may take; 0 for no such
            bound.
        bounded: whether the honest clients' p99 may be at most doubled; not where the row shows
            what a limit is for, by going without.
    """

    name: str
    title: str
    script: Callable[[], Script] | None
    counter: str
    memory: float
    settings: dict[str, Any] = field(default_factory=dict)
    tame: Callable[[], Script] | None = None
    broadcast: float = 0.0
    tls: bool = False
    hooks: bool = False
    cpu: float = 0.0
    bounded: bool = True


def acknowledgements() -> bytes:
    """Of messages that nobody has sent: ids are 24 random characters."""
    source = random.Random(1)
    bodies = [
        json.dumps({"type": "ack", "message_id": f"{source.getrandbits(144):036x}"})
        for _ in range(500)
    ]
    return b"".join(encode(TEXT, body.encode()) for body in bodies)


def joins() -> bytes:
    source = random.Random(2)
    return b"".join(encode(TEXT, b"join %032x" % source.getrandbits(128)) for _ in range(50_000))


JOIN_SIZE = len(encode(TEXT, b"join %032x" % 0))
TINY = encode(TEXT, b"x") * 8_000
# No bound on what a client sends, as by default.
UNLIMITED = {"message_rate": 0.0, "byte_rate": 0.0}
# No bound on how many ask: each request is looked at to its end.
ASKED = {"connection_rate": 0.0, "connection_rate_per_address": 0.0}
# Of the size that docs/security.md recommends at most, once it is inflated; four bytes a character.
SMALL_BOMB = small_bomb("\U0001f600" + "a" * 60_000)
SLOW_BOMB = small_bomb("slow \U0001f600" + "a" * 60_000)
API_BATCH = json.dumps(
    {"requests": [{"do": "publish", "room": "r", "message": "x"}] * 100}
).encode()
SPAM = encode(TEXT, b"spam") * 4

ATTACKS = [
    Attack("control", "none: the attackers' core is busy with itself", None, "", 8),
    Attack(
        "half-open",
        "10,000 half-open handshakes",
        lambda: Script(10_000, request(end=b""), again=True, most=12_000),
        "limited.max_handshakes",
        48,
        {"max_handshakes": 9_000},
    ),
    Attack(
        "slowloris",
        "2,000 requests that grow by a byte each 0.3 s",
        lambda: Script(2_000, request(end=b""), b"x", every=0.3, again=True),
        "limited.handshake_timeout",
        24,
        {"handshake_timeout": 1.0},
    ),
    Attack(
        "endless-headers",
        "1,000 endless headers, again and again",
        lambda: Script(1_000, request(end=b""), b"\r\nX-More: " + b"x" * 4000, again=True),
        "limited.max_header_bytes",
        48,
    ),
    Attack(
        "many-headers",
        "requests of 1,000 headers, again and again",
        lambda: Script(200, request(*["a: b"] * 1_000), again=True),
        "limited.max_headers",
        16,
    ),
    Attack(
        "connect-reset",
        "a storm of connections that are reset in their request",
        lambda: Script(200, request(end=b""), leave="reset"),
        "rejected.gone",
        16,
    ),
    Attack(
        "reconnect",
        "a storm of upgrades that leave at once",
        lambda: Script(200, request(), leave="answered"),
        "limited.connection_rate",
        24,
    ),
    Attack(
        "not-found",
        "a storm of requests for what is not there",
        lambda: Script(200, request(path="/nothing"), leave="answered"),
        "rejected.request",
        16,
    ),
    Attack(
        "api-flood",
        "a storm of requests to the HTTP API with wrong keys, and bodies of a mebibyte",
        lambda: Script(200, api_request("a-wrong-key-of-an-attacker"), leave="answered"),
        "rejected.auth",
        16,
        cpu=1.0,
    ),
    Attack(
        "api-batches",
        "200 who have a key, and send batches of 100 requests as fast as they can",
        lambda: Script(200, api_request(API_KEY, API_BATCH, len(API_BATCH)), leave="answered"),
        "rejected.rate",
        48,
    ),
    Attack(
        "api-slow-bodies",
        "1,000 who have a key, and send a body of a mebibyte by 100 bytes each 0.3 s",
        lambda: Script(1_000, api_request(API_KEY, b"{"), b" " * 100, every=0.3, again=True),
        "limited.handshake_timeout",
        48,
        {"handshake_timeout": 1.0},
    ),
    Attack(
        "queries",
        "a storm of upgrades with 16 KB of query",
        lambda: Script(200, request(path="/ws?token=x&" + "%41=%ff&" * 2_000), leave="answered"),
        "rejected.auth",
        24,
        ASKED,
        cpu=1.0,
    ),
    Attack(
        "cookies",
        "a storm of upgrades with 16 KB of cookies",
        lambda: Script(200, request("Cookie: token=x; " + "%41=%41; " * 1_750), leave="answered"),
        "rejected.auth",
        24,
        ASKED,
        cpu=1.0,
    ),
    Attack(
        "subprotocols",
        "a storm of upgrades with 16 KB of subprotocols",
        lambda: Script(
            200, request("Sec-WebSocket-Protocol: " + "bearer.a," * 1_750), leave="answered"
        ),
        "rejected.auth",
        24,
        ASKED,
        cpu=1.0,
    ),
    Attack(
        "offers",
        "a storm of upgrades with 4 KB of offers of extensions, each another one",
        lambda: Script(
            200,
            request("Sec-WebSocket-Extensions: xNUMBER," + 'a;b="\\"",' * 440),
            leave="answered",
        ),
        "connections_total",
        24,
        ASKED,
        cpu=1.0,
    ),
    Attack(
        "pings",
        "1,000 pinging non-readers",
        lambda: Script(
            1_000,
            request(),
            encode(PING, bytes(125)) * 500,
            reads=False,
            receive_buffer=4096,
            again=True,
        ),
        "limited.message_rate",
        24,
    ),
    Attack(
        "pings-unlimited",
        "the same, without message_rate and byte_rate",
        lambda: Script(
            1_000, request(), encode(PING, bytes(125)) * 500, reads=False, receive_buffer=4096
        ),
        "control_replaced",
        48,
        {**UNLIMITED, "write_buffer_size": 4096},
    ),
    Attack(
        "bombs",
        "1,000 compressed bombs (60 MiB in 61 KB), again and again",
        lambda: Script(1_000, request(DEFLATE), bomb(60 * MIB), again=True),
        "limited.max_message_size",
        # The hub keeps what it has inflated of each message until the message is whole.
        80,
        {"byte_rate": 1e9},
    ),
    Attack(
        "bombs-within",
        "1,000 that send a message of 60 KB in 80 bytes each second, which no limit forbids",
        lambda: Script(1_000, request(DEFLATE), SMALL_BOMB, every=1.0),
        "messages_in",
        48,
    ),
    Attack(
        "bombs-unlimited",
        "the same, five times a second, without message_rate and byte_rate",
        lambda: Script(1_000, request(DEFLATE), SMALL_BOMB, every=0.2),
        "messages_in",
        48,
        UNLIMITED,
    ),
    Attack(
        "slow-callbacks",
        "200 whose messages of 60 KB in 80 bytes wait for async callbacks of half a second",
        lambda: Script(200, request(DEFLATE), SLOW_BOMB, every=0.1),
        "limited.max_pending_callback_bytes",
        # 1 MiB may wait for each of them, and the message that is beyond it.
        320,
        UNLIMITED,
    ),
    Attack(
        "refused",
        "1,000 that send 40 messages a second which they may not publish",
        lambda: Script(1_000, request(), SPAM, every=0.1),
        "unauthorized",
        24,
        hooks=True,
    ),
    Attack(
        "fragments",
        "1,000 floods of empty fragments",
        lambda: Script(
            1_000,
            request() + encode(TEXT, fin=False),
            encode(CONTINUATION, fin=False) * 8_000,
            again=True,
        ),
        "limited.max_fragments",
        24,
    ),
    Attack(
        "fragments-default",
        "the same, under the default bound of 16,384",
        lambda: Script(
            1_000,
            request() + encode(TEXT, fin=False),
            encode(CONTINUATION, fin=False) * 8_000,
            again=True,
        ),
        "limited.max_fragments",
        24,
        {**UNLIMITED, "max_fragments": 16_384},
    ),
    Attack(
        "lengths",
        "1,000 frames of 2^63-1 bytes, again and again",
        lambda: Script(
            1_000,
            request() + head(BINARY, (1 << 63) - 1),
            again=True,
        ),
        "limited.max_message_size",
        24,
    ),
    Attack(
        "claims",
        "1,000 messages of which one byte comes",
        lambda: Script(1_000, request() + head(BINARY, 65_535) + b"x"),
        "limited.message_timeout",
        16,
        {"message_timeout": 0.5, "heartbeat_interval": 1.0, "heartbeat_timeout": 30.0},
    ),
    Attack(
        "non-readers",
        "1,000 that never read, under 50 broadcasts a second",
        lambda: Script(1_000, request(), reads=False, receive_buffer=4096),
        "slow_consumer_disconnects",
        80,
        {"outbox_messages": 32, "write_buffer_size": 4096},
        tame=lambda: Script(1_000, request()),
        broadcast=0.02,
    ),
    Attack(
        "flood",
        "1,000 floods of tiny messages",
        lambda: Script(1_000, request(), TINY, again=True),
        "limited.message_rate",
        24,
    ),
    Attack(
        "flood-pause",
        'the same, with rate_limit_action="pause"',
        lambda: Script(1_000, request(), TINY, again=True),
        "limited.message_rate",
        48,
        {"rate_limit_action": "pause"},
    ),
    Attack(
        "flood-unlimited",
        "the same, without message_rate and byte_rate",
        lambda: Script(1_000, request(), TINY),
        "messages_in",
        80,
        UNLIMITED,
        bounded=False,
    ),
    Attack(
        "acks",
        "1,000 that spray acknowledgements",
        lambda: Script(1_000, request(), acknowledgements(), again=True),
        "acks_ignored",
        24,
    ),
    Attack(
        "rooms",
        "1,000 that join rooms of random names",
        lambda: Script(1_000, request(), joins(), every=1.0, step=40 * JOIN_SIZE),
        "limited.max_rooms",
        48,
    ),
    Attack(
        "tls-control",
        "over TLS, none: the attackers' core is busy with itself",
        None,
        "",
        8,
        tls=True,
    ),
    Attack(
        "tls-half-open",
        "5,000 TLS handshakes that lack the last byte of their ClientHello",
        lambda: Script(5_000, client_hello()[:-1], again=True, most=8_000),
        "limited.max_handshakes",
        24,
        {"max_handshakes": 4_000},
        tls=True,
    ),
    Attack(
        "tls-hello",
        "a storm of ClientHellos, each of which costs a signature",
        lambda: Script(1_000, client_hello(), leave="answered"),
        "rejected.gone",
        128,
        tls=True,
    ),
    Attack(
        "tls-stay",
        "1,000 that send a ClientHello and nothing more",
        lambda: Script(1_000, client_hello()),
        "limited.handshake_timeout",
        160,
        {"handshake_timeout": 1.5},
        tls=True,
    ),
    Attack(
        "tls-flood",
        "1,000 floods of what is no record, behind the handshake's first flight",
        lambda: Script(1_000, client_hello(), bytes(60_000), again=True),
        "rejected.gone",
        160,
        tls=True,
    ),
    Attack(
        "tls-garbage",
        "a storm of what is no TLS",
        lambda: Script(1_000, request(), leave="answered"),
        "rejected.gone",
        16,
        tls=True,
    ),
]


def main() -> None:
    name, cpu, port, seconds, *tame = sys.argv[1:]
    be_cheap(int(cpu))
    (attack,) = [attack for attack in ATTACKS if attack.name == name]
    script = attack.tame if tame else attack.script
    swarm = None if script is None else Swarm(script(), int(port))
    print("ready", flush=True)
    sys.stdin.readline()
    if swarm is None:
        spin(float(seconds))
        print(json.dumps({"made": 0, "open": 0, "ended": 0}), flush=True)
    else:
        swarm.run(float(seconds))
        told = {"made": swarm.made, "open": swarm.open, "ended": swarm.ended}
        print(json.dumps(told), flush=True)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    main()
