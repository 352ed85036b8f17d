"""Several hubs on one Redis for a test: a server that is started, or one that is there already."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from wsc_fast import Hub, RedisBus
from wsc_fast.testing.proxy import BlockingProxy, FaultProxy
from wsc_fast.testing.stage import Stage
from wsc_fast.testing.threads import LoopThread

PROGRAMS = ("valkey-server", "redis-server")
_PATIENCE = 10.0


class RedisServer:
    """A Redis or Valkey in a directory of its own, without a port and without a file.

    Attributes:
        path: of its Unix socket.

    Raises:
        FileNotFoundError: neither program is installed.
        TimeoutError: it does not listen within 10 s.

    Thread-safety: any thread.
    """

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise FileNotFoundError(f"none of {', '.join(PROGRAMS)} is installed")
        self._directory = tempfile.TemporaryDirectory(prefix="wsc_fast-")
        self.path: str = str(Path(self._directory.name, "redis.sock"))
        options = ("--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [program, *options, "--dir", self._directory.name],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(self.path)
                except OSError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"nobody listens at {self.path}") from None
                else:
                    return
            time.sleep(0.01)

    def close(self) -> None:
        """Ends the server, and removes its directory."""
        self._process.kill()
        self._process.wait()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class HubCluster:
    """Makes the hubs of one test, all on one bus: the fixture `hub_cluster`.

    Args:
        stage: where the hubs run.
        factory: makes a hub, called with `bus=...`.
        options: of `Hub.start`.
        target: the Redis: the path of its Unix socket, or a host and a port; and "/DATABASE" or "".

    Attributes:
        bus: the proxy before the Redis, for faults. It runs once there is a hub.
        hubs: that were made.

    Thread-safety: the thread of the loop.
    """

    def __init__(
        self,
        stage: Stage,
        factory: Callable[..., Hub],
        options: dict[str, Any],
        target: tuple[str, int, str],
    ) -> None:
        host, port, self._database = target
        self.bus: FaultProxy = FaultProxy(host, port)
        self.hubs: list[Hub] = []
        self._stage = stage
        self._factory = factory
        self._options = options
        # So that tests at the same time, and one after another, do not hear each other.
        self._prefix = f"t{uuid.uuid4().hex[:12]}:"

    async def __call__(self, count: int = 2) -> list[Hub]:
        """Makes hubs, and starts them.

        Args:
            count: how many.

        Returns:
            the new ones.
        """
        if not self.bus.port:
            await self.bus.open()
            self._stage.at_end(self.bus.close)
        url = f"redis://127.0.0.1:{self.bus.port}{self._database}"
        made = [self._factory(bus=RedisBus(url, prefix=self._prefix)) for _ in range(count)]
        for hub in made:
            self._stage.plan(hub, self._options)
        await self._stage.start()
        self.hubs += made
        return made


class BlockingCluster:
    """A HubCluster for tests without a loop: its hubs run in a thread.

    Args:
        cluster: on the loop of the thread.
        thread: that is.

    Thread-safety: any thread but that one.
    """

    def __init__(self, cluster: HubCluster, thread: LoopThread) -> None:
        self._cluster = cluster
        self._thread = thread
        self.bus: BlockingProxy = BlockingProxy(cluster.bus, thread)

    @property
    def hubs(self) -> list[Hub]:
        """See HubCluster: those that were made."""
        return list(self._cluster.hubs)

    def __call__(self, count: int = 2) -> list[Hub]:
        """Makes hubs, and starts them.

        Args:
            count: how many.

        Returns:
            the new ones.
        """
        return self._thread.call(self._cluster(count))


def target_of(url: str) -> tuple[str, int, str]:
    """Host, port and database of a URL such as redis://127.0.0.1:6379/3.

    Raises:
        ValueError: it is another URL, or has a user or a password.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis" or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"the URL must be redis://HOST:PORT/DATABASE, not {url!r}")
    return parts.hostname, parts.port or 6379, parts.path
