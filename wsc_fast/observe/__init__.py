"""A hub seen from outside: log records as JSON."""

from wsc_fast.observe.json_log import JsonFormatter

__all__ = ["JsonFormatter"]
