"""The log of a hub that the command line serves: to standard error, as text or as JSON."""

from __future__ import annotations

import logging


def configure(level: str, log_format: str) -> None:
    """Has all loggers write to standard error, unless the application has set handlers itself.

    Args:
        level: debug, info, warning or error.
        log_format: text or json.
    """
    if logging.getLogger("wsc_fast").hasHandlers():
        return  # another one would write each line twice
    handler = logging.StreamHandler()
    if log_format == "json":
        from wsc_fast.observe import JsonFormatter

        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
