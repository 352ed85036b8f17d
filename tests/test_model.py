"""The parser against the model (model.py): streams of hypothesis, whole, byte by byte, in pieces.

A real Client of a running hub, fed as a transport feeds it: through get_buffer and buffer_updated.
Its output goes to a real socket.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model import Event, Model
from tests.support import join, named
from wsc_fast import Client, Hub, HubConfig
from wsc_fast._core.connection import agree_on, begin_connection
from wsc_fast.testing import apply_mask, deflated, eventually, head, running, take_frame
from wsc_fast.upgrade.negotiation import Deflate

LIMIT = 70_000
FRAGMENTS = 8
# As many as fit into the time that a run of all tests has for this.
# hypothesis writes down an example that failed. Ours may be long: its warning would hide the fault.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Generating overly large repr:hypothesis.errors.HypothesisWarning"
)

STREAMS = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Transport(asyncio.Transport):
    """A transport without a loop: keeps what happened to it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        raise AssertionError("everything fits into the socket")

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Bench:
    """A hub whose clients are fed by hand."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.heard: list[str | bytes] = []
        hub.on_message_received(lambda client, message: self.heard.append(message))

    async def events(self, pieces: Iterator[bytes], deflate: bool) -> list[Event]:
        """The events of a new client whose stream comes in these pieces."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            client = Client(self.hub._engine)
            if deflate:
                agree_on(client, None, Deflate(True, True, 15, 15))
            begin_connection(client, Transport(), ours.fileno(), False, "")
            self.heard.clear()
            for piece in pieces:
                self.feed(client, piece)
            await asyncio.sleep(0)  # the flush
            # A message that inflates to much has a turn of its own.
            while self.hub._engine.count_waiting():  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.connection_lost(None)
            sent = bytearray()
            with suppress(BlockingIOError):
                sent += theirs.recv(1 << 20)
        events: list[Event] = [("message", message) for message in self.heard]
        while (frame := take_frame(sent)) is not None:
            if frame.opcode == 10:
                events.append(("pong", frame.payload))
            else:
                assert frame.opcode == 8
                events.append(("close", int.from_bytes(frame.payload[:2], "big") or None))
        assert not sent
        return events

    @staticmethod
    def feed(client: Client, piece: bytes) -> None:
        view = client.get_buffer(-1)
        for at in range(0, len(piece), len(view)):
            some = piece[at : at + len(view)]
            client.get_buffer(-1)[: len(some)] = some
            client.buffer_updated(len(some))
            # Nothing may point into the buffer any more.
            view[: len(some)] = b"\xaa" * len(some)


def expected(stream: bytes, deflate: bool) -> list[Event]:
    """The model's events in the order in which they can be seen: pongs go ahead of a close."""
    model = Model(LIMIT, FRAGMENTS, deflate)
    model.feed(stream)
    messages = [event for event in model.events if event[0] == "message"]
    pongs = [event for event in model.events if event[0] == "pong"]
    ends = [("close", event[1]) for event in model.events if event[0] in ("close", "fail")]
    return [*messages, *pongs, *ends]


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    hub = Hub(
        HubConfig(
            max_message_size=LIMIT,
            max_fragments=FRAGMENTS,
            read_buffer_size=4096,
            enable_compression=True,
        )
    )
    async with running(hub):
        yield Bench(hub)


def agree(streams: list[bytes], deflate: bool, seed: int) -> None:
    """Asserts that hub and model agree on streams: whole, byte by byte, and in random pieces."""

    def random_pieces(stream: bytes, rng: random.Random) -> Iterator[bytes]:
        at = 0
        while at < len(stream):
            size = rng.choice([1, 2, 3, 5, 17, 100, 1000, 5000])
            yield stream[at : at + size]
            at += size

    async def scenario() -> None:
        rng = random.Random(seed)
        async with bench() as it:
            for stream in streams:
                wanted = expected(stream, deflate)
                assert await it.events(iter([stream]), deflate) == wanted
                assert await it.events(random_pieces(stream, rng), deflate) == wanted
                if len(stream) < 3000:
                    one_by_one = (stream[at : at + 1] for at in range(len(stream)))
                    assert await it.events(one_by_one, deflate) == wanted

    asyncio.run(scenario())


# --- streams ---


def masked(first: int, payload: bytes, key: bytes, form: int = 0, size: int | None = None) -> bytes:
    """A client's frame; `form` 1 or 2 writes the length longer than need be, `size` lies."""
    start = head(
        first & 15,
        len(payload) if size is None else size,
        fin=first > 127,
        rsv=first >> 4 & 7,
        mask=key,
        length_bytes=(0, 2, 8)[form],
    )
    return start + apply_mask(payload, key)


KEYS = st.binary(min_size=4, max_size=4)
TEXTS = st.one_of(
    st.text(max_size=300).map(str.encode),
    st.text(alphabet=st.characters(max_codepoint=127), max_size=300).map(str.encode),
    st.binary(max_size=60),
    # Sound text with a fault somewhere: overlong, surrogates, too large, cut off.
    st.tuples(
        st.text(max_size=40).map(str.encode),
        st.sampled_from(
            [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xff", b"\x80"]
        ),
        st.text(max_size=40).map(str.encode),
    ).map(b"".join),
)
SIZES = st.one_of(
    st.integers(0, 200),
    st.sampled_from([125, 126, 127, 4095, 4096, 65535, 65536, 65537, LIMIT, LIMIT + 1]),
)
PAYLOADS = st.one_of(
    TEXTS, SIZES.map(bytes), SIZES.map(lambda size: bytes(i * 7 % 128 for i in range(size)))
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A sound message in one or more frames, with control frames in between."""
    opcode = draw(st.sampled_from([1, 2]))
    payload = draw(PAYLOADS)
    first = opcode
    if draw(st.integers(0, 4)) == 0:
        payload, first = deflated(payload), opcode | 0x40
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    frames = []
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(payload)], strict=True)):
        bits = (0 if number else first) | (0x80 if number == len(cuts) else 0)
        frames.append(masked(bits, payload[start:end], draw(KEYS)))
        if draw(st.integers(0, 5)) == 0:
            frames.append(masked(0x80 | draw(st.sampled_from([9, 10])), b"ping", draw(KEYS)))
    return b"".join(frames)


CLOSES = st.builds(
    lambda code, reason, key: masked(0x88, code.to_bytes(2, "big") + reason[:123], key),
    st.one_of(st.integers(0, 65535), st.sampled_from([1000, 1001, 1005, 1006, 1015, 3000, 4999])),
    TEXTS,
    KEYS,
)
ANY_FRAMES = st.builds(
    masked, st.integers(0, 255), st.binary(max_size=140), KEYS, st.sampled_from([0, 0, 0, 1, 2])
)
CLAIMS = st.builds(
    lambda first, key, size: masked(first, b"", key, 2, size),
    st.sampled_from([0x81, 0x82, 0x01, 0xC1]),
    KEYS,
    st.sampled_from([LIMIT, LIMIT + 1, LIMIT + 500, 1 << 32, (1 << 63) - 1, 1 << 63]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Messages and faults, now and then with bits changed or an end cut off."""
    parts = draw(
        st.lists(st.one_of(messages(), messages(), ANY_FRAMES, CLOSES, CLAIMS), max_size=5)
    )
    stream = bytearray(b"".join(parts))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if stream:
            stream[draw(st.integers(0, len(stream) - 1))] ^= 1 << draw(st.integers(0, 7))
    if draw(st.integers(0, 4)) == 0:
        del stream[draw(st.integers(0, len(stream))) :]
    return bytes(stream)


@pytest.mark.fault(number="C1")
@pytest.mark.fault(number="C2")
@pytest.mark.fault(number="C3")
@pytest.mark.fault(number="C4")
@pytest.mark.fault(number="C5")
@pytest.mark.fault(number="C6")
@pytest.mark.fault(number="C7")
@pytest.mark.fault(number="C8")
@STREAMS
@given(st.lists(streams(), min_size=4, max_size=8), st.integers(0, 1 << 30))
def test_any_stream_means_what_the_model_says(found: list[bytes], seed: int) -> None:
    agree(found, False, seed)


@pytest.mark.fault(number="C9")
@STREAMS
@given(st.lists(streams(), min_size=4, max_size=8), st.integers(0, 1 << 30))
def test_any_stream_with_compression_means_what_the_model_says(
    found: list[bytes], seed: int
) -> None:
    agree(found, True, seed)


def test_every_size_and_offset_is_unmasked() -> None:
    rng = random.Random(11)
    sound = []
    for size in [*range(200), *range(4080, 4112), 65534, 65535, 65536, 65537]:
        text = bytes(rng.randrange(128) for _ in range(size))
        sound.append(
            masked(0x81, text, rng.randbytes(4))
            + masked(0x82, rng.randbytes(size), rng.randbytes(4))
        )
    agree(sound, False, 1)


@pytest.mark.fault(number="C8")
def test_a_code_point_may_be_split_anywhere() -> None:
    text = "aé€🎈\U0010ffff\ud7ff\ue000".encode()
    found = []
    for cut in range(len(text) + 1):
        found.append(masked(0x01, text[:cut], b"abcd") + masked(0x80, text[cut:], b"wxyz"))
        found.append(masked(0x81, text[:cut], b"abcd"))
    agree(found, False, 2)


@pytest.mark.parametrize("deflate", [False, True])
def test_a_byte_anywhere_may_be_any_other(deflate: bool) -> None:
    base = (
        masked(0x01, "é".encode() * 3, b"abcd")
        + masked(0x89, b"p", b"efgh")
        + masked(0x80, b"xyz", b"ijkl")
        + masked(0xC1, deflated(b"abcabcabc"), b"mnop")
        + masked(0x88, b"\x03\xe8ok", b"qrst")
    )
    rng = random.Random(3)
    found = []
    for at in range(len(base)):
        for value in {0, 1, 127, 128, 255, rng.randrange(256), base[at] ^ 0x40}:
            found.append(base[:at] + bytes([value]) + base[at + 1 :])
    agree(found, deflate, 3)


async def test_the_model_holds_on_a_real_socket(any_loop: str) -> None:
    rng = random.Random(9)
    hub = Hub(HubConfig(max_message_size=LIMIT, max_fragments=FRAGMENTS), authenticate=named)
    heard: list[str | bytes] = []
    hub.on_message_received(lambda client, message: heard.append(message))
    async with running(hub):
        for turn in range(60):
            stream = b"".join(
                masked(
                    rng.choice([0x81, 0x82]),
                    rng.randbytes(rng.randrange(3000)) if turn % 3 else b"text" * rng.randrange(9),
                    rng.randbytes(4),
                )
                for _ in range(5)
            ) + masked(rng.choice([0x88, 0x83, 0xB1, 0x80]), b"\x03\xe8", rng.randbytes(4))
            heard.clear()
            raw, _ = await join(hub, "a")
            with raw:
                cut = rng.randrange(len(stream))
                await raw.send_raw(stream[:cut])
                await raw.send_raw(stream[cut:])
                frame = await raw.recv()
            wanted = expected(stream, False)
            assert [("message", message) for message in heard] == wanted[:-1]
            assert (frame.opcode, frame.code) == (8, wanted[-1][1])
            await eventually(lambda: hub.connections == 0)
