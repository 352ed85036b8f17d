from typing import Self, final

from wsc_fast._core.loop_context import LoopContext

@final
class ReadTurns:
    """The turns of connections that send much (internal)."""
    def __new__(cls, loop_context: LoopContext) -> Self: ...
    def run(self) -> None:
        """Once in a turn of the loop, before it reads: the next few may.

        Thread-safety: the loop's thread.
        """
