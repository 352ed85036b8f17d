-- A batch of questions: one that writes nothing, and whose reply is bounded.
--
-- `operations.lua` is put before this file.
--
-- KEYS: position, oldest, recent, then messages and order of each user.
-- ARGV: the prefixes of a user's keys of messages and of order (these keys are not all in KEYS, as
-- those of users with old messages become known here; a cluster has all in one slot), bytes and
-- number of messages in the reply, whether the first one comes whatever its size, operations.
--
-- An operation is {kind, user, {lengths of strings}, ...}, the user a number from 1:
--   read      ..., position to begin behind, limit, bytes
--             -> more, position to go on behind, {position, id, data, ...}
--   old       ..., position to stop before, limit, bytes
--             -> more, {user, id, position, data or nil, ...}, users whose `oldest` is wrong
--   count     -> number
--   missing   -> numbers of the strings, which are message ids
--   appended  ..., position to begin behind, limit; the string is the store's own 8 bytes
--             -> position to go on behind, {users}
--
-- `more` says that this reply has no room for the next message, which the operation would take.
-- Returns bytes of messages, and for each operation {'ok', ...}, {'trouble', text}, {'later'}: there
-- was no room in this reply, or {'alone'}: its first message is larger than such a reply.

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
