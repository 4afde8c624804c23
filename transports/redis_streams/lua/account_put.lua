-- Count a record that an XADD has just added in the same transaction. Remove the record again if it repeats a stored
-- put, or if it exceeds the limit. The XADD is not in this script, because a script would copy the frames.
-- Return whether the record was accepted, and the numbers of records and bytes in the backlog if it was not.
local stream, totals, writer = KEYS[1], KEYS[2], KEYS[3]
local number, nbytes, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local repeated = redis.call('GET', writer) == number
local records = tonumber(redis.call('HGET', totals, 'records') or '0')
local bytes = tonumber(redis.call('HGET', totals, 'bytes') or '0')
if repeated or bytes + nbytes > limit then
  local added = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1][1]
  redis.call('XDEL', stream, added)
  return {repeated and 1 or 0, records, bytes}
end
redis.call('HINCRBY', totals, 'records', 1)
redis.call('HINCRBY', totals, 'bytes', nbytes)
redis.call('SET', writer, number, 'EX', 86400)
return {1, 0, 0}
