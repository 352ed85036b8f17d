"""One run of one case, whatever kind it is; and rounds over the servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .machine import (
    BUILD,
    CERTIFICATE,
    HERE,
    KEY,
    BenchmarkError,
    Machine,
    Result,
    cpu_seconds,
    log_of,
    memory,
    settled_rss,
    tail,
    worker_of,
)
from .results import Run, faults
from .scenarios import JSON_ANSWER, JSON_REQUEST, Case, Row
from .servers import SERVERS, Server, load_options


@dataclass(frozen=True)
class Timing:
    rounds: int
    seconds: float
    warmup: float
    full: bool  # distant servers in each round too


def rounds_of(
    row: Row, servers: list[str], timing: Timing, features: set[str]
) -> Iterator[tuple[int, Case, str]]:
    """The runs of a row, in their order: each round begins with another server, so that none always
    has the quiet or the warm minute."""
    rounds = min(timing.rounds, row.rounds or timing.rounds)
    for turn in range(rounds):
        names = [name for name in servers if name not in row.once or timing.full or turn == 0]
        start = turn % len(names) if names else 0
        for case in row.cases:
            for name in names[start:] + names[:start]:
                if case.needs in SERVERS[name].lacks or case.needs in {"tls", "deflate"} - features:
                    continue
                yield turn, case, name


class Measure:
    """Runs cases on a machine."""

    def __init__(self, machine: Machine, timing: Timing) -> None:
        self.machine = machine
        self.timing = timing
        self.kinds: dict[str, Callable[[Case, Server], Result]] = {
            "load": self.load,
            "idle": self.idle,
            "send": self.send,
            "loop-stall": self.loop_stall,
        }

    def run(self, row: Row, case: Case, name: str, turn: int) -> Run:
        try:
            result = {"failure": None} | self.kinds[row.kind](case, SERVERS[name])
        except BenchmarkError as error:
            result = {"failure": str(error)}
        return Run(row.name, case.label, case.x, name, turn, result)

    def options(self, case: Case, server: Server) -> list[str]:
        options = case.load_options() + load_options(server)
        if case.needs == "json":
            options += ["--wrap", server.wrapped(*JSON_REQUEST)]
            options += ["--answer", server.wrapped(*JSON_ANSWER)]
        elif server.event:
            options += ["--wrap", server.wrapped("", "")]
        if case.mode != "idle":
            if not case.messages:
                options += ["--seconds", str(self.timing.seconds)]
            options += ["--warmup", str(self.timing.warmup), "--timeout", "90"]
        return options

    def command(self, case: Case, server: Server, port: int) -> list[str]:
        options: list[str] = []
        if case.needs == "tls":
            flag = [] if server.name == "c" else ["--tls"]
            options += [*flag, str(CERTIFICATE), str(KEY)]
        elif case.needs == "deflate":
            options.append("--deflate")
        return server.command(case.server_mode or case.mode, port, *options)

    def label(self, case: Case, server: Server) -> str:
        return f"{server.name}-{case.server_mode or case.mode}"

    def load(self, case: Case, server: Server) -> Result:
        """The load against a fresh server."""
        port, label = self.machine.free_port(), self.label(case, server)
        command = self.command(case, server, port)
        with self.machine.serving(label, command, port, **case.environment) as process:
            worker = worker_of(process.pid)
            before = memory(worker)["VmRSS"]
            result = self.machine.load(port, worker, case.mode, self.options(case, server))
            if process.poll() is not None:
                raise BenchmarkError(f"{label} died: exit code {process.returncode}")
            result["server_growth"] = memory(worker)["VmHWM"] - before
        if case.needs == "deflate" and not result["compressed"]:
            result["failure"] = result["failure"] or "nothing was compressed"
        if faults(result):
            result["server_log"] = tail(log_of(label))
        return result

    def idle(self, case: Case, server: Server) -> Result:
        port, label = self.machine.free_port(), self.label(case, server)
        with self.machine.serving(label, self.command(case, server, port), port) as process:
            worker = worker_of(process.pid)
            before, busy = settled_rss(worker), cpu_seconds(worker)
            command = self.machine.load_command(port, worker, "idle", self.options(case, server))
            load = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert load.stdout is not None
            first = load.stdout.readline()
            busy = cpu_seconds(worker) - busy
            is_ready = '"ready": true' in first
            after = settled_rss(worker) if is_ready else before
            rest, _ = load.communicate()  # closes its stdin, upon which it ends
            if not rest and not first:
                raise BenchmarkError(f"the load generator failed against {label}")
            result: Result = json.loads(rest if is_ready else first + rest)
        result["bytes_per_connection"] = (after - before) / case.connections
        result["cpu_us_per_connection"] = busy / case.connections * 1e6
        return result

    def send(self, case: Case, server: Server) -> Result:
        done = subprocess.run(
            self.machine.pinned(
                self.machine.server_core, [sys.executable, str(HERE / "micro_send.py"), "--json"]
            ),
            cwd=BUILD,
            env=self.machine.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise BenchmarkError(f"micro_send.py failed:\n{done.stderr.strip()[-800:]}")
        result: Result = json.loads(done.stdout)
        return result

    def loop_stall(self, case: Case, server: Server) -> Result:
        port = self.machine.free_port()
        command = [sys.executable, str(HERE / "peers/wsc_stall_server.py"), "fanout", str(port)]
        with self.machine.serving("wsc-stall", command, port) as process:
            result = self.machine.load(port, process.pid, case.mode, self.options(case, server))
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError(f"no report:\n{tail(log_of('wsc-stall'))}")
            result["loop"] = json.loads(line)
        return result
