"""A server of an experiment: the experiment's own program, started again to serve."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def serving(
    program: str, arguments: Callable[[int], list[str]]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Starts it, waits until it listens, and kills it in the end.

    Args:
        program: the file of the experiment.
        arguments: of the program, for a port.

    Returns:
        the process, and the port.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen([sys.executable, program, *arguments(port)])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield server, port
    finally:
        server.kill()
        server.wait()
