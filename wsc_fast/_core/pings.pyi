from typing_extensions import disjoint_base

from wsc_fast._core.closing import ClosableConnection

def acknowledged(descriptor: int) -> int:
    """The bytes that a connection's peer has acknowledged in all (internal).

    Args:
        descriptor: of its socket.

    Returns:
        int: 0 where the kernel does not tell.

    Thread-safety: any thread.
    """

@disjoint_base
class PingedConnection(ClosableConnection):
    """A connection that pings, and answers pings (internal; `Client` is the public class)."""
