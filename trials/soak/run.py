"""A long run of everything at once, checked by a model.

    python -m trials.soak.run [--quick] [--seconds 1800] [--clients 5000] [--seed 1] [--rate 20000]

Starts a hub (server.py) in a process of its own and, in this process, clients on raw connections
that come and go (slots.py). The hub's log says who should get what; model.py compares, and says
what is right. memory.py judges the memory of the hub's process.

Exit status 1 on any violation. The seed decides which numbers are drawn, and not how the processes
interleave.

A slow machine makes for less load and for no violation: where one of the two processes is late, the
hub gets less to do and fewer clients come; and the connections that live while one of them stands
still (2 s late) count as misbehaving, since a peer may rightly have been given up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import tempfile
from typing import Any

import uvloop

from trials.soak.clients import Clients
from trials.soak.memory import Memory
from trials.soak.messages import LATE, watch_lateness
from trials.soak.model import Model
from trials.soak.process import HubProcess
from trials.soak.slots import slot, user_of
from wsc_fast.testing import trusting

BLOCKS = "allocated blocks"
# These have to be as before once everybody has gone, but for so many more. Caches hold some blocks
# of memory (sys.getallocatedblocks); one for each connection would be more.
NONE_LEFT = (
    *("client objects", "connections", "connected clients", "closing clients", "handshakes"),
    *("hub tasks", "our tasks", "pending acks", "ack queues", "parked acks", "ack replays"),
    *("store calls", "ack deletes", "stored messages", "users"),
)
LEAKS = dict.fromkeys((*NONE_LEFT, "hub objects", "tasks", "descriptors", "threads"), 0)
LEAKS[BLOCKS] = 5_000


class Soak:
    """One run: the clients, the hub's process, and the verdict."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = Model()
        self.clients = Clients(
            self.model, random.Random(options.seed), trusting() if options.tls else None
        )
        self.hub = HubProcess(self.model)
        self.memory = Memory()
        self.blocks = 0  # of memory, more than before the first client
        self.singles = max(2, options.clients // 25)
        self.shared = max(2, options.clients // 50)

    async def run(self) -> None:
        options = self.options
        with tempfile.TemporaryDirectory() as directory:
            await self.hub.start(
                *("--seed", str(options.seed), "--rate", str(options.rate)),
                *("--store", f"{directory}/offline.db"),
                *("--singles", str(self.singles), "--shared", str(self.shared)),
                *("--transport", options.transport, *(["--tls"] if options.tls else [])),
            )
            following = asyncio.create_task(self.hub.follow())
            complaining = asyncio.create_task(self.hub.complaints())
            process = self.hub.process
            try:
                await self.listen_and_play()
                await self.hub.command("quit")
                async with asyncio.timeout(60):
                    if await process.wait() != 0:
                        self.model.violation(f"the server ended with {process.returncode}")
                    await following
                    await complaining
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async def listen_and_play(self) -> None:
        async with asyncio.timeout(30):
            await self.hub.listening.wait()
        self.clients.port = self.hub.port
        baseline = await self.hub.stat()
        await self.hub.command("play")
        pacing = [
            asyncio.create_task(watch_lateness(self.clients.late)),
            asyncio.create_task(self.keep_up()),
        ]
        slots = [self.slot(index) for index in range(self.options.clients)]
        await self.play(slots)
        await self.drain()
        self.clients.leaving.set()
        for outcome in await asyncio.gather(*slots, return_exceptions=True):
            if isinstance(outcome, BaseException):
                self.model.violation(f"the harness: {outcome!r}")
        await self.look_for_leaks(baseline)
        for task in pacing:
            task.cancel()

    def slot(self, index: int) -> asyncio.Task[None]:
        user = user_of(index, self.singles, self.shared)
        return asyncio.create_task(slot(self.clients, index, user, self.options.seconds))

    async def play(self, slots: list[asyncio.Task[None]]) -> None:
        """The time of the run; it ends early where a slot fails."""
        watching = asyncio.create_task(
            self.memory.watch(self.hub.process.pid, lambda: self.clients.lateness)
        )
        sleeping = asyncio.create_task(asyncio.sleep(self.options.seconds))
        await asyncio.wait([sleeping, *slots], return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()

    async def drain(self) -> None:
        """No new clients, no new messages, and all that needs it is acknowledged."""
        self.clients.running, self.clients.draining = False, True
        await self.hub.command("stop")
        async with asyncio.timeout(120):
            await self.hub.stopped.wait()
        await self.hub.until(
            "the acknowledgement of everything",
            lambda stat: stat["pending acks"] == stat["stored messages"] == 0,
            120,
        )
        self.clients.draining = False

    async def look_for_leaks(self, baseline: dict[str, int]) -> None:
        """Everybody has gone: the hub's process is as it was before the first client."""

        def as_before(stat: dict[str, int]) -> bool:
            return all(stat[name] <= baseline[name] + LEAKS[name] for name in LEAKS)

        left = await self.hub.until("the state before the first client", as_before, 60)
        self.blocks = left[BLOCKS] - baseline[BLOCKS]
        self.model.checked["kinds of leaks looked for"] = len(LEAKS)
        await asyncio.sleep(0.2)
        self.model.end(left["unreported failures"])

    async def keep_up(self) -> None:
        """Has the hub do less while this process cannot keep up with it."""
        while True:
            if self.clients.lateness > LATE:
                await self.hub.command("rest")
            await asyncio.sleep(0.2)

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Asyncio reports an error of this process: a reset is no fault here, all else is."""
        error = context.get("exception")
        if not isinstance(error, OSError):
            self.model.violation(f"the harness: {context['message']}: {error!r}")

    def report(self) -> bool:
        """Prints what was done and what was wrong; whether nothing was."""
        options, final, model = self.options, self.hub.final, self.model
        memory, grew = self.memory.judge(options.seconds, options.tls)
        if grew:
            model.violation(f"memory grew: {memory}")
        left = final.get("left", {})
        for name in NONE_LEFT:
            if left.get(name, 1):
                model.violation(f"after the stop there are {left.get(name)} {name}")
        way = ("over TLS, " if options.tls else "") + (
            "on picows, " if options.transport == "picows" else ""
        )
        print(f"soak: {options.seconds:g} s, {way}{options.clients} clients, seed {options.seed}")
        for title, counts in (
            ("clients", model.done),
            ("hub calls", final.get("done", {})),
            ("hub counters", final.get("stats", {})),
            ("checked", model.checked),
        ):
            print(f"  {title}")
            for name, count in sorted(counts.items()):
                print(f"    {name:<50} {count:>12,}")
        print(f"  memory: {memory}; by the minute: {self.memory.by_minute()} MB")
        print(f"  blocks of memory in the end: {self.blocks:+,} (allowed: {LEAKS[BLOCKS]:+,})")
        print(f"  {len(model.violations)} violations")
        for text in model.violations[:10]:
            print(f"    {text}")
        print("PASSED" if not model.violations else "FAILED")
        return not model.violations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000.0, help="broadcast deliveries/second")
    parser.add_argument("--quick", action="store_true", help="3 minutes, 1,000 clients: as in CI")
    parser.add_argument("--tls", action="store_true", help="all of it over TLS")
    parser.add_argument("--transport", choices=["hub", "picows"], default="hub")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.clients = 180.0, 1_000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = options.clients + 500
    if most != resource.RLIM_INFINITY and most < needed:
        raise SystemExit(f"{options.clients} clients need {needed} descriptors (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:

        async def body() -> bool:
            soak = Soak(options)
            asyncio.get_running_loop().set_exception_handler(soak.failed)
            try:
                await soak.run()
            except TimeoutError as error:
                soak.model.violation(f"the server does not answer: {error!r}")
            return soak.report()

        if not runner.run(body()):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
