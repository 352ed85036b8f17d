-- Appends messages to the history of one kept room, and publishes them in one envelope.
--
-- KEYS: the stream of the room, the position of its newest message, then the idempotency key of
-- each message that has one.
-- ARGV: the channel, the name of the hub, the tag of this call, the size of the history, the
-- milliseconds for which the stream lives, the seconds for which the newest position lives, the
-- seconds for which idempotency keys live, the digits of a time slot, the milliseconds since the
-- first attempt ('' in the first one). Then two of each message: its entry, and '1' where it has an
-- idempotency key.
-- Returns of each message its position; '=' before it: it was published before, under its key; '?':
-- nobody knows whether the first attempt published it.
--
-- The writes stand in such an order that any first part of them is harmless: an entry that is only
-- in the stream is read from there.

local stream, top = KEYS[1], KEYS[2]
local tag, size = ARGV[3], ARGV[4]
local FIRST = 10
local answers, own = {}, {}

local function position_of(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 't' then return entry[1] .. '.' .. fields[i + 1] end
  end
  return entry[1] .. '.'
end

-- The positions of this call's messages that are in the stream, the newest first; and whether all
-- entries were seen that the first attempt may have made.
local function look_up(age)
  local now = redis.call('TIME')
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - age
  local found, seen, before = {}, 0, '+'
  while true do
    local page = redis.call('XREVRANGE', stream, before, '-', 'COUNT', 100)
    for _, entry in ipairs(page) do
      if tonumber(string.match(entry[1], '^%d+')) < oldest then return found, true end
      local position = position_of(entry)
      if string.sub(position, #entry[1] + 2) == tag then found[#found + 1] = position end
      seen = seen + 1
    end
    -- Where the stream has fewer entries than it may, none was dropped.
    if #page < 100 then return found, seen < tonumber(size) end
    before = '(' .. page[#page][1]
  end
end

-- Answers of messages without a key, in a later attempt.
local found, certain = {}, true
if ARGV[9] ~= '' then
  found, certain = look_up(tonumber(ARGV[9]))
end
local was_published = #found > 0

local before, is_new, last
local envelope = {}

local function append(entry)
  local id = redis.call('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', size, '*',
    'd', entry, 't', tag)
  if not id then
    -- The first entry names the one before it, which is in the stream no more, or the place before
    -- the first message.
    before = redis.call('GET', top) or ('0-0.' .. tag)
    is_new = true
    id = redis.call('XADD', stream, '*', 'd', entry, 't', tag, 'p', before)
  end
  last = id .. '.' .. tag
  envelope[#envelope + 1] = last .. ' ' .. entry
  own[last] = true
  return last
end

local key = 2
local without_key = {}
for i = FIRST, #ARGV, 2 do
  local number = (i - FIRST) / 2 + 1
  if ARGV[i + 1] == '1' then
    key = key + 1
    local known = redis.call('GET', KEYS[key])
    if not known then
      known = append(ARGV[i])
      redis.call('SET', KEYS[key], known, 'EX', ARGV[7])
    elseif own[known] or string.sub(known, -#tag - 1) ~= '.' .. tag then
      known = '=' .. known
    else
      -- The first attempt has published it.
      own[known] = true
    end
    answers[number] = known
  elseif was_published or not certain then
    without_key[#without_key + 1] = number
  else
    answers[number] = append(ARGV[i])
  end
end

if #without_key > 0 then
  local place = 0
  for n = #without_key, 1, -1 do
    repeat place = place + 1 until not (found[place] and own[found[place]])
    answers[without_key[n]] = found[place] or '?'
  end
end

if last then
  local newest = redis.call('SET', top, last, 'EX', ARGV[6], 'GET')
  if not is_new then
    before = newest
    if not before then
      -- The position was lost, the stream was not.
      local entry = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', #envelope + 1)[#envelope + 1]
      before = entry and position_of(entry) or ('0-0.' .. tag)
    end
  end
  -- Once in a slot of time is enough: the stream lives for the length of a slot more than it has to.
  if is_new or string.sub(before, 1, ARGV[8]) ~= string.sub(last, 1, ARGV[8]) then
    redis.call('PEXPIRE', stream, ARGV[5])
  end
  redis.call('PUBLISH', ARGV[1],
    'wsc1 k ' .. ARGV[2] .. ' ' .. before .. ' ' .. #envelope .. '\n' .. table.concat(envelope))
end
return answers
