"""The hub's process as this one sees it: commands go in, its log comes out and to the model."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from trials.soak.model import Model

decode = msgspec.json.decode


class HubProcess:
    """server.py in a process of its own; its log goes to the model.

    Attributes:
        port: of the hub, once `listening` is set.
        stopped: set once it has ended its calls.
        final: what was done and what is left, once it has ended.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.process: Any = None
        self.port = 0
        self.listening = asyncio.Event()
        self.stopped = asyncio.Event()
        self.stats: asyncio.Queue[Any] = asyncio.Queue()
        self.final: dict[str, Any] = {}

    async def start(self, *options: str) -> None:
        """Starts it with these options of server.py."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trials.soak.server", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )

    async def follow(self) -> None:
        """Reads the log to its end."""
        async for text in self.process.stdout:
            line = decode(text)
            if line[0] == "listening":
                self.port = line[1]
                self.listening.set()
            elif line[0] == "stat":
                self.stats.put_nowait(line[1])
            elif line[0] == "stopped":
                self.stopped.set()
            elif line[0] == "end":
                self.final = line[1]
            else:
                try:
                    self.model.take(line)
                except KeyError as error:
                    self.model.violation(f"the log tells of {error} too early or late: {line}")

    async def complaints(self) -> None:
        """Nothing may come on stderr."""
        text = (await self.process.stderr.read()).decode()
        if text:
            self.model.violation(f"the server wrote to stderr:\n{text[:8_000]}")

    async def command(self, text: str) -> None:
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(text.encode() + b"\n")
            await self.process.stdin.drain()

    async def stat(self) -> dict[str, int]:
        """Counts of all that the hub and its process hold at this moment."""
        await self.command("stat")
        async with asyncio.timeout(120):
            return await self.stats.get()  # type: ignore[no-any-return]

    async def until(
        self, what: str, condition: Callable[[dict[str, int]], bool], seconds: float
    ) -> dict[str, int]:
        """Asks for the state again and again; a violation if `what` is not there in time."""
        deadline = time.monotonic() + seconds
        while True:
            stat = await self.stat()
            if condition(stat):
                return stat
            if time.monotonic() > deadline:
                self.model.violation(f"{what} did not come in {seconds} s: {stat}")
                return stat
            await asyncio.sleep(0.2)
