"""Broadcasts to compressing clients, beside websockets, socketify, and our own uncompressed ones.

    python benchmarks/compression.py [--seconds 2] [--rounds 3] [--clients 1000] [--window 8]

A JSON message of 1 KB is broadcast to everybody; `window` of them are in flight. Each server runs
on one core with `crowd` on another, in turn, each in every round. Prints Markdown, then the memory
that a compressing connection takes over a plain one.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
OFFER = "permessage-deflate; client_max_window_bits"
# A message with a list: the members of a chat, the rows of a table, the items of a feed.
MESSAGE = json.dumps(
    {
        "type": "update",
        "room": "general",
        "items": [
            {
                "id": 7000 + n * 37,
                "name": f"user{n * 13 % 97}",
                "score": n * n % 1009,
                "on": n % 3 == 0,
            }
            for n in range(17)
        ],
    }
)[:1024].ljust(1024)

OURS = """
from wsc_fast import Hub, HubConfig
hub = Hub(HubConfig(enable_compression=True, max_connections=100_000))
hub.on_message_received(lambda client, message: hub.broadcast(MESSAGE))
hub.run("127.0.0.1", PORT)
"""
SERVERS = {
    "wsc_fast": OURS,
    "wsc_fast, plain clients": OURS,
    "websockets": """
import asyncio, uvloop
from websockets.asyncio.server import broadcast, serve
members = set()
async def handle(connection):
    members.add(connection)
    try:
        async for _ in connection:
            broadcast(members, MESSAGE)
    finally:
        members.discard(connection)
async def main():
    async with serve(handle, "127.0.0.1", PORT, backlog=4096) as server:
        await server.serve_forever()
uvloop.run(main())
""",
    "socketify, shared compressor": """
from socketify import App, CompressOptions, OpCode
app = App()
app.ws("/ws", {
    "compression": CompressOptions.SHARED_COMPRESSOR,
    "idle_timeout": 0,
    "open": lambda ws: ws.subscribe("all"),
    "message": lambda ws, message, opcode: app.publish("all", MESSAGE, OpCode.TEXT, True),
})
app.listen({"host": "127.0.0.1", "port": PORT}, lambda config: None)
app.run()
""",
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pinned(core: int, *command: object) -> list[str]:
    return ["taskset", "-c", str(core), *map(str, command)]


class Serving:
    """A process with this program, once it listens on its PORT."""

    def __init__(self, program: str, core: int) -> None:
        self.port = free_port()
        program = f"PORT = {self.port}\nMESSAGE = {MESSAGE!r}\n{program}"
        self.process = subprocess.Popen(
            pinned(core, sys.executable, "-c", program), stdout=subprocess.DEVNULL
        )

    def __enter__(self) -> Serving:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server ended: {self.process.returncode}") from None
                time.sleep(0.02)
            else:
                return self
        raise SystemExit("the server does not listen")

    def __exit__(self, *args: object) -> None:
        self.process.terminate()
        self.process.wait()


def measure(name: str, cores: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    offer = "" if "plain" in name else OFFER
    with Serving(SERVERS[name], cores[0]) as server:
        before = psutil.Process(server.process.pid).cpu_times()
        options = (server.port, arguments.clients, arguments.window, arguments.seconds, offer)
        crowd = subprocess.run(
            pinned(cores[-1], BUILD / "crowd", "count", *options),
            check=True,
            capture_output=True,
            text=True,
        )
        after = psutil.Process(server.process.pid).cpu_times()
    result: dict[str, Any] = json.loads(crowd.stdout)
    if (result["compressed"] == 0) != (offer == ""):
        raise SystemExit(f"{name}: {result['compressed']} compressed frames")
    spent = after.user + after.system - before.user - before.system
    result["per_cpu_second"] = result["messages"] / spent
    return result


def idle_memory(cores: list[int], clients: int, offer: str) -> float:
    """Bytes of resident memory per idle connection."""
    with Serving(OURS, cores[0]) as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        sockets = []
        request = (
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            + (f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else "")
            + "\r\n"
        )
        for _ in range(clients):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(request.encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 101")
            sockets.append(sock)
        grown = process.memory_info().rss - before
        for sock in sockets:
            sock.close()
    return grown / clients


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--window", type=int, default=8)
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-o", BUILD / "crowd", HERE / "crowd.c"], check=True)
    cores = sorted(os.sched_getaffinity(0))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in SERVERS}
    for _ in range(arguments.rounds):
        for name in SERVERS:
            results[name].append(measure(name, cores, arguments))
    print("| | deliveries a second | bytes a message | ours over it | per CPU second |")
    print("| --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        ratios = {
            key: median(
                ours[key] / theirs[key]
                for ours, theirs in zip(results["wsc_fast"], runs, strict=True)
            )
            for key in ("deliveries", "per_cpu_second")
        }
        rate = median(run["deliveries"] for run in runs)
        size = runs[0]["bytes"] / runs[0]["messages"]
        print(
            f"| {name} | {rate:,.0f} | {size:.0f} | {ratios['deliveries']:.2f} "
            f"| {ratios['per_cpu_second']:.2f} |"
        )
    plain, compressing = (idle_memory(cores, 5_000, offer) for offer in ("", OFFER))
    print(
        f"\nMemory per idle connection: {plain:,.0f} bytes plain, {compressing:,.0f} compressing "
        f"({compressing - plain:+,.0f})"
    )


if __name__ == "__main__":
    main()
