from typing import Self, final

from typing_extensions import disjoint_base

from wsc_fast._core.loop_context import LoopContext

@disjoint_base
class FanoutNeeds:
    """The calls that a Fanout makes to its holder (internal)."""

@final
class Fanout:
    """The dirty list of one event loop and the flush (internal)."""

    batch_least: int
    batch_share: int

    def __new__(cls, needs: FanoutNeeds, loop_context: LoopContext) -> Self: ...
    @property
    def longest_flush(self) -> float: ...
    @property
    def batch_frames(self) -> list[bytes] | None: ...
    def flush(self) -> None:
        """Sends to each client what it waits for; the loop calls it at the end of its turn.

        Thread-safety: the loop's thread.
        """
