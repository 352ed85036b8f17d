-- Reads the history of one kept room.
--
-- KEYS: the stream of the room, the position of its newest message.
-- ARGV: the position after which to read ('': the newest messages, without marks), the most entries
-- to return, a new tag, the seconds for which the newest position lives, the most bytes to return.
-- Returns the position of the newest message, 1 if nothing is missing between what was asked for
-- and the entries, else 0, the entries: position and data of each, one after the other; and, if what
-- was asked for is not known while something older is, the name of the data (else ''): it was lost,
-- and not dropped for its age.
--
-- A room of which nothing is known gets a place before its first message, with the time and a new
-- tag: so it is told apart from the place that the room had before its data was lost.

local MARK = 'g 0 0 0\n'
local stream, top = KEYS[1], KEYS[2]
local since, limit, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[5])

local function position_of(entry)
  return entry[1] .. '.' .. string.match(entry[2][2], '^[^ ]*')
end

local function is_older(one, other)
  local time, number = string.match(one, '^(%d+)%-(%d+)')
  local its_time, its_number = string.match(other, '^(%d+)%-(%d+)%.')
  if not its_time then return false end
  if time ~= its_time then return tonumber(time) < tonumber(its_time) end
  return tonumber(number) < tonumber(its_number)
end

-- It is another one with each start, and each time that a replica becomes the master.
local function name_of_data()
  local info = redis.pcall('INFO', 'replication')  -- a publisher may lack the right
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or '-'
end

local newest = redis.call('GETEX', top, 'EX', ARGV[4])
if not newest then
  local entry = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  newest = entry and position_of(entry)
  if not newest then
    local now = redis.call('TIME')
    newest = string.format('%d%03d-0.%s', now[1], math.floor(now[2] / 1000), ARGV[3])
  end
  redis.call('SET', top, newest, 'EX', ARGV[4])
end
if limit == 0 or since == newest then
  return {newest, (since == '' or since == newest) and 1 or 0, {}, ''}
end

local entries, bytes, count = {}, 0, 0

local function take(entry)
  local tag, data = string.match(entry[2][2], '^([^ ]*) (.*)$')
  if since == '' and data == MARK then return end
  entries[#entries + 1] = entry[1] .. '.' .. tag
  entries[#entries + 1] = data
  count, bytes = count + 1, bytes + #data
end

if since == '' then
  local after = '+'
  repeat
    local page = redis.call('XREVRANGE', stream, after, '-', 'COUNT', math.min(limit - count, 50))
    for _, entry in ipairs(page) do
      if bytes > most then break end
      take(entry)
      after = '(' .. entry[1]
    end
  until #page == 0 or count == limit or bytes > most
  local turned = {}
  for i = #entries - 1, 1, -2 do
    turned[#turned + 1] = entries[i]
    turned[#turned + 1] = entries[i + 1]
  end
  return {newest, 1, turned, ''}
end

local id = string.match(since, '^(%d+%-%d+)%.')
local after
local at = id and id ~= '0-0' and redis.call('XRANGE', stream, id, id)[1]
if at and position_of(at) == since then
  after = '(' .. id
else
  -- The message may be the one before the first that is left.
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not first or first[2][3] ~= 'p' or first[2][4] ~= since then
    local oldest = first and (first[2][4] or first[1]) or newest
    return {newest, 0, {}, is_older(oldest, since) and name_of_data() or ''}
  end
  after = '-'
end
repeat
  local page = redis.call('XRANGE', stream, after, '+', 'COUNT', math.min(limit - count, 50))
  for _, entry in ipairs(page) do
    if bytes > most then break end
    take(entry)
    after = '(' .. entry[1]
  end
until #page == 0 or count == limit or bytes > most
return {newest, 1, entries, ''}
