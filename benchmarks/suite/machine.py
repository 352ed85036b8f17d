"""The machine: its cores, the C programs, a server on one core and the load on another."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsc_fast.testing import Authority

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
CERTIFICATE, KEY = BUILD / "certificate.pem", BUILD / "key.pem"

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
SETTLE_TIMEOUT = 3.0
RESERVED_FDS = 500  # what a server needs beside its connections, generously
FIRST_PORT = 21_000  # below the range from which the load's own ports come

Result = dict[str, Any]
# A C program is built with these beside gcc's own: header, define, libraries.
_OPTIONAL = (
    ("tls", "openssl/ssl.h", "-DWITH_TLS", ("-lssl", "-lcrypto")),
    ("deflate", "zlib.h", "-DWITH_ZLIB", ("-lz",)),
)


class BenchmarkError(Exception):
    """A measurement could not be made; the text says which and why."""


def build() -> set[str]:
    """Compiles the C programs; returns which of "tls" and "deflate" they can do here."""
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    for tool in ("gcc", "taskset"):
        if shutil.which(tool) is None:
            raise BenchmarkError(f"{tool} is needed (Debian: apt-get install gcc util-linux)")
    features, options, libraries = set(), [], []
    for feature, header, define, needs in _OPTIONAL:
        probe = subprocess.run(
            ["gcc", "-E", "-x", "c", "-include", header, "/dev/null"], capture_output=True
        )
        if probe.returncode == 0:
            features.add(feature)
            options.append(define)
            libraries += needs
    sources = [*HERE.glob("*.c"), *HERE.glob("*.h"), *HERE.glob("load/*.h")]
    newest = max(source.stat().st_mtime for source in sources)
    for name in ("loadgen", "limit_server"):
        target = BUILD / name
        if target.exists() and target.stat().st_mtime > newest:
            continue
        command = ["gcc", "-O3", "-Wall", "-Wextra", *options, "-o", str(target)]
        if subprocess.run([*command, str(HERE / f"{name}.c"), *libraries]).returncode != 0:
            raise BenchmarkError(f"gcc could not build {name}.c")
    if "tls" in features and not (CERTIFICATE.exists() and KEY.exists()):
        Authority().write(BUILD)
    return features


def max_connections(wanted: int) -> int:
    """As many of them as one process here may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - RESERVED_FDS)


class Machine:
    """Two cores, one for the server and one for the load, and the environment of the servers."""

    def __init__(self, environment: dict[str, str]) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise BenchmarkError("two cores are needed: one for the server, one for the load")
        self.server_core, self.load_core = cores[:2]
        self.environment = environment
        self.next_port = FIRST_PORT

    def free_port(self) -> int:
        while True:
            self.next_port += 1
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self.next_port))
                except OSError:
                    continue
            return self.next_port

    def pinned(self, core: int, command: list[str]) -> list[str]:
        return ["taskset", "-c", str(core), *command]

    @contextmanager
    def serving(
        self, label: str, command: list[str], port: int, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Runs a server on its core, from accepting connections to SIGTERM."""
        log_path = log_of(label)
        with log_path.open("w") as log:
            process = subprocess.Popen(
                self.pinned(self.server_core, command),
                cwd=BUILD,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                wait_for_listener(process, port, log_path)
                yield process
            finally:
                stop(process)
                if process.stdout is not None:
                    process.stdout.close()

    def load_command(self, port: int, pid: int, mode: str, options: list[str]) -> list[str]:
        command = [str(BUILD / "loadgen"), mode, "--port", str(port), "--server-pid", str(pid)]
        return self.pinned(self.load_core, [*command, *options])

    def load(self, port: int, pid: int, mode: str, options: list[str]) -> Result:
        done = subprocess.run(
            self.load_command(port, pid, mode, options),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if not done.stdout:
            raise BenchmarkError(f"the load generator failed: {done.stderr.strip()}")
        result: Result = json.loads(done.stdout)
        return result

    def describe(self) -> dict[str, Any]:
        model = "unknown"
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        return {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "commit": first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
            "compiler": first_line(os.environ.get("CC", "cc"), "--version"),
            "cpu": model,
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "tcp_congestion_control": congestion,
            "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "load_average_before": os.getloadavg()[0],
        }


def first_line(*command: str) -> str:
    """The first line of a program's output; "unknown" where there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.partition("\n")[0]


def log_of(label: str) -> Path:
    return BUILD / "logs" / f"{label}.log"


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM; where that does not do, SIGKILL for the process and the workers it started."""
    workers = children(process.pid) if process.poll() is None else []
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for worker in workers:
            if Path(f"/proc/{worker}").exists():
                os.kill(worker, signal.SIGKILL)


def wait_for_listener(process: subprocess.Popen[str], port: int, log_path: Path) -> None:
    """Until it answers, or at least hangs up: one that starts workers listens before that."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"{log_path.stem} did not start:\n{tail(log_path)}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                probe.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                probe.recv(1)
        except ConnectionResetError:
            return
        except OSError:
            time.sleep(0.02)  # between two tries; what is waited for is the answer
        else:
            return
    raise BenchmarkError(f"{log_path.stem} does not answer:\n{tail(log_path)}")


def tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_of(pid: int) -> int:
    """The process that does the work: the largest child where a server starts some, else itself."""
    return max(children(pid) or [pid], key=lambda each: memory(each)["VmRSS"])


def memory(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process, in bytes."""
    sizes = {"VmRSS": 0, "VmHWM": 0}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in sizes:
            sizes[key] = int(value.split()[0]) * 1024
    return sizes


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def settled_rss(pid: int) -> int:
    """VmRSS once it has stopped growing."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    rss = memory(pid)["VmRSS"]
    while time.monotonic() < deadline:
        time.sleep(0.2)
        last, rss = rss, memory(pid)["VmRSS"]
        if abs(rss - last) < 65_536:
            break
    return rss
