-- Deletes the history of one kept room, and tells the hubs by an envelope without messages.
--
-- KEYS: the stream of the room, the position of its newest message.
-- ARGV: the channel, the name of the hub, a new tag, the seconds for which the new place lives.
--
-- The new place stands before the next message. It has the time and a new tag, so that no position of
-- before is known. The stream goes by PEXPIRE, to which the bus has a right anyway.

local now = redis.call('TIME')
local place = string.format('%d%03d-0.%s', now[1], math.floor(now[2] / 1000), ARGV[3])
redis.call('SET', KEYS[2], place, 'EX', ARGV[4])
redis.call('PEXPIRE', KEYS[1], 0)
redis.call('PUBLISH', ARGV[1], 'wsc1 k ' .. ARGV[2] .. ' ' .. place .. ' 0\n')
return place
