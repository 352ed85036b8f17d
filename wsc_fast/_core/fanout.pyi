import asyncio

class Fanout:
    _batch_least: int
    _batch_share: int

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def longest_flush(self) -> float: ...
    @property
    def _batch_frames(self) -> list[bytes] | None: ...
