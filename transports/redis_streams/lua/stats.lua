-- Return the numbers of records, bytes, redeliveries and dead letters, and the oldest record's age in milliseconds.
local totals, dead, oldest = KEYS[1], KEYS[2], false
for at = 3, #KEYS do
  local first = redis.call('XRANGE', KEYS[at], '-', '+', 'COUNT', 1)[1]
  if first then
    local put_ms = tonumber(string.match(first[1], '^%d+'))
    if not oldest or put_ms < oldest then oldest = put_ms end
  end
end
local now = redis.call('TIME')
local age = oldest and (tonumber(now[1]) * 1000 + tonumber(now[2]) / 1000 - oldest) or 0
local counts = redis.call('HMGET', totals, 'records', 'bytes', 'redeliveries')
return {counts[1] or 0, counts[2] or 0, counts[3] or 0, redis.call('XLEN', dead), math.max(math.ceil(age), 0)}
