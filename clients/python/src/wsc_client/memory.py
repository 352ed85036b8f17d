"""Positions and known ids: bounded, in the order of their use, and kept in a storage (K)."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Keeps texts under keys. The methods are called on the loop, so they must not take long."""

    def get(self, key: str) -> str | None:
        """The text under this key, or None."""

    def set(self, key: str, text: str) -> None:
        """Puts a text under this key."""


class FileStorage:
    """A storage in one file, which is replaced at each change. One process at a time may use it.

    Args:
        path: of the file; its directory has to be there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            held = json.loads(self._path.read_text())
        except (OSError, ValueError):
            held = {}
        self._texts: dict[str, str] = held if isinstance(held, dict) else {}

    def get(self, key: str) -> str | None:
        """The text under this key, or None."""
        return self._texts.get(key)

    def set(self, key: str, text: str) -> None:
        """Puts a text under this key, and writes the file.

        Raises:
            OSError: the file cannot be written. The client logs it and goes on.
        """
        self._texts[key] = text
        # A process that is killed while it writes leaves the former file whole.
        number, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(number, "w") as file:
                json.dump(self._texts, file)
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise


class Memory(dict[str, str]):
    """A dict whose newest entries are its last, and whose oldest go first.

    Args:
        storage: None keeps it in this process alone.
        key: in the storage.
        most: entries.
    """

    def __init__(self, storage: Storage | None, key: str, most: int) -> None:
        super().__init__()
        self._storage, self._key, self._most = storage, key, most
        self._read()
        self.changed = False

    def put(self, name: str, value: str) -> None:
        """Makes this the newest entry."""
        self.changed = True
        self.pop(name, None)
        self[name] = value
        if len(self) > self._most:
            del self[next(iter(self))]

    def forget(self, name: str) -> bool:
        """Whether there was such an entry; there is none any more."""
        there = self.pop(name, None) is not None
        self.changed |= there
        return there

    def save(self) -> None:
        """Writes it where it has changed.

        Raises:
            Exception: of the storage. The next change writes again.
        """
        if self.changed and self._storage is not None:
            self.changed = False
            pairs = [[name, value] for name, value in self.items()]
            self._storage.set(self._key, json.dumps(pairs))

    def _read(self) -> None:
        """K3: a storage that raises, or holds something else, counts as empty."""
        if self._storage is None:
            return
        try:
            pairs = json.loads(self._storage.get(self._key) or "[]")
            for name, value in pairs:
                if isinstance(name, str) and isinstance(value, str):
                    self.put(name, value)
        except Exception:
            self.clear()
