"""The scripts that the server runs, and their names."""

from __future__ import annotations

import hashlib

from wsc_fast.stores.base import MOST_DROPPED

# Users that `recent` holds, and the seconds that it holds them: an `appended` that asks for what is
# further back gets the rest only.
RECENT_USERS, RECENT_SECONDS = 10_000, 3600


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
WRITE = Script(
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
READ = Script(
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
