-- Words between hubs about a user, and the outcomes of messages to users.
--
-- ARGV: 1 what to do, 2 the prefix of all keys, 3 the incarnation that asks ('' for one without a
-- hub); then as each part below says. A word goes to the inbox of each living hub that has the user,
-- but for the one that asks.

local run = redis.call
local WHAT, P, I = ARGV[1], ARGV[2], ARGV[3]

local function hub_of(incarnation) return string.match(incarnation, '^(.*)%.') or '' end
local OWN = hub_of(I)

local alive = {}
local function other_hubs(user)
  local found = {}
  for _, each in ipairs(run('HKEYS', P .. 'u:{' .. user .. '}')) do
    if each ~= '' and hub_of(each) ~= OWN then
      if alive[each] == nil then alive[each] = run('EXISTS', P .. 'n:' .. each) == 1 end
      if alive[each] then found[hub_of(each)] = true end
    end
  end
  return found
end

-- Sends words. 4 and further: each user, and the word. Returns how many hubs got each.
if WHAT == 'tell' then
  local counts = {}
  for i = 4, #ARGV, 2 do
    local count = 0
    for hub in pairs(other_hubs(ARGV[i])) do
      -- A hub whose former connection has not ended yet gets it twice, and counts once.
      count = count + math.min(run('PUBLISH', P .. 'n:' .. hub, ARGV[i + 1]), 1)
    end
    counts[#counts + 1] = count
  end
  return counts
end

-- Sends words. 4 and further: the hub that each goes to, and the word. Returns of each whether the hub
-- got it, 1 or 0.
if WHAT == 'tell_hub' then
  local counts = {}
  for i = 4, #ARGV, 2 do
    counts[#counts + 1] = math.min(run('PUBLISH', P .. 'n:' .. ARGV[i], ARGV[i + 1]), 1)
  end
  return counts
end

-- Notes outcomes of messages. 4 the seconds for which they are known; then of each: the user, the
-- key, the outcome, '1' where the first outcome counts, the hub that waits for it or '', the word
-- that tells of it. A message whose outcome begins with 'again ' was sent anew. Each holds a text that
-- no other call has, so that a call which is made again finds its own. Returns of each whether it was
-- noted, 1 or 0; if not, nobody is told.
if WHAT == 'settle' then
  local noted = {}
  for i = 5, #ARGV, 6 do
    local user, key, outcome, first, waits, word = unpack(ARGV, i, i + 5)
    local known = first == '1' and run('GET', key)
    local counts = not known or known == outcome or string.sub(known, 1, 6) == 'again '
    if counts then
      run('SET', key, outcome, 'EX', ARGV[4])
      local hubs = other_hubs(user)
      if waits ~= '' and waits ~= OWN then hubs[waits] = true end
      for hub in pairs(hubs) do run('PUBLISH', P .. 'n:' .. hub, word) end
    end
    noted[#noted + 1] = counts and 1 or 0
  end
  return noted
end

-- Tells which of these users other hubs have. 4 and further: the users. Returns '1' or '0' for each.
if WHAT == 'elsewhere' then
  local found = {}
  for i = 4, #ARGV do found[#found + 1] = next(other_hubs(ARGV[i])) and '1' or '0' end
  return table.concat(found)
end

-- How many clients a user has on all living hubs. 4 the user.
if WHAT == 'clients' then
  local sum = 0
  local fields = run('HGETALL', P .. 'u:{' .. ARGV[4] .. '}')
  for i = 1, #fields, 2 do
    if fields[i] ~= '' and run('EXISTS', P .. 'n:' .. fields[i]) == 1 then
      sum = sum + tonumber(fields[i + 1])
    end
  end
  return sum
end
return redis.error_reply('unknown part of the script')
