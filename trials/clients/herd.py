"""Thousands of clients lose a hub at once: how they come back, and what the hub makes of it.

    python -m trials.clients.herd [--clients N] [--rate N] [--seconds N] [--plot FILE] [--quick]

Each client waits a random time after each failure ("full jitter", W1 of clients/spec.md), so that
clients which know nothing of each other come back one by one. Two parts show that:

- The clients' own code on a virtual clock, with a hub that is away for a while, and then takes so
  many connections a second. The attempts must stay under the curve: the expected number of attempts
  if none ever succeeded. It follows from W1 alone: attempt number n comes after a sum of n uniform
  times.
- Real clients in one node, connected to a real hub, which is killed and starts again with a
  `connection_rate`. It must not let in more. One node tries later than 10,000 pages would.

Prints the figures. The exit status is 1 if anything was not so, or if a client did not come back.
`--plot` draws both parts, with matplotlib.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trials.clients.hubs import SCENARIOS, hubs
from trials.clients.pages import node_program

HERE = Path(__file__).parent
# The defaults of the client, in seconds.
MIN_DELAY, MAX_DELAY = 1.0, 30.0
# Seconds between two points of the curve.
STEP = 0.01
# So many standard deviations more may come than are expected.
SIGMAS = 5.0
# Seconds for which the hub of the virtual clock is away.
AWAY = 5.0
# How many clients connect in 100 ms before the loss.
GATHERED = 100


def curve(seconds: float, min_delay: float, max_delay: float) -> list[float]:
    """The expected attempts of one client by that time, at each STEP."""
    points = int(seconds / STEP) + 1
    # The chance that attempt number n has been made.
    made = [1.0] * points
    total = [0.0] * points
    failures = 0
    while made[-1] > 1e-9 and failures < 10_000:
        width = max(1, round(min(max_delay, min_delay * 2**failures) / STEP))
        sums = [0.0]
        for value in made:
            sums.append(sums[-1] + value)
        # The time of the next attempt is this one's and a uniform one more.
        made = [(sums[at] - sums[max(0, at - width)]) / width for at in range(points)]
        total = [before + value for before, value in zip(total, made, strict=True)]
        failures += 1
    return total


@dataclass
class Course:
    """The course of one loss; times are in seconds after it.

    Attributes:
        clients: how many.
        rate: the `connection_rate` of the hub that came after.
        ready: when that hub listened.
        exact: on a virtual clock; a real machine is late, so that attempts come later, and at once.
        attempts, opened: of all clients, sorted.
        let_in: the upgrades that the hub took, by its own clock, sorted.
        expected: the curve, of one client.
        back: whether all clients were connected in the end.
    """

    clients: int
    rate: float
    ready: float
    attempts: Sequence[float]
    opened: Sequence[float]
    let_in: Sequence[float]
    expected: Sequence[float]
    back: bool
    exact: bool

    def by(self, seconds: float) -> float:
        """The attempts of all clients that the curve expects by that time."""
        at = min(len(self.expected) - 1, max(0, int(seconds / STEP)))
        return self.clients * self.expected[at]

    def wrong(self) -> list[str]:
        """The promises that were broken, in words."""
        found = [] if self.back else [f"{len(self.opened)} of {self.clients} clients came back"]
        for second in range(math.ceil(self.attempts[-1])):
            start, end = second, second + 1
            if not self.exact:
                start = 0  # they may not be sooner
            tried = bisect_right(self.attempts, end) - bisect_right(self.attempts, start)
            expected = self.by(end) - self.by(start)
            if tried > expected + SIGMAS * math.sqrt(expected):
                found.append(
                    f"{tried} attempts from {start} to {end} s, expected are {expected:.0f}"
                )
        return found + self._beyond_rate()

    def describe(self) -> str:
        """The figures, in words."""
        busiest = max(
            bisect_right(self.let_in, at + 1) - bisect_right(self.let_in, at) for at in self.let_in
        )
        return (
            f"The next hub was there after {self.ready:.1f} s. {len(self.attempts):,} attempts; "
            f"{bisect_right(self.attempts, 1.0):,} in the first second, where the curve has "
            f"{self.by(1.0):,.0f}.\nThe hub let in {len(self.let_in):,}, {busiest:,} in its "
            f"busiest second, with a connection_rate of {self.rate:g}.\nHalf were back after "
            f"{self.opened[len(self.opened) // 2]:.1f} s, the last one after "
            f"{self.opened[-1]:.1f} s."
        )

    def _beyond_rate(self) -> list[str]:
        """The first stretch of time in which more were let in than a bucket of `rate` allows."""
        level, last = self.rate, self.ready
        for number, at in enumerate(self.let_in):
            level = min(self.rate, level + (at - last) * self.rate) - 1
            last = at
            # The clocks of callbacks are not those of the bucket.
            if level < -0.05 * self.rate - 1:
                return [f"the hub let in {number + 1} by {at - self.ready:.2f} s"]
        return []


def course_of(
    seen: Sequence[Sequence[float]],
    clients: int,
    rate: float,
    delays: tuple[float, float],
    **known: Any,
) -> Course:
    """The course of a loss from what the clients wrote down, in seconds after it."""
    attempts, opened = (sorted(times) for times in seen)
    known.setdefault("let_in", opened)
    return Course(
        clients=clients,
        rate=rate,
        attempts=attempts,
        opened=opened,
        expected=curve(attempts[-1] + 2, *delays),
        back=len(opened) == clients,
        **known,
    )


async def simulate(clients: int, rate: float, seconds: float, shorter: float) -> Course:
    """Has clients lose a hub on a virtual clock; see `lose`."""
    delays = MIN_DELAY / shorter, MAX_DELAY / shorter
    options = {"minDelay": delays[0] * 1000, "maxDelay": delays[1] * 1000}
    async with node_program() as program:
        await program.run((HERE / "herd.js").read_text())
        given = clients, options, AWAY * 1000 / shorter, rate, seconds * 1000
        seen = await program.run("return simulate(...args)", *given)
    times = [[each / 1000 for each in times] for times in seen]
    return course_of(times, clients, rate, delays, ready=AWAY / shorter, exact=True)


async def lose(clients: int, rate: float, seconds: float, shorter: float) -> Course:
    """Has real clients lose a real hub.

    Args:
        clients: how many.
        rate: the `connection_rate` of the next hub.
        seconds: most of them until all are back.
        shorter: the delays of the clients are so many times shorter than the defaults.
    """
    delays = MIN_DELAY / shorter, MAX_DELAY / shorter
    options = {"minDelay": delays[0] * 1000, "maxDelay": delays[1] * 1000}
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory())
        running, _ = await stack.enter_async_context(hubs(SCENARIOS["one"], Path(directory)))
        program = await stack.enter_async_context(node_program())
        await program.run((HERE / "herd.js").read_text())
        url = f"ws://127.0.0.1:{running.ports[0]}/ws"
        await program.run("await gather(...args)", url, clients, options, GATHERED)
        await _until_open(program, clients, 60.0)
        await program.run("herd.attempts.length = herd.opened.length = herd.ended.length = 0")
        await running.end(0, gently=False)
        running.options["connection-rate"] = rate
        await running.start(0)
        ready = time.time()
        await _until_open(program, clients, seconds)
        seen = await program.run("return [herd.attempts, herd.opened]")
        # A busy node hears of the loss late.
        lost = await program.run("return herd.ended[0]") / 1000
        let_in = await running.upgrades()
        await program.run("herd.close()")
    times = [[each / 1000 - lost for each in times] for times in seen]
    taken = sorted(each - lost for each in let_in)
    return course_of(times, clients, rate, delays, ready=ready - lost, let_in=taken, exact=False)


async def _until_open(program: Any, clients: int, patience: float) -> bool:
    """Returns once all are connected; False: not in that time."""
    deadline = time.time() + patience
    while True:
        if await program.run("return herd.open()") == clients:
            return True
        if time.time() > deadline:
            return False
        await asyncio.sleep(0.25)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=500.0, help="connection_rate of the hub")
    parser.add_argument("--seconds", type=float, default=240.0, help="until all have to be back")
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--quick", action="store_true", help="500 clients with shorter delays")
    arguments = parser.parse_args()
    given = arguments.clients, arguments.rate, arguments.seconds, 1.0
    if arguments.quick:
        given = 500, 200.0, 20.0, 5.0
    virtual, real = asyncio.run(simulate(*given)), asyncio.run(lose(*given))
    print(f"{given[0]:,} clients on a virtual clock. {virtual.describe()}\n")
    print(f"{given[0]:,} clients on a real hub. {real.describe()}")
    if arguments.plot:
        from trials.clients.herd_plot import draw

        draw(virtual, real, arguments.plot)
    wrong = virtual.wrong() + real.wrong()
    for text in wrong:
        print(f"wrong: {text}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
