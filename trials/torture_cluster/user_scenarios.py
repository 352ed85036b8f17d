"""The scenarios with users: the faults of one round of each.

While the faults of a round happen, all users hop and all hubs send (user_trial.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trials.torture_cluster.user_trial import HUBS, UserTrial

# Seconds before and after a fault, about.
BUSY = 0.5
# Seconds for which a hub is cut off: most often the first, in each fifth and 25th round the others.
CUTS = 2.0, 12.0, 60.0
RARE, RAREST = 5, 25
QUICK_CUT = 1.0
DIRECTIONS = ("request",), ("reply",), ("request", "reply")
# How Redis writes to its disk: in turns. With the second a crash of the machine loses a second.
FSYNCS = "always", "everysec"


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    Attributes:
        faults: of one round; returns how many there were.
        store_fails: the store is away at times.
        cut_off: a hub may be without Redis for longer than its lease.
        relayed: each hub has a relay of its own to Redis.
        rounds: by default.
        alone: it shares no processes with others.
    """

    faults: Callable[[UserTrial], Awaitable[int]]
    store_fails: bool = False
    cut_off: bool = False
    relayed: bool = False
    rounds: int = 50
    alone: bool = False


async def _work() -> None:
    await asyncio.sleep(random.uniform(BUSY / 2, 2 * BUSY))


async def _kill_hubs(trial: UserTrial) -> int:
    victims = random.sample(range(HUBS), random.choice([1, 1, 2, HUBS]))
    await asyncio.gather(*(trial.replace(victim, gently=False) for victim in victims))
    return len(victims)


async def _kill_bus(trial: UserTrial) -> int:
    fsync = FSYNCS[trial.round % len(FSYNCS)]
    await trial.place.crash("--appendfsync", fsync)
    trial.event(f"Redis was killed, from now on with appendfsync {fsync}")
    return 1


async def hop(trial: UserTrial) -> int:
    """No fault: the users hop."""
    await _work()
    await _work()
    return 0


async def kill_hubs(trial: UserTrial) -> int:
    """kill -9 of one hub, two or all, which start again."""
    await _work()
    killed = await _kill_hubs(trial)
    await _work()
    return killed


async def kill_bus(trial: UserTrial) -> int:
    """kill -9 of Redis, which starts again with its append-only file."""
    await _work()
    killed = await _kill_bus(trial)
    await _work()
    return killed


async def kill_both(trial: UserTrial) -> int:
    """kill -9 of Redis and of hubs, within a moment."""
    await _work()
    killed = await asyncio.gather(_kill_bus(trial), _kill_hubs(trial))
    await _work()
    return sum(killed)


def _cut(trial: UserTrial) -> float:
    if trial.quick:
        return QUICK_CUT
    if trial.round % RAREST == 0:
        return CUTS[2]
    return CUTS[trial.round % RARE == 0]


async def partition(trial: UserTrial) -> int:
    """The way of a hub to Redis, or back, or both, carries nothing for 2, 12 or 60 seconds."""
    await _work()
    number, seconds = random.randrange(HUBS), _cut(trial)
    directions = DIRECTIONS[trial.round % len(DIRECTIONS)]
    name = trial.nodes[number].name
    trial.event(f"{name} is cut off for {seconds:g} s: {' and '.join(directions)}")
    trial.ledger.cut(True)
    with trial.relays[number].held(directions):
        await asyncio.sleep(seconds)
    trial.event(f"{name} is back")
    await _work()
    trial.ledger.cut(False)
    return 1


async def restart(trial: UserTrial) -> int:
    """Each hub is drained and replaced under load, one after the other."""
    for number in range(HUBS):
        await _work()
        await trial.replace(number, gently=True)
    return HUBS


SCENARIOS = {
    "users-hop": Scenario(hop),
    "users-hubs": Scenario(kill_hubs),
    "users-bus": Scenario(kill_bus, store_fails=True, cut_off=True),
    "users-both": Scenario(kill_both, store_fails=True, cut_off=True),
    "users-partition": Scenario(partition, store_fails=True, cut_off=True, relayed=True),
    "users-restart": Scenario(restart, rounds=20),
}
