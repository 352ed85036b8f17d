"""Runs the programs of examples/ as a reader does, on free ports, and ends them as Ctrl-C does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.browsers.programs import Program, started
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Seconds for what takes a fraction of one on an idle machine.
PATIENCE = 60.0


class Example:
    """A running program of an example."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    @contextmanager
    def connect(
        self, query: str = "", path: str = "/ws", **options: Any
    ) -> Iterator[ClientConnection]:
        """A client, on a connection of its own."""
        options.setdefault("open_timeout", PATIENCE)
        with connect(f"ws://127.0.0.1:{self.port}{path}{query}", **options) as client:
            yield client

    def ask(self, path: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
        """Status and content of the answer to a GET, or to a POST with a body; JSON is decoded."""
        data = None if body is None else body.encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            answer = urllib.request.urlopen(request, timeout=PATIENCE)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode()
            is_json = (answer.headers["Content-Type"] or "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text

    def log(self) -> str:
        """All that it has written."""
        return self.program.log.read_text(errors="replace")

    def logs(self, part: str) -> None:
        """Waits until it has written this."""
        until(lambda: part in self.log(), f"{part!r} in the log", self.log)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self.program.process.send_signal(signal.SIGINT)
        return self.program.process.wait(PATIENCE)


def until(
    condition: Callable[[], Any], what: str, why: Callable[[], object] = lambda: "", /
) -> Any:
    """Asks again and again, since programs tell nobody; returns the first true answer."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never happened: {what}; {why()}"
        time.sleep(0.02)
    return found


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


@contextmanager
def example(
    name: str, folder: Path, *arguments: str, code: int = 0, **environment: str
) -> Iterator[Example]:
    """Starts a program of a copied folder, and asserts that Ctrl-C ends it without a traceback.

    Args:
        name: of the program, below examples/.
        folder: of the test, in which it runs: examples keep their files where they are started.
        arguments: beside `--port`.
        code: its exit code after Ctrl-C.
        environment: variables beside those of the test.
    """
    port = free_port()
    # A reader copies a folder: nothing else of examples/ is there.
    copied = Path(name).parent
    ignored = shutil.ignore_patterns("__pycache__", "*.db")
    shutil.copytree(EXAMPLES / copied, folder / copied, ignore=ignored, dirs_exist_ok=True)
    command = [sys.executable, str(folder / name), "--port", str(port), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment}
    log = folder / f"{name.replace('/', '-')}.log"
    with started(command, log, variables, cwd=folder) as program:
        running = Example(program, port)
        until(lambda: not program.running() or listens(port), "it listens", program.said)
        assert program.running(), program.said()
        yield running
        if program.running():
            assert running.interrupt() == code, running.log()
        assert "Traceback" not in running.log(), running.log()


def decoded(client: ClientConnection) -> Any:
    """The next message, which is JSON."""
    return json.loads(client.recv(timeout=PATIENCE))


def awaited(client: ClientConnection, fits: Callable[[Any], object]) -> Any:
    """The next message in JSON that fits; others before it are left out."""
    while True:
        message = decoded(client)
        if fits(message):
            return message


def closed_with(client: ClientConnection) -> tuple[list[str | bytes], int]:
    """All that comes until the close, and its code."""
    got: list[str | bytes] = []
    try:
        while True:
            got.append(client.recv(timeout=PATIENCE))
    except ConnectionClosed as closed:
        return got, closed.rcvd.code if closed.rcvd else 1006
