"""The rooms of a MemoryBus whose newest messages are not in its file yet: a map beside the file.

A byte of the map stands for the rooms of one hash, and is set before the first message that the
file lacks. The kernel has it at once, so a process that is killed leaves a map that is right. The
crash of a machine may take messages out of the file that were written, and the map cannot tell of
which rooms: so it names the boot of the machine.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from wsc_fast.log import log

# The bytes of the map, and of the line before it.
_SLOTS, _LINE = 65_536, 64
_BOOT = "/proc/sys/kernel/random/boot_id"


class Unwritten:
    """The map of one file.

    Args:
        path: of the file of the histories.

    Thread-safety: `read` and `begin` in any one thread, the others in one after that.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-unwritten"
        self._map: int | None = None  # its descriptor
        self._counts: Counter[int] = Counter()  # by place in the map

    def read(self, rooms: Iterable[str], *, closed: bool) -> set[str]:
        """The rooms that may lack messages.

        Args:
            rooms: all that the file has.
            closed: the file was closed in good order, which leaves no map.
        """
        line = _line()
        try:
            with open(self._path, "rb") as file:
                found = file.read(_LINE + _SLOTS + 1)
        except FileNotFoundError:
            return set() if closed else set(rooms)
        except OSError:
            return set(rooms)
        if line is None or len(found) != _LINE + _SLOTS or not found.startswith(line):
            return set(rooms)
        return {room for room in rooms if found[_place(room)]}

    def begin(self, rooms: Iterable[str]) -> None:
        """Makes the map anew.

        Args:
            rooms: whose newest messages are not written.
        """
        self.close()
        self._counts = Counter(map(_place, rooms))
        content = bytearray((_line() or b"").ljust(_LINE) + bytes(_SLOTS))
        for place in self._counts:
            content[place] = 1
        try:
            self._map = _replace(self._path, bytes(content))
        except OSError as error:
            self._give_up(error)

    def add(self, room: str) -> None:
        """The room has a message that is not written; to be called before anybody gets it."""
        place = _place(room)
        self._counts[place] += 1
        if self._counts[place] == 1:
            self._set(place, b"\1")

    def remove(self, room: str) -> None:
        """The file has the messages of one call of `add` with this room."""
        place = _place(room)
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._counts[place]
            self._set(place, b"\0")

    def _set(self, place: int, value: bytes) -> None:
        if self._map is not None:
            try:
                os.pwrite(self._map, value, place)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Without a map, all rooms may lack messages after a kill."""
        self.close()
        with suppress(OSError):
            os.unlink(self._path)
        log.error(
            "the map of unwritten rooms at %a cannot be written: %s; if the process is killed, the "
            "clients of all kept rooms will hear that messages may be missing",
            self._path,
            error,
            extra={"event": "history_map_failed", "error": str(error)},
        )

    def end(self) -> None:
        """All is written, and the file says so: the map goes."""
        self.close()
        with suppress(OSError):
            os.unlink(self._path)

    def close(self) -> None:
        """Closes the map, and leaves it for the next process."""
        descriptor, self._map = self._map, None
        if descriptor is not None:
            os.close(descriptor)


def _place(room: str) -> int:
    return _LINE + zlib.crc32(room.encode("utf-8", "surrogatepass")) % _SLOTS


def _line() -> bytes | None:
    """The line before the map; None: this system does not tell one boot from another."""
    try:
        with open(_BOOT, "rb") as file:
            return b"wsc1 " + file.read(_LINE - 6).strip() + b"\n"
    except OSError:
        return None


def _replace(path: str, content: bytes) -> int:
    """Puts a new file in the place of another one, all of it or nothing; its descriptor."""
    new = f"{path}-new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, content) != len(content):
            raise OSError("it was not written whole")
        os.replace(new, path)
    except BaseException:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(new)
        raise
    return descriptor
