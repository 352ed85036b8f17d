"""The sockets that a hub binds: families and addresses, names, and addresses not of here."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import websockets

import wsc_fast.listen.sockets as sockets_module
from tests.support import IPV6, only_client
from wsc_fast import Hub, ListenError
from wsc_fast.listen.sockets import _Place, bound_sockets
from wsc_fast.testing import running

NOWHERE = "192.0.2.1"  # RFC 5737: of no machine


def uri(host: str, port: int) -> str:
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"


async def addresses_served(hub: Hub, *hosts: str) -> list[str]:
    """The address that the hub sees of a client that comes to each of the hosts."""
    found = []
    for host in hosts:
        async with websockets.connect(uri(host, hub.port)):
            found.append(only_client(hub).remote_address)
    return found


@IPV6
@pytest.mark.parametrize(
    "host",
    [["127.0.0.1", "::1"], ["::1", "127.0.0.1"], None, "", "localhost", ["0.0.0.0", "::"], "::"],
    ids=repr,
)
async def test_a_free_port_is_one_for_all_families(
    any_loop: str, host: str | Sequence[str] | None
) -> None:
    hub = Hub()
    async with running(hub, host=host):
        served = await addresses_served(hub, "127.0.0.1", "::1") if host != "localhost" else []
        assert served in (["127.0.0.1", "::1"], [])
        assert await addresses_served(hub, "127.0.0.1") == ["127.0.0.1"]


@IPV6
@pytest.mark.parametrize(
    ("host", "ipv4"), [(["::", "127.0.0.2"], False), (["::", "0.0.0.0"], True), ("::", True)]
)
async def test_all_of_ipv6_takes_ipv4_too_unless_an_ipv4_address_is_named(
    any_loop: str, host: str | list[str], ipv4: bool
) -> None:
    hub = Hub()
    async with running(hub, host=host):
        assert await addresses_served(hub, "::1") == ["::1"]
        if ipv4:
            assert await addresses_served(hub, "127.0.0.1") == ["127.0.0.1"]
        else:
            with pytest.raises(ConnectionRefusedError):
                await addresses_served(hub, "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [["127.0.0.1"] * 2, ["localhost", "127.0.0.1"], ["127.0.0.1", "localhost", "127.0.0.2"]],
    ids=repr,
)
async def test_an_address_that_is_named_in_two_ways_is_bound_once(
    any_loop: str, host: list[str]
) -> None:
    hub = Hub()
    async with running(hub, host=host):
        assert await addresses_served(hub, "127.0.0.1") == ["127.0.0.1"]


@pytest.mark.parametrize(
    "host", [NOWHERE, [NOWHERE], ["127.0.0.1", NOWHERE], [NOWHERE, "127.0.0.1"]], ids=repr
)
async def test_an_address_of_another_machine_is_an_error_also_beside_one_of_ours(
    any_loop: str, host: str | list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    hub = Hub()
    with pytest.raises(ListenError, match="not one of this machine") as raised:
        await hub.start(host, port)
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert hub.loop is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    async with running(hub):
        pass


def naming(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> None:
    """Has names stand for addresses."""
    resolve = sockets_module._places

    async def places(host: str | None) -> list[_Place]:
        if host is None or host not in names:
            return await resolve(host)
        found = [place for address in names[host] for place in await resolve(address)]
        return [place._replace(host=host, literal=False) for place in found]

    monkeypatch.setattr(sockets_module, "_places", places)


@pytest.mark.parametrize("addresses", [["127.0.0.1", NOWHERE], [NOWHERE, "127.0.0.1"]], ids=repr)
async def test_of_the_addresses_of_a_name_those_of_here_are_enough(
    any_loop: str,
    addresses: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    naming(monkeypatch, here=addresses, elsewhere=[NOWHERE])
    hub = Hub()
    async with running(hub, host="here"):
        assert await addresses_served(hub, "127.0.0.1") == ["127.0.0.1"]
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if "is not listened on" in line]
    assert line.startswith(f"{NOWHERE}, an address of here, ")
    for host in ("elsewhere", ["here", "elsewhere"], ["here", NOWHERE]):
        with pytest.raises(ListenError, match="not one of this machine"):
            await hub.start(host, 0)


async def test_an_address_of_a_name_that_somebody_else_has_is_an_error(
    any_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    naming(monkeypatch, here=["127.0.0.1", "127.0.0.2"])
    hub = Hub()
    with (
        socket.create_server(("127.0.0.2", 0)) as taken,
        pytest.raises(ListenError, match="in use"),
    ):
        await hub.start("here", taken.getsockname()[1])
    assert hub.loop is None


async def test_a_port_that_is_not_free_everywhere_is_not_the_one_that_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bind = sockets_module._bound
    asked: list[tuple[str, int]] = []

    def bound(place: _Place, port: int, reuse_port: bool, has_ipv4: bool) -> socket.socket:
        asked.append((place.address[0], port))
        if len(asked) < 6 and place.address[0] == "127.0.0.2":
            raise OSError(errno.EADDRINUSE, "in use")
        return bind(place, port, reuse_port, has_ipv4)

    monkeypatch.setattr(sockets_module, "_bound", bound)
    sockets = await bound_sockets(["127.0.0.1", "127.0.0.2"], 0, False)
    ports = {sock.getsockname()[1] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert len(sockets) == 2
    assert len(ports) == 1
    assert [port for address, port in asked if address == "127.0.0.1"] == [0, 0, 0]
    # But one that was asked for is not replaced by another.
    asked.clear()
    with pytest.raises(OSError, match="in use"):
        await bound_sockets(["127.0.0.1", "127.0.0.2"], ports.pop(), False)
    assert len(asked) == 2


WITHOUT_IPV6 = """
import asyncio, sys
from tests.conftest import LOOPS
from wsc_fast import Hub

async def main():
    for host in ("localhost", None, "0.0.0.0", "127.0.0.1"):
        hub = Hub()
        await hub.start(host, 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()
        await hub.stop()
    print("served")

with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
    runner.run(main())
"""


def test_localhost_is_served_where_there_is_no_ipv6(any_loop: str, tmp_path: Path) -> None:
    # As in a container: ::1 is in /etc/hosts, and on no interface.
    (tmp_path / "hosts").write_text("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
    setup = (
        f"mount --bind {tmp_path / 'hosts'} /etc/hosts && ip link set lo up && "
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    )
    apart = ["unshare", "-n", "-m", "sh", "-c"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip")
    if subprocess.run([*apart, setup], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make namespaces")
    done = subprocess.run(
        [*apart, f'{setup} && exec "$0" -c "$1" "$2"', sys.executable, WITHOUT_IPV6, any_loop],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
