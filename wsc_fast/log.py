"""The package's logger, which cannot raise: what a handler or a filter of the application raises
would otherwise end a connection, or a callback would not be told of."""

from __future__ import annotations

import logging
import sys
from typing import Any


class SafeLogger:
    """The standard logger of a name; its failures go to standard error, as logging's own do."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, text: str, *arguments: Any) -> None:
        self._log(logging.DEBUG, text, arguments, None)

    def info(self, text: str, *arguments: Any) -> None:
        self._log(logging.INFO, text, arguments, None)

    def warning(self, text: str, *arguments: Any) -> None:
        self._log(logging.WARNING, text, arguments, None)

    def error(self, text: str, *arguments: Any, exc_info: BaseException | None = None) -> None:
        self._log(logging.ERROR, text, arguments, exc_info)

    def exception(self, text: str, *arguments: Any) -> None:
        self._log(logging.ERROR, text, arguments, sys.exc_info()[1])

    def _log(
        self, level: int, text: str, arguments: tuple[Any, ...], error: BaseException | None
    ) -> None:
        try:
            self._logger.log(level, text, *arguments, exc_info=error, stacklevel=3)
        except Exception as failure:
            if logging.raiseExceptions and sys.stderr is not None:
                print(f"wsc_fast: logging raised {failure!r}", file=sys.stderr)


log = SafeLogger("wsc_fast")
