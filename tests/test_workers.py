"""`serve --workers`, uvicorn's --workers and `bus="local"`: real processes on a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import test_cli
from tests.aware import Aware, keeping
from tests.ports import free_port
from tests.redis_server import PROGRAM, RedisServer
from tests.support import named
from tests.test_cli import (
    ENVIRONMENT,
    PATIENCE,
    Here,
    begun,
    command_of,
    fails_in_one_line,
    run,
)
from wsc_fast import BusError, ConfigError, Hub, HubStateError
from wsc_fast.bus import local
from wsc_fast.bus.local import LocalBus, LocalServer, directory_of
from wsc_fast.bus.memory import MemoryBus
from wsc_fast.testing import CLOSE, eventually, running, wait_until

pytestmark = pytest.mark.skipif(
    PROGRAM is None and os.environ.get("WSC_REQUIRE_CLIENTS") != "1",
    reason="redis-server is not installed",
)

here = test_cli.here  # the fixture
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runtime directory of the test's own, whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield


def environment() -> dict[str, str]:
    return ENVIRONMENT | {"XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}


APP = """
import os

from wsc_fast import Hub, Identity

hub = Hub(authenticate=lambda request: Identity(request.query["id"], request.query["id"]))
hub.keep("r*", size=1000)


@hub.on_client_connected
def enter(client):
    hub.join_room(client.id, "r")


@hub.on_message_received
def say(client, message):
    if message == "pid":
        client.send(str(os.getpid()))
    else:
        hub.broadcast_to_room("r", message)
"""


@dataclass
class At:
    port: int


class Serving:
    """`wsc-fast serve app:hub --workers 2` in a process, and all that it has said so far."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, port: int) -> None:
        self.process = process
        self.name = str(folder)  # of its local bus
        self.at: Any = At(port)  # for RawClient, in the place of a hub
        self._log = folder / "log"

    def said(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def until(self, condition: Callable[[], object]) -> None:
        def fulfilled() -> bool:
            return bool(condition())

        try:
            await eventually(fulfilled, timeout=PATIENCE)
        except Exception:
            raise AssertionError(self.said()) from None

    async def ready(self) -> None:
        await self.until(lambda: "workers serve" in self.said())

    def family(self) -> list[psutil.Process]:
        """It, its workers, and the server of the local bus."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, PATIENCE)


@contextmanager
def serving(
    folder: Path, *options: str, app: str = APP, code: str | None = None
) -> Iterator[Serving]:
    (folder / "app.py").write_text(app)
    port = free_port()
    words = ["serve", "app:hub", "--workers", "2", "--port", str(port), "--drain", "0.3", *options]
    command = command_of(*words) if code is None else [sys.executable, "-c", code, *words]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment() | {"WSC_LOCAL_BUS": str(folder)},
            stdin=subprocess.DEVNULL,
            stderr=log,
            text=True,
        ) as process,
    ):
        found = Serving(process, folder, port)
        try:
            yield found
        finally:
            left = found.family() if process.poll() is None else []
            for each in left:
                each.kill()


def are_gone(family: list[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


async def pid_of(client: Aware) -> int:
    """The process that serves a new client, once that is a member of its room."""
    await client.send_head({}, b"pid")
    pid, is_member = 0, False
    while not (pid and is_member):
        head, payload = await client.recv()
        pid = int(payload or pid)
        is_member = is_member or "recovered" in head
    return pid


async def members(at: Any) -> dict[int, Aware]:
    """A client of each of two processes, by the process."""
    found: dict[int, Aware] = {}
    async with asyncio.timeout(PATIENCE):
        while len(found) < 2:
            # Several at once, since those that come one by one may all go to the same process.
            names = [f"m{next(_numbers)}" for _ in range(8)]
            clients = await asyncio.gather(*(Aware.open(at, name) for name in names))
            for pid, client in zip(
                await asyncio.gather(*map(pid_of, clients)), clients, strict=True
            ):
                if len(found) < 2 and pid not in found:
                    found[pid] = client
                else:
                    client.close()
    return found


async def next_text(client: Aware) -> bytes:
    payload = b""
    while not payload:
        _, payload = await client.recv()
    return payload


async def again(at: Any, name: str, positions: dict[str, str]) -> Aware:
    """Comes back as clients do: at once, until it is let in."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await Aware.open(at, name, positions)
            except (ConnectionError, AssertionError):
                await asyncio.sleep(0.02)


# --- serve --workers ---


async def test_a_message_reaches_the_clients_of_the_other_worker_and_sigterm_ends_all(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as served:
        await served.ready()
        first, second = (await members(served.at)).values()
        await first.send_head({}, b"hello")
        assert await next_text(second) == b"hello"
        await second.send_head({}, b"back")
        assert await next_text(first) == b"hello"
        assert await next_text(first) == b"back"
        family = served.family()
        served.signal(signal.SIGTERM)
        for client in (first, second):
            while (frame := await client.raw.recv()).opcode != CLOSE:
                pass
            assert frame.code == 1012
            client.close()
        assert await served.ended() == 0
        await eventually(lambda: are_gone(family))
        said = served.said()
        assert said.count("the hub has no bus: the workers share one") == 1
        assert "Traceback" not in said
        for number in (1, 2):
            assert re.search(rf"^worker {number}: .* INFO wsc_fast: listening on", said, re.M)


async def test_a_killed_worker_is_started_again_and_its_clients_recover(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        await served.ready()
        clients = await members(served.at)
        (pid, lost), (_, other) = clients.items()
        await other.send_head({}, b"before")
        assert await next_text(lost) == b"before"
        os.kill(pid, signal.SIGKILL)
        await other.send_head({}, b"meanwhile")
        assert await next_text(other) == b"before"
        assert await next_text(other) == b"meanwhile"
        back = await again(served.at, "back", lost.positions)
        head, payload = await back.recv()
        assert payload == b"meanwhile", head
        head, payload = await back.recv()
        assert (head["recovered"], head["missed"]) == (True, 1), head
        await served.until(lambda: served.said().count(": listening on") == 3)
        assert re.search(rf"worker [12] \(process {pid}\) was ended by SIGKILL", served.said())
        for client in (lost, other, back):
            client.close()


async def test_nothing_is_left_of_a_killed_supervisor(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        await served.ready()
        family = served.family()
        names = " ".join(each.name() for each in family)
        assert len(family) >= 4, names
        assert "server" in names
        served.signal(signal.SIGKILL)
        await eventually(lambda: are_gone(family), timeout=PATIENCE)


async def followed(at: Any, client: Aware, last: int) -> tuple[list[int], int]:
    """All numbers that a client gets, which comes back after each 1012; how often it came back."""
    heard: list[int] = []
    returns = 0
    while not heard or heard[-1] != last:
        frame = await client.raw.recv(PATIENCE)
        if frame.opcode == CLOSE:
            assert frame.code == 1012
            client.close()
            # There is one attempt alone: nobody is refused.
            client = await Aware.open(at, f"c{last}{returns}{id(heard)}", client.positions)
            returns += 1
            continue
        head, _, payload = frame.payload.partition(b"\n")
        fields = json.loads(head) if head else {}
        assert "gap" not in fields, fields
        assert fields.get("recovered", True) or fields.get("first"), fields
        if "pos" in fields:
            client.positions["r"] = fields["pos"]
        if payload:
            heard.append(int(payload))
    client.close()
    return heard, returns


async def test_a_rolling_reload_under_load_refuses_nobody_and_loses_nothing(
    tmp_path: Path,
) -> None:
    last = 10_000
    with serving(tmp_path) as served:
        await served.ready()
        workers = await members(served.at)
        for client in workers.values():
            client.close()
        clients = [await Aware.open(served.at, f"c{number}") for number in range(8)]
        for client in clients:
            assert (await client.recv())[0]["first"] is True
        # A hub of our own on the bus of the workers publishes, as another process may.
        hub = keeping(hub=Hub(authenticate=named, bus=LocalBus(served.name)), size=1000)
        async with running(hub):
            following = [
                asyncio.create_task(followed(served.at, client, last)) for client in clients
            ]
            served.signal(signal.SIGHUP)
            sent = 0
            while "all workers have been replaced" not in served.said():
                await hub.publish("r", str(sent))
                sent += 1
                await asyncio.sleep(0.005)
                assert not any(task.done() for task in following), served.said()
            await hub.publish("r", str(last))
            for task in following:
                heard, returns = await task
                assert heard == [*range(sent), last]
                assert returns >= 1
        newer = await members(served.at)
        assert not newer.keys() & workers.keys()
        for client in newer.values():
            client.close()


async def test_code_that_fails_leaves_the_workers_and_is_given_up_once_they_die(
    tmp_path: Path,
) -> None:
    code = """if True:
        from wsc_fast.cli import app, workers
        workers.FIRST_PAUSE = workers.LAST_PAUSE = 0.01
        workers.MOST_FAILED_STARTS = 2
        raise SystemExit(app.run())
    """
    with serving(tmp_path, code=code) as served:
        await served.ready()
        before = await members(served.at)
        (tmp_path / "app.py").write_text("1 / 0")
        served.signal(signal.SIGHUP)
        await served.until(lambda: "worker 1 could not be replaced" in served.said())
        after = await members(served.at)
        assert before.keys() == after.keys()
        for client in (*before.values(), *after.values()):
            client.close()
        family = served.family()
        os.kill(next(iter(before)), signal.SIGKILL)
        assert await served.ended() == 1
        assert "2 workers in a row died at their start: giving up" in served.said()
        await eventually(lambda: are_gone(family))


async def test_a_module_that_raises_is_told_once(tmp_path: Path) -> None:
    with serving(tmp_path, app="1 / 0") as served:
        assert await served.ended() == 1
        assert served.said().count("Traceback") == 1
        assert served.said().endswith("the module 'app' cannot be imported: ZeroDivisionError\n")


async def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain", "60") as served:
        await served.ready()
        family = served.family()
        # A client that does not answer the close is waited for.
        silent = await members(served.at)
        served.signal(signal.SIGINT)
        await served.until(lambda: served.said().count("draining:") == 2)
        served.signal(signal.SIGINT)
        assert await served.ended() == 0
        await eventually(lambda: are_gone(family))
        for client in silent.values():
            client.close()


def test_port_0_is_one_port_of_all_workers_whose_lines_have_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    options = ["--port", "0", "--no-bus", "--drain", "0", "--log-format", "json"]
    listening = []
    with begun("serve", "app:hub", "--workers", "2", *options, cwd=tmp_path) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "workers serve" in line:
                break
            listening.append(json.loads(line))
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert [line["event"] for line in listening] == ["listening", "listening"]
    assert {line["worker"] for line in listening} == {1, 2}
    assert listening[0]["listen"] == listening[1]["listen"] != ["127.0.0.1:0"]


def test_mistakes_end_in_one_line(here: Here) -> None:
    def served(*options: str) -> subprocess.CompletedProcess[str]:
        return here("serve", "app:hub", *options)

    fails_in_one_line(served("--workers", "2", "--reload"), 2, "--workers and --reload exclude")
    fails_in_one_line(served("--no-bus"), 2, "--no-bus is for --workers")
    # One that would share its port is refused as well.
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        taken = served("--workers", "2", "--port", str(port))
        fails_in_one_line(taken, 1, f"cannot listen on 127.0.0.1:{port}: ")


def test_workers_that_would_have_no_bus_are_refused(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = str(free_port())
    done = run("serve", "app:hub", "--workers=2", "--port", port, cwd=tmp_path, PATH="/nowhere")
    fails_in_one_line(done, 2, "each worker would reach its own clients only. Install valkey")


# --- bus="local" ---


async def test_hubs_of_one_name_are_one_and_may_start_again(tmp_path: Path) -> None:
    first, second = (
        keeping(hub=Hub(authenticate=named, bus=LocalBus(str(tmp_path)))) for _ in range(2)
    )
    async with running(second), running(first):
        clients = [await Aware.open(hub, "a") for hub in (first, second)]
        for client in clients:
            assert "first" in (await client.recv())[0]
        await first.publish("r", "over")
        for client in clients:
            assert await next_text(client) == b"over"
            client.close()
    async with running(first):
        assert (await first.publish("r", "anew")).position


async def test_a_hub_goes_on_when_the_one_with_the_server_has_gone(tmp_path: Path) -> None:
    holder, other = (
        keeping(hub=Hub(authenticate=named, bus=LocalBus(str(tmp_path)))) for _ in range(2)
    )
    await holder.start(port=0)
    async with running(other):
        client = await Aware.open(other, "b")
        assert "first" in (await client.recv())[0]
        await holder.publish("r", "first")
        assert await next_text(client) == b"first"
        await holder.stop()
        # The publish waits for the new server, which knows nothing of the old one's histories.
        await other.publish("r", "second")
        while "gap" not in (await client.recv())[0]:
            pass
        await other.publish("r", "third")
        assert await next_text(client) == b"third"
        client.close()


async def test_the_hub_with_the_server_leaves_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    holder, other = (
        keeping(hub=Hub(authenticate=named, bus=LocalBus(str(tmp_path)))) for _ in range(2)
    )
    await holder.start(port=0)
    await other.start(port=0)
    client = await Aware.open(other, "b")
    assert "first" in (await client.recv())[0]
    server: Any = holder.bus
    stopping = asyncio.create_task(holder.stop())
    await eventually(lambda: server._local._seat is None)
    # The other one has its server still, as have the hubs that start now.
    await other.publish("r", "on")
    assert await next_text(client) == b"on"
    assert not stopping.done()
    client.close()
    await other.stop()
    await stopping
    assert not server._local.path.exists()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_the_hub_with_the_server_waits_for_a_while_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LAST", 0.1)
    holder, other = (Hub(bus=LocalBus(str(tmp_path))) for _ in range(2))
    await holder.start(port=0)
    async with running(other):
        async with asyncio.timeout(2):
            await holder.stop()


def test_no_hub_comes_to_a_server_that_ends(tmp_path: Path) -> None:
    holder, other = (LocalServer(tmp_path / "wsc_fast" / "name") for _ in range(2))
    holder.look()
    try:
        assert holder.enter()
        assert other.enter()
        other.look()
        assert other.can_end()  # it is not its own
        holder.leave()
        assert not holder.can_end()
        other.leave()
        assert holder.can_end()
        assert not other.enter()
    finally:
        holder.close()
    assert other.enter()
    other.close()


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    hub = keeping(hub=Hub(authenticate=named, bus=LocalBus(str(tmp_path))))
    async with running(hub):
        (server,) = [
            each
            for each in psutil.Process().children(recursive=True)
            if str(directory_of(str(tmp_path))) in " ".join(each.cmdline()) and each.name() != "sh"
        ]
        server.kill()
        assert (await hub.publish("r", "on")).position
    assert are_gone([server])


async def test_without_a_server_program_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    hub = Hub(bus=LocalBus(str(tmp_path)))
    with pytest.raises(BusError, match="apt install redis-server"):
        await hub.start(port=0)


def test_a_directory_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LocalServer(tmp_path / "wsc_fast" / "name")
    (tmp_path / "wsc_fast").mkdir(mode=0o755)
    with pytest.raises(BusError, match="of this user alone"):
        server.look()
    os.chmod(tmp_path / "wsc_fast", 0o700)
    server.look()
    try:
        assert (tmp_path / "wsc_fast/name").stat().st_mode & 0o777 == 0o700
        wait_until(server.path.exists)
        wait_until(lambda: server.path.stat().st_mode & 0o777 == 0o600)
    finally:
        server.close()
    assert not server.path.exists()
    server.close()


def test_hubs_of_one_file_or_one_name_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local.VARIABLE, raising=False)
    assert repr(Hub(bus="local").bus) == repr(LocalBus(__file__)) == repr(LocalBus())
    monkeypatch.setenv(local.VARIABLE, "chat")
    assert repr(LocalBus()) == repr(LocalBus("chat")) != repr(LocalBus("other"))


async def test_a_bus_is_chosen_before_the_start() -> None:
    with pytest.raises(ConfigError, match=r'must be a Bus or "local", not .*redis:'):
        Hub(bus="redis://localhost")
    with pytest.raises(ConfigError, match="name must be"):
        LocalBus("")
    hub = keeping(hub=Hub(authenticate=named))
    assert hub.bus is None
    bus = MemoryBus()
    hub.set_bus(bus)
    assert hub.bus is bus
    async with running(hub):
        with pytest.raises(HubStateError, match="the bus cannot change"):
            hub.set_bus("local")
        assert (await hub.publish("r", "kept")).position


# --- uvicorn ---

BESIDE = (
    APP.replace("hub = Hub(", "hub = Hub(bus=bus, ").replace(
        "import Hub, Identity\n",
        """import Hub, Identity, RedisBus

bus = RedisBus(os.environ["BUS"]) if "BUS" in os.environ else "local"
""",
    )
    + """

ws = hub.uvicorn(path="/ws")


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"app"})
"""
)


async def test_a_message_reaches_the_clients_of_another_worker_of_uvicorn(tmp_path: Path) -> None:
    await reach_another_worker(tmp_path, {})


async def test_a_redis_bus_connects_the_workers_of_uvicorn(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        await reach_another_worker(tmp_path, {"BUS": server.url})


async def reach_another_worker(tmp_path: Path, more: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(BESIDE)
    at: Any = At(free_port())
    words = ["-m", "uvicorn", "app:app", "--ws", "app:ws", f"--port={at.port}", "--workers=2"]
    with subprocess.Popen(  # noqa: ASYNC220 - its start takes no time
        [sys.executable, *words],
        cwd=tmp_path,
        env=environment() | more,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            (await again(at, "begin", {})).close()
            first, second = (await members(at)).values()
            await first.send_head({}, b"hello")
            assert await next_text(second) == b"hello"
            family = psutil.Process(process.pid).children(recursive=True)
            for client in (first, second):
                client.close()
            process.terminate()
            _, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
            assert "each with a hub of its own" not in errors
            assert "Traceback" not in errors
            assert re.findall("^.* (?:WARNING|ERROR) .*$", errors, re.M) == []
            await eventually(lambda: are_gone(family))
        finally:
            # uvicorn's workers outlive it where it is killed.
            left = psutil.Process(process.pid).children() if process.poll() is None else []
            for each in (process, *left):
                each.kill()
