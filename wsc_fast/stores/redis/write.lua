-- A batch of writes: appends and deletions, in their order, each batch done once.
--
-- `operations.lua` is put before this file.
--
-- KEYS: reply, position, oldest, recent, then messages and order of each user.
-- ARGV: number of the batch, number of the last one whose reply has arrived, seconds to keep the
-- reply, ttl in ms, length of what is before the user id in a key of messages, bytes of messages in
-- the reply, the store's 8 bytes in `recent`, messages that one append drops at most, users that
-- `recent` holds and the seconds that it holds them, operations.
--
-- An append is {user, length of id, length of data, limit, drop_oldest}, a deletion {user, {lengths
-- of ids}}, and one of messages that are too old {user, {lengths of ids}, {positions}}; the user is
-- a number from 1.
--
-- Returns {number, operations done, what there is to say about them: {which, kind, ...}}. An append
-- has nothing to say if it was stored, or was there already, and dropped nothing. Operations that
-- are not done come again: the reply is full. Another number: the batch has not been begun, and this
-- is the reply to an earlier one, which has not arrived.

local MOST_DROPPED = tonumber(ARGV[8])
local RECENT_USERS, RECENT_SECONDS = tonumber(ARGV[9]), tonumber(ARGV[10])

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
