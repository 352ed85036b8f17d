"""The calls that wait for the database: what each asks for, and what came of it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec


class Append(msgspec.Struct):
    """A message to keep; its future gets the messages that were dropped for it."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_id: str
    data: bytes
    limit: int
    drop_oldest: bool
    # An OfflineStoreError is raised, anything else returned.
    outcome: Any = msgspec.UNSET
    rows: ClassVar[int] = 1
    writes: ClassVar[bool] = True


class Delete(msgspec.Struct):
    """Messages to remove; its future gets how many there were."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    user_id: str
    message_ids: list[str]
    outcome: Any = msgspec.UNSET
    writes: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        return len(self.message_ids)


class Expire(msgspec.Struct):
    """Old messages to remove; its future gets them."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    before: float
    limit: int
    max_bytes: int
    outcome: Any = msgspec.UNSET
    writes: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        return self.limit


class Query(msgspec.Struct):
    """Anything that only reads; its future gets the result of the function."""

    future: asyncio.Future[Any]
    size: int
    asked_at: float
    function: Callable[[sqlite3.Connection], Any]
    outcome: Any = msgspec.UNSET
    rows: ClassVar[int] = 1
    writes: ClassVar[bool] = False


Entry = Append | Delete | Expire | Query
