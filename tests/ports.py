"""Ports for servers that cannot choose one themselves: programs that are given a number.

The kernel gives port 0, and each client's side of a connection, a number of its own range. A port
of that range which was free a moment ago may be another test's by the time a server takes it. So
these are below the range of Linux (32768 and up).
"""

from __future__ import annotations

import random
import socket

FIRST, BEHIND_LAST = 11_000, 32_000


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and which no socket gets by chance."""
    while True:
        port = random.SystemRandom().randrange(FIRST, BEHIND_LAST)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
