"""Faults of frames and messages (README.md, section C), over real sockets.

test_model.py checks the meaning of any stream; test_deflate.py has the row about compression (C9).
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support import TLS, join, known, named, tls_options, traced, unless_lost
from wsc_fast import Client, Hub, HubConfig, ProtocolError
from wsc_fast.testing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawClient,
    encode,
    eventually,
    open_client,
    running,
)

KIB, MIB = 1 << 10, 1 << 20
NORMAL = struct.pack("!H", 1000)
WHOLE_OR_SPLIT = pytest.mark.parametrize("split", [False, True], ids=["whole", "byte by byte"])

pytestmark = pytest.mark.usefixtures("quiet_log")


@dataclass
class Stage:
    """A hub, and what its callbacks were told of everybody but the honest client."""

    hub: Hub
    messages: list[str | bytes] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def hear(self, client: Client, message: str | bytes) -> None:
        self.messages.append(message)

    def fault(self, client: Client, error: BaseException) -> None:
        assert isinstance(error, ProtocolError), error
        self.errors.append(error.code)


@asynccontextmanager
async def stage(
    tls: ssl.SSLContext | None = None, *, watched: bool = True, **settings: Any
) -> AsyncIterator[Stage]:
    """A hub with a client who, at the end, must have noticed nothing and be served as ever.

    Without that client where `watched` is false, or the hub serves TLS.
    """
    it = Stage(Hub(HubConfig(**{"close_timeout": 0.5, **settings}), authenticate=named))
    hub = it.hub
    hub.on_message_received(it.hear)
    hub.on_client_disconnected(lambda client: it.gone.append(client.id))
    hub.on_error(unless_lost(it.fault))
    async with running(hub, **tls_options(tls)):
        if tls is not None or not watched:
            yield it
            await eventually(lambda: hub.connections == 0)
            assert len(it.gone) == len(set(it.gone))
            return
        honest, client = await join(hub, "honest")
        with honest:
            yield it
            await eventually(lambda: hub.get_connected_client_ids() == ["honest"])
            await eventually(lambda: hub.connections == 1)
            hub.broadcast("still here")
            assert await honest.recv() == Frame(TEXT, b"still here")
            await honest.send(PING, b"alive")
            assert await honest.recv() == Frame(PONG, b"alive")
            assert client.is_connected()
    it.gone.remove("honest")
    assert len(it.gone) == len(set(it.gone)), "told twice that a client has gone"


async def send(raw: RawClient, data: bytes, split: bool) -> None:
    """Sends bytes in one segment, or each in a segment of its own, which the hub reads alone."""
    if not split:
        await raw.send_raw(data)
        return
    for at in range(len(data)):
        await raw.send_raw(data[at : at + 1])
        await asyncio.sleep(0)


async def synchronised(raw: RawClient, ahead: bytes = b"") -> None:
    """Sends `ahead` and a ping, and returns when the hub has taken both."""
    await raw.send_raw(ahead + encode(PING, b"taken"))
    assert await raw.recv() == Frame(PONG, b"taken")


async def refused(it: Stage, stream: bytes, code: int, *, split: bool = False) -> None:
    """Asserts that all a new client gets for a stream is one close, and that it is gone then."""
    before = len(it.gone)
    heard = list(it.messages)
    raw, client = await join(it.hub, f"refused{before}")
    with raw:
        await send(raw, stream, split)
        frames = await raw.recv_rest()
        assert [frame.opcode for frame in frames] == [CLOSE]
        assert frames[0].code == code
        assert not client.is_connected()
    await eventually(lambda: len(it.gone) == before + 1)
    assert it.gone[before] == client.id
    assert it.errors[-1] == code
    assert len(it.errors) == len(it.gone)
    assert it.messages == heard


def fragments(opcode: int, parts: list[bytes]) -> bytes:
    """One message in these fragments."""
    return b"".join(
        encode(CONTINUATION if number else opcode, part, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    )


def cut(data: bytes, count: int) -> list[bytes]:
    """Data in so many pieces, the last of which may be empty."""
    step = max(1, -(-len(data) // count))
    return [data[at * step : (at + 1) * step] for at in range(count)]


# --- C1: endless empty continuations


@pytest.mark.fault(number="C1")
async def test_a_million_empty_continuations_end_at_the_bound(any_loop: str) -> None:
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        block = encode(CONTINUATION, fin=False) * 10_000
        with raw, traced() as memory:
            # Read meanwhile: a reset at the close timeout would take an unread close along.
            answer = asyncio.ensure_future(raw.recv())
            await raw.send(TEXT, fin=False)
            with suppress(ConnectionError):
                for _ in range(100):
                    await raw.send_raw(block)
            assert (await answer).code == 1008
            _, peak = memory()
        assert peak < 512 * KIB  # what the client reads into is half of it
        await eventually(lambda: it.gone == ["a"])
        assert it.errors == [1008]
        assert it.messages == []


@pytest.mark.fault(number="C1")
@pytest.mark.parametrize("limit", [1, 2, 9])
async def test_the_bound_on_fragments_is_exact(limit: int) -> None:
    async with stage(max_fragments=limit) as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            for opcode in (TEXT, BINARY):
                await synchronised(raw, fragments(opcode, [b""] * limit))
            assert it.messages == ["", b""]
            await raw.send_raw(fragments(TEXT, [b""] * (limit + 1)))
            assert [frame.code for frame in await raw.recv_rest()] == [1008]
        assert it.messages == ["", b""]


# --- C2: endless small fragments


@pytest.mark.fault(number="C2")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_small_fragments_without_end_are_bounded_and_kept_flat(opcode: int) -> None:
    count = 131_000
    endless = encode(opcode, b"x", fin=False) + encode(CONTINUATION, b"x", fin=False) * (count - 1)
    async with stage() as it:
        with traced() as memory:
            before, _ = memory()
            await refused(it, endless, 1008)
            _, peak = memory()
        assert peak - before < 512 * KIB
    async with stage(max_fragments=count + 1) as it:
        raw, _ = await join(it.hub, "a")
        with raw, traced() as memory:
            await synchronised(raw)
            before, _ = memory()
            await synchronised(raw, endless)
            held, _ = memory()
            # One buffer with the payload, not an object for each fragment.
            assert held - before < 2 * count
            await raw.send(CONTINUATION, b"y")
            await eventually(lambda: it.messages)
        whole = b"x" * count + b"y"
        assert it.messages == [whole.decode() if opcode == TEXT else whole]


@pytest.mark.fault(number="C2")
async def test_a_silent_peer_cannot_hold_an_unfinished_message() -> None:
    part = encode(BINARY, bytes(200 * KIB), fin=False)
    async with stage(watched=False, heartbeat_interval=0.3, heartbeat_timeout=1.0) as it:
        raws = [(await join(it.hub, f"{number}"))[0] for number in range(10)]
        with traced() as memory:
            for raw in raws:
                await synchronised(raw)
            before, _ = memory()
            for raw in raws:
                await synchronised(raw, part)
            held, _ = memory()
            assert held - before > 10 * 200 * KIB
            for raw in raws:
                *pings, close = await raw.recv_rest()
                assert {frame.opcode for frame in pings} <= {PING}
                assert close.code == 1001
                raw.close()
            await eventually(lambda: len(it.gone) == 10)
            left, _ = memory()
        assert left - before < 100 * KIB
        assert it.hub.get_stats().heartbeat_timeouts == 10
        assert it.messages == []


@pytest.mark.fault(number="C2")
@pytest.mark.parametrize("feeding", [False, True], ids=["holding", "a byte now and then"])
async def test_a_peer_that_answers_pings_cannot_hold_an_unfinished_message(feeding: bool) -> None:
    async with stage(
        watched=False, heartbeat_interval=0.1, heartbeat_timeout=5.0, message_timeout=0.5
    ) as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            begun = time.monotonic()
            await synchronised(raw, encode(BINARY, bytes(200 * KIB), fin=False))
            async with asyncio.timeout(3.0):
                while (frame := await raw.recv()).opcode == PING:
                    await raw.send(PONG, frame.payload)
                    if feeding:
                        await raw.send(CONTINUATION, b"x", fin=False)
            assert frame.code == 1008
            # Not before its time, which neither pongs nor fragments extend.
            assert 0.4 < time.monotonic() - begun < 2.0
        await eventually(lambda: it.gone == ["a"])
        assert it.messages == []
        assert it.errors == [1008]


@pytest.mark.fault(number="C2")
async def test_a_message_may_take_as_long_as_the_hub_itself_does_not_read() -> None:
    go_on = asyncio.Event()
    async with stage(
        watched=False,
        heartbeat_interval=0.1,
        heartbeat_timeout=5.0,
        message_timeout=0.3,
        max_pending_callbacks=1,
    ) as it:

        @it.hub.on_message_received
        async def later(client: Client, message: str | bytes) -> None:
            await go_on.wait()

        raw, client = await join(it.hub, "a")
        with raw:
            # One segment: what is unfinished has come when the reading is paused.
            await raw.send_raw(encode(TEXT, b"x") * 5 + encode(TEXT, b"begun ", fin=False))
            await eventually(lambda: it.hub.get_stats().limited["max_pending_callbacks"] == 1)
            await raw.send(CONTINUATION, b"ended")
            await asyncio.sleep(0.9)  # the timeout and some sweeps, all the while paused
            assert client.is_connected()
            go_on.set()
            await eventually(lambda: it.hub.get_stats().messages_in == 6)
            assert it.messages[-1] == "begun ended"
        await eventually(lambda: it.gone == ["a"])
        assert it.errors == []


# --- C3: a limit of each frame only


@pytest.mark.fault(number="C3")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_the_limit_is_of_the_message_and_kept_at_the_second_header(opcode: int) -> None:
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        first = encode(opcode, b"x" * 600_000, fin=False)
        second = encode(CONTINUATION, b"x" * 600_000)
        with raw:
            await synchronised(raw, first)
            await raw.send_raw(second[:-600_000])  # its header alone, of the same size as the first
            assert [frame.code for frame in await raw.recv_rest()] == [1009]
        await eventually(lambda: it.gone == ["a"])
        assert it.messages == []
        # Each by itself is a message.
        raw, _ = await join(it.hub, "b")
        with raw:
            await raw.send_raw(encode(opcode, b"x" * 600_000) * 2)
            await eventually(lambda: [len(message) for message in it.messages] == [600_000] * 2)


# --- C4: off by one


@pytest.mark.fault(number="C4")
@pytest.mark.parametrize("count", [1, 2, 7], ids=["whole", "2 fragments", "7 fragments"])
@pytest.mark.parametrize("limit", [125, 126, 1000, 65_535, 65_536, 200_000])
async def test_the_limit_passes_whole_and_one_byte_more_does_not(limit: int, count: int) -> None:
    async with stage(max_message_size=limit) as it:
        text = ("é" * limit).encode()[: limit // 2 * 2].rjust(limit, b"a")  # bytes, not characters
        fitting = [(BINARY, random.Random(limit).randbytes(limit)), (TEXT, b"x" * limit)]
        fitting.append((TEXT, text))
        wanted: list[str | bytes] = []
        for opcode, message in fitting:
            assert len(message) == limit
            raw, _ = await join(it.hub, "fits")
            with raw:
                await raw.send_raw(fragments(opcode, cut(message, count)))
                wanted.append(message if opcode == BINARY else message.decode())
                await eventually(lambda wanted=wanted: len(it.messages) == len(wanted))
                assert it.messages == wanted
                await raw.send_raw(fragments(opcode, cut(b"x" + message, count)))
                assert [frame.code for frame in await raw.recv_rest()] == [1009]
            await eventually(lambda: it.hub.get_connected_clients() == 1 == it.hub.connections)
            assert it.gone.pop() == "fits"
        assert it.messages == wanted
        assert it.errors == [1009] * 3


@pytest.mark.fault(number="C4")
@pytest.mark.parametrize("count", [1, 2])
async def test_as_many_characters_as_the_limit_has_bytes_are_too_many(count: int) -> None:
    async with stage(max_message_size=1000) as it:
        await refused(it, fragments(TEXT, cut("é".encode() * 1000, count)), 1009)
        await refused(it, fragments(TEXT, cut("🎈".encode() * 1000, count)), 1009)


@pytest.mark.fault(number="C4")
async def test_an_empty_fragment_more_is_no_byte_more() -> None:
    async with stage(max_message_size=1000) as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            await raw.send_raw(fragments(BINARY, [b"", b"x" * 1000, b"", b""]))
            await eventually(lambda: it.messages == [b"x" * 1000])
            await raw.send_raw(fragments(BINARY, [b"", b"x" * 1000, b"", b"x"]))
            assert [frame.code for frame in await raw.recv_rest()] == [1009]
        assert len(it.messages) == 1


# --- C5: what a length claims


@pytest.mark.fault(number="C5")
@WHOLE_OR_SPLIT
@pytest.mark.parametrize("first", [b"\x82", b"\x81", b"\x02", b"\x01"])
@pytest.mark.parametrize(
    ("length", "code"),
    [
        (b"\x7f" + b"\xff" * 7, 1009),
        (b"\0" * 3 + b"\x01" + b"\0" * 4, 1009),
        (b"\0\0\0\0\xff\xff\xff\xff", 1009),
        (b"\0\0\0\0\x80\0\0\0", 1009),
        (b"\0\0\0\0\0\x10\0\x01", 1009),
        (b"\xff" * 8, 1002),
        (b"\x80" + b"\0" * 7, 1002),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else str(value),
)
async def test_a_length_that_cannot_be_is_refused_before_its_payload(
    any_loop: str, first: bytes, length: bytes, code: int, split: bool
) -> None:
    async with stage() as it:
        await refused(it, first + b"\xff" + length + b"\0\0\0\0", code, split=split)


@pytest.mark.fault(number="C5")
@pytest.mark.parametrize("length", [b"\x7f" + b"\xff" * 7, b"\0\0\0\0\x7f\xff\xff\xff"])
async def test_a_length_cannot_overflow_the_sum_with_earlier_fragments(length: bytes) -> None:
    async with stage() as it:
        begun = encode(BINARY, b"x" * 100, fin=False)
        await refused(it, begun + b"\x80\xff" + length + b"\0\0\0\0", 1009)


@pytest.mark.fault(number="C5")
@pytest.mark.parametrize("fin", [True, False], ids=["frame", "fragment"])
async def test_memory_grows_with_bytes_received_and_not_with_a_claimed_length(fin: bool) -> None:
    count = 1000
    async with stage() as it:
        async with AsyncExitStack() as open_ones:
            raws = []
            for number in range(count):
                raw, _ = await join(it.hub, f"{number}")
                open_ones.enter_context(raw)
                raws.append(raw)
            claim = encode(BINARY, bytes(MIB - 1), fin=fin)[: -(MIB - 2)]  # and one byte of it
            with traced() as memory:
                for raw in raws:  # so that what a first pong needs is not counted
                    await synchronised(raw)
                before, _ = memory()
                for raw in raws:
                    # A ping ahead, since no frame can come within one: its pong tells that the
                    # segment has been read.
                    await raw.send_raw(encode(PING, b"taken") + claim)
                    assert await raw.recv() == Frame(PONG, b"taken")
                held, peak = memory()
            assert held - before < count * 512
            assert peak - before < count * 512 + 256 * KIB
        await eventually(lambda: len(it.gone) == count)
        assert it.messages == []
        assert it.errors == []


# --- C6: the order of fragments

OUT_OF_ORDER = {
    "a continuation first": b"\x80\x80\0\0\0\0",
    "an unfinished continuation first": b"\x00\x80\0\0\0\0",
    "a text within a text": encode(TEXT, b"a", fin=False) + encode(TEXT, b"b"),
    "a fragment of another within a text": encode(TEXT, b"a", fin=False) * 2,
    "a binary within a text": encode(TEXT, b"a", fin=False) + encode(BINARY, b"b"),
    "a text within a binary": encode(BINARY, b"a", fin=False) + encode(TEXT, b"b"),
    "after a continuation": fragments(TEXT, [b"a", b"b", b""])[:-6] + encode(TEXT, b"c"),
    "a continuation after a ping": encode(PING, b"") + encode(CONTINUATION, b"x"),
    "an empty one within an empty one": encode(TEXT, fin=False) + encode(TEXT),
}


@pytest.mark.fault(number="C6")
@WHOLE_OR_SPLIT
@pytest.mark.parametrize("kind", list(OUT_OF_ORDER))
async def test_a_fragment_out_of_order_is_1002(any_loop: str, kind: str, split: bool) -> None:
    async with stage() as it:
        stream = OUT_OF_ORDER[kind] + encode(TEXT, b"never heard")
        if kind == "a continuation after a ping":
            raw, _ = await join(it.hub, "a")
            with raw:
                await send(raw, stream, split)
                assert await raw.recv() == Frame(PONG, b"")
                assert [frame.code for frame in await raw.recv_rest()] == [1002]
            await eventually(lambda: it.gone == ["a"])
            assert it.messages == []
        else:
            await refused(it, stream, 1002, split=split)


@pytest.mark.fault(number="C6")
@pytest.mark.parametrize("message", [encode(TEXT, b"x"), fragments(TEXT, [b"", b"x"])])
async def test_a_continuation_of_a_message_that_is_over_is_1002(message: bytes) -> None:
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            await raw.send_raw(message + encode(CONTINUATION, b"y"))
            assert [frame.code for frame in await raw.recv_rest()] == [1002]
        await eventually(lambda: it.gone == ["a"])
        assert it.messages == ["x"]


# --- C7: control frames inside a message


@pytest.mark.fault(number="C7")
@WHOLE_OR_SPLIT
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_pings_inside_a_message_are_answered_and_no_part_of_it(
    any_loop: str, opcode: int, split: bool
) -> None:
    # Between all its fragments, and in the middle of a code point.
    parts = [b"gr\xc3", b"\xb6", b"", b"\xc3", b"\x9fe"]
    pings = [b"", b"one", b"\xff" * 125, b"two"]
    stream = b""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        stream += encode(CONTINUATION if number else opcode, part, fin=last)
        if not last:
            stream += encode(PING, pings[number]) + encode(PONG, b"nobody asked")
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            await send(raw, stream, split)
            assert [await raw.recv() for _ in pings] == [Frame(PONG, ping) for ping in pings]
            await eventually(lambda: it.messages)
            assert it.messages == ["größe" if opcode == TEXT else "größe".encode()]
            await synchronised(raw)
        await eventually(lambda: it.gone == ["a"])
        assert it.errors == []


@pytest.mark.fault(number="C7")
@WHOLE_OR_SPLIT
@pytest.mark.parametrize("payload", [b"", NORMAL, struct.pack("!H", 4999) + "größe".encode()])
async def test_a_close_inside_a_message_is_clean_and_ends_it(
    any_loop: str, payload: bytes, split: bool
) -> None:
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            stream = encode(TEXT, b"begun", fin=False) + encode(CLOSE, payload)
            await send(raw, stream, split)
            assert await raw.recv_rest() == [Frame(CLOSE, payload[:2])]
        await eventually(lambda: it.gone == ["a"])
        assert it.messages == []
        assert it.errors == []


# --- C8: UTF-8

BAD_TEXT = {
    "a surrogate": b"\xed\xa0\x80",
    "an overlong NUL": b"\xc0\x80",
    "an overlong slash": b"\xe0\x80\xaf",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "a lone continuation byte": b"\x80",
    "no byte of UTF-8": b"\xff",
    "an end within a code point": b"\xe2\x82",
}


@pytest.mark.fault(number="C8")
@WHOLE_OR_SPLIT
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("kind", list(BAD_TEXT))
async def test_a_text_that_is_not_utf8_is_1007(kind: str, count: int, split: bool) -> None:
    async with stage() as it:
        for ahead in (b"", b"plain ", "größe €".encode() * 3):
            stream = fragments(TEXT, cut(ahead + BAD_TEXT[kind], count))
            await refused(it, stream, 1007, split=split)


@pytest.mark.fault(number="C8")
@WHOLE_OR_SPLIT
async def test_a_code_point_may_be_split_over_fragments(any_loop: str, split: bool) -> None:
    text = "é€🎈\U0010ffff"
    data = text.encode()
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            stream = b"".join(
                fragments(TEXT, [data[:at], data[at:]]) for at in range(len(data) + 1)
            )
            stream += fragments(TEXT, [bytes([byte]) for byte in data])
            await send(raw, stream, split)
            await eventually(lambda: len(it.messages) == len(data) + 2)
            assert it.messages == [text] * (len(data) + 2)
            await synchronised(raw)
        await eventually(lambda: it.gone == ["a"])


# --- C10: faults of one connection


@pytest.mark.fault(number="C10")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "where", ["connected", "handshake", "101", "head", "payload", "fragment", "close", "our close"]
)
async def test_a_reset_anywhere_ends_that_connection_alone(
    any_loop: str, where: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    begun = {
        "head": b"\x82\xff\0\0",
        "payload": encode(BINARY, bytes(70_000))[:-1],
        "fragment": encode(TEXT, b"x", fin=False),
        "close": encode(CLOSE, NORMAL),
        "our close": b"",
    }
    rounds = 20
    early = where in ("connected", "handshake", "101")
    async with stage(server_tls if tls else None) as it:
        hub = it.hub
        for number in range(rounds):
            name = f"{number}"
            if early:
                raw = await RawClient.open(hub, upgrade=False)
                # Behind TLS this is no TLS hello, which ends the connection as well.
                request = raw.request(hub, f"/ws?id={name}")
                if where == "handshake":
                    await raw.send_raw(request[:-10])
                elif where == "101":
                    await raw.send_raw(request)
                raw.reset()
                continue
            raw = await open_client(hub, client_tls if tls else None, f"/ws?id={name}")
            await eventually(lambda name=name: hub.get_client_by_id(name) is not None)
            await raw.send_raw(begun[where])
            if where == "our close":
                known(hub, name).disconnect(4000)
                assert (await raw.recv()).code == 4000
            raw.reset()
        if not early:
            await eventually(lambda: len(it.gone) == rounds)
            assert sorted(it.gone, key=int) == [f"{number}" for number in range(rounds)]
        assert it.messages == []
        assert it.errors == []
        await eventually(lambda: hub.connections == (0 if tls else 1))
        # The callbacks heard of connections upgraded before their reset was seen, and of no others.
        assert len(it.gone) == hub.get_stats().connections_total - (0 if tls else 1)


def fuzzed_stream(rng: random.Random, compression: bool) -> bytes:
    """Frames, most of them sound, some with bytes changed, lost or put in; or no frames at all."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(1, 400))
    frames = []
    within = False
    for _ in range(rng.randrange(1, 12)):
        fin, rsv = rng.random() < 0.7, 0
        size = rng.choice([0, 1, 2, 7, 125, 126, 127, 300, 65_535, 65_536])
        payload = rng.randbytes(size) if rng.random() < 0.2 else b"a" * size
        kind = rng.random()
        if kind < 0.25:
            opcode, fin, payload = rng.choice([PING, PONG]), True, payload[:125]
        elif kind < 0.3:
            code = rng.choice([1000, 1001, 1005, 3000, 0])
            opcode, fin, payload = CLOSE, True, struct.pack("!H", code) + payload[:123]
        elif kind < 0.35:
            opcode = rng.randrange(16)
        else:
            opcode = CONTINUATION if within else rng.choice([TEXT, BINARY])
            if compression and not within and rng.random() < 0.5:
                deflater = zlib.compressobj(wbits=-15)
                payload = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
                payload, rsv = payload[:-4], 4
            within = not fin
        frame = bytearray(encode(opcode, payload, fin=fin, rsv=rsv))
        for _ in range(rng.choice([0] * 8 + [1, 3])):
            at = rng.randrange(min(len(frame), 20))
            change = rng.randrange(3)
            if change == 0:
                frame[at] = rng.randrange(256)
            elif change == 1:
                frame.insert(at, rng.randrange(256))
            elif len(frame) > 1:
                del frame[at]
        frames.append(bytes(frame))
    return b"".join(frames)


async def end(raw: RawClient, how: int) -> None:
    """Ends a connection in one of three ways, whatever the hub has done to it meanwhile."""
    with raw:
        if how == 0:
            raw.reset()
        elif how == 1:
            with suppress(OSError):
                raw.sock.shutdown(socket.SHUT_WR)
            await raw.read_all()


@pytest.mark.fault(number="C10")
@pytest.mark.parametrize("compression", [False, True], ids=["plain", "deflate"])
async def test_no_frames_of_one_client_affect_others(any_loop: str, compression: bool) -> None:
    rng = random.Random(10)
    count = 2_000
    headers = [("Sec-WebSocket-Extensions", "permessage-deflate")] if compression else []
    async with stage(
        close_timeout=0.2,
        max_message_size=100_000,
        enable_compression=compression,
        # However long it takes: no ping between the answers, no word of the watchdog.
        heartbeat_interval=600.0,
        heartbeat_timeout=700.0,
        watchdog_timeout=0,
    ) as it:

        async def attack(number: int) -> None:
            # Taken here, so that the inputs are the same however the attacks interleave.
            stream, at, how = streams[number]
            raw, _ = await join(it.hub, f"{number}", headers=headers)
            with suppress(ConnectionError):
                await raw.send_raw(stream[:at])
                await asyncio.sleep(0)
                await raw.send_raw(stream[at:])
            await end(raw, how)

        streams = []
        for _ in range(count):
            stream = fuzzed_stream(rng, compression)
            streams.append((stream, rng.randrange(len(stream)), rng.randrange(3)))
        for first in range(0, count, 20):
            await asyncio.gather(*(attack(first + more) for more in range(20)))
        await eventually(lambda: len(it.gone) == count)
        assert sorted(it.gone, key=int) == [f"{number}" for number in range(count)]
        # All kinds of faults were among them, and sound messages too.
        assert set(it.errors) == {1002, 1007, 1009}
        assert len(it.messages) > count // 4


def fuzzed_request(hub: Hub, rng: random.Random) -> bytes:
    """An upgrade, with bytes changed, lost, doubled or put in."""
    headers = [("Origin", f"http://127.0.0.1:{hub.port}"), ("Sec-WebSocket-Protocol", "a, b")]
    headers.append(("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"))
    request = bytearray(RawClient.request(hub, "/ws?a=%41&b", headers))
    telling = b'\0\t\n\r :;,="\\%/?*\x7f\x80\xff' + b"aA0"
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(request))
        change = rng.randrange(4)
        if change == 0:
            request[at] = rng.choice(telling)
        elif change == 1:
            request.insert(at, rng.choice(telling))
        elif change == 2:
            del request[at : at + rng.randrange(1, 5)]
        else:
            request[at:at] = request[at : at + rng.randrange(40)]
    return bytes(request)


@pytest.mark.fault(number="C10")
async def test_no_request_of_one_client_affects_others(any_loop: str) -> None:
    rng = random.Random(11)
    hub = Hub(HubConfig(close_timeout=0.2, enable_compression=True, subprotocols=("b",)))
    faults: list[BaseException] = []
    gone: list[str] = []
    statuses: list[bytes] = []
    hub.on_error(unless_lost(lambda client, error: faults.append(error)))
    hub.on_client_disconnected(lambda client: gone.append(client.id))

    async def attack(request: bytes) -> None:
        with await RawClient.open(hub, upgrade=False) as raw:
            await raw.send_raw(request)
            with suppress(OSError):
                raw.sock.shutdown(socket.SHUT_WR)
            answer = await raw.read_all()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
            statuses.append(answer[9:12])

    async with running(hub):
        with await RawClient.open(hub) as honest:
            await honest.send(PING, b"alive")
            assert await honest.recv() == Frame(PONG, b"alive")
            for _ in range(40):
                requests = [fuzzed_request(hub, rng) for _ in range(20)]
                await asyncio.gather(*map(attack, requests))
            await eventually(lambda: hub.connections == 1)
            assert len(gone) == len(set(gone)) == hub.get_stats().connections_total - 1
            await honest.send(PING, b"alive")
            assert await honest.recv() == Frame(PONG, b"alive")
    # Bytes behind a head that ended early are frames: their faults are the only ones.
    assert {type(error) for error in faults} <= {ProtocolError}
    assert b"500" not in statuses
    assert {b"101", b"400", b"404", b"426"} <= set(statuses)


# --- C11: coalesced frames


@asynccontextmanager
async def longest_turn() -> AsyncIterator[list[float]]:
    """Tells, once it is left, how long the longest turn of the loop took meanwhile."""
    longest = [0.0]

    async def watch() -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest[0] = max(longest[0], now - before)
            before = now

    watching = asyncio.ensure_future(watch())
    try:
        yield longest
    finally:
        watching.cancel()


@pytest.mark.fault(number="C11")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_coalesced_messages_are_all_handled_and_starve_nobody(
    any_loop: str, kind: str, opcode: int
) -> None:
    count = 50_000
    burst = encode(opcode) * count
    async with stage() as it:
        if kind == "async":

            @it.hub.on_message_received
            async def later(client: Client, message: str | bytes) -> None:
                await asyncio.sleep(0)

        raw, _ = await join(it.hub, "a")
        with raw:
            async with longest_turn() as longest:
                await raw.send_raw(burst)
                await eventually(lambda: len(it.messages) == count)
            # One read brings at most 21,845 of them; the rest of the bound is for a
            # machine that does something else.
            assert longest[0] < 1.0
            assert set(it.messages) == {"" if opcode == TEXT else b""}
            await synchronised(raw)
        await eventually(lambda: it.gone == ["a"])
        assert it.hub.get_stats().messages_in == count


@pytest.mark.fault(number="C11")
async def test_messages_that_come_byte_by_byte_starve_nobody(any_loop: str) -> None:
    count = 1_000
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            async with longest_turn() as longest:
                await send(raw, (encode(TEXT) + encode(BINARY, b"x")) * count, split=True)
                await eventually(lambda: len(it.messages) == 2 * count)
            assert longest[0] < 1.0
            assert it.messages == ["", b"x"] * count
        await eventually(lambda: it.gone == ["a"])


@pytest.mark.fault(number="C11")
async def test_control_frames_without_end_starve_nobody(any_loop: str) -> None:
    async with stage() as it:
        raw, _ = await join(it.hub, "a")
        with raw:
            async with longest_turn() as longest:
                await raw.send_raw((encode(PING) + encode(PONG)) * 25_000 + encode(PING, b"last"))
                while (await raw.recv()).payload != b"last":
                    pass
            assert longest[0] < 1.0
        await eventually(lambda: it.gone == ["a"])


# --- C12: simultaneous and repeated closes


@asynccontextmanager
async def closing(it: Stage, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[RawClient, Client]]:
    """A client that is about to close; at the end it is gone, told of once, and nobody's fault."""
    raw = await open_client(it.hub, tls, "/ws?id=a")
    await eventually(lambda: it.hub.get_client_by_id("a") is not None)
    with raw:
        yield raw, known(it.hub, "a")
        if tls is None:
            # The hub ends the connection by itself, and does not wait for a timeout. (TLS waits
            # for the other side's close_notify, which this client does not send.)
            await eventually(lambda: it.gone == ["a"], timeout=2.0)
    await eventually(lambda: it.gone == ["a"], timeout=2.0)
    assert it.errors == []
    assert it.hub.get_stats().protocol_errors == 0


@pytest.mark.fault(number="C12")
@TLS
@pytest.mark.parametrize("first", ["theirs", "ours"])
async def test_closes_of_both_in_one_tick_are_one_close(
    any_loop: str, first: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with (
        stage(server_tls if tls else None, close_timeout=10.0) as it,
        closing(it, client_tls if tls else None) as (raw, client),
    ):
        if first == "ours":
            client.disconnect(4000, "ours")
            await raw.send(CLOSE, struct.pack("!H", 4001))  # ours is not read before
        else:
            # In the kernel before the hub has its next turn, in which it reads it.
            await raw.send(CLOSE, struct.pack("!H", 4001))
            client.disconnect(4000, "ours")
        assert await raw.recv_rest() == [Frame(CLOSE, struct.pack("!H", 4000) + b"ours")]


@pytest.mark.fault(number="C12")
@TLS
async def test_a_disconnect_by_the_handler_ahead_of_the_peers_close_is_one_close(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with stage(server_tls if tls else None, close_timeout=10.0) as it:
        it.hub.on_message_received(lambda client, message: client.disconnect(4000))
        async with closing(it, client_tls if tls else None) as (raw, _):
            # One segment: the close is heard in the middle of our own.
            await raw.send_raw(encode(TEXT, b"x") + encode(CLOSE, NORMAL) + encode(TEXT, b"late"))
            assert await raw.recv_rest() == [Frame(CLOSE, struct.pack("!H", 4000))]
        assert it.messages == ["x"]


@pytest.mark.fault(number="C12")
@TLS
@pytest.mark.parametrize("segments", [1, 3])
async def test_three_closes_are_answered_once(
    any_loop: str, segments: int, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    closes = [encode(CLOSE, struct.pack("!H", code)) for code in (4001, 4002, 999)]
    async with (
        stage(server_tls if tls else None, close_timeout=10.0) as it,
        closing(it, client_tls if tls else None) as (raw, _),
    ):
        if segments == 1:
            await raw.send_raw(b"".join(closes))
        else:
            # The hub has ended the connection after the first, where it got that far.
            with suppress(ConnectionError):
                for close in closes:
                    await raw.send_raw(close)
        assert await raw.recv_rest() == [Frame(CLOSE, struct.pack("!H", 4001))]


@pytest.mark.fault(number="C12")
@TLS
async def test_three_disconnects_and_three_answers_are_one_close(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with stage(server_tls if tls else None, close_timeout=10.0) as it:
        # Also while it is told that the client has gone.
        it.hub.on_client_disconnected(lambda client: client.disconnect(4004))
        async with closing(it, client_tls if tls else None) as (raw, client):
            for code in (4001, 4002, 4003):
                client.disconnect(code)
            assert await raw.recv() == Frame(CLOSE, struct.pack("!H", 4001))
            client.disconnect(4005)
            await raw.send_raw(encode(CLOSE, struct.pack("!H", 4001)) * 3)
            assert await raw.recv_rest() == []
            assert not client.is_connected()
