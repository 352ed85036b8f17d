"""Stores that break their word on purpose, to see that the scenarios notice it.

lose      some messages are reported as stored, and are not
double    some messages are stored once more, under another id
swap      some messages are stored too late, behind newer ones
keep      some messages are reported as deleted, and are not
hide      the hub hears nothing of what other processes did with the store
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Collection
from typing import Any

# One message in so many.
HOW_MANY = 5
# Seconds by which a message is late.
LATE = 0.02


def _is_chosen(fault: str, message_id: str) -> bool:
    return zlib.crc32(f"{fault} {message_id}".encode()) % HOW_MANY == 0


def faulty(kind: Any, fault: str | None) -> Any:
    """A class of stores like `kind`, with this fault."""
    return type("Faulty", (FAULTS[fault], kind), {}) if fault is not None else kind


class _Losing:
    def append(self, user_id: str, message_id: str, data: bytes, **bounds: Any) -> Awaitable[Any]:
        if not _is_chosen("lose", message_id):
            return super().append(user_id, message_id, data, **bounds)  # type: ignore[misc]
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        done.set_result([])
        return done


class _Doubling:
    def append(self, user_id: str, message_id: str, data: bytes, **bounds: Any) -> Awaitable[Any]:
        appended = super().append(user_id, message_id, data, **bounds)  # type: ignore[misc]
        if _is_chosen("double", message_id):
            other_id = f"{message_id} once more"
            other = data.replace(message_id.encode(), other_id.encode(), 1)
            self._other = super().append(user_id, other_id, other, **bounds)  # type: ignore[misc]
        return appended


class _Swapping:
    def append(self, user_id: str, message_id: str, data: bytes, **bounds: Any) -> Awaitable[Any]:
        append = super().append  # type: ignore[misc]
        if not _is_chosen("swap", message_id):
            return append(user_id, message_id, data, **bounds)

        async def late() -> Any:
            await asyncio.sleep(LATE)
            return await append(user_id, message_id, data, **bounds)

        return late()


class _Keeping:
    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        others = [each for each in message_ids if not _is_chosen("keep", each)]
        await super().delete(user_id, others)  # type: ignore[misc]
        return len(message_ids)


class _Hiding:
    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        return max(after, 0), []

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        return []


FAULTS = {
    "lose": _Losing,
    "double": _Doubling,
    "swap": _Swapping,
    "keep": _Keeping,
    "hide": _Hiding,
}
