"""Changes that `Hub.run` makes in its process, and takes back when it ends.

signals         SignalHandlers: handlers for as long as the run takes
open files      OpenFiles: the soft limit, raised for as long as a run needs it; FileLimit: its end
log             OwnLog: lines on standard error, where the application has set up no logging
objects         SettledObjects: those that are there before are out of the garbage collector's way
freed memory    keep_freed_memory: a setting of malloc, the one thing that stays
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Self

from wsc_fast.log import formatter, log

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

# The logger whose lines `OwnLog` writes.
_logger = logging.getLogger("wsc_fast")

# Of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


class SignalHandlers:
    """Handlers of signals, in place of those that were there, until `give_back`.

    Not `loop.add_signal_handler`, for two reasons: uvloop leaves its handlers behind, so that the
    process ignores the signal from then on; and asyncio's wake-up socket is shared with the child
    of a fork, so that a signal to the child would be taken for one to the parent.

    Args:
        handlers: signal number -> handler. In another thread than the main one, where Python sets
            none, this does nothing.

    Thread-safety: the main thread.
    """

    def __init__(self, handlers: Mapping[signal.Signals, Handler]) -> None:
        self._given = handlers
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number, handler in self._given.items():
            try:
                self._former[number] = signal.signal(number, handler)
            except ValueError:
                log.debug("not in the main thread: no handler for %s", number.name)
                return self
            # System calls go on after the signal. Python restarts most of them itself, but C
            # libraries do not.
            signal.siginterrupt(number, False)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Puts the former handlers back, but for signals that have got another handler since."""
        while self._former:
            number, former = self._former.popitem()
            current = signal.getsignal(number)
            # A handler that a loop has set does not work without the loop: it may be replaced.
            of_a_loop = isinstance(getattr(current, "__self__", None), asyncio.AbstractEventLoop)
            if current == self._given[number] or of_a_loop:
                signal.signal(number, _settable(number, former))


def handlers_of_application() -> dict[signal.Signals, Callable[[int, FrameType | None], Any]]:
    """The handlers, of the signals that `run` handles, that are neither Python's nor a loop's."""
    found = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if (
            callable(handler)
            and handler is not signal.default_int_handler
            and getattr(handler, "__module__", None) not in ("asyncio.unix_events", "uvloop.loop")
        ):
            found[number] = handler
    return found


def _settable(number: signal.Signals, handler: Any) -> Any:
    # None is a handler in C, which Python cannot put back.
    if handler is not None:
        return handler
    return signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL


class OpenFiles:
    """The soft limit of open files, raised while at least one hub is in its `run`.

    Thread-safety: any thread; several hubs may run in threads of their own.
    """

    _lock = threading.Lock()
    _holders = 0
    _former: int | None = None  # the soft limit before it was raised
    _raised = 0  # what it was raised to

    def __enter__(self) -> Self:
        with self._lock:
            OpenFiles._holders += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            OpenFiles._holders -= 1
            if self._holders or self._former is None:
                return
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if soft == self._raised:  # else somebody has set it since
                resource.setrlimit(resource.RLIMIT_NOFILE, (self._former, hard))
            OpenFiles._former = None

    def raise_to(self, wanted: int) -> None:
        """Raises the soft limit, to the hard one at most; never lowers it."""
        with self._lock:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            if soft == resource.RLIM_INFINITY or soft >= target:
                return
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            except (ValueError, OSError):
                log.debug("the limit of open files stays at %d", soft)
                return
            if self._former is None:
                OpenFiles._former = soft
            OpenFiles._raised = target


def last_file() -> int:
    """The highest descriptor that the process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - 1


class FileLimit:
    """The number of descriptors that a hub may have; logs that none is left.

    Attributes:
        last: the highest descriptor that the process may have.
    """

    def __init__(self) -> None:
        self.last: int = sys.maxsize

    def look(self) -> None:
        """Looks up the limit of this moment."""
        self.last = last_file()

    def log(self) -> None:
        """Logs that no descriptor is left."""
        log.warning(
            "out of file descriptors: connections are refused (the limit of open files is %d; "
            "raise it, or lower HubConfig.max_connections)",
            last_file() + 1,
            extra={"event": "out_of_files"},
        )


class SettledObjects:
    """The objects that are there before a hub is in its `run`: the collector passes them over.

    A full collection walks over all objects, those of imported modules too, and holds the loop for
    as long: 11 ms where no other module is imported. Garbage among them is collected first. An
    application that has frozen objects itself (`gc.freeze`), or collects none, is left alone.

    Thread-safety: any thread; several hubs may run in threads of their own.
    """

    _lock = threading.Lock()
    _holders = 0
    _frozen = False

    def __enter__(self) -> Self:
        with self._lock:
            SettledObjects._holders += 1
            if self._holders == 1 and gc.isenabled() and not gc.get_freeze_count():
                gc.collect()
                gc.freeze()
                SettledObjects._frozen = True
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            SettledObjects._holders -= 1
            if self._frozen and not self._holders:
                gc.unfreeze()
                SettledObjects._frozen = False


class OwnLog:
    """The package's lines on standard error, while a hub is in its `run`, or on uvicorn's port.

    Where the application has configured logging, this changes nothing: neither a handler of the
    package's logger nor one of the root logger gets company.

    Args:
        json: one JSON object a line, instead of text.
        level: the name of the least level that is written, where the application has set none.

    Thread-safety: any thread; several hubs may run in threads of their own. The first one decides.
    """

    _lock = threading.Lock()
    _holders = 0
    _handler: logging.Handler | None = None
    _set_level = False  # of the logger, which had none

    def __init__(self, *, json: bool, level: str) -> None:
        self._json = json
        self._level = level.upper()

    def __enter__(self) -> Self:
        with self._lock:
            OwnLog._holders += 1
            if self._handler is None and not _logger.hasHandlers():
                self._set_up()
        return self

    def _set_up(self) -> None:
        handler = OwnLog._handler = logging.StreamHandler()
        # The application may configure logging later, in a callback: then its handlers have them.
        handler.addFilter(lambda _: not logging.getLogger().handlers)
        handler.setLevel(self._level)
        handler.setFormatter(formatter(self._json))
        _logger.addHandler(handler)
        if _logger.level == logging.NOTSET:
            _logger.setLevel(self._level)
            OwnLog._set_level = True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            OwnLog._holders -= 1
            handler = self._handler
            if self._holders or handler is None:
                return
            OwnLog._handler = None
            _logger.removeHandler(handler)
            if self._set_level and _logger.level == handler.level:  # else somebody has since
                _logger.setLevel(logging.NOTSET)
            OwnLog._set_level = False


def keep_freed_memory() -> None:
    """Has glibc keep up to 16 MiB of freed memory, unless the environment sets malloc.

    glibc gives freed memory back as soon as two large messages' worth is together, and the kernel
    then clears each page anew: for an echo of 1 MB four times the CPU time of all the rest.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(_M_MMAP_THRESHOLD, 4 << 20)
    mallopt(_M_TRIM_THRESHOLD, 16 << 20)
