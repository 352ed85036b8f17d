"""The offline store in Redis or Valkey, for hubs that share one, or have one beside them already.

Rules:

    1. Whatever writes goes through one queue and one task, in batches: a batch is one script, run
       by the server as a whole, and one round trip. So the order of the calls is the order in the
       store, and thousands of appends cost as many round trips as the server takes batches.
    2. A batch carries a number, and the server keeps the reply to the last one for a while. Where
       the connection is lost and the outcome unknown, the same batch is sent again: if it had been
       done, it is not done again, and the reply comes from what was kept. A batch that was given up
       and reaches the server after a later one is refused by its number.
    3. Positions are of the server's clock, in microseconds, pushed up to be strictly increasing.
       So they grow on even when the server lost its newest data, and the time at which a message
       was stored is its position.
    4. A script is not always a whole. A server that was killed while it wrote its log may come
       back with the first part of a script's writes (Redis 7, and Valkey before its pull request
       4342, after a second restart), of a batch that nobody was told of. So each script writes in
       an order in which any first part is harmless: what has data is in the order, and whose
       messages are in an order is in `oldest`, at no later position than the first of them. An id
       in the order without data is passed over, and goes as a message would.
    5. Reads wait for the writes of their user that were called before, then run beside the writer.

Keys, below the prefix; an id stands in them as it is, in UTF-8:

    messages:USER   hash: message id -> data
    order:USER      sorted set: message id, by position
    oldest          sorted set: user id, by the position of its oldest message; for `expire`
    position        a position that none is beyond
    reply:RANDOM    number and reply of the last batch of one opened store, and of its last
                    `expire`; for a minute or so

All but the last live for `ttl` seconds after the last append to them.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import math
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from wsc_fast.delivery.offline import StoredMessage
from wsc_fast.errors import ConfigError, OfflineStoreError, OfflineStoreFullError
from wsc_fast.log import log

if TYPE_CHECKING:
    import redis.asyncio

# A batch has at most so many operations and so many bytes (but at least one operation): the server
# serves nobody else while it works on a batch.
BATCH_OPERATIONS = 500
BATCH_BYTES = 1 << 20
# What an operation occupies besides its strings, about.
OVERHEAD = 300
# Reads and expirations that are under way at once, each on a connection of its own.
READERS = 8
# Seconds between attempts: from the first pause, doubling, to the last.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
# Message ids in one operation of a batch, and messages in one round of expiring.
CHUNK = 1000


class _Script:
    """A script as EVALSHA and EVAL want it."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The name that Redis gives it; no secret is kept by it.
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# What scripts that write begin with: a batch that was done already is answered from what was kept.
_REPLAY = """
local number = tonumber(ARGV[1])
local kept = redis.call('GET', KEYS[1])
if kept then
  local kept_number, kept_reply = cmsgpack.unpack(kept)
  if kept_number == number then return kept_reply end
  if kept_number > number then return redis.error_reply('STALE a later batch has been done') end
end
"""

# KEYS: reply, position, oldest, then messages and order of each user.
# ARGV: number of the batch, seconds to keep its reply, ttl in ms, length of what is before the user
# id in a key of messages, operations in MessagePack, and all their strings in one: redis-py takes a
# microsecond or two for each argument, and the server's MessagePack knows no binary strings.
# An append is {user, length of id, length of data, limit, drop_oldest}, a deletion {user, {lengths
# of ids}}; the user is a number from 1.
# Returns what there is to say about operations: {which, kind, ...}; an append has nothing to say
# if it was stored, or was there already, and dropped nothing.
_WRITE = _Script(
    _REPLAY
    + """
local operations, strings, at = cmsgpack.unpack(ARGV[5]), ARGV[6], 1
local reply, states, wrote, begun, refused = {}, {}, false, false, nil

-- Wrong types raise here, before anything is written: a script is not rolled back.
redis.call('ZCARD', KEYS[3])
local last = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
local time = redis.call('TIME')
local position = math.max(time[1] * 1000000 + time[2], last + 1)

local function state_of(index)
  local state = states[index]
  if not state then
    state = {messages = KEYS[2 + 2 * index], order = KEYS[3 + 2 * index]}
    state.name = string.sub(state.messages, ARGV[4] + 1)
    local held = redis.pcall('HLEN', state.messages)
    state.count = redis.pcall('ZCARD', state.order)
    if type(held) == 'table' then
      state.trouble = held.err
    elseif type(state.count) == 'table' then
      state.trouble = state.count.err
    elseif state.count == 0 and held > 0 then
      -- Somebody removed the order: nothing could ever read or drop these.
      redis.call('DEL', state.messages)
    end
    states[index] = state
  end
  return state
end

local function take(length)
  at = at + length
  return string.sub(strings, at - length, at - 1)
end

local function say(...) reply[#reply + 1] = {...} end

-- The first write of an append: whether there is memory for more. Deletions must go on without.
local function begin_appends()
  local most = string.format('%.0f', position + #operations)
  local set = redis.pcall('SET', KEYS[2], most, 'PX', ARGV[3])
  if not set.err then
    wrote = true
  elseif string.find(set.err, 'OOM', 1, true) then
    refused = set.err
  else
    -- A replica that is read only, say: this is true for the whole batch.
    return set
  end
end

local function append(i, state, id, data, limit, drop_oldest)
  if redis.call('HEXISTS', state.messages, id) == 1 then return end
  if limit < 1 or (state.count >= limit and not drop_oldest) then
    say(i, 'full', state.count)
    return
  end
  if not begun then
    begun = true
    local failure = begin_appends()
    if failure then return failure end
  end
  if refused then
    say(i, 'trouble', refused)
    return
  end
  local dropped = {}
  -- Bounded, for where the limit was lowered: the next appends drop the rest.
  while state.count >= limit and state.count > 0 and #dropped < 3000 do
    local oldest = redis.call('ZRANGE', state.order, 0, 0, 'WITHSCORES')
    local old = redis.call('HGET', state.messages, oldest[1])
    redis.call('HDEL', state.messages, oldest[1])
    redis.call('ZREM', state.order, oldest[1])
    if old then
      dropped[#dropped + 1] = oldest[1]
      dropped[#dropped + 1] = oldest[2]
      dropped[#dropped + 1] = old
    end
    state.count = state.count - 1
    state.changed = true
  end
  local at_position = string.format('%.0f', position)
  if state.count == 0 then redis.call('ZADD', KEYS[3], at_position, state.name) end
  state.count = state.count + redis.call('ZADD', state.order, at_position, id)
  redis.call('HSET', state.messages, id, data)
  position = position + 1
  state.appended = true
  if #dropped > 0 then say(i, 'dropped', dropped) end
end

local function delete(i, state, ids)
  local count = 0
  for _, id in ipairs(ids) do
    redis.call('HDEL', state.messages, id)
    count = count + redis.call('ZREM', state.order, id)
  end
  state.count = state.count - count
  state.changed, wrote = true, true
  say(i, 'deleted', count)
end

for i, operation in ipairs(operations) do
  local user, lengths, length, limit, drop_oldest = unpack(operation)
  local state = state_of(user)
  if length then
    local id, data = take(lengths), take(length)
    if state.trouble then
      say(i, 'trouble', state.trouble)
    else
      local failure = append(i, state, id, data, limit, drop_oldest)
      if failure then return failure end
    end
  else
    local ids = {}
    for n, id_length in ipairs(lengths) do ids[n] = take(id_length) end
    if state.trouble then
      say(i, 'trouble', state.trouble)
    else
      delete(i, state, ids)
    end
  end
end

for _, state in pairs(states) do
  if state.changed then
    local head = redis.call('ZRANGE', state.order, 0, 0, 'WITHSCORES')
    if head[1] then
      redis.call('ZADD', KEYS[3], head[2], state.name)
    else
      redis.call('ZREM', KEYS[3], state.name)
    end
  end
  if state.appended then
    redis.call('PEXPIRE', state.messages, ARGV[3])
    redis.call('PEXPIRE', state.order, ARGV[3])
  end
end
if begun then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
if wrote then redis.call('SET', KEYS[1], cmsgpack.pack(number, reply), 'EX', ARGV[2]) end
return reply
"""
)

# KEYS: messages, order. ARGV: the position to begin behind, how many.
# Returns {position, id, data, ...}.
_READ = _Script(
    """
local found, behind, left = {}, '(' .. ARGV[1], tonumber(ARGV[2])
while left > 0 do
  local page = redis.call(
    'ZRANGEBYSCORE', KEYS[2], behind, '+inf', 'WITHSCORES', 'LIMIT', 0, math.min(left, 1000)
  )
  if #page == 0 then break end
  for i = 1, #page, 2 do
    local data = redis.call('HGET', KEYS[1], page[i])
    -- Without data (it was evicted, say) there is nothing to deliver.
    if data then
      found[#found + 1] = page[i + 1]
      found[#found + 1] = page[i]
      found[#found + 1] = data
      left = left - 1
    end
  end
  behind = '(' .. page[#page]
end
return found
"""
)

# KEYS: reply, oldest, and the reply of an earlier call that has arrived, if there is one.
# ARGV: number, seconds to keep the reply, the position to stop before, how many, prefixes of the
# users' keys. Those keys are not in KEYS as they become known here; a cluster has all in one slot.
# Returns whether to call again, {user, id, position, data, ...}, and users with junk in their keys.
_EXPIRE = _Script(
    _REPLAY
    + """
if KEYS[3] then redis.call('DEL', KEYS[3]) end
local removed, junk, more = {}, {}, 1
local before, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
-- Users whose keys have reached their ttl cost a round without a message: those are bounded too.
for _ = 1, 2 * limit do
  local left = limit - #removed / 4
  if left <= 0 then break end
  local heads = redis.call('ZRANGE', KEYS[2], 0, 1, 'WITHSCORES')
  if not heads[1] or tonumber(heads[2]) >= before then
    more = 0
    break
  end
  local name, messages, order = heads[1], ARGV[5] .. heads[1], ARGV[6] .. heads[1]
  -- Of this user as far as the next user's oldest message: the oldest of all go first.
  local upto = '(' .. ARGV[3]
  if heads[4] and tonumber(heads[4]) < before then upto = heads[4] end
  local found = redis.pcall(
    'ZRANGEBYSCORE', order, '-inf', upto, 'WITHSCORES', 'LIMIT', 0, left
  )
  if found.err then
    junk[#junk + 1] = name
    redis.call('ZREM', KEYS[2], name)
  else
    for i = 1, #found, 2 do
      local data = redis.pcall('HGET', messages, found[i])
      redis.pcall('HDEL', messages, found[i])
      redis.call('ZREM', order, found[i])
      if type(data) == 'string' then
        removed[#removed + 1] = name
        removed[#removed + 1] = found[i]
        removed[#removed + 1] = found[i + 1]
        removed[#removed + 1] = data
      end
    end
    local head = redis.call('ZRANGE', order, 0, 0, 'WITHSCORES')
    if head[1] then
      redis.call('ZADD', KEYS[2], head[2], name)
    else
      redis.call('ZREM', KEYS[2], name)
    end
  end
end
local reply = {more, removed, junk}
if #removed > 0 then redis.call('SET', KEYS[1], cmsgpack.pack(number, reply), 'EX', ARGV[2]) end
return reply
"""
)


class RedisOfflineStore:
    """An offline store in Redis or Valkey (version 5 or later).

    How durable "stored" is, is the server's configuration, not this class: with `appendonly yes`
    and `appendfsync always` an append that resolved survives a crash of the server's machine; with
    `everysec` (the default of `appendonly yes`) about the last second is lost; with snapshots
    alone, minutes; and with neither, everything, at each restart. A server that evicts may evict
    messages: `maxmemory-policy noeviction` is the one to have. Then appends fail while the memory
    is used up, and deletions go on.

    Several hubs may use the same server and prefix: a user's messages are in the order in which
    the server took them, each once per id. Their replication to other servers is asynchronous, so
    a failover may lose the newest.

    Supported: one Redis or Valkey; a Sentinel's master, by a function that makes the client; and a
    cluster only by a prefix with a hash tag, such as `{wsc}:offline:`, and the address of the node
    that holds it: all keys are then in one slot.

    While the server is away, calls wait for it up to `timeout` seconds, then fail with
    OfflineStoreError; those waiting behind them fail in twice, reads in four times that time. The
    next call connects again by itself. An append that fails may have been stored nevertheless, if
    the connection was lost at that moment: to append it again is harmless, as the id is the same.

    To cancel an append or a deletion takes nothing back.

    Thread-safety: none; all calls in the thread of the loop on which `open` was awaited.
    """

    def __init__(
        self,
        url: str | Callable[[], redis.asyncio.Redis],
        *,
        prefix: str = "wsc:offline:",
        ttl: float = 30 * 86400.0,
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
            ttl: seconds for which a user's messages are kept after the last append to that user.
                More than the age at which the hub drops messages: these are reported, what
                reaches its `ttl` vanishes silently.
            max_waiting_bytes: of appends and deletions that wait for the server; beyond it they
                fail at once.
            timeout: seconds for which a command is tried, with new connections where one is lost.
                An attempt gets half of it.

        Raises:
            ImportError: redis-py is not installed.
            ConfigError: an argument cannot be used.
        """
        if importlib.util.find_spec("redis") is None:
            raise ImportError("RedisOfflineStore needs redis-py: pip install 'wsc_fast[redis]'")
        for name, value in (("ttl", ttl), ("timeout", timeout)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number of seconds, not {value!r}")
        if max_waiting_bytes < 1:
            raise ConfigError(f"max_waiting_bytes must be at least 1, not {max_waiting_bytes!r}")
        self._url = url
        self._prefix = prefix
        self._ttl = ttl
        self._max_waiting_bytes = max_waiting_bytes
        self._timeout = timeout
        self._session: _Session | None = None
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
            session = self._session = _Session(
                client,
                self._name,
                self._secrets,
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
        """Keeps a message behind all others of the user; see `OfflineStore.append`.

        Args:
            user_id: whose message it is.
            message_id: kept once: the same id of the same user again changes nothing.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: what to do at the limit: drop the oldest, or refuse this one.

        Returns:
            asyncio.Future[list[StoredMessage]]: of what was dropped for it.

        Raises:
            OfflineStoreFullError: (awaited) at the limit, without `drop_oldest`.
            OfflineStoreError: (awaited) the message is not known to be stored.
        """
        if type(data) is not bytes:
            data = bytes(memoryview(data))
        strings = (_encode(message_id), data)
        # More than an int of MessagePack holds is as good as no limit.
        operation = _Operation(_encode(user_id), strings, min(limit, 1 << 53), drop_oldest)
        if self._session is None:
            operation.future.set_exception(OfflineStoreError(f"{self!r} is not open"))
        else:
            self._session.put(operation)
        return operation.future

    async def read(self, user_id: str, *, after: int = 0, limit: int = 100) -> list[StoredMessage]:
        """The next messages of a user, in order; see `OfflineStore.read`.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many at most.

        Returns:
            list[StoredMessage]: also those whose `append` has been called and is not done.

        Raises:
            OfflineStoreError: they cannot be read.
        """
        user = _encode(user_id)
        session = self._opened()
        keys = (session.key("messages:", user), session.key("order:", user))
        found = await session.query(user, _READ, keys, (after, limit))
        return [
            _stored(position, message_id, data) for position, message_id, data in _groups(found, 3)
        ]

    async def delete(self, user_id: str, message_ids: Collection[str]) -> int:
        """Removes messages of a user.

        Args:
            user_id: whose messages.
            message_ids: which; those that are not there are no error.

        Returns:
            int: how many there were.

        Raises:
            OfflineStoreError: they are not known to be removed.
        """
        user = _encode(user_id)
        session = self._opened()
        ids = [_encode(message_id) for message_id in message_ids]
        operations = [
            _Operation(user, ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK)
        ]
        for operation in operations:
            session.put(operation)
        deleting = [operation.future for operation in operations]
        results = await asyncio.gather(*deleting, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return sum(result for result in results if isinstance(result, int))

    async def count(self, user_id: str) -> int:
        """How many messages are kept for a user.

        Args:
            user_id: whose messages.

        Returns:
            int: the number, with those whose `append` has been called and is not done.

        Raises:
            OfflineStoreError: they cannot be counted.
        """
        user = _encode(user_id)
        session = self._opened()
        return int(await session.query(user, None, (session.key("order:", user),), ("ZCARD",)))

    async def expire(self, before: float, limit: int = 1000) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time, of all users.

        Args:
            before: seconds since the epoch, on the server's clock.
            limit: how many to remove at most, the oldest first.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each.

        Raises:
            OfflineStoreError: nothing is known to be removed.
        """
        session = self._opened()
        # Beyond 2**53 a position would not be exact; that is the year 2255.
        stop = round(min(max(before, 0.0) * 1e6, 2.0**53))
        removed: list[tuple[str, StoredMessage]] = []
        more = 1
        while more and len(removed) < limit:
            try:
                more, rows, junk = await session.expire(stop, min(limit - len(removed), CHUNK))
            except OfflineStoreError:
                if not removed:
                    raise
                # They are gone from the store, so this is the time to tell.
                break
            removed += [
                (_decode(user), _stored(position, message_id, data))
                for user, message_id, position, data in _groups(rows, 4)
            ]
            for user in junk:
                log.warning(
                    "offline store: Redis at %s: the messages of user %a are no sorted set, and "
                    "are not looked at again for their age",
                    self._name,
                    _decode(user),
                )
        return removed

    def _opened(self) -> _Session:
        if self._session is None:
            raise OfflineStoreError(f"{self!r} is not open")
        return self._session


class _Operation:
    """An append or a deletion that waits or is being sent.

    Attributes:
        user: its id.
        strings: message id and data of an append; ids of a deletion.
        limit: of an append; None says that it is a deletion.
        drop_oldest: of an append.
        size: what counts towards `max_waiting_bytes`.
        born: when it was called.
        future: the caller's, who may cancel it.
        readers: wait until it is done, whatever becomes of it.
    """

    __slots__ = ("born", "drop_oldest", "future", "limit", "readers", "size", "strings", "user")

    def __init__(
        self,
        user: bytes,
        strings: Sequence[bytes],
        limit: int | None = None,
        drop_oldest: bool = False,
    ) -> None:
        self.user = user
        self.strings = strings
        self.limit = limit
        self.drop_oldest = drop_oldest
        self.size = OVERHEAD + len(user) + sum(map(len, strings)) + 50 * len(strings)
        self.born = 0.0
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.readers: list[asyncio.Future[None]] | None = None


class _Session:
    """A store from `open` to `close`: its client, its queue and its writer."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        name: str,
        secrets: Sequence[str],
        prefix: str,
        ttl: float,
        max_waiting_bytes: int,
        timeout: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.closing: asyncio.Task[None] | None = None
        self._closed = False
        self._client: Any = client  # redis-py types half of it
        self._name = name
        self._secrets = secrets
        self._prefix = _encode(prefix)
        self._ttl_ms = math.ceil(ttl * 1000)
        self._timeout = timeout
        # Longer than a batch can be under way.
        self._reply_ttl = max(60, math.ceil(4 * timeout))
        self._max_waiting_bytes = max_waiting_bytes
        self._queue: deque[_Operation] = deque()
        self._batch: list[_Operation] = []  # being sent
        self._waiting_bytes = 0  # of the queue and the batch
        self._last: dict[bytes, _Operation] = {}  # user -> its last operation that is not done
        self._wake = asyncio.Event()
        self._batches = 0
        self._reply_key = self.key("reply:", uuid.uuid4().hex.encode())
        self._arrived: bytes | None = None  # key of the reply to the last `expire`
        self._readers = asyncio.Semaphore(READERS)
        self._reads = 0
        self._quiet = asyncio.Event()  # no read is under way
        self._quiet.set()
        self.opening = self.loop.create_task(self._open())
        # Where nobody waits any more, its failure is no news.
        self.opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._writer = self.loop.create_task(self._write())

    def key(self, kind: str, name: bytes = b"") -> bytes:
        return self._prefix + kind.encode() + name

    async def _open(self) -> None:
        try:
            await self._try("PING")
        except Exception as error:
            raise self._trouble(error) from self._cause(error)

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
        try:
            self.opening.cancel()
            self._wake.set()
            await self._writer
            await self._quiet.wait()
        finally:
            # Nothing is left here, unless this was cancelled.
            self._closed = True
            self._writer.cancel()
            for operation in [*self._batch, *self._queue]:
                self._settle(operation, OfflineStoreError(f"{self._at} was closed"))
            self._batch, self._queue = [], deque()
            try:
                await self._client.aclose(close_connection_pool=True)
            except Exception as error:
                log.debug("%s: %s", self._at, self._text(error))

    # --- writing ---

    def put(self, operation: _Operation) -> None:
        """Queues an append or a deletion, or fails it."""
        if self.closing is not None:
            operation.future.set_exception(OfflineStoreError(f"{self._at} is closed"))
        elif self._waiting_bytes + operation.size > self._max_waiting_bytes:
            operation.future.set_exception(
                OfflineStoreError(
                    f"{self._at} is too slow: {self._waiting_bytes} bytes wait for it already"
                )
            )
        else:
            operation.born = self.loop.time()
            self._queue.append(operation)
            self._waiting_bytes += operation.size
            self._last[operation.user] = operation
            self._wake.set()

    async def _write(self) -> None:
        while True:
            if not self._queue:
                if self.closing is not None:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            batch = self._batch = self._take()
            try:
                results = self._results(batch, await self._send(batch))
            except Exception as error:
                self._batch = []
                for operation in batch:
                    self._fail(operation, error)
                await self._fail_old(error)
            else:
                self._batch = []
                for operation, result in zip(batch, results, strict=True):
                    self._settle(operation, result)

    def _take(self) -> list[_Operation]:
        batch: list[_Operation] = []
        size = 0
        queue = self._queue
        while queue and len(batch) < BATCH_OPERATIONS:
            if batch and size + queue[0].size > BATCH_BYTES:
                break
            batch.append(queue.popleft())
            size += batch[-1].size
        return batch

    async def _send(self, batch: list[_Operation]) -> dict[int, list[Any]]:
        """Has the server do a batch; what it says about the operations, by index."""
        users: dict[bytes, int] = {}
        operations: list[tuple[Any, ...]] = []
        strings: list[bytes] = []
        for operation in batch:
            user = users.setdefault(operation.user, len(users) + 1)
            strings += operation.strings
            lengths = [len(string) for string in operation.strings]
            if operation.limit is None:
                operations.append((user, lengths))
            else:
                operations.append((user, *lengths, operation.limit, operation.drop_oldest))
        keys = [self._reply_key, self.key("position"), self.key("oldest")]
        for name in users:
            keys += (self.key("messages:", name), self.key("order:", name))
        self._batches += 1
        arguments = (
            self._batches,
            self._reply_ttl,
            self._ttl_ms,
            len(self.key("messages:")),
            msgspec.msgpack.encode(operations),
            b"".join(strings),
        )
        said = await self._run(_WRITE, keys, arguments)
        return {number - 1: rest for number, *rest in said}

    def _results(self, batch: list[_Operation], said: dict[int, list[Any]]) -> list[Any]:
        """What each operation of a batch returns, or raises."""
        results: list[Any] = []
        for index, operation in enumerate(batch):
            if index not in said:
                results.append([])
                continue
            kind, value = said[index]
            user = f"user {_decode(operation.user)!a}"
            if kind == b"deleted":
                results.append(value)
            elif kind == b"dropped":
                results.append(
                    [
                        _stored(position, message_id, data)
                        for message_id, position, data in _groups(value, 3)
                    ]
                )
            elif kind == b"full":
                text = f"{self._at} holds {value} messages for {user}, of {operation.limit}"
                results.append(OfflineStoreFullError(text))
            else:
                text = f"{self._at}: messages of {user}: {value.decode(errors='replace')}"
                results.append(OfflineStoreError(text))
        return results

    async def _fail_old(self, error: Exception) -> None:
        """After a batch has failed: so does what has waited for as long as a batch is tried."""
        count = 0
        before = self.loop.time() - self._timeout
        while self._queue and self._queue[0].born <= before:
            self._fail(self._queue.popleft(), error)
            count += 1
            if count % BATCH_OPERATIONS == 0:
                # The loop has others to serve, too.
                await asyncio.sleep(0)

    def _fail(self, operation: _Operation, error: Exception) -> None:
        # One exception for each, as each that is raised gets a traceback of its own.
        trouble = self._trouble(error)
        trouble.__cause__ = self._cause(error)
        self._settle(operation, trouble)

    def _settle(self, operation: _Operation, result: Any) -> None:
        """An operation is done: tells the caller, and those who wait to read."""
        self._waiting_bytes -= operation.size
        if self._last.get(operation.user) is operation:
            del self._last[operation.user]
        if not operation.future.done():
            if isinstance(result, Exception):
                operation.future.set_exception(result)
            else:
                operation.future.set_result(result)
        for reader in operation.readers or ():
            if not reader.done():
                reader.set_result(None)

    # --- reading ---

    async def query(
        self, user: bytes, script: _Script | None, keys: Sequence[bytes], arguments: Sequence[Any]
    ) -> Any:
        """Runs a script, or a command with one key, after the writes of a user that wait."""
        self._begin_read()
        try:
            await self._done(self._last.get(user))
            return await self._read(script, keys, arguments)
        finally:
            self._end_read()

    async def expire(self, stop: int, limit: int) -> tuple[int, list[bytes], list[bytes]]:
        """One round of expiring: whether to go on, what was removed, and users with junk."""
        self._begin_read()
        try:
            waiting = self._queue or self._batch
            await self._done(waiting[-1] if waiting else None)
            # What was removed is known from the reply alone, so it is kept for a second attempt;
            # under a key of its own, as two may expire at once. The next call removes it.
            keys = [self.key("reply:", uuid.uuid4().hex.encode()), self.key("oldest")]
            arrived, self._arrived = self._arrived, None
            if arrived is not None:
                keys.append(arrived)
            prefixes = (self.key("messages:"), self.key("order:"))
            arguments = (1, self._reply_ttl, stop, limit, *prefixes)
            more, removed, junk = await self._read(_EXPIRE, keys, arguments)
            self._arrived = keys[0]
            return more, removed, junk
        finally:
            self._end_read()

    async def _done(self, operation: _Operation | None) -> None:
        """Returns once an operation is done, and all before it, whatever became of them."""
        if operation is None:
            return
        reader: asyncio.Future[None] = self.loop.create_future()
        if operation.readers is None:
            operation.readers = []
        operation.readers.append(reader)
        await reader

    def _begin_read(self) -> None:
        if self.closing is not None:
            raise OfflineStoreError(f"{self._at} is closed")
        self._reads += 1
        self._quiet.clear()

    def _end_read(self) -> None:
        self._reads -= 1
        if self._reads == 0:
            self._quiet.set()

    async def _read(
        self, script: _Script | None, keys: Sequence[bytes], arguments: Sequence[Any]
    ) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                await self._readers.acquire()
        except TimeoutError:
            raise OfflineStoreError(f"{self._at} is too slow: other reads wait for it") from None
        try:
            if script is None:
                return await self._try(*arguments, *keys)
            return await self._run(script, keys, arguments)
        except Exception as error:
            raise self._trouble(error) from self._cause(error)
        finally:
            self._readers.release()

    # --- the server ---

    async def _run(self, script: _Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        from redis.exceptions import NoScriptError

        rest = (len(keys), *keys, *arguments)
        deadline = self.loop.time() + self._timeout
        try:
            return await self._try("EVALSHA", script.sha, *rest, deadline=deadline)
        except NoScriptError:
            # A server that was just started: this makes it known there.
            return await self._try("EVAL", script.text, *rest, deadline=deadline)

    async def _try(self, *command: Any, deadline: float | None = None) -> Any:
        """Runs a command, again if need be, for `timeout` seconds; raises what redis-py raises."""
        from redis.exceptions import ReadOnlyError

        if deadline is None:
            deadline = self.loop.time() + self._timeout
        pause = FIRST_PAUSE
        known: Exception | None = None
        while True:
            if self._closed:
                raise OfflineStoreError(f"{self._at} was closed")
            until = min(self.loop.time() + self._timeout / 2, deadline)
            try:
                async with asyncio.timeout_at(until):
                    return await self._client.execute_command(*command)
            except Exception as error:
                if known is not None and until == deadline and isinstance(error, TimeoutError):
                    # The attempt was cut short: what the one before failed with says more.
                    raise known from None
                if not _passes(error) or self.loop.time() + pause >= deadline:
                    raise
                known = error
                if isinstance(error, ReadOnlyError):
                    # After a failover the name may stand for another server.
                    await self._client.connection_pool.disconnect(inuse_connections=False)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    @property
    def _at(self) -> str:
        return f"Redis at {self._name}"

    def _trouble(self, error: Exception) -> OfflineStoreError:
        if isinstance(error, OfflineStoreError):
            return error
        return OfflineStoreError(f"{self._at}: {self._text(error)}")

    def _text(self, error: Exception) -> str:
        text = str(error) or f"no answer within {self._timeout / 2:g} s"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _cause(self, error: Exception) -> Exception | None:
        # Its own text shows in a traceback.
        hidden = any(secret in str(error) for secret in self._secrets)
        return None if hidden or isinstance(error, OfflineStoreError) else error


def _passes(error: Exception) -> bool:
    """Whether the same command may succeed a little later."""
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    lost = exceptions.ConnectionError, exceptions.TimeoutError, OSError
    changing = exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.TryAgainError
    if isinstance(error, (*lost, *changing)):
        return True
    # Some have no class in redis-py, or not in its older versions. Before version 7 a server puts
    # where in the script an error came up before what it is.
    passing = ("BUSY ", "CLUSTERDOWN ", "MASTERDOWN ", "TRYAGAIN ")
    text = str(error)
    return isinstance(error, exceptions.ResponseError) and (
        text.startswith(passing) or "-READONLY " in text
    )


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


def _encode(text: str) -> bytes:
    # A lone surrogate must not raise: the id may come from a client.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _stored(position: bytes, message_id: bytes, data: bytes) -> StoredMessage:
    number = int(position)
    return StoredMessage(number, _decode(message_id), data, number / 1e6)


def _groups(flat: Sequence[bytes], size: int) -> list[tuple[bytes, ...]]:
    return list(zip(*[iter(flat)] * size, strict=True))
