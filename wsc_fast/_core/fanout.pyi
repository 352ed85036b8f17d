import asyncio

class Fanout:
    batch_least: int
    batch_share: int

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def longest_flush(self) -> float: ...
    @property
    def batch_frames(self) -> list[bytes] | None: ...
