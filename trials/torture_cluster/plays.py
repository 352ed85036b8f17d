"""Plays scenarios, with rooms or with users, and makes their rows of the table."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trials.process import ProcessFailedError
from trials.torture.output import directory_of
from trials.torture.stores import Redis
from trials.torture_cluster import scenarios, user_scenarios
from trials.torture_cluster.findings import KINDS
from trials.torture_cluster.process import RefusedError
from trials.torture_cluster.trial import Setup, Trial
from trials.torture_cluster.user_ledger import KINDS as USER_KINDS
from trials.torture_cluster.user_ledger import UserLedger
from trials.torture_cluster.user_trial import UserTrial

ROUNDS = 50
# So many users are in each scenario with users.
USERS = 8


@dataclass(frozen=True)
class Kind:
    """One kind of scenarios.

    Attributes:
        scenarios: by name.
        play: plays some over the same processes; gets a title, their names, and the arguments of
            the command; returns a row.
        columns: of the table.
        wrong: the columns that have to be 0.
        title: of the row where scenarios share processes.
    """

    scenarios: Mapping[str, Any]
    play: Callable[[str, Sequence[str], argparse.Namespace], Awaitable[list[Any]]]
    columns: Sequence[str]
    wrong: Collection[str]
    title: str


async def play_rooms(title: str, names: Sequence[str], arguments: argparse.Namespace) -> list[Any]:
    """Plays scenarios over the same processes; returns their row of the table.

    Args:
        title: of the row.
        names: of the scenarios; their rounds alternate.
        arguments: of the command.
    """
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    setup = scenarios.SCENARIOS[names[0]].setup if len(names) == 1 else Setup(relayed=True)
    random.seed(f"{arguments.seed} {title}")
    began = time.monotonic()
    with directory_of(title, arguments.directory) as directory:
        trial = Trial(
            setup, Path(directory), arguments.program, arguments.patience, arguments.fault or ()
        )
        trial.quick = arguments.quick
        try:
            async with trial:
                for name in [*names] * rounds:
                    await trial.play(scenarios.SCENARIOS[name])
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


async def play_users(title: str, names: Sequence[str], arguments: argparse.Namespace) -> list[Any]:
    """Plays scenarios with users over the same processes; returns their row of the table.

    Args:
        title: of the row.
        names: of the scenarios; their rounds alternate.
        arguments: of the command.
    """
    chosen = [user_scenarios.SCENARIOS[name] for name in names]
    rounds = 1 if arguments.quick else chosen[0].rounds
    seed = f"{arguments.seed} {title}"
    random.seed(seed)
    began = time.monotonic()
    ledger = UserLedger(
        [f"user{number}" for number in range(USERS)],
        store_fails=any(each.store_fails for each in chosen),
        cut_off=any(each.cut_off for each in chosen),
    )
    with directory_of(title, arguments.directory) as directory:
        trial = UserTrial(
            (arguments.rounds or rounds) * len(names),
            Redis(Path(directory), program=arguments.program),
            ledger.crowd,
            ledger,
            Path(directory),
            seed,
            arguments.patience,
            first_only=arguments.first,
            relayed=any(each.relayed for each in chosen),
            quick=arguments.quick,
            broken=arguments.fault or (),
        )
        try:
            async with trial.under_way():
                for number in trial.each_round():
                    await trial.play(chosen[number % len(chosen)].faults)
                await trial.end()
        except ProcessFailedError as error:
            trial.violate("broken", f"the scenario cannot go on: {error}")
    seen = sum(map(len, ledger.seen.values()))
    return [
        *(title, trial.round, trial.faults, ledger.total(ledger.accepted)),
        *(ledger.total(ledger.refused), seen, ledger.copies),
        *(sum(map(len, ledger.again.values())), sum(map(len, ledger.behind.values()))),
        ledger.ended["confirmed"],
        *(ledger.ended["AckFailedError"], ledger.ended["AckDroppedError"], ledger.gone),
        *(ledger.counts[kind] for kind in USER_KINDS),
        f"{time.monotonic() - began:.0f}",
    ]


KINDS_OF_SCENARIOS = [
    Kind(
        scenarios.SCENARIOS,
        play_rooms,
        [
            *("scenario", "rounds", "faults", "published", "again", "deliveries", "reconnects"),
            *("recovered", "not", "gaps", "heals", *KINDS, "s"),
        ],
        KINDS,
        "together",
    ),
    Kind(
        user_scenarios.SCENARIOS,
        play_users,
        [
            *("scenario", "rounds", "faults", "accepted", "refused", "seen", "copies"),
            *("again", "behind", "confirmed", "failed", "dropped", "gone", *USER_KINDS, "s"),
        ],
        USER_KINDS,
        "users-together",
    ),
]
