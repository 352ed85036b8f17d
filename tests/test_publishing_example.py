"""The programs of examples/publishing: each publishes, and a client of the hub hears it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.acks import received
from tests.clients.node_peers import modules, node
from tests.clients.support import missing
from tests.ports import free_port
from tests.redis_server import RedisServer
from wsc_fast.bus.redis.commands import script
from wsc_fast.testing import RawClient, eventually_async

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/publishing"
SCRIPT = ROOT / "wsc_fast/bus/redis/publish.lua"


@contextmanager
def running(*command: str, **environment: str) -> Any:
    """A program of the example."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@asynccontextmanager
async def the_shop(folder: Path) -> AsyncIterator[tuple[RedisServer, RawClient]]:
    """A bus, the hub, and a client of the order 17."""
    with RedisServer(folder) as server:
        port = free_port()
        with running("hub.py", "--port", str(port), BUS=server.url):
            found: list[RawClient] = []

            async def connected() -> bool:
                try:
                    at = SimpleNamespace(port=port)
                    found.append(await RawClient.open(at, "/ws?order=17&user=ann"))
                except (OSError, EOFError, AssertionError):
                    return False
                return True

            await eventually_async(connected, timeout=20)
            yield server, found[0]
            found[0].close()


def post(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def run(*command: str | Path, **environment: str) -> str:
    """Runs a program of the example to its end; its output."""
    return subprocess.run(
        command,
        cwd=EXAMPLE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


async def asked(port: int, path: str) -> dict[str, Any]:
    """The answer to a POST, of a server that may still be starting."""
    answers: list[dict[str, Any]] = []

    async def answered() -> bool:
        try:
            answers.append(await asyncio.to_thread(post, f"http://127.0.0.1:{port}{path}"))
        except OSError:
            return False
        return True

    await eventually_async(answered, timeout=30)
    return answers[0]


@pytest.mark.parametrize("program", ["django_view.py", "flask_view.py"])
async def test_a_view_publishes(tmp_path: Path, program: str) -> None:
    async with the_shop(tmp_path) as (server, client):
        port = free_port()
        with running(program, BUS=server.url, PORT=str(port)):
            first = await asked(port, "/orders/17/ship")
            assert (await client.recv()).payload == b"shipped"
            again = await asked(port, "/orders/17/ship")
            assert (first["duplicate"], again["duplicate"]) == (False, True)
            assert again["position"] == first["position"]
            told = await asked(port, "/users/ann/notify")
            assert told["stored"]
            message = await received(client)
            assert (message["content"], message["require_ack"]) == ("your parcel is here", True)
            assert (await asked(port, "/users/bob/notify")) == {"hubs": 0, "stored": True}


async def test_a_celery_task_publishes(tmp_path: Path) -> None:
    async with the_shop(tmp_path) as (server, client):
        worker = ("-m", "celery", "-A", "celery_task", "worker", "--concurrency=1", "-l", "WARNING")
        with running(*worker, BUS=server.url):
            code = "from celery_task import bill, pack; pack.delay(17); bill.delay('ann', 17)"
            await asyncio.to_thread(run, sys.executable, "-c", code, BUS=server.url)
            heard = [(await client.recv(30)).payload for _ in range(2)]
            assert heard == [b"packed 50 %", b"packed 100 %"]
            message = await received(client)
            assert (message["id"], message["content"]) == ("bill-17", "The bill of order 17")


async def test_a_shell_script_publishes(tmp_path: Path) -> None:
    async with the_shop(tmp_path) as (server, client):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        text = "on its way: 17 €\nthanks"
        said = await asyncio.to_thread(
            run, "sh", "publish.sh", "order:17", text, BUS=server.url, PATH=path
        )
        assert (await client.recv()).payload == text.encode()
        position = server.command("GET", "wsc:t:{order:17}").decode()
        assert position in said
        said = await asyncio.to_thread(
            run, "sh", "notify.sh", "ann", "17 € paid", BUS=server.url, PATH=path
        )
        assert said.strip() == "1"
        assert (await received(client))["content"] == "17 € paid"


async def test_node_publishes(tmp_path: Path) -> None:
    binary, _ = node() or ("", [])
    place, why = modules()
    if not binary or place is None:
        missing(why or "there is no node")
    assert place is not None
    program = place / "publish.mjs"  # beside node_modules
    program.write_text((EXAMPLE / "publish.mjs").read_text())
    async with the_shop(tmp_path) as (server, client):
        text = "on its way: 17 €"
        said = await asyncio.to_thread(
            run, binary, program, "order:17", text, SCRIPT, BUS=server.url
        )
        assert (await client.recv()).payload == text.encode()
        assert server.command("GET", "wsc:t:{order:17}").decode() == said.strip()
        assert SCRIPT.read_bytes() == script("publish").text


async def test_node_sends_to_a_user(tmp_path: Path) -> None:
    binary, _ = node() or ("", [])
    place, why = modules()
    if not binary or place is None:
        missing(why or "there is no node")
    assert place is not None
    program = place / "notify.mjs"  # beside node_modules
    program.write_text((EXAMPLE / "notify.mjs").read_text())
    users = SCRIPT.with_name("users.lua")
    async with the_shop(tmp_path) as (server, client):
        text = 'on its way: "17" €'
        for user, hubs in (("ann", "1"), ("nobody", "0")):
            said = await asyncio.to_thread(run, binary, program, user, text, users, BUS=server.url)
            assert said.strip() == hubs
        message = await received(client)
        assert (message["content"], message["to"]) == (text, "ann")
        assert users.read_bytes() == script("users").text
