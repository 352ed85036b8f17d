"""Breaks several hubs and their bus again and again, and compares what clients saw with the bus.

    python -m trials.torture_cluster.run [--scenario NAME ...] [--rounds N] [--quick]

The scenarios (scenarios.py):

SCENARIOS

In each, two or three hubs in processes of their own (node.py) share a real redis-server, or another
program. Clients hop between them and come back with their positions (clients.py), and publishers
publish on all of them (publishers.py). After each round everything has to become quiet, and what
the clients saw is compared with the streams of the bus (record.py, views.py).

Prints a table. The exit status is 1 if anything was wrong; each case is printed with what is known
of it. The seed decides which faults are drawn, and not how the processes interleave.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tests.redis_server import PROGRAM
from trials.process import ProcessFailedError
from trials.torture_cluster.findings import KINDS
from trials.torture_cluster.process import RefusedError
from trials.torture_cluster.sabotage import FAULTS
from trials.torture_cluster.scenarios import SCENARIOS
from trials.torture_cluster.trial import Setup, Trial

ROUNDS = 50
# An audit comes each 10 s, and the machine may be busy.
PATIENCE = 25.0
COLUMNS = [
    *("scenario", "rounds", "faults", "published", "again", "deliveries", "reconnects"),
    *("recovered", "not", "gaps", "heals", *KINDS, "s"),
]


def directory_of(name: str, arguments: argparse.Namespace) -> AbstractContextManager[str]:
    """Where the data of the bus and the logs of the nodes are."""
    if arguments.directory is None:
        return tempfile.TemporaryDirectory()
    directory = arguments.directory.absolute() / name
    directory.mkdir(parents=True)
    return nullcontext(str(directory))


async def play(title: str, names: Sequence[str], arguments: argparse.Namespace) -> list[Any]:
    """Plays scenarios over the same processes; returns their row of the table.

    Args:
        title: of the row.
        names: of the scenarios; their rounds alternate.
        arguments: of the command.
    """
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    setup = SCENARIOS[names[0]].setup if len(names) == 1 else Setup(relayed=True)
    random.seed(f"{arguments.seed} {title}")
    began = time.monotonic()
    with directory_of(title, arguments) as directory:
        trial = Trial(
            setup, Path(directory), arguments.program, arguments.patience, arguments.fault or ()
        )
        trial.quick = arguments.quick
        try:
            async with trial:
                for name in [*names] * rounds:
                    await trial.play(SCENARIOS[name])
                    if arguments.first and trial.findings.counts:
                        break
                await trial.end()
        except (ProcessFailedError, RefusedError) as error:
            trial.findings.add("broken", f"the scenario cannot go on: {error}")
    counts = trial.crowd.counts
    return [
        *(title, trial.round, trial.counts["faults"], trial.publishers.answered),
        *(trial.publishers.again, counts["deliveries"], counts["reconnects"], counts["recovered"]),
        *(counts["not"], counts["gaps"], trial.counts["heals"]),
        *(trial.findings.counts[kind] for kind in KINDS),
        f"{time.monotonic() - began:.0f}",
    ]


def groups(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The scenarios that are played over the same processes, by the title of their row."""
    names = arguments.scenario or list(SCENARIOS)
    if not arguments.quick:
        return {name: [name] for name in names}
    together = [name for name in names if not SCENARIOS[name].setup.replicated]
    found = {name: [name] for name in names if name not in together}
    return {"together": together, **found} if together else found


async def torture(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether nothing was wrong."""
    rows: list[list[Any]] = []
    for title, names in groups(arguments).items():
        for name in names:
            print(f"{name}: {SCENARIOS[name].faults.__doc__}", flush=True)
        rows.append(await play(title, names, arguments))
    print()
    for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
        print("| " + " | ".join(f"{each:,}" if type(each) is int else each for each in row) + " |")
    start = COLUMNS.index(next(iter(KINDS)))
    return not any(any(row[start : start + len(KINDS)]) for row in rows)


def main() -> None:
    described = "\n".join(
        f"    {name:15} {each.faults.__doc__}" for name, each in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("SCENARIOS", described),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--program", default=PROGRAM, help="redis-server or valkey-server")
    parser.add_argument("--rounds", type=int, help=f"by default {ROUNDS}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a short round of each, over the same processes where they can be",
    )
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds until something is late"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--first", action="store_true", help="end a scenario with its first round that goes wrong"
    )
    parser.add_argument(
        "--directory", type=Path, help="for the data and the nodes' logs, which stay there"
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=FAULTS,
        help="a promise that the nodes break (sabotage.py); may be repeated",
    )
    arguments = parser.parse_args()
    if arguments.program is None or shutil.which(arguments.program) is None:
        print("not played: redis-server is not installed")
        return
    if not asyncio.run(torture(arguments)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
