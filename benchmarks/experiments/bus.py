"""The cost of a bus over Redis: of messages that come, and of messages that are kept.

    python benchmarks/experiments/bus.py --rounds 5 [--peer SCRIPT]

Starts a redis-server of its own. Two tables:

*   Messages of one channel into one process, with a handler that does nothing: RedisBus beside
    redis-py's asyncio client, each in a process of its own. CPU of that process for each message,
    and how many a core would take.
*   Messages of kept rooms, 128 bytes, of 100 rooms: CPU of the server for each message, by the
    script of RedisBus alone and with 16 messages in a call. SCRIPT is a Lua script of Centrifuge's
    that adds to a stream (internal/redis_lua/broker_history_add_stream.lua), to compare with.

The ways alternate in each round, so that a busy machine is busy for all of them. Read the medians
and the ranges; the machine's other load changes both.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cluster.redis_server import RedisServer
from wsc_fast.bus.base import Outgoing, Retention
from wsc_fast.bus.redis.bus import RedisBus
from wsc_fast.bus.redis.calls import new_tag, times
from wsc_fast.bus.redis.commands import Names, call, command, script

PAYLOAD = b"x" * 128
ENTRY = b"t 0 0 128\n" + PAYLOAD
ROOMS = 100
# Kept messages of one way before the next has its turn, and turns in a round.
IN_A_TURN, TURNS = 1600, 10
KEPT = Retention(size=100, ttl=300.0)
NAMES = Names(b"wsc:")


def run(server: RedisServer, commands: Sequence[bytes], lines: int) -> None:
    """Sends commands and reads answers of so many lines in all."""
    server.send(b"".join(commands))
    server.discard(lines)


# --- messages that come ---


class Counting:
    """A hub that counts and does no more."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.ready, self.first, self.last = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def envelope(self, channel: str, data: bytes) -> bool:
        self.left -= 1
        if not self.left:
            self.last.set()
        elif not self.first.is_set():
            self.first.set()
        return True

    def takes_more(self) -> bool:
        return True

    def word(self, data: bytes) -> None:
        pass

    def elsewhere(self, users: Sequence[str]) -> None:
        pass

    def words_missed(self) -> None:
        pass

    def kept_rooms(self) -> bytes:
        return b"[]"

    def subscribed(self, channels: Sequence[str], again: bool) -> None:
        if "room" in channels:
            self.ready.set()

    def up(self) -> None:
        pass

    def down(self, error: Exception) -> None:
        raise error

    def not_published(self, outgoing: Outgoing, error: Exception) -> None:
        raise error


async def hear_by_bus(port: int, messages: int) -> float:
    bus, hub = RedisBus(f"redis://127.0.0.1:{port}"), Counting(messages)
    await bus.open(hub, "a")
    bus.subscribe(["room"])
    await hub.ready.wait()
    print("ready", flush=True)
    await hub.first.wait()
    before = cpu_of_process()
    await hub.last.wait()
    spent = (cpu_of_process() - before) / messages
    await bus.close()
    return spent


async def hear_by_redis_py(port: int, messages: int) -> float:
    import redis.asyncio

    client = redis.asyncio.Redis(port=port, protocol=2)
    channel = client.pubsub(ignore_subscribe_messages=True)
    await channel.subscribe(NAMES.channel("room"))
    while await channel.get_message(timeout=0.2) is not None:
        pass
    print("ready", flush=True)
    count = 0
    before = 0.0
    while count < messages:
        if await channel.get_message(timeout=10) is not None:
            count += 1
            before = before or cpu_of_process()
    spent = (cpu_of_process() - before) / (messages - 1)
    await channel.aclose()
    await client.aclose()
    return spent


WAYS: dict[str, tuple[Callable[[int, int], Any], int]] = {
    "RedisBus": (hear_by_bus, 400_000),
    "redis-py": (hear_by_redis_py, 40_000),
}


def cpu_of_process() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def hear(way: str, port: int) -> None:
    """The process that hears: prints the CPU seconds of a message."""
    import uvloop

    function, messages = WAYS[way]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(function(port, messages))))


def measure_hearing(server: RedisServer, way: str) -> float:
    messages = WAYS[way][1]
    process = subprocess.Popen(
        [sys.executable, __file__, "--hear", way, "--port", str(server.port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    envelope = b"wsc1 p a - 1\n- " + ENTRY
    publish = command(b"PUBLISH", NAMES.channel("room"), envelope)
    for _ in range(messages // 500):
        run(server, [publish] * 500, 500)
    spent = float(process.stdout.readline()) * 1e6
    process.wait()
    return spent


# --- messages that are kept ---


def kept_calls(messages: int, batch: int, *, keyed: bool = False) -> list[bytes]:
    sha = script("publish").sha
    calls = []
    for number in range(messages // batch):
        room = f"room {number % ROOMS}"
        keys = list(NAMES.history(room))
        tag = new_tag()
        arguments = [NAMES.channel(room), b"origin-1", tag, b"100", *times(KEPT), b""]
        arguments.append(b"1" * batch if keyed else b"")
        arguments += [b"%b %b" % (tag, ENTRY)] * batch
        if keyed:
            unique = f"{time.time_ns()}-{number}"
            keys += [NAMES.idempotency(room, f"{unique}-{place}") for place in range(batch)]
        calls.append(call(sha, keys, *arguments))
    return calls


def peer_calls(sha: bytes, messages: int, *, keyed: bool = False) -> list[bytes]:
    calls = []
    for number in range(messages):
        room = b"room %d" % (number % ROOMS)
        known = b"r.%d-%d" % (time.time_ns(), number) if keyed else b""
        keys = (b"s." + room, b"m." + room, known)
        seconds = b"300" if keyed else b""
        history = (PAYLOAD, b"100", b"300", b"c." + room, b"86400", b"abcd", b"publish")
        calls.append(call(sha, keys, *history, seconds, b"0", b"0", b""))
    return calls


def measure_keeping(server: RedisServer, calls: Sequence[bytes], lines: int) -> float:
    """CPU seconds of the server for these calls."""
    before = server.cpu()
    for start in range(0, len(calls), 100):
        part = calls[start : start + 100]
        run(server, part, lines * len(part))
    return server.cpu() - before


def keeping_ways(
    server: RedisServer, peer: str | None
) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Makes the calls of each way; and the lines of the answer to each call."""
    run(server, [command(b"SCRIPT", b"LOAD", script("publish").text)], 2)
    ways: dict[str, tuple[Callable[[int], Any], int]] = {
        "alone": (lambda count: kept_calls(count, 1), 3),
        "16 in a call": (lambda count: kept_calls(count, 16), 33),
        "alone, with a key": (lambda count: kept_calls(count, 1, keyed=True), 3),
    }
    if peer is not None:
        text = Path(peer).read_bytes()
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        run(server, [command(b"SCRIPT", b"LOAD", text)], 2)
        ways["Centrifuge's"] = (lambda count: peer_calls(sha, count), 8)
        ways["Centrifuge's, with a key"] = (lambda count: peer_calls(sha, count, keyed=True), 8)
    return ways


def keeping_round(
    server: RedisServer, ways: dict[str, tuple[Callable[[int], Any], int]]
) -> dict[str, float]:
    """CPU microseconds of a message by each way, which take turns of 1,600 messages."""
    spent = dict.fromkeys(ways, 0.0)
    for _ in range(TURNS):
        for way, (make, lines) in ways.items():
            spent[way] += measure_keeping(server, make(IN_A_TURN), lines)
    return {way: seconds * 1e6 / (TURNS * IN_A_TURN) for way, seconds in spent.items()}


def row(name: str, values: Sequence[float], factor: float | None = None) -> str:
    low, high = min(values), max(values)
    text = f"| {name} | {median(values):.2f} ({low:.2f} to {high:.2f}) |"
    return text if factor is None else f"{text} {factor:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="a Lua script of Centrifuge's")
    parser.add_argument("--hear", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hear:
        hear(options.hear, options.port)
        return
    server = RedisServer()
    try:
        hearing: dict[str, list[float]] = {way: [] for way in WAYS}
        ways = keeping_ways(server, options.peer)
        keeping: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, found in hearing.items():
                found.append(measure_hearing(server, way))
            for way, spent in keeping_round(server, ways).items():
                keeping[way].append(spent)
    finally:
        server.close()
    print("| messages of one channel | CPU us a message | a second and core |\n| --- | --- | --- |")
    for way, found in hearing.items():
        print(row(way, found), f"{1e6 / median(found):,.0f} |")
    print("\n| a kept message | CPU us of the server | Centrifuge's = 1 |\n| --- | --- | --- |")
    for way, found in keeping.items():
        other = "Centrifuge's, with a key" if way.endswith("key") else "Centrifuge's"
        base = keeping.get(other)
        factors = [a / b for a, b in zip(found, base, strict=True)] if base else None
        print(row(way, found, median(factors) if factors else None))


if __name__ == "__main__":
    main()
