"""RedisOfflineStore: what the hub sees of the store in Redis or Valkey."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from wsc_fast.errors import ConfigError, OfflineStoreError
from wsc_fast.stores.base import READ_BYTES, StoredMessage
from wsc_fast.stores.redis.connection import Connection
from wsc_fast.stores.redis.operations import LAST_POSITION, Append, Delete, Read, decode, encode
from wsc_fast.stores.redis.scripts import load
from wsc_fast.stores.redis.session import Session
from wsc_fast.stores.redis.writes import KEEP_SECONDS

if TYPE_CHECKING:
    import redis.asyncio

# Message ids in one deletion or question.
CHUNK = 1000
# Upper bounds of the settings, in seconds: a hundred years, which the server can still add to its
# clock, and an hour.
MOST_TTL, MOST_TIMEOUT = 100 * 365 * 86400, 3600


class RedisOfflineStore:
    """A SharedOfflineStore in Redis or Valkey (version 5 or later).

    How durable "stored" is, is the server's configuration, not this class: with `appendonly yes`
    and `appendfsync always` an append that resolved survives a crash of the server's machine; with
    `everysec` (the default of `appendonly yes`) about the last second is lost; with snapshots
    alone, minutes; and with neither, everything, at each restart. A server that evicts may evict
    messages: `maxmemory-policy noeviction` is the one to have. Then appends fail while the memory
    is used up, and deletions go on.

    Several hubs may use the same server and prefix, each with a store object of its own: a user's
    messages are in the order in which the server took them, each once per id. The server replicates
    them asynchronously, so a failover may lose the newest.

    Supported: one Redis or Valkey; a Sentinel's master, by a function that makes the client; and a
    cluster only by a prefix with a hash tag, such as `{wsc}:offline:`, and the address of the node
    that holds it: all keys are then in one slot.

    While the server is away, calls wait for it up to `timeout` seconds, then fail with
    OfflineStoreError; writes that wait behind them fail within twice, and reads within four times
    that time. The next call connects again by itself. As long as the server answers, no call fails
    because it waits for its turn.
    An append that fails may have been stored nevertheless, if the connection was lost at that
    moment: to append it again is harmless, as the id is the same. If such an append dropped
    messages, a later `expire` returns them.

    Over a slow line fewer bytes are asked for at a time. A single message has to come within half
    of `timeout`: it is not split.

    To cancel an append or a deletion takes nothing back. To cancel a read, a count or another
    question ends it at once, whatever the server does.

    Thread-safety: none; all calls in the thread of the loop on which `open` was awaited.
    """

    def __init__(
        self,
        url: str | Callable[[], redis.asyncio.Redis],
        *,
        prefix: str = "wsc:offline:",
        ttl: float = KEEP_SECONDS,
        max_waiting_bytes: int = 64 << 20,
        timeout: float = 5.0,
    ) -> None:
        """Takes the configuration; connects to nothing yet.

        Args:
            url: `redis://[user:password@]host[:port][/database]`, `rediss://…` for TLS, or
                `unix://[user:password@]/path?db=0`, with redis-py's options as a query. Or a
                function that returns a new `redis.asyncio.Redis` (with `decode_responses` off),
                such as `lambda: sentinel.master_for("main")`; the store closes it (and not the
                Sentinel's own clients).
            prefix: of all keys of this store.
            ttl: seconds for which a user's messages are kept after the last append to that user,
                up to 100 years. It should be more than the age at which the hub drops messages: the
                hub reports what it drops, and a message that reaches its `ttl` vanishes silently.
            max_waiting_bytes: bytes of appends and deletions that wait for the server, at least 1;
                beyond it they fail at once.
            timeout: seconds for which a command is tried, with new connections where one is lost;
                up to an hour. An attempt gets half of it.

        Raises:
            ImportError: redis-py is not installed.
            ConfigError: an argument cannot be used.
        """
        if importlib.util.find_spec("redis") is None:
            raise ImportError("RedisOfflineStore needs redis-py: pip install 'wsc_fast[redis]'")
        for name, value, most in (("ttl", ttl, MOST_TTL), ("timeout", timeout, MOST_TIMEOUT)):
            if not 0 < value <= most:
                raise ConfigError(f"{name} must be above 0 and up to {most} seconds, not {value!r}")
        if max_waiting_bytes < 1:
            raise ConfigError(f"max_waiting_bytes must be at least 1, not {max_waiting_bytes!r}")
        self._scripts = load()
        self._url = url
        self._prefix = prefix
        self._ttl = ttl
        self._max_waiting_bytes = max_waiting_bytes
        self._timeout = timeout
        self._session: Session | None = None
        client = self._client()
        kwargs = client.connection_pool.connection_kwargs
        if kwargs.get("decode_responses"):
            raise ConfigError("the client must have decode_responses=False")
        self._name = _name_of(client)
        self._secrets = [
            str(kwargs[key]) for key in ("password", "ssl_password") if kwargs.get(key)
        ]

    def __repr__(self) -> str:
        return f"RedisOfflineStore({self._name!r}, prefix={self._prefix!r})"

    def _client(self) -> redis.asyncio.Redis:
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        if not isinstance(self._url, str):
            return self._url()
        options: dict[str, Any] = {
            "socket_timeout": self._timeout / 2,
            "socket_connect_timeout": self._timeout / 2,
            "retry": Retry(NoBackoff(), 0),
            "decode_responses": False,
        }
        try:
            client = redis.asyncio.Redis.from_url(self._url, protocol=2, **options)
        except (ValueError, TypeError, redis.RedisError):
            # Neither the URL nor the cause is in the text: a password may be in both.
            raise ConfigError(
                "the URL of a RedisOfflineStore must be redis://[user:password@]host[:port][/db], "
                "rediss://… or unix://…/path"
            ) from None
        # Once more, over what the URL says: the store has its own rules for these.
        client.connection_pool.connection_kwargs.update(options)
        return client

    async def open(self) -> None:
        """Connects; returns once the server has answered.

        Raises:
            OfflineStoreError: it does not, or does not let us in; nothing is left open then.
        """
        loop = asyncio.get_running_loop()
        while (session := self._session) is not None:
            if session.loop.is_closed():
                self._session = None
            elif session.loop is not loop:
                raise OfflineStoreError(f"{self!r} is open on another event loop")
            elif session.closing is None:
                break
            else:
                await self.close()
        if session is None:
            try:
                client = self._client()
            except Exception as error:
                raise OfflineStoreError(f"no client for {self!r}: {error}") from error
            session = self._session = Session(
                Connection(client, self._name, self._secrets, self._timeout),
                self._scripts,
                self._prefix,
                self._ttl,
                self._max_waiting_bytes,
                self._timeout,
            )
        # Not the task itself: it must not be cancelled with one of those who wait for it.
        await asyncio.wait([session.opening])
        if session.opening.cancelled():
            raise OfflineStoreError(f"{self!r} was closed while it opened")
        trouble = session.opening.exception()
        if trouble is not None:
            if self._session is session:
                await self.close()
            raise trouble

    async def close(self) -> None:
        """Waits for what is under way, then disconnects; `open` may follow.

        That takes at most a few times `timeout`. Cancelled, it gives up what is left, which fails.

        Raises:
            OfflineStoreError: it is open on another event loop.
        """
        session = self._session
        if session is None or session.loop.is_closed():
            self._session = None
            return
        if session.loop is not asyncio.get_running_loop():
            raise OfflineStoreError(f"{self!r} is open on another event loop")
        try:
            await session.close()
        finally:
            if self._session is session:
                self._session = None

    def append(
        self, user_id: str, message_id: str, data: bytes, *, limit: int, drop_oldest: bool
    ) -> asyncio.Future[list[StoredMessage]]:
        """See `OfflineStore.append`.

        Raises:
            OfflineStoreFullError, MessageExistsError: (awaited) as the protocol says.
            OfflineStoreError: (awaited) it is not known to be stored.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        # More than an int of MessagePack holds is as good as no limit.
        limit = max(0, min(limit, LAST_POSITION))
        operation = Append(encode(user_id), encode(message_id), data, limit, drop_oldest)
        if self._session is None:
            operation.future.set_exception(OfflineStoreError(f"{self!r} is not open"))
        else:
            self._session.put(operation)
        return operation.future

    async def read(
        self, user_id: str, *, after: int = 0, limit: int = 100, max_bytes: int = READ_BYTES
    ) -> list[StoredMessage]:
        """See `OfflineStore.read`. Over a slow line it is a PartialPage.

        Raises:
            OfflineStoreError: the server does not answer, or the store is not open; so in all calls
                below.
        """
        return await self._opened().read(encode(user_id), after, limit, max_bytes)

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """See `OfflineStore.delete`."""
        user = encode(user_id)
        session = self._opened()
        ids = [encode(message_id) for message_id in message_ids]
        operations = [Delete(user, chunk) for chunk in _chunks(ids)]
        for operation in operations:
            session.put(operation)
        deleting = [operation.future for operation in operations]
        results = await asyncio.gather(*deleting, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return sum(result for result in results if isinstance(result, int))

    async def count(self, user_id: str) -> int:
        """See `OfflineStore.count`; those whose `append` is not done count."""
        (found,) = await self._opened().ask(Read("count", encode(user_id)))
        return int(found)

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """See `SharedOfflineStore.missing`."""
        user = encode(user_id)
        session = self._opened()
        missing: list[str] = []
        for chunk in _chunks(list(message_ids)):
            (which,) = await session.ask(Read("missing", user, [encode(each) for each in chunk]))
            missing += [chunk[number - 1] for number in which]
        return missing

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """See `SharedOfflineStore.appended`.

        The server remembers the newest 10,000 pairs of store and user, for an hour. A caller that
        has not asked for so long gets the users that are left.
        """
        return await self._opened().appended(after, limit)

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """See `OfflineStore.expire`; `before` is on the server's clock.

        First come messages that an earlier call removed, of `expire` or of `append`, without its
        caller being told: the reply was lost for as long as it was waited for, or the caller was
        cancelled. These may have been stored after `before`. Over a slow line fewer go at a time.
        """
        stop = round(min(before * 1e6, LAST_POSITION)) if before > 0 else 0
        removed = await self._opened().expire(stop, limit, max_bytes)
        return [(decode(user), message) for user, message in removed]

    def _opened(self) -> Session:
        if self._session is None:
            raise OfflineStoreError(f"{self!r} is not open")
        return self._session


def _name_of(client: redis.asyncio.Redis) -> str:
    """The address of a server, without user and password."""
    kwargs = client.connection_pool.connection_kwargs
    service = getattr(client.connection_pool, "service_name", None)
    if service is not None:
        place = f"Sentinel's {service}"
    elif "path" in kwargs:
        place = str(kwargs["path"])
    else:
        place = f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
    return f"{place}/{kwargs.get('db') or 0}"


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
