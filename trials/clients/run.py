"""Has clients of clients/javascript follow rooms while everything fails, and judges their records.

    python -m trials.clients.run [--scenario NAME ...] [--client NAME ...] [--seed N] [--quick]

In each scenario a client in Chromium, one in Firefox and one in node follow three kept rooms, and
ask requests. 10,000 messages are published to the rooms. Connections are cut after 0.2 to 5 s.
Tokens end after 2 to 4 s. Hubs are killed, or end gently, and start again. The scenarios:

SCENARIOS

Each client writes down all that it hears (page.js); verdict.py judges these records. Prints a
table. The exit status is 1 if anything was wrong. The seed decides the faults and the chance of
the clients, and not how the processes interleave.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.redis_server import PROGRAM
from trials.clients.hubs import SCENARIOS
from trials.clients.pages import KINDS, Page, page
from trials.clients.trial import Outcome, Pace, play
from trials.clients.verdict import WRONG
from trials.torture.output import directory_of, print_table
from trials.torture_cluster.sabotage import FAULTS

QUICK = Pace(450, rate=200.0, life=(0.2, 1.2), token=0.8, kill=1.2, failover=1.5, failovers=3)
COLUMNS = (
    *("scenario", "client", "connections", "messages", "recovered", "gap", "again"),
    *("renewed", "4401", "requests", *WRONG, "s"),
)
# Most findings of a client that are printed.
PRINTED = 10


def rows(name: str, outcome: Outcome) -> list[list[Any]]:
    """The rows of a scenario; prints the findings."""
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    print(f"{name}: {faults}", flush=True)
    found = []
    for client, findings in outcome.findings.items():
        for text in findings.texts[:PRINTED]:
            print(f"  {client}: {text}", flush=True)
        counts = findings.counts
        counts["broken"] += outcome.broken
        described = {"scenario": name, "client": client, "s": round(outcome.seconds)}
        found.append([described.get(column, counts[column]) for column in COLUMNS])
    return found


async def run(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether nothing was wrong."""
    pace = QUICK if arguments.quick else Pace(arguments.messages, arguments.rate)
    found: list[list[Any]] = []
    async with AsyncExitStack() as stack:
        pages: list[Page] = [
            await stack.enter_async_context(page(kind)) for kind in arguments.client or KINDS
        ]
        for name in arguments.scenario or SCENARIOS:
            scenario = SCENARIOS[name]
            if scenario.redis and PROGRAM is None:
                print(f"{name}: not played, redis-server is not installed")
                continue
            print(f"{name}: {scenario.title}", flush=True)
            with directory_of(name, arguments.directory) as directory:
                outcome = await play(
                    scenario, pages, pace, Path(directory), arguments.seed, arguments.fault or ()
                )
            found += rows(name, outcome)
    print_table(COLUMNS, found)
    return not any(dict(zip(COLUMNS, row, strict=True))[kind] for row in found for kind in WRONG)


def main() -> None:
    described = "\n".join(f"    {name:10} {each.title}" for name, each in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("SCENARIOS", described),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--client", action="append", choices=KINDS, help="may be repeated")
    parser.add_argument("--messages", type=int, default=Pace.messages, help="in each scenario")
    parser.add_argument("--rate", type=float, default=Pace.rate, help="messages a second")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--directory",
        type=Path,
        help="for the data, the hubs' logs and the records, which stay there",
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=sorted(FAULTS),
        help="a promise that the hubs break; may be repeated: trials/torture_cluster/sabotage.py",
    )
    if not asyncio.run(run(parser.parse_args())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
