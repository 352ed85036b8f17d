from typing_extensions import disjoint_base

from wsc_fast._core.pacing import PacedConnection

@disjoint_base
class ClosableConnection(PacedConnection):
    """A connection, from the beginning of its close on (internal; `Client` is the public class)."""
