"""Entries and envelopes: round trips; any bytes are a value or a ValidationError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsc_fast import ValidationError
from wsc_fast._core.envelopes import open_entry, pack_entry, pack_envelope, read_envelope
from wsc_fast._core.frames import encode_frame
from wsc_fast.bus.base import MARK

QUICK = settings(max_examples=100, deadline=None)

PAYLOADS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    st.binary(max_size=200),
    st.sampled_from([b"", "", b"\n", "a\nb", bytes(125), bytes(126), bytes(65_535), bytes(65_536)]),
)
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64)
IDS = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=30
)
KEYS = st.none() | IDS
EXCLUDES = st.lists(IDS, max_size=4).map(tuple)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, tuple[str, ...], str | None]:
    return encode_frame(draw(PAYLOADS)), draw(EXCLUDES), draw(KEYS)


@QUICK
@given(messages())
def test_an_entry_comes_back(message: tuple[bytes, tuple[str, ...], str | None]) -> None:
    frame, exclude, key = message
    assert open_entry(pack_entry(frame, exclude, key)) == (frame, exclude or None, key)


@QUICK
@given(
    st.sampled_from("kp"),
    WORDS,
    WORDS,
    st.lists(st.tuples(WORDS, messages()), min_size=1, max_size=5),
)
def test_an_envelope_comes_back(kind: str, origin: str, prev: str, content: Any) -> None:
    entries = [(position, pack_entry(*message)) for position, message in content]
    found = read_envelope(pack_envelope(kind, origin, prev, entries))
    expected = [(p, frame, exclude or None, key) for p, (frame, exclude, key) in content]
    assert found == (kind, origin, prev, expected)


def test_an_envelope_has_at_most_1024_entries() -> None:
    entries = [(str(n), b"b 0 0 0\n") for n in range(1025)]
    assert len(read_envelope(pack_envelope("k", "o", "0", entries[:1024]))[3]) == 1024
    assert read_envelope(pack_envelope("k", "o", "0", [])) == ("k", "o", "0", [])  # it was deleted
    for kind, wrong in (("p", []), ("p", entries), ("k", entries)):
        with pytest.raises(ValidationError, match="no entries, or too many"):
            read_envelope(pack_envelope(kind, "o", "0", wrong))


def test_a_mark_is_of_a_kept_room_and_empty() -> None:
    assert open_entry(MARK) == (b"", None, None)
    assert pack_entry(b"", (), None) == MARK
    envelope = pack_envelope("k", "o", "1.a", [("2.a", MARK)])
    assert read_envelope(envelope) == ("k", "o", "1.a", [("2.a", b"", None, None)])
    with pytest.raises(ValidationError, match="neither"):
        read_envelope(pack_envelope("p", "o", "-", [("-", MARK)]))
    for entry in (b"g 1 0 0\na", b"g 0 1 0\na", b"g 0 0 1\na"):
        with pytest.raises(ValidationError, match="longer than its head"):
            open_entry(entry)


SEEDS = (
    pack_envelope(
        "k", "hub", "1.a", [("2.a", b"t 3 1 5\na\nbkhello"), ("3.a", b"b 0 0 2\n\x00\n")]
    ),
    pack_envelope("p", "hub", "-", [("-", b"t 0 0 0\n")]),
    pack_envelope("k", "hub", "1.a", [("2.a", MARK), ("3.a", b"b 0 0 0\n")]),
    b"t 3 1 5\na\nbkhello",
    b"b 0 0 0\n",
    MARK,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that are nearly an envelope or an entry."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        replaced = draw(st.integers(0, 6))
        data[at : at + replaced] = draw(
            st.binary(max_size=6)
            | st.sampled_from([b" ", b"\n", b"0", b"-1", b"999999999", b"9999999999", b"1 1 1\n"])
        )
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=100) | damaged())
@example(b"")
@example(b"wsc1 ")
@example(b"wsc1 k o p 1\n")
@example(b"wsc1 k o p 1\nq ")
@example(b"t 0 0 0")
@example(b"t 999999999 999999999 999999999\nx")
@example(b"t 1 1 1\nab")
@example(b"t 0 0 1\n\xff")
@example(b"b 1 0 0\n\xff")
@example(b"t" * 100)
def test_any_bytes_are_a_value_or_a_validation_error(data: bytes) -> None:
    try:
        frame, exclude, key = open_entry(data)
    except ValidationError:
        pass
    else:
        assert open_entry(pack_entry(frame, exclude or (), key)) == (frame, exclude, key)
    try:
        kind, origin, prev, found = read_envelope(data)
    except ValidationError:
        pass
    else:
        entries = [(p, pack_entry(f, e or (), k)) for p, f, e, k in found]
        assert read_envelope(pack_envelope(kind, origin, prev, entries)) == (
            kind,
            origin,
            prev,
            found,
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_no_part_of_one_is_one(seed: bytes) -> None:
    read = read_envelope if seed.startswith(b"wsc1") else open_entry
    read(seed)
    for end in range(len(seed)):
        with pytest.raises(ValidationError):
            read(seed[:end])
    with pytest.raises(ValidationError):
        read(seed + b"x")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (b"t 0 0 6\nhello", "cut off"),
        (b"t 0 0 4\nhello", "longer"),
        (b"t 5 5 5\nhello", "cut off"),
        (b"t 0 0 -5\nhello", "number"),
        (b"t 0 0 0x5\nhello", "number"),
        (b"t 0 0 0000000005\nhello", "too long"),
        (b"x 0 0 5\nhello", "neither"),
        (b"tt 0 0 5\nhello", "neither"),
        (b" 0 0 5\nhello", "empty"),
        (b"t  0 5\nhello", "empty"),
        (b"t 0 0 5hello", "too long, or"),
        (b"t 0 1 4\n\xffhell", "UTF-8"),
        (b"t 0 0 2\n\xc3\x28", "UTF-8"),
    ],
)
def test_sizes_that_lie_are_found(entry: bytes, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        open_entry(entry)
    with pytest.raises(ValidationError):
        read_envelope(b"wsc1 k hub 1.a 1\n2.a " + entry)
