"""AsyncPublisher: the calls of Publisher for asyncio. Calls of many tasks share a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Self

from wsc_fast.bus.base import HistoryEntry, Member, Published
from wsc_fast.errors import BusUnavailableError
from wsc_fast.publish.checks import checked_id, checked_users
from wsc_fast.publish.messages import (
    Batch,
    Message,
    Sending,
    messages_of,
    result_of,
    to_all,
    to_room,
)
from wsc_fast.publish.pools import pool_of
from wsc_fast.publish.steps import Lost, Pause, Request, Steps, Work
from wsc_fast.publish.users import Stored, Told, Word, disconnect, to_user

if TYPE_CHECKING:
    from wsc_fast.messages import HubMessage

# Bytes of messages that wait for the round trip under way, about. Further calls fail.
MOST_WAITING = 16 << 20


class AsyncPublisher:
    """Publishes to the clients of all hubs on a bus, without being a hub, in asyncio.

    Connects at the first call, and again where a connection has ended.

    Thread-safety: the loop of its first call; under a later loop it begins anew.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        prefix: str = "wsc:",
        timeout: float = 5.0,
        keep: Mapping[str, tuple[int, float]] | None = None,
        offline_limit: int = 1_000,
    ) -> None:
        """Takes the configuration, see `Publisher`; connects to nothing yet.

        Raises:
            ImportError: redis-py is not installed.
            ConfigError: an argument cannot be used.
        """
        self._work = Work(url, prefix, timeout, keep, offline_limit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pools: list[Any] = []
        self._waiting: list[tuple[Sending, asyncio.Future[None]]] = []
        self._waiting_bytes = 0
        self._publishing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Async{self._work!r}"

    async def room(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Published:
        """Publishes a message to a room; see `Publisher.room`.

        Messages of one room are published in the order of the calls. A call that is cancelled may
        have published its message.

        Raises:
            BusUnavailableError, BusError, ValidationError: see `Publisher.room`.
        """
        return await self._publish_one(to_room(room_id, message, exclude, key, idempotency_key))

    async def broadcast(
        self,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Published:
        """Publishes a message to all clients of all hubs; see `Publisher.broadcast`.

        Raises:
            BusUnavailableError, BusError, ValidationError: see `Publisher.room`.
        """
        return await self._publish_one(to_all(message, exclude, key, idempotency_key))

    async def user(
        self,
        user_id: str,
        message: HubMessage | str,
        *,
        require_ack: bool = False,
        message_id: str | None = None,
    ) -> Told:
        """Sends a message to all clients of a user, on all hubs; see `Publisher.user`.

        Messages to one user are sent in the order of the calls, those with acknowledgement apart.

        Raises:
            BusUnavailableError, BusError, OfflineStoreError, ValidationError: see there.
        """
        return await self._tell_one(to_user(user_id, message, require_ack, message_id))

    async def disconnect(self, user_id: str, code: int = 1000, reason: str = "") -> Told:
        """Closes all connections of a user, on all hubs; see `Publisher.disconnect`.

        Raises:
            BusUnavailableError, BusError, ValidationError: see there.
        """
        return await self._tell_one(disconnect(user_id, code, reason))

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """Publishes messages together, at the end of the block; see `Publisher.batch`."""
        batch = Batch()
        yield batch
        messages = messages_of(batch)
        await asyncio.gather(*[self._published(each) for each in messages])
        batch.results = [result_of(message) for message in messages]

    async def history(
        self, room_id: str, *, after: str | None = None, limit: int = 100
    ) -> list[HistoryEntry]:
        """The messages of a kept room, the oldest first; see `Publisher.history`.

        Raises:
            LookupError, BusUnavailableError, BusError, ValidationError: see there.
        """
        self._begin()
        found: list[HistoryEntry] = await self._drive(
            self._work.history(checked_id("room", room_id), after, limit)
        )
        return found

    async def members(self, room_id: str) -> list[Member]:
        """The users who are present in a room, on all hubs; see `Publisher.members`.

        Raises:
            BusUnavailableError, BusError, ValidationError: see there.
        """
        self._begin()
        found: list[Member] = await self._drive(self._work.members(checked_id("room", room_id)))
        return found

    async def online(self, user_ids: Iterable[str]) -> set[str]:
        """The users among these who are connected; see `Publisher.online`.

        Raises:
            BusUnavailableError, BusError, ValidationError: see there.
        """
        self._begin()
        found: set[str] = await self._drive(self._work.online(checked_users(user_ids)))
        return found

    async def close(self) -> None:
        """Waits for what is being published, and disconnects. A later call connects anew."""
        if self._loop is not asyncio.get_running_loop():
            return  # the connections ended with their loop
        if self._publishing is not None:
            await asyncio.wait([self._publishing])
        for pool in self._pools:
            await pool.disconnect(inuse_connections=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    # --- what waits ---

    async def _publish_one(self, message: Message) -> Published:
        await self._published(message)
        assert message.result is not None
        if isinstance(message.result, Exception):
            raise message.result
        return message.result

    async def _tell_one(self, message: Word | Stored) -> Told:
        await self._published(message)
        assert message.result is not None
        if isinstance(message.result, Exception):
            raise message.result
        return message.result

    def _published(self, message: Sending) -> asyncio.Future[None]:
        """Publishes a message with all that wait; the future is done when it has its result."""
        self._begin()
        assert self._loop is not None
        done: asyncio.Future[None] = self._loop.create_future()
        if self._waiting_bytes > MOST_WAITING:
            message.result = BusUnavailableError(
                f"not published: {self._waiting_bytes} bytes of messages wait for the bus already, "
                f"and {MOST_WAITING} may"
            )
            done.set_result(None)
            return done
        self._waiting.append((message, done))
        self._waiting_bytes += len(message.entry)
        if self._publishing is None:
            self._publishing = self._loop.create_task(self._publish_all())
        return done

    async def _publish_all(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                self._waiting_bytes = 0
                messages = [message for message, _ in taken]
                try:
                    await self._drive(self._work.publish(messages))
                except Exception as error:
                    for message in messages:
                        # A copy for each: whoever raises it adds a traceback.
                        message.result = message.result or copy(error)
                finally:
                    for message, done in taken:
                        message.result = message.result or BusUnavailableError("given up")
                        if not done.done():
                            done.set_result(None)
        finally:
            self._publishing = None

    # --- the connections ---

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Connections of another loop are of no use, and neither is what waited there.
            self._loop = loop
            self._waiting, self._waiting_bytes, self._publishing = [], 0, None
            self._pools = [
                pool_of(each, "redis.asyncio", self._work.timeout) for each in self._work.urls
            ]

    async def _drive(self, steps: Steps) -> Any:
        answers = None
        try:
            while True:
                step = steps.send(answers)
                answers = None
                if isinstance(step, Request):
                    answers = await self._exchange(self._pools[step.server], step.commands)
                else:
                    await self._pause(step)
        except StopIteration as end:
            return end.value

    async def _pause(self, pause: Pause) -> None:
        if pause.anew is not None:
            await self._pools[pause.anew].disconnect(inuse_connections=False)
        await asyncio.sleep(pause.seconds)

    async def _exchange(self, pool: Any, commands: Sequence[bytes]) -> list[Any]:
        """Sends commands on one connection, and reads their answers."""
        from redis.exceptions import (
            BusyLoadingError,
            ConnectionError,
            RedisError,
            ResponseError,
            TimeoutError,
        )

        try:
            connection = await pool.get_connection()
        except (RedisError, OSError) as error:
            return [Lost(error, sent=False)] * len(commands)
        answers: list[Any] = []
        try:
            await connection.send_packed_command(commands, check_health=False)
            while len(answers) < len(commands):
                try:
                    answers.append(await connection.read_response(disconnect_on_error=False))
                except (ResponseError, BusyLoadingError) as error:
                    answers.append(error)
        except (ConnectionError, TimeoutError, OSError) as error:
            await connection.disconnect()
            answers += [Lost(error, sent=True)] * (len(commands) - len(answers))
        except BaseException:
            await connection.disconnect(nowait=True)  # answers are under way
            raise
        finally:
            await pool.release(connection)
        return answers
