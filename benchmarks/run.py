"""The program of `make bench` and `make bench-full`: measures every claim of the project.

Builds the load generator and the C limit, runs each server on one core and the load on another, in
interleaved rounds, and prints Markdown: the main table, the targets beside what was measured, then
each row. Every single run is in the JSON. suite/__init__.py lists the modules.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from suite.machine import BUILD, ROOT, BenchmarkError, Machine, build
from suite.measure import Measure, Timing, rounds_of
from suite.results import Results
from suite.scenarios import ROWS, Row
from suite.servers import SERVERS, available, versions
from suite.tables import claims_table, document, growth_table, main_table, row_table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all rows, every server in each round")
    parser.add_argument("--rounds", type=int, default=None, help="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all?")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(ROWS),
        metavar="ROW",
        help=f"only this row; may be repeated: {', '.join(ROWS)}",
    )
    parser.add_argument(
        "--servers", metavar="NAMES", help=f"only these, comma-separated: {', '.join(SERVERS)}"
    )
    parser.add_argument(
        "--out", type=Path, default=BUILD / "results.json", help="where the runs go"
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="reads the runs of these files, where a later file's rows replace an earlier one's; "
        "measures nothing itself, unless --only says so",
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="results.json, results.md and plots go there too",
    )
    return parser.parse_args()


def chosen_servers(text: str | None) -> list[str] | None:
    names = None if text is None else [name.strip() for name in text.split(",")]
    for name in names or []:
        if name not in SERVERS:
            raise BenchmarkError(f"--servers: {name!r} is none of {', '.join(SERVERS)}")
    return names


def chosen_rows(arguments: argparse.Namespace) -> list[Row]:
    if arguments.only:
        return [ROWS[name] for name in arguments.only]
    return [row for row in ROWS.values() if arguments.full or row.group == "main"]


def measure(arguments: argparse.Namespace, results: Results) -> None:
    """Puts what it measures in the place of those rows; written after each row."""
    chosen, rows = chosen_servers(arguments.servers), chosen_rows(arguments)
    features = build()
    wanted = {name for row in rows for name in row.servers + row.once}
    environment, skipped = available(wanted if chosen is None else wanted & set(chosen))
    if "wsc" in skipped:
        raise BenchmarkError(
            f"wsc_fast cannot be imported: {skipped['wsc']}\n"
            "Build it first (make bench does), or measure others with --servers c,picows"
        )
    machine = Machine(environment)
    timing = Timing(
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        seconds=0.3 if arguments.quick else 1.0,
        warmup=0.1 if arguments.quick else 0.3,
        full=arguments.full or bool(arguments.only),
    )
    names = wanted - set(skipped) if chosen is None else wanted & set(chosen) - set(skipped)
    session = machine.describe() | {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "rounds": timing.rounds,
        "seconds": timing.seconds,
        "versions": versions(names, environment),
        "skipped": skipped,
    }
    results.sessions.append(session)
    one = Measure(machine, timing)
    for row in rows:
        servers = [name for name in row.servers + row.once if name in names]
        runs = []
        for turn, case, name in rounds_of(row, servers, timing, features):
            print(f"{row.name} {case.label} {name} ...", file=sys.stderr, flush=True)
            runs.append(one.run(row, case, name, turn))
        results.replace(runs)
        results.write(arguments.out)


def show(results: Results) -> None:
    for session in results.sessions:
        if session["load_average_before"] > 0.5:
            print(f"NOTE: not alone on this machine (load {session['load_average_before']:.1f}).")
    for text in (main_table(results), claims_table(results)):
        if text:
            print(f"\n{text}")
    for row in results.rows():
        if row.startswith("grow-"):
            print(f"\n### {ROWS[row].title}\n\n{growth_table(results, row)}")
        elif ROWS[row].kind in ("load", "idle"):
            print(f"\n### {ROWS[row].title}\n\n{row_table(results, row)}")


def write_documents(results: Results, folder: Path) -> None:
    from suite.plots import draw  # matplotlib is needed for nothing else

    results.write(folder / "results.json")
    (folder / "results.md").write_text(document(results, draw(results, folder)))


def run(arguments: argparse.Namespace) -> int:
    results = Results([], [])
    for path in arguments.merge:
        results.merge(Results.read(path))
    if arguments.only or not arguments.merge:
        measure(arguments, results)
    results.write(arguments.out)
    show(results)
    if arguments.docs:
        write_documents(results, arguments.docs)
    place = arguments.out.resolve()
    print(f"\nEvery run: {place.relative_to(ROOT) if place.is_relative_to(ROOT) else place}")
    failed = [each for each in results.runs if each.server == "wsc" and each.result["failure"]]
    return 1 if failed else 0


def main() -> None:
    # A signal to end this program stops the server under measure too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(run(parse_arguments()))
    except BenchmarkError as error:
        sys.exit(f"benchmarks/run.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
