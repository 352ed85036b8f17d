import asyncio
from typing import Any, Self

from picows import WSTransport
from typing_extensions import disjoint_base

from wsc_fast._core.receiver import Receiver

@disjoint_base
class Guard:
    """Stands in a picows transport for its logger and for the asyncio transport.

    picows means to write in two cases after the upgrade: the application asks it to, or its parser
    met a protocol error. It then finds `is_close_frame_sent` true and only logs that, which comes
    here. Closing and aborting come here too, so that they take the client's own way out.
    """
    def __new__(cls, client: PicowsConnection, stream: asyncio.Transport) -> Self: ...
    def isEnabledFor(self, level: int) -> bool: ...
    def debug(self, *args: Any) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...

@disjoint_base
class PicowsConnection(Receiver):
    """A connection that picows may have made (internal; `Client` is the public class)."""
    @property
    def conn(self) -> WSTransport | None:
        """picows.WSTransport | None: the connection; None before the upgrade and after the end.

        For looking, not for writing: what it would write itself ends in a HubStateError.
        """

def take_over(client: PicowsConnection) -> None:
    """Has a connection that picows has made read for itself (internal): picows reads nothing of it.

    Thread-safety: the loop's thread.
    """
