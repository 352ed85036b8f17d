"""The files of a database: whether they still are the ones that were opened, and their disk.

A file that is removed or replaced while it is open goes on taking writes, and they are lost with
it. And a database on a full disk can only recover if some room was kept for it: to remove a
message is to write into the log, "-wal", and to empty the log is to write into the database.

Each look at a file lets go of the GIL, and beside a busy event loop that can cost milliseconds. So
the database's own file is looked at after each transaction, and all else four times a second.
"""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic

# Bytes of the disk that are kept free for removing messages: an eighth, and at most this.
_MOST_KEPT = 64 << 20
_PART_KEPT = 8

# Seconds between two looks at the log, and at a disk that has this many bytes more than needed.
_LOOK_EVERY = 0.25
_AMPLE = 1 << 30
# Bytes that SQLite needs at once for the file with the index of its log.
_LEAST_ROOM = 65_536


def is_full(path: str) -> bool:
    """Whether the disk of a file has no room for the files beside it."""
    try:
        found = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return False
    # Some file systems have no fixed number of files, and say 0.
    has_files = found.f_favail > 0 or found.f_files == 0
    return found.f_bavail * found.f_frsize < _LEAST_ROOM or not has_files


class DatabaseFiles:
    """The database at a path, and its log, "-wal".

    Thread-safety: one thread.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._log = f"{path}-wal"
        self._index = f"{path}-shm"
        self._opened: dict[str, tuple[int, int] | None] = {}
        self._next_look_at_log = 0.0
        self._next_look_at_disk = 0.0

    def note(self) -> bool:
        """The database has been opened: from now on its files are those that are there now.

        Returns:
            bool: whether it is another database than the last one.
        """
        former = self._opened.get(self._path)
        self._opened = {path: _identity(path) for path in (self._path, self._log, self._index)}
        return self._opened[self._path] != former

    def replaced(self) -> bool:
        """Whether the path leads to another database by now, or to none."""
        return not self._is_the_opened(self._path)

    def complete(self) -> bool:
        """Whether the database is the one that was opened; now and then, whether the log is."""
        if self.replaced():
            return False
        now = monotonic()
        if now < self._next_look_at_log:
            return True
        self._next_look_at_log = now + _LOOK_EVERY
        return self._is_the_opened(self._log)

    def remove_log(self) -> None:
        """Removes the log and the index of a database that was replaced.

        Otherwise the new database would take them for its own. Files that belong to the new one
        already are left.
        """
        for path in (self._log, self._index):
            if self._is_the_opened(path):
                with suppress(OSError):
                    os.unlink(path)

    def _is_the_opened(self, path: str) -> bool:
        opened = self._opened.get(path)
        return opened is None or opened == _identity(path)

    def log_bytes(self) -> int:
        """Size of the log."""
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def has_room(self, size: int) -> bool:
        """Whether the disk has room for so many bytes, all of the log again, and the part to keep.

        A disk that has far more is not looked at each time.
        """
        now = monotonic()
        if now < self._next_look_at_disk:
            return True
        disk = self.disk()
        if disk is None:
            return True
        free, kept = disk
        left = free - kept - self.log_bytes() - size
        if left >= _AMPLE:
            self._next_look_at_disk = now + _LOOK_EVERY
        return left >= 0

    def disk(self) -> tuple[int, int] | None:
        """Bytes that are free on the disk, and those to be kept free; None if it does not say."""
        try:
            disk = os.statvfs(self._path)
        except OSError:
            return None
        size = disk.f_blocks * disk.f_frsize
        if not size:
            return None
        return disk.f_bavail * disk.f_frsize, min(size // _PART_KEPT, _MOST_KEPT)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
