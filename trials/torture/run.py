"""Breaks servers and stores again and again, and counts what the users of the servers saw.

    python -m trials.torture.run [--scenario NAME ...] [--store sqlite|redis] [--rounds N] [--quick]

The scenarios (scenarios.py):

    kill               a server is killed with SIGKILL at random moments
    full-disk          messages fill a small disk, users acknowledge, the server is killed (SQLite)
    late-store         the store comes after the server, goes away and comes back
    two-processes      two servers share a store, and users go from one to the other
    rolling-restart    a new server takes over from an old one, which sends until its end

In each, real servers (server.py) send messages with acknowledgement to all users, and report each
whose `accepted` has returned or raised. The users (users.py) are clients that come and go,
acknowledge (now and then late, or not before they leave), and drop ids that they know. In quiet
moments everything has to arrive without anybody connecting anew.

Prints a table. The exit status is 1 if a message that was accepted was lost, doubled, out of order
or late, stayed in the store, or left its sender waiting, or if a server failed; each such case is
printed with what is known of it. The seed decides which faults are drawn, and not how the processes
interleave.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path

from trials.process import ProcessFailedError
from trials.torture.faults import FAULTS
from trials.torture.ledger import KINDS, Ledger
from trials.torture.output import directory_of, print_table
from trials.torture.scenarios import SCENARIOS
from trials.torture.stores import Place, Redis, SmallDisk, SQLiteFile, has_redis, has_small_disks
from trials.torture.trial import Trial
from trials.torture.users import Crowd

ROUNDS = 50
DISK = 6  # megabytes
# A few seconds for the hub, and as many for a machine that is busy.
PATIENCE = 10.0


def place_of(scenario: str, store: str, directory: Path) -> Place:
    if store == "redis":
        return Redis(directory)
    return SmallDisk(directory, DISK) if scenario == "full-disk" else SQLiteFile(directory)


async def play(name: str, store: str, arguments: argparse.Namespace) -> tuple[Ledger, int, float]:
    """Plays one scenario over one store; returns what is known, its rounds and its seconds."""
    scenario = SCENARIOS[name]
    names = [f"user{number}" for number in range(arguments.users or scenario.users)]
    ledger = Ledger(names, order_of_accepted=scenario.store_fails)
    rounds = arguments.rounds or (scenario.quick if arguments.quick else ROUNDS)
    seed = f"{arguments.seed} {name} {store}"
    random.seed(seed)
    with directory_of(f"{name}-{store}", arguments.directory) as directory:
        async with place_of(name, store, Path(directory)) as place, Crowd(names, ledger) as crowd:
            trial = Trial(
                rounds,
                place,
                crowd,
                ledger,
                Path(directory),
                seed,
                arguments.patience,
                fault=arguments.fault,
                first_only=arguments.first,
            )
            try:
                await scenario.play(trial)
            except ProcessFailedError as error:
                trial.violate("broken", str(error))
    return ledger, trial.round, time.monotonic() - ledger.started


async def why_not(name: str, store: str) -> str:
    """The thing that a scenario over this store needs and that is missing; "" if nothing is."""
    if store == "redis" and not has_redis():
        return "redis-server is not installed"
    if name == "full-disk" and not await has_small_disks():
        return "no mount namespaces here"
    return ""


COLUMNS = ["scenario", "store", "rounds", "accepted", "refused", "seen", "copies", *KINDS, "s"]


async def torture(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether nothing was wrong."""
    rows: list[list[object]] = []
    right = True
    for name in arguments.scenario or SCENARIOS:
        for store in SCENARIOS[name].stores:
            if arguments.store not in (None, store):
                continue
            missing = await why_not(name, store)
            print(f"{name} over {store}{missing and f': not played, {missing}'}", flush=True)
            if missing:
                continue
            ledger, rounds, seconds = await play(name, store, arguments)
            right = right and not ledger.counts
            sums = [ledger.total(ledger.accepted), ledger.total(ledger.refused)]
            seen = sum(map(len, ledger.seen.values()))
            wrong = [ledger.counts[kind] for kind in KINDS]
            rows.append([name, store, rounds, *sums, seen, ledger.copies, *wrong, f"{seconds:.0f}"])
    print_table(COLUMNS, rows)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="may be repeated")
    parser.add_argument("--store", choices=["sqlite", "redis"])
    parser.add_argument("--rounds", type=int, help=f"by default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each")
    parser.add_argument("--users", type=int)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds without progress that are late"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--first", action="store_true", help="end a scenario with its first round that goes wrong"
    )
    parser.add_argument(
        "--directory", type=Path, help="for the stores and the servers' logs, which stay there"
    )
    parser.add_argument("--fault", choices=FAULTS, help="a store that breaks its word (faults.py)")
    if not asyncio.run(torture(parser.parse_args())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
