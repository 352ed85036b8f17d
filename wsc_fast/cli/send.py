"""`wsc-fast send URL`: sends messages to a hub, and prints its answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsc_fast.cli import options
from wsc_fast.cli.output import Failure, UsageFailure, reason_of, unwrapped

if TYPE_CHECKING:
    from wsc_fast.cli.peer import Peer

_STDIN = "-"

_EPILOG = unwrapped(
    """
    Examples:

    wsc-fast send ws://localhost:8080/ws "hello" --wait 1

    wsc-fast send localhost:8080/ws --json '{"type": "join_room", "room": "lobby", "name": "ann"}'

    jq -c '.[]' messages.json | wsc-fast send localhost:8080/ws -

    Exit codes: 0 the hub has read all, and as many answers came as were waited for; 1 otherwise;
    2 wrong usage; 130 Ctrl-C.
    """
)


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command(epilog=_EPILOG)(send)


def send(
    url: options.URL,
    messages: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Messages; - for each line of standard input."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="A file as one message; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each message has to be JSON; answers are JSON lines.")
    ] = False,
    binary: Annotated[
        bool, typer.Option("--binary", "-b", help="Binary messages instead of text.")
    ] = False,
    wait: Annotated[
        int, typer.Option("--wait", "-w", min=0, help="Prints so many answers before it ends.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=1e7, help="Seconds to wait for these answers.")
    ] = 10.0,
    header: options.HEADERS = None,
    token: options.TOKEN = None,
    origin: options.ORIGIN = None,
    subprotocol: options.SUBPROTOCOL = None,
    insecure: options.INSECURE = False,
    cafile: options.CAFILE = None,
) -> None:
    """Sends messages to a hub: arguments, files, or lines of standard input."""
    peer = options.peer_of(url, header, token, origin, subprotocol, insecure, cafile)
    words = list(messages or ())
    if not words and not file:
        if sys.stdin.isatty():
            raise UsageFailure("there is nothing to send, expected TEXT, --file or - for lines")
        words = [_STDIN]
    source = _Source(words, list(file or ()), as_json, binary)
    asyncio.run(_send(peer, source, wait, timeout, as_json))


async def _send(peer: Peer, source: _Source, wait: int, timeout: float, as_json: bool) -> None:
    from wsc_fast.cli.client import Connection, connected
    from wsc_fast.cli.tail import Enough, Printer

    printer = Printer(as_json=as_json, count=wait)
    enough = asyncio.Event()

    def take(message: str | bytes) -> None:
        try:
            printer.take(message)
        except Enough:
            enough.set()

    async def work(connection: Connection) -> None:
        await connection.opened()
        async for message in source.messages():
            await connection.send(message)
        if wait:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), timeout)

    async with connected(Connection(peer, take)) as connection:
        await _first_of(work(connection), connection.over())
        await connection.close()
    if printer.printed < wait:
        raise Failure(f"{printer.printed} of {wait} answers came in {timeout:g} s")


async def _first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Waits until one of them has ended; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


class _Source:
    """The messages to send, one after the other.

    Raises:
        UsageFailure: one is not what it has to be, or a file cannot be read.
    """

    def __init__(self, words: list[str], files: list[Path], as_json: bool, binary: bool) -> None:
        self._as_json, self._binary = as_json, binary
        # Before anything is sent.
        self._ready = [
            word if word == _STDIN else self._message(os.fsencode(word), "TEXT") for word in words
        ]
        self._ready += [self._message(_content(file), str(file)) for file in files]
        self._lines = [word == _STDIN for word in words] + [False] * len(files)

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Each message."""
        for message, is_stdin in zip(self._ready, self._lines, strict=True):
            if not is_stdin:
                yield message
                continue
            number = 0
            async for line in _lines():
                number += 1
                yield self._message(line, f"line {number}")

    def _message(self, content: bytes, called: str) -> str | bytes:
        import msgspec

        if self._as_json:
            try:
                msgspec.json.decode(content)
            except (msgspec.DecodeError, RecursionError) as error:
                raise UsageFailure(f"{called} is no JSON: {error}") from None
        if self._binary:
            return content
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise UsageFailure(f"{called} is no UTF-8 text: send it with --binary") from None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageFailure(f"{file} cannot be read: {reason_of(error)}") from None


async def _lines() -> AsyncIterator[bytes]:
    """The lines of standard input as they come, without their ends."""
    rest = b""
    while chunk := await _read_some():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


async def _read_some() -> bytes:
    """The next bytes of standard input. A pipe or a terminal is waited for on the loop."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    try:
        loop.add_reader(0, there.set)
    except OSError:  # a file always has something
        return os.read(0, 1 << 16)
    try:
        await there.wait()
    finally:
        loop.remove_reader(0)
    return os.read(0, 1 << 16)
