import asyncio

from typing_extensions import disjoint_base

@disjoint_base
class Fanout:
    """Base of Hub: the dirty list of one event loop and the flush (internal)."""

    _batch_least: int
    _batch_share: int

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def longest_flush(self) -> float: ...
    @property
    def _batch_frames(self) -> list[bytes] | None: ...
