"""The parts that watch a hub: metrics, traces, log records as JSON, statistics of clients."""

from wsc_fast.observe.json_log import JsonFormatter

__all__ = ["JsonFormatter"]
