"""The targets of this project, beside what was measured.

A ratio is taken within one round, between neighbours in time: rates change from minute to minute,
ratios less. Beside the ratio of the rates stands the ratio per second of the server's CPU time: it
says the same where the load generator, another process or the hypervisor took part of the core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from .machine import Result
from .results import Results, first_fault, p99, per_cpu_second, rate, spread
from .scenarios import LARGEST, ROWS
from .servers import SERVERS

TARGETS = {
    "fanout-w32": {"c": 0.98, "socketify": 1.05, "picows": 20},
    "fanout-w1": {"c": 0.98},
    "room-w32": {"c": 0.98},
    "direct": {"c": 0.95},
    "echo-w1": {"c": 0.92, "picows": 1.15},
    "echo-w16": {"c": 0.55, "picows": 6},
}
# New connections, of the C limit: row, server, and the ratio.
CONNECTING = tuple(
    (row, server, target)
    for row in ("idle", "storm")
    for server, target in (("wsc", 0.8), ("wsc-auth", 0.5))
)


@dataclass
class Claim:
    what: str
    measured: str
    target: str = ""
    passed: bool | None = None  # None: nothing to compare with, shown for information
    per_cpu: str = ""


def claims(results: Results) -> list[Claim]:
    found = [
        ratio(results, row, other, target)
        for row, targets in TARGETS.items()
        for other, target in targets.items()
        if results.of(row, other) and results.of(row, "wsc")
    ]
    found += [
        connecting(results, row, server, target)
        for row, server, target in CONNECTING
        if results.of(row, server) and results.of(row, "c")
    ]
    for name, make in (
        ("idle", idle),
        ("storm", storm),
        ("stalled", stalled),
        ("send", send),
        ("loop-stall", stall),
    ):
        if runs := results.of(name, "wsc"):
            fault = first_fault(runs)
            found += [Claim(ROWS[name].title, fault, "", False)] if fault else make(results)
    return found


def ratio(results: Results, row: str, other: str, target: float) -> Claim:
    what = f"{ROWS[row].title}: of {SERVERS[other].title}"
    for server in ("wsc", other):
        if fault := first_fault(results.of(row, server)):
            return Claim(what, f"{SERVERS[server].title}: {fault}", f"{target:g}", False)
    pairs = results.pairs(row, "wsc", other)
    rates = [rate(ours) / rate(theirs) for ours, theirs in pairs]
    cpu = [per_cpu_second(ours) / per_cpu_second(theirs) for ours, theirs in pairs]
    return Claim(what, spread(rates), f"{target:g}", median(rates) >= target, spread(cpu))


def connecting(results: Results, row: str, server: str, target: float) -> Claim:
    what = f"{ROWS[row].title}, new ones a second: {SERVERS[server].title}, of C limit"
    for name in (server, "c"):
        if fault := first_fault(results.of(row, name)):
            return Claim(what, f"{SERVERS[name].title}: {fault}", f"{target:g}", False)
    pairs = results.pairs(row, server, "c")
    rates = [connections_per_second(one) / connections_per_second(other) for one, other in pairs]
    cpu = [cpu_per_connection(other) / cpu_per_connection(one) for one, other in pairs]
    per_cpu = "" if any(map(math.isnan, cpu)) else spread(cpu)
    return Claim(what, spread(rates), f"{target:g}", median(rates) >= target, per_cpu)


def storm(results: Results) -> list[Claim]:
    longest = results.values(lambda r: r["connect_us"]["p99"] / 1000, "storm", "wsc")
    return [
        Claim(
            f"{ROWS['storm'].title}: p99 of connecting, ms",
            spread(longest, 0),
            "under 300",
            median(longest) < 300,
        )
    ]


def idle(results: Results) -> list[Claim]:
    size = results.values(bytes_per_connection, "idle", "wsc")
    count = f"{ROWS['idle'].cases[0].connections:,}"
    return [
        Claim(
            f"memory per idle connection, {count} connections, KB",
            spread(size),
            "at most 0.8",
            median(size) <= 0.8,
        )
    ]


def stalled(results: Results) -> list[Claim]:
    """Paced, or p99 would mean nothing."""
    growth = results.values(lambda r: r["server_growth"] / 1e6, "stalled", "wsc", "stalled")
    beside = results.values(p99, "stalled", "wsc", "stalled")
    alone = results.values(p99, "stalled", "wsc", "alone")
    worse = [each / max(other, 1) for each, other in zip(beside, alone, strict=True)]
    return [
        Claim(
            "100 of 200 clients stalled, 10,000 broadcasts of 1 KB: growth in MB",
            spread(growth, 1),
            "at most 48",
            median(growth) <= 48,
        ),
        Claim("the same: faults seen by the 100 live ones", "none", "none", True),
        Claim(
            "the same: their p99 over that without stalled ones",
            f"{spread(worse)}; p99 {spread(beside, 0)} us",
            "at most 2",
            median(worse) <= 2,
        ),
    ]


def send(results: Results) -> list[Claim]:
    result = results.of("send", "wsc")[-1].result
    return [
        Claim(
            "send_to_client of 128 bytes to a queued client, ns a call",
            f"{result['median_ns']:.0f} (best {result['best_ns']:.0f})",
            "go-wsc publishes 138, on another machine",
        )
    ]


def stall(results: Results) -> list[Claim]:
    longest = results.values(lambda r: r["loop"]["max_ms"], "loop-stall", "wsc")
    usual = results.values(lambda r: r["loop"]["p99_ms"], "loop-stall", "wsc")
    return [
        Claim(
            f"longest stall of the loop, broadcasting to {LARGEST:,} clients, ms",
            f"{spread(longest, 1)}; p99 of all turns {spread(usual, 1)}",
            "at most 10",
            median(longest) <= 10,
        )
    ]


def bytes_per_connection(result: Result) -> float:
    return float(result["bytes_per_connection"]) / 1000


def connections_per_second(result: Result) -> float:
    return float(result["connections_per_second"])


def cpu_per_connection(result: Result) -> float:
    """Microseconds of the server; not a number in results from before it was measured."""
    return float(result.get("cpu_us_per_connection", math.nan))
