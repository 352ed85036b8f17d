import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar, overload

from typing_extensions import disjoint_base

_T = TypeVar("_T")

TICK: float
LATE: float
TURNS: int
MOST_ENDS: int

@disjoint_base
class Timers(Generic[_T]):
    """Calls `fire(item)` when the time of an item has come.

    Args:
        fire: called in a context of its own (contextvars); without it items are callables, which
            are called. Exceptions go to the loop's exception handler, and the other items fire
            all the same.
        budget: seconds of a turn of the loop that firing may take; one item may exceed it.
        most: items of a turn, for items that cause the loop more work than `fire` itself.

    Thread-safety: the loop's thread.
    """
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def slots(self) -> dict[int, dict[_T, None]]: ...
    @overload
    def __init__(
        self: Timers[Callable[[], object]], *, budget: float = ..., most: int = ...
    ) -> None: ...
    @overload
    def __init__(
        self, fire: Callable[[_T], None], budget: float = ..., most: int = ...
    ) -> None: ...
    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Begins anew, without an item, on a loop or on none; a former loop is left alone."""
    def set(self, item: _T, when: float) -> int:
        """Has an item fire at a time of the loop's clock; returns what takes it back.

        An item that is set twice fires twice, but for one slot.
        """
    def cancel(self, item: _T, slot: int) -> int:
        """Takes an item back; what `set` returned for it tells where it is."""
    def clear(self) -> None:
        """Takes everything back."""
