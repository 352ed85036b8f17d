"""`serve --workers N`: several processes on one port, and the one that looks after them.

That process imports nothing of the application. It holds the listening sockets (held_port.py),
starts the workers, starts a worker again that has died, and passes on the signals that it gets. A
worker is the command itself with the hidden options `--worker` and `--sockets`, in a process of its
own (reloaded.py). It has two ties to us:

- the pipe of reloaded.py, by whose end it notices that we are gone, also after kill -9;
- a socket, over which it says `ready` once it listens, and asks for the server of `bus="local"`.
  We hold that server, so that it outlives each worker, and the history outlives a rolling reload.

SIGHUP replaces the workers one after another: the next one listens before the old one drains, so
that somebody always takes new connections.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process, create_subprocess_exec
from collections.abc import Sequence

from wsc_fast.bus.local import VARIABLE, LocalServer, directory_of
from wsc_fast.cli.held_port import HeldPort
from wsc_fast.cli.output import reason_of, say
from wsc_fast.errors import BusError

# Seconds that a hub may take to stop behind its drain; then it is killed.
PATIENCE = 15.0
# Seconds before a worker that has died is started again: from the first pause, doubling, to the
# last. A worker that has lived for SETTLED seconds begins with the first one again.
FIRST_PAUSE, LAST_PAUSE, SETTLED = 0.1, 10.0, 10.0
# So many workers in a row may die before they listen; then we give up.
MOST_FAILED_STARTS = 5


class Workers:
    """Runs `wsc-fast` with some arguments in several processes.

    Args:
        count: of the workers.
        arguments: of the command, without --workers, --host and --port.
        port: to listen on, with sockets for so many processes.
        drain: seconds that a hub takes for sending its clients away.
        name: of the application, for its local bus.
    """

    def __init__(
        self,
        count: int,
        arguments: Sequence[str],
        port: HeldPort,
        drain: float,
        name: str,
    ) -> None:
        self._count = count
        self._arguments = list(arguments)
        self._port = port
        self._patience = drain + PATIENCE
        self._slots: list[_Slot] = []
        self._code = 0
        self._failed_starts = 0
        self._name = os.environ.get(VARIABLE) or name
        self._local: LocalServer | None = None
        self._keeping: asyncio.Task[None] | None = None

    def run(self) -> int:
        """Until a signal ends it, or the workers cannot start.

        Returns:
            int: the exit code.
        """
        return asyncio.run(self._main())

    async def _main(self) -> int:
        self._ending = asyncio.Event()
        self._wants_reload = asyncio.Event()
        loop = asyncio.get_running_loop()
        # Nobody writes to it, and nobody else has the end for writing: it ends with this process.
        self._tie, our_end = os.pipe()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._wants_reload.set)
        tasks: list[asyncio.Task[None]] = []
        try:
            self._slots = [_Slot(self, number) for number in range(1, self._count + 1)]
            if await self._start():
                tasks = [asyncio.create_task(slot.keep()) for slot in self._slots]
                tasks.append(asyncio.create_task(self._reload_when_wanted()))
                await self._ending.wait()
        finally:
            self._ending.set()
            self._port.close()  # first, so that the workers' own copies are the last ones
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await asyncio.gather(*(slot.end() for slot in self._slots))
            if self._keeping is not None:
                self._keeping.cancel()
                await asyncio.wait([self._keeping])
            if self._local is not None:
                self._local.close()
            for each in (self._tie, our_end):
                os.close(each)
        return self._code

    async def _start(self) -> bool:
        """Starts the first worker, and then the others: a fault of all of them is told once."""
        first, others = self._slots[:1], self._slots[1:]
        for slots in (first, others):
            await asyncio.gather(*(slot.start() for slot in slots))
            for slot in slots:
                if not self._ending.is_set() and not slot.is_ready():
                    self._code = max(slot.exit_code() or 1, 1)
                    return False
            if slots is first:
                self._port.listen()
        if not self._ending.is_set():
            at = self._port.place
            say(f"{self._count} workers serve {at} (process {os.getpid()}); SIGHUP replaces them")
        return not self._ending.is_set()

    def _end(self) -> None:
        """A signal: the first one ends gracefully, a second one at once."""
        self._ending.set()
        for slot in self._slots:
            slot.terminate()

    # --- what the slots need ---

    @property
    def is_ending(self) -> bool:
        """Whether no worker is to be started any more."""
        return self._ending.is_set()

    @property
    def patience(self) -> float:
        """Seconds that a worker may take to end."""
        return self._patience

    def words(self, number: int, report: int) -> list[str]:
        """The command of a worker."""
        sockets = ",".join(map(str, self.sockets(number)))
        at = [f"--sockets={sockets}", f"--worker={number}:{self._count}:{report}"]
        reloaded = ["-m", "wsc_fast.cli.reloaded", str(self._tie), str(self._patience)]
        return [sys.executable, *reloaded, *self._arguments, *at]

    @property
    def tie(self) -> int:
        """The descriptor by whose end a worker notices that we are gone."""
        return self._tie

    def sockets(self, number: int) -> list[int]:
        """The descriptors on which a worker listens."""
        return self._port.descriptors(number - 1)

    def steer(self) -> None:
        """A worker listens, or has died: new connections go to those that listen."""
        if not self._ending.is_set():
            self._port.steer([slot.number - 1 for slot in self._slots if slot.is_ready()])

    def environment(self) -> dict[str, str]:
        """The environment of a worker."""
        return {**os.environ, VARIABLE: self._name}

    def heard_start(self, listens: bool) -> None:
        """A worker listens, or has died before it did."""
        self._failed_starts = 0 if listens else self._failed_starts + 1
        if self._failed_starts >= MOST_FAILED_STARTS and not self._ending.is_set():
            say(f"{self._failed_starts} workers in a row died at their start: giving up", "red")
            self._code = 1
            self._end()

    def hold_local_server(self) -> None:
        """A worker needs the server of `bus="local"`, which is to be ours.

        Where it cannot be started, the worker finds out, and says why.
        """
        if self._local is None:
            self._local = LocalServer(directory_of(self._name))
            try:
                self._local.look()
            except BusError:
                self._local.close()
                self._local = None
            else:
                self._keeping = asyncio.create_task(self._local.keep())

    # --- the rolling reload ---

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._wants_reload.wait()
            self._wants_reload.clear()
            say("replacing the workers, one after another", "yellow")
            for slot in self._slots:
                if not await slot.replace():
                    say(
                        f"worker {slot.number} could not be replaced: it and those after it serve "
                        "on as they are",
                        "red",
                    )
                    break
            else:
                say("all workers have been replaced", "yellow")


class _Worker:
    """One process.

    Attributes:
        process: it.
        is_ready: it listens, or has listened.
        since: when it began to.
        settled: set once it listens, or has ended.
    """

    def __init__(self, process: Process, report: socket.socket, workers: Workers) -> None:
        self.process = process
        self.is_ready = False
        self.since = asyncio.get_running_loop().time()
        self.settled = asyncio.Event()
        self._asked = False
        self._report = report
        self._workers = workers
        self._listening = asyncio.create_task(self._listen())
        self._ended = asyncio.create_task(self._wait())

    async def _listen(self) -> None:
        """Reads the lines that the worker sends."""
        loop = asyncio.get_running_loop()
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._report)
        except OSError:
            return
        try:
            while line := await reader.readline():
                if line == b"bus\n":
                    self._workers.hold_local_server()
                    writer.write(b"!")
                elif line == b"ready\n":
                    self.is_ready, self.since = True, loop.time()
                    self.settled.set()
        except ConnectionError:
            pass  # it was killed
        finally:
            writer.close()

    async def _wait(self) -> int:
        code = await self.process.wait()
        # A process that the worker has forked may still hold its end of the socket.
        self._listening.cancel()
        self.settled.set()
        return code

    async def ended(self) -> int:
        """Waits for its end; the exit code."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Asks it to end, once more to end at once."""
        self._asked = True
        if self.process.returncode is None:
            self.process.terminate()

    async def leave(self, patience: float, number: int) -> None:
        """Has it end: gracefully within this time, else killed."""
        if not self._asked:
            self.terminate()
        try:
            await asyncio.wait_for(self.ended(), patience)
        except TimeoutError:
            say(f"worker {number} has not stopped in {patience:g} s: killed", "red")
            self.process.kill()
            await self.ended()


class _Slot:
    """The place of one worker, which has a number.

    Attributes:
        number: from 1 on.
    """

    def __init__(self, workers: Workers, number: int) -> None:
        self.number = number
        self._workers = workers
        self._worker: _Worker | None = None
        self._others: set[_Worker] = set()  # which begin, or drain
        self._changing = asyncio.Lock()

    def is_ready(self) -> bool:
        """Whether its worker listens, and lives."""
        worker = self._worker
        return worker is not None and worker.is_ready and worker.process.returncode is None

    def exit_code(self) -> int | None:
        """The exit code of its worker, if it has ended."""
        return None if self._worker is None else self._worker.process.returncode

    async def start(self) -> bool:
        """Starts its worker; returns once that listens, or has ended.

        Returns:
            bool: whether the system has let it begin; if not, the former one stays.
        """
        worker = await self._begun()
        if worker is None:
            return False
        self._worker = worker
        self._workers.steer()
        return True

    async def _begun(self) -> _Worker | None:
        try:
            ours, process = await self._process()
        except OSError as error:
            say(f"the system starts no worker {self.number}: {reason_of(error)}", "red")
            return None
        worker = _Worker(process, ours, self._workers)
        self._others.add(worker)
        if self._workers.is_ending:
            worker.terminate()
        await worker.settled.wait()
        self._others.discard(worker)
        return worker

    async def _process(self) -> tuple[socket.socket, Process]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # A group of its own, so that Ctrl-C reaches it once, by way of this process.
                return ours, await create_subprocess_exec(
                    *self._workers.words(self.number, theirs.fileno()),
                    env=self._workers.environment(),
                    process_group=0,
                    pass_fds=[
                        theirs.fileno(),
                        self._workers.tie,
                        *self._workers.sockets(self.number),
                    ],
                )
            except BaseException:
                ours.close()
                raise

    async def keep(self) -> None:
        """Starts the worker again whenever it has died."""
        pause = FIRST_PAUSE
        while True:
            worker = self._worker
            assert worker is not None
            code = await worker.ended()
            async with self._changing:
                if worker is not self._worker:
                    continue  # it was replaced
                self._workers.steer()
                if worker.is_ready and self._lived(worker) >= SETTLED:
                    pause = FIRST_PAUSE
                say(
                    f"worker {self.number} (process {worker.process.pid}) {_end_of(code)}: "
                    f"starting again in {pause:g} s",
                    "yellow",
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
                if await self.start():
                    self._workers.heard_start(self.is_ready())

    def _lived(self, worker: _Worker) -> float:
        return asyncio.get_running_loop().time() - worker.since

    async def replace(self) -> bool:
        """Starts another worker, and has the old one drain once that listens."""
        async with self._changing:
            old = self._worker
            assert old is not None
            new = await self._begun()
            if new is None or not new.is_ready:
                return False
            self._worker = new
            self._others.add(old)
            self._workers.steer()  # the old one may be one that has died
        await old.leave(self._workers.patience, self.number)
        self._others.discard(old)
        return True

    def _all(self) -> list[_Worker]:
        return [*self._others, *([] if self._worker is None else [self._worker])]

    def terminate(self) -> None:
        """Asks its processes to end, once more to end at once."""
        for worker in self._all():
            worker.terminate()

    async def end(self) -> None:
        """Has its processes end."""
        patience = self._workers.patience
        await asyncio.gather(*(each.leave(patience, self.number) for each in self._all()))


def _end_of(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"has ended with exit code {code}"
