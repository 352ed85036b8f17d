from typing import Self, final

from wsc_fast._core.fanout import Fanout

def check_id(kind: str, value: object) -> str:
    """Checks the id of a client, a user or a room.

    Args:
        kind: what it is the id of, for the error's text.
        value: a non-empty str of at most 256 characters without control characters and line ends.

    Returns:
        str: the value.

    Raises:
        ValidationError: it is not that.

    Thread-safety: any thread.
    """

@final
class ClientRegistry:
    """The open clients of one hub, and those that close (internal)."""
    def __new__(cls, fanout: Fanout) -> Self: ...
