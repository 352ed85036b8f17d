"""The client in Python, in a process of its own (python_follower.py), as a scenario sees it."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from trials.clients.pages import PATIENCE, Page

# Most bytes of a line.
LINE = 1 << 26


class Follower:
    """The process, which takes orders."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._numbers = itertools.count()
        self._lock = asyncio.Lock()

    async def run(self, do: str, *args: Any) -> Any:
        """Has it do something, and returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        async with self._lock, asyncio.timeout(PATIENCE):
            order = {"number": next(self._numbers), "do": do, "args": args}
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            answer = {"number": -1}
            while answer["number"] != order["number"]:  # that of an order which was given up
                answer = json.loads(await self.process.stdout.readline() or b'{"error": "ended"}')
                if "error" in answer:
                    raise AssertionError(f"python: {answer['error']}")
        return answer.get("value")


class PythonPage(Page):
    """A client in Python."""

    async def follow(
        self, url: str, rooms: list[str], options: dict[str, Any], seed: int, life: float
    ) -> None:
        """See Page."""
        self.record = []
        await self._program.run("follow", url, rooms, options, seed, life)

    async def ask_each(self, seconds: float) -> None:
        """See Page."""
        await self._program.run("ask_each", seconds)

    async def look(self) -> list[list[Any]]:
        """See Page."""
        self.record += await self._program.run("look", len(self.record))
        return self.record

    async def keep_token(self) -> None:
        """See Page."""
        await self._program.run("keep_token")

    async def end(self) -> None:
        """See Page."""
        await self._program.run("end")


@asynccontextmanager
async def python_page(log: Path) -> AsyncIterator[PythonPage]:
    """Runs the program; its standard error goes into a file."""
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trials.clients.python_follower"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            limit=LINE,
            start_new_session=True,
        )
    try:
        yield PythonPage("python", Follower(process), process.pid)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
