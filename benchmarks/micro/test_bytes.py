"""Functions that work on bytes alone: frames, masks, UTF-8, compression, request heads, JSON."""

from __future__ import annotations

import codecs
import math
import random
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from picows.picows import _parse_http_request
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SERVER, Protocol
from websockets.speedups import apply_mask
from websockets.streams import StreamReader
from wsproto.connection import Connection, ConnectionType
from wsproto.frame_protocol import FrameProtocol, XorMaskerSimple

from benchmarks.gate.scenarios import DEFLATE, ROWS, hub_with, turns
from benchmarks.micro import plain
from benchmarks.micro.conftest import Measure
from wsc_fast import Client, Hub, HubMessage
from wsc_fast._core.frames import encode_frame
from wsc_fast._core.handshake import RequestHead
from wsc_fast.messages import decode_hub_message, encode_hub_message
from wsc_fast.testing import encode

Message = str | bytes
MASK = b"\x12\x9a\x3c\xe5"
SIZES = {"0 B": 0, "128 B": 128, "1 KiB": 1024, "64 KiB": 65536, "1 MiB": 1 << 20}
KINDS = ("text", "not ASCII", "binary")
LEVEL = 1  # of zlib
RATED = "wsc_fast with message_rate and byte_rate"


def message_of(kind: str, size: int) -> Message:
    """Of so many bytes on the wire; "not ASCII" is of characters of three bytes."""
    if kind == "binary":
        return random.Random(1).randbytes(size)
    return "x" * size if kind == "text" else "\u4e16" * (size // 3)


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame."""
    return encode(first & 15, payload, rsv=first >> 4 & 7, mask=MASK)


# --- out: a message -> its frame ---


def framers(message: Message) -> dict[str, Callable[[], Any]]:
    wsproto = FrameProtocol(client=False, extensions=[])

    def websockets() -> bytes:
        if isinstance(message, str):
            return Frame(Opcode.TEXT, message.encode()).serialize(mask=False)
        return Frame(Opcode.BINARY, message).serialize(mask=False)

    return {
        "wsc_fast": lambda: encode_frame(message),
        "Python": lambda: plain.frame(message),
        "websockets": websockets,
        "wsproto": lambda: wsproto.send_data(message),
    }


@pytest.mark.parametrize("who", framers(""))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_frame(measure: Measure, kind: str, size: str, who: str) -> None:
    message = message_of(kind, SIZES[size])
    call = framers(message)[who]
    assert bytes(call()) == plain.frame(message)
    measure(f"frame of {kind}, {size}", who, call)


# --- in: a client's frame -> its message, unmasked, checked, and heard by a callback ---


def feed(client: Client, data: bytes) -> None:
    """Reads as a transport does: into the memory that the client names, and tells it how much."""
    at = 0
    while at < len(data):
        view = client.get_buffer(-1)
        size = min(len(view), len(data) - at)
        view[:size] = data[at : at + size]
        client.buffer_updated(size)
        at += size


async def reader_of(hub: Hub, *, heavy_read: int = 8_192) -> Callable[..., Message]:
    """A function that reads bytes of the hub's one client, and returns their message.

    The loop does not turn between rounds, so that one turn has to have time for all of them.
    """
    heard: list[Message] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    hub._engine.set_turns(heavy_read, math.inf)
    await turns()  # the one that read the request has ended
    client = hub.get_client_by_id("client0")
    assert client is not None

    def read(*pieces: bytes) -> Message:
        for piece in pieces:
            feed(client, piece)
        return heard.pop()

    return read


def websockets_reader(*extensions: PerMessageDeflate) -> Callable[[bytes], Message]:
    protocol = Protocol(SERVER, max_size=None)
    protocol.extensions = list(extensions)

    def read(data: bytes) -> Message:
        protocol.receive_data(data)
        frame = protocol.events_received()[0]
        assert isinstance(frame, Frame)
        return str(frame.data, "utf-8") if frame.opcode is Opcode.TEXT else frame.data

    return read


def wsproto_reader() -> Callable[[bytes], Message]:
    connection = Connection(ConnectionType.SERVER)

    def read(data: bytes) -> Message:
        connection.receive_data(data)
        (event,) = connection.events()
        message: Message = event.data  # type: ignore[attr-defined]
        return message

    return read


Readers = dict[str, Callable[[bytes], Message]]


async def read_by(
    measure: Measure, what: str, who: str, data: bytes, message: Message, others: Readers
) -> None:
    """Measures ours, on a hub that compresses, or what `others` has."""
    rates = {"message_rate": 1e9, "byte_rate": 1e12} if who == RATED else {}
    async with hub_with(1, DEFLATE, enable_compression=True, **rates) as (hub, _):
        heavy_read = 1_024 if rates else 8_192
        read = others[who] if who in others else await reader_of(hub, heavy_read=heavy_read)
        assert read(data) == message
        measure(what, who, lambda: read(data))


MASKERS = {
    "websockets' apply_mask alone": lambda payload: apply_mask(payload, MASK),
    "wsproto's XorMaskerSimple alone": lambda payload: XorMaskerSimple(MASK).process(payload),
}


@pytest.mark.parametrize(
    ("kind", "who"),
    [(kind, who) for kind in KINDS for who in ("wsc_fast", "Python", "websockets", "wsproto")]
    + [("text", RATED)]
    + [("binary", who) for who in MASKERS],
)
@pytest.mark.parametrize("size", ["128 B", "1 KiB", "64 KiB"])
async def test_message_in(measure: Measure, kind: str, size: str, who: str) -> None:
    message = message_of(kind, SIZES[size])
    payload = message.encode() if isinstance(message, str) else message
    data = masked(0x81 if isinstance(message, str) else 0x82, payload)
    covered = bytearray(plain.unmask(payload, MASK))
    others: Readers = {
        "Python": plain.message,
        "websockets": websockets_reader(),
        "wsproto": wsproto_reader(),
        # These functions change their bytes, or copy them. A copy gives each round the same bytes.
        **{name: lambda _, mask=mask: mask(covered[:]) for name, mask in MASKERS.items()},  # type: ignore[misc]
    }
    await read_by(measure, f"message in: {kind}, {size}", who, data, message, others)


@pytest.mark.parametrize("who", ["wsc_fast", "Python"])
async def test_utf8_in_pieces(measure: Measure, who: str) -> None:
    """A text that comes in two reads, cut within a character."""
    text = "\u4e16" * 10_000
    data = masked(0x81, text.encode())
    pieces = (data[:15_000], data[15_000:])
    decode = codecs.getincrementaldecoder("utf-8")().decode
    turned = MASK[(15_000 - 8) % 4 :] + MASK[: (15_000 - 8) % 4]

    def python() -> str:
        begin = decode(plain.unmask(pieces[0][8:], MASK))
        return begin + decode(plain.unmask(pieces[1], turned), final=True)

    async with hub_with(1) as (hub, _):
        call = partial(await reader_of(hub), *pieces) if who == "wsc_fast" else python
        assert call() == text
        measure("message in: not ASCII, 30 KB in two reads", who, call)


# --- compression without context takeover ---


def websockets_deflate() -> PerMessageDeflate:
    return PerMessageDeflate(True, True, 15, 15, {"level": LEVEL})


def deflated(data: bytes) -> bytes:
    z = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
    return (z.compress(data) + z.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(data: bytes) -> str:
    payload = plain.unmask(data[8:], data[4:8])
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff").decode()


@pytest.mark.parametrize("who", ["wsc_fast", "Python", "websockets"])
async def test_deflate(measure: Measure, who: str) -> None:
    """Ours with all of a broadcast to one client; the others' is the compressed frame alone."""
    extension = websockets_deflate()
    async with hub_with(1, DEFLATE, enable_compression=True, compression_level=LEVEL) as (
        hub,
        peers,
    ):

        def python() -> bytes:
            data = bytearray(plain.frame(deflated(ROWS.encode())))
            data[0] = 0xC1
            return bytes(data)

        def websockets() -> bytes:
            return Frame(Opcode.TEXT, ROWS.encode()).serialize(mask=False, extensions=[extension])

        calls = {
            "wsc_fast": lambda: hub.broadcast(ROWS),
            "Python": python,
            "websockets": websockets,
        }

        def sent() -> None:
            hub._engine.fanout.flush()
            peers.drain()

        measure(f"deflate of {len(ROWS)} B of JSON", who, calls[who], times=50, between=sent)


@pytest.mark.parametrize("who", ["wsc_fast", "Python", "websockets"])
async def test_inflate(measure: Measure, who: str) -> None:
    data = masked(0xC1, deflated(ROWS.encode()))
    assert data[1] & 127 == 126, "of the length that `inflated` reads"
    others: Readers = {"Python": inflated, "websockets": websockets_reader(websockets_deflate())}
    what = f"message in: {len(ROWS)} B of JSON, compressed"
    await read_by(measure, what, who, data, ROWS, others)


# --- request heads ---

# As a browser sends it.
HEAD = (
    b"GET /ws?token=4f9c0b HTTP/1.1\r\nHost: chat.example.org\r\nConnection: Upgrade\r\n"
    b"Pragma: no-cache\r\nCache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/131.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: https://chat.example.org\r\n"
    b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Accept-Language: en-GB,en;q=0.9\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
)


def websockets_head() -> Request:
    reader = StreamReader()
    reader.feed_data(HEAD + b"\r\n")
    parser = Request.parse(reader.read_line)
    try:
        next(parser)
    except StopIteration as end:
        request: Request = end.value
        return request
    raise AssertionError("the head is whole")


HEADS: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "wsc_fast": (lambda: RequestHead(HEAD), lambda head: head.key),
    "Python": (lambda: plain.head(HEAD), lambda head: head[2]["sec-websocket-key"]),
    "picows": (
        lambda: _parse_http_request(HEAD[:-2]),
        lambda head: head.headers["Sec-WebSocket-Key"],
    ),
    "websockets": (websockets_head, lambda head: head.headers["Sec-WebSocket-Key"]),
}


@pytest.mark.parametrize("who", HEADS)
def test_request_head(measure: Measure, who: str) -> None:
    parse, key = HEADS[who]
    assert key(parse()) == "dGhlIHNhbXBsZSBub25jZQ=="
    measure("request head of a browser", who, parse)


# --- messages of the hub's own form ---

HUB_MESSAGE = HubMessage(
    id="0123456789abcdefghijklmn",
    content="x" * 64,
    create_at=datetime(2026, 1, 1, tzinfo=UTC),
    data={"room": "general", "items": [1, 2, 3]},
)
PLAIN_MESSAGE = plain.Message(
    id=HUB_MESSAGE.id,
    type="text",
    content=HUB_MESSAGE.content,
    create_at="2026-01-01T00:00:00Z",
    data=HUB_MESSAGE.data,
)


@pytest.mark.parametrize("who", ["wsc_fast", "Python"])
def test_hub_message_encode(measure: Measure, who: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "wsc_fast": lambda: encode_hub_message(HUB_MESSAGE),
        "Python": PLAIN_MESSAGE.encode,
    }
    measure("HubMessage encode", who, calls[who])


@pytest.mark.parametrize("who", ["wsc_fast", "Python"])
def test_hub_message_decode(measure: Measure, who: str) -> None:
    ours, theirs = encode_hub_message(HUB_MESSAGE), PLAIN_MESSAGE.encode()
    calls: dict[str, Callable[[], Any]] = {
        "wsc_fast": lambda: decode_hub_message(ours),
        "Python": lambda: plain.Message.decode(theirs),
    }
    assert calls[who]().id == HUB_MESSAGE.id
    measure("HubMessage decode", who, calls[who])
