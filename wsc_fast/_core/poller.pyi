from typing import Any, Self

from typing_extensions import disjoint_base

from wsc_fast._core.engine import Engine

@disjoint_base
class Watched:
    """A descriptor that a Poller watches (internal)."""

@disjoint_base
class Poller:
    """The connections of a hub that are accepted, read and written here (internal).

    Args:
        engine: of the hub, attached to the running loop.
        answerer: answers the first bytes of a connection where it can; None: nobody does.

    Attributes:
        answerer: the same.
        budget: seconds that one turn of the loop gives to events, and to ends.

    Raises:
        OSError: there is no descriptor left.
        MemoryError: there is no memory.
    """

    budget: float
    @property
    def answerer(self) -> Any: ...
    def __new__(cls, engine: Engine, answerer: object = None) -> Self: ...
    def descriptors(self) -> list[int]:
        """All that are open: of the epoll, and of the sockets.

        Thread-safety: the loop's thread.
        """
    def run(self) -> None:
        """Tells some of those that are ready; the loop calls it.

        Thread-safety: the loop's thread.
        """
    def run_losses(self) -> None:
        """Ends some of those that are to end; the loop calls it.

        Thread-safety: the loop's thread.
        """
    def finish(self) -> None:
        """Ends all that are left, at once, and closes the epoll descriptor.

        Thread-safety: the loop's thread.
        """
    def forget(self) -> None:
        """Closes all descriptors: the loop is closed, or this is the child of a fork.

        Thread-safety: the loop's thread, or that of the child.
        """
