"""Messages to users, as a publisher sends them: the words that hubs are told, and what is stored.

The words are those that hubs send each other (docs/redis-bus.md has them in a table). They are
written here with the standard library alone.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from wsc_fast.bus.base import MOST_ENTRY_BYTES
from wsc_fast.errors import MessageTypeError, ValidationError
from wsc_fast.publish.checks import checked_id

if TYPE_CHECKING:
    from wsc_fast.messages import HubMessage

# Of a message whose text alone is given, as `Priority.NORMAL`.
NORMAL = 2


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to a message to a user, or to the call that disconnects one.

    Attributes:
        hubs: how many hubs were told, each of which has clients of the user. 0: the user is away.
        stored: the message is in the offline store, or was acknowledged already.
        duplicate: it was stored under its id before, and is not stored again now.
    """

    hubs: int
    stored: bool = False
    duplicate: bool = False


class Word:
    """A word for the hubs that have a user.

    Args:
        user: the id of the user.
        entry: the word, a JSON array.
        again: whether it may come twice.

    Attributes:
        result: the `Told`, or the error; None before it is known.
    """

    __slots__ = ("again", "entry", "result", "user")

    retention: ClassVar[None] = None

    def __init__(self, user: str, entry: bytes, again: bool) -> None:
        self.user: str = user
        self.entry: bytes = entry
        self.again: bool = again
        self.result: Told | Exception | None = None

    @property
    def place(self) -> str:
        """The id by which its server is found."""
        return self.user


class Stored:
    """A message with acknowledgement.

    Args:
        user: the id of the user.
        message_id: its own.
        entry: the HubMessage as JSON.

    Attributes:
        result: the `Told`, or the error; None before it is known.
    """

    __slots__ = ("entry", "id", "result", "user")

    def __init__(self, user: str, message_id: str, entry: bytes) -> None:
        self.user: str = user
        self.id: str = message_id
        self.entry: bytes = entry
        self.result: Told | Exception | None = None


def to_user(
    user_id: str, message: HubMessage | str, require_ack: bool, message_id: str | None
) -> Word | Stored:
    """A message to a user, with checked arguments."""
    checked_id("user", user_id)
    if type(require_ack) is not bool:
        raise ValidationError(
            f"require_ack must be True or False, not {type(require_ack).__name__}"
        )
    found, priority, data = _hub_message(user_id, message, require_ack, message_id)
    if require_ack:
        return Stored(user_id, found, _within(data))
    word = b'["message",%b,%d,%b]' % (_json(user_id), priority, data)
    return Word(user_id, _within(word), False)


def disconnect(user_id: str, code: int, reason: str) -> Word:
    """The word that closes the clients of a user, with checked arguments."""
    checked_id("user", user_id)
    if type(code) is not int:
        raise ValidationError(f"a close code must be an int, not {type(code).__name__}")
    if not (3000 <= code <= 4999 or 1000 <= code <= 1003 or 1007 <= code <= 1014):
        raise ValidationError(
            f"close code {code} may not be sent: expected 1000-1003, 1007-1014 or 3000-4999"
        )
    if type(reason) is not str:
        raise ValidationError(f"a close reason must be a str, not {type(reason).__name__}")
    # It is cut to 123 bytes on the wire.
    cut = reason[:123].encode("utf-8", "replace").decode()
    return Word(user_id, _json(["disconnect", user_id, code, cut, "", 0]), True)


def look(user: str, mailbox: str) -> bytes:
    """The word that has hubs look at the offline store."""
    return _json(["look", user, mailbox])


def sent_again(user: str, mailbox: str, message_id: str) -> bytes:
    """The word that has hubs send a stored message anew which has timed out there."""
    return _json(["settled", user, mailbox, message_id, "again", ""])


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two HubMessages as JSON differ in nothing but the time at which they were made."""
    try:
        first, second = json.loads(one), json.loads(other)
        first.pop("create_at", None)
        second.pop("create_at", None)
    except (ValueError, AttributeError, RecursionError):
        return False
    return bool(first == second)


def _hub_message(
    user_id: str, message: Any, require_ack: bool, message_id: str | None
) -> tuple[str, int, bytes]:
    """The id of a message, its priority, and its JSON."""
    made_by = sys.modules.get("wsc_fast.messages")  # imported where there is a HubMessage
    if made_by is not None and isinstance(message, made_by.HubMessage):
        if message_id is not None:
            raise ValidationError("message_id is for a str: a HubMessage has an id of its own")
        if require_ack:
            from msgspec.structs import replace

            message = replace(message, require_ack=True)
        data: bytes = made_by.encode_hub_message(message)
        return checked_id("message", message.id), int(message.priority), data
    if not isinstance(message, str):
        raise MessageTypeError(
            f"a message to a user must be a str or a HubMessage, not {type(message).__name__}"
        )
    from datetime import UTC, datetime  # a publisher is to be imported fast

    if message_id is None:
        message_id = base64.urlsafe_b64encode(os.urandom(18)).decode()
    fields: dict[str, Any] = {
        "id": checked_id("message", message_id),
        "type": "text",
        "to": user_id,
        "content": message,
        "create_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    if require_ack:
        fields["require_ack"] = True
    try:
        return message_id, NORMAL, _json(fields)
    except UnicodeEncodeError:
        raise ValidationError(
            f"a text message must not hold a lone surrogate: {message[:100]!a}"
        ) from None


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _within(entry: bytes) -> bytes:
    if len(entry) > MOST_ENTRY_BYTES:
        raise ValidationError(
            f"a message takes at most {MOST_ENTRY_BYTES} bytes on a bus, not {len(entry)}"
        )
    return entry
