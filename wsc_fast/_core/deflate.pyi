from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Codec:
    """The contexts and the scratch memory that all connections of a hub share (internal).

    Args:
        level: zlib's, 1 (fastest) to 9.
        threshold: payloads shorter than this many bytes go out as they are.

    Raises:
        RuntimeError: there is no zlib.
    """
    def __new__(cls, level: int, threshold: int) -> Self: ...
    @property
    def level(self) -> int: ...
    @property
    def threshold(self) -> int: ...

@disjoint_base
class Context:
    """The state that one connection keeps from message to message with context takeover (internal).

    Args:
        codec: of the hub.
        server_window: window bits of outgoing messages, 9 to 15; 0: no context is kept for them.
        client_window: likewise of incoming messages.
    """
    def __new__(cls, codec: Codec, server_window: int, client_window: int) -> Self: ...

def zlib_version() -> str | None:
    """The version of the zlib that the process found (internal).

    Returns:
        str | None: None where there is none, and so no compression.

    Thread-safety: any thread.
    """
