"""A descriptor that is kept, so that a connection can be refused where none is left."""

from __future__ import annotations

import os
import socket


class Spare:
    """One descriptor that may be given up.

    Raises:
        OSError: there is none left already.

    Thread-safety: the loop's thread.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = os.open(os.devnull, os.O_RDONLY)

    def refuse_one(self, listening: socket.socket) -> bool:
        """Accepts and closes a connection that has no descriptor.

        Args:
            listening: its socket, which does not block.

        Returns:
            bool: False: even the spare descriptor has gone to somebody else.
        """
        self.close()
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            pass  # it has gone
        except OSError:
            return False
        try:
            self._descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Gives it up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
