"""Messages as both halves of the soak know them: the number of one tells its content.

A number holds how the message was sent, so that neither half keeps a table of them:

    counter << 6 | key << 3 | (priority - 1) << 1 | text

`key` is 0, or names a conflation key; `priority` 1 to 4; `text` is 1 for a text message.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Callable

# Of both processes: seconds that a timer may be late before less is done, and before what depends
# on time can no longer be judged (the machine stood still, and a peer was not heard in time).
LATE = 0.25
STOOD_STILL = 2.0

# Of the hub, in seconds: what the clients' half waits for.
HANDSHAKE_TIMEOUT = 5.0
HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT = 5.0, 20.0
CLOSE_TIMEOUT = 5.0

NORMAL = 2
# The answer to a client's goodbye, which stands in its stream as this number.
BYE = b"bye-ok"
BYE_NUMBER = -1

_FILL = base64.b64encode(random.Random(1).randbytes(150_000))
_STARTS = 1 << 16


async def watch_lateness(tell: Callable[[float], None]) -> None:
    """Tells ten times a second by how many seconds the loop is late."""
    while True:
        due = time.monotonic() + 0.1
        await asyncio.sleep(0.1)
        tell(time.monotonic() - due)


def number_of(counter: int, *, key: int = 0, priority: int = NORMAL, text: bool = True) -> int:
    return counter << 6 | key << 3 | (priority - 1) << 1 | text


def key_of(number: int) -> int:
    return number >> 3 & 7


def priority_of(number: int) -> int:
    return (number >> 1 & 3) + 1


def body(number: int, size: int) -> bytes:
    """The content: the number, the size, and what follows from the number."""
    start = number * 37 % _STARTS
    return b"%d %d %s" % (number, size, _FILL[start : start + size])


def parse(content: bytes) -> int:
    """The number of a content; ValueError if it is not whole."""
    if content == BYE:
        return BYE_NUMBER
    number, size, _ = content.split(b" ", 2)
    if body(int(number), int(size)) != content:
        raise ValueError(f"content differs from what was sent: {content[:60]!r}")
    return int(number)
