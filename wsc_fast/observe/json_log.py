"""Log records as JSON, one object a line, for a collector of logs.

Each object has `time`, `level`, `logger` and `message`, then the fields that the record was given
(`extra`), such as `event` and `client_id`, and `exception` with the traceback where there is one.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

# The attributes that every record has; the others are its fields. A record of the class, since the
# factory of records may have been set to one that adds fields.
_OF_EVERY_RECORD = {
    *vars(logging.LogRecord("", 0, "", 0, "", None, None)),
    "asctime",
    "message",
    "taskName",  # of Python 3.12
}


class JsonFormatter(logging.Formatter):
    """Formats each record as one JSON object in one line of ASCII.

    `handler.setFormatter(JsonFormatter())` has a handler of the standard logging write so. It takes
    the records of any logger. A field that JSON cannot hold is written as its `repr`.

    Thread-safety: any thread, as all formatters.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, without a line break.

        Args:
            record: of any logger.

        Returns:
            str: a JSON object.

        Raises:
            TypeError: the arguments of the record do not fit its text, as any formatter says.

        Thread-safety: any thread.
        """
        fields = {
            **_fields_of(record),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        first = ("time", "level", "logger", "message")
        ordered = {name: fields.pop(name) for name in first} | fields
        try:
            return _encoded(ordered)
        except (ValueError, TypeError, RecursionError):
            return _encoded({name: _encodable(value) for name, value in ordered.items()})


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    return {
        str(name): value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD
    }


def _encoded(fields: dict[str, Any]) -> str:
    # No NaN, which JSON does not have.
    return json.dumps(fields, default=repr, allow_nan=False)


def _encodable(value: object) -> object:
    try:
        _encoded({"": value})
    except (ValueError, TypeError, RecursionError):
        return repr(value)
    return value
