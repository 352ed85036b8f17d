import asyncio

class Fanout:
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
    @property
    def longest_flush(self) -> float: ...
