"""The messages on the wire: heads of wsc.1, JSON, HubMessages, answers; see docs/wire.md."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

Payload: TypeAlias = str | bytes

# A text that is no JSON. None is a value of JSON.
NO_JSON = object()

_HUB_FIELDS = ("id", "type", "content", "create_at")


def encoded(data: Any) -> Payload:
    """The payload of a value: str and bytes as they are, anything else as JSON (M5).

    Raises:
        TypeError, ValueError: it cannot be JSON, or is a str with a lone surrogate.
    """
    if isinstance(data, str):
        data.encode()  # a lone surrogate is found here, where the caller hears of it
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    return dumped(data)


def dumped(value: Any) -> str:
    """A value as JSON.

    Raises:
        TypeError, ValueError: it cannot be.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
        return text
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("this is nested too deeply to be JSON") from None


def parsed(text: str) -> Any:
    """The value of a text in JSON, or NO_JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return NO_JSON


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def with_empty_head(payload: Payload) -> Payload:
    """A message of wsc.1 without a position (Q5)."""
    return "\n" + payload if isinstance(payload, str) else b"\n" + payload


def parted(data: Payload) -> tuple[dict[str, Any], Payload] | None:
    """The head of a message of wsc.1 and its payload; None where there is no sound head (P9)."""
    if isinstance(data, str):
        end, line = data.find("\n"), data
    else:
        end = data.find(b"\n")
        line = data[: max(end, 0)].decode("utf-8", "replace")
    if end < 0:
        return None
    text = line[:end] if isinstance(data, str) else line
    head = parsed(text) if text else {}
    if not isinstance(head, dict):
        return None
    for name in ("room", "pos", "gap"):
        if not isinstance(head.get(name, ""), str):
            return None
    return head, data[end + 1 :]


def is_answer(value: Any) -> bool:
    """Whether this is the answer to a request."""
    return (
        isinstance(value, dict)
        and value.get("type") == "answer"
        and isinstance(value.get("id"), str)
    )


def is_hub_message(value: Any) -> bool:
    """Whether this is a HubMessage (M4)."""
    return isinstance(value, dict) and all(isinstance(value.get(each), str) for each in _HUB_FIELDS)


def size_of(payload: Payload) -> int:
    """In bytes of the wire."""
    return len(payload.encode()) if isinstance(payload, str) else len(payload)
