"""The scenarios: the faults of one round of each.

While the faults of a round happen, all clients hop and all publishers publish (trial.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from trials.torture_cluster.trial import Setup, Trial

BUSY = 0.4  # seconds before and after a fault, about
FREEZES = 2.0, 12.0, 60.0
# With --quick: seconds of a freeze, and how much of the time everybody is busy.
QUICK_FREEZE, QUICK_BUSY = 0.8, 0.4
# Of so many rounds one has the second length of a freeze, and one the third.
RARE, RAREST = 5, 25


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    Attributes:
        faults: of one round; returns how many there were.
        setup: the processes.
        lossless: the bus loses nothing, and each client has to recover.
        size: most bytes of padding in a message.
        pause: seconds between two bursts of a publisher, on average.
    """

    faults: Callable[[Trial], Awaitable[int]]
    setup: Setup = field(default_factory=Setup)
    lossless: bool = True
    size: int = 0
    pause: float = 0.05

    @property
    def alone(self) -> bool:
        """Whether it shares no processes with other scenarios."""
        return self.setup.replicated


async def _work(trial: Trial, most: float = 2 * BUSY) -> None:
    most *= QUICK_BUSY if trial.quick else 1.0
    await asyncio.sleep(random.uniform(most / 4, most))


async def hop(trial: Trial) -> int:
    """No fault: the clients hop."""
    await _work(trial, 4 * BUSY)
    return 0


async def kill_node(trial: Trial) -> int:
    """kill -9 of one or two nodes, which start again."""
    await _work(trial)
    victims = random.sample(range(len(trial.nodes)), random.randint(1, len(trial.nodes) - 1))
    await asyncio.gather(*(trial.replace(victim, gently=False) for victim in victims))
    await _work(trial)
    return len(victims)


async def rolling(trial: Trial) -> int:
    """Each node is drained and replaced, one after the other."""
    for number in range(len(trial.nodes)):
        await _work(trial, BUSY)
        await trial.replace(number, gently=True)
    return len(trial.nodes)


async def kill_bus(trial: Trial) -> int:
    """kill -9 of the bus, which starts again with its data."""
    await _work(trial)
    await trial.bus.kill()
    await _work(trial)
    return 1


async def rewind(trial: Trial) -> int:
    """kill -9 of the bus, which starts again with older data."""
    await _work(trial)
    await trial.bus.rewind()
    await _work(trial)
    return 1


async def empty(trial: Trial) -> int:
    """kill -9 of the bus, which starts again with nothing."""
    await _work(trial)
    await trial.bus.empty()
    await _work(trial)
    return 1


async def failover(trial: Trial) -> int:
    """The master is killed, and a replica promoted that lags behind."""
    await _work(trial)
    await trial.fail_over()
    await _work(trial)
    return 1


async def cut_pubsub(trial: Trial) -> int:
    """All subscribing connections are killed each 100 ms."""
    cuts = random.randint(3, 6 if trial.quick else 15)
    for _ in range(cuts):
        await asyncio.sleep(0.1)
        await trial.bus.cut_subscriptions()
    return cuts


def _freeze(trial: Trial) -> float:
    if trial.quick:
        return QUICK_FREEZE
    if trial.round % RAREST == RAREST - 1:
        return FREEZES[2]
    return FREEZES[trial.round % RARE == RARE - 1]


async def freeze_node(trial: Trial) -> int:
    """SIGSTOP of a node for 2 seconds, in some rounds for 12 or 60."""
    await _work(trial)
    node = random.choice(trial.nodes)
    node.freeze()
    await asyncio.sleep(_freeze(trial))
    node.thaw()
    await _work(trial)
    return 1


async def freeze_bus(trial: Trial) -> int:
    """SIGSTOP of the bus for 2 seconds, in some rounds for 12 or 60."""
    await _work(trial)
    await trial.bus.freeze(_freeze(trial))
    await _work(trial)
    return 1


async def output_buffer(trial: Trial) -> int:
    """Large messages to nodes that are frozen for a moment; the bus cuts them off."""
    async with trial.bus.small_buffers():
        for _ in range(2):
            node = random.choice(trial.nodes)
            await _work(trial)
            node.freeze()
            await _work(trial)
            node.thaw()
    return 2


DIRECTIONS = ("request",), ("reply",), ("request", "reply")


async def blackhole(trial: Trial) -> int:
    """The way of a node to the bus, or back, or both, carries nothing for up to 5 seconds."""
    await _work(trial)
    with random.choice(trial.relays).held(DIRECTIONS[trial.round % len(DIRECTIONS)]):
        await asyncio.sleep(QUICK_FREEZE if trial.quick else random.uniform(0.5, 5.0))
    await _work(trial)
    return 1


SCENARIOS = {
    "hop": Scenario(hop, Setup(nodes=2, clients=20)),
    "kill-node": Scenario(kill_node),
    "cut-pubsub": Scenario(cut_pubsub),
    "output-buffer": Scenario(output_buffer, Setup(nodes=2), size=60_000, pause=0.3),
    "rolling": Scenario(rolling),
    "kill-bus": Scenario(kill_bus),
    "blackhole": Scenario(blackhole, Setup(relayed=True)),
    "freeze-node": Scenario(freeze_node),
    "freeze-bus": Scenario(freeze_bus, Setup(nodes=2)),
    "rewind": Scenario(rewind, lossless=False),
    "empty": Scenario(empty, lossless=False),
    "failover": Scenario(failover, Setup(replicated=True), lossless=False),
}
