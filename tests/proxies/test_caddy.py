"""A hub behind Caddy, configured as docs/operations/proxies.md says; skips where it is not there.

CI does not install Caddy. The questions of test_proxies.py to nginx and HAProxy are asked here in
short.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import websockets

from tests.ports import free_port
from tests.proxies.proxy import documented
from tests.test_pages import connected
from wsc_fast import Client, Hub, HubConfig
from wsc_fast.testing import eventually, running

CADDY = shutil.which("caddy")
pytestmark = pytest.mark.skipif(CADDY is None, reason="caddy is not installed")


@contextmanager
def caddy(folder: Path, port: int) -> Iterator[int]:
    """Runs Caddy before a hub, and yields its port."""
    own = free_port()
    changes = {"app.example {": f"http://127.0.0.1:{own} {{", "127.0.0.1:8080": f"127.0.0.1:{port}"}
    site = documented("caddy", changes)
    (folder / "Caddyfile").write_text("{\n    admin off\n}\n" + site)
    assert CADDY is not None
    with subprocess.Popen(
        [CADDY, "run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        cwd=folder,
        env={"HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            connected(own, 60).close()
            yield own
        finally:
            process.kill()


async def test_a_client_behind_caddy_is_heard_and_known(tmp_path: Path) -> None:
    hub = Hub(HubConfig(trusted_proxies=("127.0.0.1",), enable_compression=True))

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        client.send(f"{client.remote_address} {message!s}")

    async with running(hub):
        with caddy(tmp_path, hub.port) as port:
            # The origin of a page of the proxy's own, as a browser sends it.
            async with websockets.connect(
                f"ws://127.0.0.1:{port}/ws",
                origin=websockets.Origin(f"http://127.0.0.1:{port}"),
                local_addr=("127.0.0.2", 0),
                proxy=None,
            ) as ws:
                await ws.send("hello" * 100)
                assert await ws.recv() == "127.0.0.2 " + "hello" * 100
                (client,) = hub.iter_clients()
                client.disconnect(4000, "bye")
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await ws.recv()
                assert closed.value.rcvd is not None
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")
        await eventually(lambda: hub.connections == 0)
