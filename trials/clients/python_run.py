"""Has the client in Python follow rooms while everything fails, as run.py and networks.py do.

    python -m trials.clients.python_run [--scenario NAME ...] [--fault NAME ...] [--quick]

The scenarios are those of run.py: 10,000 messages, while connections are cut after 0.2 to 5 s,
tokens end, hubs are killed and start again, and Redis fails over. The faults are those of
networks.py. Without arguments all of both are played. Prints two tables; the exit status is 1 if a
message was missing in silence, doubled or out of order, if the client was not back in time, or if a
task of it was left, or its log has a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.redis_server import PROGRAM
from trials.clients import networks, run
from trials.clients.hubs import SCENARIOS
from trials.clients.python_page import python_page
from trials.clients.trial import Pace, play
from trials.clients.verdict import WRONG
from trials.torture.output import print_table
from trials.torture_cluster.process import trouble
from trials.torture_cluster.sabotage import FAULTS as SABOTAGE


async def scenarios(arguments: argparse.Namespace, directory: Path) -> list[list[Any]]:
    """The rows of the scenarios that are asked for."""
    pace = run.QUICK if arguments.quick else Pace(arguments.messages)
    found = []
    for name in chosen(arguments.scenario, arguments.fault, SCENARIOS):
        scenario = SCENARIOS[name]
        if scenario.redis and PROGRAM is None:
            print(f"{name}: not played, redis-server is not installed")
            continue
        print(f"{name}: {scenario.title}", flush=True)
        data = directory / name
        data.mkdir()
        async with python_page(directory / f"{name}.log") as page:
            sabotage = arguments.sabotage or ()
            outcome = await play(scenario, [page], pace, data, arguments.seed, sabotage)
        found += run.rows(name, outcome)
    return found


async def faults(arguments: argparse.Namespace, directory: Path) -> list[list[Any]]:
    """The rows of the faults of networks that are asked for."""
    seconds, shorter = (2.0, networks.SHORTER) if arguments.quick else (60.0, 1)
    found = []
    for name in chosen(arguments.fault, arguments.scenario, networks.FAULTS):
        print(f"{name}: {networks.FAULTS[name].happen.__doc__}", flush=True)
        async with python_page(directory / f"{name}.log") as page:
            found += await networks.play(name, [page], seconds, shorter, arguments.seed)
    return found


def chosen(named: list[str] | None, others: list[str] | None, all_: dict[str, Any]) -> list[str]:
    """The names that are asked for: all, where nothing is."""
    return named or ([] if others else list(all_))


def said_trouble(directory: Path) -> bool:
    """Whether the logs of the client have a traceback; prints it."""
    said = [text for log in sorted(directory.glob("*.log")) for text in trouble(log)]
    for text in said:
        print(f"the log of the client: {text}")
    return bool(said)


async def both(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether nothing was wrong."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        played = await scenarios(arguments, directory)
        suffered = await faults(arguments, directory)
        wrong = said_trouble(directory)
    for columns, rows, bad in (
        (run.COLUMNS, played, [*WRONG]),
        (networks.COLUMNS, suffered, ["wrong", "late"]),
    ):
        if rows:
            print_table(columns, rows)
        wrong |= any(row[columns.index(each)] for row in rows for each in bad)
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--fault", action="append", choices=networks.FAULTS, help="the same")
    parser.add_argument("--messages", type=int, default=Pace.messages, help="in each scenario")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--sabotage",
        action="append",
        choices=sorted(SABOTAGE),
        help="a promise that the hubs break",
    )
    if not asyncio.run(both(parser.parse_args())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
