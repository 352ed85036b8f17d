"""A store from open to close: which operation waits for which, and what came of each."""

from __future__ import annotations

import asyncio
import math
import os
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from wsc_fast.errors import OfflineStoreError, OfflineStoreFullError
from wsc_fast.log import log
from wsc_fast.stores.base import PartialPage, StoredMessage, exists_error, within
from wsc_fast.stores.redis.connection import Connection
from wsc_fast.stores.redis.lane import ELSEWHERE, LATER, Lane
from wsc_fast.stores.redis.operations import (
    Delete,
    Expire,
    Operation,
    Read,
    Row,
    bounded,
    decode,
    dropped,
    encode,
    groups,
    pack,
    stored,
)
from wsc_fast.stores.redis.pace import Pace
from wsc_fast.stores.redis.scripts import Scripts
from wsc_fast.stores.redis.writes import Write, keys_of

# The replies of a batch hold at most so many messages: the loop serves nobody else while it makes
# these.
BATCH_MESSAGES = 2000
# Seconds that the reply to a batch is kept.
REPLY_SECONDS = 3600


class Session:
    """A store from `open` to `close`: its connection and its lanes."""

    def __init__(
        self,
        connection: Connection,
        scripts: Scripts,
        prefix: str,
        ttl: float,
        max_waiting_bytes: int,
        timeout: float,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.closing: asyncio.Task[None] | None = None
        self.timeout = timeout
        self.connection = connection
        self._at = connection.at
        self._scripts = scripts
        self._prefix = encode(prefix)
        self._ttl_ms = math.ceil(ttl * 1000)
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0  # of the writes that are not done
        self._last: dict[bytes, Operation] = {}  # user -> its last write that is not done
        self._batches = 0  # number of the last batch of writes
        self._heard = 0  # number of the last one whose reply has arrived
        # Batches of unknown outcome: number -> what they may have removed, by place in the batch.
        self._unheard: dict[int, dict[int, Expire]] = {}
        # Removed, and no caller was left to be told.
        self._untold: deque[tuple[bytes, StoredMessage]] = deque()
        self._reply_key = self.key("reply:", uuid.uuid4().hex.encode())
        self._origin = os.urandom(8)
        slow = timeout / 4  # half of what an attempt gets
        self._write_pace, self._read_pace = Pace(slow), Pace(slow)
        self._writes = Lane(self, self._send_writes, pace=self._write_pace)
        self._reads = Lane(self, self._send_reads)
        self._alone = Lane(self, self._send_alone, operations=1)
        self.opening: asyncio.Task[None] = self.loop.create_task(self._open())
        # Marks its failure as seen, for where nobody waits for it any more.
        self.opening.add_done_callback(lambda task: task.cancelled() or task.exception())

    def key(self, kind: str, name: bytes = b"") -> bytes:
        return self._prefix + kind.encode() + name

    async def _open(self) -> None:
        try:
            await self.connection.attempt(lambda: ("PING",), self._read_pace)
        except Exception as error:
            # Not from the error itself, which may hold a password.
            trouble = self.connection.trouble(error)
            raise trouble from trouble.__cause__

    async def close(self) -> None:
        if self.closing is None:
            self.closing = self.loop.create_task(self._close())
        try:
            # Not the task itself: whoever else waits for it must not be cancelled with this one.
            await asyncio.wait([self.closing])
        except asyncio.CancelledError:
            self.closing.cancel()
            await asyncio.wait([self.closing])
            raise

    async def _close(self) -> None:
        # In this order: a write that is done passes the reads on that wait for it, and the lane of
        # reads passes on those that are too large for it.
        lanes = (self._writes, self._reads, self._alone)
        try:
            self.opening.cancel()
            for lane in lanes:
                await lane.finish()
        finally:
            # Nothing is left here, unless this was cancelled.
            self.connection.stopped = True
            for lane in lanes:
                for operation in lane.drop():
                    self.settle(operation, OfflineStoreError(f"{self._at} was closed"))
            if self._untold:
                log.warning(
                    "offline store: %s: %d messages were removed and nobody was told; the first is "
                    "%a of user %a",
                    self._at,
                    len(self._untold),
                    self._untold[0][1].id,
                    decode(self._untold[0][0]),
                )
            await self.connection.close()

    # --- writing ---

    def put(self, operation: Operation) -> None:
        """Queues a write, or fails it."""
        if self.closing is not None:
            operation.future.set_exception(OfflineStoreError(f"{self._at} is closed"))
        elif self._waiting_bytes + operation.size > self._max_waiting_bytes:
            operation.future.set_exception(
                OfflineStoreError(
                    f"{self._at} is too slow: {self._waiting_bytes} bytes wait for it already"
                )
            )
        else:
            self._waiting_bytes += operation.size
            self._last[operation.user] = operation
            self._writes.put(operation)

    async def _send_writes(self, batch: list[Operation]) -> list[Any]:
        """Has the server do a batch; returns the results, LATER for what it has not begun."""
        self._batches += 1
        number = self._batches
        write = Write(
            self._prefix,
            *pack(batch),
            self._reply_key,
            REPLY_SECONDS,
            number,
            self._ttl_ms,
            self._origin,
        )
        script = self._scripts.write
        began = self.loop.time()

        def command() -> tuple[Any, ...]:
            return write.arguments(self._heard)

        try:
            answer = await self.connection.run(script, command, self._write_pace)
            if answer[0] != number:
                self._hear(*answer)
                answer = await self.connection.run(script, command, self._write_pace)
        except BaseException:
            removing = {n: each for n, each in enumerate(batch) if isinstance(each, Expire)}
            if removing:
                self._unheard[number] = removing
            raise
        self._heard = number
        # The outcome of earlier ones is known: they were heard of, or have not been done.
        self._unheard.clear()
        self._write_pace.carried(sum(each.size for each in batch), self.loop.time() - began)
        return self._results(batch, *answer[1:])

    def _hear(self, number: int, done: int, said: list[Any]) -> None:
        """The reply to a batch that was given up: its callers were told of a failure."""
        self._heard = number
        removing = self._unheard.pop(number, {})
        for place, kind, value, *user in said:
            if kind == b"dropped":
                self._untold.extend((user[0], message) for message in dropped(value))
            elif kind == b"expired" and (operation := removing.get(place - 1)) is not None:
                self._untold.extend((operation.user, each) for each in operation.removed(value))

    def _results(self, batch: list[Operation], done: int, said: list[Any]) -> list[Any]:
        """The result or the error of each operation of a batch."""
        results: list[Any] = [[]] * done + [LATER] * (len(batch) - done)
        for place, kind, value, *_ in said:
            results[place - 1] = self._result(batch[place - 1], kind, value)
        return results

    def _result(self, operation: Any, kind: bytes, value: Any) -> Any:
        user_id = decode(operation.user)
        match kind:
            case b"deleted":
                return value
            case b"dropped":
                return dropped(value)
            case b"expired":
                return operation.removed(value)
            case b"full":
                return OfflineStoreFullError(
                    f"{self._at} holds {value} messages for user {user_id!a}, of {operation.limit}"
                )
            case b"exists":
                return exists_error(self._at, user_id, decode(operation.strings[0]), value)
            case b"junk":
                log.warning(
                    "offline store: %s: the messages of user %a cannot be read, and are not looked "
                    "at again for their age: %s",
                    self._at,
                    user_id,
                    value.decode(errors="replace"),
                )
                return []
        return self._unusable(operation, value)

    def _unusable(self, operation: Operation, text: bytes) -> OfflineStoreError:
        """The error for an operation that the script cannot do."""
        user, reason = decode(operation.user), text.decode(errors="replace")
        return OfflineStoreError(f"{self._at}: messages of user {user!a}: {reason}")

    def fail(self, operation: Operation, error: Exception) -> None:
        """An operation has failed."""
        # Each operation gets its own exception, since raising one adds a traceback to it.
        self.settle(operation, self.connection.trouble(error))

    def settle(self, operation: Operation, result: Any) -> None:
        """An operation is done: tells the caller, and has the reads go on that wait for it."""
        if not isinstance(operation, Read):
            self._waiting_bytes -= operation.size
            if self._last.get(operation.user) is operation:
                del self._last[operation.user]
        if operation.future.done():
            if isinstance(result, list) and not isinstance(operation, Read):
                self._untold.extend((operation.user, message) for message in result)
        elif isinstance(result, Exception):
            operation.future.set_exception(result)
        else:
            operation.future.set_result(result)
        for read in operation.reads or ():
            self._reads.put(read)

    # --- reading ---

    def ask(self, read: Read, behind: Operation | None = None) -> asyncio.Future[Any]:
        """Queues a question, behind a write or the last one of its user that is not done."""
        if self.closing is not None:
            read.future.set_exception(OfflineStoreError(f"{self._at} is closed"))
            return read.future
        behind = behind or self._last.get(read.user)
        if behind is None:
            self._reads.put(read)
        elif behind.reads is None:
            behind.reads = [read]
        else:
            behind.reads.append(read)
        return read.future

    async def read(
        self, user: bytes, after: int, limit: int, max_bytes: int
    ) -> list[StoredMessage]:
        """A page of a user's messages: a whole one, or what has come before it takes long."""
        page: list[StoredMessage] = []
        size, more = 0, limit > 0
        until = self.loop.time() + self._read_pace.slow
        while more and (not page or (size < max_bytes and self.loop.time() < until)):
            bounds = (bounded(limit - len(page)), bounded(max(1, max_bytes - size)))
            read = Read("read", user, (), (bounded(after), *bounds))
            more, behind, found = await self.ask(read)
            after = int(behind)
            page += [stored(*each) for each in groups(found, 3)]
            size += sum(map(len, found[2::3]))
        return PartialPage(page) if more and size < max_bytes else page

    async def appended(self, after: int, limit: int) -> tuple[int, list[str]]:
        read = Read("appended", b"", (self._origin,), (bounded(after), bounded(limit)))
        position, users = await self.ask(read)
        return int(position), [decode(user) for user in users]

    async def expire(
        self, stop: int, limit: int, max_bytes: int
    ) -> list[tuple[bytes, StoredMessage]]:
        """Removes what is too old; returns also what was removed before and not told."""
        if self._heard < self._batches:
            # A batch was given up, or is being sent: another one has its outcome told.
            await self._write(Delete(b"", ()))
        if self._untold:
            return self._take_untold(limit, max_bytes)
        removed: list[tuple[bytes, StoredMessage]] = []
        size, more = 0, 1
        until = self.loop.time() + self._read_pace.slow
        while (
            more
            and len(removed) < limit
            and (not removed or (size < max_bytes and self.loop.time() < until))
        ):
            waiting = self._writes.queue or self._writes.batch
            bounds = (bounded(limit - len(removed)), bounded(max(1, max_bytes - size)))
            read = Read("old", b"", (), (stop, *bounds))
            try:
                more, rows, wrong = await self.ask(read, waiting[-1] if waiting else None)
                removed += await self._remove([Row(*row) for row in groups(rows, 4)], wrong)
            except OfflineStoreError:
                if not removed:
                    raise
                # These are gone from the store, so this is the time to tell.
                break
            size = sum(len(message.data) for _, message in removed)
        return removed or self._take_untold(limit, max_bytes)

    async def _remove(
        self, rows: Sequence[Row], wrong: Sequence[bytes]
    ) -> list[tuple[bytes, StoredMessage]]:
        """Removes messages, and mends `oldest` for some users; returns what was there to remove."""
        by_user: dict[bytes, list[Row]] = {user: [] for user in wrong}
        for row in rows:
            by_user.setdefault(row.user, []).append(row)
        operations = [Expire(user, messages) for user, messages in by_user.items()]
        results = await asyncio.gather(*map(self._write, operations), return_exceptions=True)
        trouble = [result for result in results if isinstance(result, BaseException)]
        removed = [
            (operation.user, message)
            for operation, result in zip(operations, results, strict=True)
            if not isinstance(result, BaseException)
            for message in result
        ]
        if trouble and not removed:
            raise trouble[0]
        return sorted(removed, key=lambda each: each[1].position)

    def _write(self, operation: Operation) -> asyncio.Future[Any]:
        self.put(operation)
        return operation.future

    def _take_untold(self, limit: int, max_bytes: int) -> list[tuple[bytes, StoredMessage]]:
        told = [*within((message for _, message in self._untold), limit, max_bytes)]
        return [self._untold.popleft() for _ in told]

    async def _send_reads(self, batch: list[Read], *, oversize: bool = False) -> list[Any]:
        """Asks the server; returns the results of the reads."""
        pace = self._read_pace
        users, packed, strings = pack(batch)
        keys = keys_of(self._prefix, users)
        began = self.loop.time()

        def command() -> tuple[Any, ...]:
            prefixes = (self.key("messages:"), self.key("order:"))
            bounds = (pace.bytes, BATCH_MESSAGES, int(oversize))
            return len(keys), *keys, *prefixes, *bounds, packed, strings

        size, answers = await self.connection.run(self._scripts.read, command, pace)
        pace.carried(size, self.loop.time() - began)
        return [self._answer(*each) for each in zip(batch, answers, strict=True)]

    async def _send_alone(self, batch: list[Read]) -> list[Any]:
        return await self._send_reads(batch, oversize=True)

    def _answer(self, read: Read, answer: list[Any]) -> Any:
        status, *rest = answer
        match status:
            case b"ok":
                return rest
            case b"later":
                return LATER
            case b"alone":
                self._alone.put(read)
                return ELSEWHERE
        return self._unusable(read, rest[0])
