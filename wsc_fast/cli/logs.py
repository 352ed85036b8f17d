"""The log of a hub that the command line serves: to standard error, as text or as JSON."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

# Attributes that each record has. Others came with `extra=`.
_OF_EACH = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of `extra=`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OF_EACH}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure(level: str, log_format: str) -> None:
    """Has all loggers write to standard error, unless the application has set handlers itself.

    Args:
        level: debug, info, warning or error.
        log_format: text or json.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
