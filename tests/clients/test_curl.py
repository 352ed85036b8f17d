"""The curl tool: it prints what a hub sends. test_clients.py has the other tests of libcurl.

Skipped without a curl of 8.11 or newer, WSC_REQUIRE_CLIENTS or not: Debian 12 has none, and what
counts is libcurl.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess

import pytest
import trustme

from tests.clients.support import PATIENCE
from tests.support import only_client, tls_options
from wsc_fast import Client, Hub, HubConfig
from wsc_fast.testing import eventually, running, uri


@pytest.fixture
def curl() -> str:
    """The tool, if it is one with WebSocket (from 8.11 it is built so)."""
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    result = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    version, protocols = result.stdout.split("\n")[0], result.stdout.partition("Protocols:")[2]
    if "wss" not in protocols.split("\n")[0].split():
        pytest.skip(f"{' '.join(version.split()[:2])} is without WebSocket")
    return found


@pytest.mark.parametrize("tls", [False, True])
async def test_the_tool_prints_what_the_hub_sends(
    curl: str, any_loop: str, tls: bool, server_tls: ssl.SSLContext, authority: trustme.CA
) -> None:
    hub = Hub(HubConfig(subprotocols=("lines",)))
    sent: list[str | bytes] = ["first 🎈\n", "", b"\0binary\xff", bytes(500_000), "last\n"]
    expected = b"".join(m.encode() if isinstance(m, str) else m for m in sent)

    @hub.on_client_connected
    def greet(client: Client) -> None:
        for message in sent:
            client.send(message)

    with authority.cert_pem.tempfile() as trusted:
        async with running(hub, **tls_options(server_tls if tls else None)):
            process = await asyncio.create_subprocess_exec(
                *(curl, "--silent", "--show-error", "--no-buffer", "--noproxy", "*"),
                *("--cacert", trusted, "--header", "Sec-WebSocket-Protocol: lines"),
                uri(hub, tls=tls),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                limit=1 << 20,
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(PATIENCE):
                    assert await process.stdout.readexactly(len(expected)) == expected
                assert only_client(hub).subprotocol == "lines"
            finally:
                # It does not answer a close, so that its end is ours to bring about.
                process.terminate()
                await process.communicate()
            await eventually(lambda: hub.connections == 0)
        assert hub.get_stats().error_count == 0
