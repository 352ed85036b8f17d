"""The log of a hub that the command line serves: to standard error, as text or as JSON."""

from __future__ import annotations

import logging

from wsc_fast.log import TEXT_FORMAT, formatter


def configure(level: str, log_format: str, worker: int | None = None) -> None:
    """Has all loggers write to standard error, unless the application has set handlers itself.

    Args:
        level: debug, info, warning or error.
        log_format: text or json.
        worker: the number of this worker: each record gets it as the field `worker`, and each line
            of text begins with it. None: there are no workers.
    """
    if worker is not None:
        _number_records(worker)
    if logging.getLogger("wsc_fast").hasHandlers():
        return  # another one would write each line twice
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format == "json"))
    if worker is not None and log_format != "json":
        handler.setFormatter(logging.Formatter(f"worker %(worker)d: {TEXT_FORMAT}"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _number_records(worker: int) -> None:
    """Numbers also the records of handlers that the application has set itself."""
    make = logging.getLogRecordFactory()

    def numbered(*args: object, **kwargs: object) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        record.worker = worker
        return record

    logging.setLogRecordFactory(numbered)
