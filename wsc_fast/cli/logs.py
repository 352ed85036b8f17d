"""The log of a hub that the command line serves: to standard error, as text or as JSON."""

from __future__ import annotations

import logging

from wsc_fast.log import formatter


def configure(level: str, log_format: str) -> None:
    """Has all loggers write to standard error, unless the application has set handlers itself.

    Args:
        level: debug, info, warning or error.
        log_format: text or json.
    """
    if logging.getLogger("wsc_fast").hasHandlers():
        return  # another one would write each line twice
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format == "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
