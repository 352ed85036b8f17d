from collections.abc import Callable, Set
from typing import Any, Self, final

from wsc_fast._core.engine import Engine
from wsc_fast._core.stream import Answerer
from wsc_fast._core.upward import Requests, Upgrades

@final
class CommonUpgrade(Answerer):
    """Answers common upgrades (internal).

    Args:
        engine: of the hub.
        policy: an `upward.Upgrades`.
        requests: an `upward.Requests`, with `settle`.
        state: whose `accepting` and `draining` say whether new clients are let in.
        files: whose `last` is the highest descriptor that the process may have.
        settings: gives the settings that hold now: another object once they have changed.
        outlasting: a set, each of which counts as a connection.
        path: of the endpoint.
        in_query: the parameter, NAME=VALUE, by which a client says that it speaks wsc.1.

    Attributes:
        accepted: upgrades that were accepted here.

    Thread-safety: the loop's thread.
    """
    @property
    def accepted(self) -> int: ...
    def __new__(
        cls,
        engine: Engine,
        policy: Upgrades,
        requests: Requests,
        state: Any,
        files: Any,
        settings: Callable[[], Any],
        outlasting: Set[Any],
        path: str,
        in_query: bytes,
    ) -> Self: ...
