"""Results as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

from .claims import bytes_per_connection, claims, connections_per_second, cpu_per_connection
from .machine import Result
from .results import (
    Results,
    first_fault,
    is_disturbed,
    per_cpu_second,
    percentile,
    power_law,
    rate,
    spread,
)
from .scenarios import EVERY, ROWS
from .servers import SERVERS

MAIN = ("fanout-w32", "fanout-w1", "room-w32", "direct", "echo-w1", "echo-w16", "mixed")
_VERDICT = {True: "pass", False: "**FAIL**", None: ""}


def table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def claims_table(results: Results) -> str:
    lines = [
        [claim.what, claim.measured, claim.per_cpu, claim.target, _VERDICT[claim.passed]]
        for claim in claims(results)
    ]
    return table(["what", "measured", "per CPU second", "target", ""], lines) if lines else ""


def rounded(value: float) -> str:
    """Three figures that mean something."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main_table(results: Results) -> str:
    """Servers across, main rows down: messages received a second."""
    servers = [name for name in EVERY if any(results.of(row, name) for row in MAIN)]
    lines = [
        [ROWS[row].title, *(cell(results, row, name, rate) for name in servers)]
        for row in MAIN
        if results.of(row)
    ]
    for figure, title in (
        (bytes_per_connection, "memory of an idle connection, of 10,000, KB"),
        (connections_per_second, "new connections a second"),
    ):
        if results.of("idle"):
            lines.append([title, *(cell(results, "idle", name, figure) for name in servers)])
    if not lines:
        return ""
    return table(["messages received a second", *(SERVERS[name].title for name in servers)], lines)


def cell(results: Results, row: str, server: str, figure: Callable[[Result], float]) -> str:
    runs = results.of(row, server)
    if not runs:
        return ""
    values = results.values(figure, row, server)
    text = rounded(median(values)) if values else ""
    return f"{text} ({fault})".strip() if (fault := first_fault(runs)) else text


def row_table(results: Results, row: str) -> str:
    """Every server and case of a row, with what its kind has to say."""
    header, describe = _KINDS.get(row) or _KINDS[ROWS[row].kind]
    several = len(ROWS[row].cases) > 1
    lines = []
    for case in results.cases(row):
        for server in results.servers(row):
            runs = results.of(row, server, case)
            if not runs:
                continue
            done = [run.result for run in runs if not run.result["failure"]]
            start = [case, SERVERS[server].title] if several else [SERVERS[server].title]
            cells = describe(done) if done else [""] * len(header)
            remark = first_fault(runs)
            if not remark and ROWS[row].kind == "load" and not ROWS[row].cases[0].rate:
                remark = "cores were shared" if any(map(is_disturbed, done)) else ""
            lines.append([*start, *cells, remark])
    first = ["case", "server"] if several else ["server"]
    return table([*first, *header, "remarks"], lines)


def _load(results: list[Result]) -> list[str]:
    tail = [percentile(results, key) for key in ("p50", "p99", "p99.9", "p99.99")]
    shares = [median(r[key] for r in results) for key in ("server_cpu_share", "cpu_share")]
    return [
        spread([rate(r) for r in results], 0),
        *("" if value is None else f"{value:,.0f}" for value in tail),
        rounded(median(map(per_cpu_second, results))),
        *(f"{share:.0%}" for share in shares),
    ]


def _stalled(results: list[Result]) -> list[str]:
    return [*_load(results), spread([r["server_growth"] / 1e6 for r in results], 1)]


def _cpu(results: list[Result]) -> str:
    found = [cpu_per_connection(r) for r in results]
    return "" if any(map(math.isnan, found)) else spread(found, 1)


def _idle(results: list[Result]) -> list[str]:
    return [
        spread([bytes_per_connection(r) for r in results], 1),
        spread([connections_per_second(r) for r in results], 0),
        _cpu(results),
        *(
            f"{median(r['connect_us'][key] for r in results) / 1000:,.1f}"
            for key in ("p50", "p99", "max")
        ),
    ]


_LOAD = [
    *("received a second", "p50 us", "p99", "p99.9", "p99.99"),
    *("per CPU second", "server's core", "load's core"),
]
# By kind of row, or for the row of that name.
_KINDS: dict[str, tuple[list[str], Callable[[list[Result]], list[str]]]] = {
    "load": (_LOAD, _load),
    "stalled": ([*_LOAD, "growth of the server, MB"], _stalled),
    "idle": (
        [
            *("KB a connection", "connections a second", "CPU us of a connection"),
            *("ms to connect: p50", "p99", "longest"),
        ],
        _idle,
    ),
}


def cost(row: str) -> tuple[str, Callable[[Result], float]]:
    """The y axis of a growth row: CPU time of the server in microseconds."""
    if row == "grow-clients":
        return (
            "CPU time a broadcast, us",
            lambda r: 1e6 * r["server_cpu_seconds"] / max(r["messages"], 1),
        )
    if row == "grow-rooms":
        return (
            "CPU time a message, us",
            lambda r: 1e6 * r["server_cpu_seconds"] / max(r["messages"], 1),
        )
    return "CPU time a delivery, us", lambda r: 1e6 / per_cpu_second(r)


def points(results: Results, row: str, server: str) -> list[tuple[float, float]]:
    """x and the median cost, for the cases that were measured without a fault."""
    figure = cost(row)[1]
    found: dict[float, list[float]] = {}
    for run in results.of(row, server):
        if not first_fault([run]) and run.result["server_cpu_seconds"] > 0:
            found.setdefault(run.x, []).append(figure(run.result))
    return [(x, median(values)) for x, values in sorted(found.items())]


def growth_table(results: Results, row: str) -> str:
    servers = results.servers(row)
    series = {server: dict(points(results, row, server)) for server in servers}
    lines = []
    for case in results.cases(row):
        x = results.of(row, case=case)[0].x
        cells = [
            f"{series[server][x]:.3g}"
            if x in series[server]
            else first_fault(results.of(row, server, case))
            for server in servers
        ]
        lines.append([case, *cells])
    exponents = [
        f"**{power_law(list(series[server].items()))[0]:.2f}**" if len(series[server]) > 1 else ""
        for server in servers
    ]
    lines.append(["**exponent**", *exponents])
    return table([cost(row)[0], *(SERVERS[server].title for server in servers)], lines)


def sessions_text(results: Results) -> str:
    lines = []
    for session in results.sessions:
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        lines.append(
            f"- {session['date']}, `{session['command']}`, commit "
            f"{session.get('commit', 'unknown')}: {session['cpu']}, "
            f"{session['cpus']} CPUs, Linux {session['kernel']}, Python {session['python']}, "
            f"{session.get('compiler', 'compiler unknown')}, "
            f"{session['tcp_congestion_control']}; {versions}. "
            f"Load average before: {session['load_average_before']:.1f}."
        )
        lines += [f"  Left out: {name} ({why})." for name, why in session["skipped"].items()]
    return "\n".join(dict.fromkeys(lines))


def document(results: Results, plots: dict[str, str]) -> str:
    """All of it; `plots` says which file shows which row (or "main")."""
    parts = [
        "# Results",
        "Written by `benchmarks/run.py`; [README.md](README.md) says what each row is.",
    ]
    parts += ["## When, where, what", sessions_text(results)]

    def section(title: str, name: str, *texts: str) -> None:
        if any(texts):
            shown = [f"![{title}]({plots[name]})"] if name in plots else []
            parts.extend([f"## {title}", *shown, *filter(None, texts)])

    section("Overview", "main", main_table(results))
    section("Claims", "claims", claims_table(results))
    for row in results.rows():
        if row.startswith("grow-"):
            section(f"How cost grows: {ROWS[row].title}", row, growth_table(results, row))
        elif ROWS[row].kind in _KINDS:
            section(ROWS[row].title[0].upper() + ROWS[row].title[1:], row, row_table(results, row))
    return "\n\n".join(parts) + "\n"
