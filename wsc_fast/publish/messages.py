"""The messages of a publisher: their arguments are checked here, and they wait in a Batch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsc_fast.bus.base import (
    EVERYBODY,
    MOST_ENTRY_BYTES,
    MOST_KEY_BYTES,
    HistoryEntry,
    Published,
    Retention,
)
from wsc_fast.errors import MessageTypeError, ValidationError, shown
from wsc_fast.publish.checks import checked_id
from wsc_fast.publish.users import Stored, Told, Word, disconnect, to_user

if TYPE_CHECKING:
    from wsc_fast.messages import HubMessage

# How the JSON of a HubMessage begins.
_HUB_MESSAGE = b'{"id":'


class Message:
    """One message.

    Attributes:
        room: its id; EVERYBODY for a broadcast.
        entry: as the bus has it, see bus/base.py.
        key: the idempotency key, or None.
        retention: of a kept room; None: the room is plain.
        result: the `Published`, or the error; None before it is known.
    """

    __slots__ = ("entry", "key", "result", "retention", "room")

    def __init__(self, room: str, entry: bytes, key: str | None) -> None:
        self.room: str = room
        self.entry: bytes = entry
        self.key: str | None = key
        self.retention: Retention | None = None
        self.result: Published | Exception | None = None

    @property
    def place(self) -> str:
        """The id by which its server is found."""
        return self.room


# All that a publisher sends, and the answers.
Sending = Message | Word | Stored
Result = Published | Told


class Batch:
    """Messages that are published together: those of one room in the order of the calls.

    So are messages without acknowledgement to one user, and apart from them those with
    acknowledgement.

    Made by `Publisher.batch` and `AsyncPublisher.batch`, and published at the end of the `with`.

    Attributes:
        results: of each call its `Published` or `Told`, or the error that it had; in the order of
            the calls. Empty before the end of the `with`.

    Thread-safety: none.
    """

    def __init__(self) -> None:
        self.results: list[Published | Told | Exception] = []
        self._messages: list[Sending] = []

    def room(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Adds a message to a room; the arguments are those of `Publisher.room`.

        Raises:
            ValidationError: an argument cannot be used. The batch is as it was.
        """
        self._messages.append(to_room(room_id, message, exclude, key, idempotency_key))

    def broadcast(
        self,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        """Adds a message to all clients; the arguments are those of `Publisher.broadcast`.

        Raises:
            ValidationError: an argument cannot be used. The batch is as it was.
        """
        self._messages.append(to_all(message, exclude, key, idempotency_key))

    def user(
        self,
        user_id: str,
        message: HubMessage | str,
        *,
        require_ack: bool = False,
        message_id: str | None = None,
    ) -> None:
        """Adds a message to a user; the arguments are those of `Publisher.user`.

        Raises:
            ValidationError: an argument cannot be used. The batch is as it was.
        """
        self._messages.append(to_user(user_id, message, require_ack, message_id))

    def disconnect(self, user_id: str, code: int = 1000, reason: str = "") -> None:
        """Adds a call of `Publisher.disconnect`; the arguments are the same.

        Raises:
            ValidationError: an argument cannot be used. The batch is as it was.
        """
        self._messages.append(disconnect(user_id, code, reason))


def messages_of(batch: Batch) -> list[Sending]:
    """The messages of a batch."""
    return batch._messages


def result_of(message: Sending) -> Result | Exception:
    """The result of a message that was sent."""
    assert message.result is not None
    return message.result


def to_room(
    room_id: str,
    message: HubMessage | str | bytes,
    exclude: Iterable[str],
    key: str | None,
    idempotency_key: str | None,
) -> Message:
    """A message to a room, with checked arguments."""
    return Message(
        checked_id("room", room_id), _entry(message, exclude, key), _idempotency(idempotency_key)
    )


def to_all(
    message: HubMessage | str | bytes,
    exclude: Iterable[str],
    key: str | None,
    idempotency_key: str | None,
) -> Message:
    """A message to all clients, with checked arguments."""
    return Message(EVERYBODY, _entry(message, exclude, key), _idempotency(idempotency_key))


def _idempotency(key: object) -> str | None:
    if key is None:
        return None
    if type(key) is not str or not 0 < len(key.encode("utf-8", "replace")) <= MOST_KEY_BYTES:
        raise ValidationError(
            f"idempotency_key must be a str of 1 to {MOST_KEY_BYTES} bytes in UTF-8, not "
            f"{shown(key)}"
        )
    return checked_id("message", key)


def _entry(message: object, exclude: object, key: object) -> bytes:
    """FLAGS to payload, as a hub packs them."""
    flag, payload = _payload(message)
    left_out = "\n".join(_excluded(exclude)).encode("utf-8", "surrogatepass")
    named = b"" if key is None else _encoded("a conflation key", key)
    head = b"%b %d %d %d\n" % (flag, len(left_out), len(named), len(payload))
    entry = b"".join((head, left_out, named, payload))
    if len(entry) > MOST_ENTRY_BYTES:
        raise ValidationError(
            f"a message and its arguments may have {MOST_ENTRY_BYTES} bytes on a bus, not "
            f"{len(entry)}"
        )
    return entry


def _payload(message: object) -> tuple[bytes, bytes]:
    if isinstance(message, str):
        return b"t", _encoded("a text message", message)
    if isinstance(message, (bytes, bytearray, memoryview)):
        return b"b", bytes(message)
    made_by = sys.modules.get("wsc_fast.messages")  # imported where there is a HubMessage
    if made_by is not None and isinstance(message, made_by.HubMessage):
        return b"t", made_by.encode_hub_message(message)
    raise MessageTypeError(
        f"a message must be a str, bytes or a HubMessage, not {type(message).__name__}"
    )


def _encoded(what: str, text: object) -> bytes:
    if type(text) is not str:
        raise ValidationError(f"{what} must be a str, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{what} must not hold a lone surrogate: {shown(text)}") from None


def _excluded(exclude: Any) -> list[str]:
    if isinstance(exclude, (str, bytes)):
        raise ValidationError(
            f"exclude must be an iterable of client ids, not a single {type(exclude).__name__}"
        )
    return [checked_id("client", each) for each in exclude]


def history_entry(position: bytes, entry: bytes) -> HistoryEntry:
    """A message out of a history.

    Raises:
        ValidationError: these bytes are no entry: somebody else writes to the bus.
    """
    try:
        head, _, rest = entry.partition(b"\n")
        flag, *sizes = head.split(b" ")
        left_out, named, length = map(int, sizes)
        payload = rest[left_out + named :]
        if flag not in (b"t", b"b") or len(payload) != length:
            raise ValueError
        if flag == b"b":
            return HistoryEntry(position.decode(), payload)
        return HistoryEntry(position.decode(), _hub_message(payload) or payload.decode())
    except ValueError:
        raise ValidationError("the history holds bytes that no hub has written") from None


def _hub_message(payload: bytes) -> HubMessage | None:
    """The HubMessage in a text that the hub has written for one; None where it is none."""
    if not payload.startswith(_HUB_MESSAGE):
        return None
    try:
        from wsc_fast.messages import decode_hub_message, encode_hub_message

        message = decode_hub_message(payload)
        return message if encode_hub_message(message) == payload else None
    except (ImportError, ValidationError):
        return None
