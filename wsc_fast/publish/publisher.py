"""Publisher: publishes from any process, and blocks until the bus has answered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from wsc_fast.bus.base import HistoryEntry, Member, Published
from wsc_fast.publish.checks import checked_id, checked_users
from wsc_fast.publish.messages import Batch, Message, messages_of, result_of, to_all, to_room
from wsc_fast.publish.pools import pool_of
from wsc_fast.publish.steps import Lost, Pause, Request, Steps, Work
from wsc_fast.publish.users import Stored, Told, Word, disconnect, to_user

if TYPE_CHECKING:
    from wsc_fast.messages import HubMessage


class Publisher:
    """Publishes to the clients of all hubs on a bus, without being a hub.

    Connects at the first call, and again where a connection has ended. Each thread that is in a
    call has a connection of its own for as long; idle ones are kept for the next call. A child of a
    fork makes new ones.

    Thread-safety: any thread, and safe after a fork.
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
        """Takes the configuration; connects to nothing yet.

        Args:
            url: of the bus, as RedisBus takes it; a list where RedisBus has the same list.
            prefix: of all keys and channels, as RedisBus has it.
            timeout: seconds for which a call tries each server, up to 60.
            keep: the size and the ttl of kept rooms by pattern, as of `Hub.keep`. None: as the hubs
                on the bus have it, which write it there.
            offline_limit: messages with acknowledgement that may wait for one user in the offline
                store, 1 to 1,073,741,824. One more is refused.

        Raises:
            ImportError: redis-py is not installed.
            ConfigError: an argument cannot be used.
        """
        self._work = Work(url, prefix, timeout, keep, offline_limit)
        self._pools = [pool_of(each, "redis", self._work.timeout) for each in self._work.urls]

    def __repr__(self) -> str:
        return repr(self._work)

    def room(
        self,
        room_id: str,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Published:
        """Publishes a message to a room, to its members on all hubs.

        Args:
            room_id: a str.
            message: bytes go out as a binary message, a str as text, a HubMessage as its JSON.
            exclude: ids of clients that do not get it.
            key: replaces a message under the same key that waits for a slow client.
            idempotency_key: 1 to 128 bytes. For 300 seconds a further message to the room under the
                same key is not published, whoever publishes it.

        Returns:
            Published: the position in a kept room, None in a plain one; and whether it was
                published before.

        Raises:
            BusUnavailableError: the bus did not take it in time. The text says whether it may have
                been published; with an idempotency key, the same call can be made again.
            BusError: the bus refuses, or does not say which rooms are kept.
            ValidationError: an argument cannot be used.
        """
        return self._publish_one(to_room(room_id, message, exclude, key, idempotency_key))

    def broadcast(
        self,
        message: HubMessage | str | bytes,
        *,
        exclude: Iterable[str] = (),
        key: str | None = None,
        idempotency_key: str | None = None,
    ) -> Published:
        """Publishes a message to all clients of all hubs; arguments and errors are those of `room`.

        Returns:
            Published: without a position.
        """
        return self._publish_one(to_all(message, exclude, key, idempotency_key))

    def user(
        self,
        user_id: str,
        message: HubMessage | str,
        *,
        require_ack: bool = False,
        message_id: str | None = None,
    ) -> Told:
        """Sends a message to all clients of a user, on all hubs.

        Args:
            user_id: a str.
            message: a HubMessage, or the content of one.
            require_ack: the message goes into the offline store of the hubs: it is sent until it is
                acknowledged, also to a user who comes later. Nobody waits for that. The hubs need
                `enable_ack(ACKConfig(enable_offline_messages=True))`, and their store on the bus.
            message_id: of a str; made when not given. With `require_ack` the same message may be
                sent again under its id: it is stored once, and is not sent again for 60 seconds
                after its acknowledgement.

        Returns:
            Told: how many hubs have the user. If that is 0, only a message with `require_ack`
                reaches him. Without it, one that a full outbox has dropped counts as told.

        Raises:
            BusUnavailableError: the bus did not take it in time. The text says whether it may have
                been sent; with `require_ack`, the same call with its id can be made again.
            BusError: the bus refuses.
            OfflineStoreFullError: `offline_limit` messages wait for the user.
            OfflineStoreError: the bus does not take it into the store.
            ValidationError: an argument cannot be used, or another message with the id is stored.
        """
        return self._tell_one(to_user(user_id, message, require_ack, message_id))

    def disconnect(self, user_id: str, code: int = 1000, reason: str = "") -> Told:
        """Closes all connections of a user, on all hubs.

        Args:
            user_id, code, reason: as for `Hub.disconnect_user`.

        Returns:
            Told: how many hubs have the user; they close his connections at once.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses.
            ValidationError: an argument cannot be used.
        """
        return self._tell_one(disconnect(user_id, code, reason))

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Publishes messages together, which is far faster than one after another::

            with publisher.batch() as batch:
                for order in orders:
                    batch.room(f"order:{order.id}", "sent")
            failed = [each for each in batch.results if isinstance(each, Exception)]

        Nothing is published if the block raises. Messages of one room are published in order, and
        so are those to one user, those with acknowledgement apart.
        """
        batch = Batch()
        yield batch
        messages = messages_of(batch)
        self._drive(self._work.publish(messages))
        batch.results = [result_of(message) for message in messages]

    def history(
        self, room_id: str, *, after: str | None = None, limit: int = 100
    ) -> list[HistoryEntry]:
        """The messages of a kept room, the oldest first.

        Args:
            room_id: a str.
            after: the position after which to begin; None gives the newest messages.
            limit: 1 to 1000.

        Raises:
            LookupError: the history does not reach back to `after`, or the bus has lost messages
                behind it.
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses, or does not say which rooms are kept.
            ValidationError: an argument cannot be used, or the room is not kept.
        """
        found: list[HistoryEntry] = self._drive(
            self._work.history(checked_id("room", room_id), after, limit)
        )
        return found

    def members(self, room_id: str) -> list[Member]:
        """The users who are present in a room, on all hubs; see `Hub.presence`.

        Returns:
            list[Member]: in no order. Empty for a room without presence, too.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses.
            ValidationError: the id cannot be used.
        """
        found: list[Member] = self._drive(self._work.members(checked_id("room", room_id)))
        return found

    def online(self, user_ids: Iterable[str]) -> set[str]:
        """The users among these who are connected to any hub with presence.

        Raises:
            BusUnavailableError: the bus did not answer in time.
            BusError: the bus refuses.
            ValidationError: an id cannot be used.
        """
        found: set[str] = self._drive(self._work.online(checked_users(user_ids)))
        return found

    def close(self) -> None:
        """Closes idle connections. A later call makes new ones."""
        for pool in self._pools:
            pool.disconnect(inuse_connections=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # --- the connections ---

    def _publish_one(self, message: Message) -> Published:
        self._drive(self._work.publish([message]))
        assert message.result is not None
        if isinstance(message.result, Exception):
            raise message.result
        return message.result

    def _tell_one(self, message: Word | Stored) -> Told:
        self._drive(self._work.publish([message]))
        assert message.result is not None
        if isinstance(message.result, Exception):
            raise message.result
        return message.result

    def _drive(self, steps: Steps) -> Any:
        answers = None
        try:
            while True:
                step = steps.send(answers)
                answers = None
                if isinstance(step, Request):
                    answers = self._exchange(self._pools[step.server], step.commands)
                else:
                    self._pause(step)
        except StopIteration as end:
            return end.value

    def _pause(self, pause: Pause) -> None:
        if pause.anew is not None:
            self._pools[pause.anew].disconnect(inuse_connections=False)
        time.sleep(pause.seconds)

    def _exchange(self, pool: Any, commands: Sequence[bytes]) -> list[Any]:
        """Sends commands on one connection, and reads their answers."""
        from redis.exceptions import (
            BusyLoadingError,
            ConnectionError,
            RedisError,
            ResponseError,
            TimeoutError,
        )

        try:
            connection = pool.get_connection()
        except (RedisError, OSError) as error:
            return [Lost(error, sent=False)] * len(commands)
        answers: list[Any] = []
        try:
            connection.send_packed_command(commands, check_health=False)
            while len(answers) < len(commands):
                try:
                    answers.append(connection.read_response(disconnect_on_error=False))
                except (ResponseError, BusyLoadingError) as error:
                    answers.append(error)
        except (ConnectionError, TimeoutError, OSError) as error:
            connection.disconnect()
            answers += [Lost(error, sent=True)] * (len(commands) - len(answers))
        except BaseException:
            connection.disconnect()  # answers are under way
            raise
        finally:
            pool.release(connection)
        return answers
