"""The port of `wsc-fast serve` while its processes are replaced: nobody is reset or refused."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.ports import free_port
from tests.support import TLS, has_ipv6
from tests.test_cli import ENVIRONMENT, PATIENCE
from tests.test_restart import UPGRADE, write
from wsc_fast import Hub, ValidationError
from wsc_fast.cli import held_port
from wsc_fast.testing import RawClient, eventually, running, wait_until

APP = """
import os
import time

from wsc_fast import Hub

hub = Hub()
hub.route("/pid")(lambda request: str(os.getpid()))


@hub.on_client_connected
def enter(client):
    time.sleep(0.002)  # so that connections wait in the queues of the sockets
"""

# Runs the command with these pauses between a death and the next start.
PAUSING = """if True:
    from wsc_fast.cli import app, workers
    workers.FIRST_PAUSE = workers.LAST_PAUSE = {pause}
    raise SystemExit(app.run())
"""
# The service manager's way: the variables name the process that is to have the sockets.
ACTIVATED = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"]


class Serving:
    """`wsc-fast serve app:hub` in a process, and all that it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, address: tuple[str, int]):
        self.process = process
        self.address = address
        self._log = log

    def said(self, text: str) -> int:
        """Counts the occurrences of a text in it."""
        return self._log.read_text().count(text)

    def until(self, text: str, times: int = 1) -> None:
        def is_said() -> bool:
            assert self.process.poll() is None, self._log.read_text()
            return self.said(text) >= times

        wait_until(is_said, timeout=PATIENCE)

    def replaced(self, times: int) -> None:
        """Has the workers replaced so often."""
        for number in range(1, times + 1):
            self.process.send_signal(signal.SIGHUP)
            self.until("all workers have been replaced", number)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        """Asks it to end, and waits for that."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self._log.read_text()
        assert "Traceback" not in self._log.read_text()


@contextmanager
def serving(
    folder: Path,
    *options: str,
    host: str = "127.0.0.1",
    pause: float | None = None,
    sockets: Sequence[socket.socket] = (),
    name: str = "log",
    app: str = APP,
) -> Iterator[Serving]:
    """Begins the command; with sockets as the service manager does it."""
    (folder / "app.py").write_text(app)
    address = sockets[0].getsockname()[:2] if sockets else (host, free_port())
    words = [sys.executable, "-m", "wsc_fast"]
    if pause is not None:
        words = [sys.executable, "-c", PAUSING.format(pause=pause)]
    words += ["serve", "app:hub", *options]
    words += [] if sockets else ["--host", host, "--port", str(address[1])]
    more: dict[str, Any] = {}
    environment = dict(ENVIRONMENT)
    if sockets:
        words = [*ACTIVATED, *words]
        environment["LISTEN_FDS"] = str(len(sockets))
        numbers = range(3, 3 + len(sockets))
        more["pass_fds"] = list(numbers)
        more["preexec_fn"] = partial(_place, [sock.fileno() for sock in sockets])
    with (
        (folder / name).open("w") as log,
        subprocess.Popen(words, cwd=folder, env=environment, stderr=log, **more) as process,
    ):
        try:
            yield Serving(process, folder / name, address)
        finally:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    each.kill()


def _place(descriptors: list[int]) -> None:
    # First above all of the places, since one may be the place of another.
    above = [os.dup2(each, 100 + place) for place, each in enumerate(descriptors)]
    for place, each in enumerate(above):
        os.dup2(each, 3 + place, inheritable=True)


@contextmanager
def listening(*hosts: str) -> Iterator[list[socket.socket]]:
    """Sockets of a service manager."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((host, 0))) for host in hosts]
        yield sockets


class Crowd:
    """Threads that connect as fast as they can; each asks for an upgrade and leaves.

    Attributes:
        served: how many have got their 101.
        failed: what the others have got instead.
    """

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self.served = 0
        self.failed: collections.Counter[str] = collections.Counter()
        self._address, self._context = address, context
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._come_and_go) for _ in range(4)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def grows(self, by: int) -> None:
        """Returns once so many more have been served."""
        goal = self.served + by
        wait_until(lambda: self.served >= goal or self.failed, timeout=PATIENCE)

    def _come_and_go(self) -> None:
        while not self._ending.is_set():
            stage = "connect"
            try:
                with socket.create_connection(self._address, timeout=PATIENCE) as plain:
                    # It resets at its end, and leaves no port in TIME_WAIT.
                    linger = struct.pack("ii", 1, 0)
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    stage = "upgrade"
                    got = self._upgrade(plain)
            except OSError as error:
                self.failed[f"{stage}: {error!r}"] += 1
            else:
                if got.startswith(b"HTTP/1.1 101 "):
                    self.served += 1
                else:
                    self.failed[repr(got[:30])] += 1

    def _upgrade(self, plain: socket.socket) -> bytes:
        if self._context is None:
            plain.sendall(UPGRADE % b"/ws")
            return plain.recv(4096)
        with self._context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(UPGRADE % b"/ws")
            return sock.recv(4096)


def asking(address: tuple[str, int]) -> socket.socket:
    """A connection that has asked which process serves it."""
    sock = socket.create_connection(address, timeout=PATIENCE)
    sock.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return sock


def answer(sock: socket.socket) -> int:
    """The process that serves it."""
    got = b""
    with sock:
        while part := sock.recv(4096):
            got += part
    return int(got.rpartition(b"\r\n")[2])


def spread(address: tuple[str, int], count: int) -> collections.Counter[int]:
    """Counts the connections of each process, of so many."""
    return collections.Counter(answer(asking(address)) for _ in range(count))


# --- serve --workers ---


@pytest.mark.parametrize(
    ("tls", "drain"), [(False, "0"), (False, "0.1"), (True, "0")], ids=["plain", "drain", "tls"]
)
def test_a_crowd_that_connects_during_rolling_reloads_meets_no_reset(
    tmp_path: Path, authority: trustme.CA, tls: bool, drain: str
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    certfile, keyfile = write(authority, tmp_path)
    options = ["--certfile", certfile, "--keyfile", keyfile] if tls else []
    words = ["--workers", "2", "--no-bus", "--drain", drain, *options]
    with serving(tmp_path, *words) as served:
        served.until("workers serve")
        before = {each.pid for each in served.workers()}
        with Crowd(served.address, context if tls else None) as crowd:
            crowd.grows(100)
            served.replaced(2)
            crowd.grows(100)
        assert crowd.failed == {}
        assert not before & {each.pid for each in served.workers()}
        served.stop()


def test_who_waits_for_a_killed_worker_is_served_by_its_successor(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--no-bus") as served:
        served.until("workers serve")
        killed, other = served.workers()
        killed.suspend()  # so that it accepts nobody
        waiting = [asking(served.address) for _ in range(60)]
        killed.kill()
        found = collections.Counter(map(answer, waiting))
        assert killed.pid not in found
        assert found.pop(other.pid) > 0
        (successor,) = found  # and the kernel has chosen the killed one for some of 60
        assert successor in {each.pid for each in served.workers()}
        served.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux is told whom to choose")
def test_nobody_new_waits_for_a_worker_that_is_missing(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "3", "--no-bus", pause=3600.0) as served:
        served.until("workers serve")
        killed, *others = served.workers()
        killed.kill()
        served.until("starting again in 3600 s")
        found = spread(served.address, 300)
        assert found.keys() == {each.pid for each in others}
        assert min(found.values()) > 90
        served.stop()


def test_a_worker_that_a_reload_brings_back_gets_connections(tmp_path: Path) -> None:
    failing_once = (
        "import os\n"
        "if os.path.exists('broken'):\n"
        "    os.remove('broken')\n"
        "    raise SystemExit('broken')\n"
    )
    options = ["--workers", "2", "--no-bus", "--drain", "0"]
    with serving(tmp_path, *options, pause=1.0, app=failing_once + APP) as served:
        served.until("workers serve")
        (tmp_path / "broken").touch()
        served.workers()[0].kill()
        served.until("starting again in 1 s")
        served.replaced(1)  # it begins behind the start that fails
        assert not (tmp_path / "broken").exists()
        found = spread(served.address, 60)
        assert found.keys() == {each.pid for each in served.workers()}
        assert len(found) == 2
        served.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of another process is set")
def test_a_worker_that_the_system_cannot_start_is_started_later(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--no-bus", "--drain", "0", pause=0.1) as served:
        served.until("workers serve")
        watching = psutil.Process(served.process.pid)
        most = watching.rlimit(psutil.RLIMIT_NOFILE)
        killed, other = served.workers()
        watching.rlimit(psutil.RLIMIT_NOFILE, (watching.num_fds() - 1, most[1]))
        killed.kill()
        served.until("the system starts no worker 1: Too many open files", 6)  # more than may die
        served.process.send_signal(signal.SIGHUP)
        served.until("worker 1 could not be replaced")
        assert spread(served.address, 20).keys() == {other.pid}
        watching.rlimit(psutil.RLIMIT_NOFILE, most)
        served.until("listening on", 3)
        wait_until(lambda: len(spread(served.address, 20)) == 2, timeout=PATIENCE)
        served.replaced(1)
        served.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="no threads help with sends elsewhere")
@pytest.mark.parametrize(("workers", "expected"), [(1, 3), (2, 1), (4, 0)])
def test_threads_for_sends_are_counted_for_all_workers_together(
    tmp_path: Path, workers: int, expected: int
) -> None:
    app = """
from wsc_fast import Hub, HubConfig
from wsc_fast.runtime import cores

cores.usable_cores = lambda: 4
hub = Hub(HubConfig(send_threads="auto"))
"""
    with serving(tmp_path, "--workers", str(workers), "--no-bus", app=app) as served:
        served.until("workers serve")
        for each in served.workers():
            tasks = Path(f"/proc/{each.pid}/task").glob("*/comm")
            assert [task.read_text() for task in tasks].count("wsc-send\n") == expected
        served.stop()


def test_connections_are_spread_evenly_also_among_successors(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--no-bus", "--drain", "0", pause=0.01) as served:
        served.until("workers serve")
        served.replaced(1)
        served.workers()[0].kill()
        served.until("listening on", 5)
        wait_until(lambda: len(spread(served.address, 20)) == 2, timeout=PATIENCE)
        found = spread(served.address, 1000)
        # The standard deviation is 16.
        assert all(380 < count < 620 for count in found.values()), found
        assert found.keys() == {each.pid for each in served.workers()}
        served.stop()


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
@pytest.mark.parametrize("host", ["localhost", "::"])
def test_workers_listen_at_all_addresses_of_a_host(tmp_path: Path, host: str) -> None:
    with serving(tmp_path, "--workers", "2", "--no-bus", host=host) as served:
        served.until("workers serve")
        addresses = {at[4][0] for at in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
        for address in {"::1", "127.0.0.1"} if host == "::" else addresses:
            found = spread((str(address), served.address[1]), 50)
            assert found.keys() == {each.pid for each in served.workers()}
        served.stop()


def test_the_port_ends_with_the_workers(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--no-bus") as served:
        served.until("workers serve")
        served.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(served.address)


@pytest.mark.parametrize("options", [["--workers", "2", "--no-bus"], ["--reload"]], ids=str)
def test_a_program_that_the_module_starts_gets_no_descriptor(
    tmp_path: Path, options: list[str]
) -> None:
    code = "import subprocess\nsubprocess.Popen(['sleep', '100'], close_fds=False)\n"
    with serving(tmp_path, *options, app=code + APP) as served:
        served.until("workers serve" if "--workers" in options else "listening on")
        programs = [
            each
            for each in psutil.Process(served.process.pid).children(recursive=True)
            if each.name() == "sleep"
        ]
        assert programs
        try:
            served.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(served.address)
            for each in programs:
                assert each.num_fds() == 3, os.listdir(f"/proc/{each.pid}/fd")
        finally:
            for each in programs:
                each.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_program_that_the_module_starts_gets_no_socket_of_the_service_manager(
    tmp_path: Path,
) -> None:
    code = "import subprocess\nsubprocess.run(['ls', '/proc/self/fd'], stdout=2, close_fds=False)\n"
    with (
        listening("127.0.0.1") as sockets,
        serving(tmp_path, sockets=sockets, app=code + APP) as served,
    ):
        served.until("listening on")
        listed = (tmp_path / "log").read_text().split()
        assert listed[:4] == ["0", "1", "2", "3"]  # the last one is the folder itself
        assert listed[4] != "4"
        served.stop()


# --- one process after the other ---


def test_one_server_after_another_on_sockets_of_the_service_manager(tmp_path: Path) -> None:
    with listening("127.0.0.1", "127.0.0.1") as sockets, contextlib.ExitStack() as stack:
        address, second = (sock.getsockname() for sock in sockets)
        begin = partial(serving, tmp_path, "--drain", "0.2", sockets=sockets)
        old = stack.enter_context(begin(name="0"))
        old.until("listening on")
        assert spread(second, 3).keys() == {old.process.pid}
        with Crowd(address) as crowd:
            for number in range(1, 3):
                crowd.grows(30)
                if number % 2:  # as `systemctl restart` does it: nobody is there for a while
                    old.stop()
                new = stack.enter_context(begin(name=str(number)))
                new.until("listening on")
                if not number % 2:  # as a supervisor may do it: both are there for a while
                    old.stop()
                old = new
            crowd.grows(30)
        assert crowd.failed == {}
        assert spread(second, 3).keys() == {old.process.pid}
        old.stop()


def test_workers_share_the_sockets_of_the_service_manager(tmp_path: Path) -> None:
    with listening("127.0.0.1") as sockets:
        options = ["--workers", "2", "--no-bus", "--drain", "0"]
        with serving(tmp_path, *options, sockets=sockets) as served:
            served.until("2 workers serve the sockets of the service manager")
            with Crowd(served.address) as crowd:
                served.replaced(1)
                crowd.grows(100)
            assert crowd.failed == {}
            served.stop()


def test_a_reload_keeps_those_who_connect_waiting(tmp_path: Path) -> None:
    with serving(tmp_path, "--reload", "--drain", "0") as served:
        served.until("listening on")
        with Crowd(served.address) as crowd:
            for number in range(2, 4):
                crowd.grows(30)
                now = time.time() + number  # a second each, also where the disk counts seconds
                os.utime(tmp_path / "app.py", (now, now))
                served.until("listening on", number)
            crowd.grows(30)
        assert crowd.failed == {}
        served.stop()


@pytest.mark.parametrize("options", [[], ["--reload"], ["--workers", "1"]], ids=str)
def test_a_descriptor_that_is_no_tcp_socket_is_refused_in_one_line(
    tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "app.py").write_text(APP)
    with (tmp_path / "file").open("w") as file:
        done = subprocess.run(
            [*ACTIVATED, sys.executable, "-m", "wsc_fast", "serve", "app:hub", *options],
            cwd=tmp_path,
            env=ENVIRONMENT | {"LISTEN_FDS": "1"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            pass_fds=[3],
            preexec_fn=partial(_place, [file.fileno()]),
        )
    assert done.returncode == 1
    assert "descriptor 3, handed over, is no socket" in done.stderr
    assert "Traceback" not in done.stderr


# --- the hub's own part ---


@TLS
async def test_a_hub_that_leaves_its_port_lets_in_those_it_has_accepted(
    any_loop: str, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    hub = Hub()
    async with running(hub, reuse_port=True, ssl=server_tls if tls else None):
        request, address = RawClient.request(hub), ("127.0.0.1", hub.port)
        with socket.create_connection(address) as silent:
            connected = socket.create_connection(address)
            leaving = asyncio.create_task(hub._life.leave_port())
            await eventually(lambda: not hub._parts.listener.servers and not _ports(hub))
            secure: dict[str, Any] = {"ssl": client_tls, "server_hostname": "127.0.0.1"}
            reader, writer = await asyncio.open_connection(
                sock=connected, **(secure if tls else {})
            )
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert not leaving.done()  # for a second it waits for the silent one as well
            silent.close()
            await leaving
        writer.transport.abort()


def _ports(hub: Hub) -> list[int]:
    return [each.port for each in hub._parts.listener.acceptors if each.port is not None]


async def test_a_hub_serves_several_sockets(any_loop: str) -> None:
    hub = Hub()
    sockets = [socket.socket() for _ in range(2)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    async with running(hub, sock=sockets):
        assert hub.port == ports[0]
        for count, port in enumerate(ports, 1):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(RawClient.request(hub))
                await eventually(lambda: hub.connections == 1)
                assert hub.get_stats().connections_total == count
            await eventually(lambda: hub.connections == 0)
    with pytest.raises(ValidationError, match="an empty list"):
        await hub.start(sock=[])
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(ValidationError, match="a socket twice"):
            await hub.start(sock=[sock, sock])
        assert sock.fileno() >= 0
    given: Any = [1]
    with pytest.raises(ValidationError, match="a socket or a list of sockets, not 1"):
        await hub.start(sock=given)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux is told whom to choose")
def test_a_kernel_that_cannot_be_told_whom_to_choose_chooses_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_port, "_SO_ATTACH_REUSEPORT_CBPF", 0x7FFF)
    with closing(held_port.HeldPort("127.0.0.1", 0, 2)) as port:
        sockets = [socket.socket(fileno=os.dup(port.descriptors(number)[0])) for number in (0, 1)]
        for sock in sockets:
            sock.setblocking(False)
            sock.listen()
        port.steer([1])
        clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(60)]
        accepted = [accept_all(sock) for sock in sockets]
        assert min(accepted) > 0
        assert sum(accepted) == 60
        port.steer([0, 1])
        for each in (*sockets, *clients):
            each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux is told whom to choose")
def test_the_kernel_chooses_among_all_once_none_is_missing_also_before_linux_5_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", SocketOfLinux4)
    with closing(held_port.HeldPort("127.0.0.1", 0, 3)) as port:
        sockets = [socket.socket(fileno=os.dup(port.descriptors(number)[0])) for number in range(3)]
        for sock in sockets:
            sock.setblocking(False)
            sock.listen()
        for numbers in ([0], [0, 1], [0, 1, 2]):
            port.steer(numbers)
        clients = [socket.create_connection(sockets[0].getsockname()) for _ in range(90)]
        accepted = [accept_all(sock) for sock in sockets]
        assert min(accepted) > 10
        assert sum(accepted) == 90
        for each in (*sockets, *clients):
            each.close()


class SocketOfLinux4(socket.socket):
    """One that knows no SO_DETACH_REUSEPORT_BPF."""

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == (socket.SOL_SOCKET, 68):
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        super().setsockopt(*arguments)


def accept_all(sock: socket.socket) -> int:
    """Counts the connections in its queue."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.accept()[0].close()
            count += 1
    return count
