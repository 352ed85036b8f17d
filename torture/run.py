"""Kills a hub again and again, and counts what its users' applications saw.

    python torture/run.py [--store sqlite|redis] [--rounds 50] [--users 20] [--seed 1]

Each round starts a server process whose publisher sends messages with acknowledgement to all
users and reports each whose `accepted` has returned; then it is killed with SIGKILL at a random
moment. The users are clients that reconnect, acknowledge (now and then late, or not before they
drop the connection), and drop ids that they know. After the last round the server is left alone
until everything has arrived. The exit status is 1 if a reported message was lost, or any message
doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parents[1]
# What a round's message numbers begin with, so that none is used twice.
STRIDE = 1_000_000
WINDOW = 8


# --- the server ---


async def serve(store_url: str, port: int, users: int, first: int, publish: bool) -> None:
    """A hub that publishes to all users, and prints each message that is accepted."""
    from wsc_fast import (
        ACKConfig,
        ACKMessage,
        Hub,
        Identity,
        RedisOfflineStore,
        Request,
        SQLiteOfflineStore,
    )

    def authenticate(request: Request) -> Identity:
        return Identity(request.query["user"])

    store = (
        RedisOfflineStore(store_url)
        if store_url.startswith("redis:")
        else SQLiteOfflineStore(store_url)
    )
    hub = Hub(authenticate=authenticate)
    hub.enable_ack(
        ACKConfig(
            enable_offline_messages=True,
            offline_limit=1_000_000,
            retry_interval=0.3,
            max_retries=100,
            timeout=60.0,
        ),
        store=store,
    )
    await hub.start("127.0.0.1", port)
    print("ready", flush=True)

    async def publisher(user: str) -> None:
        number = first
        while True:
            wave = []
            for _ in range(random.randint(1, WINDOW)):
                message = ACKMessage(id=f"{user}-{number}", content=str(number))
                wave.append(hub.send_ack_message_to_user(user, message))
                number += 1
            for pending in wave:
                await pending.accepted()
                print(f"{user} {pending.message.content}", flush=True)
            await asyncio.sleep(random.random() * 0.02)

    if publish:
        await asyncio.gather(*(publisher(f"user{n}") for n in range(users)))
    await asyncio.Event().wait()


# --- the users ---


@dataclass
class User:
    """An application's user: what it has seen, and what it must have seen."""

    name: str
    seen: list[int] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    copies: int = 0
    accepted: set[int] = field(default_factory=set)

    async def live(self, session: aiohttp.ClientSession, port: int) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await self.connect(session, port)
            await asyncio.sleep(random.random() * 0.1)

    async def connect(self, session: aiohttp.ClientSession, port: int) -> None:
        url = f"ws://127.0.0.1:{port}/ws?user={self.name}"
        leave_after = random.randint(5, 200)  # messages
        async with session.ws_connect(url) as connection:
            unanswered: list[str] = []
            async for frame in connection:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    return
                message = json.loads(frame.data)
                if message["id"] in self.known:
                    self.copies += 1
                else:
                    self.known.add(message["id"])
                    self.seen.append(int(message["content"]))
                unanswered.append(message["id"])
                leave_after -= 1
                if leave_after == 0:
                    return  # with what is not acknowledged yet
                if random.random() < 0.7:
                    for message_id in unanswered:
                        answer = {"type": "ack", "message_id": message_id}
                        await connection.send_str(json.dumps(answer))
                    unanswered.clear()

    def lost(self) -> set[int]:
        return self.accepted - set(self.seen)

    def disorder(self) -> list[str]:
        steps = zip(self.seen, self.seen[1:], strict=False)
        return [f"{self.name} saw {b} after {a}" for a, b in steps if a >= b]


# --- the harness ---


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def storage(kind: str, directory: str) -> AsyncIterator[str]:
    """What the server keeps its messages in: a file, or a Redis server of our own."""
    if kind == "sqlite":
        yield f"{directory}/offline.db"
        return
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("redis-server is not installed")
    port = free_port()
    server = await asyncio.create_subprocess_exec(
        program,
        *("--port", str(port), "--dir", directory, "--appendonly", "yes", "--save", ""),
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        await server.wait()


async def round_of(
    users: dict[str, User], store: str, port: int, number: int, *, last: bool, seconds: float
) -> None:
    """One life of the server."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--serve", store, "--port", str(port)),
        *("--users", str(len(users)), "--first", str(number * STRIDE)),
        *(["--quiet"] if last else []),
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None

    async def read() -> None:
        assert server.stdout is not None
        async for line in server.stdout:
            name, content = line.decode().split()
            users[name].accepted.add(int(content))

    if await server.stdout.readline() != b"ready\n":
        raise SystemExit("the server did not start")
    reading = asyncio.create_task(read())
    if last:
        deadline = time.monotonic() + 60
        while any(user.lost() for user in users.values()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    else:
        await asyncio.sleep(seconds)
    server.send_signal(signal.SIGKILL)
    await server.wait()
    await reading  # what it had printed before


async def torture(arguments: argparse.Namespace) -> bool:
    """Runs all rounds; whether nothing was lost, doubled or out of order."""
    users = {f"user{n}": User(f"user{n}") for n in range(arguments.users)}
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        async with storage(arguments.store, directory) as store, aiohttp.ClientSession() as session:
            living = [asyncio.create_task(user.live(session, port)) for user in users.values()]
            for number in range(1, arguments.rounds + 1):
                seconds = random.uniform(0.05, arguments.longest)
                await round_of(users, store, port, number, last=False, seconds=seconds)
            await round_of(users, store, port, arguments.rounds + 1, last=True, seconds=0)
            for task in living:
                task.cancel()
            await asyncio.wait(living)
    lost = sum(len(user.lost()) for user in users.values())
    doubled = sum(len(user.seen) - len(set(user.seen)) for user in users.values())
    disorder = [step for user in users.values() for step in user.disorder()]
    print(
        f"{arguments.store}: {sum(len(user.accepted) for user in users.values())} messages "
        f"reported, {sum(len(user.seen) for user in users.values())} seen, {arguments.rounds} "
        f"kills, {sum(user.copies for user in users.values())} copies dropped by id; lost {lost}, "
        f"doubled {doubled}, out of order {len(disorder)}"
    )
    for step in disorder[:10]:
        print(f"  {step}")
    return lost == doubled == len(disorder) == 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--longest", type=float, default=1.0, help="seconds of a server's life")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                serve(
                    arguments.serve,
                    arguments.port,
                    arguments.users,
                    arguments.first,
                    not arguments.quiet,
                )
            )
    random.seed(arguments.seed)
    if not asyncio.run(torture(arguments)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
