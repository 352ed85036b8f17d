"""What `make bench` runs: every claim of the project's table, measured here and now.

Builds the load generator and the C limit, runs each server on one core and the load on another, in
interleaved rounds, and prints a Markdown table of ratios beside their targets. The rates change
from machine to machine and from minute to minute; the ratios are taken within one round, between
neighbours in time, and their median is shown with the lowest and highest. Beside the ratio of the
rates stands the ratio per second of CPU time of the server: it says the same where the load
generator, another process or the hypervisor took part of the core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build" / "bench"
LOADGEN = BUILD / "loadgen"

START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0
SETTLE_TIMEOUT = 3.0
RESERVED_FDS = 500  # what a server needs beside its connections, generously
BUSY_SHARE = 0.8  # of a core, that an undisturbed run takes on one side at least
FIRST_PORT = 21_000  # below the range from which the load's own ports come

Result = dict[str, Any]


class BenchmarkError(Exception):
    """A measurement could not be made; the text says which and why."""


# ---- servers ----


@dataclass(frozen=True)
class Server:
    name: str
    title: str
    modules: tuple[str, ...] = ()  # what it imports; the first is the one whose version is shown

    def command(self, mode: str, port: int) -> list[str]:
        if self.name == "c":
            return [str(BUILD / "limit_server"), mode, str(port)]
        return [sys.executable, str(HERE / "peers" / f"{self.name}_server.py"), mode, str(port)]


SERVERS = {
    server.name: server
    for server in (
        Server("c", "C limit"),
        Server("wsc", "wsc_fast", ("wsc_fast", "picows", "uvloop")),
        Server("socketify", "socketify", ("socketify",)),
        Server("picows", "picows", ("picows", "uvloop")),
        Server("websockets", "websockets", ("websockets", "uvloop")),
        Server("aiohttp", "aiohttp", ("aiohttp", "uvloop")),
    )
}


def import_failure(server: Server, environment: dict[str, str]) -> str | None:
    """Why the server's modules cannot be imported, or None."""
    code = f"import {', '.join(server.modules)}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=BUILD,  # not the checkout: its sources alone would do for half of the import
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "import failed"


@dataclass
class Bench:
    """The machine, the servers that can run on it, and how long to measure."""

    rounds: int
    seconds: float
    warmup: float
    chosen: list[str] | None  # --servers; None: those that a row compares
    server_core: int
    load_core: int
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    skipped: dict[str, str] = field(default_factory=dict)
    next_port: int = FIRST_PORT

    def find_servers(self, wanted: set[str]) -> None:
        """Notes which of the wanted servers cannot run, and why."""
        for name in sorted(wanted):
            server = SERVERS[name]
            failure = import_failure(server, self.environment) if server.modules else None
            if failure and name == "wsc":
                # A build in place is not on the path of a script in benchmarks/peers.
                self.environment["PYTHONPATH"] = str(ROOT)
                failure = import_failure(server, self.environment)
            if failure:
                self.skipped[name] = failure

    def servers(self, compared: list[str]) -> list[str]:
        names = compared if self.chosen is None else self.chosen
        return [name for name in names if name not in self.skipped]

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
    def serving(self, label: str, command: list[str], port: int) -> Iterator[subprocess.Popen[str]]:
        """Runs a server on its core, from accepting connections to SIGTERM."""
        log_path = BUILD / "logs" / f"{label}.log"
        with log_path.open("w") as log:
            process = subprocess.Popen(
                self.pinned(self.server_core, command),
                cwd=BUILD,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            try:
                wait_for_listener(process, port, log_path)
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def load_command(self, port: int, pid: int, mode: str, options: list[str]) -> list[str]:
        command = [str(LOADGEN), mode, "--port", str(port), "--server-pid", str(pid), *options]
        return self.pinned(self.load_core, command)

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

    def measure(self, name: str, server_mode: str, load_mode: str, options: list[str]) -> Result:
        """One run of the load against a fresh server."""
        port = self.free_port()
        command = SERVERS[name].command(server_mode, port)
        with self.serving(f"{name}-{server_mode}", command, port) as process:
            before = memory(process.pid)["VmRSS"]
            result = self.load(port, process.pid, load_mode, options)
            if process.poll() is not None:
                raise BenchmarkError(f"{name} died: exit code {process.returncode}")
            result["server_growth"] = memory(process.pid)["VmHWM"] - before
        if faults(result):
            result["server_log"] = tail(BUILD / "logs" / f"{name}-{server_mode}.log")
        return result


def wait_for_listener(process: subprocess.Popen[str], port: int, log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"{log_path.stem} did not start:\n{tail(log_path)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)  # between two tries; what is waited for is the connection
        else:
            return
    raise BenchmarkError(f"{log_path.stem} accepts no connections:\n{tail(log_path)}")


def tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def memory(pid: int) -> dict[str, int]:
    """VmRSS and VmHWM of a process, in bytes."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM"):
            sizes[key] = int(value.split()[0]) * 1024
    return sizes


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


# ---- what a row yields ----


@dataclass
class Check:
    """One line of the table."""

    what: str
    measured: str
    target: str
    passed: bool | None  # None: nothing to compare with, shown for information
    per_cpu: str = ""


@dataclass
class Row:
    name: str
    measure: Callable[[Bench], list[Check]]
    compared: list[str]
    results: dict[str, list[Result]] = field(default_factory=dict)  # per server, one per round
    checks: list[Check] = field(default_factory=list)
    failure: str = ""


def faults(result: Result) -> str:
    """What the load generator objected to, or an empty text."""
    kinds = ("lost", "duplicated", "reordered", "corrupt", "unexpected_closes", "protocol_errors")
    found = [f"{result[kind]:,} {kind.replace('_', ' ')}" for kind in kinds if result[kind]]
    return "; ".join(([result["failure"]] if result["failure"] else []) + found)


def disturbed(results: list[Result]) -> bool:
    """Whether somebody else had the cores: with messages in flight, one of the two is busy."""
    return any(
        max(result["server_cpu_share"], result["cpu_share"]) < BUSY_SHARE for result in results
    )


def first_faults(results: list[Result]) -> str:
    return next(filter(None, map(faults, results)), "")


def spread(values: list[float], digits: int = 2) -> str:
    text = f"{median(values):,.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
    return text


# ---- rates: fan-out, room, echo ----


def throughput(
    name: str, what: str, mode: str, connections: int, window: int, targets: dict[str, float]
) -> Row:
    def per_cpu_second(result: Result) -> float:
        return float(result["deliveries"] / max(result["server_cpu_seconds"], 0.01))

    def compare(other: str) -> Check:
        """Ours against another server's, round by round."""
        pairs = list(zip(row.results["wsc"], row.results[other], strict=False))
        rates = [
            our["deliveries_per_second"] / their["deliveries_per_second"] for our, their in pairs
        ]
        cpu = [per_cpu_second(our) / per_cpu_second(their) for our, their in pairs]
        broken = first_faults(row.results["wsc"])
        target = targets.get(other)
        return Check(
            f"{what}: of {SERVERS[other].title}",
            f"wsc_fast: {broken}" if broken else spread(rates),
            f"{target:g}" if target else "",
            None if target is None else not broken and median(rates) >= target,
            "" if broken else spread(cpu),
        )

    def measure(bench: Bench) -> list[Check]:
        options = ["--connections", str(connections), "--window", str(window)]
        options += ["--seconds", str(bench.seconds), "--warmup", str(bench.warmup)]
        names = bench.servers(row.compared)
        row.results = {server: [] for server in names}
        for turn in range(bench.rounds):
            # Each round starts with another server: none always has the quiet or the warm minute.
            start = turn % len(names) if names else 0
            for server in names[start:] + names[:start]:
                row.results[server].append(bench.measure(server, mode, mode, options))
        if "wsc" not in row.results:
            return []
        return [compare(other) for other in names if other != "wsc" and rate_of(other)]

    def rate_of(server: str) -> float:
        return min(float(result["deliveries_per_second"]) for result in row.results[server])

    row = Row(name, measure, ["c", "wsc", *(peer for peer in targets if peer != "c")])
    return row


# ---- the other rows: ours alone, unless --servers names more ----


def measure_idle(bench: Bench) -> list[Check]:
    connections = 10_000
    row = ROWS["idle"]
    names = bench.servers(row.compared)
    row.results = {server: [] for server in names}
    for _ in range(bench.rounds):
        for server in names:
            row.results[server].append(idle_run(bench, server, connections))
    checks = []
    for server, results in row.results.items():
        ours, title = server == "wsc", SERVERS[server].title
        broken = first_faults(results)
        size = [result["bytes_per_connection"] / 1000 for result in results]
        rate = [float(result["connections_per_second"]) for result in results]
        checks.append(
            Check(
                f"memory per idle connection, {connections:,} connections, KB: {title}",
                broken or spread(size),
                "at most 6.5" if ours else "",
                not broken and median(size) <= 6.5 if ours else None,
            )
        )
        checks.append(
            Check(
                f"new connections a second: {title}",
                broken or spread(rate, 0),
                "8,000" if ours else "",
                not broken and median(rate) >= 8000 if ours else None,
            )
        )
    return checks


def idle_run(bench: Bench, name: str, connections: int) -> Result:
    port = bench.free_port()
    with bench.serving(f"{name}-idle", SERVERS[name].command("fanout", port), port) as process:
        before = settled_rss(process.pid)
        command = bench.load_command(port, process.pid, "idle", ["--connections", str(connections)])
        load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert load.stdout is not None
        ready = load.stdout.readline()
        after = settled_rss(process.pid) if '"ready": true' in ready else before
        rest, _ = load.communicate()  # closes its stdin, upon which it ends
        result: Result = json.loads(rest if '"ready": true' in ready else ready + rest)
    result["bytes_per_connection"] = (after - before) / connections
    return result


def measure_stalled(bench: Bench) -> list[Check]:
    """100 live clients alone, then beside 100 that never read; paced, or p99 would mean nothing."""
    live, broadcasts, rate = 100, 10_000 if bench.seconds >= 1 else 1_000, 500
    paced = ["--payload", "1024", "--messages", str(broadcasts), "--rate", str(rate)]
    alone = ["--connections", str(live), *paced]
    beside = ["--connections", str(2 * live), "--stalled", str(live), *paced]
    row = ROWS["stalled"]
    names = bench.servers(row.compared)
    row.results = {server: [] for server in names}
    checks = []
    for server in names:
        growth, worse, p99 = [], [], []
        runs = row.results[server]
        for _ in range(bench.rounds):
            without = bench.measure(server, "fanout", "stalled", alone)
            with_stalled = bench.measure(server, "fanout", "stalled", beside)
            runs += [without, with_stalled]
            growth.append(with_stalled["server_growth"] / 1e6)
            p99.append(float(with_stalled["latency_us"]["p99"]))
            worse.append(p99[-1] / max(without["latency_us"]["p99"], 1))
        ours, title, broken = server == "wsc", SERVERS[server].title, first_faults(runs)
        what = f"{live} of {2 * live} clients stalled, {broadcasts:,} broadcasts of 1 KB"
        checks += [
            Check(
                f"{what}: growth in MB, {title}",
                spread(growth, 1),
                "at most 48" if ours else "",
                median(growth) <= 48 if ours else None,
            ),
            Check(
                f"the same: faults seen by the {live} live ones, {title}",
                broken or "none",
                "none" if ours else "",
                not broken if ours else None,
            ),
            Check(
                f"the same: their p99 over that without stalled ones, {title}",
                f"{spread(worse)}; p99 {spread(p99, 0)} us",
                "at most 2" if ours else "",
                median(worse) <= 2 if ours else None,
            ),
        ]
    return checks


def measure_send(bench: Bench) -> list[Check]:
    if "wsc" not in bench.servers(["wsc"]):
        return []
    done = subprocess.run(
        bench.pinned(bench.server_core, [sys.executable, str(HERE / "micro_send.py"), "--json"]),
        cwd=BUILD,
        env=bench.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"micro_send.py failed:\n{done.stderr.strip()[-800:]}")
    result: Result = json.loads(done.stdout)
    ROWS["send"].results["wsc"] = [result]
    return [
        Check(
            "send_to_client of 128 bytes to a queued client, ns a call",
            f"{result['median_ns']:.0f} (best {result['best_ns']:.0f})",
            "go-wsc publishes 138, on another machine",
            None,
        )
    ]


def measure_loop_stall(bench: Bench) -> list[Check]:
    if "wsc" not in bench.servers(["wsc"]):
        return []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    connections = 20_000 if hard == resource.RLIM_INFINITY else min(20_000, hard - RESERVED_FDS)
    options = ["--connections", str(connections), "--window", "2", "--timeout", "90"]
    options += ["--seconds", str(max(3.0, bench.seconds)), "--warmup", str(bench.warmup)]
    longest, usual, broken = [], [], ""
    row = ROWS["loop-stall"]
    row.results["wsc"] = []
    for _ in range(bench.rounds):
        port = bench.free_port()
        command = [sys.executable, str(HERE / "peers/wsc_stall_server.py"), "fanout", str(port)]
        with bench.serving("wsc-stall", command, port) as process:
            result = bench.load(port, process.pid, "fanout", options)
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError(f"no report:\n{tail(BUILD / 'logs' / 'wsc-stall.log')}")
            result["loop"] = json.loads(line)
        row.results["wsc"].append(result)
        longest.append(float(result["loop"]["max_ms"]))
        usual.append(float(result["loop"]["p99_ms"]))
        broken = broken or faults(result)
    return [
        Check(
            f"longest stall of the loop, broadcasting to {connections:,} clients, ms",
            broken or f"{spread(longest, 1)}; p99 of all turns {spread(usual, 1)}",
            "at most 10",
            not broken and median(longest) <= 10,
        )
    ]


ROWS = {
    row.name: row
    for row in (
        throughput(
            "fanout-w32",
            "fan-out to 1,000, window 32",
            "fanout",
            1000,
            32,
            {"c": 0.95, "socketify": 1.05, "picows": 20},
        ),
        throughput("fanout-w1", "fan-out to 1,000, window 1", "fanout", 1000, 1, {"c": 0.95}),
        throughput("room-w32", "room of 1,000, window 32", "room", 1000, 32, {"c": 0.93}),
        throughput(
            "echo-w1", "echo, 100 clients, window 1", "echo", 100, 1, {"c": 0.82, "picows": 1.15}
        ),
        throughput(
            "echo-w16", "echo, 100 clients, window 16", "echo", 100, 16, {"c": 0.55, "picows": 6}
        ),
        Row("idle", measure_idle, ["wsc"]),
        Row("stalled", measure_stalled, ["wsc"]),
        Row("send", measure_send, ["wsc"]),
        Row("loop-stall", measure_loop_stall, ["wsc"]),
    )
}
RATE_ROWS = ("fanout-w32", "fanout-w1", "room-w32", "echo-w1", "echo-w16")


# ---- report ----


def print_table(header: list[str], lines: list[list[str]]) -> None:
    print("\n| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for line in lines:
        print("| " + " | ".join(line) + " |")


def print_checks(rows: list[Row]) -> None:
    verdict = {True: "pass", False: "**FAIL**", None: ""}
    lines = []
    for row in rows:
        lines += [
            [check.what, check.measured, check.per_cpu, check.target, verdict[check.passed]]
            for check in row.checks
        ]
        if row.failure:
            lines.append([row.name, row.failure.replace("\n", " "), "", "", "**not measured**"])
    if lines:
        print_table(["what", "measured", "per CPU second", "target", ""], lines)


def print_rates(rows: list[Row]) -> None:
    lines = []
    for row in rows:
        if row.name not in RATE_ROWS:
            continue
        for server, results in row.results.items():
            if not results:
                continue
            rates = [result["deliveries_per_second"] for result in results]
            p99 = median(result["latency_us"]["p99"] for result in results)
            shares = [
                median(result[key] for result in results)
                for key in ("server_cpu_share", "cpu_share")
            ]
            lines.append(
                [
                    row.name,
                    SERVERS[server].title,
                    spread(rates, 0),
                    f"{p99:,.0f}",
                    *(f"{share:.0%}" for share in shares),
                    first_faults(results) or ("cores were shared" if disturbed(results) else ""),
                ]
            )
    if lines:
        header = ["row", "server", "messages received a second", "p99 us"]
        print_table([*header, "server's core", "load's core", "remarks"], lines)


def package_version(module: str, environment: dict[str, str]) -> str:
    code = f"from importlib.metadata import version; print(version({module!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    return done.stdout.strip() or "in place"


def describe_machine(bench: Bench, wanted: set[str]) -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    modules = {module for name in wanted - set(bench.skipped) for module in SERVERS[name].modules}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tcp_congestion_control": congestion,
        "load_average_before": os.getloadavg()[0],
        "rounds": bench.rounds,
        "seconds": bench.seconds,
        "versions": {
            module: package_version(module, bench.environment) for module in sorted(modules)
        },
        "skipped": bench.skipped,
    }


def write_results(machine: dict[str, Any], rows: list[Row]) -> Path:
    path = BUILD / "results.json"
    measured = {
        row.name: {
            "failure": row.failure,
            "checks": [vars(check) for check in row.checks],
            "runs": row.results,
        }
        for row in rows
    }
    path.write_text(json.dumps({"machine": machine, "rows": measured}, indent=1))
    return path


# ---- start ----


def build() -> None:
    """Compiles the two C programs where they are older than their source."""
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    for name in ("loadgen", "limit_server"):
        source, target = HERE / f"{name}.c", BUILD / name
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        command = ["gcc", "-O3", "-Wall", "-Wextra", "-o", str(target), str(source)]
        if subprocess.run(command).returncode != 0:
            raise BenchmarkError(f"gcc could not build {source.name}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=None, help="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument(
        "--only", action="append", choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--servers",
        metavar="NAMES",
        help=f"measure these in each row, comma-separated, or all: {', '.join(SERVERS)}",
    )
    return parser.parse_args()


def choose_servers(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = list(SERVERS) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SERVERS:
            raise BenchmarkError(f"--servers: {name!r} is none of {', '.join(SERVERS)}")
    return names


def run(arguments: argparse.Namespace) -> int:
    for tool in ("gcc", "taskset"):
        if shutil.which(tool) is None:
            raise BenchmarkError(f"{tool} is needed (Debian: apt-get install gcc util-linux)")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("two cores are needed: one for the server, one for the load")
    bench = Bench(
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        seconds=0.5 if arguments.quick else 2.0,
        warmup=0.2 if arguments.quick else 0.5,
        chosen=choose_servers(arguments.servers),
        server_core=cores[0],
        load_core=cores[1],
    )
    rows = [row for row in ROWS.values() if not arguments.only or row.name in arguments.only]
    wanted = set(bench.chosen or [name for row in rows for name in row.compared])

    build()
    bench.find_servers(wanted)
    if "wsc" in bench.skipped:
        raise BenchmarkError(
            f"wsc_fast cannot be imported: {bench.skipped['wsc']}\n"
            "Build it first (make bench does), or measure others with --servers c,picows"
        )
    machine = describe_machine(bench, wanted)
    print(f"{machine['cpu']}, {machine['cpus']} CPUs, kernel {machine['kernel']}, ", end="")
    print(f"Python {machine['python']}, {machine['tcp_congestion_control']}, {machine['date']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    if machine["load_average_before"] > 0.5:
        print(f"NOTE: not alone on this machine (load {machine['load_average_before']:.1f}).")
    for name, reason in bench.skipped.items():
        print(f"left out: {name} ({reason})")

    for row in rows:
        print(f"measuring {row.name} ...", file=sys.stderr, flush=True)
        try:
            row.checks = row.measure(bench)
        except BenchmarkError as error:
            row.failure = str(error)
    print_checks(rows)
    print_rates(rows)
    print(f"\nEvery run: {write_results(machine, rows).relative_to(ROOT)}")
    return 1 if any(row.failure for row in rows) else 0


def main() -> None:
    try:
        sys.exit(run(parse_arguments()))
    except BenchmarkError as error:
        sys.exit(f"benchmarks/run.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
