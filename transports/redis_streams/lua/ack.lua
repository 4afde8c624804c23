-- Ack records, delete them, and update the totals. Return the ids of the records whose lease this consumer has lost.
-- `guard` is the epoch of the partition, or the name of a consumer of single records. If a record is not pending, it
-- was acked before.
local stream, epoch, totals, by_epoch, guard = KEYS[1], KEYS[2], KEYS[3], ARGV[1] == 'partition', ARGV[2]
local group = by_epoch and 'e' .. guard or 'c'
redis.call('PERSIST', totals)
local held, stale = not by_epoch or redis.call('GET', epoch) == guard, {}
for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  local mine = held
  if not by_epoch then
    local pending = redis.call('XPENDING', stream, 'c', id, id, 1)[1]
    mine = not pending or pending[2] == guard
  end
  if not mine then
    stale[#stale + 1] = id
  elseif redis.call('XACK', stream, group, id) == 1 then
    redis.call('XDEL', stream, id)
    redis.call('HINCRBY', totals, 'records', -1)
    redis.call('HINCRBY', totals, 'bytes', 0 - tonumber(ARGV[at + 1]))
  end
end
return stale
