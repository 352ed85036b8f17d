-- Deletes the history of one kept room, and tells the hubs by an envelope without messages.
--
-- KEYS: the stream of the room, the position of its newest message.
-- ARGV: the channel, the name of the hub, a new tag, the seconds for which the new place lives.
--
-- The new place stands before the next message. It has the time and a new tag, so that no position of
-- before is known. It is not older than the newest message, so that nothing counts as lost. The stream
-- goes by PEXPIRE, to which the bus has a right anyway.

local now = redis.call('TIME')
local time, number = string.format('%d%03d', now[1], math.floor(now[2] / 1000)), '0'
local last = redis.call('GET', KEYS[2]) or ''
local its_time, its_number = string.match(last, '^(%d+)%-(%d+)%.')
if its_time and tonumber(its_time) >= tonumber(time) then time, number = its_time, its_number end
local place = time .. '-' .. number .. '.' .. ARGV[3]
redis.call('SET', KEYS[2], place, 'EX', ARGV[4])
redis.call('PEXPIRE', KEYS[1], 0)
redis.call('PUBLISH', ARGV[1], 'wsc1 k ' .. ARGV[2] .. ' ' .. place .. ' 0\n')
return place
