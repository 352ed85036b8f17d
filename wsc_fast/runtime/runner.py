"""`Hub.run`: a loop of its own, the signals of the process, and the way to a graceful end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import FrameType
from typing import Any

from wsc_fast.errors import BusError, ConfigError, HubStateError, ListenError, OfflineStoreError
from wsc_fast.log import log
from wsc_fast.runtime.process import (
    OpenFiles,
    OwnLog,
    SettledObjects,
    SignalHandlers,
    handlers_of_application,
    keep_freed_memory,
)


@dataclass(frozen=True)
class Served:
    """The things that the runner needs of a hub.

    Attributes:
        start: `Hub.start`.
        stop: `Hub.stop`.
        stopped: returns once the hub has stopped, whoever stopped it.
        drain: sends the clients away first, where the settings say so.
        abort: ends all connections at once.
        reload_certificate: `Hub.reload_certificate`.
        open_files: how many open files the hub may need.
        own_log: its lines on standard error, where there is no other place for them.
    """

    start: Callable[..., Coroutine[Any, Any, None]]
    stop: Callable[[], Coroutine[Any, Any, None]]
    stopped: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]]
    abort: Callable[[], None]
    reload_certificate: Callable[[], None]
    open_files: Callable[[], int]
    own_log: Callable[[], OwnLog]


class Runner:
    """Runs one hub, once.

    Args:
        served: of the hub.

    Thread-safety: signals are handled only where `run` is called in the main thread.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._open_files = OpenFiles()
        self._signals: SignalHandlers | None = None
        # The handlers that the application had set before `run`, and what one of them has raised
        # to end the process.
        self._leaving: BaseException | None = None
        self._former: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}

    def run(self, host: object, port: int, **options: Any) -> None:
        """Serves until a signal or somebody else ends it; the arguments are those of `start`.

        Raises:
            SystemExit: the address cannot be listened on, or the bus or the offline store does not
                open; its text says why in one line. Or a signal handler of the application's own
                has raised it.
            HubStateError: a loop runs in this thread already.
        """
        import uvloop

        if asyncio._get_running_loop() is not None:
            raise HubStateError("run blocks the running loop: use `await hub.start(...)` in it")
        keep_freed_memory()
        self._former = handlers_of_application()
        try:
            with (
                self._served.own_log(),
                self._open_files,
                SettledObjects(),
                SignalHandlers({signal.SIGPIPE: signal.SIG_IGN}),
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                self.allow_files()
                runner.run(self._serve(host, port, **options))
            if self._leaving is not None:
                raise self._leaving
        except ListenError as error:
            raise SystemExit(f"wsc_fast: {error.strerror}") from None
        except (BusError, OfflineStoreError) as error:
            raise SystemExit(f"wsc_fast: {error}") from None

    def allow_files(self) -> None:
        """Raises the limit of open files to what the hub may need by its present settings."""
        self._open_files.raise_to(self._served.open_files())

    def give_signals_back(self) -> None:
        """This is the child of a fork: what is for this process is not for the hub."""
        if self._signals is not None:
            self._signals.give_back()

    async def _serve(
        self, host: object, port: int, *, certfile: str | None = None, **options: Any
    ) -> None:
        served = self._served
        loop = asyncio.get_running_loop()
        # A task of its own, so that a signal can end it: the offline store may take its time.
        starting = loop.create_task(served.start(host, port, certfile=certfile, **options))
        stops: list[asyncio.Task[None]] = []

        def ask() -> None:
            if not starting.done():
                if not starting.cancelling():  # what it closes is closed once
                    starting.cancel()
            elif stops:
                served.abort()
                stops.append(loop.create_task(served.stop()))
            else:
                stops.append(loop.create_task(leave()))

        async def leave() -> None:
            try:
                await served.drain()
            finally:
                await served.stop()

        calls = {signal.SIGINT: ask, signal.SIGTERM: ask}
        if certfile is not None:
            calls[signal.SIGHUP] = self._reload_certificate

        def handle(number: int, _: object) -> None:
            loop.call_soon_threadsafe(act, signal.Signals(number))

        def act(number: signal.Signals) -> None:
            calls[number]()
            if number in self._former:
                self._call_former(number)

        with SignalHandlers(dict.fromkeys(calls, handle)) as self._signals:
            try:
                await starting
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling() or not starting.cancelling():
                    raise  # a startup callback may have raised it, for one
                return  # `ask` has cancelled it
            try:
                # stop() may be called from anywhere, and ends the serving too.
                await served.stopped()
            finally:
                await served.stop()
                if stops:
                    await asyncio.wait(stops)

    def _call_former(self, number: signal.Signals) -> None:
        """Calls the application's own handler; `sys.exit` in it is for after the graceful end."""
        try:
            self._former[number](number, None)
        except (SystemExit, KeyboardInterrupt) as error:
            self._leaving = error
        except Exception as error:
            log.error(
                "the application's handler of %s raised",
                number.name,
                exc_info=error,
                extra={"event": "signal_handler_error"},
            )

    def _reload_certificate(self) -> None:
        try:
            self._served.reload_certificate()
        except (HubStateError, ConfigError) as error:
            log.error(
                "SIGHUP: the certificate in use stays: %s",
                error,
                extra={"event": "certificate_not_reloaded", "error": str(error)},
            )
