-- The beginning of both scripts, which is put before each of them: the operations of a batch.
--
-- They come as the last two arguments: MessagePack, and all their strings in one. (redis-py takes a
-- microsecond or two for each argument, and the server's MessagePack knows no binary strings.)

local operations, strings, at = cmsgpack.unpack(ARGV[#ARGV - 1]), ARGV[#ARGV], 1

local function take(length)
  at = at + length
  return string.sub(strings, at - length, at - 1)
end
