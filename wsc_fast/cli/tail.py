"""`wsc-fast tail URL`: prints what a hub sends."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from wsc_fast.cli import options
from wsc_fast.cli.output import console, harmless, say, unwrapped, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from wsc_fast.cli.peer import Peer

# Bytes of a binary message that are shown.
_SHOWN = 64

_EPILOG = unwrapped(
    """
    Examples:

    wsc-fast tail ws://localhost:8080/ws

    wsc-fast tail wss://example.org/ws --token $TOKEN --reconnect

    wsc-fast tail localhost:8080/ws --json --count 10 | jq .data

    Exit codes: 0 as many as wanted, or closed with 1000 or 1001; 1 refused, or ended otherwise; 2
    wrong usage; 130 Ctrl-C.
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command(epilog=_EPILOG)(tail)


def tail(
    url: options.URL,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Ends after so many messages.")
    ] = None,
    reconnect: Annotated[
        bool,
        typer.Option(
            "--reconnect", help="Connects again when the connection ends, after a random delay."
        ),
    ] = False,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="The time before each message.")
    ] = False,
    header: options.HEADERS = None,
    token: options.TOKEN = None,
    origin: options.ORIGIN = None,
    subprotocol: options.SUBPROTOCOL = None,
    insecure: options.INSECURE = False,
    cafile: options.CAFILE = None,
    as_json: options.AS_JSON = False,
) -> None:
    """Prints each message of a hub: text, JSON in colours on a terminal, binary as hex."""
    peer = options.peer_of(url, header, token, origin, subprotocol, insecure, cafile)
    printer = Printer(as_json=as_json, timestamps=timestamps, count=count)
    asyncio.run(_tail(peer, printer, reconnect))


async def _tail(peer: Peer, printer: Printer, reconnect: bool) -> None:
    from wsc_fast.cli.client import Connection, connected
    from wsc_fast.cli.peer import ending

    def opened(connection: Connection) -> None:
        agreed = f", subprotocol {connection.subprotocol}" if connection.subprotocol else ""
        say(f"connected to {peer.url}{agreed}")

    def again(said: str, delay: float) -> None:
        say(f"{said}; again in {delay:.1f} s", "yellow")

    connection = Connection(peer, printer.take, opened, again if reconnect else None)
    with suppress(Enough):
        async with connected(connection):
            say(ending(await connection.over(), connection.reason))


class Enough(Exception):
    """As many messages as wanted have come."""


class Printer:
    """Prints messages to standard output.

    Args:
        as_json: one JSON object a message: time, type (text, json, binary) and data; of binary
            messages the data is Base64.
        timestamps: the time before each message.
        count: raises Enough after so many; None never.

    Attributes:
        printed: how many there were.
    """

    def __init__(self, *, as_json: bool, timestamps: bool = False, count: int | None) -> None:
        self.printed: int = 0
        self._as_json, self._timestamps, self._count = as_json, timestamps, count
        self._terminal = sys.stdout.isatty()
        self._console: Console | None = console() if self._terminal and not as_json else None

    def take(self, message: str | bytes) -> None:
        """Prints one message.

        Raises:
            Enough: it was the last one that is wanted.
        """
        if self._count is not None and self.printed >= self._count:
            return
        if self._as_json:
            write_json(_described(message))
        else:
            self._print(message)
        self.printed += 1
        if self.printed == self._count:
            raise Enough

    def _print(self, message: str | bytes) -> None:
        if self._timestamps:
            sys.stdout.write(f"{datetime.now():%H:%M:%S.%f}"[:-3] + " ")
        if isinstance(message, bytes):
            sys.stdout.write(_hex(message) + "\n")
        elif self._console is None:
            sys.stdout.write(message + "\n")
        else:
            sys.stdout.flush()
            _print_text(self._console, message)
        sys.stdout.flush()


def _print_text(terminal: Console, message: str) -> None:
    """On a terminal: JSON objects and lists in colours, other text without control characters."""
    from rich.json import JSON
    from rich.text import Text

    if message.lstrip()[:1] in ("{", "["):
        try:
            shown = JSON(message).text
            if harmless(shown.plain) != shown.plain:
                shown = JSON(message, ensure_ascii=True).text
            terminal.print(shown)
            return
        except (ValueError, RecursionError):
            pass
    terminal.print(Text(harmless(message)))


def _hex(message: bytes) -> str:
    more = " ..." if len(message) > _SHOWN else ""
    return f"binary, {len(message)} bytes: {message[:_SHOWN].hex(' ')}{more}"


def _described(message: str | bytes) -> dict[str, Any]:
    described: dict[str, Any] = {"time": datetime.fromtimestamp(time.time(), UTC)}
    if isinstance(message, bytes):
        return described | {"type": "binary", "data": message}
    try:
        return described | {"type": "json", "data": msgspec.json.decode(message)}
    except (msgspec.DecodeError, RecursionError):
        return described | {"type": "text", "data": message}
