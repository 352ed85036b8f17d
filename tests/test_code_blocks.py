"""Each block of code of README.md and docs/ that is not Python runs in a test, which is named here.

tests/test_pages.py runs the blocks of Python.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from websockets.asyncio.client import connect

from tests.clients.javascript import built
from tests.clients.node_peers import node, own_websocket
from tests.clients.support import missing
from tests.ports import free_port
from tests.test_pages import BLOCKS, PROGRAMS, ROOT, connected
from wsc_fast import Hub, HubConfig
from wsc_fast.auth import TokenAuthenticator
from wsc_fast.testing import eventually, running

HERE = "tests/test_code_blocks.py"
PAGES = "tests/test_pages.py"
# By language and page, the tests that run all such blocks of the page.
RUN = {
    ("caddy", "docs/operations/proxies.md"): "tests/proxies/test_caddy.py",
    ("haproxy", "docs/operations/proxies.md"): "tests/proxies/proxy.py",
    ("javascript", "docs/authentication.md"): HERE,
    ("js", "docs/how-to/rooms.md"): HERE,
    ("js", "docs/http-api.md"): "tests/test_api.py",
    ("js", "docs/wire.md"): PAGES,
    ("json", "docs/wire.md"): PAGES,
    ("nginx", "docs/operations/proxies.md"): "tests/proxies/proxy.py",
    ("sh", "docs/command-line.md"): HERE,
    ("sh", "docs/configuration.md"): PAGES,
    ("sh", "docs/frameworks.md"): HERE,
    ("sh", "docs/http-api.md"): "tests/test_api.py",
    ("yaml", "docs/configuration.md"): PAGES,
}
# Blocks that no test runs, with the reason.
NOT_RUN = {
    ("go", "docs/go-wsc.md"): "go-wsc needs a newer Go than Debian has",
    ("yaml", "docs/operations/kubernetes.md"): "a part of the Deployment that test_deploy.py reads",
    ("yaml", "docs/operations/proxies.md"): "Traefik is in no package of Debian; the YAML is read",
}
OTHERS = [block for block in BLOCKS if block.language != "python"]
# Programs of Node do not run with the library of a sanitizer.
ENVIRONMENT = os.environ | {
    "LD_PRELOAD": "",
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
PATIENCE = 60


def test_each_block_that_is_not_python_runs_in_a_test() -> None:
    assert {(block.language, block.page) for block in OTHERS} == {*RUN, *NOT_RUN}
    for (_, page), test in RUN.items():
        # test_pages.py goes through all pages.
        assert test == PAGES or Path(page).name in (ROOT / test).read_text()


def code(page: str, title: str, language: str) -> str:
    """The only such block under a heading of a page."""
    (found,) = [
        each.code
        for each in OTHERS
        if (each.page, each.title, each.language) == (page, title, language)
    ]
    return found


@contextmanager
def begun(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to a pipe, with those that it starts; killed in the end."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def output_of(script: str, folder: Path) -> str:
    """Runs a block for the shell to its end, which has to be a good one."""
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_configuration_of_traefik_routes_to_the_hub() -> None:
    read = yaml.safe_load(code("docs/operations/proxies.md", "Traefik", "yaml"))["http"]
    ((_, router),) = read["routers"].items()
    (server,) = read["services"][router["service"]]["loadBalancer"]["servers"]
    assert server == {"url": "http://127.0.0.1:8080"}


# --- the shell ---

APPLICATION = """
from wsc_fast import Hub

hub = Hub()
hub.enable_metrics()
hub.on_message_received(lambda client, message: hub.broadcast(message))
"""


def test_the_commands_of_wsc_fast_run(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    port = free_port()

    def command(title: str, *, more: str = "") -> str:
        script = code("docs/command-line.md", title, "sh").replace("8080", str(port))
        # Shorter than a user would measure.
        return script.strip().replace("--clients 500 --duration 30", "--clients 5 -d 0.5") + more

    serve = command("serve", more=f" --port {port}")
    with begun(["sh", "-c", f"exec {serve}"], tmp_path) as server:
        connected(port, PATIENCE).close()
        with begun(["sh", "-c", f"exec {command('tail', more=' -n 1')}"], tmp_path) as tail:
            # `tail` may connect after the first message.
            while tail.poll() is None:
                assert output_of(command("send"), tmp_path) == "hello\n"
            assert tail.stdout is not None
            assert re.search(r"^\d.* hello$", tail.stdout.read(), re.M)
        assert "echo" in output_of(command("bench"), tmp_path)
        assert "clients" in output_of(command("top", more=" --once"), tmp_path)
        assert server.poll() is None
    changed = "export WSC_MAX_ROOMS=1234; " + command("check-config")
    assert re.search(r"max_rooms\b.*\b1_?,?234\b", output_of(changed, tmp_path))


def test_the_commands_beside_fastapi_run(tmp_path: Path) -> None:
    page, port = "docs/frameworks.md", str(free_port())
    program = tmp_path / "examples/frameworks/with_fastapi.py"
    program.parent.mkdir(parents=True)
    source = (ROOT / program.relative_to(tmp_path)).read_text()
    program.write_text(source.replace("8000", port))
    # Its packages are installed already.
    serve = "pip() { :; }\n" + code(page, "Beside a web framework", "sh")
    with begun(["sh", "-ec", serve], tmp_path):
        connected(int(port), PATIENCE).close()
        script = code(page, "FastAPI, with JSON Web Tokens", "sh").replace("8000", port)
        login, publish = script.split("curl -s localhost:" + port + "/rooms")
        login = login.replace('"$TOKEN" &', '"$TOKEN" -n 1 &')
        # `tail` may connect after the first message: it is published until `tail` has heard one.
        again = f"while kill -0 $!; do curl -s localhost:{port}/rooms{publish}\ndone"
        heard = output_of(f"{login}\n{again} >/dev/null\nwait", tmp_path)
        assert "hello" in heard


async def test_the_certificate_of_the_recipe_serves_tls(tmp_path: Path) -> None:
    page = (ROOT / "docs/how-to/tls-and-proxies.md").read_text()
    (command,) = re.findall(r"^ {4}(openssl req .*\n .*)$", page, re.M)
    output_of(command, tmp_path)
    trusted = ssl.create_default_context(cafile=str(tmp_path / "server.pem"))
    files = {"certfile": str(tmp_path / "server.pem"), "keyfile": str(tmp_path / "server.key")}
    async with (
        running(Hub(), **files) as hub,
        connect(f"wss://localhost:{hub.port}/ws", ssl=trusted),
    ):
        await eventually(lambda: hub.get_connected_clients() == 1)


# --- JavaScript ---


def node_with_a_websocket() -> str:
    found = node()
    if found is None or own_websocket(found[0]) is not None:
        missing("there is no Node with a WebSocket of its own")
    return found[0]


def is_there(hub: Hub, user: str, room: str) -> bool:
    return room in hub.get_rooms() and user in hub.get_room_users(room)


async def test_the_page_of_the_recipe_joins_a_room_and_asks(tmp_path: Path) -> None:
    page, title = "docs/how-to/rooms.md", "Requests, and rooms that clients ask for"
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/wsc-client").symlink_to(built())
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(PROGRAMS[page, title], names)
    async with running(names["hub"]) as hub:
        # Node has no page, whose address a path would be relative to.
        at = f"127.0.0.1:{hub.port}/ws"
        script = code(page, title, "js")
        script = script.replace('"/ws"', f'"ws://{at}"').replace('"/ws-', f'"http://{at}-')
        (tmp_path / "page.mjs").write_text(script)
        with begun([node_with_a_websocket(), "page.mjs"], tmp_path) as process:
            await eventually(lambda: is_there(hub, "ann", "chat:tea"), PATIENCE)
            hub.broadcast_to_room("chat:tea", "is ready")
            assert process.stdout is not None
            lines = {await asyncio.to_thread(process.stdout.readline) for _ in range(2)}
            assert lines == {"[ 'ann' ]\n", "is ready\n"}
        await eventually(lambda: hub.connections == 0)


async def test_a_browser_sends_its_token_beside_a_subprotocol(tmp_path: Path) -> None:
    script = code("docs/authentication.md", "Where the token is", "javascript")
    hub = Hub(
        HubConfig(subprotocols=("chat",)),
        authenticate=TokenAuthenticator({"the-token-of-ann": "ann"}),
    )
    async with running(hub):
        at = script.replace("wss://app.example", f"ws://127.0.0.1:{hub.port}")
        program = f'const token = "the-token-of-ann";\n{at}'
        with begun([node_with_a_websocket(), "-e", program], tmp_path):
            await eventually(lambda: hub.get_clients_by_user("ann"), PATIENCE)
            assert hub.get_clients_by_user("ann")[0].subprotocol == "chat"
        await eventually(lambda: hub.connections == 0)
