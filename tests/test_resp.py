"""The reader of RESP: whole, byte by byte, garbage, bounds, turns of the loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest

from wsc_fast._core.resp import ReplyError, RespReader

MESSAGE = b"*3\r\n$7\r\nmessage\r\n$4\r\nroom\r\n$5\r\nhello\r\n"
STRAY = b">3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$0\r\n\r\n"
# Each kind of reply, and how it is read.
REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", b"OK"),
    (MESSAGE, ("the room", b"hello")),
    (b":12\r\n", 12),
    (b":-3\r\n", -3),
    (STRAY, (b"other", b"")),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"$2\r\n\r\n\r\n", b"\r\n"),
    (b"*2\r\n*1\r\n:1\r\n$1\r\na\r\n", [[1], b"a"]),
    (b"*2\r\n*0\r\n+x\r\n", [[], b"x"]),
    (b"-ERR no\r\n", "ERR no"),
    (b"_\r\n", None),
    (b"#t\r\n", True),
    (b"#f\r\n", False),
    (b",1.5\r\n", 1.5),
    (b"%1\r\n+a\r\n:1\r\n", [(b"a", 1)]),
    (b"~2\r\n:1\r\n:2\r\n", [1, 2]),
    (b"|1\r\n+k\r\n+v\r\n:7\r\n", 7),
    (b"*2\r\n|1\r\n+k\r\n+v\r\n:7\r\n:8\r\n", [7, 8]),
    (b"=7\r\ntxt:abc\r\n", b"abc"),
    (b"!5\r\nERR x\r\n", "ERR x"),
    (b"(123456789012345678901234567890\r\n", 123456789012345678901234567890),
    (b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n", [b"subscribe", b"room", 1]),
    (MESSAGE, ("the room", b"hello")),
]
STREAM = b"".join(data for data, _ in REPLIES)
VALUES = [value for _, value in REPLIES]


class Heard:
    """A reader, and what it has told: values, and the texts of errors."""

    def __init__(self, most: int = 1 << 20, budget: float = 60.0) -> None:
        self.values: list[Any] = []
        self.broken: list[str] = []
        self.reader = RespReader(
            lambda name, data: self.values.append((name, data)),
            lambda channel, data: self.values.append((channel, data)),
            lambda value: self.values.append(shown(value)),
            lambda error: self.broken.append(str(error)),
            most=most,
            budget=budget,
        )
        self.reader.set_name(b"room", "the room")

    def feed(self, data: bytes) -> None:
        """As a transport does."""
        while data:
            room = self.reader.get_buffer(-1)
            count = min(len(room), len(data))
            room[:count] = data[:count]
            data = data[count:]
            self.reader.buffer_updated(count)


def shown(value: Any) -> Any:
    """A value with the texts of errors in their place."""
    if isinstance(value, list):
        return [shown(each) for each in value]
    return str(value) if isinstance(value, ReplyError) else value


def heard(data: bytes, cuts: Iterable[int] = (), **options: Any) -> Heard:
    """Reads a stream that comes in pieces."""
    found = Heard(**options)
    last = 0
    for cut in (*cuts, len(data)):
        found.feed(data[last:cut])
        last = cut
    return found


def test_each_kind_of_reply_is_read() -> None:
    assert heard(STREAM).values == VALUES


def test_a_stream_is_read_alike_wherever_it_is_cut() -> None:
    for cut in range(1, len(STREAM)):
        assert heard(STREAM, [cut]).values == VALUES, cut
    assert heard(STREAM, range(1, len(STREAM))).values == VALUES


def test_a_reply_larger_than_the_memory_is_read_and_the_memory_shrinks_after_it() -> None:
    large = b"*2\r\n$1000000\r\n" + bytes(1_000_000) + b"\r\n:1\r\n"
    found = heard(large + STREAM, [10, 5000, 700_000], most=2 << 20)
    assert found.values == [[bytes(1_000_000), 1], *VALUES]
    assert len(found.reader.get_buffer(-1)) <= 1 << 18


def test_messages_of_a_channel_follow_its_name() -> None:
    found = Heard()
    found.feed(MESSAGE)
    found.reader.set_name(b"room", None)
    found.feed(MESSAGE)
    found.reader.set_name(b"room", "new")
    found.feed(MESSAGE)
    assert found.values == [("the room", b"hello"), (b"room", b"hello"), ("new", b"hello")]
    assert found.reader.messages == 3


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak RESP"),
        (b"$x\r\n", "does not speak RESP"),
        (b"$-2\r\n", "does not speak RESP"),
        (b"~-1\r\n", "does not speak RESP"),
        (b"$99999999999999999999\r\n", "does not speak RESP"),
        (b"$3\r\nabcde", "does not speak RESP"),
        (b":1x\r\n", "does not speak RESP"),
        (b"+a\n", "does not speak RESP"),
        (b"+" + bytes(70_000), "does not speak RESP"),
        (b"$1048577\r\n", "larger than 1048576 bytes"),
        (b"*999999999\r\n", "larger than 1048576 bytes"),
        (b"*1000\r\n" + (b"$2000\r\n" + bytes(2000) + b"\r\n") * 1000, "larger than 1048576"),
        (b"*1\r\n" * 17, "more than 16 lists"),
    ],
)
def test_garbage_and_what_breaks_a_bound_end_the_reading(data: bytes, text: str) -> None:
    for cuts in ([], range(1, min(len(data), 100))):
        found = heard(data, cuts)
        assert [text in error for error in found.broken] == [True]
        found.feed(STREAM)
        assert found.values == []


def test_changed_streams_are_read_alike_whole_and_in_pieces() -> None:
    rng = random.Random(17)
    for _ in range(3000):
        data = bytearray(STREAM)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b"*$+-:%|>~\r\n0123456789a\xff")
        whole = heard(bytes(data))
        pieces = heard(bytes(data), sorted(rng.sample(range(1, len(data)), 5)))
        assert repr(whole.values) == repr(pieces.values), bytes(data)
        assert len(whole.broken) == len(pieces.broken)


def test_a_callback_that_stops_the_reader_hears_nothing_more() -> None:
    values: list[Any] = []

    def on_reply(value: Any) -> None:
        values.append(value)
        reader.stop()

    reader = RespReader(lambda *_: None, lambda *_: None, on_reply, values.append, most=1000)
    reader.get_buffer(-1)[:10] = b":1\r\n:2\r\n:3"
    reader.buffer_updated(10)
    assert values == [1]


def test_a_callback_that_raises_ends_the_reading() -> None:
    broken: list[Exception] = []

    def on_reply(value: Any) -> None:
        raise ValueError("of the callback")

    reader = RespReader(lambda *_: None, lambda *_: None, on_reply, broken.append, most=1000)
    reader.get_buffer(-1)[:8] = b":1\r\n:2\r\n"
    reader.buffer_updated(8)
    assert [str(error) for error in broken] == ["of the callback"]


class Transport:
    """As much of one as the reader calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


async def test_a_server_that_talks_much_waits_for_the_next_turns_of_the_loop() -> None:
    found = Heard(budget=0.0)
    transport = Transport()
    found.reader.attach(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    found.feed(MESSAGE * 40)
    taken = [len(found.values)]
    assert found.reader.waiting
    while found.reader.waiting:
        await asyncio.sleep(0)
        taken.append(len(found.values))
    # In each turn some, and reading again only once all are taken.
    assert taken == [8, 16, 24, 32, 40]
    assert transport.calls[0] == "pause"
    assert transport.calls[-1] == "resume"
    assert transport.calls.count("resume") == 1


async def test_a_read_that_fills_the_memory_is_the_last_of_its_turn() -> None:
    found = Heard()
    transport = Transport()
    found.reader.attach(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
    data = (MESSAGE * (1 << 18))[: 1 << 18]
    room = found.reader.get_buffer(-1)
    room[:] = data
    found.reader.buffer_updated(len(data))
    assert transport.calls == ["pause"]
    await asyncio.sleep(0)
    assert transport.calls == ["pause", "resume"]
