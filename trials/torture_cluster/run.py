"""Breaks several hubs and their bus again and again, and compares what clients saw with the bus.

    python -m trials.torture_cluster.run [--scenario NAME ...] [--rounds N] [--quick]

The scenarios (scenarios.py, user_scenarios.py):

SCENARIOS

In each, two or three hubs in processes of their own share a real redis-server, or another program.
After each round everything has to become quiet.

- Scenarios of rooms (node.py): clients hop between the hubs and come back with their positions
  (clients.py), and publishers publish on all hubs (publishers.py). Their traces are compared
  with the streams of the bus (record.py, views.py).
- Scenarios of users (user_node.py): users with two devices hop between the hubs, and acknowledge
  messages that all hubs send them (trials/torture/users.py). Their traces are compared with the
  words of the hubs (user_ledger.py, user_trial.py).

Prints a table. The exit status is 1 if anything was wrong; each case is printed with what is known
of it. The seed decides which faults are drawn, and not how the processes interleave.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from pathlib import Path

from tests.redis_server import PROGRAM
from trials.torture.faults import FAULTS as STORE_FAULTS
from trials.torture.output import print_table
from trials.torture_cluster.plays import KINDS_OF_SCENARIOS, ROUNDS, Kind
from trials.torture_cluster.sabotage import FAULTS
from trials.torture_cluster.user_sabotage import FAULTS as USER_FAULTS

# An audit comes each 10 s, and the machine may be busy.
PATIENCE = 25.0
SCENARIOS = {name: each for kind in KINDS_OF_SCENARIOS for name, each in kind.scenarios.items()}


def groups(kind: Kind, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The scenarios that are played over the same processes, by the title of their row."""
    names = [name for name in arguments.scenario or kind.scenarios if name in kind.scenarios]
    if not arguments.quick:
        return {name: [name] for name in names}
    together = [name for name in names if not kind.scenarios[name].alone]
    found = {name: [name] for name in names if name not in together}
    return {kind.title: together, **found} if together else found


async def torture(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether nothing was wrong."""
    right = True
    for kind in KINDS_OF_SCENARIOS:
        rows = []
        for title, names in groups(kind, arguments).items():
            for name in names:
                print(f"{name}: {kind.scenarios[name].faults.__doc__}", flush=True)
            rows.append(await kind.play(title, names, arguments))
        if rows:
            print_table(kind.columns, rows)
        found = [dict(zip(kind.columns, row, strict=True)) for row in rows]
        right = right and not any(row[each] for row in found for each in kind.wrong)
    return right


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
        choices=sorted({*FAULTS, *USER_FAULTS, *STORE_FAULTS}),
        help="a promise that the nodes break; may be repeated: see sabotage.py for scenarios with "
        "rooms, user_sabotage.py and trials/torture/faults.py for those with users",
    )
    arguments = parser.parse_args()
    if arguments.program is None or shutil.which(arguments.program) is None:
        print("not played: redis-server is not installed")
        return
    if not asyncio.run(torture(arguments)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
