"""The signatures of callbacks: for type checkers, and as they are checked when one is set.

A callback may return anything; an awaitable is awaited. So the types here say which arguments it
has to take, and nothing of what it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from wsc_fast._core.connection import Client
from wsc_fast.errors import ValidationError

if TYPE_CHECKING:
    from wsc_fast.bus.base import NodeInfo

F = TypeVar("F", bound=Callable[..., Any])
# Kinds of callbacks by their arguments. A decorator returns the very function that it is given, so
# each is a type variable.
OfHub = TypeVar("OfHub", bound=Callable[[], object])
OfClient = TypeVar("OfClient", bound=Callable[[Client], object])
OfMessage = TypeVar("OfMessage", bound=Callable[[Client, str | bytes], object])
OfMessages = TypeVar("OfMessages", bound=Callable[[Client, list[str | bytes]], object])
OfRequest = TypeVar("OfRequest", bound=Callable[[Client, Any], object])
OfJoinRequest = TypeVar("OfJoinRequest", bound=Callable[[Client, str], bool | Awaitable[bool]])
OfError = TypeVar("OfError", bound=Callable[[Client | None, BaseException], object])
OfRoom = TypeVar("OfRoom", bound=Callable[[Client, str], object])
OfPresence = TypeVar("OfPresence", bound=Callable[[str, set[str], set[str]], object])
OfUsers = TypeVar("OfUsers", bound=Callable[[set[str], set[str]], object])
OfNode = TypeVar("OfNode", bound=Callable[["NodeInfo", bool], object])


def checked_callback(fn: F, *arguments: str) -> F:
    """A callback that can be called.

    Args:
        fn: of the application.
        arguments: what it is called with, by position.

    Returns:
        fn.

    Raises:
        ValidationError: it cannot be called, or not with these.
    """
    if not callable(fn):
        raise ValidationError(f"a callback must be callable, not {type(fn).__name__}")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return fn  # some functions of C do not tell theirs
    try:
        signature.bind(*arguments)
    except TypeError as error:
        name = getattr(fn, "__qualname__", type(fn).__name__)
        raise ValidationError(
            f"{name}{signature} cannot be called with ({', '.join(arguments)}): {error}"
        ) from None
    return fn
