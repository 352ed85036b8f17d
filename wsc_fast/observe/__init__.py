"""The parts that watch a hub: metrics, traces, log records as JSON, statistics of clients.

JsonFormatter is imported when it is first used: most hubs write no JSON.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsc_fast.observe.json_log import JsonFormatter

__all__ = ["JsonFormatter"]


def __getattr__(name: str) -> Any:
    if name != "JsonFormatter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wsc_fast.observe.json_log import JsonFormatter

    return JsonFormatter
