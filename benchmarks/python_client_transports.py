"""websockets and picows as the transport of the client in Python: what each of them costs.

    python benchmarks/python_client_transports.py

The hub runs in a process of its own. Each figure is the best of five. The table stands in
clients/python/README.md.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import picows
from websockets.asyncio.client import connect

from wsc_fast import Client, Hub, HubConfig

MESSAGES = 20_000
CONNECTIONS = 200
ROUNDS = 5
TEXT = "x" * 100


def serve(port: Connection) -> None:
    """A hub that echoes, and sends as many messages as it is asked for."""
    hub = Hub(HubConfig(outbox_messages=MESSAGES, outbox_bytes=1 << 24))

    @hub.on_message_received
    def answer(client: Client, message: str | bytes) -> None:
        if isinstance(message, str) and message.startswith("send "):
            hub.create_task(flood(client, int(message[5:])))
        else:
            client.send(message)

    async def flood(client: Client, count: int) -> None:
        for number in range(count):
            client.send(TEXT)
            if number % 200 == 0:
                await asyncio.sleep(0)

    async def run() -> None:
        await hub.start("127.0.0.1", 0)
        port.send(hub.port)
        await asyncio.Event().wait()

    asyncio.run(run())


class Listener(picows.WSListener):
    """Counts messages, and sets a future at the last one."""

    def __init__(self) -> None:
        self.due = 0
        self.done: asyncio.Future[None] | None = None

    def wait_for(self, count: int) -> asyncio.Future[None]:
        self.due, self.done = count, asyncio.get_running_loop().create_future()
        return self.done

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            frame.get_payload_as_utf8_text()
            self.due -= 1
            if self.due == 0 and self.done is not None:
                self.done.set_result(None)


async def websockets_measures(url: str) -> dict[str, float]:
    async def opened() -> None:
        async with connect(url, ping_interval=None, compression=None):
            pass

    async with connect(url, ping_interval=None, compression=None) as socket:

        async def received() -> None:
            await socket.send(f"send {MESSAGES}")
            for _ in range(MESSAGES):
                await socket.recv()

        async def echoed() -> None:
            for _ in range(MESSAGES // 10):
                await socket.send(TEXT)
                await socket.recv()

        return await measures(opened, received, echoed)


async def picows_measures(url: str) -> dict[str, float]:
    async def opened() -> None:
        transport, _ = await picows.ws_connect(Listener, url)
        transport.send_close(picows.WSCloseCode.OK)
        transport.disconnect()
        await transport.wait_disconnected()

    made = await picows.ws_connect(Listener, url)
    transport, listener = made[0], made[1]
    assert isinstance(listener, Listener)

    async def received() -> None:
        done = listener.wait_for(MESSAGES)
        transport.send(picows.WSMsgType.TEXT, f"send {MESSAGES}")
        await done

    async def echoed() -> None:
        for _ in range(MESSAGES // 10):
            done = listener.wait_for(1)
            transport.send(picows.WSMsgType.TEXT, TEXT)
            await done

    try:
        return await measures(opened, received, echoed)
    finally:
        transport.disconnect()


async def measures(*works: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    opened, received, echoed = works

    async def many() -> None:
        for _ in range(CONNECTIONS):
            await opened()

    return {
        "connect and close, us": await best(many) / CONNECTIONS * 1e6,
        "received messages a second": MESSAGES / await best(received),
        "echoes a second, one at a time": MESSAGES / 10 / await best(echoed),
    }


async def best(work: Callable[[], Awaitable[Any]]) -> float:
    """Seconds of the fastest round."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    return min(times)


def import_time(statement: str) -> float:
    """Milliseconds that an import takes beyond that of asyncio and ssl."""
    code = f"import asyncio, ssl, time; t = time.perf_counter(); {statement}; "
    code += "print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        for _ in range(ROUNDS)
    ]
    return min(times) * 1000


def main() -> None:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    url = f"ws://127.0.0.1:{ours.recv()}/ws"
    table = {
        "websockets": asyncio.run(websockets_measures(url)),
        "picows": asyncio.run(picows_measures(url)),
    }
    server.terminate()
    server.join()
    statements = {
        "websockets": "import websockets.asyncio.client",
        "picows": "import picows",
    }
    for name, row in table.items():
        row["import, ms"] = import_time(statements[name])
        print(name, *(f"{what}: {figure:,.0f}" for what, figure in row.items()), sep="\n    ")


if __name__ == "__main__":
    main()
