"""The load that several workers carry, on paper: from measured costs to 64 cores and 10 machines.

    python benchmarks/cluster/capacity.py [--costs FILE] [--set "recipient, 32 in a turn=0.3"]
        [--burst 32] [--busy 0.7] [--cores 1 2 4] [--room 2 50 1000]

The costs are microseconds of CPU. `run.py --only workers` measures them, and writes
capacity.json. A worker has a core of its own, and members are spread evenly.
docs/benchmarks/workers.md explains the formulas, and has the tables that this prints.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

CORES = (1, 2, 4, 8, 16, 32, 64, 640)
ROOMS = (2, 50, 1000)
# Bytes around the payload of a message on the bus: envelope, entry, and the protocol of Redis.
AROUND = 110


@dataclass(frozen=True)
class Costs:
    """Microseconds of CPU.

    Attributes:
        sender: of the worker that publishes, for a message.
        worker: of each worker that has a member of the room, for a message.
        recipient: of a worker, for each member who gets a message.
        redis: of Redis, for a message.
        subscriber: of Redis, for each worker that gets a message.
        connection: of a worker, for a new connection.
    """

    sender: float
    worker: float
    recipient: float
    redis: float
    subscriber: float
    connection: float

    @classmethod
    def of(cls, measured: dict[str, float], burst: int) -> Costs:
        """The costs of messages that come so many in a turn of the loop."""
        names = ("sender", "worker", "recipient", "Redis", "Redis, subscriber")
        values = [measured[f"{name}, {burst} in a turn"] for name in names]
        return cls(*values, measured["connection"])


@dataclass(frozen=True)
class Capacity:
    """The messages into rooms of one size that so many workers carry.

    Args:
        costs: of each step.
        workers: each on a core of its own.
        room: members of a room.
        busy: the share of a core that may be used.
    """

    costs: Costs
    workers: int
    room: int
    busy: float

    @property
    def reached(self) -> float:
        """Workers that have a member: w (1 - (1 - 1/w)^r)."""
        return self.workers * (1 - (1 - 1 / self.workers) ** self.room)

    @property
    def of_workers(self) -> float:
        """Microseconds of all workers for a message: a + k b + r c."""
        costs = self.costs
        return costs.sender + self.reached * costs.worker + self.room * costs.recipient

    @property
    def of_redis(self) -> float:
        """Microseconds of Redis for a message: d + k e."""
        return self.costs.redis + self.reached * self.costs.subscriber

    @property
    def by_workers(self) -> float:
        """Messages a second until the workers are busy, over many rooms."""
        return self.busy * self.workers * 1e6 / self.of_workers

    @property
    def by_redis(self) -> float:
        """Messages a second until one Redis is busy."""
        return self.busy * 1e6 / self.of_redis

    @property
    def servers(self) -> int:
        """Servers of Redis, between which the rooms are divided, that keep the workers busy."""
        return math.ceil(self.by_workers / self.by_redis)

    @property
    def one_room(self) -> float:
        """Messages a second into a single room: each of its workers takes each of its messages."""
        divided = self.costs.sender + self.room * self.costs.recipient
        share = self.costs.worker + divided / self.reached
        return min(self.busy * 1e6 / share, self.by_redis)

    @property
    def by_room(self) -> float:
        """Messages a second where all members of a room are on one worker: no bus in between."""
        alone = self.costs.sender + self.costs.worker + self.room * self.costs.recipient
        return self.busy * self.workers * 1e6 / alone


def table(costs: Costs, cores: list[int], room: int, busy: float) -> str:
    """A row for each number of workers, for one size of rooms."""
    lines = [
        "| workers | reached | CPU us a message | messages a second, by the workers | by one Redis "
        "| Redis, MB a second | servers of Redis needed | into one room | rooms by worker |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for workers in cores:
        each = Capacity(costs, workers, room, busy)
        carried = min(each.by_workers, each.by_redis)
        traffic = carried * (1 + each.reached) * (128 + AROUND) / 1e6
        figures = (each.by_workers, each.by_redis, traffic, each.servers)
        cells = [f"{workers:,}", f"{each.reached:.1f}", f"{each.of_workers:,.1f}"]
        cells += [short(value) for value in (*figures, each.one_room, each.by_room)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def short(value: float) -> str:
    """Three digits that count."""
    if value < 1000:
        return f"{value:.3g}"
    digits = 3 - len(str(int(value)))
    return f"{round(value, digits):,.0f}"


def tables(costs: Costs, cores: list[int], rooms: list[int], busy: float) -> str:
    """All tables, as they stand in the docs."""
    parts = []
    for room in rooms:
        parts += [f"Rooms of {room:,}:", table(costs, cores, room, busy)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", type=Path, default=Path(__file__).with_name("capacity.json"))
    parser.add_argument("--set", action="append", default=[], metavar="COST=US")
    parser.add_argument("--burst", type=int, choices=(1, 32), default=32)
    parser.add_argument("--busy", type=float, default=0.7)
    parser.add_argument("--cores", type=int, nargs="+", default=list(CORES))
    parser.add_argument("--room", type=int, nargs="+", default=list(ROOMS))
    options = parser.parse_args()
    measured = json.loads(options.costs.read_text())
    for each in options.set:
        name, _, value = each.partition("=")
        if name not in measured:
            parser.error(f"there is no cost {name!r}, but {', '.join(measured)}")
        measured[name] = float(value)
    costs = Costs.of(measured, options.burst)
    print(tables(costs, options.cores, options.room, options.busy))
    new = options.busy * 1e6 / costs.connection
    print(f"\nNew connections a second: {short(new)} for each worker.")


if __name__ == "__main__":
    main()
