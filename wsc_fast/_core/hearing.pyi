from typing_extensions import disjoint_base

from wsc_fast._core.pings import PingedConnection

@disjoint_base
class HeardConnection(PingedConnection):
    """A connection whose messages are heard (internal; `Client` is the public class)."""
