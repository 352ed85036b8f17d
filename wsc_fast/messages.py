"""HubMessage and ACKMessage, and their form on the wire: JSON text messages (docs/wire.md)."""

from __future__ import annotations

import math
import weakref
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from os import register_at_fork, urandom
from typing import Any, Literal

import msgspec

from wsc_fast._core.messages import HubMessageEncoder, MessageForms
from wsc_fast.errors import ValidationError, shown

# The longest id of a message, in characters.
MESSAGE_ID_MAX = 256

_BINARY, _RSV1 = 2, 0x40


class Priority(IntEnum):
    """The rank of a message under back-pressure: a high one goes ahead, and is dropped last.

    Order holds within a priority. Source: go-wsc `Priority`.
    """

    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4


_factories: weakref.WeakSet[IdFactory] = weakref.WeakSet()


def _after_fork() -> None:
    for each in _factories:
        each.forked()


register_at_fork(after_in_child=_after_fork)


class IdFactory:
    """Makes ids from random bits; asks the kernel for many at a time.

    Args:
        nbytes: of randomness in each, a multiple of 3; an id has 4 characters for 3 of them.

    Thread-safety: any thread.
    """

    _BATCH = 256

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._pool: list[str] = []
        _factories.add(self)

    def forked(self) -> None:
        """This is the child of a fork: the ids that wait are the parent's."""
        self._pool = []

    def __call__(self) -> str:
        try:
            return self._pool.pop()
        except IndexError:
            text = urlsafe_b64encode(urandom(self._nbytes * self._BATCH)).decode()
            size = len(text) // self._BATCH
            pool = [text[i : i + size] for i in range(0, len(text), size)]
            new = pool.pop()
            self._pool = pool
            return new


# 144 random bits: unique across restarts and hubs.
new_message_id: IdFactory = IdFactory(18)


def _text() -> str:
    return "text"


def _empty() -> str:
    return ""


def _now() -> datetime:
    return datetime.now(UTC)


class HubMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message of the hub's own form, sent as a JSON text message (go-wsc `HubMessage`).

    Attributes:
        id: 1 to 256 characters; unique unless it is sent again. Made when not given.
        type: free text, such as "text" or "notice".
        from_: who sent it; "from" on the wire.
        to: whom it is for; the hub does not read it.
        content: the text.
        data: whatever else, of what JSON can carry.
        create_at: an aware datetime; UTC on the wire. Now when not given.
        seq_no: the application's numbering; 0 for none.
        priority: see Priority.
        require_ack: the client is asked to acknowledge it; set by `Hub.send_ack_message`.

    Checked when it is sent: a field that cannot be sent ends in a ValidationError there.
    """

    # Factories, so that these stand on the wire even at their default.
    id: str = msgspec.field(default_factory=new_message_id)
    type: str = msgspec.field(default_factory=_text)
    from_: str = msgspec.field(default="", name="from")
    to: str = ""
    content: str = msgspec.field(default_factory=_empty)
    data: dict[str, Any] | None = None
    create_at: datetime = msgspec.field(default_factory=_now)
    seq_no: int = 0
    priority: Priority = Priority.NORMAL
    require_ack: bool = False


class ACKMessage(msgspec.Struct, kw_only=True):
    """A message that its receiver has to acknowledge (go-wsc `ACKMessage`).

    Attributes:
        id: as of a HubMessage; each retransmission carries the same.
        content: the text.
        timeout: seconds until it counts as not acknowledged; None for ACKConfig.timeout.
        type, from_, data, priority: as of the HubMessage that it goes out as.
        create_at: aware, UTC on the wire.
    """

    id: str = msgspec.field(default_factory=new_message_id)
    content: str = ""
    timeout: float | None = None
    type: str = "text"
    from_: str = msgspec.field(default="", name="from")
    data: dict[str, Any] | None = None
    priority: Priority = Priority.NORMAL
    create_at: datetime = msgspec.field(default_factory=_now)


class AckStatus(StrEnum):
    """The state of a message with acknowledgement."""

    PENDING = "pending"
    STORED = "stored"  # its user is away, and it is in the offline store
    CONFIRMED = "confirmed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    DROPPED = "dropped"


class Acknowledgement(msgspec.Struct):
    """A client's answer to a message that requires one; other JSON does not decode to this."""

    type: Literal["ack"]
    message_id: str
    status: Literal["confirmed", "failed"] = "confirmed"
    error: str = ""


_json = msgspec.json.Encoder()
_decode = msgspec.json.Decoder(HubMessage).decode
_acknowledgements = msgspec.json.Decoder(Acknowledgement)
# A client's acknowledgement; what else a client may have sent raises one of these.
decode_acknowledgement: Callable[[bytes | str], Acknowledgement] = _acknowledgements.decode
NO_ACKNOWLEDGEMENT = (msgspec.DecodeError, UnicodeError, RecursionError)
# How the JSON of a HubMessage begins, and how that of one which requires an acknowledgement ends.
_BEGINNING = b'{"id":'
_REQUIRES_ACK = b',"require_ack":true}'
_PRIORITIES = frozenset(Priority)
_PLAIN = frozenset({str, int, bool, type(None), bytes, datetime})
# Items of HubMessage.data, of all depths.
DATA_ITEMS_MAX = 1_000_000
# Dicts and lists within each other in HubMessage.data, itself included: every decoder of JSON takes
# as many, also one that is called from deep within a program.
DATA_DEPTH_MAX = 100


def _mended(message: HubMessage) -> HubMessage:
    # Mends fields that are right though unusual, such as a plain int for a Priority; others are an
    # error.
    if not isinstance(message, HubMessage):
        raise ValidationError(f"expected a HubMessage, not {type(message).__name__}")
    created, priority = message.create_at, message.priority
    if not isinstance(message.id, str) or not 0 < len(message.id) <= MESSAGE_ID_MAX:
        raise _wrong("id", message.id, f"a str of 1 to {MESSAGE_ID_MAX} characters")
    if not isinstance(created, datetime) or created.utcoffset() is None:
        raise _wrong("create_at", created, "a datetime with a timezone")
    if not isinstance(priority, int) or priority not in _PRIORITIES:
        raise _wrong("priority", priority, "1 (low) to 4 (critical)")
    if type(message.seq_no) is not int or not -(1 << 63) <= message.seq_no < 1 << 63:
        raise _wrong("seq_no", message.seq_no, "an int of 64 bits")
    if type(message.require_ack) is not bool:
        raise _wrong("require_ack", message.require_ack, "True or False")
    for name in ("type", "from_", "to", "content"):
        if not isinstance(getattr(message, name), str):
            raise _wrong(name, getattr(message, name), "a str")
    try:
        created = created.astimezone(UTC)
    except OverflowError:
        raise _wrong("create_at", created, "a datetime within the years 1 to 9999, UTC") from None
    return msgspec.structs.replace(message, create_at=created, priority=Priority(priority))


def _check_data(data: object) -> None:
    if not isinstance(data, dict):
        raise _wrong("data", data, "a dict or None")
    # JSON has no NaN and no infinity, and msgspec would write null for them. Level by level, as the
    # depth has a bound.
    level: list[Any] = [data]
    seen = 1
    for _ in range(DATA_DEPTH_MAX + 1):
        below: list[Any] = []
        for value in level:
            below += _items(value)
            if seen + len(below) > DATA_ITEMS_MAX:
                raise ValidationError(
                    f"HubMessage.data holds more than {DATA_ITEMS_MAX} items, or itself"
                )
        if not below:
            return
        seen += len(below)
        level = below
    raise ValidationError(
        f"HubMessage.data holds dicts or lists within each other more than {DATA_DEPTH_MAX} deep, "
        "or itself"
    )


def _items(value: Any) -> Collection[Any]:
    """The values directly within a value of `data`; ValidationError if JSON cannot carry it."""
    kind = type(value)
    if kind is float:
        if not -math.inf < value < math.inf:
            raise ValidationError(f"HubMessage.data holds {value!r}, which JSON cannot carry")
        return ()
    if kind in _PLAIN:
        return ()
    if kind is dict:
        _check_keys(value)
        below: Collection[Any] = value.values()
        return below
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    # msgspec writes these as something else: structs, dataclasses, other mappings.
    plain = _as_json_would_be(value)
    return () if type(plain) is kind else (plain,)


def _check_keys(value: dict[Any, Any]) -> None:
    # Keys that are no str become texts, of which two may be the same: {1: "a", "1": "b"}.
    if {str}.issuperset(map(type, value)):
        return
    try:
        texts = {_json.encode({key: None}) for key in value}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValidationError(f"HubMessage.data holds what JSON cannot carry: {error}") from error
    if len(texts) < len(value):
        raise ValidationError("HubMessage.data holds two keys that are the same text in JSON")


def _as_json_would_be(value: object) -> Any:
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValidationError(f"HubMessage.data holds what JSON cannot carry: {error}") from error


def _wrong(name: str, value: object, expected: str) -> ValidationError:
    return ValidationError(f"HubMessage.{name} is {shown(value)}, expected {expected}")


encoder: HubMessageEncoder = HubMessageEncoder(
    HubMessage, Priority, datetime, UTC, MESSAGE_ID_MAX, _json.encode_into, _mended, _check_data
)
encode_hub_message: Callable[[object], bytes] = encoder.encode


def decode_hub_message(data: bytes | str) -> HubMessage:
    """A HubMessage from the wire.

    Args:
        data: JSON.

    Returns:
        HubMessage.

    Raises:
        ValidationError: it is none.

    Thread-safety: any thread.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError, TypeError, RecursionError) as error:
        raise ValidationError(f"this is no HubMessage: {error}") from error


def to_hub_message(message: ACKMessage, recipient: str) -> HubMessage:
    """The HubMessage that an ACKMessage goes out as."""
    return HubMessage(
        id=message.id,
        type=message.type,
        from_=message.from_,
        to=recipient,
        content=message.content,
        data=message.data,
        create_at=message.create_at,
        priority=message.priority,
        require_ack=True,
    )


def to_ack_message(message: HubMessage) -> ACKMessage:
    """The ACKMessage that a stored HubMessage was sent as."""
    return ACKMessage(
        id=message.id,
        content=message.content,
        type=message.type,
        from_=message.from_,
        data=message.data,
        priority=message.priority,
        create_at=message.create_at,
    )


def is_same_message(one: bytes, other: bytes) -> bool:
    """Whether two messages differ in nothing but the time at which they were made.

    So an application that sends a message again after a crash need not know when it was made.

    Args:
        one, other: JSON, as the hub encodes a HubMessage.
    """
    if one == other:
        return True
    try:
        first, second = _decode(one), _decode(other)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    second.create_at = first.create_at
    return first == second


def message_of(frame: bytes) -> HubMessage | str | bytes:
    """The message that one of our own frames carries, for those who hear of its loss.

    Args:
        frame: as encoded by the hub; a compressed one without context takeover.

    Returns:
        HubMessage | str | bytes: a text that the hub would have written itself for a HubMessage is
        given as one.
    """
    payload = payload_of(frame)
    if frame[0] & 15 == _BINARY:
        return payload
    if payload.startswith(_BEGINNING):
        try:
            message = _decode(payload)
            if _json.encode(message) == payload:  # nothing of the application's own is left out
                return message
        except Exception:
            pass  # a text of the application's own that no decoder takes
    return payload.decode()


def requires_ack(frame: bytes) -> bool:
    """Whether one of our own frames carries a HubMessage that requires an acknowledgement.

    Args:
        frame: as for `message_of`.

    Returns:
        bool: by how the message begins and ends, since it is asked about whole outboxes.
    """
    if frame[0] & 15 == _BINARY:
        return False
    if not frame[0] & _RSV1:
        return frame.endswith(_REQUIRES_ACK) and frame.startswith(_BEGINNING, _start(frame))
    payload = payload_of(frame)
    return payload.endswith(_REQUIRES_ACK) and payload.startswith(_BEGINNING)


def _start(frame: bytes) -> int:
    return {126: 4, 127: 10}.get(frame[1], 2)


def payload_of(frame: bytes) -> bytes:
    """The payload of one of our own frames; a compressed one without context takeover."""
    payload = frame[_start(frame) :]
    if frame[0] & _RSV1:
        return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
    return payload


# For the compiled modules, none of which imports this one.
message_forms: MessageForms = MessageForms(
    encoder,
    ACKMessage,
    AckStatus,
    decode_acknowledgement=decode_acknowledgement,
    decode_hub_message=decode_hub_message,
    is_same_message=is_same_message,
    to_ack_message=to_ack_message,
    to_hub_message=to_hub_message,
    no_acknowledgement=NO_ACKNOWLEDGEMENT,
)
