-- Appends messages to the history of one kept room, and publishes them in one envelope.
--
-- KEYS: the stream of the room, the position of its newest message, then the idempotency key of
-- each message that has one.
-- ARGV: 1 the channel, 2 the name of the hub, 3 the tag of this call, 4 the size of the history, 5
-- the milliseconds for which the stream lives, 6 the seconds for which the newest position lives, 7
-- the seconds for which idempotency keys live, 8 the digits of a time slot, 9 the milliseconds since
-- the first attempt ('' in the first one), 10 a digit of each message, 1 where it has an idempotency
-- key ('' where none has one). Then each message: the tag, a space, the entry.
-- Returns of each message its position; '=' before it: it was published before, under its key; '?':
-- nobody knows whether the first attempt published it.
--
-- The writes stand in such an order that any first part of them is harmless: a message that is only
-- in the stream is read from there.

local run = redis.call
local stream, top, tag, size = KEYS[1], KEYS[2], ARGV[3], ARGV[4]
local keyed, later = ARGV[10], ARGV[9] ~= ''
local FIRST = 11

local function position_of(entry)
  return entry[1] .. '.' .. string.match(entry[2][2], '^[^ ]*')
end

-- The messages of an earlier attempt, in a later one.
local found, certain, own = {}, true, {}
if later then
  local now = run('TIME')
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[9]
  local seen, before, page = 0, '+'
  repeat
    page = run('XREVRANGE', stream, before, '-', 'COUNT', 100)
    for _, entry in ipairs(page) do
      if tonumber(string.match(entry[1], '^%d+')) < oldest then
        oldest = nil
        break
      end
      local position = position_of(entry)
      if position == entry[1] .. '.' .. tag then found[#found + 1] = position end
      seen = seen + 1
      before = '(' .. entry[1]
    end
  until not oldest or #page < 100
  -- Where the stream is not full, nothing of it was dropped.
  certain = not oldest or seen < tonumber(size)
end

local answers, envelope, unknown = {}, {}, {}
local before, is_new, last
local key = 2
for i = FIRST, #ARGV do
  local number = i - FIRST + 1
  local known
  local has_key = keyed ~= '' and string.sub(keyed, number, number) == '1'
  if has_key then
    key = key + 1
    known = run('GET', KEYS[key])
    if known then
      if own[known] or string.sub(known, -#tag - 1) ~= '.' .. tag then
        answers[number] = '=' .. known
      else
        -- An earlier attempt has published it.
        answers[number] = known
        own[known] = true
      end
    end
  elseif later and (#found > 0 or not certain) then
    unknown[#unknown + 1] = number
    known = true
  end
  if not known then
    local id = run('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', size, '*', 'm', ARGV[i])
    if not id then
      -- The first one names the one before it, which is in the stream no more, or the place before
      -- the first message.
      before = run('GET', top) or ('0-0.' .. tag)
      is_new = true
      id = run('XADD', stream, '*', 'm', ARGV[i], 'p', before)
    end
    last = id .. '.' .. tag
    answers[number] = last
    envelope[#envelope + 1] = id .. '.' .. ARGV[i]
    if has_key then
      own[last] = true
      run('SET', KEYS[key], last, 'EX', ARGV[7])
    end
  end
end

-- Messages without a key are those of the first attempt that no key names, the newest first.
local place = 0
for n = #unknown, 1, -1 do
  repeat place = place + 1 until not (found[place] and own[found[place]])
  answers[unknown[n]] = found[place] or '?'
end

if last then
  local newest = run('SET', top, last, 'EX', ARGV[6], 'GET')
  if not is_new then
    before = newest
    if not before then
      -- The position was lost, the stream was not.
      local entry = run('XREVRANGE', stream, '+', '-', 'COUNT', #envelope + 1)[#envelope + 1]
      before = entry and position_of(entry) or ('0-0.' .. tag)
    end
  end
  -- Once in a slot of time is enough: the stream lives for the length of a slot more than it has to.
  if is_new or string.sub(before, 1, ARGV[8]) ~= string.sub(last, 1, ARGV[8]) then
    run('PEXPIRE', stream, ARGV[5])
  end
  run('PUBLISH', ARGV[1],
    'wsc1 k ' .. ARGV[2] .. ' ' .. before .. ' ' .. #envelope .. '\n' .. table.concat(envelope))
end
return answers
