"""The client in JavaScript, built by npm in a copy under build/, and node processes that use it.

It skips where node, npm or npm's registry are not there.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.node_peers import BUILD, LONGEST_LINE, NPM_OPTIONS, node, own_websocket
from tests.clients.support import PATIENCE, missing
from wsc_fast.testing import eventually

HERE = Path(__file__).parent
CLIENTS = HERE.parent.parent / "clients"
# Of npm: it installs 60 MB, and builds.
NPM_TIMEOUT = 120.0
MADE = ("node_modules", "dist", "build")


def npm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs npm in a folder."""
    found = node()
    if found is None or not found[1]:
        missing("node and npm are not installed")
    binary, command = found
    path = os.pathsep.join([str(Path(binary).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=NPM_TIMEOUT,
    )


def sources() -> list[Path]:
    """The files of clients/ that npm needs."""
    folder = CLIENTS / "javascript"
    inside = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in MADE)
    return sorted([CLIENTS / "cases.json", *(path for path in inside if path.is_file())])


@functools.cache
def built() -> Path:
    """The folder of the client, with node_modules and dist/."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(f"{path.relative_to(CLIENTS)}\0".encode() + path.read_bytes() + b"\0")
    # A directory for each state of the sources, which appears when it is complete.
    place = BUILD / f"javascript-{digest.hexdigest()[:16]}"
    if not place.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            _build(Path(scratch) / "made", place)
    return place / "javascript"


def _build(made: Path, place: Path) -> None:
    for path in sources():
        target = made / path.relative_to(CLIENTS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    installed = npm(made / "javascript", "ci", *NPM_OPTIONS)
    if installed.returncode:
        faults = [line for line in installed.stderr.split("\n") if "error" in line]
        # npm's registry is not required, as PyPI's is.
        pytest.skip(f"npm cannot install what the client is built with: {' '.join(faults[:2])}")
    result = npm(made / "javascript", "run", "build")
    assert result.returncode == 0, result.stdout + result.stderr
    try:
        made.rename(place)
    except OSError:
        # Another run was faster.
        if not place.exists():
            raise


class Script:
    """A node process with one client at a time.

    Attributes:
        events: all that it has told, in order: name and values.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[tuple[Any, ...]] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.events.append(tuple(json.loads(line)))

    async def tell(self, command: str, *values: Any) -> None:
        """Gives it a command, see javascript_client.mjs."""
        assert self.process.stdin is not None
        packed = [
            base64.b64encode(each).decode() if isinstance(each, bytes) else each for each in values
        ]
        self.process.stdin.write(json.dumps([command, *packed]).encode() + b"\n")
        await self.process.stdin.drain()

    def all(self, name: str) -> list[tuple[Any, ...]]:
        """The values of all events of this name."""
        return [event[1:] for event in self.events if event[0] == name]

    def states(self) -> list[str]:
        return [state["state"] for (state,) in self.all("state")]

    async def until(self, name: str, *values: Any, count: int = 1) -> None:
        """Returns once it has told of so many such events."""
        await self.reaches(lambda: self.all(name).count(values) >= count)

    async def until_state(self, state: str, count: int = 1) -> None:
        """Returns once it has told so often of this state."""
        await self.reaches(lambda: self.states().count(state) >= count)

    async def reaches(self, condition: Callable[[], object]) -> None:
        """Returns once its events make a condition hold; shows the last of them if they do not."""
        try:
            await eventually(condition, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}; the last events are {self.events[-20:]}") from None

    async def end(self) -> None:
        # At the end of its input it exits, whatever it does.
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), PATIENCE)
            await self._reading
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise


@asynccontextmanager
async def script() -> AsyncIterator[Script]:
    """Runs a node process for clients."""
    folder = built()
    found = node()
    assert found is not None
    lacking = own_websocket(found[0])
    process = await asyncio.create_subprocess_exec(
        found[0],
        str(HERE / "javascript_client.mjs"),
        (folder / "dist" / "index.js").as_uri(),
        str(folder / "package.json") if lacking else "",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=LONGEST_LINE,
    )
    running = Script(process)
    try:
        yield running
    finally:
        await running.end()
    assert process.returncode == 0
