"""The log of the soak's server: what was done, in the order of the hub calls, for the model.

One JSON array a line. Each line is written in the turn of the call that it tells of, with no other
call in between:

    ["listening", port]
    ["E", serial, user]              a client has entered: it counts as connected from here on
    ["G", serial, code]              its connection has gone, with the hub's close code
    ["B", number, [serial...]]       broadcast, but for these
    ["S", number, [serial...]]       sent to these: a room, or one client
    ["U", number, held, user, [serial...]]   a HubMessage; held behind a replay
    ["A", number, user]              a message with acknowledgement
    ["Y", serial]                    it said goodbye: all before this line has to arrive
    ["K", serial, code]              the hub closes it, with this code: likewise
    ["I", serial, count]             its message of this count was heard
    ["F", number, recipient, reason] reported to the failure handler
    ["X", text]                      a violation that this half saw
    ["L", seconds]                   this process stood still for so long
    ["stat", {...}], ["end", {...}]  internals; what was done
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections import Counter
from typing import Any

TICK = 0.01
# The logger, the module and the function that tell of a failure handler's queue that is full.
QUEUE_IS_FULL = ("wsc_fast", "handler_queue", "overflows")


# The events of lines that tell what a client did wrong, as the soak's bad clients do.
FAULTS_OF_CLIENTS = {
    "bad_request",
    "upgrade_refused",
    "protocol_error",
    "client_over_limit",
    "heartbeat_timeout",
    "slow_consumer",
    "messages_dropped",
    "rate_limited",
}


class ProvokedError(Exception):
    """Raised on purpose, by callbacks."""


class Log:
    """Lines on their way out, and counts of what was done."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self._lines: list[bytes] = []

    def __call__(self, *line: Any) -> None:
        self._lines.append(json.dumps(line).encode() + b"\n")

    def violation(self, text: str) -> None:
        self("X", text)

    async def write(self, out: asyncio.WriteTransport) -> None:
        """Sends the lines on, until it is cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.flush(out)

    def flush(self, out: asyncio.WriteTransport) -> None:
        if self._lines:
            out.write(b"".join(self._lines))
            self._lines.clear()


class Watch(logging.Handler):
    """Every warning and every traceback is a violation, unless the soak provoked it."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ProvokedError) or getattr(record, "error", None) == "ProvokedError":
            # The latter also of a line that counts others, which has no exception.
            self.log.done["provoked errors logged"] += 1
        elif (record.name, record.module, record.funcName) == QUEUE_IS_FULL:
            # Clients that stall lose more frames at once than the queue of failures takes.
            self.log.done["times that the failure queue was full"] += 1
        elif error is None and getattr(record, "event", None) in FAULTS_OF_CLIENTS:
            self.log.done["lines on what clients did wrong"] += 1
        elif error is not None or record.levelno >= logging.WARNING:
            text = record.getMessage()
            if error is not None:
                text += "\n" + "".join(traceback.format_exception(error))
            self.log.violation(f"log: {text}")
