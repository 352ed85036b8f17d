"""`wsc-fast check-config [FILE]`: the settings as they hold, and the source of each."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsc_fast.cli.output import Failure, console, harmless, say, unwrapped, write_json

if TYPE_CHECKING:
    from wsc_fast.config.sources import Combined

_EPILOG = unwrapped(
    """
    Examples:

    wsc-fast check-config wsc.toml --changed

    WSC_MAX_ROOMS=50 wsc-fast check-config --json

    Exit codes: 0 the settings can work, 1 they cannot.
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command("check-config", epilog=_EPILOG)(check_config)


def check_config(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="A .toml, .yaml, .yml or .json file. Without it: the environment.",
        ),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only settings that differ from their defaults.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead.")] = False,
) -> None:
    """Shows the effective settings, and where each comes from: default, file or environment."""
    from wsc_fast import ACKConfig, ConfigError, HubConfig, RetryConfig
    from wsc_fast.config.sources import combined

    classes: dict[str, Any] = {"hub": HubConfig, "retry": RetryConfig, "ack": ACKConfig}
    try:
        found = {table: combined(cls, file) for table, cls in classes.items()}
    except ConfigError as error:
        raise Failure(str(error)) from None
    _tell_of_misspelt(classes.values())
    rows = {table: _rows(each, changed) for table, each in found.items()}
    if as_json:
        write_json(rows)
    else:
        _print(rows)


def _rows(found: Combined[Any], changed: bool) -> dict[str, dict[str, Any]]:
    """The settings of a class by name: value, default, source and place."""
    default = type(found.config)()
    rows = {}
    for name, origin in found.origins.items():
        value, usual = getattr(found.config, name), getattr(default, name)
        if value != usual or not changed:
            rows[name] = {
                "value": value,
                "default": usual,
                "source": origin.source,
                "place": origin.place,
            }
    return rows


def _print(rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "source", box=SIMPLE_HEAD, pad_edge=False)
    for kind, settings in rows.items():
        for name, row in settings.items():
            style = "dim" if row["source"] == "default" else "bold"
            cells = (f"{kind}.{name}", _shown(row["value"]), row["place"] or row["source"])
            table.add_row(*(Text(harmless(cell), style=style) for cell in cells))
    console().print(table if table.row_count else "Every setting has its default.")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value) or "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _tell_of_misspelt(classes: Any) -> None:
    """Variables that begin with WSC_ may be somebody else's, so that it is no error."""
    from wsc_fast.config.sources import variables_of

    known = variables_of(*classes)
    for variable in sorted(os.environ):
        if variable.startswith("WSC_") and variable not in known:
            near = difflib.get_close_matches(variable, known, 1, 0.8)
            if near:
                say(f"{variable} is no setting: is it {near[0]}?", "yellow")
