"""`Hub(bus="local")`: the hubs of one machine on a server that the first of them starts.

A directory of the user's own belongs to each application. In it are

    lock        held by the process whose server it is; the kernel gives it free with the process
    hubs        held by each hub on the bus, shared; by the process that ends the server, alone
    bus.sock    the server's Unix socket. It has no port, and nothing on the disk

The process that gets the lock starts the server, and again if the server dies. All others, and it
too, are clients of it by RedisBus. The server ends with its process, also after kill -9: a shell
beside it reads from a pipe whose other end that process has. Then the next process gets the lock,
and starts an empty server. Clients hear of that as of any server that has lost its data.

Processes that are stopped together, such as the workers of uvicorn, do not stop at the same moment.
So the hub whose process has the server leaves last: it waits a little until no other hub is there.
A hub that starts meanwhile waits until the old server has ended.

A process that is forked without exec gives up locks and pipe at once, as long as the hub runs.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from wsc_fast.bus.base import Handler
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.errors import BusError, ConfigError, shown
from wsc_fast.log import log
from wsc_fast.stores.base import OfflineStore

# The name of the application, where its code does not give one.
VARIABLE = "WSC_LOCAL_BUS"
MOST_NAME = 256
# Characters of a runtime directory in which the socket still has a path that can be used.
MOST_RUNTIME = 60
PROGRAMS = ("valkey-server", "redis-server")
# Seconds between two looks at the lock and at the server; seconds in which the server has to be
# there at the start.
_LOOK, _PATIENCE = 0.25, 10.0
# Seconds that the hub with the server waits for the others to leave, and between two looks.
_LAST, _OFTEN = 2.0, 0.01

_OPTIONS = (
    *("--port", "0", "--unixsocketperm", "600", "--save", "", "--appendonly", "no"),
    *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--loglevel", "warning"),
)
# The shell becomes the server. Its child kills the group of both once the pipe on standard input
# ends.
_WITH_US = 'exec 3<&0; (read -r _ <&3; kill -KILL 0) & exec "$@" </dev/null 3<&-'


def find_program() -> str | None:
    """The path of a server program that `bus="local"` can start; None: none is installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def directory_of(name: str) -> Path:
    """The directory of an application; nothing is made yet.

    Args:
        name: of the application.
    """
    short = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # The path of a Unix socket has at most 104 bytes on macOS, 108 on Linux.
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK) and len(runtime) <= MOST_RUNTIME:
        return Path(runtime, "wsc_fast", short)
    return Path(tempfile.gettempdir(), f"wsc_fast-{os.geteuid()}", short)


def default_name() -> str:
    """WSC_LOCAL_BUS, or else the file of the code that makes the hub."""
    if name := os.environ.get(VARIABLE):
        return name
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("wsc_fast."):
        frame = frame.f_back
    return os.path.abspath(frame.f_code.co_filename)


class LocalServer:
    """The server of one application, if this process has the lock.

    Args:
        directory: of the application.

    Thread-safety: none.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path: Path = directory / "bus.sock"
        self._lock: int | None = None
        self._seat: int | None = None  # the lock on `hubs`
        self._pid = 0  # of the process that looked for it
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Takes the lock if nobody has it, and then starts the server unless it runs.

        Raises:
            BusError: there is no program that could be started, the directory is not ours alone, or
                the system refuses a file or a process.
        """
        try:
            self._look()
        except OSError as error:
            raise BusError(
                f"the local bus cannot use {error.filename or self.directory!s}: {error.strerror}"
            ) from error

    def _look(self) -> None:
        if self._lock is None:
            self._lock = self._take_lock()
            self._pid = os.getpid()
        if self._lock is None:
            return
        if self._process is not None and self._process.poll() is not None:
            log.error(
                "the server of the local bus has ended with exit code %d: starting it again, "
                "without the histories",
                self._process.returncode,
                extra={"event": "local_bus_died", "pid": self._process.pid},
            )
            self._end_process()
        if self._process is None:
            self._start()

    def enter(self) -> bool:
        """Has a hub be on the bus; False: the server is about to end.

        Raises:
            BusError: the system refuses the file.
        """
        if self._seat is None:
            self._seat = self._sit(fcntl.LOCK_SH)
        return self._seat is not None

    def leave(self) -> None:
        """Takes back `enter`."""
        if self._seat is not None:
            os.close(self._seat)
            self._seat = None

    def can_end(self) -> bool:
        """Whether the server is another process's, or no hub is on the bus, nor will be."""
        if self._lock is not None and self._seat is None:
            self._seat = self._sit(fcntl.LOCK_EX)
        return self._lock is None or self._seat is not None

    def _sit(self, kind: int) -> int | None:
        path = self.directory / "hubs"
        try:
            seat = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BusError(f"the local bus cannot use {path}: {error.strerror}") from error
        try:
            fcntl.flock(seat, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(seat)
            return None
        return seat

    async def keep(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                self.look()
            except BusError as error:
                log.error(
                    "the server of the local bus cannot be started: %s",
                    error,
                    extra={"event": "local_bus_failed", "error": str(error)},
                )

    def _take_lock(self) -> int | None:
        self._make_directory()
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _make_directory(self) -> None:
        for each in (self.directory.parent, self.directory):
            with suppress(FileExistsError):
                os.mkdir(each, 0o700)
            found = os.lstat(each)
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if not is_ours or found.st_mode & 0o077:
                raise BusError(
                    f"{each} must be a directory of this user alone (mode 700) for the local bus: "
                    "remove it, or set XDG_RUNTIME_DIR"
                )

    def _start(self) -> None:
        program = find_program()
        if program is None:
            raise BusError(
                f"the local bus needs one of the programs {' and '.join(PROGRAMS)}: install the "
                "package valkey or redis (Debian and Ubuntu: apt install redis-server), or give "
                "the hub a RedisBus"
            )
        where = ("--unixsocket", str(self.path), "--dir", str(self.directory))
        # The group is the server's own: Ctrl-C is for us.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WITH_US, "sh", program, *where, *_OPTIONS],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0,
        )
        log.info(
            "the local bus is %s (process %d) at %s",
            os.path.basename(program),
            self._process.pid,
            self.path,
            extra={"event": "local_bus_started", "pid": self._process.pid},
        )

    def close(self) -> None:
        """Ends the server, if it is ours, and gives the lock free."""
        self._end_process()
        if self._lock is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
        self.leave()  # last, so that no hub comes to a server that ends

    def descriptors(self) -> list[int]:
        """The locks', and the pipe's by which the server lives and dies with this process."""
        found = [each for each in (self._lock, self._seat) if each is not None]
        if self._process is not None and self._process.stdin is not None:
            found.append(self._process.stdin.fileno())
        return found

    def forget(self) -> None:
        """In the child of a fork: the server is the parent's, and so are lock and pipe.

        Where only the loop was closed, they stay: other hubs use the server.
        """
        if self._pid == os.getpid():
            return
        if self._process is not None:
            self._process.returncode = 0  # it is no child of ours, and nobody waits for it
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.leave()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # By its group, in which the shell still is, also where the server has ended. A server that
        # ends in good order would take away the socket that the next one has made meanwhile.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


class LocalBus(RedisBus):
    """A bus for the hubs of one machine: `Hub(bus="local")`.

    It needs redis-py (the extra `redis`), and one of the programs valkey-server and redis-server.
    Hubs of one name are one. The server has no port, and only this user can reach it.

    Args:
        name: of the application. None: the variable WSC_LOCAL_BUS, or else the path of the file
            whose code makes the hub.

    Raises:
        ImportError: redis-py is not installed.
        ConfigError: the name cannot be used.

    Thread-safety: as RedisBus.
    """

    one_machine = True

    def __init__(self, name: str | None = None) -> None:
        if name is None:
            name = default_name()
        elif type(name) is not str or not 0 < len(name) <= MOST_NAME:
            raise ConfigError(f"name must be 1 to {MOST_NAME} characters, not {shown(name)}")
        self._local = LocalServer(directory_of(name))
        super().__init__(f"unix://{self._local.path}")
        self._keeping: asyncio.Task[None] | None = None

    def offline_store(self) -> OfflineStore | None:
        """See `Bus.offline_store`: none, since the server has nothing on a disk."""
        return None

    def __repr__(self) -> str:
        return f"LocalBus({str(self._local.directory)!r})"

    async def open(self, handler: Handler, origin: str) -> None:
        """See `Bus.open`; starts the server where there is none.

        Args:
            handler, origin: see there.

        Raises:
            BusError: no server program is installed, or its server does not answer.
        """
        if self._keeping is not None and not self._keeping.done():
            raise BusError("this LocalBus is in use by another hub: each hub needs its own")
        try:
            await self._wait_for_server()
            await super().open(handler, origin)
        except BaseException:
            self._local.close()
            raise
        self._keeping = asyncio.ensure_future(self._local.keep())

    async def _wait_for_server(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while True:
            self._local.look()
            is_on = self._local.enter()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                try:
                    sock.connect(str(self._local.path))
                except OSError as error:
                    if loop.time() >= deadline:
                        raise BusError(
                            f"nobody listens at {self._local.path}: {error.strerror}"
                        ) from None
                else:
                    if is_on:
                        return
                    if loop.time() >= deadline:
                        raise BusError(f"the server at {self._local.path} ends and does not go")
            await asyncio.sleep(_OFTEN)

    async def close(self) -> None:
        """See `Bus.close`; a server that this hub has started ends, once the others have left."""
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        try:
            await super().close()
            await self._leave()
        finally:
            self._local.close()

    async def _leave(self) -> None:
        """Leaves the bus; where the server is ours, once the others have left or time is up."""
        self._local.leave()
        loop = asyncio.get_running_loop()
        until = loop.time() + _LAST
        # No event tells of the locks of other processes.
        while not self._local.can_end() and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_OFTEN)

    def forget(self) -> None:
        """See `Bus.forget`; the server stays with the process that has started it."""
        self._keeping = None
        super().forget()
        self._local.forget()

    def descriptors(self) -> list[int]:
        """See `Bus.descriptors`; with those of the server's lock and pipe."""
        return [*super().descriptors(), *self._local.descriptors()]


def bus_of(name: str) -> LocalBus:
    """The bus that a name stands for, as `Hub` takes it.

    Raises:
        ConfigError: it stands for none.
    """
    if name != "local":
        raise ConfigError(f'bus must be a Bus or "local", not {shown(name)}')
    return LocalBus()
