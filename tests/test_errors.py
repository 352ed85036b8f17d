"""The exception tree is the one that the module's documentation draws, and the contract's names."""

from __future__ import annotations

import inspect
import re

import pytest

import wsc_fast
from wsc_fast import ConnectionLostError, ProtocolError, SendFailureReason, WSCError, errors

ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, WSCError)
}


def documented_tree() -> dict[str, tuple[str, str | None]]:
    """Name -> (its parent, the built-in exception beside it), read from the docstring."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str, str | None]] = {}
    path = ["WSCError"]
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ((?:│   |    )*)[├└]── (\w+)(?: \((\w+)\))?", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + 1
        del path[depth:]
        tree[match[2]] = (path[-1], match[3])
        path.append(match[2])
    return tree


def test_the_tree_names_every_error() -> None:
    assert set(documented_tree()) | {"WSCError"} == set(ERRORS)


@pytest.mark.parametrize(("name", "place"), documented_tree().items())
def test_the_tree_is_true(name: str, place: tuple[str, str | None]) -> None:
    parent, builtin = place
    assert ERRORS[name].__bases__[0] is ERRORS[parent]
    if builtin is not None:
        assert builtin in {base.__name__ for base in ERRORS[name].__mro__}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_public_and_documented(name: str) -> None:
    assert getattr(wsc_fast, name) is ERRORS[name]
    assert name in wsc_fast.__all__
    assert ERRORS[name].__doc__


def test_a_protocol_error_carries_its_code() -> None:
    error = ProtocolError(1009, "message too big")
    assert error.code == 1009
    assert str(error) == "message too big"


def test_a_lost_connection_carries_its_code() -> None:
    error = ConnectionLostError(1006, "gone")
    assert (error.code, str(error)) == (1006, "gone")


def test_the_reasons_of_a_failed_send() -> None:
    assert [reason.value for reason in SendFailureReason] == [
        "queue_full",
        "broadcast_full",
        "pending_full",
        "user_offline",
        "timeout",
        "send_timeout",
        "ack_timeout",
        "conn_closed",
        "conn_error",
        "channel_closed",
        "unknown",
        "validation",
        "permission",
    ]
    assert SendFailureReason.QUEUE_FULL == "queue_full"
