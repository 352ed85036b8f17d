"""The package's logger, which cannot raise, and cannot flood.

An exception of the application's handler or filter would otherwise end a connection, or keep a
callback from being called. An event that a peer causes a thousand times a second, such as an
exception of a callback, is a few lines a second: of each kind of line, LINES_A_SECOND.
"""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import Any

LINES_A_SECOND = 10


class SafeLogger:
    """The standard logger of a name; its failures go to standard error, as logging's own do."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        # Kind of line (its text before the arguments) -> the second that is counted, the lines that
        # came in it, and those left out since one was written.
        self._kinds: dict[str, tuple[int, int, int]] = {}

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
            if not self._logger.isEnabledFor(level):
                return
            now = int(monotonic())
            second, lines, left_out = self._kinds.get(text, (now, 0, 0))
            if second != now:
                lines = 0
            elif lines >= LINES_A_SECOND:
                self._kinds[text] = now, lines, left_out + 1
                return
            self._kinds[text] = now, lines + 1, 0
            if left_out:
                text += " (%d more of these lines were left out)"
                arguments += (left_out,)
            self._logger.log(level, text, *arguments, exc_info=error, stacklevel=3)
        except Exception as failure:
            if logging.raiseExceptions and sys.stderr is not None:
                print(f"wsc_fast: logging raised {failure!r}", file=sys.stderr)


log = SafeLogger("wsc_fast")
