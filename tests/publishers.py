"""Shared by the tests of publishers: one of either kind, called in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from wsc_fast import Published
from wsc_fast.publish import AsyncPublisher, Batch, Publisher, Told


class Both:
    """A publisher that blocks, in a thread, or one that awaits."""

    def __init__(self, kind: str, *args: Any, **options: Any) -> None:
        self.publisher: Any = (Publisher if kind == "sync" else AsyncPublisher)(*args, **options)
        self.blocks = kind == "sync"

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        function: Callable[..., Any] = getattr(self.publisher, name)
        if self.blocks:
            return await asyncio.to_thread(function, *args, **options)
        return await function(*args, **options)

    async def room(self, *args: Any, **options: Any) -> Published:
        published: Published = await self.call("room", *args, **options)
        return published

    async def user(self, *args: Any, **options: Any) -> Told:
        told: Told = await self.call("user", *args, **options)
        return told

    async def batch(self, fill: Callable[[Batch], None]) -> list[Published | Told | Exception]:
        if self.blocks:

            def publish() -> list[Published | Told | Exception]:
                with self.publisher.batch() as batch:
                    fill(batch)
                results: list[Published | Told | Exception] = batch.results
                return results

            return await asyncio.to_thread(publish)
        async with self.publisher.batch() as batch:
            fill(batch)
        results: list[Published | Told | Exception] = batch.results
        return results
