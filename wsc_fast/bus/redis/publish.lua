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
local FIRST = 11
local answers = {}

-- A place before the first message, of this moment. The message may get the same id, and so the tag
-- is another one.
local function new_place()
  local now = run('TIME')
  return string.format('%d%03d-0.%s0', now[1], math.floor(now[2] / 1000), tag)
end

-- Of messages with keys, and of a later attempt: the arguments that are not appended, and the key of
-- each that has one. Most calls have neither.
local skipped, key_of

if ARGV[10] ~= '' or ARGV[9] ~= '' then
  skipped, key_of = {}, {}
  -- The positions of this call's messages that are in the stream, the newest first; and whether all
  -- were seen that an earlier attempt may have made.
  local function look_up(age)
    local now = run('TIME')
    local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - age
    local found, seen, from = {}, 0, '+'
    while true do
      local page = run('XREVRANGE', stream, from, '-', 'COUNT', 100)
      for _, entry in ipairs(page) do
        if tonumber(string.match(entry[1], '^%d+')) < oldest then return found, true end
        if string.match(entry[2][2], '^[^ ]*') == tag then
          found[#found + 1] = entry[1] .. '.' .. tag
        end
        seen = seen + 1
        from = '(' .. entry[1]
      end
      -- Where the stream is not full, nothing of it was dropped.
      if #page < 100 then return found, seen < tonumber(size) end
    end
  end
  local found, certain = {}, true
  if ARGV[9] ~= '' then found, certain = look_up(ARGV[9]) end

  local own, unknown, first_with, key = {}, {}, {}, 2
  for i = FIRST, #ARGV do
    local number = i - FIRST + 1
    if string.sub(ARGV[10], number, number) == '1' then
      key = key + 1
      key_of[i] = KEYS[key]
      local known = run('GET', KEYS[key])
      skipped[i] = known or first_with[KEYS[key]]
      if not known then
        -- The second of two messages under one key gets the answer of the first.
        first_with[KEYS[key]] = first_with[KEYS[key]] or number
      elseif own[known] or string.sub(known, -#tag - 1) ~= '.' .. tag then
        answers[number] = '=' .. known
      else
        -- An earlier attempt has published it.
        answers[number] = known
        own[known] = true
      end
    elseif #found > 0 or not certain then
      skipped[i] = true
      unknown[#unknown + 1] = number
    end
  end
  -- Messages without a key are those of the earlier attempt that no key names, the newest first.
  local place = 0
  for n = #unknown, 1, -1 do
    repeat place = place + 1 until not (found[place] and own[found[place]])
    answers[unknown[n]] = found[place] or '?'
  end
end

local envelope, count = {}, 0
local before, is_new, last
for i = FIRST, #ARGV do
  if not (skipped and skipped[i]) then
    local id = run('XADD', stream, 'NOMKSTREAM', 'MAXLEN', '~', size, '*', 'm', ARGV[i])
    if not id then
      -- The first one names the one before it, which is in the stream no more, or the place before
      -- the first message.
      before = run('GET', top) or new_place()
      is_new = true
      id = run('XADD', stream, '*', 'm', ARGV[i], 'p', before)
    end
    last = id .. '.' .. tag
    answers[i - FIRST + 1] = last
    count = count + 1
    envelope[count] = id .. '.' .. ARGV[i]
  end
end

if key_of then
  for i, key in pairs(key_of) do
    if not skipped[i] then
      run('SET', key, answers[i - FIRST + 1], 'EX', ARGV[7])
    elseif not answers[i - FIRST + 1] then
      answers[i - FIRST + 1] = '=' .. answers[skipped[i]]
    end
  end
end

if last then
  local newest = run('SET', top, last, 'EX', ARGV[6], 'GET')
  if not is_new then
    before = newest
    if not before then
      -- The position was lost, the stream was not.
      local entry = run('XREVRANGE', stream, '+', '-', 'COUNT', count + 1)[count + 1]
      before = entry and (entry[1] .. '.' .. string.match(entry[2][2], '^[^ ]*')) or new_place()
    end
  end
  -- Once in a slot of time is enough: the stream lives for the length of a slot more than it has to.
  if is_new or string.sub(before, 1, ARGV[8]) ~= string.sub(last, 1, ARGV[8]) then
    run('PEXPIRE', stream, ARGV[5])
  end
  run('PUBLISH', ARGV[1],
    'wsc1 k ' .. ARGV[2] .. ' ' .. before .. ' ' .. count .. '\n' .. table.concat(envelope))
end
return answers
