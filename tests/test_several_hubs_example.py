"""examples/several_hubs: three processes on one Redis, behind nginx, and a client that recovers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.aware import AWARE, Aware
from tests.browsers.programs import Program, needed, started
from tests.ports import free_port
from tests.redis_server import RedisServer
from wsc_fast.testing import TEXT, RawClient, eventually_async

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/several_hubs"
COMPOSE = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())
# nginx may be started by root, whose worker could not enter the folder of the test.
NGINX = """
pid @/pid;
daemon off;
"""
FOLDERS = "".join(
    f"    {name}_temp_path @/{name};\n"
    for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)


@contextmanager
def three_hubs(
    folder: Path, more: dict[str, str] | None = None
) -> Iterator[tuple[Program, list[int]]]:
    """The program on a Redis of its own, with its ports."""
    ports = [free_port() for _ in range(3)]
    with RedisServer(folder) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "BUS": server.url, **(more or {})}
        command = [sys.executable, str(EXAMPLE / "hub.py"), "--port", *map(str, ports)]
        with started(command, folder / "hubs.log", environment) as program:
            try:
                yield program, ports
            finally:
                if program.running():
                    program.process.send_signal(signal.SIGTERM)
                    program.process.wait(20)


async def connected(port: int, positions: dict[str, str] | None = None) -> Aware:
    """A client of a hub that may still be starting, which has said hello."""
    found: list[RawClient] = []

    async def opened() -> bool:
        try:
            found.append(await RawClient.open(SimpleNamespace(port=port), headers=AWARE))
        except (OSError, EOFError, AssertionError):
            return False
        return True

    await eventually_async(opened, timeout=20)
    client = Aware(found[0])
    await client.send_head({"hello": 1, "pos": positions or {}})
    return client


async def test_a_message_goes_over_and_a_client_recovers_on_the_other_hub(tmp_path: Path) -> None:
    with three_hubs(tmp_path) as (program, (one, two, three)):
        a = await connected(one)
        b = await connected(two)
        assert (await a.recv())[0]["first"] is True
        assert (await b.recv())[0]["first"] is True
        await a.raw.send(TEXT, b"\nhello")
        assert await a.texts(1) == await b.texts(1) == [f"{one}: hello".encode()]
        a.close()
        await b.raw.send(TEXT, b"\nwhile a is away")
        assert await b.texts(1) == [f"{two}: while a is away".encode()]
        back = await connected(three, a.positions)
        assert await back.texts(1) == [f"{two}: while a is away".encode()]
        head, _ = await back.recv()
        assert (head["recovered"], head["missed"]) == (True, 1)
        back.close()
        b.close()
        program.process.send_signal(signal.SIGINT)  # as Ctrl-C, which the program passes on
        assert program.process.wait(20) == 0, program.said()
        assert "Traceback" not in program.said()


def configuration(folder: Path, port: int, hubs: list[int]) -> str:
    """nginx.conf on ports of the test's."""
    text = (EXAMPLE / "nginx.conf").read_text()
    changes = {"listen 8080": f"listen 127.0.0.1:{port}", "http {\n": "http {\n" + FOLDERS}
    changes |= {f"hub-{n}:8080": f"127.0.0.1:{hub}" for n, hub in enumerate(hubs, 1)}
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    user = "user root;" if os.geteuid() == 0 else ""
    return (user + NGINX + text).replace("@", str(folder))


async def test_a_client_behind_nginx_recovers_when_its_hub_is_killed(tmp_path: Path) -> None:
    nginx, port = needed("nginx"), free_port()
    with three_hubs(tmp_path, {"WSC_TRUSTED_PROXIES": "127.0.0.1"}) as (program, hubs):
        for hub in hubs:
            (await connected(hub)).close()  # both are there
        file = tmp_path / "nginx.conf"
        file.write_text(configuration(tmp_path, port, hubs))
        command = [nginx, "-e", "stderr", "-p", str(tmp_path), "-c", str(file)]
        with started(command, tmp_path / "nginx.log", dict(os.environ)):
            clients = [await connected(port) for _ in range(2)]
            for client in clients:
                assert "recovered" in (await client.recv())[0]
            await clients[0].raw.send(TEXT, b"\nhello")
            (said,) = await clients[0].texts(1)
            assert await clients[1].texts(1) == [said]
            killed = hubs.index(int(said.split(b":")[0]))
            os.kill(child_of(program, hubs[killed]), signal.SIGKILL)
            await clients[1].raw.send(TEXT, b"\none hub is gone")
            (after,) = await clients[1].texts(1)
            other, _, text = after.partition(b": ")
            assert (int(other) in hubs, int(other) != hubs[killed]) == (True, True)
            assert text == b"one hub is gone"
            back = await connected(port, clients[0].positions)
            assert await back.texts(1) == [after]
            assert (await back.recv())[0]["recovered"] is True
            for client in (*clients, back):
                client.close()


def child_of(program: Program, port: int) -> int:
    """The process of the hub with this port."""
    children = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
    (found,) = [
        int(pid)
        for pid in children.read_text().split()
        if Path(f"/proc/{pid}/cmdline").read_text().endswith(f"\0{port}\0")
    ]
    return found


def test_compose_takes_the_file() -> None:
    compose = [shutil.which("docker") or "false", "compose"]
    if subprocess.run([*compose, "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose here")
    command = [*compose, "-f", str(EXAMPLE / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["hub-1", "hub-2", "hub-3"])
def test_the_composed_hubs_are_those_that_nginx_knows(name: str) -> None:
    service = COMPOSE["services"][name]
    port = service["entrypoint"][-1]
    assert f"server {name}:{port} " in (EXAMPLE / "nginx.conf").read_text()
    assert service["entrypoint"][1] == "/example/hub.py"
    assert service["command"] == ["--name", name]
    assert service["volumes"] == [".:/example:ro"]
    assert "bus" in COMPOSE["services"]
    assert service["environment"]["BUS"].startswith("redis://bus:6379/")
    # Else the server refuses hubs that are not on its own machine.
    assert "--protected-mode no" in COMPOSE["services"]["bus"]["command"]
    assert "ports" not in COMPOSE["services"]["bus"]
    (network,) = COMPOSE["networks"]["inside"]["ipam"]["config"]
    assert service["environment"]["WSC_TRUSTED_PROXIES"] == network["subnet"]
    assert (EXAMPLE / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
