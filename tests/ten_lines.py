"""Serves the ten lines of the README with the wsc_fast that is installed, and talks to them.

    python tests/ten_lines.py [README.md]

It needs the package and nothing else: releases run it against each wheel, in an environment that
has no tools of ours. The lines get a free port in the place of 8080.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from wsc_fast.testing import TEXT, Frame, RawClient

README = Path(__file__).parent.parent / "README.md"
PATIENCE = 30.0


@dataclass
class Served:
    """A hub as RawClient sees it."""

    port: int


def lines_of(readme: Path, port: int) -> str:
    """The first program of the README, on another port."""
    found = re.search(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    assert found is not None, f"{readme} has no program"
    assert "8080" in found[1]
    return found[1].replace("8080", str(port))


def free_port() -> int:
    """As in tests/ports.py, which is not here in a release."""
    while True:
        with socket.socket() as sock:
            port = random.randrange(11_000, 32_000)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


async def connect(server: subprocess.Popen[bytes], port: int) -> RawClient:
    """A client, once the server listens."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await RawClient.open(Served(port))
        except ConnectionRefusedError:
            assert server.poll() is None, f"the server ended with {server.returncode}"
            assert time.monotonic() < end, "the server does not listen"
            await asyncio.sleep(0.02)


async def talk(server: subprocess.Popen[bytes], port: int) -> None:
    """One client hears what the other one says."""
    ann, bo = await connect(server, port), await connect(server, port)
    with ann, bo:
        await ann.send(TEXT, b"from ann")
        assert await bo.recv() == Frame(TEXT, b"from ann")


def main(readme: Path) -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", lines_of(readme, port)]) as server:
        try:
            asyncio.run(talk(server, port))
            server.send_signal(signal.SIGINT)
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
    print("the ten lines were served and answered")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else README)
