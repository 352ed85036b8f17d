"""The newest lines of the hub's log, in memory, for the page.

The lines are taken by a filter of the logger. A handler would count as one of the application's:
Python would no longer print warnings where no logging is set up, and `run` would set up none.
The lines are those of all hubs in the process, since these have one logger.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from itertools import count

import msgspec

# Lines that are kept, and characters of a line and of a field.
LINES, MOST_TEXT, MOST_FIELD = 200, 2_000, 300
# Bytes of the lines of one answer as JSON, in which a character may take six.
MOST_BYTES = 131_072


class LogLine(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        number: grows with each line.
        time: seconds since the epoch.
        level: in lower case.
        event: which line it is; "" where it does not say.
        text: of the line, with the exception where there is one.
        client_id, user_id, room: it is about; "" for none.
    """

    number: int
    time: float
    level: str
    event: str
    text: str
    client_id: str
    user_id: str
    room: str


class LogRing:
    """Keeps the newest lines while the hub runs: a companion of it, and a filter of its logger.

    Thread-safety: any thread; lines come of several.
    """

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=LINES)
        self._numbers = count(1)
        self._logger = logging.getLogger("wsc_fast")

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The hub starts."""
        self.begin()

    def begin(self) -> None:
        """Takes lines from now on."""
        self._logger.addFilter(self)

    def close(self) -> None:
        """The hub has stopped."""
        self._logger.removeFilter(self)

    def forget(self) -> None:
        """The hub's loop was closed, or this is the child of a fork."""
        self._logger.removeFilter(self)

    def descriptors(self) -> list[int]:
        """Of its sockets: it has none."""
        return []

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes a line, and lets it pass."""
        with suppress(Exception):  # arguments that do not fit the text: the handlers tell
            self._lines.append(self._line_of(record))
        return True

    def _line_of(self, record: logging.LogRecord) -> LogLine:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        fields = vars(record)

        def field(name: str) -> str:
            return str(fields.get(name) or "")[:MOST_FIELD]

        return LogLine(
            next(self._numbers),
            record.created,
            record.levelname.lower(),
            field("event"),
            text[:MOST_TEXT],
            field("client_id"),
            field("user_id"),
            field("room"),
        )

    def after(self, number: int, most: int) -> list[LogLine]:
        """The newest lines behind a number, the newest first; `MOST_BYTES` of them at most.

        Args:
            number: of the last line that is known.
            most: lines.
        """
        lines = [line for line in list(self._lines) if line.number > number]
        found: list[LogLine] = []
        left = MOST_BYTES
        for line in lines[: -most - 1 : -1]:
            left -= len(msgspec.json.encode(line))
            if left < 0:
                break
            found.append(line)
        return found
