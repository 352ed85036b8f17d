"""Attacks a hub, and measures what it takes and what its honest clients notice.

    python -m trials.attack.run [--quick] [--only NAME ...]

For each attack: a server process on one core; on another one 100 honest clients (honest.py), and
the attackers (swarm.py), who get what is left of that core. In each of three rounds the honest
clients' p99 is measured before the attack, and during it from its first connection on; the row has
the median of the three ratios. With --quick there is one round, and two more only where that one
breaks the bound. Memory is the peak of the server's resident memory (VmHWM) beyond what it had when
its honest clients were connected. Each round begins once the hub has ended what the last one left:
the bound of memory is that of the attackers of one round, and of what all rounds leak.

The server's CPU time is that during the attack, without what the honest clients took before it.

Prints a Markdown table. Exit status 1 if a bound is broken: of memory, of CPU, of p99 (twice what
it was, or 3 ms where that is more: on an idle machine it is 0.3), of a counter that did not move,
or if an honest client was cut off, or a new one refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trials.attack.attacks import ATTACKS, Attack

MOST_RATIO = 2.0
# Seconds of p99 that no client over a network notices, however little it was before.
UNNOTICED = 0.003
ROUNDS = 3
# Seconds: before the attack, and during it.
BEFORE, DURING = 2.0, 4.0
QUICK_BEFORE, QUICK_DURING = 1.0, 2.0
# Connections that the hub has while nobody attacks: the honest clients', and a newcomer's or two.
HONEST = 105
# Seconds that the hub may take to end what an attack has left. It notices by its heartbeat that a
# client has gone which it does not read.
SETTLING = 30.0
# The attackers' ramp before their tame phase is measured.
TAME_RAMP = 1.0


class Worker:
    """A program of this folder, which answers a line for each line."""

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"trials.attack.{program}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return line

    def ask(self, line: str) -> Any:
        self.tell(line)
        return json.loads(self.hear())

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def worker(program: str, *arguments: str) -> Iterator[Worker]:
    it = Worker(program, *arguments)
    try:
        yield it
    finally:
        it.end()


@dataclass
class Row:
    """The measurements of one attack."""

    attack: Attack
    before: list[float] = field(default_factory=list)  # p99, seconds
    during: list[float] = field(default_factory=list)
    worst: float = 0.0
    entering: float = 0.0  # the longest that a new honest client waited for its 101
    growth: float = 0.0  # MiB
    cpu: float = 0.0  # seconds of the server, for the attackers
    open: int = 0  # attackers that were connected
    made: int = 0
    lost: int = 0
    refused: int = 0  # new honest clients
    counted: int = 0

    @property
    def ratio(self) -> float:
        return statistics.median(
            during / before for before, during in zip(self.before, self.during, strict=True)
        )

    @property
    def cpu_each(self) -> float:
        """Milliseconds of the server's CPU for each attacking connection."""
        return self.cpu * 1e3 / max(self.open, 1)

    def faults(self) -> list[str]:
        found = []
        if self.growth > self.attack.memory:
            found.append(f"memory over {self.attack.memory:g} MiB")
        if self.attack.cpu and self.cpu_each > self.attack.cpu:
            found.append(f"CPU over {self.attack.cpu:g} ms each")
        noticed = statistics.median(self.during) > UNNOTICED
        if self.attack.bounded and noticed and self.ratio > MOST_RATIO:
            found.append(f"p99 over {MOST_RATIO:g} times")
        if self.attack.counter and not self.counted:
            found.append("not counted")
        if self.lost:
            found.append(f"{self.lost} honest clients were cut off")
        if self.refused:
            found.append(f"{self.refused} new honest clients were refused")
        return found

    def cells(self) -> list[str]:
        verdict = ", ".join(self.faults()) or ("held" if self.attack.bounded else "for comparison")
        return [
            self.attack.title,
            f"{self.made:,}",
            f"{self.growth:.1f} of {self.attack.memory:g}",
            f"{self.cpu_each:.2f} of {self.attack.cpu:g}" if self.attack.cpu else "",
            f"{statistics.median(self.before) * 1e3:.2f}",
            f"{statistics.median(self.during) * 1e3:.2f}",
            f"{self.ratio:.2f}",
            f"{self.entering * 1e3:.0f}",
            f"`{self.attack.counter}`: {self.counted:,}" if self.attack.counter else "",
            verdict,
        ]


HEADS = [
    "attack",
    "connections",
    "memory, MiB",
    "CPU each, ms",
    "p99 before, ms",
    "during, ms",
    "ratio",
    "a new client is in after, ms",
    "counter",
    "",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--only", nargs="+", choices=[attack.name for attack in ATTACKS])
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, Linux {platform.release()}, ", end="")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print("| " + " | ".join(HEADS) + " |")
    print("|" + " --- |" * len(HEADS), flush=True)
    broken = False
    for attack in ATTACKS:
        if options.only and attack.name not in options.only:
            continue
        row = run(attack, options.quick)
        print("| " + " | ".join(row.cells()) + " |", flush=True)
        broken = broken or bool(row.faults())
    sys.exit(broken)


def run(attack: Attack, quick: bool) -> Row:
    """One row, on a server of its own."""
    row = Row(attack)
    server_cpu, client_cpu = cpus()
    before, during = (QUICK_BEFORE, QUICK_DURING) if quick else (BEFORE, DURING)
    settings = json.dumps(attack.settings)
    tls = ["tls"] if attack.tls else []
    hooks = ["hooks"] if attack.hooks else []
    with worker("server", str(server_cpu), settings, *tls, *hooks) as server:
        port = server.hear().strip()
        with worker("honest", str(client_cpu), port, *tls) as honest:
            honest.hear()
            honest.ask("1.0")  # what is made at first use is made by now
            if attack.broadcast:
                server.ask(f"every {attack.broadcast}")
            start = memory(server, "VmRSS")
            for number in range(ROUNDS):
                if quick and number and not row.faults():
                    break
                one_round(row, server, honest, port, client_cpu, before, during)
            row.growth = memory(server, "VmHWM") - start
            row.counted = value(server.ask("stats"), attack.counter)
    return row


def one_round(
    row: Row, server: Worker, honest: Worker, port: str, cpu: int, before: float, during: float
) -> None:
    attack = row.attack
    settle(server)
    began = cpu_time(server)
    if attack.tame is None:
        row.before.append(honest.ask(str(before))["p99"])
    else:
        with attackers(attack, cpu, port, TAME_RAMP + before, "tame") as tame:
            tame.tell("go")
            time.sleep(TAME_RAMP)
            row.before.append(honest.ask(str(before))["p99"])
            tame.hear()
    # The last attack may have left work, such as connections in their closing handshake.
    server.ask("stats")
    usual = (cpu_time(server) - began) / before
    with attackers(attack, cpu, port, during) as swarm:
        began = cpu_time(server)
        swarm.tell("go")
        measured = honest.ask(str(during))
        told = json.loads(swarm.hear())
        row.cpu += cpu_time(server) - began - usual * during
        row.made += told["made"]
        row.open += told["open"]
    row.during.append(measured["p99"])
    row.worst = max(row.worst, measured["worst"])
    row.entering = max(row.entering, measured["entering"])
    row.lost += measured["lost"]
    row.refused += measured["refused"]
    row.counted = value(server.ask("stats"), attack.counter)
    row.growth = 0.0


def settle(server: Worker) -> None:
    """Waits until the connections of the last attack have gone, and their callbacks have ended."""
    deadline = time.monotonic() + SETTLING
    while time.monotonic() < deadline:
        stats = server.ask("stats")
        if stats["connections"] <= HONEST and not stats["asleep"]:
            return
        time.sleep(0.1)


@contextmanager
def attackers(attack: Attack, cpu: int, port: str, seconds: float, *tame: str) -> Iterator[Worker]:
    """The attacking process, ready to begin."""
    with worker("attacks", attack.name, str(cpu), port, str(seconds), *tame) as swarm:
        swarm.hear()
        yield swarm


def cpus() -> tuple[int, int]:
    """Two cores, for the server and for the rest."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def memory(server: Worker, field: str) -> float:
    """VmRSS or VmHWM of the server, in MiB."""
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc has no {field}")


def cpu_time(server: Worker) -> float:
    """Seconds of CPU that the server has taken, in the kernel too."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def value(stats: dict[str, Any], path: str) -> int:
    """A counter, such as "limited.max_fragments"; 0 for none."""
    found: Any = stats
    for part in path.split(".") if path else ():
        found = found.get(part, 0) if isinstance(found, dict) else 0
    return found if path else 0


if __name__ == "__main__":
    main()
