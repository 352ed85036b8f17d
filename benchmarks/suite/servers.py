"""The servers that are measured, and how each is started."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass

from .machine import BUILD, HERE, ROOT


@dataclass(frozen=True)
class Server:
    name: str
    title: str
    packages: tuple[str, ...] = ()  # that it imports, as they are called on PyPI
    lacks: tuple[str, ...] = ()  # of "json", "tls", "deflate"
    event: str = ""  # what the protocol puts around a message, @ for the message
    program: str = ""  # of peers/; its own unless said otherwise
    options: tuple[str, ...] = ()  # of the program

    def command(self, mode: str, port: int, *options: str) -> list[str]:
        if self.name == "c":
            return [str(BUILD / "limit_server"), mode, str(port), *options]
        program = HERE / "peers" / f"{self.program or self.name}_server.py"
        return [sys.executable, str(program), mode, str(port), *self.options, *options]

    def wrapped(self, before: str, after: str) -> str:
        """A message of the load generator, between these two, as this server wants it."""
        text = f"{before}@{after}"
        if not self.event:
            return text
        return self.event.replace("@", text if before else f'"{text}"')


SERVERS = {
    server.name: server
    for server in (
        Server("c", "C limit", lacks=("json", "deflate")),
        Server("wsc", "wsc_fast", ("wsc_fast", "picows", "uvloop")),
        Server(
            "wsc-loop",
            'wsc_fast, transport="loop"',
            ("wsc_fast", "uvloop"),
            program="wsc",
            options=("--transport", "loop"),
        ),
        Server(
            "wsc-picows",
            'wsc_fast, transport="picows"',
            ("wsc_fast", "picows", "uvloop"),
            program="wsc",
            options=("--transport", "picows"),
        ),
        Server(
            "wsc-picows-server",
            "wsc_fast on a picows server",
            ("wsc_fast", "picows", "uvloop"),
            program="wsc",
            options=("--transport", "picows-server"),
        ),
        Server(
            "wsc-uvicorn",
            "wsc_fast on uvicorn's port",
            ("wsc_fast", "uvicorn", "uvloop"),
            program="wsc",
            options=("--transport", "uvicorn"),
        ),
        Server(
            "wsc-lists",
            "wsc_fast, on_messages_received",
            ("wsc_fast", "picows", "uvloop"),
            program="wsc",
            options=("--lists",),
        ),
        Server(
            "wsc-auth",
            "wsc_fast, a plain authenticate",
            ("wsc_fast", "picows", "uvloop"),
            program="wsc",
            options=("--authenticate",),
        ),
        Server("socketify", "socketify", ("socketify",)),
        Server("picows", "picows", ("picows", "uvloop"), lacks=("deflate",)),
        Server("websockets", "websockets", ("websockets", "uvloop")),
        Server("aiohttp", "aiohttp", ("aiohttp", "uvloop")),
        Server(
            "fastapi",
            "FastAPI on uvicorn",
            ("fastapi", "starlette", "uvicorn", "httptools", "uvloop"),
        ),
        Server("granian", "granian (RSGI)", ("granian", "uvloop"), lacks=("deflate",)),
        Server(
            "socketio",
            "python-socketio on uvicorn",
            ("python-socketio", "uvicorn", "httptools", "uvloop"),
            lacks=("deflate",),
            event='42["m",@]',
        ),
    )
}
_MODULES = {"python-socketio": "socketio"}


def load_options(server: Server) -> list[str]:
    """The options by which the load generator speaks this server's protocol."""
    if not server.event:
        return []
    path = "/socket.io/?EIO=4&transport=websocket"
    return ["--path", path, "--hello", "40", "--ready", "40{"]


def missing(server: Server, environment: dict[str, str]) -> str:
    """Why the server's packages cannot be imported, or an empty text."""
    if not server.packages:
        return ""
    modules = ", ".join(_MODULES.get(package, package) for package in server.packages)
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=BUILD,  # not the checkout: its sources alone would do for half of the import
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return ""
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "import failed"


def available(wanted: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The environment that the servers need, and of those that cannot run why."""
    environment, skipped = dict(os.environ), {}
    for name in sorted(wanted):
        failure = missing(SERVERS[name], environment)
        if failure and "wsc_fast" in SERVERS[name].packages:
            # A build in place is not on the path of a script in benchmarks/peers.
            environment["PYTHONPATH"] = str(ROOT)
            failure = missing(SERVERS[name], environment)
        if failure:
            skipped[name] = failure
    return environment, skipped


def versions(names: set[str], environment: dict[str, str]) -> dict[str, str]:
    """The versions of the packages that these servers import, or use where they are installed."""
    imported = {package for name in names for package in SERVERS[name].packages}
    packages = sorted(imported | {"aiofastnet", "python-engineio"})
    code = (
        "import sys; from importlib.metadata import distributions\n"
        "found = {each.name.lower(): each.version for each in distributions()}\n"
        "for name in sys.argv[1:]: print(found.get(name.lower(), 'none'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *packages], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found = dict(zip(packages, done.stdout.split(), strict=True))
    return {name: version for name, version in found.items() if version != "none"}
