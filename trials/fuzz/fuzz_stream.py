"""Fuzzes the compiled Client: bytes of a peer, against the plain models of RFC 6455 and 9112.

    python -m trials.fuzz.fuzz_stream --count 200000 --seed 1     random streams
    python -m trials.fuzz.fuzz_stream trials/fuzz/corpus/stream   the files and directories named
    python -m trials.fuzz.fuzz_stream --guided DIR -runs=100000   atheris: libFuzzer's arguments

An input is a byte of options (below), a byte that seeds how it is split, and the stream. Each is
fed whole, byte by byte and in random pieces, these also with turns to wait for, without a loop and
without a socket of its own: to get_buffer and buffer_updated as a transport does. Heard messages,
answers, and what is left of the connection have to be what tests/model.py (frames) and heads.py
(the request) say.
"""

from __future__ import annotations

import argparse
import base64
import logging
import random
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.model import Model
from trials.fuzz.heads import Answer, answer_to
from wsc_fast import Client, ConnectionLostError, Hub, HubConfig, ProtocolError
from wsc_fast._core.connection import agree_on, begin_connection
from wsc_fast.testing import apply_mask, head
from wsc_fast.upgrade.negotiation import Deflate

# The byte of options. KIND: what was negotiated, or that the stream begins with a request.
KIND, PLAIN, DEFLATE, TAKEOVER, REQUEST = 3, 0, 1, 2, 3
LARGE = 4  # bounds that make lengths of eight bytes possible
SECURE = 8  # written through the transport, as over TLS
ECHO = 16  # each message is sent back
# max_message_size and max_fragments; the read buffer is the smallest, for reads that end anywhere.
SMALL_LIMITS, LARGE_LIMITS = (3000, 8), (70_000, 8)
# Of pongs that wait together, as many are sent; then the last (pings.pyx).
MOST_PONGS = 32


class Disagreement(Exception):
    """The hub did not do what the model says."""


class Handle:
    """A timer that never fires: no input takes that long."""

    def cancel(self) -> None:
        pass


class Loop:
    """As much of an event loop as a hub asks for between two reads."""

    def __init__(self) -> None:
        self.ready: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> None:
        self.ready.append((callback, args))

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        return Handle()

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        return Handle()

    def is_closed(self) -> bool:
        return False

    def time(self) -> float:
        return time.monotonic()

    def create_future(self) -> None:
        return None

    def turn(self) -> None:
        """Runs what is due, to the end of the flush."""
        while self.ready:
            ready, self.ready = self.ready, []
            for callback, args in ready:
                callback(*args)


class Transport:
    """Keeps what is written, and what happened to the connection."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.written = bytearray()
        self.closed = False
        self.paused = False

    def fileno(self) -> int:
        return self.descriptor

    def get_extra_info(self, name: str) -> Any:
        return {"socket": self, "peername": ("127.0.0.1", 4)}[name]

    def write(self, data: Any) -> None:
        if self.closed:
            raise Disagreement("written to a closed transport")
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class TakeoverModel(Model):
    """The client's compression context is kept from message to message (RFC 7692 section 7.2.3.2).

    Instead of keeping an inflater, it puts what came before in front of each message, as it is.
    """

    before = b""

    def _inflate(self, payload: bytes) -> bytes:
        before = self.before
        self.max_message_size += len(before)
        try:
            message = super()._inflate(stored(before) + payload)[len(before) :]
        finally:
            self.max_message_size -= len(before)
        self.before = (before + message)[-32768:]
        return message


def stored(data: bytes) -> bytes:
    """A DEFLATE block that is not compressed (RFC 1951 section 3.2.4)."""
    size = len(data).to_bytes(2, "little")
    return b"\0" + size + bytes(byte ^ 255 for byte in size) + data if data else b""


class Bench:
    """A hub on no loop, whose clients are fed by hand."""

    def __init__(self, limits: tuple[int, int]) -> None:
        self.limits = limits
        self.heard: list[str | bytes] = []
        self.errors: list[object] = []
        self.lives: list[str] = []
        self.echo = False
        self.loop = Loop()
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.hub = Hub(
            HubConfig(
                max_message_size=limits[0],
                max_fragments=limits[1],
                read_buffer_size=2048,
                enable_compression=True,
                compression_threshold=16,
                client_no_context_takeover=False,
                server_no_context_takeover=False,
                subprotocols=("chat", "v2"),
                watchdog_timeout=0,  # there is no loop whose turns could be watched
            )
        )
        self.hub.on_message_received(self.hear)
        self.hub.on_error(self.note_error)
        self.hub.on_client_connected(lambda client: self.lives.append("connected"))
        self.hub.on_client_disconnected(lambda client: self.lives.append("disconnected"))
        self.hub.route("/health")(lambda request: "well")
        self.hub._engine.attach(self.loop)
        self.hub._parts.site.path = "/ws"
        self.hub._life._begin()

    def close(self) -> None:
        self.hub._engine.attach(None)
        self.ours.close()
        self.theirs.close()

    def note_error(self, client: Client | None, error: BaseException) -> None:
        if not isinstance(error, ConnectionLostError):  # most streams end without a close frame
            self.errors.append(error)

    def hear(self, client: Client, message: str | bytes) -> None:
        self.heard.append(message)
        if self.echo:
            client.send(message)

    def read(self, client: Client, transport: Transport, data: bytes) -> None:
        """Hands received bytes to the client as a transport does, as soon as it may."""
        while data:
            if transport.paused:
                self.loop.turn()
            if transport.closed:
                return
            if transport.paused:
                raise Disagreement("reading is paused and nobody's turn comes")
            buffer = client.get_buffer(-1)
            some, data = data[: len(buffer)], data[len(buffer) :]
            buffer[: len(some)] = some
            client.buffer_updated(len(some))

    def run(self, options: int, pieces: Iterator[bytes], turns: random.Random | None) -> bytes:
        """Feeds a new client; all that it wrote. With `turns` the loop now and then turns too."""
        hub, loop = self.hub, self.loop
        self.heard.clear()
        self.errors.clear()
        self.lives.clear()
        self.echo = bool(options & ECHO)
        transport = Transport(self.ours.fileno())
        client = Client(hub._engine)
        secure = bool(options & SECURE)
        kind = options & KIND
        hub._parts.site.tls = secure
        if kind == REQUEST:
            client.connection_made(transport)
        else:
            if kind == DEFLATE:
                agree_on(client, None, Deflate(True, True, 15, 15))
            elif kind == TAKEOVER:
                agree_on(client, None, Deflate(secure, False, 15, 15))
            begin_connection(client, transport, self.ours.fileno(), secure, "")
        view = client.get_buffer(-1)
        for piece in pieces:
            for at in range(0, len(piece), len(view)):
                if transport.closed:
                    break
                self.read(client, transport, piece[at : at + len(view)])
                # Nothing may point into the buffer any more.
                view[:] = b"\xaa" * len(view)
            if turns is not None and turns.random() < 0.3:
                loop.turn()
        loop.turn()
        client.connection_lost(None)
        loop.turn()
        if (
            hub.connections
            or hub.get_connected_clients()
            or hub._parts.requests._waiting
            or loop.ready
        ):
            raise Disagreement("something is left of the connection")
        try:
            while data := self.theirs.recv(1 << 20):
                transport.written += data
        except BlockingIOError:
            pass
        return bytes(transport.written)


Benches = dict[int, Bench]


@contextmanager
def benches() -> Iterator[Benches]:
    """The hubs that inputs are tried on, by the options that choose them."""
    found = {0: Bench(SMALL_LIMITS), LARGE: Bench(LARGE_LIMITS)}
    try:
        yield found
    finally:
        for bench in found.values():
            bench.close()


def frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """First byte and payload of what the hub has sent: whole frames, each in its shortest form."""
    found, at = [], 0
    while at < len(data):
        size, start = data[at + 1], at + 2
        if size > 127:
            raise Disagreement("a masked frame of the server")
        if size > 125:
            start = at + (4 if size == 126 else 10)
            size = int.from_bytes(data[at + 2 : start], "big")
            if size < (126 if start - at == 4 else 65536):
                raise Disagreement("a length that is longer than need be")
        payload = data[start : start + size]
        if len(payload) != size:
            raise Disagreement("half a frame")
        found.append((data[at], size, payload))
        at = start + size
    return found


def equal(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise Disagreement(f"{what}: {str(found)[:300]}, not {str(wanted)[:300]}")


class Wanted:
    """The results that a stream must have, in whatever pieces it comes."""

    def __init__(self, options: int, stream: bytes, limits: tuple[int, int]) -> None:
        self.options = options
        self.answer: Answer | None = None
        self.model: Model | None = None
        self.exact = True
        kind = options & KIND
        if kind == REQUEST:
            self.answer = answer = answer_to(stream, bool(options & SECURE))
            if answer.status != 101:
                return
            kind, stream = PLAIN, answer.rest
            if answer.deflate is not None:
                kind = TAKEOVER if answer.deflate.keeps else DEFLATE
                # zlib forgives references beyond a window where it still has the bytes.
                self.exact = kind == DEFLATE or answer.deflate.window == 15
        self.model = (TakeoverModel if kind == TAKEOVER else Model)(*limits, kind != PLAIN)
        self.model.feed(stream)

    def compare(self, bench: Bench, written: bytes, in_turns: bool) -> None:
        for error in bench.errors:
            if not isinstance(error, ProtocolError):
                raise Disagreement(f"an error: {error!r}") from (
                    error if isinstance(error, BaseException) else None
                )
        if self.answer is not None:
            written = self.answer.compare(written)
        if self.model is None:
            equal("after a refusal", (written, bench.heard, bench.lives), (b"", [], []))
            return
        equal("events of its life", bench.lives, ["connected", "disconnected"])
        if self.exact:
            self.compare_frames(bench, written, in_turns)

    def compare_frames(self, bench: Bench, written: bytes, in_turns: bool) -> None:
        assert self.model is not None
        events = self.model.events
        equal("messages", bench.heard, [event[1] for event in events if event[0] == "message"])
        ends = [event for event in events if event[0] in ("close", "fail")]
        equal(
            "faults",
            [error.code for error in bench.errors],
            [code for name, code in ends if name == "fail"],
        )
        sent = frames(written)
        pongs = [payload for first, _, payload in sent if first == 0x8A]
        pinged = [event[1] for event in events if event[0] == "pong"]
        if not in_turns or len(pinged) <= MOST_PONGS:
            equal("pongs", pongs, pinged[:MOST_PONGS] + pinged[MOST_PONGS:][-1:])
        else:
            rest = iter(pinged)
            if not all(pong in rest for pong in pongs) or pongs[-1] != pinged[-1]:
                raise Disagreement(f"pongs: {pongs}, not of {pinged}")
        closes = [payload for first, _, payload in sent if first == 0x88]
        codes = [int.from_bytes(payload[:2], "big") or None for payload in closes]
        equal("closes", codes, [code for _, code in ends])
        if closes:
            equal("the last frame", sent[-1][0], 0x88)
            closes[0][2:].decode()
        echoed = [frame for frame in sent if frame[0] not in (0x8A, 0x88)]
        self.compare_echo(echoed, bench.heard if self.options & ECHO else [])

    def compare_echo(self, echoed: list[tuple[int, int, bytes]], heard: list[str | bytes]) -> None:
        inflater = zlib.decompressobj(-15)
        kept = self.options & KIND == TAKEOVER and not self.options & SECURE
        if self.answer is not None and self.answer.deflate is not None:
            kept = self.answer.deflate.server_keeps
        back: list[str | bytes] = []
        for first, _, payload in echoed:
            if first & 0x40:
                assert self.model is not None
                equal("a compressed frame", self.model.deflate, True)
                if not kept:
                    inflater = zlib.decompressobj(-15)
                payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
            equal("the first byte", first & 0xBF, 0x81 if first & 1 else 0x82)
            back.append(payload.decode() if first & 1 else payload)
        equal("echoes", back, heard)


def pieces_of(stream: bytes, rng: random.Random) -> Iterator[bytes]:
    at = 0
    sizes = rng.choice([(1, 2, 3, 5, 17), (2, 9, 100, 1000), (1, 7, 130, 2048, 5000)])
    while at < len(stream):
        size = rng.choice(sizes)
        yield stream[at : at + size]
        at += size


def check(data: bytes, on: Benches) -> None:
    """Tries one input.

    Raises:
        Disagreement: or whatever the hub raised.
    """
    if len(data) < 2:
        return
    options, seed, stream = data[0], data[1], data[2:]
    bench = on[options & LARGE]
    if options & LARGE:
        options &= ~ECHO  # more than the socket takes
    wanted = Wanted(options, stream, bench.limits)
    wanted.compare(bench, bench.run(options, iter([stream]), None), False)
    rng = random.Random(seed)
    wanted.compare(bench, bench.run(options, pieces_of(stream, rng), rng), True)
    # Every read is heavy, and each takes more of a turn than there is for all.
    bench.hub._engine.set_turns(64, 0.0)
    wanted.compare(bench, bench.run(options, pieces_of(stream, rng), rng), True)
    bench.hub._engine.set_turns(8192, 1.0)
    if len(stream) < 4000:
        one_by_one = (stream[at : at + 1] for at in range(len(stream)))
        wanted.compare(bench, bench.run(options, one_by_one, None), False)


# --- random inputs ---


def masked(
    rng: random.Random, first: int, payload: bytes, form: int = 0, size: int | None = None
) -> bytes:
    """A client's frame; `form` 1 or 2 writes the length longer than need be, `size` lies."""
    mask = rng.choice([b"\0\0\0\0", rng.randbytes(4)])
    start = head(
        first & 15,
        len(payload) if size is None else size,
        fin=first > 127,
        rsv=first >> 4 & 7,
        mask=mask,
        length_bytes=(0, 2, 8)[form],
    )
    return start + apply_mask(payload, mask)


BROKEN = (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xff", b"\xf0\x9f\x8e")
SOUND = "aZ0 \u00e9\u20ac\u4e16\ud7ff\ue000\U0001f388\U0010ffff"
SIZES = (0, 1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 124, 125, 126, 127, 128, 500, 2033, 2047, 2048)


def text(rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return b"x" * rng.choice(SIZES)
    found = "".join(rng.choices(SOUND, k=rng.randrange(60))).encode()
    if kind == 1:
        return found + rng.choice(BROKEN)
    if kind == 2:
        cut = rng.randrange(len(found) + 1)
        return found[:cut] + rng.choice(BROKEN) + found[cut:]
    return found


def squeezed(rng: random.Random, payload: bytes, z: Any, keeps: bool) -> tuple[bytes, Any]:
    """A payload as permessage-deflate carries it, in one of several sound or broken ways."""
    kind = rng.randrange(12)
    if not keeps or kind == 0:
        z = zlib.compressobj(rng.choice([0, 1, 6, 9]), wbits=-15, strategy=rng.randrange(5))
    if kind == 1:
        return z.compress(payload) + z.flush(zlib.Z_FINISH), zlib.compressobj(wbits=-15)
    if kind == 2:
        return z.compress(payload) + z.flush(zlib.Z_FULL_FLUSH), z
    if kind == 3:
        first = z.compress(payload) + z.flush(zlib.Z_SYNC_FLUSH)
        return first + z.compress(payload[::-1]) + z.flush(zlib.Z_SYNC_FLUSH)[:-4], z
    out = z.compress(payload) + z.flush(zlib.Z_SYNC_FLUSH)
    if kind == 4:
        return out[: rng.randrange(len(out) + 1)], z
    if kind == 5:
        return z.compress(bytes(rng.choice([2999, 3000, 3001, 5000, 69_999, 70_001]))) + z.flush(
            zlib.Z_SYNC_FLUSH
        )[:-4], z
    if kind == 6:
        return rng.choice([b"", b"\x00", b"\x02", b"\x03\x00", b"\x03\x00\x00", b"\x07", out]), z
    if kind == 7:
        return stored(payload[:65_535]) + rng.choice([b"", b"\x00", b"\x01\x00\x00\xff\xff"]), z
    return out[:-4], z


def message(rng: random.Random, options: int, z: Any) -> tuple[bytes, Any]:
    """A message in one or more frames, with control frames in between."""
    opcode = rng.choice([1, 2])
    payload = text(rng) if opcode == 1 else rng.randbytes(rng.choice(SIZES))
    if options & LARGE and rng.randrange(3) == 0:
        payload = bytes(rng.choice([65_535, 65_536, 65_537, 70_000, 70_001]))
    elif rng.randrange(30) == 0:
        payload = bytes(rng.choice([2999, 3000, 3001, 3075, 3076, 65_536]))
    first = opcode
    if options & KIND and rng.randrange(3):
        payload, z = squeezed(rng, payload, z, options & KIND != DEFLATE)
        first |= 0x40
    cuts: list[int] = []
    if rng.randrange(2):
        cuts = sorted(rng.randrange(len(payload) + 1) for _ in range(rng.choice([1, 1, 2, 3, 8])))
    parts = []
    ends = [*cuts, len(payload)]
    for number, (start, end) in enumerate(zip([0, *cuts], ends, strict=True)):
        bits = (0 if number else first) | (0x80 if number == len(cuts) else 0)
        parts.append(masked(rng, bits, payload[start:end]))
        if rng.randrange(5) == 0:
            ping = rng.randbytes(rng.choice([0, 3, 124, 125]))
            parts.append(masked(rng, 0x80 | rng.choice([9, 10]), ping))
    return b"".join(parts), z


def fault(rng: random.Random) -> bytes:
    """Something that a client ought not to send, or an end."""
    kind = rng.randrange(7)
    if kind == 0:
        code = rng.choice([rng.randrange(65536), 999, 1000, 1004, 1005, 1006, 1014, 1015, 3000])
        return masked(rng, 0x88, code.to_bytes(2, "big") + text(rng)[:123])
    if kind == 1:
        return masked(rng, 0x88, b"\x03\xe8"[: rng.randrange(3)])
    if kind == 2:
        size = rng.choice([2999, 3001, 3076, 1 << 16, 70_001, 1 << 32, (1 << 63) - 1, 1 << 63])
        return masked(rng, rng.choice([0x81, 2, 0xC1, 0x89]), b"", 2, size)
    if kind == 3:
        return masked(rng, rng.randrange(256), rng.randbytes(rng.randrange(140)), rng.randrange(3))
    if kind == 4:
        return b"".join(masked(rng, 0x89, bytes([i])) for i in range(rng.choice([2, 32, 33, 40])))
    if kind == 5:
        return rng.randbytes(rng.randrange(30))
    return masked(rng, rng.choice([0, 0x80, 1, 2]), text(rng))


PATHS = (
    "/ws",
    "/ws",
    "/ws",
    "/ws?a=%41&b",
    "/health",
    "/",
    "/wsx",
    "*",
    "/\xe9",
    "?x",
    "x",
    "http://",
    "http://a.b/ws",
    "HTTPS://A.b:80/ws?x",
    "ws://[::1]/ws",
    "wss://a.b",
    "http://a.b?x",
    "ftp://a/ws",
    "http://a b/ws",
    "http://a@b/ws",
    "http:///ws",
)
METHODS = ("GET", "GET", "GET", "GET", "HEAD", "POST", "BREW", "get", "G ET", "", "TRACE")
VERSIONS = (
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.0",
    "HTTP/1.2",
    "HTTP/2.0",
    "http/1.1",
    "HTTP/1.1 ",
    "",
    "HTTP/1.",
    "HTTP/1.1\n",
)
KEY = base64.b64encode(bytes(range(16))).decode()
FIELDS = (
    ("Upgrade", ("websocket", "WebSocket", "h2c, websocket", "web\tsocket", "websocket,", "")),
    ("Connection", ("Upgrade", "keep-alive, Upgrade", "UPGRADE\t", "close", ",upgrade")),
    ("Host", ("a.b:80", "A.b", "[::1]:8080", "", "a b", "a:b", "a:123456", "a@b", "a_b~c")),
    ("Sec-WebSocket-Version", ("13", "13", "13", "8", "13, 8", "\xb9")),
    ("Sec-WebSocket-Key", (KEY, KEY, KEY[:-1], KEY[:22] + "=", KEY + " ", "\xff" * 24)),
)
MORE = (
    (
        "Origin",
        ("http://a.b", "https://a.b", "http://a.b:80", "null", "http://evil", "http://[0::1]"),
    ),
    ("Sec-WebSocket-Protocol", ("chat", "x, v2", "v2 ,chat", "", "Chat")),
    (
        "Sec-WebSocket-Extensions",
        (
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; server_max_window_bits=9; client_max_window_bits=10",
            'x;a="b,\\"c", permessage-deflate;server_no_context_takeover',
            "permessage-deflate; x, permessage-deflate; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=8",
        ),
    ),
    ("Content-Length", ("0", "00", "1", "", "-0", "0, 0", "9" * 30)),
    ("Transfer-Encoding", ("chunked", "identity")),
    ("X", ("y", "\x80\xff", "\x7f", "a\rb", "a\nb", "a\0b", "a\r\n b", "\tz ")),
    ("X ", ("y",)),
    ("", ("y",)),
    ("Host", ("a.b",)),
)


def request_head(rng: random.Random) -> bytes:
    """A request head; mostly an upgrade."""
    odd = rng.randrange(3) == 0

    def one(values: tuple[str, ...]) -> str:
        return rng.choice(values) if odd and rng.randrange(4) == 0 else values[0]

    lines = [f"{one(METHODS)} {one(PATHS)} {one(VERSIONS)}"]
    fields = [(name, one(values)) for name, values in FIELDS if not odd or rng.randrange(12)]
    for name, values in MORE[: 3 if not odd else None]:
        if rng.randrange(3) == 0:
            fields.append((name, rng.choice(values)))
    if odd and rng.randrange(8) == 0:
        fields += [("A", "b")] * rng.choice([100, 120, 124, 130])
    rng.shuffle(fields)
    for name, value in fields:
        blank = rng.choice(["", " ", " ", "\t "])
        lines.append(f"{name.swapcase() if rng.randrange(4) == 0 else name}:{blank}{value}")
    if rng.randrange(100) == 0:
        size = len("\r\n".join([*lines, "Pad: ", "", ""]))
        wanted = rng.choice([5000, 16_383, 16_384, 16_385, 16_387, 16_388, 17_000])
        lines.append("Pad: " + "p" * (wanted - size))
    before = rng.choice(["\r\n", "\r", "\n", "\r\n\r\n"]) if rng.randrange(30) == 0 else ""
    return before.encode() + "\r\n".join([*lines, "", ""]).encode("latin-1")


def random_input(rng: random.Random) -> bytes:
    """Messages and faults, now and then with bytes changed or an end cut off."""
    options = rng.choice([PLAIN, DEFLATE, TAKEOVER, REQUEST])
    options |= (SECURE if rng.randrange(4) == 0 else 0) | (ECHO if rng.randrange(3) == 0 else 0)
    if rng.randrange(100) == 0:
        options |= LARGE
    stream = bytearray(request_head(rng) if options & KIND == REQUEST else b"")
    z = zlib.compressobj(wbits=-15)
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
        if rng.randrange(5):
            more, z = message(rng, options, z)
            stream += more
        else:
            stream += fault(rng)
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        mutate(rng, stream)
    return bytes([options, rng.randrange(256)]) + bytes(stream)


def mutate(rng: random.Random, stream: bytearray) -> None:
    if not stream:
        return
    at = rng.randrange(len(stream))
    kind = rng.randrange(6)
    if kind == 0:
        stream[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        stream[at] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xFE, 0xFF, 10, 13, 58])
    elif kind == 2:
        del stream[at:]
    elif kind == 3:
        del stream[at : at + rng.choice([1, 2, 4, 8])]
    elif kind == 4:
        stream[at:at] = rng.randbytes(rng.choice([1, 2, 4, 30]))
    else:
        stream[at:at] = stream[at : at + rng.randrange(60)]


# --- driving ---


def files_of(names: list[str]) -> Iterator[Path]:
    for name in names:
        path = Path(name)
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def tried(data: bytes, on: Benches, where: object) -> None:
    try:
        check(data, on)
    except BaseException as error:
        kept = Path(f"disagreement-{sha256(data).hexdigest()[:12]}")
        kept.write_bytes(data)
        raise SystemExit(f"{where}: {type(error).__name__}: {error}\nkept in {kept}") from error


def guided(arguments: list[str]) -> None:
    """Coverage-guided, where the modules were compiled for it (docs/testing.md)."""
    import atheris

    with benches() as on:
        atheris.Setup([sys.argv[0], *arguments], lambda data: check(data, on))
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("paths", nargs="*", help="inputs to replay")
    parser.add_argument("--count", type=int, default=100_000, help="random inputs at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    if sys.argv[1:2] == ["--guided"]:
        guided(sys.argv[2:])
        return
    options = parser.parse_args()
    # A hub warns of the faults of its peers, and most inputs are faulty.
    logging.getLogger("wsc_fast").setLevel(logging.ERROR)
    start = time.monotonic()
    count = 0
    with benches() as on:
        if options.paths:
            for path in files_of(options.paths):
                count += 1
                tried(path.read_bytes(), on, path)
        else:
            rng = random.Random(options.seed)
            while count < options.count and time.monotonic() - start < options.seconds:
                count += 1
                tried(random_input(rng), on, f"seed {options.seed}, input {count}")
    print(f"{count} inputs, no disagreement, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
