"""`wsc-fast serve module:hub`."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsc_fast.cli.output import Failure, UsageFailure, reason_of, unwrapped

if TYPE_CHECKING:
    from wsc_fast import Hub
    from wsc_fast.cli.worker import Place

_EPILOG = unwrapped(
    """
    Examples:

    wsc-fast serve app:hub --reload

    wsc-fast serve app:make_hub --host 0.0.0.0 --certfile cert.pem --keyfile key.pem --config
    wsc.toml

    wsc-fast serve app:hub --workers 4
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command(epilog=_EPILOG)(serve)


def serve(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:NAME",
            help="A Hub, or a function that returns one. The module may be in this folder.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; :: for all, IPv4 and IPv6.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")
    ] = 8080,
    path: Annotated[str, typer.Option(help="Path of the WebSocket endpoint.")] = "/ws",
    certfile: Annotated[
        Path | None, typer.Option(help="Certificate chain (PEM): serves wss://.")
    ] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings (.toml, .yaml, .json), instead of those of the code; WSC_ variables go "
            "before them. 'wsc-fast check-config FILE' shows the result."
        ),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for sending clients away at the end (drain_period)."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="The least that is logged, instead of the setting log_level."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(
            help="Log lines as text, or one JSON object each, instead of the setting log_format."
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload", help="Starts again when a .py file changes; clients are closed with 1012."
        ),
    ] = False,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Folder to watch instead of this one; may be repeated."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Serves with so many processes on the port; SIGHUP replaces them, one by one.",
        ),
    ] = None,
    no_bus: Annotated[
        bool,
        typer.Option(
            "--no-bus",
            help="Leaves a hub without a bus as it is: each worker reaches its own clients only.",
        ),
    ] = False,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,
    sockets: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serves a hub of your module until Ctrl-C or SIGTERM."""
    from wsc_fast.cli import logs

    if reload and workers is not None:
        raise UsageFailure("--workers and --reload exclude each other: SIGHUP replaces the workers")
    if no_bus and workers is None and worker is None:
        raise UsageFailure("--no-bus is for --workers")
    if reload or workers is not None:
        # So that each client hears that it is a restart.
        drain = 0.5 if drain is None else drain
        options: dict[str, Any] = {
            "path": path,
            "certfile": certfile,
            "keyfile": keyfile,
            "config": config,
            "drain": drain,
            "log-level": log_level,
            "log-format": log_format,
        }
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        words = ["serve", target, *words]
        from wsc_fast.cli.held_port import HeldPort

        if workers is not None:
            from wsc_fast.cli.workers import Workers

            words += ["--no-bus"] * (no_bus or workers == 1)
            name = f"{Path.cwd()}/{target}"
            with closing(HeldPort(host, port, workers)) as held:
                raise typer.Exit(Workers(workers, words, held, drain, name).run())
        from wsc_fast.cli.reload import Supervisor

        files = [] if config is None else [config]
        folders = reload_dir or [Path.cwd()]
        with closing(HeldPort(host, port, 1)) as held:
            raise typer.Exit(Supervisor(words, held, folders, files, drain).run())
    from wsc_fast.cli.target import load_hub

    place = None if worker is None else _place(worker)
    with failing_in_one_line():
        # Before the module is imported, which may start programs: none of them gets the sockets.
        given = _given(sockets)
    hub = load_hub(target)
    with failing_in_one_line():
        _configure(hub, config, drain)
        # The module has been imported: handlers that it has set come first.
        logs.configure(
            log_level or hub.config.log_level,
            log_format or hub.config.log_format,
            None if place is None else place.number,
        )
        if place is not None:
            place.prepare(hub, choose_bus=not no_bus)
        hub.run(
            host,
            port,
            sock=given,
            path=path,
            certfile=None if certfile is None else str(certfile),
            keyfile=None if keyfile is None else str(keyfile),
            reuse_port=place is not None,
        )


def _place(text: str) -> Place:
    from wsc_fast.cli.worker import Place

    return Place(text)


def _given(sockets: str | None) -> list[socket.socket] | None:
    """The sockets that the watching process, or the service manager, has handed over, if any."""
    from wsc_fast.listen.sockets import are_handed_over, handed_over, socket_of

    if sockets is not None:
        return [socket_of(int(descriptor)) for descriptor in sockets.split(",")]
    return handed_over() if are_handed_over() else None


def _configure(hub: Hub, file: Path | None, drain: float | None) -> None:
    import msgspec

    from wsc_fast import HubConfig, RetryConfig
    from wsc_fast.config.sources import combined

    if file is not None:
        hub.set_config(combined(HubConfig, file).config)
        hub.set_retry_config(combined(RetryConfig, file).config)
    if drain is not None:
        hub.set_config(msgspec.structs.replace(hub.config, drain_period=drain))


@contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Has errors of the hub be Failures: an address in use, a certificate, a setting."""
    from wsc_fast import WSCError

    try:
        yield
    except WSCError as error:
        raise Failure(reason_of(error)) from None
    except SystemExit as error:
        if isinstance(error.code, str):
            raise Failure(error.code.removeprefix("wsc_fast: ")) from None
        raise
