from typing import final

from typing_extensions import disjoint_base

from wsc_fast._core.picows_connection import PicowsConnection

@final
class Ending:
    """The end of a connection (internal)."""

@disjoint_base
class PacedConnection(PicowsConnection):
    """A connection that is not read at times (internal; `Client` is the public class)."""
