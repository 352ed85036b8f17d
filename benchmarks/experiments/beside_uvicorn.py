"""Instructions per message on uvicorn's port, beside the hub's own port.

    python benchmarks/experiments/beside_uvicorn.py [ROUNDS]

Counts scenarios of the gate (benchmarks/gate) in interleaved runs; prints the least of each.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from benchmarks.gate import run, scenarios
from wsc_fast import Hub

NAMES = (
    "broadcast: walk",
    "broadcast: flush",
    "room of 10",
    "send_to_client",
    "echo",
    "echo, 16 at once",
)


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The application beside the hub, which nobody asks."""


class HubOnUvicorn(Hub):
    """A hub that `start` serves on uvicorn's port."""

    async def start(self, *args: Any, **options: Any) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(nothing, ws=self.uvicorn(), lifespan="off", log_config=None)
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._listening])

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    async def stop(self, timeout: float = 5.0) -> None:
        await self._server.shutdown(sockets=[self._listening])


def compare(rounds: int) -> None:
    counted: dict[str, list[run.Figures]] = {"own": [], "uvicorn": []}
    for _ in range(rounds):
        counted["own"].append(run.count(NAMES))
        counted["uvicorn"].append(run.count(NAMES, program=Path(__file__)))
    for name in counted["own"][0]:
        own, other = (min(each[name] for each in runs) for runs in counted.values())
        print(f"{name:20} own {own:10,.1f}  uvicorn {other:10,.1f}  {other / own - 1:+.2%}")


if __name__ == "__main__":
    if len(sys.argv) > 2:  # under valgrind: the library, then names of scenarios
        del scenarios.CONFIG["handshake_timeout"]
        scenarios.Hub = HubOnUvicorn
        uvloop.run(scenarios.main())
    else:
        compare(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
