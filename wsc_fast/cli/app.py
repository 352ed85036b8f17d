"""The commands put together, and one way for all of them to fail."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from wsc_fast.cli import about, bench, check_config, send, serve, tail, top
from wsc_fast.cli.output import Failure, complain, reason_of, unwrapped

_EPILOG = unwrapped(
    """
    Each command has its own --help. The manual:
    https://github.com/wsc-fast/wsc_fast/blob/main/docs/command-line.md
    """
)


def _version(wanted: bool) -> None:
    if wanted:
        about.version()
        raise typer.Exit


def app() -> typer.Typer:
    """All commands of `wsc-fast`."""
    made = typer.Typer(
        help="A WebSocket hub for Python servers: serve it, talk to it, load it, watch it.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @made.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_version, is_eager=True, help="Prints the version, and ends."
            ),
        ] = False,
    ) -> None:
        pass

    for module in (serve, about, check_config, tail, send, bench, top):
        module.register(made)
    return made


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: None means those of the process.

    Returns:
        int: the exit code.
    """
    try:
        code = app()(arguments, standalone_mode=False, prog_name="wsc-fast")
        sys.stdout.flush()
    except Failure as failure:
        complain(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Python would complain once more when it flushes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            complain(f"the output cannot be written: {reason_of(error)}")
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _wrong_usage(error)
    return code if isinstance(code, int) else 0


def _wrong_usage(error: Exception) -> int:
    """An error of typer's own, which has the text and the exit code in click's way."""
    text = error.format_message()  # type: ignore[attr-defined]
    if text:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "wsc-fast"
        complain(f"{text.rstrip('.')}. See '{command} --help'")
    return int(getattr(error, "exit_code", 2))
