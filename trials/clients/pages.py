"""The programs that clients in JavaScript run in: Chromium, Firefox and node, each with page.js.

All have `run`, with which a scenario runs scripts in them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from tests.browsers.driver import browsing
from tests.clients.javascript import built
from tests.clients.node_peers import LONGEST_LINE, node, own_websocket

HERE = Path(__file__).parent
KINDS = "chromium", "firefox", "node"
# As people have it: Firefox makes a connection wait that follows one that failed.
AS_SHIPPED = {"network.websocket.delay-failed-reconnects": True}
# Seconds in which a program has to answer.
PATIENCE = 60.0


class Runs(Protocol):
    """A program that runs scripts."""

    async def run(self, code: str, *args: Any) -> Any:
        """Runs the body of an async function, and returns what it returns."""


class Page:
    """A client in one of these programs.

    Attributes:
        name: of the program.
        record: what the client has written down, as far as it was asked.
    """

    def __init__(self, name: str, program: Runs, process: int) -> None:
        self.name = name
        self.record: list[list[Any]] = []
        self._program = program
        self._process = process

    async def follow(
        self, url: str, rooms: list[str], options: dict[str, Any], seed: int, life: float
    ) -> None:
        """Has a new client connect, and join rooms.

        Args:
            url: of the hub.
            rooms: kept ones.
            options: of the client.
            seed: for its chance.
            life: seconds of a token at least; 0: there are no tokens.
        """
        self.record = []
        await self._program.run("follow(...args)", url, rooms, options, seed, life * 1000)

    async def ask_each(self, seconds: float) -> None:
        """Has the client ask a request each so many seconds; 0: no more."""
        await self._program.run("followed.askEach(args[0])", seconds * 1000)

    async def look(self) -> list[list[Any]]:
        """The record until now."""
        code = "return followed.record.slice(args[0])"
        self.record += await self._program.run(code, len(self.record))
        return self.record

    async def until(
        self, condition: Callable[[list[list[Any]]], bool], patience: float = PATIENCE
    ) -> bool:
        """Returns once the record is so, or after that time; whether it is so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while True:
                    if condition(await self.look()):
                        return True
                    await asyncio.sleep(0.05)
        return False

    async def keep_token(self) -> None:
        """Has the next tokens of the client last."""
        await self._program.run("followed.life = 3_600_000")

    async def end(self) -> None:
        """Has the client close, and returns once it is."""
        await self.ask_each(0)
        await self._program.run("followed.client.close()")

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Its processes stand still (SIGSTOP), as those of a laptop whose lid is closed."""
        os.killpg(self._process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process, signal.SIGCONT)


class _Node:
    """A node that takes scripts (node_page.mjs)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            answer = json.loads(line)
            asked = self._asked.pop(answer["number"])
            if not asked.done():  # nobody waits for it any more
                asked.set_result(answer)

    async def run(self, code: str, *args: Any) -> Any:
        number = next(self._numbers)
        answered = self._asked[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        order = {"number": number, "code": code, "args": args}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            answer = await answered
        if "error" in answer:
            raise AssertionError(f"node: {answer['error']}")
        return answer.get("value")


@asynccontextmanager
async def node_program() -> AsyncIterator[_Node]:
    """Runs a node that takes scripts."""
    found = node()
    assert found is not None
    process = await asyncio.create_subprocess_exec(
        found[0],
        str(HERE / "node_page.mjs"),
        (built() / "dist" / "index.js").as_uri(),
        str(built() / "package.json"),
        "" if own_websocket(found[0]) else "own",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=LONGEST_LINE,
        start_new_session=True,
    )
    running = _Node(process)
    try:
        yield running
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await running.reading


@asynccontextmanager
async def page(kind: str, *, as_shipped: bool = False) -> AsyncIterator[Page]:
    """Runs a program with page.js; skips, or fails, where it is not installed.

    Args:
        kind: one of KINDS.
        as_shipped: Firefox has its own delay of connections that follow one that failed.
    """
    source = (HERE / "page.js").read_text()
    if kind == "node":
        async with node_program() as program:
            await program.run(source)
            yield Page(kind, program, program.process.pid)
        return
    package = (built() / "dist" / "wsc-client.min.js").read_text()
    with browsing(kind, AS_SHIPPED if as_shipped else {}) as browser:
        await browser.run(f"{package}\nglobalThis.wsc = wsc;\n{source}")
        yield Page(kind, browser, browser.program.process.pid)
