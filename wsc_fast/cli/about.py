"""`wsc-fast demo` and `wsc-fast version`."""

from __future__ import annotations

import platform
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command(epilog="Example: wsc-fast demo --port 9000")(demo)
    app.command(epilog="Example: wsc-fast version --json")(version)


def demo(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")
    ] = 8080,
    keep: Annotated[
        str | None,
        typer.Option(help="A file for what is said: a kill of the server loses nothing of it."),
    ] = None,
) -> None:
    """Serves the room chat with its web page."""
    from wsc_fast.cli.serve import failing_in_one_line
    from wsc_fast.demo import main as run_demo

    with failing_in_one_line():
        run_demo(host, port, keep)


def version(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Prints the version, and the picows it was built for."""
    from wsc_fast import __version__
    from wsc_fast._core import PICOWS_BUILT_FOR
    from wsc_fast.cli.output import write_json

    if as_json:
        python = platform.python_version()
        write_json({"wsc_fast": __version__, "picows": PICOWS_BUILT_FOR, "python": python})
    else:
        print(f"wsc_fast {__version__}, built for picows {PICOWS_BUILT_FOR}")
