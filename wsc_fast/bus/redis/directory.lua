-- Presence: the leases of hubs, and which users are connected to them and in which rooms.
--
-- ARGV: 1 what to do, 2 the prefix of all keys, 3 the incarnation that asks, 4 the number of its
-- connection; then as each part below says. An incarnation is one life of a hub at this server. Its
-- lease n:INCARNATION holds the number of the connection that may write. So a call that was sent
-- over a connection given up, or by a hub that was frozen for too long, changes nothing: LEASE is
-- the answer.
--
-- A user is told to be present exactly while he has a field in p:{room}, or a key u:{user}. An empty
-- value in the room, and an empty field of the user, stand for one who has left and may be back
-- within the grace. Leaves that are to be told stand in `grace`, by time.

local run = redis.call
local WHAT, P, I, NUMBER = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local PAGE = 200

local function now()
  local time = run('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function lives(incarnation)
  return run('EXISTS', P .. 'n:' .. incarnation) == 1
end

local function holds_lease()
  local value = run('GET', P .. 'n:' .. I)
  return value and string.match(value, '^%d+') == NUMBER
end

-- The hub of an incarnation. Two incarnations of one hub may be there for a moment.
local function hub_of(incarnation) return string.match(incarnation, '^(.*)%.') or '' end
local alive = {}
local function is_alive(incarnation)
  if alive[incarnation] == nil then alive[incarnation] = lives(incarnation) end
  return alive[incarnation]
end

local function room_key(room) return P .. 'p:{' .. room .. '}' end
local function user_key(user) return P .. 'u:{' .. user .. '}' end

-- Joins and leaves of this call by room; '' is for users who connect and disconnect.
local said = {}
local function say(room, sign, user)
  local lines = said[room] or {}
  said[room] = lines
  lines[#lines + 1] = sign .. user
end
local function publish()
  for room, lines in pairs(said) do
    run('PUBLISH', P .. 'e:{' .. room .. '}', table.concat(lines, '\n'))
  end
end

-- Of a value in p:{room}: the part of other incarnations that live, and the clients of this one, or
-- nil. A dead one that nobody has reaped yet has nobody any more.
local function parted(value, incarnation)
  local others, own = '', nil
  for each, clients in string.gmatch(value, '(%S+) (%d+)\n') do
    if each == incarnation then
      own = clients
    elseif is_alive(each) then
      others = others .. each .. ' ' .. clients .. '\n'
    end
  end
  return others, own
end

-- The time at which a leave is told: after the grace, and not before that of a leave from another
-- hub has passed.
local function time_of_leave(entry, grace)
  return math.max(now() + grace, tonumber(run('ZSCORE', P .. 'grace', entry) or 0))
end
local function note_leave(entry, grace)
  if grace > 0 then run('ZADD', P .. 'grace', time_of_leave(entry, grace), entry) end
end

-- The last incarnation that had a user in a room, or at all, has him no more.
local function end_in_room(room, user, grace)
  local entry = room .. '\n' .. user
  local time = time_of_leave(entry, grace)
  if time > now() then
    run('HSET', room_key(room), user, '')
    run('ZADD', P .. 'grace', time, entry)
  else
    run('HDEL', room_key(room), user)
    say(room, '-', user)
  end
end
local function end_of_user(user, grace)
  local entry = '\n' .. user
  local time = time_of_leave(entry, grace)
  if time > now() then
    run('HSET', user_key(user), '', '0')
    run('ZADD', P .. 'grace', time, entry)
  else
    say('', '-', user)
  end
end

-- A hub that the user is still on may be dead already. So the grace of this leave is noted, too.
local function take_from_room(room, user, incarnation, grace)
  local value = run('HGET', room_key(room), user)
  local others, own = parted(value or '', incarnation)
  if not own then return end
  if others ~= '' then
    run('HSET', room_key(room), user, others)
    note_leave(room .. '\n' .. user, grace)
  else
    end_in_room(room, user, grace)
  end
end
local function take_from_user(user, incarnation, grace)
  local key = user_key(user)
  if run('HDEL', key, incarnation) == 0 then return end
  for _, each in ipairs(run('HKEYS', key)) do
    if each ~= '' and is_alive(each) then
      note_leave('\n' .. user, grace)
      return
    end
  end
  run('DEL', key)
  end_of_user(user, grace)
end

local function put_into_room(room, user, clients)
  local value = run('HGET', room_key(room), user)
  local others = parted(value or '', I)
  run('HSET', room_key(room), user, others .. I .. ' ' .. clients .. '\n')
  if value then
    run('ZREM', P .. 'grace', room .. '\n' .. user)
  else
    say(room, '+', user)
  end
end
-- The other hubs that live and have a user.
local function other_hubs(user)
  local found, seen = {}, {[hub_of(I)] = true}
  for _, each in ipairs(run('HKEYS', user_key(user))) do
    local hub = hub_of(each)
    if each ~= '' and not seen[hub] and is_alive(each) then
      seen[hub] = true
      found[#found + 1] = hub
    end
  end
  return found
end
-- Returns whether other hubs have the user as well; they hear of it where it is new.
local function put_user(user, clients)
  local key = user_key(user)
  if run('EXISTS', key) == 0 then
    say('', '+', user)
  else
    run('HDEL', key, '')
    run('ZREM', P .. 'grace', '\n' .. user)
  end
  local new = run('HSET', key, I, clients) == 1
  local others = other_hubs(user)
  for _, hub in ipairs(new and others or {}) do
    run('PUBLISH', P .. 'n:' .. hub, cjson.encode({'also', user}))
  end
  return #others > 0
end

-- Tells the leaves whose grace has ended by a time; whether there may be more.
local function sweep(until_then)
  local due = run('ZRANGEBYSCORE', P .. 'grace', '-inf', until_then, 'LIMIT', 0, PAGE)
  for _, entry in ipairs(due) do
    run('ZREM', P .. 'grace', entry)
    local room, user = string.match(entry, '^(.-)\n(.*)$')
    if room == '' then
      if run('HDEL', user_key(user), '') == 1 and run('EXISTS', user_key(user)) == 0 then
        say('', '-', user)
      end
    elseif run('HGET', room_key(room), user) == '' then
      run('HDEL', room_key(room), user)
      say(room, '-', user)
    end
  end
  return #due == PAGE and 1 or 0
end

-- Takes or renews a lease. 5 its milliseconds, 6 '1' where it is new, 7 what the hub says of itself,
-- 8 the seconds for which keys live. Returns 0, or 1, whether more leaves are due, the milliseconds
-- until the next lease of another one ends (-1: there is none), and incarnations without a lease.
if WHAT == 'lease' then
  local value = run('GET', P .. 'n:' .. I)
  local number = value and tonumber(string.match(value, '^%d+'))
  if ARGV[6] == '0' and (not number or number > tonumber(NUMBER)) then return {0} end
  run('SET', P .. 'n:' .. I, NUMBER .. ' ' .. ARGV[7], 'PX', ARGV[5])
  run('ZADD', P .. 'nodes', now(), I)
  run('EXPIRE', P .. 'nodes', ARGV[8])
  local more = sweep(now())
  publish()
  local dead, soonest = {}, -1
  for _, each in ipairs(run('ZRANGE', P .. 'nodes', 0, -1)) do
    local left = each ~= I and run('PTTL', P .. 'n:' .. each)
    if left and left < 0 then
      dead[#dead + 1] = each
    elseif left and (soonest < 0 or left < soonest) then
      soonest = left
    end
  end
  return {1, more, soonest, dead}
end

-- Writes what this incarnation has now. It may be repeated at will. 5 the grace in milliseconds, 6
-- the seconds for which keys live; then of each: the room, or '' for the user himself; the user; the
-- number of his clients. Returns the users among them whom other hubs have as well.
if WHAT == 'enter' then
  if not holds_lease() then return 'LEASE' end
  local grace, life, elsewhere = tonumber(ARGV[5]), ARGV[6], {}
  local written = {[P .. 'nu:' .. I] = true, [P .. 'nr:' .. I] = true, [P .. 'grace'] = true}
  for i = 7, #ARGV, 3 do
    local room, user, clients = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    if room == '' then
      written[user_key(user)] = true
      if clients ~= '0' then
        if put_user(user, clients) then elsewhere[#elsewhere + 1] = user end
        run('SADD', P .. 'nu:' .. I, user)
      else
        take_from_user(user, I, grace)
        run('SREM', P .. 'nu:' .. I, user)
      end
    else
      written[room_key(room)] = true
      if clients ~= '0' then
        put_into_room(room, user, clients)
        run('SADD', P .. 'nr:' .. I, room .. '\n' .. user)
      else
        take_from_room(room, user, I, grace)
        run('SREM', P .. 'nr:' .. I, room .. '\n' .. user)
      end
    end
  end
  for key in pairs(written) do run('EXPIRE', key, life) end
  publish()
  return elsewhere
end

-- Takes out some of what an incarnation has left behind. 5 that incarnation, 6 '1' where it was an
-- earlier one of the hub that asks, 7 the grace in milliseconds. Returns how many entries it was; 0: nothing is left.
if WHAT == 'reap' then
  if not holds_lease() then return 'LEASE' end
  local dead, grace = ARGV[5], tonumber(ARGV[7])
  if ARGV[6] == '1' then run('DEL', P .. 'n:' .. dead) end
  if lives(dead) then return 0 end
  local entries = run('SPOP', P .. 'nr:' .. dead, PAGE)
  for _, entry in ipairs(entries) do
    local room, user = string.match(entry, '^(.-)\n(.*)$')
    take_from_room(room, user, dead, grace)
  end
  local users = run('SPOP', P .. 'nu:' .. dead, PAGE - #entries)
  for _, user in ipairs(users) do take_from_user(user, dead, grace) end
  if #entries + #users == 0 then run('ZREM', P .. 'nodes', dead) end
  publish()
  return #entries + #users
end

-- Ends a lease, of a hub that has entered that nobody is there. The last hub of all ends every grace
-- first, since nobody would. Returns 1 where it has to be called again.
if WHAT == 'end' then
  if not holds_lease() then return 0 end
  local others = false
  for _, each in ipairs(run('ZRANGE', P .. 'nodes', 0, -1)) do
    others = others or (each ~= I and lives(each))
  end
  if not others and sweep('+inf') == 1 then
    publish()
    return 1
  end
  publish()
  run('DEL', P .. 'n:' .. I)
  if run('EXISTS', P .. 'nr:' .. I, P .. 'nu:' .. I) == 0 then run('ZREM', P .. 'nodes', I) end
  return 0
end

-- A page of the users in a room. 5 the room, 6 where to go on ('0' at first), 7 about how many.
-- Returns where to go on ('0': that was all), then each user and the number of his clients, 0 in his
-- grace. Some may come twice.
if WHAT == 'members' then
  local page = run('HSCAN', room_key(ARGV[5]), ARGV[6], 'COUNT', ARGV[7])
  local found, alive = {page[1]}, {}
  for i = 1, #page[2], 2 do
    local count = page[2][i + 1] == '' and 0 or -1
    for each, clients in string.gmatch(page[2][i + 1], '(%S+) (%d+)\n') do
      if alive[each] == nil then alive[each] = lives(each) end
      if alive[each] then count = math.max(count, 0) + tonumber(clients) end
    end
    if count >= 0 then
      found[#found + 1] = page[2][i]
      found[#found + 1] = count
    end
  end
  return found
end

-- A page of all users at this server. 5 where to go on ('' at first), 6 about how many. Returns where
-- to go on ('': that was all), then users. Some may come twice. The first page has those in their
-- grace; each further one is of one hub.
if WHAT == 'everybody' then
  local hub, cursor = string.match(ARGV[5], '^(%S+) (%d+)$')
  local found, living = {''}, {}
  for _, each in ipairs(run('ZRANGE', P .. 'nodes', 0, -1)) do
    if is_alive(each) then living[#living + 1] = each end
  end
  table.sort(living)
  if not hub then
    for _, entry in ipairs(run('ZRANGEBYSCORE', P .. 'grace', now(), '+inf')) do
      if string.sub(entry, 1, 1) == '\n' then found[#found + 1] = string.sub(entry, 2) end
    end
  else
    local page = run('SSCAN', P .. 'nu:' .. hub, cursor, 'COUNT', ARGV[6])
    for _, user in ipairs(page[2]) do found[#found + 1] = user end
    if page[1] ~= '0' then
      found[1] = hub .. ' ' .. page[1]
      return found
    end
  end
  for _, each in ipairs(living) do
    if not hub or each > hub then
      found[1] = each .. ' 0'
      return found
    end
  end
  return found
end

-- Tells which of these users are online. 5 and further: the users. Returns '1' or '0' for each.
if WHAT == 'online' then
  local found, alive = {}, {}
  for i = 5, #ARGV do
    local online = '0'
    for _, each in ipairs(run('HKEYS', user_key(ARGV[i]))) do
      if each ~= '' and alive[each] == nil then alive[each] = lives(each) end
      if each == '' or alive[each] then online = '1' end
    end
    found[#found + 1] = online
  end
  return table.concat(found)
end

-- The hubs with a lease. Returns the incarnation and the lease of each.
if WHAT == 'nodes' then
  local found = {}
  for _, each in ipairs(run('ZRANGE', P .. 'nodes', 0, -1)) do
    local value = run('GET', P .. 'n:' .. each)
    if value then
      found[#found + 1] = each
      found[#found + 1] = value
    end
  end
  return found
end
return redis.error_reply('unknown part of the script')
