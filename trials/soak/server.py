"""The hub of the soak, in a process of its own: random calls, and a log of who should get what.

Started by run.py. Commands come by line on stdin (`play`, `rest`, `stat`, `stop`, `quit`); the log
(log.py) goes out on stdout. calls.py has the calls, callbacks.py what the hub calls.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import sys
import threading
from typing import Any

import uvloop

from trials.soak.callbacks import Callbacks
from trials.soak.calls import Calls
from trials.soak.log import TICK, Log, Watch
from trials.soak.messages import (
    CLOSE_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    HEARTBEAT_INTERVAL,
    HEARTBEAT_TIMEOUT,
    LATE,
    STOOD_STILL,
    body,
    number_of,
    watch_lateness,
)
from trials.soak.roster import Roster
from wsc_fast import ACKConfig, Client, Hub, HubConfig, HubStats, LoopBusyError, SQLiteOfflineStore
from wsc_fast.testing import Authority


class SoakHub(Hub):
    """Logs each broadcast where it happens, so that those from other threads are logged too."""

    soak_log: Log

    def broadcast(self, message: Any, *, exclude: Any = (), key: str | None = None) -> int:
        count = super().broadcast(message, exclude=exclude, key=key)
        if not self._engine.is_away():
            content = message.encode() if isinstance(message, str) else message
            excluded = [client.user_data["serial"] for client in exclude]
            self.soak_log("B", int(content[: content.index(b" ")]), excluded)
        return count


class Soak:
    """The hub and what is done with it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.draw = draw = random.Random(options.seed)
        self.log = log = Log()
        self.acking = [f"a{i}" for i in range(options.singles)]
        self.acking += [f"s{i}" for i in range(options.shared)]
        self.resting = 0.0  # until when; one of the two processes cannot keep up
        self.stopping = threading.Event()
        callbacks = Callbacks(draw, log)
        self.hub = hub = make_hub(options, callbacks, log)
        self.roster = Roster(log)
        self.calls = Calls(hub, self.roster, draw, log, self.acking)
        self.tasks = self.calls.tasks
        callbacks.register(hub, self.calls)

    async def play(self) -> None:
        """Small calls at a steady rate; broadcasts in bursts, to so many receivers a second."""
        loop = asyncio.get_running_loop()
        credit, burst, last = 0.0, 1, loop.time()
        while self.calls.playing:
            await asyncio.sleep(TICK)
            now = loop.time()
            if now < self.resting:
                last = now
                self.log.done["ticks rested, as this machine is slow"] += 1
                continue
            credit = min(
                credit + (now - last) * self.options.rate, 20.0 * len(self.roster.here) + 1
            )
            last = now
            for _ in range(self.draw.randrange(9)):
                self.calls.step()
            if self.roster.here and credit >= burst * len(self.roster.here):
                credit -= burst * len(self.roster.here)
                for _ in range(burst):
                    self.calls.broadcast()
                burst = self.draw.choice((1, 1, 2, 4, 10))

    def rest(self) -> None:
        self.resting = asyncio.get_running_loop().time() + 0.5

    def late(self, seconds: float) -> None:
        if seconds > LATE:
            self.rest()
        if seconds > STOOD_STILL:
            self.log("L", seconds)

    def play_in_thread(self) -> None:
        """Broadcasts from a thread of its own, few."""
        counter = 1 << 40  # so that the numbers are nobody else's
        while not self.stopping.wait(0.3):
            counter += 1
            number = number_of(counter)
            try:
                self.hub.broadcast(body(number, 50).decode())
            except LoopBusyError:
                self.log.done["broadcasts from a thread, given up"] += 1
            else:
                self.log.done["broadcasts from a thread"] += 1

    # --- what is left ---

    async def stat(self) -> dict[str, Any]:
        hub, acks = self.hub, self.hub._delivery.acks
        assert acks is not None
        stored = 0
        if acks.store is not None and acks.table.loop is not None:
            for user in self.acking:
                stored += await acks.store.count(user)
        gc.collect()
        objects = [type(item) for item in gc.get_objects()]
        return {
            "client objects": objects.count(Client),
            "hub objects": sum(str(kind.__module__).startswith("wsc_fast") for kind in objects),
            "allocated blocks": sys.getallocatedblocks(),
            "connections": hub.connections,
            "connected clients": hub.get_connected_clients(),
            "closing clients": len(hub._engine.closing_clients()),
            "handshakes": len(hub._parts.requests._waiting),
            "hub tasks": len(hub._parts.tasks),
            "tasks": len(asyncio.all_tasks()) - len(self.tasks),
            "our tasks": len(self.tasks),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "pending acks": acks.count,
            "ack queues": len(acks.table.mailboxes),
            "parked acks": len(acks.parked_messages),
            "ack replays": len(acks.replaying),
            "store calls": len(acks.journal._writing),
            "ack deletes": len(acks.journal._deletes),
            "stored messages": stored,
            "users": len(hub.get_all_connected_users()),
            "threads": threading.active_count(),
            "unreported failures": hub.get_stats().unreported_failures,
        }

    # --- the process ---

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        logging.getLogger().addHandler(Watch(self.log))
        out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        writer = asyncio.create_task(self.log.write(out))
        watching = asyncio.create_task(watch_lateness(self.late))
        await self.hub.start(
            port=0,
            ssl=Authority().server_context() if self.options.tls else None,
            transport=self.options.transport,
        )
        self.log("listening", self.hub.port)
        await self.obey(commands)
        counters = counters_of(self.hub.get_stats())
        await self.hub.stop()
        left = await self.stat()
        self.log("end", {"done": dict(self.log.done), "stats": counters, "left": left})
        writer.cancel()
        watching.cancel()
        self.log.flush(out)
        out.close()
        await asyncio.sleep(0.1)

    async def obey(self, commands: asyncio.StreamReader) -> None:
        """Does what it is told to, up to `quit`."""
        thread = threading.Thread(target=self.play_in_thread)
        player: asyncio.Task[None] | None = None
        while command := (await commands.readline()).decode().strip():
            if command == "play":
                player = asyncio.create_task(self.play())
                thread.start()
            elif command == "rest":
                self.rest()
            elif command == "stop":
                assert player is not None
                await self.end_calls(player, thread)
                self.log("stopped")
            elif command == "stat":
                self.log("stat", await self.stat())
            elif command == "quit":
                break

    async def end_calls(self, player: asyncio.Task[None], thread: threading.Thread) -> None:
        """No more calls; the rooms go, and what of this program's own might count as a leak."""
        self.calls.playing = False
        self.stopping.set()
        await player
        await asyncio.to_thread(thread.join)
        for room in list(self.roster.rooms):
            self.hub.delete_room(room)
        self.roster.rooms.clear()
        # No thread and no socket of the executor's is to count as a leak.
        await asyncio.get_running_loop().shutdown_default_executor()


def counters_of(stats: HubStats) -> dict[str, int]:
    """The counters for the report."""
    return {
        "frames sent": stats.frames_sent,
        "deliveries": stats.deliveries,
        "partial sends": stats.partial_sends,
        "conflated": stats.conflated,
        "slow consumers closed": stats.slow_consumer_disconnects,
        "heartbeat timeouts": stats.heartbeat_timeouts,
        "protocol errors": stats.protocol_errors,
        "callback errors": stats.callback_errors,
        "unreported failures": stats.unreported_failures,
        "compressed frames": stats.compressed_frames,
        "acks retransmitted": stats.acks_retransmitted,
        "acks confirmed": stats.acks_confirmed,
        "acks failed": stats.acks_failed,
        "acks timed out": stats.acks_timed_out,
        "acks dropped": stats.acks_dropped,
        "offline stored": stats.offline_stored,
        "offline replayed": stats.offline_replayed,
        "offline errors": stats.offline_errors,
        "replaced clients": stats.replaced_clients,
        "pauses for a rate": stats.rate_limited,
    }


def make_hub(options: argparse.Namespace, callbacks: Callbacks, log: Log) -> SoakHub:
    hub = SoakHub(
        HubConfig(
            enable_compression=True,
            server_no_context_takeover=False,
            client_no_context_takeover=False,
            heartbeat_interval=HEARTBEAT_INTERVAL,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            handshake_timeout=HANDSHAKE_TIMEOUT,
            close_timeout=CLOSE_TIMEOUT,
            write_buffer_size=1 << 15,
            outbox_messages=512,
            max_message_size=1 << 17,
            # Peers that behave send less than this; a peer that floods is read no further.
            message_rate=500.0,
            byte_rate=1 << 20,
            rate_limit_action="pause",
            max_connections=options.limit,
        ),
        authenticate=callbacks.authenticate,
    )
    hub.soak_log = log
    hub.enable_ack(
        ACKConfig(
            enable_offline_messages=True,
            timeout=36_000.0,
            retry_interval=1.0,
            max_retries=1_000_000,
            offline_limit=1_000_000,
        ),
        store=SQLiteOfflineStore(options.store),
    )
    return hub


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=20_000.0)
    parser.add_argument("--store", required=True)
    parser.add_argument("--singles", type=int, default=4)
    parser.add_argument("--shared", type=int, default=4)
    parser.add_argument("--limit", type=int, default=100_000)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--transport", default="hub")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Soak(options).run())


if __name__ == "__main__":
    main()
