import asyncio
from typing import final

@final
class LoopContext:
    """The loop that a hub runs on, and the context of what the hub does by itself (internal)."""
    @property
    def loop(self) -> asyncio.AbstractEventLoop | None: ...
