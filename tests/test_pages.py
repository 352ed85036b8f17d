"""The code of README.md and docs/*.md: each Python block runs, each command exists.

A program that serves tells its clients that it ends, by SIGINT and by SIGTERM. A program that ends
by itself succeeds. The other blocks of a page run one after the other, in one namespace.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trustme

from tests.clients.node_peers import node, own_websocket
from tests.clients.support import missing
from tests.commands import commands
from tests.ports import free_port
from tests.redis_server import RedisServer
from wsc_fast import ACKMessage, AckStatus, Hub, HubMessage, Identity
from wsc_fast.messages import Acknowledgement
from wsc_fast.testing import CLOSE, TEXT, RawClient, encode, eventually, running

ROOT = Path(__file__).parents[1]
# Pages in Chinese have the code of the English ones, see test_translations.py.
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if ROOT / "docs/zh" not in path.parents),
]
# Pages whose Python blocks all run in another test, which has what they need.
ELSEWHERE = {
    "docs/authentication.md": "test_auth.py",
    "docs/delivery.md": "test_docs.py",
    "docs/security.md": "test_security_doc.py",
    "docs/testing-applications.md": "test_testing_page.py",
}
# All of its blocks run in test_frameworks.py, which logs in to its programs.
FRAMEWORKS = "docs/frameworks.md"
# Programs with a test of their own below.
RESTARTING = ("docs/how-to/stop-and-restart.md", "Restarting")
CLIENT_IN_PYTHON = ("docs/wire.md", "In Python")
CLIENT_IN_A_BROWSER = ("docs/wire.md", "In a browser")
RECOVERING_IN_PYTHON = ("docs/wire.md", "Recovering, in Python")
RECOVERING_IN_A_BROWSER = ("docs/wire.md", "Recovering, in a browser")
# Programs that end by themselves.
ENDING = ("Compression", "Memory", "Slow consumers")
# Lines of the hub's log that belong to them.
WARNED = {"Slow consumers": "is closed with 1013 as a slow consumer|messages were dropped"}
# Blocks in other languages: configurations of proxies run in tests/proxies.
LANGUAGES = {"python", "sh", "yaml", "json", "js", "javascript", "nginx", "haproxy", "caddy", "go"}


class Block(NamedTuple):
    """A block of code of a page, under the last heading before it."""

    page: str
    title: str
    language: str
    code: str

    def is_program(self) -> bool:
        return 'if __name__ == "__main__":' in self.code or "\nhub.run(" in self.code


def blocks() -> Iterator[Block]:
    for path in PAGES:
        page, title = str(path.relative_to(ROOT)), ""
        # A block with braces is for Sphinx: a table of contents, a file that is shown.
        for heading, directive, language, code in re.findall(
            r"^#+ ([^\n]+)$|^```(\{?)([^\n]*)\n(.*?)^```$", path.read_text(), re.M | re.S
        ):
            title = heading or title
            if not heading and not directive:
                yield Block(page, title, language, code)


BLOCKS = list(blocks())
PYTHON = [block for block in BLOCKS if block.language == "python"]
PROGRAMS = {(block.page, block.title): block.code for block in PYTHON if block.is_program()}
SERVING = [
    key
    for key in PROGRAMS
    if key not in (RESTARTING, CLIENT_IN_PYTHON, RECOVERING_IN_PYTHON)
    and key[1] not in ENDING
    and key[0] != FRAMEWORKS
]
# Programs whose server, uvicorn, ends by the signal once it has ended well.
ENDED_BY_SIGNAL = ("Beside FastAPI",)
# Variables of the environment that programs read.
PASSWORD = "a password of operators"
SECRETS = {
    "API_KEY": "k" * 16,
    **dict.fromkeys(("CONSOLE_PASSWORD", "CONSOLE_ANN", "CONSOLE_BOB"), PASSWORD),
}
# All that any program that serves asks of a client.
QUERY = "user=ann&device=phone&token=t0ken&name=ann"
REQUEST = (
    f"GET /ws?{QUERY} HTTP/1.1\r\nHost: app.example\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat.v1\r\n"
    "Authorization: Bearer s3cr3t-key\r\n\r\n"
).encode()


def on_other_ports(code: str, ports: list[int]) -> str:
    """The program on free ports in place of its own, and on IPv4 alone."""
    code = re.sub(r"hub\.(run|start)\(\)", r"hub.\1(port=8080)", code)
    code = code.replace("async with hub:", "await hub.start(port=8080)\n    async with hub:")
    code = code.replace('["127.0.0.1", "::1"]', '"127.0.0.1"')
    for old, new in zip(("8080", "8443", "8000", "8081"), (ports[0], *ports), strict=False):
        code = re.sub(rf"(?<![\d:]){old}\b", str(new), code)
    return code


def recipe(title: str) -> str:
    """The program under a heading of docs/how-to/."""
    (found,) = [code for key, code in PROGRAMS.items() if "/how-to/" in key[0] and key[1] == title]
    return found


def connected(port: int, patience: float = 20) -> socket.socket:
    """A connection to a program that begins to listen within so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError:
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, "no close frame"
        data += more
    return data


def close_code(sock: socket.socket) -> int:
    """The code of the close frame behind all other frames; it is answered."""
    while True:
        first, size = exactly(sock, 2)
        if size == 126:
            size = int.from_bytes(exactly(sock, 2), "big")
        payload = exactly(sock, size)
        if first & 15 == CLOSE:
            sock.sendall(encode(CLOSE, payload))
            return int.from_bytes(payload[:2], "big")


@contextmanager
def started(
    command: Sequence[str], folder: Path, env: dict[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process in a folder that finds the package; killed if it lives in the end."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], timeout: float = 15, warned: str = "^$") -> str:
    """The output of a process, which has to end by itself, and well.

    Args:
        process, timeout: how long it may take.
        warned: pattern of the only lines that standard error may have.
    """
    out, err = process.communicate(timeout=timeout)
    others = [line for line in err.splitlines() if not re.search(warned, line)]
    assert (process.returncode, others) == (0, [])
    return out


def identified(key: tuple[str, str]) -> str:
    return f"{Path(key[0]).stem}: {key[1]}"


def test_there_are_programs() -> None:
    assert len(SERVING) > 20
    assert len(PROGRAMS) == sum(block.is_program() for block in PYTHON), "two under one heading"


def test_the_language_of_each_block_is_known() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("key", SERVING, ids=identified)
def test_a_program_tells_its_clients_that_it_ends(
    key: tuple[str, str],
    number: signal.Signals,
    tmp_path: Path,
    authority: trustme.CA,
    client_tls: ssl.SSLContext,
) -> None:
    ports = [free_port() for _ in range(4)]
    tls = None
    if key[1] == "TLS":
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
        certificate.private_key_pem.write_to_path(tmp_path / "server.key")
        tls = client_tls
    code = on_other_ports(PROGRAMS[key], ports)
    with (
        redis_for(code, tmp_path) as code,
        started([sys.executable, "-c", code], tmp_path, SECRETS) as process,
    ):
        with connected(ports[0]) as plain:
            sock = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
            assert upgraded(sock).startswith(b"HTTP/1.1 101 ")
            process.send_signal(number)
            assert close_code(sock) == 1001
            sock.close()
        _, err = process.communicate(timeout=15)
        by_signal = key[1] in ENDED_BY_SIGNAL and number == signal.SIGTERM
        assert process.returncode == (-number if by_signal else 0)
        assert "Traceback" not in err


@contextmanager
def redis_for(code: str, folder: Path) -> Iterator[str]:
    """The program with the server that it needs, on a port of that server's."""
    if not re.search(r"\b6379\b", code):
        yield code
        return
    with RedisServer(folder) as server:
        yield re.sub(r"\b6379\b", str(server.port), code)


def upgraded(sock: socket.socket) -> bytes:
    """The answer to an upgrade."""
    sock.sendall(REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(sock, 1)
    return head


@pytest.mark.parametrize("title", ENDING)
def test_a_program_that_ends_by_itself_succeeds(title: str, tmp_path: Path) -> None:
    # From a file: a process that it spawns imports it.
    (tmp_path / "program.py").write_text(recipe(title))
    with started([sys.executable, "program.py"], tmp_path) as process:
        assert ended(process, timeout=60, warned=WARNED.get(title, "^$"))


def test_the_recipe_of_restarting_serves_the_socket_that_it_inherits(tmp_path: Path) -> None:
    program = PROGRAMS[RESTARTING].replace("drain_period=10.0", "drain_period=0.1")
    (tmp_path / "echo.py").write_text(program)
    command = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" -m echo', sys.executable]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = partial(os.dup2, listening.fileno(), 3, True)
        with started(
            command, tmp_path, {"LISTEN_FDS": "1"}, pass_fds=[3], preexec_fn=descriptor
        ) as process:
            with connected(listening.getsockname()[1]) as sock:
                assert upgraded(sock).startswith(b"HTTP/1.1 101 ")
                sock.sendall(encode(TEXT, b"hello"))
                assert exactly(sock, 7) == b"\x81\x05hello"
                process.send_signal(signal.SIGTERM)
                assert close_code(sock) == 1012
            assert ended(process, warned=" INFO wsc_fast: ") == ""


def client_program(key: tuple[str, str]) -> list[str]:
    """The command of a client of the page about the wire, for the port 8080."""
    if key in PROGRAMS:
        return [sys.executable, "-u", "-c", PROGRAMS[key]]
    (code,) = [each.code for each in BLOCKS if (each.page, each.title) == key]
    found = node()
    if found is None or own_websocket(found[0]) is not None:
        missing("there is no Node with a WebSocket of its own")
    return [found[0], "-e", code]


@pytest.mark.parametrize("key", [CLIENT_IN_PYTHON, CLIENT_IN_A_BROWSER], ids=identified)
async def test_a_client_acknowledges_and_shows_each_message_once(
    key: tuple[str, str], tmp_path: Path
) -> None:
    hub = Hub(authenticate=lambda request: Identity(request.query["user"]))
    hub.enable_ack()
    command = client_program(key)
    async with running(hub):
        command[-1] = command[-1].replace("8080", str(hub.port))
        with started(command, tmp_path, environment_of(key)) as process:
            await eventually(lambda: hub.get_clients_by_user("ann"), timeout=20)
            for content in ("one", "one", "two"):
                message = ACKMessage(id=content, content=content)
                assert await hub.send_ack_message_to_user("ann", message) is AckStatus.CONFIRMED
            hub.get_clients_by_user("ann")[0].disconnect(4401)  # it does not come back
            await eventually(lambda: process.poll() is not None, timeout=20)
            assert ended(process) == "one\ntwo\n"


def environment_of(key: tuple[str, str]) -> dict[str, str]:
    # Node does not run with the library of a sanitizer.
    return {} if key in PROGRAMS else {"LD_PRELOAD": ""}


@pytest.mark.parametrize("key", [RECOVERING_IN_PYTHON, RECOVERING_IN_A_BROWSER], ids=identified)
async def test_a_client_recovers_what_it_missed_or_loads_anew(
    key: tuple[str, str], tmp_path: Path
) -> None:
    hub = Hub()
    hub.keep("r", size=20)
    hub.on_client_connected(lambda client: hub.join_room(client.id, "r"))
    command = client_program(key)

    async def cut_off(messages: list[str]) -> None:
        (client,) = hub.iter_clients()
        client.disconnect(1012)
        await eventually(lambda: hub.get_connected_clients() == 0)
        for each in messages:
            hub.broadcast_to_room("r", each)
        await eventually(lambda: hub.get_connected_clients() == 1, timeout=20)

    async with running(hub):
        command[-1] = command[-1].replace("8080", str(hub.port))
        with started(command, tmp_path, environment_of(key)) as process:
            await eventually(lambda: hub.get_connected_clients() == 1, timeout=20)
            hub.broadcast_to_room("r", "live\nin two lines")
            await cut_off(["missed 1", "missed 2"])
            hub.broadcast("to all")
            await cut_off([f"too many {number}" for number in range(100)])
            hub.broadcast_to_room("r", "live again")
            (client,) = hub.iter_clients()
            client.disconnect(4401)  # it does not come back
            await eventually(lambda: process.poll() is not None, timeout=20)
            nowhere = "None" if key in PROGRAMS else "undefined"
            assert ended(process).splitlines() == [
                "load r",
                *("r live", "in two lines"),
                *("r missed 1", "r missed 2"),
                f"{nowhere} to all",
                "load r",
                "r live again",
            ]


@pytest.mark.parametrize(
    "page",
    sorted({block.page for block in PYTHON if not block.is_program()} - {*ELSEWHERE, FRAMEWORKS}),
)
def test_the_blocks_of_a_page_run_in_their_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    names: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS:
        if block.page != page:
            continue
        if block.language == "sh":
            for name, value in exports(block.code):
                monkeypatch.setenv(name, value)
        elif block.language == "yaml":
            Path("settings.yaml").write_text(block.code)
        elif block.language == "python" and not block.is_program():
            exec(compile(block.code, page, "exec"), names)


def exports(script: str) -> Iterator[tuple[str, str]]:
    for line in script.splitlines():
        command, *words = shlex.split(line)
        for word in words if command == "export" else ():
            name, _, value = word.partition("=")
            yield name, value


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_the_blocks_of_a_page_run_in_another_test(page: str, test: str) -> None:
    text = (ROOT / "tests" / test).read_text()
    assert page in text
    assert "exec(" in text or "passed(run(" in text
    assert not any(block.is_program() for block in PYTHON if block.page == page)


def test_the_messages_on_the_wire_are_what_they_are_said_to_be() -> None:
    message, acknowledgement = (block.code for block in BLOCKS if block.language == "json")
    assert msgspec.json.decode(message, type=HubMessage).require_ack
    decoded = msgspec.json.decode(acknowledgement, type=Acknowledgement)
    assert decoded.message_id == msgspec.json.decode(message)["id"]


# --- commands and paths ---


async def test_the_test_of_the_first_task_passes() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"^ +```python\n(.*?)^ +```$", page, re.M | re.S)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)
    await names["test_a_ping_is_answered"]()


def code_spans() -> Iterator[str]:
    """The code between backticks, indented by four, or in a block for the shell."""
    for path in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
        for quoted, line in re.findall(r"`([^`\n]+)`|^ {4}(\S.+)$", text, re.M):
            yield quoted or line
    for block in BLOCKS:
        if block.language == "sh":
            yield from block.code.splitlines()


SPANS = sorted(set(code_spans()))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def said(pattern: str) -> list[str]:
    """The first group of a pattern, of each span that begins so."""
    found = {match[1] for span in SPANS if (match := re.match(pattern, span))}
    assert found
    return sorted(found)


def test_each_target_of_make_exists() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(said(r"make ([a-z][\w-]*)")) <= set(targets.split())


def test_each_command_of_wsc_fast_exists() -> None:
    assert said(r"wsc-fast ([a-z][\w-]*)") == sorted(commands())


@pytest.mark.parametrize("module", said(r"(?:\.venv/bin/)?python3? -m ([\w.]+)"))
def test_a_module_that_is_run_exists(module: str) -> None:
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize(
    "command", said(r"(?:\.venv/bin/)?python3? (?:-m )?((?!setup)\w+[/.].+ --.*)")
)
def test_a_script_has_the_options_that_it_is_run_with(command: str) -> None:
    script, *words = command.split()
    path = ROOT / (script.removesuffix(".py").replace(".", "/") + ".py")
    sources = "".join(each.read_text() for each in path.parent.glob("*.py"))
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in sources


FOLDERS = r"(?:tests|trials|benchmarks|examples|deploy|src_cy|wsc_fast)/"


@pytest.mark.parametrize(
    "path",
    sorted({path for span in SPANS for path in re.findall(rf"(?<![\w/]){FOLDERS}[\w./*-]*", span)}),
)
def test_a_path_of_the_repository_exists(path: str) -> None:
    assert "NAME" in path or any(ROOT.glob(path))


def test_each_extra_exists() -> None:
    extras = {name for span in SPANS for name in re.findall(r"(?:wsc_fast|\.)\[(\w+)\]", span)}
    assert extras
    assert extras <= set(PROJECT["optional-dependencies"])


# --- what a recipe says ---


async def test_the_recipe_of_devices_says_online_and_offline_once(
    any_loop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(recipe("One connection per device"), names)
    async with running(names["hub"]) as hub:
        for number in range(20):
            phone = await RawClient.open(hub, "/ws?user=ann&device=phone")
            tablet = await RawClient.open(hub, "/ws?user=ann&device=tablet")
            newer = await RawClient.open(hub, "/ws?user=ann&device=phone")
            assert (await phone.recv()).code == 4409
            if number % 2:
                hub.disconnect_user("ann")  # both in one moment
            for raw in (phone, tablet, newer):
                raw.close()
            await eventually(lambda: hub.connections == 0)
            said = capsys.readouterr().out.splitlines()
            assert said[0] == "ann is online"
            assert said[-1] == "ann is offline"
            assert said[1:-1] in ([], ["ann/phone was replaced by a newer connection"])
        assert names["devices"] == {}
