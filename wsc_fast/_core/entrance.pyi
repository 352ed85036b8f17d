from collections.abc import Callable
from typing import Self

from typing_extensions import disjoint_base

from wsc_fast._core.connection import Client
from wsc_fast._core.poller import Poller, Watched

@disjoint_base
class Entrance(Watched):
    """A listening socket whose connections are the Poller's (internal).

    Args:
        poller: of the hub.
        descriptor: of the socket, which listens and does not block.
        make_connection: makes the Client of each connection.
        out_of_files: is called where no descriptor is left for a connection; returns whether one
            was refused in another way. Else accepting pauses until `resume`.

    Raises:
        OSError: the kernel cannot watch it.
    """
    def __new__(
        cls,
        poller: Poller,
        descriptor: int,
        make_connection: Callable[[], Client],
        out_of_files: Callable[[], bool],
    ) -> Self: ...
    def accept_all(self, most: int) -> None:
        """Accepts all who have connected by now, but no more than this.

        Nobody answers their requests at once: each has its turn, as a heavy read has.

        Thread-safety: the loop's thread.
        """
    def resume(self) -> None:
        """Accepts again.

        Thread-safety: the loop's thread.
        """
    def close(self) -> None:
        """Accepts nothing more; to be called before the socket is closed.

        Thread-safety: the loop's thread.
        """
