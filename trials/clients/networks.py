"""Networks and laptops that are away for a while: how soon clients are back.

    python -m trials.clients.networks [--fault NAME ...] [--client NAME ...] [--quick]

Clients in Chromium, Firefox and node follow a room that a hub publishes to 5 times a second, with
the defaults of the client. The faults, of 60 s each:

FAULTS

A client is back when it gets a message that was published after the end of the fault. "Coming back"
of clients/spec.md has the bounds. Prints a table; the exit status is 1 if a client was not back
within its bound, or if verdict.py finds its record wrong. `--quick` takes faults of 2 s, and
options of the client that are as much shorter.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trials.clients.hubs import ROOMS, SCENARIOS, Hubs, hubs
from trials.clients.line import Line, line
from trials.clients.pages import KINDS, Page, page
from trials.clients.verdict import WRONG, End, judge
from trials.torture.output import print_table

ROOM = ROOMS[0]
# Messages in a fault: fewer than a recovery gives.
MESSAGES = 300
# Seconds that a connection takes to open on a busy machine, with all that comes before a message.
HANDSHAKE = 2.0
# The options that the bounds are made of, in seconds; see the table of options in clients/spec.md.
DEFAULTS = {
    "minDelay": 1.0,
    "maxDelay": 30.0,
    "connectTimeout": 10.0,
    "heartbeatInterval": 25.0,
    "heartbeatTimeout": 10.0,
}
SHORTER = 30


@dataclass
class Setup:
    """One fault under way.

    Attributes:
        relay: the line of all clients.
        pages: the clients.
        running: the hub.
        seconds: of the fault.
        options: of the clients, in seconds.
        published: the number of the last message.
    """

    relay: Line
    pages: Sequence[Page]
    running: Hubs
    seconds: float
    options: dict[str, float]
    published: int = 0

    async def publish(self) -> None:
        """Publishes for ever."""
        while True:
            self.published += 1
            await self.running.publish(ROOM, str(self.published))
            await asyncio.sleep(max(0.05, self.seconds / MESSAGES))


async def sleep(setup: Setup) -> None:
    """The clients' processes stand still (SIGSTOP), and their connections live on."""
    with ExitStack() as stack:
        for each in setup.pages:
            stack.enter_context(each.asleep())
        await asyncio.sleep(setup.seconds)


async def sleep_cut(setup: Setup) -> None:
    """They stand still, and their connections are cut meanwhile."""
    with ExitStack() as stack:
        for each in setup.pages:
            stack.enter_context(each.asleep())
        await asyncio.sleep(setup.seconds / 2)
        await setup.relay.cut_all()
        await asyncio.sleep(setup.seconds / 2)


async def airplane(setup: Setup) -> None:
    """The network carries nothing, and nobody says so."""
    setup.relay.silence()
    await asyncio.sleep(setup.seconds)
    setup.relay.speak()


async def portal(setup: Setup) -> None:
    """Connections are cut, and a captive portal answers new ones with a page."""
    setup.relay.portal = True
    await setup.relay.cut_all()
    await asyncio.sleep(setup.seconds)
    setup.relay.portal = False


async def idle(setup: Setup) -> None:
    """Nothing is published, and a proxy ends connections that were silent a sixth of the time."""
    setup.relay.idle = setup.seconds / 6
    await setup.relay.cut_all()
    await asyncio.sleep(setup.seconds)


async def kept(setup: Setup) -> None:
    """Nothing is published, and a proxy would end connections without the clients' heartbeat."""
    setup.relay.idle = setup.options["heartbeatInterval"] * 1.6
    await asyncio.sleep(setup.seconds)
    if setup.relay.cuts:
        raise AssertionError(f"{setup.relay.cuts} connections were ended in spite of the heartbeat")


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        happen: from its beginning to its end.
        bound: seconds from its end until a client is back, by its options; HANDSHAKE comes on top.
        silent: nothing is published meanwhile.
    """

    happen: Callable[[Setup], Awaitable[None]]
    bound: Callable[[dict[str, float]], float]
    silent: bool = False


def _long(options: dict[str, float]) -> float:
    found_out = options["heartbeatInterval"] + options["heartbeatTimeout"] + options["minDelay"]
    return max(found_out, options["connectTimeout"] + options["maxDelay"])


FAULTS = {
    "sleep": Fault(sleep, lambda options: 0.0),
    "sleep-cut": Fault(sleep_cut, lambda options: options["minDelay"]),
    "airplane": Fault(airplane, _long),
    "portal": Fault(portal, lambda options: options["maxDelay"]),
    # The end of the fault may be that of a connection; each end counts by itself, see `worst`.
    "idle": Fault(idle, lambda options: options["minDelay"], silent=True),
    "kept": Fault(kept, lambda options: 0.0, silent=True),
}
COLUMNS = (
    *("fault", "client", "seconds", "connections", "messages", "recovered", "back", "bound"),
    *("wrong", "late"),
)


def worst_wait(record: Sequence[Sequence[Any]]) -> float:
    """The longest time from the end of a connection to the next one, in seconds."""
    longest, ended = 0.0, None
    for at, kind, *values in record:
        if kind == "state" and values[0] == "waiting" and ended is None:
            ended = at
        elif kind == "state" and values[0] == "open":
            longest = max(longest, at - ended if ended is not None else 0)
            ended = None
    return longest / 1000


async def suffer(fault: Fault, setup: Setup) -> list[float]:
    """Has the fault happen; returns the seconds after its end at which each client was back."""
    publishing = asyncio.create_task(setup.publish())
    await asyncio.sleep(0.5)
    if fault.silent:
        await _end(publishing)
    await fault.happen(setup)
    ended, before = time.time(), setup.published
    if fault.silent:
        publishing = asyncio.create_task(setup.publish())
    bound = fault.bound(setup.options) + HANDSHAKE
    try:
        return await asyncio.gather(
            *(_back(each, ended, before, 2 * bound) for each in setup.pages)
        )
    finally:
        await _end(publishing)


async def _end(publishing: asyncio.Task[None]) -> None:
    """Ends the publisher between two messages."""
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)


async def _back(each: Page, ended: float, before: int, patience: float) -> float:
    """The seconds until a client had a message after number `before`; infinite after `patience`."""
    deadline = time.time() + patience
    while True:
        for at, kind, *values in await each.look():
            if kind == "message" and values[1] > before:
                return max(0.0, at / 1000 - ended)
        if time.time() > deadline:
            return float("inf")
        await asyncio.sleep(0.05)


async def play(
    name: str, pages: Sequence[Page], seconds: float, shorter: float, seed: int
) -> list[list[Any]]:
    """Plays a fault; returns a row for each client."""
    fault = FAULTS[name]
    options = {key: value / shorter for key, value in DEFAULTS.items()}
    given = {key: value * 1000 for key, value in options.items()} if shorter != 1 else {}
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        running, _ = await stack.enter_async_context(hubs(SCENARIOS["one"], Path(directory)))
        relay = await stack.enter_async_context(line(running.ports))
        url = f"ws://127.0.0.1:{relay.port}/ws"
        for number, each in enumerate(pages):
            await each.follow(url, [ROOM], given, seed + number, 0)
            await each.until(lambda record: "first" in {kind for _, kind, *_ in record})
        setup = Setup(relay, pages, running, seconds, options)
        back = await suffer(fault, setup)
        rows = [_row(name, each, after, setup) for each, after in zip(pages, back, strict=True)]
        for each in pages:
            await each.end()
    return rows


def _row(name: str, each: Page, after: float, setup: Setup) -> list[Any]:
    fault = FAULTS[name]
    # The last messages are on their way, and nobody waits for them.
    newest = max(values[1] for _, kind, *values in each.record if kind == "message")
    every = {ROOM: range(1, newest + 1)}
    findings = judge(each.record, {ROOM: End(newest)}, every, lossless=True)
    for text in findings.texts:
        print(f"  {each.name}: {text}", flush=True)
    if fault.silent:
        after = max(after, worst_wait(each.record))
    bound = fault.bound(setup.options) + HANDSHAKE
    counts = findings.counts
    wrong = sum(counts[kind] for kind in WRONG)
    shown = {
        "fault": name,
        "client": each.name,
        "seconds": f"{setup.seconds:g}",
        "back": f"{after:.2f}",
        "bound": f"{bound:.2f}",
        "wrong": wrong,
        "late": int(after > bound),
    }
    return [shown.get(column, counts[column]) for column in COLUMNS]


async def run(arguments: argparse.Namespace) -> bool:
    """Plays all that is asked for; whether each client was back in time, with all messages."""
    found: list[list[Any]] = []
    seconds, shorter = (2.0, SHORTER) if arguments.quick else (60.0, 1)
    async with AsyncExitStack() as stack:
        # In two seconds Firefox's own delays would be most of what is measured.
        pages = [
            await stack.enter_async_context(page(kind, as_shipped=not arguments.quick))
            for kind in arguments.client or KINDS
        ]
        for name in arguments.fault or FAULTS:
            print(f"{name}: {FAULTS[name].happen.__doc__}", flush=True)
            found += await play(name, pages, seconds, shorter, arguments.seed)
    print_table(COLUMNS, found)
    return not any(row[COLUMNS.index(each)] for row in found for each in ("wrong", "late"))


def main() -> None:
    described = "\n".join(f"    {name:10} {each.happen.__doc__}" for name, each in FAULTS.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").replace("FAULTS", described),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fault", action="append", choices=FAULTS, help="may be repeated")
    parser.add_argument("--client", action="append", choices=KINDS, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="all times are much shorter")
    parser.add_argument("--seed", type=int, default=1)
    if not asyncio.run(run(parser.parse_args())):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
