-- Publishes one message of a plain room, unless one was published under its idempotency key before.
--
-- KEYS: the idempotency key.
-- ARGV: the channel, the envelope, the tag of this call, the seconds for which the key lives.
-- Returns 1 if it was published before by another call, else 0. A call that is made again publishes
-- nothing, and its answer is 0 again.

local known = redis.call('GET', KEYS[1])
if known then
  return known == ARGV[3] and 0 or 1
end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 0
