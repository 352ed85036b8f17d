"""HubMessage, ACKMessage and Priority: their form on the wire, their ids, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tests.support import MEASURES, TOO_DEEP, join, named
from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    HubMessage,
    Priority,
    SendFailureReason,
    ValidationError,
)
from wsc_fast.messages import (
    MESSAGE_ID_MAX,
    NO_ACKNOWLEDGEMENT,
    decode_acknowledgement,
    decode_hub_message,
    encode_hub_message,
    message_of,
    new_message_id,
    to_ack_message,
    to_hub_message,
)
from wsc_fast.testing import TEXT, encode, eventually, running

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
# Every field, none of them at its default.
FULL = HubMessage(
    id="m1",
    type="notice",
    from_="bob",
    to="ann",
    content="grüß dich \U0001f600",
    data={"n": [1, 2.5, None, True, {"deep": "x"}]},
    create_at=NOON,
    seq_no=7,
    priority=Priority.HIGH,
    require_ack=True,
)


def on_wire(message: HubMessage) -> dict[str, Any]:
    return dict(json.loads(encode_hub_message(message)))


# --- the form ---


def test_fields_at_their_default_are_left_out_but_for_four() -> None:
    wire = on_wire(HubMessage())
    assert list(wire) == ["id", "type", "content", "create_at"]
    assert wire["type"] == "text"
    assert wire["content"] == ""
    assert wire["id"]


def test_every_field_on_the_wire() -> None:
    assert on_wire(FULL) == {
        "id": "m1",
        "type": "notice",
        "from": "bob",
        "to": "ann",
        "content": "grüß dich \U0001f600",
        "data": {"n": [1, 2.5, None, True, {"deep": "x"}]},
        "create_at": "2026-01-02T12:00:00Z",
        "seq_no": 7,
        "priority": 3,
        "require_ack": True,
    }


@pytest.mark.parametrize(
    "message", [FULL, HubMessage(), HubMessage(data={})], ids=["full", "empty", "empty data"]
)
def test_it_comes_back_as_it_went(message: HubMessage) -> None:
    data = encode_hub_message(message)
    assert decode_hub_message(data) == decode_hub_message(data.decode()) == message


@pytest.mark.parametrize(
    "created",
    [
        NOON.astimezone(timezone(timedelta(hours=5, minutes=45))),
        NOON.astimezone(timezone(timedelta(hours=-11))),
        NOON.astimezone(timezone(timedelta(0), "Z")),
    ],
    ids=["east", "west", "zero"],
)
def test_a_time_of_another_zone_goes_out_in_utc(created: datetime) -> None:
    message = HubMessage(create_at=created)
    assert on_wire(message)["create_at"] == "2026-01-02T12:00:00Z"
    assert message.create_at is created, "the caller's message was changed"


def test_microseconds_are_kept() -> None:
    wire = on_wire(HubMessage(create_at=NOON.replace(microsecond=1)))
    assert wire["create_at"] == "2026-01-02T12:00:00.000001Z"


def test_the_time_is_now_unless_given() -> None:
    before = datetime.now(UTC)
    created = HubMessage().create_at
    assert before <= created <= datetime.now(UTC)
    assert created.tzinfo is UTC


@pytest.mark.parametrize("priority", list(Priority), ids=lambda each: each.name)
def test_a_priority_is_an_int_from_1_to_4(priority: Priority) -> None:
    for given in (priority, int(priority)):
        data = encode_hub_message(HubMessage(priority=given))  # type: ignore[arg-type]
        assert json.loads(data).get("priority", 2) == int(priority)
        assert decode_hub_message(data).priority is priority
    assert [int(each) for each in Priority] == [1, 2, 3, 4]


def test_unknown_fields_are_ignored() -> None:
    wire = {**on_wire(FULL), "shard": 3, "trace": {"id": "x"}}
    assert decode_hub_message(json.dumps(wire)) == FULL
    answer = decode_acknowledgement('{"type":"ack","message_id":"m","timestamp":"x","extra":[1]}')
    assert (answer.message_id, answer.status, answer.error) == ("m", "confirmed", "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ack",
        "[]",
        '{"type":"ack"}',
        '{"message_id":"m"}',
        '{"type":"note","message_id":"m"}',
        '{"type":"ack","message_id":1}',
        '{"type":"ack","message_id":"m","status":"maybe"}',
        '{"type":"ack","message_id":"m"} x',
        '{"type":"ack","message_id":"m","x":' + "[" * 100_000,
        '{"type":"ack","message_id":"\ud800"}',
    ],
    ids=lambda text: ascii(text[:40]),
)
def test_what_is_no_acknowledgement(text: str) -> None:
    with pytest.raises(NO_ACKNOWLEDGEMENT):
        decode_acknowledgement(text)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"id":1}', b'{"priority":5}', b'{"id":"\xff"}', b'{"create_at":"today"}'],
    ids=str,
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValidationError, match="no HubMessage"):
        decode_hub_message(data)


def test_an_ack_message_goes_out_as_a_hub_message() -> None:
    message = ACKMessage(
        id="m", content="x", type="t", from_="bob", data={"n": 1}, priority=Priority.LOW, timeout=1
    )
    sent = to_hub_message(message, "ann")
    assert sent.require_ack
    assert on_wire(sent) == {
        "id": "m",
        "type": "t",
        "from": "bob",
        "to": "ann",
        "content": "x",
        "data": {"n": 1},
        "create_at": on_wire(sent)["create_at"],
        "priority": 1,
        "require_ack": True,
    }
    message.timeout = None  # the wire does not carry it
    assert to_ack_message(decode_hub_message(encode_hub_message(sent))) == message


# --- what is refused ---


class Nowhere(tzinfo):
    """A timezone that does not know its offset: its datetimes are naive by Python's rules."""

    def utcoffset(self, when: datetime | None) -> None:
        return None


def deep(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    inner = data
    for _ in range(levels):
        inner["a"] = inner = {}
    return data


def lists(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def circle() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["self"] = [data]
    return data


REFUSED: list[Any] = [
    ("id", ""),
    ("id", "x" * (MESSAGE_ID_MAX + 1)),
    ("id", 1),
    ("id", None),
    ("id", b"m"),
    ("id", "\ud800"),
    ("type", 1),
    ("type", "\udfff"),
    ("from_", None),
    ("to", ["ann"]),
    ("content", b"bytes"),
    ("content", None),
    ("content", "a\ud800b"),
    ("create_at", datetime(2026, 1, 2)),
    ("create_at", "2026-01-02T12:00:00Z"),
    ("create_at", None),
    ("priority", 0),
    ("priority", 5),
    ("priority", "2"),
    ("priority", None),
    ("data", [1]),
    ("data", "text"),
    ("data", {"n": float("nan")}),
    ("data", {"n": [{"deep": (float("inf"),)}]}),
    ("data", {"n": float("-inf")}),
    ("data", {"n": object()}),
    ("data", {"n": {1: object}}),
    ("data", {(1, 2): "x"}),
    ("data", {None: "x"}),
    ("data", {"n": "\ud800"}),
    ("data", {"\ud800": 1}),
    ("data", circle()),
    ("data", deep(100_000)),
    ("create_at",
            datetime(2026, 1, 2, tzinfo=Nowhere())),
    ("create_at",
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
    ("create_at",
            datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=1)))),
    ("priority", []),
    ("seq_no", "1"),
    ("seq_no", 1.5),
    ("seq_no", 2**70),
    ("require_ack", "yes"),
    ("data", {"n": {float("nan")}}),
    ("data", {"n": frozenset({float("inf")})}),
    ("data", {"n": ACKMessage(timeout=float("nan"))}),
    ("data", lists(100_000)),
    ("content", lists(100_000)),
    ("seq_no", 10**5_000),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    REFUSED,
    ids=lambda value: ascii(value[:9]) if type(value) is str else type(value).__name__,
)
def test_a_field_that_cannot_be_sent(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=r"HubMessage|JSON"):
        encode_hub_message(HubMessage(**{field: value}))


@pytest.mark.parametrize(
    "value",
    [{1, 2}, b"bytes", UUID(int=1), NOON],
    ids=["set", "bytes", "uuid", "datetime"],
)
def test_values_without_a_json_form_go_out_as_msgspec_writes_them(value: Any) -> None:
    # It comes back as something else: a list or a str. Refusing it would be as well.
    assert type(on_wire(HubMessage(data={"n": value}))["data"]["n"]) in (list, str)


def test_the_error_names_the_field_and_what_was_expected_in_a_line() -> None:
    with pytest.raises(ValidationError, match=r"\.id is 'x+\.\.\.x+', expected a str of 1"):
        encode_hub_message(HubMessage(id="x" * 10_000))


@pytest.mark.parametrize(
    "message",
    [None, "text", b"bytes", {"id": "m"}, ACKMessage()],
    ids=lambda message: type(message).__name__,
)
def test_what_is_no_hub_message_at_all(message: Any) -> None:
    with pytest.raises(ValidationError, match="expected a HubMessage"):
        encode_hub_message(message)


@MEASURES
def test_data_that_holds_itself_many_times_costs_no_memory() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from wsc_fast import HubMessage, ValidationError\n"
        "from wsc_fast.messages import encode_hub_message\n"
        "data = {}\n"
        "data.update((str(n), data) for n in range(1000))\n"
        "try: encode_hub_message(HubMessage(data=data))\n"
        "except ValidationError: print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "refused\n", done.stderr[-500:]


# --- refused before anything is sent ---


@pytest.mark.parametrize("method", ["send_to_user", "with_retry", "ack", "ack_to_user"])
async def test_a_refused_message_reaches_nobody_but_the_handlers(method: str) -> None:
    heard: list[tuple[Any, str, SendFailureReason, Exception]] = []

    class Handler:
        def handle_send_failure(self, *call: Any) -> None:
            heard.append(call)  # type: ignore[arg-type]

    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig())
    hub.add_send_failure_handler(Handler())
    async with running(hub):
        raw, _ = await join(hub, "a&user=ann")
        bad: Any = (ACKMessage if "ack" in method else HubMessage)(data={"n": float("nan")})
        if method == "with_retry":
            result = await hub.send_to_user_with_retry("ann", bad)
            assert isinstance(result.final_error, ValidationError)
            assert len(result.attempts) == 1
        else:
            send, to = {
                "send_to_user": (hub.send_to_user, "ann"),
                "ack": (hub.send_ack_message, "a"),
                "ack_to_user": (hub.send_ack_message_to_user, "ann"),
            }[method]
            with pytest.raises(ValidationError, match="nan"):
                send(to, bad)  # type: ignore[operator]
        await eventually(lambda: heard)
        ((message, recipient, reason, error),) = heard
        assert type(message) is HubMessage
        assert (message.id, message.to) == (bad.id, "ann")
        assert repr(message.data) == repr(bad.data)
        assert recipient == ("a" if method == "ack" else "ann")
        assert reason is SendFailureReason.VALIDATION
        assert isinstance(error, ValidationError)
        assert hub.get_stats().deliveries == hub.get_stats().acks_pending == 0
        hub.send_to_user("ann", HubMessage(id="after"))
        frame = await raw.recv()
        assert frame.opcode == TEXT
        assert json.loads(frame.payload)["id"] == "after"
        raw.close()


# --- ids ---


@pytest.mark.fault(number="G12")
def test_message_ids_differ() -> None:
    ids = {HubMessage().id for _ in range(100_000)} | {ACKMessage().id for _ in range(100_000)}
    assert len(ids) == 200_000
    assert {len(each) for each in ids} == {24}
    assert all(each.isascii() for each in ids)


@pytest.mark.fault(number="G12")
def test_message_ids_of_two_processes_differ() -> None:
    script = "from wsc_fast import HubMessage\nfor _ in range(20_000): print(HubMessage().id)"
    lists = [
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    own = [new_message_id() for _ in range(20_000)]
    assert len({*lists[0], *lists[1], *own}) == 60_000


# --- what the handlers get of a frame that was lost ---


def framed(payload: bytes, opcode: int = TEXT) -> bytes:
    return encode(opcode, payload, masked=False)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_the_message_of_a_frame(size: int) -> None:
    assert message_of(framed(b"\xff" * size, 2)) == b"\xff" * size
    assert message_of(framed("é".encode() * (size // 2))) == "é" * (size // 2)
    sent = HubMessage(id="m", content="x" * size, create_at=NOON)
    assert message_of(framed(encode_hub_message(sent))) == sent


def test_a_text_of_the_applications_own_with_an_id_stays_what_it_was() -> None:
    text = '{"id":"5","price":3}'
    assert message_of(framed(text.encode())) == text


def test_a_text_that_is_nested_deeply_can_be_told() -> None:
    text = '{"id":"5","price":' + "[" * TOO_DEEP + "]" * TOO_DEEP + "}"
    assert message_of(framed(text.encode())) == text


def test_messages_in_json_of_ones_own() -> None:
    message = HubMessage(
        from_="ann", to="bob", content="hi", data={"n": [1]}, priority=Priority.HIGH
    )
    wire = json.loads(msgspec.json.encode(message))
    dumped = json.dumps({"kept": [message]}, default=msgspec.to_builtins)
    assert json.loads(dumped) == {"kept": [wire]}
    again = json.dumps(message, default=msgspec.to_builtins)
    assert msgspec.json.decode(again, type=HubMessage) == message
    assert wire["from"] == "ann"
    ack = ACKMessage(content="x")
    assert json.loads(json.dumps(ack, default=msgspec.to_builtins))["id"] == ack.id
