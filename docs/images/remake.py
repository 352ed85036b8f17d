"""Makes the pictures of docs/command-line.md: `bench` and `top` in tmux, on a hub that runs.

`python docs/images/remake.py` writes bench.svg and top.svg beside this file.
"""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
WIDTH, HEIGHT = 100, 30
# An echo that refuses a few: one address has 250 connections at most.
HUB = """
import sys
from wsc_fast import Hub, HubConfig
hub = Hub(HubConfig(max_connections_per_address=250))
hub.enable_metrics("/metrics")

@hub.on_message_received
def echo(client, message):
    hub.send_to_client(client.id, message)

hub.run(port=int(sys.argv[1]))
"""


def main() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    hub = subprocess.Popen([sys.executable, "-c", HUB, str(port)])
    try:
        wait_for(lambda: answers(port))
        load = ["bench", f"ws://localhost:{port}/ws", "--clients", "200", "--rate", "2000", "-d"]
        watch = ["top", f"localhost:{port}"]
        with Screen("wsc-bench", *load, "40") as bench, Screen("wsc-top", *watch) as top:
            wait_for(lambda: "200 of 200" in bench.shown())
            refused = [sys.executable, "-m", "wsc_fast", *load, "3"]
            subprocess.run(refused, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_for(lambda: "16 of 40 s" in bench.shown())
            bench.draw("wsc-fast bench", HERE / "bench.svg")
            top.draw("wsc-fast top", HERE / "top.svg")
    finally:
        hub.terminate()
        hub.wait()


class Screen:
    """A command in a terminal of tmux."""

    def __init__(self, name: str, *words: str) -> None:
        self._name = name
        command = [sys.executable, "-m", "wsc_fast", *words]
        size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
        # A server of tmux's own for each, since only the first one has the environment of now.
        tmux(name, "new-session", "-d", *size, *command)

    def shown(self) -> str:
        """The screen as it is, with its colours."""
        return tmux(self._name, "capture-pane", "-p", "-e")

    def draw(self, title: str, file: Path) -> None:
        """Writes the screen as it is to an SVG file."""
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        console.print(Text.from_ansi(self.shown().rstrip()))
        file.write_text(console.export_svg(title=title))

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        tmux(self._name, "kill-server")


def tmux(server: str, *words: str) -> str:
    done = subprocess.run(["tmux", "-L", server, *words], capture_output=True, text=True)
    return done.stdout


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


if __name__ == "__main__":
    main()
