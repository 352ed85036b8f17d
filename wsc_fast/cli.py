"""The command line, `wsc-fast`. Needs the extra `cli` (typer, rich)."""

from __future__ import annotations

import sys

try:
    import typer
except ImportError:
    typer = None  # type: ignore[assignment]


def main() -> None:
    """Runs the command line; ends the process."""
    if typer is None:
        sys.exit("wsc-fast needs the extra 'cli': pip install 'wsc_fast[cli]'")
    _app()()


def _app() -> typer.Typer:
    app = typer.Typer(help="A WebSocket hub for Python servers.", no_args_is_help=True)

    @app.callback()
    def options() -> None:
        pass

    @app.command()
    def demo(
        host: str = typer.Option("127.0.0.1", help="Address to listen on."),
        port: int = typer.Option(8080, help="Port to listen on; 0 chooses a free one."),
    ) -> None:
        """Serves the room chat with its web page."""
        from wsc_fast.demo import main as run_demo

        run_demo(host, port)

    @app.command()
    def version() -> None:
        """Prints the version, and the picows it was built for."""
        from wsc_fast import __version__
        from wsc_fast._core import PICOWS_BUILT_FOR

        typer.echo(f"wsc_fast {__version__}, built for picows {PICOWS_BUILT_FOR}")

    return app
