"""Shared by the tests of acknowledgements and offline messages: hubs, clients, and bad stores."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support import named
from wsc_fast import ACKConfig, Hub, HubConfig, MemoryOfflineStore, OfflineStore, OfflineStoreError
from wsc_fast._core.connection import abort
from wsc_fast.testing import TEXT, RawClient, eventually, eventually_async, running


def acking(store: Any = None, *, config: HubConfig | None = None, **settings: Any) -> Hub:
    """A hub with acknowledgements; with offline messages where there is a store."""
    hub = Hub(config, authenticate=named)
    hub.enable_ack(ACKConfig(enable_offline_messages=store is not None, **settings), store=store)
    return hub


@asynccontextmanager
async def running_and_aborting(hub: Hub) -> AsyncIterator[None]:
    """`running`, which ends all clients before the stop, so that this waits for none of them."""
    async with running(hub):
        try:
            yield
        finally:
            for client in hub._engine.open_clients():
                abort(client)


async def received(client: RawClient) -> dict[str, Any]:
    """The next HubMessage of a client."""
    frame = await client.recv()
    assert frame.opcode == TEXT
    return dict(json.loads(frame.payload))


async def acknowledge(client: RawClient, message_id: str, **more: Any) -> None:
    await client.send(TEXT, json.dumps({"type": "ack", "message_id": message_id, **more}).encode())


async def contents(client: RawClient, count: int) -> list[str]:
    """The contents of the next HubMessages of a client."""
    return [(await received(client))["content"] for _ in range(count)]


async def contents_acknowledged(client: RawClient, count: int) -> list[str]:
    """The same, each being acknowledged where that is required."""
    found = []
    for _ in range(count):
        message = await received(client)
        found.append(message["content"])
        if message.get("require_ack"):
            await acknowledge(client, message["id"])
    return found


async def caught_up(hub: Hub) -> None:
    """Returns once no client is to be sent anything more of what was stored for it."""
    await eventually(lambda: not hub._delivery.acks.replaying)  # type: ignore[union-attr]


async def eventually_count(store: OfflineStore, user_id: str, count: int) -> None:
    """Returns once a store holds so many messages of a user."""

    async def has_so_many() -> bool:
        return await store.count(user_id) == count

    await eventually_async(has_so_many)


def failed(text: str) -> asyncio.Future[Any]:
    """The result of a store's `append` where it cannot take the message."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(OfflineStoreError(text))
    return future


class FullStore(MemoryOfflineStore):
    """Cannot take anything."""

    def append(self, *args: Any, **options: Any) -> Any:
        return failed("no disk")


class TroubledStore(MemoryOfflineStore):
    """Hangs or fails when it is opened, read or deleted from, as it is told.

    Attributes:
        gate: while it is not set, calls of these methods wait.
        failing: the names of the methods that fail.
        calls: how many calls there were of each method.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failing: set[str] = set()
        self.calls: Counter[str] = Counter()

    async def _meet(self, what: str) -> None:
        self.calls[what] += 1
        await self.gate.wait()
        if what in self.failing:
            raise OfflineStoreError(f"cannot {what}")

    async def open(self) -> None:
        await self._meet("open")
        await super().open()

    async def read(self, *args: Any, **options: Any) -> Any:
        await self._meet("read")
        return await super().read(*args, **options)

    async def delete(self, *args: Any) -> int:
        await self._meet("delete")
        return await super().delete(*args)
