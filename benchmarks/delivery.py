"""The costs of delivery: HubMessages beside plain sends, acknowledgements, the offline stores.

    python benchmarks/delivery.py [--seconds 2] [--clients 1000] [--store DIRECTORY] [--redis URL]

The hub runs here, on one core, against `crowd` on another. Prints Markdown; rates are of this
machine at this moment, ratios are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import uvloop

from wsc_fast import (
    ACKConfig,
    ACKMessage,
    Hub,
    HubMessage,
    Identity,
    OfflineStore,
    RedisOfflineStore,
    Request,
    SQLiteOfflineStore,
)
from wsc_fast.messages import encode_hub_message

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
ROUNDS = 5
CONTENT = "x" * 64
WAVE = 1_000


def named(request: Request) -> Identity:
    return Identity(request.query["id"], request.query["id"])


async def plain_sends(hub: Hub, names: list[str], seconds: float, window: int) -> float:
    """Deliveries a second of `send_to_client`, of the bytes of a HubMessage."""
    text = encode_hub_message(HubMessage(content=CONTENT)).decode()
    return await paced(hub, names, seconds, window, lambda name: hub.send_to_client(name, text))


async def hub_messages(hub: Hub, names: list[str], seconds: float, window: int) -> float:
    """Deliveries a second of `send_to_user`; the message is encoded for each."""
    message = HubMessage(content=CONTENT)
    return await paced(hub, names, seconds, window, lambda name: hub.send_to_user(name, message))


async def paced(
    hub: Hub, names: list[str], seconds: float, window: int, send: Callable[[str], object]
) -> float:
    """Calls `send` for everyone `window` times a turn, as fast as the outboxes empty."""
    clients = [hub.get_client_by_id(name) for name in names]
    end = time.perf_counter() + seconds
    start = time.perf_counter()
    sent = 0
    while time.perf_counter() < end:
        for client in clients:
            assert client is not None
            if client.queued_messages == 0:
                for _ in range(window):
                    send(client.id)
                sent += window
        await asyncio.sleep(0)
    return sent / (time.perf_counter() - start)


async def round_trips(hub: Hub, names: list[str], seconds: float) -> float:
    """Messages acknowledged a second, each user awaiting one at a time."""
    end = time.perf_counter() + seconds

    async def converse(name: str) -> int:
        count = 0
        while time.perf_counter() < end:
            await hub.send_ack_message_to_user(name, ACKMessage(content=CONTENT))
            count += 1
        return count

    start = time.perf_counter()
    counts = await asyncio.gather(*(converse(name) for name in names))
    return sum(counts) / (time.perf_counter() - start)


async def stored(store: OfflineStore, seconds: float) -> float:
    """Messages for absent users a second, `accepted`, in waves of 1,000."""
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=True, offline_limit=1_000_000), store=store)
    await hub.start(port=0)
    count = 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        wave = [
            hub.send_ack_message_to_user(f"user {n % 100}", ACKMessage(content=CONTENT))
            for n in range(WAVE)
        ]
        for pending in wave:
            await pending.accepted()
        count += WAVE
    rate = count / (time.perf_counter() - start)
    await hub.stop()
    return rate


async def main(arguments: argparse.Namespace) -> None:
    crowd = BUILD / "crowd"
    hub = Hub(authenticate=named)
    hub.enable_ack(ACKConfig(max_pending=1_000_000))
    await hub.start(port=0)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    clients = await asyncio.create_subprocess_exec(
        *(["taskset", "-c", str(cores[1])] if len(cores) > 1 else []),
        str(crowd),
        "ack",
        str(hub.port),
        str(arguments.clients),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert clients.stdout is not None
    assert clients.stdin is not None
    assert await clients.stdout.readline() == b"ready\n"
    names = [str(number) for number in range(arguments.clients)]
    rows: dict[str, Callable[[], Awaitable[float]]] = {}
    for window in (1, 8):
        rows[f"send_to_client, {window} a turn"] = (
            lambda window=window: plain_sends(hub, names, arguments.seconds, window)  # type: ignore[misc]
        )
        rows[f"send_to_user, {window} a turn"] = (
            lambda window=window: hub_messages(hub, names, arguments.seconds, window)  # type: ignore[misc]
        )
    rows["acknowledged round trips"] = lambda: round_trips(hub, names, arguments.seconds)
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, measure in rows.items():
            rates[name].append(await measure())
    clients.stdin.close()
    await clients.wait()
    await hub.stop()
    print("| | a second | lowest to highest |\n| --- | --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {median(values):,.0f} | {min(values):,.0f} to {max(values):,.0f} |")
    for window in (1, 8):
        pairs = zip(
            rates[f"send_to_user, {window} a turn"],
            rates[f"send_to_client, {window} a turn"],
            strict=True,
        )
        ratios = [ours / plain for ours, plain in pairs]
        print(
            f"| send_to_user over send_to_client, {window} a turn | {median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    with tempfile.TemporaryDirectory(dir=arguments.store) as directory:
        rate = await stored(SQLiteOfflineStore(f"{directory}/bench.db"), arguments.seconds)
        print(f"| stored in SQLite | {rate:,.0f} | |")
    if arguments.redis:
        rate = await stored(RedisOfflineStore(arguments.redis), arguments.seconds)
        print(f"| stored in Redis | {rate:,.0f} | |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--store", help="where to put the SQLite file; a real disk, not tmpfs")
    parser.add_argument("--redis", help="URL of a Redis server to measure too")
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-o", BUILD / "crowd", HERE / "crowd.c"], check=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(parser.parse_args()))
