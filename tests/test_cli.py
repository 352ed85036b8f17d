"""The command line in processes of its own, against hubs that run: each command, each exit code."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.commands import PAGE, commands, table_of, tables_in
from tests.ports import free_port
from wsc_fast import (
    Client,
    ConfigError,
    Hub,
    HubConfig,
    Identity,
    Request,
    Response,
    __version__,
)
from wsc_fast.cli.app import run as run_command
from wsc_fast.cli.exposition import Change, Metrics
from wsc_fast.cli.histogram import Histogram
from wsc_fast.config.sources import combined
from wsc_fast.testing import running_in_thread, wait_until
from wsc_fast.testing.tls import Authority

ROOT = Path(__file__).parents[1]
TRACEBACK = "Traceback"
# Seconds that a process may take, on a machine that does much else.
PATIENCE = 60
# Nothing of the user's or of another test's.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("WSC_", "NO_COLOR"))
} | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}


Here = Callable[..., subprocess.CompletedProcess[str]]


def command_of(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "wsc_fast", *map(str, words)]


def run(
    *words: str | Path, cwd: Path = ROOT, given: str | bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    data = given.encode() if isinstance(given, str) else given
    done = subprocess.run(
        command_of(*words),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=PATIENCE,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@pytest.fixture
def here(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Here:
    """Runs a command to its end in this process, where another one would show nothing more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("WSC_")]:
        monkeypatch.delenv(name)

    def run_here(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        sys.modules.pop("app", None)
        capfd.readouterr()
        with monkeypatch.context() as changes:
            for name, value in environment.items():
                changes.setenv(name, value)
            code = run_command([str(word) for word in words])
        said = capfd.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return run_here


def fails_in_one_line(done: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("wsc-fast: ")
    assert text in line


@contextmanager
def begun(
    *words: str | Path, cwd: Path = ROOT, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on."""
    with subprocess.Popen(
        command_of(*words),
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line_with(stream: Any, text: str) -> str:
    """The next line with this text; the others are passed over."""
    for line in stream:
        if text in line:
            return str(line)
    raise AssertionError(f"the stream has ended without {text!r}")


class Terminal:
    """A command whose standard streams are a terminal.

    Attributes:
        shown: all that it has written so far.
    """

    def __init__(self, *words: str | Path, cwd: Path = ROOT) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.shown = ""
        self.process = subprocess.Popen(
            command_of(*words),
            cwd=cwd,
            env=ENVIRONMENT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            process_group=0,
        )
        os.close(slave)

    def until(self, condition: Callable[[str], object], timeout: float = PATIENCE) -> str:
        """Reads until what is shown fulfils this."""
        end = time.monotonic() + timeout
        while not condition(self.shown):
            left = end - time.monotonic()
            assert left > 0, self.shown
            if select.select([self._master], [], [], left)[0]:
                self.shown += self._read()
        return self.shown

    def end(self, number: signal.Signals | None = None) -> int:
        """Sends a signal, if one is given; the exit code."""
        if number is not None:
            self.process.send_signal(number)
        while chunk := self._read():
            self.shown += chunk
        return self.process.wait(PATIENCE)

    def _read(self) -> str:
        try:
            return os.read(self._master, 1 << 16).decode("utf-8", "replace")
        except OSError:  # nobody has the other end open any more
            return ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


def echoing(**options: Any) -> Hub:
    hub = Hub(**options)

    @hub.on_message_received
    def echo(client: Client, message: str | bytes) -> None:
        hub.send_to_client(client.id, message)

    return hub


def repeating() -> Hub:
    hub = Hub()

    @hub.on_message_received
    def repeat(client: Client, message: str | bytes) -> None:
        hub.broadcast(message)

    return hub


def address(hub: Hub, path: str = "/ws") -> str:
    return f"ws://127.0.0.1:{hub.port}{path}"


@pytest.fixture(scope="module")
def echo() -> Iterator[Hub]:
    with running_in_thread(echoing()) as hub:
        yield hub


# --- the program itself ---


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_output_that_cannot_be_written_is_a_failure_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command_of("version"), env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "wsc-fast: the output cannot be written: No space left on device\n"


def test_the_tables_of_the_page_are_those_of_the_commands() -> None:
    tables = {name: table_of(command) for name, command in commands().items()}
    assert tables_in(PAGE.read_text()) == tables, "python -m tests.commands writes them"


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_says_in_one_line_what_it_does_and_gives_examples(
    name: str, here: Here
) -> None:
    command = commands()[name]
    assert re.fullmatch(r"[A-Z][^\n]{20,}\.", command.help.strip())
    assert "wsc-fast" in command.epilog or name == "serve"
    done = here(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wsc-fast {name}" in done.stdout


def test_the_version_is_told_by_command_and_by_option(here: Here) -> None:
    by_option, by_command = run("--version"), here("version")
    assert by_option.stdout == by_command.stdout
    assert by_option.stdout.startswith(f"wsc_fast {__version__}, built for picows ")
    assert json.loads(here("version", "--json").stdout)["wsc_fast"] == __version__


def test_wrong_usage_is_one_line_that_names_the_help(here: Here) -> None:
    fails_in_one_line(here("sevre"), 2, "sevre")
    fails_in_one_line(here("bench"), 2, "Missing argument 'URL'. See 'wsc-fast bench --help'")
    fails_in_one_line(here("serve", "a:b", "--port", "x"), 2, "--port")


def test_a_program_without_a_command_shows_its_help(here: Here) -> None:
    done = here()
    assert done.returncode == 2
    assert "check-config" in done.stdout + done.stderr


def test_the_script_of_completion_names_the_program() -> None:
    done = run("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0
    assert "wsc-fast" in done.stdout


# --- serve ---

ECHO_MODULE = """
from wsc_fast import Hub
hub = Hub()
number = 7
text = "{text}"

@hub.on_client_connected
def connected(client):
    hub.send_text_to_client(client.id, text)

def make():
    return hub

def needs(argument):
    return hub

async def later():
    return hub

def wrong():
    return number

class Space:
    inner = hub

def raising():
    return 1 / 0
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder with a module `app`."""
    (tmp_path / "app.py").write_text(ECHO_MODULE.format(text="first"))
    return tmp_path


def greeting(here: Here, port: int) -> str:
    """The first message of a hub, once it serves."""
    found: list[str] = []

    def came() -> bool:
        done = here("tail", f"localhost:{port}/ws", "-n", "1")
        found[:] = [done.stdout]
        return bool(done.returncode == 0)

    wait_until(came, PATIENCE)
    return found[0]


@pytest.mark.parametrize("name", ["hub", "make", "Space.inner"])
def test_a_hub_of_a_module_is_served_until_a_signal(module: Path, name: str, here: Here) -> None:
    port = free_port()
    with begun("serve", f"app:{name}", "--port", str(port), cwd=module) as process:
        assert greeting(here, port) == "first\n"
        process.send_signal(signal.SIGINT if name == "hub" else signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert TRACEBACK not in process.stderr.read()


@pytest.mark.parametrize(
    ("target", "code", "text"),
    [
        ("app", 2, "'app' is no target, expected module:name, such as app:hub"),
        ("app.py:hub", 2, "no target"),
        (".app:hub", 2, "no target"),
        ("missing:hub", 1, "there is no module 'missing' in "),
        ("app.missing:hub", 1, "there is no module 'app.missing' in "),
        ("app:hbu", 1, "the module 'app' has no 'hbu': is it 'hub'?"),
        ("app:number", 1, "app:number is of the type int, expected a Hub or a function"),
        ("app:needs", 1, "expected a Hub or a function that returns one, without arguments"),
        ("app:later", 1, "app:later is an async function"),
        ("app:wrong", 1, "app:wrong() is of the type int, expected a Hub"),
    ],
)
def test_a_target_that_is_no_hub_is_one_line(
    module: Path, target: str, code: int, text: str, here: Here
) -> None:
    fails_in_one_line(here("serve", target), code, text)


@pytest.mark.parametrize(
    ("source", "name", "shown"),
    [
        ("import nowhere_at_all", "hub", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "hub", "ZeroDivisionError"),
        ("def f(:", "hub", "SyntaxError"),
        (ECHO_MODULE, "raising", "ZeroDivisionError"),
    ],
)
def test_an_error_of_the_users_own_code_keeps_its_traceback(
    tmp_path: Path, source: str, name: str, shown: str, here: Here
) -> None:
    (tmp_path / "app.py").write_text(source)
    done = here("serve", f"app:{name}")
    assert (done.returncode, done.stdout) == (1, "")
    assert shown in done.stderr
    assert str(tmp_path / "app.py") in done.stderr
    assert "wsc_fast/cli" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("wsc-fast: ")


def test_a_module_that_serves_while_it_is_imported_is_refused(module: Path, here: Here) -> None:
    (module / "app.py").write_text(ECHO_MODULE + "\nhub.run(port=0)\n")
    fails_in_one_line(here("serve", "app:hub"), 1, 'put the call under if __name__ == "__main__":')


def test_a_hub_that_cannot_serve_says_so_in_one_line(module: Path, echo: Hub, here: Here) -> None:
    def served(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return here("serve", "app:hub", *words)

    fails_in_one_line(served("--port", str(echo.port)), 1, "in use")
    fails_in_one_line(served("--port", "0", "--certfile", "none.pem"), 1, "none.pem")
    fails_in_one_line(served("--port", "0", "--path", "ws"), 1, "path must begin with /")
    fails_in_one_line(served("--config", "none.toml"), 1, "none.toml cannot be read")
    (module / "wsc.toml").write_text("max_rooms = -1\n")
    fails_in_one_line(served("--config", "wsc.toml"), 1, "max_rooms is -1")
    fails_in_one_line(served("--reload", "--reload-dir", "none"), 2, "none is no folder")


def test_a_served_hub_has_the_settings_of_the_file_and_the_certificate(
    module: Path, tmp_path: Path, here: Here
) -> None:
    authority = Authority()
    chain, key = authority.write(tmp_path)
    trusted = tmp_path / "ca.pem"
    authority.ca.cert_pem.write_to_path(trusted)
    (module / "wsc.toml").write_text('max_connections = 5\nallowed_origins = ["https://a.example"]')
    port = free_port()
    words = ["--port", str(port), "--certfile", chain, "--keyfile", key, "--config", "wsc.toml"]
    url = f"wss://localhost:{port}/ws"
    with begun("serve", "app:hub", *words, cwd=module):
        wait_until(lambda: here("tail", url, "-n1", "--cafile", trusted).returncode == 0, PATIENCE)
        origin = ("--origin", "https://a.example")
        assert here("tail", url, "-n1", "--insecure", *origin).stdout == "first\n"
        fails_in_one_line(here("tail", url), 1, "cannot be trusted: ")
        fails_in_one_line(here("tail", url, "--cafile", key), 2, "key.pem cannot be used")
        done = here("tail", url, "--insecure", "--origin", "https://b.example")
        fails_in_one_line(done, 1, "answers 403 Forbidden: this origin is not allowed")


LOGGING_MODULE = (
    ECHO_MODULE
    + """
import logging
SETUP
hub.on_startup(lambda: logging.getLogger("app").info("up", extra={{"a": 1}}))
"""
)


def log_of(module: Path, setup: str, *words: str, **environment: str) -> list[str]:
    """The lines that `serve` writes from its start to its end."""
    (module / "app.py").write_text(LOGGING_MODULE.format(text="").replace("SETUP", setup))
    with begun("serve", "app:hub", "--port", "0", *words, cwd=module, **environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    return lines


def test_a_log_of_json_has_an_object_a_line(module: Path) -> None:
    lines = [json.loads(line) for line in log_of(module, "", "--log-format", "json")]
    line = lines[0]
    assert (line["level"], line["logger"], line["message"], line["a"]) == ("info", "app", "up", 1)
    assert [line["event"] for line in lines[1:]] == ["listening", "stopped"]  # each once


def test_a_served_hub_logs_as_its_settings_say(module: Path) -> None:
    (module / "wsc.toml").write_text('log_format = "json"\n')
    lines = log_of(module, "", "--config", "wsc.toml")
    assert [json.loads(line)["level"] for line in lines] == ["info"] * 3
    lines = log_of(module, "", "--config", "wsc.toml", WSC_LOG_FORMAT="text")
    assert [" INFO " in line for line in lines] == [True] * 3


@pytest.mark.parametrize("logger", ["", "wsc_fast"])
def test_handlers_of_the_module_itself_write_each_line_alone(module: Path, logger: str) -> None:
    lines = log_of(
        module,
        "handler = logging.StreamHandler()\n"
        "handler.setFormatter(logging.Formatter('own: %(message)s'))\n"
        f"logging.getLogger({logger!r}).addHandler(handler)\n"
        f"logging.getLogger({logger!r}).setLevel('INFO')",
    )
    assert [line for line in lines if not line.startswith("own: ")] == []
    assert len([line for line in lines if "listening on" in line]) == 1


def test_a_change_starts_the_hub_again_and_an_error_waits_for_the_next_change(
    module: Path, here: Here
) -> None:
    port = free_port()
    app = module / "app.py"
    with begun("serve", "app:hub", "--reload", "--port", str(port), cwd=module) as process:
        assert greeting(here, port) == "first\n"
        with begun("tail", f"localhost:{port}/ws") as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "first\n"
            app.write_text("def f(:")
            assert client.wait(PATIENCE) == 1
            assert client.stderr is not None
            assert "closed the connection with 1012" in client.stderr.read()
        line_with(process.stderr, "SyntaxError")
        line_with(process.stderr, "waiting for a change")
        app.write_text(ECHO_MODULE.format(text="second"))
        assert greeting(here, port) == "second\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    fails_in_one_line(here("tail", f"localhost:{port}/ws"), 1, "connection refused")


def test_a_hub_stops_where_the_process_that_watches_its_files_is_killed(
    module: Path, here: Here
) -> None:
    port = free_port()
    with begun("serve", "app:hub", "--reload", "--port", str(port), cwd=module) as process:
        assert greeting(here, port) == "first\n"
        with begun("tail", f"localhost:{port}/ws") as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "first\n"
            process.kill()
            assert client.wait(PATIENCE) == 1
            assert client.stderr is not None
            assert "closed the connection with 1012" in client.stderr.read()
        assert process.stderr is not None
        line_with(process.stderr, "stopped in")
        assert process.stderr.read() == ""  # nobody has the other end open any more


def test_a_hub_that_starts_again_has_the_time_of_its_drain_too(module: Path) -> None:
    (module / "app.py").write_text(
        ECHO_MODULE.format(text="")
        + "import asyncio\n"
        + "hub.on_startup(lambda: print('up', flush=True))\n"
        + "@hub.on_shutdown\nasync def last_words():\n"
        + "    await asyncio.sleep(0.2)\n    print('down', flush=True)\n"
    )
    hasty = (
        "from wsc_fast.cli import app, reload; reload.PATIENCE = 0.0; raise SystemExit(app.run())"
    )
    words = ["serve", "app:hub", "--reload", "--port", "0", "--drain", "30"]
    with subprocess.Popen(
        [sys.executable, "-c", hasty, *words],
        cwd=module,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line_with(process.stdout, "up")
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=PATIENCE)
    assert said == "down\n"
    assert "killed" not in errors


def test_the_demo_says_where_its_chat_is_once_it_listens(echo: Hub, here: Here) -> None:
    fails_in_one_line(here("demo", "--port", str(echo.port)), 1, "the address is in use")
    port = free_port()
    with begun("demo", "--port", str(port)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Chat on http://127.0.0.1:{port}\n"
        socket.create_connection(("127.0.0.1", port)).close()


def test_the_demo_serves_its_chat(here: Here) -> None:
    with begun("demo", "--port", "0") as process:
        url = line_with(process.stdout, "Chat on").split()[-1]
        asked = '{"type": "room_list"}'
        done = here("send", f"{url}/ws", "--json", asked, "--wait", "1")
        assert done.returncode == 0
        assert json.loads(done.stdout)["data"]["type"] == "room_list"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0


# --- check-config ---


def test_the_source_of_each_setting_is_told(tmp_path: Path, here: Here) -> None:
    file = tmp_path / "wsc.toml"
    file.write_text("[hub]\nmax_rooms = 7\nmax_connections = 9\n\n[ack]\ntimeout = '2s'\n")
    environment = {"WSC_MAX_CONNECTIONS": "11", "WSC_RETRY_NONE": "x", "WSC_MAX_ROOM": "1"}
    done = here("check-config", file, "--json", **environment)
    assert done.returncode == 0
    assert done.stderr == "WSC_MAX_ROOM is no setting: is it WSC_MAX_ROOMS?\n"
    found = json.loads(done.stdout)
    assert list(found) == ["hub", "retry", "ack"]
    assert set(found["hub"]) == set(HubConfig.__struct_fields__)
    assert found["hub"]["max_rooms"] == {
        "value": 7,
        "default": HubConfig().max_rooms,
        "source": "file",
        "place": f"{file}:2",
    }
    assert found["hub"]["max_connections"]["value"] == 11
    assert found["hub"]["max_connections"]["place"] == "WSC_MAX_CONNECTIONS"
    assert found["ack"]["timeout"]["value"] == 2.0
    assert found["retry"]["max_retries"]["source"] == "default"
    changed = here("check-config", file, "--changed").stdout
    assert [line.split()[:2] for line in changed.splitlines() if "hub." in line] == [
        ["hub.max_connections", "9"],
        ["hub.max_rooms", "7"],
    ]


def test_settings_that_cannot_work_end_with_1(tmp_path: Path, here: Here) -> None:
    done = here("check-config", WSC_MAX_ROOMS="many")
    fails_in_one_line(done, 1, "WSC_MAX_ROOMS is 'many', expected an int from 0")
    file = tmp_path / "wsc.json"
    file.write_text('{"max_roms": 1}')
    fails_in_one_line(here("check-config", file), 1, f"{file}: max_roms (1) is no setting")
    fails_in_one_line(here("check-config", tmp_path / "no.toml"), 1, "no.toml cannot be read")


def test_sources_are_checked_together_and_the_environment_goes_first(tmp_path: Path) -> None:
    file = tmp_path / "wsc.yaml"
    file.write_text("heartbeat_interval: 100\nheartbeat_timeout: 300\n")
    # By itself it would be more than the default of the timeout.
    found = combined(HubConfig, file, {"WSC_HEARTBEAT_INTERVAL": "200"})
    assert (found.config.heartbeat_interval, found.config.heartbeat_timeout) == (200.0, 300.0)
    assert found.origins["heartbeat_timeout"].place == f"{file}:2"
    with pytest.raises(ConfigError, match=r"wsc\.yaml, WSC_HEARTBEAT_INTERVAL: .*300"):
        combined(HubConfig, file, {"WSC_HEARTBEAT_INTERVAL": "400"})


# --- tail ---


def test_messages_are_printed_as_they_are_in_a_pipe(here: Here) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    messages = [
        "plain",
        '{"a":1}',
        "two\nlines",
        "esc \x1b[31m",
        b"\x00\x01",
        deep,
        r'["\u009b1m"]',
    ]
    hub = Hub()
    errors: list[BaseException] = []
    hub.on_error(lambda client, error: errors.append(error))

    @hub.on_client_connected
    def connected(client: Client) -> None:
        for message in messages:
            hub.send_to_client(client.id, message)

    with running_in_thread(hub):
        words = ("tail", address(hub), "-n", "7")
        done = here(*words)
        assert done.returncode == 0
        assert done.stdout == (
            'plain\n{"a":1}\ntwo\nlines\nesc \x1b[31m\nbinary, 2 bytes: 00 01\n'
            f'{deep}\n["\\u009b1m"]\n'
        )
        lines = [json.loads(line) for line in here(*words, "--json").stdout.splitlines()]
        assert [(line["type"], line["data"]) for line in lines] == [
            ("text", "plain"),
            ("json", {"a": 1}),
            ("text", "two\nlines"),
            ("text", "esc \x1b[31m"),
            ("binary", "AAE="),
            ("text", deep),
            ("json", ["\x9b1m"]),
        ]
        stamped = here(*words, "--timestamps").stdout
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} plain\n", stamped)
        with Terminal(*words) as terminal:
            assert terminal.end() == 0
        assert "\x9b" not in terminal.shown
        assert "esc \\x1b[31m" in terminal.shown  # a peer cannot steer the terminal
        assert '\x1b[1;34m"a"\x1b[0m' in terminal.shown
    assert errors == []  # each has closed as it should
    assert errors == []  # each has closed as it should


@pytest.mark.parametrize(("code", "exit_code"), [(1000, 0), (1001, 0), (1011, 1), (4400, 1)])
def test_the_close_code_decides_the_exit_code(code: int, exit_code: int, here: Here) -> None:
    hub = Hub()

    @hub.on_client_connected
    def connected(client: Client) -> None:
        client.disconnect(code, "the reason")

    with running_in_thread(hub):
        done = here("tail", address(hub))
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert f"the hub closed the connection with {code} (the reason)" in done.stderr


def test_a_client_comes_back_until_it_is_unwanted(here: Here) -> None:
    hub = Hub()
    came: list[str] = []

    @hub.on_client_connected
    def connected(client: Client) -> None:
        came.append(client.id)
        client.disconnect(1012 if len(came) < 3 else 1008)

    with running_in_thread(hub):
        done = here("tail", address(hub), "--reconnect")
    assert len(came) == 3
    assert done.returncode == 1
    assert len(re.findall(r"with 1012; again in \d+\.\d s", done.stderr)) == 2
    assert "with 1008" in done.stderr.splitlines()[-1]


def test_a_client_shows_who_it_is(here: Here) -> None:
    asked: list[Request] = []

    def authenticate(request: Request) -> Identity | None:
        asked.append(request)
        known = request.headers.get("Authorization") == "Bearer secret"
        return Identity(user_id="ann") if known else None

    with running_in_thread(
        echoing(config=HubConfig(subprotocols=("b",)), authenticate=authenticate)
    ) as hub:
        fails_in_one_line(
            here("tail", address(hub), "--reconnect"), 1, "answers 401 Unauthorized (--token or"
        )
        words = ["--token", "secret", "-H", "X-Room: 5", "--subprotocol", "a", "--subprotocol", "b"]
        done = here("send", address(hub, "/ws?x=1"), "hello", *words, "--wait", "1")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
        assert asked[-1].headers["X-Room"] == "5"
        assert here("send", address(hub), "x", WSC_FAST_TOKEN="secret").returncode == 0


def test_a_hub_that_cannot_be_reached_is_one_line(echo: Hub, here: Here) -> None:
    fails_in_one_line(here("tail", f"localhost:{free_port()}"), 1, "connection refused")
    fails_in_one_line(here("tail", "ws://no.invalid/ws"), 1, "cannot be reached: ")
    fails_in_one_line(here("tail", address(echo, "/no")), 1, "answers 404 Not Found (is the path")
    wrong_scheme = address(echo).replace("ws://", "wss://")
    fails_in_one_line(here("tail", wrong_scheme), 1, "does not speak TLS")
    for url in ("ftp://a/b", "ws://", "ws://a:99999/", "ws://user@a/", "ws://a/#b", "ws://a b/"):
        assert here("tail", url).returncode == 2, url
    fails_in_one_line(here("tail", address(echo), "-H", "none"), 2, "'none' is no header")


def test_ctrl_c_ends_silently_with_130(echo: Hub) -> None:
    with begun("tail", address(echo)) as process:
        line_with(process.stderr, "connected")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    wait_until(lambda: not echo.get_connected_clients())


def test_a_reader_that_has_gone_ends_it_silently() -> None:
    with running_in_thread(repeating()) as hub, begun("tail", address(hub)) as process:
        line_with(process.stderr, "connected")
        assert process.stdout is not None
        process.stdout.close()
        hub.broadcast_text("nobody reads it")
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


# --- send ---


def test_all_that_is_sent_has_been_read_when_it_ends(tmp_path: Path, here: Here) -> None:
    heard: list[str | bytes] = []
    hub = Hub()

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        heard.append(message)

    def sent(*words: str | Path, given: str | bytes | None = None) -> list[str | bytes]:
        heard.clear()
        command = here if given is None else partial(run, given=given)
        done = command("send", address(hub), *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return list(heard)

    content = tmp_path / "content"
    content.write_bytes(b"a\nb\xff")
    with running_in_thread(hub):
        assert sent("one", "two") == ["one", "two"]
        assert sent("é", "--binary") == ["é".encode()]
        assert sent("--file", content, "--binary") == [b"a\nb\xff"]
        long = "x" * 300_000
        given = f"a\r\nb\n\n{long}\nc"
        assert sent("first", "-", given=given) == ["first", "a", "b", "", long, "c"]
        assert sent("--json", given='{"a": 1}\n[2]\n') == ['{"a": 1}', "[2]"]
        with content.open("rb") as lines:  # a file as standard input, which no loop waits for
            heard.clear()
            words = command_of("send", address(hub), "-", "--binary")
            subprocess.run(words, stdin=lines, env=ENVIRONMENT, check=True, timeout=PATIENCE)
        assert heard == [b"a", b"b\xff"]


def test_what_cannot_be_sent_is_found_before_anything_is(
    tmp_path: Path, echo: Hub, here: Here
) -> None:
    fails_in_one_line(here("send", address(echo), "{", "--json"), 2, "TEXT is no JSON")
    fails_in_one_line(here("send", address(echo), "-f", tmp_path / "a"), 2, "cannot be read")
    given = '{"a": 1}\n{"a": \n'
    fails_in_one_line(run("send", address(echo), "--json", given=given), 2, "line 2 is no JSON")
    fails_in_one_line(run("send", address(echo), given=b"\xff"), 2, "line 1 is no UTF-8 text")
    with Terminal("send", address(echo)) as terminal:
        assert terminal.end() == 2
    assert "there is nothing to send" in terminal.shown


def test_answers_that_do_not_come_and_a_hub_that_ends_are_failures(echo: Hub, here: Here) -> None:
    done = here("send", address(echo), "a", "--wait", "2", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "a\n")
    assert done.stderr == "wsc-fast: 1 of 2 answers came in 0.2 s\n"
    hub = Hub()

    @hub.on_message_received
    def received(client: Client, message: str | bytes) -> None:
        client.disconnect(4000, "enough")

    # Lines that are still to come do not keep it.
    reading, writing = os.pipe()
    os.write(writing, b"a\n")
    with running_in_thread(hub), open(reading, "rb") as lines, open(writing, "wb"):
        done = subprocess.run(
            command_of("send", address(hub), "-"),
            env=ENVIRONMENT,
            stdin=lines,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 1
    assert "the hub closed the connection with 4000 (enough)" in done.stderr


@contextmanager
def silent() -> Iterator[int]:
    """The port of a server that upgrades a connection, and takes no notice of it any more."""

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            head = peer.recv(1 << 16)
            (key,) = re.findall(rb"Sec-WebSocket-Key: (\S+)", head, re.I)
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            peer.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Accept: "
                + base64.b64encode(digest)
                + b"\r\n\r\n"
            )
            while peer.recv(1 << 16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(PATIENCE)


def test_a_hub_that_does_not_answer_the_close_frame_is_a_failure(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsc_fast.cli.peer.CLOSE_TIMEOUT", 0.1)
    with silent() as port:
        done = here("send", f"localhost:{port}", "hello")
    fails_in_one_line(done, 1, "the hub does not answer the close frame")
    with silent() as port:
        done = here("bench", f"localhost:{port}", "-c", "1", "-d", "0.1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["errors"] == {"the hub did not answer the close frame": 1}


# --- bench ---


def benched(here: Here, *words: str) -> dict[str, Any]:
    done = here("bench", *words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_echo_is_measured(echo: Hub, here: Here) -> None:
    found = benched(here, address(echo), "-c", "5", "-d", "0.5", "-s", "100")
    assert (found["clients"], found["connected"], found["errors"]) == (5, 5, {})
    assert found["sent"] == found["received"] > 5
    assert found["received_bytes"] == 100 * found["received"]
    times = found["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99.9"] <= times["max"]


def test_a_rate_is_that_of_all_clients_together(echo: Hub, here: Here) -> None:
    found = benched(here, address(echo), "-c", "5", "-d", "1", "--rate", "200")
    assert found["sent"] + found["held_back"] == pytest.approx(200, abs=5)


def test_a_broadcast_is_measured_by_all_clients(here: Here) -> None:
    with running_in_thread(repeating()) as hub:
        words = ("-c", "5", "-d", "0.5", "--mode", "broadcast", "--rate", "40")
        found = benched(here, address(hub), *words)
        assert found["received"] == 5 * found["sent"] > 0
        assert found["latency_ms"]["p50"] > 0
        # Each message comes to the others as well, and only its sender measures it.
        found = benched(here, address(hub), "-c", "3", "-d", "0.3", "--rate", "50")
        assert found["received"] == 3 * found["sent"]


def test_a_load_without_answers_or_with_failures_ends_with_1(echo: Hub, here: Here) -> None:
    with running_in_thread(Hub(HubConfig(max_connections=3))) as hub:
        done = here("bench", address(hub), "-c", "3", "-d", "0.2", "--json")
        assert done.returncode == 1
        assert done.stderr == (
            "wsc-fast: no message of the load came back: --mode echo needs a hub that answers "
            "each; --mode listen counts what a hub sends by itself\n"
        )
        done = here("bench", address(hub), "-c", "5", "-d", "0.2", "--json")
        assert done.returncode == 1
        found = json.loads(done.stdout)
        assert found["connected"] == 3
        assert list(found["errors"].values()) == [2]
        assert "503" in next(iter(found["errors"]))
    done = here("bench", address(echo), "--mode", "listen", "--rate", "5")
    fails_in_one_line(done, 2, "--rate has no use with --mode listen")


def test_a_hub_that_answers_otherwise_is_not_measured(here: Here) -> None:
    hub = Hub()
    hub.on_message_received(lambda client, message: client.send("something else"))
    with running_in_thread(hub):
        done = here("bench", address(hub), "-c", "3", "-d", "0.2", "--json")
    found = json.loads(done.stdout)
    assert (found["received"], found["latency_ms"]) == (3, None)
    assert done.returncode == 1
    assert "no message of the load came back: --mode echo needs" in done.stderr


def test_a_terminal_shows_the_load_while_it_lasts(echo: Hub) -> None:
    with Terminal("bench", address(echo), "-c", "4", "-d", "60") as terminal:
        terminal.until(lambda shown: re.search(r"last second.*latency p99\.9 +[\d.]+", shown, re.S))
        assert terminal.end(signal.SIGINT) == 130
    assert "4 of 4" in terminal.shown
    assert "whole run" in terminal.shown.rpartition("last second")[2]  # the figures so far
    assert TRACEBACK not in terminal.shown


def test_a_histogram_is_near_and_keeps_its_size() -> None:
    histogram = Histogram()
    times = [number * number for number in range(1, 5_000)]
    buckets = len(histogram._buckets)
    for each in times:
        histogram.add(each)
    for percent in (1, 50, 90, 99, 99.9):
        true = times[max(0, -(-len(times) * percent // 100).__int__() - 1)]
        assert true <= histogram.percentile(percent) <= true * 1.016 + 1
    assert histogram.percentile(100) == histogram.longest == times[-1]
    assert histogram.mean == sum(times) / len(times)
    assert len(histogram._buckets) == buckets
    histogram.add(1 << 60)
    assert histogram.percentile(100) == 1 << 40
    assert Histogram().percentile(50) == 0


# --- top ---

METRICS = """\
# HELP wsc_connected_clients Clients.
# TYPE wsc_connected_clients gauge
wsc_connected_clients {clients}
wsc_rooms 3.0
wsc_queued_bytes 2.5e+06
wsc_uptime_seconds {seconds}
wsc_messages_sent_total {messages}
wsc_refusals_total{{reason="origin"}} 2.0
wsc_refusals_total{{reason="a \\"quoted\\" one"}} 1.0
wsc_closes_total{{code="1000"}} 4.0
wsc_flush_seconds_bucket{{le="0.001"}} {messages}
wsc_flush_seconds_bucket{{le="0.01"}} {messages}
wsc_flush_seconds_bucket{{le="+Inf"}} {messages}
wsc_flush_seconds_count {messages}
wsc_store_latency_seconds_bucket{{le="0.1",operation="append"}} 1
wsc_store_latency_seconds_bucket{{le="+Inf",operation="append"}} 1
wsc_store_latency_seconds_bucket{{le="0.1",operation="read"}} 0
wsc_store_latency_seconds_bucket{{le="+Inf",operation="read"}} 1
"""


def metrics(seconds: float, messages: float, clients: int = 5) -> str:
    return METRICS.format(seconds=seconds, messages=messages, clients=clients)


@contextmanager
def watched() -> Iterator[tuple[Hub, threading.Event]]:
    """A hub whose metrics grow by 100 messages a look; the event has them fail."""
    hub, failing, looks = Hub(), threading.Event(), iter(range(1, 1 << 20))

    @hub.route("/metrics")
    def serve(request: Request) -> str | Response:
        if failing.is_set():
            return Response(status=503)
        look = next(looks)
        return metrics(100.0 * look, 100.0 * look)

    with running_in_thread(hub):
        yield hub, failing


def test_a_look_at_the_metrics_has_rates_and_percentiles(quiet_log: None, here: Here) -> None:
    with watched() as (hub, failing):
        url = f"127.0.0.1:{hub.port}"
        done = here("top", url, "--once", "--json", "--interval", "0.5")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert found["url"] == f"http://{url}/metrics"
        assert found["now"]["clients"] == 5
        assert 50 < found["per_second"]["messages_out"] <= 200
        assert found["by_reason"]["refusals"] == {"origin": 2, 'a "quoted" one': 1}
        assert found["latency_ms"]["flush"] == {"p50": 0.5, "p90": 0.9, "p99": 0.99}
        assert found["latency_ms"]["ack"]["p50"] is None
        plain = here("top", f"ws://{url}", "--once", "--interval", "0.1").stdout
        assert "a second" in plain
        assert "\x1b" not in plain
        failing.set()
        fails_in_one_line(here("top", url, "--once"), 1, "answers 503")


def test_hubs_with_names_are_shown_together(quiet_log: None, here: Here) -> None:
    registry = CollectorRegistry()
    hubs = [Hub(HubConfig(allowed_origins=["https://a.example"])) for _ in range(2)]
    for hub in hubs:
        hub.enable_metrics(registry=registry, name="chat")
    with running_in_thread(hubs[0]) as first, running_in_thread(hubs[1]) as second:
        for hub in (first, second, second):
            here("tail", address(hub), "--origin", "https://b.example")
        found = json.loads(here("top", address(first, ""), "--once", "--json").stdout)
        assert found["by_reason"]["refusals"]["origin"] == 3
        assert "chat" not in found["by_reason"]["refusals"]
        assert found["uptime_seconds"] <= first.get_stats().uptime


def test_a_terminal_shows_the_metrics_until_ctrl_c(quiet_log: None) -> None:
    with watched() as (hub, failing):
        with Terminal("top", f"127.0.0.1:{hub.port}", "-i", "0.1") as terminal:
            terminal.until(lambda shown: "origin" in shown and "2.5 MB" in shown)
            failing.set()
            terminal.until(lambda shown: "answers 503" in shown)
            assert terminal.end(signal.SIGINT) == 130
        # The cursor is back, and so is the screen.
        assert terminal.shown.rstrip().endswith("\x1b[?25h\x1b[?1049l")
        assert TRACEBACK not in terminal.shown


def test_an_address_without_metrics_of_a_hub_is_one_line(echo: Hub, here: Here) -> None:
    hub = Hub()
    hub.route("/other")(lambda request: "python_info 1\n")
    elsewhere = {"Location": "http://127.0.0.1:1/"}
    hub.route("/moved")(lambda request: Response(status=302, headers=elsewhere))
    hub.route("/page")(lambda request: "<html> no metrics </html>")
    with running_in_thread(hub):
        url = f"http://127.0.0.1:{hub.port}"
        fails_in_one_line(here("top", url), 1, "(hub.enable_metrics() serves")
        fails_in_one_line(here("top", f"{url}/other"), 1, "has no metrics of a hub")
        fails_in_one_line(here("top", f"{url}/page"), 1, "serves no metrics")
        fails_in_one_line(here("top", f"{url}/moved"), 1, "answers 302 Found")
    fails_in_one_line(here("top", url), 1, "cannot be reached: Connection refused")
    fails_in_one_line(here("top", "ftp://a"), 2, "is no URL of metrics")


def test_two_looks_are_compared_and_a_new_hub_is_noticed() -> None:
    first, second = Metrics(metrics(10, 100), 1.0), Metrics(metrics(12, 300), 3.0)
    change = Change(first, second)
    assert change.rate("wsc_messages_sent_total") == 100.0
    assert change.percentile("wsc_flush_seconds", 50) == pytest.approx(0.0005)
    assert change.percentile("wsc_store_latency_seconds", 50) is None
    # Half of all, each operation counted, is above the last bound.
    assert Change(None, first).percentile("wsc_store_latency_seconds", 99) == 0.1
    assert Change(None, first).rate("wsc_messages_sent_total") == 10.0
    anew = Change(second, Metrics(metrics(2, 50), 5.0))
    assert anew.rate("wsc_messages_sent_total") == 25.0
