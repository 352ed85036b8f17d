"""A key set (RFC 7517) in a file: looked at now and then, and read when it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from typing import Any

from wsc_fast._core import clock
from wsc_fast.auth.keys import Keys, keys_of, some_keys_of
from wsc_fast.errors import ConfigError
from wsc_fast.log import log

# Seconds between two looks at a JWKS file, and the most that is read of one.
JWKS_RECHECK = 1.0
JWKS_MAX = 1 << 20
# Seconds that the keys of a file are believed after it could last be used.
JWKS_MAX_AGE = 86_400.0


class KeyFile:
    """A JWKS in a file that may change."""

    def __init__(self, path: str, wanted: tuple[str, ...] | None) -> None:
        self._path = path
        self._wanted = wanted
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None  # mtime, size and inode; None: look again
        self._content: bytes | None = None  # digest; None: it could not be read
        self._usable_at = clock.monotonic()  # when it was last seen to be a JWKS
        self._next_look = self._usable_at + JWKS_RECHECK
        try:
            self._keys = some_keys_of(self._parsed(self._read()), wanted)
        except (OSError, ConfigError) as error:
            raise ConfigError(f"jwks: {path}: {_reason(error)}") from None
        self._usable = True

    def current(self) -> Keys:
        """The keys, of the file as it was a second ago or is now."""
        if clock.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                now = clock.monotonic()
                self._next_look = now + JWKS_RECHECK
                self._look()
                if self._usable:
                    self._usable_at = now
                elif self._keys and now - self._usable_at > JWKS_MAX_AGE:
                    self._keys = {}
                    log.error("no JWKS in %s for too long: no token is taken", self._path)
            finally:
                self._lock.release()
        return self._keys

    def _look(self) -> None:
        before = self._content
        try:
            if self._seen is not None and self._seen == _version(os.stat(self._path)):
                return
            data = self._read()
            if self._content == before:
                return
            self._usable = False
            self._keys, faults = keys_of(self._parsed(data), self._wanted)
        except Exception as error:
            if isinstance(error, OSError):
                self._seen = self._content = None
                self._usable = False
                if before is None:
                    return  # said already
            log.warning(
                "the JWKS in %s cannot be used, the old keys stay: %s",
                self._path,
                _reason(error),
                extra={"event": "jwks", "reason": _reason(error)},
                kind=f"JWKS: {_reason(error)}",
            )
            return
        self._usable = True
        for fault in faults:
            log.warning("a key in %s is not used: %s", self._path, fault, kind=f"key: {fault}")
        if not self._keys:
            log.warning("the JWKS in %s has no key: no token is taken", self._path)

    def _read(self) -> bytes:
        # Opening a pipe would wait for its other end.
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "not a file")
            data = file.read(JWKS_MAX + 1)
        # A file of a moment ago may be written once more at the same mtime.
        settled = time.time() - status.st_mtime > JWKS_RECHECK
        self._seen = _version(status) if settled else None
        self._content = hashlib.sha256(data).digest()
        return data

    def _parsed(self, data: bytes) -> Any:
        if len(data) > JWKS_MAX:
            raise ConfigError(f"it has more than {JWKS_MAX} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ConfigError("it is no JSON") from None


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _reason(error: Exception) -> str:
    # An OSError's text has the path once more; those of others may show a key.
    if isinstance(error, OSError):
        return str(error.strerror)
    return str(error) if isinstance(error, ConfigError) else type(error).__name__
