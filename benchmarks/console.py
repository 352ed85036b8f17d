"""The cost of the console on a hub with very many clients and rooms.

    python benchmarks/console.py                      # 10,000 clients, 100,000 rooms
    python benchmarks/console.py --clients 1000 --rooms 10000

One process has the hub, another one the clients, which are idle. Each row is one request of the
page, asked 20 times. A turn of the loop is measured in the CPU time of its thread, by a callback
that comes once in each turn, so that other programs on the machine change little.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import resource
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wsc_fast import BasicAuthenticator, Hub, HubConfig, Identity, Request
from wsc_fast.console import top_lists

NAME, PASSWORD = "operator", "correct horse battery"
TIMES = 20
# Rooms of one client, of those that have members.
ROOMS_EACH = 20
# The programs of the clients, and of the page's requests.
CLIENTS = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
head = (
    "GET /ws?user=u{} HTTP/1.1\\r\\nHost: a\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n"
)
socks = []
for number in range(count):
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(head.format(number % (count * 9 // 10)).encode())
    sock.recv(1000)
    socks.append(sock)
print("ready", flush=True)
sys.stdin.read()
"""
ASKING = """
import http.client, sys
for line in sys.stdin:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    headers = {"Authorization": sys.argv[2], "X-Console": "1"}
    connection.request("GET", "/console/" + line.strip(), headers=headers)
    answer = connection.getresponse()
    size = len(answer.read())
    print(answer.status, size, flush=True)
"""


class Turns:
    """The longest turn of the loop, in the CPU time of its thread."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._before = 0.0
        self._runs = False

    def begin(self) -> None:
        self.longest, self._runs, self._before = 0.0, True, time.thread_time()
        asyncio.get_running_loop().call_soon(self._look)

    def end(self) -> float:
        self._runs = False
        return self.longest

    def _look(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._before)
        self._before = now
        if self._runs:
            asyncio.get_running_loop().call_soon(self._look)


def authenticate(request: Request) -> Identity:
    return Identity(request.query["user"])


@asynccontextmanager
async def full_hub(clients: int, rooms: int) -> AsyncIterator[Hub]:
    config = HubConfig(
        max_connections=clients + 100,
        max_connections_per_address=0,
        connection_rate=0.0,
        connection_rate_per_address=0.0,
        max_rooms=rooms + 100,
        heartbeat_interval=3600.0,
        heartbeat_timeout=7200.0,
    )
    hub = Hub(config, authenticate=authenticate)
    hub.enable_console(authenticate=BasicAuthenticator({NAME: PASSWORD}))
    for number in range(rooms):
        hub.create_room(f"room/{number}")
    await hub.start("127.0.0.1", 0)
    process = await started(CLIENTS, f"{hub.port}", f"{clients}")
    assert await answered(process) == "ready"
    for place, client in enumerate(hub.get_connected_client_ids()):
        for number in range(ROOMS_EACH):
            hub.join_room(client, f"room/{place * 7919 * (number + 1) % rooms}")
        if place % 100 == 0:
            await asyncio.sleep(0)
    try:
        yield hub
    finally:
        await process.communicate()
        await hub.stop(5.0)


async def started(code: str, *arguments: str) -> asyncio.subprocess.Process:
    """Starts a program that is told what to do by its input."""
    command = [sys.executable, "-c", code, *arguments]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)


async def answered(process: asyncio.subprocess.Process) -> str:
    """The next line of its output."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


class Page:
    """The requests of a page, from a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, path: str) -> int:
        """Asks for a path; returns the bytes of the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n".encode())
        status, size = (await answered(self._process)).split()
        assert status == "200", status
        return int(size)


async def measure(hub: Hub, page: Page, title: str, path: str, fresh: bool = False) -> None:
    """Asks for a path, and prints a row of the table; `fresh` finds the lists anew each time."""
    console = hub._console
    assert console is not None
    finder = console._hubs._views._top
    turns, seconds, longest, size = Turns(), [], [], 0
    await finder.lists()
    for _ in range(TIMES):
        if fresh:
            finder.forget()
        turns.begin()
        began = time.perf_counter()
        size = await page.ask(path)
        seconds.append(time.perf_counter() - began)
        longest.append(turns.end())
        await asyncio.sleep(0)
    print(
        f"| {title} | {size / 1000:.1f} | {statistics.median(seconds) * 1e3:.0f} | "
        f"{statistics.median(longest) * 1e3:.1f} | {max(longest) * 1e3:.1f} |",
        flush=True,
    )


async def share(page: Page | None, seconds: float) -> float:
    """The share of a core that the hub's thread takes, while a page asks or nobody does."""
    before, end = time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        if page is not None:
            await page.ask("overview")
            await page.ask("hubs")
        await asyncio.sleep(2)
    return (time.thread_time() - before) / seconds


async def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--clients", type=int, default=10_000)
    arguments.add_argument("--rooms", type=int, default=100_000)
    arguments.add_argument("--seconds", type=float, default=20.0)
    chosen = arguments.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    async with full_hub(chosen.clients, chosen.rooms) as hub:
        print(f"{chosen.clients:,} clients, {chosen.rooms:,} rooms\n")
        print("| request | KB | ms, median | longest turn, ms: median | and of all |")
        print("| --- | --- | --- | --- | --- |")
        client = hub.get_connected_client_ids()[0]
        token = base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
        page = Page(await started(ASKING, f"{hub.port}", f"Basic {token}"))
        for title, path, fresh in (
            ("a route that does nothing (`icon.svg`)", "icon.svg", False),
            ("the overview, lists found anew", "overview", True),
            ("the overview, lists known", "overview", False),
            ("the hubs", "hubs", False),
            ("a client", f"client?id={client}", False),
            ("a user", "user?id=u1", False),
            ("a room", "room?id=room/0", False),
            ("a search that finds nothing", "find?text=nothing", False),
            ("a search that finds very many", "find?text=r", False),
        ):
            await measure(hub, page, title, path, fresh)
        finder = top_lists.TopFinder(hub)
        before = time.thread_time()
        await finder.lists()
        spent = (time.thread_time() - before) * 1e3
        print(f"\nto find the largest rooms and users: {spent:.0f} ms of CPU")
        nobody = await share(None, chosen.seconds)
        looked_at = await share(page, chosen.seconds)
        print(f"nobody looks: {nobody:.2%} of a core; one page is open: {looked_at:.2%}")


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
