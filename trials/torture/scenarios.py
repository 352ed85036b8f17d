"""The scenarios: what happens to servers and stores while users come and go.

Each takes a Trial and goes through its rounds. A round ends quietly (`Trial.settle`): senders
pause, users stay where they are, and everything that was accepted has to arrive.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from trials.crowd import Mood
from trials.torture.process import Server
from trials.torture.stores import SmallDisk
from trials.torture.trial import Trial

# Numbers that one life of a sender has for itself, so that none is used twice.
STRIDE = 1_000_000
# A server is killed once it has accepted so many messages.
LEAST_ACCEPTED, MOST_ACCEPTED = 50, 1000
# Rounds after which `full-disk` begins with an empty disk: a database file does not shrink.
DISK_ROUNDS = 5


async def killed(trial: Trial) -> None:
    """A server is killed with SIGKILL at a random moment, and the next one starts."""
    door = trial.door("A")
    trial.crowd.be(Mood.BUSY)
    for number in trial.each_round():
        server = await trial.start("A", door, first=number * STRIDE)
        server.publish()
        await trial.accepts(server, random.randint(LEAST_ACCEPTED, MOST_ACCEPTED))
        await server.kill()
    server = await trial.start("A", door)
    await trial.settle(server)
    await trial.finish(server)


async def full_disk(trial: Trial) -> None:
    """Messages fill a small disk; once the users have acknowledged, it takes messages again."""
    assert isinstance(trial.place, SmallDisk)
    door = trial.door("A")
    server: Server | None = None
    for number in trial.each_round():
        await trial.leave()
        if server is not None:
            await random.choice([server.kill, server.terminate])()
        if number % DISK_ROUNDS == 1 and not trial.unseen():
            await trial.place.renew(random.choice([0, 1_000_000, 2_000_000]))
        # The largest go one at a time: more at once for one user leave no room for the others.
        size, wave = random.choice([(0, 8), (200, 8), (2_000, 8), (10_000, 8), (100_000, 1)])
        first = 2 * number * STRIDE
        options = {"size": size, "wave": wave, "pause": 0.005, "retry": 2.0}
        server = await trial.start("A", door, first=first, **options)
        await trial.fill(server)
        if random.random() < 0.5:
            await server.kill()
            server = await trial.start("A", door, first=first + STRIDE, **options)
        trial.crowd.be(Mood.BUSY)
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.settle(server, online=False)
        await trial.takes_messages(server)
        await trial.settle(server, online=False)
    assert server is not None
    await trial.finish(server)


async def late_store(trial: Trial) -> None:
    """The store comes after the server, goes away while users come and go, and comes back."""
    door = trial.door("A")
    server: Server | None = None
    for number in trial.each_round():
        if server is not None:
            await random.choice([server.kill, server.terminate])()
        trial.event(await trial.place.away(at_start=True))
        # Every other round the hub runs first, and the store comes later than the hub waits.
        attach, late = ("after", 1.5) if number % 2 else ("before", random.uniform(0.0, 2.0))
        coming = asyncio.create_task(trial.back_after(late))
        server = await trial.start("A", door, first=number * STRIDE, patience=0.5, attach=attach)
        server.publish()
        trial.crowd.be(Mood.BUSY)
        await coming
        await trial.accepts(server, random.randint(50, 500))
        trial.event(await trial.place.away())
        await trial.back_after(random.uniform(0.2, 1.5))
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.pause(server)
        await trial.takes_messages(server)
        await trial.settle(server, online=False)
    assert server is not None
    await trial.finish(server)


async def two_processes(trial: Trial) -> None:
    """Two servers share a store, both send to all users, and these go from one to the other."""
    doors = [trial.door(name) for name in ("A", "B")]
    servers = [await trial.start(door.name, door) for door in doors]
    for number in trial.each_round():
        if number > 1 and random.random() < 0.25:
            which = random.randrange(2)
            await servers[which].kill()
            door = doors[which]
            servers[which] = await trial.start(door.name, door, first=number * STRIDE)
        trial.crowd.be(Mood.BUSY)
        for server in servers:
            server.publish()
        await trial.accepts(servers[0], random.randint(100, 400))
        # Half of what is sent now goes to users who stay with the other server.
        await trial.stay()
        await trial.accepts(servers[1], random.randint(50, 150))
        await trial.settle(*servers)
    await trial.finish(*servers)


async def rolling_restart(trial: Trial) -> None:
    """Again and again a new server takes over from an old one, which sends until its end."""
    # A socket that both inherit, or two sockets with SO_REUSEPORT: both are usual.
    door = trial.door("the port", shared=not trial.place.url.startswith("redis:"))
    old = await trial.start("A0", door, drain=0.3)
    old.publish()
    for number in trial.each_round():
        trial.crowd.be(Mood.BUSY)
        await trial.accepts(old, random.randint(100, 500))
        new = await trial.start(f"A{number}", door, drain=random.choice([0.0, 0.1, 0.5]))
        new.publish()
        await asyncio.sleep(random.uniform(0.0, 0.5))
        await old.terminate()
        await asyncio.sleep(random.uniform(0.0, 0.3))
        await trial.settle(new)
        new.publish()
        old = new
    await trial.pause(old)
    await trial.finish(old)


@dataclass(frozen=True)
class Scenario:
    """A scenario, and what it takes.

    Attributes:
        play: plays it.
        stores: over which of them.
        users: how many.
        quick: rounds of a quick run.
        store_fails: whether messages may be refused, so that the order of those accepted counts.
    """

    play: Callable[[Trial], Awaitable[None]]
    stores: tuple[str, ...] = ("sqlite", "redis")
    users: int = 8
    quick: int = 2
    store_fails: bool = False


SCENARIOS = {
    "kill": Scenario(killed, users=20, quick=3),
    "full-disk": Scenario(full_disk, stores=("sqlite",), quick=1, store_fails=True),
    "late-store": Scenario(late_store, quick=1, store_fails=True),
    "two-processes": Scenario(two_processes),
    "rolling-restart": Scenario(rolling_restart),
}
