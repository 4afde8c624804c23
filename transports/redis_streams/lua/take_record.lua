-- Return the next record for a consumer of single records, and the number of its earlier deliveries. First come records
-- that the server has leased to this consumer in an answer that was lost. Then come records of dead consumers, and then
-- new records.
local stream, totals, prefix = KEYS[1], KEYS[2], ARGV[3]
local holder, lease_ms = ARGV[1], ARGV[2]
redis.call('PERSIST', totals)
redis.call('SET', prefix .. holder, holder, 'PX', lease_ms)
local known = {}
for at = 4, #ARGV do known[ARGV[at]] = true end
for _, pending in ipairs(redis.call('XPENDING', stream, 'c', '-', '+', #ARGV, holder)) do
  local found = not known[pending[1]] and redis.call('XRANGE', stream, pending[1], pending[1])[1]
  if found then return {{pending[1], pending[4] - 1, found[2]}} end
end
for _, owner in ipairs(redis.call('XPENDING', stream, 'c')[4] or {}) do
  if redis.call('EXISTS', prefix .. owner[1]) == 0 then
    local pending = redis.call('XPENDING', stream, 'c', '-', '+', 1, owner[1])[1]
    local got = redis.call('XCLAIM', stream, 'c', holder, 0, pending[1], 'RETRYCOUNT', pending[4] + 1)
    if got[1] then
      redis.call('HINCRBY', totals, 'redeliveries', 1)
      return {{pending[1], pending[4], got[1][2]}}
    end
    redis.call('XACK', stream, 'c', pending[1])  -- another program deleted it
  end
end
local got = redis.call('XREADGROUP', 'GROUP', 'c', holder, 'COUNT', 1, 'STREAMS', stream, '>')
if not got then return {} end
return {{got[1][2][1][1], 0, got[1][2][1][2]}}
