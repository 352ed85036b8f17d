"""The offline store in Redis or Valkey, for hubs that share one, or have one beside them already.

Rules:

    1. All writes go through one queue and one task, in batches: a batch is one script, run by the
       server as a whole, and one round trip. So the order of the calls is the order in the store,
       and thousands of appends cost as many round trips as the server takes batches.
    2. A batch carries a number, and the server keeps the reply to the last one for a while. Where
       the connection is lost and the outcome unknown, the same batch is sent again: if it had been
       done, it is not done again, and the reply comes from what was kept. A batch that was given up
       and reaches the server after a later one is refused by its number. If it was done, the next
       batch first returns its reply, so that `expire` can report the messages it removed.
    3. Positions are of the server's clock, in microseconds, pushed up to be strictly increasing.
       So they grow on even when the server lost its newest data, and the time at which a message
       was stored is its position.
    4. A script is not always a whole. A server that was killed while it wrote its log may come
       back with the first part of a script's writes (Redis 7, and Valkey before its pull request
       4342, after a second restart), of a batch that nobody was told of. So each script writes in
       an order in which any first part is harmless: a message's user is in `recent` before its id
       is in the order, the id is in the order before it has data, and a user whose messages are in
       an order is in `oldest`, at no later position than the first of them. An id in the order
       without data is passed over, and goes as a message would.
    5. A read waits for the writes of its user that were called before. Reads share batches, too: a
       batch is one script that writes nothing. A message too large for a reply that others share
       is read in a batch of its own. A caller waits for a future and never for the server: a caller
       that is cancelled leaves at once, and breaks no connection.
    6. A batch, and a reply, is bounded in messages and in bytes. The bound in bytes follows the
       line: it shrinks where an answer takes long, and grows where it does not.
    7. A message that is too old is read first, and then removed if it is still there at that
       position. So its content is known here before the server lets go of it.

Keys, below the prefix; an id stands in them as it is, in UTF-8:

    messages:USER   hash: message id -> data
    order:USER      sorted set: message id, by position
    oldest          sorted set: user id, by the position of its oldest message; for `expire`
    recent          sorted set: 8 bytes that name an opened store, then a user id, by the position
                    of what that store appended last for that user; for `appended`
    position        a position that none is beyond
    reply:RANDOM    number and reply of the last batch of one opened store, for an hour

The first three and `position` live for `ttl` seconds after the last append to them.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import math
import os
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from wsc_fast.errors import ConfigError, OfflineStoreError, OfflineStoreFullError
from wsc_fast.log import log
from wsc_fast.stores.base import (
    MOST_DROPPED,
    READ_BYTES,
    PartialPage,
    StoredMessage,
    exists_error,
    within,
)

if TYPE_CHECKING:
    import redis.asyncio

# A batch has at most so many operations (the server serves nobody else while it works on one), and
# its replies hold at most so many messages (neither does the loop while it makes these).
BATCH_OPERATIONS = 500
BATCH_MESSAGES = 2000
# Bytes of a batch of writes, and of messages in the reply to a batch: at first, at least, at most.
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 1 << 16, 1 << 14, 1 << 20
# Bytes that an operation occupies besides its strings, about.
OVERHEAD = 300
# Seconds between attempts: from the first pause, doubling, to the last.
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5
# Message ids in one deletion or question.
CHUNK = 1000
# Users that `recent` holds, and the seconds that it holds them: an `appended` that asks for what is
# further back gets the rest only.
RECENT_USERS, RECENT_SECONDS = 10_000, 3600
# Seconds that the reply to a batch is kept.
REPLY_SECONDS = 3600
# Upper bounds of the settings, in seconds: a hundred years, which the server can still add to its
# clock, and an hour.
MOST_TTL, MOST_TIMEOUT = 100 * 365 * 86400, 3600
# Positions are exact as doubles up to here; that is the year 2255.
LAST_POSITION = 1 << 53


class Script:
    """A script as EVALSHA and EVAL want it."""

    def __init__(self, text: str) -> None:
        self.text = text
        # The name that Redis gives it. The hash protects no secret.
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# The operations of a script, from its last two arguments: MessagePack, and all their strings in
# one. (redis-py takes a microsecond or two for each argument, and the server's MessagePack knows no
# binary strings.)
_OPERATIONS = """
local operations, strings, at = cmsgpack.unpack(ARGV[#ARGV - 1]), ARGV[#ARGV], 1

local function take(length)
  at = at + length
  return string.sub(strings, at - length, at - 1)
end
"""

# KEYS: reply, position, oldest, recent, then messages and order of each user.
# ARGV: number of the batch, number of the last one whose reply has arrived, seconds to keep the
# reply, ttl in ms, length of what is before the user id in a key of messages, bytes of messages in
# the reply, the store's 8 bytes in `recent`, operations.
# An append is {user, length of id, length of data, limit, drop_oldest}, a deletion {user, {lengths
# of ids}}, and one of messages that are too old {user, {lengths of ids}, {positions}}; the user is
# a number from 1.
# Returns {number, operations done, what there is to say about them: {which, kind, ...}}. An append
# has nothing to say if it was stored, or was there already, and dropped nothing. Operations that
# are not done come again: the reply is full. Another number: the batch has not been begun, and this
# is the reply to an earlier one, which has not arrived.
_WRITE = Script(
    _OPERATIONS + f"""
local MOST_DROPPED, RECENT_USERS, RECENT_SECONDS = {MOST_DROPPED}, {RECENT_USERS}, {RECENT_SECONDS}
"""
    """
local number, room = tonumber(ARGV[1]), tonumber(ARGV[6])
local kept = redis.call('GET', KEYS[1])
if kept then
  local kept_number, kept_reply = cmsgpack.unpack(kept)
  if kept_number > number then return redis.error_reply('STALE a later batch has been done') end
  if kept_number == number or kept_number > tonumber(ARGV[2]) then return kept_reply end
end

local said, states, wrote, begun, refused = {}, {}, false, false, nil

-- Wrong types raise here, before anything is written: a script is not rolled back.
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[4])
local last = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
local time = redis.call('TIME')
local position = math.max(time[1] * 1000000 + time[2], last + 1)

local function state_of(index)
  local state = states[index]
  if not state then
    state = {messages = KEYS[3 + 2 * index], order = KEYS[4 + 2 * index]}
    state.name = string.sub(state.messages, ARGV[5] + 1)
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

local function say(...) said[#said + 1] = {...} end

-- The first write of an append: it shows whether the server has memory for more. If it has not,
-- appends are refused, and deletions go on.
local function begin_appends()
  local most = string.format('%.0f', position + #operations)
  local set = redis.pcall('SET', KEYS[2], most, 'PX', ARGV[4])
  if not set.err then
    wrote = true
  elseif string.find(set.err, 'OOM', 1, true) then
    refused = set.err
  else
    -- A replica that is read only, say: this is true for the whole batch.
    return set
  end
end

-- Bounded, for where the limit was lowered or the messages are large: the next appends drop the
-- rest.
local function drop(i, state, limit)
  local dropped, count = {}, 0
  while state.count >= limit and state.count > 0 and count < MOST_DROPPED do
    local oldest = redis.call('ZRANGE', state.order, 0, 0, 'WITHSCORES')
    local old = redis.call('HGET', state.messages, oldest[1])
    if old and count > 0 and #old > room then break end
    redis.call('HDEL', state.messages, oldest[1])
    redis.call('ZREM', state.order, oldest[1])
    if old then
      dropped[#dropped + 1] = oldest[1]
      dropped[#dropped + 1] = oldest[2]
      dropped[#dropped + 1] = old
      room = room - #old
    end
    count = count + 1
    state.count = state.count - 1
    state.changed = true
  end
  if #dropped > 0 then say(i, 'dropped', dropped, state.name) end
end

local function append(i, state, id, data, limit, drop_oldest)
  local held = redis.call('HGET', state.messages, id)
  if held then
    if held ~= data then
      say(i, 'exists', held)
      room = room - #held
    end
    return
  end
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
  drop(i, state, limit)
  local at_position = string.format('%.0f', position)
  if not state.appended then redis.call('ZADD', KEYS[4], at_position, ARGV[7] .. state.name) end
  if state.count == 0 then redis.call('ZADD', KEYS[3], at_position, state.name) end
  state.count = state.count + redis.call('ZADD', state.order, at_position, id)
  redis.call('HSET', state.messages, id, data)
  position = position + 1
  state.appended = true
end

-- Removes messages; where positions are given, those that are still at these.
local function delete(i, state, ids, positions)
  local count, which = 0, {}
  for n, id in ipairs(ids) do
    if not positions or tonumber(redis.call('ZSCORE', state.order, id)) == positions[n] then
      redis.call('HDEL', state.messages, id)
      if redis.call('ZREM', state.order, id) == 1 then
        count = count + 1
        which[count] = n
      end
    end
  end
  state.count = state.count - count
  state.changed, wrote = true, true
  if positions then say(i, 'expired', which) else say(i, 'deleted', count) end
end

local function operate(i, operation)
  local user, lengths, more, limit, drop_oldest = unpack(operation)
  local state = state_of(user)
  if type(more) == 'number' then
    local id, data = take(lengths), take(more)
    if not state.trouble then return append(i, state, id, data, limit, drop_oldest) end
    say(i, 'trouble', state.trouble)
    return
  end
  local ids = {}
  for n, id_length in ipairs(lengths) do ids[n] = take(id_length) end
  if not state.trouble then
    delete(i, state, ids, more)
  elseif more then
    -- Otherwise each search for what is too old would find this user again.
    redis.call('ZREM', KEYS[3], state.name)
    wrote = true
    say(i, 'junk', state.trouble)
  else
    say(i, 'trouble', state.trouble)
  end
end

local done = 0
for i, operation in ipairs(operations) do
  if room <= 0 then break end
  local failure = operate(i, operation)
  if failure then return failure end
  done = i
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
    redis.call('PEXPIRE', state.messages, ARGV[4])
    redis.call('PEXPIRE', state.order, ARGV[4])
  end
end
if begun and not refused then
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -RECENT_USERS - 1)
  local forgotten = string.format('%.0f', (time[1] - RECENT_SECONDS) * 1000000)
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', forgotten)
  redis.call('EXPIRE', KEYS[4], RECENT_SECONDS)
end
local reply = {number, done, said}
if wrote then redis.call('SET', KEYS[1], cmsgpack.pack(number, reply), 'EX', ARGV[3]) end
return reply
"""
)

# KEYS: position, oldest, recent, then messages and order of each user.
# ARGV: the prefixes of a user's keys of messages and of order (these keys are not all in KEYS, as
# those of users with old messages become known here; a cluster has all in one slot), bytes and
# number of messages in the reply, whether the first one comes whatever its size, operations.
# An operation is {kind, user, {lengths of strings}, ...}, the user a number from 1:
#   read      ..., position to begin behind, limit, bytes
#             -> more, position to go on behind, {position, id, data, ...}
#   old       ..., position to stop before, limit, bytes
#             -> more, {user, id, position, data or nil, ...}, users whose `oldest` is wrong
#   count     -> number
#   missing   -> numbers of the strings, which are message ids
#   appended  ..., position to begin behind, limit; the string is the store's own 8 bytes
#             -> position to go on behind, {users}
# `more` says that this reply has no room for the next message, which the operation would take.
# Returns bytes of messages, and for each operation {'ok', ...}, {'trouble', text}, {'later'}: there
# was no room in this reply, or {'alone'}: its first message is larger than such a reply.
_READ = Script(
    _OPERATIONS
    + """
local all_bytes, all_messages = tonumber(ARGV[3]), tonumber(ARGV[4])
local bytes_left, messages_left, oversize = all_bytes, all_messages, ARGV[5] == '1'
local reply = {}

-- A page of an operation: its own bounds, and its share of what the reply has room for.
local function page_of(limit, bytes, others)
  return {
    limit = limit, bytes = bytes, count = 0, size = 0, items = {},
    most = math.max(1, math.floor(messages_left / others)), share = bytes_left / others
  }
end

-- Whether the next message belongs to a page; otherwise why not.
local function fits(page, size)
  if page.count >= page.limit then return false, 'own' end
  if page.size >= page.bytes then return false, 'own' end
  if page.count == 0 then
    if size > all_bytes then
      if not oversize then return false, 'alone' end
    elseif size > bytes_left or messages_left < 1 then
      return false, 'later'
    end
  elseif page.count >= page.most or page.size + size > page.share then
    return false, 'share'
  end
  page.count, page.size = page.count + 1, page.size + size
  bytes_left, messages_left = bytes_left - size, messages_left - 1
  return true
end

local function add(page, ...)
  for _, item in ipairs({...}) do page.items[#page.items + 1] = item end
end

local function read(page, keys, operation)
  local behind = string.format('%.0f', operation[4])
  for _ = 1, 10 do
    local wanted = math.min(page.limit - page.count + 1, page.most + 1, 1000)
    local some = redis.pcall(
      'ZRANGEBYSCORE', keys.order, '(' .. behind, '+inf', 'WITHSCORES', 'LIMIT', 0, wanted
    )
    if some.err then return {'trouble', some.err} end
    for i = 1, #some, 2 do
      local data = redis.pcall('HGET', keys.messages, some[i])
      if type(data) == 'table' then return {'trouble', data.err} end
      -- Without data (it was evicted, say) there is nothing to deliver.
      if data then
        local fit, why = fits(page, #data)
        if why == 'alone' or why == 'later' then return {why} end
        if not fit then return {'ok', why == 'own' and 0 or 1, behind, page.items} end
        add(page, some[i + 1], some[i], data)
      end
      behind = some[i + 1]
    end
    if #some < 2 * wanted then return {'ok', 0, behind, page.items} end
  end
  return {'ok', 1, behind, page.items}
end

-- A list of users by the position of what is next of them; `from` is where it begins.
local function put_in_order(list, from, user)
  local low, high = from, #list + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if list[middle].position < user.position then low = middle + 1 else high = middle end
  end
  table.insert(list, low, user)
end

local function old(page, keys, operation)
  local users, wrong, looked = {}, {}, 0
  local stop = '(' .. string.format('%.0f', operation[4])
  local heads = redis.pcall(
    'ZRANGEBYSCORE', KEYS[2], '-inf', stop, 'WITHSCORES', 'LIMIT', 0, 1000
  )
  if heads.err then return {'trouble', heads.err} end
  for i = 1, #heads, 2 do
    users[#users + 1] = {name = heads[i], position = tonumber(heads[i + 1]), behind = '-inf'}
  end
  local function answer(more) return {'ok', more, page.items, wrong} end
  local from = 1
  while users[from] do
    local user, following = users[from], users[from + 1]
    from = from + 1
    -- Of this user as far as the next user's oldest message: the oldest of all go first.
    local upto = following and string.format('%.0f', following.position) or stop
    local messages, order = ARGV[1] .. user.name, ARGV[2] .. user.name
    local found = redis.pcall(
      'ZRANGEBYSCORE', order, user.behind, upto, 'WITHSCORES', 'LIMIT', 0, 1000
    )
    if found.err then
      wrong[#wrong + 1] = user.name
    else
      for i = 1, #found, 2 do
        local data = redis.pcall('HGET', messages, found[i])
        if type(data) == 'string' then
          local fit, why = fits(page, #data)
          if why == 'alone' or why == 'later' then return {why} end
          if not fit then return answer(why == 'own' and 0 or 1) end
        else
          -- An id without data (they were evicted, say) goes, and there is nothing to tell.
          data = false
        end
        add(page, user.name, found[i], found[i + 1], data)
        user.behind = '(' .. found[i + 1]
      end
      local head = redis.call(
        'ZRANGEBYSCORE', order, user.behind, stop, 'WITHSCORES', 'LIMIT', 0, 1
      )
      if head[1] then
        user.position = tonumber(head[2])
        put_in_order(users, from, user)
      elseif user.behind == '-inf' then
        -- Its keys have reached their ttl, or `oldest` is before its oldest message.
        wrong[#wrong + 1] = user.name
      end
    end
    looked = looked + 1 + #found / 2
    if looked > 4000 then return answer(1) end
  end
  -- There may be more users.
  return answer(#heads == 2000 and 1 or 0)
end

local function count(_, keys)
  local found = redis.pcall('ZCARD', keys.order)
  if type(found) == 'table' then return {'trouble', found.err} end
  return {'ok', found}
end

local function missing(_, keys, _, ids)
  local which = {}
  for n, id in ipairs(ids) do
    local found = redis.pcall('HEXISTS', keys.messages, id)
    if type(found) == 'table' then return {'trouble', found.err} end
    if found == 0 then which[#which + 1] = n end
  end
  return {'ok', which}
end

local function appended(_, _, operation, own)
  local behind, limit, users, known = operation[4], operation[5], {}, {}
  if behind < 0 then
    local newest = redis.pcall('GET', KEYS[1])
    if type(newest) == 'table' then return {'trouble', newest.err} end
    return {'ok', string.format('%.0f', tonumber(newest or 0) or 0), users}
  end
  behind = string.format('%.0f', behind)
  while true do
    local some = redis.pcall(
      'ZRANGEBYSCORE', KEYS[3], '(' .. behind, '+inf', 'WITHSCORES', 'LIMIT', 0, 1000
    )
    if some.err then return {'trouble', some.err} end
    for i = 1, #some, 2 do
      local name = string.sub(some[i], 9)
      if string.sub(some[i], 1, 8) ~= own[1] and not known[name] then
        if #users == limit then return {'ok', behind, users} end
        users[#users + 1], known[name] = name, true
      end
      behind = some[i + 1]
    end
    if #some < 2000 then return {'ok', behind, users} end
  end
end

local kinds = {read = read, old = old, count = count, missing = missing, appended = appended}
for i, operation in ipairs(operations) do
  local kind, index, lengths, _, limit, bytes = unpack(operation)
  local keys = {messages = KEYS[2 + 2 * index], order = KEYS[3 + 2 * index]}
  local own = {}
  for n, length in ipairs(lengths) do own[n] = take(length) end
  local page = bytes and page_of(limit, bytes, #operations - i + 1)
  reply[i] = kinds[kind](page, keys, operation, own)
end
return {all_bytes - bytes_left, reply}
"""
)


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
            message_id: kept once: the same id and data of the same user again change nothing.
            data: the message as JSON.
            limit: of messages per user.
            drop_oldest: what to do at the limit: drop the oldest, or refuse this one.

        Returns:
            asyncio.Future[list[StoredMessage]]: of what was dropped for it.

        Raises:
            OfflineStoreFullError: (awaited) at the limit, without `drop_oldest`.
            MessageExistsError: (awaited) the id is taken by other data.
            OfflineStoreError: (awaited) the message is not known to be stored.
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
        """The next messages of a user, in order; see `OfflineStore.read`.

        Args:
            user_id: whose messages.
            after: the position behind which to begin.
            limit: how many at most.
            max_bytes: the message with which the data reach so many bytes is the last one.

        Returns:
            list[StoredMessage]: also those whose `append` has been called and is not done; a
                PartialPage where more follow, as over a slow line.

        Raises:
            OfflineStoreError: they cannot be read.
        """
        return await self._opened().read(encode(user_id), after, limit, max_bytes)

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
        """How many messages are kept for a user.

        Args:
            user_id: whose messages.

        Returns:
            int: the number, with those whose `append` has been called and is not done.

        Raises:
            OfflineStoreError: they cannot be counted.
        """
        (found,) = await self._opened().ask(Read("count", encode(user_id)))
        return int(found)

    async def missing(self, user_id: str, message_ids: Collection[str]) -> list[str]:
        """Which of these messages are not in the store; see `SharedOfflineStore.missing`.

        Args:
            user_id: whose messages.
            message_ids: which.

        Returns:
            list[str]: ids; one whose `append` has been called and is not done counts as there.

        Raises:
            OfflineStoreError: nothing is known about them.
        """
        user = encode(user_id)
        session = self._opened()
        missing: list[str] = []
        for chunk in _chunks(list(message_ids)):
            (which,) = await session.ask(Read("missing", user, [encode(each) for each in chunk]))
            missing += [chunk[number - 1] for number in which]
        return missing

    async def appended(self, after: int, limit: int = 1000) -> tuple[int, list[str]]:
        """For whom other opened stores have stored messages; see `SharedOfflineStore.appended`.

        The server remembers the newest 10,000 pairs of store and user, for an hour. A caller that
        has not asked for so long gets the users that are left.

        Args:
            after: the position behind which to look, as the last call returned it; -1 asks for the
                newest position only.
            limit: how many users at most.

        Returns:
            tuple[int, list[str]]: the position to look behind next, and the ids of the users, each
                once.

        Raises:
            OfflineStoreError: they cannot be read.
        """
        return await self._opened().appended(after, limit)

    async def expire(
        self, before: float, limit: int = 1000, *, max_bytes: int = READ_BYTES
    ) -> list[tuple[str, StoredMessage]]:
        """Removes what was stored before a time, of all users; see `OfflineStore.expire`.

        Args:
            before: seconds since the epoch, on the server's clock.
            limit: how many to remove at most, the oldest first.
            max_bytes: how many bytes of data to remove at most, but for a first message. Over a
                slow line fewer go.

        Returns:
            list[tuple[str, StoredMessage]]: user id and message of each. First come those that an
                earlier call removed, of `expire` or of `append`, without its caller being told: the
                reply was lost for as long as it was waited for, or the caller was cancelled. These
                may have been stored after `before`.

        Raises:
            OfflineStoreError: nothing is known to be removed.
        """
        stop = round(min(before * 1e6, LAST_POSITION)) if before > 0 else 0
        removed = await self._opened().expire(stop, limit, max_bytes)
        return [(decode(user), message) for user, message in removed]

    def _opened(self) -> Session:
        if self._session is None:
            raise OfflineStoreError(f"{self!r} is not open")
        return self._session


class Operation:
    """A call that waits for the server, or that the server is working on.

    Attributes:
        user: its id.
        strings: that go to the server.
        size: bytes of memory, about.
        born: when it was called.
        future: the caller's, who may cancel it.
        reads: of the same user, which wait until it is done, whatever becomes of it.
    """

    __slots__ = ("born", "future", "reads", "size", "strings", "user")

    def __init__(self, user: bytes, strings: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self.user = user
        self.strings = strings
        self.size = OVERHEAD + len(user) + sum(map(len, strings)) + 50 * len(strings)
        self.born = loop.time()
        self.future: asyncio.Future[Any] = loop.create_future()
        self.reads: list[Read] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(string) for string in self.strings]

    def packed(self, user: int) -> tuple[Any, ...]:
        """What goes to the script, with the number of the user."""
        return user, self.lengths


class Append(Operation):
    """A message to keep."""

    __slots__ = ("drop_oldest", "limit")

    def __init__(
        self, user: bytes, message_id: bytes, data: bytes, limit: int, drop_oldest: bool
    ) -> None:
        super().__init__(user, (message_id, data))
        self.limit = limit
        self.drop_oldest = drop_oldest

    def packed(self, user: int) -> tuple[Any, ...]:
        return user, *self.lengths, self.limit, self.drop_oldest


class Delete(Operation):
    """Message ids to remove."""

    __slots__ = ()


class Expire(Operation):
    """Messages to remove because they are too old, if they are still where they were read.

    Without messages it mends what `oldest` says of its user.
    """

    __slots__ = ("messages", "positions")

    def __init__(self, user: bytes, rows: Sequence[Row]) -> None:
        super().__init__(user, [row.id for row in rows])
        self.positions = [int(row.position) for row in rows]
        self.messages = [row.message for row in rows]

    def packed(self, user: int) -> tuple[Any, ...]:
        return user, self.lengths, self.positions

    def removed(self, which: Iterable[int]) -> list[StoredMessage]:
        """The messages, by the numbers that the script returned."""
        messages = [self.messages[number - 1] for number in which]
        return [message for message in messages if message is not None]


class Row(msgspec.Struct):
    """A message that is too old, as it was read. It has no data if these were evicted."""

    user: bytes
    id: bytes
    position: bytes
    data: bytes | None

    @property
    def message(self) -> StoredMessage | None:
        return None if self.data is None else stored(self.position, self.id, self.data)


class Read(Operation):
    """A question; `kind` and `arguments` are those of the script."""

    __slots__ = ("arguments", "kind")

    def __init__(
        self,
        kind: str,
        user: bytes = b"",
        strings: Sequence[bytes] = (),
        arguments: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(user, strings)
        self.kind = kind
        self.arguments = arguments

    def packed(self, user: int) -> tuple[Any, ...]:
        return self.kind, user, self.lengths, *self.arguments


# As a result: the operation waits again, in front of its queue; or another lane has taken it.
LATER, ELSEWHERE = object(), object()


class Pace:
    """How many bytes go over the line at a time: as many as take little of an attempt's time.

    Attributes:
        bytes: the number.
        slow: seconds beyond which an answer takes long.
    """

    def __init__(self, slow: float) -> None:
        self.bytes = FIRST_BYTES
        self.slow = slow

    def took(self, seconds: float) -> None:
        """An attempt is over."""
        if seconds > self.slow:
            self.bytes = max(LEAST_BYTES, self.bytes // 4)

    def carried(self, size: int, seconds: float) -> None:
        """So many bytes came or went."""
        if seconds <= self.slow and 2 * size >= self.bytes:
            self.bytes = min(MOST_BYTES, 2 * self.bytes)


class Owner(Protocol):
    """What a lane needs of the session that it belongs to."""

    loop: asyncio.AbstractEventLoop
    timeout: float

    def fail(self, operation: Operation, error: Exception) -> None:
        """An operation has failed."""

    def settle(self, operation: Operation, result: Any) -> None:
        """An operation is done."""


class Lane:
    """A queue, and the task that has the server do what is in it, one batch after the other."""

    def __init__(
        self,
        owner: Owner,
        send: Callable[[list[Any]], Awaitable[list[Any]]],
        operations: int = BATCH_OPERATIONS,
        pace: Pace | None = None,
    ) -> None:
        self.queue: deque[Any] = deque()
        self.batch: list[Any] = []  # being sent
        self._owner = owner
        self._send = send
        self._operations = operations
        self._pace = pace
        self._wake = asyncio.Event()
        self._ending = False
        self._task = owner.loop.create_task(self._run())

    def put(self, operation: Operation) -> None:
        self.queue.append(operation)
        self._wake.set()

    async def finish(self) -> None:
        """Returns once all is done; nothing may be put in any more."""
        self._ending = True
        self._wake.set()
        await self._task

    def drop(self) -> list[Operation]:
        """Ends the task, with nothing done about what is left, which it returns."""
        # The task may swallow the cancellation, in redis-py on Python 3.11: then it ends by this.
        self._ending = True
        self._wake.set()
        self._task.cancel()
        left = [*self.batch, *self.queue]
        self.batch, self.queue = [], deque()
        return left

    async def _run(self) -> None:
        while self.queue or not self._ending:
            if not self.queue:
                self._wake.clear()
                await self._wake.wait()
            elif batch := self._take():
                await self._do(batch)

    def _take(self) -> list[Operation]:
        batch: list[Operation] = []
        most = MOST_BYTES if self._pace is None else self._pace.bytes
        size = 0
        queue = self.queue
        while queue and len(batch) < self._operations:
            operation = queue[0]
            if batch and size + operation.size > most:
                break
            queue.popleft()
            # Nobody waits for a read that was cancelled. A write is done all the same.
            if not (isinstance(operation, Read) and operation.future.done()):
                batch.append(operation)
                size += operation.size
        return batch

    async def _do(self, batch: list[Operation]) -> None:
        self.batch = batch
        try:
            results = await self._send(batch)
        except Exception as error:
            self.batch = []
            for operation in batch:
                self._owner.fail(operation, error)
            await self._fail_old(error)
            return
        self.batch = []
        answered = list(zip(batch, results, strict=True))
        self.queue.extendleft(each for each, result in reversed(answered) if result is LATER)
        for operation, result in answered:
            if result is not LATER and result is not ELSEWHERE:
                self._owner.settle(operation, result)

    async def _fail_old(self, error: Exception) -> None:
        """After a batch has failed: fails all that has waited for as long as a batch is tried."""
        count = 0
        before = self._owner.loop.time() - self._owner.timeout
        while self.queue and self.queue[0].born <= before:
            self._owner.fail(self.queue.popleft(), error)
            count += 1
            if count % BATCH_OPERATIONS == 0:
                # The loop has others to serve, too.
                await asyncio.sleep(0)


class Connection:
    """The client of redis-py, the patience with which commands are tried, and what errors may say.

    Attributes:
        client: of redis-py.
        at: the server, as errors name it.
        stopped: set for the end: no command is tried again.
    """

    def __init__(
        self, client: redis.asyncio.Redis, name: str, secrets: Sequence[str], timeout: float
    ) -> None:
        self.client: Any = client  # redis-py types half of it
        self.at = f"Redis at {name}"
        self.stopped = False
        self._loop = asyncio.get_running_loop()
        self._secrets = secrets
        self._timeout = timeout

    async def run(self, script: Script, command: Callable[[], tuple[Any, ...]], pace: Pace) -> Any:
        """Runs a script; `command` makes its keys and arguments anew for each attempt."""
        from redis.exceptions import NoScriptError

        deadline = self._loop.time() + self._timeout
        try:
            return await self.attempt(lambda: ("EVALSHA", script.sha, *command()), pace, deadline)
        except NoScriptError:
            # A server that was just started: this makes it known there.
            return await self.attempt(lambda: ("EVAL", script.text, *command()), pace, deadline)

    async def attempt(
        self,
        command: Callable[[], tuple[Any, ...]],
        pace: Pace,
        deadline: float | None = None,
    ) -> Any:
        """Runs a command, again if need be, for `timeout` seconds; raises what redis-py raises."""
        from redis.exceptions import ReadOnlyError

        if deadline is None:
            deadline = self._loop.time() + self._timeout
        pause = FIRST_PAUSE
        known: Exception | None = None
        while True:
            if self.stopped:
                raise OfflineStoreError(f"{self.at} was closed")
            began = self._loop.time()
            until = min(began + self._timeout / 2, deadline)
            try:
                async with asyncio.timeout_at(until):
                    return await self.client.execute_command(*command())
            except Exception as error:
                if known is not None and until == deadline and isinstance(error, TimeoutError):
                    # The attempt was cut short: what the one before failed with says more.
                    raise known from None
                if not _passes(error) or self._loop.time() + pause >= deadline:
                    raise
                known = error
                if isinstance(error, ReadOnlyError):
                    # After a failover the name may stand for another server.
                    await self.client.connection_pool.disconnect(inuse_connections=False)
            finally:
                pace.took(self._loop.time() - began)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def close(self) -> None:
        """Disconnects; what fails about that is only logged."""
        try:
            await self.client.aclose(close_connection_pool=True)
        except Exception as error:
            log.debug("%s: %s", self.at, self._text(error))

    def trouble(self, error: Exception) -> OfflineStoreError:
        """What is reported for an error: a new one each time, unless it is an OfflineStoreError."""
        if isinstance(error, OfflineStoreError):
            return error
        trouble = OfflineStoreError(f"{self.at}: {self._text(error)}")
        # The text of a cause shows in a traceback. Without a cause, the context does not show.
        hidden = any(secret in str(error) for secret in self._secrets)
        trouble.__cause__ = None if hidden else error
        return trouble

    def _text(self, error: Exception) -> str:
        text = str(error) or f"no answer within {self._timeout / 2:g} s"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class Session:
    """A store from `open` to `close`: its connection and its lanes."""

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        ttl: float,
        max_waiting_bytes: int,
        timeout: float,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.closing: asyncio.Task[None] | None = None
        self.timeout = timeout
        self.connection = connection
        self._at = connection.at
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
        self.opening = self.loop.create_task(self._open())
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
        keys, packed, strings = self._packed(batch)
        keys = [self._reply_key, *keys]
        began = self.loop.time()

        def command() -> tuple[Any, ...]:
            prefix = len(self.key("messages:"))
            bounds = (REPLY_SECONDS, self._ttl_ms, prefix, MOST_BYTES, self._origin)
            return len(keys), *keys, number, self._heard, *bounds, packed, strings

        try:
            answer = await self.connection.run(_WRITE, command, self._write_pace)
            if answer[0] != number:
                self._hear(*answer)
                answer = await self.connection.run(_WRITE, command, self._write_pace)
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

    def _packed(self, batch: Sequence[Operation]) -> tuple[list[bytes], bytes, bytes]:
        """The keys that both scripts take, the operations in MessagePack, and their strings."""
        users: dict[bytes, int] = {}
        packed = [each.packed(users.setdefault(each.user, len(users) + 1)) for each in batch]
        keys = [*map(self.key, ("position", "oldest", "recent"))]
        for name in users:
            keys += (self.key("messages:", name), self.key("order:", name))
        strings = b"".join(string for each in batch for string in each.strings)
        return keys, msgspec.msgpack.encode(packed), strings

    def _results(self, batch: list[Operation], done: int, said: list[Any]) -> list[Any]:
        """What each operation of a batch returns, or raises."""
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
        """What the script says about an operation that it cannot do."""
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
        keys, packed, strings = self._packed(batch)
        began = self.loop.time()

        def command() -> tuple[Any, ...]:
            prefixes = (self.key("messages:"), self.key("order:"))
            bounds = (pace.bytes, BATCH_MESSAGES, int(oversize))
            return len(keys), *keys, *prefixes, *bounds, packed, strings

        size, answers = await self.connection.run(_READ, command, pace)
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


def _passes(error: Exception) -> bool:
    """Whether the same command may succeed a little later."""
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False
    lost = exceptions.ConnectionError, exceptions.TimeoutError, OSError
    changing = exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.TryAgainError
    if isinstance(error, (*lost, *changing)):
        return True
    # Some have no class in redis-py, or not in its older versions. Before version 7 a server begins
    # the text of an error with the place in the script where it came up.
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


def encode(text: str) -> bytes:
    # A lone surrogate must not raise: the id may come from a client.
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def bounded(number: int) -> int:
    """A number that the scripts count with exactly."""
    return max(-LAST_POSITION, min(number, LAST_POSITION))


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]


def stored(position: bytes, message_id: bytes, data: bytes) -> StoredMessage:
    number = int(position)
    return StoredMessage(number, decode(message_id), data, number / 1e6)


def dropped(flat: Sequence[bytes]) -> list[StoredMessage]:
    """What an append dropped, as the script returns it."""
    return [stored(position, name, data) for name, position, data in groups(flat, 3)]


def groups(flat: Sequence[bytes], size: int) -> list[tuple[bytes, ...]]:
    return list(zip(*[iter(flat)] * size, strict=True))
