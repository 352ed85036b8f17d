"""Messages that a test expects: whether one matches, and how both are shown in an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from wsc_fast import ACKMessage, HubMessage

Message = str | bytes
# A text, bytes, JSON, a HubMessage or ACKMessage, a pattern, a type of these, a predicate; None for
# any message.
Expected = (
    str
    | bytes
    | dict[str, Any]
    | list[Any]
    | HubMessage
    | ACKMessage
    | re.Pattern[str]
    | type
    | Callable[[Message], object]
    | None
)

_LONGEST = 200


def payload_of(message: object) -> Message:
    """A message as it is sent: JSON for a dict, a list, a HubMessage or an ACKMessage.

    Args:
        message: to be sent.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(message, (str, bytes)):
        return message
    if isinstance(message, (bytearray, memoryview)):
        return bytes(message)
    if isinstance(message, (HubMessage, ACKMessage)):
        return json.dumps(fields_of(message))
    if isinstance(message, (dict, list)):
        return json.dumps(message)
    raise TypeError(
        "a message is str, bytes, a dict, a list, a HubMessage or an ACKMessage, not "
        f"{type(message).__name__}"
    )


def fields_of(message: HubMessage | ACKMessage) -> dict[str, Any]:
    """The JSON object as which one goes out (docs/wire.md); of an ACKMessage without `to`."""
    if isinstance(message, ACKMessage):
        same = {name: getattr(message, name) for name in message.__struct_fields__}
        del same["timeout"]
        message = HubMessage(**same, require_ack=True)
    fields: dict[str, Any] = json.loads(msgspec.json.encode(message))
    return fields


def json_of(message: Message) -> Any:
    """The JSON in a text message.

    Raises:
        ValueError: it is none, or the message is binary.
    """
    if not isinstance(message, str):
        raise ValueError("a binary message")
    return json.loads(message)


def is_json(expected: Expected) -> bool:
    """Whether it can match no other message than JSON."""
    kinds = (dict, list, HubMessage, ACKMessage)
    return isinstance(expected, kinds) or any(expected is kind for kind in kinds)


def matches(message: Message, expected: Expected) -> bool:
    """Whether a message is as a test expects it.

    Args:
        message: that came, or was sent.
        expected: str and bytes are compared; a dict or list with the JSON of a text message; a
            HubMessage or an ACKMessage with that of its JSON, but for `id` and `create_at`, and
            `to` of an ACKMessage; a pattern is searched in a text; `str`, `bytes`, `dict`, `list`
            and `HubMessage` stand for any of that kind; a function is called with the message; None
            takes any.
    """
    if expected is None:
        return True
    if isinstance(expected, (str, bytes)):
        return type(message) is type(expected) and message == expected
    if isinstance(expected, re.Pattern):
        return isinstance(message, str) and expected.search(message) is not None
    if expected in (str, bytes):
        return type(message) is expected
    if isinstance(expected, (type, dict, list, HubMessage, ACKMessage)):
        return _json_matches(message, expected)
    return bool(expected(message))


def _json_matches(message: Message, expected: Any) -> bool:
    try:
        found = json_of(message)
    except ValueError:
        return False
    if expected is HubMessage:
        return isinstance(found, dict) and {"id", "type", "content", "create_at"} <= found.keys()
    if isinstance(expected, type):
        return isinstance(found, expected)
    if isinstance(expected, (HubMessage, ACKMessage)):
        own = ("id", "create_at", *(["to"] if isinstance(expected, ACKMessage) else []))
        return isinstance(found, dict) and _without(own, found) == _without(
            own, fields_of(expected)
        )
    return bool(found == expected)


def _without(names: Collection[str], fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def shown(value: object) -> str:
    """A message, or what is expected, as an error shows it: at most 200 characters."""
    if isinstance(value, re.Pattern):
        text = f"a text with /{value.pattern}/"
    elif isinstance(value, type):
        text = f"any {value.__name__}"
    elif value is None:
        text = "any message"
    elif callable(value):
        text = f"a message that {getattr(value, '__name__', value)!s} takes"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def listed(messages: Iterable[Message], most: int = 10) -> str:
    """Messages as an error lists them, the newest last.

    Args:
        messages: to be listed.
        most: how many at most; of more, the newest.
    """
    every = list(messages)
    if not every:
        return "nothing came"
    left_out = [f"  ... {len(every) - most} earlier ones"] if len(every) > most else []
    return "\n".join([*left_out, *(f"  {shown(each)}" for each in every[-most:])])
